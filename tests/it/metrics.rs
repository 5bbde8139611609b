//! What a scrape shows: names, codes, bounded labels, and gauges that come back.

use std::collections::BTreeSet;

use evenkeel::rpc::pb::{self, GenerateRequest};
use tonic::Code;

use super::client::{self, greedy, refused};

/// Names that dashboards rely on: vLLM's, go-grpc-prometheus', the process collector's, and ours.
const NAMES: [&str; 55] = [
    "evenkeel_lora_requests_info",
    "evenkeel_num_requests_running",
    "evenkeel_num_requests_waiting",
    "evenkeel_kv_cache_usage_perc",
    "evenkeel_kv_cache_bytes",
    "evenkeel_prefix_cache_bytes",
    "evenkeel_prefix_cache_queries_total",
    "evenkeel_prefix_cache_hits_total",
    "evenkeel_prompt_tokens_total",
    "evenkeel_generation_tokens_total",
    "evenkeel_scored_tokens_total",
    "evenkeel_images_total",
    "evenkeel_request_success_total",
    "evenkeel_time_to_first_token_seconds",
    "evenkeel_inter_token_latency_seconds",
    "evenkeel_e2e_request_latency_seconds",
    "evenkeel_request_queue_time_seconds",
    "evenkeel_request_prefill_time_seconds",
    "evenkeel_request_decode_time_seconds",
    "evenkeel_request_prompt_tokens",
    "evenkeel_request_generation_tokens",
    "evenkeel_request_params_n",
    "evenkeel_request_params_max_tokens",
    "evenkeel_iteration_tokens",
    "evenkeel_adapter_requests_total",
    "evenkeel_adapters_resident",
    "evenkeel_adapters_registered",
    "evenkeel_adapter_bytes",
    "evenkeel_adapter_bytes_limit",
    "evenkeel_adapter_resident",
    "evenkeel_adapter_loads_total",
    "evenkeel_adapter_evictions_total",
    "evenkeel_adapter_load_seconds",
    "evenkeel_adapter_swap_stall_seconds",
    "evenkeel_jobs",
    "evenkeel_jobs_finished_total",
    "evenkeel_audit_items_total",
    "evenkeel_audit_gate_checks_total",
    "evenkeel_audit_series_dropped_total",
    "evenkeel_training_steps_total",
    "evenkeel_training_tokens_total",
    "evenkeel_training_loss",
    "evenkeel_training_step_seconds",
    "evenkeel_checkpoint_seconds",
    "evenkeel_grpc_connections",
    "evenkeel_build_info",
    "grpc_server_started_total",
    "grpc_server_handled_total",
    "grpc_server_handling_seconds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
    "process_threads",
];

/// Series that vLLM has, by the name that follows its prefix; each tells the model.
const OF_MODEL: [&str; 18] = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_count",
    "e2e_request_latency_seconds_count",
    "request_queue_time_seconds_count",
    "request_prefill_time_seconds_count",
    "request_decode_time_seconds_count",
    "request_prompt_tokens_count",
    "request_generation_tokens_count",
    "request_params_n_count",
    "request_params_max_tokens_count",
    // vLLM's has `_total` behind it, which is for counters.
    "iteration_tokens_count",
    "time_to_first_token_seconds_bucket",
];

/// Bounds of vLLM's buckets (`vllm/v1/metrics/loggers.py`) as the text format writes them.
const BUCKETS: [(&str, &str); 4] = [
    (
        "time_to_first_token_seconds",
        "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560",
    ),
    ("inter_token_latency_seconds", "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80"),
    ("e2e_request_latency_seconds", "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"),
    ("iteration_tokens", "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384"),
];

/// The value of a label in a series.
fn label<'a>(series: &'a str, name: &str) -> Option<&'a str> {
    let rest = series.split_once(&format!("{name}=\""))?.1;
    Some(rest.split_once('"')?.0)
}

