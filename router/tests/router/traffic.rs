//! Messages, receipts and signals between connected clients.

use hawser_proto::client::{error, receipt};
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{Ack, Signal};
use tempfile::TempDir;

use crate::harness::{Router, message, register};

#[test]
fn a_message_is_acknowledged_delivered_and_its_receipt_comes_back() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 1);
    edge.register(register(1, "alice", "phone", None));
    let registered = edge.register(register(2, "bob", "phone", None));
    assert_eq!((registered.cursor, registered.resumed), (0, true));

    let ack = edge.send(message(7, "alice", "bob", "m1", "hello"));
    assert_eq!(ack.failure, None);
    let deliver = edge.hear_deliver();
    assert_eq!((deliver.connection, deliver.sequence), (2, 1));
    assert_eq!((deliver.message_id, &*deliver.payload), (ack.message_id, &b"hello"[..]));
    assert_eq!((deliver.from.as_str(), deliver.time_ms), ("alice", ack.time_ms));

    let (user, sequence) = ("bob".to_owned(), 1);
    edge.say(Inbound::Ack(Ack { connection: 2, user, sequence, read_sequence: Some(1) }));
    for kind in [receipt::Kind::Delivered, receipt::Kind::Read] {
        let Outbound::Receipt(receipt) = edge.hear() else { panic!("no receipt") };
        assert_eq!((receipt.connection, receipt.kind), (1, kind as u32));
        assert_eq!((receipt.user.as_str(), receipt.message_ids), ("bob", vec![ack.message_id]));
    }
    assert_eq!(router.get("/healthz").0, 200);
    assert_eq!(router.metric("router_sends_accepted_total"), 1);
    assert_eq!(router.metric("router_connections"), 2);
}

#[test]
fn a_repeated_send_gets_the_same_id_and_is_delivered_once() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 1);
    let first = edge.send(message(1, "alice", "bob", "m1", "hello"));
    let second = edge.send(message(2, "alice", "bob", "m1", "hello"));
    assert_eq!((first.message_id, first.time_ms), (second.message_id, second.time_ms));
    let other = edge.send(message(3, "alice", "bob", "m2", "again"));
    assert_ne!(other.message_id, first.message_id);
    edge.register(register(2, "bob", "phone", None));
    assert_eq!([edge.hear_deliver().sequence, edge.hear_deliver().sequence], [1, 2]);
    edge.send(message(4, "alice", "carol", "m1", "another inbox"));
}

#[test]
fn a_send_to_a_group_or_with_bad_fields_is_refused_and_not_retryable() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 1);
    let mut to_group = message(1, "alice", "", "m1", "hello");
    to_group.to_group = "everybody".to_owned();
    let long = "x".repeat(65);
    let refused = [
        (to_group, error::Code::Unsupported),
        (message(2, "alice", "", "m1", "x"), error::Code::InvalidArgument),
        (message(3, "alice", &long, "m1", "x"), error::Code::InvalidArgument),
        (message(4, "alice", "bob", "", "x"), error::Code::InvalidArgument),
        (message(5, "", "bob", "m1", "x"), error::Code::InvalidArgument),
    ];
    for (send, code) in refused {
        let ack = edge.send(send);
        let failure = ack.failure.unwrap();
        assert_eq!((failure.code, failure.retryable), (code as u32, false), "{failure:?}");
        assert_eq!(ack.message_id, 0);
    }
}

#[test]
fn a_signal_reaches_the_live_connections_and_is_dropped_otherwise() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 1);
    let signal = |to: &str| {
        Inbound::Signal(Signal {
            connection: 1,
            from: "alice".to_owned(),
            to: to.to_owned(),
            kind: "typing".to_owned(),
            payload: "…".into(),
        })
    };
    edge.register(register(2, "bob", "phone", None));
    edge.register(register(3, "bob", "desk", None));
    edge.say(signal("carol"));
    edge.say(signal("bob"));
    let mut heard: Vec<_> = (0..2)
        .map(|_| match edge.hear() {
            Outbound::Signal(signal) => (signal.connection, signal.kind),
            other => panic!("{other:?}"),
        })
        .collect();
    heard.sort();
    assert_eq!(heard, [(2, "typing".to_owned()), (3, "typing".to_owned())]);
    router.wait_until("the other is dropped", |router| {
        router.metric("router_signals_dropped_total") == 1
    });
}

#[test]
fn many_messages_through_two_edges_arrive_in_order_within_the_window() {
    const MESSAGES: u64 = 2_000;
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &["--window", "16", "--owners", "3"]);
    let mut sending = router.edge("edge-1", 1);
    let mut receiving = router.edge("edge-2", 1);
    receiving.register(register(2, "bob", "phone", None));
    let sends =
        (1..=MESSAGES).map(|n| Inbound::Send(message(n, "alice", "bob", &n.to_string(), "text")));
    sending.say_all(sends);
    let mut acked = 0;
    for sequence in 1..=MESSAGES {
        let deliver = receiving.hear_deliver();
        assert_eq!(deliver.sequence, sequence);
        assert!(sequence <= acked + 16, "{sequence} came with {acked} acknowledged");
        if sequence == acked + 16 || sequence == MESSAGES {
            acked = sequence;
            receiving.ack(2, "bob", acked);
        }
    }
    for ticket in 1..=MESSAGES {
        let ack = sending.hear_send_ack();
        assert_eq!((ack.ticket, ack.failure), (ticket, None));
    }
}
