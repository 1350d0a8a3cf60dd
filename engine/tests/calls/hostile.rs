//! Guests and files that mean harm fail by themselves, and what they take from others is bounded.

use std::time::Duration;

use bytes::Bytes;
use engine::invoke::Error;
use fleet::fuzz::peak_kib;

use crate::host::{DEADLINE, config, engine, get, grant, hostile, read, shared, start, wasm};

#[tokio::test]
async fn deep_recursion_ends_its_call_alone() {
    let guest = hostile(config()).await;
    assert_eq!(read(&guest, "/recurse?n=100").await, "100\n");
    let called = get(&guest, "/recurse?n=100000000").await;
    assert!(matches!(called, Err(Error::Trap(_))), "{:?}", called.err());
    assert_eq!(read(&guest, "/ok").await, "ok\n");
}

/// What the host holds for a guest is bounded, though it is none of the guest's memory.
#[tokio::test]
async fn resources_cannot_be_hoarded() {
    let guest = hostile(config()).await;
    let other = start(shared(), "hostile", grant("beside-a-hoarder")).await;
    assert_eq!(read(&guest, "/hoard?n=500").await, "hoarded\n");
    let before = peak_kib() >> 10;
    let hoard = async {
        for _ in 0..3 {
            let called = get(&guest, "/hoard?n=1000000&kb=100").await;
            assert!(matches!(called, Err(Error::Trap(_))), "{:?}", called.err());
        }
    };
    let beside = async {
        for _ in 0..10 {
            assert_eq!(read(&other, "/ok").await, "ok\n");
        }
    };
    futures::join!(hoard, beside);
    let grown = (peak_kib() >> 10) - before;
    assert!(grown < 300, "grown by {grown} MiB");
    assert_eq!(read(&guest, "/ok").await, "ok\n");
}

#[tokio::test]
async fn huge_answers_and_lines_do_not_pile_up() {
    let guest = hostile(config()).await;
    assert_eq!(read(&guest, "/ok").await, "ok\n");
    let before = peak_kib() >> 10;
    for _ in 0..3 {
        let response = get(&guest, "/headers?n=10000&kb=100").await;
        // Cut, or refused: not as large as the guest meant it.
        if let Ok(response) = response {
            let bytes: usize = response.headers().values().map(|value| value.len()).sum();
            assert!(bytes <= 1 << 20, "{bytes} bytes of headers");
        }
        assert_eq!(read(&guest, "/line?mb=16").await, "printed\n");
    }
    let grown = (peak_kib() >> 10) - before;
    assert!(grown < 400, "grown by {grown} MiB");
}

/// A number as in wasm: LEB128.
fn leb(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = number.to_le_bytes()[0] & 0x7f;
        number >>= 7;
        if number == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id], &*leb(content.len() as u64), content].concat()
}

/// `count` times the same in one section.
fn many(id: u8, count: u64, item: &[u8]) -> Vec<u8> {
    let items = item.repeat(usize::try_from(count).unwrap());
    section(id, &[leb(count), items].concat())
}

