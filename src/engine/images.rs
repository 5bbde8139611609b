//! Classes of images: requests in, logits out, one thread for each model.
//!
//! The thread takes images of waiting requests for one adapter into a step, in the order of arrival, and takes its turns
//! with everything else that computes. Decodes no image, names no adapter and turns no logit into a probability.
//! A result does not depend on what else is in the step: that is the model's promise.
//! Units: images. Shapes: `[channels, height, width]` f32 each.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use super::pass::{self, fault};
use super::{ClassLogits, EngineError};
use crate::config::EngineSettings;
use crate::lora::{Adapter, LoraBatch, Run};
use crate::metrics::Metrics;
use crate::model::{ImageClassifier, ModelError};
use crate::turns::Turns;

/// When to try again where nothing was measured.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A checked request for classes of images.
#[derive(Debug, Clone)]
pub struct ImageRequest {
    /// Images as the model's processor makes them, 1 or more.
    pub images: Vec<Vec<f32>>,
    /// Pinned for the life of the request.
    pub adapter: Option<Arc<Adapter>>,
    /// When the caller stops waiting.
    pub deadline: Option<Instant>,
}

type Answer = oneshot::Sender<Result<ClassLogits, EngineError>>;

/// What goes to the thread.
enum Command {
    Classify(Task),
    Drain { deadline: Instant, done: oneshot::Sender<()> },
}

/// A request on its way.
struct Task {
    request: ImageRequest,
    answer: Answer,
    /// Logits of the images that are done.
    done: ClassLogits,
    arrival: Instant,
    /// Whether it has had a step.
    begun: bool,
    /// Held while the request waits or runs.
    places: Places,
    span: Span,
}

/// Places in the queue, given back when dropped.
struct Places {
    waiting: Arc<AtomicUsize>,
    images: usize,
}

impl Drop for Places {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.images, Ordering::AcqRel);
    }
}

/// A cheap handle to the thread of one model, which ends with the last handle and request.
#[derive(Clone)]
pub struct ImageEngine {
    commands: mpsc::Sender<Command>,
    waiting: Arc<AtomicUsize>,
    draining: Arc<AtomicBool>,
    limit: usize,
}

impl std::fmt::Debug for ImageEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageEngine").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl ImageEngine {
    /// Starts the model's thread; its steps take their turns from `turns`.
    pub fn start(
        model: Arc<dyn ImageClassifier>,
        settings: &EngineSettings,
        metrics: Arc<Metrics>,
        turns: Arc<Turns>,
    ) -> Self {
        // A request has at least one place, so the limit bounds the requests in the channel.
        let (commands, receiver) = mpsc::channel(settings.max_waiting_images.clamp(1, 1 << 20) + 1);
        let engine =
            Self { commands, waiting: Arc::default(), draining: Arc::default(), limit: settings.max_waiting_images };
        let core = Core { model, metrics, most: settings.max_step_images, queue: VecDeque::new(), drain: None };
        let thread = std::thread::Builder::new().name("images".into()).spawn(move || core.run(receiver, &turns));
        if let Err(error) = thread {
            // Its end of the channel is gone with it: every call is answered with `Stopped`.
            tracing::error!(%error, "cannot start the thread of an image model");
        }
        engine
    }

    /// Queues images to classify; dropping the receiver cancels it.
    ///
    /// # Errors
    /// At once when the queue is full, there is no image, or the server drains.
    pub fn classify(
        &self,
        request: ImageRequest,
    ) -> Result<oneshot::Receiver<Result<ClassLogits, EngineError>>, EngineError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(EngineError::Draining);
        }
        let images = request.images.len();
        if images == 0 {
            return Err(ModelError::Input("a request without images".into()).into());
        }
        // Nobody waits: more images than the queue is long have their turn too.
        let fits =
            |waiting: usize| (waiting == 0 || waiting.saturating_add(images) <= self.limit).then(|| waiting + images);
        self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).map_err(|_| self.full())?;
        let places = Places { waiting: Arc::clone(&self.waiting), images };
        let (answer, receiver) = oneshot::channel();
        let (arrival, span) = (Instant::now(), Span::current());
        let task = Task { request, answer, done: Vec::new(), arrival, begun: false, places, span };
        self.commands.try_send(Command::Classify(task)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => self.full(),
            mpsc::error::TrySendError::Closed(_) => EngineError::Stopped,
        })?;
        Ok(receiver)
    }

    /// Takes no more requests and returns when the last one has ended; whatever runs after `grace` fails with
    /// [`EngineError::Draining`].
    pub async fn drain(&self, grace: Duration) {
        self.draining.store(true, Ordering::Release);
        let now = Instant::now();
        // A grace beyond the clock's range is as good as a year.
        let deadline = now.checked_add(grace).unwrap_or(now + Duration::from_secs(365 * 24 * 3600));
        let (done, ended) = oneshot::channel();
        if self.commands.send(Command::Drain { deadline, done }).await.is_ok() {
            // An error means that the thread has ended, and all requests with it.
            let _ = ended.await;
        }
    }

    fn full(&self) -> EngineError {
        let waiting = self.waiting.load(Ordering::Acquire);
        EngineError::QueueFull { waiting, limit: self.limit, retry_after: RETRY_AFTER }
    }
}

/// What the thread owns.
struct Core {
    model: Arc<dyn ImageClassifier>,
    metrics: Arc<Metrics>,
    /// Images of a step.
    most: usize,
    queue: VecDeque<Task>,
    drain: Option<(Instant, Vec<oneshot::Sender<()>>)>,
}

