//! AuditScores: takes uploaded scores from the wire, column by column, and has them audited off the async threads.
//!
//! Checks forms, lengths, the number of rows and what they take of memory as messages come; what the values are is
//! checked by `audit::uploaded`, all at once. Keeps nothing but the report, and that only where a name is given. Requests
//! go first, and who has left is not computed for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prost::Message as _;
use sha2::{Digest, Sha256};
use tonic::{Status, Streaming};

use super::audit_settings;
use super::audit_signals;
use super::audits::Audits;
use super::context::Context;
use super::fields::{checked, name, request_id};
use super::names::all_differ;
use super::pb::{self, audit_scores_request::Part};
use super::services::blocking;
use super::status::{self, Reason};
use super::upload::Memory;
use super::violations::Violations;
use crate::audit::assess::AssessError;
use crate::audit::report::Report;
use crate::audit::settings::Settings;
use crate::audit::uploaded::{
    self, Labels, Scores, Uploaded, UploadedAttribute, UploadedError, UploadedGroups, UploadedMembership,
    UploadedModel, UploadedSignals,
};
use crate::store::{Name, RequestKey};

/// Longest wait for the next message.
const SILENCE: Duration = Duration::from_secs(60);
const MAX_MODELS: usize = 64;
const MAX_CLASSES: usize = 1024;
const MAX_COLUMNS: usize = 64;
const MAX_SHADOWS: usize = 1024;
/// Faults that a refusal names.
const MOST_FAULTS: usize = 20;
/// Bytes of a text beside its letters: what stands for it, and what an allocator adds.
const TEXT: u64 = 40;
/// Bytes of a list.
const LIST: u64 = 24;
/// A column that grows has room for up to twice what is in it.
const GROWING: u64 = 2;

/// Everything that came.
pub(super) struct Received {
    name: Option<Name>,
    request: Option<RequestKey>,
    settings: Settings,
    uploaded: Uploaded,
    memory: Memory,
}

/// What comes while it comes.
struct Receiver {
    uploaded: Uploaded,
    rows: u64,
    classes: usize,
    positive_only: Vec<bool>,
    label_numbers: Vec<u32>,
    signals: Vec<UploadedSignals>,
    memory: Memory,
}

/// Takes the whole stream.
///
/// # Errors
/// INVALID_FIELD for the header, SCORES_INVALID for rows that do not fit it, TOO_MANY_ROWS, UPLOAD_TOO_LARGE, QUEUE_FULL;
/// DEADLINE_EXCEEDED when no message comes for long.
pub(super) async fn receive(
    mut stream: Streaming<pb::AuditScoresRequest>,
    max_rows: u64,
    memory: Memory,
) -> Result<Received, Status> {
    let mut memory = Some(memory);
    let mut hash = Sha256::new();
    let mut begun: Option<(pb::ScoresHeader, Settings, Option<Name>, Receiver)> = None;
    loop {
        let message =
            tokio::time::timeout(SILENCE, stream.message()).await.map_err(|_| status::deadline_exceeded())??;
        let Some(message) = message else { break };
        match (message.part, &mut begun) {
            (Some(Part::Header(mut header)), None) => {
                let id = std::mem::take(&mut header.request_id);
                hash.update(header.encode_to_vec());
                header.request_id = id;
                let Some(memory) = memory.take() else { continue };
                begun = Some(begin(header, memory)?);
            }
            (Some(Part::Rows(rows)), Some((_, _, _, receiver))) => {
                hash.update(rows.encode_to_vec());
                receiver.rows(rows, max_rows)?;
            }
            (Some(Part::Shadows(shadow)), Some((_, _, _, receiver))) => {
                hash.update(shadow.encode_to_vec());
                receiver.shadow(shadow)?;
            }
            (Some(Part::Header(_)), Some(_)) => {
                return Err(status::field(Reason::InvalidField, "header", "must be the first message only"));
            }
            (Some(_), None) => return Err(status::field(Reason::InvalidField, "header", "must be the first message")),
            (None, _) => return Err(status::field(Reason::InvalidField, "part", "must be given")),
        }
    }
    let Some((header, mut settings, name, receiver)) = begun else {
        return Err(status::field(Reason::InvalidField, "header", "must be the first message"));
    };
    let id = header.request_id;
    let request =
        (!id.is_empty()).then(|| RequestKey { method: "AuditScores", id, fingerprint: hash.finalize().into() });
    let (uploaded, mut memory) = receiver.finish()?;
    audit_signals::settle(&mut settings, &uploaded)?;
    memory.grow(uploaded::audited_bytes(&settings, &uploaded))?;
    Ok(Received { name, request, settings, uploaded, memory })
}

