//! How the memory that a device has free beside the weights is divided, before any of it is taken.
//!
//! What is said is taken as it is, or refused; the rest is divided by fixed parts of what is left. What steps compute in is
//! not counted here: it is small, and taken first from what stays free.
//! Units: bytes, pages.

use crate::model::Reserve;

/// Where nothing is said, jobs have this part of what is free,
const OF_JOBS: u64 = 4;
/// keys and values this part of what is left then,
const OF_CACHE: u64 = 2;
/// and slots no more than this.
const MOST_OF_SLOTS: u64 = 8;

/// Sizes of a model, bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// A page of keys and values.
    pub(super) page: u64,
    /// Slots, as most adapters are.
    pub(super) usual_adapters: u64,
}

/// Who gets how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    /// Pages of requests.
    pub(super) served: usize,
    /// Pages of audits, of which the engine's budget knows nothing.
    pub(super) audits: usize,
    /// Bytes of slots.
    pub(super) adapters: u64,
    /// Bytes of jobs.
    pub(super) jobs: u64,
}

impl Shares {
    /// Divides `free` bytes.
    ///
    /// # Errors
    /// When they are fewer than what is said, with the settings that say it.
    pub(super) fn of(free: u64, reserve: &Reserve, sizes: Sizes) -> Result<Self, String> {
        let beside = free.saturating_sub(reserve.spare_bytes);
        let jobs = reserve.job_bytes.unwrap_or(beside / OF_JOBS);
        let room = beside.saturating_sub(jobs);
        let wanted = reserve.kv_bytes.unwrap_or(room / OF_CACHE);
        let served = usize::try_from(wanted / sizes.page.max(1)).unwrap_or(usize::MAX).max(1);
        let audits = (served / 8).saturating_add(64);
        let adapters = reserve.adapter_bytes.unwrap_or(sizes.usual_adapters.min(room / MOST_OF_SLOTS));
        let pages = |count: usize| sizes.page.saturating_mul(count as u64);
        let all = [pages(served), pages(audits), adapters, jobs].into_iter().fold(0, u64::saturating_add);
        if all > free {
            return Err(format!(
                "{free} bytes are free beside the weights, and {all} are to be set aside: {} for keys and values \
                 (engine.kv_cache_bytes), {} for those of audits, {adapters} for adapters in slots \
                 (engine.adapter_slot_bytes), {jobs} for jobs (jobs.memory_bytes)",
                pages(served),
                pages(audits)
            ));
        }
        let left = free - all;
        if left < reserve.spare_bytes {
            let wanted = reserve.spare_bytes;
            tracing::warn!(left, wanted, "what is set aside leaves little for adapters that no slot takes");
        }
        Ok(Self { served, audits, adapters, jobs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { page: 1 << 20, usual_adapters: 100 << 20 };

    fn reserve(kv_bytes: Option<u64>, job_bytes: Option<u64>) -> Reserve {
        Reserve { kv_bytes, rows: 8, sequences: 8, adapter_bytes: None, job_bytes, spare_bytes: 1 << 30 }
    }

    #[test]
    fn what_nobody_says_is_a_part_of_what_is_free() {
        let gib = 1 << 30;
        let shares = Shares::of(9 * gib, &reserve(None, None), SIZES).unwrap();
        assert_eq!(shares, Shares { served: 3072, audits: 448, adapters: 100 << 20, jobs: 2 * gib });
        let shares = Shares::of(9 * gib, &reserve(None, Some(0)), SIZES).unwrap();
        assert_eq!((shares.served, shares.jobs), (4096, 0));
        let shares = Shares::of(9 * gib, &reserve(Some(10 << 20), Some(gib)), SIZES).unwrap();
        assert_eq!((shares.served, shares.audits, shares.jobs), (10, 65, gib));
        // All of it together is never more than there is.
        for free in [100 << 20, gib, 3 * gib / 2, 100 * gib] {
            let Ok(Shares { served, audits, adapters, jobs }) = Shares::of(free, &reserve(None, None), SIZES) else {
                panic!("{free}")
            };
            assert!(((served + audits) as u64) * SIZES.page + adapters + jobs <= free);
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_settings() {
        for (kv, jobs) in [(Some(8 << 30), Some(2 << 30)), (Some(u64::MAX), None), (None, Some(u64::MAX))] {
            let fault = Shares::of(9 << 30, &reserve(kv, jobs), SIZES).unwrap_err();
            assert!(fault.contains("jobs.memory_bytes") && fault.contains("engine.kv_cache_bytes"), "{fault}");
        }
    }
}
