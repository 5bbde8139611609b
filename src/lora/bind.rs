//! Turns the stored tensors of one site into what it does there, checked against base model and configuration.
//!
//! Knows one site at a time; `peft` walks over all of them and refuses what is left over.
//! Source: peft 0.21 `tuners/lora/layer.py`, `tuners/lora/dora.py`.

use candle_core::{DType, Device, Tensor};

use super::config::{Biases, LoraConfig};
use super::json::clip;
use super::names::{Named, Part, Parts};
use super::targets::{Meant, Targets};
use super::{Base, Change, LinearDelta, LoraError, Site, SiteId, SiteKind};

/// Largest relative distance (Frobenius) at which a stored matrix still counts as a copy of the base's: rounding to
/// bf16 moves it by 0.2 %, 8-bit quantisation of the base by 0.5 %.
const COPY_DISTANCE: f64 = 0.01;

/// What is needed at every site.
pub(super) struct Binder<'a> {
    pub(super) base: &'a dyn Base,
    pub(super) config: &'a LoraConfig,
    pub(super) targets: &'a Targets<'a>,
}

impl Binder<'_> {
    /// Takes the tensors of a site out of `parts` and returns the change they make, `None` if they make none.
    pub(super) fn bind(&self, id: SiteId, site: &Site, parts: &mut Parts<'_>) -> Result<Option<Change>, LoraError> {
        if self.targets.saved(site) {
            return self.replaced(site, parts).map(Some);
        }
        let meant = self.targets.meant(site)?;
        if meant == Meant::No || (matches!(meant, Meant::Either(_)) && parts.is_empty()) {
            let copied = matches!(site.kind, SiteKind::Head | SiteKind::Embedding | SiteKind::Classifier);
            if copied && !site.is_missing() {
                self.skip_copy(id, site, parts.take(Part::Weight))?;
            }
            if self.config.biases == Biases::All && site.bias {
                let bias = parts.take(Part::Bias);
                return bias.map(|bias| self.vector(site, &bias).map(Change::Bias)).transpose();
            }
            return Ok(None);
        }
        check_kind(site)?;
        self.skip_copy(id, site, parts.take(Part::BaseWeight))?;
        let (rank, alpha) = self.targets.rank_and_alpha(&site.path)?;
        let scaling = scaling(self.config, site, rank, alpha)?;
        if site.kind == SiteKind::Embedding {
            self.embedding(site, parts, (rank, scaling)).map(Some)
        } else {
            self.linear(id, site, parts, (rank, scaling)).map(Some)
        }
    }

    fn linear(
        &self,
        id: SiteId,
        site: &Site,
        parts: &mut Parts<'_>,
        (rank, scaling): (usize, f64),
    ) -> Result<Change, LoraError> {
        // peft 0.17 wrote no bias for `lora_only`: then the base's stay.
        let bias = if self.config.biases != Biases::None && site.bias { parts.take(Part::BaseBias) } else { None };
        // What slots take waits in the host's memory until all of the adapter is known.
        let slots = self.base.slot_format(id).is_some();
        let aside = slots && !self.config.lora_bias && !self.config.dora && bias.is_none();
        let device = if aside { &Device::Cpu } else { self.base.device() };
        let a = self.matrix(&parts.need(&site.path, Part::A)?, [rank, site.input], 1, device)?;
        let b = self.matrix(&parts.need(&site.path, Part::B)?, [site.output, rank], 0, device)?;
        let b = (b * scaling)?;
        if aside {
            let (a, b) = (a.t()?, b.t()?);
            return Ok(Change::Linear(LinearDelta::new(a, b, scaling)));
        }
        let b_bias = if self.config.lora_bias {
            let bias = parts.need(&site.path, Part::BBias)?;
            Some((self.vector(site, &bias)? * scaling)?)
        } else {
            None
        };
        let magnitude = if self.config.dora {
            let magnitude = parts.need(&site.path, Part::Magnitude)?;
            Some(self.magnitude(id, site, &magnitude, &b.matmul(&a)?)?)
        } else {
            None
        };
        let bias = bias.map(|bias| self.vector(site, &bias)).transpose()?;
        // A stays in its rows, as products on the CPU read it.
        let delta = LinearDelta::new(a.t()?, b.t()?.contiguous()?, scaling);
        let delta = LinearDelta { b_bias, magnitude, bias, ..delta };
        Ok(Change::Linear(delta.in_format(self.base.low_rank_format(id))?))
    }

    /// Returns m / ‖W + sBA‖, `[output]`.
    fn magnitude(&self, id: SiteId, site: &Site, m: &Named<'_>, delta: &Tensor) -> Result<Tensor, LoraError> {
        let norm = (self.base.weight(id)? + delta)?.sqr()?.sum(1)?.sqrt()?;
        let ratio = (self.vector(site, m)? / norm)?;
        let finite = ratio.to_vec1::<f32>()?.iter().all(|x| x.is_finite());
        if !finite {
            return Err(LoraError::Invalid(format!(
                "{}: the DoRA magnitude has no finite ratio to the weight",
                site.path
            )));
        }
        Ok(ratio)
    }

    fn embedding(
        &self,
        site: &Site,
        parts: &mut Parts<'_>,
        (rank, scaling): (usize, f64),
    ) -> Result<Change, LoraError> {
        for (on, what) in [(self.config.dora, "use_dora"), (self.config.lora_bias, "lora_bias")] {
            if on {
                return Err(LoraError::Unsupported(format!("{what} on the embedding {}", site.path)));
            }
        }
        let a = self.matrix(&parts.need(&site.path, Part::EmbeddingA)?, [rank, site.input], 1, self.base.device())?;
        let b = self.matrix(&parts.need(&site.path, Part::EmbeddingB)?, [site.output, rank], 0, self.base.device())?;
        let b = (b * scaling)?.t()?.contiguous()?;
        Ok(Change::Embedding { a: a.t()?.contiguous()?, b, scaling })
    }

    fn replaced(&self, site: &Site, parts: &mut Parts<'_>) -> Result<Change, LoraError> {
        let weight = parts.need(&site.path, Part::Weight)?;
        let mut shape = site.shape();
        if site.kind == SiteKind::Classifier {
            // As many labels as it has rows.
            shape = vec![weight.view.shape.first().copied().unwrap_or_default().max(1), site.input];
        }
        if weight.view.shape != shape {
            return Err(mismatch(&weight, &shape));
        }
        let weight = self.tensor(&weight)?;
        let bias = if site.bias { Some(parts.need(&site.path, Part::Bias)?) } else { None };
        let outputs = shape.first().copied().unwrap_or_default();
        Ok(Change::Replaced { weight, bias: bias.map(|bias| self.numbers(outputs, &bias)).transpose()? })
    }

    /// Lets a stored copy of a base matrix pass (peft writes them for embeddings) and refuses any other matrix.
    fn skip_copy(&self, id: SiteId, site: &Site, copy: Option<Named<'_>>) -> Result<(), LoraError> {
        let Some(copy) = copy else { return Ok(()) };
        let base = self.base.weight(id)?;
        if copy.view.shape != base.dims() {
            return Err(mismatch(&copy, base.dims()));
        }
        let stored = self.tensor(&copy)?;
        let norm = |tensor: Tensor| tensor.sqr()?.sum_all()?.sqrt()?.to_dtype(DType::F64)?.to_scalar::<f64>();
        let (distance, size) = (norm((&stored - &base)?)?, norm(base)?);
        if distance <= COPY_DISTANCE * size {
            return Ok(());
        }
        Err(LoraError::Mismatch(format!(
            "tensor {}: differs from {} of this base model (distance {distance:.3e}, norm {size:.3e})",
            clip(&copy.name),
            site.path
        )))
    }

    /// Reads a matrix; dimension `fixed` is the base model's, the other one the configuration's rank.
    fn matrix(&self, named: &Named<'_>, shape: [usize; 2], fixed: usize, device: &Device) -> Result<Tensor, LoraError> {
        let got = &named.view.shape;
        if *got == shape {
            return Ok(Tensor::from_vec(named.view.floats(&named.name)?, &shape, device)?);
        }
        if got.len() == 2 && got.get(fixed) != shape.get(fixed) {
            return Err(mismatch(named, &shape));
        }
        Err(LoraError::Invalid(format!(
            "tensor {}: has shape {got:?}, the configured rank needs {shape:?}",
            clip(&named.name)
        )))
    }

    fn vector(&self, site: &Site, named: &Named<'_>) -> Result<Tensor, LoraError> {
        self.numbers(site.output, named)
    }

    fn numbers(&self, count: usize, named: &Named<'_>) -> Result<Tensor, LoraError> {
        if named.view.shape != [count] {
            return Err(mismatch(named, &[count]));
        }
        self.tensor(named)
    }

    /// Reads a tensor whose shape has been checked.
    fn tensor(&self, named: &Named<'_>) -> Result<Tensor, LoraError> {
        let values = named.view.floats(&named.name)?;
        Ok(Tensor::from_vec(values, named.view.shape.as_slice(), self.base.device())?)
    }
}

