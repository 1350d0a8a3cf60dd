//! One member of a group: claims one message after the other, and settles them.

use async_trait::async_trait;
use capabilities::messaging::{
    Delivery, Error, Fate, Group, Message, Outcome, Result, Settle, Settled, Settlement,
    Subscription, durable,
};
use capabilities::report;
use futures::stream;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::OPERATION_TIMEOUT;
use crate::database::{self, Database, Statement};
use crate::messaging::{Bells, decode, encode, pattern, queues_of};

/// How often a member shows that its group is there, and hears letters that nobody heard before.
const SHOW_EVERY: Duration = Duration::from_secs(60);

/// How long after a failure a member tries again.
const RETRY: Duration = Duration::from_millis(500);

/// The queue of dead letters that nobody hears; no group can have this name.
const UNHEARD: &[u8] = b"dead letters";

/// Statements about a message have its id and claim as `$1` and `$2`, and give the queues that it is in then, or was in if it is gone; no row unless it has that claim.
mod sql {
    pub(super) const JOIN: &str = "\
        INSERT INTO washlet.queue (scope, name, patterns, forget_after) \
        VALUES ($1, $2, $3, make_interval(secs => $4)) ON CONFLICT (scope, name) DO UPDATE \
        SET patterns = excluded.patterns, forget_after = excluded.forget_after, seen_at = now() RETURNING id";

    pub(super) const HEAR: &str = "\
        UPDATE washlet.message SET queue = $1 WHERE subject ~ ANY ($2) AND queue = \
        (SELECT id FROM washlet.queue WHERE scope = $3 AND name = $4)";

    pub(super) const CLAIM: &str = "\
        WITH next AS (SELECT id FROM washlet.message WHERE queue = $1 AND ready_at <= now() \
        ORDER BY ready_at, id LIMIT 1 FOR UPDATE SKIP LOCKED) \
        UPDATE washlet.message m SET deliveries = m.deliveries + 1, claim = m.claim + 1, \
        ready_at = now() + make_interval(secs => $2) FROM next WHERE m.id = next.id \
        RETURNING m.id, m.claim, m.deliveries, m.subject, m.reply_to, m.body";

    pub(super) const RENEW: &str = "\
        UPDATE washlet.message SET ready_at = now() + make_interval(secs => $3) \
        WHERE id = $1 AND claim = $2 RETURNING queue";

    pub(super) const DONE: &str = "\
        DELETE FROM washlet.message WHERE id = $1 AND claim = $2 RETURNING queue";

    pub(super) const AGAIN: &str = "\
        UPDATE washlet.message SET ready_at = now() + make_interval(secs => $3), claim = claim + 1 \
        WHERE id = $1 AND claim = $2 RETURNING queue";

    pub(super) const BACK: &str = "\
        UPDATE washlet.message SET ready_at = sent_at, claim = claim + 1, deliveries = deliveries - 1 \
        WHERE id = $1 AND claim = $2 RETURNING queue";

    /// One copy for each group that hears the subject; where none does, one that waits until one will.
    pub(super) const DEAD: &str = "\
        WITH hears AS (SELECT id FROM washlet.queue \
        WHERE scope = $3 AND $4 ~ ANY (patterns) AND seen_at + forget_after > now()), \
        place AS (SELECT id FROM hears UNION ALL SELECT id FROM washlet.queue \
        WHERE scope = $3 AND name = $5 AND NOT EXISTS (SELECT 1 FROM hears)), \
        gone AS (DELETE FROM washlet.message WHERE id = $1 AND claim = $2 \
        AND EXISTS (SELECT 1 FROM place) RETURNING *) \
        INSERT INTO washlet.message \
        (queue, subject, reply_to, body, reason, died_subject, died_deliveries, died_group) \
        SELECT place.id, $4, gone.reply_to, gone.body, $6, gone.subject, gone.deliveries, $7 \
        FROM gone, place RETURNING queue";
}

/// Joins `group`, of which the database then knows.
pub(crate) async fn consume(
    database: Arc<Database>,
    bells: Arc<Bells>,
    scope: Vec<u8>,
    group: Group,
) -> Result<Subscription> {
    let place = Arc::new(Place {
        database,
        bells,
        scope,
        group,
    });
    let queue = place.join().await?;
    let member = Member {
        bell: place.bells.of(queue),
        queue,
        shown: Instant::now(),
        place,
        is_away: false,
    };
    Ok(Box::pin(stream::unfold(member, async |mut member| {
        let delivery = member.next().await;
        Some((delivery, member))
    })))
}

/// A group, and where its queue is.
struct Place {
    database: Arc<Database>,
    bells: Arc<Bells>,
    scope: Vec<u8>,
    group: Group,
}

impl Place {
    /// The id of the queue.
    async fn join(&self) -> database::Result<i64> {
        let Group {
            name, redelivery, ..
        } = &self.group;
        let patterns: Vec<String> = self.group.filters().into_iter().map(pattern).collect();
        if redelivery.dead_letter.is_some() {
            self.make(UNHEARD, Vec::new(), None).await?;
        }
        let forget_after = Some(redelivery.forget_after.as_secs_f64());
        let queue = self.make(name.as_bytes(), patterns.clone(), forget_after);
        let queue = queue.await?;
        let hear = sqlx::query(sql::HEAR)
            .bind(queue)
            .bind(patterns)
            .bind(self.scope.clone())
            .bind(UNHEARD);
        self.database.row(hear).await?;
        Ok(queue)
    }

