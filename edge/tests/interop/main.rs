//! Independent clients speak to the real edge and router: Python's `websockets`, Node's `ws`.
//!
//! The scripts are in `clients/`; `make test` installs what they need into the target folder. What they
//! check is written there, as assertions; here the processes are started, timed and ended.
#![expect(clippy::disallowed_methods, reason = "a test of processes waits by the clock")]

mod link_tls;

use std::io::Read;
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

/// A router and an edge of this build on free ports, with a data folder of their own. Ended on drop.
struct Hawser {
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

        Self { listen, _edge: edge, _router: router, _data: data }
    }

    fn url(&self, path: &str) -> String {
        format!("ws://{}{path}", self.listen)
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
