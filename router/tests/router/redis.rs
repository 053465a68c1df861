//! Who is online, as other services read it in a real Redis Cluster.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use clap::Parser as _;
use hawser_proto::link::Unregister;
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_router::config::Config;
use hawser_router::registry::redis::connection::Connection;
use hawser_router::registry::redis::look_up;
use tempfile::TempDir;

use crate::harness::{DEADLINE, Router, register};

/// `services/redis` with three servers.
struct Cluster(TempDir);

impl Cluster {
    fn start() -> Self {
        let cluster = Self(TempDir::new().unwrap());
        cluster.run("start", &["--nodes", "3"]);
        cluster
    }

    fn run(&self, verb: &str, options: &[&str]) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../services/redis");
        let ran = Command::new(script).arg(verb).arg(self.folder()).args(options).output().unwrap();
        assert!(ran.status.success(), "{verb}: {}", String::from_utf8_lossy(&ran.stderr));
    }

    fn folder(&self) -> PathBuf {
        self.0.path().join("redis")
    }

    /// What a router is told of it.
    fn knobs(&self) -> Vec<String> {
        let address = std::fs::read_to_string(self.folder().join("address")).unwrap();
        let urls = address.trim().split(',').map(|at| format!("--redis-url=redis://{at}"));
        urls.chain(["--registry=redis".to_owned()]).collect()
    }

    fn router(&self, folder: &Path, lease: &str) -> Router {
        let mut knobs = self.knobs();
        knobs.push(format!("--lease={lease}"));
        Router::start(folder, &knobs.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Waits until just these connections of the users are online.
    fn wait_until_online(&self, wanted: &[(&str, &[u64])]) {
        let knobs = std::iter::once("hawser-router".to_owned()).chain(self.knobs());
        let config = Config::parse_from(knobs).redis;
        let users: Vec<&str> = wanted.iter().map(|(user, _)| *user).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let read = async || {
            let connection = Connection::open(&config).await?;
            look_up(&connection, "hawser", &users).await.map_err(|error| error.to_string())
        };
        let deadline = Instant::now() + DEADLINE;
        loop {
            let found = runtime.block_on(read()).map(|found| {
                let numbers = found.iter().map(|online| online.iter().map(|it| it.connection));
                numbers.map(Iterator::collect).collect::<Vec<Vec<u64>>>()
            });
            let is_it = |found: &Vec<Vec<u64>>| {
                found.iter().map(Vec::as_slice).eq(wanted.iter().map(|(_, numbers)| *numbers))
            };
            if found.as_ref().is_ok_and(is_it) {
                return;
            }
            assert!(Instant::now() < deadline, "wanted {wanted:?}, found {found:?}");
            std::thread::park_timeout(std::time::Duration::from_millis(50));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.run("stop", &[]);
    }
}

#[test]
fn others_read_who_is_online_and_a_router_that_dies_takes_its_users_along() {
    let cluster = Cluster::start();
    let folder = TempDir::new().unwrap();
    let mut router = cluster.router(folder.path(), "2s");
    let mut edge = router.edge("edge-1", 1);
    edge.register(register(1, "bob", "phone", None));
    edge.register(register(2, "carol", "phone", None));
    cluster.wait_until_online(&[("bob", &[1]), ("carol", &[2]), ("dave", &[])]);
    edge.say(Inbound::Unregister(Unregister { connection: 2, user: "carol".to_owned() }));
    cluster.wait_until_online(&[("bob", &[1]), ("carol", &[])]);

    router.kill();
    cluster.wait_until_online(&[("bob", &[])]);
    let router = cluster.router(folder.path(), "2s");
    let mut edge = router.edge("edge-1", 1);
    edge.register(register(1, "bob", "phone", None));
    cluster.wait_until_online(&[("bob", &[1])]);
    // An edge that is gone for a lease takes its own along.
    drop(edge);
    cluster.wait_until_online(&[("bob", &[])]);
}

#[test]
fn while_redis_is_away_messages_flow_and_what_it_missed_is_told_when_it_is_back() {
    let cluster = Cluster::start();
    let folder = TempDir::new().unwrap();
    let router = cluster.router(folder.path(), "10min");
    let mut edge = router.edge("edge-1", 1);
    edge.register(register(1, "bob", "phone", None));
    edge.register(register(2, "carol", "phone", None));
    cluster.wait_until_online(&[("bob", &[1]), ("carol", &[2])]);
    for node in ["1", "2", "3"] {
        cluster.run("kill-node", &[node]);
    }
    router.wait_until("it says so", |router| router.get("/healthz").1.contains("Redis"));
    assert_eq!(router.get("/healthz").0, 200);
    edge.say(Inbound::Unregister(Unregister { connection: 2, user: "carol".to_owned() }));
    edge.register(register(3, "dave", "phone", None));
    edge.send(crate::harness::message(1, "alice", "bob", "m1", "hello"));
    assert_eq!(edge.hear_deliver().sequence, 1);
    for node in ["1", "2", "3"] {
        cluster.run("start-node", &[node]);
    }
    cluster.wait_until_online(&[("bob", &[1]), ("carol", &[]), ("dave", &[3])]);
    router.wait_until("it works again", |router| router.get("/healthz").1 == "ok\n");
}
