//! A Hub on a queue and a store in memory, on a clock that the test turns.

use hawser_proto::client::gap;
use hawser_proto::link::{Ack, Register, Registered, Send, Unregister};

use super::*;
use crate::limits;
use crate::queue::memory::MemoryLog;
use crate::queue::{Batch, Opener as _, Queue};
use crate::store::memory::MemoryStore;

mod queries;

const EDGE: EdgeId = EdgeId(0);
const SESSION: Session = Session(1);

/// One partition with everything around it.
struct World {
    now: Now,
    hub: Hub,
    log: MemoryLog,
    store: Arc<MemoryStore>,
    /// Records handed out and not appended yet.
    unwritten: VecDeque<Bytes>,
    heard: Vec<Outbound>,
    answers: Vec<QueryAnswer>,
    receipts: Vec<Receipt>,
    checkpoints: VecDeque<Checkpoint>,
}

fn config() -> HubConfig {
    HubConfig {
        window_messages: 4,
        inbox_messages_max: 20,
        inbox_age_max_ms: 1_000_000,
        memory_bytes_max: 1_000_000,
        record_bytes_max: usize::MAX,
        trace_steps_max: 12,
        tells_registry: false,
    }
}

impl World {
    fn new() -> Self {
        let (log, store) = (MemoryLog::new(1), Arc::new(MemoryStore::default()));
        let hub = Hub::new(0, config(), Arc::clone(&store) as Arc<dyn Store>).unwrap();
        let mut world = Self {
            now: Now { mono_ms: 1_000, unix_ms: 1_000_000 },
            hub,
            log,
            store,
            unwritten: VecDeque::new(),
            heard: Vec::new(),
            answers: Vec::new(),
            receipts: Vec::new(),
            checkpoints: VecDeque::new(),
        };
        world.apply(Event::EdgeUp(EDGE, SESSION));
        world
    }

    fn apply(&mut self, event: Event) {
        let mut effects = Effects::default();
        self.hub.apply(self.now, event, &mut effects);
        self.unwritten.extend(effects.append);
        self.heard.extend(effects.outbound.into_iter().map(|(_, message)| message));
        self.answers.extend(effects.answers.into_iter().map(|(_, answer)| answer));
        self.receipts.extend(effects.receipts);
        self.checkpoints.extend(effects.checkpoint);
        if let Some(below) = effects.trim_below {
            self.log.trim(&[(0, below)]).unwrap();
        }
    }

    fn link(&mut self, message: Inbound) {
        self.apply(Event::Link { edge: EDGE, session: SESSION, message });
    }

    fn send(&mut self, to: &str, id: u64) {
        self.link(Inbound::Send(Send {
            connection: 1,
            ticket: id,
            from: "alice".to_owned(),
            client_message_id: id.to_string(),
            to_user: to.to_owned(),
            payload: Bytes::from(format!("payload {id}")),
            ..Send::default()
        }));
    }

    fn register(&mut self, connection: u64, user: &str, cursor: Option<u64>) {
        self.link(Inbound::Register(Register {
            connection,
            user: user.to_owned(),
            device: format!("device-{connection}"),
            cursor,
            connected_at_ms: self.now.unix_ms,
            answer: true,
            ..Register::default()
        }));
    }

    fn ack(&mut self, connection: u64, user: &str, sequence: u64) {
        let user = user.to_owned();
        self.link(Inbound::Ack(Ack { connection, user, sequence, read_sequence: None }));
    }

    /// Appends what was handed out, all that there is or the first `count`.
    fn commit(&mut self, count: usize) {
        for _ in 0..count.min(self.unwritten.len()) {
            let bytes = self.unwritten.pop_front().unwrap();
            let mut offsets = Vec::new();
            let batch = Batch { records: vec![(0, bytes)], durable: true };
            self.log.append(&batch, &mut offsets).unwrap();
            self.apply(Event::Committed(offsets[0]));
        }
    }

    /// The append of the oldest record fails; `is_in_log` says whether it got there all the same.
    fn refuse(&mut self, is_in_log: bool) {
        let bytes = self.unwritten.pop_front().unwrap();
        if is_in_log {
            let batch = Batch { records: vec![(0, bytes)], durable: true };
            self.log.append(&batch, &mut Vec::new()).unwrap();
        }
        self.apply(Event::Refused("the test says so".into()));
    }

