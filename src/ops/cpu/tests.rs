//! Every form of every product against sums in f64, and the promise that rows do not depend on each other.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use rand::{RngExt, SeedableRng};

use super::blocks::BLOCK;
use super::product::products_at;
use super::simd::{LANES, Number, Simd, Work, exp};
use super::*;

const FORMATS: [Format; 11] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::Q40,
    Format::Q41,
    Format::Q50,
    Format::Q51,
    Format::Q80,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

fn job<'a>(weights: &'a Packed, out: &'a mut [f32]) -> Job<'a> {
    Job { weights, out, changes: &[] }
}

fn values(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn ggml(format: Format) -> GgmlDType {
    match format {
        Format::F32 => GgmlDType::F32,
        Format::F16 => GgmlDType::F16,
        Format::Bf16 => GgmlDType::BF16,
        Format::Q40 => GgmlDType::Q4_0,
        Format::Q41 => GgmlDType::Q4_1,
        Format::Q50 => GgmlDType::Q5_0,
        Format::Q51 => GgmlDType::Q5_1,
        Format::Q80 => GgmlDType::Q8_0,
        Format::Q4K => GgmlDType::Q4K,
        Format::Q5K => GgmlDType::Q5K,
        Format::Q6K => GgmlDType::Q6K,
    }
}

/// Random weights, packed, and what candle says that they are.
fn weights(format: Format, outputs: usize, inputs: usize, seed: u64) -> (Packed, Vec<f32>) {
    let tensor = Tensor::from_vec(values(outputs * inputs, seed), (outputs, inputs), &Device::Cpu).unwrap();
    let stored = QTensor::quantize(&tensor, ggml(format)).unwrap();
    let plain = stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    (Packed::new(format, outputs, inputs, &stored.data().unwrap()).unwrap(), plain)
}

/// Rows as integers of 8 bits stand for them.
fn rounded(x: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    for block in x.chunks_exact(BLOCK) {
        let largest = block.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
        out.extend(block.iter().map(|x| (x * (127.0 / largest)).round_ties_even() * (largest / 127.0)));
    }
    out
}

fn reference(weights: &[f32], x: &[f32], inputs: usize) -> Vec<f32> {
    let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32;
    x.chunks_exact(inputs).flat_map(|x| weights.chunks_exact(inputs).map(move |w| dot(w, x))).collect()
}

fn close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= tolerance, "{what}, number {i}: {got}, expected {expected}");
    }
}

#[test]
fn packed_weights_are_the_files_own() {
    for format in FORMATS {
        for (outputs, inputs) in [(1, 256), (16, 512), (37, 768)] {
            let (packed, plain) = weights(format, outputs, inputs, 1);
            assert_eq!(packed.to_f32(), plain, "{format:?}");
            let mut row = vec![0.0; inputs];
            packed.row(outputs / 2, &mut row);
            assert_eq!(row, plain[outputs / 2 * inputs..][..inputs], "{format:?}");
        }
        let (width, bytes) = format.stored();
        assert!(Packed::new(format, 2, width, &vec![0; 2 * bytes - 1]).is_none());
        assert!(Packed::new(format, 2, 0, &[]).is_none());
        if width > 1 {
            assert!(Packed::new(format, 1, width + 1, &vec![0; bytes]).is_none());
        }
    }
}

#[test]
fn every_form_multiplies_and_no_row_depends_on_another() {
    for format in FORMATS {
        let quantised = format.shape().is_some();
        let odd = if quantised { 96 } else { 75 };
        let odd = odd.max(format.stored().0);
        for (outputs, inputs) in [(1, odd), (50, odd), (67, 512), (96, 512)] {
            let (packed, plain) = weights(format, outputs, inputs, 2);
            for level in Level::available() {
                let what = format!("{format:?} {level:?} [{outputs}, {inputs}]");
                let x = values(37 * inputs, 3);
                let seen = if quantised { rounded(&x) } else { x.clone() };
                let expected = reference(&plain, &seen, inputs);
                // A sum of 512 products below 1; bf16 rows lose 1/512 of each.
                let tolerance = if format == Format::Bf16 && level.narrows(inputs) { 0.1 } else { 2e-4 };
                let mut whole = vec![f32::NAN; 37 * outputs];
                let mut prepared = Prepared::default();
                products_at(level, &x, 37, [job(&packed, &mut whole)], &mut prepared).unwrap();
                close(&whole, &expected, tolerance, &what);
                for (first, rows) in [(0, 1), (36, 1), (3, 2), (5, 3), (1, 7), (8, 16)] {
                    let mut part = vec![f32::NAN; rows * outputs];
                    let x = &x[first * inputs..(first + rows) * inputs];
                    products_at(level, x, rows, [job(&packed, &mut part)], &mut prepared).unwrap();
                    assert_eq!(part, whole[first * outputs..(first + rows) * outputs], "{what}, {rows} rows");
                }
            }
        }
    }
}

