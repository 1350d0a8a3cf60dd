//! `--registries-config`: how single registries are spoken to.
//!
//! ```yaml
//! registries:
//!   registry.example.com:              # host[:port], as in the references of images
//!     ca: corp-ca.pem                  # or a list; files are relative to this one
//!     mirrors: [mirror.lan:5000/hub]   # asked first, in this order
//!     credentials: {username: robot, passwordFile: /run/secrets/robot}
//!   mirror.lan:5000:
//!     plainHttp: true
//!     credentials: {dockerConfig: /etc/washlet/docker.json}
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use washlet::artifact::{Mirror, Registries, RegistryConfig, RegistryCredentials, RegistryHost};

/// The largest file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The most registries in it, each of which has a client of its own.
const REGISTRIES_MAX: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    registries: BTreeMap<Host, Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    ca: Files,
    plain_http: Option<bool>,
    credentials: Option<Credentials>,
    #[serde(default)]
    mirrors: Vec<Place>,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Files {
    #[default]
    None,
    One(PathBuf),
    Many(Vec<PathBuf>),
}

#[derive(Deserialize)]
#[serde(try_from = "RawCredentials")]
enum Credentials {
    Password { username: String, file: PathBuf },
    Docker(PathBuf),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawCredentials {
    username: Option<String>,
    password_file: Option<PathBuf>,
    docker_config: Option<PathBuf>,
}

impl TryFrom<RawCredentials> for Credentials {
    type Error = &'static str;

    fn try_from(raw: RawCredentials) -> Result<Self, Self::Error> {
        match (raw.username, raw.password_file, raw.docker_config) {
            (Some(username), Some(file), None) if !username.is_empty() => {
                Ok(Self::Password { username, file })
            }
            (None, None, Some(file)) => Ok(Self::Docker(file)),
            _ => Err("credentials must be either username and passwordFile, or dockerConfig"),
        }
    }
}

#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(try_from = "String")]
struct Host(RegistryHost);

impl TryFrom<String> for Host {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|error| format!("'{text}' {error}"))
    }
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Place(Mirror);

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
            .map(Self)
            .map_err(|error| format!("'{text}' {error}"))
    }
}

/// The registries in `file`; the text of an error has the file and, if any, the line.
pub(crate) fn read(file: &Path) -> Result<Registries, String> {
    let named = |error: &dyn std::fmt::Display| format!("\"{}\": {error}", file.display());
    let mut text = String::new();
    let read =
        File::open(file).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    if read.map_err(|error| named(&error))? as u64 > FILE_BYTES_MAX {
        return Err(named(&format!("is larger than {FILE_BYTES_MAX} bytes")));
    }
    let options = serde_saphyr::options! { strict_booleans: true };
    let content: Content = serde_saphyr::from_str_with_options(&text, options)
        .map_err(|error| named(&error.without_snippet()))?;
    if content.registries.len() > REGISTRIES_MAX {
        return Err(named(&format!("has more than {REGISTRIES_MAX} registries")));
    }
    let dir = file.parent().unwrap_or(Path::new("."));
    let registries = content.registries.into_iter();
    let registries: BTreeMap<_, _> = registries
        .map(|(host, entry)| (host.0, config(entry, dir)))
        .collect();
    for (host, registry) in &registries {
        let credentials = registry.credentials.iter().map(RegistryCredentials::file);
        for path in credentials.chain(&registry.ca) {
            File::open(path).map_err(|error| {
                named(&format!(
                    "registry '{host}': cannot read \"{}\": {error}",
                    path.display()
                ))
            })?;
        }
    }
    Ok(registries)
}

fn config(entry: Entry, dir: &Path) -> RegistryConfig {
    let ca = match entry.ca {
        Files::None => Vec::new(),
        Files::One(file) => vec![file],
        Files::Many(files) => files,
    };
    let credentials = entry.credentials.map(|credentials| match credentials {
        Credentials::Password { username, file } => RegistryCredentials::Password {
            username,
            file: dir.join(file),
        },
        Credentials::Docker(file) => RegistryCredentials::Docker(dir.join(file)),
    });
    RegistryConfig {
        ca: ca.into_iter().map(|file| dir.join(file)).collect(),
        plain_http: entry.plain_http,
        credentials,
        mirrors: entry.mirrors.into_iter().map(|place| place.0).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn parse(text: &str) -> Result<Registries, String> {
        let dir = TempDir::new().unwrap();
        for file in ["ca.pem", "password", "docker.json"] {
            std::fs::write(dir.path().join(file), "x").unwrap();
        }
        let file = dir.path().join("registries.yaml");
        std::fs::write(&file, text).unwrap();
        let read = read(&file);
        let prefix = format!("{}/", dir.path().display());
        read.map_err(|error| error.replace(&prefix, ""))
    }

    #[test]
    fn what_a_file_says_is_what_is_meant() {
        let registries = parse(
            "registries:
  docker.io: {mirrors: [mirror.lan:5000/hub, 127.0.0.1:5001]}
  mirror.lan:5000: {plainHttp: true, credentials: {dockerConfig: docker.json}}
  registry.example.com:
    ca: [ca.pem]
    credentials: {username: robot, passwordFile: password}
",
        );
        let registries = registries.unwrap();
        let of = |host: &str| &registries[host];
        assert_eq!(registries.len(), 3);
        let hub = of("index.docker.io");
        let mirrors: Vec<_> = hub.mirrors.iter().map(ToString::to_string).collect();
        assert_eq!(mirrors, ["mirror.lan:5000/hub", "127.0.0.1:5001"]);
        assert_eq!((hub.plain_http, hub.ca.len()), (None, 0));
        assert_eq!(of("mirror.lan:5000").plain_http, Some(true));
        let file = of("mirror.lan:5000").credentials.as_ref().unwrap().file();
        assert!(file.is_absolute() && file.ends_with("docker.json"));
        assert!(of("registry.example.com").ca[0].ends_with("ca.pem"));
        assert!(parse("registries: {}").unwrap().is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, line, why) in [
            (
                "registries:\n  a.test:\n    mirors: [b.test]\n",
                Some(3),
                "mirors",
            ),
            ("registry: {}\n", Some(1), "registry"),
            (
                "registries:\n  a.test: {}\n  a.test: {}\n",
                Some(3),
                "duplicate",
            ),
            (
                "registries:\n  https://a.test: {}\n",
                Some(2),
                "'https://a.test' is not the host",
            ),
            (
                "registries:\n  a.test:\n    mirrors:\n      - b.test/A B\n",
                Some(4),
                "'b.test/A B' is not",
            ),
            (
                "registries:\n  a.test:\n    plainHttp: maybe\n",
                Some(3),
                "bool",
            ),
            (
                "registries:\n  a.test:\n    credentials:\n      username: robot\n",
                Some(4),
                "either username and passwordFile, or dockerConfig",
            ),
            (
                "registries:\n  a.test:\n    credentials: {username: u, password: canary}\n",
                Some(3),
                "password",
            ),
            (
                "registries:\n  a.test: {ca: none.pem}\n",
                None,
                "registry 'a.test': cannot read \"none.pem\"",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("\"registries.yaml\": "), "{error}");
            assert!(error.contains(why) && !error.contains("canary"), "{error}");
            let at = line.map(|line: u32| format!("line {line}"));
            assert!(at.is_none_or(|at| error.contains(&at)), "{error}");
        }
    }
}
