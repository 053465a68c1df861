//! The server API and the other routers of the cluster: one of them is played here.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use hawser_proto::framing::{LENGTH_BYTES, begin_frame, finish_frame};
use hawser_proto::link::edge_message::Message as Inbound;
use hawser_proto::link::router_message::Message as Outbound;
use hawser_proto::link::{
    Claim, Disconnected, EdgeBatch, HelloAck, Ownership, QueryAnswer, RouterBatch, RouterMessage,
    SendAck, query_answer,
};
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tempfile::TempDir;

use super::client::{Client, start};
use crate::harness::{DEADLINE, Router};

/// Of the router that is played.
const PARTITIONS: u32 = 64;

/// The link of the API, seen from another router.
struct Peer(UnixStream);

impl Peer {
    /// Takes a link, and says that it owns every partition under `epoch`.
    fn accept(listener: &UnixListener, epoch: u64) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut peer = Self(stream);
        let hello = peer.hear().remove(0);
        let Inbound::Hello(hello) = hello else { panic!("{hello:?}") };
        assert_eq!((hello.edge_id.as_str(), hello.shards), ("api-router-1", 1));
        let ack = HelloAck {
            protocol: 1,
            lease_ms: 15_000,
            partitions: PARTITIONS,
            ..HelloAck::default()
        };
        let claims = (0..PARTITIONS).map(|partition| Claim { partition, epoch }).collect();
        peer.say([
            Outbound::HelloAck(ack),
            Outbound::Ownership(Ownership { partitions: PARTITIONS, claims }),
        ]);
        peer
    }

    fn say(&mut self, messages: impl IntoIterator<Item = Outbound>) {
        let messages = messages.into_iter().map(|message| RouterMessage { message: Some(message) });
        let batch = RouterBatch { messages: messages.collect() };
        let mut bytes = Vec::new();
        let mark = begin_frame(&mut bytes);
        batch.encode(&mut bytes).unwrap();
        finish_frame(&mut bytes, mark);
        self.0.write_all(&bytes).unwrap();
    }

    fn hear(&mut self) -> Vec<Inbound> {
        let mut length = [0; LENGTH_BYTES];
        self.0.read_exact(&mut length).unwrap();
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        self.0.read_exact(&mut body).unwrap();
        let batch = EdgeBatch::decode(&*body).unwrap();
        batch.messages.into_iter().filter_map(|message| message.message).collect()
    }

    /// The next Send or Query.
    fn hear_question(&mut self) -> Inbound {
        loop {
            let questions = self.hear().into_iter();
            let mut questions =
                questions.filter(|message| matches!(message, Inbound::Send(_) | Inbound::Query(_)));
            if let Some(question) = questions.next() {
                return question;
            }
        }
    }
}

fn start_with_peer(folder: &Path, timeout: &str) -> (UnixListener, Router, Client) {
    let socket = folder.join("peer.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let place = format!("unix:{}", socket.display());
    let (router, api) = start(folder, "", &["--api-peers", &place, "--api-timeout", timeout]);
    (listener, router, api)
}

#[test]
fn what_is_about_a_user_of_another_router_goes_there_and_comes_back_when_its_link_breaks() {
    let folder = TempDir::new().unwrap();
    let (listener, router, api) = start_with_peer(folder.path(), "20s");
    let mut peer = Peer::accept(&listener, 7);
    let message = json!({ "text": "hello" });
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            // Until the claim counts the router answers by itself, and says that there is none.
            while api.delete("/v1/users/bob/connections").body != json!({ "disconnected": 5 }) {}
            api.post("/v1/users/bob/messages", &message)
        });
        let send = loop {
            match peer.hear_question() {
                Inbound::Query(query) => {
                    assert_eq!(query.user, "bob");
                    let connections = 5;
                    let kind = Some(query_answer::Kind::Disconnected(Disconnected { connections }));
                    peer.say([Outbound::QueryAnswer(QueryAnswer { ticket: query.ticket, kind })]);
                }
                Inbound::Send(send) => break send,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((send.from.as_str(), &*send.payload), ("service", &b"hello"[..]));
        let ack = SendAck { ticket: send.ticket, message_id: 5, time_ms: 6, ..SendAck::default() };
        peer.say([Outbound::SendAck(ack)]);
        assert_eq!(sent.join().unwrap().body, json!({ "message_id": "5", "time_ms": 6 }));

        // This one is not answered there: the link breaks, and the router has the user itself.
        let sent = scope.spawn(|| api.post("/v1/users/bob/messages", &message));
        peer.hear_question();
        drop(listener);
        drop(peer);
        let reply = sent.join().unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
    });
    assert_eq!(router.metric("router_sends_accepted_total"), 1);
}

