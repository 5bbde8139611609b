//! The pages of one column chunk, decompressed within a budget, for the `parquet` crate's value decoders.
//!
//! The crate's own page reader takes sizes from the file: it allocates what a header declares and lets a zstd or gzip
//! page grow without bound. Here every size is checked against the bytes that are there, the number of values against a
//! limit, and all decompressed bytes of a file against one budget. Encodings whose decoders allocate by a declared
//! count (the DELTA family) are refused by name. After: `parquet` 60 `file/serialized_reader.rs` (`decode_page`).

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};

use super::thrift::{Broken, Compact};

/// Bytes that one dictionary entry takes in memory beside its text.
const ENTRY: u64 = 32;

/// Bytes that may still be decompressed for a file; shared by its columns.
#[derive(Debug, Clone)]
pub(super) struct Budget(Arc<AtomicU64>);

impl Budget {
    pub(super) fn new(bytes: u64) -> Self {
        Self(Arc::new(AtomicU64::new(bytes)))
    }

    fn spend(&self, bytes: u64) -> Result<()> {
        let spent = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        spent.map(drop).map_err(|_| broken("the decompressed columns are larger than allowed"))
    }
}

/// Reads the pages of one chunk.
#[derive(Debug)]
pub(super) struct Pages {
    /// What is left of the chunk.
    chunk: Bytes,
    compression: Compression,
    budget: Budget,
    /// Values that the rest of the chunk may have.
    values: u64,
}

/// What a page header says.
#[derive(Debug, Default)]
struct Header {
    page_type: i64,
    uncompressed: usize,
    compressed: usize,
    crc: Option<u32>,
    values: u32,
    encoding: Option<Encoding>,
    def_encoding: Option<Encoding>,
    rep_encoding: Option<Encoding>,
    sorted: bool,
    nulls: u32,
    rows: u32,
    def_bytes: u32,
    rep_bytes: u32,
    is_compressed: bool,
}

const DATA: i64 = 0;
const INDEX: i64 = 1;
const DICTIONARY: i64 = 2;
const DATA_V2: i64 = 3;

impl Pages {
    /// A reader of `chunk`, which may have `values` values at most.
    pub(super) fn new(chunk: Bytes, compression: Compression, budget: Budget, values: u64) -> Self {
        Self { chunk, compression, budget, values }
    }

    fn next_page(&mut self) -> Result<Option<Page>> {
        loop {
            if self.chunk.is_empty() {
                return Ok(None);
            }
            let mut compact = Compact::new(&self.chunk);
            let header = header(&mut compact).map_err(|Broken| broken("a page header is broken"))?;
            let begin = self.chunk.len() - compact.left();
            let end = begin.checked_add(header.compressed).filter(|end| *end <= self.chunk.len());
            let end = end.ok_or_else(|| broken("a page is longer than its column"))?;
            let body = self.chunk.slice(begin..end);
            self.chunk = self.chunk.slice(end..);
            if let Some(crc) = header.crc {
                let mut sum = flate2::Crc::new();
                sum.update(&body);
                if sum.sum() != crc {
                    return Err(broken("a page is damaged: its checksum differs"));
                }
            }
            match header.page_type {
                DATA | DATA_V2 => return self.data(header, body).map(Some),
                DICTIONARY => return self.dictionary(header, body).map(Some),
                INDEX => {}
                _ => return Err(broken("a page has an unknown type")),
            }
        }
    }

    fn dictionary(&mut self, header: Header, body: Bytes) -> Result<Page> {
        let encoding = header.encoding.ok_or_else(|| broken("a dictionary's encoding is not supported"))?;
        let buf = self.decompress(body, 0, header.uncompressed, true)?;
        if header.values as usize > buf.len() {
            return Err(broken("a dictionary has more values than bytes"));
        }
        self.budget.spend(u64::from(header.values) * ENTRY)?;
        Ok(Page::DictionaryPage { buf, num_values: header.values, encoding, is_sorted: header.sorted })
    }

