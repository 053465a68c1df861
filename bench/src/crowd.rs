//! A crowd: up to millions of sessions that connect, stay and say little, from one thread.
//!
//! Where [`crate::client::Fleet`] talks much on sockets of its own, a crowd is there: each session is eight bytes here
//! and a slot in the direct descriptors of one of many rings ([`Dialer`]). It connects a bounded number at a
//! time, comes back with backoff and jitter when a connection ends, and pings each session once an interval, spread
//! evenly. Every failure is counted, and the first is told.

mod later;
mod misfits;
mod places;
mod session;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use hawser_edge::driver::{DIALER_SLOTS_MAX, Dialed, Dialer};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use self::later::Later;
pub(crate) use self::misfits::{MISFITS_MAX, Misfit, Misfits};
use self::places::Places;
pub(crate) use self::session::Speech;
use self::session::{Phase, Session, Talk, Trouble, Who};
use crate::clock;
use crate::failure::Failure;
use crate::front::Front;
use crate::host;
use crate::report::Latencies;
use crate::tls::TlsConnection;

/// From the connect to the answer of the upgrade, and from there to Welcome.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// First and longest pause before a session comes back; it doubles, and each is drawn from a fifth of it up.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// Pause when a source port was taken: another one is tried.
const PORT_TAKEN_PAUSE: Duration = Duration::from_millis(5);
/// So often in a row; then it is an error like any other.
const PORT_TAKEN_MAX: u8 = 20;
/// Connects that begin in one turn.
const CONNECTS_A_TURN: usize = 512;
/// Events of one ring in one turn.
const EVENTS_A_RING: usize = 1024;
/// With fewer events in a turn the next one waits a little: what comes meanwhile is handled at once.
const EVENTS_WORTH_A_TURN: usize = 64;
const REST: Duration = Duration::from_micros(100);
/// Longest sleep of a turn, for what comes by the clock.
const SLEEP_MAX: Duration = Duration::from_millis(10);

/// What a crowd is to be.
#[derive(Clone, Debug)]
pub(crate) struct CrowdPlan {
    pub front: Front,
    pub speech: Speech,
    pub sessions: u32,
    /// Connects on their way at once.
    pub connecting_max: usize,
    /// `None`: no pings.
    pub ping_interval: Option<Duration>,
    pub seed: u64,
}

/// See the module.
pub(crate) struct Crowd {
    connecting_max: usize,
    ping_interval: Option<Duration>,
    began: Instant,
    bell: OwnedFd,
    dialers: Vec<Dialer>,
    pub(crate) front: Front,
    places: Places,
    sessions: Vec<Session>,
    /// Of those who speak TLS, by session; empty where nobody does.
    tls: Vec<Option<Box<TlsConnection>>>,
    /// What came, in plain.
    plain: Vec<u8>,
    talk: Talk,
    random: fastrand::Rng,
    /// Sessions below have been connected at least once; those up to `wanted` want to be.
    fresh: u32,
    wanted: u32,
    ready: VecDeque<u32>,
    later: Later,
    /// Those who left.
    absent: Vec<u32>,
    /// When whom to give up, in this order; those who got on since are passed over.
    deadlines: VecDeque<Deadline>,
    /// Pings that should have been sent up to now, had all sessions been live.
    swept: u64,
    /// Pings whose answer should have come.
    swept_answers: u64,
    out: Vec<u8>,
    connecting: usize,
    pub(crate) live: usize,
    /// Sessions that were live at any time, each counted every time.
    pub(crate) welcomes: u64,
    pub(crate) errors: u64,
    pub(crate) first_error: Option<String>,
    /// Since the last cut: attempts of cut sessions that came to nothing, which is no error.
    pub(crate) failed_attempts: u64,
    cut: Option<Cut>,
}

struct Deadline {
    at_ms: u32,
    session: u32,
    connect: u8,
}

