//! Rows of images: base64, folders with a listing, limits, and one identity for all ways in.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::dataset::{Folder, ImageRow, image_line};

pub(super) fn file(name: &str) -> Vec<u8> {
    fs::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/images").join(name)).unwrap()
}

pub(super) fn declaration(format: Format) -> Declaration {
    Declaration { content: ContentColumns::Image("image".into()), ..labelled(format) }
}

fn line(image: &str) -> String {
    format!("{{\"image\": \"{image}\", \"label\": \"x\"}}\n")
}

#[test]
fn base64_is_read_from_jsonl_and_csv() {
    let [one, two] = ["rgb.png", "grey.jpg"].map(|name| (file(name), STANDARD.encode(file(name))));
    let lines = line(&one.1) + &line(two.1.trim_end_matches('='));
    let dataset = parse(lines, &declaration(Format::Jsonl)).unwrap();
    let images: Vec<_> = dataset.rows.iter().map(|row| &row.content).collect();
    assert_eq!(images, [&Content::Image(one.0.into()), &Content::Image(two.0.into())]);
    let csv = format!("label,image\nx,{}\nx,{}\n", one.1, two.1);
    let same = parse(csv, &declaration(Format::Csv)).unwrap();
    let hashes = |dataset: &Dataset| dataset.rows.iter().map(|row| row.hash).collect::<Vec<_>>();
    assert_eq!(hashes(&same), hashes(&dataset));
    assert_ne!(same.id, dataset.id);
}

