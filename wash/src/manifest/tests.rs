use subjects::wire::{ImagePullPolicy, VolumeSource};

use super::*;

const DEPLOYMENT: &str = r#"
apiVersion: runtime.wasmcloud.dev/v1alpha1
kind: WorkloadDeployment
metadata:
  name: counter
  namespace: shop
  labels: {app: counter}
  resourceVersion: "77"
spec:
  replicas: 3
  template:
    annotations: {team: a}
    spec:
      hostSelector: {hostgroup: edge}
      environment: prod
      components:
        - name: counter
          image: ghcr.io/acme/counter:1.2
          imagePullPolicy: IfNotPresent
          poolSize: 4
          localResources:
            memoryLimitMb: 128
            environment: {config: {LOG: "debug"}}
            config: {greeting: hello}
            allowedHosts: ["example.com"]
            volumeMounts: [{name: scratch, mountPath: /tmp, readOnly: true}]
      hostInterfaces:
        - {namespace: wasi, package: http, interfaces: [incoming-handler], config: {host: counter.example.com}}
        - {name: team-a, namespace: wasi, package: keyvalue, version: 0.2.0-draft, interfaces: [store]}
      volumes:
        - {name: scratch, ephemeral: {}}
        - {name: data, hostPath: {path: /srv}}
"#;

#[test]
fn a_deployment_becomes_what_hosts_are_asked() {
    let plans = read(DEPLOYMENT).unwrap();
    let [plan] = plans.as_slice() else {
        panic!("{plans:?}")
    };
    assert_eq!((plan.replicas, plan.environment.as_str()), (3, "prod"));
    assert_eq!(plan.selector["hostgroup"], "edge");
    assert!(plan.host.is_none() && plan.without_effect.is_empty());
    let workload = &plan.workload;
    assert_eq!(
        (workload.namespace.as_str(), workload.name.as_str()),
        ("shop", "counter")
    );
    assert_eq!(workload.annotations["team"], "a");
    let world = workload.wit_world.as_ref().unwrap();
    let component = &world.components[0];
    assert_eq!(component.image, "ghcr.io/acme/counter:1.2");
    assert_eq!(component.image_pull_policy, ImagePullPolicy::IfNotPresent);
    assert_eq!(component.pool_size, 4);
    let resources = component.local_resources.as_ref().unwrap();
    assert_eq!(resources.memory_limit_mb, 128);
    assert_eq!(resources.environment["LOG"], "debug");
    assert_eq!(resources.config["greeting"], "hello");
    assert_eq!(resources.allowed_hosts, ["example.com"]);
    assert!(resources.volume_mounts[0].read_only);
    assert_eq!(
        world.host_interfaces[0].config["host"],
        "counter.example.com"
    );
    assert_eq!(world.host_interfaces[1].name, "team-a");
    assert_eq!(world.host_interfaces[1].version, "0.2.0-draft");
    assert_eq!(workload.volumes[0].source, VolumeSource::EmptyDir);
    assert!(
        matches!(&workload.volumes[1].source, VolumeSource::HostPath(path) if path.local_path == "/srv")
    );
}

/// A workload with `spec` as the lines of its spec.
fn workload(spec: &str) -> String {
    let head =
        "apiVersion: runtime.wasmcloud.dev/v1alpha1\nkind: Workload\nmetadata: {name: w}\nspec:\n";
    spec.lines()
        .fold(head.to_owned(), |text, line| format!("{text}  {line}\n"))
}

const COMPONENT: &str = "components: [{name: c, image: i}]";

#[test]
fn several_documents_are_several_plans() {
    let text = format!(
        "---\n{}---\n{DEPLOYMENT}---\n",
        workload(&format!(
            "{COMPONENT}\nhostId: h-1\nkubernetes: {{service: {{name: s}}}}"
        ))
    );
    let plans = read(&text).unwrap();
    assert_eq!(plans.len(), 2);
    assert_eq!(plans[0].host.as_ref().unwrap().as_str(), "h-1");
    assert_eq!(
        (plans[0].replicas, plans[0].workload.namespace.as_str()),
        (1, "default")
    );
    assert_eq!(plans[0].without_effect, ["spec.kubernetes"]);
}

