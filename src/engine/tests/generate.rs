//! What a completion is: tokens, text, ends, seeds, siblings, adapters.

use super::*;

#[test]
fn text_tokens_and_length() {
    let mut bench = Bench::new(alphabet());
    let got = bench.text(request(&[0], 5));
    assert_eq!((got.text.as_str(), got.ids()), ("bcdef", vec![1, 2, 3, 4, 5]));
    assert_eq!(got.finish, Some(FinishReason::Length));
    assert_eq!((bench.metrics.prompt_tokens.get(), bench.metrics.generation_tokens.get()), (1, 5));
    assert_eq!((bench.ended("length"), bench.metrics.time_to_first_token.get_sample_count()), (1, 1));
    assert_eq!(bench.metrics.inter_token_latency.get_sample_count(), 4);
    bench.assert_empty();
}

#[test]
fn an_end_token_is_counted_but_not_shown() {
    let rule = || -> Rule { Box::new(|token, _| peak(if token == 3 { EOS } else { token + 1 })) };
    let got = Bench::new(rule()).text(request(&[0], 9));
    assert_eq!((got.text.as_str(), got.ids()), ("bcd", vec![1, 2, 3, EOS]));
    assert_eq!(got.finish, Some(FinishReason::Stop(None)));

    let mut longer = request(&[0], 9);
    longer.stopping.token_ids = vec![2];
    assert_eq!(Bench::new(rule()).text(longer.clone()).ids(), [1, 2]);
    // The end is masked, so the second best, token 0, comes until the end is allowed.
    longer.stopping.min_new_tokens = 2;
    assert_eq!(Bench::new(rule()).text(longer).ids(), [1, 0, 1, 2]);
}

#[test]
fn ignoring_the_end_goes_on() {
    let mut endless = request(&[0], 3);
    endless.stopping.ignore_eos = true;
    // The scripted text has no letter for the end token, so the next is looked at by its id.
    let rule: Rule = Box::new(|token, _| peak(if token == 1 { 2 } else { 1 }));
    endless.stopping.token_ids = vec![EOS];
    assert_eq!(Bench::new(rule).text(endless).ids(), [1, 2, 1]);
}

#[test]
fn a_stop_string_over_three_tokens_is_never_shown() {
    let mut stopped = request(&[0], 20);
    stopped.stopping = stopping_at(&["efg"]);
    let mut bench = Bench::new(alphabet());
    let mut events = bench.engine.generate(stopped.clone()).unwrap();
    let mut shown = String::new();
    while bench.turn() {
        while let Ok(Event::Delta { text, .. }) = events.try_recv() {
            shown += &text;
            assert!("bcd".starts_with(&shown), "shown too early: {shown}");
        }
    }
    assert_eq!(shown, "bcd");
    stopped.stopping.include_stop_string = true;
    let got = bench.text(stopped.clone());
    assert_eq!((got.text.as_str(), got.finish), ("bcdefg", Some(FinishReason::Stop(Some("efg".into())))));
    stopped.stopping.min_new_tokens = 8;
    stopped.sampling.max_new_tokens = 9;
    assert_eq!(bench.text(stopped).text, "bcdefghij");
}

#[test]
fn a_stop_string_does_not_count_before_the_least_number_of_tokens() {
    let mut stopped = request(&[0], 4);
    stopped.stopping = Stopping { min_new_tokens: 2, ..stopping_at(&["c"]) };
    assert_eq!(Bench::new(alphabet()).text(stopped.clone()).text, "bcde");
    stopped.stopping.strings = vec!["d".into()];
    assert_eq!(Bench::new(alphabet()).text(stopped).text, "bc");
}

#[test]
fn what_is_held_back_comes_at_the_end() {
    let mut held = request(&[0], 4);
    held.stopping = stopping_at(&["def"]);
    assert_eq!(Bench::new(alphabet()).text(held).text, "bcde");
    // Two of the three tokens of a character.
    let rule: Rule = Box::new(|token, _| peak(if token == 0 { 26 } else { token + 1 }));
    assert_eq!(Bench::new(rule).text(request(&[0], 2)).text, "\u{fffd}");
    let rule: Rule = Box::new(|token, _| peak(if token == 0 { 26 } else { token + 1 }));
    assert_eq!(Bench::new(rule).text(request(&[0], 3)).text, "€");
}

#[test]
fn the_context_length_ends_a_completion() {
    let mut bench = Bench::new(alphabet());
    let got = bench.text(request(&[0; CONTEXT - 3], 50));
    assert_eq!((got.ids().len(), got.finish), (3, Some(FinishReason::Length)));
    assert!(matches!(bench.engine.generate(request(&[0; CONTEXT], 1)), Err(EngineError::Model(_))));
}

