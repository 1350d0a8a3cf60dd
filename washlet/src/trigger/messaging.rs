//! Messages to components: one loop per subscription, a fresh instance per message.
//!
//! A message waits for its turn in two queues, the component's and the host's; one that waits longer than
//! the workload allows is dropped, counted and logged. Dropping the attachment unsubscribes. A subscription that
//! ends by itself is a fault of its workload, which is then started again.

use capabilities::messaging::{Delivery, MessageBus, Outcome};
use engine::{Runnable, invoke};
use futures::stream::{self, BoxStream, SelectAll, StreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::drain::Drain;
use crate::workload::actor::{Fault, InFlight};
use crate::workload::spec::Subscriptions;

/// What the messages of one component go through.
pub(crate) struct Delivering {
    pub(crate) target: Runnable,
    pub(crate) subscriptions: Subscriptions,
    /// Turns of this component.
    pub(crate) component: Arc<Semaphore>,
    /// Turns of the whole host.
    pub(crate) host: Arc<Semaphore>,
    /// Calls that a stop waits for.
    pub(crate) in_flight: InFlight,
    /// Messages dropped for want of a turn.
    pub(crate) shed: Arc<AtomicU64>,
    /// Told when no more messages come.
    pub(crate) fault: Fault,
}

/// Subscribes; when this returns, messages on every subject are delivered by tasks of `drain`.
///
/// # Errors
/// `failed to subscribe to '<subject>'`, with the bus's own error.
pub(crate) async fn attach(
    bus: &dyn MessageBus,
    delivering: Delivering,
    drain: &Drain,
) -> Result<(), (String, capabilities::messaging::Error)> {
    let mut subscriptions: SelectAll<BoxStream<'static, Option<Delivery>>> = SelectAll::new();
    let group = delivering.subscriptions.group.as_deref();
    for subject in &delivering.subscriptions.subjects {
        match bus.subscribe(subject, group).await {
            // One of several that ends would else not be missed.
            Ok(subscription) => {
                let end = stream::once(async { None });
                subscriptions.push(subscription.map(Some).chain(end).boxed());
            }
            Err(error) => return Err((format!("failed to subscribe to '{subject}'"), error)),
        }
    }
    let owner = drain.clone();
    drain.spawn("messages", async move {
        let delivering = Arc::new(delivering);
        loop {
            let delivery = tokio::select! {
                biased;
                () = owner.stopping() => break,
                delivery = subscriptions.next() => delivery,
            };
            let Some(Some(delivery)) = delivery else {
                let owner = delivering.target.owner();
                delivering.fault.raise(format!(
                    "component '{}': a subscription to its messages ended",
                    owner.component
                ));
                break;
            };
            let turn = tokio::select! {
                biased;
                () = owner.stopping() => break,
                turn = delivering.turn() => turn,
            };
            match turn {
                Some(turn) => {
                    let delivering = Arc::clone(&delivering);
                    owner.spawn(
                        "message",
                        async move { delivering.call(delivery, turn).await },
                    );
                }
                None => delivering.drop_one(&delivery),
            }
        }
    });
    Ok(())
}

type Turn = (OwnedSemaphorePermit, OwnedSemaphorePermit);

impl Delivering {
    async fn turn(&self) -> Option<Turn> {
        let wait = self.subscriptions.admission_wait;
        let turn = async {
            let component = Arc::clone(&self.component).acquire_owned().await.ok()?;
            let host = Arc::clone(&self.host).acquire_owned().await.ok()?;
            Some((component, host))
        };
        tokio::time::timeout(wait, turn).await.ok().flatten()
    }

    fn drop_one(&self, delivery: &Delivery) {
        let dropped = self.shed.fetch_add(1, Ordering::Relaxed) + 1;
        let owner = self.target.owner();
        tracing::warn!(
            workload = owner.workload,
            component = owner.component,
            subject = delivery.message.subject,
            dropped,
            "message dropped: no turn came in time (max_in_flight, admission_wait)"
        );
    }

    async fn call(&self, delivery: Delivery, _turn: Turn) {
        let subject = delivery.message.subject.clone();
        let token = self.in_flight.token();
        let called = token.run(self.target.message(delivery.message)).await;
        let owner = self.target.owner();
        let (workload, component) = (&owner.workload, &owner.component);
        let outcome = match called {
            Some(Ok(Ok(()))) => Outcome::Ack,
            Some(Ok(Err(error))) => {
                tracing::warn!(
                    workload,
                    component,
                    subject,
                    %error,
                    "handler refused a message"
                );
                match error {
                    invoke::Unhandled::Reject => Outcome::Reject,
                    _ => Outcome::Retry(None),
                }
            }
            Some(Err(invoke::Error::Busy)) => {
                tracing::warn!(
                    workload,
                    component,
                    subject,
                    "no instance was free for a message"
                );
                Outcome::Retry(None)
            }
            Some(Err(error)) => {
                tracing::warn!(workload, component, subject, %error, "handler failed");
                Outcome::Retry(None)
            }
            None => Outcome::Retry(None),
        };
        if let Err(error) = delivery.settle.settle(outcome).await {
            tracing::warn!(workload, component, subject, %error, "message could not be settled");
        }
    }
}
