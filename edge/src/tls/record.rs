//! One record: its header, its limits, sealed and opened (RFC 8446 section 5, RFC 5246 section 6.2, RFC 5288, RFC 7905).

use std::ops::Range;

use aws_lc_rs::aead::{Aad, Nonce};

use super::TlsError;
use super::keys::{Cipher, Contexts, Direction};

/// Content type, version, length.
pub(super) const HEADER_BYTES: usize = 5;
/// Longest content of a record, in bytes (RFC 8446 section 5.1).
pub(super) const CONTENT_BYTES_MAX: usize = 1 << 14;
/// Longest of what follows the header in TLS 1.3 (RFC 8446 section 5.2).
const SEALED_BYTES_MAX_13: usize = CONTENT_BYTES_MAX + 256;
/// The same in TLS 1.2 (RFC 5246 section 6.2.3), and in the handshake.
const SEALED_BYTES_MAX_12: usize = CONTENT_BYTES_MAX + 2048;
/// What an AEAD adds.
const TAG_BYTES: usize = 16;
/// The part of a GCM nonce that travels in a record of TLS 1.2.
const EXPLICIT_NONCE_BYTES: usize = 8;
/// `legacy_record_version` of TLS 1.3, `version` of TLS 1.2.
const VERSION: [u8; 2] = [3, 3];

/// Content types (RFC 8446 appendix B.1).
pub(super) const CHANGE_CIPHER_SPEC: u8 = 20;
pub(super) const ALERT: u8 = 21;
pub(super) const HANDSHAKE: u8 = 22;
pub(super) const DATA: u8 = 23;

/// The versions of TLS that are spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// How long the handshake record is that `input` begins with, header and all. None when its header is cut, or is none
/// that rustls would wait behind: it has to see that one to refuse it.
pub(super) fn handshake_record_bytes(input: &[u8]) -> Option<usize> {
    let [kind, major, _, high, low, ..] = *input else { return None };
    let sealed_bytes = usize::from(u16::from_be_bytes([high, low]));
    let plausible = matches!(kind, CHANGE_CIPHER_SPEC..=DATA)
        && major == VERSION[0]
        && sealed_bytes <= SEALED_BYTES_MAX_12;
    Some(if plausible { HEADER_BYTES + sealed_bytes } else { HEADER_BYTES })
}

/// How long the record of an open connection is that `input` begins with, header and all; None when its header is cut.
///
/// # Errors
/// What can be told from the header: a type that has no place here, a length over the limit.
#[inline]
pub(super) fn record_bytes(input: &[u8], version: Version) -> Result<Option<usize>, TlsError> {
    let [kind, major, minor, high, low, ..] = *input else { return Ok(None) };
    let sealed_bytes = usize::from(u16::from_be_bytes([high, low]));
    let sealed_bytes_max = match version {
        // The type outside is that of data, whatever is inside (RFC 8446 section 5.2).
        Version::Tls13 if kind == DATA => SEALED_BYTES_MAX_13,
        Version::Tls12 if matches!(kind, ALERT..=DATA) && [major, minor] == VERSION => {
            SEALED_BYTES_MAX_12
        }
        Version::Tls13 | Version::Tls12 => return Err(TlsError::UnexpectedMessage),
    };
    if sealed_bytes > sealed_bytes_max {
        return Err(TlsError::RecordOverflow);
    }
    Ok(Some(HEADER_BYTES + sealed_bytes))
}

/// Opens a whole record in place; tells its content type, and where in `record` the content lies.
///
/// # Errors
/// [`TlsError::BadRecord`], [`TlsError::RecordOverflow`], or that there is nothing but padding.
#[inline]
pub(super) fn open(
    record: &mut [u8],
    version: Version,
    rx: &mut Direction,
    contexts: &mut Contexts,
) -> Result<(u8, Range<usize>), TlsError> {
    let opened = match version {
        Version::Tls13 => open_13(record, rx, contexts),
        Version::Tls12 => open_12(record, rx, contexts),
    }?;
    rx.advance();
    Ok(opened)
}

fn open_13(
    record: &mut [u8],
    rx: &Direction,
    contexts: &mut Contexts,
) -> Result<(u8, Range<usize>), TlsError> {
    let (header, sealed) = record.split_at_mut_checked(HEADER_BYTES).ok_or(TlsError::Malformed)?;
    let inner = rx
        .context(contexts)?
        .open_in_place(Nonce::assume_unique_for_key(rx.nonce()), Aad::from(&*header), sealed)
        .map_err(|_| TlsError::BadRecord)?;
    // TLSInnerPlaintext: content, type, zeros (RFC 8446 section 5.2). Padding counts towards the limit.
    if inner.len() > CONTENT_BYTES_MAX + 1 {
        return Err(TlsError::RecordOverflow);
    }
    let Some(at) = inner.iter().rposition(|byte| *byte != 0) else {
        return Err(TlsError::UnexpectedMessage);
    };
    Ok((inner[at], HEADER_BYTES..HEADER_BYTES + at))
}

