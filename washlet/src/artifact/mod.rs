//! Artifacts: the bytes of components, from registries, kept on disk.
//!
//! What is asked for many times at once is pulled once, what is in the cache needs no network, and what
//! one workload may pull with its secret is not there for another without it.

pub mod cache;
mod credentials;
mod error;
mod gates;
pub mod oci;
mod reading;
pub mod reference;
mod registries;
mod resolved;

use std::collections::HashMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::{Semaphore, watch};

pub use cache::{Pin, Swept, Usage};
pub use credentials::Credentials;
pub use error::Error;
pub use oci::{Progress, Pulled, RegistryOptions, pull, push};
pub use reference::{Digest, Image, Reference};
pub use registries::{
    Mirror, NoRegistry, Registries, RegistryConfig, RegistryCredentials, RegistryHost,
};
pub use resolved::{Artifact, Resolved};

use crate::config::{ArtifactConfig, Limits};
use cache::{Known, Store, Who};
use gates::Gates;
use oci::{ATTEMPTS, Client, Sources};
use reading::Reader;
use resolved::{Landed, Source};

/// The first bytes of every component: magic, version, layer.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

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
#[derive(Clone)]
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

/// Artifacts of this host. Shape: cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Artifacts {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    reader: Reader,
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

impl Artifacts {
    /// Opens the cache, creating what is missing; garbage in it is no error.
    ///
    /// # Errors
    /// [`Error::Cache`] if the directory cannot be used, [`Error::Client`] for unusable authorities.
    pub fn open(config: ArtifactConfig, limits: &Limits) -> Result<Self> {
        let bytes_max = limits.artifact_bytes_max;
        let client = Client::new(&config.registry_options(bytes_max));
        let store = Store::open(&config.dir, config.budget_bytes, bytes_max)?;
        let inner = Inner {
            reader: Reader::new(store.clone(), reading::ROOM_BYTES),
            store,
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

    /// The component an image names, by the policy: [`resolve`](Self::resolve) and [`read`](Resolved::read).
    ///
    /// # Errors
    /// See [`Error`]; transient failures were tried again already.
    pub async fn fetch(&self, request: Fetch<'_>) -> Result<Artifact> {
        self.resolve(request).await?.read().await
    }

    /// What an image means, by the policy; what is in the cache is not read.
    ///
    /// Shape: of those who ask the same at the same time one pulls; dropping this gives up only its own
    /// part. The cleaner spares the artifact while the answer's pin lives.
    ///
    /// # Errors
    /// See [`Error`]; transient failures were tried again already.
    pub async fn resolve<'a>(&self, request: Fetch<'a>) -> Result<Resolved<'a>> {
        let image = match request.image.parse()? {
            Reference::File(path) => return self.inner.file(path).await,
            Reference::Image(image) => image,
        };
        let given = request.credentials.clone();
        let credentials = given.filter(|given| !given.is_empty());
        let inner = &self.inner;
        let who = inner.store.who(credentials.as_ref());
        let landed = match (inner.find(&image, &who).await, request.policy) {
            (Some((known, Some(pin))), PullPolicy::IfNotPresent | PullPolicy::Never) => Landed {
                known,
                from_cache: true,
                stale: false,
                pin,
            },
            (_, PullPolicy::Never) => {
                return Err(Error::NotCached {
                    image: request.image.to_owned(),
                });
            }
            (found, policy) => {
                let fallback = found.filter(|_| policy == PullPolicy::Always);
                let fallback = fallback.map(|(known, _)| known);
                let (mut pull, mut progress) =
                    inner.board((image, who, policy), credentials, fallback);
                loop {
                    tokio::select! {
                        landed = &mut pull => break landed?,
                        Ok(()) = progress.changed(), if request.progress.is_some() => {
                            let now = *progress.borrow_and_update();
                            request.progress.iter().for_each(|report| report(now));
                        }
                    }
                }
            }
        };
        Ok(Resolved {
            digest: landed.known.layer,
            pin: landed.pin.clone(),
            bytes: Source::Cache {
                artifacts: self.clone(),
                request,
                landed,
            },
        })
    }

