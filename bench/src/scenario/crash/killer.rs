//! Who does the harm: a thread that owns the servers, draws faults, strikes and mends.
//!
//! A fault is open from the blow until it is mended. Most are alone; some overlap, of which nobody and nothing is in two
//! at once, only one takes servers of the engine, and one router is always left alone where there are several.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::CrashArgs;
use super::fault::{Fault, Mending, Struck, Target};
use crate::clock;
use crate::failure::Failure;
use crate::processes::Servers;
use crate::scenario::Stop;
use crate::services::{Engine, Service};

/// For a message to be acknowledged again.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at what is due.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Of ten faults, how many wait until messages flow again; the others hit processes that are just starting.
const PATIENT_OF_TEN: u8 = 8;
/// Of ten faults, how many may begin before the one before is mended.
const OVERLAPPING_OF_TEN: u8 = 4;
/// Faults that are open at once.
const OPEN_MAX: usize = 3;

/// See the module. Dropping it ends the thread, and with it the servers.
pub(super) struct Killer {
    stop: Stop,
    /// Messages that were acknowledged; the traffic tells them.
    pub accepted: Arc<AtomicU64>,
    /// Faults that were done.
    pub kills: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<Done, Failure>>>,
}

impl Killer {
    /// # Errors
    /// When no fault is left that can be done here.
    pub(super) fn start(servers: Servers, args: &CrashArgs, seed: u64) -> Result<Self, Failure> {
        let (stop, accepted, kills) = (Stop::default(), Arc::default(), Arc::default());
        let mut faults = args.faults();
        faults.retain(|fault| {
            (*fault != Fault::DiskFull || servers.disk.is_some())
                && (*fault != Fault::ClockStep || servers.clock.is_some())
        });
        if faults.is_empty() {
            return Err(Failure::Usage(format!("--faults: {}", servers.left_out.join("; "))));
        }
        let run = Run {
            servers,
            stop: stop.clone(),
            accepted: Arc::clone(&accepted),
            kills: Arc::clone(&kills),
            kills_max: args.kills as usize,
            engine: args.engine.engine,
            pause_max: args.pause,
            faults,
            random: fastrand::Rng::with_seed(seed),
            open: Vec::new(),
            struck: Vec::new(),
        };
        let thread = std::thread::Builder::new().name("killer".to_owned()).spawn(|| run.run())?;
        Ok(Self { stop, accepted, kills, thread: Some(thread) })
    }

    pub(super) fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Ends the killing.
    pub(super) fn finish(mut self) -> Result<Done, Failure> {
        self.stop.ask();
        let joined = self.thread.take().map(JoinHandle::join);
        match joined {
            Some(Ok(result)) => result,
            _ => Err(Failure::Broken("the killer's thread panicked".to_owned())),
        }
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.stop.ask();
        if let Some(thread) = self.thread.take() {
            // Its result is for `finish`; here only its end matters.
            let _ = thread.join();
        }
    }
}

/// The servers, all of which run, and the faults in the order of their blows.
pub(super) type Done = (Servers, Vec<Struck>);

struct Run {
    servers: Servers,
    stop: Stop,
    accepted: Arc<AtomicU64>,
    kills: Arc<AtomicU64>,
    kills_max: usize,
    engine: Engine,
    /// Longest undisturbed time before a fault.
    pause_max: Duration,
    faults: Vec<Fault>,
    random: fastrand::Rng,
    open: Vec<Open>,
    struck: Vec<Struck>,
}

/// A fault that is not mended.
struct Open {
    fault: Fault,
    target: Target,
    /// Its place in `struck`.
    number: usize,
    mend_at: Instant,
    /// Once the mending has begun: what it waits for.
    mending: Option<Vec<Mending>>,
}

