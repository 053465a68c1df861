//! A shard between two routers that share the partitions.

use std::collections::{BTreeMap, BTreeSet};

use hawser_proto::partition::{self, PartitionId};

use super::*;

const B: RouterIndex = RouterIndex(1);
/// Of the cluster in these tests.
const PARTITIONS: u16 = 4;

/// A user of this partition, the `nth`.
fn user(partition: PartitionId, nth: usize) -> String {
    let users = (0..).map(|n| format!("user{n}"));
    let mut here = users.filter(|user| partition::partition_of(user, PARTITIONS) == partition);
    here.nth(nth).unwrap()
}

/// Two routers: A has partitions 0 and 1, B has 2 and 3, all under epoch 5.
fn two_routers() -> Rig {
    let mut rig = Rig::with(|config| config.sends_in_flight_max = 1_000);
    rig.links_up(A, PARTITIONS);
    rig.links_up(B, PARTITIONS);
    rig.owns(A, &[(0, 5), (1, 5)]);
    assert_eq!(rig.hears(A), ["snapshot end"]);
    rig.owns(B, &[(2, 5), (3, 5)]);
    assert_eq!(rig.hears(B), ["snapshot end"]);
    rig
}

impl Rig {
    /// A client of the first user of a partition, whose Connect its router has answered.
    fn client(&mut self, router: RouterIndex, partition: PartitionId) -> ConnKey {
        let (key, user) = (self.connecting(), user(partition, 0));
        self.says(key, connect(&user, "phone"));
        assert_eq!(self.hears(router), [format!("register {user} phone None answer")]);
        self.says_from(router, RouterMessage::Registered(registered(key)));
        assert_eq!(self.gets(key), [frame(&format!("welcome {user} cursor 0"))]);
        key
    }

    fn says_send(&mut self, key: ConnKey, id: &str, to: PartitionId) {
        self.says(key, send(id, &user(to, 0), b"x"));
    }
}

fn registered(key: ConnKey) -> link::Registered<'static> {
    let connection = key.to_connection_id(0);
    link::Registered { connection, resumed: true, ..link::Registered::default() }
}

fn delivery(key: ConnKey, sequence: u64) -> RouterMessage<'static> {
    let connection = key.to_connection_id(0);
    RouterMessage::Deliver(link::Deliver {
        connection,
        sequence,
        from: "x",
        ..link::Deliver::default()
    })
}

fn send_of(ticket: u64, from: PartitionId, to: PartitionId, id: &str) -> String {
    format!("send {ticket} {}>{} {id}", user(from, 0), user(to, 0))
}

fn snapshot_of(partition: PartitionId) -> String {
    format!("register {} phone Some(0) snapshot", user(partition, 0))
}

#[test]
fn each_router_hears_what_is_about_its_own_users() {
    let mut rig = two_routers();
    let (of_a, of_b) = (rig.client(A, 0), rig.client(B, 2));
    rig.says_send(of_a, "m1", 3);
    assert_eq!(rig.hears(B), [send_of(1, 0, 3, "m1")]);
    rig.says_send(of_a, "m2", 1);
    assert_eq!(rig.hears(A), [send_of(2, 0, 1, "m2")]);
    rig.says(of_b, ClientFrame::Ack(Ack { sequence: 4, read_sequence: None }));
    assert_eq!(rig.hears(B), [format!("ack {} 4", user(2, 0))]);
    rig.shard.apply(rig.now, Event::Ended { key: of_b, errno: 0 });
    assert_eq!(rig.hears(B), [format!("unregister {}", user(2, 0))]);
    assert_eq!(rig.shard.counters.partitions_unrouted.get(), 0);
}

