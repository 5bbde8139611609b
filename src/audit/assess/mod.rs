//! From a scored table to a report: figures, intervals, tests, diagrams and warnings.
//!
//! The formulas are those of `statistics`; here is what they are applied to. An attribute at a time, over all rows and
//! then in each stratum of the controls, one question at a time (a class against the rest is a question of its own);
//! figures are listed once and computed on the rows, on each bootstrap resample and on each permutation of the groups.
//! Rows are only ever read in passes that keep sums (`accumulate`), so that memory grows with the rows and not with the
//! resamples. Nothing depends on threads. Sources: see `measures` and the functions of `statistics`.

mod accumulate;
mod attacks;
mod base;
mod calibration;
mod comparison;
mod controls;
mod figures;
mod held;
mod layout;
mod measure;
mod membership;
mod names;
mod part;
mod questions;
mod read;
mod resample;
mod smooth;
#[cfg(test)]
mod tests;
mod thresholds;
mod view;
mod warnings;

pub use names::{Shape, unknown_measures};

use figures::{Figures, Found, Place};
use held::Held;
use layout::Layout;
use measure::Named;
use part::Part;
use questions::{Question, Questions};
use read::Support;
use resample::Stop;
use view::View;

use super::measures;
use super::report::{BaseModel, Data, Group, Interval, Model, Reliability, Report, VERSION, Warning};
use super::settings::{Convention as Stands, Settings};
use super::statistics::Undefined;
use super::statistics::confusion::Convention;
use super::statistics::distributions::normal_quantile;
use super::table::{AttributeRows, Outcomes, Table};
use super::utility;

/// Rows, at most: two bits of a row number are used for other things.
pub const MAX_ROWS: usize = 1 << 30;
/// Groups of one attribute, at most.
pub const MAX_GROUPS: usize = 4096;

const NO_ROWS: Undefined = Undefined::NoRows;

/// What the report says beside its figures.
#[derive(Debug, Clone)]
pub struct Provenance {
    /// Version of evenkeel.
    pub software: String,
    /// The base model; none for uploaded scores.
    pub base: Option<BaseModel>,
    /// The rows.
    pub data: Data,
    /// Models in the order of the table.
    pub models: Vec<Model>,
    /// Groups in the order of the table's attributes and values; sizes and suppression are filled in here, and all of
    /// it where this is empty.
    pub groups: Vec<Group>,
    /// What the reader should know already.
    pub warnings: Vec<Warning>,
}

/// Why there is no report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssessError {
    /// A measure that this task does not have.
    #[error("measure `{name}` is not one of this task: {known}")]
    UnknownMeasure {
        /// The measure.
        name: String,
        /// Those there are, separated by commas.
        known: String,
    },
    /// No rows, or more than can be counted.
    #[error("{rows} rows, expected 1 to {MAX_ROWS}")]
    Rows {
        /// The rows.
        rows: usize,
    },
    /// Too many groups.
    #[error("attribute `{attribute}` has {groups} groups, at most {MAX_GROUPS} can be compared")]
    Groups {
        /// The attribute.
        attribute: String,
        /// Its groups.
        groups: usize,
    },
    /// The system has no threads for it.
    #[error("no threads for statistics: {fault}")]
    Threads {
        /// What was said.
        fault: String,
    },
    /// The caller wanted it to end.
    #[error("the audit was stopped")]
    Stopped,
}

/// Computes the report. `stop` is asked every few resamples, from one thread at a time or several.
///
/// On threads of its own: these may sleep in `stop` while requests go first, and requests need those of the model.
///
/// # Errors
/// [`AssessError`].
pub fn assess(
    settings: &Settings,
    table: &Table,
    provenance: Provenance,
    stop: Stop<'_>,
) -> Result<Report, AssessError> {
    let threads = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build();
    let threads = threads.map_err(|error| AssessError::Threads { fault: error.to_string() })?;
    threads.install(|| compute(settings, table, provenance, stop))
}

