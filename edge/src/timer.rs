//! Timer wheel of one shard; it is told the time.
//!
//! One entry a connection, linked through the connection's own slab slot: a timer costs 16 bytes and no
//! allocation. Deadlines are kept in ticks of [`TICK`]. Activity on a connection does not touch the wheel:
//! the connection stores the tick of its last sign of life, and is looked at again when its old deadline comes.
//!
//! Hierarchical, [`LEVELS`] levels of 64 buckets: an entry within 64 ticks lies in its own bucket of level 0,
//! further ones in coarser buckets that are spread out when their time comes (Varghese and Lauck, 1987).

use std::time::Duration;

/// Grain of every deadline of a shard.
pub const TICK: Duration = Duration::from_millis(100);

const LEVELS: usize = 4;
const BUCKET_BITS: u32 = 6;
const BUCKETS: usize = 1 << BUCKET_BITS;
/// Furthest deadline that the wheel can hold, in ticks (19 days); later ones are held there and looked at early.
const SPAN_TICKS: u32 = 1 << (BUCKET_BITS * LEVELS as u32);
const NONE: u32 = u32::MAX;
const UNLINKED: u16 = u16::MAX;
/// The list of entries whose time has come, behind the buckets of all levels.
const DUE: u16 = (LEVELS * BUCKETS) as u16;

/// A moment, in ticks since the shard started. 32 bits last 13 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(pub u32);

impl Tick {
    /// Later than every deadline.
    pub const NEVER: Self = Self(u32::MAX);

    /// This moment and `later`, rounded up to whole ticks.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        let ticks = later.as_millis().div_ceil(TICK.as_millis());
        Self(self.0.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)))
    }
}

/// What time it is, told by whoever owns the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For deadlines; never goes backwards.
    pub tick: Tick,
    /// For people and protocols, in milliseconds since the Unix epoch; may jump.
    pub unix_ms: i64,
}

impl Now {
    /// Time since `unix_ms`; none when the clock has gone back behind it.
    #[must_use]
    pub fn since(self, unix_ms: i64) -> Duration {
        Duration::from_millis(self.unix_ms.saturating_sub(unix_ms).try_into().unwrap_or(0))
    }

    /// The tick in which this moment of the calendar lies, as clocks stand now; one that has passed counts as now.
    #[must_use]
    pub fn tick_at(self, unix_ms: i64) -> Tick {
        let ticks = unix_ms.saturating_sub(self.unix_ms).max(0) / TICK.as_millis() as i64;
        Tick(self.tick.0.saturating_add(u32::try_from(ticks).unwrap_or(u32::MAX)))
    }

    /// When `tick` is or was in the calendar, as clocks stand now, to the grain of a tick.
    #[must_use]
    pub fn unix_ms_at(self, tick: Tick) -> i64 {
        let ticks = i64::from(tick.0) - i64::from(self.tick.0);
        self.unix_ms.saturating_add(ticks * TICK.as_millis() as i64)
    }
}

/// A moment of the calendar to the millisecond, in six bytes: from 1970 to the year 10889; what lies before or behind counts as
/// the end on its side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp([u8; 6]);

impl Stamp {
    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub fn of(unix_ms: i64) -> Self {
        let [bytes @ .., _, _] = unix_ms.clamp(0, (1 << 48) - 1).to_le_bytes();
        Self(bytes)
    }

