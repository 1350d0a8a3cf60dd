//! Which hosts a workload goes to.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use subjects::HostId;
use subjects::control::{CORDONED_LABEL, PRESSURE_LABEL};
use subjects::wire::HostHeartbeat;

use washlet::seal::PublicKey;
use washlet::workload::sealed;

use crate::manifest::Plan;
use crate::output::{Exit, Failure};
use crate::secrets::key;

/// As many different hosts as `plan` wants, those with the fewest workloads first.
///
/// Shape: counts what it places in `hosts`, so that the next plan sees it.
///
/// # Errors
/// Too few hosts fit; the text counts why.
pub(super) fn choose(plan: &Plan, hosts: &mut [HostHeartbeat]) -> Result<Vec<HostId>, Failure> {
    if let Some(host) = &plan.host {
        return Ok(vec![host.clone(); usize::from(plan.replicas.min(1))]);
    }
    let needed = memory_bytes(plan);
    let recipients = sealed::recipients(&plan.workload);
    let mut unfit: Vec<(String, usize)> = Vec::new();
    let mut fitting = Vec::new();
    let asked = hosts.len();
    for host in hosts {
        match obstacle(plan, host, needed, recipients.as_ref()) {
            None => fitting.push(host),
            Some(why) => match unfit.iter_mut().find(|(known, _)| *known == why) {
                Some((_, count)) => *count += 1,
                None => unfit.push((why, 1)),
            },
        }
    }
    let wanted = usize::from(plan.replicas);
    if fitting.len() < wanted {
        let why = unfit
            .iter()
            .map(|(why, count)| format!("{count} {why}"))
            .collect::<Vec<_>>()
            .join(", ");
        let why = if why.is_empty() {
            String::new()
        } else {
            format!(": {why}")
        };
        let name = &plan.workload.name;
        let message = format!(
            "'{name}' needs {wanted} hosts, but only {} of the {asked} that answered fit{why}",
            fitting.len()
        );
        return Err(Failure::new(Exit::Unreachable, message)
            .hint("`wash hosts` lists the hosts; change --host-group, --selector, --environment or --replicas"));
    }
    fitting.sort_by_key(|host| {
        (
            host.workload_count,
            Reverse(host.system_memory_free),
            host.id.clone(),
        )
    });
    let chosen = fitting.into_iter().take(wanted).map(|host| {
        host.workload_count += 1;
        host.system_memory_free = host.system_memory_free.saturating_sub(needed);
        HostId::new(host.id.as_str())
    });
    Ok(chosen
        .collect::<Result<_, _>>()
        .map_err(anyhow::Error::from)?)
}

/// Why `plan` cannot go to `host`.
fn obstacle(
    plan: &Plan,
    host: &HostHeartbeat,
    needed: u64,
    recipients: Option<&BTreeSet<PublicKey>>,
) -> Option<String> {
    let unlike = |(key, value): &(&String, &String)| host.labels.get(*key) != Some(*value);
    if let Some((key, value)) = plan.selector.iter().find(unlike) {
        return Some(format!("without label {key}={value}"));
    }
    if !plan.environment.is_empty() && plan.environment != host.environment {
        return Some(format!("not in environment '{}'", plan.environment));
    }
    if host
        .labels
        .get(CORDONED_LABEL)
        .is_some_and(|value| value == "true")
    {
        return Some("cordoned".into());
    }
    let opens = |keys: &BTreeSet<_>| key(host).is_some_and(|key| keys.contains(&key));
    if !recipients.is_none_or(opens) {
        return Some("unable to open its sealed values".into());
    }
    let pressure = host.labels.get(PRESSURE_LABEL);
    let short_of =
        |resource: &str| pressure.is_some_and(|all| all.split('.').any(|one| one == resource));
    if let Some(resource) = ["memory", "disk"].into_iter().find(|one| short_of(one)) {
        return Some(format!("short of {resource}"));
    }
    // A host that does not know its memory says 0 of 0.
    if host.system_memory_total > 0 && host.system_memory_free < needed {
        return Some("short of memory".into());
    }
    None
}

