//! Clients that never get in: so many a second connect and say something wrong, half, or nothing that they mean.
//!
//! They come from a hundred addresses, each time from another port, and end with a reset. Each kind comes in its turn.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use hawser_edge::driver::{Dialed, Dialer};
use serde::Serialize;

use super::places::Places;
use super::{new_bell, sleep};
use crate::client::upgrade::{self, Key};
use crate::clock;
use crate::target::Target;

/// Most at one time; with so many on their way the next is left out, and counted.
pub(crate) const MISFITS_MAX: u32 = 8 * 1024;
/// How long one waits for the server's answer, and one who is half through holds still.
const PATIENCE: Duration = Duration::from_millis(500);
/// Each source is used once before one is used again.
const SOURCES: u64 = 1_000_000;
const GARBAGE_BYTES: usize = 300;

/// What is wrong with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// What it says is noise.
    Garbage,
    /// It says half of its hello (or request head), and then nothing.
    Half,
    /// It goes as soon as the server has answered its hello (or request), which is whole.
    Gone,
    /// It wants a version that nobody speaks any more.
    WrongVersion,
    /// It speaks HTTP, in plain, and wants no WebSocket.
    PlainHttp,
}

const FAULTS: [Fault; 5] =
    [Fault::Garbage, Fault::Half, Fault::Gone, Fault::WrongVersion, Fault::PlainHttp];

/// What came of them.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Misfit {
    pub begun: u64,
    /// The server said something to them.
    pub answered: u64,
    /// The server, or the kernel before it, let no connection come about.
    pub refused: u64,
    /// The server ended the connection.
    pub ended: u64,
    /// They gave up waiting.
    pub gave_up: u64,
    /// Left out, because too many were on their way.
    pub skipped: u64,
}

/// See the module. Belongs to the thread that made it.
pub(crate) struct Misfits {
    dialer: Dialer,
    bell: OwnedFd,
    places: Places,
    per_second: f64,
    /// What each of [`FAULTS`] says.
    sayings: [Vec<u8>; FAULTS.len()],
    /// By slot; `None` where it is free.
    slots: Vec<Option<Misplaced>>,
    free: Vec<u32>,
    deadlines: VecDeque<(Instant, u32, u64)>,
    /// Since when they come, and how many should have by then.
    since: Option<Instant>,
    due: u64,
    pub(crate) counts: Misfit,
}

#[derive(Clone, Copy)]
struct Misplaced {
    number: u64,
    fault: Fault,
    answered: bool,
}

impl Misfits {
    /// So many a second for `target`; they come once [`Self::set_on`] says so.
    ///
    /// # Errors
    /// When the kernel has no ring for them.
    pub(crate) fn new(target: &Target, per_second: u32, seed: u64) -> io::Result<Self> {
        let bell = new_bell()?;
        Ok(Self {
            dialer: Dialer::new(MISFITS_MAX, target.address, bell.as_fd())?,
            bell,
            places: Places::new(target.address, 1, MISFITS_MAX, seed),
            per_second: per_second.into(),
            sayings: sayings(target, seed),
            slots: vec![None; MISFITS_MAX as usize],
            free: (0..MISFITS_MAX).rev().collect(),
            deadlines: VecDeque::new(),
            since: None,
            due: 0,
            counts: Misfit::default(),
        })
    }

    /// They come from now on, or no more.
    pub(crate) fn set_on(&mut self, now: Instant, on: bool) {
        if on != self.since.is_some() {
            self.since = on.then_some(now);
            self.due = 0;
        }
    }

    /// One turn: begins those who are due, and ends the others as they ought to end.
    ///
    /// # Errors
    /// When the ring fails.
    pub(crate) fn turn(&mut self, until: Instant) -> io::Result<()> {
        let now = clock::now();
        self.begin_due(now);
        self.end_late(now);
        let mut events = 0;
        if self.dialer.has_work() {
            self.dialer.enter()?;
            while self.handle_next() {
                events += 1;
            }
        }
        let until = self.next_due().map_or(until, |due| due.min(until));
        sleep(&self.bell, std::slice::from_mut(&mut self.dialer), events > 0, until)
    }

    fn next_due(&self) -> Option<Instant> {
        let next = self.due + 1;
        self.since.map(|since| since + Duration::from_secs_f64(next as f64 / self.per_second))
    }

    fn begin_due(&mut self, now: Instant) {
        let Some(since) = self.since else { return };
        let due = (now.saturating_duration_since(since).as_secs_f64() * self.per_second) as u64;
        while self.due < due {
            self.due += 1;
            let Some(slot) = self.free.pop() else {
                self.counts.skipped += 1;
                continue;
            };
            let number = self.counts.begun;
            self.counts.begun += 1;
            let which = (number % FAULTS.len() as u64) as usize;
            let fault = FAULTS[which];
            let (place, time) = ((number % SOURCES) as u32, (number / SOURCES) as u8);
            self.dialer.connect(slot, self.places.source(place, time), &self.sayings[which]);
            self.slots[slot as usize] = Some(Misplaced { number, fault, answered: false });
            self.deadlines.push_back((now + PATIENCE, slot, number));
        }
    }

