//! permessage-deflate (RFC 7692) without context takeover on either side.
//!
//! Every message is deflated by itself, so a connection keeps nothing between two messages: one [`Deflater`] and one
//! [`Inflater`] serve all connections of a shard, and what a connection holds is the [`WindowBits`] it was promised. The price is
//! that a message cannot refer to those before it, so small ones gain little; they travel as they are.
//!
//! The work is done by zlib-rs, by way of flate2. Both make their state when the first message asks for it.

use std::num::NonZeroU8;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::decoder::is_utf8;
use super::error::ProtocolError;
use super::frame::{DEFLATED_BIT, read_header};
use super::write_header;

/// What a flushed stream ends in, and a message leaves out (RFC 7692 section 7.2.1).
const FLUSH_TAIL: &[u8] = &[0x00, 0x00, 0xff, 0xff];
/// The same and an empty last block: a stream that is whole without them ends with their last byte, and not before.
const CLOSING: &[u8] = &[0x00, 0x00, 0xff, 0xff, 0x03, 0x00];
/// First memory for an inflated message, in bytes; then it doubles.
const INFLATED_BYTES_MIN: usize = 4 * 1024;
/// Buffers that grew beyond this are freed after the message, in bytes: twice what fits the default `payload_bytes_max`.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// Size of the window that our compressor may refer back into, as its base-2 logarithm: 9 to 15. (RFC 7692 knows 8 as well, which zlib
/// does not do for streams without a header.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowBits(NonZeroU8);

const _: () = assert!(size_of::<Option<WindowBits>>() == 1);

impl WindowBits {
    /// The smallest: 512 bytes.
    pub const MIN: u8 = 9;
    /// The largest: 32 KiB.
    pub const MAX: Self = Self(NonZeroU8::new(15).unwrap());

    /// `None` when `bits` is not 9 to 15.
    #[must_use]
    pub const fn new(bits: u8) -> Option<Self> {
        match NonZeroU8::new(bits) {
            Some(bits) if bits.get() >= Self::MIN && bits.get() <= Self::MAX.get() => {
                Some(Self(bits))
            }
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0.get()
    }
}

/// Deflates messages that are to be sent.
#[derive(Debug)]
pub struct Deflater {
    level: Compression,
    payload_bytes_min: usize,
    /// One for each window that a client has asked for: nearly always only the largest.
    compressors: [Option<Compress>; COMPRESSORS],
    deflated: Vec<u8>,
}

const COMPRESSORS: usize = (WindowBits::MAX.get() - WindowBits::MIN) as usize + 1;

impl Deflater {
    /// At this level, 1 (fastest) to 9 (smallest). Messages below `payload_bytes_min` are left as they are.
    #[must_use]
    pub fn new(level: u32, payload_bytes_min: usize) -> Self {
        Self {
            level: Compression::new(level.clamp(1, 9)),
            payload_bytes_min,
            compressors: [const { None }; COMPRESSORS],
            deflated: Vec::new(),
        }
    }

    /// Deflates the message that begins at `message_at` in `out` and is the last there: one unmasked frame, as
    /// [`write_message`](super::write_message) appends it. Leaves it as it is when deflate was not agreed on (`window_bits` is
    /// `None`), when it is small, and when it would not become smaller. Returns how many bytes it has saved.
    ///
    /// Makes a compressor (about 330 KB) when `window_bits` is used for the first time; allocates nothing after that, as long
    /// as messages are no longer than before and within 256 KiB.
    pub fn deflate_message(
        &mut self,
        out: &mut Vec<u8>,
        message_at: usize,
        window_bits: Option<WindowBits>,
    ) -> usize {
        let Some(window_bits) = window_bits else { return 0 };
        let message = out.get(message_at..).unwrap_or_default();
        let Ok(Some((header, header_bytes))) = read_header(message, false) else { return 0 };
        let (payload, plain_bytes) = (&message[header_bytes..], out.len());
        debug_assert_eq!(payload.len() as u64, header.payload_bytes, "the last message of `out`");
        if header.opcode.is_control()
            || payload.len() < self.payload_bytes_min.max(1)
            || !self.deflate(payload, window_bits)
        {
            return 0;
        }
        out.truncate(message_at);
        write_header(out, header.opcode, self.deflated.len());
        out[message_at] |= DEFLATED_BIT;
        out.extend_from_slice(&self.deflated);
        free_large(&mut self.deflated);
        plain_bytes - out.len()
    }

