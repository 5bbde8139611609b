//! `golden_vision`: ViT and Swin-v2 against transformers, without adapters.
//!
//! Tolerances are those of the README beside the values: 5e-4, and 1e-3 where attention is by cosines, whose logits of up
//! to 100 sharpen rounding (`logit_scale` tensors); twice the recorded difference for bf16.

use std::path::Path;

use candle_core::{D, DType, Device, Tensor};
use evenkeel::lora::LoraBatch;
use evenkeel::model::{ImageModel, open_images};

use super::{Tally, Tensors, cases, device, json, tensors};

#[test]
fn golden_vision() {
    let mut tally = Tally::new("golden_vision");
    for folder in cases("vision", "model.safetensors") {
        if !folder.join("expected.safetensors").is_file() {
            continue;
        }
        tally.case();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let model = open_images(&folder, &device(), "f32").unwrap_or_else(|e| panic!("{name}: {e}"));
        let values = tensors(&folder.join("expected.safetensors"));
        let case = Case { name, tolerance: tolerance(&folder), values };
        case.compare(&mut tally, &*model);
        case.bf16(&mut tally, &folder);
    }
    tally.finish();
}

/// What logits and hidden states of a model may differ by.
pub(super) fn tolerance(folder: &Path) -> f64 {
    let cosine = tensors(&folder.join("model.safetensors")).keys().any(|name| name.ends_with("logit_scale"));
    if cosine { 1e-3 } else { 5e-4 }
}

struct Case {
    name: String,
    tolerance: f64,
    values: Tensors,
}

impl Case {
    fn compare(&self, tally: &mut Tally, model: &dyn ImageModel) {
        let pixels = &self.values["pixel_values"];
        // What is left out of a compact set is what another case shows; logits are what every case is for.
        assert!(self.values.contains_key("logits"), "{}: there are no logits to compare with", self.name);
        let images = pixels.dim(0).unwrap();
        let mut close = |key: &str, got: &Tensor| {
            let Some(expected) = self.values.get(key) else { return };
            tally.close(&format!("{} {key}", self.name), got, expected, self.tolerance);
        };
        let logits = model.classify(pixels, &LoraBatch::default()).unwrap();
        close("logits", &logits);
        close("probs", &candle_nn::ops::softmax(&logits, D::Minus1).unwrap());
        let alone: Vec<Tensor> = (0..images)
            .map(|i| model.classify(&pixels.narrow(0, i, 1).unwrap(), &LoraBatch::default()).unwrap())
            .collect();
        close("logits", &Tensor::cat(&alone, 0).unwrap());

        let hidden = model.hidden_states(pixels).unwrap();
        let by_image = |rows: &Tensor| rows.reshape((images, (), rows.dim(1).unwrap())).unwrap();
        close("last_hidden_state", &by_image(&hidden.last));
        if let Some(pooled) = &hidden.pooled {
            close("pooler_output", pooled);
        }
        for (i, state) in hidden.states.iter().enumerate() {
            let key = format!("hidden_states.{i}");
            let Some(expected) = self.values.get(&key) else { continue };
            close(&key, &by_image(state).narrow(0, 0, expected.dim(0).unwrap()).unwrap());
        }
        let batch_is_alone = (logits - Tensor::cat(&alone, 0).unwrap()).unwrap().abs().unwrap();
        let largest: f32 = batch_is_alone.flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap();
        // A GPU's products choose their kernels by the number of rows.
        let allowed = if device() == "cpu" { 0.0 } else { self.tolerance as f32 };
        tally.equal(&format!("{}: a batch is one by one: {largest}", self.name), &(largest <= allowed), &true);
    }

    /// Weights in bf16: as close to f32 as transformers' own bf16, within a factor of two.
    fn bf16(&self, tally: &mut Tally, folder: &Path) {
        let Some(theirs) = self.values.get("bf16.logits") else { return };
        let expected = &self.values["logits"];
        let largest = |logits: &Tensor| -> f64 {
            let difference = (logits.to_dtype(DType::F32).unwrap() - expected).unwrap().abs().unwrap();
            difference.flatten_all().unwrap().max(0).unwrap().to_dtype(DType::F64).unwrap().to_scalar().unwrap()
        };
        let recorded = json(&folder.join("expected.json"))["bf16"]["max_abs_diff_to_f32"].as_f64();
        let limit = 2.0 * recorded.unwrap_or_else(|| largest(theirs));
        let model = open_images(folder, &device(), "bf16").unwrap();
        let logits = model.classify(&self.values["pixel_values"], &LoraBatch::default()).unwrap();
        let got = largest(&logits.to_device(&Device::Cpu).unwrap());
        tally.equal(&format!("{} bf16: {got} of {limit}", self.name), &(got <= limit), &true);
    }
}
