//! Decides which sites of a base model a configuration means, and with which rank and alpha.
//!
//! Reads no tensor. Patterns are Python's, run by a backtracking engine under a limit, since strangers write them.
//! Source: peft 0.21 `check_target_module_exists`, `get_pattern_key`, `_maybe_include_all_linear_layers`.

use fancy_regex::{Regex, RegexBuilder};

use super::config::{LoraConfig, Names, invalid};
use super::json::clip;
use super::{LoraError, Site, SiteKind};

/// Backtracking steps for everything one configuration asks, divided among its patterns and sites.
const STEPS: usize = 20_000_000;

/// Names of classification heads (peft `SEQ_CLS_HEAD_NAMES`).
pub(super) const HEADS: [&str; 2] = ["score", "classifier"];

/// Whether a configuration means a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meant {
    No,
    Yes,
    /// peft 0.17 and 0.21 read it differently: the tensors decide. Holds whether 0.21 means it.
    Either(bool),
}

/// A configuration with its patterns compiled.
pub(super) struct Targets<'a> {
    config: &'a LoraConfig,
    target: Option<Regex>,
    excluded: Option<Regex>,
    layers: Vec<Regex>,
    ranks: Vec<Regex>,
    alphas: Vec<Regex>,
    all_linear: bool,
}

impl<'a> Targets<'a> {
    /// Compiles the patterns for a base model of `sites` sites.
    pub(super) fn new(config: &'a LoraConfig, sites: usize) -> Result<Self, LoraError> {
        let patterns = 3 + config.rank_pattern.len() + config.alpha_pattern.len() + config.layers_pattern.len();
        let limit = (STEPS / patterns / sites.max(1)).clamp(1000, 100_000);
        let whole = |key: &str, names: &Names| match names {
            Names::Pattern(pattern) => compile(key, &format!(r"\A(?:{pattern})\z"), pattern, limit).map(Some),
            Names::List(_) => Ok(None),
        };
        let all_linear =
            matches!(&config.targets, Names::Pattern(pattern) if pattern.eq_ignore_ascii_case("all-linear"));
        let keyed = |key: &str, pattern: &String| compile(key, &format!(r"\A(?:.*\.)?(?:{pattern})\z"), pattern, limit);
        let layer = |pattern: &String| {
            compile("layers_pattern", &format!(r"\A(?:|.*?\.)(?:{pattern})\.([0-9]+)\."), pattern, limit)
        };
        Ok(Self {
            config,
            target: if all_linear { None } else { whole("target_modules", &config.targets)? },
            excluded: config.excluded.as_ref().map_or(Ok(None), |names| whole("exclude_modules", names))?,
            layers: config.layers_pattern.iter().map(layer).collect::<Result<_, _>>()?,
            ranks: config.rank_pattern.iter().map(|(k, _)| keyed("rank_pattern", k)).collect::<Result<_, _>>()?,
            alphas: config.alpha_pattern.iter().map(|(k, _)| keyed("alpha_pattern", k)).collect::<Result<_, _>>()?,
            all_linear,
        })
    }

    /// Returns whether low-rank matrices belong to a site.
    pub(super) fn meant(&self, site: &Site) -> Result<Meant, LoraError> {
        let path = site.path.as_str();
        // A parameter is no module.
        if self.saved(site) || matches!(site.kind, SiteKind::Parameter(_)) || self.excluded(path)? {
            return Ok(Meant::No);
        }
        if self.config.adapts_nothing() {
            return Ok(Meant::No);
        }
        if self.all_linear {
            return Ok(match site.kind {
                SiteKind::Linear => Meant::Yes,
                // peft leaves the head of a classifier out for some tasks only.
                SiteKind::Head | SiteKind::Classifier
                    if HEADS.contains(&path) && self.config.task_type.is_empty() && !site.is_missing() =>
                {
                    Meant::Either(true)
                }
                SiteKind::Head
                | SiteKind::Embedding
                | SiteKind::Norm
                | SiteKind::Classifier
                | SiteKind::Patches(_)
                | SiteKind::Parameter(_) => Meant::No,
            });
        }
        match (&self.target, &self.config.targets) {
            (Some(pattern), _) => Ok(if matches("target_modules", pattern, path)? { Meant::Yes } else { Meant::No }),
            (None, Names::Pattern(_)) => Ok(Meant::No),
            // A whole path is meant whatever its layer.
            (None, Names::List(list)) if list.iter().any(|name| name == path) => Ok(Meant::Yes),
            (None, Names::List(list)) if list.iter().any(|name| is_suffix(name, path)) => self.in_layers(path),
            (None, Names::List(_)) => Ok(Meant::No),
        }
    }

