//! Artifacts: the bytes of components, from registries, kept on disk.
//!
//! What is asked for many times at once is pulled once, what is in the cache needs no network, and what
//! one workload may pull with its secret is not there for another without it.

pub mod cache;
mod credentials;
pub mod oci;
pub mod reference;

use std::collections::HashMap;
use std::hash::Hash;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub use cache::{Pin, Swept, Usage};
pub use credentials::Credentials;
pub use oci::{Progress, Pulled, RegistryOptions, pull, push};
pub use reference::{Digest, Image, Reference};

use crate::config::{ArtifactConfig, Limits};
use cache::{Known, Store, Who};
use oci::{ATTEMPTS, Client, Session};

/// The first bytes of every component: magic, version, layer.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// Why there is no artifact.
#[derive(thiserror::Error, Debug, Clone)]
#[non_exhaustive]
pub enum Error {
    /// The image names nothing.
    #[error(transparent)]
    Reference(#[from] reference::Error),
    /// `Never`, and it is not here, or not for these credentials.
    #[error("component not found in cache and pull policy is 'Never' (image \"{image}\")")]
    NotCached {
        /// As asked for.
        image: String,
    },
    /// The registry did not give it.
    #[error("failed to pull \"{image}\"")]
    Pull {
        /// As asked for.
        image: String,
        /// The reason.
        source: Arc<oci::Error>,
    },
    /// The registry did not take it.
    #[error("failed to push \"{image}\"")]
    Push {
        /// As asked for.
        image: String,
        /// The reason.
        source: Arc<oci::Error>,
    },
    /// Something else than a component.
    #[error("pulled artifact is not a valid WebAssembly component (\"{image}\")")]
    NotAComponent {
        /// As asked for.
        image: String,
    },
    /// `file://` is not for this host.
    #[error("\"{}\" is refused: this host starts no files", path.display())]
    FileRefused {
        /// As asked for.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("failed to read \"{}\"", path.display())]
    File {
        /// As asked for.
        path: PathBuf,
        /// The reason.
        source: Arc<std::io::Error>,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(Arc<cache::Error>),
    /// The HTTP client cannot be set up.
    #[error(transparent)]
    Client(Arc<oci::Error>),
}

impl Error {
    fn pull(image: &Image, source: oci::Error) -> Self {
        Self::Pull {
            image: image.to_string(),
            source: Arc::new(source),
        }
    }

    fn push(image: &Image, source: oci::Error) -> Self {
        Self::Push {
            image: image.to_string(),
            source: Arc::new(source),
        }
    }
}

impl From<cache::Error> for Error {
    fn from(error: cache::Error) -> Self {
        Self::Cache(Arc::new(error))
    }
}

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// When to ask the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// Each time; the last known artifact if the registry cannot be reached.
    Always,
    /// Only for what is not in the cache.
    IfNotPresent,
    /// Not at all.
    Never,
}

/// A request for an artifact.
pub struct Fetch<'a> {
    /// `[registry/]repository[:tag][@sha256:..]`, or `file:///path` where allowed.
    pub image: &'a str,
    /// When to ask the registry.
    pub policy: PullPolicy,
    /// Of the workload; those of the host if none or empty.
    pub credentials: Option<Credentials>,
    /// Told how far a download is, now and then.
    pub progress: Option<&'a (dyn Fn(Progress) + Send + Sync)>,
}

/// A component.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Of `bytes`.
    pub digest: Digest,
    /// The component.
    pub bytes: Bytes,
    /// Of the manifest the image named; `None` for a file.
    pub manifest_digest: Option<String>,
    /// Nothing was downloaded.
    pub from_cache: bool,
    /// The registry should have been asked, and could not be reached.
    pub stale: bool,
    /// Keeps the bytes in the cache.
    pub pin: Pin,
}

/// Artifacts of this host. Shape: cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Artifacts {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    client: Client,
    allow_file: bool,
    bytes_max: u64,
    pulls: Arc<Semaphore>,
    registries: Gates<String>,
    blobs: Gates<(String, Digest)>,
    flights: Mutex<HashMap<FlightKey, WeakFlight>>,
}

/// Equal ones are the same question.
type FlightKey = (Image, Who, PullPolicy);
type Pull = Shared<BoxFuture<'static, Result<Landed>>>;
type WeakFlight = (
    WeakShared<BoxFuture<'static, Result<Landed>>>,
    watch::Receiver<Progress>,
);

/// What a pull gives to everybody who waits for it.
#[derive(Clone)]
struct Landed {
    known: Known,
    bytes: Bytes,
    from_cache: bool,
    stale: bool,
}

