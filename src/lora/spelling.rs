//! Which of a base model's sets of names an adapter uses: transformers 5 renamed the modules of some architectures.
//!
//! Reads names only. Whatever fits most wins; where nothing tells them apart, the one that is asked for.

use super::{Base, Site};

/// Returns the sites by the names of which `has` knows most; of equals the oldest.
pub(super) fn of_file(base: &dyn Base, has: impl Fn(&Site) -> bool) -> &[Site] {
    best(base.spellings().into_iter().rev(), has).unwrap_or_else(|| base.sites())
}

/// Returns the sites by the names of which `has` knows most; of equals the newest.
pub(super) fn of_wish(base: &dyn Base, has: impl Fn(&Site) -> bool) -> &[Site] {
    best(base.spellings().into_iter(), has).unwrap_or_else(|| base.sites())
}

fn best<'a>(spellings: impl Iterator<Item = &'a [Site]>, has: impl Fn(&Site) -> bool) -> Option<&'a [Site]> {
    spellings.max_by_key(|sites| sites.iter().filter(|site| has(site)).count())
}
