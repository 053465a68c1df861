//! What the server API does not do, and how it says so.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Client, KEY, key_entry, start};
use crate::harness::Router;

const MESSAGES: &str = "/v1/users/bob/messages";

fn refused(api: &Client, path: &str, body: &Value, names: &str) {
    let reply = api.post(path, body);
    assert_eq!((reply.status, reply.code()), (400, "INVALID_ARGUMENT"), "{body} {reply:?}");
    assert!(reply.message().contains(names), "{names}: {reply:?}");
    assert_eq!(reply.body["error"]["retryable"], false);
}

#[test]
fn a_wrong_field_is_named_and_nothing_is_stored() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &[]);
    let long = "x".repeat(65);
    refused(&api, MESSAGES, &json!({ "text": "a", "tet": "b" }), "tet");
    refused(&api, MESSAGES, &json!({ "text": 7 }), "text");
    refused(&api, MESSAGES, &json!({}), "exactly one");
    refused(&api, MESSAGES, &json!({ "text": "a", "payload": "YQ==" }), "exactly one");
    refused(&api, MESSAGES, &json!({ "payload": "a" }), "payload");
    refused(&api, MESSAGES, &json!({ "text": "a", "expires_after_ms": 0 }), "expires_after_ms");
    refused(&api, MESSAGES, &json!({ "text": "a", "expires_after_ms": -1 }), "expires_after_ms");
    refused(&api, MESSAGES, &json!({ "text": "a", "from": "" }), "user id");
    refused(&api, MESSAGES, &json!({ "text": "a", "from": long }), "user id");
    refused(&api, &format!("/v1/users/{long}/messages"), &json!({ "text": "a" }), "user id");
    let text = json!({ "text": "a" });
    refused(&api, "/v1/messages", &json!({ "to": [], "message": text }), "to: has 0");
    refused(&api, "/v1/messages", &json!({ "to": vec!["u"; 1_001], "message": text }), "1 to 1000");
    refused(&api, "/v1/messages", &json!({ "to": ["u"], "message": { "txt": "a" } }), "txt");
    refused(&api, "/v1/messages", &json!({ "to": ["u"] }), "message");
    refused(&api, "/v1/online", &json!({ "users": [], }), "users: has 0");
    refused(&api, "/v1/online", &json!({ "users": vec!["u"; 1_001] }), "1 to 1000");
    refused(&api, "/v1/online", &json!({ "user": ["u"] }), "user");
    for id in [&long, "", "grüß"] {
        let reply = api.call("POST", MESSAGES, &[("Idempotency-Key", id)], Some(&text));
        assert_eq!((reply.status, reply.code()), (400, "INVALID_ARGUMENT"), "{id}");
        assert!(reply.message().contains("Idempotency-Key"), "{reply:?}");
    }
    for path in ["/v1/messages/seven", "/v1/messages/7?usr=bob", "/v1/messages/7?user="] {
        let reply = api.get(path);
        assert_eq!((reply.status, reply.code()), (400, "INVALID_ARGUMENT"), "{path}: {reply:?}");
    }
    let device = "d".repeat(41);
    assert_eq!(api.delete(&format!("/v1/users/bob/connections/{device}")).status, 400);
    assert_eq!(api.get("/v1/users//inbox").status, 400);
    assert_eq!(router.metric("router_sends_accepted_total"), 0);
}

#[test]
fn a_body_that_is_no_json_or_too_large_is_refused() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &[]);
    let bearer = format!("Bearer {KEY}");
    let key = ("Authorization", bearer.as_str());
    let post = |kind: &str, body: &[u8]| {
        let headers = [key, ("Content-Type", kind)];
        let headers = if kind.is_empty() { &headers[..1] } else { &headers[..] };
        api.send("POST", MESSAGES, headers, body)
    };
    for kind in ["", "text/plain", "application/x-www-form-urlencoded"] {
        let reply = post(kind, br#"{"text":"a"}"#);
        assert_eq!((reply.status, reply.code()), (415, "INVALID_ARGUMENT"), "{kind}: {reply:?}");
    }
    for body in [&b""[..], b"{", b"[]", b"\xff", br#"{"text":"a"} {}"#] {
        let reply = post("application/json", body);
        assert_eq!((reply.status, reply.code()), (400, "INVALID_ARGUMENT"), "{body:?}: {reply:?}");
    }
    assert_eq!(post("application/json; charset=utf-8", br#"{"text":"a"}"#).status, 200);
    let text = |bytes: usize| json!({ "text": "x".repeat(bytes) });
    assert_eq!(api.post(MESSAGES, &text(1024 * 1024)).status, 200);
    for bytes in [1024 * 1024 + 1, 2 * 1024 * 1024] {
        let reply = api.post(MESSAGES, &text(bytes));
        assert_eq!((reply.status, reply.code()), (413, "TOO_LARGE"), "{bytes}");
    }
    let many = json!({ "to": vec!["u"; 17], "message": text(1024 * 1024) });
    assert_eq!(api.post("/v1/messages", &many).code(), "TOO_LARGE");
    assert_eq!(router.metric("router_sends_accepted_total"), 2);
}

#[test]
fn a_path_or_a_method_that_is_not_there_is_said_in_the_same_shape() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &[]);
    for (method, path, status, code) in [
        ("GET", "/", 404, "NOT_FOUND"),
        ("GET", "/v1/users/bob", 404, "NOT_FOUND"),
        ("PUT", "/v1/messages", 405, "UNSUPPORTED"),
        ("POST", "/openapi.json", 405, "UNSUPPORTED"),
    ] {
        let reply = api.send(method, path, &[], b"");
        assert_eq!((reply.status, reply.code()), (status, code), "{method} {path}");
    }
    assert_eq!(router.metric("router_api_requests_total{route=\"GET none\",status=\"404\"}"), 2);
}

