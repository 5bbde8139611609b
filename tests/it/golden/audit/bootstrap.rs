//! `bootstrap.json`: intervals of scipy and fairlearn from given resamples, and of our own generator.

use evenkeel::audit::statistics::Measured;
use evenkeel::audit::statistics::bootstrap::{Distribution, Resampling, Sampler};
use evenkeel::audit::statistics::confusion::{Confusion, Convention};
use evenkeel::audit::statistics::disparity::{Aggregates, Groups};
use evenkeel::audit::statistics::intervals::Interval;
use serde_json::Value;

use super::figures::{Partition, Rows, named, partition};
use super::{Check, RELATIVE, indices, names, number, numbers};

struct Case {
    rows: Rows,
    groups: Partition,
    level: f64,
}

impl Case {
    fn by_group(&self, rows: &Rows) -> Vec<Rows> {
        rows.groups(&self.groups)
    }

    /// A figure of some draw of the rows: of all of them, or fairlearn's measure between groups.
    fn figure(&self, name: &str, rows: &Rows) -> Option<Measured> {
        let by_group: Vec<Confusion> = self.by_group(rows).iter().map(Rows::confusion).collect();
        let groups = Groups { by_group: &by_group, overall: &rows.confusion(), convention: Convention::Fairlearn };
        rows.figure(name, Convention::Fairlearn).or_else(|| named(&groups, name))
    }
}

fn draws(value: &Value) -> Vec<Vec<usize>> {
    value.as_array().unwrap().iter().map(indices).collect()
}

pub(super) fn bootstrap(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    check.keys("case", case, &["id", "inputs", "expected", "method"]);
    let known = ["y_true", "score", "y_pred", "group", "confidence_level", "resample_indices", "stratified_indices"];
    check.keys("inputs", inputs, &[&known[..], &["fairlearn_indices"]].concat());
    let own = Case {
        rows: Rows::read(inputs),
        groups: partition(&inputs["group"]),
        level: number(&inputs["confidence_level"]),
    };
    for (part, expected) in expected.as_object().unwrap() {
        match part.as_str() {
            "scipy" => scipy(&own, &draws(&inputs["resample_indices"]), expected, check),
            "scipy_stratified_accuracy_difference" => stratified(&own, &inputs["stratified_indices"], expected, check),
            "fairlearn" => fairlearn(&own, &draws(&inputs["fairlearn_indices"]), expected, check),
            "monte_carlo_reference" => monte_carlo(&own, expected, check),
            other => check.fault(&format!("{other} is not known")),
        }
    }
}

/// Compares the fields of a distribution.
fn intervals(
    of: &str,
    estimate: f64,
    (distribution, level): (&Distribution, f64),
    left_out: &[Vec<f64>],
    expected: &Value,
    check: &mut Check,
) {
    for (name, value) in expected.as_object().unwrap() {
        let what = format!("{of}, {name}");
        let interval = match name.as_str() {
            "estimate" => {
                check.number(&what, estimate, number(value));
                continue;
            }
            "standard_error" => {
                check.measured(&what, distribution.standard_error(), value);
                continue;
            }
            "groups" => continue,
            "percentile" => distribution.percentile(level),
            "basic" => distribution.basic(estimate, level),
            "BCa" => {
                check.tolerance(1e-7);
                distribution.bca(estimate, left_out, level)
            }
            _ => {
                check.fault(&format!("{what} is not known"));
                continue;
            }
        };
        let Interval { low, high } = interval.unwrap();
        check.numbers(&what, &[low, high], value);
        check.tolerance(RELATIVE);
    }
}

fn scipy(case: &Case, draws: &[Vec<usize>], expected: &Value, check: &mut Check) {
    let all = || 0..case.rows.truth.len();
    for (name, expected) in expected.as_object().unwrap() {
        let figure = |rows: &Rows| case.figure(name, rows);
        let Some(estimate) = figure(&case.rows) else {
            check.fault(&format!("{name} is not known"));
            continue;
        };
        let drawn = draws.iter().filter_map(|rows| figure(&case.rows.drawn(rows.iter().copied())));
        let distribution = Distribution::new(drawn);
        let without = |out: usize| figure(&case.rows.drawn(all().filter(move |row| *row != out))).unwrap().unwrap();
        let left_out = [all().map(without).collect()];
        intervals(name, estimate.unwrap(), (&distribution, case.level), &left_out, expected, check);
    }
}

