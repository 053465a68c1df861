//! What `--router-tls-*` name, to how the link shakes hands.

use std::sync::Arc;
use std::time::SystemTime;

use hawser_proto::knobs::UsageError;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;

use super::{files, now, read};
use crate::config::{LinkTlsKnobs, RouterAddress};
use crate::link_tls::LinkTlsConfig;

/// Reads the files; `None` where the link speaks no TLS.
///
/// # Errors
/// A sentence that names the knob and the file.
pub fn router(
    knobs: &LinkTlsKnobs,
    router: &RouterAddress,
) -> Result<Option<LinkTlsConfig>, UsageError> {
    load(knobs, router, now())
}

fn load(
    knobs: &LinkTlsKnobs,
    router: &RouterAddress,
    now: SystemTime,
) -> Result<Option<LinkTlsConfig>, UsageError> {
    const CA: &str = "--router-tls-ca";
    const CERT: [&str; 2] = ["--router-tls-cert", "--router-tls-key"];
    let Some(ca) = &knobs.router_tls_ca else { return Ok(None) };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = files::authorities(CA, ca, &read(CA, ca)?)?;
    // One version, as at the router: both ends are of one house.
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| UsageError(format!("{CA}: {error}")))?
        .with_root_certificates(roots);
    let mut config = match (&knobs.router_tls_cert, &knobs.router_tls_key) {
        (Some(cert), Some(key)) => {
            let ((certified, _), _) = files::certificate(CERT, cert, key, &provider, now)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)))
        }
        (Some(_), None) | (None, _) => builder.with_no_client_auth(),
    };
    // A link is made seldom, and certificates are to be looked at each time.
    config.resumption = Resumption::disabled();
    Ok(Some(LinkTlsConfig { config: Arc::new(config), name: knobs.name(router)? }))
}
