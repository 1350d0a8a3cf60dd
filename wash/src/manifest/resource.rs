//! The resources of wasmCloud, field by field; what only Kubernetes can resolve is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use subjects::wire;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Head {
    pub(super) api_version: String,
    pub(super) kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Resource<T> {
    #[serde(rename = "apiVersion")]
    pub(super) _api_version: String,
    #[serde(rename = "kind")]
    pub(super) _kind: String,
    pub(super) metadata: Metadata,
    pub(super) spec: T,
    /// As printed by `kubectl get -o yaml`.
    #[serde(default, rename = "status")]
    pub(super) _status: serde::de::IgnoredAny,
}

/// Has many more fields, all of them kept by Kubernetes itself.
#[derive(Deserialize)]
pub(super) struct Metadata {
    #[serde(deserialize_with = "filled")]
    pub(super) name: String,
    #[serde(default = "default_namespace")]
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

fn default_namespace() -> String {
    "default".to_owned()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Deployment {
    #[serde(default = "one")]
    pub(super) replicas: u16,
    pub(super) template: Template,
    pub(super) deploy_policy: Option<DeployPolicy>,
    pub(super) kubernetes: Option<serde::de::IgnoredAny>,
    #[serde(default, rename = "artifacts", deserialize_with = "no_artifacts")]
    pub(super) _artifacts: (),
}

fn one() -> u16 {
    1
}

#[derive(Deserialize)]
pub(super) enum DeployPolicy {
    RollingUpdate,
    Recreate,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Template {
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) labels: BTreeMap<String, String>,
    pub(super) spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(default)]
    pub(super) host_selector: BTreeMap<String, String>,
    pub(super) host_id: Option<String>,
    #[serde(default)]
    pub(super) environment: String,
    #[serde(default)]
    pub(super) components: Vec<Component>,
    #[serde(default)]
    pub(super) host_interfaces: Vec<HostInterface>,
    pub(super) service: Option<Service>,
    #[serde(default)]
    pub(super) volumes: Vec<Volume>,
    pub(super) kubernetes: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Component {
    #[serde(deserialize_with = "filled")]
    pub(super) name: String,
    #[serde(deserialize_with = "image")]
    pub(super) image: String,
    #[serde(
        default,
        rename = "imagePullSecret",
        deserialize_with = "no_pull_secret"
    )]
    pub(super) _image_pull_secret: (),
    #[serde(default)]
    pub(super) image_pull_policy: PullPolicy,
    #[serde(default, deserialize_with = "count")]
    pub(super) pool_size: i32,
    #[serde(default, deserialize_with = "count")]
    pub(super) max_invocations: i32,
    #[serde(default, deserialize_with = "count")]
    pub(super) max_concurrency: i32,
    pub(super) local_resources: Option<LocalResources>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    #[serde(deserialize_with = "image")]
    pub(super) image: String,
    #[serde(
        default,
        rename = "imagePullSecret",
        deserialize_with = "no_pull_secret"
    )]
    pub(super) _image_pull_secret: (),
    #[serde(default)]
    pub(super) image_pull_policy: PullPolicy,
    #[serde(default)]
    pub(super) max_restarts: u64,
    pub(super) local_resources: Option<LocalResources>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HostInterface {
    #[serde(default)]
    pub(super) name: String,
    #[serde(deserialize_with = "filled")]
    pub(super) namespace: String,
    #[serde(deserialize_with = "filled")]
    pub(super) package: String,
    pub(super) interfaces: Vec<String>,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) config: BTreeMap<String, String>,
    #[serde(default, rename = "configFrom", deserialize_with = "no_config_from")]
    pub(super) _config_from: (),
    #[serde(default, rename = "secretFrom", deserialize_with = "no_secret_from")]
    pub(super) _secret_from: (),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LocalResources {
    #[serde(default)]
    pub(super) memory_limit_mb: i32,
    #[serde(default)]
    pub(super) cpu_limit: i32,
    #[serde(default)]
    pub(super) volume_mounts: Vec<VolumeMount>,
    #[serde(default)]
    pub(super) environment: Environment,
    #[serde(default)]
    pub(super) config: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) allowed_hosts: Vec<String>,
    #[serde(default)]
    pub(super) allowed_ip_name_lookups: Vec<String>,
    #[serde(default)]
    pub(super) allowed_host_loopback_ports: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Environment {
    #[serde(default)]
    pub(super) config: BTreeMap<String, String>,
    #[serde(default, rename = "configFrom", deserialize_with = "no_config_from")]
    pub(super) _config_from: (),
    #[serde(default, rename = "secretFrom", deserialize_with = "no_secret_from")]
    pub(super) _secret_from: (),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct VolumeMount {
    pub(super) name: String,
    pub(super) mount_path: String,
    #[serde(default)]
    pub(super) read_only: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Volume {
    #[serde(deserialize_with = "filled")]
    pub(super) name: String,
    pub(super) ephemeral: Option<Ephemeral>,
    pub(super) host_path: Option<HostPath>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Ephemeral {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostPath {
    pub(super) path: String,
}

#[derive(Deserialize, Default)]
pub(super) enum PullPolicy {
    #[default]
    #[serde(skip)]
    Unspecified,
    Always,
    IfNotPresent,
    Never,
}

impl From<Component> for wire::Component {
    fn from(component: Component) -> Self {
        Self {
            name: component.name,
            image: component.image,
            local_resources: component.local_resources.map(Into::into),
            pool_size: component.pool_size,
            max_invocations: component.max_invocations,
            max_concurrency: component.max_concurrency,
            image_pull_secret: None,
            image_pull_policy: component.image_pull_policy.into(),
        }
    }
}

impl From<Service> for wire::Service {
    fn from(service: Service) -> Self {
        Self {
            image: service.image,
            local_resources: service.local_resources.map(Into::into),
            max_restarts: service.max_restarts,
            image_pull_secret: None,
            image_pull_policy: service.image_pull_policy.into(),
        }
    }
}

impl From<HostInterface> for wire::WitInterface {
    fn from(entry: HostInterface) -> Self {
        let HostInterface {
            name,
            namespace,
            package,
            interfaces,
            version,
            config,
            ..
        } = entry;
        Self {
            namespace,
            package,
            version,
            interfaces,
            config,
            name,
        }
    }
}

impl From<LocalResources> for wire::LocalResources {
    fn from(resources: LocalResources) -> Self {
        let mount = |mount: VolumeMount| wire::VolumeMount {
            name: mount.name,
            mount_path: mount.mount_path,
            read_only: mount.read_only,
        };
        Self {
            memory_limit_mb: resources.memory_limit_mb,
            cpu_limit: resources.cpu_limit,
            config: resources.config,
            environment: resources.environment.config,
            volume_mounts: resources.volume_mounts.into_iter().map(mount).collect(),
            allowed_hosts: resources.allowed_hosts,
            allowed_ip_name_lookups: resources.allowed_ip_name_lookups,
            allowed_host_loopback_ports: resources.allowed_host_loopback_ports,
        }
    }
}

impl From<Volume> for wire::Volume {
    fn from(volume: Volume) -> Self {
        let source = match volume.host_path {
            Some(HostPath { path }) => {
                wire::VolumeSource::HostPath(wire::HostPath { local_path: path })
            }
            None => wire::VolumeSource::EmptyDir,
        };
        Self {
            name: volume.name,
            source,
        }
    }
}

impl From<PullPolicy> for wire::ImagePullPolicy {
    fn from(policy: PullPolicy) -> Self {
        match policy {
            PullPolicy::Unspecified => Self::Unspecified,
            PullPolicy::Always => Self::Always,
            PullPolicy::IfNotPresent => Self::IfNotPresent,
            PullPolicy::Never => Self::Never,
        }
    }
}

fn filled<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        Err(serde::de::Error::custom("must not be empty"))
    } else {
        Ok(text)
    }
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let count = i32::deserialize(deserializer)?;
    if count < 0 {
        Err(serde::de::Error::custom("must not be negative"))
    } else {
        Ok(count)
    }
}

fn image<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let image = filled(deserializer)?;
    if image.starts_with("artifact://") {
        return Err(serde::de::Error::custom(
            "names an Artifact, which only exists in Kubernetes: write the image it stands for",
        ));
    }
    Ok(image)
}

fn no_artifacts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    refuse(
        deserializer,
        "Artifacts only exist in Kubernetes: write the images they stand for",
    )
}

fn no_pull_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    refuse(
        deserializer,
        "names a Secret, which only exists in Kubernetes: use --pull-user and --pull-password",
    )
}

fn no_config_from<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    refuse(
        deserializer,
        "names ConfigMaps, which only exist in Kubernetes: write the values under `config`",
    )
}

fn no_secret_from<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    refuse(
        deserializer,
        "names Secrets, which only exist in Kubernetes: write the values under `config`",
    )
}

/// Refuses anything but an empty value.
fn refuse<'de, D: Deserializer<'de>>(deserializer: D, why: &str) -> Result<(), D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(()),
        Value::Array(items) if items.is_empty() => Ok(()),
        _ => Err(serde::de::Error::custom(why)),
    }
}
