//! Tables of a report, for the page and for Markdown: head and rows of plain text.
//!
//! Not escaped here: each format escapes the cells in its own way.

use std::collections::BTreeMap;

use super::pick::{self, Sheet};
use super::words::{
    absence, amount, group_name, measure_words, model_name, model_words, number, p_value, percent, scope_words,
    status_word, subject, value_words, verdict,
};
use crate::audit::report::{Figure, Report, Scope, Status};
use crate::audit::seeds;
use crate::audit::utility;

/// A table; the first cell of each row is its head.
pub(super) struct Table {
    /// What it is of.
    pub(super) caption: String,
    /// Head of each column.
    pub(super) head: Vec<String>,
    /// Rows with as many cells.
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    fn new(caption: &str, head: &[&str]) -> Self {
        Self { caption: caption.to_owned(), head: head.iter().map(|&cell| cell.to_owned()).collect(), rows: Vec::new() }
    }
}

/// What was audited.
pub(super) fn models(report: &Report) -> Table {
    let mut table =
        Table::new("Models", &["Model", "What it is", "Rank", "Seed", "Trained by", "Audited rows it was trained on"]);
    for model in &report.models {
        let training = model.training.as_ref();
        let rank = match training.map(|training| training.rank) {
            Some(Some(0)) => "0 (head only)".to_owned(),
            Some(Some(rank)) => rank.to_string(),
            Some(None) => "all weights".to_owned(),
            None => "unknown".to_owned(),
        };
        let seed = training.map_or_else(|| "unknown".to_owned(), |training| training.seed.to_string());
        let job = training.map_or_else(
            || "unknown".to_owned(),
            |training| {
                let step = training.step.map(|step| format!(", step {step}")).unwrap_or_default();
                format!("{}{step} on {}", training.job, training.dataset)
            },
        );
        let overlap = model.overlap.map_or_else(|| "unknown".to_owned(), |rows| rows.to_string());
        table.rows.push(vec![model.name.clone(), model_words(model), rank, seed, job, overlap]);
    }
    table
}

/// How large the groups are.
pub(super) fn groups(report: &Report) -> Table {
    let mut table = Table::new("Groups", &["Attribute", "Group", "Rows", "Weight", "Clusters", "Remark"]);
    let few = report.settings.statistics.min_group;
    for group in &report.groups {
        let remark = match (group.suppressed, group.rows) {
            (true, _) => "suppressed: too small to be published",
            (false, 0) => "does not occur",
            (false, rows) if rows < few => "few rows",
            (false, _) => "",
        };
        table.rows.push(vec![
            group.attribute.clone(),
            group_name(group.value.as_deref()).to_owned(),
            group.rows.to_string(),
            amount(group.weight),
            group.clusters.to_string(),
            remark.to_owned(),
        ]);
    }
    table
}

const GAP: [&str; 8] = [
    "Measure",
    "Model",
    "Gap [interval]",
    "Smallest and largest group",
    "Gap by chance (95 %)",
    "p, corrected",
    "Smallest detectable",
    "What the data say",
];

/// Gaps of an attribute: those that are looked at first, or the others.
pub(super) fn gaps(report: &Report, attribute: &str, first: bool) -> Table {
    let caption = if first { "Gaps between groups" } else { "Gaps between groups in other measures" };
    let mut table = Table::new(&format!("{caption}: {attribute}"), &GAP);
    let figures = report.figures.iter().filter(|figure| {
        let gap = matches!(figure.scope, Scope::Difference | Scope::Attribute);
        let of = figure.attribute.as_deref() == Some(attribute) && figure.control.is_none() && gap;
        let main = figure.class.is_none() && pick::is_main(&figure.measure);
        of && main == first
    });
    let mut measures: Vec<pick::Measure> = Vec::new();
    let mut rows: BTreeMap<(usize, bool), Vec<Vec<String>>> = BTreeMap::new();
    for figure in figures {
        let measure = (figure.measure.as_str(), figure.class.as_deref());
        let place = measures.iter().position(|other| *other == measure).unwrap_or_else(|| {
            measures.push(measure);
            measures.len() - 1
        });
        rows.entry((place, figure.versus.is_some())).or_default().push(gap(report, figure));
    }
    table.rows = rows.into_values().flatten().collect();
    table
}