/// Sessions lose their connections, all at once or one after the other: how long each was away.
struct Cut {
    at: Instant,
    recovered: Latencies,
    /// Where each goes at a moment of its own: when, in milliseconds since `at`; [`STILL_HERE`] until then.
    gone_ms: Option<Vec<u32>>,
}

const STILL_HERE: u32 = u32::MAX;

impl Cut {
    /// What counts is when a session went first.
    fn record_gone(&mut self, now: Instant, number: u32) {
        let at_ms = now.saturating_duration_since(self.at).as_millis() as u32;
        if let Some(gone) = self.gone_ms.as_mut().and_then(|all| all.get_mut(number as usize)) {
            *gone = at_ms.min(*gone);
        }
    }

    fn record_recovery(&mut self, now: Instant, number: u32) {
        let gone_ms = self.gone_ms.as_ref().map_or(0, |all| all[number as usize]);
        let since_cut = now.saturating_duration_since(self.at);
        self.recovered.record(since_cut.saturating_sub(Duration::from_millis(gone_ms.into())));
    }
}

impl Crowd {
    /// A crowd of which nobody is wanted yet.
    ///
    /// # Errors
    /// When the kernel has no rings for so many.
    pub(crate) fn new(plan: &CrowdPlan) -> Result<Self, Failure> {
        let limit = host::raise_descriptor_limit();
        let slots = limit.min(DIALER_SLOTS_MAX.into()).min(plan.sessions.into()).max(1) as u32;
        let bell = new_bell()?;
        let rings = plan.sessions.div_ceil(slots);
        let slots = plan.sessions.div_ceil(rings);
        let dialers = (0..rings)
            .map(|ring| {
                Dialer::new(slots, plan.front.first().address, bell.as_fd())
                    .map_err(|error| no_ring(plan.sessions, rings, ring, &error))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            connecting_max: plan.connecting_max,
            ping_interval: plan.ping_interval,
            began: clock::now(),
            bell,
            dialers,
            front: plan.front.clone(),
            places: Places::new(plan.front.first().address, rings, slots, plan.seed),
            sessions: vec![Session::default(); plan.sessions as usize],
            tls: Vec::new(),
            plain: Vec::new(),
            talk: Talk::new(plan.speech, plan.seed),
            random: fastrand::Rng::with_seed(plan.seed),
            fresh: 0,
            wanted: 0,
            ready: VecDeque::new(),
            later: Later::new(),
            absent: Vec::new(),
            deadlines: VecDeque::new(),
            swept: 0,
            swept_answers: 0,
            out: Vec::new(),
            connecting: 0,
            live: 0,
            welcomes: 0,
            errors: 0,
            first_error: None,
            failed_attempts: 0,
            cut: None,
        })
    }

    pub(crate) fn speech(&self) -> Speech {
        self.talk.speech
    }

    /// From now on the first `sessions` want to be live.
    pub(crate) fn want(&mut self, sessions: u32) {
        self.wanted = sessions.min(self.sessions.len() as u32).max(self.wanted);
    }

    pub(crate) fn pongs(&self) -> u64 {
        self.talk.pongs
    }

    /// Sends a session away in order: Close frame, then the end of the stream. Returns whether it was live.
    pub(crate) fn leave(&mut self, number: u32) -> bool {
        if self.sessions[number as usize].phase != Phase::Live {
            return false;
        }
        let (who, now_ms) = (self.who(number), self.now_ms());
        let session = &mut self.sessions[number as usize];
        session.phase = Phase::Leaving;
        session.wanted = false;
        self.live -= 1;
        self.out.clear();
        self.talk.write_close(&mut self.out);
        self.say(number);
        self.await_answer(now_ms, who);
        true
    }

    /// Connects one of those who left, as who it was or as another user. Returns whether there was one.
    pub(crate) fn join(&mut self, as_newcomer: bool) -> bool {
        let Some(number) = self.absent.pop() else { return false };
        let session = &mut self.sessions[number as usize];
        session.life = session.life.wrapping_add(u8::from(as_newcomer));
        session.wanted = true;
        session.phase = Phase::Waiting;
        self.ready.push_back(number);
        true
    }

