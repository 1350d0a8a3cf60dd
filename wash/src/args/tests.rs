use clap::CommandFactory;
use washlet::config::NatsConfig;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

fn host(line: &str) -> Box<HostArgs> {
    match parse(line)
        .unwrap_or_else(|error| panic!("{error}"))
        .command
    {
        Command::Host(args) => args,
        _ => panic!("not a host"),
    }
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn an_invalid_url_is_repeated_without_its_password() {
    for (flag, url, shown) in [
        ("--scheduler-nats-url", "nats://ann:s3cret@", "'***@'"),
        ("--data-nats-url", "http://s3cret@host", "'***@host'"),
        (
            "--data-nats-url",
            "nats://a:s3cret@b,nats://:s3cret@",
            "'***@'",
        ),
        ("--data-nats-url", "http://host", "'http://host'"),
    ] {
        let mut error = Cli::try_parse_from(["wash", "host", flag, url])
            .err()
            .unwrap();
        conceal(&mut error);
        let text = error.render().to_string();
        assert!(text.contains(shown) && !text.contains("s3cret"), "{text}");
    }
}

/// What the chart of wasmCloud 2 starts a host with.
#[test]
fn the_charts_command_line_is_accepted() {
    let args = host(
        "wash --log-level=debug host --host-name=10.42.0.17 --host-group=default --environment=prod \
         --scheduler-nats-url=nats://nats.default.svc:4222 --scheduler-nats-tls-ca=/runtime-cert/ca.crt \
         --scheduler-nats-tls-cert=/runtime-cert/tls.crt --scheduler-nats-tls-key=/runtime-cert/tls.key \
         --data-nats-url=nats://data.default.svc:4222 --data-nats-tls-ca=/data-cert/ca.crt \
         --data-nats-tls-cert=/data-cert/tls.crt --data-nats-tls-key=/data-cert/tls.key \
         --oci-cache-dir=/oci-cache --http-addr=0.0.0.0:9191 --tls-cert-path=/tls/tls.crt \
         --tls-key-path=/tls/tls.key --oci-ca-path=/ca/a.crt --oci-ca-path=/ca/b.crt",
    );
    assert_eq!(args.identity.host_name.as_deref(), Some("10.42.0.17"));
    assert_eq!(args.identity.host_group, "default");
    assert_eq!(args.identity.environment, "prod");
    let NatsConfig { url, tls, auth, .. } = args.scheduler().unwrap();
    assert_eq!(url, "nats://nats.default.svc:4222");
    assert_eq!(tls.ca.unwrap(), PathBuf::from("/runtime-cert/ca.crt"));
    assert_eq!(
        tls.identity.unwrap().1,
        PathBuf::from("/runtime-cert/tls.key")
    );
    assert!(!tls.first && matches!(auth, NatsAuth::None));
    assert_eq!(args.data().unwrap().url, "nats://data.default.svc:4222");
    let http = args.http.listener().unwrap();
    assert_eq!(http.address.port(), 9191);
    assert_eq!(http.tls.unwrap().cert, PathBuf::from("/tls/tls.crt"));
    let artifacts = args.images.artifacts("/state".as_ref()).unwrap();
    assert_eq!(artifacts.dir, PathBuf::from("/oci-cache"));
    assert_eq!(artifacts.ca.len(), 2);
    assert_eq!(artifacts.budget_bytes, 4 << 30);
}

#[test]
fn a_bare_host_has_the_reference_defaults() {
    let args = host("wash host");
    assert_eq!(args.identity.host_group, "default");
    assert_eq!(args.scheduler().unwrap().url, "nats://localhost:4222");
    assert_eq!(args.data().unwrap().url, "nats://localhost:4222");
    assert!(args.http.listener().is_none());
    let artifacts = args.images.artifacts("/state".as_ref()).unwrap();
    assert_eq!(artifacts.dir, PathBuf::from("/state"));
    assert_eq!(artifacts.pull_timeout, Duration::from_secs(30));
    let limits = args.run.limits();
    assert_eq!(
        (limits.messages_per_host, limits.messages_per_component),
        (128, 32)
    );
    args.check().unwrap();
}

#[test]
fn credentials_for_both_servers_may_be_given_once() {
    let args = host("wash host --nats-token both --data-nats-user u --data-nats-password p");
    assert!(matches!(args.scheduler().unwrap().auth, NatsAuth::Token(token) if token == "both"));
    let auth = args.data().unwrap().auth;
    assert!(
        matches!(auth, NatsAuth::UserPassword(user, password) if (user.as_str(), password.as_str()) == ("u", "p"))
    );
    let two = host("wash host --nats-token t --nats-creds f");
    assert!(two.scheduler().is_err());
    let half = host("wash host --nats-user u");
    assert!(half.data().is_err());
}

#[test]
fn what_is_wrong_with_the_postgres_url_is_said_without_it() {
    assert!(host("wash host").postgres().unwrap().is_none());
    let args = host("wash host --postgres-url postgres://u:p@h/d?sslmode=require");
    assert!(args.postgres().unwrap().is_some());
    for url in [
        "hunter2",
        "mysql://u:hunter2@h/d",
        "postgres://h/d?hunter2=1",
    ] {
        let args = host(&format!("wash host --postgres-url {url}"));
        let refused = args.check().map(drop).unwrap_err();
        assert!(!format!("{refused:?}").contains("hunter2"), "{refused:?}");
    }
}

#[test]
fn values_that_cannot_be_meant_are_refused() {
    for flags in [
        "--http-addr 9191",
        "--http-addr localhost",
        "--label nokey",
        "--label =v",
        "--label k=-v",
        "--label A/k=v",
        "--host-id a.b",
        "--host-group a/b",
        "--host-name a_b/c",
        "--heartbeat-interval 0s",
        "--heartbeat-interval 5",
        "--scheduler-nats-url http://x",
        "--scheduler-nats-url nats://",
        "--data-nats-url nats://user:password@",
        "--scheduler-nats-tls-cert c",
        "--tls-cert-path c --tls-key-path k",
        "--http-addr 127.0.0.1:0 --tls-cert-path c",
        "--http-addr 127.0.0.1:0 --tls-ca-path c",
        "--artifact-budget 4quux",
        "--threads 0",
        "--wasmcloud-messaging-max-in-flight 0",
        "--http-client-trust-roots native",
    ] {
        let error = parse(&format!("wash host {flags}"))
            .err()
            .unwrap_or_else(|| panic!("{flags}"));
        assert_eq!(error.exit_code(), 2, "{flags}");
    }
    let error = parse("wash host --scheduler-nats-url http://u:hunter2@x")
        .err()
        .unwrap();
    assert!(error.to_string().contains("must begin with"), "{error}");
}

#[test]
fn files_are_checked_before_anything_starts() {
    assert!(
        host("wash host --scheduler-nats-tls-ca /nowhere/ca.crt")
            .check()
            .is_err()
    );
    assert!(
        host("wash host --nats-creds /nowhere/host.creds")
            .check()
            .is_err()
    );
    assert!(
        host("wash host --http-client-trust-roots extra-only")
            .check()
            .is_err()
    );
    assert!(
        host("wash host --http-client-ca-path Cargo.toml,/nowhere/ca")
            .check()
            .is_err()
    );
    assert!(
        host("wash host --http-client-ca-path Cargo.toml")
            .check()
            .is_ok()
    );
}

#[test]
fn labels_are_kept_and_hostgroup_is_not_one_of_them() {
    let args =
        host("wash host --label zone=a --label example.com/tier=x,zone=b --label hostgroup=no");
    let labels = args.identity.labels();
    assert_eq!(labels.len(), 2);
    assert_eq!(
        (labels["zone"].as_str(), labels["example.com/tier"].as_str()),
        ("b", "x")
    );
}

#[test]
fn a_start_is_a_manifest_or_flags() {
    for line in [
        "--image x",
        "file.yaml",
        "file.yaml --replicas 2 --host-group edge --wait",
    ] {
        assert!(
            parse(&format!("wash workload start {line}")).is_ok(),
            "{line}"
        );
    }
    for line in [
        "",
        "file.yaml --image x",
        "file.yaml --env A=b",
        "--image x --replicas 0",
        "--image x --interface keyvalue",
        "--image x --env A",
        "--image x --host a --host-group b",
        "--image x --pull-user u",
        "--image x --http-alias a",
        "--image x --interface-config wasi:keyvalue/a=b",
    ] {
        assert!(
            parse(&format!("wash workload start {line}")).is_err(),
            "{line}"
        );
    }
}

#[test]
fn connections_leave_files_for_what_is_behind_them() {
    let of = |files| host::connections(4_096, files);
    assert_eq!(
        [Some(1 << 20), Some(1_024), Some(8), None].map(of),
        [4_096, 256, 16, 4_096]
    );
    let args = self::host("wash host --http-response-max 1MiB");
    assert_eq!(args.run.limits().response_bytes_max, 1 << 20);
    assert!(parse("wash workload start --image i --cpu-limit 0").is_err());
}
