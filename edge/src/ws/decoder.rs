//! Received bytes to messages (RFC 6455 sections 5 and 8.1).
//!
//! A frame that lies whole in the input is unmasked where it lies and lent out: no copy, no
//! allocation. Everything else, a frame cut by the end of a receive or a message in fragments, is
//! collected in a `Partial` that comes from a [`Pool`] and returns to it when the message is dealt with.
//!
//! ```text
//!           whole frame: lent in place
//!            ┌────┐
//!            ▼    │     cut, or not FIN      ┌──────┐ more bytes, fragments,
//!         ┌──────────┐ ───────────────────► ┌────────────┐ control frames between
//!         │   idle   │                      │ collecting │ ◄──┘
//!         └──────────┘ ◄─────────────────── └────────────┘
//!                       message complete
//! ```

use super::error::ProtocolError;
use super::frame::{Header, Opcode, Role, read_header};
use super::mask::unmask;
pub use super::partial::Pool;
use super::partial::{Complete, Message, Partial};

/// What a decoder needs to know of its connection; the same for all connections of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Which end we are: a server wants masked frames, a client unmasked ones.
    pub role: Role,
    /// Longest message, in bytes over all its fragments. A longer one is refused at the header that
    /// announces it.
    pub message_bytes_max: usize,
    /// permessage-deflate was agreed on (RFC 7692): messages may come deflated.
    pub deflate: bool,
}

/// One thing that the peer said.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A whole message; text is UTF-8.
    Message {
        /// Sent as text, not as binary.
        text: bool,
        /// Its bytes, unmasked. The receiver may change them.
        payload: &'a mut [u8],
    },
    /// A whole message as it was deflated, for [`Inflater`](super::Inflater). Only where [`Settings::deflate`] says so.
    Deflated {
        /// Sent as text: what is inflated has to be UTF-8, which nobody has looked at yet.
        text: bool,
        /// Its bytes, unmasked.
        payload: &'a mut [u8],
    },
    /// To be answered with a Pong of the same bytes, at most 125.
    Ping(&'a [u8]),
    /// Answer to a Ping of ours, or a sign of life.
    Pong(&'a [u8]),
    /// The peer's last frame: code and reason when it gave any. Stop calling the decoder.
    Close(Option<(u16, &'a str)>),
}

/// One connection's framing state. Idle, between two messages, it is one empty word.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<Box<Partial>>,
}

const _: () = assert!(size_of::<Decoder>() == 8);

impl Decoder {
    /// Decodes from the front of `input`: returns how many bytes it took, and what they made.
    ///
    /// The caller goes on with `&mut input[taken..]` until that is empty, then calls
    /// [`settle`](Self::settle). `None` means that all of `input` is taken and more is awaited; nothing
    /// of it needs to be kept. What was taken is overwritten by unmasking. Allocates only when a message
    /// is cut or fragmented and `pool` has no box with room; memory grows with the bytes that arrived,
    /// not with announced lengths. How bytes are cut into inputs makes no difference to items and errors.
    ///
    /// # Errors
    ///
    /// The peer's fault. As after a Close, the connection's framing is over then: do not call again.
    #[inline]
    pub fn next<'a>(
        &'a mut self,
        input: &'a mut [u8],
        settings: &Settings,
        pool: &mut Pool,
    ) -> Result<(usize, Option<Item<'a>>), ProtocolError> {
        // First, so that one cut message does not send the whole frames behind it the long way.
        self.settle(pool);
        if self.partial.is_none()
            && let Some((header, header_bytes)) = read_header(input, settings.deflate)?
        {
            check_header(settings, &header, None)?;
            let arrived_bytes = input.len() - header_bytes;
            if header.fin && header.payload_bytes <= arrived_bytes as u64 {
                let taken = header_bytes + header.payload_bytes as usize;
                let payload = &mut input[header_bytes..taken];
                if let Some(key) = header.mask {
                    unmask(payload, key, 0);
                }
                let item = if header.deflated {
                    Item::Deflated { text: header.opcode == Opcode::Text, payload }
                } else {
                    whole_frame(header.opcode, payload)?
                };
                return Ok((taken, Some(item)));
            }
        }
        if input.is_empty() {
            return Ok((0, None));
        }
        self.collect(input, settings, pool)
    }

    /// Gives memory that is no longer needed back to `pool`. To be called when an input is used up: an
    /// idle connection owns none. (Before that the last item may still be lent from it.)
    #[inline]
    pub fn settle(&mut self, pool: &mut Pool) {
        if let Some(partial) = self.partial.take_if(|partial| partial.is_idle()) {
            pool.give_back(partial);
        }
    }

    #[inline(never)]
    fn collect<'a>(
        &'a mut self,
        input: &mut [u8],
        settings: &Settings,
        pool: &mut Pool,
    ) -> Result<(usize, Option<Item<'a>>), ProtocolError> {
        let partial = self.partial.get_or_insert_with(|| pool.take());
        let (taken, complete) =
            partial.collect(input, settings.deflate, |header, open_message_bytes| {
                check_header(settings, header, open_message_bytes)
            })?;
        let item = match complete {
            Some(Complete::Message(Message { text, deflated })) => {
                let payload = partial.payload_mut();
                Some(if deflated {
                    Item::Deflated { text, payload }
                } else {
                    Item::Message { text, payload }
                })
            }
            Some(Complete::Control(opcode, payload_bytes)) => {
                Some(whole_frame(opcode, partial.control_mut(payload_bytes))?)
            }
            None => None,
        };
        Ok((taken, item))
    }
}