    /// What the committer does when it opened the queue again.
    fn catch_up(&mut self) {
        let mut found = Vec::new();
        self.log.read(0, self.hub.applied() + 1, usize::MAX, &mut found).unwrap();
        for record in found {
            self.apply(Event::Replayed(record.offset, record.bytes));
        }
    }

    fn pass(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms as i64;
        self.apply(Event::Tick);
    }

    /// Until a checkpoint begins that takes along what only the registry knew so far.
    fn pass_until_recorded(&mut self) {
        self.pass(limits::UNRECORDED_MS as u64);
        self.pass(limits::CHECKPOINT_INTERVAL_MS);
    }

    /// Begins a checkpoint and writes it.
    fn save(&mut self) {
        self.apply(Event::Save);
        self.write_checkpoints();
    }

    fn write_checkpoints(&mut self) {
        while let Some(checkpoint) = self.checkpoints.pop_front() {
            let result = self.store.commit(&checkpoint);
            self.apply(Event::Saved(result));
        }
    }

    /// The process is killed and started again; what the log has not got is gone.
    fn crash(&mut self) {
        self.unwritten.clear();
        self.checkpoints.clear();
        self.heard.clear();
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        self.hub = Hub::new(0, config(), store).unwrap();
        self.log = {
            let mut log = self.log.clone();
            drop(log.open().unwrap());
            log
        };
        self.catch_up();
        assert!(self.heard.is_empty());
        self.apply(Event::EdgeUp(EDGE, SESSION));
    }

    fn take(&mut self) -> Vec<Outbound> {
        std::mem::take(&mut self.heard)
    }

    fn delivered(&mut self) -> Vec<(u64, u64)> {
        let deliver = |message| match message {
            Outbound::Deliver(deliver) => Some((deliver.connection, deliver.sequence)),
            _ => None,
        };
        self.take().into_iter().filter_map(deliver).collect()
    }

    /// Device 3 acknowledges bob's message; what device 2 gets then, which has nothing yet.
    fn delivered_after_another_took_it(&mut self) -> Vec<(u64, u64)> {
        self.ack(3, "bob", 1);
        self.take();
        self.register(2, "bob", Some(0));
        self.delivered()
    }

    /// The answer to a registration, when that is all there is to hear.
    fn registered(&mut self) -> Registered {
        let mut heard = self.take();
        match (heard.pop(), heard.is_empty()) {
            (Some(Outbound::Registered(registered)), true) => registered,
            (last, _) => panic!("{heard:?} {last:?}"),
        }
    }

    fn send_acks(&mut self) -> Vec<(u64, Option<u64>)> {
        let ack = |message| match message {
            Outbound::SendAck(ack) => {
                Some((ack.ticket, ack.failure.is_none().then_some(ack.message_id)))
            }
            _ => None,
        };
        self.take().into_iter().filter_map(ack).collect()
    }
}

#[test]
fn a_client_that_is_ahead_is_refused_until_the_log_has_shown_that_no_other_owner_was_there() {
    let mut world = World::new();
    world.hub.epoch = 5;
    let failed = |world: &mut World| world.registered().failure.is_some_and(|f| f.retryable);
    world.register(1, "bob", Some(3));
    assert!(failed(&mut world));
    world.register(1, "bob", Some(3));
    assert!(failed(&mut world), "the proof is on its way");
    world.refuse(false);
    world.register(1, "bob", Some(3));
    assert!(failed(&mut world), "the proof has failed, and there is another");
    world.commit(usize::MAX);
    world.register(1, "bob", Some(4));
    assert!(failed(&mut world), "what stood in the log by then says nothing of what comes later");
    world.commit(usize::MAX);
    world.register(1, "bob", Some(4));
    let told = world.registered();
    assert!(told.failure.is_none() && !told.resumed, "the log has lost messages: {told:?}");
}

#[test]
fn nothing_is_acknowledged_or_delivered_before_it_is_durable() {
    let mut world = World::new();
    world.register(2, "bob", None);
    world.take();
    world.send("bob", 1);
    assert!(world.take().is_empty());
    world.commit(9);
    let heard = world.take();
    assert!(matches!(heard[0], Outbound::SendAck(_)), "{heard:?}");
    assert!(matches!(heard[1], Outbound::Deliver(_)), "{heard:?}");
}

