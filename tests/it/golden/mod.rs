//! Golden values: what the real libraries compute (see the README beside the values).
//!
//! Every case is found by its files: no case name, shape or number stands in code, so that other cases of the same
//! layout can be put in their place by `EVENKEEL_GOLDEN`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use evenkeel::model::{BaseModel, ImageModel, Llama, open, open_images};
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
        if json(&folder.join("config.json")).get("image_size").is_some() {
            return Self::Images(Arc::from(open_images(&folder, "cpu", "f32").unwrap_or_else(|e| fault(e))));
        }
        Self::Language(Arc::new(open(&folder, "cpu", "f32").unwrap_or_else(|e| fault(e))))
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
        let flat = |t: &Tensor| t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
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
