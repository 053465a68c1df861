//! How the real `hawser-edge` is started: what is wrong ends with exit status 64 and one sentence that
//! names the knob; what is right serves, tells its health, and leaves on SIGTERM.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hawser_proto::framing;
use hawser_proto::link::router_message::Message as Said;
use hawser_proto::link::{Claim, HelloAck, Ownership, RouterBatch, RouterMessage};
use prost::Message as _;
use rustix::process::{Pid, Signal, kill_process};

/// Longest that anything here may take; a start takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Addresses that no other test has, and all that is needed to start.
const SOUND: [&str; 7] = [
    "--dev-auth",
    "--listen=127.0.0.1:0",
    "--admin=127.0.0.1:0",
    "--router=127.0.0.1:1",
    "--shards=1",
    "--connections-max=1000",
    "--log=info",
];

/// A running `hawser-edge` that does not outlive its test.
struct Edge(Child);

impl Edge {
    fn spawn(mut command: Command) -> Edge {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Edge(command.spawn().unwrap())
    }

    /// What it writes on stderr until it ends.
    fn said(&mut self) -> String {
        let mut stderr = self.0.stderr.take().unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut text = String::new();
            let outcome = stderr.read_to_string(&mut text);
            sender.send(outcome.map(|_| text))
        });
        receiver.recv_timeout(PATIENCE).expect("hawser-edge ends").unwrap()
    }

    /// The lines that it writes on stderr, as they come. The channel ends with the process.
    fn lines(&mut self) -> mpsc::Receiver<String> {
        let stderr = BufReader::new(self.0.stderr.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                // The test may have seen enough; reading goes on so that the edge can write.
                let _ = sender.send(line);
            }
        });
        receiver
    }

    fn terminate(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        self.0.wait().unwrap()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn hawser_edge() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser-edge"));
    command.env_clear().args(SOUND);
    command
}

/// Sound flags and then these; the later wins.
fn with(flags: &[&str]) -> Command {
    let mut command = hawser_edge();
    command.args(flags);
    command
}

/// Runs a command that has to be refused and returns the sentence without the program's name.
fn refusal(command: Command) -> String {
    let mut edge = Edge::spawn(command);
    let said = edge.said();
    assert_eq!(edge.0.wait().unwrap().code(), Some(64), "{said}");
    let mut sentences = said.lines().filter_map(|line| line.strip_prefix("hawser-edge: "));
    let sentence = sentences.next().unwrap_or_else(|| panic!("no sentence in {said}"));
    assert_eq!(sentences.next(), None, "{said}");
    assert!(said.ends_with(&format!("{sentence}\n")), "the sentence comes last: {said}");
    sentence.to_owned()
}

#[track_caller]
fn assert_names(sentence: &str, names: &[&str]) {
    for name in names {
        assert!(sentence.contains(name), "{name} is not named: {sentence}");
    }
}

#[test]
fn an_unknown_flag_is_named_and_the_near_one_offered() {
    let sentence = refusal(with(&["--ping-interval-activ=1s"]));
    assert!(sentence.starts_with("--ping-interval-activ: "), "{sentence}");
    assert_names(&sentence, &["--ping-interval-active"]);
    assert!(refusal(with(&["--zzz"])).starts_with("--zzz: "));
}

#[test]
fn an_unknown_key_is_named_with_its_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "ping_intervall = \"1s\"").unwrap();
    let path = file.path().to_str().unwrap();
    let sentence = refusal(with(&["--config", path]));
    assert!(sentence.starts_with("ping_intervall "), "{sentence}");
    assert_names(&sentence, &[path]);
}

#[test]
fn an_unknown_variable_is_named() {
    let mut command = hawser_edge();
    command.env("HAWSER_EDGE_PING_INTERVALL", "1s");
    assert!(refusal(command).starts_with("HAWSER_EDGE_PING_INTERVALL: "));
}

#[test]
fn a_bad_unit_is_told_with_what_is_allowed_wherever_it_was_written() {
    let flag = refusal(with(&["--ping-interval-active", "30x"]));
    assert!(flag.starts_with("--ping-interval-active: \"30x\" "), "{flag}");
    assert_names(&flag, &["30s", "allowed are 1s to "]);

    let size = refusal(with(&["--payload-bytes-max=64KX"]));
    assert!(size.starts_with("--payload-bytes-max: \"64KX\" "), "{size}");

    let mut command = hawser_edge();
    command.env("HAWSER_EDGE_PING_INTERVAL_IDLE", "1 fortnight");
    let variable = refusal(command);
    assert!(variable.starts_with("HAWSER_EDGE_PING_INTERVAL_IDLE: "), "{variable}");

    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "ping_interval_background = \"5 x\"").unwrap();
    let key = refusal(with(&["--config", file.path().to_str().unwrap()]));
    assert!(key.starts_with("ping_interval_background in "), "{key}");
}

