//! A message on an open connection allocates nothing on its way through the edge once buffers circulate: counted
//! by an allocator that counts, over the whole way from a client's bytes to the router's link and back.

mod tls;

use std::sync::Arc;

use hawser_edge::config::Config;
use hawser_edge::conn::{ConnKey, Peer};
use hawser_edge::mesh::Mesh;
use hawser_edge::routes::RouterIndex;
use hawser_edge::shard::{Event, Output, Shard, Share};
use hawser_edge::timer::{Now, Tick};
use hawser_edge::uplink::{EdgeIdentity, UplinkOutput};
use hawser_edge::uplinks::Uplinks;
use hawser_edge::ws::frame::read_header;
use hawser_edge::ws::{self, Deflater, Opcode, WindowBits};
use hawser_proto::framing;
use hawser_proto::link::{Claim, Ownership};
use hawser_proto::view::client::{Ack, ClientFrame, Connect, Ping, Send};
use hawser_proto::view::link::{
    Deliver, Encoded, HelloAck, Receipt, Registered, RouterMessage, SendAck,
};
use hawser_proto::view::wire::Packed;
use prost::Message as _;

/// The one router there is.
const ROUTER: RouterIndex = RouterIndex(0);

const HEAD: &[u8] =
    b"GET /ws HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: hawser.v1.proto\r\n\r\n";

/// One shard with its uplink, between a client and a router that are played by the test. Every buffer of the test
/// itself is used again as well, so that what is counted is the edge's.
struct Edge {
    shard: Shard,
    uplinks: Uplinks,
    mesh: Mesh,
    now: Now,
    sent_bytes: usize,
    uplink_bytes: usize,
    /// Clients offer permessage-deflate, get it, and use it.
    deflates: bool,
}

impl Edge {
    fn new(deflates: bool) -> Self {
        Self::with_partitions(deflates, 0)
    }

    /// The same where the router owns so many partitions; 0: it does not speak of them.
    fn with_partitions(deflates: bool, partitions: u32) -> Self {
        let mut config = Config::default();
        config.limit.deflate = deflates;
        let config = Arc::new(config);
        let now = Now { tick: Tick(1), unix_ms: 1_790_000_000_000 };
        let shard = Shard::new(0, config, Share::SMALL, Default::default(), now);
        let identity = EdgeIdentity { edge_id: "edge".into(), epoch: 1, region: String::new() };
        let uplinks = Uplinks::new(&identity, 1, 1, 1);
        let mesh = Mesh::new(1).expect("an eventfd");
        let mut edge = Self { shard, uplinks, mesh, now, sent_bytes: 0, uplink_bytes: 0, deflates };
        edge.turn();
        edge.uplinks.link(ROUTER).handle_connected(now, Ok(()));
        edge.turn();
        let ack = HelloAck {
            protocol: 1,
            lease_ms: 15_000,
            window_messages: 64,
            partitions,
            ..HelloAck::default()
        };
        let claims = (0..partitions).map(|partition| Claim { partition, epoch: 1 }).collect();
        let owned = Ownership { partitions, claims }.encode_to_vec();
        let owned = RouterMessage::Ownership(Encoded(&owned));
        edge.router_says(&frame(&[RouterMessage::HelloAck(ack), owned]));
        edge
    }

    /// What a driver does in one turn, with a network on which everything goes out at once.
    fn turn(&mut self) {
        self.shard.exchange(self.now, &self.mesh);
        self.uplinks.exchange(self.now, &self.mesh);
        while let Some(output) = self.shard.poll_output() {
            if let Output::Send { key, bytes, .. } = output {
                self.sent_bytes += bytes.len();
                self.shard.apply(self.now, Event::Sent { key, buffer: bytes, result: Ok(()) });
            }
        }
        while let Some(output) = self.uplinks.link(ROUTER).poll_output(self.now) {
            if let UplinkOutput::Send(bytes) = output {
                self.uplink_bytes += bytes.len();
                self.uplinks.link(ROUTER).handle_sent(self.now, &self.mesh, bytes, Ok(()));
            }
        }
    }

    fn client_says(&mut self, key: ConnKey, bytes: &[u8], buffer: &mut Vec<u8>) {
        // The driver's buffer, which the shard may change in place.
        buffer.clear();
        buffer.extend_from_slice(bytes);
        self.shard.apply(self.now, Event::Received { key, bytes: buffer });
        self.turn();
    }

    fn router_says(&mut self, frame: &[u8]) {
        self.uplinks.handle_received(ROUTER, self.now, &self.mesh, frame);
        self.turn();
    }