/// Two groups, each drawn within itself: accuracy of the first minus that of the second.
fn stratified(case: &Case, draws_of: &Value, expected: &Value, check: &mut Check) {
    let pair = names(&expected["groups"]);
    let group = |name: &String| case.groups.names.iter().position(|known| known == name).unwrap();
    let of = [group(&pair[0]), group(&pair[1])];
    let rows = of.map(|group| case.groups.rows(group).collect::<Vec<usize>>());
    let difference = |counts: &[f64]| -> f64 {
        let weighted = Rows { weights: Some(counts.to_vec()), ..case.rows.clone() };
        let accuracy = |rows: &Vec<usize>| {
            weighted.only(rows.iter().copied()).figure("accuracy", Convention::Defined).unwrap().unwrap()
        };
        accuracy(&rows[0]) - accuracy(&rows[1])
    };
    let ones = vec![1.0; case.rows.truth.len()];
    let [first, second] = [&pair[0], &pair[1]].map(|name| draws(&draws_of[name]));
    let replicates = first.iter().zip(&second).map(|draws| {
        let mut counts = vec![0.0; ones.len()];
        draws.0.iter().for_each(|i| counts[rows[0][*i]] += 1.0);
        draws.1.iter().for_each(|i| counts[rows[1][*i]] += 1.0);
        Ok(difference(&counts))
    });
    let distribution = Distribution::new(replicates);
    let without = |row: &usize| {
        let mut counts = ones.clone();
        counts[*row] = 0.0;
        difference(&counts)
    };
    let left_out = rows.each_ref().map(|rows| rows.iter().map(without).collect());
    intervals("stratified", difference(&ones), (&distribution, case.level), &left_out, expected, check);
}

fn fairlearn(case: &Case, draws: &[Vec<usize>], expected: &Value, check: &mut Check) {
    let quantiles = numbers(&expected["quantiles"]);
    let drawn: Vec<Rows> = draws.iter().map(|rows| case.rows.drawn(rows.iter().copied())).collect();
    let groups: Vec<Vec<Rows>> = drawn.iter().map(|rows| case.by_group(rows)).collect();
    let convention = Convention::Fairlearn;
    let aggregate = |name: &str, read: fn(&Aggregates) -> Measured| -> Option<Vec<Measured>> {
        let both = drawn.iter().zip(&groups);
        both.map(|(all, groups)| Some(read(&all.aggregates(groups, name, convention)?))).collect()
    };
    let mut compare = |what: &str, got: Option<Vec<Measured>>, expected: &Value| match got {
        Some(got) => {
            let got = Distribution::new(got.into_iter());
            let got: Vec<f64> = quantiles.iter().map(|q| got.quantile(*q).unwrap()).collect();
            check.numbers(what, &got, expected);
        }
        None => check.fault(&format!("{what} is not known")),
    };
    for (part, expected) in expected.as_object().unwrap().iter().filter(|(part, _)| *part != "quantiles") {
        for (name, expected) in expected.as_object().unwrap() {
            let what = format!("{part}, {name}");
            let read: fn(&Aggregates) -> Measured = match part.as_str() {
                "by_group_ci" => {
                    let group = case.groups.names.iter().position(|known| known == name).unwrap();
                    for (figure, expected) in expected.as_object().unwrap() {
                        let got = groups.iter().map(|groups| groups[group].figure(figure, convention)).collect();
                        compare(&format!("{what}, {figure}"), got, expected);
                    }
                    continue;
                }
                "overall_ci" => |all| all.overall,
                "difference_ci" => |all| all.difference_between_groups,
                "difference_to_overall_ci" => |all| all.difference_to_overall,
                "ratio_ci" => |all| all.ratio_between_groups,
                "ratio_to_overall_ci" => |all| all.ratio_to_overall,
                "group_min_ci" => |all| all.group_min,
                "group_max_ci" => |all| all.group_max,
                _ => {
                    compare(&what, None, expected);
                    continue;
                }
            };
            compare(&what, aggregate(name, read), expected);
        }
    }
}

/// Our own generator gives about the same interval.
fn monte_carlo(case: &Case, expected: &Value, check: &mut Check) {
    check.keys("monte carlo", expected, &["metric", "resamples", "percentile", "standard_error", "tolerance"]);
    let (metric, tolerance) = (expected["metric"].as_str().unwrap(), number(&expected["tolerance"]));
    let rows = case.rows.truth.len();
    let sampler = Sampler::new(Resampling { rows, seed: 1, ..Resampling::default() });
    let replicates = sampler.replicates(
        0..expected["resamples"].as_u64().unwrap(),
        1,
        || case.rows.clone(),
        |rows, counts, out| {
            rows.weights = Some(counts.iter().map(|count| f64::from(*count)).collect());
            out[0] = case.figure(metric, rows).unwrap();
        },
    );
    let distribution = replicates.figure(0);
    let Interval { low, high } = distribution.percentile(case.level).unwrap();
    let ends = numbers(&expected["percentile"]);
    check.within("monte carlo, low", low, ends[0], tolerance);
    check.within("monte carlo, high", high, ends[1], tolerance);
    let error = distribution.standard_error().unwrap();
    check.within("monte carlo, standard error", error, number(&expected["standard_error"]), tolerance);
}