/// Checks a header against the connection; `open_message_bytes` is what has arrived of a message in
/// fragments.
#[inline]
fn check_header(
    settings: &Settings,
    header: &Header,
    open_message_bytes: Option<usize>,
) -> Result<(), ProtocolError> {
    match (settings.role, header.mask) {
        (Role::Server, Some(_)) | (Role::Client, None) => {}
        (Role::Server, None) => return Err(ProtocolError::MaskMissing),
        (Role::Client, Some(_)) => return Err(ProtocolError::MaskForbidden),
    }
    let open_message_bytes = match (header.opcode, open_message_bytes) {
        (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => return Ok(()),
        (Opcode::Text | Opcode::Binary, None) => 0,
        (Opcode::Continuation, Some(bytes)) => bytes as u64,
        (Opcode::Text | Opcode::Binary, Some(_)) => return Err(ProtocolError::ContinuationMissing),
        (Opcode::Continuation, None) => return Err(ProtocolError::ContinuationUnexpected),
    };
    // No overflow: an announced length is below 2^63, and what has arrived fits memory.
    if open_message_bytes + header.payload_bytes > settings.message_bytes_max as u64 {
        return Err(ProtocolError::MessageTooBig);
    }
    Ok(())
}

/// What a whole frame with an unmasked payload says.
#[inline]
fn whole_frame(opcode: Opcode, payload: &mut [u8]) -> Result<Item<'_>, ProtocolError> {
    match opcode {
        Opcode::Binary => Ok(Item::Message { text: false, payload }),
        Opcode::Text if is_utf8(payload) => Ok(Item::Message { text: true, payload }),
        Opcode::Text => Err(ProtocolError::TextNotUtf8),
        Opcode::Ping => Ok(Item::Ping(payload)),
        Opcode::Pong => Ok(Item::Pong(payload)),
        Opcode::Close => read_close(payload).map(Item::Close),
        Opcode::Continuation => Err(ProtocolError::ContinuationUnexpected),
    }
}

/// Whether the whole text of a message is UTF-8.
#[inline]
pub(super) fn is_utf8(payload: &[u8]) -> bool {
    // Most text is ASCII, and for that a check of its own costs half.
    payload.is_ascii() || simdutf8::basic::from_utf8(payload).is_ok()
}

/// Reads the payload of a Close frame (RFC 6455 section 5.5.1).
fn read_close(payload: &[u8]) -> Result<Option<(u16, &str)>, ProtocolError> {
    if payload.is_empty() {
        return Ok(None);
    }
    let Some((code, reason)) = payload.split_first_chunk() else {
        return Err(ProtocolError::ClosePayloadTooShort);
    };
    let code = u16::from_be_bytes(*code);
    if !may_be_sent(code) {
        return Err(ProtocolError::CloseCodeInvalid);
    }
    let reason = str::from_utf8(reason).map_err(|_| ProtocolError::CloseReasonNotUtf8)?;
    Ok(Some((code, reason)))
}