/// Names of the groups that a figure of extremes is of.
fn extremes(figure: &Figure) -> Option<String> {
    let names: Vec<&str> = figure.extremes.iter().map(|value| group_name(value.as_deref())).collect();
    (!names.is_empty()).then(|| names.join(" – "))
}

fn gap(report: &Report, figure: &Figure) -> Vec<String> {
    let test = figure.test.as_ref();
    // What a test found of a figure that is not shown is not shown either.
    let known = absence(figure).is_none();
    let of = |value: Option<String>| value.filter(|_| known).unwrap_or_else(|| "–".to_owned());
    vec![
        measure_words(&figure.measure, figure.class.as_deref()),
        subject(report, figure),
        value_words(figure),
        of(extremes(figure)),
        of(test.and_then(|test| test.null).map(number)),
        of(test.map(|test| match test.adjusted {
            Some(adjusted) => p_value(adjusted),
            None => format!("{} (not corrected)", p_value(test.p)),
        })),
        of(test.and_then(|test| test.detectable).map(number)),
        verdict(report, figure),
    ]
}

/// Differences of gaps between models, each beside the difference of their utility.
pub(super) fn utility(report: &Report, attribute: &str) -> Table {
    let asked = report.settings.utility_match.as_ref();
    let measure = utility::measure(&report.figures, asked);
    let words = measure.map_or_else(String::new, |measure| measure_words(measure, None));
    let head = ["Measure", "Models", "Difference of gaps [interval]", "Difference of utility [interval]", "Utility"];
    let mut table = Table::new(&format!("Differences of gaps beside utility ({words}): {attribute}"), &head);
    let Some(measure) = measure else { return table };
    for figure in &report.figures {
        let gap = matches!(figure.scope, Scope::Difference | Scope::Attribute)
            && figure.attribute.as_deref() == Some(attribute)
            && figure.control.is_none()
            && figure.class.is_none();
        let Some(versus) = figure.versus.filter(|_| gap && pick::is_main(&figure.measure)) else { continue };
        let pair = (figure.model, versus);
        let beside = utility::difference(&report.figures, pair, measure);
        let verdict = match &report.matched {
            Some(matched) if [(matched.model, matched.versus), (matched.versus, matched.model)].contains(&pair) => {
                let within = if matched.within { "within" } else { "not shown to be within" };
                format!("nearest; {within} {}", number(matched.tolerance))
            }
            Some(_) => "not the nearest".to_owned(),
            None => "–".to_owned(),
        };
        table.rows.push(vec![
            measure_words(&figure.measure, None),
            subject(report, figure),
            value_words(figure),
            beside.map_or_else(|| "–".to_owned(), value_words),
            verdict,
        ]);
    }
    table
}

/// How utility and gaps vary over the seeds of models that were trained alike: measures that are looked at first.
pub(super) fn seeds(report: &Report) -> Table {
    let head = ["Models", "Measure", "Of", "Seeds", "Mean", "Standard deviation", "Smallest", "Largest"];
    let mut table = Table::new("Over the seeds of models that were trained alike", &head);
    for spread in seeds::spreads(report) {
        let of = spread.of;
        if of.class.is_some() || !pick::is_main(&of.measure) {
            continue;
        }
        let names: Vec<&str> = spread.models.iter().map(|model| model_name(report, *model)).collect();
        let place = match &of.attribute {
            Some(attribute) => format!("gap between groups: {attribute}"),
            None => "all rows".to_owned(),
        };
        table.rows.push(vec![
            names.join(", "),
            measure_words(&of.measure, None),
            place,
            format!("{} of {}", spread.n, spread.models.len()),
            number(spread.mean),
            number(spread.deviation),
            number(spread.minimum),
            number(spread.maximum),
        ]);
    }
    table
}

/// Gaps within strata of control features.
pub(super) fn strata(report: &Report) -> Table {
    let mut head = vec!["Attribute", "Stratum"];
    head.extend(GAP);
    let mut table = Table::new("Gaps within strata of control features", &head);
    for figure in &report.figures {
        let Some((column, value)) = figure.control.as_ref().filter(|_| figure.scope == Scope::Difference) else {
            continue;
        };
        let mut row =
            vec![figure.attribute.clone().unwrap_or_default(), format!("{column} = {}", group_name(value.as_deref()))];
        row.extend(gap(report, figure));
        table.rows.push(row);
    }
    table
}