#[test]
fn a_partition_that_moves_takes_its_connections_along_then_old_sends_then_new_ones() {
    let mut rig = two_routers();
    let (key, _) = (rig.client(A, 0), rig.client(B, 2));
    for (id, to) in [("m1", 0), ("m2", 1), ("m3", 0), ("m4", 2)] {
        rig.says_send(key, id, to);
    }
    assert_eq!(rig.routers_hear().len(), 4);
    // A has answered the first; it gives the partition up, and for a while nobody has it.
    let connection = key.to_connection_id(0);
    let ack = link::SendAck { connection, ticket: 1, ..link::SendAck::default() };
    rig.says_from(A, RouterMessage::SendAck(ack));
    rig.owns(A, &[(1, 5)]);
    assert_eq!(rig.shard.counters.partitions_unrouted.get(), 1);
    rig.says_send(key, "m5", 0);
    rig.says_send(key, "m6", 1);
    assert_eq!(rig.hears(A), [send_of(6, 0, 1, "m6")], "other partitions do not wait");
    rig.owns(B, &[(0, 6), (2, 5), (3, 5)]);
    assert_eq!(
        rig.hears(B),
        [snapshot_of(0), send_of(3, 0, 0, "m3"), send_of(5, 0, 0, "m5")],
        "nothing of the partitions that stayed, and no second end of the snapshot"
    );
    rig.says_send(key, "m7", 0);
    assert_eq!(rig.hears(B), [send_of(7, 0, 0, "m7")]);
}

#[test]
fn what_a_former_owner_says_is_dropped_except_that_a_message_is_kept() {
    let mut rig = two_routers();
    let key = rig.client(A, 0);
    rig.says_send(key, "m1", 1);
    rig.owns(B, &[(0, 6), (2, 5), (3, 5)]);
    rig.routers_hear();
    let connection = key.to_connection_id(0);
    rig.says_from(A, delivery(key, 1));
    rig.says_from(A, RouterMessage::Registered(registered(key)));
    let gap = link::Gap { connection, first_sequence: 1, last_sequence: 2, reason: 1 };
    rig.says_from(A, RouterMessage::Gap(gap));
    rig.says_from(A, RouterMessage::Disconnect(link::Disconnect { connection, reason: 1 }));
    assert_eq!(rig.gets(key), []);
    assert_eq!(rig.shard.counters.foreign_deliveries.get(), 4);
    // It says once more what it has owned, and has not heard yet.
    rig.owns(A, &[(0, 5), (1, 5)]);
    rig.says_from(A, delivery(key, 1));
    assert_eq!(rig.gets(key), []);
    rig.says_from(B, delivery(key, 1));
    assert_eq!(rig.gets(key), [frame("deliver 1 from x")]);
    let ack = link::SendAck { connection, ticket: 1, message_id: 9, ..link::SendAck::default() };
    rig.says_from(B, RouterMessage::SendAck(ack));
    assert_eq!(rig.gets(key), [frame("ack m1 as 9")]);
}

#[test]
fn the_loss_of_one_link_leaves_the_users_of_the_other_untouched() {
    let mut rig = two_routers();
    let (of_a, of_b) = (rig.client(A, 0), rig.client(B, 2));
    rig.says_send(of_b, "m1", 0);
    assert_eq!(rig.hears(A), [send_of(1, 2, 0, "m1")]);
    rig.link_down();
    assert_eq!(rig.shard.counters.partitions_unrouted.get(), 2);
    rig.says_send(of_a, "m2", 2);
    rig.says_send(of_b, "m3", 0);
    rig.says(of_a, ClientFrame::Ack(Ack { sequence: 7, read_sequence: None }));
    assert_eq!(rig.hears(B), [send_of(2, 0, 2, "m2")], "a user of A still sends to those of B");
    rig.says_from(B, delivery(of_b, 1));
    assert_eq!(rig.gets(of_b), [frame("deliver 1 from x")]);
    // The former owner of before comes with its old epoch, then A is back.
    rig.owns(B, &[(0, 4), (2, 5), (3, 5)]);
    assert_eq!(rig.routers_hear(), []);
    rig.links_up(A, PARTITIONS);
    assert_eq!(rig.routers_hear(), [], "not before it says what it owns");
    rig.owns(A, &[(0, 5), (1, 5)]);
    let again = format!("register {} phone Some(7) snapshot", user(0, 0));
    assert_eq!(
        rig.hears(A),
        [again, "snapshot end".into(), send_of(1, 2, 0, "m1"), send_of(3, 2, 0, "m3")]
    );
    assert_eq!(rig.gets(of_b), []);
}

