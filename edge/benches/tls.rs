//! What TLS costs a server beside rustls alone: CPU time of the server's half, the client's not counted.
//!
//! `cargo bench -p hawser-edge --bench tls`. Both servers run in one thread, over memory, by turns, with the same
//! certificate (ECDSA P-256), the same config and the same clients. Each line: the medians of the rounds, and the median of
//! the ratios within a round; above 1.0 we are faster.

use std::cell::RefCell;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::rc::Rc;
use std::sync::Arc;

use hawser_edge::certs;
use hawser_edge::config::TlsKnobs;
use hawser_edge::tls::{Item, Shared, Tls};
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, NoKeyLog, RootCertStore, ServerConfig, ServerConnection,
};

const ROUNDS: usize = 15;
/// Handshakes of each server a round.
const HANDSHAKES: usize = 150;
/// Echoes of each server a round.
const ECHOES: usize = 5_000;
/// Connections that speak by turns where no AEAD context can be kept.
const CROWD: usize = 2_000;
const BULK_BYTES: usize = 64 * 1024;
const BULKS: usize = 200;

fn main() {
    let world = World::new();
    println!("{:<46} {:>12} {:>12} {:>7}", "", "ours", "rustls", "ratio");
    for (name, resumed) in [("full handshakes a CPU second", false), ("resumed", true)] {
        let rates = rounds(|| {
            let seconds = [
                world.handshakes::<Ours>(resumed, HANDSHAKES),
                world.handshakes::<Theirs>(resumed, HANDSHAKES),
            ];
            seconds.map(|seconds| HANDSHAKES as f64 / seconds)
        });
        report(name, rates, "");
    }
    let (mut ours, mut theirs) = (world.pair::<Ours>(), world.pair::<Theirs>());
    let rates = rounds(|| {
        [
            echoes(std::slice::from_mut(&mut ours), ECHOES),
            echoes(std::slice::from_mut(&mut theirs), ECHOES),
        ]
    });
    report("echoes of 64 bytes a CPU second", rates, "");
    let mut crowds = (world.crowd::<Ours>(), world.crowd::<Theirs>());
    let rates = rounds(|| [echoes(&mut crowds.0, CROWD), echoes(&mut crowds.1, CROWD)]);
    report(&format!("the same, {CROWD} connections by turns"), rates, "");
    let rates = rounds(|| [bulk_open(&mut ours), bulk_open(&mut theirs)]);
    report("open 64 KiB", rates, "MB/s");
    let rates = rounds(|| [bulk_seal(&mut ours), bulk_seal(&mut theirs)]);
    report("seal 64 KiB", rates, "MB/s");
}

/// Rates of both servers in one round after the other; the first, in which memory is taken, does not count.
fn rounds(mut round: impl FnMut() -> [f64; 2]) -> Vec<[f64; 2]> {
    round();
    (0..ROUNDS).map(|_| round()).collect()
}

fn report(name: &str, rates: Vec<[f64; 2]>, unit: &str) {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let [ours, theirs] = [0, 1].map(|at| median(rates.iter().map(|rates| rates[at]).collect()));
    let ratio = median(rates.iter().map(|[ours, theirs]| ours / theirs).collect());
    println!("{name:<46} {ours:>12.0} {theirs:>12.0} {ratio:>7.3} {unit}");
}

/// CPU time of this thread, in seconds, that `work` takes.
fn cpu_seconds<T>(total: &mut f64, work: impl FnOnce() -> T) -> T {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let start = now();
    let result = work();
    *total += now() - start;
    result
}

/// One end of a connection, the server's, as a loop over sockets would drive it.
trait Server {
    fn accept(world: &World) -> Self;
    /// Takes what came from the network, and appends what goes out to `out`; data goes to `data`.
    fn receive(
        &mut self,
        shared: &mut Shared,
        input: &mut [u8],
        data: &mut Vec<u8>,
        out: &mut Vec<u8>,
    );
    fn send(&mut self, shared: &mut Shared, data: &[u8], out: &mut Vec<u8>);
    fn is_open(&self) -> bool;
}

