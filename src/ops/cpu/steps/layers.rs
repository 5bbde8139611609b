//! Steps of vision transformers: layer norm, GELU, vectors of length 1.
//!
//! Rows of any width; on one thread.
//! After: Ba et al. 2016 (layer norm), Hendrycks and Gimpel 2016 (GELU), Abramowitz and Stegun 1964, 7.1.26 (erf).

use super::{load_some, store_some};
use crate::ops::cpu::simd::{LANES, Level, Simd, Work, exp};

/// Length below which a vector is not made longer (torch `normalize`).
const SHORTEST: f32 = 1e-12;

/// Returns mean and 1/√(variance + eps) of one row.
#[inline(always)]
fn moments<S: Simd>(s: S, x: &[f32], eps: f32) -> (f32, f32) {
    let size = x.len().max(1) as f32;
    let mean = fold!(s, (a in x), sum => s.add(sum, a)) / size;
    let shift = s.splat(-mean);
    let squares = fold!(s, (a in x), sum => {
        let a = s.add(a, shift);
        s.fma(a, a, sum)
    });
    // What was filled up counts as zeros.
    let filled = (x.len().next_multiple_of(LANES) - x.len()) as f32;
    let variance = ((squares - filled * mean * mean) / size).max(0.0);
    (mean, 1.0 / (variance + eps).sqrt())
}

step! {
    /// Writes (x - mean(x)) / √(var(x) + eps) · weight + bias; `x` and `out` are `[rows, hidden]`, `weight` and `bias`
    /// `[hidden]`.
    layer_norm as LayerNorm(x: &'a [f32], weight: &'a [f32], bias: &'a [f32], eps: f32, out: &'a mut [f32]) -> (), |s| {
        let width = weight.len().max(1);
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let (mean, inverse) = moments(s, x, eps);
            let (inverse, shift) = (s.splat(inverse), s.splat(-mean));
            map!(s, (a in x, w in weight, b in bias), (y for out) = [s.fma(s.mul(s.add(a, shift), inverse), w, b)]);
        }
    }
}

step! {
    /// Writes the gradient of `x` of one row: inverse·(w·g - mean(w·g) - x̂·mean(w·g·x̂)).
    layer_norm_backward as LayerNormBackward(
        x: &'a [f32], weight: &'a [f32], eps: f32, gradient: &'a [f32], out: &'a mut [f32]
    ) -> (), |s| {
        let (mean, inverse) = moments(s, x, eps);
        let (inverse_all, shift) = (s.splat(inverse), s.splat(-mean));
        let size = x.len().max(1) as f32;
        let plain = fold!(s, (w in weight, g in gradient), sum => s.fma(w, g, sum)) / size;
        let along = fold!(s, (a in x, w in weight, g in gradient), sum => {
            s.fma(s.mul(w, g), s.mul(s.add(a, shift), inverse_all), sum)
        }) / size;
        let (plain, along) = (s.splat(plain), s.splat(-along));
        map!(s, (a in x, w in weight, g in gradient), (y for out) = {
            let unit = s.mul(s.add(a, shift), inverse_all);
            [s.mul(inverse_all, s.fma(unit, along, s.sub(s.mul(w, g), plain)))]
        });
    }
}

step! {
    /// Adds the gradient of the weight that one row gives: g·x̂.
    layer_norm_weight as LayerNormWeight(x: &'a [f32], eps: f32, gradient: &'a [f32], sums: &'a mut [f32]) -> (), |s| {
        let (mean, inverse) = moments(s, x, eps);
        let (inverse, shift) = (s.splat(inverse), s.splat(-mean));
        map!(s, (a in x, g in gradient, sum in sums), (y for sums) = [s.fma(g, s.mul(s.add(a, shift), inverse), sum)]);
    }
}

