//! One edge process: shards, mesh and uplink as the driver runs them, on the simulated network.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use hawser_edge::config::Config;
use hawser_edge::conn::{ConnKey, Peer};
use hawser_edge::mesh::{Mesh, UPLINK_SHARD};
use hawser_edge::routes::RouterIndex;
use hawser_edge::shard::{Event, Output, Shard, Share};
use hawser_edge::timer::Now;
use hawser_edge::uplink::{EdgeIdentity, UplinkOutput};
use hawser_edge::uplinks::Uplinks;
use hawser_edge::ws;
use hawser_proto::view::client::{SendAck, ServerFrame};

use crate::env::Env;
use crate::history::parse_name;
use crate::net::{Arrival, Side, StreamId};
use crate::router::Router;

/// Shards of an edge.
pub(crate) const SHARDS: u16 = 2;
/// `ECONNREFUSED`.
const REFUSED: i32 = 111;
/// `EPIPE`.
const BROKEN_PIPE: i32 = 32;

/// See the module.
pub(crate) struct Edge {
    shards: Vec<Station>,
    mesh: Mesh,
    uplinks: Uplinks,
    /// By router.
    links: Vec<Link>,
    skew_ms: i64,
}

/// The socket of a link.
#[derive(Default)]
struct Link {
    stream: Option<StreamId>,
    /// What the uplink sends and the network has not taken.
    sending: Option<Vec<u8>>,
}

/// One shard with its sockets, by direct descriptor.
struct Station {
    shard: Shard,
    sockets: Vec<Option<Socket>>,
    accepting: VecDeque<StreamId>,
}

struct Socket {
    stream: StreamId,
    receiving: Option<ConnKey>,
    stopping: Option<ConnKey>,
    sending: Option<(ConnKey, Vec<u8>)>,
}

/// Knobs with everything short, so that much happens in little time.
pub(crate) fn config() -> Arc<Config> {
    Arc::new(Config {
        connections_max: 1_000,
        shards: Some(usize::from(SHARDS)),
        ping_interval_active: Duration::from_secs(2),
        missed_beats_max: 1,
        ping_grace: Duration::from_secs(1),
        handshake_timeout: Duration::from_secs(2),
        connect_timeout: Duration::from_secs(2),
        close_timeout: Duration::from_secs(1),
        send_timeout: Duration::from_secs(2),
        sends_in_flight_max: 3,
        ..Config::default()
    })
}

impl Edge {
    /// An edge that has just started: every start has an epoch of its own.
    pub(crate) fn start(
        env: &mut Env,
        name: &str,
        config: &Arc<Config>,
        skew_ms: i64,
        routers: usize,
    ) -> Self {
        let now = env.edge_now(skew_ms);
        let station = |index| Station {
            shard: Shard::new(index, Arc::clone(config), Share::SMALL, Default::default(), now),
            sockets: Vec::new(),
            accepting: VecDeque::new(),
        };
        let epoch = env.rng.u64(1..);
        let identity = EdgeIdentity { edge_id: name.to_owned(), epoch, region: String::new() };
        Self {
            shards: (0..SHARDS).map(station).collect(),
            mesh: Mesh::new(usize::from(SHARDS)).expect("eventfds for two shards"),
            uplinks: Uplinks::new(&identity, routers as u8, SHARDS, epoch),
            links: (0..routers).map(|_| Link::default()).collect(),
            skew_ms,
        }
    }

    /// A client connects.
    pub(crate) fn accept(&mut self, env: &mut Env, stream: StreamId) {
        self.shards[env.rng.usize(..usize::from(SHARDS))].accepting.push_back(stream);
    }

    /// The stream of the link to a router, while there is one.
    pub(crate) fn link(&self, router: usize) -> Option<StreamId> {
        self.links[router].stream
    }

