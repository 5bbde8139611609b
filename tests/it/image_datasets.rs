//! Data sets of images over gRPC: three ways in with one identity, and every faulty image refused by row and column.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use evenkeel::rpc::pb::dataset_declaration::Split;
use evenkeel::rpc::pb::upload_dataset_request::Part;
use evenkeel::rpc::pb::{self, DatasetDeclaration, DatasetSplit, ImageRow};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::client::{self, Client, refused, sha256, violations};
use super::datasets::{parts, send};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)).unwrap()
}

fn declaration() -> DatasetDeclaration {
    DatasetDeclaration {
        image_column: "image".into(),
        label_column: "label".into(),
        group_columns: vec!["light".into()],
        split: Some(Split::SplitColumn("part".into())),
        ..Default::default()
    }
}

fn header(name: &str) -> pb::UploadDatasetHeader {
    pb::UploadDatasetHeader { name: name.into(), declaration: Some(declaration()), ..Default::default() }
}

fn row(image: &str, label: &str, light: &str) -> ImageRow {
    let values = [("light".to_owned(), light.to_owned())].into();
    ImageRow { image: file(image), labels: vec![label.into()], split: DatasetSplit::Train.into(), values }
}

fn some_rows() -> Vec<ImageRow> {
    let test = ImageRow { split: DatasetSplit::Test.into(), ..row("rgba.webp", "cat", "dim") };
    vec![row("rgb.png", "dog", "bright"), row("grey.jpg", "cat", "dim"), test]
}

async fn send_rows(
    client: &Client,
    header: pb::UploadDatasetHeader,
    rows: Vec<ImageRow>,
) -> Result<pb::Dataset, Status> {
    send(client, std::iter::once(Part::Header(header)).chain(rows.into_iter().map(Part::Row)).collect()).await
}

async fn send_file(client: &Client, name: &str, file: &str) -> Result<pb::Dataset, Status> {
    let (size, sha256) = (file.len() as u64, sha256(file.as_bytes()));
    let header = pb::UploadDatasetHeader { size, sha256, ..header(name) };
    send(client, parts(header, file.as_bytes(), 1000)).await
}

/// The file that the rows are kept as.
fn lines(rows: &[ImageRow]) -> String {
    let line = |row: &ImageRow| {
        let image = base64::engine::general_purpose::STANDARD.encode(&row.image);
        let part = if row.split() == DatasetSplit::Test { "test" } else { "train" };
        let (label, light) = (&row.labels[0], &row.values["light"]);
        format!("{{\"image\":\"{image}\",\"label\":\"{label}\",\"light\":\"{light}\",\"part\":\"{part}\"}}\n")
    };
    rows.iter().map(line).collect()
}

