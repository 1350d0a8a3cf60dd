//! A component as the target of HTTP requests.

use async_trait::async_trait;
use capabilities::BoxError;
use engine::{Background, Runnable, invoke};
use http::uri::Scheme;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::http::{CallError, RequestBody, ResponseBody, Target};
use crate::drain::Drain;
use crate::workload::actor::{InFlight, Token};

/// A linked component behind a route.
pub(crate) struct Guest {
    target: Runnable,
    in_flight: InFlight,
    background: Background,
}

impl Guest {
    /// Shape: `drain` owns calls that go on working after their response, for `call_time_max` at most.
    pub(crate) fn new(
        target: Runnable,
        in_flight: InFlight,
        drain: Drain,
        call_time_max: Duration,
    ) -> Self {
        Self {
            target,
            background: background(in_flight.clone(), drain, call_time_max),
            in_flight,
        }
    }
}

/// Finishes a guest whose response is complete, as a call in flight like any other.
fn background(in_flight: InFlight, drain: Drain, limit: Duration) -> Background {
    Arc::new(move |rest| {
        // Taken before the body's token is dropped, so that a stop never sees none.
        let token = in_flight.token();
        drain.spawn("after the response", async move {
            let ended = token.run(tokio::time::timeout(limit, rest)).await;
            if !matches!(ended, Some(Ok(()))) {
                tracing::warn!("a component that worked on after its response was ended");
            }
            drop(token);
        });
    })
}

#[async_trait]
impl Target for Guest {
    fn component(&self) -> &str {
        &self.target.owner().component
    }

    fn answered(&self, status: StatusCode) {
        self.in_flight.answered(status);
    }

    async fn call(
        &self,
        request: Request<RequestBody>,
        scheme: Scheme,
    ) -> Result<Response<ResponseBody>, CallError> {
        let token = self.in_flight.token();
        let call = self.target.http(request, &scheme, &self.background);
        match token.run(call).await {
            Some(Ok(response)) => Ok(response.map(|body| Counted { body, token }.boxed_unsync())),
            Some(Err(error)) => Err(refused(error)),
            None => Err(CallError::Trap("the workload was stopped".to_owned())),
        }
    }
}

fn refused(error: invoke::Error) -> CallError {
    match error {
        invoke::Error::Busy => CallError::Busy,
        invoke::Error::CpuExceeded(limit) | invoke::Error::Timeout(limit) => {
            CallError::Timeout(limit)
        }
        invoke::Error::NoResponse => CallError::NoResponse,
        error => CallError::Trap(error.to_string()),
    }
}

/// A body that counts as a call in flight until it ends, and is cut when stopping takes too long.
struct Counted<B> {
    body: B,
    token: Token,
}

impl<B> Body for Counted<B>
where
    B: Body<Error = invoke::Error> + Unpin,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let cut = match frame {
            Poll::Ready(Some(_)) => self.token.is_cut(),
            Poll::Ready(None) => false,
            Poll::Pending => self.token.poll_cut(cx).is_ready(),
        };
        if cut {
            return Poll::Ready(Some(Err("the workload was stopped".into())));
        }
        frame.map(|frame| frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
