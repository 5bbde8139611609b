//! DatasetService: checks a declaration's form, asks the data sets off the async threads, and maps their records.
//!
//! Keeps nothing and reads no row: files are checked by `dataset`.

use std::sync::Arc;

use prost::Message as _;
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status, Streaming};

use super::context::Context;
use super::fields::{checked, name, next_page, page, request_id, request_key, timestamp};
use super::names::split_out;
use super::page::PageTokens;
use super::pb::{self, dataset_declaration::Split as WireSplit};
use super::services::blocking;
use super::status;
use super::upload::{self, Announced};
use super::violations::Violations;
use crate::dataset::{
    Change, ContentColumns, DatasetError, DatasetRecord, Datasets, Declaration, Expected, Format, GroupSummary,
    LabelColumn, SplitRule, Warning,
};

/// What chunks are called inside.
const FILE: &str = "the file";

/// Answers DatasetService.
#[derive(Debug)]
pub(super) struct DatasetApi {
    pub(super) datasets: Arc<Datasets>,
    pub(super) pages: PageTokens,
    /// Memory for uploads, see `upload`.
    pub(super) upload_memory: Arc<Semaphore>,
    pub(super) max_upload_bytes: u64,
}

impl upload::Message for pb::UploadDatasetRequest {
    type Header = pb::UploadDatasetHeader;

    fn part(self) -> Option<upload::Part<Self::Header>> {
        self.part.map(|part| match part {
            pb::upload_dataset_request::Part::Header(header) => upload::Part::Header(header),
            pb::upload_dataset_request::Part::Chunk(chunk) => {
                upload::Part::Chunk(pb::FileChunk { name: FILE.to_owned(), offset: chunk.offset, data: chunk.data })
            }
        })
    }
}

fn expected(v: &mut Violations, field: &str, text: Option<&str>) -> Expected {
    match text {
        None => Expected::Any,
        Some("") => Expected::Absent,
        Some(text) => {
            let digits = text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
            v.require(field, digits && text.len() == 64, "must be 64 hexadecimal digits in lower case, or empty");
            Expected::Id(text.to_owned())
        }
    }
}

