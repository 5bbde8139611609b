//! Who belongs to which group: attributes, their combinations, controls, weights and clusters of audited rows.
//!
//! Reads columns of text only, so that rows of a data set and uploaded scores are grouped alike. Decides on no
//! statistics and leaves no row out: a missing value is a group of its own.
//! Order: attributes as asked, then combinations; groups by value, a missing one last; rows ascending.
//! After: fairlearn `MetricFrame` for the full product of a combination's values, empty ones included.

use std::collections::{BTreeMap, BTreeSet};

use super::AuditError;
use super::error::setting;
use super::report::Group;
use super::settings::{Attribute, Settings, Source};
use super::table::{AttributeRows, GroupRows};

/// Most groups of one attribute; more is an identifier rather than a group.
pub const MAX_GROUPS: usize = 256;
/// Most groups of one combination.
pub const MAX_COMBINED: usize = 4096;
/// What stands between names and between values of a combination.
const JOINT: &str = " × ";
/// What stands for a missing value within a combination.
const MISSING: &str = "(missing)";

/// Columns of audited rows.
#[derive(Debug, Clone)]
pub struct Columns<'a> {
    /// Names.
    pub names: &'a [String],
    /// One a row: a value a column, in the order of the names; `None` where it is missing.
    pub cells: Vec<&'a [Option<String>]>,
    /// One a row: its number in the data set, from 1; faults name it.
    pub numbers: Vec<usize>,
}

impl Columns<'_> {
    /// Returns the place of a column.
    ///
    /// # Errors
    /// [`AuditError::Setting`] where there is none of this name.
    pub fn place(&self, field: &'static str, name: &str) -> Result<usize, AuditError> {
        let place = self.names.iter().position(|own| own == name);
        place.ok_or_else(|| setting(field, format!("the data set has no group column `{name}`")))
    }

    /// Returns a row's value in a column.
    pub fn cell(&self, row: usize, place: usize) -> Option<&str> {
        self.cells.get(row).and_then(|cells| cells.get(place)).and_then(Option::as_deref)
    }

    /// Returns the fault of a row in a column.
    pub fn fault(&self, row: usize, place: usize, fault: impl Into<String>) -> AuditError {
        let (row, column) = (self.numbers.get(row).copied().unwrap_or(row + 1), self.names.get(place).cloned());
        AuditError::Row { row, column, fault: fault.into() }
    }

    /// Returns a row's value in a column that must have one.
    ///
    /// # Errors
    /// [`AuditError::Row`] where it is missing.
    pub fn needed(&self, row: usize, place: usize) -> Result<&str, AuditError> {
        self.cell(row, place).ok_or_else(|| self.fault(row, place, "has no value"))
    }
}

/// Memberships of all rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Grouping {
    /// Weights; none: each row counts 1.
    pub weights: Option<Vec<f64>>,
    /// Cluster of each row, numbered in the order of first appearance; none: each row alone.
    pub clusters: Option<Vec<u32>>,
    /// Attributes, then combinations.
    pub attributes: Vec<AttributeRows>,
    /// Strata of control features.
    pub controls: Vec<AttributeRows>,
    /// The attributes' groups as the report lists them.
    pub groups: Vec<Group>,
    /// Sum of weights.
    pub weight: f64,
    /// Number of clusters.
    pub clusters_total: u64,
}

impl Grouping {
    /// Groups rows as the settings ask.
    ///
    /// # Errors
    /// [`AuditError::Setting`] for a column or attribute that is not there or named twice, and for too many groups;
    /// [`AuditError::Row`] for a weight or flag that is none.
    pub fn new(columns: &Columns<'_>, settings: &Settings) -> Result<Self, AuditError> {
        if settings.attributes.is_empty() {
            return Err(setting("attributes", "must name at least one group attribute"));
        }
        let mut attributes = Vec::with_capacity(settings.attributes.len() + settings.intersections.len());
        for (i, attribute) in settings.attributes.iter().enumerate() {
            if settings.attributes[..i].iter().any(|other| other.name == attribute.name) {
                return Err(setting("attributes", format!("`{}` is named twice", attribute.name)));
            }
            attributes.push(of_attribute(columns, attribute)?);
        }
        let singles = attributes.clone();
        for names in &settings.intersections {
            let combined = combination(&singles, names)?;
            if attributes.iter().any(|other| other.name == combined.name) {
                return Err(setting("intersections", format!("`{}` is named twice", combined.name)));
            }
            attributes.push(combined);
        }
        let controls = controls(columns, settings)?;
        let weights = settings.weight_column.as_deref().map(|name| weights(columns, name)).transpose()?;
        let clusters = settings.cluster_column.as_deref().map(|name| clusters(columns, name)).transpose()?;
        let rows = columns.cells.len();
        let all: Vec<u32> = (0..rows as u32).collect();
        let (weight, clusters_total) = support(&all, weights.as_deref(), clusters.as_deref());
        let mut groups = Vec::new();
        for attribute in &attributes {
            for group in &attribute.groups {
                let (weight, clusters) = support(&group.rows, weights.as_deref(), clusters.as_deref());
                let rows = group.rows.len() as u64;
                groups.push(Group {
                    attribute: attribute.name.clone(),
                    value: group.value.clone(),
                    rows,
                    weight,
                    clusters,
                    suppressed: rows > 0 && rows < settings.statistics.suppress_below,
                });
            }
        }
        Ok(Self { weights, clusters, attributes, controls, groups, weight, clusters_total })
    }
}

