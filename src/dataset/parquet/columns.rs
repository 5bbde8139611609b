//! One declared column of a Parquet file: its shape, and its cells of one row group, a batch at a time.
//!
//! Three shapes are understood: a scalar, a list of scalars, and a list of structs of scalars (messages). Dates,
//! decimals, maps and nested lists are refused by name: what they mean as text is the caller's to say.
//! Source: Parquet `LogicalTypes.md` (lists), Dremel's repetition and definition levels.

use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::column::reader::{ColumnReader, get_column_reader};
use parquet::data_type::ByteArray;
use parquet::errors::Result;
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};
use serde_json::Value;

use super::pages::Pages;
use crate::dataset::fault::FaultKind;

/// How the leaves of a column make a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// One value.
    Scalar,
    /// Values; the definition level from which an element is there.
    List(i16),
    /// Objects, the leaves being their keys; the level as above.
    Objects(i16),
}

/// A column of the schema.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) shape: Shape,
    /// Indices of its leaves in the schema.
    pub(super) leaves: Vec<usize>,
}

/// Finds a column of images: their files as a binary value, or as `bytes` of a struct, as Hugging Face writes them.
pub(super) fn find_image(schema: &SchemaDescriptor, name: &str) -> std::result::Result<Column, FaultKind> {
    let mut fields = schema.root_schema().get_fields().iter().filter(|field| field.name() == name);
    let field = fields.next().ok_or(FaultKind::UnknownColumn)?;
    if fields.next().is_some() {
        return Err(FaultKind::DuplicateColumn);
    }
    let path: &[&str] = if field.is_group() { &[name, "bytes"] } else { &[name] };
    let leaf = (0..schema.num_columns()).find(|leaf| {
        let column = schema.column(*leaf);
        let binary = column.physical_type() == Physical::BYTE_ARRAY && column.max_rep_level() == 0;
        binary && column.path().parts() == path
    });
    let rule = "an image must be a binary value, or a struct with one named `bytes`";
    let leaf = leaf.ok_or_else(|| FaultKind::Value(rule.to_owned()))?;
    Ok(Column { shape: Shape::Scalar, leaves: vec![leaf] })
}

/// Finds a column and says what keeps it from being read.
pub(super) fn find(schema: &SchemaDescriptor, name: &str) -> std::result::Result<Column, FaultKind> {
    let refused = |what: &str| Err(FaultKind::Value(format!("{what} cannot be read: write text, numbers or lists")));
    let mut fields = schema.root_schema().get_fields().iter().filter(|field| field.name() == name);
    let field = fields.next().ok_or(FaultKind::UnknownColumn)?;
    if fields.next().is_some() {
        return Err(FaultKind::DuplicateColumn);
    }
    let of_field = |leaf: &&usize| schema.get_column_root(**leaf).name() == name;
    let all: Vec<usize> = (0..schema.num_columns()).collect();
    let leaves: Vec<usize> = all.iter().filter(of_field).copied().collect();
    let descriptors: Vec<_> = leaves.iter().map(|leaf| schema.column(*leaf)).collect();
    if let Some(strange) = descriptors.iter().find(|leaf| !is_scalar(leaf)) {
        return refused(&format!("{} ({})", strange.physical_type(), strange.converted_type()));
    }
    let Some(first) = descriptors.first() else { return refused("an empty group") };
    let depth = first.path().parts().len();
    if descriptors
        .iter()
        .any(|leaf| leaf.max_rep_level() != first.max_rep_level() || leaf.path().parts().len() != depth)
    {
        return refused("a struct");
    }
    let shape = match (first.max_rep_level(), leaves.len()) {
        (0, 1) if depth == 1 => Shape::Scalar,
        (0, _) => return refused("a struct"),
        (1, count) => {
            // `optional group c (LIST) { repeated group list { optional T element } }` or an older form of it.
            let mut node = field;
            let mut level = 0;
            let mut below = depth;
            loop {
                below -= 1;
                let repetition = node.get_basic_info().has_repetition().then(|| node.get_basic_info().repetition());
                level += i16::from(repetition.is_some_and(|repetition| repetition != Repetition::REQUIRED));
                if repetition == Some(Repetition::REPEATED) {
                    break;
                }
                match node.is_group().then(|| node.get_fields()) {
                    Some([only]) => node = only,
                    _ => return refused("a struct of lists"),
                }
            }
            match (count, below) {
                (1, 0 | 1) => Shape::List(level),
                (2.., 1 | 2) => Shape::Objects(level),
                _ => return refused("a nested list"),
            }
        }
        _ => return refused("a list of lists"),
    };
    Ok(Column { shape, leaves })
}

/// Returns whether a leaf is a text, a number or a truth value.
fn is_scalar(leaf: &ColumnDescriptor) -> bool {
    let logical = leaf.logical_type_ref();
    let plain = matches!(
        logical,
        None | Some(
            LogicalType::String
                | LogicalType::Enum
                | LogicalType::Json
                | LogicalType::Integer { .. }
                | LogicalType::Unknown
        )
    );
    let converted = leaf.converted_type();
    let text =
        matches!(converted, ConvertedType::NONE | ConvertedType::UTF8 | ConvertedType::ENUM | ConvertedType::JSON);
    plain
        && match leaf.physical_type() {
            Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
            Physical::INT32 | Physical::INT64 => converted == ConvertedType::NONE || is_integer(converted),
            Physical::BYTE_ARRAY => text,
            Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => false,
        }
}

