//! One image of one registry: asking it anything, and showing who asks.

use std::collections::BTreeMap;

use http::header::{self, HeaderMap};
use reqwest::{Request, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::time::timeout;

use super::{Client, Endpoint, Error, Result};
use crate::artifact::credentials::Credentials;
use crate::artifact::reference::{Image, quote};
use crate::artifact::registries::Mirror;

/// The largest answer of a token server and the largest error, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// One image of one registry, with what was found out about signing in.
pub(super) struct Session<'a> {
    pub(super) client: &'a Client,
    pub(super) image: &'a Image,
    /// How it is spoken to.
    endpoint: &'a Endpoint,
    /// `host[:port]`: that of the image, or of a mirror.
    registry: &'a str,
    /// That of the image, perhaps below a path of a mirror.
    repository: String,
    credentials: Option<Credentials>,
    /// What a token is asked for.
    actions: &'static str,
    authorization: Option<Authorization>,
}

/// What a registry asked for.
#[derive(Clone)]
enum Authorization {
    Basic(Credentials),
    Bearer(String),
}

impl<'a> Session<'a> {
    /// At the image's own registry. Without credentials those of the host are used.
    pub(super) async fn new(
        client: &'a Client,
        image: &'a Image,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        let repository = image.repository().to_owned();
        Self::open(client, image, image.registry(), repository, credentials).await
    }

    /// At a mirror, with the host's own credentials.
    pub(super) async fn at(
        client: &'a Client,
        image: &'a Image,
        mirror: &'a Mirror,
    ) -> Result<Self> {
        let repository = match mirror.path.is_empty() {
            true => image.repository().to_owned(),
            false => format!("{}/{}", mirror.path, image.repository()),
        };
        Self::open(client, image, mirror.registry.as_str(), repository, None).await
    }

    async fn open(
        client: &'a Client,
        image: &'a Image,
        registry: &'a str,
        repository: String,
        credentials: Option<Credentials>,
    ) -> Result<Self> {
        let endpoint = client.endpoint(registry);
        let credentials = match credentials.filter(|given| !given.is_empty()) {
            Some(given) => Some(given),
            None => {
                let configured = endpoint.credentials.as_ref();
                let found = client.docker.credentials(registry, configured).await;
                found.map_err(|source| Error::Credentials {
                    registry: registry.to_owned(),
                    source,
                })?
            }
        };
        Ok(Self {
            client,
            image,
            endpoint,
            registry,
            repository,
            credentials,
            actions: "pull",
            authorization: None,
        })
    }

    /// `host[:port]` of who is asked.
    pub(super) fn registry(&self) -> &str {
        self.registry
    }

    /// Tokens are asked for with the right to push.
    pub(super) fn ask_to_push(&mut self) {
        self.actions = "pull,push";
    }

    /// Sends, signs in if asked to and sends again; only success comes back.
    pub(super) async fn send(&mut self, request: Request) -> Result<Response> {
        let again = request.try_clone();
        let what = request
            .url()
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let mut answer = self.send_once(self.authorized(request)).await?;
        if answer.status() == StatusCode::UNAUTHORIZED
            && let Some(authorization) = self.sign_in(answer.headers()).await?
            && let Some(again) = again
        {
            self.authorization = Some(authorization);
            answer = self.send_once(self.authorized(again)).await?;
        }
        self.checked(answer, &what).await
    }

    async fn send_once(&self, request: RequestBuilder) -> Result<Response> {
        let sent = timeout(self.client.timeout, request.send()).await;
        sent.map_err(|_| self.stalled())?
            .map_err(|error| self.unreachable(error))
    }

