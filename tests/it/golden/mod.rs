//! Golden values: what the real libraries compute (see the README beside the values).
//!
//! Every case is found by its files: no case name, shape or number stands in code, so that other cases of the same
//! layout can be put in their place by `EVENKEEL_GOLDEN`.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evenkeel::model::{BaseModel, ImageModel, Llama, Reserve, open, open_images};
use serde_json::Value;

mod adapters;
pub(crate) mod audit;
mod language;
mod preprocessing;
mod sampling;
mod tokenizers;
mod training;
mod vision;

/// Returns the folder with the golden values.
pub(crate) fn root() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "the one switch of the golden tests")]
    let named = std::env::var("EVENKEEL_GOLDEN");
    named.map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from)
}

/// Returns the device that models are opened on.
pub(crate) fn device() -> String {
    #[expect(clippy::disallowed_methods, reason = "golden tests run on the emulated device too (tests/gpu)")]
    std::env::var("EVENKEEL_DEVICE").unwrap_or_else(|_| "cpu".into())
}

/// What models set aside where they run on a GPU: enough for every case, one after the other.
const RESERVE: Reserve = Reserve {
    kv_bytes: Some(64 << 20),
    rows: 64,
    sequences: 8,
    adapter_bytes: Some(16 << 20),
    job_bytes: Some(0),
    spare_bytes: 0,
};

/// Returns the folders below `root()/part` that hold `file`, sorted.
pub(crate) fn cases(part: &str, file: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root().join(part)) else { return Vec::new() };
    let mut folders: Vec<_> = entries.map(|e| e.unwrap().path()).filter(|p| p.join(file).is_file()).collect();
    folders.sort();
    folders
}

/// Reads a JSON file.
pub(crate) fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A base model of either kind.
#[derive(Clone)]
pub(crate) enum Subject {
    /// It reads tokens.
    Language(Arc<Llama>),
    /// It sees images.
    Images(Arc<dyn ImageModel>),
}

impl Subject {
    /// Reads a folder below the root.
    pub(crate) fn open(base: &str) -> Self {
        let folder = root().join(base);
        let fault = |error| -> ! { panic!("{base}: {error}") };
        let device = device();
        if json(&folder.join("config.json")).get("image_size").is_some() {
            return Self::Images(Arc::from(open_images(&folder, &device, "f32").unwrap_or_else(|e| fault(e))));
        }
        let mut model = open(&folder, &device, "f32").unwrap_or_else(|e| fault(e));
        model.reserve(&RESERVE).unwrap_or_else(|e| fault(e));
        Self::Language(Arc::new(model))
    }

    /// Returns what both kinds are.
    pub(crate) fn model(&self) -> Arc<dyn BaseModel> {
        match self {
            Self::Language(model) => model.clone(),
            Self::Images(model) => model.clone(),
        }
    }
}

/// Tensors by name.
pub(crate) type Tensors = HashMap<String, Tensor>;

/// Reads a safetensors file.
pub(crate) fn tensors(path: &Path) -> Tensors {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Counts what a golden test compared, and collects what differs.
pub(crate) struct Tally {
    name: &'static str,
    cases: usize,
    values: usize,
    faults: Vec<String>,
}

impl Tally {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, cases: 0, values: 0, faults: Vec::new() }
    }

    /// Counts a case.
    pub(crate) fn case(&mut self) {
        self.cases += 1;
    }

    /// Compares two tensors of the same shape.
    pub(crate) fn close(&mut self, what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
        if got.dims() != expected.dims() {
            self.faults.push(format!("{what}: shape {:?}, expected {:?}", got.dims(), expected.dims()));
            return;
        }
        let flat = |t: &Tensor| {
            t.to_device(&Device::Cpu)
                .unwrap()
                .to_dtype(DType::F64)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1::<f64>()
                .unwrap()
        };
        self.close_slices(what, &flat(got), &flat(expected), tolerance);
    }

    /// Compares two slices of the same length.
    pub(crate) fn close_slices(&mut self, what: &str, got: &[f64], expected: &[f64], tolerance: f64) {
        self.values += expected.len();
        if got.len() != expected.len() {
            self.faults.push(format!("{what}: {} values, expected {}", got.len(), expected.len()));
            return;
        }
        let worst = got.iter().zip(expected).map(|(g, e)| if g == e { 0.0 } else { (g - e).abs() });
        let worst = worst.fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
        if worst > tolerance {
            self.faults.push(format!("{what}: differs by {worst:e}, allowed {tolerance:e}"));
        }
    }

    /// Compares two values exactly.
    pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: &T, expected: &T) {
        self.values += 1;
        if got != expected {
            self.faults.push(format!("{what}: {got:?}, expected {expected:?}"));
        }
    }

    /// Records a fault.
    pub(crate) fn fault(&mut self, what: String) {
        self.faults.push(what);
    }

    /// Prints the count and fails on any fault, or when nothing was compared.
    pub(crate) fn finish(self) {
        assert!(self.cases > 0, "{}: no case under {}", self.name, root().display());
        assert!(self.faults.is_empty(), "{}: {} faults\n{}", self.name, self.faults.len(), self.faults.join("\n"));
        println!("{}: {} cases, {} values", self.name, self.cases, self.values);
    }
}

