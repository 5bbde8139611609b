//! JobService: checks ids, filters and tokens, asks `jobs` off the async threads, and streams events as they come.
//!
//! Keeps nothing: order, durability and state are those of `jobs`. A watch token is the job's id and an event's number;
//! it is no secret, and says the same after a restart.

use std::pin::Pin;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::Stream;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::audit_settings_out::settings_out as audit_settings_out;
use super::context::Context;
use super::fields::{checked, request_id, request_key, timestamp};
use super::page::{self, PageTokens};
use super::pb::{self, watch_job_response};
use super::services::blocking;
use super::status::{self, Reason};
use super::training::{progress_out, settings_out};
use super::violations::Violations;
use crate::jobs::{
    AuditModel, AuditProgress, AuditTask, Event, Job, JobId, JobKind, Jobs, JobsError, Made, ModelSource, Published,
    State, Task, Tuning,
};

/// Events read from the disk at a time.
const BATCH: usize = 256;

/// Answers JobService.
#[derive(Debug)]
pub(super) struct JobCalls {
    pub(super) jobs: Jobs,
    pub(super) pages: PageTokens,
}

/// Runs `work` on the jobs, off the async threads and to its end.
pub(super) async fn in_jobs<T: Send + 'static>(
    jobs: &Jobs,
    context: &Context,
    work: impl FnOnce(&Jobs) -> Result<T, JobsError> + Send + 'static,
) -> Result<T, Status> {
    let jobs = jobs.clone();
    blocking(context, move || work(&jobs)).await?.map_err(|error| status::jobs(&error, context))
}

fn job_id(v: &mut Violations, text: &str) -> Option<JobId> {
    let id = JobId::parse(text);
    v.require("id", id.is_some(), "must be the id of a job, a UUID in lower case with hyphens");
    id
}

/// Checks the two fields of a call that changes one job.
fn change(method: &'static str, id: &str, key: String, content: &[u8]) -> Result<(JobId, Option<Key>), Status> {
    let mut v = Violations::default();
    request_id(&mut v, "request_id", &key);
    let id = job_id(&mut v, id);
    Ok((checked(v, id)?, request_key(method, key, content)))
}

type Key = crate::registry::RequestKey;

fn state_out(state: State) -> pb::JobState {
    match state {
        State::Queued => pb::JobState::Queued,
        State::Running => pb::JobState::Running,
        State::Succeeded => pb::JobState::Succeeded,
        State::Failed => pb::JobState::Failed,
        State::Cancelled => pb::JobState::Cancelled,
    }
}

/// The filter of a list; `None` is no filter.
fn state_in(v: &mut Violations, wire: i32) -> Option<State> {
    match pb::JobState::try_from(wire) {
        Ok(pb::JobState::Unspecified) => None,
        Ok(pb::JobState::Queued) => Some(State::Queued),
        Ok(pb::JobState::Running) => Some(State::Running),
        Ok(pb::JobState::Succeeded) => Some(State::Succeeded),
        Ok(pb::JobState::Failed) => Some(State::Failed),
        Ok(pb::JobState::Cancelled) => Some(State::Cancelled),
        Err(_) => {
            v.add("state", "is not a known value");
            None
        }
    }
}

pub(super) fn job_out(job: Job) -> pb::Job {
    let (resumable, result) = (job.is_resumable(), result_out(&job));
    let kind = match job.kind() {
        JobKind::FineTuning => pb::JobKind::FineTuning,
        JobKind::Audit => pb::JobKind::Audit,
    };
    let (adapter, alias, settings, audit) = match job.task {
        Task::FineTuning(tuning) => {
            let Tuning { adapter, alias, settings, .. } = *tuning;
            (adapter, alias.unwrap_or_default(), Some(settings_out(settings)), None)
        }
        Task::Audit { audit } => (audit.name.clone(), String::new(), None, Some(audit_out(*audit))),
    };
    pb::Job {
        id: job.id.to_string(),
        kind: kind.into(),
        state: state_out(job.state).into(),
        cancelling: job.cancelling,
        create_time: Some(timestamp(job.created)),
        start_time: job.started.map(timestamp),
        end_time: job.ended.map(timestamp),
        adapter,
        alias,
        dataset: job.dataset,
        base_fingerprint: job.base,
        settings,
        progress: job.last.map(progress_out),
        checkpoint_step: job.checkpoint.map_or(0, |checkpoint| checkpoint.step),
        result,
        error: job.failure.map(|failure| pb::JobError { reason: failure.reason, message: failure.message }),
        resumable,
        audit,
        audit_progress: job.audited.map(audit_progress_out),
        parent: job.parent.map(|parent| parent.to_string()).unwrap_or_default(),
    }
}

