//! `golden_preprocessing`: pixels of images as transformers' PIL-based processors make them, and the resized bytes.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a golden test stops at a file that it cannot read")]

use std::path::Path;

use candle_core::Tensor;
use evenkeel::model::image::Processor;

use super::{Tally, root, tensors};

/// f32 of a factor and a quotient.
const TOLERANCE: f64 = 1e-5;
const CONFIG: &str = ".preprocessor_config.json";
/// What transformers 4 makes of transparency, and what its torchvision-based processors make of all images.
const OF_OTHERS: [&str; 2] = ["pixel_values_alpha_dropped", "pixel_values_torchvision"];

fn names(folder: &Path, end: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter_map(|name| name.strip_suffix(end).map(str::to_owned)).collect();
    names.sort();
    names
}

/// Reads an image, whatever its format.
fn read(folder: &Path, name: &str) -> Vec<u8> {
    let ends = ["png", "jpg", "jpeg", "webp"];
    let found = ends.iter().find_map(|end| std::fs::read(folder.join(format!("{name}.{end}"))).ok());
    found.unwrap_or_else(|| panic!("{}: no image `{name}`", folder.display()))
}

#[test]
fn golden_preprocessing() {
    let mut tally = Tally::new("golden_preprocessing");
    let folder = root().join("vision/preprocessing");
    let expected = if folder.is_dir() { tensors(&folder.join("expected.safetensors")) } else { Default::default() };
    let configs = names(&folder, CONFIG);
    let mut keys: Vec<_> = expected.keys().collect();
    keys.sort();
    for key in keys {
        let of_key = |config: &&String| key.strip_prefix(config.as_str()).is_some_and(|rest| rest.starts_with('.'));
        let config = configs.iter().filter(of_key).max_by_key(|config| config.len());
        let rest = config.and_then(|config| key[config.len() + 1..].rsplit_once('.'));
        let Some((config, (image, kind))) = config.zip(rest) else {
            tally.fault(format!("{key}: no {CONFIG}"));
            continue;
        };
        if OF_OTHERS.contains(&kind) {
            continue;
        }
        // Of a transparent image the bytes are those of transformers 4, which drops what 5 and we lay on white.
        let on_white = format!(".{image}.pixel_values_on_white");
        if kind == "resized_u8" && expected.keys().any(|key| key.ends_with(&on_white)) {
            continue;
        }
        let tensor = &expected[key];
        let [height, width] = match (kind, tensor.dims()) {
            ("resized_u8", &[height, width, 3]) | (_, &[3, height, width]) => [height, width],
            (_, dims) => panic!("{key}: {dims:?}"),
        };
        let json = std::fs::read(folder.join(format!("{config}{CONFIG}"))).unwrap();
        let processor = Processor::parse(&json, Some([height, width])).unwrap_or_else(|e| panic!("{config}: {e}"));
        let file = read(&folder, image);
        tally.case();
        if kind == "resized_u8" {
            let got = processor.resized(&file).unwrap_or_else(|e| panic!("{key}: {e}"));
            let got = Tensor::from_vec(got, tensor.dims(), tensor.device()).unwrap();
            tally.close(key, &got, tensor, 0.0);
        } else {
            let got = processor.pixels(&file).unwrap_or_else(|e| panic!("{key}: {e}"));
            let got = Tensor::from_vec(got, tensor.dims(), tensor.device()).unwrap();
            tally.close(key, &got, tensor, TOLERANCE);
        }
    }
    tally.finish();
}
