//! Certificate files to a TLS config, and again when they change, without closing connections.
//!
//! Owns reading and checking what [`TlsKnobs`] name, which certificate a client gets, session tickets, and the thread that
//! notices changed files. Leaves out what is done with a new config: [`watch`] hands it to a callback, and shards shake
//! hands by it from then on ([`crate::tls::Shared::set_config`]).

mod by_name;
mod files;
mod router;
mod tickets;
mod watcher;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_proto::knobs::UsageError;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, RootCertStore, ServerConfig};

use self::by_name::ByName;
pub use self::router::router;
use self::tickets::SharedTickets;
pub use self::watcher::{Watcher, watch};
use crate::config::{ClientAuth, MinVersion, TlsKnobs};
use crate::tls::SecretTap;

/// What is spoken inside.
const ALPN: &[u8] = b"http/1.1";

/// Tickets that a client is given in a handshake of TLS 1.3. It opens one connection here at a time, not several.
const TICKETS: usize = 1;

/// How to shake hands, from files that fit together.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// To be given to the shards.
    pub config: Arc<ServerConfig>,
    /// When the first of its certificates runs out.
    pub expires: SystemTime,
}

/// Reads what the knobs name, and keeps what has to outlive a change of files.
#[derive(Debug)]
struct Loader {
    provider: Arc<CryptoProvider>,
    /// Used without `--tls-ticket-keys`: 12 hours, a new key every 6. Made anew with other authorities for clients.
    own_tickets: Arc<dyn ProducesTickets>,
    trust: Trust,
}

/// Whose certificates clients have to show. A ticket stands for a certificate that was checked by these rules, so it is good
/// under the same rules only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Trust(Vec<u8>);

impl Trust {
    /// What `knobs` ask for; `authorities` are the bytes of `--tls-client-ca`.
    fn new(knobs: &TlsKnobs, authorities: &[u8]) -> Self {
        match knobs.tls_client_auth {
            ClientAuth::None => Self::default(),
            when @ (ClientAuth::Optional | ClientAuth::Required) => {
                Self([when.to_string().as_bytes(), b"\0", authorities].concat())
            }
        }
    }
}

impl Loader {
    fn new() -> Result<Self, UsageError> {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|suite| place_of(suite.suite()));
        let provider = Arc::new(provider);
        Ok(Self { provider, own_tickets: own_tickets()?, trust: Trust::default() })
    }

    /// The config that `knobs` ask for at the time `now`.
    fn load(&mut self, knobs: &TlsKnobs, now: SystemTime) -> Result<Loaded, UsageError> {
        if !knobs.is_on() {
            return Err(UsageError(
                "--tls-cert: is gone; TLS is turned on and off by a restart".to_owned(),
            ));
        }
        let mut certificates = Vec::new();
        let mut expires = now + NEVER;
        for (cert, key) in knobs.tls_cert.iter().zip(&knobs.tls_key) {
            let (certificate, until) =
                files::certificate(["--tls-cert", "--tls-key"], cert, key, &self.provider, now)?;
            expires = expires.min(until);
            certificates.push(certificate);
        }
        let config = self.config(knobs, certificates)?;
        Ok(Loaded { config: Arc::new(config), expires })
    }

    fn config(
        &mut self,
        knobs: &TlsKnobs,
        certificates: Vec<(Arc<CertifiedKey>, Vec<String>)>,
    ) -> Result<ServerConfig, UsageError> {
        let versions = match knobs.tls_min_version {
            MinVersion::Tls12 => &[&TLS13, &TLS12][..],
            MinVersion::Tls13 => &[&TLS13],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(versions)
            .map_err(|error| UsageError(format!("--tls-min-version: {error}")))?;
        let mut trust = Trust::default();
        let builder = match (knobs.tls_client_auth, &knobs.tls_client_ca) {
            (ClientAuth::None, _) | (_, None) => builder.with_no_client_auth(),
            (when, Some(ca)) => {
                let text = read("--tls-client-ca", ca)?;
                trust = Trust::new(knobs, &text);
                let roots: RootCertStore = files::authorities("--tls-client-ca", ca, &text)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    Arc::clone(&self.provider),
                );
                let verifier = match when {
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                    ClientAuth::None | ClientAuth::Required => verifier,
                };
                let verifier = verifier.build().map_err(|error| {
                    UsageError(format!("--tls-client-ca: {}: {error}", ca.display()))
                })?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName::new(certificates)));
        config.ignore_client_order = true;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = match &knobs.tls_ticket_keys {
            Some(file) => Arc::new(SharedTickets::read(file, &trust.0)?),
            None if trust == self.trust => Arc::clone(&self.own_tickets),
            None => {
                self.own_tickets = own_tickets()?;
                self.trust = trust;
                Arc::clone(&self.own_tickets)
            }
        };
        config.send_tls13_tickets = TICKETS;
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(SecretTap);
        Ok(config)
    }
}

