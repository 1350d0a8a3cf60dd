//! The HTTP load: connections with one request under way each, written and read with as little work
//! as possible, because the load takes its time from the servers.

use std::{
    cell::Cell,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use httparse::{EMPTY_HEADER, Response, Status, parse_chunk_size};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How many callers there are in every row.
pub(crate) const CALLERS: usize = 32;

/// How long any one round may take.
pub(crate) const ROUND_MAX: Duration = Duration::from_secs(600);

/// The most header fields of an answer.
const HEADERS_MAX: usize = 32;

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
pub(crate) fn rate(count: u64, took: Duration) -> f64 {
    real(count) / took.as_secs_f64()
}

/// A count as a figure.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts here are far below 2^52, above which it loses anything"
)]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}

/// `GET path` for the virtual host `host`.
pub(crate) fn get(host: &str, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").into_bytes()
}

/// `PUT path` with `body` for the virtual host `host`.
pub(crate) fn put(host: &str, path: &str, body: &str) -> Vec<u8> {
    with_body("PUT", host, path, body)
}

/// `POST path` with `body` for the virtual host `host`.
pub(crate) fn post(host: &str, path: &str, body: &str) -> Vec<u8> {
    with_body("POST", host, path, body)
}

fn with_body(method: &str, host: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// One for each request that is still to be begun.
pub(crate) struct Tickets(Cell<u64>);

impl Tickets {
    /// So many.
    pub(crate) fn new(count: u64) -> Self {
        Self(Cell::new(count))
    }

    /// Whether there was one left.
    pub(crate) fn take(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// When it says to come again.
    pub(crate) retry_after: Option<Duration>,
    /// Whether the server ends the connection after it.
    pub(crate) closes: bool,
}

impl Reply {
    /// Whether the request was served.
    pub(crate) fn is_good(self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// The answer at the front of `bytes`, once all of it is there.
///
/// # Errors
/// When it is no HTTP, or something follows that nobody asked for.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Reply>> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = Response::new(&mut headers);
    let Status::Complete(head) = response.parse(bytes)? else {
        return Ok(None);
    };
    let status = response.code.context("an answer without a status")?;
    let body = bytes.get(head..).unwrap_or_default();
    let header = |name: &str| {
        let mut headers = response.headers.iter();
        let header = headers.find(|header| header.name.eq_ignore_ascii_case(name));
        header.map(|header| header.value)
    };
    let is = |name, value: &[u8]| header(name).is_some_and(|got| got.eq_ignore_ascii_case(value));
    let seconds = |name| {
        let value = std::str::from_utf8(header(name)?).ok()?;
        value.parse().ok().map(Duration::from_secs)
    };
    let end = if let Some(length) = header("content-length") {
        let length: usize = std::str::from_utf8(length)?.parse()?;
        (length <= body.len()).then_some(length)
    } else if is("transfer-encoding", b"chunked") {
        chunked(body)?
    } else {
        Some(0)
    };
    let Some(end) = end else { return Ok(None) };
    ensure!(
        end == body.len(),
        "something follows an answer that nobody asked for"
    );
    Ok(Some(Reply {
        status,
        retry_after: seconds("retry-after"),
        closes: is("connection", b"close"),
    }))
}

/// Where a chunked body ends, if all of it is there.
fn chunked(body: &[u8]) -> Result<Option<usize>> {
    let mut at = 0;
    loop {
        let rest = body.get(at..).unwrap_or_default();
        let size = parse_chunk_size(rest).map_err(|_| anyhow::anyhow!("no size of a chunk"))?;
        let Status::Complete((line, size)) = size else {
            return Ok(None);
        };
        // The last chunk is empty, with no trailers after it.
        at += line + usize::try_from(size)? + 2;
        if at > body.len() {
            return Ok(None);
        }
        if size == 0 {
            return Ok(Some(at));
        }
    }
}

/// A connection to a server of this machine.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there.
    pub(crate) async fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
        stream.set_nodelay(true)?;
        let buffer = Vec::with_capacity(4 << 10);
        Ok(Self { stream, buffer })
    }

    /// Sends `request` and waits for the answer, whatever it is.
    ///
    /// # Errors
    /// When the connection ends first.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<Reply> {
        self.buffer.clear();
        self.stream.write_all(request).await?;
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await?;
            ensure!(read > 0, "the server closed a connection that was in use");
            if let Some(reply) = parse(&self.buffer)? {
                return Ok(reply);
            }
        }
    }
}

