//! Session tickets that all edges of a fleet can open: their keys come from a file.
//!
//! A ticket is the key's name (16 bytes), a random nonce (12), and the session sealed with AES-256-GCM-SIV (RFC 8452), which
//! bears nonces that repeat, so any number of edges may seal with one key.

use std::fmt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hkdf, rand};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hawser_proto::knobs::UsageError;
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

use super::{now, read, unix_seconds};

/// How long a ticket is good for, whatever the file says; as long as rustls's own.
const LIFETIME_SECONDS: u32 = 12 * 3600;
/// Lengths of a key in the file, in bytes: that of the cipher's, and what other servers take.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 32..=80;
/// Keys in a file, at most: a ticket is tried against the names of all.
const KEYS_MAX: usize = 16;
const NAME_BYTES: usize = 16;
/// Before the session stands when it was sealed, in seconds since 1970.
const TIME_BYTES: usize = 8;

/// Ticket keys from a file: the first seals, all open.
#[derive(Debug)]
pub(super) struct SharedTickets {
    keys: Vec<TicketKey>,
}

struct TicketKey {
    name: [u8; NAME_BYTES],
    key: LessSafeKey,
}

impl SharedTickets {
    /// Reads the file at `path`. Tickets are good among edges with the same keys and the same `trust`.
    pub(super) fn read(path: &Path, trust: &[u8]) -> Result<Self, UsageError> {
        let refuse =
            |reason: String| UsageError(format!("--tls-ticket-keys: {} {reason}", path.display()));
        let text = Zeroizing::new(read("--tls-ticket-keys", path)?);
        let text = str::from_utf8(&text).map_err(|_| refuse("is not text".to_owned()))?;
        let mut keys = Vec::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let key = BASE64_STANDARD.decode(line.trim()).map(Zeroizing::new).ok();
            let key = key
                .filter(|key| KEY_BYTES.contains(&key.len()))
                .and_then(|key| TicketKey::new(&key, trust));
            keys.push(key.ok_or_else(|| {
                refuse(format!("has no key of 32 to 80 bytes in base64 at line {}", at + 1))
            })?);
        }
        match keys.len() {
            0 => Err(refuse("has no key in it; make one with: openssl rand -base64 48".to_owned())),
            1..=KEYS_MAX => Ok(Self { keys }),
            count => Err(refuse(format!("has {count} keys; allowed are 1 to {KEYS_MAX}"))),
        }
    }

    fn seal(&self, session: &[u8], now_seconds: u64) -> Option<Vec<u8>> {
        let TicketKey { name, key } = self.keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let tag_bytes = AES_256_GCM_SIV.tag_len();
        let bytes = NAME_BYTES + NONCE_LEN + TIME_BYTES + session.len() + tag_bytes;
        let mut ticket = Vec::with_capacity(bytes);
        ticket.extend_from_slice(name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(&now_seconds.to_be_bytes());
        ticket.extend_from_slice(session);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = ticket.get_mut(NAME_BYTES + NONCE_LEN..)?;
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(name), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, ticket: &[u8], now_seconds: u64) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let TicketKey { key, .. } = self.keys.iter().find(|key| key.name == *name)?;
        let mut session = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened_bytes = key.open_in_place(nonce, Aad::from(name), &mut session).ok()?.len();
        session.truncate(opened_bytes);
        let sealed_at = u64::from_be_bytes(*session.first_chunk::<TIME_BYTES>()?);
        // A clock of the fleet may be a little ahead.
        if now_seconds.saturating_sub(sealed_at) > u64::from(LIFETIME_SECONDS) {
            return None;
        }
        session.drain(..TIME_BYTES);
        Some(session)
    }
}

impl TicketKey {
    /// Name and cipher key from the key in the file, by HKDF (RFC 5869), which takes any length.
    fn new(secret: &[u8], trust: &[u8]) -> Option<Self> {
        let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, b"hawser session tickets").extract(secret);
        let (mut name, mut key) = ([0; NAME_BYTES], Zeroizing::new([0; 32]));
        derived.expand(&[b"name", trust], Bytes(NAME_BYTES)).ok()?.fill(&mut name).ok()?;
        derived.expand(&[b"key", trust], Bytes(key.len())).ok()?.fill(&mut key[..]).ok()?;
        let key = UnboundKey::new(&AES_256_GCM_SIV, &key[..]).ok()?;
        Some(Self { name, key: LessSafeKey::new(key) })
    }
}

struct Bytes(usize);

impl hkdf::KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

impl ProducesTickets for SharedTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, unix_seconds(now()))
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, unix_seconds(now()))
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey")
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn line(byte: u8, bytes: usize) -> String {
        BASE64_STANDARD.encode(vec![byte; bytes]) + "\n"
    }

    fn read_trusting(text: &str, trust: &[u8]) -> Result<SharedTickets, String> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        SharedTickets::read(file.path(), trust).map_err(|UsageError(sentence)| sentence)
    }

    fn read_text(text: &str) -> Result<SharedTickets, String> {
        read_trusting(text, b"")
    }

    #[test]
    fn tickets_of_edges_with_other_rules_for_client_certificates_open_nothing() {
        let edges = [b"required\0one", b"required\0two"];
        let edges = edges.map(|trust| read_trusting(&line(1, 48), trust).unwrap());
        let ticket = edges[0].seal(b"session", 1000).unwrap();
        assert!(edges[0].open(&ticket, 1000).is_some());
        assert!(edges[1].open(&ticket, 1000).is_none());
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let old = read_text(&line(1, 48)).unwrap();
        let both = read_text(&(line(2, 32) + "\n" + &line(1, 48))).unwrap();
        let new = read_text(&line(2, 32)).unwrap();
        let ticket = old.seal(b"session", 1000).unwrap();
        assert_eq!(both.open(&ticket, 1000).as_deref(), Some(&b"session"[..]));
        assert_eq!(new.open(&ticket, 1000), None);
        let ticket = both.seal(b"session", 1000).unwrap();
        assert_eq!(new.open(&ticket, 1000).as_deref(), Some(&b"session"[..]));
        assert_eq!(old.open(&ticket, 1000), None);
        assert_ne!(both.seal(b"session", 1000), Some(ticket), "nonces differ");
    }

    #[test]
    fn a_ticket_that_is_old_or_changed_anywhere_opens_nothing() {
        let tickets = read_text(&line(1, 32)).unwrap();
        let ticket = tickets.seal(b"session", 1000).unwrap();
        let last = 1000 + u64::from(LIFETIME_SECONDS);
        assert!(tickets.open(&ticket, last).is_some());
        assert!(tickets.open(&ticket, last + 1).is_none());
        assert!(tickets.open(&ticket, 990).is_some(), "a clock that is behind");
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(tickets.open(&changed, 1000), None, "byte {at}");
            assert_eq!(tickets.open(&ticket[..at], 1000), None, "cut at {at}");
        }
    }

    #[test]
    fn a_file_with_anything_but_keys_is_refused_by_its_line() {
        for (text, told) in [
            (String::new(), "has no key in it"),
            (line(1, 31), "has no key of 32 to 80 bytes in base64 at line 1"),
            (line(1, 32) + &line(1, 81), "has no key of 32 to 80 bytes in base64 at line 2"),
            (line(1, 32) + "secret!\n", "has no key of 32 to 80 bytes in base64 at line 2"),
            (line(1, 32).repeat(17), "has 17 keys; allowed are 1 to 16"),
        ] {
            let sentence = read_text(&text).unwrap_err();
            assert!(
                sentence.starts_with("--tls-ticket-keys: ") && sentence.contains(told),
                "{sentence}"
            );
        }
    }
}
