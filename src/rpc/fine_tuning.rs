//! FineTuningService: checks what a job is to do and hands it to `jobs`.
//!
//! Reads no row and trains nothing.

use prost::Message as _;
use tonic::{Request, Response, Status};

use super::adapters::expected;
use super::context::Context;
use super::fields::{checked, name, request_id, request_key};
use super::jobs::{in_jobs, job_out};
use super::names;
use super::pb;
use super::training;
use super::violations::Violations;
use crate::jobs::{FineTuning, Jobs, checkpoint_name};
use crate::registry::Name;

/// More checkpoints are refused in any case.
const MAX_CHECKED: usize = 64;

/// Answers FineTuningService.
#[derive(Debug)]
pub(super) struct FineTunings {
    pub(super) jobs: Jobs,
    /// Tokens of the longest sequence of the base model.
    pub(super) context_length: usize,
}

#[tonic::async_trait]
impl pb::fine_tuning_service_server::FineTuningService for FineTunings {
    async fn create_fine_tuning_job(
        &self,
        request: Request<pb::CreateFineTuningJobRequest>,
    ) -> Result<Response<pb::Job>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let mut v = Violations::default();
        let id = std::mem::take(&mut wire.request_id);
        request_id(&mut v, "request_id", &id);
        let request = request_key("CreateFineTuningJob", id, &wire.encode_to_vec());
        let wanted = wanted(&mut v, wire, self.context_length);
        let wanted = checked(v, wanted)?;
        let job = in_jobs(&self.jobs, &context, move |jobs| jobs.create(wanted, request.as_ref())).await?;
        Ok(Response::new(job_out(job)))
    }
}

fn wanted(v: &mut Violations, wire: pb::CreateFineTuningJobRequest, context: usize) -> Option<FineTuning> {
    let adapter = name(v, "adapter", &wire.adapter);
    let alias = (!wire.alias.is_empty()).then(|| name(v, "alias", &wire.alias)).flatten();
    v.require("alias", wire.alias.is_empty() || wire.alias != wire.adapter, "must differ from adapter");
    let last = wire.settings.as_ref().and_then(|settings| settings.publish_steps.iter().max()).copied();
    let checkpoint = |step| checkpoint_name(&wire.adapter, step);
    let fits = adapter.is_none() || last.is_none_or(|last| Name::parse(&checkpoint(last)).is_some());
    v.require(
        "adapter",
        fits,
        "must leave room for the names of checkpoints, NAME.checkpoint-STEP, of at most 63 bytes",
    );
    let steps = wire.settings.iter().flat_map(|settings| &settings.publish_steps);
    let own = steps.take(MAX_CHECKED).any(|step| checkpoint(*step) == wire.alias);
    v.require("alias", !own, "must differ from the names of checkpoints");
    names::dataset(v, "dataset", &wire.dataset);
    let expected = expected(v, "expected_generation", wire.expected_generation.as_deref());
    let settings = training::settings(v, wire.settings, context);
    let base = (!wire.base_model.is_empty()).then_some(wire.base_model);
    let (pinned, allow_no_effect, dataset) = (wire.pinned, wire.allow_no_effect, wire.dataset);
    adapter.map(|adapter| FineTuning { adapter, expected, alias, pinned, allow_no_effect, dataset, base, settings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_faults_of_a_request_are_told_at_once() {
        let wire = pb::CreateFineTuningJobRequest {
            adapter: "A".into(),
            dataset: "x\n".into(),
            expected_generation: Some("12".into()),
            alias: "A".into(),
            settings: Some(pb::TrainingSettings { batch_size: Some(0), ..Default::default() }),
            ..Default::default()
        };
        let mut v = Violations::default();
        assert!(wanted(&mut v, wire, 64).is_none());
        let fields = ["adapter", "alias", "alias", "dataset", "expected_generation", "settings.batch_size"];
        assert_eq!(v.fields(), fields);
        let mut v = Violations::default();
        let wire = |adapter: &str, alias: &str| pb::CreateFineTuningJobRequest {
            adapter: adapter.into(),
            dataset: "d".into(),
            alias: alias.into(),
            settings: Some(pb::TrainingSettings { publish_steps: vec![7, 10], ..Default::default() }),
            ..Default::default()
        };
        // `.checkpoint-10` has 14 bytes.
        for (adapter, alias, fields) in [
            ("x".repeat(49), "live", vec![]),
            ("x".repeat(50), "live", vec!["adapter"]),
            ("a".into(), "a.checkpoint-7", vec!["alias"]),
            ("a".into(), "a.checkpoint-8", vec![]),
        ] {
            let mut v = Violations::default();
            wanted(&mut v, wire(&adapter, alias), 64);
            assert_eq!(v.fields(), fields, "{adapter} {alias}");
        }
        let least = pb::CreateFineTuningJobRequest { adapter: "a".into(), dataset: "d".into(), ..Default::default() };
        let least = wanted(&mut v, least, 64).unwrap();
        assert!(v.list().is_empty() && least.alias.is_none());
    }
}
