//! Rates: the leaky bucket of one connection, and the arithmetic that those of users and addresses share.
//!
//! A bucket is a debt that each event adds to and time takes away (a leaky bucket as a meter, ITU-T I.371): within its burst everything
//! passes. Nothing is done while time goes by, so an idle connection costs no work, and eight bytes.

use crate::timer::{TICK, Tick};

/// Debts are kept in thousandths of an event, so that slow rates leak in every tick.
const MILLI: u64 = 1000;
const TICKS_A_SECOND: u64 = 1000 / TICK.as_millis() as u64;

/// So many events a second, and so many at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Events a second that go on passing for ever, at least 1.
    pub per_second: u32,
    /// Events that pass at once after a pause, at least 1.
    pub burst: u32,
}

impl Rate {
    /// Thousandths of an event that leak in so many ticks.
    fn leaked(self, ticks: u64) -> u64 {
        (ticks * u64::from(self.per_second)).saturating_mul(MILLI) / TICKS_A_SECOND
    }
}

/// A debt of one kind, in thousandths of an event; 32 bits hold four million events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Debt(u32);

impl Debt {
    /// Takes away what leaked in so many ticks.
    pub fn leak(&mut self, ticks: u32, rate: Rate) {
        let leaked = u32::try_from(rate.leaked(u64::from(ticks))).unwrap_or(u32::MAX);
        self.0 = self.0.saturating_sub(leaked);
    }

    /// Adds so many events.
    pub fn add(&mut self, events: u32) {
        let milli = u32::try_from(u64::from(events) * MILLI).unwrap_or(u32::MAX);
        self.0 = self.0.saturating_add(milli);
    }

    /// Whether one more event is within the burst.
    #[must_use]
    pub fn has_room(self, rate: Rate) -> bool {
        u64::from(self.0) + MILLI <= u64::from(rate.burst) * MILLI
    }

    /// Whether nothing is owed.
    #[must_use]
    pub fn is_settled(self) -> bool {
        self.0 == 0
    }

    /// Ticks until the debt is within the burst again; 0 when it is.
    #[must_use]
    pub fn ticks_until_room(self, rate: Rate) -> u32 {
        let over = u64::from(self.0).saturating_sub(u64::from(rate.burst) * MILLI);
        over.div_ceil(rate.leaked(1).max(1)).try_into().unwrap_or(u32::MAX)
    }
}

/// Most events that a burst can have: beyond half of what a debt can hold it could not be told from one that is full.
pub const BURST_MAX: u32 = u32::MAX / MILLI as u32 / 2;

/// What a class of connections may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowance {
    /// Frames from the client, control frames included.
    pub messages: Option<Rate>,
    /// Bytes from the client, framing included, in units of [`BYTE_UNIT`].
    pub bytes: Option<Rate>,
}

/// Bytes are metered in units of this many.
pub const BYTE_UNIT: u32 = 64;

impl Allowance {
    /// Whether anything is limited.
    #[must_use]
    pub fn limits(&self) -> bool {
        self.messages.is_some() || self.bytes.is_some()
    }
}

/// What one connection owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meter {
    messages: Debt,
    bytes: Debt,
}

const _: () = assert!(size_of::<Meter>() == 8);

impl Meter {
    /// Time went by since the meter was last told of anything.
    pub fn pass_time(&mut self, since: Tick, now: Tick, allowance: &Allowance) {
        let ticks = now.0.saturating_sub(since.0);
        if let Some(rate) = allowance.messages {
            self.messages.leak(ticks, rate);
        }
        if let Some(rate) = allowance.bytes {
            self.bytes.leak(ticks, rate);
        }
    }

    /// One frame came.
    pub fn add_message(&mut self) {
        self.messages.add(1);
    }

    /// Bytes came.
    pub fn add_bytes(&mut self, bytes: usize) {
        self.bytes
            .add((bytes as u64).div_ceil(u64::from(BYTE_UNIT)).try_into().unwrap_or(u32::MAX));
    }

    /// How long the connection has to wait until it is within its allowance, in ticks.
    #[must_use]
    pub fn ticks_over(&self, allowance: &Allowance) -> u32 {
        let over =
            |debt: Debt, rate: Option<Rate>| rate.map_or(0, |rate| debt.ticks_until_room(rate));
        over(self.messages, allowance.messages).max(over(self.bytes, allowance.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN: Rate = Rate { per_second: 10, burst: 20 };

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let mut debt = Debt::default();
        let mut passed = 0;
        for _tick in 0..100 {
            debt.leak(1, TEN);
            while debt.has_room(TEN) {
                debt.add(1);
                passed += 1;
            }
        }
        assert!((119..=120).contains(&passed), "{passed} in ten seconds");
    }

    #[test]
    fn slow_rates_leak_in_every_tick() {
        let rate = Rate { per_second: 1, burst: 1 };
        let mut debt = Debt::default();
        debt.add(1);
        for _ in 0..9 {
            debt.leak(1, rate);
            assert!(!debt.has_room(rate) && !debt.is_settled());
        }
        debt.leak(1, rate);
        assert!(debt.has_room(rate) && debt.is_settled());
    }

    #[test]
    fn who_is_over_hears_how_long_to_wait() {
        let allowance = Allowance { messages: Some(TEN), bytes: None };
        let mut meter = Meter::default();
        for _ in 0..25 {
            meter.add_message();
        }
        assert_eq!(meter.ticks_over(&allowance), 5);
        meter.pass_time(Tick(3), Tick(8), &allowance);
        assert_eq!(meter.ticks_over(&allowance), 0);
        assert_eq!(Meter::default().ticks_over(&allowance), 0);
    }

    #[test]
    fn huge_amounts_and_long_pauses_stay_in_range() {
        let rate = Rate { per_second: u32::MAX, burst: u32::MAX };
        let allowance = Allowance { messages: None, bytes: Some(rate) };
        let mut meter = Meter::default();
        meter.add_bytes(usize::MAX);
        meter.pass_time(Tick(0), Tick(u32::MAX), &allowance);
        assert_eq!(meter.ticks_over(&allowance), 0);
    }
}
