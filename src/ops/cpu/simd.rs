//! The operations that kernels are written in, on vectors of 16 numbers, and the choice among their forms.
//!
//! A kernel is a [`Work`], generic over [`Simd`]; [`Level::run`] compiles it once a form and picks one at run time.
//! Knows no layout. Whoever holds a value that implements [`Simd`] may use its instructions: that is checked where the
//! value is made, here.

use std::sync::LazyLock;

#[cfg(target_arch = "x86_64")]
use super::amx;
#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512;
use super::plain::Plain;

/// Rows that a tile of AMX holds.
pub(super) const TILE_ROWS: usize = 16;
/// Inputs that it holds, in bf16.
pub(super) const TILE_INPUTS: usize = 32;

/// Numbers of a vector, and output rows of a tile.
pub(super) const LANES: usize = 16;

/// Vectors of 16 f32, and of 16 groups of 4 bytes.
///
/// # Safety
/// Functions marked unsafe read or write the numbers behind a pointer that they name, 16 where they name none; it needs no
/// alignment.
pub(in crate::ops) trait Simd: Copy {
    /// 16 f32.
    type F: Copy;
    /// 16 i32, or 64 bytes.
    type I: Copy;
    /// Most rows that a tile product of floats takes at a time.
    const ROWS: usize;
    /// Most rows that a tile product of integers takes at a time.
    const INTEGER_ROWS: usize;
    /// Tiles that a product takes at a time: 3 or 1.
    const TILES: usize;
    /// What [`Self::dot_bytes`] adds to a weight.
    const BYTE_OFFSET: i32;
    /// Whether [`Self::dot_bf16`] may be used.
    const BF16: bool;

    fn splat(self, x: f32) -> Self::F;
    unsafe fn load(self, from: *const f32) -> Self::F;
    unsafe fn store(self, to: *mut f32, x: Self::F);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// a·b + c.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Nearest whole numbers.
    fn round(self, x: Self::F) -> Self::F;
    /// 2 to the power of whole numbers from -126 to 127.
    fn power_of_two(self, x: Self::F) -> Self::F;
    /// 16 f16 as f32.
    unsafe fn halves(self, from: *const u8) -> Self::F;
    /// 16 unsigned bytes as f32.
    unsafe fn bytes(self, from: *const u8) -> Self::F;
    fn splat_i32(self, x: i32) -> Self::I;
    /// 64 bytes.
    unsafe fn load_bytes(self, from: *const u8) -> Self::I;
    fn to_float(self, x: Self::I) -> Self::F;
    /// The lower and the upper half of each byte.
    fn nibbles(self, x: Self::I) -> (Self::I, Self::I);
    /// Adds the products of 4 weights from 0 to 127 and 4 signed bytes to each i32.
    fn dot_small(self, sum: Self::I, weights: Self::I, x: Self::I) -> Self::I;
    /// Adds the products of 4 weights, stored with 128 added, and 4 bytes from -127 to 127 to each i32; a form may leave
    /// [`Self::BYTE_OFFSET`] in the weights.
    fn dot_bytes(self, sum: Self::I, weights: Self::I, x: Self::I) -> Self::I;
    /// The sums of the products of 4 bytes from -127 to 127 each.
    fn dot_signed(self, a: Self::I, b: Self::I) -> Self::I;
    /// 32 signed bytes as pairs of words of 16 bits.
    unsafe fn byte_pairs(self, from: *const i8) -> Self::I;
    /// Adds the products of pairs of words to each i32.
    fn dot_words(self, sum: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// 8 times `a`, then 8 times `b`.
    fn two_halves(self, a: f32, b: f32) -> Self::F;
    /// The first and the second of 16 pairs of bf16 as f32.
    fn pairs(self, x: Self::I) -> (Self::F, Self::F);
    /// Adds the products of 16 pairs of bf16; only with [`Self::BF16`].
    fn dot_bf16(self, sum: Self::F, a: Self::I, b: Self::I) -> Self::F;
    /// 16 bf16 as f32.
    unsafe fn brains(self, from: *const half::bf16) -> Self::F;
    /// 16 signed bytes as f32.
    unsafe fn signed_bytes(self, from: *const i8) -> Self::F;
    /// Rounds 16 f32 to bf16, nearest even.
    unsafe fn to_bf16(self, from: *const f32, to: *mut u16);
    /// Turns 32 f32 into bytes from -127 to 127; returns what one step is worth (NaN where
    /// one of them is), and the sums of the halves.
    unsafe fn quantise(self, from: *const f32, to: *mut i8) -> (f32, [i32; 2]);
    fn sum(self, x: Self::F) -> f32;
    fn largest(self, x: Self::F) -> f32;

    /// Writes the transpose of 16 rows of 16 numbers: rows begin `stride` apart, those of the result `width` apart.
    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, stride: usize, to: *mut f32, width: usize) {
        for row in 0..LANES {
            for column in 0..LANES {
                // SAFETY: the caller's promise.
                unsafe { *to.add(column * width + row) = *from.add(row * stride + column) };
            }
        }
    }

