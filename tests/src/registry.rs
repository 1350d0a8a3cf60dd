//! An OCI registry.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use reqwest::RequestBuilder;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{http, process::Process, tools, wait};

/// The only user of a registry started with [`Registry::start_with_login`].
pub const USER: &str = "wash";
/// That user's password.
pub const PASSWORD: &str = "open-sesame";
/// `USER` and the bcrypt hash of `PASSWORD`, as the registry wants to read them.
const HTPASSWD: &str = "wash:$2b$05$abcdefghijklmnopqrstuutXu9KzOt.1yBoZUeFWoT/914/JfszCO\n";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A real OCI registry on a free port, over plain HTTP unless it has a certificate, killed when dropped.
///
/// What was pushed survives [`kill`](Self::kill) and [`restart`](Self::restart).
pub struct Registry {
    process: Process,
    port: u16,
    settings: Settings,
    dir: TempDir,
}

/// How a registry is started.
#[derive(Default)]
struct Settings {
    /// Only [`USER`] with [`PASSWORD`] may read and write.
    login: bool,
    /// PEM files of its certificate and key.
    tls: Option<[PathBuf; 2]>,
}

impl Registry {
    /// Starts a registry that anybody may read and write.
    ///
    /// # Errors
    /// When `docker-registry` is not installed or does not become ready.
    pub async fn start() -> Result<Self> {
        Self::launch_new(Settings::default()).await
    }

    /// Starts a registry that only [`USER`] with [`PASSWORD`] may read and write.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_login() -> Result<Self> {
        Self::launch_new(Settings {
            login: true,
            tls: None,
        })
        .await
    }

    /// Starts a registry over TLS with these PEM files, with a login as [`start_with_login`](Self::start_with_login)
    /// or for anybody.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with_tls(certificate: &Path, key: &Path, login: bool) -> Result<Self> {
        let tls = Some([certificate, key].map(Path::to_owned));
        Self::launch_new(Settings { login, tls }).await
    }

    async fn launch_new(settings: Settings) -> Result<Self> {
        let dir = TempDir::new()?;
        let (process, port) = launch(&dir, None, &settings).await?;
        Ok(Self {
            process,
            port,
            settings,
            dir,
        })
    }

    /// Where it keeps the bytes of the blob with this digest, `sha256:..`: it does not look at them again.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let short = hex.get(..2).unwrap_or_default();
        let blobs = "content/docker/registry/v2/blobs/sha256";
        self.dir
            .path()
            .join(blobs)
            .join(short)
            .join(hex)
            .join("data")
    }

    /// `127.0.0.1:<port>`, the same after a restart: the first part of an image reference.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Kills it (SIGKILL) and returns when it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills it if it runs, and starts it again with the same port and content.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<()> {
        self.kill();
        // Somebody's outgoing connection may have the port for a moment.
        self.process = wait::until(wait::SOON, "docker-registry starts again", async || {
            launch(&self.dir, Some(self.port), &self.settings)
                .await
                .ok()
        })
        .await?
        .0;
        Ok(())
    }

    /// One line for each request since the last start, as a web server's access log:
    /// `127.0.0.1 - - [<time>] "GET /v2/app/manifests/1 HTTP/1.1" 200 ..`.
    pub fn log(&self) -> String {
        self.process.stdout.text()
    }

    /// Pushes a component as `image`, a `name:tag`; gives the whole reference.
    ///
    /// # Errors
    /// When the registry refuses a part, or has TLS.
    pub async fn push(&self, image: &str, wasm: Vec<u8>) -> Result<String> {
        let (name, tag) = image.split_once(':').context("an image is a name:tag")?;
        if self.settings.tls.is_some() {
            bail!("whoever pushes has to trust the certificate: use a client of your own");
        }
        let base = format!("http://{}/v2/{name}", self.address());
        let layer = self.push_blob(&base, wasm).await?;
        let config = serde_json::json!({
            "created": "2026-01-01T00:00:00Z",
            "architecture": "wasm",
            "os": "wasip2",
            "layerDigests": [layer.get("digest")],
        });
        let config = self
            .push_blob(&base, config.to_string().into_bytes())
            .await?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": typed(config, "application/vnd.wasm.config.v0+json"),
            "layers": [typed(layer, "application/wasm")],
        });
        let client = http::client()?;
        // A registry may not know for a moment of a blob that it has just taken.
        wait::until(wait::SOON, "the registry takes the manifest", async || {
            let put = client
                .put(format!("{base}/manifests/{tag}"))
                .header("content-type", MANIFEST)
                .body(manifest.to_string());
            let reply = self.authorized(put).send().await.ok()?;
            reply.error_for_status().ok()
        })
        .await?;
        Ok(format!("{}/{image}", self.address()))
    }

    async fn push_blob(&self, base: &str, bytes: Vec<u8>) -> Result<Value> {
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let digest = format!("sha256:{digest}");
        let blob = serde_json::json!({ "digest": digest, "size": bytes.len() });
        let client = http::client()?;
        let begin = self.authorized(client.post(format!("{base}/blobs/uploads/")));
        let begun = begin.send().await?.error_for_status()?;
        let location = begun
            .headers()
            .get("location")
            .context("no place to upload to")?
            .to_str()?;
        let mut url = reqwest::Url::parse(base)?.join(location)?;
        url.query_pairs_mut().append_pair("digest", &digest);
        let put = client
            .put(url)
            .header("content-type", "application/octet-stream")
            .body(bytes);
        self.authorized(put).send().await?.error_for_status()?;
        Ok(blob)
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        if self.settings.login {
            request.basic_auth(USER, Some(PASSWORD))
        } else {
            request
        }
    }

    /// How many requests since the last start have a line that contains `needle`, such as
    /// `"GET /v2/app/blobs/`.
    pub fn requests(&self, needle: &str) -> usize {
        self.process.stdout.count(needle)
    }
}

