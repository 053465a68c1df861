//! What each fuzz target checks, given any bytes: no panic, and a few truths that hold for all inputs.
//! Shared by the targets and by `tests/fuzz_briefly.rs`.

use hawser_edge::client;
use hawser_edge::conn::Codec;
use hawser_edge::http::{self, Outcome, Routes};
use hawser_edge::proxy;
use hawser_edge::ws::{Decoder, Item, Pool, ProtocolError, Role, Settings};
use hawser_proto::framing::{LENGTH_BYTES, first_frame};
use hawser_proto::view::client::ServerFrame;
use hawser_proto::view::link::{Batch, EdgeMessage, RouterMessage, connection_of};

/// A request head comes to the same however it is cut, and has a whole answer.
pub(crate) fn request_head(input: &[u8]) {
    let routes = Routes {
        client_path: "/ws".to_owned(),
        echo_path: Some("/echo".to_owned()),
        origins: vec!["https://*.example.com".parse().expect("an origin")],
    };
    let whole = http::read_head(input, 0, &routes);
    let single = (1..=input.len())
        .map(|end| http::read_head(&input[..end], end - 1, &routes))
        .find(|outcome| *outcome != Outcome::Incomplete);
    assert_eq!(single.unwrap_or(Outcome::Incomplete), whole, "byte by byte and in a piece");

    let mut answer = Vec::new();
    match &whole {
        Outcome::Incomplete => assert!(input.len() < http::HEAD_BYTES_MAX),
        Outcome::Upgrade(upgrade) => {
            let head = &input[..upgrade.head_bytes];
            assert!(head.ends_with(b"\r\n\r\n"));
            assert!(head.get(upgrade.query.clone()).is_some());
            assert!(head.get(upgrade.bearer.clone()).is_some());
            let _ = http::token_of(head, upgrade);
            http::write_upgrade(&mut answer, upgrade);
            assert!(answer.ends_with(b"\r\n\r\n"));
        }
        Outcome::Refused(refusal) => {
            refusal.write(&mut answer);
            assert!((400..600).contains(&refusal.status));
            assert!(answer.starts_with(b"HTTP/1.1 "));
        }
    }
}

/// Frames come to the same items and the same error however they are cut. The first byte of `input` says
/// which end reads them, the second where the cuts are.
pub(crate) fn frame_decoder(input: &[u8]) {
    let [role, cut, bytes @ ..] = input else { return };
    let role = if role % 2 == 0 { Role::Server } else { Role::Client };
    let settings = Settings { role, message_bytes_max: 1000 };
    let mut pool = Pool::default();
    let whole = decode(&settings, &mut pool, bytes, bytes.len().max(1));
    for piece_bytes in [1, usize::from(*cut).max(1)] {
        let pieces = decode(&settings, &mut pool, bytes, piece_bytes);
        assert_eq!(pieces, whole, "in pieces of {piece_bytes} and in one");
    }
}

/// Items, each as a number for its kind and its payload, and how it ended.
type Decoded = (Vec<(u8, Vec<u8>)>, Result<(), ProtocolError>);

fn decode(settings: &Settings, pool: &mut Pool, bytes: &[u8], piece_bytes: usize) -> Decoded {
    let mut decoder = Decoder::default();
    let mut items = Vec::new();
    for piece in bytes.to_vec().chunks_mut(piece_bytes) {
        let mut at = 0;
        while at < piece.len() {
            let (taken, item) = match decoder.next(&mut piece[at..], settings, pool) {
                Ok(next) => next,
                Err(error) => return (items, Err(error)),
            };
            assert!(taken > 0, "a step takes something");
            at += taken;
            match item {
                Some(Item::Message { text, payload }) => {
                    assert!(payload.len() <= settings.message_bytes_max);
                    assert!(!text || str::from_utf8(payload).is_ok());
                    items.push((u8::from(text), payload.to_vec()));
                }
                Some(Item::Ping(payload)) => items.push((9, payload.to_vec())),
                Some(Item::Pong(payload)) => items.push((10, payload.to_vec())),
                Some(Item::Close(close)) => {
                    items.push((8, format!("{close:?}").into_bytes()));
                    return (items, Ok(()));
                }
                None => {}
            }
        }
        decoder.settle(pool);
    }
    (items, Ok(()))
}

/// A client frame that can be read is written in a form that is read as the same, in both codecs; a server
/// frame takes the bytes that were counted.
pub(crate) fn client_frame(input: &[u8]) {
    for (codec, text) in [(Codec::Proto, false), (Codec::Json, true)] {
        let (mut scratch, mut again) = (Vec::new(), Vec::new());
        if let Ok(frame) = client::read(codec, text, input, &mut scratch) {
            let mut written = Vec::new();
            frame.write(&mut written);
            let read = client::read(Codec::Proto, false, &written, &mut again);
            assert_eq!(read, Ok(frame));
        }
    }
    if let Ok(frame) = ServerFrame::read(input) {
        let mut written = Vec::new();
        frame.write(&mut written);
        assert_eq!(written.len(), frame.encoded_bytes());
        assert_eq!(ServerFrame::read(&written), Ok(frame));
        written.clear();
        client::write(Codec::Proto, &frame, &mut written);
        client::write(Codec::Json, &frame, &mut written);
        let settings = Settings { role: Role::Client, message_bytes_max: usize::MAX };
        let (items, end) = decode(&settings, &mut Pool::default(), &written, written.len());
        assert_eq!((items.len(), end), (2, Ok(())), "two whole messages");
    }
}

/// A link batch that can be read is written message by message in a form that is read as the same, in both
/// directions.
pub(crate) fn link_frame(input: &[u8]) {
    if let Ok(Some(body)) = first_frame(input) {
        assert!(!body.is_empty() && LENGTH_BYTES + body.len() <= input.len());
    }
    let mut batch = Batch::new(input);
    while let Ok(Some(message)) = batch.next_message() {
        let mut written = Vec::new();
        if let Ok(read) = EdgeMessage::read(message) {
            read.write(&mut written);
            assert_eq!(EdgeMessage::read(first_message(&written)), Ok(read));
        }
        written.clear();
        if let Ok(read) = RouterMessage::read(message) {
            read.write(&mut written);
            assert_eq!(RouterMessage::read(first_message(&written)), Ok(read));
        }
        let _ = connection_of(message);
    }
}

/// The message of a batch of one; nothing, which reads as unknown, when that was not written.
fn first_message(batch: &[u8]) -> &[u8] {
    Batch::new(batch).next_message().expect("a good batch").unwrap_or_default()
}

/// A PROXY header comes to the same however it is cut, lies within its bound, and does not depend on what is behind it.
pub(crate) fn proxy_header(input: &[u8]) {
    let whole = proxy::read_header(input);
    let single = (0..=input.len())
        .map(|end| proxy::read_header(&input[..end]))
        .find(|outcome| *outcome != Ok(None));
    assert_eq!(single.unwrap_or(Ok(None)), whole, "byte by byte and in a piece");
    match whole {
        Ok(None) => assert!(input.len() < proxy::V2_BYTES_MAX),
        Ok(Some(header)) => {
            assert!(header.header_bytes <= proxy::V2_BYTES_MAX);
            assert_eq!(proxy::read_header(&input[..header.header_bytes]), whole);
        }
        Err(_) => {}
    }
}
