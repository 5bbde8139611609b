//! Takes files from a client stream: a header, then the files in chunks.
//!
//! Checks form, order, sizes and digests; what the bytes mean is the caller's business. Memory is bounded over all
//! uploads of a service together by permits of [`UNIT`] bytes, taken before the first byte is kept; a client that goes
//! silent is let go after [`SILENCE`].

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, Streaming};

use super::pb;
use super::status::{self, Reason};
use super::violations::Violations;

/// Bytes of one permit.
const UNIT: u64 = 64 << 10;
/// Longest wait for the next message.
const SILENCE: Duration = Duration::from_secs(60);

/// A message of an upload.
pub(super) trait Message {
    /// The first part.
    type Header;

    /// Takes the part out; `None` where there is none.
    fn part(self) -> Option<Part<Self::Header>>;
}

/// What a message holds.
#[derive(Debug)]
pub(super) enum Part<H> {
    /// What is uploaded.
    Header(H),
    /// Bytes of a file.
    Chunk(pb::FileChunk),
}

/// A file that a header announces.
#[derive(Debug, Clone)]
pub(super) struct Announced {
    /// What chunks call it.
    pub(super) name: &'static str,
    /// Where the header speaks of it.
    pub(super) field: String,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Its SHA-256, hexadecimal; empty: not told.
    pub(super) sha256: String,
}

/// A whole file.
#[derive(Debug)]
pub(super) struct Received {
    /// Its content.
    pub(super) bytes: Vec<u8>,
    /// Its SHA-256, hexadecimal.
    pub(super) sha256: String,
}

/// A whole upload of `N` files.
#[derive(Debug)]
pub(super) struct Upload<H, T, const N: usize> {
    /// What the caller made of the header.
    pub(super) checked: T,
    /// The header.
    pub(super) header: H,
    /// The files, as they were announced.
    pub(super) files: [Received; N],
    /// Memory of the files; to be kept as long as they are.
    pub(super) memory: OwnedSemaphorePermit,
}

/// Returns the permits that `bytes` need.
pub(super) fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT).max(1)).unwrap_or(u32::MAX >> 3).min(u32::MAX >> 3)
}

/// Reads an upload to its end. `check` looks at the header before anything else is read, adds what it finds faulty, and
/// returns the files.
pub(super) async fn receive<M: Message, T, const N: usize>(
    stream: &mut Streaming<M>,
    memory: &Arc<Semaphore>,
    limit: u64,
    check: impl FnOnce(&mut M::Header, &mut Violations) -> ([Announced; N], Option<T>),
) -> Result<Upload<M::Header, T, N>, Status> {
    let header = header(stream).await?;
    receive_files(stream, header, memory, limit, check).await
}

/// Reads the header.
pub(super) async fn header<M: Message>(stream: &mut Streaming<M>) -> Result<M::Header, Status> {
    match next(stream).await? {
        Some(Part::Header(header)) => Ok(header),
        Some(Part::Chunk(_)) | None => {
            Err(status::field(Reason::InvalidField, "header", "the first message must be the header"))
        }
    }
}

/// As [`receive`], when the header was read.
pub(super) async fn receive_files<M: Message, T, const N: usize>(
    stream: &mut Streaming<M>,
    mut header: M::Header,
    memory: &Arc<Semaphore>,
    limit: u64,
    check: impl FnOnce(&mut M::Header, &mut Violations) -> ([Announced; N], Option<T>),
) -> Result<Upload<M::Header, T, N>, Status> {
    let mut faults = Violations::default();
    let (files, checked) = check(&mut header, &mut faults);
    let (mut receiver, checked) = Receiver::new(files, limit, faults, checked)?;
    let memory = reserve(memory, receiver.total())?;
    receiver.reserve()?;
    while let Some(part) = next(stream).await? {
        match part {
            Part::Chunk(chunk) => receiver.take(&chunk)?,
            Part::Header(_) => {
                return Err(status::field(Reason::InvalidField, "header", "must come once, in the first message"));
            }
        }
    }
    Ok(Upload { checked, header, files: receiver.finish()?, memory })
}

/// Takes memory for `bytes`, without waiting.
pub(super) fn reserve(memory: &Arc<Semaphore>, bytes: u64) -> Result<OwnedSemaphorePermit, Status> {
    reserve_permits(memory, permits(bytes))
}

