//! Which certificate a client gets: by the name that it asks for (RFC 6066 section 3), then by what it can check.

use std::sync::Arc;

use ahash::AHashMap;
use rustls::SignatureScheme;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::files::Named;

/// Certificates by their DNS names. Several may have the same name, an ECDSA one beside an RSA one for old clients; the
/// first that the client can check is taken.
#[derive(Debug)]
pub(super) struct ByName {
    /// By name; a wildcard `*.example.com` without its star.
    names: AHashMap<String, Vec<Arc<CertifiedKey>>>,
    /// For a client that asks for no name, or for none that is here.
    all: Vec<Arc<CertifiedKey>>,
}

impl ByName {
    pub(super) fn new(certificates: Vec<Named>) -> Self {
        let mut names: AHashMap<String, Vec<_>> = AHashMap::new();
        for (certificate, own_names) in &certificates {
            for name in own_names {
                let name = name.strip_prefix('*').unwrap_or(name);
                names.entry(name.to_owned()).or_default().push(Arc::clone(certificate));
            }
        }
        Self { names, all: certificates.into_iter().map(|(certificate, _)| certificate).collect() }
    }

    /// The certificates for `name`. A wildcard stands for one label (RFC 9525 section 6.3).
    fn of(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let found = name.and_then(|name| {
            let lower;
            let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                lower = name.to_ascii_lowercase();
                &lower
            } else {
                name
            };
            let wildcard = || name.find('.').and_then(|dot| self.names.get(&name[dot..]));
            self.names.get(name).or_else(wildcard)
        });
        found.unwrap_or(&self.all)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fits =
            |certificate: &&Arc<CertifiedKey>| can_check(certificate, hello.signature_schemes());
        self.of(hello.server_name()).iter().find(fits).cloned()
    }
}

fn can_check(certificate: &CertifiedKey, schemes: &[SignatureScheme]) -> bool {
    certificate.key.choose_scheme(schemes).is_some()
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    fn named(names: &[&str]) -> Named {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names.clone()).unwrap();
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = aws_lc_rs::default_provider();
        let certified =
            CertifiedKey::from_der(vec![made.cert.der().clone()], key, &provider).unwrap();
        (Arc::new(certified), names)
    }

    #[test]
    fn a_name_finds_its_certificate_a_wildcard_stands_for_one_label_and_others_get_the_first() {
        let (first, exact, wild) =
            (named(&["a.test"]), named(&["chat.b.test"]), named(&["*.b.test", "b.test"]));
        let by_name = ByName::new(vec![first.clone(), exact.clone(), wild.clone()]);
        for (name, expected) in [
            (None, &first),
            (Some("a.test"), &first),
            (Some("elsewhere.test"), &first),
            (Some("chat.b.test"), &exact),
            (Some("CHAT.b.Test"), &exact),
            (Some("live.b.test"), &wild),
            (Some("b.test"), &wild),
            (Some("too.deep.b.test"), &first),
            (Some("test"), &first),
        ] {
            assert!(Arc::ptr_eq(&by_name.of(name)[0], &expected.0), "{name:?}");
        }
    }

    #[test]
    fn of_two_certificates_with_one_name_the_first_that_the_client_can_check_is_taken() {
        let (first, second) = (named(&["a.test"]), named(&["a.test"]));
        let by_name = ByName::new(vec![first.clone(), second]);
        assert_eq!(by_name.of(Some("a.test")).len(), 2);
        assert!(can_check(&first.0, &[SignatureScheme::ECDSA_NISTP256_SHA256]));
        assert!(!can_check(&first.0, &[SignatureScheme::RSA_PSS_SHA256]));
    }
}
