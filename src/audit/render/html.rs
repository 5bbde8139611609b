//! A report as one page: no script, nothing from elsewhere, readable without colours, on paper and on a phone.
//!
//! Every text that comes from a report passes `escape`. The policy in the head forbids whatever could be loaded or run
//! even where that should fail.

use super::escape::escape;
use super::pick::{self, Sheet};
use super::plots::{self, Titled};
use super::tables::{self, Table};
use super::words::{amount, model_words, percent};
use crate::audit::report::{Report, Roc, Scope};

const STYLE: &str = include_str!("style.css");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Rows of the table of all figures; a browser has trouble with many more.
const MOST_FIGURES: usize = 10_000;

/// Writes the page.
///
/// It lists at most 10 000 figures, and says how many it left out.
pub fn html(report: &Report) -> String {
    let sheet = Sheet::new(report);
    let title = title(report);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<meta name=\"referrer\" content=\"no-referrer\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{}</h1>\n",
        escape(&title),
        escape(&title)
    );
    warnings(&mut page, report);
    audited(&mut page, report);
    summary(&mut page, report);
    legend(&mut page, report);
    for attribute in pick::attributes(report) {
        attribute_section(&mut page, &sheet, attribute);
    }
    calibration(&mut page, report);
    membership(&mut page, report);
    preferences(&mut page, report);
    missing(&mut page, report);
    all(&mut page, report);
    again(&mut page, report);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

fn title(report: &Report) -> String {
    let names: Vec<&str> = report.models.iter().map(|model| model.name.as_str()).collect();
    format!("Audit of {}", if names.is_empty() { "no model".to_owned() } else { names.join(", ") })
}

fn warnings(page: &mut String, report: &Report) {
    if report.warnings.is_empty() {
        return;
    }
    page.push_str(
        "<section class=\"warnings\" aria-labelledby=\"warnings\">\n<h2 id=\"warnings\">Read this first</h2>\n<ul>\n",
    );
    for warning in &report.warnings {
        let kind = warning.kind.replace('_', " ");
        page.push_str(&format!("<li><strong>{}</strong>: {}</li>\n", escape(&kind), escape(&warning.message)));
    }
    page.push_str("</ul>\n</section>\n");
}

fn audited(page: &mut String, report: &Report) {
    page.push_str("<section>\n<h2>What was audited</h2>\n");
    let data = &report.data;
    let mut facts = vec![
        ("Data", format!("{} rows of {}; digest {}", data.rows, data.dataset, data.sha256)),
        ("Weight and clusters", format!("sum of weights {}; {} clusters", amount(data.weight), data.clusters)),
        ("Repeated rows", data.duplicates.to_string()),
        ("Rows that lost tokens", data.truncated.to_string()),
    ];
    if let Some(base) = &report.base {
        facts.push((
            "Base model",
            format!("{}, {} on {}; fingerprint {}", base.name, base.dtype, base.device, base.fingerprint),
        ));
    }
    if !data.labels.is_empty() {
        facts.push(("Classes", data.labels.join(", ")));
    }
    definition_list(page, &facts);
    table(page, &tables::models(report));
    page.push_str("<h3>Group sizes</h3>\n");
    table(page, &tables::groups(report));
    page.push_str("</section>\n");
}

fn summary(page: &mut String, report: &Report) {
    let statistics = &report.settings.statistics;
    page.push_str(&format!(
        "<section>\n<h2>Summary</h2>\n<p>A gap is the largest minus the smallest value of a group. Intervals at {}; {} tests in \
         the family that p-values are corrected for. Some gap appears by chance even where nothing differs: compare it with \
         the column “by chance”, and read “no evidence” beside the smallest gap that would probably have been found (with a power of 80 %).</p>\n",
        percent(statistics.level),
        report.tests
    ));
    let between = tables::differences(report);
    for attribute in pick::attributes(report) {
        table(page, &tables::gaps(report, attribute, true));
    }
    table(page, &between);
    for attribute in pick::attributes(report) {
        table(page, &tables::utility(report, attribute));
    }
    table(page, &tables::seeds(report));
    for attribute in pick::attributes(report) {
        folded(page, &tables::gaps(report, attribute, false));
    }
    folded(page, &tables::against_rest(report));
    folded(page, &tables::strata(report));
    page.push_str("</section>\n");
}

