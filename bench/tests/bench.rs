//! The bench against the real edge and router: scenarios from the outside, and the commands for hands.
//!
//! Needs the binaries of this build beside `hawser-bench`: `make test` builds the workspace first.
#![expect(clippy::disallowed_methods, reason = "waits for real processes, with deadlines")]
#![expect(clippy::unwrap_used, reason = "a test that cannot start its processes has failed")]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest time that anything here may take.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

#[test]
fn a_short_chat_loses_nothing() {
    let report = report(&["chat", "--pairs", "3", "--seconds", "1", "--warmup", "0"]);
    assert_sound(&report);
    assert_eq!(report["connections"], 6);
    assert!(report["messages_per_second"].as_f64() > Some(0.0), "{report}");
    assert!(report["latency_ms"]["p99"].as_f64() > Some(0.0), "{report}");
    assert!(report["cpu_us_per_message"].as_f64() > Some(0.0), "{report}");
    assert_eq!(report["processes"].as_array().map(Vec::len), Some(2), "{report}");
}

#[test]
fn a_chat_at_a_rate_keeps_the_rate() {
    let args = ["chat", "--pairs", "4", "--rate", "200", "--seconds", "2", "--warmup", "0"];
    let report = report(&args);
    assert_sound(&report);
    let sent = report["sent"].as_u64().unwrap_or_default();
    assert!((200..=400).contains(&sent), "{report}");
}

#[test]
fn a_short_crash_run_loses_nothing() {
    let report = report(&["crash", "--kills", "6", "--pairs", "3", "--seed", "7"]);
    assert_sound(&report);
    assert_eq!((&report["kills"], &report["seed"]), (&6.into(), &7.into()));
}

#[test]
fn a_crash_run_can_be_kept_to_one_process() {
    let report = report(&["crash", "--kills", "2", "--pairs", "2", "--faults", "router-kill"]);
    assert_sound(&report);
    assert_eq!(report["killed"], serde_json::json!({ "router-kill": 2 }));
    assert_eq!(report["traffic"]["reconnects"], 0, "a router's death ends no connection");
}

#[test]
fn a_short_crash_run_with_an_engine_that_routers_share_loses_nothing() {
    let nodes = ["crash", "--engine", "nats", "--engine-nodes", "1", "--routers", "2"];
    let faults = ["--faults", "edge-kill,router-kill,link-cut,disk-lost,clock-step"];
    let pairs = ["--pairs", "5", "--rate", "50", "--kills", "5", "--seed", "11"];
    let report = report(&[&nodes[..], &faults, &pairs].concat());
    assert_sound(&report);
    assert_eq!(report["kills"], 5, "{report}");
    let killed = report["killed"].as_object().unwrap();
    let waited = report["waited_seconds"].as_object().unwrap();
    assert!(killed.keys().eq(waited.keys()), "{report}");
    for (kind, waited) in waited {
        assert_eq!(waited["faults"], killed[kind], "{report}");
        let [p50, max] = ["p50", "max"].map(|at| waited["acknowledgement"][at].as_f64());
        assert!(p50 <= max && max > Some(0.0), "{kind}: {report}");
    }
}

#[test]
fn a_router_whose_disk_fills_up_loses_nothing() {
    let faults = ["--faults", "disk-full", "--kills", "2", "--pairs", "5", "--rate", "50"];
    let output = bench(&["crash", "--json"]).args(faults).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() == Some(64) && said.contains("a tmpfs cannot be mounted") {
        return;
    }
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_sound(&report);
    assert_eq!(report["killed"], serde_json::json!({ "disk-full": 2 }), "{report}");
}

#[test]
fn the_users_of_a_killed_router_come_to_another_one() {
    let engine = ["takeover", "--engine", "nats", "--engine-nodes", "1", "--routers", "2"];
    let report = report(&[&engine[..], &["--users", "500", "--pairs", "3"]].concat());
    assert_sound(&report);
    let takeover = &report["takeover"];
    let there = takeover["registered_there"].as_u64().unwrap();
    assert!((1..506).contains(&there), "{report}");
    let [routed, registered] =
        ["routed", "registered"].map(|what| takeover[format!("{what}_after_seconds")].as_f64());
    assert!(routed > Some(0.0) && routed <= registered, "{report}");
}

