//! Rows laid out anew, and pairs looked up in a table: how windows are cut out of images and put back.
//!
//! Computes nothing: copies, with the copy back as the gradient. Which row goes where is the caller's.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

use super::buffer::Buffer;
use super::explicit::{Value, explicit};
use super::slices::{is_plain, with_slices};

/// A row of zeros.
const NONE: u32 = u32::MAX;

/// Where each row of an image comes from, the same for every image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrangement {
    /// Source of each row after it.
    sources: Vec<u32>,
    /// Place of each row before it.
    places: Vec<u32>,
    /// Whether every row stays where it is.
    stays: bool,
}

impl Arrangement {
    /// Takes the source of each row, none for a row of zeros, out of `rows`; no row is taken twice.
    pub fn new(rows: usize, sources: impl Iterator<Item = Option<usize>>) -> Self {
        let sources: Vec<u32> = sources.map(|source| source.map_or(NONE, |row| row as u32)).collect();
        let mut places = vec![NONE; rows];
        for (place, source) in sources.iter().enumerate() {
            if let Some(to) = places.get_mut(*source as usize) {
                *to = place as u32;
            }
        }
        let stays = sources.len() == rows && sources.iter().enumerate().all(|(i, source)| *source as usize == i);
        Self { sources, places, stays }
    }

    /// Returns the rows that an image has after it.
    pub fn rows(&self) -> usize {
        self.sources.len()
    }

    /// Returns whether every row stays where it is.
    pub fn stays(&self) -> bool {
        self.stays
    }

    /// Lays the rows of `[images·rows, width]` out.
    ///
    /// # Errors
    /// When the rows are not those of whole images, or the device fails.
    pub fn apply(self: &Arc<Self>, x: &Tensor) -> Result<Tensor> {
        self.moved(x, false)
    }

    /// Lays them out as they were; what was left out becomes zeros.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn undo(self: &Arc<Self>, x: &Tensor) -> Result<Tensor> {
        self.moved(x, true)
    }

    /// Lays the rows of `[images·rows, width]` out on the CPU without a gradient, or `back`; returns `x` itself where every
    /// row stays.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn laid<'a>(&self, x: &'a [f32], width: usize, back: bool, buffer: &'a mut Vec<f32>) -> Result<&'a [f32]> {
        if self.stays {
            return Ok(x);
        }
        let (sources, before) = self.way(back);
        buffer.resize(self.numbers(x, width, back)?, 0.0);
        copy((x, width), sources, before, buffer);
        Ok(buffer)
    }

    /// The same in memory of its own, where every row stays too.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn laid_out(&self, x: &[f32], width: usize, back: bool) -> Result<Buffer> {
        if self.stays {
            return Ok(Buffer::copy(x));
        }
        let (sources, before) = self.way(back);
        let mut out = Buffer::new(self.numbers(x, width, back)?);
        copy((x, width), sources, before, &mut out);
        Ok(out)
    }

    /// Returns how many numbers `x` becomes.
    fn numbers(&self, x: &[f32], width: usize, back: bool) -> Result<usize> {
        let (sources, before) = self.way(back);
        let rows = x.len() / width.max(1);
        if before == 0 || !rows.is_multiple_of(before) || rows * width != x.len() {
            bail!("{} numbers are no images of {before} rows of {width}", x.len());
        }
        Ok(rows / before * sources.len() * width)
    }

    /// Returns the source of each row, and the number of rows that they come from.
    fn way(&self, back: bool) -> (&[u32], usize) {
        match back {
            false => (&self.sources, self.places.len()),
            true => (&self.places, self.sources.len()),
        }
    }

    fn moved(self: &Arc<Self>, x: &Tensor, back: bool) -> Result<Tensor> {
        if self.stays {
            return Ok(x.clone());
        }
        let value = self.value(&x.detach(), back)?;
        let own = Arc::clone(self);
        explicit(&[x], value, move |gradient| Ok(vec![Some(own.value(gradient, !back)?.into_tensor()?)]))
    }

    fn value(&self, x: &Tensor, back: bool) -> Result<Value> {
        let (sources, before) = self.way(back);
        let (rows, width) = x.dims2()?;
        if before == 0 || !rows.is_multiple_of(before) {
            bail!("{rows} rows are no images of {before}");
        }
        let shape = (rows / before * sources.len(), width);
        if !is_plain(x) {
            return self.selected(x, sources, before).map(Value::Tensor);
        }
        let mut out = vec![0.0; shape.0 * width];
        with_slices([x], |[x]| {
            copy((x, width), sources, before, &mut out);
            Ok(())
        })?;
        Ok(Value::Owned(out, shape.into()))
    }

    /// The same on other devices: a row of zeros stands behind the others.
    fn selected(&self, x: &Tensor, sources: &[u32], before: usize) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let with_zeros = Tensor::cat(&[x, &Tensor::zeros((1, width), x.dtype(), x.device())?], 0)?;
        let of_image = |image: usize| {
            sources
                .iter()
                .map(move |source| if *source == NONE { rows } else { image * before + *source as usize } as u32)
        };
        let index: Vec<u32> = (0..rows / before).flat_map(of_image).collect();
        with_zeros.index_select(&Tensor::new(index, x.device())?, 0)
    }
}

