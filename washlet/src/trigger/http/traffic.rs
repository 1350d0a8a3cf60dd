//! What one connection is doing, so that what no longer moves can be ended.
//!
//! hyper's own header limit also ends connections that are merely idle between requests, and nothing in it
//! ends a client that stops reading; so both are watched here, for HTTP/1.1 and HTTP/2 alike. One watch
//! looks after all connections of a listener: a timer and a signal of its own in each would cost every
//! request a lock that all of them share.

use super::ResponseBody;
use bytes::Bytes;
use capabilities::BoxError;
use engine::permits::Permit;
use futures::task::AtomicWaker;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// How long a connection that was told to finish may take, when it is for having been idle.
const LINGER: Duration = Duration::from_secs(1);
/// The watch looks so often at most within the shortest limit: a limit may be late by that part.
const LOOKS_MAX: u32 = 20;

/// What the task of a connection is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Order {
    GoOn,
    /// What is under way may end; then close.
    Finish,
    Close,
}

/// The connections of a listener.
pub(crate) struct Connections {
    head: Duration,
    idle: Duration,
    all: Mutex<Vec<Weak<Traffic>>>,
}

impl Connections {
    pub(crate) fn new(head: Duration, idle: Duration) -> Self {
        Self {
            head,
            idle,
            all: Mutex::default(),
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Weak<Traffic>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of them.
    pub(crate) fn add(&self) -> Arc<Traffic> {
        let traffic = Traffic::new(self.head, self.idle);
        let mut all = self.all();
        if all.len() == all.capacity() {
            // Before it grows.
            all.retain(|traffic| traffic.strong_count() > 0);
        }
        all.push(Arc::downgrade(&traffic));
        traffic
    }

    fn open(&self) -> Vec<Arc<Traffic>> {
        let mut all = self.all();
        all.retain(|traffic| traffic.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    }

    /// Tells `order` to all of them.
    pub(crate) fn tell(&self, order: Order) {
        self.open().iter().for_each(|traffic| traffic.tell(order));
    }

    /// Looks after them for ever.
    pub(crate) async fn watch(&self) {
        let shortest = self.head.min(self.idle);
        loop {
            let now = Instant::now();
            let next = self
                .open()
                .iter()
                .map(|traffic| traffic.look_after(now))
                .min();
            // One that is added meanwhile is not due before that.
            let next = next.unwrap_or(now + shortest).min(now + shortest);
            sleep_until(next.max(now + shortest / LOOKS_MAX)).await;
        }
    }
}

/// One connection's calls and the bodies it is sending.
pub(crate) struct Traffic {
    /// How long the head of a request may take to arrive.
    head: Duration,
    /// How long the connection may go without a request, and a response's body without a frame.
    idle: Duration,
    state: Mutex<State>,
    order: AtomicU8,
    /// The connection's.
    task: AtomicWaker,
}

struct State {
    calls: usize,
    /// When the last call ended.
    since: Instant,
    /// When the head that is arriving began to.
    arriving: Option<Instant>,
    /// HTTP/2: bytes between calls are no head, but pings and the like.
    multiplexed: bool,
    bodies: Vec<Weak<Sending>>,
    /// When it was told to finish for having been idle.
    told: Option<Instant>,
}

impl Traffic {
    pub(crate) fn new(head: Duration, idle: Duration) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            calls: 0,
            since: now,
            arriving: None,
            multiplexed: false,
            bodies: Vec::new(),
            told: None,
        };
        Arc::new(Self {
            head,
            idle,
            state: Mutex::new(state),
            order: AtomicU8::new(Order::GoOn as u8),
            task: AtomicWaker::new(),
        })
    }

    /// The first head must arrive within `head` from now.
    pub(crate) fn open(&self) {
        self.state().arriving = Some(Instant::now());
    }

    fn tell(&self, order: Order) {
        self.order.fetch_max(order as u8, Ordering::Release);
        self.task.wake();
    }

    /// The task of `cx` is woken when it is told something.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        self.task.register(cx.waker());
    }

    /// Whether the connection was told `order`, or more.
    pub(crate) fn is_told(&self, order: Order) -> bool {
        self.order.load(Ordering::Acquire) >= order as u8
    }

    /// Ends what does not move; says when to look again.
    fn look_after(&self, now: Instant) -> Instant {
        if let Some(next) = self.review(now) {
            return next;
        }
        let told = *self.state().told.get_or_insert(now);
        let order = match now < told + LINGER {
            true => Order::Finish,
            false => Order::Close,
        };
        self.tell(order);
        now + LINGER
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request's head is complete; the connection is busy until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>, version: Version) -> Call {
        let mut state = self.state();
        state.calls += 1;
        state.arriving = None;
        state.multiplexed = version == Version::HTTP_2;
        Call(self.clone())
    }

