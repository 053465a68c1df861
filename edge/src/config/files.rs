//! What the edge reads from files that knobs name: tried before the start, by `config check`, and before a reload.

use hawser_proto::knobs::UsageError;

use super::Config;
use crate::admin::Token;
use crate::auth::keys;
use crate::certs;

/// Reads them all as a start would, and throws away what it read.
///
/// # Errors
/// The first that does not do, in a sentence that names its knob.
pub fn check(config: &Config) -> Result<(), UsageError> {
    if let Some(path) = &config.operate.admin_token_file {
        Token::read(path)?;
    }
    keys::from_files(&config.admission).map_err(UsageError)?;
    if config.tls.is_on() {
        certs::load(&config.tls)?;
    }
    config.router.iter().try_for_each(|router| certs::router(&config.link_tls, router).map(drop))
}