#[test]
fn a_store_that_is_lost_under_a_running_chat_is_found() {
    let mut hawser = Hawser::start();
    let chat = hawser.spawn(&["chat", "--pairs", "2", "--seconds", "3", "--settle", "3", "--json"]);
    wait_for("messages in the store", || hawser.router_counts("router_sends_accepted_total") > 100);
    hawser.router.take();
    fs::remove_dir_all(hawser.data()).unwrap();
    hawser.start_router();
    let output = finish(chat);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = |finding: &str| report[finding].as_u64().unwrap_or_default();
    assert!(found("lost") + found("holes") + found("gaps") + found("foreign") > 0, "{report}");
}

#[test]
fn echo_measures_an_edge_of_its_own() {
    let args =
        ["echo", "--connections", "8", "--in-flight", "2", "--seconds", "1", "--warmup", "0"];
    let report = report(&args);
    assert_eq!((&report["connections"], &report["errors"]), (&8.into(), &0.into()), "{report}");
    assert!(report["messages"].as_u64() > Some(0), "{report}");
    assert!(report["cpu_us_per_message"].as_f64() > Some(0.0), "{report}");
}

#[test]
fn echo_goes_on_beside_idle_connections() {
    let args = ["echo", "--connections", "4", "--idle", "300", "--seconds", "1", "--warmup", "0"];
    let report = report(&args);
    assert_eq!((&report["idle_connections"], &report["errors"]), (&300.into(), &0.into()));
    assert!(report["messages"].as_u64() > Some(0), "{report}");
}

#[test]
fn idle_tells_memory_and_cpu_of_full_sessions_that_ping() {
    let args = ["idle", "--connections", "500", "--hold", "3s", "--ping-interval", "1s"];
    let report = report(&args);
    assert_eq!((&report["connections"], &report["errors"]), (&500.into(), &0.into()), "{report}");
    for field in [
        "edge_user_bytes_per_connection",
        "router_user_bytes_per_connection",
        "kernel_bytes_per_connection",
        "connects_per_second",
        "idle_cpu_us_per_connection_second",
        "shard_fullest_over_emptiest",
    ] {
        assert!(report[field].is_f64(), "{field}: {report}");
    }
    // Two to four rounds of pings, whenever the hold began.
    let pongs = report["pongs"].as_u64().unwrap_or_default();
    assert!((900..=2_100).contains(&pongs), "{report}");
}

#[test]
fn idle_holds_bare_web_sockets_of_any_server() {
    let hawser = Hawser::start_with(&[["--echo-path", "/echo"]]);
    let target = format!("ws://{}/echo", hawser.edge_address);
    let pid = hawser.edge.as_ref().unwrap().child.id().to_string();
    let args = ["idle", "--session", "ws", "--connections", "300", "--ping-interval", "1s"];
    let report =
        report(&[&args[..], &["--hold", "2s", "--target", &target, "--pid", &pid]].concat());
    assert_eq!((&report["connections"], &report["errors"]), (&300.into(), &0.into()), "{report}");
    assert!(report["pongs"].as_u64() >= Some(300), "{report}");
    assert!(report["edge_user_bytes_per_connection"].is_f64(), "{report}");
}

#[test]
fn after_the_edge_was_killed_all_are_registered_again() {
    let report = report(&["storm", "--connections", "1000", "--shards", "2"]);
    assert_recovered(&report, 1000);
}

#[test]
fn clients_that_all_left_at_once_come_back() {
    let report = report(&["storm", "--connections", "1000", "--cut", "clients"]);
    assert_recovered(&report, 1000);
}

