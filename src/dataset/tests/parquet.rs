//! Parquet: types, lists, messages, compression, and files that lie about themselves.

use std::sync::Arc;

use ::parquet::basic::{Compression, Encoding, ZstdLevel};
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int32Type, Int64Type};
use ::parquet::file::properties::{WriterProperties, WriterVersion};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

use super::*;

/// Values of one leaf with their definition and repetition levels.
enum Leaf {
    Texts(Vec<&'static str>, Vec<i16>, Vec<i16>),
    Files(Vec<Vec<u8>>, Vec<i16>),
    Ints(Vec<i32>, Vec<i16>),
    Longs(Vec<i64>, Vec<i16>),
    Truths(Vec<bool>, Vec<i16>),
    Reals(Vec<f64>, Vec<i16>),
}

fn properties() -> ::parquet::file::properties::WriterPropertiesBuilder {
    WriterProperties::builder()
}

/// Writes one row group for each element of `groups`.
fn file(schema: &str, properties: WriterProperties, groups: &[Vec<Leaf>]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    for leaves in groups {
        let mut group = writer.next_row_group().unwrap();
        for leaf in leaves {
            let mut column = group.next_column().unwrap().unwrap();
            match leaf {
                Leaf::Texts(values, defs, reps) => {
                    let values: Vec<_> = values.iter().map(|text| ByteArray::from(*text)).collect();
                    let levels = |levels: &'_ Vec<i16>| (!levels.is_empty()).then(|| levels.clone());
                    let (defs, reps) = (levels(defs), levels(reps));
                    column.typed::<ByteArrayType>().write_batch(&values, defs.as_deref(), reps.as_deref()).map(drop)
                }
                Leaf::Files(values, defs) => {
                    let values: Vec<_> = values.iter().map(|file| ByteArray::from(file.clone())).collect();
                    column.typed::<ByteArrayType>().write_batch(&values, Some(defs), None).map(drop)
                }
                Leaf::Ints(values, defs) => column.typed::<Int32Type>().write_batch(values, Some(defs), None).map(drop),
                Leaf::Longs(values, defs) => {
                    column.typed::<Int64Type>().write_batch(values, Some(defs), None).map(drop)
                }
                Leaf::Truths(values, defs) => {
                    column.typed::<BoolType>().write_batch(values, Some(defs), None).map(drop)
                }
                Leaf::Reals(values, defs) => {
                    column.typed::<DoubleType>().write_batch(values, Some(defs), None).map(drop)
                }
            }
            .unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

const FLAT: &str = "message m {
    required binary text (STRING);
    optional int64 label;
    optional int32 a (INTEGER(32, false));
    optional boolean b;
    optional double c;
}";

fn flat(properties: WriterProperties) -> Vec<u8> {
    let group = |texts: [&'static str; 2]| {
        vec![
            Leaf::Texts(texts.to_vec(), vec![], vec![]),
            Leaf::Longs(vec![7, -7], vec![1, 1]),
            Leaf::Ints(vec![-1], vec![0, 1]),
            Leaf::Truths(vec![true], vec![1, 0]),
            Leaf::Reals(vec![0.5, f64::NAN], vec![1, 1]),
        ]
    };
    file(FLAT, properties, &[group(["one", "two"]), group(["three", "two"])])
}

fn flat_declaration() -> Declaration {
    Declaration { groups: vec!["a".into(), "b".into(), "c".into()], ..labelled(Format::Parquet) }
}

#[test]
fn columns_of_every_type_are_read_however_they_are_written() {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    let compressions = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::GZIP(Default::default()), zstd];
    for compression in compressions {
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for dictionary in [true, false] {
                let properties = properties().set_compression(compression).set_writer_version(version);
                let properties = properties.set_dictionary_enabled(dictionary).set_encoding(Encoding::PLAIN).build();
                let what = format!("{compression} {version:?} {dictionary}");
                let dataset = match parse(flat(properties), &flat_declaration()) {
                    Ok(dataset) => dataset,
                    Err(error) => panic!("{what}: {error}"),
                };
                assert_eq!(texts(&dataset), ["one", "two", "three", "two"], "{what}");
                assert_eq!(dataset.labels, ["-7", "7"], "{what}");
                assert_eq!(classes(&dataset), [["7"], ["-7"], ["7"], ["-7"]], "{what}");
                let text = |text: &str| Some(text.to_owned());
                assert_eq!(dataset.rows[2].groups, [None, text("true"), text("0.5")], "{what}");
                assert_eq!(dataset.rows[3].groups, [text("4294967295"), None, None], "{what}");
            }
        }
    }
}

const CHAT: &str = "message m {
    optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (STRING);
        optional binary content (STRING);
    } } }
    optional group tags (LIST) { repeated group list { optional binary element (STRING); } }
}";

