//! TLS: ciphertext in, plaintext out, and back; the caller owns every buffer.
//!
//! Owns the handshake (rustls), the record layer after it (the same AEADs of aws-lc, keys from rustls), key updates, alerts
//! and their bounds. Leaves out certificates and tickets ([`crate::certs`]), deadlines, and when to close a socket.
//!
//! ```text
//!  fresh ──first byte──► handshake ──Finished──► open
//!    │                       │                     │
//!    └── plain HTTP ──► over ◄── error, alert due ─┘
//! ```
//!
//! An idle connection is one box of some 250 bytes: rustls, the AEAD contexts and all buffers are gone or the shard's.

mod buffers;
mod error;
mod handshake;
mod keys;
mod open;
mod record;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::mem;
use std::sync::Arc;

use rustls::ServerConfig;

use self::buffers::{Buffer, Buffers};
pub use self::error::TlsError;
use self::handshake::Handshake;
pub use self::handshake::SecretTap;
use self::keys::{Contexts, Direction, Secret};
use self::open::{Found, Open};
pub use self::record::Version;

/// What the connections of a shard share: how to shake hands, and the memory that they use by turns.
#[derive(Debug)]
pub struct Shared {
    config: Arc<ServerConfig>,
    buffers: Buffers,
    contexts: Contexts,
}

impl Shared {
    /// Handshakes go by `config`, which is to come from [`crate::certs`]: its `key_log` has to be [`SecretTap`], and
    /// `enable_secret_extraction` set.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self { config, buffers: Buffers::new(), contexts: Contexts::new() }
    }

    /// Handshakes that begin from now on go by `config`; those that have begun, and open connections, stay as they are.
    pub fn set_config(&mut self, config: Arc<ServerConfig>) {
        self.config = config;
    }
}

/// What came of the bytes that were taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// The handshake is over; comes once, before any data.
    Open(Info),
    /// Data, decrypted; never empty. The receiver may change it.
    Data(&'a mut [u8]),
    /// The peer's `close_notify`: it sends no more, and what still comes is discarded. We may go on sending, until
    /// [`Tls::close`].
    Closed,
}

/// What a handshake came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// The version that was agreed on.
    pub version: Version,
    /// Whether a ticket spared the certificates.
    pub resumed: bool,
    /// Whether the client showed a certificate, in this session or the one resumed; it was checked then.
    pub client_certificate: bool,
}

/// One connection's TLS, server side.
pub struct Tls(Box<State>);

const _: () = assert!(size_of::<Tls>() == 8);

#[expect(
    clippy::large_enum_variant,
    reason = "boxed as a whole, and open is where connections are"
)]
enum State {
    /// Nothing has come: nothing but this is spent on who only connects.
    Fresh,
    Handshake(Box<Handshake>),
    Open(Open),
    /// Nothing is read any more; what is here is to be sent.
    Over(Option<Box<Buffer>>),
}

/// Heap of an idle open connection, in bytes: glibc rounds up to 16, and takes 8 for itself.
const STATE_BYTES_MAX: usize = 248;
const _: () = assert!(size_of::<State>() <= STATE_BYTES_MAX);

impl Tls {
    /// TLS of a connection that was just accepted.
    #[must_use]
    pub fn accept() -> Self {
        Self(Box::new(State::Fresh))
    }

    /// The server's end of a connection of TLS 1.3 that is open already, with the application traffic secrets of both ends
    /// (RFC 8446 section 7.1): 32 bytes for `TLS_AES_128_GCM_SHA256`, 48 for `TLS_AES_256_GCM_SHA384`. For tests against
    /// published traces, and for fuzzing what comes after a handshake.
    ///
    /// # Errors
    /// When the secrets have another length.
    pub fn from_secrets(
        shared: &mut Shared,
        client: &[u8],
        server: &[u8],
    ) -> Result<Self, TlsError> {
        let mut direction =
            |secret| Direction::from_secret(Secret::new(secret)?, &mut shared.contexts).ok();
        let (Some(tx), Some(rx)) = (direction(server), direction(client)) else {
            return Err(TlsError::Internal);
        };
        Ok(Self(Box::new(State::Open(Open::new(Version::Tls13, tx, rx, None)))))
    }