    /// How full the cache is, other processes' recent changes not counted.
    pub fn usage(&self) -> Usage {
        self.inner.store.usage()
    }

    /// One pass of the cleaner; meant to run every few minutes, because it also tells other processes
    /// with the same directory what is in use here.
    pub async fn sweep(&self) -> Swept {
        let store = self.inner.store.clone();
        let none = || false;
        blocking(move || store.sweep(none))
            .await
            .unwrap_or_default()
    }

    /// As [`sweep`](Self::sweep), and also removes what is not in use while `tight` says that the disk is. Shape:
    /// `tight` may block.
    pub async fn give_back(&self, tight: impl Fn() -> bool + Send + 'static) -> Swept {
        let store = self.inner.store.clone();
        blocking(move || store.sweep(tight))
            .await
            .unwrap_or_default()
    }
}

impl Inner {
    /// What the image is known to mean, and a pin if its bytes are here.
    async fn find(&self, image: &Image, who: &Who) -> Option<(Known, Option<Pin>)> {
        let (store, image, who) = (self.store.clone(), image.clone(), who.clone());
        let find = move || {
            let known = store.find(&image, &who)?;
            Some((known, store.pin_present(known.layer)))
        };
        blocking(find).await.flatten()
    }

    async fn file(&self, path: PathBuf) -> Result<Resolved<'static>> {
        if !self.allow_file {
            return Err(Error::FileRefused { path });
        }
        let read = self.reader.read_file(path.clone(), self.bytes_max).await;
        let bytes = read.map_err(|source| Error::File {
            path: path.clone(),
            source: Arc::new(source),
        })?;
        check_component(&bytes, &path.display())?;
        Ok(Resolved {
            digest: Digest::of(&bytes),
            pin: Pin::none(),
            bytes: Source::Read(bytes),
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
        let sources = Sources::new(&self.client, &image, credentials).await;
        let mut sources = sources.map_err(failed)?;
        let attempts = if fallback.is_some() { 1 } else { ATTEMPTS };
        let (known, stale) = match (sources.resolve(fallback.as_ref(), attempts).await, fallback) {
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
        let (store, asked) = (self.store.clone(), who.clone());
        let here = blocking(move || {
            let before = fallback.is_some_and(|before| before.layer == known.layer);
            let may = before || store.may_share(known.layer, &asked);
            may.then(|| store.pin_present(known.layer)).flatten()
        });
        let (pin, from_cache) = match here.await.flatten() {
            Some(pin) => (pin, true),
            None => {
                let report = |now| _ = progress.send(now);
                let pin = self.download(&mut sources, &image, known, &report);
                (pin.await?, false)
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
            from_cache,
            stale,
            pin,
        })
    }

    /// From the registry into the cache, never all of it in memory.
    async fn download(
        &self,
        sources: &mut Sources<'_>,
        image: &Image,
        known: Known,
        report: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Pin> {
        let pin = self.store.pin(known.layer);
        let store = self.store.clone();
        let reserved = blocking(move || store.reserve(known.size)).await.flatten();
        let reserved = reserved.ok_or_else(|| Error::NoRoom {
            image: image.to_string(),
            bytes: known.size,
            budget: self.store.budget(),
        })?;
        let failed = |error| Error::pull(image, error);
        let temp = self.store.temp().map_err(|error| failed(error.into()))?;
        let file = temp.reopen().map_err(|error| failed(error.into()))?;
        let file = sources
            .download(&known, file, report)
            .await
            .map_err(failed)?;
        let image = image.clone();
        let keep = move || {
            let mut head = Vec::new();
            file.take(COMPONENT.len() as u64)
                .read_to_end(&mut head)
                .map_err(|error| Error::pull(&image, error.into()))?;
            check_component(&head, &image)?;
            Ok::<_, Error>(reserved.keep(temp, known.layer)?)
        };
        blocking(keep).await.transpose()?;
        Ok(pin)
    }

    fn unreadable(&self, digest: Digest) -> Error {
        let source = std::io::Error::other("it is gone or damaged as soon as it is there");
        self.store.error_at(digest, source).into()
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
