//! What an operator asks.

use tokio::sync::oneshot;

use super::*;
use crate::auth::UserId;
use crate::command::{Answer, LIST_SLOTS_MAX, Listed, Stage};

impl Rig {
    fn ask<T>(&mut self, command: impl FnOnce(Answer<T>) -> Command) -> T {
        let (answer, mut answered) = oneshot::channel();
        self.mesh.try_command(0, command(answer)).unwrap();
        self.turn();
        answered.try_recv().expect("a command is answered in the turn that takes it")
    }

    fn reload(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = (*self.shard.config).clone();
        change(&mut config);
        self.mesh.try_command(0, Command::Reload(Arc::new(config))).unwrap();
        self.turn();
    }
}

#[test]
fn connections_are_listed_slot_by_slot_with_what_is_known_of_them() {
    let mut rig = Rig::new();
    rig.link_up();
    let alice = rig.session("alice", "phone");
    let nobody = rig.connecting();
    rig.advance(Duration::from_secs(2));
    let Listed { connections, next } = rig.ask(|answer| Command::List { first: 0, answer });
    assert_eq!(next, Some(LIST_SLOTS_MAX));
    let stages: Vec<_> = connections.iter().map(|shown| (shown.id, shown.stage)).collect();
    let expected = [(alice, Stage::Open), (nobody, Stage::Connecting)]
        .map(|(k, s)| (k.to_connection_id(0), s));
    assert_eq!(stages, expected);
    let session = connections[0].session.as_ref().unwrap();
    assert_eq!((&*session.user, &*session.device), ("alice", "phone"));
    assert_eq!(connections[0].silent_ms, 2000);
    assert!(connections[1].session.is_none());

    let mut first = next;
    while let Some(slot) = first {
        let listed = rig.ask(|answer| Command::List { first: slot, answer });
        assert!(listed.connections.is_empty());
        first = listed.next;
    }
}

#[test]
fn an_operator_finds_and_closes_all_that_a_user_has_and_nobody_else() {
    let mut rig = Rig::new();
    rig.link_up();
    let (phone, pad) = (rig.session("alice", "phone"), rig.session("alice", "pad"));
    let bob = rig.session("bob", "phone");
    let user = UserId::from("alice").unwrap();
    assert_eq!(rig.ask(|answer| Command::Find { user, answer }).len(), 2);
    assert_eq!(rig.ask(|answer| Command::CloseUser { user, answer }), 2);
    assert_eq!((rig.gets(phone), rig.gets(pad)), (vec![Got::Close(1008)], vec![Got::Close(1008)]));
    assert_eq!(rig.ask(|answer| Command::CloseUser { user, answer }), 0);
    assert!(rig.is_open(bob));

    assert!(rig.ask(|answer| Command::Close { key: bob, answer }));
    assert_eq!(rig.gets(bob), [Got::Close(1008)]);
    rig.shard.apply(rig.now, Event::Ended { key: bob, errno: 0 });
    assert!(!rig.ask(|answer| Command::Close { key: bob, answer }), "it is gone");
    assert_eq!(rig.shard.counters().closed_for("operator"), 1);
}

#[test]
fn whoever_asked_may_have_given_up() {
    let mut rig = Rig::new();
    let (answer, answered) = oneshot::channel();
    drop(answered);
    rig.mesh.try_command(0, Command::List { first: 0, answer }).unwrap();
    rig.turn();
}

#[test]
fn clients_that_were_told_longer_intervals_are_given_up_by_those_after_a_reload() {
    let mut rig = Rig::new();
    rig.link_up();
    let old = rig.session("old", "phone");
    rig.reload(|config| config.ping_interval_active = Duration::from_secs(3));
    rig.advance(Duration::from_secs(1));
    let new = rig.session("new", "phone");
    // 2 * 3 s + 5 s for the new one, 2 * 15 s + 5 s for the old.
    rig.advance(Duration::from_secs(12));
    assert!(!rig.is_open(new) && rig.is_open(old));
    rig.advance(Duration::from_secs(20));
    assert!(rig.is_open(old));
    rig.advance(Duration::from_secs(3));
    assert!(!rig.is_open(old));
}

#[test]
fn a_reload_changes_paths_and_sizes_for_those_who_come_and_those_who_are_here() {
    let mut rig = Rig::new();
    rig.link_up();
    let alice = rig.session("alice", "phone");
    rig.reload(|config| {
        config.client_path = "/elsewhere".into();
        config.payload_bytes_max = 10;
    });
    rig.says(alice, send("m1", "bob", &[0; 11]));
    assert_eq!(rig.gets(alice), [frame("nack m1 CODE_TOO_LARGE")]);
    let late = rig.accept();
    rig.receive(late, HEAD.as_bytes());
    assert_eq!(rig.gets(late), [Got::Http(404)]);
    // Longer than twice the payload and 8 KiB: its framing is refused.
    rig.says(alice, send("m2", "bob", &[0; 9000]));
    assert_eq!(rig.gets(alice), [Got::Close(1009)]);
}
