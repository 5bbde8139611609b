//! Reads Parquet: the declared columns of every row group, in order.
//!
//! The footer and the value decoders are the `parquet` crate's; pages are [`pages`]' own, within a budget. Because that
//! crate still panics on some damaged files, reading is fenced: a panic in it is a broken file, not a broken server.
//! Snappy, gzip, zstd and no compression; plain and dictionary encoding; data pages of both versions.

mod columns;
mod pages;
mod thrift;

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use serde_json::{Map, Value};

use self::columns::{Column, Elements, Leaf, Shape};
use self::pages::{Budget, Pages};
use super::build::Builder;
use super::fault::FaultKind;

/// Largest footer.
const MOST_FOOTER: usize = 8 << 20;
/// Rows read at a time.
const BATCH: usize = 64;
/// Most elements of all lists of a column in one row group: what one row may make us hold at once.
const MOST_ELEMENTS: u64 = 4 << 20;
/// The magic number, at both ends.
const MAGIC: &[u8] = b"PAR1";

/// Reads all rows into `builder`, up to its last fault.
pub(super) fn read(bytes: &Bytes, builder: &mut Builder<'_>) {
    let read = catch_unwind(AssertUnwindSafe(|| read_fenced(bytes, builder)));
    match read {
        Ok(Ok(())) => {}
        Ok(Err(text)) => builder.file_fault(None, FaultKind::Syntax(text)),
        Err(_) => builder.file_fault(None, FaultKind::Syntax("the file is damaged".into())),
    }
}

fn read_fenced(bytes: &Bytes, builder: &mut Builder<'_>) -> Result<(), String> {
    let metadata = footer(bytes)?;
    let schema = metadata.file_metadata().schema_descr();
    let mut columns = Vec::new();
    for (index, name) in builder.columns().to_vec().into_iter().enumerate() {
        let found = if builder.image_at() == Some(index) {
            columns::find_image(schema, name)
        } else {
            columns::find(schema, name)
        };
        match found {
            Ok(column) => {
                builder.see(index);
                columns.push(column);
            }
            Err(kind) => builder.file_fault(Some(name), kind),
        }
    }
    let budget = Budget::new(builder.limits.decoded_bytes);
    for group in metadata.row_groups() {
        if !builder.goes_on() {
            break;
        }
        read_group(bytes, group, &columns, &budget, builder)?;
    }
    Ok(())
}

/// Finds and reads the footer.
fn footer(bytes: &[u8]) -> Result<ParquetMetaData, String> {
    let inner = bytes.strip_prefix(MAGIC).and_then(|rest| rest.strip_suffix(MAGIC));
    let (inner, length) = inner.and_then(<[u8]>::split_last_chunk::<4>).ok_or("is no Parquet file")?;
    let length = u32::from_le_bytes(*length) as usize;
    let begin = inner.len().checked_sub(length).ok_or("the footer is longer than the file")?;
    if length > MOST_FOOTER {
        return Err(format!("the footer is over the limit of {MOST_FOOTER} bytes"));
    }
    let footer = &inner[begin..];
    thrift::check_depth(footer).map_err(|thrift::Broken| "the footer is broken".to_owned())?;
    ParquetMetaDataReader::decode_metadata(footer).map_err(|error| format!("the footer is broken: {error}"))
}

fn read_group(
    bytes: &Bytes,
    group: &RowGroupMetaData,
    columns: &[Column],
    budget: &Budget,
    builder: &mut Builder<'_>,
) -> Result<(), String> {
    let schema = group.schema_descr();
    let mut leaves = Vec::with_capacity(columns.len());
    for column in columns {
        let most = if column.shape == Shape::Scalar { builder.limits.rows } else { MOST_ELEMENTS };
        let of_column = column.leaves.iter().map(|index| {
            let chunk = group.columns().get(*index).ok_or("a row group lacks a column")?;
            let pages = Pages::new(slice(bytes, chunk)?, chunk.compression(), budget.clone(), most);
            Ok::<_, String>(Leaf::new(schema, *index, pages))
        });
        leaves.push(of_column.collect::<Result<Vec<_>, _>>()?);
    }
    let rows = u64::try_from(group.num_rows()).map_err(|_| "a row group has a negative number of rows")?;
    let mut left = rows;
    while left > 0 && builder.goes_on() {
        let want = usize::try_from(left).unwrap_or(BATCH).min(BATCH);
        let mut batches = Vec::with_capacity(columns.len());
        for (column, leaves) in columns.iter().zip(&mut leaves) {
            let from = match column.shape {
                Shape::Scalar => 0,
                Shape::List(from) | Shape::Objects(from) => from,
            };
            let mut batch = Vec::with_capacity(leaves.len());
            for leaf in leaves {
                let read = leaf.read(want, from).map_err(|error| {
                    // The crate's own prefix says nothing.
                    let text = error.to_string();
                    text.strip_prefix("Parquet error: ").unwrap_or(&text).to_owned()
                })?;
                if read.len() != want {
                    return Err(format!("a row group has fewer rows than the {rows} that it declares"));
                }
                batch.push((leaf.name().to_owned(), read));
            }
            batches.push((&column.shape, batch));
        }
        for row in 0..want {
            if builder.goes_on() {
                push(&batches, row, builder);
            }
        }
        left -= want as u64;
    }
    Ok(())
}

