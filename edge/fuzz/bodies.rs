//! What each fuzz target checks, given any bytes: no panic, and a few truths that hold for all inputs.
//! Shared by the targets and by `tests/fuzz_briefly.rs`.

use std::sync::{Arc, LazyLock};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_edge::auth::jwt::Jwt;
use hawser_edge::auth::keys::{self, Secrets};
use hawser_edge::client;
use hawser_edge::config::Config;
use hawser_edge::conn::Codec;
use hawser_edge::http::{self, Outcome, Routes};
use hawser_edge::proxy;
use hawser_edge::tls::{self, SecretTap, Tls, TlsError};
use hawser_edge::ws::{
    Decoder, Deflater, Inflater, Item, Opcode, Pool, ProtocolError, Role, Settings, WindowBits,
    write_message,
};
use hawser_proto::framing::{LENGTH_BYTES, first_frame};
use hawser_proto::view::client::ServerFrame;
use hawser_proto::view::link::{Batch, EdgeMessage, RouterMessage, connection_of};
use jsonwebtoken::{Algorithm, EncodingKey};

/// A request head comes to the same however it is cut, and has a whole answer.
pub(crate) fn request_head(input: &[u8]) {
    let routes = Routes {
        client_path: "/ws".to_owned(),
        echo_path: Some("/echo".to_owned()),
        deflate: true,
        origins: vec!["https://*.example.com".parse().expect("an origin")],
    };
    let whole = http::read_head(input, 0, &routes);
    let single = (1..=input.len())
        .map(|end| http::read_head(&input[..end], end - 1, &routes))
        .find(|outcome| *outcome != Outcome::Incomplete);
    assert_eq!(single.unwrap_or(Outcome::Incomplete), whole, "byte by byte and in a piece");

    let mut answer = Vec::new();
    match &whole {
        Outcome::Incomplete => assert!(input.len() < http::HEAD_BYTES_MAX),
        Outcome::Upgrade(upgrade) => {
            let head = &input[..upgrade.head_bytes];
            assert!(head.ends_with(b"\r\n\r\n"));
            assert!(head.get(upgrade.query.clone()).is_some());
            assert!(head.get(upgrade.bearer.clone()).is_some());
            let _ = http::token_of(head, upgrade);
            http::write_upgrade(&mut answer, upgrade);
            assert!(answer.ends_with(b"\r\n\r\n"));
        }
        Outcome::Refused(refusal) => {
            refusal.write(&mut answer);
            assert!((400..600).contains(&refusal.status));
            assert!(answer.starts_with(b"HTTP/1.1 "));
        }
    }
}

/// Frames come to the same items and the same error however they are cut. The first byte of `input` says
/// which end reads them and whether deflate was agreed on, the second where the cuts are.
pub(crate) fn frame_decoder(input: &[u8]) {
    let [role, cut, bytes @ ..] = input else { return };
    let deflate = role & 2 != 0;
    let role = if role % 2 == 0 { Role::Server } else { Role::Client };
    let settings = Settings { role, message_bytes_max: 1000, deflate };
    let mut pool = Pool::default();
    let whole = decode(&settings, &mut pool, bytes, bytes.len().max(1));
    for piece_bytes in [1, usize::from(*cut).max(1)] {
        let pieces = decode(&settings, &mut pool, bytes, piece_bytes);
        assert_eq!(pieces, whole, "in pieces of {piece_bytes} and in one");
    }
}

/// Items, each as a number for its kind and its payload, and how it ended.
type Decoded = (Vec<(u8, Vec<u8>)>, Result<(), ProtocolError>);

fn decode(settings: &Settings, pool: &mut Pool, bytes: &[u8], piece_bytes: usize) -> Decoded {
    let mut decoder = Decoder::default();
    let mut items = Vec::new();
    for piece in bytes.to_vec().chunks_mut(piece_bytes) {
        let mut at = 0;
        while at < piece.len() {
            let (taken, item) = match decoder.next(&mut piece[at..], settings, pool) {
                Ok(next) => next,
                Err(error) => return (items, Err(error)),
            };
            assert!(taken > 0, "a step takes something");
            at += taken;
            match item {
                Some(Item::Message { text, payload }) => {
                    assert!(payload.len() <= settings.message_bytes_max);
                    assert!(!text || str::from_utf8(payload).is_ok());
                    items.push((u8::from(text), payload.to_vec()));
                }
                Some(Item::Deflated { text, payload }) => {
                    assert!(settings.deflate && payload.len() <= settings.message_bytes_max);
                    items.push((2 + u8::from(text), payload.to_vec()));
                }
                Some(Item::Ping(payload)) => items.push((9, payload.to_vec())),
                Some(Item::Pong(payload)) => items.push((10, payload.to_vec())),
                Some(Item::Close(close)) => {
                    items.push((8, format!("{close:?}").into_bytes()));
                    return (items, Ok(()));
                }
                None => {}
            }
        }
        decoder.settle(pool);
    }
    (items, Ok(()))
}