#[test]
fn several_products_of_the_same_rows_are_those_of_each() {
    let all: Vec<_> = [(Format::Q40, 576), (Format::Q80, 192), (Format::F32, 40), (Format::Bf16, 7)]
        .into_iter()
        .map(|(format, outputs)| weights(format, outputs, 576, outputs as u64).0)
        .collect();
    for rows in [1, 4, 300] {
        let x = values(rows * 576, 4);
        let mut together: Vec<_> = all.iter().map(|weights| vec![0.0; rows * weights.outputs()]).collect();
        let jobs: Vec<_> = all.iter().zip(&mut together).map(|(weights, out)| job(weights, out)).collect();
        products(&x, rows, jobs, &mut Prepared::default()).unwrap();
        for (weights, together) in all.iter().zip(&together) {
            let mut alone = vec![0.0; together.len()];
            product(weights, &x, rows, &mut alone, &mut Prepared::default()).unwrap();
            assert_eq!(&alone, together, "{:?}", weights.format());
        }
    }
    assert!(product(&all[0], &values(575, 1), 1, &mut [0.0; 576], &mut Prepared::default()).is_err());
    assert!(product(&all[0], &values(576, 1), 1, &mut [0.0; 575], &mut Prepared::default()).is_err());
}

#[test]
fn exact_and_transposed_products_round_no_rows() {
    // The last one's sums are computed in parts.
    let shapes = [(67, 256, &[1, 5, 70][..]), (96, 256, &[1, 5, 70]), (1043, 1280, &[9])];
    for (format, (outputs, inputs, all)) in FORMATS.into_iter().flat_map(|format| shapes.map(|shape| (format, shape))) {
        // What rounding leaves of a sum grows with it, at most as fast.
        let tolerance = 1e-4 * (inputs / 256) as f32;
        for &rows in all {
            let (packed, plain) = weights(format, outputs, inputs, 5);
            let x = values(rows * inputs, 6);
            let mut got = vec![0.0; rows * outputs];
            product_exact(&packed, &x, rows, &mut got).unwrap();
            close(&got, &reference(&plain, &x, inputs), tolerance, &format!("{format:?}"));

            let gradient = values(rows * outputs, 7);
            let transposed: Vec<f32> =
                (0..inputs * outputs).map(|i| plain[i % outputs * inputs + i / outputs]).collect();
            let mut got = vec![0.0; rows * inputs];
            product_transposed(&packed, &gradient, rows, &mut got).unwrap();
            let tolerance = if format == Format::Bf16 { 500.0 * tolerance } else { tolerance };
            close(&got, &reference(&transposed, &gradient, outputs), tolerance, &format!("{format:?}, transposed"));
        }
    }
}

#[test]
fn sums_may_be_long() {
    // Vocabularies are what is summed over in the backward of a head.
    let (long, other) = (16_416, 33);
    // Rows of bf16 may lose 1/512 of each number: a few standard deviations of the sum of what is lost.
    for (format, tolerance) in [(Format::Bf16, 1.0), (Format::F16, 0.02), (Format::F32, 0.02)] {
        let (packed, plain) = weights(format, other, long, 2);
        let (turned, plain_turned) = weights(format, long, other, 3);
        let transposed: Vec<f32> = (0..other * long).map(|i| plain_turned[i % long * other + i / long]).collect();
        for rows in [1, 40] {
            let (x, gradient) = (values(rows * long, 4), values(rows * long, 5));
            let mut got = vec![f32::NAN; rows * other];
            product(&packed, &x, rows, &mut got, &mut Prepared::default()).unwrap();
            close(&got, &reference(&plain, &x, long), tolerance, &format!("{format:?}"));
            got.fill(f32::NAN);
            product_transposed(&turned, &gradient, rows, &mut got).unwrap();
            close(&got, &reference(&transposed, &gradient, long), tolerance, &format!("{format:?}, transposed"));
        }
    }
}

