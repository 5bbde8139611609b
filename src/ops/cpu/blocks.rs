//! The quantised formats of GGUF: how a block of 32 weights is stored in a file, and how a tile of 16 rows holds it.
//!
//! Nothing is rounded again: quants, scales and minima are the file's own, moved. Knows neither rows of activations nor
//! threads. A weight is scale·quant + minimum.
//! In a tile, groups of 2 or 8 blocks stand behind each other; a group is a header with the scales of 16 rows (f16, or
//! f16 and bytes as in the file) and then the quants of each block: 16 rows of 4 inputs, then those of the next 4. Halves
//! of bytes hold inputs 8g to 8g+3 below and 8g+4 to 8g+7 above.
//! After: ggml `ggml-common.h`, `ggml-quants.c` (dequantisation).

use super::simd::LANES;

/// Weights of a block.
pub(super) const BLOCK: usize = 32;

/// How weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// Halves of bytes, a scale for 32.
    Q40,
    /// Halves of bytes, a scale and a minimum for 32.
    Q41,
    /// 5 bits, a scale for 32; held as bytes.
    Q50,
    /// 5 bits, a scale and a minimum for 32; held as bytes.
    Q51,
    /// Bytes, a scale for 32.
    Q80,
    /// Halves of bytes, a scale and a minimum of 6 bits for 32 times a pair of f16 for 256.
    Q4K,
    /// 5 bits, otherwise as [`Self::Q4K`]; held as bytes.
    Q5K,
    /// 6 bits, a scale of 8 bits for 16 times an f16 for 256; held as bytes.
    Q6K,
}

/// What stands before the quants of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// f16 scales of two blocks.
    Scale,
    /// f16 scales, then f16 minima, of two blocks.
    Minimum,
    /// f16 factors of scales and of minima, then a byte for the scale and one for the minimum of each of 8 blocks.
    Pairs,
    /// f16 factors of scales (and as much room again), then two bytes for the scales of the halves of each of 8 blocks.
    Halves,
}

/// Where things stand in a tile of quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) header: Header,
    /// Whether a byte holds two quants.
    pub(super) nibbles: bool,
    /// What a stored quant has more than the weight's.
    pub(super) offset: u8,
}

impl Shape {
    /// Blocks that share a header.
    pub(super) const fn group(self) -> usize {
        match self.header {
            Header::Scale | Header::Minimum => 2,
            Header::Pairs | Header::Halves => 8,
        }
    }

    /// Bytes of a header.
    pub(super) const fn header_bytes(self) -> usize {
        match self.header {
            Header::Scale => 64,
            Header::Minimum => 128,
            Header::Pairs | Header::Halves => 64 + 8 * 32,
        }
    }

    /// Bytes of the quants of a block.
    pub(super) const fn block_bytes(self) -> usize {
        if self.nibbles { BLOCK * LANES / 2 } else { BLOCK * LANES }
    }

    /// Bytes of a group.
    pub(super) const fn group_bytes(self) -> usize {
        self.header_bytes() + self.group() * self.block_bytes()
    }

    /// Bytes of a tile of `blocks` blocks.
    pub(super) const fn tile_bytes(self, blocks: usize) -> usize {
        blocks.div_ceil(self.group()) * self.group_bytes()
    }

    /// Where a block's quants begin.
    pub(super) const fn quants_at(self, block: usize) -> usize {
        block / self.group() * self.group_bytes() + self.header_bytes() + block % self.group() * self.block_bytes()
    }

    /// Where a quant stands behind its block's beginning, and whether it is the upper half of its byte.
    fn place(self, row: usize, input: usize) -> (usize, bool) {
        if self.nibbles {
            ((input / 8 * LANES + row) * 4 + input % 4, input % 8 >= 4)
        } else {
            ((input / 4 * LANES + row) * 4 + input % 4, false)
        }
    }
}

