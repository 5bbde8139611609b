//! The header of a GGUF file: metadata and where tensors lie.
//!
//! Knows no architecture. Lists (vocabularies, merges) are passed over, only their length is kept. Nothing read is
//! trusted: lengths are checked against what is left of the file, counts take no memory before their items are read.
//! Source: ggml `docs/gguf.md`, versions 2 and 3, little endian.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, sink};

use candle_core::quantized::GgmlDType;

/// Longest text kept; longer ones are passed over.
const MAX_TEXT: u64 = 1 << 20;
/// Lists within lists.
const MAX_DEPTH: usize = 4;

/// What a header says.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, Value>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    /// Where tensor data begin, in bytes from the start of the file.
    pub(super) data: u64,
}

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A whole number that is not negative.
    Whole(u64),
    /// A negative number.
    Negative(i64),
    Float(f64),
    Flag(bool),
    Text(String),
    /// A list of this length, or a text too long to keep.
    Skipped(u64),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(n) => write!(f, "{n}"),
            Self::Negative(n) => write!(f, "{n}"),
            Self::Float(x) => write!(f, "{x}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::Text(text) => write!(f, "{:?}", text.chars().take(40).collect::<String>()),
            Self::Skipped(len) => write!(f, "a list of {len}"),
        }
    }
}

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorInfo {
    pub(super) format: GgmlDType,
    /// Outermost dimension first, as everywhere but in GGUF.
    pub(super) shape: Vec<usize>,
    /// Bytes from the start of the tensor data.
    pub(super) offset: u64,
}

type Checked<T> = Result<T, String>;

impl Header {
    /// Reads the header of a file of `size` bytes.
    pub(super) fn read(reader: impl Read, size: u64) -> Checked<Self> {
        let mut bytes = Bytes { reader, size, at: 0 };
        if &bytes.array::<4>()? != b"GGUF" {
            return Err("not a GGUF file".into());
        }
        let version = bytes.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("GGUF version {version} is not supported, 2 and 3 are"));
        }
        let (tensor_count, metadata_count) = (bytes.u64()?, bytes.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let key = bytes.name()?;
            let kind = bytes.u32()?;
            let value = bytes.value(kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("key `{key}` occurs twice"));
            }
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = bytes.name()?;
            let info = bytes.tensor(&name)?;
            if tensors.insert(name.clone(), info).is_some() {
                return Err(format!("tensor `{name}` occurs twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Whole(n)) if n.is_power_of_two() && *n <= 1 << 20 => *n,
            Some(other) => return Err(format!("`general.alignment` is {other}, a power of two is needed")),
        };
        Ok(Self { metadata, tensors, data: bytes.at.next_multiple_of(alignment) })
    }
}

/// The file from its start, with the number of bytes taken.
struct Bytes<R> {
    reader: R,
    size: u64,
    at: u64,
}

impl<R: Read> Bytes<R> {
    /// Counts `len` bytes as taken if the file has them.
    fn take(&mut self, len: u64) -> Checked<()> {
        match self.at.checked_add(len).filter(|end| *end <= self.size) {
            Some(end) => {
                self.at = end;
                Ok(())
            }
            None => Err(format!("the header wants {len} bytes at {}, the file has {}", self.at, self.size)),
        }
    }

    fn array<const N: usize>(&mut self) -> Checked<[u8; N]> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Checked<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Checked<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn skip(&mut self, len: u64) -> Checked<()> {
        self.take(len)?;
        std::io::copy(&mut self.reader.by_ref().take(len), &mut sink()).map_err(|e| e.to_string())?;
        Ok(())
    }

    fn text(&mut self, len: u64) -> Checked<String> {
        self.take(len)?;
        let mut bytes = vec![0; len as usize];
        self.reader.read_exact(&mut bytes).map_err(|e| e.to_string())?;
        String::from_utf8(bytes).map_err(|_| format!("the text before byte {} is not UTF-8", self.at))
    }

