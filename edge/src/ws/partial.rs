//! What a decoder holds while a frame or message has arrived in part, and the pool it comes from.

use super::error::ProtocolError;
use super::frame::{CONTROL_PAYLOAD_BYTES_MAX, HEADER_BYTES_MAX, Header, Opcode, read_header};
use super::mask::unmask;

/// A frame or message that has arrived in part.
///
/// At most one header is cut, one frame is open, and one message is open: the frame belongs to the
/// message, or is a control frame between its fragments.
#[derive(Debug)]
pub(super) struct Partial {
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    frame: Option<Frame>,
    message: Option<Message>,
    /// What arrived of the open message, unmasked.
    payload: Vec<u8>,
    /// How much of `payload` is UTF-8 up to a character border; text that is not deflated only.
    utf8_bytes: usize,
    /// What arrived of the open control frame, unmasked.
    control: [u8; CONTROL_PAYLOAD_BYTES_MAX],
}

/// What the first frame of a message says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) text: bool,
    pub(super) deflated: bool,
}

impl Message {
    /// Its payload can be looked at for UTF-8 as it comes.
    const fn is_plain_text(self) -> bool {
        self.text && !self.deflated
    }
}

/// A frame whose header is complete, and how much of its payload has arrived.
#[derive(Clone, Copy, Debug)]
struct Frame {
    header: Header,
    arrived_bytes: u64,
}

/// What stands complete in a [`Partial`].
pub(super) enum Complete {
    /// The message, see [`Partial::payload_mut`].
    Message(Message),
    /// A control frame with this many bytes of payload, see [`Partial::control_mut`].
    Control(Opcode, usize),
}

impl Partial {
    fn new() -> Self {
        Self {
            header: [0; HEADER_BYTES_MAX],
            header_bytes: 0,
            frame: None,
            message: None,
            payload: Vec::new(),
            utf8_bytes: 0,
            control: [0; CONTROL_PAYLOAD_BYTES_MAX],
        }
    }

    fn clear(&mut self) {
        self.header_bytes = 0;
        self.frame = None;
        self.message = None;
        self.payload.clear();
        self.utf8_bytes = 0;
    }

    /// Nothing has arrived in part. What was completed last still lies here.
    pub(super) const fn is_idle(&self) -> bool {
        self.header_bytes == 0 && self.frame.is_none() && self.message.is_none()
    }

    /// The message that was completed last.
    pub(super) fn payload_mut(&mut self) -> &mut [u8] {
        &mut self.payload
    }

    /// The control frame's payload that was completed last.
    pub(super) fn control_mut(&mut self, bytes: usize) -> &mut [u8] {
        &mut self.control[..bytes]
    }

    #[cfg(test)]
    pub(super) const fn held_bytes(&self) -> usize {
        self.payload.capacity()
    }

    /// Takes from the front of `input` up to the end of the next message or control frame, or all of
    /// it. `check` is asked about each header, before its payload.
    pub(super) fn collect(
        &mut self,
        input: &mut [u8],
        deflate: bool,
        check: impl Fn(&Header, Option<usize>) -> Result<(), ProtocolError>,
    ) -> Result<(usize, Option<Complete>), ProtocolError> {
        let mut taken = 0;
        loop {
            let mut frame = match self.frame {
                Some(frame) => frame,
                None => {
                    let (header_taken, header) = self.collect_header(&input[taken..], deflate)?;
                    taken += header_taken;
                    let Some(header) = header else { return Ok((taken, None)) };
                    check(&header, self.message.map(|_| self.payload.len()))?;
                    self.open(header)
                }
            };
            taken += self.collect_payload(&mut frame, &mut input[taken..])?;
            if frame.arrived_bytes < frame.header.payload_bytes {
                self.frame = Some(frame);
                return Ok((taken, None));
            }
            self.frame = None;
            if let Some(complete) = self.close(frame)? {
                return Ok((taken, Some(complete)));
            }
        }
    }

    /// Completes the cut header with bytes from the front of `input`, and says how many it took.
    fn collect_header(
        &mut self,
        input: &[u8],
        deflate: bool,
    ) -> Result<(usize, Option<Header>), ProtocolError> {
        let had = self.header_bytes;
        let have = HEADER_BYTES_MAX.min(had + input.len());
        self.header[had..have].copy_from_slice(&input[..have - had]);
        match read_header(&self.header[..have], deflate)? {
            Some((header, header_bytes)) => {
                self.header_bytes = 0;
                Ok((header_bytes - had, Some(header)))
            }
            None => {
                self.header_bytes = have;
                Ok((have - had, None))
            }
        }
    }

    fn open(&mut self, header: Header) -> Frame {
        match header.opcode {
            Opcode::Text | Opcode::Binary => {
                let (text, deflated) = (header.opcode == Opcode::Text, header.deflated);
                self.open_message(Message { text, deflated });
            }
            Opcode::Continuation | Opcode::Close | Opcode::Ping | Opcode::Pong => {}
        }
        Frame { header, arrived_bytes: 0 }
    }

