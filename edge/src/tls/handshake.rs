//! The handshake, which is rustls's (`UnbufferedServerConnection`), and the hand-over to [`Open`] at its end.
//!
//! rustls is shown one whole record at a time. So it never sees, and never decrypts, what the client sent right behind its
//! `Finished`: those bytes stay in the caller's input. In TLS 1.3 two secrets are wanted besides the keys that
//! `dangerous_into_kernel_connection` gives out: the traffic secrets, from which later keys come. They are caught where
//! rustls offers them to key logs ([`SecretTap`]), which costs a connection 96 bytes; the `KernelConnection`, which would
//! derive the same keys from the same secrets, costs 0.8 KB and is dropped.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{HandshakeKind, KeyLog, ProtocolVersion, ServerConfig};

use super::buffers::{Buffer, Buffers};
use super::keys::{Direction, Secret};
use super::open::Open;
use super::record::{Version, handshake_record_bytes};
use super::{Info, Shared, TlsError};

/// What a client may have us keep of an unfinished handshake, in bytes: a `ClientHello` takes 2 KB with post-quantum key
/// shares, a chain of client certificates some more.
pub(super) const KEPT_BYTES_MAX: usize = 32 * 1024;

/// A connection in its handshake.
pub(super) struct Handshake {
    connection: UnbufferedServerConnection,
    /// Records, or the last part of one, that rustls is not done with.
    kept: Option<Box<Buffer>>,
    /// How much of what is kept rustls has seen.
    shown_bytes: usize,
    /// Handshake bytes for the client.
    pub(super) due: Option<Box<Buffer>>,
    secrets: Option<Secrets>,
}

impl Handshake {
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, TlsError> {
        let connection = UnbufferedServerConnection::new(config).map_err(|error| {
            tracing::error!("rustls makes no connection: {error}");
            TlsError::Internal
        })?;
        Ok(Self { connection, kept: None, shown_bytes: 0, due: None, secrets: None })
    }

    /// Takes from the front of `input`, all of it unless the handshake ends before; returns how much that was, and
    /// whether the handshake is over.
    pub(super) fn handle_input(
        &mut self,
        buffers: &mut Buffers,
        input: &mut [u8],
    ) -> Result<(usize, bool), TlsError> {
        let Some(mut kept) = self.kept.take() else {
            let (done_bytes, over) = self.advance(buffers, input)?;
            if over {
                return Ok((done_bytes, true));
            }
            if done_bytes < input.len() {
                let mut kept = buffers.take();
                kept.bytes.extend_from_slice(&input[done_bytes..]);
                self.kept = Some(kept);
            }
            self.shown_bytes -= done_bytes;
            return Ok((input.len(), false));
        };
        kept.bytes.extend_from_slice(input);
        let advanced = self.advance(buffers, &mut kept.bytes);
        let kept = self.kept.insert(kept);
        let (done_bytes, over) = advanced?;
        if over {
            // What was kept before did not end the handshake, so the end lies in `input`.
            let left_bytes = kept.bytes.len() - done_bytes;
            return Ok((input.len().checked_sub(left_bytes).ok_or(TlsError::Internal)?, true));
        }
        kept.bytes.drain(..done_bytes);
        self.shown_bytes -= done_bytes;
        if kept.bytes.len() > KEPT_BYTES_MAX {
            return Err(TlsError::HandshakeTooLong);
        }
        if kept.bytes.is_empty() {
            self.kept.take().into_iter().for_each(|kept| buffers.give_back(kept));
        }
        Ok((input.len(), false))
    }

    /// Shows rustls the whole records of `incoming`, one by one; returns how many bytes it is done with, and whether the
    /// handshake is over.
    fn advance(
        &mut self,
        buffers: &mut Buffers,
        incoming: &mut [u8],
    ) -> Result<(usize, bool), TlsError> {
        let mut done_bytes = 0;
        while let Some(record_bytes) = handshake_record_bytes(&incoming[self.shown_bytes..]) {
            let end = self.shown_bytes + record_bytes;
            let Some(shown) = incoming.get_mut(done_bytes..end) else { break };
            self.shown_bytes = end;
            done_bytes += self.process(buffers, shown)?;
            if !self.connection.is_handshaking() {
                return Ok((done_bytes, true));
            }
        }
        Ok((done_bytes, false))
    }

