//! What a step launches, layer by layer.
//!
//! Reads like `pass_block`: the same block, on memory that stays. What is recorded takes no memory, and reads whatever
//! changes from step to step from the device.
//! Shapes: `[rows, …]`, packed.

use candle_core::{DType, Result, Tensor};

use super::Resident;
use super::room::{Form, Part, Room, first};
use super::slots::Tables;
use crate::lora::{LoraBatch, SiteId};
use crate::model::layers::Projection;
use crate::model::llama::{EMBEDDING, Llama, Seen};
use crate::ops::cuda::{self, Adapters, Changes, Gpu, Layer, MOST_ROWS, Places, Seen as Keys};

/// A step on its way.
pub(super) struct Pass<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) room: &'a Room,
    pub(super) form: Form,
    /// Where rows have adapters of the table, and the largest rank that there is room for.
    pub(super) slots: Option<(&'a Tables, usize)>,
    /// Adapters that the table cannot hold.
    pub(super) lora: Option<&'a LoraBatch>,
    /// Rows that get logits; for adapters that the table cannot hold.
    pub(super) chosen: &'a [usize],
    /// Most rows of a sequence, or none where every sequence decodes.
    pub(super) longest: Option<usize>,
}

impl Llama {
    /// Launches everything that a step is made of; `seen` gets the input of each block and the output of the last.
    pub(super) fn pass_on_gpu(&self, resident: &Resident, pass: &Pass<'_>, mut seen: Option<Seen<'_>>) -> Result<()> {
        let Pass { gpu, room, form, .. } = *pass;
        let hidden = self.config.hidden_size;
        let stream = first(&room.stream, form.rows, hidden)?;
        let back = first(&room.back, form.rows, hidden)?;
        self.embed_on_gpu(pass, &stream)?;
        // What the last part of a block adds to the stream is added where the next one is normed.
        let mut added = true;
        for layer in 0..self.blocks.len() {
            if let Some(seen) = &mut seen {
                if !added {
                    cuda::add_rows(gpu, &stream, &back)?;
                }
                added = true;
                seen(&gpu.own(&stream)?.to_dtype(self.dtype)?);
            }
            self.block_on_gpu(layer, resident, pass, [&stream, &back], added)?;
            added = false;
        }
        cuda::add_rows(gpu, &stream, &back)?;
        if let Some(seen) = &mut seen {
            seen(&gpu.own(&stream)?.to_dtype(self.dtype)?);
        }
        if form.chosen == 0 {
            return Ok(());
        }
        let (chosen, last) = (first(&room.chosen, form.chosen, hidden)?, first(&room.last, form.chosen, hidden)?);
        cuda::take(gpu, &stream, &room.part(form, Part::Chosen)?, &chosen)?;
        let lora = pass.lora.map(|lora| lora.select(pass.chosen));
        let pass = Pass { slots: None, lora: lora.as_ref(), ..*pass };
        self.norm_on_gpu(&pass, self.last_norm(), &chosen, &self.norm, &last)?;
        let logits = first(&room.logits, form.chosen, self.head.weight.outputs()?)?;
        project(&pass, &last, &[(&self.head, &logits)])
    }

    fn embed_on_gpu(&self, pass: &Pass<'_>, stream: &Tensor) -> Result<()> {
        let Some(table) = self.embedding.tensor() else { candle_core::bail!("an embedding of another format") };
        let ids = pass.room.part(pass.form, Part::Ids)?;
        cuda::take(pass.gpu, table, &ids, stream)?;
        match pass.lora.filter(|lora| lora.changes(EMBEDDING)) {
            Some(lora) => pass.gpu.copy(&lora.embedding(EMBEDDING, &ids, pass.gpu.own(stream)?)?, stream),
            None => Ok(()),
        }
    }

