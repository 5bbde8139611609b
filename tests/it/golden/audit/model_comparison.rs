//! `model_comparison.json`: several models on the same rows, by fairlearn, scipy and statsmodels, against one report of
//! all of them.
//!
//! A report compares the later with the earlier model; where a pair of the file is the other way round the sign turns.

use evenkeel::audit::report::Scope;
use evenkeel::audit::settings::Settings;
use evenkeel::audit::statistics::Measured;
use evenkeel::audit::statistics::bootstrap::Distribution;
use evenkeel::audit::statistics::hypothesis::PairedTable;
use evenkeel::audit::statistics::multiplicity::Adjustment;
use evenkeel::audit::uploaded::{Uploaded, UploadedModel};
use serde_json::Value;

use super::attacks::{flags, flat};
use super::figures::Rows;
use super::report::{self, Audited, Both, Place, group};
use super::{Check, indices, names, number};

/// The models of a case.
struct Models {
    names: Vec<String>,
    truth: Vec<bool>,
    predicted: Vec<Vec<bool>>,
    settings: Settings,
    uploaded: Uploaded,
    both: Both,
}

/// One pair, and its sign: −1 where the report has it the other way round.
struct Pair<'a> {
    place: Place<'a>,
    sign: f64,
}

impl Models {
    fn new(inputs: &Value) -> Self {
        let (names, predicted): (Vec<String>, Vec<Vec<bool>>) =
            inputs["y_pred"].as_object().unwrap().iter().map(|(name, of)| (name.clone(), flags(of))).unzip();
        let rows = Rows { truth: flags(&inputs["y_true"]), predicted: Vec::new(), score: Vec::new(), weights: None };
        let (uploaded, _) = report::uploaded(&rows);
        let scores = |predicted: &Vec<bool>| predicted.iter().map(|p| f64::from(u8::from(*p))).collect();
        let models: Vec<UploadedModel> =
            names.iter().zip(&predicted).map(|(name, predicted)| report::model(name, scores(predicted))).collect();
        let attributes = vec![report::attribute("group", &inputs["group"])];
        let uploaded = Uploaded { models, attributes, ..uploaded };
        let settings = report::binary();
        let both = Audited::both(&settings, &uploaded);
        Self { names, truth: rows.truth, predicted, settings, uploaded, both }
    }

    fn index(&self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).unwrap()
    }

    fn pair(&self, name: &str) -> Pair<'static> {
        let (first, second) = name.split_once("->").unwrap();
        let (first, second) = (self.index(first) as u32, self.index(second) as u32);
        let (model, versus) = (first.max(second), Some(first.min(second)));
        let sign = if second > first { 1.0 } else { -1.0 };
        Pair { place: Place { model, versus, ..Place::of("group") }, sign }
    }

    /// Who was right where.
    fn table(&self, name: &str, rows: impl Iterator<Item = usize>) -> PairedTable {
        let (first, second) = name.split_once("->").unwrap();
        let [first, second] = [first, second].map(|name| &self.predicted[self.index(name)]);
        let mut table = PairedTable::default();
        rows.for_each(|row| table.add(first[row] == self.truth[row], second[row] == self.truth[row]));
        table
    }
}

impl Pair<'_> {
    fn value(&self, audited: &Audited, scope: &Scope) -> Measured {
        audited.value(&self.place, scope, "accuracy").map(|difference| self.sign * difference)
    }

    /// p of a group.
    fn p(&self, audited: &Audited, name: &str) -> f64 {
        let test = audited.figure(&self.place, &group(name), "accuracy").test.as_ref().unwrap();
        assert_eq!(test.name, "mcnemar");
        test.p
    }
}

