//! Who we are towards a registry: a pull secret, or what `docker login` left on this machine.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use docker_credential::{CredentialRetrievalError as Failure, DockerCredential};
use tokio::sync::Semaphore;

use super::registries::RegistryCredentials;

/// How long a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// Credential helpers at once; one that hangs keeps its place.
const HELPERS: usize = 4;

/// The longest password in a file, in bytes.
const PASSWORD_BYTES_MAX: u64 = 16 << 10;
/// The largest configuration of Docker that is named, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// User and password for a registry. Shape: two empty strings count as no credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// May not contain a colon.
    pub username: String,
    /// Never shown.
    pub password: String,
}

impl Credentials {
    pub(crate) fn is_empty(&self) -> bool {
        self.username.is_empty() && self.password.is_empty()
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

/// Docker's configuration: `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`.
#[derive(Clone)]
pub(crate) struct Docker {
    helpers: Arc<Semaphore>,
}

impl Docker {
    pub(crate) fn new() -> Self {
        Self {
            helpers: Arc::new(Semaphore::new(HELPERS)),
        }
    }

    /// What is `configured` for `registry`, else what Docker's own configuration has; one of Docker's that cannot
    /// be used counts as none.
    ///
    /// # Errors
    /// [`CredentialsError`] for a `configured` file that cannot be read.
    pub(crate) async fn credentials(
        &self,
        registry: &str,
        configured: Option<&RegistryCredentials>,
    ) -> Result<Option<Credentials>, CredentialsError> {
        let file = match configured {
            Some(RegistryCredentials::Password { username, file }) => {
                let (username, path) = (username.clone(), file.clone());
                let read = tokio::task::spawn_blocking(move || password(&path)).await;
                let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
                let password = read.map_err(|source| CredentialsError {
                    file: file.clone(),
                    source,
                })?;
                return Ok(Some(Credentials { username, password }));
            }
            Some(RegistryCredentials::Docker(file)) => Some(file.clone()),
            None => None,
        };
        let named = file.clone();
        let look_up = async {
            let permit = self.helpers.clone().acquire_owned().await.ok()?;
            let server = registry.to_owned();
            let task = tokio::task::spawn_blocking(move || {
                let found = look_up(&server, file.as_deref());
                drop(permit);
                found
            });
            task.await.ok()
        };
        let found = tokio::time::timeout(HELPER_TIMEOUT, look_up).await;
        match (found.ok().flatten(), named) {
            // A file that was named for it has to be one.
            (Some(Err(Failure::ConfigReadError)), Some(file)) => Err(CredentialsError {
                file,
                source: io::Error::other("it is no configuration of Docker"),
            }),
            (Some(found), _) => Ok(accept(registry, found)),
            (None, _) => {
                tracing::warn!(
                    registry,
                    "docker credential helper did not answer, going on without"
                );
                Ok(None)
            }
        }
    }
}

/// A file with credentials cannot be used.
#[derive(thiserror::Error, Debug)]
#[error("\"{}\" cannot be read", file.display())]
pub struct CredentialsError {
    /// Which one.
    pub file: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

fn password(file: &Path) -> io::Result<String> {
    let mut password = String::new();
    let file = File::open(file)?;
    file.take(PASSWORD_BYTES_MAX + 1)
        .read_to_string(&mut password)?;
    let password = password.trim_end_matches(['\r', '\n']).to_owned();
    match password.len() as u64 > PASSWORD_BYTES_MAX || password.is_empty() {
        true => Err(io::Error::other(format!(
            "a password has 1 to {PASSWORD_BYTES_MAX} bytes"
        ))),
        false => Ok(password),
    }
}

fn look_up(registry: &str, file: Option<&Path>) -> Result<DockerCredential, Failure> {
    let get = |server: &str| match file {
        None => docker_credential::get_credential(server),
        Some(file) => {
            let file = File::open(file).map_err(|_| Failure::ConfigReadError)?;
            let file = file.take(CONFIG_BYTES_MAX);
            docker_credential::get_credential_from_reader(BufReader::new(file), server)
        }
    };
    match get(registry) {
        // Helpers know Docker Hub only by the address of its first API.
        Err(Failure::NoCredentialConfigured | Failure::HelperFailure { .. })
            if registry == "index.docker.io" =>
        {
            get("https://index.docker.io/v1/")
        }
        found => found,
    }
}

fn accept(registry: &str, found: Result<DockerCredential, Failure>) -> Option<Credentials> {
    let why = match found {
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            return Some(Credentials { username, password }).filter(|found| !found.is_empty());
        }
        Ok(DockerCredential::IdentityToken(_)) => "identity tokens are not supported",
        // A store that is asked for a registry it does not know fails; its output may be secret.
        Err(Failure::NoCredentialConfigured | Failure::HelperFailure { .. }) => return None,
        Err(Failure::ConfigNotFound) => return None,
        Err(Failure::ConfigReadError) => {
            tracing::debug!(registry, "no docker configuration that can be read");
            return None;
        }
        Err(Failure::HelperCommunicationError) => "the credential helper cannot be run",
        Err(Failure::MalformedHelperResponse) => "the credential helper's answer is malformed",
        Err(_) => "the credentials in it are malformed",
    };
    tracing::warn!(
        registry,
        why,
        "docker configuration not used for this registry"
    );
    None
}
