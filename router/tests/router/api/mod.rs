//! The server API of the real process.

mod client;
mod refusals;
mod routers;

use hawser_proto::link::disconnect::Reason;
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{Ack, Disconnect, Unregister};
use serde_json::{Value, json};
use tempfile::TempDir;

use self::client::{KEY, key_entry, start};
use crate::harness::{Edge, register};

fn acknowledge(edge: &mut Edge, connection: u64, user: &str, sequence: u64) {
    let user = user.to_owned();
    edge.say(Inbound::Ack(Ack { connection, user, sequence, read_sequence: None }));
}

#[test]
fn what_is_published_is_delivered_in_each_of_its_forms() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &[]);
    let mut edge = router.edge("edge-1", 1);
    edge.register(register(2, "bob", "phone", None));
    let bodies = [
        (json!({ "payload": "AP8=" }), &b"\x00\xff"[..], "service"),
        (json!({ "text": "grüß" }), "grüß".as_bytes(), "service"),
        (json!({ "json": { "a": [1, 2] }, "from": "alice" }), br#"{"a":[1,2]}"#, "alice"),
        (json!({ "text": "", "from": "service", "expires_after_ms": 60_000 }), b"", "service"),
    ];
    for (sequence, (body, payload, from)) in (1..).zip(bodies) {
        let accepted = api.post("/v1/users/bob/messages", &body);
        assert_eq!(accepted.status, 200, "{accepted:?}");
        let deliver = edge.hear_deliver();
        assert_eq!((&*deliver.payload, deliver.from.as_str()), (payload, from));
        assert_eq!(deliver.sequence, sequence);
        assert_eq!(accepted.body["message_id"], deliver.message_id.to_string());
        assert_eq!(accepted.body["time_ms"], deliver.time_ms);
    }
    assert_eq!(router.metric("router_sends_accepted_total"), 4);
    let counted =
        r#"router_api_requests_total{route="POST /v1/users/{user}/messages",status="200"}"#;
    assert_eq!(router.metric(counted), 4);
}

#[test]
fn a_request_with_the_same_idempotency_key_has_the_same_answer_and_stores_nothing_twice() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &[]);
    let headers = [("Idempotency-Key", "order-7")];
    let body = json!({ "text": "hello" });
    let send = || api.call("POST", "/v1/users/bob/messages", &headers, Some(&body)).body;
    let first = send();
    assert_eq!(send(), first);
    let many = json!({ "to": ["bob", "carol", "bob"], "message": { "text": "hello" } });
    let send = || api.call("POST", "/v1/messages", &headers, Some(&many)).body;
    let results = send();
    assert_eq!(send(), results);
    assert_eq!(results["results"][0]["message_id"], first["message_id"]);
    assert_eq!(results["results"][2], results["results"][0]);
    assert_ne!(results["results"][1]["message_id"], first["message_id"]);
    // Without a key each is another.
    let other = api.post("/v1/users/bob/messages", &body).body;
    assert_ne!(other["message_id"], first["message_id"]);
    assert_eq!(api.get("/v1/users/bob/inbox").body["length"], 2);
    assert_eq!(
        router.metric("router_api_requests_total{route=\"POST /v1/messages\",status=\"200\"}"),
        2
    );
}

#[test]
fn many_recipients_get_a_message_each_and_one_that_is_wrong_does_not_stop_the_others() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &["--owners", "2"]);
    let mut to: Vec<String> = (0..1_000).map(|number| format!("user-{number}")).collect();
    to[500] = "x".repeat(65);
    let reply = api.post("/v1/messages", &json!({ "to": to, "message": { "text": "all" } }));
    assert_eq!(reply.status, 200);
    let results = reply.body["results"].as_array().unwrap();
    assert_eq!(results.len(), 1_000);
    for (index, (result, user)) in results.iter().zip(&to).enumerate() {
        assert_eq!(result["user"], *user);
        assert_eq!(result["message_id"].is_string(), index != 500, "{result}");
    }
    assert_eq!(results[500]["error"]["code"], "INVALID_ARGUMENT");
    assert_eq!(router.metric("router_sends_accepted_total"), 999);
}

#[test]
fn who_is_online_is_seen_with_edge_and_device_and_looked_up_for_many() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &[]);
    let reply = api.get("/v1/users/bob/connections");
    let nobody = json!({ "user": "bob", "online": false, "connections": [], "devices": [] });
    assert_eq!(reply.body, nobody);

    let mut edge = router.edge("edge-1", 1);
    edge.register(register(2, "bob", "phone", None));
    let reply = api.get("/v1/users/bob/connections").body;
    let connection = json!({
        "device": "phone", "edge": "edge-1", "connection": "2", "client_kind": "test",
        "client_version": "1", "connected_at_ms": 1,
    });
    assert_eq!((&reply["online"], &reply["connections"]), (&json!(true), &json!([connection])));
    assert_eq!(reply["devices"][0]["connected"], true);

    let mut other = router.edge("edge-2", 1);
    other.register(register(2, "bob", "desk", None));
    let users = json!({ "users": ["bob", "nobody", "x".repeat(65)] });
    let results = api.post("/v1/online", &users).body["results"].clone();
    assert_eq!(results[0], json!({ "user": "bob", "online": true, "connections": 2 }));
    assert_eq!(results[1], json!({ "user": "nobody", "online": false, "connections": 0 }));
    assert_eq!(results[2]["error"]["code"], "INVALID_ARGUMENT");

    // Whose link is down is not reached by what is sent now.
    drop(other);
    router.wait_until("one link is gone", |_| {
        api.post("/v1/online", &users).body["results"][0]["connections"] == 1
    });
}