    fn session(&mut self, user: &str) -> ConnKey {
        self.shard.apply(self.now, Event::Accepted { socket: 0, peer: Peer::default() });
        let Some(Output::Receive { key, .. }) = self.shard.poll_output() else {
            panic!("not received")
        };
        let mut buffer = Vec::new();
        let mut head = HEAD.to_vec();
        if self.deflates {
            head.truncate(head.len() - 2);
            head.extend_from_slice(b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n");
        }
        self.client_says(key, &head, &mut buffer);
        let connect = Connect { token: user, device_id: "phone", ..Connect::default() };
        let connect = self.message(ClientFrame::Connect(connect));
        self.client_says(key, &connect, &mut buffer);
        let registered = Registered {
            connection: key.to_connection_id(0),
            resumed: true,
            ..Registered::default()
        };
        self.router_says(&frame(&[RouterMessage::Registered(registered)]));
        key
    }

    /// A frame as a client sends it: deflated where that is agreed on and makes it smaller.
    fn message(&self, client_frame: ClientFrame<'_>) -> Vec<u8> {
        let (mut payload, mut unmasked) = (Vec::new(), Vec::new());
        client_frame.write(&mut payload);
        ws::write_message(&mut unmasked, Opcode::Binary, &payload);
        let window_bits = self.deflates.then_some(WindowBits::MAX);
        Deflater::new(6, 0).deflate_message(&mut unmasked, 0, window_bits);
        let (header, header_bytes) = read_header(&unmasked, true).ok().flatten().expect("a header");
        let mut message = Vec::new();
        let payload = &unmasked[header_bytes..];
        ws::write_masked_message(&mut message, Opcode::Binary, payload, [1, 2, 3, 4]);
        message[0] |= if header.deflated { 0x40 } else { 0 };
        message
    }
}

fn frame(messages: &[RouterMessage<'_>]) -> Vec<u8> {
    let mut frame = Vec::new();
    let mark = framing::begin_frame(&mut frame);
    for message in messages {
        message.write(&mut frame);
    }
    framing::finish_frame(&mut frame, mark);
    frame
}

/// Everything that happens to a client that chats: it sends, is acknowledged, receives, acknowledges, is told of the
/// receipt, pings.
fn chat(
    edge: &mut Edge,
    key: ConnKey,
    payload: &[u8],
    rounds: u64,
    first_ticket: u64,
    cut: bool,
) -> u64 {
    let connection = key.to_connection_id(0);
    let send = edge.message(ClientFrame::Send(Send {
        client_message_id: "0190a5c4-7c1e-7d2a-9d6f-2f2f5f4f3f2f",
        to_user: "bob",
        payload,
        ..Send::default()
    }));
    let ack = edge.message(ClientFrame::Ack(Ack { sequence: 1, read_sequence: None }));
    let ping = edge.message(ClientFrame::Ping(Ping { nonce: 7 }));
    let answers: Vec<Vec<u8>> = (0..rounds)
        .map(|round| {
            let ticket = first_ticket + round;
            frame(&[
                RouterMessage::SendAck(SendAck {
                    connection,
                    ticket,
                    message_id: 9,
                    ..SendAck::default()
                }),
                RouterMessage::Deliver(Deliver {
                    connection,
                    sequence: 1,
                    message_id: 5,
                    from: "bob",
                    payload,
                    ..Deliver::default()
                }),
                RouterMessage::Receipt(Receipt {
                    connection,
                    kind: 1,
                    user: "bob",
                    message_ids: Packed(&[9]),
                    time_ms: 1,
                }),
            ])
        })
        .collect();
    let mut buffer = Vec::with_capacity(send.len());
    let counted = allocation_counter::measure(|| {
        for answer in &answers {
            if cut {
                let (front, back) = send.split_at(send.len() / 2);
                edge.client_says(key, front, &mut buffer);
                edge.client_says(key, back, &mut buffer);
            } else {
                edge.client_says(key, &send, &mut buffer);
            }
            edge.router_says(answer);
            edge.client_says(key, &ack, &mut buffer);
            edge.client_says(key, &ping, &mut buffer);
        }
    });
    counted.count_total
}

#[test]
fn a_message_on_an_open_connection_allocates_nothing_in_the_steady_state() {
    for partitions in [0, 64] {
        chat_without_allocations(Edge::with_partitions(false, partitions));
    }
}

fn chat_without_allocations(mut edge: Edge) {
    let key = edge.session("alice");
    let mut ticket = 1;
    for payload_bytes in [64, 1000] {
        for cut in [false, true] {
            let payload = vec![7; payload_bytes];
            // Buffers grow to what they need and begin to circulate.
            chat(&mut edge, key, &payload, 2_000, ticket, cut);
            let (sent, said) = (edge.sent_bytes, edge.uplink_bytes);
            let allocations = chat(&mut edge, key, &payload, 2_000, ticket + 2_000, cut);
            ticket += 4_000;
            assert_eq!(allocations, 0, "payload of {payload_bytes} bytes, cut: {cut}");
            assert!(edge.sent_bytes - sent > 2_000 * payload_bytes, "the messages were delivered");
            assert!(edge.uplink_bytes - said > 2_000 * payload_bytes, "and sent to the router");
        }
    }
}

#[test]
fn a_deflated_message_allocates_nothing_and_leaves_nothing_with_its_connection() {
    let mut edge = Edge::new(true);
    let keys: Vec<_> = (0..90).map(|at| edge.session(&format!("user-{at}"))).collect();
    let (payload, mut ticket) = (vec![7; 1000], 1);
    for cut in [false, true] {
        // The shard makes its compressor and its decompressor, and buffers begin to circulate.
        chat(&mut edge, keys[0], &payload, 100, ticket, cut);
        ticket += 100;
        let sent = edge.sent_bytes;
        for key in &keys[1..] {
            let allocations = chat(&mut edge, *key, &payload, 10, ticket, cut);
            ticket += 10;
            assert_eq!(allocations, 0, "{key:?}, cut: {cut}");
        }
        let sent = edge.sent_bytes - sent;
        assert!(sent < 10 * 89 * payload.len() / 2, "{sent} bytes: the deliveries were deflated");
    }
}

#[test]
fn the_counting_allocator_counts() {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(vec![1, 2, 3])));
    assert_eq!(counted.count_total, 1);
}
