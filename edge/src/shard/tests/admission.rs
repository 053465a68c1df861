//! Tokens: in the request, in Connect, in Refresh; what they allow, and when they end.

use std::io::Write as _;

use hawser_proto::view::client::{Refresh, Signal};

use super::*;
use crate::auth::ask::{self, Ask};
use crate::auth::tokens::Issuer;
use crate::auth::{Grant, UserId};

/// Issuers of the tokens that come in these tests, and the keys that check them.
struct Door {
    issuer: Issuer,
    auth: Auth,
}

impl Door {
    fn new(flags: &[&str]) -> Self {
        let issuer = Issuer::es256();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(issuer.pem().as_bytes()).unwrap();
        let path = file.path().to_str().unwrap();
        let args = ["hawser-edge", "--jwt-key-file", path].into_iter().chain(flags.iter().copied());
        let config = Config::read(args.map(Into::into), []).unwrap();
        Self { issuer, auth: Auth::load(&config).unwrap().0 }
    }

    fn rig(&self) -> Rig {
        Rig::given(Given { auth: self.auth.clone(), ..Given::default() }, |_| {})
    }

    /// A token of `user` that expires so many seconds after the rig's first moment, with more claims.
    fn token(&self, user: &str, seconds: i64, more: &[(&str, serde_json::Value)]) -> String {
        let mut claims = serde_json::json!({ "sub": user, "exp": 1_000 + seconds });
        for (name, value) in more {
            claims[name] = value.clone();
        }
        self.issuer.token(&claims)
    }
}

/// The head of a request that brings a token in Authorization.
fn head_with(token: &str) -> String {
    HEAD.replacen("Host:", &format!("Authorization: Bearer {token}\r\nHost:"), 1)
}

#[test]
fn a_token_in_connect_opens_a_session_that_ends_with_it() {
    let door = Door::new(&[]);
    let mut rig = door.rig();
    rig.link_up();
    let key = rig.connecting();
    rig.says(key, connect(&door.token("alice", 60, &[]), "phone"));
    assert_eq!(rig.router_hears()[1..], ["register alice phone None answer"]);
    rig.router_says(RouterMessage::Registered(link::Registered {
        connection: key.to_connection_id(0),
        resumed: true,
        ..link::Registered::default()
    }));
    let sent = rig.sent(key);
    let Ok(ServerFrame::Welcome(welcome)) = ServerFrame::read(&sent[2..]) else { panic!() };
    assert_eq!(welcome.token_expires_at_ms, 1_060_000);
    // It says something often enough, which does not help it past the token's end and the clocks' difference.
    for second in 0..90 {
        assert!(rig.gets(key).is_empty(), "second {second}");
        rig.says(key, ClientFrame::Ack(Ack::default()));
        rig.advance(Duration::from_secs(1));
    }
    assert_eq!(rig.gets(key), [Got::Close(4401)]);
    rig.shard.apply(rig.now, Event::Ended { key, errno: 0 });
    assert_eq!(rig.shard.counters.closed_for("token_expired"), 1);
}

#[test]
fn a_token_that_ends_while_the_router_is_awaited_ends_the_connection() {
    let door = Door::new(&["--jwt-clock-skew=0s"]);
    let mut rig = door.rig();
    let key = rig.connecting();
    rig.says(key, connect(&door.token("alice", 3, &[]), "phone"));
    rig.advance(Duration::from_secs(2));
    assert_eq!(rig.gets(key), []);
    rig.advance(Duration::from_secs(1));
    assert_eq!(rig.gets(key), [Got::Close(4401)]);
}

#[test]
fn a_newer_token_lets_the_session_go_on_and_changes_what_it_may_do() {
    let door = Door::new(&[]);
    let mut rig = door.rig();
    rig.link_up();
    let key = rig.session(&door.token("alice", 20, &[]), "phone");
    rig.advance(Duration::from_secs(20));
    let newer = door.token("alice", 120, &[("permissions", serde_json::json!(["signals"]))]);
    rig.says(key, ClientFrame::Refresh(Refresh { token: &newer }));
    assert_eq!(rig.gets(key), [frame("refreshed until 1120000")]);
    rig.says(key, send("m1", "bob", b"hello"));
    assert_eq!(rig.gets(key), [frame("nack m1 CODE_PERMISSION_DENIED")]);
    for _ in 0..13 {
        rig.says(key, ClientFrame::Ack(Ack::default()));
        rig.advance(Duration::from_secs(10));
    }
    assert_eq!(rig.gets(key), [Got::Close(4401)]);
    assert_eq!(rig.shard.counters.refreshed.get(), 1);
}

