//! `monitoring/`: a real Prometheus takes the rules, asks a real edge and router, and knows every metric that rules and dashboards
//! mention.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::hawser::{
    Client, Edge, PATIENCE, Process, Router, binary, free_address, within_patience,
};

/// What an edge has only with keys of tokens that it fetches.
const ONLY_SOMETIMES: [&str; 1] = ["edge_token_keys_degraded"];

fn monitoring(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../monitoring").join(file)
}

/// A Prometheus that asks two edges and a router.
struct Prometheus {
    address: SocketAddr,
    _process: Process,
}

impl Prometheus {
    fn start(folder: &Path, edges: [&Edge; 2], router: &Router) -> Prometheus {
        let mut config = fs::read_to_string(monitoring("prometheus.yml")).unwrap();
        let [first, second] = edges.map(|edge| edge.admin.to_string());
        for (from, to) in [
            ("192.0.2.11:8081", first),
            ("192.0.2.12:8081", second),
            ("192.0.2.21:7801", router.admin.to_string()),
            ("alerts.yml", monitoring("alerts.yml").display().to_string()),
            ("scrape_interval: 15s", "scrape_interval: 1s".to_owned()),
            ("evaluation_interval: 15s", "evaluation_interval: 1s".to_owned()),
        ] {
            assert!(config.contains(from), "{from} is not in {config}");
            config = config.replace(from, &to);
        }
        let path = folder.join("prometheus.yml");
        fs::write(&path, config).unwrap();
        let address = free_address();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", path.display()));
        command.arg(format!("--web.listen-address={address}"));
        command.arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()));
        let mut process = Process::start("prometheus", command, folder);
        process.says("Server is ready to receive web requests");
        Prometheus { address, _process: process }
    }

    /// What its API answers, which has to be a success.
    fn ask(&self, path: &str) -> Value {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // With HTTP/1.0 it does not answer in chunks.
        write!(stream, "GET /api/v1/{path} HTTP/1.0\r\nHost: prometheus\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {text}"));
        let mut answer: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{text}"));
        assert_eq!(answer["status"], "success", "{path}: {answer}");
        answer["data"].take()
    }

    fn query(&self, expression: &str) -> Value {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        self.ask(&format!("query?query={encoded}"))["result"].take()
    }
}

/// An edge that speaks TLS.
fn with_certificate(folder: &Path) -> Command {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut command = Command::new(binary("hawser-edge"));
    command.arg("--tls-cert").arg(cert).arg("--tls-key").arg(key);
    command
}

/// The expressions of a dashboard, with its variables as Grafana fills them in.
fn expressions_of(dashboard: &str) -> Vec<String> {
    let text = fs::read_to_string(monitoring(dashboard)).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    targets
        .map(|target| target["expr"].as_str().unwrap())
        .map(|expr| expr.replace("$instance", ".*").replace("$__rate_interval", "1m"))
        .inspect(|expr| assert!(!expr.contains('$'), "an unknown variable: {expr}"))
        .collect()
}

/// The metrics that an expression names.
fn metrics_in(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    words
        .filter(|word| ["edge_", "router_", "process_"].iter().any(|start| word.starts_with(start)))
}

#[test]
fn a_real_prometheus_finds_every_metric_of_every_rule_and_panel() {
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(monitoring("alerts.yml"))
        .output()
        .expect("promtool is missing: apt-get install prometheus, as .ci/run does");
    assert!(checked.status.success(), "{checked:?}");

    let folder = tempfile::tempdir().unwrap();
    let router = Router::start(folder.path());
    let edge = Edge::start("edge", router.link, folder.path());
    edge.wait_healthy();
    let secure = Edge::run(with_certificate(folder.path()), "secure", router.link, folder.path());
    secure.wait_healthy();
    let mut alice = Client::open(edge.listen, "alice").unwrap();
    alice.send("alice", "1", "AAAA").unwrap();
    let prometheus = Prometheus::start(folder.path(), [&edge, &secure], &router);
    within_patience("two samples of edges and router", || {
        let seen = prometheus.query("count_over_time(up[1m]) >= 2 and up == 1");
        (seen.as_array()?.len() == 3).then_some(())
    });

    let groups = prometheus.ask("rules")["groups"].take();
    let rules = groups.as_array().unwrap().iter().filter_map(|group| group["rules"].as_array());
    let mut expressions: Vec<_> =
        rules.flatten().map(|rule| rule["query"].as_str().unwrap().to_owned()).collect();
    assert!(expressions.len() > 20, "the rules are loaded: {groups}");
    expressions.extend(["edge.json", "router.json"].into_iter().flat_map(expressions_of));

    let names = prometheus.ask("label/__name__/values");
    let known: BTreeSet<_> =
        names.as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
    for expression in &expressions {
        prometheus.query(expression);
        for metric in metrics_in(expression) {
            let there = known.contains(metric) || ONLY_SOMETIMES.contains(&metric);
            assert!(there, "{metric} does not exist: {expression}");
        }
    }

    // What is well raises no alarm.
    let alerts = prometheus.ask("alerts")["alerts"].take();
    let firing: Vec<_> =
        alerts.as_array().unwrap().iter().filter(|alert| alert["state"] == "firing").collect();
    assert!(firing.is_empty(), "{firing:?}");
    let held = prometheus.query("sum(edge_connections)");
    assert_eq!(held[0]["value"][1], "1", "{held}");
}