#[test]
fn connections_are_closed_by_device_or_all() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &[]);
    let mut edge = router.edge("edge-1", 1);
    for (connection, device) in [(2, "phone"), (3, "desk"), (4, "watch")] {
        edge.register(register(connection, "bob", device, None));
    }
    let reason = Reason::Operator as i32;
    let closed = |edge: &mut Edge| match edge.hear() {
        Outbound::Disconnect(disconnect) => disconnect,
        other => panic!("wanted Disconnect, got {other:?}"),
    };
    let reply = api.delete("/v1/users/bob/connections/desk");
    assert_eq!(reply.body, json!({ "disconnected": 1 }));
    assert_eq!(closed(&mut edge), Disconnect { connection: 3, reason });
    edge.say(Inbound::Unregister(Unregister { connection: 3, user: "bob".to_owned() }));
    router.wait_until("it is gone", |router| router.metric("router_connections") == 2);

    assert_eq!(api.delete("/v1/users/bob/connections").body, json!({ "disconnected": 2 }));
    let mut both = [closed(&mut edge).connection, closed(&mut edge).connection];
    both.sort_unstable();
    assert_eq!(both, [2, 4]);
    assert_eq!(api.delete("/v1/users/nobody/connections").body, json!({ "disconnected": 0 }));
}

#[test]
fn an_inbox_is_seen_with_its_length_and_how_far_each_device_is() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &["--window", "2"]);
    let empty = json!({ "user": "bob", "length": 0, "floor": 1, "next": 1, "devices": [] });
    assert_eq!(api.get("/v1/users/bob/inbox").body, empty);
    for _ in 0..5 {
        api.post("/v1/users/bob/messages", &json!({ "text": "x" }));
    }
    let mut edge = router.edge("edge-1", 1);
    edge.register(register(2, "bob", "phone", None));
    assert_eq!([edge.hear_deliver().sequence, edge.hear_deliver().sequence], [1, 2]);
    let inbox = api.get("/v1/users/bob/inbox").body;
    assert_eq!(
        (&inbox["length"], &inbox["floor"], &inbox["next"]),
        (&json!(5), &json!(1), &json!(6))
    );
    let device = &inbox["devices"][0];
    assert_eq!((&device["in_flight"], &device["cursor"]), (&json!(2), &json!(0)));

    acknowledge(&mut edge, 2, "bob", 2);
    assert_eq!([edge.hear_deliver().sequence, edge.hear_deliver().sequence], [3, 4]);
    let inbox = api.get("/v1/users/bob/inbox").body;
    assert_eq!((&inbox["length"], &inbox["floor"]), (&json!(3), &json!(3)));
    assert_eq!(inbox["devices"][0]["cursor"], 2);
}

#[test]
fn a_message_is_traced_from_the_log_to_the_last_acknowledgement() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &[]);
    let body = json!({ "text": "x" });
    let accepted = api.post("/v1/users/bob/messages", &body).body;
    let id = accepted["message_id"].as_str().unwrap().to_owned();
    let path = format!("/v1/messages/{id}");
    let trace = || api.get(&path).body;
    let number: u64 = id.parse().unwrap();
    let appended = trace();
    assert_eq!(appended["user"], "bob");
    assert_eq!((&appended["sequence"], &appended["held"]), (&json!(1), &json!(true)));
    assert_eq!(
        (&appended["partition"], &appended["offset"]),
        (&json!(number >> 48), &json!(number << 16 >> 16))
    );
    assert_eq!((&appended["time_ms"], &appended["steps"]), (&accepted["time_ms"], &json!([])));

    let mut edge = router.edge("edge-1", 1);
    for (connection, device) in [(2, "phone"), (3, "desk")] {
        edge.register(register(connection, "bob", device, None));
        edge.hear_deliver();
    }
    let steps = |trace: &Value| -> Vec<(String, String, bool)> {
        let steps = trace["steps"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        steps.map(|s| (text(&s["step"]), text(&s["device"]), s["time_ms"].is_u64())).collect()
    };
    let step = |kind: &str, device: &str, timed| (kind.to_owned(), device.to_owned(), timed);
    let mut expected = vec![step("delivered", "phone", true), step("delivered", "desk", true)];
    assert_eq!(steps(&trace()), expected);
    assert_eq!(trace()["steps"][0]["connection"], json!({ "edge": "edge-1", "connection": "2" }));

    acknowledge(&mut edge, 2, "bob", 1);
    expected.push(step("acknowledged", "phone", true));
    router.wait_until("one acknowledgement", |_| steps(&trace()) == expected);
    assert_eq!(trace()["held"], true);
    acknowledge(&mut edge, 3, "bob", 1);
    expected.push(step("acknowledged", "desk", true));
    router.wait_until("both acknowledgements", |_| steps(&trace()) == expected);
    assert_eq!(trace()["held"], false);

    assert_eq!(api.get(&format!("{path}?user=bob")).status, 200);
    let elsewhere = api.get(&format!("{path}?user=carol"));
    assert_eq!((elsewhere.status, elsewhere.code()), (404, "NOT_FOUND"));
}