/// Copies the row at each source of every image; `x` is `[images·before, width]`.
fn copy((x, width): (&[f32], usize), sources: &[u32], before: usize, out: &mut [f32]) {
    // Some rows of an image at a time.
    let part = sources.len().div_ceil(4).max(1);
    let images = out.par_chunks_mut((sources.len() * width).max(1)).zip(x.par_chunks((before * width).max(1)));
    images.for_each(|(out, x)| {
        let parts = out.par_chunks_mut((part * width).max(1)).zip(sources.par_chunks(part));
        parts.for_each(|(out, sources)| {
            for (out, source) in out.chunks_exact_mut(width.max(1)).zip(sources) {
                match *source {
                    NONE => out.fill(0.0),
                    row => out.copy_from_slice(&x[row as usize * width..][..width]),
                }
            }
        });
    });
}

/// Returns the entries `index` of every row of a table, `[heads, index]`; `table` is f32 `[heads, entries]`.
///
/// # Errors
/// When an index is out of range or the device fails.
pub fn spread_table(table: &Tensor, index: &Arc<Vec<u32>>) -> Result<Tensor> {
    let (heads, entries) = table.dims2()?;
    if index.iter().any(|i| *i as usize >= entries) {
        bail!("an index is not below {entries}");
    }
    let (device, count) = (table.device().clone(), index.len());
    let flat = table.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    let mut out = vec![0.0; heads * count];
    with_slices([&flat], |[table]| {
        let rows = out.par_chunks_mut(count.max(1)).zip(table.par_chunks(entries.max(1)));
        rows.for_each(|(out, row)| out.iter_mut().zip(index.iter()).for_each(|(out, i)| *out = row[*i as usize]));
        Ok(())
    })?;
    let spread = Tensor::from_vec(out, (heads, count), &Device::Cpu)?.to_device(&device)?;
    let index = Arc::clone(index);
    explicit(&[table], spread, move |gradient| {
        let mut sums = vec![0.0_f32; heads * entries];
        with_slices([&gradient.to_device(&Device::Cpu)?], |[gradient]| {
            let rows = sums.par_chunks_mut(entries.max(1)).zip(gradient.par_chunks(count.max(1)));
            rows.for_each(|(sums, row)| row.iter().zip(index.iter()).for_each(|(g, i)| sums[*i as usize] += g));
            Ok(())
        })?;
        Ok(vec![Some(Tensor::from_vec(sums, (heads, entries), &Device::Cpu)?.to_device(&device)?)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::fused::tests::{both_forms_agree, largest_difference, values};

    #[test]
    fn rows_go_there_and_back() {
        let sources = [Some(3), None, Some(0), Some(4), None, Some(1)];
        let arrangement = Arc::new(Arrangement::new(5, sources.into_iter()));
        let x = values(&[10, 3], 1);
        let moved = arrangement.apply(&x).unwrap();
        assert_eq!(moved.dims(), [12, 3]);
        let [x, y] = [&x, &moved].map(|t| t.to_vec2::<f32>().unwrap());
        for (image, i) in [(0, 0), (1, 0), (1, 3), (0, 5)] {
            assert_eq!(y[image * 6 + i], x[image * 5 + sources[i].unwrap()]);
        }
        assert_eq!(y[7], [0.0; 3]);
        let back = arrangement.undo(&moved).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(back[9], x[9]);
        assert_eq!(back[2], [0.0; 3]);
        both_forms_agree(&[10, 3], |x| arrangement.apply(x).unwrap());
        both_forms_agree(&[12, 3], |x| arrangement.undo(x).unwrap());
        for back in [false, true] {
            let x = values(&[if back { 12 } else { 10 }, 3], 2);
            let (sources, before) = if back { (&arrangement.places, 6) } else { (&arrangement.sources, 5) };
            let selected = arrangement.selected(&x, sources, before).unwrap();
            assert_eq!(largest_difference(&selected, &arrangement.moved(&x, back).unwrap()), 0.0);
        }
        arrangement.apply(&values(&[11, 3], 1)).unwrap_err();
    }

    #[test]
    fn a_table_is_spread_with_its_gradient() {
        let index = Arc::new(vec![2, 0, 2, 1, 2]);
        both_forms_agree(&[3, 4], |table| spread_table(table, &index).unwrap());
        spread_table(&values(&[3, 2], 1), &index).unwrap_err();
    }
}
