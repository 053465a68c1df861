//! Which router a request goes to, and to which it goes again. Free of I/O.
//!
//! ```text
//!  asked ─► owner known? ─ yes ─► on its way to it ─ answered ─► done
//!              ▲     └ no ─► waits         │
//!              └── another owner or epoch, or its link is gone
//! ```
//!
//! What is asked may be done twice, and does no harm then: a Send is found by its client message id.

use std::collections::BTreeMap;

use ahash::AHashMap;
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::{HelloAck, Ownership};
use hawser_proto::partition::{PARTITIONS_MAX, partition_of};

use crate::hub::queries::partition_of_query;
use crate::queue::PartitionId;

/// What routers own, and what they are asked. `W` waits for an answer.
#[derive(Debug)]
pub(super) struct Routing<W> {
    peers: Vec<Peer>,
    /// By ticket, so in the order in which it was asked.
    waiting: BTreeMap<u64, Waiting<W>>,
    tickets_given: u64,
}

#[derive(Debug, Default)]
struct Peer {
    owned: Owned,
    outgoing: Vec<Inbound>,
}

/// What a router has said that it owns.
#[derive(Debug, Default)]
enum Owned {
    /// Its link is down, or it has not said.
    #[default]
    Unknown,
    /// Everything: it is alone.
    All,
    /// Of so many partitions these, under these epochs.
    Some(u16, AHashMap<PartitionId, u64>),
}

#[derive(Debug)]
struct Waiting<W> {
    message: Inbound,
    /// To which peer it is on its way, and what that one's epoch was.
    at: Option<(usize, u64)>,
    waiter: W,
}

impl<W> Routing<W> {
    /// Of so many routers nothing is known.
    pub(super) fn new(peers: usize) -> Self {
        let peers = (0..peers).map(|_| Peer::default()).collect();
        Self { peers, waiting: BTreeMap::new(), tickets_given: 0 }
    }

    /// Takes a Send or a Query about a user, puts the ticket in and sends it, or keeps it until its partition has an owner.
    pub(super) fn ask(&mut self, mut message: Inbound, waiter: W) -> u64 {
        self.tickets_given += 1;
        let ticket = self.tickets_given;
        set_ticket(&mut message, ticket);
        let at = self.owner_of(&message);
        if let Some((peer, _)) = at {
            self.peers[peer].outgoing.push(message.clone());
        }
        self.waiting.insert(ticket, Waiting { message, at, waiter });
        ticket
    }

    /// The answer with this ticket is there: who waits for it? `None`: nobody any more.
    pub(super) fn handle_answer(&mut self, ticket: u64) -> Option<W> {
        self.waiting.remove(&ticket).map(|waiting| waiting.waiter)
    }

    /// Nobody waits for the answer any more.
    pub(super) fn forget(&mut self, ticket: u64) {
        self.waiting.remove(&ticket);
    }

    /// A router has taken the link. One that says no number of partitions owns them all; others say what they own with
    /// [`Routing::handle_ownership`].
    pub(super) fn handle_hello_ack(&mut self, peer: usize, ack: &HelloAck) {
        if ack.partitions == 0 {
            self.peers[peer].owned = Owned::All;
            self.route_again();
        }
    }

    /// A router says what it owns.
    pub(super) fn handle_ownership(&mut self, peer: usize, ownership: &Ownership) {
        let partitions = u16::try_from(ownership.partitions).unwrap_or(0);
        if !(1..=PARTITIONS_MAX).contains(&partitions) {
            return;
        }
        let claims = ownership.claims.iter().filter_map(|claim| {
            let partition = PartitionId::try_from(claim.partition).ok()?;
            (partition < partitions).then_some((partition, claim.epoch))
        });
        self.peers[peer].owned = Owned::Some(partitions, claims.collect());
        self.route_again();
    }

    /// The link to a router is gone, and what was on its way may be lost.
    pub(super) fn handle_link_down(&mut self, peer: usize) {
        self.peers[peer] = Peer::default();
        self.route_again();
    }

    /// Whether a router has been found that takes requests.
    pub(super) fn is_any_up(&self) -> bool {
        self.peers.iter().any(|peer| !matches!(peer.owned, Owned::Unknown))
    }

