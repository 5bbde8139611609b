//! A repository of the Hugging Face hub.
//!
//! `hf-hub` has no time limit, so it runs in a thread of its own that reports every step; when no step comes for a
//! while, the pull gives up and the thread is left to its fate. All files come from one commit.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::{HubError, Marker, Progress, Source, at};

/// Time for the first answer.
const ANSWER: Duration = Duration::from_secs(6);
/// Time without a byte in a download.
const STALL: Duration = Duration::from_secs(30);
/// Files taken if they are there, beside the weights.
const SMALL_FILES: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "preprocessor_config.json",
];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// What the thread reports.
enum Step {
    Listed { files: usize },
    Begins { file: String, size: u64 },
    Bytes(u64),
    Done(Result<(String, Vec<(String, PathBuf)>), HubError>),
}

/// Fills `folder` with the files of a repository.
pub(super) fn download(source: &Source, folder: &Path, progress: Progress) -> Result<Marker, HubError> {
    let (sender, steps) = mpsc::channel();
    let scratch = folder.join("hub");
    let (thread_source, thread_scratch) = (source.clone(), scratch.clone());
    std::thread::spawn(move || {
        let outcome = fetch(&thread_source, thread_scratch, &sender);
        // Nobody listens any more when the pull has given up.
        let _ = sender.send(Step::Done(outcome));
    });
    let mut bar = progress.spinner("asking the Hugging Face hub");
    let mut patience = ANSWER;
    let (revision, files) = loop {
        bar.tick();
        match steps.recv_timeout(patience) {
            Ok(Step::Listed { files }) => bar.set_message(format!("{files} files")),
            Ok(Step::Begins { file, size }) => {
                bar.finish_and_clear();
                bar = progress.bar(size, &file);
            }
            Ok(Step::Bytes(bytes)) => bar.inc(bytes),
            Ok(Step::Done(outcome)) => break outcome?,
            Err(RecvTimeoutError::Timeout) => return Err(HubError::Silent(patience.as_secs())),
            Err(RecvTimeoutError::Disconnected) => return Err(HubError::Hub("the download broke off".to_owned())),
        }
        patience = STALL;
    };
    bar.finish_and_clear();
    let mut sizes = Vec::new();
    for (name, blob) in files {
        // Links of the hub's own cache lead to the content.
        let content = fs::canonicalize(&blob).map_err(at(&blob))?;
        let target = folder.join(&name);
        fs::rename(&content, &target).map_err(at(&target))?;
        sizes.push((name, fs::metadata(&target).map_err(at(&target))?.len()));
    }
    fs::remove_dir_all(&scratch).map_err(at(&scratch))?;
    Ok(Marker { source: format!("{}@{revision}", source.repository), entry: None, files: sizes })
}

/// Downloads what is needed of a repository; returns the commit, and name and place of each file.
fn fetch(
    source: &Source,
    scratch: PathBuf,
    steps: &Sender<Step>,
) -> Result<(String, Vec<(String, PathBuf)>), HubError> {
    let hub = |e: ApiError| HubError::Hub(e.to_string());
    let api = ApiBuilder::from_cache(Cache::new(scratch)).with_progress(false).build().map_err(hub)?;
    let revision = source.revision.clone().unwrap_or_else(|| "main".to_owned());
    let at_revision = |revision| Repo::with_revision(source.repository.clone(), RepoType::Model, revision);
    let info = api.repo(at_revision(revision)).info().map_err(hub)?;
    let listed: Vec<_> = info.siblings.into_iter().map(|s| s.rfilename).collect();
    let wanted = wanted(&source.repository, &listed)?;
    let given_up = |_| HubError::Hub("the pull was given up".to_owned());
    steps.send(Step::Listed { files: wanted.len() }).map_err(given_up)?;
    let repo = api.repo(at_revision(info.sha.clone()));
    let mut files = Vec::new();
    for name in wanted {
        let path = repo.download_with_progress(&name, Reporter(steps.clone())).map_err(hub)?;
        files.push((name, path));
    }
    Ok((info.sha, files))
}

/// Chooses the files to take from those that a repository lists.
fn wanted(repository: &str, listed: &[String]) -> Result<Vec<String>, HubError> {
    let has = |name: &str| listed.iter().any(|l| l == name);
    let missing = |file| HubError::Incomplete { repository: repository.to_owned(), file };
    if !has("config.json") {
        return Err(missing("config.json"));
    }
    let mut files: Vec<_> = SMALL_FILES.into_iter().filter(|f| has(f)).map(str::to_owned).collect();
    if has(WEIGHTS) {
        files.push(WEIGHTS.to_owned());
    } else if has(INDEX) {
        files.push(INDEX.to_owned());
        // They become names of files here.
        let plain = |name: &&String| name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
        let shard = |name: &&String| name.starts_with("model-") && name.ends_with(".safetensors");
        files.extend(listed.iter().filter(plain).filter(shard).cloned());
    } else {
        return Err(missing(WEIGHTS));
    }
    Ok(files)
}

struct Reporter(Sender<Step>);

impl hf_hub::api::Progress for Reporter {
    fn init(&mut self, size: usize, filename: &str) {
        let _ = self.0.send(Step::Begins { file: filename.to_owned(), size: size as u64 });
    }

    fn update(&mut self, size: usize) {
        let _ = self.0.send(Step::Bytes(size as u64));
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn only_what_is_served_is_taken() {
        let whole = listed(&["README.md", "config.json", "model.safetensors", "onnx/model.onnx", "tokenizer.json"]);
        assert_eq!(wanted("a/b", &whole).unwrap(), ["config.json", "tokenizer.json", "model.safetensors"]);
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let sharded = listed(&["config.json", INDEX, shards[0], shards[1], "model-../../x.safetensors", "model.bin"]);
        assert_eq!(wanted("a/b", &sharded).unwrap(), ["config.json", INDEX, shards[0], shards[1]]);
    }

    #[test]
    fn a_repository_without_a_model_is_named() {
        for names in [&["model.safetensors"][..], &["config.json", "pytorch_model.bin"]] {
            let error = wanted("a/b", &listed(names)).unwrap_err();
            assert!(error.to_string().starts_with("a/b has no "), "{error}");
        }
    }
}
