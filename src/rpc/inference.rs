//! InferenceService: checks, takes a place in the queue, resolves the adapter once, hands over to the engine, and maps
//! its events.
//!
//! Computes nothing. Where the queue is full nothing is tokenized and no adapter is read. Leaving a call drops the
//! engine's receiver, which is how the engine learns of it.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

use super::classify::classification;
use super::classify_request::{Contents, Entries, Places, Wanted, classify};
use super::classify_rows::Rows;
use super::context::Context;
use super::convert::{self, Bounds, Source};
use super::images::{self, Images};
use super::info::count;
use super::pb;
use super::prompt::{PromptError, Prompts};
use super::services::{blocking, in_registry};
use super::status;
use super::violations::Violations;
use crate::engine::{Engine, EngineError, Event, FinishReason, Place, Token};
use crate::lora::{self, Adapter, Problem};
use crate::metrics::{AdapterUse, Metrics};
use crate::registry::{Reference, Registry};

/// Answers InferenceService.
#[derive(Debug)]
pub(super) struct Inference {
    pub(super) engine: Engine,
    pub(super) images: Images,
    /// Name of the language model.
    pub(super) model_name: String,
    pub(super) registry: Arc<Registry>,
    pub(super) prompts: Prompts,
    /// Data sets to classify.
    pub(super) rows: Rows,
    pub(super) metrics: Arc<Metrics>,
}

type Pieces = Pin<Box<dyn Stream<Item = Result<pb::GenerateStreamResponse, Status>> + Send>>;

impl Inference {
    fn bounds(&self) -> Bounds {
        Bounds { vocab: self.prompts.model.vocab_size }
    }

    /// Resolves what to run, without a change of thread where the weights are in memory.
    ///
    /// It has to be of the language model.
    async fn adapter(&self, reference: Option<Reference>, context: &Context) -> Result<Option<Arc<Adapter>>, Status> {
        let adapter = self.any_adapter(reference, context).await?;
        match &adapter {
            Some(adapter) if adapter.base() != self.prompts.model.fingerprint => {
                Err(images::mismatch(&self.model_name, context))
            }
            Some(_) | None => Ok(adapter),
        }
    }

    /// As [`Self::adapter`], of whatever base model.
    async fn any_adapter(
        &self,
        reference: Option<Reference>,
        context: &Context,
    ) -> Result<Option<Arc<Adapter>>, Status> {
        let Some(reference) = reference else {
            self.metrics.adapter_requests.with_label_values(&["base"]).inc();
            return Ok(None);
        };
        let name = reference.name.clone();
        let adapter = match self.registry.resident(&reference) {
            Some(adapter) => adapter,
            None => {
                let registry = Arc::clone(&self.registry);
                in_registry(context, move || registry.resolve(&reference)).await?
            }
        };
        let label = self.metrics.adapter_label(name.as_str());
        self.metrics.adapter_requests.with_label_values(&[label]).inc();
        Ok(Some(adapter))
    }

    /// Tells the metrics that an adapter is used.
    fn adapter_use(&self, reference: Option<&Reference>) -> Option<Arc<AdapterUse>> {
        let name = reference?.name.as_str();
        Some(self.metrics.adapter_uses.wait(self.metrics.adapter_label(name)))
    }

    /// Takes a place in the queue, before anything is spent on the request.
    fn enter(&self, sequences: usize, context: &Context) -> Result<Place, Status> {
        self.engine.enter(sequences).map_err(|error| status::engine(&error, context))
    }

    /// Does the tokenizer's work off the async threads. `place` is held until it is done, also when the caller has left:
    /// what bounds the queue bounds this too.
    async fn prepare<P: Send + 'static, T: Send + 'static>(
        &self,
        (place, context): (P, &Context),
        work: impl FnOnce(&Prompts) -> Result<T, PromptError> + Send + 'static,
    ) -> Result<(P, T), Status> {
        let prompts = self.prompts.clone();
        let prepared = blocking(context, move || work(&prompts).map(|prepared| (place, prepared))).await?;
        prepared.map_err(|error| status::prompt(&error, context))
    }

