//! Which rows stand in which window: cut out, shifted, padded, put back; and which rows become one between stages.
//!
//! Positions only, no values. After: Liu et al. 2021 (arXiv 2103.14030), transformers `modeling_swinv2`.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use crate::ops::Arrangement;

/// What is added to scores of rows that a shift has brought together: transformers adds its -100 twice.
const APART: f32 = -200.0;

/// The windows of a block.
#[derive(Debug)]
pub(super) struct Windows {
    /// Rows of an image, window by window; what fills up the last ones are zeros.
    pub(super) arrangement: Arc<Arrangement>,
    /// By window of an image and pair of rows; none without a shift.
    mask: Option<Tensor>,
}

impl Windows {
    /// Cuts images of `sides` into windows of `window` rows each way, moved by `shift`.
    pub(super) fn new([height, width]: [usize; 2], window: usize, shift: usize) -> Result<Self> {
        let [down, across] = [height, width].map(|side| side.div_ceil(window));
        let [padded_height, padded_width] = [down * window, across * window];
        let inside = (0..down * across * window * window).map(|i| {
            let (of, row) = (i / (window * window), i % (window * window));
            let (y, x) = (of / across * window + row / window, of % across * window + row % window);
            // Whose place it takes after the shift.
            let (y, x) = ((y + shift) % padded_height, (x + shift) % padded_width);
            (y < height && x < width).then_some(y * width + x)
        });
        let arrangement = Arc::new(Arrangement::new(height * width, inside));
        if shift == 0 {
            return Ok(Self { arrangement, mask: None });
        }
        // Rows of one region belong together.
        let part = |at: usize, side: usize| usize::from(at >= side - window) + usize::from(at >= side - shift);
        let region = |of: usize, row: usize| {
            let (y, x) = (of / across * window + row / window, of % across * window + row % window);
            3 * part(y, padded_height) + part(x, padded_width)
        };
        let (windows, rows) = (down * across, window * window);
        let mut mask = Vec::with_capacity(windows * rows * rows);
        for of in 0..windows {
            let regions: Vec<usize> = (0..rows).map(|row| region(of, row)).collect();
            for a in &regions {
                mask.extend(regions.iter().map(|b| if a == b { 0.0 } else { APART }));
            }
        }
        let mask = Tensor::from_vec(mask, (windows, rows * rows), &Device::Cpu)?;
        Ok(Self { arrangement, mask: Some(mask) })
    }

    /// Returns the mask on a device, f32 `[windows, rows·rows]`.
    pub(super) fn mask_on(&self, device: &Device) -> Result<Option<Tensor>> {
        self.mask.as_ref().map(|mask| mask.to_device(device)).transpose()
    }
}

/// Returns the rows of an image in fours, each of which becomes one row: upper left, lower left, upper right, lower right.
pub(super) fn merging([height, width]: [usize; 2]) -> Arrangement {
    let [down, across] = [height, width].map(|side| side.div_ceil(2));
    let fours = (0..down * across * 4).map(|i| {
        let (of, part) = (i / 4, i % 4);
        let (y, x) = (of / across * 2 + part % 2, of % across * 2 + part / 2);
        (y < height && x < width).then_some(y * width + x)
    });
    Arrangement::new(height * width, fours)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of rows after an arrangement of one image whose row i holds i + 1.
    fn rows(arrangement: Arrangement, count: usize) -> Vec<f32> {
        let x = Tensor::from_vec((0..count).map(|i| i as f32 + 1.0).collect(), (count, 1), &Device::Cpu).unwrap();
        Arc::new(arrangement).apply(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn windows_are_cut_shifted_and_padded() {
        let windows = |sides, shift| {
            let windows = Windows::new(sides, 2, shift).unwrap();
            rows(Arrangement::clone(&windows.arrangement), sides[0] * sides[1])
        };
        assert_eq!(windows([2, 4], 0), [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0]);
        assert_eq!(windows([2, 4], 1), [6.0, 7.0, 2.0, 3.0, 8.0, 5.0, 4.0, 1.0]);
        assert_eq!(windows([2, 3], 0), [1.0, 2.0, 4.0, 5.0, 3.0, 0.0, 6.0, 0.0]);
    }

    #[test]
    fn a_shift_keeps_apart_what_was_not_together() {
        let windows = Windows::new([4, 4], 2, 1).unwrap();
        let mask = windows.mask_on(&Device::Cpu).unwrap().unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(mask.len(), 4);
        assert!(mask[0].iter().all(|x| *x == 0.0));
        // The second window holds the last column and, of what was shifted around, the first.
        assert_eq!(mask[1][..4], [0.0, APART, 0.0, APART]);
        assert_eq!(mask[3][..4], [0.0, APART, APART, APART]);
        assert!(Windows::new([4, 4], 2, 0).unwrap().mask_on(&Device::Cpu).unwrap().is_none());
    }

    #[test]
    fn four_rows_become_one() {
        assert_eq!(rows(merging([2, 4]), 8), [1.0, 5.0, 2.0, 6.0, 3.0, 7.0, 4.0, 8.0]);
        assert_eq!(rows(merging([1, 3]), 3), [1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 0.0, 0.0]);
    }
}
