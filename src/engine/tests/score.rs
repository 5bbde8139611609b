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
fn scores_are_computed_in_the_same_shapes_whatever_else_runs() {
    // Everybody else has tokens 1 and 2 only, the score that is looked at 3, 7 and 8.
    let passes = |others: usize| {
        let settings = EngineSettings { max_step_tokens: 6, ..EngineSettings::default() };
        let mut bench = Bench::with(Box::new(|_, _| peak(1)), settings);
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
