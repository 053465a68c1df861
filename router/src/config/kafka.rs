//! The knobs of the engine `kafka`.

use std::time::Duration;

use clap::Args;
use hawser_proto::knobs::{Unfit, count, duration};

/// Most copies of a partition.
const REPLICAS_MAX: u64 = 9;

/// Where the brokers are, and how they keep what they are given.
#[derive(Debug, Clone, Args)]
pub struct KafkaConfig {
    /// A Kafka broker: host:port. May be given several times; the others of a cluster are learnt from the first that answers.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092", value_parser = broker)]
    pub kafka_brokers: Vec<String>,

    /// Copies of every partition, each on another broker.
    #[arg(long, value_name = "COUNT", default_value = "3", value_parser = count::<u16>(1..=REPLICAS_MAX))]
    pub kafka_replicas: u16,

    /// Copies that a record has when it is acknowledged; default: one less than --kafka-replicas, at least 1. With 1, a message
    /// is lost with the broker that alone had it.
    #[arg(long, value_name = "COUNT", value_parser = count::<u16>(1..=REPLICAS_MAX))]
    pub kafka_min_insync: Option<u16>,

    /// A router that has not been heard of for this long loses its partitions to others. Brokers have a least and a most of their
    /// own (group.min.session.timeout.ms, 6 s where nobody has changed it).
    #[arg(long, value_name = "DURATION", default_value = "6s",
          value_parser = duration(Duration::from_millis(500)..=Duration::from_secs(300)))]
    pub kafka_session_timeout: Duration,

    /// A setting of librdkafka, such as security.protocol=SASL_PLAINTEXT. May be given several times. What the engine promises does
    /// not hang on it: settings that it needs cannot be changed. TLS and SCRAM are there in builds with the feature kafka-tls.
    #[arg(long, value_name = "KEY=VALUE", value_parser = option)]
    pub kafka_option: Vec<KafkaOption>,
}

impl KafkaConfig {
    /// Copies that a record has when it is acknowledged.
    #[must_use]
    pub fn min_insync(&self) -> u16 {
        self.kafka_min_insync.unwrap_or_else(|| self.kafka_replicas.saturating_sub(1).max(1))
    }
}

/// A setting that is passed through. Its value may be a secret and is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaOption {
    /// Its name in librdkafka.
    pub key: String,
    /// What it is set to.
    pub value: String,
}

impl std::fmt::Debug for KafkaOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=…", self.key)
    }
}

fn broker(text: &str) -> Result<String, Unfit> {
    let port = text.rsplit_once(':').and_then(|(host, port)| {
        (!host.is_empty() && !host.contains([',', '/', ' '])).then_some(port.parse::<u16>())
    });
    match port {
        Some(Ok(1..)) => Ok(text.to_owned()),
        Some(Ok(0) | Err(_)) | None => Err(Unfit("is no broker such as 127.0.0.1:9092".to_owned())),
    }
}

fn option(text: &str) -> Result<KafkaOption, Unfit> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            Ok(KafkaOption { key: key.to_owned(), value: value.to_owned() })
        }
        Some(_) | None => Err(Unfit("is no KEY=VALUE".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use hawser_proto::knobs::read;

    use super::*;

    #[derive(Parser)]
    struct Knobs {
        #[command(flatten)]
        kafka: KafkaConfig,
    }

    fn parse(arguments: &[&str]) -> Result<KafkaConfig, String> {
        let all = ["program"].iter().chain(arguments).map(Into::into);
        let knobs: Result<Knobs, _> = read("TEST", all, []);
        knobs.map(|knobs| knobs.kafka).map_err(|unread| format!("{unread:?}"))
    }

    #[test]
    fn one_copy_less_than_all_makes_a_record_safe_unless_it_is_said_otherwise() {
        assert_eq!(parse(&[]).unwrap().min_insync(), 2);
        assert_eq!(parse(&["--kafka-replicas", "1"]).unwrap().min_insync(), 1);
        assert_eq!(parse(&["--kafka-min-insync", "3"]).unwrap().min_insync(), 3);
    }

    #[test]
    fn options_are_passed_on_and_not_printed() {
        let config = parse(&["--kafka-option", "sasl.password=a=b"]).unwrap();
        assert_eq!(config.kafka_option[0].value, "a=b");
        assert!(!format!("{config:?}").contains("a=b"));
    }

    #[test]
    fn what_is_no_broker_is_refused() {
        let config = parse(&["--kafka-brokers", "a:1", "--kafka-brokers", "[::1]:2"]).unwrap();
        assert_eq!(config.kafka_brokers, ["a:1", "[::1]:2"]);
        for text in ["a", "a:0", ":9092", "a:1,b:2", "kafka://a:1"] {
            assert!(parse(&["--kafka-brokers", text]).is_err(), "{text}");
        }
    }
}
