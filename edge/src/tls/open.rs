//! A connection after its handshake: records to data and back, key updates, alerts.
//!
//! Holds what a kernel would be given for kTLS (`tls(7)`: version, cipher, key, IV, sequence number, for each direction)
//! and the traffic secrets for key updates, nothing of rustls. A kernel that takes over sealing and opening would take the
//! place of [`record`], and leave alerts and key updates, which it hands to the process, to what is here.
//!
//! ```text
//!  rx:  open ──close_notify──► closed: what comes is discarded
//!  tx:  open ──close()──► close_notify due ──seal──► closed
//! ```

use std::ops::Range;

use rustls::AlertDescription;

use super::buffers::{Buffer, Buffers};
use super::keys::{Contexts, Direction};
use super::record::{self, ALERT, CONTENT_BYTES_MAX, DATA, HANDSHAKE, HEADER_BYTES, Version};
use super::{Shared, TlsError};

/// Records without content in a row that are put up with; rustls has the same.
const EMPTY_RECORDS_MAX: u8 = 32;
/// Key updates without data between them that are put up with; `BoringSSL` and rustls have the same.
const KEY_UPDATES_MAX: u8 = 32;
/// Warnings in TLS 1.2 that are put up with, and `user_canceled` in TLS 1.3; `BoringSSL` and rustls have the same.
const WARNINGS_MAX: u8 = 4;
/// Type and length of the handshake message `KeyUpdate`, whose body is one byte (RFC 8446 section 4.6.3).
const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// See the module.
#[derive(Debug)]
pub(super) struct Open {
    tx: Direction,
    rx: Direction,
    /// A record that has arrived in part, or that was lent from here last (`lent`).
    cut: Option<Box<Buffer>>,
    /// What is to be sent before anything else: the end of the handshake.
    due: Option<Box<Buffer>>,
    version: Version,
    lent: bool,
    close_due: bool,
    /// The peer's key update wants ours.
    key_update_due: bool,
    empty_records: u8,
    key_updates: u8,
    warnings: u8,
    /// How much has come of a `KeyUpdate` that is cut by the end of its record.
    message_bytes: u8,
}

/// What [`Open::next`] found.
pub(super) enum Found {
    /// All of the input is taken.
    Nothing,
    /// Data, here in the input.
    InInput(Range<usize>),
    /// Data, here in the record that was cut.
    InCut(Range<usize>),
    /// The peer's `close_notify`.
    Closed,
}

/// What a record was.
enum Opened {
    Data(Range<usize>),
    Closed,
    Dealt,
}

impl Open {
    pub(super) fn new(
        version: Version,
        tx: Direction,
        rx: Direction,
        due: Option<Box<Buffer>>,
    ) -> Self {
        Self {
            tx,
            rx,
            cut: None,
            due,
            version,
            lent: false,
            close_due: false,
            key_update_due: false,
            empty_records: 0,
            key_updates: 0,
            warnings: 0,
            message_bytes: 0,
        }
    }

    /// Takes from the front of `input` up to the end of the next record with data, or all of it.
    #[inline]
    pub(super) fn next(
        &mut self,
        shared: &mut Shared,
        input: &mut [u8],
    ) -> Result<(usize, Found), TlsError> {
        self.settle(&mut shared.buffers);
        let mut taken = 0;
        while taken < input.len() {
            if self.rx.closed {
                return Ok((input.len(), Found::Nothing));
            }
            if self.cut.is_some() {
                let (more, found) = self.collect(shared, &input[taken..])?;
                taken += more;
                if !matches!(found, Found::Nothing) {
                    return Ok((taken, found));
                }
                continue;
            }
            let rest = &mut input[taken..];
            let whole = match record::record_bytes(rest, self.version)? {
                Some(bytes) => rest.get_mut(..bytes),
                None => None,
            };
            let Some(whole) = whole else {
                let cut = self.cut.insert(shared.buffers.take());
                cut.bytes.extend_from_slice(rest);
                return Ok((input.len(), Found::Nothing));
            };
            let at = taken;
            taken += whole.len();
            match self.open_record(&mut shared.contexts, whole)? {
                Opened::Data(range) => {
                    return Ok((taken, Found::InInput(at + range.start..at + range.end)));
                }
                Opened::Closed => return Ok((taken, Found::Closed)),
                Opened::Dealt => {}
            }
        }
        Ok((taken, Found::Nothing))
    }