impl Artifacts {
    /// Opens the cache, creating what is missing; garbage in it is no error.
    ///
    /// # Errors
    /// [`Error::Cache`] if the directory cannot be used, [`Error::Client`] for unusable authorities.
    pub fn open(config: ArtifactConfig, limits: &Limits) -> Result<Self> {
        let bytes_max = limits.artifact_bytes_max;
        let client = Client::new(&RegistryOptions {
            allow_insecure: config.allow_insecure,
            ca: config.ca,
            credentials: None,
            timeout: config.pull_timeout,
            bytes_max,
        });
        let inner = Inner {
            store: Store::open(&config.dir, config.budget_bytes, bytes_max)?,
            client: client.map_err(|error| Error::Client(Arc::new(error)))?,
            allow_file: config.allow_file,
            bytes_max,
            pulls: Arc::new(Semaphore::new(limits.pulls_in_flight.max(1))),
            registries: Gates::new(limits.pulls_per_registry.max(1)),
            blobs: Gates::new(1),
            flights: Mutex::default(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The component an image names, by the policy.
    ///
    /// Shape: of those who ask the same at the same time one pulls; dropping this gives up only its own
    /// part. The cleaner spares the artifact while the answer's pin lives.
    ///
    /// # Errors
    /// See [`Error`]; transient failures were tried again already.
    pub async fn fetch(&self, request: Fetch<'_>) -> Result<Artifact> {
        let image = match request.image.parse()? {
            Reference::File(path) => return self.inner.file(path).await,
            Reference::Image(image) => image,
        };
        let credentials = request.credentials.filter(|given| !given.is_empty());
        let inner = &self.inner;
        let who = inner.store.who(credentials.as_ref());
        let known = inner.find(&image, &who).await;
        if request.policy != PullPolicy::Always
            && let Some(known) = known
        {
            let pin = inner.store.pin(known.layer);
            if let Some(bytes) = inner.read(known.layer).await {
                let landed = Landed {
                    known,
                    bytes,
                    from_cache: true,
                    stale: false,
                };
                return Ok(landed.artifact(pin));
            }
        }
        if request.policy == PullPolicy::Never {
            return Err(Error::NotCached {
                image: request.image.to_owned(),
            });
        }
        let fallback = known.filter(|_| request.policy == PullPolicy::Always);
        let (mut pull, mut progress) =
            inner.board((image, who, request.policy), credentials, fallback);
        let landed = loop {
            tokio::select! {
                landed = &mut pull => break landed?,
                Ok(()) = progress.changed(), if request.progress.is_some() => {
                    let now = *progress.borrow_and_update();
                    request.progress.iter().for_each(|report| report(now));
                }
            }
        };
        let pin = inner.store.pin(landed.known.layer);
        Ok(landed.artifact(pin))
    }

    /// How full the cache is, other processes' recent changes not counted.
    pub fn usage(&self) -> Usage {
        self.inner.store.usage()
    }

    /// One pass of the cleaner; meant to run every few minutes, because it also tells other processes
    /// with the same directory what is in use here.
    pub async fn sweep(&self) -> Swept {
        let store = self.inner.store.clone();
        blocking(move || store.sweep()).await.unwrap_or_default()
    }
}

impl Landed {
    fn artifact(self, pin: Pin) -> Artifact {
        let Self {
            known,
            bytes,
            from_cache,
            stale,
        } = self;
        let manifest_digest = Some(known.manifest.to_string());
        Artifact {
            digest: known.layer,
            bytes,
            manifest_digest,
            from_cache,
            stale,
            pin,
        }
    }
}

impl Inner {
    async fn find(&self, image: &Image, who: &Who) -> Option<Known> {
        let (store, image, who) = (self.store.clone(), image.clone(), who.clone());
        blocking(move || store.find(&image, &who)).await.flatten()
    }

    async fn read(&self, digest: Digest) -> Option<Bytes> {
        let store = self.store.clone();
        blocking(move || store.read(digest)).await.flatten()
    }

    async fn file(&self, path: PathBuf) -> Result<Artifact> {
        if !self.allow_file {
            return Err(Error::FileRefused { path });
        }
        let max = self.bytes_max;
        let from = path.clone();
        let read = blocking(move || cache::read_bounded(&from, max)).await;
        let read = read.unwrap_or_else(|| Err(std::io::Error::other("reader ended")));
        let bytes: Bytes = match read {
            Ok(bytes) => bytes.into(),
            Err(source) => {
                return Err(Error::File {
                    path,
                    source: Arc::new(source),
                });
            }
        };
        check_component(&bytes, &path.display())?;
        Ok(Artifact {
            digest: Digest::of(&bytes),
            bytes,
            manifest_digest: None,
            from_cache: false,
            stale: false,
            pin: Pin::none(),
        })
    }

    /// Joins the pull of this question, or begins it; it makes headway while anybody awaits it.
    fn board(
        self: &Arc<Self>,
        key: FlightKey,
        credentials: Option<Credentials>,
        fallback: Option<Known>,
    ) -> (Pull, watch::Receiver<Progress>) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((pull, progress)) = flights.get(&key)
            && let Some(pull) = pull.upgrade()
        {
            return (pull, progress.clone());
        }
        flights.retain(|_, (pull, _)| pull.upgrade().is_some());
        let (sender, progress) = watch::channel(Progress::default());
        let (inner, (image, who, _)) = (self.clone(), key.clone());
        let pull = async move { inner.pull(image, who, credentials, fallback, sender).await };
        let pull = pull.boxed().shared();
        if let Some(weak) = pull.downgrade() {
            flights.insert(key, (weak, progress.clone()));
        }
        (pull, progress)
    }

    async fn pull(
        self: Arc<Self>,
        image: Image,
        who: Who,
        credentials: Option<Credentials>,
        fallback: Option<Known>,
        progress: watch::Sender<Progress>,
    ) -> Result<Landed> {
        // First the registry's, so that a slow one does not take all of the host's.
        let _registry = self.registries.pass(image.registry().to_owned()).await;
        let _pull = self.pulls.clone().acquire_owned().await;
        let failed = |error| Error::pull(&image, error);
        let mut session = Session::new(&self.client, &image, credentials).await;
        let attempts = if fallback.is_some() { 1 } else { ATTEMPTS };
        let (known, stale) = match (session.resolve(fallback.as_ref(), attempts).await, fallback) {
            (Ok(known), _) => (known, false),
            (Err(error), Some(known)) if error.is_transient() => {
                tracing::warn!(%image, %error, "registry not reached, using what it said last");
                (known, true)
            }
            (Err(error), _) => return Err(failed(error)),
        };
        // Two images may have the same bytes; a slow registry holds up nobody but its own.
        let _blob = self
            .blobs
            .pass((image.registry().to_owned(), known.layer))
            .await;
        let _pin = self.store.pin(known.layer);
        let store = self.store.clone();
        let asked = who.clone();
        let here = blocking(move || {
            let may = stale || store.may_share(known.layer, &asked);
            may.then(|| store.read(known.layer)).flatten()
        });
        let (bytes, from_cache) = match here.await.flatten() {
            Some(bytes) => (bytes, true),
            None => {
                let temp = self.store.temp().map_err(|error| failed(error.into()))?;
                let file = temp.reopen().map_err(|error| failed(error.into()))?;
                let report = |now| _ = progress.send(now);
                let bytes = session
                    .download(&known, file, &report)
                    .await
                    .map_err(failed)?;
                check_component(&bytes, &image)?;
                let store = self.store.clone();
                blocking(move || store.keep(temp, known.layer))
                    .await
                    .transpose()?;
                (bytes, false)
            }
        };
        if !stale {
            let store = self.store.clone();
            blocking(move || store.record(&image, &who, &known))
                .await
                .transpose()?;
        }
        Ok(Landed {
            known,
            bytes,
            from_cache,
            stale,
        })
    }
}

/// Errors unless `bytes` begin as a component does; the engine looks at the rest.
fn check_component(bytes: &[u8], image: &dyn std::fmt::Display) -> Result<()> {
    match bytes.starts_with(COMPONENT) {
        true => Ok(()),
        false => Err(Error::NotAComponent {
            image: image.to_string(),
        }),
    }
}

/// Runs what blocks elsewhere; `None` if it panicked or the runtime ends.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// A number of permits for each key, forgotten when nobody has or wants one.
struct Gates<K> {
    permits: usize,
    gates: Mutex<HashMap<K, Weak<Semaphore>>>,
}

impl<K: Eq + Hash> Gates<K> {
    fn new(permits: usize) -> Self {
        Self {
            permits,
            gates: Mutex::default(),
        }
    }

    /// Waits for one of the permits of `key`, and keeps it until dropped.
    async fn pass(&self, key: K) -> Option<OwnedSemaphorePermit> {
        let gate = {
            let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
            gates.retain(|_, gate| gate.strong_count() > 0);
            let gate = gates.entry(key).or_default();
            gate.upgrade().unwrap_or_else(|| {
                let new = Arc::new(Semaphore::new(self.permits));
                *gate = Arc::downgrade(&new);
                new
            })
        };
        // Never closed.
        gate.acquire_owned().await.ok()
    }
}
