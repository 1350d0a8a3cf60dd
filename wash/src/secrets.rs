//! `wash secrets`: values that only some hosts can open.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use capabilities::names;
use capabilities::plugin::Scope;
use capabilities::secrets::KEY_BYTES_MAX;
use serde_json::json;
use subjects::control::SEAL_KEY_LABEL;
use subjects::wire::HostHeartbeat;
use washlet::seal::{self, PublicKey};

use crate::args::SealArgs;
use crate::fleet::{Fleet, Look};
use crate::manifest;
use crate::output::{Exit, Failure, Report};

/// The largest file that is read, in bytes.
const INPUT_BYTES_MAX: u64 = 1 << 20;

/// Seals a value, and prints it or puts it into a bucket.
pub(crate) async fn seal(args: &SealArgs) -> Result<Report, Failure> {
    let file = args.file.clone();
    // A pipe may never end, and Ctrl-C must be heard meanwhile.
    let input = tokio::task::spawn_blocking(move || input(&file)).await;
    let input = input.map_err(anyhow::Error::from)??;
    let asks = !args.to.hosts.is_empty() || !args.to.groups.is_empty();
    let fleet = match asks || args.put.is_some() {
        true => Some(Fleet::connect(&args.nats).await?),
        false => None,
    };
    let mut keys: BTreeSet<_> = args.to.keys.iter().copied().collect();
    if let Some(fleet) = fleet.as_ref().filter(|_| asks) {
        // Of a group all are wanted, however slow.
        let look = match args.to.groups.is_empty() {
            true => Look::UntilQuiet(args.wait),
            false => Look::Full(args.wait),
        };
        keys.extend(keys_of(args, &fleet.hosts(look).await?)?);
    }
    let keys: Vec<_> = keys.into_iter().collect();
    let seal = |namespace: &str, value: &[u8]| {
        let sealed = seal::seal(value, namespace, &keys);
        sealed.map_err(|error| Failure::usage(capabilities::report(&error)))
    };
    let names: Vec<_> = keys.iter().map(PublicKey::to_string).collect();
    let to = format!("sealed to {}", names.join(", "));
    if args.manifest {
        let (text, count) = sealed_manifest(&args.file, &input, seal)?;
        return Ok(Report {
            message: format!("{count} values {to}"),
            data: json!({ "manifest": text, "values": count, "keys": names }),
            text: text.trim_end().to_owned(),
        });
    }
    let namespace = args.namespace.as_deref().unwrap_or("default");
    let value = without_line_break(&input);
    if value.is_empty() {
        return Err(Failure::usage(format!("{} is empty", shown(&args.file)))
            .hint("what should have come may have failed"));
    }
    let sealed = seal(namespace, value)?;
    let (Some(place), Some(fleet)) = (&args.put, fleet) else {
        return Ok(Report {
            message: to,
            data: json!({ "sealed": sealed, "namespace": namespace, "keys": names }),
            text: sealed,
        });
    };
    if place.key.len() > KEY_BYTES_MAX {
        let text = format!("--put: a key is at most {KEY_BYTES_MAX} bytes");
        return Err(Failure::usage(text));
    }
    let scope = match args.flat_names {
        true => Scope::Flat,
        false => Scope::Namespace(namespace.to_owned()),
    };
    let bucket = names::bucket(&scope, &place.bucket)
        .map_err(|error| Failure::usage(format!("--put: {error}")))?;
    let key = names::encode_key(&place.key);
    fleet.put(&bucket, &key, sealed).await?;
    Ok(Report {
        message: format!("put into bucket '{bucket}' under '{key}', {to}"),
        data: json!({ "bucket": bucket, "key": key, "namespace": namespace, "keys": names }),
        ..Report::default()
    })
}

fn shown(file: &Path) -> String {
    match file.as_os_str() == "-" {
        true => "stdin".to_owned(),
        false => format!("\"{}\"", file.display()),
    }
}

