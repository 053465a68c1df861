//! The messages as bytes: released encodings are kept under tests/golden and have to be read for ever, and the
//! borrowed views have to say the same as the generated types, in both directions.

use std::path::Path;

use hawser_proto::view;
use hawser_proto::{client, link};
use proptest::prelude::*;
use prost::Message;

/// Compares an encoding with the kept one. A message without a kept one gets it written, and fails once:
/// look at it, and commit it.
fn golden(name: &str, encoded: &[u8]) {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{name}.hex"));
    let hex: String = encoded.iter().map(|byte| format!("{byte:02x}")).collect();
    match std::fs::read_to_string(&path) {
        Ok(kept) => assert_eq!(hex, kept.trim(), "{name}: released bytes have changed"),
        Err(_) => {
            std::fs::write(&path, hex + "\n").expect("tests/golden can be written");
            panic!("{name} had no golden bytes; they were written, look at them and commit them");
        }
    }
}

fn client_frames() -> Vec<(&'static str, client::client_frame::Frame)> {
    use client::client_frame::Frame;
    vec![
        (
            "client_connect",
            Frame::Connect(client::Connect {
                token: "alice".into(),
                device_id: "phone".into(),
                resume_cursor: Some(7),
                client_kind: "hawser-bench".into(),
                client_version: "0.1.0".into(),
                mode: client::Mode::Idle.into(),
            }),
        ),
        (
            "client_send_user",
            Frame::Send(client::Send {
                client_message_id: "m-1".into(),
                to: Some(client::send::To::ToUser("bob".into())),
                payload: "hello".into(),
                expires_after_ms: Some(60_000),
            }),
        ),
        (
            "client_send_group",
            Frame::Send(client::Send {
                client_message_id: "m-2".into(),
                to: Some(client::send::To::ToGroup("crew".into())),
                payload: vec![0, 255].into(),
                expires_after_ms: None,
            }),
        ),
        ("client_ack", Frame::Ack(client::Ack { sequence: 300, read_sequence: Some(299) })),
        (
            "client_signal",
            Frame::Signal(client::Signal {
                user: "bob".into(),
                kind: "typing".into(),
                payload: "x".into(),
            }),
        ),
        (
            "client_set_mode",
            Frame::SetMode(client::SetMode { mode: client::Mode::Background.into() }),
        ),
        ("client_sync", Frame::Sync(client::Sync { after_sequence: 41 })),
        ("client_refresh", Frame::Refresh(client::Refresh { token: "alice".into() })),
        ("client_ping", Frame::Ping(client::Ping { nonce: u64::MAX })),
    ]
}

