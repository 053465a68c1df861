//! What one client has to say and has not written yet.

use std::io::{self, Write};

use hawser_edge::ws::Opcode;
use hawser_edge::ws::encoder::write_masked_message;

use crate::tls::TlsConnection;

/// Frames of one client on their way to its socket, masked.
///
/// Bounded by what the client may have in flight: scenarios stop sending when answers stay away.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    frames: Unwritten,
    /// Counts up: a proxy cannot be attacked by a load client, so the mask needs no strong source.
    mask_key: u32,
    /// A Close frame is in `frames`, or was; nothing may follow it.
    closed: bool,
}

impl Outgoing {
    pub(crate) fn new(mask_key: u32) -> Self {
        Self { mask_key, ..Self::default() }
    }

    /// One binary message.
    pub(crate) fn push(&mut self, payload: &[u8]) {
        self.push_frame(Opcode::Binary, payload);
    }

    /// The answer to a Ping.
    pub(crate) fn push_pong(&mut self, payload: &[u8]) {
        self.push_frame(Opcode::Pong, payload);
    }

    /// A Close frame with `code`; the last frame of this client.
    pub(crate) fn push_close(&mut self, code: u16) {
        self.push_frame(Opcode::Close, &code.to_be_bytes());
        self.closed = true;
    }

    /// We have said Close.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Nothing waits to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The bytes themselves, for the upgrade request.
    pub(crate) fn raw(&mut self) -> &mut Vec<u8> {
        &mut self.frames.bytes
    }

    fn push_frame(&mut self, opcode: Opcode, payload: &[u8]) {
        if !self.closed {
            self.mask_key = self.mask_key.wrapping_add(0x9e37_79b9);
            write_masked_message(
                &mut self.frames.bytes,
                opcode,
                payload,
                self.mask_key.to_ne_bytes(),
            );
        }
    }

    /// Writes as much as `socket` takes now; what is left waits for it to become writable.
    ///
    /// # Errors
    /// When the socket is broken.
    pub(crate) fn write_to(&mut self, socket: &mut impl Write) -> io::Result<()> {
        self.frames.write_to(socket)
    }

    /// Gives all of it to `tls` instead.
    pub(crate) fn seal(&mut self, tls: &mut TlsConnection) {
        if !self.is_empty() {
            tls.write(&self.frames.bytes);
            self.frames.bytes.clear();
        }
    }
}

/// Bytes on their way to a socket.
#[derive(Debug, Default)]
pub(crate) struct Unwritten {
    pub(crate) bytes: Vec<u8>,
    written: usize,
}

impl Unwritten {
    /// Nothing waits to be written.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes as much as `socket` takes now; what is left waits for it to become writable.
    ///
    /// # Errors
    /// When the socket is broken.
    pub(crate) fn write_to(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while self.written < self.bytes.len() {
            match socket.write(&self.bytes[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.written = 0;
        Ok(())
    }
}
