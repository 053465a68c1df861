//! What every store promises, as tests that each runs.

use bytes::Bytes;

use super::{Accepted, Checkpoint, InboxChange, StatePlace, Store};
use crate::record::SendKey;

fn message(sequence: u64) -> (u64, Bytes) {
    (sequence, Bytes::from(format!("message {sequence}")))
}

fn checkpoint(partition: u16, user: &str, applied: u64) -> Checkpoint {
    Checkpoint {
        partition,
        applied,
        inboxes: vec![InboxChange {
            user: user.to_owned(),
            inbox: applied.to_be_bytes().to_vec(),
            added: Vec::new(),
            removed: 0..0,
        }],
        sends: Vec::new(),
        place: None,
    }
}

fn sequences(store: &dyn Store, partition: u16, user: &str) -> Vec<u64> {
    let found = store.messages(partition, user, 0..u64::MAX, usize::MAX).unwrap();
    found.into_iter().map(|(sequence, _)| sequence).collect()
}

/// Runs everything on an empty store.
pub(super) fn holds(store: &dyn Store) {
    nothing_is_there_at_first(store);
    a_checkpoint_is_read_back_and_users_are_kept_apart(store);
    users_are_listed_in_order_and_by_partition(store);
    pages_are_bounded_in_sequences_and_bytes(store);
    writing_a_checkpoint_again_does_no_harm(store);
    sends_are_remembered_for_a_day_at_least_and_two_at_most(store);
    a_dump_fills_another_partition_and_a_wiped_one_is_empty(store);
}

fn nothing_is_there_at_first(store: &dyn Store) {
    assert_eq!(store.applied(3), Ok(0));
    assert_eq!(store.inbox(3, "bob"), Ok(None));
    assert_eq!(sequences(store, 3, "bob"), [0u64; 0]);
    assert_eq!(store.send(3, &SendKey([0; 16]), 100), Ok(None));
}

fn a_checkpoint_is_read_back_and_users_are_kept_apart(store: &dyn Store) {
    // Ids where one is the start of the other, and partitions that differ in the higher byte.
    for (partition, user, count) in [(1, "bob", 5), (1, "bobby", 3), (256, "bob", 2), (1, "b", 1)] {
        let mut checkpoint = checkpoint(partition, user, 40 + count);
        checkpoint.inboxes[0].added = (1..=count).map(message).collect();
        store.commit(&checkpoint).unwrap();
    }
    assert_eq!(sequences(store, 1, "bob"), [1, 2, 3, 4, 5]);
    assert_eq!(sequences(store, 1, "bobby"), [1, 2, 3]);
    assert_eq!(sequences(store, 256, "bob"), [1, 2]);
    assert_eq!(sequences(store, 1, "b"), [1]);
    assert_eq!(sequences(store, 1, "bo"), [0u64; 0]);
    assert_eq!((store.applied(1), store.applied(256)), (Ok(41), Ok(42)));
    let inbox = store.inbox(256, "bob").unwrap().unwrap();
    assert_eq!(inbox, Bytes::copy_from_slice(&42_u64.to_be_bytes()));
}

fn users_are_listed_in_order_and_by_partition(store: &dyn Store) {
    assert_eq!(store.users_after(1, "", 9).unwrap(), ["b", "bob", "bobby"]);
    assert_eq!(store.users_after(1, "b", 1).unwrap(), ["bob"]);
    assert_eq!(store.users_after(1, "bobby", 9).unwrap(), [""; 0]);
    assert_eq!(store.users_after(256, "", 9).unwrap(), ["bob"]);
}

fn pages_are_bounded_in_sequences_and_bytes(store: &dyn Store) {
    let page = store.messages(1, "bob", 2..4, usize::MAX).unwrap();
    assert_eq!(page, [message(2), message(3)]);
    assert_eq!(store.messages(1, "bob", 2..9, 1).unwrap(), [message(2)]);
    assert_eq!(store.messages(1, "bob", 6..9, 1).unwrap(), []);
}

fn writing_a_checkpoint_again_does_no_harm(store: &dyn Store) {
    let mut again = checkpoint(1, "bob", 50);
    again.inboxes[0].added = vec![message(6)];
    again.inboxes[0].removed = 1..4;
    for _ in 0..2 {
        store.commit(&again).unwrap();
        assert_eq!(sequences(store, 1, "bob"), [4, 5, 6]);
        assert_eq!(store.applied(1), Ok(50));
    }
}

fn sends_are_remembered_for_a_day_at_least_and_two_at_most(store: &dyn Store) {
    let accepted =
        |day: i64| Accepted { message_id: day as u64, accepted_at_ms: day * super::DAY_MS + 5 };
    let mut checkpoint = checkpoint(1, "bob", 51);
    checkpoint.sends = [100, 101].map(|day| (SendKey([day as u8; 16]), accepted(day))).to_vec();
    store.commit(&checkpoint).unwrap();
    let known = |day: u8, today| store.send(1, &SendKey([day; 16]), today).unwrap();
    assert_eq!(store.send(2, &SendKey([100; 16]), 100), Ok(None));
    assert_eq!(known(100, 100), Some(accepted(100)));
    assert_eq!(known(100, 101), Some(accepted(100)));
    assert_eq!(known(101, 101), Some(accepted(101)));
    store.forget_sends(101).unwrap();
    assert_eq!(known(100, 101), Some(accepted(100)));
    store.forget_sends(102).unwrap();
    assert_eq!(known(100, 101), None);
    assert_eq!(known(101, 102), Some(accepted(101)));
    assert_eq!(known(101, 103), None);
}

fn a_dump_fills_another_partition_and_a_wiped_one_is_empty(store: &dyn Store) {
    let place = Some(StatePlace { offset: 9, epoch: 4, seed: 3 });
    let mut parts = Vec::new();
    let mut note = |part| {
        parts.push(part);
        Ok(())
    };
    store.dump(1, 20, &mut note).unwrap();
    assert!(parts.len() > 3, "{} parts", parts.len());
    for part in parts {
        let (inboxes, sends) = (part.inboxes, part.sends);
        store.commit(&Checkpoint { partition: 7, applied: 51, inboxes, sends, place }).unwrap();
    }
    assert_eq!((store.place(7), store.seed(7)), (Ok(place), 3));
    for user in store.users_after(1, "", 9).unwrap() {
        assert_eq!(store.inbox(7, &user), store.inbox(1, &user));
        assert_eq!(sequences(store, 7, &user), sequences(store, 1, &user));
    }
    assert!(store.send(7, &SendKey([101; 16]), 102).unwrap().is_some());
    store.wipe(1).unwrap();
    assert_eq!((store.applied(1), store.place(1)), (Ok(0), Ok(None)));
    assert_eq!(store.users_after(1, "", 9).unwrap(), [""; 0]);
    assert_eq!(sequences(store, 1, "bob"), [0u64; 0]);
    assert_eq!(store.send(1, &SendKey([101; 16]), 102), Ok(None));
    assert_eq!(sequences(store, 256, "bob"), [1, 2]);
    assert_eq!(store.applied(7), Ok(51));
}
