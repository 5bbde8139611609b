//! Training reads the ids that serving reads: rows of a data set against Tokenize and Score of a running server.

use std::sync::Arc;

use evenkeel::dataset::{Content, Dataset, Message, Row, Split};
use evenkeel::model;
use evenkeel::model::tokenizer::Tokenizer;
use evenkeel::rpc::pb;
use evenkeel::train::{self, Average, Example, Examples, Length, Method, Schedule, Settings, Task};

use super::client;
use super::golden;

/// Models with templates of their own: SentencePiece and bytes.
const MODELS: [&str; 3] = ["llama_mha", "mistral_sliding", "llama_gqa_llama3_tied"];

fn settings() -> Settings {
    Settings {
        task: Task::CausalLm,
        method: Method::Full,
        length: Length::Steps(1),
        batch_size: 1,
        accumulation: 1,
        max_tokens: 256,
        packing: false,
        train_on_prompt: false,
        learning_rate: 1e-3,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        weight_decay: 0.0,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        max_grad_norm: 0.0,
        average: Average::Tokens,
        recompute: None,
        eval_every: 0,
        patience: 0,
        keep_best: false,
        seed: 0,
        groups: vec![],
        random_flip: false,
        publish_steps: vec![],
        subset: None,
    }
}

fn examples(model: &str, contents: Vec<Content>) -> Vec<Example> {
    let folder = golden::root().join("language").join(model);
    let (tokenizer, chat) = Tokenizer::load(&folder).unwrap();
    let context = train::Context {
        model: model::load(&folder, model, "cpu", "f32").unwrap(),
        reader: train::Reader::Text { tokenizer: Arc::new(tokenizer), chat: chat.map(Arc::new) },
        memory_bytes: 0,
        spare_bytes: 0,
    };
    let row = |content| Row { content, label: None, groups: vec![], split: Split::Train, hash: [0; 32] };
    let rows = contents.into_iter().map(row).collect();
    let dataset = Dataset { id: String::new(), labels: vec![], multi_label: false, group_columns: vec![], rows };
    Examples::new(&context, &dataset, &settings()).unwrap().train
}

/// The tokens before the first that is learnt, and the rest.
fn parts(example: &Example) -> (&[u32], &[u32]) {
    example.tokens.split_at(example.learnt.iter().position(|learnt| *learnt).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn training_reads_the_ids_that_serving_reads() {
    let pairs = [("The sky is", " blue"), ("to", "day"), ("a ", "b"), ("line\n", "\nline"), ("<s>é", "</s>è")];
    let talks = [("hi", "hello"), ("a</s>b", "<|eot_id|>"), ("  one \n", "two\n")];
    for model in MODELS {
        let server = client::start_with(model, |_| {}).await;
        let inference = &server.client.inference;

        let rows = pairs.map(|(prompt, completion)| Content::Completion {
            prompt: prompt.to_owned(),
            completion: completion.to_owned(),
        });
        for (example, (prompt, completion)) in examples(model, rows.into()).iter().zip(pairs) {
            let (given, learnt) = parts(example);
            let tokenize = pb::TokenizeRequest {
                text: Some(prompt.to_owned()),
                add_special_tokens: Some(true),
                ..Default::default()
            };
            let served = inference.clone().tokenize(tokenize).await.unwrap().into_inner().ids;
            assert_eq!(given, served, "{model}: {prompt:?}");
            let candidate = pb::Candidate { continuation: Some(pb::candidate::Continuation::Text(completion.into())) };
            let score =
                pb::ScoreRequest { prompt: Some(prompt.to_owned()), candidates: vec![candidate], ..Default::default() };
            let scored = inference.clone().score(score).await.unwrap().into_inner().candidates.remove(0).token_ids;
            assert!(
                learnt.starts_with(&scored) && learnt.len() <= scored.len() + 1,
                "{model}: {prompt:?} {completion:?}"
            );
        }

        let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
        let rows = talks
            .map(|(user, assistant)| Content::Messages(vec![message("user", user), message("assistant", assistant)]));
        for (example, (user, _)) in examples(model, rows.into()).iter().zip(talks) {
            let messages = vec![pb::ChatMessage { role: "user".to_owned(), content: user.to_owned() }];
            let tokenize = pb::TokenizeRequest { messages, ..Default::default() };
            let served = inference.clone().tokenize(tokenize).await.unwrap().into_inner().ids;
            assert_eq!(parts(example).0, served, "{model}: {user:?}");
        }
    }
}
