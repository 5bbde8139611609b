//! Collects figures with their place in the report, and their tests with the family that they belong to.
//!
//! A figure that is the same number as another shares its test: it is corrected for once.

use std::collections::BTreeMap;

use super::base::At;
use super::read::Support;
use crate::audit::report::{Figure, Interval, Scope, Status, Test};
use crate::audit::settings::{Correction, Statistics};
use crate::audit::statistics::multiplicity::Adjustment;
use crate::audit::statistics::{Measured, Undefined};

/// Where a figure belongs.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    pub(super) model: usize,
    pub(super) versus: Option<usize>,
    /// Number and name.
    pub(super) attribute: Option<(usize, &'a str)>,
    pub(super) at: At,
    /// Value of the group, for scopes of a group.
    pub(super) group: Option<&'a str>,
    /// Number of the stratum and its name.
    pub(super) control: Option<(usize, (String, Option<String>))>,
    pub(super) measure: &'a str,
    /// Number and name.
    pub(super) class: Option<(usize, &'a str)>,
}

impl Place<'_> {
    fn scope(&self) -> Scope {
        let group = || self.group.map(str::to_owned);
        match self.at {
            At::Overall => Scope::Overall,
            At::Group(_) => Scope::Group(group()),
            At::Complement(_) => Scope::Complement(group()),
            At::MemberMinusRest(_) => Scope::MemberMinusRest(group()),
            At::Minimum => Scope::Minimum,
            At::Maximum => Scope::Maximum,
            At::Difference => Scope::Difference,
            At::Ratio => Scope::Ratio,
            At::DifferenceToOverall => Scope::DifferenceToOverall,
            At::RatioToOverall => Scope::RatioToOverall,
            At::Attribute => Scope::Attribute,
        }
    }
}

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) value: Measured,
    pub(super) support: Support,
    pub(super) suppressed: bool,
    pub(super) groups: Option<(u64, u64)>,
    pub(super) extremes: Vec<Option<String>>,
    pub(super) interval: Option<Interval>,
    pub(super) test: Option<Test>,
}

impl Found {
    pub(super) fn new(value: Measured, support: Support) -> Self {
        Self { value, support, suppressed: false, groups: None, extremes: Vec::new(), interval: None, test: None }
    }
}

/// Place of a figure in the report.
type Order = (usize, usize, At, usize, usize, usize, usize);

/// The figures so far.
#[derive(Debug, Default)]
pub(super) struct Figures {
    list: Vec<(Order, Figure, Option<usize>)>,
    /// p-values that are corrected together.
    family: Vec<f64>,
    /// Measures in the order of their first figure.
    measures: BTreeMap<String, usize>,
    min_group: u64,
}

impl Figures {
    pub(super) fn new(statistics: &Statistics) -> Self {
        Self { min_group: statistics.min_group, ..Self::default() }
    }

    /// Adds a figure; returns the number of its test in the family.
    pub(super) fn add(&mut self, place: &Place<'_>, found: Found) -> Option<usize> {
        let test = found.test.as_ref().filter(|_| found.value.is_ok() && !found.suppressed).map(|test| test.p);
        let number = test.map(|p| {
            self.family.push(p);
            self.family.len() - 1
        });
        self.add_with_test(place, found, number);
        number
    }

    /// Adds a figure whose test is in the family already.
    pub(super) fn add_with_test(&mut self, place: &Place<'_>, found: Found, test: Option<usize>) {
        let next = self.measures.len();
        let measure = *self.measures.entry(place.measure.to_owned()).or_insert(next);
        let order = order(place, measure);
        // Neither NaN nor an infinity leaves this room.
        let value = found.value.and_then(|v| if v.is_finite() { Ok(v) } else { Err(Undefined::DivisionByZero) });
        let finite = |interval: &Interval| interval.low.is_finite() && interval.high.is_finite();
        let published = value.is_ok() && !found.suppressed;
        let (status, reason) = match value {
            _ if found.suppressed => (Status::Suppressed, Some("suppressed".to_owned())),
            Err(why) => (Status::Undefined, Some(reason(why))),
            Ok(_) if found.support.n < self.min_group => (Status::LowSupport, Some("few_rows".to_owned())),
            Ok(_) => (Status::Ok, None),
        };
        let figure = Figure {
            model: place.model as u32,
            versus: place.versus.map(|versus| versus as u32),
            attribute: place.attribute.map(|(_, name)| name.to_owned()),
            scope: place.scope(),
            control: place.control.clone().map(|(_, control)| control),
            measure: place.measure.to_owned(),
            class: place.class.map(|(_, name)| name.to_owned()),
            value: value.ok().filter(|_| published),
            status,
            reason,
            n: if found.suppressed { 0 } else { found.support.n },
            weight: if found.suppressed { 0.0 } else { found.support.weight },
            groups: found.groups,
            extremes: if published { found.extremes } else { Vec::new() },
            interval: found.interval.filter(|interval| published && finite(interval)),
            test: found.test.filter(|_| published),
        };
        let test = test.filter(|_| published);
        self.list.push((order, figure, test));
    }

    /// Gives a test to a figure of this place that has none, if there is one with a value.
    pub(super) fn attach(&mut self, place: &Place<'_>, test: Test) {
        let Some(measure) = self.measures.get(place.measure).copied() else { return };
        let order = order(place, measure);
        let found = self.list.iter_mut().find(|(of, figure, _)| *of == order && figure.test.is_none());
        if let Some((_, figure, number)) = found.filter(|(_, figure, _)| figure.value.is_some()) {
            self.family.push(test.p);
            *number = Some(self.family.len() - 1);
            figure.test = Some(test);
        }
    }

    /// Adds a figure that was not measured.
    pub(super) fn not_measured(&mut self, model: usize, measure: &str, reason: &str) {
        let place = Place {
            model,
            versus: None,
            attribute: None,
            at: At::Overall,
            group: None,
            control: None,
            measure,
            class: None,
        };
        self.add(&place, Found::new(Err(Undefined::NoRows), Support::default()));
        if let Some((_, figure, _)) = self.list.last_mut() {
            figure.status = Status::NotMeasured;
            figure.reason = Some(reason.to_owned());
        }
    }

    /// Corrects the tests for their family and returns the figures in order, with the size of the family.
    pub(super) fn finish(mut self, correction: Correction) -> (Vec<Figure>, u64) {
        let adjusted = match correction {
            Correction::None => None,
            Correction::Holm => Some(Adjustment::Holm.adjust(&self.family)),
            Correction::BenjaminiHochberg => Some(Adjustment::BenjaminiHochberg.adjust(&self.family)),
        };
        self.list.sort_by_key(|(order, _, _)| *order);
        let figures = self.list.into_iter().map(|(_, mut figure, number)| {
            if let (Some(test), Some(adjusted), Some(number)) = (&mut figure.test, &adjusted, number) {
                test.adjusted = Some(adjusted[number]);
            }
            figure
        });
        (figures.collect(), self.family.len() as u64)
    }
}

fn order(place: &Place<'_>, measure: usize) -> Order {
    (
        place.attribute.map_or(0, |(number, _)| number + 1),
        place.control.as_ref().map_or(0, |(number, _)| number + 1),
        place.at,
        measure,
        place.class.map_or(0, |(number, _)| number + 1),
        place.model,
        place.versus.map_or(0, |versus| versus + 1),
    )
}

/// The reason in one word.
pub(super) fn reason(why: Undefined) -> String {
    let word = serde_json::to_value(why).ok();
    word.as_ref().and_then(|word| word.as_str()).unwrap_or("undefined").to_owned()
}
