//! The device's sampler against the one on the CPU: the same logits, settings and draws.

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::model::choice::kernels::{Choice, Listed, NO_TOKEN, SETTINGS, choose, gpu, numbers, penalise, values};

const ROWS: usize = 12;

/// Settings as a request has them.
fn sampling(temperature: f64, top_k: usize, top_p: f64, min_p: f64) -> Sampling {
    Sampling {
        max_new_tokens: 1,
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 7,
        logit_bias: Vec::new(),
    }
}

fn settings(of: &Sampling, draws: &[f64]) -> Tensor {
    let choice = |draw: &f64| Choice {
        temperature: if of.temperature < GREEDY_BELOW { 0.0 } else { of.temperature },
        top_k: of.top_k,
        top_p: of.top_p,
        min_p: of.min_p,
        draw: *draw,
        repetition: of.repetition_penalty,
        frequency: of.frequency_penalty,
        presence: of.presence_penalty,
    };
    let words: Vec<u32> = draws.iter().flat_map(|draw| choice(draw).words()).collect();
    Tensor::from_vec(words, (draws.len(), SETTINGS), &gpu().device()).unwrap()
}

/// What the device chooses from rows of logits, and its logarithmic probabilities.
fn chosen(logits: &Tensor, adjusted: &Tensor, settings: &Tensor) -> (Vec<u32>, Vec<f32>) {
    let gpu = gpu();
    let rows = logits.dims()[0];
    let (tokens, logprobs) = (gpu.tensor(rows, DType::U32).unwrap(), gpu.tensor(rows, DType::F32).unwrap());
    choose(&gpu, logits, adjusted, settings, &tokens, &logprobs).unwrap();
    (tokens.to_vec1().unwrap(), numbers(&logprobs))
}

/// Draws from `logits` on both, and compares.
fn compare(logits: &[f32], of: &Sampling) {
    let draws: Vec<f64> = (0..ROWS).map(|i| (i as f64 + 0.37) / ROWS as f64).collect();
    let rows = Tensor::from_vec(logits.repeat(ROWS), (ROWS, logits.len()), &gpu().device()).unwrap();
    let (tokens, logprobs) = chosen(&rows, &rows, &settings(of, &draws));
    let mut scratch = Scratch::default();
    truncate(logits, of, &mut scratch).unwrap();
    let total = log_sum_exp(logits).unwrap();
    let likely = probabilities(logits, of, &History::default()).unwrap();
    let mut others = 0;
    for ((token, logprob), draw) in tokens.iter().zip(&logprobs).zip(&draws) {
        let expected =
            if of.temperature < GREEDY_BELOW { first_maximum(logits).unwrap() } else { pick(&scratch.kept, *draw) };
        others += usize::from(*token != expected);
        assert!(likely[*token as usize] > 0.0, "{token} instead of {expected}: {of:?}");
        assert!((f64::from(*logprob) - (f64::from(logits[*token as usize]) - total)).abs() < 1e-4);
    }
    // A running sum may end within rounding of a draw.
    assert!(others <= 1, "{others} other tokens of {}: {of:?}", logits.len());
}

#[test]
fn on_gpu_tokens_are_those_of_the_cpu() {
    let kept = [(0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.9, 0.0), (40, 0.5, 0.0), (0, 1.0, 0.2), (3000, 0.95, 0.01)];
    for (vocab, spread, seed) in [(7, 3.0, 1), (1000, 6.0, 2), (4099, 0.01, 3), (20_000, 12.0, 4), (12_000, 0.5, 5)] {
        let logits = numbers(&(values(&[vocab], seed) * spread).unwrap());
        compare(&logits, &sampling(0.0, 5, 0.9, 0.1));
        compare(&logits, &sampling(1.0, 0, 1e-9, 0.0));
        for (top_k, top_p, min_p) in kept {
            for temperature in [0.3, 1.0] {
                compare(&logits, &sampling(temperature, top_k, top_p, min_p));
            }
        }
    }
}

