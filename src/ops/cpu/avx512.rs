//! AVX-512 (F, BW, VL, DQ, VNNI, and BF16 where `BF16` says so): a vector is one register.
//!
//! Values of this type are made in `simd.rs` only, after the CPU was asked: that makes every call below sound.

use std::arch::x86_64::*;

use super::simd::Simd;

/// The form; `BF16` says whether the products of bf16 are there too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512<const BF16: bool>;

// SAFETY of every block below: a value of this type exists on CPUs with these instructions only, and pointers are the
// caller's promise (`Simd`).
impl<const HAS_BF16: bool> Simd for Avx512<HAS_BF16> {
    type F = __m512;
    type I = __m512i;
    const ROWS: usize = 8;
    const INTEGER_ROWS: usize = 4;
    const TILES: usize = 3;
    const BYTE_OFFSET: i32 = 128;
    const BF16: bool = HAS_BF16;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(to, x) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn round(self, x: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }

    #[inline(always)]
    fn power_of_two(self, x: __m512) -> __m512 {
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
        }
    }

    #[inline(always)]
    unsafe fn halves(self, from: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    fn to_float(self, x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    fn nibbles(self, x: __m512i) -> (__m512i, __m512i) {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            (_mm512_and_si512(x, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(x), mask))
        }
    }

    #[inline(always)]
    fn dot_small(self, sum: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, weights, x) }
    }

    #[inline(always)]
    fn dot_bytes(self, sum: __m512i, weights: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, weights, x) }
    }

    /// The sign of one byte moves to the other, since one factor is unsigned.
    #[inline(always)]
    fn dot_signed(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe {
            let zero = _mm512_setzero_si512();
            let b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), zero, b);
            _mm512_dpbusd_epi32(zero, _mm512_abs_epi8(a), b)
        }
    }

    #[inline(always)]
    unsafe fn byte_pairs(self, from: *const i8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    fn dot_words(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(sum, a, b) }
    }

    #[inline(always)]
    fn two_halves(self, a: f32, b: f32) -> __m512 {
        unsafe { _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(a), _mm512_set1_ps(b)) }
    }

    #[inline(always)]
    fn pairs(self, x: __m512i) -> (__m512, __m512) {
        unsafe {
            let second = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)), _mm512_castsi512_ps(second))
        }
    }

    #[inline(always)]
    fn dot_bf16(self, sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        unsafe {
            _mm512_dpbf16_ps(
                sum,
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            )
        }
    }

    #[inline(always)]
    unsafe fn brains(self, from: *const half::bf16) -> __m512 {
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn signed_bytes(self, from: *const i8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn to_bf16(self, from: *const f32, to: *mut u16) {
        unsafe {
            let bits = _mm512_castps_si512(_mm512_loadu_ps(from));
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded)));
        }
    }

    #[inline(always)]
    unsafe fn quantise(self, from: *const f32, to: *mut i8) -> (f32, [i32; 2]) {
        unsafe {
            let (a, b) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
            let unordered = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, b);
            let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
            let inverse = _mm512_set1_ps(if largest > 0.0 { 127.0 / largest } else { 0.0 });
            let (a, b) = (_mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse)));
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(a));
            _mm_storeu_si128(to.add(16).cast(), _mm512_cvtepi32_epi8(b));
            let step = if unordered == 0 { largest / 127.0 } else { f32::NAN };
            (step, [_mm512_reduce_add_epi32(a), _mm512_reduce_add_epi32(b)])
        }
    }

    #[inline(always)]
    unsafe fn transpose(self, from: *const f32, stride: usize, to: *mut f32, width: usize) {
        unsafe {
            let mut rows = [_mm512_setzero_ps(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(from.add(i * stride));
            }
            // Squares of 4 within lanes of 4 numbers, then lanes.
            let mut squares = rows;
            for i in (0..16).step_by(4) {
                let low = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
                let high = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
                let next_low = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + 2], rows[i + 3]));
                let next_high = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + 2], rows[i + 3]));
                squares[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, next_low));
                squares[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, next_low));
                squares[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, next_high));
                squares[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, next_high));
            }
            for i in 0..4 {
                let [a, b, c, d] = [squares[i], squares[i + 4], squares[i + 8], squares[i + 12]];
                let even = [_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d)];
                let odd = [_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d)];
                _mm512_storeu_ps(to.add(i * width), _mm512_shuffle_f32x4::<0x88>(even[0], even[1]));
                _mm512_storeu_ps(to.add((i + 4) * width), _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]));
                _mm512_storeu_ps(to.add((i + 8) * width), _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]));
                _mm512_storeu_ps(to.add((i + 12) * width), _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]));
            }
        }
    }

    #[inline(always)]
    unsafe fn transpose_pairs(self, from: *const u16, to: *mut u16) {
        unsafe {
            // Two inputs of two outputs change places: a0 a1 b0 b1 becomes a0 b0 a1 b1. Then 8 x 8 of such fours.
            let order = _mm512_set4_epi32(0x0f0e_0b0a, 0x0d0c_0908, 0x0706_0302, 0x0504_0100);
            let mut lines = [_mm512_setzero_si512(); 8];
            for (i, line) in lines.iter_mut().enumerate() {
                *line = _mm512_shuffle_epi8(_mm512_loadu_si512(from.add(32 * i).cast()), order);
            }
            let mut pairs = lines;
            for i in (0..8).step_by(2) {
                pairs[i] = _mm512_unpacklo_epi64(lines[i], lines[i + 1]);
                pairs[i + 1] = _mm512_unpackhi_epi64(lines[i], lines[i + 1]);
            }
            for i in 0..2 {
                let [a, b, c, d] = [pairs[i], pairs[i + 2], pairs[i + 4], pairs[i + 6]];
                let even = [_mm512_shuffle_i64x2::<0x88>(a, b), _mm512_shuffle_i64x2::<0x88>(c, d)];
                let odd = [_mm512_shuffle_i64x2::<0xdd>(a, b), _mm512_shuffle_i64x2::<0xdd>(c, d)];
                let turned = [
                    _mm512_shuffle_i64x2::<0x88>(even[0], even[1]),
                    _mm512_shuffle_i64x2::<0x88>(odd[0], odd[1]),
                    _mm512_shuffle_i64x2::<0xdd>(even[0], even[1]),
                    _mm512_shuffle_i64x2::<0xdd>(odd[0], odd[1]),
                ];
                for (pair, line) in turned.into_iter().enumerate() {
                    _mm512_storeu_si512(to.add(32 * (2 * pair + i)).cast(), line);
                }
            }
        }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }

    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        unsafe { _mm512_reduce_add_ps(x) }
    }

    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(x) }
    }
}
