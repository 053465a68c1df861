//! Received bytes to messages: framing, fragmentation, unmasking, UTF-8 (RFC 6455 sections 5 and 8.1).
//!
//! ```text
//!   between frames ──whole frame in the input──► lent in place ──► between frames
//!         │ cut
//!         ▼
//!   Partial: header bytes ─► payload bytes ─► control frame, or message when FIN has come
//! ```
//!
//! A frame that came whole is unmasked where it lies and lent out: no copy, no memory. Everything else is
//! gathered in a boxed [`Partial`], which is borrowed from the shard's [`Pool`] for as long as a message is cut.

use simdutf8::compat::from_utf8;

use super::error::ProtocolError;
use super::frame::{
    CONTROL_PAYLOAD_BYTES_MAX, HEADER_BYTES_MAX, Header, Opcode, Role, read_header,
};
use super::mask::unmask;

/// Partial states kept for reuse.
const POOL_PARTIALS_MAX: usize = 256;
/// A partial whose buffer grew past this is freed instead of kept.
const POOL_PAYLOAD_BYTES_MAX: usize = 128 * 1024;

/// What is decoded, and how much of it.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Which side we are: it decides whether masks are required or forbidden.
    pub role: Role,
    /// Longest message, in bytes, over all its fragments.
    pub message_bytes_max: usize,
}