/// Lets [`CALLERS`] callers, spread over `ports`, send what `next` gives them, until it gives
/// nothing.
///
/// # Errors
/// When an answer is none of 200 to 299, a connection ends, or it takes longer than [`ROUND_MAX`].
pub(crate) async fn drive<'a>(ports: &[u16], next: impl Fn() -> Option<&'a [u8]>) -> Result<Done> {
    let callers = ports.iter().cycle().take(CALLERS);
    let connections = try_join_all(callers.map(|port| Connection::open(*port))).await?;
    let next = &next;
    let calls = connections.into_iter().map(async |mut connection| {
        let mut count = 0;
        while let Some(request) = next() {
            let reply = connection.exchange(request).await?;
            if !reply.is_good() {
                bail!("answered {}", reply.status);
            }
            count += 1;
        }
        Ok(count)
    });
    let began = Instant::now();
    let counts: Vec<u64> = timeout(ROUND_MAX, try_join_all(calls))
        .await
        .with_context(|| format!("a round took longer than {ROUND_MAX:?}"))??;
    Ok(Done {
        requests: counts.iter().sum(),
        took: began.elapsed(),
    })
}

/// As [`drive`], with one request for as long as `time`.
///
/// # Errors
/// As for [`drive`].
pub(crate) async fn drive_for(port: u16, request: &[u8], time: Duration) -> Result<Done> {
    let began = Instant::now();
    drive(&[port], || (began.elapsed() < time).then_some(request)).await
}

/// Times in the order of their length, of which percentiles are taken.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// Sorts them.
    pub(crate) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The time below which so many of a hundred lie, in microseconds.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let place = (self.0.len() * percent / 100).min(self.0.len().saturating_sub(1));
        let time = self.0.get(place);
        time.map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }

    /// The longest, in microseconds; none gives zero.
    pub(crate) fn longest(&self) -> f64 {
        self.0.last().map_or(0.0, |time| time.as_secs_f64() * 1e6)
    }
}

/// Numbers that are as good as random, the same in each run.
pub(crate) struct Dice(Cell<u64>);

impl Dice {
    /// Begins anew.
    pub(crate) fn new() -> Self {
        Self(Cell::new(0x9e37_79b9_7f4a_7c15))
    }

    /// One of `all`.
    pub(crate) fn pick<'a, T>(&self, all: &'a [T]) -> Option<&'a T> {
        let mut state = self.0.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0.set(state);
        let place = usize::try_from(state >> 32).ok()?.checked_rem(all.len())?;
        all.get(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_it_is_whole() {
        let sized = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc".as_slice();
        let chunks = b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nconnection: close\r\n\
                       transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        for whole in [sized, chunks] {
            for part in 0..whole.len() {
                assert_eq!(parse(&whole[..part]).unwrap(), None, "{part}");
            }
            assert!(parse(&[whole, b"x"].concat()).is_err());
        }
        let reply = |bytes| parse(bytes).unwrap().unwrap();
        assert!(reply(sized).is_good());
        let busy = reply(chunks);
        assert_eq!(
            (busy.status, busy.retry_after, busy.closes),
            (503, Some(Duration::from_secs(1)), true)
        );
    }

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let times = Times::new((0..100).rev().map(Duration::from_micros).collect());
        assert_eq!((times.percentile(50), times.percentile(99)), (50.0, 99.0));
        assert_eq!(times.longest(), 99.0);
        assert!(Times::new(Vec::new()).percentile(50).is_nan());
    }
}
