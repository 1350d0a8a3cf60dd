//! Who we are towards a registry: a pull secret, or what `docker login` left on this machine.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use docker_credential::{CredentialRetrievalError as Failure, DockerCredential};
use tokio::sync::Semaphore;

/// How long a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// Credential helpers at once; one that hangs keeps its place.
const HELPERS: usize = 4;

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

    /// What is configured for `registry`; a configuration that cannot be used counts as none.
    pub(crate) async fn credentials(&self, registry: &str) -> Option<Credentials> {
        let look_up = async {
            let permit = self.helpers.clone().acquire_owned().await.ok()?;
            let server = registry.to_owned();
            let task = tokio::task::spawn_blocking(move || {
                let found = look_up(&server);
                drop(permit);
                found
            });
            task.await.ok()
        };
        match tokio::time::timeout(HELPER_TIMEOUT, look_up).await {
            Ok(Some(found)) => accept(registry, found),
            _ => {
                tracing::warn!(
                    registry,
                    "docker credential helper did not answer, going on without"
                );
                None
            }
        }
    }
}

fn look_up(registry: &str) -> Result<DockerCredential, Failure> {
    match docker_credential::get_credential(registry) {
        // Helpers know Docker Hub only by the address of its first API.
        Err(Failure::NoCredentialConfigured | Failure::HelperFailure { .. })
            if registry == "index.docker.io" =>
        {
            docker_credential::get_credential("https://index.docker.io/v1/")
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
