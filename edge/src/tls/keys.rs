//! What one direction of an open connection is sealed with: key, nonce, sequence number, and in TLS 1.3 the traffic
//! secret from which the next key comes.
//!
//! A connection keeps the raw key (RFC 8446 section 7.3), 32 bytes. The AEAD context that aws-lc makes of it, with its
//! tables, is 20 times that; so contexts live in [`Contexts`], a bounded cache of the shard, and are made again when a
//! connection speaks that has been silent for long.

use std::fmt;

use aws_lc_rs::aead::{self, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{self, KeyType, Prk};
use rustls::ConnectionTrafficSecrets;
use zeroize::Zeroize;

use super::TlsError;

/// Longest AEAD key, in bytes.
const KEY_BYTES_MAX: usize = 32;
/// Longest traffic secret, in bytes: a SHA-384.
const SECRET_BYTES_MAX: usize = 48;
/// Length of a nonce, in bytes, of all AEADs here.
pub(super) const NONCE_BYTES: usize = 12;

/// A key, with zeros behind it where the cipher's is shorter.
type Key = [u8; KEY_BYTES_MAX];
type Iv = [u8; NONCE_BYTES];

/// The AEADs of the cipher suites that rustls offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cipher {
    /// `AES_128_GCM`.
    Aes128Gcm,
    /// `AES_256_GCM`.
    Aes256Gcm,
    /// `CHACHA20_POLY1305`.
    ChaCha20Poly1305,
}

impl Cipher {
    fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes128Gcm => &aead::AES_128_GCM,
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }

    /// Records that one key may seal; what rustls has as `confidentiality_limit` of the suite, and for `ChaCha20`,
    /// which has none, a number well before sequence numbers end.
    pub(super) const fn records_max(self) -> u64 {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => 1 << 24,
            Self::ChaCha20Poly1305 => 1 << 62,
        }
    }
}

/// A traffic secret of TLS 1.3 (RFC 8446 section 7.1). Its length tells the hash of its suite.
pub(super) struct Secret {
    bytes: [u8; SECRET_BYTES_MAX],
    hash: Hash,
}

#[derive(Clone, Copy)]
enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    const fn bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }
}

impl Secret {
    /// None when the length is not that of a hash of TLS 1.3.
    pub(super) fn new(secret: &[u8]) -> Option<Self> {
        let hash =
            [Hash::Sha256, Hash::Sha384].into_iter().find(|hash| hash.bytes() == secret.len())?;
        let mut bytes = [0; SECRET_BYTES_MAX];
        bytes[..secret.len()].copy_from_slice(secret);
        Some(Self { bytes, hash })
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446 section 7.1), filling `output`.
    fn expand_label(&self, label: &str, output: &mut [u8]) -> Result<(), TlsError> {
        let secret = &self.bytes[..self.hash.bytes()];
        let algorithm = match self.hash {
            Hash::Sha256 => hkdf::HKDF_SHA256,
            Hash::Sha384 => hkdf::HKDF_SHA384,
        };
        let output_bytes = (output.len() as u16).to_be_bytes();
        let label_bytes = [(b"tls13 ".len() + label.len()) as u8];
        let info = [&output_bytes[..], &label_bytes, b"tls13 ", label.as_bytes(), &[0]];
        Prk::new_less_safe(algorithm, secret)
            .expand(&info, OutputBytes(output.len()))
            .and_then(|okm| okm.fill(output))
            .map_err(|_| TlsError::Internal)
    }

    /// Key and IV (RFC 8446 section 7.3).
    fn keys(&self, cipher: Cipher) -> Result<(Key, Iv), TlsError> {
        let (mut key, mut iv) = ([0; KEY_BYTES_MAX], [0; NONCE_BYTES]);
        self.expand_label("key", &mut key[..cipher.algorithm().key_len()])?;
        self.expand_label("iv", &mut iv)?;
        Ok((key, iv))
    }

