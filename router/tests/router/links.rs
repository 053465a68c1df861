//! Links that misbehave, end, come back, and replace each other's connections.

use hawser_proto::framing::FRAME_BYTES_MAX;
use hawser_proto::link::disconnect::Reason;
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{SnapshotEnd, Unregister};
use tempfile::TempDir;

use crate::harness::{Edge, Router, hello, message, register};

fn ended(mut edge: Edge) {
    while edge.try_hear().is_some() {}
}

#[test]
fn garbage_ends_its_link_and_no_other() {
    let folder = TempDir::new().unwrap();
    let mut router = Router::start(folder.path(), &[]);
    let mut good = router.edge("good", 1);
    let too_long = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
    let bad_batch = [&5_u32.to_le_bytes()[..], &[0xff; 5]].concat();
    for bytes in [&[0, 0, 0, 0][..], &too_long, &bad_batch] {
        let mut link = router.link();
        link.say_bytes(bytes);
        ended(link);
        let mut link = router.edge("bad", 1);
        link.say_bytes(bytes);
        ended(link);
    }
    let mut not_hello = router.link();
    not_hello.say(Inbound::SnapshotEnd(SnapshotEnd { shard: 0 }));
    ended(not_hello);
    let mut twice = router.edge("bad", 1);
    twice.say(Inbound::Hello(hello("bad", 1)));
    ended(twice);
    let mut shard = router.edge("bad", 1);
    shard.say(Inbound::SnapshotEnd(SnapshotEnd { shard: 1 }));
    ended(shard);
    assert_eq!(good.send(message(1, "alice", "bob", "m1", "hello")).failure, None);
    assert!(router.is_running());
}

#[test]
fn another_protocol_and_a_bad_hello_are_refused_with_a_sentence() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut newer = hello("edge-1", 1);
    newer.protocol = 2;
    let mut nameless = hello("", 1);
    nameless.edge_id = String::new();
    let mut shardless = hello("edge-1", 1);
    shardless.shards = 0;
    for (hello, says) in [(newer, "protocol 1"), (nameless, "edge id"), (shardless, "shards")] {
        let mut link = router.link();
        link.say(Inbound::Hello(hello));
        let Outbound::HelloAck(ack) = link.hear() else { panic!("no HelloAck") };
        assert!(ack.refused.contains(says), "{}", ack.refused);
        assert_eq!(link.try_hear(), None);
    }
}

#[test]
fn hello_is_answered_with_lease_window_and_the_same_epoch_for_all() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &["--lease", "7s", "--window", "9"]);
    let acks = [1, 2].map(|epoch| {
        let mut link = router.link();
        link.say(Inbound::Hello(hello("edge-1", epoch)));
        let Outbound::HelloAck(ack) = link.hear() else { panic!("no HelloAck") };
        ack
    });
    assert_eq!((acks[0].lease_ms, acks[0].window_messages, acks[0].protocol), (7_000, 9, 1));
    assert_eq!(acks[0].epoch, acks[1].epoch);
}

#[test]
fn a_newer_connection_of_a_device_replaces_the_older_on_another_edge() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut first = router.edge("edge-1", 1);
    let mut second = router.edge("edge-2", 1);
    first.register(register(5, "bob", "phone", None));
    first.register(register(6, "bob", "desk", None));
    second.register(register(5, "bob", "phone", None));
    let Outbound::Disconnect(disconnect) = first.hear() else { panic!("no Disconnect") };
    assert_eq!((disconnect.connection, disconnect.reason), (5, Reason::Replaced as i32));
    second.send(message(1, "alice", "bob", "m1", "hello"));
    assert_eq!(second.hear_deliver().connection, 5);
    assert_eq!(first.hear_deliver().connection, 6);
    // The edge says that the replaced one is gone; that must not hit the newer one.
    first.say(Inbound::Unregister(Unregister { connection: 5, user: "bob".to_owned() }));
    first.send(message(2, "alice", "bob", "m2", "hello"));
    assert_eq!(second.hear_deliver().sequence, 2);
}

