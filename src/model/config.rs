//! What a base model's configuration says, checked completely.
//!
//! Reads `config.json` as transformers 4 (`torch_dtype`, `rope_theta`, `rope_scaling`) and 5 (`dtype`,
//! `rope_parameters`) write it, and `generation_config.json` for the ids that end a text. Knows no tensor and no file:
//! bytes in, a checked value out. Whatever the architectures here cannot compute is refused by name.
//! Sizes are bounded so that no product of two of them overflows.

mod classes;
mod full;
mod images;
mod module;
mod swin;
mod vit;
mod written;

use std::collections::BTreeMap;
use std::fmt::Write;

use candle_core::DType;
use candle_transformers::models::llama::{Llama3RopeConfig, Llama3RopeType};
use serde_json::{Map, Value};

use crate::lora::Classes;

pub(super) use self::images::Images;
pub(super) use self::module::Module;
pub(super) use self::swin::{Stage, Swin};
pub(super) use self::vit::Vit;

/// Largest sizes taken: far above any published model, far below any overflow.
pub(super) const MAX_WIDTH: usize = 1 << 20;
pub(super) const MAX_VOCAB: usize = 1 << 23;
pub(super) const MAX_LAYERS: usize = 1 << 10;
pub(super) const MAX_HEADS: usize = 1 << 12;
pub(super) const MAX_CONTEXT: usize = 1 << 27;

/// What stands on top of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// A language head: logits over the vocabulary.
    Language,
    /// A classifier with this many labels.
    Classifier(usize),
}

/// How rope frequencies are stretched.
#[derive(Debug, Clone)]
pub(super) enum RopeScaling {
    /// Not at all.
    Default,
    /// All divided by this factor.
    Linear(f64),
    /// Low frequencies divided, high ones kept, as Llama 3.1 does.
    Llama3(Llama3RopeConfig),
    /// Each divided by its own factor, `[head_dim/2]` (GGUF's `rope_freqs.weight`).
    Factors(Vec<f32>),
}

/// A checked configuration of the Llama family.
#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) architecture: String,
    pub(super) head: Head,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) context_length: usize,
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) rope_scaling: RopeScaling,
    pub(super) sliding_window: Option<usize>,
    pub(super) attention_bias: bool,
    pub(super) mlp_bias: bool,
    pub(super) tied: bool,
    pub(super) eos_token_ids: Vec<u32>,
    pub(super) pad_token_id: Option<u32>,
    /// Number format of the checkpoint, when it says.
    pub(super) dtype: Option<DType>,
    /// The labels of a classifier.
    pub(super) classes: Option<Classes>,
    /// The file it was read from; none where it was not a `config.json`.
    pub(super) source: Option<Map<String, Value>>,
}

/// A checked configuration of an image classifier.
#[derive(Debug, Clone)]
pub(super) enum Vision {
    Vit(Vit),
    Swin(Swin),
}

/// What is wrong with a configuration.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    /// It is faulty.
    Invalid(String),
    /// It asks for something that is not supported.
    Unsupported(String),
}

type Checked<T> = Result<T, Fault>;

pub(super) fn invalid<T>(fault: impl Into<String>) -> Checked<T> {
    Err(Fault::Invalid(fault.into()))
}

/// A JSON object whose members are taken with a check.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn size(&self, key: &str, max: usize) -> Checked<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n));
        match size {
            Some(size) => Ok(Some(size)),
            None => invalid(format!("`{key}` is {}, a whole number from 1 to {max} is needed", short(value))),
        }
    }

    fn needed(&self, key: &str, max: usize) -> Checked<usize> {
        match self.size(key, max)? {
            Some(size) => Ok(size),
            None => invalid(format!("`{key}` is missing")),
        }
    }

    /// A finite number above zero.
    fn positive(&self, key: &str) -> Checked<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|x| x.is_finite() && *x > 0.0 && *x < 1e30) {
            Some(x) => Ok(Some(x)),
            None => invalid(format!("`{key}` is {}, a number above 0 is needed", short(value))),
        }
    }

    fn flag(&self, key: &str) -> Checked<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => invalid(format!("`{key}` is {}, true or false is needed", short(value))),
        }
    }

    fn text(&self, key: &str) -> Checked<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(value) => invalid(format!("`{key}` is {}, a string is needed", short(value))),
        }
    }

    fn object(&self, key: &str) -> Checked<Option<Fields<'a>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields(map))),
            Some(value) => invalid(format!("`{key}` is {}, an object is needed", short(value))),
        }
    }

    /// One id or a list of ids, all within the vocabulary.
    fn ids(&self, key: &str, vocab_size: usize) -> Checked<Vec<u32>> {
        let list = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list.as_slice(),
            Some(one) => std::slice::from_ref(one),
        };
        let id = |v: &Value| v.as_u64().filter(|id| *id < vocab_size as u64).and_then(|id| u32::try_from(id).ok());
        match list.iter().map(id).collect() {
            Some(ids) => Ok(ids),
            None => invalid(format!("`{key}` holds an id that is not in the vocabulary of {vocab_size}")),
        }
    }
}

