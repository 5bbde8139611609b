//! Policies: bounds on figures of one model of a report, and what a report has to be to count as evidence.
//!
//! Knows no disk and no names of data sets or audits. A bound is held against the interval of a figure, not its value:
//! what the data leave open is not passed. A figure that is missing, undefined, suppressed, not measured or without an
//! interval fails its rule, and so does one on few rows unless the rule allows it. Whoever makes an audit chooses its
//! settings: those that could make a figure say less than it seems to are bounded here.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::compare;
use super::report::{Figure, Model, ModelKind, Report, Scope, Status};
use super::settings::{Convention, Settings};

/// What rules call the base model.
const BASE: &str = "base";

/// Rules that have to hold, all of them, of a report that is what it has to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// One or more.
    pub rules: Vec<Rule>,
    /// What the report has to be.
    #[serde(default)]
    pub demands: Demands,
}

/// What a report has to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Demands {
    /// Least level of intervals.
    pub min_level: f64,
    /// Fewest resamples behind an interval of the bootstrap.
    pub min_resamples: u64,
    /// Least `min_group` of the audit, for rules that do not allow low support.
    pub min_group: u64,
    /// Rows that a model was trained on are no fault.
    pub allow_training_overlap: bool,
    /// The rows that a model was trained on have to be known.
    pub known_training: bool,
    /// The audit that it has to be made like; none: any.
    pub like: Option<Like>,
}

impl Default for Demands {
    fn default() -> Self {
        Self {
            min_level: 0.95,
            min_resamples: 1000,
            min_group: 30,
            allow_training_overlap: false,
            known_training: false,
            like: None,
        }
    }
}

/// An audit that others have to be made like: on the same rows, with the same settings but for the seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Like {
    /// Id of its report, which may be gone.
    pub report: String,
    /// Its settings.
    pub settings: Settings,
    /// Digest of its rows.
    pub rows: String,
}

/// A bound on figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Name of the measure.
    pub measure: String,
    /// What the figures are of; for groups each of them.
    pub scope: ScopeKind,
    /// Attribute; none: every attribute of the report.
    pub attribute: Option<String>,
    /// Class of one-vs-rest; none: figures without a class.
    pub class: Option<String>,
    /// The model that it is compared with: `base`, or an adapter by its own name; none: the figure itself.
    pub versus: Option<String>,
    /// The upper bound of the interval is at most this.
    pub at_most: Option<f64>,
    /// The lower bound of the interval is at least this.
    pub at_least: Option<f64>,
    /// A figure on few rows is enough.
    pub allow_low_support: bool,
}

/// [`Scope`] without the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScopeKind {
    /// All rows.
    Overall,
    /// Rows of a group.
    Group,
    /// Rows of no such group.
    Complement,
    /// Group minus complement.
    MemberMinusRest,
    /// Smallest value of a group.
    Minimum,
    /// Largest value of a group.
    Maximum,
    /// Largest minus smallest value.
    Difference,
    /// Smallest over largest value.
    Ratio,
    /// Largest distance of a group from all rows.
    DifferenceToOverall,
    /// Smallest ratio of a group and all rows.
    RatioToOverall,
    /// Over all groups at once.
    Attribute,
}

impl Scope {
    /// Returns it without the group.
    pub fn kind(&self) -> ScopeKind {
        match self {
            Self::Overall => ScopeKind::Overall,
            Self::Group(_) => ScopeKind::Group,
            Self::Complement(_) => ScopeKind::Complement,
            Self::MemberMinusRest(_) => ScopeKind::MemberMinusRest,
            Self::Minimum => ScopeKind::Minimum,
            Self::Maximum => ScopeKind::Maximum,
            Self::Difference => ScopeKind::Difference,
            Self::Ratio => ScopeKind::Ratio,
            Self::DifferenceToOverall => ScopeKind::DifferenceToOverall,
            Self::RatioToOverall => ScopeKind::RatioToOverall,
            Self::Attribute => ScopeKind::Attribute,
        }
    }

    /// Returns the value of the group, where it is of one; the inner `None` is the missing value.
    pub fn group(&self) -> Option<&Option<String>> {
        match self {
            Self::Group(value) | Self::Complement(value) | Self::MemberMinusRest(value) => Some(value),
            Self::Overall
            | Self::Minimum
            | Self::Maximum
            | Self::Difference
            | Self::Ratio
            | Self::DifferenceToOverall
            | Self::RatioToOverall
            | Self::Attribute => None,
        }
    }
}

/// Whether all rules hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// They do.
    pub passed: bool,
    /// One a figure that does not, and one a rule without a figure.
    pub reasons: Vec<String>,
}

/// Holds a policy against one model of a report.
pub fn evaluate(policy: &Policy, report: &Report, model: usize) -> Verdict {
    let mut reasons = Vec::new();
    if policy.rules.is_empty() {
        reasons.push("the policy has no rule".to_owned());
    }
    reasons.extend(unlike(policy, report));
    let mut looked_at = BTreeSet::new();
    let mut of_rules = Vec::new();
    for rule in &policy.rules {
        let figures: Vec<&Figure> =
            report.figures.iter().filter(|figure| applies(rule, figure, report, model)).collect();
        if figures.is_empty() {
            of_rules.push(format!("{}: the report has no such figure", subject(rule, None)));
        }
        // What membership inference looks for are the rows that a model was trained on.
        if !rule.measure.starts_with("mia_") {
            looked_at.extend(figures.iter().flat_map(|figure| [Some(figure.model), figure.versus]).flatten());
        }
        of_rules.extend(figures.into_iter().filter_map(|figure| fault(rule, figure, (&policy.demands, report))));
    }
    let models = looked_at.into_iter().filter_map(|index| report.models.get(index as usize));
    reasons.extend(models.filter_map(|model| seen(&policy.demands, model, report)));
    reasons.extend(of_rules);
    Verdict { passed: reasons.is_empty(), reasons }
}

