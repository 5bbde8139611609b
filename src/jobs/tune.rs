//! The life of a fine-tuning: begin or go on, step by step, checkpoints that are wanted on the way, then publish.
//!
//! Runs on the runner's thread, which writes down how it ended. Everything here may be done twice. What is published on
//! the way is in the job's own checkpoint first: a run that is taken up again has it, and publishes what was not.

use std::time::Instant;

use super::changes::Inner;
use super::failure::Halt;
use super::pace::{Due, Paced, Speed};
use super::rows::corrupt;
use super::runner::End;
use super::{Advance, Event, Job, JobId, Made, Published, Tuning, Work, checkpoint_name, expected_of};
use crate::registry::{AdapterFiles, Demand, Expected, Lineage, Name, Publish, Reference, RegistryError};
use crate::store::StoreError;
use crate::train::{Output, Progress, TrainError};

impl Inner {
    pub(super) fn tune(&self, job: &Job, tuning: &Tuning, paced: &Paced<'_>) -> Result<End, Halt> {
        // Of an audit's job a checkpoint may have been deleted since: the run is done again, for it alone.
        let is_whole = job.unpublished().0.is_empty();
        if is_whole && let Some(made) = self.published(job, tuning)? {
            return self.settle(job, tuning, made);
        }
        self.may_begin(job, paced)?;
        let dataset = self.parts.rows.read(&job.dataset)?;
        let bytes = self.checkpoint_of(job)?;
        let mut work = self.parts.training.start(&job.base, &dataset, &tuning.settings, bytes.as_deref())?;
        drop((dataset, bytes));
        if let Some(checkpoint) = &job.checkpoint {
            self.publish_checkpoint(job, tuning, work.as_ref(), checkpoint.step, paced)?;
        }
        if !job.checkpoint.as_ref().is_some_and(|checkpoint| checkpoint.last)
            && !self.train(job, tuning, work.as_mut(), paced)?
        {
            return Ok(End::Interrupted);
        }
        paced.check()?;
        let made = match self.published(job, tuning)? {
            Some(made) => made,
            None => {
                let output = work.output()?;
                // Its memory is needed to load the result.
                drop(work);
                paced.check()?;
                self.publish(job, tuning, None, output)?
            }
        };
        self.settle(job, tuning, made)
    }