impl Core {
    /// Sleeps while there is nothing to do, ends when nobody can ask any more.
    fn run(mut self, mut commands: mpsc::Receiver<Command>, turns: &Turns) {
        let mut steps = turns.steps();
        loop {
            if self.queue.is_empty() {
                steps.rest();
                for done in self.drain.take().map(|(_, done)| done).into_iter().flatten() {
                    // Whoever asked may have left.
                    let _ = done.send(());
                }
                match commands.blocking_recv() {
                    Some(command) => self.accept(command),
                    None => return,
                }
            }
            while let Ok(command) = commands.try_recv() {
                self.accept(command);
            }
            self.drop_ended(Instant::now());
            if self.queue.is_empty() {
                continue;
            }
            let turn = steps.take();
            let done = catch_unwind(AssertUnwindSafe(|| self.step()));
            drop(turn);
            if done.is_err() {
                tracing::error!("the step of an image model panicked, everything that waited has failed");
                for task in std::mem::take(&mut self.queue) {
                    self.end(task, Err(fault("the step panicked")));
                }
            }
        }
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Classify(task) => self.queue.push_back(task),
            Command::Drain { deadline, done } => {
                let (earlier, waiting) = self.drain.get_or_insert((deadline, Vec::new()));
                *earlier = deadline.min(*earlier);
                waiting.push(done);
            }
        }
    }

    /// Drops what nobody waits for any more, and fails what has run out of time.
    fn drop_ended(&mut self, now: Instant) {
        let drained = self.drain.as_ref().is_some_and(|(deadline, _)| now >= *deadline);
        for task in std::mem::take(&mut self.queue) {
            if task.answer.is_closed() {
                self.end(task, Err(EngineError::Stopped));
            } else if task.request.deadline.is_some_and(|deadline| now >= deadline) {
                self.end(task, Err(EngineError::DeadlineExceeded));
            } else if drained {
                self.end(task, Err(EngineError::Draining));
            } else {
                self.queue.push_back(task);
            }
        }
    }

    /// Computes images of the first request, and of others for the same adapter, as many as a step holds.
    fn step(&mut self) {
        let adapter = self.queue.front().and_then(|task| task.request.adapter.clone());
        let same = |task: &Task| task.request.adapter.as_ref().map(Arc::as_ptr) == adapter.as_ref().map(Arc::as_ptr);
        let (mut room, mut parts, mut pixels) = (self.most.max(1), Vec::new(), Vec::new());
        for (place, task) in self.queue.iter_mut().enumerate().filter(|(_, task)| same(task)) {
            let left = &task.request.images[task.done.len()..];
            let some = &left[..left.len().min(room)];
            pixels.extend(some.iter().map(Vec::as_slice));
            if !std::mem::replace(&mut task.begun, true) {
                self.metrics.request_queue_time.observe(task.arrival.elapsed().as_secs_f64());
            }
            parts.push((place, some.len()));
            room -= some.len();
            if room == 0 {
                break;
            }
        }
        let count = pixels.len();
        let logits = compute(&*self.model, &pixels.concat(), count, adapter);
        self.metrics.images.inc_by(count as u64);
        match logits {
            Ok(logits) => {
                let mut logits = logits.into_iter();
                for (place, count) in &parts {
                    if let Some(task) = self.queue.get_mut(*place) {
                        task.done.extend(logits.by_ref().take(*count));
                    }
                }
            }
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, images = count, "step failed");
                for (place, _) in parts.iter().rev() {
                    if let Some(task) = self.queue.remove(*place) {
                        self.end(task, Err(fault(&error.to_string())));
                    }
                }
            }
        }
        for mut task in std::mem::take(&mut self.queue) {
            if task.done.len() == task.request.images.len() {
                let done = std::mem::take(&mut task.done);
                self.end(task, Ok(done));
            } else {
                self.queue.push_back(task);
            }
        }
    }

    fn end(&self, task: Task, outcome: Result<ClassLogits, EngineError>) {
        let Task { request, answer, arrival, places, span, .. } = task;
        let _entered = span.enter();
        let reason = match &outcome {
            Ok(_) => "stop",
            Err(EngineError::Model(_)) => "error",
            Err(_) => "abort",
        };
        self.metrics.request_success.with_label_values(&[reason]).inc();
        self.metrics.e2e_request_latency.observe(arrival.elapsed().as_secs_f64());
        // Whoever hears of the end finds the adapter and the places free.
        drop((request, places));
        // The caller may have left: then nobody wants to know.
        let _ = answer.send(outcome);
    }
}

/// Returns a row of logits for each image.
fn compute(
    model: &dyn ImageClassifier,
    pixels: &[f32],
    images: usize,
    adapter: Option<Arc<Adapter>>,
) -> Result<ClassLogits, ModelError> {
    let [height, width] = model.info().image_size.unwrap_or_default();
    let channels = pixels.len() / (images * height * width).max(1);
    let pixels = Tensor::from_slice(pixels, (images, channels, height, width), &Device::Cpu)?;
    let run = |adapter| Run { adapter, rows: 0..images, scale: 1.0 };
    let lora = LoraBatch { runs: adapter.into_iter().map(run).collect(), dropout: None };
    let logits = pass::see(model, &pixels, &lora)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
    if logits.len() != images || logits.iter().flatten().any(|logit| !logit.is_finite()) {
        return Err(ModelError::Input("the model returned a logit that is no finite number".into()));
    }
    Ok(logits)
}

#[cfg(test)]
mod tests;