    /// Normalises rows of the stream, with the weight of the adapter of each row where adapters bring one.
    fn norm_on_gpu(&self, pass: &Pass<'_>, site: SiteId, x: &Tensor, weight: &Tensor, out: &Tensor) -> Result<()> {
        let eps = self.config.rms_norm_eps;
        match pass.lora.filter(|lora| lora.changes(site)) {
            Some(lora) => {
                let normed = lora.rms_norm(site, x, &weight.to_dtype(DType::F32)?, eps)?;
                pass.gpu.copy(&normed.to_dtype(out.dtype())?, out)
            }
            None => cuda::rms_norm(pass.gpu, x, weight, eps, out),
        }
    }

    /// Adds `back` to the stream and normalises it.
    fn add_and_norm(
        &self,
        pass: &Pass<'_>,
        site: SiteId,
        [stream, back]: [&Tensor; 2],
        weight: &Tensor,
        out: &Tensor,
    ) -> Result<()> {
        if pass.lora.is_some_and(|lora| lora.changes(site)) {
            cuda::add_rows(pass.gpu, stream, back)?;
            return self.norm_on_gpu(pass, site, stream, weight, out);
        }
        cuda::add_rms_norm(pass.gpu, stream, back, weight, self.config.rms_norm_eps, out)
    }

    /// Computes a block; what its last part adds to the stream is left in `back`, as is that of the block before unless it is
    /// `added`.
    fn block_on_gpu(
        &self,
        layer: usize,
        resident: &Resident,
        pass: &Pass<'_>,
        [stream, back]: [&Tensor; 2],
        added: bool,
    ) -> Result<()> {
        let (block, config) = (&self.blocks[layer], &self.config);
        let Pass { gpu, room, form, .. } = *pass;
        let rows = form.rows;
        let [attention_site, mlp_site] = self.norms_of(layer);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (q, k, v) =
            (first(&room.query, rows, queries)?, first(&room.key, rows, keys)?, first(&room.value, rows, keys)?);
        let normed = first(&room.normed, rows, config.hidden_size)?;

        match added {
            true => self.norm_on_gpu(pass, attention_site, stream, &block.attention_norm, &normed)?,
            false => self.add_and_norm(pass, attention_site, [stream, back], &block.attention_norm, &normed)?,
        }
        project(pass, &normed, &[(&block.query, &q), (&block.key, &k), (&block.value, &v)])?;
        let places = Places { positions: &room.part(form, Part::Positions)?, slots: &room.part(form, Part::Places)? };
        let pool = [&resident.keys[layer], &resident.values[layer]];
        cuda::rope_and_store(gpu, [&q, &k, &v], places, &resident.frequencies, pool)?;
        let mixed = first(&room.mixed, rows, queries)?;
        let (blocks, window) = (&room.pages(form)?, config.sliding_window);
        match pass.longest {
            None => {
                let seen = Keys { lengths: &room.part(form, Part::Lengths)?, blocks, window };
                cuda::attend_decode(gpu, &q, pool, seen, &room.scratch, &mixed)?;
            }
            Some(longest) => {
                let (starts, pasts) = (&room.part(form, Part::Starts)?, &room.part(form, Part::Pasts)?);
                let rows = cuda::Rows { starts, pasts, blocks, longest, window };
                cuda::attend_rows(gpu, &q, pool, rows, &mixed)?;
            }
        }
        project(pass, &mixed, &[(&block.output, back)])?;

        self.add_and_norm(pass, mlp_site, [stream, back], &block.mlp_norm, &normed)?;
        let width = config.intermediate_size;
        let gated = first(&room.mixed, rows, width)?;
        let parts = [&block.gate, &block.up];
        if is_small(pass, &normed, &parts)? {
            let inner = shrunk(pass, &normed, &parts)?;
            let changes = inner.as_ref().map(Inner::changes);
            cuda::gated_product(gpu, &normed, [layer_of(pass, parts[0])?, layer_of(pass, parts[1])?], changes, &gated)?;
        } else {
            let (gate, up) = (first(&room.gate, rows, width)?, first(&room.up, rows, width)?);
            project(pass, &normed, &[(&block.gate, &gate), (&block.up, &up)])?;
            cuda::silu_mul(gpu, &gate, &up, &gated)?;
        }
        project(pass, &gated, &[(&block.down, back)])
    }
}

