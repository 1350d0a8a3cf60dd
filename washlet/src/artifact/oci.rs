//! The client of OCI registries: resolves, downloads and uploads components.
//!
//! It speaks the distribution protocol itself because every answer needs a bound: manifests, tokens and
//! errors have a largest size, blobs at most the declared one, and all of them a least speed.

mod download;
mod error;
mod session;
mod sources;
mod upload;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;

use super::credentials::{Credentials, Docker};
use super::reference::{Digest, Image};
use super::registries::{Mirror, Registries, RegistryCredentials, RegistryHost};
pub(crate) use download::ATTEMPTS;
pub use error::Error;
use session::Session;
pub(crate) use sources::Sources;

const WASM: &str = "application/wasm";
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CREATED: &str = "org.opencontainers.image.created";
const REDIRECTS_MAX: usize = 5;

/// Result of this module.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// How far a transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes transferred.
    pub done: u64,
    /// Bytes in all; 0 while unknown.
    pub total: u64,
}

/// How to talk to registries.
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Plain HTTP instead of HTTPS.
    pub allow_insecure: bool,
    /// PEM files of authorities to trust besides the public ones.
    pub ca: Vec<PathBuf>,
    /// What is different with single registries.
    pub registries: Registries,
    /// Instead of those of `docker login`.
    pub credentials: Option<Credentials>,
    /// How long to wait without progress.
    pub timeout: Duration,
    /// The largest artifact, in bytes.
    pub bytes_max: u64,
}

/// A component from a registry.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The component.
    pub bytes: Bytes,
    /// Of `bytes`.
    pub digest: Digest,
    /// Of the manifest that named it.
    pub manifest_digest: Digest,
}

/// Downloads the component `image` names, past any cache.
///
/// # Errors
/// [`super::Error::Reference`], [`super::Error::Pull`], [`super::Error::NotAComponent`].
pub async fn pull(
    image: &str,
    options: &RegistryOptions,
    progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
) -> Result<Pulled, super::Error> {
    let image: Image = image.parse()?;
    let pull = async {
        let client = Client::new(options)?;
        let mut sources = Sources::new(&client, &image, options.credentials.clone()).await?;
        let known = sources.resolve(None, ATTEMPTS).await?;
        let file = tempfile::tempfile()?;
        let mut file = sources
            .download(&known, file, &|now| progress.iter().for_each(|f| f(now)))
            .await?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Pulled {
            bytes: bytes.into(),
            digest: known.layer,
            manifest_digest: known.manifest,
        })
    };
    let pulled = pull
        .await
        .map_err(|error| super::Error::pull(&image, error))?;
    super::check_component(&pulled.bytes, &image)?;
    Ok(pulled)
}

/// Uploads a component as `image`; returns the digest of its manifest.
///
/// Shape: one layer, annotated with `annotations` and the time it was created unless they have it.
///
/// # Errors
/// [`super::Error::Reference`], [`super::Error::NotAComponent`], [`super::Error::Push`].
pub async fn push(
    image: &str,
    bytes: Bytes,
    mut annotations: BTreeMap<String, String>,
    options: &RegistryOptions,
    progress: Option<&(dyn Fn(Progress) + Send + Sync)>,
) -> Result<String, super::Error> {
    let image: Image = image.parse()?;
    super::check_component(&bytes, &image)?;
    let now = time::OffsetDateTime::now_utc();
    let now = now
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default();
    let created = annotations.entry(CREATED.to_owned()).or_insert(now).clone();
    let layer = Digest::of(&bytes);
    let config = json!({
        "created": created,
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [layer],
    });
    let config = Bytes::from(config.to_string());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": Digest::of(&config), "size": config.len() },
        "layers": [{ "mediaType": WASM, "digest": layer, "size": bytes.len() }],
        "annotations": annotations,
    });
    let push = async {
        let client = Client::new(options)?;
        let mut session = Session::new(&client, &image, options.credentials.clone()).await?;
        session.ask_to_push();
        session.upload(config, &|_| {}).await?;
        session
            .upload(bytes, &|now| progress.iter().for_each(|f| f(now)))
            .await?;
        session.put_manifest(manifest.to_string()).await
    };
    let digest = push
        .await
        .map_err(|error| super::Error::push(&image, error))?;
    Ok(digest.to_string())
}

/// The HTTP clients of all registries. Shape: cheap to clone.
#[derive(Clone)]
pub(crate) struct Client {
    /// Those that nothing is said about.
    others: Arc<Endpoint>,
    registries: BTreeMap<RegistryHost, Arc<Endpoint>>,
    docker: Docker,
    timeout: Duration,
    bytes_max: u64,
}

/// How one registry is spoken to.
struct Endpoint {
    http: reqwest::Client,
    scheme: &'static str,
    credentials: Option<RegistryCredentials>,
    mirrors: Vec<Mirror>,
}

impl Client {
    pub(crate) fn new(options: &RegistryOptions) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        trust(&mut roots, &options.ca)?;
        let others = Endpoint {
            http: http(roots.clone(), options.allow_insecure)?,
            scheme: scheme(options.allow_insecure),
            credentials: None,
            mirrors: Vec::new(),
        };
        let mut registries = BTreeMap::new();
        for (host, registry) in &options.registries {
            let plain = registry.plain_http.unwrap_or(options.allow_insecure);
            let http = match (plain == options.allow_insecure, registry.ca.is_empty()) {
                // Connections are kept by server, so they can share.
                (true, true) => others.http.clone(),
                _ => {
                    let mut roots = roots.clone();
                    trust(&mut roots, &registry.ca)?;
                    http(roots, plain)?
                }
            };
            let endpoint = Endpoint {
                http,
                scheme: scheme(plain),
                credentials: registry.credentials.clone(),
                mirrors: registry.mirrors.clone(),
            };
            registries.insert(host.clone(), Arc::new(endpoint));
        }
        Ok(Self {
            others: Arc::new(others),
            registries,
            docker: Docker::new(),
            timeout: options.timeout,
            bytes_max: options.bytes_max,
        })
    }

    fn endpoint(&self, registry: &str) -> &Endpoint {
        self.registries.get(registry).unwrap_or(&self.others)
    }

    fn mirrors(&self, registry: &str) -> &[Mirror] {
        &self.endpoint(registry).mirrors
    }
}

fn scheme(plain: bool) -> &'static str {
    if plain { "http" } else { "https" }
}

fn trust(roots: &mut rustls::RootCertStore, files: &[PathBuf]) -> Result<()> {
    for path in files {
        let refused = |source| Error::Authorities {
            path: path.clone(),
            source,
        };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| refused(Some(error)))?;
        if roots.add_parsable_certificates(certificates).0 == 0 {
            return Err(refused(None));
        }
    }
    Ok(())
}

fn http(roots: rustls::RootCertStore, plain: bool) -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls(roots))
        .https_only(!plain)
        .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
        .user_agent(concat!("washlet/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(Error::Setup)
}

fn tls(roots: rustls::RootCertStore) -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = rustls::DEFAULT_VERSIONS;
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = match builder.with_protocol_versions(versions) {
        Ok(builder) => builder,
        // The provider above supports the versions this build has.
        Err(_) => rustls::ClientConfig::builder(),
    };
    builder.with_root_certificates(roots).with_no_client_auth()
}
