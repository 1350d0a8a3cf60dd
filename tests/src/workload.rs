//! What to ask a host to run.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

/// A start request in the making, as the JSON that goes over the wire.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The workload's id, and its name.
    pub id: String,
    components: Vec<Value>,
    interfaces: Vec<Value>,
    extra: Map<String, Value>,
}

impl Workload {
    /// A workload with nothing in it, in the namespace `default`.
    pub fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            components: Vec::new(),
            interfaces: Vec::new(),
            extra: Map::new(),
        }
    }

    /// Adds a component; `fields` are those of the wire's `Component`, such as
    /// `{"localResources": {"config": {"k": "v"}}}`.
    #[must_use]
    pub fn component(mut self, name: &str, image: &str, fields: Value) -> Self {
        let mut component = json!({ "name": name, "image": image });
        merge(&mut component, fields);
        self.components.push(component);
        self
    }

    /// Adds a host interface, `namespace:package/interface,..[@version]`, with its configuration.
    #[must_use]
    pub fn interface(self, interface: &str, config: &[(&str, &str)]) -> Self {
        self.named_interface("", interface, config)
    }

    /// As [`interface`](Self::interface), for imports that are labelled `name`.
    #[must_use]
    pub fn named_interface(mut self, name: &str, interface: &str, config: &[(&str, &str)]) -> Self {
        let (rest, version) = interface.split_once('@').unwrap_or((interface, ""));
        let (package, interfaces) = rest.split_once('/').unwrap_or((rest, ""));
        let (namespace, package) = package.split_once(':').unwrap_or((package, ""));
        let config: Map<_, _> = config
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).into()))
            .collect();
        self.interfaces.push(json!({
            "name": name,
            "namespace": namespace,
            "package": package,
            "interfaces": interfaces.split(',').collect::<Vec<_>>(),
            "version": version,
            "config": config,
        }));
        self
    }

    /// Makes it answer HTTP requests for the virtual host `host`.
    #[must_use]
    pub fn http(self, host: &str) -> Self {
        self.interface("wasi:http/incoming-handler", &[("host", host)])
    }

    /// Sets fields of the wire's `Workload`, such as `{"namespace": "other"}`.
    #[must_use]
    pub fn with(mut self, fields: Value) -> Self {
        if let Value::Object(fields) = fields {
            self.extra.extend(fields);
        }
        self
    }

    /// The wire's `WorkloadStartRequest`.
    pub fn request(&self) -> Value {
        let mut workload = json!({
            "namespace": "default",
            "name": self.id,
            "witWorld": { "components": self.components, "hostInterfaces": self.interfaces },
        });
        merge(&mut workload, Value::Object(self.extra.clone()));
        json!({ "workloadId": self.id, "workload": workload })
    }
}

fn merge(into: &mut Value, fields: Value) {
    if let (Value::Object(into), Value::Object(fields)) = (into, fields) {
        into.extend(fields);
    }
}

/// The bytes of a component that is committed in this repository: one of `examples/`, else one of
/// `tests/components/wasm/`.
///
/// # Errors
/// When there is none of that name.
pub fn component(name: &str) -> Result<Vec<u8>> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let example = root.join(format!("examples/{name}/{name}.wasm"));
    let guest = root.join(format!("tests/components/wasm/{name}.wasm"));
    let path = if example.is_file() { example } else { guest };
    fs::read(&path).with_context(|| format!("there is no component \"{name}\""))
}
