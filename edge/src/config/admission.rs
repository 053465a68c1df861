//! Who may come in: tokens and their keys, the check by HTTP, Origin, the PROXY protocol.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use hawser_proto::knobs::{Unfit, UsageError, count, duration, identifier};
use ipnet::IpNet;

use super::limit::RateClass;
use crate::auth::Grant;
use crate::http::AllowedOrigin;
use crate::limits;

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct AdmissionKnobs {
    /// File with the secret of tokens signed with HS256, 32 bytes at least, taken as they are (of a secret in plain
    /// text the line end is left out). Several while one secret follows another
    #[arg(long, value_name = "FILE")]
    pub jwt_hs256_key_file: Vec<PathBuf>,

    /// PEM file with public keys, or certificates, of tokens signed with RS256, ES256 or EdDSA; the key says which of
    /// them. Several while one key follows another
    #[arg(long, value_name = "FILE")]
    pub jwt_key_file: Vec<PathBuf>,

    /// File with the keys as a JSON Web Key Set (RFC 7517)
    #[arg(long, value_name = "FILE")]
    pub jwt_jwks_file: Option<PathBuf>,

    /// Where the keys are published as a JSON Web Key Set. When it cannot be reached the last good keys stay, and
    /// /healthz says so
    #[arg(long, value_name = "URL")]
    pub jwt_jwks_url: Option<ServiceUrl>,

    /// How often the keys are fetched again
    #[arg(long, value_name = "DURATION", default_value = "5m",
          value_parser = duration(Duration::from_secs(1)..=Duration::from_secs(24 * 3600)))]
    pub jwt_jwks_refresh: Duration,

    /// A token whose key is not known leads to a fetch at once, but not more often than this: anybody can make up the
    /// name of a key
    #[arg(long, value_name = "DURATION", default_value = "10s",
          value_parser = duration(Duration::from_millis(100)..=Duration::from_secs(3600)))]
    pub jwt_jwks_refetch_min: Duration,

    /// Issuers whose tokens are taken (claim iss). None given: any, also none
    #[arg(long, value_name = "TEXT")]
    pub jwt_issuer: Vec<String>,

    /// Names by which tokens may mean this service (claim aud); one that is meant for others is refused, also when none
    /// is given here
    #[arg(long, value_name = "TEXT")]
    pub jwt_audience: Vec<String>,

    /// What the clocks of issuer and edge may differ by
    #[arg(long, value_name = "DURATION", default_value = "30s",
          value_parser = duration(Duration::ZERO..=Duration::from_secs(600)))]
    pub jwt_clock_skew: Duration,

    /// Claim that names the user
    #[arg(long, value_name = "CLAIM", default_value = "sub", value_parser = user_claim)]
    pub jwt_user_claim: String,

    /// Takes tokens that never expire (without the claim exp)
    #[arg(long)]
    pub jwt_exp_optional: bool,

    /// Service of your own that is asked about every token, in place of keys: POST with a JSON object, see README.md
    #[arg(long, value_name = "URL")]
    pub auth_url: Option<ServiceUrl>,

    /// How long such a question may take, and the fetch of keys; then the client is asked to come back
    #[arg(long, value_name = "DURATION", default_value = "3s",
          value_parser = duration(Duration::from_millis(100)..=Duration::from_secs(60)))]
    pub auth_timeout: Duration,

    /// Most questions in flight; more wait for their turn
    #[arg(long, value_name = "NUMBER", default_value = "256", value_parser = count::<usize>(1..=65_536))]
    pub auth_calls_max: usize,

    /// How long an answer counts for the same token, device and address; 0s asks every time
    #[arg(long, value_name = "DURATION", default_value = "30s",
          value_parser = duration(Duration::ZERO..=Duration::from_secs(3600)))]
    pub auth_cache: Duration,

    /// Classes that a token may put its user into (claim rate_class), at most 31, with commas between: a name, the messages a
    /// second and the bytes a second of a connection, as bot:200:1MiB,guest:5:4KiB. What is left out has no limit. Those in no class have
    /// --messages-per-second and --bytes-per-second
    #[arg(long, value_name = "NAME:MESSAGES:BYTES", value_delimiter = ',')]
    pub rate_classes: Vec<RateClass>,

    /// Pages that may connect, as browsers tell in Origin: https://app.example.com, or https://*.example.com; with commas
    /// between. None given: any. Programs that are no browsers send no Origin and are let in
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub allowed_origins: Vec<AllowedOrigin>,

    /// Networks of balancers that speak the PROXY protocol (version 1 or 2), such as 10.0.0.0/8; several with
    /// commas between them. A connection from there has to begin with its header, whose client address counts from
    /// then on; from anywhere else a header is bad input. Left out: nobody speaks it
    #[arg(long, value_name = "NETWORK", value_delimiter = ',', value_parser = network)]
    pub proxy_protocol_from: Vec<IpNet>,
}

