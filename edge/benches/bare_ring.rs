//! What the edge adds to its ring: CPU a message of the WebSocket echo, beside a ring that gives bytes back as they came.
//!
//!     cargo bench --bench bare_ring -- [ROUNDS] [SECONDS]
//!
//! Both servers run in this process, each in one thread on the first core; the client, on the second, talks to them in
//! turn. CPU is that of all threads but the client's. The bare ring knows no protocol, no sessions and no limits: what it
//! received it sends from the very buffer. It gets as many bytes a message as the edge does.
#![expect(unsafe_code, reason = "the yardstick uses the ring without anything in between")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]
#![expect(clippy::disallowed_methods, reason = "a benchmark looks at the clock")]

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use hawser_edge::config::Config;
use hawser_edge::driver::{Dialed, Dialer};
use hawser_edge::plan::Plan;
use hawser_edge::probe::Kernel;
use hawser_edge::server::Edge;
use io_uring::types::{BufRingEntry, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode, squeue};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

/// Connections, and messages on their way on each.
const GRID: [(u32, usize); 3] = [(50, 1), (2000, 1), (2000, 8)];
const PAYLOAD_BYTES: usize = 64;
/// Upgrades on their way at once.
const CONNECTING_MAX: u32 = 64;
const BUFFERS: u16 = 4096;
const BUFFER_BYTES: usize = 2048;
const WARMUP: Duration = Duration::from_millis(500);

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let rounds = numbers.first().copied().unwrap_or(5);
    let window = Duration::from_secs(numbers.get(1).copied().unwrap_or(2));
    let cpus = sched_getaffinity(None).unwrap();
    let cpus: Vec<_> = (0..CpuSet::MAX_CPU).filter(|cpu| cpus.is_set(*cpu)).collect();
    let edge = start_edge();
    let bare = start_bare(cpus[0]);
    pin(cpus[cpus.len().min(2) - 1]);
    println!("conns flight  bare us/msg  edge us/msg  edge / bare: median (min to max)");
    for (connections, in_flight) in GRID {
        let mut cells: Vec<(f64, f64)> = (0..rounds)
            .map(|_| {
                let bare = cpu_us(bare, &Talk::bytes(), connections, in_flight, window);
                let edge = cpu_us(edge.listen(), &Talk::frames(), connections, in_flight, window);
                (bare, edge)
            })
            .collect();
        cells.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
        let ratio = |cell: &(f64, f64)| cell.1 / cell.0;
        let (least, middle, most) = (cells[0], cells[cells.len() / 2], cells[cells.len() - 1]);
        println!(
            "{connections:>5} {in_flight:>6} {:>12.3} {:>12.3}  {:.2} ({:.2} to {:.2})",
            middle.0,
            middle.1,
            ratio(&middle),
            ratio(&least),
            ratio(&most)
        );
    }
    edge.state().stop();
    edge.join().unwrap();
}

fn start_edge() -> Edge {
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        echo_path: Some("/echo".to_owned()),
        shards: Some(1),
        ..Config::default()
    };
    let plan = Plan::new(&config, &Kernel::read()).unwrap();
    Edge::start(config, &plan, None).unwrap()
}

fn pin(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).unwrap();
}

/// CPU time of all threads of this process but this one.
fn others_cpu() -> Duration {
    let me = gettid().as_raw_nonzero().to_string();
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        if task.file_name().to_str() != Some(&me) {
            let stat = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanos += stat.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(nanos)
}

/// How a server is talked to.
struct Talk {
    /// Said first; the answer ends with an empty line.
    hello: Option<&'static [u8]>,
    message: Vec<u8>,
    answer_bytes: usize,
}

impl Talk {
    fn bytes() -> Self {
        let message = vec![0x55; 6 + PAYLOAD_BYTES];
        Self { hello: None, answer_bytes: message.len(), message }
    }

    fn frames() -> Self {
        let hello = b"GET /echo HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        let mut message = vec![0x82, 0x80 | PAYLOAD_BYTES as u8, 1, 2, 3, 4];
        message.resize(6 + PAYLOAD_BYTES, 0x55);
        Self { hello: Some(hello), answer_bytes: 2 + PAYLOAD_BYTES, message }
    }
}

/// CPU of the server a message, in microseconds.
fn cpu_us(
    target: SocketAddr,
    talk: &Talk,
    connections: u32,
    in_flight: usize,
    window: Duration,
) -> f64 {
    let bell = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let mut dialer = Dialer::new(connections, target, bell.as_fd()).unwrap();
    let batch = talk.message.repeat(in_flight);
    let answer_bytes = talk.answer_bytes * in_flight;
    let mut open = vec![talk.hello.is_none(); connections as usize];
    let mut heard_bytes = vec![0; connections as usize];
    let (mut messages, mut connected) = (0u64, 0);
    let mut opened = if talk.hello.is_none() { connections } else { 0 };
    let start = Instant::now();
    let (mut from, mut measured) = (None, None);
    while measured.is_none() {
        while connected < connections.min(opened + CONNECTING_MAX) {
            dialer.connect(connected, None, talk.hello.unwrap_or(&batch));
            connected += 1;
        }
        dialer.enter().unwrap();
        let mut due = Vec::new();
        while let Some(event) = dialer.poll() {
            let Dialed::Received { slot, bytes } = event else { panic!("a connection failed") };
            let at = slot as usize;
            if !open[at] {
                assert!(bytes.ends_with(b"\r\n\r\n"), "no upgrade");
                open[at] = true;
                opened += 1;
                due.push(slot);
                continue;
            }
            heard_bytes[at] += bytes.len();
            if heard_bytes[at] == answer_bytes {
                heard_bytes[at] = 0;
                messages += in_flight as u64;
                due.push(slot);
            }
        }
        due.into_iter().for_each(|slot| dialer.send(slot, &batch));
        let now = Instant::now();
        match from {
            None if connected == connections && now > start + WARMUP => {
                from = Some((now, others_cpu(), messages));
            }
            Some((since, cpu, before)) if now > since + window => {
                let cpu = (others_cpu() - cpu).as_secs_f64() * 1e6;
                measured = Some(cpu / (messages - before) as f64);
            }
            _ => {}
        }
        if !dialer.has_work() {
            let _ = rustix::io::read(&bell, &mut [0; 8]);
            if !dialer.has_work() {
                let wait = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                let _ = poll(&mut [PollFd::new(&bell, PollFlags::IN)], Some(&wait));
            }
        }
    }
    (0..connections).for_each(|slot| dialer.abort(slot));
    let mut closed = 0;
    while closed < connections {
        dialer.enter().unwrap();
        while let Some(event) = dialer.poll() {
            closed += u32::from(matches!(event, Dialed::Closed { .. }));
        }
    }
    measured.unwrap_or_default()
}

/// Starts the yardstick on a thread of its own; it runs until the process ends.
fn start_bare(cpu: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Inherited by what is accepted, as in the edge.
    rustix::net::sockopt::set_tcp_nodelay(&listener, true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        pin(cpu);
        serve_bare(&listener);
    });
    address
}

