//! The tests of `tests.json` as a report has them: rows are made that have these counts or values.

use evenkeel::audit::assess::{Provenance, assess};
use evenkeel::audit::report::{Data, Figure, Model, ModelKind, Report, Scope};
use evenkeel::audit::settings::{Settings, Statistics};
use evenkeel::audit::table::{AttributeRows, Formula, GroupRows, Outcomes, RatioColumn, RatioMeasure, Table};
use evenkeel::audit::uploaded::Uploaded;
use serde_json::Value;

use super::super::figures::{Rows, plain};
use super::super::report::{Audited, Place, group, model, settings, uploaded};
use super::super::{Check, number};
use super::rows_of;

/// Permutations enough that all arrangements of the file's cases are gone through.
const ALL: usize = 1_000_000;

/// Settings of an audit of these measures.
fn asking(measures: &[&str], statistics: Statistics) -> Settings {
    Settings { measures: measures.iter().map(|name| (*name).to_owned()).collect(), statistics, ..settings() }
}

/// Rows that are right or not, of groups `a` and `b` and so on: hits and misses of each.
fn hits(counts: &[[u64; 2]]) -> Uploaded {
    let right = |[hits, misses]: &[u64; 2]| [vec![true; *hits as usize], vec![false; *misses as usize]].concat();
    let predicted: Vec<bool> = counts.iter().flat_map(right).collect();
    let name = |(i, [hits, misses]): (usize, &[u64; 2])| vec![letter(i); (hits + misses) as usize];
    let values: Vec<String> = counts.iter().enumerate().flat_map(name).collect();
    let rows = Rows { truth: vec![true; predicted.len()], predicted, score: Vec::new(), weights: None };
    let attributes = vec![super::super::report::attribute("group", &values.into())];
    Uploaded { attributes, ..uploaded(&rows).0 }
}

fn letter(i: usize) -> String {
    char::from(b'a' + i as u8).to_string()
}

/// The first group minus the others.
fn first_minus_rest() -> Scope {
    Scope::MemberMinusRest(Some(letter(0)))
}

/// A report of real values in groups, all arrangements gone through.
fn of_values(groups: &[Vec<f64>]) -> Report {
    let values: Vec<f64> = groups.iter().flatten().copied().collect();
    let mut first = 0;
    let rows_of = |(i, group): (usize, &Vec<f64>)| {
        first += group.len() as u32;
        GroupRows { value: Some(letter(i)), rows: (first - group.len() as u32..first).collect() }
    };
    let by_group = groups.iter().enumerate().map(rows_of).collect();
    let attribute = AttributeRows { name: "group".to_owned(), combination: false, groups: by_group };
    let measure = RatioMeasure { name: "loss".to_owned(), formula: Formula::Ratio(0), is_rate: false };
    let column = RatioColumn { counts: vec![1.0; values.len()], sums: values.clone() };
    let table = Table {
        rows: values.len(),
        weights: None,
        clusters: None,
        attributes: vec![attribute],
        controls: Vec::new(),
        outcomes: Outcomes::Ratios { measures: vec![measure], models: vec![vec![column]] },
        membership: None,
        preferences: Vec::new(),
    };
    let data = Data {
        dataset: String::new(),
        rows: values.len() as u64,
        sha256: String::new(),
        weight: values.len() as f64,
        clusters: values.len() as u64,
        duplicates: 0,
        truncated: 0,
        labels: Vec::new(),
    };
    let model = Model {
        name: "m".to_owned(),
        kind: ModelKind::Uploaded,
        adapter: String::new(),
        generation: String::new(),
        scale: 1.0,
        training: None,
        overlap: None,
    };
    let provenance = Provenance {
        software: "golden".to_owned(),
        base: None,
        data,
        models: vec![model],
        groups: Vec::new(),
        warnings: Vec::new(),
    };
    let statistics = Statistics { permutations: ALL, ..settings().statistics };
    assess(&Settings { statistics, ..settings() }, &table, provenance, &|| false).unwrap()
}

fn p(figure: &Figure) -> f64 {
    figure.test.as_ref().unwrap().p
}

/// Compares the gap and, of two groups, their difference.
pub(super) fn groups(groups: &[Vec<f64>], expected: &Value, check: &mut Check) {
    let report = of_values(groups);
    let figure = |scope: &Scope| report.figures.iter().find(|figure| figure.scope == *scope).unwrap();
    let gap = figure(&Scope::Difference);
    let statistic = number(&expected["statistic"]);
    check.number("report: gap", gap.value.unwrap(), statistic.abs());
    if groups.len() > 2 {
        // A gap is extreme where it is large.
        return check.number("report: p of the gap", p(gap), number(&expected["greater"]));
    }
    let difference = figure(&first_minus_rest());
    check.number("report: difference", difference.value.unwrap(), statistic);
    for figure in [gap, difference] {
        check.number("report: p", p(figure), number(&expected["two_sided_absolute"]));
    }
}

