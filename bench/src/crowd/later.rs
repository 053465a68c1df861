//! Sessions that come back later: a wheel of lists, so that a million of them cost four bytes each and no search.

/// Length of a turn of the wheel, in slots of [`SLOT_MS`]: 16 s, above every pause that is not asked for by a server.
const SLOTS: u32 = 1024;
const SLOT_MS: u32 = 16;

/// See the module. Bounded by the number of sessions, each of which is in it once at most.
#[derive(Debug)]
pub(super) struct Later {
    slots: Vec<Vec<u32>>,
    /// The first slot that has not been emptied, counted from the beginning of time.
    next: u32,
}

impl Later {
    pub(super) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Vec::new()).collect(), next: 0 }
    }

    /// Wakes `session` at `at_ms`, up to a slot later. What lies past the wheel's turn is woken at its end.
    pub(super) fn push(&mut self, at_ms: u32, session: u32) {
        let slot = at_ms.div_ceil(SLOT_MS).clamp(self.next, self.next + SLOTS - 1);
        self.slots[(slot % SLOTS) as usize].push(session);
    }

    /// Moves those whose time has come to `due`.
    pub(super) fn take_due(&mut self, now_ms: u32, due: &mut impl Extend<u32>) {
        while self.next <= now_ms / SLOT_MS {
            let slot = &mut self.slots[(self.next % SLOTS) as usize];
            // The memory goes, too: after a storm the wheel is empty for long.
            due.extend(std::mem::take(slot));
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_woken_once_not_early_and_at_most_a_slot_late() {
        let mut later = Later::new();
        let mut random = fastrand::Rng::with_seed(5);
        let mut wanted: Vec<u32> = Vec::new();
        let mut woken = 0;
        for now in (0..40_000).step_by(7) {
            let mut due = Vec::new();
            later.take_due(now, &mut due);
            for session in due {
                let at = wanted[session as usize];
                assert!(at <= now && now < at + SLOT_MS + 7, "wanted {at}, woken {now}");
                woken += 1;
            }
            if now < 20_000 {
                let at = now + random.u32(0..16_000);
                later.push(at, wanted.len() as u32);
                wanted.push(at);
            }
        }
        assert_eq!(woken, wanted.len());
    }

    #[test]
    fn what_lies_past_the_turn_is_woken_at_its_end() {
        let mut later = Later::new();
        later.push(1_000_000, 3);
        let mut due = Vec::new();
        later.take_due(SLOTS * SLOT_MS - SLOT_MS - 1, &mut due);
        assert!(due.is_empty());
        later.take_due(SLOTS * SLOT_MS - SLOT_MS, &mut due);
        assert_eq!(due, [3]);
    }
}
