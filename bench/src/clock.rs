//! The one place where the bench reads a clock. Everything below the scenarios is told the time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Now, for deadlines and latencies.
pub(crate) fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "the bench's own rim: scenarios ask here")]
    Instant::now()
}

/// Now, for people and for names that must not repeat.
pub(crate) fn wall() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "the bench's own rim: scenarios ask here")]
    SystemTime::now()
}

/// Nanoseconds since the Unix epoch: the seed of a run that was given none.
pub(crate) fn random_seed() -> u64 {
    let nanos = wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    // Two runs started together differ in their process id; the last step spreads the bits.
    let mixed = nanos ^ u64::from(std::process::id()).rotate_left(48);
    mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11
}
