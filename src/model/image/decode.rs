//! Decodes a file whose header was judged, into RGB bytes as Pillow's `convert("RGB")` after `Image.open` gives them.
//!
//! The decoders are the `image` crate's. They read strangers' bytes, so a panic in one of them is a damaged image, not a
//! broken server. See [`super`] for what becomes of alpha, grey and 16 bits.

use std::io::{Cursor, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ::image::{DynamicImage, ImageFormat, ImageReader};

use super::{Header, ImageError, Kind, Rgb};

/// Bytes that a decoder may take beside its pixels.
const SLACK: u64 = 16 << 20;
/// Bytes of a pixel at most: four channels of 16 bits.
const DEEPEST: u64 = 8;
/// Characters of a decoder's complaint.
const MOST_TEXT: usize = 120;

/// Decodes a file; `header` is what was found in it.
pub(super) fn rgb(file: &[u8], header: Header) -> Result<Rgb, ImageError> {
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(file, header)));
    let image = decoded.unwrap_or_else(|_| Err(ImageError::Damaged("it cannot be decoded".to_owned())))?;
    let (width, height) = (image.width() as usize, image.height() as usize);
    if (width, height) != (header.width as usize, header.height as usize) {
        return Err(ImageError::Damaged("it has another size than it announces".to_owned()));
    }
    let opaque = header.kind == Kind::Png { truecolour: true };
    let bytes = match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => grey(image.as_raw().iter().copied()),
        // Pillow cuts, although it takes the high byte of every other kind.
        DynamicImage::ImageLuma16(image) => grey(image.as_raw().iter().map(|value| (*value).min(255) as u8)),
        DynamicImage::ImageRgb16(image) => image.as_raw().iter().map(high).collect(),
        DynamicImage::ImageLumaA8(image) => {
            on_white(image.as_raw().as_chunks::<2>().0.iter().map(|[l, a]| [*l, *l, *l, *a]))
        }
        DynamicImage::ImageLumaA16(image) => on_white(image.as_raw().as_chunks::<2>().0.iter().map(|[l, a]| {
            let l = high(l);
            [l, l, l, high(a)]
        })),
        // One colour of an RGB image may be declared transparent: Pillow leaves it as it is.
        DynamicImage::ImageRgba8(image) if opaque => dropped(image.as_raw().as_chunks::<4>().0.iter().copied()),
        DynamicImage::ImageRgba16(image) if opaque => {
            dropped(image.as_raw().as_chunks::<4>().0.iter().map(|pixel| pixel.each_ref().map(high)))
        }
        DynamicImage::ImageRgba8(image) => on_white(image.as_raw().as_chunks::<4>().0.iter().copied()),
        DynamicImage::ImageRgba16(image) => {
            on_white(image.as_raw().as_chunks::<4>().0.iter().map(|pixel| pixel.each_ref().map(high)))
        }
        DynamicImage::ImageRgb32F(_) | DynamicImage::ImageRgba32F(_) => return Err(depth()),
        _ => return Err(depth()),
    };
    Ok(Rgb { width, height, bytes })
}

fn decode(file: &[u8], header: Header) -> Result<DynamicImage, ImageError> {
    let format = match header.kind {
        Kind::Jpeg => ImageFormat::Jpeg,
        Kind::Png { .. } => ImageFormat::Png,
        Kind::Webp => ImageFormat::WebP,
    };
    let mut limits = ::image::Limits::no_limits();
    limits.max_alloc = Some(u64::from(header.width) * u64::from(header.height) * DEEPEST + SLACK);
    let mut reader = ImageReader::with_format(Cursor::new(file), format);
    reader.limits(limits);
    reader.decode().map_err(|error| fault(&error))
}

/// Tells faults apart as far as the decoders do.
fn fault(error: &::image::ImageError) -> ImageError {
    let text: String = error.to_string().chars().filter(|c| !c.is_control()).take(MOST_TEXT).collect();
    match error {
        ::image::ImageError::IoError(error) if error.kind() == ErrorKind::UnexpectedEof => ImageError::Truncated,
        ::image::ImageError::Unsupported(_) => ImageError::Unsupported(text),
        ::image::ImageError::Decoding(_)
        | ::image::ImageError::Encoding(_)
        | ::image::ImageError::Parameter(_)
        | ::image::ImageError::Limits(_)
        | ::image::ImageError::IoError(_) => ImageError::Damaged(text),
    }
}

fn depth() -> ImageError {
    ImageError::Unsupported("an image of this depth".to_owned())
}

fn high(value: &u16) -> u8 {
    (value >> 8) as u8
}

fn grey(values: impl Iterator<Item = u8>) -> Vec<u8> {
    values.flat_map(|value| [value; 3]).collect()
}

fn dropped(pixels: impl Iterator<Item = [u8; 4]>) -> Vec<u8> {
    pixels.flat_map(|[r, g, b, _]| [r, g, b]).collect()
}

/// Lays pixels on white, in the whole numbers of Pillow's `alpha_composite`.
fn on_white(pixels: impl Iterator<Item = [u8; 4]>) -> Vec<u8> {
    let blend = |value: u8, alpha: u8| {
        // Seven bits more than a byte; then divided by 255, rounded.
        let alpha = u32::from(alpha) << 7;
        let sum = u32::from(value) * alpha + 255 * ((255 << 7) - alpha) + (0x80 << 7);
        ((((sum >> 8) + sum) >> 8) >> 7) as u8
    };
    pixels.flat_map(|[r, g, b, alpha]| [r, g, b].map(|value| blend(value, alpha))).collect()
}