    /// What is to be said to a router, in order.
    pub(super) fn take_outgoing(&mut self, peer: usize) -> Vec<Inbound> {
        std::mem::take(&mut self.peers[peer].outgoing)
    }

    /// Whether there is something.
    pub(super) fn has_outgoing(&self, peer: usize) -> bool {
        !self.peers[peer].outgoing.is_empty()
    }

    /// Brings everything to the owners of now that is not on its way there.
    fn route_again(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        for request in waiting.values_mut() {
            let owner = self.owner_of(&request.message);
            if owner == request.at {
                continue;
            }
            request.at = owner;
            if let Some((peer, _)) = owner {
                self.peers[peer].outgoing.push(request.message.clone());
            }
        }
        self.waiting = waiting;
    }

    /// The router with the highest epoch for what a message is about, and that epoch.
    fn owner_of(&self, message: &Inbound) -> Option<(usize, u64)> {
        let epochs = self.peers.iter().enumerate().filter_map(|(index, peer)| {
            let epoch = match &peer.owned {
                Owned::Unknown => None,
                Owned::All => Some(0),
                Owned::Some(partitions, claims) => {
                    claims.get(&partition_of_message(message, *partitions)).copied()
                }
            };
            Some((index, epoch?))
        });
        epochs.max_by_key(|(_, epoch)| *epoch)
    }
}

fn partition_of_message(message: &Inbound, partitions: u16) -> PartitionId {
    match message {
        // Any owner says that a message of no partition is not there.
        Inbound::Query(query) => partition_of_query(query, partitions) % partitions,
        Inbound::Send(send) => partition_of(&send.to_user, partitions),
        Inbound::Hello(_)
        | Inbound::Register(_)
        | Inbound::SnapshotEnd(_)
        | Inbound::Unregister(_)
        | Inbound::Ack(_)
        | Inbound::Signal(_)
        | Inbound::Sync(_)
        | Inbound::Relay(_)
        | Inbound::Heartbeat(_) => 0,
    }
}

fn set_ticket(message: &mut Inbound, ticket: u64) {
    match message {
        Inbound::Query(query) => query.ticket = ticket,
        Inbound::Send(send) => send.ticket = ticket,
        Inbound::Hello(_)
        | Inbound::Register(_)
        | Inbound::SnapshotEnd(_)
        | Inbound::Unregister(_)
        | Inbound::Ack(_)
        | Inbound::Signal(_)
        | Inbound::Sync(_)
        | Inbound::Relay(_)
        | Inbound::Heartbeat(_) => debug_assert!(false, "only Send and Query have an answer"),
    }
}

#[cfg(test)]
mod tests {
    use hawser_proto::link::{Claim, Query, Send, TraceQuery, query};

    use super::*;

    const PARTITIONS: u16 = 64;

    fn send(to: &str) -> Inbound {
        Inbound::Send(Send { to_user: to.to_owned(), ..Send::default() })
    }

    /// Tickets of what is to be said to a router.
    fn said(routing: &mut Routing<&'static str>, peer: usize) -> Vec<u64> {
        let ticket = |message| {
            if let Inbound::Query(query) = message {
                return query.ticket;
            }
            let Inbound::Send(send) = message else { panic!("{message:?}") };
            send.ticket
        };
        routing.take_outgoing(peer).into_iter().map(ticket).collect()
    }

    fn owns(routing: &mut Routing<&'static str>, peer: usize, users: &[&str], epoch: u64) {
        let claim = |user: &&str| Claim { partition: partition_of(user, PARTITIONS).into(), epoch };
        let claims = users.iter().map(claim).collect();
        let partitions = PARTITIONS.into();
        routing.handle_hello_ack(peer, &HelloAck { partitions, ..HelloAck::default() });
        routing.handle_ownership(peer, &Ownership { partitions, claims });
    }

    #[test]
    fn a_router_that_is_alone_gets_everything_also_what_waited_for_it() {
        let mut routing = Routing::new(1);
        assert!(!routing.is_any_up());
        assert_eq!(routing.ask(send("alice"), "a"), 1);
        assert!(!routing.has_outgoing(0));
        routing.handle_hello_ack(0, &HelloAck::default());
        routing.ask(send("bob"), "b");
        assert!(routing.is_any_up());
        assert_eq!(said(&mut routing, 0), [1, 2]);
        assert_eq!((routing.handle_answer(2), routing.handle_answer(2)), (Some("b"), None));
    }

