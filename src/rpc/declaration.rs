//! A data set's declaration, from the wire and back.
//!
//! Checks its form; what makes sense together is the data sets' to say.

use super::pb::{self, dataset_declaration::Split as WireSplit};
use super::violations::Violations;
use crate::dataset::{ContentColumns, Declaration, Format, LabelColumn, SplitRule};

/// Reads a declaration that stands in `field`; its format is `None` where the file is to tell it.
pub(super) fn declaration(
    v: &mut Violations,
    field: &str,
    wire: Option<&pb::DatasetDeclaration>,
) -> Option<(Declaration, Option<Format>)> {
    let Some(wire) = wire else {
        v.add(field, "must be given");
        return None;
    };
    let format = match pb::DatasetFormat::try_from(wire.format) {
        Ok(pb::DatasetFormat::Unspecified) => None,
        Ok(pb::DatasetFormat::Jsonl) => Some(Format::Jsonl),
        Ok(pb::DatasetFormat::Csv) => Some(Format::Csv),
        Ok(pb::DatasetFormat::Parquet) => Some(Format::Parquet),
        Err(_) => {
            v.add(format!("{field}.format"), "must be a format");
            None
        }
    };
    let column = |name: &String| (!name.is_empty()).then(|| name.clone());
    let (text, messages, image) =
        (column(&wire.text_column), column(&wire.messages_column), column(&wire.image_column));
    let content = match (text, messages, image, column(&wire.prompt_column), column(&wire.completion_column)) {
        (Some(text), None, None, None, None) => Some(ContentColumns::Text(text)),
        (None, Some(messages), None, None, None) => Some(ContentColumns::Messages(messages)),
        (None, None, Some(image), None, None) => Some(ContentColumns::Image(image)),
        (None, None, None, Some(prompt), Some(completion)) => Some(ContentColumns::Completion { prompt, completion }),
        _ => {
            v.add(
                field,
                "must name text_column, messages_column, image_column, or prompt_column and completion_column",
            );
            None
        }
    };
    let label = column(&wire.label_column).map(|column| LabelColumn {
        column,
        multi_label: wire.multi_label,
        names: wire.label_names.clone(),
        separator: if wire.multi_label { wire.label_separator.clone() } else { String::new() },
    });
    let alone = wire.multi_label || !wire.label_names.is_empty();
    v.require(&format!("{field}.label_column"), label.is_some() || !alone, "must be given where labels are declared");
    let mut delimiter = wire.csv_delimiter.chars();
    let (first, more) = (delimiter.next().unwrap_or(','), delimiter.next());
    v.require(&format!("{field}.csv_delimiter"), more.is_none(), "must be one character");
    let split = match &wire.split {
        None => SplitRule::AllTrain,
        Some(WireSplit::SplitColumn(column)) => SplitRule::Column(column.clone()),
        Some(WireSplit::SeededSplit(seeded)) => SplitRule::Seeded {
            validation: seeded.validation,
            test: seeded.test,
            seed: seeded.seed,
            grouping: column(&seeded.grouping_column),
        },
    };
    let declaration = Declaration {
        label,
        csv_delimiter: first,
        groups: wire.group_columns.clone(),
        split,
        ..Declaration::new(format.unwrap_or(Format::Jsonl), content?)
    };
    Some((declaration, format))
}

/// Returns a declaration as it is on the wire.
pub(super) fn declaration_out(declaration: Declaration) -> pb::DatasetDeclaration {
    let format = match declaration.format {
        Format::Jsonl => pb::DatasetFormat::Jsonl,
        Format::Csv => pb::DatasetFormat::Csv,
        Format::Parquet => pb::DatasetFormat::Parquet,
    };
    let mut wire = pb::DatasetDeclaration {
        format: format.into(),
        group_columns: declaration.groups,
        csv_delimiter: declaration.csv_delimiter.to_string(),
        ..Default::default()
    };
    match declaration.content {
        ContentColumns::Text(column) => wire.text_column = column,
        ContentColumns::Messages(column) => wire.messages_column = column,
        ContentColumns::Image(column) => wire.image_column = column,
        ContentColumns::Completion { prompt, completion } => {
            (wire.prompt_column, wire.completion_column) = (prompt, completion);
        }
    }
    if let Some(label) = declaration.label {
        wire.label_column = label.column;
        wire.multi_label = label.multi_label;
        wire.label_names = label.names;
        wire.label_separator = label.separator;
    }
    wire.split = match declaration.split {
        SplitRule::AllTrain => None,
        SplitRule::Column(column) => Some(WireSplit::SplitColumn(column)),
        SplitRule::Seeded { validation, test, seed, grouping } => {
            let grouping_column = grouping.unwrap_or_default();
            Some(WireSplit::SeededSplit(pb::SeededSplit { validation, test, seed, grouping_column }))
        }
    };
    wire
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_declaration_is_told() {
        let mut v = Violations::default();
        assert!(declaration(&mut v, "header.declaration", None).is_none());
        assert_eq!(v.fields(), ["header.declaration"]);
        let wire = pb::DatasetDeclaration {
            format: 9,
            text_column: "a".into(),
            prompt_column: "b".into(),
            multi_label: true,
            csv_delimiter: ";;".into(),
            ..Default::default()
        };
        let mut v = Violations::default();
        assert!(declaration(&mut v, "header.declaration", Some(&wire)).is_none());
        let prefix = "header.declaration";
        let fields = [".format", "", ".label_column", ".csv_delimiter"].map(|field| format!("{prefix}{field}"));
        assert_eq!(v.fields(), fields);
    }

    #[test]
    fn a_declaration_comes_back_as_it_was() {
        let split = pb::SeededSplit { validation: 0.1, test: 0.2, seed: u64::MAX, grouping_column: "g".into() };
        let whole = pb::DatasetDeclaration {
            format: pb::DatasetFormat::Csv.into(),
            prompt_column: "p".into(),
            completion_column: "c".into(),
            label_column: "l".into(),
            multi_label: true,
            label_names: vec!["x".into()],
            label_separator: "|".into(),
            group_columns: vec!["g".into()],
            split: Some(WireSplit::SeededSplit(split)),
            csv_delimiter: "\t".into(),
            ..Default::default()
        };
        let mut v = Violations::default();
        let (read, format) = declaration(&mut v, "header.declaration", Some(&whole)).unwrap();
        assert_eq!(format, Some(Format::Csv));
        assert_eq!(declaration_out(read), whole);
        let images = pb::DatasetDeclaration {
            format: pb::DatasetFormat::Parquet.into(),
            image_column: "i".into(),
            csv_delimiter: ",".into(),
            ..Default::default()
        };
        let (read, _) = declaration(&mut v, "header.declaration", Some(&images)).unwrap();
        assert_eq!(declaration_out(read), images);
        assert!(v.list().is_empty());
    }
}
