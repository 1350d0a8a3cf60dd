//! Clients that mean harm: what they send is answered in one way or not at all, and others are served.

use super::support::*;
use http::StatusCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use washlet::config::Limits;
use washlet::trigger::http::Timeouts;

/// Bytes after which a client that goes on and on must have been cut off. The kernel's buffers count.
const FLOOD_BYTES_MAX: usize = 64 << 20;

/// What targets were asked, by path and body.
type Seen = Arc<Mutex<Vec<(String, usize)>>>;

/// A server whose target reads each body, with what was asked of it.
async fn recording() -> (Up, Seen) {
    let mut up = Setup::default().start().await.unwrap();
    let seen = Seen::default();
    let told = seen.clone();
    up.serve("a.test", move |request, _| {
        let told = told.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = http_body_util::BodyExt::collect(request.into_body()).await;
            let bytes = body.map_or(usize::MAX, |body| body.to_bytes().len());
            told.lock().unwrap().push((path, bytes));
            text("answered\n")
        }
    });
    (up, seen)
}

/// All that comes back for `request` until the server closes the connection.
async fn raw(up: &Up, request: &[u8]) -> String {
    let mut stream = up.connect().await;
    let _ = stream.write_all(request).await;
    // Nothing more comes, so whatever is taken for a request is answered, and then the server closes.
    let _ = stream.shutdown().await;
    let mut bytes = Vec::new();
    // A reset is an end, too.
    let _ = soon(stream.read_to_end(&mut bytes)).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends `part` again and again until the server has had enough.
async fn flood(stream: &mut TcpStream, part: &[u8]) -> usize {
    let mut sent = 0;
    while sent < FLOOD_BYTES_MAX {
        let (mut reading, mut writing) = stream.split();
        let mut answer = [0; 4096];
        tokio::select! {
            written = writing.write(part) => match written {
                Ok(bytes) => sent += bytes,
                Err(_) => return sent,
            },
            read = reading.read(&mut answer) => if matches!(read, Ok(0) | Err(_)) {
                return sent;
            },
        }
    }
    sent
}

/// One request behind which another one hides has one meaning: the hidden one is never a request.
#[tokio::test]
async fn what_can_be_read_in_two_ways_is_refused() {
    let (up, seen) = recording().await;
    let hidden = "GET /hidden HTTP/1.1\r\nhost: a.test\r\n\r\n";
    let length = hidden.len();
    for (head, body) in [
        (
            "content-length: 1\r\ncontent-length: 2\r\n".to_owned(),
            "ab".to_owned(),
        ),
        ("content-length: 1, 2\r\n".to_owned(), "ab".to_owned()),
        ("content-length: +5\r\n".to_owned(), "abcde".to_owned()),
        ("content-length: 0x5\r\n".to_owned(), "abcde".to_owned()),
        ("content-length: -1\r\n".to_owned(), String::new()),
        (
            "content-length: 99999999999999999999\r\n".to_owned(),
            String::new(),
        ),
        (
            "transfer-encoding: identity\r\n".to_owned(),
            hidden.to_owned(),
        ),
        (
            "transfer-encoding: chunked, identity\r\n".to_owned(),
            format!("0\r\n\r\n{hidden}"),
        ),
        (
            "transfer-encoding: xchunked\r\n".to_owned(),
            format!("0\r\n\r\n{hidden}"),
        ),
        (
            "transfer-encoding : chunked\r\n".to_owned(),
            format!("0\r\n\r\n{hidden}"),
        ),
        (
            " transfer-encoding: chunked\r\n".to_owned(),
            format!("0\r\n\r\n{hidden}"),
        ),
        (
            "transfer-encoding:\r\n chunked\r\n".to_owned(),
            format!("0\r\n\r\n{hidden}"),
        ),
        ("x: a\r\n\tfolded: b\r\n".to_owned(), hidden.to_owned()),
        ("x: a\0b\r\n".to_owned(), hidden.to_owned()),
        ("x\r: a\r\n".to_owned(), hidden.to_owned()),
        ("x y: a\r\n".to_owned(), hidden.to_owned()),
        ("host: b.test\r\n".to_owned(), String::new()),
        // Both lengths: the chunks count, and nothing after them on this connection.
        (
            format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
            format!("0\r\n\r\n{hidden}"),
        ),
        (
            format!("transfer-encoding: chunked\r\ncontent-length: {length}\r\n"),
            format!("0\r\n\r\n{hidden}"),
        ),
    ] {
        let request = format!("POST /shown HTTP/1.1\r\nhost: a.test\r\n{head}\r\n{body}");
        let answer = raw(&up, request.as_bytes()).await;
        assert!(
            answer.matches("HTTP/1.1 ").count() <= 1,
            "{head:?}: {answer}"
        );
        let hidden = seen
            .lock()
            .unwrap()
            .iter()
            .any(|(path, _)| path == "/hidden");
        assert!(!hidden, "{head:?}: {answer}");
        let both = head.contains("content-length") && head.contains("chunked");
        assert!(
            both || !answer.starts_with("HTTP/1.1 200"),
            "{head:?}: {answer}"
        );
    }
    // HTTP/1.0 has no chunks.
    let old = "POST /shown HTTP/1.0\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert!(!raw(&up, old.as_bytes()).await.starts_with("HTTP/1.0 200"));
    // Chunks that are none end the body with an error, not early.
    seen.lock().unwrap().clear();
    for chunks in [
        "fffffffffffffffff\r\n",
        "-1\r\nx\r\n",
        "5\r\nabc\r\n0\r\n\r\n",
        "g\r\n",
        "1 \n\na",
    ] {
        let request = format!(
            "POST /chunks HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n{chunks}{}",
            "\0".repeat(64)
        );
        raw(&up, request.as_bytes()).await;
    }
    let whole = |(_, bytes): &(String, usize)| *bytes != usize::MAX;
    assert!(!seen.lock().unwrap().iter().any(whole), "{seen:?}");
    assert_eq!(up.get("a.test").await.status, StatusCode::OK);
}

/// Heads without an end are cut off, and what they take is bounded.
#[tokio::test]
async fn floods_of_headers_end() {
    let (up, seen) = recording().await;
    let many = "x-header: a\r\n".repeat(200);
    let large = format!("x-header: {}\r\n", "a".repeat(200 << 10));
    for headers in [many, large] {
        let request =
            format!("GET /many HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n{headers}\r\n");
        let answer = raw(&up, request.as_bytes()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    for part in ["x-header: a\r\n", "a"] {
        let mut stream = up.connect().await;
        stream
            .write_all(b"GET /endless HTTP/1.1\r\nhost: a.test\r\nx: ")
            .await
            .unwrap();
        let sent = soon(flood(&mut stream, part.repeat(1_000).as_bytes())).await;
        assert!(sent < FLOOD_BYTES_MAX, "{sent} bytes of {part:?}");
    }
    // Also behind the body, and in what goes with chunks.
    for (start, part) in [("0\r\n", "x-trailer: a\r\n"), ("1;", "extension")] {
        let mut stream = up.connect().await;
        let head = format!(
            "POST /behind HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n{start}"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let sent = soon(flood(&mut stream, part.repeat(1_000).as_bytes())).await;
        assert!(sent < FLOOD_BYTES_MAX, "{sent} bytes of {part:?}");
    }
    let whole = |(_, bytes): &(String, usize)| *bytes != usize::MAX;
    assert!(!seen.lock().unwrap().iter().any(whole), "{seen:?}");
    assert_eq!(up.get("a.test").await.status, StatusCode::OK);
}

/// Clients that take their time have places of their own, and lose them; others are served meanwhile.
#[tokio::test]
async fn slow_clients_do_not_keep_others_out() {
    let head = Duration::from_millis(300);
    let setup = Setup {
        limits: Limits {
            http_connections: 40,
            ..Limits::default()
        },
        timeouts: Timeouts {
            head,
            ..Timeouts::default()
        },
        ..Setup::default()
    };
    let mut up = setup.start().await.unwrap();
    up.serve("a.test", |_, _| async { text("hello\n") });
    let stop = CancellationToken::new();
    // More of them than there are places: whoever is cut off comes again.
    for _ in 0..60 {
        let (address, stop) = (up.address, stop.clone());
        run(async move {
            while !stop.is_cancelled() {
                let Ok(mut stream) = TcpStream::connect(address).await else {
                    continue;
                };
                let drip = async {
                    for byte in b"GET / HTTP/1.1\r\nhost: a.test\r\nx-header: "
                        .iter()
                        .cycle()
                    {
                        if stream.write_all(&[*byte]).await.is_err() {
                            break;
                        }
                        tokio::time::sleep(head / 10).await;
                    }
                };
                tokio::select! {
                    () = drip => {}
                    () = stop.cancelled() => {}
                }
            }
        });
    }
    for _ in 0..5 {
        assert_eq!(up.get("a.test").await.body, "hello\n");
    }
    stop.cancel();
}

/// A client that has said all may still listen; one that stops in the middle has asked nothing.
#[tokio::test]
async fn half_closed_connections_are_finished() {
    let (up, seen) = recording().await;
    let mut stream = up.connect().await;
    let whole = "POST /whole HTTP/1.1\r\nhost: a.test\r\ncontent-length: 3\r\n\r\nabc";
    stream.write_all(whole.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for half in [
        "POST /half HTTP/1.1\r\nhost: a.test\r\ncontent-length: 30\r\n\r\nabc",
        "POST /half HTTP/1.1\r\nhost: a.test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "POST /half HTTP/1.1\r\nhost: a.test\r\nx: ",
        "PO",
    ] {
        let mut stream = up.connect().await;
        stream.write_all(half.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = soon(stream.read_to_end(&mut answer)).await;
    }
    let asked = seen.lock().unwrap().clone();
    assert_eq!(
        asked.iter().filter(|(path, _)| path == "/whole").count(),
        1,
        "{asked:?}"
    );
    // The target sees that the body broke off, if it is still there to see it.
    let halves = asked.iter().filter(|(path, _)| path == "/half");
    assert!(
        halves.clone().all(|(_, bytes)| *bytes == usize::MAX),
        "{asked:?}"
    );
    assert_eq!(up.get("a.test").await.status, StatusCode::OK);
}

/// Calls that are begun and taken back at once end, and do not pile up; others are served meanwhile.
#[tokio::test]
async fn streams_that_are_reset_at_once_do_not_pile_up() {
    let mut up = Setup::default().start().await.unwrap();
    let (now, most) = <(Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
    let (counted, peak) = (now.clone(), most.clone());
    up.serve("a.test", move |_, _| {
        let (counted, peak) = (Counted::new(&counted), peak.clone());
        async move {
            peak.fetch_max(counted.0.load(Ordering::SeqCst), Ordering::SeqCst);
            let () = std::future::pending().await;
            drop(counted);
            text("never\n")
        }
    });
    up.serve("b.test", |_, _| async { text("hello\n") });
    let mut resets = 0;
    for _ in 0..20 {
        let mut client = up.h2().await;
        for _ in 0..500 {
            // The server may have had enough of this connection.
            if soon(client.ready()).await.is_err() {
                break;
            }
            let call = client.send_request(request("http://a.test/", None));
            let begun = tokio::time::timeout(Duration::from_micros(50), call).await;
            resets += usize::from(begun.is_err());
        }
        assert_eq!(up.get("b.test").await.body, "hello\n");
    }
    assert!(resets > 100, "{resets} calls were taken back");
    let most = most.load(Ordering::SeqCst);
    assert!(most <= 20 * 128, "{most} calls at once");
    soon(async {
        while now.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A frame of HTTP/2.
fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A connection that has said that it speaks HTTP/2.
async fn h2_raw(up: &Up) -> TcpStream {
    let mut stream = up.connect().await;
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    stream.write_all(&h2_frame(4, 0, 0, &[])).await.unwrap();
    stream
}

/// Frames that cost the sender nothing do not cost the server much either.
#[tokio::test]
async fn floods_of_frames_end() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const CONTINUATION: u8 = 9;
    const END_HEADERS: u8 = 4;
    let (up, seen) = recording().await;

    // A head that never ends.
    let mut stream = h2_raw(&up).await;
    stream
        .write_all(&h2_frame(HEADERS, 0, 1, &[0x82]))
        .await
        .unwrap();
    // A header without indexing, of 1,000 bytes.
    let mut header = vec![0x00, 0x01, b'x', 0x7f, 0xe9, 0x06];
    header.extend(vec![b'a'; 1_000]);
    let part = h2_frame(CONTINUATION, 0, 1, &header);
    let sent = soon(flood(&mut stream, &part)).await;
    assert!(sent < FLOOD_BYTES_MAX, "{sent} bytes of CONTINUATION");

    // The same without a byte of content.
    let mut stream = h2_raw(&up).await;
    stream
        .write_all(&h2_frame(HEADERS, 0, 1, &[0x82]))
        .await
        .unwrap();
    let part = h2_frame(CONTINUATION, 0, 1, &[]).repeat(1_000);
    let sent = soon(flood(&mut stream, &part)).await;
    assert!(sent < FLOOD_BYTES_MAX, "{sent} bytes of empty CONTINUATION");

    // One byte each for a header of 3,000: what comes of it is bounded.
    let mut stream = h2_raw(&up).await;
    let mut block = vec![0x82, 0x86, 0x84, 0x40, 0x01, b'x', 0x7f, 0xb9, 0x16];
    block.extend(vec![b'a'; 3_000]);
    block.extend(vec![0xbe; 12_000]);
    stream
        .write_all(&h2_frame(HEADERS, END_HEADERS | 1, 1, &block))
        .await
        .unwrap();
    soon(async {
        let mut bytes = [0; 4096];
        loop {
            match stream.read(&mut bytes).await {
                Ok(0) | Err(_) => break,
                // RST_STREAM, GOAWAY or a head with a status: the request is over.
                Ok(read)
                    if bytes[..read]
                        .windows(5)
                        .any(|frame| frame[3] <= 7 && frame[0] == 0) =>
                {
                    break;
                }
                Ok(_) => {}
            }
        }
    })
    .await;

    // Streams that are opened and reset in one write.
    let mut stream = h2_raw(&up).await;
    let mut frames = Vec::new();
    for stream in (1..20_000_u32).step_by(2) {
        let authority = [&[0x41, 0x06][..], b"a.test"].concat();
        let block = [&[0x82, 0x86, 0x84][..], &authority].concat();
        frames.extend(h2_frame(HEADERS, END_HEADERS | 1, stream, &block));
        frames.extend(h2_frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    let _ = soon(stream.write_all(&frames)).await;
    drop(stream);
    assert_eq!(up.get("a.test").await.status, StatusCode::OK);
    let asked = seen.lock().unwrap().len();
    assert!(asked < 10_000, "{asked} requests");
}
