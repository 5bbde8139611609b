//! A repository of the Hugging Face hub.
//!
//! `hf-hub` has no time limit, so it runs in a thread of its own that reports every step; when no step comes for a
//! while, the pull gives up and the thread is left to its fate. All files come from one commit. `hf-hub` takes what comes
//! for the whole: sizes are checked here, and SHA-256 where the hub tells it, which it does for large files.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};

use super::{HubError, Marker, Progress, Source, at, extract};

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

/// Where the hub is, and how long it is waited for.
#[derive(Debug, Clone)]
pub(super) struct Hub {
    endpoint: String,
    /// Time for the first answer.
    answer: Duration,
    /// Time without a byte in a download.
    stall: Duration,
}

impl Default for Hub {
    fn default() -> Self {
        let (answer, stall) = (Duration::from_secs(6), Duration::from_secs(30));
        Self { endpoint: "https://huggingface.co".to_owned(), answer, stall }
    }
}

/// Fills `folder` with the files of a repository.
pub(super) fn download(hub: &Hub, source: &Source, folder: &Path, progress: Progress) -> Result<Marker, HubError> {
    let (sender, steps) = mpsc::channel();
    let scratch = folder.join("hub");
    let (thread_source, thread_scratch, endpoint) = (source.clone(), scratch.clone(), hub.endpoint.clone());
    std::thread::spawn(move || {
        let outcome = fetch(endpoint, &thread_source, thread_scratch, &sender);
        // Nobody listens any more when the pull has given up.
        let _ = sender.send(Step::Done(outcome));
    });
    let mut bar = progress.spinner("asking the Hugging Face hub");
    let (mut patience, mut announced) = (hub.answer, HashMap::new());
    let (revision, files) = loop {
        bar.tick();
        match steps.recv_timeout(patience) {
            Ok(Step::Listed { files }) => bar.set_message(format!("{files} files")),
            Ok(Step::Begins { file, size }) => {
                bar.finish_and_clear();
                bar = progress.bar(size, &file);
                announced.insert(file, size);
            }
            Ok(Step::Bytes(bytes)) => bar.inc(bytes),
            Ok(Step::Done(outcome)) => break outcome?,
            Err(RecvTimeoutError::Timeout) => return Err(HubError::Silent(patience.as_secs())),
            Err(RecvTimeoutError::Disconnected) => return Err(HubError::Hub("the download broke off".to_owned())),
        }
        patience = hub.stall;
    };
    bar.finish_and_clear();
    let mut sizes = Vec::new();
    for (name, blob) in files {
        // Links of the hub's own cache lead to the content, which is named by what the hub says of it.
        let content = fs::canonicalize(&blob).map_err(at(&blob))?;
        let target = folder.join(&name);
        fs::rename(&content, &target).map_err(at(&target))?;
        let size = fs::metadata(&target).map_err(at(&target))?.len();
        if let Some(announced) = announced.get(&name).filter(|announced| **announced != size) {
            return Err(HubError::Faulty(format!("{name}: {size} bytes came, the hub says {announced}")));
        }
        let said = content.file_name().and_then(|said| said.to_str()).unwrap_or_default();
        if said.len() == 64 && said.bytes().all(|c| c.is_ascii_hexdigit()) {
            let bar = progress.bar(size, "checking");
            extract::check(&target, &said.to_ascii_lowercase(), &bar)?;
            bar.finish_and_clear();
        }
        sizes.push((name, size));
    }
    fs::remove_dir_all(&scratch).map_err(at(&scratch))?;
    Ok(Marker { source: format!("{}@{revision}", source.repository), entry: None, files: sizes })
}

