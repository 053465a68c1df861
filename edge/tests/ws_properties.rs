//! The WebSocket codec as a whole: what is written is what is read, whatever the network does to it.

use hawser_edge::ws::{
    Decoder, Item, Opcode, Pool, ProtocolError, Role, Settings, encoder, write_masked_message,
    write_message,
};
use proptest::prelude::*;
use proptest::sample::Index;

/// Something said, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16, String),
}

impl Said {
    fn opcode(&self) -> Opcode {
        match self {
            Self::Text(_) => Opcode::Text,
            Self::Binary(_) => Opcode::Binary,
            Self::Ping(_) => Opcode::Ping,
            Self::Pong(_) => Opcode::Pong,
            Self::Close(..) => Opcode::Close,
        }
    }

    fn payload(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Binary(bytes) | Self::Ping(bytes) | Self::Pong(bytes) => bytes.clone(),
            Self::Close(code, reason) => [&code.to_be_bytes(), reason.as_bytes()].concat(),
        }
    }
}

fn message() -> impl Strategy<Value = Said> {
    prop_oneof![
        ".{0,80}".prop_map(Said::Text),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(Said::Binary),
        // Around 65,536 bytes the length takes another form.
        (65_530..65_540usize, any::<u8>())
            .prop_map(|(bytes, fill)| Said::Binary(vec![fill; bytes])),
    ]
}

fn control() -> impl Strategy<Value = Said> {
    let payload = || prop::collection::vec(any::<u8>(), 0..=125);
    prop_oneof![payload().prop_map(Said::Ping), payload().prop_map(Said::Pong)]
}

/// Decodes `bytes`, received in pieces that end at `cuts`.
fn decode(
    role: Role,
    bytes: &[u8],
    cuts: &[Index],
) -> Result<Vec<Said>, (Vec<Said>, ProtocolError)> {
    let settings = Settings { role, message_bytes_max: 1 << 20, deflate: false };
    let (mut decoder, mut pool) = (Decoder::default(), Pool::default());
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut bytes = bytes.to_vec();
    let (mut said, mut at) = (Vec::new(), 0);
    for end in ends {
        while at < end {
            match decoder.next(&mut bytes[at..end], &settings, &mut pool) {
                Ok((taken, item)) => {
                    at += taken;
                    said.extend(item.map(owned));
                }
                Err(error) => return Err((said, error)),
            }
            if matches!(said.last(), Some(Said::Close(..))) {
                return Ok(said);
            }
        }
        decoder.settle(&mut pool);
    }
    Ok(said)
}

fn owned(item: Item<'_>) -> Said {
    match item {
        Item::Message { text: true, payload } => {
            Said::Text(String::from_utf8(payload.to_vec()).expect("text is UTF-8"))
        }
        Item::Message { text: false, payload } => Said::Binary(payload.to_vec()),
        Item::Deflated { .. } => unreachable!("it was not agreed on"),
        Item::Ping(payload) => Said::Ping(payload.to_vec()),
        Item::Pong(payload) => Said::Pong(payload.to_vec()),
        // 1005 stands for "no code" (RFC 6455 section 7.4.1) and is never read from a frame.
        Item::Close(close) => {
            let (code, reason) = close.unwrap_or((1005, ""));
            Said::Close(code, reason.to_owned())
        }
    }
}

/// Writes `message` in fragments that end at `cuts`, with a control frame behind each but the last.
fn write_fragments(
    out: &mut Vec<u8>,
    message: &Said,
    cuts: &[(Index, Said)],
    key: [u8; 4],
) -> Vec<Said> {
    let payload = message.payload();
    let mut cuts: Vec<_> =
        cuts.iter().map(|(cut, control)| (cut.index(payload.len() + 1), control.clone())).collect();
    cuts.sort_by_key(|(cut, _)| *cut);
    let (mut said, mut at, mut opcode) = (Vec::new(), 0, message.opcode());
    for (cut, control) in cuts {
        let header_at = out.len();
        write_masked_message(out, opcode, &payload[at..cut], key);
        out[header_at] &= 0x7f;
        write_masked_message(out, control.opcode(), &control.payload(), key);
        said.push(control);
        (at, opcode) = (cut, Opcode::Continuation);
    }
    write_masked_message(out, opcode, &payload[at..], key);
    said.push(message.clone());
    said
}

proptest! {
    #[test]
    fn what_a_client_writes_is_what_the_server_reads_wherever_it_is_cut(
        messages in prop::collection::vec((prop_oneof![message(), control()], any::<[u8; 4]>()), 0..6),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let mut bytes = Vec::new();
        for (said, key) in &messages {
            write_masked_message(&mut bytes, said.opcode(), &said.payload(), *key);
        }
        let said: Vec<Said> = messages.into_iter().map(|(said, _)| said).collect();
        prop_assert_eq!(decode(Role::Server, &bytes, &cuts), Ok(said));
    }

    #[test]
    fn what_a_server_writes_is_what_the_client_reads_wherever_it_is_cut(
        messages in prop::collection::vec(prop_oneof![message(), control()], 0..6),
        (code, reason) in (3000..5000u16, ".{0,60}"),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let mut bytes = Vec::new();
        for said in &messages {
            write_message(&mut bytes, said.opcode(), &said.payload());
        }
        encoder::write_close(&mut bytes, code, &reason);
        let mut said = decode(Role::Client, &bytes, &cuts).expect("good frames");
        let Some(Said::Close(read_code, read_reason)) = said.pop() else { panic!("no close") };
        prop_assert_eq!(read_code, code);
        prop_assert!(reason.starts_with(&read_reason));
        prop_assert!(read_reason == reason || read_reason.len() > encoder::CLOSE_REASON_BYTES_MAX - 4);
        prop_assert_eq!(said, messages);
    }

    #[test]
    fn a_message_in_fragments_with_control_frames_between_them_is_one_message(
        message in message(),
        fragments in prop::collection::vec((any::<Index>(), control()), 0..5),
        key in any::<[u8; 4]>(),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        let mut bytes = Vec::new();
        let said = write_fragments(&mut bytes, &message, &fragments, key);
        prop_assert_eq!(decode(Role::Server, &bytes, &cuts), Ok(said));
    }

    #[test]
    fn what_any_bytes_make_does_not_depend_on_where_they_are_cut(
        bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(&[0x00, 0x01, 0x80, 0x81, 0x82, 0x89][..])],
            0..80,
        ),
        cuts in prop::collection::vec(any::<Index>(), 0..12),
    ) {
        for role in [Role::Server, Role::Client] {
            prop_assert_eq!(decode(role, &bytes, &cuts), decode(role, &bytes, &[]));
        }
    }
}
