//! The listener: connections, their bounds and their end.

use super::respond::Responder;
use super::routes::Routes;
use super::tls;
use super::traffic::{Connections, Order, Traffic, Watched};
use crate::config::{HttpConfig, Limits};
use crate::drain::Drain;
use crate::health::Health;
use capabilities::BoxError;
use engine::permits::Permits;
use http::uri::Scheme;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

/// Connections the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// After an accept error (no file descriptor left, say); doubles up to the second one.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));
/// How long connections that were told to close may take.
const LINGER: Duration = Duration::from_secs(1);
const PING_INTERVAL: Duration = Duration::from_secs(20);
const STREAMS_MAX: u32 = 128;
const HEADERS_MAX: usize = 128;
const HEADER_BYTES_MAX: u32 = 64 << 10;
/// What is buffered towards a client; small, so that a slow one is seen to move.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// How long a client may take.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// For a TLS handshake.
    pub handshake: Duration,
    /// For the head of a request, from its first byte; of the first request, from the connection.
    pub head: Duration,
    /// Between requests of a connection, and between frames of a response.
    pub idle: Duration,
    /// How long a request waits for others to end when there are too many.
    pub admission: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            admission: Duration::from_secs(1),
        }
    }
}

/// The listener cannot be set up.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The TLS files cannot be used.
    #[error("cannot set up TLS")]
    Tls(#[from] tls::Error),
}

/// A listener that takes HTTP/1.1 and HTTP/2 until its drain stops, then finishes what it has taken.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
}

impl Server {
    /// Listens on `config.address` and starts to take connections, as tasks of `drain`.
    ///
    /// Shape: once `drain` is told to stop, connections are still taken for `config.drain_delay`, then
    /// closed as they finish; what is left `limits.grace` after the stop is cut.
    ///
    /// # Errors
    /// [`Error`] when the address or the TLS files cannot be used; then nothing was started.
    pub async fn bind(
        config: &HttpConfig,
        limits: &Limits,
        timeouts: Timeouts,
        routes: Routes,
        health: Health,
        drain: &Drain,
    ) -> Result<Self, Error> {
        let tls = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let address = config.address;
        let (listener, local_addr) =
            listen(address).map_err(|source| Error::Bind { address, source })?;
        let listening = Listening {
            responder: Arc::new(Responder {
                routes,
                health,
                scheme: if tls.is_some() {
                    Scheme::HTTPS
                } else {
                    Scheme::HTTP
                },
                // Every connection may wait: telling a client at once to come again costs more than
                // letting it wait, and who is told so often is not told less often for it.
                requests: Permits::new(limits.http_requests, limits.http_connections),
                wait: timeouts.admission,
                idle: timeouts.idle,
                body_bytes_max: limits.response_bytes_max,
                closing: AtomicBool::new(false),
            }),
            tls,
            open: Arc::new(Connections::new(timeouts.head, timeouts.idle)),
            handshake: timeouts.handshake,
            slots: Arc::new(Semaphore::new(limits.http_connections)),
            connections: drain.child(),
        };
        let (stopping, delay, grace) = (drain.clone(), config.drain_delay, limits.grace);
        drain.spawn("http listener", async move {
            tokio::select! {
                () = listening.run(listener, stopping, delay, grace) => {}
                () = listening.open.watch() => {}
            }
        });
        Ok(Self { local_addr })
    }

    /// The address that is listened on, with its actual port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

/// Without the runtime: the caller's need not be the one that the connections run on.
fn listen(address: SocketAddr) -> io::Result<(std::net::TcpListener, SocketAddr)> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener = socket.listen(BACKLOG)?.into_std()?;
    let local_addr = listener.local_addr()?;
    Ok((listener, local_addr))
}

/// What all connections of a listener share.
#[derive(Clone)]
struct Listening {
    responder: Arc<Responder>,
    tls: Option<TlsAcceptor>,
    handshake: Duration,
    slots: Arc<Semaphore>,
    /// Their tasks.
    connections: Drain,
    open: Arc<Connections>,
}

