//! Takes rows of images from a client stream and writes them as lines, in memory that is taken as it grows.
//!
//! Checks the form of a row; its image and values are checked by `dataset` with all other rows.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, Streaming};

use super::pb::{self, upload_dataset_request::Part};
use super::status::{self, Reason};
use super::upload;
use crate::dataset::{Declaration, ImageRow, Split, SplitRule, image_line};

/// Memory taken first; then it is doubled.
const FIRST: usize = 1 << 20;

/// Reads rows to the end of the stream: their lines, and the memory that they take.
pub(super) async fn receive(
    stream: &mut Streaming<pb::UploadDatasetRequest>,
    declaration: &Declaration,
    memory: &Arc<Semaphore>,
    limit: u64,
) -> Result<(Vec<u8>, OwnedSemaphorePermit), Status> {
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut lines: Vec<u8> = Vec::new();
    let mut taken = upload::reserve(memory, 0)?;
    let mut number = 0_u64;
    while let Some(message) = upload::message(stream).await? {
        number += 1;
        let (image, row) = match message.part {
            Some(Part::Row(wire)) => row(number, wire, declaration)?,
            Some(Part::Header(_)) => return Err(invalid("header", "must come once, in the first message")),
            Some(Part::Chunk(_)) | None => return Err(invalid("part", "must be a row: the header announces no file")),
        };
        let line = image_line(declaration, &image, &row);
        let size = lines.len().saturating_add(line.len());
        if size > most {
            return Err(upload::too_large(limit));
        }
        if size > lines.capacity() {
            let larger = size.max(lines.capacity().saturating_mul(2)).max(FIRST).min(most);
            let more = upload::permits(larger as u64).saturating_sub(u32::try_from(taken.num_permits()).unwrap_or(0));
            if more > 0 {
                taken.merge(upload::reserve_permits(memory, more)?);
            }
            lines.reserve_exact(larger - lines.len());
        }
        lines.extend(line);
    }
    Ok((lines, taken))
}

fn invalid(field: &str, text: &str) -> Status {
    status::field(Reason::InvalidField, field, text)
}

/// Checks a row's form.
fn row(number: u64, wire: pb::ImageRow, declaration: &Declaration) -> Result<(Vec<u8>, ImageRow), Status> {
    let fault = |field: &str, text: &str| Err(invalid(&format!("rows[{number}].{field}"), text));
    let named = matches!(declaration.split, SplitRule::Column(_));
    let split = match pb::DatasetSplit::try_from(wire.split) {
        Ok(pb::DatasetSplit::Unspecified) => None,
        Ok(_) if !named => return fault("split", "needs a split_column in the declaration"),
        Ok(pb::DatasetSplit::Train) => Some(Split::Train),
        Ok(pb::DatasetSplit::Validation) => Some(Split::Validation),
        Ok(pb::DatasetSplit::Test) => Some(Split::Test),
        Err(_) => return fault("split", "must be a part"),
    };
    if declaration.label.is_none() && !wire.labels.is_empty() {
        return fault("labels", "needs a label_column in the declaration");
    }
    let row = ImageRow { labels: wire.labels, split, values: wire.values };
    if let Some(strange) = row.strange(declaration) {
        return fault("values", &format!("`{}` is no declared column of groups", strange.escape_debug()));
    }
    Ok((wire.image, row))
}
