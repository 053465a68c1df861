//! Many outgoing connections on one small io_uring: what the load client stands on.
//!
//! ```text
//!          connect             first bytes                 abort, close
//!   free ───────────► SOCKET ► BIND ► CONNECT ► SEND ► RECV ───────────► CLOSE ► free
//!                      └─ one chain of linked submissions ─┘
//! ```
//!
//! A connection is a slot of the ring's table of direct descriptors, so a process holds as many as it has rings for,
//! not as many as it may have descriptors. The source address and port are the caller's choice: the kernel's own
//! search for a free port grows with the connections to one target. A slot's generation makes completions of an
//! earlier connection miss. Like the edge's ring it belongs to the thread that made it; a thread may own many, and
//! sleeps on the eventfd (the bell) that all of them ring.
//!
//! Slots are asserted: they are the caller's numbers, never a peer's.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::types::{CancelBuilder, DestinationSlot, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};
use socket2::{Domain, SockAddr, Type};

use super::buffers::{Buffers, GROUP, Lent};
use super::kernel::{self, SEND_ALL};

/// Most slots of one dialer: what the user data has room for.
pub const DIALER_SLOTS_MAX: u32 = 1 << 16;

/// Submissions that are gathered before the kernel has to be entered. Together with [`COMPLETIONS`] small, so that
/// fifty rings fit into 2 MB of locked memory: this one takes 32 KiB.
const SUBMISSIONS: u32 = 128;
/// Completions that fit before the kernel keeps them on a list of its own.
const COMPLETIONS: u32 = 1024;
/// Receive buffers: as many as one page of the buffer ring describes. With too few of them at once a receive is
/// started again, nothing is lost.
const BUFFERS: u16 = 256;
/// Size of one: an answer to an upgrade, or a dozen small frames.
const BUFFER_BYTES: u32 = 512;
const KIND_SHIFT: u32 = 60;
const TEXT_SHIFT: u32 = 32;
const GENERATION_SHIFT: u32 = 16;
/// Texts that can be in flight: 28 bits between kind and generation.
const TEXTS_MAX: usize = 1 << (KIND_SHIFT - TEXT_SHIFT);

const KIND_IGNORED: u64 = 0;
const KIND_CONNECT: u64 = 1;
const KIND_SEND: u64 = 2;
const KIND_RECEIVE: u64 = 3;
const KIND_CLOSE: u64 = 4;

/// Connecting a socket to it undoes its connection: with a reset where there is one (connect(2)).
static NOWHERE: libc::sockaddr =
    libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };

/// What happened in a slot.
#[derive(Debug, PartialEq, Eq)]
pub enum Dialed<'a> {
    /// There is no connection, for this reason of the system. Close the slot.
    Refused {
        /// Where.
        slot: u32,
        /// The system's error number.
        errno: i32,
    },
    /// Bytes came. They are lent until the next call.
    Received {
        /// Where.
        slot: u32,
        /// The bytes, at least one.
        bytes: &'a mut [u8],
    },
    /// The peer sends nothing more: 0 at the end of the stream, or an error number. Close the slot.
    Ended {
        /// Where.
        slot: u32,
        /// The system's error number.
        errno: i32,
    },
    /// The slot is free again, as was asked for.
    Closed {
        /// Where.
        slot: u32,
    },
}

/// See the module.
pub struct Dialer {
    // Dropped first: nothing below may be touched by the kernel afterwards, as far as we can help it.
    ring: IoUring,
    buffers: Buffers,
    texts: Texts,
    slots: Vec<Slot>,
    /// Everywhere that connections went. Never taken out: a connect that is not submitted yet points into it.
    #[expect(
        clippy::vec_box,
        reason = "the kernel reads the address where the entry says it lies"
    )]
    targets: Vec<Box<SockAddr>>,
    /// Where they go now.
    target: usize,
    /// Source addresses of binds that may not be submitted yet. As many as there are submissions, used in turn:
    /// when one is used again, its last bind has been submitted, and the kernel copies it then.
    sources: Box<[SockAddr]>,
    next_source: usize,
    /// What the last event lent out.
    lent: Option<Lent>,
    /// Slots whose receive found no buffer. Started again when the kernel has been given some: at once, each would
    /// fail again, without an end. Bounded by the slots.
    hungry: VecDeque<u32>,
}