fn server_frames() -> Vec<(&'static str, client::server_frame::Frame)> {
    use client::server_frame::Frame;
    let error = client::Error {
        code: client::error::Code::Unavailable.into(),
        message: "no answer from the router".into(),
        retryable: true,
    };
    vec![
        (
            "server_welcome",
            Frame::Welcome(client::Welcome {
                connection_id: 0x0123_4567_89ab_cdef,
                time_ms: 1_790_000_000_000,
                intervals: Some(client::Intervals {
                    active_ms: 15_000,
                    idle_ms: 60_000,
                    background_ms: 300_000,
                }),
                limits: Some(client::Limits {
                    payload_bytes_max: 65_536,
                    window_messages: 64,
                    sends_in_flight_max: 64,
                }),
                cursor: 9,
                resumed: true,
                user: "alice".into(),
                token_expires_at_ms: 0,
            }),
        ),
        (
            "server_welcome_until",
            Frame::Welcome(client::Welcome {
                connection_id: 1,
                token_expires_at_ms: 1_790_000_600_000,
                ..client::Welcome::default()
            }),
        ),
        (
            "server_refreshed",
            Frame::Refreshed(client::Refreshed { token_expires_at_ms: 1_790_000_600_000 }),
        ),
        (
            "server_send_ack",
            Frame::SendAck(client::SendAck {
                client_message_id: "m-1".into(),
                message_id: 5 << 48 | 77,
                time_ms: 1_790_000_000_001,
                error: None,
            }),
        ),
        (
            "server_send_ack_error",
            Frame::SendAck(client::SendAck {
                client_message_id: "m-1".into(),
                message_id: 0,
                time_ms: 1_790_000_000_001,
                error: Some(error.clone()),
            }),
        ),
        (
            "server_deliver",
            Frame::Deliver(client::Deliver {
                sequence: 10,
                message_id: 5 << 48 | 77,
                from: "alice".into(),
                group: "crew".into(),
                payload: "hello".into(),
                time_ms: 1_790_000_000_001,
            }),
        ),
        (
            "server_receipt",
            Frame::Receipt(client::Receipt {
                kind: client::receipt::Kind::Read.into(),
                user: "bob".into(),
                message_ids: vec![1, 300, 5 << 48 | 77],
                time_ms: 1_790_000_000_002,
            }),
        ),
        (
            "server_signal",
            Frame::Signal(client::Signal {
                user: "alice".into(),
                kind: "typing".into(),
                payload: "x".into(),
            }),
        ),
        (
            "server_go_away",
            Frame::GoAway(client::GoAway { reason: "deploy".into(), reconnect_after_ms: 1_500 }),
        ),
        ("server_error", Frame::Error(error)),
        ("server_pong", Frame::Pong(client::Pong { nonce: 3, time_ms: 1_790_000_000_003 })),
        (
            "server_gap",
            Frame::Gap(client::Gap {
                first_sequence: 3,
                last_sequence: 9,
                reason: client::gap::Reason::Expired.into(),
            }),
        ),
    ]
}

fn failure() -> Option<link::Failure> {
    Some(link::Failure { code: 7, message: "disk full".into(), retryable: true })
}

fn edge_messages() -> Vec<(&'static str, link::edge_message::Message)> {
    use link::edge_message::Message;
    let connection = 0x0010_0000_0100_0002;
    vec![
        (
            "edge_hello",
            Message::Hello(link::Hello {
                edge_id: "edge-1".into(),
                epoch: 99,
                region: "eu".into(),
                version: "0.1.0".into(),
                protocol: 1,
                shards: 2,
            }),
        ),
        (
            "edge_register",
            Message::Register(link::Register {
                connection,
                user: "alice".into(),
                device: "phone".into(),
                cursor: Some(0),
                connected_at_ms: 1_790_000_000_000,
                client_kind: "web".into(),
                client_version: "3".into(),
                answer: true,
                snapshot: true,
            }),
        ),
        ("edge_snapshot_end", Message::SnapshotEnd(link::SnapshotEnd { shard: 1 })),
        (
            "edge_unregister",
            Message::Unregister(link::Unregister { connection, user: "alice".into() }),
        ),
        (
            "edge_send",
            Message::Send(link::Send {
                connection,
                ticket: 12,
                from: "alice".into(),
                client_message_id: "m-1".into(),
                to_user: "bob".into(),
                to_group: String::new(),
                payload: "hello".into(),
                expires_at_ms: 1_790_000_060_000,
            }),
        ),
        (
            "edge_ack",
            Message::Ack(link::Ack {
                connection,
                user: "bob".into(),
                sequence: 10,
                read_sequence: Some(9),
            }),
        ),
        (
            "edge_signal",
            Message::Signal(link::Signal {
                connection,
                from: "alice".into(),
                to: "bob".into(),
                kind: "typing".into(),
                payload: "x".into(),
            }),
        ),
        (
            "edge_sync",
            Message::Sync(link::Sync { connection, user: "bob".into(), after_sequence: 4 }),
        ),
        (
            "edge_relay",
            Message::Relay(link::Relay {
                connection,
                to: "alice".into(),
                kind: 1,
                user: "bob".into(),
                message_ids: vec![1, 300],
                time_ms: 1_790_000_000_002,
            }),
        ),
        ("edge_heartbeat", Message::Heartbeat(link::Heartbeat { time_ms: 1_790_000_000_000 })),
    ]
}

