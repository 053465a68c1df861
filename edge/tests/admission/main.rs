//! Who may come in, with the real edge, the real router, and an issuer that is a real HTTP server.
#![expect(clippy::disallowed_methods, reason = "a test of processes waits by the clock")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../tuning/hawser.rs"]
#[expect(dead_code, reason = "the tests of tuning use the rest")]
mod hawser;
#[path = "../support/tokens.rs"]
#[expect(dead_code, reason = "the unit tests use the rest")]
mod tokens;

mod issuer;

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::hawser::{Client, Edge, Router, binary, free_address, get, within_patience};
use crate::issuer::HttpServer;
use crate::tokens::{Issuer, jwks};

/// A router, and an edge that was given these flags.
struct Hawser {
    edge: Edge,
    _router: Router,
    /// Behind those who write into it.
    folder: tempfile::TempDir,
}

impl Hawser {
    fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let router = Router::start(folder.path());
        let mut command = Command::new(binary("hawser-edge"));
        command.args(flags);
        let edge = Edge::admitting(command, "edge", router.link, folder.path());
        Self { edge, _router: router, folder }
    }

    fn listen(&self) -> SocketAddr {
        self.edge.listen
    }

    /// The value of a metric, by its whole name with labels.
    fn metric(&self, name: &str) -> u64 {
        let metrics = get(self.edge.admin, "/metrics").unwrap();
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}")).parse().unwrap()
    }

    /// Waits for a health of this status that says this.
    fn wait_health(&self, status: u16, text: &str) {
        within_patience(text, || {
            let health = get(self.edge.admin, "/healthz").unwrap();
            let is_so = health.starts_with(&format!("HTTP/1.1 {status} ")) && health.contains(text);
            is_so.then_some(())
        });
    }

    /// Nothing that was secret stands in the log.
    fn assert_log_without(&self, secrets: &[&str]) {
        let log = self.edge.process.log();
        assert!(log.contains("effective configuration"), "{log}");
        for secret in secrets {
            assert!(!log.contains(secret), "{secret} in {log}");
        }
    }
}

