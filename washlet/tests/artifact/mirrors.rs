//! What is different with single registries: authorities, plain HTTP, credentials, mirrors. All of them are
//! real, also the one that lies: what it has on disk was changed behind its back.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use capabilities::report;
use fleet::registry::{PASSWORD, Registry, USER};
use fleet::wait::{SOON, until};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use washlet::artifact::PullPolicy::{Always, IfNotPresent, Never};
use washlet::artifact::{Digest, Error, Mirror, RegistryConfig, RegistryCredentials, oci, push};

use super::*;

/// A registry over TLS with a certificate that only the authority in `ca.pem` vouches for.
async fn private(dir: &Path) -> (Registry, PathBuf) {
    let mut params = CertificateParams::new([]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer: &Issuer<'_, _> = &authority;
    let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let cert = params.signed_by(&key, issuer).unwrap();
    let [ca, cert_file, key_file] = ["ca.pem", "cert.pem", "key.pem"].map(|name| dir.join(name));
    fs::write(&ca, authority.pem()).unwrap();
    fs::write(&cert_file, cert.pem()).unwrap();
    fs::write(&key_file, key.serialize_pem()).unwrap();
    let registry = Registry::start_with_tls(&cert_file, &key_file, false);
    (registry.await.unwrap(), ca)
}

/// What is said about registries: `(address, config)`.
fn said(all: &[(&Registry, RegistryConfig)]) -> Registries {
    let all = all.iter();
    all.map(|(registry, config)| (registry.address().parse().unwrap(), config.clone()))
        .collect()
}

fn plain() -> RegistryConfig {
    RegistryConfig {
        plain_http: Some(true),
        ..RegistryConfig::default()
    }
}

fn mirrored(mirrors: &[String]) -> RegistryConfig {
    RegistryConfig {
        mirrors: mirrors
            .iter()
            .map(|mirror| mirror.parse::<Mirror>().unwrap())
            .collect(),
        ..plain()
    }
}

/// HTTPS, except for what `registries` say.
fn open_secure(dir: &Path, registries: Registries) -> Artifacts {
    open_with(ArtifactConfig {
        allow_insecure: false,
        registries,
        ..config(dir)
    })
}

/// Pushes to `registry`, whichever way it is spoken to; gives the manifest's digest.
async fn put(registry: &Registry, name: &str, bytes: &Bytes, registries: &Registries) -> String {
    let login = credentials(USER, PASSWORD);
    let options = RegistryOptions {
        allow_insecure: false,
        registries: registries.clone(),
        ..options(login)
    };
    let image = format!("{}/{name}", registry.address());
    // The same manifest everywhere.
    let created = "org.opencontainers.image.created".to_owned();
    let annotations = BTreeMap::from([(created, "2026-01-01T00:00:00Z".to_owned())]);
    let pushed = push(&image, bytes.clone(), annotations, &options, None);
    pushed.await.unwrap()
}

/// It has logged a request, which it does after its answer.
async fn asked(registry: &Registry, needle: &str) {
    until(SOON, needle, async || {
        (registry.requests(needle) > 0).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn each_registry_is_spoken_to_in_its_own_way() {
    let dir = TempDir::new().unwrap();
    let (private, ca) = private(dir.path()).await;
    let open = Registry::start().await.unwrap();
    let trusted = RegistryConfig {
        ca: vec![ca],
        ..RegistryConfig::default()
    };
    let registries = said(&[(&private, trusted.clone()), (&open, plain())]);
    let bytes = component("app", 10_000);
    let artifacts = open_secure(&dir.path().join("cache"), registries.clone());
    for registry in [&private, &open] {
        put(registry, "app:1", &bytes, &registries).await;
        let image = format!("{}/app:1", registry.address());
        let artifact = fetch(&artifacts, &image, Always).await.unwrap();
        assert_eq!(artifact.bytes, bytes);
    }
    // What is said of one is not said of others.
    let none = open_secure(&dir.path().join("none"), Registries::new());
    let image = format!("{}/app:1", private.address());
    let error = cause(fetch(&none, &image, Always).await);
    assert!(matches!(*error, oci::Error::Unreachable { .. }), "{error}");
    let image = format!("{}/app:1", open.address());
    let error = cause(fetch(&none, &image, Always).await);
    assert!(error.to_string().contains("plainHttp: true"), "{error}");

    let broken = RegistryConfig {
        ca: vec![dir.path().join("key.pem")],
        ..trusted
    };
    let config = ArtifactConfig {
        registries: said(&[(&private, broken)]),
        ..config(dir.path())
    };
    let refused = Artifacts::open(config, &Limits::default());
    assert!(matches!(refused, Err(Error::Client(_))));
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_checked() {
    let dir = TempDir::new().unwrap();
    let (mut registry, ca) = private(dir.path()).await;
    let (mut down, lying, mut good) = (
        Registry::start().await.unwrap(),
        Registry::start().await.unwrap(),
        Registry::start().await.unwrap(),
    );
    let of_registry = RegistryConfig {
        ca: vec![ca],
        plain_http: None,
        ..mirrored(&[
            down.address(),
            lying.address(),
            format!("{}/hub", good.address()),
        ])
    };
    let registries = said(&[
        (&registry, of_registry),
        (&down, plain()),
        (&lying, plain()),
        (&good, plain()),
    ]);
    let bytes = component("app", 10_000);
    let digest = put(&registry, "team/app:1", &bytes, &registries).await;
    put(&lying, "team/app:1", &bytes, &registries).await;
    put(&good, "hub/team/app:1", &bytes, &registries).await;
    down.kill();
    // The same length, another content.
    let layer = lying.blob(&Digest::of(&bytes).to_string());
    fs::write(layer, component("bad", 10_000)).unwrap();

    let image = format!("{}/team/app:1", registry.address());
    let artifacts = open_secure(&dir.path().join("cache"), registries.clone());
    let artifact = fetch(&artifacts, &image, Always).await.unwrap();
    assert_eq!(artifact.bytes, bytes);
    asked(&lying, "\"GET /v2/team/app/blobs/").await;
    asked(&good, "\"GET /v2/hub/team/app/blobs/").await;
    for what in ["manifests", "blobs"] {
        let asked = registry.requests(&format!("\"GET /v2/team/app/{what}/"));
        assert_eq!(asked, 0, "{what} of the registry, though a mirror has it");
    }

    // A pinned image: a mirror that changes the manifest is found out.
    let pinned = format!("{}/team/app@{digest}", registry.address());
    let manifest = lying.blob(&digest);
    let changed = fs::read_to_string(&manifest).unwrap() + " ";
    fs::write(manifest, changed).unwrap();
    let artifacts = open_secure(&dir.path().join("pinned"), registries.clone());
    let artifact = fetch(&artifacts, &pinned, Always).await.unwrap();
    assert_eq!(
        (artifact.bytes, artifact.manifest_digest),
        (bytes.clone(), Some(digest))
    );
    asked(&good, "\"GET /v2/hub/team/app/manifests/sha256:").await;
    assert_eq!(registry.requests("\"GET /v2/team/app/manifests/sha256:"), 0);

    // Without good mirrors the registry itself is asked, and without it each is named.
    good.kill();
    let artifacts = open_secure(&dir.path().join("alone"), registries.clone());
    assert_eq!(
        fetch(&artifacts, &image, Always).await.unwrap().bytes,
        bytes
    );
    asked(&registry, "\"GET /v2/team/app/blobs/").await;
    registry.kill();
    let artifacts = open_secure(&dir.path().join("nobody"), registries);
    let error = fetch(&artifacts, &image, Always).await.unwrap_err();
    let text = report(&error);
    for place in [&registry, &down, &good, &lying] {
        assert!(text.contains(&place.address()), "{text}");
    }
    assert_eq!(artifacts.usage().entries, 0);
}

/// A mirror says to nobody with a pull secret what an image is, and does not see it.
#[tokio::test]
async fn a_pull_secret_is_checked_by_the_registry_alone() {
    let dir = TempDir::new().unwrap();
    let registry = Registry::start_with_login().await.unwrap();
    let mirror = Registry::start().await.unwrap();
    let registries = said(&[
        (&registry, mirrored(&[mirror.address()])),
        (&mirror, plain()),
    ]);
    let bytes = component("app", 10_000);
    for place in [&registry, &mirror] {
        put(place, "app:1", &bytes, &registries).await;
    }
    let private = component("private", 10_000);
    put(&registry, "private:1", &private, &registries).await;
    let artifacts = open_secure(&dir.path().join("cache"), registries);
    let image = format!("{}/app:1", registry.address());
    let fetch_as = |image: String, policy, login| {
        let artifacts = artifacts.clone();
        async move { super::fetch_as(&artifacts, &image, policy, login).await }
    };
    let wrong = fetch_as(image.clone(), IfNotPresent, credentials(USER, "wrong")).await;
    assert!(matches!(*cause(wrong), oci::Error::Denied { .. }));
    assert_eq!(mirror.requests("\"GET /v2/app/"), 0);
    let right = fetch_as(image.clone(), IfNotPresent, credentials(USER, PASSWORD)).await;
    assert_eq!(right.unwrap().bytes, bytes);
    assert_eq!(mirror.requests("\"GET /v2/app/manifests/"), 0);
    asked(&mirror, "\"GET /v2/app/blobs/").await;

    // What the mirror lacks comes from the registry, and is not there for others.
    let image = format!("{}/private:1", registry.address());
    let own = fetch_as(image.clone(), IfNotPresent, credentials(USER, PASSWORD)).await;
    assert_eq!(own.unwrap().bytes, private);
    let denied = fetch_as(image.clone(), IfNotPresent, None).await;
    let denied = cause(denied);
    let oci::Error::Mirrors { source, .. } = &*denied else {
        panic!("{denied:?}");
    };
    assert!(matches!(**source, oci::Error::Denied { .. }), "{source}");
    let never = fetch_as(image, Never, None).await;
    assert!(matches!(never, Err(Error::NotCached { .. })));
}

#[tokio::test]
async fn the_hosts_own_credentials_are_read_for_each_pull() {
    let dir = TempDir::new().unwrap();
    let registry = Registry::start_with_login().await.unwrap();
    let bytes = component("app", 10_000);
    put(&registry, "app:1", &bytes, &said(&[(&registry, plain())])).await;
    let image = format!("{}/app:1", registry.address());
    let password = dir.path().join("password");
    let with = |credentials: RegistryCredentials| RegistryConfig {
        credentials: Some(credentials),
        ..plain()
    };
    let config = with(RegistryCredentials::Password {
        username: USER.to_owned(),
        file: password.clone(),
    });
    let artifacts = open_secure(&dir.path().join("a"), said(&[(&registry, config)]));
    let error = cause(fetch(&artifacts, &image, Always).await);
    assert!(matches!(*error, oci::Error::Credentials { .. }), "{error}");
    assert!(
        report(&*error).contains("password\" cannot be read"),
        "{error}"
    );
    fs::write(&password, "wrong").unwrap();
    let error = cause(fetch(&artifacts, &image, Always).await);
    assert!(
        matches!(
            *error,
            oci::Error::Denied {
                with_credentials: true,
                ..
            }
        ),
        "{error}"
    );
    fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    assert_eq!(
        fetch(&artifacts, &image, Always).await.unwrap().bytes,
        bytes
    );

    // `wash:open-sesame`
    let docker = dir.path().join("docker.json");
    let auths = serde_json::json!({ registry.address(): { "auth": "d2FzaDpvcGVuLXNlc2FtZQ==" } });
    fs::write(&docker, serde_json::json!({ "auths": auths }).to_string()).unwrap();
    let config = with(RegistryCredentials::Docker(docker.clone()));
    let artifacts = open_secure(&dir.path().join("b"), said(&[(&registry, config)]));
    assert_eq!(
        fetch(&artifacts, &image, Always).await.unwrap().bytes,
        bytes
    );
    fs::write(docker, "auths: none").unwrap();
    let error = cause(fetch(&artifacts, &image, Always).await);
    assert!(matches!(*error, oci::Error::Credentials { .. }), "{error}");
}