/// As [`reserve`], counted in permits.
pub(super) fn reserve_permits(memory: &Arc<Semaphore>, permits: u32) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(memory).try_acquire_many_owned(permits).map_err(|_| {
        status::retry(Reason::QueueFull, "other uploads hold the memory for uploads", Duration::from_secs(1))
    })
}

/// Memory of an upload whose size nobody announces: what it has taken of that of all uploads.
#[derive(Debug)]
pub(super) struct Memory {
    all: Arc<Semaphore>,
    limit: u64,
    bytes: u64,
    held: Option<OwnedSemaphorePermit>,
}

impl Memory {
    /// Begins with nothing; `limit` is what all uploads have.
    pub(super) fn new(all: &Arc<Semaphore>, limit: u64) -> Self {
        Self { all: Arc::clone(all), limit, bytes: 0, held: None }
    }

    /// Takes more, without waiting, before anything is kept there.
    ///
    /// # Errors
    /// UPLOAD_TOO_LARGE where it would never fit, QUEUE_FULL where it does not now.
    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), Status> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.limit {
            return Err(too_large(self.limit));
        }
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let more = permits(self.bytes).saturating_sub(u32::try_from(held).unwrap_or(u32::MAX));
        if more > 0 {
            let more = reserve_permits(&self.all, more)?;
            match &mut self.held {
                Some(held) => held.merge(more),
                None => self.held = Some(more),
            }
        }
        Ok(())
    }
}

/// The refusal of more than is taken.
pub(super) fn too_large(limit: u64) -> Status {
    status::plain(Reason::UploadTooLarge, format!("the upload is larger than the {limit} bytes allowed"))
}

/// Reads a message; `None` at the end.
pub(super) async fn message<M>(stream: &mut Streaming<M>) -> Result<Option<M>, Status> {
    let message = tokio::time::timeout(SILENCE, stream.message()).await;
    message.map_err(|_| status::plain(Reason::DeadlineExceeded, "no message came for 60 seconds"))?
}

async fn next<M: Message>(stream: &mut Streaming<M>) -> Result<Option<Part<M::Header>>, Status> {
    let Some(message) = message(stream).await? else { return Ok(None) };
    let part = message.part();
    part.map(Some).ok_or_else(|| status::field(Reason::InvalidField, "part", "must be a header or a chunk"))
}

/// The files so far.
struct Receiver<const N: usize> {
    announced: [Announced; N],
    files: [Vec<u8>; N],
    /// Index of the file that grows.
    current: Option<usize>,
}

impl<const N: usize> Receiver<N> {
    /// Checks what is announced.
    fn new<T>(
        announced: [Announced; N],
        limit: u64,
        mut v: Violations,
        checked: Option<T>,
    ) -> Result<(Self, T), Status> {
        for file in &announced {
            let digest = file.sha256.is_empty() || hex::decode(&file.sha256).is_ok_and(|bytes| bytes.len() == 32);
            v.require(&format!("{}.sha256", file.field), digest, "must be 64 hexadecimal digits or empty");
            v.require(&format!("{}.size", file.field), file.size > 0, "must be above 0");
        }
        let checked = v.finish(checked).map_err(|v| status::violations(&v))?;
        let total = announced.iter().try_fold(0u64, |sum, file| sum.checked_add(file.size));
        let files = std::array::from_fn(|_| Vec::new());
        match total {
            Some(total) if total <= limit => Ok((Self { announced, files, current: None }, checked)),
            _ => Err(too_large(limit)),
        }
    }

    fn total(&self) -> u64 {
        self.announced.iter().map(|file| file.size).sum()
    }

    /// Sets the memory aside, so that growing never takes more than was announced.
    fn reserve(&mut self) -> Result<(), Status> {
        for (bytes, file) in self.files.iter_mut().zip(&self.announced) {
            let size = usize::try_from(file.size).unwrap_or(usize::MAX);
            bytes
                .try_reserve_exact(size)
                .map_err(|_| status::retry(Reason::QueueFull, "no memory for this upload", Duration::from_secs(1)))?;
        }
        Ok(())
    }