    /// The secret after this one (RFC 8446 section 7.2).
    fn next(&self) -> Result<Self, TlsError> {
        let mut next = Self { bytes: [0; SECRET_BYTES_MAX], hash: self.hash };
        self.expand_label("traffic upd", &mut next.bytes[..self.hash.bytes()])?;
        Ok(next)
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

struct OutputBytes(usize);

impl KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// One direction of an open connection.
pub(super) struct Direction {
    /// None in TLS 1.2, which has no key update.
    secret: Option<Secret>,
    key: Key,
    iv: Iv,
    cipher: Cipher,
    /// After `close_notify`.
    pub(super) closed: bool,
    /// Number of the next record.
    sequence: u64,
    /// Names the key in [`Contexts`].
    id: KeyId,
}

impl Direction {
    /// Takes over where rustls stands after the handshake.
    pub(super) fn new(
        secret: Option<Secret>,
        (sequence, extracted): (u64, ConnectionTrafficSecrets),
        contexts: &mut Contexts,
    ) -> Result<Self, TlsError> {
        let (cipher, key, iv) = match &extracted {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (Cipher::Aes128Gcm, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (Cipher::Aes256Gcm, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (Cipher::ChaCha20Poly1305, key, iv)
            }
            _ => return Err(TlsError::Internal),
        };
        let mut direction = Self {
            secret,
            key: [0; KEY_BYTES_MAX],
            iv: [0; NONCE_BYTES],
            cipher,
            closed: false,
            sequence,
            id: contexts.new_id(),
        };
        let key_bytes = cipher.algorithm().key_len();
        if key.as_ref().len() != key_bytes || iv.as_ref().len() != NONCE_BYTES {
            return Err(TlsError::Internal);
        }
        direction.key[..key_bytes].copy_from_slice(key.as_ref());
        direction.iv.copy_from_slice(iv.as_ref());
        debug_assert!(direction.follows_from_secret(), "the secret is that of the key");
        Ok(direction)
    }

    /// Begins with a secret, and with AES-GCM as wide as the secret's hash.
    pub(super) fn from_secret(secret: Secret, contexts: &mut Contexts) -> Result<Self, TlsError> {
        let cipher = match secret.hash {
            Hash::Sha256 => Cipher::Aes128Gcm,
            Hash::Sha384 => Cipher::Aes256Gcm,
        };
        let (key, iv) = secret.keys(cipher)?;
        let (id, secret) = (contexts.new_id(), Some(secret));
        Ok(Self { secret, key, iv, cipher, closed: false, sequence: 0, id })
    }

    /// The key is what the secret gives; true where there is no secret.
    fn follows_from_secret(&self) -> bool {
        let keys = self.secret.as_ref().map(|secret| secret.keys(self.cipher));
        keys.is_none_or(|keys| keys == Ok((self.key, self.iv)))
    }

    /// Moves to the next key (RFC 8446 section 7.2).
    ///
    /// # Errors
    /// [`TlsError::KeysExhausted`] in TLS 1.2.
    pub(super) fn update(&mut self, contexts: &mut Contexts) -> Result<(), TlsError> {
        let secret = self.secret.as_ref().ok_or(TlsError::KeysExhausted)?.next()?;
        (self.key, self.iv) = secret.keys(self.cipher)?;
        self.secret = Some(secret);
        self.sequence = 0;
        contexts.forget(self.id);
        self.id = contexts.new_id();
        Ok(())
    }

    pub(super) const fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Number of the next record.
    pub(super) const fn sequence(&self) -> u64 {
        self.sequence
    }

    #[cfg(test)]
    pub(super) const fn set_sequence(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// One record more has been sealed or opened.
    pub(super) const fn advance(&mut self) {
        self.sequence += 1;
    }

    /// The nonce of the next record: the number, padded on the left, exclusive or the IV (RFC 8446 section 5.3; in TLS
    /// 1.2 RFC 7905 section 2, and for GCM the choice that rustls made in the handshake).
    pub(super) fn nonce(&self) -> [u8; NONCE_BYTES] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        nonce
    }

    /// The nonce whose last eight bytes came with the record (RFC 5288 section 3).
    pub(super) fn explicit_nonce(&self, explicit: [u8; 8]) -> Nonce {
        let mut nonce = self.iv;
        nonce[4..].copy_from_slice(&explicit);
        Nonce::assume_unique_for_key(nonce)
    }

    /// The AEAD context, from the cache or made anew.
    pub(super) fn context<'c>(
        &self,
        contexts: &'c mut Contexts,
    ) -> Result<&'c LessSafeKey, TlsError> {
        contexts.get(self.id, || {
            let algorithm = self.cipher.algorithm();
            let key = UnboundKey::new(algorithm, &self.key[..algorithm.key_len()]);
            key.map(LessSafeKey::new).map_err(|_| TlsError::Internal)
        })
    }

    /// Removes the context, with its copy of the key, from the cache.
    pub(super) fn forget(&self, contexts: &mut Contexts) {
        contexts.forget(self.id);
    }
}

impl Drop for Direction {
    fn drop(&mut self) {
        self.key.zeroize();
        self.iv.zeroize();
    }
}

impl fmt::Debug for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cipher, sequence, .. } = self;
        f.debug_struct("Direction")
            .field("cipher", cipher)
            .field("sequence", sequence)
            .finish_non_exhaustive()
    }
}