    /// Deflates into `self.deflated`; `false` when that does not make it smaller.
    fn deflate(&mut self, payload: &[u8], window_bits: WindowBits) -> bool {
        let level = self.level;
        let at = usize::from(window_bits.get() - WindowBits::MIN);
        let compressor = self.compressors[at]
            .get_or_insert_with(|| Compress::new_with_window_bits(level, false, window_bits.get()));
        compressor.reset();
        self.deflated.clear();
        self.deflated.reserve(deflated_bytes_max(payload.len()));
        let done = compressor.compress_vec(payload, &mut self.deflated, FlushCompress::Sync);
        // With room left the flush is complete, and the tail is there.
        let whole = matches!(done, Ok(Status::Ok))
            && compressor.total_in() == payload.len() as u64
            && self.deflated.len() < self.deflated.capacity()
            && self.deflated.ends_with(FLUSH_TAIL);
        if whole {
            self.deflated.truncate(self.deflated.len() - FLUSH_TAIL.len());
        } else {
            // It still holds output, which does not go with a reset (zlib-rs 0.6.8): the next messages would run out of room inside
            // it, and that panics.
            debug_assert!(false, "the room was enough");
            self.compressors[at] = None;
        }
        whole && self.deflated.len() < payload.len()
    }
}

/// Most that a flushed stream of so many bytes takes: nine bits a byte in fixed codes, and block headers (zlib's own bound for small windows).
const fn deflated_bytes_max(bytes: usize) -> usize {
    bytes + bytes.div_ceil(8) + bytes.div_ceil(64) + 64
}

/// Inflates messages that have come deflated.
#[derive(Debug, Default)]
pub struct Inflater {
    decompressor: Option<Decompress>,
    inflated: Vec<u8>,
}

impl Inflater {
    /// Inflates one message and lends it out; text is checked to be UTF-8.
    ///
    /// Memory grows with what comes out, to a byte over `message_bytes_max`, and is used again; above 256 KiB it is freed with the next
    /// message. Makes a decompressor (about 50 KB) the first time; allocates nothing after that for messages no longer than before.
    ///
    /// # Errors
    /// The peer's fault: [`ProtocolError::MessageTooBig`] as soon as more than `message_bytes_max` have come out,
    /// [`ProtocolError::DeflateCorrupt`], [`ProtocolError::TextNotUtf8`].
    pub fn inflate(
        &mut self,
        text: bool,
        deflated: &[u8],
        message_bytes_max: usize,
    ) -> Result<&mut [u8], ProtocolError> {
        free_large(&mut self.inflated);
        self.inflated.clear();
        let decompressor = self.decompressor.get_or_insert_with(|| Decompress::new(false));
        decompressor.reset(false);
        let mut message = Inflating { decompressor, out: &mut self.inflated, message_bytes_max };
        // A sender that has no flush ends its last block for good, and the message there or one empty byte later (section 7.2.3.4).
        if !message.feed(deflated)? {
            message.close()?;
        }
        if text && !is_utf8(&self.inflated) {
            return Err(ProtocolError::TextNotUtf8);
        }
        Ok(&mut self.inflated)
    }
}

/// One message on its way out.
struct Inflating<'a> {
    decompressor: &'a mut Decompress,
    out: &'a mut Vec<u8>,
    message_bytes_max: usize,
}

