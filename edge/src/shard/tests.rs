//! A shard by itself: clients speak bytes, the router speaks parcels, the test turns the clock.

mod admission;
mod commands;
mod routers;
mod secure;

mod deflate;

use std::time::Duration;

use hawser_proto::client::error::Code;
use hawser_proto::framing;
use hawser_proto::view::client::{Ack, ClientFrame, Connect, Deliver, Ping, Send, ServerFrame};
use hawser_proto::view::link::{self, EdgeMessage, RouterMessage};

use super::*;
use crate::command::Command;
use crate::drain::Order;
use crate::mesh::{LANE_PARCELS_MAX, LinkGeneration, Mesh, Parcel};
use crate::routes::{Claim, EVERYBODY, RouterIndex};
use crate::timer::TICK;
use crate::ws::{Item, Opcode, Role};

/// The router of most tests, and the other one.
const A: RouterIndex = RouterIndex(0);

const HEAD: &str = "GET /ws HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: hawser.v1.proto\r\n\r\n";

/// One shard, its lane, and the sockets of its clients.
struct Rig {
    shard: Shard,
    mesh: Mesh,
    now: Now,
    /// By router, the generation of its link.
    links: [u32; 2],
    sockets: u32,
    /// Output of the shard that nobody has looked at.
    outputs: Vec<Output>,
}

/// What a client has received.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Http(u16),
    Frame(String),
    Close(u16),
}

