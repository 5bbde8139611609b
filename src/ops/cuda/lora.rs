//! Low-rank changes of packed rows, every row by the adapter of its slot: many adapters of any rank in one launch.
//!
//! Where matrices lie stands in tables on the device, so that a recorded step serves other adapters when the tables
//! change. Rows of one slot that are neighbours share the loads of its matrices; rows without an adapter cost nothing.
//! Shapes: A is `[rank, input]`, B `[output, rank]`. After: Punica, S-LoRA.

use candle_core::{DType, Result, Tensor, bail};

use super::device::{Argument, Gpu, Launch};
use super::norm::named;
use super::ptx;

/// The slot of a row without an adapter.
pub const NO_SLOT: u32 = u32::MAX;
/// Sites of one launch at most.
const MOST_SITES: usize = 3;
/// Threads of a block.
const THREADS: usize = 256;
/// Rows of a tile.
const ROWS: usize = 16;
/// Outputs that a block makes.
const OUTPUTS: usize = 256;
/// Up to so many rows each run of a tile gets blocks of its own.
const FEW: usize = 64;

/// What stands in the slots, in tables on the device by slot and site.
#[derive(Debug, Clone, Copy)]
pub struct Adapters<'a> {
    /// Addresses of A and B ([`Gpu::address`]), multiples of 16, 0 where the site is the base model's; i64 `[slots,
    /// sites, 2]`. What they name lives as long as launches use the tables.
    pub addresses: &'a Tensor,
    /// Ranks, u32 `[slots, sites]`.
    pub ranks: &'a Tensor,
    /// What B·A is multiplied with, alpha/rank for example; f32 `[slots, sites]`.
    pub factors: &'a Tensor,
    /// Number format of the matrices, f32 or bf16.
    pub format: DType,
}

impl<'a> Adapters<'a> {
    /// Checks tables, sites and slots of rows, and returns arguments: the tables; slots, sites and the sites of the
    /// launch.
    pub(super) fn arguments(
        self,
        rows: usize,
        row_slots: &Tensor,
        of: &[usize],
    ) -> Result<([Argument<'a>; 3], Vec<Argument<'a>>)> {
        let (slots, sites) = self.ranks.dims2()?;
        let formats = [(self.addresses, DType::I64), (self.ranks, DType::U32), (self.factors, DType::F32)];
        let known = formats.iter().all(|(table, dtype)| table.dtype() == *dtype);
        if !known || self.addresses.dims() != [slots, sites, 2] || self.factors.dims() != [slots, sites] {
            bail!("tables {:?}, {:?}, {:?}", self.addresses.shape(), self.ranks.shape(), self.factors.shape());
        }
        if of.is_empty() || of.len() > MOST_SITES || of.iter().any(|site| *site >= sites) {
            bail!("sites {of:?} of {sites}");
        }
        if row_slots.dims() != [rows] || row_slots.dtype() != DType::U32 {
            bail!("slots {:?} for {rows} rows", row_slots.shape());
        }
        let counts = [slots, sites].into_iter().chain(of.iter().copied()).chain([0; MOST_SITES]).take(2 + MOST_SITES);
        let counts = counts.map(|count| Argument::U32(count as u32)).collect();
        Ok(([self.addresses, self.ranks, self.factors].map(Argument::Tensor), counts))
    }
}

/// Returns into how many parts the runs of a tile of rows are divided.
fn parts(rows: usize) -> usize {
    if rows <= FEW { rows.min(ROWS) } else { 1 }
}

/// Writes factor·x·Aᵀ of each site to `inner`, f32 `[sites, rows, most_rank]`, as far as the adapter of a row has a
/// rank there.
///
/// `x` is `[rows, input]` of the format of the matrices, with an input of a multiple of 8; `row_slots` is u32 `[rows]`,
/// in which [`NO_SLOT`], as any beyond the tables, is a row without an adapter. `sites` are up to three indices into
/// the tables; no rank is larger than `most_rank`.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn low_rank_shrink(
    gpu: &Gpu,
    x: &Tensor,
    row_slots: &Tensor,
    adapters: Adapters<'_>,
    sites: &[usize],
    inner: &Tensor,
) -> Result<()> {
    let ((rows, input), (inner_sites, inner_rows, most_rank)) = (x.dims2()?, inner.dims3()?);
    let fits = (inner_sites, inner_rows) == (sites.len(), rows) && inner.dtype() == DType::F32;
    if !fits || x.dtype() != adapters.format || !input.is_multiple_of(8) {
        bail!("rows {:?} and sites {sites:?} for {:?}", x.shape(), inner.shape());
    }
    let (tables, counts) = adapters.arguments(rows, row_slots, sites)?;
    if rows == 0 || most_rank == 0 {
        return Ok(());
    }
    let parts = parts(rows);
    let (form, ranks) = match adapters.format == DType::F32 {
        true => ("", 8),
        false if rows <= FEW => ("_few", 8),
        false => ("_many", 32),
    };
    let launch = Launch {
        file: ("lora", ptx::LORA),
        function: &(named("shrink", [x.dtype()])? + form),
        grid: ((rows.div_ceil(ROWS) * parts) as u32, most_rank.div_ceil(ranks) as u32, sites.len() as u32),
        block: (THREADS as u32, 1, 1),
        shared: 0,
    };
    let sizes = [rows, most_rank, parts, input].map(|count| Argument::U32(count as u32));
    let [x, row_slots, inner] = [x, row_slots, inner].map(Argument::Tensor);
    gpu.launch(launch, &[&[x, row_slots][..], &tables, &[inner], &counts, &sizes].concat())
}

