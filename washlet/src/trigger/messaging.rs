//! Messages to components: one loop per component, an instance per message.
//!
//! A message waits for its turn in two queues, the component's and the host's. Where messages are delivered at
//! most once, one that waits longer than the workload allows is dropped, counted and logged. With durable
//! delivery the component's turn comes before the message is fetched, and none is dropped: what waits for the
//! host's turn or for an instance is renewed meanwhile, and a stop gives it back. Dropping the attachment
//! unsubscribes. A subscription that ends by itself is a fault of its workload, which is then started again.

use capabilities::messaging::{
    Delivery, Error, Group, Message, MessageBus, Outcome, Settle, Settled, Subscription,
};
use capabilities::report;
use engine::{Runnable, invoke};
use futures::stream::{self, BoxStream, SelectAll, StreamExt};
use std::sync::Arc;
use std::time::Duration;

use crate::drain::Drain;
use crate::health::Came;
use crate::host::Shared;
use crate::trigger::driven::{Admission, Turn};
use crate::workload::actor::{Fault, InFlight};
use crate::workload::spec::Subscriptions;

/// How long a message waits for its turn before it is dropped, where the workload does not say.
const ADMISSION_WAIT: Duration = Duration::from_secs(30);

/// How long a message that found no instance free waits until it looks again; each look is as long as the engine
/// lets a call wait.
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// What the messages of one component go through.
pub(crate) struct Delivering {
    pub(crate) target: Runnable,
    pub(crate) subscriptions: Subscriptions,
    /// Where a message waits for its turn.
    pub(crate) admission: Admission,
    /// Counts for the whole host.
    pub(crate) shared: Arc<Shared>,
    /// Calls that a stop waits for.
    pub(crate) in_flight: InFlight,
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
) -> Result<(), (String, Error)> {
    let Subscriptions {
        subjects, group, ..
    } = &delivering.subscriptions;
    let durable = bus.offers().durable;
    delivering.subscriptions.check(durable)?;
    let owner = drain.clone();
    if let (true, Some(name)) = (durable, group) {
        let group = Group {
            name: name.clone(),
            subjects: subjects.clone(),
            redelivery: delivering.subscriptions.redelivery.clone(),
        };
        let joined = bus.consume(&group).await;
        let subscription = joined.map_err(|error| (failed(&subjects.join(", ")), error))?;
        drain.spawn("messages", durably(delivering, subscription, owner));
        return Ok(());
    }
    let mut subscriptions: SelectAll<BoxStream<'static, Option<Delivery>>> = SelectAll::new();
    for subject in subjects {
        match bus.subscribe(subject, group.as_deref()).await {
            // One of several that ends would else not be missed.
            Ok(subscription) => {
                let end = stream::once(async { None });
                subscriptions.push(subscription.map(Some).chain(end).boxed());
            }
            Err(error) => return Err((failed(subject), error)),
        }
    }
    drain.spawn("messages", once(delivering, subscriptions, owner));
    Ok(())
}

fn failed(subjects: &str) -> String {
    format!("failed to subscribe to '{subjects}'")
}

/// Delivers each message at most once: it is there, and then waits for its turn.
async fn once(
    delivering: Delivering,
    mut subscriptions: SelectAll<BoxStream<'static, Option<Delivery>>>,
    owner: Drain,
) {
    let delivering = Arc::new(delivering);
    loop {
        let delivery = tokio::select! {
            biased;
            () = owner.stopping() => break,
            delivery = subscriptions.next() => delivery,
        };
        let Some(Some(delivery)) = delivery else {
            delivering.ended();
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
                owner.spawn("message", async move {
                    let Delivery {
                        message, settle, ..
                    } = delivery;
                    let subject = message.subject.clone();
                    let called = delivering.call(message).await;
                    if matches!(called, Some(Err(invoke::Error::Busy))) {
                        delivering.came(Came::Dropped);
                    }
                    let outcome = delivering.outcome(&subject, called);
                    drop(turn);
                    delivering.settle(&subject, settle, outcome).await;
                });
            }
            None => delivering.drop_one(&delivery),
        }
    }
}

