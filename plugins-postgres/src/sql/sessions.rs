//! Sessions to be used again: how many there may be, who waits for one, and what becomes of them.
//!
//! A session that goes back is told to forget everything, and is used again only when the server says that it
//! has. One whose statement was left alone is closed, and what it does at the server is cancelled.

use capabilities::BoxError;
use capabilities::sql::{Error, Result};
use futures::StreamExt as _;
use futures::future::select;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use super::server::Server;
use super::session::Session;
use super::sign_in::{Cancel, unavailable};

/// How long a session may lie idle.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How long connecting may take, and signing in ..
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// .. and how long the server may take to forget.
const RESET_TIMEOUT: Duration = Duration::from_secs(1);

/// How often idle sessions are looked through.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Statements to be cancelled that may wait; further ones end by their time limit.
const CANCELS_MAX: usize = 256;

/// Requests to cancel under way at once, and how long one may take.
const CANCELS_AT_ONCE: usize = 8;
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// Who uses a pool: components of one workload, with the same entry.
pub(super) type User = (String, String, BTreeMap<String, String>);

/// All sessions of a host.
pub(super) struct Sessions {
    turns: Arc<Semaphore>,
    /// Those that wait for one of `turns`.
    waiting: AtomicUsize,
    pools: Mutex<BTreeMap<User, Weak<Pool>>>,
    cancel: mpsc::Sender<Cancel>,
    cancels: Mutex<Option<mpsc::Receiver<Cancel>>>,
}

/// The sessions of one entry.
pub(super) struct Pool {
    server: Server,
    all: Arc<Sessions>,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    session: Session,
    since: Instant,
    _turn: OwnedSemaphorePermit,
}

/// A session that is used.
pub(super) struct Lease {
    pool: Arc<Pool>,
    /// With its turn among those of the host.
    session: Option<(Session, OwnedSemaphorePermit)>,
    _turn: OwnedSemaphorePermit,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// At most `max` at once, idle ones too.
    pub(super) fn new(max: usize) -> Arc<Self> {
        let (cancel, cancels) = mpsc::channel(CANCELS_MAX);
        Arc::new(Self {
            turns: Arc::new(Semaphore::new(max)),
            waiting: AtomicUsize::new(0),
            pools: Mutex::default(),
            cancel,
            cancels: Mutex::new(Some(cancels)),
        })
    }

    /// The pool of `user`, which is made if there is none.
    pub(super) fn pool(self: &Arc<Self>, user: User, server: Server) -> Arc<Pool> {
        let mut pools = lock(&self.pools);
        pools.retain(|_, pool| pool.strong_count() > 0);
        if let Some(pool) = pools.get(&user).and_then(Weak::upgrade) {
            return pool;
        }
        let pool = Arc::new(Pool {
            turns: Arc::new(Semaphore::new(server.connections)),
            server,
            all: Arc::clone(self),
            idle: Mutex::default(),
        });
        pools.insert(user, Arc::downgrade(&pool));
        pool
    }

    /// Cancels what was left alone, and closes what is idle for long. It does not end.
    pub(super) async fn run(&self) {
        let Some(mut cancels) = lock(&self.cancels).take() else {
            return;
        };
        let cancels = futures::stream::poll_fn(move |cx| cancels.poll_recv(cx));
        let cancel = cancels.for_each_concurrent(CANCELS_AT_ONCE, async |cancel| {
            if !matches!(timeout(CANCEL_TIMEOUT, cancel.send()).await, Ok(Ok(()))) {
                tracing::debug!(
                    "a statement of a workload was not cancelled, and ends by its time limit"
                );
            }
        });
        let sweep = async {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                self.each_idle(|idle| idle.retain(|idle| idle.since.elapsed() < IDLE_MAX));
            }
        };
        select(pin!(cancel), pin!(sweep)).await;
    }

    /// Closes idle sessions.
    pub(super) fn close(&self) {
        self.turns.close();
        self.each_idle(Vec::clear);
    }

    fn each_idle(&self, mut look: impl FnMut(&mut Vec<Idle>)) {
        let pools: Vec<_> = lock(&self.pools)
            .values()
            .filter_map(Weak::upgrade)
            .collect();
        for pool in pools {
            look(&mut lock(&pool.idle));
        }
    }

    /// The turn of one more session; an idle one of anybody makes room.
    async fn turn(&self) -> Result<OwnedSemaphorePermit> {
        if let Ok(turn) = Arc::clone(&self.turns).try_acquire_owned() {
            return Ok(turn);
        }
        let waiting = Waiting::one(&self.waiting);
        let mut oldest = None;
        self.each_idle(|idle| {
            let first = idle.first().map(|idle| idle.since);
            oldest = [oldest, first].into_iter().flatten().min();
        });
        let mut found = false;
        self.each_idle(|idle| {
            let all = idle.len();
            idle.retain(|idle| found || Some(idle.since) != oldest);
            found |= idle.len() < all;
        });
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        drop(waiting);
        turn.map_err(|_| unavailable("the host is stopping"))
    }
}

