//! How well scores tell members from non-members.
//!
//! Knows no attack: any score that is higher for members will do. Members are the positive class. Scores must not be
//! NaN; infinite ones are fine. What no attack could score is left out by the caller, and counted there.
//! After: scikit-learn `roc_curve`, the script of Carlini et al. 2022, sacroml (AUC under the null, extremes).

use super::distributions::normal_cdf;
use super::{Measured, Undefined};

/// Rows in falling order of score. Sorted once, it serves every resample: weights may change, scores do not.
#[derive(Debug, Clone)]
pub struct Ranking {
    order: Vec<usize>,
    /// Where in `order` each block of equal scores ends, and its score.
    blocks: Vec<(usize, f64)>,
}

impl Ranking {
    /// Sorts scores.
    pub fn new(score: &[f64]) -> Self {
        let mut order: Vec<usize> = (0..score.len()).collect();
        order.sort_by(|a, b| score[*b].total_cmp(&score[*a]).then(a.cmp(b)));
        let mut blocks = Vec::new();
        let mut end = 0;
        for block in order.chunk_by(|a, b| score[*a] == score[*b]) {
            end += block.len();
            blocks.push((end, score[block[0]]));
        }
        Self { order, blocks }
    }

    /// Returns the curve of these rows: whether each is a member, and its weight.
    ///
    /// # Errors
    ///
    /// [`Undefined::NoPositives`] without members, [`Undefined::NoNegatives`] without non-members (by weight).
    pub fn roc(&self, member: &[bool], weights: Option<&[f64]>) -> Result<Roc, Undefined> {
        let mut points = vec![Point { threshold: f64::INFINITY, fp: 0.0, tp: 0.0 }];
        let (mut start, mut fp, mut tp, mut tied) = (0, 0.0, 0.0, 0.0);
        for (end, threshold) in &self.blocks {
            let (fp_before, tp_before) = (fp, tp);
            for row in &self.order[start..*end] {
                let weight = weights.map_or(1.0, |weights| weights[*row]);
                if member[*row] { tp += weight } else { fp += weight }
            }
            start = *end;
            let block: f64 = tp - tp_before + fp - fp_before;
            if block > 0.0 {
                tied += block.powi(3) - block;
                points.push(Point { threshold: *threshold, fp, tp });
            }
        }
        if tp <= 0.0 {
            return Err(Undefined::NoPositives);
        }
        if fp <= 0.0 {
            return Err(Undefined::NoNegatives);
        }
        Ok(Roc { points, members: tp, non_members: fp, tied })
    }
}

/// What is taken for a member from this score up: weights of non-members (fp) and members (tp).
#[derive(Debug, Clone, Copy, PartialEq)]
struct Point {
    threshold: f64,
    fp: f64,
    tp: f64,
}

/// A receiver operating characteristic with every point.
#[derive(Debug, Clone)]
pub struct Roc {
    /// From (0, 0) at an infinite threshold on.
    points: Vec<Point>,
    members: f64,
    non_members: f64,
    /// Σ(t³ − t) over blocks of equal scores.
    tied: f64,
}

/// The true positive rate at a false positive rate, in the forms in use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TprAtFpr {
    /// FPR ≤ t over every point of the curve: use this.
    pub at_most_all_points: f64,
    /// FPR < t on scikit-learn's thinned curve: the official script.
    pub below: f64,
    /// FPR ≤ t on the thinned curve.
    pub at_most: f64,
    /// Linear between the points.
    pub interpolated: f64,
    /// Whether t allows for one non-member at all; if not, the figures mean "no false positive".
    pub resolvable: bool,
}

impl Roc {
    /// Returns the curve of scores: [`Ranking::roc`] at once.
    ///
    /// # Errors
    ///
    /// Those of [`Ranking::roc`].
    pub fn new(score: &[f64], member: &[bool], weights: Option<&[f64]>) -> Result<Self, Undefined> {
        Ranking::new(score).roc(member, weights)
    }

    /// Returns the weights of members and of non-members.
    pub fn support(&self) -> (f64, f64) {
        (self.members, self.non_members)
    }

    /// Returns the area under the curve: pairs in the right order, a tie counting half.
    pub fn auc(&self) -> f64 {
        let area = |w: &[Point]| (w[1].fp - w[0].fp) * (w[1].tp + w[0].tp) / 2.0;
        self.points.windows(2).map(area).sum::<f64>() / (self.members * self.non_members)
    }

    /// Returns the best balanced accuracy over thresholds.
    pub fn balanced_accuracy(&self) -> f64 {
        let accuracy = |point: &Point| f64::midpoint(self.tpr(point), 1.0 - self.fpr(point));
        self.points.iter().map(accuracy).fold(0.5, f64::max)
    }

    /// Returns the largest TPR − FPR over thresholds (Yeom et al. 2018).
    pub fn advantage(&self) -> f64 {
        self.points.iter().map(|point| self.tpr(point) - self.fpr(point)).fold(0.0, f64::max)
    }

