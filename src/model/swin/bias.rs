//! What attention scores depend on beside queries and keys: a factor by head, and a bias by head and distance.
//!
//! The bias is what a small network makes of log-spaced coordinates; it is the same for all images of a pass, so that an
//! adapter that changes it needs the pass for itself.
//! After: Liu et al. 2022, sections 3.2 and 3.3.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::sites::Module;
use crate::lora::{LoraBatch, SiteId};
use crate::model::ModelError;
use crate::model::config::Stage as Sizes;
use crate::model::layers::Projection;
use crate::model::vision::Weights;
use crate::ops::explicit;

/// Largest factor of cosines: 100.
const LARGEST: f32 = 4.605_170_2;
/// Largest bias.
const RANGE: f64 = 16.0;

/// Factors and biases of a block.
#[derive(Debug)]
pub(super) struct Positions {
    site: SiteId,
    pub(super) logit_scale: Tensor,
    pub(super) first: Projection,
    pub(super) second: Projection,
    /// Log-spaced distances, `[entries, 2]`.
    coordinates: Tensor,
    /// Entry of each pair of rows of a window.
    pub(super) index: Arc<Vec<u32>>,
    /// Of the base, f32 `[heads]` and `[heads, entries]`.
    own: (Tensor, Tensor),
}

impl Positions {
    pub(super) fn new(
        sizes: &Sizes,
        at: &impl Fn(Module) -> SiteId,
        weights: &mut Weights,
    ) -> std::result::Result<Self, ModelError> {
        let site = at(Module::LogitScale);
        let logit_scale = weights.parameter(site)?;
        let (first, second) = (weights.projection(at(Module::Coordinates))?, weights.projection(at(Module::Biases))?);
        let Sizes { window, pretrained, .. } = *sizes;
        let coordinates = coordinates(window, pretrained)?.to_device(logit_scale.device())?;
        let coordinates = coordinates.to_dtype(logit_scale.dtype())?;
        let index = Arc::new(index(window));
        let none = LoraBatch::default();
        let own = (factors(&logit_scale)?, table((&first, &second), &coordinates, &none)?);
        Ok(Self { site, logit_scale, first, second, coordinates, index, own })
    }

    /// Returns factors `[heads]` and biases by distance `[heads, entries]`; a row of `lora` is an image.
    pub(super) fn scores(&self, images: usize, lora: &LoraBatch) -> Result<(Tensor, Tensor)> {
        if lora.runs.is_empty() {
            return Ok(self.own.clone());
        }
        let changed = lora.of_all(&[self.site], images)?.and_then(|run| run.adapter.parameter(self.site));
        let factors = changed.map_or_else(|| Ok(self.own.0.clone()), factors)?;
        let lora = lora.aside(&[self.first.site, self.second.site], images, self.coordinates.dim(0)?)?;
        if lora.runs.is_empty() {
            return Ok((factors, self.own.1.clone()));
        }
        Ok((factors, table((&self.first, &self.second), &self.coordinates, &lora)?))
    }
}

/// Returns what scores are multiplied with: e to the power of `[heads, 1, 1]`, at most 100.
fn factors(logit_scale: &Tensor) -> Result<Tensor> {
    let flat = logit_scale.flatten_all()?;
    let wide = flat.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    let factors: Vec<f32> = wide.iter().map(|x| x.min(LARGEST).exp()).collect();
    // Where the limit holds, nothing is learnt.
    let slopes = wide.iter().zip(&factors).map(|(x, factor)| if *x <= LARGEST { *factor } else { 0.0 });
    let slopes = Tensor::new(slopes.collect::<Vec<_>>(), flat.device())?;
    let dtype = flat.dtype();
    explicit(&[&flat], Tensor::new(factors, flat.device())?, move |gradient| {
        Ok(vec![Some((gradient * &slopes)?.to_dtype(dtype)?)])
    })
}

/// Returns 16·σ(network(coordinates)), f32 `[heads, entries]`.
fn table((first, second): (&Projection, &Projection), coordinates: &Tensor, lora: &LoraBatch) -> Result<Tensor> {
    let inner = first.forward(coordinates, lora)?.relu()?;
    let biases = second.forward(&inner, lora)?.to_dtype(DType::F32)?;
    let sigmoid = (biases.neg()?.exp()? + 1.0)?.recip()?;
    (sigmoid * RANGE)?.t()?.contiguous()
}

/// Returns the distances within a window, log-spaced: `[(2·window-1)², 2]`.
fn coordinates(window: usize, pretrained: usize) -> Result<Tensor> {
    let size = if pretrained > 0 { pretrained } else { window };
    // A window of one row has one distance, 0.
    let unit = if size > 1 { (size - 1) as f32 } else { 1.0 };
    let spaced = |distance: i64| {
        let x = distance as f32 / unit * 8.0;
        (x.abs() + 1.0).log2().copysign(x) / 3.0
    };
    let span = window as i64 - 1;
    let pairs = (-span..=span).flat_map(|y| (-span..=span).flat_map(move |x| [y, x]));
    let values: Vec<f32> = pairs.map(spaced).collect();
    Tensor::from_vec(values, ((2 * window - 1).pow(2), 2), &Device::Cpu)
}

/// Returns the entry of each pair of rows: how far the first is from the second.
fn index(window: usize) -> Vec<u32> {
    let rows = window * window;
    let entry = |a: usize, b: usize| {
        let far = |a: usize, b: usize| a + window - 1 - b;
        (far(a / window, b / window) * (2 * window - 1) + far(a % window, b % window)) as u32
    };
    (0..rows).flat_map(|a| (0..rows).map(move |b| entry(a, b))).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    #[test]
    fn distances_are_spaced_by_their_logarithms() {
        let table = coordinates(3, 0).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(table.len(), 25);
        // 8 is the largest distance: log2(9)/3 of it, and log2(5)/3 half of the way.
        let far = 9.0_f32.log2() / 3.0;
        assert_eq!(table[0], [-far, -far]);
        assert_eq!(table[12], [0.0, 0.0]);
        assert_eq!(table[13], [0.0, 5.0_f32.log2() / 3.0]);
        assert!(coordinates(1, 0).unwrap().to_vec2::<f32>().unwrap() == [[0.0, 0.0]]);
        assert!(coordinates(3, 5).unwrap().to_vec2::<f32>().unwrap()[0] == [-5.0_f32.log2() / 3.0; 2]);
    }

    #[test]
    fn pairs_find_their_distance() {
        let index = index(2);
        // Row 0 from row 3: one up, one to the left, which is the first entry.
        assert_eq!((index[3], index[12], index[5]), (0, 8, 4));
    }

    #[test]
    fn factors_learn_below_their_limit() {
        let var = Var::from_tensor(&Tensor::new(&[[[1.0_f32]], [[9.0]]], &Device::Cpu).unwrap()).unwrap();
        let factors = factors(&var).unwrap();
        let values = factors.to_vec1::<f32>().unwrap();
        assert!((values[0] - 1.0_f32.exp()).abs() < 1e-6 && (values[1] - 100.0).abs() < 1e-3);
        let gradients = factors.sum_all().unwrap().backward().unwrap();
        let gradient = gradients.get(&var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(gradient, [values[0], 0.0]);
    }
}