    /// The process dies: what it held is reset by its kernel.
    pub(crate) fn die(self, env: &mut Env) {
        let sockets = self.shards.iter().flat_map(|station| {
            let held = station.sockets.iter().flatten().map(|socket| socket.stream);
            held.chain(station.accepting.iter().copied())
        });
        for stream in sockets.chain(self.links.iter().filter_map(|link| link.stream)) {
            env.net.cut(&mut env.rng, stream);
        }
    }

    /// Some of its cores get to run. `routers` take new links, where there is a router.
    pub(crate) fn turn(&mut self, env: &mut Env, routers: &mut [Option<Router>]) {
        let now = env.edge_now(self.skew_ms);
        for index in 0..self.shards.len() {
            if env.calm || env.rng.u8(..4) > 0 {
                self.turn_shard(env, now, index);
            }
        }
        for index in 0..self.links.len() {
            self.receive(env, now, index);
        }
        self.uplinks.exchange(now, &self.mesh);
        for (index, router) in routers.iter_mut().enumerate() {
            self.send(env, now, index, router.as_mut());
        }
    }

    fn turn_shard(&mut self, env: &mut Env, now: Now, index: usize) {
        let Station { shard, sockets, accepting } = &mut self.shards[index];
        while let Some(stream) = accepting.pop_front() {
            let free = sockets.iter().position(Option::is_none);
            let number = free.unwrap_or(sockets.len());
            let socket = Socket { stream, receiving: None, stopping: None, sending: None };
            if number == sockets.len() {
                sockets.push(Some(socket));
            } else {
                sockets[number] = Some(socket);
            }
            shard.apply(now, Event::Accepted { socket: number as u32, peer: Peer::default() });
        }
        for socket in sockets.iter_mut().flatten() {
            socket.complete(env, now, shard);
        }
        if shard.poll_timeout().is_some_and(|due| due <= now.tick) {
            shard.handle_timeout(now);
        }
        shard.exchange(now, &self.mesh);
        while let Some(output) = shard.poll_output() {
            perform(env, sockets, output);
        }
    }

    fn receive(&mut self, env: &mut Env, now: Now, index: usize) {
        let (router, link) = (RouterIndex(index as u8), &mut self.links[index]);
        let Some(stream) = link.stream else { return };
        if self.uplinks.link(router).wants_input() {
            match env.net.read(env.ms, &mut env.rng, stream, Side::Opener) {
                Arrival::Nothing => {}
                Arrival::Bytes(bytes) => {
                    self.uplinks.handle_received(router, now, &self.mesh, &bytes);
                }
                Arrival::End(errno) => self.uplinks.link(router).handle_closed(now, errno),
            }
        }
        if env.net.has_room(stream, Side::Opener)
            && let Some(bytes) = link.sending.take()
        {
            env.net.write(env.ms, &mut env.rng, stream, Side::Opener, &bytes);
            self.uplinks.link(router).handle_sent(now, &self.mesh, bytes, Ok(()));
        }
    }

    fn send(&mut self, env: &mut Env, now: Now, index: usize, process: Option<&mut Router>) {
        let router = RouterIndex(index as u8);
        let mut connect = false;
        while let Some(output) = self.uplinks.link(router).poll_output(now) {
            match output {
                UplinkOutput::Connect => connect = true,
                UplinkOutput::Send(bytes) => self.links[index].sending = Some(bytes),
                UplinkOutput::Close => self.close_link(env, now, index),
            }
        }
        if connect {
            self.links[index].stream = process.map(|process| {
                let stream = env.net.open();
                process.links.accepting.push(stream);
                stream
            });
            let is_connected = self.links[index].stream.is_some();
            let result = if is_connected { Ok(()) } else { Err(REFUSED) };
            self.uplinks.link(router).handle_connected(now, result);
        }
    }

    fn close_link(&mut self, env: &mut Env, now: Now, index: usize) {
        let (router, link) = (RouterIndex(index as u8), &mut self.links[index]);
        if let Some(stream) = link.stream.take() {
            env.net.close(stream, Side::Opener);
        }
        if let Some(bytes) = link.sending.take() {
            self.uplinks.link(router).handle_sent(now, &self.mesh, bytes, Err(BROKEN_PIPE));
        }
    }
}

