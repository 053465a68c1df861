//! PEM files to certificates and keys, checked: what is wrong is told by the knob's name and the file's.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_proto::knobs::UsageError;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

use super::{read, unix_seconds};

/// A certificate with its key and the DNS names that it is for.
pub(super) type Named = (Arc<CertifiedKey>, Vec<String>);

/// Reads one certificate and its key, which these knobs name; tells until when it is valid.
pub(super) fn certificate(
    [cert_knob, key_knob]: [&str; 2],
    cert: &Path,
    key: &Path,
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<(Named, SystemTime), UsageError> {
    let refuse = |reason: String| UsageError(format!("{cert_knob}: {} {reason}", cert.display()));
    let chain = certificates(cert_knob, cert, &read(cert_knob, cert)?)?;
    let Some(own) = chain.first() else {
        return Err(refuse(
            "has no certificate in it; wanted is PEM, the server's own first".into(),
        ));
    };
    let (_, parsed) = parse_x509_certificate(own)
        .map_err(|error| refuse(format!("does not begin with an X.509 certificate: {error}")))?;
    let (names, expires) = (dns_names(&parsed), check_validity(&parsed, now).map_err(refuse)?);
    let certified = CertifiedKey::from_der(chain, private_key(key_knob, key)?, provider);
    let certified = certified.map_err(|error| {
        let key = key.display();
        UsageError(if error == Error::InconsistentKeys(InconsistentKeys::KeyMismatch) {
            format!("{key_knob}: {key} is not the key of the certificate in {}", cert.display())
        } else {
            format!("{key_knob}: {key} cannot be used: {error}")
        })
    })?;
    Ok(((Arc::new(certified), names), expires))
}

/// The authorities in `text`, which is the PEM file at `path` that the knob names.
pub(super) fn authorities(
    knob: &str,
    path: &Path,
    text: &[u8],
) -> Result<RootCertStore, UsageError> {
    let refuse = |reason: String| UsageError(format!("{knob}: {} {reason}", path.display()));
    let mut roots = RootCertStore::empty();
    for certificate in certificates(knob, path, text)? {
        roots
            .add(certificate)
            .map_err(|error| refuse(format!("has a certificate that cannot be used: {error}")))?;
    }
    if roots.is_empty() {
        return Err(refuse("has no certificate in it; wanted is PEM".into()));
    }
    Ok(roots)
}

fn certificates(
    knob: &str,
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, UsageError> {
    CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| UsageError(format!("{knob}: {} is broken PEM: {error}", path.display())))
}

fn private_key(knob: &str, path: &Path) -> Result<PrivateKeyDer<'static>, UsageError> {
    let text = read(knob, path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        let path = path.display();
        UsageError(if matches!(error, pem::Error::NoItemsFound) {
            format!("{knob}: {path} has no private key in it; wanted is PEM, without a password")
        } else {
            format!("{knob}: {path} is broken PEM: {error}")
        })
    })
}

fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let mut dns_names = Vec::new();
    for name in &names.value.general_names {
        if let GeneralName::DNSName(name) = name {
            dns_names.push(name.to_ascii_lowercase());
        }
    }
    dns_names
}

/// Until when the certificate is valid, if it is now.
fn check_validity(
    certificate: &X509Certificate<'_>,
    now: SystemTime,
) -> Result<SystemTime, String> {
    let validity = certificate.validity();
    let at = |time: ASN1Time| Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0));
    let (from, until) = (at(validity.not_before), at(validity.not_after));
    let now = Duration::from_secs(unix_seconds(now));
    if now < from {
        return Err(format!("is not valid before {}", validity.not_before));
    }
    if now > until {
        return Err(format!("expired at {}", validity.not_after));
    }
    Ok(SystemTime::UNIX_EPOCH + until)
}