    #[test]
    fn each_user_is_asked_for_at_the_owner_and_nowhere_else() {
        let mut routing = Routing::new(2);
        owns(&mut routing, 0, &["alice"], 1);
        owns(&mut routing, 1, &["bob"], 1);
        routing.ask(send("alice"), "a");
        routing.ask(send("bob"), "b");
        routing.ask(send("carol"), "nobody owns her");
        assert_eq!((said(&mut routing, 0), said(&mut routing, 1)), (vec![1], vec![2]));
        owns(&mut routing, 1, &["bob", "carol"], 2);
        assert!(said(&mut routing, 0).is_empty());
        // Also bob's again: the epoch is another, and the owner of before may have left it unanswered.
        assert_eq!(said(&mut routing, 1), [2, 3]);
    }

    #[test]
    fn where_two_say_that_they_own_it_the_higher_epoch_is_right() {
        let mut routing = Routing::new(2);
        owns(&mut routing, 0, &["alice"], 5);
        owns(&mut routing, 1, &["alice"], 4);
        routing.ask(send("alice"), "a");
        assert_eq!((said(&mut routing, 0), said(&mut routing, 1)), (vec![1], vec![]));
        owns(&mut routing, 1, &["alice"], 6);
        assert_eq!((said(&mut routing, 0), said(&mut routing, 1)), (vec![], vec![1]));
    }

    #[test]
    fn what_was_on_its_way_over_a_link_that_broke_goes_again_to_whoever_owns_it_then() {
        let mut routing = Routing::new(2);
        owns(&mut routing, 0, &["alice"], 5);
        routing.ask(send("alice"), "answered");
        routing.ask(send("alice"), "lost");
        assert_eq!(said(&mut routing, 0), [1, 2]);
        assert_eq!(routing.handle_answer(1), Some("answered"));
        routing.handle_link_down(0);
        assert_eq!((said(&mut routing, 0), said(&mut routing, 1)), (vec![], vec![]));
        owns(&mut routing, 1, &["alice"], 6);
        assert_eq!(said(&mut routing, 1), [2]);
        routing.handle_link_down(1);
        owns(&mut routing, 0, &["alice"], 7);
        assert_eq!(said(&mut routing, 0), [2]);
    }

    #[test]
    fn what_nobody_waits_for_any_more_goes_nowhere() {
        let mut routing = Routing::new(1);
        let ticket = routing.ask(send("alice"), "a");
        routing.forget(ticket);
        routing.handle_hello_ack(0, &HelloAck::default());
        assert!(!routing.has_outgoing(0));
        assert_eq!(routing.handle_answer(ticket), None);
    }

    #[test]
    fn a_trace_goes_to_the_partition_in_the_message_id() {
        let mut routing = Routing::new(2);
        owns(&mut routing, 0, &["alice"], 1);
        owns(&mut routing, 1, &["bob"], 1);
        let message_id = u64::from(partition_of("bob", PARTITIONS)) << 48 | 7;
        let kind = Some(query::Kind::Trace(TraceQuery { message_id }));
        routing.ask(Inbound::Query(Query { kind, ..Query::default() }), "t");
        assert_eq!((said(&mut routing, 0), said(&mut routing, 1)), (vec![], vec![1]));
    }

    #[test]
    fn an_ownership_that_makes_no_sense_changes_nothing() {
        let mut routing: Routing<&str> = Routing::new(1);
        for partitions in [0, 1 << 16, u32::MAX] {
            let claims = vec![Claim { partition: 0, epoch: 1 }];
            routing.handle_ownership(0, &Ownership { partitions, claims });
        }
        assert!(!routing.is_any_up());
        let claims = vec![Claim { partition: 2, epoch: 1 }, Claim { partition: 70_000, epoch: 1 }];
        routing.handle_ownership(0, &Ownership { partitions: 2, claims });
        routing.ask(send("alice"), "a");
        assert!(!routing.has_outgoing(0));
    }
}
