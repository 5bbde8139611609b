//! Classes of images: requests in, logits out, one thread for each model.
//!
//! The thread takes images of waiting requests into a step, whatever their adapters are, in the order of arrival, and takes
//! its turns with everything else that computes. Decodes no image, names no adapter and turns no logit into a probability.
//! Places in the queue are given before an image is decoded, so that a full queue costs nothing.
//! A result does not depend on what else is in the step: that is the model's promise. Nor does a failure: what one adapter
//! does to a step is found out by computing each alone.
//! Units: images. Shapes: `[channels, height, width]` f32 each.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::Span;

use super::pass::{self, fault};
use super::{ClassLogits, EngineError};
use crate::config::EngineSettings;
use crate::lora::{Adapter, LoraBatch, Run};
use crate::metrics::Metrics;
use crate::model::{ImageClassifier, ModelError};
use crate::turns::Turns;

/// Most places there can be.
const MOST_PLACES: usize = 1 << 20;
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
    /// Fails what is there.
    Stop(oneshot::Sender<()>),
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
#[derive(Debug)]
#[must_use = "the places are given back when this is dropped"]
pub struct Places(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

/// A cheap handle to the thread of one model, which ends with the last handle and request.
#[derive(Clone)]
pub struct ImageEngine {
    commands: mpsc::Sender<Command>,
    /// Free places.
    places: Arc<Semaphore>,
    draining: Arc<AtomicBool>,
    limit: usize,
}

impl std::fmt::Debug for ImageEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageEngine").field("waiting", &self.waiting()).finish_non_exhaustive()
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
        let limit = settings.max_waiting_images.clamp(1, MOST_PLACES);
        let (commands, receiver) = mpsc::channel(limit + 1);
        let engine = Self { commands, places: Arc::new(Semaphore::new(limit)), draining: Arc::default(), limit };
        let core = Core { model, metrics, most: settings.max_step_images, queue: VecDeque::new() };
        let thread = std::thread::Builder::new().name("images".into()).spawn(move || core.run(receiver, &turns));
        if let Err(error) = thread {
            // Its end of the channel is gone with it: every call is answered with `Stopped`.
            tracing::error!(%error, "cannot start the thread of an image model");
        }
        engine
    }

    /// Gives places in the queue to a request of `images`, before they are decoded.
    ///
    /// # Errors
    /// When the queue is full, there is no image, or the server drains.
    pub fn admit(&self, images: usize) -> Result<Places, EngineError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(EngineError::Draining);
        }
        if images == 0 {
            return Err(ModelError::Input("a request without images".into()).into());
        }
        // Where nobody waits, more images than the queue is long have their turn too.
        let wanted = images.min(self.limit) as u32;
        let places = Arc::clone(&self.places).try_acquire_many_owned(wanted);
        places.map(Places).map_err(|_| self.full())
    }

    /// Queues images to classify in their places; dropping the receiver cancels it.
    ///
    /// # Errors
    /// When the server has stopped.
    pub fn classify(
        &self,
        places: Places,
        request: ImageRequest,
    ) -> Result<oneshot::Receiver<Result<ClassLogits, EngineError>>, EngineError> {
        if self.places.is_closed() {
            return Err(EngineError::Draining);
        }
        let (answer, receiver) = oneshot::channel();
        let (arrival, span) = (Instant::now(), Span::current());
        let task = Task { request, answer, done: Vec::new(), arrival, begun: false, places, span };
        self.commands.try_send(Command::Classify(task)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => self.full(),
            mpsc::error::TrySendError::Closed(_) => EngineError::Stopped,
        })?;
        Ok(receiver)
    }

    /// Takes no more requests and returns when the last one has ended; whatever was admitted and has not ended after
    /// `grace` fails with [`EngineError::Draining`].
    pub async fn drain(&self, grace: Duration) {
        self.draining.store(true, Ordering::Release);
        // All places are free once everything has ended. Whether it has or the time is over, what follows is the same.
        let _ = tokio::time::timeout(grace, self.places.acquire_many(self.limit as u32)).await;
        self.places.close();
        let (done, ended) = oneshot::channel();
        if self.commands.send(Command::Stop(done)).await.is_ok() {
            // An error means that the thread has ended, and all requests with it.
            let _ = ended.await;
        }
    }

    /// Returns the places that are taken.
    fn waiting(&self) -> usize {
        self.limit.saturating_sub(self.places.available_permits())
    }

    fn full(&self) -> EngineError {
        EngineError::QueueFull { waiting: self.waiting(), limit: self.limit, retry_after: RETRY_AFTER }
    }
}

/// What the thread owns.
struct Core {
    model: Arc<dyn ImageClassifier>,
    metrics: Arc<Metrics>,
    /// Images of a step.
    most: usize,
    queue: VecDeque<Task>,
}

/// Images of one adapter in a step.
struct Group {
    adapter: Option<Arc<Adapter>>,
    /// Places of requests in the queue, and how many images of each.
    parts: Vec<(usize, usize)>,
}

impl Group {
    fn images(&self) -> usize {
        self.parts.iter().map(|(_, images)| images).sum()
    }
}

