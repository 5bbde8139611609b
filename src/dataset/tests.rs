//! Tests of the readers: what each format says, and every fault with its place.

mod files;
mod images;
mod names;
mod parquet;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::*;
use crate::model::image;

const LIMITS: Limits =
    Limits { rows: 1000, row_bytes: 10_000, decoded_bytes: 1_000_000, image: IMAGES, pixels: Some(10_000) };
const IMAGES: image::Limits = image::Limits { bytes: 1000, pixels: 1000 };

fn text(format: Format) -> Declaration {
    Declaration::new(format, ContentColumns::Text("text".into()))
}

fn labelled(format: Format) -> Declaration {
    let label = LabelColumn { column: "label".into(), multi_label: false, names: Vec::new(), separator: String::new() };
    Declaration { label: Some(label), ..text(format) }
}

fn parse_within(limits: Limits, bytes: impl AsRef<[u8]>, declaration: &Declaration) -> Result<Dataset, DatasetError> {
    let bytes = Bytes::copy_from_slice(bytes.as_ref());
    Dataset::parse(&bytes, &Sha256::digest(&bytes).into(), declaration, limits)
}

fn parse(bytes: impl AsRef<[u8]>, declaration: &Declaration) -> Result<Dataset, DatasetError> {
    parse_within(LIMITS, bytes, declaration)
}

#[track_caller]
fn faults<T: std::fmt::Debug>(result: Result<T, DatasetError>) -> Vec<String> {
    let DatasetError::Invalid(faults) = result.unwrap_err() else { panic!("not about the file") };
    assert!(!faults.is_empty());
    faults.iter().map(Fault::to_string).collect()
}

fn texts(dataset: &Dataset) -> Vec<&str> {
    let text = |row: &'_ Row| matches!(&row.content, Content::Text(_));
    assert!(dataset.rows.iter().all(text));
    dataset
        .rows
        .iter()
        .map(|row| match &row.content {
            Content::Text(text) => text.as_str(),
            Content::Completion { .. } | Content::Messages(_) | Content::Image(_) => "",
        })
        .collect()
}

fn classes(dataset: &Dataset) -> Vec<Vec<&str>> {
    let names = |row: &Row| match &row.label {
        None => Vec::new(),
        Some(Label::Class(class)) => vec![dataset.labels[*class].as_str()],
        Some(Label::Classes(classes)) => classes.iter().map(|class| dataset.labels[*class].as_str()).collect(),
    };
    dataset.rows.iter().map(names).collect()
}