    /// Every connection is about to go, at `at`: from now on it is measured how long sessions take to come back, and
    /// what goes wrong meanwhile is no error.
    pub(crate) fn begin_cut(&mut self, at: Instant) {
        self.cut = Some(Cut { at, recovered: Latencies::new(), gone_ms: None });
        self.failed_attempts = 0;
        self.sessions.iter_mut().for_each(|session| session.recovered = false);
    }

    /// From `at` on connections go one after the other: the same as a cut, but for each session from the moment when it
    /// hears that it has to go.
    pub(crate) fn begin_farewell(&mut self, at: Instant) {
        self.begin_cut(at);
        if let Some(cut) = &mut self.cut {
            cut.gone_ms = Some(vec![STILL_HERE; self.sessions.len()]);
        }
    }

    /// When each session that has heard it since heard that it has to go, in milliseconds since the farewell began.
    pub(crate) fn gone_ms(&self) -> impl Iterator<Item = u32> {
        let gone_ms = self.cut.as_ref().and_then(|cut| cut.gone_ms.as_deref()).unwrap_or_default();
        gone_ms.iter().copied().filter(|at_ms| *at_ms != STILL_HERE)
    }

    /// Moves the moment from which it is measured: the server is there again.
    pub(crate) fn move_cut(&mut self, at: Instant) {
        if let Some(cut) = &mut self.cut {
            cut.at = at;
        }
    }

    /// Ends all live connections at once with a reset, from our side.
    ///
    /// # Errors
    /// When a ring fails.
    pub(crate) fn cut_clients(&mut self) -> io::Result<()> {
        for number in 0..self.sessions.len() as u32 {
            if self.sessions[number as usize].phase == Phase::Live {
                self.fail(number, &Trouble::Lost(0));
            }
            // Before completions pile up in the rings that have been asked.
            if (number as usize).is_multiple_of(EVENTS_A_RING / 2) {
                self.run_rings()?;
            }
        }
        Ok(())
    }

    /// Sessions that were live, and have been live again since the last cut.
    pub(crate) fn recovered_sessions(&self) -> usize {
        self.cut.as_ref().map_or(0, |cut| cut.recovered.len() as usize)
    }

    /// How long sessions were away after the last cut, as far as they are back.
    pub(crate) fn recovered(&self) -> Option<&Latencies> {
        self.cut.as_ref().map(|cut| &cut.recovered)
    }

    /// One turn: begins what is due, handles what came, and sleeps until `until` at the latest when there is nothing.
    ///
    /// # Errors
    /// When a ring fails; the faults of a connection end that connection only.
    pub(crate) fn turn(&mut self, until: Instant) -> io::Result<()> {
        let now_ms = self.now_ms();
        self.later.take_due(now_ms, &mut self.ready);
        self.end_late(now_ms);
        self.connect_ready(now_ms);
        self.ping_due(now_ms);
        let events = self.run_rings()?;
        if events < EVENTS_WORTH_A_TURN {
            sleep(&self.bell, &mut self.dialers, events > 0, until)?;
        }
        Ok(())
    }

    fn connect_ready(&mut self, now_ms: u32) {
        for _ in 0..CONNECTS_A_TURN {
            if self.connecting >= self.connecting_max {
                return;
            }
            if let Some(number) = self.ready.pop_front() {
                if self.sessions[number as usize].phase == Phase::Waiting {
                    self.connect(now_ms, number);
                } else {
                    // The kernel is not done with the connection before.
                    self.later.push(now_ms, number);
                }
            } else if self.fresh < self.wanted {
                self.fresh += 1;
                self.sessions[self.fresh as usize - 1].wanted = true;
                self.connect(now_ms, self.fresh - 1);
            } else {
                return;
            }
        }
    }

