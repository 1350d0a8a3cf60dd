//! How storages are registered, chosen and asked.

use async_trait::async_trait;
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::BoxError;
use crate::blobstore::BlobStore;
use crate::config::ConfigSource;
use crate::keyvalue::KeyValueStore;
use crate::messaging::MessageBus;
use crate::secrets::SecretSource;
use crate::sql::SqlDatabase;

/// One kind of storage, registered once, serving whichever capabilities it can. Knows no wasm.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// The value of a host interface's config key `backend` that selects it, e.g. `nats`.
    fn name(&self) -> &'static str;

    /// A key-value store for who asks.
    async fn keyvalue(&self, ask: &Ask<'_>) -> Result<Arc<dyn KeyValueStore>, OpenError> {
        let _ = ask;
        Err(OpenError::NotOffered("key-value"))
    }

    /// A blob store for who asks.
    async fn blobstore(&self, ask: &Ask<'_>) -> Result<Arc<dyn BlobStore>, OpenError> {
        let _ = ask;
        Err(OpenError::NotOffered("blobstore"))
    }

    /// A message bus for who asks.
    async fn messaging(&self, ask: &Ask<'_>) -> Result<Arc<dyn MessageBus>, OpenError> {
        let _ = ask;
        Err(OpenError::NotOffered("messaging"))
    }

    /// A live configuration source for who asks: the bucket that the setting `bucket` names.
    async fn config(&self, ask: &Ask<'_>) -> Result<Arc<dyn ConfigSource>, OpenError> {
        let _ = ask;
        Err(OpenError::NotOffered("config"))
    }

    /// A source of secrets for who asks.
    async fn secrets(&self, ask: &Ask<'_>) -> Result<Arc<dyn SecretSource>, OpenError> {
        let _ = ask;
        Err(OpenError::NotOffered("secrets"))
    }

    /// A database for who asks: the one that the settings name.
    async fn sql(&self, ask: &Ask<'_>) -> Result<Arc<dyn SqlDatabase>, OpenError> {
        let _ = ask;
        Err(OpenError::NotOffered("databases"))
    }

    /// Keeps up to date what was opened and is to follow its storage.
    ///
    /// Shape: the host polls it, once, from its start until the last workload has stopped; one that has
    /// nothing to do returns at once.
    async fn run(&self) {}

    /// Sends what is buffered and ends connections; called once, after the last workload stopped.
    async fn close(&self) {}
}

/// Who asks for a capability, and how they configured it.
pub struct Ask<'a> {
    /// The workload's namespace.
    pub namespace: &'a str,
    /// The workload's name, for messages to people.
    pub workload: &'a str,
    /// The component's name, for messages to people.
    pub component: &'a str,
    /// Whether names belong to the namespace or to the whole storage, as the host was started.
    pub flat_names: bool,
    /// The host interface's `config`.
    pub settings: Settings<'a>,
}

impl Ask<'_> {
    /// How the guest's bucket, container and table names become names of the storage.
    ///
    /// Reads the setting `shared`.
    ///
    /// # Errors
    /// [`OpenError::Setting`] when `shared` is not a boolean.
    pub fn scope(&self) -> Result<Scope, OpenError> {
        let shared = self.settings.boolean("shared")?.unwrap_or(false);
        Ok(match (self.flat_names, shared) {
            (true, _) => Scope::Flat,
            (false, true) => Scope::Shared,
            (false, false) => Scope::Namespace(self.namespace.to_owned()),
        })
    }
}

/// Whom a bucket, container or table name belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// To this namespace alone.
    Namespace(String),
    /// To everybody that says `shared`: the plain name, unless it could be a namespace's.
    Shared,
    /// To the whole storage: the host was started with flat names.
    Flat,
}

/// A host interface's `config`, read by key; a key that nobody reads is an error.
pub struct Settings<'a> {
    values: &'a BTreeMap<String, String>,
    known: Mutex<BTreeSet<&'static str>>,
}

impl<'a> Settings<'a> {
    /// Nothing has been read yet.
    pub fn new(values: &'a BTreeMap<String, String>) -> Self {
        Self {
            values,
            known: Mutex::new(BTreeSet::new()),
        }
    }

