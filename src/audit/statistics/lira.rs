//! The likelihood ratio attack: was a point in the training set, judged against shadow models that had it or had not?
//!
//! Trains nothing and draws no curve (see [`roc`](super::roc)). Every score here is higher for members.
//! Shapes: φ of shadows [shadows, points]. After: Carlini et al. 2022 (arXiv 2112.03570); the variants are those of
//! tensorflow-privacy's library, its `research/mi_lira_2021` script and sacroml, which mean different things by one name.

use super::distributions::normal_cdf;
use super::{Measured, Undefined};

/// Added to probabilities by the reference code.
const TINY: f64 = 1e-45;
/// Added to standard deviations by the reference code.
const TINY_DEVIATION: f64 = 1e-30;
/// Shadows a side from which a standard deviation of each point is worth more than a pooled one.
const ENOUGH_SHADOWS: usize = 32;

/// Returns φ = ln p − ln(1 − p) of the probability of the true class. It saturates at ±103.6: prefer [`stable_logit`].
pub fn phi(probability: f64) -> f64 {
    (probability + TINY).ln() - (1.0 - probability + TINY).ln()
}

/// Returns z_y − ln Σ exp(z of the others): φ without saturation. With one class it is infinite.
pub fn stable_logit<T: Copy + Into<f64>>(logits: &[T], label: usize) -> f64 {
    let others = || logits.iter().enumerate().filter(|(class, _)| *class != label).map(|(_, z)| (*z).into());
    let most = others().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = others().map(|z| (z - most).exp()).sum();
    let own: f64 = logits[label].into();
    if most == f64::NEG_INFINITY { f64::INFINITY } else { own - (most + sum.ln()) }
}

/// What is compared. N is a normal density with the median as centre unless "mean" is said; σ is per point (divisor n)
/// unless "fixed" is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// ln N(φ; IN) − ln N(φ; OUT). Library.
    Online,
    /// The same with one σ a side: that of all (φ − its point's median). Library; right for few shadows.
    OnlineFixed,
    /// [`Variant::Online`] with means. Library; sacroml's `online-carlini`.
    OnlineMean,
    /// [`Variant::OnlineMean`] with one σ a side: that of all φ, not centred. sacroml's `fix_variance`.
    OnlineMeanFixedUncentred,
    /// One σ for both sides: that of all IN values, not centred; lists cut to the shortest one. Script's "online, fixed
    /// variance".
    OnlineFixedResearch,
    /// [`Variant::Online`] after cutting the lists of every point to the shortest one, in shadow order. Script.
    OnlineResearchTruncated,
    /// −ln N(φ; OUT), two-sided: what the official code calls offline.
    Offline,
    /// The same with one σ: that of all (φ − its point's median).
    OfflineFixed,
    /// [`Variant::Offline`] with means. sacroml's `offline-carlini`.
    OfflineMean,
    /// [`Variant::Offline`] with one σ: that of all OUT values, not centred; lists cut to the shortest one. Script.
    OfflineFixedResearch,
    /// Φ((φ − μ) / σ) of OUT: equation 4 of the paper.
    OfflineOneSided,
    /// [`Variant::OfflineOneSided`] with means. sacroml's `offline`.
    OfflineOneSidedMean,
    /// φ − (μ of IN + μ of OUT) / 2. Library's offset attack.
    OffsetBoth,
    /// φ itself: no shadows.
    GlobalThreshold,
}

impl Variant {
    /// Every variant.
    pub const ALL: [Self; 14] = [
        Self::Online,
        Self::OnlineFixed,
        Self::OnlineMean,
        Self::OnlineMeanFixedUncentred,
        Self::OnlineFixedResearch,
        Self::OnlineResearchTruncated,
        Self::Offline,
        Self::OfflineFixed,
        Self::OfflineMean,
        Self::OfflineFixedResearch,
        Self::OfflineOneSided,
        Self::OfflineOneSidedMean,
        Self::OffsetBoth,
        Self::GlobalThreshold,
    ];