/// What a job has published so far; of one that has succeeded also what it will not publish.
fn result_out(job: &Job) -> Option<pb::JobResult> {
    let checkpoints: Vec<_> = job.published.iter().cloned().map(published_out).collect();
    let result = match job.made.clone() {
        Some(Made::Generation { adapter, generation }) => pb::JobResult { adapter, generation, ..Default::default() },
        Some(Made::Report { report }) => pb::JobResult { report, ..Default::default() },
        None if checkpoints.is_empty() => return None,
        None => pb::JobResult::default(),
    };
    let unreached_steps = if job.state == State::Succeeded { job.unpublished().1 } else { Vec::new() };
    Some(pb::JobResult { checkpoints, unreached_steps, ..result })
}

fn published_out(published: Published) -> pb::PublishedCheckpoint {
    let Published { step, adapter, generation } = published;
    pb::PublishedCheckpoint { step, adapter, generation }
}

fn audit_out(audit: AuditTask) -> pb::AuditJob {
    let model = |model: AuditModel| {
        let (adapter, generation, job) = match model.source {
            ModelSource::Base => Default::default(),
            ModelSource::Stored { adapter, generation } => (adapter, generation, String::new()),
            ModelSource::Trained { job, adapter } => (adapter, String::new(), job.to_string()),
        };
        pb::AuditJobModel { name: model.name, adapter, generation, scale: model.scale, job, checkpoint: model.step }
    };
    pb::AuditJob {
        models: audit.models.into_iter().map(model).collect(),
        settings: Some(audit_settings_out(audit.settings)),
        children: audit.children.iter().map(ToString::to_string).collect(),
        keep_models: audit.keep_models,
    }
}

fn audit_progress_out(progress: AuditProgress) -> pb::AuditProgress {
    pb::AuditProgress {
        phase: progress.phase.as_str().to_owned(),
        model: progress.model,
        done: progress.done,
        total: progress.total,
        items_per_second: progress.items_per_second,
        eta_seconds: progress.eta_seconds,
    }
}