/// What came. Payloads are unmasked, text is UTF-8.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A whole data message.
    Message {
        /// Text, or binary.
        text: bool,
        /// Lent until the next call.
        payload: &'a mut [u8],
    },
    /// Answer it with a Pong of the same payload.
    Ping(&'a [u8]),
    /// Nothing to do.
    Pong(&'a [u8]),
    /// The peer closes: code and reason, or neither. Nothing after it is decoded.
    Close(Option<(u16, &'a str)>),
}

/// Partial states of one shard that are not in use. At most [`POOL_PARTIALS_MAX`] of them.
#[derive(Debug, Default)]
pub struct Pool {
    #[expect(clippy::vec_box, reason = "a connection holds the box: 8 bytes while it has none")]
    free: Vec<Box<Partial>>,
}

impl Pool {
    fn take(&mut self) -> Box<Partial> {
        self.free.pop().unwrap_or_default()
    }

    fn give(&mut self, mut partial: Box<Partial>) {
        if self.free.len() < POOL_PARTIALS_MAX
            && partial.payload.capacity() <= POOL_PAYLOAD_BYTES_MAX
        {
            partial.reset();
            self.free.push(partial);
        }
    }
}

/// See the module. 8 bytes while no message is cut.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

const _: () = assert!(size_of::<Decoder>() == 8);

#[derive(Debug, Default)]
struct Partial {
    /// Bytes of a header that is not all there.
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    /// The frame whose payload is coming.
    frame: Option<Frame>,
    /// The message that its fragments make: whether it is text; `None` between messages.
    message_text: Option<bool>,
    /// Payload of that message so far, unmasked.
    payload: Vec<u8>,
    /// How much of `payload` is known to be UTF-8.
    valid_bytes: usize,
    /// Payload of a control frame, which may come between fragments.
    control: Vec<u8>,
    /// The payload was lent out and is to be forgotten.
    lent: bool,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    header: Header,
    received_bytes: usize,
}

impl Partial {
    fn reset(&mut self) {
        self.header_bytes = 0;
        self.frame = None;
        self.message_text = None;
        self.payload.clear();
        self.valid_bytes = 0;
        self.control.clear();
        self.lent = false;
    }

    fn is_idle(&self) -> bool {
        self.header_bytes == 0 && self.frame.is_none() && self.message_text.is_none()
    }

    /// Checks a data frame's header against the message it belongs to, and opens the message.
    fn open_frame(&mut self, header: Header, settings: &Settings) -> Result<(), ProtocolError> {
        match header.opcode {
            Opcode::Text | Opcode::Binary if self.message_text.is_some() => {
                return Err(ProtocolError::ContinuationMissing);
            }
            Opcode::Text | Opcode::Binary => {
                self.message_text = Some(header.opcode == Opcode::Text);
                self.payload.clear();
                self.valid_bytes = 0;
            }
            Opcode::Continuation if self.message_text.is_none() => {
                return Err(ProtocolError::ContinuationUnexpected);
            }
            Opcode::Continuation => {}
            Opcode::Close | Opcode::Ping | Opcode::Pong => self.control.clear(),
        }
        if !header.opcode.is_control() {
            check_size(self.payload.len(), header.payload_bytes, settings)?;
        }
        self.frame = Some(Frame { header, received_bytes: 0 });
        Ok(())
    }

    /// Text is checked as it arrives: a code point may be cut by a border, nothing else may be wrong.
    fn check_text(&mut self, whole: bool) -> Result<(), ProtocolError> {
        if self.message_text != Some(true) {
            return Ok(());
        }
        let unchecked = self.payload.get(self.valid_bytes..).unwrap_or_default();
        match from_utf8(unchecked) {
            Ok(_) => self.valid_bytes = self.payload.len(),
            Err(error) if error.error_len().is_some() || whole => {
                return Err(ProtocolError::TextNotUtf8);
            }
            Err(error) => self.valid_bytes += error.valid_up_to(),
        }
        Ok(())
    }
}

impl Decoder {
    /// Takes from the front of `input`; returns how many bytes were taken (at least one unless `input` is
    /// empty) and what they made. The caller goes on with `input[taken..]` until nothing is left; `None` with
    /// bytes left over means just that.
    ///
    /// # Errors
    /// The peer's fault; nothing more can be decoded then.
    #[inline]
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
        settings: &Settings,
        pool: &mut Pool,
    ) -> Result<(usize, Option<Item<'a>>), ProtocolError> {
        if self.partial.is_none()
            && let Some((header, header_bytes)) = read_header(input)?
            && header.fin
            && header.opcode != Opcode::Continuation
        {
            check_mask(&header, settings.role)?;
            if !header.opcode.is_control() {
                check_size(0, header.payload_bytes, settings)?;
            }
            // On 64 bits; what does not fit is longer than any input.
            let end = usize::try_from(header.payload_bytes)
                .ok()
                .and_then(|bytes| header_bytes.checked_add(bytes));
            if let Some(end) = end
                && end <= input.len()
            {
                let payload = &mut input[header_bytes..end];
                if let Some(key) = header.mask {
                    unmask(payload, key, 0);
                }
                return Ok((end, Some(item(header.opcode, payload)?)));
            }
        }
        if input.is_empty() {
            return Ok((0, None));
        }
        self.next_partial(input, settings, pool)
    }

    /// Gives the partial state back to the pool when no message is cut. To be called after the last
    /// [`Self::next`] of an input; before that the last item may still be lent from it.
    pub fn settle(&mut self, pool: &mut Pool) {
        if let Some(partial) = self.partial.take_if(|partial| partial.is_idle()) {
            pool.give(partial);
        }
    }

    fn next_partial<'a>(
        &'a mut self,
        input: &'a mut [u8],
        settings: &Settings,
        pool: &mut Pool,
    ) -> Result<(usize, Option<Item<'a>>), ProtocolError> {
        let partial = self.partial.get_or_insert_with(|| pool.take());
        if std::mem::take(&mut partial.lent) {
            partial.payload.clear();
            partial.valid_bytes = 0;
        }
        let mut taken = 0;
        if partial.frame.is_none() {
            let before = partial.header_bytes;
            let room = HEADER_BYTES_MAX - before;
            let more = room.min(input.len());
            partial.header[before..before + more].copy_from_slice(&input[..more]);
            let Some((header, header_bytes)) = read_header(&partial.header[..before + more])?
            else {
                partial.header_bytes = before + more;
                return Ok((more, None));
            };
            check_mask(&header, settings.role)?;
            taken = header_bytes - before;
            partial.header_bytes = 0;
            partial.open_frame(header, settings)?;
        }
        let Some(frame) = &mut partial.frame else { return Ok((taken, None)) };
        let Frame { header, received_bytes } = *frame;
        let missing = header.payload_bytes - received_bytes as u64;
        let more =
            usize::try_from(missing).map_or(input.len() - taken, |m| m.min(input.len() - taken));
        let arrived = &mut input[taken..taken + more];
        if let Some(key) = header.mask {
            unmask(arrived, key, received_bytes % 4);
        }
        taken += more;
        frame.received_bytes += more;
        let whole_frame = frame.received_bytes as u64 == header.payload_bytes;
        let is_control = header.opcode.is_control();
        let gathered = if is_control { &mut partial.control } else { &mut partial.payload };
        gathered.extend_from_slice(arrived);
        if whole_frame {
            partial.frame = None;
        }
        if is_control {
            let Some(partial) = self.partial.as_deref_mut().filter(|_| whole_frame) else {
                return Ok((taken, None));
            };
            return Ok((taken, Some(item(header.opcode, &mut partial.control)?)));
        }
        let whole_message = whole_frame && header.fin;
        partial.check_text(whole_message)?;
        if !whole_message {
            return Ok((taken, None));
        }
        partial.lent = true;
        let text = partial.message_text.take().unwrap_or_default();
        let payload = match self.partial.as_deref_mut() {
            Some(partial) => partial.payload.as_mut_slice(),
            None => &mut [],
        };
        Ok((taken, Some(Item::Message { text, payload })))
    }
}

fn check_mask(header: &Header, role: Role) -> Result<(), ProtocolError> {
    match (role, header.mask) {
        (Role::Server, None) => Err(ProtocolError::MaskMissing),
        (Role::Client, Some(_)) => Err(ProtocolError::MaskForbidden),
        (Role::Server, Some(_)) | (Role::Client, None) => Ok(()),
    }
}

/// Refuses a message by what its headers announce, before the bytes arrive.
fn check_size(before: usize, more: u64, settings: &Settings) -> Result<(), ProtocolError> {
    let room = settings.message_bytes_max.saturating_sub(before) as u64;
    if more > room { Err(ProtocolError::MessageTooBig) } else { Ok(()) }
}

/// A whole payload as an item.
#[inline]
fn item(opcode: Opcode, payload: &mut [u8]) -> Result<Item<'_>, ProtocolError> {
    match opcode {
        Opcode::Binary | Opcode::Continuation => Ok(Item::Message { text: false, payload }),
        Opcode::Text => {
            from_utf8(payload).map_err(|_| ProtocolError::TextNotUtf8)?;
            Ok(Item::Message { text: true, payload })
        }
        Opcode::Ping => Ok(Item::Ping(payload)),
        Opcode::Pong => Ok(Item::Pong(payload)),
        Opcode::Close => close(payload).map(Item::Close),
    }
}

