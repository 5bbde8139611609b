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
        let image = examples.get(*row).and_then(|example| example.image.as_ref());
        let image = image.ok_or_else(|| TrainError::Data("a row without an image was drawn".to_owned()))?;
        let flip = settings.random_flip && step.is_some_and(|step| mirrored(settings.seed, step, *row));
        let fault = |fault| TrainError::Data(format!("row {}: {fault}", image.row));
        processor.augmented(&image.file, flip).map_err(fault)
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
    use crate::train::Picture;
    use crate::train::order::tests::settings;

    fn picture(row: usize, name: &str) -> Example {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images");
        let image = Some(Picture { row, file: std::fs::read(folder.join(name)).unwrap().into() });
        Example { tokens: Vec::new(), learnt: Vec::new(), image, class: None, groups: Vec::new() }
    }

    fn processor() -> Processor {
        Processor::parse(br#"{"size": {"height": 6, "width": 5}}"#, Some([6, 5])).unwrap()
    }

    fn batch(examples: &[Example], flip: bool, step: Option<u64>) -> Result<Pixels, TrainError> {
        let rows: Vec<usize> = (0..examples.len()).collect();
        let mut batch = MicroBatch::new(examples, &rows);
        let settings = Settings { random_flip: flip, ..settings() };
        fill(&processor(), examples, &mut batch, &settings, step)?;
        Ok(batch.pixels.unwrap())
    }

    #[test]
    fn a_batch_has_mirrored_images_where_the_settings_ask_for_them() {
        let examples: Vec<_> = (1..=12).map(|row| picture(row, "rgb.png")).collect();
        let file = &examples[0].image.as_ref().unwrap().file;
        let [own, other] = [false, true].map(|flip| processor().augmented(file, flip).unwrap());
        assert_ne!(own, other);
        let expected = |flips: &dyn Fn(usize) -> bool| -> Vec<f32> {
            (0..12).flat_map(|row| if flips(row) { other.clone() } else { own.clone() }).collect()
        };
        let plain = batch(&examples, false, Some(3)).unwrap();
        assert_eq!((plain.values, plain.shape), (expected(&|_| false), [12, 3, 6, 5]));
        let seed = settings().seed;
        for step in [3, 4] {
            let flipped = batch(&examples, true, Some(step)).unwrap().values;
            assert_eq!(flipped, expected(&|row| mirrored(seed, step, row)));
            assert!(flipped.chunks(90).any(|image| image == own) && flipped.chunks(90).any(|image| image == other));
        }
        // Nobody looks at mirrored images.
        assert_eq!(batch(&examples, true, None).unwrap().values, expected(&|_| false));
    }

    #[test]
    fn a_file_that_cannot_be_decoded_names_its_row_in_the_data_set() {
        let examples = [picture(3, "rgb.png"), picture(17, "damaged.png")];
        let error = batch(&examples, false, Some(1)).unwrap_err();
        assert!(matches!(error, TrainError::Data(_)), "{error}");
        assert!(error.to_string().starts_with("row 17: is a damaged image"), "{error}");
    }

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
