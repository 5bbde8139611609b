//! Score over gRPC: golden values, the same bits alone and under load, and what it refuses.

use evenkeel::rpc::pb::candidate::Continuation;
use evenkeel::rpc::pb::{self, Candidate, ScoreRequest, TokenIds};
use tonic::Code;

use super::client::{self, Client, greedy, refused, violations};
use super::golden;

fn by_ids(ids: Vec<u32>) -> Candidate {
    Candidate { continuation: Some(Continuation::TokenIds(TokenIds { ids })) }
}

fn by_text(text: &str) -> Candidate {
    Candidate { continuation: Some(Continuation::Text(text.into())) }
}

fn request(adapter: &str, prompt: &str, candidates: Vec<Candidate>) -> ScoreRequest {
    ScoreRequest { adapter: adapter.into(), prompt: Some(prompt.into()), candidates, ..Default::default() }
}

async fn score(client: &Client, request: &ScoreRequest) -> pb::ScoreResponse {
    client.inference.clone().score(request.clone()).await.unwrap().into_inner()
}

/// Every floating-point number of an answer, as bits.
fn bits(response: &pb::ScoreResponse) -> Vec<u64> {
    let of_candidate = |c: &pb::CandidateScore| {
        let sums = [c.sum_logprob.to_bits(), c.mean_logprob.to_bits()];
        sums.into_iter().chain(c.token_logprobs.iter().map(|value| value.to_bits())).collect::<Vec<_>>()
    };
    response.candidates.iter().flat_map(of_candidate).collect()
}

#[tokio::test]
async fn a_score_is_the_same_bits_whatever_other_candidates_there_are() {
    let folder =
        golden::cases("language", "config.json").into_iter().find(|f| f.join("expected.json").exists()).unwrap();
    let server = client::start_with(folder.file_name().unwrap().to_str().unwrap(), |_| {}).await;
    let prompt: Vec<u32> = (0..37).map(|i| 5 + i % 40).collect();
    let candidates: Vec<Vec<u32>> =
        [1, 4, 2, 70, 1, 9, 3].iter().map(|len| (0..*len).map(|i| 7 + i % 30).collect()).collect();
    let asked = |candidates: &[Vec<u32>]| ScoreRequest {
        prompt_token_ids: Some(TokenIds { ids: prompt.clone() }),
        candidates: candidates.iter().map(|ids| by_ids(ids.clone())).collect(),
        ..Default::default()
    };
    let together = score(&server.client, &asked(&candidates)).await;
    let mut alone = Vec::new();
    for candidate in &candidates {
        alone.extend(bits(&score(&server.client, &asked(std::slice::from_ref(candidate))).await));
    }
    assert_eq!(bits(&together), alone);
}

#[tokio::test]
async fn golden_scores_come_through_the_server() {
    let mut values = 0;
    for folder in golden::cases("language", "expected.json") {
        let expected = golden::json(&folder.join("expected.json"));
        let Some(cases) = expected["score"]["cases"].as_array() else { continue };
        let server = client::start_with(folder.file_name().unwrap().to_str().unwrap(), |_| {}).await;
        for case in cases {
            let ids = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
            let asked = ScoreRequest {
                prompt_token_ids: Some(TokenIds { ids: ids("context") }),
                candidates: vec![by_ids(ids("continuation"))],
                ..Default::default()
            };
            let response = score(&server.client, &asked).await;
            let scored = &response.candidates[0];
            let logprobs: Vec<f64> = serde_json::from_value(case["logprobs"].clone()).unwrap();
            let greedy: Vec<bool> = serde_json::from_value(case["greedy_match"].clone()).unwrap();
            assert_eq!(scored.token_ids, ids("continuation"));
            assert_eq!((scored.token_count as usize, scored.token_logprobs.len()), (logprobs.len(), logprobs.len()));
            for (got, expected) in scored.token_logprobs.iter().zip(&logprobs) {
                assert!((got - expected).abs() <= 5e-4, "{}: {got} {expected}", folder.display());
                values += 1;
            }
            let sum: f64 = scored.token_logprobs.iter().sum();
            assert!((scored.sum_logprob - sum).abs() < 1e-9);
            assert!((scored.mean_logprob * logprobs.len() as f64 - sum).abs() < 1e-9);
            assert_eq!(scored.is_greedy, greedy.iter().all(|yes| *yes));
            let usage = response.usage.unwrap();
            assert_eq!(usage.prompt_tokens as usize, ids("context").len());
            assert_eq!(usage.completion_tokens as usize, logprobs.len());
        }
    }
    assert!(values > 0, "no golden score");
}

