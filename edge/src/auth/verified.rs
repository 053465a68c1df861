//! Tokens whose signature was found good, so that a reconnect storm does not pay for it again.
//!
//! A table of fingerprints, shared by all shards without a lock: a client that comes back lands on any of them. It says
//! of a token no more than that some key of the set has signed it; claims are looked at every time. It belongs to one
//! set of keys and goes with it.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest;

/// Places of the table, 16 bytes each; a newer token takes the place of an older one. The memory comes as it is used.
const PLACES: usize = 64 * 1024;

/// 128 bits of a token's SHA-256: to find another token with the same costs 2^128 tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u64; 2]);

impl Fingerprint {
    pub(super) fn of(token: &str) -> Self {
        let digest = digest::digest(&digest::SHA256, token.as_bytes());
        let (words, _) = digest.as_ref().as_chunks::<8>();
        let word = |at: usize| words.get(at).map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Self([word(0), word(1)])
    }
}

/// See the module.
pub(super) struct VerifiedTokens {
    places: Box<[[AtomicU64; 2]]>,
}

impl VerifiedTokens {
    pub(super) fn new() -> Self {
        Self { places: (0..PLACES).map(|_| Default::default()).collect() }
    }

    fn place(&self, fingerprint: Fingerprint) -> Option<&[AtomicU64; 2]> {
        self.places.get(fingerprint.0[0] as usize % PLACES)
    }

    /// Whether the signature of this token was good. All zeros, which an empty place has, are no token's fingerprint that
    /// anybody could find.
    pub(super) fn contains(&self, fingerprint: Fingerprint) -> bool {
        // Two shards may write one place at once, and a mix of their fingerprints may be read. Only a token with the
        // very bits of the mix would be taken for good, and that is as hard to find as one for any other fingerprint.
        self.place(fingerprint).is_some_and(|place| {
            place[0].load(Ordering::Relaxed) == fingerprint.0[0]
                && place[1].load(Ordering::Relaxed) == fingerprint.0[1]
        })
    }

    /// Remembers a token whose signature is good.
    pub(super) fn insert(&self, fingerprint: Fingerprint) {
        if let Some(place) = self.place(fingerprint) {
            place[0].store(fingerprint.0[0], Ordering::Relaxed);
            place[1].store(fingerprint.0[1], Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_remembered_is_known_and_nothing_else_until_its_place_is_taken() {
        let verified = VerifiedTokens::new();
        let (a, b) = (Fingerprint::of("a.b.c"), Fingerprint::of("a.b.d"));
        assert!(!verified.contains(a));
        verified.insert(a);
        assert!(verified.contains(a) && !verified.contains(b));
        let same_place = Fingerprint([a.0[0], !a.0[1]]);
        assert!(!verified.contains(same_place));
        verified.insert(same_place);
        assert!(verified.contains(same_place) && !verified.contains(a));
    }
}
