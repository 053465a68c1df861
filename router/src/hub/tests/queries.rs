//! Questions to a Hub.

use hawser_proto::client::error::Code;
use hawser_proto::link::disconnect::Reason;
use hawser_proto::link::query::Kind as Asked;
use hawser_proto::link::query_answer::Kind as Answered;
use hawser_proto::link::trace_step::Kind as Step;
use hawser_proto::link::{
    DisconnectQuery, Disconnected, Failure, InboxQuery, InboxState, Online, OnlineQuery, Query,
    Trace, TraceQuery,
};

use super::*;

impl World {
    fn ask(&mut self, user: &str, kind: Asked) -> Answered {
        let query = Query { ticket: 9, user: user.to_owned(), kind: Some(kind) };
        self.link(Inbound::Query(query));
        let answer = self.answers.pop().unwrap();
        assert!(self.answers.is_empty() && answer.ticket == 9);
        answer.kind.unwrap()
    }

    fn inbox(&mut self, user: &str) -> InboxState {
        match self.ask(user, Asked::Inbox(InboxQuery {})) {
            Answered::Inbox(state) => state,
            other => panic!("{other:?}"),
        }
    }

    fn online(&mut self, user: &str) -> Online {
        match self.ask(user, Asked::Online(OnlineQuery { devices: true })) {
            Answered::Online(online) => online,
            other => panic!("{other:?}"),
        }
    }

