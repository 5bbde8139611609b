//! Every Prometheus instrument, as a typed field of one struct on a registry of its own.
//!
//! Names and buckets are vLLM's under the prefix `evenkeel_`, with `model_name` on what is measured of a model, and
//! go-grpc-prometheus' `grpc_server_*`. Label values come from fixed sets; adapters are named in labels only up to
//! [`ADAPTER_LABELS`], then as `_other`. Nothing here knows who measures.

mod audits;
mod served;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

pub use audits::{AuditGauges, Gate};
pub use served::{AdapterUse, AdapterUses};

/// Adapters that get a label value of their own.
pub const ADAPTER_LABELS: usize = 100;

// Bounds of vLLM's buckets, so that its dashboards read them. Below those of INTER_TOKEN_LATENCY and REQUEST_LATENCY
// there are finer ones: a small model takes milliseconds on a CPU.
const TIME_TO_FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const INTER_TOKEN_LATENCY: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
];
const REQUEST_LATENCY: &[f64] = &[
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// vLLM's end at the context length.
const TOKENS: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0];
const ITERATION_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0];
const COMPLETIONS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const STALL: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
const RPC_LATENCY: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// What is measured of a model of images.
const OF_IMAGES: [&str; 4] = [
    "evenkeel_e2e_request_latency_seconds",
    "evenkeel_images_total",
    "evenkeel_request_queue_time_seconds",
    "evenkeel_request_success_total",
];

/// All instruments.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// What is measured of the model that `build_info` names.
    served: Registry,
    model_name: OnceLock<String>,
    /// Instruments of models of images.
    others: Mutex<Vec<Arc<Self>>>,
    named_adapters: Mutex<HashSet<String>>,

    /// Adapters of requests that wait or run.
    pub adapter_uses: AdapterUses,

    /// What audits found.
    pub audits: AuditGauges,
    /// Sequences in the current step.
    pub requests_running: IntGauge,
    /// Sequences that wait for their first step.
    pub requests_waiting: IntGauge,
    /// Share of the key and value cache that is reserved, 0 to 1.
    pub kv_cache_usage: Gauge,
    /// Bytes of key and value cache that are reserved.
    pub kv_cache_bytes: IntGauge,
    /// Bytes of key and value cache that ended requests left for those that begin alike.
    pub prefix_cache_bytes: IntGauge,
    /// Prompt tokens that were looked for in what is kept of ended requests.
    pub prefix_cache_queries: IntCounter,
    /// Prompt tokens that were found there.
    pub prefix_cache_hits: IntCounter,
    /// Prompt tokens, computed or found.
    pub prompt_tokens: IntCounter,
    /// Tokens generated.
    pub generation_tokens: IntCounter,
    /// Candidate tokens scored.
    pub scored_tokens: IntCounter,
    /// Images classified for requests.
    pub images: IntCounter,
    /// Requests that ended, by reason: `stop`, `length`, `abort`, `error`.
    pub request_success: IntCounterVec,
    /// From arrival to the first token.
    pub time_to_first_token: Histogram,
    /// Between two tokens of a sequence.
    pub inter_token_latency: Histogram,
    /// From arrival to the last token.
    pub e2e_request_latency: Histogram,
    /// From arrival to the first step.
    pub request_queue_time: Histogram,
    /// From the first step to the first token.
    pub request_prefill_time: Histogram,
    /// From the first token to the last.
    pub request_decode_time: Histogram,
    /// Prompt tokens of a request.
    pub request_prompt_tokens: Histogram,
    /// Generated tokens of a request.
    pub request_generation_tokens: Histogram,
    /// `n` of a request.
    pub request_params_n: Histogram,
    /// `max_new_tokens` of a request.
    pub request_params_max_tokens: Histogram,
    /// Tokens computed in a step.
    pub iteration_tokens: Histogram,
    /// Requests by the name they used, adapter or alias, bounded.
    pub adapter_requests: IntCounterVec,

    /// Generations in memory.
    pub adapters_resident: IntGauge,
    /// Adapters known.
    pub adapters_registered: IntGauge,
    /// Bytes of adapter weights in memory, retired generations that still run included.
    pub adapter_bytes: IntGauge,
    /// Budget for them.
    pub adapter_bytes_limit: IntGauge,
    /// 1 for an adapter whose current generation is in memory, bounded.
    pub adapter_resident: IntGaugeVec,
    /// Loads into memory, by outcome: `ok`, `invalid`, `error`.
    pub adapter_loads: IntCounterVec,
    /// Generations that left memory to make room.
    pub adapter_evictions: IntCounter,
    /// Seconds to read, check and prove an adapter.
    pub adapter_load_seconds: Histogram,
    /// Seconds for which a publish or alias change held up lookups.
    pub adapter_swap_stall: Histogram,

    /// Jobs that are not finished, by kind (`fine_tuning`, `audit`) and state (`queued`, `running`).
    pub jobs: IntGaugeVec,
    /// Jobs that ended, by kind and outcome: `succeeded`, `failed`, `cancelled`.
    pub jobs_finished: IntCounterVec,
    /// Items scored for audits, those that a restart made necessary again included.
    pub audit_items: IntCounter,
    /// Optimiser steps computed, those that a restart made necessary again included.
    pub training_steps: IntCounter,
    /// Tokens trained on, without padding.
    pub training_tokens: IntCounter,
    /// Training loss of the last step.
    pub training_loss: Gauge,
    /// Seconds of an optimiser step, waiting for requests included.
    pub training_step_seconds: Histogram,
    /// Seconds to write a checkpoint.
    pub checkpoint_seconds: Histogram,

    /// RPCs that began, by service and method.
    pub grpc_started: IntCounterVec,
    /// RPCs that ended, by service, method and code.
    pub grpc_handled: IntCounterVec,
    /// Seconds of an RPC, streams to their end.
    pub grpc_handling: HistogramVec,
    /// Connections that are open.
    pub grpc_connections: IntGauge,
}