struct Ours(Tls);

impl Server for Ours {
    fn accept(_world: &World) -> Self {
        Self(Tls::accept())
    }

    fn receive(
        &mut self,
        shared: &mut Shared,
        input: &mut [u8],
        data: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        let mut at = 0;
        while at < input.len() {
            let (taken, item) = self.0.next(shared, &mut input[at..]).expect("a good client");
            if let Some(Item::Data(bytes)) = item {
                data.extend_from_slice(bytes);
            }
            at += taken;
        }
        self.0.settle(shared);
        if self.0.wants_send() {
            self.send(shared, b"", out);
        }
    }

    fn send(&mut self, shared: &mut Shared, data: &[u8], out: &mut Vec<u8>) {
        self.0.seal(shared, data, out).expect("keys that last");
    }

    fn is_open(&self) -> bool {
        self.0.is_open()
    }
}

struct Theirs(ServerConnection);

impl Server for Theirs {
    fn accept(world: &World) -> Self {
        let mut connection =
            ServerConnection::new(Arc::clone(&world.rustls)).expect("a connection");
        connection.set_buffer_limit(None);
        Self(connection)
    }

    fn receive(
        &mut self,
        _: &mut Shared,
        mut input: &mut [u8],
        data: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        while !input.is_empty() {
            let mut reader = &*input;
            let taken = self.0.read_tls(&mut reader).expect("memory");
            let state = self.0.process_new_packets().expect("a good client");
            let bytes = state.plaintext_bytes_to_read();
            let from = data.len();
            data.resize(from + bytes, 0);
            self.0.reader().read_exact(&mut data[from..]).expect("what there is");
            input = &mut input[taken..];
        }
        while self.0.wants_write() {
            self.0.write_tls(out).expect("memory");
        }
    }

    fn send(&mut self, _: &mut Shared, data: &[u8], out: &mut Vec<u8>) {
        self.0.writer().write_all(data).expect("no limit");
        while self.0.wants_write() {
            self.0.write_tls(out).expect("memory");
        }
    }

    fn is_open(&self) -> bool {
        !self.0.is_handshaking()
    }
}

type SharedCell = Rc<RefCell<Shared>>;

/// A server, a client of it, and the buffers between them.
struct Pair<S> {
    server: S,
    shared: SharedCell,
    client: ClientConnection,
    data: Vec<u8>,
    out: Vec<u8>,
}