#[test]
fn a_newer_token_may_end_earlier() {
    let door = Door::new(&["--jwt-clock-skew=0s"]);
    let mut rig = door.rig();
    rig.link_up();
    let key = rig.session(&door.token("alice", 600, &[]), "phone");
    let shorter = door.token("alice", 2, &[]);
    rig.says(key, ClientFrame::Refresh(Refresh { token: &shorter }));
    assert_eq!(rig.gets(key), [frame("refreshed until 1002000")]);
    rig.advance(Duration::from_secs(2));
    assert_eq!(rig.gets(key), [Got::Close(4401)]);
}

#[test]
fn a_newer_token_that_is_no_good_is_told_and_the_one_before_still_counts() {
    let door = Door::new(&[]);
    let mut rig = door.rig();
    rig.link_up();
    let key = rig.session(&door.token("alice", 600, &[]), "phone");
    let device = [("device", serde_json::json!("tablet"))];
    for (token, reason) in [
        (door.token("bob", 600, &[]), "other_user"),
        (door.token("alice", 600, &device), "device"),
        (door.token("alice", -60, &[]), "expired"),
        ("x".repeat(5000), "too_long"),
        (String::new(), "missing"),
    ] {
        rig.says(key, ClientFrame::Refresh(Refresh { token: &token }));
        assert_eq!(rig.gets(key), [frame("error CODE_UNAUTHENTICATED")], "{reason}");
        assert_eq!(rig.shard.counters.admission_refused_for(reason), 1, "{reason}");
    }
    rig.says(key, send("m1", "bob", b"hello"));
    assert_eq!(rig.router_hears(), ["send 1 alice>bob m1"]);
}

#[test]
fn what_the_token_does_not_allow_is_refused_and_counted() {
    let door = Door::new(&[]);
    let mut rig = door.rig();
    rig.link_up();
    let none = [("permissions", serde_json::json!([]))];
    let key = rig.session(&door.token("alice", 600, &none), "phone");
    rig.says(key, send("m1", "bob", b"hello"));
    let to_group = Send { client_message_id: "m2", to_group: "crew", ..Send::default() };
    rig.says(key, ClientFrame::Send(to_group));
    rig.says(key, ClientFrame::Signal(Signal { user: "bob", ..Signal::default() }));
    let denied = [
        frame("nack m1 CODE_PERMISSION_DENIED"),
        frame("nack m2 CODE_PERMISSION_DENIED"),
        frame("error CODE_PERMISSION_DENIED"),
    ];
    assert_eq!(rig.gets(key), denied);
    assert!(rig.router_hears().is_empty());
    let mut metrics = String::new();
    crate::metrics::render(&[Arc::clone(&rig.shard.counters)], &mut metrics);
    for line in
        ["edge_send_failures_total{code=\"permission_denied\"} 2", "edge_signals_denied_total 1"]
    {
        assert!(metrics.contains(line), "{line}");
    }

    let groups = [("permissions", serde_json::json!(["send:groups"]))];
    let key = rig.session(&door.token("carol", 600, &groups), "phone");
    rig.says(key, ClientFrame::Send(to_group));
    assert_eq!(rig.router_hears(), ["send 1 carol> m2"]);
}

#[test]
fn a_token_in_the_request_is_checked_before_the_upgrade_and_connect_needs_none() {
    let door = Door::new(&[]);
    let mut rig = door.rig();
    rig.link_up();
    rig.router_hears();
    let token = door.token("alice", 600, &[]);
    for head in [head_with(&token), HEAD.replacen("/ws", &format!("/ws?access_token={token}"), 1)] {
        let key = rig.accept();
        rig.receive(key, head.as_bytes());
        assert_eq!(rig.gets(key), [Got::Http(101)]);
        rig.says(key, connect("", "phone"));
        assert!(rig.router_hears().contains(&"register alice phone None answer".to_owned()));
    }
    let key = rig.accept();
    rig.receive(key, head_with(&token).as_bytes());
    assert_eq!(rig.gets(key), [Got::Http(101)]);
    rig.says(key, connect(&door.token("bob", 600, &[]), "phone"));
    assert_eq!(rig.gets(key), [frame("error CODE_UNAUTHENTICATED"), Got::Close(1008)]);
    assert_eq!(rig.shard.counters.admission_refused_for("other_user"), 1);
}

