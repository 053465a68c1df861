//! Devices, cursors, windows and gaps.

use hawser_proto::client::gap;
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{Gap, Sync};
use tempfile::TempDir;

use crate::harness::{Edge, Router, message, register};

fn send_many(edge: &mut Edge, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let ack = edge.send(message(number, "alice", "bob", &number.to_string(), "text"));
        assert_eq!(ack.failure, None);
    }
}

fn hear_gap(edge: &mut Edge) -> (u64, u64, gap::Reason) {
    match edge.hear() {
        Outbound::Gap(Gap { first_sequence, last_sequence, reason, .. }) => {
            (first_sequence, last_sequence, gap::Reason::try_from(reason as i32).unwrap())
        }
        other => panic!("wanted Gap, got {other:?}"),
    }
}

#[test]
fn each_device_has_its_own_cursor_and_a_message_stays_until_both_have_it() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut sending = router.edge("edge-1", 1);
    let mut phone = router.edge("edge-2", 1);
    let mut desk = router.edge("edge-3", 1);
    phone.register(register(1, "bob", "phone", None));
    desk.register(register(1, "bob", "desk", None));
    send_many(&mut sending, 0..3);
    for sequence in 1..=3 {
        assert_eq!(phone.hear_deliver().sequence, sequence);
        assert_eq!(desk.hear_deliver().sequence, sequence);
    }
    phone.ack(1, "bob", 3);
    router.wait_until("the phone's acknowledgement", |router| {
        router.metric("router_acknowledged_total") == 1
    });
    desk.say(Inbound::Register(register(2, "bob", "desk", None)));
    let Outbound::Disconnect(replaced) = desk.hear() else { panic!("no Disconnect") };
    assert_eq!(replaced.connection, 1);
    let registered = desk.hear_registered();
    assert_eq!((registered.cursor, registered.resumed), (0, true));
    for sequence in 1..=3 {
        let deliver = desk.hear_deliver();
        assert_eq!((deliver.connection, deliver.sequence), (2, sequence));
    }
}

#[test]
fn the_window_opens_with_acknowledgements_and_sync_goes_back() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &["--window", "2"]);
    let mut edge = router.edge("edge-1", 1);
    send_many(&mut edge, 0..5);
    edge.register(register(1, "bob", "phone", None));
    assert_eq!([edge.hear_deliver().sequence, edge.hear_deliver().sequence], [1, 2]);
    edge.ack(1, "bob", 1);
    assert_eq!(edge.hear_deliver().sequence, 3);
    edge.say(Inbound::Sync(Sync { connection: 1, user: "bob".to_owned(), after_sequence: 0 }));
    assert_eq!([edge.hear_deliver().sequence, edge.hear_deliver().sequence], [2, 3]);
    // Acknowledging what was not sent counts as far as it was.
    edge.ack(1, "bob", 99);
    assert_eq!([edge.hear_deliver().sequence, edge.hear_deliver().sequence], [4, 5]);
}

#[test]
fn the_bytes_window_lets_one_large_message_out_at_a_time() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 1);
    let large = "x".repeat(300 * 1024);
    for number in 0..3 {
        edge.send(message(number, "alice", "bob", &number.to_string(), &large));
    }
    edge.register(register(1, "bob", "phone", None));
    for sequence in 1..=3 {
        assert_eq!(edge.hear_deliver().sequence, sequence);
        // An answer that comes before the next Deliver shows that none was on its way.
        let registered = edge.register(register(9, "carol", "phone", None));
        assert_eq!(registered.failure, None);
        edge.ack(1, "bob", sequence);
    }
}

#[test]
fn over_its_bound_an_inbox_loses_the_oldest_and_says_so() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &["--inbox-messages-max", "10", "--window", "4"]);
    let mut edge = router.edge("edge-1", 1);
    send_many(&mut edge, 0..25);
    let registered = edge.register(register(1, "bob", "phone", Some(3)));
    assert_eq!((registered.cursor, registered.resumed), (3, false));
    assert_eq!(hear_gap(&mut edge), (4, 15, gap::Reason::InboxFull));
    for sequence in 16..=19 {
        assert_eq!(edge.hear_deliver().sequence, sequence);
    }
    // While it is connected, and has not taken anything: the gap stands where the messages would.
    let mut other = router.edge("edge-2", 1);
    send_many(&mut other, 25..50);
    edge.ack(1, "bob", 19);
    assert_eq!(hear_gap(&mut edge), (20, 40, gap::Reason::InboxFull));
    assert_eq!(edge.hear_deliver().sequence, 41);
}

#[test]
fn expired_messages_are_told_as_one_gap_in_their_place() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 1);
    for (number, expires_at_ms) in [(0, 0), (1, 1), (2, 1), (3, 0)] {
        let mut send = message(number, "alice", "bob", &number.to_string(), "text");
        send.expires_at_ms = expires_at_ms;
        edge.send(send);
    }
    edge.register(register(1, "bob", "phone", None));
    assert_eq!(edge.hear_deliver().sequence, 1);
    assert_eq!(hear_gap(&mut edge), (2, 3, gap::Reason::Expired));
    assert_eq!(edge.hear_deliver().sequence, 4);
}

#[test]
fn a_cursor_ahead_of_the_inbox_is_moved_back_and_one_behind_gets_a_gap() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 1);
    let registered = edge.register(register(1, "bob", "phone", Some(77)));
    assert_eq!((registered.cursor, registered.resumed), (0, false));
    send_many(&mut edge, 0..1);
}

#[test]
fn a_device_that_lost_its_state_is_told_what_is_not_held_any_more() {
    let folder = TempDir::new().unwrap();
    let router = Router::start(folder.path(), &[]);
    let mut edge = router.edge("edge-1", 1);
    send_many(&mut edge, 0..4);
    edge.register(register(1, "bob", "phone", None));
    for sequence in 1..=4 {
        assert_eq!(edge.hear_deliver().sequence, sequence);
    }
    edge.ack(1, "bob", 3);
    let registered = edge.register(register(1, "bob", "phone", Some(1)));
    assert_eq!((registered.cursor, registered.resumed), (1, false));
    assert_eq!(hear_gap(&mut edge), (2, 3, gap::Reason::NotHeld));
    assert_eq!(edge.hear_deliver().sequence, 4);
}
