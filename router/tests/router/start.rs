//! What keeps a router from starting: exit status 64 and one sentence that names the knob.

use std::net::TcpListener;

use tempfile::TempDir;

use crate::harness::Router;

fn refused(folder: &TempDir, arguments: &[&str], names: &str) {
    let (status, said) = Router::run(folder.path(), arguments);
    assert_eq!(status.code(), Some(64), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(last.starts_with("hawser-router: ") && last.contains(names), "{said}");
}

#[test]
fn a_wrong_knob_is_named() {
    let folder = TempDir::new().unwrap();
    refused(&folder, &["--no-such-knob"], "--no-such-knob");
    refused(&folder, &["--lease", "15"], "--lease");
    refused(&folder, &["--partitions", "many"], "--partitions");
    refused(&folder, &["--log", "a=b=c"], "--log");
    let file = folder.path().join("router.toml");
    std::fs::write(&file, "no_such_key = 1\n").unwrap();
    refused(&folder, &["--config", file.to_str().unwrap()], "no_such_key");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&folder, &["--listen", &address], "--listen");
    refused(&folder, &["--admin", &address], "--admin");
}

#[test]
fn a_data_folder_that_cannot_be_used_is_named() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    refused(&folder, &["--data-dir", file.to_str().unwrap()], "--data-dir");
}

#[test]
fn a_data_folder_has_one_router_and_one_number_of_partitions() {
    let folder = TempDir::new().unwrap();
    let mut router = Router::start(folder.path(), &["--partitions", "8"]);
    let other = ["--listen", "127.0.0.1:0", "--partitions", "8"];
    refused_beside(&folder, &other, "another router uses it");
    assert!(router.terminate().success());
    refused(&folder, &["--partitions", "16"], "--partitions");
    Router::start(folder.path(), &["--partitions", "8"]);
}

/// Like [`refused`], for a second router beside one that serves on the socket.
fn refused_beside(folder: &TempDir, arguments: &[&str], says: &str) {
    let elsewhere = TempDir::new().unwrap();
    let data = folder.path().join("data");
    let arguments = [arguments, &["--data-dir", data.to_str().unwrap()]].concat();
    refused(&elsewhere, &arguments, says);
}

#[test]
fn a_socket_in_use_is_named_and_a_left_over_one_is_taken() {
    let folder = TempDir::new().unwrap();
    let mut router = Router::start(folder.path(), &[]);
    refused(&folder, &[], "--listen");
    router.kill();
    Router::start(folder.path(), &[]);
}

#[test]
fn a_router_without_the_server_api_lives_through_sighup() {
    let folder = TempDir::new().unwrap();
    let mut router = Router::start(folder.path(), &[]);
    router.signal(rustix::process::Signal::HUP);
    // Handled in order: had the first one ended it, this would not be an orderly end.
    assert!(router.terminate().success());
}