/// Downloads what is needed of a repository; returns the commit, and name and place of each file.
fn fetch(
    endpoint: String,
    source: &Source,
    scratch: PathBuf,
    steps: &Sender<Step>,
) -> Result<(String, Vec<(String, PathBuf)>), HubError> {
    let hub = |e: ApiError| HubError::Hub(e.to_string());
    let api = ApiBuilder::from_cache(Cache::new(scratch))
        .with_endpoint(endpoint)
        .with_progress(false)
        .build()
        .map_err(hub)?;
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
pub(super) mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};

    use sha2::{Digest, Sha256};

    use super::*;

    /// The commit of everything that the local hub has.
    pub(in crate::hub) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    pub(in crate::hub) const WEIGHT_BYTES: &[u8] = &[7; 100_000];

    /// What a local hub does wrong.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(in crate::hub) enum Fault {
        Nothing,
        /// Takes connections and never answers.
        Silent,
        /// Has no such repository.
        Missing,
        /// Stops in the midst of the weights and keeps the connection.
        Stalls,
        /// Closes the connection in the midst of the weights.
        Breaks,
        /// Sends half of the weights as if that were all.
        Cuts,
        /// Sends other weights of the same size.
        Alters,
    }

    impl Hub {
        /// Returns a hub on this machine that has `a/b`; it is given up after a second.
        pub(in crate::hub) fn local(fault: Fault) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let base = endpoint.clone();
            std::thread::spawn(move || {
                let mut held = Vec::new();
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    // A caller that has gone is no fault of the test.
                    let _ = answer(&mut stream, &base, fault);
                    held.extend([Fault::Silent, Fault::Stalls].contains(&fault).then_some(stream));
                }
            });
            Self { endpoint, answer: Duration::from_secs(1), stall: Duration::from_secs(1) }
        }
    }

    /// Answers one request as the hub does: small files at once, weights by way of another address.
    fn answer(stream: &mut TcpStream, base: &str, fault: Fault) -> std::io::Result<()> {
        let (mut path, mut range) = (String::new(), String::new());
        for line in BufReader::new(stream.try_clone()?).lines() {
            let line = line?;
            if let Some(asked) = line.strip_prefix("GET ") {
                asked.split(' ').next().unwrap().clone_into(&mut path);
            } else if let Some((_, asked)) =
                line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("range"))
            {
                asked.clone_into(&mut range);
            } else if line.is_empty() {
                break;
            }
        }
        if fault == Fault::Silent {
            return Ok(());
        }
        if fault == Fault::Missing {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        if path == "/api/models/a/b/revision/main" {
            let files = ["README.md", "config.json", WEIGHTS].map(|name| serde_json::json!({ "rfilename": name }));
            let info = serde_json::json!({ "sha": COMMIT, "siblings": files }).to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", info.len());
            return stream.write_all(&[head.into_bytes(), info.into_bytes()].concat());
        }
        let said = format!("x-repo-commit: {COMMIT}\r\nConnection: close\r\n");
        let digest = hex::encode(Sha256::digest(WEIGHT_BYTES));
        if path == format!("/a/b/resolve/{COMMIT}/{WEIGHTS}") {
            let head = format!("HTTP/1.1 302 Found\r\nLocation: {base}/elsewhere\r\nx-linked-etag: \"{digest}\"\r\n");
            return stream.write_all(format!("{head}{said}etag: \"other\"\r\nContent-Length: 0\r\n\r\n").as_bytes());
        }
        let (content, etag): (&[u8], _) = match path.as_str() {
            "/elsewhere" => (WEIGHT_BYTES, digest),
            _ => (b"{}", "9e26dfeeb6e641a33dae4961196235bdb965b21b".to_owned()),
        };
        let total = content.len();
        let mut content = if range == "bytes=0-0" { content[..1].to_vec() } else { content.to_vec() };
        let faulty = path == "/elsewhere" && content.len() > 1;
        if faulty && fault == Fault::Alters {
            content[total / 2] ^= 1;
        }
        if faulty && fault == Fault::Cuts {
            content.truncate(total / 2);
        }
        let head = format!("HTTP/1.1 206 Partial Content\r\netag: \"{etag}\"\r\nContent-Length: {}\r\n", content.len());
        let head = format!("{head}Content-Range: bytes 0-{}/{total}\r\n{said}\r\n", content.len() - 1);
        if faulty && [Fault::Stalls, Fault::Breaks].contains(&fault) {
            content.truncate(total / 2);
        }
        stream.write_all(&[head.as_bytes(), &content].concat())
    }

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