    fn connect(&mut self, now_ms: u32, number: u32) {
        self.sessions[number as usize].begin_connect();
        self.connecting += 1;
        let who = self.who(number);
        self.out.clear();
        let target = self.front.pick();
        self.talk.write_request(who, target, &mut self.out);
        if let Some(tls) = &target.tls {
            self.tls.resize_with(self.sessions.len(), || None);
            let tls = self.tls[number as usize]
                .insert(Box::new(tls.connect(&target.host, target.address)));
            seal(tls, &mut self.out);
        }
        let (ring, slot) = self.places.slot(number);
        self.dialers[ring].aim(target.address);
        let source = self.places.source(number, who.connect);
        self.dialers[ring].connect(slot, source, &self.out);
        self.await_answer(now_ms, who);
    }

    /// From now on the session has [`ANSWER_TIMEOUT`] to get on.
    fn await_answer(&mut self, now_ms: u32, who: Who) {
        self.deadlines.push_back(Deadline {
            at_ms: now_ms + ANSWER_TIMEOUT.as_millis() as u32,
            session: who.number,
            connect: who.connect,
        });
    }

    fn end_late(&mut self, now_ms: u32) {
        while let Some(&Deadline { at_ms, session: number, connect }) = self.deadlines.front() {
            let session = self.sessions[number as usize];
            let waits = session.connect == connect
                && (session.is_connecting() || session.phase == Phase::Leaving);
            if waits && now_ms < at_ms {
                return;
            }
            self.deadlines.pop_front();
            if waits {
                self.fail(number, &Trouble::Late(ANSWER_TIMEOUT));
            }
        }
    }

    /// Goes round all sessions once an interval and pings those that are live; a second hand that follows after the
    /// time of an answer ends those whose ping has none.
    fn ping_due(&mut self, now_ms: u32) {
        let Some(interval) = self.ping_interval else { return };
        let (sessions, interval_ms) = (self.sessions.len() as u64, interval.as_millis() as u64);
        // First, or a ping of the next round would be taken for one without an answer.
        let answer_ms = (ANSWER_TIMEOUT.as_millis() as u64).min(interval_ms);
        let due = sessions * u64::from(now_ms).saturating_sub(answer_ms) / interval_ms;
        self.swept_answers = self.swept_answers.max(due.saturating_sub(sessions));
        for number in self.swept_answers..due {
            let number = (number % sessions) as u32;
            let session = self.sessions[number as usize];
            if session.phase == Phase::Live && session.pinged {
                self.fail(number, &Trouble::PongMissing);
            }
        }
        self.swept_answers = due;
        let due = sessions * u64::from(now_ms) / interval_ms;
        // Nobody twice at once, after a turn that took longer than an interval.
        self.swept = self.swept.max(due.saturating_sub(sessions));
        for number in self.swept..due {
            self.ping((number % sessions) as u32);
        }
        self.swept = due;
    }

    fn ping(&mut self, number: u32) {
        let who = self.who(number);
        let session = &mut self.sessions[number as usize];
        if session.phase != Phase::Live {
            return;
        }
        // An answer is waited for no longer than an interval, so the one before is here.
        session.pinged = true;
        self.out.clear();
        self.talk.write_ping(who, &mut self.out);
        self.say(number);
    }

    fn run_rings(&mut self) -> io::Result<usize> {
        let mut events = 0;
        for ring in 0..self.dialers.len() {
            if self.dialers[ring].has_work() {
                events += self.run_ring(ring)?;
            }
        }
        Ok(events)
    }

