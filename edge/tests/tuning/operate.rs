//! What an operator does to a real edge: looks at its knobs, changes them, finds and closes connections, reads its log.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Output};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hawser::{
    Client, Edge, PATIENCE, Router, binary, free_address, get, request, within_patience,
};
use crate::stdout;

const TOKEN: &str = "correct-horse-battery-staple";

/// A router, an edge with a token and a file of knobs, and the folder they live in.
struct Scene {
    edge: Edge,
    file: PathBuf,
    _router: Router,
    _folder: TempDir,
}

impl Scene {
    fn start(knobs: &str, flags: &[&str]) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let router = Router::start(folder.path());
        let (file, token) = (folder.path().join("edge.toml"), folder.path().join("token"));
        fs::write(&file, knobs).unwrap();
        fs::write(&token, format!("{TOKEN}\n")).unwrap();
        let mut command = Command::new(binary("hawser-edge"));
        command.arg("--config").arg(&file).arg("--admin-token-file").arg(token).args(flags);
        let edge = Edge::run(command, "edge", router.link, folder.path());
        edge.wait_healthy();
        Scene { edge, file, _router: router, _folder: folder }
    }

    /// Status and body of the answer to a request with the token.
    fn ask(&self, line: &str, body: &str) -> (u16, Value) {
        answer(&request(self.edge.admin, line, Some(TOKEN), body).unwrap())
    }

    fn does(&self, line: &str) -> Value {
        let (status, body) = self.ask(line, "");
        assert_eq!(status, 200, "{line}: {body}");
        body
    }

    fn metric(&self, name: &str) -> f64 {
        let text = get(self.edge.admin, "/metrics").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
    }
}

fn answer(text: &str) -> (u16, Value) {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {text}"));
    (status.unwrap_or_else(|| panic!("{text}")), body)
}

fn config(word: &str, flags: &[&str]) -> Output {
    let mut command = Command::new(binary("hawser-edge"));
    command.env_clear().args(["config", word]).args(flags).output().unwrap()
}

#[test]
fn config_check_gives_back_a_file_that_says_the_same_or_the_sentence_of_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("edge.toml");
    fs::write(&file, "ping_interval_active = \"20s\"\nconnections_max = 1_000\n").unwrap();
    let config_flag = format!("--config={}", file.display());
    let checked = config("check", &[&config_flag, "--dev-auth"]);
    assert!(checked.status.success(), "{checked:?}");
    let told = stdout(&checked);
    assert!(told.starts_with("# ok\n"), "{told}");
    for line in [
        "ping_interval_active = \"20s\"  # file",
        "dev_auth = true  # flag",
        "connections_max = 1000  # file",
    ] {
        assert!(told.lines().any(|told| told == line), "{line} is not in {told}");
    }
    // What it printed is a file.
    fs::write(&file, &told).unwrap();
    let again = config("show", &[&config_flag]);
    assert_eq!(settings(&stdout(&again)), settings(&told));

    for (flags, sentence) in [
        (&["--ping-interval-active=1x"][..], "--ping-interval-active: \"1x\" "),
        (
            &["--admin-token-file=/nowhere/token"],
            "--admin-token-file: /nowhere/token cannot be read: ",
        ),
        (
            &["--dev-auth", "--connections-max=16000000", "--shards=1"],
            "--connections-max: 16000000 on 1 shards ",
        ),
        (&["--log-format=loud"], "--log-format: \"loud\" is not one of those allowed: text, json"),
    ] {
        let refused = config("check", flags);
        let told = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(64), "{told}");
        let sentences: Vec<_> = told.lines().filter(|l| l.contains(sentence)).collect();
        assert_eq!(sentences.len(), 1, "{told}");
        assert!(refused.stdout.is_empty());
    }
    assert_eq!(config("chekc", &[]).status.code(), Some(64));
    // It does not look at files and at the machine.
    assert!(config("show", &["--admin-token-file=/nowhere/token"]).status.success());
}

/// Keys and values of a file, without the comments behind them.
fn settings(toml: &str) -> Vec<&str> {
    let lines = toml.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split("  #").next()).collect()
}

