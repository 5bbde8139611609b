//! Reads a whole fine-tuned model as an adapter that replaces every weight of the base.
//!
//! Takes the bytes of `model.safetensors` and what its configuration says; opens nothing. Whether the configuration fits
//! the base is the model's to judge, the tensors are judged here: every weight has to be there, nothing may be left over.
//! A model with a classification head over a language base brings `score` and leaves the base's language head alone.
//! Source: transformers 5.23 `modeling_utils.save_pretrained`.

use std::collections::BTreeMap;

use candle_core::Tensor;
use sha2::{Digest, Sha256};

use super::json::{Json, clip};
use super::tensors::View;
use super::{
    Adapter, AdapterInfo, Base, Change, Classes, Generation, Guard, Kind, LoraError, Site, SiteId, SiteKind, spelling,
    tensors,
};

/// Largest `config.json` read, in bytes: names of labels fill it.
const MAX_CONFIG: usize = 4 << 20;

/// Endings of tensors that old checkpoints store although they follow from the configuration.
const DERIVED: [&str; 2] = [".rotary_emb.inv_freq", ".attention.self.relative_coords_table"];

/// What the configuration of a whole model says, as far as tensors and results depend on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Full {
    /// All of it in one fixed form, for the identity.
    pub canonical: String,
    /// Whether the embedding is the language head too.
    pub tied: bool,
    /// The labels, where the head is a classifier.
    pub classes: Option<Classes>,
}

/// Returns whether a configuration is that of a whole model instead of a PEFT adapter.
///
/// # Errors
/// When it is too large.
pub fn is_full(config: &[u8]) -> Result<bool, LoraError> {
    if config.len() > MAX_CONFIG {
        let length = config.len();
        return Err(LoraError::Invalid(format!("the configuration has {length} bytes, at most {MAX_CONFIG} are read")));
    }
    let Ok(Json::Object(entries)) = Json::parse(config) else { return Ok(false) };
    let has = |key: &str| entries.iter().any(|(name, _)| name == key);
    Ok(!has("peft_type") && (has("model_type") || has("architectures")))
}

/// Binds every tensor of `model.safetensors` to `base`.
///
/// # Errors
/// Names the tensor that is missing, left over, of another shape or not finite.
pub fn read(full: Full, tensors: &[u8], base: &dyn Base) -> Result<Adapter, LoraError> {
    let mut views = tensors::read(tensors)?;
    views.retain(|name, _| !DERIVED.iter().any(|end| name.ends_with(end)));
    let generation = generation(&full, &views, base);
    let sites = spelling::of_file(base, |site| views.contains_key(&site.tensor()));
    let brings_head = full.classes.is_some() && sites.iter().any(|site| site.kind == SiteKind::Classifier);
    let tied = full.tied && full.classes.is_none();

    let mut reader = Reader { views, base, bytes: 0 };
    let mut changes = BTreeMap::new();
    let mut embedding = None;
    for (index, site) in sites.iter().enumerate() {
        let weight = match (site.kind, &full.classes) {
            (SiteKind::Classifier, None) => continue,
            (SiteKind::Classifier, Some(classes)) => reader.weight(site, &[classes.names.len(), site.input])?,
            (SiteKind::Head, _) if brings_head => continue,
            (SiteKind::Head, _) if tied => reader.shared(site, embedding.as_ref())?,
            (SiteKind::Head | SiteKind::Linear | SiteKind::Norm | SiteKind::Patches(_) | SiteKind::Parameter(_), _) => {
                reader.weight(site, &site.shape())?
            }
            (SiteKind::Embedding, _) => {
                let weight = reader.weight(site, &site.shape())?;
                embedding = Some((site.path.as_str(), weight.clone()));
                weight
            }
        };
        let outputs = if site.kind == SiteKind::Classifier { weight.dim(0)? } else { site.output };
        let bias = site.bias.then(|| reader.take(&format!("{}.bias", site.path), &[outputs])).transpose()?;
        changes.insert(SiteId(index), Change::Replaced { weight, bias });
    }
    let embedded = embedding.map(|(path, _)| format!("{path}.weight"));
    if let Some(name) = reader.views.keys().find(|name| Some(*name) != embedded.as_ref()) {
        return Err(LoraError::Invalid(format!("tensor {}: this base model has no place for it", clip(name))));
    }
    let info = AdapterInfo {
        kind: Kind::Full,
        rank: 0,
        alpha: 0.0,
        modules: changes.keys().filter_map(|id| sites.get(id.0)).map(|site| site.path.clone()).collect(),
        task_type: match (&full.classes, embedded.is_some()) {
            (Some(_), true) => "SEQ_CLS",
            (None, true) => "CAUSAL_LM",
            // PEFT has no word for images.
            (_, false) => "",
        }
        .to_owned(),
        bytes: reader.bytes,
        classes: full.classes,
    };
    Ok(Adapter {
        generation,
        base: base.fingerprint().to_owned(),
        info,
        changes,
        piece: None,
        table: None,
        guard: Guard(None),
    })
}

