//! The systemd units: what systemd says about them, and that edge and router work as confined as they ask for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::hawser::{Client, Edge, Router, binary, free_address};
use crate::{stdout, tuning};

/// What `systemd-analyze security` counts, 0 to 10; it calls everything under 2 OK. What is left is the network, and
/// that shards are pinned.
const EXPOSURE_MAX: &str = "15";

/// The unit with the binary of this build, which has to be there to be found good.
fn unit(name: &str, folder: &Path) -> PathBuf {
    let text = fs::read_to_string(tuning(&format!("{name}.service"))).unwrap();
    let installed = format!("/usr/local/bin/{name}");
    assert!(text.contains(&installed), "{text}");
    let path = folder.join(format!("{name}.service"));
    fs::write(&path, text.replace(&installed, binary(name).to_str().unwrap())).unwrap();
    path
}

fn systemd_analyze(flags: &[&str], units: &[PathBuf]) -> Output {
    let mut command = Command::new("systemd-analyze");
    command
        .args(flags)
        .args(units)
        .output()
        .expect("systemd-analyze is missing: apt-get install systemd, as .ci/run does")
}

#[test]
fn systemd_finds_no_fault_in_the_units_and_little_exposure() {
    let folder = tempfile::tempdir().unwrap();
    let units = ["hawser-edge", "hawser-router"].map(|name| unit(name, folder.path()));
    let output = systemd_analyze(&["verify", "--man=no"], &units);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    for unit in units {
        let flags = ["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_MAX];
        let output = systemd_analyze(&flags, &[unit]);
        assert!(output.status.success(), "{}", stdout(&output));
    }
}

#[test]
fn edge_and_router_serve_under_the_units_filters_and_limits() {
    let folder = tempfile::tempdir().unwrap();
    let router = Router::run(confined("hawser-router", folder.path()), folder.path());
    let edge =
        Edge::run(confined("hawser-edge", folder.path()), "edge", router.link, folder.path());
    edge.wait_healthy();
    let mut bob = Client::open(edge.listen, "bob").unwrap();
    let mut alice = Client::open(edge.listen, "alice").unwrap();
    alice.send("bob", "1", "aGVsbG8=").unwrap();
    assert_eq!(bob.hear("deliver").unwrap()["payload"], "aGVsbG8=");
}

#[test]
fn without_the_system_calls_of_io_uring_the_edge_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let unit = unit("hawser-edge", folder.path());
    let text = fs::read_to_string(&unit).unwrap();
    fs::write(&unit, text.replace("Filter=~@privileged", "Filter=~@privileged @aio")).unwrap();
    let mut command = confined_by(&unit, "hawser-edge");
    command.args(["--dev-auth", "--listen", "127.0.0.1:0", "--admin"]);
    let output = command.arg(free_address().to_string()).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{told}");
    assert!(told.contains("io_uring: refused by the kernel"), "{told}");
}

fn confined(name: &str, folder: &Path) -> Command {
    confined_by(&unit(name, folder), name)
}

/// Debian's Python, which is the one that its python3-seccomp is for.
fn confined_by(unit: &Path, name: &str) -> Command {
    let python = || Command::new("/usr/bin/python3");
    let found = python().args(["-c", "import seccomp"]).output().map(|output| output.status);
    assert!(
        found.is_ok_and(|status| status.success()),
        "seccomp for /usr/bin/python3 is missing: apt-get install python3-seccomp, as .ci/run does"
    );
    let mut command = python();
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tuning/confined.py"));
    command.arg(unit).arg(binary(name));
    command
}