fn token(id: JobId, number: u64) -> String {
    let mut bytes = id.as_bytes().to_vec();
    bytes.extend(number.to_be_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns the number of the event that a token came with; 0 for the empty token.
fn number(id: JobId, token: &str) -> Option<u64> {
    if token.is_empty() {
        return Some(0);
    }
    let bytes = if token.len() <= 64 { URL_SAFE_NO_PAD.decode(token).ok()? } else { return None };
    let number = bytes.strip_prefix(id.as_bytes())?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

#[tonic::async_trait]
impl pb::job_service_server::JobService for JobCalls {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<pb::WatchJobResponse, Status>> + Send>>;

    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Result<Response<pb::Job>, Status> {
        let context = Context::of(&request);
        let mut v = Violations::default();
        let id = job_id(&mut v, &request.get_ref().id);
        let id = checked(v, id)?;
        Ok(Response::new(job_out(in_jobs(&self.jobs, &context, move |jobs| jobs.get(id)).await?)))
    }

    async fn list_jobs(&self, request: Request<pb::ListJobsRequest>) -> Result<Response<pb::ListJobsResponse>, Status> {
        let context = Context::of(&request);
        let wire = request.into_inner();
        let mut v = Violations::default();
        let state = state_in(&mut v, wire.state);
        checked(v, Some(()))?;
        let size = page::size(wire.page_size).map_err(|v| status::violations(&v))?;
        let method = format!("ListJobs {}", state.map_or("", State::as_str));
        let before = self.pages.open(&method, &wire.page_token).map_err(|page::Forged| {
            status::field(Reason::PageToken, "page_token", "was not made by this server for this request")
        })?;
        let work = move |jobs: &Jobs| jobs.list(before.as_deref(), state, size + 1);
        let mut jobs = in_jobs(&self.jobs, &context, work).await?;
        let mut next_page_token = String::new();
        if jobs.len() > size {
            jobs.truncate(size);
            next_page_token = jobs.last().map_or_else(String::new, |job| self.pages.seal(&method, &job.id.to_string()));
        }
        Ok(Response::new(pb::ListJobsResponse { jobs: jobs.into_iter().map(job_out).collect(), next_page_token }))
    }

    async fn watch_job(&self, request: Request<pb::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let context = Context::of(&request);
        let wire = request.into_inner();
        let mut v = Violations::default();
        let id = job_id(&mut v, &wire.id);
        let id = checked(v, id)?;
        let after = number(id, &wire.token).ok_or_else(|| status::jobs(&JobsError::Event, &context))?;
        // What cannot be watched is refused before the stream begins.
        in_jobs(&self.jobs, &context, move |jobs| jobs.events(id, after, 0)).await?;
        let (events, stream) = mpsc::channel(16);
        let jobs = self.jobs.clone();
        tokio::spawn(async move {
            if let Err(status) = follow(&jobs, id, after, &events, &context).await {
                // The reader may have left.
                let _ = events.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn cancel_job(&self, request: Request<pb::CancelJobRequest>) -> Result<Response<pb::Job>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let key = std::mem::take(&mut wire.request_id);
        let (id, key) = change("CancelJob", &wire.id, key, &wire.encode_to_vec())?;
        let job = in_jobs(&self.jobs, &context, move |jobs| jobs.cancel(id, key.as_ref())).await?;
        Ok(Response::new(job_out(job)))
    }

    async fn resume_job(&self, request: Request<pb::ResumeJobRequest>) -> Result<Response<pb::Job>, Status> {
        let context = Context::of(&request);
        let mut wire = request.into_inner();
        let key = std::mem::take(&mut wire.request_id);
        let (id, key) = change("ResumeJob", &wire.id, key, &wire.encode_to_vec())?;
        let job = in_jobs(&self.jobs, &context, move |jobs| jobs.resume(id, key.as_ref())).await?;
        Ok(Response::new(job_out(job)))
    }
}

type Watcher = mpsc::Sender<Result<pb::WatchJobResponse, Status>>;

/// Sends events until the job has ended, the reader has left, or the server stops.
async fn follow(jobs: &Jobs, id: JobId, mut after: u64, events: &Watcher, context: &Context) -> Result<(), Status> {
    let mut shown = jobs.shown();
    loop {
        // Marked as seen before the rows are read: what comes in between wakes us.
        let ended = shown.borrow_and_update().ended;
        let batch = in_jobs(jobs, context, move |jobs| jobs.events(id, after, BATCH)).await?;
        let nothing_new = batch.events.is_empty();
        for (number, time, event) in batch.events {
            let event = match event {
                Event::Job(job) => watch_job_response::Event::Job(Box::new(job_out(*job))),
                Event::Step(advance) => watch_job_response::Event::Progress(progress_out(*advance)),
                Event::Audit(progress) => watch_job_response::Event::AuditProgress(audit_progress_out(*progress)),
                Event::Published(published) => watch_job_response::Event::Checkpoint(published_out(*published)),
            };
            let response =
                pb::WatchJobResponse { token: token(id, number), time: Some(timestamp(time)), event: Some(event) };
            if events.send(Ok(response)).await.is_err() {
                return Ok(());
            }
            after = number;
        }
        if batch.finished {
            return Ok(());
        }
        if nothing_new {
            if ended {
                return Err(status::draining());
            }
            tokio::select! {
                changed = shown.changed() => if changed.is_err() { return Err(status::draining()) },
                () = events.closed() => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use futures_util::StreamExt as _;
    use pb::job_service_server::JobService as _;
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::jobs::tests::{House, Moment};

    type Watched = Vec<Result<pb::WatchJobResponse, Status>>;

    async fn watch(house: &House, id: JobId, token: &str) -> Result<Watched, Status> {
        let calls = JobCalls { jobs: house.jobs.clone(), pages: PageTokens::new() };
        let request = pb::WatchJobRequest { id: id.to_string(), token: token.into() };
        let stream = calls.watch_job(Request::new(request)).await?.into_inner();
        Ok(stream.collect().await)
    }

    #[tokio::test]
    async fn a_watcher_sees_all_from_its_token_to_the_end() {
        let house = House::new();
        // It watches from before the first step: nothing is shown before it looks.
        let (go, gate) = mpsc::channel::<()>();
        house.hook(move |moment| {
            if moment == Moment::Start {
                let _ = gate.recv();
            }
            Ok(())
        });
        let job = house.create("a");
        let mut shown = house.jobs.shown();
        let live = async {
            let watching = watch(&house, job.id, "");
            let release = async move {
                // The runner has said that it runs, and waits.
                let _ = shown.wait_for(|shown| shown.version >= 2).await;
                drop(go);
            };
            tokio::join!(watching, release).0
        };
        let all: Vec<_> = live.await.unwrap().into_iter().map(Result::unwrap).collect();
        let last = all.last().unwrap();
        let Some(watch_job_response::Event::Job(ended)) = &last.event else { panic!("{last:?}") };
        assert_eq!((ended.state(), ended.result.is_some()), (pb::JobState::Succeeded, true));
        let steps = all.iter().filter(|e| matches!(e.event, Some(watch_job_response::Event::Progress(_)))).count();
        assert_eq!((steps, all.len()), (7, 10));
        for (seen, event) in all.iter().enumerate() {
            let rest: Vec<_> =
                watch(&house, job.id, &event.token).await.unwrap().into_iter().map(Result::unwrap).collect();
            assert_eq!(rest, all[seen + 1..]);
        }
        let other = house.create("b");
        let foreign = watch(&house, other.id, &last.token).await.unwrap_err();
        assert_eq!(foreign.get_details_error_info().unwrap().reason, "WATCH_TOKEN");
        let future = watch(&house, job.id, &token(job.id, 11)).await.unwrap_err();
        assert_eq!(future.code(), Code::InvalidArgument);
    }

    #[tokio::test]
    async fn a_watcher_of_a_job_that_waits_for_the_next_process_is_told_so() {
        let house = House::new();
        let (go, gate) = mpsc::channel::<()>();
        let (reached, started) = mpsc::channel();
        house.hook(move |moment| {
            if moment == Moment::Advance(2) {
                let _ = reached.send(());
                let _ = gate.recv();
            }
            Ok(())
        });
        let job = house.create("a");
        tokio::task::spawn_blocking(move || started.recv()).await.unwrap().unwrap();
        let drain = async {
            let jobs = house.jobs.clone();
            let draining = tokio::spawn(async move { jobs.drain(Duration::from_secs(60)).await });
            while !house.jobs.is_draining() {
                tokio::task::yield_now().await;
            }
            drop(go);
            draining.await.unwrap();
        };
        let (watched, ()) = tokio::join!(watch(&house, job.id, ""), drain);
        let mut watched = watched.unwrap();
        let end = watched.pop().unwrap().unwrap_err();
        assert_eq!(
            (end.code(), end.get_details_error_info().unwrap().reason.as_str()),
            (Code::Unavailable, "DRAINING")
        );
        assert_eq!(watched.len(), 4, "queued, running and two steps");
    }

    #[test]
    fn watch_tokens_belong_to_one_job() {
        let id = JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").unwrap();
        let other = JobId::parse("01890a5d-ac96-774b-bcce-b302099a8058").unwrap();
        for at in [0, 1, 77, u64::MAX] {
            assert_eq!(number(id, &token(id, at)), Some(at));
            assert_eq!(number(other, &token(id, at)), None);
        }
        assert_eq!(number(id, ""), Some(0));
        let sound = token(id, 7);
        for bad in ["*", "AAAA", &sound[..sound.len() - 1], &format!("{sound}AAAA"), &"A".repeat(10_000)] {
            assert_eq!(number(id, bad), None, "{bad}");
        }
    }

    #[test]
    fn ids_have_one_form() {
        assert!(JobId::parse("01890a5d-ac96-774b-bcce-b302099a8057").is_some());
        for bad in ["", "1", "01890A5D-AC96-774B-BCCE-B302099A8057", "01890a5dac96774bbcceb302099a8057", "é"] {
            assert!(JobId::parse(bad).is_none(), "{bad}");
        }
    }
}
