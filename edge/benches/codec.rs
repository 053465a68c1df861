//! What the WebSocket codec costs: nanoseconds a message, decoded as a server and echoed.
//!
//! `cargo bench -p hawser-edge --bench codec`. Each line is the best and the median of 15 rounds; a round
//! takes about 20 ms. Frames lie in a receive buffer of 16 KiB as a client sends them, as many as fit.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use hawser_edge::ws::mask::unmask;
use hawser_edge::ws::{
    Decoder, Item, Opcode, Pool, Role, Settings, write_masked_message, write_message,
};

const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(20);
const RECEIVE_BYTES: usize = 16 * 1024;
const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const SETTINGS: Settings =
    Settings { role: Role::Server, message_bytes_max: 1 << 20, deflate: false };

fn main() {
    println!("{:<44} {:>10} {:>10}", "ns a message", "best", "median");
    for payload_bytes in [16, 64, 125, 126, 1024, 8192] {
        echo(Opcode::Binary, payload_bytes);
    }
    for payload_bytes in [64, 1024] {
        echo(Opcode::Text, payload_bytes);
    }
    for receive_bytes in [100, 1000] {
        echo_cut(64, receive_bytes);
    }
    for payload_bytes in [3, 16, 64, 125, 1024, 65536] {
        mask_alone(payload_bytes);
    }
}

/// Whole frames: decoded in place, echoed into a buffer that is emptied with every receive.
fn echo(opcode: Opcode, payload_bytes: usize) {
    let (received, messages) = received(opcode, payload_bytes);
    let mut input = received.clone();
    let mut connection = Connection::default();
    measure(&format!("echo, {payload_bytes} bytes, {opcode:?}"), messages, || {
        // Decoding overwrites its input; this copy stands for the kernel's and is part of the figure.
        input.copy_from_slice(&received);
        connection.receive(black_box(&mut input));
    });
}

/// The same stream in receives that end anywhere.
fn echo_cut(payload_bytes: usize, receive_bytes: usize) {
    let (received, messages) = received(Opcode::Binary, payload_bytes);
    let mut input = received.clone();
    let mut connection = Connection::default();
    let name = format!("echo, {payload_bytes} bytes, receives of {receive_bytes} bytes");
    measure(&name, messages, || {
        input.copy_from_slice(&received);
        for piece in input.chunks_mut(receive_bytes) {
            connection.receive(black_box(piece));
        }
    });
}

fn mask_alone(payload_bytes: usize) {
    let mut payload = vec![7; payload_bytes];
    measure(&format!("unmask, {payload_bytes} bytes"), 100, || {
        for _ in 0..100 {
            unmask(black_box(&mut payload), black_box(KEY), 0);
        }
    });
}

/// One receive full of frames, and how many they are.
fn received(opcode: Opcode, payload_bytes: usize) -> (Vec<u8>, usize) {
    let mut received = Vec::new();
    let mut messages = 0;
    while messages == 0 || received.len() + payload_bytes + 8 <= RECEIVE_BYTES {
        write_masked_message(&mut received, opcode, &vec![b'x'; payload_bytes], KEY);
        messages += 1;
    }
    (received, messages)
}

#[derive(Default)]
struct Connection {
    decoder: Decoder,
    pool: Pool,
    outbox: Vec<u8>,
}

impl Connection {
    fn receive(&mut self, mut input: &mut [u8]) {
        self.outbox.clear();
        while !input.is_empty() {
            let (taken, item) =
                self.decoder.next(input, &SETTINGS, &mut self.pool).expect("good frames");
            if let Some(Item::Message { text, payload }) = item {
                let opcode = if text { Opcode::Text } else { Opcode::Binary };
                write_message(&mut self.outbox, opcode, payload);
            }
            input = &mut input[taken..];
        }
        self.decoder.settle(&mut self.pool);
        black_box(&self.outbox);
    }
}

/// Runs `work`, which is `messages` messages, and prints what one of them takes.
fn measure(name: &str, messages: usize, mut work: impl FnMut()) {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            let mut done = 0;
            while start.elapsed() < ROUND {
                work();
                done += messages;
            }
            start.elapsed().as_nanos() as f64 / done as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!("{name:<44} {:>10.2} {:>10.2}", rounds[0], rounds[ROUNDS / 2]);
}
