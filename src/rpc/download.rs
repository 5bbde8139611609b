//! Sends the files of an adapter as a stream of names and chunks.
//!
//! Chooses nothing: which files there are is the registry's, and what stands beside a whole model the base's. Sizes in
//! bytes.

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;
use tonic::Status;

use super::context::Context;
use super::pb::{self, download_adapter_response::Part};
use super::status::{self, Reason};
use crate::model::companions::Companion;
use crate::registry::StoredFile;
use crate::store::StoreError;

/// Bytes of a chunk.
const CHUNK: usize = 1 << 20;

/// Sends stored files, then those that are kept in memory; returns early, without a fault, when the reader has left.
///
/// # Errors
/// When a file cannot be read.
pub(super) async fn send(
    files: &[StoredFile],
    companions: &[Companion],
    pieces: &Pieces,
    context: &Context,
) -> Result<(), Status> {
    for file in files {
        send_file(file, pieces, context).await?;
    }
    for companion in companions {
        if !send_companion(companion, pieces).await {
            break;
        }
    }
    Ok(())
}

/// Returns whether somebody still reads.
async fn send_companion(companion: &Companion, pieces: &Pieces) -> bool {
    let (name, size) = (companion.name, companion.bytes.len() as u64);
    let sha256 = hex::encode(Sha256::digest(&companion.bytes));
    if !put(pieces, Part::File(pb::FileInfo { name: name.to_owned(), size, sha256 })).await {
        return false;
    }
    for (i, data) in companion.bytes.chunks(CHUNK).enumerate() {
        let offset = (i * CHUNK) as u64;
        if !put(pieces, Part::Chunk(pb::FileChunk { name: name.to_owned(), offset, data: data.to_vec() })).await {
            return false;
        }
    }
    true
}

/// Where a download goes.
pub(super) type Pieces = mpsc::Sender<Result<pb::DownloadAdapterResponse, Status>>;

/// Sends a file's name and size, then its bytes; returns early, without a fault, when the reader has left.
async fn send_file(file: &StoredFile, pieces: &Pieces, context: &Context) -> Result<(), Status> {
    let failed = |source| {
        let error = StoreError::Io { path: file.path.display().to_string(), source };
        status::internal(&error, &context.request_id)
    };
    let info = pb::FileInfo { name: file.name.to_owned(), size: file.size, sha256: file.sha256.clone() };
    if !put(pieces, Part::File(info)).await {
        return Ok(());
    }
    let mut source = tokio::fs::File::open(&file.path).await.map_err(failed)?;
    let mut offset = 0;
    while offset < file.size {
        let length = (file.size - offset).min(CHUNK as u64);
        let mut data = Vec::with_capacity(CHUNK);
        let read = (&mut source).take(length).read_to_end(&mut data).await.map_err(failed)?;
        if read as u64 != length {
            return Err(status::plain(Reason::DataCorrupt, format!("{} is cut short", file.name)));
        }
        let chunk = pb::FileChunk { name: file.name.to_owned(), offset, data };
        if !put(pieces, Part::Chunk(chunk)).await {
            return Ok(());
        }
        offset += length;
    }
    Ok(())
}

/// Returns whether somebody still reads.
async fn put(pieces: &Pieces, part: Part) -> bool {
    pieces.send(Ok(pb::DownloadAdapterResponse { part: Some(part) })).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_sent_in_chunks_with_its_offsets() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..CHUNK + 7).map(|i| i as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = |size: u64| StoredFile { name: "file", path: path.clone(), size, sha256: String::new() };
        let context = Context { request_id: "r".into(), deadline: None };
        let (pieces, mut stream) = mpsc::channel(8);
        send_file(&file(bytes.len() as u64), &pieces, &context).await.unwrap();
        drop(pieces);
        let mut back = Vec::new();
        while let Some(piece) = stream.recv().await {
            if let Some(Part::Chunk(chunk)) = piece.unwrap().part {
                assert_eq!(chunk.offset, back.len() as u64);
                back.extend(chunk.data);
            }
        }
        assert_eq!(back, bytes);
        let (pieces, _stream) = mpsc::channel(8);
        let short = send_file(&file(bytes.len() as u64 + 1), &pieces, &context).await;
        assert_eq!(short.unwrap_err().code(), tonic::Code::DataLoss);
    }
}