#[test]
fn values_out_of_range_are_refused() {
    for flag in [
        "--connections-max=0",
        "--payload-bytes-max=2MiB",
        "--missed-beats-max=0",
        "--receive-buffers=1000",
        "--client-path=ws",
        "--router=nowhere",
        "--listen=localhost",
        "--log=a=b=c",
    ] {
        let sentence = refusal(with(&[flag]));
        let name = flag.split('=').next().unwrap();
        assert!(sentence.starts_with(&format!("{name}: ")), "{flag}: {sentence}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let sentence = refusal(with(&["--config", "/nowhere/edge.toml"]));
    assert!(sentence.starts_with("--config: /nowhere/edge.toml "), "{sentence}");
}

#[test]
fn a_port_that_is_taken_is_named_with_its_knob() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for knob in ["--listen", "--admin"] {
        let sentence = refusal(with(&[knob, &address]));
        assert!(sentence.starts_with(&format!("{knob}: ")), "{sentence}");
        assert_names(&sentence, &[&address]);
    }
}

#[test]
fn dev_auth_on_a_public_address_is_refused() {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let sentence = refusal(with(&["--listen", listen]));
        assert!(sentence.starts_with("--dev-auth: "), "{sentence}");
        assert_names(&sentence, &["--listen", listen]);
    }
}

#[test]
fn without_a_way_to_check_tokens_the_choices_are_named() {
    let sentence = refusal(with(&["--dev-auth=false"]));
    assert_names(
        &sentence,
        &["--jwt-key-file", "--jwt-hs256-key-file", "--jwt-jwks-url", "--auth-url"],
    );
    assert_names(&sentence, &["--dev-auth", "loopback"]);
}

#[test]
fn a_file_of_keys_that_is_no_good_is_named_with_its_knob() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "secret").unwrap();
    let path = file.path().to_str().unwrap();
    for knob in ["--jwt-key-file", "--jwt-hs256-key-file", "--jwt-jwks-file"] {
        for path in [path, "/nowhere/key"] {
            let sentence = refusal(with(&["--dev-auth=false", knob, path]));
            assert!(sentence.starts_with(&format!("{knob}: {path} ")), "{sentence}");
        }
    }
}

#[test]
fn an_echo_path_that_is_the_clients_path_is_refused() {
    let sentence = refusal(with(&["--echo-path=/ws"]));
    assert!(sentence.starts_with("--echo-path: "), "{sentence}");
    assert_names(&sentence, &["--client-path"]);
}

#[test]
fn too_few_descriptors_are_told_with_what_is_needed_and_what_to_raise() {
    let mut command = Command::new("bash");
    command
        .args(["-c", "ulimit -n 500; exec \"$@\"", "bash", env!("CARGO_BIN_EXE_hawser-edge")])
        .args(SOUND)
        .arg("--connections-max=3000");
    let sentence = refusal(command);
    assert!(sentence.starts_with("--connections-max: 3000 "), "{sentence}");
    assert_names(&sentence, &["500", "descriptors", "--shards", "ulimit -n", "tuning/"]);
}

#[test]
fn too_little_locked_memory_is_told_before_an_executor_fails_for_it() {
    let mut command = Command::new("bash");
    command
        .args(["-c", "ulimit -l 256; exec \"$@\"", "bash", env!("CARGO_BIN_EXE_hawser-edge")])
        .args(SOUND);
    let sentence = refusal(command);
    assert!(sentence.starts_with("memlock: "), "{sentence}");
    assert_names(&sentence, &["256 KiB", "512", "ulimit -l", "tuning/"]);
}

#[test]
fn help_and_version_are_given_on_stdout_with_status_0() {
    for (flag, text) in [("--help", "--ping-interval-active"), ("--version", "hawser-edge ")] {
        let output = with(&[flag]).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stderr.is_empty(), "{output:?}");
        assert!(String::from_utf8(output.stdout).unwrap().contains(text), "{flag}");
    }
}

