//! Classes: their values, their turns, their ends.

use super::*;
use crate::engine::{ClassLogits, ClassifyRequest};

fn classes(sequences: &[&[u32]], adapter: Option<u8>) -> ClassifyRequest {
    let sequences = sequences.iter().map(|s| s.to_vec()).collect();
    ClassifyRequest {
        sequences,
        adapter: adapter.map(|rank| Arc::new(LoraAdapter::blank(rank))),
        adapter_use: None,
        deadline: None,
    }
}

fn answer(bench: &mut Bench, request: ClassifyRequest) -> Result<ClassLogits, EngineError> {
    let mut answer = bench.engine.classify(request).unwrap();
    bench.run();
    answer.try_recv().unwrap()
}

#[test]
fn on_a_gpu_each_sequence_gets_its_logits_in_a_pass_of_its_own() {
    let mut bench = Bench::on("cuda:0", alphabet(), EngineSettings::default());
    let asked: [&[u32]; 3] = [&[0, 1, 1], &[2; 40], &[5]];
    let logits = answer(&mut bench, classes(&asked, None)).unwrap();
    assert_eq!(logits, [[1.0, 2.0, 0.0], [0.0, 0.0, 40.0], [0.0; 3]]);
    assert_eq!(*bench.model.tokens.lock().unwrap(), asked);
    let both = [&[1][..], &[1, 2]].map(|sequence| bench.engine.classify(classes(&[sequence], None)).unwrap());
    bench.run();
    assert_eq!(both.map(|mut answer| answer.try_recv().unwrap().unwrap().len()), [1, 1]);
    assert_eq!(bench.model.tokens.lock().unwrap()[3..], [vec![1], vec![1, 2]]);
    let moved = answer(&mut bench, classes(&asked[..1], Some(3))).unwrap();
    assert_eq!(moved, [[301.0, 302.0, 300.0]]);
    assert_eq!((bench.metrics.prompt_tokens.get(), bench.ended("stop")), (50, 4));
    bench.assert_empty();
}

#[test]
fn on_the_cpu_sequences_for_one_adapter_share_passes() {
    let mut bench = Bench::new(alphabet());
    let adapter = Arc::new(LoraAdapter::blank(2));
    let ask = |bench: &Bench, sequences: &[&[u32]], adapter: Option<&Arc<LoraAdapter>>| {
        let request = ClassifyRequest { adapter: adapter.cloned(), ..classes(sequences, None) };
        bench.engine.classify(request).unwrap()
    };
    let mut first = ask(&bench, &[&[0, 1, 1], &[2; 40]], None);
    let mut moved = ask(&bench, &[&[0, 1]], Some(&adapter));
    let mut second = ask(&bench, &[&[5]], None);
    let mut third = ask(&bench, &[&[2]], Some(&adapter));
    bench.run();
    assert_eq!(first.try_recv().unwrap().unwrap(), [[1.0, 2.0, 0.0], [0.0, 0.0, 40.0]]);
    assert_eq!(second.try_recv().unwrap().unwrap(), [[0.0; 3]]);
    assert_eq!(moved.try_recv().unwrap().unwrap(), [[201.0, 201.0, 200.0]]);
    assert_eq!(third.try_recv().unwrap().unwrap(), [[200.0, 200.0, 201.0]]);
    assert_eq!(*bench.model.passes.lock().unwrap(), [vec![3, 40, 1], vec![2, 1]]);
    bench.assert_empty();
}

#[test]
fn decoding_goes_on_between_the_sequences() {
    let mut bench = Bench::new(alphabet());
    let mut many = bench.engine.classify(classes(&[&[1; 30][..]; 60], None)).unwrap();
    let mut events = bench.engine.generate(request(&[0], 4)).unwrap();
    (0..4).for_each(|_| assert!(bench.turn()));
    assert!(many.try_recv().is_err());
    assert_eq!(completions(&mut events).unwrap()[0].text, "bcde");
    // Two that are computed in slices take turns.
    let mut few = bench.engine.classify(classes(&[&[2; 5]], None)).unwrap();
    (0..2).for_each(|_| assert!(bench.turn()));
    assert_eq!(few.try_recv().unwrap().unwrap(), [[0.0, 0.0, 5.0]]);
    assert!(many.try_recv().is_err());
    bench.run();
    assert_eq!(many.try_recv().unwrap().unwrap().len(), 60);
}

#[test]
fn who_leaves_or_runs_out_of_time_is_dropped() {
    let mut bench = Bench::new(alphabet());
    let left = bench.engine.classify(classes(&[&[1; 30][..]; 20], None)).unwrap();
    let late = ClassifyRequest { deadline: Some(Instant::now()), ..classes(&[&[1; 30]], None) };
    let mut late = bench.engine.classify(late).unwrap();
    bench.turn();
    drop(left);
    bench.run();
    assert!(matches!(late.try_recv().unwrap(), Err(EngineError::DeadlineExceeded)));
    assert!(bench.model.tokens.lock().unwrap().len() <= 1);
    assert_eq!(bench.ended("abort"), 2);
    bench.assert_empty();
}

#[test]
fn a_model_that_fails_or_says_no_number_fails_that_request_alone() {
    let mut bench = Bench::new(alphabet());
    *bench.model.poison.lock().unwrap() = Some(9);
    for panics in [false, true] {
        bench.model.panics.store(panics, Ordering::Relaxed);
        let result = answer(&mut bench, classes(&[&[1], &[9]], None));
        assert!(matches!(result, Err(EngineError::Model(_))));
    }
    assert!(matches!(answer(&mut bench, classes(&[&[0; 13]], None)), Err(EngineError::Model(_))));
    assert_eq!(answer(&mut bench, classes(&[&[0]], None)).unwrap(), [[1.0, 0.0, 0.0]]);
    assert_eq!(bench.ended("error"), 3);
    bench.assert_empty();
}

#[test]
fn what_can_never_run_is_refused_at_once() {
    let mut bench = Bench::with(alphabet(), EngineSettings { kv_cache_bytes: Some(10), ..EngineSettings::default() });
    let refused = |bench: &Bench, tokens: &[u32]| bench.engine.classify(classes(&[&[1], tokens], None)).unwrap_err();
    assert!(matches!(refused(&bench, &[]), EngineError::Model(_)));
    assert!(matches!(refused(&bench, &[VOCAB as u32]), EngineError::Model(_)));
    assert!(matches!(refused(&bench, &[1; CONTEXT + 1]), EngineError::Model(_)));
    assert!(matches!(refused(&bench, &[1; CONTEXT]), EngineError::KvCacheTooSmall { .. }));
    bench.run();
    bench.assert_empty();
    let mut bench = Bench::new(alphabet());
    let mut running = bench.engine.classify(classes(&[&[1; 30][..]; 20], None)).unwrap();
    bench.turn();
    let (done, mut drained) = oneshot::channel();
    bench.core.accept(Command::Drain { deadline: Instant::now(), done });
    bench.run();
    assert!(matches!(running.try_recv().unwrap(), Err(EngineError::Draining)));
    assert!(drained.try_recv().is_ok());
    let mut late = bench.engine.classify(classes(&[&[1]], None)).unwrap();
    bench.turn();
    assert!(matches!(late.try_recv().unwrap(), Err(EngineError::Draining)));
}
