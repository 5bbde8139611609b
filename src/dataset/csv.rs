//! Reads CSV (RFC 4180): a header, then records of as many fields; quotes are doubled inside quotes.
//!
//! Every cell is a text. UTF-8, a byte order mark at the start allowed. Rows count records, not lines.

use serde_json::Value;

use super::build::Builder;
use super::fault::FaultKind;

/// Reads all rows into `builder`, up to its last fault. `delimiter` is one ASCII character.
pub(super) fn read(bytes: &[u8], delimiter: char, builder: &mut Builder<'_>) {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let delimiter = u8::try_from(delimiter).unwrap_or(b',');
    let mut reader = csv::ReaderBuilder::new().flexible(true).delimiter(delimiter).from_reader(bytes);
    let header = match reader.byte_headers() {
        Ok(header) => header.clone(),
        Err(error) => return builder.file_fault(None, FaultKind::Syntax(error.to_string())),
    };
    if header.is_empty() {
        return;
    }
    let Some(places) = places(&header, builder) else { return };
    let mut record = csv::ByteRecord::new();
    while builder.goes_on() {
        match reader.read_byte_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return builder.last_row_fault(FaultKind::Syntax(error.to_string())),
        }
        if record.len() != header.len() {
            builder.row_fault(None, FaultKind::Ragged { expected: header.len(), got: record.len() });
            continue;
        }
        // Nothing is copied before the limit is asked.
        let size: usize = places.iter().map(|place| record.get(*place).map_or(0, <[u8]>::len)).sum();
        let limit = builder.line_bytes();
        if size as u64 > limit {
            builder.row_fault(None, FaultKind::TooLarge { what: "the row's size in bytes", limit });
            continue;
        }
        let texts = places.iter().map(|place| std::str::from_utf8(record.get(*place).unwrap_or_default()));
        match texts.map(|text| text.map(Value::from)).collect::<Result<Vec<_>, _>>() {
            Ok(mut cells) => builder.push(&mut cells, None),
            Err(_) => {
                let bad =
                    places.iter().position(|at| std::str::from_utf8(record.get(*at).unwrap_or_default()).is_err());
                let column = bad.and_then(|at| builder.columns().get(at).copied());
                builder.row_fault(column, FaultKind::Utf8);
            }
        }
    }
}

/// Finds the declared columns in the header.
fn places(header: &csv::ByteRecord, builder: &mut Builder<'_>) -> Option<Vec<usize>> {
    let mut seen = std::collections::HashSet::new();
    for name in header {
        if !seen.insert(name) {
            builder.file_fault(Some(&String::from_utf8_lossy(name)), FaultKind::DuplicateColumn);
        }
    }
    let mut places = Vec::new();
    for (index, column) in builder.columns().to_vec().into_iter().enumerate() {
        match header.iter().position(|name| name == column.as_bytes()) {
            Some(place) => {
                builder.see(index);
                places.push(place);
            }
            None => builder.file_fault(Some(column), FaultKind::UnknownColumn),
        }
    }
    builder.goes_on().then_some(places)
}
