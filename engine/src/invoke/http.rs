//! `wasi:http`, of which [`service`](super::service) has what is different in 0.3: the guest is polled inside
//! the connection's task.
//!
//! ```text
//! request ─► instance  ─► guest future ──polled by──► http()   until the response's head is there
//!                              └────────polled by──► GuestBody until the guest has returned
//! ```
//! Nothing is spawned on the way: a client that goes away drops the future, and with it the guest. Only a
//! guest that still works after its body has ended is handed to an owner in the background.

use bytes::{Bytes, BytesMut};
use capabilities::BoxError;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http::uri::Scheme;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme as WitScheme};
use wasmtime_wasi_http::p2::bindings::{Proxy, ProxyPre};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;
use wasmtime_wasi_http::p3::bindings::Service;

use super::{Error, service};
use crate::Background;
use crate::ctx::Ctx;
use crate::interface::http::unreadable;
use crate::limits::{Meter, Metered};
use crate::permits::Permit;
use crate::runnable::{Recipe, Runnable, WarmSets};
use crate::shards::Handle;
use crate::warm::Live;

/// Up to here, parts of a body are copied into one: it costs less than writing them one by one.
const MERGED_BYTES_MAX: usize = 64 << 10;

type Guest = Pin<Box<dyn Future<Output = Result<Returned, Box<Failed>>> + Send>>;
/// What moves a body on whose guest has returned; it ends only if that fails.
type Rest = Pin<Box<dyn Future<Output = Box<Failed>> + Send>>;
type Answer = Result<Response<HyperOutgoingBody>, ErrorCode>;

/// A guest that failed. Its store is kept, because the body would look complete if the writing end went.
pub(super) struct Failed {
    error: Error,
    _store: Option<Store<Ctx>>,
    _permit: Option<Permit>,
}

impl Failed {
    pub(super) fn keeping(error: Error, store: Store<Ctx>, permit: Permit) -> Box<Self> {
        Box::new(Self {
            error,
            _store: Some(store),
            _permit: Some(permit),
        })
    }
}

impl From<Error> for Box<Failed> {
    fn from(error: Error) -> Self {
        Box::new(Failed {
            error,
            _store: None,
            _permit: None,
        })
    }
}

/// A guest that has returned, with its instance if that may serve again.
pub(super) enum Returned {
    Spent,
    Sync(Handle<WarmSets>, Live<Proxy>),
    /// Streams pass through its store, so that lives until the body is complete, warm or not.
    Async(Option<Handle<WarmSets>>, Live<Service>),
}

impl Returned {
    /// The response is complete: the instance may serve the next call.
    fn reuse(self) {
        match self {
            Self::Sync(warm, live) => warm.http.give_back(live),
            Self::Async(Some(warm), live) => warm.service.give_back(live),
            Self::Spent | Self::Async(None, _) => {}
        }
    }

    /// The response is not complete. What finishes it, if anything does; a synchronous instance goes, and
    /// with it a body that nobody will finish ends.
    fn rest(self) -> Option<Rest> {
        match self {
            Self::Async(_, live) => Some(service::pump(live)),
            Self::Spent | Self::Sync(..) => None,
        }
    }
}

impl Runnable {
    /// Answers `request`.
    ///
    /// Shape: `scheme` is that of the listener. The body of the response drives the guest on; dropping it,
    /// or this future, ends the guest, unless the body was complete: then `background` finishes it.
    ///
    /// # Errors
    /// All of [`Error`]; [`Error::Timeout`] when the head does not come in time.
    /// Source: `wasi:http/incoming-handler.handle`.
    pub async fn http<B>(
        &self,
        request: Request<B>,
        scheme: &Scheme,
        background: &Background,
    ) -> Result<Response<GuestBody>, Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let recipe = self.recipe();
        let limit = recipe.engine.0.config.call_time_max;
        let call = self.call(recipe, request, scheme, background);
        tokio::time::timeout(limit, call)
            .await
            .unwrap_or(Err(Error::Timeout(limit)))
    }

    async fn call<B>(
        &self,
        recipe: Handle<Recipe>,
        request: Request<B>,
        scheme: &Scheme,
        background: &Background,
    ) -> Result<Response<GuestBody>, Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let is_head = request.method() == Method::HEAD;
        let (payer, warm, meter) = (recipe.clone(), self.warm(), Meter::new());
        if recipe.service.is_some() {
            let (sender, answer) = oneshot::channel();
            let metered = Arc::clone(&meter);
            let run = service::run(recipe, warm, metered, request, scheme.clone(), sender);
            let guest = Box::pin(Metered::new(payer, meter, run));
            return respond(guest, answer, is_head, background).await;
        }
        if recipe.http.is_none() {
            return Err(Error::NotExported("wasi:http/incoming-handler"));
        }
        let scheme = if *scheme == Scheme::HTTPS {
            WitScheme::Https
        } else {
            WitScheme::Http
        };
        let (sender, answer) = oneshot::channel();
        let run = run(recipe, warm, Arc::clone(&meter), request, scheme, sender);
        let guest = Box::pin(Metered::new(payer, meter, run));
        respond(guest, answer, is_head, background).await
    }
}

