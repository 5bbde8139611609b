//! AVX2 with FMA and F16C: a vector is two registers.
//!
//! Values of this type are made in `simd.rs` only, after the CPU was asked: that makes every call below sound.

use std::arch::x86_64::*;

use super::simd::Simd;

/// The form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2;

type F = [__m256; 2];
type I = [__m256i; 2];

/// Applies an operation to both halves.
macro_rules! both {
    ($operation:ident, $($x:expr),+) => { [$operation($($x[0]),+), $operation($($x[1]),+)] };
}

// SAFETY of every block below: a value of this type exists on CPUs with these instructions only, and pointers are the
// caller's promise (`Simd`).
impl Simd for Avx2 {
    type F = F;
    type I = I;
    const ROWS: usize = 4;
    const INTEGER_ROWS: usize = 2;
    const TILES: usize = 1;
    const BYTE_OFFSET: i32 = 0;
    const BF16: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> F {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: F) {
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        unsafe { both!(_mm256_add_ps, a, b) }
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        unsafe { both!(_mm256_sub_ps, a, b) }
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        unsafe { both!(_mm256_mul_ps, a, b) }
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        unsafe { both!(_mm256_div_ps, a, b) }
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        unsafe { both!(_mm256_max_ps, a, b) }
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        unsafe { both!(_mm256_min_ps, a, b) }
    }

    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        unsafe { both!(_mm256_fmadd_ps, a, b, c) }
    }

    #[inline(always)]
    fn round(self, x: F) -> F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { [_mm256_round_ps::<NEAREST>(x[0]), _mm256_round_ps::<NEAREST>(x[1])] }
    }

    #[inline(always)]
    fn power_of_two(self, x: F) -> F {
        unsafe {
            let bias = _mm256_set1_epi32(127);
            let whole: I = both!(_mm256_cvtps_epi32, x);
            let biased = [_mm256_add_epi32(whole[0], bias), _mm256_add_epi32(whole[1], bias)];
            let bits = [_mm256_slli_epi32::<23>(biased[0]), _mm256_slli_epi32::<23>(biased[1])];
            both!(_mm256_castsi256_ps, bits)
        }
    }

    #[inline(always)]
    unsafe fn halves(self, from: *const u8) -> F {
        unsafe {
            [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast()))]
        }
    }

    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> F {
        unsafe {
            let first = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()));
            let second = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast()));
            [_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(second)]
        }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> I {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    #[inline(always)]
    fn to_float(self, x: I) -> F {
        unsafe { both!(_mm256_cvtepi32_ps, x) }
    }

    #[inline(always)]
    fn nibbles(self, x: I) -> (I, I) {
        unsafe {
            let mask = [_mm256_set1_epi8(15); 2];
            let upper = [_mm256_srli_epi16::<4>(x[0]), _mm256_srli_epi16::<4>(x[1])];
            (both!(_mm256_and_si256, x, mask), both!(_mm256_and_si256, upper, mask))
        }
    }

    /// Pairs of products fit i16: 2·127·127 is below 2¹⁵.
    #[inline(always)]
    fn dot_small(self, sum: I, weights: I, x: I) -> I {
        unsafe {
            let ones = [_mm256_set1_epi16(1); 2];
            let pairs = both!(_mm256_maddubs_epi16, weights, x);
            let fours = both!(_mm256_madd_epi16, pairs, ones);
            both!(_mm256_add_epi32, sum, fours)
        }
    }

    /// The sign of a weight moves to the other factor: 2·128·127 is below 2¹⁵.
    #[inline(always)]
    fn dot_bytes(self, sum: I, weights: I, x: I) -> I {
        unsafe {
            let top = _mm256_set1_epi8(-128);
            let signed = [_mm256_xor_si256(weights[0], top), _mm256_xor_si256(weights[1], top)];
            self.dot_small(sum, both!(_mm256_abs_epi8, signed), both!(_mm256_sign_epi8, x, signed))
        }
    }

    #[inline(always)]
    fn dot_signed(self, a: I, b: I) -> I {
        unsafe { self.dot_small([_mm256_setzero_si256(); 2], both!(_mm256_abs_epi8, a), both!(_mm256_sign_epi8, b, a)) }
    }

    #[inline(always)]
    unsafe fn byte_pairs(self, from: *const i8) -> I {
        unsafe {
            let bytes = [_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast())];
            bytes.map(|bytes| _mm256_cvtepi8_epi16(bytes))
        }
    }

    #[inline(always)]
    fn dot_words(self, sum: I, a: I, b: I) -> I {
        unsafe { both!(_mm256_add_epi32, sum, both!(_mm256_madd_epi16, a, b)) }
    }

    #[inline(always)]
    fn two_halves(self, a: f32, b: f32) -> F {
        unsafe { [_mm256_set1_ps(a), _mm256_set1_ps(b)] }
    }

    #[inline(always)]
    fn pairs(self, x: I) -> (F, F) {
        unsafe {
            let mask = [_mm256_set1_epi32(0xffff_0000_u32.cast_signed()); 2];
            let first = [_mm256_slli_epi32::<16>(x[0]), _mm256_slli_epi32::<16>(x[1])];
            let second = both!(_mm256_and_si256, x, mask);
            (both!(_mm256_castsi256_ps, first), both!(_mm256_castsi256_ps, second))
        }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: F, a: I, b: I) -> F {
        let (a, b) = (self.pairs(a), self.pairs(b));
        self.fma(a.1, b.1, self.fma(a.0, b.0, sum))
    }

    #[inline(always)]
    unsafe fn brains(self, from: *const half::bf16) -> F {
        unsafe {
            let bits = [_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(8).cast())];
            bits.map(|bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))))
        }
    }

    #[inline(always)]
    unsafe fn signed_bytes(self, from: *const i8) -> F {
        unsafe {
            let bytes = [_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast())];
            bytes.map(|bytes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)))
        }
    }

    #[inline(always)]
    unsafe fn to_bf16(self, from: *const f32, to: *mut u16) {
        unsafe { super::plain::Plain.to_bf16(from, to) }
    }

    #[inline(always)]
    unsafe fn quantise(self, from: *const f32, to: *mut i8) -> (f32, [i32; 2]) {
        unsafe {
            let sign = [_mm256_set1_ps(-0.0); 2];
            let (a, b) = (self.load(from), self.load(from.add(16)));
            let largest = self.largest(self.max(both!(_mm256_andnot_ps, sign, a), both!(_mm256_andnot_ps, sign, b)));
            let unordered =
                _mm256_or_ps(_mm256_cmp_ps::<_CMP_UNORD_Q>(a[0], b[0]), _mm256_cmp_ps::<_CMP_UNORD_Q>(a[1], b[1]));
            let inverse = self.splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
            let (a, b) = (self.mul(a, inverse), self.mul(b, inverse));
            let (a, b): (I, I) = (both!(_mm256_cvtps_epi32, a), both!(_mm256_cvtps_epi32, b));
            let mut whole = [0_i32; 32];
            for (i, part) in [a[0], a[1], b[0], b[1]].into_iter().enumerate() {
                _mm256_storeu_si256(whole.as_mut_ptr().add(8 * i).cast(), part);
            }
            for (i, x) in whole.iter().enumerate() {
                *to.add(i) = *x as i8;
            }
            let (first, second) = whole.split_at(16);
            let step = if _mm256_movemask_ps(unordered) == 0 { largest / 127.0 } else { f32::NAN };
            (step, [first.iter().sum(), second.iter().sum()])
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }

    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        unsafe {
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }

    #[inline(always)]
    fn largest(self, x: F) -> f32 {
        unsafe {
            let x = _mm256_max_ps(x[0], x[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
    }
}