impl Rig {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::given(Given::default(), change)
    }

    fn given(given: Given, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        change(&mut config);
        let now = Now { tick: Tick(0), unix_ms: 1_000_000 };
        let shard = Shard::new(0, Arc::new(config), Share::SMALL, given, now);
        let mesh = Mesh::new(1).unwrap();
        Self { shard, mesh, now, links: [0; 2], sockets: 0, outputs: Vec::new() }
    }

    fn advance(&mut self, by: Duration) {
        let end = self.now.tick.after(by);
        while self.now.tick < end {
            self.now.tick.0 += 1;
            self.now.unix_ms += TICK.as_millis() as i64;
            self.shard.handle_timeout(self.now);
        }
        self.turn();
    }

    fn turn(&mut self) {
        self.shard.exchange(self.now, &self.mesh);
        while let Some(output) = self.shard.poll_output() {
            self.outputs.push(output);
        }
    }

    /// The link to a router that owns everybody.
    fn link_up(&mut self) {
        self.links_up(A, 0);
        self.owns(A, &EVERYBODY);
    }

    fn links_up(&mut self, router: RouterIndex, partitions: u16) {
        self.links[router.at()] += 1;
        let link = self.link_of(router);
        self.router_hands(Parcel::LinkUp { router, link, window_messages: 64, partitions });
    }

    /// A router says all that it owns.
    fn owns(&mut self, router: RouterIndex, claims: &[Claim]) {
        let (link, claims) = (self.link_of(router), claims.into());
        self.router_hands(Parcel::Owned { router, link, claims });
    }

    fn link_of(&self, router: RouterIndex) -> LinkGeneration {
        LinkGeneration(self.links[router.at()])
    }

    fn link_down(&mut self) {
        self.router_hands(Parcel::LinkDown { router: A });
    }

    fn router_says(&mut self, message: RouterMessage<'_>) {
        self.says_from(A, message);
    }

    fn says_from(&mut self, router: RouterIndex, message: RouterMessage<'_>) {
        let mut batch = Vec::new();
        message.write(&mut batch);
        self.router_hands(Parcel::Messages(router, batch));
    }

    fn router_hands(&mut self, parcel: Parcel) {
        self.mesh.try_send_down(0, parcel).unwrap();
        self.turn();
    }

    /// What the router hears, as text, since the last time.
    fn router_hears(&mut self) -> Vec<String> {
        self.hears(A)
    }

    /// What one of several routers hears; the others have to hear nothing.
    fn hears(&mut self, router: RouterIndex) -> Vec<String> {
        let heard = self.routers_hear();
        assert!(heard.iter().all(|(other, _)| *other == router), "{heard:?}");
        heard.into_iter().map(|(_, text)| text).collect()
    }

    fn routers_hear(&mut self) -> Vec<(RouterIndex, String)> {
        self.turn();
        let mut heard = Vec::new();
        while let Some(batch) = self.mesh.take_up(0) {
            assert_eq!(batch.link, self.link_of(batch.router));
            let body = framing::first_frame(&batch.frame).unwrap().unwrap();
            let mut messages = link::Batch::new(body);
            while let Some(message) = messages.next_message().unwrap() {
                let text = match EdgeMessage::read(message).unwrap() {
                    EdgeMessage::Register(r) => format!(
                        "register {} {} {:?}{}{}",
                        r.user,
                        r.device,
                        r.cursor,
                        if r.answer { " answer" } else { "" },
                        if r.snapshot { " snapshot" } else { "" },
                    ),
                    EdgeMessage::SnapshotEnd(_) => "snapshot end".into(),
                    EdgeMessage::Unregister(u) => format!("unregister {}", u.user),
                    EdgeMessage::Send(s) => format!(
                        "send {} {}>{} {}",
                        s.ticket, s.from, s.to_user, s.client_message_id
                    ),
                    EdgeMessage::Ack(a) => format!("ack {} {}", a.user, a.sequence),
                    other => format!("{other:?}"),
                };
                heard.push((batch.router, text));
            }
            self.mesh.give_buffer(0, batch.frame);
        }
        heard
    }

    fn accept(&mut self) -> ConnKey {
        let socket = self.sockets;
        self.sockets += 1;
        self.shard.apply(self.now, Event::Accepted { socket, peer: Peer::default() });
        self.turn();
        self.outputs
            .iter()
            .find_map(|output| match output {
                Output::Receive { key, socket: s } if *s == socket => Some(*key),
                _ => None,
            })
            .unwrap()
    }

    fn receive(&mut self, key: ConnKey, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        self.shard.apply(self.now, Event::Received { key, bytes: &mut bytes });
        self.turn();
    }

    fn says(&mut self, key: ConnKey, frame: ClientFrame<'_>) {
        let mut payload = Vec::new();
        frame.write(&mut payload);
        let mut message = Vec::new();
        ws::write_masked_message(&mut message, Opcode::Binary, &payload, [1, 2, 3, 4]);
        self.receive(key, &message);
    }

    /// Everything sent to a client since the last time; every send succeeds.
    fn sent(&mut self, key: ConnKey) -> Vec<u8> {
        let mut sent = Vec::new();
        loop {
            self.turn();
            let at = self
                .outputs
                .iter()
                .position(|o| matches!(o, Output::Send { key: k, .. } if *k == key));
            let Some(at) = at else { return sent };
            let Output::Send { bytes, .. } = self.outputs.remove(at) else { unreachable!() };
            sent.extend_from_slice(&bytes);
            self.shard.apply(self.now, Event::Sent { key, buffer: bytes, result: Ok(()) });
        }
    }

    fn gets(&mut self, key: ConnKey) -> Vec<Got> {
        let mut bytes = self.sent(key);
        let mut got = Vec::new();
        if bytes.starts_with(b"HTTP/1.1 ") {
            got.push(Got::Http(std::str::from_utf8(&bytes[9..12]).unwrap().parse().unwrap()));
            let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            bytes.drain(..end);
            if got != [Got::Http(101)] {
                return got;
            }
        }
        let settings =
            ws::Settings { role: Role::Client, message_bytes_max: 1 << 20, deflate: false };
        let (mut decoder, mut pool) = (ws::Decoder::default(), ws::Pool::default());
        let mut at = 0;
        while at < bytes.len() {
            let (taken, item) = decoder.next(&mut bytes[at..], &settings, &mut pool).unwrap();
            at += taken;
            match item {
                Some(Item::Message { payload, .. }) => {
                    got.push(Got::Frame(describe(ServerFrame::read(payload).unwrap())));
                }
                Some(Item::Close(code)) => got.push(Got::Close(code.unwrap().0)),
                Some(other) => panic!("{other:?}"),
                None => {}
            }
        }
        got
    }

    /// A client whose Connect the router has answered.
    fn session(&mut self, token: &str, device: &str) -> ConnKey {
        let key = self.connecting();
        self.says(key, connect(token, device));
        self.registered(key, 0);
        let got = self.gets(key);
        assert!(matches!(&got[..], [Got::Frame(f)] if f.starts_with("welcome")), "{got:?}");
        self.router_hears();
        key
    }

    fn connecting(&mut self) -> ConnKey {
        let key = self.accept();
        self.receive(key, HEAD.as_bytes());
        assert_eq!(self.gets(key), [Got::Http(101)]);
        key
    }

    fn registered(&mut self, key: ConnKey, cursor: u64) {
        self.router_says(RouterMessage::Registered(link::Registered {
            connection: key.to_connection_id(0),
            cursor,
            resumed: true,
            failure: None,
        }));
    }

    fn is_closed(&self, key: ConnKey) -> bool {
        self.shard.conns.get(key).is_none()
    }

    fn is_open(&self, key: ConnKey) -> bool {
        self.shard.conns.get(key).is_some_and(|conn| !matches!(conn.phase, Phase::Closing(_)))
    }

    fn is_read_from(&self, key: ConnKey) -> bool {
        self.shard.conns.get(key).unwrap().receiving == Receiving::Armed
    }
}