/// The same rows as Parquet, an image in a binary column.
fn table(rows: &[ImageRow]) -> Vec<u8> {
    let text = |name: &str| format!("required binary {name} (STRING);");
    let schema = format!("message m {{ required binary image; {} }}", ["label", "light", "part"].map(text).concat());
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let part = |row: &ImageRow| if row.split() == DatasetSplit::Test { "test" } else { "train" };
    type Cell<'a> = &'a dyn Fn(&ImageRow) -> Vec<u8>;
    let cells: [Cell<'_>; 4] = [
        &|row| row.image.clone(),
        &|row| row.labels[0].clone().into_bytes(),
        &|row| row.values["light"].clone().into_bytes(),
        &|row| part(row).as_bytes().to_vec(),
    ];
    for cell in cells {
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<_> = rows.iter().map(|row| ByteArray::from(cell(row))).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.into_inner().unwrap()
}

fn load(name: &str) -> pb::LoadDatasetRequest {
    pb::LoadDatasetRequest {
        name: name.into(),
        directory: "sets/pets".into(),
        listing: "list.csv".into(),
        declaration: Some(declaration()),
        ..Default::default()
    }
}

async fn send_load(client: &Client, request: pb::LoadDatasetRequest) -> Result<pb::Dataset, Status> {
    Ok(client.datasets.clone().load_dataset(request).await?.into_inner())
}

#[tokio::test]
async fn every_way_in_gives_the_same_rows() {
    let folder = tempfile::tempdir().unwrap();
    let pets = folder.path().join("sets/pets");
    std::fs::create_dir_all(&pets).unwrap();
    for name in ["rgb.png", "grey.jpg", "rgba.webp"] {
        std::fs::write(pets.join(name), file(name)).unwrap();
    }
    let listing = "part,image,label,light\ntrain,rgb.png,dog,bright\ntrain,grey.jpg,cat,dim\ntest,rgba.webp,cat,dim\n";
    std::fs::write(pets.join("list.csv"), listing).unwrap();
    let root = folder.path().to_owned();
    let server = client::start_with(client::MODEL, |settings| settings.datasets.import_dir = Some(root)).await;
    let client = &server.client;

    let rows = send_rows(client, header("rows"), some_rows()).await.unwrap();
    let labels: Vec<_> = rows.labels.iter().map(|label| (label.value.as_str(), label.rows)).collect();
    assert_eq!((rows.rows, labels), (3, vec![("cat", 2), ("dog", 1)]));
    assert_eq!(rows.group_columns[0].values.len(), 2);
    assert_eq!(rows.parts[2].rows, 1);
    let declared = rows.declaration.clone().unwrap();
    assert_eq!((declared.image_column.as_str(), declared.format()), ("image", pb::DatasetFormat::Jsonl));

    let whole = send_file(client, "file", &lines(&some_rows())).await.unwrap();
    let asked = pb::LoadDatasetRequest { request_id: "once".into(), ..load("loaded") };
    let loaded = send_load(client, asked.clone()).await.unwrap();
    for other in [&whole, &loaded] {
        assert_eq!((&other.id, other.bytes, &other.parts), (&rows.id, rows.bytes, &rows.parts));
    }
    // Another file has another id, of the same rows.
    let table = table(&some_rows());
    let declared = DatasetDeclaration { format: pb::DatasetFormat::Parquet.into(), ..declaration() };
    let of_table = pb::UploadDatasetHeader {
        size: table.len() as u64,
        sha256: sha256(&table),
        declaration: Some(declared),
        ..header("table")
    };
    let of_table = send(client, parts(of_table, &table, 1000)).await.unwrap();
    assert_ne!(of_table.id, rows.id);
    let told = |set: &pb::Dataset| (set.rows, set.labels.clone(), set.group_columns.clone(), set.parts.clone());
    assert_eq!(told(&of_table), told(&rows));
    assert!(rows.parts.iter().any(|part| !part.sha256.is_empty()), "parts tell the hash of their rows");
    // Content and label decide: a row that is there twice is told.
    let twice = [some_rows(), some_rows()].concat();
    let twice = send_rows(client, header("twice"), twice).await.unwrap();
    assert_eq!(twice.warnings[0].kind(), pb::DatasetWarningKind::DuplicateRows);

    // Repeated, it is the first answer, whatever became of the folder.
    std::fs::remove_dir_all(&pets).unwrap();
    assert_eq!(send_load(client, asked.clone()).await.unwrap(), loaded);
    let other = pb::LoadDatasetRequest { listing: "other.csv".into(), ..asked };
    refused(send_load(client, other).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    let gone = refused(send_load(client, load("gone")).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&gone), ["directory"]);
    for directory in ["../..", "/etc", ""] {
        let outside = pb::LoadDatasetRequest { directory: directory.into(), ..load("gone") };
        refused(send_load(client, outside).await, Code::InvalidArgument, "INVALID_FIELD");
    }
    let once = pb::UploadDatasetHeader { request_id: "rows-1".into(), ..header("again") };
    let first = send_rows(client, once.clone(), some_rows()).await.unwrap();
    assert_eq!(send_rows(client, once.clone(), some_rows()).await.unwrap(), first);
    refused(send_rows(client, once, some_rows()[1..].to_vec()).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
}

#[tokio::test]
async fn a_folder_needs_to_be_configured() {
    let server = client::start().await;
    let status = refused(send_load(&server.client, load("x")).await, Code::FailedPrecondition, "NO_IMPORT_DIR");
    let failure = status.get_details_precondition_failure().unwrap();
    assert_eq!(failure.violations[0].subject, "datasets.import_dir");
    let text = DatasetDeclaration { image_column: String::new(), text_column: "x".into(), ..declaration() };
    let text = pb::LoadDatasetRequest { declaration: Some(text), ..load("x") };
    let status = refused(send_load(&server.client, text).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["declaration.image_column"]);
}

#[tokio::test]
async fn faulty_images_are_refused_by_row_and_column() {
    let server = client::start_with(client::MODEL, |settings| settings.datasets.max_image_bytes = 1000).await;
    let client = &server.client;
    let good = send_rows(client, header("good"), some_rows()).await.unwrap();
    let faulty = [
        ("other.txt", "no JPEG, PNG or WebP"),
        ("other.gif", "GIF"),
        ("truncated_rgb.jpg", "truncated"),
        ("truncated_rgb.png", "truncated"),
        ("huge.png", "100000 x 100000"),
        ("huge.jpg", "65535 x 65535"),
        ("empty.png", "0 x 0"),
        ("damaged.png", "damaged"),
        ("cmyk.jpg", "CMYK"),
        ("expected.json", "over the limit of 1000"),
    ];
    for (name, text) in faulty {
        let rows = vec![row("rgb.png", "dog", "dim"), row(name, "dog", "dim")];
        let status = refused(send_rows(client, header("bad"), rows).await, Code::InvalidArgument, "DATASET_INVALID");
        assert_eq!(violations(&status), ["rows[2].image"], "{name}");
        assert!(status.message().contains(text), "{name}: {status:?}");
        let metadata = status.get_details_error_info().unwrap().metadata;
        assert_eq!((metadata["row"].as_str(), metadata["column"].as_str()), ("2", "image"));
    }
    let lacking = vec![
        ImageRow { labels: Vec::new(), ..row("rgb.png", "", "dim") },
        ImageRow { image: Vec::new(), ..row("rgb.png", "x", "") },
    ];
    let status = refused(send_rows(client, header("bad"), lacking).await, Code::InvalidArgument, "DATASET_INVALID");
    assert_eq!(violations(&status), ["rows[1].label", "rows[2].image"]);
    let text = lines(&some_rows()).replacen("\"image\":\"", "\"image\":\"&", 1);
    let status = refused(send_file(client, "bad", &text).await, Code::InvalidArgument, "DATASET_INVALID");
    assert_eq!(violations(&status), ["rows[1].image"]);
    // What has a defined result: 16 bits, the first frame of an animation, alpha.
    let names = ["grey_16.png", "rgba_16.png", "animated.webp", "animated.png", "rgba.png", "turned.jpg"];
    let sound = names.iter().map(|name| row(name, "dog", "dim")).collect();
    assert_eq!(send_rows(client, header("sound"), sound).await.unwrap().rows, 6);
    let request = pb::GetDatasetRequest { name: "good".into() };
    assert_eq!(client.datasets.clone().get_dataset(request).await.unwrap().into_inner(), good);
}

#[tokio::test]
async fn faulty_streams_of_rows_are_refused() {
    let server = client::start_with(client::MODEL, |settings| settings.datasets.max_upload_bytes = 3000).await;
    let client = &server.client;
    let declared = |change: &dyn Fn(&mut DatasetDeclaration)| {
        let mut header = header("x");
        change(header.declaration.as_mut().unwrap());
        header
    };
    let one = || vec![row("rgb.png", "dog", "dim")];
    let with = |change: &dyn Fn(&mut ImageRow)| {
        let mut rows = vec![row("rgb.png", "dog", "dim"); 2];
        change(&mut rows[1]);
        rows
    };
    let cases = [
        (header("x"), with(&|row| row.split = 77), "rows[2].split"),
        (header("x"), with(&|row| drop(row.values.insert("lihgt".into(), "x".into()))), "rows[2].values"),
        (header("x"), with(&|row| drop(row.values.insert("part".into(), "test".into()))), "rows[2].values"),
        (declared(&|declared| declared.label_column.clear()), one(), "rows[1].labels"),
        (declared(&|declared| declared.split = None), one(), "rows[1].split"),
        (declared(&|declared| declared.format = pb::DatasetFormat::Csv.into()), one(), "header.declaration.format"),
        (pb::UploadDatasetHeader { sha256: sha256(b""), ..header("x") }, one(), "header.sha256"),
        (pb::UploadDatasetHeader { size: 10, ..header("x") }, one(), "part"),
    ];
    for (header, rows, field) in cases {
        let status = refused(send_rows(client, header, rows).await, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status), [field]);
    }
    let chunk = Part::Chunk(pb::DatasetChunk { offset: 0, data: vec![1] });
    for part in [chunk, Part::Header(header("x"))] {
        let sent = send(client, vec![Part::Header(header("x")), part]).await;
        refused(sent, Code::InvalidArgument, "INVALID_FIELD");
    }
    let several = with(&|row| row.labels.push("cat".into()));
    let status = refused(send_rows(client, header("x"), several).await, Code::InvalidArgument, "DATASET_INVALID");
    assert_eq!(violations(&status), ["rows[2].label"]);
    let none = refused(send_rows(client, header("x"), Vec::new()).await, Code::InvalidArgument, "DATASET_INVALID");
    assert_eq!(violations(&none), ["file"]);
    let many = vec![row("rgb.png", "dog", "dim"); 100];
    refused(send_rows(client, header("x"), many).await, Code::ResourceExhausted, "UPLOAD_TOO_LARGE");
    // Memory is given back each time.
    send_rows(client, header("x"), one()).await.unwrap();
}