fn legend(page: &mut String, report: &Report) {
    page.push_str("<section>\n<h2>Drawings</h2>\n<p>Each model has one colour and mark. A hollow mark stands on few rows.</p>\n<ul class=\"legend\">\n");
    for (index, model) in report.models.iter().enumerate() {
        let words = model_words(model);
        page.push_str(&format!(
            "<li>{} {} <small>{}</small></li>\n",
            plots::legend(index),
            escape(&model.name),
            escape(&words)
        ));
    }
    page.push_str("</ul>\n</section>\n");
}

fn attribute_section(page: &mut String, sheet: &Sheet, attribute: &str) {
    let mut drawings = Vec::new();
    for measure in pick::drawn(sheet.report, attribute) {
        let mut shown: Vec<Titled> = [
            plots::dots(sheet, attribute, measure),
            plots::slope(sheet, attribute, measure),
            plots::forest(sheet, attribute, measure),
        ]
        .into_iter()
        .flatten()
        .collect();
        shown.extend(plots::sweep(sheet, attribute, measure));
        if !shown.is_empty() {
            drawings.push((super::words::measure_words(measure.0, measure.1), shown));
        }
    }
    let impacts: Vec<Titled> =
        (0..sheet.report.models.len()).filter_map(|model| plots::impact(sheet, attribute, model)).collect();
    if !impacts.is_empty() {
        drawings.push(("Impact ratios".to_owned(), impacts));
    }
    if drawings.is_empty() {
        return;
    }
    page.push_str(&format!("<section>\n<h2>By {}</h2>\n", escape(attribute)));
    let groups = pick::groups(sheet.report, attribute).len();
    if groups > pick::MOST_GROUPS {
        let most = pick::MOST_GROUPS;
        page.push_str(&format!(
            "<p>Drawings show the {most} largest of {groups} groups; the table has all of them.</p>\n"
        ));
    }
    folded(page, &tables::by_group(sheet, attribute));
    for (heading, group) in drawings {
        page.push_str(&format!("<h3>{}</h3>\n", escape(&heading)));
        figures(page, &group);
    }
    page.push_str("</section>\n");
}

fn calibration(page: &mut String, report: &Report) {
    if report.reliability.is_empty() {
        return;
    }
    page.push_str(
        "<section>\n<h2>Calibration</h2>\n<p>On the dashed line confidence is as large as the share of hits.</p>\n",
    );
    let (overall, grouped): (Vec<_>, Vec<_>) =
        report.reliability.iter().partition(|diagram| diagram.scope == Scope::Overall);
    let draw =
        |diagrams: Vec<_>| diagrams.into_iter().map(|diagram| plots::reliability(report, diagram)).collect::<Vec<_>>();
    figures(page, &draw(overall));
    for attribute in pick::attributes(report) {
        let of: Vec<_> =
            grouped.iter().copied().filter(|diagram| diagram.attribute.as_deref() == Some(attribute)).collect();
        if !of.is_empty() {
            page.push_str(&format!(
                "<details>\n<summary>Calibration by {} ({})</summary>\n",
                escape(attribute),
                of.len()
            ));
            figures(page, &draw(of));
            page.push_str("</details>\n");
        }
    }
    page.push_str("</section>\n");
}

fn membership(page: &mut String, report: &Report) {
    if report.rocs.is_empty() {
        return;
    }
    page.push_str(
        "<section>\n<h2>Membership inference</h2>\n<p>On the dashed line an attack is no better than guessing.</p>\n",
    );
    let mut places: Vec<Vec<&Roc>> = Vec::new();
    for roc in &report.rocs {
        let same = |other: &&Roc| {
            (&other.attribute, &other.scope, other.attack, other.parameter)
                == (&roc.attribute, &roc.scope, roc.attack, roc.parameter)
        };
        match places.iter_mut().find(|curves| curves.first().is_some_and(same)) {
            Some(curves) => curves.push(roc),
            None => places.push(vec![roc]),
        }
    }
    let drawings: Vec<Titled> = places.iter().filter_map(|curves| plots::roc(report, curves)).collect();
    figures(page, &drawings);
    page.push_str("</section>\n");
}

fn preferences(page: &mut String, report: &Report) {
    if !report.preferences.is_empty() {
        page.push_str(
            "<section>\n<h2>Token preferences</h2>\n<p>Answers should follow contents, not tokens or positions.</p>\n",
        );
        table(page, &tables::preferences(report));
        page.push_str("</section>\n");
    }
}

