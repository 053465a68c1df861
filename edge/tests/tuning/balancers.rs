//! HAProxy and nginx with the configurations in `tuning/balancers`, in front of two real edges and a router.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::hawser::{Client, Edge, Process, Router, binary, free_address, within_patience};
use crate::tuning;

/// New clients that have to find the right edge, each of them.
const CROWD: usize = 8;

#[test]
fn haproxy_spreads_clients_and_brings_new_ones_past_an_edge_that_is_gone() {
    let mut scene = Scene::new();
    let haproxy = HaProxy::start(&scene, scene.edges.each_ref());
    let mut pair = scene.a_message_goes_across(haproxy.front);

    // Drained by hand, as the file says: those that are there stay, new ones go to the other.
    haproxy.say("set server edges/edge1 state drain");
    let _crowd = scene.crowd_goes_to_the_second(haproxy.front, "drained");
    converse(&mut pair, "drained");
    haproxy.say("set server edges/edge1 state ready");

    scene.the_first_dies_and_the_second_takes_all(haproxy.front, pair);
}

#[test]
fn haproxy_asks_healthz_and_gives_no_client_to_an_edge_without_a_router() {
    let scene = Scene::new();
    let nowhere = free_address();
    let lame = Edge::start("lame", nowhere, scene.folder.path());
    let [_, sound] = &scene.edges;
    let haproxy = HaProxy::start(&scene, [&lame, sound]);
    within_patience("edge1 to be DOWN", || {
        let table = haproxy.say("show stat");
        let line = table.lines().find(|line| line.starts_with("edges,edge1,"))?.to_owned();
        line.contains(",DOWN,").then_some(())
    });
    let _crowd = scene.crowd_goes_to_the_second(haproxy.front, "health");
    assert_eq!(lame.connections(), 0);
}

#[test]
fn haproxy_says_where_its_clients_come_from() {
    let scene = Scene::new();
    let edge = |name| {
        let mut command = Command::new(binary("hawser-edge"));
        command.args(["--proxy-protocol-from", "127.0.0.1", "--log", "info,hawser_edge=debug"]);
        Edge::run(command, name, scene.router.link, scene.folder.path())
    };
    let mut edges = [edge("told1"), edge("told2")];
    edges.iter().for_each(Edge::wait_healthy);
    let haproxy = HaProxy::start_with(&scene, edges.each_ref(), " send-proxy-v2");
    let clients = [1, 2].map(|n| Client::open(haproxy.front, &format!("told{n}")).unwrap());
    // One each, by leastconn.
    let opened = edges.each_mut().map(|edge| edge.process.says("connection is open"));
    for client in &clients {
        let peer = format!("peer={}", client.address());
        assert!(opened.iter().any(|line| line.contains(&peer)), "{peer} in {opened:?}");
    }
    // Who goes around the balancer says no header, and is cut off.
    let around = Client::open(edges[0].listen, "around");
    assert!(around.is_err());
}

#[test]
fn nginx_spreads_clients_and_brings_new_ones_past_an_edge_that_is_gone() {
    let mut scene = Scene::new();
    let front = free_address();
    let [first, second] = &scene.edges;
    let config = scene.config(
        "nginx.conf",
        &[
            ("192.0.2.1:80", &front.to_string()),
            ("192.0.2.11:8080", &first.listen.to_string()),
            ("192.0.2.12:8080", &second.listen.to_string()),
            ("/run/nginx-hawser.pid", &scene.path("nginx.pid")),
            ("worker_rlimit_nofile 262144", "worker_rlimit_nofile 1000"),
            ("worker_connections 260000", "worker_connections 1000"),
        ],
    );
    let mut nginx = Command::new(installed("nginx", "nginx"));
    nginx.args(["-e", "stderr", "-g", "daemon off;", "-c"]).arg(config);
    let module = Path::new("/usr/lib/nginx/modules/ngx_stream_module.so");
    assert!(module.exists(), "the stream module is missing: apt-get install libnginx-mod-stream");
    let _nginx = Process::start("nginx", nginx, scene.folder.path());
    let pair = scene.a_message_goes_across(front);
    scene.the_first_dies_and_the_second_takes_all(front, pair);
}

#[test]
fn keepalived_takes_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("keepalived.conf");
    // The interface has to be one of this machine that is up and knows multicast (netdevice(7)).
    let interfaces = fs::read_dir("/sys/class/net").unwrap().map(|entry| entry.unwrap());
    let interface = interfaces.filter(|interface| {
        let flags = fs::read_to_string(interface.path().join("flags")).unwrap();
        let flags = flags.trim().strip_prefix("0x").map(|hex| u32::from_str_radix(hex, 16));
        matches!(flags, Some(Ok(flags)) if flags & 0x1001 == 0x1001)
    });
    let interface = interface.last().expect("an interface beside lo").file_name();
    let interface = interface.to_str().unwrap();
    let text = fs::read_to_string(tuning("balancers/keepalived.conf")).unwrap();
    let text = replaced(&text, &[("interface eth0", &format!("interface {interface}"))]);
    fs::write(&config, &text).unwrap();
    let test = |config: &Path| {
        let mut keepalived = Command::new(installed("keepalived", "keepalived"));
        keepalived.args(["--config-test", "--use-file"]).arg(config).output().unwrap()
    };
    let output = test(&config);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");

    // The test can fail: the two ports of direct routing have to be one.
    fs::write(&config, text.replace("192.0.2.12 8080", "192.0.2.12 8090")).unwrap();
    assert!(!test(&config).stderr.is_empty());
}