#[test]
fn no_rows_have_products() {
    let (packed, _) = weights(Format::Q80, 40, 64, 1);
    product(&packed, &[], 0, &mut [], &mut Prepared::default()).unwrap();
    product_exact(&packed, &[], 0, &mut []).unwrap();
    product_transposed(&packed, &[], 0, &mut []).unwrap();
}

/// B as it lies in 8 bits: two components beside each other.
fn paired(b: &[i8], outputs: usize) -> Vec<i8> {
    let rank = b.len() / outputs;
    let at = |component: usize, column: usize| if component < rank { b[component * outputs + column] } else { 0 };
    (0..rank.next_multiple_of(2) * outputs).map(|i| at(i / (2 * outputs) * 2 + i % 2, i / 2 % outputs)).collect()
}

#[test]
fn low_ranks_are_added_and_no_row_depends_on_another() {
    for (rows, inputs, rank, outputs) in [(1, 576, 8, 192), (33, 70, 3, 50), (40, 96, 17, 33)] {
        let (x, a, b) = (values(rows * inputs, 1), values(rank * inputs, 2), values(rank * outputs, 3));
        let b_t: Vec<f32> = (0..b.len()).map(|i| b[i % rank * outputs + i / rank]).collect();
        let expected = reference(&b_t, &reference(&a, &x, inputs), rank);
        let expected: Vec<f32> = expected.iter().map(|x| 1.0 + 0.5 * x).collect();
        let [narrow_a, narrow_b] = [&a, &b].map(|x| x.iter().map(|x| half::bf16::from_f32(*x)).collect::<Vec<_>>());
        // Whole numbers up to 100, whose worth differs by component.
        let bytes = |x: &[f32]| x.iter().map(|x| (x * 100.0).round() as i8).collect::<Vec<_>>();
        let (byte_a, byte_b, worth) = (bytes(&a), bytes(&b), (1..=rank).map(|k| 1e-4 * k as f32).collect::<Vec<_>>());
        let wide = |x: &[i8]| x.iter().map(|x| f32::from(*x)).collect::<Vec<_>>();
        let b_t: Vec<f32> =
            (0..b.len()).map(|i| wide(&byte_b)[i % rank * outputs + i / rank] * worth[i % rank]).collect();
        let seen = if inputs % BLOCK == 0 { rounded(&x) } else { x.clone() };
        let of_bytes = reference(&b_t, &reference(&wide(&byte_a), &seen, inputs), rank);
        let of_bytes: Vec<f32> = of_bytes.iter().map(|x| 1.0 + 0.5 * x).collect();
        // Sums of up to 576 products below 1 times as many as the rank; bf16 loses 1/512 of each number.
        let byte_b = paired(&byte_b, outputs);
        let matrices = [byte_a.as_slice(), &byte_b];
        for (factors, expected, tolerance) in [
            (Factors::F32([&a, &b]), &expected, 1e-3),
            (Factors::Bf16([&narrow_a, &narrow_b]), &expected, 0.5),
            (Factors::Int8 { matrices, worth: &worth }, &of_bytes, 1e-2),
        ] {
            let (mut got, change) = (vec![1.0; rows * outputs], |rows| LowRank { rows, factors, scale: 0.5 });
            add_low_rank((&x, inputs), &[change(0..rows)], (&mut got, outputs)).unwrap();
            close(&got, expected, tolerance, &format!("{rows} {inputs} {rank} {outputs}"));
            let mut last = vec![1.0; outputs];
            add_low_rank((&x[(rows - 1) * inputs..], inputs), &[change(0..1)], (&mut last, outputs)).unwrap();
            assert_eq!(last, got[(rows - 1) * outputs..]);
            let mut wrong = vec![1.0; rows * (outputs + 1)];
            add_low_rank((&x, inputs), &[change(0..rows)], (&mut wrong, outputs + 1)).unwrap_err();
            add_low_rank((&x, inputs), &[change(rows..rows + 1)], (&mut got, outputs)).unwrap_err();
        }
        let few = Factors::Int8 { matrices, worth: &worth[1..] };
        let few = LowRank { rows: 0..rows, factors: few, scale: 1.0 };
        add_low_rank((&x, inputs), &[few], (&mut vec![1.0; rows * outputs], outputs)).unwrap_err();
    }
}

