//! Imports are served when the workload declares them, as it configured them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use capabilities::keyvalue::{Guard, Put};
use capabilities::plugin::{Ask, OpenError, Settings};
use engine::interface::InterfaceError;
use engine::wit::WitInterface;
use engine::{Grant, LinkError};

use crate::compile::importing;
use crate::host::{DEADLINE, entry, get, grant, pairs, read, shared, start, text, wasm};

async fn refused(bytes: Bytes, name: &str, grant: Grant) -> LinkError {
    let compiled = shared().compile(name, bytes).await.unwrap();
    match shared().link(&compiled, grant).await {
        Err(error) => error,
        Ok(_) => panic!("'{name}' was linked"),
    }
}

/// Why `kv` is refused with this config of its entry, and all that is said about it.
async fn keyvalue_refused(config: &[(&str, &str)]) -> (OpenError, String) {
    let mut grant = grant("keyvalue-refused");
    grant.declared = entry("keyvalue", &["store", "atomics", "batch"], config);
    let error = refused(wasm("kv"), "kv", grant).await;
    let said = format!("{} {error:?}", capabilities::report(&error));
    match error {
        LinkError::Interface(InterfaceError::Open { source, .. }) => (source, said),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_import_that_is_not_declared_names_the_entry_to_add() {
    let compiled = shared().compile("kv", wasm("kv")).await.unwrap();
    match shared().link(&compiled, grant("undeclared")).await.err() {
        Some(error @ LinkError::Undeclared { .. }) => {
            let said = error.to_string();
            assert!(
                said.contains("{namespace: wasi, package: keyvalue, interfaces: ["),
                "{said}"
            );
        }
        other => panic!("{other:?}"),
    }
    // An entry of another version does not declare it.
    let mut other = grant("other-version");
    let mut entries = entry("keyvalue", &["store", "atomics", "batch"], &[]).to_vec();
    entries[0].version = Some("0.1.0".parse().unwrap());
    other.declared = entries.into();
    assert!(matches!(
        shared().link(&compiled, other).await.err(),
        Some(LinkError::Undeclared { .. })
    ));
}

#[tokio::test]
async fn an_import_that_nothing_serves_is_named() {
    let name = "acme:missing/thing@1.0.0";
    match refused(wasm("unserved"), "unserved", grant("not-served")).await {
        LinkError::NotServed { import, served } => {
            assert_eq!(import, name);
            assert!(served.contains("wasi:keyvalue@0.2.0-draft"), "{served}");
        }
        other => panic!("{other:?}"),
    }
    // Declaring it does not help.
    let mut declared = grant("not-served");
    declared.declared = Arc::new([WitInterface {
        namespace: "acme".to_owned(),
        package: "missing".to_owned(),
        interfaces: vec!["thing".to_owned()],
        ..WitInterface::default()
    }]);
    let error = refused(wasm("unserved"), "unserved", declared).await;
    assert!(matches!(error, LinkError::NotServed { .. }), "{error:?}");
    for name in [
        "acme:thing/api@1.0.0",
        "wasi:keyvalue/store@0.9.0",
        "wasi:keyvalue/watcher@0.2.0-draft",
    ] {
        match refused(importing(name), name, grant("not-served")).await {
            LinkError::NotServed { import, .. } => assert_eq!(import, name),
            other => panic!("{other:?}"),
        }
    }
    // A label that does not say of what.
    match refused(importing("cache"), "cache", grant("not-served")).await {
        LinkError::NotServed { import, .. } => assert_eq!(import, "cache"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_config_key_that_nothing_reads_is_refused_without_its_value() {
    let (error, said) = keyvalue_refused(&[("bukket", "s3cret"), ("shared", "true")]).await;
    match error {
        OpenError::UnknownSettings { unknown, known } => {
            assert_eq!(unknown, ["bukket"]);
            let keys = "backend create max_bytes max_value_bytes shared ttl watch";
            assert_eq!(known, keys.split(' ').collect::<Vec<_>>());
        }
        other => panic!("{other:?}"),
    }
    assert!(said.contains("bukket") && said.contains("create"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
}

#[tokio::test]
async fn a_config_value_that_cannot_be_is_refused_without_being_shown() {
    let (error, said) = keyvalue_refused(&[("create", "s3cret")]).await;
    assert!(matches!(error, OpenError::Setting { key: "create", .. }));
    assert!(!said.contains("s3cret"), "{said}");
}

#[tokio::test]
async fn a_backend_that_is_not_there_is_refused_with_those_that_are() {
    let (error, said) = keyvalue_refused(&[("backend", "clay-tablets")]).await;
    match error {
        OpenError::NoSuchPlugin { name, known } => {
            assert_eq!((name.as_str(), known), ("clay-tablets", vec!["memory"]));
        }
        other => panic!("{other:?}"),
    }
    assert!(said.contains("memory"), "{said}");
}

#[tokio::test]
async fn config_of_the_component_is_above_that_of_the_entry() {
    let mut grant = grant("layers");
    grant.declared = entry("config", &["store"], &[("a", "entry"), ("b", "entry")]);
    grant.config = pairs(&[("a", "component"), ("c", "component")]);
    grant.environment = pairs(&[("COLOUR", "green"), ("EMPTY", "")]);
    let guest = start(shared(), "config-reader", grant).await;
    assert_eq!(
        read(&guest, "/").await,
        "a=component\nb=entry\nc=component\n"
    );
    assert_eq!(read(&guest, "/a").await, "component\n");
    assert_eq!(read(&guest, "/b").await, "entry\n");
    // The environment is what was granted: nothing of the host's, and no part of the config.
    assert_eq!(read(&guest, "/?env").await, "COLOUR=green\nEMPTY=\n");
    let (status, _) = text(get(&guest, "/COLOUR").await.unwrap()).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn the_draft_of_config_is_served_too() {
    let name = "wasi:config/store@0.2.0-draft";
    let compiled = shared().compile(name, importing(name)).await.unwrap();
    let mut grant = grant("draft");
    grant.declared = entry("config", &["store"], &[]);
    shared().link(&compiled, grant).await.unwrap();
}

#[tokio::test]
async fn a_live_bucket_is_above_all_config_and_read_anew_by_each_call() {
    let mut grant = grant("live");
    let bucket = [
        ("backend", "memory"),
        ("bucket", "app"),
        ("a", "entry"),
        ("b", "entry"),
    ];
    grant.declared = entry("config", &["store"], &bucket);
    grant.config = pairs(&[("a", "component")]);
    grant.reuse.instances_max = 1;
    let guest = start(shared(), "config-reader", grant).await;
    // Where the bucket is says the entry to the host, not to the guest.
    assert_eq!(read(&guest, "/").await, "a=component\nb=entry\n");
    let none = BTreeMap::new();
    let ask = Ask {
        namespace: "live",
        workload: "live",
        component: "writer",
        flat_names: false,
        settings: Settings::new(&none),
    };
    let plugin = shared().plugins().select(&ask.settings).unwrap();
    let store = plugin.keyvalue(&ask).await.unwrap();
    for value in ["one", "two"] {
        let put = Put {
            key: "a",
            value: value.into(),
            guard: Guard::Any,
            ttl: None,
        };
        store.put("app", put).await.unwrap();
        assert_eq!(read(&guest, "/").await, format!("a={value}\nb=entry\n"));
    }
    store.delete("app", "a").await.unwrap();
    assert_eq!(read(&guest, "/a").await, "component\n");
}

#[tokio::test]
async fn live_config_needs_a_bucket() {
    let mut grant = grant("no-bucket");
    grant.declared = entry(
        "config",
        &["store"],
        &[("backend", "memory"), ("bukket", "app")],
    );
    let error = refused(wasm("config-reader"), "config-reader", grant).await;
    match error {
        LinkError::Interface(InterfaceError::Open { source, .. }) => {
            assert!(matches!(source, OpenError::Setting { key: "bucket", .. }));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn dropping_what_was_linked_frees_its_capabilities() {
    let owner = {
        let mut grant = grant("freed");
        grant.declared = entry("logging", &["logging"], &[]);
        let owner = Arc::downgrade(&grant.owner);
        let guest = start(shared(), "logger", grant).await;
        assert_eq!(read(&guest, "/?text=freed").await, "logged\n");
        assert!(owner.upgrade().is_some());
        owner
    };
    // The closures that were linked held it, and so does the guest's output until its tasks are gone.
    let freed = async {
        while owner.upgrade().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, freed).await.unwrap();
}
