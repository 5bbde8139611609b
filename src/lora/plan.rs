//! What a configuration means on a base model, before there are tensors: the start of training.
//!
//! Reads the same configuration by the same rules as [`super::peft`], so that what is trained is what will be read.

use super::bind::{check_kind, scaling};
use super::config::{Biases, LoraConfig};
use super::targets::{Meant, Targets};
use super::{Base, LoraError, Site, SiteId, spelling};

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

/// What a configuration means on a base model.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The sites, by the names that the configuration uses; the newest where any would do.
    pub sites: &'a [Site],
    /// What is to be trained, by site in order.
    pub planned: Vec<(SiteId, Planned)>,
}

/// Reads `adapter_config.json` and returns what it means.
///
/// # Errors
/// Names the fault, the unsupported feature, or the misfit; `bias` other than `none` and `lora_bias` are not trained.
pub fn plan<'a>(config: &[u8], base: &'a dyn Base) -> Result<Plan<'a>, LoraError> {
    let config = LoraConfig::read(config)?;
    if config.biases != Biases::None || config.lora_bias {
        return Err(LoraError::Unsupported("training biases".to_owned()));
    }
    let targets = Targets::new(&config, base.sites().len())?;
    // What takes too many steps is refused below.
    let is_meant = |site: &Site| targets.meant(site).is_ok_and(|meant| meant != Meant::No);
    let sites = spelling::of_wish(base, is_meant);
    super::peft::check_saved(&config, sites)?;
    let mut planned = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        if targets.saved(site) {
            planned.push((SiteId(index), Planned::Whole));
        } else if matches!(targets.meant(site)?, Meant::Yes | Meant::Either(true)) {
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
    Ok(Plan { sites, planned })
}