#[test]
fn a_repetition_in_flight_is_answered_with_the_first_and_a_later_one_at_once() {
    let mut world = World::new();
    world.send("bob", 1);
    world.send("bob", 1);
    assert_eq!(world.unwritten.len(), 1);
    world.commit(9);
    let acks = world.send_acks();
    assert_eq!(acks, [(1, Some(1)), (1, Some(1))]);
    world.send("bob", 1);
    assert_eq!(world.send_acks(), [(1, Some(1))]);
    world.save();
    world.send("bob", 1);
    assert_eq!(world.send_acks(), [(1, Some(1))]);
    assert!(world.unwritten.is_empty());
}

#[test]
fn waiters_of_one_message_are_bounded() {
    let mut world = World::new();
    for _ in 0..limits::WAITERS_MAX + 5 {
        world.send("bob", 1);
    }
    world.commit(9);
    assert_eq!(world.send_acks().len(), limits::WAITERS_MAX);
}

#[test]
fn a_refused_send_that_is_in_the_log_counts_once_when_it_is_sent_again() {
    for sent_before_catching_up in [false, true] {
        let mut world = World::new();
        world.register(2, "bob", None);
        world.save();
        world.take();
        world.send("bob", 1);
        world.refuse(true);
        assert_eq!(world.send_acks(), [(1, None)]);
        if sent_before_catching_up {
            world.send("bob", 1);
            world.catch_up();
            world.commit(9);
        } else {
            world.catch_up();
            world.send("bob", 1);
            assert!(world.unwritten.is_empty());
        }
        let heard = world.take();
        let count = |kind: fn(&Outbound) -> bool| heard.iter().filter(|m| kind(m)).count();
        assert_eq!(count(|message| matches!(message, Outbound::Deliver(_))), 1, "{heard:?}");
        assert_eq!(count(|message| matches!(message, Outbound::SendAck(_))), 1, "{heard:?}");
        world.send("bob", 2);
        world.commit(9);
        assert_eq!(world.delivered(), [(2, 2)]);
    }
}

#[test]
fn a_repetition_in_the_log_is_found_when_a_checkpoint_stands_between_the_two() {
    let mut world = World::new();
    world.register(2, "bob", None);
    world.save();
    world.send("bob", 1);
    world.refuse(true);
    world.send("bob", 1);
    world.catch_up();
    world.save();
    world.take();
    world.commit(9);
    assert!(world.delivered().is_empty());
    assert_eq!(world.log.end(0), 3);
    world.crash();
    world.register(2, "bob", Some(0));
    assert_eq!(world.delivered(), [(2, 1)]);
}

#[test]
fn a_refused_send_that_is_not_in_the_log_is_stored_when_it_is_sent_again() {
    let mut world = World::new();
    world.send("bob", 1);
    world.refuse(false);
    world.catch_up();
    world.send("bob", 1);
    world.commit(9);
    assert_eq!(world.send_acks(), [(1, None), (1, Some(1))]);
}

#[test]
fn a_delivered_message_never_reaches_the_store() {
    let mut world = World::new();
    world.register(2, "bob", None);
    world.send("bob", 1);
    world.commit(9);
    world.ack(2, "bob", 1);
    world.save();
    assert_eq!(world.store.messages_held(), 0);
    world.send("bob", 2);
    world.commit(9);
    world.save();
    assert_eq!(world.store.messages_held(), 1);
    world.ack(2, "bob", 2);
    world.save();
    assert_eq!(world.store.messages_held(), 0);
}

#[test]
fn cursors_get_into_the_log_after_a_second_and_only_those_that_moved() {
    let mut world = World::new();
    world.register(2, "bob", None);
    world.pass(2_000);
    world.commit(9);
    world.send("bob", 1);
    world.commit(9);
    world.ack(2, "bob", 1);
    world.pass(500);
    assert!(world.unwritten.is_empty());
    world.pass(limits::CURSOR_FLUSH_MS);
    assert_eq!(world.unwritten.len(), 1);
    world.commit(9);
    world.pass(limits::CURSOR_FLUSH_MS);
    assert!(world.unwritten.is_empty());
    world.crash();
    world.register(2, "bob", None);
    let heard = world.take();
    let Outbound::Registered(registered) = &heard[0] else { panic!("{heard:?}") };
    assert_eq!((registered.cursor, registered.resumed, heard.len()), (1, true, 1));
}