#[test]
fn faults_of_images_have_row_and_column() {
    let names = ["other.gif", "truncated_rgb.jpg", "huge.png", "empty.png", "cmyk.jpg", "other.txt"];
    let mut lines: String = names.iter().map(|name| line(&STANDARD.encode(file(name)))).collect();
    lines += &line("");
    lines += &line("&&&&");
    lines += "{\"image\": 7}\n";
    lines += &line(&"AAAA".repeat(400));
    let found = faults(parse(lines, &declaration(Format::Jsonl)));
    let expected = [
        "row 1, column `image`: GIF is not supported",
        "row 2, column `image`: is truncated",
        "row 3, column `image`: is an image of 100000 x 100000, over the limit of 1000 pixels",
        "row 4, column `image`: is an image of 0 x 0",
        "row 5, column `image`: CMYK is not supported",
        "row 6, column `image`: is no JPEG, PNG or WebP image",
        "row 7, column `image`: is missing",
        "row 8, column `image`: is no base64",
        "row 9, column `label`: is missing",
        "row 9, column `image`: must be an image in base64, not a number",
        "row 10, column `image`: is an image of 1200 bytes, over the limit of 1000",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn an_image_that_is_damaged_inside_is_refused_when_it_comes() {
    let lines: String = ["rgb.png", "damaged.png", "grey.jpg"].map(|name| line(&STANDARD.encode(file(name)))).concat();
    let found = faults(parse(lines.clone(), &declaration(Format::Jsonl)));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("row 2, column `image`: is a damaged image: "), "{found:?}");
    // What a data set was accepted with before is not decoded again.
    let read = parse_within(Limits { pixels: None, ..LIMITS }, lines, &declaration(Format::Jsonl));
    assert_eq!(read.unwrap().rows.len(), 3);
}

#[test]
fn no_more_is_decoded_than_all_images_may_have() {
    // 11 x 7 pixels each.
    let lines =
        line(&STANDARD.encode(file("rgb.png"))).repeat(2) + &line(&STANDARD.encode(file("damaged.png"))).repeat(9);
    let within =
        |pixels| parse_within(Limits { pixels: Some(pixels), ..LIMITS }, lines.clone(), &declaration(Format::Jsonl));
    let found = faults(within(2 * 77));
    assert_eq!(found, ["row 3, column `image`: the number of pixels of all images so far is over the limit of 154"]);
    assert_eq!(faults(within(11 * 77)).len(), 9);
}

#[test]
fn an_image_does_not_count_as_text_but_all_of_them_are_bounded() {
    let encoded = STANDARD.encode(file("rgb.jpg"));
    let tight = Limits { row_bytes: 60, ..LIMITS };
    parse_within(tight, line(&encoded), &declaration(Format::Jsonl)).unwrap();
    let group = format!("{{\"image\": \"{encoded}\", \"label\": \"{}\"}}", "x".repeat(61));
    let found = faults(parse_within(tight, group, &declaration(Format::Jsonl)));
    assert_eq!(found, ["row 1: the row's size in bytes is over the limit of 60"]);
    let few = Limits { decoded_bytes: 1500, ..LIMITS };
    let found = faults(parse_within(few, line(&encoded).repeat(3), &declaration(Format::Jsonl)));
    assert_eq!(found, ["the size of all columns in bytes is over the limit of 1500"]);
}

#[test]
fn the_image_column_has_no_second_meaning() {
    let twice = Declaration { groups: vec!["image".into()], ..declaration(Format::Jsonl) };
    assert_eq!(faults(parse("{}", &twice)), ["column `image`: cannot be the image and something else"]);
}

/// A folder of images with a listing below a root.
struct Images {
    root: tempfile::TempDir,
    folder: PathBuf,
}

const LISTING: &str = "sex,file,label,owner\nf,a.png,y,1\n,deep/b.jpg,x,2\nm,a.png,y,1\n";

impl Images {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("set/one");
        fs::create_dir_all(folder.join("deep")).unwrap();
        fs::write(folder.join("a.png"), file("rgb.png")).unwrap();
        fs::write(folder.join("deep/b.jpg"), file("grey.jpg")).unwrap();
        let images = Self { root, folder };
        images.list(LISTING);
        images
    }

    fn list(&self, text: &str) {
        fs::write(self.folder.join("list.csv"), text).unwrap();
    }

    fn open(&self, directory: &str, listing: &str) -> Result<Folder, DatasetError> {
        Folder::open(self.root.path(), directory, listing, &listed(), LIMITS)
    }

    #[track_caller]
    fn refused(&self, directory: &str, listing: &str) -> (&'static str, String) {
        match self.open(directory, listing) {
            Err(DatasetError::Folder { field, fault }) => {
                assert!(!fault.contains(self.root.path().to_str().unwrap()), "{fault}");
                (field, fault)
            }
            other => panic!("{directory} {listing}: {other:?}"),
        }
    }

    #[track_caller]
    fn faults_of(&self, names: &[&str]) -> Vec<String> {
        let lines: String = names.iter().map(|name| format!("f,{name},x,1\n")).collect();
        self.list(&format!("sex,file,label,owner\n{lines}"));
        faults(self.open("set/one", "list.csv").and_then(Folder::read))
    }
}

fn listed() -> Declaration {
    let grouping = Some("owner".to_owned());
    let split = SplitRule::Seeded { validation: 0.2, test: 0.3, seed: 5, grouping };
    let content = ContentColumns::Image("file".into());
    Declaration { content, groups: vec!["sex".into()], split, ..labelled(Format::Csv) }
}

#[test]
fn a_folder_is_the_rows_that_its_listing_names() {
    let images = Images::new();
    let folder = images.open("set/one", "list.csv").unwrap();
    let bytes = folder.bytes();
    let (lines, declared) = folder.read().unwrap();
    assert_eq!(lines.len() as u64, bytes);
    assert_eq!(declared, Declaration { format: Format::Jsonl, ..listed() });
    let dataset = parse(&lines, &declared).unwrap();
    assert_eq!(dataset.labels, ["x", "y"]);
    assert_eq!(dataset.rows[1].content, Content::Image(file("grey.jpg").into()));
    assert_eq!((dataset.rows[1].groups.clone(), dataset.rows[0].hash), (vec![None], dataset.rows[2].hash));

    // Rows that come one by one are the same file.
    let row = |label: &str, sex: Option<&str>, owner: &str| {
        let owner = Some(("owner".to_owned(), owner.to_owned()));
        let values = sex.map(|sex| ("sex".to_owned(), sex.to_owned())).into_iter().chain(owner).collect();
        ImageRow { labels: vec![label.into()], split: None, values }
    };
    let rows = [
        ("rgb.png", row("y", Some("f"), "1")),
        ("grey.jpg", row("x", None, "2")),
        ("rgb.png", row("y", Some("m"), "1")),
    ];
    let one_by_one: Vec<u8> = rows.iter().flat_map(|(name, row)| image_line(&declared, &file(name), row)).collect();
    assert_eq!(one_by_one, lines);
    assert!(String::from_utf8(lines).unwrap().contains("\",\"label\":\"x\",\"sex\":null,\"owner\":\"2\"}\n"));
    assert_eq!(row("y", Some("f"), "1").strange(&declared), None);
    let strange = ImageRow { values: [("label".to_owned(), "y".to_owned())].into(), ..Default::default() };
    assert_eq!(strange.strange(&declared), Some("label"));
}

