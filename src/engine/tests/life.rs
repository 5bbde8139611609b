//! How requests end early, are refused, fail, and how the engine drains.

use super::*;

/// Bytes of the cache of a sequence of `tokens`.
fn bytes(tokens: usize) -> u64 {
    10 * KvCache::capacity(tokens) as u64
}

#[test]
fn a_dropped_receiver_frees_its_cache_at_the_next_step() {
    let settings = EngineSettings { kv_cache_bytes: Some(bytes(30)), ..EngineSettings::default() };
    let mut bench = Bench::with(alphabet(), settings);
    let first = bench.engine.generate(request(&[0], 29)).unwrap();
    let mut second = bench.engine.generate(request(&[0], 29)).unwrap();
    bench.turn();
    assert_eq!((bench.metrics.kv_cache_bytes.get(), bench.metrics.requests_waiting.get()), (bytes(30) as i64, 1));
    assert!((bench.metrics.kv_cache_usage.get() - 1.0).abs() < 1e-9);
    drop(first);
    bench.run();
    assert_eq!(completions(&mut second).unwrap()[0].ids().len(), 29);
    assert_eq!((bench.ended("abort"), bench.ended("length")), (1, 1));
    bench.assert_empty();
}

#[test]
fn deadlines_end_what_waits_and_what_runs() {
    let settings = EngineSettings { max_running_sequences: 1, ..EngineSettings::default() };
    let mut bench = Bench::with(alphabet(), settings);
    let mut running = bench.engine.generate(request(&[0], 40)).unwrap();
    bench.turn();
    let mut late = request(&[0], 4);
    late.deadline = Some(Instant::now());
    let mut waiting = bench.engine.generate(late).unwrap();
    bench.turn();
    assert!(matches!(completions(&mut waiting), Err(EngineError::DeadlineExceeded)));
    bench.run();
    assert!(completions(&mut running).is_ok());
    let mut score = score_request(&[0], &[&[1]]);
    score.deadline = Some(Instant::now());
    let mut answer = bench.engine.score(score).unwrap();
    bench.run();
    assert!(matches!(answer.try_recv().unwrap(), Err(EngineError::DeadlineExceeded)));
    bench.assert_empty();
}

#[test]
fn a_full_queue_and_an_impossible_request_are_refused_at_once() {
    let settings = EngineSettings {
        max_waiting_sequences: 2,
        max_running_sequences: 1,
        kv_cache_bytes: Some(bytes(30)),
        ..EngineSettings::default()
    };
    let mut bench = Bench::with(alphabet(), settings);
    let mut two = request(&[0], 30);
    two.n = 2;
    let impossible = EngineError::KvCacheTooSmall { needed: 2 * bytes(31), available: bytes(30) };
    assert_eq!(bench.engine.generate(two).unwrap_err().to_string(), impossible.to_string());
    let mut kept: Vec<_> = (0..2).map(|_| bench.engine.generate(request(&[0], 3)).unwrap()).collect();
    let refused = bench.engine.generate(request(&[0], 3)).unwrap_err();
    assert!(matches!(refused, EngineError::QueueFull { waiting: 2, limit: 2, .. }), "{refused}");
    bench.turn();
    kept.push(bench.engine.generate(request(&[0], 3)).unwrap());
    let refused = bench.engine.score(score_request(&[0], &[&[1]])).unwrap_err();
    let EngineError::QueueFull { retry_after, .. } = refused else { panic!("{refused}") };
    assert!(retry_after >= Duration::from_millis(50) && retry_after <= Duration::from_secs(60));
    bench.run();
    assert!(kept.iter_mut().all(|events| completions(events).is_ok()));
    bench.assert_empty();
}

#[test]
fn faulty_tokens_are_refused_before_they_reach_the_model() {
    let bench = Bench::new(alphabet());
    assert!(matches!(bench.engine.generate(request(&[VOCAB as u32], 1)), Err(EngineError::Model(_))));
    assert!(matches!(bench.engine.generate(request(&[], 1)), Err(EngineError::Model(_))));
    assert!(matches!(bench.engine.score(score_request(&[0], &[&[]])), Err(EngineError::Model(_))));
    assert!(matches!(bench.engine.score(score_request(&[0], &[&[VOCAB as u32]])), Err(EngineError::Model(_))));
    assert!(matches!(bench.engine.score(score_request(&[0; CONTEXT], &[&[1]])), Err(EngineError::Model(_))));
}