fn chat(version: WriterVersion) -> Vec<u8> {
    // Two turns; one turn. Levels: list 1, element 2 (repeated), 3 (struct), 4 (value).
    let group = vec![
        Leaf::Texts(vec!["user", "assistant", "user"], vec![4, 4, 4], vec![0, 1, 0]),
        Leaf::Texts(vec!["hi", "ho", "alone"], vec![4, 4, 4], vec![0, 1, 0]),
        Leaf::Texts(vec!["x", "y"], vec![3, 3, 1], vec![0, 1, 0]),
    ];
    file(CHAT, properties().set_writer_version(version).build(), &[group])
}

fn chat_declaration() -> Declaration {
    let label = LabelColumn { column: "tags".into(), multi_label: true, names: Vec::new(), separator: String::new() };
    let content = ContentColumns::Messages("messages".into());
    Declaration { label: Some(label), ..Declaration::new(Format::Parquet, content) }
}

#[test]
fn messages_and_label_lists_are_read() {
    for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
        let properties = chat(version);
        let dataset = parse(properties, &chat_declaration());
        if version == WriterVersion::PARQUET_2_0 {
            // Its writer takes a DELTA encoding only where no dictionary is kept.
            dataset.as_ref().unwrap();
        }
        let dataset = dataset.unwrap();
        let message = |role: &str, content: &str| Message { role: role.into(), content: content.into() };
        let expected = Content::Messages(vec![message("user", "hi"), message("assistant", "ho")]);
        assert_eq!(dataset.rows[0].content, expected);
        assert_eq!(dataset.rows[1].content, Content::Messages(vec![message("user", "alone")]));
        // An empty list is a row of no class.
        assert_eq!(classes(&dataset), [vec!["x", "y"], vec![]]);
    }
    let null = vec![
        Leaf::Texts(vec!["user", "user"], vec![4, 4], vec![0, 0]),
        Leaf::Texts(vec!["a"], vec![3, 4], vec![0, 0]),
        Leaf::Texts(vec!["x"], vec![3, 0], vec![0, 0]),
    ];
    let found = faults(parse(file(CHAT, properties().build(), &[null]), &chat_declaration()));
    let expected =
        ["row 1, column `messages`: message 1: `content` must be a text", "row 2, column `tags`: is missing"];
    assert_eq!(found, expected);
}