fn connect<'a>(user: &'a str, device: &'a str) -> ClientFrame<'a> {
    ClientFrame::Connect(Connect { token: user, device_id: device, ..Connect::default() })
}

fn send<'a>(id: &'a str, to: &'a str, payload: &'a [u8]) -> ClientFrame<'a> {
    ClientFrame::Send(Send { client_message_id: id, to_user: to, payload, ..Send::default() })
}

fn describe(frame: ServerFrame<'_>) -> String {
    match frame {
        ServerFrame::Welcome(w) => format!("welcome {} cursor {}", w.user, w.cursor),
        ServerFrame::SendAck(a) => match a.error {
            None => format!("ack {} as {}", a.client_message_id, a.message_id),
            Some(e) => format!(
                "nack {} {}{}",
                a.client_message_id,
                Code::try_from(e.code).unwrap().as_str_name(),
                if e.retryable { " retryable" } else { "" }
            ),
        },
        ServerFrame::Error(e) => format!("error {}", Code::try_from(e.code).unwrap().as_str_name()),
        ServerFrame::Deliver(d) => format!("deliver {} from {}", d.sequence, d.from),
        ServerFrame::Pong(p) => format!("pong {}", p.nonce),
        ServerFrame::Refreshed(r) => format!("refreshed until {}", r.token_expires_at_ms),
        ServerFrame::GoAway(g) => format!("go away {} after {} ms", g.reason, g.reconnect_after_ms),
        other => format!("{other:?}"),
    }
}

fn frame(text: &str) -> Got {
    Got::Frame(text.into())
}

#[test]
fn a_message_goes_up_to_the_router_and_its_delivery_comes_down() {
    let mut rig = Rig::new();
    rig.link_up();
    assert_eq!(rig.router_hears(), ["snapshot end"]);
    let key = rig.connecting();
    rig.says(key, connect("alice", "phone"));
    assert_eq!(rig.router_hears(), ["register alice phone None answer"]);
    assert_eq!(rig.gets(key), []);
    rig.registered(key, 7);
    assert_eq!(rig.gets(key), [frame("welcome alice cursor 7")]);
    rig.says(key, send("m1", "bob", b"hello"));
    assert_eq!(rig.router_hears(), ["send 1 alice>bob m1"]);
    let connection = key.to_connection_id(0);
    rig.router_says(RouterMessage::SendAck(link::SendAck {
        connection,
        ticket: 1,
        message_id: 42,
        ..link::SendAck::default()
    }));
    assert_eq!(rig.gets(key), [frame("ack m1 as 42")]);
    rig.router_says(RouterMessage::Deliver(link::Deliver {
        connection,
        sequence: 8,
        from: "bob",
        ..link::Deliver::default()
    }));
    assert_eq!(rig.gets(key), [frame("deliver 8 from bob")]);
    rig.says(key, ClientFrame::Ack(Ack { sequence: 8, read_sequence: None }));
    assert_eq!(rig.router_hears(), ["ack alice 8"]);
}

#[test]
fn a_request_head_that_comes_byte_by_byte_with_a_frame_behind_it_is_taken() {
    let mut rig = Rig::new();
    let key = rig.accept();
    let mut bytes = HEAD.as_bytes().to_vec();
    ws::write_masked_message(&mut bytes, Opcode::Ping, b"early", [9; 4]);
    for byte in &bytes {
        rig.receive(key, &[*byte]);
    }
    let sent = rig.sent(key);
    assert!(sent.starts_with(b"HTTP/1.1 101 ") && sent.ends_with(b"\x8a\x05early"), "{sent:?}");
}

#[test]
fn an_endless_request_head_is_answered_with_408_after_ten_seconds() {
    let mut rig = Rig::new();
    let key = rig.accept();
    for second in 0..10 {
        assert!(!rig.is_closed(key), "second {second}");
        rig.receive(key, &HEAD.as_bytes()[second..=second]);
        rig.advance(Duration::from_secs(1));
    }
    assert_eq!(rig.gets(key), [Got::Http(408)]);
    rig.shard.apply(rig.now, Event::Ended { key, errno: 0 });
    assert!(rig.is_closed(key));
}