    /// Returns the true positive rate where the false positive rate is `t`.
    pub fn tpr_at_fpr(&self, t: f64) -> TprAtFpr {
        let thinned: Vec<&Point> = self.thinned();
        let last = |points: &mut dyn Iterator<Item = &Point>, fits: &dyn Fn(f64) -> bool| {
            points.take_while(|point| fits(self.fpr(point))).last().map_or(0.0, |point| self.tpr(point))
        };
        TprAtFpr {
            at_most_all_points: last(&mut self.points.iter(), &|fpr| fpr <= t),
            below: last(&mut thinned.iter().copied(), &|fpr| fpr < t),
            at_most: last(&mut thinned.iter().copied(), &|fpr| fpr <= t),
            interpolated: self.interpolated(t),
            // The slack forgives 0.001·1000 < 1.
            resolvable: t * self.non_members >= 1.0 - 1e-9,
        }
    }

    /// Returns the lowest threshold whose false positive rate is at most `t`; infinite if that takes nobody.
    pub fn threshold_at(&self, t: f64) -> f64 {
        let fits = self.points.iter().take_while(|point| self.fpr(point) <= t);
        fits.last().map_or(f64::INFINITY, |point| point.threshold)
    }

    /// Returns (TPR, FPR) if rows of a score ≥ `threshold` are taken for members: what one threshold for everyone does
    /// to the group whose curve this is.
    pub fn rates_at(&self, threshold: f64) -> (f64, f64) {
        let taken = self.points.iter().take_while(|point| point.threshold >= threshold).last();
        taken.map_or((0.0, 0.0), |point| (self.tpr(point), self.fpr(point)))
    }

    /// Returns the standard deviation of the AUC if scores say nothing (Mann and Whitney), with the correction for ties.
    /// Weights are taken as counts of rows.
    pub fn auc_null_deviation(&self) -> f64 {
        let n = self.members + self.non_members;
        let ties = if n > 1.0 { self.tied / (n * (n - 1.0)) } else { 0.0 };
        ((n + 1.0 - ties).max(0.0) / (12.0 * self.members * self.non_members)).sqrt()
    }

    /// Returns how likely an AUC at least as large is if scores say nothing (normal approximation, one-sided).
    ///
    /// # Errors
    ///
    /// [`Undefined::DivisionByZero`] if all scores are equal.
    pub fn auc_p_value(&self) -> Measured {
        let deviation = self.auc_null_deviation();
        if deviation == 0.0 {
            return Err(Undefined::DivisionByZero);
        }
        Ok(normal_cdf((0.5 - self.auc()) / deviation))
    }

    fn fpr(&self, point: &Point) -> f64 {
        point.fp / self.non_members
    }

    fn tpr(&self, point: &Point) -> f64 {
        point.tp / self.members
    }

    /// The points that scikit-learn keeps: the ends, and those that are not the middle of a straight, even pair of steps.
    fn thinned(&self) -> Vec<&Point> {
        let bent = |w: &[Point]| w[0].fp + w[2].fp != 2.0 * w[1].fp || w[0].tp + w[2].tp != 2.0 * w[1].tp;
        // The point (0, 0) is added after thinning, so that it takes no part.
        let counted = &self.points[1..];
        let middle = counted.windows(3).filter(|w| bent(w)).map(|w| &w[1]);
        let ends = (counted.first(), if counted.len() > 1 { counted.last() } else { None });
        self.points.first().into_iter().chain(ends.0).chain(middle).chain(ends.1).collect()
    }

    fn interpolated(&self, t: f64) -> f64 {
        let after = self.points.partition_point(|point| self.fpr(point) <= t);
        let Some(low) = after.checked_sub(1).map(|at| &self.points[at]) else { return 0.0 };
        let Some(high) = self.points.get(after) else { return self.tpr(low) };
        let (x, y) = ((self.fpr(low), self.fpr(high)), (self.tpr(low), self.tpr(high)));
        y.0 + (y.1 - y.0) * (t - x.0) / (x.1 - x.0)
    }
}

/// Members among the rows of highest and of lowest score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extremes {
    /// Share of members among the highest scores.
    pub top: f64,
    /// Share of members among the lowest scores.
    pub bottom: f64,
    /// How likely so large a difference is if scores say nothing (normal approximation, one-sided).
    pub p_value: f64,
}