#[test]
fn a_bad_token_in_the_request_is_answered_with_401_and_counted_under_its_reason() {
    let door = Door::new(&[]);
    let mut rig = door.rig();
    let expired = door.token("alice", -60, &[]);
    for (head, status, reason) in [
        (head_with(&expired), 401, "expired"),
        (head_with("alice"), 401, "malformed"),
        (HEAD.replacen("/ws", "/ws?access_token=%00", 1), 401, "malformed"),
        (
            HEAD.replacen("/ws", &format!("/ws?access_token={}", "x".repeat(5000)), 1),
            401,
            "too_long",
        ),
    ] {
        let before = rig.shard.counters.admission_refused_for(reason);
        let key = rig.accept();
        rig.receive(key, head.as_bytes());
        assert_eq!(rig.gets(key), [Got::Http(status)], "{reason}");
        assert_eq!(rig.shard.counters.admission_refused_for(reason), before + 1, "{reason}");
    }
}

#[test]
fn without_any_token_and_with_one_for_another_device_connect_is_refused() {
    let door = Door::new(&[]);
    let mut rig = door.rig();
    let other = door.token("alice", 600, &[("device", serde_json::json!("tablet"))]);
    for (token, reason) in [("", "missing"), (&other, "device"), ("alice", "malformed")] {
        let key = rig.connecting();
        rig.says(key, connect(token, "phone"));
        assert_eq!(rig.gets(key), [frame("error CODE_UNAUTHENTICATED"), Got::Close(1008)]);
        assert_eq!(rig.shard.counters.admission_refused_for(reason), 1, "{reason}");
    }
}

#[test]
fn a_page_that_is_not_on_the_list_is_answered_with_403_and_counted() {
    let mut rig = Rig::with(|config| {
        config.admission.allowed_origins = vec!["https://app.example.com".parse().unwrap()];
    });
    for (origin, status) in [("https://evil.example", 403), ("https://app.example.com", 101)] {
        let key = rig.accept();
        let head = HEAD.replacen("Host:", &format!("Origin: {origin}\r\nHost:"), 1);
        rig.receive(key, head.as_bytes());
        assert_eq!(rig.gets(key), [Got::Http(status)], "{origin}");
    }
    assert_eq!(rig.shard.counters.admission_refused_for("origin"), 1);
    rig.connecting();
}

/// A shard whose tokens are asked about, and the auth thread, played by the test.
struct Asking {
    rig: Rig,
    asks: tokio::sync::mpsc::Receiver<Ask>,
}

impl Asking {
    fn new() -> Self {
        let (asks, receiver) = ask::channel();
        let auth = Auth::asking(asks);
        let mut rig = Rig::given(Given { auth, ..Given::default() }, |_| {});
        rig.link_up();
        rig.router_hears();
        Self { rig, asks: receiver }
    }

    /// A session of `user`, whose token was asked about.
    fn session(&mut self, token: &str, user: &str) -> ConnKey {
        let key = self.connecting(token);
        let ask = self.asked();
        self.answer(&ask, Ok(user));
        self.rig.registered(key, 0);
        self.rig.gets(key);
        key
    }

    /// What is asked next.
    fn asked(&mut self) -> Ask {
        self.asks.try_recv().unwrap()
    }

    fn answer(&mut self, ask: &Ask, outcome: Result<&str, Refused>) {
        let outcome = outcome.map(|user| Identity {
            user: UserId::from(user).unwrap(),
            device: None,
            expires_at_ms: None,
            grant: Grant::ALL,
        });
        let verdict = Verdict { key: ask.key, outcome };
        self.rig.mesh.try_command(0, Command::Verdict(Box::new(verdict))).unwrap();
        self.rig.turn();
    }

