//! Reads `preprocessor_config.json` of transformers 4 and 5, completely.
//!
//! Bytes in, a [`Processor`] out; opens no file. What is missing has the default of the processor's class. A class that
//! is not known, and a key that is not, unless it is null or false, are refused by name: they could change pixels.
//! Source: transformers 5.23 `image_processing_{vit,deit,clip,bit}.py`, `image_processing_utils.get_size_dict`.

use serde_json::{Map, Value};

use super::resample::Filter;
use super::{FILE, MOST_SIDE, ModelError, Processor, Target};

/// Defaults of a class.
struct Class {
    names: &'static [&'static str],
    filter: Filter,
    /// A bare number is the shorter side, not both.
    shortest: bool,
    size: usize,
    crop: Option<usize>,
    mean: [f64; 3],
    std: [f64; 3],
}

const HALF: [f64; 3] = [0.5; 3];
const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
/// The first is also that of files that name no class.
const CLASSES: [Class; 3] = [
    Class {
        names: &["ViTImageProcessor", "ViTFeatureExtractor"],
        filter: Filter::Bilinear,
        shortest: false,
        size: 224,
        crop: None,
        mean: HALF,
        std: HALF,
    },
    Class {
        names: &["DeiTImageProcessor", "DeiTFeatureExtractor"],
        filter: Filter::Bicubic,
        shortest: false,
        size: 256,
        crop: Some(224),
        mean: HALF,
        std: HALF,
    },
    Class {
        names: &["BitImageProcessor", "CLIPImageProcessor", "CLIPFeatureExtractor"],
        filter: Filter::Bicubic,
        shortest: true,
        size: 224,
        crop: Some(224),
        mean: CLIP_MEAN,
        std: CLIP_STD,
    },
];
/// Forms of a class that differ in the library behind them.
const FORMS: [&str; 2] = ["Fast", "Pil"];
/// Keys that say nothing about pixels. Everything becomes RGB here, whatever `do_convert_rgb` says.
const WITHOUT_EFFECT: [&str; 6] =
    ["do_convert_rgb", "processor_class", "return_tensors", "device", "disable_grouping", "_valid_processor_keys"];

/// What ViT's processor does by default, at another size.
pub(super) fn defaults(size: [usize; 2]) -> Result<Processor, ModelError> {
    let [vit, ..] = &CLASSES;
    let values = values(Some(1.0 / 255.0), Some((vit.mean, vit.std)));
    Ok(Processor { resize: Some((Target::Exact(size), vit.filter)), crop: None, size: Some(size), values })
}

/// Reads settings; `size` is what the model takes.
pub(super) fn parse(json: &[u8], size: Option<[usize; 2]>) -> Result<Processor, ModelError> {
    let keys: Map<String, Value> = serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
    // Null is what transformers 5 writes for what was never set.
    let mut keys = Keys(keys.into_iter().filter(|(_, value)| !value.is_null()).collect());
    let class = class(&mut keys)?;
    let shortest = match keys.truth("default_to_square")? {
        None => class.shortest,
        Some(square) => !square,
    };
    let default = if class.shortest { Target::ShortestEdge(class.size) } else { Target::Exact([class.size; 2]) };
    let target = keys.size("size", shortest)?.unwrap_or(default);
    let filter = match keys.take("resample") {
        None => class.filter,
        Some(value) => value
            .as_u64()
            .and_then(Filter::of_pillow)
            .ok_or_else(|| invalid(format!("`resample` must be one of Pillow's numbers, 0 to 5, not {value}")))?,
    };
    let resize = keys.truth("do_resize")?.unwrap_or(true).then_some((target, filter));
    let crop = match keys.size("crop_size", false)? {
        None => class.crop.map(|side| [side; 2]),
        Some(Target::Exact(size)) => Some(size),
        Some(Target::ShortestEdge(_)) => return Err(invalid("`crop_size` must have a height and a width".into())),
    };
    let crop = if keys.truth("do_center_crop")?.unwrap_or(class.crop.is_some()) {
        Some(crop.ok_or_else(|| invalid("`do_center_crop` needs a `crop_size`".into()))?)
    } else {
        None
    };
    let factor = keys.number("rescale_factor")?.unwrap_or(1.0 / 255.0);
    let factor = keys.truth("do_rescale")?.unwrap_or(true).then_some(factor);
    let mean = keys.channels("image_mean")?.unwrap_or(class.mean);
    let std = keys.channels("image_std")?.unwrap_or(class.std);
    if std.contains(&0.0) {
        return Err(invalid("`image_std` must not be 0".into()));
    }
    let spread = keys.truth("do_normalize")?.unwrap_or(true).then_some((mean, std));
    keys.finish()?;
    let gives = crop.or(match resize {
        Some((Target::Exact(size), _)) => Some(size),
        Some((Target::ShortestEdge(_), _)) | None => None,
    });
    match (gives, size) {
        (Some(gives), Some(takes)) if gives != takes => {
            let text =
                format!("gives images of {} x {}; the model takes {} x {}", gives[1], gives[0], takes[1], takes[0]);
            return Err(invalid(text));
        }
        (None, Some(_)) if resize.is_some() => {
            return Err(invalid("gives images of their own proportions; the model takes one size".into()));
        }
        _ => {}
    }
    Ok(Processor { resize, crop, size: gives.or(size), values: values(factor, spread) })
}

