//! Manifests as for Kubernetes, read into what hosts are asked.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;
use subjects::HostId;
use subjects::wire;

mod resource;
mod sealed;
use resource::{Deployment, Head, HostInterface, Resource, Spec};
pub(crate) use sealed::sealed;

/// A workload and where it should go.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// What to run.
    pub(crate) workload: wire::Workload,
    /// On this host only.
    pub(crate) host: Option<HostId>,
    /// On hosts with these labels.
    pub(crate) selector: BTreeMap<String, String>,
    /// On hosts of this environment; empty for any.
    pub(crate) environment: String,
    /// On so many hosts.
    pub(crate) replicas: u16,
    /// What the manifest says that has no effect here.
    pub(crate) without_effect: Vec<&'static str>,
}

/// Why a manifest cannot be used.
#[derive(thiserror::Error, Debug)]
pub(crate) enum Error {
    /// It is not YAML; the text leaves out the lines around, which may hold secrets.
    #[error("not valid YAML: {0}")]
    Yaml(String),
    /// It has no resource.
    #[error("there is nothing in it")]
    Empty,
    /// A field is not what it should be.
    #[error("document {document}: '{path}': {problem}")]
    Field {
        /// The first is 1.
        document: usize,
        /// Shape: `spec.components[0].image`.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    fn field(document: usize, path: &str, problem: &str) -> Self {
        Self::Field {
            document,
            path: printable(path),
            problem: printable(problem),
        }
    }
}

/// What quotes a file, short and without what a terminal would act on.
fn printable(text: &str) -> String {
    const CHARS_MAX: usize = 500;
    let mut chars = text.chars();
    let first = chars.by_ref().take(CHARS_MAX);
    let mut short: String = first
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

/// What is in `text`, whatever it is.
fn documents(text: &str) -> Result<Vec<Value>, Error> {
    // As in YAML 1.2: `y` and `on` are text.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| Error::Yaml(printable(&error.without_snippet().to_string())))
}

/// Reads one plan per document.
pub(crate) fn read(text: &str) -> Result<Vec<Plan>, Error> {
    let documents = documents(text)?
        .into_iter()
        .enumerate()
        .filter(|(_, document)| !document.is_null());
    let plans: Vec<Plan> = documents
        .map(|(index, document)| plan(index + 1, document))
        .collect::<Result<_, _>>()?;
    if plans.is_empty() {
        Err(Error::Empty)
    } else {
        Ok(plans)
    }
}

fn plan(document: usize, value: Value) -> Result<Plan, Error> {
    let wrong = |path: &str, problem: String| Error::field(document, path, &problem);
    let Head { api_version, kind } = typed(document, keep(&value, &["apiVersion", "kind"]))?;
    if api_version != "runtime.wasmcloud.dev/v1alpha1" {
        return Err(wrong(
            "apiVersion",
            "must be runtime.wasmcloud.dev/v1alpha1".into(),
        ));
    }
    let (metadata, annotations, spec, replicas, mut without_effect, at) = match kind.as_str() {
        "Workload" => {
            let resource: Resource<Spec> = typed(document, value)?;
            let annotations = resource.metadata.annotations.clone();
            (
                resource.metadata,
                annotations,
                resource.spec,
                1,
                Vec::new(),
                "spec",
            )
        }
        "WorkloadDeployment" => {
            let resource: Resource<Deployment> = typed(document, value)?;
            let Deployment {
                replicas,
                template,
                deploy_policy,
                kubernetes,
                ..
            } = resource.spec;
            let ignored = [
                (deploy_policy.is_some(), "spec.deployPolicy"),
                (kubernetes.is_some(), "spec.kubernetes"),
                (!template.labels.is_empty(), "spec.template.labels"),
            ];
            let ignored = ignored
                .into_iter()
                .filter_map(|(given, path)| given.then_some(path))
                .collect();
            (
                resource.metadata,
                template.annotations,
                template.spec,
                replicas,
                ignored,
                "spec.template.spec",
            )
        }
        _ => {
            return Err(wrong(
                "kind",
                "must be WorkloadDeployment or Workload".into(),
            ));
        }
    };
    if spec.kubernetes.is_some() {
        without_effect.push("spec.kubernetes");
    }
    check(&spec).map_err(|(path, problem)| wrong(&format!("{at}.{path}"), problem))?;
    let host = spec.host_id.map(HostId::new).transpose();
    let host = host.map_err(|error| wrong(&format!("{at}.hostId"), error.to_string()))?;
    let world = wire::WitWorld {
        components: spec.components.into_iter().map(Into::into).collect(),
        host_interfaces: spec.host_interfaces.into_iter().map(Into::into).collect(),
    };
    let workload = wire::Workload {
        namespace: metadata.namespace,
        name: metadata.name,
        annotations,
        service: spec.service.map(Into::into),
        wit_world: Some(world),
        volumes: spec.volumes.into_iter().map(Into::into).collect(),
    };
    let (selector, environment) = (spec.host_selector, spec.environment);
    Ok(Plan {
        workload,
        host,
        selector,
        environment,
        replicas,
        without_effect,
    })
}

fn typed<T: for<'de> Deserialize<'de>>(document: usize, value: Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        Error::field(document, &path, &error.into_inner().to_string())
    })
}

/// The fields of `value` with these names.
fn keep(value: &Value, names: &[&str]) -> Value {
    let named = names
        .iter()
        .filter_map(|&name| Some((name.to_owned(), value.get(name)?.clone())));
    Value::Object(named.collect())
}

/// What the type of a field does not say. Shape: the path below the spec, and the problem.
fn check(spec: &Spec) -> Result<(), (String, String)> {
    if spec.components.is_empty() && spec.service.is_none() {
        return Err((
            "components".into(),
            "must not be empty without a service".into(),
        ));
    }
    if spec.host_interfaces.len() > 64 {
        return Err(("hostInterfaces".into(), "must be at most 64".into()));
    }
    let mut unnamed = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for (index, entry) in spec.host_interfaces.iter().enumerate() {
        let HostInterface {
            namespace,
            package,
            name,
            version,
            interfaces,
            ..
        } = entry;
        let at = format!("hostInterfaces[{index}]");
        if interfaces.is_empty() {
            return Err((format!("{at}.interfaces"), "must not be empty".into()));
        }
        if name.is_empty() && !unnamed.insert((namespace, package)) {
            return Err((
                at,
                format!("is the second one for {namespace}:{package} without a name"),
            ));
        }
        if !seen.insert((namespace, package, name, version)) {
            return Err((
                at,
                format!("is the second one for {namespace}:{package} named '{name}'"),
            ));
        }
    }
    for (index, volume) in spec.volumes.iter().enumerate() {
        if volume.ephemeral.is_some() && volume.host_path.is_some() {
            return Err((
                format!("volumes[{index}]"),
                "must not have both ephemeral and hostPath".into(),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
