//! `wash workload`: start, stop, status, list.

use std::io::Read;
use std::path::PathBuf;

use futures::StreamExt;
use serde_json::{Value, json};
use subjects::wire::{
    HostHeartbeat, WorkloadStartRequest, WorkloadState, WorkloadStatus, WorkloadSummary,
};
use subjects::{HostId, WorkloadId};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use crate::args::{ListArgs, ReplyArgs, StartArgs, StatusArgs, StopArgs};
use crate::fleet::{ASKED_AT_ONCE, Fleet, Look, nobody};
use crate::manifest::{self, Plan};
use crate::output::{Exit, Failure, Report, table};

mod drain;
mod flags;
mod place;

pub(crate) use drain::drain;
pub(crate) use flags::interfaces;

/// How long to look for hosts before placing.
const LOOK: std::time::Duration = std::time::Duration::from_secs(3);
/// How often to ask for the state of a workload that is starting.
const POLL: std::time::Duration = std::time::Duration::from_millis(300);

/// One workload for one host.
#[derive(Debug)]
struct Placed {
    host: HostId,
    id: WorkloadId,
    request: WorkloadStartRequest,
}

/// What became of it.
struct Outcome {
    placed: Placed,
    result: Result<WorkloadStatus, Failure>,
}

/// Starts the workloads of a manifest or of flags.
pub(crate) async fn start(args: &StartArgs) -> Result<Report, Failure> {
    let mut plans = plans(args).await?;
    for plan in &mut plans {
        flags::overrule(plan, args)?;
    }
    drain::annotate(&mut plans)?;
    let copies: usize = plans.iter().map(|plan| usize::from(plan.replicas)).sum();
    if args.placement.id.is_some() && copies != 1 {
        return Err(Failure::usage(format!(
            "--id names one workload, but there are {copies} to start"
        ))
        .hint("leave out --id, every workload then gets a new one"));
    }
    if args.reply.dry_run {
        return Ok(dry_run(&plans, args.placement.id.as_ref()));
    }
    let fleet = Fleet::connect(&args.nats).await?;
    let mut hosts = Vec::new();
    if plans.iter().any(|plan| plan.host.is_none()) {
        let wait = LOOK.min(args.reply.timeout);
        hosts = fleet.hosts(Look::UntilQuiet(wait)).await?;
        if hosts.is_empty() {
            return Err(nobody(wait));
        }
    }
    let id = args.placement.id.as_ref();
    let placed = match place(&plans, &mut hosts, id) {
        // Those that answer slowly may fit.
        Err(failure) if failure.exit() == Exit::Unreachable => {
            let wait = LOOK.min(args.reply.timeout);
            let mut hosts = fleet.hosts(Look::Full(wait)).await?;
            place(&plans, &mut hosts, id)?
        }
        placed => placed?,
    };
    let fleet = &fleet;
    let outcomes = futures::stream::iter(placed)
        .map(|placed| async move {
            let result = launch(fleet, &placed, &args.reply).await;
            Outcome { placed, result }
        })
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await;
    summary(outcomes, args.reply.wait)
}

/// Chooses hosts for all of `plans`.
fn place(
    plans: &[Plan],
    hosts: &mut [HostHeartbeat],
    id: Option<&WorkloadId>,
) -> Result<Vec<Placed>, Failure> {
    let mut placed = Vec::new();
    for plan in plans {
        for host in place::choose(plan, hosts)? {
            let (id, request) = request(plan, id)?;
            placed.push(Placed { host, id, request });
        }
    }
    Ok(placed)
}

async fn plans(args: &StartArgs) -> Result<Vec<Plan>, Failure> {
    let Some(file) = &args.file else {
        return Ok(vec![flags::plan(&args.component)?]);
    };
    let shown = if file.as_os_str() == "-" {
        "stdin".to_owned()
    } else {
        format!("\"{}\"", file.display())
    };
    let file = file.clone();
    // A terminal or a pipe may never end, and Ctrl-C must be heard meanwhile.
    let text = tokio::task::spawn_blocking(move || text(file)).await;
    let text = text
        .map_err(anyhow::Error::from)?
        .map_err(|error| Failure::usage(format!("cannot read {shown}: {error}")))?;
    let plans =
        manifest::read(&text).map_err(|error| Failure::usage(format!("{shown}: {error}")))?;
    for path in plans.iter().flat_map(|plan| &plan.without_effect) {
        tracing::warn!("{shown}: '{path}' has no effect outside Kubernetes");
    }
    Ok(plans)
}

