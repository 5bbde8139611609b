//! What stands between the products: norms, rotations, gates, softmax, each in one pass over its rows.
//!
//! On one thread; who has many rows divides them. Knows no weights but a norm's. Widths need not be multiples of 16.
//! Shapes stand at each function.

use super::simd::{LANES, Level, Simd, Work, exp};

/// Reads up to 16 numbers, `fill` behind them.
///
/// # Safety
/// `count` numbers must stand there.
#[inline(always)]
unsafe fn load_some<S: Simd>(s: S, from: *const f32, count: usize, fill: f32) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        if count >= LANES {
            return s.load(from);
        }
        let mut some = [fill; LANES];
        std::ptr::copy_nonoverlapping(from, some.as_mut_ptr(), count);
        s.load(some.as_ptr())
    }
}

/// Writes up to 16 numbers.
///
/// # Safety
/// There must be room for `count` numbers.
#[inline(always)]
unsafe fn store_some<S: Simd>(s: S, to: *mut f32, count: usize, x: S::F) {
    // SAFETY: the caller's promise.
    unsafe {
        if count >= LANES {
            return s.store(to, x);
        }
        let mut some = [0.0; LANES];
        s.store(some.as_mut_ptr(), x);
        std::ptr::copy_nonoverlapping(some.as_ptr(), to, count);
    }
}

/// Computes 16 numbers at a time from slices of one length into others. A macro: what a closure computes may end up in a
/// function of its own, without the form's instructions.
macro_rules! map {
    ($s:ident, ($($x:ident in $from:ident),+), ($($result:ident for $to:ident),+) = $body:expr) => {{
        let count = usize::MAX$(.min($from.len()))+$(.min($to.len()))+;
        for at in (0..count).step_by(LANES) {
            let left = count - at;
            // SAFETY: every slice has at least `count` numbers.
            unsafe {
                $(let $x = load_some($s, $from.as_ptr().add(at), left, 0.0);)+
                let [$($result),+] = $body;
                $(store_some($s, $to.as_mut_ptr().add(at), left, $result);)+
            }
        }
    }};
}

/// Adds up what is computed from 16 numbers at a time of slices of one length.
macro_rules! fold {
    ($s:ident, ($($x:ident in $from:ident),+), $sum:ident => $body:expr) => {{
        let count = usize::MAX$(.min($from.len()))+;
        let mut $sum = $s.zero();
        for at in (0..count).step_by(LANES) {
            let left = count - at;
            // SAFETY: every slice has at least `count` numbers.
            unsafe {
                $(let $x = load_some($s, $from.as_ptr().add(at), left, 0.0);)+
                $sum = $body;
            }
        }
        $s.sum($sum)
    }};
}

/// Declares a step: a [`Work`] with its fields, and the function that runs it at the best level.
macro_rules! step {
    ($(#[$doc:meta])* $name:ident as $work:ident($($field:ident: $kind:ty),+) -> $output:ty, |$s:ident| $body:expr) => {
        struct $work<'a> {
            $($field: $kind,)+
        }

        impl<'a> Work for $work<'a> {
            type Output = $output;

            #[inline(always)]
            fn run<S: Simd>(self, $s: S) -> $output {
                let Self { $($field),+ } = self;
                $body
            }
        }

        $(#[$doc])*
        pub fn $name<'a>($($field: $kind),+) -> $output {
            Level::best().run($work { $($field),+ })
        }
    };
}

mod layers;
mod search;

pub use layers::{
    dot, gelu, gelu_backward, layer_norm, layer_norm_backward, layer_norm_weight, shift, unit, unit_backward,
};
pub use search::{first_fault, first_largest, sum_of_powers};

step! {
    /// Writes x / √(mean(x²) + eps) · weight; `x` and `out` are `[rows, hidden]`, `weight` is `[hidden]`.
    rms_norm as RmsNorm(x: &'a [f32], weight: &'a [f32], eps: f32, out: &'a mut [f32]) -> (), |s| {
        let width = weight.len().max(1);
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let squares = fold!(s, (a in x), sum => s.fma(a, a, sum));
            let inverse = s.splat(1.0 / (squares / width as f32 + eps).sqrt());
            map!(s, (a in x, w in weight), (y for out) = [s.mul(s.mul(a, inverse), w)]);
        }
    }
}

step! {
    /// Writes the gradient of `x` of one row: inverse·(w·g - x̂·mean(w·g·x̂)).
    rms_norm_backward as RmsNormBackward(
        x: &'a [f32], weight: &'a [f32], eps: f32, gradient: &'a [f32], out: &'a mut [f32]
    ) -> (), |s| {
        let squares = fold!(s, (a in x), sum => s.fma(a, a, sum));
        let along = fold!(s, (a in x, w in weight, g in gradient), sum => s.fma(s.mul(w, g), a, sum));
        let size = x.len().max(1) as f32;
        let inverse = 1.0 / (squares / size + eps).sqrt();
        let (back, inverse) = (s.splat(-along * inverse * inverse / size), s.splat(inverse));
        map!(s, (a in x, w in weight, g in gradient), (y for out) = [s.mul(inverse, s.fma(a, back, s.mul(w, g)))]);
    }
}