    /// Adds to the record that is cut what `input` has of it.
    fn collect(&mut self, shared: &mut Shared, input: &[u8]) -> Result<(usize, Found), TlsError> {
        let Some(mut cut) = self.cut.take() else { return Ok((0, Found::Nothing)) };
        let mut taken = 0;
        let whole = loop {
            let record_bytes = record::record_bytes(&cut.bytes, self.version)?;
            // Header first; it tells how much more.
            let missing_bytes = record_bytes.unwrap_or(HEADER_BYTES) - cut.bytes.len();
            if record_bytes.is_some() && missing_bytes == 0 {
                break true;
            }
            let more = missing_bytes.min(input.len() - taken);
            if more == 0 {
                break false;
            }
            // Grows with what has arrived: the announced length is only a promise.
            cut.bytes.extend_from_slice(&input[taken..taken + more]);
            taken += more;
        };
        if !whole {
            self.cut = Some(cut);
            return Ok((taken, Found::Nothing));
        }
        let opened = self.open_record(&mut shared.contexts, &mut cut.bytes);
        match opened {
            Ok(Opened::Data(range)) => {
                self.cut = Some(cut);
                self.lent = true;
                Ok((taken, Found::InCut(range)))
            }
            Ok(Opened::Closed) => {
                shared.buffers.give_back(cut);
                Ok((taken, Found::Closed))
            }
            Ok(Opened::Dealt) => {
                shared.buffers.give_back(cut);
                Ok((taken, Found::Nothing))
            }
            Err(error) => {
                self.cut = Some(cut);
                Err(error)
            }
        }
    }

    /// The record that was lent last.
    pub(super) fn cut_mut(&mut self) -> &mut [u8] {
        self.cut.as_mut().map_or(&mut [], |cut| &mut cut.bytes)
    }

    /// Gives the record back that was lent last.
    #[inline]
    pub(super) fn settle(&mut self, buffers: &mut Buffers) {
        if self.lent {
            self.lent = false;
            self.cut.take().into_iter().for_each(|cut| buffers.give_back(cut));
        }
    }

    fn open_record(
        &mut self,
        contexts: &mut Contexts,
        record: &mut [u8],
    ) -> Result<Opened, TlsError> {
        let (kind, content) = record::open(record, self.version, &mut self.rx, contexts)?;
        if kind == DATA && self.message_bytes == 0 {
            return self.handle_data(content);
        }
        let content = &record[content];
        match kind {
            ALERT if self.message_bytes == 0 => self.handle_alert(content),
            HANDSHAKE => self.handle_handshake(contexts, content),
            // Also where a message is cut by another record (RFC 8446 section 5.1).
            _ => Err(TlsError::UnexpectedMessage),
        }
    }

    #[inline]
    fn handle_data(&mut self, content: Range<usize>) -> Result<Opened, TlsError> {
        if content.is_empty() {
            self.empty_records += 1;
            if self.empty_records > EMPTY_RECORDS_MAX {
                return Err(TlsError::TooManyEmptyRecords);
            }
            return Ok(Opened::Dealt);
        }
        self.empty_records = 0;
        self.key_updates = 0;
        Ok(Opened::Data(content))
    }

    /// RFC 8446 section 6, RFC 5246 section 7.2.
    fn handle_alert(&mut self, content: &[u8]) -> Result<Opened, TlsError> {
        let &[level, description] = content else {
            return Err(self.malformed_or_empty(content));
        };
        if description == u8::from(AlertDescription::CloseNotify) {
            self.rx.closed = true;
            return Ok(Opened::Closed);
        }
        let canceled = description == u8::from(AlertDescription::UserCanceled);
        let warning = match self.version {
            // In TLS 1.3 the level says nothing (section 6), and this alone is followed by more (section 6.1).
            Version::Tls13 => canceled,
            Version::Tls12 => level == WARNING,
        };
        if !warning {
            return Err(TlsError::PeerAlert(description));
        }
        self.warnings += 1;
        if self.warnings > WARNINGS_MAX {
            return Err(TlsError::TooManyWarnings);
        }
        Ok(Opened::Dealt)
    }

    /// The only message that a client may send now is `KeyUpdate`, in TLS 1.3 (RFC 8446 section 4.6.3).
    fn handle_handshake(
        &mut self,
        contexts: &mut Contexts,
        content: &[u8],
    ) -> Result<Opened, TlsError> {
        if self.version == Version::Tls12 {
            // Whatever it is, it begins a renegotiation (RFC 5246 section 7.4.1).
            return Err(TlsError::Renegotiation);
        }
        if content.is_empty() {
            return Err(TlsError::UnexpectedMessage);
        }
        for (at, byte) in content.iter().copied().enumerate() {
            if let Some(expected) = KEY_UPDATE.get(usize::from(self.message_bytes)) {
                match (byte == *expected, self.message_bytes) {
                    (true, _) => self.message_bytes += 1,
                    (false, 0) => return Err(TlsError::UnexpectedMessage),
                    (false, _) => return Err(TlsError::Malformed),
                }
                continue;
            }
            // The next record has another key, so the message has to end its record (section 5.1).
            if at + 1 != content.len() {
                return Err(TlsError::UnexpectedMessage);
            }
            self.message_bytes = 0;
            self.handle_key_update(contexts, byte)?;
        }
        Ok(Opened::Dealt)
    }

