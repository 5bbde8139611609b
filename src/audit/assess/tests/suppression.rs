//! What is held back with small groups, so that nobody tells them from what is published.

use super::*;
use crate::audit::report::Status;

/// 80 rows in a table of two by two, of which the first cell has 2; the last 3 rows are a stratum of their own.
fn crossed() -> Table {
    let n = 80;
    let a: Vec<usize> = (0..n).map(|row| row / 40).collect();
    let b: Vec<usize> = (0..n).map(|row| if row < 40 { usize::from(row > 1) } else { row % 2 }).collect();
    let names = |values: &[usize]| values.iter().map(|v| Some(["0", "1", "2", "3"][*v])).collect::<Vec<_>>();
    let cells: Vec<usize> = a.iter().zip(&b).map(|(a, b)| 2 * a + b).collect();
    let rows = Rows {
        labels: (0..n).map(|row| row % 3 == 0).collect(),
        scores: vec![(0..n).map(|row| (row * 7 % 11) as f64 / 11.0).collect()],
        groups: names(&a).into_iter().collect(),
        controls: (0..n)
            .map(|row| {
                if row >= n - 3 {
                    "x"
                } else if row % 2 == 0 {
                    "y"
                } else {
                    "z"
                }
            })
            .collect(),
        ..Rows::default()
    };
    let mut table = rows.table();
    let crossed = AttributeRows { combination: true, ..attribute("g × h", &names(&cells)) };
    table.attributes.extend([attribute("h", &names(&b)), crossed]);
    table
}

#[test]
fn a_small_cell_of_a_combination_is_not_told_by_its_margins() {
    let mut settings = of(&["accuracy", "selection_rate"]);
    settings.statistics.suppress_below = 5;
    let table = Table { controls: Vec::new(), ..crossed() };
    let found = report(&settings, &table);
    let held: Vec<bool> = found.groups.iter().map(|group| group.suppressed).collect();
    // The first cell has 2 rows; its row and column would tell it, and each of those that hide it again.
    assert_eq!(held, [false, false, false, false, true, true, true, true]);
    let hidden = |f: &&Figure| f.attribute.as_deref() == Some("g × h") && !matches!(f.scope, Scope::Attribute);
    for figure in found.figures.iter().filter(hidden).filter(|f| f.group_scoped()) {
        assert_eq!((figure.status, figure.value, figure.n), (Status::Suppressed, None, 0), "{figure:?}");
    }
    let shown = |f: &&Figure| f.attribute.as_deref() == Some("g") && f.group_scoped();
    assert!(found.figures.iter().filter(shown).all(|figure| figure.value.is_some()));
    assert!(found.warnings.iter().any(|warning| warning.kind == "small_groups"));
}

#[test]
fn small_strata_and_groups_within_strata_are_held_back() {
    let mut settings = of(&["accuracy"]);
    settings.statistics.suppress_below = 5;
    let mut table = crossed();
    table.attributes.truncate(1);
    let found = report(&settings, &table);
    let of = |stratum: &str| {
        let inside = |f: &&Figure| f.control.as_ref().is_some_and(|(_, value)| value.as_deref() == Some(stratum));
        found.figures.iter().filter(inside).collect::<Vec<_>>()
    };
    let overall = |stratum: &str| of(stratum).into_iter().find(|f| f.scope == Scope::Overall).unwrap().status;
    // 3 rows; and the next smallest, so that all rows do not tell them.
    assert_eq!([overall("x"), overall("y"), overall("z")], [Status::Suppressed, Status::Ok, Status::Suppressed]);
    // All of them are in one group: it does not tell them either, nor does their sum tell a stratum that is held back.
    let cells =
        |stratum: &str| of(stratum).into_iter().filter(|f| matches!(f.scope, Scope::Group(_))).collect::<Vec<_>>();
    assert!(cells("x").iter().all(|f| f.value.is_none()));
    assert!(cells("z").iter().any(|f| f.status == Status::Suppressed), "{:?}", cells("z"));
    assert!(cells("y").iter().all(|f| f.value.is_some()), "{:?}", cells("y"));
    let whole = report(&super::of(&["accuracy"]), &table);
    assert!(whole.figures.iter().all(|f| f.status != Status::Suppressed));
}

trait Scoped {
    /// Whether it is of one group.
    fn group_scoped(&self) -> bool;
}

impl Scoped for Figure {
    fn group_scoped(&self) -> bool {
        matches!(self.scope, Scope::Group(_) | Scope::Complement(_) | Scope::MemberMinusRest(_))
    }
}