pub(super) fn model_comparison(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    check.keys("case", case, &["id", "inputs", "expected", "method"]);
    check.keys("inputs", inputs, &["y_true", "y_pred", "group", "resample_indices"]);
    check.keys("expected", expected, &["models", "pairs", "family"]);
    let models = Models::new(inputs);
    for (model, expected) in expected["models"].as_object().unwrap() {
        let place = Place { model: models.index(model) as u32, ..Place::of("group") };
        let accuracy = |scope: &Scope| models.both.defined.value(&place, scope, "accuracy");
        for (name, value) in expected.as_object().unwrap() {
            let what = format!("{model}, {name}");
            match name.as_str() {
                "accuracy" => check.measured(&what, accuracy(&Scope::Overall), value),
                "by_group" => {
                    for (name, value) in value.as_object().unwrap() {
                        check.measured(&format!("{what}, {name}"), accuracy(&group(name)), value);
                    }
                }
                "gap" => check.measured(&what, accuracy(&Scope::Difference), value),
                "worst" => check.measured(&what, accuracy(&Scope::Minimum), value),
                _ => models.both.named(model, &place, &serde_json::json!({ name: value }), check),
            }
        }
    }
    // A resample is a weight a row.
    let drawn = |draw: &Value| -> Audited {
        let mut counts = vec![0.0; models.truth.len()];
        indices(draw).into_iter().for_each(|row| counts[row] += 1.0);
        let measures = vec!["accuracy".to_owned()];
        let settings = Settings { measures, ..models.settings.clone() };
        Audited::new(&settings, &Uploaded { weights: Some(counts), ..models.uploaded.clone() })
    };
    let drawn: Vec<Audited> = inputs["resample_indices"].as_array().unwrap().iter().map(drawn).collect();
    let groups = names(&inputs["group"]);
    for (name, expected) in expected["pairs"].as_object().unwrap() {
        let pair = models.pair(name);
        let own = &models.both.defined;
        for (field, value) in expected.as_object().unwrap() {
            let what = format!("{name}, {field}");
            let level = field.strip_prefix("gap_difference_ci").and_then(|rest| rest.strip_suffix("_percentile"));
            match (field.as_str(), level) {
                ("gap_difference", _) => check.measured(&what, pair.value(own, &Scope::Difference), value),
                ("by_group", _) => {
                    for (name_of, value) in value.as_object().unwrap() {
                        let what = format!("{what}, {name_of}");
                        check.keys(&what, value, &["n", "accuracy_difference", "table", "mcnemar_exact_p"]);
                        let inside = (0..groups.len()).filter(|row| groups[*row] == *name_of);
                        let PairedTable { both, only_first, only_second, neither } = models.table(name, inside);
                        let cells = [both, only_first, only_second, neither].map(|count| count as f64);
                        check.numbers(&what, &cells, &flat(&value["table"]).into());
                        let scope = group(name_of);
                        let n = own.figure(&pair.place, &scope, "accuracy").n;
                        check.equal(&what, &(n as f64), &number(&value["n"]));
                        check.measured(&what, pair.value(own, &scope), &value["accuracy_difference"]);
                        check.number(&what, pair.p(own, name_of), number(&value["mcnemar_exact_p"]));
                    }
                }
                (_, Some(level)) => {
                    let replicates = drawn.iter().map(|drawn| pair.value(drawn, &Scope::Difference));
                    let interval =
                        Distribution::new(replicates).percentile(level.parse::<f64>().unwrap() / 100.0).unwrap();
                    check.numbers(&what, &[interval.low, interval.high], value);
                }
                (_, None) => check.fault(&format!("{what} is not known")),
            }
        }
    }
    whole_family(&models, &expected["family"], check);
}

/// All tests of all pairs, in the order that the file gives; a report's own family has those of all rows as well.
fn whole_family(models: &Models, expected: &Value, check: &mut Check) {
    check.keys("family", expected, &["order", "p", "holm", "bh"]);
    let order: Vec<Vec<String>> = expected["order"].as_array().unwrap().iter().map(names).collect();
    let p = |test: &Vec<String>| models.pair(&test[0]).p(&models.both.defined, &test[1]);
    let p: Vec<f64> = order.iter().map(p).collect();
    check.numbers("family, p", &p, &expected["p"]);
    check.numbers("family, holm", &Adjustment::Holm.adjust(&p), &expected["holm"]);
    check.numbers("family, bh", &Adjustment::BenjaminiHochberg.adjust(&p), &expected["bh"]);
}