impl Socket {
    /// Tells the shard what the network has done for this socket.
    fn complete(&mut self, env: &mut Env, now: Now, shard: &mut Shard) {
        if let Some(key) = self.stopping.take() {
            shard.apply(now, Event::ReceiveStopped { key });
        }
        if env.net.has_room(self.stream, Side::Acceptor)
            && let Some((key, buffer)) = self.sending.take()
        {
            env.net.write(env.ms, &mut env.rng, self.stream, Side::Acceptor, &buffer);
            shard.apply(now, Event::Sent { key, buffer, result: Ok(()) });
        }
        let Some(key) = self.receiving else { return };
        match env.net.read(env.ms, &mut env.rng, self.stream, Side::Acceptor) {
            Arrival::Nothing => {}
            Arrival::Bytes(mut bytes) => {
                shard.apply(now, Event::Received { key, bytes: &mut bytes })
            }
            Arrival::End(errno) => {
                self.receiving = None;
                shard.apply(now, Event::Ended { key, errno });
            }
        }
    }
}

/// Does what a shard asks for.
fn perform(env: &mut Env, sockets: &mut [Option<Socket>], output: Output) {
    let place = |sockets: &mut [Option<Socket>], key: ConnKey| {
        sockets.iter().position(|s| s.as_ref().is_some_and(|s| s.receiving == Some(key)))
    };
    match output {
        Output::Receive { key, socket } => {
            if let Some(socket) = &mut sockets[socket as usize] {
                socket.receiving = Some(key);
            }
        }
        Output::StopReceive { key } => {
            if let Some(place) = place(sockets, key)
                && let Some(socket) = &mut sockets[place]
            {
                socket.receiving = None;
                socket.stopping = Some(key);
            }
        }
        Output::Send { key, socket, bytes, .. } => {
            if let Some(socket) = &mut sockets[socket as usize] {
                assert!(socket.sending.is_none(), "one send at a time");
                note_errors(env, &bytes);
                socket.sending = Some((key, bytes));
            }
        }
        Output::ShutdownWrite { socket } => {
            if let Some(socket) = &sockets[socket as usize] {
                env.net.close(socket.stream, Side::Acceptor);
            }
        }
        Output::Close { socket, .. } => {
            if let Some(socket) = sockets[socket as usize].take() {
                env.net.close(socket.stream, Side::Acceptor);
            }
        }
    }
}

/// Notes which sends are answered with an error: the answer may not reach the client.
fn note_errors(env: &mut Env, sent: &[u8]) {
    let head_bytes = if sent.starts_with(b"HTTP/1.1 101 ") {
        sent.windows(4).position(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4)
    } else if sent.starts_with(b"HTTP/1.1 ") {
        // A refusal, with a body.
        sent.len()
    } else {
        0
    };
    let mut frames = sent[head_bytes..].to_vec();
    let settings =
        ws::Settings { role: ws::Role::Client, message_bytes_max: 1 << 20, deflate: false };
    let (mut decoder, mut pool, mut at) = (ws::Decoder::default(), ws::Pool::default(), 0);
    while at < frames.len() {
        let next = decoder.next(&mut frames[at..], &settings, &mut pool);
        let (taken, item) = next.expect("an edge sends whole frames");
        at += taken;
        if let Some(ws::Item::Message { payload, .. }) = item
            && let Ok(ServerFrame::SendAck(SendAck { client_message_id, error: Some(_), .. })) =
                ServerFrame::read(payload)
            && let Some(name) = parse_name(client_message_id)
        {
            env.history.note_failed(&name);
        }
    }
}

/// Where the uplink runs, as the mesh has it.
const _: () = assert!(UPLINK_SHARD < SHARDS);
