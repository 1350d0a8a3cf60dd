//! With registries that lie, stall, crash and pry.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use capabilities::report;
use futures::StreamExt;
use http::{Response, StatusCode};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use washlet::artifact::PullPolicy::{Always, IfNotPresent, Never};
use washlet::artifact::{Digest, Error, oci};

use super::served::*;
use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

async fn fails(served: &Served) -> Arc<oci::Error> {
    let dir = TempDir::new().unwrap();
    let mut config = config(dir.path());
    config.pull_timeout = Duration::from_millis(300);
    let artifacts = open_with(config);
    let error = cause(fetch(&artifacts, &served.image(), IfNotPresent).await);
    assert_eq!(artifacts.usage().entries, 0);
    assert_eq!(
        std::fs::read_dir(dir.path().join("tmp")).unwrap().count(),
        0,
        "left behind"
    );
    error
}

#[tokio::test]
async fn other_bytes_are_refused() {
    let bytes = component("app", 5_000);
    let served = serving(bytes, |_| Some(full(component("bad", 5_000)))).await;
    assert!(matches!(
        *fails(&served).await,
        oci::Error::Mismatch {
            what: "artifact",
            ..
        }
    ));
    assert_eq!(served.count("/blobs/"), 1, "asking again does not help");
}

#[tokio::test]
async fn another_manifest_than_named_is_refused() {
    let bytes = component("app", 5_000);
    let served = serving(bytes, |_| None).await;
    let dir = TempDir::new().unwrap();
    let image = format!("{}@{}", served.image(), Digest::of(b"expected"));
    let error = cause(fetch(&open(dir.path()), &image, IfNotPresent).await);
    assert!(matches!(
        *error,
        oci::Error::Mismatch {
            what: "manifest",
            ..
        }
    ));
}

#[tokio::test]
async fn a_short_body_is_refused() {
    let served = serving(component("app", 5_000), |_| {
        Some(full(component("app", 4_000)))
    })
    .await;
    let error = fails(&served).await;
    assert!(
        matches!(
            *error,
            oci::Error::Truncated {
                received: 4_000,
                size: 5_000
            }
        ),
        "{error:?}"
    );
    assert_eq!(served.count("/blobs/"), 3);
}

#[tokio::test]
async fn an_endless_body_ends() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let served = serving(component("app", 100_000), move |_| {
        let counter = counter.clone();
        let chunk = Bytes::from(vec![0; 10_000]);
        Some(stream(futures::stream::repeat(chunk).map(move |chunk| {
            counter.fetch_add(chunk.len(), Ordering::Relaxed);
            Ok(chunk)
        })))
    })
    .await;
    let error = fails(&served).await;
    assert!(matches!(
        *error,
        oci::Error::TooLarge {
            what: "artifact",
            max: 100_000,
            ..
        }
    ));
    assert_eq!(served.count("/blobs/"), 1);
    assert!(sent.load(Ordering::Relaxed) < 64 << 20);
}

#[tokio::test]
async fn too_large_is_refused_before_downloading() {
    let digest = Digest::of(b"large");
    let served = Served::start(move |_| Some(full(manifest(digest, 100 << 20)))).await;
    let error = fails(&served).await;
    assert!(matches!(
        *error,
        oci::Error::TooLarge {
            what: "artifact",
            max: 8_388_608,
            ..
        }
    ));
    assert_eq!(served.count("/blobs/"), 0);
}

#[tokio::test]
async fn endless_manifests_tokens_and_errors_end() {
    let endless = || stream(futures::stream::repeat(Bytes::from(vec![b' '; 65_536])).map(Ok));
    let served = Served::start(move |_| Some(endless())).await;
    assert!(matches!(
        *fails(&served).await,
        oci::Error::TooLarge {
            what: "manifest",
            ..
        }
    ));

    let served = Served::start(move |_| {
        let mut error = endless();
        *error.status_mut() = StatusCode::BAD_REQUEST;
        Some(error)
    })
    .await;
    let error = fails(&served).await;
    assert!(
        matches!(&*error, oci::Error::Status { code: None, .. }),
        "{error:?}"
    );

    let served = Served::start(move |request| {
        if request.uri().path() == "/token" {
            return Some(endless());
        }
        Some(challenge(request.headers()["host"].to_str().unwrap()))
    })
    .await;
    assert!(matches!(
        *fails(&served).await,
        oci::Error::TooLarge { what: "token", .. }
    ));
}