/// Polls `guest` until the head of its response is there.
async fn respond<C: fmt::Debug>(
    mut guest: Guest,
    mut answer: oneshot::Receiver<Result<Response<HyperOutgoingBody>, C>>,
    is_head: bool,
    background: &Background,
) -> Result<Response<GuestBody>, Error> {
    let mut outcome = None;
    let answer = tokio::select! {
        biased;
        ended = &mut guest => {
            outcome = Some(ended);
            answer.try_recv().ok()
        }
        answer = &mut answer => answer.ok(),
    };
    match (answer, outcome) {
        (Some(Ok(response)), outcome) => {
            let (head, body) = response.into_parts();
            let owed = owed(is_head, &head, &body);
            let mut body = GuestBody {
                body,
                collected: VecDeque::new(),
                whole: None,
                guest: None,
                rest: None,
                failed: None,
                owed,
                ended: owed == Some(0),
            };
            match outcome {
                None => body.guest = Some((guest, Arc::clone(background))),
                Some(Ok(returned)) => body.take_rest(returned),
                Some(Err(failed)) => body.failed = Some(failed),
            }
            Ok(Response::from_parts(head, body))
        }
        (Some(Err(code)), _) => Err(Error::Code(format!("{code:?}"))),
        (None, Some(Err(failed))) => Err(failed.error),
        (None, Some(Ok(_))) => Err(Error::NoResponse),
        // The outparam was dropped: the guest is about to return, or to trap.
        (None, None) => match guest.await {
            Ok(_) => Err(Error::NoResponse),
            Err(failed) => Err(failed.error),
        },
    }
}

/// How many bytes of body a client will read, where that is known: it stops reading there.
fn owed(is_head: bool, head: &Parts, body: &HyperOutgoingBody) -> Option<u64> {
    let empty = head.status.is_informational()
        || head.status == StatusCode::NO_CONTENT
        || head.status == StatusCode::NOT_MODIFIED;
    if is_head || empty {
        return Some(0);
    }
    let length = head.headers.get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    length.or_else(|| body.size_hint().exact())
}

fn ended_early(error: &wasmtime_wasi_http::Error) -> Error {
    Error::Trap(format!("the body ended early: {error}"))
}

impl super::Pre for ProxyPre<Ctx> {
    type Exports = Proxy;

    fn instantiate(
        &self,
        store: &mut Store<Ctx>,
    ) -> impl Future<Output = wasmtime::Result<Proxy>> + Send {
        self.instantiate_async(store)
    }
}

/// The guest: owns its store and its permit, and gives both back when it ends or is dropped.
async fn run<B>(
    recipe: Handle<Recipe>,
    warm: Option<Handle<WarmSets>>,
    meter: Arc<Meter>,
    request: Request<B>,
    scheme: WitScheme,
    answer: oneshot::Sender<Answer>,
) -> Result<Returned, Box<Failed>>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Some(pre) = &recipe.http else {
        return Ok(Returned::Spent);
    };
    let mut live = super::take(pre, &recipe, warm.as_ref().map(|warm| &warm.http), meter).await?;
    let store = &mut live.store;
    let request = request.map(|body| body.map_err(|error| unreadable(error.into())));
    let refused = |error: wasmtime::Error| Error::Request(format!("{error:#}"));
    let request = store
        .data_mut()
        .http()
        .new_incoming_request(scheme, request)
        .map_err(refused)?;
    let outparam = store
        .data_mut()
        .http()
        .new_response_outparam(answer)
        .map_err(refused)?;
    let handler = live.exports.wasi_http_incoming_handler();
    match handler.call_handle(store, request, outparam).await {
        Ok(()) => Ok(warm.map_or(Returned::Spent, |warm| Returned::Sync(warm, live))),
        Err(error) => {
            let error = recipe.trapped(&live.store, error);
            Err(Failed::keeping(error, live.store, live.permit))
        }
    }
}

