//! The plan of the house, checked: who imports whom, where gRPC and tokio may be named, how long a file may be.
//!
//! Reads text, not syntax: `crate::` paths on lines that are not comments. The table is the one in `src/lib.rs` and
//! CONTRIBUTING.md; change them together.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Module, and what it may name besides itself, `config` and `metrics`.
const TABLE: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("metrics", &[]),
    ("telemetry", &[]),
    ("hub", &[]),
    ("store", &[]),
    ("turns", &[]),
    ("dataset", &["model", "store"]),
    ("ops", &[]),
    ("lora", &["ops"]),
    ("model", &["lora", "ops"]),
    ("engine", &["lora", "model", "turns"]),
    ("encode", &["dataset", "model"]),
    ("train", &["dataset", "encode", "lora", "model", "ops", "turns"]),
    ("audit", &["dataset", "encode", "lora", "model", "turns"]),
    ("reports", &["audit", "store"]),
    ("registry", &["lora", "model", "reports", "store"]),
    ("jobs", &["audit", "dataset", "lora", "model", "registry", "reports", "store", "train", "turns"]),
    ("rpc", &["audit", "dataset", "engine", "jobs", "lora", "model", "registry", "reports", "store", "train"]),
    ("http", &["audit", "reports", "store"]),
    ("startup", &["hub", "model", "server"]),
    (
        "server",
        &[
            "audit", "dataset", "engine", "http", "jobs", "lora", "model", "registry", "reports", "rpc", "store",
            "train", "turns",
        ],
    ),
    // A client of the server it starts: it may name the generated messages.
    ("demo", &["hub", "rpc", "server", "startup"]),
    ("main", &["demo", "hub", "server", "startup", "telemetry"]),
    ("lib", &[]),
];
const LEAVES: &[&str] = &["config", "metrics"];
/// Where tonic and the generated code may be named.
const GRPC: &[&str] = &["rpc", "server", "demo"];
/// Mathematics: no tokio.
const NO_TOKIO: &[&str] = &["audit", "dataset", "encode", "lora", "model", "ops", "train"];
const LONGEST: usize = 500;

struct Source {
    path: PathBuf,
    module: String,
    text: String,
}

impl Source {
    /// Lines of code with their numbers, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(i, line)| (i + 1, line.trim()));
        lines.filter(|(_, line)| !line.starts_with("//"))
    }

    fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let inside = path.strip_prefix(&root).unwrap();
                let module = inside.components().next().unwrap().as_os_str().to_str().unwrap();
                let module = module.trim_end_matches(".rs").to_owned();
                found.push(Source { module, text: std::fs::read_to_string(&path).unwrap(), path });
            }
        }
    }
    assert!(!found.is_empty(), "no source under {}", root.display());
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Modules that a line names by `crate::` (or, in the binary, `evenkeel::`), groups in braces included.
fn named(line: &str, root: &str) -> Vec<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut modules = Vec::new();
    for (at, _) in line.match_indices(root) {
        let qualified = line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        let rest = &line[at + root.len()..];
        match rest.strip_prefix('{') {
            _ if qualified => {}
            Some(group) => {
                let mut depth = 0;
                let outer: String = group
                    .chars()
                    .filter(|c| {
                        depth += i32::from(*c == '{') - i32::from(*c == '}');
                        depth == 0
                    })
                    .collect();
                modules.extend(outer.split(',').map(|part| word(part.trim())));
            }
            None => modules.push(word(rest)),
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn imports_follow_the_table() {
    let sources = sources("src");
    let modules: BTreeSet<&str> = sources.iter().map(|s| s.module.as_str()).collect();
    let mut faults = Vec::new();
    for source in &sources {
        let Some((_, allowed)) = TABLE.iter().find(|(module, _)| *module == source.module) else {
            faults.push(format!("{}: `{}` is not in the table", source.path.display(), source.module));
            continue;
        };
        let root = if source.module == "main" { "evenkeel::" } else { "crate::" };
        for (number, line) in source.code() {
            if line.contains("use crate::{") && !line.contains('}') {
                faults.push(format!("{}: write one `use` a module, so that this test can read it", source.at(number)));
            }
            for module in named(line, root) {
                let fine = module == source.module
                    || LEAVES.contains(&module.as_str())
                    || allowed.contains(&module.as_str())
                    || !modules.contains(module.as_str());
                if !fine {
                    faults.push(format!("{}: {} may not name {module}", source.at(number), source.module));
                }
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn only_the_border_names_grpc_and_mathematics_names_no_tokio() {
    let mut faults = Vec::new();
    for source in sources("src") {
        for (number, line) in source.code() {
            let grpc = ["tonic::", "tonic_", "pb::"].iter().any(|name| line.contains(name));
            if grpc && !GRPC.contains(&source.module.as_str()) {
                faults.push(format!("{}: names gRPC", source.at(number)));
            }
            if line.contains("tokio") && !line.contains("tokio::test") && NO_TOKIO.contains(&source.module.as_str()) {
                faults.push(format!("{}: names tokio", source.at(number)));
            }
        }
    }
    assert_none(&faults);
}

#[test]
fn every_file_says_its_purpose_and_is_short() {
    let mut faults = Vec::new();
    for source in sources("src").iter().chain(&sources("tests")) {
        if !source.text.starts_with("//! ") {
            faults.push(format!("{}: does not begin with `//!`", source.path.display()));
        }
        let lines = source.text.lines().count();
        if lines > LONGEST {
            faults.push(format!("{}: {lines} lines, the limit is {LONGEST}", source.path.display()));
        }
    }
    assert_none(&faults);
}

#[test]
fn paths_are_found_where_they_stand() {
    assert_eq!(named("use crate::engine::Engine;", "crate::"), ["engine"]);
    assert_eq!(named("fn f(x: crate::lora::A) -> crate::model::B", "crate::"), ["lora", "model"]);
    assert_eq!(named("use crate::{lora::{A, B}, ops};", "crate::"), ["lora", "ops"]);
    assert_eq!(named("use other_crate::engine;", "crate::"), Vec::<String>::new());
}
