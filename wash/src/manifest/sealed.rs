//! The same manifest with its secrets sealed.

use serde_json::Value;

use super::{Error, documents, read};

/// Seals every value in `text` that may be a secret and is in the clear: of `environment` and `config` of
/// components and services, and of entries of `wasmcloud:secrets` that have their values in them.
///
/// # Errors
/// What `seal`, which is given the namespace and the value, refuses is the inner one.
pub(crate) fn sealed<E>(
    text: &str,
    mut seal: impl FnMut(&str, &str) -> Result<String, E>,
) -> Result<Result<String, E>, Error> {
    // Only what could be started is worth sealing, and has all fields where they are expected.
    read(text)?;
    let mut documents = documents(text)?;
    documents.retain(|document| !document.is_null());
    for document in &mut documents {
        let namespace = document
            .pointer("/metadata/namespace")
            .and_then(Value::as_str);
        let namespace = namespace.unwrap_or("default").to_owned();
        let mut seal = |value: &mut Value| match value.as_str() {
            Some(text) if !washlet::seal::is_sealed(text) => {
                *value = seal(&namespace, text)?.into();
                Ok(())
            }
            _ => Ok(()),
        };
        let spec = match document.pointer("/spec/template").is_some() {
            true => "/spec/template/spec",
            false => "/spec",
        };
        let mut each = || {
            let spec = document.pointer_mut(spec);
            let Some(spec) = spec else { return Ok(()) };
            for value in secrets(spec) {
                seal(value)?;
            }
            Ok(())
        };
        if let Err(error) = each() {
            return Ok(Err(error));
        }
    }
    let sealed = serde_saphyr::to_string_multiple(&documents);
    sealed
        .map(Ok)
        .map_err(|error| Error::Yaml(error.to_string()))
}

fn secrets(spec: &mut Value) -> Vec<&mut Value> {
    let Some(spec) = spec.as_object_mut() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (field, value) in spec {
        match (field.as_str(), value) {
            ("components", Value::Array(components)) => {
                found.extend(components.iter_mut().flat_map(resources));
            }
            ("service", service) => found.extend(resources(service)),
            ("hostInterfaces", Value::Array(entries)) => {
                let entries = entries.iter_mut().filter(|entry| has_secrets(entry));
                found.extend(entries.flat_map(|entry| values(entry.get_mut("config"))));
            }
            _ => {}
        }
    }
    found
}

fn resources(part: &mut Value) -> Vec<&mut Value> {
    let resources = part
        .get_mut("localResources")
        .and_then(Value::as_object_mut);
    let mut found = Vec::new();
    for (field, value) in resources.into_iter().flatten() {
        match field.as_str() {
            "config" => found.extend(values(Some(value))),
            "environment" => found.extend(values(value.get_mut("config"))),
            _ => {}
        }
    }
    found
}

fn values(map: Option<&mut Value>) -> Vec<&mut Value> {
    let map = map.and_then(Value::as_object_mut);
    map.into_iter().flat_map(|map| map.values_mut()).collect()
}

/// Without a backend the values of the entry are the secrets.
fn has_secrets(entry: &Value) -> bool {
    let is = |field: &str, value: &str| entry.get(field).and_then(Value::as_str) == Some(value);
    is("namespace", "wasmcloud")
        && is("package", "secrets")
        && entry.pointer("/config/backend").is_none()
}
