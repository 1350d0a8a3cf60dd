//! `wash hosts drain`: what has several replicas and was started with `wash workload start` runs elsewhere
//! before its host leaves.
//!
//! Nobody but this command knows where workloads go, and nobody but their host knows what they are: it hands
//! their start requests over, on a subject of its own, because they hold secrets, and only for workloads that
//! bear our annotation. The host forgets them with the same command that makes it leave.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use subjects::control::PLACEMENT_ANNOTATION;
use subjects::wire::{HostHeartbeat, WorkloadState, WorkloadSummary};
use subjects::{HostId, WorkloadId};

use super::{Placed, ask_all, launch, place, short};
use crate::args::{DrainArgs, ReplyArgs};
use crate::fleet::{ASKED_AT_ONCE, Fleet, Look};
use crate::manifest::Plan;
use crate::output::{Exit, Failure, Report, table};

/// How to choose another host for one replica.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Placement {
    replicas: u16,
    selector: BTreeMap<String, String>,
    environment: String,
}

impl Default for Placement {
    fn default() -> Self {
        Self {
            replicas: 1,
            selector: BTreeMap::new(),
            environment: String::new(),
        }
    }
}

/// Notes in each of `plans` that may be moved how to choose a host for it.
pub(super) fn annotate(plans: &mut [Plan]) -> Result<(), Failure> {
    let movable = |plan: &&mut Plan| plan.replicas > 1 && plan.host.is_none();
    for plan in plans.iter_mut().filter(movable) {
        let placement = Placement {
            replicas: plan.replicas,
            selector: plan.selector.clone(),
            environment: plan.environment.clone(),
        };
        let text = serde_json::to_string(&placement).map_err(anyhow::Error::from)?;
        let annotations = &mut plan.workload.annotations;
        annotations.insert(PLACEMENT_ANNOTATION.to_owned(), text);
    }
    Ok(())
}

/// What becomes of a workload whose host leaves.
enum Fate {
    /// It ends with its host.
    Ends,
    /// It runs there by now.
    Moved(HostId),
    /// It should run elsewhere, but does not.
    Stuck(String),
}

/// Cordons a host, places anew what may be moved, and has the host leave.
pub(crate) async fn drain(args: &DrainArgs) -> Result<Report, Failure> {
    let host = &args.id;
    let fleet = Fleet::connect(&args.nats).await?;
    fleet.cordon(host, true).await?;
    let workloads = fleet.list(host).await?;
    let movable = movable(&fleet, host, &workloads).await?;
    let mut fates = HashMap::new();
    if !movable.is_empty() {
        fates = relocate(&fleet, args, movable).await?;
    }
    let stuck = fates
        .values()
        .filter(|fate| matches!(fate, Fate::Stuck(_)))
        .count();
    if stuck > 0 && !args.force {
        let report = Report {
            message: format!(
                "host '{host}' stays, cordoned: {stuck} of its workloads could not be placed on another host"
            ),
            ..report(host, &workloads, &fates)
        };
        return Err(Failure::with_report(Exit::Failed, report).hint(
            "start or uncordon a host that fits and drain again, or end them with the host by --force",
        ));
    }
    let moved = |(id, fate): (&WorkloadId, &Fate)| match fate {
        Fate::Moved(_) => Some(id.to_string()),
        _ => None,
    };
    let moved: Vec<_> = fates.iter().filter_map(moved).collect();
    let elsewhere = moved.len();
    let deadline = args.deadline.map_or(0, |deadline| {
        deadline.as_secs() + u64::from(deadline.subsec_nanos() > 0)
    });
    let (state, goodbye) = fleet.drain(host, deadline, moved).await?;
    let heard = if goodbye { "said goodbye" } else { "drains" };
    let ends = workloads.len() - elsewhere;
    let message = format!(
        "host '{host}' {heard} and ends within {} s; {} calls were in flight; {elsewhere} workloads run elsewhere, {ends} end with it",
        state.deadline_seconds, state.calls_in_flight
    );
    let report = report(host, &workloads, &fates);
    let mut data = json!(state);
    if let Some(fields) = data.as_object_mut() {
        fields.insert("goodbye".into(), goodbye.into());
        fields.insert("workloads".into(), report.data);
    }
    Ok(Report {
        message,
        data,
        ..report
    })
}

/// The workloads that may be moved, and how.
async fn movable(
    fleet: &Fleet,
    host: &HostId,
    workloads: &[WorkloadSummary],
) -> Result<Vec<(WorkloadId, WorkloadSummary, Placement)>, Failure> {
    let inspected: Vec<_> = futures::stream::iter(workloads)
        .map(|workload| async move {
            let id = WorkloadId::new(&workload.workload_id).map_err(anyhow::Error::from)?;
            let annotations = fleet.inspect(host, &id).await?.annotations;
            let placement = annotations.get(PLACEMENT_ANNOTATION);
            // Of a later version, or of somebody else: then it is theirs to place.
            let placement = placement.and_then(|text| serde_json::from_str::<Placement>(text).ok());
            let placement = placement.filter(|placement| placement.replicas > 1);
            Ok::<_, Failure>(placement.map(|placement| (id, workload.clone(), placement)))
        })
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await;
    let inspected: Vec<_> = inspected.into_iter().collect::<Result<_, _>>()?;
    Ok(inspected.into_iter().flatten().collect())
}

/// The other hosts, and what each has.
struct Others {
    hosts: Vec<HostHeartbeat>,
    /// Namespace and name, by host: replicas are on different hosts.
    names: HashMap<String, BTreeSet<(String, String)>>,
    /// Where an id runs.
    running: HashMap<String, HostId>,
}

