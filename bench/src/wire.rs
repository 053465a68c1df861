//! A wire between edges and one router, which can be cut and blocked: a TCP proxy.
//!
//! A thread accepts, two more move the bytes of each link. They look at the wire's state at least every 20 ms.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

/// Longest time until a thread sees that something changed.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What a wire does with what comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// It passes it on.
    Whole,
    /// Links are closed, and so are new ones.
    Cut,
    /// Nothing gets through, and nobody is told.
    Blocked,
}

/// See the module. Dropping it ends the threads soon.
#[derive(Debug)]
pub(crate) struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: AtomicU8,
    ended: AtomicBool,
}

impl Shared {
    fn is(&self, state: State) -> bool {
        // Nothing else is published with it.
        self.state.load(Ordering::Relaxed) == state as u8
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

impl Wire {
    /// A whole wire to `router`.
    ///
    /// # Errors
    /// No port is to be had.
    pub(crate) fn new(router: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let state = AtomicU8::new(State::Whole as u8);
        let shared = Arc::new(Shared { state, ended: AtomicBool::new(false) });
        let wire = Arc::clone(&shared);
        std::thread::Builder::new().name("wire".to_owned()).spawn(move || {
            for edge in listener.incoming() {
                if wire.is_ended() {
                    return;
                }
                if let Ok(edge) = edge {
                    // What does not come about is a link that was closed.
                    let _ = connect(edge, router, &wire);
                }
            }
        })?;
        Ok(Self { address, shared })
    }

    /// Where edges connect to.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn set(&self, state: State) {
        self.shared.state.store(state as u8, Ordering::Relaxed);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn connect(edge: TcpStream, router: SocketAddr, wire: &Arc<Shared>) -> io::Result<()> {
    if wire.is(State::Cut) {
        return edge.shutdown(Shutdown::Both);
    }
    let router = TcpStream::connect(router)?;
    for (from, to) in [(edge.try_clone()?, router.try_clone()?), (router, edge)] {
        from.set_read_timeout(Some(LOOK_INTERVAL))?;
        to.set_nodelay(true)?;
        let wire = Arc::clone(wire);
        std::thread::Builder::new().name("wire".to_owned()).spawn(move || {
            // However it ended, both ends hear of it.
            let _ = pass_on(&from, &to, &wire);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        })?;
    }
    Ok(())
}

fn pass_on(mut from: &TcpStream, mut to: &TcpStream, wire: &Shared) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    while !wire.is_ended() && !wire.is(State::Cut) {
        let count = match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        while wire.is(State::Blocked) && !wire.is_ended() {
            #[expect(
                clippy::disallowed_methods,
                reason = "a wire that is blocked has nothing to do"
            )]
            std::thread::sleep(LOOK_INTERVAL);
        }
        if wire.is(State::Cut) {
            return Ok(());
        }
        to.write_all(&bytes[..count])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_over_a_blocked_wire_arrives_when_it_is_whole_again_and_a_cut_one_closes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let wire = Wire::new(listener.local_addr().unwrap()).unwrap();
        let mut edge = TcpStream::connect(wire.address()).unwrap();
        let (mut router, _) = listener.accept().unwrap();
        let mut heard = [0; 1];
        wire.set(State::Blocked);
        edge.write_all(b"a").unwrap();
        router.set_read_timeout(Some(5 * LOOK_INTERVAL)).unwrap();
        assert!(router.read(&mut heard).is_err());
        wire.set(State::Whole);
        router.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        router.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"a");
        wire.set(State::Cut);
        assert_eq!(router.read(&mut heard).unwrap_or(0), 0);
        let mut again = TcpStream::connect(wire.address()).unwrap();
        again.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(again.read(&mut heard).unwrap_or(0), 0);
    }
}