/// One column of a batch: its leaves by name.
type Batch<'a> = (&'a Shape, Vec<(String, Vec<Elements>)>);

fn push(batches: &[Batch<'_>], row: usize, builder: &mut Builder<'_>) {
    // Nothing is copied before the limit is asked.
    let image_at = builder.image_at();
    let texts = batches.iter().enumerate().filter(|(index, _)| Some(*index) != image_at);
    let leaves = texts.flat_map(|(_, (_, leaves))| leaves);
    let size: u64 = leaves.flat_map(|(_, rows)| rows[row].iter().flatten()).map(|scalar| 8 + scalar.size()).sum();
    let limit = builder.limits.row_bytes;
    if size > limit {
        return builder.row_fault(None, FaultKind::TooLarge { what: "the row's size in bytes", limit });
    }
    let mut cells = Vec::with_capacity(batches.len());
    let mut image = None;
    for (index, (shape, leaves)) in batches.iter().enumerate() {
        if Some(index) == image_at {
            image = file(leaves, row);
            cells.push(Value::Null);
            continue;
        }
        match cell(shape, leaves, row) {
            Ok(value) => cells.push(value),
            Err(kind) => {
                let column = builder.columns().get(index).copied();
                return builder.row_fault(column, kind);
            }
        }
    }
    // Copied, so that it does not hold its whole page; one that is too large only to be refused.
    let most = usize::try_from(builder.limits.image.bytes.saturating_add(1)).unwrap_or(usize::MAX);
    let image = image.map(|bytes| Bytes::copy_from_slice(&bytes[..bytes.len().min(most)]));
    builder.push(&mut cells, image);
}

/// Returns the file of a row's image.
fn file(leaves: &[(String, Vec<Elements>)], row: usize) -> Option<&[u8]> {
    let (_, rows) = leaves.first()?;
    match rows.get(row)?.as_deref()?.first()? {
        columns::Scalar::Bytes(bytes) if !bytes.data().is_empty() => Some(bytes.data()),
        columns::Scalar::Bytes(_) | columns::Scalar::Null | columns::Scalar::Other(_) => None,
    }
}

fn cell(shape: &Shape, leaves: &[(String, Vec<Elements>)], row: usize) -> Result<Value, FaultKind> {
    let Some(first) = leaves.first().and_then(|(_, rows)| rows[row].as_deref()) else { return Ok(Value::Null) };
    match shape {
        Shape::Scalar => first.first().map_or(Ok(Value::Null), columns::Scalar::value),
        Shape::List(_) => first.iter().map(columns::Scalar::value).collect::<Result<Vec<_>, _>>().map(Value::Array),
        Shape::Objects(_) => {
            let mut objects = vec![Map::new(); first.len()];
            for (name, rows) in leaves {
                let values = rows[row].as_deref().unwrap_or_default();
                if values.len() != objects.len() {
                    return Err(FaultKind::Syntax("the lists of a struct differ in length".into()));
                }
                for (object, scalar) in objects.iter_mut().zip(values) {
                    object.insert(name.clone(), scalar.value()?);
                }
            }
            Ok(Value::Array(objects.into_iter().map(Value::Object).collect()))
        }
    }
}

/// Returns the bytes of a column chunk.
fn slice(bytes: &Bytes, chunk: &ColumnChunkMetaData) -> Result<Bytes, String> {
    if chunk.file_path().is_some() {
        return Err("a column lies in another file".into());
    }
    let data = chunk.data_page_offset();
    let begin = chunk.dictionary_page_offset().filter(|offset| (1..data).contains(offset)).unwrap_or(data);
    let range = usize::try_from(begin).ok().zip(usize::try_from(chunk.compressed_size()).ok());
    let range = range.and_then(|(begin, length)| Some(begin..begin.checked_add(length)?));
    let range = range.filter(|range| range.end <= bytes.len()).ok_or("a column lies outside of the file")?;
    Ok(bytes.slice(range))
}
