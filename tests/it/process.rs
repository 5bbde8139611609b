//! The real binary as a child process: started on free ports, stopped politely or killed.
//!
//! Knows the command line and the `ready` line, nothing of gRPC ([`super::client`] speaks it). The child is killed
//! when its value is dropped; its log is printed when it does not come up.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use evenkeel::config::Settings;

use super::golden;

/// Settings of a test server: a golden model, free ports, everything else as shipped.
pub(crate) fn settings(model: &str, data_dir: &Path) -> Settings {
    let mut settings = Settings::default();
    settings.model.path = golden::root().join("language").join(model).display().to_string();
    settings.server.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    settings.server.http_listen = SocketAddr::from(([127, 0, 0, 1], 0));
    settings.server.data_dir = data_dir.to_owned();
    settings.engine.kv_cache_bytes = Some(64 << 20);
    settings
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_evenkeel");

/// `evenkeel serve` with every setting in a file beside the data directory.
fn command(settings: &Settings) -> Command {
    with_settings(Command::new(PROGRAM), settings)
}

fn with_settings(mut command: Command, settings: &Settings) -> Command {
    let config = settings.server.data_dir.with_extension("toml");
    std::fs::write(&config, toml::to_string(settings).unwrap()).unwrap();
    command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null());
    command
}

/// Runs the rest of its arguments in a mount name space of its own, where the data directory is a disk of some MiB.
fn on_a_disk(settings: &Settings, mebibytes: usize) -> Command {
    let mut command = Command::new("unshare");
    let script = format!("mount -t tmpfs -o size={mebibytes}m tmpfs \"$0\"; exec \"$@\"");
    command.args(["-rm", "sh", "-ec", &script]).arg(&settings.server.data_dir);
    command
}

/// A running `evenkeel serve`.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    /// Where gRPC is served.
    pub(crate) grpc: SocketAddr,
    /// Where metrics and readiness are served.
    pub(crate) http: SocketAddr,
}

impl Process {
    /// Starts the binary and returns when it is ready; blocks.
    pub(crate) fn start(settings: &Settings) -> Self {
        Self::ready(command(settings), settings)
    }

    /// Starts the binary with its data on a disk of some MiB; blocks. `None` where nobody may mount one.
    pub(crate) fn start_on_a_disk(settings: &Settings, mebibytes: usize) -> Option<Self> {
        std::fs::create_dir_all(&settings.server.data_dir).unwrap();
        let mounts = on_a_disk(settings, mebibytes).arg("true").status();
        if !mounts.is_ok_and(|status| status.success()) {
            return None;
        }
        let mut command = on_a_disk(settings, mebibytes);
        command.arg(PROGRAM);
        Some(Self::ready(with_settings(command, settings), settings))
    }

    /// Starts the binary where no file may be larger than some blocks of 512 bytes; blocks.
    pub(crate) fn start_with_small_files(settings: &Settings, blocks: usize) -> Self {
        let mut command = Command::new("sh");
        // A write beyond the limit is an error then, and not the end of the process.
        command.args(["-ec", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\""]).arg(blocks.to_string()).arg(PROGRAM);
        Self::ready(with_settings(command, settings), settings)
    }

    fn ready(mut command: Command, settings: &Settings) -> Self {
        let log = settings.server.data_dir.with_extension("log");
        let stderr = std::fs::File::create(&log).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.parse().ok());
        match (address("grpc="), address("http=")) {
            (Some(grpc), Some(http)) => Self { child, log, grpc, http },
            _ => {
                let _ = child.kill();
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("not ready: {line:?}, {:?}\n{log}", child.wait());
            }
        }
    }

    /// Runs the binary where it cannot start, and returns whether it says so by its status, and its log; blocks.
    pub(crate) fn fail(settings: &Settings) -> (bool, String) {
        let output = command(settings).output().unwrap();
        assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Returns the process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let sent = Command::new("sh").arg("-c").arg(format!("kill -TERM {}", self.id())).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end; blocks.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Kills with SIGKILL and waits; blocks for a moment.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Returns what was logged so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "the log of the server of a test that fails")]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the server\n{}", self.log());
        }
    }
}