/// Each group against the rest.
pub(super) fn against_rest(report: &Report) -> Table {
    let mut head = vec!["Attribute", "Group"];
    head.extend(GAP);
    let mut table = Table::new("Each group against the rest", &head);
    for figure in report.figures.iter().filter(|figure| figure.control.is_none()) {
        let Scope::MemberMinusRest(value) = &figure.scope else { continue };
        let mut row = vec![figure.attribute.clone().unwrap_or_default(), group_name(value.as_deref()).to_owned()];
        row.extend(gap(report, figure));
        table.rows.push(row);
    }
    table
}

/// Values of the measures that are drawn: over all rows and of each group, a column a model.
pub(super) fn by_group(sheet: &Sheet, attribute: &str) -> Table {
    let mut table = Table::new(&format!("Values by {attribute}"), &["Measure", "Group"]);
    let models = &sheet.report.models;
    table.head.extend(models.iter().map(|model| model.name.clone()));
    for measure in pick::drawn(sheet.report, attribute) {
        let groups = pick::groups(sheet.report, attribute);
        for group in [None].into_iter().chain(groups.into_iter().map(Some)) {
            let name = group.map_or("all rows", |group| group_name(group.value.as_deref()));
            let mut row = vec![measure_words(measure.0, measure.1), name.to_owned()];
            row.extend((0..models.len()).map(|model| {
                let figure = sheet.own(model, group, measure);
                figure.map_or_else(
                    || "not in the report".to_owned(),
                    |figure| format!("{}{}", value_words(figure), support(figure)),
                )
            }));
            table.rows.push(row);
        }
    }
    table
}

/// The rows of a value; a reason names them itself.
fn support(figure: &Figure) -> String {
    if figure.status == Status::Ok { format!(" (n {})", figure.n) } else { String::new() }
}

/// All figures.
pub(super) fn figures(report: &Report) -> Table {
    let head = ["Measure", "Attribute", "Of", "Model", "Value [interval]", "Status", "n", "Weight", "Interval", "Test"];
    let mut table = Table::new("All figures", &head);
    for figure in &report.figures {
        let mut of = scope_words(&figure.scope);
        if let Some((column, value)) = &figure.control {
            of.push_str(&format!(" where {column} = {}", group_name(value.as_deref())));
        }
        if let Some(names) = extremes(figure).filter(|_| absence(figure).is_none()) {
            of.push_str(&format!(": {names}"));
        }
        if let Some((defined, total)) = figure.groups {
            of.push_str(&format!(" ({defined} of {total} groups)"));
        }
        let known = absence(figure).is_none();
        let interval = figure.interval.as_ref().filter(|_| known);
        table.rows.push(vec![
            measure_words(&figure.measure, figure.class.as_deref()),
            figure.attribute.clone().unwrap_or_else(|| "–".to_owned()),
            of,
            subject(report, figure),
            value_words(figure),
            status_word(figure.status).replace('_', " "),
            figure.n.to_string(),
            amount(figure.weight),
            interval.map_or_else(|| "–".to_owned(), |i| format!("{} {}", percent(i.level), i.method)),
            figure
                .test
                .as_ref()
                .filter(|_| known)
                .map_or_else(|| "–".to_owned(), |test| format!("{} p {}", test.name, p_value(test.p))),
        ]);
    }
    table
}