#[test]
fn a_refused_cursor_is_tried_again() {
    let mut world = World::new();
    world.register(2, "bob", None);
    world.send("bob", 1);
    world.commit(9);
    world.ack(2, "bob", 1);
    world.pass(limits::CURSOR_FLUSH_MS);
    assert_eq!(world.unwritten.len(), 1);
    world.refuse(false);
    world.pass(limits::CURSOR_FLUSH_MS);
    assert_eq!(world.unwritten.len(), 1);
}

#[test]
fn a_device_that_was_welcomed_keeps_its_messages_when_another_comes_first_after_a_crash() {
    for device_is_refused in [false, true] {
        let mut world = World::new();
        world.register(2, "bob", None);
        world.register(3, "bob", None);
        if device_is_refused {
            world.refuse(false);
            world.refuse(false);
        }
        world.send("bob", 1);
        world.commit(9);
        world.crash();
        world.register(3, "bob", Some(0));
        assert_eq!(
            world.delivered_after_another_took_it(),
            [(2, 1)],
            "refused: {device_is_refused}"
        );
    }
}

#[test]
fn a_first_device_that_was_welcomed_costs_no_write_before_a_message_comes() {
    let mut world = World::new();
    world.register(2, "bob", None);
    let registered = world.registered();
    assert_eq!((registered.cursor, registered.resumed), (0, true));
    for _ in 0..3 {
        world.pass(limits::CHECKPOINT_INTERVAL_MS);
    }
    assert_eq!((world.unwritten.len(), world.checkpoints.len(), world.hub.inboxes()), (0, 0, 0));
    world.send("bob", 1);
    assert_eq!(world.unwritten.len(), 2, "the device stands in front of the message");
    world.commit(9);
    world.crash();
    world.register(3, "bob", Some(0));
    assert_eq!(world.delivered_after_another_took_it(), [(2, 1)]);
}

#[test]
fn a_first_device_that_leaves_keeps_what_comes_for_it() {
    for (is_saved, crashes) in [(false, false), (true, false), (true, true)] {
        let mut world = World::new();
        world.register(2, "bob", None);
        world.link(Inbound::Unregister(Unregister { connection: 2, user: "bob".to_owned() }));
        assert_eq!(world.hub.connections(), 0);
        if is_saved {
            world.pass_until_recorded();
            world.write_checkpoints();
            assert_eq!(world.hub.registry.departed(), 0);
        }
        if crashes {
            world.crash();
        }
        world.register(3, "bob", None);
        world.send("bob", 1);
        world.commit(9);
        assert_eq!(
            world.delivered_after_another_took_it(),
            [(2, 1)],
            "saved: {is_saved}, crashes: {crashes}"
        );
    }
}

#[test]
fn a_first_device_that_stays_is_recorded_in_time() {
    let mut world = World::new();
    world.register(2, "bob", None);
    world.pass_until_recorded();
    // While it is written, and when that fails, nothing is forgotten.
    assert_eq!(world.checkpoints.len(), 1);
    world.store.set_refuses(true);
    world.write_checkpoints();
    world.store.set_refuses(false);
    assert!(world.hub.registry.unrecorded("bob").is_some());
    world.pass(limits::CHECKPOINT_RETRY_MS);
    world.write_checkpoints();
    assert_eq!(world.hub.registry.unrecorded("bob"), None);
    assert_eq!(world.hub.inboxes(), 0);
    world.crash();
    world.register(3, "bob", None);
    world.send("bob", 1);
    world.commit(9);
    assert_eq!(world.delivered_after_another_took_it(), [(2, 1)]);
}

#[test]
fn a_message_and_a_second_device_while_the_first_is_being_recorded_lose_nothing() {
    for second_first in [false, true] {
        let mut world = World::new();
        world.register(2, "bob", None);
        world.pass_until_recorded();
        assert_eq!(world.checkpoints.len(), 1);
        if second_first {
            world.register(3, "bob", None);
        }
        world.send("bob", 1);
        world.commit(9);
        world.write_checkpoints();
        world.register(3, "bob", Some(0));
        world.ack(3, "bob", 1);
        world.save();
        world.crash();
        world.register(2, "bob", Some(0));
        assert_eq!(world.delivered(), [(2, 1)], "second first: {second_first}");
    }
}