#[test]
fn long_lists_cross_pages_and_batches() {
    let rows = 300;
    let (mut values, mut defs, mut reps) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..rows {
        for element in 0..row % 7 {
            values.push(["a", "b", "c", "d", "e", "f"][element]);
            defs.push(3);
            reps.push(i16::from(element > 0));
        }
        if row % 7 == 0 {
            defs.push(1);
            reps.push(0);
        }
    }
    let schema = "message m { required binary text (STRING);
        optional group tags (LIST) { repeated group list { optional binary element (STRING); } } }";
    let group = vec![Leaf::Texts(vec!["t"; rows], vec![], vec![]), Leaf::Texts(values, defs, reps)];
    let properties = properties().set_data_page_row_count_limit(10).set_write_batch_size(5).build();
    let mut declaration = chat_declaration();
    declaration.content = ContentColumns::Text("text".into());
    let dataset = parse(file(schema, properties, &[group]), &declaration).unwrap();
    let counts: Vec<_> = classes(&dataset).iter().map(Vec::len).collect();
    assert_eq!(counts, (0..rows).map(|row| row % 7).collect::<Vec<_>>());
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let declaration = flat_declaration();
    let faulty = |schema: &str, leaves: Vec<Leaf>| {
        let schema = format!("message m {{ required binary text (STRING); optional int64 label; {schema} }}");
        let mut group = vec![Leaf::Texts(vec!["t"], vec![], vec![]), Leaf::Longs(vec![1], vec![1])];
        group.extend(leaves);
        let groups = Declaration { groups: vec!["g".into()], ..declaration.clone() };
        faults(parse(file(&schema, properties().build(), &[group]), &groups))
    };
    let date = faulty("optional int32 g (DATE);", vec![Leaf::Ints(vec![1], vec![1])]);
    assert_eq!(date, ["column `g`: INT32 (DATE) cannot be read: write text, numbers or lists"]);
    let time = faulty("optional int64 g (TIMESTAMP(NANOS, true));", vec![Leaf::Longs(vec![1], vec![1])]);
    assert!(time[0].starts_with("column `g`: INT64"), "{time:?}");
    let group = faulty("optional group g { optional int32 x; }", vec![Leaf::Ints(vec![1], vec![2])]);
    assert_eq!(group, ["column `g`: a struct cannot be read: write text, numbers or lists"]);
    let none = faulty("optional int32 h;", vec![Leaf::Ints(vec![1], vec![1])]);
    assert_eq!(none, ["column `g`: there is no such column"]);

    let properties = properties().set_dictionary_enabled(false).set_encoding(Encoding::DELTA_LENGTH_BYTE_ARRAY).build();
    let schema = "message m { required binary text (STRING); }";
    let delta = file(schema, properties, &[vec![Leaf::Texts(vec!["a"], vec![], vec![])]]);
    let found = faults(parse(delta, &text(Format::Parquet)));
    assert!(found[0].contains("write it plain or with a dictionary"), "{found:?}");
}

#[test]
fn faults_name_rows_over_all_row_groups() {
    let schema = "message m { optional binary text (STRING); }";
    let group = || vec![Leaf::Texts(vec!["a"], vec![1, 0], vec![])];
    let bytes = file(schema, properties().build(), &[group(), group()]);
    let found = faults(parse(bytes, &text(Format::Parquet)));
    assert_eq!(found, ["row 2, column `text`: is missing", "row 4, column `text`: is missing"]);
    let bytes = file(schema, properties().build(), &[]);
    assert_eq!(faults(parse(bytes, &text(Format::Parquet))), ["there are no rows"]);
    assert_eq!(faults(parse("PAR1", &text(Format::Parquet))), ["is no Parquet file"]);
}

#[test]
fn a_dictionary_entry_repeated_without_end_is_stopped_by_the_limits() {
    let schema = "message m { required binary text (STRING); }";
    let long: &'static str = Box::leak("x".repeat(9000).into_boxed_str());
    let group = vec![Leaf::Texts(vec![long; 900], vec![], vec![])];
    let bytes = file(schema, properties().build(), &[group]);
    assert!(bytes.len() < 20_000, "{}", bytes.len());
    let found = faults(parse(&bytes, &text(Format::Parquet)));
    assert_eq!(found, ["the size of all columns in bytes is over the limit of 1000000"]);
    let small = Limits { row_bytes: 100, ..LIMITS };
    assert!(faults(parse_within(small, &bytes, &text(Format::Parquet)))[0].starts_with("row 1: the row's size"));
    let few = Limits { decoded_bytes: 5000, ..LIMITS };
    let found = faults(parse_within(few, &bytes, &text(Format::Parquet)));
    assert!(found[0].contains("larger than allowed"), "{found:?}");
    let rows = Limits { rows: 10, ..LIMITS };
    let found = faults(parse_within(rows, &bytes, &text(Format::Parquet)));
    assert!(found[0].contains("more values than allowed"), "{found:?}");
}