/// Finds the defaults.
fn class(keys: &mut Keys) -> Result<&'static Class, ModelError> {
    let old = keys.take("feature_extractor_type");
    let [vit, ..] = &CLASSES;
    let Some(name) = keys.take("image_processor_type").or(old) else { return Ok(vit) };
    let name = name.as_str().ok_or_else(|| invalid("`image_processor_type` must be a text".into()))?;
    let plain = FORMS.iter().find_map(|form| name.strip_suffix(form)).unwrap_or(name);
    let found = CLASSES.iter().find(|class| class.names.contains(&plain));
    found.ok_or_else(|| ModelError::Unsupported(format!("image processor `{name}`")))
}

/// Tells the value of every byte: f64 for the factor, f32 for the rest, as numpy has it.
fn values(factor: Option<f64>, spread: Option<([f64; 3], [f64; 3])>) -> Box<[[f32; 256]; 3]> {
    let mut values = Box::new([[0.0; 256]; 3]);
    for (channel, values) in values.iter_mut().enumerate() {
        for (byte, value) in values.iter_mut().enumerate() {
            *value = factor.map_or(byte as f32, |factor| (byte as f64 * factor) as f32);
            if let Some((mean, std)) = spread {
                *value = (*value - mean[channel] as f32) / std[channel] as f32;
            }
        }
    }
    values
}

fn invalid(fault: String) -> ModelError {
    ModelError::Invalid { path: FILE.to_owned(), fault }
}

/// Keys that were not looked at yet.
struct Keys(Map<String, Value>);

impl Keys {
    fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key)
    }

    fn truth(&mut self, key: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| invalid(format!("`{key}` must be true or false, not {value}")))
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| invalid(format!("`{key}` must be a number, not {value}")))
    }

    /// Three numbers, or one for all.
    fn channels(&mut self, key: &str) -> Result<Option<[f64; 3]>, ModelError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let numbers = match &value {
            Value::Array(values) => values.iter().map(Value::as_f64).collect::<Option<Vec<_>>>(),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
                value.as_f64().map(|number| vec![number; 3])
            }
        };
        let three = numbers.and_then(|numbers| <[f64; 3]>::try_from(numbers).ok());
        three.map(Some).ok_or_else(|| invalid(format!("`{key}` must be three numbers, not {value}")))
    }

    /// A size: a number, `{height, width}` or `{shortest_edge}`; a bare number may be the shorter side.
    fn size(&mut self, key: &str, shortest: bool) -> Result<Option<Target>, ModelError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let side = |value: &Value| {
            let side = value.as_u64().filter(|side| (1..=MOST_SIDE).contains(side));
            side.and_then(|side| usize::try_from(side).ok())
        };
        let target = match &value {
            Value::Object(map) => {
                let known = |key: &&str| map.get(*key).is_some_and(|value| !value.is_null());
                let given: Vec<_> = map.keys().map(String::as_str).filter(known).collect();
                match given[..] {
                    ["height", "width"] | ["width", "height"] => side(&map["height"])
                        .zip(side(&map["width"]))
                        .map(|(height, width)| Target::Exact([height, width])),
                    ["shortest_edge"] => side(&map["shortest_edge"]).map(Target::ShortestEdge),
                    _ => None,
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                let target = |side| if shortest { Target::ShortestEdge(side) } else { Target::Exact([side; 2]) };
                side(&value).map(target)
            }
        };
        let rule = format!("`{key}` must be a number, a height and a width, or a shortest_edge, not {value}");
        target.map(Some).ok_or_else(|| invalid(rule))
    }

    fn finish(self) -> Result<(), ModelError> {
        let strange = |(key, value): &(String, Value)| {
            let first = key == "data_format" && value == "channels_first";
            !first && *value != Value::Bool(false) && !WITHOUT_EFFECT.contains(&key.as_str())
        };
        match self.0.into_iter().find(strange) {
            None => Ok(()),
            Some((key, _)) => Err(ModelError::Unsupported(format!("`{key}` of {FILE}"))),
        }
    }
}