#[test]
fn a_client_that_is_ahead_of_an_inbox_that_never_was_is_told() {
    let mut world = World::new();
    world.register(2, "bob", Some(7));
    let registered = world.registered();
    assert_eq!((registered.cursor, registered.resumed), (0, false));
}

#[test]
fn a_known_device_without_messages_leaves_nothing_in_memory() {
    let mut world = World::new();
    world.register(2, "bob", None);
    world.send("bob", 1);
    world.commit(9);
    world.ack(2, "bob", 1);
    world.save();
    world.crash();
    world.register(2, "bob", Some(1));
    let registered = world.registered();
    assert_eq!((registered.cursor, registered.resumed, world.hub.inboxes()), (1, true, 0));
    world.send("bob", 2);
    world.commit(9);
    assert_eq!(world.delivered(), [(2, 2)]);
}

#[test]
fn what_an_edge_had_goes_in_steps_and_deliveries_go_on_between() {
    const CONNECTIONS: u64 = 20_000;
    let mut world = World::new();
    world.apply(Event::EdgeUp(EdgeId(1), SESSION));
    for number in 0..CONNECTIONS {
        let user = format!("user {number}");
        let device = "phone".to_owned();
        let register = Register { connection: number, user, device, ..Register::default() };
        let message = Inbound::Register(register);
        world.apply(Event::Link { edge: EdgeId(1), session: SESSION, message });
    }
    world.register(1, "bob", None);
    world.apply(Event::EdgeGone(EdgeId(1), SESSION));
    let mut steps = 1;
    while world.hub.has_work() && steps < CONNECTIONS {
        let before = world.hub.connections();
        world.take();
        world.send("bob", steps);
        world.send(&format!("user {steps}"), steps);
        world.commit(9);
        assert_eq!(world.delivered(), [(1, steps)]);
        world.ack(1, "bob", steps);
        world.apply(Event::GoOn);
        assert!(before - world.hub.connections() <= limits::SWEEP_SLOTS);
        steps += 1;
    }
    assert_eq!(steps - 1, (CONNECTIONS + 1).div_ceil(limits::SWEEP_SLOTS as u64));
    assert_eq!(world.hub.connections(), 1);
    // The devices had not been recorded; that follows, in bounded checkpoints, and then nothing is left.
    let mut checkpoints = 0;
    world.pass_until_recorded();
    while world.hub.registry.departed() > 0 {
        let written: usize = world.checkpoints.iter().map(|c| c.inboxes.len()).sum();
        assert!(written <= 2_000, "{written}");
        world.write_checkpoints();
        world.pass(limits::CHECKPOINT_INTERVAL_MS);
        checkpoints += 1;
        assert!(checkpoints < 100, "{} left", world.hub.registry.departed());
    }
}

#[test]
fn those_who_left_wait_in_the_place_of_those_who_were_there_and_no_more_of_them_wait() {
    const CONNECTIONS: u64 = 1_000;
    let mut world = World::new();
    for number in 0..CONNECTIONS {
        world.register(number, &format!("user {number}"), None);
    }
    world.pass(100);
    let taken = |world: &World| world.hub.connections() + world.hub.registry.departed();
    // For every one who leaves a newcomer comes: they would be 60,000 before the first is due by the clock.
    for number in CONNECTIONS..20 * CONNECTIONS {
        let (connection, user) = (number - CONNECTIONS, format!("user {}", number - CONNECTIONS));
        world.link(Inbound::Unregister(Unregister { connection, user }));
        world.register(number, &format!("user {number}"), None);
        if number % 100 == 0 {
            world.pass(100);
            world.write_checkpoints();
            let places = CONNECTIONS as usize * 33 / 32 + limits::DEPARTED_MIN;
            let of_an_interval = limits::DEPARTED_INTERVAL_MS as usize + 200;
            assert!(taken(&world) <= places + of_an_interval, "{}", taken(&world));
        }
    }
    let before = world.hub.registry.departed();
    // All leave at once, and nobody comes: they wait for their minute.
    for number in 19 * CONNECTIONS..20 * CONNECTIONS {
        let user = format!("user {number}");
        world.link(Inbound::Unregister(Unregister { connection: number, user }));
    }
    world.pass(limits::UNRECORDED_MS as u64 / 2);
    world.write_checkpoints();
    let departed = world.hub.registry.departed();
    assert!(
        (CONNECTIONS as usize..before + CONNECTIONS as usize).contains(&departed),
        "{departed}"
    );
}

