//! A weight matrix in tiles of 16 output rows.
//!
//! Packs what a file holds, and unpacks it again exactly. Multiplies nothing. The last tile is filled up with zeros.
//! Shapes: weights `[outputs, inputs]`; a tile of floats is `[inputs, 16]`, of bf16 `[inputs/2, 16, 2]`; for quantised
//! weights see `blocks.rs`.

use std::ops::Range;

use rayon::prelude::*;

use super::blocks::{self, Format, Shape};
use super::simd::{LANES, Level, Simd, Work};

/// A cache line, so that tiles begin at the start of one.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Weights ready to be multiplied with.
#[derive(Debug)]
pub(in crate::ops) struct Packed {
    format: Format,
    outputs: usize,
    inputs: usize,
    tile_bytes: usize,
    lines: Vec<Line>,
}

impl Packed {
    /// Packs rows as a file holds them, little-endian; returns `None` where length or width do not fit the format.
    pub(in crate::ops) fn new(format: Format, outputs: usize, inputs: usize, stored: &[u8]) -> Option<Self> {
        let (weights, bytes) = format.stored();
        if inputs == 0 || !inputs.is_multiple_of(weights) || stored.len() != outputs * (inputs / weights) * bytes {
            return None;
        }
        let mut packed = Self::empty(format, outputs, inputs);
        let (row_bytes, tile_bytes) = (inputs / weights * bytes, packed.tile_bytes);
        packed.bytes_mut().par_chunks_mut(tile_bytes).enumerate().for_each(|(i, tile)| {
            let first = i * LANES;
            for row in 0..LANES.min(outputs - first) {
                let stored = &stored[(first + row) * row_bytes..][..row_bytes];
                match format.shape() {
                    Some(shape) => blocks::pack_row(format, shape, stored, row, tile),
                    None => pack_floats(format, stored, row, tile),
                }
            }
        });
        Some(packed)
    }

    /// Packs f32 weights.
    pub(in crate::ops) fn from_f32(outputs: usize, inputs: usize, weights: &[f32]) -> Option<Self> {
        // SAFETY: every f32 is four bytes.
        let bytes = unsafe { std::slice::from_raw_parts(weights.as_ptr().cast::<u8>(), size_of_val(weights)) };
        Self::new(Format::F32, outputs, inputs, bytes)
    }

    fn empty(format: Format, outputs: usize, inputs: usize) -> Self {
        let bytes = match format.shape() {
            Some(shape) => shape.tile_bytes(inputs / blocks::BLOCK),
            None if format == Format::F32 => inputs * 64,
            None => inputs.div_ceil(2) * 64,
        };
        let lines = vec![Line([0; 64]); outputs.div_ceil(LANES) * bytes / 64];
        Self { format, outputs, inputs, tile_bytes: bytes, lines }
    }

    /// Returns whether weights share scales.
    pub(in crate::ops) fn is_quantised(&self) -> bool {
        self.format.shape().is_some()
    }

    /// Returns the format.
    pub(in crate::ops) fn format(&self) -> Format {
        self.format
    }

    /// Returns the number of output rows.
    pub(in crate::ops) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Returns the number of inputs.
    pub(in crate::ops) fn inputs(&self) -> usize {
        self.inputs
    }

    /// Returns the bytes held.
    pub(in crate::ops) fn bytes(&self) -> &[u8] {
        // SAFETY: a line is 64 bytes.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 64) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: a line is 64 bytes.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 64) }
    }

