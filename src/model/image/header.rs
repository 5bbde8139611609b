//! What the header of an image file says, and whether the file goes on to its end.
//!
//! Decompresses nothing and allocates nothing: sizes are read and judged first, then the file is walked from part to
//! part, so that a truncated file is told apart from a damaged one and no inner part is larger than announced.
//! Sources: ITU-T T.81 annex B (JPEG), the PNG specification 5.3 and 11.2.2, RFC 9649 (WebP).

use super::{ImageError, Limits, MOST_SIDE};

/// How an image is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// JPEG: baseline, extended or progressive, 8 bits.
    Jpeg,
    /// PNG; of an animated one the first image.
    Png {
        /// RGB without an alpha channel.
        truecolour: bool,
    },
    /// WebP; of an animated one the first frame.
    Webp,
}

/// What a file announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Its format.
    pub kind: Kind,
    /// Pixels in a row, 1 or more.
    pub width: u32,
    /// Rows, 1 or more.
    pub height: u32,
}

impl Header {
    fn new(kind: Kind, width: u32, height: u32) -> Self {
        Self { kind, width, height }
    }
}

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
const JPEG: &[u8] = b"\xff\xd8\xff";

/// Reads the header of a file, and checks that the file is whole and within the limits.
///
/// # Errors
/// When it is no image, of an unsupported kind, truncated, without pixels, or larger than allowed.
pub fn inspect(file: &[u8], limits: Limits) -> Result<Header, ImageError> {
    if file.len() as u64 > limits.bytes {
        return Err(ImageError::Bytes { bytes: file.len() as u64, limit: limits.bytes });
    }
    let header = if file.starts_with(PNG) {
        png(file)?
    } else if file.starts_with(JPEG) {
        jpeg(file)?
    } else if file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP") {
        webp(file)?
    } else {
        return Err(strange(file));
    };
    let Header { kind, width, height } = header;
    if width == 0 || height == 0 {
        return Err(ImageError::Empty { width, height });
    }
    let (across, down) = (u64::from(width), u64::from(height));
    if across.max(down) > MOST_SIDE || across * down > limits.pixels {
        return Err(ImageError::Pixels { width, height, limit: limits.pixels });
    }
    match kind {
        Kind::Png { .. } => png_whole(file)?,
        Kind::Jpeg => jpeg_whole(file)?,
        Kind::Webp => webp_whole(file, header)?,
    }
    Ok(header)
}

/// Names what is known and not read.
fn strange(file: &[u8]) -> ImageError {
    let brand = file.get(4..12).unwrap_or_default();
    let name = match file {
        [b'G', b'I', b'F', b'8', ..] => "GIF",
        [b'B', b'M', ..] if file.len() > 26 && file[6..10] == [0; 4] => "BMP",
        [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => "TIFF",
        _ if brand.starts_with(b"ftypavi") => "AVIF",
        _ if brand.starts_with(b"ftyphei") || brand.starts_with(b"ftypmif") => "HEIF",
        _ if !file.is_empty() && (PNG.starts_with(file) || JPEG.starts_with(file)) => return ImageError::Truncated,
        _ => return ImageError::Unknown,
    };
    ImageError::Unsupported(name.to_owned())
}

fn damaged<T>(text: &str) -> Result<T, ImageError> {
    Err(ImageError::Damaged(text.to_owned()))
}

fn be16(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk::<2>).ok_or(ImageError::Truncated)?;
    Ok(u16::from_be_bytes(*bytes).into())
}

fn be32(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk::<4>).ok_or(ImageError::Truncated)?;
    Ok(u32::from_be_bytes(*bytes))
}

/// Reads `N` bytes, the least first.
fn le<const N: usize>(bytes: &[u8], at: usize) -> Result<u32, ImageError> {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk::<N>).ok_or(ImageError::Truncated)?;
    Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte)))
}

fn png(file: &[u8]) -> Result<Header, ImageError> {
    let (width, height) = (be32(file, 16)?, be32(file, 20)?);
    if file[12..16] != *b"IHDR" {
        return damaged("a PNG must begin with IHDR");
    }
    let colour = *file.get(25).ok_or(ImageError::Truncated)?;
    Ok(Header::new(Kind::Png { truecolour: colour == 2 }, width, height))
}

/// Goes from chunk to chunk: length, name, data, checksum.
fn png_whole(file: &[u8]) -> Result<(), ImageError> {
    let mut at = PNG.len();
    loop {
        let (length, name) = (be32(file, at)?, file.get(at + 4..at + 8).ok_or(ImageError::Truncated)?);
        at += 12 + length as usize;
        if at > file.len() {
            return Err(ImageError::Truncated);
        }
        if name == b"IEND" {
            return Ok(());
        }
    }
}

