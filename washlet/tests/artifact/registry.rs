//! With a real registry.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Mutex;

use fleet::registry::{PASSWORD, Registry, USER};
use futures::future::join_all;
use tempfile::TempDir;
use washlet::artifact::PullPolicy::{Always, IfNotPresent, Never};
use washlet::artifact::{Digest, Error, Fetch, Progress, oci, pull, push};

use super::*;

async fn push_to(registry: &Registry, name: &str, bytes: &Bytes) -> String {
    let image = format!("{}/{name}", registry.address());
    push(&image, bytes.clone(), BTreeMap::new(), &options(None), None)
        .await
        .unwrap();
    image
}

#[tokio::test]
async fn what_is_pushed_can_be_pulled() {
    let registry = Registry::start().await.unwrap();
    let image = format!("{}/team/app:1.0", registry.address());
    let bytes = component("app", 300_000);
    let title = BTreeMap::from([(
        "org.opencontainers.image.title".to_owned(),
        "app".to_owned(),
    )]);
    let seen = Mutex::new(Vec::new());
    let progress = |now: Progress| seen.lock().unwrap().push(now);
    let digest = push(
        &image,
        bytes.clone(),
        title,
        &options(None),
        Some(&progress),
    )
    .await
    .unwrap();
    assert_eq!(
        seen.lock().unwrap().last(),
        Some(&Progress {
            done: 300_000,
            total: 300_000
        })
    );
    seen.lock().unwrap().clear();

    let pulled = pull(&image, &options(None), Some(&progress)).await.unwrap();
    assert_eq!(pulled.bytes, bytes);
    assert_eq!(pulled.manifest_digest.to_string(), digest);
    assert_eq!(
        seen.lock().unwrap().last(),
        Some(&Progress {
            done: 300_000,
            total: 300_000
        })
    );

    let base = format!("http://{}/v2/team/app", registry.address());
    let get = async |url: String| {
        let answer = reqwest::Client::new()
            .get(url)
            .header("accept", "application/vnd.oci.image.manifest.v1+json")
            .send()
            .await;
        serde_json::from_slice::<serde_json::Value>(&answer.unwrap().bytes().await.unwrap())
            .unwrap()
    };
    let manifest = get(format!("{base}/manifests/1.0")).await;
    assert_eq!(
        manifest["config"]["mediaType"],
        "application/vnd.wasm.config.v0+json"
    );
    assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
    assert_eq!(
        manifest["annotations"]["org.opencontainers.image.title"],
        "app"
    );
    assert!(manifest["annotations"]["org.opencontainers.image.created"].is_string());
    let config = get(format!(
        "{base}/blobs/{}",
        manifest["config"]["digest"].as_str().unwrap()
    ));
    let config = config.await;
    assert_eq!(
        (&config["architecture"], &config["os"]),
        (&"wasm".into(), &"wasip2".into())
    );
    assert_eq!(config["layerDigests"][0], pulled.digest.to_string());

    let refused = push(&image, "text".into(), BTreeMap::new(), &options(None), None).await;
    assert!(matches!(refused, Err(Error::NotAComponent { .. })));
}

#[tokio::test]
async fn a_hit_needs_no_registry() {
    let mut registry = Registry::start().await.unwrap();
    let bytes = component("app", 50_000);
    let image = push_to(&registry, "app:1", &bytes).await;
    let dir = TempDir::new().unwrap();
    let artifacts = open(dir.path());
    assert!(matches!(
        fetch(&artifacts, &image, Never).await,
        Err(Error::NotCached { .. })
    ));

    let first = fetch(&artifacts, &image, IfNotPresent).await.unwrap();
    assert_eq!(
        (&first.bytes, first.from_cache, first.stale),
        (&bytes, false, false)
    );
    assert_eq!(artifacts.usage().entries, 1);
    let asked = registry.requests("/v2/");
    for policy in [IfNotPresent, Never] {
        let again = fetch(&artifacts, &image, policy).await.unwrap();
        assert_eq!(
            (&again.bytes, again.from_cache, again.stale),
            (&bytes, true, false)
        );
        assert_eq!(again.manifest_digest, first.manifest_digest);
    }
    assert_eq!(registry.requests("/v2/"), asked);

    // Those who want it at the same time have the same memory.
    let all = (0..20).map(|_| fetch(&artifacts, &image, IfNotPresent));
    for again in join_all(all).await {
        assert_eq!(again.unwrap().bytes.as_ptr(), first.bytes.as_ptr());
    }

    registry.kill();
    for artifacts in [artifacts, open(dir.path())] {
        for (policy, stale) in [(IfNotPresent, false), (Never, false), (Always, true)] {
            let offline = fetch(&artifacts, &image, policy).await.unwrap();
            assert_eq!((&offline.bytes, offline.stale), (&bytes, stale));
            assert_eq!(offline.digest, first.digest);
        }
    }
    let other = format!("{}/other:1", registry.address());
    let error = cause(fetch(&open(dir.path()), &other, IfNotPresent).await);
    assert!(matches!(*error, oci::Error::Unreachable { .. }));
}

