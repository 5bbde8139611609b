//! A report as Markdown, for a pull request or a model card: tables, no drawings.
//!
//! Leaves out single figures of measures that are not looked at first: they are in the page and in CSV. After: GitHub
//! Flavored Markdown, tables.

use super::pick::{self, Sheet};
use super::tables::{self, Table};
use super::words::percent;
use crate::audit::report::Report;

/// Writes the report; it begins with `# `.
pub fn markdown(report: &Report) -> String {
    let sheet = Sheet::new(report);
    let names: Vec<String> = report.models.iter().map(|model| escape(&model.name)).collect();
    let mut text =
        format!("# Audit of {}\n\n", if names.is_empty() { "no model".to_owned() } else { names.join(", ") });
    if !report.warnings.is_empty() {
        text.push_str("## Read this first\n\n");
        for warning in &report.warnings {
            text.push_str(&format!(
                "- **{}**: {}\n",
                escape(&warning.kind.replace('_', " ")),
                escape(&warning.message)
            ));
        }
        text.push('\n');
    }
    let data = &report.data;
    text.push_str(&format!("{} rows of {}; digest {}.\n\n", data.rows, escape(&data.dataset), escape(&data.sha256)));
    if let Some(base) = &report.base {
        let words = format!("{}, {} on {}; fingerprint {}", base.name, base.dtype, base.device, base.fingerprint);
        text.push_str(&format!("Base model: {}.\n\n", escape(&words)));
    }
    table(&mut text, &tables::models(report));
    table(&mut text, &tables::groups(report));
    let level = percent(report.settings.statistics.level);
    text.push_str(&format!(
        "Intervals at {level}; {} tests in the family that p-values are corrected for.\n\n",
        report.tests
    ));
    for attribute in pick::attributes(report) {
        table(&mut text, &tables::gaps(report, attribute, true));
    }
    table(&mut text, &tables::differences(report));
    for attribute in pick::attributes(report) {
        table(&mut text, &tables::utility(report, attribute));
    }
    table(&mut text, &tables::seeds(report));
    for attribute in pick::attributes(report) {
        table(&mut text, &tables::by_group(&sheet, attribute));
    }
    table(&mut text, &tables::strata(report));
    table(&mut text, &tables::preferences(report));
    list(&mut text, "Not measured", &tables::not_measured(report));
    list(&mut text, "Not enough data", &tables::no_value(report));
    table(&mut text, &tables::definitions(report));
    text.push_str(&format!("Made by evenkeel {}, form {}.\n", escape(&report.software), report.version));
    text
}

fn list(text: &mut String, heading: &str, lines: &[String]) {
    if !lines.is_empty() {
        text.push_str(&format!("## {heading}\n\n"));
        for line in lines {
            text.push_str(&format!("- {}\n", escape(line)));
        }
        text.push('\n');
    }
}

fn table(text: &mut String, of: &Table) {
    if of.rows.is_empty() {
        return;
    }
    text.push_str(&format!("## {}\n\n", escape(&of.caption)));
    let line =
        |cells: &[String]| format!("| {} |\n", cells.iter().map(|cell| escape(cell)).collect::<Vec<_>>().join(" | "));
    text.push_str(&line(&of.head));
    text.push_str(&format!("|{}\n", " --- |".repeat(of.head.len())));
    for row in &of.rows {
        text.push_str(&line(row));
    }
    text.push('\n');
}

/// Leaves nothing that Markdown or a table would read as more than text; line ends become spaces.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '|' | '\\' | '`' | '*' | '[' | ']' | '#' | '!' | '~' => {
                safe.push('\\');
                safe.push(c);
            }
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => safe.push('\u{fffd}'),
            c if c.is_control() || c == '\u{2028}' || c == '\u{2029}' => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}
