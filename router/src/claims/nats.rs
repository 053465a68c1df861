//! Claims in a KV bucket of NATS, `CLUSTER-claims`: for the engine `nats`.
//!
//! ```text
//! member.ROUTER ─ { router, start, address }   written anew every third of a lease; unchanged for a lease: dead
//! partition.N   ─ { router, start } | null     written over the revision that was read, or not at all
//! ```
//!
//! Every router reads the whole bucket every third of a lease, and at once when a claim in it changes; `shares` says who shall
//! have what, `decisions` what to do about it. Times are measured by each router's own clock.
//!
//! A router that cannot say that it is there loses all when its lease runs out: others may have taken it over. There is one
//! exception. When the server that leads the bucket dies, nobody can write to it until the others have elected the next, which
//! takes longer than a lease. A router whose connection stands waits for that, and nobody is taken for dead over it.

mod bucket;
mod decisions;
mod shares;
mod table;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Message, Subscriber};
use futures_lite::StreamExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use self::bucket::{Bucket, is_news};
use self::decisions::{Action, Decisions, Progress};
use self::table::{Entry, MEMBER_PREFIX, Member, Owner, PARTITION_PREFIX, Table, member_key};
use super::{Change, Ends, Told};
use crate::queue::QueueError;
use crate::queue::nats::NatsEngine;

/// So often within a lease a router says that it is there.
const BEATS_PER_LEASE: u32 = 3;
/// The bucket is not read more often than this, however much changes in it.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// What servers may take to elect a leader: 4 to 9 s, and the same once more where the vote was split.
const ELECTION_MAX: Duration = Duration::from_secs(20);
/// Longest time that giving everything up may take at the end.
const LEAVE_DEADLINE: Duration = Duration::from_secs(3);

/// Who claims.
#[derive(Debug, Clone)]
pub struct Claimant {
    /// Name of the router; no two of a cluster may have the same.
    pub router_id: String,
    /// Where edges reach it.
    pub address: String,
    /// A router that has not been heard of for this long loses its partitions.
    pub lease: Duration,
}

/// Claims partitions until [`Told::Stop`]. While the servers are away it loses all, says so once in the log, and goes on when they
/// are back. Runs on the caller's runtime.
///
/// # Errors
/// A sentence: another router has the same name. Everything that was gained has been lost by then.
pub async fn run(engine: NatsEngine, claimant: Claimant, ends: Ends) -> Result<(), QueueError> {
    Claims::new(engine, claimant, ends).run().await
}

struct Claims {
    engine: NatsEngine,
    ends: Ends,
    me: Member,
    key: String,
    lease: Duration,
    bucket: Option<Bucket>,
    /// What changes in the bucket, at once; may be incomplete.
    hints: Option<Subscriber>,
    table: Table,
    decisions: Decisions,
    /// Of our entry; `None` while it is not written, and nothing is claimed.
    revision: Option<u64>,
    /// Of an entry with our name that was there before ours.
    namesake_revision: Option<u64>,
    /// When our entry was last written, measured before it was sent.
    renewed_at: Instant,
    reported: Progress,
    /// The servers are away, and the log says so.
    is_away: bool,
}

/// What a turn found.
enum Found {
    /// All is as it should be.
    Order,
    /// Another router with our name.
    Namesake,
}

impl Claims {
    fn new(engine: NatsEngine, claimant: Claimant, ends: Ends) -> Self {
        let owner = Owner { router: claimant.router_id, start: fastrand::u64(..) };
        let partitions = engine.partitions();
        Self {
            engine,
            ends,
            key: member_key(&owner.router),
            lease: claimant.lease,
            bucket: None,
            hints: None,
            table: Table::new(partitions),
            decisions: Decisions::new(owner.clone(), claimant.lease, partitions),
            me: Member { owner, address: claimant.address },
            revision: None,
            namesake_revision: None,
            renewed_at: Instant::now(),
            reported: Progress::default(),
            is_away: false,
        }
    }

    async fn run(mut self) -> Result<(), QueueError> {
        loop {
            let begun = Instant::now();
            match self.turn().await {
                Ok(Found::Order) => self.note_back(),
                Ok(Found::Namesake) => {
                    self.lose_all();
                    return Err(QueueError(format!(
                        "--router-id: another router of this cluster is named {}",
                        self.me.owner.router
                    )));
                }
                Err(error) => self.note_away(&error),
            }
            if self.wait(begun).await {
                self.leave().await;
                return Ok(());
            }
        }
    }