#[test]
fn a_router_that_does_not_answer_leads_to_503_after_the_deadline() {
    let folder = TempDir::new().unwrap();
    let (listener, router, api) = start_with_peer(folder.path(), "300ms");
    let _peer = Peer::accept(&listener, 7);
    router.wait_until("its claim counts", |_| {
        let reply = api.get("/v1/users/bob/inbox");
        let is_late = (reply.status, reply.code()) == (503, "UNAVAILABLE");
        assert!(reply.status == 200 || is_late, "{reply:?}");
        assert!(!is_late || reply.head.contains("retry-after: 1"), "{reply:?}");
        assert!(!is_late || reply.body["error"]["retryable"] == true);
        is_late
    });
    let many = json!({ "to": ["bob", "carol"], "message": { "text": "x" } });
    let results = api.post("/v1/messages", &many).body;
    for result in results["results"].as_array().unwrap() {
        assert_eq!(
            (&result["error"]["code"], &result["error"]["retryable"]),
            (&json!("UNAVAILABLE"), &json!(true))
        );
    }
}

/// Writes `NAME.pem`, an authority, and `NAME-router.pem` and `.key`, which it signed for 127.0.0.1.
fn authority(folder: &Path, name: &str) {
    let write = |file: String, text: String| std::fs::write(folder.join(file), text).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    write(format!("{name}.pem"), authority.pem());
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    write(format!("{name}-router.pem"), params.signed_by(&key, &authority).unwrap().pem());
    write(format!("{name}-router.key"), key.serialize_pem());
}

#[test]
fn links_of_the_api_to_other_routers_speak_mutual_tls_and_only_to_those_they_trust() {
    let papers = TempDir::new().unwrap();
    authority(papers.path(), "house");
    authority(papers.path(), "stranger");
    let path = |name: &str| papers.path().join(name).display().to_string();
    let (cert, key, ca) = (path("house-router.pem"), path("house-router.key"), path("house.pem"));
    let own = ["--link-tls-cert", &cert, "--link-tls-key", &key, "--link-tls-client-ca", &ca];
    let folder = TempDir::new().unwrap();
    let tcp = ["--listen", "127.0.0.1:0"];
    let there = Router::start(folder.path(), &[&own[..], &tcp].concat());

    let here = TempDir::new().unwrap();
    let stranger = path("stranger.pem");
    for (ca, is_trusted) in [(&stranger, false), (&ca, true)] {
        let peers = ["--api-peers", there.tcp_address(), "--api-peers-ca", ca];
        let (_router, api) = start(here.path(), "", &[&own[..], &peers].concat());
        let ended = there.metric("router_links_ended_total");
        // Both say that they have every user, and the one named last is asked.
        there.wait_until("a message is there, or the handshake is over", |there| {
            assert_eq!(api.post("/v1/users/bob/messages", &json!({ "text": "x" })).status, 200);
            let arrived = there.metric("router_sends_accepted_total") > 0;
            assert!(is_trusted || !arrived, "who is not trusted is not spoken to");
            arrived || (!is_trusted && there.metric("router_links_ended_total") > ended)
        });
    }
}