    /// Whether every point counts no more shadows of a side than the point that has fewest, as the script does.
    fn cuts_to_the_shortest(self) -> bool {
        matches!(self, Self::OnlineResearchTruncated | Self::OnlineFixedResearch | Self::OfflineFixedResearch)
    }

    /// How many shadows with and without a point its score needs: two for a σ of its own, one for a centre.
    pub fn needs(self) -> (usize, usize) {
        match self {
            Self::Online | Self::OnlineMean | Self::OnlineResearchTruncated => (2, 2),
            Self::OnlineFixed | Self::OnlineMeanFixedUncentred | Self::OnlineFixedResearch | Self::OffsetBoth => (1, 1),
            Self::Offline | Self::OfflineMean | Self::OfflineOneSided | Self::OfflineOneSidedMean => (0, 2),
            Self::OfflineFixed | Self::OfflineFixedResearch => (0, 1),
            Self::GlobalThreshold => (0, 0),
        }
    }
}

/// φ of every shadow model at every point, and which of them were trained on it.
#[derive(Debug, Clone, Copy)]
pub struct Shadows<'a> {
    /// φ [shadows, points]; a value that is not finite counts as absent.
    pub phi: &'a [f64],
    /// Whether the shadow was trained on the point [shadows, points].
    pub member: &'a [bool],
    /// How many points.
    pub points: usize,
}

impl Shadows<'_> {
    /// φ of the shadows that had (or had not) the point, in shadow order.
    fn side(&self, point: usize, member: bool) -> Vec<f64> {
        let rows = self.phi.chunks_exact(self.points.max(1)).zip(self.member.chunks_exact(self.points.max(1)));
        let values = rows.filter(|(_, m)| m[point] == member).map(|(phi, _)| phi[point]);
        values.filter(|phi| phi.is_finite()).collect()
    }
}

/// The distribution of φ at a point over the shadows of one side.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Side {
    /// How many shadows.
    pub count: usize,
    /// Mean φ; 0 without shadows.
    pub mean: f64,
    /// Median φ; 0 without shadows.
    pub median: f64,
    /// Standard deviation with divisor n; 0 without shadows.
    pub deviation: f64,
}

impl Side {
    fn new(values: &[f64]) -> Self {
        let count = values.len();
        if count == 0 {
            return Self::default();
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count as f64;
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let median = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0;
        Self { count, mean, median, deviation: variance.sqrt() }
    }
}

/// A running standard deviation (Welford).
#[derive(Debug, Clone, Copy, Default)]
struct Spread {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Spread {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        let before = value - self.mean;
        self.mean += before / self.count;
        self.squares += before * (value - self.mean);
    }

    fn deviation(&self) -> f64 {
        if self.count > 0.0 { (self.squares / self.count).sqrt() } else { 0.0 }
    }
}

/// One side over all points.
#[derive(Debug, Clone, Default)]
struct Fitted {
    points: Vec<Side>,
    /// The same after cutting to the shortest list.
    truncated: Vec<Side>,
    /// σ of all (φ − its point's median).
    residual: f64,
    /// σ of all φ.
    uncentred: f64,
    /// The same after cutting to the shortest list.
    uncentred_truncated: f64,
}

impl Fitted {
    fn new(shadows: Shadows<'_>, member: bool) -> Self {
        let (mut residual, mut uncentred) = (Spread::default(), Spread::default());
        let mut fitted = Self::default();
        for point in 0..shadows.points {
            let values = shadows.side(point, member);
            let side = Side::new(&values);
            for value in &values {
                residual.add(value - side.median);
                uncentred.add(*value);
            }
            fitted.points.push(side);
        }
        let shortest = fitted.points.iter().map(|side| side.count).min().unwrap_or(0);
        let mut truncated = Spread::default();
        for point in 0..shadows.points {
            let values = &shadows.side(point, member)[..shortest];
            values.iter().for_each(|value| truncated.add(*value));
            fitted.truncated.push(Side::new(values));
        }
        fitted.residual = residual.deviation();
        fitted.uncentred = uncentred.deviation();
        fitted.uncentred_truncated = truncated.deviation();
        fitted
    }
}

/// What the shadows say of every point.
#[derive(Debug, Clone)]
pub struct Fit {
    inside: Fitted,
    outside: Fitted,
}

impl Fit {
    /// Fits the distributions of φ with and without each point.
    pub fn new(shadows: Shadows<'_>) -> Self {
        Self { inside: Fitted::new(shadows, true), outside: Fitted::new(shadows, false) }
    }