    fn received(&self) {
        let mut state = self.state();
        if state.calls == 0 && !state.multiplexed && state.arriving.is_none() {
            state.arriving = Some(Instant::now());
        }
    }

    /// Ends the bodies that have not moved for too long. Returns when to look again, or `None` when the
    /// connection itself has been idle for too long.
    fn review(&self, now: Instant) -> Option<Instant> {
        // A head that begins to arrive right after this look has its own limit.
        let mut next = now + self.head.min(self.idle);
        // Without the lock: the last holder of a body ends its call, which takes the lock itself.
        let bodies: Vec<_> = {
            let mut state = self.state();
            state.bodies.retain(|body| body.strong_count() > 0);
            state.bodies.iter().filter_map(Weak::upgrade).collect()
        };
        for body in bodies {
            match body.due(self.idle) {
                Some(due) if due <= now => body.cut(self.idle),
                Some(due) => next = next.min(due),
                None => {}
            }
        }
        let state = self.state();
        if state.calls > 0 {
            return Some(next);
        }
        let due = state
            .arriving
            .map_or(state.since + self.idle, |began| began + self.head);
        (due > now).then_some(next.min(due))
    }
}

/// Keeps a connection busy.
pub(crate) struct Call(Arc<Traffic>);

impl Call {
    /// Gives the call, and the `permit` it runs with, to the body of its response.
    ///
    /// Shape: it breaks off when it is larger than `bytes_max`.
    pub(crate) fn send(
        self,
        body: ResponseBody,
        bytes_max: u64,
        id: Arc<str>,
        permit: Option<Permit>,
    ) -> SentBody {
        let traffic = self.0.clone();
        let live = Live {
            body,
            bytes_max,
            left: bytes_max,
            id,
            moved: Instant::now(),
            waker: None,
            _call: self,
            _permit: permit,
        };
        let sending = Arc::new(Sending(Mutex::new(Phase::Live(live))));
        let mut state = traffic.state();
        state.bodies.retain(|body| body.strong_count() > 0);
        state.bodies.push(Arc::downgrade(&sending));
        SentBody(sending)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.calls -= 1;
        if state.calls == 0 {
            state.since = Instant::now();
        }
    }
}

/// A body being sent; shared with the connection's task, which may end it.
struct Sending(Mutex<Phase>);

enum Phase {
    Live(Live),
    Ended,
    /// It did not move for this long.
    Cut(Duration),
}

struct Live {
    body: ResponseBody,
    bytes_max: u64,
    /// Bytes that may still be sent.
    left: u64,
    id: Arc<str>,
    moved: Instant,
    waker: Option<Waker>,
    _call: Call,
    _permit: Option<Permit>,
}

impl Sending {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn due(&self, idle: Duration) -> Option<Instant> {
        // Locked means that it is being polled now; that may run a guest, so do not wait for it.
        match self.0.try_lock() {
            Ok(phase) => match &*phase {
                Phase::Live(live) => Some(live.moved + idle),
                Phase::Ended | Phase::Cut(_) => None,
            },
            Err(TryLockError::Poisoned(_) | TryLockError::WouldBlock) => None,
        }
    }

    fn cut(&self, idle: Duration) {
        let mut phase = self.phase();
        if !matches!(&*phase, Phase::Live(live) if live.moved.elapsed() >= idle) {
            return;
        }
        let before = std::mem::replace(&mut *phase, Phase::Cut(idle));
        drop(phase);
        if let Phase::Live(mut live) = before {
            tracing::debug!(
                request_id = &*live.id,
                idle_s = idle.as_secs(),
                "response does not move; ended"
            );
            if let Some(waker) = live.waker.take() {
                waker.wake();
            }
        }
    }
}

/// A response's body that holds its call's permit until it ends, fails, is dropped or does not move.
pub(crate) struct SentBody(Arc<Sending>);

/// The body was ended by the connection's task.
#[derive(thiserror::Error, Debug)]
#[error("response did not move for {}s", .0.as_secs_f32())]
struct Stuck(Duration);

/// The body is larger than a response may be.
#[derive(thiserror::Error, Debug)]
#[error(
    "the response is larger than {0} bytes, the most that one may be here (--http-response-max)"
)]
struct TooLarge(u64);

