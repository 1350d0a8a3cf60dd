//! Artifacts from registries: a real one, and ones that misbehave.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod hostile;
mod mirrors;
mod registry;
mod served;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use washlet::artifact::{Artifact, Artifacts, Credentials, Error, Fetch, PullPolicy, Registries};
use washlet::artifact::{RegistryOptions, oci};
use washlet::config::{ArtifactConfig, Limits};

fn open(dir: &Path) -> Artifacts {
    open_with(config(dir))
}

fn open_with(config: ArtifactConfig) -> Artifacts {
    let limits = Limits {
        artifact_bytes_max: 8 << 20,
        ..Limits::default()
    };
    Artifacts::open(config, &limits).unwrap()
}

fn config(dir: &Path) -> ArtifactConfig {
    ArtifactConfig {
        dir: dir.to_owned(),
        budget_bytes: 1 << 30,
        allow_insecure: true,
        ca: Vec::new(),
        registries: Registries::new(),
        pull_timeout: Duration::from_secs(20),
        allow_file: false,
    }
}

fn options(credentials: Option<Credentials>) -> RegistryOptions {
    RegistryOptions {
        allow_insecure: true,
        ca: Vec::new(),
        registries: Registries::new(),
        credentials,
        timeout: Duration::from_secs(20),
        bytes_max: 8 << 20,
    }
}

async fn fetch(artifacts: &Artifacts, image: &str, policy: PullPolicy) -> Result<Artifact, Error> {
    fetch_as(artifacts, image, policy, None).await
}

async fn fetch_as(
    artifacts: &Artifacts,
    image: &str,
    policy: PullPolicy,
    credentials: Option<Credentials>,
) -> Result<Artifact, Error> {
    artifacts
        .fetch(Fetch {
            image,
            policy,
            credentials,
            progress: None,
        })
        .await
}

/// Looks like a component, `size` bytes, another one for each `name`.
fn component(name: &str, size: usize) -> Bytes {
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    while bytes.len() < size {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
    }
    bytes.truncate(size);
    bytes.into()
}

fn credentials(username: &str, password: &str) -> Option<Credentials> {
    Some(Credentials {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

/// Why a pull failed.
fn cause(result: Result<Artifact, Error>) -> std::sync::Arc<oci::Error> {
    match result {
        Err(Error::Pull { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}
