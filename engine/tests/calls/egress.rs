//! Where a guest's own requests may go, and how long they wait.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use engine::Runnable;
use engine::allowed_hosts::AllowedHosts;
use futures::{StreamExt, stream};
use http::Response;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::host::{get, grant, read, shared, start, text};

#[derive(Clone, Copy)]
enum Answers {
    /// `served`
    Whole,
    /// The head and `serv`, then nothing.
    Half,
    /// No head.
    Never,
}

/// Listens on loopback until it is dropped.
struct Server {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let service = service_fn(move |_| answer(answers));
                    let server = hyper::server::conn::http1::Builder::new();
                    _ = server.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self {
            address,
            _tasks: tasks,
        }
    }
}

async fn answer(
    answers: Answers,
) -> Result<
    Response<StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, Infallible>>>>,
    Infallible,
> {
    let frames = |text: &'static str| {
        let frame = Frame::data(Bytes::from_static(text.as_bytes()));
        stream::iter([Ok(frame)])
    };
    let body = match answers {
        Answers::Whole => frames("served").boxed(),
        Answers::Half => frames("serv").chain(stream::pending()).boxed(),
        Answers::Never => std::future::pending().await,
    };
    Ok(Response::new(StreamBody::new(body)))
}

async fn guest(name: &str, allowed: &[&str]) -> Runnable {
    let mut grant = grant("egress");
    grant.allowed_hosts = AllowedHosts::parse(allowed).unwrap();
    start(shared(), name, grant).await
}

/// What a guest with these entries gets from `url`.
async fn fetch(allowed: &[&str], url: &str) -> (u16, String) {
    let guest = guest("fetch", allowed).await;
    text(get(&guest, &format!("/?url={url}")).await.unwrap()).await
}

fn error(name: &str) -> (u16, String) {
    (502, format!("error: {name}\n"))
}

#[tokio::test]
async fn nothing_is_reached_that_is_not_allowed() {
    let server = Server::start(Answers::Whole).await;
    let url = format!("http://{}/", server.address);
    let denied = error("HttpRequestDenied");
    assert_eq!(fetch(&[], &url).await, denied);
    for other in ["127.0.0.1:1", "localhost", "https://127.0.0.1"] {
        assert_eq!(fetch(&[other], &url).await, denied, "{other}");
    }
    let served = (200, "served".to_owned());
    let address = server.address.to_string();
    for entry in ["127.0.0.1", &address, &format!("http://{address}")] {
        assert_eq!(fetch(&[entry], &url).await, served, "{entry}");
    }
}

#[tokio::test]
async fn addresses_of_the_machine_itself_need_their_name() {
    let server = Server::start(Answers::Whole).await;
    let port = server.address.port();
    // However they are written; the last two are read by the resolver alone.
    for host in [
        "127.0.0.1",
        "%5B::ffff:127.0.0.1%5D",
        "%5B::1%5D",
        "0.0.0.0",
        "localhost",
        "2130706433",
        "127.1",
    ] {
        assert_eq!(
            fetch(&["*"], &format!("http://{host}:{port}/")).await,
            error("DestinationIpProhibited"),
            "{host}"
        );
    }
    // A name that leads to loopback is as good as its address, when it is allowed itself.
    assert_eq!(
        fetch(&["*", "localhost"], &format!("http://localhost:{port}/")).await,
        (200, "served".to_owned())
    );
    assert_eq!(
        fetch(&["127.1"], &format!("http://127.1:{port}/")).await,
        error("DestinationIpProhibited")
    );
}

#[tokio::test]
async fn metadata_services_are_never_reached() {
    for host in ["169.254.169.254", "100.100.100.200"] {
        for entry in ["*", host] {
            assert_eq!(
                fetch(&[entry], &format!("http://{host}/latest/meta-data/")).await,
                error("DestinationIpProhibited"),
                "{host} {entry}"
            );
        }
    }
}

#[tokio::test]
async fn a_refused_connection_has_its_name() {
    // Taken and given back, so that nobody listens there.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    assert_eq!(
        fetch(&["127.0.0.1"], &format!("http://{address}/")).await,
        error("ConnectionRefused")
    );
}

#[tokio::test]
async fn a_head_that_does_not_come_is_a_timeout() {
    let server = Server::start(Answers::Never).await;
    let url = format!("http://{}/&timeout=100", server.address);
    assert_eq!(
        fetch(&["127.0.0.1"], &url).await,
        error("ConnectionReadTimeout")
    );
}

#[tokio::test]
async fn a_body_that_stops_is_a_timeout() {
    let guest = guest("hostile", &["127.0.0.1"]).await;
    let whole = Server::start(Answers::Whole).await;
    let target = format!("/impatient?ms=60000&authority={}", whole.address);
    assert_eq!(read(&guest, &target).await, "6 bytes\n");
    let half = Server::start(Answers::Half).await;
    let target = format!("/impatient?ms=100&authority={}", half.address);
    assert_eq!(
        read(&guest, &target).await,
        "error: connection read timeout\n"
    );
}

#[tokio::test]
async fn an_asynchronous_guest_asks_under_the_same_rules() {
    let servers = futures::join!(Server::start(Answers::Whole), Server::start(Answers::Whole));
    let [a, b] =
        [servers.0, servers.1].map(|server| (format!("http://{}/", server.address), server));
    let relay = guest("relay", &["127.0.0.1"]).await;
    assert_eq!(
        read(&relay, &format!("/fetch?url={}", a.0)).await,
        "200 served"
    );
    assert_eq!(
        read(&relay, &format!("/both?a={}&b={}", a.0, b.0)).await,
        "200 200"
    );
    for (allowed, code) in [
        ([].as_slice(), "HttpRequestDenied"),
        (&["*"], "DestinationIpProhibited"),
    ] {
        let relay = guest("relay", allowed).await;
        let asked = get(&relay, &format!("/fetch?url={}", a.0)).await;
        match asked.map(|response| response.status()) {
            Err(engine::invoke::Error::Code(said)) => assert!(said.contains(code), "{said}"),
            other => panic!("{other:?}"),
        }
    }
}