/// The memory that the components of `plan` may use together, as far as it says.
fn memory_bytes(plan: &Plan) -> u64 {
    let components = plan
        .workload
        .wit_world
        .iter()
        .flat_map(|world| &world.components);
    let resources = components.map(|component| component.local_resources.as_ref());
    let service = plan
        .workload
        .service
        .iter()
        .map(|service| service.local_resources.as_ref());
    let limits = resources
        .chain(service)
        .flatten()
        .map(|resources| resources.memory_limit_mb.max(0));
    limits.map(|mib| u64::from(mib.unsigned_abs()) << 20).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use subjects::control::SEAL_KEY_LABEL;
    use subjects::wire::{Component, LocalResources, WitWorld, Workload};
    use washlet::seal::{SealKey, seal};

    fn host(id: &str, group: &str, workload_count: u64, free_mib: u64) -> HostHeartbeat {
        HostHeartbeat {
            id: id.into(),
            labels: [("hostgroup".to_owned(), group.to_owned())].into(),
            environment: "prod".into(),
            workload_count,
            system_memory_total: 8 << 30,
            system_memory_free: free_mib << 20,
            ..HostHeartbeat::default()
        }
    }

    fn plan(replicas: u16, memory_limit_mb: i32) -> Plan {
        let resources = LocalResources {
            memory_limit_mb,
            ..LocalResources::default()
        };
        let component = Component {
            local_resources: Some(resources),
            ..Component::default()
        };
        let world = WitWorld {
            components: vec![component],
            host_interfaces: Vec::new(),
        };
        let workload = Workload {
            name: "w".into(),
            wit_world: Some(world),
            ..Workload::default()
        };
        Plan {
            workload,
            replicas,
            ..Plan::default()
        }
    }

    fn ids(chosen: Result<Vec<HostId>, Failure>) -> Vec<String> {
        chosen.unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_emptiest_hosts_come_first_and_the_next_plan_sees_it() {
        let mut hosts = [
            host("a", "x", 1, 900),
            host("b", "x", 0, 100),
            host("c", "x", 0, 500),
        ];
        assert_eq!(ids(choose(&plan(2, 0), &mut hosts)), ["c", "b"]);
        assert_eq!(ids(choose(&plan(1, 0), &mut hosts)), ["a"]);
    }

    #[test]
    fn hosts_that_do_not_fit_are_counted_by_reason() {
        let mut cordoned = host("d", "x", 0, 900);
        cordoned.labels.insert(CORDONED_LABEL.into(), "true".into());
        let mut full = host("e", "x", 0, 900);
        full.labels.insert(PRESSURE_LABEL.into(), "disk.cpu".into());
        let mut busy = host("f", "z", 0, 900);
        busy.labels.insert(PRESSURE_LABEL.into(), "cpu".into());
        let mut hosts = [
            host("a", "y", 0, 900),
            host("b", "x", 0, 100),
            host("c", "x", 9, 500),
            cordoned,
            full,
            busy,
        ];
        // Somebody has to do it, busy or not.
        let mut anywhere = plan(1, 256);
        anywhere.selector.insert("hostgroup".into(), "z".into());
        assert_eq!(ids(choose(&anywhere, &mut hosts)), ["f"]);
        let mut wanted = plan(1, 256);
        wanted.selector.insert("hostgroup".into(), "x".into());
        wanted.environment = "prod".into();
        assert_eq!(ids(choose(&wanted, &mut hosts)), ["c"]);
        wanted.replicas = 2;
        let failure = choose(&wanted, &mut hosts).unwrap_err();
        assert_eq!(failure.exit(), Exit::Unreachable);
        assert_eq!(
            failure.message(),
            "'w' needs 2 hosts, but only 0 of the 6 that answered fit: \
             2 without label hostgroup=x, 2 short of memory, 1 cordoned, 1 short of disk",
        );
    }

    #[test]
    fn what_is_sealed_goes_where_it_opens() {
        let key = |byte: u8| SealKey::new(&[byte; 32]).unwrap().public();
        let with_key = |id: &str, byte: u8| {
            let mut host = host(id, "x", 0, 900);
            host.labels
                .insert(SEAL_KEY_LABEL.into(), key(byte).to_string());
            host
        };
        let mut hosts = [
            host("old", "x", 0, 900),
            with_key("a", 1),
            with_key("b", 2),
            with_key("c", 3),
        ];
        let mut sealed = plan(2, 0);
        let world = sealed.workload.wit_world.as_mut().unwrap();
        let resources = world.components[0].local_resources.as_mut().unwrap();
        let value = seal(b"canary", "", &[key(2), key(3)]).unwrap();
        resources.environment.insert("A".into(), value);
        assert_eq!(ids(choose(&sealed, &mut hosts)), ["b", "c"]);
        sealed.replicas = 3;
        let failure = choose(&sealed, &mut hosts).unwrap_err();
        let why = "'w' needs 3 hosts, but only 2 of the 4 that answered fit: 2 unable to open its sealed values";
        assert_eq!(failure.message(), why);
    }

    #[test]
    fn a_pinned_workload_goes_nowhere_else() {
        let mut pinned = plan(1, 0);
        pinned.host = Some(HostId::new("z").unwrap());
        assert_eq!(ids(choose(&pinned, &mut [])), ["z"]);
    }
}