    /// Shows who we are to the registry, and to nobody it sends us to.
    pub(super) fn authorized(&self, request: Request) -> RequestBuilder {
        let ours = self
            .url("")
            .is_ok_and(|url| url.origin() == request.url().origin());
        let request = RequestBuilder::from_parts(self.endpoint.http.clone(), request);
        match self.authorization.as_ref().filter(|_| ours) {
            Some(Authorization::Basic(Credentials { username, password })) => {
                request.basic_auth(username, Some(password))
            }
            Some(Authorization::Bearer(token)) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(super) async fn checked(&self, answer: Response, what: &str) -> Result<Response> {
        let status = answer.status();
        let registry = self.registry.to_owned();
        let repository = self.repository.clone();
        match status {
            _ if status.is_success() => Ok(answer),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let with_credentials = self.credentials.is_some();
                Err(Error::Denied {
                    registry,
                    repository,
                    with_credentials,
                })
            }
            StatusCode::NOT_FOUND => Err(Error::NotFound {
                registry,
                what: format!("{repository}/{}", quote(what)),
            }),
            _ => {
                let body = self
                    .body(answer, "answer", ANSWER_BYTES_MAX)
                    .await
                    .unwrap_or_default();
                Err(Error::Status {
                    registry,
                    status,
                    code: error_code(&body),
                })
            }
        }
    }

    /// What the registry asks for; `None` if we have nothing to show.
    async fn sign_in(&self, headers: &HeaderMap) -> Result<Option<Authorization>> {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter();
        let challenges: Vec<Challenge> = challenges
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .collect();
        let Some(bearer) = challenges
            .iter()
            .find(|challenge| challenge.scheme == "bearer")
        else {
            let basic = challenges
                .iter()
                .any(|challenge| challenge.scheme == "basic");
            let credentials = self.credentials.as_ref().filter(|_| basic);
            return Ok(credentials.cloned().map(Authorization::Basic));
        };
        let realm = bearer
            .parameters
            .get("realm")
            .and_then(|realm| Url::parse(realm).ok());
        let mut url =
            realm.ok_or_else(|| self.protocol("a challenge without a realm".to_owned()))?;
        let scope = format!("repository:{}:{}", self.repository, self.actions);
        url.query_pairs_mut().append_pair("scope", &scope);
        if let Some(service) = bearer.parameters.get("service") {
            url.query_pairs_mut().append_pair("service", service);
        }
        let mut request = self.endpoint.http.get(url);
        if let Some(Credentials { username, password }) = &self.credentials {
            request = request.basic_auth(username, Some(password));
        }
        let answer = self
            .checked(self.send_once(request).await?, "token")
            .await?;
        let body = self.body(answer, "token", ANSWER_BYTES_MAX).await?;
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let token: Option<Token> = serde_json::from_slice(&body).ok();
        let token = token.and_then(|token| token.token.or(token.access_token));
        let token = token.ok_or_else(|| self.protocol("an answer that is no token".to_owned()))?;
        Ok(Some(Authorization::Bearer(token)))
    }

    pub(super) async fn body(
        &self,
        mut answer: Response,
        what: &'static str,
        max: usize,
    ) -> Result<Vec<u8>> {
        let read = async {
            let mut body = Vec::new();
            while let Some(chunk) = answer
                .chunk()
                .await
                .map_err(|error| self.unreachable(error))?
            {
                body.extend_from_slice(&chunk);
                if body.len() > max {
                    let (bytes, max) = (body.len() as u64, max as u64);
                    return Err(Error::TooLarge { what, bytes, max });
                }
            }
            Ok(body)
        };
        timeout(self.client.timeout, read)
            .await
            .map_err(|_| self.stalled())?
    }

    pub(super) fn url(&self, rest: &str) -> Result<Url> {
        let scheme = self.endpoint.scheme;
        let (registry, repository) = (self.registry, &self.repository);
        Url::parse(&format!("{scheme}://{registry}/v2/{repository}/{rest}"))
            .map_err(|error| self.protocol(format!("no address: {error}")))
    }

    pub(super) fn protocol(&self, what: String) -> Error {
        Error::Protocol {
            registry: self.registry.to_owned(),
            what,
        }
    }

    pub(super) fn stalled(&self) -> Error {
        let registry = self.registry.to_owned();
        Error::Stalled {
            registry,
            timeout: self.client.timeout,
        }
    }

    pub(super) fn unreachable(&self, error: reqwest::Error) -> Error {
        let registry = self.registry.to_owned();
        if answered_in_plain_text(&error) {
            return Error::PlainHttp(registry);
        }
        // The address may be one we were redirected to, signed for us alone.
        Error::Unreachable {
            registry,
            source: error.without_url(),
        }
    }
}

/// `code` of the first error of the answer; its other texts might repeat what we sent.
fn error_code(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let code = answer.get("errors")?.get(0)?.get("code")?.as_str()?;
    let plain = code.len() <= 40 && code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
    plain.then(|| code.to_owned())
}

struct Challenge {
    scheme: String,
    parameters: BTreeMap<String, String>,
}

impl Challenge {
    /// `Bearer realm="https://..",service="..",..`.
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text, ""));
        let mut parameters = BTreeMap::new();
        while let Some((key, after)) = rest.split_once('=') {
            let (value, after) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').unwrap_or((after, "")),
            };
            let key = key.trim_matches([' ', ',']).to_ascii_lowercase();
            parameters.insert(key, value.trim().to_owned());
            rest = after;
        }
        Some(Self {
            scheme: scheme.to_ascii_lowercase(),
            parameters,
        })
    }
}

/// Whether a TLS handshake met something that is not TLS.
fn answered_in_plain_text(error: &reqwest::Error) -> bool {
    let mut next = std::error::Error::source(error);
    while let Some(error) = next {
        if let Some(rustls::Error::InvalidMessage(_)) = error.downcast_ref() {
            return true;
        }
        // An I/O error does not name what it wraps as its source.
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}
