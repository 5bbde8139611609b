//! Policies: bounds on figures of one model of a report.
//!
//! Knows no adapter by name and no disk. A bound is held against the interval of a figure, not its value: what the data
//! leave open is not passed. A figure that is missing, undefined, suppressed, not measured or without an interval fails its
//! rule, and so does one on few rows unless the rule allows it.

use serde::{Deserialize, Serialize};

use super::report::{Figure, Report, Scope, Status};
use super::settings::Convention;

/// Rules that have to hold, all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// One or more.
    pub rules: Vec<Rule>,
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
    /// Name of the model that it is compared with; none: the figure itself.
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
    if report.settings.convention == Convention::Fairlearn {
        // There 0 stands for what is not known.
        reasons.push("the report follows a convention by which an undefined gap is 0".to_owned());
    }
    for rule in &policy.rules {
        let figures: Vec<&Figure> =
            report.figures.iter().filter(|figure| applies(rule, figure, report, model)).collect();
        if figures.is_empty() {
            reasons.push(format!("{}: the report has no such figure", subject(rule, None)));
        }
        reasons.extend(figures.into_iter().filter_map(|figure| fault(rule, figure)));
    }
    Verdict { passed: reasons.is_empty(), reasons }
}

fn applies(rule: &Rule, figure: &Figure, report: &Report, model: usize) -> bool {
    let versus = figure.versus.and_then(|index| report.models.get(index as usize)).map(|model| &model.name);
    figure.model as usize == model
        && figure.measure == rule.measure
        && figure.scope.kind() == rule.scope
        && figure.class == rule.class
        && figure.control.is_none()
        && versus == rule.versus.as_ref()
        && rule.attribute.as_ref().is_none_or(|attribute| figure.attribute.as_ref() == Some(attribute))
}

/// Says why a figure does not hold.
fn fault(rule: &Rule, figure: &Figure) -> Option<String> {
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
    if let Some(most) = rule.at_most
        && interval.high > most
    {
        return Some(format!("{what}: the upper bound {:.4} is above {most}", interval.high));
    }
    if let Some(least) = rule.at_least
        && interval.low < least
    {
        return Some(format!("{what}: the lower bound {:.4} is below {least}", interval.low));
    }
    None
}

fn subject(rule: &Rule, figure: Option<&Figure>) -> String {
    let mut text = rule.measure.clone();
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