/// Counted while it lives.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn one(all: &'a AtomicUsize) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(all)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// A session in which nothing is left of others.
    pub(super) async fn lease(self: &Arc<Self>) -> Result<Lease> {
        let deadline = Instant::now() + self.server.wait;
        let busy = |_| Error::Busy(self.server.wait);
        let turn = timeout_at(deadline, Arc::clone(&self.turns).acquire_owned()).await;
        let turn = turn
            .map_err(busy)?
            .map_err(|closed| unavailable(BoxError::from(closed)))?;
        let lease = |session, turn_of_host| Lease {
            pool: Arc::clone(self),
            session: Some((session, turn_of_host)),
            _turn: turn,
        };
        loop {
            let Some(mut idle) = lock(&self.idle).pop() else {
                break;
            };
            if idle.since.elapsed() < IDLE_MAX
                && matches!(
                    timeout(RESET_TIMEOUT, idle.session.settled()).await,
                    Ok(Ok(()))
                )
            {
                return Ok(lease(idle.session, idle._turn));
            }
        }
        let turn_of_host = timeout_at(deadline, self.all.turn()).await;
        let turn_of_host = turn_of_host.map_err(busy)??;
        match timeout(CONNECT_TIMEOUT, Session::open(&self.server)).await {
            Ok(session) => Ok(lease(session?, turn_of_host)),
            Err(_) => Err(unavailable(format!(
                "no connection within {CONNECT_TIMEOUT:?}"
            ))),
        }
    }
}

impl Lease {
    /// The session; an error once it was given up.
    pub(super) fn session(&mut self) -> Result<&mut Session> {
        let session = self.session.as_mut().map(|(session, _)| session);
        session.ok_or_else(|| unavailable("the connection was given up"))
    }

    /// Gives the session back, in which nothing is under way.
    pub(super) async fn give_back(mut self) {
        let Some((mut session, turn)) = self.session.take() else {
            return;
        };
        if !matches!(timeout(RESET_TIMEOUT, session.reset()).await, Ok(Ok(()))) {
            return;
        }
        let all = &self.pool.all;
        // Somebody who waits has more need of the room.
        if all.waiting.load(Ordering::Relaxed) == 0 && !all.turns.is_closed() {
            lock(&self.pool.idle).push(Idle {
                session,
                since: Instant::now(),
                _turn: turn,
            });
        }
    }
}

impl Drop for Lease {
    /// What was not given back has something under way.
    fn drop(&mut self) {
        let Some((session, _turn)) = self.session.take() else {
            return;
        };
        if let Some(cancel) = session.cancel() {
            // With no room, the time limit at the server ends it.
            let _ = self.pool.all.cancel.try_send(cancel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capabilities::plugin::Settings;
    use fleet::postgres::PostgresServer;
    use futures::FutureExt as _;

    fn pool(all: &Arc<Sessions>, server: &PostgresServer, user: &str) -> Arc<Pool> {
        let url = ("url".to_owned(), server.url());
        let settings = BTreeMap::from([url]);
        let read = Server::read(&Settings::new(&settings)).unwrap();
        all.pool((user.to_owned(), String::new(), settings), read)
    }

    async fn leased(pool: &Arc<Pool>) -> Lease {
        pool.lease().await.unwrap()
    }

    fn idle(pool: &Pool) -> usize {
        lock(&pool.idle).len()
    }

    /// When the host has no room for one more, the session idle for longest makes some; without an idle one,
    /// the first that is given back.
    #[tokio::test]
    async fn sessions_make_room_for_those_that_are_needed() {
        let server = PostgresServer::start().await.unwrap();
        let all = Sessions::new(2);
        let [a, b, c] = ["a", "b", "c"].map(|user| pool(&all, &server, user));
        leased(&a).await.give_back().await;
        leased(&b).await.give_back().await;
        assert_eq!((idle(&a), idle(&b)), (1, 1));
        let of_c = leased(&c).await;
        assert_eq!((idle(&a), idle(&b)), (0, 1));
        let of_b = leased(&b).await;
        let mut waiting = Box::pin(leased(&a));
        assert!((&mut waiting).now_or_never().is_none());
        of_b.give_back().await;
        waiting.await.give_back().await;
        assert_eq!((idle(&a), idle(&b)), (1, 0));
        // Nobody waits any more.
        of_c.give_back().await;
        assert_eq!(idle(&c), 1);
        all.close();
        assert_eq!((idle(&a), idle(&c)), (0, 0));
        assert!(b.lease().await.is_err());
    }

    #[tokio::test]
    async fn who_has_the_same_entry_shares_a_pool_while_somebody_has_it() {
        let server = PostgresServer::start().await.unwrap();
        let all = Sessions::new(2);
        let (a, other) = (pool(&all, &server, "a"), pool(&all, &server, "b"));
        assert!(Arc::ptr_eq(&a, &pool(&all, &server, "a")));
        leased(&a).await.give_back().await;
        drop(a);
        assert_eq!(lock(&all.pools).len(), 2);
        let anew = pool(&all, &server, "a");
        assert_eq!((idle(&anew), lock(&all.pools).len()), (0, 2));
        drop(other);
    }
}
