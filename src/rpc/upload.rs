//! Takes an adapter from a client stream: a header, then the files in chunks.
//!
//! Checks form, order, sizes and digests; what the bytes mean is the registry's business. Memory is bounded over all
//! uploads together by permits of [`UNIT`] bytes, taken before the first byte is kept; a client that goes silent is let
//! go after [`SILENCE`].

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, Streaming};

use super::pb::{self, upload_adapter_request::Part};
use super::status::{self, Reason};
use super::violations::Violations;
use crate::registry::AdapterFiles;

/// Bytes of one permit.
const UNIT: u64 = 64 << 10;
/// Longest wait for the next message.
const SILENCE: Duration = Duration::from_secs(60);
/// Configuration and tensors of an adapter: of a PEFT folder, or of a whole model.
const FILES: [[&str; 2]; 2] =
    [["adapter_config.json", "adapter_model.safetensors"], ["config.json", "model.safetensors"]];

/// A whole upload.
#[derive(Debug)]
pub(super) struct Upload<T> {
    /// What the caller made of the header.
    pub(super) checked: T,
    /// The header, configuration first, and with the digests of what came.
    pub(super) header: pb::UploadAdapterHeader,
    /// The files.
    pub(super) files: AdapterFiles,
    /// Memory of the files; to be kept as long as they are.
    pub(super) memory: OwnedSemaphorePermit,
}

/// Returns the permits that `bytes` need.
pub(super) fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT).max(1)).unwrap_or(u32::MAX >> 3).min(u32::MAX >> 3)
}

/// Reads an upload to its end. `check` looks at the header before anything else is read, and adds what it finds faulty.
pub(super) async fn receive<T>(
    stream: &mut Streaming<pb::UploadAdapterRequest>,
    memory: &Arc<Semaphore>,
    limit: u64,
    check: impl FnOnce(&pb::UploadAdapterHeader, &mut Violations) -> Option<T>,
) -> Result<Upload<T>, Status> {
    let Some(Part::Header(header)) = next(stream).await? else {
        return Err(status::field(Reason::InvalidField, "header", "the first message must be the header"));
    };
    let mut faults = Violations::default();
    let checked = check(&header, &mut faults);
    let (mut receiver, checked) = Receiver::new(header, limit, faults, checked)?;
    let memory = Arc::clone(memory).try_acquire_many_owned(permits(receiver.total())).map_err(|_| {
        status::retry(Reason::QueueFull, "other uploads hold the memory for uploads", Duration::from_secs(1))
    })?;
    receiver.reserve()?;
    while let Some(part) = next(stream).await? {
        match part {
            Part::Chunk(chunk) => receiver.take(&chunk)?,
            Part::Header(_) => {
                return Err(status::field(Reason::InvalidField, "header", "must come once, in the first message"));
            }
        }
    }
    let (header, files) = receiver.finish()?;
    Ok(Upload { checked, header, files, memory })
}

async fn next(stream: &mut Streaming<pb::UploadAdapterRequest>) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(SILENCE, stream.message()).await;
    let message = message.map_err(|_| status::plain(Reason::DeadlineExceeded, "no message came for 60 seconds"))?;
    match message? {
        None => Ok(None),
        Some(pb::UploadAdapterRequest { part: Some(part) }) => Ok(Some(part)),
        Some(pb::UploadAdapterRequest { part: None }) => {
            Err(status::field(Reason::InvalidField, "part", "must be a header or a chunk"))
        }
    }
}

/// The files so far.
struct Receiver {
    header: pb::UploadAdapterHeader,
    /// In the order of the header.
    files: [Vec<u8>; 2],
    /// Index of the file that grows.
    current: Option<usize>,
}