#[tokio::test]
async fn a_score_has_the_same_bits_alone_in_company_and_under_load() {
    let server = client::start().await;
    let client = &server.client;
    client.publish("poet", "dora").await;
    client.publish("clerk", "all_linear").await;
    client.publish("head", "modules_to_save_lm_head").await;
    client.publish("words", "embed_lm_head_light").await;
    let candidates: Vec<_> = [" yes", " no", " perhaps, but only on a Sunday", "er", "!"].map(by_text).into();
    for adapter in ["", "poet", "head", "words"] {
        let asked = request(adapter, "The server loads an adapter and answers", candidates.clone());
        let alone = score(client, &asked).await;
        assert_eq!(alone.candidates.len(), candidates.len());
        assert_eq!(alone.generation.is_empty(), adapter.is_empty());
        assert_eq!(bits(&score(client, &asked).await), bits(&alone));
        for (i, candidate) in candidates.iter().enumerate() {
            let single =
                score(client, &request(adapter, &asked.prompt.clone().unwrap(), vec![candidate.clone()])).await;
            assert_eq!(single.candidates[0], alone.candidates[i], "candidate {i} depends on its neighbours");
        }
        let load = (0..16).map(|i| {
            let client = client.clone();
            let name = ["", "poet", "clerk", "head", "words"][i % 5];
            tokio::spawn(async move { client.complete(greedy(name, &format!("Winter light {i}"), 100)).await })
        });
        let load: Vec<_> = load.collect();
        for _ in 0..5 {
            assert_eq!(bits(&score(client, &asked).await), bits(&alone));
        }
        assert!(load.iter().any(|task| !task.is_finished()), "the load ended before the scores");
        for task in load {
            task.await.unwrap();
        }
    }
    let prompt = "The server loads an adapter and answers";
    let base = score(client, &request("", prompt, candidates.clone())).await.candidates;
    for adapter in ["poet", "head", "words"] {
        let adapted = score(client, &request(adapter, prompt, candidates.clone())).await.candidates;
        let moved = base.iter().zip(&adapted).map(|(base, adapted)| (base.sum_logprob - adapted.sum_logprob).abs());
        assert!(moved.fold(0.0, f64::max) > 0.1, "{adapter} changes nothing");
    }
}

#[tokio::test]
async fn a_text_candidate_is_the_continuation_of_the_prompt() {
    let server = client::start().await;
    let client = &server.client;
    let prompt = client.tokenize("The server").await;
    let whole = client.tokenize("The server loads").await;
    let scored = score(client, &request("", "The server", vec![by_text(" loads")])).await.candidates.remove(0);
    assert_eq!([prompt, scored.token_ids].concat(), whole);

    // A conversation is scored after the opening of the answer.
    let messages = vec![pb::ChatMessage { role: "user".into(), content: "One or two?".into() }];
    let tokens = pb::TokenizeRequest { messages: messages.clone(), ..Default::default() };
    let ids = client.inference.clone().tokenize(tokens).await.unwrap().into_inner().ids;
    let candidates = vec![by_ids(vec![289, 508]), by_ids(vec![289, 428])];
    let by_messages = ScoreRequest { messages, candidates: candidates.clone(), ..Default::default() };
    let given = ScoreRequest { prompt_token_ids: Some(TokenIds { ids }), candidates, ..Default::default() };
    assert_eq!(score(client, &by_messages).await, score(client, &given).await);
}

#[tokio::test]
async fn faulty_scores_are_refused() {
    let server = client::start().await;
    let client = &server.client;
    let refuse = async |request: ScoreRequest| client.inference.clone().score(request).await;
    let status = refused(refuse(request("", "x", vec![])).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["candidates"]);
    let two = ScoreRequest {
        prompt_token_ids: Some(TokenIds { ids: vec![1] }),
        ..request("", "x", vec![Candidate { continuation: None }, by_text(""), by_ids(vec![9999]), by_text("fine")])
    };
    let status = refused(refuse(two).await, Code::InvalidArgument, "INVALID_FIELD");
    assert!(violations(&status).len() >= 4, "{:?}", violations(&status));
    let long = request("", "x", vec![by_text("fine"), by_ids(vec![5; 256])]);
    refused(refuse(long).await, Code::InvalidArgument, "CONTEXT_LENGTH");
    refused(refuse(request("nobody", "x", vec![by_text("y")])).await, Code::NotFound, "ADAPTER_NOT_FOUND");
    client.idle().await;
}
