//! What ended requests leave behind, and who may begin with it.

use super::*;

/// Passes that computed a prompt: how many of its tokens.
fn computed(bench: &Bench) -> Vec<usize> {
    let passes = std::mem::take(&mut *bench.model.passes.lock().unwrap());
    passes.into_iter().map(|pass| pass[0]).filter(|tokens| *tokens > 1).collect()
}

fn letters(from: u32, count: u32) -> Vec<u32> {
    (from..from + count).map(|id| id % 25).collect()
}

fn with_adapter(prompt: &[u32], adapter: &Arc<LoraAdapter>) -> GenerateRequest {
    GenerateRequest { adapter: Some(Arc::clone(adapter)), ..request(prompt, 2) }
}

#[test]
fn who_begins_like_an_ended_request_computes_the_rest() {
    let mut bench = Bench::new(rough());
    let prompt = letters(0, 20);
    let first = bench.text(request(&prompt, 4));
    assert_eq!(computed(&bench), [20]);
    assert_eq!(bench.metrics.prefix_cache_hits.get(), 0);
    // A conversation goes on: prompt and answer, but for the last token, which was never computed.
    let longer = [&prompt[..], &first.ids(), &letters(3, 5)].concat();
    let second = bench.text(request(&longer, 4));
    assert_eq!((longer.len(), computed(&bench)), (29, vec![29 - 23]));
    assert_eq!((bench.metrics.prefix_cache_queries.get(), bench.metrics.prefix_cache_hits.get()), (49, 23));
    assert_eq!(bench.metrics.prompt_tokens.get(), 49);
    // The same again: of the prompt only what gives the next token.
    assert_eq!(bench.text(request(&longer, 4)), second);
    assert!(computed(&bench).is_empty());
    // Another one, which leaves the common path earlier.
    let other = [&prompt[..17], &letters(9, 3)].concat();
    let expected = Bench::new(rough()).text(request(&other, 4));
    assert_eq!(bench.text(request(&other, 4)), expected);
    assert_eq!(computed(&bench), [3]);
    // Too little in common.
    bench.text(request(&[&prompt[..15], &letters(9, 3)].concat(), 4));
    assert_eq!(computed(&bench), [18]);
    bench.assert_empty();
}

#[test]
fn scores_begin_with_what_texts_left_and_the_other_way_round() {
    let mut bench = Bench::new(rough());
    let prompt = letters(0, 30);
    let candidates: [&[u32]; 2] = [&[1, 2], &[3, 4, 5]];
    let expected = Bench::new(rough()).score(&prompt, &candidates);
    bench.text(request(&prompt[..25], 3));
    computed(&bench);
    assert_eq!(bench.score(&prompt, &candidates), expected);
    assert_eq!(computed(&bench)[0], 5);
    assert_eq!(bench.score(&prompt, &candidates), expected);
    let hits = bench.metrics.prefix_cache_hits.get();
    assert_eq!(hits, 25 + 29);
    bench.text(request(&prompt, 3));
    assert_eq!(bench.metrics.prefix_cache_hits.get(), hits + 29);
}

#[test]
fn another_adapter_begins_anew_and_one_that_is_gone_leaves_nothing() {
    let mut bench = Bench::new(rough());
    let prompt = letters(0, 20);
    let [first, second] = [1, 2].map(|digest| Arc::new(LoraAdapter::blank(digest)));
    bench.text(request(&prompt, 2));
    bench.text(with_adapter(&prompt, &first));
    bench.text(with_adapter(&prompt, &second));
    assert_eq!((computed(&bench), bench.metrics.prefix_cache_hits.get()), (vec![20; 3], 0));
    bench.text(with_adapter(&prompt, &first));
    bench.text(request(&prompt, 2));
    assert_eq!((computed(&bench), bench.metrics.prefix_cache_hits.get()), (vec![], 38));
    // What is kept keeps no adapter in memory.
    let kept = bench.metrics.prefix_cache_bytes.get();
    assert_eq!(Arc::strong_count(&first), 1);
    drop((first, second));
    bench.text(request(&letters(7, 3), 2));
    assert_eq!(bench.metrics.prefix_cache_bytes.get(), kept / 3);
}

#[test]
fn what_is_kept_fits_into_its_bytes_and_into_what_runs_leave() {
    // Room of 64 tokens each.
    let settings = |kv_cache_bytes, prefix_cache_bytes| EngineSettings {
        kv_cache_bytes: Some(kv_cache_bytes),
        prefix_cache_bytes: Some(prefix_cache_bytes),
        ..EngineSettings::default()
    };
    let ask = |bench: &mut Bench, from| {
        let before = bench.metrics.prefix_cache_hits.get();
        bench.text(request(&letters(from, 20), 2));
        bench.metrics.prefix_cache_hits.get() - before
    };
    let mut bench = Bench::with(rough(), settings(10_000, 1_400));
    assert_eq!([0, 5, 0, 10, 5, 0].map(|from| ask(&mut bench, from)), [0, 0, 19, 0, 0, 0]);
    assert_eq!(bench.metrics.prefix_cache_bytes.get(), 1_280);
    // One that runs takes all.
    let mut bench = Bench::with(rough(), settings(640, 10_000));
    assert_eq!([0, 0, 5].map(|from| ask(&mut bench, from)), [0, 0, 0]);
    assert_eq!(bench.metrics.prefix_cache_bytes.get(), 640);
    let mut bench = Bench::with(rough(), settings(10_000, 0));
    assert_eq!([0, 0].map(|from| ask(&mut bench, from)), [0, 0]);
    let mut bench = Bench::on("cuda", rough(), settings(10_000, 10_000));
    assert_eq!([0, 0].map(|from| ask(&mut bench, from)), [0, 0]);
}

#[test]
fn siblings_share_what_was_found() {
    let prompt = letters(0, 20);
    let mut bench = Bench::new(rough());
    bench.text(request(&prompt, 2));
    let ask = |bench: &mut Bench| {
        let mut events = bench.engine.generate(GenerateRequest { n: 3, ..sampled(&prompt, 6, 9) }).unwrap();
        bench.run();
        completions(&mut events).unwrap()
    };
    let found = ask(&mut bench);
    assert_eq!(bench.metrics.prefix_cache_hits.get(), 19);
    assert_eq!(found, ask(&mut Bench::new(rough())));
    bench.assert_empty();
}
