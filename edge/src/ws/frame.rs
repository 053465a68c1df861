//! The frame header (RFC 6455 section 5.2): its fields, and the checks that need nothing but itself.

use super::error::ProtocolError;

/// Longest payload of a control frame, in bytes (RFC 6455 section 5.5).
pub const CONTROL_PAYLOAD_BYTES_MAX: usize = 125;
/// Longest frame header: two bytes, a 64-bit length and a mask.
pub const HEADER_BYTES_MAX: usize = 14;

pub(super) const FIN_BIT: u8 = 0x80;
pub(super) const MASK_BIT: u8 = 0x80;
/// In the 7-bit length field: the length follows in 2 bytes.
pub(super) const LENGTH_IN_16_BITS: u8 = 126;
/// In the 7-bit length field: the length follows in 8 bytes.
pub(super) const LENGTH_IN_64_BITS: u8 = 127;

const RESERVED_BITS: u8 = 0x70;
/// RSV1: the message is deflated (RFC 7692 section 6). Stands in its first frame alone.
pub(super) const DEFLATED_BIT: u8 = 0x40;

/// Which end of the connection we are. It decides who masks (RFC 6455 section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Receives masked frames, sends unmasked ones.
    Server,
    /// Receives unmasked frames, sends masked ones.
    Client,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are RFC 6455's, section 11.8")]
pub enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

impl Opcode {
    /// Close, Ping or Pong: may come between the fragments of a message.
    #[inline]
    #[must_use]
    pub const fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }

    /// Text or Binary: the first frame of a message.
    #[inline]
    const fn starts_message(self) -> bool {
        matches!(self, Self::Text | Self::Binary)
    }

    #[inline]
    const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Continuation),
            1 => Some(Self::Text),
            2 => Some(Self::Binary),
            8 => Some(Self::Close),
            9 => Some(Self::Ping),
            10 => Some(Self::Pong),
            _ => None,
        }
    }
}

/// A frame header that is sound in itself. Whether its mask, place and size are right depends on the
/// connection: [`Decoder`](super::Decoder) checks that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Last frame of its message.
    pub fin: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// First frame of a deflated message.
    pub deflated: bool,
    /// Key that the payload is masked with; `None` when it is not masked.
    pub mask: Option<[u8; 4]>,
    /// Length of the payload as announced, below 2^63.
    pub payload_bytes: u64,
}

/// Reads one frame header from the front of `input` (RFC 6455 section 5.2).
///
/// Returns the header and its length (2 to 14 bytes), or `None` when `input` ends too early. Looks
/// at nothing past the header and does not allocate. Faults of the first two bytes are told as soon
/// as those two are there. `deflate` says whether permessage-deflate was agreed on.
#[inline]
pub fn read_header(input: &[u8], deflate: bool) -> Result<Option<(Header, usize)>, ProtocolError> {
    let Some((&[first, second], rest)) = input.split_first_chunk() else { return Ok(None) };
    let fin = first & FIN_BIT != 0;
    let opcode = Opcode::from_bits(first & 0x0f).ok_or(ProtocolError::ReservedOpcode)?;
    let reserved_bits = first & RESERVED_BITS;
    let deflated = reserved_bits == DEFLATED_BIT && deflate && opcode.starts_message();
    if reserved_bits != 0 && !deflated {
        return Err(ProtocolError::ReservedBits);
    }
    let length = second & !MASK_BIT;
    if opcode.is_control() {
        if !fin {
            return Err(ProtocolError::ControlFrameFragmented);
        }
        if usize::from(length) > CONTROL_PAYLOAD_BYTES_MAX {
            return Err(ProtocolError::ControlFrameTooLong);
        }
    }

    let (payload_bytes, rest) = match length {
        LENGTH_IN_16_BITS => {
            let Some((bytes, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*bytes)), rest)
        }
        LENGTH_IN_64_BITS => {
            let Some((bytes, rest)) = rest.split_first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*bytes), rest)
        }
        short => (u64::from(short), rest),
    };
    if length >= LENGTH_IN_16_BITS {
        check_length(length, payload_bytes)?;
    }

    let (mask, rest) = if second & MASK_BIT == 0 {
        (None, rest)
    } else {
        let Some((key, rest)) = rest.split_first_chunk() else { return Ok(None) };
        (Some(*key), rest)
    };
    Ok(Some((Header { fin, opcode, deflated, mask, payload_bytes }, input.len() - rest.len())))
}

