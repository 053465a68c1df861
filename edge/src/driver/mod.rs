//! The I/O of one core: a loop that moves bytes between an io_uring and the shard.
//!
//! ```text
//!   enter the kernel ─► completions ─► Shard::apply ─► trade with the uplink ─► Shard::poll_output ─► ring
//!        ▲                                                                                      │
//!        └── yield to glommio ◄── something to do ── or sleep in the ring ◄─────────────────────┘
//! ```
//!
//! The driver is the only task of its executor, so it sleeps in its own ring: a sleep through glommio, on an eventfd that
//! both rings know, takes four calls into glommio's rings and a membarrier besides.
//!
//! Ring, executor, clock and unsafe are here only; decisions are the shard's.

mod buffers;
mod dialer;
mod heap;
mod kernel;
mod link;
mod links;
mod listener;
mod ring;
mod sends;

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ahash::RandomState;
use hashbrown::HashMap;
use io_uring::types::Timespec;

use self::links::Links;
use self::ring::{Completion, Ring};
use crate::conn::{CloseReason, Peer};
use crate::mesh::{Mesh, UPLINK_SHARD};
use crate::plan;
use crate::shard::{Event, Output, Shard};
use crate::shares::{Arrival, Shares};
use crate::timer::{Now, TICK, Tick};

pub use self::dialer::{DIALER_SLOTS_MAX, Dialed, Dialer};
pub use self::heap::settle_heap;
pub use self::link::LinkAddress;
pub use self::links::{LinkEnds, RouterEnd, RouterSeen};
pub use self::listener::{listen, reserve};

/// How long connections get to take their leave when the edge stops.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What a driver needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Which shard this is.
    pub shard: u16,
    /// Direct descriptors in the ring's table.
    pub sockets: u32,
    /// The ring's sizes.
    pub ring: plan::Ring,
    /// Bytes of each receive buffer.
    pub receive_buffer_bytes: u32,
}

/// The clock of one shard.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose first tick is now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the driver owns the clock")]
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// What time it is.
    #[must_use]
    pub fn now(&self) -> Now {
        self.now_at(self.start.elapsed())
    }

    /// The same, for one who knows already how long this clock runs.
    #[expect(clippy::disallowed_methods, reason = "the driver owns the clock")]
    fn now_at(&self, elapsed: Duration) -> Now {
        let ticks = elapsed.as_millis() / TICK.as_millis();
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Now { tick: Tick(ticks as u32), unix_ms: unix.as_millis() as i64 }
    }

    /// How long it is until `tick` begins.
    fn until(&self, tick: Tick) -> Duration {
        (TICK * tick.0).saturating_sub(self.start.elapsed())
    }
}

/// See the module.
pub struct Driver {
    settings: Settings,
    clock: Clock,
    shard: Shard,
    mesh: Arc<Mesh>,
    shares: Arc<Shares>,
    listener: Option<TcpListener>,
    /// Accepts that are not in the ring.
    idle_accepts: Vec<u16>,
    /// Clients accepted since this shard had its turn last.
    accepted: u32,
    /// Sockets on their way to other shards: by direct descriptor, to whom, and where their client is.
    passing: HashMap<u32, (u16, Peer), RandomState>,
    /// Sockets whose side of ours is being shut, and whether to close them then: busy, or not.
    shutting: HashMap<u32, Option<bool>, RandomState>,
    /// Of sockets on their way to this one, see [`Shares::arrived`].
    arrivals: Vec<Arrival>,
    ring: Ring,
    /// Where the uplinks run.
    links: Option<Links>,
    accept_again: Option<Tick>,
    last_tick: Tick,
    /// The earliest timeout in the ring.
    timeout: Option<Tick>,
    stop: Arc<AtomicBool>,
    /// Every connection has been told that this is the end.
    stopping: bool,
    leave_by: Option<Tick>,
}