fn router_messages() -> Vec<(&'static str, link::router_message::Message)> {
    use link::router_message::Message;
    let connection = 0x0010_0000_0100_0002;
    vec![
        (
            "router_hello_ack",
            Message::HelloAck(link::HelloAck {
                router_id: "router-1".into(),
                epoch: 98,
                version: "0.1.0".into(),
                protocol: 1,
                lease_ms: 15_000,
                refused: "another edge has this name".into(),
                window_messages: 64,
                partitions: 0,
            }),
        ),
        (
            "router_hello_ack_of_many",
            Message::HelloAck(link::HelloAck {
                router_id: "router-2".into(),
                protocol: 1,
                partitions: 64,
                ..link::HelloAck::default()
            }),
        ),
        (
            "router_ownership",
            Message::Ownership(link::Ownership {
                partitions: 64,
                claims: vec![
                    link::Claim { partition: 0, epoch: 7 },
                    link::Claim { partition: 63, epoch: 300 },
                ],
            }),
        ),
        (
            "router_registered",
            Message::Registered(link::Registered {
                connection,
                cursor: 9,
                resumed: true,
                failure: failure(),
            }),
        ),
        (
            "router_deliver",
            Message::Deliver(link::Deliver {
                connection,
                sequence: 10,
                message_id: 5 << 48 | 77,
                from: "alice".into(),
                group: "crew".into(),
                payload: "hello".into(),
                time_ms: 1_790_000_000_001,
            }),
        ),
        (
            "router_send_ack",
            Message::SendAck(link::SendAck {
                connection,
                ticket: 12,
                message_id: 5 << 48 | 77,
                time_ms: 1_790_000_000_001,
                failure: failure(),
            }),
        ),
        (
            "router_receipt",
            Message::Receipt(link::Receipt {
                connection,
                kind: 1,
                user: "bob".into(),
                message_ids: vec![1, 300],
                time_ms: 1_790_000_000_002,
            }),
        ),
        (
            "router_signal",
            Message::Signal(link::SignalOut {
                connection,
                from: "alice".into(),
                kind: "typing".into(),
                payload: "x".into(),
            }),
        ),
        (
            "router_gap",
            Message::Gap(link::Gap { connection, first_sequence: 3, last_sequence: 9, reason: 2 }),
        ),
        (
            "router_disconnect",
            Message::Disconnect(link::Disconnect {
                connection,
                reason: link::disconnect::Reason::Replaced.into(),
            }),
        ),
        (
            "router_relay",
            Message::Relay(link::Relay {
                connection,
                to: "alice".into(),
                kind: 1,
                user: "bob".into(),
                message_ids: vec![1, 300],
                time_ms: 1_790_000_000_002,
            }),
        ),
        ("router_heartbeat", Message::Heartbeat(link::Heartbeat { time_ms: 1_790_000_000_000 })),
    ]
}

#[test]
fn every_client_frame_keeps_its_bytes_and_its_view_says_the_same() {
    for (name, frame) in client_frames() {
        let encoded = client::ClientFrame { frame: Some(frame) }.encode_to_vec();
        golden(name, &encoded);
        let read = view::client::ClientFrame::read(&encoded).unwrap();
        assert_ne!(read, view::client::ClientFrame::Unknown, "{name}");
        let mut written = Vec::new();
        read.write(&mut written);
        assert_eq!(written, encoded, "{name}");
    }
}

#[test]
fn every_server_frame_keeps_its_bytes_and_its_view_says_the_same() {
    for (name, frame) in server_frames() {
        let encoded = client::ServerFrame { frame: Some(frame) }.encode_to_vec();
        golden(name, &encoded);
        let read = view::client::ServerFrame::read(&encoded).unwrap();
        assert_ne!(read, view::client::ServerFrame::Unknown, "{name}");
        let mut written = Vec::new();
        read.write(&mut written);
        assert_eq!(written, encoded, "{name}");
        assert_eq!(read.encoded_bytes(), encoded.len(), "{name}");
    }
}