struct World {
    ours: Arc<ServerConfig>,
    rustls: Arc<ServerConfig>,
    roots: RootCertStore,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let made =
            rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        let (cert, key) = (folder.path().join("cert"), folder.path().join("key"));
        std::fs::write(&cert, made.cert.pem()).expect("a file");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("a file");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&cert).expect("PEM")).expect("a root");
        let knobs = TlsKnobs { tls_cert: vec![cert], tls_key: vec![key], ..TlsKnobs::default() };
        let ours = certs::load(&knobs).expect("good files").config;
        let mut rustls = ServerConfig::clone(&ours);
        rustls.key_log = Arc::new(NoKeyLog);
        rustls.enable_secret_extraction = false;
        Self { ours, rustls: Arc::new(rustls), roots }
    }

    fn client_config(&self) -> Arc<ClientConfig> {
        let config = ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ));
        let config = config.with_protocol_versions(&[&rustls::version::TLS13]).expect("a version");
        Arc::new(config.with_root_certificates(self.roots.clone()).with_no_client_auth())
    }

    fn shared(&self) -> SharedCell {
        Rc::new(RefCell::new(Shared::new(Arc::clone(&self.ours))))
    }

    /// CPU time of the server for so many handshakes.
    fn handshakes<S: Server>(&self, resumed: bool, count: usize) -> f64 {
        let shared = self.shared();
        let config = self.client_config();
        if resumed {
            // Fetches the first ticket.
            self.connect::<S>(&config, &shared, &mut 0.0);
        }
        let mut seconds = 0.0;
        for _ in 0..count {
            let config = if resumed { Arc::clone(&config) } else { self.client_config() };
            let pair = self.connect::<S>(&config, &shared, &mut seconds);
            let kind = pair.client.handshake_kind();
            assert_eq!(kind == Some(rustls::HandshakeKind::Resumed), resumed);
            // What a handshake needed is freed sooner by ours, at the end of the connection by rustls.
            cpu_seconds(&mut seconds, || drop(pair.server));
        }
        seconds
    }

    fn connect<S: Server>(
        &self,
        config: &Arc<ClientConfig>,
        shared: &SharedCell,
        seconds: &mut f64,
    ) -> Pair<S> {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut client = ClientConnection::new(Arc::clone(config), name).expect("a client");
        client.set_buffer_limit(None);
        let mut server = cpu_seconds(seconds, || S::accept(self));
        let (mut data, mut out) = (Vec::new(), Vec::new());
        while client.is_handshaking() || !server.is_open() {
            let mut input = sent(&mut client);
            out.clear();
            cpu_seconds(seconds, || {
                server.receive(&mut shared.borrow_mut(), &mut input, &mut data, &mut out);
            });
            give(&mut client, &out);
        }
        Pair { server, shared: Rc::clone(shared), client, data, out }
    }

    fn pair<S: Server>(&self) -> Pair<S> {
        let shared = self.shared();
        self.connect(&self.client_config(), &shared, &mut 0.0)
    }

    fn crowd<S: Server>(&self) -> Vec<Pair<S>> {
        let shared = self.shared();
        let config = self.client_config();
        (0..CROWD).map(|_| self.connect(&config, &shared, &mut 0.0)).collect()
    }
}

/// Echoes of 64 bytes a CPU second, the pairs by turns.
fn echoes<S: Server>(pairs: &mut [Pair<S>], count: usize) -> f64 {
    let message = [7; 64];
    let mut seconds = 0.0;
    for at in 0..count {
        let Pair { server, shared, client, data, out } = &mut pairs[at % pairs.len()];
        client.writer().write_all(&message).expect("memory");
        let mut input = sent(client);
        data.clear();
        out.clear();
        cpu_seconds(&mut seconds, || {
            let shared = &mut *shared.borrow_mut();
            server.receive(shared, &mut input, data, out);
            server.send(shared, data, out);
        });
        assert_eq!(data.len(), message.len());
        give(client, out);
    }
    count as f64 / seconds
}

fn bulk_open<S: Server>(pair: &mut Pair<S>) -> f64 {
    let message = vec![7; BULK_BYTES];
    let mut seconds = 0.0;
    for _ in 0..BULKS {
        let Pair { server, shared, client, data, out } = &mut *pair;
        client.writer().write_all(&message).expect("memory");
        let mut input = sent(client);
        data.clear();
        cpu_seconds(&mut seconds, || {
            server.receive(&mut shared.borrow_mut(), &mut input, data, out);
        });
        assert_eq!(data.len(), message.len());
    }
    (BULKS * BULK_BYTES) as f64 / seconds / 1e6
}

fn bulk_seal<S: Server>(pair: &mut Pair<S>) -> f64 {
    let message = vec![7; BULK_BYTES];
    let mut seconds = 0.0;
    for _ in 0..BULKS {
        let Pair { server, shared, client, out, .. } = &mut *pair;
        out.clear();
        cpu_seconds(&mut seconds, || {
            server.send(&mut shared.borrow_mut(), black_box(&message), out);
        });
        give(client, out);
    }
    (BULKS * BULK_BYTES) as f64 / seconds / 1e6
}

fn sent(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).expect("memory");
    }
    bytes
}

/// Gives the client what the server sent; data is thrown away.
fn give(client: &mut ClientConnection, mut bytes: &[u8]) {
    let mut data = [0; 32 * 1024];
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).expect("memory");
        client.process_new_packets().expect("a good server");
        while client.reader().read(&mut data).is_ok_and(|bytes| bytes > 0) {}
    }
}