#[test]
fn an_endless_request_line_is_answered_with_414_and_counted() {
    let mut rig = Rig::new();
    let key = rig.accept();
    let mut line = b"GET /".to_vec();
    line.resize(9 * 1024, b'a');
    rig.receive(key, &line);
    assert_eq!(rig.gets(key), [Got::Http(414)]);
    let mut metrics = String::new();
    crate::metrics::render(std::slice::from_ref(&rig.shard.counters), &mut metrics);
    assert!(metrics.contains("edge_refused_total{status=\"414\"} 1\n"), "{metrics}");
}

#[test]
fn a_frame_before_connect_ends_with_1008_and_says_why() {
    let mut rig = Rig::new();
    let key = rig.connecting();
    rig.says(key, ClientFrame::Ping(Ping { nonce: 1 }));
    assert_eq!(rig.gets(key), [frame("error CODE_NOT_CONNECTED"), Got::Close(1008)]);
}

#[test]
fn no_connect_within_ten_seconds_ends_with_1008() {
    let mut rig = Rig::new();
    let key = rig.connecting();
    rig.advance(Duration::from_millis(9_900));
    assert_eq!(rig.gets(key), []);
    rig.advance(Duration::from_millis(100));
    assert_eq!(rig.gets(key), [Got::Close(1008)]);
    // The client says nothing more: it is given up after the close timeout.
    rig.advance(Duration::from_secs(5));
    assert!(rig.is_closed(key));
    assert!(rig.outputs.iter().any(|o| matches!(o, Output::Close { socket: 0, .. })));
}

#[test]
fn bad_tokens_and_bad_fields_of_connect_end_with_1008() {
    let long = "u".repeat(65);
    for (connect, error) in [
        (connect("", "phone"), "error CODE_UNAUTHENTICATED"),
        (connect(&long, "phone"), "error CODE_UNAUTHENTICATED"),
        (connect("alice", ""), "error CODE_INVALID_ARGUMENT"),
        (connect("alice", &long[..41]), "error CODE_INVALID_ARGUMENT"),
    ] {
        let mut rig = Rig::new();
        let key = rig.connecting();
        rig.says(key, connect);
        assert_eq!(rig.gets(key), [frame(error), Got::Close(1008)]);
    }
}

#[test]
fn what_a_client_may_get_wrong_without_losing_its_connection() {
    let mut rig = Rig::new();
    rig.link_up();
    let key = rig.session("alice", "phone");
    let long = "x".repeat(65);
    let large = vec![0; 64 * 1024 + 1];
    let both = Send { client_message_id: "m", to_user: "b", to_group: "g", ..Send::default() };
    for (frame_in, answer) in [
        (ClientFrame::Unknown, None),
        (connect("alice", "phone"), Some("error CODE_ALREADY_CONNECTED")),
        (send("", "bob", b""), Some("error CODE_INVALID_ARGUMENT")),
        (send(&long, "bob", b""), Some("error CODE_INVALID_ARGUMENT")),
        (send("m", "", b""), Some("nack m CODE_INVALID_ARGUMENT")),
        (send("m", &long, b""), Some("nack m CODE_INVALID_ARGUMENT")),
        (ClientFrame::Send(both), Some("nack m CODE_INVALID_ARGUMENT")),
        (send("m", "bob", &large), Some("nack m CODE_TOO_LARGE")),
    ] {
        match answer {
            Some(answer) => {
                rig.says(key, frame_in);
                assert_eq!(rig.gets(key), [frame(answer)]);
            }
            None => {
                // Field 31 of ClientFrame, empty: a kind of frame from a later release.
                let mut message = Vec::new();
                ws::write_masked_message(&mut message, Opcode::Binary, &[0xfa, 0x01, 0x00], [0; 4]);
                rig.receive(key, &message);
                assert_eq!(rig.gets(key), [frame("error CODE_UNKNOWN_FRAME")]);
            }
        }
    }
    assert_eq!(rig.router_hears(), Vec::<String>::new());
    rig.says(key, send("m", "bob", &large[1..]));
    assert_eq!(rig.router_hears(), ["send 1 alice>bob m"]);
}

