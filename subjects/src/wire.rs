//! The messages: `wasmcloud.runtime.v2` as proto3 JSON, and ours in the same manner.
//!
//! [`HostHeartbeat`] and the replies to wasmCloud's requests have exactly the fields of the proto:
//! its operator refuses a message with any other. Values of `config` and `environment` and pull
//! secrets do not show in `Debug`.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};
use time::OffsetDateTime;

mod json;
mod ours;

use json::{enumeration, message, payload};
pub use ours::{
    ComponentSummary, HostDrainRequest, HostEvent, HostState, WorkloadHandover,
    WorkloadHandoverRequest, WorkloadInspect, WorkloadInspectRequest, WorkloadList,
    WorkloadSummary,
};

/// Why a payload is not the message it should be.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The payload is not JSON.
    #[error("payload is not valid JSON")]
    Json(#[source] serde_json::Error),
    /// A field has a value it cannot have.
    #[error("'{}' {problem}", if path.is_empty() { "payload" } else { path })]
    Field {
        /// Shape: `workload.witWorld.components[0].poolSize`; empty for the payload itself.
        path: String,
        /// What is wrong with it, without the value.
        problem: String,
    },
}

impl Error {
    fn field(problem: String) -> Self {
        Self::Field {
            path: String::new(),
            problem,
        }
    }

    /// The same error seen from the message or list around it.
    fn within(self, outer: &str) -> Self {
        match self {
            Self::Field { path, problem } => {
                let dot = if path.is_empty() || path.starts_with('[') {
                    ""
                } else {
                    "."
                };
                Self::Field {
                    path: format!("{outer}{dot}{path}"),
                    problem,
                }
            }
            other => other,
        }
    }
}

message! {
    /// What a host says about itself, every few seconds and when asked.
    ///
    /// Source: `runtime.operator.heartbeat.<host>`.
    HostHeartbeat {
        /// The host's id.
        id: String = "id",
        /// Where the host is reached; in Kubernetes the pod's address.
        hostname: String = "hostname",
        /// Shape: a DNS-1123 subdomain; names the operator's Host resource.
        friendly_name: String = "friendlyName",
        /// The host's version.
        version: String = "version",
        /// Shape: Kubernetes label syntax.
        labels: BTreeMap<String, String> = "labels",
        /// When the process started.
        started_at: Option<OffsetDateTime> = "startedAt",
        /// The processor, like `x86_64`.
        os_arch: String = "osArch",
        /// The operating system, like `linux`.
        os_name: String = "osName",
        /// The kernel; opaque.
        os_kernel: String = "osKernel",
        /// Units: percent of all processors, 0 to 100.
        system_cpu_usage: f32 = "systemCpuUsage",
        /// Units: bytes.
        system_memory_total: u64 = "systemMemoryTotal",
        /// Units: bytes.
        system_memory_free: u64 = "systemMemoryFree",
        /// Components of running workloads.
        component_count: u64 = "componentCount",
        /// Workloads in any state.
        workload_count: u64 = "workloadCount",
        /// What components may import here.
        imports: Vec<WitInterface> = "imports",
        /// What this host calls on components.
        exports: Vec<WitInterface> = "exports",
        /// The bound HTTP port; 0 when there is none.
        http_port: u32 = "httpPort",
        /// The environment, as configured.
        environment: String = "environment",
    }
}

message! {
    /// Interfaces of one WIT package, and how a workload configures them.
    WitInterface {
        /// Like `wasi`.
        namespace: String = "namespace",
        /// Like `keyvalue`.
        package: String = "package",
        /// Shape: a semantic version without `@`; empty means any.
        version: String = "version",
        /// Like `store`.
        interfaces: Vec<String> = "interfaces",
        /// Settings for what serves the interfaces.
        config: BTreeMap<String, String> = "config" secret,
        /// The import name this entry is for; empty means the default.
        name: String = "name",
    }
}