#[test]
fn the_admin_address_acts_for_nobody_without_the_token() {
    let scene = Scene::start("", &[]);
    let acts = [
        "GET /connections",
        "GET /users/alice/connections",
        "DELETE /users/alice",
        "DELETE /connections/1",
        "GET /config",
        "POST /reload",
        "PUT /log",
        "POST /drain",
        "POST /rebalance",
    ];
    for line in acts {
        for token in [None, Some("correct-horse-battery-stapl"), Some("")] {
            let (status, body) = answer(&request(scene.edge.admin, line, token, "").unwrap());
            assert_eq!(status, 401, "{line} {token:?}");
            assert!(body["error"].as_str().is_some_and(|e| e.contains("--admin-token-file")));
        }
    }
    let unauthorized = get(scene.edge.admin, "/config").unwrap().to_lowercase();
    assert!(unauthorized.contains("www-authenticate: bearer"), "{unauthorized}");
    for open in ["/healthz", "/metrics"] {
        assert!(get(scene.edge.admin, open).unwrap().starts_with("HTTP/1.1 200 "));
    }
    assert!(get(scene.edge.admin, "/nowhere").unwrap().starts_with("HTTP/1.1 404 "));

    let folder = tempfile::tempdir().unwrap();
    let tokenless = Edge::start("tokenless", scene.edge.listen, folder.path());
    for line in acts {
        let (status, body) = answer(&request(tokenless.admin, line, Some(TOKEN), "").unwrap());
        assert_eq!(status, 403, "{line}");
        assert!(body["error"].as_str().is_some_and(|e| e.contains("--admin-token-file")));
    }
}

