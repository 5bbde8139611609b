//! Which models are run: those asked for, and those that membership needs besides.
//!
//! Says who they are and readies one when its turn has come; runs nothing. A shadow of several models is run once.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::AuditError;
use super::super::error::setting;
use super::super::settings::{Attack, Settings, Task};
use super::compute::{Detail, ImageRunner, Runner, Running};
use super::head;
use super::membership;
use super::{Base, Load, Subject, Tuned};
use crate::dataset::Dataset;
use crate::lora::{AdapterInfo, Classes, Kind};

/// One model to run over all units.
pub(super) struct Pass {
    /// For progress and faults.
    pub(super) name: String,
    /// Tells it from others in a checkpoint.
    pub(super) key: String,
    source: Source,
    scale: f32,
    /// Whether details for attacks are kept.
    detailed: bool,
}

enum Source {
    Base,
    Tuned(Tuned),
    Load(Load),
}

/// All of them; the models asked for come first.
pub(super) struct Passes {
    pub(super) list: Vec<Pass>,
    /// The base model, if it is needed.
    pub(super) base: Option<usize>,
    /// The control, with the subject that brought it.
    pub(super) planted: Option<(usize, usize)>,
    /// One a subject: its shadows.
    pub(super) shadows: Vec<Vec<usize>>,
}

impl Passes {
    /// Lists the models and checks what can be checked before they run.
    pub(super) fn new(base: &Base, settings: &Settings, subjects: &[Subject]) -> Result<Self, AuditError> {
        if subjects.is_empty() {
            return Err(setting("models", "must name at least one model"));
        }
        let mut list = Vec::with_capacity(subjects.len() + 1);
        for (i, subject) in subjects.iter().enumerate() {
            list.push(of_subject(subject, subjects[..i].iter().any(|other| other.model.name == subject.model.name))?);
        }
        let mut passes = Self { list, base: None, planted: None, shadows: vec![Vec::new(); subjects.len()] };
        let Some(asked) = &settings.membership else { return Ok(passes) };
        membership::check(asked, settings, subjects)?;
        // RMIA compares with the base where there are no shadows.
        let alone = subjects.iter().any(|subject| subject.trained_on.is_some() && subject.shadows.is_empty());
        if asked.attacks.contains(&Attack::Reference) || alone && asked.attacks.contains(&Attack::Rmia) {
            let held = subjects.iter().position(|subject| subject.adapter.is_none());
            passes.base = Some(held.unwrap_or_else(|| passes.push("base", base.name(), Source::Base)));
        }
        let mut known: BTreeMap<&str, usize> = BTreeMap::new();
        for (i, subject) in subjects.iter().enumerate() {
            for shadow in &subject.shadows {
                let pass = match known.get(shadow.generation.as_str()) {
                    Some(pass) => *pass,
                    None => {
                        let name = format!("shadow {}", known.len() + 1);
                        passes.push(&name, &shadow.generation, Source::Load(Arc::clone(&shadow.load)))
                    }
                };
                known.insert(&shadow.generation, pass);
                passes.shadows[i].push(pass);
            }
            if let Some(planted) = &subject.planted {
                if passes.planted.is_some() {
                    return Err(setting("membership.planted_control", "one control is enough, two models bring one"));
                }
                let pass = passes.push("control", &planted.generation, Source::Load(Arc::clone(&planted.load)));
                passes.list[pass].detailed = true;
                passes.planted = Some((pass, i));
            }
        }
        Ok(passes)
    }

    fn push(&mut self, name: &str, key: &str, source: Source) -> usize {
        let (name, key) = (name.to_owned(), format!("{name} {key}"));
        self.list.push(Pass { name, key, source, scale: 1.0, detailed: false });
        self.list.len() - 1
    }

    /// Finds faults of heads before anything is computed, where it is known what the adapters are.
    pub(super) fn check(&self, base: &Base, settings: &Settings, dataset: &Dataset) -> Result<(), AuditError> {
        for pass in &self.list {
            match &pass.source {
                Source::Base => drop(order(base, settings, dataset, (&pass.name, None))?),
                Source::Tuned(tuned) => drop(order(base, settings, dataset, (&pass.name, Some(&tuned.info)))?),
                Source::Load(_) => {}
            }
        }
        Ok(())
    }

    /// Readies a model, loading its adapter.
    pub(super) fn start(
        &self,
        pass: usize,
        base: &Base,
        settings: &Settings,
        labels: &Dataset,
    ) -> Result<Running, AuditError> {
        let Some(pass) = self.list.get(pass) else { return Err(setting("models", "there is no such model")) };
        let adapter = match &pass.source {
            Source::Base => None,
            Source::Tuned(Tuned { load, .. }) | Source::Load(load) => Some(load()?),
        };
        let order = order(base, settings, labels, (&pass.name, adapter.as_ref().map(|adapter| adapter.info())))?;
        let detail = if pass.detailed { membership::detail(settings) } else { Detail::default() };
        let adapter = adapter.map(|adapter| (adapter, pass.scale));
        Ok(match base {
            Base::Text(context) => {
                Running::Text(Box::new(Runner::new(Arc::clone(&context.model), adapter, order, detail)))
            }
            Base::Images(context) => Running::Images(ImageRunner::new(Arc::clone(&context.model), adapter, order)),
        })
    }
}

fn of_subject(subject: &Subject, twice: bool) -> Result<Pass, AuditError> {
    let Subject { model, adapter, trained_on, .. } = subject;
    let named = |fault: &str| setting("models", format!("`{}` {fault}", model.name));
    if model.name.is_empty() || twice {
        return Err(named("is no name of its own"));
    }
    let scale = model.scale as f32;
    let scaled = scale.to_bits() != 1_f32.to_bits();
    if !scale.is_finite() {
        return Err(named("has a scale that is no finite number"));
    }
    match adapter {
        None if scaled => return Err(named("is the base model, of which nothing can be scaled")),
        Some(tuned) if scaled && tuned.info.kind != Kind::Lora => {
            return Err(named("is no LoRA adapter: only its low-rank change can be scaled"));
        }
        None | Some(_) => {}
    }
    let source = adapter.clone().map_or(Source::Base, Source::Tuned);
    let generation = adapter.as_ref().map_or("base", |tuned| tuned.generation.as_str());
    let key = format!("{} {generation} {}", model.name, scale.to_bits());
    Ok(Pass { name: model.name.clone(), key, source, scale, detailed: trained_on.is_some() })
}

/// Returns the place of each class among the logits of a model's head; nothing where the task has no head.
fn order(
    base: &Base,
    settings: &Settings,
    dataset: &Dataset,
    (name, adapter): (&str, Option<&AdapterInfo>),
) -> Result<Vec<usize>, AuditError> {
    let base = base.info();
    let fault = |fault: String| AuditError::Head { model: name.to_owned(), fault };
    if settings.task != Task::Head {
        return match base.labels {
            Some(_) => Err(fault("the base model has a classification head, and no language head".to_owned())),
            None => Ok(Vec::new()),
        };
    }
    let own = adapter.and_then(|info| info.classes.as_ref());
    let classes = own.or(base.classes.as_ref()).ok_or_else(|| fault("it has no classification head".to_owned()))?;
    let told = adapter.is_none_or(|info| info.kind == Kind::Full || own.is_some_and(Classes::are_named));
    head::order(classes, told, &dataset.labels, dataset.multi_label).map_err(fault)
}
