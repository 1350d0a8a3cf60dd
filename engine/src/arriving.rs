//! A body that ends in an error when its sender stops: whoever waits for it holds an instance and a permit.

use bytes::Bytes;
use capabilities::BoxError;
use http_body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// A body from the network. The time runs only while somebody waits for it.
///
/// Errors: those of the body, and an I/O error of kind `TimedOut` when nothing came for `idle`.
pub struct Arriving<B> {
    body: B,
    idle: Duration,
    /// Made at the first wait: most bodies are there with their head.
    waiting: Option<Pin<Box<Sleep>>>,
    is_waiting: bool,
}

impl<B> Arriving<B> {
    /// Waits `idle` at most for each part of `body`.
    pub fn new(body: B, idle: Duration) -> Self {
        Self {
            body,
            idle,
            waiting: None,
            is_waiting: false,
        }
    }
}

impl<B> Body for Arriving<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.is_waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let idle = this.idle;
        let timer = this.waiting.get_or_insert_with(|| Box::pin(sleep(idle)));
        if !std::mem::replace(&mut this.is_waiting, true) {
            timer.as_mut().reset(Instant::now() + idle);
        }
        ready!(timer.as_mut().poll(cx));
        let text = format!("nothing arrived for {idle:?}");
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