impl Receiver {
    /// Checks the header's files; their order is free.
    fn new<T>(
        mut header: pb::UploadAdapterHeader,
        limit: u64,
        mut v: Violations,
        checked: Option<T>,
    ) -> Result<(Self, T), Status> {
        header.files.truncate(FILES[0].len() + 1);
        header.files.sort_by(|a, b| a.name.cmp(&b.name));
        let names: Vec<_> = header.files.iter().map(|file| file.name.as_str()).collect();
        if !FILES.iter().any(|files| names == files) {
            let rule =
                "must be adapter_config.json and adapter_model.safetensors, or config.json and model.safetensors";
            v.add("header.files", rule);
        }
        for (i, file) in header.files.iter().enumerate() {
            let digest = file.sha256.is_empty() || hex::decode(&file.sha256).is_ok_and(|bytes| bytes.len() == 32);
            v.require(&format!("header.files[{i}].sha256"), digest, "must be 64 hexadecimal digits or empty");
            v.require(&format!("header.files[{i}].size"), file.size > 0, "must be above 0");
        }
        let checked = v.finish(checked).map_err(|v| status::violations(&v))?;
        let total = header.files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size));
        match total {
            Some(total) if total <= limit => Ok((Self { header, files: Default::default(), current: None }, checked)),
            _ => {
                let text = format!("the files are larger than the {limit} bytes allowed together");
                Err(status::plain(Reason::UploadTooLarge, text))
            }
        }
    }

    fn total(&self) -> u64 {
        self.header.files.iter().map(|file| file.size).sum()
    }

    /// Sets the memory aside, so that growing never takes more than was announced.
    fn reserve(&mut self) -> Result<(), Status> {
        for (bytes, file) in self.files.iter_mut().zip(&self.header.files) {
            let size = usize::try_from(file.size).unwrap_or(usize::MAX);
            bytes
                .try_reserve_exact(size)
                .map_err(|_| status::retry(Reason::QueueFull, "no memory for this upload", Duration::from_secs(1)))?;
        }
        Ok(())
    }

    fn take(&mut self, chunk: &pb::FileChunk) -> Result<(), Status> {
        let fault = |name: &str, text: String| Err(status::field(Reason::InvalidField, name, &text));
        let Some(index) = self.header.files.iter().position(|file| file.name == chunk.name) else {
            return fault("chunk.name", "must be a file of the header".to_owned());
        };
        let bytes = &mut self.files[index];
        if self.current != Some(index) && !bytes.is_empty() {
            return fault("chunk.name", format!("{} was left before: files come one after the other", chunk.name));
        }
        self.current = Some(index);
        if chunk.offset != bytes.len() as u64 {
            return fault("chunk.offset", format!("must be {}, where {} goes on", bytes.len(), chunk.name));
        }
        let size = self.header.files[index].size;
        if chunk.data.len() as u64 > size - bytes.len() as u64 {
            return fault("chunk.data", format!("{} is longer than the {size} bytes of the header", chunk.name));
        }
        bytes.extend_from_slice(&chunk.data);
        Ok(())
    }

    /// Checks sizes and digests, and writes the digests into the header.
    fn finish(mut self) -> Result<(pb::UploadAdapterHeader, AdapterFiles), Status> {
        for (bytes, file) in self.files.iter().zip(&mut self.header.files) {
            if bytes.len() as u64 != file.size {
                let text = format!("{} has {} bytes, the header says {}", file.name, bytes.len(), file.size);
                return Err(status::field(Reason::InvalidField, "chunk", &text));
            }
            let digest = hex::encode(Sha256::digest(bytes));
            if !file.sha256.is_empty() && !file.sha256.eq_ignore_ascii_case(&digest) {
                let text = format!("{} has SHA-256 {digest}, the header says {}", file.name, file.sha256);
                return Err(status::field(Reason::Checksum, "header.files.sha256", &text));
            }
            file.sha256 = digest;
        }
        let [config, tensors] = self.files;
        Ok((self.header, AdapterFiles { config, tensors }))
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;

    fn header(config: &[u8], tensors: &[u8]) -> pb::UploadAdapterHeader {
        let file = |name: &str, bytes: &[u8]| pb::FileInfo {
            name: name.to_owned(),
            size: bytes.len() as u64,
            sha256: hex::encode(Sha256::digest(bytes)),
        };
        pb::UploadAdapterHeader {
            name: "poet".into(),
            files: vec![file(FILES[0][1], tensors), file(FILES[0][0], config)],
            ..Default::default()
        }
    }

    fn begin(header: pb::UploadAdapterHeader, limit: u64) -> Result<Receiver, Status> {
        Receiver::new(header, limit, Violations::default(), Some(())).map(|(receiver, ())| receiver)
    }

    fn chunk(file: usize, offset: u64, data: &[u8]) -> pb::FileChunk {
        pb::FileChunk { name: FILES[0][file].into(), offset, data: data.to_vec() }
    }

    fn reason<T>(result: Result<T, Status>) -> String {
        result.err().and_then(|s| s.get_details_error_info()).map_or_else(String::new, |info| info.reason)
    }

    #[test]
    fn chunks_in_order_make_the_files() {
        let mut receiver = begin(header(b"{}", b"tensors"), 9).unwrap();
        receiver.reserve().unwrap();
        receiver.take(&chunk(1, 0, b"tens")).unwrap();
        receiver.take(&chunk(1, 4, b"ors")).unwrap();
        receiver.take(&chunk(0, 0, b"{}")).unwrap();
        let (header, files) = receiver.finish().unwrap();
        assert_eq!((files.config.as_slice(), files.tensors.as_slice()), (&b"{}"[..], &b"tensors"[..]));
        assert_eq!(header.files[0].name, FILES[0][0]);
    }

    #[test]
    fn out_of_order_repeated_foreign_and_long_chunks_are_refused() {
        let faulty = [
            vec![chunk(1, 1, b"x")],
            vec![chunk(1, 0, b"te"), chunk(1, 0, b"te")],
            vec![chunk(1, 0, b"te"), chunk(0, 0, b"{}"), chunk(1, 2, b"nsors")],
            vec![chunk(1, 0, b"tensorsx")],
            vec![pb::FileChunk { name: "../etc".into(), offset: 0, data: vec![1] }],
            vec![chunk(1, u64::MAX, b"x")],
        ];
        for chunks in faulty {
            let mut receiver = begin(header(b"{}", b"tensors"), 9).unwrap();
            let result = chunks.iter().try_for_each(|chunk| receiver.take(chunk));
            assert_eq!(reason(result), "INVALID_FIELD", "{chunks:?}");
        }
    }

    #[test]
    fn missing_bytes_and_wrong_digests_are_refused() {
        let receiver = begin(header(b"{}", b"tensors"), 9).unwrap();
        assert_eq!(reason(receiver.finish()), "INVALID_FIELD");
        let mut receiver = begin(header(b"{}", b"tensors"), 9).unwrap();
        receiver.take(&chunk(0, 0, b"{}")).unwrap();
        receiver.take(&chunk(1, 0, b"tensorS")).unwrap();
        assert_eq!(reason(receiver.finish()), "CHECKSUM");
    }

    #[test]
    fn headers_are_checked_before_anything_is_read() {
        assert_eq!(reason(begin(header(b"{}", b"tensors"), 8)), "UPLOAD_TOO_LARGE");
        let mut huge = header(b"{}", b"tensors");
        huge.files[0].size = u64::MAX;
        assert_eq!(reason(begin(huge, 1 << 30)), "UPLOAD_TOO_LARGE");
        let mut twice = header(b"{}", b"tensors");
        twice.files[0].name = FILES[0][0].into();
        assert_eq!(reason(begin(twice, 9)), "INVALID_FIELD");
        let mut mixed = header(b"{}", b"tensors");
        mixed.files[0].name = FILES[1][1].into();
        assert_eq!(reason(begin(mixed, 9)), "INVALID_FIELD");
        let mut whole = header(b"{}", b"tensors");
        (whole.files[0].name, whole.files[1].name) = (FILES[1][1].into(), FILES[1][0].into());
        assert!(begin(whole, 9).is_ok());
        let mut three = header(b"{}", b"tensors");
        three.files.push(pb::FileInfo { name: "x.bin".into(), size: 1, ..Default::default() });
        assert_eq!(reason(begin(three, 90)), "INVALID_FIELD");
        let mut digest = header(b"{}", b"tensors");
        digest.files[0].sha256 = "zz".into();
        assert_eq!(reason(begin(digest, 9)), "INVALID_FIELD");
    }

    #[test]
    fn permits_grow_with_bytes() {
        assert_eq!(permits(0), 1);
        assert_eq!(permits(UNIT), 1);
        assert_eq!(permits(UNIT + 1), 2);
        assert!(permits(u64::MAX) as usize <= Semaphore::MAX_PERMITS);
    }
}
