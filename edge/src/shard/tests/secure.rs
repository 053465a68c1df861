//! The same clients, speaking TLS.

use std::io::{Read as _, Write as _};

use rustls::ClientConnection;
use rustls::pki_types::{PrivateKeyDer, ServerName};

use super::*;
use crate::tls::SecretTap;

/// A client with a certificate to trust, and the edge that shows it.
struct Pair {
    rig: Rig,
    key: ConnKey,
    client: ClientConnection,
}

fn configs() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.key_log = Arc::new(SecretTap);
    server.enable_secret_extraction = true;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

impl Pair {
    fn new() -> Self {
        let (server, client) = configs();
        let mut rig = Rig::given(Given { tls: Some(server), ..Given::default() }, |_| {});
        let name = ServerName::try_from("localhost").unwrap();
        let (key, client) = (rig.accept(), ClientConnection::new(client, name).unwrap());
        Self { rig, key, client }
    }

    /// Lets bytes go to and fro until nobody has anything to say; the ciphertext goes in pieces of `cut` bytes.
    fn settle(&mut self, cut: usize) {
        loop {
            let mut up = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut up).unwrap();
            }
            for piece in up.chunks(cut) {
                self.rig.receive(self.key, piece);
            }
            let down = self.rig.sent(self.key);
            let mut rest = down.as_slice();
            while !rest.is_empty() {
                self.client.read_tls(&mut rest).unwrap();
                self.client.process_new_packets().unwrap();
            }
            if up.is_empty() && down.is_empty() {
                return;
            }
        }
    }

    fn says(&mut self, bytes: &[u8]) {
        self.client.writer().write_all(bytes).unwrap();
    }

    /// What the client has read, and whether it was told that no more comes.
    fn hears(&mut self) -> (Vec<u8>, bool) {
        let mut heard = Vec::new();
        let ended = self.client.reader().read_to_end(&mut heard).is_ok();
        (heard, ended)
    }
}

#[test]
fn a_request_behind_the_handshake_is_upgraded_wherever_the_bytes_are_cut() {
    for cut in [1, 7, 100, 1 << 20] {
        let mut pair = Pair::new();
        pair.says(HEAD.as_bytes());
        pair.settle(cut);
        let (heard, ended) = pair.hears();
        assert!(heard.starts_with(b"HTTP/1.1 101 ") && !ended, "cut in {cut}");
        assert_eq!(pair.rig.shard.counters.tls_full_handshakes.get(), 1);
        assert_eq!(pair.rig.shard.counters.handshakes.get(), 0);
    }
}

#[test]
fn both_ends_of_the_closing_handshake_say_close_notify() {
    let mut pair = Pair::new();
    pair.says(HEAD.as_bytes());
    pair.settle(1 << 20);
    pair.hears();
    let mut close = Vec::new();
    ws::write_masked_message(&mut close, Opcode::Close, &1000u16.to_be_bytes(), [1, 2, 3, 4]);
    pair.says(&close);
    pair.settle(1 << 20);
    let (heard, ended) = pair.hears();
    assert_eq!((&heard[..2], ended), (&[0x88, 2][..], true));
    assert!(pair.rig.is_closed(pair.key));

    let mut pair = Pair::new();
    pair.says(HEAD.as_bytes());
    pair.settle(1 << 20);
    pair.hears();
    pair.client.send_close_notify();
    pair.settle(1 << 20);
    assert!(pair.hears().1, "answered");
    assert!(pair.rig.is_closed(pair.key));
    assert_eq!(pair.rig.shard.counters.closed_for("vanished"), 1);
}

#[test]
fn the_answer_to_our_close_is_followed_by_close_notify() {
    let mut pair = Pair::new();
    pair.says(HEAD.as_bytes());
    pair.settle(1 << 20);
    pair.rig.advance(Duration::from_secs(10));
    pair.settle(1 << 20);
    let (heard, ended) = pair.hears();
    assert!(heard.ends_with(b"no Connect in time") && !ended);
    let mut close = Vec::new();
    ws::write_masked_message(&mut close, Opcode::Close, &1008u16.to_be_bytes(), [1, 2, 3, 4]);
    pair.says(&close);
    pair.settle(1 << 20);
    assert_eq!(pair.hears(), (Vec::new(), true));
    assert!(pair.rig.is_closed(pair.key));
}

#[test]
fn plain_http_is_told_400_in_plain_and_garbage_gets_an_alert_or_nothing() {
    let mut pair = Pair::new();
    pair.rig.receive(pair.key, HEAD.as_bytes());
    assert_eq!(pair.rig.gets(pair.key), [Got::Http(400)]);
    let key = pair.rig.accept();
    pair.rig.receive(key, b"\x80\x2e\x01\0\x02 SSL 2");
    let said = pair.rig.sent(key);
    assert!(said.is_empty() || said[0] == 21, "{said:?}");
    assert!(!pair.rig.is_open(key));
    pair.rig.advance(Duration::from_secs(10));
    assert!(pair.rig.is_closed(key));
    assert_eq!(pair.rig.shard.counters.closed_for("tls"), 1);
}

#[test]
fn who_only_connects_is_closed_after_the_time_for_a_handshake() {
    let mut pair = Pair::new();
    pair.rig.advance(Duration::from_secs(10));
    assert!(pair.rig.is_closed(pair.key));
    assert_eq!(pair.rig.shard.counters.closed_for("tls_timeout"), 1);
    assert_eq!(pair.rig.shard.counters.handshakes.get(), 0);
}

#[test]
fn past_the_handshakes_of_a_core_a_client_gets_an_alert_at_once() {
    let mut pair = Pair::new();
    pair.rig.shard.share.handshakes_max = 1;
    let late = pair.rig.accept();
    assert_eq!(pair.rig.sent(late), TURNED_AWAY);
    assert_eq!(pair.rig.shard.counters.limited_by("handshakes_max"), 1);
}

#[test]
fn a_changed_record_ends_the_connection_with_an_alert() {
    let mut pair = Pair::new();
    pair.says(HEAD.as_bytes());
    pair.settle(1 << 20);
    pair.hears();
    pair.rig.receive(pair.key, &[&[23, 3, 3, 0, 40][..], &[7; 40]].concat());
    let down = pair.rig.sent(pair.key);
    pair.client.read_tls(&mut down.as_slice()).unwrap();
    let told = pair.client.process_new_packets().unwrap_err();
    assert_eq!(told, rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac));
    pair.rig.shard.apply(pair.rig.now, Event::Ended { key: pair.key, errno: 0 });
    assert!(pair.rig.is_closed(pair.key));
}