#[test]
fn seeds_repeat_whatever_else_runs_and_chunks_do_not_matter() {
    let alone = Bench::new(rough()).text(sampled(&[1, 2, 3], 12, 42));
    assert_ne!(alone.ids(), Bench::new(rough()).text(sampled(&[1, 2, 3], 12, 43)).ids());
    let settings = EngineSettings { max_step_tokens: 4, max_running_sequences: 3, ..EngineSettings::default() };
    let mut busy = Bench::with(rough(), settings);
    let others: Vec<_> = (0..6).map(|i| busy.engine.generate(sampled(&[i; 9], 7, 1)).unwrap()).collect();
    assert_eq!(busy.text(sampled(&[1, 2, 3], 12, 42)), alone);
    assert!(others.into_iter().all(|mut events| completions(&mut events).is_ok()));
    assert!(busy.model.passes.lock().unwrap().iter().all(|p| p.iter().sum::<usize>() <= 4 && p.len() <= 3));
}

#[test]
fn completions_share_one_prompt_and_then_differ() {
    let mut bench = Bench::new(rough());
    let mut many = sampled(&[1, 2, 3], 8, 5);
    many.n = 4;
    let mut events = bench.engine.generate(many).unwrap();
    bench.run();
    let all = completions(&mut events).unwrap();
    assert_eq!((all.len(), bench.metrics.prompt_tokens.get()), (4, 3));
    assert_eq!(all[0], bench.text(sampled(&[1, 2, 3], 8, 5)), "completion 0 is what n = 1 gives");
    assert!((1..4).all(|i| all[i].ids() != all[0].ids()));
    bench.assert_empty();
}

#[test]
fn more_completions_than_run_at_a_time_all_end() {
    let settings = EngineSettings { max_running_sequences: 2, max_waiting_sequences: 1, ..EngineSettings::default() };
    let mut bench = Bench::with(rough(), settings);
    let mut many = sampled(&[1], 4, 5);
    many.n = 5;
    let mut events = bench.engine.generate(many).unwrap();
    bench.run();
    assert_eq!(completions(&mut events).unwrap().len(), 5);
    assert!(bench.model.passes.lock().unwrap().iter().all(|p| p.len() <= 2));
    bench.assert_empty();
}

#[test]
fn adapters_share_a_step_and_each_has_its_own_rows() {
    let mut bench = Bench::new(Box::new(|token, _| peak(token + 1)));
    let adapters: Vec<_> = (0..3).map(|digest| Arc::new(LoraAdapter::blank(digest))).collect();
    let mut running = Vec::new();
    for at in 0..9 {
        let mut asked = request(&[0, at], 4);
        asked.adapter = (at % 4 < 3).then(|| adapters[usize::from(at as u8) % 4].clone());
        running.push((at, bench.engine.generate(asked).unwrap()));
    }
    let mut score = score_request(&[0], &[&[3, 6]]);
    score.adapter = Some(adapters[2].clone());
    let mut answer = bench.engine.score(score).unwrap();
    bench.run();
    for (at, mut events) in running {
        let step = if at % 4 < 3 { at % 4 + 1 } else { 1 };
        let expected: Vec<u32> = (1..5).map(|i| at + i * step).collect();
        assert_eq!(completions(&mut events).unwrap()[0].ids(), expected);
    }
    assert!(answer.try_recv().unwrap().unwrap()[0].is_greedy);
    assert_eq!(bench.model.passes.lock().unwrap().iter().map(Vec::len).max(), Some(9));
}

#[test]
fn logprobs_are_the_models_own() {
    let mut asked = sampled(&[1, 2], 3, 9);
    asked.logprobs = Some(2);
    (asked.sampling.temperature, asked.sampling.top_k, asked.sampling.presence_penalty) = (0.5, 3, 1.0);
    let got = Bench::new(rough()).text(asked);
    let mut last = 2;
    for (at, token) in got.tokens.iter().enumerate() {
        let logits = (rough())(last, 1 + at);
        let total = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
        let (own, top) = token.logprobs.as_ref().unwrap();
        assert!((own - (f64::from(logits[token.id as usize]) - total)).abs() < 1e-12);
        assert_eq!(top.len(), 2);
        assert!(top[0].logprob >= top[1].logprob && top[0].logprob >= *own);
        last = token.id;
    }
}

#[tokio::test]
async fn a_real_tokenizer_makes_the_text() {
    let vocab: serde_json::Map<_, _> = (0..VOCAB as u32).map(|id| (format!("w{id}"), id.into())).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" }
    });
    let tokenizer = Arc::new(Tokenizer::from_json(json.to_string().as_bytes()).unwrap());
    let Bench { model, metrics, .. } = Bench::new(alphabet());
    let turns = Arc::new(Turns::new(Duration::ZERO));
    let engine = Engine::start(model, tokenizer.clone(), EngineSettings::default(), metrics, turns);
    let mut stopped = request(&tokenizer.encode("w1 w2", true).unwrap(), 9);
    stopped.stopping = stopping_at(&["5 w6"]);
    let mut events = engine.generate(stopped).unwrap();
    let (mut shown, mut reason) = (String::new(), None);
    while let Some(Event::Delta { text, finish, .. }) = events.recv().await {
        shown += &text;
        reason = finish;
    }
    assert_eq!((shown.trim_start(), reason), ("w3 w4 w", Some(FinishReason::Stop(Some("5 w6".into())))));
}
