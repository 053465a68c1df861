//! Independent clients speak to the real edge and router: Python's `websockets`, Node's `ws`.
//!
//! The scripts are in `clients/`; `make test` installs what they need into the target folder. What they
//! check is written there, as assertions; here the processes are started, timed and ended.
#![expect(clippy::disallowed_methods, reason = "a test of processes waits by the clock")]

mod link_tls;

use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest time a process takes to listen, or a script to come to its end.
const PATIENCE: Duration = Duration::from_secs(60);

const PROTOBUF: &str = "hawser.v1.proto";
const JSON: &str = "hawser.v1.json";

#[test]
fn python_speaks_protobuf() {
    let hawser = Hawser::start();
    run(python("conversation.py").args([&hawser.url("/ws"), PROTOBUF, PROTOBUF]));
}

#[test]
fn python_speaks_json() {
    let hawser = Hawser::start();
    run(python("conversation.py").args([&hawser.url("/ws"), JSON, JSON]));
}

#[test]
fn a_python_client_in_protobuf_and_one_in_json_understand_each_other() {
    let hawser = Hawser::start();
    run(python("conversation.py").args([&hawser.url("/ws"), PROTOBUF, JSON]));
}

#[test]
fn node_speaks_json() {
    let hawser = Hawser::start();
    run(node("conversation.mjs").arg(hawser.url("/ws")).arg(clients()));
}

#[test]
fn frames_of_python_come_back_from_the_echo_path() {
    let hawser = Hawser::start();
    run(python("framing.py").arg(hawser.url("/echo")));
}

#[test]
fn python_and_node_say_the_same_with_compression() {
    let hawser = Hawser::start_with(&["--deflate"]);
    run(python("framing.py").args([&hawser.url("/echo"), "deflate"]));
    for alices in [PROTOBUF, JSON] {
        // Another edge: the conversation counts from an empty inbox.
        let hawser = Hawser::start_with(&["--deflate", "--deflate-bytes-min", "0"]);
        run(python("conversation.py").args([&hawser.url("/ws"), alices, JSON, "deflate"]));
    }
    let hawser = Hawser::start_with(&["--deflate"]);
    run(node("conversation.mjs").arg(hawser.url("/ws")).arg(clients()).arg("deflate"));
}

#[test]
fn python_and_node_say_the_same_over_tls() {
    let authority = Authority::new();
    let run = |command: &mut Command| {
        let trusted = authority.certificate();
        run(command.env("SSL_CERT_FILE", &trusted).env("NODE_EXTRA_CA_CERTS", &trusted));
    };
    let hawser = authority.start(&[]);
    run(python("framing.py").arg(hawser.url("/echo")));
    run(python("conversation.py").args([&hawser.url("/ws"), PROTOBUF, JSON]));
    let hawser = authority.start(&["--deflate"]);
    run(node("conversation.mjs").arg(hawser.url("/ws")).arg(clients()).arg("deflate"));
}

#[test]
fn curl_is_upgraded_over_tls_and_told_400_without_it() {
    let authority = Authority::new();
    let hawser = authority.start(&[]);
    let ask = |scheme: &str, path: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--include", "--max-time", "20", "--http1.1", "--cacert"]);
        curl.arg(authority.certificate()).args(more);
        said(curl.arg(format!("{scheme}://{}{path}", hawser.listen)))
    };
    assert!(ask("https", "/nowhere", &[]).starts_with("HTTP/1.1 404 "));
    let plain = ask("http", "/ws", &[]);
    assert!(plain.starts_with("HTTP/1.1 400 ") && plain.contains("speaks TLS"), "{plain}");
    // It closes when it has the answer, because the client has said all it wants.
    let upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"];
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let headers: Vec<_> = upgrade.iter().chain([&key]).flat_map(|line| ["-H", line]).collect();
    let mut args = headers;
    args.extend(["--max-time", "2"]);
    let upgraded = ask("https", "/echo", &args);
    assert!(upgraded.starts_with("HTTP/1.1 101 "), "{upgraded}");
}

#[test]
fn openssl_verifies_the_certificate_in_both_versions_and_comes_back_with_a_ticket() {
    let authority = Authority::new();
    let hawser = authority.start(&[]);
    let session = authority.folder.path().join("session.pem");
    let ask = |version: &str, more: &[&str]| {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-connect", &hawser.listen.to_string(), "-ign_eof", version]);
        openssl.args(["-alpn", "http/1.1", "-verify_return_error", "-CAfile"]);
        openssl.arg(authority.certificate()).args(more);
        asked(&mut openssl, b"GET /nowhere HTTP/1.1\r\nHost: edge\r\n\r\n")
    };
    for (version, name) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let path = session.to_str().expect("a path in UTF-8");
        let first = ask(version, &["-sess_out", path]);
        for line in ["Verify return code: 0 (ok)", "ALPN protocol: http/1.1", "HTTP/1.1 404 "] {
            assert!(first.contains(line), "{line} in {first}");
        }
        assert!(first.contains(&format!("New, {name}")), "{first}");
        let again = ask(version, &["-sess_in", path]);
        assert!(again.contains(&format!("Reused, {name}")), "{again}");
    }
    let old = ask("-tls1_1", &[]);
    // Not "404" alone: openssl begins a complaint with a number of its own.
    assert!(!old.contains("HTTP/1.1"), "{old}");
}

