//! A request's body that ends in an error when the client stops sending: it holds an instance and a permit.

use bytes::Bytes;
use capabilities::BoxError;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// What a client sends. The time runs only while somebody waits for it.
pub(super) struct Arriving {
    body: Incoming,
    idle: Duration,
    /// Made at the first wait: most bodies are there with their head.
    waiting: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl Arriving {
    pub(super) fn new(body: Incoming, idle: Duration) -> Self {
        Self {
            body,
            idle,
            waiting: None,
            is_waiting: false,
        }
    }
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.is_waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        let idle = this.idle;
        let timer = this.waiting.get_or_insert_with(|| Box::pin(sleep(idle)));
        if !std::mem::replace(&mut this.is_waiting, true) {
            timer.as_mut().reset(Instant::now() + idle);
        }
        ready!(timer.as_mut().poll(cx));
        let text = format!("the client sent nothing for {idle:?}");
        Poll::Ready(Some(Err(
            io::Error::new(io::ErrorKind::TimedOut, text).into()
        )))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
