//! What is looked for in rows as wide as a vocabulary: faults, the largest number, the sum of powers.
//!
//! Sums are f64, in one order whatever the form. Draws nothing and knows no tokens.

use super::super::simd::{LANES, Level, Simd, Work};
use super::load_some;

/// Numbers that are looked at before anything is decided.
const TOGETHER: usize = 64;

step! {
    /// Returns the index of the first number that is NaN or +infinity.
    first_fault as FirstFault(x: &'a [f32]) -> Option<usize>, |_s| {
        for (part, x) in x.chunks(TOGETHER).enumerate() {
            let mut fine = true;
            for x in x {
                fine &= *x < f32::INFINITY;
            }
            if !fine {
                return x.iter().position(|x| x.is_nan() || *x == f32::INFINITY).map(|i| part * TOGETHER + i);
            }
        }
        None
    }
}

step! {
    /// Returns the index of the first of the largest numbers, if any is above -infinity.
    first_largest as FirstLargest(x: &'a [f32]) -> Option<usize>, |s| {
        // Side by side: one would wait for itself.
        let mut largest = [s.splat(f32::NEG_INFINITY); 4];
        for x in x.chunks(4 * LANES) {
            for (part, largest) in largest.iter_mut().enumerate() {
                let left = x.len().saturating_sub(part * LANES);
                if left > 0 {
                    // SAFETY: `left` numbers stand there. NaN is not larger: then the second is taken.
                    *largest = unsafe {
                        s.max(load_some(s, x.as_ptr().add(part * LANES), left, f32::NEG_INFINITY), *largest)
                    };
                }
            }
        }
        let [a, b, c, d] = largest;
        let largest = s.largest(s.max(s.max(a, b), s.max(c, d)));
        if largest == f32::NEG_INFINITY {
            return None;
        }
        for (part, x) in x.chunks(TOGETHER).enumerate() {
            let mut there = false;
            for x in x {
                there |= *x == largest;
            }
            if there {
                return x.iter().position(|x| *x == largest).map(|i| part * TOGETHER + i);
            }
        }
        None
    }
}

step! {
    /// Returns Σ e^(x - max), where no number is above `max`.
    sum_of_powers as SumOfPowers(x: &'a [f32], max: f64) -> f64, |_s| {
        // Eight sums side by side: one would wait for itself.
        let (eights, rest) = x.as_chunks::<8>();
        let mut sums = [0.0; 8];
        for eight in eights {
            for (sum, x) in sums.iter_mut().zip(eight) {
                *sum += exp_below_zero(f64::from(*x) - max);
            }
        }
        let mut last = 0.0;
        for x in rest {
            last += exp_below_zero(f64::from(*x) - max);
        }
        sums.iter().sum::<f64>() + last
    }
}

/// Returns eˣ for x ≤ 0 to about 1 unit in the last place, and 0 as good as exactly below -700: without a call, so that
/// it is computed for several numbers at once.
#[inline(always)]
fn exp_below_zero(x: f64) -> f64 {
    /// Adding it leaves a whole number in the lowest bits.
    const WHOLE: f64 = 6_755_399_441_055_744.0;
    /// 1/13!, 1/12!, … 1/0!: the series of eʳ for |r| ≤ ln 2 / 2.
    const SERIES: [f64; 14] = [
        1.0 / 6_227_020_800.0,
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let x = if x > -700.0 { x } else { -700.0 };
    let shifted = x * std::f64::consts::LOG2_E + WHOLE;
    let n = shifted - WHOLE;
    // ln 2 in two parts, the first of few bits (Cody and Waite 1980).
    let r = (x - n * 6.931_457_519_531_25e-1) - n * 1.428_606_820_309_417_2e-6;
    let mut series = 0.0;
    for c in SERIES {
        series = series * r + c;
    }
    series * f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_below_zero_are_those_of_the_library() {
        for i in 0..70_000 {
            let x = -0.01 * f64::from(i);
            assert!((exp_below_zero(x) / x.exp() - 1.0).abs() < 4e-16, "{x}: {} {}", exp_below_zero(x), x.exp());
        }
        assert!(exp_below_zero(f64::NEG_INFINITY) < 1e-300);
    }

    #[test]
    fn every_form_finds_the_first() {
        for level in Level::available() {
            for width in [0, 1, 15, 64, 100, 1000] {
                let what = format!("{level:?}, {width} wide");
                let mut x: Vec<f32> = (0..width).map(|i| ((i * 37) % 199) as f32 / 50.0 - 2.0).collect();
                let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let first = x.iter().position(|x| *x == largest);
                assert_eq!(level.run(FirstLargest { x: &x }), first, "{what}");
                assert_eq!(level.run(FirstFault { x: &x }), None, "{what}");
                let expected: f64 = x.iter().map(|x| (f64::from(*x) - 3.0).exp()).sum();
                let got = level.run(SumOfPowers { x: &x, max: 3.0 });
                assert!((got - expected).abs() <= 1e-12 * expected, "{what}");
                assert_eq!(got.to_bits(), Level::Plain.run(SumOfPowers { x: &x, max: 3.0 }).to_bits(), "{what}");
                for place in (0..width).step_by(7) {
                    for fault in [f32::NAN, f32::INFINITY] {
                        let before = std::mem::replace(&mut x[place], fault);
                        assert_eq!(level.run(FirstFault { x: &x }), Some(place), "{what}");
                        x[place] = before;
                    }
                    let before = std::mem::replace(&mut x[place], f32::NAN);
                    let rest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let first = x.iter().position(|x| *x == rest);
                    assert_eq!(level.run(FirstLargest { x: &x }), first, "{what}");
                    x[place] = before;
                }
                x.fill(f32::NEG_INFINITY);
                assert_eq!(level.run(FirstLargest { x: &x }), None, "{what}");
                assert_eq!(level.run(FirstFault { x: &x }), None, "{what}");
            }
        }
    }
}