/// One direct descriptor.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Counts connections; on connect, so that what completes late for the one before misses.
    generation: u16,
    state: State,
    /// A receive is in the ring.
    receiving: bool,
    /// It was asked to end, to be told by ECANCELED.
    cancelling: bool,
    /// The caller wants no bytes for now.
    paused: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Free,
    Used,
    Closing,
}

/// An event without its bytes, which can be looked for in a loop.
enum Found {
    Refused { slot: u32, errno: i32 },
    Received { slot: u32 },
    Ended { slot: u32, errno: i32 },
    Closed { slot: u32 },
}

impl Dialer {
    /// A ring with `slots` direct descriptors, all free, whose connections go to `target`. It writes to the eventfd
    /// `bell` when there may be something to do.
    ///
    /// # Errors
    /// What the kernel says: too little locked memory, a table larger than the descriptor limit.
    pub fn new(slots: u32, target: SocketAddr, bell: BorrowedFd<'_>) -> io::Result<Self> {
        assert!(slots <= DIALER_SLOTS_MAX, "{slots} slots");
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_no_sqarray()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        ring.submitter().register_files_sparse(slots)?;
        ring.submitter().register_eventfd(bell.as_raw_fd())?;
        let buffers = Buffers::register(&ring, BUFFERS, BUFFERS, BUFFER_BYTES)?;
        let nobody: SockAddr = SocketAddr::from(([0, 0, 0, 0], 0)).into();
        Ok(Self {
            ring,
            buffers,
            texts: Texts::default(),
            slots: vec![Slot::default(); slots as usize],
            targets: vec![Box::new(target.into())],
            target: 0,
            sources: vec![nobody; SUBMISSIONS as usize].into_boxed_slice(),
            next_source: 0,
            lent: None,
            hungry: VecDeque::new(),
        })
    }

    /// Whether a slot can be connected.
    #[must_use]
    pub fn is_free(&self, slot: u32) -> bool {
        self.slots[slot as usize].state == State::Free
    }

    /// Connections that begin from now on go to `target`. A dialer remembers every target that it was given: they are to be few.
    pub fn aim(&mut self, target: SocketAddr) {
        let known = self.targets.iter().position(|known| known.as_socket() == Some(target));
        self.target = known.unwrap_or_else(|| {
            self.targets.push(Box::new(target.into()));
            self.targets.len() - 1
        });
    }

    /// Connects a free slot, from `source` or from where the kernel chooses, and says `first` on it.
    /// [`Dialed::Received`], [`Dialed::Refused`] or [`Dialed::Ended`] follows. A source that is in use leads to
    /// `Refused` with EADDRINUSE.
    pub fn connect(&mut self, slot: u32, source: Option<SocketAddrV4>, first: &[u8]) {
        let state = &mut self.slots[slot as usize];
        assert!(state.state == State::Free, "slot {slot} is {:?}", state.state);
        *state = Slot {
            generation: state.generation.wrapping_add(1),
            state: State::Used,
            receiving: true,
            ..Slot::default()
        };
        let (text, start) = self.texts.insert(first);
        let connect = self.user_data(KIND_CONNECT, text, slot);
        // All three are silent when they succeed. The first that fails speaks for the whole chain: the kernel
        // leaves out what follows it (io_uring_enter(2), IOSQE_CQE_SKIP_SUCCESS).
        let quiet = squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS;
        let target = &self.targets[self.target];
        let domain = i32::from(target.family());
        let place = DestinationSlot::try_from_slot_target(slot).ok();
        let socket = opcode::Socket::new(domain, Type::STREAM.into(), 0).file_index(place).build();
        let to = opcode::Connect::new(Fixed(slot), target.as_ptr().cast(), target.len());
        let say = opcode::Send::new(Fixed(slot), start, first.len() as u32).flags(SEND_ALL);
        let hear = opcode::RecvMulti::new(Fixed(slot), GROUP).build();
        let socket = socket.flags(quiet).user_data(connect);
        let to = to.build().flags(quiet).user_data(connect);
        let say = say
            .build()
            .flags(squeue::Flags::IO_LINK)
            .user_data(self.user_data(KIND_SEND, text, slot));
        let hear = hear.user_data(self.user_data(KIND_RECEIVE, 0, slot));
        match source {
            Some(source) if domain == i32::from(Domain::IPV4) => {
                let from = self.bind(slot, source).flags(quiet).user_data(connect);
                self.push(&[socket, from, to, say, hear]);
            }
            _ => self.push(&[socket, to, say, hear]),
        }
    }

