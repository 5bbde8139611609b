//! Impact ratios as bias audits of hiring tools report them.
//!
//! Gives ratios and the flags that the rules name, and no verdict: four fifths is a screening rule of US employment law
//! and means nothing elsewhere. Rows count one each, weights are not used.
//! After: 6 RCNY §5-301 (New York City Local Law 144): selection rate and scoring rate (share of scores above the
//! median of the whole sample), each over that of the highest category; a category below 2 % of the rows may be left
//! out of the comparison, its count and rate stay. Four fifths: 29 CFR 1607.4 D.

use super::{Measured, Undefined, divide};

/// Share of the rows below which a category may be left out.
pub const SMALL: f64 = 0.02;
/// The screening threshold.
pub const FOUR_FIFTHS: f64 = 0.8;

/// One category.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Category {
    /// Its rows.
    pub rows: usize,
    /// Their share of all rows.
    pub share: f64,
    /// Whether that is below [`SMALL`].
    pub below_2_percent: bool,
    /// Selected among its rows.
    pub selection_rate: Measured,
    /// That over the highest of any category.
    pub impact_ratio: Measured,
    /// That over the highest of the categories that are not small; none for a small one.
    pub impact_ratio_excluding_small: Option<Measured>,
    /// Whether `impact_ratio` reaches [`FOUR_FIFTHS`].
    pub four_fifths_ok: Option<bool>,
    /// Rows whose score is above the median of all rows.
    pub scoring_rate: Measured,
    /// That over the highest of any category.
    pub scoring_impact_ratio: Measured,
}

/// All categories.
#[derive(Debug, Clone, PartialEq)]
pub struct Impact {
    /// `[groups]`.
    pub categories: Vec<Category>,
    /// The category with the highest selection rate, the first of equals.
    pub highest: Option<usize>,
    /// Median score of all rows.
    pub median_score: Measured,
}

/// Selected rows, scores and groups, `[rows]` each; `groups` categories.
#[must_use]
pub fn impact(selected: &[bool], scores: &[f64], group: &[u32], groups: usize) -> Impact {
    let median_score = median(scores);
    let mut counts = vec![[0_usize; 3]; groups];
    for (row, group) in group.iter().enumerate() {
        let [rows, chosen, above] = &mut counts[*group as usize];
        *rows += 1;
        *chosen += usize::from(selected[row]);
        *above += usize::from(median_score.is_ok_and(|median| scores[row] > median));
    }
    let rate = |of: fn(&[usize; 3]) -> usize| -> Vec<Measured> {
        counts.iter().map(|c| divide(of(c) as f64, c[0] as f64, Undefined::NoRows)).collect()
    };
    let (selection, scoring) = (rate(|c| c[1]), rate(|c| c[2]));
    let share = |rows: usize| rows as f64 / group.len().max(1) as f64;
    let large: Vec<Measured> =
        counts.iter().zip(&selection).filter(|(c, _)| share(c[0]) >= SMALL).map(|(_, rate)| *rate).collect();
    let over = |rate: Measured, best: Measured| rate.and_then(|r| divide(r, best?, Undefined::DivisionByZero));
    let categories = (0..groups).map(|g| {
        let below_2_percent = share(counts[g][0]) < SMALL;
        let impact_ratio = over(selection[g], highest(&selection));
        Category {
            rows: counts[g][0],
            share: share(counts[g][0]),
            below_2_percent,
            selection_rate: selection[g],
            impact_ratio,
            impact_ratio_excluding_small: (!below_2_percent).then(|| over(selection[g], highest(&large))),
            four_fifths_ok: impact_ratio.ok().map(|ratio| ratio >= FOUR_FIFTHS),
            scoring_rate: scoring[g],
            scoring_impact_ratio: over(scoring[g], highest(&scoring)),
        }
    });
    let best = highest(&selection);
    Impact {
        categories: categories.collect(),
        highest: selection.iter().position(|rate| rate.is_ok() && *rate == best),
        median_score,
    }
}

fn highest(rates: &[Measured]) -> Measured {
    rates.iter().filter_map(|rate| rate.ok()).reduce(f64::max).ok_or(Undefined::NoRows)
}

/// The middle value, or the mean of the two in the middle.
fn median(values: &[f64]) -> Measured {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => Err(Undefined::NoRows),
        (n, half) if n % 2 == 1 => Ok(sorted[half]),
        (_, half) => Ok(f64::midpoint(sorted[half - 1], sorted[half])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_category_is_shown_and_does_not_set_the_scale() {
        // 99 rows of group 0, 40 of them selected, and one of group 1, selected.
        let group: Vec<u32> = (0..100).map(|i| u32::from(i == 99)).collect();
        let selected: Vec<bool> = (0..100).map(|i| i < 40 || i == 99).collect();
        let impact = impact(&selected, &vec![0.5; 100], &group, 2);
        assert_eq!(impact.highest, Some(1));
        assert!(impact.categories[1].below_2_percent);
        assert_eq!(impact.categories[1].impact_ratio_excluding_small, None);
        assert_eq!(impact.categories[0].impact_ratio_excluding_small, Some(Ok(1.0)));
        assert_eq!(impact.categories[0].four_fifths_ok, Some(false));
        // Everyone at the median: nobody above it, and no ratio of nothing.
        assert_eq!(impact.categories[0].scoring_rate, Ok(0.0));
        assert_eq!(impact.categories[0].scoring_impact_ratio, Err(Undefined::DivisionByZero));
    }
}
