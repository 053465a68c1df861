//! One io_uring: what is submitted, what completes, and how a core sleeps on it.
//!
//! Set up by the thread that drives it (`SINGLE_ISSUER`, `DEFER_TASKRUN`): completions are only made while that
//! thread asks for them, so nothing interrupts it. A table of direct descriptors keeps sockets out of the process's
//! own descriptor table. See io_uring_setup(2).

use io_uring::types::{CancelBuilder, DestinationSlot, Fd, Fixed, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::SockAddr;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::buffers::{Buffers, GROUP, Lent, offered_min};
use super::kernel::{self, SEND_ALL};
use super::sends::{InFlight, Quiet, Sends};
use crate::conn::{ConnKey, Peer};
use crate::plan;
use crate::timer::Tick;

/// Completions looked at in one turn.
const COMPLETIONS_A_TURN: usize = 1024;
/// Of what nobody waits for: no completion when it succeeds (io_uring_enter(2)).
const QUIET: squeue::Flags = squeue::Flags::SKIP_SUCCESS;

const KIND_SHIFT: u32 = 60;
const KIND_IGNORED: u64 = 0;
const KIND_ACCEPT: u64 = 1;
const KIND_RECEIVE: u64 = 2;
const KIND_SEND: u64 = 3;
const KIND_TIMEOUT: u64 = 4;
const KIND_LINK_CONNECT: u64 = 5;
const KIND_LINK_RECEIVE: u64 = 6;
const KIND_LINK_SEND: u64 = 7;
const KIND_WAKE: u64 = 8;
const KIND_PASS: u64 = 9;
const KIND_ARRIVAL: u64 = 10;
const KIND_SHUT: u64 = 11;

/// What the kernel has done.
#[derive(Debug)]
pub(super) enum Completion {
    /// Accept number `accept` is done: a client was accepted into this direct descriptor.
    Accepted { accept: u16, socket: u32, peer: Peer },
    /// Accept number `accept` is done and has failed with this error number.
    AcceptFailed { accept: u16, errno: i32 },
    /// A client that shard `from` had accepted as `socket_there` is now in this direct descriptor.
    Arrived { from: u16, socket_there: u32, socket: u32 },
    /// This direct descriptor was passed to another shard, which has a copy now; or it was not.
    Passed { socket: u32, result: Result<(), i32> },
    /// Our side of this direct descriptor's stream is shut, or was ended already.
    Shut { socket: u32 },
    /// Bytes came for a connection; `more` is false when the receive has to be started again.
    Received { key: ConnKey, lent: Lent, more: bool },
    /// The receive has ended with this error number; 0 is the end of the stream.
    ReceiveEnded { key: ConnKey, errno: i32 },
    /// A send is done.
    Sent { key: ConnKey, buffer: Vec<u8>, result: Result<(), i32> },
    /// The timeout for this tick has passed.
    TimedOut { tick: Tick },
    /// Something happened on the link's socket of this attempt.
    Link { attempt: u32, event: LinkEvent },
}

/// What happened on the link's socket. Errors are the system's numbers.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// The connection attempt is over.
    Connected(Result<(), i32>),
    /// So many bytes came; 0 is the end.
    Received(Result<usize, i32>),
    /// The send is done; so many bytes went out.
    Sent(Result<usize, i32>),
}

/// See the module.
pub(super) struct Ring {
    // Dropped first: nothing below may be touched by the kernel afterwards, as far as we can help it.
    ring: IoUring,
    pub(super) buffers: Buffers,
    sends: Sends,
    /// Quiet sends that wait to be submitted, and those that were.
    pushed: Vec<Quiet>,
    submitted: Vec<Quiet>,
    /// Gathered sends that are over, for [`Self::next_sent`].
    sent: Vec<Completion>,
    /// All that had completed when the kernel was last entered has been gathered.
    drained: bool,
    /// Where the kernel writes whom it has accepted. Leaked: it may do so until the ring is wholly gone.
    accepts: &'static mut [AcceptedAddress],
    completions: Vec<cqueue::Entry>,
    /// Where the kernel puts the count of the eventfd. Leaked: it may do so until the ring is wholly gone.
    wakes: &'static mut u64,
    /// A read of the eventfd is in the ring.
    wake_armed: bool,
}

