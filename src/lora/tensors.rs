//! Reads a safetensors file that a stranger sent, without trusting a number in it.
//!
//! Views only: nothing is allocated for a tensor before its shape has been compared with a base model's. Knows neither
//! adapters nor devices. The header is checked here in full, because the safetensors crate adds offsets unchecked and
//! keeps the last of two equal names.
//! Source: safetensors format, <https://github.com/huggingface/safetensors#format>.

use std::collections::BTreeMap;

use super::LoraError;
use super::json::{Json, clip};

/// Largest header read, in bytes; 10 000 tensors need about 1.7 MB. Parsing takes up to 30 times as much memory.
const MAX_HEADER: usize = 2 << 20;

/// Format of a stored number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    F32,
    F16,
    Bf16,
}

impl Format {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Returns its name in the file format.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A tensor inside the file.
#[derive(Debug, Clone)]
pub(super) struct View<'a> {
    pub(super) format: Format,
    pub(super) shape: Vec<usize>,
    pub(super) data: &'a [u8],
}

impl View<'_> {
    /// Returns the values, all finite.
    pub(super) fn floats(&self, name: &str) -> Result<Vec<f32>, LoraError> {
        let pairs = || self.data.chunks_exact(2).map(|b| [b[0], b[1]]);
        let values: Vec<f32> = match self.format {
            Format::F32 => self.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Format::F16 => pairs().map(|b| half::f16::from_le_bytes(b).to_f32()).collect(),
            Format::Bf16 => pairs().map(|b| half::bf16::from_le_bytes(b).to_f32()).collect(),
        };
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(at) => Err(LoraError::Invalid(format!("tensor {}: value {at} is {}", clip(name), values[at]))),
        }
    }
}

/// Reads the header and returns the tensors by name.
pub(super) fn read(file: &[u8]) -> Result<BTreeMap<String, View<'_>>, LoraError> {
    // A header of 640 bytes begins like a pickle: what it is shows when it cannot be read.
    let pickle = file.starts_with(b"PK\x03\x04") || file.starts_with(&[0x80, 0x02]);
    let unsound = |fault: &str| invalid(if pickle { "is a pickle; only safetensors are read" } else { fault });
    let (length, rest) = file.split_first_chunk().ok_or_else(|| unsound("is shorter than its length field"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER {
        return Err(unsound(&format!("has a header of {length} bytes, at most {MAX_HEADER} are read")));
    }
    let (header, data) = rest.split_at_checked(length).ok_or_else(|| unsound("ends inside its header"))?;
    let header = Json::parse(header).map_err(|fault| unsound(&format!("has a header that is not sound: {fault}")))?;
    let Json::Object(entries) = header else { return Err(invalid("has a header that is not a JSON object")) };

    let mut placed = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        if name == "__metadata__" {
            check_metadata(&entry)?;
        } else {
            let (begin, end, view) = tensor(&name, &entry, data)?;
            placed.push((begin, end, name, view));
        }
    }
    // Every byte belongs to one tensor: nothing hides between, behind or under them.
    placed.sort_by_key(|(begin, end, ..)| (*begin, *end));
    let mut next = 0;
    for (begin, end, name, _) in &placed {
        if *begin != next {
            let fault = if *begin < next { "overlaps another" } else { "leaves a gap before it" };
            return Err(invalid(&format!("has a tensor {} that {fault}", clip(name))));
        }
        next = *end;
    }
    if next != data.len() {
        return Err(invalid(&format!("has {} bytes behind its last tensor", data.len() - next)));
    }
    Ok(placed.into_iter().map(|(_, _, name, view)| (name, view)).collect())
}

fn check_metadata(entry: &Json) -> Result<(), LoraError> {
    let texts = entry.as_object().is_some_and(|entries| entries.iter().all(|(_, value)| value.as_text().is_some()));
    if texts { Ok(()) } else { Err(invalid("has __metadata__ that is not a table of texts")) }
}

fn tensor<'a>(name: &str, entry: &Json, data: &'a [u8]) -> Result<(usize, usize, View<'a>), LoraError> {
    let fault = |what: &str| invalid(&format!("has a tensor {} {what}", clip(name)));
    let Json::Object(fields) = entry else { return Err(fault("that is not described by an object")) };
    let (mut format, mut shape, mut offsets) = (None, None, None);
    for (key, value) in fields {
        match (key.as_str(), value) {
            ("dtype", Json::Text(text)) => {
                let known = Format::parse(text);
                format = Some(known.ok_or_else(|| fault(&format!("of {}; F32, F16 and BF16 are read", clip(text))))?);
            }
            ("shape", Json::Array(items)) if items.len() <= 8 => shape = whole_numbers(items),
            ("data_offsets", Json::Array(items)) if items.len() == 2 => offsets = whole_numbers(items),
            _ => return Err(fault(&format!("with a faulty field {}", clip(key)))),
        }
    }
    let (Some(format), Some(shape), Some([begin, end])) = (format, shape, offsets.as_deref()) else {
        return Err(fault("without a sound dtype, shape or data_offsets"));
    };
    let (begin, end) = (*begin, *end);
    let needed = shape.iter().try_fold(format.bytes(), |size, dim| size.checked_mul(*dim));
    let bytes = data.get(begin..end).ok_or_else(|| fault("whose data_offsets are not in the file"))?;
    if needed != Some(bytes.len()) {
        return Err(fault(&format!("whose shape {shape:?} does not fit its {} bytes", bytes.len())));
    }
    Ok((begin, end, View { format, shape, data: bytes }))
}

fn whole_numbers(items: &[Json]) -> Option<Vec<usize>> {
    items.iter().map(|item| usize::try_from(item.as_integer()?).ok()).collect()
}

fn invalid(fault: &str) -> LoraError {
    LoraError::Invalid(format!("the safetensors file {fault}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one tensor whose header has so many bytes.
    fn with_header(bytes: usize) -> Vec<u8> {
        let mut header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_owned();
        header.extend(std::iter::repeat_n(' ', bytes - header.len()));
        [&(bytes as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat()
    }

    #[test]
    fn a_pickle_is_told_by_its_beginning_and_a_header_of_its_length_is_none() {
        for bytes in [632, 640, 648] {
            assert_eq!(read(&with_header(bytes)).unwrap().len(), 1, "{bytes}");
        }
        for file in [
            &b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s."[..],
            b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00",
            b"PK\x03\x04",
        ] {
            let Err(error) = read(file) else { panic!() };
            assert!(error.to_string().contains("is a pickle"), "{error}");
        }
    }
}
