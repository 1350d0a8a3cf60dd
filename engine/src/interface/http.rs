//! Outgoing HTTP: who may be asked, with which trust, for how long.
//!
//! Each component has a client of its own, made at its first request: connections and TLS sessions are
//! never shared between workloads. Addresses are checked where names are resolved, so that a name cannot
//! lead where an address may not.

use capabilities::BoxError;
use capabilities::addresses::Reach;
use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::allowed_hosts::{AllowedHosts, bare};
use crate::arriving::Arriving;
use crate::runnable::Recipe;
use crate::shards::Handle;

/// What a guest gets that sets no timeouts.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);

/// Which authorities outgoing HTTPS trusts.
#[derive(Clone, Debug)]
pub struct TrustRoots(Arc<RootCertStore>);

/// Why a file of authorities cannot be used.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum TrustError {
    /// It cannot be read, or is not PEM.
    #[error("failed to read certificates from '{}': {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// It has no certificate.
    #[error("'{}' holds no certificate", .0.display())]
    Empty(PathBuf),
    /// Nothing would be trusted at all.
    #[error("no authority is trusted: name at least one file of certificates")]
    Nothing,
}

impl TrustRoots {
    /// The compiled-in Mozilla set if `webpki`, and the certificates in the PEM files `extra`.
    ///
    /// # Errors
    /// A file that cannot be read or holds none; an empty result.
    pub fn load(webpki: bool, extra: &[PathBuf]) -> Result<Self, TrustError> {
        let mut roots = RootCertStore::empty();
        if webpki {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        for path in extra {
            let failed = |reason: String| TrustError::File {
                path: path.clone(),
                reason,
            };
            let certificates = CertificateDer::pem_file_iter(path)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| failed(error.to_string()))?;
            if certificates.is_empty() {
                return Err(TrustError::Empty(path.clone()));
            }
            for certificate in certificates {
                roots
                    .add(certificate)
                    .map_err(|error| failed(error.to_string()))?;
            }
        }
        if roots.is_empty() {
            return Err(TrustError::Nothing);
        }
        Ok(Self(Arc::new(roots)))
    }
}

/// The outgoing side of one component, shared by its instances.
pub(crate) struct Egress {
    allowed: AllowedHosts,
    roots: TrustRoots,
    /// By reach: one that may go to loopback, one that may not.
    clients: [OnceLock<HttpClient>; 2],
    turns: Turns,
}

/// How much may go out at once.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Requests under way at once from one workload.
    pub per_workload: usize,
    /// Requests under way at once from this host.
    pub per_host: usize,
    /// How long a request waits for its turn.
    pub wait: Duration,
}

/// The turns that the components of one workload share.
#[derive(Clone)]
pub struct Turns {
    workload: Arc<Semaphore>,
    host: Arc<Semaphore>,
    wait: Duration,
}

impl Turns {
    pub(crate) fn new(outbound: &Outbound, host: &Arc<Semaphore>) -> Self {
        let workload = Arc::new(Semaphore::new(outbound.per_workload));
        Self {
            workload,
            host: Arc::clone(host),
            wait: outbound.wait,
        }
    }

    async fn take(&self) -> Result<(OwnedSemaphorePermit, OwnedSemaphorePermit), Error> {
        let both = async {
            let workload = Arc::clone(&self.workload).acquire_owned().await.ok()?;
            let host = Arc::clone(&self.host).acquire_owned().await.ok()?;
            Some((workload, host))
        };
        let both = tokio::time::timeout(self.wait, both).await.ok().flatten();
        both.ok_or(Error::ConnectionLimitReached)
    }
}

type HttpClient = Client<HttpsConnector<HttpConnector<Resolver>>, WasiBody>;

impl Egress {
    pub(crate) fn new(allowed: AllowedHosts, roots: TrustRoots, turns: Turns) -> Self {
        Self {
            allowed,
            roots,
            clients: [OnceLock::new(), OnceLock::new()],
            turns,
        }
    }

