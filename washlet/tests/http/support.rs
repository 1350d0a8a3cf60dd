//! A server with targets, and clients for it.

use async_trait::async_trait;
use bytes::Bytes;
use capabilities::BoxError;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::uri::Scheme;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_util::sync::{CancellationToken, DropGuard};
use washlet::config::{HttpConfig, Limits, TlsConfig};
use washlet::drain::Drain;
use washlet::health::Health;
use washlet::trigger::http::{
    Attachment, CallError, Names, RequestBody, ResponseBody, Routes, Server, Timeouts,
};
use washlet::trigger::http::{Error, Target};

pub(crate) type Answer = Result<Response<ResponseBody>, CallError>;
pub(crate) type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// Waits for what must happen soon.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("soon")
}

/// Runs a client's side of a connection.
pub(crate) fn run(task: impl Future<Output = ()> + Send + 'static) {
    Drain::new(Handle::current()).spawn("client", task);
}

struct Function<F>(F);

#[async_trait]
impl<F> Target for Function<F>
where
    F: Fn(Request<RequestBody>, Scheme) -> BoxFuture<'static, Answer> + Send + Sync + 'static,
{
    fn component(&self) -> &str {
        "function"
    }
    fn answered(&self, _: StatusCode) {}

    async fn call(&self, request: Request<RequestBody>, scheme: Scheme) -> Answer {
        (self.0)(request, scheme).await
    }
}

pub(crate) fn text(text: impl Into<Bytes>) -> Answer {
    Ok(Response::new(
        Full::new(text.into())
            .map_err(|never| match never {})
            .boxed_unsync(),
    ))
}

pub(crate) struct Up {
    pub(crate) address: SocketAddr,
    pub(crate) routes: Routes,
    pub(crate) drain: Drain,
    pub(crate) attachments: Vec<Attachment>,
}

pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) drain_delay: Duration,
    pub(crate) tls: Option<TlsConfig>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            drain_delay: Duration::ZERO,
            tls: None,
        }
    }
}

impl Setup {
    pub(crate) async fn start(self) -> Result<Up, Error> {
        let (routes, drain) = (Routes::default(), Drain::new(Handle::current()));
        let config = HttpConfig {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: self.tls,
            drain_delay: self.drain_delay,
        };
        let server = Server::bind(
            &config,
            &self.limits,
            self.timeouts,
            routes.clone(),
            Health::default(),
            &drain,
        )
        .await?;
        Ok(Up {
            address: server.local_addr(),
            routes,
            drain,
            attachments: Vec::new(),
        })
    }
}

impl Up {
    pub(crate) fn serve<F, A>(&mut self, host: &str, answer: F)
    where
        F: Fn(Request<RequestBody>, Scheme) -> A + Send + Sync + 'static,
        A: Future<Output = Answer> + Send + 'static,
    {
        let target =
            Function(move |request: Request<RequestBody>, scheme| answer(request, scheme).boxed());
        let names = Names::parse(Some(host), None).unwrap();
        self.attachments
            .push(self.routes.attach(names, host.into(), Arc::new(target)));
    }

    /// Serves a body that the test writes; the token tells when the guest's side was dropped.
    pub(crate) fn serve_stream(
        &mut self,
        host: &str,
    ) -> (mpsc::Sender<Result<Bytes, BoxError>>, CancellationToken) {
        let (frames, body) = mpsc::channel::<Result<Bytes, BoxError>>(0);
        let gone = CancellationToken::new();
        let once = std::sync::Mutex::new(Some((body, gone.clone().drop_guard())));
        self.serve(host, move |_, _| {
            let (body, guard) = once.lock().unwrap().take().expect("one request");
            async move { Ok(Response::new(stream(body, guard))) }
        });
        (frames, gone)
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        soon(TcpStream::connect(self.address)).await.unwrap()
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, request: &str) -> Reply {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        soon(stream.read_to_end(&mut bytes)).await.unwrap();
        Reply::parse(&bytes)
    }

    pub(crate) async fn get(&self, host: &str) -> Reply {
        self.ask(&format!(
            "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        ))
        .await
    }

    pub(crate) async fn h1(&self) -> http1::SendRequest<Body> {
        let (sender, connection) = http1::handshake(TokioIo::new(self.connect().await))
            .await
            .unwrap();
        run(connection.map(drop));
        sender
    }

    pub(crate) async fn h2(&self) -> http2::SendRequest<Body> {
        let io = TokioIo::new(self.connect().await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        run(connection.map(drop));
        sender
    }
}

pub(crate) fn stream(body: mpsc::Receiver<Result<Bytes, BoxError>>, guard: DropGuard) -> Body {
    let frames = body.map(move |bytes| {
        let _held = &guard;
        bytes.map(Frame::data)
    });
    StreamBody::new(frames).boxed_unsync()
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A request of hyper's clients: HTTP/1.1 by header, HTTP/2 by authority.
pub(crate) fn request(uri: &str, host: Option<&str>) -> Request<Body> {
    let mut request = Request::builder().uri(uri);
    if let Some(host) = host {
        request = request.header("host", host);
    }
    request.body(empty()).unwrap()
}

/// The next bytes of a body; HTTP/2 ends some bodies with an empty frame, which is none.
pub(crate) async fn frame(
    response: &mut Response<Incoming>,
) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        let bytes = soon(response.frame())
            .await?
            .map(|frame| frame.into_data().unwrap());
        if !bytes.as_ref().is_ok_and(Bytes::is_empty) {
            return Some(bytes);
        }
    }
}

pub(crate) async fn whole(response: Response<Incoming>) -> Bytes {
    soon(response.collect()).await.unwrap().to_bytes()
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let mut lines = head.lines();
        let status = lines
            .next()
            .unwrap()
            .split(' ')
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
        let headers = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        Self {
            status,
            headers: HeaderMap::from_iter(headers.map(|(n, v): (http::HeaderName, _)| (n, v))),
            body: body.to_owned(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}