#[test]
fn a_client_of_a_partition_without_a_router_waits_for_one_as_long_as_for_a_link() {
    let mut rig = two_routers();
    rig.owns(B, &[(2, 5)]);
    let (waiting, late) = (rig.connecting(), rig.connecting());
    rig.says(waiting, connect(&user(3, 0), "phone"));
    rig.says(late, connect(&user(3, 1), "phone"));
    rig.shard.apply(rig.now, Event::Ended { key: late, errno: 0 });
    assert_eq!(rig.routers_hear(), []);
    rig.owns(A, &[(0, 5), (1, 5), (3, 6)]);
    assert_eq!(rig.hears(A), [format!("register {} phone None answer snapshot", user(3, 0))]);
    rig.says_from(A, RouterMessage::Registered(registered(waiting)));
    assert_eq!(rig.gets(waiting), [frame(&format!("welcome {} cursor 0", user(3, 0)))]);

    rig.owns(A, &[(0, 5), (1, 5)]);
    let key = rig.connecting();
    rig.says(key, connect(&user(3, 1), "phone"));
    rig.advance(Duration::from_secs(10));
    assert_eq!(rig.gets(key), [frame("error CODE_UNAVAILABLE"), Got::Close(1013)]);
}

#[test]
fn a_send_to_a_partition_without_a_router_may_be_tried_again_when_it_has_waited() {
    let mut rig = two_routers();
    let key = rig.client(A, 0);
    rig.owns(B, &[(2, 5)]);
    rig.says_send(key, "m1", 3);
    rig.advance(Duration::from_secs(10));
    assert_eq!(rig.gets(key), [frame("nack m1 CODE_UNAVAILABLE retryable")]);
    rig.owns(B, &[(2, 5), (3, 5)]);
    assert_eq!(rig.routers_hear(), [], "it is not said any more");
}

#[test]
fn partitions_that_move_while_others_are_told_are_told_after_them_and_nobody_is_left_out() {
    const CLIENTS: usize = 1_500;
    let mut rig = two_routers();
    let share = Share { connections_max: CLIENTS, handshakes_max: CLIENTS, ..Share::SMALL };
    rig.shard = Shard::new(0, Arc::clone(&rig.shard.config), share, Given::default(), rig.now);
    for n in 0..CLIENTS {
        let key = rig.connecting();
        rig.says(key, connect(&format!("user{n}"), "phone"));
    }
    rig.links_up(A, PARTITIONS);
    rig.links_up(B, PARTITIONS);
    rig.mesh.try_send_down(0, owned(&rig, A, &[(0, 5), (1, 5)])).unwrap();
    rig.shard.exchange(rig.now, &rig.mesh);
    assert!(rig.shard.has_more_to_tell(), "a thousand slots are enough for one turn");
    rig.mesh.try_send_down(0, owned(&rig, B, &[(1, 6), (2, 5)])).unwrap();
    while rig.shard.has_more_to_tell() {
        rig.shard.exchange(rig.now, &rig.mesh);
    }
    let (mut told, mut ends) = (BTreeMap::new(), [false; 2]);
    for (router, text) in rig.routers_hear() {
        let Some(user) = text.strip_prefix("register ").and_then(|rest| rest.split(' ').next())
        else {
            assert_eq!(text, "snapshot end");
            assert!(!std::mem::replace(&mut ends[router.at()], true), "the end, twice");
            continue;
        };
        assert!(!ends[router.at()], "{user} after the end");
        let last = told.insert(user.to_owned(), router);
        assert!(last.is_none_or(|last| last == A && router == B), "{user} twice");
    }
    assert_eq!(ends, [true; 2]);
    for n in 0..CLIENTS {
        let user = format!("user{n}");
        let router = match partition::partition_of(&user, PARTITIONS) {
            0 => Some(&A),
            1 | 2 => Some(&B),
            _ => None,
        };
        assert_eq!(told.get(&user), router, "{user}");
    }
}

fn owned(rig: &Rig, router: RouterIndex, claims: &[Claim]) -> Parcel {
    Parcel::Owned { router, link: rig.link_of(router), claims: claims.into() }
}