    /// Checks and submits a request for text.
    async fn submit(&self, request: Request<pb::GenerateRequest>) -> Result<Running, Status> {
        let context = Context::of(&request);
        let checked = convert::generate(request.into_inner(), self.bounds()).map_err(|v| status::violations(&v))?;
        let place = self.enter(checked.n, &context)?;
        let reference = checked.adapter.clone();
        let (place, mut request) = self.prepare((place, &context), move |prompts| prompts.generate(checked)).await?;
        request.adapter = self.adapter(reference.clone(), &context).await?;
        request.adapter_use = self.adapter_use(reference.as_ref());
        request.deadline = context.deadline;
        let labels = Labels {
            generation: request.adapter.as_ref().map_or_else(String::new, |a| a.generation().to_string()),
            seed: request.sampling.seed,
            prompt_tokens: count(request.prompt.len()),
            n: request.n,
        };
        let events = place.generate(request).map_err(|error| status::engine(&error, &context))?;
        Ok(Running {
            events,
            pieces: PieceMaker { prompts: self.prompts.clone(), labels, generated: 0, ended: 0 },
            context,
        })
    }
}

impl Inference {
    /// Classifies texts: returns logits, and the number of tokens of each.
    async fn classify_texts(
        &self,
        (texts, places): (Vec<Source>, Places),
        of: &Asked<'_>,
    ) -> Result<(Head, Vec<Vec<f32>>, Vec<usize>), Status> {
        if !of.base_model.is_empty() && of.base_model != self.model_name {
            let mut v = Violations::default();
            v.add("base_model", format!("must be {}, or not given: it alone reads text", self.model_name));
            return Err(status::violations(&v));
        }
        let place = self.enter(1, of.context)?;
        let context = of.context;
        let (place, mut request) =
            self.prepare((place, context), move |prompts| prompts.classify(texts, &places)).await?;
        request.adapter = self.adapter(of.adapter.clone(), context).await?;
        request.adapter_use = self.adapter_use(of.adapter.as_ref());
        request.deadline = context.deadline;
        let of_base = self.prompts.model.classes.as_ref();
        let head = Head::new(request.adapter.as_deref(), of_base, self.model_name.clone());
        let head = head.ok_or_else(|| status::no_classifier(of.named))?;
        let lengths: Vec<usize> = request.sequences.iter().map(Vec::len).collect();
        let refused = |error: EngineError| status::engine(&error, context);
        let answer = place.classify(request).map_err(refused)?;
        Ok((head, answer.await.unwrap_or(Err(EngineError::Stopped)).map_err(refused)?, lengths))
    }

    /// As [`Self::classify_texts`], images.
    async fn classify_images(
        &self,
        (files, places): (Vec<Bytes>, Places),
        of: &Asked<'_>,
    ) -> Result<(Head, Vec<Vec<f32>>, Vec<usize>), Status> {
        let adapter = self.any_adapter(of.adapter.clone(), of.context).await?;
        let served = self.images.model(of.base_model, adapter.as_deref(), of.context)?;
        let head = Head::new(adapter.as_deref(), served.model.info().classes.as_ref(), served.name.clone());
        let head = head.ok_or_else(|| status::no_classifier(of.named))?;
        let lengths = vec![0; files.len()];
        Ok((head, served.classify((files, &places), adapter, of.context).await?, lengths))
    }
}

/// What a request for classes asks beside its entries.
struct Asked<'a> {
    adapter: Option<Reference>,
    /// The adapter as the caller named it.
    named: &'a str,
    base_model: &'a str,
    context: &'a Context,
}

/// The head that classifies.
struct Head {
    classes: lora::Classes,
    generation: String,
    base_model: String,
}

impl Head {
    /// Returns that of the adapter, or else of the base model.
    fn new(adapter: Option<&Adapter>, of_base: Option<&lora::Classes>, base_model: String) -> Option<Self> {
        let brought = adapter.and_then(|adapter| adapter.info().classes.as_ref());
        let classes = brought.or(of_base)?.clone();
        let generation = adapter.map_or_else(String::new, |adapter| adapter.generation().to_string());
        Some(Self { classes, generation, base_model })
    }

    fn described(
        self,
        logits: &[Vec<f32>],
        lengths: &[usize],
        places: &Places,
        dataset: String,
    ) -> pb::ClassifyResponse {
        let one = |(entry, (logits, tokens)): (usize, (&Vec<f32>, &usize))| pb::Classification {
            row: places.row(entry),
            ..classification(logits, &self.classes, *tokens)
        };
        pb::ClassifyResponse {
            classifications: logits.iter().zip(lengths).enumerate().map(one).collect(),
            multi_label: self.classes.problem == Problem::Multi,
            label_names: self.classes.names,
            generation: self.generation,
            usage: Some(pb::Usage { prompt_tokens: count(lengths.iter().sum()), completion_tokens: 0 }),
            base_model: self.base_model,
            dataset,
        }
    }
}

