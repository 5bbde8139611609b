//! Tests of `convert`: both sides of every range, all faults at once, and no panic on anything.

use proptest::prelude::*;

use super::*;

const BOUNDS: Bounds = Bounds { vocab: 100 };

fn request(sampling: pb::SamplingParams) -> pb::GenerateRequest {
    pb::GenerateRequest { prompt: Some("hi".into()), sampling: Some(sampling), ..Default::default() }
}

fn faults(request: pb::GenerateRequest) -> Vec<String> {
    match generate(request, BOUNDS) {
        Ok(_) => Vec::new(),
        Err(v) => v.fields().into_iter().map(str::to_owned).collect(),
    }
}

#[test]
fn every_number_is_checked_on_both_sides_and_for_nan() {
    type Set = fn(&mut pb::SamplingParams, f64);
    let cases: [(&str, Set, &[f64], &[f64]); 6] = [
        ("sampling.temperature", |s, x| s.temperature = Some(x), &[0.0, 2.0], &[-0.001, 2.001]),
        ("sampling.top_p", |s, x| s.top_p = Some(x), &[0.001, 1.0], &[0.0, -0.1, 1.001]),
        ("sampling.min_p", |s, x| s.min_p = Some(x), &[0.0, 1.0], &[-0.001, 1.001]),
        ("sampling.repetition_penalty", |s, x| s.repetition_penalty = Some(x), &[0.001, 10.0], &[0.0, 10.01]),
        ("sampling.presence_penalty", |s, x| s.presence_penalty = Some(x), &[-2.0, 2.0], &[-2.01, 2.01]),
        ("sampling.frequency_penalty", |s, x| s.frequency_penalty = Some(x), &[-2.0, 2.0], &[-2.01, 2.01]),
    ];
    for (field, set, good, bad) in cases {
        for value in good {
            let mut sampling = pb::SamplingParams::default();
            set(&mut sampling, *value);
            assert!(faults(request(sampling)).is_empty(), "{field} = {value} must pass");
        }
        for value in bad.iter().chain(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]) {
            let mut sampling = pb::SamplingParams::default();
            set(&mut sampling, *value);
            assert_eq!(faults(request(sampling)), [field], "{field} = {value}");
        }
    }
}

#[test]
fn logit_bias_is_bounded_in_value_token_and_number() {
    let bias = |id: u32, bias: f64| pb::SamplingParams { logit_bias: [(id, bias)].into(), ..Default::default() };
    assert!(faults(request(bias(99, 100.0))).is_empty());
    assert!(faults(request(bias(0, -100.0))).is_empty());
    assert_eq!(faults(request(bias(100, 0.0))), ["sampling.logit_bias[100]"]);
    assert_eq!(faults(request(bias(1, 100.1))), ["sampling.logit_bias[1]"]);
    assert_eq!(faults(request(bias(1, f64::NAN))), ["sampling.logit_bias[1]"]);
    let wide = Bounds { vocab: 1 << 20 };
    for (count, passes) in [(1024, true), (1025, false)] {
        let sampling =
            pb::SamplingParams { logit_bias: (0..count).map(|id| (id, 1.0)).collect(), ..Default::default() };
        assert_eq!(generate(request(sampling), wide).is_ok(), passes, "{count} entries");
    }
}

#[test]
fn counts_are_checked_on_both_sides() {
    let stop =
        |count: usize, bytes: usize| pb::SamplingParams { stop: vec!["x".repeat(bytes); count], ..Default::default() };
    assert!(faults(request(stop(16, 256))).is_empty());
    assert_eq!(faults(request(stop(17, 1))), ["sampling.stop"]);
    assert_eq!(faults(request(stop(1, 0))), ["sampling.stop[0]"]);
    assert_eq!(faults(request(stop(1, 257))), ["sampling.stop[0]"]);
    for (n, passes) in [(0, false), (1, true), (16, true), (17, false)] {
        let request = pb::GenerateRequest { n: Some(n), ..request(Default::default()) };
        assert_eq!(faults(request).is_empty(), passes, "n = {n}");
    }
    for (logprobs, passes) in [(0, true), (20, true), (21, false)] {
        let request = pb::GenerateRequest { logprobs: Some(logprobs), ..request(Default::default()) };
        assert_eq!(faults(request).is_empty(), passes, "logprobs = {logprobs}");
    }
    for (most, least, passes) in [(1, 0, true), (0, 0, false), (4, 4, true), (4, 5, false)] {
        let sampling =
            pb::SamplingParams { max_new_tokens: Some(most), min_new_tokens: Some(least), ..Default::default() };
        assert_eq!(faults(request(sampling)).is_empty(), passes, "{least} to {most} tokens");
    }
}