step! {
    /// Turns pairs (i, i + head_dim/2) of all heads of one row by the angles `[head_dim/2]`, in place; back with a
    /// `direction` of -1.
    rope as Rope(x: &'a mut [f32], cos: &'a [f32], sin: &'a [f32], direction: f32) -> (), |s| {
        let half = cos.len().min(sin.len()).max(1);
        let direction = s.splat(direction);
        for head in x.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            let (a, b) = (first.as_mut_ptr(), second.as_mut_ptr());
            for at in (0..half).step_by(LANES) {
                let count = half - at;
                // SAFETY: both halves and both angles have `half` numbers.
                unsafe {
                    let x = load_some(s, a.add(at), count, 0.0);
                    let y = load_some(s, b.add(at), count, 0.0);
                    let cos = load_some(s, cos.as_ptr().add(at), count, 0.0);
                    let sin = s.mul(direction, load_some(s, sin.as_ptr().add(at), count, 0.0));
                    store_some(s, a.add(at), count, s.sub(s.mul(x, cos), s.mul(y, sin)));
                    store_some(s, b.add(at), count, s.add(s.mul(y, cos), s.mul(x, sin)));
                }
            }
        }
    }
}

#[inline(always)]
fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.zero(), x))))
}

step! {
    /// Writes gate·σ(gate)·up.
    silu_mul as SiluMul(gate: &'a [f32], up: &'a [f32], out: &'a mut [f32]) -> (), |s| {
        map!(s, (g in gate, u in up), (y for out) = [s.mul(s.mul(g, sigmoid(s, g)), u)]);
    }
}

step! {
    /// Writes the gradients of gate and up; σ' of g·σ(g) is σ + σ·g·(1-σ).
    silu_mul_backward as SiluMulBackward(
        gate: &'a [f32], up: &'a [f32], gradient: &'a [f32], for_gate: &'a mut [f32], for_up: &'a mut [f32]
    ) -> (), |s| {
        map!(s, (g in gate, u in up, d in gradient), (a for for_gate, b for for_up) = {
            let sigma = sigmoid(s, g);
            let silu = s.mul(g, sigma);
            let slope = s.fma(sigma, s.sub(s.splat(1.0), silu), silu);
            [s.mul(s.mul(d, u), slope), s.mul(d, silu)]
        });
    }
}

step! {
    /// Turns x into e^(scale·x - max(scale·x)) in place; returns max(scale·x) and the sum.
    powers as Powers(x: &'a mut [f32], scale: f32) -> (f32, f32), |s| {
        let (len, scale) = (x.len(), s.splat(scale));
        let x = x.as_mut_ptr();
        let mut largest = s.splat(f32::NEG_INFINITY);
        for at in (0..len).step_by(LANES) {
            // SAFETY: `len` numbers stand there.
            let x = unsafe { load_some(s, x.add(at), len - at, f32::NEG_INFINITY) };
            largest = s.max(largest, s.mul(x, scale));
        }
        let max = s.largest(largest);
        let (shift, mut sum) = (s.splat(-max), s.zero());
        for at in (0..len).step_by(LANES) {
            let count = len - at;
            // SAFETY: as above.
            unsafe {
                let power = exp(s, s.add(s.mul(load_some(s, x.add(at), count, f32::NEG_INFINITY), scale), shift));
                store_some(s, x.add(at), count, power);
                // What was filled up counts nothing.
                sum = s.add(sum, if count < LANES { load_some(s, x.add(at), count, 0.0) } else { power });
            }
        }
        (max, s.sum(sum))
    }
}

step! {
    /// Writes p·(g - Σ p·g)·scale over the gradients `g`: what a softmax hands back.
    softmax_backward as SoftmaxBackward(shares: &'a [f32], gradient: &'a [f32], scale: f32, out: &'a mut [f32]) -> (), |s| {
        let along = s.splat(fold!(s, (p in shares, g in gradient), sum => s.fma(p, g, sum)));
        let scale = s.splat(scale);
        map!(s, (p in shares, g in gradient), (y for out) = [s.mul(s.mul(p, s.sub(g, along)), scale)]);
    }
}