    fn take(&mut self, chunk: &pb::FileChunk) -> Result<(), Status> {
        let fault = |name: &str, text: String| Err(status::field(Reason::InvalidField, name, &text));
        let Some(index) = self.announced.iter().position(|file| *file.name == chunk.name) else {
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
        let size = self.announced[index].size;
        if chunk.data.len() as u64 > size - bytes.len() as u64 {
            return fault("chunk.data", format!("{} is longer than the {size} bytes of the header", chunk.name));
        }
        bytes.extend_from_slice(&chunk.data);
        Ok(())
    }

    /// Checks sizes and digests.
    fn finish(self) -> Result<[Received; N], Status> {
        let mut fault = None;
        let mut announced = self.announced.iter();
        let files = self.files.map(|bytes| {
            let sha256 = hex::encode(Sha256::digest(&bytes));
            if let Some(file) = announced.next() {
                fault = fault.take().or_else(|| differs(file, bytes.len() as u64, &sha256));
            }
            Received { bytes, sha256 }
        });
        fault.map_or(Ok(files), Err)
    }
}

/// Says how a file differs from what was announced.
fn differs(file: &Announced, size: u64, sha256: &str) -> Option<Status> {
    if size != file.size {
        let text = format!("{} has {size} bytes, the header says {}", file.name, file.size);
        return Some(status::field(Reason::InvalidField, "chunk", &text));
    }
    let differs = !file.sha256.is_empty() && !file.sha256.eq_ignore_ascii_case(sha256);
    differs.then(|| {
        let text = format!("{} has SHA-256 {sha256}, the header says {}", file.name, file.sha256);
        status::field(Reason::Checksum, &format!("{}.sha256", file.field), &text)
    })
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use prost::Message as _;
    use tonic::codec::Codec as _;
    use tonic_types::StatusExt as _;

    use super::*;

    const FILES: [&str; 2] = ["one", "two"];

    fn announced(one: &[u8], two: &[u8]) -> [Announced; 2] {
        [(FILES[0], one), (FILES[1], two)].map(|(name, bytes)| Announced {
            name,
            field: format!("header.{name}"),
            size: bytes.len() as u64,
            sha256: hex::encode(Sha256::digest(bytes)),
        })
    }

    fn begin(files: [Announced; 2], limit: u64) -> Result<Receiver<2>, Status> {
        Receiver::new(files, limit, Violations::default(), Some(())).map(|(receiver, ())| receiver)
    }

    fn chunk(file: usize, offset: u64, data: &[u8]) -> pb::FileChunk {
        pb::FileChunk { name: FILES[file].into(), offset, data: data.to_vec() }
    }

    fn reason<T>(result: Result<T, Status>) -> String {
        result.err().and_then(|s| s.get_details_error_info()).map_or_else(String::new, |info| info.reason)
    }

    #[test]
    fn chunks_in_order_make_the_files() {
        let mut receiver = begin(announced(b"{}", b"tensors"), 9).unwrap();
        receiver.reserve().unwrap();
        receiver.take(&chunk(1, 0, b"tens")).unwrap();
        receiver.take(&chunk(1, 4, b"ors")).unwrap();
        receiver.take(&chunk(0, 0, b"{}")).unwrap();
        let [one, two] = receiver.finish().unwrap();
        assert_eq!((one.bytes.as_slice(), two.bytes.as_slice()), (&b"{}"[..], &b"tensors"[..]));
        assert_eq!(two.sha256, hex::encode(Sha256::digest(b"tensors")));
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
            let mut receiver = begin(announced(b"{}", b"tensors"), 9).unwrap();
            let result = chunks.iter().try_for_each(|chunk| receiver.take(chunk));
            assert_eq!(reason(result), "INVALID_FIELD", "{chunks:?}");
        }
    }

    #[test]
    fn missing_bytes_and_wrong_digests_are_refused() {
        let receiver = begin(announced(b"{}", b"tensors"), 9).unwrap();
        assert_eq!(reason(receiver.finish()), "INVALID_FIELD");
        let mut receiver = begin(announced(b"{}", b"tensors"), 9).unwrap();
        receiver.take(&chunk(0, 0, b"{}")).unwrap();
        receiver.take(&chunk(1, 0, b"tensorS")).unwrap();
        assert_eq!(reason(receiver.finish()), "CHECKSUM");
    }

