//! The resources that the cluster knows, and the manifests.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{MANIFESTS, deploy, fields, str_at, strings, yaml};

const GROUP: &str = "runtime.wasmcloud.dev";

fn manifest(name: &str) -> Result<Value> {
    yaml(&format!("manifests/{name}.yaml"))
}

/// The definitions by kind.
fn definitions() -> Result<BTreeMap<String, Value>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(deploy("crds"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let definition = yaml(&format!("crds/{name}"))?;
        let kind = str_at(&definition, "/spec/names/kind").to_owned();
        ensure!(all.insert(kind, definition).is_none(), "{name} comes twice");
    }
    Ok(all)
}

fn schema<'a>(definitions: &'a BTreeMap<String, Value>, kind: &str) -> Result<&'a Value> {
    let definition = definitions.get(kind).context("no such kind")?;
    let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema");
    schema.with_context(|| format!("{kind} has no schema"))
}

#[test]
fn the_definitions_are_those_of_the_operator() -> Result<()> {
    let definitions = definitions()?;
    for (kind, definition) in &definitions {
        let names = definition.pointer("/spec/names").context("no names")?;
        let plural = str_at(names, "/plural");
        assert_eq!(str_at(names, "/singular"), kind.to_lowercase());
        assert_eq!(plural, format!("{}s", kind.to_lowercase()));
        assert_eq!(str_at(names, "/listKind"), format!("{kind}List"));
        assert_eq!(
            str_at(definition, "/metadata/name"),
            format!("{plural}.{GROUP}")
        );
        assert_eq!(str_at(definition, "/spec/group"), GROUP);
        assert_eq!(str_at(definition, "/spec/scope"), "Namespaced");
        let version = definition.pointer("/spec/versions/0").context("version")?;
        assert_eq!(version["name"], "v1alpha1");
        assert_eq!(version["storage"], true);
        assert_eq!(version["subresources"]["status"], json!({}), "{kind}");
        let scale = &version["subresources"]["scale"];
        assert_eq!(scale.is_object(), kind == "WorkloadDeployment", "{kind}");
        let mut untyped = Vec::new();
        structural(schema(&definitions, kind)?, kind, &mut untyped);
        assert_eq!(untyped, [""; 0]);
    }
    let kinds: Vec<&str> = definitions.keys().map(String::as_str).collect();
    let expected = [
        "Artifact",
        "Host",
        "Workload",
        "WorkloadDeployment",
        "WorkloadReplicaSet",
    ];
    assert_eq!(kinds, expected);

    // Written three times because a definition cannot refer to another.
    let workload = schema(&definitions, "Workload")?.pointer("/properties/spec");
    assert!(workload.is_some());
    let template = "/properties/spec/properties/template/properties/spec";
    for kind in ["WorkloadReplicaSet", "WorkloadDeployment"] {
        assert!(
            schema(&definitions, kind)?.pointer(template) == workload,
            "{kind}"
        );
    }
    Ok(())
}

/// Kubernetes wants a type for every value that can be stored.
fn structural(schema: &Value, path: &str, untyped: &mut Vec<String>) {
    if str_at(schema, "/type").is_empty() {
        untyped.push(path.to_owned());
    }
    for (name, inner) in fields(schema, "/properties") {
        structural(inner, &format!("{path}.{name}"), untyped);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(name) {
            structural(inner, &format!("{path}[]"), untyped);
        }
    }
}