fn missing(page: &mut String, report: &Report) {
    for (heading, lines) in
        [("Not measured", tables::not_measured(report)), ("Not enough data", tables::no_value(report))]
    {
        if lines.is_empty() {
            continue;
        }
        page.push_str(&format!("<section>\n<h2>{heading}</h2>\n"));
        let long = lines.len() > 12;
        if long {
            page.push_str(&format!("<details>\n<summary>{} entries</summary>\n", lines.len()));
        }
        page.push_str("<ul>\n");
        for line in lines {
            page.push_str(&format!("<li>{}</li>\n", escape(&line)));
        }
        page.push_str(if long { "</ul>\n</details>\n</section>\n" } else { "</ul>\n</section>\n" });
    }
}

fn all(page: &mut String, report: &Report) {
    page.push_str("<section>\n<h2>All figures</h2>\n");
    let mut figures = tables::figures(report);
    let rest = figures.rows.len().saturating_sub(MOST_FIGURES);
    figures.rows.truncate(MOST_FIGURES);
    if rest > 0 {
        page.push_str(&format!("<p>{rest} more figures are left out here; CSV and JSON have all of them.</p>\n"));
    }
    folded(page, &figures);
    page.push_str("<h2>What the measures are</h2>\n");
    folded(page, &tables::definitions(report));
    page.push_str("</section>\n");
}

fn again(page: &mut String, report: &Report) {
    page.push_str("<section>\n<h2>To make it again</h2>\n");
    let mut facts = vec![
        ("Made by", format!("evenkeel {}, form {}", report.software, report.version)),
        ("Data set", report.data.dataset.clone()),
        ("Digest of rows", report.data.sha256.clone()),
    ];
    if let Some(base) = &report.base {
        facts.push(("Fingerprint of the base model", base.fingerprint.clone()));
    }
    definition_list(page, &facts);
    for model in &report.models {
        let training = model.training.as_ref().and_then(|training| serde_json::to_string_pretty(training).ok());
        let generation = if model.generation.is_empty() { "none" } else { &model.generation };
        page.push_str(&format!("<p>{}: generation {}</p>\n", escape(&model.name), escape(generation)));
        if let Some(training) = training {
            page.push_str(&format!(
                "<details>\n<summary>Training of {}</summary>\n{}</details>\n",
                escape(&model.name),
                code(&training)
            ));
        }
    }
    let settings = serde_json::to_string_pretty(&report.settings).unwrap_or_default();
    page.push_str(&format!("<h3>Settings</h3>\n{}</section>\n", code(&settings)));
}

fn code(text: &str) -> String {
    format!("<pre tabindex=\"0\">{}</pre>\n", escape(text))
}

fn definition_list(page: &mut String, facts: &[(&str, String)]) {
    page.push_str("<dl>\n");
    for (term, fact) in facts {
        page.push_str(&format!("<dt>{term}</dt><dd>{}</dd>\n", escape(fact)));
    }
    page.push_str("</dl>\n");
}

fn figures(page: &mut String, drawings: &[Titled]) {
    page.push_str("<div class=\"figures\">\n");
    for drawing in drawings {
        page.push_str(&format!(
            "<figure>\n<figcaption>{}</figcaption>\n{}\n</figure>\n",
            escape(&drawing.title),
            drawing.svg
        ));
    }
    page.push_str("</div>\n");
}

fn folded(page: &mut String, of: &Table) {
    if !of.rows.is_empty() {
        page.push_str(&format!("<details>\n<summary>{} ({})</summary>\n", escape(&of.caption), of.rows.len()));
        table(page, of);
        page.push_str("</details>\n");
    }
}

/// Nothing for a table without rows.
fn table(page: &mut String, of: &Table) {
    if of.rows.is_empty() {
        return;
    }
    let caption = escape(&of.caption);
    page.push_str(&format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\">\n<table>\n<caption>{caption}</caption>\n<thead><tr>"
    ));
    for cell in &of.head {
        page.push_str(&format!("<th scope=\"col\">{}</th>", escape(cell)));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in &of.rows {
        page.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let cell = escape(cell);
            // A short value stays on one line with its interval.
            let value = cell.len() <= 40 && cell.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-');
            page.push_str(&match (column, value) {
                (0, _) => format!("<th scope=\"row\">{cell}</th>"),
                (_, true) => format!("<td class=\"v\">{cell}</td>"),
                (_, false) => format!("<td>{cell}</td>"),
            });
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table>\n</div>\n");
}
