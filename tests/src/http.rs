//! Requests to a host.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Client, Method};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long one exchange may take, of which a host with a busy machine needs little.
const PATIENCE: Duration = Duration::from_secs(60);

/// What came back.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// The header fields.
    pub headers: reqwest::header::HeaderMap,
    /// The body, which is text in every test.
    pub body: String,
}

/// A client that keeps no connection and uses no proxy, so that requests do not affect each other.
///
/// # Errors
/// When TLS cannot be set up.
pub fn client() -> Result<Client> {
    Ok(Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
        .timeout(PATIENCE)
        .build()?)
}

/// `GET path` for the virtual host `host`.
///
/// # Errors
/// When no reply comes, not when the reply says that something failed.
pub async fn get(port: u16, host: &str, path: &str) -> Result<Reply> {
    send(port, host, Method::GET, path, "").await
}

/// Any request for the virtual host `host`.
///
/// # Errors
/// As for [`get`].
pub async fn send(
    port: u16,
    host: &str,
    method: Method,
    path: &str,
    body: impl Into<reqwest::Body>,
) -> Result<Reply> {
    let url = format!("http://127.0.0.1:{port}{path}");
    let request = client()?
        .request(method, url)
        .header("host", host)
        .body(body);
    let reply = request.send().await?;
    let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
    let body = reply.text().await.context("the body was cut")?;
    Ok(Reply {
        status,
        headers,
        body,
    })
}

/// Sends `request` as it is and reads until the host closes the connection: for requests that no
/// sane client makes. Ask for `connection: close`.
///
/// # Errors
/// When the host accepts no connection or does not close it.
pub async fn raw(port: u16, request: &str) -> Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).await?;
        anyhow::Ok(String::from_utf8_lossy(&reply).into_owned())
    };
    timeout(PATIENCE, exchange)
        .await
        .context("the host did not close the connection")?
}