#[test]
fn the_manifests_are_what_the_definitions_ask_for() -> Result<()> {
    let definitions = definitions()?;
    let deployment = schema(&definitions, "WorkloadDeployment")?;
    for name in MANIFESTS {
        let manifest = manifest(name)?;
        assert_eq!(manifest["apiVersion"], format!("{GROUP}/v1alpha1"));
        assert_eq!(manifest["kind"], "WorkloadDeployment");
        assert_eq!(problems(deployment, &manifest, ""), [""; 0], "{name}");
    }
    let spec = "/spec/template/spec";
    let component = format!("{spec}/components/0");
    let interface = format!("{spec}/hostInterfaces/0");
    let wrong = [
        (&component, "image", Value::Null, ".image is missing"),
        (
            &component,
            "image",
            json!(5),
            ".image is not of type string",
        ),
        (
            &component,
            "imagePullPolicy",
            json!("Sometimes"),
            ".imagePullPolicy is none of",
        ),
        (&component, "poolSize", json!(-1), ".poolSize is below 0"),
        (&component, "imag", json!("i"), ".imag is unknown"),
        (
            &interface,
            "interfaces",
            json!([]),
            ".interfaces is shorter than 1",
        ),
        (
            &interface,
            "config",
            json!({"port": 80}),
            ".config.port is not of type string",
        ),
    ];
    for (at, field, value, problem) in wrong {
        let mut manifest = manifest(MANIFESTS[0])?;
        let object = manifest.pointer_mut(at).and_then(Value::as_object_mut);
        let object = object.with_context(|| format!("nothing at {at}"))?;
        match value {
            Value::Null => drop(object.remove(field)),
            value => drop(object.insert(field.to_owned(), value)),
        }
        let problems = problems(deployment, &manifest, "");
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(problem), "{problems:?}, not {problem}");
    }
    let both = json!([{"name": "v", "ephemeral": {}, "hostPath": {"path": "/v"}}]);
    let mut manifest = manifest(MANIFESTS[0])?;
    manifest["spec"]["template"]["spec"]["volumes"] = both;
    let problems = problems(deployment, &manifest, "");
    assert_eq!(problems.len(), 1, "{problems:?}");
    Ok(())
}

/// What `schema` says against `value`: the part of `OpenAPI` that the definitions use, except for
/// patterns and rules, which only a cluster knows how to read.
fn problems(schema: &Value, value: &Value, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let given = |name: &str| schema.get(name).unwrap_or(&Value::Null);
    let size = match value {
        Value::String(text) => Some(text.chars().count()),
        Value::Array(items) => Some(items.len()),
        _ => None,
    };
    let kind = match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() => "integer",
        _ => "number",
    };
    if given("type").is_string() && given("type") != kind {
        return vec![format!("{path} is not of type {}", str_at(schema, "/type"))];
    }
    for keyword in schema
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
    {
        let size = size.and_then(|size| u64::try_from(size).ok());
        let problem = match keyword {
            "required" => {
                let mut missing = strings(schema, "/required");
                missing.retain(|name| value.get(name).is_none());
                found.extend(
                    missing
                        .iter()
                        .map(|name| format!("{path}.{name} is missing")),
                );
                None
            }
            "enum"
                if !given("enum")
                    .as_array()
                    .is_some_and(|all| all.contains(value)) =>
            {
                Some(format!("is none of {}", given("enum")))
            }
            "minimum" if value.as_i64() < given("minimum").as_i64() => {
                Some(format!("is below {}", given("minimum")))
            }
            "minLength" | "minItems" if size < given(keyword).as_u64() => {
                Some(format!("is shorter than {}", given(keyword)))
            }
            "maxLength" | "maxItems" if size > given(keyword).as_u64() => {
                Some(format!("is longer than {}", given(keyword)))
            }
            "not" if problems(given("not"), value, path).is_empty() => {
                Some("is what it must not be".to_owned())
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    found.extend(problems(given("items"), item, &format!("{path}[{index}]")));
                }
                None
            }
            "enum" | "minimum" | "minLength" | "minItems" | "maxLength" | "maxItems" | "not" => {
                None
            }
            "type" | "format" | "description" | "default" | "properties" => None,
            "additionalProperties" | "pattern" => None,
            keyword if keyword.starts_with("x-kubernetes-") => None,
            keyword => Some(format!("has the unknown keyword {keyword} in its schema")),
        };
        found.extend(problem.map(|problem| format!("{path} {problem}")));
    }
    let open = given("x-kubernetes-preserve-unknown-fields") == true || given("type").is_null();
    for (name, inner) in fields(value, "") {
        let at = format!("{path}.{name}");
        let rest = schema.get("additionalProperties");
        match given("properties").get(name).or(rest) {
            // Kubernetes knows the inside of this one.
            Some(_) if at == ".metadata" => {}
            Some(schema) => found.extend(problems(schema, inner, &at)),
            None if open => {}
            None => found.push(format!("{at} is unknown")),
        }
    }
    found
}
