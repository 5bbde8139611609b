//! Reads JSONL: one object a line, UTF-8, a byte order mark at the start allowed.
//!
//! Keys that no declaration names are passed over without being kept. Only the end of the file may be blank, so that
//! the row of a fault is the number of its line.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::build::Builder;
use super::fault::FaultKind;

/// Reads all rows into `builder`, up to its last fault.
pub(super) fn read(bytes: &[u8], builder: &mut Builder<'_>) {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_end();
    if bytes.is_empty() {
        return;
    }
    let limit = builder.line_bytes();
    for line in bytes.split(|byte| *byte == b'\n') {
        if !builder.goes_on() {
            return;
        }
        if line.len() as u64 > limit {
            builder.row_fault(None, FaultKind::TooLarge { what: "the row's size in bytes", limit });
            continue;
        }
        let Ok(text) = std::str::from_utf8(line) else {
            builder.row_fault(None, FaultKind::Utf8);
            continue;
        };
        let mut found = Found { columns: builder.columns(), cells: vec![None; builder.columns().len()], twice: None };
        let mut json = serde_json::Deserializer::from_str(text);
        let read = found.deserialize_into(&mut json).and_then(|()| json.end());
        let (cells, twice) = (found.cells, found.twice);
        match (read, twice) {
            (Err(error), _) => builder.row_fault(None, FaultKind::Syntax(describe(&error))),
            (Ok(()), Some(column)) => {
                builder.see(column);
                let name = builder.columns()[column];
                builder.row_fault(Some(name), FaultKind::DuplicateColumn);
            }
            (Ok(()), None) => {
                let seen = cells.iter().enumerate().filter(|(_, cell)| cell.is_some());
                seen.for_each(|(column, _)| builder.see(column));
                let mut cells: Vec<_> = cells.into_iter().map(Option::unwrap_or_default).collect();
                builder.push(&mut cells, None);
            }
        }
    }
}

/// serde's own place is of no use: every text it sees is one line.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    if error.is_data() { text.to_owned() } else { format!("is no JSON at byte {}: {text}", error.column()) }
}

/// The declared keys of one object.
struct Found<'a> {
    columns: &'a [&'a str],
    cells: Vec<Option<Value>>,
    twice: Option<usize>,
}

impl Found<'_> {
    fn deserialize_into<'de, D: Deserializer<'de>>(&mut self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Found<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(at) = map.next_key_seed(Column(self.columns))? {
            match at {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(at) => {
                    let value = map.next_value()?;
                    if self.cells[at].replace(value).is_some() {
                        self.twice = self.twice.or(Some(at));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Finds a key among the declared columns.
struct Column<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Column<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Column<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|column| *column == key))
    }
}
