//! What a router knows after it was stopped or killed.

use hawser_proto::link::edge_message::Message as Inbound;
use tempfile::TempDir;

use crate::harness::{Edge, Router, message, register};

fn sequences(edge: &mut Edge, count: usize) -> Vec<u64> {
    (0..count).map(|_| edge.hear_deliver().sequence).collect()
}

#[test]
fn cursors_sequences_and_repetitions_survive_stop_and_kill() {
    let folder = TempDir::new().unwrap();
    let mut ids = Vec::new();
    for round in 0..4_u64 {
        let mut router = Router::start(folder.path(), &[]);
        let mut edge = router.edge("edge-1", round);
        let registered = edge.register(register(2, "bob", "phone", None));
        assert_eq!((registered.cursor, registered.resumed), (round, true), "round {round}");
        for (number, id) in ids.iter().enumerate() {
            let repeated = edge.send(message(1, "alice", "bob", &format!("m{number}"), "again"));
            assert_eq!(repeated.message_id, *id);
        }
        let ack = edge.send(message(2, "alice", "bob", &format!("m{round}"), "hello"));
        ids.push(ack.message_id);
        assert_eq!(edge.hear_deliver().sequence, round + 1);
        edge.ack(2, "bob", round + 1);
        router.wait_until("the cursor is in the log", |router| {
            router.metric("router_acknowledged_total") == 1
                && router.metric("router_cursors_logged_total") >= 1
        });
        if round % 2 == 0 {
            assert!(router.terminate().success());
        } else {
            router.kill();
        }
    }
}

#[test]
fn every_acknowledged_message_survives_a_kill_in_the_middle_of_appends() {
    let folder = TempDir::new().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..5_u64 {
        let mut router = Router::start(folder.path(), &[]);
        let mut edge = router.edge("edge-1", round);
        for chunk in 0..40_u64 {
            let sends = (0..50_u64).map(|n| {
                let ticket = round * 10_000 + chunk * 50 + n;
                Inbound::Send(message(ticket, "alice", "bob", &ticket.to_string(), "text"))
            });
            edge.say_all(sends);
        }
        let wanted = 200 * (round as usize + 1);
        let mut heard = 0;
        while heard < wanted {
            let ack = edge.hear_send_ack();
            assert_eq!(ack.failure, None);
            acknowledged.push((ack.ticket, ack.message_id));
            heard += 1;
        }
        router.kill();
        while let Some(hawser_proto::link::router_message::Message::SendAck(ack)) = edge.try_hear()
        {
            acknowledged.push((ack.ticket, ack.message_id));
        }
    }
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 99);
    for (ticket, message_id) in acknowledged.iter().step_by(37) {
        let again = edge.send(message(*ticket, "alice", "bob", &ticket.to_string(), "text"));
        assert_eq!(again.message_id, *message_id);
    }
    edge.register(register(2, "bob", "phone", None));
    let mut delivered = Vec::new();
    let mut sequence = 0;
    while delivered.last() != acknowledged.last().map(|(_, id)| id) {
        let deliver = edge.hear_deliver();
        sequence += 1;
        assert_eq!(deliver.sequence, sequence);
        delivered.push(deliver.message_id);
        if sequence % 64 == 0 {
            edge.ack(2, "bob", sequence);
        }
    }
    let missing: Vec<_> =
        acknowledged.iter().filter(|(_, id)| delivered.binary_search(id).is_err()).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(delivered.is_sorted_by(|one, other| one < other));
}

#[test]
fn undelivered_messages_come_from_the_store_after_a_checkpoint() {
    let folder = TempDir::new().unwrap();
    let mut router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 1);
    for number in 0..150 {
        edge.send(message(number, "alice", "bob", &number.to_string(), "text"));
    }
    assert!(router.terminate().success());
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 2);
    edge.send(message(1, "alice", "bob", "one more", "text"));
    edge.register(register(2, "bob", "phone", None));
    assert_eq!(sequences(&mut edge, 64), (1..=64).collect::<Vec<_>>());
    edge.ack(2, "bob", 64);
    assert_eq!(sequences(&mut edge, 64), (65..=128).collect::<Vec<_>>());
    edge.ack(2, "bob", 128);
    assert_eq!(sequences(&mut edge, 23), (129..=151).collect::<Vec<_>>());
}