    /// Enters one ring and handles what it has, up to a bound. Returns how much that was.
    fn run_ring(&mut self, ring: usize) -> io::Result<usize> {
        self.dialers[ring].enter()?;
        for events in 0..EVENTS_A_RING {
            let Some(event) = self.dialers[ring].poll() else { return Ok(events) };
            match event {
                Dialed::Received { slot, bytes } => {
                    let number = self.places.session(ring, slot);
                    let session = &mut self.sessions[number as usize];
                    let Session { connect, life, phase: before, .. } = *session;
                    let who = Who { number, connect, life };
                    self.out.clear();
                    let tls = self.tls.get_mut(number as usize).and_then(Option::as_mut);
                    let heard = match open(tls, bytes, &mut self.plain) {
                        Ok([]) => Ok(()),
                        Ok(plain) => self.talk.hear(who, session, plain, &mut self.out),
                        Err(trouble) => Err(trouble),
                    };
                    self.say(number);
                    self.note_heard(number, before, heard);
                }
                Dialed::Refused { slot, errno } => {
                    self.fail(self.places.session(ring, slot), &Trouble::Refused(errno));
                }
                Dialed::Ended { slot, errno } => {
                    self.fail(self.places.session(ring, slot), &Trouble::Lost(errno));
                }
                Dialed::Closed { slot } => self.handle_closed(self.places.session(ring, slot)),
            }
        }
        Ok(EVENTS_A_RING)
    }

    /// Sends what lies in `out` on a session's connection.
    fn say(&mut self, number: u32) {
        if let Some(tls) = self.tls.get_mut(number as usize).and_then(Option::as_mut) {
            seal(tls, &mut self.out);
        }
        if !self.out.is_empty() {
            let (ring, slot) = self.places.slot(number);
            self.dialers[ring].send(slot, &self.out);
        }
    }

    fn note_heard(&mut self, number: u32, before: Phase, heard: Result<(), Trouble>) {
        let session = &mut self.sessions[number as usize];
        if before != Phase::Live && session.phase == Phase::Live {
            session.attempts = 0;
            self.connecting -= 1;
            self.live += 1;
            self.welcomes += 1;
            if let Some(cut) = &mut self.cut
                && !std::mem::replace(&mut session.recovered, true)
            {
                cut.record_recovery(clock::now(), number);
            }
        }
        if let Some(after) = self.talk.sent_away.take() {
            self.begin_absence(number, before, after);
        }
        if let Err(trouble) = heard {
            self.fail(number, &trouble);
        }
    }

    /// A session was told to go: it has said Close, and comes back when it was told to.
    fn begin_absence(&mut self, number: u32, before: Phase, after: Duration) {
        let (who, now_ms) = (self.who(number), self.now_ms());
        match before {
            Phase::Live => self.end_live(number),
            Phase::Opening | Phase::Joining => self.connecting -= 1,
            Phase::Absent | Phase::Waiting | Phase::Leaving | Phase::Closing => return,
        }
        let pause = pause_asked(after, &mut self.random);
        self.later.push(now_ms + pause.as_millis() as u32, number);
        self.await_answer(now_ms, who);
    }

    /// A session is live no more.
    fn end_live(&mut self, number: u32) {
        self.live -= 1;
        if let Some(cut) = &mut self.cut {
            cut.record_gone(clock::now(), number);
        }
    }

    /// A connection is over. Counts it, and closes its slot; what follows stands in [`Self::handle_closed`].
    fn fail(&mut self, number: u32, trouble: &Trouble) {
        let who = self.who(number);
        let session = &mut self.sessions[number as usize];
        let was = session.phase;
        if session.is_connecting() {
            self.connecting -= 1;
        } else if was == Phase::Live {
            self.end_live(number);
        }
        let session = &mut self.sessions[number as usize];
        self.talk.forget(who, session);
        if let Some(tls) = self.tls.get_mut(number as usize) {
            *tls = None;
        }
        session.phase = Phase::Closing;
        session.attempts = session.attempts.saturating_add(1);
        let port_taken = matches!(trouble, Trouble::Refused(errno)
            if *errno == rustix::io::Errno::ADDRINUSE.raw_os_error());
        let pause = if port_taken && session.attempts <= PORT_TAKEN_MAX {
            PORT_TAKEN_PAUSE
        } else {
            let was_cut = self.cut.is_some() && !session.recovered;
            let is_answer_to_close =
                was == Phase::Leaving && matches!(trouble, Trouble::Closed(..) | Trouble::Lost(_));
            if was_cut && trouble.is_weather() {
                let was_here = matches!(was, Phase::Live | Phase::Leaving);
                self.failed_attempts += u64::from(!was_here);
            } else if !is_answer_to_close {
                self.errors += 1;
                self.first_error.get_or_insert_with(|| format!("session {number}: {trouble}"));
            }
            pause(session.attempts, trouble, &mut self.random)
        };
        // One that is leaving and wanted knows already when it comes back.
        if session.wanted && was != Phase::Leaving {
            self.later.push(self.now_ms() + pause.as_millis() as u32, number);
        }
        let (ring, slot) = self.places.slot(number);
        self.dialers[ring].abort(slot);
    }

