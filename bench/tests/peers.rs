//! The runner of the comparison with other servers, tested without building any of them.

use std::process::Command;

#[test]
fn the_tests_of_the_peers_runner_pass() {
    let output = Command::new("python3")
        .args(["-m", "unittest", "runner.test_runner"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/peers"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("Ran 0 tests"), "{said}");
}
