//! From the bytes of an image to the pixels that a model takes.
//!
//! [`Processor`] does what transformers' PIL-based image processors do, in their order: RGB, resize, centre crop,
//! rescale, normalise. Draws no random number: whether an image is flipped is the caller's to say. Files are strangers':
//! what a header announces is judged before anything is allocated for it.
//!
//! Where the readers leave a choice: transparency is laid on white (transformers 5; transformers 4 drops alpha). Grey
//! becomes RGB. 16 bits become 8 as Pillow 13 does it: the high byte, but plain 16-bit grey is cut at 255. CMYK JPEGs are
//! refused: their colours are nowhere defined. The first frame of an animated file counts. EXIF orientation, gamma and
//! colour profiles are not applied, as with `PIL.Image.open`. PNG and lossless WebP give Pillow's bytes; JPEG is rounded
//! otherwise in its inverse transform and chroma, by a few of 255 levels.
//!
//! Shapes: bytes are `[height, width, 3]`, pixels `[3, height, width]`.

mod decode;
mod fault;
mod header;
mod resample;
mod settings;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::path::Path;

pub use self::fault::ImageError;
pub use self::header::{Header, Kind, inspect};
use self::resample::Filter;
use super::ModelError;
use crate::config::{MOST_IMAGE_BYTES, MOST_IMAGE_PIXELS};

/// Largest width or height of an image, before and after resizing.
const MOST_SIDE: u64 = 1 << 16;
/// What the settings lie in.
const FILE: &str = "preprocessor_config.json";

/// What a file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub bytes: u64,
    /// Width times height.
    pub pixels: u64,
}

impl Limits {
    /// What no setting can exceed: whatever was accepted can be read again.
    pub const MOST: Self = Self { bytes: MOST_IMAGE_BYTES, pixels: MOST_IMAGE_PIXELS };
}

/// Pixels of 8 bits, `[height, width, 3]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rgb {
    width: usize,
    height: usize,
    bytes: Vec<u8>,
}

/// Decodes a file, to find out whether it is sound inside too; `header` is what [`inspect`] found.
///
/// # Errors
/// What the decoder finds.
pub fn verify(file: &[u8], header: Header) -> Result<(), ImageError> {
    decode::rgb(file, header).map(drop)
}

/// What an image is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// `[height, width]`, whatever the proportions were.
    Exact([usize; 2]),
    /// The shorter side has this; proportions stay.
    ShortestEdge(usize),
}

/// How images become what a model takes (`preprocessor_config.json`).
#[derive(Debug, Clone, PartialEq)]
pub struct Processor {
    resize: Option<(Target, Filter)>,
    /// `[height, width]`; what is missing is black.
    crop: Option<[usize; 2]>,
    /// What every image must end with, `[height, width]`.
    size: Option<[usize; 2]>,
    /// The value of each byte of each channel: rescaled and normalised.
    values: Box<[[f32; 256]; 3]>,
}

impl Processor {
    /// Reads a model's folder; `size` is `[height, width]` of what the model takes. Without the file, images are treated
    /// as ViT's are by default.
    ///
    /// # Errors
    /// When the file cannot be read, is faulty, gives another size, or asks for what is not supported.
    pub fn read(folder: &Path, size: [usize; 2]) -> Result<Self, ModelError> {
        let path = folder.join(FILE);
        match std::fs::read(&path) {
            Ok(json) => Self::parse(&json, Some(size)),
            Err(error) if error.kind() == ErrorKind::NotFound => settings::defaults(size),
            Err(source) => Err(ModelError::Read { path: path.display().to_string(), source }),
        }
    }

    /// Reads settings; `size` is what the model takes, `None` where any size will do.
    ///
    /// # Errors
    /// When they are faulty, give another size, or ask for what is not supported.
    pub fn parse(json: &[u8], size: Option<[usize; 2]>) -> Result<Self, ModelError> {
        settings::parse(json, size)
    }

    /// Returns `[height, width]` of what it gives; zeros where any size will do.
    pub fn size(&self) -> [usize; 2] {
        self.size.unwrap_or_default()
    }

    /// Returns the pixels of an image, f32 `[3, height, width]`.
    ///
    /// # Errors
    /// When the bytes are no image that can be read within [`Limits::MOST`].
    pub fn pixels(&self, file: &[u8]) -> Result<Vec<f32>, ImageError> {
        self.augmented(file, false)
    }