/// Finds the next marker that is not part of compressed data: its code, and where what follows it begins.
fn marker(file: &[u8], mut at: usize) -> Result<(u8, usize), ImageError> {
    loop {
        let rest = file.get(at..).ok_or(ImageError::Truncated)?;
        at += rest.iter().position(|byte| *byte == 0xff).ok_or(ImageError::Truncated)? + 1;
        match file.get(at).ok_or(ImageError::Truncated)? {
            // A fill byte is the beginning of another marker.
            0xff => {}
            // A stuffed byte, a restart, a start.
            0 | 1 | 0xd0..=0xd8 => at += 1,
            code => return Ok((*code, at + 1)),
        }
    }
}

/// Returns where a segment ends whose length stands at `at`.
fn segment(file: &[u8], at: usize) -> Result<usize, ImageError> {
    match be16(file, at)? as usize {
        0 | 1 => damaged("a JPEG segment is shorter than its own length"),
        length => Ok(at + length),
    }
}

fn jpeg(file: &[u8]) -> Result<Header, ImageError> {
    let mut at = 2;
    loop {
        let (code, body) = marker(file, at)?;
        match code {
            0xd9 | 0xda => return damaged("a JPEG must name its size before its data"),
            // DHT, JPG and DAC share the range of frames.
            0xc4 | 0xc8 | 0xcc => {}
            0xc0..=0xc2 => {
                let precision = *file.get(body + 2).ok_or(ImageError::Truncated)?;
                let (height, width) = (be16(file, body + 3)?, be16(file, body + 5)?);
                let components = *file.get(body + 7).ok_or(ImageError::Truncated)?;
                if precision != 8 {
                    return Err(ImageError::Unsupported(format!("JPEG of {precision} bits")));
                }
                if components == 4 {
                    return Err(ImageError::Unsupported("CMYK".to_owned()));
                }
                return Ok(Header::new(Kind::Jpeg, width, height));
            }
            0xc3 | 0xc5..=0xcf => return Err(ImageError::Unsupported("lossless or arithmetic-coded JPEG".to_owned())),
            _ => {}
        }
        at = segment(file, body)?;
    }
}

/// Goes from marker to marker until the end of the image; what follows it is not looked at.
fn jpeg_whole(file: &[u8]) -> Result<(), ImageError> {
    let mut at = 2;
    loop {
        let (code, body) = marker(file, at)?;
        if code == 0xd9 {
            return Ok(());
        }
        at = segment(file, body)?;
    }
}

fn webp(file: &[u8]) -> Result<Header, ImageError> {
    let (width, height) = match file.get(12..16).ok_or(ImageError::Truncated)? {
        b"VP8X" => (le::<3>(file, 24)? + 1, le::<3>(file, 27)? + 1),
        name => bitstream(name, file, 20)?.ok_or_else(|| ImageError::Damaged("a WebP has no image".to_owned()))?,
    };
    Ok(Header::new(Kind::Webp, width, height))
}

/// Reads width and height of compressed data; `None` where a chunk is something else.
fn bitstream(name: &[u8], file: &[u8], at: usize) -> Result<Option<(u32, u32)>, ImageError> {
    match name {
        b"VP8 " => Ok(Some((le::<2>(file, at + 6)? & 0x3fff, le::<2>(file, at + 8)? & 0x3fff))),
        b"VP8L" => {
            let bits = le::<4>(file, at + 1)?;
            Ok(Some(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1)))
        }
        _ => Ok(None),
    }
}

/// Goes from chunk to chunk, into frames too: compressed data may announce no more than the file did.
fn webp_whole(file: &[u8], header: Header) -> Result<(), ImageError> {
    let end = le::<4>(file, 4)? as usize + 8;
    if end > file.len() {
        return Err(ImageError::Truncated);
    }
    let mut at = 12;
    while at + 8 <= end {
        let (name, length) = (&file[at..at + 4], le::<4>(file, at + 4)? as usize);
        if let Some((width, height)) = bitstream(name, file, at + 8)?
            && (width > header.width || height > header.height)
        {
            return damaged("a frame is larger than its WebP");
        }
        // The chunks of a frame follow its own 16 bytes.
        at += if name == b"ANMF" { 8 + 16 } else { 8 + length.next_multiple_of(2) };
    }
    Ok(())
}
