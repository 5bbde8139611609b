//! How a report is said in words: numbers, scopes, reasons, verdicts.
//!
//! Plain text, not escaped: each format escapes it in its own way. A verdict speaks of evidence, never of right or wrong.

use crate::audit::report::{Figure, Model, ModelKind, Report, Scope, Status};
use crate::audit::settings::Attack;

/// Shown for a value that is missing in the data.
const MISSING: &str = "(missing)";

pub(super) fn scope_word(scope: &Scope) -> &'static str {
    match scope {
        Scope::Overall => "overall",
        Scope::Group(_) => "group",
        Scope::Complement(_) => "complement",
        Scope::MemberMinusRest(_) => "member_minus_rest",
        Scope::Minimum => "minimum",
        Scope::Maximum => "maximum",
        Scope::Difference => "difference",
        Scope::Ratio => "ratio",
        Scope::DifferenceToOverall => "difference_to_overall",
        Scope::RatioToOverall => "ratio_to_overall",
        Scope::Attribute => "attribute",
    }
}

pub(super) fn scope_words(scope: &Scope) -> String {
    match scope {
        Scope::Overall => "all rows".to_owned(),
        Scope::Group(value) => group_name(value.as_deref()).to_owned(),
        Scope::Complement(value) => format!("all but {}", group_name(value.as_deref())),
        Scope::MemberMinusRest(value) => format!("{} minus the rest", group_name(value.as_deref())),
        Scope::Minimum => "smallest of a group".to_owned(),
        Scope::Maximum => "largest of a group".to_owned(),
        Scope::Difference => "largest minus smallest".to_owned(),
        Scope::Ratio => "smallest over largest".to_owned(),
        Scope::DifferenceToOverall => "largest distance from all rows".to_owned(),
        Scope::RatioToOverall => "smallest ratio with all rows".to_owned(),
        Scope::Attribute => "over all groups".to_owned(),
    }
}

pub(super) fn group_name(value: Option<&str>) -> &str {
    value.unwrap_or(MISSING)
}

pub(super) fn status_word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::LowSupport => "low_support",
        Status::Undefined => "undefined",
        Status::NotMeasured => "not_measured",
        Status::Suppressed => "suppressed",
    }
}

pub(super) fn kind_words(kind: ModelKind) -> &'static str {
    match kind {
        ModelKind::Base => "base model",
        ModelKind::Adapter => "adapter",
        ModelKind::HeadOnly => "head on the frozen base",
        ModelKind::Full => "all weights trained",
        ModelKind::Uploaded => "uploaded scores",
    }
}

/// Says a reason of the report; one that is not known here is said as it stands.
pub(super) fn reason_words(reason: &str) -> String {
    let words = match reason {
        "no_rows" => "no rows",
        "no_positives" => "no positives",
        "no_negatives" => "no negatives",
        "nothing_selected" => "nothing predicted positive",
        "nothing_rejected" => "nothing predicted negative",
        "one_group" => "fewer than two groups with a value",
        "division_by_zero" => "division by zero",
        "unreachable" => "too few rows to resolve it",
        "too_few_shadows" => "too few shadow models",
        "unbounded" => "the best value lies at infinity",
        "unbalanced" => "contents, tokens and places did not meet equally often",
        "few_rows" => "few rows",
        "suppressed" => "group too small to be published",
        "not_asked" => "not asked for",
        "not_available" => "not available for this model or task",
        other => return other.replace('_', " "),
    };
    words.to_owned()
}

/// Three decimals between 0.001 and 100; shorter above, powers of ten below.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        "0".to_owned()
    } else if !(0.0005..1e7).contains(&size) {
        format!("{value:.1e}")
    } else if size >= 1000.0 {
        format!("{value:.0}")
    } else if size >= 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

/// A sum of weights or a scale: a whole number without decimals.
pub(super) fn amount(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e12 { format!("{value:.0}") } else { number(value) }
}

/// A number with its sign, for differences between models.
pub(super) fn signed(value: f64) -> String {
    if value > 0.0 { format!("+{}", number(value)) } else { number(value) }
}

pub(super) fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".to_owned() } else { format!("{p:.3}") }
}

/// The level of an interval in percent.
pub(super) fn percent(level: f64) -> String {
    let text = format!("{:.1}", level * 100.0);
    format!("{} %", text.trim_end_matches(".0"))
}

/// Whether zero means that nothing differs, and both signs can occur.
pub(super) fn is_signed(figure: &Figure) -> bool {
    figure.versus.is_some() || matches!(figure.scope, Scope::MemberMinusRest(_))
}