impl Format {
    /// Returns how a tile holds a quantised format.
    pub(super) const fn shape(self) -> Option<Shape> {
        let (header, nibbles, offset) = match self {
            Self::F32 | Self::F16 | Self::Bf16 => return None,
            Self::Q40 => (Header::Scale, true, 8),
            Self::Q41 => (Header::Minimum, true, 0),
            Self::Q50 | Self::Q80 => (Header::Scale, false, 128),
            Self::Q51 => (Header::Minimum, false, 0),
            Self::Q4K => (Header::Pairs, true, 0),
            Self::Q5K => (Header::Pairs, false, 0),
            Self::Q6K => (Header::Halves, false, 32),
        };
        Some(Shape { header, nibbles, offset })
    }

    /// Returns weights and bytes of a stored block of the file's format; 1 and its size for floats.
    pub(super) const fn stored(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q40 => (32, 18),
            Self::Q41 => (32, 20),
            Self::Q50 => (32, 22),
            Self::Q51 => (32, 24),
            Self::Q80 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }
}

/// 32 weights of a row, as a tile holds them.
struct Block {
    quants: [u8; BLOCK],
    /// f16.
    scale: [u8; 2],
    /// f16.
    minimum: [u8; 2],
    small: [u8; 2],
}

fn two(bytes: &[u8], at: usize) -> [u8; 2] {
    [bytes[at], bytes[at + 1]]
}

/// Reads block `part` (of 32 weights) of a stored block.
fn read(format: Format, stored: &[u8], part: usize) -> Block {
    let low_then_high = |from: usize| move |i: usize, bytes: &[u8]| bytes[from + i % 16] >> (4 * (i / 16)) & 15;
    let fifth = |from: usize| move |i: usize, bytes: &[u8]| (bytes[from + i / 8] >> (i % 8) & 1) << 4;
    let mut block = Block { quants: [0; BLOCK], scale: two(stored, 0), minimum: [0; 2], small: [0; 2] };
    let quant: &dyn Fn(usize) -> u8 = match format {
        Format::F32 | Format::F16 | Format::Bf16 => &|_| 0,
        Format::Q40 => &|i| low_then_high(2)(i, stored),
        Format::Q41 => {
            block.minimum = two(stored, 2);
            &|i| low_then_high(4)(i, stored)
        }
        // 5 bits stand for -16 to 15, bytes for -128 to 127.
        Format::Q50 => &|i| (low_then_high(6)(i, stored) | fifth(2)(i, stored)) + 112,
        Format::Q51 => {
            block.minimum = two(stored, 2);
            &|i| low_then_high(8)(i, stored) | fifth(4)(i, stored)
        }
        Format::Q80 => &|i| stored[2 + i] ^ 0x80,
        Format::Q4K => {
            block.minimum = two(stored, 2);
            block.small = six_bits(&stored[4..16], part);
            &|i| stored[16 + part / 2 * 32 + i] >> (4 * (part % 2)) & 15
        }
        Format::Q5K => {
            block.minimum = two(stored, 2);
            block.small = six_bits(&stored[4..16], part);
            &|i| (stored[48 + part / 2 * 32 + i] >> (4 * (part % 2)) & 15) | (stored[16 + i] >> part & 1) << 4
        }
        Format::Q6K => {
            let (half, part) = (part / 4, part % 4);
            block.scale = two(stored, 208);
            block.small = two(stored, 192 + 8 * half + 2 * part).map(|scale| scale ^ 0x80);
            &move |i| {
                let low = stored[64 * half + part % 2 * 32 + i] >> (4 * (part / 2)) & 15;
                low | (stored[128 + 32 * half + i] >> (2 * part) & 3) << 4
            }
        }
    };
    block.quants = std::array::from_fn(quant);
    block
}

/// Returns scale and minimum of a block of Q4_K or Q5_K, 6 bits each, from their 12 bytes.
fn six_bits(bytes: &[u8], block: usize) -> [u8; 2] {
    match block {
        0..4 => [bytes[block] & 63, bytes[block + 4] & 63],
        _ => [bytes[block + 4] & 15 | bytes[block - 4] >> 6 << 4, bytes[block + 4] >> 4 | bytes[block] >> 6 << 4],
    }
}

