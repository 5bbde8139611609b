//! Why bytes cannot become pixels.

/// Why an image cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// No image, or of a format that nobody here knows.
    #[error("is no JPEG, PNG or WebP image")]
    Unknown,
    /// An image of a kind that is not read.
    #[error("{0} is not supported: write JPEG, PNG or WebP in grey or RGB")]
    Unsupported(String),
    /// The file ends before the image does.
    #[error("is truncated: the file ends before the image does")]
    Truncated,
    /// The bytes contradict themselves.
    #[error("is a damaged image: {0}")]
    Damaged(String),
    /// No pixels.
    #[error("is an image of {width} x {height}: it has no pixels")]
    Empty {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// More pixels than allowed.
    #[error("is an image of {width} x {height}, over the limit of {limit} pixels or 65536 a side")]
    Pixels {
        /// Pixels in a row.
        width: u32,
        /// Rows.
        height: u32,
        /// The limit of their product.
        limit: u64,
    },
    /// A larger file than allowed.
    #[error("is an image of {bytes} bytes, over the limit of {limit}")]
    Bytes {
        /// The file's size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// So narrow that resizing by its shorter side would make it huge.
    #[error("is an image of {width} x {height}: too narrow to be resized by its shorter side")]
    Narrow {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
    },
    /// Of another size than the model takes, where nothing resizes it.
    #[error("is an image of {width} x {height}; the model takes {} x {} and does not resize", expected.0, expected.1)]
    Size {
        /// Pixels in a row.
        width: usize,
        /// Rows.
        height: usize,
        /// Width and height that the model takes.
        expected: (usize, usize),
    },
}
