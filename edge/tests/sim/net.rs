//! The network: ordered byte streams that are slow, arrive in pieces cut anywhere, fill up and break.

use std::collections::VecDeque;

use fastrand::Rng;

/// Bytes that one direction holds before its writer has to wait.
const PIPE_BYTES_MAX: usize = 4 * 1024;
/// Longest way of a byte, in milliseconds.
const DELAY_MS_MAX: u64 = 60;
/// `ECONNRESET`.
const RESET: i32 = 104;

/// Names a stream for the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamId(usize);

/// The two ends of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Who connected.
    Opener = 0,
    /// Who was connected to.
    Acceptor = 1,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Nothing yet.
    Nothing,
    /// Some of what was written.
    Bytes(Vec<u8>),
    /// The end, with an error number; 0 when the other side closed. Told again when asked again.
    End(i32),
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Net {
    /// By stream; the pipe from the opener, then the one from the acceptor.
    streams: Vec<[Pipe; 2]>,
}

#[derive(Debug, Default)]
struct Pipe {
    /// When it arrives, and what.
    chunks: VecDeque<(u64, Vec<u8>)>,
    bytes: usize,
    end: Option<i32>,
    /// Nothing comes through any more, and nobody is told.
    dark: bool,
}

impl Net {
    /// A new stream.
    pub(crate) fn open(&mut self) -> StreamId {
        self.streams.push(Default::default());
        StreamId(self.streams.len() - 1)
    }

    /// Writes; where the stream is broken the bytes are lost, as in a kernel's buffer.
    pub(crate) fn write(&mut self, ms: u64, rng: &mut Rng, id: StreamId, from: Side, bytes: &[u8]) {
        let pipe = &mut self.streams[id.0][from as usize];
        if pipe.end.is_some() || pipe.dark || bytes.is_empty() {
            return;
        }
        let before = pipe.chunks.back().map_or(0, |(due, _)| *due);
        let due = before.max(ms + rng.u64(1..=DELAY_MS_MAX));
        pipe.chunks.push_back((due, bytes.to_vec()));
        pipe.bytes += bytes.len();
    }

    /// Whether a writer on this side may write more.
    pub(crate) fn has_room(&self, id: StreamId, from: Side) -> bool {
        self.streams[id.0][from as usize].bytes < PIPE_BYTES_MAX
    }

    /// Reads on this side what has arrived, or a part of it.
    pub(crate) fn read(&mut self, ms: u64, rng: &mut Rng, id: StreamId, side: Side) -> Arrival {
        let pipe = &mut self.streams[id.0][1 - side as usize];
        if pipe.dark {
            return Arrival::Nothing;
        }
        match pipe.chunks.front_mut() {
            Some((due, bytes)) if *due <= ms => {
                let whole = rng.u8(..4) > 0;
                let count = if whole { bytes.len() } else { rng.usize(1..=bytes.len()) };
                let part: Vec<u8> = bytes.drain(..count).collect();
                if bytes.is_empty() {
                    pipe.chunks.pop_front();
                }
                pipe.bytes -= part.len();
                Arrival::Bytes(part)
            }
            Some(_) => Arrival::Nothing,
            None => pipe.end.map_or(Arrival::Nothing, Arrival::End),
        }
    }

    /// Closes this side: the other reads what is on its way, then the end.
    pub(crate) fn close(&mut self, id: StreamId, side: Side) {
        let pipe = &mut self.streams[id.0][side as usize];
        pipe.end = pipe.end.or(Some(0));
    }

    /// Breaks the stream: of what is on its way some arrives, then both sides read an error.
    pub(crate) fn cut(&mut self, rng: &mut Rng, id: StreamId) {
        for pipe in &mut self.streams[id.0] {
            let mut left = rng.usize(..=pipe.bytes);
            for (_, bytes) in &mut pipe.chunks {
                bytes.truncate(left);
                left -= bytes.len();
            }
            pipe.chunks.retain(|(_, bytes)| !bytes.is_empty());
            pipe.bytes = pipe.chunks.iter().map(|(_, bytes)| bytes.len()).sum();
            pipe.end = Some(RESET);
        }
    }

    /// Both directions go dark: each side has to find out by the other's silence.
    pub(crate) fn lose(&mut self, id: StreamId) {
        for pipe in &mut self.streams[id.0] {
            *pipe = Pipe { dark: true, ..Pipe::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_in_order_and_a_cut_leaves_a_prefix() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..200 {
            let mut net = Net::default();
            let id = net.open();
            let text = b"a stream of bytes";
            for byte in text.chunks(3) {
                net.write(0, &mut rng, id, Side::Opener, byte);
            }
            net.cut(&mut rng, id);
            let mut read = Vec::new();
            loop {
                match net.read(1_000, &mut rng, id, Side::Acceptor) {
                    Arrival::Bytes(bytes) => read.extend(bytes),
                    Arrival::End(errno) => break assert_eq!(errno, RESET),
                    Arrival::Nothing => panic!("no end"),
                }
            }
            assert!(text.starts_with(&read));
        }
    }
}