/// Returns weight and clusters of some rows.
fn support(rows: &[u32], weights: Option<&[f64]>, clusters: Option<&[u32]>) -> (f64, u64) {
    let weight = weights.map_or(rows.len() as f64, |all| rows.iter().map(|row| all[*row as usize]).sum());
    let clusters = match clusters {
        None => rows.len(),
        Some(all) => rows.iter().map(|row| all[*row as usize]).collect::<BTreeSet<_>>().len(),
    };
    (weight, clusters as u64)
}

fn of_attribute(columns: &Columns<'_>, attribute: &Attribute) -> Result<AttributeRows, AuditError> {
    let field = "attributes";
    match &attribute.source {
        Source::Values(column) => {
            let place = columns.place(field, column)?;
            by_values(field, &attribute.name, columns, |row, into| into(columns.cell(row, place)))
        }
        Source::List { column, separator } => {
            if separator.is_empty() {
                return Err(setting(field, format!("the separator of `{}` is empty", attribute.name)));
            }
            let place = columns.place(field, column)?;
            by_values(field, &attribute.name, columns, |row, into| {
                let parts = columns.cell(row, place).map(|cell| cell.split(separator.as_str()).map(str::trim));
                let mut parts: BTreeSet<&str> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
                match parts.pop_first() {
                    None => into(None),
                    Some(first) => std::iter::once(first).chain(parts).for_each(|part| into(Some(part))),
                }
            })
        }
        Source::Flags(flags) => {
            if let Some(twice) = flags.iter().enumerate().find(|(i, column)| flags[..*i].contains(column)) {
                return Err(setting(field, format!("`{}` is named twice", twice.1)));
            }
            let mut groups = Vec::with_capacity(flags.len());
            for column in flags {
                let place = columns.place(field, column)?;
                let mut rows = Vec::new();
                for row in 0..columns.cells.len() {
                    if flag(columns, row, place)? {
                        rows.push(row as u32);
                    }
                }
                groups.push(GroupRows { value: Some(column.clone()), rows });
            }
            if groups.is_empty() || groups.len() > MAX_GROUPS {
                let fault = format!("`{}` has {} flags, 1 to {MAX_GROUPS} are possible", attribute.name, groups.len());
                return Err(setting(field, fault));
            }
            Ok(AttributeRows { name: attribute.name.clone(), combination: false, groups })
        }
    }
}

/// Reads a flag; a missing one is not set.
fn flag(columns: &Columns<'_>, row: usize, place: usize) -> Result<bool, AuditError> {
    let Some(cell) = columns.cell(row, place) else { return Ok(false) };
    match cell.trim().to_lowercase().as_str() {
        "1" | "true" | "yes" => Ok(true),
        "" | "0" | "false" | "no" => Ok(false),
        _ => Err(columns.fault(row, place, format!("`{cell}` is no flag: 1, true, yes, 0, false and no are"))),
    }
}

/// Collects groups by value; `of` hands over the values of a row.
fn by_values(
    field: &'static str,
    name: &str,
    columns: &Columns<'_>,
    of: impl Fn(usize, &mut dyn FnMut(Option<&str>)),
) -> Result<AttributeRows, AuditError> {
    let mut values: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut missing = Vec::new();
    for row in 0..columns.cells.len() {
        of(row, &mut |value| match value {
            None => missing.push(row as u32),
            Some(value) => match values.get_mut(value) {
                Some(rows) => rows.push(row as u32),
                None => drop(values.insert(value.to_owned(), vec![row as u32])),
            },
        });
        if values.len() > MAX_GROUPS {
            let fault = format!("`{name}` has more than {MAX_GROUPS} values: it is an identifier rather than a group");
            return Err(setting(field, fault));
        }
    }
    let mut groups: Vec<_> = values.into_iter().map(|(value, rows)| GroupRows { value: Some(value), rows }).collect();
    if !missing.is_empty() {
        groups.push(GroupRows { value: None, rows: missing });
    }
    Ok(AttributeRows { name: name.to_owned(), combination: false, groups })
}