fn challenge(host: &str) -> Response<Body> {
    let mut response = status(StatusCode::UNAUTHORIZED);
    let value = format!("Bearer realm=\"http://{host}/token\",service=\"a, b\",scope=\"x\"");
    response
        .headers_mut()
        .insert("www-authenticate", value.parse().unwrap());
    response
}

#[tokio::test]
async fn redirects_end() {
    let served = Served::start(|request| {
        let mut answer = status(StatusCode::TEMPORARY_REDIRECT);
        answer
            .headers_mut()
            .insert("location", request.uri().path().parse().unwrap());
        Some(answer)
    })
    .await;
    let error = fails(&served).await;
    assert!(matches!(&*error, oci::Error::Unreachable { source, .. } if source.is_redirect()));
    assert!(served.count("/") <= 6);
}

#[tokio::test]
async fn silence_and_dripping_are_no_progress() {
    let served = Served::start(|_| None).await;
    let error = timeout(DEADLINE, fails(&served)).await.unwrap();
    assert!(matches!(*error, oci::Error::Stalled { .. }));
    assert_eq!(served.count("/manifests/"), 3);

    // The second is 20 KiB within the timeout, which would take minutes for all of it.
    for (size, drop) in [(5_000, 1), (8 << 20, 1_400)] {
        let layer = Digest::of(b"of what never arrives");
        let served = Served::start(move |request| {
            if request.uri().path().contains("/manifests/") {
                return Some(full(manifest(layer, size)));
            }
            let tick = tokio::time::interval(Duration::from_millis(20));
            let drip = tokio_stream(tick).map(move |()| Ok(Bytes::from(vec![0; drop])));
            Some(stream(drip))
        })
        .await;
        let error = timeout(DEADLINE, fails(&served)).await.unwrap();
        assert!(matches!(*error, oci::Error::Stalled { .. }), "{error:?}");
    }
}

fn tokio_stream(tick: tokio::time::Interval) -> impl futures::Stream<Item = ()> + Send {
    futures::stream::unfold(tick, |mut tick| async {
        tick.tick().await;
        Some(((), tick))
    })
}