impl Driver {
    /// Sets the ring up; has to be called on the thread, and inside the executor, that will run it.
    ///
    /// # Errors
    /// What the kernel says to the ring's set-up.
    pub fn new(
        settings: Settings,
        clock: Clock,
        shard: Shard,
        (mesh, shares): (Arc<Mesh>, Arc<Shares>),
        listener: TcpListener,
        links: Option<LinkEnds>,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let ring = Ring::new(&settings.ring, settings.sockets, settings.receive_buffer_bytes)?;
        shares.open(settings.shard, ring.descriptor());
        Ok(Self {
            settings,
            clock,
            shard,
            mesh,
            shares,
            listener: Some(listener),
            idle_accepts: (0..settings.ring.accepts).collect(),
            accepted: 0,
            passing: HashMap::default(),
            shutting: HashMap::default(),
            arrivals: Vec::new(),
            ring,
            links: links.map(Links::new),
            accept_again: None,
            last_tick: Tick(0),
            timeout: None,
            stop,
            stopping: false,
            leave_by: None,
        })
    }

    /// Runs until `stop` is set and everybody has left.
    ///
    /// # Errors
    /// What the kernel says when the ring cannot be entered.
    pub async fn run(mut self) -> io::Result<()> {
        loop {
            let busy = self.turn();
            if self.has_ended() {
                self.mesh.waker(UPLINK_SHARD).wake();
                self.ring.enter()?;
                return Ok(());
            }
            if busy {
                self.ring.enter()?;
                glommio::yield_if_needed().await;
            } else {
                self.sleep()?;
            }
        }
    }

    /// One round over what has completed; says whether there is more to do at once. What it submits goes to the kernel
    /// with the one call that ends the round, which also waits when there is nothing else to do.
    fn turn(&mut self) -> bool {
        let completions = self.ring.gather();
        let began = self.clock.start.elapsed();
        let now = self.clock.now_at(began);
        while let Some(sent) = self.ring.next_sent() {
            self.handle_completion(now, sent);
        }
        for at in 0..completions {
            if let Some(completion) = self.ring.completion(at) {
                self.handle_completion(now, completion);
            }
        }
        self.handle_timeouts(now);
        self.shares.set_held(self.settings.shard, self.shard.connections());
        self.shard.exchange(now, &self.mesh);
        if let Some(links) = &mut self.links {
            links.run(now, &mut self.ring, &self.mesh, self.shard.counters());
        }
        self.run_outputs();
        // Behind the closes, which make room for it.
        self.accept(now);
        self.shard.counters().turn.observe(self.clock.start.elapsed().saturating_sub(began));
        self.ring.has_completions()
            || self.shard.has_more_to_tell()
            || self.mesh.has_work(self.settings.shard)
    }