/// An extended length has to need its bytes, and to fit 63 bits.
fn check_length(length: u8, payload_bytes: u64) -> Result<(), ProtocolError> {
    let needs_it = if length == LENGTH_IN_16_BITS {
        payload_bytes >= u64::from(LENGTH_IN_16_BITS)
    } else {
        payload_bytes > u64::from(u16::MAX)
    };
    if !needs_it {
        return Err(ProtocolError::LengthNotMinimal);
    }
    if payload_bytes >> 63 != 0 {
        return Err(ProtocolError::LengthOver63Bits);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(input: &[u8]) -> ProtocolError {
        read_header(input, false).expect_err("a fault")
    }

    /// The headers of RFC 6455 section 5.7 and the lengths around each change of form.
    const HEADERS: &[(&[u8], Header)] = &[
        (&[0x81, 0x05], header(true, Opcode::Text, None, 5)),
        (
            &[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d],
            header(true, Opcode::Text, Some([0x37, 0xfa, 0x21, 0x3d]), 5),
        ),
        (&[0x01, 0x03], header(false, Opcode::Text, None, 3)),
        (&[0x80, 0x02], header(true, Opcode::Continuation, None, 2)),
        (&[0x89, 0x05], header(true, Opcode::Ping, None, 5)),
        (&[0x82, 0x7e, 0x01, 0x00], header(true, Opcode::Binary, None, 256)),
        (&[0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0], header(true, Opcode::Binary, None, 65536)),
        (&[0x88, 0x7d], header(true, Opcode::Close, None, 125)),
        (&[0x82, 0x7e, 0x00, 0x7e], header(true, Opcode::Binary, None, 126)),
        (&[0x82, 0x7e, 0xff, 0xff], header(true, Opcode::Binary, None, 65535)),
        (
            &[0x02, 0xff, 0x7f, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3, 4],
            header(false, Opcode::Binary, Some([1, 2, 3, 4]), i64::MAX as u64),
        ),
    ];

    const fn header(
        fin: bool,
        opcode: Opcode,
        mask: Option<[u8; 4]>,
        payload_bytes: u64,
    ) -> Header {
        Header { fin, opcode, deflated: false, mask, payload_bytes }
    }

    #[test]
    fn headers_are_read_whole_and_waited_for_when_cut() {
        for &(bytes, header) in HEADERS {
            let followed = [bytes, b"payload"].concat();
            assert_eq!(
                read_header(&followed, true),
                Ok(Some((header, bytes.len()))),
                "{bytes:02x?}"
            );
            for cut in 0..bytes.len() {
                assert_eq!(
                    read_header(&bytes[..cut], false),
                    Ok(None),
                    "{bytes:02x?} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn every_reserved_bit_and_opcode_is_refused_at_the_second_byte() {
        for bit in [0x10, 0x20, 0x40] {
            assert_eq!(fault(&[0x82 | bit, 0x80]), ProtocolError::ReservedBits);
        }
        for opcode in (3..8).chain(11..16) {
            assert_eq!(fault(&[0x80 | opcode, 0x80]), ProtocolError::ReservedOpcode);
        }
    }

    #[test]
    fn rsv1_marks_the_first_frame_of_a_message_once_deflate_is_agreed_on() {
        for first in [0x41, 0x42, 0xc1, 0xc2] {
            let (header, _) = read_header(&[first, 0x00], true).unwrap().expect("a whole header");
            assert!(header.deflated, "{first:#x}");
        }
        for first in [0x40, 0xc0, 0xc8, 0xc9, 0xca, 0x61, 0xd1, 0xf1, 0xa1] {
            let fault = read_header(&[first, 0x00], true);
            assert_eq!(fault, Err(ProtocolError::ReservedBits), "{first:#x}");
        }
    }

    #[test]
    fn control_frames_are_whole_and_short() {
        for opcode in [8, 9, 10] {
            assert_eq!(fault(&[opcode, 0x80]), ProtocolError::ControlFrameFragmented);
            for length in [126, 127] {
                assert_eq!(fault(&[0x80 | opcode, length]), ProtocolError::ControlFrameTooLong);
            }
        }
    }

    #[test]
    fn lengths_have_one_form_and_63_bits() {
        assert_eq!(fault(&[0x82, 126, 0, 125]), ProtocolError::LengthNotMinimal);
        assert_eq!(
            fault(&[0x82, 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff]),
            ProtocolError::LengthNotMinimal
        );
        assert_eq!(fault(&[0x82, 127, 0x80, 0, 0, 0, 0, 0, 0, 0]), ProtocolError::LengthOver63Bits);
    }
}