/// Close codes that may stand in a frame (RFC 6455 section 7.4 and the IANA registry: 1004 is
/// reserved, 1005, 1006 and 1015 are for reporting only, 3000 and up are free to use).
const fn may_be_sent(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::super::encoder::write_masked_message;
    use super::*;

    const SERVER: Settings =
        Settings { role: Role::Server, message_bytes_max: 1 << 20, deflate: false };
    const CLIENT: Settings =
        Settings { role: Role::Client, message_bytes_max: 1 << 20, deflate: false };

    /// "Hello", masked, in one frame (RFC 6455 section 5.7).
    const HELLO: &[u8] = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";

    /// Feeds one input after the other to a fresh decoder; items in the form of `Debug`, then the
    /// error if there was one.
    fn decode(settings: &Settings, inputs: &[&[u8]]) -> Vec<String> {
        let (mut decoder, mut pool) = (Decoder::default(), Pool::default());
        let mut said = Vec::new();
        for input in inputs {
            if let Err(error) = feed(&mut decoder, settings, &mut pool, input, &mut said) {
                said.push(format!("{error:?}"));
                break;
            }
        }
        said
    }

    fn feed(
        decoder: &mut Decoder,
        settings: &Settings,
        pool: &mut Pool,
        input: &[u8],
        said: &mut Vec<String>,
    ) -> Result<(), ProtocolError> {
        let mut input = input.to_vec();
        let mut rest = input.as_mut_slice();
        while !rest.is_empty() {
            let (taken, item) = decoder.next(rest, settings, pool)?;
            match item {
                Some(Item::Message { text: true, payload }) => {
                    said.push(String::from_utf8(payload.to_vec()).unwrap());
                }
                item => said.extend(item.map(|item| format!("{item:?}"))),
            }
            rest = &mut rest[taken..];
        }
        decoder.settle(pool);
        Ok(())
    }

    fn assert_wherever_cut(settings: &Settings, bytes: &[u8], expected: &[&str]) {
        for cut in 0..=bytes.len() {
            let (left, right) = bytes.split_at(cut);
            assert_eq!(decode(settings, &[left, right]), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decode(settings, &single), expected, "byte by byte");
    }

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write_masked_message(&mut frame, Opcode::Binary, payload, [1, 2, 3, 4]);
        frame[0] = first;
        frame
    }

    #[test]
    fn masked_hello_of_section_5_7_decodes_wherever_it_is_cut() {
        assert_wherever_cut(&SERVER, HELLO, &["Hello"]);
    }

    #[test]
    fn unmasked_examples_of_section_5_7_decode_wherever_they_are_cut() {
        assert_wherever_cut(&CLIENT, b"\x81\x05Hello", &["Hello"]);
        assert_wherever_cut(&CLIENT, b"\x01\x03Hel\x80\x02lo", &["Hello"]);
        assert_wherever_cut(&CLIENT, b"\x89\x05Hello", &["Ping([72, 101, 108, 108, 111])"]);
        for (header, length) in
            [(&b"\x82\x7e\x01\x00"[..], 256), (b"\x82\x7f\0\0\0\0\0\x01\0\0", 65536)]
        {
            let payload = vec![7; length];
            let bytes = [header, &payload].concat();
            let expected = format!("Message {{ text: false, payload: {payload:?} }}");
            for cut in (0..=header.len() + 2).chain([length, bytes.len()]) {
                let (left, right) = bytes.split_at(cut);
                assert_eq!(decode(&CLIENT, &[left, right]), [expected.as_str()], "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_whole_frame_is_lent_where_it_lies_and_leaves_the_decoder_idle() {
        let (mut decoder, mut pool) = (Decoder::default(), Pool::default());
        let mut input = [HELLO, HELLO].concat();
        let payload_at = input.as_ptr_range().start.wrapping_add(6);
        let (taken, item) = decoder.next(&mut input, &SERVER, &mut pool).unwrap();
        let Some(Item::Message { text: true, payload }) = item else { panic!("{item:?}") };
        assert_eq!((payload.as_ptr(), &*payload), (payload_at, &b"Hello"[..]));
        assert_eq!(taken, HELLO.len());
        assert!(decoder.partial.is_none());
    }

    #[test]
    fn control_frames_between_fragments_come_out_at_once() {
        let bytes = [
            masked(0x01, b"Hel"),
            masked(0x89, b""),
            masked(0x00, b""),
            masked(0x8a, b"x"),
            masked(0x80, b"lo"),
            masked(0x88, b"\x03\xe8bye"),
        ]
        .concat();
        let expected = ["Ping([])", "Pong([120])", "Hello", "Close(Some((1000, \"bye\")))"];
        assert_wherever_cut(&SERVER, &bytes, &expected);
    }

    #[test]
    fn deflated_messages_come_out_as_they_came_wherever_they_are_cut() {
        let settings = Settings { deflate: true, ..SERVER };
        let bytes = [
            masked(0xc1, b"\xff\xfe"),
            masked(0x42, b"a"),
            masked(0x89, b""),
            masked(0x00, b"\xff"),
            masked(0x80, b"b"),
            masked(0x81, b"plain"),
            masked(0xc1, b""),
        ]
        .concat();
        let expected = [
            "Deflated { text: true, payload: [255, 254] }",
            "Ping([])",
            "Deflated { text: false, payload: [97, 255, 98] }",
            "plain",
            "Deflated { text: true, payload: [] }",
        ];
        assert_wherever_cut(&settings, &bytes, &expected);
        for frames in [
            &[masked(0x41, b"a"), masked(0xc0, b"b")][..],
            &[masked(0xc9, b"")],
            &[masked(0xc0, b"")],
            &[masked(0xe1, b"")],
        ] {
            assert_wherever_cut(&settings, &frames.concat(), &["ReservedBits"]);
        }
        assert_wherever_cut(&SERVER, &masked(0xc1, b"a"), &["ReservedBits"]);
    }

    #[test]
    fn frames_out_of_place_are_refused_wherever_they_are_cut() {
        let cases: &[(&[&[u8]], &[&str])] = &[
            (&[&masked(0x80, b"x")], &["ContinuationUnexpected"]),
            (&[&masked(0x00, b"")], &["ContinuationUnexpected"]),
            (&[&masked(0x01, b"a"), &masked(0x81, b"b")], &["ContinuationMissing"]),
            (&[&masked(0x02, b"a"), &masked(0x01, b"b")], &["ContinuationMissing"]),
            (&[HELLO, &masked(0x80, b"x")], &["Hello", "ContinuationUnexpected"]),
            (&[HELLO, b"\x81\x05Hello"], &["Hello", "MaskMissing"]),
            (&[&masked(0x83, b"")], &["ReservedOpcode"]),
            (&[&masked(0x01, b"a"), &masked(0xc0, b"b")], &["ReservedBits"]),
        ];
        for (bytes, expected) in cases {
            assert_wherever_cut(&SERVER, &bytes.concat(), expected);
        }
        assert_wherever_cut(&CLIENT, HELLO, &["MaskForbidden"]);
    }

    #[test]
    fn too_big_is_refused_at_the_header_for_one_frame_and_for_the_sum_of_fragments() {
        let settings = Settings { message_bytes_max: 126, ..CLIENT };
        assert_eq!(decode(&settings, &[b"\x82\x7e\x00\x7f"]), ["MessageTooBig"]);
        assert_eq!(
            decode(&settings, &[b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff"]),
            ["MessageTooBig"]
        );
        let first = [b"\x02\x7d".as_slice(), &[0; 125]].concat();
        assert_eq!(decode(&settings, &[&first, b"\x80\x02"]), ["MessageTooBig"]);
        assert_eq!(decode(&settings, &[&first, b"\x80\x01x"]).len(), 1);
        // The sum must not wrap around.
        let huge = b"\x80\x7f\x7f\xff\xff\xff\xff\xff\xff\xff";
        let unbounded = Settings { message_bytes_max: usize::MAX >> 1, ..CLIENT };
        assert_eq!(decode(&unbounded, &[&first, huge]), ["MessageTooBig"]);
    }

    #[test]
    fn memory_follows_what_arrived_and_not_what_was_announced() {
        let settings = Settings { message_bytes_max: 1 << 40, ..CLIENT };
        let (mut decoder, mut pool) = (Decoder::default(), Pool::default());
        let announced = b"\x82\x7f\0\0\0\x7f\0\0\0\0abc";
        feed(&mut decoder, &settings, &mut pool, announced, &mut Vec::new()).unwrap();
        let held_bytes = decoder.partial.unwrap().held_bytes();
        assert!((3..=64).contains(&held_bytes), "{held_bytes} bytes");
    }

    #[test]
    fn an_idle_decoder_holds_nothing_and_the_pool_keeps_to_its_bounds() {
        const BYTES_MAX: usize = 100;
        let mut pool = Pool::new(3, BYTES_MAX);
        let mut decoders: Vec<Decoder> = (0..5).map(|_| Decoder::default()).collect();
        let frames = [10, 20, 30, 40, 200].map(|length| masked(0x82, &vec![0; length]));
        for _ in 0..3 {
            for (decoder, frame) in decoders.iter_mut().zip(&frames) {
                feed(decoder, &SERVER, &mut pool, &frame[..frame.len() - 1], &mut Vec::new())
                    .unwrap();
                assert!(decoder.partial.is_some());
            }
            for (decoder, frame) in decoders.iter_mut().zip(&frames) {
                feed(decoder, &SERVER, &mut pool, &frame[frame.len() - 1..], &mut Vec::new())
                    .unwrap();
                assert!(decoder.partial.is_none());
            }
            assert!((1..=BYTES_MAX).contains(&pool.kept_bytes()), "{} bytes", pool.kept_bytes());
        }
    }

    #[test]
    fn a_whole_frame_behind_a_cut_one_is_lent_where_it_lies() {
        let (mut decoder, mut pool) = (Decoder::default(), Pool::default());
        feed(&mut decoder, &SERVER, &mut pool, &HELLO[..7], &mut Vec::new()).unwrap();
        let mut input = [&HELLO[7..], HELLO].concat();
        let (taken, _) = decoder.next(&mut input, &SERVER, &mut pool).unwrap();
        assert_eq!(taken, HELLO.len() - 7);
        let payload_at = input.as_ptr_range().start.wrapping_add(taken + 6);
        let (_, item) = decoder.next(&mut input[taken..], &SERVER, &mut pool).unwrap();
        let Some(Item::Message { text: true, payload }) = item else { panic!("{item:?}") };
        assert_eq!((payload.as_ptr(), &*payload), (payload_at, &b"Hello"[..]));
    }

    #[test]
    fn bad_utf8_is_refused_at_its_first_byte() {
        // From the Autobahn cases 6.4: a character over U+10FFFF, its frame not complete yet.
        let text = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited";
        let frame = masked(0x81, text);
        let bad_at = 6 + 12;
        for cut in 0..=bad_at {
            assert!(decode(&SERVER, &[&frame[..cut]]).is_empty(), "cut at {cut}");
        }
        for cut in bad_at + 1..=frame.len() {
            assert_eq!(decode(&SERVER, &[&frame[..cut]]), ["TextNotUtf8"], "cut at {cut}");
        }
        assert_wherever_cut(&SERVER, &frame, &["TextNotUtf8"]);
    }

    #[test]
    fn a_character_may_be_cut_anywhere_but_at_the_end_of_the_message() {
        let text = "κόσμε \u{10ffff}";
        for cut in 0..=text.len() {
            let (left, right) = text.as_bytes().split_at(cut);
            let fragments = [masked(0x01, left), masked(0x80, right)].concat();
            assert_wherever_cut(&SERVER, &fragments, &[text]);
        }
        let cut_off = masked(0x81, &text.as_bytes()[..text.len() - 1]);
        assert_wherever_cut(&SERVER, &cut_off, &["TextNotUtf8"]);
        let fragments = [masked(0x01, b"\xce"), masked(0x80, b"")].concat();
        assert_wherever_cut(&SERVER, &fragments, &["TextNotUtf8"]);
    }

    #[test]
    fn a_close_payload_is_empty_or_a_code_that_may_be_sent_and_utf8() {
        let close = |payload: &[u8]| decode(&SERVER, &[&masked(0x88, payload)]).concat();
        assert_eq!(close(b""), "Close(None)");
        assert_eq!(close(b"\x03"), "ClosePayloadTooShort");
        assert_eq!(close(b"\x03\xe8\xce"), "CloseReasonNotUtf8");
        let sent = |code: u16| !close(&code.to_be_bytes()).contains("CloseCodeInvalid");
        let allowed: Vec<u16> = (0..=u16::MAX).filter(|&code| sent(code)).collect();
        let expected = (1000..=1003).chain(1007..=1014).chain(3000..=4999);
        assert_eq!(allowed, expected.collect::<Vec<u16>>());
    }
}