/// A value as it stands in an error: not longer than a line.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

fn object(bytes: &[u8]) -> Checked<Map<String, Value>> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => invalid("not a JSON object"),
        Err(error) => invalid(format!("not valid JSON: {error}")),
    }
}

impl Config {
    /// Reads `config.json`.
    pub(super) fn parse(bytes: &[u8]) -> Checked<Self> {
        let map = object(bytes)?;
        let fields = Fields(&map);
        let (architecture, mistral) = architecture(&fields)?;
        if fields.get("quantization_config").is_some() {
            return Err(Fault::Unsupported("`quantization_config` in a safetensors folder".into()));
        }
        match fields.text("hidden_act")?.unwrap_or("silu") {
            "silu" | "swish" => {}
            other => return Err(Fault::Unsupported(format!("activation `{other}`"))),
        }
        let hidden_size = fields.needed("hidden_size", MAX_WIDTH)?;
        let heads = fields.needed("num_attention_heads", MAX_HEADS)?;
        let default_kv_heads = if mistral { 8 } else { heads };
        let head_dim = match fields.size("head_dim", MAX_WIDTH)? {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            None => return invalid(format!("`hidden_size` {hidden_size} is not a multiple of {heads} heads")),
        };
        // Mistral's configuration class has a window of 4096 unless the file says otherwise; null means none.
        let sliding_window = match fields.0.get("sliding_window") {
            None if mistral => Some(4096),
            _ if mistral => fields.size("sliding_window", MAX_CONTEXT)?,
            _ => None,
        };
        let vocab_size = fields.needed("vocab_size", MAX_VOCAB)?;
        let (rope_theta, rope_scaling) = rope(&fields)?;
        let pad_token_id = pad(&fields, vocab_size)?;
        let classes = classes::read(&fields, &architecture, pad_token_id)?;
        let config = Self {
            head: head(classes.as_ref()),
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: fields.needed("intermediate_size", MAX_WIDTH)?,
            layers: fields.needed("num_hidden_layers", MAX_LAYERS)?,
            heads,
            kv_heads: fields.size("num_key_value_heads", MAX_HEADS)?.unwrap_or(default_kv_heads),
            head_dim,
            context_length: fields.size("max_position_embeddings", MAX_CONTEXT)?.unwrap_or(if mistral {
                131_072
            } else {
                2048
            }),
            rms_norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            sliding_window,
            attention_bias: !mistral && fields.flag("attention_bias")?,
            mlp_bias: !mistral && fields.flag("mlp_bias")?,
            tied: fields.flag("tie_word_embeddings")?,
            eos_token_ids: fields.ids("eos_token_id", vocab_size)?,
            pad_token_id,
            dtype: dtype(&fields)?,
            classes,
            source: Some(map.clone()),
        };
        config.check()?;
        Ok(config)
    }

    /// Adds the ids of `generation_config.json` that end a text.
    pub(super) fn add_generation_config(&mut self, bytes: &[u8]) -> Checked<()> {
        let map = object(bytes)?;
        for id in Fields(&map).ids("eos_token_id", self.vocab_size)? {
            if !self.eos_token_ids.contains(&id) {
                self.eos_token_ids.push(id);
            }
        }
        Ok(())
    }

