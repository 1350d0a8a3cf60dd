//! `wash hosts`: list, cordon, uncordon, drain.

use serde_json::json;
use subjects::control::{CORDONED_LABEL, PRESSURE_LABEL};
use subjects::wire::HostHeartbeat;

use crate::args::{HostsArgs, HostsCommand, OneHostArgs};
use crate::fleet::{Fleet, Look};
use crate::output::{Failure, Report, printable, table};
use crate::workload;

/// Lists hosts, or tells one what to do.
pub(crate) async fn run(args: &HostsArgs) -> Result<Report, Failure> {
    match &args.command {
        None => list(args).await,
        Some(HostsCommand::Cordon(host)) => cordon(host, true).await,
        Some(HostsCommand::Uncordon(host)) => cordon(host, false).await,
        Some(HostsCommand::Drain(args)) => workload::drain(args).await,
    }
}

async fn cordon(args: &OneHostArgs, cordoned: bool) -> Result<Report, Failure> {
    let fleet = Fleet::connect(&args.nats).await?;
    let state = fleet.cordon(&args.id, cordoned).await?;
    Ok(Report {
        message: format!("host '{}': {}", args.id, printable(&state.message)),
        data: json!(state),
        ..Report::default()
    })
}

/// Lists the hosts that answer.
async fn list(args: &HostsArgs) -> Result<Report, Failure> {
    let hosts = Fleet::connect(&args.nats)
        .await?
        .hosts(Look::Full(args.wait))
        .await?;
    if hosts.is_empty() {
        let wait = humantime::format_duration(args.wait);
        let message = format!(
            "no host answered within {wait}\nhint: start one with `wash host`, or look longer with --wait 20s"
        );
        return Ok(Report {
            message,
            data: json!([]),
            ..Report::default()
        });
    }
    let headings = [
        "ID",
        "NAME",
        "STATE",
        "GROUP",
        "HTTP",
        "WORKLOADS",
        "COMPONENTS",
        "CPU %",
        "MEM FREE",
        "VERSION",
        "KEY",
    ];
    Ok(Report {
        text: table(headings, hosts.iter().map(row)),
        data: json!(hosts),
        ..Report::default()
    })
}

fn row(host: &HostHeartbeat) -> [String; 11] {
    let http = match host.http_port {
        0 => String::new(),
        port if host.hostname.contains(':') => format!("[{}]:{port}", host.hostname),
        port => format!("{}:{port}", host.hostname),
    };
    let cordoned = host.labels.get(CORDONED_LABEL).map(String::as_str);
    let state = match (cordoned, host.labels.get(PRESSURE_LABEL)) {
        (Some("true"), _) => "cordoned".to_owned(),
        (_, Some(short_of)) => format!("short of {}", short_of.replace('.', ", ")),
        _ => "ready".to_owned(),
    };
    let group = host.labels.get("hostgroup").cloned().unwrap_or_default();
    [
        host.id.clone(),
        host.friendly_name.clone(),
        state,
        group,
        http,
        host.workload_count.to_string(),
        host.component_count.to_string(),
        format!("{:.1}", host.system_cpu_usage),
        size(host.system_memory_free),
        host.version.clone(),
        crate::secrets::key(host)
            .map(|key| key.to_string())
            .unwrap_or_default(),
    ]
}

/// A size in the largest unit that keeps it above 1.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let fits = |(power, _): &(usize, &&str)| bytes >= 1 << (10 * power);
    match units.iter().enumerate().rev().find(fits) {
        Some((power, unit)) if power > 0 => {
            format!(
                "{:.1} {unit}",
                bytes as f64 / (1_u64 << (10 * power)) as f64
            )
        }
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people() {
        let sizes = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (3 << 30, "3.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
    }
}