/// A client frame that can be read is written in a form that is read as the same, in both codecs; a server
/// frame takes the bytes that were counted.
pub(crate) fn client_frame(input: &[u8]) {
    for (codec, text) in [(Codec::Proto, false), (Codec::Json, true)] {
        let (mut scratch, mut again) = (Vec::new(), Vec::new());
        if let Ok(frame) = client::read(codec, text, input, &mut scratch) {
            let mut written = Vec::new();
            frame.write(&mut written);
            let read = client::read(Codec::Proto, false, &written, &mut again);
            assert_eq!(read, Ok(frame));
        }
    }
    if let Ok(frame) = ServerFrame::read(input) {
        let mut written = Vec::new();
        frame.write(&mut written);
        assert_eq!(written.len(), frame.encoded_bytes());
        assert_eq!(ServerFrame::read(&written), Ok(frame));
        written.clear();
        client::write(Codec::Proto, &frame, &mut written);
        client::write(Codec::Json, &frame, &mut written);
        let settings =
            Settings { role: Role::Client, message_bytes_max: usize::MAX, deflate: false };
        let (items, end) = decode(&settings, &mut Pool::default(), &written, written.len());
        assert_eq!((items.len(), end), (2, Ok(())), "two whole messages");
    }
}

/// A link batch that can be read is written message by message in a form that is read as the same, in both
/// directions.
pub(crate) fn link_frame(input: &[u8]) {
    if let Ok(Some(body)) = first_frame(input) {
        assert!(!body.is_empty() && LENGTH_BYTES + body.len() <= input.len());
    }
    let mut batch = Batch::new(input);
    while let Ok(Some(message)) = batch.next_message() {
        let mut written = Vec::new();
        if let Ok(read) = EdgeMessage::read(message) {
            read.write(&mut written);
            assert_eq!(EdgeMessage::read(first_message(&written)), Ok(read));
        }
        written.clear();
        if let Ok(read) = RouterMessage::read(message) {
            read.write(&mut written);
            assert_eq!(RouterMessage::read(first_message(&written)), Ok(read));
        }
        let _ = connection_of(message);
    }
}

/// The message of a batch of one; nothing, which reads as unknown, when that was not written.
fn first_message(batch: &[u8]) -> &[u8] {
    Batch::new(batch).next_message().expect("a good batch").unwrap_or_default()
}

/// A PROXY header comes to the same however it is cut, lies within its bound, and does not depend on what is behind it.
pub(crate) fn proxy_header(input: &[u8]) {
    let whole = proxy::read_header(input);
    let single = (0..=input.len())
        .map(|end| proxy::read_header(&input[..end]))
        .find(|outcome| *outcome != Ok(None));
    assert_eq!(single.unwrap_or(Ok(None)), whole, "byte by byte and in a piece");
    match whole {
        Ok(None) => assert!(input.len() < proxy::V2_BYTES_MAX),
        Ok(Some(header)) => {
            assert!(header.header_bytes <= proxy::V2_BYTES_MAX);
            assert_eq!(proxy::read_header(&input[..header.header_bytes]), whole);
        }
        Err(_) => {}
    }
}

/// What is inflated is within the bound, and comes back when it is deflated and inflated again. The first byte of `input` says whether it
/// is text, and the window.
pub(crate) fn inflate(input: &[u8]) {
    /// Small, so that many inputs reach it.
    const MESSAGE_BYTES_MAX: usize = 5000;
    let [first, deflated @ ..] = input else { return };
    let (text, window_bits) = (first & 0x80 != 0, WindowBits::new(9 + first % 7));
    let mut inflater = Inflater::default();
    let mut once = || inflater.inflate(text, deflated, MESSAGE_BYTES_MAX).map(|out| out.to_vec());
    let inflated = once();
    assert_eq!(once(), inflated, "a message does not depend on the one before");
    let Ok(inflated) = inflated else { return };
    assert!(inflated.len() <= MESSAGE_BYTES_MAX);
    assert!(!text || str::from_utf8(&inflated).is_ok());

    let mut out = Vec::new();
    write_message(&mut out, if text { Opcode::Text } else { Opcode::Binary }, &inflated);
    let plain_bytes = out.len();
    let saved_bytes = Deflater::new(1, 0).deflate_message(&mut out, 0, window_bits);
    assert_eq!(plain_bytes - saved_bytes, out.len());
    let settings =
        Settings { role: Role::Client, message_bytes_max: MESSAGE_BYTES_MAX, deflate: true };
    let (items, end) = decode(&settings, &mut Pool::default(), &out, usize::MAX);
    assert_eq!((items.len(), end), (1, Ok(())), "one whole message");
    let (kind, payload) = &items[0];
    assert_eq!(*kind, 2 * u8::from(saved_bytes > 0) + u8::from(text));
    let again = if saved_bytes > 0 {
        &*inflater.inflate(text, payload, MESSAGE_BYTES_MAX).expect("what we deflate inflates")
    } else {
        payload
    };
    assert_eq!(again, inflated);
}