/// How answers follow tokens and positions.
pub(super) fn preferences(report: &Report) -> Table {
    let head = [
        "Model",
        "Alphabet",
        "Answers by token",
        "By position",
        "By content",
        "Rows that flip",
        "Prior of tokens",
        "Accuracy as given",
        "Calibrated",
        "Without the prior",
        "Averaged over orders",
        "Reversed question",
        "Content can be told from token",
    ];
    let mut table = Table::new("Answers by token and position", &head);
    let shares = |shares: &[f64]| match shares {
        [] => "not measured".to_owned(),
        shares => shares.iter().map(|share| format!("{share:.2}")).collect::<Vec<_>>().join(" · "),
    };
    let one = |value: Option<f64>| value.map_or_else(|| "not measured".to_owned(), number);
    for p in &report.preferences {
        let accuracy = &p.accuracy;
        table.rows.push(vec![
            model_name(report, p.model).to_owned(),
            p.alphabet.clone(),
            shares(&p.by_token),
            shares(&p.by_position),
            shares(&p.by_content),
            one(p.flip_rate),
            shares(&p.prior),
            one(accuracy.raw),
            one(accuracy.calibrated),
            one(accuracy.debiased),
            one(accuracy.averaged),
            one(accuracy.reversed),
            p.separable.map_or("not measured", |yes| if yes { "yes" } else { "no" }).to_owned(),
        ]);
    }
    table
}

/// Measures of the report and what they are.
pub(super) fn definitions(report: &Report) -> Table {
    let mut table = Table::new("Measures", &["Measure", "What it is"]);
    let measures: std::collections::BTreeSet<&str> =
        report.figures.iter().map(|figure| figure.measure.as_str()).collect();
    for measure in measures {
        let words = super::definitions::definition(measure).unwrap_or_else(|| "No definition here.".to_owned());
        table.rows.push(vec![measure.to_owned(), words]);
    }
    table
}

/// What was not measured, one line each with the models it is missing for.
pub(super) fn not_measured(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    let settings = &report.settings;
    if settings.membership.is_none() {
        lines.push("Membership inference: not asked for.".to_owned());
    }
    if settings.statistics.resamples == 0 {
        lines.push("Intervals of gaps: not asked for (no resamples).".to_owned());
    }
    if settings.statistics.permutations == 0 {
        lines.push("Tests of gaps: not asked for (no permutations).".to_owned());
    }
    if settings.statistics.margin == 0.0 {
        lines.push("Tests of equivalence: not asked for (no margin).".to_owned());
    }
    if report.figures.iter().any(|figure| figure.control.is_some() || figure.class.is_some()) {
        lines.push("Reliability tables of strata of controls, and of single classes or labels: not made.".to_owned());
    }
    lines.extend(grouped(report, |status| status == Status::NotMeasured));
    lines
}

/// What has no value for want of data, or is not published.
pub(super) fn no_value(report: &Report) -> Vec<String> {
    grouped(report, |status| matches!(status, Status::Undefined | Status::Suppressed))
}

fn grouped(report: &Report, wanted: impl Fn(Status) -> bool) -> Vec<String> {
    let mut lines: Vec<(String, Vec<String>)> = Vec::new();
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for figure in report.figures.iter().filter(|figure| wanted(figure.status)) {
        let mut what = measure_words(&figure.measure, figure.class.as_deref());
        if let Some(attribute) = &figure.attribute {
            what.push_str(&format!(", {attribute}"));
        }
        what.push_str(&format!(", {}", scope_words(&figure.scope)));
        if let Some((column, value)) = &figure.control {
            what.push_str(&format!(" where {column} = {}", group_name(value.as_deref())));
        }
        what.push_str(&format!(": {}", absence(figure).unwrap_or_default()));
        let place = *places.entry(what.clone()).or_insert(lines.len());
        if place == lines.len() {
            lines.push((what, Vec::new()));
        }
        if let Some((_, models)) = lines.get_mut(place) {
            models.push(subject(report, figure));
        }
    }
    lines.into_iter().map(|(what, models)| format!("{what} – {}.", models.join("; "))).collect()
}

/// Differences between models over all rows.
pub(super) fn differences(report: &Report) -> Table {
    let mut table = Table::new(
        "Differences between models over all rows",
        &["Measure", "Models", "Difference [interval]", "p, corrected", "What the data say"],
    );
    for figure in &report.figures {
        let overall = figure.scope == Scope::Overall && figure.control.is_none() && figure.versus.is_some();
        if !overall || !pick::is_main(&figure.measure) {
            continue;
        }
        let cells = gap(report, figure);
        let kept = [0, 1, 2, 5, 7];
        table
            .rows
            .push(cells.into_iter().enumerate().filter(|(i, _)| kept.contains(i)).map(|(_, cell)| cell).collect());
    }
    table
}
