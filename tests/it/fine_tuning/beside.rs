//! Requests beside a running job: the same answers, to the last bit, and all of them.

use super::*;

/// Token ids and the bits of their log-probabilities.
async fn told(client: &Client) -> Vec<(Vec<u32>, Vec<u64>)> {
    let mut all = Vec::new();
    for (prompt, _) in FACTS {
        let request = pb::GenerateRequest { logprobs: Some(3), ..greedy("", prompt, 32) };
        let mut stream = client.stream(request).await.unwrap();
        let (mut ids, mut bits, mut finish) = (Vec::new(), Vec::new(), 0);
        while let Some(piece) = stream.message().await.unwrap() {
            ids.extend(piece.token_ids);
            let tokens = piece.logprobs.iter().flat_map(|p| p.chosen.iter().chain(&p.top));
            bits.extend(tokens.map(|token| token.logprob.to_bits()));
            finish = piece.finish_reason;
        }
        assert_ne!(finish, 0);
        assert!(!ids.is_empty() && bits.len() >= ids.len());
        all.push((ids, bits));
    }
    all
}

#[tokio::test]
async fn streams_beside_a_job_are_those_without_one() {
    for patience in [0, 200] {
        let change = |settings: &mut evenkeel::config::Settings| settings.jobs.patience_milliseconds = patience;
        let server = client::start_with(client::MODEL, change).await;
        let client = &server.client;
        upload(client, "facts", &facts(), of_facts()).await.unwrap();
        let expected = told(client).await;
        let endless = settings(1_000_000, 1e-4, Method::Full(pb::FullMethod {}));
        let id = create(client, request("colours", "facts", endless)).await.unwrap().id;
        follow(client, &id, "", at_step(1)).await;
        let before = job(client, &id).await.progress.unwrap().step;
        for _ in 0..3 {
            assert_eq!(told(client).await, expected, "patience {patience}");
        }
        // Training goes on while nobody asks.
        let progress = follow(client, &id, "", at_step(before + 1)).await;
        assert!(steps(&progress).len() as u64 > before);
        assert_eq!(job(client, &id).await.state(), pb::JobState::Running);
        jobs(client).cancel_job(pb::CancelJobRequest { id: id.clone(), request_id: String::new() }).await.unwrap();
        assert_eq!(states(&watched(client, &id).await).last(), Some(&pb::JobState::Cancelled));
    }
}
