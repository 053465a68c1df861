//! Real servers for tests, started and stopped by the scripts in `services/`.

use std::path::{Path, PathBuf};
use std::process::Command;

#[cfg(feature = "kafka")]
use rustix::process::Pid;
use tempfile::TempDir;

/// One server, or a cluster of them, on free ports and in a temporary folder. Ends with its owner.
pub(crate) struct Service {
    script: PathBuf,
    folder: TempDir,
}

impl Service {
    /// Starts `services/NAME` with these options of its `start`, and waits until it serves.
    pub(crate) fn start(name: &str, options: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../services").join(name);
        let service = Self { script, folder: TempDir::new().unwrap() };
        service.run("start", options);
        service
    }

    /// Where it serves: `host:port`, comma between those of a cluster.
    pub(crate) fn address(&self) -> String {
        let address = std::fs::read_to_string(self.folder.path().join("address")).unwrap();
        address.trim().to_owned()
    }

    /// Number of the process of one server, counted from 1.
    #[cfg(feature = "kafka")]
    pub(crate) fn process(&self, node: usize) -> Pid {
        let pid = std::fs::read_to_string(self.folder.path().join(format!("{node}/pid"))).unwrap();
        Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
    }

    /// Kills one server of a cluster, counted from 1.
    pub(crate) fn kill_node(&self, node: usize) {
        self.run("kill-node", &[&node.to_string()]);
    }

    /// Starts a server that was killed, where it was, with what it had; waits until it serves.
    pub(crate) fn start_node(&self, node: usize) {
        self.run("start-node", &[&node.to_string()]);
    }

    fn run(&self, verb: &str, options: &[&str]) {
        let mut command = Command::new(&self.script);
        let output = command.arg(verb).arg(self.folder.path()).args(options).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {verb}: {said}", self.script.display());
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = Command::new(&self.script).arg("stop").arg(self.folder.path()).output();
    }
}