    /// A client that has said Connect and whose token is being asked about.
    fn connecting(&mut self, token: &str) -> ConnKey {
        let key = self.rig.connecting();
        self.rig.says(key, connect(token, "phone"));
        key
    }
}

#[test]
fn a_connect_waits_for_the_verdict_and_what_came_behind_it_is_dealt_with_then() {
    let mut asking = Asking::new();
    let key = asking.connecting("token");
    let ask = asking.asked();
    assert_eq!((&*ask.token, &*ask.device), ("token", "phone"));
    assert!(!asking.rig.is_read_from(key));
    // Under way when the edge stopped reading.
    asking.rig.says(key, send("m1", "bob", b"hello"));
    asking.rig.shard.apply(asking.rig.now, Event::ReceiveStopped { key });
    assert_eq!(asking.rig.gets(key), []);
    assert!(asking.rig.router_hears().is_empty());
    asking.answer(&ask, Ok("alice"));
    let heard = asking.rig.router_hears();
    assert_eq!(heard, ["register alice phone None answer", "send 1 alice>bob m1"]);
    assert!(asking.rig.is_read_from(key));
}

#[test]
fn frames_in_one_piece_with_connect_wait_too_also_when_they_are_cut() {
    let mut asking = Asking::new();
    let key = asking.rig.connecting();
    let mut bytes = Vec::new();
    for frame in [connect("token", "phone"), send("m1", "bob", b"hello"), send("m2", "bob", b"")] {
        let mut payload = Vec::new();
        frame.write(&mut payload);
        ws::write_masked_message(&mut bytes, Opcode::Binary, &payload, [1, 2, 3, 4]);
    }
    let (front, back) = bytes.split_at(bytes.len() - 3);
    asking.rig.receive(key, front);
    asking.rig.receive(key, back);
    let ask = asking.asked();
    asking.answer(&ask, Ok("alice"));
    let heard = asking.rig.router_hears();
    assert_eq!(heard[1..], ["send 1 alice>bob m1", "send 2 alice>bob m2"]);
}

#[test]
fn a_refusal_and_a_service_that_cannot_be_had_end_a_connect_in_their_own_ways() {
    for (refused, code, close) in [
        (Refused::ByService, "error CODE_UNAUTHENTICATED", 1008),
        (Refused::Unavailable, "error CODE_UNAVAILABLE", 1013),
        (Refused::Overloaded, "error CODE_OVERLOADED", 1013),
    ] {
        let mut asking = Asking::new();
        let key = asking.connecting("token");
        asking.rig.says(key, send("m1", "bob", b"hello"));
        let ask = asking.asked();
        asking.answer(&ask, Err(refused));
        assert_eq!(asking.rig.gets(key), [frame(code), Got::Close(close)]);
        assert_eq!(asking.rig.shard.counters.admission_refused_for(refused.label()), 1);
    }
}

#[test]
fn a_request_with_a_token_is_answered_when_the_verdict_is_there() {
    for (outcome, answer) in [
        (Ok("alice"), Got::Http(101)),
        (Err(Refused::ByService), Got::Http(401)),
        (Err(Refused::Unavailable), Got::Http(503)),
    ] {
        let mut asking = Asking::new();
        let key = asking.rig.accept();
        let mut bytes = head_with("token").into_bytes();
        // Behind the head: a client should await the answer, one that did not loses nothing.
        let mut payload = Vec::new();
        connect("", "phone").write(&mut payload);
        ws::write_masked_message(&mut bytes, Opcode::Binary, &payload, [1, 2, 3, 4]);
        asking.rig.receive(key, &bytes);
        assert_eq!(asking.rig.gets(key), []);
        assert_eq!(asking.rig.shard.counters.handshakes.get(), 1);
        let ask = asking.asked();
        assert_eq!((&*ask.token, &*ask.device), ("token", ""));
        asking.answer(&ask, outcome);
        assert_eq!(asking.rig.gets(key), [answer]);
        let expected: &[&str] = match outcome {
            Ok(_) => &["register alice phone None answer"],
            Err(_) => &[],
        };
        assert_eq!(asking.rig.router_hears(), expected);
        assert_eq!(asking.rig.shard.counters.handshakes.get(), 0);
    }
}