#[test]
fn exactly_one_prompt_is_given() {
    let message = pb::ChatMessage { role: "user".into(), content: "hi".into() };
    for mask in 0..8 {
        let request = pb::GenerateRequest {
            prompt: (mask & 1 != 0).then(|| "hi".into()),
            messages: if mask & 2 != 0 { vec![message.clone()] } else { Vec::new() },
            prompt_token_ids: (mask & 4 != 0).then(|| pb::TokenIds { ids: vec![1] }),
            ..Default::default()
        };
        let one = i32::count_ones(mask) == 1;
        assert_eq!(faults(request).is_empty(), one, "mask {mask:03b}");
    }
}

#[test]
fn ids_are_below_the_vocabulary() {
    let ids =
        |ids: Vec<u32>| pb::GenerateRequest { prompt_token_ids: Some(pb::TokenIds { ids }), ..Default::default() };
    assert!(faults(ids(vec![99])).is_empty());
    assert_eq!(faults(ids(vec![1, 100])), ["prompt_token_ids.ids[1]"]);
    assert_eq!(faults(ids(vec![])), ["prompt_token_ids.ids"]);
}

#[test]
fn all_faults_are_reported_at_once() {
    let request = pb::GenerateRequest {
        adapter: "../x".into(),
        n: Some(99),
        logprobs: Some(99),
        sampling: Some(pb::SamplingParams {
            temperature: Some(f64::NAN),
            top_p: Some(0.0),
            stop_token_ids: vec![5, 500],
            ..Default::default()
        }),
        ..Default::default()
    };
    let expected =
        ["adapter", "prompt", "sampling.stop_token_ids[1]", "sampling.temperature", "sampling.top_p", "n", "logprobs"];
    assert_eq!(faults(request), expected);
}

#[test]
fn candidates_are_checked() {
    use pb::candidate::Continuation as Wire;
    let request = |candidates| pb::ScoreRequest { prompt: Some("a".into()), candidates, ..Default::default() };
    let text = |t: &str| pb::Candidate { continuation: Some(Wire::Text(t.into())) };
    assert!(score(request(vec![text(" b")]), BOUNDS).is_ok());
    assert_eq!(score(request(vec![]), BOUNDS).unwrap_err().fields(), ["candidates"]);
    assert!(score(request(vec![text("b"); 1024]), BOUNDS).is_ok());
    assert_eq!(score(request(vec![text("b"); 1025]), BOUNDS).unwrap_err().fields(), ["candidates"]);
    let ids = pb::Candidate { continuation: Some(Wire::TokenIds(pb::TokenIds { ids: vec![100] })) };
    let faulty = score(request(vec![text(""), pb::Candidate { continuation: None }, ids]), BOUNDS).unwrap_err();
    assert_eq!(faulty.fields(), ["candidates[0].text", "candidates[1]", "candidates[2].token_ids[0]"]);
}

#[test]
fn a_fresh_seed_is_drawn_when_none_is_given() {
    let seed = |s| generate(request(pb::SamplingParams { seed: s, ..Default::default() }), BOUNDS).unwrap();
    assert_eq!(seed(Some(7)).sampling.seed, 7);
    assert_ne!(seed(None).sampling.seed, seed(None).sampling.seed);
}

proptest! {
    /// Whatever can be decoded is either refused with at least one field named, or inside every range.
    #[test]
    fn arbitrary_requests_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        use prost::Message as _;
        if let Ok(request) = pb::GenerateRequest::decode(bytes.as_slice()) {
            match generate(request, BOUNDS) {
                Ok(good) => prop_assert!(good.sampling.temperature >= 0.0 && (1..=16).contains(&good.n)),
                Err(v) => prop_assert!(!v.list().is_empty()),
            }
        }
        if let Ok(request) = pb::ScoreRequest::decode(bytes.as_slice()) {
            let _ = score(request, BOUNDS);
        }
        if let Ok(request) = pb::TokenizeRequest::decode(bytes.as_slice()) {
            let _ = tokenize(request);
        }
    }

    #[test]
    fn arbitrary_sampling_is_refused_or_in_range(
        temperature in any::<f64>(), top_p in any::<f64>(), min_p in any::<f64>(), n in any::<u32>(),
        most in any::<u32>(), bias in any::<f64>(), id in any::<u32>(),
    ) {
        let sampling = pb::SamplingParams {
            temperature: Some(temperature),
            top_p: Some(top_p),
            min_p: Some(min_p),
            max_new_tokens: Some(most),
            logit_bias: [(id, bias)].into(),
            ..Default::default()
        };
        if let Ok(good) = generate(pb::GenerateRequest { n: Some(n), ..request(sampling) }, BOUNDS) {
            prop_assert!((0.0..=2.0).contains(&good.sampling.temperature));
            prop_assert!(good.sampling.top_p > 0.0 && good.sampling.top_p <= 1.0);
            prop_assert!((id as usize) < BOUNDS.vocab && bias.is_finite());
        }
    }
}
