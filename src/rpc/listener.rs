//! Accepts connections and serves HTTP/2 on each, within bounds.
//!
//! hyper is used directly because tonic's server has a timer of its own on `grpc-timeout` that answers CANCELLED, and no
//! bound on connections or on the time to the first bytes. Here: a cap on connections, a bound on the HTTP/2 preface,
//! no delay of small packets, keep-alive, and a shutdown in two steps (GOAWAY, then the end).
//! Knows no service: a router comes in.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, join};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::ServerSettings;
use crate::metrics::Metrics;

/// What every HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of all headers of a request together.
const MAX_HEADERS: u32 = 16 << 10;
/// Wait after a failed accept, such as one without a free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until stopped.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    router: axum::Router,
    metrics: Arc<Metrics>,
    handshake: Duration,
    max_streams: u32,
    permits: Arc<Semaphore>,
    connections: TaskTracker,
    stop: Stop,
}

/// Ends a [`Listener`], in two steps.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Accepts no more; open connections get GOAWAY and end with their last stream.
    pub graceful: CancellationToken,
    /// Closes what is still open.
    pub forced: CancellationToken,
}

impl Listener {
    /// Puts the bounds of `settings` around `router`.
    pub fn new(
        listener: TcpListener,
        router: axum::Router,
        settings: &ServerSettings,
        metrics: Arc<Metrics>,
        stop: Stop,
    ) -> Self {
        Self {
            listener,
            router,
            metrics,
            handshake: Duration::from_secs(settings.handshake_timeout_seconds),
            max_streams: settings.max_concurrent_streams,
            permits: Arc::new(Semaphore::new(settings.max_connections.min(Semaphore::MAX_PERMITS))),
            connections: TaskTracker::new(),
            stop,
        }
    }

    /// Accepts until stopped, and returns when the last connection is closed.
    pub async fn run(self) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.graceful.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => self.begin(stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        self.connections.close();
        self.connections.wait().await;
    }

    /// Serves one connection in a task of its own; one too many is closed at once.
    fn begin(&self, stream: TcpStream) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            tracing::debug!("too many connections");
            return;
        };
        let open = Open::new(Arc::clone(&self.metrics));
        let connection = serve(stream, self.router.clone(), self.handshake, self.max_streams, self.stop.clone());
        self.connections.spawn(async move {
            connection.await;
            drop((permit, open));
        });
    }
}

/// Counts a connection while it is open.
struct Open(Arc<Metrics>);

impl Open {
    fn new(metrics: Arc<Metrics>) -> Self {
        metrics.grpc_connections.inc();
        Self(metrics)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.grpc_connections.dec();
    }
}

/// Serves one connection to its end.
async fn serve(mut stream: TcpStream, router: axum::Router, handshake: Duration, max_streams: u32, stop: Stop) {
    // Without it each small message waits for the acknowledgement of the one before: 40 ms a token.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let mut preface = [0; PREFACE.len()];
    let read = tokio::select! {
        () = stop.graceful.cancelled() => return,
        read = tokio::time::timeout(handshake, stream.read_exact(&mut preface)) => read,
    };
    if !matches!(read, Ok(Ok(_))) || preface != *PREFACE {
        tracing::debug!("connection sent no HTTP/2 preface in time");
        return;
    }
    let (reader, writer) = stream.into_split();
    let io = TokioIo::new(join(Cursor::new(preface).chain(reader), writer));
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(max_streams)
        .max_header_list_size(MAX_HEADERS)
        .serve_connection(io, TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let mut leaving = false;
    loop {
        tokio::select! {
            () = stop.forced.cancelled() => return,
            () = stop.graceful.cancelled(), if !leaving => {
                leaving = true;
                connection.as_mut().graceful_shutdown();
            }
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn start(
        settings: ServerSettings,
    ) -> (std::net::SocketAddr, Stop, Arc<Metrics>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, metrics) = (Stop::default(), Arc::new(Metrics::new().unwrap()));
        let router = axum::Router::new();
        let listener = Listener::new(listener, router, &settings, Arc::clone(&metrics), stop.clone());
        (address, stop, metrics, tokio::spawn(listener.run()))
    }

    #[tokio::test]
    async fn silent_and_foreign_connections_are_closed() {
        let settings = ServerSettings { handshake_timeout_seconds: 0, ..Default::default() };
        let (address, stop, ..) = start(settings).await;
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert_eq!(silent.read(&mut [0; 1]).await.unwrap_or(0), 0, "closed by the server");
        stop.graceful.cancel();

        let (address, stop, ..) = start(ServerSettings::default()).await;
        let mut foreign = TcpStream::connect(address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut foreign, b"GET / HTTP/1.1\r\nhost: example\r\n\r\n").await.unwrap();
        assert_eq!(foreign.read(&mut [0; 1]).await.unwrap_or(0), 0, "closed by the server");
        stop.graceful.cancel();
    }

    #[tokio::test]
    async fn connections_above_the_cap_are_closed_and_shutdown_ends_all() {
        let (address, stop, metrics, running) =
            start(ServerSettings { max_connections: 1, ..Default::default() }).await;
        let mut first = TcpStream::connect(address).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut first, PREFACE).await.unwrap();
        assert_ne!(first.read(&mut [0; 64]).await.unwrap(), 0, "the server's settings come");
        assert_eq!(metrics.grpc_connections.get(), 1);
        let mut second = TcpStream::connect(address).await.unwrap();
        assert_eq!(second.read(&mut [0; 1]).await.unwrap_or(0), 0, "one too many");
        stop.graceful.cancel();
        stop.forced.cancel();
        running.await.unwrap();
        assert_eq!(metrics.grpc_connections.get(), 0);
    }
}