/// The body of a guest's response, which drives the guest on while it is read.
pub struct GuestBody {
    body: HyperOutgoingBody,
    /// Parts that were there when the guest had returned.
    collected: VecDeque<Result<Frame<Bytes>, Error>>,
    /// The size of all of them, once that is the whole body.
    whole: Option<u64>,
    /// Who still runs, and who finishes that when the body is done.
    guest: Option<(Guest, Background)>,
    rest: Option<Rest>,
    failed: Option<Box<Failed>>,
    /// Bytes the client still waits for, where that is known.
    owed: Option<u64>,
    ended: bool,
}

impl GuestBody {
    /// Takes what a guest that has returned left behind: usually all of the body, which then has a size and
    /// goes out in one piece.
    fn take_rest(&mut self, returned: Returned) {
        let mut cx = Context::from_waker(Waker::noop());
        let mut size = 0;
        let is_whole = loop {
            match Pin::new(&mut self.body).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    size += frame.data_ref().map_or(0, Bytes::len);
                    self.collected.push_back(Ok(frame));
                }
                Poll::Ready(None) => break true,
                Poll::Ready(Some(Err(error))) => {
                    self.collected.push_back(Err(ended_early(&error)));
                    break false;
                }
                Poll::Pending => break false,
            }
        };
        match is_whole {
            true => returned.reuse(),
            false => self.rest = returned.rest(),
        }
        let is_data = |part: &Result<Frame<Bytes>, Error>| part.as_ref().is_ok_and(Frame::is_data);
        if !is_whole || !self.collected.iter().all(is_data) {
            return;
        }
        if self.collected.len() > 1 && size <= MERGED_BYTES_MAX {
            let mut merged = BytesMut::with_capacity(size);
            let parts = self
                .collected
                .drain(..)
                .filter_map(|part| part.ok()?.into_data().ok());
            parts.for_each(|part| merged.extend_from_slice(&part));
            self.collected.push_back(Ok(Frame::data(merged.freeze())));
        }
        self.whole = Some(size as u64);
    }
}

impl Body for GuestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        // The guest first: what it writes now can leave in this very poll.
        if let Some((guest, _)) = &mut this.guest
            && let Poll::Ready(ended) = guest.as_mut().poll(cx)
        {
            this.guest = None;
            match ended {
                Ok(returned) => this.take_rest(returned),
                Err(failed) => this.failed = Some(failed),
            }
        }
        if let Some(rest) = &mut this.rest
            && let Poll::Ready(failed) = rest.as_mut().poll(cx)
        {
            this.rest = None;
            this.failed = Some(failed);
        }
        let polled = match this.collected.pop_front() {
            Some(part) => Poll::Ready(Some(part)),
            None if this.whole.is_some() => Poll::Ready(None),
            None => {
                let polled = Pin::new(&mut this.body).poll_frame(cx);
                polled.map(|part| part.map(|part| part.map_err(|error| ended_early(&error))))
            }
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(whole) = &mut this.whole {
                    *whole -= frame.data_ref().map_or(0, |data| data.len() as u64);
                }
                if let (Some(owed), Some(data)) = (&mut this.owed, frame.data_ref()) {
                    *owed = owed.saturating_sub(data.len() as u64);
                    this.ended = *owed == 0;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error))),
            Poll::Ready(None) => {
                this.ended = true;
                // Asked for once: a body shorter than its head said is not whole.
                match this.owed.take() {
                    None | Some(0) => Poll::Ready(None),
                    Some(owed) => {
                        let why = format!("the body ended {owed} bytes early");
                        Poll::Ready(Some(Err(Error::Trap(why))))
                    }
                }
            }
            // Nothing more will be written, and the body was not finished.
            Poll::Pending => match this.failed.take() {
                Some(failed) => Poll::Ready(Some(Err(failed.error))),
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.whole == Some(0) || self.collected.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.whole.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

impl Drop for GuestBody {
    fn drop(&mut self) {
        if let Some(failed) = self.failed.take() {
            tracing::warn!(error = %failed.error, "component failed after its response");
        }
        // A complete body: let the guest finish. A client that went away: the guest goes with it.
        if let Some((guest, background)) = self.guest.take()
            && self.ended
        {
            background(Box::pin(async move {
                // Its body is complete, so its instance need not go.
                match guest.await {
                    Ok(returned) => returned.reuse(),
                    Err(failed) => {
                        tracing::warn!(error = %failed.error, "component failed after its response")
                    }
                }
            }));
        }
    }
}