    fn handle_completion(&mut self, now: Now, completion: Completion) {
        match completion {
            Completion::Received { key, lent, more } => {
                let bytes = self.ring.buffers.bytes_of(&lent);
                self.shard.apply(now, Event::Received { key, bytes });
                self.ring.buffers.give_back(lent);
                if !more {
                    self.shard.apply(now, Event::ReceiveStopped { key });
                }
            }
            Completion::Sent { key, buffer, result } => {
                self.shard.apply(now, Event::Sent { key, buffer, result });
            }
            Completion::ReceiveEnded { key, errno: libc::ECANCELED | libc::EINTR } => {
                self.shard.apply(now, Event::ReceiveStopped { key });
            }
            // Out of buffers means receive again, never close: they come back within this turn.
            Completion::ReceiveEnded { key, errno: libc::ENOBUFS } => {
                self.ring.buffers.note_empty();
                self.shard.counters().receive_buffers_empty.add(1);
                self.shard.apply(now, Event::ReceiveStopped { key });
            }
            Completion::ReceiveEnded { key, errno } => {
                self.shard.apply(now, Event::Ended { key, errno });
            }
            Completion::Accepted { accept, socket, peer } => {
                self.idle_accepts.push(accept);
                self.accepted += 1;
                self.handle_accepted(now, socket, peer);
            }
            Completion::AcceptFailed { accept, errno } => {
                self.idle_accepts.push(accept);
                // The client was gone before it was accepted, or the listener has been ended (EINVAL; accept(2)).
                if !matches!(
                    errno,
                    libc::ECANCELED | libc::ECONNABORTED | libc::EINTR | libc::EINVAL
                ) {
                    // The table is full, or the kernel is short of memory: a moment later there may be room.
                    self.shard.counters().accept_failures.add(1);
                    self.accept_again = Some(Tick(now.tick.0 + 1));
                }
            }
            Completion::Arrived { from, socket_there, socket } => {
                let shard = self.settings.shard;
                let peer = self.shares.arrived(shard, from, socket_there, &mut self.arrivals);
                let peer = peer.unwrap_or_default();
                self.shard.apply(now, Event::Accepted { socket, peer });
            }
            Completion::Passed { socket, result } => {
                let Some((to, peer)) = self.passing.remove(&socket) else { return };
                match result {
                    Ok(()) => {
                        self.shard.counters().passed.add(1);
                        self.ring.close(socket);
                    }
                    // That shard's table is full, or it is gone: the client stays here.
                    Err(_) => {
                        self.shares.pass_failed(to);
                        self.shard.apply(now, Event::Accepted { socket, peer });
                    }
                }
            }
            Completion::Shut { socket } => {
                if let Some(Some(busy)) = self.shutting.remove(&socket) {
                    self.close(socket, busy);
                }
            }
            Completion::TimedOut { tick } => {
                if self.timeout == Some(tick) {
                    self.timeout = None;
                }
            }
            Completion::Link { attempt, event } => {
                if let Some(links) = &mut self.links {
                    links.handle(now, &mut self.ring, &self.mesh, attempt, event);
                }
            }
        }
    }

    fn handle_timeouts(&mut self, now: Now) {
        if self.last_tick != now.tick {
            self.last_tick = now.tick;
            self.ring.buffers.end_tick();
        }
        if self.shard.poll_timeout().is_some_and(|at| at <= now.tick) {
            self.shard.handle_timeout(now);
        }
        let stop = !self.stopping && self.stop.load(Ordering::Relaxed);
        let drained_by = self.shard.leaves_by();
        if (stop || drained_by.is_some())
            && let Some(listener) = self.listener.take()
        {
            listener::end(&listener);
        }
        let reason = match drained_by {
            _ if stop => CloseReason::GoingAway,
            Some(by) if by <= now.tick && !self.stopping => CloseReason::Drained,
            Some(_) | None => return,
        };
        self.stopping = true;
        self.leave_by = Some(now.tick.after(LEAVE_TIMEOUT));
        self.shard.close_all(now, reason);
    }

    /// Whether this shard is at its end: everybody has left, or has had the time for it. The one that runs the uplink waits
    /// for the others, whose clients may still have sends to be answered.
    fn has_ended(&self) -> bool {
        if self.listener.is_some() {
            return false;
        }
        let now = self.clock.now().tick;
        if self.leave_by.is_some_and(|by| by <= now) {
            return true;
        }
        self.shares.set_held(self.settings.shard, self.shard.connections());
        let others = self.links.is_some() && self.shares.held() > 0;
        self.shard.connections() == 0 && self.passing.is_empty() && !others
    }

    /// A fresh socket: this shard's, unless it holds more than its share.
    fn handle_accepted(&mut self, now: Now, socket: u32, peer: Peer) {
        let from = self.settings.shard;
        // Those on their way out are not here any more; if they stay after all, the next ones go.
        let held = self.shard.connections();
        let passed = match self.listener {
            Some(_) => self.shares.pass(held, Arrival { from, socket, peer }),
            None => None,
        };
        match passed {
            Some((to, ring)) => {
                self.passing.insert(socket, (to, peer));
                self.ring.pass(socket, from, ring);
            }
            None => self.shard.apply(now, Event::Accepted { socket, peer }),
        }
    }