fn compute(settings: &Settings, table: &Table, provenance: Provenance, stop: Stop<'_>) -> Result<Report, AssessError> {
    if table.rows == 0 || table.rows > MAX_ROWS {
        return Err(AssessError::Rows { rows: table.rows });
    }
    for attribute in table.attributes.iter().chain(&table.controls) {
        if attribute.groups.len() > MAX_GROUPS {
            return Err(AssessError::Groups { attribute: attribute.name.clone(), groups: attribute.groups.len() });
        }
    }
    let questions = Questions::new(settings, table);
    check_measures(settings, &questions)?;
    let mut assessment = Assessment {
        settings,
        table,
        held: Held::new(table, settings.statistics.suppress_below),
        stop,
        figures: Figures::new(&settings.statistics),
        reliability: Vec::new(),
        warnings: provenance.warnings,
    };
    assessment.questions(&questions)?;
    let rocs = assessment.membership()?;
    assessment.not_measured(&questions);
    let groups = assessment.groups(&provenance.groups);
    assessment.warn(&groups);
    let Assessment { figures, reliability, mut warnings, .. } = assessment;
    let (figures, tests) = figures.finish(settings.statistics.correction);
    warnings.extend(warnings::of_tests(settings, tests));
    let asked = settings.utility_match.as_ref();
    let matched = asked.and_then(|asked| utility::matched(&figures, &provenance.models, asked));
    let measure = utility::measure(&figures, asked);
    warnings.extend(measure.iter().flat_map(|measure| warnings::of_utility(&figures, &provenance.models, measure)));
    warnings.extend(asked.and_then(|asked| warnings::of_match(asked, matched.as_ref(), &provenance.models)));
    warnings.extend(warnings::of_smooth(&figures, (smooth::resamples(&settings.statistics, table.rows), settings)));
    let more = warnings::of_provenance(&provenance.data, &provenance.models, &table.preferences, &warnings);
    warnings.extend(more);
    warnings.sort();
    warnings.dedup();
    Ok(Report {
        version: VERSION,
        software: provenance.software,
        settings: settings.clone(),
        base: provenance.base,
        data: provenance.data,
        models: provenance.models,
        groups,
        figures,
        reliability,
        rocs,
        preferences: table.preferences.clone(),
        tests,
        warnings,
        matched,
    })
}

/// Whether a measure is asked for: by name, with everything, or as what another stands beside.
fn wanted(asked: &[String], name: &str) -> bool {
    // Smooth ECE and the null of ECE are read beside ECE itself.
    let form = name.strip_prefix("ece_width_");
    let beside = |asked: &str| {
        let of = ["smooth_ece_", "ece_null_"].iter().find_map(|what| asked.strip_prefix(what));
        of.is_some() && of == form
    };
    asked.is_empty() || asked.iter().any(|asked| asked == name || beside(asked))
}

fn check_measures(settings: &Settings, questions: &Questions<'_>) -> Result<(), AssessError> {
    let known = names::known(&questions.shape());
    // These have settings of their own and come with them.
    let besides =
        [measures::MEMBERSHIP, "temperature", "accuracy_common_odds_ratio", "selection_rate_common_odds_ratio"];
    let is_known = |name: &String| known.contains(name) || besides.contains(&name.as_str());
    let utility = settings.utility_match.iter().map(|asked| &asked.measure).filter(|name| !known.contains(name));
    let unknown = settings.measures.iter().filter(|name| !is_known(name)).chain(utility).next();
    match unknown {
        Some(name) => Err(AssessError::UnknownMeasure { name: name.clone(), known: known.join(", ") }),
        None => Ok(()),
    }
}

struct Assessment<'a> {
    settings: &'a Settings,
    table: &'a Table,
    /// What is held back.
    held: Held,
    stop: Stop<'a>,
    figures: Figures,
    reliability: Vec<Reliability>,
    warnings: Vec<Warning>,
}

