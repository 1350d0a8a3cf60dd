//! Who asks gets the secrets of its namespace, and nothing else of the machine.

#![expect(
    clippy::unwrap_used,
    reason = "what a test cannot set up, it cannot go on from"
)]

use capabilities::plugin::{Ask, OpenError, Plugin, Settings};
use capabilities::secrets::{Error, SECRET_BYTES_MAX, SecretSource};
use plugins_local::{Environment, Files};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

async fn source(plugin: &dyn Plugin, namespace: &str) -> Result<Arc<dyn SecretSource>, OpenError> {
    let none = BTreeMap::new();
    let ask = Ask {
        namespace,
        workload: "tests",
        component: "tests",
        flat_names: false,
        settings: Settings::new(&none),
    };
    plugin.secrets(&ask).await
}

async fn found(source: &Arc<dyn SecretSource>, key: &str) -> Option<Vec<u8>> {
    let secret = source.get(key).await.unwrap();
    secret.map(|secret| secret.reveal().to_vec())
}

#[tokio::test]
async fn files_are_read_anew_and_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path());
    let here = source(&files, "team-a").await.unwrap();
    assert_eq!(found(&here, "key").await, None);
    fs::create_dir(dir.path().join("team-a")).unwrap();
    for value in [&b"one"[..], b"two\n", b"", &[0xff, 0]] {
        fs::write(dir.path().join("team-a/key"), value).unwrap();
        assert_eq!(found(&here, "key").await.as_deref(), Some(value));
    }
    let there = source(&files, "team-b").await.unwrap();
    assert_eq!(found(&there, "key").await, None);
}

#[tokio::test]
async fn files_as_an_orchestrator_mounts_them() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("ns");
    fs::create_dir_all(mount.join("..2026_11_27")).unwrap();
    fs::write(mount.join("..2026_11_27/key"), "value").unwrap();
    symlink("..2026_11_27", mount.join("..data")).unwrap();
    symlink("..data/key", mount.join("key")).unwrap();
    let here = source(&Files::new(dir.path()), "ns").await.unwrap();
    assert_eq!(found(&here, "key").await.as_deref(), Some(&b"value"[..]));
}

#[tokio::test]
async fn no_key_leads_out_of_the_namespace() {
    let dir = tempfile::tempdir().unwrap();
    for namespace in ["ns", "other"] {
        fs::create_dir(dir.path().join(namespace)).unwrap();
    }
    fs::write(dir.path().join("other/key"), "canary").unwrap();
    symlink("../other/key", dir.path().join("ns/link")).unwrap();
    symlink("../other", dir.path().join("ns/dir")).unwrap();
    let files = Files::new(dir.path());
    let here = source(&files, "ns").await.unwrap();
    for key in [
        "../other/key",
        "dir/key",
        "/etc/passwd",
        ".",
        "..",
        "",
        "a\0b",
    ] {
        assert_eq!(found(&here, key).await, None, "{key}");
    }
    for key in ["link", "dir"] {
        let refused = here.get(key).await;
        assert!(matches!(refused, Err(Error::Refused { .. })), "{key}");
    }
    for namespace in ["", "..", ".", "a/b", "../other"] {
        let refused = source(&files, namespace).await.map(drop);
        assert!(matches!(refused, Err(OpenError::Storage(_))), "{namespace}");
    }
}

#[tokio::test]
async fn a_secret_that_is_too_large_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("ns")).unwrap();
    let path = dir.path().join("ns/key");
    let here = source(&Files::new(dir.path()), "ns").await.unwrap();
    fs::write(&path, vec![b'x'; SECRET_BYTES_MAX]).unwrap();
    assert!(found(&here, "key").await.is_some());
    fs::write(&path, vec![b'x'; SECRET_BYTES_MAX + 1]).unwrap();
    assert!(matches!(here.get("key").await, Err(Error::TooLarge(_))));
}

#[tokio::test]
async fn variables_belong_to_the_namespace_in_their_name() {
    let variables = [
        ("S_ns__key", "mine"),
        ("S_team_2Da__key", "the team's"),
        ("S_ns__a__b", "also mine"),
        ("S_ns_5F__key", "of 'ns_'"),
        ("S_key", "nobody's"),
        ("PATH", "canary"),
    ];
    let variables = variables.map(|(name, value)| (name.into(), value.into()));
    let environment = Environment::new("S_", variables);
    let of = async |namespace: &'static str, key: &'static str| {
        let source = source(&environment, namespace).await.unwrap();
        let value = found(&source, key).await;
        value.map(|value| String::from_utf8(value).unwrap())
    };
    for (namespace, key, value) in [
        ("ns", "key", Some("mine")),
        ("team-a", "key", Some("the team's")),
        ("ns", "a__b", Some("also mine")),
        ("ns_", "key", Some("of 'ns_'")),
        ("ns__a", "b", None),
        ("", "key", None),
        ("ns", "PATH", None),
        ("other", "key", None),
    ] {
        assert_eq!(
            of(namespace, key).await.as_deref(),
            value,
            "{namespace} {key}"
        );
    }
}