impl Listening {
    async fn run(
        &self,
        listener: std::net::TcpListener,
        drain: Drain,
        delay: Duration,
        grace: Duration,
    ) {
        let listener = match TcpListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot accept connections"),
        };
        let stopped = async {
            drain.stopping().await;
            self.responder.closing.store(true, Ordering::Relaxed);
            sleep(delay).await;
        };
        tokio::select! {
            () = stopped => {}
            () = self.accept(&listener) => {}
        }
        drop(listener);
        tracing::info!("http listener closed");
        self.open.tell(Order::Finish);
        if let Err(overdue) = self.connections.drain(grace.saturating_sub(delay)).await {
            tracing::warn!(%overdue, "http connections cut");
            self.open.tell(Order::Close);
            if let Err(overdue) = self.connections.drain(LINGER).await {
                tracing::error!(%overdue, "http connections remain");
            }
        }
    }

    async fn accept(&self, listener: &TcpListener) {
        let mut pause = ACCEPT_PAUSE.0;
        // The permit first: what cannot be served waits in the kernel's backlog.
        while let Ok(permit) = self.slots.clone().acquire_owned().await {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    pause = ACCEPT_PAUSE.0;
                    let (this, traffic) = (self.clone(), self.open.add());
                    self.connections.spawn("http connection", async move {
                        let mut connection =
                            pin!(this.connection(stream, peer, permit, Arc::clone(&traffic)));
                        poll_fn(|cx| {
                            traffic.register(cx);
                            match traffic.is_told(Order::Close) {
                                true => Poll::Ready(()),
                                false => connection.as_mut().poll(cx),
                            }
                        })
                        .await;
                    });
                }
                // That one client is gone; the next one may be fine.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
                    ) => {}
                Err(error) => {
                    tracing::warn!(%error, pause_ms = pause.as_millis(), "cannot accept connections");
                    sleep(pause).await;
                    pause = (pause * 2).min(ACCEPT_PAUSE.1);
                }
            }
        }
    }

    async fn connection(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        _permit: OwnedSemaphorePermit,
        traffic: Arc<Traffic>,
    ) {
        let served = async {
            stream.set_nodelay(true)?;
            match self.tls.clone() {
                None => self.serve(stream, traffic).await,
                Some(tls) => {
                    let stream = timeout(self.handshake, tls.accept(stream)).await??;
                    self.serve(stream, traffic).await
                }
            }
        };
        if let Err(error) = served.await {
            tracing::debug!(%peer, error = capabilities::report(&*error), "http connection failed");
        }
    }

    async fn serve(
        &self,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        traffic: Arc<Traffic>,
    ) -> Result<(), BoxError> {
        traffic.open();
        let io = TokioIo::new(Watched {
            io,
            traffic: traffic.clone(),
        });
        // A reference of this connection alone: each request takes one.
        let (calls, responder) = (traffic.clone(), Arc::new(self.responder.clone()));
        let service = service_fn(move |request: http::Request<Incoming>| {
            let (call, responder) = (calls.begin(request.version()), responder.clone());
            async move {
                let response = responder.respond(request, call).await;
                responder.health.answered(response.status());
                Ok::<_, Infallible>(response)
            }
        });
        let http = builder(&self.connections);
        let mut connection = pin!(http.serve_connection(io, service));
        let mut told = false;
        poll_fn(|cx| {
            if !told && traffic.is_told(Order::Finish) {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(cx)
        })
        .await
    }
}

fn builder(tasks: &Drain) -> auto::Builder<Tasks> {
    let mut http = auto::Builder::new(Tasks(tasks.clone()));
    http.http1()
        .timer(TokioTimer::new())
        // `Traffic` has the limit; hyper's would end idle connections as well.
        .header_read_timeout(None)
        .max_headers(HEADERS_MAX)
        .max_buf_size(SEND_BUFFER_BYTES);
    http.http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES);
    http
}

/// Runs HTTP/2 streams as tasks of the listener's connections.
#[derive(Clone)]
struct Tasks(Drain);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, stream: F) {
        // Beside its connection, which it speaks with.
        self.0.spawn_here("http stream", stream);
    }
}
