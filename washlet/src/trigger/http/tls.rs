//! TLS of the listener, from PEM files.

use crate::config::TlsConfig;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// TLS cannot be set up from the files given.
#[derive(thiserror::Error, Debug)]
pub enum Error {
    /// A file cannot be read, or is not PEM.
    #[error("cannot read PEM file {path:?}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A file that should hold certificates has none.
    #[error("no certificate in {0:?}")]
    NoCertificate(PathBuf),
    /// The certificate chain is unusable or the key is not the certificate's.
    #[error("certificate {cert:?} and key {key:?} cannot be used")]
    Certificate {
        /// The certificate chain's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// An authority for client certificates is unusable.
    #[error("authority in {path:?} cannot be used")]
    Authority {
        /// The authorities' file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The authorities for client certificates do not make a verifier.
    #[error("authorities in {path:?} cannot verify clients")]
    Verifier {
        /// The authorities' file.
        path: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
    /// The cryptography offers no usable protocol version.
    #[error("no usable TLS version")]
    Versions(#[source] rustls::Error),
}

/// Reads the files and checks that they go together; HTTP/2 is preferred over HTTP/1.1.
///
/// # Errors
/// [`Error`], naming the file.
pub(crate) fn acceptor(config: &TlsConfig) -> Result<TlsAcceptor, Error> {
    // Named, not the process default: another crate in the process may install a different one.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(Error::Versions)?;
    let builder = match &config.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates(path)? {
                roots.add(authority).map_err(|source| Error::Authority {
                    path: path.clone(),
                    source,
                })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|source| Error::Verifier {
                    path: path.clone(),
                    source,
                })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|source| Error::Read {
        path: config.key.clone(),
        source,
    })?;
    let mut tls = builder
        .with_single_cert(certificates(&config.cert)?, key)
        .map_err(|source| Error::Certificate {
            cert: config.cert.clone(),
            key: config.key.clone(),
            source,
        })?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
    if certificates.is_empty() {
        Err(Error::NoCertificate(path.to_owned()))
    } else {
        Ok(certificates)
    }
}
