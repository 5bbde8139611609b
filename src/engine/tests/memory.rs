//! The budget of the cache against the memory that caches really take.

use super::*;
use proptest::prelude::*;

/// Most positions held at the end of a pass while one request was classified, and the passes.
fn classified(sequences: usize, tokens: usize, kv_cache_bytes: u64) -> (usize, usize) {
    let mut bench =
        Bench::with(alphabet(), EngineSettings { kv_cache_bytes: Some(kv_cache_bytes), ..EngineSettings::default() });
    let sequences = vec![vec![1; tokens]; sequences];
    let request = ClassifyRequest { sequences, adapter: None, adapter_use: None, deadline: None };
    let mut answer = bench.engine.classify(request).unwrap();
    bench.run();
    assert!(answer.try_recv().unwrap().is_ok());
    bench.assert_empty();
    let passes = bench.model.passes.lock().unwrap().len();
    (bench.model.most.load(Ordering::Relaxed), passes)
}

#[test]
fn a_pass_of_many_short_texts_holds_no_more_than_was_reserved() {
    // The budget of one text of one token.
    let (most, passes) = classified(512, 1, 640);
    assert_eq!((most, passes), (64, 128));
    // With room they share passes.
    let (most, passes) = classified(512, 1, 1 << 20);
    assert_eq!((most, passes), (640, 13));
    assert_eq!(classified(20, 30, 1 << 20).1, 2);
}

#[test]
fn places_are_taken_before_a_request_is_prepared_and_given_back() {
    let settings = EngineSettings { max_waiting_sequences: 3, ..EngineSettings::default() };
    let mut bench = Bench::with(alphabet(), settings);
    let first = bench.engine.enter(2).unwrap();
    let second = bench.engine.enter(1).unwrap();
    let refused = bench.engine.enter(1).unwrap_err();
    assert!(matches!(refused, EngineError::QueueFull { waiting: 3, limit: 3, .. }), "{refused}");
    drop(first);
    assert!(matches!(bench.engine.enter(3), Err(EngineError::QueueFull { waiting: 1, .. })));
    let mut events = second.generate(request(&[0], 2)).unwrap();
    bench.run();
    assert_eq!(completions(&mut events).unwrap()[0].text, "bc");
    // An empty queue takes more completions than it is long.
    drop(bench.engine.enter(9).unwrap());
    bench.assert_empty();
}

proptest! {
    #[test]
    fn caches_never_hold_more_than_their_budget(
        // Kind, lengths and count of each request.
        cases in prop::collection::vec((0u8..3, 1usize..50, 1usize..14, 1usize..5), 1..16),
        step_tokens in 1usize..80,
        running in 1usize..9,
        more in 0u64..4000,
        prefix_cache_bytes in prop_oneof![Just(0u64), 0u64..9000],
    ) {
        // Enough for each of them alone.
        let kv_cache_bytes = 5200 + more;
        let settings = EngineSettings {
            kv_cache_bytes: Some(kv_cache_bytes),
            prefix_cache_bytes: Some(prefix_cache_bytes),
            max_step_tokens: step_tokens,
            max_running_sequences: running,
            ..EngineSettings::default()
        };
        let mut bench = Bench::with(alphabet(), settings);
        let (mut texts, mut scores, mut classes) = (Vec::new(), Vec::new(), Vec::new());
        for &(kind, long, short, count) in &cases {
            match kind {
                0 => {
                    let asked = GenerateRequest { n: count, ..sampled(&vec![0; long], short, 7) };
                    texts.push(bench.engine.generate(asked).unwrap());
                }
                1 => {
                    let candidates = vec![vec![2; short]; 4 * count];
                    let candidates: Vec<&[u32]> = candidates.iter().map(Vec::as_slice).collect();
                    scores.push(bench.engine.score(score_request(&vec![1; long], &candidates)).unwrap());
                }
                _ => {
                    let lengths = (0..8 * count).map(|i| if i % 5 == 0 { long } else { short });
                    let sequences = lengths.map(|length| vec![1; length.min(12)]).collect();
                    let request = ClassifyRequest { sequences, adapter: None, adapter_use: None, deadline: None };
                    classes.push(bench.engine.classify(request).unwrap());
                }
            }
        }
        let mut turns = 0;
        while bench.turn() {
            turns += 1;
            prop_assert!(turns < 10_000, "somebody never ends");
            let held = 10 * bench.model.held.load(Ordering::Relaxed) as i64;
            let (reserved, kept) = (bench.metrics.kv_cache_bytes.get(), bench.metrics.prefix_cache_bytes.get());
            prop_assert!(held <= reserved + kept, "{} bytes are held, {} reserved, {} kept", held, reserved, kept);
        }
        let most = 10 * bench.model.most.load(Ordering::Relaxed) as u64;
        prop_assert!(most <= kv_cache_bytes, "{} bytes of {}", most, kv_cache_bytes);
        let held = 10 * bench.model.held.load(Ordering::Relaxed) as i64;
        prop_assert!(held <= bench.metrics.prefix_cache_bytes.get(), "{} bytes stay that nobody counts", held);
        prop_assert!(texts.iter_mut().all(|events| completions(events).is_ok()));
        prop_assert!(scores.iter_mut().all(|answer| answer.try_recv().unwrap().is_ok()));
        prop_assert!(classes.iter_mut().all(|answer| answer.try_recv().unwrap().is_ok()));
    }
}
