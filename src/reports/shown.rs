//! The newest report on each adapter as metrics: gaps with their bounds, and when it was made.
//!
//! Values of labels are bounded by the instruments. Series of single groups are shown only where the settings say so: who is in a small group is nobody else's business.

use std::time::SystemTime;

use super::{Reports, ReportsError, Summary, parse};
use crate::audit::report::{Figure, Report, Scope, Status};

/// Newest reports that are shown again at start.
const SHOWN_AT_START: usize = 200;

impl Reports {
    /// Shows the newest reports, the oldest of them first.
    pub(super) fn show_all(&self) -> Result<(), ReportsError> {
        let mut rows = self.store.read(|catalog| catalog.reports(None, None, None, SHOWN_AT_START))?;
        rows.reverse();
        for row in rows {
            // What cannot be read is told when somebody asks for it.
            if let (Ok(summary), Ok(report)) = (parse(&row), self.read(&row)) {
                self.show(&summary, &report);
            }
        }
        Ok(())
    }

    /// Shows one report.
    pub(super) fn show(&self, summary: &Summary, report: &Report) {
        let metrics = &self.metrics;
        let made = summary.created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        for (index, model) in (0_u32..).zip(&report.models) {
            if model.scale != 1.0 {
                continue;
            }
            let name = if model.adapter.is_empty() { model.name.as_str() } else { model.adapter.as_str() };
            let adapter = metrics.adapter_label(name);
            metrics.audits.show_made(adapter, made);
            for figure in report.figures.iter().filter(|figure| figure.model == index && is_plain(figure)) {
                if let Some(attribute) = &figure.attribute {
                    self.show_figure(figure, adapter, attribute);
                }
            }
        }
    }

    fn show_figure(&self, figure: &Figure, adapter: &str, attribute: &str) {
        let audits = &self.metrics.audits;
        let value = figure.value.filter(|_| matches!(figure.status, Status::Ok | Status::LowSupport));
        match &figure.scope {
            Scope::Difference => {
                let bounds = figure.interval.as_ref().filter(|_| value.is_some()).map(|i| (i.low, i.high));
                audits.show_gap([adapter, &figure.measure, attribute], value, bounds);
            }
            Scope::Group(group) if self.settings.group_metrics => {
                let group = group.as_deref().unwrap_or("_missing");
                audits.show_group([adapter, &figure.measure, attribute, group], value);
            }
            Scope::Overall
            | Scope::Group(_)
            | Scope::Complement(_)
            | Scope::MemberMinusRest(_)
            | Scope::Minimum
            | Scope::Maximum
            | Scope::Ratio
            | Scope::DifferenceToOverall
            | Scope::RatioToOverall
            | Scope::Attribute => {}
        }
    }
}

/// Neither of two models, nor of a stratum, nor of one class.
fn is_plain(figure: &Figure) -> bool {
    figure.versus.is_none() && figure.control.is_none() && figure.class.is_none()
}