/// Refuses low-rank matrices where there is no matrix product.
pub(super) fn check_kind(site: &Site) -> Result<(), LoraError> {
    match site.kind {
        SiteKind::Classifier if site.is_missing() => {
            Err(LoraError::Mismatch(format!("target_modules names {}, which this base model lacks", site.path)))
        }
        SiteKind::Linear | SiteKind::Head | SiteKind::Embedding | SiteKind::Classifier => Ok(()),
        SiteKind::Norm => Err(LoraError::Unsupported(format!("LoRA on the norm {}", site.path))),
        SiteKind::Patches(_) => Err(LoraError::Unsupported(format!("LoRA on the convolution {}", site.path))),
        SiteKind::Parameter(_) => Err(LoraError::Unsupported(format!("LoRA on the parameter {}", site.path))),
    }
}

/// Returns alpha/rank, or alpha/√rank with rsLoRA.
pub(super) fn scaling(config: &LoraConfig, site: &Site, rank: usize, alpha: f64) -> Result<f64, LoraError> {
    #[expect(clippy::cast_precision_loss, reason = "ranks are below 2^16")]
    let rank = rank as f64;
    let scaling = alpha / if config.rslora { rank.sqrt() } else { rank };
    #[expect(clippy::cast_possible_truncation, reason = "the overflow is what is looked for")]
    let single = scaling as f32;
    if !single.is_finite() {
        return Err(LoraError::Invalid(format!("{}: the scaling {scaling:e} overflows f32", site.path)));
    }
    Ok(scaling)
}

fn mismatch(named: &Named<'_>, needed: &[usize]) -> LoraError {
    LoraError::Mismatch(format!(
        "tensor {}: has shape {:?}, this base model needs {needed:?}",
        clip(&named.name),
        named.view.shape
    ))
}