impl AdmissionKnobs {
    /// Whether tokens are checked against keys.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        !self.jwt_hs256_key_file.is_empty()
            || !self.jwt_key_file.is_empty()
            || self.jwt_jwks_file.is_some()
            || self.jwt_jwks_url.is_some()
    }

    /// Whether the edge knows how to check a token.
    #[must_use]
    pub fn checks_tokens(&self) -> bool {
        self.has_keys() || self.auth_url.is_some()
    }

    /// Whether a connection from `ip`, as the socket says it, has to begin with a PROXY header.
    #[must_use]
    pub fn expects_proxy_header(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.proxy_protocol_from.iter().any(|network| network.contains(&ip))
    }

    pub(super) fn check_together(&self, dev_auth: bool) -> Result<(), UsageError> {
        let told = |sentence: &str| Err(UsageError(sentence.to_owned()));
        if dev_auth && self.checks_tokens() {
            return told(
                "--dev-auth: takes any token, so it cannot stand beside --jwt-* keys or --auth-url; leave one out",
            );
        }
        if self.has_keys() && self.auth_url.is_some() {
            return told(
                "--auth-url: is asked in place of keys; leave it out, or the --jwt-* keys",
            );
        }
        let asks_claims = !self.jwt_issuer.is_empty() || !self.jwt_audience.is_empty();
        if asks_claims && !self.has_keys() {
            return told(
                "--jwt-issuer, --jwt-audience: are checked in tokens that a key has signed; give --jwt-key-file or its like",
            );
        }
        if self.rate_classes.len() > Grant::CLASSES_MAX {
            return told("--rate-classes: are more than 31");
        }
        if self.allowed_origins.len() > limits::ALLOWED_ORIGINS_MAX {
            return told(
                "--allowed-origins: are more than 256; one https://*.example.com stands for many",
            );
        }
        Ok(())
    }

    /// The number of a class: 0 when nobody has named it so.
    #[must_use]
    pub fn rate_class(&self, name: &str) -> u8 {
        let at = self.rate_classes.iter().position(|class| class.name == name);
        at.and_then(|at| u8::try_from(at + 1).ok()).unwrap_or(0)
    }
}

/// The claims that have a meaning of their own.
const RESERVED_CLAIMS: [&str; 8] =
    ["iss", "aud", "exp", "nbf", "iat", "device", "permissions", "rate_class"];

fn user_claim(text: &str) -> Result<String, Unfit> {
    if RESERVED_CLAIMS.contains(&text) {
        return Err(Unfit(
            "means something else already; allowed is sub or a claim of your own".into(),
        ));
    }
    identifier(1..=128)(text)
}

/// A network in CIDR form, or one address.
fn network(text: &str) -> Result<IpNet, Unfit> {
    let network: IpNet =
        text.parse().or_else(|_| text.parse().map(|ip: IpAddr| IpNet::from(ip))).map_err(|_| {
            Unfit("is not a network such as 10.0.0.0/8 or 2001:db8::/32".to_owned())
        })?;
    // A slip of the prefix is more likely than the wish for these bits to be ignored.
    if network.trunc() != network {
        return Err(Unfit(format!("has bits behind its prefix; is {} meant?", network.trunc())));
    }
    Ok(network)
}

/// The address of a service, which may carry a password: shown without.
#[derive(Clone, PartialEq, Eq)]
pub struct ServiceUrl(reqwest::Url);

impl ServiceUrl {
    /// The whole of it, for the request alone.
    #[must_use]
    pub fn secret(&self) -> &reqwest::Url {
        &self.0
    }

    /// Whether what is said there can be read and changed on its way.
    #[must_use]
    pub fn is_in_the_clear(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let here = host == "localhost" || address.is_ok_and(|ip| ip.is_loopback());
        self.0.scheme() == "http" && !here
    }
}

impl FromStr for ServiceUrl {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let url = text.parse::<reqwest::Url>().ok();
        url.filter(|url| matches!(url.scheme(), "https" | "http") && url.has_host())
            .map(ServiceUrl)
            .ok_or_else(|| Unfit("is not a URL such as https://login.example.com/keys".into()))
    }
}

