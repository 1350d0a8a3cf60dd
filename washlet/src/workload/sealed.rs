//! Sealed values in start requests: what a client sealed to the keys of hosts, this host opens.
//!
//! Sealed may be each value of `config`, `environment`, a host interface's `config` and a pull secret.
//! Everywhere else, in the journal and in a handover too, a request stays as it came.

use std::collections::{BTreeMap, BTreeSet};

use capabilities::secrets::Opener;
use subjects::wire::{self, ImagePullSecret, LocalResources};

use super::spec::Error;
use crate::seal::{PublicKey, is_sealed, keys};

/// Opens what is sealed in `workload`.
///
/// # Errors
/// [`Error::Sealed`] for the first value that does not open; [`Error::Refused`] for one that is no text.
pub(super) fn open(workload: &mut wire::Workload, opener: &dyn Opener) -> Result<(), Error> {
    let namespace = workload.namespace.clone();
    each_sealed(workload, |path, value| {
        let opened = match opener.open(&namespace, value) {
            Ok(opened) => opened,
            Err(source) => return Err(Error::Sealed { path, source }),
        };
        *value = String::from_utf8(opened.reveal().to_vec()).map_err(|_| Error::Refused {
            path,
            reason: "the sealed value is no text".to_owned(),
        })?;
        Ok(())
    })
}

/// The keys of the hosts that can open all that is sealed in `workload`; `None` when nothing is.
pub fn recipients(workload: &wire::Workload) -> Option<BTreeSet<PublicKey>> {
    let mut all: Option<BTreeSet<PublicKey>> = None;
    let each = each_sealed(&mut workload.clone(), |_, value| {
        let keys: BTreeSet<_> = keys(value).into_iter().collect();
        all = Some(match all.take() {
            Some(all) => all.intersection(&keys).copied().collect(),
            None => keys,
        });
        Ok::<_, std::convert::Infallible>(())
    });
    let Ok(()) = each;
    all
}

/// Calls `change` for each sealed value with its path.
fn each_sealed<E>(
    workload: &mut wire::Workload,
    mut change: impl FnMut(String, &mut String) -> Result<(), E>,
) -> Result<(), E> {
    let mut change = |path: &dyn Fn() -> String, value: &mut String| match is_sealed(value) {
        true => change(path(), value),
        false => Ok(()),
    };
    if let Some(service) = &mut workload.service {
        let at = || "workload.service".to_owned();
        resources(service.local_resources.as_mut(), &at, &mut change)?;
        pull_secret(service.image_pull_secret.as_mut(), &at, &mut change)?;
    }
    let Some(world) = &mut workload.wit_world else {
        return Ok(());
    };
    for (index, component) in world.components.iter_mut().enumerate() {
        let at = || format!("workload.witWorld.components[{index}]");
        resources(component.local_resources.as_mut(), &at, &mut change)?;
        pull_secret(component.image_pull_secret.as_mut(), &at, &mut change)?;
    }
    for (index, entry) in world.host_interfaces.iter_mut().enumerate() {
        let at = || format!("workload.witWorld.hostInterfaces[{index}].config");
        values(&mut entry.config, &at, &mut change)?;
    }
    Ok(())
}

type Change<'a, E> = dyn FnMut(&dyn Fn() -> String, &mut String) -> Result<(), E> + 'a;

fn resources<E>(
    resources: Option<&mut LocalResources>,
    at: &dyn Fn() -> String,
    change: &mut Change<'_, E>,
) -> Result<(), E> {
    let Some(resources) = resources else {
        return Ok(());
    };
    let of = |field: &str| format!("{}.localResources.{field}", at());
    values(&mut resources.config, &|| of("config"), change)?;
    values(&mut resources.environment, &|| of("environment"), change)
}

fn values<E>(
    values: &mut BTreeMap<String, String>,
    at: &dyn Fn() -> String,
    change: &mut Change<'_, E>,
) -> Result<(), E> {
    for (key, value) in values {
        change(&|| format!("{}.{key}", at()), value)?;
    }
    Ok(())
}

fn pull_secret<E>(
    secret: Option<&mut ImagePullSecret>,
    at: &dyn Fn() -> String,
    change: &mut Change<'_, E>,
) -> Result<(), E> {
    let Some(secret) = secret else {
        return Ok(());
    };
    let of = |field: &str| format!("{}.imagePullSecret.{field}", at());
    change(&|| of("username"), &mut secret.username)?;
    change(&|| of("password"), &mut secret.password)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{SealKey, seal};
    use capabilities::secrets::Unopened;
    use serde_json::{Value, json};

    fn workload(value: &str) -> wire::Workload {
        let resources = json!({
            "config": { "a": value, "clear": "as it is" },
            "environment": { "B": value },
        });
        let secret = json!({ "username": value, "password": value });
        let part = json!({ "image": "i", "localResources": resources, "imagePullSecret": secret });
        let entry = json!({ "namespace": "wasi", "package": "config", "config": { "c": value } });
        decode(&json!({
            "namespace": "default",
            "service": part,
            "witWorld": { "components": [part, part], "hostInterfaces": [entry] },
        }))
    }

    fn decode(workload: &Value) -> wire::Workload {
        wire::Workload::decode(workload.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn every_secret_of_a_request_is_opened() {
        let key = SealKey::ephemeral().unwrap();
        let sealed = seal(b"canary", "default", &[key.public()]).unwrap();
        let mut request = workload(&sealed);
        assert_eq!(recipients(&request), Some([key.public()].into()));
        open(&mut request, &key).unwrap();
        assert_eq!(request, workload("canary"));
        assert_eq!(recipients(&request), None);
    }

    #[test]
    fn what_does_not_open_is_refused_with_its_path() {
        let (ours, theirs) = (SealKey::ephemeral().unwrap(), SealKey::ephemeral().unwrap());
        let sealed = seal(b"canary", "default", &[theirs.public()]).unwrap();
        let mut request = workload("clear");
        let world = request.wit_world.as_mut().unwrap();
        let resources = world.components[1].local_resources.as_mut().unwrap();
        resources.environment.insert("B".to_owned(), sealed.clone());
        let refused = open(&mut request, &ours).unwrap_err();
        let Error::Sealed { path, source } = &refused else {
            panic!("{refused:?}");
        };
        assert_eq!(
            path,
            "workload.witWorld.components[1].localResources.environment.B"
        );
        assert!(matches!(source, Unopened::OtherKeys { .. }), "{source}");
        // Nobody opens what is sealed to different hosts.
        let own = seal(b"canary", "default", &[ours.public()]).unwrap();
        let world = request.wit_world.as_mut().unwrap();
        world.host_interfaces[0].config.insert("c".to_owned(), own);
        assert_eq!(recipients(&request), Some(BTreeSet::new()));
        let bytes = seal(&[0xff], "default", &[ours.public()]).unwrap();
        let mut request = workload("clear");
        request
            .service
            .as_mut()
            .unwrap()
            .image_pull_secret
            .as_mut()
            .unwrap()
            .password = bytes;
        let refused = open(&mut request, &ours);
        assert!(
            matches!(refused, Err(Error::Refused { path, .. }) if path.ends_with("Secret.password"))
        );
    }
}