    /// A key or the name of a tensor.
    fn name(&mut self) -> Checked<String> {
        let len = self.u64()?;
        if len > 1 << 16 {
            return Err(format!("a name of {len} bytes is too long"));
        }
        self.text(len)
    }

    fn value(&mut self, kind: u32, depth: usize) -> Checked<Value> {
        let whole = |n: i64| u64::try_from(n).map_or(Value::Negative(n), Value::Whole);
        Ok(match kind {
            0 => Value::Whole(u8::from_le_bytes(self.array()?).into()),
            1 => whole(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Whole(u16::from_le_bytes(self.array()?).into()),
            3 => whole(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Whole(self.u32()?.into()),
            5 => whole(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Flag(self.array::<1>()? != [0]),
            8 => {
                let len = self.u64()?;
                if len > MAX_TEXT {
                    self.skip(len)?;
                    return Ok(Value::Skipped(len));
                }
                Value::Text(self.text(len)?)
            }
            9 => self.list(depth)?,
            10 => Value::Whole(self.u64()?),
            11 => whole(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("metadata of unknown type {other}")),
        })
    }

    fn list(&mut self, depth: usize) -> Checked<Value> {
        if depth >= MAX_DEPTH {
            return Err("lists are nested too deeply".into());
        }
        let (kind, len) = (self.u32()?, self.u64()?);
        let fixed: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            10..=12 => 8,
            8 => {
                for _ in 0..len {
                    let text = self.u64()?;
                    self.skip(text)?;
                }
                return Ok(Value::Skipped(len));
            }
            _ => {
                for _ in 0..len {
                    self.value(kind, depth + 1)?;
                }
                return Ok(Value::Skipped(len));
            }
        };
        self.skip(len.checked_mul(fixed).ok_or("a list is too long")?)?;
        Ok(Value::Skipped(len))
    }

    fn tensor(&mut self, name: &str) -> Checked<TensorInfo> {
        let dimensions = self.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(format!("tensor `{name}` has {dimensions} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            shape.push(usize::try_from(size).map_err(|_| format!("tensor `{name}` has a dimension of {size}"))?);
        }
        shape.reverse();
        let format = self.u32()?;
        let format = ggml(format).ok_or(format!("tensor `{name}` has the unsupported format {format}"))?;
        Ok(TensorInfo { format, shape, offset: self.u64()? })
    }
}

/// Formats that candle can multiply with, by ggml's numbers.
fn ggml(number: u32) -> Option<GgmlDType> {
    Some(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        9 => GgmlDType::Q8_1,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        15 => GgmlDType::Q8K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Checked<Header> {
        Header::read(bytes, bytes.len() as u64)
    }

    fn header(rest: &[u8]) -> Vec<u8> {
        [b"GGUF".as_slice(), &3_u32.to_le_bytes(), rest].concat()
    }

    #[test]
    fn alignment_of_zero_is_refused() {
        let key = "general.alignment";
        let counts = [0_u64, 1, key.len() as u64].map(u64::to_le_bytes).concat();
        let value = [4_u32, 0].map(u32::to_le_bytes).concat();
        let rest = [counts.as_slice(), key.as_bytes(), &value];
        assert!(read(&header(&rest.concat())).unwrap_err().contains("alignment"));
    }

    #[test]
    fn huge_counts_and_lengths_end_at_the_end_of_the_file() {
        for (tensors, metadata, rest) in [(u64::MAX, 0, vec![]), (0, u64::MAX, vec![]), (0, 1, vec![255; 8])] {
            let rest = [tensors.to_le_bytes().to_vec(), u64::to_le_bytes(metadata).to_vec(), rest].concat();
            assert!(read(&header(&rest)).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn arbitrary_bytes_never_panic(rest in proptest::collection::vec(prop_oneof![Just(0_u8), Just(1), 0..16_u8, any::<u8>()], 0..200)) {
            let _ = read(&rest);
            let _ = read(&header(&rest));
            let counts = [1_u64.to_le_bytes(), 1_u64.to_le_bytes()].concat();
            let _ = read(&header(&[counts, rest].concat()));
        }
    }
}