    fn end_late(&mut self, now: Instant) {
        while let Some(&(deadline, slot, number)) = self.deadlines.front()
            && deadline <= now
        {
            self.deadlines.pop_front();
            if self.slots[slot as usize].is_some_and(|misplaced| misplaced.number == number) {
                self.counts.gave_up += 1;
                self.dialer.abort(slot);
                // Until the slot is free nothing more is counted of it.
                self.slots[slot as usize] = None;
            }
        }
    }

    /// Handles what happened next, if anything did.
    fn handle_next(&mut self) -> bool {
        let Some(event) = self.dialer.poll() else { return false };
        match event {
            Dialed::Received { slot, .. } => {
                let Some(misplaced) = &mut self.slots[slot as usize] else { return true };
                self.counts.answered +=
                    u64::from(!std::mem::replace(&mut misplaced.answered, true));
                if misplaced.fault == Fault::Gone {
                    self.end(slot);
                }
            }
            Dialed::Refused { slot, .. } => {
                self.counts.refused += 1;
                self.end(slot);
            }
            Dialed::Ended { slot, .. } => {
                self.counts.ended += 1;
                self.end(slot);
            }
            Dialed::Closed { slot } => self.free.push(slot),
        }
        true
    }

    fn end(&mut self, slot: u32) {
        self.slots[slot as usize] = None;
        self.dialer.abort(slot);
    }
}

/// What each of [`FAULTS`] says to such a server.
fn sayings(target: &Target, seed: u64) -> [Vec<u8>; FAULTS.len()] {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut request = Vec::new();
    upgrade::write_request(&mut request, target, None, Key::new(random.u128(..)));
    let (whole, outdated) = match &target.tls {
        Some(tls) => {
            let mut hello = Vec::new();
            tls.connect(&target.host, target.address).take_output(&mut hello);
            let outdated = replaced(&hello, &SUPPORTED_VERSIONS, &OUTDATED_VERSIONS);
            (hello, outdated)
        }
        None => {
            let outdated = replaced(&request, b"-Version: 13", b"-Version: 12");
            (request, outdated)
        }
    };
    FAULTS.map(|fault| match fault {
        Fault::Garbage => (0..GARBAGE_BYTES).map(|_| random.u8(..)).collect(),
        Fault::Half => whole[..whole.len() / 2].to_vec(),
        Fault::Gone => whole.clone(),
        Fault::WrongVersion => outdated.clone(),
        Fault::PlainHttp => {
            format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", target.path, target.host).into_bytes()
        }
    })
}

/// The extension with TLS 1.3 and 1.2 in it (RFC 8446 section 4.2.1), and one with 1.1 and 1.0.
const SUPPORTED_VERSIONS: [u8; 9] = [0, 43, 0, 5, 4, 3, 4, 3, 3];
const OUTDATED_VERSIONS: [u8; 9] = [0, 43, 0, 5, 4, 3, 2, 3, 1];

/// `text` with something else of the same length in the place of `old`.
fn replaced(text: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut text = text.to_vec();
    let at = text.windows(old.len()).position(|window| window == old);
    let at = at.expect("what our own clients say has it");
    text[at..at + new.len()].copy_from_slice(new);
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;
    use crate::tls::TlsClients;

    #[test]
    fn with_and_without_tls_each_fault_says_something_of_its_own() {
        let address = "127.0.0.1:80".parse().unwrap();
        let plain = Target::local(address, "/ws");
        let tls = Target { tls: Some(TlsClients::trusting_all(0).unwrap()), ..plain.clone() };
        for (target, first) in [(plain, b'G'), (tls, 22)] {
            let [garbage, half, gone, outdated, http] = sayings(&target, 7);
            assert_eq!((half[0], gone[0], outdated[0], http[0]), (first, first, first, b'G'));
            assert!(gone.starts_with(&half) && gone.len() > half.len());
            assert!(gone != outdated && gone.len() == outdated.len());
            assert_eq!(garbage.len(), GARBAGE_BYTES);
        }
    }

    #[test]
    fn they_come_at_their_rate_while_they_are_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::local(listener.local_addr().unwrap(), "/ws");
        let mut misfits = Misfits::new(&target, 500, clock::random_seed()).unwrap();
        let turn_for = |misfits: &mut Misfits, time| {
            let until = clock::now() + time;
            while clock::now() < until {
                misfits.turn(until).unwrap();
            }
        };
        turn_for(&mut misfits, Duration::from_millis(50));
        assert_eq!(misfits.counts.begun, 0);
        misfits.set_on(clock::now(), true);
        turn_for(&mut misfits, Duration::from_millis(200));
        misfits.set_on(clock::now(), false);
        let begun = misfits.counts.begun;
        assert!((90..=100).contains(&begun), "{begun}");
        // Nobody answers: all give up.
        turn_for(&mut misfits, PATIENCE + Duration::from_millis(100));
        assert_eq!((misfits.counts.begun, misfits.counts.gave_up), (begun, begun));
        let (mut first, _) = listener.accept().unwrap();
        assert!(first.read(&mut [0; 1000]).is_ok_and(|heard| heard == GARBAGE_BYTES));
    }
}
