//! Classify for rows of data sets: images and texts, by numbers and as a range, as the same entries given in the request.

use evenkeel::rpc::pb::{self, ClassifyInput, ClassifyRequest, DatasetDeclaration, DatasetRows, RowRange};
use tonic::{Code, Status};

use super::jobs::{image, labels_of, upload};
use super::{SWIN, VIT, classify, logits, png, publish, start, start_with};
use crate::audits;
use crate::client::{Client, refused, violations};

fn numbered(dataset: &str, numbers: &[u64]) -> DatasetRows {
    DatasetRows { dataset: dataset.into(), numbers: numbers.to_vec(), range: None }
}

fn ranged(dataset: &str, first: u64, count: u32) -> DatasetRows {
    DatasetRows { dataset: dataset.into(), numbers: Vec::new(), range: Some(RowRange { first, count }) }
}

async fn rows(client: &Client, adapter: &str, base: &str, rows: DatasetRows) -> Result<pb::ClassifyResponse, Status> {
    let (adapter, base_model) = (adapter.into(), base.into());
    let request = ClassifyRequest { adapter, base_model, rows: Some(rows), inputs: Vec::new() };
    Ok(client.inference.clone().classify(request).await?.into_inner())
}

fn places(response: &pb::ClassifyResponse) -> Vec<u64> {
    response.classifications.iter().map(|one| one.row).collect()
}

#[tokio::test]
async fn rows_of_images_are_classified_as_their_files_are() {
    let server = start(&[VIT, SWIN]).await;
    let client = &server.client;
    let dataset = upload(client, "colours", &labels_of(&server, VIT).await).await;
    publish(client, "seen", "vit_qv", VIT).await.unwrap();
    let file = |number: &u64| image((*number as usize - 1) % 3, *number as u32 - 1);
    let wanted = [7, 1, 48, 7];
    for (adapter, base) in [("", VIT), ("seen", ""), ("", SWIN)] {
        let given = classify(client, (base, adapter), &wanted.iter().map(file).collect::<Vec<_>>()).await.unwrap();
        let found = rows(client, adapter, base, numbered("colours", &wanted)).await.unwrap();
        assert_eq!(logits(&found), logits(&given));
        assert_eq!((places(&found), places(&given)), (wanted.to_vec(), vec![0; 4]));
        assert_eq!((found.dataset.as_str(), given.dataset.as_str()), (dataset.id.as_str(), ""));
        assert_eq!((&found.base_model, &found.generation), (&given.base_model, &given.generation));
    }
    // The end of the data set ends a range; its id names it as well.
    let last = rows(client, "", VIT, ranged(&dataset.id, 40, 64)).await.unwrap();
    assert_eq!(places(&last), (40..=48).collect::<Vec<_>>());
    let files: Vec<_> = (40..=48).map(|number| file(&number)).collect();
    assert_eq!(logits(&last), logits(&classify(client, (VIT, ""), &files).await.unwrap()));
}

#[tokio::test]
async fn rows_of_texts_are_classified_by_whoever_reads_text() {
    let server = crate::client::start_with("llama_seqcls", |_| {}).await;
    let client = &server.client;
    let texts = ["once", "the model speaks", "two cats and a server"];
    let lines: String = texts.iter().map(|text| format!("{{\"prompt\": \"{text}\", \"answer\": \"yes\"}}\n")).collect();
    let declaration = DatasetDeclaration {
        format: pb::DatasetFormat::Jsonl.into(),
        prompt_column: "prompt".into(),
        completion_column: "answer".into(),
        ..Default::default()
    };
    audits::upload(client, "texts", &lines, declaration).await;
    let inputs =
        texts.iter().map(|text| ClassifyInput { prompt: Some((*text).into()), ..Default::default() }).collect();
    let given = ClassifyRequest { inputs, ..Default::default() };
    let given = client.inference.clone().classify(given).await.unwrap().into_inner();
    let found = rows(client, "", "", ranged("texts", 1, 3)).await.unwrap();
    assert_eq!((logits(&found), &found.usage), (logits(&given), &given.usage));
    assert_eq!(places(&found), [1, 2, 3]);
    let one = rows(client, "", "", numbered("texts", &[2])).await.unwrap();
    assert_eq!(logits(&one)[0], logits(&given)[1]);
    let other = rows(client, "", "nobody", numbered("texts", &[2])).await;
    assert_eq!(violations(&refused(other, Code::InvalidArgument, "INVALID_FIELD")), ["base_model"]);
    // A conversation or a text that is too long is told by its row.
    let long = format!("{{\"prompt\": \"{}\", \"answer\": \"yes\"}}\n", "server ".repeat(4000));
    let declaration = DatasetDeclaration {
        format: pb::DatasetFormat::Jsonl.into(),
        prompt_column: "prompt".into(),
        completion_column: "answer".into(),
        ..Default::default()
    };
    audits::upload(client, "long", &(lines + &long), declaration).await;
    let status = refused(rows(client, "", "", ranged("long", 3, 2)).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["rows"]);
    assert!(status.message().contains("row 4: has"), "{status:?}");
}

