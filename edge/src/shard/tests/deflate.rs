//! permessage-deflate on a connection: agreed on or not, and what a client can do with it.

use super::*;
use crate::ws::{Deflater, Inflater, WindowBits};

const OFFER: &str = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
const MASK: [u8; 4] = [1, 2, 3, 4];

impl Rig {
    fn with_deflate() -> Self {
        Self::with(|config| {
            config.limit.deflate = true;
            config.echo_path = Some("/echo".into());
        })
    }

    /// An upgraded connection that has offered deflate, and the answer to its request.
    fn offering(&mut self, path: &str) -> (ConnKey, String) {
        let key = self.accept();
        let head = HEAD.replace("/ws", path).replace("\r\n\r\n", &format!("\r\n{OFFER}"));
        self.receive(key, head.as_bytes());
        let answer = String::from_utf8(self.sent(key)).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        (key, answer)
    }

    /// The one message sent to a client, and whether it came deflated.
    fn message(&mut self, key: ConnKey) -> (Vec<u8>, bool) {
        let mut bytes = self.sent(key);
        let settings =
            ws::Settings { role: Role::Client, message_bytes_max: 1 << 20, deflate: true };
        let (mut decoder, mut pool) = (ws::Decoder::default(), ws::Pool::default());
        let (taken, item) = decoder.next(&mut bytes, &settings, &mut pool).unwrap();
        let message = match item {
            Some(Item::Message { payload, .. }) => (payload.to_vec(), false),
            Some(Item::Deflated { text, payload }) => {
                (Inflater::default().inflate(text, payload, 1 << 20).unwrap().to_vec(), true)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(taken, bytes.len(), "one message");
        message
    }
}

/// A message as a client sends it, deflated. It has to be one that shrinks.
fn deflated(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    ws::write_message(&mut message, opcode, payload);
    let saved = Deflater::new(6, 0).deflate_message(&mut message, 0, Some(WindowBits::MAX));
    assert!(saved > 0, "shrinks");
    let (header, header_bytes) = ws::frame::read_header(&message, true).unwrap().unwrap();
    assert_eq!(header.opcode, opcode);
    marked(opcode, &message[header_bytes..])
}

/// A frame of these bytes that says it is deflated.
fn marked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    ws::write_masked_message(&mut frame, opcode, payload, MASK);
    frame[0] |= 0x40;
    frame
}

#[test]
fn messages_go_both_ways_deflated_once_that_is_agreed_on() {
    let mut rig = Rig::with_deflate();
    rig.link_up();
    let (key, answer) = rig.offering("/ws");
    let agreed = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_no_context_takeover\r\n";
    assert!(answer.contains(agreed), "{answer}");
    rig.says(key, connect("alice", "phone"));
    rig.registered(key, 0);
    assert!(!rig.message(key).1, "a Welcome is too small");
    rig.router_hears();

    let payload = br#"{"text":"the same again, "}"#.repeat(50);
    let mut frame = Vec::new();
    send("m1", "bob", &payload).write(&mut frame);
    let message = deflated(Opcode::Binary, &frame);
    for cut in [0, 3, 10, message.len() - 1] {
        rig.receive(key, &message[..cut]);
        rig.receive(key, &message[cut..]);
        let heard = rig.router_hears();
        assert!(matches!(&heard[..], [send] if send.ends_with("alice>bob m1")), "{heard:?}");
    }

    rig.router_says(RouterMessage::Deliver(link::Deliver {
        connection: key.to_connection_id(0),
        sequence: 1,
        from: "bob",
        payload: &payload,
        ..link::Deliver::default()
    }));
    let (message, came_deflated) = rig.message(key);
    assert!(came_deflated);
    let delivered = ServerFrame::read(&message).unwrap();
    assert!(matches!(delivered, ServerFrame::Deliver(d) if d.payload == payload));
    assert_eq!(rig.shard.counters.inflated_messages.get(), 4);
    assert!(rig.shard.counters.deflate_saved_bytes.get() > 1000);
}

#[test]
fn the_echo_gives_back_what_came_whether_it_came_deflated_or_not() {
    let mut rig = Rig::with_deflate();
    let (key, _) = rig.offering("/echo");
    let text = "κόσμε ".repeat(100);
    rig.receive(key, &deflated(Opcode::Text, text.as_bytes()));
    assert_eq!(rig.message(key), (text.clone().into_bytes(), true));
    let mut plain = Vec::new();
    ws::write_masked_message(&mut plain, Opcode::Text, text.as_bytes(), MASK);
    rig.receive(key, &plain);
    assert_eq!(rig.message(key), (text.into_bytes(), true));
    rig.receive(key, &marked(Opcode::Text, &[0x00]));
    assert_eq!(rig.message(key), (Vec::new(), false), "an empty message");
}

#[test]
fn what_a_client_may_not_do_with_deflate_has_its_close_code() {
    let bomb = deflated(Opcode::Binary, &vec![0; Config::default().message_bytes_max() + 1]);
    assert!(bomb.len() < 1000);
    for (message, code) in [
        (bomb, 1009),
        (marked(Opcode::Binary, b"\x07\xff"), 1007),
        (marked(Opcode::Binary, b""), 1007),
        (deflated(Opcode::Text, &b"caf\xe9 ".repeat(20)), 1007),
        (marked(Opcode::Ping, b""), 1002),
        (marked(Opcode::Continuation, b""), 1002),
    ] {
        let mut rig = Rig::with_deflate();
        let (key, _) = rig.offering("/echo");
        rig.receive(key, &message);
        assert_eq!(rig.gets(key), [Got::Close(code)], "{:02x?}", &message[..8.min(message.len())]);
    }
}

#[test]
fn who_did_not_agree_on_deflate_neither_gets_it_nor_may_use_it() {
    // Off, and offered; on, and not offered.
    let mut off = Rig::with(|config| config.echo_path = Some("/echo".into()));
    let (first, answer) = off.offering("/echo");
    assert!(!answer.contains("Sec-WebSocket-Extensions"), "{answer}");
    let mut on = Rig::with_deflate();
    let second = on.accept();
    on.receive(second, HEAD.replace("/ws", "/echo").as_bytes());
    on.sent(second);
    for (mut rig, key) in [(off, first), (on, second)] {
        let mut plain = Vec::new();
        ws::write_masked_message(&mut plain, Opcode::Text, &[b'a'; 1000], MASK);
        rig.receive(key, &plain);
        assert_eq!(rig.message(key), (vec![b'a'; 1000], false));
        rig.receive(key, &deflated(Opcode::Text, &[b'a'; 1000]));
        assert_eq!(rig.gets(key), [Got::Close(1002)]);
    }
}

#[test]
fn deflated_messages_behind_our_close_are_passed_over_until_the_clients_own() {
    let mut rig = Rig::with_deflate();
    let (key, _) = rig.offering("/ws");
    rig.says(key, ClientFrame::Ping(Ping { nonce: 1 }));
    let got = rig.gets(key);
    assert_eq!(got.last(), Some(&Got::Close(1008)));
    rig.receive(key, &marked(Opcode::Binary, b"\x07\xff"));
    let mut close = Vec::new();
    ws::write_masked_message(&mut close, Opcode::Close, &1008u16.to_be_bytes(), MASK);
    rig.receive(key, &close);
    assert!(rig.is_closed(key));
}
