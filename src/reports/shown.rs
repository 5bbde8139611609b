//! The newest report on each adapter as metrics: gaps with their bounds, when it was made, and the gates of aliases.
//!
//! Values of labels are bounded by the instruments. A base model is `_base/NAME`, which no adapter can be called; uploaded
//! scores are not shown, for their models are called as clients like. Series of single groups are shown only where the
//! settings say so: who is in a small group is nobody else's business.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::{Reports, ReportsError, Summary, parse, show_gate};
use crate::audit::report::{Figure, Model, ModelKind, Report, Scope, Status};
use crate::store::StoreError;

/// Newest reports that are shown again at start.
const SHOWN_AT_START: usize = 200;

impl Reports {
    /// Shows the newest reports on adapters that there are, the oldest of them first, and all gates.
    pub(super) fn show_all(&self) -> Result<(), ReportsError> {
        let (mut rows, adapters, guarded) = self.store.read(|catalog| {
            let rows = catalog.reports(None, None, None, SHOWN_AT_START)?;
            let adapters = catalog.adapters("", usize::MAX)?.into_iter().map(|row| row.name).collect::<BTreeSet<_>>();
            let aliases = catalog.aliases("", usize::MAX)?.into_iter().filter(|alias| alias.policy.is_some());
            Ok::<_, StoreError>((rows, adapters, aliases.map(|alias| alias.name).collect::<Vec<_>>()))
        })?;
        rows.reverse();
        for row in rows {
            // What cannot be read is told when somebody asks for it.
            if let (Ok(summary), Ok(report)) = (parse(&row), self.read(&row)) {
                self.show(&summary, &report, |adapter| adapters.contains(adapter));
            }
        }
        for alias in guarded {
            show_gate(&self.store, &self.metrics, &alias)?;
        }
        Ok(())
    }

    /// Shows the gates of aliases that point to one of these adapters.
    pub(super) fn show_gates(&self, adapters: &BTreeSet<String>) -> Result<(), StoreError> {
        for adapter in adapters {
            let aliases = self.store.read(|catalog| catalog.aliases_of(adapter))?;
            for alias in aliases.iter().filter(|alias| alias.policy.is_some()) {
                show_gate(&self.store, &self.metrics, &alias.name)?;
            }
        }
        Ok(())
    }

    /// Shows what one report says of base models and of adapters that there are.
    pub(super) fn show(&self, summary: &Summary, report: &Report, is_there: impl Fn(&str) -> bool) {
        let metrics = &self.metrics;
        let made = summary.created.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        for (index, model) in (0_u32..).zip(&report.models) {
            let Some(label) = label(model, report).filter(|_| model.scale == 1.0) else { continue };
            if model.kind != ModelKind::Base {
                if !is_there(&label) {
                    continue;
                }
                // Adapters past the bound share a label, which could not show one value for all of them.
                if metrics.adapter_label(&label) != label {
                    metrics.audits.drop_adapter();
                    continue;
                }
            }
            metrics.audits.show_made(&label, made);
            for figure in report.figures.iter().filter(|figure| figure.model == index && is_plain(figure)) {
                if let Some(attribute) = &figure.attribute {
                    self.show_figure(figure, &label, attribute);
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

/// What a model is called in labels; `None` where only a client knows what it is.
fn label(model: &Model, report: &Report) -> Option<String> {
    match model.kind {
        ModelKind::Base => Some(format!("_base/{}", report.base.as_ref().map_or("", |base| base.name.as_str()))),
        ModelKind::Adapter | ModelKind::HeadOnly | ModelKind::Full => Some(model.adapter.clone()),
        ModelKind::Uploaded => None,
    }
}

/// Neither of two models, nor of a stratum, nor of one class.
fn is_plain(figure: &Figure) -> bool {
    figure.versus.is_none() && figure.control.is_none() && figure.class.is_none()
}