/// Records come to the same data, the same end and the same answer however they are cut, and of a record that was changed
/// nothing comes out. The first byte of `input` says what the rest is, the second where the cuts are:
///
/// - bytes for a fresh connection,
/// - bytes for one that is open,
/// - a script of records for one that is open, each its content type, its length and its content, sealed by the client's
///   key, which goes on with every `KeyUpdate`,
/// - the same with one bit of the sealed bytes flipped: which, say two more bytes.
pub(crate) fn tls_records(input: &[u8]) {
    let [what, cut, bytes @ ..] = input else { return };
    let (open, bytes, flipped) = match (what % 4, bytes) {
        (0, bytes) => (false, bytes.to_vec(), None),
        (1, bytes) => (true, bytes.to_vec(), None),
        (2, script) => (true, Sealer::new(CLIENT_SECRET).seal_all(script), None),
        (_, [high, low, script @ ..]) => {
            let sealed = Sealer::new(CLIENT_SECRET).seal_all(script);
            let at = usize::from(u16::from_be_bytes([*high, *low])) % (8 * sealed.len()).max(1);
            (true, sealed, Some(at))
        }
        _ => return,
    };
    let whole = decrypt(open, &bytes, bytes.len().max(1));
    for piece_bytes in [1, usize::from(*cut).max(1)] {
        let pieces = decrypt(open, &bytes, piece_bytes);
        assert_eq!(pieces, whole, "in pieces of {piece_bytes} and in one");
    }
    if let [2, _, 23, 1..=255, first, ..] = input {
        assert_eq!(whole.data.first(), Some(first), "a record of data is opened");
    }
    if let Some(at) = flipped.filter(|_| !bytes.is_empty()) {
        let mut changed = bytes;
        changed[at / 8] ^= 1 << (at % 8);
        let changed = decrypt(open, &changed, usize::from(*cut).max(1));
        assert!(whole.data.starts_with(&changed.data), "nothing but what came before");
    }
}

const CLIENT_SECRET: [u8; 32] = [1; 32];
const SERVER_SECRET: [u8; 32] = [2; 32];

/// What a server made of its input, and what it has to say at the end.
#[derive(Debug, PartialEq, Eq)]
struct Decrypted {
    data: Vec<u8>,
    closed: bool,
    end: Result<(), TlsError>,
    answer: Vec<u8>,
}

fn decrypt(open: bool, bytes: &[u8], piece_bytes: usize) -> Decrypted {
    let mut shared = tls::Shared::new(server_config());
    let mut tls = match open {
        true => Tls::from_secrets(&mut shared, &CLIENT_SECRET, &SERVER_SECRET).expect("lengths"),
        false => Tls::accept(),
    };
    let (mut data, mut closed, mut end) = (Vec::new(), false, Ok(()));
    for piece in bytes.to_vec().chunks_mut(piece_bytes) {
        let mut at = 0;
        while at < piece.len() {
            let item = match tls.next(&mut shared, &mut piece[at..]) {
                Ok((taken, item)) => {
                    assert!(taken > 0, "a step takes something");
                    at += taken;
                    item
                }
                Err(error) => {
                    assert_eq!(end, Ok(()), "an error ends it");
                    end = Err(error);
                    continue;
                }
            };
            match item {
                Some(tls::Item::Data(bytes)) => {
                    assert!(!bytes.is_empty() && !closed && end.is_ok());
                    data.extend_from_slice(bytes);
                }
                Some(tls::Item::Closed) => {
                    assert!(!closed, "closed once");
                    closed = true;
                }
                Some(tls::Item::Open(_)) => panic!("nobody here can shake hands"),
                None => assert_eq!(at, piece.len(), "nothing means that all is taken"),
            }
        }
        tls.settle(&mut shared);
    }
    let mut answer = Vec::new();
    tls.seal(&mut shared, &[], &mut answer).expect("nothing to seal but an answer");
    assert!(!tls.wants_send());
    // Those of rustls hold random bytes.
    if !open {
        answer.truncate(1);
    }
    Decrypted { data, closed, end, answer }
}

