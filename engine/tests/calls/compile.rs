//! Bytes are compiled once per digest, or refused in words that help.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use engine::compiler::Compiler;
use engine::{CompileError, Config, Engine, Layout};
use futures::future::try_join_all;

use crate::host::{config, engine, get, grant, shared, wasm};

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
    // A refusal is not remembered.
    assert!(shared().compile("sha256:bad", whole).await.is_ok());
}

/// Of an engine that keeps its code in `dir` and has `program` compile.
fn keeping(dir: &Path, program: Option<&[&str]>) -> Engine {
    let compiler = program.and_then(|words| {
        let (program, args) = words.split_first()?;
        Some(Compiler {
            program: program.into(),
            args: args.iter().map(Into::into).collect(),
        })
    });
    engine(Config {
        compiler,
        code_dir: Some(dir.to_owned()),
        code_bytes_max: 1 << 30,
        ..config()
    })
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| !path.ends_with("key")).collect()
}

/// What an image's digest looks like.
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn what_was_compiled_serves_after_a_restart_without_its_bytes() {
    // Of each engine, in one directory.
    let dir = tempfile::tempdir().unwrap();
    serves_after_a_restart(dir.path(), DIGEST, "http-hello", "/").await;
    let other = DIGEST.replace('0', "1");
    serves_after_a_restart(dir.path(), &other, "relay", "/hello").await;
    assert_eq!(files(dir.path()).len(), 2);
}

async fn serves_after_a_restart(dir: &Path, digest: &str, guest: &str, target: &str) {
    let first = keeping(dir, None);
    assert!(first.compiled(digest).await.is_none());
    first.compile(digest, wasm(guest)).await.unwrap();
    assert_eq!(first.code().compiled, 1);
    drop(first);

    let second = keeping(dir, None);
    let compiled = second.compiled(digest).await.unwrap();
    let runnable = second.link(&compiled, grant("kept")).await.unwrap();
    assert_eq!(get(&runnable, target).await.unwrap().status(), 200);
    let counts = second.code();
    assert_eq!((counts.compiled, counts.loaded), (0, 1));
    // Others with this digest have the same.
    let again = second.compiled(digest).await.unwrap();
    assert!(Arc::ptr_eq(&again, &compiled));
}

#[tokio::test]
async fn damaged_code_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let first = keeping(dir.path(), None);
    first.compile(DIGEST, wasm("http-hello")).await.unwrap();
    drop(first);
    let file = &files(dir.path())[0];
    let mut code = std::fs::read(file).unwrap();
    let middle = code.len() / 2;
    code[middle] ^= 1;
    std::fs::write(file, code).unwrap();

    let second = keeping(dir.path(), None);
    assert!(second.compiled(DIGEST).await.is_none());
    assert!(files(dir.path()).is_empty());
    second.compile(DIGEST, wasm("http-hello")).await.unwrap();
    let counts = second.code();
    assert_eq!((counts.compiled, counts.discarded), (1, 1));
    assert_eq!(files(dir.path()).len(), 1);
}

#[tokio::test]
async fn code_of_one_layout_is_not_mapped_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let guarded = keeping(dir.path(), None);
    guarded.compile(DIGEST, wasm("http-hello")).await.unwrap();
    drop(guarded);
    let checked = engine(Config {
        layout: Layout::Checked,
        code_dir: Some(dir.path().to_owned()),
        code_bytes_max: 1 << 30,
        ..config()
    });
    assert!(checked.compiled(DIGEST).await.is_none());
    assert_eq!(files(dir.path()).len(), 1);
}

#[tokio::test]
async fn a_compiler_that_dies_fails_its_component_alone() {
    let dir = tempfile::tempdir().unwrap();
    let failed = async |program: &[&str]| {
        let engine = keeping(dir.path(), Some(program));
        let compiled = engine.compile(DIGEST, wasm("http-hello")).await;
        (compiled.err(), engine.code().compiled)
    };
    let killed = failed(&["sh", "-c", "kill -9 $$"]).await;
    assert!(
        matches!(&killed, (Some(CompileError::Failed(why)), 0) if why.contains("signal")),
        "{killed:?}"
    );
    let refused = failed(&["sh", "-c", "echo no good >&2; exit 3"]).await;
    assert!(
        matches!(&refused, (Some(CompileError::Invalid(why)), 0) if why == "no good"),
        "{refused:?}"
    );
    assert!(files(dir.path()).is_empty());
    // What is no code is not executed; and a compiler that is not there is done without.
    let lied = failed(&["sh", "-c", "cat >/dev/null; echo code"]).await;
    assert!(matches!(&lied, (None, 1)), "{lied:?}");
    std::fs::remove_file(&files(dir.path())[0]).unwrap();
    assert!(matches!(failed(&["/nonexistent"]).await, (None, 1)));
    assert_eq!(files(dir.path()).len(), 1);
}

#[tokio::test]
async fn a_disk_without_room_costs_nothing_but_the_next_compilation() {
    let dir = tempfile::tempdir().unwrap();
    let engine = keeping(dir.path(), None);
    // The directory is gone, as good as full.
    std::fs::remove_dir_all(dir.path()).unwrap();
    let compiled = engine.compile(DIGEST, wasm("http-hello")).await.unwrap();
    let runnable = engine.link(&compiled, grant("no-room")).await.unwrap();
    assert_eq!(get(&runnable, "/").await.unwrap().status(), 200);
    assert_eq!(engine.code().bytes, 0);
}
