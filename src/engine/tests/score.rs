//! Scores: their values, their shapes, their turns.

use super::*;

#[test]
fn scores_are_those_of_the_definition() {
    let mut bench = Bench::new(rough());
    let long: Vec<u32> = (0..50).map(|i| i % 30).collect();
    let scored = bench.score(&[4, 5], &[&[1], &[2, 3, 4], &long]);
    for (scored, candidate) in scored.iter().zip([&[1][..], &[2, 3, 4], &long]) {
        let mut last = 5;
        assert_eq!(scored.logprobs.len(), candidate.len());
        for (at, (&token, logprob)) in candidate.iter().zip(&scored.logprobs).enumerate() {
            let logits = (rough())(last, 1 + at);
            let total = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
            assert!((logprob - (f64::from(logits[token as usize]) - total)).abs() < 1e-12);
            last = token;
        }
    }
    assert_eq!(bench.metrics.scored_tokens.get(), 54);
    let scored = Bench::new(alphabet()).score(&[0], &[&[1, 2, 3], &[1, 2, 4]]);
    assert_eq!(scored.iter().map(|s| s.is_greedy).collect::<Vec<_>>(), [true, false]);
    bench.assert_empty();
}

#[test]
fn on_a_gpu_scores_are_computed_in_the_same_shapes_whatever_else_runs() {
    // Everybody else has tokens 1 and 2 only, the score that is looked at 3, 7 and 8.
    let passes = |others: usize| {
        let settings = EngineSettings { max_step_tokens: 6, ..EngineSettings::default() };
        let mut bench = Bench::on("cuda:0", Box::new(|_, _| peak(1)), settings);
        let running: Vec<_> = (0..others).map(|_| bench.engine.generate(request(&[1, 1], 30)).unwrap()).collect();
        let other = (others > 0).then(|| bench.engine.score(score_request(&[2; 20], &[&[1; 15]])).unwrap());
        let scored = bench.score(&[3; 20], &[&[7; 9], &[8; 2]]);
        drop((running, other));
        let mut passes = bench.model.tokens.lock().unwrap().clone();
        passes.retain(|tokens| tokens.iter().any(|t| [3, 7, 8].contains(t)));
        (scored, passes)
    };
    let (scored, alone) = passes(0);
    let expected: [&[u32]; 7] = [&[3; 6], &[3; 6], &[3; 6], &[3; 2], &[7; 6], &[7; 2], &[8]];
    assert_eq!(alone, expected);
    assert_eq!((scored, alone), passes(3));
}

#[test]
fn decoding_goes_on_between_the_slices_of_a_score() {
    let settings = EngineSettings { max_step_tokens: 4, ..EngineSettings::default() };
    let mut bench = Bench::with(alphabet(), settings);
    let mut answer = bench.engine.score(score_request(&[1; 40], &[&[2; 20]])).unwrap();
    let mut events = bench.engine.generate(request(&[0], 4)).unwrap();
    (0..4).for_each(|_| assert!(bench.turn()));
    assert!(answer.try_recv().is_err());
    assert_eq!(completions(&mut events).unwrap()[0].text, "bcde");
    bench.run();
    assert_eq!(answer.try_recv().unwrap().unwrap()[0].logprobs.len(), 20);
}

/// Requests with and without adapters; one of their candidates is longer than a slice beside steps.
fn several() -> Vec<ScoreRequest> {
    let adapters = [None, Some(Arc::new(LoraAdapter::blank(1))), Some(Arc::new(LoraAdapter::blank(2)))];
    let tokens = |count: usize, seed: usize| (0..count).map(|i| ((i * 7 + seed * 3) % 30) as u32).collect::<Vec<_>>();
    let request = |i: usize| ScoreRequest {
        prompt: tokens(1 + i * 9 % 40, i),
        candidates: (0..1 + i % 4).map(|c| tokens(1 + (c * 5 + i * 3) % 20, c)).collect(),
        adapter: adapters[i % 3].clone(),
        adapter_use: None,
        deadline: None,
    };
    (0..12).map(request).collect()
}