#[test]
fn a_verdict_that_does_not_come_is_given_up_and_one_that_comes_late_hits_nobody() {
    let mut asking = Asking::new();
    let key = asking.connecting("token");
    let ask = asking.asked();
    let in_head = asking.rig.accept();
    asking.rig.receive(in_head, head_with("token").as_bytes());
    asking.rig.advance(Duration::from_secs(4));
    assert_eq!((asking.rig.gets(key), asking.rig.gets(in_head)), (vec![], vec![]));
    asking.rig.advance(Duration::from_secs(1));
    assert_eq!(asking.rig.gets(key), [frame("error CODE_UNAVAILABLE"), Got::Close(1013)]);
    assert_eq!(asking.rig.gets(in_head), [Got::Http(503)]);
    asking.answer(&ask, Ok("alice"));
    asking.rig.shard.apply(asking.rig.now, Event::Ended { key, errno: 0 });
    asking.answer(&ask, Ok("alice"));
    let next = asking.connecting("other");
    assert_eq!(next.index(), key.index(), "it has the slot of the one before");
    asking.answer(&ask, Ok("alice"));
    assert!(asking.rig.router_hears().is_empty());
}

#[test]
fn a_client_that_goes_on_and_on_while_its_token_is_asked_about_is_ended() {
    let mut asking = Asking::new();
    let key = asking.connecting("token");
    let payload = vec![0; 60_000];
    for _ in 0..4 {
        asking.rig.says(key, send("m1", "bob", &payload));
    }
    assert_eq!(asking.rig.gets(key), []);
    asking.rig.says(key, send("m1", "bob", &payload));
    assert_eq!(asking.rig.gets(key), [Got::Close(1008)]);
    assert_eq!(asking.rig.shard.counters.closed_for("early_frames"), 0);
    asking.rig.shard.apply(asking.rig.now, Event::Ended { key, errno: 0 });
    assert_eq!(asking.rig.shard.counters.closed_for("early_frames"), 1);
}

#[test]
fn at_the_bound_of_questions_clients_are_asked_to_come_back() {
    let mut asking = Asking::new();
    let key = asking.session("token", "alice");
    // All of them by one shard, of connections that are gone at once.
    for _ in 0..ask::ASKS_MAX {
        let key = asking.rig.accept();
        asking.rig.receive(key, head_with("token").as_bytes());
        asking.rig.shard.apply(asking.rig.now, Event::Ended { key, errno: 0 });
        asking.rig.outputs.clear();
    }
    let late = asking.rig.accept();
    asking.rig.receive(late, head_with("token").as_bytes());
    assert_eq!(asking.rig.gets(late), [Got::Http(503)]);
    asking.rig.says(key, ClientFrame::Refresh(Refresh { token: "newer" }));
    assert_eq!(asking.rig.gets(key), [frame("error CODE_OVERLOADED")]);
    assert_eq!(asking.rig.shard.counters.admission_refused_for("overloaded"), 2);
}

#[test]
fn a_session_goes_on_while_its_refresh_is_asked_about_and_the_next_one_has_to_wait() {
    let mut asking = Asking::new();
    let key = asking.session("token", "alice");
    asking.rig.router_hears();
    asking.rig.says(key, ClientFrame::Refresh(Refresh { token: "newer" }));
    asking.rig.says(key, ClientFrame::Refresh(Refresh { token: "newest" }));
    asking.rig.says(key, send("m1", "bob", b"hello"));
    assert_eq!(asking.rig.gets(key), [frame("error CODE_OVERLOADED")]);
    assert_eq!(asking.rig.router_hears(), ["send 1 alice>bob m1"]);
    let ask = asking.asked();
    assert_eq!((&*ask.token, &*ask.device), ("newer", "phone"));
    asking.answer(&ask, Ok("alice"));
    assert_eq!(asking.rig.gets(key), [frame("refreshed until 0")]);
    // Nobody has asked for this one.
    asking.answer(&ask, Err(Refused::ByService));
    assert_eq!(asking.rig.gets(key), []);
    asking.rig.says(key, ClientFrame::Refresh(Refresh { token: "newest" }));
    let ask = asking.asked();
    asking.answer(&ask, Err(Refused::Unavailable));
    assert_eq!(asking.rig.gets(key), [frame("error CODE_UNAVAILABLE")]);
}