fn assert_recovered(report: &Value, connections: u64) {
    assert_eq!(report["connections"], connections, "{report}");
    assert_eq!(report["errors"], 0, "{report}");
    let [p50, max] = ["p50", "max"].map(|at| report["recovered_seconds"][at].as_f64().unwrap());
    // A client waits for a tenth of a second at least, and not all for equally long.
    assert!(0.0 < p50 && p50 < max && max < 100.0, "{report}");
    let curve = report["recovery"]["curve"].as_array().unwrap();
    let backs: Vec<_> = curve.iter().map(|point| point[1].as_u64().unwrap()).collect();
    assert!(backs.is_sorted() && backs.last() == Some(&connections), "{report}");
}

#[test]
fn an_edge_that_is_told_to_leave_lets_its_clients_go_evenly_over_its_window() {
    let report = report(&["drain", "--connections", "1000", "--shards", "2", "--window", "4s"]);
    assert_eq!((&report["connections"], &report["errors"]), (&1000.into(), &0.into()), "{report}");
    assert_eq!((&report["gone"], &report["ended_well"]), (&1000.into(), &true.into()), "{report}");
    let figure = |name: &str| report[name].as_f64().unwrap_or(f64::INFINITY);
    assert!(figure("gone_within_seconds") <= 4.5, "{report}");
    assert!(figure("gone_per_second_max_over_mean") <= 2.0, "{report}");
    assert!(figure("ended_after_seconds") <= 8.0, "{report}");
    assert!(report["recovered_seconds"]["p99"].as_f64() < Some(10.0), "{report}");
    assert_eq!(report["failed_attempts"], 0, "the other edge takes all: {report}");
}

#[test]
fn nothing_is_lost_while_edges_leave_in_turn() {
    let pairs = ["chat", "--pairs", "10", "--rate", "200", "--seconds", "6", "--warmup", "0"];
    let edges = ["--edges", "2", "--drain-every", "1s", "--drain-window", "2s"];
    let report = report(&[&pairs[..], &edges].concat());
    assert_sound(&report);
    assert!(report["drains"].as_u64() >= Some(2), "{report}");
    // Half of the clients are with the first edge when it leaves, all with the second when that one does.
    assert!(report["traffic"]["sent_away"].as_u64() >= Some(20), "{report}");
    assert_eq!(report["traffic"]["reconnects"], report["traffic"]["sent_away"], "{report}");
}

#[test]
fn nothing_is_lost_over_tls_while_edges_leave_in_turn() {
    let pairs = ["chat", "--pairs", "10", "--rate", "200", "--seconds", "5", "--warmup", "0"];
    let edges = ["--edges", "2", "--drain-every", "1s", "--drain-window", "1s"];
    let report = report(&[&pairs[..], &edges, &["--tls", "--tls-resume", "100"]].concat());
    assert_sound(&report);
    assert!(report["drains"].as_u64() >= Some(2), "{report}");
    assert!(report["traffic"]["sent_away"].as_u64() >= Some(20), "{report}");
}

#[test]
fn a_crowd_speaks_tls_and_comes_back_with_tickets() {
    let args = ["storm", "--connections", "600", "--connecting-max", "64", "--cut", "clients"];
    let report = report(&[&args[..], &["--tls", "--tls-resume", "100"]].concat());
    assert_recovered(&report, 600);
    assert!(report["resumed_share"].as_f64() > Some(0.9), "{report}");
    assert!(report["handshakes_per_cpu_second"].as_f64() > Some(0.0), "{report}");
    assert!(report["tls"].as_str().is_some_and(|tls| tls.starts_with("TLSv1_3 ")), "{report}");
}

#[test]
fn an_edge_lets_clients_go_to_another_one_over_tls() {
    let args = ["drain", "--connections", "500", "--shards", "2", "--window", "2s", "--tls"];
    let report = report(&args);
    assert_eq!((&report["connections"], &report["errors"]), (&500.into(), &0.into()), "{report}");
    assert_eq!((&report["gone"], &report["ended_well"]), (&500.into(), &true.into()), "{report}");
    assert_eq!(report["resumed_share"], 0.0, "{report}");
}