#[test]
fn every_form_adds_low_ranks_of_bytes() {
    let rows = 11;
    let bytes = |count, seed| values(count, seed).iter().map(|x| (x * 127.0).round() as i8).collect::<Vec<_>>();
    let wide = |x: &[i8]| x.iter().map(|x| f32::from(*x)).collect::<Vec<_>>();
    for (inputs, outputs, rank) in [(96, 50, 1), (64, 48, 8), (576, 37, 17), (160, 16, 5)] {
        // No weight here takes rows as bytes: what is added alone does.
        let (weights, _) = weights(Format::F32, outputs, inputs, 1);
        let (x, a, b) = (values(rows * inputs, 2), bytes(rank * inputs, 3), bytes(rank * outputs, 4));
        let worth: Vec<f32> = (1..=rank).map(|k| 1e-4 / k as f32).collect();
        let b_t: Vec<f32> = (0..b.len()).map(|i| wide(&b)[i % rank * outputs + i / rank] * worth[i % rank]).collect();
        let expected = reference(&b_t, &reference(&wide(&a), &rounded(&x), inputs), rank);
        let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let factors = Factors::Int8 { matrices: [&a, &paired(&b, outputs)], worth: &worth };
        for level in Level::available() {
            let product = |rows: usize, x: &[f32], changes: &[LowRank<'_>]| {
                let mut out = vec![0.0; rows * outputs];
                let jobs = [Job { weights: &weights, out: &mut out, changes }];
                products_at(level, x, rows, jobs, &mut Prepared::default()).unwrap();
                out
            };
            let change = |rows| [LowRank { rows: 0..rows, factors, scale: -2.0 }];
            let (base, all) = (product(rows, &x, &[]), product(rows, &x, &change(rows)));
            let added: Vec<f32> = all.iter().zip(base).map(|(all, base)| (all - base) / -2.0).collect();
            // Half a word of each component, and what f32 loses beside the product.
            let tolerance = 1e-4 * largest + 1e-5;
            close(&added, &expected, tolerance, &format!("{level:?} {inputs} {outputs} {rank}"));
            let last = product(1, &x[(rows - 1) * inputs..], &change(1));
            assert_eq!(last, all[(rows - 1) * outputs..], "{level:?} {inputs} {outputs} {rank}");
        }
    }
    // What is made of an infinite number is none; the row beside it is as it was.
    let factors = Factors::Int8 { matrices: [&[1; 64], &[1; 32]], worth: &[1.0] };
    let mut out = vec![0.0; 32];
    let x: Vec<f32> = (0..128).map(|i| if i == 70 { f32::INFINITY } else { 1.0 }).collect();
    add_low_rank((&x, 64), &[LowRank { rows: 0..2, factors, scale: 1.0 }], (&mut out, 16)).unwrap();
    close(&out[..16], &[64.0; 16], 1e-3, "beside");
    assert!(out[16..].iter().all(|x| x.is_nan()));
}

#[test]
fn products_have_the_changes_of_their_rows() {
    let inputs = 576;
    let all: Vec<_> = [(Format::Q40, 576), (Format::F32, 40), (Format::Bf16, 7), (Format::Q80, 192)]
        .into_iter()
        .map(|(format, outputs)| weights(format, outputs, inputs, outputs as u64).0)
        .collect();
    // Rows of two adapters of other ranks, one of which changes fewer products.
    let both = |weights: &Packed| [5, 8].map(|rank| (values(rank * inputs, 8), values(rank * weights.outputs(), 9)));
    let matrices: Vec<_> = all.iter().map(both).collect();
    let narrow = |x: &[f32]| x.iter().map(|x| half::bf16::from_f32(*x)).collect::<Vec<_>>();
    let narrowed: Vec<_> = matrices.iter().map(|[_, (a, b)]| (narrow(a), narrow(b))).collect();
    let in_bytes = |x: &[f32]| x.iter().map(|x| (x * 100.0) as i8).collect::<Vec<_>>();
    let pairs = |b: &[f32]| paired(&in_bytes(b), b.len() / 5);
    let bytes: Vec<_> = matrices.iter().map(|[(a, b), _]| [in_bytes(a), pairs(b)]).collect();
    for rows in [1, 8, 150] {
        let x = values(rows * inputs, 4);
        let mut changes = Vec::new();
        for (i, (([(a, b), _], (c, d)), [e, f])) in matrices.iter().zip(&narrowed).zip(&bytes).enumerate() {
            let of_bytes = Factors::Int8 { matrices: [e, f], worth: &[1e-4; 5] };
            let factors = if i % 2 == 0 { Factors::F32([a, b]) } else { of_bytes };
            let first = LowRank { rows: 0..rows / 3, factors, scale: 0.5 };
            let second = LowRank { rows: rows / 2..rows, factors: Factors::Bf16([c, d]), scale: 1.0 };
            changes.push(if i == 2 { vec![second] } else { vec![first, second] });
        }
        let mut together: Vec<_> = all.iter().map(|weights| vec![0.0; rows * weights.outputs()]).collect();
        let of_all = all.iter().zip(&mut together).zip(&changes);
        let jobs: Vec<_> = of_all.map(|((weights, out), changes)| Job { weights, out, changes }).collect();
        products(&x, rows, jobs, &mut Prepared::default()).unwrap();
        for ((weights, together), changes) in all.iter().zip(&together).zip(&changes) {
            let mut alone = vec![0.0; together.len()];
            product(weights, &x, rows, &mut alone, &mut Prepared::default()).unwrap();
            let base = alone.clone();
            add_low_rank((&x, inputs), changes, (&mut alone, weights.outputs())).unwrap();
            assert_eq!(&alone, together, "{:?}", weights.format());
            assert_ne!(base, alone);
        }
    }
    let wrong = LowRank { rows: 0..1, factors: Factors::F32([&matrices[0][0].0, &matrices[1][0].1]), scale: 1.0 };
    let mut out = vec![0.0; 576];
    let jobs = [Job { weights: &all[0], out: &mut out, changes: &[wrong] }];
    assert!(products(&values(inputs, 1), 1, jobs, &mut Prepared::default()).is_err());
}