impl Run {
    fn run(mut self) -> Result<Done, Failure> {
        while self.struck.len() < self.kills_max && !self.stop.is_asked() {
            let overlaps = self.random.u8(0..10) < OVERLAPPING_OF_TEN;
            let is_patient = self.random.u8(0..10) < PATIENT_OF_TEN;
            let pause = self.pause_max.mul_f64(self.random.f64());
            self.mend_until(|run| run.open.is_empty() || overlaps && run.open.len() < OPEN_MAX)?;
            if is_patient {
                let before = self.accepted.load(Ordering::Relaxed);
                self.mend_until(|run| run.accepted.load(Ordering::Relaxed) != before)?;
            }
            let until = clock::now() + pause;
            self.mend_until(|_| clock::now() >= until)?;
            if !self.stop.is_asked() {
                self.strike()?;
            }
        }
        for open in &mut self.open {
            open.mend_at = open.mend_at.min(clock::now());
        }
        while !self.open.is_empty() {
            self.mend_due()?;
        }
        Ok((self.servers, self.struck))
    }

    /// Mends what is due until `done`, or until stop is asked.
    fn mend_until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), Failure> {
        let mut whole_since = None;
        while !done(self) && !self.stop.is_asked() {
            self.servers.check_alive()?;
            self.mend_due()?;
            let now = clock::now();
            let since = *whole_since.get_or_insert(now);
            if !self.open.is_empty() {
                whole_since = None;
            } else if now - since > RECOVERY_TIMEOUT.max(self.pause_max) {
                let last = self.struck.last().map(|struck| struck.fault);
                return Err(Failure::Broken(format!(
                    "no message was acknowledged within {RECOVERY_TIMEOUT:?} after {} faults, the last of them {last:?}",
                    self.struck.len(),
                )));
            }
        }
        Ok(())
    }

    /// Mends what is due, and waits a little.
    fn mend_due(&mut self) -> Result<(), Failure> {
        let now = clock::now();
        for mut open in std::mem::take(&mut self.open) {
            if open.mending.is_none() && now >= open.mend_at {
                let mending = open.fault.mend(&mut self.servers, open.target, &mut self.random)?;
                open.mending = Some(mending);
            }
            if !open.mending.iter().flatten().all(JoinHandle::is_finished) || open.mending.is_none()
            {
                self.open.push(open);
                continue;
            }
            for thread in open.mending.into_iter().flatten() {
                let panicked = |_| Failure::Broken("a thread panicked".to_owned());
                thread.join().map_err(panicked)??;
            }
            self.struck[open.number].mended_at = clock::now();
        }
        // Not `self.stop`: what is broken is mended also when stop is asked.
        Stop::default().pause(LOOK_INTERVAL);
        Ok(())
    }

    /// Does a fault for which there is room now.
    fn strike(&mut self) -> Result<(), Failure> {
        let Some((fault, target)) = self.draw() else { return Ok(()) };
        let struck_at = clock::now();
        fault.harm(&mut self.servers, target, &mut self.random)?;
        let mend_at = clock::now() + fault.lasts(self.engine, &mut self.random);
        self.open.push(Open { fault, target, number: self.struck.len(), mend_at, mending: None });
        self.struck.push(Struck { fault, struck_at, mended_at: mend_at });
        self.kills.store(self.struck.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// A fault and whom it hits, of those that hit nobody who is hit already.
    fn draw(&mut self) -> Option<(Fault, Target)> {
        let all = self.faults.iter().map(|fault| fault.weight()).sum();
        let mut left = self.random.u32(0..all);
        let drawn = self.faults.iter().find(|fault| {
            let here = left < fault.weight();
            left = left.saturating_sub(fault.weight());
            here
        });
        let fault = *drawn?;
        let (edges, routers) = (self.servers.edges.len(), self.servers.routers.len());
        let nodes = self.servers.service.as_ref().map_or(1, |service| Service::nodes(service));
        let target = Target {
            edge: self.random.usize(0..edges),
            router: fault.router_of(routers).unwrap_or_else(|| self.random.usize(0..routers)),
            node: self.random.usize(1..=nodes),
        };
        let hit_routers = self.open.iter().filter(|open| open.fault.takes_router()).count();
        let is_free = self.open.iter().all(|open| {
            let same_edge = open.target.edge == target.edge;
            let same_router = open.target.router == target.router;
            !(fault.takes_edge() && open.fault.takes_edge() && same_edge
                || fault.takes_router() && open.fault.takes_router() && same_router
                || fault.takes_nodes() && open.fault.takes_nodes())
        });
        let leaves_a_router = !fault.takes_router() || hit_routers + 1 < routers.max(2);
        (is_free && leaves_a_router).then_some((fault, target))
    }
}
