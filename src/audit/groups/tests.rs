//! Groups of small tables: what belongs where, what is counted, what is refused.

use super::*;
use crate::audit::scoring::tests::settings;

type Cells = Vec<Vec<Option<String>>>;

/// Rows of cells; `-` is missing.
fn cells(rows: &[&[&str]]) -> Cells {
    let cell = |cell: &&str| (*cell != "-").then(|| (*cell).to_owned());
    rows.iter().map(|row| row.iter().map(cell).collect()).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn grouped(columns: &[&str], rows: &Cells, settings: &Settings) -> Result<Grouping, AuditError> {
    let (names, numbers) = (names(columns), (1..=rows.len()).map(|n| n * 10).collect());
    let columns = Columns { names: &names, cells: rows.iter().map(Vec::as_slice).collect(), numbers };
    Grouping::new(&columns, settings)
}

fn values(name: &str, column: &str) -> Attribute {
    Attribute { name: name.to_owned(), source: Source::Values(column.to_owned()) }
}

fn of(attribute: &AttributeRows) -> Vec<(Option<&str>, &[u32])> {
    attribute.groups.iter().map(|group| (group.value.as_deref(), group.rows.as_slice())).collect()
}

#[test]
fn a_missing_value_is_a_group_of_its_own_and_comes_last() {
    let rows = cells(&[&["b"], &["-"], &["a"], &["b"]]);
    let settings = Settings { attributes: vec![values("sex", "s")], ..settings() };
    let found = grouped(&["s"], &rows, &settings).unwrap();
    assert_eq!(of(&found.attributes[0]), [(Some("a"), &[2][..]), (Some("b"), &[0, 3]), (None, &[1])]);
    assert_eq!(found.groups.iter().map(|group| group.rows).collect::<Vec<_>>(), [1, 2, 1]);
    assert_eq!((found.weight, found.clusters_total, found.weights, found.clusters), (4.0, 4, None, None));
}

#[test]
fn lists_and_flags_overlap() {
    let rows = cells(&[&["x; y", "1", "no"], &["y;y", "TRUE", "Yes"], &["-", "0", "-"], &[";", "", "0"]]);
    let list = Source::List { column: "l".to_owned(), separator: ";".to_owned() };
    let attributes = vec![
        Attribute { name: "topic".to_owned(), source: list },
        Attribute { name: "target".to_owned(), source: Source::Flags(names(&["f", "g"])) },
    ];
    let found = grouped(&["l", "f", "g"], &rows, &Settings { attributes, ..settings() }).unwrap();
    assert_eq!(of(&found.attributes[0]), [(Some("x"), &[0][..]), (Some("y"), &[0, 1]), (None, &[2, 3])]);
    assert_eq!(of(&found.attributes[1]), [(Some("f"), &[0, 1][..]), (Some("g"), &[1])]);
}

#[test]
fn a_combination_is_the_full_product() {
    let rows = cells(&[&["a", "x"], &["b", "-"], &["a", "x"]]);
    let attributes = vec![values("one", "p"), values("two", "q")];
    let intersections = vec![names(&["one", "two"])];
    let found = grouped(&["p", "q"], &rows, &Settings { attributes, intersections, ..settings() }).unwrap();
    let combined = &found.attributes[2];
    assert!(combined.combination && combined.name == "one × two");
    let expected = [
        (Some("a × x"), &[0, 2][..]),
        (Some("a × (missing)"), &[]),
        (Some("b × x"), &[]),
        (Some("b × (missing)"), &[1]),
    ];
    assert_eq!(of(combined), expected);
    assert_eq!(found.groups.len(), 2 + 2 + 4);
}

#[test]
fn weights_clusters_and_suppression_are_counted_by_group() {
    let rows = cells(&[&["a", "0.5", "k"], &["a", "2", "k"], &["b", "0", "-"], &["a", "1e0", "-"]]);
    let mut settings = Settings {
        attributes: vec![values("sex", "s")],
        controls: names(&["s"]),
        weight_column: Some("w".to_owned()),
        cluster_column: Some("c".to_owned()),
        ..settings()
    };
    settings.statistics.suppress_below = 2;
    let found = grouped(&["s", "w", "c"], &rows, &settings).unwrap();
    assert_eq!(found.weights.as_deref(), Some(&[0.5, 2.0, 0.0, 1.0][..]));
    assert_eq!(found.clusters.as_deref(), Some(&[0, 0, 1, 2][..]));
    let told: Vec<_> = found.groups.iter().map(|g| (g.rows, g.weight, g.clusters, g.suppressed)).collect();
    assert_eq!(told, [(3, 3.5, 2, false), (1, 0.0, 1, true)]);
    assert_eq!((found.weight, found.clusters_total), (3.5, 3));
    assert_eq!(of(&found.controls[0]), of(&found.attributes[0]));
}

#[test]
fn every_faulty_setting_is_named() {
    let rows = cells(&[&["a", "x"], &["b", "y"]]);
    let plain = || Settings { attributes: vec![values("one", "p"), values("two", "q")], ..settings() };
    let flags = |columns: &[&str]| Attribute { name: "f".to_owned(), source: Source::Flags(names(columns)) };
    let list = Source::List { column: "p".to_owned(), separator: String::new() };
    let faulty = [
        ("attributes", Settings { attributes: vec![], ..plain() }),
        ("attributes", Settings { attributes: vec![values("one", "none")], ..plain() }),
        ("attributes", Settings { attributes: vec![values("one", "p"), values("one", "q")], ..plain() }),
        ("attributes", Settings { attributes: vec![flags(&[])], ..plain() }),
        ("attributes", Settings { attributes: vec![flags(&["p", "p"])], ..plain() }),
        ("attributes", Settings { attributes: vec![Attribute { name: "l".to_owned(), source: list }], ..plain() }),
        ("intersections", Settings { intersections: vec![names(&["one"])], ..plain() }),
        ("intersections", Settings { intersections: vec![names(&["one", "one"])], ..plain() }),
        ("intersections", Settings { intersections: vec![names(&["one", "three"])], ..plain() }),
        ("intersections", Settings { intersections: vec![names(&["one", "two"]), names(&["one", "two"])], ..plain() }),
        ("controls", Settings { controls: names(&["none"]), ..plain() }),
        ("controls", Settings { controls: names(&["p", "p"]), ..plain() }),
        ("weight_column", Settings { weight_column: Some("none".to_owned()), ..plain() }),
        ("cluster_column", Settings { cluster_column: Some("none".to_owned()), ..plain() }),
    ];
    for (field, settings) in faulty {
        let error = grouped(&["p", "q"], &rows, &settings).unwrap_err();
        assert!(matches!(error, AuditError::Setting { field: of, .. } if of == field), "{field}: {error}");
    }
}

#[test]
fn an_identifier_is_no_group() {
    let rows: Cells = (0..=MAX_GROUPS).map(|i| vec![Some(i.to_string())]).collect();
    let settings = Settings { attributes: vec![values("id", "p")], ..settings() };
    let error = grouped(&["p"], &rows, &settings).unwrap_err();
    assert!(error.to_string().contains("identifier"), "{error}");
    grouped(&["p"], &rows[1..].to_vec(), &settings).unwrap();
}

#[test]
fn a_faulty_cell_is_named_by_row_and_column() {
    let settings = || Settings { attributes: vec![values("a", "p")], ..settings() };
    let weighted = Settings { weight_column: Some("w".to_owned()), ..settings() };
    for weight in ["-", "", "x", "-1", "nan", "inf"] {
        let rows = cells(&[&["a", "1"], &["a", weight]]);
        let error = grouped(&["p", "w"], &rows, &weighted).unwrap_err();
        let AuditError::Row { row: 20, column: Some(column), .. } = &error else { panic!("{weight}: {error}") };
        assert_eq!(column, "w");
    }
    let error = grouped(&["p", "w"], &cells(&[&["a", "0"], &["a", "0"]]), &weighted).unwrap_err();
    assert!(matches!(error, AuditError::Setting { field: "weight_column", .. }), "{error}");
    let attributes = vec![Attribute { name: "f".to_owned(), source: Source::Flags(names(&["w"])) }];
    let flags = Settings { attributes, ..settings() };
    let error = grouped(&["p", "w"], &cells(&[&["a", "1"], &["a", "2"]]), &flags).unwrap_err();
    assert_eq!(error.to_string(), "row 20, column `w`: `2` is no flag: 1, true, yes, 0, false and no are");
}