/// What every piece of an answer tells.
#[derive(Debug)]
struct Labels {
    generation: String,
    seed: u64,
    prompt_tokens: u32,
    n: usize,
}

/// A request in the engine.
struct Running {
    events: mpsc::Receiver<Event>,
    pieces: PieceMaker,
    context: Context,
}

/// Turns events into pieces.
#[derive(Debug)]
struct PieceMaker {
    prompts: Prompts,
    labels: Labels,
    /// Tokens generated, all completions together.
    generated: usize,
    /// Completions that ended.
    ended: usize,
}

impl Running {
    /// Returns the next piece, `None` at the end.
    async fn next(&mut self) -> Option<Result<pb::GenerateStreamResponse, Status>> {
        match self.events.recv().await {
            Some(Event::Delta { index, text, tokens, finish }) => {
                Some(Ok(self.pieces.piece(index, text, tokens, finish)))
            }
            Some(Event::Done) => None,
            Some(Event::Failed(error)) => Some(Err(status::engine(&error, &self.context))),
            None => Some(Err(status::engine(&EngineError::Stopped, &self.context))),
        }
    }
}

impl PieceMaker {
    fn piece(
        &mut self,
        index: usize,
        text: String,
        tokens: Vec<Token>,
        finish: Option<FinishReason>,
    ) -> pb::GenerateStreamResponse {
        self.generated += tokens.len();
        self.ended += usize::from(finish.is_some());
        let last = self.ended == self.labels.n && finish.is_some();
        let (finish_reason, stop_string) = match finish {
            None => (pb::FinishReason::Unspecified, String::new()),
            Some(FinishReason::Stop(text)) => (pb::FinishReason::Stop, text.unwrap_or_default()),
            Some(FinishReason::Length) => (pb::FinishReason::Length, String::new()),
        };
        pb::GenerateStreamResponse {
            index: count(index),
            text,
            token_ids: tokens.iter().map(|token| token.id).collect(),
            logprobs: tokens.iter().filter_map(|token| self.logprobs(token)).collect(),
            finish_reason: finish_reason.into(),
            stop_string,
            usage: last.then(|| self.usage()),
            generation: self.labels.generation.clone(),
            seed: self.labels.seed,
        }
    }

    fn usage(&self) -> pb::Usage {
        pb::Usage { prompt_tokens: self.labels.prompt_tokens, completion_tokens: count(self.generated) }
    }

    fn logprobs(&self, token: &Token) -> Option<pb::PositionLogprobs> {
        let (own, top) = token.logprobs.as_ref()?;
        let entry = |token_id: u32, logprob: f64| {
            let token = self.prompts.tokenizer.decode(&[token_id], false).unwrap_or_default();
            pb::TokenLogprob { token_id, token, logprob }
        };
        Some(pb::PositionLogprobs {
            chosen: Some(entry(token.id, *own)),
            top: top.iter().map(|t| entry(t.token, t.logprob)).collect(),
        })
    }
}

/// Adds a piece to the completion it belongs to.
fn append(choices: &mut [pb::Choice], piece: pb::GenerateStreamResponse) {
    let Some(choice) = choices.get_mut(piece.index as usize) else { return };
    choice.text.push_str(&piece.text);
    choice.token_ids.extend(piece.token_ids);
    choice.logprobs.extend(piece.logprobs);
    if piece.finish_reason != i32::from(pb::FinishReason::Unspecified) {
        choice.finish_reason = piece.finish_reason;
        choice.stop_string = piece.stop_string;
    }
}

#[tonic::async_trait]
impl pb::inference_service_server::InferenceService for Inference {
    type GenerateStreamStream = Pieces;

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<pb::GenerateResponse>, Status> {
        let mut running = self.submit(request).await?;
        let n = running.pieces.labels.n;
        let mut choices: Vec<_> =
            (0..n).map(|index| pb::Choice { index: count(index), ..Default::default() }).collect();
        while let Some(piece) = running.next().await {
            append(&mut choices, piece?);
        }
        for choice in &mut choices {
            running.pieces.prompts.decode_whole(choice);
        }
        let usage = Some(running.pieces.usage());
        let Labels { generation, seed, .. } = running.pieces.labels;
        Ok(Response::new(pb::GenerateResponse { choices, usage, generation, seed }))
    }