#[test]
fn matrices_multiply_however_they_lie() {
    let shapes = [(1, 1, 1), (3, 40, 8), (70, 33, 50), (130, 64, 200), (8, 130, 3), (300, 200, 17), (270, 700, 250)];
    for (rows, inputs, outputs) in shapes {
        let (a, b) = (values(rows * inputs, 8), values(inputs * outputs, 9));
        let b_t: Vec<f32> = (0..b.len()).map(|i| b[i % inputs * outputs + i / inputs]).collect();
        let a_t: Vec<f32> = (0..a.len()).map(|i| a[i % rows * inputs + i / rows]).collect();
        let expected = reference(&b_t, &a, inputs);
        let views = [
            (View::new(&a, (rows, inputs), (inputs, 1)), View::new(&b, (inputs, outputs), (outputs, 1))),
            (View::new(&a_t, (rows, inputs), (1, rows)), View::new(&b_t, (inputs, outputs), (1, inputs))),
        ];
        for (a, b) in views {
            let mut got = vec![f32::NAN; rows * outputs];
            multiply(a.unwrap(), b.unwrap(), &mut got, false).unwrap();
            close(&got, &expected, 1e-4, &format!("{rows} {inputs} {outputs}"));
            multiply(a.unwrap(), b.unwrap(), &mut got, true).unwrap();
            let twice: Vec<f32> = expected.iter().map(|x| 2.0 * x).collect();
            close(&got, &twice, 2e-4, &format!("{rows} {inputs} {outputs}, twice"));
        }
        let mut got = vec![f32::NAN; rows * outputs];
        dots((&a, rows, inputs), (&b_t, inputs), &mut got).unwrap();
        close(&got, &expected, 1e-4, &format!("dots {rows} {inputs} {outputs}"));
        let mut one = vec![f32::NAN; outputs];
        dots((&a[(rows - 1) * inputs..], 1, inputs), (&b_t, inputs), &mut one).unwrap();
        assert_eq!(one, got[(rows - 1) * outputs..]);

        let mut got = vec![1.0; rows * (outputs + 3)];
        multiply_rows((&a, rows, inputs), (&b, outputs), (&mut got, outputs + 3), true).unwrap();
        for (got, expected) in got.chunks_exact(outputs + 3).zip(expected.chunks_exact(outputs)) {
            let expected: Vec<f32> = expected.iter().map(|x| x + 1.0).collect();
            close(&got[..outputs], &expected, 1e-4, &format!("rows {rows} {inputs} {outputs}"));
            assert_eq!(got[outputs..], [1.0; 3]);
        }
    }
    // Shares of a long sum.
    let (a, b) = (values(5 * 9000, 8), values(9000 * 32, 9));
    let b_t: Vec<f32> = (0..b.len()).map(|i| b[i % 9000 * 32 + i / 9000]).collect();
    let mut got = vec![f32::NAN; 5 * 32];
    multiply_long((&a, 5), (&b, 32), &mut got).unwrap();
    close(&got, &reference(&b_t, &a, 9000), 1e-3, "long");
    multiply_long((&a, 5), (&b[..9000 * 31], 31), &mut got[..5 * 31]).unwrap_err();
    assert!(View::new(&[0.0; 5], (2, 3), (3, 1)).is_none());
    assert!(View::new(&[0.0; 6], (2, 3), (usize::MAX, 1)).is_none());
}