/// Delivers each message until it is settled: the component has a turn, and then fetches one, so that at most one
/// waits here for the host's turn.
async fn durably(delivering: Delivering, mut subscription: Subscription, owner: Drain) {
    let delivering = Arc::new(delivering);
    loop {
        let next = async {
            let turn = delivering.admission.component().await?;
            Some((turn, subscription.next().await?))
        };
        let next = tokio::select! {
            biased;
            () = owner.stopping() => break,
            next = next => next,
        };
        let Some((component, delivery)) = next else {
            delivering.ended();
            break;
        };
        let Delivery {
            message, settle, ..
        } = delivery;
        let subject = message.subject.clone();
        let host = tokio::select! {
            biased;
            () = owner.stopping() => None,
            host = settle.during(delivering.admission.host()) => host,
        };
        let Some(host) = host else {
            delivering.settle(&subject, settle, Outcome::Release).await;
            break;
        };
        let (delivering, stopping) = (Arc::clone(&delivering), owner.clone());
        owner.spawn("message", async move {
            let handled = delivering.handle(message, &stopping);
            let outcome = settle.during(handled).await;
            drop((component, host));
            delivering.settle(&subject, settle, outcome).await;
        });
    }
}

/// What a call came to; `None` when it was cut.
type Called = Option<Result<Result<(), invoke::Unhandled>, invoke::Error>>;

impl Delivering {
    /// No more messages come, though nobody stopped them.
    fn ended(&self) {
        let component = &self.target.owner().component;
        self.fault.raise(format!(
            "component '{component}': a subscription to its messages ended"
        ));
    }

    async fn turn(&self) -> Option<Turn> {
        let wait = self.subscriptions.admission_wait;
        self.admission.turn(wait.unwrap_or(ADMISSION_WAIT)).await
    }

    fn drop_one(&self, delivery: &Delivery) {
        self.came(Came::Dropped);
        let owner = self.target.owner();
        tracing::warn!(
            workload = owner.workload,
            component = owner.component,
            subject = delivery.message.subject,
            dropped = self.in_flight.messages(Came::Dropped),
            "message dropped: no turn came in time (max_in_flight, admission_wait)"
        );
    }

    fn came(&self, came: Came) {
        self.in_flight.message(came);
        self.shared.came.add(came);
    }

    async fn call(&self, message: Message) -> Called {
        let token = self.in_flight.token();
        token.run(self.target.message(message)).await
    }

    /// Calls until there is an instance for it; what found none when `owner` stops is given back.
    async fn handle(&self, message: Message, owner: &Drain) -> Outcome {
        let subject = message.subject.clone();
        loop {
            let called = self.call(message.clone()).await;
            if !matches!(called, Some(Err(invoke::Error::Busy))) {
                return self.outcome(&subject, called);
            }
            tokio::select! {
                biased;
                () = owner.stopping() => return Outcome::Release,
                () = tokio::time::sleep(BUSY_PAUSE) => {}
            }
        }
    }

    fn outcome(&self, subject: &str, called: Called) -> Outcome {
        let owner = self.target.owner();
        let (workload, component) = (&owner.workload, &owner.component);
        match called {
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
                    invoke::Unhandled::Reject => Outcome::Reject("rejected".to_owned()),
                    error => Outcome::Retry(format!("handler failed: {error}")),
                }
            }
            Some(Err(invoke::Error::Busy)) => {
                tracing::warn!(
                    workload,
                    component,
                    subject,
                    "no instance was free for a message"
                );
                Outcome::Release
            }
            Some(Err(error)) => {
                tracing::warn!(workload, component, subject, %error, "handler failed");
                Outcome::Retry(error.to_string())
            }
            None => Outcome::Retry("cut when its workload was stopped".to_owned()),
        }
    }

    async fn settle(&self, subject: &str, settle: Settle, outcome: Outcome) {
        let owner = self.target.owner();
        let (workload, component) = (&owner.workload, &owner.component);
        match outcome {
            Outcome::Ack => self.came(Came::Handled),
            Outcome::Release => {}
            Outcome::Retry(_) | Outcome::Reject(_) => self.came(Came::Failed),
        }
        match settle.settle(outcome).await {
            Ok(Settled::Done | Settled::Again) => {}
            Ok(Settled::Dead) => {
                self.came(Came::Dead);
                tracing::warn!(workload, component, subject, "a message is a dead letter");
            }
            Err(error) => {
                let error = report(&error);
                tracing::warn!(
                    workload,
                    component,
                    subject,
                    error,
                    "message could not be settled"
                );
            }
        }
    }
}