fn module(sections: &[Vec<u8>]) -> Vec<u8> {
    [b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat()
}

fn component(sections: &[Vec<u8>]) -> Vec<u8> {
    [b"\0asm\x0d\0\x01\0".to_vec(), sections.concat()].concat()
}

/// A module with one function of this body.
fn function(locals: &[u8], code: &[u8]) -> Vec<u8> {
    let body = [locals, code, &[0x0b]].concat();
    module(&[
        section(1, &[1, 0x60, 0, 0]),
        section(3, &[1, 0]),
        section(10, &[vec![1], leb(body.len() as u64), body].concat()),
    ])
}

/// Files made to be hard on whoever reads them.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let core = |module: Vec<u8>| component(&[section(1, &module)]);
    let deep = |levels: usize| [[0x02, 0x40].repeat(levels), vec![0x0b; levels]].concat();
    let empty = module(&[]);
    let mut nested = component(&[]);
    for _ in 0..200 {
        nested = component(&[section(4, &nested)]);
    }
    let instances = many(2, 20_000, &[0x00, 0x00, 0x00]);
    vec![
        ("blocks within blocks", core(function(&[0], &deep(5_000)))),
        (
            "many locals",
            core(function(&[1, 0xd0, 0x86, 0x03, 0x7f], &[])),
        ),
        (
            "more locals than there may be",
            core(function(
                &[
                    2, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x7f,
                ],
                &[],
            )),
        ),
        (
            "a long function",
            core(function(&[0], &[0x41, 0x00, 0x1a].repeat(50_000))),
        ),
        (
            "many functions",
            core(module(&[
                section(1, &[1, 0x60, 0, 0]),
                many(3, 5_000, &[0]),
                many(10, 5_000, &[2, 0, 0x0b]),
            ])),
        ),
        (
            "a memory of 4 GiB",
            core(module(&[section(5, &[1, 0x00, 0x80, 0x80, 0x04])])),
        ),
        (
            "a table of 10,000,000",
            core(module(&[section(
                4,
                &[[1, 0x70, 0x00].to_vec(), leb(10_000_000)].concat(),
            )])),
        ),
        (
            "many instances",
            component(&[section(1, &empty), instances]),
        ),
        ("components within components", nested),
        (
            "a section of 4 billion items",
            component(&[section(7, &leb(u64::from(u32::MAX)))]),
        ),
        (
            "functions of 4 billion",
            core(module(&[section(3, &leb(u64::from(u32::MAX)))])),
        ),
        (
            "a section longer than the file",
            [component(&[]), vec![1, 0xff, 0xff, 0xff, 0xff, 0x0f]].concat(),
        ),
        (
            "a number that does not end",
            [component(&[]), vec![1], vec![0x80; 4_096]].concat(),
        ),
        (
            "a long name",
            component(&[section(0, &[leb(1 << 20), vec![b'a'; 1 << 20]].concat())]),
        ),
    ]
}

/// Whatever a file is, compiling it ends soon, and others are served meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_files_are_refused_or_compiled_while_others_are_served() {
    let engine = engine(config());
    let other = start(&engine, "http-hello", grant("beside-hostile-files")).await;
    let before = peak_kib() >> 10;
    for (name, file) in files() {
        let compile = async {
            let compiled = engine.compile(name, Bytes::from(file)).await;
            if let Ok(compiled) = &compiled {
                // Room for it may be missing; that is said, too.
                let _ = engine.link(compiled, grant(name)).await;
            }
            compiled.err().map(|error| error.to_string())
        };
        let serve = async {
            for _ in 0..3 {
                assert_eq!(get(&other, "/").await.unwrap().status(), 200, "{name}");
            }
        };
        let both = async { futures::join!(compile, serve) };
        let (refused, ()) = tokio::time::timeout(DEADLINE, both).await.expect(name);
        let text = refused.unwrap_or_default();
        assert!(text.len() < 4_096, "{name}: {text}");
    }
    let grown = (peak_kib() >> 10) - before;
    assert!(grown < 1_024, "grown by {grown} MiB");
}

/// Components with bytes changed: refused or compiled, never more.
#[test]
fn fuzz_components() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let engine = engine(config());
    let number = std::cell::Cell::new(0);
    fleet::fuzz::run_costly(
        "components",
        10,
        &["\0asm\x0d\0\x01\0", "\0asm\x01\0\0\0", "\u{b}"],
        |input| {
            number.set(number.get() + 1);
            let digest = format!("sha256:{}", number.get());
            let compile = engine.compile(&digest, Bytes::copy_from_slice(input));
            let compiled = runtime
                .block_on(async { tokio::time::timeout(Duration::from_secs(20), compile).await });
            match compiled {
                Ok(Ok(_)) => Ok("compiled".to_owned()),
                Ok(Err(error)) => Err(capabilities::report(&error)),
                Err(_) => panic!("it takes too long"),
            }
        },
    )?;
    // What is whole still is.
    let whole = runtime.block_on(engine.compile("whole", wasm("http-hello")));
    anyhow::ensure!(whole.is_ok(), "the engine compiles nothing any more");
    Ok(())
}
