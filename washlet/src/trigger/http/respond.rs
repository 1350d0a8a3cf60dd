//! One request: who is asked, how many at once, and what the client sees when it fails.

use super::routes::{self, Found, Route, Routes};
use super::traffic::{Call, SentBody};
use super::{CallError, ResponseBody};
use crate::health::Health;
use bytes::Bytes;
use engine::Arriving;
use engine::permits::{Permit, Permits};
use engine::shards::Handle;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, RETRY_AFTER};
use http::uri::Scheme;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What all requests of a listener share.
pub(crate) struct Responder {
    pub(crate) routes: Routes,
    /// Told of each response.
    pub(crate) health: Health,
    pub(crate) scheme: Scheme,
    /// Requests at once; held until the response has been sent. Shared fairly between routes.
    pub(crate) requests: Permits,
    /// How long a request waits for one of those.
    pub(crate) wait: Duration,
    /// How long a client may stop in the middle of a request's body.
    pub(crate) idle: Duration,
    /// The largest body of a response, in bytes.
    pub(crate) body_bytes_max: u64,
    /// Draining began: ask HTTP/1.1 clients to go elsewhere next time.
    pub(crate) closing: AtomicBool,
}

/// Why the client gets a response of the host's own.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    NoHost,
    UnknownHost,
    Draining,
    Busy,
    Failed,
    Late,
}

type Answer = (Response<ResponseBody>, Permit);

impl Responder {
    /// Answers `request`; whatever happens, the client learns the request's id.
    pub(crate) async fn respond(
        &self,
        mut request: Request<Incoming>,
        call: Call,
    ) -> Response<SentBody> {
        let started = Instant::now();
        let (method, uri, version) = (
            request.method().clone(),
            request.uri().clone(),
            request.version(),
        );
        let id = request_id(&mut request);
        let (mut response, permit) = match self.route(&request) {
            Err(refusal) => (refusal.response(&id), None),
            Ok(route) => {
                let answer = match self.answer(&route, request, &id).await {
                    Ok((response, permit)) => (response, Some(permit)),
                    Err(refusal) => (refusal.response(&id), None),
                };
                route.target.answered(answer.0.status());
                answer
            }
        };
        if let Ok(id) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(REQUEST_ID.clone(), id);
        }
        if version <= Version::HTTP_11 && self.closing.load(Ordering::Relaxed) {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        // The path only: queries carry secrets.
        tracing::debug!(
            %method,
            path = uri.path(),
            status = response.status().as_u16(),
            elapsed_ms = started.elapsed().as_millis(),
            request_id = &*id,
            "request"
        );
        response.map(|body| call.send(body, self.body_bytes_max, id, permit))
    }

    async fn answer(
        &self,
        route: &Route,
        request: Request<Incoming>,
        id: &str,
    ) -> Result<Answer, Refusal> {
        let share = route.share(&self.requests);
        let permit = share.take(self.wait).await.ok_or(Refusal::Busy)?;
        let request = request.map(|body| Arriving::new(body, self.idle).boxed_unsync());
        let response = route
            .target
            .call(request, self.scheme.clone())
            .await
            .map_err(|error| {
                tracing::warn!(
                    workload = &*route.workload,
                    component = route.target.component(),
                    request_id = id,
                    %error,
                    "request failed"
                );
                match error {
                    CallError::Trap(_) | CallError::NoResponse => Refusal::Failed,
                    CallError::Timeout(_) => Refusal::Late,
                    CallError::Busy => Refusal::Busy,
                }
            })?;
        Ok((response, permit))
    }

    fn route(&self, request: &Request<Incoming>) -> Result<Handle<Route>, Refusal> {
        let mut headers = request.headers().get_all(HOST).iter();
        let header = headers
            .next()
            .map(|host| host.to_str().ok().and_then(routes::key));
        let authority = request
            .uri()
            .authority()
            .map(|authority| routes::key(authority.as_str()));
        // Two answers to the same question would let one tenant be routed and another one be named.
        let ambiguous = headers.next().is_some()
            || header.is_some() && authority.is_some() && header != authority;
        let key = if ambiguous {
            None
        } else {
            header.or(authority).flatten()
        };
        match self.routes.find(key.as_deref()) {
            Found::Route(route) => Ok(route),
            Found::Draining => Err(Refusal::Draining),
            Found::Unknown if key.is_none() => Err(Refusal::NoHost),
            Found::Unknown => Err(Refusal::UnknownHost),
        }
    }
}

impl Refusal {
    fn response(self, id: &str) -> Response<ResponseBody> {
        let (status, text) = match self {
            Self::NoHost => (StatusCode::BAD_REQUEST, "the request names no host"),
            Self::UnknownHost => (StatusCode::NOT_FOUND, "no workload serves this host"),
            Self::Draining => (StatusCode::SERVICE_UNAVAILABLE, "the workload is stopping"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "too many requests at once"),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "the workload failed"),
            Self::Late => (
                StatusCode::GATEWAY_TIMEOUT,
                "the workload did not answer in time",
            ),
        };
        let text = Full::new(Bytes::from(format!("{text} (request {id})\n")));
        let mut response = Response::new(text.map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// The client's id if it is a plain one, else a new one, which the target sees too.
fn request_id(request: &mut Request<Incoming>) -> Arc<str> {
    let plain = |id: &&str| {
        (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())
            && id
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&b))
    };
    let given = request
        .headers()
        .get(&REQUEST_ID)
        .and_then(|id| id.to_str().ok())
        .filter(plain);
    let id: Arc<str> = given.map_or_else(
        || uuid::Uuid::new_v4().simple().to_string().into(),
        Into::into,
    );
    if let Ok(id) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(REQUEST_ID.clone(), id);
    }
    id
}
