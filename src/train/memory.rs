//! How much memory a run takes on top of the base model, before it starts.
//!
//! Counts what grows with the job: trained values with gradients and moments, and activations of one micro-batch. An
//! estimate, from above: for SmolLM2-135M and 8 rows of 128 tokens it says 2.1 GB where 1.8 GB were seen. Checkpoints are
//! written tensor by tensor and count nothing; a job that is taken up again reads its own whole, before any activation.
//! Units: bytes.

use candle_core::Device;
use sysinfo::{MemoryRefreshKind, System};

use super::learner::logit_rows;
use super::{Method, Settings, trained_bytes};
use crate::lora::{Base, SiteKind};
#[cfg(feature = "cuda")]
use crate::ops::cuda::Gpu;

/// Bytes of an f32.
const F32: u64 = 4;
/// Tensors of a block's size that live beside those of its layers: norms, rotations, sums, shares.
const EXTRAS: u64 = 10;

/// What a run needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Estimate {
    /// Parameters, gradients, moments, and what is kept besides: the best parameters, and a file and the adapter that is
    /// made of it while a checkpoint is published.
    pub(super) state: u64,
    /// Activations when every block is kept.
    pub(super) kept: u64,
    /// Activations when each block is computed again.
    pub(super) recomputed: u64,
}

impl Estimate {
    /// Estimates for `labels` classes and micro-batches of up to `tokens` tokens.
    pub(super) fn new(base: &dyn Base, depth: usize, settings: &Settings, labels: usize, tokens: usize) -> Self {
        let sites = base.sites();
        let inner = sites.iter().filter(|site| site.kind == SiteKind::Linear);
        // Inputs and outputs of the layers of one block, forward.
        let widths: u64 = inner.map(|site| (site.input + site.output) as u64).sum::<u64>() / depth.max(1) as u64;
        let hidden = sites.iter().find(|site| site.kind == SiteKind::Norm).map_or(0, |site| site.output as u64);
        let heads = sites.iter().filter(|site| matches!(site.kind, SiteKind::Head | SiteKind::Classifier));
        let vocab = heads.map(|site| site.output as u64).max().unwrap_or(0);
        let tokens = tokens as u64;
        // Activations are in the model's format.
        let number = base.dtype().size_in_bytes() as u64;
        let block = tokens * (widths + EXTRAS * hidden) * number;
        let depth = depth as u64;
        // With their gradient.
        let logits = 2 * tokens.min(logit_rows(base.device()) as u64) * vocab * F32;
        let copies = 4 + u64::from(settings.keep_best) + if settings.publish_steps.is_empty() { 0 } else { 2 };
        let state = copies * trained_bytes(base, settings, labels);
        if settings.method == Method::HeadOnly {
            // No block is kept for a backward.
            let forward = block + logits;
            return Self { state, kept: forward, recomputed: forward };
        }
        Self {
            state,
            // A block's backward holds about as much again.
            kept: depth * block + 2 * block + logits,
            recomputed: depth * tokens * hidden * number + 3 * block + logits,
        }
    }
}

/// Returns the bytes that are free: of a GPU's memory, else of what the machine, or the control group of this process,
/// has; 0 where that is not known.
pub(super) fn free(device: &Device) -> u64 {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = Gpu::of(device) {
        return gpu.memory().map_or(0, |(free, _)| free as u64);
    }
    if !device.is_cpu() {
        return 0;
    }
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let machine = system.available_memory();
    if machine == 0 {
        return 0;
    }
    // What the group has of files can be taken back; its own is what counts.
    system.cgroup_limits().map_or(machine, |group| group.total_memory.saturating_sub(group.rss).min(machine))
}