/// Returns |x|, and 1 - erf(|x|/√2) with its factor e^(-x²/2).
#[inline(always)]
fn tail<S: Simd>(s: S, x: S::F) -> (S::F, S::F, S::F) {
    let size = s.max(x, s.sub(s.zero(), x));
    let power = exp(s, s.mul(s.mul(x, x), s.splat(-0.5)));
    let t = s.div(s.splat(1.0), s.fma(size, s.splat(0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2), s.splat(1.0)));
    let mut p = s.splat(1.061_405_4);
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = s.fma(p, t, s.splat(c));
    }
    (size, s.mul(s.mul(p, t), power), power)
}

step! {
    /// Writes x·Φ(x), Φ by erf to 1.5e-7.
    gelu as Gelu(x: &'a [f32], out: &'a mut [f32]) -> (), |s| {
        map!(s, (a in x), (y for out) = {
            let (size, tail, _) = tail(s, a);
            [s.fma(s.mul(size, s.splat(-0.5)), tail, s.max(a, s.zero()))]
        });
    }
}

step! {
    /// Writes the gradient of x: g·(Φ(x) + x·φ(x)).
    gelu_backward as GeluBackward(x: &'a [f32], gradient: &'a [f32], out: &'a mut [f32]) -> (), |s| {
        map!(s, (a in x, g in gradient), (y for out) = {
            let (size, tail, power) = tail(s, a);
            let sign = s.div(a, s.max(size, s.splat(f32::MIN_POSITIVE)));
            let half = s.mul(sign, s.splat(0.5));
            let below = s.fma(half, s.sub(s.splat(1.0), tail), s.splat(0.5));
            [s.mul(g, s.fma(s.mul(a, s.splat(0.398_942_3)), power, below))]
        });
    }
}

step! {
    /// Divides vectors of `size` numbers by their lengths.
    unit as Unit(x: &'a [f32], size: usize, out: &'a mut [f32]) -> (), |s| {
        for (x, out) in x.chunks_exact(size.max(1)).zip(out.chunks_exact_mut(size.max(1))) {
            let length = fold!(s, (a in x), sum => s.fma(a, a, sum)).sqrt();
            let inverse = s.splat(1.0 / length.max(SHORTEST));
            map!(s, (a in x), (y for out) = [s.mul(a, inverse)]);
        }
    }
}

step! {
    /// Writes the gradient of vectors that were divided by their lengths: (g - y·(g·y)) / length.
    unit_backward as UnitBackward(x: &'a [f32], size: usize, gradient: &'a [f32], out: &'a mut [f32]) -> (), |s| {
        let size = size.max(1);
        let vectors = x.chunks_exact(size).zip(gradient.chunks_exact(size)).zip(out.chunks_exact_mut(size));
        for ((x, gradient), out) in vectors {
            let length = fold!(s, (a in x), sum => s.fma(a, a, sum)).sqrt();
            let inverse = 1.0 / length.max(SHORTEST);
            let along = fold!(s, (a in x, g in gradient), sum => s.fma(a, g, sum));
            // A vector that is too short is divided by a constant.
            let back = if length > SHORTEST { -along * inverse * inverse } else { 0.0 };
            let (inverse, back) = (s.splat(inverse), s.splat(back));
            map!(s, (a in x, g in gradient), (y for out) = [s.mul(inverse, s.fma(a, back, g))]);
        }
    }
}

step! {
    /// Turns x into scale·x + by in place.
    shift as Shift(x: &'a mut [f32], scale: f32, by: &'a [f32]) -> (), |s| {
        let scale = s.splat(scale);
        map!(s, (a in x, b in by), (y for x) = [s.fma(a, scale, b)]);
    }
}