#[test]
fn nothing_outside_of_the_folder_is_read() {
    let images = Images::new();
    for directory in ["", "/", "/etc", "..", "set/../..", "set/one/../../..", ".", "absent", "set/one/a.png"] {
        assert_eq!(images.refused(directory, "list.csv").0, "directory", "{directory}");
    }
    for listing in ["", "/etc/passwd", "../one/list.csv", "absent.csv", "deep"] {
        assert_eq!(images.refused("set/one", listing).0, "listing", "{listing}");
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret.png"), file("rgb.png")).unwrap();
    symlink(outside.path(), images.root.path().join("away")).unwrap();
    images.refused("away", "list.csv");
    symlink("one", images.root.path().join("set/alias")).unwrap();
    images.refused("set/alias", "list.csv");

    symlink(outside.path().join("secret.png"), images.folder.join("link.png")).unwrap();
    symlink(outside.path(), images.folder.join("linked")).unwrap();
    fs::hard_link(images.folder.join("deep/b.jpg"), images.folder.join("second.jpg")).unwrap();
    let names =
        ["link.png", "linked/secret.png", "../one/a.png", "/etc/passwd", "deep", "absent.png", "second.jpg", "a.png"];
    let found = images.faults_of(&names);
    assert_eq!(found.len(), names.len() - 1, "{found:#?}");
    for (number, text) in ["link", "", "below the folder", "below the folder", "regular", "cannot be read", "hard link"]
        .iter()
        .enumerate()
    {
        assert!(found[number].starts_with(&format!("row {}, column `file`: ", number + 1)), "{}", found[number]);
        assert!(found[number].contains(text), "{}", found[number]);
    }
}

#[test]
fn large_and_changing_files_are_refused() {
    let images = Images::new();
    // 1 TiB that takes no space: were it read, this test would not end.
    fs::File::create(images.folder.join("huge.png")).unwrap().set_len(1 << 40).unwrap();
    let found = images.faults_of(&["huge.png"]);
    assert!(found[0].contains("over the limit of 1000"), "{found:?}");
    fs::File::create(images.folder.join("huge.csv")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(images.refused("set/one", "huge.csv").0, "listing");
    images.list(LISTING);
    let folder = images.open("set/one", "list.csv").unwrap();
    fs::write(images.folder.join("a.png"), file("grey.png")).unwrap();
    let found = faults(folder.read());
    assert_eq!(found[0], "row 1, column `file`: changed while it was read");
}

#[test]
fn a_faulty_listing_is_told_by_row_and_column() {
    let images = Images::new();
    for (listing, expected) in [
        ("sex,file,label\nf,a.png,x\n", "column `owner`: there is no such column"),
        ("sex,file,label,owner\nf,a.png,,1\n", "row 1, column `label`: is missing"),
        ("sex,file,label,owner\nf,,x,1\n", "row 1, column `file`: is missing"),
        ("sex,file,label,owner\nf,a.png\n", "row 1: has 2 fields, the header has 4"),
        ("sex,file,label,owner\n", "there are no rows"),
    ] {
        images.list(listing);
        assert_eq!(faults(images.open("set/one", "list.csv")), [expected]);
    }
}
