//! `overlapping_groups.json`: rows in several groups or none, each group against the rows outside it.

use evenkeel::audit::statistics::auc::mean;
use evenkeel::audit::statistics::bootstrap::Distribution;
use evenkeel::audit::statistics::confusion::Convention;
use evenkeel::audit::statistics::disparity::overlapping;
use evenkeel::audit::statistics::groups::none_and_several;
use evenkeel::audit::statistics::{Measured, Undefined};
use serde_json::Value;

use super::attacks::flags;
use super::figures::Rows;
use super::{Check, number};

pub(super) fn overlapping_groups(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    check.keys("case", case, &["id", "inputs", "expected"]);
    check.keys("inputs", inputs, &["y_true", "score", "y_pred", "membership"]);
    check.keys("expected", expected, &["by_group", "aggregate", "rows_in_no_group", "rows_in_several_groups"]);
    let rows = Rows::read(inputs);
    let masks: Vec<(String, Vec<bool>)> =
        inputs["membership"].as_object().unwrap().iter().map(|(name, mask)| (name.clone(), flags(mask))).collect();
    let side = |mask: &[bool], wanted: bool| {
        let inside: Vec<usize> = (0..mask.len()).filter(|row| mask[*row] == wanted).collect();
        rows.only(inside.into_iter())
    };
    let (mut members, mut rest) = (Vec::new(), Vec::new());
    for (name, mask) in &masks {
        let expected = &expected["by_group"][name];
        check.keys(name, expected, &["member", "non_member"]);
        members.push(side(mask, true));
        rest.push(side(mask, false));
        figures(&format!("{name}, members"), &members[members.len() - 1], &expected["member"], check);
        figures(&format!("{name}, others"), &rest[rest.len() - 1], &expected["non_member"], check);
    }
    check.equal("groups", &masks.len(), &expected["by_group"].as_object().unwrap().len());
    for (name, expected) in expected["aggregate"].as_object().unwrap() {
        let of = |groups: &[Rows]| -> Option<Vec<Measured>> {
            groups.iter().map(|group| group.figure(name, Convention::Defined)).collect()
        };
        let (Some(members), Some(rest)) = (of(&members), of(&rest)) else {
            check.fault(&format!("{name} is not known"));
            continue;
        };
        let got = overlapping(&members, &rest);
        for (field, value) in expected.as_object().unwrap() {
            let what = format!("{name}, {field}");
            match field.as_str() {
                "worst_member" => check.measured(&what, got.worst_member, value),
                "best_member" => check.measured(&what, got.best_member, value),
                "max_min_over_members" => check.measured(&what, got.max_min_over_members, value),
                "max_abs_member_minus_rest" => check.measured(&what, got.max_abs_member_minus_rest, value),
                _ => check.fault(&format!("{what} is not known")),
            }
        }
    }
    let masks: Vec<Vec<bool>> = masks.into_iter().map(|(_, mask)| mask).collect();
    let (none, several) = none_and_several(&masks);
    check.equal("rows in no group", &(none as f64), &number(&expected["rows_in_no_group"]));
    check.equal("rows in several groups", &(several as f64), &number(&expected["rows_in_several_groups"]));
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