    fn handle_closed(&mut self, number: u32) {
        let session = &mut self.sessions[number as usize];
        session.phase = if session.wanted { Phase::Waiting } else { Phase::Absent };
        if !session.wanted {
            self.absent.push(number);
        }
    }

    fn who(&self, number: u32) -> Who {
        let Session { connect, life, .. } = self.sessions[number as usize];
        Who { number, connect, life }
    }

    /// Milliseconds since the crowd was made; 49 days fit.
    fn now_ms(&self) -> u32 {
        clock::now().saturating_duration_since(self.began).as_millis() as u32
    }
}

/// What all rings of a thread ring.
fn new_bell() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?)
}

/// Rests without listening when something is going on; else until the bell rings or it is time for something.
fn sleep(bell: &OwnedFd, dialers: &mut [Dialer], is_busy: bool, until: Instant) -> io::Result<()> {
    let longest = if is_busy { REST } else { SLEEP_MAX };
    let wait = until.saturating_duration_since(clock::now()).min(longest);
    let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as _ };
    let polled = if is_busy {
        poll(&mut [], Some(&wait))
    } else {
        // What rang it has been seen, or is seen now: rings are looked at after it is reset.
        let _ = rustix::io::read(bell, &mut [0; 8]);
        if dialers.iter_mut().any(Dialer::has_work) {
            return Ok(());
        }
        poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&wait))
    };
    match polled {
        Err(error) if error != rustix::io::Errno::INTR => Err(error.into()),
        _ => Ok(()),
    }
}

/// How long a session stays away after so many attempts in a row, this one counted: what the server asked for and
/// up to half of it more, or a random part of what doubles with each attempt.
fn pause(attempts: u8, trouble: &Trouble, random: &mut fastrand::Rng) -> Duration {
    if let Some(asked) = trouble.pause() {
        return pause_asked(asked, random);
    }
    let doublings = u32::from(attempts.saturating_sub(1).min(16));
    let longest = (PAUSE_MIN * 2_u32.pow(doublings)).min(PAUSE_MAX);
    longest.mul_f64(0.2 + 0.8 * random.f64())
}

/// What came on a connection, in plain.
fn open<'a>(
    tls: Option<&mut Box<TlsConnection>>,
    bytes: &'a mut [u8],
    plain: &'a mut Vec<u8>,
) -> Result<&'a mut [u8], Trouble> {
    let Some(tls) = tls else { return Ok(bytes) };
    plain.clear();
    tls.read(bytes, plain).map_err(Trouble::Tls)?;
    Ok(plain)
}

/// Turns what is to be said into what goes over the wire.
fn seal(tls: &mut TlsConnection, out: &mut Vec<u8>) {
    if !out.is_empty() {
        tls.write(out);
        out.clear();
    }
    tls.take_output(out);
}

fn pause_asked(asked: Duration, random: &mut fastrand::Rng) -> Duration {
    asked.mul_f64(1.0 + 0.5 * random.f64())
}