fn is_integer(converted: ConvertedType) -> bool {
    let signed = [ConvertedType::INT_8, ConvertedType::INT_16, ConvertedType::INT_32, ConvertedType::INT_64];
    signed.contains(&converted) || is_unsigned(converted)
}

fn is_unsigned(converted: ConvertedType) -> bool {
    let unsigned = [ConvertedType::UINT_8, ConvertedType::UINT_16, ConvertedType::UINT_32, ConvertedType::UINT_64];
    unsigned.contains(&converted)
}

/// A value that is not copied yet: a dictionary's entry may be repeated without end.
#[derive(Debug, Clone)]
pub(super) enum Scalar {
    Null,
    Bytes(ByteArray),
    Other(Value),
}

impl Scalar {
    /// Bytes that the value will take.
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.data().len() as u64,
            Self::Null | Self::Other(_) => 8,
        }
    }

    /// Copies the value.
    pub(super) fn value(&self) -> std::result::Result<Value, FaultKind> {
        match self {
            Self::Null => Ok(Value::Null),
            Self::Other(value) => Ok(value.clone()),
            Self::Bytes(bytes) => std::str::from_utf8(bytes.data()).map(Value::from).map_err(|_| FaultKind::Utf8),
        }
    }
}

/// The elements of one leaf in one row: one for a scalar, `None` for a list that is null.
pub(super) type Elements = Option<Vec<Scalar>>;

/// One leaf of one row group.
pub(super) struct Leaf {
    reader: ColumnReader,
    name: String,
    max_def: i16,
    max_rep: i16,
    unsigned: bool,
}

impl Leaf {
    pub(super) fn new(schema: &SchemaDescriptor, index: usize, pages: Pages) -> Self {
        let leaf = schema.column(index);
        let converted = match (leaf.converted_type(), leaf.logical_type_ref()) {
            (ConvertedType::NONE, Some(logical)) => ConvertedType::from(Some(logical.clone())),
            (converted, _) => converted,
        };
        Self {
            name: leaf.name().to_owned(),
            max_def: leaf.max_def_level(),
            max_rep: leaf.max_rep_level(),
            unsigned: is_unsigned(converted),
            reader: get_column_reader(leaf, Box::new(pages)),
        }
    }

    /// Returns the last part of its path.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Reads at most `rows` rows; fewer at the end only. `from` is the level from which an element is there.
    pub(super) fn read(&mut self, rows: usize, from: i16) -> Result<Vec<Elements>> {
        let (mut defs, mut reps) = (Vec::new(), Vec::new());
        let unsigned = self.unsigned;
        macro_rules! typed {
            ($reader:expr, $convert:expr) => {{
                let mut values = Vec::new();
                let (mut records, mut levels) = (0, 0);
                // A call may end at the end of a page.
                while records < rows {
                    let read = $reader.read_records(rows - records, Some(&mut defs), Some(&mut reps), &mut values)?;
                    if read.0 == 0 && read.2 == 0 {
                        break;
                    }
                    records += read.0;
                    levels += read.2;
                }
                (levels, values.into_iter().map($convert).collect::<Vec<Scalar>>())
            }};
        }
        let float = |value: f64| Scalar::Other(serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number));
        let (levels, values) = match &mut self.reader {
            ColumnReader::BoolColumnReader(reader) => typed!(reader, |value| Scalar::Other(Value::from(value))),
            ColumnReader::Int32ColumnReader(reader) => typed!(reader, |value: i32| {
                Scalar::Other(if unsigned { Value::from(value as u32) } else { Value::from(value) })
            }),
            ColumnReader::Int64ColumnReader(reader) => typed!(reader, |value: i64| {
                Scalar::Other(if unsigned { Value::from(value as u64) } else { Value::from(value) })
            }),
            ColumnReader::FloatColumnReader(reader) => typed!(reader, |value: f32| float(value.into())),
            ColumnReader::DoubleColumnReader(reader) => typed!(reader, float),
            ColumnReader::ByteArrayColumnReader(reader) => typed!(reader, Scalar::Bytes),
            ColumnReader::Int96ColumnReader(_) | ColumnReader::FixedLenByteArrayColumnReader(_) => (0, Vec::new()),
        };
        Ok(self.rows(levels, &defs, &reps, values, from))
    }

    /// Puts values and levels together.
    fn rows(&self, levels: usize, defs: &[i16], reps: &[i16], values: Vec<Scalar>, from: i16) -> Vec<Elements> {
        let mut values = values.into_iter();
        let mut rows: Vec<Elements> = Vec::new();
        for index in 0..levels {
            let def = if self.max_def == 0 { 0 } else { defs.get(index).copied().unwrap_or(0) };
            if self.max_rep == 0 || reps.get(index).copied().unwrap_or(0) == 0 || rows.is_empty() {
                // One level below an element is the list without any.
                rows.push((self.max_rep == 0 || def >= from - 1).then(Vec::new));
            }
            let scalar = if def == self.max_def { values.next().unwrap_or(Scalar::Null) } else { Scalar::Null };
            if self.max_rep == 0 || def >= from {
                rows.last_mut().into_iter().flatten().for_each(|row| row.push(scalar.clone()));
            }
        }
        rows
    }
}
