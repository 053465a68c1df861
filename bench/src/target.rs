//! `ws://host:port/path` or `wss://…`: where the load goes.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::failure::Failure;
use crate::tls::TlsClients;

/// Where a client connects to: a `ws://` or `wss://` URL, resolved once.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub address: SocketAddr,
    /// `host` or `host:port` as it stood in the URL, for the Host header.
    pub host: String,
    /// Path and query, starts with a slash.
    pub path: String,
    /// The TLS that is spoken there, if any.
    pub tls: Option<Arc<TlsClients>>,
}

impl Target {
    /// A target on this machine.
    pub(crate) fn local(address: SocketAddr, path: &str) -> Self {
        Self { address, host: address.to_string(), path: path.to_owned(), tls: None }
    }

    /// The same; with TLS, clients trust the authorities in the PEM file `ca`, or without one everybody, and of a hundred
    /// connects so many resume a session.
    ///
    /// # Errors
    /// When the file does not fit, or there is no TLS.
    pub(crate) fn trusting(&self, ca: Option<&Path>, resume_percent: u32) -> Result<Self, Failure> {
        let tls = match (&self.tls, ca) {
            (None, None) => None,
            (None, Some(_)) => {
                return Err(Failure::Usage("--tls-ca: needs a wss:// URL in --target".to_owned()));
            }
            (Some(_), Some(path)) => Some(TlsClients::trusting_file(path, resume_percent)?),
            (Some(_), None) => Some(
                TlsClients::trusting_all(resume_percent)
                    .map_err(|error| Failure::Broken(format!("TLS: {error}")))?,
            ),
        };
        Ok(Self { tls, ..self.clone() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.host, self.path)
    }
}

impl FromStr for Target {
    type Err = String;

    /// Resolves the host name; the port is 80 (with TLS 443) unless given, the path `/`. With TLS every certificate is
    /// taken, until another [`Target::tls`] is put in.
    fn from_str(url: &str) -> Result<Self, String> {
        let (rest, tls) = match (url.strip_prefix("ws://"), url.strip_prefix("wss://")) {
            (Some(rest), _) => (rest, None),
            (_, Some(rest)) => {
                (rest, Some(TlsClients::trusting_all(0).map_err(|error| error.to_string())?))
            }
            _ => {
                return Err(format!("{url:?} is not a ws:// URL (such as ws://127.0.0.1:8080/ws)"));
            }
        };
        let (host, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{url:?} has blanks or characters outside ASCII"));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let port_given = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let port = if tls.is_some() { 443 } else { 80 };
        let lookup = if port_given { host.to_owned() } else { format!("{host}:{port}") };
        let address = lookup
            .to_socket_addrs()
            .map_err(|error| format!("{host:?} cannot be resolved: {error}"))?
            .next()
            .ok_or_else(|| format!("{host:?} has no address"))?;
        Ok(Self { address, host: host.to_owned(), path, tls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_gives_address_host_and_path() {
        let target: Target = "ws://127.0.0.1:8080/ws?x=1".parse().unwrap();
        assert_eq!(target.address, "127.0.0.1:8080".parse().unwrap());
        assert_eq!((target.host.as_str(), target.path.as_str()), ("127.0.0.1:8080", "/ws?x=1"));
        assert_eq!(target.to_string(), "ws://127.0.0.1:8080/ws?x=1");
    }

    #[test]
    fn port_and_path_have_defaults() {
        let target: Target = "ws://[::1]".parse().unwrap();
        assert_eq!(target.address, "[::1]:80".parse().unwrap());
        assert_eq!(target.path, "/");
        let target: Target = "wss://127.0.0.1/x".parse().unwrap();
        assert_eq!(target.address, "127.0.0.1:443".parse().unwrap());
        assert_eq!(target.to_string(), "wss://127.0.0.1/x");
    }

    #[test]
    fn other_schemes_blanks_and_empty_hosts_are_refused() {
        for url in ["http://127.0.0.1/", "127.0.0.1:80", "ws://127.0.0.1/a b", "ws://", "ws://:x/"]
        {
            assert!(url.parse::<Target>().is_err(), "{url}");
        }
    }
}