#[test]
fn an_edge_that_comes_back_tells_its_connections_and_gets_what_is_unacknowledged() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 1);
    for (connection, user) in [(1, "bob"), (2, "carol")] {
        edge.register(register(connection, user, "phone", None));
    }
    edge.send(message(1, "alice", "bob", "m1", "hello"));
    assert_eq!(edge.hear_deliver().sequence, 1);
    drop(edge);
    let mut other = router.edge("edge-2", 1);
    other.send(message(2, "alice", "bob", "m2", "while it was away"));
    let mut edge = router.link();
    edge.say(Inbound::Hello(hello("edge-1", 1)));
    let mut again = register(1, "bob", "phone", Some(0));
    (again.snapshot, again.answer) = (true, false);
    edge.say_all([Inbound::Register(again), Inbound::SnapshotEnd(SnapshotEnd { shard: 0 })]);
    let Outbound::HelloAck(_) = edge.hear() else { panic!("no HelloAck") };
    assert_eq!([edge.hear_deliver().sequence, edge.hear_deliver().sequence], [1, 2]);
    router.wait_until("the connection that was not told again is gone", |router| {
        router.metric("router_connections") == 1
    });
}

#[test]
fn a_lease_that_ends_forgets_the_connections_and_a_silent_link_is_closed() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &["--lease", "500ms"]);
    let mut silent = router.edge("edge-1", 1);
    silent.register(register(1, "bob", "phone", None));
    assert_eq!(router.metric("router_connections"), 1);
    ended(silent);
    router.wait_until("forgotten", |router| router.metric("router_connections") == 0);
    let mut closing = router.edge("edge-2", 1);
    closing.register(register(1, "bob", "phone", None));
    drop(closing);
    router.wait_until("forgotten", |router| router.metric("router_connections") == 0);
}

#[test]
fn an_edge_that_was_started_anew_loses_its_old_connections_at_once() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &["--lease", "10min"]);
    let mut old = router.edge("edge-1", 1);
    old.register(register(1, "bob", "phone", None));
    let mut new = router.edge("edge-1", 2);
    ended(old);
    router.wait_until("forgotten", |router| router.metric("router_connections") == 0);
    assert_eq!(new.send(message(1, "alice", "bob", "m1", "hello")).failure, None);
}

#[test]
fn a_tcp_link_works_like_a_unix_one() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &["--listen", "127.0.0.1:0"]);
    let mut edge = router.tcp_edge("edge-1", 1);
    assert_eq!(edge.send(message(1, "alice", "bob", "m1", "hello")).failure, None);
}

#[test]
fn an_edge_that_starts_anew_has_its_thousands_of_connections_forgotten_and_nobody_else_is() {
    const CONNECTIONS: u64 = 10_000;
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &["--partitions", "4"]);
    let mut other = router.edge("other", 1);
    other.register(register(1, "bob", "phone", None));
    let all = || {
        (0..CONNECTIONS).map(|number| register(number, &format!("user {number}"), "phone", None))
    };
    let mut first = router.edge("edge-1", 1);
    first.say_all(all().map(Inbound::Register));
    let mut last = 0;
    for _ in 0..CONNECTIONS {
        last = last.max(first.hear_registered().connection);
    }
    assert_eq!((last, router.metric("router_connections")), (CONNECTIONS - 1, CONNECTIONS + 1));

    let mut second = router.edge("edge-1", 2);
    assert!(second.register(register(7, "user 7", "phone", None)).resumed);
    for number in 1..=20 {
        let sent = message(number, "alice", "bob", &number.to_string(), "hello");
        other.say(Inbound::Send(sent));
        let mut heard = [other.hear(), other.hear()];
        heard.sort_by_key(|message| matches!(message, Outbound::Deliver(_)));
        let [Outbound::SendAck(_), Outbound::Deliver(deliver)] = heard else { panic!("{heard:?}") };
        other.ack(1, "bob", deliver.sequence);
    }
    router.wait_until("the old connections are gone", |router| {
        router.metric("router_connections") == 2
    });
    second.send(message(1, "alice", "user 7", "m1", "still here"));
    assert_eq!(second.hear_deliver().connection, 7);

    // Everybody comes, and leaves in one moment.
    second.say_all(all().map(Inbound::Register));
    let leave = |number| Unregister { connection: number, user: format!("user {number}") };
    second.say_all((0..CONNECTIONS).map(|number| Inbound::Unregister(leave(number))));
    router.wait_until("they have left", |router| router.metric("router_connections") == 1);
    assert!(router.metric("router_devices_departed") >= CONNECTIONS - 1);
}