#[test]
fn a_sound_edge_tells_its_health_and_its_metrics_and_leaves_on_sigterm() {
    // The admin address has to be known, and a port is free until it is given away.
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut edge = Edge::spawn(with(&["--admin", &admin.to_string()]));
    let lines = edge.lines();
    loop {
        let line = lines.recv_timeout(PATIENCE).expect("the edge starts");
        if line.contains("accepting connections") {
            break;
        }
    }

    // Nothing listens on the router's port.
    let health = get(admin, "/healthz");
    assert!(health.starts_with("HTTP/1.1 503 "), "{health}");
    assert_names(&health, &["router"]);

    let metrics = get(admin, "/metrics");
    assert!(metrics.starts_with("HTTP/1.1 200 "), "{metrics}");
    assert_names(&metrics.to_lowercase(), &["content-type: text/plain; version=0.0.4"]);
    let gauge = "# TYPE edge_connections gauge\nedge_connections 0\n";
    assert_names(&metrics, &[gauge, "\nedge_link_up{router=\"", "\nedge_partitions_unrouted 1\n"]);

    assert!(get(admin, "/nowhere").starts_with("HTTP/1.1 404 "));
    assert_eq!(edge.terminate().code(), Some(0));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a health check is asked until it has changed")]
fn with_several_routers_the_health_check_names_who_is_missing_and_what_nobody_serves() {
    let listeners = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let names = [0, 1].map(|at| listeners[at].local_addr().unwrap().to_string());
    let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser-edge"));
    command.env_clear().args(SOUND.iter().filter(|flag| !flag.starts_with("--router")));
    command.args(["--router", &names.join(","), "--admin", &admin.to_string()]);
    let mut edge = Edge::spawn(command);
    let lines = edge.lines();
    let [a, b] = listeners;
    let (mut to_a, mut to_b) = (greeted(&a), greeted(&b));
    let told = |health: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = get(admin, "/healthz");
            if answer.ends_with(&format!("\r\n\r\n{health}\n")) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{health} is awaited: {answer}");
        }
    };
    let nobody =
        "degraded: no router that is linked serves anybody, new clients cannot be registered";
    assert!(told(nobody).starts_with("HTTP/1.1 503 "));

    say(&mut to_a, [owned(&[(0, 1), (1, 1)])]);
    say(&mut to_b, [owned(&[(2, 1), (3, 1)])]);
    told("ok");
    let metrics = get(admin, "/metrics");
    for name in &names {
        assert_names(&metrics, &[&format!("\nedge_link_up{{router=\"{name}\"}} 1\n")]);
    }
    assert_names(&metrics, &["\nedge_partitions 4\n", "\nedge_partitions_unrouted 0\n"]);

    drop((b, to_b));
    let noted = std::iter::from_fn(|| lines.recv_timeout(PATIENCE).ok())
        .find(|line| line.contains("no link to the router"));
    let noted = noted.expect("a line in the log");
    assert!(noted.contains(&names[1]) && !noted.contains(&names[0]), "{noted}");
    let missing = format!("no link to {}", names[1]);
    let partly = told(&format!("degraded: no router serves 2 of 4 partitions; {missing}"));
    assert!(partly.starts_with("HTTP/1.1 200 "), "most clients can come: {partly}");
    say(&mut to_a, [owned(&[(0, 1), (1, 1), (2, 2), (3, 2)])]);
    told(&format!("degraded: {missing}"));

    drop((a, to_a));
    let none = "degraded: no link to a router, new clients cannot be registered";
    assert!(told(none).starts_with("HTTP/1.1 503 "));
    assert_eq!(edge.terminate().code(), Some(0));
}

/// A link whose Hello a router of 4 partitions has answered.
fn greeted(router: &TcpListener) -> TcpStream {
    let (mut link, _) = router.accept().unwrap();
    link.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = [0; framing::LENGTH_BYTES];
    link.read_exact(&mut bytes).unwrap();
    let mut hello = vec![0; u32::from_le_bytes(bytes) as usize];
    link.read_exact(&mut hello).unwrap();
    let ack = HelloAck { protocol: 1, lease_ms: 60_000, partitions: 4, ..HelloAck::default() };
    say(&mut link, [Said::HelloAck(ack)]);
    link
}

fn owned(claims: &[(u32, u64)]) -> Said {
    let claim = |&(partition, epoch)| Claim { partition, epoch };
    Said::Ownership(Ownership { partitions: 4, claims: claims.iter().map(claim).collect() })
}

fn say<const N: usize>(link: &mut TcpStream, messages: [Said; N]) {
    let messages = messages.map(|message| RouterMessage { message: Some(message) });
    let mut frame = Vec::new();
    let mark = framing::begin_frame(&mut frame);
    RouterBatch { messages: messages.into() }.encode(&mut frame).unwrap();
    framing::finish_frame(&mut frame, mark);
    link.write_all(&frame).unwrap();
}

/// The whole answer to a GET request.
fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
