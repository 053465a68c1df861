//! Counts what registered, idle connections take in memory. A binary of its own: it counts every allocation.

use std::sync::Arc;

use allocation_counter::measure;
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{Ack, Register, Send, Unregister};
use hawser_router::hub::{Effects, Event, Hub, HubConfig, Now};
use hawser_router::limits;
use hawser_router::registry::{EdgeId, Session};
use hawser_router::store::Store;
use hawser_router::store::memory::MemoryStore;

/// Of a registered idle connection, everything counted.
const CONNECTION_BYTES_MAX: i64 = 200;
const CONNECTIONS: u64 = 50_000;
const EDGE: EdgeId = EdgeId(0);
const SESSION: Session = Session(1);
/// What an allocator adds to what it is asked for: glibc 8 bytes, rounded up to 16.
const ALLOCATION_OVERHEAD_BYTES: i64 = 16;

/// A partition whose log and store work at once.
struct World {
    hub: Hub,
    store: Arc<MemoryStore>,
    now: Now,
    offset: u64,
    heard: u64,
    effects: Effects,
}

impl World {
    fn new(store: Arc<MemoryStore>) -> Self {
        let config = HubConfig {
            window_messages: 64,
            inbox_messages_max: 10_000,
            inbox_age_max_ms: i64::MAX,
            memory_bytes_max: 64 * 1024 * 1024,
            record_bytes_max: usize::MAX,
            trace_steps_max: 0,
            tells_registry: false,
        };
        let hub = Hub::new(0, config, Arc::clone(&store) as Arc<dyn Store>);
        let hub = hub.expect("a store in memory can be read");
        let now = Now { mono_ms: 1_000, unix_ms: 1_000_000_000 };
        let offset = hub.applied();
        let mut world = Self { hub, store, now, offset, heard: 0, effects: Effects::default() };
        world.apply(Event::EdgeUp(EDGE, SESSION));
        world
    }

    fn apply(&mut self, event: Event) {
        self.hub.apply(self.now, event, &mut self.effects);
        while !self.effects.append.is_empty() {
            for _ in 0..std::mem::take(&mut self.effects.append).len() {
                self.offset += 1;
                self.hub.apply(self.now, Event::Committed(self.offset), &mut self.effects);
            }
        }
        if let Some(checkpoint) = self.effects.checkpoint.take() {
            let result = self.store.commit(&checkpoint);
            self.hub.apply(self.now, Event::Saved(result), &mut self.effects);
        }
        let is_registered = |message: &&(_, Outbound)| matches!(message.1, Outbound::Registered(_));
        self.heard += self.effects.outbound.iter().filter(is_registered).count() as u64;
        self.effects = Effects::default();
    }

    fn link(&mut self, message: Inbound) {
        self.apply(Event::Link { edge: EDGE, session: SESSION, message });
    }

    fn register_all(&mut self) {
        for number in 0..CONNECTIONS {
            self.link(Inbound::Register(Register {
                connection: number,
                user: user(number),
                device: device(number),
                cursor: None,
                connected_at_ms: self.now.unix_ms,
                client_kind: "hawser-app".to_owned(),
                client_version: format!("1.{}", number % 20),
                answer: true,
                snapshot: false,
            }));
        }
    }

    fn unregister_all(&mut self) {
        for connection in 0..CONNECTIONS {
            let unregister = Unregister { connection, user: user(connection) };
            self.link(Inbound::Unregister(unregister));
        }
    }

    fn deliver_to_all(&mut self) {
        for connection in 0..CONNECTIONS {
            self.link(Inbound::Send(Send {
                connection: 1,
                ticket: connection,
                from: "alice".to_owned(),
                client_message_id: connection.to_string(),
                to_user: user(connection),
                payload: b"hello".as_slice().into(),
                ..Send::default()
            }));
            let user = user(connection);
            self.link(Inbound::Ack(Ack { connection, user, sequence: 1, read_sequence: None }));
        }
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now.mono_ms += 100;
            self.now.unix_ms += 100;
            self.apply(Event::Tick);
        }
    }
}

/// As long as a UUID.
fn user(number: u64) -> String {
    format!("{number:036}")
}

fn device(number: u64) -> String {
    format!("phone-{number:016x}")
}

/// Bytes a connection that a Hub gives back when it is dropped, with what the allocator adds.
fn bytes_each(hub: Hub) -> i64 {
    let freed = measure(|| drop(hub));
    (-freed.bytes_current - freed.count_current * ALLOCATION_OVERHEAD_BYTES) / CONNECTIONS as i64
}

fn check_budget(hub: Hub) {
    assert_eq!((hub.connections() as u64, hub.inboxes()), (CONNECTIONS, 0));
    let bytes = bytes_each(hub);
    println!("{bytes} bytes a connection");
    assert!((100..=CONNECTION_BYTES_MAX).contains(&bytes), "{bytes} bytes a connection");
}

#[test]
fn a_connection_of_a_user_who_never_got_a_message_is_within_its_budget() {
    let mut world = World::new(Arc::default());
    world.register_all();
    assert_eq!(world.heard, CONNECTIONS);
    check_budget(world.hub);
}

#[test]
fn a_connection_of_a_user_who_has_acknowledged_all_is_within_its_budget_also_after_a_restart() {
    let mut world = World::new(Arc::default());
    world.register_all();
    world.deliver_to_all();
    // The cursors of one partition get into the log at a bounded rate.
    let flushed_ms = CONNECTIONS * limits::CURSOR_FLUSH_MS / limits::CURSORS_PER_APPEND_MAX as u64;
    world.pass(flushed_ms + 2 * limits::INBOX_IDLE_MS);
    check_budget(world.hub);
    let mut world = World::new(world.store);
    world.register_all();
    assert_eq!(world.heard, CONNECTIONS);
    check_budget(world.hub);
}

#[test]
fn when_everybody_leaves_the_memory_comes_back() {
    let mut world = World::new(Arc::default());
    world.register_all();
    world.unregister_all();
    assert_eq!(world.hub.connections(), 0);
    world.pass(2 * limits::UNRECORDED_MS as u64);
    assert_eq!((world.hub.departed(), world.hub.inboxes()), (0, 0));
    assert_eq!(bytes_each(world.hub), 0);
}
