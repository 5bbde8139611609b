//! A scripted audit: its state is a hash that each batch mixes on, with every model, shadow and row set that it was given.
//!
//! As with the scripted training, a batch done twice, left out or from a wrong checkpoint ends in another report.

use std::collections::BTreeSet;

use super::*;
use crate::audit::AuditError;
use crate::audit::report::{Data, Report, VERSION};
use crate::audit::scoring::{Progress as Step, Subject};
use crate::audit::settings::Settings as AuditSettings;
use crate::turns::Stopped;

/// Batches of an audit of the script.
pub(super) const BATCHES: u64 = 5;

pub(super) struct Script {
    pub(super) hooks: Hooks,
}

struct Play {
    hooks: Hooks,
    settings: AuditSettings,
    subjects: Vec<Subject>,
    done: u64,
    state: [u8; 32],
}

fn fault(error: TrainError) -> AuditError {
    AuditError::Data(error.to_string())
}

fn rows(set: &BTreeSet<[u8; 32]>) -> [u8; 32] {
    set.iter().fold(Sha256::new(), |digest, hash| digest.chain_update(hash)).finalize().into()
}

impl Auditing for Script {
    fn start(
        &self,
        _: &str,
        dataset: &Arc<Dataset>,
        settings: &AuditSettings,
        subjects: Vec<Subject>,
        checkpoint: Option<&[u8]>,
    ) -> Result<Box<dyn AuditWork>, AuditError> {
        self.hooks.at(Moment::Begin).map_err(fault)?;
        let mut begin = Sha256::new_with_prefix(&dataset.id);
        for subject in &subjects {
            begin.update(subject.adapter.as_ref().map_or("", |tuned| tuned.generation.as_str()));
            begin.update(subject.trained_on.as_ref().map_or([0; 32], |set| rows(set)));
            for shadow in subject.shadows.iter().chain(&subject.planted) {
                let adapter = (shadow.load)()?;
                assert_eq!(adapter.generation().to_string(), shadow.generation);
                begin.update(adapter.generation().to_string());
                begin.update(rows(&shadow.trained_on));
            }
        }
        let (done, state) = match checkpoint {
            None => (0, begin.finalize().into()),
            Some(bytes) => (u64::from_be_bytes(bytes[..8].try_into().unwrap()), bytes[8..].try_into().unwrap()),
        };
        Ok(Box::new(Play { hooks: self.hooks.clone(), settings: settings.clone(), subjects, done, state }))
    }
}

impl AuditWork for Play {
    fn advance(&mut self, slices: &dyn Slices) -> Result<Step, AuditError> {
        self.done += 1;
        let hooks = self.hooks.clone();
        slices.run(|| hooks.at(Moment::Score(self.done)).map_err(fault))?;
        slices.run(|| {
            let next = Sha256::new().chain_update(self.state).chain_update(self.done.to_be_bytes()).finalize();
            self.state = next.into();
            Ok::<_, AuditError>(())
        })?;
        let model = self.subjects[self.done as usize % self.subjects.len()].model.name.clone();
        Ok(Step { model, done: self.done, total: BATCHES, tokens: 0, last: self.done == BATCHES })
    }

    fn checkpoint(&self) -> Result<Vec<u8>, AuditError> {
        self.hooks.at(Moment::Written(self.done)).map_err(fault)?;
        Ok([&self.done.to_be_bytes()[..], &self.state].concat())
    }

    fn report(self: Box<Self>, stop: &(dyn Fn() -> bool + Sync)) -> Result<Report, AuditError> {
        assert_eq!(self.done, BATCHES, "a report of half an audit");
        self.hooks.at(Moment::Report).map_err(fault)?;
        if stop() {
            return Err(Stopped.into());
        }
        let data = Data {
            dataset: "digest".into(),
            rows: BATCHES,
            sha256: hex::encode(self.state),
            weight: 1.0,
            clusters: 1,
            duplicates: 0,
            truncated: 0,
            labels: vec![],
        };
        Ok(Report {
            version: VERSION,
            software: "test".into(),
            settings: self.settings,
            base: None,
            data,
            models: self.subjects.into_iter().map(|subject| subject.model).collect(),
            groups: vec![],
            figures: vec![],
            reliability: vec![],
            rocs: vec![],
            preferences: vec![],
            tests: 0,
            warnings: vec![],
            matched: None,
        })
    }
}