#[test]
fn a_server_with_tls_is_measured_by_its_url() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let [cert, private] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
    fs::write(&cert, key.cert.pem()).unwrap();
    fs::write(&private, key.signing_key.serialize_pem()).unwrap();
    let [cert, private] = [cert, private].map(|path| path.to_str().unwrap().to_owned());
    let hawser = Hawser::start_with(&[
        ["--echo-path", "/echo"],
        ["--tls-cert", &cert],
        ["--tls-key", &private],
    ]);
    let target = format!("wss://{}/echo", hawser.edge_address);
    let echo = ["echo", "--connections", "4", "--seconds", "1", "--target", &target];
    let bulk = ["--payload-bytes", "65536", "--in-flight", "2"];
    for more in [&["--tls-ca", &cert][..], &bulk] {
        let report = report(&[&echo[..], more].concat());
        assert_eq!((&report["connections"], &report["errors"]), (&4.into(), &0.into()), "{report}");
        assert!(report["messages"].as_u64() > Some(100), "{report}");
    }
    let output = bench(&["listen", "--as", "bob", "--target", &target]).output().unwrap();
    assert_eq!(output.status.code(), Some(64), "a token needs a server to trust: {output:?}");
    let plain = format!("ws://{}/echo", hawser.edge_address);
    let output = bench(&["echo", "--target", &plain]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn bad_handshakes_are_thrown_at_an_edge_while_others_talk() {
    let args = ["flood", "--pairs", "5", "--rate", "100", "--handshakes", "500", "--rounds", "1"];
    for tls in [&[][..], &["--tls"]] {
        let report = report(&[&args[..], &["--seconds", "2"], tls].concat());
        assert_sound(&report);
        let misfits = &report["misfits"];
        let count = |what: &str| misfits[what].as_u64().unwrap();
        assert!((900..=1_800).contains(&count("begun")), "{report}");
        // All are answered but those who are half through.
        assert!(count("answered") >= count("begun") * 3 / 4, "{report}");
        assert_eq!((count("refused"), count("skipped")), (0, 0), "{report}");
        assert!(report["p99_ratio"].is_f64(), "{report}");
        assert_eq!(report["windows"].as_array().map(Vec::len), Some(2), "{report}");
    }
}

#[test]
fn coming_and_going_is_counted_and_its_memory_compared() {
    let report = report(&["soak", "--connections", "300", "--churn", "200", "--seconds", "3"]);
    assert_eq!((&report["connections"], &report["errors"]), (&300.into(), &0.into()), "{report}");
    let churn = &report["churn"];
    let left = churn["left"].as_u64().unwrap();
    assert!((400..=600).contains(&left) && churn["joined"] == left, "{report}");
    assert!(churn["edge_end_over_start"].as_f64() > Some(0.5), "{report}");
}

#[test]
fn clients_that_stop_reading_lose_nothing_and_hurt_nobody() {
    let args = ["slow", "--pairs", "10", "--rate", "200", "--seconds", "2", "--deaf-percent", "20"];
    let report = report(&args);
    assert_sound(&report);
    assert_eq!(report["slow"]["deaf"], 2, "{report}");
    assert!(report["latency_ms"]["p99"].as_f64() > Some(0.0), "{report}");
    assert!(report["slow"]["latency_ms_before"]["p99"].as_f64() > Some(0.0), "{report}");
}

/// The gate: what a plain idle connection may cost the edge. Debug binaries have the same structures.
#[test]
fn an_idle_connection_stays_within_its_budget() {
    const EDGE_BYTES_MAX: f64 = 256.0;
    let least = edge_bytes_each(2_000, 10_000, &[], EDGE_BYTES_MAX);
    assert!(least <= EDGE_BYTES_MAX, "{least:.0} B a connection, the budget is {EDGE_BYTES_MAX}");
}

/// The gate: what TLS may cost an idle connection of the edge beside what it costs anyway.
#[test]
fn tls_on_an_idle_connection_stays_within_its_budget() {
    const TLS_BYTES_MAX: f64 = 1024.0;
    let plain = edge_bytes_each(1_000, 5_000, &[], 0.0);
    let tls = edge_bytes_each(1_000, 5_000, &["--tls"], plain + TLS_BYTES_MAX);
    let more = tls - plain;
    assert!(more <= TLS_BYTES_MAX, "TLS takes {more:.0} B, the budget is {TLS_BYTES_MAX}");
}

/// Bytes of the edge for each idle connection, from the difference between few and many: what an edge takes without
/// connections falls out. How many buffers happened to be in use at once does not, and only adds: this is the least of
/// three tries, or the first that is at most `enough`.
fn edge_bytes_each(few: u32, many: u32, flags: &[&str], enough: f64) -> f64 {
    let edge_bytes = |connections: u32| {
        let connections = connections.to_string();
        let args = ["idle", "--connections", &connections, "--hold", "0", "--shards", "1"];
        // More TLS handshakes at once, in debug binaries on a busy machine, would run into their time-outs.
        let report = report(&[&args[..], &["--connecting-max", "128"], flags].concat());
        assert_eq!(report["errors"], 0, "{report}");
        report["memory"]["edge_user_bytes"].as_f64().unwrap()
    };
    let mut least = f64::INFINITY;
    for _ in 0..3 {
        let each = (edge_bytes(many) - edge_bytes(few)) / f64::from(many - few);
        println!("{flags:?}: {each:.0} B a connection");
        least = each.min(least);
        if least <= enough {
            break;
        }
    }
    least
}

#[test]
fn a_message_sent_while_the_router_is_dead_arrives_once_after_its_restart() {
    let mut hawser = Hawser::start();
    let to = |text: &'static str| ["send", "--as", "alice", "--to", "bob", text];
    let listening = hawser.spawn(&["listen", "--as", "bob", "--count", "2", "--seconds", "100"]);
    let sent = finish(hawser.spawn(&to("hello")));
    assert!(sent.status.success(), "{sent:?}");

    hawser.router.take();
    let sending = hawser.spawn(&to("again"));
    let told = wait_for("the sender's first refusal", || {
        fs::read_to_string(&sending.stderr).is_ok_and(|said| said.contains("trying again"))
    });
    assert!(told, "{:?}", finish(sending));
    hawser.start_router();
    let sent = finish(sending);
    assert!(sent.status.success(), "{sent:?}");

    let heard = finish(listening);
    assert!(heard.status.success(), "{heard:?}");
    assert_eq!(String::from_utf8_lossy(&heard.stdout), "alice: hello\nalice: again\n");
    let later = finish(hawser.spawn(&["listen", "--as", "bob", "--seconds", "1"]));
    assert!(later.status.success() && later.stdout.is_empty(), "once is enough: {later:?}");
}

#[test]
fn a_listener_goes_on_after_the_edge_was_killed() {
    let mut hawser = Hawser::start();
    let listening = hawser.spawn(&["listen", "--as", "bob", "--count", "2", "--seconds", "100"]);
    for text in ["one", "two"] {
        let sent = finish(hawser.spawn(&["send", "--as", "alice", "--to", "bob", text]));
        assert!(sent.status.success(), "{sent:?}");
        hawser.edge.take();
        hawser.start_edge();
    }
    let heard = finish(listening);
    assert_eq!(String::from_utf8_lossy(&heard.stdout), "alice: one\nalice: two\n", "{heard:?}");
}

#[test]
fn wrong_usage_names_the_flag_and_ends_with_64() {
    let cases: [(&[&str], &str); 17] = [
        (&["chat", "--pairs", "0"], "--pairs"),
        (&["chat", "--frob"], "--frob"),
        (&["echo", "--target", "http://127.0.0.1/"], "--target"),
        (&["echo", "--connections", "999999"], "--connections"),
        (&["idle", "--connections", "0"], "--connections"),
        (&["storm", "--target", "ws://127.0.0.1:1/"], "--cut"),
        (&["drain", "--target", "ws://127.0.0.1:1/"], "--target"),
        (&["chat", "--drain-every", "1s"], "--drain-every"),
        (&["echo", "--target", "ws://127.0.0.1:1/", "--tls"], "--tls"),
        (&["send", "--as", "alice", "x"], "--to"),
        (&["crash", "--seconds-max", "soon"], "--seconds-max"),
        (&["crash", "--faults", "earthquake"], "--faults"),
        (&["crash", "--faults", "broker-kill"], "--faults"),
        (&["crash", "--routers", "2"], "--routers"),
        (&["chat", "--engine", "nats", "--engine-nodes", "2"], "--engine-nodes"),
        (&["takeover"], "--engine"),
        (&["takeover", "--engine", "nats", "--routers", "1"], "--routers"),
    ];
    for (args, flag) in cases {
        let output = bench(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {said}");
        assert!(said.contains(flag) && said.trim_end().lines().count() == 1, "{args:?}: {said}");
    }
}

#[test]
fn a_target_out_of_reach_ends_with_2() {
    let nobody = free_address();
    let target = format!("ws://{nobody}/ws");
    let send = ["send", "--as", "a", "--to", "b", "x", "--give-up-after", "500ms", "--target"];
    for args in [
        &["echo", "--target"][..],
        &["chat", "--target"],
        &["idle", "--connections", "3", "--target"],
        &["echo", "--idle", "3", "--target"],
        &send,
    ] {
        let output = bench(args).arg(&target).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    }
}

#[test]
fn ctrl_c_ends_the_servers_too() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["chat", "--pairs", "2", "--seconds", "100", "--json"];
    let run = Run::spawn(bench(&args), folder.path(), "chat");
    let children = format!("/proc/{0}/task/{0}/children", run.child.id());
    let mut servers = Vec::new();
    wait_for("two children", || {
        let listed = fs::read_to_string(&children).unwrap_or_default();
        servers = listed.split_ascii_whitespace().map(str::to_owned).collect();
        servers.len() == 2
    });
    kill_process(Pid::from_child(&run.child), Signal::INT).unwrap();
    finish(run);
    for pid in servers {
        assert!(!Path::new("/proc").join(&pid).exists(), "server {pid} is left behind");
    }
}

/// Runs a scenario that has to end well, and returns its one JSON object.
fn report(args: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    sibling("hawser-edge");
    sibling("hawser-router");
    let mut command = bench(args);
    command.arg("--json");
    let output = finish(Run::spawn(command, folder.path(), "run"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["settings"].is_object() && report["machine"]["cores"].is_u64(), "{report}");
    report
}

fn assert_sound(report: &Value) {
    for finding in ["lost", "duplicates", "out_of_order", "holes", "gaps", "unanswered", "errors"] {
        assert_eq!(report[finding], 0, "{finding}: {report}");
    }
    assert!(report["acknowledged"].as_u64() > Some(0), "{report}");
    assert_eq!(report["acknowledged"], report["delivered"], "{report}");
}

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hawser-bench"));
    command.args(args);
    command
}

fn sibling(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_hawser-bench")).with_file_name(name);
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build --workspace` first, as `make test` does",
        path.display()
    );
    path
}

/// A process whose output goes to files, so that it never waits for a reader. Killed when dropped.
struct Run {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Run {
    fn spawn(mut command: Command, folder: &Path, name: &str) -> Self {
        let [stdout, stderr] = ["out", "err"].map(|end| folder.join(format!("{name}.{end}")));
        let log = |path: &Path| File::options().create(true).append(true).open(path).unwrap();
        command.stdin(Stdio::null()).stdout(log(&stdout)).stderr(log(&stderr));
        Self { child: command.spawn().unwrap(), stdout, stderr }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a process and takes what it said.
fn finish(mut run: Run) -> Output {
    let mut status = None;
    wait_for("the end of a process", || {
        status = run.child.try_wait().unwrap();
        status.is_some()
    });
    let read = |path: &Path| fs::read(path).unwrap();
    let (stdout, stderr) = (read(&run.stdout), read(&run.stderr));
    Output { status: status.unwrap(), stdout, stderr }
}

/// Waits until `done`; true, or a panic after two minutes.
fn wait_for(what: &str, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
    true
}

/// A loopback address that nobody listens on, below the ports that the kernel hands out by itself.
fn free_address() -> SocketAddr {
    let mut random = fastrand::Rng::new();
    let free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    let mut draws = std::iter::repeat_with(|| ([127, 0, 0, 1], random.u16(10_000..15_000)).into());
    draws.by_ref().take(1_000).find(free).expect("a free port")
}

/// A router and an edge of this build, each of which can be killed and started again.
struct Hawser {
    folder: tempfile::TempDir,
    edge_address: SocketAddr,
    router_address: SocketAddr,
    router_admin: SocketAddr,
    edge_flags: Vec<String>,
    edge: Option<Run>,
    router: Option<Run>,
    runs: std::cell::Cell<usize>,
}

impl Hawser {
    fn start() -> Self {
        Self::start_with(&[])
    }

    /// The edge gets these flags besides.
    fn start_with(edge_flags: &[[&str; 2]]) -> Self {
        let mut hawser = Self {
            edge_flags: edge_flags.concat().into_iter().map(str::to_owned).collect(),
            folder: tempfile::tempdir().unwrap(),
            edge_address: free_address(),
            router_address: free_address(),
            router_admin: free_address(),
            edge: None,
            router: None,
            runs: 0.into(),
        };
        hawser.start_router();
        hawser.start_edge();
        hawser
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn start_router(&mut self) {
        let mut command = Command::new(sibling("hawser-router"));
        command.args(["--admin", &self.router_admin.to_string()]);
        command.args(["--listen", &self.router_address.to_string()]);
        command.arg("--data-dir").arg(self.data());
        self.router = Some(self.listening(command, "router", self.router_address));
    }

    /// A counter of the router's /metrics; 0 while it cannot be had.
    fn router_counts(&self, counter: &str) -> u64 {
        let Ok(mut stream) = TcpStream::connect(self.router_admin) else { return 0 };
        let mut text = String::new();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
        let counted = text.lines().find_map(|line| line.strip_prefix(counter)?.trim().parse().ok());
        counted.unwrap_or_default()
    }

    fn start_edge(&mut self) {
        let mut command = Command::new(sibling("hawser-edge"));
        command.args(["--admin", "127.0.0.1:0", "--listen", &self.edge_address.to_string()]);
        command.args(["--dev-auth", "--router", &self.router_address.to_string()]);
        // A client that comes while the router is away is told so soon.
        command.args(["--connect-timeout", "1s"]).args(&self.edge_flags);
        self.edge = Some(self.listening(command, "edge", self.edge_address));
    }

    /// Starts a server and waits until it accepts connections.
    fn listening(&self, command: Command, name: &str, address: SocketAddr) -> Run {
        wait_for("the address of the one before", || TcpListener::bind(address).is_ok());
        let mut run = Run::spawn(command, self.folder.path(), name);
        wait_for(name, || {
            let ended = run.child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", fs::read_to_string(&run.stderr).unwrap());
            TcpStream::connect(address).is_ok()
        });
        run
    }

    /// Runs `send` or `listen` against this edge.
    fn spawn(&self, args: &[&str]) -> Run {
        self.runs.set(self.runs.get() + 1);
        let mut command = bench(args);
        command.args(["--target", &format!("ws://{}/ws", self.edge_address)]);
        Run::spawn(command, self.folder.path(), &format!("hand-{}", self.runs.get()))
    }
}