    fn data(&mut self, header: Header, body: Bytes) -> Result<Page> {
        let encoding = header.encoding.ok_or_else(|| {
            broken("a column has an encoding that is not supported: write it plain or with a dictionary")
        })?;
        let left = self.values.checked_sub(header.values.into());
        self.values = left.ok_or_else(|| broken("a column has more values than allowed"))?;
        let num_values = header.values;
        if header.page_type == DATA {
            let (Some(def_level_encoding), Some(rep_level_encoding)) = (header.def_encoding, header.rep_encoding)
            else {
                return Err(broken("the encoding of levels is not supported"));
            };
            let buf = self.decompress(body, 0, header.uncompressed, true)?;
            let statistics = None;
            return Ok(Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding,
                rep_level_encoding,
                statistics,
            });
        }
        let levels = u64::from(header.def_bytes) + u64::from(header.rep_bytes);
        let levels = usize::try_from(levels).ok().filter(|levels| *levels <= body.len().min(header.uncompressed));
        let levels = levels.ok_or_else(|| broken("levels are longer than their page"))?;
        let buf = self.decompress(body, levels, header.uncompressed, header.is_compressed)?;
        Ok(Page::DataPageV2 {
            buf,
            num_values,
            encoding,
            num_nulls: header.nulls,
            num_rows: header.rows,
            def_levels_byte_len: header.def_bytes,
            rep_levels_byte_len: header.rep_bytes,
            is_compressed: false,
            statistics: None,
        })
    }

    /// Returns the first `plain` bytes as they are and the rest decompressed: `size` bytes together, never more.
    fn decompress(&self, body: Bytes, plain: usize, size: usize, is_compressed: bool) -> Result<Bytes> {
        let wrong = || broken("a page does not have the size that it declares");
        self.budget.spend(size as u64)?;
        let compression = if is_compressed { self.compression } else { Compression::UNCOMPRESSED };
        if compression == Compression::UNCOMPRESSED {
            return if body.len() == size { Ok(body) } else { Err(wrong()) };
        }
        let (head, tail) = body.split_at(plain);
        let mut out = head.to_vec();
        // One byte more than declared shows that there is more.
        let most = (size - plain) as u64 + 1;
        match compression {
            // V2 pages of nulls only have no body at all.
            _ if tail.is_empty() => {}
            Compression::SNAPPY => {
                let length = snap::raw::decompress_len(tail).map_err(|_| wrong())?;
                // No byte of Snappy makes more than 64.
                if length != size - plain || length / 64 > tail.len() {
                    return Err(wrong());
                }
                out.resize(size, 0);
                snap::raw::Decoder::new().decompress(tail, &mut out[plain..]).map_err(|_| wrong())?;
            }
            Compression::GZIP(_) => {
                flate2::read::MultiGzDecoder::new(tail).take(most).read_to_end(&mut out).map_err(|_| wrong())?;
            }
            Compression::ZSTD(_) => {
                let decoder = zstd::stream::read::Decoder::with_buffer(tail).map_err(|_| wrong())?;
                decoder.take(most).read_to_end(&mut out).map_err(|_| wrong())?;
            }
            Compression::UNCOMPRESSED
            | Compression::LZO
            | Compression::BROTLI(_)
            | Compression::LZ4
            | Compression::LZ4_RAW => {
                let name = self.compression.to_string();
                let name = name.split('(').next().unwrap_or_default();
                return Err(broken(&format!("{name} compression is not supported: use snappy, gzip, zstd or none")));
            }
        }
        if out.len() == size { Ok(out.into()) } else { Err(wrong()) }
    }
}

fn broken(text: &str) -> ParquetError {
    ParquetError::General(text.to_owned())
}

/// Reads a `PageHeader`.
fn header(compact: &mut Compact<'_>) -> std::result::Result<Header, Broken> {
    let mut header = Header { page_type: -1, is_compressed: true, ..Header::default() };
    let mut last = 0;
    while let Some((number, kind)) = compact.field(&mut last)? {
        match number {
            1 => header.page_type = compact.number()?,
            2 => header.uncompressed = usize::try_from(compact.number()?).map_err(|_| Broken)?,
            3 => header.compressed = usize::try_from(compact.number()?).map_err(|_| Broken)?,
            // Written as a signed number of 32 bits.
            4 => header.crc = Some(i32::try_from(compact.number()?).map_err(|_| Broken)? as u32),
            5 | 7 | 8 => inner(compact, number, &mut header)?,
            _ => compact.skip(kind)?,
        }
    }
    Ok(header)
}

/// Reads a `DataPageHeader` (5), `DictionaryPageHeader` (7) or `DataPageHeaderV2` (8).
fn inner(compact: &mut Compact<'_>, which: i64, header: &mut Header) -> std::result::Result<(), Broken> {
    let count = |compact: &mut Compact<'_>| u32::try_from(compact.number()?).map_err(|_| Broken);
    let mut last = 0;
    while let Some((number, kind)) = compact.field(&mut last)? {
        match (which, number) {
            (_, 1) => header.values = count(compact)?,
            (5 | 7, 2) | (8, 4) => header.encoding = encoding(compact.number()?),
            (5, 3) => header.def_encoding = levels(compact.number()?),
            (5, 4) => header.rep_encoding = levels(compact.number()?),
            (7, 3) => header.sorted = Compact::truth(kind),
            (8, 2) => header.nulls = count(compact)?,
            (8, 3) => header.rows = count(compact)?,
            (8, 5) => header.def_bytes = count(compact)?,
            (8, 6) => header.rep_bytes = count(compact)?,
            (8, 7) => header.is_compressed = Compact::truth(kind),
            _ => compact.skip(kind)?,
        }
    }
    Ok(())
}

fn encoding(number: i64) -> Option<Encoding> {
    match number {
        0 => Some(Encoding::PLAIN),
        2 => Some(Encoding::PLAIN_DICTIONARY),
        3 => Some(Encoding::RLE),
        8 => Some(Encoding::RLE_DICTIONARY),
        _ => None,
    }
}

fn levels(number: i64) -> Option<Encoding> {
    (number == 3).then_some(Encoding::RLE)
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.next_page()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        Err(broken("pages are read in order"))
    }

    fn skip_next_page(&mut self) -> Result<()> {
        Err(broken("pages are read in order"))
    }

    /// Older writers let a row go on in the next page: only the end of the chunk is certain.
    fn at_record_boundary(&mut self) -> Result<bool> {
        Ok(self.chunk.is_empty())
    }
}