#[test]
fn bytes_that_are_no_client_frame_end_with_1007_and_far_too_long_ones_with_1009() {
    for (payload, code) in [(vec![0x0a, 0x05], 1007), (vec![0; 256 * 1024], 1009)] {
        let mut rig = Rig::new();
        rig.link_up();
        let key = rig.session("alice", "phone");
        let mut message = Vec::new();
        ws::write_masked_message(&mut message, Opcode::Binary, &payload, [5; 4]);
        rig.receive(key, &message);
        assert_eq!(rig.gets(key), [Got::Close(code)]);
        assert_eq!(rig.router_hears(), ["unregister alice"]);
    }
}

#[test]
fn a_newer_connection_of_the_same_device_replaces_the_older_which_is_told_so() {
    let mut rig = Rig::new();
    rig.link_up();
    let older = rig.session("alice", "phone");
    let other = rig.session("alice", "laptop");
    let newer = rig.connecting();
    rig.says(newer, connect("alice", "phone"));
    assert_eq!(rig.gets(older), [frame("error CODE_REPLACED"), Got::Close(1008)]);
    assert_eq!(rig.gets(other), []);
    assert_eq!(rig.router_hears(), ["unregister alice", "register alice phone None answer"]);
    // The router found a newer one on another edge.
    rig.router_says(RouterMessage::Disconnect(link::Disconnect {
        connection: other.to_connection_id(0),
        reason: 1,
    }));
    assert_eq!(rig.gets(other), [frame("error CODE_REPLACED"), Got::Close(1008)]);
}

#[test]
fn silence_ends_a_connection_and_any_byte_counts_as_life() {
    let mut rig = Rig::new();
    rig.link_up();
    let key = rig.session("alice", "phone");
    // 15 s, twice, and 5 s of grace.
    rig.advance(Duration::from_secs(34));
    rig.says(key, ClientFrame::Ping(Ping { nonce: 5 }));
    assert_eq!(rig.gets(key), [frame("pong 5")]);
    rig.advance(Duration::from_secs(34));
    assert_eq!(rig.gets(key), []);
    rig.advance(Duration::from_secs(2));
    assert_eq!(rig.gets(key), [Got::Close(1008)]);
    assert_eq!(rig.shard.counters.closed_for("ping_missing"), 0);
    rig.advance(Duration::from_secs(5));
    assert_eq!(rig.shard.counters.closed_for("ping_missing"), 1);
}

#[test]
fn without_a_router_sends_wait_a_bounded_time_and_then_may_be_tried_again() {
    let mut rig = Rig::new();
    rig.link_up();
    let key = rig.session("alice", "phone");
    rig.link_down();
    rig.says(key, send("m1", "bob", b"x"));
    rig.advance(Duration::from_millis(9_900));
    assert_eq!(rig.gets(key), []);
    rig.says(key, ClientFrame::Ping(Ping { nonce: 1 }));
    rig.advance(Duration::from_millis(100));
    assert_eq!(rig.gets(key), [frame("pong 1"), frame("nack m1 CODE_UNAVAILABLE retryable")]);
}

#[test]
fn a_new_link_is_told_who_is_here_and_what_is_unanswered_before_anything_new() {
    let mut rig = Rig::new();
    rig.link_up();
    let key = rig.session("alice", "phone");
    rig.says(key, ClientFrame::Ack(Ack { sequence: 9, read_sequence: None }));
    rig.says(key, send("m1", "bob", b"x"));
    assert_eq!(rig.router_hears(), ["ack alice 9", "send 1 alice>bob m1"]);
    rig.link_down();
    rig.says(key, send("m2", "bob", b"x"));
    let waiting = rig.connecting();
    rig.says(waiting, connect("carol", "phone"));
    assert_eq!(rig.router_hears(), Vec::<String>::new());
    rig.link_up();
    assert_eq!(
        rig.router_hears(),
        [
            "register alice phone Some(9) snapshot",
            "register carol phone None answer snapshot",
            "snapshot end",
            "send 1 alice>bob m1",
            "send 2 alice>bob m2",
        ]
    );
    rig.says(key, send("m3", "bob", b"x"));
    assert_eq!(rig.router_hears(), ["send 3 alice>bob m3"]);
}

#[test]
fn a_client_that_no_router_registers_is_asked_to_come_back() {
    let mut rig = Rig::new();
    let key = rig.connecting();
    rig.says(key, connect("alice", "phone"));
    rig.advance(Duration::from_secs(10));
    assert_eq!(rig.gets(key), [frame("error CODE_UNAVAILABLE"), Got::Close(1013)]);
}

