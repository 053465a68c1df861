//! `ws://host:port/path`: where the load goes.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::str::FromStr;

/// Where a client connects to: a `ws://` URL, resolved once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub address: SocketAddr,
    /// `host` or `host:port` as it stood in the URL, for the Host header.
    pub host: String,
    /// Path and query, starts with a slash.
    pub path: String,
}

impl Target {
    /// A target on this machine.
    pub(crate) fn local(address: SocketAddr, path: &str) -> Self {
        Self { address, host: address.to_string(), path: path.to_owned() }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ws://{}{}", self.host, self.path)
    }
}

impl FromStr for Target {
    type Err = String;

    /// Resolves the host name; the port is 80 unless given, the path `/`.
    fn from_str(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("ws://").ok_or_else(|| {
            format!("{url:?} is not a ws:// URL (such as ws://127.0.0.1:8080/ws)")
        })?;
        let (host, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{url:?} has blanks or characters outside ASCII"));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let port_given = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let lookup = if port_given { host.to_owned() } else { format!("{host}:80") };
        let address = lookup
            .to_socket_addrs()
            .map_err(|error| format!("{host:?} cannot be resolved: {error}"))?
            .next()
            .ok_or_else(|| format!("{host:?} has no address"))?;
        Ok(Self { address, host: host.to_owned(), path })
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
    }

    #[test]
    fn other_schemes_blanks_and_empty_hosts_are_refused() {
        for url in ["http://127.0.0.1/", "127.0.0.1:80", "ws://127.0.0.1/a b", "ws://", "ws://:x/"]
        {
            assert!(url.parse::<Target>().is_err(), "{url}");
        }
    }
}