#[tokio::test]
async fn always_downloads_only_what_changed() {
    let registry = Registry::start().await.unwrap();
    let old = component("old", 10_000);
    let image = push_to(&registry, "app:1", &old).await;
    let dir = TempDir::new().unwrap();
    let artifacts = open(dir.path());
    assert!(!fetch(&artifacts, &image, Always).await.unwrap().from_cache);
    assert!(fetch(&artifacts, &image, Always).await.unwrap().from_cache);
    assert_eq!(registry.requests("\"GET /v2/app/blobs/"), 1);
    assert_eq!(registry.requests("\"GET /v2/app/manifests/"), 1);

    let new = component("new", 10_000);
    push_to(&registry, "app:1", &new).await;
    assert_eq!(
        fetch(&artifacts, &image, IfNotPresent).await.unwrap().bytes,
        old
    );
    assert_eq!(fetch(&artifacts, &image, Always).await.unwrap().bytes, new);
    assert_eq!(
        fetch(&artifacts, &image, IfNotPresent).await.unwrap().bytes,
        new
    );
    // Another name for the same bytes.
    let alias = push_to(&registry, "app:2", &new).await;
    assert!(
        fetch(&artifacts, &alias, IfNotPresent)
            .await
            .unwrap()
            .from_cache
    );
    assert_eq!(registry.requests("\"GET /v2/app/blobs/"), 2);
    // A deleted image is not "unreachable".
    let gone = format!("{}/app:3", registry.address());
    let error = cause(fetch(&artifacts, &gone, Always).await);
    assert!(matches!(*error, oci::Error::NotFound { .. }));
}

#[tokio::test]
async fn starts_at_the_same_time_pull_once() {
    let registry = Registry::start().await.unwrap();
    let bytes = component("app", 2_000_000);
    let image = push_to(&registry, "app:1", &bytes).await;
    let dir = TempDir::new().unwrap();
    let artifacts = open(dir.path());
    let all = (0..20).map(|_| {
        let seen = Mutex::new(Progress::default());
        let (artifacts, image) = (&artifacts, &image);
        async move {
            let progress = |now| *seen.lock().unwrap() = now;
            let progress: &(dyn Fn(Progress) + Send + Sync) = &progress;
            let fetch = Fetch {
                image,
                policy: IfNotPresent,
                credentials: None,
                progress: Some(progress),
            };
            artifacts.fetch(fetch).await
        }
    });
    for artifact in join_all(all).await {
        assert_eq!(artifact.unwrap().bytes, bytes);
    }
    assert_eq!(registry.requests("\"GET /v2/app/manifests/"), 1);
    assert_eq!(registry.requests("\"GET /v2/app/blobs/"), 1);
}

#[tokio::test]
async fn who_gives_up_does_not_stop_the_others() {
    let registry = Registry::start().await.unwrap();
    let bytes = component("app", 2_000_000);
    let image = push_to(&registry, "app:1", &bytes).await;
    let dir = TempDir::new().unwrap();
    let artifacts = open(dir.path());
    let mut first = Box::pin(fetch(&artifacts, &image, Always));
    assert!(futures::poll!(&mut first).is_pending());
    let second = fetch(&artifacts, &image, Always);
    let mut second = Box::pin(second);
    // Both are aboard before the first leaves.
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while registry.requests("\"GET /v2/app/manifests/") == 0 {
        assert!(tokio::time::Instant::now() < until);
        assert!(futures::poll!(&mut first).is_pending());
        if let std::task::Poll::Ready(early) = futures::poll!(&mut second) {
            panic!("{early:?}");
        }
        tokio::task::yield_now().await;
    }
    drop(first);
    assert_eq!(second.await.unwrap().bytes, bytes);
    assert_eq!(registry.requests("\"GET /v2/app/blobs/"), 1);
}

#[tokio::test]
async fn damage_in_the_cache_is_pulled_again() {
    let mut registry = Registry::start().await.unwrap();
    let bytes = component("app", 10_000);
    let image = push_to(&registry, "app:1", &bytes).await;
    let dir = TempDir::new().unwrap();
    let artifacts = open(dir.path());
    let artifact = fetch(&artifacts, &image, IfNotPresent).await.unwrap();
    let blob = dir.path().join("blobs/sha256").join(artifact.digest.hex());

    let mut damaged = fs::read(&blob).unwrap();
    damaged[9_000] ^= 1;
    fs::write(&blob, &damaged).unwrap();
    // To know what the image means it is not read: what runs already may be started again.
    drop(artifact);
    let request = Fetch {
        image: &image,
        policy: IfNotPresent,
        credentials: None,
        progress: None,
    };
    let resolved = artifacts.resolve(request).await.unwrap();
    assert_eq!(resolved.digest, Digest::of(&bytes));
    assert_eq!(registry.requests("\"GET /v2/app/blobs/"), 1);
    let again = resolved.read().await.unwrap();
    assert_eq!((&again.bytes, again.from_cache), (&bytes, false));
    drop(again);
    assert_eq!(
        fs::read_dir(dir.path().join("quarantine")).unwrap().count(),
        1
    );

    fs::write(&blob, &damaged[..100]).unwrap();
    registry.kill();
    assert!(matches!(
        fetch(&artifacts, &image, Never).await,
        Err(Error::NotCached { .. })
    ));
    let error = cause(fetch(&artifacts, &image, Always).await);
    assert!(matches!(*error, oci::Error::Unreachable { .. }));
}

