//! TLS on the link to the router.

use std::path::PathBuf;

use clap::Args;
use hawser_proto::knobs::{Unfit, UsageError};
use rustls::pki_types::ServerName;

use super::RouterAddress;

/// The knobs; each stands beside its like in [`super::Config`]. Files are read by [`crate::certs`].
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct LinkTlsKnobs {
    /// PEM file with the authorities that sign the router's certificate; the link then speaks TLS 1.3. Read at the start
    #[arg(long, value_name = "FILE")]
    pub router_tls_ca: Option<PathBuf>,

    /// PEM file with this edge's certificate and its chain, for a router that wants one (its --link-tls-client-ca)
    #[arg(long, value_name = "FILE")]
    pub router_tls_cert: Option<PathBuf>,

    /// PEM file with the private key of --router-tls-cert
    #[arg(long, value_name = "FILE")]
    pub router_tls_key: Option<PathBuf>,

    /// Name or address that the router's certificate has to be for. Left out: the host in --router
    #[arg(long, value_name = "NAME", value_parser = server_name)]
    pub router_tls_name: Option<ServerName<'static>>,
}

impl LinkTlsKnobs {
    /// What has to fit together.
    ///
    /// # Errors
    /// A sentence that names the knob.
    pub fn check_together(&self, router: &RouterAddress) -> Result<(), UsageError> {
        let refuse = |sentence: &str| Err(UsageError(sentence.to_owned()));
        match (&self.router_tls_cert, &self.router_tls_key) {
            (Some(_), None) => return refuse("--router-tls-key: --router-tls-cert needs its key"),
            (None, Some(_)) => {
                return refuse("--router-tls-cert: --router-tls-key needs its certificate");
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if self.router_tls_ca.is_none() {
            return match (&self.router_tls_cert, &self.router_tls_name) {
                (None, None) => Ok(()),
                (Some(_), _) => refuse(
                    "--router-tls-cert: means nothing without --router-tls-ca, the authorities that sign the router's",
                ),
                (None, Some(_)) => {
                    refuse("--router-tls-name: means nothing without --router-tls-ca")
                }
            };
        }
        match router {
            RouterAddress::Unix(_) => refuse(
                "--router-tls-ca: a Unix socket does not leave this machine and speaks no TLS; leave it out",
            ),
            RouterAddress::Tcp(_) => self.name(router).map(drop),
        }
    }

    /// What the router's certificate has to be for.
    ///
    /// # Errors
    /// A sentence that names the knob, where the host in `--router` is no name for a certificate.
    pub fn name(&self, router: &RouterAddress) -> Result<ServerName<'static>, UsageError> {
        if let Some(name) = &self.router_tls_name {
            return Ok(name.clone());
        }
        let address = router.to_string();
        let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        server_name(host).map_err(|Unfit(problem)| {
            UsageError(format!("--router-tls-name: has to be given, {host} in --router {problem}"))
        })
    }
}

fn server_name(text: &str) -> Result<ServerName<'static>, Unfit> {
    ServerName::try_from(text.to_owned())
        .map_err(|_| Unfit("is neither a DNS name nor an IP address".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFF: LinkTlsKnobs = LinkTlsKnobs {
        router_tls_ca: None,
        router_tls_cert: None,
        router_tls_key: None,
        router_tls_name: None,
    };

    #[test]
    fn what_does_not_fit_together_is_named() {
        let file = || Some(PathBuf::from("file"));
        let tcp = RouterAddress::Tcp("router.internal:7800".to_owned());
        let unix = RouterAddress::Unix("/run/r.sock".into());
        let (ca, cert) = (
            LinkTlsKnobs { router_tls_ca: file(), ..OFF },
            LinkTlsKnobs { router_tls_cert: file(), router_tls_key: file(), ..OFF },
        );
        let keyless = LinkTlsKnobs { router_tls_cert: file(), ..ca.clone() };
        for (knobs, router, told) in [
            (keyless, &tcp, "--router-tls-key: "),
            (cert.clone(), &tcp, "--router-tls-cert: means nothing"),
            (ca.clone(), &unix, "--router-tls-ca: a Unix socket"),
        ] {
            let UsageError(sentence) = knobs.check_together(router).unwrap_err();
            assert!(sentence.starts_with(told), "{sentence}");
        }
        for knobs in [OFF, ca, LinkTlsKnobs { router_tls_ca: file(), ..cert }] {
            assert_eq!(knobs.check_together(&tcp), Ok(()));
        }
    }

    #[test]
    fn the_name_is_the_host_of_the_router_unless_it_is_given() {
        let name = |router: &str, given: Option<&str>| {
            let router = RouterAddress::Tcp(router.to_owned());
            let given = given.map(|name| server_name(name).unwrap());
            LinkTlsKnobs { router_tls_name: given, ..OFF }.name(&router).unwrap()
        };
        let expected = |name: &str| ServerName::try_from(name.to_owned()).unwrap();
        assert_eq!(name("router.internal:7800", None), expected("router.internal"));
        assert_eq!(name("[::1]:7800", None), expected("::1"));
        assert_eq!(name("10.0.0.7:7800", Some("router.internal")), expected("router.internal"));
    }
}