impl Core {
    /// Sleeps while there is nothing to do, ends when nobody can ask any more.
    fn run(mut self, mut commands: mpsc::Receiver<Command>, turns: &Turns) {
        let mut steps = turns.steps();
        loop {
            if self.queue.is_empty() {
                steps.rest();
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
            Command::Stop(done) => {
                for task in std::mem::take(&mut self.queue) {
                    self.end(task, Err(EngineError::Draining));
                }
                // Whoever asked may have left.
                let _ = done.send(());
            }
        }
    }

    /// Drops what nobody waits for any more, and fails what has run out of time.
    fn drop_ended(&mut self, now: Instant) {
        for task in std::mem::take(&mut self.queue) {
            if task.answer.is_closed() {
                self.end(task, Err(EngineError::Stopped));
            } else if task.request.deadline.is_some_and(|deadline| now >= deadline) {
                self.end(task, Err(EngineError::DeadlineExceeded));
            } else {
                self.queue.push_back(task);
            }
        }
    }

    /// Computes images of the first request, and of others after it, as many as a step holds.
    fn step(&mut self) {
        let groups = self.choose();
        let outcomes = match self.compute(&groups) {
            Err(_) if groups.len() > 1 => groups.chunks(1).map(|group| self.compute(group)).collect(),
            outcome => vec![outcome],
        };
        let shares = if outcomes.len() > 1 { groups.chunks(1) } else { groups.chunks(groups.len().max(1)) };
        let mut failed = Vec::new();
        for (groups, outcome) in shares.zip(outcomes) {
            let parts = groups.iter().flat_map(|group| &group.parts);
            match outcome {
                Ok(logits) => {
                    let mut logits = logits.into_iter();
                    for (place, images) in parts {
                        if let Some(task) = self.queue.get_mut(*place) {
                            task.done.extend(logits.by_ref().take(*images));
                        }
                    }
                }
                Err(error) => {
                    let images = groups.iter().map(Group::images).sum::<usize>();
                    tracing::error!(error = &error as &dyn std::error::Error, images, "step failed");
                    failed.extend(parts.map(|(place, _)| (*place, error.to_string())));
                }
            }
        }
        failed.sort_unstable();
        for (place, error) in failed.into_iter().rev() {
            if let Some(task) = self.queue.remove(place) {
                self.end(task, Err(fault(&error)));
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

    /// Chooses images in the order of arrival, and puts those of one adapter together. Heads of other sizes have no place
    /// in the same rows of logits.
    fn choose(&mut self) -> Vec<Group> {
        let own = self.model.info().labels;
        let labels = |task: &Task| {
            let adapter = task.request.adapter.as_ref();
            adapter.and_then(|adapter| adapter.info().classes.as_ref()).map(|classes| classes.names.len()).or(own)
        };
        let first = self.queue.front().and_then(labels);
        let mut room = self.most.max(1);
        let mut groups: Vec<Group> = Vec::new();
        for (place, task) in self.queue.iter_mut().enumerate() {
            if room == 0 {
                break;
            }
            if labels(task) != first {
                continue;
            }
            if !std::mem::replace(&mut task.begun, true) {
                self.metrics.request_queue_time.observe(task.arrival.elapsed().as_secs_f64());
            }
            let images = (task.request.images.len() - task.done.len()).min(room);
            room -= images;
            let adapter = &task.request.adapter;
            let same =
                |group: &&mut Group| group.adapter.as_ref().map(Arc::as_ptr) == adapter.as_ref().map(Arc::as_ptr);
            match groups.iter_mut().find(same) {
                Some(group) => group.parts.push((place, images)),
                None => groups.push(Group { adapter: adapter.clone(), parts: vec![(place, images)] }),
            }
        }
        groups
    }

    /// Returns a row of logits for each image of the groups, in their order.
    fn compute(&self, groups: &[Group]) -> Result<ClassLogits, ModelError> {
        let (mut runs, mut pixels): (Vec<Run>, Vec<&[f32]>) = (Vec::new(), Vec::new());
        for group in groups {
            let rows = pixels.len()..pixels.len() + group.images();
            for (task, images) in
                group.parts.iter().filter_map(|(place, images)| Some((self.queue.get(*place)?, *images)))
            {
                pixels.extend(task.request.images.iter().skip(task.done.len()).take(images).map(Vec::as_slice));
            }
            runs.extend(group.adapter.clone().map(|adapter| Run { adapter, rows, scale: 1.0 }));
        }
        let (images, pixels) = (pixels.len(), pixels.concat());
        let [height, width] = self.model.info().image_size.unwrap_or_default();
        let channels = pixels.len() / (images * height * width).max(1);
        let pixels = Tensor::from_vec(pixels, (images, channels, height, width), &Device::Cpu)?;
        let logits = pass::see(&*self.model, &pixels, &LoraBatch { runs, dropout: None })?;
        let logits = logits.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
        if logits.len() != images || logits.iter().flatten().any(|logit| !logit.is_finite()) {
            return Err(ModelError::Input("the model returned a logit that is no finite number".into()));
        }
        self.metrics.images.inc_by(images as u64);
        Ok(logits)
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

#[cfg(test)]
mod tests;