    /// Goes from step to step; returns whether the last one is done, else the server drains.
    fn train(&self, job: &Job, tuning: &Tuning, work: &mut dyn Work, paced: &Paced<'_>) -> Result<bool, Halt> {
        let mut speed = Speed::default();
        let mut due = Due::new(&self.parts.settings, job.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step));
        let mut at = due.kept();
        loop {
            if self.lock().draining {
                if at > due.kept() {
                    self.keep_at_last(job.id, at, |out| Ok(work.checkpoint(out)?));
                }
                return Ok(false);
            }
            let begin = Instant::now();
            let progress = checked(work.advance(paced)?)?;
            let elapsed = begin.elapsed();
            at = progress.step;
            let metrics = &self.parts.metrics;
            metrics.training_steps.inc();
            metrics.training_tokens.inc_by(progress.tokens);
            metrics.training_loss.set(progress.loss);
            metrics.training_step_seconds.observe(elapsed.as_secs_f64());
            let last = progress.last;
            let left = if last { 0 } else { progress.total_steps.saturating_sub(at) };
            let (tokens_per_second, eta_seconds) = speed.note(progress.tokens, elapsed, left);
            let step_seconds = speed.seconds();
            self.show(job.id, Advance { progress, tokens_per_second, eta_seconds, step_seconds })?;
            if last || tuning.settings.publish_steps.contains(&at) || due.is_due(at) {
                self.keep(job.id, (at, last), |out| Ok(work.checkpoint(out)?))?;
                due.note(at);
            }
            self.publish_checkpoint(job, tuning, work, at, paced)?;
            if last {
                return Ok(true);
            }
        }
    }

    /// Writes the event of a step, unless it was written before a restart.
    fn show(&self, id: JobId, advance: Advance) -> Result<(), Halt> {
        self.update(id, |job| {
            let seen = job.last.as_ref().map_or(0, |last| last.progress.step);
            (advance.progress.step > seen).then(|| {
                job.last = Some(advance.clone());
                Event::Step(Box::new(advance))
            })
        })?;
        Ok(())
    }

    /// Publishes the weights of a step that was just done, where they are wanted and no run before has published them.
    fn publish_checkpoint(
        &self,
        job: &Job,
        tuning: &Tuning,
        work: &dyn Work,
        step: u64,
        paced: &Paced<'_>,
    ) -> Result<(), Halt> {
        let is_there = job.published.iter().any(|kept| kept.step == step);
        if is_there || !tuning.settings.publish_steps.contains(&step) {
            return Ok(());
        }
        let made = match self.find(job, &checkpoint_name(&tuning.adapter, step), Some(step))? {
            Some(made) => made,
            None => {
                paced.check()?;
                self.publish(job, tuning, Some(step), work.latest()?)?
            }
        };
        let Made::Generation { adapter, generation } = made else { return Err(damaged(job).into()) };
        let kept = Published { step, adapter, generation };
        self.update(job.id, |job| {
            let at = job.published.partition_point(|other| other.step < step);
            job.published.insert(at, kept.clone());
            Some(Event::Published(Box::new(kept)))
        })?;
        Ok(())
    }

    /// Returns the result that a job has published before a restart.
    fn published(&self, job: &Job, tuning: &Tuning) -> Result<Option<Made>, Halt> {
        if job.made.is_some() {
            return Ok(job.made.clone());
        }
        self.find(job, &tuning.adapter, None)
    }

    /// Finds what a job has published under a name: its result, or the checkpoint of a step.
    fn find(&self, job: &Job, adapter: &str, step: Option<u64>) -> Result<Option<Made>, Halt> {
        let record = match self.parts.registry.get(&name(adapter)?) {
            Ok(record) => record,
            Err(RegistryError::AdapterNotFound(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let id = job.id.to_string();
        let mine = |lineage: &Lineage| lineage.job == id && lineage.step == step;
        let generation = record.generations.into_iter().find(|stored| stored.lineage.as_ref().is_some_and(mine));
        Ok(generation.map(|generation| Made::Generation { adapter: record.name, generation: generation.id }))
    }

    /// Publishes the result, or the checkpoint of a step.
    fn publish(&self, job: &Job, tuning: &Tuning, step: Option<u64>, output: Output) -> Result<Made, Halt> {
        let place = step.and_then(|step| tuning.settings.publish_steps.iter().position(|other| *other == step));
        // A checkpoint's own, where it was written down.
        let own = place.and_then(|place| tuning.expected_checkpoints.get(place));
        let expected = expected_of(own.or(tuning.expected.as_ref()).map(String::as_str));
        let expected: Expected = expected.ok_or_else(|| damaged(job))?;
        let lineage = Lineage {
            job: job.id.to_string(),
            dataset: job.dataset.clone(),
            base: job.base.clone(),
            settings: serde_json::to_value(&tuning.settings).map_err(|_| damaged(job))?,
            parent: None,
            audit: job.parent.map(String::from),
            step,
        };
        let adapter = step.map_or_else(|| tuning.adapter.clone(), |step| checkpoint_name(&tuning.adapter, step));
        let publish = Publish {
            name: name(&adapter)?,
            base: Some(job.base.clone()),
            expected,
            // Only the result is what somebody waits for.
            pinned: if step.is_none() { tuning.pinned } else { None },
            allow_no_effect: tuning.allow_no_effect,
            request: None,
            lineage: Some(lineage),
        };
        let files = AdapterFiles { config: output.config, tensors: output.tensors };
        let record = self.parts.registry.publish(files, publish)?;
        Ok(Made::Generation { adapter: record.name, generation: record.current })
    }

    /// Does what follows a publication; all of it may be done twice.
    fn settle(&self, job: &Job, tuning: &Tuning, made: Made) -> Result<End, Halt> {
        if let (Some(alias), Made::Generation { adapter, generation }) = (&tuning.alias, &made) {
            if job.made.as_ref() != Some(&made) {
                self.update(job.id, |job| {
                    job.made = Some(made.clone());
                    None
                })?;
            }
            let target = Reference { name: name(adapter)?, generation: Some(generation.clone()) };
            self.parts.registry.set_alias(&name(alias)?, &target, Expected::Any, Demand::AsItWas, None)?;
        }
        Ok(End::Succeeded(made))
    }
}

/// Refuses numbers that no JSON and no client can take; groups without a row have none.
fn checked(mut progress: Progress) -> Result<Progress, TrainError> {
    progress.groups.retain(|figure| figure.rows > 0);
    if let Some(evaluation) = &mut progress.evaluation {
        evaluation.figures.retain(|figure| figure.rows > 0);
    }
    let figures = progress.groups.iter().chain(progress.evaluation.iter().flat_map(|evaluation| &evaluation.figures));
    let numbers = figures.flat_map(|figure| [figure.loss, figure.accuracy.unwrap_or(0.0)]);
    let own = [progress.loss, progress.grad_norm, progress.learning_rate, progress.epoch];
    match own.into_iter().chain(numbers).find(|number| !number.is_finite()) {
        Some(loss) => Err(TrainError::Diverged { step: progress.step, loss }),
        None => Ok(progress),
    }
}

fn name(text: &str) -> Result<Name, StoreError> {
    Name::parse(text).ok_or_else(|| StoreError::Corrupt(format!("the name `{text}` of a job")))
}

fn damaged(job: &Job) -> StoreError {
    corrupt(&job.id.to_string())
}
