//! What a configuration means on a base model, before there are tensors: the start of training.
//!
//! Reads the same configuration by the same rules as [`super::peft`], so that what is trained is what will be read.

use super::bind::{check_kind, scaling};
use super::config::{Biases, LoraConfig};
use super::targets::{Meant, Targets};
use super::{Base, LoraError, SiteId};

/// What is to be trained at one site.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Planned {
    /// Low-rank matrices.
    LowRank {
        /// Rows of A.
        rank: usize,
        /// alpha/rank or alpha/√rank.
        scaling: f64,
        /// Whether the weight is decomposed (DoRA).
        dora: bool,
    },
    /// The whole layer (`modules_to_save`).
    Whole,
}

/// Reads `adapter_config.json` and returns what it means, by site in order.
///
/// # Errors
/// Names the fault, the unsupported feature, or the misfit; `bias` other than `none` and `lora_bias` are not trained.
pub fn plan(config: &[u8], base: &dyn Base) -> Result<Vec<(SiteId, Planned)>, LoraError> {
    let config = LoraConfig::read(config)?;
    if config.biases != Biases::None || config.lora_bias {
        return Err(LoraError::Unsupported("training biases".to_owned()));
    }
    let sites = base.sites();
    super::peft::check_saved(&config, sites)?;
    let targets = Targets::new(&config, sites.len())?;
    let mut planned = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        if targets.saved(site) {
            planned.push((SiteId(index), Planned::Whole));
        } else if targets.meant(site)? != Meant::No {
            check_kind(site)?;
            let (rank, alpha) = targets.rank_and_alpha(&site.path)?;
            let scaling = scaling(&config, site, rank, alpha)?;
            planned.push((SiteId(index), Planned::LowRank { rank, scaling, dora: config.dora }));
        }
    }
    let adapted = planned.iter().any(|(_, what)| matches!(what, Planned::LowRank { .. }));
    if !adapted && (planned.is_empty() || !config.adapts_nothing()) {
        return Err(LoraError::Mismatch("target_modules names no layer of this base model".to_owned()));
    }
    Ok(planned)
}