/// Shakes hands as far as to the certificate, of which there is none.
fn server_config() -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of this provider");
    let nobody = Arc::new(rustls::server::ResolvesServerCertUsingSni::new());
    let mut config = builder.with_no_client_auth().with_cert_resolver(nobody);
    config.key_log = Arc::new(SecretTap);
    config.enable_secret_extraction = true;
    Arc::new(config)
}

/// The client's end: seals what it is told to (RFC 8446 sections 5.2 and 7.3).
struct Sealer {
    secret: [u8; 32],
    sequence: u64,
}

impl Sealer {
    fn new(secret: [u8; 32]) -> Self {
        Self { secret, sequence: 0 }
    }

    fn seal_all(&mut self, mut script: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        while let [kind, length, rest @ ..] = script {
            let (content, rest) = rest.split_at(rest.len().min(usize::from(*length)));
            self.seal(*kind, content, &mut out);
            script = rest;
            if *kind == 22 && matches!(content, [24, 0, 0, 1, 0 | 1]) {
                *self = Self::new(self.expand("traffic upd"));
            }
        }
        out
    }

    fn seal(&mut self, kind: u8, content: &[u8], out: &mut Vec<u8>) {
        let key = UnboundKey::new(&AES_128_GCM, &self.expand::<16>("key")).expect("its length");
        let mut nonce: [u8; 12] = self.expand("iv");
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        let sealed_bytes = (content.len() + 1 + 16) as u16;
        let header = [&[23, 3, 3][..], &sealed_bytes.to_be_bytes()].concat();
        let mut inner = [content, &[kind]].concat();
        LessSafeKey::new(key)
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(&header),
                &mut inner,
            )
            .expect("it fits");
        out.extend(header);
        out.extend(inner);
    }

    fn expand<const BYTES: usize>(&self, label: &str) -> [u8; BYTES] {
        struct Length(usize);
        impl KeyType for Length {
            fn len(&self) -> usize {
                self.0
            }
        }
        let label_bytes = [6 + label.len() as u8];
        let length = (BYTES as u16).to_be_bytes();
        let info = [&length[..], &label_bytes, b"tls13 ", label.as_bytes(), &[0]];
        let mut output = [0; BYTES];
        Prk::new_less_safe(HKDF_SHA256, &self.secret)
            .expand(&info, Length(BYTES))
            .and_then(|okm| okm.fill(&mut output))
            .expect("short enough");
        output
    }
}

/// A token is taken only when the key has signed it, whatever else it is; of claims that are signed, only what keeps to the
/// bounds gets through. A set of keys is read or refused.
pub(crate) fn token(input: &[u8]) {
    static JWT: LazyLock<Jwt> = LazyLock::new(|| {
        let jwt = Jwt::load(&Config::default().admission).expect("no files");
        let key = URL_SAFE_NO_PAD.encode(SECRET);
        let set = format!(r#"{{"keys":[{{"kty":"oct","alg":"HS256","k":"{key}"}}]}}"#);
        jwt.set_fetched(keys::from_jwks(set.as_bytes(), Secrets::Taken).expect("a set"));
        jwt
    });
    if let Ok(token) = str::from_utf8(input)
        && JWT.check(TOKEN_TIME_MS, token).is_ok()
    {
        let (message, _) = token.rsplit_once('.').expect("a token has dots");
        assert_eq!(signed(message), token, "a signature of our own");
    }
    if let Ok(identity) = JWT.check(TOKEN_TIME_MS, &signed_claims(input)) {
        assert!(!identity.user.is_empty() && !identity.user.chars().any(char::is_control));
        assert!(
            identity
                .expires_at_ms
                .is_some_and(|at| at.saturating_add(JWT.skew_ms()) > TOKEN_TIME_MS)
        );
    }
    let header = format!("{}.e30", URL_SAFE_NO_PAD.encode(input));
    assert!(JWT.check(TOKEN_TIME_MS, &signed(&header)).is_err(), "there is no user in it");
    let _ = keys::from_jwks(input, Secrets::Taken);
}

/// A token of these claims, whatever they are, signed with the key of [`token`].
pub(crate) fn signed_claims(claims: &[u8]) -> String {
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    signed(&format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims)))
}

fn signed(message: &str) -> String {
    let key = EncodingKey::from_secret(SECRET);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256);
    format!("{message}.{}", signature.expect("a signature"))
}

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
/// When the tokens of [`token`] are looked at, in milliseconds since the Unix epoch.
const TOKEN_TIME_MS: i64 = 1_790_000_000_000;
