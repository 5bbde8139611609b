//! Memory of a pass on a GPU: one set of tensors for all layers, at addresses that stay, and the numbers of a step.
//!
//! A recorded step finds everything at the same place again: what changes is written into `step` before it runs.
//! Shapes: `[rows, …]` with the rows that there is room for; a pass takes the first of them.

use candle_core::{DType, Result, Tensor};

use crate::model::config::Config;
use crate::model::pages::PAGE;
use crate::ops::cuda::{Gpu, NO_SLOT};

/// What a step writes down for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Rows of the pass.
    pub(super) rows: usize,
    /// Sequences; as many as rows where each has one.
    pub(super) sequences: usize,
    /// Pages that a sequence has at most.
    pub(super) width: usize,
    /// Rows whose logits are asked for.
    pub(super) chosen: usize,
}

/// A slot of nobody: nothing is stored, no adapter changes the row.
pub(super) const NONE: u32 = NO_SLOT;

/// The numbers of a step, part by part, as they lie behind each other in memory.
#[derive(Debug)]
pub(super) struct Numbers {
    form: Form,
    data: Vec<u32>,
}

/// A part of the numbers of a step.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    /// Token of each row.
    Ids,
    /// Position of each row in its sequence.
    Positions,
    /// Where each row's keys and values go, counted in tokens of the pool.
    Places,
    /// Slot of each row's adapter.
    Slots,
    /// Tokens that each row of a decoding step sees, its own among them.
    Lengths,
    /// First row of each sequence, and the end.
    Starts,
    /// Tokens of each sequence before this step.
    Pasts,
    /// Rows whose logits are asked for.
    Chosen,
    /// Pages of each sequence.
    Pages,
}

impl Form {
    /// Returns where a part begins and how many numbers it has.
    fn place(self, part: Part) -> (usize, usize) {
        let Self { rows, sequences, width, chosen } = self;
        let sizes = [rows, rows, rows, rows, rows, sequences + 1, sequences, chosen, sequences * width];
        let at = part as usize;
        // Each begins at 16 bytes.
        (sizes[..at].iter().map(|size| size.next_multiple_of(4)).sum(), sizes[at])
    }

    /// Returns how many numbers there are.
    pub(super) fn len(self) -> usize {
        let (start, len) = self.place(Part::Pages);
        start + len
    }
}

impl Numbers {
    /// Begins with rows of nobody.
    pub(super) fn new(form: Form) -> Self {
        let mut numbers = Self { form, data: vec![0; form.len()] };
        for part in [Part::Places, Part::Slots] {
            numbers.part(part).fill(NONE);
        }
        numbers
    }

    /// Returns a part to be written.
    pub(super) fn part(&mut self, part: Part) -> &mut [u32] {
        let (start, len) = self.form.place(part);
        &mut self.data[start..start + len]
    }

    /// Returns all of them.
    pub(super) fn all(&self) -> &[u32] {
        &self.data
    }
}

/// Tensors of a pass.
#[derive(Debug)]
pub(super) struct Room {
    rows: usize,
    /// Numbers of a step.
    step: Tensor,
    /// The stream between the blocks, f32.
    pub(super) stream: Tensor,
    pub(super) normed: Tensor,
    /// What comes back to the stream.
    pub(super) back: Tensor,
    pub(super) query: Tensor,
    pub(super) key: Tensor,
    pub(super) value: Tensor,
    pub(super) mixed: Tensor,
    pub(super) gate: Tensor,
    pub(super) up: Tensor,
    /// x·Aᵀ of the layers that share an input, f32.
    pub(super) inner: Tensor,
    /// Parts of attention, f32.
    pub(super) scratch: Tensor,
    /// Rows that get logits, as they are and normed.
    pub(super) chosen: Tensor,
    pub(super) last: Tensor,
    /// f32.
    pub(super) logits: Tensor,
}

/// Layers that share an input at most.
pub(super) const TOGETHER: usize = 3;