    fn open_message(&mut self, message: Message) {
        self.message = Some(message);
        self.payload.clear();
        self.utf8_bytes = 0;
    }

    /// Takes what `input` has of the frame's payload, and says how much that was.
    fn collect_payload(
        &mut self,
        frame: &mut Frame,
        input: &mut [u8],
    ) -> Result<usize, ProtocolError> {
        let missing_bytes = frame.header.payload_bytes - frame.arrived_bytes;
        let taken = usize::try_from(missing_bytes).map_or(input.len(), |n| n.min(input.len()));
        let bytes = &mut input[..taken];
        if let Some(key) = frame.header.mask {
            unmask(bytes, key, frame.arrived_bytes as usize);
        }
        if frame.header.opcode.is_control() {
            // Fits: `read_header` refuses control frames longer than the array.
            let at = frame.arrived_bytes as usize;
            self.control[at..at + taken].copy_from_slice(bytes);
        } else {
            // Grows with what has arrived: the announced length is only a promise.
            self.payload.extend_from_slice(bytes);
            if self.message.is_some_and(Message::is_plain_text) {
                self.check_text()?;
            }
        }
        frame.arrived_bytes += taken as u64;
        Ok(taken)
    }

    /// Checks the text that has arrived since the last check; a character cut at its end may go on.
    fn check_text(&mut self) -> Result<(), ProtocolError> {
        match simdutf8::compat::from_utf8(&self.payload[self.utf8_bytes..]) {
            Ok(_) => self.utf8_bytes = self.payload.len(),
            Err(error) if error.error_len().is_none() => self.utf8_bytes += error.valid_up_to(),
            Err(_) => return Err(ProtocolError::TextNotUtf8),
        }
        Ok(())
    }

    /// Ends a frame whose payload is complete; says what that completes.
    fn close(&mut self, frame: Frame) -> Result<Option<Complete>, ProtocolError> {
        let opcode = frame.header.opcode;
        if opcode.is_control() {
            return Ok(Some(Complete::Control(opcode, frame.header.payload_bytes as usize)));
        }
        if !frame.header.fin {
            return Ok(None);
        }
        let message = self.message.take().ok_or(ProtocolError::ContinuationUnexpected)?;
        if message.is_plain_text() && self.utf8_bytes != self.payload.len() {
            return Err(ProtocolError::TextNotUtf8);
        }
        Ok(Some(Complete::Message(message)))
    }
}

/// Boxes that a pool keeps for reuse.
const POOL_BOXES_MAX: usize = 256;
/// Message buffers that a pool keeps for reuse, in bytes over all boxes: one shard's receives, many times
/// over, and small beside its connections.
const POOL_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Where the decoders of one shard get the memory for what has arrived in part, and give it back.
///
/// Keeps at most 256 boxes with 4 MiB of message buffers in all, and frees what is over;
/// so the steady state allocates nothing.
#[derive(Debug)]
pub struct Pool {
    #[expect(
        clippy::vec_box,
        reason = "boxes move between pool and decoders, their contents do not"
    )]
    free: Vec<Box<Partial>>,
    /// Capacity of the message buffers in `free`.
    kept_bytes: usize,
    boxes_max: usize,
    bytes_max: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(POOL_BOXES_MAX, POOL_BYTES_MAX)
    }
}

impl Pool {
    /// An empty pool with bounds of its own; its boxes are made when they are first wanted.
    #[must_use]
    pub fn new(boxes_max: usize, bytes_max: usize) -> Self {
        Self { free: Vec::with_capacity(boxes_max), kept_bytes: 0, boxes_max, bytes_max }
    }

    /// Bytes of message buffers that are kept for reuse.
    #[must_use]
    pub const fn kept_bytes(&self) -> usize {
        self.kept_bytes
    }

    pub(super) fn take(&mut self) -> Box<Partial> {
        let Some(partial) = self.free.pop() else { return Box::new(Partial::new()) };
        self.kept_bytes -= partial.payload.capacity();
        partial
    }

    pub(super) fn give_back(&mut self, mut partial: Box<Partial>) {
        let kept_bytes = self.kept_bytes + partial.payload.capacity();
        if self.free.len() < self.boxes_max && kept_bytes <= self.bytes_max {
            partial.clear();
            self.free.push(partial);
            self.kept_bytes = kept_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_over_the_bound_are_freed() {
        let mut pool = Pool::new(2, 100);
        let taken: Vec<_> = (0..5).map(|_| pool.take()).collect();
        for partial in taken {
            pool.give_back(partial);
        }
        assert_eq!(pool.free.len(), 2);
    }

    #[test]
    fn a_buffer_over_the_bound_is_freed_and_one_that_is_taken_is_no_longer_kept() {
        let mut pool = Pool::new(2, 100);
        for capacity in [90, 20] {
            let mut partial = Box::new(Partial::new());
            partial.payload.reserve_exact(capacity);
            pool.give_back(partial);
        }
        assert_eq!((pool.free.len(), pool.kept_bytes()), (1, 90));
        let _taken = pool.take();
        assert_eq!(pool.kept_bytes(), 0);
    }
}
