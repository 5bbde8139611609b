//! Pages of keys and values: which page of a pool holds which tokens of a sequence.
//!
//! A page has room for [`PAGE`] tokens in all layers. Sequences that begin alike share pages; who writes into one that is
//! shared gets a copy first. Numbers only: where the pool lies and who copies is the device's business.
//! After: PagedAttention (Kwon et al. 2023, arXiv 2309.06180).

use std::sync::{Arc, Mutex, PoisonError};

/// Tokens of a page.
pub(super) const PAGE: usize = 16;

/// The pages that nobody has.
#[derive(Debug)]
pub(super) struct Pool {
    free: Mutex<Vec<u32>>,
    total: usize,
}

/// No page is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no page is left of the {total} of the pool of keys and values")]
pub(super) struct Exhausted {
    total: usize,
}

/// A page that somebody has; it goes back when nobody has it any more.
#[derive(Debug)]
struct Page {
    id: u32,
    pool: Arc<Pool>,
}

/// The pages of one sequence, in order.
#[derive(Debug, Clone)]
pub(super) struct Pages {
    pool: Arc<Pool>,
    held: Vec<Arc<Page>>,
}

impl Pool {
    /// Begins with `total` free pages.
    pub(super) fn new(total: usize) -> Arc<Self> {
        // The last is taken first.
        Arc::new(Self { free: Mutex::new((0..total as u32).rev().collect()), total })
    }

    /// Returns the pages that nobody has.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn take(self: &Arc<Self>) -> Result<Arc<Page>, Exhausted> {
        let id = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let id = id.ok_or(Exhausted { total: self.total })?;
        Ok(Arc::new(Page { id, pool: Arc::clone(self) }))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
    }
}

impl Pages {
    /// Begins with none.
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        Self { pool: Arc::clone(pool), held: Vec::new() }
    }

    /// Returns the ids of the pages, in order.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.held.iter().map(|page| page.id)
    }

    /// Returns the place of a token in the pool, counted in tokens.
    pub(super) fn slot(&self, position: usize) -> Option<u32> {
        self.held.get(position / PAGE).map(|page| page.id * PAGE as u32 + (position % PAGE) as u32)
    }

    /// Makes room for `more` tokens behind the first `len`, which nobody else may see change.
    ///
    /// Returns the page to be copied and the one it is copied to, where the first of the new tokens goes to a page that
    /// others have too.
    ///
    /// # Errors
    /// When no page is left; what was taken stays.
    pub(super) fn extend(&mut self, len: usize, more: usize) -> Result<Option<(u32, u32)>, Exhausted> {
        self.held.truncate(len.div_ceil(PAGE));
        let mut copy = None;
        if more > 0 && !len.is_multiple_of(PAGE) && self.held.last().is_some_and(|last| Arc::strong_count(last) > 1) {
            let own = self.pool.take()?;
            if let Some(last) = self.held.last_mut() {
                copy = Some((last.id, own.id));
                *last = own;
            }
        }
        while self.held.len() * PAGE < len + more {
            self.held.push(self.pool.take()?);
        }
        Ok(copy)
    }

    /// Returns the pages of the first `len` tokens, shared.
    pub(super) fn first(&self, len: usize) -> Self {
        let held = self.held.iter().take(len.div_ceil(PAGE)).cloned().collect();
        Self { pool: Arc::clone(&self.pool), held }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_page_that_is_shared_is_copied_before_it_is_written() {
        let pool = Pool::new(4);
        let mut first = Pages::new(&pool);
        assert_eq!(first.extend(0, 20), Ok(None));
        assert_eq!(first.ids().collect::<Vec<_>>(), [0, 1]);
        assert_eq!((first.slot(0), first.slot(17), first.slot(32)), (Some(0), Some(17), None));
        let mut second = first.first(20);
        assert_eq!(second.extend(20, 1), Ok(Some((1, 2))));
        assert_eq!(second.ids().collect::<Vec<_>>(), [0, 2]);
        // Now nobody shares it.
        assert_eq!(first.extend(20, 1), Ok(None));
        // A whole page is shared for good.
        let mut third = first.first(16);
        assert_eq!(third.extend(16, 1), Ok(None));
        assert_eq!(third.ids().collect::<Vec<_>>(), [0, 3]);
        assert_eq!(third.extend(17, 16), Err(Exhausted { total: 4 }));
        drop((first, second, third));
        assert_eq!(pool.free(), 4);
    }

    proptest! {
        /// Forks and growth as a server does them: every token keeps its place, and no two sequences write to one.
        #[test]
        fn every_sequence_keeps_its_tokens(acts in prop::collection::vec((0_usize..8, 0_usize..40, any::<bool>()), 1..60)) {
            let pool = Pool::new(64);
            let mut memory = vec![0_u64; 64 * PAGE];
            let mut sequences: Vec<(Pages, Vec<u64>)> = vec![(Pages::new(&pool), Vec::new())];
            let mut next = 0;
            for (who, count, fork) in acts {
                let who = who % sequences.len();
                if fork && sequences.len() < 6 {
                    let (pages, tokens) = &sequences[who];
                    let len = count.min(tokens.len());
                    let copy = (pages.first(len), tokens[..len].to_vec());
                    sequences.push(copy);
                    continue;
                }
                let (pages, tokens) = &mut sequences[who];
                let Ok(copy) = pages.extend(tokens.len(), count) else {
                    *tokens = Vec::new();
                    *pages = Pages::new(&pool);
                    continue;
                };
                if let Some((from, to)) = copy {
                    let from = from as usize * PAGE;
                    memory.copy_within(from..from + PAGE, to as usize * PAGE);
                }
                for _ in 0..count {
                    next += 1;
                    memory[pages.slot(tokens.len()).unwrap() as usize] = next;
                    tokens.push(next);
                }
                for (pages, tokens) in &sequences {
                    for (position, token) in tokens.iter().enumerate() {
                        prop_assert_eq!(memory[pages.slot(position).unwrap() as usize], *token);
                    }
                }
            }
            drop(sequences);
            prop_assert_eq!(pool.free(), 64);
        }
    }
}