impl Room {
    /// Takes memory for `rows` rows, `numbers` of a step, `scratch` numbers of attention, `logits` rows of logits of a head of
    /// `outputs`, and adapters of `rank`.
    pub(super) fn new(
        gpu: &Gpu,
        config: &Config,
        dtype: DType,
        (rows, numbers, scratch): (usize, usize, usize),
        (logits, outputs): (usize, usize),
        rank: usize,
    ) -> Result<Self> {
        let Config { hidden_size: hidden, intermediate_size, heads, kv_heads, head_dim, .. } = *config;
        let tensor = |rows: usize, width: usize, dtype| gpu.tensor((rows, width), dtype);
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        Ok(Self {
            rows,
            step: gpu.tensor(numbers, DType::U32)?,
            stream: tensor(rows, hidden, DType::F32)?,
            normed: tensor(rows, hidden, dtype)?,
            back: tensor(rows, hidden, dtype)?,
            query: tensor(rows, queries, dtype)?,
            key: tensor(rows, keys, dtype)?,
            value: tensor(rows, keys, dtype)?,
            mixed: tensor(rows, queries.max(intermediate_size), dtype)?,
            gate: tensor(rows, intermediate_size, dtype)?,
            up: tensor(rows, intermediate_size, dtype)?,
            inner: gpu.tensor(TOGETHER * rows * rank.max(1), DType::F32)?,
            scratch: gpu.tensor(scratch.max(1), DType::F32)?,
            chosen: tensor(logits, hidden, DType::F32)?,
            last: tensor(logits, hidden, dtype)?,
            logits: tensor(logits, outputs, DType::F32)?,
        })
    }

    /// Returns whether a step fits, with adapters of `rank`.
    pub(super) fn fits(&self, form: Form, rank: usize) -> bool {
        form.rows <= self.rows
            && TOGETHER * form.rows * rank <= self.inner.elem_count()
            && form.chosen <= self.logits.dims()[0]
            && form.len() <= self.step.elem_count()
    }

    /// Writes the numbers of a step.
    pub(super) fn upload(&self, gpu: &Gpu, numbers: &Numbers) -> Result<()> {
        gpu.upload(numbers.all(), &self.step)
    }

    /// Returns a part of the numbers of a step as the device has it.
    pub(super) fn part(&self, form: Form, part: Part) -> Result<Tensor> {
        let (start, len) = form.place(part);
        self.step.narrow(0, start, len)
    }

    /// Returns the pages of a step, `[sequences, width]`.
    pub(super) fn pages(&self, form: Form) -> Result<Tensor> {
        self.part(form, Part::Pages)?.reshape((form.sequences, form.width))
    }

    /// Returns the bytes that it takes.
    pub(super) fn bytes(&self) -> u64 {
        let Self { rows: _, step, stream, normed, back, query, key, value, mixed, gate, up, .. } = self;
        let Self { inner, scratch, chosen, last, logits, .. } = self;
        let all =
            [step, stream, normed, back, query, key, value, mixed, gate, up, inner, scratch, chosen, last, logits];
        all.into_iter().map(|tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64).sum()
    }
}

/// Returns the first `rows` of a tensor as `[rows, width]`, whatever its own width.
pub(super) fn first(tensor: &Tensor, rows: usize, width: usize) -> Result<Tensor> {
    tensor.flatten_all()?.narrow(0, 0, rows * width)?.reshape((rows, width))
}

/// Returns the pages of `tokens`.
pub(super) fn pages(tokens: usize) -> usize {
    tokens.div_ceil(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_step_lie_behind_each_other() {
        let form = Form { rows: 5, sequences: 2, width: 3, chosen: 1 };
        let mut numbers = Numbers::new(form);
        let parts = [
            Part::Ids,
            Part::Positions,
            Part::Places,
            Part::Slots,
            Part::Lengths,
            Part::Starts,
            Part::Pasts,
            Part::Chosen,
            Part::Pages,
        ];
        assert!(numbers.part(Part::Places).iter().all(|slot| *slot == NONE));
        for (i, part) in parts.into_iter().enumerate() {
            numbers.part(part).fill(i as u32 + 1);
        }
        for (i, (part, len)) in parts.into_iter().zip([5, 5, 5, 5, 5, 3, 2, 1, 6]).enumerate() {
            assert_eq!(numbers.part(part), vec![i as u32 + 1; len]);
        }
        assert_eq!(numbers.all().len(), form.len());
    }
}