#[test]
fn what_is_not_remembered_is_told_by_inbox_and_cursors_or_said_to_be_unknown() {
    let folder = TempDir::new().unwrap();
    let (router, api) = start(folder.path(), "", &["--trace-steps", "0"]);
    let send = || api.post("/v1/users/bob/messages", &json!({ "text": "x" })).body;
    let ids: Vec<String> =
        (0..3).map(|_| send()["message_id"].as_str().unwrap().to_owned()).collect();
    let unknown = api.get(&format!("/v1/messages/{}", ids[1]));
    assert_eq!((unknown.status, unknown.code()), (404, "NOT_FOUND"));
    assert!(unknown.message().contains("?user="), "{unknown:?}");

    let path = format!("/v1/messages/{}?user=bob", ids[1]);
    assert_eq!(api.get(&path).body["sequence"], 2);
    let mut edge = router.edge("edge-1", 1);
    for (connection, device) in [(2, "phone"), (3, "desk")] {
        edge.register(register(connection, "bob", device, None));
        (0..3).for_each(|_| drop(edge.hear_deliver()));
    }
    acknowledge(&mut edge, 2, "bob", 2);
    let steps = || api.get(&path).body["steps"].clone();
    router.wait_until("the acknowledgement", |_| steps()[0]["step"] == "acknowledged");
    assert_eq!((&steps()[0]["device"], &steps()[0]["time_ms"]), (&json!("phone"), &Value::Null));
    assert_eq!((&steps()[1]["device"], &steps()[1]["step"]), (&json!("desk"), &json!("delivered")));

    acknowledge(&mut edge, 3, "bob", 3);
    acknowledge(&mut edge, 2, "bob", 3);
    router.wait_until("it is let go", |_| api.get(&path).status == 404);
    assert!(api.get(&path).message().contains("acknowledged by all"));
}

#[test]
fn the_document_has_every_route_and_says_which_scope_it_needs() {
    let all = ["publish", "online", "disconnect", "inbox", "trace"];
    let keys: String = all
        .iter()
        .map(|lacking| {
            let scopes: Vec<_> = all.iter().filter(|scope| *scope != lacking).copied().collect();
            key_entry(&format!("no-{lacking}"), &format!("lacks {lacking}"), &scopes, "")
        })
        .collect();
    let folder = TempDir::new().unwrap();
    let (_router, api) = start(folder.path(), &keys, &[]);
    let mut operations = Vec::new();
    for (template, methods) in api.document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method = method.to_ascii_uppercase();
            let path =
                template.replace("{user}", "bob").replace("{device}", "phone").replace("{id}", "7");
            let scope = operation["security"][0]["key"][0].as_str().unwrap();
            // Nothing but the key is looked at before the key.
            let reply = api.send(&method, &path, &[], b"");
            assert_eq!((reply.status, reply.code()), (401, "UNAUTHENTICATED"), "{method} {path}");
            assert!(reply.head.contains("www-authenticate: bearer"), "{}", reply.head);
            let lacking = format!("Bearer lacks {scope}");
            let reply = api.send(&method, &path, &[("Authorization", &lacking)], b"");
            assert_eq!((reply.status, reply.code()), (403, "PERMISSION_DENIED"), "{method} {path}");
            assert!(reply.message().contains(scope), "{reply:?}");
            let right = format!("Bearer {KEY}");
            let reply = api.send(&method, &path, &[("Authorization", &right)], b"");
            assert!(![401, 403, 405].contains(&reply.status), "{method} {path}: {reply:?}");
            operations.push(format!("{method} {template} {scope}"));
        }
    }
    operations.sort();
    let expected = [
        "DELETE /v1/users/{user}/connections disconnect",
        "DELETE /v1/users/{user}/connections/{device} disconnect",
        "GET /v1/messages/{id} trace",
        "GET /v1/users/{user}/connections online",
        "GET /v1/users/{user}/inbox inbox",
        "POST /v1/messages publish",
        "POST /v1/online online",
        "POST /v1/users/{user}/messages publish",
    ];
    assert_eq!(operations, expected);
    assert_eq!(api.checked(), 3 * expected.len(), "each answer was held against the document");
    assert_eq!(api.document["components"]["securitySchemes"]["key"]["scheme"], "bearer");
}