#[test]
fn images_are_binary_or_in_a_struct_as_hugging_face_writes_them() {
    let good = super::images::file("rgb.png");
    let declared = super::images::declaration(Format::Parquet);
    let labels = || Leaf::Longs(vec![0, 1, 0], vec![1, 1, 1]);
    let plain = "message m { optional binary image; optional int64 label; }";
    let files = vec![good.clone(), b"what?".to_vec()];
    let bytes = file(plain, properties().build(), &[vec![Leaf::Files(files, vec![1, 0, 1]), labels()]]);
    let expected = ["row 2, column `image`: is missing", "row 3, column `image`: is no JPEG, PNG or WebP image"];
    assert_eq!(faults(parse(bytes, &declared)), expected);

    let nested = "message m {
        optional group image { optional binary bytes; optional binary path (STRING); }
        optional int64 label;
    }";
    let of = |defs: Vec<i16>, count: usize| {
        let files = Leaf::Files(vec![good.clone(); count], defs);
        let paths = Leaf::Texts(vec!["a.png"; 3], vec![2, 2, 2], vec![]);
        file(nested, properties().build(), &[vec![files, paths, labels()]])
    };
    let dataset = parse(of(vec![2, 2, 2], 3), &declared).unwrap();
    assert!(dataset.rows.iter().all(|row| row.content == Content::Image(good.clone().into())));
    // A path without bytes points to a file that nobody has.
    assert_eq!(faults(parse(of(vec![2, 1, 2], 2), &declared)), ["row 2, column `image`: is missing"]);
    let number = "message m { optional int64 image; optional int64 label; }";
    let bytes = file(number, properties().build(), &[vec![labels(), labels()]]);
    assert!(faults(parse(bytes, &declared))[0].starts_with("column `image`: an image must be"));
}

#[test]
fn every_changed_byte_is_refused_or_read() {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
        let good = flat(properties().set_compression(compression).build());
        for at in 0..good.len() {
            for value in [0x00, 0xff, good[at] ^ 0x10] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = parse(bad, &flat_declaration());
            }
        }
        for end in 0..good.len() {
            assert!(parse(&good[..end], &flat_declaration()).is_err(), "cut to {end}");
        }
    }
    let good = chat(WriterVersion::PARQUET_1_0);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        let _ = parse(bad, &chat_declaration());
    }
}

proptest::proptest! {
    #[test]
    fn changed_files_do_not_panic(changes in proptest::collection::vec((0..4000_usize, 0..=255_u8), 1..6)) {
        let good = flat(properties().set_compression(Compression::SNAPPY).build());
        let mut bad = good.clone();
        for (at, value) in changes {
            let at = at % bad.len();
            bad[at] = value;
        }
        let _ = parse(bad, &flat_declaration());
        let mut framed = b"PAR1".to_vec();
        framed.extend(&good[4..good.len() / 2]);
        framed.extend((good.len() as u32 / 4).to_le_bytes());
        framed.extend(b"PAR1");
        let _ = parse(framed, &flat_declaration());
    }
}

#[test]
fn files_of_other_writers_are_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables");
    let label = LabelColumn { column: "tags".into(), multi_label: true, names: Vec::new(), separator: String::new() };
    let groups = ["age", "share", "north", "port"].map(str::to_owned).to_vec();
    let declaration = Declaration { label: Some(label), groups, ..labelled(Format::Parquet) };
    for name in ["pyarrow", "pyarrow_v2", "polars"] {
        let file = std::fs::read(folder.join(name).with_extension("parquet")).unwrap();
        let dataset = parse(file, &declaration).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(texts(&dataset), ["a keel", "a mast, «bent»", "a keel"], "{name}");
        assert_eq!(classes(&dataset), [vec!["long", "wood"], vec![], vec!["wood"]], "{name}");
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(dataset.rows[0].groups, [text("31"), text("0.25"), text("true"), text("Oslo")], "{name}");
        assert_eq!(dataset.rows[1].groups, [None, text("1e+300"), None, None], "{name}");
        assert_eq!(dataset.rows[2].groups, [text("-4"), None, text("false"), text("Oslo")], "{name}");
    }
}
