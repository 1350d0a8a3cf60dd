//! A component as a [`Trigger`](super::Trigger) calls it: bounded, counted and waited for as others call it.

use engine::wasmtime::component::{Instance, InstancePre};
use engine::wasmtime::{self, StoreContextMut};
use engine::{Ctx, Owner, Runnable, invoke};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::drain::Drain;
use crate::workload::actor::InFlight;

/// How long a call waits for its turn before it is [`Error::Busy`].
const TURN_WAIT: Duration = Duration::from_secs(30);

/// One component and one source of calls. Shape: clones are the same.
#[derive(Clone)]
pub struct Driven {
    target: Runnable,
    admission: Admission,
    in_flight: InFlight,
    /// The workload's.
    tasks: Drain,
    /// Stops with them, or when the guard is dropped.
    attached: Drain,
}

/// What is attached; dropping it detaches.
pub struct Guard(Drain);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Why a component was not called, or failed.
#[derive(thiserror::Error, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The workload stops, and nothing of it is called any more.
    #[error("the workload was stopped")]
    Stopped,
    /// As many calls are under way as may be, of the component or of the host.
    #[error("no turn came within {0:?}")]
    Busy(Duration),
    /// The call failed.
    #[error(transparent)]
    Call(#[from] invoke::Error),
}

impl Driven {
    pub(crate) fn new(
        target: Runnable,
        admission: Admission,
        in_flight: InFlight,
        tasks: &Drain,
    ) -> Self {
        Self {
            target,
            admission,
            in_flight,
            tasks: tasks.clone(),
            attached: tasks.child(),
        }
    }

    /// Who it is, for logs.
    pub fn owner(&self) -> &Owner {
        self.target.owner()
    }

    /// What its instances are made from: where bindings look for the exports they are for.
    pub fn pre(&self) -> &InstancePre<Ctx> {
        self.target.pre()
    }

    /// Gives `task` to the workload, which waits for its end when it stops. It is to watch
    /// [`stopping`](Self::stopping), and owns whatever events come from.
    pub fn run<F>(self, name: &'static str, task: impl FnOnce(Self) -> F) -> Guard
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let guard = Guard(self.attached.clone());
        let tasks = self.tasks.clone();
        tasks.spawn(name, task(self));
        guard
    }

    /// Completes when nothing more is to be called.
    pub async fn stopping(&self) {
        self.attached.stopping().await;
    }

    /// Lends an instance to `call`, which calls an export of it through bindings of its own; an asynchronous
    /// export in `run_concurrent`.
    ///
    /// Shape: waits for a turn, as a message does; then a stop of the workload waits for the call, and cuts it
    /// when that takes too long. Memory, CPU time and wall time are bounded as for every call.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn call<T>(
        &self,
        call: impl for<'a> FnOnce(
            StoreContextMut<'a, Ctx>,
            &'a Instance,
        ) -> BoxFuture<'a, wasmtime::Result<T>>
        + Send,
    ) -> Result<T, Error> {
        let turn = tokio::select! {
            biased;
            () = self.stopping() => return Err(Error::Stopped),
            turn = self.admission.turn(TURN_WAIT) => turn.ok_or(Error::Busy(TURN_WAIT))?,
        };
        let token = self.in_flight.token();
        let called = token.run(self.target.call_export(call)).await;
        drop(turn);
        Ok(called.ok_or(Error::Stopped)??)
    }
}

/// Where calls from one source wait for their turn: the component's, then the host's.
#[derive(Clone)]
pub(crate) struct Admission {
    component: Arc<Semaphore>,
    host: Arc<Semaphore>,
}

/// The right to one call.
pub(crate) type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Admission {
    /// So many turns of the component at once.
    pub(crate) fn new(component: usize, host: &Arc<Semaphore>) -> Self {
        Self {
            component: Arc::new(Semaphore::new(component)),
            host: Arc::clone(host),
        }
    }

    /// The component's turn.
    pub(crate) async fn component(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.component).acquire_owned().await.ok()
    }

    /// The host's turn, for who has the component's.
    pub(crate) async fn host(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.host).acquire_owned().await.ok()
    }

    /// `None` when none came within `wait`.
    pub(crate) async fn turn(&self, wait: Duration) -> Option<Turn> {
        let turn = async { Some((self.component().await?, self.host().await?)) };
        tokio::time::timeout(wait, turn).await.ok().flatten()
    }
}
