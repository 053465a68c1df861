//! HTTP as the auth thread speaks it: one client, answers bounded in bytes, errors without what is secret.

use std::error::Error as _;
use std::time::Duration;

use hawser_proto::knobs::UsageError;
use reqwest::redirect::Policy;
use reqwest::{Client, Response};

/// A client that follows nobody elsewhere with a token, and takes no proxy from the environment.
pub(super) fn client(knob: &str, timeout: Duration) -> Result<Client, UsageError> {
    Client::builder()
        .timeout(timeout)
        .redirect(Policy::none())
        .no_proxy()
        .user_agent(concat!("hawser-edge/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| UsageError(format!("{knob}: {}", sentence(error))))
}

/// The whole body, when it has at most `bytes_max` bytes.
pub(super) async fn body(mut response: Response, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(sentence)? {
        if body.len() + chunk.len() > bytes_max {
            return Err(format!("answers with more than {bytes_max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What went wrong, down to its cause. The URL, which may carry a password, is left out.
pub(super) fn sentence(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "does not answer in time".into();
    }
    let error = error.without_url();
    let mut sentence = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        sentence = format!("{sentence}: {cause}");
        source = cause.source();
    }
    sentence
}