    /// Lets rustls do what it can with `shown`, and takes what it has to say; returns how many bytes it is done with.
    fn process(&mut self, buffers: &mut Buffers, shown: &mut [u8]) -> Result<usize, TlsError> {
        SecretTap::clear();
        let mut done_bytes = 0;
        let outcome = loop {
            let UnbufferedStatus { discard, state } =
                self.connection.process_tls_records(&mut shown[done_bytes..]);
            done_bytes += discard;
            match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let due = self.due.get_or_insert_with(|| buffers.take());
                    append(&mut due.bytes, |free| data.encode(free))?;
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                    break Ok(done_bytes);
                }
                // Data and its end come after `Finished`, in records that are not shown.
                Ok(_) => break Err(TlsError::Internal),
                Err(error) => {
                    tracing::debug!("TLS handshake: {error}");
                    self.take_alert(buffers);
                    break Err(TlsError::from(&error));
                }
            }
        };
        if let Some(secrets) = SecretTap::take() {
            self.secrets = Some(secrets);
        }
        outcome
    }

    /// Fetches the alert that rustls has for the peer after an error.
    fn take_alert(&mut self, buffers: &mut Buffers) {
        while self.connection.wants_write() {
            let status = self.connection.process_tls_records(&mut []);
            let Ok(ConnectionState::EncodeTlsData(mut data)) = status.state else { break };
            let due = self.due.get_or_insert_with(|| buffers.take());
            if append(&mut due.bytes, |free| data.encode(free)).is_err() {
                break;
            }
        }
    }

    /// The hand-over, once the handshake is over.
    pub(super) fn into_open(self, shared: &mut Shared) -> Result<(Open, Info), TlsError> {
        let info = self.info()?;
        self.kept.into_iter().for_each(|kept| shared.buffers.give_back(kept));
        let handed_over = self.connection.dangerous_into_kernel_connection();
        let (extracted, _kernel) = handed_over.map_err(|error| {
            tracing::error!("rustls does not hand over its keys: {error}");
            TlsError::Internal
        })?;
        let (tx_secret, rx_secret) = match (info.version, self.secrets) {
            (Version::Tls13, Some(Secrets { server, client })) => (Some(server), Some(client)),
            (Version::Tls12, _) => (None, None),
            (Version::Tls13, None) => return Err(TlsError::Internal),
        };
        let tx = Direction::new(tx_secret, extracted.tx, &mut shared.contexts)?;
        let rx = Direction::new(rx_secret, extracted.rx, &mut shared.contexts)?;
        Ok((Open::new(info.version, tx, rx, self.due), info))
    }

    fn info(&self) -> Result<Info, TlsError> {
        let version = match self.connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_3) => Version::Tls13,
            Some(ProtocolVersion::TLSv1_2) => Version::Tls12,
            _ => return Err(TlsError::Internal),
        };
        Ok(Info {
            version,
            resumed: self.connection.handshake_kind() == Some(HandshakeKind::Resumed),
            client_certificate: self.connection.peer_certificates().is_some(),
        })
    }

    /// Gives its buffers back to the shard.
    pub(super) fn end(self, buffers: &mut Buffers) {
        self.kept.into_iter().chain(self.due).for_each(|buffer| buffers.give_back(buffer));
    }
}

/// Appends what `encode` writes; it is asked for the size first.
pub(super) fn append(
    out: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), TlsError> {
    let Err(EncodeError::InsufficientSize(size)) = encode(&mut []) else { return Ok(()) };
    let from = out.len();
    out.resize(from + size.required_size, 0);
    let written = encode(&mut out[from..]).map_err(|_| TlsError::Internal)?;
    out.truncate(from + written);
    Ok(())
}

/// The application traffic secrets of a handshake in TLS 1.3.
pub(super) struct Secrets {
    pub(super) client: Secret,
    pub(super) server: Secret,
}

thread_local! {
    /// Client's and server's secret of the connection that this thread is processing.
    static TAPPED: RefCell<(Option<Secret>, Option<Secret>)> = const { RefCell::new((None, None)) };
}

/// Catches the traffic secrets of the handshake that this thread processes. To be the `key_log` of every
/// [`ServerConfig`] that is given to this module.
///
/// rustls calls its key log in the middle of `process_tls_records`, in the same thread, so what was caught after a call
/// belongs to the connection that was called. Nothing is logged, and nothing outlives the call.
#[derive(Debug)]
pub struct SecretTap;

impl SecretTap {
    pub(super) fn clear() {
        TAPPED.set((None, None));
    }

    pub(super) fn take() -> Option<Secrets> {
        let (client, server) = TAPPED.take();
        Some(Secrets { client: client?, server: server? })
    }
}

impl KeyLog for SecretTap {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        TAPPED.with_borrow_mut(|(client, server)| match label {
            "CLIENT_TRAFFIC_SECRET_0" => *client = Secret::new(secret),
            "SERVER_TRAFFIC_SECRET_0" => *server = Secret::new(secret),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, "CLIENT_TRAFFIC_SECRET_0" | "SERVER_TRAFFIC_SECRET_0")
    }
}