step! {
    /// Returns Σ x·y.
    dot as Dot(x: &'a [f32], y: &'a [f32]) -> f32, |s| fold!(s, (a in x, b in y), sum => s.fma(a, b, sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 101) % 199) as f32 / 50.0 - 2.0).collect()
    }

    fn close(got: &[f32], expected: impl Iterator<Item = f64>, what: &str) {
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            let tolerance = 4e-6 * expected.abs().max(1.0);
            assert!((f64::from(*got) - expected).abs() < tolerance, "{what}, number {i}: {got}, expected {expected}");
        }
    }

    /// Φ(x) by Simpson's rule.
    fn phi(x: f64) -> f64 {
        let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let n = 2000;
        let h = x / f64::from(n);
        let weight = |i: i32| {
            if i == 0 || i == n {
                1.0
            } else if i % 2 == 1 {
                4.0
            } else {
                2.0
            }
        };
        0.5 + (0..=n).map(|i| weight(i) * density(f64::from(i) * h)).sum::<f64>() * h / 3.0
    }

    #[test]
    fn every_form_of_every_step_computes_its_formula_at_any_width() {
        for level in Level::available() {
            for width in [1, 12, 16, 31, 64, 100] {
                let what = format!("{level:?}, {width} wide");
                let [a, b, c] = [1, 2, 3].map(|seed| values(width, seed));
                let [x, y, g] = [&a, &b, &c].map(|x| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
                let mut out = vec![f32::NAN; width];
                let size = width as f64;
                let mean = x.iter().sum::<f64>() / size;
                let inverse = 1.0 / (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / size + 1e-2).sqrt();
                let unit: Vec<f64> = x.iter().map(|x| (x - mean) * inverse).collect();
                level.run(LayerNorm { x: &a, weight: &b, bias: &c, eps: 1e-2, out: &mut out });
                close(&out, (0..width).map(|i| unit[i] * y[i] + g[i]), &what);
                level.run(LayerNormBackward { x: &a, weight: &b, eps: 1e-2, gradient: &c, out: &mut out });
                let plain = (0..width).map(|i| y[i] * g[i]).sum::<f64>() / size;
                let along = (0..width).map(|i| y[i] * g[i] * unit[i]).sum::<f64>() / size;
                // Inverses of up to 10.
                let expected = (0..width).map(|i| inverse * (y[i] * g[i] - plain - unit[i] * along));
                assert!(out.iter().zip(expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4), "{what}");
                out.copy_from_slice(&b);
                level.run(LayerNormWeight { x: &a, eps: 1e-2, gradient: &c, sums: &mut out });
                close(&out, (0..width).map(|i| y[i] + g[i] * unit[i]), &what);

                level.run(Gelu { x: &a, out: &mut out });
                close(&out, x.iter().map(|x| x * phi(*x)), &what);
                level.run(GeluBackward { x: &a, gradient: &c, out: &mut out });
                let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                close(&out, (0..width).map(|i| g[i] * (phi(x[i]) + x[i] * density(x[i]))), &what);

                let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
                level.run(Unit { x: &a, size: width, out: &mut out });
                close(&out, x.iter().map(|x| x / length), &what);
                level.run(UnitBackward { x: &a, size: width, gradient: &c, out: &mut out });
                let along: f64 = x.iter().zip(&g).map(|(x, g)| x * g).sum::<f64>() / length.powi(2);
                close(&out, (0..width).map(|i| (g[i] - x[i] * along) / length), &what);
                level.run(Unit { x: &vec![0.0; width], size: width, out: &mut out });
                assert!(out.iter().all(|x| *x == 0.0), "{what}");

                out.copy_from_slice(&a);
                level.run(Shift { x: &mut out, scale: 0.5, by: &b });
                close(&out, (0..width).map(|i| 0.5 * x[i] + y[i]), &what);
                close(
                    &[level.run(Dot { x: &a, y: &b })],
                    std::iter::once((0..width).map(|i| x[i] * y[i]).sum()),
                    &what,
                );
            }
        }
    }

    #[test]
    fn gelu_is_right_far_from_zero() {
        let x = [-30.0, -12.0, -6.0, -1e-20, 0.0, 6.0, 12.0, 30.0_f32];
        let mut out = [f32::NAN; 8];
        gelu(&x, &mut out);
        close(&out, x.iter().map(|x| if *x > 5.0 { f64::from(*x) } else { 0.0 }), "values");
        gelu_backward(&x, &[1.0; 8], &mut out);
        let slope = |x: &f32| {
            if *x > 5.0 {
                1.0
            } else if x.abs() < 1.0 {
                0.5
            } else {
                0.0
            }
        };
        close(&out, x.iter().map(slope), "slopes");
    }
}
