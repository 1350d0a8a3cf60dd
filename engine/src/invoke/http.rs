//! `wasi:http/incoming-handler@0.2`: the guest is polled inside the connection's task.
//!
//! ```text
//! request ─► new store ─► guest future ──polled by──► http()   until the response's head is there
//!                              └────────polled by──► GuestBody until the guest has returned
//! ```
//! Nothing is spawned on the way: a client that goes away drops the future, and with it the guest. Only a
//! guest that still works after its body has ended is handed to the engine's background owner.

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::oneshot;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme as WitScheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::Error;
use crate::Background;
use crate::runnable::{Recipe, Runnable};

type Guest = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;
type Answer = Result<Response<HyperOutgoingBody>, ErrorCode>;

impl Runnable {
    /// Answers `request` with a fresh instance.
    ///
    /// Shape: `scheme` is that of the listener. The body of the response drives the guest on; dropping it,
    /// or this future, ends the guest.
    ///
    /// # Errors
    /// All of [`Error`]; [`Error::Timeout`] when the head does not come in time.
    /// Source: `wasi:http/incoming-handler.handle`.
    pub async fn http<B>(
        &self,
        request: Request<B>,
        scheme: &Scheme,
    ) -> Result<Response<GuestBody>, Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<wasmtime_wasi_http::Error>,
    {
        let limit = self.0.engine.0.config.call_time_max;
        let call = self.call(request, scheme);
        tokio::time::timeout(limit, call)
            .await
            .unwrap_or(Err(Error::Timeout(limit)))
    }

    async fn call<B>(
        &self,
        request: Request<B>,
        scheme: &Scheme,
    ) -> Result<Response<GuestBody>, Error>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<wasmtime_wasi_http::Error>,
    {
        if self.0.http.is_none() {
            return Err(Error::NotExported("wasi:http/incoming-handler"));
        }
        let scheme = if *scheme == Scheme::HTTPS {
            WitScheme::Https
        } else {
            WitScheme::Http
        };
        let (sender, mut answer) = oneshot::channel();
        let mut guest: Guest = Box::pin(run(Arc::clone(&self.0), request, scheme, sender));
        let mut outcome = None;
        let answer = tokio::select! {
            biased;
            ended = &mut guest => {
                outcome = Some(ended);
                answer.try_recv().ok()
            }
            answer = &mut answer => answer.ok(),
        };
        let response = match (answer, outcome.take()) {
            // What the guest did after its answer was complete does not change the answer.
            (Some(Ok(response)), ended) => {
                let guest = match ended {
                    None => Some(guest),
                    Some(Ok(())) => None,
                    Some(Err(error)) => {
                        tracing::warn!(owner = ?self.0.owner, %error, "component failed after its response");
                        None
                    }
                };
                response.map(|body| GuestBody::new(self, body, guest))
            }
            (Some(Err(code)), _) => return Err(Error::Code(format!("{code:?}"))),
            (None, Some(Err(error))) => return Err(error),
            (None, Some(Ok(()))) => return Err(Error::NoResponse),
            // The outparam was dropped: the guest is about to return, or to trap.
            (None, None) => {
                guest.await?;
                return Err(Error::NoResponse);
            }
        };
        Ok(response)
    }
}

/// The guest: owns its store and its permit, and gives both back when it ends or is dropped.
async fn run<B>(
    recipe: Arc<Recipe>,
    request: Request<B>,
    scheme: WitScheme,
    answer: oneshot::Sender<Answer>,
) -> Result<(), Error>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<wasmtime_wasi_http::Error>,
{
    let Some(pre) = &recipe.http else {
        return Ok(());
    };
    let _permit = recipe.permit().await?;
    let mut store = recipe.store();
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
    let called = match pre.instantiate_async(&mut store).await {
        Ok(proxy) => {
            proxy
                .wasi_http_incoming_handler()
                .call_handle(&mut store, request, outparam)
                .await
        }
        Err(error) => Err(error),
    };
    called.map_err(|error| recipe.trapped(&store, error))
}

/// The body of a guest's response, which drives the guest on while it is read.
pub struct GuestBody {
    body: HyperOutgoingBody,
    guest: Option<Guest>,
    /// Bytes still owed by `content-length`.
    owed: Option<u64>,
    ended: bool,
    background: Background,
}

impl GuestBody {
    fn new(runnable: &Runnable, body: HyperOutgoingBody, guest: Option<Guest>) -> Self {
        let owed = body.size_hint().exact();
        let background = Arc::clone(&runnable.0.engine.0.config.background);
        Self {
            body,
            guest,
            owed,
            ended: owed == Some(0),
            background,
        }
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
        if let Some(guest) = &mut this.guest
            && let Poll::Ready(ended) = guest.as_mut().poll(cx)
        {
            this.guest = None;
            if let Err(error) = ended {
                this.ended = true;
                return Poll::Ready(Some(Err(error)));
            }
        }
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(owed), Some(data)) = (&mut this.owed, frame.data_ref()) {
                    *owed = owed.saturating_sub(data.len() as u64);
                    this.ended = *owed == 0;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(Error::Trap(format!(
                "the body ended early: {error}"
            ))))),
            Poll::Ready(None) => {
                this.ended = true;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for GuestBody {
    fn drop(&mut self) {
        // A complete body: let the guest finish. A client that went away: the guest goes with it.
        if let Some(guest) = self.guest.take()
            && self.ended
        {
            (self.background)(Box::pin(async move {
                if let Err(error) = guest.await {
                    tracing::warn!(%error, "component failed after its response");
                }
            }));
        }
    }
}