impl Inflating<'_> {
    /// Inflates all of `input`; `true` when its last byte ended a last block. What comes behind a last block inside it is a stream
    /// of its own: a message may have as many as it wants (section 7.2.3.5), and each takes two bytes at least.
    fn feed(&mut self, mut input: &[u8]) -> Result<bool, ProtocolError> {
        loop {
            self.make_room();
            let (in_before, out_before) = (self.decompressor.total_in(), self.out.len());
            let status = self
                .decompressor
                .decompress_vec(input, self.out, FlushDecompress::None)
                .map_err(|_| ProtocolError::DeflateCorrupt)?;
            if self.out.len() > self.message_bytes_max {
                return Err(ProtocolError::MessageTooBig);
            }
            let taken = (self.decompressor.total_in() - in_before) as usize;
            input = input.get(taken..).unwrap_or_default();
            match status {
                Status::StreamEnd if input.is_empty() => return Ok(true),
                Status::StreamEnd => self.decompressor.reset(false),
                // More may be waiting to come out only where there was no room for it.
                Status::Ok | Status::BufError if self.out.len() < self.out.capacity() => {
                    if input.is_empty() {
                        return Ok(false);
                    }
                    if taken == 0 && self.out.len() == out_before {
                        return Err(ProtocolError::DeflateCorrupt);
                    }
                }
                Status::Ok | Status::BufError => {}
            }
        }
    }

    /// Ends a message between two blocks, which is where it has to be.
    fn close(&mut self) -> Result<(), ProtocolError> {
        let (in_before, out_before) = (self.decompressor.total_in(), self.out.len());
        let status = self.decompressor.decompress_vec(CLOSING, self.out, FlushDecompress::None);
        let taken = (self.decompressor.total_in() - in_before) as usize;
        let whole = matches!(status, Ok(Status::StreamEnd))
            && (taken, self.out.len()) == (CLOSING.len(), out_before);
        if whole { Ok(()) } else { Err(ProtocolError::DeflateCorrupt) }
    }

    /// Doubles the room when it is used up, up to a byte over the bound: that byte tells a message that is too big.
    fn make_room(&mut self) {
        let (bytes, bytes_max) = (self.out.len(), self.message_bytes_max.saturating_add(1));
        if bytes == self.out.capacity() {
            let more = bytes.max(INFLATED_BYTES_MIN).min(bytes_max - bytes);
            self.out.reserve_exact(more);
        }
    }
}