    /// Says that we are there, when that is due, looks at the bucket, and does what follows from it.
    async fn turn(&mut self) -> Result<Found, QueueError> {
        let bucket = self.bucket().await?;
        let Some(revision) = self.revision else {
            self.look(&bucket, MEMBER_PREFIX).await?;
            return self.enter(&bucket).await;
        };
        // Turns come every beat, a little early or late.
        if self.renewed_at.elapsed() >= self.beat() / 2 && !self.renew(&bucket, revision).await? {
            return self.reconsider(&bucket).await;
        }
        self.look(&bucket, MEMBER_PREFIX).await?;
        self.look(&bucket, PARTITION_PREFIX).await?;
        let actions = self.decisions.decide(Instant::now(), &self.table);
        self.act(&bucket, actions).await?;
        self.report();
        Ok(Found::Order)
    }

    /// Waits for the next turn: the time, a change, something that is told. True when it is over.
    async fn wait(&mut self, begun: Instant) -> bool {
        let pause = if self.is_away { self.beat() / 2 } else { self.beat() };
        let expiry = self.expiry();
        let next = if self.revision.is_some() { expiry.min(begun + pause) } else { begun + pause };
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => break,
                told = self.ends.told.recv() => match told {
                    None | Some(Told::Stop) => return true,
                    Some(Told::Released(partition)) => {
                        self.decisions.released(Instant::now(), partition);
                        break;
                    }
                },
                hint = next_hint(&mut self.hints) => if is_news(&self.table, &hint) { break },
            }
        }
        // What comes together is answered together.
        tokio::time::sleep_until(begun + LOOK_PAUSE).await;
        while let Ok(told) = self.ends.told.try_recv() {
            match told {
                Told::Stop => return true,
                Told::Released(partition) => self.decisions.released(Instant::now(), partition),
            }
        }
        if self.revision.is_some() && Instant::now() >= self.expiry() {
            tracing::warn!(
                "the lease ran out: all partitions are lost until the NATS servers answer"
            );
            self.lose_all();
        }
        false
    }

    fn beat(&self) -> Duration {
        self.lease / BEATS_PER_LEASE
    }

    /// When all is lost unless we can say before that we are there.
    fn expiry(&self) -> Instant {
        let is_connected = self.engine.client().connection_state() == State::Connected;
        let patience = if is_connected { ELECTION_MAX.max(self.lease) } else { self.lease };
        self.renewed_at + patience
    }

    /// Bounds what is asked of the servers, so that the end of the lease is not missed over it.
    async fn ask<T>(&self, question: impl Future<Output = T>) -> Result<T, QueueError> {
        let (now, expiry) = (Instant::now(), self.renewed_at + self.lease);
        let until = now + self.beat();
        let until = if now < expiry { until.min(expiry) } else { until };
        timeout_at(until, question)
            .await
            .map_err(|_| QueueError("the NATS servers do not answer".to_owned()))
    }

    /// The bucket, made when it is not there.
    async fn bucket(&mut self) -> Result<Bucket, QueueError> {
        if let Some(bucket) = &self.bucket {
            return Ok(bucket.clone());
        }
        let bucket = Bucket::open(&self.engine).await?;
        self.hints = Some(bucket.changes(&self.engine).await?);
        Ok(self.bucket.insert(bucket).clone())
    }

    /// Reads the entries of one kind.
    async fn look(&mut self, bucket: &Bucket, kind: &str) -> Result<(), QueueError> {
        let entries = self.ask(bucket.entries(kind)).await??;
        let now = Instant::now();
        entries.into_iter().for_each(|entry| self.table.note(now, entry));
        Ok(())
    }

    /// Writes our entry for the first time, once one of the same name is known to be dead.
    async fn enter(&mut self, bucket: &Bucket) -> Result<Found, QueueError> {
        let begun = Instant::now();
        let over = match self.table.members.get(&self.key) {
            Some(known) if known.owner != self.me.owner => {
                // What is there at first may be left from one that died. Written anew, it lives.
                if *self.namesake_revision.get_or_insert(known.revision) != known.revision {
                    return Ok(Found::Namesake);
                }
                if begun.duration_since(known.seen_at) <= self.lease {
                    return Ok(Found::Order);
                }
                Some(known.revision)
            }
            known => known.map(|known| known.revision),
        };
        let written = self.ask(bucket.write(&self.key, &self.me, over)).await?;
        // Refused where another wrote in between: the next turn sees whom.
        if let Some(revision) = written? {
            self.revision = Some(revision);
            self.renewed_at = begun;
            let (key, member) = (self.key.clone(), Some(self.me.clone()));
            self.table.note(begun, Entry::Member { key, member, revision });
        }
        Ok(Found::Order)
    }

    /// Says that we are there. False when our entry is not as we left it.
    async fn renew(&mut self, bucket: &Bucket, revision: u64) -> Result<bool, QueueError> {
        let begun = Instant::now();
        let written = self.ask(bucket.write(&self.key, &self.me, Some(revision))).await??;
        if written.is_some() {
            if begun.duration_since(self.renewed_at) > self.lease {
                // The others could not write either.
                self.table.hear_of_all(begun);
            }
            self.revision = written;
            self.renewed_at = begun;
        }
        Ok(written.is_some())
    }

    /// Our entry is not as we left it. A write of ours may have been stored although nobody said so; or it was taken for dead, and
    /// removed, or taken by a router of the same name.
    async fn reconsider(&mut self, bucket: &Bucket) -> Result<Found, QueueError> {
        self.look(bucket, MEMBER_PREFIX).await?;
        match self.table.members.get(&self.key) {
            Some(known) if known.owner == self.me.owner => self.revision = Some(known.revision),
            Some(_) => return Ok(Found::Namesake),
            None => self.lose_all(),
        }
        Err(QueueError("the entry of this router was not as it left it".to_owned()))
    }

    async fn act(&mut self, bucket: &Bucket, actions: Vec<Action>) -> Result<(), QueueError> {
        let mut writing = JoinSet::new();
        for action in actions {
            let bucket = bucket.clone();
            match action {
                Action::Tell(change) => self.tell(change),
                Action::Bury(key, revision) => {
                    writing.spawn(async move {
                        bucket.remove(&key, revision).await;
                        None
                    });
                }
                Action::Claim(partition, over) => {
                    let owner = Some(self.me.owner.clone());
                    writing.spawn(bucket.write_claim(partition, owner, over));
                }
                Action::Free(partition, over) => {
                    writing.spawn(bucket.write_claim(partition, None, over));
                }
            }
        }
        // Whatever is refused, or not done in time, is decided about anew.
        while let Some(written) = self.ask(writing.join_next()).await? {
            let Ok(Some((partition, owner, revision))) = written else { continue };
            let is_ours = owner.is_some();
            self.table.note(Instant::now(), Entry::Claim { partition, owner, revision });
            if is_ours {
                let change = self.decisions.claimed(partition);
                self.tell(change);
            }
        }
        Ok(())
    }

    fn tell(&self, change: Change) {
        // Where nobody listens, Told::Stop or the end of the channel comes next.
        let _ = self.ends.changes.send(change);
    }

    /// All that was gained is lost; what is in the bucket is read as if for the first time.
    fn lose_all(&mut self) {
        for change in self.decisions.lose_all() {
            self.tell(change);
        }
        self.table = Table::new(self.engine.partitions());
        self.revision = None;
        self.namesake_revision = None;
    }

    /// Without our entry nothing is ours, and the others see that at once.
    async fn leave(&mut self) {
        if let (Some(bucket), Some(revision)) = (&self.bucket, self.revision) {
            let _ = timeout(LEAVE_DEADLINE, bucket.remove(&self.key, revision)).await;
        }
    }

    fn report(&mut self) {
        let progress = self.decisions.progress;
        if progress != self.reported {
            let Progress { here, to_come, to_go, routers } = progress;
            tracing::info!(here, to_come, to_go, routers, "partitions of this router");
            self.reported = progress;
        }
    }

    fn note_away(&mut self, error: &QueueError) {
        if !self.is_away {
            tracing::warn!(%error, "partitions cannot be claimed; trying again");
        }
        self.is_away = true;
    }

    fn note_back(&mut self) {
        if self.is_away {
            tracing::info!("partitions can be claimed again");
        }
        self.is_away = false;
    }
}

/// The next change; never, while there is no subscription.
async fn next_hint(hints: &mut Option<Subscriber>) -> Message {
    if let Some(hints) = hints
        && let Some(hint) = hints.next().await
    {
        return hint;
    }
    std::future::pending().await
}
