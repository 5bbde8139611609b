//! Instruments of audits: gaps of the newest report on each adapter, their bounds, gates, and when reports were made.
//!
//! Bounds its own label values: what comes after the first [`SERIES`] combinations is not shown, and counted.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use prometheus::{GaugeVec, IntCounter};

use super::Adder;

/// Combinations of label values that are shown of gaps, and of groups.
pub(super) const SERIES: usize = 2000;

/// Gauges of audits.
#[derive(Debug)]
pub struct AuditGauges {
    gap: GaugeVec,
    gap_low: GaugeVec,
    gap_high: GaugeVec,
    group: GaugeVec,
    gate: GaugeVec,
    made: GaugeVec,
    dropped: IntCounter,
    // Label values that are shown: adapter, measure, attribute, and group where there is one.
    shown: Mutex<BTreeSet<Vec<String>>>,
}

impl AuditGauges {
    pub(super) fn new(add: &Adder<'_>) -> prometheus::Result<Self> {
        let labels = ["adapter", "measure", "attribute"];
        let gap = "Largest minus smallest value of a group in the newest audit.";
        let low = "Lower bound of the interval of evenkeel_audit_gap.";
        let high = "Upper bound of the interval of evenkeel_audit_gap.";
        let group = "Value of a group in the newest audit; only with audits.group_metrics.";
        let gate = "Whether the last check of an adapter against an audit policy passed: 1 or 0.";
        let made = "When the newest audit was made, seconds since 1970.";
        Ok(Self {
            gap: add.ratios("evenkeel_audit_gap", gap, &labels)?,
            gap_low: add.ratios("evenkeel_audit_gap_low", low, &labels)?,
            gap_high: add.ratios("evenkeel_audit_gap_high", high, &labels)?,
            group: add.ratios("evenkeel_audit_group", group, &["adapter", "measure", "attribute", "group"])?,
            gate: add.ratios("evenkeel_audit_gate", gate, &["adapter", "policy"])?,
            made: add.ratios("evenkeel_audit_timestamp_seconds", made, &["adapter"])?,
            dropped: add.counter(
                "evenkeel_audit_series_dropped_total",
                "Figures of audits that are not shown because there are too many.",
            )?,
            shown: Mutex::default(),
        })
    }

    /// Shows a gap with its bounds; what is `None` is taken away.
    pub fn show_gap(&self, labels: [&str; 3], value: Option<f64>, bounds: Option<(f64, f64)>) {
        if !self.may_show(&labels) {
            return;
        }
        set(&self.gap, &labels, value);
        set(&self.gap_low, &labels, bounds.map(|(low, _)| low));
        set(&self.gap_high, &labels, bounds.map(|(_, high)| high));
    }

    /// Shows the value of a group; `None` takes it away. Labels: adapter, measure, attribute, group.
    pub fn show_group(&self, labels: [&str; 4], value: Option<f64>) {
        if self.may_show(&labels) {
            set(&self.group, &labels, value);
        }
    }

    /// Shows how the last check of an adapter against a policy ended.
    pub fn show_gate(&self, adapter: &str, policy: &str, passed: bool) {
        if self.may_show(&[adapter, policy]) {
            set(&self.gate, &[adapter, policy], Some(f64::from(u8::from(passed))));
        }
    }

    /// Shows when the newest report on an adapter was made.
    pub fn show_made(&self, adapter: &str, seconds: f64) {
        set(&self.made, &[adapter], Some(seconds));
    }

    /// Forgets the series of a deleted adapter.
    pub(super) fn forget(&self, adapter: &str) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|labels| {
            let theirs = labels.first().is_some_and(|first| first == adapter);
            if theirs {
                let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
                let gauges: &[&GaugeVec] = match labels.len() {
                    2 => &[&self.gate],
                    3 => &[&self.gap, &self.gap_low, &self.gap_high],
                    _ => &[&self.group],
                };
                gauges.iter().for_each(|gauge| set(gauge, &labels, None));
            }
            !theirs
        });
        set(&self.made, &[adapter], None);
    }

    fn may_show(&self, labels: &[&str]) -> bool {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let may = shown.contains(&labels) || shown.len() < SERIES;
        if may {
            shown.insert(labels);
        } else {
            self.dropped.inc();
        }
        may
    }
}

fn set(gauge: &GaugeVec, labels: &[&str], value: Option<f64>) {
    match value {
        Some(value) => gauge.with_label_values(labels).set(value),
        // A series that was never written cannot be removed: nothing to do.
        None => drop(gauge.remove_label_values(labels)),
    }
}

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;

    fn lines(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn gaps_come_and_go_and_a_deleted_adapter_leaves_nothing() {
        let registry = Registry::new();
        let gauges = AuditGauges::new(&Adder(&registry)).unwrap();
        gauges.show_gap(["a", "accuracy", "sex"], Some(0.25), Some((0.1, 0.4)));
        gauges.show_gap(["b", "accuracy", "sex"], Some(0.5), None);
        gauges.show_group(["a", "accuracy", "sex", "f"], Some(0.75));
        gauges.show_gate("a", "strict", true);
        gauges.show_made("a", 5.0);
        let text = lines(&registry);
        assert!(text.contains(r#"evenkeel_audit_gap{adapter="a",attribute="sex",measure="accuracy"} 0.25"#), "{text}");
        assert!(text.contains(r#"evenkeel_audit_gap_high{adapter="a",attribute="sex",measure="accuracy"} 0.4"#));
        assert!(text.contains(r#"evenkeel_audit_gate{adapter="a",policy="strict"} 1"#));
        gauges.show_gap(["a", "accuracy", "sex"], None, None);
        assert!(!lines(&registry).contains(r#"evenkeel_audit_gap{adapter="a""#));
        gauges.forget("a");
        let text = lines(&registry);
        assert!(!text.contains(r#"adapter="a""#) && text.contains(r#"adapter="b""#), "{text}");
    }

    #[test]
    fn series_are_bounded() {
        let registry = Registry::new();
        let gauges = AuditGauges::new(&Adder(&registry)).unwrap();
        for index in 0..SERIES + 7 {
            gauges.show_gap(["a", "accuracy", &format!("attribute {index}")], Some(0.0), None);
        }
        let text = lines(&registry);
        assert_eq!(text.lines().filter(|line| line.starts_with("evenkeel_audit_gap{")).count(), SERIES);
        assert!(text.contains("evenkeel_audit_series_dropped_total 7"));
    }
}