/// Checks that the refusal of a broken folder names what is wrong: something in which the folder differs from the sound
/// one, or a word of some length by which the manifest says it.
pub(crate) fn names_fault(tally: &mut Tally, name: &str, error: &str, wrong: &str, (broken, sound): (&Path, &Path)) {
    // The folder's own name is no part of the message.
    let error = error.replace(&broken.display().to_string(), "");
    let mut words = differing(broken, sound);
    let said = wrong.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.len() >= 6);
    words.extend(said.map(str::to_owned));
    if !words.iter().any(|word| error.contains(word)) {
        tally.fault(format!("{name}: `{error}` names none of {words:?}"));
    }
}

/// Returns keys, values, names of tensors and modules in which two folders differ, and names of files that cannot be
/// compared: missing ones and unreadable ones.
pub(crate) fn differing(broken: &Path, sound: &Path) -> BTreeSet<String> {
    let files = [broken, sound].map(|folder| {
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with("expected")).collect::<BTreeSet<_>>()
    });
    let mut words = BTreeSet::new();
    for file in files[0].union(&files[1]) {
        let [of_broken, of_sound] = [broken, sound].map(|folder| facts(&folder.join(file)));
        match (of_broken, of_sound) {
            (Some(a), Some(b)) if a != b => {
                words.extend(a.symmetric_difference(&b).flat_map(|fact| fact.words.clone()))
            }
            _ if std::fs::read(broken.join(file)).ok() == std::fs::read(sound.join(file)).ok() => {}
            _ => words.extend([file.clone(), file.rsplit('.').next().unwrap().to_owned()]),
        }
    }
    words.retain(|word| word.contains(char::is_alphabetic) && !["true", "false", "null"].contains(&word.as_str()));
    words
}

/// One thing that a file says, with the words by which it is called.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Fact {
    words: Vec<String>,
    content: Vec<u8>,
}

/// Returns what a JSON or safetensors file says; `None` where it cannot be read.
fn facts(file: &Path) -> Option<BTreeSet<Fact>> {
    let bytes = std::fs::read(file).ok()?;
    if file.extension()? == "safetensors" {
        let tensors = safetensors::SafeTensors::deserialize(&bytes).ok()?;
        let fact = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            let module = name.trim_start_matches("base_model.model.").split(".lora_").next().unwrap().to_owned();
            let content = [format!("{:?} {:?}", view.shape(), view.dtype()).as_bytes(), view.data()].concat();
            Fact { words: vec![module, name], content }
        };
        return Some(tensors.tensors().into_iter().map(fact).collect());
    }
    let value: Value = serde_json::from_slice(&bytes).ok()?;
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fact = |(key, value): (&String, &Value)| {
        let values: Vec<String> = match value {
            Value::Object(inner) => inner.values().map(text).collect(),
            Value::Array(inner) => inner.iter().map(text).collect(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => vec![text(value)],
        };
        Fact { words: [vec![key.clone()], values].concat(), content: value.to_string().into_bytes() }
    };
    Some(value.as_object()?.iter().map(fact).collect())
}