/// Compares two models that are right (1) or not on the same rows: by McNemar's test where rows count one each, by turned
/// signs where they have weights; of all choices of rows to swap both are the same p.
pub(super) fn pairs(a: &[f64], b: &[f64], expected: &Value, check: &mut Check) {
    if a.iter().chain(b).any(|value| *value != 0.0 && *value != 1.0) {
        return;
    }
    let rows = Rows { truth: vec![true; a.len()], predicted: Vec::new(), score: Vec::new(), weights: None };
    let models = vec![model("b", b.to_vec()), model("a", a.to_vec())];
    let plain = Uploaded { models, ..uploaded(&rows).0 };
    let weighted = Uploaded { weights: Some(vec![1.0; a.len()]), ..plain.clone() };
    let place = Place { model: 1, versus: Some(0), ..Place::of("group") };
    let statistics = Statistics { permutations: ALL, ..settings().statistics };
    for (uploaded, name) in [(plain, "mcnemar"), (weighted, "sign_flip")] {
        let audited = Audited::new(&asking(&["accuracy"], statistics.clone()), &uploaded);
        let figure = audited.figure(&place, &Scope::Overall, "accuracy");
        check.equal("report: test", &figure.test.as_ref().map(|test| test.name.as_str()), &Some(name));
        check.number(&format!("report: {name}, difference"), figure.value.unwrap(), number(&expected["statistic"]));
        check.number(&format!("report: {name}, p"), p(figure), number(&expected["two-sided"]));
    }
}

/// Compares the rates of two groups, their difference and its equivalence.
pub(super) fn two_proportions(inputs: &Value, expected: &Value, check: &mut Check) {
    let [hits_1, rows_1, hits_2, rows_2] =
        ["count_1", "n_1", "count_2", "n_2"].map(|key| inputs[key].as_u64().unwrap());
    let statistics = Statistics {
        level: 1.0 - number(&inputs["alpha"]),
        margin: number(&expected["tost_margin"]),
        ..settings().statistics
    };
    let rows = hits(&[[hits_1, rows_1 - hits_1], [hits_2, rows_2 - hits_2]]);
    let audited = Audited::new(&asking(&["accuracy"], statistics), &rows);
    let place = Place::of("group");
    let mut interval = |scope: &Scope, method: &str, expected: &Value| {
        let interval = audited.figure(&place, scope, "accuracy").interval.as_ref().unwrap();
        check.equal("report: method", &interval.method.as_str(), &method);
        check.numbers(&format!("report: {method}"), &[interval.low, interval.high], &plain(expected));
    };
    interval(&group(&letter(0)), "wilson", &expected["proportion_1_ci"]["wilson"]);
    interval(&first_minus_rest(), "newcombe", &expected["difference_ci"]["newcomb"]);
    let equivalence = audited.figure(&place, &first_minus_rest(), "accuracy_equivalence");
    check.measured("report: tost", Ok(p(equivalence)), &plain(&expected["tost"]));
}

/// Compares McNemar's exact test of two models.
pub(super) fn mcnemar(table: &[[u64; 2]], expected: &Value, check: &mut Check) {
    let [[both, only_first], [only_second, neither]] = [table[0], table[1]];
    let of = |first: [f64; 4]| -> Vec<f64> {
        let counts = [both, only_first, only_second, neither].into_iter().zip(first);
        counts.flat_map(|(count, right)| vec![right; count as usize]).collect()
    };
    let models = vec![model("first", of([1.0, 1.0, 0.0, 0.0])), model("second", of([1.0, 0.0, 1.0, 0.0]))];
    let truth = vec![true; models.len().max((both + only_first + only_second + neither) as usize)];
    let rows = Rows { truth, predicted: Vec::new(), score: Vec::new(), weights: None };
    let audited =
        Audited::new(&asking(&["accuracy"], settings().statistics), &Uploaded { models, ..uploaded(&rows).0 });
    let place = Place { model: 1, versus: Some(0), ..Place::of("group") };
    let figure = audited.figure(&place, &Scope::Overall, "accuracy");
    check.number("report: mcnemar, exact", p(figure), number(&expected["exact"]["p"]));
}

/// Compares a group with the rest over strata of a control.
pub(super) fn strata(tables: &Value, expected: &Value, check: &mut Check) {
    let tables: Vec<Vec<[u64; 2]>> = tables.as_array().unwrap().iter().map(rows_of).collect();
    let all = hits(&tables.concat());
    let of_tables = tables.iter().enumerate().flat_map(|(stratum, table)| {
        let rows = table.iter().enumerate();
        rows.flat_map(move |(side, [hits, misses])| vec![(letter(stratum), letter(side)); (hits + misses) as usize])
    });
    let (strata, sides): (Vec<String>, Vec<String>) = of_tables.unzip();
    let attribute = |name: &str, values: Vec<String>| super::super::report::attribute(name, &values.into());
    let rows =
        Uploaded { attributes: vec![attribute("group", sides)], controls: vec![attribute("stratum", strata)], ..all };
    let audited = Audited::new(&asking(&["accuracy"], settings().statistics), &rows);
    let figure = audited.figure(&Place::of("group"), &first_minus_rest(), "accuracy_common_odds_ratio");
    check.measured(
        "report: common odds ratio",
        figure.value.ok_or(super::Undefined::NoRows),
        &expected["pooled_odds_ratio"],
    );
    check.number("report: cmh, p", p(figure), number(&expected["p"]));
}

/// Compares the smallest gap that would have been found. A report's is that of a permutation test at the rates that were
/// seen, that of the file is a normal test at the rates of such a gap: a fifth is allowed.
pub(super) fn smallest_gap((rows_1, rows_2, p_1): (f64, f64, f64), expected: f64, check: &mut Check) {
    let counts = [rows_1, rows_2].map(|rows| [(rows * p_1).round() as u64, (rows * (1.0 - p_1)).round() as u64]);
    let statistics = Statistics { permutations: 4999, ..settings().statistics };
    let audited = Audited::new(&asking(&["accuracy"], statistics), &hits(&counts));
    let figure = audited.figure(&Place::of("group"), &first_minus_rest(), "accuracy");
    let detectable = figure.test.as_ref().and_then(|test| test.detectable).unwrap();
    check.within("report: detectable gap", detectable, expected, 0.2 * expected);
}