/// Computes linear layers of the same rows with the adapters of the step: `x` is `[rows, input]`, what comes out
/// `[rows, output]`.
fn project(pass: &Pass<'_>, x: &Tensor, layers: &[(&Projection, &Tensor)]) -> Result<()> {
    let gpu = pass.gpu;
    let (parts, outs): (Vec<&Projection>, Vec<&Tensor>) = layers.iter().copied().unzip();
    if is_small(pass, x, &parts)? {
        let own = parts.iter().map(|part| layer_of(pass, part)).collect::<Result<Vec<_>>>()?;
        let inner = shrunk(pass, x, &parts)?;
        return cuda::adapted_product(gpu, x, &own, inner.as_ref().map(Inner::changes), &outs);
    }
    for (layer, out) in layers {
        gpu.product(x, weight_of(layer)?, 0.0, out)?;
        match pass.lora.filter(|lora| lora.changes(layer.site)) {
            Some(lora) => {
                let changed = lora.linear(layer.site, x, gpu.own(out)?, layer.bias.as_ref())?;
                gpu.copy(&changed, out)?;
            }
            None => {
                if let Some(bias) = &layer.bias {
                    cuda::add_bias(gpu, out, bias)?;
                }
            }
        }
    }
    let Some(Inner { inner, of_rows, tables, columns }) = shrunk(pass, x, &parts)? else { return Ok(()) };
    cuda::low_rank_expand(gpu, &inner, &of_rows, tables, &columns, &outs)
}

/// Returns whether a product is bound by reading the weights, and all that follows it goes with it.
fn is_small(pass: &Pass<'_>, x: &Tensor, layers: &[&Projection]) -> Result<bool> {
    let (rows, input) = x.dims2()?;
    let by_tensors = pass.lora.is_some_and(|lora| layers.iter().any(|layer| lora.changes(layer.site)));
    Ok(rows <= MOST_ROWS && input.is_multiple_of(8) && !by_tensors)
}

fn weight_of(layer: &Projection) -> Result<&Tensor> {
    match layer.weight.tensor() {
        Some(weight) => Ok(weight),
        None => candle_core::bail!("a weight of another format"),
    }
}

fn layer_of<'a>(pass: &Pass<'_>, layer: &'a Projection) -> Result<Layer<'a>> {
    let site = pass.slots.map_or(0, |(slots, _)| slots.column(layer.site));
    Ok(Layer { weight: weight_of(layer)?, bias: layer.bias.as_ref(), site })
}

/// What adapters in slots made of rows: x·Aᵀ of some layers, `[layers, rows, rank]`.
struct Inner<'a> {
    inner: Tensor,
    of_rows: Tensor,
    tables: Adapters<'a>,
    columns: Vec<usize>,
}

impl Inner<'_> {
    fn changes(&self) -> Changes<'_> {
        Changes { inner: &self.inner, row_slots: &self.of_rows, adapters: self.tables }
    }
}

fn shrunk<'a>(pass: &Pass<'a>, x: &Tensor, layers: &[&Projection]) -> Result<Option<Inner<'a>>> {
    let Some((slots, rank)) = pass.slots else { return Ok(None) };
    let (rows, tables) = (x.dims2()?.0, slots.adapters());
    let of_rows = pass.room.part(pass.form, Part::Slots)?;
    let columns: Vec<usize> = layers.iter().map(|layer| slots.column(layer.site)).collect();
    let inner = pass.room.inner.narrow(0, 0, columns.len() * rows * rank)?.reshape((columns.len(), rows, rank))?;
    cuda::low_rank_shrink(pass.gpu, x, &of_rows, tables, &columns, &inner)?;
    Ok(Some(Inner { inner, of_rows, tables, columns }))
}
