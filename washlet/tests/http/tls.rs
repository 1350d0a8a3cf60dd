//! TLS, from certificates made here.

use super::support::*;
use futures::FutureExt;
use http::StatusCode;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use washlet::config::TlsConfig;
use washlet::trigger::http::{Error, TlsError};

/// An authority and a certificate by it, as files.
struct Files {
    dir: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Files {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let this = Self {
            dir: TempDir::new().unwrap(),
            issuer,
        };
        let (cert, key) = this.issue();
        this.write("ca.pem", &this.issuer.pem());
        this.write("cert.pem", &cert);
        this.write("key.pem", &key);
        this
    }

    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["a.test".to_owned()]).unwrap();
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> TlsConfig {
        TlsConfig {
            cert: self.path("cert.pem"),
            key: self.path("key.pem"),
            client_ca: None,
        }
    }

    async fn start(&self, change: impl FnOnce(&mut TlsConfig)) -> Result<Up, Error> {
        let mut tls = self.config();
        change(&mut tls);
        let mut up = Setup {
            tls: Some(tls),
            ..Setup::default()
        }
        .start()
        .await?;
        up.serve(
            "a.test",
            |_, scheme| async move { text(scheme.to_string()) },
        );
        Ok(up)
    }

    async fn connect(
        &self,
        up: &Up,
        alpn: &str,
        client: Option<(String, String)>,
    ) -> std::io::Result<TlsStream<tokio::net::TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match client {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.into()];
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("a.test").unwrap();
        soon(connector.connect(name, up.connect().await)).await
    }
}

async fn get(stream: TlsStream<tokio::net::TcpStream>) -> hyper::Result<(StatusCode, String)> {
    let (client, connection) = http1::handshake(TokioIo::new(stream)).await?;
    run(connection.map(drop));
    let mut client = client;
    let response = soon(client.send_request(request("/", Some("a.test")))).await?;
    let status = response.status();
    Ok((
        status,
        String::from_utf8(whole(response).await.to_vec()).unwrap(),
    ))
}

#[tokio::test]
async fn both_versions_are_negotiated() {
    let files = Files::new();
    let up = files.start(|_| {}).await.unwrap();
    let stream = files.connect(&up, "http/1.1", None).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(
        get(stream).await.unwrap(),
        (StatusCode::OK, "https".to_owned())
    );

    let stream = files.connect(&up, "h2", None).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    run(connection.map(drop));
    let response = soon(client.send_request(request("https://a.test/", None)))
        .await
        .unwrap();
    assert_eq!(whole(response).await, "https");
}

#[tokio::test]
async fn clients_must_show_a_certificate_of_the_authority() {
    let files = Files::new();
    let up = files
        .start(|tls| tls.client_ca = Some(files.path("ca.pem")))
        .await
        .unwrap();
    let ask = async |client| match files.connect(&up, "http/1.1", client).await {
        Ok(stream) => get(stream).await.is_ok(),
        Err(_) => false,
    };
    assert!(!ask(None).await, "without a certificate");
    assert!(!ask(Some(Files::new().issue())).await, "somebody else's");
    assert!(ask(Some(files.issue())).await);
}

#[tokio::test]
async fn a_silent_handshake_is_closed() {
    let files = Files::new();
    let setup = Setup {
        tls: Some(files.config()),
        ..Setup::default()
    };
    let timeouts = washlet::trigger::http::Timeouts {
        handshake: std::time::Duration::from_millis(100),
        ..Default::default()
    };
    let up = Setup { timeouts, ..setup }.start().await.unwrap();
    let mut stream = up.connect().await;
    let read = soon(tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 16])).await;
    assert_eq!(read.unwrap(), 0);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named() {
    let files = Files::new();
    let empty = files.write("empty.pem", "no PEM here\n");
    let missing = files.path("missing.pem");
    let (_, other) = files.issue();
    let other = files.write("other.pem", &other);

    let error = async |change: &dyn Fn(&mut TlsConfig)| match files.start(|tls| change(tls)).await {
        Err(Error::Tls(error)) => error,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("started"),
    };
    let got = error(&|tls| tls.cert = missing.clone()).await;
    assert!(
        matches!(&got, TlsError::Read { path, .. } if *path == missing),
        "{got:?}"
    );
    let got = error(&|tls| tls.key = missing.clone()).await;
    assert!(
        matches!(&got, TlsError::Read { path, .. } if *path == missing),
        "{got:?}"
    );
    let got = error(&|tls| tls.client_ca = Some(missing.clone())).await;
    assert!(
        matches!(&got, TlsError::Read { path, .. } if *path == missing),
        "{got:?}"
    );
    let got = error(&|tls| tls.cert = empty.clone()).await;
    assert!(
        matches!(&got, TlsError::NoCertificate(path) if *path == empty),
        "{got:?}"
    );
    let got = error(&|tls| tls.key = empty.clone()).await;
    assert!(
        matches!(&got, TlsError::Read { path, .. } if *path == empty),
        "{got:?}"
    );
    let got = error(&|tls| tls.key = other.clone()).await;
    assert!(
        matches!(&got, TlsError::Certificate { key, .. } if *key == other),
        "{got:?}"
    );
}