fn close(payload: &[u8]) -> Result<Option<(u16, &str)>, ProtocolError> {
    let Some((code, reason)) = payload.split_first_chunk::<2>() else {
        return if payload.is_empty() {
            Ok(None)
        } else {
            Err(ProtocolError::ClosePayloadTooShort)
        };
    };
    let code = u16::from_be_bytes(*code);
    // RFC 6455 section 7.4 with the IANA registry: 1004 to 1006 and 1015 never go over the wire.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(ProtocolError::CloseCodeInvalid);
    }
    let reason = from_utf8(reason).map_err(|_| ProtocolError::CloseReasonNotUtf8)?;
    Ok(Some((code, reason)))
}

const _: () = assert!(CONTROL_PAYLOAD_BYTES_MAX < u16::MAX as usize);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::encoder::write_masked_message;
    use super::*;

    const SETTINGS: Settings = Settings { role: Role::Server, message_bytes_max: 70_000 };

    /// What a decoder makes of an input that arrives in these pieces, as text.
    fn decode(role: Role, pieces: &[&[u8]]) -> Vec<String> {
        let settings = Settings { role, ..SETTINGS };
        let (mut decoder, mut pool) = (Decoder::default(), Pool::default());
        let mut items = Vec::new();
        for piece in pieces {
            let mut input = piece.to_vec();
            let mut at = 0;
            while at < input.len() {
                match decoder.next(&mut input[at..], &settings, &mut pool) {
                    Ok((taken, item)) => {
                        assert!(taken > 0);
                        at += taken;
                        items.extend(item.map(|item| format!("{item:?}")));
                    }
                    Err(error) => {
                        items.push(format!("{error:?}"));
                        return items;
                    }
                }
            }
            decoder.settle(&mut pool);
        }
        items
    }

    fn message(text: bool, payload: &str) -> String {
        let mut payload = payload.as_bytes().to_vec();
        format!("{:?}", Item::Message { text, payload: &mut payload })
    }

    #[test]
    fn examples_of_section_5_7_decode_wherever_they_are_cut() {
        let masked_hello: &[u8] =
            &[0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let hello: &[u8] = &[0x81, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
        let fragments: &[u8] = &[0x01, 0x03, 0x48, 0x65, 0x6c, 0x80, 0x02, 0x6c, 0x6f];
        let ping: &[u8] = &[0x89, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f];
        let masked_pong: &[u8] =
            &[0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        let mut long = vec![0x82, 0x7f, 0, 0, 0, 0, 0, 1, 0, 0];
        long.resize(10 + 65_536, b'x');
        let pinged = format!("{:?}", Item::Ping(b"Hello"));
        let ponged = format!("{:?}", Item::Pong(b"Hello"));
        for (role, bytes, expected) in [
            (Role::Server, masked_hello, message(true, "Hello")),
            (Role::Client, hello, message(true, "Hello")),
            (Role::Client, fragments, message(true, "Hello")),
            (Role::Client, ping, pinged),
            (Role::Server, masked_pong, ponged),
            (Role::Client, &long, message(false, &"x".repeat(65_536))),
        ] {
            for cut in (0..=bytes.len()).filter(|cut| *cut < 20 || cut % 997 == 0) {
                let pieces = [&bytes[..cut], &bytes[cut..]];
                assert_eq!(decode(role, &pieces), [expected.as_str()], "cut at {cut}");
            }
        }
    }

    #[test]
    fn control_frames_between_fragments_are_told_at_once() {
        let bytes =
            [0x01, 0x01, b'a', 0x89, 0x01, b'p', 0x00, 0x01, b'b', 0x8a, 0x00, 0x80, 0x01, b'c'];
        let expected = [
            format!("{:?}", Item::Ping(b"p")),
            format!("{:?}", Item::Pong(b"")),
            message(true, "abc"),
        ];
        assert_eq!(decode(Role::Client, &[&bytes]), expected);
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decode(Role::Client, &single), expected);
    }

    #[test]
    fn what_breaks_the_protocol_is_named() {
        for (bytes, error) in [
            (&[0x80u8, 0x00][..], "ContinuationUnexpected"),
            (&[0x01, 0x00, 0x81, 0x00], "ContinuationMissing"),
            (&[0x82, 0x80, 0, 0, 0, 0], "MaskForbidden"),
            (&[0x88, 0x01, 0x03], "ClosePayloadTooShort"),
            (&[0x88, 0x02, 0x03, 0xed], "CloseCodeInvalid"),
            (&[0x88, 0x02, 0x03, 0xe7], "CloseCodeInvalid"),
            (&[0x88, 0x03, 0x03, 0xe8, 0xff], "CloseReasonNotUtf8"),
            (&[0x81, 0x01, 0xff], "TextNotUtf8"),
            (&[0x81, 0x01, 0xc3], "TextNotUtf8"),
            (&[0x82, 0x7f, 0, 0, 0, 0, 0, 2, 0, 0], "MessageTooBig"),
        ] {
            assert_eq!(decode(Role::Client, &[bytes]), [error], "{bytes:?}");
        }
        assert_eq!(decode(Role::Server, &[&[0x81, 0x00]]), ["MaskMissing"]);
    }

    #[test]
    fn bad_text_fails_at_its_first_bad_byte_and_a_cut_code_point_does_not() {
        // Of a text frame of 100 bytes only three have come; the third cannot follow.
        assert_eq!(decode(Role::Client, &[&[0x81, 100, 0xce, 0xba], &[0xff]]), ["TextNotUtf8"]);
        let cut = [0x01, 0x01, 0xce, 0x80, 0x01, 0xba];
        assert_eq!(decode(Role::Client, &[&cut]), [message(true, "κ")]);
        // A surrogate is wrong as soon as its second byte is there.
        assert_eq!(decode(Role::Client, &[&[0x01, 0x02, 0xed, 0xa0]]), ["TextNotUtf8"]);
    }

    #[test]
    fn fragments_are_too_big_together_before_the_last_has_come() {
        let mut bytes = vec![0x02, 0x7e, 0xff, 0xff];
        bytes.resize(4 + 65_535, 0);
        bytes.extend([0x80, 0x7e, 0x13, 0x88]);
        assert_eq!(decode(Role::Client, &[&bytes]), ["MessageTooBig"]);
    }

    #[test]
    fn a_cut_message_costs_memory_only_while_it_is_cut() {
        let (mut decoder, mut pool) = (Decoder::default(), Pool::default());
        let mut frame = Vec::new();
        write_masked_message(&mut frame, Opcode::Binary, &[7; 1000], [1, 2, 3, 4]);
        for half in frame.chunks_mut(600) {
            let length = half.len();
            let (taken, _) = decoder.next(half, &SETTINGS, &mut pool).unwrap();
            assert_eq!(taken, length.min(HEADER_BYTES_MAX.max(length)));
            decoder.settle(&mut pool);
        }
        assert!(decoder.partial.is_none());
        assert_eq!(pool.free.len(), 1);
    }

    proptest! {
        #[test]
        fn messages_decode_to_themselves_wherever_they_are_cut(
            messages in prop::collection::vec((any::<bool>(), ".{0,300}", any::<[u8; 4]>()), 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (text, payload, key) in &messages {
                let opcode = if *text { Opcode::Text } else { Opcode::Binary };
                write_masked_message(&mut bytes, opcode, payload.as_bytes(), *key);
                expected.push(message(*text, payload));
            }
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            prop_assert_eq!(decode(Role::Server, &pieces), expected);
        }

        #[test]
        fn what_arbitrary_bytes_make_does_not_depend_on_cuts(
            bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x80), Just(0x01), Just(0x82)], 0..60),
            cut in any::<prop::sample::Index>(),
        ) {
            let cut = cut.index(bytes.len() + 1);
            for role in [Role::Client, Role::Server] {
                prop_assert_eq!(decode(role, &[&bytes]), decode(role, &[&bytes[..cut], &bytes[cut..]]));
            }
        }
    }
}
