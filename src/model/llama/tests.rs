//! Tests of the assembled model: properties, not reference values (those are `golden_language`).

use candle_core::DType;

use super::*;
use crate::lora::{Change, LinearDelta, SiteKind};
use crate::model::testing::{forward, ids, largest_difference, llama, mistral, tensors, write};
use crate::model::{Rows, Segment, open};

mod full;
mod learning;
#[cfg(feature = "cuda")]
mod serving;
mod settled;

use self::learning::values;

fn model(config: &serde_json::Value) -> Llama {
    let folder = tempfile::tempdir().unwrap();
    let parsed = Config::parse(config.to_string().as_bytes()).unwrap();
    write(folder.path(), config, &tensors(&parsed, 7), 1);
    open(folder.path(), "cpu", "auto").unwrap()
}

/// Rounding of f32 over two blocks, at logits of about 1.
const ROUNDING: f32 = 1e-4;

#[test]
fn packed_equals_one_by_one() {
    for config in [mistral(), llama()] {
        let model = model(&config);
        // Longer than the window and than a block of queries, single tokens among them.
        let sequences: Vec<Vec<u32>> = [1, 150, 30, 2].iter().map(|n| ids(*n, *n)).collect();
        let mut caches: Vec<_> = sequences.iter().map(|_| model.new_cache()).collect();
        let chunks: Vec<_> = sequences.iter().map(Vec::as_slice).collect();
        let packed = forward(&model, &chunks, &mut caches.iter_mut().collect::<Vec<_>>());
        let mut single = Vec::new();
        for sequence in &sequences {
            let mut cache = model.new_cache();
            for token in sequence {
                single.extend(forward(&model, &[&[*token]], &mut [&mut cache]));
            }
        }
        assert_eq!(packed, single, "bit for bit");
        assert!(caches.iter().zip(&sequences).all(|(c, s)| c.len() == s.len()));
    }
}

#[test]
fn a_window_forgets_what_lies_before_it() {
    let mut config = mistral();
    config["num_hidden_layers"] = 1.into();
    let model = model(&config);
    let (mut first, mut second) = (ids(40, 1), ids(40, 1));
    (first[19], second[19]) = (5, 60);
    let run = |tokens: &[u32]| forward(&model, &[tokens], &mut [&mut model.new_cache()]);
    let (first, second) = (run(&first), run(&second));
    // One layer and window 20: token 19 is seen by 19 to 38 and by no other.
    assert_eq!(first[..19], second[..19]);
    assert!((19..39).all(|row| first[row] != second[row]));
    assert_eq!(first[39], second[39]);
}

#[test]
fn a_fork_answers_as_its_own_sequence() {
    let model = model(&mistral());
    let mut cache = model.new_cache();
    forward(&model, &[&ids(70, 1)], &mut [&mut cache]);
    let mut fork = cache.fork().unwrap();
    forward(&model, &[&[1, 2, 3]], &mut [&mut fork]);
    let whole = |tokens: &[&[u32]]| forward(&model, &[&tokens.concat()], &mut [&mut model.new_cache()]);
    // A fork of a fork, and what it was forked from, each go on; bit for bit.
    let mut second = fork.fork().unwrap();
    let ends = [(&mut cache, 9, vec![]), (&mut second, 8, vec![1, 2, 3]), (&mut fork, 7, vec![1, 2, 3])];
    for (cache, token, between) in ends {
        let after = forward(&model, &[&[token, 4]], &mut [cache]);
        assert_eq!(after, whole(&[&ids(70, 1), &between, &[token, 4]])[70 + between.len()..]);
    }
    let after = forward(&model, &[&ids(40, 5)], &mut [&mut second]);
    assert_eq!(after, whole(&[&ids(70, 1), &[1, 2, 3, 8, 4], &ids(40, 5)])[75..]);
}

#[test]
fn rows_asked_for_come_in_the_order_of_segments() {
    let model = model(&mistral());
    let (a, b, c) = (ids(5, 1), ids(4, 2), ids(3, 3));
    let mut caches = [model.new_cache(), model.new_cache(), model.new_cache()];
    let all = forward(&model, &[&a, &b, &c], &mut caches.iter_mut().collect::<Vec<_>>());
    let asked = |rows: [Rows; 3]| {
        let segments = [(5, rows[0]), (4, rows[1]), (3, rows[2])].map(|(len, logits)| Segment { len, logits });
        let batch = Batch { tokens: &[&a[..], &b, &c].concat(), segments: &segments, lora: &LoraBatch::default() };
        let mut caches = [model.new_cache(), model.new_cache(), model.new_cache()];
        model.forward(&batch, &mut caches.iter_mut().collect::<Vec<_>>())
    };
    let got: Vec<Vec<f32>> = asked([Rows::Last(2), Rows::None, Rows::Last(1)]).unwrap().to_vec2().unwrap();
    let expected = [all[3].clone(), all[4].clone(), all[11].clone()];
    assert!(largest_difference(&got, &expected) < ROUNDING);
    assert_eq!(asked([Rows::None; 3]).unwrap().dims(), [0, 96]);
    assert!(matches!(asked([Rows::Last(6), Rows::None, Rows::None]), Err(ModelError::Input(_))));
}

