//! The bodies of the fuzz targets, run on inputs near valid ones: bounded by count, replayable by seed.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use hawser_edge::ws::{Deflater, Opcode, WindowBits, write_masked_message, write_message};
use hawser_proto::view::client::{ClientFrame, Connect, Deliver, Send, ServerFrame};
use hawser_proto::view::link::{self, EdgeMessage, RouterMessage};

const INPUTS: usize = 20_000;
const MUTATIONS_MAX: usize = 6;
/// An input that grows past this has had enough spliced into it.
const INPUT_BYTES_MAX: usize = 2048;

/// Runs `body` on inputs mutated from `seeds`, and on some that are noise.
fn run(body: fn(&[u8]), seeds: &[Vec<u8>]) {
    let seed: u64 = match std::env::var("HAWSER_SEED") {
        Ok(seed) => seed.parse().expect("HAWSER_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    // Seen only when the test fails.
    println!("HAWSER_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for seed in seeds {
        body(seed);
    }
    for at in 0..INPUTS {
        let mut input = match random.choice(seeds) {
            Some(seed) if at % 8 != 0 => seed.clone(),
            _ => (0..random.usize(..64)).map(|_| random.u8(..)).collect(),
        };
        for _ in 0..random.usize(..=MUTATIONS_MAX) {
            mutate(&mut random, &mut input, seeds);
        }
        body(&input);
    }
}

fn mutate(random: &mut fastrand::Rng, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    if input.is_empty() || input.len() > INPUT_BYTES_MAX {
        *input = vec![random.u8(..)];
    }
    let at = random.usize(..input.len());
    let end = random.usize(at..=input.len());
    match random.u8(..6) {
        0 => input[at] ^= 1 << random.u8(..8),
        1 => input[at] = random.u8(..),
        2 => input.insert(at, random.u8(..)),
        3 => drop(input.drain(at..end)),
        4 => input.extend_from_within(at..end),
        _ => {
            let other = random.choice(seeds).map_or(&[][..], Vec::as_slice);
            let from = random.usize(..=other.len());
            input.splice(at..end, other[from..].iter().copied());
        }
    }
}

#[test]
fn request_heads_near_good_ones() {
    let good = "GET /ws?token=t HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: hawser.v1.json\r\n\r\n";
    let seeds = [
        good.to_owned(),
        good.replace("/ws?token=t", "http://example.com/echo"),
        good.replace("HTTP/1.1", "HTTP/1.9"),
        format!("\r\n{}", good.replace("GET", "POST").replace("Upgrade: websocket\r\n", "")),
    ];
    run(bodies::request_head, &seeds.map(String::into_bytes));
}

#[test]
fn frames_near_good_ones() {
    let key = [0x37, 0xfa, 0x21, 0x3d];
    let frames = |role: u8, key: Option<[u8; 4]>| {
        let mut bytes = vec![role, 7];
        for (first, payload) in [
            (0x81, &b"Hello"[..]),
            (0x01, "κόσ".as_bytes()),
            (0x89, b"ping"),
            (0x80, "με".as_bytes()),
            (0x82, &[0; 126]),
            (0x88, b"\x03\xe8bye"),
        ] {
            let at = bytes.len();
            write_masked_message(&mut bytes, Opcode::Binary, payload, key.unwrap_or_default());
            bytes[at] = first;
            if key.is_none() {
                bytes[at + 1] &= 0x7f;
                let header_bytes = if payload.len() > 125 { 4 } else { 2 };
                bytes.drain(at + header_bytes..at + header_bytes + 4);
            }
        }
        bytes
    };
    run(bodies::frame_decoder, &[frames(0, Some(key)), frames(1, None), frames(2, Some(key))]);
}

#[test]
fn client_frames_near_good_ones() {
    let write = |frame: ClientFrame<'_>| {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        bytes
    };
    let send = Send {
        client_message_id: "m1",
        to_user: "bob",
        payload: b"hi",
        expires_after_ms: Some(5),
        ..Send::default()
    };
    let mut deliver = Vec::new();
    ServerFrame::Deliver(Deliver {
        sequence: 7,
        from: "alice",
        payload: b"hi",
        ..Deliver::default()
    })
    .write(&mut deliver);
    let seeds = [
        write(ClientFrame::Send(send)),
        write(ClientFrame::Connect(Connect { token: "alice", device_id: "d", ..Connect::default() })),
        deliver,
        // An Error with a code of a later release, and a Receipt whose last id is cut: what could once be
        // read as protobuf and not be written as JSON.
        b":\x08@.:\x02\x90\x0a\x08[".to_vec(),
        b"\x22\x04\x1a\x02\x01\xb0".to_vec(),
        br#"{"send":{"clientMessageId":"m1","toUser":"bob","payload":"aGk=","expiresAfterMs":"5"}}"#
            .to_vec(),
        br#"{"connect":{"token":"alice","deviceId":"d","resumeCursor":"3","mode":"MODE_IDLE"}}"#
            .to_vec(),
    ];
    run(bodies::client_frame, &seeds);
}

#[test]
fn link_batches_near_good_ones() {
    let (mut edge, mut router) = (Vec::new(), Vec::new());
    EdgeMessage::Send(link::Send {
        client_message_id: "m1",
        payload: b"hi",
        ..link::Send::default()
    })
    .write(&mut edge);
    EdgeMessage::Heartbeat(link::Heartbeat { time_ms: 5 }).write(&mut edge);
    RouterMessage::Deliver(link::Deliver { payload: b"hi", ..link::Deliver::default() })
        .write(&mut router);
    RouterMessage::Receipt(link::Receipt::default()).write(&mut router);
    run(bodies::link_frame, &[edge, router]);
}

#[test]
fn proxy_headers_near_good_ones() {
    let v2 = |version_command, family, block: &[u8]| {
        let fixed = [version_command, family, 0, block.len() as u8];
        [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &fixed, block].concat()
    };
    let seeds = [
        b"PROXY TCP4 192.0.2.1 10.0.0.1 49152 443\r\n".to_vec(),
        b"PROXY TCP6 2001:db8::1 ::ffff:10.0.0.1 49152 443\r\n".to_vec(),
        b"PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n".to_vec(),
        v2(0x21, 0x11, &[192, 0, 2, 1, 10, 0, 0, 1, 0xc0, 0, 1, 0xbb, 3, 0, 4, 1, 2, 3, 4]),
        v2(0x21, 0x21, &[7; 36]),
        v2(0x21, 0x31, &[b'/'; 216]),
        v2(0x20, 0x00, &[]),
    ];
    run(bodies::proxy_header, &seeds);
}

#[test]
fn deflated_messages_near_good_ones() {
    let deflate = |first: u8, payload: &[u8]| {
        let mut message = Vec::new();
        write_message(&mut message, Opcode::Binary, payload);
        Deflater::new(6, 0).deflate_message(&mut message, 0, WindowBits::new(9 + first % 7));
        let header_bytes = if message[1] < 126 { 2 } else { 4 };
        assert_eq!(message[0], 0xc2, "deflated");
        message.splice(..header_bytes, [first]);
        message
    };
    let text = r#"{"deliver":{"sequence":"7","messageId":"9","from":"alice","payload":"aGVsbG8gd29ybGQ="}}"#;
    let seeds = [
        deflate(0x80, text.repeat(5).as_bytes()),
        deflate(0x86, "κόσμε ".repeat(50).as_bytes()),
        // A bomb: a thousand times its size.
        deflate(0, &[0; 60_000]),
        deflate(3, &(0..=255).cycle().take(3000).collect::<Vec<u8>>()),
        // The examples of RFC 7692 section 7.2.3: a fixed block, a stored one, a last one, and two blocks.
        b"\0\xf2\x48\xcd\xc9\xc9\x07\x00".to_vec(),
        b"\0\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00".to_vec(),
        b"\0\xf3\x48\xcd\xc9\xc9\x07\x00\x00".to_vec(),
        b"\0\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00".to_vec(),
    ];
    run(bodies::inflate, &seeds);
}

#[test]
fn tls_records_near_good_ones() {
    let client_hello = |minor| {
        let mut hello = vec![0, 9, 22, 3, 1, 0, 45, 1, 0, 0, 41, 3, minor];
        hello.extend([7; 32]);
        hello.extend([0, 0, 2, 0x13, 1, 1, 0]);
        hello
    };
    // Data, an empty record, a key update that wants an answer, one cut in two, a close_notify.
    let script =
        b"\x17\x05hello\x17\0\x16\x05\x18\0\0\x01\x01\x17\x05world\x16\x02\x18\0\x16\x03\0\x01\0\
        \x15\x02\x01\0\x17\x01!";
    let with = |head: &[u8], bytes: &[u8]| [head, bytes].concat();
    let seeds = [
        client_hello(3),
        client_hello(1),
        with(&[0, 3], b"GET / HTTP/1.1\r\n"),
        with(&[1, 3], b"\x17\x03\x03\0\x13nineteen sealed bytes"),
        with(&[2, 30], script),
        with(&[3, 30, 0, 200], script),
    ];
    run(bodies::tls_records, &seeds);
}

#[test]
fn tokens_claims_and_key_sets_near_good_ones() {
    let claims = r#"{"sub":"alice","exp":1790000600,"nbf":1790000000,"aud":[],"device":"phone",
        "permissions":["send:users","signals"],"rate_class":"bot","more":{"a":[1,null,"x"]}}"#;
    let set = r#"{"keys":[
        {"kty":"OKP","crv":"Ed25519","kid":"1","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty":"oct","alg":"HS256","k":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"},
        {"kty":"RSA","use":"sig","n":"AQAB","e":"AQAB"}]}"#;
    let seeds = [
        claims.to_owned(),
        claims.replace("1790000600", "1.79e9"),
        bodies::signed_claims(claims.replace(r#""aud":[],"#, "").as_bytes()),
        r#"{"alg":"HS256","kid":"1","crit":["x"]}"#.to_owned(),
        set.to_owned(),
    ];
    run(bodies::token, &seeds.map(String::into_bytes));
}
