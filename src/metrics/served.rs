//! What is told of each model: its name as a label, and the adapters that its requests wait for and run with.
//!
//! The gauge of adapters is that of the Gateway API's inference extension, which sends a request where its adapter is.
//! After: vLLM's `vllm:lora_requests_info`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::Collector as _;
use prometheus::proto::{LabelPair, MetricFamily};
use prometheus::{GaugeVec, Opts};

/// Names of adapters in requests that wait or run.
#[derive(Debug, Default)]
pub struct AdapterUses {
    state: Arc<Mutex<State>>,
    /// Adapters that can run at once.
    pub most: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// Requests that wait and that run, by name.
    requests: BTreeMap<String, [usize; 2]>,
    /// Seconds since 1970 of the last change.
    changed: f64,
}

/// One request that uses an adapter, until it is dropped.
#[derive(Debug)]
pub struct AdapterUse {
    state: Arc<Mutex<State>>,
    name: String,
    runs: AtomicBool,
}

impl AdapterUses {
    /// Notes a request that waits; `name` is a bounded label value.
    pub fn wait(&self, name: &str) -> Arc<AdapterUse> {
        let one = AdapterUse { state: Arc::clone(&self.state), name: name.to_owned(), runs: AtomicBool::new(false) };
        one.count(0, 1);
        Arc::new(one)
    }

    /// Returns the gauge: names as labels, and when they changed.
    pub(super) fn gather(&self) -> prometheus::Result<Vec<MetricFamily>> {
        let help = "Adapters that requests run with and wait for; the value is when that changed, seconds since 1970.";
        let labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"];
        let gauge = GaugeVec::new(Opts::new("evenkeel_lora_requests_info", help), &labels)?;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let [waiting, running] = [0, 1].map(|of| {
            let named = state.requests.iter().filter(|(_, counts)| counts[of] > 0);
            named.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",")
        });
        let most = self.most.load(Ordering::Relaxed).to_string();
        gauge.with_label_values(&[&most, &running, &waiting]).set(state.changed);
        Ok(gauge.collect())
    }
}

impl AdapterUse {
    /// Notes that the request runs.
    pub fn runs(&self) {
        if !self.runs.swap(true, Ordering::AcqRel) {
            self.count(1, 1);
            self.count(0, -1);
        }
    }

    /// Adds to the requests that wait (`of` 0) or run (1).
    fn count(&self, of: usize, more: isize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = state.requests.entry(self.name.clone()).or_default();
        let before = counts[of];
        counts[of] = before.saturating_add_signed(more);
        let changes = (before == 0) != (counts[of] == 0);
        if *counts == [0, 0] {
            state.requests.remove(&self.name);
        }
        if changes {
            state.changed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        }
    }
}

impl Drop for AdapterUse {
    fn drop(&mut self) {
        let runs = *self.runs.get_mut();
        self.count(usize::from(runs), -1);
    }
}

/// Gives all series of a family the label `model_name`.
pub(super) fn name(family: &mut MetricFamily, model: &str) {
    for metric in family.mut_metric() {
        let mut pair = LabelPair::default();
        pair.set_name("model_name".to_owned());
        pair.set_value(model.to_owned());
        let mut labels = metric.take_label();
        labels.push(pair);
        metric.set_label(labels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that run, names that wait, and the value.
    fn told(uses: &AdapterUses) -> (String, String, f64) {
        let family = uses.gather().unwrap().remove(0);
        let metric = &family.get_metric()[0];
        let label = |name: &str| metric.get_label().iter().find(|pair| pair.name() == name).unwrap().value().to_owned();
        (label("running_lora_adapters"), label("waiting_lora_adapters"), metric.get_gauge().value())
    }

    #[test]
    fn models_share_a_scrape_and_are_told_apart() {
        let metrics = crate::metrics::Metrics::new().unwrap();
        metrics.build_info("words", "f", "cpu", "f32").unwrap();
        let faces = metrics.of_images("faces").unwrap();
        metrics.generation_tokens.inc_by(3);
        for (of, seconds) in [(&metrics, 0.4), (&*faces, 7.0), (&*faces, 8.0)] {
            of.e2e_request_latency.observe(seconds);
            of.request_success.with_label_values(&["stop"]).inc();
        }
        let text = String::from_utf8(metrics.text().unwrap()).unwrap();
        let lines = |start: &str| text.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
        assert_eq!(
            lines("evenkeel_generation_tokens_total"),
            [r#"evenkeel_generation_tokens_total{model_name="words"} 3"#]
        );
        let mut ends = lines("evenkeel_request_success_total");
        ends.sort_unstable();
        let told = |model: &str, count| {
            format!(r#"evenkeel_request_success_total{{finished_reason="stop",model_name="{model}"}} {count}"#)
        };
        assert_eq!(ends, [told("faces", 2), told("words", 1)]);
        assert!(text.contains("evenkeel_e2e_request_latency_seconds_count{model_name=\"faces\"} 2\n"), "{text}");
        assert_eq!(lines("# TYPE evenkeel_e2e_request_latency_seconds").len(), 1);
    }

    #[test]
    fn adapters_are_told_while_requests_wait_for_them_and_run_with_them() {
        let uses = AdapterUses::default();
        assert_eq!(told(&uses), (String::new(), String::new(), 0.0));
        let [first, second, third] = ["poet", "clerk", "poet"].map(|name| uses.wait(name));
        let (running, waiting, changed) = told(&uses);
        assert_eq!((running.as_str(), waiting.as_str()), ("", "clerk,poet"));
        assert!(changed > 1.5e9, "{changed}");
        first.runs();
        first.runs();
        assert_eq!((told(&uses).0, told(&uses).1), ("poet".into(), "clerk,poet".into()));
        drop(second);
        third.runs();
        drop(first);
        assert_eq!((told(&uses).0, told(&uses).1), ("poet".into(), String::new()));
        drop(third);
        assert_eq!((told(&uses).0, told(&uses).1), (String::new(), String::new()));
    }
}
