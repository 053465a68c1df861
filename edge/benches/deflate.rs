//! What permessage-deflate costs and saves, beside zlib-rs used directly on the same bytes.
//!
//! `cargo bench -p hawser-edge --bench deflate`. Ours is a message written to an outbox and deflated there, or inflated and checked; the
//! direct one is a stream that is reset, given the payload and flushed, into memory that is there already; both notice a message that was cut. The two take turns, in rounds of
//! about 5 ms; each figure is the best of 41 rounds, which other load on the machine moves least. `ours/direct` is CPU time.
//!
//! With `-- levels` each level is measured on each payload; with `-- sizes` the default level on short messages, which is what
//! `--deflate-bytes-min` is chosen by.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use hawser_edge::config::Config;
use hawser_edge::ws::{Deflater, Inflater, Opcode, WindowBits, write_message};
use zlib_rs::{Deflate, DeflateFlush, Inflate, InflateFlush, Status};

const ROUNDS: usize = 41;
const ROUND: Duration = Duration::from_millis(5);
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What a message leaves out of its flushed stream (RFC 7692 section 7.2.1).
const FLUSH_TAIL: &[u8] = &[0x00, 0x00, 0xff, 0xff];
/// The same, and an empty last block: a stream that is not between two blocks there was cut.
const CLOSING: &[u8] = &[0x00, 0x00, 0xff, 0xff, 0x03, 0x00];
/// Header of a server's frame with more than 65,535 bytes.
const FRAME_BYTES_MAX: usize = 10;

fn main() {
    let level = Config::default().limit.deflate_level;
    let payloads = [
        ("JSON chat, 300 B", chat(300)),
        ("JSON chat, 2 KiB", chat(2 << 10)),
        ("text, 64 KiB", text(64 << 10)),
        ("random, 1 KiB", random(1 << 10)),
        ("random, 64 KiB", random(64 << 10)),
    ];
    match std::env::args().nth(1).as_deref() {
        Some("levels") => {
            let levels = (1..=9).flat_map(|level| payloads.iter().map(move |p| (level, p)));
            heading();
            levels.for_each(|(level, (name, payload))| compare(name, level, payload));
        }
        Some("sizes") => {
            heading();
            for bytes in [48, 64, 96, 128, 192, 256, 384, 512] {
                compare(&format!("JSON chat, {bytes} B"), level, &chat(bytes));
            }
        }
        _ => {
            heading();
            payloads.iter().for_each(|(name, payload)| compare(name, level, payload));
        }
    }
}

fn heading() {
    println!(
        "{:<20} {:>5} {:>9} {:>9} | {:>10} {:>10} {:>6} | {:>10} {:>10} {:>6}",
        "payload",
        "level",
        "ours",
        "direct",
        "deflate ns",
        "direct",
        "ratio",
        "inflate ns",
        "direct",
        "ratio"
    );
}

/// One line: sizes on the wire as a share of the payload, then the times.
fn compare(name: &str, level: u32, payload: &[u8]) {
    let (mut ours, mut direct) = (Ours::new(level), Direct::new(level, payload));
    let share = |bytes: usize| 100.0 * bytes as f64 / payload.len() as f64;
    let (ours_bytes, direct_bytes) = (ours.deflate(payload), direct.deflate(payload));
    let deflated = direct.deflated(direct_bytes).to_vec();

    let [ours_deflate, direct_deflate] = take_turns([
        &mut || {
            black_box(ours.deflate(black_box(payload)));
        },
        &mut || {
            black_box(direct.deflate(black_box(payload)));
        },
    ]);
    let [ours_inflate, direct_inflate] =
        take_turns([&mut || ours.inflate(black_box(&deflated)), &mut || {
            direct.inflate(black_box(&deflated))
        }]);
    println!(
        "{name:<20} {level:>5} {:>7.1} % {:>7.1} % | {ours_deflate:>10.0} {direct_deflate:>10.0} {:>6.2} | \
         {ours_inflate:>10.0} {direct_inflate:>10.0} {:>6.2}",
        share(ours_bytes),
        share(direct_bytes),
        ours_deflate / direct_deflate,
        ours_inflate / direct_inflate,
    );
}

/// What a shard does.
struct Ours {
    deflater: Deflater,
    inflater: Inflater,
    outbox: Vec<u8>,
}