#[test]
fn every_edge_message_keeps_its_bytes_and_its_view_says_the_same() {
    let mut batch = Vec::new();
    let mut messages = Vec::new();
    for (name, message) in edge_messages() {
        let message = link::EdgeMessage { message: Some(message) };
        let encoded = message.encode_to_vec();
        golden(name, &encoded);
        let read = view::link::EdgeMessage::read(&encoded).unwrap();
        assert_ne!(read, view::link::EdgeMessage::Unknown, "{name}");
        read.write(&mut batch);
        messages.push(message);
    }
    assert_eq!(batch, link::EdgeBatch { messages }.encode_to_vec());
}

#[test]
fn every_router_message_keeps_its_bytes_and_its_view_says_the_same() {
    let mut batch = Vec::new();
    let mut messages = Vec::new();
    for (name, message) in router_messages() {
        let message = link::RouterMessage { message: Some(message) };
        let encoded = message.encode_to_vec();
        golden(name, &encoded);
        let read = view::link::RouterMessage::read(&encoded).unwrap();
        assert_ne!(read, view::link::RouterMessage::Unknown, "{name}");
        read.write(&mut batch);
        let expected = match name {
            "router_hello_ack"
            | "router_hello_ack_of_many"
            | "router_heartbeat"
            | "router_ownership" => None,
            _ => Some(0x0010_0000_0100_0002),
        };
        assert_eq!(view::link::connection_of(&encoded), Ok(expected), "{name}");
        messages.push(message);
    }
    assert_eq!(batch, link::RouterBatch { messages }.encode_to_vec());
}

#[test]
fn the_json_form_has_protobufs_names_and_reads_back() {
    for (name, frame) in client_frames() {
        let frame = client::ClientFrame { frame: Some(frame) };
        let json = serde_json::to_string(&frame).unwrap();
        assert_eq!(
            serde_json::from_str::<client::ClientFrame>(&json).unwrap(),
            frame,
            "{name}: {json}"
        );
    }
    for (name, frame) in server_frames() {
        let frame = client::ServerFrame { frame: Some(frame) };
        let json = serde_json::to_string(&frame).unwrap();
        assert_eq!(
            serde_json::from_str::<client::ServerFrame>(&json).unwrap(),
            frame,
            "{name}: {json}"
        );
    }
    let send = client_frames().remove(1).1;
    let json = serde_json::to_value(client::ClientFrame { frame: Some(send) }).unwrap();
    let expected = serde_json::json!({"send": {
        "clientMessageId": "m-1", "toUser": "bob", "payload": "aGVsbG8=", "expiresAfterMs": "60000"
    }});
    assert_eq!(json, expected);
}