#[tokio::test]
async fn nonsense_is_refused() {
    let digest = Digest::of(b"x");
    let text = |text: String| Served::start(move |_| Some(full(text.clone())));
    let error = fails(&text("{".to_owned()).await).await;
    assert!(matches!(*error, oci::Error::Protocol { .. }));
    let error = fails(&text("{}".to_owned()).await).await;
    assert!(matches!(*error, oci::Error::NoLayers));
    let error = fails(&text(manifest_of("application/x-tar\u{7}", digest, 1)).await).await;
    assert!(matches!(&*error, oci::Error::LayerType(kind) if kind == "application/x-tar\\u{7}"));
    let mut wild = serde_json::from_str::<serde_json::Value>(&manifest(digest, 1)).unwrap();
    wild["layers"][0]["digest"] = "sha256:../../../etc/passwd".into();
    let error = fails(&text(wild.to_string()).await).await;
    assert!(matches!(*error, oci::Error::Protocol { .. }));

    let page = Bytes::from_static(b"<html>sign in, please</html>");
    let blob = page.clone();
    let served = serving(page, move |_| Some(full(blob.clone()))).await;
    let dir = TempDir::new().unwrap();
    let artifacts = open(dir.path());
    let result = fetch(&artifacts, &served.image(), IfNotPresent).await;
    assert!(matches!(result, Err(Error::NotAComponent { .. })));
    assert_eq!(artifacts.usage().entries, 0);
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was() {
    let bytes = component("app", 400_000);
    let blob = bytes.clone();
    let served = serving(bytes.clone(), move |request| {
        let Some(range) = request.headers().get("range") else {
            let half = futures::stream::iter([Ok(blob.slice(..200_000))]);
            return Some(stream(half));
        };
        let start: usize = range.to_str().unwrap()[6..]
            .trim_end_matches('-')
            .parse()
            .unwrap();
        let mut answer = full(blob.slice(start..));
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
        answer
            .headers_mut()
            .insert("content-range", range.parse().unwrap());
        Some(answer)
    })
    .await;
    let dir = TempDir::new().unwrap();
    let artifact = fetch(&open(dir.path()), &served.image(), IfNotPresent)
        .await
        .unwrap();
    assert_eq!(artifact.bytes, bytes);
    assert_eq!(served.count("/blobs/"), 2);
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_and_fallen_back_from() {
    let bytes = component("app", 1_000);
    let (text, blob) = (manifest(Digest::of(&bytes), bytes.len()), bytes.clone());
    let state = Arc::new(AtomicUsize::new(0));
    let now = state.clone();
    let served = Served::start(move |request| {
        Some(match now.fetch_add(1, Ordering::Relaxed) {
            0 => status(StatusCode::SERVICE_UNAVAILABLE),
            1 => status(StatusCode::TOO_MANY_REQUESTS),
            1000.. => status(StatusCode::BAD_GATEWAY),
            500.. => status(StatusCode::FORBIDDEN),
            _ if request.uri().path().contains("/manifests/") => full(text.clone()),
            _ => full(blob.clone()),
        })
    })
    .await;
    let dir = TempDir::new().unwrap();
    let artifacts = open(dir.path());
    let artifact = fetch(&artifacts, &served.image(), Always).await.unwrap();
    assert!(!artifact.from_cache && !artifact.stale);
    state.store(1000, Ordering::Relaxed);
    let artifact = fetch(&artifacts, &served.image(), Always).await.unwrap();
    assert!(artifact.from_cache && artifact.stale);
    // Refused is not unreachable.
    state.store(500, Ordering::Relaxed);
    let error = cause(fetch(&artifacts, &served.image(), Always).await);
    assert!(matches!(*error, oci::Error::Denied { .. }));
}

#[tokio::test]
async fn the_wasm_manifest_of_an_index_is_used() {
    let bytes = component("app", 1_000);
    let (child, blob) = (manifest(Digest::of(&bytes), bytes.len()), bytes.clone());
    let child_digest = Digest::of(child.as_bytes());
    let entry = |architecture: &str, digest: Digest| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1,
            "platform": { "architecture": architecture, "os": "wasip2" },
        })
    };
    let other = Digest::of(b"other");
    for (entries, works) in [
        (
            vec![entry("amd64", other), entry("wasm", child_digest)],
            true,
        ),
        (vec![entry("unknown", child_digest)], true),
        (
            vec![entry("wasm", other), entry("wasm", child_digest)],
            false,
        ),
        (vec![entry("amd64", other), entry("arm64", other)], false),
    ] {
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": entries }).to_string();
        let (child, blob) = (child.clone(), blob.clone());
        let served = Served::start(move |request| match request.uri().path() {
            path if path.ends_with("/manifests/1") => Some(full(index.clone())),
            path if path.ends_with(&child_digest.to_string()) => Some(full(child.clone())),
            _ => Some(full(blob.clone())),
        })
        .await;
        if works {
            let dir = TempDir::new().unwrap();
            let artifact = fetch(&open(dir.path()), &served.image(), Always)
                .await
                .unwrap();
            assert_eq!(artifact.bytes, bytes);
        } else {
            assert!(matches!(*fails(&served).await, oci::Error::Index));
        }
    }
}

#[tokio::test]
async fn secrets_stay_with_the_registry_they_are_for() {
    let bytes = component("app", 1_000);
    let blob = bytes.clone();
    let storage = Served::start(move |_| Some(full(blob.clone()))).await;
    let place = format!("http://{}/signed?key=of-the-storage", storage.address);
    let text = manifest(Digest::of(&bytes), bytes.len());
    let served = Served::start(move |request| {
        let shown = request
            .headers()
            .get("authorization")
            .map(|value| value.to_str().unwrap());
        Some(match (request.uri().path(), shown) {
            ("/token", Some("Basic dTpodW50ZXIy")) => full("{\"token\":\"t1\"}"),
            (path, Some("Bearer t1")) if path.contains("/manifests/") => full(text.clone()),
            (_, Some("Bearer t1")) => {
                let mut answer = status(StatusCode::TEMPORARY_REDIRECT);
                answer
                    .headers_mut()
                    .insert("location", place.parse().unwrap());
                answer
            }
            _ => challenge(request.headers()["host"].to_str().unwrap()),
        })
    })
    .await;
    let dir = TempDir::new().unwrap();
    let artifacts = open(dir.path());
    let secret = credentials("u", "hunter2");
    let artifact = fetch_as(&artifacts, &served.image(), Always, secret)
        .await
        .unwrap();
    assert_eq!(artifact.bytes, bytes);
    let token = served
        .requests
        .lock()
        .unwrap()
        .iter()
        .find(|r| r.1.contains("/token"))
        .cloned();
    assert_eq!(
        token.unwrap().1,
        "/token?scope=repository%3Aapp%3Apull&service=a%2C+b"
    );
    assert!(
        storage
            .requests
            .lock()
            .unwrap()
            .iter()
            .all(|request| request.2.is_none())
    );
}

