//! What guests say, as it reaches the host's log.

use std::io;
use std::sync::{Mutex, Once};
use std::time::Instant;

use crate::host::{entry, grant, read, shared, start};

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Keeps what guests say from now on, and what is said of them, of all tests of this process.
pub(crate) fn capture() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter("off,guest=trace,engine=warn")
            .with_ansi(false)
            .with_writer(|| Writer)
            .init();
    });
}

/// The lines that contain `text`.
pub(crate) fn lines(text: &str) -> Vec<String> {
    let log = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    let lines = log.lines().filter(|line| line.contains(text));
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn every_level_and_stream_reaches_the_log_with_its_owner() {
    capture();
    let mut grant = grant("talker");
    grant.declared = entry("logging", &["logging"], &[]);
    let guest = start(shared(), "logger", grant).await;
    assert_eq!(read(&guest, "/?text=said").await, "logged\n");
    for (level, text, mark) in [
        ("TRACE", "trace said", "context=\"logger\""),
        ("DEBUG", "debug said", "context=\"logger\""),
        ("INFO", "info said", "context=\"logger\""),
        ("WARN", "warn said", "context=\"logger\""),
        ("ERROR", "error said", "context=\"logger\""),
        ("ERROR", "critical said", "context=\"logger\""),
        ("INFO", "stdout said", "stream=\"stdout\""),
        ("INFO", "stderr said", "stream=\"stderr\""),
    ] {
        let lines = lines(text);
        assert_eq!(lines.len(), 1, "{text}: {lines:?}");
        for part in [
            level,
            mark,
            "namespace=\"talker\"",
            "workload=\"talker\"",
            "workload_id=\"talker-1\"",
            "component=\"guest\"",
        ] {
            assert!(lines[0].contains(part), "{part}: {}", lines[0]);
        }
    }
}

/// A flood is cut off, whichever way it takes; what is left out is counted, and said now and then.
#[tokio::test]
async fn a_flood_of_lines_is_bounded_and_counted() {
    capture();
    let mut grant = grant("flood");
    grant.declared = entry("logging", &["logging"], &[]);
    let guest = start(shared(), "logger", grant).await;
    let since = Instant::now();
    const CALLS: usize = 800;
    for _ in 0..CALLS {
        assert_eq!(read(&guest, "/?text=gush").await, "logged\n");
    }
    let seconds = since.elapsed().as_secs() as usize + 1;
    let written = lines(" gush").len();
    let dropped = guest.usage().used().lines_dropped as usize;
    assert_eq!(written + dropped, 8 * CALLS);
    assert!(written >= 2_000, "{written}");
    assert!(written <= 2_000 + 500 * seconds, "{written} in {seconds} s");
    let said = lines("are left out of the log");
    assert!(
        !said.is_empty() && said.len() <= 1 + seconds / 10,
        "{said:?}"
    );
    assert!(said[0].contains("workload=\"flood\""), "{said:?}");
}
