//! `wash oci`: components to and from registries.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use washlet::artifact::{self, Credentials, Progress, Pulled, Registries, RegistryOptions};
use washlet::config::Limits;
use wasmparser::{Parser, Payload};

use crate::args::{PullArgs, PushArgs, RegistryArgs};
use crate::output::{Exit, Failure, Report};

/// How long a registry may make no progress.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Custom sections of a component that have an annotation of their own.
const ANNOTATIONS: [(&str, &str); 7] = [
    ("authors", "org.opencontainers.image.authors"),
    ("description", "org.opencontainers.image.description"),
    ("homepage", "org.opencontainers.image.url"),
    ("licenses", "org.opencontainers.image.licenses"),
    ("revision", "org.opencontainers.image.revision"),
    ("source", "org.opencontainers.image.source"),
    ("version", "org.opencontainers.image.version"),
];
const TITLE: &str = "org.opencontainers.image.title";

/// Copies a component from a registry into a file.
pub(crate) async fn pull(args: &PullArgs) -> Result<Report, Failure> {
    let Pulled {
        bytes,
        manifest_digest,
        ..
    } = fetch(&args.reference, &args.registry).await?;
    write(&args.file, &bytes).map_err(|error| {
        Failure::new(
            Exit::Failed,
            format!("failed to write \"{}\": {error}", args.file.display()),
        )
    })?;
    Ok(Report {
        message: format!(
            "pulled {} bytes into \"{}\"",
            bytes.len(),
            args.file.display()
        ),
        text: manifest_digest.to_string(),
        data: json!({
            "output_path": args.file,
            "bytes": bytes.len(),
            "digest": manifest_digest.to_string(),
        }),
    })
}

/// Copies a component from a file to a registry.
pub(crate) async fn push(args: &PushArgs) -> Result<Report, Failure> {
    let bytes = read(&args.file)?;
    let bar = bar();
    let annotations = annotations(&args.file, &bytes);
    let options = options(&args.registry);
    let shown = |now: Progress| show(&bar, now);
    let pushed = artifact::push(
        &args.reference,
        bytes.into(),
        annotations,
        &options,
        Some(&shown),
    )
    .await;
    bar.finish_and_clear();
    let digest = pushed.map_err(|error| failure(&error))?;
    Ok(Report {
        message: format!("pushed {}", args.reference),
        text: digest.clone(),
        data: json!({ "digest": digest }),
    })
}

/// The component `reference` names.
pub(crate) async fn fetch(reference: &str, registry: &RegistryArgs) -> Result<Pulled, Failure> {
    let bar = bar();
    let shown = |now: Progress| show(&bar, now);
    let pulled = artifact::pull(reference, &options(registry), Some(&shown)).await;
    bar.finish_and_clear();
    pulled.map_err(|error| failure(&error))
}

/// The bytes of a component in a file, up to the size a host takes.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let name = file.display();
    let cannot = |error: std::io::Error| {
        Failure::new(Exit::Failed, format!("cannot read \"{name}\": {error}"))
    };
    let max = Limits::default().artifact_bytes_max;
    let size = std::fs::metadata(file).map_err(cannot)?.len();
    if size > max {
        return Err(Failure::new(
            Exit::Failed,
            format!("\"{name}\" of {size} bytes exceeds {max}"),
        ));
    }
    std::fs::read(file).map_err(cannot)
}

/// Writes a file so that it is there as a whole or not at all.
fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut part = file.as_os_str().to_owned();
    part.push(".part");
    let written = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, file));
    if written.is_err() {
        // It may not even be there.
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn options(args: &RegistryArgs) -> RegistryOptions {
    let login = args.user.clone().zip(args.password.clone());
    RegistryOptions {
        allow_insecure: args.insecure,
        ca: args.ca_path.clone(),
        registries: Registries::new(),
        credentials: login.map(|(username, password)| Credentials { username, password }),
        timeout: TIMEOUT,
        bytes_max: Limits::default().artifact_bytes_max,
    }
}

/// What to say about the component in the registry.
fn annotations(file: &Path, bytes: &[u8]) -> BTreeMap<String, String> {
    let title = file
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    let mut annotations: BTreeMap<_, _> = title
        .map(|title| (TITLE.to_owned(), title))
        .into_iter()
        .collect();
    let mut depth = 0_usize;
    // Bytes that are no component end the loop here and are refused by the push.
    for payload in Parser::new(0).parse_all(bytes).map_while(Result::ok) {
        match payload {
            Payload::Version { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::CustomSection(section) if depth == 1 => {
                let known = ANNOTATIONS.iter().find(|(name, _)| *name == section.name());
                let text = std::str::from_utf8(section.data())
                    .ok()
                    .filter(|text| !text.is_empty());
                if let Some(((_, key), text)) = known.zip(text) {
                    annotations.insert((*key).to_owned(), text.to_owned());
                }
            }
            _ => {}
        }
    }
    annotations
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length();
    if let Ok(style) =
        ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
    {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, now: Progress) {
    if now.total > 0 {
        bar.set_length(now.total);
    }
    bar.set_position(now.done);
}

fn failure(error: &artifact::Error) -> Failure {
    use artifact::oci::Error as Oci;
    let (exit, hint) = match error {
        artifact::Error::Reference(_) => (
            Exit::Usage,
            Some("a reference is like ghcr.io/acme/counter:1.2"),
        ),
        artifact::Error::NotAComponent { .. } => (
            Exit::Failed,
            Some("`wash inspect FILE` tells what a file is"),
        ),
        artifact::Error::Pull { source, .. } | artifact::Error::Push { source, .. } => {
            match **source {
                Oci::PlainHttp(_) => (Exit::Failed, Some("use --insecure")),
                Oci::Denied { .. } => (
                    Exit::Failed,
                    Some("give --user with WASH_OCI_PASSWORD, or use `docker login`"),
                ),
                Oci::Authorities { .. } => (Exit::Usage, Some("check --ca-path")),
                Oci::Unreachable { .. } | Oci::Stalled { .. } | Oci::Truncated { .. } => {
                    (Exit::Unreachable, None)
                }
                _ => (Exit::Failed, None),
            }
        }
        _ => (Exit::Failed, None),
    };
    let failure = Failure::new(exit, capabilities::report(error));
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