    /// As [`Self::pixels`], mirrored left to right if `flip` says so.
    ///
    /// # Errors
    /// As [`Self::pixels`].
    pub fn augmented(&self, file: &[u8], flip: bool) -> Result<Vec<f32>, ImageError> {
        let image = self.rgb(file)?;
        let mut pixels = Vec::with_capacity(image.bytes.len());
        for (channel, values) in self.values.iter().enumerate() {
            for row in image.bytes.chunks_exact(3 * image.width) {
                let bytes = row.iter().skip(channel).step_by(3);
                let value = |byte: &u8| values[usize::from(*byte)];
                if flip { pixels.extend(bytes.rev().map(value)) } else { pixels.extend(bytes.map(value)) }
            }
        }
        Ok(pixels)
    }

    /// Returns the bytes before they are rescaled, `[height, width, 3]`: what a person would see.
    ///
    /// # Errors
    /// As [`Self::pixels`].
    pub fn resized(&self, file: &[u8]) -> Result<Vec<u8>, ImageError> {
        self.rgb(file).map(|image| image.bytes)
    }

    /// Says whether a sound file becomes what the model takes. Decodes nothing.
    ///
    /// # Errors
    /// What [`inspect`] finds, and sizes that cannot be resized or that nothing resizes.
    pub fn takes(&self, file: &[u8]) -> Result<(), ImageError> {
        self.resized_size(inspect(file, Limits::MOST)?).map(drop)
    }

    fn rgb(&self, file: &[u8]) -> Result<Rgb, ImageError> {
        let header = inspect(file, Limits::MOST)?;
        let [height, width] = self.resized_size(header)?;
        let mut image = decode::rgb(file, header)?;
        if let Some((_, filter)) = self.resize {
            image = resample::resize(image, width, height, filter);
        }
        Ok(match self.crop {
            Some([height, width]) => crop(&image, width, height),
            None => image,
        })
    }

    /// Returns `[height, width]` before the crop, if the size after it is the model's.
    fn resized_size(&self, header: Header) -> Result<[usize; 2], ImageError> {
        let own = [header.height as usize, header.width as usize];
        let resized = self.resize.map_or(Ok(own), |(target, _)| target.of(own))?;
        let [height, width] = self.crop.unwrap_or(resized);
        match self.size {
            Some(size) if size != [height, width] => {
                Err(ImageError::Size { width, height, expected: (size[1], size[0]) })
            }
            Some(_) | None => Ok(resized),
        }
    }
}

impl Target {
    /// Returns `[height, width]` of an image of `[height, width]` after resizing.
    fn of(self, [height, width]: [usize; 2]) -> Result<[usize; 2], ImageError> {
        let edge = match self {
            Self::Exact(size) => return Ok(size),
            Self::ShortestEdge(edge) => edge as u64,
        };
        let (short, long) = (width.min(height) as u64, width.max(height) as u64);
        // Rounded down, as `int(edge * long / short)` is.
        let longer = edge * long / short.max(1);
        if longer > MOST_SIDE || longer * edge > MOST_IMAGE_PIXELS {
            return Err(ImageError::Narrow { width, height });
        }
        let (edge, longer) = (edge as usize, longer as usize);
        Ok(if width <= height { [longer, edge] } else { [edge, longer] })
    }
}

/// Cuts the middle out, as transformers' `center_crop` does: odd rests go to the end, or to the start of a black border.
fn crop(image: &Rgb, width: usize, height: usize) -> Rgb {
    let before = |has: usize, wants: usize| (has.saturating_sub(wants) / 2, wants.saturating_sub(has).div_ceil(2));
    let ((left, pad_left), (top, pad_top)) = (before(image.width, width), before(image.height, height));
    let mut bytes = vec![0; 3 * width * height];
    let (columns, rows) = (width.min(image.width), height.min(image.height));
    for row in 0..rows {
        let from = 3 * ((top + row) * image.width + left);
        let to = 3 * ((pad_top + row) * width + pad_left);
        bytes[to..to + 3 * columns].copy_from_slice(&image.bytes[from..from + 3 * columns]);
    }
    Rgb { width, height, bytes }
}