fn begin(
    header: pb::ScoresHeader,
    memory: Memory,
) -> Result<(pb::ScoresHeader, Settings, Option<Name>, Receiver), Status> {
    let mut v = Violations::default();
    request_id(&mut v, "header.request_id", &header.request_id);
    let own = (!header.name.is_empty()).then(|| name(&mut v, "header.name", &header.name)).flatten();
    // Without classes there is membership alone.
    let alone = header.labels.is_empty() && !header.multi_label;
    let least = if alone {
        0
    } else if header.multi_label {
        1
    } else {
        2
    };
    let lists = [
        ("header.labels", &header.labels, least, MAX_CLASSES),
        ("header.models", &header.models, 1, MAX_MODELS),
        ("header.attributes", &header.attributes, 0, MAX_COLUMNS),
        ("header.controls", &header.controls, 0, MAX_COLUMNS),
    ];
    for (field, list, least, most) in lists {
        let sound = (least..=most).contains(&list.len()) && all_differ(list);
        let sound = sound && list.iter().all(|name| (1..=1024).contains(&name.len()));
        v.require(field, sound, &format!("must be {least} to {most} different names of 1 to 1024 bytes"));
    }
    let settings = audit_settings::uploaded(&mut v, header.settings.clone(), (header.labels.len(), header.multi_label));
    if let Some(settings) = &settings {
        audit_settings::reference(&mut v, settings, header.models.iter().map(String::as_str));
    }
    let settings = checked(v, settings)?;
    let column = |name: &String| UploadedAttribute { name: name.clone(), groups: UploadedGroups::Values(Vec::new()) };
    let model = |name: &String| UploadedModel { name: name.clone(), scores: Scores::None };
    let receiver = Receiver {
        uploaded: Uploaded {
            classes: header.labels.clone(),
            multi_label: header.multi_label,
            labels: match (header.multi_label, alone) {
                (true, _) => Labels::Several(Vec::new()),
                (false, false) => Labels::One(Vec::new()),
                (false, true) => Labels::None,
            },
            models: header.models.iter().map(model).collect(),
            attributes: header.attributes.iter().map(column).collect(),
            controls: header.controls.iter().map(column).collect(),
            ..Uploaded::default()
        },
        rows: 0,
        classes: header.labels.len(),
        positive_only: vec![false; header.models.len()],
        label_numbers: Vec::new(),
        signals: vec![UploadedSignals::default(); header.models.len()],
        memory,
    };
    Ok((header, settings, own, receiver))
}

impl Receiver {
    fn rows(&mut self, wire: pb::ScoresRows, max_rows: u64) -> Result<(), Status> {
        let mut v = Violations::default();
        let classes = self.classes;
        let rows = match self.uploaded.labels {
            Labels::Several(_) => wire.label_flags.len() / classes,
            Labels::One(_) => wire.labels.len(),
            Labels::None => wire.models.first().map_or(0, |model| model.members.len()),
        };
        let first = self.rows as usize;
        self.rows += rows as u64;
        if self.rows > max_rows {
            let text = format!("more than {max_rows} rows (audits.max_uploaded_rows)");
            return Err(status::field(Reason::TooManyRows, "rows", &text));
        }
        let text = "must hold rows: labels, or, where the header names no class, members";
        v.require("rows", rows > 0, text);
        self.memory.grow(kept_bytes(&self.uploaded.classes, &wire))?;
        self.labels(&mut v, &wire, first);
        v.require("models", wire.models.len() == self.uploaded.models.len(), "must be one a model of the header");
        for (i, scores) in wire.models.into_iter().enumerate().take(self.uploaded.models.len()) {
            self.scores(&mut v, i, scores, (first, rows));
        }
        for (field, columns, own) in [
            ("attributes", wire.attributes, &mut self.uploaded.attributes),
            ("controls", wire.controls, &mut self.uploaded.controls),
        ] {
            v.require(field, columns.len() == own.len(), "must be one a name of the header");
            for (i, (values, own)) in columns.into_iter().zip(own).enumerate() {
                groups(&mut v, &format!("{field}[{i}]"), values, own, (first, rows));
            }
        }
        some_or_none(&mut v, "weights", wire.weights, &mut self.uploaded.weights, (first, rows));
        some_or_none(&mut v, "clusters", wire.clusters, &mut self.uploaded.clusters, (first, rows));
        if v.list().is_empty() { Ok(()) } else { Err(invalid(&v)) }
    }

