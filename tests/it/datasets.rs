//! Data sets over gRPC: what goes in is told and kept, what is faulty is refused by row and column, and leaves nothing.

use evenkeel::rpc::pb::dataset_declaration::Split;
use evenkeel::rpc::pb::upload_dataset_request::Part;
use evenkeel::rpc::pb::{self, DatasetDeclaration};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::client::{self, Client, refused, sha256, violations};
use super::process;

const CSV: &str = "text,label,sex,part\ngood,pos,f,train\nbad,neg,m,train\nfine,pos,,validation\nawful,neg,f,test\n";

fn declaration() -> DatasetDeclaration {
    DatasetDeclaration {
        text_column: "text".into(),
        label_column: "label".into(),
        group_columns: vec!["sex".into()],
        split: Some(Split::SplitColumn("part".into())),
        ..Default::default()
    }
}

fn header(name: &str, file: &[u8], declaration: DatasetDeclaration) -> pb::UploadDatasetHeader {
    pb::UploadDatasetHeader {
        name: name.into(),
        size: file.len() as u64,
        sha256: sha256(file),
        declaration: Some(declaration),
        ..Default::default()
    }
}

pub(crate) fn parts(header: pb::UploadDatasetHeader, file: &[u8], size: usize) -> Vec<Part> {
    let chunk = |(index, data): (usize, &[u8])| {
        Part::Chunk(pb::DatasetChunk { offset: (index * size) as u64, data: data.to_vec() })
    };
    std::iter::once(Part::Header(header)).chain(file.chunks(size).enumerate().map(chunk)).collect()
}

pub(crate) async fn send(client: &Client, parts: Vec<Part>) -> Result<pb::Dataset, Status> {
    let messages = parts.into_iter().map(|part| pb::UploadDatasetRequest { part: Some(part) });
    Ok(client.datasets.clone().upload_dataset(tokio_stream::iter(messages)).await?.into_inner())
}

async fn upload(client: &Client, name: &str, file: &str) -> Result<pb::Dataset, Status> {
    send(client, parts(header(name, file.as_bytes(), declaration()), file.as_bytes(), 7)).await
}

async fn get(client: &Client, name: &str) -> Result<pb::Dataset, Status> {
    let request = pb::GetDatasetRequest { name: name.into() };
    Ok(client.datasets.clone().get_dataset(request).await?.into_inner())
}

async fn delete(client: &Client, request: pb::DeleteDatasetRequest) -> Result<(), Status> {
    client.datasets.clone().delete_dataset(request).await.map(tonic::Response::into_inner)
}

fn by_name(name: &str) -> pb::DeleteDatasetRequest {
    pb::DeleteDatasetRequest { name: name.into(), ..Default::default() }
}

