//! What the tests of this binary start: router, edges, foreign programs; and a client that speaks JSON.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

/// Longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Asks until there is an answer.
pub(crate) fn within_patience<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A process and all that it starts, killed on drop; when that comes from a failed test, its log is printed.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// What it writes goes to a log in `folder`.
    pub(crate) fn start(name: &str, mut command: Command, folder: &Path) -> Process {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.process_group(0).spawn().unwrap_or_else(|e| panic!("{name}: {e}"));
        Process { child, log }
    }

    /// Waits until the log has a line with `ready`, and returns it.
    pub(crate) fn says(&mut self, ready: &str) -> String {
        within_patience(ready, || {
            let ended = self.child.try_wait().unwrap();
            let log = self.log();
            assert!(ended.is_none(), "ended with {ended:?} before it said {ready:?}:\n{log}");
            log.lines().find(|line| line.contains(ready)).map(str::to_owned)
        })
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        within_patience("a process to end", || self.child.try_wait().unwrap())
    }

    /// SIGKILL, to it and to all that it has started.
    pub(crate) fn kill(&mut self) {
        // Fails only for what has ended, which is what is wanted.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), self.log());
        }
    }
}

/// A router of this build on a free port.
pub(crate) struct Router {
    pub(crate) link: SocketAddr,
    pub(crate) admin: SocketAddr,
    _process: Process,
}

impl Router {
    pub(crate) fn start(folder: &Path) -> Router {
        Router::run(Command::new(binary("hawser-router")), folder)
    }

    /// `command` starts a router with the flags that are added to it.
    pub(crate) fn run(mut command: Command, folder: &Path) -> Router {
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"]);
        command.arg(folder.join("router"));
        let mut process = Process::start("router", command, folder);
        let said = process.says("serving");
        Router {
            link: address_in(&said, "listen="),
            admin: address_in(&said, "admin="),
            _process: process,
        }
    }
}

/// An edge of this build on free ports.
pub(crate) struct Edge {
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) process: Process,
}

impl Edge {
    pub(crate) fn start(name: &str, router: SocketAddr, folder: &Path) -> Edge {
        Edge::run(Command::new(binary("hawser-edge")), name, router, folder)
    }

    /// `command` starts an edge with the flags that are added to it.
    pub(crate) fn run(mut command: Command, name: &str, router: SocketAddr, folder: &Path) -> Edge {
        command.arg("--dev-auth");
        Edge::admitting(command, name, router, folder)
    }

    /// The same where `command` says how tokens are checked.
    pub(crate) fn admitting(
        mut command: Command,
        name: &str,
        router: SocketAddr,
        folder: &Path,
    ) -> Edge {
        let admin = free_address();
        command.args(["--shards", "1", "--listen", "127.0.0.1:0", "--edge-id", name]);
        command.args(["--admin", &admin.to_string(), "--router", &router.to_string()]);
        let mut process = Process::start(name, command, folder);
        Edge {
            listen: address_in(&process.says("accepting connections"), "listen="),
            admin,
            process,
        }
    }

    /// How many sockets of clients it holds.
    pub(crate) fn connections(&self) -> u64 {
        let metrics = get(self.admin, "/metrics").unwrap();
        let line = metrics.lines().find_map(|line| line.strip_prefix("edge_connections "));
        line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{metrics}"))
    }

    pub(crate) fn wait_healthy(&self) {
        within_patience("a healthy edge", || {
            get(self.admin, "/healthz").ok().filter(|answer| answer.starts_with("HTTP/1.1 200 "))
        });
    }
}

/// A binary of this build.
pub(crate) fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_hawser-edge")).with_file_name(name);
    let path_shown = path.display();
    assert!(
        path.exists(),
        "{path_shown} is missing: run `cargo build --workspace`, as `make test` does"
    );
    path
}