#[test]
fn a_failing_step_fails_what_ran_in_it_and_nothing_else() {
    for panics in [false, true] {
        let settings = EngineSettings { max_running_sequences: 2, ..EngineSettings::default() };
        let mut bench = Bench::with(alphabet(), settings);
        *bench.model.poison.lock().unwrap() = Some(9);
        bench.model.panics.store(panics, Ordering::Relaxed);
        let mut poisoned = bench.engine.generate(request(&[9], 3)).unwrap();
        let mut beside = bench.engine.generate(request(&[0], 3)).unwrap();
        let mut after = bench.engine.generate(request(&[0], 3)).unwrap();
        bench.run();
        assert!(matches!(completions(&mut poisoned), Err(EngineError::Model(_))));
        assert!(matches!(completions(&mut beside), Err(EngineError::Model(_))));
        assert_eq!(completions(&mut after).unwrap()[0].text, "bcd");
        assert_eq!((bench.ended("error"), bench.ended("length")), (2, 1));
        let mut answer = bench.engine.score(score_request(&[9], &[&[1]])).unwrap();
        bench.run();
        assert!(matches!(answer.try_recv().unwrap(), Err(EngineError::Model(_))));
        bench.assert_empty();
    }
}

#[test]
fn logits_that_are_no_numbers_fail_their_request_only() {
    let rule: Rule = Box::new(|token, _| if token == 9 { vec![f32::NAN; VOCAB] } else { peak(token + 1) });
    let mut bench = Bench::new(rule);
    let mut faulty = bench.engine.generate(request(&[7], 9)).unwrap();
    let mut beside = bench.engine.generate(request(&[1], 4)).unwrap();
    bench.run();
    assert!(matches!(completions(&mut faulty), Err(EngineError::Model(_))));
    assert_eq!(completions(&mut beside).unwrap()[0].text, "cdef");
    bench.assert_empty();
}

#[test]
fn a_reader_who_never_reads_stalls_nobody_and_misses_nothing() {
    let mut bench = Bench::new(alphabet());
    let mut slow = request(&[0], 40);
    slow.n = 3;
    let mut unread = bench.engine.generate(slow).unwrap();
    assert_eq!(bench.text(request(&[0], 3)).text, "bcd");
    let all = completions(&mut unread).unwrap();
    assert!(all.len() == 3 && all.iter().all(|c| c.ids().len() == 40));
}

#[test]
fn a_cancelled_score_frees_its_cache() {
    let mut bench = Bench::new(alphabet());
    let answer = bench.engine.score(score_request(&[1; 40], &[&[2; 20]])).unwrap();
    bench.turn();
    assert_eq!(bench.metrics.kv_cache_bytes.get(), (bytes(40) + bytes(60)) as i64);
    drop(answer);
    bench.turn();
    bench.assert_empty();
}

#[test]
fn draining_lets_requests_end_and_takes_no_more() {
    let mut bench = Bench::new(alphabet());
    let mut running = bench.engine.generate(request(&[0], 6)).unwrap();
    let (done, mut drained) = oneshot::channel();
    bench.turn();
    bench.core.accept(Command::Drain { deadline: Instant::now() + Duration::from_secs(3600), done });
    assert!(drained.try_recv().is_err());
    let mut late = bench.engine.generate(request(&[0], 1)).unwrap();
    bench.run();
    assert!(drained.try_recv().is_ok());
    assert_eq!(completions(&mut running).unwrap()[0].text, "bcdefg");
    assert!(matches!(completions(&mut late), Err(EngineError::Draining)));
    bench.assert_empty();
}

#[test]
fn after_the_grace_what_runs_fails() {
    let mut bench = Bench::new(alphabet());
    let mut running = bench.engine.generate(request(&[0], 40)).unwrap();
    let mut scoring = bench.engine.score(score_request(&[1; 40], &[&[2; 20]])).unwrap();
    bench.turn();
    let (done, mut drained) = oneshot::channel();
    bench.core.accept(Command::Drain { deadline: Instant::now(), done });
    bench.turn();
    assert!(drained.try_recv().is_ok());
    assert!(matches!(completions(&mut running), Err(EngineError::Draining)));
    assert!(matches!(scoring.try_recv().unwrap(), Err(EngineError::Draining)));
    bench.assert_empty();
}

#[tokio::test]
async fn the_thread_serves_sleeps_drains_and_ends() {
    let bench = Bench::new(alphabet());
    let Bench { engine, core, commands, .. } = bench;
    let thread = std::thread::spawn(move || run(core, commands, &Turns::new(Duration::MAX)));
    for _ in 0..3 {
        let mut events = engine.generate(request(&[0], 3)).unwrap();
        let mut text = String::new();
        while let Some(Event::Delta { text: more, .. }) = events.recv().await {
            text += &more;
        }
        assert_eq!(text, "bcd");
    }
    assert_eq!(engine.score(score_request(&[0], &[&[1]])).unwrap().await.unwrap().unwrap().len(), 1);
    engine.drain(Duration::from_secs(3600)).await;
    assert!(matches!(engine.generate(request(&[0], 3)), Err(EngineError::Draining)));
    engine.clone().drain(Duration::ZERO).await;
    drop(engine);
    thread.join().unwrap();
}

#[test]
fn without_its_thread_the_engine_says_so() {
    let Bench { engine, core, commands, .. } = Bench::new(alphabet());
    drop((core, commands));
    assert!(matches!(engine.generate(request(&[0], 3)), Err(EngineError::Stopped)));
}
