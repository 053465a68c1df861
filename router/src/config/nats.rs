//! The knobs of the engine `nats`.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use async_nats::ServerAddr;
use clap::Args;
use hawser_proto::knobs::{Unfit, count, duration};

/// Most copies that a NATS server keeps.
const REPLICAS_MAX: u64 = 5;

/// Where the servers are, and how they keep what they are given.
#[derive(Debug, Clone, Args)]
pub struct NatsConfig {
    /// A NATS server: nats://host:4222, or tls://host:4222; a user and password may stand before the host. May be given several
    /// times; the others of a cluster are learnt from the first that answers.
    #[arg(long, value_name = "URL", default_value = "nats://127.0.0.1:4222", value_parser = server_url)]
    pub nats_url: Vec<ServerUrl>,

    /// Copies of every partition and claim, each on another server.
    #[arg(long, value_name = "COUNT", default_value = "3", value_parser = count::<u8>(1..=REPLICAS_MAX))]
    pub nats_replicas: u8,

    /// Credentials file (.creds) for the servers.
    #[arg(long, value_name = "FILE")]
    pub nats_credentials: Option<PathBuf>,

    /// PEM file with the authorities that sign the servers' certificates; only TLS is spoken then.
    #[arg(long, value_name = "FILE")]
    pub nats_ca: Option<PathBuf>,

    /// Where a server says how it is configured (its http_port): http://host:8222. Give it for every server; then it is checked at
    /// the start that they sync what they acknowledge.
    #[arg(long, value_name = "URL")]
    pub nats_monitor: Vec<String>,

    /// A router that has not been heard of for this long loses its partitions to others.
    #[arg(long, value_name = "DURATION", default_value = "3s",
          value_parser = duration(Duration::from_millis(500)..=Duration::from_secs(60)))]
    pub claim_lease: Duration,
}

/// Address of a server. What may be secret in it is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(pub ServerAddr);

impl std::fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.0.host(), self.0.port())
    }
}

fn server_url(text: &str) -> Result<ServerUrl, Unfit> {
    let address = ServerAddr::from_str(text)
        .map_err(|error| Unfit(format!("is no URL such as nats://127.0.0.1:4222: {error}")))?;
    Ok(ServerUrl(address))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use hawser_proto::knobs::read;

    use super::*;

    #[derive(Parser)]
    struct Knobs {
        #[command(flatten)]
        nats: NatsConfig,
    }

    fn parse(arguments: &[&str]) -> Result<NatsConfig, String> {
        let all = ["hawser-router"].iter().chain(arguments).map(Into::into);
        read(crate::config::ENVIRONMENT_PREFIX, all, [])
            .map(|knobs: Knobs| knobs.nats)
            .map_err(|unread| format!("{unread:?}"))
    }

    #[test]
    fn a_password_is_not_printed() {
        let config = parse(&["--nats-url", "nats://me:secret@example.org:1"]).unwrap();
        assert_eq!(config.nats_url[0].0.password(), Some("secret"));
        assert!(!format!("{config:?}").contains("secret"));
        assert_eq!(config.nats_url[0].to_string(), "example.org:1");
    }

    #[test]
    fn what_is_no_address_names_its_knob() {
        for (knob, value) in
            [("--nats-url", "nats://:x"), ("--nats-replicas", "0"), ("--claim-lease", "1h")]
        {
            let error = parse(&[knob, value]).unwrap_err();
            assert!(error.contains(knob), "{error}");
        }
    }
}