    fn labels(&mut self, v: &mut Violations, wire: &pb::ScoresRows, first: usize) {
        let names = &self.uploaded.classes;
        match &mut self.uploaded.labels {
            Labels::Several(rows) => {
                v.require("labels", wire.labels.is_empty(), "must be empty for several labels a row");
                let whole = wire.label_flags.len().is_multiple_of(names.len());
                v.require("label_flags", whole, "must be one a class of every row");
                for flags in wire.label_flags.chunks_exact(names.len()) {
                    let of_row = flags.iter().zip(names).filter(|(flag, _)| **flag).map(|(_, name)| name.clone());
                    rows.push(of_row.collect());
                }
            }
            Labels::One(_) => {
                v.require("label_flags", wire.label_flags.is_empty(), "must be empty for one label a row");
                for (row, label) in wire.labels.iter().enumerate() {
                    if *label as usize >= names.len() {
                        v.add(format!("labels[{}]", first + row), format!("must be below {}", names.len()));
                    }
                }
                self.label_numbers.extend(&wire.labels);
            }
            Labels::None => {
                let none = wire.labels.is_empty() && wire.label_flags.is_empty();
                v.require("labels", none, "must be empty where the header names no class");
            }
        }
    }

    fn scores(&mut self, v: &mut Violations, i: usize, wire: pb::ModelScores, (first, rows): (usize, usize)) {
        let field = format!("models[{i}].probabilities");
        let classes = self.classes;
        let one = !self.uploaded.multi_label && classes == 2 && wire.probabilities.len() == rows;
        let sound = one || wire.probabilities.len() == rows * classes;
        v.require(&field, sound, "must be one a class of every row");
        let own = &mut self.uploaded.models[i].scores;
        if first == 0 && classes > 0 {
            self.positive_only[i] = one;
            *own = if one { Scores::Positive(Vec::new()) } else { Scores::Classes(Vec::new()) };
        }
        v.require(&field, self.positive_only[i] == one, "must be of one form in all messages");
        if let Scores::Positive(all) | Scores::Classes(all) = own {
            all.extend(wire.probabilities);
        }
        let signals = &mut self.signals[i];
        for (field, got, before) in [
            ("members", wire.members.len(), signals.members.len()),
            ("signals", wire.signals.len(), signals.signals.len()),
            ("reference_signals", wire.reference_signals.len(), signals.reference_signals.len()),
        ] {
            let sound = got == if before == first && (first == 0 || before > 0) && got > 0 { rows } else { 0 };
            v.require(&format!("models[{i}].{field}"), sound, "must be one a row, in all messages or in none");
        }
        signals.members.extend(wire.members);
        signals.signals.extend(wire.signals);
        signals.reference_signals.extend(wire.reference_signals);
    }