impl Ring {
    /// A ring with a table of `sockets` direct descriptors and receive buffers of `buffer_bytes`.
    ///
    /// # Errors
    /// What the kernel says; the start-up probe has asked before for what can be known.
    pub(super) fn new(size: &plan::Ring, sockets: u32, buffer_bytes: u32) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(size.completions)
            .build(size.submissions)?;
        ring.submitter().register_files_sparse(sockets)?;
        let buffers = {
            let count = size.receive_buffers;
            Buffers::register(&ring, count, offered_min(count), buffer_bytes)?
        };
        let accepts = (0..size.accepts).map(|_| AcceptedAddress::new()).collect::<Vec<_>>();
        Ok(Self {
            ring,
            buffers,
            sends: Sends::default(),
            pushed: Vec::new(),
            submitted: Vec::new(),
            sent: Vec::new(),
            drained: false,
            accepts: accepts.leak(),
            completions: Vec::with_capacity(COMPLETIONS_A_TURN.min(size.completions as usize)),
            wakes: Box::leak(Box::default()),
            wake_armed: false,
        })
    }

    /// The ring's own descriptor: other shards pass sockets to it.
    pub(super) fn descriptor(&self) -> i32 {
        self.ring.as_raw_fd()
    }

    /// Submits what was gathered and lets the kernel finish what it has waiting. Does not wait.
    pub(super) fn enter(&mut self) -> io::Result<()> {
        self.enter_for(0)
    }

    /// The same, and sleeps until there is a completion. A write to `eventfd` makes one.
    pub(super) fn sleep(&mut self, eventfd: BorrowedFd<'_>) -> io::Result<()> {
        if !self.wake_armed {
            self.wake_armed = true;
            let count: *mut u64 = self.wakes;
            let entry = opcode::Read::new(Fd(eventfd.as_raw_fd()), count.cast(), 8)
                .build()
                .user_data(KIND_WAKE << KIND_SHIFT);
            self.push(entry);
        }
        self.enter_for(1)
    }

    fn enter_for(&mut self, completions: u32) -> io::Result<()> {
        self.buffers.publish();
        let entered = kernel::enter(&mut self.ring, completions);
        if self.ring.submission().is_empty() {
            self.submitted.append(&mut self.pushed);
        }
        entered
    }

    /// Takes what has completed, at most [`COMPLETIONS_A_TURN`], for [`Self::completion`]. Returns how many.
    pub(super) fn gather(&mut self) -> usize {
        self.completions.clear();
        let queue = self.ring.completion();
        self.completions.extend(queue.take(COMPLETIONS_A_TURN));
        self.drained = self.ring.completion().is_empty() && !self.ring.submission().cq_overflow();
        for at in 0..self.completions.len() {
            let (data, result) = (self.completions[at].user_data(), self.completions[at].result());
            if data >> KIND_SHIFT == KIND_SEND {
                let sent = self.complete_send(data as u32, result);
                self.sent.extend(sent);
            }
        }
        self.completions.len()
    }

    /// The next send that is over, of those gathered and those that went out without a word. To be asked before the
    /// other completions are looked at: what ends a connection has to find its send over, if it is.
    ///
    /// A send is quiet (`IOSQE_CQE_SKIP_SUCCESS`) and does not wait (`MSG_DONTWAIT`): it is over when the call that
    /// submits it returns, and only one that could not take all of its bytes has a completion. So those have gone out
    /// that were submitted and of which nothing is heard when all completions have been taken.
    pub(super) fn next_sent(&mut self) -> Option<Completion> {
        if let Some(sent) = self.sent.pop() {
            return Some(sent);
        }
        if !self.drained {
            return None;
        }
        while let Some(quiet) = self.submitted.pop() {
            if let Some(InFlight { key, buffer, .. }) = self.sends.settle(quiet) {
                return Some(Completion::Sent { key, buffer, result: Ok(()) });
            }
        }
        None
    }

    /// Completion `at` of those gathered; `None` for one that means nothing to anybody.
    pub(super) fn completion(&mut self, at: usize) -> Option<Completion> {
        let entry = self.completions.get(at)?;
        let (data, result, flags) = (entry.user_data(), entry.result(), entry.flags());
        let low = data as u32;
        Some(match data >> KIND_SHIFT {
            KIND_ACCEPT => {
                let accept = low as u16;
                match u32::try_from(result) {
                    Ok(socket) => {
                        let peer = self.accepts.get(usize::from(accept))?.peer();
                        Completion::Accepted { accept, socket, peer }
                    }
                    Err(_) => Completion::AcceptFailed { accept, errno: -result },
                }
            }
            KIND_ARRIVAL => Completion::Arrived {
                from: (data >> 32) as u16,
                socket_there: low,
                socket: result as u32,
            },
            KIND_PASS => {
                let result = if result < 0 { Err(-result) } else { Ok(()) };
                Completion::Passed { socket: low, result }
            }
            KIND_SHUT => Completion::Shut { socket: low },
            KIND_RECEIVE => {
                let key = ConnKey::from_bits(data);
                match cqueue::buffer_select(flags) {
                    Some(id) => Completion::Received {
                        key,
                        lent: self.buffers.lend(id, result.max(0) as u32),
                        more: cqueue::more(flags),
                    },
                    None => Completion::ReceiveEnded { key, errno: -result.min(0) },
                }
            }
            // See `gather`.
            KIND_SEND => return None,
            KIND_WAKE => {
                self.wake_armed = false;
                return None;
            }
            KIND_TIMEOUT => Completion::TimedOut { tick: Tick(low) },
            kind @ (KIND_LINK_CONNECT | KIND_LINK_RECEIVE | KIND_LINK_SEND) => {
                let result = usize::try_from(result).map_err(|_| -result);
                let event = match kind {
                    KIND_LINK_CONNECT => LinkEvent::Connected(result.map(|_| ())),
                    KIND_LINK_RECEIVE => LinkEvent::Received(result),
                    _ => LinkEvent::Sent(result),
                };
                Completion::Link { attempt: low, event }
            }
            _ => return None,
        })
    }

    fn complete_send(&mut self, index: u32, result: i32) -> Option<Completion> {
        if (result >= 0 || result == -libc::EAGAIN)
            && let Some(send) = self.sends.speak(index, result.max(0) as usize)
        {
            // The socket's buffer is full: the kernel waits for it, and says when the rest is out.
            let rest = send.buffer.get(send.sent..).unwrap_or_default();
            let entry = send_entry(index, send.socket, rest, SEND_ALL);
            self.push(entry);
            return None;
        }
        let InFlight { key, buffer, sent, .. } = self.sends.take(index)?;
        let result = match usize::try_from(result) {
            Ok(bytes) if sent + bytes == buffer.len() => Ok(()),
            // MSG_WAITALL: less than all means that the stream broke in between.
            Ok(_) => Err(libc::EPIPE),
            Err(_) => Err(-result),
        };
        Some(Completion::Sent { key, buffer, result })
    }

    /// Whether something has completed that was not gathered yet.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Accepts one client, as accept number `accept`; its socket goes into a free direct descriptor.
    ///
    /// One at a time and not multishot: a multishot accept has one place to write addresses to, which the next client
    /// overwrites. As many as are in flight are taken in one turn.
    pub(super) fn accept(&mut self, listener: BorrowedFd<'_>, accept: u16) {
        let Some(place) = self.accepts.get_mut(usize::from(accept)) else { return };
        place.reset();
        let (address, length): (*mut libc::sockaddr_in6, *mut libc::socklen_t) =
            (&raw mut place.address, &raw mut place.length);
        let entry = opcode::Accept::new(Fd(listener.as_raw_fd()), address.cast(), length)
            .file_index(Some(DestinationSlot::auto_target()))
            .build()
            .user_data(KIND_ACCEPT << KIND_SHIFT | u64::from(accept));
        self.push(entry);
    }

    /// Gives the ring of another shard a copy of a direct descriptor; [`Completion::Passed`] follows here,
    /// [`Completion::Arrived`] there.
    pub(super) fn pass(&mut self, socket: u32, from: u16, ring: i32) {
        let there = KIND_ARRIVAL << KIND_SHIFT | u64::from(from) << 32 | u64::from(socket);
        let slot = DestinationSlot::auto_target();
        let entry = opcode::MsgRingSendFd::new(Fd(ring), Fixed(socket), slot, there)
            .build()
            .user_data(KIND_PASS << KIND_SHIFT | u64::from(socket));
        self.push(entry);
    }

    /// Receives for a connection until told otherwise.
    pub(super) fn receive(&mut self, key: ConnKey, socket: u32) {
        let entry = opcode::RecvMulti::new(Fixed(socket), GROUP)
            .build()
            .user_data(KIND_RECEIVE << KIND_SHIFT | key.to_bits());
        self.push(entry);
    }

    /// Ends a connection's receive; [`Completion::ReceiveEnded`] with ECANCELED follows, or what came before.
    pub(super) fn stop_receive(&mut self, key: ConnKey) {
        let of = CancelBuilder::user_data(KIND_RECEIVE << KIND_SHIFT | key.to_bits());
        // By user data alone: one receive a connection carries it.
        let entry = opcode::AsyncCancel2::new(of).build().flags(QUIET).user_data(KIND_IGNORED);
        self.push(entry);
    }

    /// Sends all of `buffer`. A quiet send wakes nobody when it is over, see [`Self::next_sent`].
    pub(super) fn send(&mut self, key: ConnKey, socket: u32, buffer: Vec<u8>, quiet: bool) {
        let (index, send, name) = self.sends.insert(key, socket, buffer, quiet);
        let entry = if quiet {
            self.pushed.push(name);
            send_entry(index, socket, &send.buffer, SEND_ALL | libc::MSG_DONTWAIT).flags(QUIET)
        } else {
            send_entry(index, socket, &send.buffer, SEND_ALL)
        };
        self.push(entry);
    }

    /// Shuts our side of a stream. The kernel does so on a thread of its own, and looks the descriptor up only there: until
    /// [`Completion::Shut`] it must not be closed, or the next client who gets it is shut instead.
    pub(super) fn shutdown_write(&mut self, socket: u32) {
        let entry = opcode::Shutdown::new(Fixed(socket), libc::SHUT_WR).build();
        self.push(entry.user_data(KIND_SHUT << KIND_SHIFT | u64::from(socket)));
    }

    /// Frees a direct descriptor, of which nothing is in the ring. The stream ends unless another shard has a copy.
    pub(super) fn close(&mut self, socket: u32) {
        let entry = opcode::Close::new(Fixed(socket)).build();
        self.push(entry.flags(QUIET).user_data(KIND_IGNORED));
    }

    /// Ends a stream of which something is in the ring, and frees its descriptor. What is in the ring holds the socket,
    /// so the stream is shut first, in that order; the link between the two goes on when the shutdown fails because
    /// the peer is gone. The kernel does a shutdown on a thread of its own, which costs more than all the rest.
    pub(super) fn shut_and_close(&mut self, socket: u32) {
        let shutdown = opcode::Shutdown::new(Fixed(socket), libc::SHUT_RDWR)
            .build()
            .flags(squeue::Flags::IO_HARDLINK | QUIET)
            .user_data(KIND_IGNORED);
        let close = opcode::Close::new(Fixed(socket)).build();
        let close = close.flags(QUIET).user_data(KIND_IGNORED);
        self.push_linked(&[shutdown, close]);
    }

    /// Wakes the ring when `tick` has come; `after` is from now.
    pub(super) fn timeout(&mut self, tick: Tick, after: &Timespec) {
        let entry = opcode::Timeout::new(after)
            .build()
            .user_data(KIND_TIMEOUT << KIND_SHIFT | u64::from(tick.0));
        self.push(entry);
        // The kernel copies `after` while it takes the entry: it has to do so before the caller moves on.
        let _ = self.ring.submit();
    }

    /// Connects the link's socket. `address` lies still until [`LinkEvent::Connected`].
    pub(super) fn link_connect(
        &mut self,
        attempt: u32,
        socket: BorrowedFd<'_>,
        address: &SockAddr,
    ) {
        let entry =
            opcode::Connect::new(Fd(socket.as_raw_fd()), address.as_ptr().cast(), address.len())
                .build()
                .user_data(KIND_LINK_CONNECT << KIND_SHIFT | u64::from(attempt));
        self.push(entry);
    }

    /// Receives on the link. `buffer` lies still until [`LinkEvent::Received`].
    pub(super) fn link_receive(&mut self, attempt: u32, socket: BorrowedFd<'_>, buffer: &mut [u8]) {
        let entry =
            opcode::Recv::new(Fd(socket.as_raw_fd()), buffer.as_mut_ptr(), buffer.len() as u32)
                .build()
                .user_data(KIND_LINK_RECEIVE << KIND_SHIFT | u64::from(attempt));
        self.push(entry);
    }

    /// Sends on the link. `buffer` lies still until [`LinkEvent::Sent`].
    pub(super) fn link_send(&mut self, attempt: u32, socket: BorrowedFd<'_>, buffer: &[u8]) {
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), buffer.as_ptr(), buffer.len() as u32)
            .flags(SEND_ALL)
            .build()
            .user_data(KIND_LINK_SEND << KIND_SHIFT | u64::from(attempt));
        self.push(entry);
    }

    fn push(&mut self, entry: squeue::Entry) {
        self.push_linked(&[entry]);
    }

    fn push_linked(&mut self, entries: &[squeue::Entry]) {
        // SAFETY: what an entry points to outlives its completion: buffers of connections lie in `sends` or in
        // `buffers`, accepted addresses in `accepts`, the link's in the driver's `LinkSocket`, and a timeout's time
        // is copied when it is submitted, before `timeout` returns.
        unsafe { kernel::push(&mut self.ring, entries) };
    }
}

