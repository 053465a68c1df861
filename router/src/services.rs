//! Real servers for tests, started and stopped by the scripts in `services/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
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

    /// Where the first NATS server speaks about itself: `host:port`.
    pub(crate) fn monitor(&self) -> String {
        let port = std::fs::read_to_string(self.folder.path().join("1/monitor-port")).unwrap();
        format!("127.0.0.1:{}", port.trim())
    }

    /// Kills one server of a cluster, counted from 1.
    pub(crate) fn kill_node(&self, node: usize) {
        self.run("kill-node", &[&node.to_string()]);
    }

    /// Starts a server that was killed, where it was, with what it had; waits until it serves.
    pub(crate) fn start_node(&self, node: usize) {
        self.run("start-node", &[&node.to_string()]);
    }

    /// Number of the process of one server, counted from 1.
    pub(crate) fn process(&self, node: usize) -> Pid {
        let pid = std::fs::read_to_string(self.folder.path().join(format!("{node}/pid"))).unwrap();
        Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
    }

    /// Stops a server where it is (SIGSTOP): it takes connections, and answers nothing.
    pub(crate) fn pause_node(&self, node: usize) {
        let process = self.process(node);
        kill_process(process, Signal::STOP).unwrap();
        let threads = format!("/proc/{}/task", process.as_raw_nonzero());
        let stands = |thread: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap();
            stat.rsplit(") ").next().unwrap().starts_with('T')
        };
        // A signal is on its way for a moment.
        while !std::fs::read_dir(&threads).unwrap().all(|thread| stands(thread.unwrap())) {
            std::thread::yield_now();
        }
    }

    /// Lets a server go on that was paused.
    pub(crate) fn resume_node(&self, node: usize) {
        kill_process(self.process(node), Signal::CONT).unwrap();
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

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_killed_server_is_gone_and_serves_again_once_it_is_started() {
        let service = Service::start("nats", &[]);
        TcpStream::connect(service.address()).unwrap();
        service.kill_node(1);
        assert!(TcpStream::connect(service.address()).is_err());
        service.start_node(1);
        TcpStream::connect(service.address()).unwrap();
    }
}