step! {
    /// Multiplies all numbers.
    scale as Scale(x: &'a mut [f32], factor: f32) -> (), |s| {
        let (len, factor) = (x.len(), s.splat(factor));
        let x = x.as_mut_ptr();
        for at in (0..len).step_by(LANES) {
            // SAFETY: `len` numbers stand there.
            unsafe { store_some(s, x.add(at), len - at, s.mul(load_some(s, x.add(at), len - at, 0.0), factor)) };
        }
    }
}

step! {
    /// Adds `y` to `x`.
    add as Add(x: &'a mut [f32], y: &'a [f32]) -> (), |s| {
        let len = x.len().min(y.len());
        let (x, y) = (x.as_mut_ptr(), y.as_ptr());
        for at in (0..len).step_by(LANES) {
            // SAFETY: `len` numbers stand there.
            unsafe {
                let sum = s.add(load_some(s, x.add(at), len - at, 0.0), load_some(s, y.add(at), len - at, 0.0));
                store_some(s, x.add(at), len - at, sum);
            }
        }
    }
}

step! {
    /// Returns the sum.
    sum as Sum(x: &'a [f32]) -> f32, |s| fold!(s, (a in x), sum => s.add(sum, a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 101) % 199) as f32 / 50.0 - 2.0).collect()
    }

    fn close(got: &[f32], expected: impl Iterator<Item = f64>, what: &str) {
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            let tolerance = 2e-6 * expected.abs().max(1.0);
            assert!((f64::from(*got) - expected).abs() < tolerance, "{what}, number {i}: {got}, expected {expected}");
        }
    }

    #[test]
    fn every_form_of_every_step_computes_its_formula_at_any_width() {
        for level in Level::available() {
            for width in [1, 15, 16, 31, 64, 100] {
                let what = format!("{level:?}, {width} wide");
                let [a, b, c] = [1, 2, 3].map(|seed| values(width, seed));
                let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                let [x, y, g] = [wide(&a), wide(&b), wide(&c)];
                let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
                let [mut first, mut second] = [(); 2].map(|()| vec![f32::NAN; width]);

                level.run(SiluMul { gate: &a, up: &b, out: &mut first });
                close(&first, x.iter().zip(&y).map(|(x, y)| x * sigma(*x) * y), &what);
                let (for_gate, for_up) = (&mut first[..], &mut second[..]);
                level.run(SiluMulBackward { gate: &a, up: &b, gradient: &c, for_gate, for_up });
                let slope = |x: f64| sigma(x) + x * sigma(x) * (1.0 - sigma(x));
                close(&first, (0..width).map(|i| g[i] * y[i] * slope(x[i])), &what);
                close(&second, (0..width).map(|i| g[i] * x[i] * sigma(x[i])), &what);

                let inverse = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-5).sqrt();
                level.run(RmsNorm { x: &a, weight: &b, eps: 1e-5, out: &mut first });
                close(&first, (0..width).map(|i| x[i] * inverse * y[i]), &what);
                level.run(RmsNormBackward { x: &a, weight: &b, eps: 1e-5, gradient: &c, out: &mut first });
                let along = (0..width).map(|i| y[i] * g[i] * x[i]).sum::<f64>() * inverse.powi(2) / width as f64;
                close(&first, (0..width).map(|i| inverse * (y[i] * g[i] - x[i] * along)), &what);

                first.copy_from_slice(&a);
                let (max, sum) = level.run(Powers { x: &mut first, scale: 0.5 });
                let largest = x.iter().fold(f64::MIN, |max, x| max.max(0.5 * x));
                close(&first, x.iter().map(|x| (0.5 * x - largest).exp()), &what);
                close(&[max, sum], [largest, x.iter().map(|x| (0.5 * x - largest).exp()).sum()].into_iter(), &what);
                level.run(SoftmaxBackward { shares: &a, gradient: &c, scale: 0.5, out: &mut second });
                let along: f64 = x.iter().zip(&g).map(|(x, g)| x * g).sum();
                // The difference of a sum of 100 products of size 4.
                let expected: Vec<f64> = (0..width).map(|i| 0.5 * x[i] * (g[i] - along)).collect();
                assert!(second.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-3), "{what}");
                first.copy_from_slice(&a);
                level.run(Add { x: &mut first, y: &b });
                level.run(Scale { x: &mut first, factor: 3.0 });
                close(&first, (0..width).map(|i| 3.0 * (x[i] + y[i])), &what);
                close(&[level.run(Sum { x: &a })], std::iter::once(x.iter().sum()), &what);

                let mut heads = [a.clone(), b.clone(), c.clone(), a.clone()].concat();
                level.run(Rope { x: &mut heads, cos: &b, sin: &c, direction: -1.0 });
                close(&heads[..width], (0..width).map(|i| x[i] * y[i] + y[i] * g[i]), &what);
                close(&heads[3 * width..], (0..width).map(|i| x[i] * y[i] - g[i] * g[i]), &what);
            }
        }
    }
}
