//! Claims by a consumer group: who is assigned a partition of the topic of messages shall own it. Nothing is read through the
//! group; what it assigns stays paused.
//!
//! ```text
//!  assigned ─► Gained                      Released ─► given back to the group ─► assigned to another
//!  revoked ──► Wanted ─────────────────────┘ or RELEASE_TIMEOUT: Lost
//!  session lost ─► Lost
//! ```
//!
//! Cooperative: what need not move does not, and while a partition is awaited here the others are served on. A member that is
//! gone is missed after `--kafka-session-timeout`, one that leaves at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::mpsc::error::TryRecvError;

use super::{Change, Ends, Told};
use crate::config::kafka::KafkaConfig;
use crate::queue::kafka::{Trouble, settings, topic};
use crate::queue::{Log, PartitionId};

/// Longest wait for the router to release what is wanted. Then it is given up all the same.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a takeover that failed the partition is offered again.
const OFFER_PAUSE: Duration = Duration::from_secs(3);
/// How long the group may hear nothing of our thread before it takes the router for stuck.
const POLL_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// A group in which members come and go waits for one that is dead as long as for one that is slow.
pub const NAME_PATIENCE: Duration = POLL_INTERVAL_MAX;
/// Longest time until a word of the router is heard.
const TURN: Duration = Duration::from_millis(50);
/// Longest wait for the group to say who its members are.
const MEMBERS_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the group to let us go.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Who claims what.
#[derive(Debug, Clone)]
pub struct Params {
    /// Where the brokers are.
    pub config: KafkaConfig,
    /// The cluster of routers; names the topics and the group.
    pub cluster: String,
    /// Name of this router, which no other of the cluster may have.
    pub router_id: String,
    /// How long beyond a session a name may be taken by one that is dead: [`NAME_PATIENCE`].
    pub name_patience: Duration,
}

/// Claims partitions until it is told to stop, then leaves the group. Blocks: for a thread of its own. Brokers that do not answer are
/// waited for.
///
/// # Errors
/// A sentence: the name of this router is taken, or the knobs do not make a client. Everything claimed is lost.
pub fn run(params: &Params, ends: Ends) -> Result<(), String> {
    let mut member = Member::new(params, ends)?;
    let outcome = member.serve(params);
    member.leave();
    outcome
}

/// What the group wants of us, in the order in which it was said.
enum Said {
    Assigned(TopicPartitionList),
    Revoked(TopicPartitionList),
}

/// Keeps what the group says until the loop gets to it: it may take its time before it gives a partition back.
#[derive(Default)]
struct Group {
    said: Mutex<Vec<Said>>,
    is_leaving: AtomicBool,
    trouble: Trouble,
}

impl Group {
    fn take_said(&self) -> Vec<Said> {
        std::mem::take(&mut *self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.trouble.log(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.trouble.error(error, reason);
    }
}

impl ConsumerContext for Group {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let is_assigned = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.is_leaving.load(Ordering::Relaxed) {
            // Closing waits for this.
            let _ = match is_assigned {
                true => consumer.incremental_assign(list),
                false => consumer.incremental_unassign(list),
            };
            return;
        }
        let said = if is_assigned { Said::Assigned } else { Said::Revoked };
        self.said.lock().unwrap_or_else(PoisonError::into_inner).push(said(list.clone()));
    }
}

/// Our membership.
struct Member {
    consumer: BaseConsumer<Group>,
    ends: Ends,
    group: String,
    /// What is assigned to us.
    ours: Vec<PartitionId>,
    revoking: Option<Revoking>,
    /// What could not be taken over, and when it is offered again.
    offers: Vec<(PartitionId, Instant)>,
    /// The complaint that was logged last.
    complaint: String,
}

/// What the group wants back, and gets when the router has released all of it.
struct Revoking {
    list: TopicPartitionList,
    waiting: Vec<PartitionId>,
    until: Instant,
}

impl Member {
    fn new(params: &Params, ends: Ends) -> Result<Self, String> {
        let group = format!("{}.owners", params.cluster);
        let session = params.config.kafka_session_timeout;
        // Members hear of a newcomer with their next heartbeat.
        let heartbeat = (session / 6).min(Duration::from_secs(1));
        let mut settings = settings(&params.config, &client_id(&params.router_id));
        settings.set("group.id", &group);
        settings.set("group.protocol", "classic");
        settings.set("partition.assignment.strategy", "cooperative-sticky");
        settings.set("session.timeout.ms", session.as_millis().to_string());
        settings.set("heartbeat.interval.ms", heartbeat.as_millis().to_string());
        settings.set("max.poll.interval.ms", max_poll_ms(session));
        settings.set("enable.auto.commit", "false");
        settings.set("enable.auto.offset.store", "false");
        let consumer = settings
            .create_with_context(Group::default())
            .map_err(|error| format!("--kafka-option: {error}"))?;
        Ok(Self {
            consumer,
            ends,
            group,
            ours: Vec::new(),
            revoking: None,
            offers: Vec::new(),
            complaint: String::new(),
        })
    }