/// Names a key within its shard; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KeyId(u64);

/// Contexts of one shard, at most: those of the 256 connections that spoke last. Each takes some 640 bytes. To make one
/// anew took 0.3 µs where an echo of 64 bytes took 0.7 with both at hand (`cargo bench --bench tls`), and a whole echo over
/// a socket takes ten times that; so this is for bursts, and need not hold everybody.
const CONTEXTS_MAX: usize = 512;
/// Places for one key id; the one used longest ago goes.
const WAYS: usize = 4;
const SETS: usize = CONTEXTS_MAX / WAYS;
const _: () = assert!(SETS.is_power_of_two());

/// The AEAD contexts of keys that were used lately: at most 512, four of them to choose from for a key.
pub(super) struct Contexts {
    sets: Box<[[Place; WAYS]]>,
    last_id: KeyId,
}

/// Most recently used first within a set.
#[derive(Default)]
struct Place(Option<(KeyId, LessSafeKey)>);

impl Place {
    fn is_of(&self, id: KeyId) -> bool {
        self.0.as_ref().is_some_and(|(held, _)| *held == id)
    }
}

impl Contexts {
    pub(super) fn new() -> Self {
        Self { sets: (0..SETS).map(|_| <[Place; WAYS]>::default()).collect(), last_id: KeyId(0) }
    }

    fn new_id(&mut self) -> KeyId {
        self.last_id.0 += 1;
        self.last_id
    }

    fn set(&mut self, id: KeyId) -> &mut [Place; WAYS] {
        // Ids are handed out in turn, so their low bits spread evenly.
        &mut self.sets[id.0 as usize % SETS]
    }

    fn get(
        &mut self,
        id: KeyId,
        make: impl FnOnce() -> Result<LessSafeKey, TlsError>,
    ) -> Result<&LessSafeKey, TlsError> {
        let set = self.set(id);
        let at = match set.iter().position(|place| place.is_of(id)) {
            Some(at) => at,
            None => {
                let free = set.iter().position(|place| place.0.is_none()).unwrap_or(WAYS - 1);
                set[free] = Place(Some((id, make()?)));
                free
            }
        };
        set[..=at].rotate_right(1);
        set[0].0.as_ref().map(|(_, context)| context).ok_or(TlsError::Internal)
    }

    #[cfg(test)]
    pub(super) fn clear(&mut self) {
        self.sets.iter_mut().flatten().for_each(|place| place.0 = None);
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.sets.iter().flatten().all(|place| place.0.is_none())
    }

    fn forget(&mut self, id: KeyId) {
        if let Some(place) = self.set(id).iter_mut().find(|place| place.is_of(id)) {
            place.0 = None;
        }
    }
}

impl fmt::Debug for Contexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contexts").field("last_id", &self.last_id).finish_non_exhaustive()
    }
}
