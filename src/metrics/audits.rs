//! Instruments of audits: gaps of the newest report on each adapter, their bounds, gates, and when reports were made.
//!
//! Bounds its own label values: what comes after the first [`SERIES`] combinations, or [`GATES`] aliases, is not shown,
//! and counted. A gate that stands open until some time is closed by the scrape after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use prometheus::{GaugeVec, IntCounter, IntCounterVec};

use super::{ADAPTER_LABELS, Adder};

/// Combinations of label values that are shown of gaps, and of groups.
pub(super) const SERIES: usize = 2000;
/// Aliases whose gate is shown.
const GATES: usize = ADAPTER_LABELS;

/// Whether what an alias points to passes the policy that it demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It does.
    Open {
        /// Until then; none: as long as no newer report says otherwise.
        until: Option<SystemTime>,
    },
    /// It does not, or nothing is known.
    Closed,
}

impl Gate {
    fn value(self, now: SystemTime) -> f64 {
        match self {
            Self::Open { until } if until.is_none_or(|until| now <= until) => 1.0,
            Self::Open { .. } | Self::Closed => 0.0,
        }
    }
}

const PASSED: &str = "passed";
const REFUSED: &str = "refused";

/// Gauges of audits.
#[derive(Debug)]
pub struct AuditGauges {
    gap: GaugeVec,
    gap_low: GaugeVec,
    gap_high: GaugeVec,
    group: GaugeVec,
    gate: GaugeVec,
    checks: IntCounterVec,
    made: GaugeVec,
    dropped: IntCounter,
    // Aliases whose gate is shown, with adapter and policy.
    gates: Mutex<BTreeMap<String, ([String; 2], Gate)>>,
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
        let gate =
            "Whether what an alias points to passes the audit policy that it demands by its newest report: 1 or 0.";
        let checks = "Checks of an audit policy before an alias moves, by outcome: passed or refused.";
        let made = "When the newest audit was made, seconds since 1970.";
        let checks = add.counters("evenkeel_audit_gate_checks_total", checks, &["outcome"])?;
        for outcome in [PASSED, REFUSED] {
            // A series that exists from the start can be watched for its first rise.
            checks.with_label_values(&[outcome]);
        }
        Ok(Self {
            gap: add.ratios("evenkeel_audit_gap", gap, &labels)?,
            gap_low: add.ratios("evenkeel_audit_gap_low", low, &labels)?,
            gap_high: add.ratios("evenkeel_audit_gap_high", high, &labels)?,
            group: add.ratios("evenkeel_audit_group", group, &["adapter", "measure", "attribute", "group"])?,
            gate: add.ratios("evenkeel_audit_gate", gate, &["alias", "adapter", "policy"])?,
            checks,
            made: add.ratios("evenkeel_audit_timestamp_seconds", made, &["adapter"])?,
            dropped: add.counter(
                "evenkeel_audit_series_dropped_total",
                "Figures, adapters and gates of audits that are not shown because there are too many.",
            )?,
            gates: Mutex::default(),
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

    /// Shows the gate of an alias, with adapter and policy, in the place of what was shown of it.
    pub fn show_gate(&self, alias: &str, [adapter, policy]: [&str; 2], state: Gate) {
        self.forget_gate(alias);
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if gates.len() >= GATES {
            self.dropped.inc();
            return;
        }
        gates.insert(alias.to_owned(), ([adapter.to_owned(), policy.to_owned()], state));
        set(&self.gate, &[alias, adapter, policy], Some(state.value(SystemTime::now())));
    }

    /// Takes away the gate of an alias that demands nothing, or is gone.
    pub fn forget_gate(&self, alias: &str) {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(([adapter, policy], _)) = gates.remove(alias) {
            set(&self.gate, &[alias, &adapter, &policy], None);
        }
    }

    /// Counts a check before an alias moves.
    pub fn count_check(&self, passed: bool) {
        self.checks.with_label_values(&[if passed { PASSED } else { REFUSED }]).inc();
    }

    /// Closes gates whose time has come.
    pub(super) fn refresh(&self, now: SystemTime) {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        for (alias, ([adapter, policy], state)) in &*gates {
            set(&self.gate, &[alias, adapter, policy], Some(state.value(now)));
        }
    }

    /// Counts an adapter that is not shown because there are too many.
    pub fn drop_adapter(&self) {
        self.dropped.inc();
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
    use std::time::Duration;

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
        gauges.show_made("a", 5.0);
        let text = lines(&registry);
        assert!(text.contains(r#"evenkeel_audit_gap{adapter="a",attribute="sex",measure="accuracy"} 0.25"#), "{text}");
        assert!(text.contains(r#"evenkeel_audit_gap_high{adapter="a",attribute="sex",measure="accuracy"} 0.4"#));
        gauges.show_gap(["a", "accuracy", "sex"], None, None);
        assert!(!lines(&registry).contains(r#"evenkeel_audit_gap{adapter="a""#));
        gauges.forget("a");
        let text = lines(&registry);
        assert!(!text.contains(r#"adapter="a""#) && text.contains(r#"adapter="b""#), "{text}");
    }

    #[test]
    fn a_gate_is_one_series_an_alias_and_closes_when_its_time_has_come() {
        let registry = Registry::new();
        let gauges = AuditGauges::new(&Adder(&registry)).unwrap();
        let now = SystemTime::now();
        let until = now + Duration::from_secs(3600);
        gauges.show_gate("prod", ["a", "strict"], Gate::Open { until: Some(until) });
        gauges.show_gate("beta", ["a", "strict"], Gate::Open { until: None });
        let series = |alias: &str, adapter: &str, value: u8| {
            format!("evenkeel_audit_gate{{adapter=\"{adapter}\",alias=\"{alias}\",policy=\"strict\"}} {value}\n")
        };
        gauges.refresh(until);
        assert!(lines(&registry).contains(&series("prod", "a", 1)), "{}", lines(&registry));
        gauges.refresh(until + Duration::from_secs(1));
        let text = lines(&registry);
        assert!(text.contains(&series("prod", "a", 0)) && text.contains(&series("beta", "a", 1)), "{text}");
        gauges.show_gate("prod", ["b", "strict"], Gate::Closed);
        let text = lines(&registry);
        assert!(text.contains(&series("prod", "b", 0)) && !text.contains(&series("prod", "a", 0)), "{text}");
        gauges.forget_gate("prod");
        assert!(!lines(&registry).contains("prod"));
        for number in 0..GATES + 3 {
            gauges.show_gate(&format!("alias{number}"), ["a", "strict"], Gate::Closed);
        }
        let text = lines(&registry);
        assert_eq!(text.lines().filter(|line| line.starts_with("evenkeel_audit_gate{")).count(), GATES);
        assert!(text.contains("evenkeel_audit_series_dropped_total 4"), "{text}");
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