    /// Marks `keys` as read by somebody else.
    #[must_use]
    pub fn also_known(self, keys: &[&'static str]) -> Self {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(keys);
        self
    }

    /// The value of `key`, trimmed; `None` when it is absent or empty.
    pub fn text(&self, key: &'static str) -> Option<&'a str> {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key);
        self.values
            .get(key)
            .map(|value| value.trim())
            .filter(|value| !value.is_empty())
    }

    /// The value of `key` as `true` or `false`.
    ///
    /// # Errors
    /// [`OpenError::Setting`] for anything else.
    pub fn boolean(&self, key: &'static str) -> Result<Option<bool>, OpenError> {
        self.parsed(key, "true or false", |value| value.parse().ok())
    }

    /// The value of `key`, read by `parse`; `expected` says what it takes.
    ///
    /// # Errors
    /// [`OpenError::Setting`] when `parse` gives nothing. The value itself is not repeated: it may be a secret.
    pub fn parsed<T>(
        &self,
        key: &'static str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, OpenError> {
        match self.text(key) {
            None => Ok(None),
            Some(value) => parse(value)
                .map(Some)
                .ok_or(OpenError::Setting { key, expected }),
        }
    }

    /// The value of `key`, which must be there; `expected` says what it takes.
    ///
    /// # Errors
    /// [`OpenError::Setting`] when it is absent or empty.
    pub fn required(
        &self,
        key: &'static str,
        expected: &'static str,
    ) -> Result<&'a str, OpenError> {
        self.text(key).ok_or(OpenError::Setting { key, expected })
    }

    /// All of it, read or not.
    pub fn all(&self) -> &'a BTreeMap<String, String> {
        self.values
    }

    /// What nobody has read.
    pub fn unread(&self) -> BTreeMap<String, String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let unread = self.values.iter();
        unread
            .filter(|(key, _)| !known.contains(key.as_str()))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Refuses keys that nobody has read.
    ///
    /// # Errors
    /// [`OpenError::UnknownSettings`] with the unknown and the known keys.
    pub fn finish(&self) -> Result<(), OpenError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown: Vec<String> = self
            .values
            .keys()
            .filter(|key| !known.contains(key.as_str()))
            .cloned()
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(OpenError::UnknownSettings {
            unknown,
            known: known.iter().copied().collect(),
        })
    }
}

/// The storages of a host.
#[derive(Clone)]
pub struct Plugins {
    default: &'static str,
    plugins: BTreeMap<&'static str, Arc<dyn Plugin>>,
}

impl Plugins {
    /// `default` serves host interfaces that name no `backend`.
    pub fn new(default: &'static str) -> Self {
        Self {
            default,
            plugins: BTreeMap::new(),
        }
    }

    /// Registers `plugin` under its name.
    #[must_use]
    pub fn with(mut self, plugin: impl Plugin) -> Self {
        self.plugins.insert(plugin.name(), Arc::new(plugin));
        self
    }

    /// Whether the setting `backend` in `config` selects a plugin.
    ///
    /// # Errors
    /// [`OpenError::NoSuchPlugin`] with the names there are.
    pub fn check(&self, config: &BTreeMap<String, String>) -> Result<(), OpenError> {
        self.select(&Settings::new(config)).map(drop)
    }

    /// The plugin that the setting `backend` selects.
    ///
    /// # Errors
    /// [`OpenError::NoSuchPlugin`] with the names there are.
    pub fn select(&self, settings: &Settings<'_>) -> Result<&dyn Plugin, OpenError> {
        self.select_or(settings, self.default)
    }

    /// As [`select`](Self::select), for what another plugin than the usual serves without the setting.
    ///
    /// # Errors
    /// [`OpenError::NoSuchPlugin`] with the names there are.
    pub fn select_or(
        &self,
        settings: &Settings<'_>,
        default: &str,
    ) -> Result<&dyn Plugin, OpenError> {
        let name = match settings.text("backend") {
            None => default,
            // The reference's name of what this host calls memory.
            Some("in-memory") => "memory",
            Some(name) => name,
        };
        self.plugins
            .get(name)
            .map(|plugin| &**plugin)
            .ok_or_else(|| OpenError::NoSuchPlugin {
                name: name.to_owned(),
                known: self.plugins.keys().copied().collect(),
            })
    }

    /// Runs every plugin; returns when all of them have.
    pub async fn run(&self) {
        join_all(self.plugins.values().map(|plugin| plugin.run())).await;
    }

    /// Closes every plugin, one after the other.
    pub async fn close(&self) {
        for plugin in self.plugins.values() {
            plugin.close().await;
        }
    }
}

/// Why a capability could not be opened.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// No plugin of that name is registered.
    #[error("no backend '{name}' on this host (there are: {})", known.join(", "))]
    NoSuchPlugin {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// The plugin does not serve this capability.
    #[error("this backend does not offer {0}")]
    NotOffered(&'static str),
    /// A setting has a value it cannot have.
    #[error("config key '{key}' must be {expected}")]
    Setting {
        /// The key.
        key: &'static str,
        /// What it takes.
        expected: &'static str,
    },
    /// Settings that nothing reads.
    #[error("unknown config keys: {} (known: {})", unknown.join(", "), known.join(", "))]
    UnknownSettings {
        /// What nobody read.
        unknown: Vec<String>,
        /// What would have been read.
        known: Vec<&'static str>,
    },
    /// The storage could not be reached or refused.
    #[error("the storage could not be opened")]
    Storage(#[source] BoxError),
}
