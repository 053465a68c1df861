//! Client frames: protobuf and JSON, in and out.
//!
//! Protobuf is read and written in place, without a copy or an allocation. JSON is for people and for
//! debugging: it takes the way through the generated types, and may allocate.

use hawser_proto::client as owned;
use hawser_proto::view::client::{ClientFrame, ServerFrame};
use prost::Message as _;

use crate::conn::{CloseReason, Codec};
use crate::ws::{self, Opcode};

/// Reads one client frame from the payload of one WebSocket message.
///
/// `scratch` holds what the frame borrows when it came as JSON.
///
/// # Errors
/// [`CloseReason::WrongMessageType`] when text came where binary is spoken or the other way round,
/// [`CloseReason::BadClientFrame`] when the payload is no frame.
pub fn read<'a>(
    codec: Codec,
    text: bool,
    payload: &'a [u8],
    scratch: &'a mut Vec<u8>,
) -> Result<ClientFrame<'a>, CloseReason> {
    match codec {
        Codec::Proto if text => Err(CloseReason::WrongMessageType),
        Codec::Json if !text => Err(CloseReason::WrongMessageType),
        Codec::Proto => ClientFrame::read(payload).map_err(|_| CloseReason::BadClientFrame),
        Codec::Json => {
            let frame: owned::ClientFrame =
                serde_json::from_slice(payload).map_err(|_| CloseReason::BadClientFrame)?;
            scratch.clear();
            scratch.reserve(frame.encoded_len());
            frame.encode(scratch).map_err(|_| CloseReason::BadClientFrame)?;
            ClientFrame::read(scratch).map_err(|_| CloseReason::BadClientFrame)
        }
    }
}

/// Writes one server frame as one WebSocket message at the end of `out`.
#[inline]
pub fn write(codec: Codec, frame: &ServerFrame<'_>, out: &mut Vec<u8>) {
    match codec {
        Codec::Proto => {
            ws::write_header(out, Opcode::Binary, frame.encoded_bytes());
            frame.write(out);
        }
        Codec::Json => write_json(frame, out),
    }
}

fn write_json(frame: &ServerFrame<'_>, out: &mut Vec<u8>) {
    let mut encoded = Vec::with_capacity(frame.encoded_bytes());
    frame.write(&mut encoded);
    let text = owned::ServerFrame::decode(encoded.as_slice())
        .ok()
        .and_then(|frame| serde_json::to_string(&with_named_enums(frame)).ok());
    debug_assert!(text.is_some(), "what we write, we can read");
    if let Some(text) = text {
        ws::write_message(out, Opcode::Text, text.as_bytes());
    }
}

/// Sets enum values of a later release, which a newer router may send, to unspecified: they have no name
/// here, and without one pbjson writes nothing at all, so that a client would miss its answer.
fn with_named_enums(mut frame: owned::ServerFrame) -> owned::ServerFrame {
    use owned::server_frame::Frame;

    match &mut frame.frame {
        Some(Frame::Error(error)) => error.set_code(error.code()),
        Some(Frame::SendAck(ack)) => {
            if let Some(error) = &mut ack.error {
                error.set_code(error.code());
            }
        }
        Some(Frame::Gap(gap)) => gap.set_reason(gap.reason()),
        Some(Frame::Receipt(receipt)) => receipt.set_kind(receipt.kind()),
        Some(
            Frame::Welcome(_)
            | Frame::Deliver(_)
            | Frame::Signal(_)
            | Frame::GoAway(_)
            | Frame::Pong(_)
            | Frame::Refreshed(_),
        )
        | None => {}
    }
    frame
}

#[cfg(test)]
mod tests {
    use hawser_proto::view::client::{Deliver, Send, SendAck};

    use super::*;

    #[test]
    fn the_same_frame_is_read_from_protobuf_and_from_json() {
        let json = br#"{"send":{"clientMessageId":"m1","toUser":"bob","payload":"aGk=","expiresAfterMs":"5"}}"#;
        let expected = ClientFrame::Send(Send {
            client_message_id: "m1",
            to_user: "bob",
            payload: b"hi",
            expires_after_ms: Some(5),
            ..Send::default()
        });
        let mut scratch = Vec::new();
        assert_eq!(read(Codec::Json, true, json, &mut scratch), Ok(expected));
        let mut proto = Vec::new();
        expected.write(&mut proto);
        assert_eq!(read(Codec::Proto, false, &proto, &mut scratch), Ok(expected));
    }

    #[test]
    fn a_frame_kind_of_a_later_release_is_unknown_in_both_forms() {
        let mut scratch = Vec::new();
        let json = br#"{"teleport":{"where":"mars"}}"#;
        assert_eq!(read(Codec::Json, true, json, &mut scratch), Ok(ClientFrame::Unknown));
        let proto = [0xfa, 0x01, 0x00];
        assert_eq!(read(Codec::Proto, false, &proto, &mut scratch), Ok(ClientFrame::Unknown));
    }

    #[test]
    fn what_is_no_frame_and_what_comes_in_the_wrong_kind_of_message_is_told_apart() {
        let mut scratch = Vec::new();
        assert_eq!(read(Codec::Json, true, b"{", &mut scratch), Err(CloseReason::BadClientFrame));
        assert_eq!(
            read(Codec::Proto, false, b"\x0a\x05", &mut scratch),
            Err(CloseReason::BadClientFrame)
        );
        assert_eq!(read(Codec::Proto, true, b"", &mut scratch), Err(CloseReason::WrongMessageType));
        assert_eq!(
            read(Codec::Json, false, b"{}", &mut scratch),
            Err(CloseReason::WrongMessageType)
        );
    }

    #[test]
    fn an_enum_value_of_a_later_release_still_reaches_a_client_that_speaks_json() {
        let error = hawser_proto::view::client::Error { code: 91, message: "new", retryable: true };
        let ack = SendAck { client_message_id: "m1", error: Some(error), ..SendAck::default() };
        let mut out = Vec::new();
        write(Codec::Json, &ServerFrame::SendAck(ack), &mut out);
        let text = str::from_utf8(&out[2..]).unwrap();
        assert!(text.contains(r#""clientMessageId":"m1""#), "{text}");
        assert!(text.contains(r#""retryable":true"#), "{text}");
    }

    #[test]
    fn a_server_frame_is_one_whole_message() {
        let frame = ServerFrame::Deliver(Deliver {
            sequence: 7,
            from: "alice",
            payload: b"hi",
            ..Deliver::default()
        });
        let mut out = Vec::new();
        write(Codec::Proto, &frame, &mut out);
        assert_eq!(usize::from(out[1]), out.len() - 2);
        assert_eq!(ServerFrame::read(&out[2..]), Ok(frame));
        out.clear();
        write(Codec::Json, &frame, &mut out);
        let json: serde_json::Value = serde_json::from_slice(&out[2..]).unwrap();
        assert_eq!(json["deliver"]["sequence"], "7");
    }
}