#[test]
fn a_key_sends_as_itself_alone_unless_it_may_as_others() {
    let folder = TempDir::new().unwrap();
    let keys = key_entry("orders", "k", &["publish"], "");
    let (_router, api) = start(folder.path(), &keys, &[]);
    let post = |body: Value| {
        let headers = [("Authorization", "bearer k"), ("Content-Type", "application/json")];
        api.send("POST", MESSAGES, &headers, body.to_string().as_bytes())
    };
    assert_eq!(post(json!({ "text": "a" })).status, 200);
    assert_eq!(post(json!({ "text": "a", "from": "orders" })).status, 200);
    let reply = post(json!({ "text": "a", "from": "alice" }));
    assert_eq!((reply.status, reply.code()), (403, "PERMISSION_DENIED"));
    assert!(reply.message().contains("publish_as"), "{reply:?}");
    for header in ["Bearer", "Basic k", "Bearer K", "k", "Bearer  "] {
        let reply = api.send("GET", "/v1/users/bob/inbox", &[("Authorization", header)], b"");
        assert_eq!((reply.status, reply.code()), (401, "UNAUTHENTICATED"), "{header}");
    }
}

#[test]
fn a_key_over_its_rate_is_told_for_how_long_and_many_recipients_count() {
    let folder = TempDir::new().unwrap();
    let rate = "per_second = 1\nburst = 3";
    let keys = key_entry("slow", "k", &["publish", "inbox"], rate);
    let (_router, api) = start(folder.path(), &keys, &[]);
    let headers = [("Authorization", "Bearer k"), ("Content-Type", "application/json")];
    let many = json!({ "to": vec!["u"; 1_000], "message": { "text": "a" } }).to_string();
    assert_eq!(api.send("POST", "/v1/messages", &headers, many.as_bytes()).status, 200);
    let reply = api.send("GET", "/v1/users/bob/inbox", &headers[..1], b"");
    assert_eq!((reply.status, reply.code()), (429, "OVERLOADED"));
    assert_eq!(reply.body["error"]["retryable"], true);
    let after = reply.head.split("retry-after: ").nth(1).unwrap();
    let seconds: u64 = after.lines().next().unwrap().trim().parse().unwrap();
    assert!((900..=998).contains(&seconds), "{seconds}");
    // Another key has its own.
    assert_eq!(api.get("/v1/users/bob/inbox").status, 200);
}

#[test]
fn keys_are_exchanged_by_sighup_and_a_file_that_is_wrong_changes_nothing() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &[]);
    let status = |key: &str| {
        let bearer = format!("Bearer {key}");
        api.send("GET", "/v1/users/bob/inbox", &[("Authorization", &bearer)], b"").status
    };
    assert_eq!((status(KEY), status("new")), (200, 401));
    let file = folder.path().join("keys.toml");
    std::fs::write(&file, key_entry("new", "new", &["inbox"], "")).unwrap();
    router.signal(rustix::process::Signal::HUP);
    router.wait_until("the new key counts", |_| status("new") == 200);
    assert_eq!(status(KEY), 401);
    std::fs::write(&file, "[[key]]\nname = 1\n").unwrap();
    router.signal(rustix::process::Signal::HUP);
    std::fs::write(&file, key_entry("newer", "newer", &["inbox"], "")).unwrap();
    router.signal(rustix::process::Signal::HUP);
    router.wait_until("the newer key counts", |_| status("newer") == 200);
}

#[test]
fn a_file_of_keys_that_cannot_be_used_keeps_the_router_from_starting() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("keys.toml");
    let api = ["--api", "127.0.0.1:0"];
    let refused = |arguments: &[&str], names: &str| {
        let (status, said) = Router::run(folder.path(), &[&api[..], arguments].concat());
        assert_eq!(status.code(), Some(64), "{said}");
        assert!(said.lines().last().unwrap_or_default().contains(names), "{said}");
    };
    let keys = ["--api-keys", file.to_str().unwrap()];
    refused(&[], "--api-keys");
    refused(&keys, "--api-keys");
    std::fs::write(&file, key_entry("a", "k", &["publsh"], "")).unwrap();
    refused(&keys, "publsh");
    std::fs::write(&file, key_entry("a", "k", &["publish"], "")).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, said) = Router::run(folder.path(), &[&["--api", &address][..], &keys].concat());
    assert!(status.code() == Some(64) && said.contains("--api: "), "{said}");
}