    /// Takes from the front of `input`: returns how many bytes it took, and what they made.
    ///
    /// The caller goes on with `&mut input[taken..]` until that is empty, then calls [`settle`](Self::settle), and
    /// [`seal`](Self::seal) when [`wants_send`](Self::wants_send). `None` means that all of `input` is taken and more is
    /// awaited; nothing of it needs to be kept. A record that lies whole in `input` is decrypted where it lies and lent
    /// out; one that is cut is collected in a buffer of the shard. After the handshake nothing is allocated, as long as the
    /// shard has buffers and the context of the key. How bytes are cut into inputs makes no difference to what the
    /// items hold and to errors.
    ///
    /// # Errors
    ///
    /// The connection is over: `seal` has the alert for the peer, then close. What else comes is discarded.
    #[inline]
    pub fn next<'a>(
        &'a mut self,
        shared: &mut Shared,
        input: &'a mut [u8],
    ) -> Result<(usize, Option<Item<'a>>), TlsError> {
        match self.find(shared, input) {
            Ok((taken, step)) => Ok((taken, self.item(step, input))),
            Err(error) => {
                self.fail(shared, error);
                Err(error)
            }
        }
    }

    fn find(&mut self, shared: &mut Shared, input: &mut [u8]) -> Result<(usize, Step), TlsError> {
        match &mut *self.0 {
            State::Open(open) => {
                let (taken, found) = open.next(shared, input)?;
                Ok((taken, Step::Found(found)))
            }
            State::Over(_) => Ok((input.len(), Step::Found(Found::Nothing))),
            State::Fresh | State::Handshake(_) => self.shake_hands(shared, input),
        }
    }

    #[inline(never)]
    fn shake_hands(
        &mut self,
        shared: &mut Shared,
        input: &mut [u8],
    ) -> Result<(usize, Step), TlsError> {
        if let State::Fresh = *self.0 {
            match input.first() {
                // Every method begins with one, and no type of record is one.
                Some(b'A'..=b'Z') => return Err(TlsError::PlainHttp),
                Some(_) => {}
                None => return Ok((0, Step::Found(Found::Nothing))),
            }
            let handshake = Handshake::new(Arc::clone(&shared.config))?;
            *self.0 = State::Handshake(Box::new(handshake));
        }
        let State::Handshake(handshake) = &mut *self.0 else { return Err(TlsError::Internal) };
        let (taken, over) = handshake.handle_input(&mut shared.buffers, input)?;
        if !over {
            return Ok((taken, Step::Found(Found::Nothing)));
        }
        let State::Handshake(handshake) = mem::replace(&mut *self.0, State::Over(None)) else {
            return Err(TlsError::Internal);
        };
        let (open, info) = handshake.into_open(shared)?;
        *self.0 = State::Open(open);
        Ok((taken, Step::Opened(info)))
    }

    #[inline]
    fn item<'a>(&'a mut self, step: Step, input: &'a mut [u8]) -> Option<Item<'a>> {
        match step {
            Step::Found(Found::InInput(range)) => input.get_mut(range).map(Item::Data),
            Step::Found(Found::InCut(range)) => match &mut *self.0 {
                State::Open(open) => open.cut_mut().get_mut(range).map(Item::Data),
                State::Fresh | State::Handshake(_) | State::Over(_) => None,
            },
            Step::Found(Found::Closed) => Some(Item::Closed),
            Step::Found(Found::Nothing) => None,
            Step::Opened(info) => Some(Item::Open(info)),
        }
    }

    #[cold]
    fn fail(&mut self, shared: &mut Shared, error: TlsError) {
        let due = match mem::replace(&mut *self.0, State::Over(None)) {
            State::Fresh => None,
            State::Handshake(mut handshake) => {
                let due = handshake.due.take();
                handshake.end(&mut shared.buffers);
                due
            }
            State::Open(open) => open.fail(shared, error),
            State::Over(due) => due,
        };
        *self.0 = State::Over(due);
    }

    /// Gives memory that is no longer needed back to the shard. To be called when an input is used up: an idle connection
    /// owns none. (Before that the last item may still be lent from it.)
    #[inline]
    pub fn settle(&mut self, shared: &mut Shared) {
        if let State::Open(open) = &mut *self.0 {
            open.settle(&mut shared.buffers);
        }
    }

    /// The handshake is over, and neither end has failed since. Data may be sealed until [`close`](Self::close).
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(*self.0, State::Open(_))
    }

    /// [`seal`](Self::seal) has something to send, also without data: handshake bytes, an answer to a key update, an alert.
    #[inline]
    #[must_use]
    pub fn wants_send(&self) -> bool {
        match &*self.0 {
            State::Fresh => false,
            State::Handshake(handshake) => handshake.due.is_some(),
            State::Open(open) => open.wants_send(),
            State::Over(due) => due.is_some(),
        }
    }

    /// Appends to `out` what is due (handshake bytes, key update), then `plaintext` in records of at most 16 KiB, then
    /// `close_notify` when [`close`](Self::close) was called. What is appended has to reach the socket in this order.
    ///
    /// Before the connection [is open](Self::is_open), after `close` and after an error `plaintext` has to be empty: the
    /// caller keeps data back until it is open, and drops it after. Allocates only in `out`.
    ///
    /// # Errors
    ///
    /// The connection is over; `out` holds whole records. Call once more for the alert, then close.
    #[inline]
    pub fn seal(
        &mut self,
        shared: &mut Shared,
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), TlsError> {
        let due = match &mut *self.0 {
            State::Open(open) => {
                let sealed = open.seal(shared, plaintext, out);
                if let Err(error) = sealed {
                    self.fail(shared, error);
                }
                return sealed;
            }
            State::Fresh => None,
            State::Handshake(handshake) => handshake.due.take(),
            State::Over(due) => due.take(),
        };
        debug_assert!(plaintext.is_empty(), "data for a connection that is not open");
        if let Some(due) = due {
            out.extend_from_slice(&due.bytes);
            shared.buffers.give_back(due);
        }
        Ok(())
    }

    /// We send no more: a `close_notify` is due (RFC 8446 section 6.1). Before the connection is open that means nothing
    /// to the peer; close the socket. Returns whether it is due because of this call.
    pub fn close(&mut self) -> bool {
        if let State::Open(open) = &mut *self.0 { open.close() } else { false }
    }

    /// The connection is gone: gives its buffers back to the shard, and has the shard forget its keys. Dropping it
    /// instead frees the buffers, and leaves the keys in the shard's cache until others need the place.
    pub fn end(self, shared: &mut Shared) {
        match *self.0 {
            State::Fresh => {}
            State::Handshake(handshake) => handshake.end(&mut shared.buffers),
            State::Open(open) => open.end(shared),
            State::Over(due) => due.into_iter().for_each(|due| shared.buffers.give_back(due)),
        }
    }
}

/// What a call of [`Tls::next`] came to, before it is lent.
enum Step {
    Opened(Info),
    Found(Found),
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self.0 {
            State::Fresh => "Tls(fresh)",
            State::Handshake(_) => "Tls(handshake)",
            State::Open(_) => "Tls(open)",
            State::Over(_) => "Tls(over)",
        })
    }
}
