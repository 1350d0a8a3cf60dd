//! What guests say, as it reaches the host's log.

use std::io;
use std::sync::{Mutex, Once};

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

/// Keeps what guests say from now on, of all tests of this process.
pub(crate) fn capture() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter("off,guest=trace")
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