    fn bind(&mut self, slot: u32, source: SocketAddrV4) -> squeue::Entry {
        let address = &mut self.sources[self.next_source];
        self.next_source = (self.next_source + 1) % SUBMISSIONS as usize;
        *address = SocketAddr::V4(source).into();
        opcode::Bind::new(Fixed(slot), address.as_ptr().cast(), address.len()).build()
    }

    /// Sends a copy of `bytes`. Does nothing on a slot that has no connection; that a send failed is told by
    /// [`Dialed::Ended`]. The caller sends a bounded number of times before it hears an answer.
    pub fn send(&mut self, slot: u32, bytes: &[u8]) {
        if self.slots[slot as usize].state != State::Used {
            return;
        }
        let (text, start) = self.texts.insert(bytes);
        let entry = opcode::Send::new(Fixed(slot), start, bytes.len() as u32)
            .flags(SEND_ALL)
            .build()
            .user_data(self.user_data(KIND_SEND, text, slot));
        self.push(&[entry]);
    }

    /// Receives no more on a connected slot until [`Self::resume`]. What has been received already still comes.
    pub fn pause(&mut self, slot: u32) {
        let receive = self.user_data(KIND_RECEIVE, 0, slot);
        let state = &mut self.slots[slot as usize];
        state.paused = true;
        if state.state == State::Used && state.receiving && !state.cancelling {
            state.cancelling = true;
            let entry = opcode::AsyncCancel2::new(CancelBuilder::user_data(receive)).build();
            self.push(&[entry.user_data(KIND_IGNORED << KIND_SHIFT)]);
        }
    }

    /// Receives again.
    pub fn resume(&mut self, slot: u32) {
        let state = &mut self.slots[slot as usize];
        state.paused = false;
        if state.state == State::Used && !state.receiving {
            self.receive(slot);
        }
    }

    /// Ends a connection at once with a reset, which leaves nothing behind at either end. [`Dialed::Closed`]
    /// follows, and nothing else.
    pub fn abort(&mut self, slot: u32) {
        let bytes = size_of::<libc::sockaddr>() as u32;
        let undo = opcode::Connect::new(Fixed(slot), &raw const NOWHERE, bytes).build();
        self.close_after(slot, undo);
    }

    /// Ends a connection in order: the peer sees the end of the stream after what was sent.
    /// [`Dialed::Closed`] follows, and nothing else.
    pub fn close(&mut self, slot: u32) {
        let shut = opcode::Shutdown::new(Fixed(slot), libc::SHUT_RDWR).build();
        self.close_after(slot, shut);
    }

    /// A receive in the ring holds the socket, so `first` has to end it. It may fail, on a slot without a socket or
    /// one whose peer is gone; closing goes on all the same.
    fn close_after(&mut self, slot: u32, first: squeue::Entry) {
        let state = &mut self.slots[slot as usize];
        if state.state != State::Used {
            return;
        }
        state.state = State::Closing;
        let first = first
            .flags(squeue::Flags::IO_HARDLINK | squeue::Flags::SKIP_SUCCESS)
            .user_data(KIND_IGNORED << KIND_SHIFT);
        let close =
            opcode::Close::new(Fixed(slot)).build().user_data(self.user_data(KIND_CLOSE, 0, slot));
        self.push(&[first, close]);
    }