fn open_12(
    record: &mut [u8],
    rx: &Direction,
    contexts: &mut Contexts,
) -> Result<(u8, Range<usize>), TlsError> {
    let (header, sealed) = record.split_at_mut_checked(HEADER_BYTES).ok_or(TlsError::Malformed)?;
    let kind = header[0];
    let (nonce, explicit_bytes) = match (rx.cipher(), sealed.first_chunk()) {
        (Cipher::ChaCha20Poly1305, _) => (Nonce::assume_unique_for_key(rx.nonce()), 0),
        (Cipher::Aes128Gcm | Cipher::Aes256Gcm, Some(explicit)) => {
            (rx.explicit_nonce(*explicit), EXPLICIT_NONCE_BYTES)
        }
        (Cipher::Aes128Gcm | Cipher::Aes256Gcm, None) => return Err(TlsError::BadRecord),
    };
    let sealed = &mut sealed[explicit_bytes..];
    let content_bytes = sealed.len().checked_sub(TAG_BYTES).ok_or(TlsError::BadRecord)?;
    if content_bytes > CONTENT_BYTES_MAX {
        return Err(TlsError::RecordOverflow);
    }
    let aad = additional_data_12(rx.sequence(), kind, content_bytes);
    rx.context(contexts)?
        .open_in_place(nonce, Aad::from(aad), sealed)
        .map_err(|_| TlsError::BadRecord)?;
    let from = HEADER_BYTES + explicit_bytes;
    Ok((kind, from..from + content_bytes))
}

/// Appends `content`, at most 2^14 bytes, to `out` as one record. The key has to be one that may seal one more.
///
/// # Errors
/// [`TlsError::Internal`]; `out` may then end in part of a record.
#[inline]
pub(super) fn seal(
    kind: u8,
    content: &[u8],
    version: Version,
    tx: &mut Direction,
    contexts: &mut Contexts,
    out: &mut Vec<u8>,
) -> Result<(), TlsError> {
    debug_assert!(content.len() <= CONTENT_BYTES_MAX);
    match version {
        Version::Tls13 => seal_13(kind, content, tx, contexts, out),
        Version::Tls12 => seal_12(kind, content, tx, contexts, out),
    }?;
    tx.advance();
    Ok(())
}

fn seal_13(
    kind: u8,
    content: &[u8],
    tx: &Direction,
    contexts: &mut Contexts,
    out: &mut Vec<u8>,
) -> Result<(), TlsError> {
    let context = tx.context(contexts)?;
    let header = header(DATA, content.len() + 1 + TAG_BYTES);
    out.reserve(HEADER_BYTES + content.len() + 1 + TAG_BYTES);
    out.extend_from_slice(&header);
    let from = out.len();
    out.extend_from_slice(content);
    out.push(kind);
    let nonce = Nonce::assume_unique_for_key(tx.nonce());
    let tag = context
        .seal_in_place_separate_tag(nonce, Aad::from(header), &mut out[from..])
        .map_err(|_| TlsError::Internal)?;
    out.extend_from_slice(tag.as_ref());
    Ok(())
}

fn seal_12(
    kind: u8,
    content: &[u8],
    tx: &Direction,
    contexts: &mut Contexts,
    out: &mut Vec<u8>,
) -> Result<(), TlsError> {
    let context = tx.context(contexts)?;
    let nonce = tx.nonce();
    let explicit = match tx.cipher() {
        Cipher::ChaCha20Poly1305 => &[][..],
        Cipher::Aes128Gcm | Cipher::Aes256Gcm => &nonce[nonce.len() - EXPLICIT_NONCE_BYTES..],
    };
    out.reserve(HEADER_BYTES + explicit.len() + content.len() + TAG_BYTES);
    out.extend_from_slice(&header(kind, explicit.len() + content.len() + TAG_BYTES));
    out.extend_from_slice(explicit);
    let from = out.len();
    out.extend_from_slice(content);
    let aad = additional_data_12(tx.sequence(), kind, content.len());
    let tag = context
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut out[from..],
        )
        .map_err(|_| TlsError::Internal)?;
    out.extend_from_slice(tag.as_ref());
    Ok(())
}

/// `sealed_bytes` fits: content is at most 2^14 bytes.
fn header(kind: u8, sealed_bytes: usize) -> [u8; HEADER_BYTES] {
    let [high, low] = (sealed_bytes as u16).to_be_bytes();
    [kind, VERSION[0], VERSION[1], high, low]
}

/// `additional_data` of RFC 5246 section 6.2.3.3.
fn additional_data_12(sequence: u64, kind: u8, content_bytes: usize) -> [u8; 13] {
    let mut data = [0; 13];
    data[..8].copy_from_slice(&sequence.to_be_bytes());
    data[8..].copy_from_slice(&header(kind, content_bytes));
    data
}
