//! Keys and values of one sequence, for all layers.
//!
//! Memory grows in blocks, so that a token costs a write and not a copy of all before it. Does not decide who may have
//! how much: that is the engine's budget.
//! Shapes: `[kv_heads, capacity, head_dim]` a layer, of which the first `len` tokens count; on the CPU as the kernels of
//! attention like them; pages of a pool where the model has one.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use super::ModelError;
#[cfg(feature = "cuda")]
use super::pages::{Pages, Pool};
use crate::ops::cpu::{Heads, KeysValues};

/// Tokens by which memory grows at least.
const BLOCK: usize = 64;

/// Keys and values of the tokens of one sequence computed so far.
#[derive(Debug, Default)]
pub struct KvCache {
    len: usize,
    /// Of all layers, in a pool; the layers have nothing of their own then.
    #[cfg(feature = "cuda")]
    pages: Option<Pages>,
    layers: Vec<Option<Entry>>,
}

#[derive(Debug)]
enum Entry {
    Tensors {
        keys: Tensor,
        values: Tensor,
    },
    /// Shared with the caches that were forked from this one, or that this one was forked from.
    Slices(Arc<KeysValues>),
}

impl KvCache {
    /// Returns an empty cache for a model of `layers` layers; memory is taken when tokens arrive.
    pub fn new(layers: usize) -> Self {
        Self { layers: std::iter::repeat_with(|| None).take(layers).collect(), ..Self::default() }
    }

    /// Returns an empty cache of a model of `layers` layers whose keys and values lie in a pool.
    #[cfg(feature = "cuda")]
    pub(super) fn in_pool(layers: usize, pool: &Arc<Pool>) -> Self {
        Self { pages: Some(Pages::new(pool)), ..Self::new(layers) }
    }

    /// Returns its pages, where they lie in a pool.
    #[cfg(feature = "cuda")]
    pub(super) fn pages(&mut self) -> Option<&mut Pages> {
        self.pages.as_mut()
    }

    /// Returns the number of tokens held; the next token gets this position.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns for how many tokens memory is taken at most when a sequence has `tokens`.
    pub fn capacity(tokens: usize) -> usize {
        tokens.saturating_add(tokens / 4).checked_next_multiple_of(BLOCK).unwrap_or(usize::MAX)
    }

    /// Returns for how many tokens a fork of a cache of `len` takes memory at most when it gets `more`, where forks share
    /// what they begin with: on the CPU.
    pub fn fork_capacity(len: usize, more: usize) -> usize {
        KeysValues::own_capacity(len, more)
    }

    /// Counts `tokens` as held: the last act of a `forward`, when all layers have them.
    pub fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Returns a cache with the same content that goes its own way from here; on the CPU both share what is there.
    ///
    /// # Errors
    /// When memory for the copy cannot be had.
    pub fn fork(&self) -> std::result::Result<Self, ModelError> {
        self.fork_at(self.len)
    }

    /// Returns a cache with the first `len` tokens of this one, at most all of them, that goes its own way from there.
    ///
    /// # Errors
    /// As [`Self::fork`].
    pub fn fork_at(&self, len: usize) -> std::result::Result<Self, ModelError> {
        let copy = |entry: &Option<Entry>| match entry {
            None => Ok(None),
            Some(Entry::Slices(held)) => Ok(Some(Entry::Slices(Arc::clone(held)))),
            Some(Entry::Tensors { keys, values }) => {
                Ok(Some(Entry::Tensors { keys: keys.copy()?, values: values.copy()? }))
            }
        };
        let len = len.min(self.len);
        Ok(Self {
            len,
            #[cfg(feature = "cuda")]
            pages: self.pages.as_ref().map(|pages| pages.first(len)),
            layers: self.layers.iter().map(copy).collect::<Result<_>>()?,
        })
    }

    /// Returns a copy of the first `len` tokens, at most all of them, that shares no memory but pages of a pool; none of
    /// tensors.
    pub fn copy(&self, len: usize) -> Option<Self> {
        let len = len.min(self.len);
        #[cfg(feature = "cuda")]
        if let Some(pages) = &self.pages {
            return Some(Self { len, pages: Some(pages.first(len)), ..Self::new(self.layers.len()) });
        }
        let copy = |entry: &Option<Entry>| match entry {
            Some(Entry::Slices(held)) => Some(Some(Entry::Slices(Arc::new(held.copied(len))))),
            Some(Entry::Tensors { .. }) | None => None,
        };
        let layers = self.layers.iter().map(copy).collect::<Option<_>>()?;
        Some(Self {
            len,
            #[cfg(feature = "cuda")]
            pages: None,
            layers,
        })
    }

    /// Returns whether all of it lies in pages, or in memory of the CPU that it began itself.
    pub fn is_whole(&self) -> bool {
        #[cfg(feature = "cuda")]
        if self.pages.is_some() {
            return true;
        }
        let own = |entry: &Option<Entry>| matches!(entry, Some(Entry::Slices(held)) if held.start() == 0);
        self.layers.iter().all(own)
    }