    /// Returns the distributions of φ at a point, over shadows with it and without it.
    pub fn point(&self, point: usize) -> (Side, Side) {
        (self.inside.points[point], self.outside.points[point])
    }

    /// Returns the fewest shadows with and without a point, over points.
    pub fn fewest(&self) -> (usize, usize) {
        let fewest = |side: &Fitted| side.points.iter().map(|side| side.count).min().unwrap_or(0);
        (fewest(&self.inside), fewest(&self.outside))
    }

    /// Returns the variant that suits the shadows: online if every point has some of both sides, with one σ a side
    /// while any point has fewer than 32 (the paper's advice, LeakPro's number).
    pub fn suited(&self) -> Variant {
        let (inside, outside) = self.fewest();
        match (inside > 0, inside.min(outside) >= ENOUGH_SHADOWS, outside >= ENOUGH_SHADOWS) {
            (true, true, _) => Variant::Online,
            (true, false, _) => Variant::OnlineFixed,
            (false, _, true) => Variant::Offline,
            (false, _, false) => Variant::OfflineFixed,
        }
    }

    /// Returns the score of a point whose φ under the audited model is `phi`.
    ///
    /// # Errors
    ///
    /// [`Undefined::TooFewShadows`] if the point has fewer than [`Variant::needs`].
    pub fn score(&self, variant: Variant, point: usize, phi: f64) -> Measured {
        let of =
            |side: &Fitted| if variant.cuts_to_the_shortest() { side.truncated[point] } else { side.points[point] };
        let (i, o) = (of(&self.inside), of(&self.outside));
        let (needs_in, needs_out) = variant.needs();
        if i.count < needs_in || o.count < needs_out {
            return Err(Undefined::TooFewShadows);
        }
        let ratio = |centre_in, sigma_in, centre_out, sigma_out| {
            log_normal(phi, centre_in, sigma_in) - log_normal(phi, centre_out, sigma_out)
        };
        Ok(match variant {
            Variant::Online | Variant::OnlineResearchTruncated => ratio(i.median, i.deviation, o.median, o.deviation),
            Variant::OnlineFixed => ratio(i.median, self.inside.residual, o.median, self.outside.residual),
            Variant::OnlineMean => ratio(i.mean, i.deviation, o.mean, o.deviation),
            Variant::OnlineMeanFixedUncentred => ratio(i.mean, self.inside.uncentred, o.mean, self.outside.uncentred),
            Variant::OnlineFixedResearch => {
                ratio(i.median, self.inside.uncentred_truncated, o.median, self.inside.uncentred_truncated)
            }

            Variant::Offline => -log_normal(phi, o.median, o.deviation),
            Variant::OfflineFixed => -log_normal(phi, o.median, self.outside.residual),
            Variant::OfflineMean => -log_normal(phi, o.mean, o.deviation),
            Variant::OfflineFixedResearch => -log_normal(phi, o.median, self.outside.uncentred_truncated),
            Variant::OfflineOneSided => normal_cdf((phi - o.median) / (o.deviation + TINY_DEVIATION)),
            Variant::OfflineOneSidedMean => normal_cdf((phi - o.mean) / (o.deviation + TINY_DEVIATION)),
            Variant::OffsetBoth => phi - (i.median + o.median) / 2.0,
            Variant::GlobalThreshold => phi,
        })
    }