#[tokio::test]
async fn errors_do_not_repeat_secrets() {
    let served = Served::start(|request| {
        let shown = request.headers().get("authorization");
        let Some(shown) = shown.map(|value| value.to_str().unwrap().to_owned()) else {
            let mut answer = status(StatusCode::UNAUTHORIZED);
            answer
                .headers_mut()
                .insert("www-authenticate", "Basic realm=\"x\"".parse().unwrap());
            return Some(answer);
        };
        let error = serde_json::json!({ "code": shown, "message": shown, "detail": shown });
        let mut answer = full(serde_json::json!({ "errors": [error] }).to_string());
        *answer.status_mut() = StatusCode::IM_A_TEAPOT;
        Some(answer)
    })
    .await;
    let dir = TempDir::new().unwrap();
    let secret = credentials("u", "hunter2");
    assert!(!format!("{secret:?}").contains("hunter2"));
    let error = fetch_as(&open(dir.path()), &served.image(), Always, secret)
        .await
        .unwrap_err();
    let text = format!("{} {error:?}", report(&error));
    assert!(text.contains("418"), "{text}");
    assert!(
        !text.contains("hunter2") && !text.contains("dTpodW50ZXIy"),
        "{text}"
    );
}

#[tokio::test]
async fn naming_a_strangers_bytes_does_not_give_them() {
    let bytes = component("secret", 1_000);
    let (text, blob) = (manifest(Digest::of(&bytes), bytes.len()), bytes.clone());
    let private = Served::start(move |request| {
        Some(match request.headers().get("authorization") {
            None => {
                let mut answer = status(StatusCode::UNAUTHORIZED);
                answer
                    .headers_mut()
                    .insert("www-authenticate", "Basic".parse().unwrap());
                answer
            }
            _ if request.uri().path().contains("/manifests/") => full(text.clone()),
            _ => full(blob.clone()),
        })
    })
    .await;
    let dir = TempDir::new().unwrap();
    let artifacts = open(dir.path());
    let mine = credentials("u", "hunter2");
    fetch_as(&artifacts, &private.image(), Always, mine.clone())
        .await
        .unwrap();

    let thief = serving(bytes.clone(), |_| Some(status(StatusCode::NOT_FOUND))).await;
    let error = cause(fetch(&artifacts, &thief.image(), IfNotPresent).await);
    assert!(matches!(*error, oci::Error::NotFound { .. }));
    // The owner needs no second download under another name.
    let copy = format!("{}/copy:2", private.address);
    assert!(
        fetch_as(&artifacts, &copy, IfNotPresent, mine)
            .await
            .unwrap()
            .from_cache
    );
}

#[tokio::test]
async fn own_authorities_are_trusted_and_plain_http_is_named() {
    let bytes = component("app", 1_000);
    let (text, blob) = (manifest(Digest::of(&bytes), bytes.len()), bytes.clone());
    let answer = move |request: &http::Request<hyper::body::Incoming>| {
        let manifest = request.uri().path().contains("/manifests/");
        Some(if manifest {
            full(text.clone())
        } else {
            full(blob.clone())
        })
    };
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let served = Served::start_with(Some(TlsAcceptor::from(Arc::new(tls))), answer.clone()).await;
    let image = format!("localhost:{}/app:1", served.address.port());

    let dir = TempDir::new().unwrap();
    let mut config = config(dir.path());
    config.allow_insecure = false;
    let error = cause(fetch(&open_with(config.clone()), &image, Always).await);
    assert!(matches!(*error, oci::Error::Unreachable { .. }));
    let authority = dir.path().join("ca.pem");
    std::fs::write(&authority, made.cert.pem()).unwrap();
    config.ca = vec![authority.clone()];
    let artifacts = open_with(config.clone());
    assert_eq!(
        fetch(&artifacts, &image, Always).await.unwrap().bytes,
        bytes
    );

    let plain = Served::start(answer).await;
    let error = cause(fetch(&artifacts, &plain.image(), Always).await);
    assert!(matches!(&*error, oci::Error::PlainHttp(_)), "{error:?}");

    std::fs::write(&authority, "no certificate").unwrap();
    let refused = washlet::artifact::Artifacts::open(config, &Limits::default());
    assert!(matches!(refused, Err(Error::Client(_))));
}

