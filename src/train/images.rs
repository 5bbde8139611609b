//! The images of a micro-batch: from files to pixels, some of them mirrored.
//!
//! Whether an image is mirrored follows from seed, step and row: a run that is taken up again mirrors the same. A file that
//! cannot be decoded names its row.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{Example, MicroBatch, Pixels, Settings, TrainError};
use crate::model::image::Processor;

/// Fills in the pixels of a micro-batch of `examples`; `step` is that of learning, none is looking only.
pub(super) fn fill(
    processor: &Processor,
    examples: &[Example],
    batch: &mut MicroBatch,
    settings: &Settings,
    step: Option<u64>,
) -> Result<(), TrainError> {
    let pixels = |row: &usize| {
        let fault = |fault: &dyn std::fmt::Display| TrainError::Data(format!("image {}: {fault}", row + 1));
        let file = examples.get(*row).and_then(|example| example.image.as_ref()).ok_or_else(|| fault(&"is missing"))?;
        let flip = settings.random_flip && step.is_some_and(|step| mirrored(settings.seed, step, *row));
        processor.augmented(file, flip).map_err(|error| fault(&error))
    };
    let images = batch.rows.par_iter().map(pixels).collect::<Result<Vec<_>, _>>()?;
    let [height, width] = processor.size();
    let shape = [images.len(), 3, height, width];
    batch.pixels = Some(Pixels { values: images.concat(), shape });
    Ok(())
}

/// Returns whether an image is mirrored: every second one, by a hash.
fn mirrored(seed: u64, step: u64, row: usize) -> bool {
    let mut digest = Sha256::new_with_prefix(b"evenkeel flip 1");
    for part in [seed, step, row as u64] {
        digest.update(part.to_le_bytes());
    }
    digest.finalize().first().is_some_and(|byte| byte & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_half_of_the_images_are_mirrored_and_the_same_ones_again() {
        let mirrored = |seed| (0..2000).map(|i| mirrored(seed, i / 40, i as usize % 40)).collect::<Vec<_>>();
        let count = mirrored(1).iter().filter(|yes| **yes).count();
        // Five deviations of a binomial.
        assert!((888..1112).contains(&count), "{count}");
        assert_eq!(mirrored(1), mirrored(1));
        assert_ne!(mirrored(1), mirrored(2));
    }
}