/// Products of bytes, of words made of bytes, and two numbers: as 16 f32 each.
struct Signed<'a>(&'a [[i8; 4 * LANES]; 2]);

impl Work for Signed<'_> {
    type Output = [[f32; LANES]; 3];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut out = [[0.0; LANES]; 3];
        #[expect(unsafe_code, reason = "64 bytes stand there in both")]
        // SAFETY: as above.
        unsafe {
            let [a, b] = self.0.each_ref().map(|bytes| s.load_bytes(bytes.as_ptr().cast()));
            let [c, d] = self.0.each_ref().map(|bytes| s.byte_pairs(bytes.as_ptr().add(LANES)));
            s.store(out[0].as_mut_ptr(), s.to_float(s.dot_signed(a, b)));
            s.store(out[1].as_mut_ptr(), s.to_float(s.dot_words(s.splat_i32(-7), c, d)));
            s.store(out[2].as_mut_ptr(), s.two_halves(1.5, -2.0));
        }
        out
    }
}

#[test]
fn every_form_multiplies_signed_bytes() {
    let bytes = |factor: usize| std::array::from_fn(|i| ((i * factor % 255) as i32 - 127) as i8);
    let both: [[i8; 4 * LANES]; 2] = [bytes(255 - 44), bytes(97)];
    let product = |i: usize| i32::from(both[0][i]) * i32::from(both[1][i]);
    let sums = |first: usize, width: usize| {
        std::array::from_fn(|i| (first + i * width..first + (i + 1) * width).map(product).sum::<i32>())
    };
    let fours: [i32; LANES] = sums(0, 4);
    let twos: [i32; LANES] = sums(LANES, 2);
    let halves = std::array::from_fn(|i| if i < 8 { 1.5 } else { -2.0 });
    for level in Level::available() {
        let expected = [fours.map(|x| x as f32), twos.map(|x| x as f32 - 7.0), halves];
        assert_eq!(level.run(Signed(&both)), expected, "{level:?}");
    }
}

struct Powers(Vec<f32>);

impl Work for Powers {
    type Output = Vec<f32>;

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) -> Vec<f32> {
        for x in self.0.chunks_exact_mut(LANES) {
            x.copy_from_slice(&{
                let mut out = [0.0; LANES];
                #[expect(unsafe_code, reason = "16 numbers stand there")]
                // SAFETY: 16 numbers stand there.
                unsafe {
                    s.store(out.as_mut_ptr(), exp(s, s.load(x.as_ptr())));
                }
                out
            });
        }
        self.0
    }
}

/// 16 numbers of a format as f32.
struct Wide<'a, N>(&'a [N; LANES]);

impl<N: Number> Work for Wide<'_, N> {
    type Output = [f32; LANES];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        #[expect(unsafe_code, reason = "16 numbers stand there in both")]
        // SAFETY: as above.
        unsafe {
            s.store(out.as_mut_ptr(), N::load(s, self.0.as_ptr()));
        }
        out
    }
}

#[test]
fn every_form_reads_numbers_of_every_format() {
    for level in Level::available() {
        for first in (-128..=127).step_by(LANES) {
            let bytes: [i8; LANES] = std::array::from_fn(|i| (first + i as i32) as i8);
            assert_eq!(level.run(Wide(&bytes)), bytes.map(f32::from), "{level:?}");
            let narrow = bytes.map(|x| half::bf16::from_f32(f32::from(x) / 3.0));
            assert_eq!(level.run(Wide(&narrow)), narrow.map(half::bf16::to_f32), "{level:?}");
        }
    }
}

#[test]
fn powers_of_e_are_good_to_the_last_places() {
    let x: Vec<f32> = (0..16 * 1100).map(|i| i as f32 * 0.01 - 88.0).collect();
    for level in Level::available() {
        for (x, got) in x.iter().zip(level.run(Powers(x.clone()))) {
            let expected = f64::from(x.clamp(-87.0, 88.0)).exp();
            assert!((f64::from(got) / expected - 1.0).abs() < 4e-7, "{level:?}: e^{x} = {got}");
        }
        assert!(level.run(Powers(vec![f32::NAN; LANES])).iter().all(|x| x.is_nan()), "{level:?}");
    }
}
