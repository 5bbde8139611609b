//! Resizes as Pillow does, to the byte.
//!
//! Two passes of fixed-point weights, across and then down, rounded to 8 bits between them; antialiased: when shrinking
//! the filter is as wide as what a pixel covers. Knows no colour: three channels are three numbers. No crate was found
//! whose bytes are Pillow's own: `fast_image_resize` follows Pillow-SIMD, whose weights have fewer bits.
//! After: Pillow 13 `Resample.c` and, for nearest, `Geometry.c` (`ImagingScaleAffine`).

use std::f64::consts::PI;

use super::Rgb;

/// Bits behind the point of a weight: 32 less those of a byte and two for sums beyond it.
const BITS: u32 = 32 - 8 - 2;

/// A resampling filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Nearest,
    Box,
    Bilinear,
    Hamming,
    Bicubic,
    Lanczos,
}

impl Filter {
    /// Returns the filter of Pillow's number.
    pub(super) fn of_pillow(number: u64) -> Option<Self> {
        let numbered = [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];
        usize::try_from(number).ok().and_then(|number| numbered.get(number).copied())
    }

    /// Returns how far from its centre it reaches.
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        let far = x.abs();
        match self {
            Self::Nearest | Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bilinear => (1.0 - far).max(0.0),
            Self::Hamming if far == 0.0 => 1.0,
            Self::Hamming if far >= 1.0 => 0.0,
            // The factors are floats in the original.
            Self::Hamming => sinc(far) * (f64::from(0.54_f32) + f64::from(0.46_f32) * (far * PI).cos()),
            // Keys' cubic with a = -0.5.
            Self::Bicubic if far < 1.0 => ((-0.5 + 2.0) * far - (-0.5 + 3.0)) * far * far + 1.0,
            Self::Bicubic if far < 2.0 => (((far - 5.0) * far + 8.0) * far - 4.0) * -0.5,
            Self::Bicubic => 0.0,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// Resizes an image.
pub(super) fn resize(image: Rgb, width: usize, height: usize, filter: Filter) -> Rgb {
    if (image.width, image.height) == (width, height) {
        return image;
    }
    if filter == Filter::Nearest {
        return nearest(&image, width, height);
    }
    let across = if image.width == width { image } else { horizontal(&image, width, filter) };
    if across.height == height { across } else { vertical(&across, height, filter) }
}

/// What one new pixel is made of.
struct Taps {
    /// The first old pixel.
    first: usize,
    /// Weights of it and those behind it, times 2^[`BITS`].
    weights: Vec<i32>,
}

fn taps(filter: Filter, old: usize, new: usize) -> Vec<Taps> {
    let scale = old as f64 / new as f64;
    let wide = scale.max(1.0);
    let support = filter.support() * wide;
    let narrow = 1.0 / wide;
    let of_pixel = |index: usize| {
        let centre = (index as f64 + 0.5) * scale;
        // A cast cuts towards zero, and what is negative to zero.
        let first = (centre - support + 0.5) as usize;
        let end = ((centre + support + 0.5) as usize).min(old);
        let weights: Vec<f64> = (first..end).map(|at| filter.weight((at as f64 - centre + 0.5) * narrow)).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let weight = if sum == 0.0 { *weight } else { weight / sum } * f64::from(1 << BITS);
            (weight + if weight < 0.0 { -0.5 } else { 0.5 }) as i32
        };
        Taps { first, weights: weights.iter().map(fixed).collect() }
    };
    (0..new).map(of_pixel).collect()
}

fn byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// `[height, old, 3]` to `[height, width, 3]`.
fn horizontal(image: &Rgb, width: usize, filter: Filter) -> Rgb {
    let taps = taps(filter, image.width, width);
    let mut bytes = Vec::with_capacity(3 * width * image.height);
    for row in image.bytes.chunks_exact(3 * image.width) {
        for tap in &taps {
            let mut sums = [1 << (BITS - 1); 3];
            for (pixel, weight) in row[3 * tap.first..].as_chunks::<3>().0.iter().zip(&tap.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            bytes.extend(sums.map(byte));
        }
    }
    Rgb { width, height: image.height, bytes }
}

/// `[old, width, 3]` to `[height, width, 3]`.
fn vertical(image: &Rgb, height: usize, filter: Filter) -> Rgb {
    let stride = 3 * image.width;
    let mut bytes = Vec::with_capacity(stride * height);
    let mut sums: Vec<i32> = vec![0; stride];
    for tap in taps(filter, image.height, height) {
        sums.fill(1 << (BITS - 1));
        for (row, weight) in image.bytes[stride * tap.first..].chunks_exact(stride).zip(&tap.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        bytes.extend(sums.iter().map(|sum| byte(*sum)));
    }
    Rgb { width: image.width, height, bytes }
}

fn nearest(image: &Rgb, width: usize, height: usize) -> Rgb {
    // Summed up as Pillow does: a product would round otherwise.
    let places = |old: usize, new: usize| {
        let step = old as f64 / new as f64;
        let mut at = step * 0.5;
        let mut places = Vec::with_capacity(new);
        for _ in 0..new {
            places.push((at as usize).min(old - 1));
            at += step;
        }
        places
    };
    let columns = places(image.width, width);
    let mut bytes = Vec::with_capacity(3 * width * height);
    for row in places(image.height, height) {
        let pixels = image.bytes[3 * image.width * row..].as_chunks::<3>().0;
        bytes.extend(columns.iter().flat_map(|column| pixels[*column]));
    }
    Rgb { width, height, bytes }
}
