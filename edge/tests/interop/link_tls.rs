//! The link over TLS, between the real processes, with certificates made for the occasion.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};

use super::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A folder with certificates.
struct Papers(tempfile::TempDir);

impl Papers {
    /// One authority, `house`, which signed the router's certificate and that of an edge.
    fn new() -> (Self, Authority) {
        let papers = Self(tempfile::tempdir().expect("a temporary folder"));
        let house = papers.authority("house");
        papers.sign(&house, "router", |_| {});
        papers.sign(&house, "edge", |_| {});
        (papers, house)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).expect("a file");
    }

    /// Writes `NAME.pem`.
    fn authority(&self, name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("a certificate");
        self.write(&format!("{name}.pem"), &authority.pem());
        authority
    }

    /// Writes `NAME.pem` and `NAME.key`: a certificate for 127.0.0.1, with what `change` makes of it.
    fn sign(&self, authority: &Authority, name: &str, change: impl Fn(&mut CertificateParams)) {
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, authority).expect("a certificate");
        self.write(&format!("{name}.pem"), &certificate.pem());
        self.write(&format!("{name}.key"), &key.serialize_pem());
    }

    /// `--PREFIX-cert` and `--PREFIX-key` with the papers of `name`.
    fn own(&self, prefix: &str, name: &str) -> [String; 4] {
        let path = |extension| self.path(&format!("{name}.{extension}")).display().to_string();
        [format!("--{prefix}-cert"), path("pem"), format!("--{prefix}-key"), path("key")]
    }

    /// `--PREFIX-ca` with the certificate of `name`.
    fn trust(&self, prefix: &str, name: &str) -> [String; 2] {
        [format!("--{prefix}-ca"), self.path(&format!("{name}.pem")).display().to_string()]
    }

    /// What a router says that asks edges for certificates of `house`.
    fn router(&self) -> Vec<String> {
        [&self.own("link-tls", "router")[..], &self.trust("link-tls-client", "house")].concat()
    }

    fn edge(&self, ca: &str, own: Option<&str>) -> Vec<String> {
        let own = own.map_or(Vec::new(), |name| self.own("router-tls", name).to_vec());
        [&self.trust("router-tls", ca)[..], &own].concat()
    }
}

#[test]
fn a_conversation_passes_over_mutual_tls_also_after_the_router_was_killed() {
    let (papers, _) = Papers::new();
    let mut hawser = Linked::start(&papers.router(), &papers.edge("house", Some("edge")));
    hawser.wait_for_health(200);
    run(python("conversation.py").args([&hawser.url(), PROTOBUF, PROTOBUF]));
    hawser.kill_router();
    hawser.wait_for_health(503);
    hawser.start_router(&papers.router());
    hawser.wait_for_health(200);
}

#[test]
fn a_router_that_asks_for_no_certificate_takes_an_edge_without_one() {
    let (papers, _) = Papers::new();
    let router = papers.own("link-tls", "router");
    let hawser = Linked::start(&router, &papers.edge("house", None));
    hawser.wait_for_health(200);
}

#[test]
fn who_does_not_belong_together_stays_apart_and_says_why() {
    let (papers, house) = Papers::new();
    let stranger = papers.authority("stranger");
    papers.sign(&stranger, "intruder", |_| {});
    let old = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    };
    papers.sign(&house, "old", old);
    let router = papers.router();
    let old_router = papers.own("link-tls", "old").to_vec();
    let other_name = ["--router-tls-name".to_owned(), "router.internal".to_owned()];
    let other_name = [&papers.edge("house", Some("edge"))[..], &other_name].concat();
    let cases = [
        (&router, papers.edge("house", None), "the router wants a certificate", "no certificate"),
        (
            &router,
            papers.edge("house", Some("intruder")),
            "does not know who signed --router-tls-cert",
            "certificate is not accepted",
        ),
        (
            &router,
            papers.edge("stranger", Some("edge")),
            "not signed by an authority in --router-tls-ca",
            "no TLS with an edge",
        ),
        (&router, other_name, "for another name than --router-tls-name", "no TLS with an edge"),
        (&old_router, papers.edge("house", None), "expired", "no TLS with an edge"),
        (&router, Vec::new(), "the router speaks TLS: give --router-tls-ca", "does not speak TLS"),
        (
            &Vec::new(),
            papers.edge("house", None),
            "does it speak TLS there",
            "it speaks TLS, for which --link-tls-cert",
        ),
    ];
    for (router, edge, edge_says, router_says) in cases {
        let hawser = Linked::start(router, &edge);
        hawser.edge.says(edge_says);
        hawser.router.as_ref().expect("a router").says(router_says);
        hawser.wait_for_health(503);
    }
}

/// A router and an edge with flags of their own; they may not get along.
struct Linked {
    edge: Server,
    listen: SocketAddr,
    admin: SocketAddr,
    router: Option<Server>,
    link: SocketAddr,
    data: tempfile::TempDir,
}

impl Linked {
    fn start(router: &[String], edge: &[String]) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let (router, link) = start_router("127.0.0.1:0", router, data.path());
        let admin = free_address();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hawser-edge"));
        command.args(["--listen", "127.0.0.1:0", "--dev-auth", "--shards", "2"]);
        command.args(["--admin", &admin.to_string(), "--router", &link.to_string()]).args(edge);
        let (edge, listen) =
            Server::start(command, data.path().join("edge.log"), "accepting connections");
        Self { edge, listen, admin, router: Some(router), link, data }
    }

    fn kill_router(&mut self) {
        self.router = None;
    }

    /// Where the killed one was.
    fn start_router(&mut self, flags: &[String]) {
        self.router = Some(start_router(&self.link.to_string(), flags, self.data.path()).0);
    }

    fn url(&self) -> String {
        format!("ws://{}/ws", self.listen)
    }

    fn wait_for_health(&self, status: u16) {
        within_patience("the health check", || (health(self.admin)? == status).then_some(()));
    }
}

fn start_router(listen: &str, flags: &[String], folder: &Path) -> (Server, SocketAddr) {
    let binary = Path::new(env!("CARGO_BIN_EXE_hawser-edge")).with_file_name("hawser-router");
    let mut command = Command::new(binary);
    command.args(["--listen", listen, "--admin", "127.0.0.1:0"]).args(flags);
    command.arg("--data-dir").arg(folder.join("router"));
    Server::start(command, folder.join("router.log"), "serving")
}

/// A port that was free a moment ago.
fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}

fn health(admin: SocketAddr) -> Option<u16> {
    let mut stream = TcpStream::connect(admin).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}