    /// Turns 8 lines of 16 outputs with 2 inputs each, all of 16 bits, into 8 lines of 16 inputs with 2 outputs each.
    #[inline(always)]
    unsafe fn transpose_pairs(self, from: *const u16, to: *mut u16) {
        for input in 0..LANES {
            for output in 0..LANES {
                // SAFETY: the caller's promise.
                unsafe {
                    let number = *from.add((input / 2 * LANES + output) * 2 + input % 2);
                    *to.add((output / 2 * LANES + input) * 2 + output % 2) = number;
                }
            }
        }
    }

    /// Asks for the line at an address, which need not exist, into the second cache.
    fn prefetch(self, _at: *const u8) {}

    fn zero(self) -> Self::F {
        self.splat(0.0)
    }
}

/// A number that is read as f32.
pub(in crate::ops) trait Number: Copy + Send + Sync {
    const ZERO: Self;

    /// 16 of them.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F;

    fn wide(self) -> f32;
}

impl Number for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load(from) }
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Number for half::bf16 {
    const ZERO: Self = Self::ZERO;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.brains(from) }
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        self.to_f32()
    }
}

impl Number for i8 {
    const ZERO: Self = 0;

    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.signed_bytes(from) }
    }

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from(self)
    }
}

/// Something to compute with whichever form.
pub(super) trait Work {
    /// What comes of it.
    type Output;
    /// Whether it has a use for the products of bf16; what has none is not compiled for them.
    const BF16: bool = false;

    /// Computes; implementations are `#[inline(always)]`, so that the form's instructions are used throughout.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A set of vector instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Level {
    /// Whatever every CPU has.
    Plain,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// The same with BF16.
    Avx512Bf16,
    /// AVX-512 as above without BF16, and AMX for what is laid out in its tiles.
    Amx,
}

impl Level {
    /// All that this CPU has, best first.
    pub(in crate::ops) fn available() -> impl Iterator<Item = Self> {
        let all = [Self::Amx, Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Plain];
        all.into_iter().filter(|level| level.is_available())
    }

    /// Returns the best that this CPU has; looked for once, since short steps ask again and again.
    pub(in crate::ops) fn best() -> Self {
        static BEST: LazyLock<Level> = LazyLock::new(|| Level::available().next().unwrap_or(Level::Plain));
        *BEST
    }

    /// Returns whether rows of `inputs` are rounded to bf16 for weights of bf16.
    pub(super) fn narrows(self, inputs: usize) -> bool {
        self == Self::Avx512Bf16 || self == Self::Amx && inputs.is_multiple_of(TILE_INPUTS)
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx512 = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni")
                && Self::Avx2.is_available()
        };
        match self {
            Self::Plain => true,
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            Self::Avx512 => avx512(),
            Self::Avx512Bf16 => avx512() && is_x86_feature_detected!("avx512bf16") && !is_intel(),
            Self::Amx => avx512() && amx::is_available(),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Self::Plain
    }

