//! Workloads from flags alone, and what flags change about those of a manifest.

use std::collections::BTreeMap;

use subjects::wire::{
    Component, ImagePullPolicy, ImagePullSecret, LocalResources, WitInterface, WitWorld, Workload,
};

use crate::args::StartArgs;
use crate::args::start::{ComponentArgs, Interface, InterfaceConfig, PullPolicy};
use crate::manifest::Plan;
use crate::output::Failure;

/// The workload of one component that `args` describe.
pub(crate) fn plan(args: &ComponentArgs) -> Result<Plan, Failure> {
    let image = args.image.clone().filter(|image| !image.is_empty());
    let image = image.ok_or_else(|| Failure::usage("--image must not be empty"))?;
    if image.starts_with("artifact://") {
        return Err(Failure::usage(format!(
            "--image '{image}' names an Artifact, which only exists in Kubernetes"
        ))
        .hint("write the image it stands for"));
    }
    let name = args.name.clone().unwrap_or_else(|| name_of(&image));
    let mut config: BTreeMap<_, _> = args.config.iter().cloned().collect();
    if !args.subscriptions.is_empty() {
        config.insert("subscriptions".into(), args.subscriptions.join(","));
    }
    let resources = LocalResources {
        memory_limit_mb: args.memory_limit_mb.unwrap_or_default(),
        cpu_limit: args.cpu_limit.unwrap_or_default(),
        config,
        environment: args.env.iter().cloned().collect(),
        allowed_hosts: args.allowed_hosts.clone(),
        ..LocalResources::default()
    };
    let component = Component {
        name: name.clone(),
        image,
        local_resources: Some(resources),
        image_pull_policy: match args.pull_policy {
            None => ImagePullPolicy::Unspecified,
            Some(PullPolicy::Always) => ImagePullPolicy::Always,
            Some(PullPolicy::IfNotPresent) => ImagePullPolicy::IfNotPresent,
            Some(PullPolicy::Never) => ImagePullPolicy::Never,
        },
        ..Component::default()
    };
    let mut host_interfaces = interfaces(&args.interfaces, &args.interface_config)?;
    if let Some(host) = &args.http_host {
        let entry = entry(&mut host_interfaces, "wasi", "http", "incoming-handler");
        entry.config.insert("host".into(), host.clone());
        if !args.http_aliases.is_empty() {
            entry
                .config
                .insert("host-aliases".into(), args.http_aliases.join(","));
        }
    }
    if !args.subscriptions.is_empty() {
        entry(&mut host_interfaces, "wasmcloud", "messaging", "handler");
    }
    let workload = Workload {
        namespace: args.namespace.clone().unwrap_or_else(|| "default".into()),
        name,
        wit_world: Some(WitWorld {
            components: vec![component],
            host_interfaces,
        }),
        ..Workload::default()
    };
    Ok(Plan {
        workload,
        replicas: 1,
        ..Plan::default()
    })
}

/// The unnamed entry of a package that has `interface`, made if there is none.
fn entry<'a>(
    entries: &'a mut Vec<WitInterface>,
    namespace: &str,
    package: &str,
    interface: &str,
) -> &'a mut WitInterface {
    let is_it = |entry: &WitInterface| {
        entry.namespace == namespace && entry.package == package && entry.name.is_empty()
    };
    let index = entries.iter().position(is_it).unwrap_or(entries.len());
    if index == entries.len() {
        entries.push(WitInterface::default());
    }
    #[expect(clippy::indexing_slicing, reason = "the entry was found or made above")]
    let entry = &mut entries[index];
    entry.namespace = namespace.to_owned();
    entry.package = package.to_owned();
    if !entry.interfaces.iter().any(|known| known == interface) {
        entry.interfaces.push(interface.to_owned());
    }
    entry
}

/// The entries that `interfaces` describe, each with its settings.
///
/// # Errors
/// A setting for no entry; two entries for one import.
pub(crate) fn interfaces(
    interfaces: &[Interface],
    settings: &[InterfaceConfig],
) -> Result<Vec<WitInterface>, Failure> {
    let mut entries: Vec<WitInterface> = Vec::new();
    for typed in interfaces {
        let same = |entry: &&mut WitInterface| {
            (&entry.namespace, &entry.package, &entry.name)
                == (&typed.namespace, &typed.package, &typed.name)
        };
        match entries.iter_mut().find(same) {
            Some(entry) if entry.version != typed.version => {
                return Err(Failure::usage(format!(
                    "--interface {}:{} is given for two versions under one name",
                    typed.namespace, typed.package
                ))
                .hint("name one of the entries, as in NAME=wasi:keyvalue/store"));
            }
            Some(entry) => entry.interfaces.extend(typed.interfaces.iter().cloned()),
            None => entries.push(WitInterface {
                namespace: typed.namespace.clone(),
                package: typed.package.clone(),
                version: typed.version.clone(),
                interfaces: typed.interfaces.clone(),
                name: typed.name.clone(),
                ..WitInterface::default()
            }),
        }
    }
    for setting in settings {
        let mut used = false;
        for entry in &mut entries {
            if setting.is_for(
                &entry.name,
                &format!("{}:{}", entry.namespace, entry.package),
            ) {
                entry
                    .config
                    .insert(setting.key.clone(), setting.value.clone());
                used = true;
            }
        }
        if !used {
            return Err(Failure::usage(format!(
                "--interface-config is for '{}', which no --interface names",
                setting.entry
            )));
        }
    }
    Ok(entries)
}

/// A name for the workload of `image`: the last part of its path.
fn name_of(image: &str) -> String {
    let path = image.split('@').next().unwrap_or(image);
    let last = path.rsplit('/').next().unwrap_or(path);
    let name = last.split(':').next().unwrap_or(last);
    name.trim_end_matches(".wasm").to_owned()
}

/// Puts what flags say about placement and registry over what `plan` says.
pub(crate) fn overrule(plan: &mut Plan, args: &StartArgs) -> Result<(), Failure> {
    let placement = &args.placement;
    plan.replicas = placement.replicas.unwrap_or(plan.replicas);
    if placement.host.is_some() {
        plan.host = placement.host.clone();
    }
    if let Some(environment) = &placement.environment {
        plan.environment = environment.clone();
    }
    plan.selector.extend(placement.selector.iter().cloned());
    plan.selector.extend(
        placement
            .host_group
            .clone()
            .map(|group| ("hostgroup".to_owned(), group)),
    );
    if plan.host.is_some() && plan.replicas > 1 {
        return Err(Failure::usage(format!(
            "{} replicas need as many hosts, but the workload is pinned to one",
            plan.replicas
        ))
        .hint("select hosts by --host-group or --selector instead"));
    }
    let login = args
        .pull
        .pull_user
        .clone()
        .zip(args.pull.pull_password.clone());
    if let Some((username, password)) = login {
        let secret = Some(ImagePullSecret { username, password });
        for component in plan
            .workload
            .wit_world
            .iter_mut()
            .flat_map(|world| &mut world.components)
        {
            component.image_pull_secret = secret.clone();
        }
        if let Some(service) = &mut plan.workload.service {
            service.image_pull_secret = secret;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_from_the_image() {
        let names = [
            ("ghcr.io/acme/counter:1.2", "counter"),
            ("127.0.0.1:5000/counter@sha256:00", "counter"),
            ("counter", "counter"),
            ("file:///tmp/http-hello.wasm", "http-hello"),
        ];
        for (image, name) in names {
            assert_eq!(name_of(image), name);
        }
    }
}