impl fmt::Display for ServiceUrl {
    /// Scheme, host, port and path: user, password and query are left out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host) = (self.0.scheme(), self.0.host_str().unwrap_or_default());
        write!(f, "{scheme}://{host}")?;
        if let Some(port) = self.0.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.0.path())
    }
}

impl fmt::Debug for ServiceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;

    #[test]
    fn a_url_is_shown_without_what_is_secret_in_it() {
        let url: ServiceUrl = "https://user:word@keys.example:8443/jwks?secret=1".parse().unwrap();
        assert_eq!(format!("{url:?} {url}"), ["https://keys.example:8443/jwks"; 2].join(" "));
        let flag = "--jwt-jwks-url=https://user:word@keys.example/?secret=1";
        let knobs = read(&[flag]).unwrap().admission;
        let shown = format!("{knobs:?}");
        assert!(!shown.contains("word") && !shown.contains("secret"), "{shown}");
        assert_eq!(knobs.jwt_jwks_url.unwrap().secret().password(), Some("word"));
    }

    #[test]
    fn a_url_is_http_or_https_with_a_host() {
        for text in ["keys", "ftp://x/", "file:///etc/passwd", "https://", "unix:/x"] {
            assert!(text.parse::<ServiceUrl>().is_err(), "{text}");
        }
        for (text, clear) in [
            ("http://127.0.0.1:1/", false),
            ("http://[::1]:1/", false),
            ("http://localhost/", false),
            ("https://keys.example/", false),
            ("http://keys.example/", true),
        ] {
            assert_eq!(text.parse::<ServiceUrl>().unwrap().is_in_the_clear(), clear, "{text}");
        }
    }

    #[test]
    fn ways_that_exclude_each_other_are_told() {
        for (flags, told) in [
            (&["--dev-auth", "--jwt-key-file=k"][..], "--dev-auth: "),
            (&["--dev-auth", "--auth-url=http://127.0.0.1/"], "--dev-auth: "),
            (&["--auth-url=http://127.0.0.1/", "--jwt-jwks-file=k"], "--auth-url: "),
            (&["--jwt-audience=me"], "--jwt-issuer, --jwt-audience: "),
            (&["--jwt-key-file=k", "--jwt-user-claim=aud"], "--jwt-user-claim: "),
            (&["--auth-url=nowhere"], "--auth-url: "),
        ] {
            let refused = read(flags).unwrap_err();
            assert!(refused.contains(told), "{flags:?}: {refused}");
        }
    }

    #[test]
    fn classes_are_numbered_from_1_and_unknown_ones_are_0() {
        let knobs = read(&["--rate-classes=bot:200:1MiB,staff"]).unwrap().admission;
        assert_eq!(["bot", "staff", "", "nobody"].map(|name| knobs.rate_class(name)), [1, 2, 0, 0]);
        for unfit in ["", "bot:0", "bot:1:1", "bot:1:1KiB:1", "bot::x", ":1"] {
            let refused = read(&[&format!("--rate-classes={unfit}")]).unwrap_err();
            assert!(refused.starts_with("--rate-classes: "), "{unfit}: {refused}");
        }
        let many = (0..32).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert!(read(&[&format!("--rate-classes={many}")]).is_err());
    }

    #[test]
    fn balancers_are_named_by_networks_or_single_addresses() {
        let asks = |flags: &[&str], ip: &str| {
            read(flags).unwrap().admission.expects_proxy_header(ip.parse().unwrap())
        };
        let flags =
            ["--proxy-protocol-from=10.1.0.0/16,2001:db8::/32", "--proxy-protocol-from=192.0.2.7"];
        for ip in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", "192.0.2.7"] {
            assert!(asks(&flags, ip), "{ip}");
            assert!(!asks(&[], ip), "nobody speaks it unless it is said");
        }
        for ip in ["10.2.0.1", "2001:db9::1", "192.0.2.8"] {
            assert!(!asks(&flags, ip), "{ip}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_may_be_meant() {
        for (value, told) in [
            ("balancer", "\"balancer\" is not a network such as 10.0.0.0/8 or 2001:db8::/32"),
            ("10.0.0.0/33", "\"10.0.0.0/33\" is not a network such as 10.0.0.0/8 or 2001:db8::/32"),
            ("10.1.2.3/8", "\"10.1.2.3/8\" has bits behind its prefix; is 10.0.0.0/8 meant?"),
        ] {
            let refused = read(&[&format!("--proxy-protocol-from={value}")]).unwrap_err();
            assert_eq!(refused, format!("--proxy-protocol-from: {told}"));
        }
    }
}
