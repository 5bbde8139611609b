//! Reads `adapter_config.json` into a checked value.
//!
//! Knows the keys of `peft.LoraConfig` and their defaults; which layers they name is decided in `targets`. A key that
//! would change the result and is not implemented is refused by name, known or not.
//! Source: peft 0.21 `tuners/lora/config.py`.

use super::json::{Json, clip};
use super::{Classes, LoraError, NO_LAYER, Problem, labels};

/// Largest configuration read, in bytes: names of labels fill it.
const MAX_BYTES: usize = 4 << 20;
/// Largest rank read; tensors have to agree anyway.
const MAX_RANK: usize = 1 << 16;
/// Most entries of one list or pattern table: a model of 100 layers with seven adapted each has 700.
const MAX_ENTRIES: usize = 2048;
/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 4096;

/// Keys that change nothing about the result.
///
/// `base_model_name_or_path` in particular is never opened nor fetched. `fan_in_fan_out` says how a base layer stores
/// its weight; no layer here is stored that way, and peft itself resets it then. `eva_config` only says how training
/// began.
const IGNORED: &[&str] = &[
    "base_model_name_or_path",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
];

/// Values of `init_lora_weights` that leave the base weights as they are.
const SOUND_INITS: &[&str] = &["default", "gaussian", "eva", "orthogonal"];

/// Which modules a key names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Names {
    /// Whole paths, or what follows a dot.
    List(Vec<String>),
    /// A regular expression for the whole path.
    Pattern(String),
}

/// Which biases were trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Biases {
    None,
    All,
    LoraOnly,
}

/// What an adapter's configuration says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LoraConfig {
    pub(super) rank: usize,
    pub(super) alpha: f64,
    /// By pattern, in the order of the file.
    pub(super) rank_pattern: Vec<(String, usize)>,
    pub(super) alpha_pattern: Vec<(String, f64)>,
    pub(super) rslora: bool,
    pub(super) dora: bool,
    pub(super) lora_bias: bool,
    pub(super) biases: Biases,
    pub(super) targets: Names,
    pub(super) excluded: Option<Names>,
    /// Numbers of the layers to adapt; `None` is all.
    pub(super) layers: Option<Vec<u64>>,
    pub(super) layers_pattern: Vec<String>,
    pub(super) modules_to_save: Vec<String>,
    pub(super) task_type: String,
    /// Of the head that is saved, where they are named.
    pub(super) labels: Option<Classes>,
}

impl LoraConfig {
    /// Reads the bytes of `adapter_config.json`.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, LoraError> {
        if bytes.len() > MAX_BYTES {
            return Err(invalid("is", &format!("{} bytes long, at most {MAX_BYTES} are read", bytes.len())));
        }
        let json = Json::parse(bytes).map_err(|fault| invalid("is", &format!("not sound JSON: {fault}")))?;
        let Json::Object(entries) = json else { return Err(invalid("is", "not a JSON object")) };
        check_type(&entries)?;