#[test]
fn fields_of_a_later_release_are_passed_over() {
    // Field 99, a string, in front of and behind the fields that are known.
    let unknown = [0x9a, 0x06, 0x02, b'h', b'i'];
    let mut inner = unknown.to_vec();
    inner.extend(client::Ack { sequence: 5, read_sequence: None }.encode_to_vec());
    inner.extend(unknown);
    let mut frame = vec![0x1a, inner.len() as u8];
    frame.extend(inner);
    frame.extend(unknown);
    let expected = view::client::Ack { sequence: 5, read_sequence: None };
    assert_eq!(
        view::client::ClientFrame::read(&frame),
        Ok(view::client::ClientFrame::Ack(expected))
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_a_view(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = view::client::ClientFrame::read(&bytes);
        let _ = view::client::ServerFrame::read(&bytes);
        let _ = view::link::EdgeMessage::read(&bytes);
        let _ = view::link::RouterMessage::read(&bytes);
        let _ = view::link::connection_of(&bytes);
        let mut batch = view::link::Batch::new(&bytes);
        while let Ok(Some(_)) = batch.next_message() {}
    }

    #[test]
    fn a_view_reads_what_the_generated_types_write(
        id in ".{0,64}", to in ".{0,64}", payload in prop::collection::vec(any::<u8>(), 0..2000),
        expires in any::<Option<u64>>(), cut in any::<prop::sample::Index>()
    ) {
        let send = client::Send {
            client_message_id: id.clone(),
            to: Some(client::send::To::ToUser(to.clone())),
            payload: payload.clone().into(),
            expires_after_ms: expires,
        };
        let frame = client::ClientFrame { frame: Some(client::client_frame::Frame::Send(send)) };
        let encoded = frame.encode_to_vec();
        let view = view::client::ClientFrame::read(&encoded);
        let expected = view::client::Send {
            client_message_id: &id, to_user: &to, to_group: "", payload: &payload, expires_after_ms: expires,
        };
        prop_assert_eq!(view, Ok(view::client::ClientFrame::Send(expected)));
        let short = &encoded[..cut.index(encoded.len())];
        prop_assert_eq!(
            view::client::ClientFrame::read(short).is_ok(),
            client::ClientFrame::decode(short).is_ok()
        );
    }
}

/// Edges neither say nor hear these, so they have no view: to an edge they are of a kind that it does not know.
#[test]
fn what_the_server_api_asks_and_hears_keeps_its_bytes_and_is_passed_over_by_views() {
    use link::query::Kind as Asked;
    use link::query_answer::Kind as Answered;
    let device = || link::DeviceState {
        device: "phone".into(),
        cursor: 9,
        seen_at_ms: 1_790_000_000_000,
        connected: true,
        in_flight: 3,
    };
    let asked = [
        ("edge_query_online", Asked::Online(link::OnlineQuery { devices: true })),
        ("edge_query_inbox", Asked::Inbox(link::InboxQuery {})),
        ("edge_query_trace", Asked::Trace(link::TraceQuery { message_id: 5 << 48 | 77 })),
        (
            "edge_query_disconnect",
            Asked::Disconnect(link::DisconnectQuery {
                device: "phone".into(),
                reason: link::disconnect::Reason::Operator.into(),
            }),
        ),
    ];
    for (name, kind) in asked {
        let query = link::Query { ticket: 12, user: "bob".into(), kind: Some(kind) };
        let message = Some(link::edge_message::Message::Query(query));
        let encoded = link::EdgeMessage { message }.encode_to_vec();
        golden(name, &encoded);
        let read = view::link::EdgeMessage::read(&encoded);
        assert_eq!(read, Ok(view::link::EdgeMessage::Unknown), "{name}");
    }
    let connection = link::OnlineConnection {
        device: "phone".into(),
        edge: "edge-1".into(),
        edge_number: 3,
        connection: 0x0010_0000_0100_0002,
        client_kind: "app".into(),
        client_version: "1.2".into(),
        connected_at_ms: 1_790_000_000_000,
    };
    let step = link::TraceStep {
        kind: link::trace_step::Kind::Delivered.into(),
        device: "phone".into(),
        at_ms: 1_790_000_000_001,
        edge: "edge-1".into(),
        edge_number: 3,
        connection: 0x0010_0000_0100_0002,
    };
    let trace = link::Trace {
        message_id: 5 << 48 | 77,
        user: "bob".into(),
        sequence: 10,
        offset: 77,
        accepted_at_ms: 1_790_000_000_000,
        held: true,
        steps: vec![step],
    };
    let online = link::Online { connections: vec![connection], devices: vec![device()] };
    let inbox = link::InboxState { floor: 3, next: 10, devices: vec![device()] };
    let answered = [
        ("router_answer_online", Answered::Online(online)),
        ("router_answer_inbox", Answered::Inbox(inbox)),
        ("router_answer_trace", Answered::Trace(trace)),
        (
            "router_answer_disconnected",
            Answered::Disconnected(link::Disconnected { connections: 2 }),
        ),
        ("router_answer_failure", Answered::Failure(failure().unwrap_or_default())),
    ];
    for (name, kind) in answered {
        let answer = link::QueryAnswer { ticket: 12, kind: Some(kind) };
        let message = Some(link::router_message::Message::QueryAnswer(answer));
        let encoded = link::RouterMessage { message }.encode_to_vec();
        golden(name, &encoded);
        let read = view::link::RouterMessage::read(&encoded);
        assert_eq!(read, Ok(view::link::RouterMessage::Unknown), "{name}");
        assert_eq!(view::link::connection_of(&encoded), Ok(None), "{name}");
    }
}
