//! Connecting to real NATS servers that ask who we are.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use anyhow::Result;
use fleet::accounts::{Account, Operator};
use fleet::nats::NatsServer;
use fleet::wait::{SOON, until};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, Issuer};
use tempfile::TempDir;
use tokio::time::timeout;
use washlet::config::{NatsAuth, NatsConfig, NatsTls};
use washlet::control::nats::{Client, ConnectError, connect, connect_once, server};
use washlet::drain::Drain;

const PASSWORD: &str = "s3cret,/@%";
/// The same in a URL.
const ESCAPED: &str = "s3cret%2C%2F%40%25";

fn config(url: String, auth: NatsAuth) -> NatsConfig {
    NatsConfig {
        url,
        tls: NatsTls::default(),
        auth,
        inbox_prefix: None,
        ping_interval: Duration::from_secs(5),
    }
}

fn password(password: &str) -> NatsAuth {
    NatsAuth::UserPassword("ann".to_owned(), password.to_owned())
}

/// Connected means that a message comes back.
async fn works(config: &NatsConfig) -> Result<()> {
    round_trip(&connect_once(config, "washlet-test").await?).await
}

async fn round_trip(client: &Client) -> Result<()> {
    let mut own = client.subscribe("round.trip").await?;
    client.publish("round.trip", "x".into()).await?;
    let came = tokio::time::timeout(SOON, futures::StreamExt::next(&mut own)).await?;
    assert!(came.is_some());
    Ok(())
}

#[tokio::test]
async fn user_and_password_are_given_apart_or_in_the_url() -> Result<()> {
    let lines = format!("authorization {{ user: ann, password: \"{PASSWORD}\" }}");
    let server = NatsServer::start_with(&lines).await?;
    let address = server.address();
    works(&config(server.url(), password(PASSWORD))).await?;
    works(&config(
        format!("nats://ann:{ESCAPED}@{address}"),
        NatsAuth::None,
    ))
    .await?;
    // What is given apart counts.
    works(&config(
        format!("nats://bob:wrong@{address}"),
        password(PASSWORD),
    ))
    .await?;
    // One server of several is enough.
    works(&config(
        format!("nats://127.0.0.1:1, {}", server.url()),
        password(PASSWORD),
    ))
    .await?;

    let wrong = connect_once(&config(server.url(), password("wr0ng")), "x")
        .await
        .unwrap_err();
    assert!(matches!(wrong, ConnectError::Auth { .. }), "{wrong:?}");
    let text = capabilities::report(&wrong);
    assert!(
        text.contains("refuses the credentials") && text.contains(&address),
        "{text}"
    );
    assert!(
        !text.contains("wr0ng") && !format!("{wrong:?}").contains("wr0ng"),
        "{text}"
    );
    assert!(!wrong.is_configuration());
    Ok(())
}

#[tokio::test]
async fn a_token_is_given_apart_or_in_the_url() -> Result<()> {
    let server = NatsServer::start_with("authorization { token: \"t0ken\" }").await?;
    works(&config(server.url(), NatsAuth::Token("t0ken".to_owned()))).await?;
    works(&config(
        format!("t0ken@{}", server.address()),
        NatsAuth::None,
    ))
    .await?;
    let none = connect_once(&config(server.url(), NatsAuth::None), "x")
        .await
        .unwrap_err();
    assert!(matches!(none, ConnectError::Auth { .. }), "{none:?}");
    Ok(())
}

