//! Messages to frames, appended to a buffer that the caller owns.
//!
//! A message is one frame: fragments help only a sender that does not know its message's end, and
//! ours all do. Frames are a server's, unmasked; the load client adds a mask with
//! [`write_masked_message`]. Nothing is allocated while the buffer has room.

use super::frame::{
    CONTROL_PAYLOAD_BYTES_MAX, FIN_BIT, LENGTH_IN_16_BITS, LENGTH_IN_64_BITS, MASK_BIT, Opcode,
};
use super::mask;

/// Longest reason of a Close frame, in bytes: what the code leaves of a control frame.
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_PAYLOAD_BYTES_MAX - size_of::<u16>();
/// Longest header of an unmasked frame: two bytes and a 64-bit length.
pub const SERVER_HEADER_BYTES_MAX: usize = 10;

const KEY_BYTES: usize = 4;

/// Appends one message, Text or Binary, as one frame: header and payload.
#[inline]
pub fn write_message(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    out.reserve(SERVER_HEADER_BYTES_MAX + payload.len());
    write_header(out, opcode, payload.len());
    out.extend_from_slice(payload);
}

/// Appends the header of a whole message (FIN set, no mask): 2, 4 or 10 bytes. The caller appends or
/// sends exactly `payload_bytes` bytes after it.
#[inline]
pub fn write_header(out: &mut Vec<u8>, opcode: Opcode, payload_bytes: usize) {
    let (header, header_bytes) = header(opcode, payload_bytes, 0);
    out.extend_from_slice(&header[..header_bytes]);
}

/// A frame whose payload is being written; made by [`begin_message`], ended by [`finish_message`].
#[derive(Debug)]
#[must_use = "the header is written by finish_message"]
pub struct Begun {
    opcode: Opcode,
    header_at: usize,
    header_bytes: usize,
}

/// Starts a message whose payload the caller then appends to `out`, and ends with [`finish_message`].
///
/// `payload_bytes_expected` decides how much room is kept for the header. A guess on the right side
/// of 126 and 65,536 makes finishing free; a wrong one moves the payload by a few bytes.
#[inline]
pub fn begin_message(out: &mut Vec<u8>, opcode: Opcode, payload_bytes_expected: usize) -> Begun {
    out.reserve(SERVER_HEADER_BYTES_MAX + payload_bytes_expected);
    let header_at = out.len();
    let header_bytes = header_bytes(payload_bytes_expected);
    out.resize(header_at + header_bytes, 0);
    Begun { opcode, header_at, header_bytes }
}

/// Ends the message: everything appended to `out` since [`begin_message`] is its payload.
///
/// # Panics
///
/// When `out` was cut to before the payload's start in the meantime.
#[inline]
pub fn finish_message(out: &mut Vec<u8>, begun: Begun) {
    let Begun { opcode, header_at, header_bytes: kept } = begun;
    let payload_bytes = out.len() - header_at - kept;
    let (header, header_bytes) = header(opcode, payload_bytes, 0);
    if header_bytes != kept {
        move_payload(out, header_at + kept, header_at + header_bytes);
    }
    out[header_at..header_at + header_bytes].copy_from_slice(&header[..header_bytes]);
}

/// Moves everything from `from` on so that it starts at `to`.
#[cold]
fn move_payload(out: &mut Vec<u8>, from: usize, to: usize) {
    let end = out.len();
    if to > from {
        out.resize(end + to - from, 0);
    }
    out.copy_within(from..end, to);
    out.truncate(end + to - from);
}

/// Appends a Close frame. The reason is cut at a character border to the 123 bytes that fit.
///
/// `code` is not checked: it is one of ours, or one that the decoder let pass.
pub fn write_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    write_header(out, Opcode::Close, size_of::<u16>() + reason.len());
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Appends a Close frame without code: the answer to a Close frame without code.
pub fn write_empty_close(out: &mut Vec<u8>) {
    write_header(out, Opcode::Close, 0);
}

/// Appends a Ping frame. Payload bytes past 125 are left out.
pub fn write_ping(out: &mut Vec<u8>, payload: &[u8]) {
    write_control(out, Opcode::Ping, payload);
}

/// Appends a Pong frame, the answer to a Ping with the same payload. Payload bytes past 125 are left
/// out.
pub fn write_pong(out: &mut Vec<u8>, payload: &[u8]) {
    write_control(out, Opcode::Pong, payload);
}

fn write_control(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let payload = &payload[..payload.len().min(CONTROL_PAYLOAD_BYTES_MAX)];
    write_message(out, opcode, payload);
}