#[test]
fn on_gpu_ties_are_broken_as_on_the_cpu() {
    // Many of each of a few numbers, some of them impossible.
    let logits: Vec<f32> =
        (0..3000).map(|i: u32| [2.0, 1.0, 1.0, 0.5, f32::NEG_INFINITY, 2.0, 0.0][(i * i % 7) as usize]).collect();
    for (top_k, top_p) in [(0, 1.0), (1, 1.0), (900, 0.7), (0, 0.3), (0, 0.8), (2, 0.01)] {
        for temperature in [0.0, 0.7] {
            compare(&logits, &sampling(temperature, top_k, top_p, 0.0));
        }
    }
}

#[test]
fn on_gpu_faulty_logits_have_no_token() {
    let rows = [[0.0, f32::NAN], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2], [f32::NEG_INFINITY, -3.0]];
    let logits = Tensor::new(&rows, &gpu().device()).unwrap();
    for temperature in [0.0, 1.0] {
        let (tokens, _) = chosen(&logits, &logits, &settings(&sampling(temperature, 0, 1.0, 0.0), &[0.5; 4]));
        assert_eq!(tokens, [NO_TOKEN, NO_TOKEN, NO_TOKEN, 1]);
    }
}

#[test]
fn on_gpu_penalties_and_biases_are_those_of_the_cpu() {
    let gpu = gpu();
    let vocab = 9000;
    let logits = numbers(&(values(&[2, vocab], 1) * 5.0).unwrap());
    let of = Sampling {
        repetition_penalty: 1.3,
        frequency_penalty: 0.4,
        presence_penalty: -0.7,
        logit_bias: vec![(8999, 3.0), (4, -100.0)],
        ..sampling(1.0, 0, 1.0, 0.0)
    };
    let mut history = History::new(&[3, 8191, 8192]);
    [4, 4, 8999, 3].into_iter().for_each(|token| history.push(token));
    let seen: Vec<(u32, u32)> = history.counts.iter().map(|(token, count)| (*token, *count)).collect();
    // The second row has nothing listed, in lists with room for more.
    let table = |rows: [Vec<u32>; 2]| {
        let padded = rows.into_iter().flat_map(|row| row.into_iter().chain([0; 8]).take(8));
        Tensor::from_vec(padded.collect::<Vec<u32>>(), (2, 8), &gpu.device()).unwrap()
    };
    let [tokens, often] = [0, 1].map(|i| table([seen.iter().map(|pair| [pair.0, pair.1][i]).collect(), vec![]]));
    let count = |count: usize| Tensor::new(&[count as u32, 0], &gpu.device()).unwrap();
    let (seen_count, bias_count) = (count(seen.len()), count(3));
    let seen = Listed { tokens: &tokens, numbers: &often, counts: &seen_count };
    let biased = table([of.logit_bias.iter().map(|bias| bias.0).chain([17]).collect(), vec![]]);
    let bits = of.logit_bias.iter().map(|bias| (bias.1 as f32).to_bits()).chain([f32::NEG_INFINITY.to_bits()]);
    let bits = table([bits.collect(), vec![]]);
    let biases = Listed { tokens: &biased, numbers: &bits, counts: &bias_count };
    let on_device = Tensor::from_slice(&logits, (2, vocab), &gpu.device()).unwrap();
    let adjusted = gpu.tensor((2, vocab), DType::F32).unwrap();
    let settings = settings(&of, &[0.5; 2]);
    penalise(&gpu, &on_device, &settings, Some(seen), Some(biases), &adjusted).unwrap();

    let mut expected = Vec::new();
    adjust(&logits[..vocab], &of, &history, &[17], &mut expected);
    expected.extend_from_slice(&logits[vocab..]);
    let got = numbers(&adjusted);
    assert!(got.iter().zip(&expected).all(|(got, expected)| got == expected || (got - expected).abs() < 1e-5));
    // Probabilities are those of the model.
    let (tokens, logprobs) = chosen(&on_device, &adjusted, &settings);
    for (row, (token, logprob)) in tokens.iter().zip(logprobs).enumerate() {
        let logits = &logits[row * vocab..][..vocab];
        let expected = f64::from(logits[*token as usize]) - log_sum_exp(logits).unwrap();
        assert!((f64::from(logprob) - expected).abs() < 1e-4);
    }
    penalise(&gpu, &on_device, &settings, None, None, &on_device).unwrap();
    assert_eq!(numbers(&on_device.to_device(&Device::Cpu).unwrap()), logits);
}