    fn trace(&mut self, user: &str, message_id: u64) -> Result<Trace, Failure> {
        match self.ask(user, Asked::Trace(TraceQuery { message_id })) {
            Answered::Trace(trace) => Ok(trace),
            Answered::Failure(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }
}

fn steps(trace: &Trace) -> Vec<(Step, &str, i64)> {
    trace.steps.iter().map(|step| (step.kind(), step.device.as_str(), step.at_ms)).collect()
}

#[test]
fn a_trace_has_its_times_while_it_is_remembered_and_the_inbox_tells_the_rest() {
    let mut world = World::new();
    world.send("bob", 1);
    world.commit(9);
    world.pass(5);
    world.register(2, "bob", None);
    world.pass(5);
    let start = world.now.unix_ms - 10;
    let message_id = world.send_acks()[0].1.unwrap();
    let trace = world.trace("", message_id).unwrap();
    assert_eq!((trace.user.as_str(), trace.sequence, trace.accepted_at_ms), ("bob", 1, start));
    assert_eq!(steps(&trace), [(Step::Delivered, "device-2", start + 5)]);
    world.register(3, "bob", None);
    world.ack(2, "bob", 1);
    let trace = world.trace("bob", message_id).unwrap();
    let expected = [
        (Step::Delivered, "device-2", start + 5),
        (Step::Delivered, "device-3", start + 10),
        (Step::Acknowledged, "device-2", start + 10),
    ];
    assert_eq!((steps(&trace), trace.held), (expected.to_vec(), true));
    assert_eq!(world.trace("alice", message_id).unwrap_err().code, Code::NotFound as u32);

    // Twelve steps of others, and it has left the journal.
    for id in 0..12 {
        world.send("carol", id);
    }
    world.commit(99);
    assert_eq!(world.trace("", message_id).unwrap_err().code, Code::NotFound as u32);
    let trace = world.trace("bob", message_id).unwrap();
    let expected = [(Step::Acknowledged, "device-2", 0), (Step::Delivered, "device-3", 0)];
    assert_eq!((steps(&trace), trace.held), (expected.to_vec(), true));
    world.ack(3, "bob", 1);
    assert_eq!(world.trace("bob", message_id).unwrap_err().code, Code::NotFound as u32);
}

#[test]
fn a_message_that_only_the_store_has_is_found_and_one_that_nobody_has_is_not() {
    let mut world = World::new();
    for id in 1..=15 {
        world.send("bob", id);
    }
    world.commit(99);
    let ids: Vec<u64> = world.send_acks().into_iter().map(|(_, id)| id.unwrap()).collect();
    world.save();
    world.crash();
    assert_eq!(world.hub.inboxes(), 0);
    for (sequence, message_id) in (1..).zip(&ids) {
        assert_eq!(world.trace("bob", *message_id).unwrap().sequence, sequence);
    }
    let (first, last) = (ids[0], ids[14]);
    for message_id in [first - 1, last + 1, first | 5 << 48, 0, u64::MAX] {
        assert_eq!(world.trace("bob", message_id).unwrap_err().code, Code::NotFound as u32);
    }
    assert_eq!(world.hub.inboxes(), 0, "a question brings nothing into memory");
}

#[test]
fn an_inbox_is_told_from_memory_and_from_the_store_alike() {
    let mut world = World::new();
    assert_eq!(world.inbox("bob"), InboxState { floor: 1, next: 1, devices: Vec::new() });
    world.register(2, "bob", None);
    for id in 1..=6 {
        world.send("bob", id);
    }
    world.commit(99);
    world.ack(2, "bob", 1);
    let state = world.inbox("bob");
    assert_eq!((state.floor, state.next, state.devices.len()), (2, 7, 1));
    let device = &state.devices[0];
    assert_eq!((device.cursor, device.in_flight, device.connected), (1, 4, true));
    world.save();
    world.crash();
    let stored = world.inbox("bob");
    assert_eq!((stored.floor, stored.next), (2, 7));
    let device = &stored.devices[0];
    assert_eq!((device.cursor, device.in_flight, device.connected), (1, 0, false));
}

#[test]
fn who_is_online_is_told_with_the_device_that_only_the_registry_knows() {
    let mut world = World::new();
    assert_eq!(world.online("bob"), Online::default());
    world.register(2, "bob", None);
    let online = world.online("bob");
    assert_eq!(
        (online.connections[0].device.as_str(), online.connections[0].connection),
        ("device-2", 2)
    );
    assert_eq!((online.devices.len(), online.devices[0].connected), (1, true));
    world.link(Inbound::Unregister(Unregister { connection: 2, user: "bob".to_owned() }));
    let online = world.online("bob");
    assert_eq!((online.connections.len(), online.devices[0].connected), (0, false));
    assert_eq!(online.devices[0].seen_at_ms, world.now.unix_ms);
}

#[test]
fn an_operator_closes_one_device_or_all_that_are_live() {
    let mut world = World::new();
    world.register(2, "bob", None);
    world.register(3, "bob", None);
    world.take();
    let disconnect =
        |device: &str| Asked::Disconnect(DisconnectQuery { device: device.to_owned(), reason: 0 });
    let told = |world: &mut World| -> Vec<u64> {
        let told = |message| match message {
            Outbound::Disconnect(it) => (it.reason() == Reason::Operator).then_some(it.connection),
            other => panic!("{other:?}"),
        };
        world.take().into_iter().filter_map(told).collect()
    };
    let answered = |connections| Answered::Disconnected(Disconnected { connections });
    assert_eq!(world.ask("bob", disconnect("device-3")), answered(1));
    assert_eq!(told(&mut world), [3]);
    assert_eq!(world.ask("bob", disconnect("")), answered(2));
    assert_eq!(told(&mut world).len(), 2);
    assert_eq!(world.ask("carol", disconnect("")), answered(0));
    world.apply(Event::EdgeDown(EDGE, SESSION));
    world.apply(Event::EdgeUp(EDGE, Session(2)));
    world.apply(Event::Link {
        edge: EDGE,
        session: Session(2),
        message: Inbound::Query(Query {
            ticket: 1,
            user: "bob".into(),
            kind: Some(disconnect("")),
        }),
    });
    assert_eq!(world.answers.pop().unwrap().kind, Some(answered(0)), "suspended ones hear nothing");
}

#[test]
fn a_question_that_is_wrong_is_refused() {
    let mut world = World::new();
    for (user, kind, code) in [
        ("", Some(Asked::Inbox(InboxQuery {})), Code::InvalidArgument),
        (&*"x".repeat(65), Some(Asked::Inbox(InboxQuery {})), Code::InvalidArgument),
        ("bob", None, Code::Unsupported),
    ] {
        world.link(Inbound::Query(Query { ticket: 1, user: user.to_owned(), kind }));
        let answer = world.answers.pop().unwrap().kind;
        let Some(Answered::Failure(failure)) = answer else { panic!("{answer:?}") };
        assert_eq!((failure.code, failure.retryable), (code as u32, false));
    }
}