/// Where a cipher suite stands among ours, whose order decides: before those with SHA-384, for which few processors have
/// instructions. With AES-128 and SHA-256 one core did 11,300 full handshakes a second instead of 7,950, and 14,400 resumed
/// ones instead of 9,200 (`cargo bench --bench tls`); what is sealed is safe with either.
fn place_of(suite: CipherSuite) -> u8 {
    #[expect(clippy::wildcard_enum_match_arm, reason = "the others use SHA-384")]
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => 1,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 2,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 3,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => 4,
        _ => 5,
    }
}

fn own_tickets() -> Result<Arc<dyn ProducesTickets>, UsageError> {
    aws_lc_rs::Ticketer::new()
        .map_err(|error| UsageError(format!("--tls-cert: no keys for tickets: {error}")))
}

/// Longer than any certificate is valid.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Reads the knobs' files once, for a start-up check or a tool. What [`watch`] loads is the same.
///
/// # Errors
/// A sentence that names the knob and the file.
pub fn load(knobs: &TlsKnobs) -> Result<Loaded, UsageError> {
    Loader::new()?.load(knobs, now())
}

#[expect(clippy::disallowed_methods, reason = "certificates are checked at the rim")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn read(knob: &str, path: &Path) -> Result<Vec<u8>, UsageError> {
    fs::read(path)
        .map_err(|error| UsageError(format!("{knob}: {} cannot be read: {error}", path.display())))
}