fn input(file: &Path) -> Result<Vec<u8>, Failure> {
    let is_stdin = file.as_os_str() == "-";
    if is_stdin && std::io::stdin().is_terminal() {
        return Err(Failure::usage("there is no value to seal")
            .hint("name a file, or send the value through a pipe: what is typed could be seen"));
    }
    let mut bytes = Vec::new();
    let read = match is_stdin {
        true => std::io::stdin()
            .take(INPUT_BYTES_MAX + 1)
            .read_to_end(&mut bytes),
        false => {
            File::open(file).and_then(|file| file.take(INPUT_BYTES_MAX + 1).read_to_end(&mut bytes))
        }
    };
    let shown = shown(file);
    read.map_err(|error| Failure::usage(format!("cannot read {shown}: {error}")))?;
    match bytes.len() as u64 > INPUT_BYTES_MAX {
        true => Err(Failure::usage(format!(
            "{shown} is larger than {INPUT_BYTES_MAX} bytes"
        ))),
        false => Ok(bytes),
    }
}

/// What editors and `echo` add belongs to no password.
fn without_line_break(value: &[u8]) -> &[u8] {
    if std::str::from_utf8(value).is_err() {
        return value;
    }
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    value.strip_suffix(b"\r").unwrap_or(value)
}

fn sealed_manifest(
    file: &Path,
    input: &[u8],
    seal: impl Fn(&str, &[u8]) -> Result<String, Failure>,
) -> Result<(String, usize), Failure> {
    let shown = shown(file);
    let wrong = |error: &dyn std::fmt::Display| Failure::usage(format!("{shown}: {error}"));
    let text = std::str::from_utf8(input).map_err(|error| wrong(&error))?;
    let mut count = 0;
    let sealed = manifest::sealed(text, |namespace, value| {
        count += 1;
        seal(namespace, value.as_bytes())
    });
    match sealed.map_err(|error| wrong(&error))? {
        Ok(_) if count == 0 => Err(wrong(
            &"has no values of environment, config or wasmcloud:secrets that are in the clear",
        )),
        sealed => Ok((sealed?, count)),
    }
}

/// The keys of the hosts that `args` name.
fn keys_of(args: &SealArgs, hosts: &[HostHeartbeat]) -> Result<Vec<PublicKey>, Failure> {
    let (to, wait) = (&args.to, humantime::format_duration(args.wait));
    let absent = |what: String| {
        Failure::new(Exit::Unreachable, format!("{what} within {wait}"))
            .hint("`wash hosts` lists the hosts that answer; --key seals to one that does not")
    };
    let mut named = Vec::new();
    for id in &to.hosts {
        let host = hosts.iter().find(|host| host.id == id.as_str());
        named.push(host.ok_or_else(|| absent(format!("host '{id}' did not answer")))?);
    }
    for group in &to.groups {
        let before = named.len();
        named.extend(
            hosts
                .iter()
                .filter(|host| host.labels.get("hostgroup") == Some(group)),
        );
        if named.len() == before {
            return Err(absent(format!("no host of group '{group}' answered")));
        }
    }
    let key = |host: &HostHeartbeat| {
        let key = key(host);
        key.ok_or_else(|| {
            let id = &host.id;
            let text =
                format!("host '{id}' has no key to seal to: its version opens no sealed values");
            Failure::new(Exit::Failed, text)
        })
    };
    named.into_iter().map(key).collect()
}

/// What values are sealed to for `host`, if it opens any.
pub(crate) fn key(host: &HostHeartbeat) -> Option<PublicKey> {
    host.labels.get(SEAL_KEY_LABEL)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_at_the_end_is_left_out() {
        for (given, sealed) in [
            (&b"a"[..], &b"a"[..]),
            (b"a\n", b"a"),
            (b"a\r\n", b"a"),
            (b"a\n\n", b"a\n"),
            (b"", b""),
            (b"\xff\n", b"\xff\n"),
        ] {
            assert_eq!(without_line_break(given), sealed);
        }
    }
}