#[tokio::test]
async fn every_name_is_there_and_explained() {
    let server = client::start().await;
    server.client.publish("poet", "lora_qv").await;
    server.client.complete(greedy("poet", "once", 4)).await;
    let (status, text) = server.client.get("/metrics").await;
    assert_eq!(status, 200);
    for name in NAMES {
        let help = text.lines().filter(|line| line.starts_with(&format!("# HELP {name} "))).count();
        let kind = text.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        assert_eq!(help, 1, "{name} is missing");
        assert_eq!(kind == Some("counter"), name.ends_with("_total"), "{name} is a {kind:?}");
    }
    let scrape = server.client.metrics().await;
    let info = scrape.0.keys().find(|series| series.starts_with("evenkeel_build_info{")).unwrap();
    assert_eq!(label(info, "version"), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(label(info, "model"), Some(client::MODEL));
    assert_eq!((server.client.get("/nothing").await.0, server.client.get("/").await.0), (404, 404));
}

#[tokio::test]
async fn dashboards_of_vllm_find_model_and_buckets() {
    let server = client::start().await;
    let client = &server.client;
    client.generate(GenerateRequest { n: Some(3), ..greedy("", "once", 10) }).await.unwrap();
    client.idle().await;
    let scrape = client.metrics().await;
    let series = |name: &str| -> Vec<&String> {
        let name = format!("evenkeel_{name}");
        scrape.0.keys().filter(|series| series.split('{').next() == Some(&name)).collect()
    };
    for name in OF_MODEL {
        let found = series(name);
        assert!(!found.is_empty(), "{name} is missing");
        assert!(found.iter().all(|series| label(series, "model_name") == Some(client::MODEL)), "{name}: {found:?}");
    }
    for (name, bounds) in BUCKETS {
        let at = |bound: &str| scrape.sum(&format!("evenkeel_{name}_bucket"), &[&format!("le=\"{bound}\"")]);
        let found = series(&format!("{name}_bucket"));
        for bound in bounds.split(' ').chain(["+Inf"]) {
            assert!(found.iter().any(|series| label(series, "le") == Some(bound)), "{name} has no bucket {bound}");
        }
        assert_eq!(at("+Inf"), scrape.value(&format!("evenkeel_{name}_count")));
    }
    // What a bucket holds: a step with all of the prompt, then nine with a token of each of three completions.
    let prompt = client.tokenize("once").await.len() as f64;
    let steps = |bound: &str| scrape.sum("evenkeel_iteration_tokens_bucket", &[&format!("le=\"{bound}\"")]);
    assert!(prompt > 1.0 && prompt <= 8.0, "{prompt}");
    assert_eq!((steps("1"), steps("8"), steps("+Inf")), (0.0, 10.0, 10.0));
    assert_eq!(scrape.value("evenkeel_iteration_tokens_sum"), prompt + 27.0);
    assert_eq!(scrape.sum("evenkeel_request_params_n_bucket", &[r#"le="2""#]), 0.0);
    assert_eq!(scrape.sum("evenkeel_request_params_n_bucket", &[r#"le="5""#]), 1.0);
}

#[tokio::test]
async fn adapters_of_requests_that_run_and_wait_are_told() {
    let server = client::start_with(client::MODEL, |settings| settings.engine.max_running_sequences = 1).await;
    let client = &server.client;
    for name in ["poet", "clerk"] {
        client.publish(name, "lora_qv").await;
    }
    let told = async || {
        let scrape = client.metrics().await;
        let series = scrape.0.keys().find(|series| series.starts_with("evenkeel_lora_requests_info{")).unwrap().clone();
        let of = |name: &str| label(&series, name).unwrap().to_owned();
        (of("max_lora"), of("running_lora_adapters"), of("waiting_lora_adapters"))
    };
    let set = |running: &str, waiting: &str| ("1".to_owned(), running.to_owned(), waiting.to_owned());
    assert_eq!(told().await, set("", ""));
    let long = |name: &str| {
        let mut request = GenerateRequest { n: Some(16), ..greedy(name, "once", 240) };
        request.sampling.get_or_insert_default().ignore_eos = Some(true);
        request
    };
    let mut running = client.stream(long("poet")).await.unwrap();
    running.message().await.unwrap().unwrap();
    let waiting = client.stream(long("clerk")).await.unwrap();
    assert_eq!(told().await, set("poet", "clerk"));
    drop(running);
    client::eventually("the other to run", || async { (told().await == set("clerk", "")).then_some(()) }).await;
    drop(waiting);
    client.idle().await;
    client::eventually("nobody", || async { (told().await == set("", "")).then_some(()) }).await;
}

#[tokio::test]
async fn calls_and_tokens_are_counted_as_they_were() {
    let server = client::start().await;
    let client = &server.client;
    client.publish("poet", "lora_qv").await;
    for n in [1, 3] {
        client.generate(GenerateRequest { n: Some(n), ..greedy("poet", "once", 10) }).await.unwrap();
    }
    client::drain(&mut client.stream(greedy("", "once", 7)).await.unwrap()).await.unwrap();
    refused(client.generate(greedy("nobody", "x", 1)).await, Code::NotFound, "ADAPTER_NOT_FOUND");
    refused(
        client.generate(GenerateRequest { n: Some(0), ..greedy("", "x", 1) }).await,
        Code::InvalidArgument,
        "INVALID_FIELD",
    );
    let candidate = pb::candidate::Continuation::TokenIds(pb::TokenIds { ids: vec![5, 6, 7] });
    let score = pb::ScoreRequest {
        prompt: Some("x".into()),
        candidates: vec![pb::Candidate { continuation: Some(candidate) }; 2],
        ..Default::default()
    };
    client.inference.clone().score(score).await.unwrap();
    client.idle().await;

    let scrape = client.metrics().await;
    let handled = |method: &str, code: &str| {
        let (method, code) = (format!(r#"grpc_method="{method}""#), format!(r#"grpc_code="{code}""#));
        scrape.sum("grpc_server_handled_total", &[&method, &code])
    };
    assert_eq!(handled("Generate", "OK"), 2.0);
    assert_eq!(handled("Generate", "NotFound"), 1.0);
    assert_eq!(handled("Generate", "InvalidArgument"), 1.0);
    assert_eq!(handled("GenerateStream", "OK"), 1.0);
    assert_eq!(handled("Score", "OK"), 1.0);
    assert_eq!(handled("UploadAdapter", "OK"), 1.0);
    assert_eq!(scrape.sum("grpc_server_started_total", &[r#"grpc_method="Generate""#]), 4.0);
    assert_eq!(scrape.sum("grpc_server_handling_seconds_count", &[r#"grpc_method="Generate""#]), 4.0);
    assert_eq!(scrape.sum("grpc_server_handled_total", &[]), scrape.sum("grpc_server_started_total", &[]));

    assert_eq!(scrape.value("evenkeel_generation_tokens_total"), 10.0 + 30.0 + 7.0);
    assert_eq!(scrape.value("evenkeel_scored_tokens_total"), 6.0);
    assert_eq!(scrape.sum("evenkeel_adapter_requests_total", &[r#"adapter="poet""#]), 2.0);
    assert!(scrape.sum("evenkeel_adapter_requests_total", &[r#"adapter="base""#]) >= 1.0);
    assert_eq!(scrape.value("evenkeel_time_to_first_token_seconds_count"), 3.0);
    assert_eq!(scrape.sum("evenkeel_request_success_total", &[r#"finished_reason="length""#]), 3.0);
    assert_eq!(scrape.sum("evenkeel_adapter_loads_total", &[r#"outcome="ok""#]), 1.0);
    assert_eq!(scrape.sum("evenkeel_adapter_resident", &[r#"adapter="poet""#]), 1.0);
    assert_eq!(scrape.value("evenkeel_kv_cache_usage_perc"), 0.0);
    let generation = client.adapter("poet").await.unwrap().generations[0].bytes;
    assert_eq!(scrape.value("evenkeel_adapter_bytes"), generation as f64);
}

#[tokio::test]
async fn gauges_show_what_runs_and_come_back() {
    let width = client::BUSY_SEQUENCES;
    let server = client::start_with(client::MODEL, |settings| settings.engine.max_running_sequences = width).await;
    let client = &server.client;
    client.publish("poet", "all_linear").await;
    let load = client::busy(client, "poet").await;
    // The gauges are brought up to date after a step, one after the other; its first piece leaves within it.
    let running = client::eventually("the gauges", || async {
        let scrape = client.metrics().await;
        let set = |name| scrape.value(name) > 0.0;
        let all = set("evenkeel_num_requests_running") && set("evenkeel_num_requests_waiting");
        (all && set("evenkeel_kv_cache_usage_perc")).then_some(scrape)
    })
    .await;
    let sequences = running.value("evenkeel_num_requests_running");
    assert!(sequences <= width as f64, "{sequences}");
    assert!(running.value("evenkeel_num_requests_waiting") > 0.0);
    assert!(running.value("evenkeel_kv_cache_bytes") > 0.0);
    let usage = running.value("evenkeel_kv_cache_usage_perc");
    assert!(usage > 0.0 && usage <= 1.0, "{usage}");
    assert!(running.value("evenkeel_grpc_connections") >= 1.0);
    assert!(client.adapter("poet").await.unwrap().generations[0].active_leases > 0);
    for task in &load {
        task.abort();
    }
    client.idle().await;
    client.delete("poet").await.unwrap();
    client::eventually("memory", || async {
        (client.metrics().await.value("evenkeel_adapter_bytes") == 0.0).then_some(())
    })
    .await;
    let after = client.metrics().await;
    assert_eq!(after.value("evenkeel_adapters_registered"), 0.0);
    assert!(!after.0.keys().any(|series| label(series, "adapter") == Some("poet")), "a deleted adapter is still shown");
}

#[tokio::test]
async fn label_values_are_bounded() {
    let server = client::start().await;
    let client = &server.client;
    let files = client::files("lora_qv");
    for i in 0..108 {
        let name = format!("adapter-{i:03}");
        client.upload(&name, &files).await.unwrap();
        client.complete(greedy(&name, "once", 1)).await;
    }
    for i in 0..20 {
        client.generate(greedy(&format!("unknown-{i}"), "x", 1)).await.unwrap_err();
    }
    let unknown = super::wire::call(server.process.grpc, "/evenkeel.v1.Nothing/AtAll", &[], bytes::Bytes::new()).await;
    assert_eq!(unknown.status.code(), Code::Unimplemented);
    let scrape = client.metrics().await;
    let values = |name: &str| -> BTreeSet<String> {
        scrape.0.keys().filter_map(|series| label(series, name)).map(str::to_owned).collect()
    };
    let adapters = values("adapter");
    assert!(adapters.len() <= 102, "{} adapter labels", adapters.len());
    assert!(adapters.contains("_other") && adapters.contains("adapter-000"), "{adapters:?}");
    assert!(!adapters.iter().any(|name| name.starts_with("unknown")), "callers make labels");
    let other = scrape.sum("evenkeel_adapter_requests_total", &[r#"adapter="_other""#]);
    assert!(other >= 8.0, "{other}");
    let (services, methods) = (values("grpc_service"), values("grpc_method"));
    assert!(!services.iter().chain(&methods).any(|name| name.contains("Nothing") || name.contains("AtAll")));
    assert!(scrape.0.len() < 10_000, "{} series", scrape.0.len());
}