/// A router and two edges that are linked to it.
struct Scene {
    edges: [Edge; 2],
    router: Router,
    folder: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let router = Router::start(folder.path());
        let edge = |name| Edge::start(name, router.link, folder.path());
        let scene = Scene { edges: [edge("edge1"), edge("edge2")], router, folder };
        for edge in &scene.edges {
            edge.wait_healthy();
        }
        scene
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A file of `tuning/balancers` with what it lists at its top replaced.
    fn config(&self, name: &str, replacements: &[(&str, &str)]) -> PathBuf {
        let text = fs::read_to_string(tuning("balancers").join(name)).unwrap();
        let path = self.folder.path().join(name);
        fs::write(&path, replaced(&text, replacements)).unwrap();
        path
    }

    /// Connects clients until each edge has one, and has these two send each other a durable message.
    fn a_message_goes_across(&self, front: SocketAddr) -> [Session; 2] {
        let counts = || self.edges.each_ref().map(Edge::connections);
        // The balancer may not be up yet.
        drop(within_patience("a balancer", || Client::open(front, "probe").ok()));
        within_patience("the probe's end", || (counts() == [0, 0]).then_some(()));

        let (mut found, mut others) = ([None, None], Vec::new());
        for number in 0..CROWD {
            let before = counts();
            let user = format!("user-{number}");
            let client = Client::open(front, &user).unwrap();
            let after = counts();
            let edge = (0..2).find(|&edge| after[edge] > before[edge]).unwrap();
            // Who is not needed stays: an end would be counted in between.
            others.extend(found[edge].replace(Session { client, user }));
        }
        drop(others);
        within_patience("the others' end", || (counts() == [1, 1]).then_some(()));
        let mut pair = found.map(|session| session.expect("a client on each edge"));
        converse(&mut pair, "before");
        pair
    }

    /// New clients, all of which have to come to the second edge. They stay as long as what is returned.
    fn crowd_goes_to_the_second(&self, front: SocketAddr, name: &str) -> Vec<Client> {
        let before = self.edges[1].connections();
        let crowd: Vec<_> = (0..CROWD)
            .map(|number| Client::open(front, &format!("{name}-{number}")).unwrap())
            .collect();
        assert_eq!(self.edges[1].connections(), before + crowd.len() as u64);
        crowd
    }

    fn the_first_dies_and_the_second_takes_all(&mut self, front: SocketAddr, pair: [Session; 2]) {
        self.edges[0].process.kill();
        let [mut lost, kept] = pair;
        let end = lost.client.hear("deliver").unwrap_err();
        let ends = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
        assert!(ends.contains(&end.kind()), "{end}");

        let _crowd = self.crowd_goes_to_the_second(front, "after");
        // Whoever was lost comes back, and talks with whom the death has not touched.
        let client = Client::open(front, &lost.user).unwrap();
        converse(&mut [Session { client, ..lost }, kept], "after");
    }
}

/// A client that is connected through the balancer.
struct Session {
    client: Client,
    user: String,
}

/// Each sends the other a message, which is durable once it is acknowledged, and gets the other's.
fn converse(pair: &mut [Session; 2], when: &str) {
    for (sender, recipient) in [(0, 1), (1, 0)] {
        let to = pair[recipient].user.clone();
        pair[sender].client.send(&to, when, "aGVsbG8=").unwrap();
        let delivered = pair[recipient].client.hear("deliver").unwrap();
        assert_eq!(delivered["from"], *pair[sender].user);
        assert_eq!(delivered["payload"], "aGVsbG8=");
    }
}

/// A running HAProxy.
struct HaProxy {
    front: SocketAddr,
    socket: PathBuf,
    _process: Process,
}

impl HaProxy {
    /// In front of these edges, which are `edge1` and `edge2` to it.
    fn start(scene: &Scene, edges: [&Edge; 2]) -> HaProxy {
        HaProxy::start_with(scene, edges, "")
    }

    /// With more words on each edge's line.
    fn start_with(scene: &Scene, [first, second]: [&Edge; 2], words: &str) -> HaProxy {
        let front = free_address();
        let socket = scene.folder.path().join("haproxy.sock");
        let server = |edge: &Edge| format!("{} port {}{words}", edge.listen, edge.admin.port());
        let config = scene.config(
            "haproxy.cfg",
            &[
                ("192.0.2.1:80", &front.to_string()),
                ("192.0.2.11:8080 port 8081", &server(first)),
                ("192.0.2.12:8080 port 8081", &server(second)),
                ("/run/haproxy/hawser.sock", &socket.display().to_string()),
                ("maxconn 500000", "maxconn 1000"),
            ],
        );
        let mut command = Command::new(installed("haproxy", "haproxy"));
        command.arg("-db").arg("-f").arg(config);
        let process = Process::start("haproxy", command, scene.folder.path());
        within_patience("HAProxy's socket", || UnixStream::connect(&socket).ok());
        HaProxy { front, socket, _process: process }
    }

    /// Its answer to a command.
    fn say(&self, command: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        writeln!(stream, "{command}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// `text` with each pair's first replaced by its second; each has to be there.
fn replaced(text: &str, replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(text.to_owned(), |text, (placeholder, value)| {
        assert!(text.contains(placeholder), "{placeholder} is not in {text}");
        text.replace(placeholder, value)
    })
}

/// Where a program of a Debian package is.
fn installed(program: &str, package: &str) -> PathBuf {
    ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]
        .map(|folder| Path::new(folder).join(program))
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| {
            panic!("{program} is missing: apt-get install {package}, as .ci/run does")
        })
}