/// The tensors not yet bound.
struct Reader<'a> {
    views: BTreeMap<String, View<'a>>,
    base: &'a dyn Base,
    /// Of what was read.
    bytes: u64,
}

impl Reader<'_> {
    /// Reads the weight of a site; that of the embedding stays among the views, for a head that repeats it.
    fn weight(&mut self, site: &Site, shape: &[usize]) -> Result<Tensor, LoraError> {
        let name = site.tensor();
        if site.kind != SiteKind::Embedding {
            return self.take(&name, shape);
        }
        let view = self.views.get(&name).ok_or_else(|| missing(&name))?;
        let tensor = bind(&name, view, shape, self.base)?;
        self.bytes += bytes(&tensor);
        Ok(tensor)
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, LoraError> {
        let view = self.views.remove(name).ok_or_else(|| missing(name))?;
        let tensor = bind(name, &view, shape, self.base)?;
        self.bytes += bytes(&tensor);
        Ok(tensor)
    }

    /// Returns the embedding for the head that is tied to it; a copy of it in the file has to be one.
    fn shared(&mut self, site: &Site, embedding: Option<&(&str, Tensor)>) -> Result<Tensor, LoraError> {
        let name = format!("{}.weight", site.path);
        let Some((path, weight)) = embedding else {
            return Err(LoraError::Mismatch(format!("tensor {name}: this base model has no embedding to tie it to")));
        };
        if let Some(copy) = self.views.remove(&name)
            && !self.views.get(&format!("{path}.weight")).is_some_and(|own| same(own, &copy))
        {
            let fault = "differs from the embedding, to which tie_word_embeddings ties it";
            return Err(LoraError::Invalid(format!("tensor {name}: {fault}")));
        }
        Ok(weight.clone())
    }
}

fn same(a: &View<'_>, b: &View<'_>) -> bool {
    a.format == b.format && a.shape == b.shape && a.data == b.data
}

fn missing(name: &str) -> LoraError {
    LoraError::Invalid(format!("tensor {name} is missing"))
}

fn bind(name: &str, view: &View<'_>, shape: &[usize], base: &dyn Base) -> Result<Tensor, LoraError> {
    if view.shape != shape {
        let got = &view.shape;
        return Err(LoraError::Mismatch(format!("tensor {name}: has shape {got:?}, this base model needs {shape:?}")));
    }
    Ok(Tensor::from_vec(view.floats(name)?, shape, base.device())?)
}

fn bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

/// Returns SHA-256 over everything that decides what the model computes; each field is preceded by its length.
fn generation(full: &Full, views: &BTreeMap<String, View<'_>>, base: &dyn Base) -> Generation {
    let mut digest = Sha256::new_with_prefix(b"evenkeel full model 1");
    let mut field = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    field(base.fingerprint().as_bytes());
    field(full.canonical.as_bytes());
    // Every name, text and number in its own field: none can be read as another.
    if let Some(classes) = &full.classes {
        field(format!("{:?} {:?}", classes.problem, classes.pad_token_id).as_bytes());
        classes.names.iter().for_each(|name| field(name.as_bytes()));
    }
    for (name, view) in views {
        field(name.as_bytes());
        field(view.format.name().as_bytes());
        field(format!("{:?}", view.shape).as_bytes());
        field(view.data);
    }
    Generation::from_digest(digest.finalize().into())
}