async fn list(client: &Client) -> Vec<pb::Dataset> {
    let mut all = Vec::new();
    let mut request = pb::ListDatasetsRequest { page_size: 2, ..Default::default() };
    loop {
        let page = client.datasets.clone().list_datasets(request.clone()).await.unwrap().into_inner();
        assert!(page.datasets.len() <= 2);
        all.extend(page.datasets);
        if page.next_page_token.is_empty() {
            return all;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn an_upload_tells_what_is_in_it() {
    let server = client::start().await;
    let client = &server.client;
    let dataset = upload(client, "reviews", CSV).await.unwrap();
    assert_eq!((dataset.name.as_str(), dataset.id.len(), dataset.rows), ("reviews", 64, 4));
    assert_eq!(dataset.bytes, CSV.len() as u64);
    let declared = dataset.declaration.clone().unwrap();
    assert_eq!((declared.format(), declared.text_column.as_str()), (pb::DatasetFormat::Csv, "text"));
    let parts: Vec<_> = dataset.parts.iter().map(|part| (part.split(), part.rows)).collect();
    use pb::DatasetSplit::{Test, Train, Validation};
    assert_eq!(parts, [(Train, 2), (Validation, 1), (Test, 1)]);
    let labels: Vec<_> = dataset.labels.iter().map(|label| (label.value.as_str(), label.rows)).collect();
    assert_eq!(labels, [("neg", 2), ("pos", 2)]);
    let [sex] = dataset.group_columns.as_slice() else { panic!("{:?}", dataset.group_columns) };
    let values: Vec<_> = sex.values.iter().map(|value| (value.value.as_str(), value.rows)).collect();
    assert_eq!((values, sex.missing_rows), (vec![("f", 2), ("m", 1)], 1));
    let [warning] = dataset.warnings.as_slice() else { panic!("{:?}", dataset.warnings) };
    assert_eq!((warning.kind(), warning.rows), (pb::DatasetWarningKind::MissingGroupValues, 1));
    for name in ["reviews", &dataset.id] {
        assert_eq!(get(client, name).await.unwrap(), dataset, "{name}");
    }
    // The same again, in other chunks, changes nothing; the same rows in another file have the same parts.
    let header = header("reviews", CSV.as_bytes(), declaration());
    assert_eq!(send(client, self::parts(header, CSV.as_bytes(), 1000)).await.unwrap(), dataset);
    let mut lines: Vec<_> = CSV.lines().collect();
    lines[1..].reverse();
    let other = upload(client, "reversed", &lines.join("\n")).await.unwrap();
    assert_ne!(other.id, dataset.id);
    assert_eq!(other.parts, dataset.parts);
}

#[tokio::test]
async fn names_are_replaced_listed_and_deleted() {
    let server = client::start().await;
    let client = &server.client;
    let first = upload(client, "b", CSV).await.unwrap();
    for name in ["c", "a"] {
        upload(client, name, CSV).await.unwrap();
    }
    let names: Vec<_> = list(client).await.into_iter().map(|dataset| dataset.name).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let request = pb::ListDatasetsRequest { page_token: "forged".into(), ..Default::default() };
    refused(client.datasets.clone().list_datasets(request).await, Code::InvalidArgument, "PAGE_TOKEN");

    let longer = format!("{CSV}more,pos,f,train\n");
    let status = refused(upload(client, "b", &longer).await, Code::Aborted, "DATASET_MISMATCH");
    assert_eq!(status.get_details_error_info().unwrap().metadata["current_id"], first.id);
    let mut swap = header("b", longer.as_bytes(), declaration());
    swap.expected_id = Some(first.id.clone());
    swap.request_id = "swap-1".into();
    let second = send(client, parts(swap.clone(), longer.as_bytes(), 64)).await.unwrap();
    assert_eq!(send(client, parts(swap.clone(), longer.as_bytes(), 9)).await.unwrap(), second);
    swap.expected_id = Some(second.id.clone());
    let reused = send(client, parts(swap, longer.as_bytes(), 64)).await;
    refused(reused, Code::InvalidArgument, "REQUEST_ID_REUSED");
    assert_eq!(get(client, "a").await.unwrap().id, first.id);

    let stale = pb::DeleteDatasetRequest { expected_id: Some(first.id.clone()), ..by_name("b") };
    refused(delete(client, stale).await, Code::Aborted, "DATASET_MISMATCH");
    let once = pb::DeleteDatasetRequest { request_id: "gone".into(), ..by_name("b") };
    delete(client, once.clone()).await.unwrap();
    delete(client, once).await.unwrap();
    refused(delete(client, by_name("b")).await, Code::NotFound, "DATASET_NOT_FOUND");
    for name in ["b", &second.id] {
        refused(get(client, name).await, Code::NotFound, "DATASET_NOT_FOUND");
    }
    for name in ["", "../x", "A", &"x".repeat(65)] {
        refused(get(client, name).await, Code::InvalidArgument, "INVALID_FIELD");
    }
}

#[tokio::test]
async fn faulty_files_are_refused_by_row_and_column() {
    let server = client::start_with(client::MODEL, |settings| {
        settings.datasets.max_rows = 5;
        settings.datasets.max_row_bytes = 100;
    })
    .await;
    let client = &server.client;
    let long = format!("text,label,sex,part\n{},x,f,train\n", "x".repeat(101));
    let many = format!("{CSV}a,pos,f,train\nb,pos,f,train\n");
    let cases: [(&[u8], &[&str]); 10] = [
        (b"text,label,sex,part\na,,f,train\n", &["rows[1].label"]),
        (b"text,label,sex,part\na,x,f,train\nb,x,f,dev\n,x,f,test\n", &["rows[2].part", "rows[3].text"]),
        (b"text,label,gender,part\na,x,f,train\n", &["columns.sex"]),
        (b"text,label,sex,part\na,x,f\n", &["rows[1]"]),
        (b"text,text,label,sex,part\na,x,f,train\n", &["columns.text"]),
        (b"text,label,sex,part\n\xff,x,f,train\n", &["rows[1].text"]),
        (b"text,label,sex,part\n", &["file"]),
        (long.as_bytes(), &["rows[1]"]),
        (many.as_bytes(), &["file"]),
        (b"{\"text\": \"a\", \"label\": 1, \"sex\": 1, \"part\": \"test\"}\n{\"text\":", &["rows[2]"]),
    ];
    for (file, fields) in cases {
        let sent = send(client, parts(header("bad", file, declaration()), file, 50)).await;
        let status = refused(sent, Code::InvalidArgument, "DATASET_INVALID");
        assert_eq!(violations(&status), fields, "{status:?}");
    }
    let mut parquet = b"PAR1".to_vec();
    parquet.extend([0xff; 40]);
    parquet.extend(b"\xff\xff\xff\x7fPAR1");
    let sent = send(client, parts(header("bad", &parquet, declaration()), &parquet, 50)).await;
    refused(sent, Code::InvalidArgument, "DATASET_INVALID");
    let first = send(client, parts(header("bad", cases[1].0, declaration()), cases[1].0, 50)).await.unwrap_err();
    let metadata = first.get_details_error_info().unwrap().metadata;
    assert_eq!((metadata["row"].as_str(), metadata["column"].as_str()), ("2", "part"));
    refused(get(client, "bad").await, Code::NotFound, "DATASET_NOT_FOUND");
    assert!(list(client).await.is_empty());
    upload(client, "good", CSV).await.unwrap();
}

#[tokio::test]
async fn faulty_streams_are_refused_and_leave_nothing() {
    let server = client::start_with(client::MODEL, |settings| settings.datasets.max_upload_bytes = 1000).await;
    let client = &server.client;
    let file = CSV.as_bytes();
    let whole = || parts(header("x", file, declaration()), file, 20);
    let with = |change: &dyn Fn(&mut pb::UploadDatasetHeader)| {
        let mut header = header("x", file, declaration());
        change(&mut header);
        parts(header, file, 20)
    };
    let without = |index: usize| {
        let mut parts = whole();
        parts.remove(index);
        parts
    };
    let declared =
        |change: &dyn Fn(&mut DatasetDeclaration)| with(&|header| change(header.declaration.as_mut().unwrap()));
    let faulty = [
        vec![],
        without(0),
        without(2),
        without(whole().len() - 1),
        [whole(), whole()].concat(),
        with(&|header| header.declaration = None),
        with(&|header| header.name = "../x".into()),
        with(&|header| header.size = 0),
        with(&|header| header.sha256 = "no".into()),
        with(&|header| header.expected_id = Some("no".into())),
        with(&|header| header.request_id = "\n".into()),
        declared(&|declaration| declaration.format = 77),
        declared(&|declaration| declaration.text_column.clear()),
        declared(&|declaration| declaration.prompt_column = "p".into()),
        declared(&|declaration| declaration.csv_delimiter = "ab".into()),
    ];
    for (index, parts) in faulty.into_iter().enumerate() {
        let result = send(client, parts).await;
        assert!(result.is_err(), "case {index} was taken");
        refused(result, Code::InvalidArgument, "INVALID_FIELD");
    }
    let seeded = pb::SeededSplit { validation: f64::NAN, test: 2.0, ..Default::default() };
    let nan = declared(&|declaration| declaration.split = Some(Split::SeededSplit(seeded.clone())));
    refused(send(client, nan).await, Code::InvalidArgument, "DATASET_INVALID");
    let wrong = with(&|header| header.sha256 = sha256(b"other"));
    refused(send(client, wrong).await, Code::InvalidArgument, "CHECKSUM");
    let large = with(&|header| header.size = u64::MAX);
    refused(send(client, large[..1].to_vec()).await, Code::ResourceExhausted, "UPLOAD_TOO_LARGE");
    assert!(list(client).await.is_empty());
    send(client, whole()).await.unwrap();
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let settings = process::settings(client::MODEL, &folder.path().join("data"));
    let mut process = client::spawn(&settings).await;
    let mut expected = Vec::new();
    for round in 0..4 {
        let client = Client::connect(&process).await;
        assert_eq!(list(&client).await, expected, "before round {round}");
        if let Some(gone) = expected.pop() {
            let gone: pb::Dataset = gone;
            delete(&client, by_name(&gone.name)).await.unwrap();
        }
        for index in 0..2 {
            let file = format!("{CSV}row {round} {index},pos,f,train\n");
            expected.push(upload(&client, &format!("set-{round}-{index}"), &file).await.unwrap());
        }
        // One more is on its way when the process dies: it is there whole afterwards, or not at all.
        let file = format!("{CSV}{}", "lost,pos,f,train\n".repeat(2000));
        let pending = tokio::spawn(async move { upload(&client, "z-pending", &file).await });
        tokio::task::yield_now().await;
        process.kill();
        let answer = pending.await.unwrap();
        process = client::spawn(&settings).await;
        let client = Client::connect(&process).await;
        match (get(&client, "z-pending").await, answer) {
            (Ok(found), answer) => {
                assert!(answer.is_err() || answer.unwrap() == found);
                assert_eq!(found.rows, 2004);
                delete(&client, by_name("z-pending")).await.unwrap();
            }
            (Err(status), answer) => {
                refused(Err::<(), _>(status), Code::NotFound, "DATASET_NOT_FOUND");
                assert!(answer.is_err(), "acknowledged and lost");
            }
        }
    }
    let blobs = std::fs::read_dir(folder.path().join("data/blobs")).unwrap().count();
    assert_eq!(blobs, expected.len());
}