    /// Computes `work` with the instructions of this level, or with plain ones where the CPU lacks them.
    pub(super) fn run<W: Work>(self, work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2,fma,f16c")]
            fn with_avx2<W: Work>(work: W) -> W::Output {
                work.run(Avx2)
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            fn with_avx512<W: Work>(work: W) -> W::Output {
                work.run(Avx512::<false>)
            }
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
            fn with_bf16<W: Work>(work: W) -> W::Output {
                work.run(Avx512::<true>)
            }
            if self == Self::best() || self.is_available() {
                // SAFETY: the instructions were found to be there.
                match self {
                    Self::Plain => {}
                    Self::Avx2 => return unsafe { with_avx2(work) },
                    Self::Avx512 | Self::Amx => return unsafe { with_avx512(work) },
                    Self::Avx512Bf16 => {
                        if const { W::BF16 } {
                            return unsafe { with_bf16(work) };
                        }
                        return unsafe { with_avx512(work) };
                    }
                }
            }
        }
        work.run(Plain)
    }
}

/// Returns whether Intel made this CPU; asked once, because a virtual machine takes microseconds for it. Intel's AVX-512
/// products of bf16 have a quarter of the throughput of those of f32 (seen on Sapphire Rapids: 44 against 150 GFLOP/s a
/// core), where AMD's have twice as much: so bf16 weights are widened there.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    static ANSWER: LazyLock<bool> = LazyLock::new(|| std::arch::x86_64::__cpuid(0).ebx == u32::from_le_bytes(*b"Genu"));
    *ANSWER
}

/// Returns eˣ, to about 2 units in the last place; 0 below -87, the largest power at 88, and NaN of NaN.
#[inline(always)]
pub(super) fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    // The second is taken where they cannot be compared.
    let x = s.min(s.splat(88.0), s.max(s.splat(-87.0), x));
    let n = s.round(s.mul(x, s.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts (Cody and Waite 1980), then the series of eʳ for |r| ≤ ln 2 / 2.
    let r = s.fma(n, s.splat(-0.693_359_4), x);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = s.fma(p, r, s.splat(c));
    }
    s.mul(p, s.power_of_two(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_transposes() {
        struct Transposed<'a>(&'a [f32], &'a [u16]);

        impl Work for Transposed<'_> {
            type Output = (Vec<f32>, Vec<u16>);

            fn run<S: Simd>(self, s: S) -> Self::Output {
                let (mut numbers, mut pairs) = (vec![0.0; LANES * 20], vec![0; LANES * LANES]);
                // SAFETY: 16 rows of 16 stand there, 17 and 20 apart, and 8 lines of 32.
                unsafe {
                    s.transpose(self.0.as_ptr(), 17, numbers.as_mut_ptr(), 20);
                    s.transpose_pairs(self.1.as_ptr(), pairs.as_mut_ptr());
                }
                (numbers, pairs)
            }
        }

        let numbers: Vec<f32> = (0..LANES * 17).map(|i| i as f32).collect();
        let pairs: Vec<u16> = (0..(LANES * LANES) as u16).collect();
        for level in Level::available() {
            let (turned, turned_pairs) = level.run(Transposed(&numbers, &pairs));
            for i in 0..LANES {
                for j in 0..LANES {
                    assert_eq!(turned[i * 20 + j], numbers[j * 17 + i], "{level:?}");
                    let place = |pair: usize, inside: usize, half: usize| (pair * LANES + inside) * 2 + half;
                    let (to, from) = (place(j / 2, i, j % 2), place(i / 2, j, i % 2));
                    assert_eq!(turned_pairs[to], pairs[from], "{level:?}");
                }
            }
        }
    }
}