impl Ours {
    fn new(level: u32) -> Self {
        let deflater = Deflater::new(level, 0);
        Self { deflater, inflater: Inflater::default(), outbox: Vec::new() }
    }

    /// Returns what goes over the wire, without the frame's header.
    fn deflate(&mut self, payload: &[u8]) -> usize {
        self.outbox.clear();
        write_message(&mut self.outbox, Opcode::Binary, payload);
        let header_bytes = self.outbox.len() - payload.len();
        self.deflater.deflate_message(&mut self.outbox, 0, Some(WindowBits::MAX));
        self.outbox.len() - header_bytes
    }

    fn inflate(&mut self, deflated: &[u8]) {
        black_box(self.inflater.inflate(false, deflated, MESSAGE_BYTES_MAX))
            .expect("a good stream");
    }
}

/// zlib-rs as it comes.
struct Direct {
    deflate: Deflate,
    inflate: Inflate,
    deflated: Vec<u8>,
    inflated: Vec<u8>,
}

impl Direct {
    fn new(level: u32, payload: &[u8]) -> Self {
        Self {
            deflate: Deflate::new(level as i32, false, 15),
            inflate: Inflate::new(false, 15),
            // Level 1 has nine bits for half of all bytes.
            deflated: vec![0; payload.len() + payload.len() / 6 + 64],
            inflated: vec![0; payload.len() + FRAME_BYTES_MAX],
        }
    }

    fn deflate(&mut self, payload: &[u8]) -> usize {
        self.deflate.reset();
        let status = self.deflate.compress(payload, &mut self.deflated, DeflateFlush::SyncFlush);
        assert_eq!(status, Ok(Status::Ok));
        self.deflate.total_out() as usize - FLUSH_TAIL.len()
    }

    fn deflated(&self, bytes: usize) -> &[u8] {
        &self.deflated[..bytes]
    }

    fn inflate(&mut self, deflated: &[u8]) {
        self.inflate.reset(false);
        let mut status = Ok(Status::Ok);
        for input in [deflated, CLOSING] {
            let at = self.inflate.total_out() as usize;
            let out = &mut self.inflated[at..];
            status = self.inflate.decompress(input, out, InflateFlush::NoFlush);
        }
        assert_eq!(status, Ok(Status::StreamEnd));
        black_box(&self.inflated);
    }
}

/// The best time of one call of each, in nanoseconds, over rounds in which they take turns.
fn take_turns<const N: usize>(mut works: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut best = [f64::INFINITY; N];
    for _ in 0..ROUNDS {
        for (work, best) in works.iter_mut().zip(&mut best) {
            let start = Instant::now();
            let mut calls = 0;
            while start.elapsed() < ROUND {
                work();
                calls += 1;
            }
            *best = best.min(start.elapsed().as_nanos() as f64 / f64::from(calls));
        }
    }
    best
}

const WORDS: &str = "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they \
    which one you were all her she there would their we him been has when who will no more if out so up said what its about than \
    into them can only other time new some could these two may first then do any like my now over such our man me even most made \
    after also well did many before must years back through where much your way down should because long each just people those";

/// Words as often as language has them: the n-th about as often as 1/n says.
fn words(bytes: usize, seed: u64) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut text = String::new();
    while text.len() < bytes {
        let at = (words.len() as f64).powf(random.f64()) as usize - 1;
        text += words[at.min(words.len() - 1)];
        text.push(if random.u8(..12) == 0 { '\n' } else { ' ' });
    }
    text.truncate(bytes);
    text
}

fn text(bytes: usize) -> Vec<u8> {
    words(bytes, 7).into_bytes()
}

/// What a client that speaks JSON is told, its payload as JSON of the application's own.
fn chat(bytes: usize) -> Vec<u8> {
    let mut json = String::from(
        r#"{"deliver":{"sequence":"1027","messageId":"184467440737","from":"user-4711","timeMs":"1790000000123","text":""#,
    );
    let rest = bytes.saturating_sub(json.len() + 3);
    json += &words(rest, 11).replace('\n', " ");
    json += "\"}}";
    json.truncate(bytes);
    json.into_bytes()
}

fn random(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(3);
    (0..bytes).map(|_| random.u8(..)).collect()
}
