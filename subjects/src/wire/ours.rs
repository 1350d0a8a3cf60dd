//! The messages wasmCloud does not have.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::json::{self, message};
use super::{Error, WorkloadStartRequest, WorkloadState};

message! {
    /// Every workload of a host; answers `workload.list`.
    WorkloadList {
        /// In any state.
        workloads: Vec<WorkloadSummary> = "workloads",
    }
}

message! {
    /// One workload at a glance.
    WorkloadSummary {
        /// The id it was started with.
        workload_id: String = "workloadId",
        /// Its namespace.
        namespace: String = "namespace",
        /// Its name.
        name: String = "name",
        /// How far it is.
        state: WorkloadState = "state",
        /// The same in words.
        message: String = "message",
        /// What it runs.
        components: Vec<ComponentSummary> = "components",
        /// The HTTP host names it answers to.
        hosts: Vec<String> = "hosts",
        /// When its start was accepted.
        started_at: Option<OffsetDateTime> = "startedAt",
        /// Attempts to run it that failed in a row; 0 once it has run for a minute.
        attempts: u32 = "attempts",
        /// Why the last of them failed.
        reason: String = "reason",
        /// When the state last changed.
        changed_at: Option<OffsetDateTime> = "changedAt",
        /// When a failed one is started again.
        next_attempt_at: Option<OffsetDateTime> = "nextAttemptAt",
    }
}

message! {
    /// One component at a glance.
    ComponentSummary {
        /// The name in the manifest.
        name: String = "name",
        /// The reference it was asked for by.
        image: String = "image",
        /// Shape: `sha256:<hex>`; empty until the image was fetched.
        digest: String = "digest",
        /// Calls of its exports since it was started.
        calls: u64 = "calls",
        /// How long they computed. Units: milliseconds.
        cpu_ms: u64 = "cpuMs",
        /// How long calls were held back by `cpuLimit`. Units: milliseconds.
        cpu_delayed_ms: u64 = "cpuDelayedMs",
        /// What the memories of its instances have now. Units: bytes.
        memory_bytes: u64 = "memoryBytes",
        /// The most that they had. Units: bytes.
        memory_bytes_peak: u64 = "memoryBytesPeak",
        /// Lines that were left out of the host's log.
        log_lines_dropped: u64 = "logLinesDropped",
    }
}

message! {
    /// Asks for the details of a workload.
    WorkloadInspectRequest {
        /// Required.
        workload_id: String = "workloadId",
    }
}

message! {
    /// Answers [`WorkloadInspectRequest`].
    WorkloadInspect {
        /// Always set; its state is `NotFound` when the host does not have it.
        workload: Option<WorkloadSummary> = "workload",
        /// Shape: `sha256:<hex>`; equal for two starts that ask for the same.
        content_digest: String = "contentDigest",
        /// As in the request.
        annotations: BTreeMap<String, String> = "annotations",
    }
}

message! {
    /// Something happened to a host.
    ///
    /// Source: `washlet.event.<host>.started`, `.goodbye` and `.pressure`.
    HostEvent {
        /// The host's id.
        id: String = "id",
        /// When, by the host's clock.
        at: Option<OffsetDateTime> = "at",
        /// Why, in words; of `pressure` what the host is short of, with `.` between, or `none`.
        message: String = "message",
    }
}

message! {
    /// Asks for what a workload was started with.
    WorkloadHandoverRequest {
        /// Required.
        workload_id: String = "workloadId",
    }
}

message! {
    /// Answers [`WorkloadHandoverRequest`]. Shape: holds secrets, as a start request does.
    WorkloadHandover {
        /// What to ask another host for.
        start: Option<WorkloadStartRequest> = "start",
    }
}

message! {
    /// Asks a host to leave the fleet in good order.
    HostDrainRequest {
        /// How long it may take; 0: as long as the host usually takes. Units: seconds.
        deadline_seconds: u64 = "deadlineSeconds",
        /// Ids of workloads that run elsewhere by now: a restart does not start them again.
        moved: Vec<String> = "moved",
    }
}

message! {
    /// Answers a host's `cordon`, `uncordon` and `drain`.
    HostState {
        /// The host's id.
        id: String = "id",
        /// It takes no new workloads.
        cordoned: bool = "cordoned",
        /// It is leaving the fleet.
        draining: bool = "draining",
        /// How long it takes to leave at most. Units: seconds.
        deadline_seconds: u64 = "deadlineSeconds",
        /// Its workloads, in any state.
        workloads: u64 = "workloads",
        /// Calls of components that are under way.
        calls_in_flight: u64 = "callsInFlight",
        /// The same in words.
        message: String = "message",
    }
}