    fn shadow(&mut self, wire: pb::ShadowSignals) -> Result<(), Status> {
        let invalid = |field: &str, text: &str| Err(status::field(Reason::ScoresInvalid, field, text));
        let Some(signals) = self.signals.get_mut(wire.model as usize) else {
            return invalid("shadows.model", "is not the number of a model");
        };
        if signals.shadow_signals.len() >= MAX_SHADOWS {
            return invalid("shadows", "are too many, at most 1024 a model");
        }
        if wire.signals.len() != wire.members.len() {
            return invalid("shadows.members", "must be one a signal");
        }
        // The message is kept as it is.
        self.memory.grow(2 * LIST + wire.signals.len() as u64 * 9)?;
        signals.shadow_signals.push(wire.signals);
        signals.shadow_members.push(wire.members);
        Ok(())
    }

    fn finish(mut self) -> Result<(Uploaded, Memory), Status> {
        if self.rows == 0 {
            return Err(status::field(Reason::ScoresInvalid, "rows", "must be sent"));
        }
        if let Labels::One(labels) = &mut self.uploaded.labels {
            *labels = self.label_numbers.iter().map(|label| self.uploaded.classes[*label as usize].clone()).collect();
        }
        let asked = self.signals.iter().any(|signals| *signals != UploadedSignals::default());
        if asked {
            for (i, signals) in self.signals.iter_mut().enumerate() {
                if signals.signals.is_empty() {
                    signals.signals = own_signals(&self.uploaded, i, &self.label_numbers);
                }
            }
            self.uploaded.membership = Some(UploadedMembership { models: self.signals });
        }
        Ok((self.uploaded, self.memory))
    }
}

/// Bytes of what is kept of a message, its labels by name.
fn kept_bytes(classes: &[String], wire: &pb::ScoresRows) -> u64 {
    let text = |text: &String| TEXT + text.len() as u64;
    let class = |label: usize| classes.get(label).map_or(0, text);
    let labels = wire.labels.iter().map(|label| class(*label as usize) + 4);
    let flags = wire.label_flags.iter().enumerate().filter(|(_, flag)| **flag);
    let flags = flags.map(|(i, _)| class(i % classes.len().max(1)));
    let lists = LIST * (wire.label_flags.len() / classes.len().max(1)) as u64;
    // Signals that do not come are made.
    let model = |model: &pb::ModelScores| {
        let (scores, members, signals) = (model.probabilities.len(), model.members.len(), model.signals.len());
        let references = model.reference_signals.len();
        GROWING * (8 * scores + members + 8 * (signals.max(members) + references)) as u64
    };
    let group = |group: &pb::GroupValues| {
        let values = group.values.iter().map(|value| {
            let value = (*value as usize).checked_sub(1).and_then(|at| group.dictionary.get(at));
            GROWING * LIST + value.map_or(0, text)
        });
        let names = group.dictionary.iter().map(text);
        values.chain(names).fold(GROWING * group.flags.len() as u64, u64::saturating_add)
    };
    let groups = wire.attributes.iter().chain(&wire.controls).map(group);
    let weights = GROWING * 8 * wire.weights.len() as u64;
    let clusters = wire.clusters.iter().map(|cluster| text(cluster) + LIST);
    let all = labels.chain(flags).chain(wire.models.iter().map(model)).chain(groups).chain(clusters);
    all.fold(lists + weights, u64::saturating_add)
}