#[test]
fn an_acknowledgement_of_what_an_earlier_session_delivered_counts() {
    let mut world = World::new();
    for id in 0..3 {
        world.send("bob", id);
    }
    world.commit(9);
    world.save();
    world.crash();
    world.send("bob", 9);
    world.commit(9);
    world.store.set_refuses(true);
    // The three are only in the store: nothing can be delivered yet, and the device has them already.
    world.register(2, "bob", Some(0));
    world.ack(2, "bob", 3);
    world.store.set_refuses(false);
    world.pass(100);
    assert_eq!(world.delivered(), [(2, 4)]);
}

#[test]
fn a_snapshot_whose_inbox_cannot_be_read_is_told_so_the_client_comes_back() {
    let mut world = World::new();
    world.store.set_refuses(true);
    world.link(Inbound::Register(Register {
        connection: 2,
        user: "bob".to_owned(),
        device: "phone".to_owned(),
        snapshot: true,
        ..Register::default()
    }));
    let registered = world.registered();
    assert!(registered.failure.as_ref().is_some_and(|failure| failure.retryable));
}

#[test]
fn a_failed_checkpoint_loses_nothing_and_is_repeated() {
    let mut world = World::new();
    world.send("bob", 1);
    world.commit(9);
    world.apply(Event::Save);
    world.send("bob", 2);
    world.commit(9);
    world.store.set_refuses(true);
    world.write_checkpoints();
    world.store.set_refuses(false);
    assert_eq!(world.log.end(0), 3);
    world.pass(limits::CHECKPOINT_RETRY_MS);
    world.write_checkpoints();
    assert_eq!(world.store.messages_held(), 2);
    world.crash();
    world.send("bob", 1);
    assert_eq!(world.send_acks(), [(1, Some(1))]);
    world.register(2, "bob", None);
    assert_eq!(world.delivered(), [(2, 1), (2, 2)]);
}

#[test]
fn a_store_that_cannot_be_read_refuses_sends_and_stalls_replayed_records_until_it_can() {
    let mut world = World::new();
    world.send("bob", 1);
    world.refuse(true);
    world.take();
    // A new Hub knows nobody; the record in the log has to wait for bob's inbox.
    world.hub = Hub::new(0, config(), Arc::clone(&world.store) as Arc<dyn Store>).unwrap();
    world.apply(Event::EdgeUp(EDGE, SESSION));
    world.store.set_refuses(true);
    world.catch_up();
    assert!(world.hub.is_stalled());
    world.send("carol", 2);
    let acks = world.send_acks();
    assert_eq!(acks, [(2, None)]);
    world.store.set_refuses(false);
    world.pass(100);
    assert!(!world.hub.is_stalled());
    world.register(2, "bob", None);
    assert_eq!(world.delivered(), [(2, 1)]);
}

#[test]
fn a_delivery_that_needs_the_store_goes_on_when_it_can_be_read() {
    let mut world = World::new();
    for id in 0..3 {
        world.send("bob", id);
    }
    world.commit(9);
    world.save();
    world.register(2, "bob", None);
    assert_eq!(world.delivered().len(), 3);
    world.crash();
    world.send("bob", 9);
    world.commit(9);
    world.take();
    world.store.set_refuses(true);
    world.register(2, "bob", None);
    assert!(world.delivered().is_empty());
    world.store.set_refuses(false);
    world.pass(100);
    assert_eq!(world.delivered(), [(2, 1), (2, 2), (2, 3), (2, 4)]);
}

#[test]
fn memory_that_is_short_is_given_back_and_what_is_needed_is_read_again() {
    let mut world = World::new();
    world.hub.config.memory_bytes_max = 100;
    world.register(2, "bob", None);
    for id in 0..20 {
        world.send("bob", id);
    }
    world.commit(99);
    world.pass(100);
    world.write_checkpoints();
    let held: usize = world.hub.users.values().map(Inbox::recent_bytes).sum();
    assert!(held < 4_000, "{held} bytes");
    world.take();
    for acked in [4, 8, 12, 16] {
        world.ack(2, "bob", acked);
        let sequences: Vec<_> = world.delivered().into_iter().map(|(_, s)| s).collect();
        assert_eq!(sequences, (acked + 1..=acked + 4).collect::<Vec<_>>());
    }
}

