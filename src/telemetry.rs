//! Logs: to stderr, as text or JSON, with the filter of the settings.
//!
//! Holds no rule of what is logged; the house's rule is that no prompt and no completion is, at `info` or `debug`.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::TryInitError;

use crate::config::LogSettings;

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("log.filter `{filter}` cannot be read")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// Logging has started already.
    #[error("logs have a receiver already")]
    Started(#[from] TryInitError),
}

/// Sends the logs of this process to stderr.
///
/// # Errors
/// When the filter cannot be read, or when called twice.
pub fn init(settings: &LogSettings) -> Result<(), TelemetryError> {
    use tracing_subscriber::util::SubscriberInitExt as _;
    let filter = EnvFilter::builder()
        .parse(&settings.filter)
        .map_err(|source| TelemetryError::Filter { filter: settings.filter.clone(), source })?;
    // A closed stderr must not end the server, which reporting a failed write there would.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match settings.format.as_str() {
        "json" => builder.json().flatten_event(true).finish().try_init()?,
        _ => builder.finish().try_init()?,
    }
    Ok(())
}