    /// Returns the scores of all points, whose φ under the audited model are `phi`.
    pub fn scores(&self, variant: Variant, phi: &[f64]) -> Vec<Measured> {
        phi.iter().enumerate().map(|(point, phi)| self.score(variant, point, *phi)).collect()
    }
}

fn log_normal(value: f64, centre: f64, deviation: f64) -> f64 {
    let deviation = deviation + TINY_DEVIATION;
    let z = (value - centre) / deviation;
    -z * z / 2.0 - deviation.ln() - (2.0 * std::f64::consts::PI).ln() / 2.0
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// φ of 6 shadows at 3 points: the first in 3 of them, the second in one, the third in none.
    fn shadows() -> (Vec<f64>, Vec<bool>) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let member: Vec<bool> = (0..18).map(|i| [i / 3 < 3, i / 3 == 2, false][i % 3]).collect();
        let phi = member.iter().map(|m| rng.random_range(-1.0..1.0) + if *m { 3.0 } else { 0.0 }).collect();
        (phi, member)
    }

    #[test]
    fn a_point_without_enough_shadows_is_undefined() {
        let (phi, member) = shadows();
        let fit = Fit::new(Shadows { phi: &phi, member: &member, points: 3 });
        assert_eq!(fit.fewest(), (0, 3));
        assert_eq!(fit.suited(), Variant::OfflineFixed);
        for variant in Variant::ALL {
            let (needs_in, _) = variant.needs();
            let defined: Vec<bool> = fit.scores(variant, &[2.0; 3]).iter().map(Result::is_ok).collect();
            // The third point has no IN shadow, so that cutting leaves none to any.
            let has = if variant.cuts_to_the_shortest() { [0; 3] } else { [3, 1, 0] };
            let expected = has.map(|has| has >= needs_in);
            assert_eq!(defined, expected, "{variant:?}");
        }
        let nobody = Fit::new(Shadows { phi: &[], member: &[], points: 1 });
        assert_eq!(nobody.score(Variant::Offline, 0, 0.0), Err(Undefined::TooFewShadows));
        assert_eq!(nobody.score(Variant::GlobalThreshold, 0, 0.5), Ok(0.5));
    }

    #[test]
    fn a_member_scores_higher_in_every_variant() {
        let (phi, member) = shadows();
        let fit = Fit::new(Shadows { phi: &phi[..], member: &member, points: 3 });
        for variant in Variant::ALL.into_iter().filter(|v| fit.score(*v, 0, 0.0).is_ok()) {
            let (like_member, like_other) = (fit.score(variant, 0, 3.0).unwrap(), fit.score(variant, 0, 0.0).unwrap());
            assert!(like_member > like_other, "{variant:?}: {like_member} for a member, {like_other} for another");
        }
    }

    #[test]
    fn the_order_of_shadows_matters_to_cut_lists_only() {
        let (phi, member) = shadows();
        let reversed: Vec<usize> = (0..6).rev().flat_map(|s| (0..3).map(move |p| s * 3 + p)).collect();
        let phi_2: Vec<f64> = reversed.iter().map(|i| phi[*i]).collect();
        let member_2: Vec<bool> = reversed.iter().map(|i| member[*i]).collect();
        let fit = Fit::new(Shadows { phi: &phi, member: &member, points: 3 });
        let other = Fit::new(Shadows { phi: &phi_2, member: &member_2, points: 3 });
        for variant in Variant::ALL.into_iter().filter(|variant| !variant.cuts_to_the_shortest()) {
            for (one, two) in fit.scores(variant, &[1.0; 3]).into_iter().zip(other.scores(variant, &[1.0; 3])) {
                match (one, two) {
                    (Ok(one), Ok(two)) => assert!((one - two).abs() < 1e-9 * (1.0 + one.abs())),
                    (one, two) => assert_eq!(one, two),
                }
            }
        }
    }

    #[test]
    fn a_stable_logit_does_not_saturate() {
        let logits = [1.0_f32, -2.0, 0.5];
        let sum: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
        for label in 0..3 {
            let p = f64::from(logits[label]).exp() / sum;
            assert!((stable_logit(&logits, label) - phi(p)).abs() < 1e-9);
        }
        assert_eq!(stable_logit(&[400.0, -400.0], 0), 800.0);
        assert!(phi(1.0) < 104.0);
    }
}