message! {
    /// Asks a host to run a workload.
    WorkloadStartRequest {
        /// Required.
        workload_id: String = "workloadId",
        /// Required.
        workload: Option<Workload> = "workload",
    }
}

message! {
    /// Components that run together.
    Workload {
        /// Scopes the names of buckets and containers.
        namespace: String = "namespace",
        /// Unique per replica.
        name: String = "name",
        /// Carried along.
        annotations: BTreeMap<String, String> = "annotations",
        /// The long-running part, if there is one.
        service: Option<Service> = "service",
        /// The components and what they ask of the host.
        wit_world: Option<WitWorld> = "witWorld",
        /// What components may mount.
        volumes: Vec<Volume> = "volumes",
    }
}

message! {
    /// Components and the host interfaces they use.
    WitWorld {
        /// Called per event.
        components: Vec<Component> = "components",
        /// What the components ask of the host.
        host_interfaces: Vec<WitInterface> = "hostInterfaces",
    }
}

message! {
    /// The long-running part of a workload.
    Service {
        /// An OCI reference.
        image: String = "image",
        /// What it may use.
        local_resources: Option<LocalResources> = "localResources",
        /// 0 runs it once.
        max_restarts: u64 = "maxRestarts",
        /// How to sign in at the registry.
        image_pull_secret: Option<ImagePullSecret> = "imagePullSecret",
        /// When to ask the registry.
        image_pull_policy: ImagePullPolicy = "imagePullPolicy",
    }
}

message! {
    /// One component of a workload.
    Component {
        /// The name in the manifest.
        name: String = "name",
        /// An OCI reference.
        image: String = "image",
        /// What it may use.
        local_resources: Option<LocalResources> = "localResources",
        /// Warm instances; none when not positive.
        pool_size: i32 = "poolSize",
        /// Calls before an instance is replaced; any number when not positive.
        max_invocations: i32 = "maxInvocations",
        /// Calls at once in one instance; 1 when not positive.
        max_concurrency: i32 = "maxConcurrency",
        /// How to sign in at the registry.
        image_pull_secret: Option<ImagePullSecret> = "imagePullSecret",
        /// When to ask the registry.
        image_pull_policy: ImagePullPolicy = "imagePullPolicy",
    }
}

message! {
    /// What one component may use.
    LocalResources {
        /// Units: MiB; the host's default when not positive.
        memory_limit_mb: i32 = "memoryLimitMb",
        /// Units: thousandths of a processor; unlimited when not positive.
        cpu_limit: i32 = "cpuLimit",
        /// Values for `wasi:config` and settings of its own for triggers.
        config: BTreeMap<String, String> = "config" secret,
        /// Environment variables.
        environment: BTreeMap<String, String> = "environment" secret,
        /// Which volumes it sees, and where.
        volume_mounts: Vec<VolumeMount> = "volumeMounts",
        /// Where it may send HTTP requests; empty means nowhere.
        allowed_hosts: Vec<String> = "allowedHosts",
        /// What it may look up; empty means nothing.
        allowed_ip_name_lookups: Vec<String> = "allowedIpNameLookups",
        /// Shape: `5432`, `5432/tcp` or `53/udp`.
        allowed_host_loopback_ports: Vec<String> = "allowedHostLoopbackPorts",
    }
}

message! {
    /// A volume as one component sees it.
    VolumeMount {
        /// The name of a volume of the workload.
        name: String = "name",
        /// The path inside the component.
        mount_path: String = "mountPath",
        /// Whether writing is refused.
        read_only: bool = "readOnly",
    }
}

/// Files that outlive a call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Volume {
    /// What mounts call it.
    pub name: String,
    /// Where the files are.
    pub source: VolumeSource,
}

/// Where a volume's files are.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum VolumeSource {
    /// In a folder that lives as long as the workload.
    #[default]
    EmptyDir,
    /// In a folder of the host.
    HostPath(HostPath),
}

message! {
    /// A folder of the host.
    HostPath {
        /// Its path on the host.
        local_path: String = "localPath",
    }
}

payload!(Volume);