#[test]
fn what_cannot_be_used_is_named_by_its_path() {
    let cases = [
        (
            "components: [{name: c, imag: i}]",
            "spec.components[0].imag",
        ),
        (
            "components: [{name: c, image: ''}]",
            "spec.components[0].image",
        ),
        (
            "components: [{name: c, image: 'artifact://a'}]",
            "spec.components[0].image",
        ),
        (
            "components: [{name: c, image: i, imagePullSecret: {name: s}}]",
            "spec.components[0].imagePullSecret",
        ),
        (
            "components: [{name: c, image: i, poolSize: -1}]",
            "spec.components[0].poolSize",
        ),
        (
            "components: [{name: c, image: i, imagePullPolicy: Sometimes}]",
            "spec.components[0].imagePullPolicy",
        ),
        (
            "components: [{name: c, image: i, localResources: {environment: {configFrom: [{name: x}]}}}]",
            "spec.components[0].localResources.environment.configFrom",
        ),
        (
            "components: [{name: c, image: i, localResources: {config: {n: 5}}}]",
            "spec.components[0].localResources.config.n",
        ),
        (
            "service: {image: i, imagePullSecret: {name: s}}",
            "spec.service.imagePullSecret",
        ),
        ("components: []", "spec.components"),
        (
            "components: [{name: c, image: i}]\nhostId: a.b",
            "spec.hostId",
        ),
        (
            "components: [{name: c, image: i}]\nhostInterfaces: [{namespace: wasi, package: config, interfaces: [store], secretFrom: [{name: x}]}]",
            "spec.hostInterfaces[0].secretFrom",
        ),
        (
            "components: [{name: c, image: i}]\nhostInterfaces: [{namespace: wasi, package: config, interfaces: []}]",
            "spec.hostInterfaces[0].interfaces",
        ),
        (
            "components: [{name: c, image: i}]\nhostInterfaces: [{namespace: a, package: b, interfaces: [x]}, {namespace: a, package: b, interfaces: [y]}]",
            "spec.hostInterfaces[1]",
        ),
        (
            "components: [{name: c, image: i}]\nvolumes: [{name: v, ephemeral: {}, hostPath: {path: /x}}]",
            "spec.volumes[0]",
        ),
        (
            "components: [{name: c, image: i}]\nreplicas: 2",
            "spec.replicas",
        ),
    ];
    for (spec, expected) in cases {
        match read(&workload(spec)) {
            Err(Error::Field {
                document: 1, path, ..
            }) => assert_eq!(path, expected, "{spec}"),
            other => panic!("{spec}: {other:?}"),
        }
    }
    let artifacts = DEPLOYMENT.replace(
        "  replicas: 3",
        "  artifacts: [{name: a, artifactFrom: {name: b}}]",
    );
    assert!(matches!(read(&artifacts), Err(Error::Field { path, .. }) if path == "spec.artifacts"));
}

#[test]
fn other_resources_and_other_text_are_refused() {
    let cases = [
        ("apiVersion: v1\nkind: Pod\n", "apiVersion"),
        (
            "apiVersion: runtime.wasmcloud.dev/v1alpha1\nkind: Host\n",
            "kind",
        ),
    ];
    for (text, expected) in cases {
        assert!(
            matches!(read(text), Err(Error::Field { path, .. }) if path == expected),
            "{text}"
        );
    }
    assert!(matches!(read("kind: Workload\n"), Err(Error::Field { .. })));
    assert!(matches!(read("a: [1\nb: {"), Err(Error::Yaml(_))));
    assert!(matches!(read(""), Err(Error::Empty)));
    assert!(matches!(read("# nothing\n---\n"), Err(Error::Empty)));
}

