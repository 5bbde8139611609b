//! Writes rows of images that come from no file of rows: as lines of JSONL, an image in base64.
//!
//! There is one way to write a row, so that the same rows have the same id wherever they come from: every declared column
//! once, in the order of [`Declaration::columns`], null where there is nothing. Looks at no value; reading the lines does.

use base64::Engine as _;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::PAD_INDIFFERENT;
use serde_json::Value;

use super::{Declaration, Split, SplitRule};

/// How images are written into text: the standard alphabet, padded; read without padding too.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, PAD_INDIFFERENT);

/// Returns the characters that bytes take in base64.
pub(super) fn encoded(bytes: u64) -> u64 {
    bytes.div_ceil(3).saturating_mul(4)
}

/// A row, apart from its image.
#[derive(Debug, Clone, Default)]
pub struct ImageRow {
    /// Names of its classes: as many as the declaration allows.
    pub labels: Vec<String>,
    /// Its part, where a column says it.
    pub split: Option<Split>,
    /// Values of other columns.
    pub values: std::collections::HashMap<String, String>,
}

impl ImageRow {
    /// Returns a name among `values` that no declared column of groups has.
    pub fn strange(&self, declaration: &Declaration) -> Option<&str> {
        let known = |name: &str| match role(declaration, name) {
            Role::Value => declaration.columns().contains(&name),
            Role::Image | Role::Label | Role::Split => false,
        };
        let mut strange: Vec<_> = self.values.keys().map(String::as_str).filter(|name| !known(name)).collect();
        strange.sort_unstable();
        strange.first().copied()
    }
}

/// What fills a column.
enum Role {
    Image,
    Label,
    Split,
    Value,
}

fn role(declaration: &Declaration, column: &str) -> Role {
    if declaration.image_column() == Some(column) {
        Role::Image
    } else if declaration.label.as_ref().is_some_and(|label| label.column == column) {
        Role::Label
    } else if matches!(&declaration.split, SplitRule::Column(split) if split == column) {
        Role::Split
    } else {
        Role::Value
    }
}

/// Returns the line of a row of images, its end included.
pub fn image_line(declaration: &Declaration, image: &[u8], row: &ImageRow) -> Vec<u8> {
    let mut line = String::with_capacity(line_size(declaration, image.len() as u64, row) as usize);
    write(declaration, row, &mut line, |line| BASE64.encode_string(image, line));
    line.into_bytes()
}

/// Returns the size of a line, for an image of `image` bytes.
pub(super) fn line_size(declaration: &Declaration, image: u64, row: &ImageRow) -> u64 {
    let mut line = String::new();
    write(declaration, row, &mut line, |_| {});
    line.len() as u64 + encoded(image)
}

fn write(declaration: &Declaration, row: &ImageRow, line: &mut String, image: impl Fn(&mut String)) {
    let multi_label = declaration.label.as_ref().is_some_and(|label| label.multi_label);
    for (index, column) in declaration.columns().into_iter().enumerate() {
        line.push(if index == 0 { '{' } else { ',' });
        line.push_str(&Value::from(column).to_string());
        line.push(':');
        let value = match role(declaration, column) {
            Role::Image => {
                line.push('"');
                image(line);
                line.push('"');
                continue;
            }
            Role::Label => match &row.labels[..] {
                [] if !multi_label => Value::Null,
                [one] if !multi_label => Value::from(one.as_str()),
                all => Value::from(all),
            },
            Role::Split => row.split.map_or(Value::Null, |split| Value::from(split.as_str())),
            Role::Value => row.values.get(column).map_or(Value::Null, |value| Value::from(value.as_str())),
        };
        line.push_str(&value.to_string());
    }
    line.push_str("}\n");
}