/// Why there are not enough rings, for the person who asked for so many sessions.
fn no_ring(sessions: u32, rings: u32, ring: u32, error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::OutOfMemory {
        return Failure::Usage(format!(
            "--connections: {sessions} need {rings} rings of 32 KiB of locked memory here, and ring {ring} got no \
             more (all rings of a user count together); raise memlock (ulimit -l); see tuning/"
        ));
    }
    Failure::Broken(format!("io_uring {ring} of {rings}: {error}; see tuning/"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::client::upgrade;
    use crate::target::Target;

    const PATIENCE: Duration = Duration::from_secs(30);
    const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: \
        Upgrade\r\nSec-WebSocket-Accept: ACCEPT\r\n\r\n";

    /// Answers connections in turn with these texts, `ACCEPT` filled in, each byte by itself so that the client has
    /// to put it together; then hears the client out.
    fn server(answers: &'static [&'static str]) -> (Target, JoinHandle<Vec<Vec<u8>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::local(listener.local_addr().unwrap(), "/");
        let thread = thread::spawn(move || {
            let serve = |answer: &&str| {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let answer = upgrade::answer_to(&mut stream, answer);
                for byte in answer.as_bytes() {
                    stream.write_all(&[*byte]).unwrap();
                }
                let mut heard = Vec::new();
                let _ = stream.read_to_end(&mut heard);
                heard
            };
            answers.iter().map(serve).collect()
        });
        (target, thread)
    }

    fn crowd(target: Target, ping_interval: Option<Duration>) -> Crowd {
        let plan = CrowdPlan {
            front: target.into(),
            speech: Speech::Ws,
            sessions: 1,
            connecting_max: 4,
            ping_interval,
            seed: clock::random_seed(),
        };
        let mut crowd = Crowd::new(&plan).unwrap();
        crowd.want(1);
        crowd
    }

    fn turn_until(crowd: &mut Crowd, done: impl Fn(&Crowd) -> bool) {
        let deadline = clock::now() + PATIENCE;
        while !done(crowd) {
            assert!(clock::now() < deadline, "{:?}", crowd.first_error);
            crowd.turn(deadline).unwrap();
        }
    }

    #[test]
    fn an_upgrade_that_comes_byte_by_byte_is_taken_and_a_stranger_accept_is_not() {
        const WRONG: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: \
            Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n";
        let (target, server) = server(&[WRONG, SWITCHING]);
        let mut crowd = crowd(target, None);
        turn_until(&mut crowd, |crowd| crowd.live == 1);
        assert_eq!((crowd.errors, crowd.welcomes), (1, 1));
        let error = crowd.first_error.as_deref().unwrap();
        assert!(error.ends_with("wrong Sec-WebSocket-Accept"), "{error}");
        drop(crowd);
        server.join().unwrap();
    }

    #[test]
    fn a_session_stays_away_as_long_as_the_server_asks() {
        let (target, server) =
            server(&["HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\n\r\n", SWITCHING]);
        let mut crowd = crowd(target, None);
        turn_until(&mut crowd, |crowd| crowd.errors == 1);
        let refused = clock::now();
        turn_until(&mut crowd, |crowd| crowd.live == 1);
        assert!(clock::now() - refused >= Duration::from_millis(1_990));
        drop(crowd);
        server.join().unwrap();
    }

    #[test]
    fn a_ping_without_an_answer_ends_the_connection_and_the_session_comes_back() {
        let (target, server) = server(&[SWITCHING, SWITCHING]);
        let mut crowd = crowd(target, Some(Duration::from_millis(200)));
        turn_until(&mut crowd, |crowd| crowd.welcomes == 2);
        let error = crowd.first_error.clone().unwrap();
        assert!(error.contains("a ping was not answered"), "{error}");
        drop(crowd);
        let heard = server.join().unwrap();
        // A masked Ping of eight bytes (RFC 6455 section 5.2).
        assert_eq!(heard[0][..2], [0x89, 0x88]);
    }
}