#[tokio::test]
async fn an_nkey_is_read_from_its_file() -> Result<()> {
    let dir = TempDir::new()?;
    let key = KeyPair::new_user();
    let lines = format!(
        "authorization {{ users: [ {{ nkey: {} }} ] }}",
        key.public_key()
    );
    let server = NatsServer::start_with(&lines).await?;
    let file = dir.path().join("seed.nk");
    let config = config(server.url(), NatsAuth::NkeyFile(file.clone()));
    fs::write(&file, format!("# ours\n{}\n", key.seed()?))?;
    works(&config).await?;
    fs::write(&file, KeyPair::new_user().seed()?)?;
    let other = connect_once(&config, "x").await.unwrap_err();
    assert!(matches!(other, ConnectError::Auth { .. }), "{other:?}");
    for bad in ["", "SUNOTASEED"] {
        fs::write(&file, bad)?;
        names(&connect_once(&config, "x").await.unwrap_err(), &file);
    }
    Ok(())
}

/// The error is one of configuration, names `file` and nothing in it.
fn names(error: &ConnectError, file: &Path) {
    assert!(
        matches!(error, ConnectError::File { path, .. } if path == file),
        "{error:?}"
    );
    assert!(error.is_configuration());
    assert!(!capabilities::report(error).contains("NOTASEED"));
}

#[tokio::test]
async fn a_creds_file_is_read_again_on_every_reconnect() -> Result<()> {
    let operator = Operator::default();
    let (first, second) = (Account::default(), Account::default());
    let dir = TempDir::new()?;
    let file = dir.path().join("host.creds");
    let mut server = NatsServer::start_for(&operator, &first).await?;
    let config = config(server.url(), NatsAuth::CredsFile(file.clone()));
    names(&connect_once(&config, "x").await.unwrap_err(), &file);
    fs::write(&file, first.creds(None)?)?;
    let client = connect_once(&config, "x").await?;
    round_trip(&client).await?;

    fs::write(&file, second.creds(None)?)?;
    server
        .restart_with(&operator.config_lines(&second)?)
        .await?;
    until(SOON, "it connects with the new credentials", async || {
        round_trip(&client).await.ok()
    })
    .await?;
    fs::write(&file, first.creds(None)?)?;
    let revoked = connect_once(&config, "x").await.unwrap_err();
    assert!(matches!(revoked, ConnectError::Auth { .. }), "{revoked:?}");
    fs::write(&file, "-----BEGIN NATS USER JWT-----\nNOTASEED\n")?;
    names(&connect_once(&config, "x").await.unwrap_err(), &file);
    Ok(())
}

/// Who waits for a server meets a file that is being replaced, and is not ended by it.
#[tokio::test]
async fn a_file_that_is_bad_for_a_moment_ends_nobody_who_waits() -> Result<()> {
    let (operator, account) = (Operator::default(), Account::default());
    let mut server = NatsServer::start_for(&operator, &account).await?;
    server.kill();
    let dir = TempDir::new()?;
    let file = dir.path().join("host.creds");
    let creds = account.creds(None)?;
    let config = config(server.url(), NatsAuth::CredsFile(file.clone()));
    let waiting = Drain::new(tokio::runtime::Handle::current());
    names(&connect(&config, "x", &waiting).await.unwrap_err(), &file);

    fs::write(&file, &creds)?;
    let mut connecting = pin!(connect(&config, "x", &waiting));
    for (content, attempts) in [(&creds[..], 300), (&creds[..100], 1_000), ("", 1_000)] {
        fs::write(&file, content)?;
        let attempts = Duration::from_millis(attempts);
        let ended = timeout(attempts, &mut connecting).await;
        assert!(ended.is_err(), "it waits no more: {ended:?}");
    }
    fs::write(&file, &creds)?;
    server.restart().await?;
    let client = timeout(SOON, connecting).await??.unwrap();
    round_trip(&client).await
}

/// An authority, and a certificate of it for 127.0.0.1, as files.
struct Certificates {
    dir: TempDir,
}

