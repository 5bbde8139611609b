//! The built program from outside: settings, exit codes, the ready line, the HTTP pages, signals.
//!
//! A started server runs a golden model on port 0; what it computes is other tests' business.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_evenkeel"));
    // Settings of whoever runs the tests are not the tests' business.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("EVENKEEL__")) {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command) -> (Output, String, String) {
    let output = command.output().unwrap();
    let (out, err) = (output.stdout.clone(), output.stderr.clone());
    (output, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn check_config_prints_what_serve_would_use() {
    let (output, stdout, _) = run(program()
        .args(["check-config", "--model", "some/folder", "--set", "engine.max_step_tokens=99"])
        .env("EVENKEEL__LOG__FORMAT", "json"));
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout.contains("path = \"some/folder\"  # flag --model"), "{stdout}");
    assert!(stdout.contains("max_step_tokens = 99  # --set engine.max_step_tokens"), "{stdout}");
    assert!(stdout.contains("format = \"json\"  # variable EVENKEEL__LOG__FORMAT"), "{stdout}");
}

#[test]
fn check_config_reports_the_faults_of_all_sources_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("evenkeel.toml");
    std::fs::write(&file, "[engine]\nmax_running_sequences = 0\nspeed = 'high'\n").unwrap();
    let (output, stdout, stderr) = run(program()
        .args(["check-config", "--set", "log.colour=red", "--device", "tpu", "--config"])
        .arg(&file)
        .env("EVENKEEL__SERVER__PORT", "1")
        .env("EVENKEEL__SERVER__LISTEN", "here"));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout, "");
    let of = |parts: &[&str]| stderr.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    assert!(of(&["unknown key `engine.speed`", "evenkeel.toml"]), "{stderr}");
    assert!(of(&["engine.max_running_sequences", "evenkeel.toml"]), "{stderr}");
    assert!(of(&["unknown key `server.port`", "EVENKEEL__SERVER__PORT"]), "{stderr}");
    assert!(of(&["server.listen", "EVENKEEL__SERVER__LISTEN"]), "{stderr}");
    assert!(of(&["unknown key `log.colour`", "--set"]), "{stderr}");
    assert!(of(&["model.device", "--device", "tpu"]), "{stderr}");
}

#[test]
fn serve_refuses_an_open_address_with_code_2() {
    let (output, stdout, stderr) = run(program().args(["serve", "--model", "nowhere", "--listen", "0.0.0.0:0"]));
    assert_eq!((output.status.code(), stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("server.listen") && stderr.contains("--insecure"), "{stderr}");
}

#[test]
fn a_wrong_command_line_ends_with_code_2() {
    for arguments in [&["serve", "--no-such-flag"][..], &["serve", "--set", "no-value"], &["fly"], &[]] {
        let (output, _, stderr) = run(program().args(arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_model_that_is_not_there_is_one_clear_message_and_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("no-such-model");
    let (output, stdout, stderr) = run(serve(&missing, &folder.path().join("data")).env_remove("HOME"));
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
    let message: Vec<_> = stderr.lines().filter(|line| line.starts_with("evenkeel: ")).collect();
    assert_eq!(message.len(), 1, "{stderr}");
    assert!(message[0].contains("no-such-model"), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_data_folder_that_cannot_be_made_is_one_clear_message_and_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let (output, stdout, stderr) = run(&mut serve(&model(), &file.join("data")));
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
    let message: Vec<_> = stderr.lines().filter(|line| line.starts_with("evenkeel: ")).collect();
    assert!(message.len() == 1 && message[0].contains("data"), "{stderr}");
}

#[test]
fn a_reader_that_leaves_early_is_no_fault() {
    let mut child = program().args(["check-config"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn serve_says_ready_answers_and_ends_with_code_0_on_sigterm() {
    let mut server = Served::start(&[]);
    let health = server.get("/healthz");
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let ready = server.get("/readyz");
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let metrics = server.get("/metrics");
    assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    assert!(metrics.lines().any(|line| line.starts_with("evenkeel_build_info{")), "{metrics}");
    assert!(server.get("/nothing").starts_with("HTTP/1.1 404"));
    TcpStream::connect(&server.grpc).unwrap();
    server.terminate();
    let (code, rest, stderr) = server.end();
    assert_eq!((code, rest.as_str()), (Some(0), ""), "{stderr}");
}

#[test]
fn odd_surroundings_do_not_matter() {
    let mut server = Served::start(&[("TZ", "Nowhere/Odd"), ("LANG", "x"), ("EVENKEEL__LOG__FORMAT", "json")]);
    server.terminate();
    let (code, _, stderr) = server.end();
    assert_eq!(code, Some(0), "{stderr}");
    for line in stderr.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    }
}

#[test]
fn the_readme_lists_every_setting() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let settings = serde_json::to_value(evenkeel::config::Settings::default()).unwrap();
    for (section, keys) in settings.as_object().unwrap() {
        for key in keys.as_object().unwrap().keys() {
            assert!(readme.contains(&format!("| `{section}.{key}` |")), "{section}.{key}");
        }
    }
}

/// A golden causal model: any one.
fn model() -> std::path::PathBuf {
    let causal = |folder: &Path| {
        let config = crate::golden::json(&folder.join("config.json"));
        config["architectures"][0].as_str().is_some_and(|name| name.ends_with("ForCausalLM"))
    };
    let found = crate::golden::cases("language", "tokenizer.json").into_iter().find(|folder| causal(folder));
    found.expect("a golden language model")
}

fn serve(model: &Path, data: &Path) -> Command {
    let mut command = program();
    command.args(["serve", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--model"]);
    command.arg(model).arg("--data-dir").arg(data);
    command
}

/// A running server; killed when dropped.
struct Served {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    grpc: String,
    http: String,
    _folder: tempfile::TempDir,
}

impl Served {
    fn start(variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = serve(&model(), &folder.path().join("data"));
        command.env_remove("HOME").envs(variables.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let mut words = line.trim_end().split(' ');
        let mut server = Self { child, stdout, grpc: String::new(), http: String::new(), _folder: folder };
        if words.next() != Some("ready") {
            let _ = server.child.kill();
            let (code, _, stderr) = server.end();
            panic!("not ready: {line:?}, code {code:?}\n{stderr}");
        }
        server.grpc = words.next().and_then(|word| word.strip_prefix("grpc=")).unwrap().to_owned();
        server.http = words.next().and_then(|word| word.strip_prefix("http=")).unwrap().to_owned();
        assert_eq!(words.next(), None, "{line}");
        server
    }

    fn get(&self, path: &str) -> String {
        let mut socket = TcpStream::connect(&self.http).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    fn terminate(&self) {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Returns exit code, the rest of stdout, and stderr.
    fn end(&mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.stdout.read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code(), out, err)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