#[test]
fn an_idle_inbox_leaves_memory_and_comes_back_with_its_connection() {
    let mut world = World::new();
    world.register(2, "bob", None);
    world.send("bob", 1);
    world.commit(9);
    world.ack(2, "bob", 1);
    world.pass(limits::CURSOR_FLUSH_MS);
    world.commit(9);
    world.save();
    world.pass(limits::INBOX_IDLE_MS);
    world.save();
    assert_eq!(world.hub.inboxes(), 0);
    assert_eq!(world.hub.connections(), 1);
    world.take();
    world.send("bob", 2);
    world.commit(9);
    assert_eq!(world.delivered(), [(2, 2)]);
}

#[test]
fn messages_over_the_age_bound_leave_the_store_although_their_user_never_comes() {
    let mut world = World::new();
    for number in 0..limits::SWEEP_INBOXES as u64 + 3 {
        world.send(&format!("user {number}"), number);
    }
    world.commit(99);
    world.save();
    let held = world.store.messages_held();
    world.pass(config().inbox_age_max_ms as u64);
    for _ in 0..4 {
        world.save();
    }
    assert_eq!((held, world.store.messages_held()), (limits::SWEEP_INBOXES + 3, 0));
    world.take();
    world.register(2, "user 1", None);
    world.register(3, "user 2", Some(0));
    let heard = world.take();
    let Outbound::Registered(new) = &heard[0] else { panic!("{heard:?}") };
    assert_eq!((new.cursor, new.resumed), (1, true));
    let Outbound::Registered(known) = &heard[1] else { panic!("{heard:?}") };
    assert_eq!((known.cursor, known.resumed), (0, false));
    let Outbound::Gap(told) = &heard[2] else { panic!("{heard:?}") };
    assert_eq!((told.last_sequence, told.reason), (1, gap::Reason::Expired as u32));
}

#[test]
fn sends_are_refused_when_the_store_takes_no_checkpoints_and_memory_is_full() {
    let mut world = World::new();
    world.hub.config.memory_bytes_max = 500;
    world.store.set_refuses(false);
    let mut accepted = 0;
    let refused = loop {
        world.register(2, "bob", None);
        world.send("bob", accepted);
        world.commit(9);
        world.store.set_refuses(true);
        world.pass(100);
        world.write_checkpoints();
        world.store.set_refuses(false);
        match world.send_acks()[..] {
            [(_, Some(_))] => accepted += 1,
            [(id, None)] => break id,
            ref other => panic!("{other:?}"),
        }
        assert!(accepted < 1_000, "memory is not bounded");
    };
    world.pass(limits::CHECKPOINT_RETRY_MS);
    world.write_checkpoints();
    world.send("bob", refused);
    world.commit(9);
    assert!(matches!(world.send_acks()[..], [(_, Some(_))]));
}

#[test]
fn receipts_go_to_the_partition_of_the_sender_in_bounded_batches() {
    let mut world = World::new();
    world.register(2, "bob", None);
    for id in 0..4 {
        world.send("bob", id);
    }
    world.commit(9);
    world.ack(2, "bob", 3);
    assert_eq!(world.receipts.len(), 1);
    assert_eq!((&*world.receipts[0].to, world.receipts[0].message_ids.len()), ("alice", 3));
    world.register(1, "alice", None);
    world.take();
    let receipt = world.receipts.remove(0);
    world.apply(Event::Receipt(receipt));
    let heard = world.take();
    assert!(matches!(&heard[..], [Outbound::Receipt(receipt)] if receipt.connection == 1));
}

#[test]
fn a_message_of_an_old_session_is_not_heard() {
    let mut world = World::new();
    world.apply(Event::EdgeUp(EDGE, Session(2)));
    world.register(2, "bob", None);
    world.send("bob", 1);
    assert!(world.take().is_empty() && world.unwritten.is_empty());
}

#[test]
fn a_record_that_cannot_be_read_is_counted_and_passed_over() {
    let mut world = World::new();
    let batch = Batch { records: vec![(0, Bytes::from_static(&[0xff]))], durable: true };
    world.log.append(&batch, &mut Vec::new()).unwrap();
    world.catch_up();
    assert_eq!(world.hub.applied(), 1);
}

fn is_of_connection(message: &Outbound, number: u64) -> bool {
    match message {
        Outbound::Deliver(deliver) => deliver.connection == number,
        Outbound::Registered(registered) => registered.connection == number,
        Outbound::Gap(gap) => gap.connection == number,
        _ => false,
    }
}