    fn serve(&mut self, params: &Params) -> Result<(), String> {
        if !self.wait_for_name(params)? {
            return Ok(());
        }
        self.consumer
            .subscribe(&[&topic(&params.cluster, Log::Messages)])
            .map_err(|error| format!("group {}: {error}", self.group))?;
        loop {
            match self.consumer.poll(TURN) {
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    self.lose_all();
                    return Err(format!("group {}: {code}", self.group));
                }
                Some(Err(error)) => self.complain(&error.to_string()),
                // Nothing is read here; a record that comes before the pause is left.
                Some(Ok(_)) | None => {}
            }
            self.hear_group();
            if !self.hear_router() {
                return Ok(());
            }
            self.look_at_clock();
        }
    }

    /// Waits until no member has our name: one that was killed has it until its session ends. False when we shall stop.
    fn wait_for_name(&mut self, params: &Params) -> Result<bool, String> {
        let name = client_id(&params.router_id);
        let mut taken_since = None;
        loop {
            match self.consumer.client().fetch_group_list(Some(&self.group), MEMBERS_TIMEOUT) {
                Ok(groups) => {
                    let mut members = groups.groups().iter().flat_map(|group| group.members());
                    let Some(other) = members.find(|member| member.client_id() == name) else {
                        return Ok(true);
                    };
                    let since = *taken_since.get_or_insert_with(now);
                    let longest = params.config.kafka_session_timeout + params.name_patience;
                    if since.elapsed() > longest + MEMBERS_TIMEOUT {
                        return Err(format!(
                            "--router-id: another router of cluster {} is called {} too, at {}: every router needs a name of its own",
                            params.cluster,
                            params.router_id,
                            other.client_host()
                        ));
                    }
                }
                Err(error) => self.complain(&error.to_string()),
            }
            let _ = self.consumer.poll(TURN * 4);
            if !self.hear_router() {
                return Ok(false);
            }
        }
    }

    fn hear_group(&mut self) {
        for said in self.consumer.context().take_said() {
            match said {
                Said::Assigned(list) => self.take(list),
                Said::Revoked(list) => self.give_back(list),
            }
        }
        if self.revoking.is_some() && self.consumer.assignment_lost() {
            self.finish_revoking();
        }
    }

    fn take(&mut self, mut list: TopicPartitionList) {
        // So that no committed offset is looked up.
        let taken = list
            .set_all_offsets(KafkaOffset::End)
            .and_then(|()| self.consumer.incremental_assign(&list))
            .and_then(|()| self.consumer.pause(&list));
        if let Err(error) = taken {
            self.complain(&error.to_string());
        }
        for partition in partitions(&list) {
            self.ours.push(partition);
            self.tell(Change::Gained(partition));
        }
    }