/// Returns the shares of members among the `fraction` of rows with the highest and lowest scores (sacroml's PDIF: an
/// attack may work on a few rows only). A tie is broken by the order of rows.
///
/// # Errors
///
/// [`Undefined::Unreachable`] if the fraction is less than one row, and the errors of [`Ranking::roc`].
pub fn extremes(score: &[f64], member: &[bool], fraction: f64) -> Result<Extremes, Undefined> {
    let order = Ranking::new(score).order;
    let rows = (order.len() as f64 * fraction.clamp(0.0, 0.5)) as usize;
    let members = member.iter().filter(|member| **member).count();
    if members == 0 {
        return Err(Undefined::NoPositives);
    }
    if members == member.len() {
        return Err(Undefined::NoNegatives);
    }
    if rows == 0 {
        return Err(Undefined::Unreachable);
    }
    let share = |rows: &[usize]| rows.iter().filter(|row| member[**row]).count() as f64 / rows.len() as f64;
    let (top, bottom) = (share(&order[..rows]), share(&order[order.len() - rows..]));
    let base = members as f64 / member.len() as f64;
    let deviation = (base * (1.0 - base) * 2.0 / rows as f64).sqrt();
    Ok(Extremes { top, bottom, p_value: normal_cdf((bottom - top) / deviation) })
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn drawn(rows: usize, seed: u64) -> (Vec<f64>, Vec<bool>) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let member: Vec<bool> = (0..rows).map(|_| rng.random_bool(0.4)).collect();
        let lift = |m: &bool| if *m { 4 } else { 0 };
        (member.iter().map(|m| f64::from(rng.random_range(0..20) + lift(m))).collect(), member)
    }

    #[test]
    fn the_area_is_the_share_of_pairs_in_order() {
        let (score, member) = drawn(120, 1);
        let (mut points, mut pairs) = (0.0, 0.0);
        for (i, j) in (0..120).flat_map(|i| (0..120).map(move |j| (i, j))) {
            if member[i] && !member[j] {
                pairs += 1.0;
                points += match score[i].total_cmp(&score[j]) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
        let expected = points / pairs;
        let roc = Roc::new(&score, &member, None).unwrap();
        assert!((roc.auc() - expected).abs() < 1e-12);
        let turned: Vec<f64> = score.iter().map(|s| -s).collect();
        assert!((Roc::new(&turned, &member, None).unwrap().auc() - 1.0 + expected).abs() < 1e-12);
        assert!((roc.advantage() - (2.0 * roc.balanced_accuracy() - 1.0)).abs() < 1e-12);
    }

    #[test]
    fn a_weight_is_a_number_of_rows() {
        let (score, member) = drawn(60, 2);
        let weights: Vec<f64> = (0..60_usize).map(|i| (i % 3) as f64).collect();
        let rows: Vec<usize> = (0..60).flat_map(|i| vec![i; i % 3]).collect();
        let repeated: (Vec<f64>, Vec<bool>) = rows.iter().map(|i| (score[*i], member[*i])).unzip();
        let (one, two) =
            (Roc::new(&score, &member, Some(&weights)).unwrap(), Roc::new(&repeated.0, &repeated.1, None).unwrap());
        assert!((one.auc() - two.auc()).abs() < 1e-12);
        assert!((one.auc_null_deviation() - two.auc_null_deviation()).abs() < 1e-12);
        for t in [0.0, 0.01, 0.1, 0.5, 1.0] {
            assert_eq!(one.tpr_at_fpr(t), two.tpr_at_fpr(t));
            let (tpr, fpr) = one.rates_at(one.threshold_at(t));
            assert!(fpr <= t);
            assert_eq!(tpr, one.tpr_at_fpr(t).at_most_all_points);
        }
    }

    #[test]
    fn one_class_is_undefined_and_ties_say_nothing() {
        assert_eq!(Roc::new(&[1.0], &[false], None).map(|r| r.auc()), Err(Undefined::NoPositives));
        assert_eq!(Roc::new(&[1.0], &[true], None).map(|r| r.auc()), Err(Undefined::NoNegatives));
        let tied = Roc::new(&[2.0; 4], &[true, false, true, false], None).unwrap();
        assert_eq!(tied.auc(), 0.5);
        assert_eq!(tied.auc_p_value(), Err(Undefined::DivisionByZero));
        assert_eq!(tied.tpr_at_fpr(0.1).at_most_all_points, 0.0);
        assert!(!tied.tpr_at_fpr(0.1).resolvable && tied.tpr_at_fpr(0.5).resolvable);
        assert_eq!(extremes(&[1.0, 0.0], &[true, false], 0.1), Err(Undefined::Unreachable));
    }

    #[test]
    fn the_null_deviation_is_that_of_shuffled_members() {
        use rand::seq::SliceRandom;
        let (score, mut member) = drawn(40, 4);
        let expected = Roc::new(&score, &member, None).unwrap().auc_null_deviation();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(9);
        let ranking = Ranking::new(&score);
        let squares: Vec<f64> = (0..4000)
            .map(|_| {
                member.shuffle(&mut rng);
                (ranking.roc(&member, None).unwrap().auc() - 0.5).powi(2)
            })
            .collect();
        let drawn = (squares.iter().sum::<f64>() / 4000.0).sqrt();
        // 4,000 draws give a standard deviation to within 1.1 % (one standard error).
        assert!((drawn / expected - 1.0).abs() < 0.05, "{drawn} is not near {expected}");
    }
}
