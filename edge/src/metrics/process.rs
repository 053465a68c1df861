//! What the process takes from the machine, as the kernel counts it; read when it is asked for.
//!
//! Names that begin with `process_` are those that all of Prometheus' own libraries use. What /proc does not tell is left out.

use std::fmt::{Display, Write as _};
use std::fs;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::header;

/// Writes them. `threads` are the ids of the shards' threads, 0 for one that does not run.
pub fn render(out: &mut String, started_unix: Duration, threads: &[AtomicI32]) {
    let version = env!("CARGO_PKG_VERSION");
    one(
        out,
        "edge_build_info",
        "gauge",
        "the release that runs",
        1,
        &format!("{{version=\"{version}\"}}"),
    );
    let name = "process_start_time_seconds";
    one(
        out,
        name,
        "gauge",
        "when the process started, in Unix time",
        started_unix.as_secs_f64(),
        "",
    );
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec as u32);
    one(
        out,
        "process_cpu_seconds_total",
        "counter",
        "CPU time of the process",
        cpu.as_secs_f64(),
        "",
    );
    if let Some(pages) = resident_pages() {
        let bytes = pages * rustix::param::page_size() as u64;
        one(out, "process_resident_memory_bytes", "gauge", "resident memory", bytes, "");
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        // One of them reads the folder.
        let open = descriptors.count().saturating_sub(1);
        one(
            out,
            "process_open_fds",
            "gauge",
            "open descriptors; clients' sockets are not among them",
            open,
            "",
        );
    }
    if let Some(max) = getrlimit(Resource::Nofile).current {
        one(out, "process_max_fds", "gauge", "the limit of descriptors", max, "");
    }
    schedules(out, threads);
}

fn one(out: &mut String, name: &str, kind: &str, help: &str, value: impl Display, labels: &str) {
    header(out, name, kind, help);
    let _ = writeln!(out, "{name}{labels} {value}");
}

fn resident_pages() -> Option<u64> {
    fs::read_to_string("/proc/self/statm").ok()?.split_whitespace().nth(1)?.parse().ok()
}

/// Time that each shard's thread ran, and time that it could have run and had no core.
fn schedules(out: &mut String, threads: &[AtomicI32]) {
    let schedules: Vec<_> = threads
        .iter()
        .enumerate()
        .filter_map(|(shard, thread)| Some((shard, schedule(thread.load(Ordering::Relaxed))?)))
        .collect();
    for (at, name, help) in [
        (0, "edge_shard_cpu_seconds_total", "CPU time of each shard"),
        (1, "edge_shard_wait_seconds_total", "time that each shard waited for a core"),
    ] {
        header(out, name, "counter", help);
        for (shard, times) in &schedules {
            let _ = writeln!(out, "{name}{{shard=\"{shard}\"}} {}", times[at].as_secs_f64());
        }
    }
}

fn schedule(thread: i32) -> Option<[Duration; 2]> {
    if thread == 0 {
        return None;
    }
    let text = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    let mut nanos = text.split_whitespace().map_while(|text| text.parse().ok());
    Some([Duration::from_nanos(nanos.next()?), Duration::from_nanos(nanos.next()?)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_and_its_threads_are_told() {
        let threads = [rustix::thread::gettid().as_raw_nonzero().get(), 0].map(AtomicI32::new);
        let mut out = String::new();
        render(&mut out, Duration::from_secs(1_700_000_000), &threads);
        let value = |name: &str| {
            let line = out.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} is not in {out}")).parse::<f64>().unwrap()
        };
        assert_eq!(value("process_start_time_seconds"), 1.7e9);
        assert!(value("process_resident_memory_bytes") > 1e5);
        assert!(value("process_cpu_seconds_total") > 0.0);
        assert!(value("process_open_fds") >= 3.0 && value("process_max_fds") >= 64.0);
        assert!(value("edge_shard_cpu_seconds_total{shard=\"0\"}") > 0.0);
        assert!(!out.contains("shard=\"1\""), "{out}");
    }
}