#[test]
fn connections_are_listed_in_pages_found_by_user_and_closed() {
    let scene = Scene::start("", &["--shards=3"]);
    let users: Vec<_> = (0..10).map(|n| format!("user-{n}")).collect();
    let mut clients: Vec<_> =
        users.iter().map(|user| Client::open(scene.edge.listen, user).unwrap()).collect();

    let (mut seen, mut after) = (Vec::new(), None::<String>);
    loop {
        let query = after.map_or_else(String::new, |id| format!("&after={id}"));
        let page = scene.does(&format!("GET /connections?limit=3{query}"));
        let connections = page["connections"].as_array().unwrap();
        assert!(connections.len() <= 3);
        for connection in connections {
            assert_eq!(connection["stage"], "open");
            assert!(connection["peer"].as_str().unwrap().parse::<SocketAddr>().is_ok());
            seen.push(connection["session"]["user"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["next"].as_str() else { break };
        after = Some(next.to_owned());
    }
    seen.sort();
    assert_eq!(seen, users);

    let found = scene.does("GET /users/user-3/connections");
    let [connection] = &found["connections"].as_array().unwrap()[..] else { panic!("{found}") };
    assert_eq!(connection["session"]["device"], "balanced");
    let id = connection["id"].as_str().unwrap();
    assert_eq!(scene.does(&format!("DELETE /connections/{id}"))["closed"], 1);
    let ended = clients[3].hear("nothing").unwrap_err().to_string();
    // 0x03f0 is 1008.
    assert!(ended.contains("frame 0x88: [3, 240, "), "{ended}");
    drop(clients.remove(3));
    within_patience("the closed connection to be gone", || {
        let (status, _) = scene.ask(&format!("DELETE /connections/{id}"), "");
        (status == 404).then_some(())
    });

    let mut again = Client::open(scene.edge.listen, "user-3").unwrap();
    assert_eq!(scene.does("DELETE /users/user-3")["closed"], 1);
    assert!(again.hear("nothing").is_err());
    assert_eq!(scene.does("DELETE /users/user-3")["closed"], 0);
    drop(again);
    within_patience("both closed connections to be counted", || {
        (scene.metric("edge_closed_total{reason=\"operator\"}") == 2.0).then_some(())
    });

    for (line, status) in [
        ("GET /connections?limit=0", 400),
        ("GET /connections?limit=1001", 400),
        ("GET /connections?limt=5", 400),
        ("GET /connections?after=x", 400),
        ("DELETE /connections/x", 400),
        ("DELETE /connections/18446744073709551615", 404),
        (&format!("GET /users/{}/connections", "u".repeat(65)), 400),
    ] {
        let (told, body) = scene.ask(line, "");
        assert_eq!(told, status, "{line}: {body}");
        assert!(body["error"].is_string(), "{line}: {body}");
    }
    let beyond = scene.does("GET /connections?after=18446744073709551615");
    assert_eq!(beyond, json!({ "connections": [], "next": null }));
}

#[test]
fn a_reload_takes_what_can_change_names_what_waits_and_leaves_all_as_it_is_when_the_file_is_wrong()
{
    let mut scene = Scene::start("payload_bytes_max = \"10KiB\"\n", &[]);
    let mut alice = Client::open(scene.edge.listen, "alice").unwrap();
    let payload = |bytes: usize| "AAAA".repeat(bytes / 3);
    alice.send("alice", "1", &payload(9000)).unwrap();

    fs::write(&scene.file, "payload_bytes_max = \"3KiB\"\nconnections_max = 77\n").unwrap();
    scene.edge.process.signal(Signal::HUP);
    scene.edge.process.says("new values wait for the next start: connections_max");
    let refused = alice.try_send("alice", "2", &payload(9000)).unwrap();
    assert_eq!(refused["error"]["code"], "CODE_TOO_LARGE", "{refused}");
    let config = scene.does("GET /config");
    assert_eq!(
        config["knobs"]["payload_bytes_max"],
        json!({ "value": "3KiB", "from": "file", "live": true })
    );
    assert_eq!(config["knobs"]["connections_max"]["value"], "10000");

    fs::write(&scene.file, "payload_bytes_max = \"3 miles\"\n").unwrap();
    let (status, body) = scene.ask("POST /reload", "");
    assert_eq!(status, 422);
    let told = body["error"].as_str().unwrap();
    assert!(told.starts_with("payload_bytes_max in ") && told.contains("\"3 miles\""), "{told}");
    scene.edge.process.says("nothing is changed: payload_bytes_max in ");
    assert_eq!(scene.does("GET /config")["knobs"]["payload_bytes_max"]["value"], "3KiB");
    assert_eq!(scene.metric("edge_reload_refused"), 1.0);
    assert_eq!(scene.metric("edge_reloads_total{outcome=\"refused\"}"), 1.0);

    fs::write(&scene.file, "").unwrap();
    assert_eq!(
        scene.does("POST /reload"),
        json!({ "changed": ["payload_bytes_max"], "waiting": [] })
    );
    alice.send("alice", "3", &payload(9000)).unwrap();
    assert_eq!(scene.metric("edge_reload_refused"), 0.0);

    // A new token takes the place of the old one.
    fs::write(scene.file.with_file_name("token"), "a-new-secret-that-is-long\n").unwrap();
    scene.does("POST /reload");
    assert_eq!(scene.ask("GET /config", "").0, 401);
    let new = Some("a-new-secret-that-is-long");
    let text = request(scene.edge.admin, "GET /config", new, "").unwrap();
    assert_eq!(answer(&text).0, 200);
}

#[test]
fn the_log_is_json_when_that_is_asked_for_and_its_filter_changes_at_run_time() {
    let mut scene = Scene::start("", &["--log-format=json"]);
    drop(Client::open(scene.edge.listen, "quiet").unwrap());
    // Its end has to lie before the new filter.
    within_patience("quiet to be gone", || (scene.edge.connections() == 0).then_some(()));
    let (status, _) = scene.ask("PUT /log", r#"{"filter": "info,hawser_edge::shard=debug"}"#);
    assert_eq!(status, 200);
    let mut alice = Client::open(scene.edge.listen, "alice").unwrap();
    let lines = |scene: &Scene| -> Vec<Value> {
        let log = scene.edge.process.log();
        let lines = log.lines().map(|line| serde_json::from_str(line).expect(line));
        lines.collect()
    };
    for n in 0..20 {
        alice.send("alice", &n.to_string(), "AAAA").unwrap();
    }
    drop(alice);
    let end = within_patience("the end of alice's connection in the log", || {
        let is_end = |line: &Value| line["message"] == "connection ends";
        lines(&scene).into_iter().find(|line| is_end(line) && line["user"] == "alice")
    });
    assert_eq!(end["level"], "DEBUG");
    // The last answers may have been on their way to her.
    assert!(["vanished", "socket_failed"].contains(&end["reason"].as_str().unwrap()), "{end}");
    let told = lines(&scene);
    let of_alice: Vec<_> = told.iter().filter(|line| line["user"] == "alice").collect();
    assert_eq!(of_alice.len(), 2, "one line for her beginning and one for her end: {of_alice:?}");
    assert_eq!(of_alice[0]["connection"], of_alice[1]["connection"]);
    assert_eq!(of_alice[0]["message"], "connection is open");
    assert!(of_alice[0]["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(told.iter().all(|line| line["user"] != "quiet"));

    for body in [r#"{"filter": "hawser=loud"}"#, "{}", "info"] {
        assert_eq!(scene.ask("PUT /log", body).0, 400, "{body}");
    }
    // A reload brings the filter of the knobs back.
    scene.does("POST /reload");
    scene.edge.process.says("knobs were read again");
    drop(Client::open(scene.edge.listen, "late").unwrap());
    within_patience("late to be gone", || (scene.edge.connections() == 0).then_some(()));
    assert!(lines(&scene).iter().all(|line| line["user"] != "late"));
}

#[test]
fn an_operator_drains_and_rebalances_by_request() {
    let mut scene = Scene::start("drain_window = \"0s\"", &[]);
    let mut clients: Vec<_> =
        (0..4).map(|n| Client::open(scene.edge.listen, &n.to_string()).unwrap()).collect();
    for body in
        ["", "{}", r#"{"per_mille": 0, "window": "0s"}"#, r#"{"per_mille": 9, "window": "2h"}"#]
    {
        assert_eq!(scene.ask("POST /rebalance", body).0, 400, "{body}");
    }
    let (status, _) = scene.ask("POST /rebalance", r#"{"per_mille": 500, "window": "0s"}"#);
    assert_eq!(status, 202);
    within_patience("half of the clients to be sent away", || {
        (scene.metric("edge_closed_total{reason=\"rebalanced\"}") == 2.0).then_some(())
    });
    assert_eq!(scene.ask("POST /drain", "").0, 202);
    for client in &mut clients {
        assert_eq!(
            client.hear("goAway").unwrap()["reason"].as_str().map(str::is_empty),
            Some(false)
        );
    }
    drop(clients);
    assert_eq!(scene.edge.process.ended().code(), Some(0));
}

#[test]
fn systemd_is_told_of_the_start_of_life_of_reloads_and_of_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(binary("hawser-edge"));
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "600000").arg("--drain-window=40s");
    let mut edge = Edge::run(command, "edge", free_address(), folder.path());
    let next = || {
        let mut bytes = [0; 1024];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    // Signs of life come in between whatever else is said.
    let told = || loop {
        let told = next();
        if !told.starts_with("WATCHDOG=1\n") {
            return told;
        }
    };

    assert_eq!(told(), "READY=1\n");
    for _ in 0..2 {
        let life = next();
        let status = "STATUS=0 of 10000 connections on 1 shards, link down\n";
        assert_eq!(life, format!("WATCHDOG=1\n{status}"));
    }
    edge.process.signal(Signal::HUP);
    let reloading = told();
    let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    assert!(since.trim().parse::<u64>().unwrap() > 0);
    assert_eq!(told(), "READY=1\n");
    edge.process.signal(Signal::TERM);
    assert_eq!(told(), "STOPPING=1\nEXTEND_TIMEOUT_USEC=55000000\n");
    assert_eq!(edge.process.ended().code(), Some(0));
}
