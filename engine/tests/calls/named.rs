//! Entries with a name serve imports that are labelled with it, and buckets called so.

use std::sync::Arc;

use engine::wit::WitInterface;
use engine::{Grant, LinkError};
use http::Method;

use crate::host::{grant, pairs, send, shared, start, text, wasm};

/// Entries of `wasi:keyvalue`, each with a name and a config.
fn declared(entries: &[(&str, &[(&str, &str)])]) -> Arc<[WitInterface]> {
    let entry = |(name, config): &(&str, &[(&str, &str)])| WitInterface {
        name: (*name).to_owned(),
        namespace: "wasi".to_owned(),
        package: "keyvalue".to_owned(),
        interfaces: vec!["store".to_owned()],
        version: None,
        config: pairs(config),
    };
    entries.iter().map(entry).collect()
}

fn granted(workload: &str, entries: &[(&str, &[(&str, &str)])]) -> Grant {
    let mut grant = grant(workload);
    grant.declared = declared(entries);
    grant
}

#[tokio::test]
async fn a_plain_import_reaches_entries_by_the_name_of_the_bucket() {
    // There is no entry for other buckets.
    let grant = granted(
        "by-name",
        &[("cache", &[("bucket", "c")]), ("archive", &[])],
    );
    let guest = start(shared(), "stores", grant).await;
    let call = async |method, path, body: &'static str| {
        text(send(&guest, method, path, body).await.unwrap()).await
    };
    assert_eq!(call(Method::PUT, "/plain/cache/k", "v").await.0, 204);
    for path in ["/plain/cache/k", "/cache/cache/k", "/cache/c/k"] {
        let found = call(Method::GET, path, "").await;
        assert_eq!(found, (200, "v".to_owned()), "{path}");
    }
    let (status, body) = call(Method::GET, "/plain/other/k", "").await;
    assert_eq!(status, 500);
    assert!(body.contains("NoSuchStore"), "{body}");
    assert_eq!(call(Method::GET, "/archive/other/k", "").await.0, 404);
}

#[tokio::test]
async fn a_label_without_an_entry_names_the_entry_to_add() {
    let compiled = shared().compile("stores", wasm("stores")).await.unwrap();
    let grant = granted("unbound", &[("", &[]), ("archive", &[])]);
    match shared().link(&compiled, grant).await.err() {
        Some(error @ LinkError::NoBackend { .. }) => {
            let said = error.to_string();
            assert!(said.contains("{name: cache, namespace: wasi"), "{said}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn interfaces_of_which_there_is_one_have_no_labels() {
    for (interface, served) in [
        ("wasi:logging/logging@0.1.0-draft", true),
        ("wasi:http/outgoing-handler@0.2.0", true),
        ("wasi:keyvalue/atomics@0.2.0-draft", true),
        ("acme:missing/thing@1.0.0", false),
    ] {
        let compiled = shared().compile(interface, labelled("mine", interface));
        let compiled = compiled.await.unwrap();
        match shared().link(&compiled, grant("one")).await.err() {
            Some(LinkError::NoLabels { label, import }) => {
                assert!(served);
                assert_eq!((label.as_str(), import.as_str()), ("mine", interface));
            }
            Some(LinkError::NotServed { import, .. }) => {
                assert!(!served);
                assert_eq!(import, interface);
            }
            other => panic!("{interface}: {other:?}"),
        }
    }
}

/// A component whose only content is the import of an empty instance, `label` for `interface`.
fn labelled(label: &str, interface: &str) -> bytes::Bytes {
    let text = |text: &str| {
        let mut bytes = vec![u8::try_from(text.len()).unwrap()];
        bytes.extend(text.as_bytes());
        bytes
    };
    let mut name = vec![0x02];
    name.extend(text(label));
    // One attribute of the name: what it implements.
    name.extend([0x01, 0x00]);
    name.extend(text(interface));
    // Magic and version; an instance type without declarations; one import of that type.
    let mut bytes = b"\0asm\x0d\0\x01\0\x07\x03\x01\x42\0".to_vec();
    bytes.extend([0x0a, u8::try_from(name.len() + 3).unwrap(), 0x01]);
    bytes.extend(name);
    bytes.extend([0x05, 0x00]);
    bytes.into()
}