/// Frees what one long message made grow.
fn free_large(buffer: &mut Vec<u8>) {
    if buffer.capacity() > KEPT_BYTES_MAX {
        *buffer = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use super::super::encoder::write_message;
    use super::super::frame::Opcode;
    use super::*;

    const MESSAGE_BYTES_MAX: usize = 100_000;

    /// The frame of `payload` after it went through `deflater`.
    fn frame(deflater: &mut Deflater, payload: &[u8], bits: u8) -> Vec<u8> {
        let mut out = b"before".to_vec();
        let at = out.len();
        write_message(&mut out, Opcode::Text, payload);
        let plain_bytes = out.len();
        let saved_bytes = deflater.deflate_message(&mut out, at, WindowBits::new(bits));
        assert_eq!(out.len() + saved_bytes, plain_bytes);
        assert!(out.starts_with(b"before"));
        out.split_off(at)
    }

    /// What a whole frame carries, and whether that is deflated.
    fn payload(frame: &[u8]) -> (&[u8], bool) {
        let (header, header_bytes) = read_header(frame, true).unwrap().unwrap();
        assert_eq!(header.payload_bytes as usize, frame.len() - header_bytes);
        (&frame[header_bytes..], header.deflated)
    }

    fn inflate(deflated: &[u8]) -> Result<Vec<u8>, ProtocolError> {
        Inflater::default().inflate(false, deflated, MESSAGE_BYTES_MAX).map(|bytes| bytes.to_vec())
    }

    fn chat(bytes: usize) -> Vec<u8> {
        let mut text = String::new();
        for at in 0.. {
            if text.len() >= bytes {
                break;
            }
            text += &format!("{{\"sequence\":{at},\"from\":\"user-{}\"}},", at * 7919 % 1000);
        }
        text.truncate(bytes);
        text.into_bytes()
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(7);
        (0..bytes).map(|_| random.u8(..)).collect()
    }

    #[test]
    fn the_examples_of_section_7_2_3_inflate() {
        for deflated in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
            &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
            // Without the byte that section 7.2.3.4 asks for behind a last block: harmless, and seen.
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
        ] {
            assert_eq!(inflate(deflated).as_deref(), Ok(&b"Hello"[..]), "{deflated:02x?}");
        }
        assert_eq!(inflate(&[0x00]).as_deref(), Ok(&b""[..]), "section 7.2.3.6");
        let two =
            [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(
            inflate(&two).as_deref(),
            Ok(&b"HelloHello"[..]),
            "a stream behind a last block"
        );
    }

    #[test]
    fn a_message_comes_back_whatever_its_size_window_and_level_and_whatever_came_before() {
        let mut inflater = Inflater::default();
        for level in [1, 6, 9] {
            let mut deflater = Deflater::new(level, 0);
            for bits in 9..=15 {
                for bytes in [300, 1000, 65_535, 70_000, 100_000, 301] {
                    let plain = chat(bytes);
                    let frame = frame(&mut deflater, &plain, bits);
                    let (deflated, is_deflated) = payload(&frame);
                    assert!(
                        is_deflated && deflated.len() * 2 < bytes,
                        "{bytes} bytes, {bits} bits"
                    );
                    let inflated = inflater.inflate(true, deflated, MESSAGE_BYTES_MAX);
                    assert!(inflated.is_ok_and(|inflated| *inflated == plain));
                }
            }
        }
    }

    #[test]
    fn our_window_is_no_larger_than_was_agreed_on() {
        let twice = noise(600).repeat(2);
        for level in 1..=9 {
            let mut deflater = Deflater::new(level, 0);
            let far = frame(&mut deflater, &twice, 10);
            assert!(payload(&far).1 && far.len() < 700, "the repetition is 600 bytes away");
            let near = frame(&mut deflater, &twice, 9);
            assert!(!payload(&near).1, "and out of reach");
        }
    }

    #[test]
    fn what_is_small_does_not_shrink_or_was_not_agreed_on_stays_as_it_is() {
        let mut deflater = Deflater::new(1, 128);
        let small = chat(127);
        assert_eq!(payload(&frame(&mut deflater, &small, 15)), (&small[..], false));
        assert!(payload(&frame(&mut deflater, &chat(128), 15)).1);
        let noise = noise(5000);
        assert_eq!(payload(&frame(&mut deflater, &noise, 15)), (&noise[..], false));
        assert!(!payload(&frame(&mut deflater, &chat(500), 0)).1, "no window was agreed on");

        let mut control = Vec::new();
        write_message(&mut control, Opcode::Ping, &[7; 125]);
        let ping = control.clone();
        Deflater::new(1, 0).deflate_message(&mut control, 0, Some(WindowBits::MAX));
        assert_eq!(control, ping, "control frames are never deflated (RFC 7692 section 6.1)");
        let mut empty = Vec::new();
        write_message(&mut empty, Opcode::Text, b"");
        Deflater::new(1, 0).deflate_message(&mut empty, 0, Some(WindowBits::MAX));
        assert_eq!(empty, [0x81, 0]);
    }

    #[test]
    fn messages_that_do_not_shrink_do_no_harm_to_those_behind_them() {
        // A compressor that is reset while output waits in it keeps less room each time, and panics in the end.
        let noise = noise(MESSAGE_BYTES_MAX);
        for (level, bits) in [(1, 15), (1, 9), (2, 15), (3, 9), (6, 15), (6, 9), (9, 15)] {
            let (mut deflater, mut inflater) = (Deflater::new(level, 0), Inflater::default());
            for round in 0..10 {
                let plain = frame(&mut deflater, &noise[round..], bits);
                assert_eq!(payload(&plain), (&noise[round..], false));
                assert!(deflater.compressors.iter().flatten().count() == 1, "it was kept");
            }
            let text = chat(MESSAGE_BYTES_MAX);
            let frame = frame(&mut deflater, &text, bits);
            let inflated = inflater.inflate(true, payload(&frame).0, MESSAGE_BYTES_MAX);
            assert!(inflated.is_ok_and(|inflated| *inflated == text), "level {level}");
        }
    }

    #[test]
    fn a_bomb_stops_at_the_bound_and_leaves_no_more_memory_than_that() {
        let mut deflater = Deflater::new(9, 0);
        let frame = frame(&mut deflater, &vec![0; 5_000_000], 15);
        let (bomb, _) = payload(&frame);
        assert!(bomb.len() < 6_000, "a thousandth");
        for bytes_max in [0, 1, 1000, INFLATED_BYTES_MIN, MESSAGE_BYTES_MAX] {
            let mut inflater = Inflater::default();
            let outcome = inflater.inflate(false, bomb, bytes_max);
            assert_eq!(outcome, Err(ProtocolError::MessageTooBig));
            assert!(inflater.inflated.capacity() <= bytes_max + 1, "{bytes_max}");
        }
    }

    #[test]
    fn a_message_as_long_as_the_bound_is_taken_and_a_byte_more_is_not() {
        let mut deflater = Deflater::new(1, 0);
        for bytes_max in [500, INFLATED_BYTES_MIN, INFLATED_BYTES_MIN + 1, 3 * INFLATED_BYTES_MIN] {
            for (bytes, fits) in [(bytes_max, true), (bytes_max + 1, false)] {
                let frame = frame(&mut deflater, &chat(bytes), 15);
                let mut inflater = Inflater::default();
                let outcome = inflater.inflate(true, payload(&frame).0, bytes_max);
                assert_eq!(outcome.map(|m| m.len()).ok(), fits.then_some(bytes), "{bytes}");
            }
        }
    }

    #[test]
    fn a_stream_cut_anywhere_is_corrupt_and_the_next_message_is_not() {
        let plain = chat(2000);
        let mut inflater = Inflater::default();
        for level in [1, 6] {
            let frame = frame(&mut Deflater::new(level, 0), &plain, 15);
            let (deflated, _) = payload(&frame);
            for cut in 0..deflated.len() {
                let outcome = inflater.inflate(false, &deflated[..cut], MESSAGE_BYTES_MAX);
                assert_eq!(outcome, Err(ProtocolError::DeflateCorrupt), "cut at {cut}");
            }
            assert!(inflater.inflate(true, deflated, MESSAGE_BYTES_MAX).is_ok_and(|m| *m == plain));
        }
        // A block of a kind that does not exist, a reference to before the message, a last block that takes the tail for its own.
        for corrupt in [&[0x07][..], &[0x02, 0x01, 0x00], &[0x01, 0x04, 0x00, 0xfb, 0xff]] {
            assert_eq!(inflate(corrupt), Err(ProtocolError::DeflateCorrupt), "{corrupt:02x?}");
        }
    }

    #[test]
    fn text_is_checked_when_it_is_inflated() {
        let mut deflater = Deflater::new(1, 0);
        let latin = frame(&mut deflater, &[b"caf\xe9 ".repeat(50)].concat(), 15);
        let (deflated, _) = payload(&latin);
        let mut inflater = Inflater::default();
        let outcome = inflater.inflate(true, deflated, MESSAGE_BYTES_MAX);
        assert_eq!(outcome, Err(ProtocolError::TextNotUtf8));
        assert!(inflater.inflate(false, deflated, MESSAGE_BYTES_MAX).is_ok());
    }

    #[test]
    fn a_buffer_that_a_long_message_made_grow_is_given_back() {
        let (mut deflater, mut inflater) = (Deflater::new(1, 0), Inflater::default());
        let long = frame(&mut deflater, &chat(2 * KEPT_BYTES_MAX), 15);
        assert!(deflater.deflated.capacity() <= KEPT_BYTES_MAX);
        assert!(inflater.inflate(true, payload(&long).0, usize::MAX).is_ok());
        let short = frame(&mut deflater, &chat(300), 15);
        assert!(inflater.inflate(true, payload(&short).0, usize::MAX).is_ok());
        assert!(inflater.inflated.capacity() <= KEPT_BYTES_MAX);
    }
}
