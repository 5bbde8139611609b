//! Products of bf16 by Intel's AMX: an instruction multiplies 16 rows with 16 columns over 32 inputs.
//!
//! Weights lie in memory as the instructions read them, rows of activations in blocks of 16 (`Prepared`). Rows that a
//! block lacks are computed and dropped, so that a row has the same bits whatever stands beside it. Integers are not
//! multiplied here: with a scale for 32 inputs every product of tiles would go through memory to be scaled, which was
//! slower than multiplying by vectors (seen on Sapphire Rapids).
//! After: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _MM_HINT_T0, _mm_prefetch};
use std::ops::Range;
use std::sync::LazyLock;

use super::simd::{LANES, TILE_INPUTS, TILE_ROWS as ROWS};
use super::tile::Out;

/// Bytes of a tile.
const TILE: usize = 1024;

/// Bytes that weights are asked for ahead of their use.
const AHEAD: usize = 4096;

/// Bytes of rows that are multiplied with all weights of a part before the next ones: a quarter of a large second cache.
const NEAR: usize = 1 << 19;

/// Returns whether the CPU has the instructions and the kernel lets this process use them; asks for it once.
pub(super) fn is_available() -> bool {
    static ANSWER: LazyLock<bool> = LazyLock::new(|| {
        // AMX-BF16 and AMX-TILE.
        const WANTED: u32 = 1 << 22 | 1 << 24;
        __cpuid_count(7, 0).edx & WANTED == WANTED && permitted()
    });
    *ANSWER
}

/// Asks Linux for the state of tiles (`ARCH_REQ_XCOMP_PERM` of `XFEATURE_XTILEDATA`), for all threads of the process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const REQUEST: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let answer: isize;
    // SAFETY: the call takes two numbers and touches no memory of this process.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => answer, in("rdi") REQUEST, in("rsi") TILE_DATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Operands of `ldtilecfg`.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// Sets the shapes: 16 rows of 64 bytes each.
///
/// # Safety
/// The instructions must be available.
#[inline(always)]
unsafe fn configure() {
    let mut shapes = Shapes { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
    shapes.bytes[..8].fill(64);
    shapes.rows[..8].fill(ROWS as u8);
    // SAFETY: the caller's promise.
    unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const shapes, options(nostack, preserves_flags)) };
}

/// # Safety
/// The instructions must be available.
#[inline(always)]
unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags)) };
}

macro_rules! zero {
    ($tile:literal) => {
        asm!(concat!("tilezero tmm", $tile), options(nostack, preserves_flags))
    };
}
macro_rules! load {
    ($tile:literal, $from:expr) => {
        asm!(concat!("tileloadd tmm", $tile, ", [{0} + {1}*1]"), in(reg) $from, in(reg) 64_usize,
            options(nostack, preserves_flags, readonly))
    };
}
macro_rules! store {
    ($tile:literal, $to:expr, $stride:expr) => {
        asm!(concat!("tilestored [{0} + {1}*1], tmm", $tile), in(reg) $to, in(reg) $stride as usize,
            options(nostack, preserves_flags))
    };
}
macro_rules! dot {
    ($c:literal, $a:literal, $b:literal) => {
        asm!(concat!("tdpbf16ps tmm", $c, ", tmm", $a, ", tmm", $b), options(nostack, preserves_flags))
    };
}

/// Part of a result.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// The first is a multiple of 16.
    pub(super) rows: Range<usize>,
    pub(super) tiles: Range<usize>,
    /// Columns of the result, and distance of its rows.
    pub(super) outputs: usize,
    pub(super) width: usize,
    pub(super) out: Out,
}

