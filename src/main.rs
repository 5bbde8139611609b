//! The command line: reads settings, starts what was asked for, and turns its outcome into an exit code.
//!
//! Exit codes: 0 done (after SIGTERM or SIGINT too), 1 it failed, 2 the command line or, for `serve`, a setting is
//! wrong, 128 + N a second signal N came during the shutdown. stdout carries what was asked for, stderr the rest.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use evenkeel::config::{self, Loaded, Override, Settings, Sources};
use evenkeel::server::Server;
use evenkeel::{demo, hub, startup, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Gives pages back to the system late: a step takes as much memory as the one before, and clearing fresh pages took a
/// quarter of the time of a training step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
/// mimalloc's option `purge_delay`, which `libmimalloc-sys` does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
const PURGE_DELAY_MILLISECONDS: std::ffi::c_long = 60_000;

/// Serves a base model with hot-swappable LoRA adapters, fine-tunes new ones and audits them for subgroup fairness,
/// over gRPC.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts the server; prints one line `ready grpc=HOST:PORT http=HOST:PORT` when it takes requests.
    Serve(SettingsArgs),
    /// Pulls a small model, starts the server on free ports and shows what it does.
    Demo,
    /// Brings a model into the cache and prints where it lies.
    Pull {
        /// `smollm2-135m`, `owner/name` or `owner/name@revision`.
        name: String,
    },
    /// Prints the settings that `serve` would use and where they are from, or every fault in them.
    ///
    /// A setting that is decided at start, or has no value, is not in it.
    CheckConfig(SettingsArgs),
}

#[derive(Debug, Args)]
struct SettingsArgs {
    /// Base model: a folder, a GGUF file, or a name that `pull` knows [model.path]
    #[arg(long, value_name = "DIR|FILE.gguf|NAME")]
    model: Option<String>,
    /// Classifier of images beside it, as often as needed [model.images]
    #[arg(long, value_name = "NAME=DIR|DIR")]
    image_model: Vec<String>,
    /// Address for gRPC; port 0 takes a free one [server.listen]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Address for /metrics, /healthz, /readyz and /reports/{id}; port 0 takes a free one [server.http_listen]
    #[arg(long, value_name = "ADDR")]
    http_listen: Option<String>,
    /// Folder for everything durable [server.data_dir]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Folder that LoadAdapter may read from [registry.adapter_dir]
    #[arg(long, value_name = "DIR")]
    adapter_dir: Option<String>,
    /// Where the model runs [model.device]
    #[arg(long, value_name = "cpu|cuda[:N]")]
    device: Option<String>,
    /// Settings as TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Allows other addresses than loopback although nobody is asked who they are [server.insecure]
    #[arg(long)]
    insecure: bool,
    /// Any other setting, as often as needed
    #[arg(long, value_name = "SECTION.KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as section.key=value")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// Returns a list of texts as the value of a flag is read, nothing for an empty one.
fn list(texts: &[String]) -> Option<String> {
    (!texts.is_empty()).then(|| texts.join(","))
}

impl SettingsArgs {
    fn load(self) -> Result<Loaded, config::ConfigError> {
        let given = [
            ("model.path", "--model", self.model),
            ("model.images", "--image-model", list(&self.image_model)),
            ("server.listen", "--listen", self.listen),
            ("server.http_listen", "--http-listen", self.http_listen),
            ("server.data_dir", "--data-dir", self.data_dir),
            ("registry.adapter_dir", "--adapter-dir", self.adapter_dir),
            ("model.device", "--device", self.device),
            ("server.insecure", "--insecure", self.insecure.then(|| "true".to_owned())),
        ];
        // `--set` first: a flag of its own says more than a general one.
        let set = self.set.into_iter().map(|(key, value)| Override { flag: format!("--set {key}"), key, value });
        let named = given.into_iter().filter_map(|(key, flag, value)| {
            value.map(|value| Override { key: key.into(), value, flag: format!("flag {flag}") })
        });
        config::load(&Sources {
            file: self.config,
            environment: Sources::environment(),
            flags: set.chain(named).collect(),
        })
    }
}

fn main() -> ExitCode {
    #[expect(unsafe_code, reason = "a C function that stores a number; no other thread runs yet")]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, PURGE_DELAY_MILLISECONDS);
    }
    let outcome = match Cli::parse().command {
        Command::Serve(args) => match args.load() {
            Ok(loaded) => serve(loaded),
            Err(e) => {
                complain(&e.into());
                return ExitCode::from(2);
            }
        },
        Command::Demo => runtime().and_then(|runtime| runtime.block_on(demo::run())),
        Command::Pull { name } => hub::pull(&name, &hub::default_cache(), hub::Progress::Bars)
            .map(|path| say(&path.display().to_string()))
            .map_err(anyhow::Error::from),
        Command::CheckConfig(args) => args
            .load()
            .map_err(anyhow::Error::from)
            .and_then(|loaded| loaded.to_toml().context("the settings cannot be printed"))
            .map(|text| say(text.trim_end())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&e);
            ExitCode::FAILURE
        }
    }
}

/// Prints a line on stdout. Whoever closed it does not want it: not a fault.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

/// Prints an error and its causes on stderr, as one message.
fn complain(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr().lock(), "evenkeel: {error:#}");
}

/// Two threads carry the network; the cores belong to the engine.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("evenkeel-net")
        .enable_all()
        .build()
        .context("cannot start threads")
}

fn serve(loaded: Loaded) -> anyhow::Result<()> {
    telemetry::init(&loaded.settings.log)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let server = tokio::select! {
            // A task of its own: loading computes, and signals are to be heard meanwhile.
            server = tokio::spawn(start(loaded.settings)) => server??,
            _ = signals.next() => return Ok(()),
        };
        say(&format!("ready grpc={} http={}", server.grpc_addr(), server.http_addr()));
        server.run(signals.first_then_exit()).await;
        Ok(())
    });
    // A load that was interrupted still computes on a thread of its own: do not wait for it.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

async fn start(settings: Settings) -> anyhow::Result<Server> {
    let own = settings.clone();
    let loaded = tokio::task::spawn_blocking(move || startup::load(&own)).await??;
    Ok(Server::bind(settings, loaded).await?)
}

/// SIGTERM and SIGINT, taken from the start, so that they also work as process 1 of a container.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: take(SignalKind::terminate())?, interrupt: take(SignalKind::interrupt())? })
    }

    /// Returns the number of the next signal.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 15,
            _ = self.interrupt.recv() => 2,
        }
    }

    /// Ends at the first signal; the second one ends the process.
    async fn first_then_exit(mut self) {
        let first = self.next().await;
        tracing::info!(signal = first, "shutting down; a second signal ends the process at once");
        tokio::spawn(async move {
            let second = self.next().await;
            std::process::exit(128 + i32::from(second));
        });
    }
}