#[test]
fn a_router_without_room_holds_up_its_own_clients_and_sends_to_them_and_nobody_else() {
    let mut rig = two_routers();
    let (of_a, of_b) = (rig.client(A, 0), rig.client(B, 2));
    rig.mesh.set_router_full(B, true);
    rig.says(of_b, ClientFrame::Ack(Ack { sequence: 1, read_sequence: None }));
    rig.says(of_b, ClientFrame::Ack(Ack { sequence: 2, read_sequence: None }));
    assert!(!rig.is_read_from(of_b));
    rig.shard.apply(rig.now, Event::ReceiveStopped { key: of_b });
    for (id, to) in [("m1", 2), ("m2", 0), ("m3", 2)] {
        rig.says_send(of_a, id, to);
    }
    let signal = hawser_proto::view::client::Signal { user: &user(2, 0), ..Default::default() };
    rig.says(of_a, ClientFrame::Signal(signal));
    assert_eq!(rig.hears(A), [send_of(2, 0, 0, "m2")]);
    assert!(rig.is_read_from(of_a) && !rig.is_read_from(of_b));
    assert_eq!(rig.shard.counters.signals_dropped.get(), 1);
    assert!(!rig.shard.has_more_to_tell() && !rig.shard.can_hand_over(&rig.mesh));

    rig.mesh.set_router_full(B, false);
    assert!(rig.shard.can_hand_over(&rig.mesh));
    let acks = [1, 2].map(|sequence| format!("ack {} {sequence}", user(2, 0)));
    let [first, second] = acks;
    assert_eq!(rig.hears(B), [first, second, send_of(1, 0, 2, "m1"), send_of(3, 0, 2, "m3")]);
    assert!(rig.is_read_from(of_b));
}

#[test]
fn when_there_are_partitions_all_at_once_everything_is_told_by_them() {
    let mut rig = Rig::new();
    rig.link_up();
    let key = rig.session(&user(0, 0), "phone");
    rig.says_send(key, "m1", 3);
    rig.says_send(key, "m2", 0);
    assert_eq!(rig.router_hears().len(), 2);
    rig.link_down();
    rig.links_up(B, PARTITIONS);
    rig.owns(B, &[(3, 1)]);
    assert_eq!(rig.hears(B), ["snapshot end".into(), send_of(1, 0, 3, "m1")]);
    rig.links_up(A, PARTITIONS);
    rig.owns(A, &[(0, 1)]);
    assert_eq!(rig.hears(A), [snapshot_of(0), "snapshot end".into(), send_of(2, 0, 0, "m2")]);
}

#[test]
fn what_was_said_on_a_link_that_is_over_counts_no_more() {
    let mut rig = two_routers();
    let stale = owned(&rig, A, &[(0, 5), (1, 5)]);
    rig.link_down();
    rig.links_up(A, PARTITIONS);
    rig.router_hands(stale);
    assert_eq!(rig.shard.counters.partitions_unrouted.get(), 2);
    assert_eq!(rig.routers_hear(), []);
}

/// Partitions that move at random between two routers whose links break and fill up, and what each has heard.
struct Turmoil {
    rig: Rig,
    rng: fastrand::Rng,
    /// One of the first user of each partition.
    keys: Vec<ConnKey>,
    /// By partition: the last epoch, and which router has it.
    owners: Vec<(u64, Option<RouterIndex>)>,
    is_up: [bool; 2],
    /// By ticket, from 1: to which partition, and whether it is answered.
    sends: Vec<(PartitionId, bool)>,
    /// By router and link: users registered, and tickets heard.
    heard: BTreeMap<(u8, u32), (BTreeSet<String>, BTreeSet<u64>)>,
}

impl Turmoil {
    fn new(seed: u64) -> Self {
        let mut rig = Rig::with(|config| config.sends_in_flight_max = 4_096);
        let keys = (0..PARTITIONS).map(|partition| {
            let key = rig.connecting();
            rig.says(key, connect(&user(partition, 0), "phone"));
            key
        });
        let keys = keys.collect();
        Self {
            rig,
            rng: fastrand::Rng::with_seed(seed),
            keys,
            owners: vec![(0, None); usize::from(PARTITIONS)],
            is_up: [false; 2],
            sends: Vec::new(),
            heard: BTreeMap::new(),
        }
    }

    fn router(&mut self) -> RouterIndex {
        if self.rng.bool() { A } else { B }
    }

    fn step(&mut self) {
        let router = self.router();
        match self.rng.u8(..10) {
            0 if self.is_up[router.at()] => self.link_down(router),
            0 => self.link_up(router),
            1 => self.take(router),
            // What it said before, or what it has lost since.
            2 => self.say_owned(router),
            3 => self.rig.mesh.set_router_full(router, true),
            4 => self.rig.mesh.set_router_full(router, false),
            5 => self.answer(),
            _ => self.send(),
        }
        if self.rng.bool() {
            self.hear(None);
        }
    }

    fn link_up(&mut self, router: RouterIndex) {
        self.is_up[router.at()] = true;
        self.rig.links_up(router, PARTITIONS);
    }