/// The address in `.. listen=127.0.0.1:8080 ..`, with or without quotes, as the log in text and in JSON has it.
fn address_in(line: &str, key: &str) -> SocketAddr {
    let json = format!("\"{}\":", key.trim_end_matches('='));
    let found = line.split_once(key).or_else(|| line.split_once(&json));
    let text = found.and_then(|(_, rest)| rest.split([' ', ',', '}']).next());
    text.and_then(|text| text.trim_matches('"').parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

/// The whole answer to a GET request.
pub(crate) fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    request(address, &format!("GET {path}"), None, "")
}

/// The whole answer to a request such as `PUT /log`.
pub(crate) fn request(
    address: SocketAddr,
    line: &str,
    token: Option<&str>,
    body: &str,
) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "{line} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n")?;
    if let Some(token) = token {
        write!(stream, "Authorization: Bearer {token}\r\n")?;
    }
    write!(stream, "Content-Length: {}\r\n\r\n{body}", body.len())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A client with a session, in JSON.
pub(crate) struct Client {
    stream: TcpStream,
}

impl Client {
    /// Connects, upgrades, says Connect and has its Welcome.
    pub(crate) fn open(address: SocketAddr, user: &str) -> io::Result<Client> {
        let mut client = Client::request(address, "/ws", "")?;
        client.connect(user)?;
        Ok(client)
    }

    /// Connects and upgrades. An answer other than an upgrade is an error that holds the whole head.
    pub(crate) fn request(address: SocketAddr, target: &str, headers: &str) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Client { stream };
        write!(
            client.stream,
            "GET {target} HTTP/1.1\r\nHost: hawser\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             {headers}Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: hawser.v1.json\r\n\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.bytes::<1>()?[0]);
        }
        if !head.starts_with(b"HTTP/1.1 101 ") {
            return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
        }
        Ok(client)
    }

    /// Where it connects from.
    pub(crate) fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// Says Connect and has its Welcome.
    pub(crate) fn connect(&mut self, token: &str) -> io::Result<Value> {
        self.say(json!({ "connect": { "token": token, "deviceId": "balanced" } }))?;
        self.hear("welcome")
    }

    /// Sends a message and waits until it is acknowledged, which means durable.
    pub(crate) fn send(&mut self, to: &str, id: &str, payload_base64: &str) -> io::Result<()> {
        let answer = self.try_send(to, id, payload_base64)?;
        assert!(answer["messageId"].is_string(), "{answer}");
        Ok(())
    }

    /// Sends a message and waits for its answer, whatever that is.
    pub(crate) fn try_send(
        &mut self,
        to: &str,
        id: &str,
        payload_base64: &str,
    ) -> io::Result<Value> {
        let send = json!({ "clientMessageId": id, "toUser": to, "payload": payload_base64 });
        self.say(json!({ "send": send }))?;
        self.hear("sendAck")
    }

    /// One frame of text. It is masked, as RFC 6455 section 5.1 asks for, with a key of zeros.
    pub(crate) fn say(&mut self, frame: Value) -> io::Result<()> {
        let text = frame.to_string().into_bytes();
        let mut bytes = vec![0x81];
        match u8::try_from(text.len()) {
            Ok(length @ ..126) => bytes.push(0x80 | length),
            _ => {
                bytes.push(0x80 | 126);
                bytes.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
            }
        }
        bytes.extend([0; 4]);
        bytes.extend(text);
        self.stream.write_all(&bytes)
    }

    /// The next frame of this kind; others are passed over.
    pub(crate) fn hear(&mut self, kind: &str) -> io::Result<Value> {
        loop {
            let [first, length] = self.bytes()?;
            let length = match length {
                126 => u16::from_be_bytes(self.bytes()?).into(),
                127 => u64::from_be_bytes(self.bytes()?),
                length => u64::from(length),
            };
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            self.stream.read_exact(&mut payload)?;
            if first != 0x81 {
                return Err(io::Error::other(format!("frame {first:#x}: {payload:?}")));
            }
            let mut frame: Value = serde_json::from_slice(&payload)?;
            if let Some(body) = frame.get_mut(kind) {
                return Ok(body.take());
            }
        }
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