/// Appends one masked frame, as a client sends it: a message, or a control frame of at most 125 bytes.
///
/// RFC 6455 section 5.3 wants `key` from a strong source of randomness; a load client may do with less.
#[inline]
pub fn write_masked_message(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], key: [u8; 4]) {
    let (header, header_bytes) = header(opcode, payload.len(), MASK_BIT);
    out.reserve(header_bytes + KEY_BYTES + payload.len());
    out.extend_from_slice(&header[..header_bytes]);
    out.extend_from_slice(&key);
    let payload_at = out.len();
    out.extend_from_slice(payload);
    mask::unmask(&mut out[payload_at..], key, 0);
}

#[inline]
const fn header_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..126 => 2,
        126..=0xffff => 4,
        _ => 10,
    }
}

/// The header in the front of an array, and its length.
#[inline]
fn header(
    opcode: Opcode,
    payload_bytes: usize,
    mask_bit: u8,
) -> ([u8; SERVER_HEADER_BYTES_MAX], usize) {
    let mut header = [0; SERVER_HEADER_BYTES_MAX];
    header[0] = FIN_BIT | opcode as u8;
    let header_bytes = header_bytes(payload_bytes);
    match header_bytes {
        2 => header[1] = mask_bit | payload_bytes as u8,
        4 => {
            header[1] = mask_bit | LENGTH_IN_16_BITS;
            header[2..4].copy_from_slice(&(payload_bytes as u16).to_be_bytes());
        }
        _ => {
            header[1] = mask_bit | LENGTH_IN_64_BITS;
            header[2..10].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
    (header, header_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmasked_examples_of_section_5_7() {
        let mut out = Vec::new();
        write_message(&mut out, Opcode::Text, b"Hello");
        assert_eq!(out, *b"\x81\x05Hello");
        out.clear();
        write_ping(&mut out, b"Hello");
        assert_eq!(out, *b"\x89\x05Hello");
        out.clear();
        write_header(&mut out, Opcode::Binary, 256);
        assert_eq!(out, [0x82, 0x7e, 0x01, 0x00]);
        out.clear();
        write_header(&mut out, Opcode::Binary, 65536);
        assert_eq!(out, [0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn masked_examples_of_section_5_7() {
        let key = [0x37, 0xfa, 0x21, 0x3d];
        let mut out = Vec::new();
        write_masked_message(&mut out, Opcode::Text, b"Hello", key);
        let hello = [0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(out, [&[0x81, 0x85][..], &hello].concat());
        out.clear();
        write_masked_message(&mut out, Opcode::Pong, b"Hello", key);
        assert_eq!(out, [&[0x8a, 0x85][..], &hello].concat());
    }

    #[test]
    fn a_message_begun_and_finished_is_the_message_written_at_once_whatever_was_expected() {
        for expected in [0, 125, 126, 65535, 65536] {
            for actual in [0, 1, 125, 126, 127, 65535, 65536, 70000] {
                let payload: Vec<u8> = (0..actual).map(|at| at as u8).collect();
                let (mut begun, mut written) = (b"before".to_vec(), b"before".to_vec());
                let message = begin_message(&mut begun, Opcode::Binary, expected);
                begun.extend_from_slice(&payload);
                finish_message(&mut begun, message);
                write_message(&mut written, Opcode::Binary, &payload);
                assert!(begun == written, "expected {expected}, was {actual}");
            }
        }
    }

    #[test]
    fn a_close_reason_is_cut_between_characters() {
        let mut out = Vec::new();
        write_close(&mut out, 1001, &"é".repeat(100));
        assert_eq!(out[..4], [0x88, 2 + 122, 0x03, 0xe9]);
        assert_eq!(str::from_utf8(&out[4..]), Ok("é".repeat(61).as_str()));
        out.clear();
        write_close(&mut out, 1000, &"e".repeat(CLOSE_REASON_BYTES_MAX + 1));
        assert_eq!(out.len(), 2 + CONTROL_PAYLOAD_BYTES_MAX);
        out.clear();
        write_close(&mut out, 1012, "");
        assert_eq!(out, [0x88, 2, 0x03, 0xf4]);
        out.clear();
        write_empty_close(&mut out);
        assert_eq!(out, [0x88, 0]);
    }

    #[test]
    fn a_control_payload_is_cut_to_what_a_control_frame_holds() {
        let mut out = Vec::new();
        write_pong(&mut out, &[7; 200]);
        assert_eq!(out[..2], [0x8a, 125]);
        assert_eq!(out[2..], [7; 125]);
    }
}