    /// Puts the accepts that are done back into the ring, while it is this shard's turn. Once a turn of the loop, which
    /// so takes no more clients than there are accepts: a storm of them does not keep those who are here waiting.
    fn accept(&mut self, now: Now) {
        let shard = self.settings.shard;
        // Whosever turn it is: a time that has passed keeps the core from sleeping.
        self.accept_again = self.accept_again.filter(|at| *at > now.tick);
        if !self.shares.has_turn(shard) {
            self.accepted = 0;
            return;
        }
        if let Some(next) = self.shares.end_turn(shard, self.accepted, self.shard.connections()) {
            self.accepted = 0;
            self.mesh.waker(next).wake();
            return;
        }
        if self.accept_again.is_some() {
            return;
        }
        let Some(listener) = &self.listener else { return };
        for _ in 0..self.accepts_wanted() {
            if let Some(accept) = self.idle_accepts.pop() {
                self.ring.accept(listener.as_fd(), accept);
            }
        }
    }

    /// Accepts that can be put into the ring. A client for whom there is no descriptor would be cut off, so it stays in
    /// the listener's queue.
    fn accepts_wanted(&self) -> usize {
        let taken = self.shard.connections() + self.passing.len() + self.shutting.len();
        let free = (self.settings.sockets as usize).saturating_sub(taken);
        let in_ring = usize::from(self.settings.ring.accepts) - self.idle_accepts.len();
        self.idle_accepts.len().min(free.saturating_sub(in_ring))
    }

    fn run_outputs(&mut self) {
        while let Some(output) = self.shard.poll_output() {
            match output {
                Output::Send { key, socket, bytes, quiet } => {
                    self.ring.send(key, socket, bytes, quiet);
                }
                Output::Receive { key, socket } => self.ring.receive(key, socket),
                Output::StopReceive { key } => self.ring.stop_receive(key),
                Output::ShutdownWrite { socket } => {
                    self.shutting.insert(socket, None);
                    self.ring.shutdown_write(socket);
                }
                Output::Close { socket, busy } => self.close(socket, busy),
            }
        }
    }

    fn close(&mut self, socket: u32, busy: bool) {
        if let Some(then) = self.shutting.get_mut(&socket) {
            *then = Some(busy);
        } else if busy {
            self.ring.shut_and_close(socket);
        } else {
            self.ring.close(socket);
        }
    }

    /// Submits what was gathered, and sleeps until the ring, another core or a deadline has something to do.
    fn sleep(&mut self) -> io::Result<()> {
        let deadline = [
            self.shard.poll_timeout(),
            self.links.as_ref().and_then(Links::poll_timeout),
            self.accept_again,
            self.leave_by,
            self.shard.leaves_by().filter(|_| !self.stopping),
        ]
        .into_iter()
        .flatten()
        .min();
        if let Some(deadline) = deadline {
            let after = self.clock.until(deadline);
            if after.is_zero() {
                return self.ring.enter();
            }
            if self.timeout.is_none_or(|set| deadline < set) {
                self.timeout = Some(deadline);
                let after = Timespec::new().sec(after.as_secs()).nsec(after.subsec_nanos());
                self.ring.timeout(deadline, &after);
            }
        }
        let waker = self.mesh.waker(self.settings.shard);
        waker.park();
        // What came before `park` rang no bell.
        let stopping = self.stop.load(Ordering::Relaxed) && !self.stopping;
        let accepts = self.accept_again.is_none()
            && self.listener.is_some()
            && self.shares.has_turn(self.settings.shard)
            && self.accepts_wanted() > 0;
        let busy = self.mesh.has_work(self.settings.shard) || self.shard.can_hand_over(&self.mesh);
        let slept = if busy || stopping || accepts {
            self.ring.enter()
        } else {
            self.ring.sleep(waker.eventfd())
        };
        waker.unpark();
        slept
    }
}