impl Certificates {
    fn new() -> Result<Self> {
        let dir = TempDir::new()?;
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate()?)?;
        let key = rcgen::KeyPair::generate()?;
        let issuer: &Issuer<'_, _> = &authority;
        let cert = CertificateParams::new(["127.0.0.1".to_owned()])?.signed_by(&key, issuer)?;
        fs::write(dir.path().join("ca.pem"), authority.pem())?;
        fs::write(dir.path().join("cert.pem"), cert.pem())?;
        fs::write(dir.path().join("key.pem"), key.serialize_pem())?;
        Ok(Self { dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn server_lines(&self, more: &str) -> String {
        let path = |name| self.path(name).display().to_string();
        let (cert, key, ca) = (path("cert.pem"), path("key.pem"), path("ca.pem"));
        format!(
            "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {ca:?}, timeout: 5, {more} }}"
        )
    }

    fn identity(&self) -> Option<(PathBuf, PathBuf)> {
        Some((self.path("cert.pem"), self.path("key.pem")))
    }
}

#[tokio::test]
async fn tls_comes_after_or_before_the_greeting() -> Result<()> {
    let certificates = Certificates::new()?;
    for first in [false, true] {
        let lines = certificates.server_lines(&format!("handshake_first: {first}"));
        let server = NatsServer::start_with(&lines).await?;
        let mut config = config(server.url(), NatsAuth::None);
        // Nothing vouches for the server's certificate.
        config.tls.first = first;
        let strange = connect_once(&config, "x").await.unwrap_err();
        assert!(
            matches!(strange, ConnectError::Unreachable { .. }),
            "{strange:?}"
        );
        config.tls.ca = Some(certificates.path("ca.pem"));
        works(&config).await?;
        config.url = server.url().replace("nats://", "tls://");
        works(&config).await?;
    }
    // A server without TLS is not talked to by a client that has an authority.
    let plain = NatsServer::start().await?;
    let mut config = config(plain.url(), NatsAuth::None);
    config.tls.ca = Some(certificates.path("ca.pem"));
    let refused = connect_once(&config, "x").await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Unreachable { .. }),
        "{refused:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_server_may_want_a_certificate() -> Result<()> {
    let certificates = Certificates::new()?;
    let server = NatsServer::start_with(&certificates.server_lines("verify: true")).await?;
    let mut config = config(server.url(), NatsAuth::None);
    config.tls.ca = Some(certificates.path("ca.pem"));
    assert!(connect_once(&config, "x").await.is_err());
    config.tls.identity = certificates.identity();
    works(&config).await?;

    for (place, bad) in [
        (0, "missing.pem"),
        (1, "missing.pem"),
        (0, "empty.pem"),
        (1, "ca.pem"),
    ] {
        fs::write(certificates.path("empty.pem"), "")?;
        let (mut cert, mut key) = certificates.identity().unwrap();
        *[&mut cert, &mut key][place] = certificates.path(bad);
        config.tls.identity = Some((cert, key));
        names(
            &connect_once(&config, "x").await.unwrap_err(),
            &certificates.path(bad),
        );
    }
    Ok(())
}

#[tokio::test]
async fn an_unusable_url_is_named_without_its_password() {
    for bad in [
        "",
        "nats://u:p4ss@",
        "http://u:p4ss@h",
        "ws://h",
        "nats://u:p4ss@h:x",
        "a,,b",
    ] {
        let config = config(bad.to_owned(), NatsAuth::None);
        let error = connect_once(&config, "x").await.unwrap_err();
        assert!(matches!(error, ConnectError::Url(_)), "{bad}: {error:?}");
        assert!(error.is_configuration() && !format!("{error:?} {error}").contains("p4ss"));
        assert!(!server(&config).contains("p4ss"));
    }
    let config = config(
        "nats://u:p4ss@127.0.0.1:1,[::1]:2".to_owned(),
        NatsAuth::None,
    );
    assert_eq!(server(&config), "nats://127.0.0.1:1, nats://[::1]:2");
    let error = connect_once(&config, "x").await.unwrap_err();
    let ConnectError::Unreachable { servers, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(servers, r#""nats://127.0.0.1:1", "nats://[::1]:2""#);
    assert!(!format!("{error:?} {}", capabilities::report(&error)).contains("p4ss"));
}
