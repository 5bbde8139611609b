//! What the configurations of image classifiers share: sizes, patches, labels, and what a whole model is compared by.
//!
//! Computes nothing and names no tensor. Defaults are those of transformers' configuration classes.

use std::fmt::Write;

use candle_core::DType;
use serde_json::{Map, Value, json};

use super::{Checked, Fault, Fields, Vision, classes, dtype, invalid, object, short};
use crate::lora::full::Full;
use crate::lora::{Classes, LoraError};

/// Largest side of an image, in pixels.
const MAX_SIDE: usize = 1 << 14;
const MAX_CHANNELS: usize = 1 << 8;
/// What images are read as: red, green, blue.
const CHANNELS: usize = 3;
/// Key of the labels.
const LABELS: &str = "id2label";
/// Most patches of an image.
pub(super) const MAX_PATCHES: usize = 1 << 18;

/// The image side of a configuration.
#[derive(Debug, Clone)]
pub(in crate::model) struct Images {
    /// As the file names it: that of the classifier, or of the model without a head.
    pub(in crate::model) architecture: String,
    /// The classifier's.
    class: &'static str,
    /// Height and width of an image.
    pub(in crate::model) size: [usize; 2],
    /// Height and width of a patch.
    pub(in crate::model) patch: [usize; 2],
    pub(in crate::model) channels: usize,
    /// None without a head.
    pub(in crate::model) classes: Option<Classes>,
    /// Number format of the checkpoint, when it says.
    pub(in crate::model) dtype: Option<DType>,
    /// The file it was read from.
    pub(super) source: Map<String, Value>,
}

impl Images {
    /// Reads what all have; known architectures are `class`, the classifier, and `headless`.
    pub(super) fn read(
        map: &Map<String, Value>,
        [class, headless]: [&'static str; 2],
        default_patch: usize,
    ) -> Checked<Self> {
        let fields = Fields(map);
        let architecture = match fields.get("architectures") {
            None => class.to_owned(),
            Some(Value::Array(list)) => match list.first() {
                Some(Value::String(class)) => class.clone(),
                _ => return invalid("`architectures` names no class"),
            },
            Some(_) => return invalid("`architectures` is not a list"),
        };
        if architecture != class && architecture != headless {
            return Err(Fault::Unsupported(format!("architecture {}", short(&architecture.into()))));
        }
        if fields.get("quantization_config").is_some() {
            return Err(Fault::Unsupported("`quantization_config` in a safetensors folder".into()));
        }
        match fields.text("hidden_act")?.unwrap_or("gelu") {
            "gelu" => {}
            other => return Err(Fault::Unsupported(format!("activation {}", short(&other.into())))),
        }
        let size = pair(&fields, "image_size", 224)?;
        let patch = pair(&fields, "patch_size", default_patch)?;
        if patch[0] > size[0] || patch[1] > size[1] {
            return invalid(format!("`patch_size` {patch:?} is larger than `image_size` {size:?}"));
        }
        let channels = fields.size("num_channels", MAX_CHANNELS)?.unwrap_or(CHANNELS);
        if channels != CHANNELS {
            return Err(Fault::Unsupported(format!("a model for images of {channels} channels")));
        }
        let classes = classes::read(&fields, &architecture, None)?;
        let (dtype, source) = (dtype(&fields)?, map.clone());
        let images = Self { architecture, class, size, patch, channels, classes, dtype, source };
        let [rows, columns] = images.grid();
        if rows * columns > MAX_PATCHES {
            return invalid(format!("`patch_size` {patch:?} divides images into more than {MAX_PATCHES} patches"));
        }
        Ok(images)
    }

    /// Returns how many patches an image has in each direction; what is left over is not looked at.
    pub(in crate::model) fn grid(&self) -> [usize; 2] {
        [self.size[0] / self.patch[0], self.size[1] / self.patch[1]]
    }

    /// Returns the number of labels: 0 without a head.
    pub(in crate::model) fn labels(&self) -> usize {
        self.classes.as_ref().map_or(0, |classes| classes.names.len())
    }

    /// Returns the shape of the convolution's input: channels, height, width.
    pub(in crate::model) fn patch_shape(&self) -> [usize; 3] {
        [self.channels, self.patch[0], self.patch[1]]
    }

    /// Returns what decides the result, by the keys of the file.
    pub(super) fn parts(&self) -> Vec<(&'static str, String)> {
        vec![
            ("image_size", format!("{:?}", self.size)),
            ("patch_size", format!("{:?}", self.patch)),
            ("num_channels", self.channels.to_string()),
            (LABELS, self.labels().to_string()),
        ]
    }
}

/// A whole number for both directions, or one for each.
fn pair(fields: &Fields<'_>, key: &str, default: usize) -> Checked<[usize; 2]> {
    let Some(Value::Array(list)) = fields.get(key) else {
        return Ok([fields.size(key, MAX_SIDE)?.unwrap_or(default); 2]);
    };
    let side = |value: &Value| {
        value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|side| (1..=MAX_SIDE).contains(side))
    };
    match list.iter().map(side).collect::<Option<Vec<_>>>().as_deref() {
        Some([height, width]) => Ok([*height, *width]),
        _ => invalid(format!("`{key}` is not two whole numbers from 1 to {MAX_SIDE}")),
    }
}