    /// Returns the number of tiles.
    pub(super) fn tiles(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    pub(super) fn tile_bytes(&self) -> usize {
        self.tile_bytes
    }

    pub(super) fn tile(&self, tile: usize) -> &[u8] {
        &self.bytes()[tile * self.tile_bytes..][..self.tile_bytes]
    }

    /// Writes the weights of inputs `inputs` of a tile as f32, `[inputs, 16]`.
    pub(super) fn unpack(&self, tile: usize, inputs: Range<usize>, out: &mut [f32]) {
        let tile = self.tile(tile);
        match self.format.shape() {
            Some(shape) => blocks::unpack(shape, tile, inputs, out),
            None if self.format == Format::F32 => {
                // SAFETY: a tile of f32 holds f32, and begins at the start of a cache line.
                let tile = unsafe { std::slice::from_raw_parts(tile.as_ptr().cast::<f32>(), tile.len() / 4) };
                let from = &tile[inputs.start * LANES..inputs.end * LANES];
                out[..from.len()].copy_from_slice(from);
            }
            None => {
                for (input, out) in inputs.zip(out.chunks_exact_mut(LANES)) {
                    for (row, out) in out.iter_mut().enumerate() {
                        *out = float(self.format, tile, row, input);
                    }
                }
            }
        }
    }

    /// Writes inputs `columns`, up to 16 from an even one on, of all outputs of a bf16 matrix as a tile of its transpose,
    /// `[outputs/2, 16, 2]`.
    pub(super) fn transpose_brains(&self, columns: Range<usize>, out: &mut [u16]) {
        if columns.len() == LANES {
            let whole = out.len() / (LANES * LANES);
            Level::best().run(Turn { of: self, first: columns.start / 2, out: &mut out[..whole * LANES * LANES] });
            out.chunks_mut(LANES * LANES)
                .enumerate()
                .skip(whole)
                .for_each(|(tile, out)| self.turn_some(tile, &columns, out));
            return;
        }
        out.chunks_mut(LANES * LANES).enumerate().for_each(|(tile, out)| self.turn_some(tile, &columns, out));
    }

    /// The same of one tile, of which the result may have only some outputs.
    fn turn_some(&self, tile: usize, columns: &Range<usize>, out: &mut [u16]) {
        let tile = self.tile(tile);
        for (to, from) in (columns.start / 2..columns.end.div_ceil(2)).enumerate() {
            let line = &tile[from * 64..][..64];
            // Two inputs of two outputs change places: a0 a1 b0 b1 becomes a0 b0 a1 b1.
            for (four, out) in line.chunks_exact(8).zip(out.chunks_mut(2 * LANES)) {
                let at = |i: usize| u16::from_le_bytes([four[2 * i], four[2 * i + 1]]);
                out[4 * to..4 * to + 4].copy_from_slice(&[at(0), at(2), at(1), at(3)]);
            }
        }
    }

    /// Writes output row `row` as f32.
    pub(in crate::ops) fn row(&self, row: usize, out: &mut [f32]) {
        let (tile, row) = (row / LANES, row % LANES);
        if self.format.shape().is_none() {
            let tile = self.tile(tile);
            out.iter_mut().enumerate().for_each(|(input, out)| *out = float(self.format, tile, row, input));
            return;
        }
        let mut columns = [0.0; blocks::BLOCK * LANES];
        for (i, out) in out.chunks_mut(blocks::BLOCK).enumerate() {
            let first = i * blocks::BLOCK;
            self.unpack(tile, first..first + out.len(), &mut columns);
            out.iter_mut().zip(columns.chunks_exact(LANES)).for_each(|(out, column)| *out = column[row]);
        }
    }

    /// Returns all weights as f32, `[outputs, inputs]`.
    pub(in crate::ops) fn to_f32(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.outputs * self.inputs];
        all.par_chunks_mut(LANES * self.inputs).enumerate().for_each(|(tile, rows)| {
            let mut columns = vec![0.0; self.inputs * LANES];
            self.unpack(tile, 0..self.inputs, &mut columns);
            for (row, out) in rows.chunks_exact_mut(self.inputs).enumerate() {
                out.iter_mut().zip(columns.chunks_exact(LANES)).for_each(|(out, column)| *out = column[row]);
            }
        });
        all
    }

    /// Returns how a quantised format is held.
    pub(super) fn shape(&self) -> Option<Shape> {
        self.format.shape()
    }
}

/// Transposes 16 inputs of whole tiles of bf16.
struct Turn<'a> {
    of: &'a Packed,
    /// The first pair of inputs.
    first: usize,
    out: &'a mut [u16],
}

impl Work for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (tile, out) in self.out.chunks_exact_mut(LANES * LANES).enumerate() {
            let lines = &self.of.tile(tile)[self.first * 64..][..LANES / 2 * 64];
            // SAFETY: 8 lines stand there in both.
            unsafe { s.transpose_pairs(lines.as_ptr().cast(), out.as_mut_ptr()) };
        }
    }
}

/// Returns where the weight of a float format begins in its tile.
fn place(format: Format, row: usize, input: usize) -> usize {
    if format == Format::F32 {
        (input * LANES + row) * 4
    } else if format == Format::Bf16 {
        ((input / 2 * LANES + row) * 2 + input % 2) * 2
    } else {
        (input * LANES + row) * 2
    }
}

fn pack_floats(format: Format, stored: &[u8], row: usize, tile: &mut [u8]) {
    let bytes = format.stored().1;
    for (input, weight) in stored.chunks_exact(bytes).enumerate() {
        tile[place(format, row, input)..][..bytes].copy_from_slice(weight);
    }
}

fn float(format: Format, tile: &[u8], row: usize, input: usize) -> f32 {
    let at = &tile[place(format, row, input)..];
    if format == Format::F32 {
        f32::from_le_bytes([at[0], at[1], at[2], at[3]])
    } else if format == Format::Bf16 {
        half::bf16::from_le_bytes([at[0], at[1]]).to_f32()
    } else {
        half::f16::from_le_bytes([at[0], at[1]]).to_f32()
    }
}