/// Whom the clients trust, and the edge that shows its certificate.
struct Authority {
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let write = |name: &str, text: String| {
            std::fs::write(folder.path().join(name), text).expect("room for a file");
        };
        write("edge.pem", made.cert.pem());
        write("edge.key", made.signing_key.serialize_pem());
        Self { folder }
    }

    fn certificate(&self) -> PathBuf {
        self.folder.path().join("edge.pem")
    }

    fn start(&self, flags: &[&str]) -> Hawser {
        let path = |name| self.folder.path().join(name).to_string_lossy().into_owned();
        let (cert, key) = (path("edge.pem"), path("edge.key"));
        let mut flags = flags.to_vec();
        flags.extend(["--tls-cert", &cert, "--tls-key", &key]);
        Hawser { scheme: "wss", ..Hawser::start_with(&flags) }
    }
}

/// What a program prints; how it ends does not matter.
fn said(command: &mut Command) -> String {
    asked(command, b"")
}

/// The same of one that is told something first.
fn asked(command: &mut Command, input: &[u8]) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    // One that has ended already does not listen.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().expect("its output");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// A router and an edge of this build on free ports, with a data folder of their own. Ended on drop.
struct Hawser {
    scheme: &'static str,
    listen: SocketAddr,
    _edge: Server,
    _router: Server,
    _data: tempfile::TempDir,
}

impl Hawser {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more flags for the edge.
    fn start_with(flags: &[&str]) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let edge_binary = Path::new(env!("CARGO_BIN_EXE_hawser-edge"));
        let router_binary = edge_binary.with_file_name("hawser-router");
        assert!(
            router_binary.exists(),
            "{} is missing: run `cargo build --workspace` first, as `make test` does",
            router_binary.display()
        );

        // Port 0 everywhere: the kernel chooses, and the log tells what it chose.
        let mut router = Command::new(router_binary);
        router.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        router.arg("--data-dir").arg(data.path().join("router"));
        let (router, link) = Server::start(router, data.path().join("router.log"), "serving");

        let mut edge = Command::new(edge_binary);
        edge.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--router"]);
        edge.arg(link.to_string())
            .args(["--dev-auth", "--echo-path", "/echo", "--shards", "2"])
            .args(flags);
        let (edge, listen) =
            Server::start(edge, data.path().join("edge.log"), "accepting connections");

        Self { scheme: "ws", listen, _edge: edge, _router: router, _data: data }
    }

    fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.listen)
    }
}

/// A process that listens. Killed on drop; when that comes from a failed test, its log is printed.
struct Server {
    child: Child,
    log: PathBuf,
}

impl Server {
    /// Returns when the log says `ready`, with the address that stands beside it.
    fn start(mut command: Command, log: PathBuf, ready: &str) -> (Self, SocketAddr) {
        let file = std::fs::File::create(&log).expect("a log file");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().expect("the binary starts");
        let mut server = Self { child, log };
        let address = within_patience(ready, || {
            let ended = server.child.try_wait().expect("a child to ask");
            assert!(ended.is_none(), "it ended with {ended:?} before it said {ready:?}");
            let log = std::fs::read_to_string(&server.log).expect("the log");
            listen_address(log.lines().find(|line| line.contains(ready))?)
        });
        (server, address)
    }
}

impl Server {
    /// Waits until its log has these words.
    fn says(&self, words: &str) {
        within_patience(words, || {
            let log = std::fs::read_to_string(&self.log).expect("the log");
            log.contains(words).then_some(())
        });
    }
}

/// The address in `.. listen=127.0.0.1:8080 ..`, with or without quotes.
fn listen_address(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listen=")?;
    rest.split_whitespace().next()?.trim_matches('"').parse().ok()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            eprintln!("---- {}\n{log}", self.log.display());
        }
    }
}

fn python(script: &str) -> Command {
    let mut command = Command::new(clients().join("venv/bin/python"));
    command.arg(scripts().join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

fn node(script: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(scripts().join(script));
    command
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Where `.ci/clients` installs: `clients/` of the target folder that this test was built into.
fn clients() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    test.ancestors().map(|folder| folder.join("clients")).find(|path| path.is_dir()).expect(
        "the independent clients are not installed: run .ci/clients first, as `make test` does",
    )
}

/// Runs a script to its end, which has to be a good one.
fn run(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stderr = child.stderr.take().expect("a pipe");
    // Read while it runs, so that a long complaint cannot block the script.
    let complaint = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().expect("a child to ask") {
            Some(status) => break Some(status),
            None if Instant::now() >= deadline => break None,
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    let complaint = complaint.join().expect("the reader");
    let Some(status) = status else { panic!("the script did not end in time:\n{complaint}") };
    assert!(status.success(), "{status}:\n{complaint}");
}

/// Asks until there is an answer.
fn within_patience<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