/// A flag that is on unless the file says otherwise.
pub(super) fn on(fields: &Fields<'_>, key: &str) -> Checked<bool> {
    if fields.get(key).is_none() { Ok(true) } else { fields.flag(key) }
}

/// Numbers are written by their bits, so that no formatting rule can change a fingerprint.
pub(super) fn bits(number: f64) -> String {
    format!("{:016x}", number.to_bits())
}

impl Vision {
    /// Reads `config.json`.
    pub(in crate::model) fn parse(bytes: &[u8]) -> Checked<Self> {
        let map = object(bytes)?;
        match Fields(&map).text("model_type")? {
            Some("vit") => super::Vit::read(&map).map(Self::Vit),
            Some("swinv2") => super::Swin::read(&map).map(Self::Swin),
            Some(other) => Err(Fault::Unsupported(format!("model type {} of images", short(&other.into())))),
            None => invalid("`model_type` is missing"),
        }
    }

    /// Returns the first part of the paths of everything but the head, which tensors of a model without one lack.
    pub(in crate::model) fn stem(&self) -> &'static str {
        match self {
            Self::Vit(_) => "vit.",
            Self::Swin(_) => "swinv2.",
        }
    }

    /// Returns the image side.
    pub(in crate::model) fn images(&self) -> &Images {
        match self {
            Self::Vit(config) => &config.images,
            Self::Swin(config) => &config.images,
        }
    }

    fn parts(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Vit(config) => config.parts(),
            Self::Swin(config) => config.parts(),
        }
    }

    /// Returns everything that decides what the weights compute, in one fixed form: the fingerprint's first part.
    pub(in crate::model) fn canonical(&self) -> String {
        let mut text = format!("evenkeel {} 1\n", self.images().architecture);
        for (key, value) in self.parts() {
            let _ = writeln!(text, "{key} {value}");
        }
        text
    }

    /// Reads the `config.json` of a model that may take the place of this one's weights.
    ///
    /// # Errors
    /// Names the fault, the unsupported feature, or the key that differs.
    pub(in crate::model) fn replaced_by(&self, config: &[u8]) -> Result<Full, LoraError> {
        let other = Self::parse(config).map_err(|fault| match fault {
            Fault::Invalid(fault) => LoraError::Invalid(format!("config.json: {fault}")),
            Fault::Unsupported(what) => LoraError::Unsupported(what),
        })?;
        let own = self.parts();
        let key = match other.images().architecture == self.images().class {
            false => Some("architectures"),
            // It may have labels of its own.
            true => {
                let mut both = own.iter().zip(other.parts()).filter(|(own, _)| own.0 != LABELS);
                both.find(|(own, other)| **own != *other).map(|(own, _)| own.0)
            }
        };
        if let Some(key) = key {
            return Err(LoraError::Mismatch(format!("config.json: `{key}` is not that of this base model")));
        }
        Ok(Full { canonical: other.canonical(), tied: false, classes: other.images().classes.clone() })
    }

    /// Returns a configuration of the same architecture with f32 weights; with `labels`, with these.
    pub(in crate::model) fn written(&self, labels: Option<&[String]>) -> Map<String, Value> {
        let images = self.images();
        let mut map = images.source.clone();
        let own = images.classes.as_ref().map(|classes| &classes.names[..]);
        let names = labels.or(own).unwrap_or_default();
        let mut set = |key: &str, value: Value| map.insert(key.to_owned(), value);
        set("architectures", json!([if labels.is_some() { images.class } else { &images.architecture }]));
        set("dtype", json!("float32"));
        set("torch_dtype", json!("float32"));
        let numbered = names.iter().enumerate();
        set(LABELS, Value::Object(numbered.clone().map(|(i, name)| (i.to_string(), json!(name))).collect()));
        set("label2id", Value::Object(numbered.map(|(i, name)| (name.clone(), json!(i))).collect()));
        for key in ["num_labels", "auto_map", "_name_or_path"] {
            map.remove(key);
        }
        if labels.is_some() {
            // The caller knows it.
            map.remove("problem_type");
        }
        map
    }
}
