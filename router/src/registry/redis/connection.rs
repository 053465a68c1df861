//! A connection to the servers: a Redis Cluster, or one server without.

use redis::aio::MultiplexedConnection;
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, RedisError, RedisResult, Script,
    ServerErrorKind, TlsCertificates, Value,
};

use crate::config::redis::RedisConfig;
use crate::limits;

/// A command that fails is tried so many times more: slots move, connections end, masters change.
const RETRIES: u32 = 8;
/// First and longest pause between two tries, in milliseconds.
const RETRY_PAUSE_MS: (u64, u64) = (10, 400);

/// Clones share it. What is asked at the same time travels together.
#[derive(Clone)]
pub enum Connection {
    /// To every master; follows the slots where they go.
    Cluster(ClusterConnection),
    /// To the one server that there is. It is of no use any more once it has ended.
    Single(MultiplexedConnection),
}

impl Connection {
    /// Connects to one of the servers, and finds out whether they are a cluster.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub async fn open(config: &RedisConfig) -> Result<Self, String> {
        let servers = servers(config)?;
        let certificates = certificates(config)?;
        let mut problem = "no --redis-url".to_owned();
        for server in &servers {
            let shown = server.addr().to_string();
            match open_one(server.clone(), certificates.as_ref()).await {
                Err(error) => problem = format!("{shown}: {error}"),
                Ok((single, false)) => return Ok(Self::Single(single)),
                Ok((_, true)) => {
                    let cluster = cluster(&servers, certificates)
                        .map_err(|error| format!("--redis-url: {error}"))?;
                    let connection = cluster.get_async_connection().await;
                    return connection.map(Self::Cluster).map_err(|error| error.to_string());
                }
            }
        }
        Err(problem)
    }

    /// Asks, and gives the answer.
    ///
    /// # Errors
    /// There was none in time, or it is an error.
    pub async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Cluster(connection) => command.query_async(&mut connection.clone()).await,
            Self::Single(connection) => command.query_async(&mut connection.clone()).await,
        }
    }

    /// Runs a script on one key. The server is given its text when it does not know it.
    ///
    /// # Errors
    /// As [`Connection::ask`].
    pub async fn run(&self, script: &Lua, key: &str, arguments: &[&[u8]]) -> RedisResult<Value> {
        let command = |verb: &str, script: &str| {
            let mut command = redis::cmd(verb);
            command.arg(script).arg(1).arg(key).arg(arguments);
            command
        };
        match self.ask(&command("EVALSHA", script.hash.get_hash())).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.ask(&command("EVAL", script.text)).await
            }
            answer => answer,
        }
    }
}

/// A script, and what the servers call it.
pub struct Lua {
    text: &'static str,
    hash: Script,
}

impl Lua {
    /// Of this text.
    #[must_use]
    pub fn new(text: &'static str) -> Self {
        Self { text, hash: Script::new(text) }
    }
}

/// A connection to one server, and whether that is one of a cluster.
async fn open_one(
    server: ConnectionInfo,
    certificates: Option<&TlsCertificates>,
) -> Result<(MultiplexedConnection, bool), RedisError> {
    let client = match certificates {
        Some(certificates) => Client::build_with_tls(server, certificates.clone())?,
        None => Client::open(server)?,
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(limits::VIEW_TIMEOUT))
        .set_response_timeout(Some(limits::VIEW_TIMEOUT));
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let info: String = redis::cmd("INFO").arg("cluster").query_async(&mut connection).await?;
    Ok((connection, info.contains("cluster_enabled:1")))
}

fn cluster(
    servers: &[ConnectionInfo],
    certificates: Option<TlsCertificates>,
) -> RedisResult<ClusterClient> {
    let builder = ClusterClientBuilder::new(servers.iter().cloned())
        .connection_timeout(limits::VIEW_TIMEOUT)
        .response_timeout(limits::VIEW_TIMEOUT)
        .overall_response_timeout(Some(limits::VIEW_COMMAND_TIMEOUT))
        .retries(RETRIES)
        .min_retry_wait(RETRY_PAUSE_MS.0)
        .max_retry_wait(RETRY_PAUSE_MS.1);
    match certificates {
        Some(certificates) => builder.certs(certificates).build(),
        None => builder.build(),
    }
}

fn servers(config: &RedisConfig) -> Result<Vec<ConnectionInfo>, String> {
    let password = match &config.redis_password_file {
        None => None,
        Some(file) => {
            let read = std::fs::read_to_string(file);
            let text = read
                .map_err(|error| format!("--redis-password-file: {}: {error}", file.display()))?;
            Some(text.trim_end_matches(['\r', '\n']).to_owned())
        }
    };
    let servers = config.redis_url.iter().map(|url| match &password {
        None => url.0.clone(),
        Some(password) => {
            let settings = url.0.redis_settings().clone().set_password(password);
            url.0.clone().set_redis_settings(settings)
        }
    });
    Ok(servers.collect())
}

fn certificates(config: &RedisConfig) -> Result<Option<TlsCertificates>, String> {
    let Some(file) = &config.redis_ca else { return Ok(None) };
    let pem =
        std::fs::read(file).map_err(|error| format!("--redis-ca: {}: {error}", file.display()))?;
    Ok(Some(TlsCertificates { client_tls: None, root_cert: Some(pem) }))
}
