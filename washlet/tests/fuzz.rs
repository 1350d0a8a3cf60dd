//! What a workload asks for, and the names of images, are understood or refused in few words.

use anyhow::Result;
use capabilities::memory::Memory;
use capabilities::plugin::Plugins;
use capabilities::report;
use engine::interface::Interfaces;
use fleet::fuzz;
use subjects::{WorkloadId, wire};
use washlet::artifact::{Digest, Reference};
use washlet::seal::SealKey;
use washlet::trigger::Triggers;
use washlet::workload::spec::{Error, Terms, WorkloadSpec};

#[test]
fn fuzz_workloads() -> Result<()> {
    let words = [
        "\"witWorld\":{",
        "\"components\":[{",
        "\"hostInterfaces\":[{",
        "\"namespace\":\"wasi\"",
        "\"package\":\"http\"",
        "\"interfaces\":[\"incoming-handler\"]",
        "\"config\":{\"host\":\"a.test\"}",
        "\"localResources\":{",
        "\"allowedHosts\":[\"*\"]",
        "\"memoryLimitMb\":",
        "\"cpuLimit\":",
        "\"poolSize\":",
        "\"version\":\"0.2.0\"",
        "\"name\":\"a\"",
        "\"keyvalue\"",
        "\"volumeMounts\":[{}]",
        "\"backend\":\"memory\"",
        "\"subscriptions\":\"a.>\"",
    ];
    let interfaces = Interfaces::default();
    let backends = Plugins::new("memory").with(Memory::new(1 << 20));
    let (triggers, key) = (Triggers::default(), SealKey::ephemeral()?);
    let id = WorkloadId::new("w")?;
    fuzz::run("workloads", &words, |input| {
        let workload = wire::Workload::decode(input).map_err(|error| report(&error))?;
        let terms = Terms {
            memory_bytes_max: 512 << 20,
            default_allowed_hosts: &[],
            interfaces: &interfaces,
            triggers: &triggers,
            backends: &backends,
            ingress: true,
            opener: &key,
        };
        match WorkloadSpec::new(id.clone(), workload.clone(), &terms) {
            Ok(spec) => {
                assert_eq!(spec.namespace, workload.namespace);
                Ok(format!(
                    "{} {}",
                    spec.components.len().min(3),
                    spec.http.is_some()
                ))
            }
            Err(error) => {
                if let Error::Refused { path, .. } = &error {
                    assert!(path.starts_with("workload."), "\"{path}\" is no path");
                }
                Err(report(&error))
            }
        }
    })
}

#[test]
fn fuzz_references() -> Result<()> {
    let words = [
        "registry.test",
        "localhost:5000/",
        "/v2/",
        ":latest",
        "@sha256:",
        "file:///",
        "sha512:",
        "a/b/c",
        "?",
        "#",
        "\\",
        "docker.io/",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ];
    fuzz::run("references", &words, |input| {
        let text = String::from_utf8_lossy(input);
        if let Ok(digest) = text.parse::<Digest>() {
            assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
            // It is the name of a file.
            assert!(
                digest.hex().len() == 64
                    && digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit())
            );
        }
        match text.parse::<Reference>() {
            Ok(Reference::Image(image)) => {
                let again: Result<Reference, _> = image.to_string().parse();
                assert_eq!(
                    again,
                    Ok(Reference::Image(image.clone())),
                    "\"{image}\" means something else"
                );
                // What is asked for is below the repository of the registry, and nowhere else.
                let (registry, repository, version) =
                    (image.registry(), image.repository(), image.version());
                let path = format!("/v2/{repository}/manifests/{version}");
                let url = format!("https://{registry}{path}");
                let uri = url
                    .parse::<http::Uri>()
                    .map_err(|error| format!("no address: {error}"))?;
                assert_eq!(uri.path(), path, "{url}");
                assert_eq!(
                    uri.authority().map(ToString::to_string).as_deref(),
                    Some(registry),
                    "{url}"
                );
                assert!(
                    path.split('/').all(|part| part != ".." && part != "."),
                    "{url}"
                );
                Ok(format!(
                    "image {} {}",
                    image.digest().is_some(),
                    repository.matches('/').count().min(3)
                ))
            }
            Ok(Reference::File(path)) => {
                assert!(path.is_absolute(), "{}", path.display());
                Ok("file".to_owned())
            }
            Err(error) => Err(report(&error)),
        }
    })
}
