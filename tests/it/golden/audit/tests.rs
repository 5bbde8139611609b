//! `tests.json`: permutation tests of scipy; proportions, tables and power of statsmodels and scipy.
//!
//! The level and the power of the smallest gap are in the words of the file only: 0.05 and 0.8. Two places are looser,
//! because the library is: the root of the power (its own power misses 0.8 by up to 4e-7), and the lower end of the
//! score interval of a ratio where all first rows are hits (not a root of the score; see [`ratio`]).

use evenkeel::audit::statistics::distributions::normal_quantile;
use evenkeel::audit::statistics::hypothesis::{
    ChiSquared, PairedTable, Stratum, cochran_mantel_haenszel, homogeneity, pooled_odds_ratio, pooled_risk_ratio,
};
use evenkeel::audit::statistics::intervals::{Interval, Proportion, proportion};
use evenkeel::audit::statistics::permutation::{Tails, arrangement, arrangements};
use evenkeel::audit::statistics::proportions::{Difference, Ratio, Test, TwoProportions, smallest_gap};
use evenkeel::audit::statistics::{Measured, Undefined};
use serde_json::Value;

use super::figures::plain;
use super::{Check, number, numbers};

mod reported;

pub(super) fn tests(case: &Value, check: &mut Check) {
    let (inputs, expected) = (&case["inputs"], &case["expected"]);
    check.keys("case", case, &["id", "kind", "inputs", "expected"]);
    let has = |key: &str| inputs.get(key).is_some();
    if has("groups") {
        let groups: Vec<Vec<f64>> = inputs["groups"].as_array().unwrap().iter().map(numbers).collect();
        let gap = |means: &[f64]| {
            means.iter().copied().fold(f64::MIN, f64::max) - means.iter().copied().fold(f64::MAX, f64::min)
        };
        permutation(&by_labels(&groups, gap), expected, check);
        reported::groups(&groups, expected, check);
    } else if has("a") && case["kind"].as_str().unwrap().contains("paired") {
        let (a, b) = (numbers(&inputs["a"]), numbers(&inputs["b"]));
        permutation(&by_swaps(&a, &b), expected, check);
        reported::pairs(&a, &b, expected, check);
    } else if has("a") {
        let groups = [numbers(&inputs["a"]), numbers(&inputs["b"])];
        permutation(&by_labels(&groups, |means| means[0] - means[1]), expected, check);
        reported::groups(&groups, expected, check);
    } else if has("count_1") {
        check.keys("inputs", inputs, &["count_1", "n_1", "count_2", "n_2", "alpha"]);
        two_proportions(inputs, expected, check);
        reported::two_proportions(inputs, expected, check);
    } else if has("tables") {
        strata(&inputs["tables"], expected, check);
        reported::strata(&inputs["tables"], expected, check);
    } else if has("table") && expected.get("exact").is_some() {
        mcnemar(&rows_of(&inputs["table"]), expected, check);
        reported::mcnemar(&rows_of(&inputs["table"]), expected, check);
    } else if has("table") {
        let got = homogeneity(&rows_of(&inputs["table"]), false).unwrap();
        check.keys("expected", expected, &["chi2", "p", "dof"]);
        check.number("χ²", got.statistic, number(&expected["chi2"]));
        check.number("p", got.p, number(&expected["p"]));
        check.equal("degrees", &(got.degrees as f64), &number(&expected["dof"]));
    } else if has("p_1") {
        let [rows_1, rows_2, p_1] = ["n_1", "n_2", "p_1"].map(|key| number(&inputs[key]));
        let got = smallest_gap(rows_1, rows_2, p_1, 0.8, 0.05).unwrap();
        check.keys("expected", expected, &["effect_size_h", "lower_p_2", "smallest_gap"]);
        check.within("h", got.effect_size_h, number(&expected["effect_size_h"]), ROOT);
        check.within("second proportion", got.lower_p_2, number(&expected["lower_p_2"]), ROOT);
        check.within("smallest gap", got.smallest_gap, number(&expected["smallest_gap"]), ROOT);
        reported::smallest_gap((rows_1, rows_2, p_1), number(&expected["smallest_gap"]), check);
    } else {
        check.fault("no test of these inputs is known");
    }
}

/// How far the library's root of the power may be from the root.
const ROOT: f64 = 1e-6;

/// A test over all arrangements.
struct Exact {
    statistic: f64,
    tails: Tails,
    arrangements: u64,
}

impl Exact {
    fn of(arrangements: u64, observed: f64, statistic: impl Fn(u64) -> f64) -> Self {
        let tails = Tails::of(observed, (0..arrangements).map(statistic), true);
        Self { statistic: observed, tails, arrangements }
    }
}