/// Pushes `app:1` with the registry's own user.
async fn push_to_private(registry: &Registry, bytes: &Bytes) -> String {
    let image = format!("{}/app:1", registry.address());
    let login = options(credentials(USER, PASSWORD));
    push(&image, bytes.clone(), BTreeMap::new(), &login, None)
        .await
        .unwrap();
    image
}

#[tokio::test]
async fn a_private_image_is_for_those_with_its_secret() {
    let mut registry = Registry::start_with_login().await.unwrap();
    let bytes = component("secret", 10_000);
    let image = push_to_private(&registry, &bytes).await;
    let dir = TempDir::new().unwrap();
    let artifacts = open(dir.path());
    let mine = || credentials(USER, PASSWORD);
    let strangers = [
        None,
        credentials("", ""),
        credentials(USER, "wrong"),
        credentials("x", "y"),
    ];

    let pulled = fetch_as(&artifacts, &image, IfNotPresent, mine())
        .await
        .unwrap();
    assert_eq!(pulled.bytes, bytes);
    let pinned = format!("{image}@{}", pulled.manifest_digest.unwrap());
    assert_eq!(
        fetch_as(&artifacts, &pinned, IfNotPresent, mine())
            .await
            .unwrap()
            .bytes,
        bytes
    );
    for stranger in strangers.clone() {
        let known = stranger
            .as_ref()
            .is_some_and(|given| !given.username.is_empty());
        for image in [&image, &pinned] {
            for policy in [Always, IfNotPresent] {
                let error = cause(fetch_as(&artifacts, image, policy, stranger.clone()).await);
                assert!(
                    matches!(&*error, oci::Error::Denied { with_credentials, .. }
                    if *with_credentials == known)
                );
            }
            let never = fetch_as(&artifacts, image, Never, stranger.clone()).await;
            assert!(matches!(never, Err(Error::NotCached { .. })));
        }
    }
    registry.kill();
    for policy in [Always, IfNotPresent, Never] {
        assert_eq!(
            fetch_as(&artifacts, &image, policy, mine())
                .await
                .unwrap()
                .bytes,
            bytes
        );
        for stranger in strangers.clone() {
            assert!(
                fetch_as(&artifacts, &image, policy, stranger)
                    .await
                    .is_err()
            );
        }
    }
}

/// Set for the process that has a docker configuration.
const LOGGED_IN: &str = "ARTIFACT_TEST_IMAGE";

#[tokio::test]
async fn docker_login_is_used() {
    if let Some(image) = std::env::var_os(LOGGED_IN) {
        let dir = TempDir::new().unwrap();
        let artifacts = open(dir.path());
        let image = image.into_string().unwrap();
        // An empty pull secret is none.
        let artifact = fetch_as(&artifacts, &image, IfNotPresent, credentials("", "")).await;
        assert_eq!(artifact.unwrap().bytes, component("secret", 10_000));
        return;
    }
    let registry = Registry::start_with_login().await.unwrap();
    let image = push_to_private(&registry, &component("secret", 10_000)).await;
    let address = registry.address();
    let dir = TempDir::new().unwrap();
    let helper = dir.path().join("docker-credential-fleet");
    let answer = format!(
        "{{\"ServerURL\":\"{address}\",\"Username\":\"{USER}\",\"Secret\":\"{PASSWORD}\"}}"
    );
    fs::write(
        &helper,
        format!("#!/bin/sh\nread server\n[ $server = {address} ] && echo '{answer}'\n"),
    )
    .unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let request = reqwest::Client::new().get("http://localhost");
    let request = request.basic_auth(USER, Some(PASSWORD)).build().unwrap();
    let basic = request.headers()["authorization"].to_str().unwrap();
    let auth = basic.strip_prefix("Basic ").unwrap();
    for (config, works) in [
        (
            serde_json::json!({ "auths": { address.as_str(): { "auth": auth } } }),
            true,
        ),
        (
            serde_json::json!({ "credHelpers": { address.as_str(): "fleet" } }),
            true,
        ),
        (serde_json::json!({ "credsStore": "fleet" }), true),
        (serde_json::json!({ "credsStore": "no-such-helper" }), false),
        (
            serde_json::json!({ "auths": { address.as_str(): { "identitytoken": "x" } } }),
            false,
        ),
        (
            serde_json::json!({ "auths": { "elsewhere.example": { "auth": auth } } }),
            false,
        ),
        (serde_json::json!([]), false),
    ] {
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let path = format!("{}:{}", dir.path().display(), "/usr/bin:/bin");
        let ran = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "registry::docker_login_is_used"])
            .env(LOGGED_IN, &image)
            .env("DOCKER_CONFIG", dir.path())
            .env("PATH", path)
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(ran.status.success(), works, "{config}: {output}");
        assert!(works || output.contains("Denied"), "{output}");
    }
}
