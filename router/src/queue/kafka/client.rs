//! What all our clients of Kafka share: where the brokers are, what librdkafka says, and how an answer is waited for.

use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use crate::config::kafka::KafkaConfig;
use crate::queue::QueueError;

/// A request to a broker is given up after this long, and the connection with it. What it was about is asked again.
const REQUEST_TIMEOUT_MS: &str = "6000";
/// Longest pause between two tries to connect.
const RECONNECT_PAUSE_MAX_MS: &str = "1000";

/// The settings that every client starts from, with those of the operator; what the caller sets after this wins.
pub(crate) fn settings(config: &KafkaConfig, client_id: &str) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings.set("socket.timeout.ms", REQUEST_TIMEOUT_MS);
    settings.set("reconnect.backoff.max.ms", RECONNECT_PAUSE_MAX_MS);
    settings.set("socket.keepalive.enable", "true");
    settings.set("socket.nagle.disable", "true");
    for option in &config.kafka_option {
        settings.set(option.key.as_str(), option.value.as_str());
    }
    settings.set("bootstrap.servers", config.kafka_brokers.join(","));
    settings.set("client.id", client_id);
    settings
}

/// The last thing that librdkafka complained about, for the sentence that says why nothing works. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    pub(crate) fn note(&self, what: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(what.to_owned());
    }

    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The sentence with what is known of the reason.
    pub(crate) fn explain(&self, sentence: &str) -> QueueError {
        let trouble = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        QueueError(match &*trouble {
            Some(reason) => format!("{sentence}; the last that was heard: {reason}"),
            None => sentence.to_owned(),
        })
    }
}

impl ClientContext for Trouble {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        say(level, facility, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka reports");
        self.note(reason);
    }
}

impl ConsumerContext for Trouble {}

/// Passes a line of librdkafka's log on. It calls a connection that a broker ended an error; what someone should act on is said
/// by whoever waited for the broker.
pub(crate) fn say(level: RDKafkaLogLevel, facility: &str, line: &str) {
    tracing::debug!(?level, facility, "librdkafka: {line}");
}

/// A sentence about what could not be done.
pub(super) fn told(what: &str) -> impl FnOnce(KafkaError) -> QueueError + '_ {
    move |error| QueueError(format!("Kafka: {what}: {error}"))
}