    async fn make(
        &self,
        name: &[u8],
        patterns: Vec<String>,
        forget_after: Option<f64>,
    ) -> database::Result<i64> {
        let join = sqlx::query(sql::JOIN)
            .bind(self.scope.clone())
            .bind(name.to_vec())
            .bind(patterns)
            .bind(forget_after);
        match self.database.row(join).await? {
            Some(row) => Ok(row.try_get(0)?),
            None => Err(database::Error::Internal("the queue was not made".into())),
        }
    }
}

struct Member {
    place: Arc<Place>,
    queue: i64,
    bell: Arc<Notify>,
    /// When the group was last shown to be there.
    shown: Instant,
    /// Whether the log says that nothing can be claimed.
    is_away: bool,
}

impl Member {
    /// The next message, however long that takes.
    async fn next(&mut self) -> Delivery {
        loop {
            let claimed = self.claim().await;
            let group = &self.place.group.name;
            match claimed {
                Ok(claimed) => {
                    if std::mem::take(&mut self.is_away) {
                        tracing::info!(group, "messages come again");
                    }
                    match claimed {
                        Some(delivery) => return delivery,
                        None => drop(timeout(SHOW_EVERY, self.bell.notified()).await),
                    }
                }
                Err(error) => {
                    let error = report(&error);
                    match std::mem::replace(&mut self.is_away, true) {
                        true => tracing::debug!(group, error, "no messages come yet"),
                        false => tracing::warn!(group, error, "no messages come: trying again"),
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// `None` when there is nothing to deliver now.
    async fn claim(&mut self) -> Result<Option<Delivery>> {
        if self.shown.elapsed() > SHOW_EVERY {
            // Another one if it was forgotten.
            self.queue = self.place.join().await?;
            self.bell = self.place.bells.of(self.queue);
            self.shown = Instant::now();
        }
        let place = &self.place;
        loop {
            let claim = sqlx::query(sql::CLAIM)
                .bind(self.queue)
                .bind(place.group.redelivery.ack_wait.as_secs_f64());
            let Some(row) = place.database.row(claim).await? else {
                return Ok(None);
            };
            let (attempt, message, unsettled) = Unsettled::read(place, &row)?;
            let Some(why) = place.group.is_spent(attempt) else {
                return Ok(Some(Delivery {
                    message,
                    attempt,
                    settle: Settle::by(unsettled),
                }));
            };
            let (group, subject) = (&place.group.name, &message.subject);
            unsettled.carry_out(Fate::Dead(why)).await?;
            tracing::warn!(group, subject, attempt, "a message is a dead letter");
        }
    }
}

/// A message that was delivered and is not settled yet.
struct Unsettled {
    place: Arc<Place>,
    id: i64,
    claim: i64,
    attempt: u32,
}

impl Unsettled {
    fn read(place: &Arc<Place>, row: &PgRow) -> database::Result<(u32, Message, Self)> {
        let attempt = row.try_get::<i32, _>(2)?.unsigned_abs();
        let message = Message {
            subject: decode(row.try_get(3)?),
            reply_to: row.try_get::<Option<&str>, _>(4)?.map(decode),
            body: row.try_get::<Vec<u8>, _>(5)?.into(),
        };
        let unsettled = Self {
            place: Arc::clone(place),
            id: row.try_get(0)?,
            claim: row.try_get(1)?,
            attempt,
        };
        Ok((attempt, message, unsettled))
    }

    fn statement(&self, sql: &'static str) -> Statement {
        sqlx::query(sql).bind(self.id).bind(self.claim)
    }

    async fn carry_out(&self, fate: Fate) -> Result<Settled> {
        let (statement, settled) = match fate {
            Fate::Done => (self.statement(sql::DONE), Settled::Done),
            Fate::Back => (self.statement(sql::BACK), Settled::Again),
            Fate::Again(pause) => {
                let again = self.statement(sql::AGAIN).bind(pause.as_secs_f64());
                (again, Settled::Again)
            }
            Fate::Dead(why) => (self.dead(&why), Settled::Dead),
        };
        let Place {
            database, bells, ..
        } = &*self.place;
        let queues = queues_of(&database.rows(statement, OPERATION_TIMEOUT).await?)?;
        if queues.is_empty() {
            return Err(Error::Lost);
        }
        if settled != Settled::Done {
            bells.ring(&queues);
        }
        Ok(settled)
    }

    fn dead(&self, why: &str) -> Statement {
        let Group {
            name, redelivery, ..
        } = &self.place.group;
        let Some(dead_letter) = &redelivery.dead_letter else {
            return self.statement(sql::DONE);
        };
        self.statement(sql::DEAD)
            .bind(self.place.scope.clone())
            .bind(encode(dead_letter))
            .bind(UNHEARD)
            .bind(durable::reason(why).into_bytes())
            .bind(name.clone().into_bytes())
    }
}

#[async_trait]
impl Settlement for Unsettled {
    async fn settle(self: Box<Self>, outcome: Outcome) -> Result<Settled> {
        let fate = self.place.group.fate(self.attempt, outcome);
        self.carry_out(fate).await
    }

    async fn renew(&self) {
        let ack_wait = self.place.group.redelivery.ack_wait.as_secs_f64();
        let renew = self.statement(sql::RENEW).bind(ack_wait);
        if let Err(error) = self.place.database.row(renew).await {
            tracing::debug!(error = report(&error), "a message was not renewed");
        }
    }

    fn renew_every(&self) -> Duration {
        self.place.group.redelivery.ack_wait / 3
    }
}