#[tokio::test]
async fn files_are_for_hosts_that_allow_them() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("app.wasm");
    std::fs::write(&path, component("app", 100)).unwrap();
    let image = format!("file://{}", path.display());
    let refused = fetch(&open(dir.path()), &image, IfNotPresent).await;
    assert!(matches!(refused, Err(Error::FileRefused { .. })));

    let mut config = config(dir.path());
    config.allow_file = true;
    let artifacts = open_with(config);
    let artifact = fetch(&artifacts, &image, Never).await.unwrap();
    assert_eq!(artifact.digest, Digest::of(&component("app", 100)));
    for (other, size) in [("module.wasm", 7), ("large.wasm", 9 << 20)] {
        let path = dir.path().join(other);
        std::fs::write(&path, &component("x", 9 << 20)[..size]).unwrap();
        let image = format!("file://{}", path.display());
        assert!(
            fetch(&artifacts, &image, IfNotPresent).await.is_err(),
            "{other}"
        );
    }
    let device = fetch(&artifacts, "file:///dev/zero", IfNotPresent).await;
    assert!(matches!(device, Err(Error::File { .. })));
}

/// One megabyte of `name` each, from a registry that never sends the bytes of "stuck".
async fn large_ones(dir: &TempDir) -> (Served, Artifacts) {
    let blob = |name: &str| component(name, 1 << 20);
    let served = Served::start(move |request| {
        let path = request.uri().path();
        let names = ["a", "b", "stuck"];
        if let Some((_, image)) = path.split_once("/v2/")
            && let Some((name, _)) = image.split_once("/manifests/")
        {
            return Some(full(manifest(Digest::of(&blob(name)), 1 << 20)));
        }
        let asked = |name: &&&str| path.contains(&Digest::of(&blob(name)).hex());
        match names.iter().find(asked) {
            Some(&"stuck") | None => None,
            Some(name) => Some(full(blob(name))),
        }
    })
    .await;
    let mut config = config(dir.path());
    config.budget_bytes = 3 << 19;
    (served, open_with(config))
}

#[tokio::test]
async fn the_disk_is_never_fuller_than_the_budget() {
    let dir = TempDir::new().unwrap();
    let (served, artifacts) = large_ones(&dir).await;
    let image = |name: &str| format!("{}/{name}:1", served.address);
    let a = fetch(&artifacts, &image("a"), IfNotPresent).await.unwrap();
    let error = fetch(&artifacts, &image("b"), IfNotPresent)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error:?}");
    let text = report(&error);
    for part in [&image("b"), "1572864 bytes", "--artifact-budget"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(served.count(&component_digest("b")), 0, "not downloaded");

    // What no workload uses makes room, however fresh.
    drop(a);
    fetch(&artifacts, &image("b"), IfNotPresent).await.unwrap();
    assert_eq!(artifacts.usage().bytes, 1 << 20);
    assert!(matches!(
        fetch(&artifacts, &image("a"), Never).await,
        Err(Error::NotCached { .. })
    ));
}

#[tokio::test]
async fn downloads_at_the_same_time_share_the_budget() {
    let dir = TempDir::new().unwrap();
    let (served, artifacts) = large_ones(&dir).await;
    let image = |name: &str| format!("{}/{name}:1", served.address);
    let stuck = image("stuck");
    let mut stuck = Box::pin(fetch(&artifacts, &stuck, IfNotPresent));
    let asked = async {
        while served.count(&component_digest("stuck")) == 0 {
            assert!(futures::poll!(&mut stuck).is_pending());
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, asked).await.unwrap();
    let error = fetch(&artifacts, &image("a"), IfNotPresent).await;
    assert!(matches!(error, Err(Error::NoRoom { .. })), "{error:?}");
    drop(stuck);
    fetch(&artifacts, &image("a"), IfNotPresent).await.unwrap();
}

fn component_digest(name: &str) -> String {
    Digest::of(&component(name, 1 << 20)).to_string()
}