    /// Returns whether the module is replaced outright.
    pub(super) fn saved(&self, site: &Site) -> bool {
        self.config.modules_to_save.iter().any(|name| *name == site.path || is_suffix(name, &site.path))
    }

    /// Returns rank and alpha of a site.
    pub(super) fn rank_and_alpha(&self, path: &str) -> Result<(usize, f64), LoraError> {
        let mut rank = self.config.rank;
        for (pattern, (_, value)) in self.ranks.iter().zip(&self.config.rank_pattern) {
            if matches("rank_pattern", pattern, path)? {
                rank = *value;
                break;
            }
        }
        let mut alpha = self.config.alpha;
        for (pattern, (_, value)) in self.alphas.iter().zip(&self.config.alpha_pattern) {
            if matches("alpha_pattern", pattern, path)? {
                alpha = *value;
                break;
            }
        }
        Ok((rank, alpha))
    }

    fn excluded(&self, path: &str) -> Result<bool, LoraError> {
        match (&self.excluded, &self.config.excluded) {
            (Some(pattern), _) => matches("exclude_modules", pattern, path),
            (None, Some(Names::List(list))) => Ok(list.iter().any(|name| name == path || is_suffix(name, path))),
            (None, _) => Ok(false),
        }
    }

    fn in_layers(&self, path: &str) -> Result<Meant, LoraError> {
        let Some(layers) = &self.config.layers else { return Ok(Meant::Yes) };
        if self.layers.is_empty() {
            // The first number is what peft 0.21 reads, the last what 0.17 read. A name of two parts has to stand
            // before it, and one after.
            let parts: Vec<&str> = path.split('.').collect();
            let inner = parts.get(2..parts.len().saturating_sub(1)).unwrap_or_default();
            let mut numbers = inner.iter().filter_map(|part| part.parse::<u64>().ok());
            let Some(first) = numbers.next() else { return Ok(Meant::No) };
            let last = numbers.next_back().unwrap_or(first);
            return Ok(match (layers.contains(&first), layers.contains(&last)) {
                (true, true) => Meant::Yes,
                (false, false) => Meant::No,
                (newest, _) => Meant::Either(newest),
            });
        }
        for pattern in &self.layers {
            let found = pattern.captures(path).map_err(|_| too_slow("layers_pattern"))?;
            if let Some(number) = found.and_then(|c| c.iter().flatten().last().map(|m| m.as_str().to_owned())) {
                let meant = number.parse::<u64>().is_ok_and(|n| layers.contains(&n));
                return Ok(if meant { Meant::Yes } else { Meant::No });
            }
        }
        Ok(Meant::No)
    }
}

/// Returns whether `path` ends in a dot and `name`.
pub(super) fn is_suffix(name: &str, path: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.ends_with('.'))
}

fn compile(key: &str, whole: &str, pattern: &str, limit: usize) -> Result<Regex, LoraError> {
    let build = |text: &str| {
        let mut builder = RegexBuilder::new(text);
        builder.backtrack_limit(limit).delegate_size_limit(1 << 20).max_prog_size(10_000).build().map_err(|fault| {
            let fault = clip(&fault.to_string());
            invalid(key, &format!("`{}` is not a pattern that can be read: {fault}", clip(pattern)))
        })
    };
    // Alone first: `a)(b` is sound only inside our parentheses.
    build(pattern)?;
    build(whole)
}

fn matches(key: &str, pattern: &Regex, path: &str) -> Result<bool, LoraError> {
    pattern.is_match(path).map_err(|_| too_slow(key))
}

fn too_slow(key: &str) -> LoraError {
    invalid(key, "has a pattern that takes too many steps")
}