/// Reads a declaration; its format is `None` where the file is to tell it.
fn declaration(v: &mut Violations, wire: Option<&pb::DatasetDeclaration>) -> Option<(Declaration, Option<Format>)> {
    let field = "header.declaration";
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
    let (text, messages) = (column(&wire.text_column), column(&wire.messages_column));
    let content = match (text, messages, column(&wire.prompt_column), column(&wire.completion_column)) {
        (Some(text), None, None, None) => Some(ContentColumns::Text(text)),
        (None, Some(messages), None, None) => Some(ContentColumns::Messages(messages)),
        (None, None, Some(prompt), Some(completion)) => Some(ContentColumns::Completion { prompt, completion }),
        _ => {
            v.add(field, "must name text_column, or messages_column, or prompt_column and completion_column");
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

fn declaration_out(declaration: Declaration) -> pb::DatasetDeclaration {
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

fn warning_out(warning: Warning) -> pb::DatasetWarning {
    use pb::DatasetWarningKind as Kind;
    let (kind, rows, column, message) = match warning {
        Warning::DuplicateRows(rows) => {
            (Kind::DuplicateRows, rows, String::new(), format!("{rows} rows repeat content and label of another"))
        }
        Warning::SplitOverlap(rows) => {
            let text = format!("{rows} rows of validation or test are in another part too");
            (Kind::SplitOverlap, rows, String::new(), text)
        }
        Warning::SingleLabel(label) => {
            (Kind::SingleLabel, 0, String::new(), format!("all rows have the label `{label}`"))
        }
        Warning::MissingGroupValues { column, rows } => {
            let text = format!("{rows} rows have no `{column}`");
            (Kind::MissingGroupValues, rows, column, text)
        }
    };
    pb::DatasetWarning { kind: kind.into(), rows, column, message }
}

fn counts(values: Vec<(String, u64)>) -> Vec<pb::ValueCount> {
    values.into_iter().map(|(value, rows)| pb::ValueCount { value, rows }).collect()
}

fn group_out(group: GroupSummary) -> pb::GroupColumn {
    let GroupSummary { column, values, other_values, other_rows, missing_rows } = group;
    pb::GroupColumn { name: column, values: counts(values), other_values, other_rows, missing_rows }
}

fn dataset_out(record: DatasetRecord) -> pb::Dataset {
    let rows = record.summary.rows();
    let summary = record.summary;
    let part = |part: crate::dataset::Part| pb::DatasetPart {
        split: split_out(part.split).into(),
        rows: part.rows,
        sha256: part.sha256,
    };
    pb::Dataset {
        name: record.name,
        id: record.id,
        declaration: Some(declaration_out(record.declaration)),
        rows,
        parts: summary.parts.into_iter().map(part).collect(),
        labels: counts(summary.labels),
        group_columns: summary.groups.into_iter().map(group_out).collect(),
        warnings: summary.warnings.into_iter().map(warning_out).collect(),
        bytes: record.bytes,
        create_time: Some(timestamp(record.created)),
    }
}

impl DatasetApi {
    /// Runs `work` on the data sets, off the async threads and to its end.
    async fn ask<T: Send + 'static>(
        &self,
        context: &Context,
        work: impl FnOnce(&Datasets) -> Result<T, DatasetError> + Send + 'static,
    ) -> Result<T, Status> {
        let datasets = Arc::clone(&self.datasets);
        blocking(context, move || work(&datasets)).await?.map_err(|error| {
            let status = status::dataset(&error, context);
            if status.code() != Code::Internal {
                // No text of a row: a fault may repeat values.
                tracing::debug!(code = ?status.code(), "data set refused");
            }
            status
        })
    }
}

#[tonic::async_trait]
impl pb::dataset_service_server::DatasetService for DatasetApi {
    async fn upload_dataset(
        &self,
        request: Request<Streaming<pb::UploadDatasetRequest>>,
    ) -> Result<Response<pb::Dataset>, Status> {
        let context = Context::of(&request);
        let mut stream = request.into_inner();
        let check = |header: &mut pb::UploadDatasetHeader, v: &mut Violations| {
            let expected = expected(v, "header.expected_id", header.expected_id.as_deref());
            request_id(v, "header.request_id", &header.request_id);
            let name = name(v, "header.name", &header.name);
            let declaration = declaration(v, header.declaration.as_ref());
            let (size, sha256) = (header.size, header.sha256.clone());
            let file = Announced { name: FILE, field: "header".to_owned(), size, sha256 };
            ([file], name.zip(declaration).map(|(name, declaration)| (name, expected, declaration)))
        };
        let upload::Upload { checked, mut header, files: [file], memory } =
            upload::receive(&mut stream, &self.upload_memory, self.max_upload_bytes, check).await?;
        let (name, expected, (mut declaration, format)) = checked;
        let id = std::mem::take(&mut header.request_id);
        header.sha256 = file.sha256;
        let request = request_key("UploadDataset", id, &header.encode_to_vec());
        let work = move |datasets: &Datasets| {
            declaration.format = format.unwrap_or_else(|| Format::detect(&file.bytes));
            let record = datasets.put(file.bytes, declaration, Change { name, expected, request });
            drop(memory);
            record
        };
        Ok(Response::new(dataset_out(self.ask(&context, work).await?)))
    }

    async fn get_dataset(&self, request: Request<pb::GetDatasetRequest>) -> Result<Response<pb::Dataset>, Status> {
        let context = Context::of(&request);
        let wire = request.into_inner();
        let mut v = Violations::default();
        // An id has 64 characters, one more than the longest name.
        let mut unnamed = Violations::default();
        let id = expected(&mut unnamed, "name", Some(&wire.name));
        if !matches!(id, Expected::Id(_)) || !unnamed.list().is_empty() {
            name(&mut v, "name", &wire.name);
        }
        checked(v, Some(()))?;
        let record = self.ask(&context, move |datasets| datasets.get(&wire.name)).await?;
        Ok(Response::new(dataset_out(record)))
    }

    async fn list_datasets(
        &self,
        request: Request<pb::ListDatasetsRequest>,
    ) -> Result<Response<pb::ListDatasetsResponse>, Status> {
        let context = Context::of(&request);
        let wire = request.into_inner();
        let (size, after) = page(&self.pages, "ListDatasets", wire.page_size, &wire.page_token)?;
        let work = move |datasets: &Datasets| datasets.list(after.as_deref(), size + 1);
        let mut entries = self.ask(&context, work).await?;
        let next_page_token = next_page(&self.pages, "ListDatasets", &mut entries, size, |record| &record.name);
        let datasets = entries.into_iter().map(dataset_out).collect();
        Ok(Response::new(pb::ListDatasetsResponse { datasets, next_page_token }))
    }

    async fn delete_dataset(&self, request: Request<pb::DeleteDatasetRequest>) -> Result<Response<()>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("DeleteDataset", id, &wire.encode_to_vec());
        let expected = expected(&mut v, "expected_id", wire.expected_id.as_deref());
        v.require("expected_id", expected != Expected::Absent, "must not be empty text");
        let name = name(&mut v, "name", &wire.name);
        let name = checked(v, name)?;
        self.ask(&context, move |datasets| datasets.delete(&Change { name, expected, request })).await?;
        Ok(Response::new(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_of_a_declaration_is_told() {
        let mut v = Violations::default();
        assert!(declaration(&mut v, None).is_none());
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
        assert!(declaration(&mut v, Some(&wire)).is_none());
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
        let (read, format) = declaration(&mut v, Some(&whole)).unwrap();
        assert_eq!(format, Some(Format::Csv));
        assert_eq!(declaration_out(read), whole);
        assert!(v.list().is_empty());
    }
}
