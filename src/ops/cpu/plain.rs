//! Plain Rust, for CPUs without the instructions of the other forms: what those are tested against.

use std::array::from_fn;

use super::simd::{LANES, Simd};

/// The form.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plain;

type F = [f32; LANES];
type I = [i32; LANES];

fn dot(sum: I, weights: I, x: I, weight: impl Fn(u8) -> i32) -> I {
    from_fn(|i| {
        let (weights, x) = (weights[i].to_le_bytes(), x[i].to_le_bytes());
        let products = weights.iter().zip(x).map(|(w, x)| weight(*w) * i32::from(x.cast_signed()));
        sum[i] + products.sum::<i32>()
    })
}

// SAFETY of every block below: pointers are the caller's promise (`Simd`).
impl Simd for Plain {
    type F = F;
    type I = I;
    const ROWS: usize = 2;
    const INTEGER_ROWS: usize = 1;
    const TILES: usize = 1;
    const BYTE_OFFSET: i32 = 0;
    const BF16: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> F {
        unsafe { from.cast::<F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, x: F) {
        unsafe { to.cast::<F>().write_unaligned(x) }
    }

    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    /// In two roundings: in one it would be a call of the C library for each number.
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn round(self, x: F) -> F {
        from_fn(|i| x[i].round_ties_even())
    }

    #[inline(always)]
    fn power_of_two(self, x: F) -> F {
        from_fn(|i| f32::from_bits(((x[i] as i32 + 127) << 23).cast_unsigned()))
    }

    #[inline(always)]
    unsafe fn halves(self, from: *const u8) -> F {
        let bits = unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        from_fn(|i| half::f16::from_le_bytes(bits[i]).to_f32())
    }

    #[inline(always)]
    unsafe fn bytes(self, from: *const u8) -> F {
        let bytes = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        from_fn(|i| f32::from(bytes[i]))
    }

    #[inline(always)]
    fn splat_i32(self, x: i32) -> I {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load_bytes(self, from: *const u8) -> I {
        let bytes = unsafe { from.cast::<[[u8; 4]; LANES]>().read_unaligned() };
        from_fn(|i| i32::from_le_bytes(bytes[i]))
    }

    #[inline(always)]
    fn to_float(self, x: I) -> F {
        from_fn(|i| x[i] as f32)
    }

    #[inline(always)]
    fn nibbles(self, x: I) -> (I, I) {
        (from_fn(|i| x[i] & 0x0f0f_0f0f), from_fn(|i| (x[i] >> 4) & 0x0f0f_0f0f))
    }

    #[inline(always)]
    fn dot_small(self, sum: I, weights: I, x: I) -> I {
        dot(sum, weights, x, i32::from)
    }

    #[inline(always)]
    fn dot_bytes(self, sum: I, weights: I, x: I) -> I {
        dot(sum, weights, x, |weight| i32::from(weight) - 128)
    }

    #[inline(always)]
    fn dot_signed(self, a: I, b: I) -> I {
        dot([0; LANES], a, b, |byte| i32::from(byte.cast_signed()))
    }

    #[inline(always)]
    unsafe fn byte_pairs(self, from: *const i8) -> I {
        let bytes = unsafe { from.cast::<[[i8; 2]; LANES]>().read_unaligned() };
        let word = |byte: i8| u32::from(i16::from(byte).cast_unsigned());
        from_fn(|i| (word(bytes[i][0]) | word(bytes[i][1]) << 16).cast_signed())
    }

    #[inline(always)]
    fn dot_words(self, sum: I, a: I, b: I) -> I {
        let words = |pair: i32| [pair as i16, (pair >> 16) as i16].map(i32::from);
        from_fn(|i| {
            let (a, b) = (words(a[i]), words(b[i]));
            sum[i] + a[0] * b[0] + a[1] * b[1]
        })
    }

    #[inline(always)]
    fn two_halves(self, a: f32, b: f32) -> F {
        from_fn(|i| if i < LANES / 2 { a } else { b })
    }

    #[inline(always)]
    fn pairs(self, x: I) -> (F, F) {
        let bits = |i: usize| x[i].cast_unsigned();
        (from_fn(|i| f32::from_bits(bits(i) << 16)), from_fn(|i| f32::from_bits(bits(i) & 0xffff_0000)))
    }

    #[inline(always)]
    fn dot_bf16(self, sum: F, a: I, b: I) -> F {
        let (a, b) = (self.pairs(a), self.pairs(b));
        self.fma(a.1, b.1, self.fma(a.0, b.0, sum))
    }

    #[inline(always)]
    unsafe fn brains(self, from: *const half::bf16) -> F {
        unsafe { from.cast::<[half::bf16; LANES]>().read_unaligned() }.map(half::bf16::to_f32)
    }

    #[inline(always)]
    unsafe fn signed_bytes(self, from: *const i8) -> F {
        unsafe { from.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from)
    }

    #[inline(always)]
    unsafe fn to_bf16(self, from: *const f32, to: *mut u16) {
        let x = unsafe { self.load(from) };
        let rounded: [u16; LANES] = from_fn(|i| {
            let bits = x[i].to_bits();
            (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
        });
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(rounded) }
    }

    #[inline(always)]
    unsafe fn quantise(self, from: *const f32, to: *mut i8) -> (f32, [i32; 2]) {
        let x = unsafe { from.cast::<[f32; 32]>().read_unaligned() };
        let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let whole: [i32; 32] = from_fn(|i| (x[i] * inverse).round_ties_even() as i32);
        unsafe { to.cast::<[i8; 32]>().write_unaligned(from_fn(|i| whole[i] as i8)) };
        let (first, second) = whole.split_at(16);
        let step = if x.iter().any(|x| x.is_nan()) { f32::NAN } else { largest / 127.0 };
        (step, [first.iter().sum(), second.iter().sum()])
    }

    #[inline(always)]
    fn sum(self, x: F) -> f32 {
        x.iter().sum()
    }

    #[inline(always)]
    fn largest(self, x: F) -> f32 {
        x.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b))
    }
}
