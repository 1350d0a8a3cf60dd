//! Bytes are compiled once per digest, or refused in words that help.

use std::sync::Arc;

use bytes::Bytes;
use engine::CompileError;
use futures::future::try_join_all;

use crate::host::{config, engine, shared, wasm};

/// A component whose only content is the import of an empty instance.
pub(crate) fn importing(name: &str) -> Bytes {
    let length = u8::try_from(name.len()).unwrap();
    // Magic and version; an instance type without declarations; one import of that type.
    let mut bytes = b"\0asm\x0d\0\x01\0\x07\x03\x01\x42\0".to_vec();
    bytes.extend([0x0a, length + 5, 0x01, 0x00, length]);
    bytes.extend(name.as_bytes());
    bytes.extend([0x05, 0x00]);
    bytes.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_with_one_digest_share_one_compilation() {
    let engine = engine(config());
    let bytes = wasm("hostile");
    let calls = (0..20).map(|_| {
        let (engine, bytes) = (engine.clone(), bytes.clone());
        async move { engine.compile("sha256:one", bytes).await }
    });
    let compiled = try_join_all(calls).await.unwrap();
    assert!(compiled.iter().all(|one| Arc::ptr_eq(one, &compiled[0])));
    assert_eq!(compiled[0].digest(), "sha256:one");

    // The digest decides, not the bytes.
    let again = engine.compile("sha256:one", Bytes::new()).await.unwrap();
    assert!(Arc::ptr_eq(&again, &compiled[0]));
    let other = engine.compile("sha256:other", bytes).await.unwrap();
    assert!(!Arc::ptr_eq(&other, &compiled[0]));
}

#[tokio::test]
async fn what_is_no_component_is_refused_for_its_reason() {
    let refused = async |bytes: Bytes| shared().compile("sha256:bad", bytes).await.err();
    assert!(matches!(
        refused(Bytes::from_static(b"\0asm\x01\0\0\0")).await,
        Some(CompileError::CoreModule)
    ));
    for garbage in [
        &b""[..],
        b"\0",
        b"\0asm",
        b"\0asm\x0d\0",
        b"#!/bin/sh\n",
        &[0xff; 4096],
    ] {
        assert!(
            matches!(
                refused(Bytes::copy_from_slice(garbage)).await,
                Some(CompileError::NotWasm)
            ),
            "{garbage:?}"
        );
    }
    let whole = wasm("http-hello");
    assert!(matches!(
        refused(whole.slice(..whole.len() / 2)).await,
        Some(CompileError::Invalid(_))
    ));
    match refused(importing("wasi:http/types@0.3.0")).await {
        Some(CompileError::Async(import)) => assert_eq!(import, "wasi:http/types@0.3.0"),
        other => panic!("{other:?}"),
    }
    // A refusal is not remembered.
    assert!(shared().compile("sha256:bad", whole).await.is_ok());
}