#[test]
fn a_client_with_too_many_unanswered_sends_is_not_read_from_until_one_is_answered() {
    let mut rig = Rig::with(|config| config.sends_in_flight_max = 2);
    rig.link_up();
    let key = rig.session("alice", "phone");
    rig.says(key, send("m1", "bob", b"x"));
    assert!(rig.is_read_from(key));
    rig.says(key, send("m2", "bob", b"x"));
    assert!(!rig.is_read_from(key));
    assert!(rig.outputs.contains(&Output::StopReceive { key }));
    rig.shard.apply(rig.now, Event::ReceiveStopped { key });
    assert!(!rig.is_read_from(key));
    rig.router_says(RouterMessage::SendAck(link::SendAck {
        connection: key.to_connection_id(0),
        ticket: 1,
        ..link::SendAck::default()
    }));
    assert!(rig.is_read_from(key));
}

#[test]
fn a_client_that_does_not_read_stops_being_read_from_and_ends_at_the_outbox_bound() {
    let mut rig = Rig::with(|config| config.outbox_bytes_max = 256 * 1024);
    rig.link_up();
    let (key, other) = (rig.session("bob", "phone"), rig.session("carol", "phone"));
    let payload = vec![7; 60 * 1024];
    let mut delivered = 0;
    while !rig.is_closed(key) {
        delivered += 1;
        assert!(delivered < 10, "no bound");
        rig.router_says(RouterMessage::Deliver(link::Deliver {
            connection: key.to_connection_id(0),
            sequence: delivered,
            payload: &payload,
            ..link::Deliver::default()
        }));
    }
    assert_eq!(rig.shard.counters.closed_for("slow_reader"), 1);
    assert_eq!(rig.router_hears(), ["unregister bob"]);
    rig.says(other, ClientFrame::Ping(Ping { nonce: 3 }));
    assert_eq!(rig.gets(other), [frame("pong 3")]);
}

#[test]
fn a_full_lane_stops_reading_from_those_who_fill_it_and_loses_nothing() {
    let mut rig = Rig::with(|config| config.sends_in_flight_max = 10_000);
    rig.link_up();
    let key = rig.session("alice", "phone");
    let mut said = 0u64;
    while rig.is_read_from(key) {
        said += 1;
        assert!(said < 1_000, "no bound");
        rig.says(key, send("m", "bob", b"x"));
    }
    assert!(said as usize > LANE_PARCELS_MAX);
    rig.shard.apply(rig.now, Event::ReceiveStopped { key });
    let heard = rig.router_hears().len() + rig.router_hears().len();
    assert_eq!(heard as u64, said);
    rig.turn();
    assert!(rig.is_read_from(key));
}

#[test]
fn messages_for_connections_that_are_gone_are_counted_and_hit_no_stranger() {
    let mut rig = Rig::new();
    rig.link_up();
    let key = rig.session("alice", "phone");
    rig.shard.apply(rig.now, Event::Ended { key, errno: 0 });
    let stranger = rig.session("bob", "phone");
    assert_eq!(key.index(), stranger.index());
    rig.router_says(RouterMessage::Deliver(link::Deliver {
        connection: key.to_connection_id(0),
        sequence: 1,
        ..link::Deliver::default()
    }));
    assert_eq!(rig.gets(stranger), []);
    assert_eq!(rig.shard.counters.stale_deliveries.get(), 1);
}

#[test]
fn past_its_share_a_shard_answers_503_and_closes() {
    let mut rig = Rig::new();
    for _ in 0..100 {
        rig.accept();
    }
    let key = rig.accept();
    assert_eq!(rig.gets(key), [Got::Http(503)]);
}

#[test]
fn the_closing_handshake_of_the_client_is_answered_and_the_socket_closed() {
    let mut rig = Rig::new();
    rig.link_up();
    let key = rig.session("alice", "phone");
    rig.receive(key, &[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]);
    assert_eq!(rig.gets(key), [Got::Close(1000)]);
    assert!(rig.is_closed(key));
    assert_eq!(rig.router_hears(), ["unregister alice"]);
}

#[test]
fn a_deliver_is_written_as_the_client_protocol_has_it() {
    let mut rig = Rig::new();
    rig.link_up();
    let key = rig.session("bob", "phone");
    rig.router_says(RouterMessage::Deliver(link::Deliver {
        connection: key.to_connection_id(0),
        sequence: 1,
        message_id: 2,
        from: "alice",
        group: "",
        payload: b"hi",
        time_ms: 3,
    }));
    let sent = rig.sent(key);
    let expected = Deliver {
        sequence: 1,
        message_id: 2,
        from: "alice",
        group: "",
        payload: b"hi",
        time_ms: 3,
    };
    assert_eq!(ServerFrame::read(&sent[2..]), Ok(ServerFrame::Deliver(expected)));
}