/// The value, or why there is none: "0.812 [0.790, 0.833]", "not enough data: no positives (n 12)".
pub(super) fn value_words(figure: &Figure) -> String {
    let value = match (absence(figure), figure.value) {
        (Some(words), _) => return words,
        (None, Some(value)) if is_signed(figure) => signed(value),
        (None, Some(value)) => number(value),
        (None, None) => return format!("no value (n {})", figure.n),
    };
    let mut text = value;
    if let Some(interval) = &figure.interval {
        text.push_str(&format!(" [{}, {}]", number(interval.low), number(interval.high)));
    }
    if figure.status == Status::LowSupport {
        text.push_str(&format!(" (few rows: n {})", figure.n));
    }
    text
}

/// Why a figure has no value to be shown; none where it has one. A suppressed one is never shown, whatever it holds.
pub(super) fn absence(figure: &Figure) -> Option<String> {
    let reason = figure.reason.as_deref().map(reason_words);
    let with = |words: &str| match &reason {
        Some(reason) => format!("{words}: {reason}"),
        None => words.to_owned(),
    };
    match figure.status {
        Status::Ok | Status::LowSupport => None,
        Status::Undefined => Some(format!("{} (n {})", with("not enough data"), figure.n)),
        Status::NotMeasured => Some(with("not measured")),
        Status::Suppressed => Some("suppressed: group too small to be published".to_owned()),
    }
}

/// What the data say about a gap or a difference.
pub(super) fn verdict(report: &Report, figure: &Figure) -> String {
    if let Some(words) = absence(figure) {
        return words;
    }
    let statistics = &report.settings.statistics;
    let alpha = 1.0 - statistics.level;
    let what = if figure.versus.is_some() { "difference" } else { "gap" };
    let few = figure.status == Status::LowSupport;
    if let Some(test) = &figure.test {
        let p = test.adjusted.unwrap_or(test.p);
        if test.name == "tost" {
            let within = format!("within ±{}", number(statistics.margin));
            return if p <= alpha {
                format!("evidence that the {what} is {within}")
            } else {
                format!("inconclusive: the {what} is not shown to be {within}")
            };
        }
        if p <= alpha {
            return if few { format!("evidence of a {what}, on few rows") } else { format!("evidence of a {what}") };
        }
        if few {
            return "inconclusive: few rows".to_owned();
        }
        return match test.detectable {
            Some(gap) if statistics.margin > 0.0 && gap > statistics.margin => {
                format!("inconclusive: a {what} below {} would probably have been missed", number(gap))
            }
            Some(gap) if gap > 0.0 => {
                format!("no evidence of a {what}; one of {} would probably have been found", number(gap))
            }
            Some(_) | None => format!("no evidence of a {what}"),
        };
    }
    match &figure.interval {
        Some(_) if few => "inconclusive: few rows".to_owned(),
        Some(interval) if is_signed(figure) => {
            if interval.low > 0.0 || interval.high < 0.0 {
                format!("evidence of a {what}, not corrected")
            } else {
                format!("no evidence of a {what}")
            }
        }
        Some(_) | None => "inconclusive: not tested".to_owned(),
    }
}

pub(super) fn model_name(report: &Report, index: u32) -> &str {
    report.models.get(index as usize).map_or("(unknown model)", |model| model.name.as_str())
}

/// The model, or both where it is a comparison.
pub(super) fn subject(report: &Report, figure: &Figure) -> String {
    let model = model_name(report, figure.model);
    match figure.versus {
        Some(versus) => format!("{model} minus {}", model_name(report, versus)),
        None => model.to_owned(),
    }
}

/// The measure with its class.
pub(super) fn measure_words(measure: &str, class: Option<&str>) -> String {
    match class {
        Some(class) => format!("{measure} of {class}"),
        None => measure.to_owned(),
    }
}

/// Kind, adapter, generation and scale.
pub(super) fn model_words(model: &Model) -> String {
    let mut text = kind_words(model.kind).to_owned();
    if !model.adapter.is_empty() && model.adapter != model.name {
        text.push_str(&format!(" {}", model.adapter));
    }
    if !model.generation.is_empty() {
        text.push_str(&format!(", generation {}", model.generation));
    }
    if model.scale != 1.0 {
        text.push_str(&format!(", scale {}", amount(model.scale)));
    }
    text
}

/// Name of a membership attack.
pub(super) fn attack_words(attack: Attack) -> &'static str {
    match attack {
        Attack::Loss => "loss",
        Attack::MinK => "Min-K%",
        Attack::MinKPlusPlus => "Min-K%++",
        Attack::Reference => "loss against the base model",
        Attack::Rmia => "RMIA",
        Attack::LiraOnline => "LiRA online",
        Attack::LiraOnlineFixed => "LiRA online, one spread",
        Attack::LiraOffline => "LiRA offline",
        Attack::LiraOfflineFixed => "LiRA offline, one spread",
    }
}