/// Rearranges rows among groups; the statistic is one of the means of the groups.
fn by_labels(groups: &[Vec<f64>], of_means: impl Fn(&[f64]) -> f64) -> Exact {
    let values: Vec<f64> = groups.iter().flatten().copied().collect();
    let labels: Vec<u32> = groups.iter().enumerate().flat_map(|(g, own)| vec![g as u32; own.len()]).collect();
    let statistic = |labels: &[u32]| {
        let mut sums = vec![0.0; groups.len()];
        labels.iter().zip(&values).for_each(|(group, value)| sums[*group as usize] += value);
        sums.iter_mut().zip(groups).for_each(|(sum, group)| *sum /= group.len() as f64);
        of_means(&sums)
    };
    let all = arrangements(&labels, u64::MAX).unwrap();
    Exact::of(all, statistic(&labels), |number| statistic(&arrangement(&labels, number)))
}

/// Swaps within rows; the statistic is the mean difference.
fn by_swaps(a: &[f64], b: &[f64]) -> Exact {
    let difference = |row: usize, swapped: bool| if swapped { b[row] - a[row] } else { a[row] - b[row] };
    let statistic =
        |choice: u64| (0..a.len()).map(|row| difference(row, choice >> row & 1 == 1)).sum::<f64>() / a.len() as f64;
    Exact::of(1 << a.len(), statistic(0), statistic)
}

fn permutation(got: &Exact, expected: &Value, check: &mut Check) {
    for (name, value) in expected.as_object().unwrap() {
        let got = match name.as_str() {
            "two-sided" => got.tails.two_sided,
            "greater" => got.tails.greater,
            "less" => got.tails.less,
            "statistic" => got.statistic,
            "two_sided_absolute" => got.tails.two_sided_absolute,
            "n_permutations" => got.arrangements as f64,
            _ => {
                check.fault(&format!("{name} is not known"));
                continue;
            }
        };
        check.number(name, got, number(value));
    }
}

/// A table of counts with two columns.
pub(super) fn rows_of(table: &Value) -> Vec<[u64; 2]> {
    let row = |row: &Value| [row[0].as_u64().unwrap(), row[1].as_u64().unwrap()];
    table.as_array().unwrap().iter().map(row).collect()
}

fn mcnemar(table: &[[u64; 2]], expected: &Value, check: &mut Check) {
    let [[both, only_first], [only_second, neither]] = [table[0], table[1]];
    let table = PairedTable { both, only_first, only_second, neither };
    for (name, value) in expected.as_object().unwrap() {
        let got = match name.as_str() {
            "exact" => table.mcnemar_exact(),
            "chi2" => table.mcnemar_chi_squared(false).unwrap(),
            "chi2_corrected" => table.mcnemar_chi_squared(true).unwrap(),
            _ => {
                check.fault(&format!("{name} is not known"));
                continue;
            }
        };
        check.keys(name, value, &["statistic", "p"]);
        check.number(&format!("{name}, statistic"), got.statistic, number(&value["statistic"]));
        check.number(&format!("{name}, p"), got.p, number(&value["p"]));
    }
}

fn strata(tables: &Value, expected: &Value, check: &mut Check) {
    let table = |table: &Value| -> Stratum { [rows_of(table)[0], rows_of(table)[1]] };
    let strata: Vec<Stratum> = tables.as_array().unwrap().iter().map(table).collect();
    let test = |corrected| cochran_mantel_haenszel(&strata, corrected);
    for (name, value) in expected.as_object().unwrap() {
        let got = match name.as_str() {
            "statistic" => test(false).map(|test| test.statistic),
            "p" => test(false).map(|test| test.p),
            "statistic_corrected" => test(true).map(|test| test.statistic),
            "p_corrected" => test(true).map(|test| test.p),
            "pooled_odds_ratio" => pooled_odds_ratio(&strata),
            "pooled_risk_ratio" => pooled_risk_ratio(&strata),
            _ => {
                check.fault(&format!("{name} is not known"));
                continue;
            }
        };
        check.measured(name, got, value);
    }
}

