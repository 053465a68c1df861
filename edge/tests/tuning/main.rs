//! `tuning/`: what it says about a machine, what it changes, and that what it recommends works.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod apply;
mod check;

use std::path::{Path, PathBuf};
use std::process::Output;

/// A file of the folder `tuning`.
fn tuning(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tuning").join(file)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