    fn client(&self, reach: Reach) -> Result<&HttpClient, Error> {
        let [network, loopback] = &self.clients;
        let cell = match reach {
            Reach::Network => network,
            Reach::Loopback => loopback,
        };
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::InternalError(Some(error.to_string())))?
            .with_root_certificates(Arc::clone(&self.roots.0))
            .with_no_client_auth();
        let mut http = HttpConnector::new_with_resolver(Resolver(reach));
        http.enforce_http(false);
        http.set_nodelay(true);
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(http);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(32)
            .build(https);
        Ok(cell.get_or_init(|| client))
    }

    async fn send(
        &self,
        request: Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<Response<WasiBody>, Error> {
        let Some(reach) = self.allowed.permits(request.uri()) else {
            return Err(Error::HttpRequestDenied);
        };
        // A connector does not resolve literal addresses, so they are checked here.
        if let Some(address) = literal(request.uri())
            && !reach.allows(address)
        {
            return Err(Error::DestinationIpProhibited);
        }
        let turn = self.turns.take().await?;
        let connect = options.connect_timeout.unwrap_or(TIMEOUT_DEFAULT);
        let first_byte = options.first_byte_timeout.unwrap_or(TIMEOUT_DEFAULT);
        let between_bytes = options.between_bytes_timeout.unwrap_or(TIMEOUT_DEFAULT);
        let response = self.client(reach)?.request(request);
        let response = tokio::time::timeout(connect.saturating_add(first_byte), response)
            .await
            .map_err(|_| Error::ConnectionReadTimeout)?
            .map_err(cause)?;
        Ok(response.map(|body| {
            Arriving::new(body, between_bytes)
                .map_err(move |error| {
                    // Held until the body ends.
                    let _turn = &turn;
                    unreadable(error)
                })
                .boxed_unsync()
        }))
    }
}

fn literal(uri: &Uri) -> Option<IpAddr> {
    bare(uri.host()?).parse().ok()
}

/// The WIT's name for what went wrong.
fn cause(error: hyper_util::client::legacy::Error) -> Error {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(error) = source {
        if error.is::<Prohibited>() {
            return Error::DestinationIpProhibited;
        }
        if error.is::<rustls::Error>() {
            return match error.downcast_ref() {
                Some(rustls::Error::InvalidCertificate(_)) => Error::TlsCertificateError,
                _ => Error::TlsProtocolError,
            };
        }
        if let Some(error) = error.downcast_ref::<NoSuchName>() {
            return Error::DnsError {
                rcode: Some(error.to_string()),
                info_code: Some(0),
            };
        }
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            // An I/O error may wrap one of the above.
            if let Some(inner) = io.get_ref() {
                source = Some(inner);
                continue;
            }
            match io.kind() {
                std::io::ErrorKind::ConnectionRefused => return Error::ConnectionRefused,
                std::io::ErrorKind::TimedOut => return Error::ConnectionTimeout,
                std::io::ErrorKind::ConnectionReset
                | std::io::ErrorKind::BrokenPipe
                | std::io::ErrorKind::UnexpectedEof => return Error::ConnectionTerminated,
                std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
                    return Error::DestinationUnavailable;
                }
                _ => {}
            }
        }
        source = error.source();
    }
    if error.is_connect() {
        Error::DestinationUnavailable
    } else {
        Error::HttpProtocolError
    }
}

/// Resolves names to the addresses that may be reached.
#[derive(Clone)]
struct Resolver(Reach);

#[derive(thiserror::Error, Debug)]
#[error("every address of '{0}' is prohibited")]
struct Prohibited(String);

#[derive(thiserror::Error, Debug)]
#[error("address not available")]
struct NoSuchName(#[source] std::io::Error);

impl tower_service::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let reach = self.0;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map_err(NoSuchName)?;
            let found: Vec<SocketAddr> =
                found.filter(|address| reach.allows(address.ip())).collect();
            if found.is_empty() {
                return Err(Prohibited(name.as_str().to_owned()).into());
            }
            Ok(found.into_iter())
        })
    }
}

/// The WIT's name for why a body from the network ended early.
pub(crate) fn unreadable(error: BoxError) -> Error {
    match error.downcast::<hyper::Error>() {
        Ok(error) => Error::Hyper(*error),
        Err(error) => match error
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind)
        {
            Some(std::io::ErrorKind::TimedOut) => Error::ConnectionReadTimeout,
            _ => Error::InternalError(Some(error.to_string())),
        },
    }
}

/// The hooks of one instance.
pub(crate) struct Outgoing(pub(crate) Handle<Recipe>);

type Sent = (
    Response<WasiBody>,
    Box<dyn Future<Output = Result<(), Error>> + Send>,
);

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent, Error>> + Send> {
        let recipe = self.0.clone();
        Box::new(async move {
            let sending = recipe.egress.send(request, options.unwrap_or_default());
            let response = sending.await?;
            // The client drives its connections; there is nothing left to do beside the body.
            Ok((
                response,
                Box::new(async { Ok(()) }) as Box<dyn Future<Output = _> + Send>,
            ))
        })
    }

    // What one body may hold in the host's memory: no budget of the guest counts it.
    fn p2_outgoing_body_buffer_chunks(&mut self) -> usize {
        4
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        64 << 10
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        64 << 10
    }
}