#[tokio::test]
async fn rows_that_are_not_there_or_too_many_are_told() {
    let server = start_with(&[VIT], |settings| settings.engine.max_image_pixels = 24 * 28).await;
    let client = &server.client;
    upload(client, "colours", &labels_of(&server, VIT).await).await;
    let cases = [
        (numbered("colours", &[1, 0, 49]), vec!["rows.numbers[1]", "rows.numbers[2]"]),
        (numbered("colours", &[u64::MAX]), vec!["rows.numbers[0]"]),
        (numbered("colours", &[]), vec!["rows.numbers"]),
        (numbered("colours", &vec![1; 65]), vec!["rows"]),
        (numbered("colours", &vec![1; 1025]), vec!["rows.numbers"]),
        (ranged("colours", 49, 1), vec!["rows.range.first"]),
        (ranged("colours", 0, 0), vec!["rows.range.count", "rows.range.first"]),
        (ranged("colours", 1, 1025), vec!["rows.range.count"]),
        (DatasetRows { numbers: vec![1], ..ranged("colours", 1, 1) }, vec!["rows.numbers"]),
        (numbered("", &[1]), vec!["rows.dataset"]),
    ];
    for (asked, fields) in cases {
        let status = refused(rows(client, "", "", asked).await, Code::InvalidArgument, "INVALID_FIELD");
        assert_eq!(violations(&status), fields);
    }
    refused(rows(client, "", "", numbered("nothing", &[1])).await, Code::NotFound, "DATASET_NOT_FOUND");
    let both = ClassifyRequest {
        inputs: vec![ClassifyInput { image: Some(png(9, 9, [1; 3], 1)), ..Default::default() }],
        rows: Some(numbered("colours", &[1])),
        ..Default::default()
    };
    let status = refused(client.inference.clone().classify(both).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["inputs"]);
    // Limits of requests hold for rows too: every fifth is 28 pixels wide, the fourth of them 27.
    assert_eq!(rows(client, "", "", ranged("colours", 1, 48)).await.unwrap().classifications.len(), 48);
    let wide = png(40, 24, [1; 3], 1);
    let header = pb::UploadDatasetHeader {
        name: "wide".into(),
        declaration: Some(DatasetDeclaration { image_column: "image".into(), ..Default::default() }),
        ..Default::default()
    };
    use pb::upload_dataset_request::Part;
    let row = pb::ImageRow { image: wide, ..Default::default() };
    crate::datasets::send(client, vec![Part::Header(header), Part::Row(row)]).await.unwrap();
    let status = refused(rows(client, "", "", numbered("wide", &[1])).await, Code::InvalidArgument, "INVALID_FIELD");
    assert_eq!(violations(&status), ["rows"]);
    assert!(status.message().contains("row 1: is an image of 40 x 24"), "{status:?}");
    // A data set that was read is not held: it can be deleted, and then it is gone.
    let deleted = pb::DeleteDatasetRequest { name: "wide".into(), ..Default::default() };
    client.datasets.clone().delete_dataset(deleted).await.unwrap();
    refused(rows(client, "", "", numbered("wide", &[1])).await, Code::NotFound, "DATASET_NOT_FOUND");
}