/// A send of what lies in [`Sends`] under this index, with these flags of send(2).
fn send_entry(index: u32, socket: u32, bytes: &[u8], flags: i32) -> squeue::Entry {
    opcode::Send::new(Fixed(socket), bytes.as_ptr(), bytes.len() as u32)
        .flags(flags)
        .build()
        .user_data(KIND_SEND << KIND_SHIFT | u64::from(index))
}

/// Where the kernel writes the address of one accepted client (accept(2)).
#[derive(Debug)]
struct AcceptedAddress {
    address: libc::sockaddr_in6,
    length: libc::socklen_t,
}

impl AcceptedAddress {
    fn new() -> Self {
        let address = libc::sockaddr_in6 {
            sin6_family: 0,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        };
        Self { address, length: 0 }
    }

    fn reset(&mut self) {
        self.address.sin6_family = 0;
        self.length = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
    }

    fn peer(&self) -> Peer {
        let port = u16::from_be(self.address.sin6_port);
        match i32::from(self.address.sin6_family) {
            libc::AF_INET6 => {
                let ip = Ipv6Addr::from(self.address.sin6_addr.s6_addr);
                SocketAddr::from((ip, port)).into()
            }
            // sockaddr_in has its address where sockaddr_in6 has its flow label.
            libc::AF_INET => {
                let ip = Ipv4Addr::from(self.address.sin6_flowinfo.to_ne_bytes());
                SocketAddr::from((ip, port)).into()
            }
            _ => Peer::default(),
        }
    }
}