#[test]
fn a_row_is_the_same_whichever_rows_are_asked_for() {
    for config in [mistral(), llama()] {
        let model = model(&config);
        let linear = model.sites().iter().enumerate().filter(|(_, site)| site.kind == SiteKind::Linear);
        let change = |(id, site): (usize, &Site)| {
            let [a, b] = [[site.input, 3], [3, site.output]].map(|shape| values(&shape, id as u64));
            let (a, b) = (a.as_detached_tensor(), b.as_detached_tensor());
            let delta = LinearDelta::new(a, b, 2.0);
            (SiteId(id), Change::Linear(delta))
        };
        let adapter = Arc::new(Adapter::unnamed(linear.map(change).collect()));
        let runs = vec![Run { adapter, rows: 3..8, scale: 0.5 }];
        let (lora, plain) = (LoraBatch { runs, dropout: None }, LoraBatch::default());
        let (first, second) = (ids(10, 1), ids(9, 2));
        let asked = |rows: [Rows; 3], lora: &LoraBatch| {
            let mut caches = [model.new_cache(), model.new_cache(), model.new_cache()];
            let mut step = |tokens: &[u32], lengths: [usize; 3], rows: [Rows; 3], lora: &LoraBatch| {
                let segments: Vec<_> =
                    lengths.into_iter().zip(rows).map(|(len, logits)| Segment { len, logits }).collect();
                let batch = Batch { tokens, segments: &segments, lora };
                model.forward(&batch, &mut caches.iter_mut().collect::<Vec<_>>()).unwrap().to_vec2::<f32>().unwrap()
            };
            step(&first, [2, 7, 1], [Rows::None; 3], lora);
            step(&second, [4, 2, 3], rows, lora)
        };
        let all = asked([Rows::Last(4), Rows::Last(2), Rows::Last(3)], &lora);
        let some = asked([Rows::Last(2), Rows::None, Rows::Last(1)], &lora);
        assert_eq!(some, [2, 3, 8].map(|row: usize| all[row].clone()));
        let without = asked([Rows::Last(2), Rows::None, Rows::Last(1)], &plain);
        assert!(largest_difference(&some, &without) > 100.0 * ROUNDING);
    }
}

#[test]
fn faulty_batches_are_refused_and_leave_the_cache_alone() {
    let model = model(&mistral());
    let mut cache = model.new_cache();
    let run = |tokens: &[u32], lengths: &[usize], cache: &mut KvCache| {
        let segments: Vec<_> = lengths.iter().map(|len| Segment { len: *len, logits: Rows::None }).collect();
        model.forward(&Batch { tokens, segments: &segments, lora: &LoraBatch::default() }, &mut [cache]).map(|_| ())
    };
    for (tokens, lengths) in [
        (vec![96], vec![1]),
        (vec![u32::MAX], vec![1]),
        (vec![1, 2], vec![1]),
        (vec![1], vec![usize::MAX, 2]),
        (vec![1], vec![1, 0]),
        (vec![1, 2], vec![1, 1]),
        (vec![1; 513], vec![513]),
    ] {
        assert!(matches!(run(&tokens, &lengths, &mut cache), Err(ModelError::Input(_))), "{lengths:?}");
    }
    assert!(matches!(run(&[1], &[1], &mut KvCache::new(3)), Err(ModelError::Input(_))));
    assert!(cache.is_empty());
    run(&[1; 512], &[512], &mut cache).unwrap();
    assert!(run(&[1], &[1], &mut cache).is_err());
}

#[test]
fn sites_are_named_and_hold_their_weights() {
    let model = model(&llama());
    let parsed = Config::parse(llama().to_string().as_bytes()).unwrap();
    let written = tensors(&parsed, 7);
    // Embedding, head, classifier, final norm; seven layers and two norms a block.
    assert_eq!(model.sites().len(), 4 + 9 * 2);
    for (i, site) in model.sites().iter().enumerate() {
        if site.kind == SiteKind::Classifier {
            model.weight(SiteId(i)).unwrap_err();
            continue;
        }
        let weight = model.weight(SiteId(i)).unwrap();
        let expected = &written[&format!("{}.weight", site.path)];
        let dims = match site.kind {
            SiteKind::Embedding => vec![site.input, site.output],
            SiteKind::Norm => vec![site.output],
            SiteKind::Patches(_) | SiteKind::Parameter(_) => unreachable!("a language model"),
            SiteKind::Linear | SiteKind::Head | SiteKind::Classifier => vec![site.output, site.input],
        };
        assert_eq!(weight.dims(), dims, "{}", site.path);
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((weight.dtype(), values(&weight)), (DType::F32, values(expected)));
        assert_eq!(site.bias, written.contains_key(&format!("{}.bias", site.path)));
    }
    assert_eq!(model.info().eos_token_ids, [2, 3]);
    assert_eq!(model.info().kv_bytes_per_token, 2 * 2 * 2 * 32 * 4);
}