    fn give_back(&mut self, list: TopicPartitionList) {
        self.finish_revoking();
        let mut waiting = partitions(&list);
        waiting.retain(|partition| self.ours.contains(partition));
        // What could not be taken over is not held here.
        waiting.retain(|partition| !self.offers.iter().any(|(offered, _)| offered == partition));
        self.ours.retain(|partition| !partitions(&list).contains(partition));
        self.offers.retain(|(partition, _)| self.ours.contains(partition));
        let is_lost = self.consumer.assignment_lost();
        if !is_lost {
            for partition in &waiting {
                self.tell(Change::Wanted(*partition));
            }
        }
        let is_over = is_lost || waiting.is_empty();
        self.revoking = Some(Revoking { list, waiting, until: now() + RELEASE_TIMEOUT });
        if is_over {
            self.finish_revoking();
        }
    }

    /// Gives back what is wanted; what the router has not released is lost to it.
    fn finish_revoking(&mut self) {
        let Some(revoking) = self.revoking.take() else { return };
        for partition in revoking.waiting {
            self.tell(Change::Lost(partition));
        }
        if let Err(error) = self.consumer.incremental_unassign(&revoking.list) {
            self.complain(&error.to_string());
        }
    }

    /// False when we shall stop.
    fn hear_router(&mut self) -> bool {
        loop {
            match self.ends.told.try_recv() {
                Ok(Told::Released(partition)) => self.hear_released(partition),
                Err(TryRecvError::Empty) => return true,
                Ok(Told::Stop) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn hear_released(&mut self, partition: PartitionId) {
        if let Some(revoking) = &mut self.revoking {
            revoking.waiting.retain(|waiting| *waiting != partition);
            if revoking.waiting.is_empty() {
                self.finish_revoking();
            }
        }
        let is_offered = self.offers.iter().any(|(offered, _)| *offered == partition);
        if self.ours.contains(&partition) && !is_offered {
            self.offers.push((partition, now() + OFFER_PAUSE));
        }
    }

    fn look_at_clock(&mut self) {
        let now = now();
        if self.revoking.as_ref().is_some_and(|revoking| revoking.until <= now) {
            self.finish_revoking();
        }
        for (partition, _) in self.offers.extract_if(.., |(_, at)| *at <= now) {
            let _ = self.ends.changes.send(Change::Gained(partition));
        }
    }

    fn lose_all(&mut self) {
        for partition in std::mem::take(&mut self.ours) {
            self.tell(Change::Lost(partition));
        }
        self.finish_revoking();
    }

    /// Gives everything back and says so to the group, so that others take over at once.
    fn leave(&mut self) {
        self.consumer.context().is_leaving.store(true, Ordering::Relaxed);
        for said in self.consumer.context().take_said() {
            let _ = match said {
                Said::Assigned(list) => self.consumer.incremental_assign(&list),
                Said::Revoked(list) => self.consumer.incremental_unassign(&list),
            };
        }
        self.finish_revoking();
        self.consumer.unsubscribe();
        let begun = now();
        let is_empty = |consumer: &BaseConsumer<Group>| {
            consumer.assignment().is_ok_and(|assignment| assignment.count() == 0)
        };
        while !is_empty(&self.consumer) && begun.elapsed() < LEAVE_TIMEOUT {
            let _ = self.consumer.poll(TURN);
        }
    }

    fn tell(&self, change: Change) {
        // Without a router to hear it, the other channel is closed too.
        let _ = self.ends.changes.send(change);
    }

    fn complain(&mut self, complaint: &str) {
        if self.complaint != complaint {
            tracing::warn!(group = self.group, "claims: {complaint}");
            complaint.clone_into(&mut self.complaint);
        }
    }
}

fn client_id(router_id: &str) -> String {
    format!("hawser-router/{router_id}")
}

/// librdkafka wants it to be no less than the session.
fn max_poll_ms(session: Duration) -> String {
    POLL_INTERVAL_MAX.max(session).as_millis().to_string()
}

fn partitions(list: &TopicPartitionList) -> Vec<PartitionId> {
    let elements = list.elements();
    elements.iter().filter_map(|element| PartitionId::try_from(element.partition()).ok()).collect()
}

#[expect(clippy::disallowed_methods, reason = "an engine is the rim: it waits by the clock")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::thread::JoinHandle;

    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;
    use crate::queue::kafka::KafkaEngine;
    use crate::services::Service;

    const PARTITIONS: u16 = 4;
    const DEADLINE: Duration = Duration::from_secs(20);

    /// The claims of a router in their thread.
    struct Router {
        tell: UnboundedSender<Told>,
        changes: UnboundedReceiver<Change>,
        thread: JoinHandle<Result<(), String>>,
    }

    impl Router {
        fn start(config: &KafkaConfig, router_id: &str) -> Self {
            let (to_us, changes) = unbounded_channel();
            let (tell, told) = unbounded_channel();
            let (config, router_id) = (config.clone(), router_id.to_owned());
            let (cluster, name_patience) = ("test".to_owned(), Duration::ZERO);
            let params = Params { config, cluster, router_id, name_patience };
            let ends = Ends { changes: to_us, told };
            Self { tell, changes, thread: std::thread::spawn(move || run(&params, ends)) }
        }

        /// The next so many changes, sorted.
        fn next(&mut self, count: usize) -> Vec<Change> {
            let begun = now();
            let mut changes = Vec::new();
            while changes.len() < count {
                match self.changes.try_recv() {
                    Ok(change) => changes.push(change),
                    Err(TryRecvError::Empty) => std::thread::park_timeout(TURN / 10),
                    Err(TryRecvError::Disconnected) => panic!("it has ended after {changes:?}"),
                }
                assert!(begun.elapsed() < DEADLINE, "{changes:?}");
            }
            changes.sort_by_key(|change| partition(*change));
            changes
        }

        fn release(&self, changes: &[Change]) {
            for change in changes {
                self.tell.send(Told::Released(partition(*change))).unwrap();
            }
        }

        fn stop(self) {
            self.tell.send(Told::Stop).unwrap();
            self.thread.join().unwrap().unwrap();
        }
    }

    fn partition(change: Change) -> PartitionId {
        match change {
            Change::Gained(partition) | Change::Wanted(partition) | Change::Lost(partition) => {
                partition
            }
        }
    }

    fn gained(partitions: &[PartitionId]) -> Vec<Change> {
        partitions.iter().copied().map(Change::Gained).collect()
    }

    #[test]
    fn partitions_move_between_routers_that_come_and_go_and_are_lost_with_the_brokers() {
        let broker = Service::start("kafka", &[]);
        let config = KafkaConfig {
            kafka_brokers: vec![broker.address()],
            kafka_replicas: 1,
            kafka_min_insync: None,
            kafka_session_timeout: Duration::from_secs(1),
            kafka_option: Vec::new(),
        };
        KafkaEngine::connect(&config, "test", PARTITIONS).unwrap();
        let mut first = Router::start(&config, "first");
        assert_eq!(first.next(4), gained(&[0, 1, 2, 3]));
        let namesake = Router::start(&config, "first");

        let mut second = Router::start(&config, "second");
        let wanted = first.next(2);
        assert!(wanted.iter().all(|change| matches!(change, Change::Wanted(_))), "{wanted:?}");
        assert!(second.changes.try_recv().is_err(), "it was given before it was released");
        first.release(&wanted);
        let moved = second.next(2);
        assert_eq!(moved, gained(&[partition(wanted[0]), partition(wanted[1])]));

        // A takeover that failed is offered again.
        second.release(&moved[..1]);
        assert_eq!(second.next(1), moved[..1]);

        let refused = namesake.thread.join().unwrap().unwrap_err();
        assert!(refused.contains("--router-id"), "{refused}");

        first.stop();
        let rest = second.next(2);
        assert!(rest.iter().all(|change| !wanted.contains(&Change::Wanted(partition(*change)))));

        broker.kill_node(1);
        let lost: Vec<_> = (0..PARTITIONS).map(Change::Lost).collect();
        assert_eq!(second.next(4), lost);
        broker.start_node(1);
        assert_eq!(second.next(4), gained(&[0, 1, 2, 3]));
        second.stop();
    }
}