    async fn generate_stream(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let running = self.submit(request).await?;
        let pieces = futures_util::stream::unfold(Some(running), |running| async {
            let mut running = running?;
            let piece = running.next().await?;
            // An error is the end of the stream.
            let rest = piece.is_ok().then_some(running);
            Some((piece, rest))
        });
        let mut response = Response::new(pieces.boxed() as Pieces);
        // A token a message does not shrink, and compressing would hold it back.
        response.disable_compression();
        Ok(response)
    }

    async fn score(&self, request: Request<pb::ScoreRequest>) -> Result<Response<pb::ScoreResponse>, Status> {
        let context = Context::of(&request);
        let checked = convert::score(request.into_inner(), self.bounds()).map_err(|v| status::violations(&v))?;
        let place = self.enter(1, &context)?;
        let reference = checked.adapter.clone();
        let (place, mut request) = self.prepare((place, &context), move |prompts| prompts.score(checked)).await?;
        request.adapter = self.adapter(reference.clone(), &context).await?;
        request.adapter_use = self.adapter_use(reference.as_ref());
        request.deadline = context.deadline;
        let generation = request.adapter.as_ref().map_or_else(String::new, |a| a.generation().to_string());
        let prompt_tokens = count(request.prompt.len());
        let ids = request.candidates.clone();
        let completion_tokens = count(ids.iter().map(Vec::len).sum());
        let refused = |error: EngineError| status::engine(&error, &context);
        let answer = place.score(request).map_err(refused)?;
        let scored = answer.await.unwrap_or(Err(EngineError::Stopped)).map_err(refused)?;
        let candidates = scored.into_iter().zip(ids).map(|(scored, token_ids)| {
            let sum_logprob: f64 = scored.logprobs.iter().sum();
            pb::CandidateScore {
                sum_logprob,
                mean_logprob: sum_logprob / token_ids.len() as f64,
                token_count: count(token_ids.len()),
                token_logprobs: scored.logprobs,
                token_ids,
                is_greedy: scored.is_greedy,
            }
        });
        let usage = Some(pb::Usage { prompt_tokens, completion_tokens });
        Ok(Response::new(pb::ScoreResponse { candidates: candidates.collect(), generation, usage }))
    }

    async fn classify(&self, request: Request<pb::ClassifyRequest>) -> Result<Response<pb::ClassifyResponse>, Status> {
        let context = Context::of(&request);
        let named = request.get_ref().adapter.clone();
        let checked = classify(request.into_inner(), self.bounds()).map_err(|v| status::violations(&v))?;
        let (entries, dataset) = match checked.wanted {
            Wanted::Given(entries) => (entries, String::new()),
            Wanted::Rows(rows) => {
                let dataset = self.rows.dataset(rows.dataset.clone(), &context).await?;
                (rows.take(&dataset).map_err(|v| status::violations(&v))?, dataset.id.clone())
            }
        };
        let Entries { content, places } = entries;
        let (named, base_model) = (named.as_str(), checked.base_model.as_str());
        let asked = Asked { adapter: checked.adapter, named, base_model, context: &context };
        let (head, logits, lengths) = match content {
            Contents::Texts(texts) => self.classify_texts((texts, places.clone()), &asked).await?,
            Contents::Images(files) => self.classify_images((files, places.clone()), &asked).await?,
        };
        Ok(Response::new(head.described(&logits, &lengths, &places, dataset)))
    }

    async fn tokenize(&self, request: Request<pb::TokenizeRequest>) -> Result<Response<pb::TokenizeResponse>, Status> {
        let context = Context::of(&request);
        let checked = convert::tokenize(request.into_inner()).map_err(|v| status::violations(&v))?;
        let work = move |prompts: &Prompts| {
            let (text, ids) = prompts.tokenize(checked)?;
            let pieces = ids.iter().map(|id| prompts.tokenizer.piece(*id).unwrap_or_default()).collect();
            Ok(pb::TokenizeResponse { ids, pieces, text })
        };
        let ((), response) = self.prepare(((), &context), work).await?;
        Ok(Response::new(response))
    }
}