fn serve_bare(listener: &TcpListener) {
    const ACCEPT: u64 = 1 << 63;
    const SENT: u64 = 1 << 62;
    const IGNORED: u64 = 1 << 61;
    let mut ring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(16_384)
        .build(4096)
        .unwrap();
    ring.submitter().register_files_sparse(4096).unwrap();
    // Both live as long as the process, and page-aligned memory is what the kernel asks for.
    let memory = vec![0u8; usize::from(BUFFERS) * BUFFER_BYTES].leak().as_mut_ptr();
    let entries = vec![[0u8; 4096]; usize::from(BUFFERS) * 16 / 4096 + 1].leak().as_mut_ptr();
    let entries = entries.cast::<u8>();
    let entries = entries.wrapping_add(entries.align_offset(4096)).cast::<BufRingEntry>();
    // SAFETY: the entries are aligned, long enough (a page is to spare) and never freed.
    unsafe {
        ring.submitter().register_buf_ring_with_flags(entries as u64, BUFFERS, 0, 0).unwrap()
    };
    let mut tail = 0u16;
    let offer = |id: u16, tail: &mut u16| {
        // SAFETY: the index is below BUFFERS; the kernel reads the entry only after the tail has moved past it.
        unsafe {
            let entry = &mut *entries.add(usize::from(*tail & (BUFFERS - 1)));
            entry.set_addr(memory.add(usize::from(id) * BUFFER_BYTES) as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
        }
        *tail = tail.wrapping_add(1);
    };
    (0..BUFFERS).for_each(|id| offer(id, &mut tail));
    let receive =
        |socket: u32| opcode::RecvMulti::new(Fixed(socket), 0).build().user_data(socket.into());
    let accept = opcode::AcceptMulti::new(Fd(listener.as_raw_fd()))
        .allocate_file_index(true)
        .build()
        .user_data(ACCEPT);
    let mut wanted: Vec<squeue::Entry> = vec![accept.clone()];
    let mut done: Vec<cqueue::Entry> = Vec::new();
    loop {
        for entry in wanted.drain(..) {
            // SAFETY: what is sent lies in the leaked buffers, and is offered again only when it is sent.
            while unsafe { ring.submission().push(&entry) }.is_err() {
                ring.submit().unwrap();
            }
        }
        // SAFETY: the tail lies in the first entry and is accessed atomically only.
        unsafe { &*BufRingEntry::tail(entries).cast::<AtomicU16>() }.store(tail, Ordering::Release);
        match ring.submit_and_wait(1) {
            Err(error) if error.raw_os_error() != Some(libc::EINTR) => panic!("{error}"),
            _ => {}
        }
        done.extend(ring.completion());
        for entry in done.drain(..) {
            let (data, result) = (entry.user_data(), entry.result());
            if data & IGNORED != 0 {
            } else if data & SENT != 0 {
                offer((data >> 32) as u16, &mut tail);
            } else if data & ACCEPT != 0 {
                wanted.extend(u32::try_from(result).ok().map(receive));
                if !cqueue::more(entry.flags()) {
                    wanted.push(accept.clone());
                }
            } else if let Some(id) = cqueue::buffer_select(entry.flags()).filter(|_| result > 0) {
                let start = memory.wrapping_add(usize::from(id) * BUFFER_BYTES);
                let send = opcode::Send::new(Fixed(data as u32), start, result as u32)
                    .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL);
                wanted.push(send.build().user_data(SENT | u64::from(id) << 32 | data));
                if !cqueue::more(entry.flags()) {
                    wanted.push(receive(data as u32));
                }
            } else if result == -libc::ENOBUFS {
                wanted.push(receive(data as u32));
            } else {
                wanted.push(opcode::Close::new(Fixed(data as u32)).build().user_data(IGNORED));
            }
        }
    }
}