        let mut config = Self {
            rank: 8,
            alpha: 8.0,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            rslora: false,
            dora: false,
            lora_bias: false,
            biases: Biases::None,
            targets: Names::List(Vec::new()),
            excluded: None,
            layers: None,
            layers_pattern: Vec::new(),
            modules_to_save: Vec::new(),
            task_type: String::new(),
            labels: None,
        };
        for (key, value) in &entries {
            config.take(key, value)?;
        }
        config.check()?;
        Ok(config)
    }

    fn take(&mut self, key: &str, value: &Json) -> Result<(), LoraError> {
        if *value == Json::Null {
            return Ok(());
        }
        match key {
            "peft_type" => {}
            "r" => self.rank = rank(key, value)?,
            "lora_alpha" => self.alpha = real(key, value)?,
            "rank_pattern" => self.rank_pattern = table(key, value, rank)?,
            "alpha_pattern" => self.alpha_pattern = table(key, value, real)?,
            "use_rslora" => self.rslora = flag(key, value)?,
            "use_dora" => self.dora = flag(key, value)?,
            "lora_bias" => self.lora_bias = flag(key, value)?,
            "bias" => self.biases = biases(value)?,
            "target_modules" => self.targets = names(key, value)?,
            "exclude_modules" => self.excluded = Some(names(key, value)?).filter(|_| !value.is_blank()),
            "layers_to_transform" => self.layers = layers(value)?,
            "layers_pattern" => self.layers_pattern = texts(key, value)?,
            "modules_to_save" => self.modules_to_save = texts(key, value)?,
            "auto_mapping" => self.labels = labels::read(value)?,
            "task_type" => self.task_type = text(key, value)?,
            "init_lora_weights" => check_init(value)?,
            _ if IGNORED.contains(&key) || value.is_blank() => {}
            _ => return Err(LoraError::Unsupported(clip(key))),
        }
        Ok(())
    }

    /// Checks what several keys say together.
    fn check(&mut self) -> Result<(), LoraError> {
        match &self.targets {
            Names::List(list) if list.is_empty() => return Err(invalid("target_modules", "names no module")),
            Names::Pattern(pattern) if pattern.is_empty() => return Err(invalid("target_modules", "is empty")),
            Names::Pattern(_) if self.layers.is_some() => {
                return Err(invalid("layers_to_transform", "needs a list in target_modules"));
            }
            Names::List(_) | Names::Pattern(_) => {}
        }
        if !self.layers_pattern.is_empty() && self.layers.is_none() {
            return Err(invalid("layers_pattern", "needs layers_to_transform"));
        }
        if self.dora && self.lora_bias {
            return Err(LoraError::Unsupported("use_dora with lora_bias".to_owned()));
        }
        // What peft does for this task, so that files that leave it out mean the same.
        if self.task_type == "SEQ_CLS" {
            self.modules_to_save.extend(["classifier", "score"].map(str::to_owned));
        }
        self.modules_to_save.sort();
        self.modules_to_save.dedup();
        Ok(())
    }

    /// Returns whether it says that no layer is adapted, only modules saved.
    pub(super) fn adapts_nothing(&self) -> bool {
        matches!(&self.targets, Names::Pattern(name) if name == NO_LAYER)
    }

    /// Returns the text that the identity of an adapter is taken from: every key with a meaning, in a fixed order.
    pub(super) fn canonical(&self) -> String {
        let names = |names: &Names| match names {
            Names::List(list) => {
                let mut list = list.clone();
                list.sort();
                list.dedup();
                serde_json::json!(list)
            }
            Names::Pattern(pattern) => serde_json::json!(pattern),
        };
        let mut layers = self.layers.clone();
        if let Some(numbers) = &mut layers {
            numbers.sort_unstable();
            numbers.dedup();
        }
        let biases = match self.biases {
            Biases::None => "none",
            Biases::All => "all",
            Biases::LoraOnly => "lora_only",
        };
        let mut keys = serde_json::json!([
            ["alpha_pattern", self.alpha_pattern],
            ["bias", biases],
            ["exclude_modules", self.excluded.as_ref().map(names)],
            ["layers_pattern", self.layers_pattern],
            ["layers_to_transform", layers],
            ["lora_alpha", self.alpha],
            ["lora_bias", self.lora_bias],
            ["modules_to_save", self.modules_to_save],
            ["r", self.rank],
            ["rank_pattern", self.rank_pattern],
            ["target_modules", names(&self.targets)],
            ["task_type", self.task_type],
            ["use_dora", self.dora],
            ["use_rslora", self.rslora],
        ]);
        // Only where there are some: what was published before has none.
        if let (Some(keys), Some(labels)) = (keys.as_array_mut(), &self.labels) {
            keys.push(serde_json::json!(["labels", labels.names, labels.problem == Problem::Multi]));
        }
        keys.to_string()
    }
}

/// Refuses other kinds of adapters before anything else is judged, since their keys mean other things.
fn check_type(entries: &[(String, Json)]) -> Result<(), LoraError> {
    match entries.iter().find(|(key, _)| key == "peft_type").map(|(_, value)| value) {
        Some(Json::Text(kind)) if kind == "LORA" => Ok(()),
        Some(Json::Text(kind)) => Err(LoraError::Unsupported(format!("peft_type {}", clip(kind)))),
        Some(_) => Err(invalid("peft_type", "has to be a text")),
        None => Err(invalid("peft_type", "is missing")),
    }
}

/// Other ways to begin (PiSSA, OLoRA, CorDA, LoftQ …) changed the base weights that the adapter was trained on.
fn check_init(value: &Json) -> Result<(), LoraError> {
    match value.as_text() {
        Some(kind) if SOUND_INITS.contains(&kind) => Ok(()),
        Some(kind) => Err(LoraError::Unsupported(format!("init_lora_weights {}", clip(kind)))),
        None if value.as_bool().is_some() => Ok(()),
        None => Err(invalid("init_lora_weights", "has to be a text, true or false")),
    }
}