/// Seconds since 1970, as certificates and tickets count.
fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::mpsc;

    use rcgen::{CertificateParams, Issuer, KeyPair, PKCS_ECDSA_P384_SHA384, date_time_ymd};
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use rustls::{ALL_VERSIONS, ClientConfig, ClientConnection, SupportedProtocolVersion};
    use tempfile::TempDir;

    use super::*;
    use crate::tls::tests::{Server, give, sent, shake};
    use crate::tls::{Shared, TlsError};

    /// Files of an operator.
    struct Files {
        folder: TempDir,
    }

    impl Files {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        }

        /// A certificate for `name` and its key, self-signed.
        fn pair(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> TlsKnobs {
            let (certificate, key) = certificate(name, change);
            TlsKnobs {
                tls_cert: vec![self.write(&format!("{name}.crt"), &certificate)],
                tls_key: vec![self.write(&format!("{name}.key"), &key)],
                ..TlsKnobs::default()
            }
        }
    }

    fn certificate(name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn refused(knobs: &TlsKnobs) -> String {
        let UsageError(sentence) = load(knobs).unwrap_err();
        sentence
    }

    #[test]
    fn files_that_fit_together_are_loaded_and_tell_when_they_expire() {
        let files = Files::new();
        let knobs = files.pair("a.test", |params| params.not_after = date_time_ymd(2100, 1, 1));
        let loaded = load(&knobs).unwrap();
        assert_eq!(unix_seconds(loaded.expires), 4_102_444_800);
        assert_eq!(loaded.config.alpn_protocols, [b"http/1.1"]);
        assert!(loaded.config.enable_secret_extraction && loaded.config.ticketer.enabled());
    }

    #[test]
    fn what_cannot_be_used_is_told_by_knob_and_file() {
        let files = Files::new();
        let good = files.pair("a.test", |_| {});
        let missing = files.folder.path().join("missing");
        let other = files.pair("b.test", |_| {});
        let expired = files.pair("old.test", |params| params.not_after = date_time_ymd(2001, 2, 3));
        let early = files.pair("new.test", |params| params.not_before = date_time_ymd(2999, 1, 1));
        let text = files.write("text", "no PEM here");
        let broken =
            files.write("broken", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
        let noise =
            files.write("noise", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let cert = |path: &PathBuf| TlsKnobs { tls_cert: vec![path.clone()], ..good.clone() };
        let key = |path: &PathBuf| TlsKnobs { tls_key: vec![path.clone()], ..good.clone() };
        let ca = |path: &PathBuf| TlsKnobs {
            tls_client_ca: Some(path.clone()),
            tls_client_auth: ClientAuth::Required,
            ..good.clone()
        };
        for (knobs, told) in [
            (cert(&missing), "--tls-cert: {missing} cannot be read: "),
            (cert(&text), "--tls-cert: {text} has no certificate in it"),
            (cert(&broken), "--tls-cert: {broken} is broken PEM"),
            (cert(&noise), "--tls-cert: {noise} does not begin with an X.509 certificate"),
            (expired, "--tls-cert: {old.test.crt} expired at Feb  3 00:00:00 2001"),
            (early, "--tls-cert: {new.test.crt} is not valid before Jan  1 00:00:00 2999"),
            (key(&missing), "--tls-key: {missing} cannot be read: "),
            (key(&text), "--tls-key: {text} has no private key in it"),
            (
                key(&other.tls_key[0]),
                "--tls-key: {b.test.key} is not the key of the certificate in {a.test.crt}",
            ),
            (ca(&missing), "--tls-client-ca: {missing} cannot be read: "),
            (ca(&text), "--tls-client-ca: {text} has no certificate in it"),
            (
                TlsKnobs { tls_ticket_keys: Some(text.clone()), ..good.clone() },
                "--tls-ticket-keys: {text} has no key of 32 to 80 bytes",
            ),
            (TlsKnobs::default(), "--tls-cert: is gone"),
        ] {
            let told =
                told.replace('{', &format!("{}/", files.folder.path().display())).replace('}', "");
            let sentence = refused(&knobs);
            assert!(sentence.starts_with(&told), "{sentence} instead of {told}");
        }
    }

    #[test]
    fn keys_of_other_kinds_and_chains_are_taken() {
        let files = Files::new();
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let own = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        let own = own.signed_by(&key, &issuer).unwrap();
        let knobs = TlsKnobs {
            tls_cert: vec![files.write("chain", &(own.pem() + &authority.pem()))],
            tls_key: vec![files.write("key", &key.serialize_pem())],
            tls_client_ca: Some(files.write("ca", &authority.pem())),
            tls_client_auth: ClientAuth::Optional,
            tls_min_version: MinVersion::Tls13,
            ..TlsKnobs::default()
        };
        load(&knobs).unwrap();
    }

    /// Of a client that trusts `root` and shows `own` if it has one.
    fn client_config(
        root: &str,
        own: Option<(&str, &str)>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let mut store = RootCertStore::empty();
        store.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_protocol_versions(versions).unwrap();
        let builder = builder.with_root_certificates(store);
        Arc::new(match own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
        })
    }

    fn client(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        ClientConnection::new(Arc::clone(config), name).unwrap()
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_client_gets_the_certificate_of_the_name_that_it_asks_for() {
        let files = Files::new();
        let [mut knobs, second] = ["a.test", "*.b.test"].map(|name| files.pair(name, |_| {}));
        knobs.tls_cert.extend(second.tls_cert);
        knobs.tls_key.extend(second.tls_key);
        let config = load(&knobs).unwrap().config;
        for (name, at) in [("a.test", 0), ("chat.b.test", 1)] {
            // It trusts the one that is for this name alone.
            let root = text(&knobs.tls_cert[at]);
            let mut client = client(&client_config(&root, None, ALL_VERSIONS), name);
            let mut server = Server::with(Shared::new(Arc::clone(&config)));
            shake(&mut server, &mut client, b"", usize::MAX);
        }
    }

    #[test]
    fn client_certificates_are_asked_for_and_checked_as_the_knobs_say() {
        let files = Files::new();
        let knobs = files.pair("a.test", |_| {});
        let (good, stranger) = (certificate("client", |_| {}), certificate("client", |_| {}));
        let ca = files.write("ca", &good.0);
        let root = text(&knobs.tls_cert[0]);
        for (when, shown, expected) in [
            (ClientAuth::Required, Some(&good), Ok(true)),
            (ClientAuth::Required, None, Err(TlsError::ClientCertificate)),
            (ClientAuth::Required, Some(&stranger), Err(TlsError::ClientCertificate)),
            (ClientAuth::Optional, Some(&good), Ok(true)),
            (ClientAuth::Optional, None, Ok(false)),
            (ClientAuth::Optional, Some(&stranger), Err(TlsError::ClientCertificate)),
        ] {
            let knobs = TlsKnobs {
                tls_client_ca: Some(ca.clone()),
                tls_client_auth: when,
                ..knobs.clone()
            };
            let config = load(&knobs).unwrap().config;
            let shown = shown.map(|(certificate, key)| (certificate.as_str(), key.as_str()));
            let mut client = client(&client_config(&root, shown, ALL_VERSIONS), "a.test");
            let mut server = Server::with(Shared::new(config));
            if let Ok(has_certificate) = expected {
                shake(&mut server, &mut client, b"", usize::MAX);
                assert_eq!(server.info.unwrap().client_certificate, has_certificate);
                continue;
            }
            server.take(&sent(&mut client), usize::MAX).unwrap();
            give(&mut client, &server.seal(b"")).unwrap();
            let refused = server.take(&sent(&mut client), usize::MAX);
            assert_eq!(refused.map(|()| false), expected);
            assert!(give(&mut client, &server.seal(b"")).is_err(), "the client is told");
        }
    }

    #[test]
    fn tickets_outlive_a_reload_but_not_a_change_of_whom_to_trust() {
        let files = Files::new();
        let knobs = files.pair("a.test", |_| {});
        let root = text(&knobs.tls_cert[0]);
        let of_client = client_config(&root, None, ALL_VERSIONS);
        let mut loader = Loader::new().unwrap();
        let mut resumes = |knobs: &TlsKnobs| {
            let config = loader.load(knobs, now()).unwrap().config;
            let mut client = client(&of_client, "a.test");
            let mut server = Server::with(Shared::new(config));
            shake(&mut server, &mut client, b"", usize::MAX);
            server.info.unwrap().resumed
        };
        assert!(!resumes(&knobs));
        assert!(resumes(&knobs), "the same files, loaded again");
        let asks = TlsKnobs {
            tls_client_ca: Some(knobs.tls_cert[0].clone()),
            tls_client_auth: ClientAuth::Optional,
            ..knobs.clone()
        };
        assert!(!resumes(&asks));
        assert!(resumes(&asks));
    }

    #[test]
    fn of_the_suites_that_a_client_offers_ours_decides_which() {
        let files = Files::new();
        let knobs = files.pair("a.test", |_| {});
        let config = load(&knobs).unwrap().config;
        for (version, expected) in [
            (&TLS13, CipherSuite::TLS13_AES_128_GCM_SHA256),
            (&TLS12, CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        ] {
            let of_client = client_config(&text(&knobs.tls_cert[0]), None, &[version]);
            let offered = of_client.crypto_provider().cipher_suites.clone();
            let first = offered.iter().find(|suite| suite.version() == version).unwrap();
            assert_ne!(first.suite(), expected, "the client would rather have another");
            let mut client = client(&of_client, "a.test");
            let mut server = Server::with(Shared::new(Arc::clone(&config)));
            shake(&mut server, &mut client, b"", usize::MAX);
            assert_eq!(client.negotiated_cipher_suite().unwrap().suite(), expected);
        }
    }

    #[test]
    fn a_client_that_speaks_only_what_is_too_old_is_refused() {
        let files = Files::new();
        let knobs = TlsKnobs { tls_min_version: MinVersion::Tls13, ..files.pair("a.test", |_| {}) };
        let of_client = client_config(&text(&knobs.tls_cert[0]), None, &[&TLS12]);
        let mut client = client(&of_client, "a.test");
        let mut server = Server::with(Shared::new(load(&knobs).unwrap().config));
        let refused = server.take(&sent(&mut client), usize::MAX);
        assert_eq!(refused, Err(TlsError::NothingInCommon));
        let alert = rustls::AlertDescription::ProtocolVersion;
        let told = give(&mut client, &server.seal(b"")).unwrap_err();
        assert_eq!(told, rustls::Error::AlertReceived(alert));
    }

    const DEADLINE: Duration = Duration::from_secs(20);

    #[test]
    fn changed_files_are_loaded_and_bad_ones_leave_what_was() {
        let files = Files::new();
        let expires_in =
            |year| files.pair("a.test", move |params| params.not_after = date_time_ymd(year, 1, 1));
        let knobs = expires_in(2100);
        let (changes, changed) = mpsc::channel();
        let look_every = Duration::from_millis(10);
        let (watcher, first) =
            watcher::watch_every(look_every, knobs.clone(), move |loaded: Loaded| {
                changes.send(loaded.expires).unwrap();
            })
            .unwrap();

        expires_in(2101);
        let second = changed.recv_timeout(DEADLINE).unwrap();
        assert!(second > first.expires);

        // A reload of a bad file hands nothing on: the next that comes is that of the good one.
        fs::write(&knobs.tls_cert[0], "cut").unwrap();
        watcher.reload(knobs.clone());
        expires_in(2102);
        assert!(changed.recv_timeout(DEADLINE).unwrap() > second);

        watcher.reload(TlsKnobs { tls_min_version: MinVersion::Tls13, ..knobs });
        changed.recv_timeout(DEADLINE).unwrap();
        // The thread ends with its owner, and with it the callback.
        drop(watcher);
        while changed.recv_timeout(DEADLINE).is_ok() {}
        assert_eq!(changed.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }
}