/// Returns the combination of the attributes of these names.
fn combination(singles: &[AttributeRows], names: &[String]) -> Result<AttributeRows, AuditError> {
    let field = "intersections";
    if names.len() < 2 {
        return Err(setting(field, "each combines two or more attributes"));
    }
    let (mut parts, mut groups) = (Vec::with_capacity(names.len()), 1_usize);
    for (i, name) in names.iter().enumerate() {
        let Some(attribute) = singles.iter().find(|attribute| attribute.name == *name) else {
            return Err(setting(field, format!("`{name}` is none of the attributes")));
        };
        if names[..i].contains(name) {
            return Err(setting(field, format!("`{name}` is combined with itself")));
        }
        groups = groups.saturating_mul(attribute.groups.len());
        if groups > MAX_COMBINED {
            let fault = format!("`{}` has more than {MAX_COMBINED} combinations", names.join(JOINT));
            return Err(setting(field, fault));
        }
        parts.push(attribute);
    }
    Ok(product(&parts))
}

/// Returns the full product of attributes, combinations that do not occur included.
pub(super) fn product(parts: &[&AttributeRows]) -> AttributeRows {
    let mut combined: Vec<(Vec<&str>, Option<Vec<u32>>)> = vec![(Vec::new(), None)];
    for part in parts {
        let product = combined.iter().flat_map(|(values, rows)| {
            part.groups.iter().map(move |group| {
                let value = group.value.as_deref().unwrap_or(MISSING);
                let both = match rows {
                    None => group.rows.clone(),
                    Some(rows) => common(rows, &group.rows),
                };
                (values.iter().copied().chain([value]).collect(), Some(both))
            })
        });
        combined = product.collect();
    }
    let group = |(values, rows): (Vec<&str>, Option<Vec<u32>>)| GroupRows {
        value: Some(values.join(JOINT)),
        rows: rows.unwrap_or_default(),
    };
    let name = parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join(JOINT);
    AttributeRows { name, combination: true, groups: combined.into_iter().map(group).collect() }
}

/// Returns what two ascending lists have in common.
fn common(a: &[u32], b: &[u32]) -> Vec<u32> {
    let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    few.iter().copied().filter(|row| many.binary_search(row).is_ok()).collect()
}

fn controls(columns: &Columns<'_>, settings: &Settings) -> Result<Vec<AttributeRows>, AuditError> {
    let field = "controls";
    let mut controls = Vec::with_capacity(settings.controls.len());
    for (i, name) in settings.controls.iter().enumerate() {
        if settings.controls[..i].contains(name) {
            return Err(setting(field, format!("`{name}` is named twice")));
        }
        let place = columns.place(field, name)?;
        controls.push(by_values(field, name, columns, |row, into| into(columns.cell(row, place)))?);
    }
    Ok(controls)
}

fn weights(columns: &Columns<'_>, name: &str) -> Result<Vec<f64>, AuditError> {
    let place = columns.place("weight_column", name)?;
    let weight = |row: usize| {
        let cell = columns.needed(row, place)?;
        match cell.trim().parse::<f64>() {
            Ok(weight) if weight.is_finite() && weight >= 0.0 => Ok(weight.abs()),
            _ => Err(columns.fault(row, place, format!("`{cell}` is no weight: finite numbers from 0 are"))),
        }
    };
    let weights = (0..columns.cells.len()).map(weight).collect::<Result<Vec<_>, _>>()?;
    let sum: f64 = weights.iter().sum();
    if sum > 0.0 && sum.is_finite() {
        return Ok(weights);
    }
    Err(setting("weight_column", format!("the weights of `{name}` sum to {sum}, which is no positive number")))
}

/// Numbers clusters; a row without a value is a cluster of its own.
fn clusters(columns: &Columns<'_>, name: &str) -> Result<Vec<u32>, AuditError> {
    let place = columns.place("cluster_column", name)?;
    let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
    let mut next = 0;
    let mut number = |row: usize| {
        let known = columns.cell(row, place).map(|value| *numbers.entry(value).or_insert(next));
        let number = known.unwrap_or(next);
        next += u32::from(number == next);
        number
    };
    Ok((0..columns.cells.len()).map(&mut number).collect())
}

#[cfg(test)]
mod tests;