    pub(super) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Writes the keys and values `[kv_heads, tokens, head_dim]` of one layer behind those held, and returns all,
    /// `[kv_heads, len + tokens, head_dim]`. What is written counts only after [`Self::advance`].
    pub(super) fn write(&mut self, layer: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let total = self.len + keys.dim(1)?;
        let Some(slot) = self.layers.get_mut(layer) else { bail!("the cache has no layer {layer}") };
        let (held_keys, held_values) = match slot.take() {
            Some(Entry::Tensors { keys, values }) if keys.dim(1)? >= total => (keys, values),
            Some(Entry::Tensors { keys: k, values: v }) => {
                (grown(Some(&k), self.len, total, keys)?, grown(Some(&v), self.len, total, values)?)
            }
            None => (grown(None, self.len, total, keys)?, grown(None, self.len, total, values)?),
            Some(Entry::Slices(_)) => bail!("the cache was filled on the CPU"),
        };
        held_keys.slice_set(&keys.detach().contiguous()?, 1, self.len)?;
        held_values.slice_set(&values.detach().contiguous()?, 1, self.len)?;
        let all = (held_keys.narrow(1, 0, total)?, held_values.narrow(1, 0, total)?);
        *slot = Some(Entry::Tensors { keys: held_keys, values: held_values });
        Ok(all)
    }

    /// Writes the keys and values `[tokens, kv_heads, head_dim]` of one layer behind those held, on the CPU. What is
    /// written counts only after [`Self::advance`].
    pub(super) fn write_slices(&mut self, layer: usize, heads: Heads, keys: &[f32], values: &[f32]) -> Result<()> {
        let Some(slot) = self.layers.get_mut(layer) else { bail!("the cache has no layer {layer}") };
        let Entry::Slices(held) = slot.get_or_insert_with(|| Entry::Slices(Arc::new(KeysValues::new(heads)))) else {
            bail!("the cache was filled with tensors");
        };
        if self.len < held.start() || Arc::get_mut(held).is_none() {
            *held = Arc::new(KeysValues::after(held, self.len));
        }
        if let Some(own) = Arc::get_mut(held) {
            own.write(self.len, keys, values);
        }
        Ok(())
    }

    /// Returns what one layer holds on the CPU.
    pub(super) fn slices(&self, layer: usize) -> Result<&KeysValues> {
        match self.layers.get(layer) {
            Some(Some(Entry::Slices(held))) => Ok(held),
            Some(Some(Entry::Tensors { .. }) | None) | None => bail!("the cache holds nothing at layer {layer}"),
        }
    }
}

#[cfg(test)]
impl KvCache {
    /// Takes memory for `tokens` more as one layer on the CPU does, whose heads are one number wide, and counts them;
    /// `total` is told for how many positions all caches hold memory.
    pub(crate) fn fill(&mut self, tokens: usize, total: &Arc<std::sync::atomic::AtomicUsize>) {
        let heads = Heads { heads: 1, kv_heads: 1, head_dim: 1, window: None };
        self.layers[0].get_or_insert_with(|| Entry::Slices(Arc::new(KeysValues::metered(heads, total))));
        self.write_slices(0, heads, &vec![0.0; tokens], &vec![0.0; tokens]).unwrap();
        self.advance(tokens);
    }
}

/// Returns room for `total` tokens and a quarter more, with the first `len` tokens of `held` in it.
fn grown(held: Option<&Tensor>, len: usize, total: usize, like: &Tensor) -> Result<Tensor> {
    let (heads, _, head_dim) = like.dims3()?;
    let capacity = KvCache::capacity(total);
    let room = Tensor::zeros((heads, capacity, head_dim), like.dtype(), like.device())?;
    if let Some(held) = held.filter(|_| len > 0) {
        room.slice_set(&held.narrow(1, 0, len)?.contiguous()?, 1, 0)?;
    }
    Ok(room)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tokens(from: usize, count: usize) -> Tensor {
        let data: Vec<f32> = (0..2 * count).map(|i| (from + i % count) as f32 + 1000.0 * (i / count) as f32).collect();
        Tensor::from_vec(data, (2, count, 1), &Device::Cpu).unwrap()
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn tokens_come_back_in_order_across_growth() {
        let mut cache = KvCache::new(1);
        let mut last = None;
        for (from, count) in [(0, 3), (3, 1), (4, 100), (104, 1), (105, 200)] {
            assert_eq!(cache.len(), from);
            last = Some(cache.write(0, &tokens(from, count), &tokens(from + 5, count)).unwrap());
            cache.advance(count);
        }
        let (keys, values) = last.unwrap();
        assert_eq!(flat(&keys), flat(&tokens(0, 305)));
        assert_eq!(flat(&values), flat(&tokens(5, 305)));
    }

    #[test]
    fn a_fork_goes_its_own_way() {
        let mut cache = KvCache::new(1);
        cache.write(0, &tokens(0, 4), &tokens(0, 4)).unwrap();
        cache.advance(4);
        let mut fork = cache.fork().unwrap();
        fork.write(0, &tokens(50, 2), &tokens(50, 2)).unwrap();
        fork.advance(2);
        let (keys, _) = cache.write(0, &tokens(4, 1), &tokens(4, 1)).unwrap();
        assert_eq!(flat(&keys), flat(&tokens(0, 5)));
        let (keys, _) = fork.write(0, &tokens(52, 1), &tokens(52, 1)).unwrap();
        assert_eq!(flat(&keys)[..7], [0.0, 1.0, 2.0, 3.0, 50.0, 51.0, 52.0]);
    }

    #[test]
    fn what_was_not_counted_is_overwritten() {
        let mut cache = KvCache::new(1);
        cache.write(0, &tokens(90, 4), &tokens(90, 4)).unwrap();
        let (keys, _) = cache.write(0, &tokens(0, 2), &tokens(0, 2)).unwrap();
        assert_eq!(flat(&keys), flat(&tokens(0, 2)));
    }
}
