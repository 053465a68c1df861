//! Keeps the order of what one user sends to another when some of it was refused.
//!
//! ```text
//!  1 2 3 4 on their way ─ the log fails 1 and 2, and works again ─► 3 and 4 are refused too, until 1 has come again
//! ```
//!
//! A client that sends several messages without waiting for answers hears of a refusal late, or never, when its connection
//! breaks in between; it says everything again, in order. So what comes after a refused message, and is not that one again,
//! is refused as well. A client that gives a message up is held for [`HELD_MS`] at most.

use std::collections::VecDeque;

use ahash::AHashMap;

use crate::record::SendKey;

/// How long what comes after a refused message is refused, in milliseconds, when that one does not come again.
const HELD_MS: u64 = 5_000;
/// Pairs of users that are held at a time. Past it they are let go.
const PAIRS_MAX: usize = 4_096;
/// Messages of a pair that are known to have been refused. Past it the pair is let go.
const MESSAGES_MAX: usize = 1_024;

/// See the module. Pairs are told apart by a [`SendKey`] without a message.
#[derive(Debug, Default)]
pub(super) struct Rows(AHashMap<SendKey, Row>);

#[derive(Debug)]
struct Row {
    /// Refused and not seen again, oldest first.
    messages: VecDeque<SendKey>,
    until_ms: u64,
}

impl Rows {
    /// A message was refused, and may be sent again.
    pub(super) fn note_refused(&mut self, mono_ms: u64, pair: SendKey, message: SendKey) {
        if self.0.len() >= PAIRS_MAX {
            self.0.clear();
        }
        let until_ms = mono_ms + HELD_MS;
        let row = self.0.entry(pair).or_insert(Row { messages: VecDeque::new(), until_ms });
        if !row.messages.contains(&message) {
            row.messages.push_back(message);
        }
    }

    /// Whether nobody is held.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A message is in the log, also one that was refused.
    pub(super) fn note_stored(&mut self, pair: SendKey, message: SendKey) {
        let Some(row) = self.0.get_mut(&pair) else { return };
        row.messages.retain(|refused| *refused != message);
        if row.messages.is_empty() {
            self.0.remove(&pair);
        }
    }

    /// Whether a message has to wait for one before it; then it counts as refused itself.
    pub(super) fn holds(&mut self, mono_ms: u64, pair: SendKey, message: SendKey) -> bool {
        let Some(row) = self.0.get_mut(&pair) else { return false };
        if row.until_ms <= mono_ms || row.messages.len() >= MESSAGES_MAX {
            self.0.remove(&pair);
            return false;
        }
        match row.messages.iter().position(|refused| *refused == message) {
            Some(0) => {
                row.messages.pop_front();
                row.until_ms = mono_ms + HELD_MS;
                if row.messages.is_empty() {
                    self.0.remove(&pair);
                }
                false
            }
            Some(_) => true,
            None => {
                row.messages.push_back(message);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: SendKey = SendKey([0; 16]);

    fn message(number: u8) -> SendKey {
        SendKey([number; 16])
    }

    #[test]
    fn what_comes_after_a_refused_message_waits_until_all_before_it_came_again_in_order() {
        let mut rows = Rows::default();
        rows.note_refused(0, PAIR, message(1));
        rows.note_refused(0, PAIR, message(2));
        assert!(rows.holds(1, PAIR, message(3)));
        assert!(rows.holds(1, PAIR, message(2)));
        assert!(!rows.holds(1, message(9), message(3)), "another pair");
        for number in [1, 2, 3, 4] {
            assert!(!rows.holds(2, PAIR, message(number)), "{number}");
        }
        assert!(rows.0.is_empty());
    }

    #[test]
    fn a_message_that_is_given_up_holds_the_others_for_a_while() {
        let mut rows = Rows::default();
        rows.note_refused(0, PAIR, message(1));
        assert!(rows.holds(HELD_MS - 1, PAIR, message(2)));
        assert!(!rows.holds(HELD_MS, PAIR, message(2)));
    }
}