pub(super) fn invalid(key: &str, fault: &str) -> LoraError {
    LoraError::Invalid(format!("adapter_config.json: {key} {fault}"))
}

fn rank(key: &str, value: &Json) -> Result<usize, LoraError> {
    let number = value.as_integer().and_then(|number| usize::try_from(number).ok());
    number
        .filter(|r| (1..=MAX_RANK).contains(r))
        .ok_or_else(|| invalid(&clip(key), &format!("has to be a whole number from 1 to {MAX_RANK}")))
}

fn real(key: &str, value: &Json) -> Result<f64, LoraError> {
    #[expect(clippy::cast_precision_loss, reason = "an alpha beyond 2^53 is sound in its first 16 digits")]
    let number = if let Json::Real(number) = value { Some(*number) } else { value.as_integer().map(|n| n as f64) };
    number
        .filter(|x| x.is_finite() && x.abs() <= f64::from(f32::MAX))
        .ok_or_else(|| invalid(&clip(key), "has to be a number within the range of f32"))
}

fn flag(key: &str, value: &Json) -> Result<bool, LoraError> {
    value.as_bool().ok_or_else(|| invalid(key, "has to be true or false"))
}

fn text(key: &str, value: &Json) -> Result<String, LoraError> {
    let text = value.as_text().filter(|text| text.len() <= 256);
    text.map(str::to_owned).ok_or_else(|| invalid(key, "has to hold texts of at most 256 bytes"))
}

fn texts(key: &str, value: &Json) -> Result<Vec<String>, LoraError> {
    if value.as_text().is_some_and(str::is_empty) {
        return Ok(Vec::new());
    }
    let items = value.as_array().unwrap_or(std::slice::from_ref(value));
    bounded(key, items.len())?;
    items.iter().map(|item| text(key, item)).collect()
}

fn names(key: &str, value: &Json) -> Result<Names, LoraError> {
    if let Some(pattern) = value.as_text() {
        if pattern.len() > MAX_PATTERN {
            return Err(invalid(key, &format!("is a pattern of more than {MAX_PATTERN} bytes")));
        }
        return Ok(Names::Pattern(pattern.to_owned()));
    }
    let items = value.as_array().ok_or_else(|| invalid(key, "has to be a text or a list of texts"))?;
    bounded(key, items.len())?;
    items.iter().map(|item| text(key, item)).collect::<Result<_, _>>().map(Names::List)
}

fn layers(value: &Json) -> Result<Option<Vec<u64>>, LoraError> {
    let key = "layers_to_transform";
    let items = value.as_array().unwrap_or(std::slice::from_ref(value));
    if items.is_empty() {
        return Ok(None);
    }
    bounded(key, items.len())?;
    let number = |item: &Json| item.as_integer().and_then(|number| u64::try_from(number).ok());
    let numbers: Option<Vec<u64>> = items.iter().map(number).collect();
    numbers.map(Some).ok_or_else(|| invalid(key, "has to be the number of a layer or a list of them"))
}

fn biases(value: &Json) -> Result<Biases, LoraError> {
    match value.as_text() {
        Some("none") => Ok(Biases::None),
        Some("all") => Ok(Biases::All),
        Some("lora_only") => Ok(Biases::LoraOnly),
        Some(_) | None => Err(invalid("bias", "has to be none, all or lora_only")),
    }
}

fn table<T>(
    key: &str,
    value: &Json,
    read: impl Fn(&str, &Json) -> Result<T, LoraError>,
) -> Result<Vec<(String, T)>, LoraError> {
    let entries = value.as_object().ok_or_else(|| invalid(key, "has to be an object"))?;
    bounded(key, entries.len())?;
    if entries.iter().any(|(name, _)| name.len() > MAX_PATTERN) {
        return Err(invalid(key, &format!("has a pattern of more than {MAX_PATTERN} bytes")));
    }
    entries.iter().map(|(name, value)| Ok((name.clone(), read(&format!("{key}.{name}"), value)?))).collect()
}

fn bounded(key: &str, entries: usize) -> Result<(), LoraError> {
    if entries > MAX_ENTRIES {
        return Err(invalid(key, &format!("has {entries} entries, at most {MAX_ENTRIES} are read")));
    }
    Ok(())
}
