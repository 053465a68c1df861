//! TLS: certificates, tickets, client certificates.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use hawser_proto::knobs::{Unfit, UsageError, duration};

use super::TIMEOUTS;

/// The knobs; each stands beside its like in [`super::Config`]. Files are read by [`crate::certs`].
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct TlsKnobs {
    /// PEM file with a certificate and its chain, the server's own first; clients of --listen then have to speak
    /// TLS. Given several times for several names: a client gets the one that has the name it asks for, or else the
    /// first. Read again when it changes, and on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Vec<PathBuf>,

    /// PEM file with the private key of a --tls-cert, as often and in the same order
    #[arg(long, value_name = "FILE")]
    pub tls_key: Vec<PathBuf>,

    /// Oldest version of TLS that is spoken, 1.2 or 1.3
    #[arg(long, value_name = "VERSION", default_value = "1.2")]
    pub tls_min_version: MinVersion,

    /// File with the keys of session tickets, for edges that share their clients: a key of 32 to 80 random bytes in
    /// base64 a line. The first seals, all open: put a new one last everywhere, then first, then drop the old one. Left
    /// out: each edge has keys of its own, new ones every 6 hours
    #[arg(long, value_name = "FILE")]
    pub tls_ticket_keys: Option<PathBuf>,

    /// PEM file with the authorities that sign the certificates of clients
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Whether clients show a certificate: none, optional or required
    #[arg(long, value_name = "WHEN", default_value = "none")]
    pub tls_client_auth: ClientAuth,

    /// Time from accept to the end of the TLS handshake, then the connection is closed; the request head has a time of its own
    /// behind it
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration(TIMEOUTS))]
    pub tls_handshake_timeout: Duration,
}

impl TlsKnobs {
    /// Clients have to speak TLS.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.tls_cert.is_empty()
    }

    /// What has to fit together.
    ///
    /// # Errors
    /// A sentence that names the knob.
    pub fn check_together(&self) -> Result<(), UsageError> {
        let refuse = |sentence: String| Err(UsageError(sentence));
        let (certs, keys) = (self.tls_cert.len(), self.tls_key.len());
        if certs != keys {
            return refuse(format!(
                "--tls-key: is given {keys} times and --tls-cert {certs} times; each certificate needs its key, in the \
                 same order"
            ));
        }
        if !self.is_on() {
            let wanted = [
                ("--tls-ticket-keys", self.tls_ticket_keys.is_some()),
                ("--tls-client-ca", self.tls_client_ca.is_some()),
                ("--tls-client-auth", self.tls_client_auth != ClientAuth::None),
            ];
            if let Some((knob, _)) = wanted.iter().find(|(_, given)| *given) {
                return refuse(format!(
                    "{knob}: means nothing without TLS; give --tls-cert and --tls-key"
                ));
            }
        }
        match (self.tls_client_auth, &self.tls_client_ca) {
            (ClientAuth::None, Some(_)) => refuse(
                "--tls-client-ca: means nothing without --tls-client-auth optional or required"
                    .to_owned(),
            ),
            (when @ (ClientAuth::Optional | ClientAuth::Required), None) => refuse(format!(
                "--tls-client-auth: {when} needs --tls-client-ca, the authorities that sign the certificates"
            )),
            (ClientAuth::None, None) | (ClientAuth::Optional | ClientAuth::Required, Some(_)) => {
                Ok(())
            }
        }
    }
}

impl Default for TlsKnobs {
    /// Off, as when nobody says anything.
    fn default() -> Self {
        super::Config::default().tls
    }
}

/// Oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinVersion {
    /// `1.2`
    Tls12,
    /// `1.3`
    Tls13,
}

impl FromStr for MinVersion {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        match text {
            "1.2" => Ok(Self::Tls12),
            "1.3" => Ok(Self::Tls13),
            _ => Err(Unfit("is not a version that is spoken; allowed are 1.2 and 1.3".to_owned())),
        }
    }
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked.
    None,
    /// They are asked, and may come without; one that nobody trusted has signed is refused.
    Optional,
    /// They have to.
    Required,
}

impl FromStr for ClientAuth {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        match text {
            "none" => Ok(Self::None),
            "optional" => Ok(Self::Optional),
            "required" => Ok(Self::Required),
            _ => Err(Unfit("is none of those allowed: none, optional, required".to_owned())),
        }
    }
}

impl fmt::Display for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Optional => "optional",
            Self::Required => "required",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knobs(certs: usize, keys: usize) -> TlsKnobs {
        let files = |count| vec![PathBuf::from("file"); count];
        TlsKnobs { tls_cert: files(certs), tls_key: files(keys), ..TlsKnobs::default() }
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        let ca = || Some(PathBuf::from("ca"));
        let cases = [
            (knobs(1, 0), "--tls-key: is given 0 times and --tls-cert 1 times"),
            (knobs(1, 2), "--tls-key: is given 2 times and --tls-cert 1 times"),
            (
                TlsKnobs { tls_ticket_keys: ca(), ..knobs(0, 0) },
                "--tls-ticket-keys: means nothing without TLS",
            ),
            (
                TlsKnobs { tls_client_auth: ClientAuth::Required, ..knobs(0, 0) },
                "--tls-client-auth: means nothing without TLS",
            ),
            (
                TlsKnobs { tls_client_ca: ca(), ..knobs(1, 1) },
                "--tls-client-ca: means nothing without --tls-client-auth",
            ),
            (
                TlsKnobs { tls_client_auth: ClientAuth::Optional, ..knobs(1, 1) },
                "--tls-client-auth: optional needs --tls-client-ca",
            ),
        ];
        for (knobs, told) in cases {
            let UsageError(sentence) = knobs.check_together().unwrap_err();
            assert!(sentence.starts_with(told), "{sentence}");
        }
        for knobs in [
            knobs(0, 0),
            knobs(2, 2),
            TlsKnobs { tls_client_ca: ca(), tls_client_auth: ClientAuth::Required, ..knobs(1, 1) },
        ] {
            assert_eq!(knobs.check_together(), Ok(()));
        }
    }

    #[test]
    fn versions_and_client_auth_are_a_few_words() {
        assert_eq!("1.3".parse(), Ok(MinVersion::Tls13));
        assert!("1.1".parse::<MinVersion>().is_err());
        for when in [ClientAuth::None, ClientAuth::Optional, ClientAuth::Required] {
            assert_eq!(when.to_string().parse(), Ok(when));
        }
        assert!("maybe".parse::<ClientAuth>().is_err());
    }
}