async fn launch(dir: &TempDir, port: Option<u16>, how: &Settings) -> Result<(Process, u16)> {
    let config = dir.path().join("registry.json");
    let users = dir.path().join("htpasswd");
    // JSON is YAML.
    let mut settings = serde_json::json!({
        "version": "0.1",
        "log": { "level": "info", "formatter": "text" },
        "storage": {
            "filesystem": { "rootdirectory": dir.path().join("content") },
            "delete": { "enabled": true },
        },
        "http": { "addr": format!("127.0.0.1:{}", port.unwrap_or(0)), "secret": "of one test" },
    });
    if let (Some([certificate, key]), Some(http)) = (&how.tls, settings.get_mut("http"))
        && let Some(http) = http.as_object_mut()
    {
        let tls = serde_json::json!({ "certificate": certificate, "key": key });
        http.insert("tls".to_owned(), tls);
    }
    if how.login {
        fs::write(&users, HTPASSWD)?;
        let auth = serde_json::json!({ "htpasswd": { "realm": "fleet", "path": users } });
        if let Some(settings) = settings.as_object_mut() {
            settings.insert("auth".to_owned(), auth);
        }
    }
    fs::write(&config, settings.to_string())?;
    let program = tools::find("docker-registry")?;
    let mut process = Process::start(&program, ["serve".as_ref(), config.as_os_str()], &[])?;
    let port = process
        .wait_ready(Duration::from_secs(20), |process| {
            let rest = process.stderr.after("listening on 127.0.0.1:")?;
            rest.split(['"', ',']).next()?.parse().ok()
        })
        .await?;
    Ok((process, port))
}

fn typed(mut blob: Value, media_type: &str) -> Value {
    if let Some(blob) = blob.as_object_mut() {
        blob.insert("mediaType".to_owned(), media_type.into());
    }
    blob
}