/// Writes a stored row into a tile as its row `row`.
pub(super) fn pack_row(format: Format, shape: Shape, stored: &[u8], row: usize, tile: &mut [u8]) {
    let (weights, bytes) = format.stored();
    for (i, stored) in stored.chunks_exact(bytes).enumerate() {
        for part in 0..weights / BLOCK {
            let at = i * (weights / BLOCK) + part;
            let block = read(format, stored, part);
            let (group, inside) = (at / shape.group() * shape.group_bytes(), at % shape.group());
            let header = &mut tile[group..group + shape.header_bytes()];
            let mut pair = |at: usize, value: [u8; 2]| header[at + 2 * row..at + 2 * row + 2].copy_from_slice(&value);
            match shape.header {
                Header::Scale => pair(32 * inside, block.scale),
                Header::Minimum => {
                    pair(32 * inside, block.scale);
                    pair(64 + 32 * inside, block.minimum);
                }
                Header::Pairs | Header::Halves => {
                    pair(0, block.scale);
                    pair(32, block.minimum);
                    header[64 + 32 * inside + row] = block.small[0];
                    header[64 + 32 * inside + LANES + row] = block.small[1];
                }
            }
            let quants = &mut tile[shape.quants_at(at)..][..shape.block_bytes()];
            for (input, quant) in block.quants.into_iter().enumerate() {
                let (place, upper) = shape.place(row, input);
                quants[place] |= if upper { quant << 4 } else { quant };
            }
        }
    }
}

/// Returns scales and minima of 16 rows for one half of a block.
fn scales(shape: Shape, tile: &[u8], block: usize, half: usize) -> ([f32; LANES], [f32; LANES]) {
    let inside = block % shape.group();
    let header = &tile[block / shape.group() * shape.group_bytes()..][..shape.header_bytes()];
    let float = |at: usize, row: usize| half::f16::from_le_bytes(two(header, at + 2 * row)).to_f32();
    let byte = |at: usize, row: usize| f32::from(header[64 + 32 * inside + at + row]);
    let rows = |f: &dyn Fn(usize) -> f32| std::array::from_fn(f);
    match shape.header {
        Header::Scale => (rows(&|row| float(32 * inside, row)), [0.0; LANES]),
        Header::Minimum => (rows(&|row| float(32 * inside, row)), rows(&|row| float(64 + 32 * inside, row))),
        Header::Pairs => (rows(&|row| float(0, row) * byte(0, row)), rows(&|row| -(float(32, row) * byte(LANES, row)))),
        Header::Halves => (rows(&|row| float(0, row) * (byte(half * LANES, row) - 128.0)), [0.0; LANES]),
    }
}

/// Writes the weights of inputs `inputs` of a tile as f32, `[inputs, 16]`.
pub(super) fn unpack(shape: Shape, tile: &[u8], inputs: std::ops::Range<usize>, out: &mut [f32]) {
    let (mut at, mut known) = (usize::MAX, ([0.0; LANES], [0.0; LANES]));
    for (input, out) in inputs.zip(out.chunks_exact_mut(LANES)) {
        let (block, inside) = (input / BLOCK, input % BLOCK);
        if at != input / LANES {
            at = input / LANES;
            known = scales(shape, tile, block, inside / LANES);
        }
        let quants = &tile[shape.quants_at(block)..][..shape.block_bytes()];
        for (row, out) in out.iter_mut().enumerate() {
            let (place, upper) = shape.place(row, inside);
            let byte = quants[place];
            let quant = match (shape.nibbles, upper) {
                (false, _) => byte,
                (true, false) => byte & 15,
                (true, true) => byte >> 4,
            };
            *out = known.0[row] * f32::from(i16::from(quant) - i16::from(shape.offset)) + known.1[row];
        }
    }
}