    /// Whether [`Self::enter`] would do anything. Reads memory only.
    #[must_use]
    pub fn has_work(&mut self) -> bool {
        let submission = self.ring.submission();
        let asked = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        asked || !self.hungry.is_empty() || !self.ring.completion().is_empty()
    }

    /// Submits what was gathered and lets the kernel finish what it has waiting. Does not wait.
    ///
    /// # Errors
    /// What the kernel says when the ring cannot be entered.
    pub fn enter(&mut self) -> io::Result<()> {
        self.give_back();
        self.buffers.publish();
        for _ in 0..self.hungry.len().min(BUFFERS.into()) {
            let Some(slot) = self.hungry.pop_front() else { break };
            let Slot { state, receiving, paused, .. } = self.slots[slot as usize];
            if state == State::Used && !receiving && !paused {
                self.receive(slot);
            }
        }
        kernel::enter(&mut self.ring, 0)
    }

    /// What happened next; `None` when there is nothing until [`Self::enter`] is called again.
    pub fn poll(&mut self) -> Option<Dialed<'_>> {
        self.give_back();
        Some(match self.find()? {
            Found::Refused { slot, errno } => Dialed::Refused { slot, errno },
            Found::Ended { slot, errno } => Dialed::Ended { slot, errno },
            Found::Closed { slot } => Dialed::Closed { slot },
            Found::Received { slot } => {
                let bytes = self.buffers.bytes_of(self.lent.as_ref()?);
                Dialed::Received { slot, bytes }
            }
        })
    }

    fn find(&mut self) -> Option<Found> {
        loop {
            let entry = self.ring.completion().next()?;
            let found = self.complete(&entry);
            if found.is_some() {
                return found;
            }
        }
    }

    /// What a completion means to the caller, if anything.
    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Found> {
        let (data, result) = (entry.user_data(), entry.result());
        let slot = data as u32 & (DIALER_SLOTS_MAX - 1);
        let generation = (data >> GENERATION_SHIFT) as u16;
        let kind = data >> KIND_SHIFT;
        if kind == KIND_CONNECT || kind == KIND_SEND {
            // Whoever is in the slot by now, the kernel has done with the text.
            self.texts.remove((data >> TEXT_SHIFT) as usize & (TEXTS_MAX - 1));
        }
        if kind == KIND_RECEIVE
            && let Some(id) = cqueue::buffer_select(entry.flags())
        {
            self.lent = Some(self.buffers.lend(id, result.max(0) as u32));
        }
        let state = self.slots.get_mut(slot as usize)?;
        let is_live = state.generation == generation && state.state == State::Used;
        match kind {
            KIND_CONNECT if is_live => Some(Found::Refused { slot, errno: -result }),
            KIND_RECEIVE if is_live => self.complete_receive(slot, result, entry.flags()),
            KIND_CLOSE => {
                state.state = State::Free;
                Some(Found::Closed { slot })
            }
            _ => {
                self.give_back();
                None
            }
        }
    }

    fn complete_receive(&mut self, slot: u32, result: i32, flags: u32) -> Option<Found> {
        let state = &mut self.slots[slot as usize];
        state.receiving = cqueue::more(flags);
        let cancelled = result == -libc::ECANCELED && state.cancelling;
        if !state.receiving {
            state.cancelling = false;
        }
        if result <= 0 && result != -libc::ENOBUFS && !cancelled {
            self.give_back();
            // A chain whose send failed cancels its receive.
            let errno = if result == -libc::ECANCELED { libc::ECONNRESET } else { -result };
            return Some(Found::Ended { slot, errno });
        }
        if result == -libc::ENOBUFS {
            self.hungry.push_back(slot);
        } else if !state.receiving && !state.paused {
            self.receive(slot);
        }
        (result > 0).then_some(Found::Received { slot })
    }

    fn receive(&mut self, slot: u32) {
        self.slots[slot as usize].receiving = true;
        let data = self.user_data(KIND_RECEIVE, 0, slot);
        self.push(&[opcode::RecvMulti::new(Fixed(slot), GROUP).build().user_data(data)]);
    }

    fn give_back(&mut self) {
        if let Some(lent) = self.lent.take() {
            self.buffers.give_back(lent);
        }
    }

    fn user_data(&self, kind: u64, text: u32, slot: u32) -> u64 {
        let generation = u64::from(self.slots[slot as usize].generation);
        kind << KIND_SHIFT
            | u64::from(text) << TEXT_SHIFT
            | generation << GENERATION_SHIFT
            | u64::from(slot)
    }

    fn push(&mut self, entries: &[squeue::Entry]) {
        // SAFETY: what an entry points to outlives its completion: what is sent lies in `texts`; `targets`, `sources`
        // (see there) and `NOWHERE` are copied by the kernel when it takes the entry.
        unsafe { kernel::push(&mut self.ring, entries) };
    }
}

