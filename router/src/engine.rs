//! The engines that several routers share, as the server sees them: connected late, tried until it works.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::ValueEnum;

use crate::claims::{self, Ends};
use crate::config::Config;
use crate::health::{Health, Part};
#[cfg(feature = "kafka")]
use crate::queue::kafka::KafkaEngine;
use crate::queue::nats::NatsEngine;
use crate::queue::{Log, Opener, Queue, QueueError};

/// Which engine keeps the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// This machine's disk; one router.
    Embedded,
    /// NATS JetStream; as many routers as there are.
    Nats,
    /// Kafka; as many routers as there are.
    Kafka,
}

/// First and longest pause between two tries to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

#[derive(Clone)]
enum Connected {
    Nats(NatsEngine),
    #[cfg(feature = "kafka")]
    Kafka(KafkaEngine),
}

/// An engine that may not be connected yet. Clones share it.
#[derive(Clone, Default)]
pub struct Engine(Arc<OnceLock<Connected>>);

impl Engine {
    /// Connects, and goes on trying; says what is wrong meanwhile.
    pub async fn connect(&self, config: &Config, health: &Health) {
        let mut pause = BACKOFF.0;
        loop {
            match Connected::new(config).await {
                Ok(connected) => {
                    let _ = self.0.set(connected);
                    return;
                }
                Err(QueueError(reason)) => {
                    let sentence = format!("waiting for the queue's servers: {reason}");
                    health.set(Part::Queue, Some(sentence));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(BACKOFF.1);
        }
    }

    /// Claims partitions until it is told to stop; to be called when it is connected.
    ///
    /// # Errors
    /// A sentence: this router cannot take part.
    pub async fn claim(&self, config: &Config, address: String, ends: Ends) -> Result<(), String> {
        let router_id = config.router_id.clone();
        match self.0.get() {
            None => Err("the queue's servers are not connected".to_owned()),
            Some(Connected::Nats(engine)) => {
                let lease = config.nats.claim_lease;
                let claimant = claims::nats::Claimant { router_id, address, lease };
                let ran = claims::nats::run(engine.clone(), claimant, ends).await;
                ran.map_err(|error| error.0)
            }
            #[cfg(feature = "kafka")]
            Some(Connected::Kafka(_)) => {
                let (config, cluster) = (config.kafka.clone(), config.cluster.clone());
                let name_patience = claims::kafka::NAME_PATIENCE;
                let params = claims::kafka::Params { config, cluster, router_id, name_patience };
                tokio::task::spawn_blocking(move || claims::kafka::run(&params, ends))
                    .await
                    .map_err(|error| error.to_string())?
            }
        }
    }

    /// Opens one of its logs, when it is connected.
    #[must_use]
    pub fn opener(&self, log: Log) -> Box<dyn Opener> {
        Box::new(LateOpener { engine: self.clone(), log })
    }
}

impl Connected {
    async fn new(config: &Config) -> Result<Self, QueueError> {
        let (cluster, partitions) = (config.cluster.clone(), config.partitions);
        match config.engine {
            EngineKind::Nats => {
                let engine = NatsEngine::connect(&config.nats, &cluster, partitions).await?;
                Ok(Self::Nats(engine))
            }
            #[cfg(feature = "kafka")]
            EngineKind::Kafka => {
                let config = config.kafka.clone();
                let connect = move || KafkaEngine::connect(&config, &cluster, partitions);
                let connected = tokio::task::spawn_blocking(connect).await;
                connected.map_err(|error| QueueError(error.to_string()))?.map(Self::Kafka)
            }
            #[cfg(not(feature = "kafka"))]
            EngineKind::Kafka => Err(QueueError(
                "this build has no engine kafka: build it with the feature".to_owned(),
            )),
            EngineKind::Embedded => Err(QueueError("the engine embedded is not shared".to_owned())),
        }
    }
}

struct LateOpener {
    engine: Engine,
    log: Log,
}

impl Opener for LateOpener {
    fn open(&mut self) -> Result<Box<dyn Queue>, QueueError> {
        match self.engine.0.get() {
            None => Err(QueueError("the queue's servers are not connected yet".to_owned())),
            Some(Connected::Nats(engine)) => engine.opener(self.log).open(),
            #[cfg(feature = "kafka")]
            Some(Connected::Kafka(engine)) => engine.opener(self.log).open(),
        }
    }
}