/// Says when it is dropped, with the call that it belongs to, that nobody waits for the answer any more.
struct Left(Arc<AtomicBool>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// ln p − ln(1 − p) of the true class, within what an f64 can tell from 0 and 1.
fn own_signals(uploaded: &Uploaded, model: usize, labels: &[u32]) -> Vec<f64> {
    let logit = |p: f64| {
        let p = p.clamp(1e-16, 1.0 - 1e-16);
        p.ln() - (-p).ln_1p()
    };
    match &uploaded.models[model].scores {
        Scores::Positive(all) => {
            all.iter().zip(labels).map(|(p, label)| logit(if *label == 1 { *p } else { 1.0 - p })).collect()
        }
        Scores::Classes(all) if !uploaded.multi_label => {
            let rows = all.chunks_exact(uploaded.classes.len()).zip(labels);
            rows.map(|(row, label)| logit(row[*label as usize])).collect()
        }
        Scores::Classes(_) | Scores::None => Vec::new(),
    }
}

fn groups(
    v: &mut Violations,
    field: &str,
    wire: pb::GroupValues,
    own: &mut UploadedAttribute,
    (first, rows): (usize, usize),
) {
    let overlapping = wire.values.is_empty() && !wire.flags.is_empty();
    if first == 0 && overlapping {
        own.groups = UploadedGroups::Flags(wire.dictionary.clone(), Vec::new());
    }
    match &mut own.groups {
        UploadedGroups::Flags(names, flags) => {
            v.require(&format!("{field}.dictionary"), *names == wire.dictionary, "must be the same in all messages");
            let sound = wire.flags.len() == rows * names.len() && wire.values.is_empty();
            v.require(&format!("{field}.flags"), sound, "must be one a group of every row");
            flags.extend(wire.flags);
        }
        UploadedGroups::Values(values) => {
            let sound = wire.values.len() == rows && wire.flags.is_empty();
            v.require(&format!("{field}.values"), sound, "must be one a row");
            for (row, value) in wire.values.iter().enumerate() {
                let name = (*value as usize).checked_sub(1).map(|at| wire.dictionary.get(at));
                if name == Some(None) {
                    let text = format!("must be 0 to {}", wire.dictionary.len());
                    v.add(format!("{field}.values[{}]", first + row), text);
                }
                values.push(name.flatten().cloned());
            }
        }
    }
}

fn some_or_none<T>(
    v: &mut Violations,
    field: &str,
    wire: Vec<T>,
    own: &mut Option<Vec<T>>,
    (first, rows): (usize, usize),
) {
    if first == 0 && !wire.is_empty() {
        *own = Some(Vec::new());
    }
    let expected = if own.is_some() { rows } else { 0 };
    v.require(field, wire.len() == expected, "must be one a row, in all messages or in none");
    if let Some(own) = own {
        own.extend(wire);
    }
}

fn invalid(v: &Violations) -> Status {
    let faults = v.list().iter().take(MOST_FAULTS).map(|fault| (fault.field.clone(), fault.description.clone()));
    status::faults(Reason::ScoresInvalid, faults.collect())
}

impl Audits {
    /// Audits what was received, and keeps the report where it has a name.
    pub(super) async fn assess(&self, context: &Context, received: Received) -> Result<(String, Report), Status> {
        let Received { name, request, settings, uploaded, memory } = received;
        let left = Arc::new(AtomicBool::new(false));
        let _call = Left(Arc::clone(&left));
        let jobs = self.jobs.clone();
        let audited = blocking(context, move || {
            // Given back when the work has ended, not when the caller leaves.
            let _memory = memory;
            uploaded::audit(&settings, &uploaded, env!("CARGO_PKG_VERSION"), &|| jobs.yields(&left))
        });
        let report = audited.await?.map_err(|error| refused(&error, context))?;
        let Some(name) = name else {
            let bytes = report.canonical().map_err(|error| status::internal(&error, &context.request_id))?;
            return Ok((hex::encode(Sha256::digest(bytes)), report));
        };
        self.ask(context, move |reports| {
            let summary = reports.put(&name, None, &report, request.as_ref())?;
            Ok((summary.id, report))
        })
        .await
    }
}

/// Faults by their place in the request.
fn refused(error: &UploadedError, context: &Context) -> Status {
    match error {
        UploadedError::Faults(faults) => {
            let place = |fault: &uploaded::Fault| {
                let row = fault.row.map(|row| format!("[{row}]")).unwrap_or_default();
                let field = fault.field.replace(".scores", ".probabilities").replace("membership.models", "models");
                (format!("{field}{row}"), fault.problem.clone())
            };
            status::faults(Reason::ScoresInvalid, faults.iter().take(MOST_FAULTS).map(place).collect())
        }
        // Who has left does not see it.
        UploadedError::Audit(AssessError::Stopped) => status::draining(),
        UploadedError::Audit(error @ AssessError::Threads { .. }) => status::internal(error, &context.request_id),
        UploadedError::Audit(
            error @ (AssessError::UnknownMeasure { .. } | AssessError::Rows { .. } | AssessError::Groups { .. }),
        ) => status::field(Reason::InvalidField, "settings", &error.to_string()),
    }
}