    /// In milliseconds since the Unix epoch.
    #[must_use]
    pub fn unix_ms(self) -> i64 {
        let [a, b, c, d, e, f] = self.0;
        i64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

/// A connection's place in the wheel.
#[derive(Debug, Clone, Copy)]
pub struct TimerEntry {
    next: u32,
    prev: u32,
    deadline: Tick,
    place: u16,
}

impl Default for TimerEntry {
    fn default() -> Self {
        Self { next: NONE, prev: NONE, deadline: Tick(0), place: UNLINKED }
    }
}

/// Where the entries live: slot number to entry.
pub trait TimerEntries {
    /// The entry of a slot that is in use.
    fn entry(&mut self, slot: u32) -> &mut TimerEntry;
}

/// The wheel: heads of the lists that run through the entries.
#[derive(Debug)]
pub struct Wheel {
    heads: [u32; LEVELS * BUCKETS + 1],
    /// Bit b of level l: bucket b is not empty.
    occupied: [u64; LEVELS],
    now: Tick,
}

impl Default for Wheel {
    fn default() -> Self {
        Self::new(Tick(0))
    }
}

impl Wheel {
    /// An empty wheel that stands at `now`.
    #[must_use]
    pub fn new(now: Tick) -> Self {
        Self { heads: [NONE; LEVELS * BUCKETS + 1], occupied: [0; LEVELS], now }
    }

    /// Sets the timer of `slot`, whether or not one was set before. A deadline that is not in the future
    /// is due at the next tick.
    pub fn schedule(&mut self, entries: &mut impl TimerEntries, slot: u32, deadline: Tick) {
        self.cancel(entries, slot);
        let deadline =
            Tick(deadline.0.clamp(self.now.0 + 1, self.now.0.saturating_add(SPAN_TICKS - 1)));
        self.link(entries, slot, deadline);
    }

    /// Takes the timer of `slot` out, if one is set.
    pub fn cancel(&mut self, entries: &mut impl TimerEntries, slot: u32) {
        let TimerEntry { next, prev, place, .. } = *entries.entry(slot);
        if place == UNLINKED {
            return;
        }
        if next != NONE {
            entries.entry(next).prev = prev;
        }
        if prev != NONE {
            entries.entry(prev).next = next;
        } else {
            self.heads[usize::from(place)] = next;
            if next == NONE && place != DUE {
                self.occupied[usize::from(place) / BUCKETS] &=
                    !(1 << (usize::from(place) % BUCKETS));
            }
        }
        entries.entry(slot).place = UNLINKED;
    }

    /// Takes the next slot whose deadline is at or before `now`, or `None` when there are no more. The
    /// timer of that slot is then no longer set.
    pub fn poll(&mut self, entries: &mut impl TimerEntries, now: Tick) -> Option<u32> {
        while self.heads[usize::from(DUE)] == NONE {
            if self.now >= now {
                return None;
            }
            self.advance(entries);
        }
        let slot = self.heads[usize::from(DUE)];
        self.cancel(entries, slot);
        Some(slot)
    }

    /// The first tick at which [`Self::poll`] may have something to do; never later than the first deadline.
    #[must_use]
    pub fn next_tick(&self) -> Option<Tick> {
        if self.heads[usize::from(DUE)] != NONE {
            return Some(self.now);
        }
        let mut first: Option<u32> = None;
        for (level, occupied) in self.occupied.iter().enumerate().filter(|(_, o)| **o != 0) {
            let shift = BUCKET_BITS * level as u32;
            let at = self.now.0 >> shift;
            // Buckets are looked at in turn from the one after the current.
            let ahead = occupied.rotate_right((at + 1) % BUCKETS as u32).trailing_zeros() + 1;
            let tick = (at + ahead) << shift;
            first = Some(first.map_or(tick, |f| f.min(tick)));
        }
        first.map(Tick)
    }

    fn advance(&mut self, entries: &mut impl TimerEntries) {
        self.now.0 += 1;
        for level in 1..LEVELS {
            if self.now.0 & ((1 << (BUCKET_BITS * level as u32)) - 1) != 0 {
                break;
            }
            let bucket = (self.now.0 >> (BUCKET_BITS * level as u32)) as usize % BUCKETS;
            while self.heads[level * BUCKETS + bucket] != NONE {
                let slot = self.heads[level * BUCKETS + bucket];
                let deadline = entries.entry(slot).deadline;
                self.cancel(entries, slot);
                self.link(entries, slot, deadline);
            }
        }
        let bucket = self.now.0 as usize % BUCKETS;
        while self.heads[bucket] != NONE {
            let slot = self.heads[bucket];
            self.cancel(entries, slot);
            self.push(entries, slot, DUE);
        }
    }

    /// Puts an entry into the bucket that its distance asks for; into the list of due ones when its tick is now.
    fn link(&mut self, entries: &mut impl TimerEntries, slot: u32, deadline: Tick) {
        entries.entry(slot).deadline = deadline;
        let distance = deadline.0.saturating_sub(self.now.0);
        if distance == 0 {
            self.push(entries, slot, DUE);
            return;
        }
        // The level is that of the highest bit in which deadline and now differ, not of the distance: so
        // an entry is never put into the bucket that is being spread out.
        let differs = 31 - (deadline.0 ^ self.now.0).leading_zeros();
        let level = ((differs / BUCKET_BITS) as usize).min(LEVELS - 1);
        let bucket = (deadline.0 >> (BUCKET_BITS * level as u32)) as usize % BUCKETS;
        self.occupied[level] |= 1 << bucket;
        self.push(entries, slot, (level * BUCKETS + bucket) as u16);
    }

    fn push(&mut self, entries: &mut impl TimerEntries, slot: u32, place: u16) {
        let head = std::mem::replace(&mut self.heads[usize::from(place)], slot);
        if head != NONE {
            entries.entry(head).prev = slot;
        }
        let entry = entries.entry(slot);
        entry.next = head;
        entry.prev = NONE;
        entry.place = place;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    impl TimerEntries for Vec<TimerEntry> {
        fn entry(&mut self, slot: u32) -> &mut TimerEntry {
            &mut self[slot as usize]
        }
    }

    #[test]
    fn ticks_and_the_calendar_are_translated_both_ways() {
        let now = Now { tick: Tick(100), unix_ms: 1_000_000 };
        for (unix_ms, tick, back) in
            [(1_000_000, 100, 1_000_000), (1_000_250, 102, 1_000_200), (999_000, 100, 1_000_000)]
        {
            assert_eq!(now.tick_at(unix_ms), Tick(tick));
            assert_eq!(now.unix_ms_at(Tick(tick)), back);
        }
        assert_eq!(now.unix_ms_at(Tick(90)), 999_000);
        assert_eq!(now.tick_at(i64::MAX), Tick::NEVER);
        assert!(now.unix_ms_at(Tick::NEVER) > 1_000_000);
    }

    #[test]
    fn a_stamp_keeps_every_millisecond_that_a_clock_will_show() {
        for unix_ms in [0, 1, 255, 256, 1_790_000_000_123, (1 << 48) - 1] {
            assert_eq!(Stamp::of(unix_ms).unix_ms(), unix_ms);
        }
        assert_eq!(Stamp::of(-1).unix_ms(), 0);
        assert_eq!(Stamp::of(i64::MAX).unix_ms(), (1 << 48) - 1);
    }

    #[test]
    fn durations_round_up_to_whole_ticks() {
        assert_eq!(Tick(5).after(Duration::from_millis(101)), Tick(7));
        assert_eq!(Tick(5).after(Duration::ZERO), Tick(5));
    }

    #[test]
    fn an_entry_comes_due_at_its_tick_and_not_before() {
        for start in [0, 1, 63, 64, 4_095, 262_143] {
            for distance in [1, 2, 63, 64, 65, 127, 128, 4_096, 70_000, 300_000] {
                let mut entries = vec![TimerEntry::default()];
                let mut wheel = Wheel::new(Tick(start));
                wheel.schedule(&mut entries, 0, Tick(start + distance));
                assert_eq!(
                    wheel.poll(&mut entries, Tick(start + distance - 1)),
                    None,
                    "{start}+{distance}"
                );
                assert_eq!(
                    wheel.poll(&mut entries, Tick(start + distance)),
                    Some(0),
                    "{start}+{distance}"
                );
                assert_eq!(wheel.next_tick(), None);
            }
        }
    }

    proptest! {
        #[test]
        fn entries_come_due_in_any_mix_of_schedules_cancels_and_steps(
            steps in prop::collection::vec((0u32..16, 0u32..9_000, 0u32..700, 0u8..4), 1..200)
        ) {
            let mut entries = vec![TimerEntry::default(); 16];
            let mut model: Vec<Option<u32>> = vec![None; 16];
            let mut wheel = Wheel::default();
            let mut now = 0;
            for (slot, distance, step, action) in steps {
                match action {
                    0 => {
                        wheel.cancel(&mut entries, slot);
                        model[slot as usize] = None;
                    }
                    1 | 2 => {
                        wheel.schedule(&mut entries, slot, Tick(now + distance));
                        model[slot as usize] = Some((now + distance).max(now + 1));
                    }
                    _ => {
                        let first = model.iter().flatten().min().copied();
                        prop_assert!(wheel.next_tick().map(|t| t.0) <= first || first.is_none());
                        prop_assert_eq!(wheel.next_tick().is_some(), first.is_some());
                        now += step;
                        let mut due = Vec::new();
                        while let Some(slot) = wheel.poll(&mut entries, Tick(now)) {
                            due.push(slot);
                        }
                        due.sort_unstable();
                        let expected: Vec<u32> = (0..16u32)
                            .filter(|s| model[*s as usize].is_some_and(|d| d <= now))
                            .collect();
                        for slot in &expected {
                            model[*slot as usize] = None;
                        }
                        prop_assert_eq!(due, expected);
                    }
                }
            }
        }
    }
}