    #[test]
    fn headers_are_checked_before_anything_is_read() {
        assert_eq!(reason(begin(announced(b"{}", b"tensors"), 8)), "UPLOAD_TOO_LARGE");
        let mut huge = announced(b"{}", b"tensors");
        huge[0].size = u64::MAX;
        assert_eq!(reason(begin(huge, 1 << 30)), "UPLOAD_TOO_LARGE");
        let mut digest = announced(b"{}", b"tensors");
        digest[0].sha256 = "zz".into();
        assert_eq!(reason(begin(digest, 9)), "INVALID_FIELD");
        assert_eq!(reason(begin(announced(b"", b"tensors"), 9)), "INVALID_FIELD");
    }

    /// A call's stream: these messages, each after that long, then silence.
    fn slow(messages: Vec<(u64, pb::UploadAdapterRequest)>) -> Streaming<pb::UploadAdapterRequest> {
        let frames = futures_util::stream::iter(messages).then(|(seconds, message)| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            let message = message.encode_to_vec();
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            Ok::<_, std::io::Error>(bytes::Bytes::from([&[0][..], &length, &message].concat()))
        });
        let body = axum::body::Body::from_stream(frames.chain(futures_util::stream::pending()));
        let decoder = tonic_prost::ProstCodec::<(), _>::default().decoder();
        Streaming::new_request(decoder, body, None, None)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_sends_nothing_for_a_minute_is_let_go() {
        let began = tokio::time::Instant::now();
        let silent = header(&mut slow(Vec::new())).await;
        assert_eq!((reason(silent).as_str(), began.elapsed().as_secs()), ("DEADLINE_EXCEEDED", 60));

        // Each message has a minute of its own; the memory of the upload is free when it has passed.
        let (one, two) = (b"{}", b"tensors");
        let part = |part| pb::UploadAdapterRequest { part: Some(part) };
        let began = tokio::time::Instant::now();
        let mut stream = slow(vec![
            (59, part(pb::upload_adapter_request::Part::Header(pb::UploadAdapterHeader::default()))),
            (59, part(pb::upload_adapter_request::Part::Chunk(chunk(0, 0, one)))),
        ]);
        let memory = Arc::new(Semaphore::new(1));
        let check = |_: &mut pb::UploadAdapterHeader, _: &mut Violations| (announced(one, two), Some(()));
        let stalled = receive(&mut stream, &memory, 9, check).await;
        assert_eq!((reason(stalled).as_str(), began.elapsed().as_secs()), ("DEADLINE_EXCEEDED", 178));
        assert_eq!(memory.available_permits(), 1);
    }

    #[tokio::test]
    async fn an_upload_without_memory_is_told_when_to_try_again() {
        let memory = Arc::new(Semaphore::new(1));
        let held = reserve(&memory, 9).unwrap();
        let status = reserve(&memory, 9).unwrap_err();
        assert!(status.get_details_retry_info().is_some(), "{status:?}");
        assert_eq!(reason(Err::<(), _>(status)), "QUEUE_FULL");
        drop(held);
        assert!(reserve(&memory, 9).is_ok());
    }

    #[test]
    fn memory_is_taken_as_it_grows_and_given_back() {
        let all = Arc::new(Semaphore::new(permits(10 * UNIT) as usize));
        let mut one = Memory::new(&all, 10 * UNIT);
        one.grow(1).unwrap();
        one.grow(UNIT - 1).unwrap();
        assert_eq!(all.available_permits(), 9);
        one.grow(5 * UNIT + 1).unwrap();
        assert_eq!(all.available_permits(), 3);
        let mut two = Memory::new(&all, 10 * UNIT);
        two.grow(3 * UNIT).unwrap();
        assert_eq!(reason(two.grow(1)), "QUEUE_FULL");
        assert_eq!(reason(one.grow(u64::MAX)), "UPLOAD_TOO_LARGE");
        drop((one, two));
        assert_eq!(all.available_permits(), 10);
    }

    #[test]
    fn permits_grow_with_bytes() {
        assert_eq!(permits(0), 1);
        assert_eq!(permits(UNIT), 1);
        assert_eq!(permits(UNIT + 1), 2);
        assert!(permits(u64::MAX) as usize <= Semaphore::MAX_PERMITS);
    }
}