impl Others {
    async fn look(fleet: &Fleet, args: &DrainArgs) -> Result<Self, Failure> {
        let mut hosts = fleet.hosts(Look::Full(args.wait)).await?;
        hosts.retain(|host| host.id != args.id.as_str());
        let ids = hosts.iter().map(|host| HostId::new(host.id.as_str()));
        let ids: Vec<_> = ids.collect::<Result<_, _>>().map_err(anyhow::Error::from)?;
        let (mut names, mut running) = (HashMap::new(), HashMap::new());
        for (host, listed) in ask_all(ids, async |host| fleet.list(host).await).await {
            match listed {
                Ok(workloads) => {
                    let names: &mut BTreeSet<_> = names.entry(host.to_string()).or_default();
                    for workload in workloads {
                        if workload.state == WorkloadState::Running {
                            running.insert(workload.workload_id, host.clone());
                        }
                        names.insert((workload.namespace, workload.name));
                    }
                }
                Err(failure) => {
                    // Whatever it has: it is no host to rely on.
                    tracing::warn!("{}", failure.message());
                    hosts.retain(|other| other.id != host.as_str());
                }
            }
        }
        Ok(Self {
            hosts,
            names,
            running,
        })
    }

    /// The host for one more replica, which is counted from now on.
    fn choose(&mut self, plan: &Plan) -> Result<HostId, Failure> {
        let name = (plan.workload.namespace.clone(), plan.workload.name.clone());
        let has = |host: &&HostHeartbeat| {
            let names = self.names.get(&host.id);
            names.is_some_and(|names| names.contains(&name))
        };
        let mut fitting: Vec<_> = self.hosts.iter().filter(|h| !has(h)).cloned().collect();
        let chosen = place::choose(plan, &mut fitting)?.pop();
        let chosen = chosen.ok_or_else(|| Failure::new(Exit::Failed, "no host was chosen"))?;
        let after = fitting.into_iter().find(|host| host.id == chosen.as_str());
        let before = self
            .hosts
            .iter_mut()
            .find(|host| host.id == chosen.as_str());
        if let (Some(before), Some(after)) = (before, after) {
            *before = after;
        }
        self.names
            .entry(chosen.to_string())
            .or_default()
            .insert(name);
        Ok(chosen)
    }
}

/// Starts each of `movable` on another host, and says what came of it.
async fn relocate(
    fleet: &Fleet,
    args: &DrainArgs,
    movable: Vec<(WorkloadId, WorkloadSummary, Placement)>,
) -> Result<HashMap<WorkloadId, Fate>, Failure> {
    let mut others = Others::look(fleet, args).await?;
    let (mut fates, mut placed) = (HashMap::new(), Vec::new());
    for (id, summary, placement) in movable {
        // By a drain that did not come to its end.
        if let Some(host) = others.running.get(id.as_str()) {
            fates.insert(id, Fate::Moved(host.clone()));
            continue;
        }
        match fleet.handover(&args.id, &id).await {
            Ok(request) => {
                let plan = Plan {
                    workload: request.workload.clone().unwrap_or_default(),
                    selector: placement.selector,
                    environment: placement.environment,
                    replicas: 1,
                    ..Plan::default()
                };
                match others.choose(&plan) {
                    Ok(host) => placed.push(Placed { host, id, request }),
                    Err(failure) => {
                        fates.insert(id, Fate::Stuck(failure.message().to_owned()));
                    }
                }
            }
            Err(failure) => {
                tracing::debug!(workload = summary.name, "not handed over");
                fates.insert(id, Fate::Stuck(failure.message().to_owned()));
            }
        }
    }
    let reply = ReplyArgs {
        wait: true,
        timeout: args.timeout,
        dry_run: false,
    };
    let reply = &reply;
    let outcomes: Vec<_> = futures::stream::iter(placed)
        .map(|placed| async move {
            let started = launch(fleet, &placed, reply).await;
            let Placed { host, id, .. } = placed;
            let fate = match started {
                Ok(status) if status.workload_state == WorkloadState::Running => Fate::Moved(host),
                Ok(status) => Fate::Stuck(format!(
                    "it is {} on host '{host}': {}",
                    short(status.workload_state),
                    status.message
                )),
                Err(failure) => Fate::Stuck(failure.message().to_owned()),
            };
            (id, fate)
        })
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await;
    fates.extend(outcomes);
    Ok(fates)
}

fn report(
    host: &HostId,
    workloads: &[WorkloadSummary],
    fates: &HashMap<WorkloadId, Fate>,
) -> Report {
    let (mut rows, mut data) = (Vec::new(), Vec::new());
    for workload in workloads {
        let id = WorkloadId::new(&workload.workload_id).ok();
        let fate = id.and_then(|id| fates.get(&id)).unwrap_or(&Fate::Ends);
        let (fate, to, why) = match fate {
            Fate::Ends => ("ends with its host", None, String::new()),
            Fate::Moved(to) => ("runs elsewhere", Some(to.to_string()), String::new()),
            Fate::Stuck(why) => ("could not be moved", None, why.clone()),
        };
        data.push(json!({
            "workloadId": workload.workload_id,
            "namespace": workload.namespace,
            "name": workload.name,
            "hostId": host.as_str(),
            "fate": fate,
            "movedTo": to,
            "message": why,
        }));
        let name = format!("{}/{}", workload.namespace, workload.name);
        let to = to.unwrap_or_default();
        rows.push([workload.workload_id.clone(), name, fate.to_owned(), to, why]);
    }
    let text = match rows.is_empty() {
        true => String::new(),
        false => table(["ID", "NAMESPACE/NAME", "FATE", "HOST", "MESSAGE"], rows),
    };
    Report {
        text,
        data: data.into(),
        ..Report::default()
    }
}
