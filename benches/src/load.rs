//! The HTTP load: callers with a connection each, one request at a time.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

/// How many callers there are in every row.
pub(crate) const CALLERS: usize = 32;

/// How long any one round may take.
pub(crate) const ROUND_MAX: Duration = Duration::from_secs(600);

/// What a load did.
pub(crate) struct Done {
    /// Requests that were answered well.
    pub(crate) requests: u64,
    /// From the first request to the last answer.
    pub(crate) took: Duration,
}

impl Done {
    /// Requests per second.
    pub(crate) fn rate(&self) -> f64 {
        rate(self.requests, self.took)
    }
}

/// How many in a second.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts here are far below 2^52, above which it loses anything"
)]
pub(crate) fn rate(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Lets [`CALLERS`] callers, spread over `ports`, send `GET path` for the virtual host `host` for as
/// long as `more` says so.
///
/// # Errors
/// When an answer is not 200 with a body, a connection ends, or it takes longer than [`ROUND_MAX`].
pub(crate) async fn get_all(
    ports: &[u16],
    host: &str,
    path: &str,
    more: impl Fn() -> bool,
) -> Result<Done> {
    let callers = ports.iter().cycle().take(CALLERS);
    let began = Instant::now();
    let counts = try_join_all(callers.map(|port| caller(*port, host, path, &more)));
    let counts = timeout(ROUND_MAX, counts)
        .await
        .with_context(|| format!("a round took longer than {ROUND_MAX:?}"))??;
    Ok(Done {
        requests: counts.iter().sum(),
        took: began.elapsed(),
    })
}

async fn caller(port: u16, host: &str, path: &str, more: &impl Fn() -> bool) -> Result<u64> {
    let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let calls = async {
        let mut count = 0;
        while more() {
            sender.ready().await?;
            let request = Request::get(path).header("host", host);
            let reply = sender.send_request(request.body(Empty::<Bytes>::new())?);
            let (head, mut body) = reply.await?.into_parts();
            let mut bytes = 0;
            while let Some(frame) = body.frame().await {
                bytes += frame?.data_ref().map_or(0, Bytes::len);
            }
            ensure!(head.status == StatusCode::OK, "answered {}", head.status);
            ensure!(bytes > 0, "answered nothing");
            count += 1;
        }
        Ok(count)
    };
    tokio::select! {
        count = calls => count,
        ended = connection => {
            ended?;
            bail!("the server closed a connection that was in use")
        }
    }
}
