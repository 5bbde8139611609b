//! `overlapping_groups.json`: rows in several groups or none, each group against the rows outside it.

use evenkeel::audit::report::Scope;
use evenkeel::audit::settings::Settings;
use evenkeel::audit::statistics::auc::mean;
use evenkeel::audit::statistics::bootstrap::Distribution;
use evenkeel::audit::statistics::confusion::Convention;
use evenkeel::audit::statistics::{Measured, Undefined};
use evenkeel::audit::uploaded::{Uploaded, UploadedAttribute, UploadedGroups};
use serde_json::Value;

use super::attacks::flags;
use super::figures::Rows;
use super::report::{self, Audited, Place};
use super::{Check, number};

pub(super) fn overlapping_groups(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    check.keys("case", case, &["id", "inputs", "expected"]);
    check.keys("inputs", inputs, &["y_true", "score", "y_pred", "membership"]);
    check.keys("expected", expected, &["by_group", "aggregate", "rows_in_no_group", "rows_in_several_groups"]);
    let rows = Rows::read(inputs);
    let masks: Vec<(String, Vec<bool>)> =
        inputs["membership"].as_object().unwrap().iter().map(|(name, mask)| (name.clone(), flags(mask))).collect();
    let names: Vec<String> = masks.iter().map(|(name, _)| name.clone()).collect();
    let of_row = |row: usize| masks.iter().map(move |(_, mask)| mask[row]);
    let flags = UploadedGroups::Flags(names, (0..rows.truth.len()).flat_map(of_row).collect());
    let (uploaded, threshold) = report::uploaded(&rows);
    let attributes = vec![UploadedAttribute { name: "group".to_owned(), groups: flags }];
    let uploaded = Uploaded { attributes, ..uploaded };
    let audited = Audited::new(&Settings { threshold, ..report::binary() }, &uploaded);
    let place = Place::of("group");
    let side = |mask: &[bool], wanted: bool| {
        let inside: Vec<usize> = (0..mask.len()).filter(|row| mask[*row] == wanted).collect();
        rows.only(inside.into_iter())
    };
    for (name, mask) in &masks {
        let expected = &expected["by_group"][name];
        check.keys(name, expected, &["member", "non_member"]);
        for (part, wanted) in [("member", true), ("non_member", false)] {
            let value = Some(name.clone());
            let scope = if wanted { Scope::Group(value) } else { Scope::Complement(value) };
            let of = format!("{name}, {part}");
            figures(&of, &side(mask, wanted), &expected[part], check);
            reported(&of, (&audited, &place, &scope), &expected[part], check);
        }
    }
    check.equal("groups", &masks.len(), &expected["by_group"].as_object().unwrap().len());
    for (name, expected) in expected["aggregate"].as_object().unwrap() {
        let value = |scope| audited.value(&place, &scope, name);
        let apart = masks.iter().filter_map(|(group, _)| value(Scope::MemberMinusRest(Some(group.clone()))).ok());
        let apart = apart.map(f64::abs).reduce(f64::max);
        for (field, expected) in expected.as_object().unwrap() {
            let what = format!("{name}, {field}");
            match field.as_str() {
                "worst_member" => check.measured(&what, value(Scope::Minimum), expected),
                "best_member" => check.measured(&what, value(Scope::Maximum), expected),
                "max_min_over_members" => check.measured(&what, value(Scope::Difference), expected),
                "max_abs_member_minus_rest" => check.measured(&what, apart.ok_or(Undefined::OneGroup), expected),
                _ => check.fault(&format!("{what} is not known")),
            }
        }
    }
    // The report warns of both in words.
    let warnings = &audited.report().warnings;
    let told = warnings.iter().find(|warning| warning.kind == "memberships").map_or("", |warning| &warning.message);
    let told: Vec<f64> = told.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let rows = ["rows_in_no_group", "rows_in_several_groups"].map(|name| number(&expected[name]));
    check.equal("rows in no group and in several", &told, &rows.to_vec());
}

/// What the report says of a group or of the rows outside it.
fn reported(of: &str, (audited, place, scope): (&Audited, &Place<'_>, &Scope), expected: &Value, check: &mut Check) {
    for (name, value) in expected.as_object().unwrap() {
        let what = format!("report: {of}, {name}");
        let n = |measure: &str| audited.figure(place, scope, measure).n as f64;
        match name.as_str() {
            "n" => check.equal(&what, &n("accuracy"), &number(value)),
            "n_pos" => check.equal(&what, &n("tpr"), &number(value)),
            "confusion_row_normalised" => {
                for (cell, value) in value.as_object().unwrap() {
                    let rate = audited.value(place, scope, &format!("{cell}r"));
                    check.measured(&format!("{what}, {cell}"), rate, value);
                }
            }
            "score_mean" => check.measured(&what, audited.value(place, scope, "mean_score"), value),
            other if audited.has(other) => check.measured(&what, audited.value(place, scope, other), value),
            _ => {}
        }
    }
}

fn figures(of: &str, rows: &Rows, expected: &Value, check: &mut Check) {
    let scores = || Distribution::new(rows.score.iter().map(|score| Ok(*score)));
    let average = mean(rows.score.len(), None, |row| rows.score[row]);
    let spread = || -> Measured {
        let average = average?;
        Ok(mean(rows.score.len(), None, |row| (rows.score[row] - average).powi(2))?.sqrt())
    };
    for (name, value) in expected.as_object().unwrap() {
        let what = format!("{of}, {name}");
        match name.as_str() {
            "n" => check.equal(&what, &(rows.truth.len() as f64), &number(value)),
            "n_pos" => check.number(&what, rows.confusion().positives(), number(value)),
            "confusion_row_normalised" => {
                for (cell, value) in value.as_object().unwrap() {
                    let rate = rows.figure(&format!("{cell}r"), Convention::Defined);
                    check.measured(&format!("{what}, {cell}"), rate.unwrap_or(Err(Undefined::NoRows)), value);
                }
            }
            "score_mean" => check.measured(&what, average, value),
            "score_std" => check.measured(&what, spread(), value),
            "score_min" => check.measured(&what, scores().quantile(0.0), value),
            "score_max" => check.measured(&what, scores().quantile(1.0), value),
            other => match rows.figure(other, Convention::Defined) {
                Some(got) => check.measured(&what, got, value),
                None => check.fault(&format!("{what} is not known")),
            },
        }
    }
}