/// What is being sent: copies that lie still until the kernel says that it has done with them.
#[derive(Debug, Default)]
struct Texts {
    texts: Vec<Vec<u8>>,
    free: Vec<u32>,
}

impl Texts {
    /// Keeps a copy until [`Self::remove`]; returns its number, and where it lies.
    fn insert(&mut self, bytes: &[u8]) -> (u32, *const u8) {
        // An empty text is a free one.
        assert!(!bytes.is_empty(), "nothing to send");
        let index = self.free.pop().unwrap_or_else(|| {
            assert!(self.texts.len() < TEXTS_MAX, "{TEXTS_MAX} sends in flight");
            self.texts.push(Vec::new());
            (self.texts.len() - 1) as u32
        });
        let text = &mut self.texts[index as usize];
        text.extend_from_slice(bytes);
        (index, text.as_ptr())
    }

    fn remove(&mut self, index: usize) {
        if let Some(text) = self.texts.get_mut(index).filter(|text| !text.is_empty()) {
            text.clear();
            self.free.push(index as u32);
        }
    }
}

impl Drop for Texts {
    fn drop(&mut self) {
        // The ring goes asynchronously: the kernel may still read from what is in flight.
        self.texts.drain(..).filter(|text| !text.is_empty()).for_each(std::mem::forget);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "waits for a real kernel, with deadlines")]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::{AsFd as _, OwnedFd};
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    struct Bench {
        dialer: Dialer,
        bell: OwnedFd,
        listener: TcpListener,
    }

    /// An event that owns its bytes.
    #[derive(Debug, PartialEq, Eq)]
    enum Told {
        Refused(u32, i32),
        Received(u32, Vec<u8>),
        Ended(u32, i32),
        Closed(u32),
    }

    impl Bench {
        fn new(slots: u32) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
            let target = listener.local_addr().unwrap();
            Self { dialer: Dialer::new(slots, target, bell.as_fd()).unwrap(), bell, listener }
        }

        fn accept(&mut self) -> TcpStream {
            self.dialer.enter().unwrap();
            let (stream, _) = self.listener.accept().unwrap();
            stream
        }

        /// What the peer reads next, `bytes` of it at most; the ring goes on meanwhile.
        fn heard_by(&mut self, peer: &mut TcpStream, bytes: usize) -> io::Result<Vec<u8>> {
            peer.set_nonblocking(true).unwrap();
            let until = Instant::now() + PATIENCE;
            let mut heard = vec![0; bytes];
            loop {
                self.dialer.enter().unwrap();
                match peer.read(&mut heard) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    outcome => {
                        peer.set_nonblocking(false).unwrap();
                        heard.truncate(outcome?);
                        return Ok(heard);
                    }
                }
                assert!(Instant::now() < until, "nothing was heard");
                std::thread::yield_now();
            }
        }

        /// The next event; sleeps on the bell for it.
        fn next(&mut self) -> Told {
            let until = Instant::now() + PATIENCE;
            loop {
                if let Some(event) = self.dialer.poll() {
                    return match event {
                        Dialed::Refused { slot, errno } => Told::Refused(slot, errno),
                        Dialed::Received { slot, bytes } => Told::Received(slot, bytes.to_vec()),
                        Dialed::Ended { slot, errno } => Told::Ended(slot, errno),
                        Dialed::Closed { slot } => Told::Closed(slot),
                    };
                }
                let _ = rustix::io::read(&self.bell, &mut [0; 8]);
                if self.dialer.has_work() {
                    self.dialer.enter().unwrap();
                    continue;
                }
                assert!(Instant::now() < until, "nothing happened");
                let wait = Timespec { tv_sec: 1, tv_nsec: 0 };
                poll(&mut [PollFd::new(&self.bell, PollFlags::IN)], Some(&wait)).unwrap();
            }
        }
    }

    fn source(last: u8, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(127, 77, std::process::id() as u8, last), port)
    }

    #[test]
    fn a_connection_comes_from_its_source_and_talks_both_ways() {
        let mut bench = Bench::new(4);
        bench.dialer.connect(2, Some(source(9, 23_456)), b"first");
        let mut peer = bench.accept();
        assert_eq!(peer.peer_addr().unwrap(), SocketAddr::V4(source(9, 23_456)));
        assert_eq!(bench.heard_by(&mut peer, 9).unwrap(), b"first");
        bench.dialer.send(2, b"again");
        assert_eq!(bench.heard_by(&mut peer, 9).unwrap(), b"again");
        peer.write_all(b"answer").unwrap();
        assert_eq!(bench.next(), Told::Received(2, b"answer".to_vec()));
        drop(peer);
        assert_eq!(bench.next(), Told::Ended(2, 0));
        bench.dialer.close(2);
        assert_eq!(bench.next(), Told::Closed(2));
        assert!(bench.dialer.is_free(2));
    }

    #[test]
    fn aborting_resets_the_connection_and_frees_slot_and_source_at_once() {
        let mut bench = Bench::new(1);
        for _ in 0..100 {
            bench.dialer.connect(0, Some(source(10, 23_457)), b"x");
            let mut peer = bench.accept();
            assert_eq!(bench.heard_by(&mut peer, 1).unwrap(), b"x");
            bench.dialer.abort(0);
            assert_eq!(bench.next(), Told::Closed(0));
            let error = bench.heard_by(&mut peer, 1).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        }
    }

    #[test]
    fn connections_go_where_the_dialer_aims_when_they_begin() {
        let mut bench = Bench::new(3);
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        bench.dialer.connect(0, None, b"here");
        bench.dialer.aim(other.local_addr().unwrap());
        bench.dialer.connect(1, None, b"there");
        bench.dialer.aim(bench.listener.local_addr().unwrap());
        bench.dialer.connect(2, None, b"back");
        // None was submitted when the aim changed.
        let mut here = [bench.accept(), bench.accept()];
        let mut heard = here.each_mut().map(|peer| bench.heard_by(peer, 9).unwrap());
        heard.sort();
        assert_eq!(heard, [b"back".to_vec(), b"here".to_vec()]);
        let (mut there, _) = other.accept().unwrap();
        assert_eq!(bench.heard_by(&mut there, 9).unwrap(), b"there");
    }

    #[test]
    fn why_there_is_no_connection_is_told_once() {
        let mut bench = Bench::new(2);
        bench.dialer.connect(0, Some(source(11, 23_458)), b"x");
        let _peer = bench.accept();
        // The same source again, then nobody who listens.
        bench.dialer.connect(1, Some(source(11, 23_458)), b"x");
        assert_eq!(bench.next(), Told::Refused(1, libc::EADDRINUSE));
        bench.dialer.abort(1);
        assert_eq!(bench.next(), Told::Closed(1));
        bench.listener = TcpListener::bind("127.0.0.1:0").unwrap();
        bench.dialer.connect(1, None, b"x");
        assert_eq!(bench.next(), Told::Refused(1, libc::ECONNREFUSED));
        bench.dialer.abort(1);
        assert_eq!(bench.next(), Told::Closed(1));
    }

    #[test]
    fn a_slot_closed_while_it_connects_hears_nothing_of_it_later() {
        let mut bench = Bench::new(1);
        for _ in 0..50 {
            bench.dialer.connect(0, None, b"x");
            bench.dialer.abort(0);
            assert_eq!(bench.next(), Told::Closed(0));
        }
        bench.dialer.connect(0, None, b"last");
        // Those before are in the listener's queue, reset.
        let mut peer = loop {
            let mut peer = bench.accept();
            if bench.heard_by(&mut peer, 4).is_ok_and(|heard| heard == b"last") {
                break peer;
            }
        };
        peer.write_all(b"answer").unwrap();
        assert_eq!(bench.next(), Told::Received(0, b"answer".to_vec()));
    }

    #[test]
    fn a_paused_slot_reads_nothing_and_goes_on_where_it_stopped() {
        let mut bench = Bench::new(2);
        for slot in 0..2 {
            bench.dialer.connect(slot, None, b"x");
        }
        let mut peers = [bench.accept(), bench.accept()];
        for peer in &mut peers {
            assert_eq!(bench.heard_by(peer, 1).unwrap(), b"x");
        }
        bench.dialer.pause(0);
        bench.dialer.enter().unwrap();
        for peer in &mut peers {
            peer.write_all(b"now").unwrap();
        }
        // The other one's bytes came later than these would have.
        assert_eq!(bench.next(), Told::Received(1, b"now".to_vec()));
        bench.dialer.resume(0);
        assert_eq!(bench.next(), Told::Received(0, b"now".to_vec()));
        for _ in 0..20 {
            bench.dialer.pause(0);
            bench.dialer.resume(0);
        }
        for peer in &mut peers {
            peer.write_all(b"then").unwrap();
        }
        let mut then = [bench.next(), bench.next()];
        then.sort_by_key(|told| matches!(told, Told::Received(1, _)));
        assert_eq!(then, [0, 1].map(|slot| Told::Received(slot, b"then".to_vec())));
    }

    #[test]
    fn answers_to_more_slots_than_there_are_buffers_all_arrive() {
        let slots = 3 * u32::from(BUFFERS);
        let mut bench = Bench::new(slots);
        let mut peers = Vec::new();
        for slot in 0..slots {
            bench.dialer.connect(slot, None, b"x");
            peers.push(bench.accept());
        }
        // All at once, before the ring takes the first.
        for peer in &mut peers {
            peer.write_all(b"answer").unwrap();
        }
        let mut answered: Vec<u32> = (0..slots)
            .map(|_| {
                let told = bench.next();
                let Told::Received(slot, bytes) = told else { panic!("{told:?}") };
                assert_eq!(bytes, b"answer");
                slot
            })
            .collect();
        answered.sort_unstable();
        assert_eq!(answered, (0..slots).collect::<Vec<_>>());
    }

    #[test]
    fn more_bytes_than_buffers_all_arrive() {
        let mut bench = Bench::new(1);
        bench.dialer.connect(0, None, b"x");
        let mut peer = bench.accept();
        assert_eq!(bench.heard_by(&mut peer, 1).unwrap(), b"x");
        let sent: Vec<u8> = (0..4_000_000_u32).map(|at| (at % 251) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || peer.write_all(&copy).unwrap());
        let mut received = Vec::new();
        while received.len() < sent.len() {
            let told = bench.next();
            let Told::Received(0, bytes) = told else {
                panic!("{told:?} after {} bytes", received.len())
            };
            received.extend(bytes);
        }
        assert!(received == sent);
        writer.join().unwrap();
    }
}
