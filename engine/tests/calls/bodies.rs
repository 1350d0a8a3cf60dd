//! A body arrives whole or ends in an error, and no faster than it is read.

use std::time::{SystemTime, UNIX_EPOCH};

use engine::invoke::Error;
use http_body_util::BodyExt;

use crate::host::{get, grant, read, shared, start};

/// How many chunks may lie between a guest and its client: the channel's, and the one in each hand.
const CHUNKS_BETWEEN: usize = 8;

#[tokio::test]
async fn a_guest_that_traps_within_its_body_never_looks_complete() {
    let guest = start(shared(), "hostile", grant("half")).await;
    for _ in 0..20 {
        let mut body = get(&guest, "/half").await.unwrap().into_body();
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "half");
        assert!(matches!(body.frame().await, Some(Err(Error::Trap(_)))));
    }
}

#[tokio::test]
async fn a_guest_that_traps_after_its_body_has_answered() {
    let guest = start(shared(), "hostile", grant("late-trap")).await;
    for _ in 0..20 {
        assert_eq!(read(&guest, "/late-trap").await, "whole\n");
    }
}

#[tokio::test]
async fn a_body_is_as_long_as_the_guest_makes_it() {
    // Much more than the guest or the channel may hold.
    let guest = start(shared(), "hostile", grant("huge")).await;
    let mut body = get(&guest, "/huge?mb=256").await.unwrap().into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let data = frame.unwrap().into_data().unwrap();
        assert!(data.iter().all(|byte| *byte == b'x'));
        bytes += data.len();
    }
    assert_eq!(bytes, 256 << 20);
}

#[tokio::test]
async fn a_guest_does_not_run_ahead_of_its_reader() {
    let guest = start(shared(), "hostile", grant("stamps")).await;
    let mut body = get(&guest, "/stamps?n=200").await.unwrap().into_body();
    let (mut made, mut read) = (Vec::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let chunk = frame.unwrap().into_data().unwrap();
        assert_eq!(chunk.len(), 64 << 10);
        let stamp = std::str::from_utf8(&chunk[..20]).unwrap();
        made.push(stamp.parse::<u128>().unwrap());
        read.push(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_nanos(),
        );
    }
    assert_eq!(made.len(), 200);
    // Each was made after the one so many before it was read.
    for (n, made) in made.iter().enumerate().skip(CHUNKS_BETWEEN) {
        assert!(*made > read[n - CHUNKS_BETWEEN], "chunk {n} was made early");
    }
}