/// Random sends, acknowledgements, failures, checkpoints and crashes; a client that keeps its own cursor
/// must see every acknowledged message once, in order, or a gap in its place.
fn survive(seed: u64, steps: usize) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut world = World::new();
    let mut sent: u64 = 0;
    let mut acknowledged: Vec<u64> = Vec::new();
    let mut seen: Vec<u64> = Vec::new();
    let mut cursor = 0;
    let mut gaps = 0;
    world.register(2, "bob", Some(0));
    for _ in 0..steps {
        match random.u32(0..100) {
            0..40 => {
                // Now and then a message is sent again, as an edge does.
                let again = sent > 0 && random.u32(0..4) == 0;
                let id = if again { random.u64(sent.saturating_sub(9)..sent) } else { sent };
                sent += u64::from(!again);
                world.send("bob", id);
            }
            40..65 => {
                // The committer tells what it found in the log before it appends again.
                world.catch_up();
                world.commit(random.usize(0..4));
            }
            65..70 if !world.unwritten.is_empty() => {
                world.refuse(random.bool());
            }
            70..85 => world.ack(2, "bob", cursor),
            85..90 => world.pass(random.u64(0..1_500)),
            90..93 => world.apply(Event::Save),
            93..96 => {
                world.store.set_refuses(random.u32(0..3) == 0);
                world.write_checkpoints();
                world.store.set_refuses(false);
            }
            96 => {
                world.crash();
                world.register(2, "bob", Some(cursor));
            }
            97 => {
                // Away, and back before anything else or after the other device has taken some.
                let user = "bob".to_owned();
                world.link(Inbound::Unregister(Unregister { connection: 2, user }));
                if random.bool() {
                    world.register(3, "bob", None);
                    world.catch_up();
                    world.commit(random.usize(0..4));
                    world.ack(3, "bob", u64::MAX);
                    world.heard.retain(|message| !is_of_connection(message, 3));
                    let user = "bob".to_owned();
                    world.link(Inbound::Unregister(Unregister { connection: 3, user }));
                }
                world.register(2, "bob", Some(cursor));
            }
            98 => {
                world.register(3, "bob", None);
                world.ack(3, "bob", u64::MAX);
            }
            _ => world.register(2, "bob", Some(cursor)),
        }
        world.heard.retain(|message| !is_of_connection(message, 3));
        for message in world.take() {
            match message {
                Outbound::Deliver(deliver) if deliver.sequence <= cursor => {}
                Outbound::Deliver(deliver) => {
                    assert_eq!(deliver.sequence, cursor + 1, "seed {seed}");
                    cursor = deliver.sequence;
                    seen.push(deliver.message_id);
                }
                Outbound::Gap(told) => {
                    assert_eq!(told.reason, gap::Reason::InboxFull as u32, "seed {seed}: {told:?}");
                    assert!(told.first_sequence <= cursor + 1, "seed {seed}");
                    if told.last_sequence > cursor {
                        gaps += told.last_sequence - cursor;
                        cursor = told.last_sequence;
                    }
                }
                Outbound::Registered(registered) => {
                    assert_eq!(registered.cursor, cursor, "seed {seed}");
                }
                Outbound::SendAck(ack) if ack.failure.is_none() => {
                    acknowledged.push(ack.message_id);
                }
                _ => {}
            }
        }
    }
    assert!(seen.is_sorted_by(|one, other| one < other), "seed {seed}: delivered out of order");
    acknowledged.sort_unstable();
    acknowledged.dedup();
    let reached = seen.last().copied().unwrap_or(0);
    let missing =
        acknowledged.iter().filter(|id| **id <= reached && seen.binary_search(id).is_err()).count()
            as u64;
    assert!(missing <= gaps, "seed {seed}: {missing} acknowledged messages missing, {gaps} told");
}

#[test]
fn any_order_of_failures_checkpoints_and_crashes_loses_nothing() {
    let base = std::env::var("HAWSER_SEED").ok().and_then(|seed| seed.parse().ok());
    let (first, seeds) = base.map_or((fastrand::u64(..), 300), |seed| (seed, 1));
    for seed in (0..seeds).map(|n| first.wrapping_add(n)) {
        survive(seed, 400);
    }
}