    fn handle_key_update(&mut self, contexts: &mut Contexts, request: u8) -> Result<(), TlsError> {
        self.key_updates += 1;
        if self.key_updates > KEY_UPDATES_MAX {
            return Err(TlsError::TooManyKeyUpdates);
        }
        match request {
            0 => {}
            // Several requests before our next record have one answer.
            1 => self.key_update_due = true,
            _ => return Err(TlsError::IllegalParameter),
        }
        self.rx.update(contexts)
    }

    /// RFC 8446 section 5.1: alerts are never without content, and never cut.
    fn malformed_or_empty(&self, content: &[u8]) -> TlsError {
        if content.is_empty() { TlsError::UnexpectedMessage } else { TlsError::Malformed }
    }

    #[cfg(test)]
    pub(super) const fn tx(&mut self) -> &mut Direction {
        &mut self.tx
    }

    pub(super) fn wants_send(&self) -> bool {
        self.due.is_some() || !self.tx.closed && (self.key_update_due || self.close_due)
    }

    pub(super) fn close(&mut self) -> bool {
        !self.tx.closed && !std::mem::replace(&mut self.close_due, true)
    }

    /// See [`super::Tls::seal`].
    #[inline]
    pub(super) fn seal(
        &mut self,
        shared: &mut Shared,
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        if let Some(due) = self.due.take() {
            out.extend_from_slice(&due.bytes);
            shared.buffers.give_back(due);
        }
        if self.tx.closed {
            debug_assert!(plaintext.is_empty(), "data after close_notify");
            return Ok(());
        }
        if self.key_update_due {
            self.send_key_update(&mut shared.contexts, 0, out)?;
        }
        for content in plaintext.chunks(CONTENT_BYTES_MAX) {
            self.make_room(&mut shared.contexts, out)?;
            self.seal_record(&mut shared.contexts, DATA, content, out)?;
        }
        if self.close_due {
            let alert = [WARNING, AlertDescription::CloseNotify.into()];
            self.seal_record(&mut shared.contexts, ALERT, &alert, out)?;
            self.tx.closed = true;
        }
        Ok(())
    }

    /// Sees to it that the key may seal one record, and one more that ends it or the connection (RFC 8446 section 5.5).
    #[inline]
    fn make_room(&mut self, contexts: &mut Contexts, out: &mut Vec<u8>) -> Result<(), TlsError> {
        if self.tx.sequence() + 1 < self.tx.cipher().records_max() {
            return Ok(());
        }
        match self.version {
            // Traffic is much the same in both directions, so the peer's key has done as much: asked for a new one.
            Version::Tls13 => self.send_key_update(contexts, 1, out),
            Version::Tls12 => Err(TlsError::KeysExhausted),
        }
    }

    fn send_key_update(
        &mut self,
        contexts: &mut Contexts,
        request: u8,
        out: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        let [kind, a, b, c] = KEY_UPDATE;
        self.seal_record(contexts, HANDSHAKE, &[kind, a, b, c, request], out)?;
        self.key_update_due = false;
        self.tx.update(contexts)
    }

    #[inline]
    fn seal_record(
        &mut self,
        contexts: &mut Contexts,
        kind: u8,
        content: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        record::seal(kind, content, self.version, &mut self.tx, contexts, out)
    }

    /// Ends the connection: what is left is what is to be sent, with the alert for `error`.
    pub(super) fn fail(mut self, shared: &mut Shared, error: TlsError) -> Option<Box<Buffer>> {
        let mut due = self.due.take();
        if let Some(alert) = error.alert().filter(|_| !self.tx.closed) {
            let level = if alert == AlertDescription::CloseNotify { WARNING } else { FATAL };
            let due = due.get_or_insert_with(|| shared.buffers.take());
            let whole_bytes = due.bytes.len();
            let sealed = self.seal_record(
                &mut shared.contexts,
                ALERT,
                &[level, alert.into()],
                &mut due.bytes,
            );
            if sealed.is_err() {
                due.bytes.truncate(whole_bytes);
            }
        }
        self.end(shared);
        due
    }

    /// Gives back what it has of the shard.
    pub(super) fn end(self, shared: &mut Shared) {
        self.tx.forget(&mut shared.contexts);
        self.rx.forget(&mut shared.contexts);
        self.cut.into_iter().chain(self.due).for_each(|buffer| shared.buffers.give_back(buffer));
    }
}