impl Metrics {
    /// Builds all instruments on a new registry.
    ///
    /// # Errors
    /// When two instruments clash: a fault of this file.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let (add, served) = (Adder(&registry), Registry::new());
        let of = Adder(&served);
        let rpc = ["grpc_type", "grpc_service", "grpc_method"];
        let handled = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        Ok(Self {
            model_name: OnceLock::new(),
            others: Mutex::default(),
            named_adapters: Mutex::default(),
            adapter_uses: AdapterUses::default(),
            requests_running: of.gauge("evenkeel_num_requests_running", "Sequences in the current step.")?,
            requests_waiting: of.gauge("evenkeel_num_requests_waiting", "Sequences waiting for their first step.")?,
            kv_cache_usage: of.ratio("evenkeel_kv_cache_usage_perc", "Reserved share of the KV cache; 1 is full.")?,
            kv_cache_bytes: of.gauge("evenkeel_kv_cache_bytes", "Reserved bytes of the KV cache.")?,
            prefix_cache_bytes: of
                .gauge("evenkeel_prefix_cache_bytes", "Bytes of the KV cache kept of ended requests.")?,
            prefix_cache_queries: of
                .counter("evenkeel_prefix_cache_queries_total", "Prompt tokens looked for in the prefix cache.")?,
            prefix_cache_hits: of
                .counter("evenkeel_prefix_cache_hits_total", "Prompt tokens found in the prefix cache.")?,
            prompt_tokens: of
                .counter("evenkeel_prompt_tokens_total", "Prompt tokens, computed or from the prefix cache.")?,
            generation_tokens: of.counter("evenkeel_generation_tokens_total", "Tokens generated.")?,
            scored_tokens: of.counter("evenkeel_scored_tokens_total", "Candidate tokens scored.")?,
            images: of.counter("evenkeel_images_total", "Images classified for requests.")?,
            request_success: of.counters(
                "evenkeel_request_success_total",
                "Requests that ended, by reason.",
                &["finished_reason"],
            )?,
            time_to_first_token: of.histogram(
                "evenkeel_time_to_first_token_seconds",
                "Seconds from arrival to the first token.",
                TIME_TO_FIRST_TOKEN,
            )?,
            inter_token_latency: of.histogram(
                "evenkeel_inter_token_latency_seconds",
                "Seconds between two tokens of a sequence.",
                INTER_TOKEN_LATENCY,
            )?,
            e2e_request_latency: of.histogram(
                "evenkeel_e2e_request_latency_seconds",
                "Seconds from arrival to the last token.",
                REQUEST_LATENCY,
            )?,
            request_queue_time: of.histogram(
                "evenkeel_request_queue_time_seconds",
                "Seconds from arrival to the first step.",
                REQUEST_LATENCY,
            )?,
            request_prefill_time: of.histogram(
                "evenkeel_request_prefill_time_seconds",
                "Seconds from the first step to the first token.",
                REQUEST_LATENCY,
            )?,
            request_decode_time: of.histogram(
                "evenkeel_request_decode_time_seconds",
                "Seconds from the first token to the last.",
                REQUEST_LATENCY,
            )?,
            request_prompt_tokens: of.histogram(
                "evenkeel_request_prompt_tokens",
                "Prompt tokens of a request.",
                TOKENS,
            )?,
            request_generation_tokens: of.histogram(
                "evenkeel_request_generation_tokens",
                "Generated tokens of a request.",
                TOKENS,
            )?,
            request_params_n: of.histogram("evenkeel_request_params_n", "n of a request.", COMPLETIONS)?,
            request_params_max_tokens: of.histogram(
                "evenkeel_request_params_max_tokens",
                "max_new_tokens of a request.",
                TOKENS,
            )?,
            iteration_tokens: of.histogram(
                "evenkeel_iteration_tokens",
                "Tokens computed in a step.",
                ITERATION_TOKENS,
            )?,
            adapter_requests: add.counters(
                "evenkeel_adapter_requests_total",
                "Requests by the name they used, adapter or alias; base is no name, _other every name past the first hundred.",
                &["adapter"],
            )?,
            adapters_resident: add.gauge("evenkeel_adapters_resident", "Adapter generations in memory.")?,
            adapters_registered: add.gauge("evenkeel_adapters_registered", "Adapters known.")?,
            adapter_bytes: add.gauge("evenkeel_adapter_bytes", "Bytes of adapter weights in memory.")?,
            adapter_bytes_limit: add.gauge("evenkeel_adapter_bytes_limit", "Budget of adapter weights in memory.")?,
            adapter_resident: add.gauges(
                "evenkeel_adapter_resident",
                "1 while the current generation is in memory.",
                &["adapter"],
            )?,
            adapter_loads: add.counters(
                "evenkeel_adapter_loads_total",
                "Loads of adapters into memory, by outcome.",
                &["outcome"],
            )?,
            adapter_evictions: add
                .counter("evenkeel_adapter_evictions_total", "Adapter generations that left memory to make room.")?,
            adapter_load_seconds: add.histogram(
                "evenkeel_adapter_load_seconds",
                "Seconds to read, check and prove an adapter.",
                TIME_TO_FIRST_TOKEN,
            )?,
            adapter_swap_stall: add.histogram(
                "evenkeel_adapter_swap_stall_seconds",
                "Seconds for which a change of name or alias held up lookups.",
                STALL,
            )?,
            jobs: add.gauges("evenkeel_jobs", "Jobs that are not finished, by kind and state.", &["kind", "state"])?,
            jobs_finished: add.counters(
                "evenkeel_jobs_finished_total",
                "Jobs that ended, by kind and outcome.",
                &["kind", "outcome"],
            )?,
            audit_items: add.counter("evenkeel_audit_items_total", "Items scored for audits.")?,
            training_steps: add.counter("evenkeel_training_steps_total", "Optimiser steps computed.")?,
            training_tokens: add.counter("evenkeel_training_tokens_total", "Tokens trained on, without padding.")?,
            training_loss: add.ratio("evenkeel_training_loss", "Training loss of the last step.")?,
            training_step_seconds: add.histogram(
                "evenkeel_training_step_seconds",
                "Seconds of an optimiser step, waiting for requests included.",
                TIME_TO_FIRST_TOKEN,
            )?,
            checkpoint_seconds: add.histogram(
                "evenkeel_checkpoint_seconds",
                "Seconds to write a checkpoint.",
                TIME_TO_FIRST_TOKEN,
            )?,
            grpc_started: add.counters("grpc_server_started_total", "RPCs that began.", &rpc)?,
            grpc_handled: add.counters("grpc_server_handled_total", "RPCs that ended, by code.", &handled)?,
            grpc_handling: add.histograms(
                "grpc_server_handling_seconds",
                "Seconds of an RPC, streams to their end.",
                RPC_LATENCY,
                &rpc,
            )?,
            grpc_connections: add.gauge("evenkeel_grpc_connections", "Open connections.")?,
            audits: AuditGauges::new(&add)?,
            registry,
            served,
        })
    }

    /// Publishes version, model and device as labels of a constant 1.
    ///
    /// # Errors
    /// When called twice.
    pub fn build_info(&self, model: &str, fingerprint: &str, device: &str, dtype: &str) -> prometheus::Result<()> {
        let names = ["version", "model", "fingerprint", "device", "dtype"];
        let info = Adder(&self.registry).gauges("evenkeel_build_info", "Constant 1.", &names)?;
        info.with_label_values(&[env!("CARGO_PKG_VERSION"), model, fingerprint, device, dtype]).set(1);
        // The registry refused a second call.
        let _ = self.model_name.set(model.to_owned());
        Ok(())
    }

    /// Says what is set aside on the model's device, by purpose.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn device_reserved(&self, bytes: &[(&str, u64)]) -> prometheus::Result<()> {
        let help = "Bytes of the model's device that are set aside, by use.";
        let gauges = Adder(&self.registry).gauges("evenkeel_device_reserved_bytes", help, &["use"])?;
        for (purpose, bytes) in bytes {
            gauges.with_label_values(&[purpose]).set(i64::try_from(*bytes).unwrap_or(i64::MAX));
        }
        Ok(())
    }

    /// Returns instruments for a model of images of this process, whose series stand in the same scrape.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_images(&self, name: &str) -> prometheus::Result<Arc<Self>> {
        let other = Arc::new(Self { model_name: OnceLock::from(name.to_owned()), ..Self::new()? });
        self.others.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&other));
        Ok(other)
    }

    /// Adds what is measured of the model, as far as it is shown.
    fn gather_served(&self, into: &mut BTreeMap<String, MetricFamily>, shown: impl Fn(&str) -> bool) {
        for mut family in self.served.gather().into_iter().filter(|family| shown(family.name())) {
            if let Some(model) = self.model_name.get() {
                served::name(&mut family, model);
            }
            match into.entry(family.name().to_owned()) {
                Entry::Vacant(entry) => drop(entry.insert(family)),
                Entry::Occupied(mut entry) => entry.get_mut().mut_metric().append(&mut family.take_metric()),
            }
        }
    }

    /// Returns the label value of an adapter: its name for the first [`ADAPTER_LABELS`], then `_other`.
    pub fn adapter_label<'a>(&self, name: &'a str) -> &'a str {
        let mut named = self.named_adapters.lock().unwrap_or_else(PoisonError::into_inner);
        if named.contains(name) {
            return name;
        }
        if named.len() < ADAPTER_LABELS {
            named.insert(name.to_owned());
            return name;
        }
        "_other"
    }

    /// Returns the names that have a label value of their own, [`ADAPTER_LABELS`] at most.
    pub fn labelled_adapters(&self) -> Vec<String> {
        self.named_adapters.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Forgets the series of a deleted adapter.
    pub fn forget_adapter(&self, name: &str) {
        let mut named = self.named_adapters.lock().unwrap_or_else(PoisonError::into_inner);
        if named.remove(name) {
            // A series that was never written cannot be removed: nothing to do.
            let _ = self.adapter_requests.remove_label_values(&[name]);
            let _ = self.adapter_resident.remove_label_values(&[name]);
            self.audits.forget(name);
        }
    }

    /// Returns all metrics in the text format 0.0.4.
    ///
    /// # Errors
    /// When an instrument cannot be written.
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        self.audits.refresh(SystemTime::now());
        let named = |family: MetricFamily| (family.name().to_owned(), family);
        let mut families: BTreeMap<_, _> = self.registry.gather().into_iter().map(named).collect();
        self.gather_served(&mut families, |_| true);
        for other in self.others.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            other.gather_served(&mut families, |name| OF_IMAGES.contains(&name));
        }
        families.extend(self.adapter_uses.gather()?.into_iter().map(named));
        let mut text = Vec::new();
        TextEncoder::new().encode(&families.into_values().collect::<Vec<_>>(), &mut text)?;
        Ok(text)
    }
}

/// Builds instruments and registers them.
struct Adder<'a>(&'a Registry);

impl Adder<'_> {
    fn keep<C: prometheus::core::Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.keep(IntGauge::new(name, help)?)
    }

    fn ratio(&self, name: &str, help: &str) -> prometheus::Result<Gauge> {
        self.keep(Gauge::new(name, help)?)
    }

    fn ratios(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
        self.keep(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntGaugeVec> {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.keep(IntCounter::new(name, help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
        self.keep(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> prometheus::Result<HistogramVec> {
        self.keep(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)?)
    }
}
