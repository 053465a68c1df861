//! Operating an edge. `monitoring/`: what Prometheus is to be told of. `tuning/`: what it says about a machine, what it changes, and that what it recommends works. The admin
//! address, reloads, logs, and what systemd is told.
#![expect(clippy::disallowed_methods, reason = "a test of processes waits by the clock")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod apply;
mod balancers;
mod check;
mod hawser;
mod monitoring;
mod notrack;
mod operate;
mod queues;
mod units;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

/// A file of the folder `tuning`.
fn tuning(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tuning").join(file)
}

/// Writes a line into a file of a folder that stands for a machine.
fn set(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("{text}\n")).unwrap();
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