fn two_proportions(inputs: &Value, expected: &Value, check: &mut Check) {
    let [hits_1, rows_1, hits_2, rows_2] =
        ["count_1", "n_1", "count_2", "n_2"].map(|key| inputs[key].as_u64().unwrap());
    let two = TwoProportions { hits_1, rows_1, hits_2, rows_2 };
    let level = 1.0 - number(&inputs["alpha"]);
    let table = [[hits_1, rows_1 - hits_1], [hits_2, rows_2 - hits_2]];
    for (part, value) in expected.as_object().unwrap() {
        match part.as_str() {
            "proportion_1_ci" => {
                for (name, value) in value.as_object().unwrap() {
                    let method = match name.as_str() {
                        "wilson" => Proportion::Wilson,
                        "beta" => Proportion::ClopperPearson,
                        "agresti_coull" => Proportion::AgrestiCoull,
                        "normal" => Proportion::Normal,
                        "jeffreys" => Proportion::Jeffreys,
                        _ => {
                            check.fault(&format!("{name} is not known"));
                            continue;
                        }
                    };
                    interval(name, proportion(hits_1 as f64, rows_1 as f64, level, method), value, check);
                }
            }
            "two_proportion_z" => {
                let Test { statistic, p } = two.z_test().unwrap();
                check.keys(part, value, &["z", "p"]);
                check.number("z", statistic, number(&value["z"]));
                check.number("p of z", p, number(&value["p"]));
            }
            "fisher" => {
                let got = two.fisher();
                check.keys(part, value, &["two-sided", "less", "greater"]);
                check.number("fisher, two-sided", got.two_sided, number(&value["two-sided"]));
                check.number("fisher, less", got.less, number(&value["less"]));
                check.number("fisher, greater", got.greater, number(&value["greater"]));
            }
            "odds_ratio_sample" => check.measured(part, two.odds_ratio(), &plain(value)),
            "chi2" | "chi2_yates" => {
                let ChiSquared { statistic, p, degrees } = homogeneity(&table, part == "chi2_yates").unwrap();
                check.numbers(part, &[statistic, p, degrees as f64], &plain(value));
            }
            "difference_ci" => {
                for (name, value) in value.as_object().unwrap() {
                    let method = match name.as_str() {
                        "newcomb" => Difference::Newcombe,
                        "wald" => Difference::Wald,
                        "score" => Difference::ScoreOfStatsmodels,
                        "agresti-caffo" => Difference::AgrestiCaffo,
                        _ => {
                            check.fault(&format!("{name} is not known"));
                            continue;
                        }
                    };
                    interval(&format!("difference, {name}"), two.difference(level, method), value, check);
                }
            }
            "ratio_ci" => {
                for (name, value) in value.as_object().unwrap() {
                    let method = match name.as_str() {
                        "log" => Ratio::Log,
                        "score" => Ratio::Score,
                        _ => {
                            check.fault(&format!("{name} is not known"));
                            continue;
                        }
                    };
                    ratio(&format!("ratio, {name}"), (&two, method), level, value, check);
                }
            }
            "tost" => check.measured(part, two.equivalence(number(&expected["tost_margin"])), &plain(value)),
            "tost_margin" => {}
            other => check.fault(&format!("{other} is not known")),
        }
    }
}

/// Compares an interval of a ratio.
///
/// Where all first rows are hits, the likeliest proportions of a ratio phi below 1 / pooled are (phi · pooled, pooled);
/// the library goes on with (1, 1 / phi), so that its lower end is no root of the score. There ours has to be one.
fn ratio(what: &str, (two, method): (&TwoProportions, Ratio), level: f64, expected: &Value, check: &mut Check) {
    let got = two.ratio(level, method);
    if method == Ratio::Score && two.hits_1 == two.rows_1 {
        let (got, z) = (got.unwrap(), -normal_quantile((1.0 - level) / 2.0));
        let pooled = (two.hits_1 + two.hits_2) as f64 / (two.rows_1 + two.rows_2) as f64;
        let (first, variance) = (got.low * pooled, |p: f64, rows: u64| p * (1.0 - p) / rows as f64);
        let n = (two.rows_1 + two.rows_2) as f64;
        let error = variance(first, two.rows_1) + got.low * got.low * variance(pooled, two.rows_2);
        let score = (1.0 - got.low * two.hits_2 as f64 / two.rows_2 as f64) / (error * n / (n - 1.0)).sqrt();
        check.number(&format!("{what}, score of the lower end"), score, z);
        return check.number(&format!("{what}, upper end"), got.high, numbers(&plain(expected))[1]);
    }
    interval(what, got, expected, check);
}

/// Compares both ends. Where the library's root finder gives up there is nothing to compare with.
fn interval(what: &str, got: Result<Interval, Undefined>, expected: &Value, check: &mut Check) {
    let expected = plain(expected);
    if expected.is_null() {
        return;
    }
    match got {
        Ok(Interval { low, high }) => check.numbers(what, &[low, high], &expected),
        Err(why) => check.equal::<Measured>(what, &Err(why), &Ok(f64::NAN)),
    }
}
