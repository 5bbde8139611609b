//! DatasetService: checks a declaration's form, asks the data sets off the async threads, and maps their records.
//!
//! Keeps nothing and reads no row: files are checked by `dataset`.

use std::sync::Arc;

use prost::Message as _;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status, Streaming};

use super::context::Context;
use super::dataset_rows;
use super::declaration::{declaration, declaration_out};
use super::fields::{checked, name, next_page, page, request_id, request_key, timestamp};
use super::names::split_out;
use super::page::PageTokens;
use super::pb;
use super::services::blocking;
use super::status;
use super::upload::{self, Announced};
use super::violations::Violations;
use crate::dataset::{
    Change, DatasetError, DatasetRecord, Datasets, Declaration, Expected, Format, GroupSummary, MOST_LISTING, Warning,
};
use crate::store::Name;

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
        self.part.and_then(|part| match part {
            pb::upload_dataset_request::Part::Header(header) => Some(upload::Part::Header(header)),
            pb::upload_dataset_request::Part::Chunk(pb::DatasetChunk { offset, data }) => {
                Some(upload::Part::Chunk(pb::FileChunk { name: FILE.to_owned(), offset, data }))
            }
            // Rows are read by `dataset_rows`; a file has none.
            pb::upload_dataset_request::Part::Row(_) => None,
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

    /// Takes an upload of rows, when its header was read.
    async fn upload_rows(
        &self,
        context: &Context,
        mut stream: Streaming<pb::UploadDatasetRequest>,
        mut header: pb::UploadDatasetHeader,
    ) -> Result<Response<pb::Dataset>, Status> {
        let mut v = Violations::default();
        let found = checked_header(&header, &mut v);
        of_images(&mut v, "header.declaration", found.as_ref().map(|(_, _, declared)| declared), Format::Jsonl);
        v.require("header.sha256", header.sha256.is_empty(), "must be empty where rows follow");
        let (name, expected, (declaration, _)) = checked(v, found)?;
        let declaration = Declaration { format: Format::Jsonl, csv_delimiter: ',', ..declaration };
        let (memory, most) = (&self.upload_memory, self.max_upload_bytes);
        let (file, memory) = dataset_rows::receive(&mut stream, &declaration, memory, most).await?;
        let id = std::mem::take(&mut header.request_id);
        header.sha256 = hex::encode(Sha256::digest(&file));
        let request = request_key("UploadDataset", id, &header.encode_to_vec());
        let work = move |datasets: &Datasets| {
            let record = datasets.put(file, declaration, Change { name, expected, request });
            drop(memory);
            record
        };
        Ok(Response::new(dataset_out(self.ask(context, work).await?)))
    }
}

/// Checks what a header says, but for the file.
fn checked_header(header: &pb::UploadDatasetHeader, v: &mut Violations) -> Option<Checked> {
    let expected = expected(v, "header.expected_id", header.expected_id.as_deref());
    request_id(v, "header.request_id", &header.request_id);
    let name = name(v, "header.name", &header.name);
    let declaration = declaration(v, "header.declaration", header.declaration.as_ref());
    name.zip(declaration).map(|(name, declaration)| (name, expected, declaration))
}

/// What is known before the rows: name, what it must point to, declaration and its format, if it has one.
type Checked = (Name, Expected, (Declaration, Option<Format>));

/// Requires that rows are images, and that they are in no other format.
fn of_images(v: &mut Violations, field: &str, declared: Option<&(Declaration, Option<Format>)>, format: Format) {
    let Some((declaration, declared)) = declared else { return };
    v.require(&format!("{field}.image_column"), declaration.image_column().is_some(), "must be given");
    let sound = declared.is_none_or(|declared| declared == format);
    let rule = if format == Format::Csv { "must be CSV or not given" } else { "must be JSONL or not given" };
    v.require(&format!("{field}.format"), sound, rule);
}

#[tonic::async_trait]
impl pb::dataset_service_server::DatasetService for DatasetApi {
    async fn upload_dataset(
        &self,
        request: Request<Streaming<pb::UploadDatasetRequest>>,
    ) -> Result<Response<pb::Dataset>, Status> {
        let context = Context::of(&request);
        let mut stream = request.into_inner();
        let header = upload::header(&mut stream).await?;
        let images = header.declaration.as_ref().is_some_and(|declared| !declared.image_column.is_empty());
        if header.size == 0 && images {
            return self.upload_rows(&context, stream, header).await;
        }
        let check = |header: &mut pb::UploadDatasetHeader, v: &mut Violations| {
            let (size, sha256) = (header.size, header.sha256.clone());
            let file = Announced { name: FILE, field: "header".to_owned(), size, sha256 };
            ([file], checked_header(header, v))
        };
        let upload::Upload { checked, mut header, files: [file], memory } =
            upload::receive_files(&mut stream, header, &self.upload_memory, self.max_upload_bytes, check).await?;
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

    async fn load_dataset(&self, request: Request<pb::LoadDatasetRequest>) -> Result<Response<pb::Dataset>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("LoadDataset", id, &wire.encode_to_vec());
        let expected = expected(&mut v, "expected_id", wire.expected_id.as_deref());
        let name = name(&mut v, "name", &wire.name);
        let declaration = declaration(&mut v, "declaration", wire.declaration.as_ref());
        of_images(&mut v, "declaration", declaration.as_ref(), Format::Csv);
        v.require("directory", !wire.directory.is_empty(), "must be given");
        v.require("listing", !wire.listing.is_empty(), "must be given");
        let (name, (declaration, _)) = checked(v, name.zip(declaration))?;
        let asked = request.clone();
        if let Some(first) = self.ask(&context, move |datasets| datasets.answered(asked.as_ref())).await? {
            return Ok(Response::new(dataset_out(first)));
        }
        // The listing is in memory while it is read, its rows until the images are; then the images are.
        let listing = upload::reserve(&self.upload_memory, MOST_LISTING.min(self.max_upload_bytes))?;
        let open = move |datasets: &Datasets| datasets.folder(&wire.directory, &wire.listing, &declaration);
        let folder = self.ask(&context, open).await?;
        drop(listing);
        if folder.bytes() > self.max_upload_bytes {
            return Err(upload::too_large(self.max_upload_bytes));
        }
        let memory = upload::reserve(&self.upload_memory, folder.bytes())?;
        let work = move |datasets: &Datasets| {
            let (file, declaration) = folder.read()?;
            let record = datasets.put(file, declaration, Change { name, expected, request });
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