impl Part {
    /// Copies what exists of 16 rows of a tile.
    ///
    /// # Safety
    /// The part must lie in the result.
    unsafe fn copy(&self, block: &[[f32; LANES]; ROWS], row: usize, tile: usize) {
        let columns = LANES.min(self.outputs - tile * LANES);
        for (i, from) in block.iter().take(self.rows.end - row).enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let out = self.out.0.add((row + i) * self.width + tile * LANES);
                std::ptr::copy_nonoverlapping(from.as_ptr(), out, columns);
            }
        }
    }

    /// Returns whether 16 rows of a tile exist.
    fn is_whole(&self, row: usize, tile: usize) -> bool {
        row + ROWS <= self.rows.end && (tile + 1) * LANES <= self.outputs
    }
}

/// Writes a part of a product of bf16 rows `[rows/16, inputs/32, 16, 32]` with packed bf16 weights.
///
/// # Safety
/// The instructions must be available, `inputs` a multiple of 32, and rows (up to a whole block), weights and result as
/// large as the part says.
pub(super) unsafe fn multiply(x: *const u16, weights: *const u8, inputs: usize, part: &Part) {
    let steps = inputs / TILE_INPUTS;
    // SAFETY: the caller's promise.
    unsafe {
        configure();
        // Rows stay near while all weights pass.
        let near = (NEAR / (ROWS * TILE_INPUTS * 2 * steps.max(1))).max(1).next_multiple_of(2) * ROWS;
        for first in part.rows.clone().step_by(near) {
            for tile in part.tiles.clone().step_by(2) {
                for row in (first..part.rows.end.min(first + near)).step_by(2 * ROWS) {
                    let x = x.cast::<u8>().add(row / ROWS * steps * TILE);
                    let weights = weights.add(tile * steps * TILE);
                    match (row + ROWS < part.rows.end, tile + 1 < part.tiles.end) {
                        (true, true) => blocks::<2, 2>(x, weights, steps, (row, tile), part),
                        (true, false) => blocks::<2, 1>(x, weights, steps, (row, tile), part),
                        (false, true) => blocks::<1, 2>(x, weights, steps, (row, tile), part),
                        (false, false) => blocks::<1, 1>(x, weights, steps, (row, tile), part),
                    }
                }
            }
        }
        release();
    }
}

/// Up to two blocks of rows with up to two tiles.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn blocks<const R: usize, const T: usize>(
    mut x: *const u8,
    mut weights: *const u8,
    steps: usize,
    (row, tile): (usize, usize),
    part: &Part,
) {
    let next = steps * TILE;
    // SAFETY: the caller's promise.
    unsafe {
        zero!(0);
        zero!(1);
        zero!(2);
        zero!(3);
        for _ in 0..steps {
            load!(4, x);
            load!(6, weights);
            dot!(0, 4, 6);
            if T == 2 {
                load!(7, weights.add(next));
                dot!(1, 4, 7);
            }
            if R == 2 {
                load!(5, x.add(next));
                dot!(2, 5, 6);
                if T == 2 {
                    dot!(3, 5, 7);
                }
            } else {
                // Few rows: weights come from memory, and tile loads do not run far enough ahead.
                (0..T).for_each(|t| prefetch(weights.wrapping_add(t * next + AHEAD)));
            }
            (x, weights) = (x.add(TILE), weights.add(TILE));
        }
        let mut block = [[0.0_f32; LANES]; ROWS];
        for (r, t) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            if r >= R || t >= T {
                continue;
            }
            let (row, tile) = (row + r * ROWS, tile + t);
            let whole = part.is_whole(row, tile);
            let (to, stride) = if whole {
                (part.out.0.add(row * part.width + tile * LANES), 4 * part.width)
            } else {
                (block.as_mut_ptr().cast(), 4 * LANES)
            };
            match (r, t) {
                (0, 0) => store!(0, to, stride),
                (0, _) => store!(1, to, stride),
                (_, 0) => store!(2, to, stride),
                (_, _) => store!(3, to, stride),
            }
            if !whole {
                part.copy(&block, row, tile);
            }
        }
    }
}

/// Asks for a tile of weights.
#[inline(always)]
fn prefetch(from: *const u8) {
    for line in (0..TILE).step_by(64) {
        // SAFETY: a prefetch does no harm, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) };
    }
}