fn drain(rig: &mut Rig, order: Order) {
    rig.mesh.try_command(0, Command::Drain(order)).unwrap();
    rig.turn();
}

#[test]
fn a_drain_sends_everybody_away_evenly_and_lets_nobody_in() {
    let mut rig = Rig::new();
    rig.link_up();
    let keys: Vec<_> = (0..40).map(|n| rig.session(&format!("user{n}"), "phone")).collect();
    let echo = rig.accept();
    drain(&mut rig, Order::Leave { window: Duration::from_secs(30) });
    assert_eq!(rig.shard.leaves_by(), Some(Tick(rig.now.tick.0 + 5)), "41 at 100 a second");
    let mut left = Vec::new();
    for _ in 0..5 {
        rig.advance(TICK);
        left.push(keys.iter().filter(|key| !rig.is_open(**key)).count());
    }
    assert_eq!(left, [8, 16, 24, 32, 40]);
    let [Got::Frame(away), Got::Close(1012)] = &rig.gets(keys[3])[..] else { panic!() };
    assert!(away.starts_with("go away this edge is being drained after "), "{away}");
    assert_eq!(rig.gets(echo), [Got::Http(503)]);
    let late = rig.accept();
    assert_eq!(rig.gets(late), [Got::Http(503)]);
}

#[test]
fn a_client_that_is_sent_away_still_hears_what_became_of_its_sends() {
    let mut rig = Rig::new();
    rig.link_up();
    let key = rig.session("alice", "phone");
    rig.says(key, send("m1", "bob", b"x"));
    drain(&mut rig, Order::Leave { window: Duration::ZERO });
    assert!(matches!(&rig.gets(key)[..], [Got::Frame(away)] if away.starts_with("go away")));
    rig.router_says(RouterMessage::SendAck(link::SendAck {
        connection: key.to_connection_id(0),
        ticket: 1,
        message_id: 7,
        ..link::SendAck::default()
    }));
    assert!(matches!(&rig.gets(key)[..], [Got::Frame(_), Got::Close(1012)]));

    let mut rig = Rig::new();
    rig.link_up();
    let key = rig.session("alice", "phone");
    rig.says(key, send("m1", "bob", b"x"));
    drain(&mut rig, Order::Leave { window: Duration::ZERO });
    rig.gets(key);
    rig.advance(Config::default().close_timeout);
    assert_eq!(rig.gets(key), [Got::Close(1012)], "close_timeout bounds the wait");
}

#[test]
fn a_rebalance_sends_a_share_away_and_the_shard_goes_on() {
    let mut rig = Rig::new();
    rig.link_up();
    let keys: Vec<_> = (0..40).map(|n| rig.session(&format!("user{n}"), "phone")).collect();
    drain(&mut rig, Order::Rebalance { per_mille: 250, window: Duration::from_secs(1) });
    rig.advance(Duration::from_secs(1));
    assert_eq!(keys.iter().filter(|key| !rig.is_open(**key)).count(), 10);
    assert_eq!(rig.shard.leaves_by(), None);
    let key = rig.session("late", "phone");
    assert!(rig.is_open(key));
}

#[test]
fn a_client_above_its_rate_is_not_read_from_until_it_is_within_it_again() {
    let mut rig = Rig::with(|config| {
        config.limit.messages_per_second = Some(10);
        config.limit.burst_seconds = 1;
    });
    rig.link_up();
    let (key, other) = (rig.session("alice", "phone"), rig.session("bob", "phone"));
    for nonce in 0..15 {
        rig.says(key, ClientFrame::Ping(Ping { nonce }));
    }
    assert_eq!(rig.gets(key).len(), 15, "what came is answered");
    assert!(!rig.is_read_from(key) && rig.is_read_from(other));
    rig.shard.apply(rig.now, Event::ReceiveStopped { key });
    rig.advance(Duration::from_millis(600));
    assert!(rig.is_read_from(key), "16 frames with Connect, ten at once, ten a second");
    assert_eq!(rig.shard.counters.throttled.get(), 1);
    rig.advance(Duration::from_secs(30));
    assert!(rig.is_open(key), "the wait was no silence");
}

