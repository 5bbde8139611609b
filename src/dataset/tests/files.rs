//! JSONL and CSV: rows, labels, groups, parts, and faults by row and column.

use super::*;

#[test]
fn jsonl_has_every_kind_of_row() {
    let lines = "\u{feff}{\"text\": \"a\", \"extra\": [1, {}]}\r\n{\"text\": \"b\\u00e9\"}\n\n";
    assert_eq!(texts(&parse(lines, &text(Format::Jsonl)).unwrap()), ["a", "bé"]);

    let content = ContentColumns::Completion { prompt: "p".into(), completion: "c".into() };
    let pair = parse(r#"{"c": "to learn", "p": ""}"#, &Declaration::new(Format::Jsonl, content)).unwrap();
    let expected = Content::Completion { prompt: String::new(), completion: "to learn".into() };
    assert_eq!(pair.rows[0].content, expected);

    let chat = Declaration::new(Format::Jsonl, ContentColumns::Messages("m".into()));
    let turns = r#"[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "name": null}]"#;
    let quoted = serde_json::to_string(turns).unwrap();
    let dataset = parse(format!("{{\"m\": {turns}}}\n{{\"m\": {quoted}}}"), &chat).unwrap();
    assert_eq!(dataset.rows[0].content, dataset.rows[1].content);
    let Content::Messages(messages) = &dataset.rows[0].content else { panic!("no messages") };
    assert_eq!((messages.len(), messages[1].role.as_str()), (2, "assistant"));
}

#[test]
fn labels_are_texts_numbers_and_truth_values() {
    let of = |values: &[&str]| {
        let lines: Vec<_> = values.iter().map(|v| format!("{{\"text\": \"t\", \"label\": {v}}}")).collect();
        parse(lines.join("\n"), &labelled(Format::Jsonl)).unwrap()
    };
    // Whole numbers are in the order of numbers, all else in that of texts.
    let numbers = of(&["10", "2", "\"-1\"", "2"]);
    assert_eq!(numbers.labels, ["-1", "2", "10"]);
    assert_eq!(classes(&numbers), [["10"], ["2"], ["-1"], ["2"]]);
    assert_eq!(numbers.rows[0].label, Some(Label::Class(2)));
    assert_eq!(of(&["\"b\"", "\"a\"", "10", "2"]).labels, ["10", "2", "a", "b"]);
    assert_eq!(of(&["true", "false"]).labels, ["false", "true"]);

    let mut declared = labelled(Format::Jsonl);
    declared.label.as_mut().unwrap().names = vec!["neg".into(), "pos".into(), "other".into()];
    let dataset = parse("{\"text\": \"t\", \"label\": \"pos\"}", &declared).unwrap();
    assert_eq!((dataset.labels.len(), &dataset.rows[0].label), (3, &Some(Label::Class(1))));
    let strange = parse("{\"text\": \"t\", \"label\": \"POS\"}", &declared);
    assert_eq!(faults(strange), ["row 1, column `label`: `POS` is none of the declared labels"]);
}

#[test]
fn rows_may_have_several_labels() {
    let mut several = labelled(Format::Jsonl);
    several.label.as_mut().unwrap().multi_label = true;
    let dataset = parse("{\"text\":\"a\",\"label\":[\"y\",\"x\"]}\n{\"text\":\"b\",\"label\":[]}", &several).unwrap();
    assert!(dataset.multi_label);
    assert_eq!(dataset.rows[0].label, Some(Label::Classes(vec![0, 1])));
    assert_eq!(dataset.rows[1].label, Some(Label::Classes(vec![])));
    let wrong = "{\"text\":\"a\",\"label\":\"x\"}\n{\"text\":\"a\",\"label\":[\"x\",\"x\"]}\n{\"text\":\"a\"}";
    assert_eq!(
        faults(parse(wrong, &several)),
        [
            "row 1, column `label`: must be a list of labels, not a text",
            "row 2, column `label`: names a label twice",
            "row 3, column `label`: is missing",
        ]
    );

    several.format = Format::Csv;
    assert!(faults(parse("text,label\na,b\n", &several))[0].contains("need a separator"));
    several.label.as_mut().unwrap().separator = "|".into();
    let dataset = parse("text,label\na,y | x\nb,x\n", &several).unwrap();
    assert_eq!(classes(&dataset), [vec!["x", "y"], vec!["x"]]);
}

#[test]
fn group_values_are_texts_or_missing() {
    let mut groups = text(Format::Jsonl);
    groups.groups = vec!["g".into(), "h".into()];
    let lines =
        "{\"text\":\"a\",\"g\":1,\"h\":true}\n{\"text\":\"b\",\"g\":1.5,\"h\":\"\"}\n{\"text\":\"c\",\"g\":null}";
    let dataset = parse(lines, &groups).unwrap();
    let value = |text: &str| Some(text.to_owned());
    let found: Vec<_> = dataset.rows.iter().map(|row| row.groups.clone()).collect();
    assert_eq!(found, [vec![value("1"), value("true")], vec![value("1.5"), None], vec![None, None]]);
    // Groups change neither hash nor identity of a row.
    let plain = parse("{\"text\":\"a\"}", &text(Format::Jsonl)).unwrap();
    assert_eq!(plain.rows[0].hash, dataset.rows[0].hash);
    let list = parse("{\"text\":\"a\",\"g\":[1],\"h\":1}", &groups);
    assert_eq!(faults(list), ["row 1, column `g`: must be a text, a number or a truth value, not a list"]);
    let long = parse(format!("{{\"text\":\"a\",\"g\":\"{}\",\"h\":1}}", "x".repeat(257)), &groups);
    assert!(faults(long)[0].contains("over the limit of 256"));
}

#[test]
fn csv_is_read_with_quotes_and_delimiters() {
    let mut declaration = labelled(Format::Csv);
    declaration.groups = vec!["g".into()];
    let file = "\u{feff}g,label,text,other\r\n,pos,\"a, \"\"b\"\"\nc\",x\r\nw,neg,d,\r\n";
    let dataset = parse(file, &declaration).unwrap();
    assert_eq!(texts(&dataset), ["a, \"b\"\nc", "d"]);
    assert_eq!(classes(&dataset), [["pos"], ["neg"]]);
    assert_eq!(dataset.rows[0].groups, [None]);
    assert_eq!(dataset.rows[1].groups, [Some("w".to_owned())]);
    declaration.csv_delimiter = '\t';
    assert_eq!(texts(&parse("g\tlabel\ttext\nw\tx\ta,b\n", &declaration).unwrap()), ["a,b"]);
}

#[test]
fn faults_of_jsonl_name_row_and_column() {
    let rows = [
        r#"{"text": "fine", "label": "x"}"#,
        r#"{"text": "no label"}"#,
        r#"{"text": 3, "label": 1.5}"#,
        r#"{"text": "cut"#,
        r#"["text"]"#,
        r#"{"text": "a", "text": "b", "label": 1}"#,
        r#"{"text": "a", "label": 1} {}"#,
        "",
    ];
    let found = faults(parse(rows.join("\n") + "\n{}", &labelled(Format::Jsonl)));
    assert_eq!(
        found,
        [
            "row 2, column `label`: is missing",
            "row 3, column `label`: must be a text, a whole number or a truth value, not a number with a fraction",
            "row 3, column `text`: must be a text, not a number",
            "row 4: is no JSON at byte 13: EOF while parsing a string",
            "row 5: invalid type: sequence, expected an object",
            "row 6, column `text`: is there twice",
            "row 7: is no JSON at byte 27: trailing characters",
            "row 8: is no JSON at byte 0: EOF while parsing a value",
            "row 9, column `label`: is missing",
            "row 9, column `text`: is missing",
        ]
    );
    let mut bytes = b"{\"text\": \"a\"}\n{\"text\": \"".to_vec();
    bytes.extend(b"\xff\"}");
    assert_eq!(faults(parse(bytes, &text(Format::Jsonl))), ["row 2: is not UTF-8"]);
    assert_eq!(faults(parse("", &text(Format::Jsonl))), ["there are no rows"]);
    assert_eq!(faults(parse(" \n\n", &text(Format::Jsonl))), ["there are no rows"]);
    let found = faults(parse(format!("\"{}\"", "x".repeat(5000)), &text(Format::Jsonl)));
    assert!(found[0].len() < 200, "{found:?}");
    let deep = format!("{{\"other\": {}", "[".repeat(5000));
    let found = faults(parse(deep, &text(Format::Jsonl)));
    assert!(found[0].starts_with("row 1: is no JSON"), "{found:?}");
}

#[test]
fn a_column_that_no_row_has_is_told_once() {
    let lines = "{\"text\": \"a\"}\n".repeat(100);
    let mut declaration = labelled(Format::Jsonl);
    declaration.groups = vec!["group".into()];
    let mut found = faults(parse(lines, &declaration));
    found.sort();
    assert_eq!(found, ["column `group`: there is no such column", "column `label`: there is no such column"]);
}

#[test]
fn faults_of_csv_name_row_and_column() {
    let declaration = labelled(Format::Csv);
    let found = faults(parse("text,label\na,x\nb\nc,x,y\n,x\nd,\n", &declaration));
    assert_eq!(
        found,
        [
            "row 2: has 1 fields, the header has 2",
            "row 3: has 3 fields, the header has 2",
            "row 4, column `text`: is missing",
            "row 5, column `label`: is missing",
        ]
    );
    assert_eq!(faults(parse("text,label,text\na,b,c\n", &declaration)), ["column `text`: is there twice"]);
    let unknown = faults(parse("txt,labels\na,b\n", &declaration));
    assert_eq!(unknown, ["column `text`: there is no such column", "column `label`: there is no such column"]);
    assert_eq!(faults(parse(b"text,label\na,\xff\n", &declaration)), ["row 1, column `label`: is not UTF-8"]);
    for empty in ["", "text,label\n"] {
        assert_eq!(faults(parse(empty, &declaration)), ["there are no rows"], "{empty:?}");
    }
}

#[test]
fn messages_are_checked() {
    let chat = Declaration::new(Format::Jsonl, ContentColumns::Messages("m".into()));
    for (value, fault) in [
        ("[]", "is missing"),
        ("null", "is missing"),
        ("3", "must be a list of messages, not a number"),
        ("[3]", "message 1: must be an object"),
        (r#"[{"role": "user", "content": "a"}, {"content": "a"}]"#, "message 2: `role` must be a text"),
        (r#"[{"role": "user", "content": null}]"#, "message 1: `content` must be a text"),
        (r#"[{"role": "user", "content": "a", "tool_calls": []}]"#, "message 1: `tool_calls` is not understood"),
        (r#""[{""#, "is no JSON: EOF while parsing an object at line 1 column 2"),
    ] {
        assert_eq!(faults(parse(format!("{{\"m\": {value}}}"), &chat)), [format!("row 1, column `m`: {fault}")]);
    }
}

#[test]
fn limits_hold() {
    let lines = |count: usize| "{\"text\": \"a\"}\n".repeat(count);
    assert_eq!(parse(lines(1000), &text(Format::Jsonl)).unwrap().rows.len(), 1000);
    let many = faults(parse(lines(1001), &text(Format::Jsonl)));
    assert_eq!(many, ["the number of rows is over the limit of 1000"]);
    let long = format!("{{\"text\": \"{}\"}}", "x".repeat(10_000));
    let limit = "the row's size in bytes is over the limit of 10000";
    assert_eq!(faults(parse(&long, &text(Format::Jsonl))), [format!("row 1: {limit}")]);
    let long = format!("text\n\"{}\"\n", "x".repeat(10_001));
    assert_eq!(faults(parse(&long, &text(Format::Csv))), [format!("row 1: {limit}")]);
    let small = Limits { decoded_bytes: 10, ..LIMITS };
    let all = faults(parse_within(small, "text\nabcdef\nghijkl\n", &text(Format::Csv)));
    assert_eq!(all, ["the size of all columns in bytes is over the limit of 10"]);
    let labels: String = (0..1001).map(|i| format!("t,{i}\n")).collect();
    let wide = Limits { rows: 5000, ..LIMITS };
    let many = faults(parse_within(wide, format!("text,label\n{labels}"), &labelled(Format::Csv)));
    assert_eq!(many, ["column `label`: the number of labels is over the limit of 1000"]);
    let faulty = "x\n".repeat(500);
    let error = parse(faulty, &text(Format::Jsonl)).unwrap_err();
    let DatasetError::Invalid(list) = &error else { panic!("{error}") };
    assert_eq!(list.len(), MOST_FAULTS);
    assert!(error.to_string().contains("and 17 more"), "{error}");
}

#[test]
fn declarations_are_checked_at_once() {
    let mut declaration = labelled(Format::Csv);
    declaration.groups = vec!["g".into(), "g".into(), String::new()];
    declaration.csv_delimiter = '"';
    declaration.label.as_mut().unwrap().names = vec!["a".into(), "a".into()];
    declaration.split = SplitRule::Seeded { validation: 0.8, test: 0.3, seed: 1, grouping: None };
    assert_eq!(faults(parse("text,label\n", &declaration)).len(), 5);
    for (validation, test) in [(f64::NAN, 0.0), (-0.1, 0.0), (0.0, f64::INFINITY)] {
        declaration = text(Format::Csv);
        declaration.split = SplitRule::Seeded { validation, test, seed: 1, grouping: None };
        assert_eq!(faults(parse("text\na\n", &declaration)).len(), 1);
    }
}

#[test]
fn parts_are_declared_or_drawn() {
    let mut declaration = text(Format::Csv);
    declaration.split = SplitRule::Column("part".into());
    let dataset = parse("text,part\na,train\nb,validation\nc,test\n", &declaration).unwrap();
    assert_eq!(dataset.rows.iter().map(|row| row.split).collect::<Vec<_>>(), Split::ALL);
    let wrong = faults(parse("text,part\na,dev\nb,\n", &declaration));
    let expected = "row 1, column `part`: must be train, validation or test, not `dev`";
    assert_eq!(wrong, [expected, "row 2, column `part`: is missing"]);

    let rows: Vec<_> = (0..400).map(|i| format!("text {i},person {}\n", i % 40)).collect();
    let drawn = |rows: &[String], grouping: Option<&str>, seed| {
        let mut declaration = text(Format::Csv);
        let grouping = grouping.map(str::to_owned);
        declaration.split = SplitRule::Seeded { validation: 0.25, test: 0.25, seed, grouping };
        let dataset = parse(format!("text,who\n{}", rows.concat()), &declaration).unwrap();
        dataset.rows.into_iter().map(|row| (row.hash, row.split)).collect::<std::collections::BTreeMap<_, _>>()
    };
    let reversed: Vec<_> = rows.iter().rev().cloned().collect();
    for grouping in [None, Some("who")] {
        assert_eq!(drawn(&rows, grouping, 3), drawn(&reversed, grouping, 3));
        assert_ne!(drawn(&rows, grouping, 3), drawn(&rows, grouping, 4));
        // A row stays where it is whatever the others are.
        let half = drawn(&rows[..200], grouping, 3);
        let all = drawn(&rows, grouping, 3);
        assert!(half.iter().all(|(hash, split)| all[hash] == *split));
        for split in Split::ALL {
            assert!(all.values().any(|part| *part == split));
        }
    }
    let mut declaration = text(Format::Csv);
    let grouping = Some("who".to_owned());
    declaration.groups = vec!["who".into()];
    declaration.split = SplitRule::Seeded { validation: 0.25, test: 0.25, seed: 3, grouping };
    let dataset = parse(format!("text,who\n{}", rows.concat()), &declaration).unwrap();
    let mut parts = std::collections::BTreeMap::new();
    for row in &dataset.rows {
        assert_eq!(*parts.entry(row.groups[0].clone()).or_insert(row.split), row.split);
    }
}

#[test]
fn the_id_covers_the_bytes_and_what_was_declared() {
    let base = parse("text,g\na,1\n", &text(Format::Csv)).unwrap().id;
    assert_eq!(parse("text,g\na,1\n", &text(Format::Csv)).unwrap().id, base);
    assert_ne!(parse("text,g\nb,1\n", &text(Format::Csv)).unwrap().id, base);
    let mut groups = text(Format::Csv);
    groups.groups = vec!["g".into()];
    assert_ne!(parse("text,g\na,1\n", &groups).unwrap().id, base);
}

#[test]
fn the_summary_counts_and_warns() {
    let mut declaration = labelled(Format::Csv);
    declaration.groups = vec!["g".into()];
    declaration.split = SplitRule::Column("part".into());
    let mut file = "text,label,g,part\na,x,,train\na,x,v,test\n".to_owned();
    file.extend((0..150).map(|i| format!("t{i},x,g{:03},train\n", i % 120)));
    let summary = Summary::of(&parse(file, &declaration).unwrap());
    assert_eq!(summary.parts.iter().map(|part| part.rows).collect::<Vec<_>>(), [151, 0, 1]);
    assert_eq!(summary.rows(), 152);
    assert_eq!(summary.labels, [("x".to_owned(), 152)]);
    let group = &summary.groups[0];
    assert_eq!((group.values.len(), group.other_values, group.other_rows, group.missing_rows), (100, 21, 21, 1));
    assert_eq!(group.values[0], ("g000".to_owned(), 2));
    assert_eq!(
        summary.warnings,
        [
            Warning::DuplicateRows(1),
            Warning::SplitOverlap(1),
            Warning::SingleLabel("x".into()),
            Warning::MissingGroupValues { column: "g".into(), rows: 1 },
        ]
    );
}

#[test]
fn formats_are_guessed() {
    assert_eq!(Format::detect(b"PAR1..."), Format::Parquet);
    assert_eq!(Format::detect(b"\xef\xbb\xbf \n{\"a\": 1}"), Format::Jsonl);
    assert_eq!(Format::detect(b"a,b\n"), Format::Csv);
}

proptest::proptest! {
    #[test]
    fn no_reader_panics(bytes: Vec<u8>, format in 0..3_usize) {
        let format = [Format::Jsonl, Format::Csv, Format::Parquet][format];
        let _ = parse(&bytes, &labelled(format));
    }

    #[test]
    fn nearly_right_text_does_not_panic(text in "[{}\\[\\]\",:a-z0-9\\\\ \n\r;é]{0,200}") {
        let chat = Declaration::new(Format::Jsonl, ContentColumns::Messages("a".into()));
        let _ = parse(&text, &chat);
        for format in [Format::Jsonl, Format::Csv] {
            let mut declaration = labelled(format);
            declaration.content = ContentColumns::Text("a".into());
            declaration.label.as_mut().unwrap().column = "b".into();
            let _ = parse(format!("a,b\n{text}"), &declaration);
            let _ = parse(format!("{{\"a\": {text}, \"b\": {text}}}"), &declaration);
        }
    }

    #[test]
    fn every_text_comes_back(texts in proptest::collection::vec("\\PC{1,30}", 1..20)) {
        let lines: Vec<_> = texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
        let from_json = parse(lines.join("\n"), &text(Format::Jsonl)).unwrap();
        let mut writer = ::csv::Writer::from_writer(Vec::new());
        writer.write_record(["text"]).unwrap();
        texts.iter().for_each(|text| writer.write_record([text]).unwrap());
        let from_csv = parse(writer.into_inner().unwrap(), &text(Format::Csv)).unwrap();
        proptest::prop_assert_eq!(&super::texts(&from_json), &texts);
        proptest::prop_assert_eq!(from_json.rows, from_csv.rows);
    }
}