/// What is asked over which rows.
struct Over<'v> {
    rows: &'v [u32],
    control: Option<(usize, (String, Option<String>))>,
    /// The stratum that they are: its control, and its place there.
    stratum: Option<(usize, usize)>,
    views: &'v [View],
    models: usize,
    named: &'v [(&'static str, Named)],
    class: Option<(usize, &'v str)>,
    /// Strata within which groups are rearranged.
    strata: Option<&'v [u32]>,
}

/// An attribute without groups, for figures of all rows where there is no attribute.
fn nothing() -> AttributeRows {
    AttributeRows { name: String::new(), combination: false, groups: Vec::new() }
}

impl Assessment<'_> {
    fn wants(&self) -> impl Fn(&str) -> bool + Sync + use<'_> {
        let settings = self.settings;
        move |name| wanted(&settings.measures, name)
    }

    fn weights_of(&self, rows: &[u32]) -> Option<Vec<f64>> {
        self.table.weights.as_ref().map(|weights| rows.iter().map(|row| weights[*row as usize]).collect())
    }

    /// Assesses each attribute; `after` sees each part once more.
    fn attributes(
        &mut self,
        over: &Over<'_>,
        after: impl FnMut(&mut Figures, &mut Vec<Reliability>, &Part<'_>, Stop<'_>) -> Result<(), AssessError>,
    ) -> Result<(), AssessError> {
        let weights = self.weights_of(over.rows);
        self.attributes_with(over, weights, after)
    }

    /// The same with rows that count one each.
    fn unweighted_attributes(
        &mut self,
        over: &Over<'_>,
        after: impl FnMut(&mut Figures, &mut Vec<Reliability>, &Part<'_>, Stop<'_>) -> Result<(), AssessError>,
    ) -> Result<(), AssessError> {
        self.attributes_with(over, None, after)
    }

    fn attributes_with(
        &mut self,
        over: &Over<'_>,
        weights: Option<Vec<f64>>,
        mut after: impl FnMut(&mut Figures, &mut Vec<Reliability>, &Part<'_>, Stop<'_>) -> Result<(), AssessError>,
    ) -> Result<(), AssessError> {
        let clusters = layout::clusters(self.table.clusters.as_deref(), over.rows);
        let nothing = [nothing()];
        let attributes = if self.table.attributes.is_empty() { &nothing[..] } else { &self.table.attributes[..] };
        for (number, attribute) in attributes.iter().enumerate() {
            let layout = Layout::new(attribute, over.rows, self.table.rows);
            let suppressed = self.suppressed(over, (number, attribute));
            let part = Part {
                views: over.views,
                models: over.models,
                named: over.named,
                layout: &layout,
                suppressed: &suppressed,
                hidden: over.stratum.is_some_and(|(control, stratum)| self.held.strata[control][stratum]),
                attribute: (!self.table.attributes.is_empty()).then_some((number, attribute.name.as_str())),
                values: attribute.groups.iter().map(|group| group.value.as_deref()).collect(),
                control: over.control.clone(),
                class: over.class,
                weights: weights.as_deref(),
                clusters: clusters.as_deref(),
                strata: over.strata,
                overall: number == 0,
                convention: match self.settings.convention {
                    Stands::Defined => Convention::Defined,
                    Stands::Fairlearn => Convention::Fairlearn,
                },
                statistics: &self.settings.statistics,
                seed: self.settings.seed,
            };
            part.assess(&mut self.figures, self.stop)?;
            after(&mut self.figures, &mut self.reliability, &part, self.stop)?;
        }
        Ok(())
    }

    /// Groups of an attribute that are held back among some rows.
    fn suppressed(&self, over: &Over<'_>, (number, attribute): (usize, &AttributeRows)) -> Vec<bool> {
        match over.stratum {
            Some((control, stratum)) => self.held.cells[control][stratum].get(number).cloned().unwrap_or_default(),
            None => self.held.among((number, attribute), over.rows, self.settings.statistics.suppress_below),
        }
    }

    fn questions(&mut self, questions: &Questions<'_>) -> Result<(), AssessError> {
        let settings = self.settings;
        let asked = |name: &str| wanted(&settings.measures, name);
        let all: Vec<u32> = (0..self.table.rows as u32).collect();
        let named: Vec<(&'static str, Named)> = Named::ALL.into_iter().filter(|(name, _)| asked(name)).collect();
        for (number, (question, class)) in questions.all().into_iter().enumerate() {
            let named = if questions.is_binary(question) { &named[..] } else { &[] };
            let class = class.map(|name| (number, name));
            let strata = layout::strata(&self.table.controls, &all, self.table.rows);
            let weights = self.weights_of(&all);
            let views = questions.views(question, &all, weights.as_deref(), &asked);
            let models = questions.models();
            let over = Over {
                rows: &all,
                control: None,
                stratum: None,
                views: &views,
                models,
                named,
                class,
                strata: strata.as_deref(),
            };
            let calibrated = calibration::Asked { wants: &asked };
            let is_calibrated = questions.is_calibrated(question);
            self.attributes(&over, |figures, reliability, part, stop| {
                comparison::common_odds(part, figures);
                if is_calibrated {
                    calibration::add(part, calibrated, figures, stop)?;
                }
                if question == Question::Task {
                    reliability.extend(calibration::reliability(part));
                }
                Ok(())
            })?;
            drop(views);
            if question == Question::Task {
                self.temperatures(questions, class);
            }
            let mut count = 0;
            for (number, control) in self.table.controls.iter().enumerate() {
                for (place, group) in control.groups.iter().enumerate().filter(|(_, group)| !group.rows.is_empty()) {
                    let weights = self.weights_of(&group.rows);
                    let views = questions.views(question, &group.rows, weights.as_deref(), &asked);
                    let control = Some((count, (control.name.clone(), group.value.clone())));
                    let (rows, stratum) = (&group.rows[..], Some((number, place)));
                    let over = Over { rows, control, stratum, views: &views, models, named, class, strata: None };
                    self.attributes(&over, |figures, _, part, stop| match is_calibrated {
                        true => calibration::add(part, calibrated, figures, stop),
                        false => Ok(()),
                    })?;
                    count += 1;
                }
            }
        }
        self.reliability.sort_by_key(|diagram| diagram.model);
        Ok(())
    }

    fn temperatures(&mut self, questions: &Questions<'_>, class: Option<(usize, &str)>) {
        for model in 0..questions.models() {
            if let Some((temperature, log_error)) = questions.temperature(model) {
                let n = self.table.rows as u64;
                let place = Place { class, ..overall(model, "temperature") };
                let weight = self.table.weights.as_ref().map_or(n as f64, |weights| weights.iter().sum());
                let interval = temperature.ok().zip(log_error).map(|(value, error)| {
                    let level = self.settings.statistics.level;
                    let reach = (normal_quantile(f64::midpoint(1.0, level)) * error).exp();
                    Interval { method: "sandwich".to_owned(), level, low: value / reach, high: value * reach }
                });
                let found = Found::new(temperature, Support { n, weight, squares: weight });
                self.figures.add(&place, Found { interval, ..found });
            }
        }
    }

    fn membership(&mut self) -> Result<Vec<super::report::Roc>, AssessError> {
        match (&self.table.membership, &self.settings.membership) {
            (Some(table), Some(settings)) => membership::assess(self, table, settings),
            (None, _) | (_, None) => Ok(Vec::new()),
        }
    }

    /// Measures of the task that were not asked for, or cannot be had, once for each model.
    fn not_measured(&mut self, questions: &Questions<'_>) {
        let wants = self.wants();
        let (missing, asked): (Vec<String>, Vec<String>) =
            names::known(&questions.shape()).into_iter().partition(|name| !wants(name));
        let after = questions.after_temperature(&wants);
        drop(wants);
        let beyond = |question: Question| matches!(question, Question::Class(_)) && !questions.is_calibrated(question);
        let of_classes = questions.all().into_iter().any(|(question, _)| beyond(question));
        for model in 0..questions.models() {
            for name in &missing {
                self.figures.not_measured(model, name, "not_asked");
            }
            let (several, ranked): (_, &[&str]) = match &self.table.outcomes {
                Outcomes::Classes { names, .. } => (names.len() > measure::MOST_RANKED, &["auc_macro"]),
                Outcomes::MultiLabel { names, .. } => (names.len() > measure::MOST_RANKED, &["auc_macro", "auc_micro"]),
                Outcomes::Ratios { .. } => (false, &[]),
            };
            for name in ranked.iter().filter(|_| several) {
                self.figures.not_measured(model, name, "not_available");
            }
            // Of too many classes those of each against the rest; those of all at once have a value.
            let by_class = asked.iter().filter(|name| of_classes && name.ends_with("_positive_class"));
            for name in by_class.filter(|name| name.starts_with("smooth_ece") || name.starts_with("ece_null")) {
                self.figures.not_measured(model, name, "not_available");
            }
            let binary_or_classes = matches!(self.table.outcomes, Outcomes::Classes { .. });
            match (self.settings.calibration.temperature, binary_or_classes) {
                (false, true) => self.figures.not_measured(model, "temperature", "not_asked"),
                // There is one temperature for a distribution over classes, none for labels or ratios.
                (true, false) => self.figures.not_measured(model, "temperature", "not_available"),
                (_, _) => {}
            }
            if let Some((Err(why), _)) = questions.temperature(model) {
                for measure in &after {
                    self.figures.not_measured(model, &measure.name, &figures::reason(why));
                }
            }
            if self.settings.membership.is_none() {
                self.figures.not_measured(model, measures::MEMBERSHIP, "not_asked");
            } else if self.table.membership.is_none() {
                self.figures.not_measured(model, measures::MEMBERSHIP, "not_available");
            }
        }
    }

    /// Groups with their sizes.
    fn groups(&self, given: &[Group]) -> Vec<Group> {
        let weight = |row: u32| self.table.weights.as_ref().map_or(1.0, |weights| weights[row as usize]);
        let mut groups = Vec::new();
        for (attribute, suppressed) in self.table.attributes.iter().zip(&self.held.groups) {
            for (group, suppressed) in attribute.groups.iter().zip(suppressed) {
                let clusters = layout::clusters(self.table.clusters.as_deref(), &group.rows);
                groups.push(Group {
                    attribute: attribute.name.clone(),
                    value: group.value.clone(),
                    rows: group.rows.len() as u64,
                    weight: group.rows.iter().map(|row| weight(*row)).sum(),
                    clusters: clusters
                        .map_or(group.rows.len() as u64, |c| c.iter().max().map_or(0, |c| u64::from(*c) + 1)),
                    suppressed: *suppressed,
                });
            }
        }
        // What the caller knows of the same groups is the same; nothing of it is lost if he knows more of them.
        let known = |g: &&Group| !groups.iter().any(|own| own.attribute == g.attribute && own.value == g.value);
        let more: Vec<Group> = given.iter().filter(known).cloned().collect();
        groups.extend(more);
        groups
    }

    fn warn(&mut self, groups: &[Group]) {
        self.warnings.extend(warnings::of_data(self.settings, self.table, groups));
        self.warnings.extend(warnings::of_search(self.held.searched));
    }
}

/// Place of a figure of all rows.
fn overall(model: usize, measure: &str) -> Place<'_> {
    Place {
        model,
        versus: None,
        attribute: None,
        at: base::At::Overall,
        group: None,
        control: None,
        measure,
        class: None,
    }
}