#[test]
fn past_the_handshakes_of_a_core_clients_are_told_503_at_once() {
    let mut rig = Rig::new();
    rig.shard.share.handshakes_max = 2;
    let first = rig.accept();
    rig.accept();
    let third = rig.accept();
    assert_eq!(rig.gets(third), [Got::Http(503)]);
    assert_eq!(rig.shard.counters.limited_by("handshakes_max"), 1);
    rig.receive(first, HEAD.as_bytes());
    let fourth = rig.accept();
    assert_eq!(rig.gets(fourth), []);
    assert_eq!(rig.shard.counters.handshakes.get(), 2);
}

#[test]
fn an_address_with_too_many_connections_or_failures_is_told_429() {
    let mut rig = Rig::with(|config| config.limit.address_connections_max = Some(2));
    let first = rig.accept();
    rig.accept();
    let third = rig.accept();
    assert_eq!(rig.gets(third), [Got::Http(429)]);
    rig.shard.apply(rig.now, Event::Ended { key: first, errno: 0 });
    let fourth = rig.accept();
    assert_eq!(rig.gets(fourth), []);

    let mut rig = Rig::with(|config| config.limit.address_failures_per_second = Some(1));
    for _ in 0..10 {
        let key = rig.accept();
        rig.receive(key, b"\x16\x03\x01 not HTTP\r\n\r\n");
        assert_eq!(rig.gets(key), [Got::Http(400)]);
    }
    let key = rig.accept();
    assert_eq!(rig.gets(key), [Got::Http(429)]);
    rig.advance(Duration::from_secs(1));
    let key = rig.accept();
    assert_eq!(rig.gets(key), []);
}

#[test]
fn a_user_has_so_many_connections_and_a_device_that_comes_back_counts_once() {
    let mut rig = Rig::with(|config| config.limit.user_connections_max = Some(2));
    rig.link_up();
    rig.session("alice", "phone");
    rig.session("alice", "laptop");
    rig.session("alice", "phone");
    let key = rig.connecting();
    rig.says(key, connect("alice", "watch"));
    assert_eq!(rig.gets(key), [frame("error CODE_OVERLOADED"), Got::Close(1013)]);
    rig.session("bob", "watch");
    assert_eq!(rig.shard.counters.limited_by("user_connections_max"), 1);
}

#[test]
fn the_address_in_a_balancers_header_counts_wherever_the_bytes_are_cut() {
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
    let bytes = [&header[..], HEAD.as_bytes()].concat();
    for cut in 0..=bytes.len() {
        let mut rig = Rig::with(|config| {
            config.admission.proxy_protocol_from = vec!["::/0".parse().unwrap()];
        });
        let key = rig.accept();
        for part in [&bytes[..cut], &bytes[cut..]] {
            if !part.is_empty() {
                rig.receive(key, part);
            }
        }
        assert_eq!(rig.gets(key), [Got::Http(101)], "cut at {cut}");
        let peer = rig.shard.conns.get(key).unwrap().peer.address();
        assert_eq!(peer, "192.0.2.7:4711".parse().unwrap());
    }
}

#[test]
fn without_its_header_a_balancers_connection_ends_and_from_others_a_header_is_bad_input() {
    let mut rig = Rig::with(|config| {
        config.admission.proxy_protocol_from = vec!["::/0".parse().unwrap()];
        config.limit.address_connections_max = Some(1);
    });
    let key = rig.accept();
    rig.receive(key, HEAD.as_bytes());
    assert!(rig.is_closed(key));
    let key = rig.accept();
    rig.receive(key, b"PROX");
    rig.advance(Duration::from_secs(10));
    assert!(rig.is_closed(key));
    assert_eq!(rig.shard.counters.closed_for("proxy_header"), 2);
    assert_eq!(rig.shard.counters.handshakes.get(), 0);
    for (address, status) in [("192.0.2.7", 101), ("192.0.2.8", 101), ("192.0.2.7", 429)] {
        let key = rig.accept();
        let header = format!("PROXY TCP4 {address} 198.51.100.1 4711 443\r\n{HEAD}");
        rig.receive(key, header.as_bytes());
        assert_eq!(rig.gets(key), [Got::Http(status)], "one connection an address");
    }

    let mut rig = Rig::new();
    let key = rig.accept();
    rig.receive(key, format!("PROXY UNKNOWN\r\n{HEAD}").as_bytes());
    assert_eq!(rig.gets(key), [Got::Http(400)]);
}