fn claims(user: &str, seconds: u64) -> Value {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    json!({ "sub": user, "exp": now + seconds })
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// What a client is told that is not let in.
fn refusal<T>(outcome: std::io::Result<T>) -> String {
    match outcome {
        Ok(_) => panic!("it was let in"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_token_lets_a_client_in_from_all_three_places_and_a_bad_one_does_not() {
    let issuer = Issuer::es256();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, issuer.pem()).unwrap();
    let keys = format!("--jwt-key-file={}", file.path().display());
    let flags = [&keys, "--jwt-clock-skew=0s", "--allowed-origins=https://*.example.com"];
    let hawser = Hawser::start(&flags);
    let at = hawser.listen();
    let token = issuer.token(&claims("alice", 600));

    let mut alice = Client::open(at, &token).unwrap();
    alice.send("bob", "m1", "aGk=").unwrap();
    let mut client = Client::request(at, "/ws", &bearer(&token)).unwrap();
    let welcome = client.connect("").unwrap();
    assert_eq!(
        (&welcome["user"], welcome["tokenExpiresAtMs"].is_string()),
        (&json!("alice"), true)
    );
    let target = format!("/ws?access_token={token}");
    assert_eq!(Client::request(at, &target, "").unwrap().connect("").unwrap()["user"], "alice");
    let bob =
        Client::open(at, &issuer.token(&claims("bob", 600))).unwrap().hear("deliver").unwrap();
    assert_eq!(bob["from"], "alice");

    let forged = Issuer::es256().token(&claims("alice", 600));
    let told = refusal(Client::request(at, "/ws", &bearer(&forged)));
    assert!(
        told.starts_with("HTTP/1.1 401 ") && told.contains("WWW-Authenticate: Bearer"),
        "{told}"
    );
    let told = refusal(Client::open(at, &forged));
    assert!(told.contains("frame 0x88"), "{told}");
    assert_eq!(hawser.metric("edge_admission_refused_total{reason=\"signature\"}"), 2);
    let told = refusal(Client::request(at, "/ws", "Origin: https://evil.example\r\n"));
    assert!(told.starts_with("HTTP/1.1 403 "), "{told}");
    Client::request(at, "/ws", "Origin: https://app.example.com\r\n").unwrap();

    // It ends with its token, unless there is a newer one.
    let brief = issuer.token(&claims("carol", 2));
    let mut ends = Client::open(at, &brief).unwrap();
    let mut stays = Client::request(at, "/ws", "").unwrap();
    stays.connect(&issuer.token(&claims("dave", 2))).unwrap();
    stays.say(json!({ "refresh": { "token": issuer.token(&claims("dave", 600)) } })).unwrap();
    assert!(stays.hear("refreshed").unwrap()["tokenExpiresAtMs"].is_string());
    let told = refusal(ends.hear("never"));
    let close_4401 = format!("frame 0x88: {:?}", [&[17, 49], &b"token expired"[..]].concat());
    assert_eq!(told, close_4401);
    stays.send("bob", "m2", "aGk=").unwrap();
    hawser.assert_log_without(&[&token, &forged, &brief]);
}

#[test]
fn keys_that_cannot_be_fetched_leave_the_door_closed_until_they_can_and_the_last_good_ones_stay() {
    let address = free_address();
    let url = format!("--jwt-jwks-url=http://user:word@{address}/keys?secret=1");
    let flags = [&*url, "--jwt-jwks-refresh=1s", "--jwt-jwks-refetch-min=100ms"];
    let hawser = Hawser::start(&flags);
    let at = hawser.listen();
    let issuer = Issuer::es256().named("1");
    let token = issuer.token(&claims("alice", 600));
    hawser.wait_health(503, "--jwt-jwks-url");
    let told = refusal(Client::request(at, "/ws", &bearer(&token)));
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("Retry-After"), "{told}");

    let server = HttpServer::start(address);
    server.answer(200, &jwks(&[&issuer]));
    hawser.wait_health(200, "ok");
    Client::open(at, &token).unwrap();
    let authorization = server.last_request().headers.get("authorization").cloned();
    assert_eq!(authorization.unwrap(), "Basic dXNlcjp3b3Jk");

    for (status, body) in [(500, "oops"), (200, "<html>"), (200, r#"{"keys":[]}"#)] {
        server.answer(status, body);
        hawser.wait_health(200, "degraded: --jwt-jwks-url: http://127.0.0.1:");
        Client::open(at, &token).unwrap();
        server.answer(200, &jwks(&[&issuer]));
        hawser.wait_health(200, "ok");
    }
    server.answer(200, &" ".repeat(300_000));
    hawser.wait_health(200, "answers with more than 262144 bytes");
    drop(server);
    hawser.wait_health(200, "onnection refused");
    Client::open(at, &token).unwrap();
    assert!(hawser.metric("edge_jwks_fetches_total{outcome=\"failed\"}") >= 6);
    hawser.assert_log_without(&["word", "secret=1", &token]);
}

#[test]
fn a_token_with_a_new_key_is_let_in_at_once_and_made_up_names_do_not_flood_the_issuer() {
    let server = HttpServer::start(free_address());
    let (old, new) = (Issuer::es256().named("1"), Issuer::eddsa().named("2"));
    server.answer(200, &jwks(&[&old]));
    let url = format!("--jwt-jwks-url=http://{}/keys", server.address());
    let hawser = Hawser::start(&[&url, "--jwt-jwks-refresh=1h", "--jwt-jwks-refetch-min=100ms"]);
    let at = hawser.listen();
    hawser.wait_health(200, "ok");
    Client::open(at, &old.token(&claims("alice", 600))).unwrap();

    server.answer(200, &jwks(&[&new]));
    // At once, unless the start's fetch was less than 100 ms ago.
    let new = new.token(&claims("alice", 600));
    within_patience("a client with the new key", || Client::open(at, &new).ok());
    let told = refusal(Client::request(at, "/ws", &bearer(&old.token(&claims("alice", 600)))));
    assert!(told.starts_with("HTTP/1.1 401 "), "{told}");

    let (before, start) = (server.requests(), Instant::now());
    let made_up = Issuer::es256().named("3").token(&claims("alice", 600));
    for _ in 0..200 {
        let told = refusal(Client::request(at, "/ws", &bearer(&made_up)));
        assert!(told.starts_with("HTTP/1.1 401 "), "{told}");
    }
    let fetches = (server.requests() - before) as u128;
    let allowed = start.elapsed().as_millis() / 100 + 1;
    assert!(fetches <= allowed, "{fetches} fetches for 200 clients, in the time of {allowed}");
    assert!(hawser.metric("edge_admission_refused_total{reason=\"unknown_key\"}") >= 200);
}

#[test]
fn the_owners_service_says_who_comes_in_and_what_it_says_is_remembered() {
    let server = HttpServer::start(free_address());
    let url = format!("--auth-url=http://user:word@{}/check", server.address());
    let flags = [&*url, "--auth-timeout=500ms", "--auth-calls-max=2", "--auth-cache=30s"];
    let hawser = Hawser::start(&flags);
    let at = hawser.listen();
    hawser.edge.wait_healthy();

    server.answer(200, r#"{"user":"alice","permissions":["send:users"]}"#);
    let mut alice = Client::request(at, "/ws", "").unwrap();
    assert_eq!(alice.connect("secret-token").unwrap()["user"], "alice");
    let asked = server.last_request();
    let expected =
        json!({ "token": "secret-token", "device_id": "balanced", "address": "127.0.0.1" });
    assert_eq!(serde_json::from_str::<Value>(&asked.body).unwrap(), expected);
    alice.say(json!({ "signal": { "user": "bob" } })).unwrap();
    assert_eq!(alice.hear("error").unwrap()["code"], "CODE_PERMISSION_DENIED");
    Client::open(at, "secret-token").unwrap();
    assert_eq!((server.requests(), hawser.metric("edge_auth_cache_hits_total")), (1, 1));

    let in_head = |token: &str| Client::request(at, "/ws", &bearer(token));
    server.answer(200, r#"{"user":"bob"}"#);
    in_head("other").unwrap().connect("").unwrap();
    assert!(!server.last_request().body.contains("device_id"));
    for status in [401, 403] {
        server.answer(status, "");
        let told = refusal(in_head(&format!("refused-{status}")));
        assert!(told.starts_with("HTTP/1.1 401 "), "{told}");
    }
    for (status, body) in [(500, ""), (404, ""), (302, ""), (200, "{}"), (200, r#"{"user":""}"#)] {
        server.answer(status, body);
        let told = refusal(in_head("unlucky"));
        assert!(told.starts_with("HTTP/1.1 503 "), "{status} {body}: {told}");
        hawser.wait_health(200, "degraded: --auth-url: http://127.0.0.1:");
    }
    server.answer_late(Duration::from_secs(60));
    let told = refusal(Client::open(at, "late"));
    assert!(told.contains("frame 0x88: [3, 245"), "1013: {told}");
    within_patience("the server to notice", || (server.in_flight() == 0).then_some(()));
    // Two are in flight, the others wait for their turn until their time is over.
    let clients: Vec<_> = (0..8)
        .map(|n| std::thread::spawn(move || refusal(Client::open(at, &format!("late-{n}")))))
        .collect();
    for client in clients {
        let told = client.join().unwrap();
        assert!(told.contains("frame 0x88: [3, 245"), "1013: {told}");
    }
    assert_eq!(server.in_flight_max(), 2);
    server.answer(200, r#"{"user":"carol"}"#);
    Client::open(at, "late").unwrap();
    hawser.wait_health(200, "ok");
    assert_eq!(hawser.metric("edge_auth_calls_total{outcome=\"refused\"}"), 2);
    assert_eq!(hawser.metric("edge_auth_calls_total{outcome=\"failed\"}"), 5);
    assert_eq!(hawser.metric("edge_auth_calls_total{outcome=\"late\"}"), 9);
    hawser.assert_log_without(&["secret-token", "word", "unlucky", "late-"]);
    assert!(hawser.folder.path().exists());
}

#[test]
fn a_file_of_keys_is_read_again_on_sighup_and_a_broken_one_changes_nothing() {
    let (old, new) = (Issuer::es256(), Issuer::eddsa());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, old.pem()).unwrap();
    let hawser = Hawser::start(&[&format!("--jwt-key-file={}", file.path().display())]);
    let at = hawser.listen();
    let (by_old, by_new) = (old.token(&claims("alice", 600)), new.token(&claims("alice", 600)));
    let mut carol = Client::open(at, &old.token(&claims("carol", 600))).unwrap();
    let told = refusal(Client::request(at, "/ws", &bearer(&by_new)));
    assert!(told.starts_with("HTTP/1.1 401 "), "{told}");

    std::fs::write(&file, new.private_pem()).unwrap();
    hawser.edge.process.signal(Signal::HUP);
    within_patience("a refused reload", || {
        let refused = hawser.metric("edge_reloads_total{outcome=\"refused\"}");
        (refused == 1).then_some(())
    });
    assert!(hawser.edge.process.log().contains("holds a private key"));
    Client::open(at, &by_old).unwrap();

    std::fs::write(&file, new.pem()).unwrap();
    hawser.edge.process.signal(Signal::HUP);
    within_patience("a client with the new key", || Client::open(at, &by_new).ok());
    let told = refusal(Client::request(at, "/ws", &bearer(&by_old)));
    assert!(told.starts_with("HTTP/1.1 401 "), "{told}");
    carol.send("bob", "m1", "aGk=").unwrap();
}