/// Adds inner·Bᵀ of each site to `outs`, `[rows, output]` each, all f32 or all of the format of the matrices.
///
/// `inner` is what [`low_rank_shrink`] wrote for the same rows and sites.
///
/// # Errors
/// When shapes or formats do not fit, or the device fails.
pub fn low_rank_expand(
    gpu: &Gpu,
    inner: &Tensor,
    row_slots: &Tensor,
    adapters: Adapters<'_>,
    sites: &[usize],
    outs: &[&Tensor],
) -> Result<()> {
    let (inner_sites, rows, most_rank) = inner.dims3()?;
    let Some(first) = outs.first() else { bail!("changes of nothing") };
    let alike = |out: &&Tensor| out.rank() == 2 && out.dims()[0] == rows && out.dtype() == first.dtype();
    let fits = [sites.len(), outs.len()] == [inner_sites; 2] && inner.dtype() == DType::F32;
    if !fits || !outs.iter().all(alike) {
        bail!("{:?} for {:?}", inner.shape(), outs.iter().map(|out| out.shape()).collect::<Vec<_>>());
    }
    let (tables, counts) = adapters.arguments(rows, row_slots, sites)?;
    let mut outputs = [0; MOST_SITES];
    outputs.iter_mut().zip(outs).for_each(|(output, out)| *output = out.dims()[1]);
    let widest = outputs.iter().max().map_or(0, |output| output.div_ceil(OUTPUTS));
    if rows == 0 || widest == 0 {
        return Ok(());
    }
    let parts = parts(rows);
    let launch = Launch {
        file: ("lora", ptx::LORA),
        function: &named("expand", [adapters.format, first.dtype()])?,
        grid: ((rows.div_ceil(ROWS) * parts) as u32, widest as u32, sites.len() as u32),
        block: (THREADS as u32, 1, 1),
        shared: 0,
    };
    let sizes = [rows, most_rank, parts].map(|count| Argument::U32(count as u32));
    let [inner, row_slots] = [inner, row_slots].map(Argument::Tensor);
    let to = outs.iter().map(|out| Argument::Tensor(out)).chain([Argument::Nothing; MOST_SITES]).take(MOST_SITES);
    let (to, outputs) = (to.collect::<Vec<_>>(), outputs.map(|count| Argument::U32(count as u32)));
    gpu.launch(launch, &[&[inner, row_slots][..], &tables, &counts, &sizes, &to, &outputs].concat())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::cuda::testing::{close, counts, gpu, numbers, on, values};
    use crate::ops::cuda::{Changes, Layer, MOST_ROWS, adapted_product, gated_product, silu_mul};

    const SITES: usize = 5;
    const MOST_RANK: usize = 64;

    /// A matrix A, a matrix B and a factor.
    type Delta = (Tensor, Tensor, f32);

    /// What the slots hold, on the CPU: ranks that are no multiple of anything too, and sites that an adapter leaves
    /// alone.
    fn slots(widths: &[(usize, usize); SITES]) -> Vec<Vec<Option<Delta>>> {
        let ranks = [[1, 4, 8, 16, 64], [16, 0, 12, 1, 33], [64, 64, 0, 8, 4], [8, 16, 40, 0, 7]];
        let delta = |seed: u64, rank: usize, (input, output): (usize, usize)| {
            let a = (values(&[rank, input], seed) / (input as f64).sqrt()).unwrap();
            (a, values(&[output, rank], seed + 1), 2.0 / (rank as f32).sqrt())
        };
        let of = |(slot, ranks): (u64, [usize; SITES])| {
            let sites = (0..).zip(ranks).zip(widths);
            sites.map(|((site, rank), width)| (rank > 0).then(|| delta(100 * slot + 2 * site, rank, *width))).collect()
        };
        (1..).zip(ranks).map(of).collect()
    }

    /// The change of one row, plain.
    fn change(x: &[f32], (a, b, factor): &Delta) -> Vec<f32> {
        let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f32>();
        let inner: Vec<f32> = a.to_vec2::<f32>().unwrap().iter().map(|a| factor * dot(x, a)).collect();
        b.to_vec2::<f32>().unwrap().iter().map(|b| dot(&inner, b)).collect()
    }

    fn compare(row_slots: &[u32], sites: &[usize], input: usize, outputs: &[usize]) {
        let gpu = gpu();
        let mut widths = [(8, 8); SITES];
        sites.iter().zip(outputs).for_each(|(site, output)| widths[*site] = (input, *output));
        let (slots, rows) = (slots(&widths), row_slots.len());
        let x = values(&[rows, input], 7);
        let before: Vec<_> = (20..).zip(outputs).map(|(seed, output)| values(&[rows, *output], seed)).collect();
        for (dtype, of_outs) in [(DType::F32, DType::F32), (DType::BF16, DType::BF16), (DType::BF16, DType::F32)] {
            let held: Vec<Vec<_>> = slots
                .iter()
                .map(|sites| {
                    sites.iter().map(|delta| delta.as_ref().map(|(a, b, _)| [a, b].map(|m| on(&gpu, m, dtype))))
                })
                .map(Iterator::collect)
                .collect();
            let address = |matrix: &Tensor| gpu.address(matrix).unwrap() as i64;
            let addresses: Vec<i64> = held
                .iter()
                .flatten()
                .flat_map(|own| own.as_ref().map_or([0; 2], |own| own.each_ref().map(address)))
                .collect();
            let deltas = || slots.iter().flatten().map(Option::as_ref);
            let ranks: Vec<u32> = deltas().map(|delta| delta.map_or(0, |(a, ..)| a.dims()[0] as u32)).collect();
            let factors: Vec<f32> = deltas().map(|delta| delta.map_or(0.0, |delta| delta.2)).collect();
            let shape = (slots.len(), SITES);
            let device = gpu.device();
            let adapters = Adapters {
                addresses: &Tensor::from_vec(addresses, (shape.0, SITES, 2), &device).unwrap(),
                ranks: &Tensor::from_vec(ranks, shape, &device).unwrap(),
                factors: &Tensor::from_vec(factors, shape, &device).unwrap(),
                format: dtype,
            };
            let (own, of_rows) = (on(&gpu, &x, dtype), counts(&gpu, row_slots));
            let inner = gpu.tensor((sites.len(), rows, MOST_RANK), DType::F32).unwrap();
            let outs: Vec<_> = before.iter().map(|out| on(&gpu, out, of_outs)).collect();
            low_rank_shrink(&gpu, &own, &of_rows, adapters, sites, &inner).unwrap();
            low_rank_expand(&gpu, &inner, &of_rows, adapters, sites, &outs.iter().collect::<Vec<_>>()).unwrap();
            if rows <= MOST_ROWS {
                compare_products(&own, Changes { inner: &inner, row_slots: &of_rows, adapters }, sites, &before, &outs);
            }
            for ((site, before), out) in sites.iter().zip(&before).zip(&outs) {
                let mut expected = before.to_vec2::<f32>().unwrap();
                for ((row, slot), x) in expected.iter_mut().zip(row_slots).zip(x.to_vec2::<f32>().unwrap()) {
                    let delta = slots.get(*slot as usize).and_then(|sites| sites[*site].as_ref());
                    let Some(delta) = delta else { continue };
                    row.iter_mut().zip(change(&x, delta)).for_each(|(out, change)| *out += change);
                }
                close(out, &Tensor::new(expected, &Device::Cpu).unwrap(), dtype);
            }
        }
    }

    /// Products with changes in one launch, against the two by themselves: `changed` is `before` with changes added.
    fn compare_products(x: &Tensor, changes: Changes<'_>, sites: &[usize], before: &[Tensor], changed: &[Tensor]) {
        let (gpu, (rows, input)) = (gpu(), x.dims2().unwrap());
        let parts = |output: usize| {
            let weight = (values(&[output, input], 31) / (input as f64).sqrt()).unwrap();
            [weight, values(&[output], 32)].map(|part| on(&gpu, &part, x.dtype()))
        };
        let weights: Vec<_> = changed.iter().map(|out| parts(out.dims()[1])).collect();
        let layer = |(part, site): (&'_ [Tensor; 2], &usize)| {
            let [weight, bias] = [&part[0], &part[1]].map(Clone::clone);
            (weight, bias, *site)
        };
        let held: Vec<_> = weights.iter().zip(sites).map(layer).collect();
        let layers: Vec<_> =
            held.iter().map(|(weight, bias, site)| Layer { weight, bias: Some(bias), site: *site }).collect();
        let dtype = changed[0].dtype();
        let outs: Vec<_> = changed.iter().map(|out| gpu.tensor(out.shape(), dtype).unwrap()).collect();
        adapted_product(&gpu, x, &layers, Some(changes), &outs.iter().collect::<Vec<_>>()).unwrap();
        let f32 = |tensor: &Tensor| tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
        let sum = |i: usize| {
            let (weight, bias, _) = &held[i];
            let product = f32(x).matmul(&f32(weight).t().unwrap()).unwrap().broadcast_add(&f32(bias)).unwrap();
            (product + (f32(&changed[i]) - &before[i]).unwrap()).unwrap()
        };
        for (i, out) in outs.iter().enumerate() {
            close(out, &sum(i), x.dtype());
        }
        // The gate has two products of one width.
        let [gate, up] = [layers[0], Layer { bias: None, ..layers[0] }];
        let output = held[0].0.dims()[0];
        let narrow = changes.inner.narrow(0, 0, 1).unwrap();
        let inner = Tensor::cat(&[&narrow, &narrow], 0).unwrap();
        let gated = gpu.tensor((rows, output), x.dtype()).unwrap();
        gated_product(&gpu, x, [gate, up], Some(Changes { inner: &inner, ..changes }), &gated).unwrap();
        let (of_gate, expected) = (sum(0), gpu.tensor((rows, output), DType::F32).unwrap());
        let of_up = of_gate.broadcast_sub(&f32(&held[0].1)).unwrap();
        let [of_gate, of_up] = [of_gate, of_up].map(|own| on(&gpu, &own, DType::F32));
        silu_mul(&gpu, &of_gate, &of_up, &expected).unwrap();
        close(&gated, &expected, x.dtype());
    }

    #[test]
    fn on_gpu_every_row_is_changed_by_its_own_adapter() {
        compare(&[2], &[0, 1, 3], 64, &[64, 32, 8]);
        compare(&[NO_SLOT], &[0], 64, &[64]);
        compare(&[0, 0, 1, NO_SLOT, 3, 3, 2, 4], &[3, 0, 4], 576, &[576, 300, 7]);
        let twenty: Vec<u32> = (0..20).map(|row| if row % 7 == 6 { NO_SLOT } else { row / 3 % 4 }).collect();
        compare(&twenty, &[2, 3], 40, &[264, 16]);
        compare(&twenty[..12], &[3, 2], 40, &[261, 17]);
        // As a chunk of a prompt beside others.
        let many: Vec<u32> = (0..150).map(|row| [1, 1, NO_SLOT, 0, 2][row / 30]).collect();
        compare(&many, &[1, 4, 0], 72, &[8, 520, 33]);
    }

    #[test]
    fn on_gpu_a_changed_row_does_not_depend_on_those_beside_it() {
        let gpu = gpu();
        let (a, b) = (values(&[16, 96], 1), values(&[40, 16], 2));
        let [a, b] = [&a, &b].map(|matrix| on(&gpu, matrix, DType::BF16));
        let addresses = [&a, &b].map(|matrix| gpu.address(matrix).unwrap() as i64);
        let adapters = Adapters {
            addresses: &Tensor::new(&[[addresses]], &gpu.device()).unwrap(),
            ranks: &Tensor::new(&[[16_u32]], &gpu.device()).unwrap(),
            factors: &Tensor::new(&[[0.5_f32]], &gpu.device()).unwrap(),
            format: DType::BF16,
        };
        let x = on(&gpu, &values(&[100, 96], 3), DType::BF16);
        let of = |first: usize, rows: usize| {
            let out = Tensor::zeros((rows, 40), DType::BF16, &gpu.device()).unwrap();
            let inner = gpu.tensor((1, rows, 16), DType::F32).unwrap();
            let (x, slots) = (x.narrow(0, first, rows).unwrap().copy().unwrap(), counts(&gpu, &vec![0; rows]));
            low_rank_shrink(&gpu, &x, &slots, adapters, &[0], &inner).unwrap();
            low_rank_expand(&gpu, &inner, &slots, adapters, &[0], &[&out]).unwrap();
            numbers(&out)
        };
        let all = of(0, 100);
        for (first, rows) in [(0, 1), (37, 1), (30, 20)] {
            assert_eq!(of(first, rows), all[first * 40..(first + rows) * 40]);
        }
    }
}