impl json::Field for Volume {
    fn read(value: Value) -> Result<Self, Error> {
        let mut fields = json::object(value)?;
        let name = json::take(&mut fields, "name", "name")?;
        let host_path = json::take(&mut fields, "hostPath", "host_path")?;
        let empty_dir: Option<Map<String, Value>> =
            json::take(&mut fields, "emptyDir", "empty_dir")?;
        let source = match (host_path, empty_dir) {
            (Some(_), Some(_)) => {
                return Err(Error::field(
                    "must not have both hostPath and emptyDir".into(),
                ));
            }
            (Some(host_path), None) => VolumeSource::HostPath(host_path),
            (None, _) => VolumeSource::EmptyDir,
        };
        Ok(Self { name, source })
    }

    fn write(&self) -> Value {
        let mut fields = Map::new();
        json::put(&mut fields, "name", &self.name);
        let (key, source) = match &self.source {
            VolumeSource::EmptyDir => ("emptyDir", Value::Object(Map::new())),
            VolumeSource::HostPath(host_path) => ("hostPath", host_path.write()),
        };
        fields.insert(key.to_owned(), source);
        Value::Object(fields)
    }
}

message! {
    /// A name and password for a registry.
    ImagePullSecret {
        /// The user.
        username: String = "username",
        /// The password, in the clear.
        password: String = "password" secret,
    }
}

enumeration! {
    /// When to ask the registry for an image.
    ImagePullPolicy {
        /// As [`IfNotPresent`](Self::IfNotPresent).
        #[default]
        Unspecified = 0 "IMAGE_PULL_POLICY_UNSPECIFIED",
        /// At every start.
        Always = 1 "IMAGE_PULL_POLICY_ALWAYS",
        /// When the host does not have it.
        IfNotPresent = 2 "IMAGE_PULL_POLICY_IF_NOT_PRESENT",
        /// Never: the host has it or the start fails.
        Never = 3 "IMAGE_PULL_POLICY_NEVER",
    }
}

enumeration! {
    /// How far a workload is.
    WorkloadState {
        /// Nobody said.
        #[default]
        Unspecified = 0 "WORKLOAD_STATE_UNSPECIFIED",
        /// Being fetched, compiled or linked.
        Starting = 1 "WORKLOAD_STATE_STARTING",
        /// Serving.
        Running = 2 "WORKLOAD_STATE_RUNNING",
        /// Its service ended well.
        Completed = 3 "WORKLOAD_STATE_COMPLETED",
        /// Finishing what it took.
        Stopping = 4 "WORKLOAD_STATE_STOPPING",
        /// Failed; the message says why.
        Error = 5 "WORKLOAD_STATE_ERROR",
        /// This host does not have it.
        NotFound = 6 "WORKLOAD_STATE_NOT_FOUND",
    }
}

message! {
    /// The state of one workload.
    WorkloadStatus {
        /// As in the request.
        workload_id: String = "workloadId",
        /// How far it is.
        workload_state: WorkloadState = "workloadState",
        /// The same in words.
        message: String = "message",
    }
}

message! {
    /// Answers [`WorkloadStartRequest`].
    WorkloadStartResponse {
        /// Always set: the operator does not check.
        workload_status: Option<WorkloadStatus> = "workloadStatus",
    }
}

message! {
    /// Asks for the state of a workload.
    WorkloadStatusRequest {
        /// Required.
        workload_id: String = "workloadId",
    }
}

message! {
    /// Answers [`WorkloadStatusRequest`].
    WorkloadStatusResponse {
        /// Always set: the operator does not check.
        workload_status: Option<WorkloadStatus> = "workloadStatus",
    }
}

message! {
    /// Asks a host to stop a workload.
    WorkloadStopRequest {
        /// Required.
        workload_id: String = "workloadId",
    }
}

message! {
    /// Answers [`WorkloadStopRequest`].
    WorkloadStopResponse {
        /// Always set: the operator does not check.
        workload_status: Option<WorkloadStatus> = "workloadStatus",
    }
}