    /// Checks what no single field can.
    pub(super) fn check(&self) -> Checked<()> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            return invalid(format!(
                "num_attention_heads {} cannot share num_key_value_heads {} evenly",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return invalid(format!("head size {} is odd, rope needs pairs", self.head_dim));
        }
        if self.heads * self.head_dim > MAX_WIDTH {
            return invalid(format!("{} heads of {} are wider than {MAX_WIDTH}", self.heads, self.head_dim));
        }
        Ok(())
    }

    /// Returns the tensors that the model consists of, with their shapes, by transformers' names.
    pub(super) fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| {
            tensors.insert(name, shape.to_vec());
        };
        add("model.embed_tokens.weight".into(), &[self.vocab_size, self.hidden_size]);
        add("model.norm.weight".into(), &[self.hidden_size]);
        for layer in 0..self.layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                add(format!("model.layers.{layer}.{norm}.weight"), &[self.hidden_size]);
            }
            for module in Module::ALL {
                let (input, output) = module.shape(self);
                let path = module.path(layer);
                add(format!("{path}.weight"), &[output, input]);
                if module.bias(self) {
                    add(format!("{path}.bias"), &[output]);
                }
            }
        }
        match self.head {
            Head::Language if self.tied => {}
            Head::Language => add("lm_head.weight".into(), &[self.vocab_size, self.hidden_size]),
            Head::Classifier(labels) => add("score.weight".into(), &[labels, self.hidden_size]),
        }
        tensors
    }

    /// Returns everything that decides what the weights compute, in one fixed form: the fingerprint's first part.
    pub(super) fn canonical(&self) -> String {
        let mut text = String::new();
        let window = self.sliding_window.unwrap_or(0);
        // Numbers are written by their bits, so that no formatting rule can change a fingerprint.
        let _ = write!(
            text,
            "evenkeel llama 1\nhead {:?}\nsizes {} {} {} {} {} {} {}\neps {:016x}\nrope {:016x} {}\nwindow {window}\n\
             bias {} {}\ntied {}\npad {:?}\n",
            self.head,
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.rms_norm_eps.to_bits(),
            self.rope_theta.to_bits(),
            self.rope_scaling.canonical(),
            self.attention_bias,
            self.mlp_bias,
            self.tied,
            // Only a classifier's result depends on it.
            self.pad_token_id.filter(|_| self.head != Head::Language),
        );
        text
    }

    /// Returns the rope frequencies `[head_dim/2]`, in radians a token, as transformers computes them: in f32.
    pub(super) fn rope_frequencies(&self) -> Vec<f32> {
        let theta = self.rope_theta as f32;
        let pairs = self.head_dim / 2;
        let frequency = |i: usize| 1.0 / theta.powf((2 * i) as f32 / self.head_dim as f32);
        (0..pairs).map(|i| self.rope_scaling.apply(i, frequency(i))).collect()
    }
}

impl RopeScaling {
    /// After: transformers `modeling_rope_utils._compute_llama3_parameters`, candle-transformers `llama::Cache::new`.
    fn apply(&self, pair: usize, frequency: f32) -> f32 {
        match self {
            Self::Default => frequency,
            Self::Linear(factor) => frequency / *factor as f32,
            Self::Factors(factors) => frequency / factors.get(pair).copied().unwrap_or(1.0),
            Self::Llama3(config) => {
                let original = config.original_max_position_embeddings as f32;
                let wave_length = 2.0 * std::f32::consts::PI / frequency;
                if wave_length < original / config.high_freq_factor {
                    return frequency;
                }
                if wave_length > original / config.low_freq_factor {
                    return frequency / config.factor;
                }
                let range = config.high_freq_factor - config.low_freq_factor;
                let smooth = (original / wave_length - config.low_freq_factor) / range;
                (1.0 - smooth) * frequency / config.factor + smooth * frequency
            }
        }
    }

    fn canonical(&self) -> String {
        match self {
            Self::Default => "default".into(),
            Self::Linear(factor) => format!("linear {:016x}", factor.to_bits()),
            Self::Llama3(c) => format!(
                "llama3 {:08x} {:08x} {:08x} {}",
                c.factor.to_bits(),
                c.low_freq_factor.to_bits(),
                c.high_freq_factor.to_bits(),
                c.original_max_position_embeddings
            ),
            Self::Factors(factors) => {
                let bits: String = factors.iter().map(|f| format!(" {:08x}", f.to_bits())).collect();
                format!("factors{bits}")
            }
        }
    }
}

