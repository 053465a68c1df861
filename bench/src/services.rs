//! Servers of the engines that routers share, started and stopped by the project's own scripts in `services/`.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, ValueEnum};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::failure::Failure;

/// What keeps the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// The router's own disk.
    #[default]
    Embedded,
    /// NATS JetStream, synced always.
    Nats,
    /// Kafka, acks=all.
    Kafka,
}

impl Engine {
    fn script(self) -> Option<&'static str> {
        match self {
            Self::Embedded => None,
            Self::Nats => Some("nats"),
            Self::Kafka => Some("kafka"),
        }
    }
}

/// Which engine keeps the messages, and how many there are of what.
#[derive(Clone, Copy, Debug, Args, Serialize)]
pub(crate) struct EngineFlags {
    /// What keeps the messages; nats and kafka start servers of their own
    #[arg(long, value_enum, default_value_t)]
    pub engine: Engine,
    /// Servers of the engine: 1 or 3
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = one_or_three)]
    pub engine_nodes: u32,
    /// Routers; absent: three, or one with the engine embedded, which has no more
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routers: Option<u32>,
}

impl EngineFlags {
    /// How many routers there are.
    ///
    /// # Errors
    /// More than the engine has.
    pub(crate) fn routers(&self) -> Result<usize, Failure> {
        let shared = self.engine != Engine::Embedded;
        match self.routers {
            Some(2..) if !shared => {
                Err(Failure::Usage("--routers: the engine embedded has one".to_owned()))
            }
            Some(routers) => Ok(routers as usize),
            None => Ok(if shared { 3 } else { 1 }),
        }
    }
}

/// What the scripts start.
fn one_or_three(text: &str) -> Result<u32, &'static str> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3"),
    }
}

/// A cluster of real servers. Ends with its owner.
#[derive(Debug)]
pub(crate) struct Service {
    engine: Engine,
    nodes: usize,
    script: PathBuf,
    folder: PathBuf,
}

impl Service {
    /// Starts `nodes` servers whose data lies in `folder`, and waits until they serve; nothing for the engine embedded.
    ///
    /// # Errors
    /// What the script says.
    pub(crate) fn start(
        engine: Engine,
        nodes: usize,
        folder: &Path,
    ) -> Result<Option<Self>, Failure> {
        let Some(name) = engine.script() else { return Ok(None) };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../services").join(name);
        let service = Self { engine, nodes, script, folder: folder.join(name) };
        service.run("start", &["--nodes", &nodes.to_string()])?;
        Ok(Some(service))
    }

    /// How many servers there are.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes
    }

    /// The flags with which a router finds it and keeps as many copies as there are servers.
    ///
    /// # Errors
    /// When the script did not say where the servers are.
    pub(crate) fn router_flags(&self) -> Result<Vec<String>, Failure> {
        let addresses = std::fs::read_to_string(self.folder.join("address"))?;
        let (server, scheme, replicas) = match self.engine {
            Engine::Nats => ("--nats-url", "nats://", "--nats-replicas"),
            Engine::Kafka => ("--kafka-brokers", "", "--kafka-replicas"),
            Engine::Embedded => return Ok(Vec::new()),
        };
        let engine = self.engine.script().unwrap_or_default();
        let mut flags = vec!["--engine".to_owned(), engine.to_owned()];
        for address in addresses.trim().split(',') {
            flags.extend([server.to_owned(), format!("{scheme}{address}")]);
        }
        flags.extend([replicas.to_owned(), self.nodes.to_string()]);
        Ok(flags)
    }

    /// Ends one with SIGKILL, counted from 1.
    pub(crate) fn kill(&self, node: usize) -> Result<(), Failure> {
        self.run("kill-node", &[&node.to_string()])
    }

    /// Starts one that was killed, with what it had, and waits until it serves.
    pub(crate) fn start_node(&self, node: usize) -> Result<(), Failure> {
        self.run("start-node", &[&node.to_string()])
    }

    /// Stops one where it is, or lets it go on.
    pub(crate) fn set_stopped(&self, node: usize, stopped: bool) {
        let process = self.pid(node).and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let signal = if stopped { Signal::STOP } else { Signal::CONT };
        // One that is gone was killed by the same hand.
        process.map(|process| kill_process(process, signal));
    }

    fn pid(&self, node: usize) -> Option<u32> {
        let pid = std::fs::read_to_string(self.folder.join(format!("{node}/pid"))).ok()?;
        pid.trim().parse().ok()
    }

    fn run(&self, verb: &str, options: &[&str]) -> Result<(), Failure> {
        let mut command = Command::new(&self.script);
        // Ctrl-C on the terminal is for the bench alone, as with its other servers.
        command.arg(verb).arg(&self.folder).args(options).process_group(0);
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Failure::Broken(format!("{} {verb}: {said}", self.script.display())))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.run("stop", &[]);
    }
}