/// What is in `file`, or comes from stdin for `-`.
fn text(file: PathBuf) -> std::io::Result<String> {
    if file.as_os_str() != "-" {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

fn request(
    plan: &Plan,
    id: Option<&WorkloadId>,
) -> Result<(WorkloadId, WorkloadStartRequest), Failure> {
    let id = match id {
        Some(id) => id.clone(),
        None => WorkloadId::new(uuid::Uuid::new_v4().to_string()).map_err(anyhow::Error::from)?,
    };
    let workload = Some(plan.workload.clone());
    Ok((
        id.clone(),
        WorkloadStartRequest {
            workload_id: id.to_string(),
            workload,
        },
    ))
}

/// What would be asked, without passwords.
fn dry_run(plans: &[Plan], id: Option<&WorkloadId>) -> Report {
    let shown = |plan: &Plan| {
        let mut workload = plan.workload.clone();
        let components = workload
            .wit_world
            .iter_mut()
            .flat_map(|world| &mut world.components);
        let secrets = components.filter_map(|component| component.image_pull_secret.as_mut());
        let service = workload
            .service
            .iter_mut()
            .filter_map(|service| service.image_pull_secret.as_mut());
        secrets
            .chain(service)
            .for_each(|secret| secret.password = "[redacted]".into());
        let id = id.map_or("<new>", WorkloadId::as_str);
        json!({
            "host": plan.host.as_ref().map(HostId::as_str),
            "selector": plan.selector,
            "environment": plan.environment,
            "replicas": plan.replicas,
            "request": { "workloadId": id, "workload": workload },
        })
    };
    let data: Value = plans.iter().map(shown).collect();
    Report {
        message: "nothing was started".into(),
        text: format!("{data:#}"),
        data,
    }
}

/// Starts a workload and, if asked to, waits until it runs or failed.
async fn launch(
    fleet: &Fleet,
    placed: &Placed,
    reply: &ReplyArgs,
) -> Result<WorkloadStatus, Failure> {
    let Placed { host, id, request } = placed;
    let deadline = Instant::now() + reply.timeout;
    let mut status = match fleet.start(host, request, reply.timeout).await {
        // It may have taken the request, and be slower to answer than we wait.
        Err(failure) if failure.exit() == Exit::Unreachable => match fleet.status(host, id).await {
            Ok(status) if status.workload_state != WorkloadState::NotFound => status,
            _ => return Err(failure),
        },
        started => started?,
    };
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lost = None;
    while reply.wait
        && matches!(
            status.workload_state,
            WorkloadState::Starting | WorkloadState::Unspecified
        )
    {
        let poll = async {
            ticks.tick().await;
            fleet.status(host, id).await
        };
        match timeout_at(deadline, poll).await {
            Ok(Ok(now)) => (status, lost) = (now, None),
            // The next one may be heard.
            Ok(Err(failure)) => lost = Some(failure),
            Err(_) => break,
        }
    }
    lost.map_or(Ok(status), Err)
}

fn summary(outcomes: Vec<Outcome>, wait: bool) -> Result<Report, Failure> {
    let (mut rows, mut data) = (Vec::new(), Vec::new());
    let (mut well, mut worst) = (0, None);
    let total = outcomes.len();
    for Outcome { placed, result } in outcomes {
        let workload = placed.request.workload.unwrap_or_default();
        let (state, message, exit) = match result {
            Ok(status) => {
                let exit = match status.workload_state {
                    WorkloadState::Running | WorkloadState::Completed => None,
                    WorkloadState::Starting | WorkloadState::Unspecified if !wait => None,
                    WorkloadState::Starting | WorkloadState::Unspecified => Some(Exit::Failed),
                    _ => Some(Exit::Refused),
                };
                (short(status.workload_state), status.message, exit)
            }
            Err(failure) => {
                let state = match failure.exit() {
                    Exit::Refused => "ERROR",
                    _ => "UNKNOWN",
                };
                (state, failure.message().to_owned(), Some(failure.exit()))
            }
        };
        match exit {
            None => well += 1,
            Some(exit) => worst = Some(worse(worst, exit)),
        }
        let (id, host) = (placed.id.to_string(), placed.host.to_string());
        data.push(json!({
            "workloadId": id,
            "hostId": host,
            "namespace": workload.namespace,
            "name": workload.name,
            "state": state,
            "message": message,
        }));
        rows.push([
            id,
            format!("{}/{}", workload.namespace, workload.name),
            host,
            state.to_owned(),
            message,
        ]);
    }
    let text = table(["ID", "NAMESPACE/NAME", "HOST", "STATE", "MESSAGE"], rows);
    let verb = if wait { "running" } else { "accepted" };
    let message = format!("{well} of {total} workloads {verb}");
    let report = Report {
        message,
        text,
        data: data.into(),
    };
    let Some(exit) = worst else { return Ok(report) };
    let failure = Failure::with_report(exit, report);
    Err(match exit {
        Exit::Refused => failure
            .hint("the message of the host says why; with `next in` the host goes on trying, which `wash workload stop ID` ends"),
        Exit::Unreachable => failure.hint("`wash hosts` lists the hosts that answer"),
        _ => {
            failure.hint("wait longer with --timeout, or look again with `wash workload status ID`")
        }
    })
}

/// The exit code of several failures: a host that said no tells more than one that said nothing.
fn worse(worst: Option<Exit>, exit: Exit) -> Exit {
    match (worst, exit) {
        (_, Exit::Refused) | (None, _) => exit,
        (Some(worst), _) => worst,
    }
}

/// The state without its prefix.
fn short(state: WorkloadState) -> &'static str {
    state.as_str().trim_start_matches("WORKLOAD_STATE_")
}

/// Which of `hosts` have the workload `id`, and how far it is there.
async fn find(
    fleet: &Fleet,
    id: &WorkloadId,
    hosts: Vec<HostId>,
) -> Result<Vec<(HostId, WorkloadStatus)>, Failure> {
    let asked = hosts.len();
    let answers = ask_all(hosts, async |host| fleet.status(host, id).await).await;
    let mut silent = 0;
    let mut found = Vec::new();
    for (host, answer) in answers {
        match answer {
            Ok(status) if status.workload_state == WorkloadState::NotFound => {}
            Ok(status) => found.push((host, status)),
            // Asked for this one host, its failure is the result.
            Err(failure) if asked == 1 => return Err(failure),
            Err(failure) => {
                silent += 1;
                tracing::warn!("{}", failure.message());
            }
        }
    }
    match (found.is_empty(), silent) {
        (false, _) => Ok(found),
        (true, 0) => {
            let hosts = if asked == 1 { "host" } else { "hosts" };
            Err(Failure::new(
                Exit::Failed,
                format!("workload '{id}' is not on the {asked} {hosts} asked"),
            )
            .hint("`wash workload list` shows all"))
        }
        (true, _) => {
            let message = format!(
                "workload '{id}' was not found, and {silent} of {asked} hosts did not answer"
            );
            Err(Failure::new(Exit::Unreachable, message)
                .hint("try again, or name the host with --host"))
        }
    }
}

async fn ask_all<T>(hosts: Vec<HostId>, ask: impl AsyncFn(&HostId) -> T) -> Vec<(HostId, T)> {
    let ask = &ask;
    let answers = hosts.into_iter().map(|host| async move {
        let answer = ask(&host).await;
        (host, answer)
    });
    futures::stream::iter(answers)
        .buffered(ASKED_AT_ONCE)
        .collect()
        .await
}

fn states(rows: &[(HostId, WorkloadStatus)]) -> (String, Value) {
    let cells = rows.iter().map(|(host, status)| {
        let state = short(status.workload_state).to_owned();
        [
            status.workload_id.clone(),
            host.to_string(),
            state,
            status.message.clone(),
        ]
    });
    let data = rows.iter().map(|(host, status)| {
        let state = short(status.workload_state);
        json!({ "workloadId": status.workload_id, "hostId": host.as_str(), "state": state, "message": status.message })
    });
    (
        table(["ID", "HOST", "STATE", "MESSAGE"], cells),
        data.collect(),
    )
}

/// Stops workloads wherever they are; one that cannot be stopped does not keep the others.
pub(crate) async fn stop(args: &StopArgs) -> Result<Report, Failure> {
    let fleet = Fleet::connect(&args.fleet.nats).await?;
    let named = args.fleet.host.as_ref();
    let hosts = fleet.ids(named, args.fleet.wait).await?;
    let (mut stopped, mut failures) = (Vec::new(), Vec::new());
    for id in &args.ids {
        let mut hosts = hosts.clone();
        if named.is_none() {
            match find(&fleet, id, hosts).await {
                Ok(found) => hosts = found.into_iter().map(|(host, _)| host).collect(),
                Err(failure) => {
                    failures.push(failure);
                    continue;
                }
            }
        }
        for (host, answer) in ask_all(hosts, async |host| fleet.stop(host, id).await).await {
            match answer {
                Ok(status) => stopped.push((host, status)),
                Err(failure) => failures.push(failure),
            }
        }
    }
    let unwell = |state| matches!(state, WorkloadState::Error | WorkloadState::NotFound);
    let refused = stopped
        .iter()
        .filter(|(_, status)| unwell(status.workload_state))
        .count();
    let mut worst = (refused > 0).then_some(Exit::Refused);
    for failure in &failures {
        worst = Some(worse(worst, failure.exit()));
    }
    let total = stopped.len() + failures.len();
    let (text, data) = if stopped.is_empty() {
        (String::new(), json!([]))
    } else {
        states(&stopped)
    };
    let report = Report {
        message: format!("{} of {total} workloads stopped", stopped.len() - refused),
        text,
        data,
    };
    match (worst, failures.into_iter().next()) {
        (None, _) => Ok(report),
        (Some(exit), None) => Err(Failure::with_report(exit, report)),
        (Some(_), Some(failure)) if total == 1 => Err(failure),
        (Some(exit), Some(failure)) => Err(failure.within(exit, report)),
    }
}

/// Shows how far a workload is, on every host that has it.
pub(crate) async fn status(args: &StatusArgs) -> Result<Report, Failure> {
    let fleet = Fleet::connect(&args.fleet.nats).await?;
    let hosts = fleet.ids(args.fleet.host.as_ref(), args.fleet.wait).await?;
    let found = find(&fleet, &args.id, hosts).await?;
    let known = found.iter().map(|(host, _)| host.clone()).collect();
    let details = ask_all(known, async |host| fleet.inspect(host, &args.id).await).await;
    let (mut rows, mut all) = (Vec::new(), Vec::new());
    for ((host, status), (_, details)) in found.into_iter().zip(details) {
        // Hosts of others do not know the question.
        let summary = details.ok().and_then(|details| details.workload);
        let mut data = details_of(summary);
        let changed = data.get("changedAt").and_then(Value::as_str);
        let changed = changed.and_then(|at| at.get(.."2026-01-01T00:00:00".len()));
        let state = short(status.workload_state);
        rows.push([
            status.workload_id.clone(),
            host.to_string(),
            state.to_owned(),
            changed.map(|at| format!("{at}Z")).unwrap_or_default(),
            status.message.clone(),
        ]);
        data.insert("workloadId".into(), status.workload_id.into());
        data.insert("hostId".into(), host.as_str().into());
        data.insert("state".into(), state.into());
        data.insert("message".into(), status.message.into());
        all.push(Value::Object(data));
    }
    Ok(Report {
        text: table(["ID", "HOST", "STATE", "SINCE", "MESSAGE"], rows),
        data: all.into(),
        ..Report::default()
    })
}

/// What there is to know of a workload beyond its state: of its attempts, and what its components use.
fn details_of(summary: Option<WorkloadSummary>) -> serde_json::Map<String, Value> {
    let summary = summary.map(|summary| json!(summary));
    let Some(Value::Object(mut fields)) = summary else {
        return serde_json::Map::new();
    };
    let of_status = [
        "attempts",
        "reason",
        "changedAt",
        "nextAttemptAt",
        "components",
    ];
    fields.retain(|name, _| of_status.contains(&name.as_str()));
    fields
}

/// Lists the workloads of all hosts.
pub(crate) async fn list(args: &ListArgs) -> Result<Report, Failure> {
    let fleet = Fleet::connect(&args.fleet.nats).await?;
    let ids = fleet.ids(args.fleet.host.as_ref(), args.fleet.wait).await?;
    let asked = ids.len();
    let mut workloads = Vec::new();
    let mut failures = Vec::new();
    for (host, answer) in ask_all(ids, async |host| fleet.list(host).await).await {
        match answer {
            Ok(list) => workloads.extend(list.into_iter().map(|workload| (host.clone(), workload))),
            Err(failure) => failures.push(failure),
        }
    }
    let silent = failures.len();
    if silent == asked
        && let Some(failure) = failures.pop()
    {
        return Err(failure);
    }
    for failure in failures {
        tracing::warn!("{}", failure.message());
    }
    let message = if workloads.is_empty() {
        format!("no workloads on {} hosts", asked - silent)
    } else {
        String::new()
    };
    let headings = [
        "ID",
        "NAMESPACE/NAME",
        "HOST",
        "STATE",
        "IMAGES",
        "HTTP HOSTS",
    ];
    let text = if workloads.is_empty() {
        String::new()
    } else {
        table(headings, workloads.iter().map(row))
    };
    let data = workloads.iter().map(|(host, workload)| {
        let mut data = json!(workload);
        if let Value::Object(fields) = &mut data {
            fields.insert("hostId".into(), host.as_str().into());
            fields.insert("state".into(), short(workload.state).into());
        }
        data
    });
    let data = data.collect();
    Ok(Report {
        message,
        text,
        data,
    })
}

fn row((host, workload): &(HostId, WorkloadSummary)) -> [String; 6] {
    let images = workload
        .components
        .iter()
        .map(|component| component.image.as_str());
    [
        workload.workload_id.clone(),
        format!("{}/{}", workload.namespace, workload.name),
        host.to_string(),
        short(workload.state).to_owned(),
        images.collect::<Vec<_>>().join(","),
        workload.hosts.join(","),
    ]
}