    fn link_down(&mut self, router: RouterIndex) {
        // What is on its way to it arrives, or never does.
        let lost = self.rng.bool().then_some(router);
        self.hear(lost);
        self.is_up[router.at()] = false;
        self.rig.mesh.set_router_full(router, false);
        self.rig.router_hands(Parcel::LinkDown { router });
    }

    /// A router takes a partition; the other one may hear of it later.
    fn take(&mut self, router: RouterIndex) {
        let partition = self.rng.usize(..self.owners.len());
        let (epoch, _) = self.owners[partition];
        self.owners[partition] = (epoch + 1, Some(router));
        self.say_owned(router);
    }

    fn say_owned(&mut self, router: RouterIndex) {
        let owners = (0..).zip(&self.owners);
        let owned = owners.filter(|(_, (_, owner))| *owner == Some(router));
        let claims: Vec<Claim> = owned.map(|(partition, (epoch, _))| (partition, *epoch)).collect();
        if self.is_up[router.at()] {
            self.rig.owns(router, &claims);
        }
    }

    fn send(&mut self) {
        let (key, to) = (self.keys[self.rng.usize(..self.keys.len())], self.rng.u16(..PARTITIONS));
        self.sends.push((to, false));
        self.rig.says_send(key, "m", to);
    }

    fn answer(&mut self) {
        let unanswered = |ticket: &u64| !self.sends[*ticket as usize - 1].1;
        let heard = self.heard.values().flat_map(|(_, tickets)| tickets);
        let Some(ticket) = heard.copied().find(unanswered) else { return };
        self.sends[ticket as usize - 1].1 = true;
        let ack = link::SendAck { ticket, ..link::SendAck::default() };
        let router = self.router();
        self.rig.says_from(router, RouterMessage::SendAck(ack));
    }

    /// Takes what is in the lanes, and looks at its order; one router may be cut off from it.
    fn hear(&mut self, lost: Option<RouterIndex>) {
        for (router, text) in self.rig.routers_hear() {
            if lost == Some(router) {
                continue;
            }
            let link = self.rig.link_of(router).0;
            let (users, tickets) = self.heard.entry((router.0, link)).or_default();
            let mut words = text.split(' ');
            match (words.next(), words.next()) {
                (Some("register"), Some(user)) => {
                    users.insert(user.to_owned());
                }
                (Some("send"), Some(ticket)) => {
                    let ticket: u64 = ticket.parse().unwrap();
                    let (to, _) = self.sends[ticket as usize - 1];
                    assert!(users.contains(&user(to, 0)), "{text} before who is there");
                    for (earlier, (partition, answered)) in (1..ticket).zip(&self.sends) {
                        let told = *partition != to || *answered || tickets.contains(&earlier);
                        assert!(told, "{text} overtakes {earlier} at router {}", router.0);
                    }
                    tickets.insert(ticket);
                }
                other => assert_eq!(other, (Some("snapshot"), Some("end"))),
            }
        }
    }

    /// Everything is up and owned, and all that waits is told.
    fn settle(&mut self) {
        for router in [A, B] {
            self.rig.mesh.set_router_full(router, false);
            if !self.is_up[router.at()] {
                self.link_up(router);
            }
        }
        for owner in &mut self.owners {
            owner.1 = owner.1.or(Some(A));
        }
        for router in [A, B] {
            self.say_owned(router);
        }
        for _ in 0..10 {
            self.hear(None);
        }
        assert!(!self.rig.shard.has_more_to_tell());
        let at = |router: Option<RouterIndex>| {
            let router = router.unwrap();
            &self.heard[&(router.0, self.rig.link_of(router).0)]
        };
        for (partition, (_, owner)) in (0..).zip(&self.owners) {
            assert!(at(*owner).0.contains(&user(partition, 0)), "partition {partition}");
        }
        for (ticket, (to, answered)) in (1..).zip(&self.sends) {
            let (_, owner) = self.owners[usize::from(*to)];
            assert!(*answered || at(owner).1.contains(&ticket), "send {ticket} is not told");
        }
    }
}

#[test]
fn however_partitions_move_no_send_overtakes_another_and_none_is_left() {
    for seed in 0..300 {
        let outcome = std::panic::catch_unwind(|| {
            let mut turmoil = Turmoil::new(seed);
            for _ in 0..150 {
                turmoil.step();
            }
            turmoil.settle();
        });
        assert!(outcome.is_ok(), "seed {seed}");
    }
}
