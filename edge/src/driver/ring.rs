//! One io_uring: what is submitted, what completes, and how a core sleeps on it.
//!
//! Set up by the thread that drives it (`SINGLE_ISSUER`, `DEFER_TASKRUN`): completions are only made while that
//! thread asks for them, so nothing interrupts it. A table of direct descriptors keeps sockets out of the process's
//! own descriptor table. See io_uring_setup(2).

use io_uring::types::{CancelBuilder, Fd, Fixed, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::SockAddr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::buffers::{Buffers, GROUP, Lent};
use super::sends::{InFlight, Sends};
use crate::conn::ConnKey;
use crate::timer::Tick;

/// Submissions that are gathered before the kernel has to be entered.
const SUBMISSIONS: u32 = 4096;
/// Completions that fit before the kernel keeps them on a list of its own.
const COMPLETIONS: u32 = 16_384;
/// Completions looked at in one turn.
const COMPLETIONS_A_TURN: usize = 1024;
/// `IORING_ENTER_GETEVENTS` of io_uring_enter(2).
const ENTER_GETEVENTS: u32 = 1;

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

/// What the kernel has done.
#[derive(Debug)]
pub(super) enum Completion {
    /// A client was accepted into this direct descriptor.
    Accepted { socket: u32 },
    /// Accepting has ended with this error number and has to be started again.
    AcceptEnded { errno: i32 },
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
    completions: Vec<cqueue::Entry>,
    /// Where the kernel puts the count of the eventfd. Leaked: it may do so until the ring is wholly gone.
    wakes: &'static mut u64,
    /// A read of the eventfd is in the ring.
    wake_armed: bool,
}

impl Ring {
    /// A ring with a table of `sockets` direct descriptors and `buffers` receive buffers.
    ///
    /// # Errors
    /// What the kernel says; the start-up probe has asked before for what can be known.
    pub(super) fn new(sockets: u32, buffers: u16, buffer_bytes: u32) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        ring.submitter().register_files_sparse(sockets)?;
        let buffers = Buffers::register(&ring, buffers, buffer_bytes)?;
        let completions = Vec::with_capacity(COMPLETIONS_A_TURN);
        Ok(Self {
            ring,
            buffers,
            sends: Sends::default(),
            completions,
            wakes: Box::leak(Box::default()),
            wake_armed: false,
        })
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
        let submissions = self.ring.submission().len() as u32;
        // SAFETY: no argument is a pointer; every entry was pushed by `push`, which see.
        let entered = unsafe {
            self.ring.submitter().enter::<libc::sigset_t>(
                submissions,
                completions,
                ENTER_GETEVENTS,
                None,
            )
        };
        match entered {
            Ok(_) => Ok(()),
            // Completions have to be taken first, or a signal came: the next turn submits the rest.
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY | libc::EINTR | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Takes what has completed, at most [`COMPLETIONS_A_TURN`], for [`Self::completion`]. Returns how many.
    pub(super) fn gather(&mut self) -> usize {
        self.completions.clear();
        let queue = self.ring.completion();
        self.completions.extend(queue.take(COMPLETIONS_A_TURN));
        self.completions.len()
    }

    /// Completion `at` of those gathered; `None` for one that means nothing to anybody.
    pub(super) fn completion(&mut self, at: usize) -> Option<Completion> {
        let entry = self.completions.get(at)?;
        let (data, result, flags) = (entry.user_data(), entry.result(), entry.flags());
        let low = data as u32;
        Some(match data >> KIND_SHIFT {
            KIND_ACCEPT if result >= 0 => Completion::Accepted { socket: result as u32 },
            KIND_ACCEPT => Completion::AcceptEnded { errno: -result },
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
            KIND_SEND => {
                let InFlight { key, buffer } = self.sends.take(low)?;
                let result = match usize::try_from(result) {
                    Ok(sent) if sent == buffer.len() => Ok(()),
                    // MSG_WAITALL: less than all means that the stream broke in between.
                    Ok(_) => Err(libc::EPIPE),
                    Err(_) => Err(-result),
                };
                Completion::Sent { key, buffer, result }
            }
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

    /// Whether something waits to be submitted.
    pub(super) fn has_submissions(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Accepts until told otherwise by [`Completion::AcceptEnded`]; sockets go into free direct descriptors.
    pub(super) fn accept(&mut self, listener: BorrowedFd<'_>) {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd()))
            .allocate_file_index(true)
            .build()
            .user_data(KIND_ACCEPT << KIND_SHIFT);
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
        let entry = opcode::AsyncCancel2::new(of).build().user_data(KIND_IGNORED);
        self.push(entry);
    }

    /// Sends all of `buffer`.
    pub(super) fn send(&mut self, key: ConnKey, socket: u32, buffer: Vec<u8>) {
        let (start, bytes) = (buffer.as_ptr(), buffer.len() as u32);
        // The buffer lies still in `sends` until its completion is taken.
        let index = self.sends.insert(InFlight { key, buffer });
        let entry = opcode::Send::new(Fixed(socket), start, bytes)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
            .user_data(KIND_SEND << KIND_SHIFT | u64::from(index));
        self.push(entry);
    }

    /// Shuts our side of a stream.
    pub(super) fn shutdown_write(&mut self, socket: u32) {
        let entry =
            opcode::Shutdown::new(Fixed(socket), libc::SHUT_WR).build().user_data(KIND_IGNORED);
        self.push(entry);
    }

    /// Closes a direct descriptor. A receive in the ring holds the socket, so the stream is shut first, in
    /// that order; the link between the two goes on when the shutdown fails because the peer is gone.
    pub(super) fn close(&mut self, socket: u32) {
        let shutdown = opcode::Shutdown::new(Fixed(socket), libc::SHUT_RDWR)
            .build()
            .flags(squeue::Flags::IO_HARDLINK)
            .user_data(KIND_IGNORED);
        let close = opcode::Close::new(Fixed(socket)).build().user_data(KIND_IGNORED);
        self.push_both(shutdown, close);
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
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build()
            .user_data(KIND_LINK_SEND << KIND_SHIFT | u64::from(attempt));
        self.push(entry);
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: what an entry points to outlives its completion: buffers of connections lie in `sends`
        // or in `buffers`, those of the link in the driver's `LinkSocket`, and a timeout's time is copied
        // when it is submitted, before `timeout` returns.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.make_room();
        }
    }

    /// Two linked entries must not be torn apart by a submission in between.
    fn push_both(&mut self, first: squeue::Entry, second: squeue::Entry) {
        let both = [first, second];
        // SAFETY: as in `push`; neither of the entries that are linked today points to memory.
        while unsafe { self.ring.submission().push_multiple(&both) }.is_err() {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        // Refused only while completions overflow; the kernel keeps those, and submission goes on.
        let _ = self.ring.submit();
    }
}
