//! A registry whose every answer a test decides.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::Stream;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use washlet::artifact::Digest;

pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;
/// Method, path and `Authorization` of each request.
type Seen = Arc<Mutex<Vec<(String, String, Option<String>)>>>;
type Answer = dyn Fn(&Request<Incoming>) -> Option<Response<Body>> + Send + Sync;

/// Stops when dropped.
pub(crate) struct Served {
    pub(crate) address: SocketAddr,
    pub(crate) requests: Seen,
    _tasks: JoinSet<()>,
}

impl Served {
    /// `answer` answers; where it gives `None`, nothing ever comes.
    pub(crate) async fn start(
        answer: impl Fn(&Request<Incoming>) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(None, answer).await
    }

    pub(crate) async fn start_with(
        tls: Option<TlsAcceptor>,
        answer: impl Fn(&Request<Incoming>) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen): (Arc<Answer>, _) = (Arc::new(answer), requests.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, seen, tls) = (answer.clone(), seen.clone(), tls.clone());
                connections.spawn(async move {
                    let service =
                        service_fn(move |request| serve(request, answer.clone(), seen.clone()));
                    let server = hyper::server::conn::http1::Builder::new();
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                _ = server.serve_connection(TokioIo::new(stream), service).await;
                            }
                        }
                        None => _ = server.serve_connection(TokioIo::new(stream), service).await,
                    }
                });
            }
        });
        Self {
            address,
            requests,
            _tasks: tasks,
        }
    }

    pub(crate) fn image(&self) -> String {
        format!("{}/app:1", self.address)
    }

    pub(crate) fn count(&self, path: &str) -> usize {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|request| request.1.contains(path))
            .count()
    }
}

async fn serve(
    request: Request<Incoming>,
    answer: Arc<Answer>,
    seen: Seen,
) -> Result<Response<Body>, std::convert::Infallible> {
    let authorization = request.headers().get("authorization");
    seen.lock().unwrap().push((
        request.method().to_string(),
        request.uri().to_string(),
        authorization.map(|value| value.to_str().unwrap().to_owned()),
    ));
    match answer(&request) {
        Some(answer) => Ok(answer),
        None => std::future::pending().await,
    }
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(bytes.into()).map_err(|never| match never {});
    Response::new(body.boxed_unsync())
}

pub(crate) fn stream(
    chunks: impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static,
) -> Response<Body> {
    use futures::StreamExt;
    Response::new(StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync())
}

pub(crate) fn status(status: StatusCode) -> Response<Body> {
    let mut response = full("");
    *response.status_mut() = status;
    response
}

pub(crate) fn manifest(digest: Digest, size: usize) -> String {
    manifest_of("application/wasm", digest, size)
}

pub(crate) fn manifest_of(layer: &str, digest: Digest, size: usize) -> String {
    serde_json::json!({
        "schemaVersion": 2,
        "layers": [{ "mediaType": layer, "digest": digest, "size": size }],
    })
    .to_string()
}

/// Serves one component as any image, except where `blob` answers for its bytes.
pub(crate) async fn serving(
    bytes: Bytes,
    blob: impl Fn(&Request<Incoming>) -> Option<Response<Body>> + Send + Sync + 'static,
) -> Served {
    let manifest = manifest(Digest::of(&bytes), bytes.len());
    Served::start(move |request| {
        if request.uri().path().contains("/manifests/") {
            return Some(full(manifest.clone()));
        }
        blob(request)
    })
    .await
}
