//! Who may come in: tokens and their keys, the check by HTTP, Origin, the PROXY protocol.

use std::net::IpAddr;

use clap::Args;
use hawser_proto::knobs::Unfit;
use ipnet::IpNet;

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct AdmissionKnobs {
    /// Networks of balancers that speak the PROXY protocol (version 1 or 2), such as 10.0.0.0/8; several with
    /// commas between them. A connection from there has to begin with its header, whose client address counts from
    /// then on; from anywhere else a header is bad input. Left out: nobody speaks it
    #[arg(long, value_name = "NETWORK", value_delimiter = ',', value_parser = network)]
    pub proxy_protocol_from: Vec<IpNet>,
}

impl AdmissionKnobs {
    /// Whether a connection from `ip`, as the socket says it, has to begin with a PROXY header.
    #[must_use]
    pub fn expects_proxy_header(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.proxy_protocol_from.iter().any(|network| network.contains(&ip))
    }
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

#[cfg(test)]
mod tests {
    use super::super::tests::read;

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