impl Body for SentBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut phase = self.0.phase();
        let live = match &mut *phase {
            Phase::Live(live) => live,
            Phase::Ended => return Poll::Ready(None),
            Phase::Cut(idle) => return Poll::Ready(Some(Err(Stuck(*idle).into()))),
        };
        let mut frame = match Pin::new(&mut live.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                live.waker
                    .get_or_insert_with(|| cx.waker().clone())
                    .clone_from(cx.waker());
                return Poll::Pending;
            }
        };
        if let Some(Ok(part)) = &frame {
            let bytes = part.data_ref().map_or(0, |data| data.len() as u64);
            match live.left.checked_sub(bytes) {
                Some(left) => live.left = left,
                None => frame = Some(Err(TooLarge(live.bytes_max).into())),
            }
        }
        if let Some(Ok(_)) = &frame {
            live.moved = Instant::now();
            return Poll::Ready(frame);
        }
        if let Some(Err(error)) = &frame {
            let error = capabilities::report(&**error);
            tracing::warn!(request_id = &*live.id, error, "response broke off");
        }
        let ended = std::mem::replace(&mut *phase, Phase::Ended);
        drop(phase);
        drop(ended);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &*self.0.phase() {
            Phase::Live(live) => live.body.is_end_stream(),
            Phase::Ended => true,
            Phase::Cut(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.0.phase() {
            Phase::Live(live) => live.body.size_hint(),
            Phase::Ended => SizeHint::with_exact(0),
            Phase::Cut(_) => SizeHint::default(),
        }
    }
}

/// A connection's bytes; tells [`Traffic`] that some arrived.
pub(crate) struct Watched<Io> {
    pub(crate) io: Io,
    pub(crate) traffic: Arc<Traffic>,
}

impl<Io: AsyncRead + Unpin> AsyncRead for Watched<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let done = Pin::new(&mut self.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.traffic.received();
        }
        done
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Watched<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, Empty};

    const HEAD: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(60);

    fn body() -> ResponseBody {
        Empty::new().map_err(|never| match never {}).boxed_unsync()
    }

    #[test]
    fn between_requests_only_an_arriving_head_is_urgent() {
        for (version, head_limit) in [(Version::HTTP_11, true), (Version::HTTP_2, false)] {
            let traffic = Traffic::new(HEAD, IDLE);
            traffic.open();
            let start = Instant::now();
            assert!(traffic.review(start + HEAD / 2).is_some());
            assert!(traffic.review(start + HEAD).is_none(), "no first head");

            let call = traffic.begin(version);
            assert!(
                traffic.review(start + 100 * IDLE).is_some(),
                "a call has no limit here"
            );
            drop(call);
            assert!(
                traffic.review(start + IDLE / 2).is_some(),
                "idle is not slow"
            );
            assert!(traffic.review(start + 2 * IDLE).is_none());

            traffic.received();
            assert_eq!(
                traffic.review(start + 2 * HEAD).is_none(),
                head_limit,
                "{version:?}"
            );
        }
    }

    #[test]
    fn an_idle_connection_finishes_then_closes() {
        let connections = Connections::new(HEAD, IDLE);
        let traffic = connections.add();
        let start = Instant::now();
        traffic.register(&Context::from_waker(Waker::noop()));
        assert!(traffic.look_after(start) <= start + HEAD);
        assert!(!traffic.is_told(Order::Finish));
        let late = start + 2 * IDLE;
        assert_eq!(traffic.look_after(late), late + LINGER);
        assert!(traffic.is_told(Order::Finish) && !traffic.is_told(Order::Close));
        traffic.look_after(late + LINGER);
        assert!(traffic.is_told(Order::Close));
        drop(traffic);
        assert!(connections.open().is_empty());
    }

    #[test]
    fn a_look_is_never_late() {
        let traffic = Traffic::new(HEAD, IDLE);
        drop(traffic.begin(Version::HTTP_11));
        let now = Instant::now();
        assert!(
            traffic.review(now).unwrap() <= now + HEAD,
            "a head may begin right away"
        );
        let sent = traffic
            .begin(Version::HTTP_11)
            .send(body(), u64::MAX, "id".into(), None);
        let now = now + IDLE - Duration::from_secs(1);
        assert!(traffic.review(now).unwrap() <= now + Duration::from_secs(2));
        drop(sent);
    }

    #[test]
    fn ended_bodies_are_forgotten() {
        let traffic = Traffic::new(HEAD, IDLE);
        for _ in 0..10 {
            drop(
                traffic
                    .begin(Version::HTTP_2)
                    .send(body(), u64::MAX, "id".into(), None),
            );
        }
        let state = traffic.state();
        assert_eq!((state.calls, state.bodies.len()), (0, 1));
    }
}
