//! Matrices of fewer bits than f32.

use super::*;

fn read_in(format: DType, more: &Value, stored: &Stored) -> Adapter {
    let base = Small { format, ..Small::new() };
    peft::read(config(more).to_string().as_bytes(), &file(stored), &base).unwrap()
}

#[test]
fn narrow_matrices_lose_what_their_format_rounds() {
    let stored = pairs(2, 2, 60);
    let x = tensor(&[40, 6], 1);
    let wide = read_in(DType::F32, &json!({}), &stored);
    let (generation, bytes) = (wide.generation, wide.info.bytes);
    let expected = apply(&one(wide, 0..40), UP, &x, None);
    // bf16 takes up to 1/512 of each number, 8 bits half a step of the largest of a row; two layers have two steps each.
    for (format, bytes, loss) in [(DType::BF16, bytes / 2, 1.0 / 512.0), (DType::U8, bytes / 4 + 16, 1.0 / 254.0)] {
        let narrow = read_in(format, &json!({}), &stored);
        assert_eq!((narrow.generation, narrow.info.bytes, narrow.info.rank), (generation, bytes, 2));
        let difference = (&expected - apply(&one(narrow, 0..40), UP, &x, None)).unwrap();
        let difference = largest(&difference) / largest(&expected);
        assert!(difference > 0.0 && difference < 2.0 * loss, "{format:?}: {difference}");
    }
}

#[test]
fn an_odd_rank_in_8_bits_is_what_it_was() {
    let (stored, x) = (pairs(3, 3, 80), tensor(&[40, 6], 1));
    let wide = apply(&one(read_in(DType::F32, &json!({"r": 3}), &stored), 0..40), UP, &x, None);
    let narrow = read_in(DType::U8, &json!({"r": 3}), &stored);
    assert_eq!(narrow.info.rank, 3);
    let narrow = apply(&one(narrow, 0..40), UP, &x, None);
    let difference = largest(&(&wide - &narrow).unwrap()) / largest(&wide);
    assert!(difference > 0.0 && difference < 2.0 / 254.0, "{difference}");
}

#[test]
fn rows_of_8_bits_stand_beside_those_that_do_more() {
    let (plain, mut refined) = (pairs(2, 2, 60), pairs(3, 3, 70));
    put(&mut refined, "block.0.up.lora_magnitude_vector", &[9], 1);
    put(&mut refined, "block.1.down.lora_magnitude_vector.weight", &[5], 2);
    let bytes = Arc::new(read_in(DType::U8, &json!({}), &plain));
    let dora = Arc::new(read_in(DType::U8, &json!({"use_dora": true, "r": 3}), &refined));
    let run = |adapter: &Arc<Adapter>, rows, scale| Run { adapter: Arc::clone(adapter), rows, scale };
    let runs = vec![run(&dora, 2..9, 1.0), run(&bytes, 9..25, 0.5), run(&dora, 25..30, 1.0), run(&bytes, 31..40, 1.0)];
    let together = LoraBatch { runs, dropout: None };
    let (x, bias) = (tensor(&[40, 6], 1), tensor(&[9], 2));
    let all = apply(&together, UP, &x, Some(&bias));
    let alone = LoraBatch { runs: vec![run(&bytes, 0..9, 1.0)], dropout: None };
    let last = x.narrow(0, 31, 9).unwrap().contiguous().unwrap();
    assert_close(&all.narrow(0, 31, 9).unwrap(), &apply(&alone, UP, &last, Some(&bias)));
}