/// Says what a report is not that it has to be.
fn unlike(policy: &Policy, report: &Report) -> Vec<String> {
    let (demands, statistics) = (&policy.demands, &report.settings.statistics);
    let mut reasons = Vec::new();
    if report.settings.convention == Convention::Fairlearn {
        // There 0 stands for what is not known.
        reasons.push("the report follows a convention by which an undefined gap is 0".to_owned());
    }
    let strict = policy.rules.iter().any(|rule| !rule.allow_low_support);
    if strict && statistics.min_group < demands.min_group {
        let (own, least) = (statistics.min_group, demands.min_group);
        reasons.push(format!("the audit takes {own} rows for enough (min_group), the policy asks for {least}"));
    }
    if let Some(like) = &demands.like {
        let own = Settings { seed: like.settings.seed, ..report.settings.clone() };
        let differences = compare::settings(&like.settings, &own);
        reasons.extend(differences.into_iter().map(|text| format!("against report {}: {text}", like.report)));
        if like.rows != report.data.sha256 {
            reasons.push(format!("against report {}: other rows were audited", like.report));
        }
    }
    reasons
}

/// Says why the rows are no test of a model.
fn seen(demands: &Demands, model: &Model, report: &Report) -> Option<String> {
    let name = &model.name;
    match (model.kind, model.overlap) {
        (ModelKind::Base, _) => None,
        (_, Some(rows)) if rows > 0 && !demands.allow_training_overlap => {
            Some(format!("{name} was trained on {rows} of the {} audited rows", report.data.rows))
        }
        (_, None) if demands.known_training => Some(format!("the rows that {name} was trained on are not known")),
        (_, _) => None,
    }
}

fn applies(rule: &Rule, figure: &Figure, report: &Report, model: usize) -> bool {
    let other = figure.versus.and_then(|index| report.models.get(index as usize));
    let versus = match (&rule.versus, other) {
        (None, None) => figure.versus.is_none(),
        (Some(name), Some(other)) => is_called(other, name),
        (None, Some(_)) | (Some(_), None) => false,
    };
    figure.model as usize == model
        && figure.measure == rule.measure
        && figure.scope.kind() == rule.scope
        && figure.class == rule.class
        && figure.control.is_none()
        && versus
        && rule.attribute.as_ref().is_none_or(|attribute| figure.attribute.as_ref() == Some(attribute))
}

/// Whether a rule means a model; what the report calls it is up to whoever asked for the audit.
fn is_called(model: &Model, name: &str) -> bool {
    match model.kind {
        ModelKind::Base => name == BASE,
        ModelKind::Adapter | ModelKind::HeadOnly | ModelKind::Full => {
            name != BASE && model.adapter == name && model.scale == 1.0
        }
        ModelKind::Uploaded => false,
    }
}

/// Says why a figure does not hold.
fn fault(rule: &Rule, figure: &Figure, (demands, report): (&Demands, &Report)) -> Option<String> {
    let what = subject(rule, Some(figure));
    let why = figure.reason.as_deref().unwrap_or("no reason");
    match figure.status {
        Status::Undefined => return Some(format!("{what} is undefined ({why})")),
        Status::NotMeasured => return Some(format!("{what} was not measured ({why})")),
        Status::Suppressed => return Some(format!("{what} is suppressed")),
        Status::LowSupport if !rule.allow_low_support => {
            return Some(format!("{what} stands on {} rows, which are too few", figure.n));
        }
        Status::Ok | Status::LowSupport => {}
    }
    if [rule.at_most, rule.at_least].iter().flatten().all(|bound| bound.is_nan()) {
        return Some(format!("{what}: the rule has no bound"));
    }
    let Some(interval) = &figure.interval else { return Some(format!("{what} has no interval")) };
    if interval.level < demands.min_level {
        return Some(format!(
            "{what}: the interval has level {}, at least {} is asked",
            interval.level, demands.min_level
        ));
    }
    let resamples = report.settings.statistics.resamples as u64;
    if matches!(interval.method.as_str(), "percentile" | "bca") && resamples < demands.min_resamples {
        return Some(format!("{what}: {resamples} resamples, at least {} are asked", demands.min_resamples));
    }
    if let Some(most) = rule.at_most.filter(|most| interval.high > *most) {
        return Some(format!("{what}: the upper bound {:.4} is above {most}", interval.high));
    }
    if let Some(least) = rule.at_least.filter(|least| interval.low < *least) {
        return Some(format!("{what}: the lower bound {:.4} is below {least}", interval.low));
    }
    None
}

fn subject(rule: &Rule, figure: Option<&Figure>) -> String {
    let mut text = rule.measure.clone();
    if let Some(class) = &rule.class {
        text.push_str(&format!(" of class {class}"));
    }
    if let Some(attribute) = figure.and_then(|figure| figure.attribute.as_ref()).or(rule.attribute.as_ref()) {
        text.push_str(&format!(" over {attribute}"));
    }
    if let Some(group) = figure.and_then(|figure| figure.scope.group()) {
        text.push_str(&format!(" of group {}", group.as_deref().unwrap_or("(missing)")));
    }
    if let Some(versus) = &rule.versus {
        text.push_str(&format!(" compared with {versus}"));
    }
    text
}