/// Returns the class name and whether it is Mistral's.
fn architecture(fields: &Fields<'_>) -> Checked<(String, bool)> {
    let model_type = match fields.text("model_type")? {
        Some(model_type) => model_type,
        None => return invalid("`model_type` is missing"),
    };
    let family = match model_type {
        "llama" => "Llama",
        "mistral" => "Mistral",
        other => return Err(Fault::Unsupported(format!("model type `{}`", short(&other.into())))),
    };
    let class = match fields.get("architectures") {
        None => format!("{family}ForCausalLM"),
        Some(Value::Array(list)) => match list.first() {
            Some(Value::String(class)) => class.clone(),
            _ => return invalid("`architectures` names no class"),
        },
        Some(_) => return invalid("`architectures` is not a list"),
    };
    match class.strip_prefix(family) {
        Some("ForCausalLM" | "ForSequenceClassification") => Ok((class, family == "Mistral")),
        _ => Err(Fault::Unsupported(format!("architecture {} of model type `{model_type}`", short(&class.into())))),
    }
}

fn head(classes: Option<&Classes>) -> Head {
    classes.map_or(Head::Language, |classes| Head::Classifier(classes.names.len()))
}

/// Old checkpoints write -1 for "none".
fn pad(fields: &Fields<'_>, vocab_size: usize) -> Checked<Option<u32>> {
    match fields.get("pad_token_id") {
        Some(value) if value.as_i64().is_some_and(|id| id < 0) => Ok(None),
        _ => Ok(fields.ids("pad_token_id", vocab_size)?.first().copied()),
    }
}

/// Returns theta and scaling from either generation of the configuration.
fn rope(fields: &Fields<'_>) -> Checked<(f64, RopeScaling)> {
    let theta = fields.positive("rope_theta")?.unwrap_or(10_000.0);
    let parameters = match fields.object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.object("rope_scaling")?,
    };
    let Some(parameters) = parameters else { return Ok((theta, RopeScaling::Default)) };
    if let Some((key, _)) = parameters.0.iter().find(|(_, value)| value.is_object()) {
        return Err(Fault::Unsupported(format!("rope by kind of layer ({})", short(&key.as_str().into()))));
    }
    if parameters.positive("partial_rotary_factor")?.is_some_and(|part| part != 1.0) {
        return Err(Fault::Unsupported("`partial_rotary_factor`".into()));
    }
    let theta = parameters.positive("rope_theta")?.unwrap_or(theta);
    let kind = match parameters.text("rope_type")? {
        Some(kind) => kind,
        None => parameters.text("type")?.unwrap_or("default"),
    };
    let needed = |key: &str| match parameters.positive(key)? {
        Some(number) => Ok(number),
        None => invalid(format!("rope scaling `{kind}` needs `{key}`")),
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear(needed("factor")?),
        "llama3" => {
            let config = Llama3RopeConfig {
                factor: needed("factor")? as f32,
                low_freq_factor: needed("low_freq_factor")? as f32,
                high_freq_factor: needed("high_freq_factor")? as f32,
                original_max_position_embeddings: parameters.needed("original_max_position_embeddings", MAX_CONTEXT)?,
                rope_type: Llama3RopeType::Llama3,
            };
            if config.high_freq_factor <= config.low_freq_factor {
                return invalid("`high_freq_factor` is not above `low_freq_factor`");
            }
            RopeScaling::Llama3(config)
        }
        other => return Err(Fault::Unsupported(format!("rope scaling {}", short(&other.into())))),
    };
    Ok((theta, scaling))
}

fn dtype(fields: &Fields<'_>) -> Checked<Option<DType>> {
    let name = match fields.text("dtype")? {
        Some(name) => Some(name),
        None => fields.text("torch_dtype")?,
    };
    match name {
        None => Ok(None),
        Some("float32") => Ok(Some(DType::F32)),
        Some("float16") => Ok(Some(DType::F16)),
        Some("bfloat16") => Ok(Some(DType::BF16)),
        Some(other) => Err(Fault::Unsupported(format!("number format {}", short(&other.into())))),
    }
}

#[cfg(test)]
mod tests;