#[test]
fn an_error_never_shows_a_value() {
    let text = workload(
        "components: [{name: c, image: i, localResources: {config: {password: [hunter2]}}}]",
    );
    let error = read(&text).unwrap_err().to_string();
    assert!(
        error.contains("config.password") && !error.contains("hunter2"),
        "{error}"
    );
    let error = read("password: hunter2\n  broken: [")
        .unwrap_err()
        .to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn a_sealed_manifest_is_the_same_but_for_its_secrets() {
    let entries = "
        - {namespace: wasmcloud, package: secrets, interfaces: [store], config: {token: canary-entry}}
        - {name: b, namespace: wasmcloud, package: secrets, interfaces: [store], config: {backend: nats, bucket: v}}
      volumes:";
    let text = DEPLOYMENT.replacen("\n      volumes:", entries, 1) + "---\n" + DEPLOYMENT;
    let mut seen = Vec::new();
    let seal = |namespace: &str, value: &str| {
        seen.push(value.to_owned());
        Ok::<_, ()>(format!("washlet-sealed:{namespace}:{}", value.len()))
    };
    let sealed_text = sealed(&text, seal).unwrap().unwrap();
    seen.sort();
    assert_eq!(seen, ["canary-entry", "debug", "debug", "hello", "hello"]);
    let mut plans = read(&text).unwrap();
    for plan in &mut plans {
        let world = plan.workload.wit_world.as_mut().unwrap();
        let resources = world.components[0].local_resources.as_mut().unwrap();
        resources
            .environment
            .insert("LOG".into(), "washlet-sealed:shop:5".into());
        resources
            .config
            .insert("greeting".into(), "washlet-sealed:shop:5".into());
        if let Some(entry) = world.host_interfaces.get_mut(2) {
            entry
                .config
                .insert("token".into(), "washlet-sealed:shop:12".into());
        }
    }
    let workloads =
        |plans: Vec<Plan>| -> Vec<_> { plans.into_iter().map(|plan| plan.workload).collect() };
    assert_eq!(workloads(read(&sealed_text).unwrap()), workloads(plans));
    // What is sealed stays as it is.
    let again = sealed(&sealed_text, |_, _| Err(())).unwrap().unwrap();
    assert_eq!(again, sealed_text);
    assert!(matches!(
        sealed("kind: Pod", |_, _| Ok::<_, ()>(String::new())),
        Err(Error::Field { .. })
    ));
}

#[test]
fn fuzz_manifests() -> anyhow::Result<()> {
    let words = [
        "apiVersion: runtime.wasmcloud.dev/v1alpha1\n",
        "kind: Workload\n",
        "kind: WorkloadDeployment\n",
        "metadata:\n  name: a\n",
        "spec:\n",
        "  components:\n",
        "    - name: a\n      image: b\n",
        "hostInterfaces: [{namespace: wasi, package: http, interfaces: [a]}]",
        "---\n",
        "&a ",
        "*a",
        "<<: *a\n",
        "!!binary ",
        "? ",
        "|\n",
        ">-\n",
        "[",
        "{",
        "replicas: 2",
        "\t",
        "%YAML 1.2\n",
        "# ",
        "y",
        "on",
        "0x1f",
        ".inf",
    ];
    fleet::fuzz::run_costly("manifests", 5, &words, |input| {
        let text = String::from_utf8_lossy(input);
        let plans = read(&text).map_err(|error| error.to_string())?;
        for plan in &plans {
            let workload = plan.workload.encode();
            let again = wire::Workload::decode(&workload);
            let again = again.map_err(|error| format!("{error}: what was written is not read"))?;
            assert_eq!(again, plan.workload, "hosts read something else");
        }
        Ok(format!("{} plans", plans.len().min(3)))
    })
}