#[test]
fn requests_in_parallel_share_passes_and_score_as_one_by_one() {
    for (device, step_tokens) in [("cpu", 512), ("cpu", 7), ("cuda:0", 512), ("cuda:0", 7)] {
        let settings = || EngineSettings { max_step_tokens: step_tokens, ..EngineSettings::default() };
        let mut alone = Bench::on(device, rough(), settings());
        let expected: Vec<Vec<Scored>> = several()
            .into_iter()
            .map(|request| {
                let mut answer = alone.engine.score(request).unwrap();
                alone.run();
                answer.try_recv().unwrap().unwrap()
            })
            .collect();
        let passes = |bench: &Bench| bench.model.passes.lock().unwrap().clone();
        for beside in [0, 3] {
            let mut bench = Bench::on(device, rough(), settings());
            let streams: Vec<_> = (0..beside).map(|_| bench.engine.generate(request(&[1, 1], 30)).unwrap()).collect();
            let answers: Vec<_> = several().into_iter().map(|request| bench.engine.score(request).unwrap()).collect();
            bench.run();
            for (mut answer, expected) in answers.into_iter().zip(&expected) {
                assert_eq!(&answer.try_recv().unwrap().unwrap(), expected);
            }
            assert_eq!(bench.metrics.scored_tokens.get(), alone.metrics.scored_tokens.get());
            for mut stream in streams {
                assert_eq!(completions(&mut stream).unwrap()[0].ids().len(), 30);
            }
            assert!(passes(&bench).iter().all(|pass| pass.iter().sum::<usize>() <= step_tokens));
            if device == "cpu" && beside == 0 {
                assert!(passes(&bench).len() < passes(&alone).len());
            }
            bench.assert_empty();
        }
    }
}

#[test]
fn prompts_of_several_requests_are_one_pass_and_their_candidates_the_next() {
    let mut bench = Bench::new(rough());
    let candidates: [&[u32]; 3] = [&[1, 2, 3], &[4], &[5, 6]];
    let answers: Vec<_> = (0..3).map(|i| bench.engine.score(score_request(&[i; 10], &candidates)).unwrap()).collect();
    let mut short = bench.engine.score(score_request(&[7; 4], &[&[1], &[2]])).unwrap();
    bench.turn();
    assert_eq!(short.try_recv().unwrap().unwrap().len(), 2);
    bench.run();
    answers.into_iter().for_each(|mut answer| assert_eq!(answer.try_recv().unwrap().unwrap().len(), 3));
    assert_eq!(*bench.model.passes.lock().unwrap(), [vec![10, 10, 10, 4], vec![2, 1, 2, 1, 2, 1]]);
}

#[test]
fn who_leaves_a_shared_slice_or_fails_in_it_leaves_the_others_as_they_are() {
    let mut bench = Bench::new(rough());
    let expected = Bench::new(rough()).score(&[3; 20], &[&[7; 9], &[8; 2]]);
    *bench.model.poison.lock().unwrap() = Some(9);
    let mut kept = bench.engine.score(score_request(&[3; 20], &[&[7; 9], &[8; 2]])).unwrap();
    let left = bench.engine.score(score_request(&[2; 20], &[&[1; 15]])).unwrap();
    bench.turn();
    drop(left);
    bench.run();
    assert_eq!(kept.try_recv().unwrap().unwrap(), expected);
    // What was in the pass fails with it, what comes after does not.
    let mut poisoned = bench.engine.score(score_request(&[9; 20], &[&[1]])).unwrap();
    let mut beside = bench.engine.score(score_request(&[3; 20], &[&[7; 9], &[8; 2]])).unwrap();
    bench.run();
    for answer in [&mut poisoned, &mut beside] {
        assert!(matches!(answer.try_recv().unwrap(), Err(EngineError::Model(_))));
    }
    assert_eq!(bench.score(&[3; 20], &[&[7; 9], &[8; 2]]), expected);
    bench.assert_empty();
}
