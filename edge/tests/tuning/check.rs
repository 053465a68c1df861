//! `tuning/check` against this machine, and against copies of /proc and /sys made up for the test.
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use hawser_edge::config::Config;
use hawser_edge::plan::Plan;
use hawser_edge::probe::Kernel;
use tempfile::TempDir;

use crate::{set, stdout, tuning};

fn script() -> PathBuf {
    tuning("check")
}

fn check(flags: &[&str]) -> Output {
    Command::new(script()).args(flags).output().unwrap()
}

/// A machine that is tuned for 20,000 connections on 4 shards; tests spoil one setting of it.
struct Machine(TempDir);

impl Machine {
    fn tuned() -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        for (path, text) in [
            ("proc/sys/kernel/osrelease", "6.12.0-1-amd64"),
            ("proc/sys/kernel/io_uring_disabled", "0"),
            ("proc/sys/fs/nr_open", "1048576"),
            ("proc/sys/fs/file-max", "9223372036854775807"),
            ("proc/sys/net/core/somaxconn", "4096"),
            ("proc/sys/net/core/netdev_max_backlog", "65535"),
            ("proc/sys/net/ipv4/tcp_max_syn_backlog", "4096"),
            ("proc/sys/net/ipv4/tcp_ehash_entries", "262144"),
            ("proc/sys/net/ipv4/tcp_mem", "15000\t20000\t40000"),
            ("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t409600"),
            ("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t409600"),
            ("proc/sys/net/ipv4/ip_local_port_range", "1024\t65535"),
            ("proc/meminfo", "MemTotal:        1048576 kB\nMemFree:          1 kB"),
            ("proc/self/cgroup", "0::/hawser.slice/edge"),
            ("sys/fs/cgroup/hawser.slice/memory.max", "1073741824"),
            ("sys/fs/cgroup/hawser.slice/edge/memory.max", "max"),
            ("sys/devices/system/cpu/online", "0-1"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never"),
        ] {
            machine.set(path, text);
        }
        machine
    }

    fn set(&self, path: &str, text: &str) {
        set(self.0.path(), path, text);
    }

    /// Checked for 20,000 connections on 4 shards, in a shell with these limits.
    fn checked(&self, limits: &str, more: &[&str]) -> Output {
        Command::new("bash")
            .args(["-c", &format!("{limits}; exec \"$@\""), "bash"])
            .arg(script())
            .args(["--connections-max", "20_000", "--shards", "4", "--root"])
            .arg(self.0.path())
            .args(more)
            .output()
            .unwrap()
    }

    /// The same with as many shards as the edge chooses.
    fn checked_by_itself(&self, limits: &str) -> Output {
        Command::new("bash")
            .args(["-c", &format!("{limits}; exec \"$@\""), "bash"])
            .arg(script())
            .args(["--connections-max", "20_000", "--root"])
            .arg(self.0.path())
            .output()
            .unwrap()
    }

    /// What is said for `connections` to a shell without CAP_IPC_LOCK.
    fn unprivileged(&self, descriptors: u64, memlock_kib: u64, connections: usize) -> String {
        let limits = format!("ulimit -n {descriptors}; ulimit -l {memlock_kib}; exec \"$@\"");
        let mut command = Command::new("bash");
        if rustix::process::geteuid().is_root() {
            command = Command::new("setpriv");
            command.args(["--bounding-set", "-ipc_lock", "bash"]);
        }
        let output = command
            .args(["-c", &limits, "bash"])
            .arg(script())
            .args(["--connections-max", &connections.to_string(), "--root"])
            .arg(self.0.path())
            .output()
            .unwrap();
        assert!(output.stderr.is_empty(), "{output:?}");
        stdout(&output)
    }
}

const LIMITS: &str = "ulimit -n 5128; ulimit -l 4096";

#[test]
fn a_tuned_machine_fits_and_each_setting_is_told() {
    let output = Machine::tuned().checked(LIMITS, &["--with-clients"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.ends_with("17 settings fit, 0 hints, 0 differ, 0 could not be read\n"), "{text}");
}

#[test]
fn each_setting_that_differs_is_told_by_name_with_what_is_needed_and_why() {
    for (path, text, told) in [
        (
            "proc/sys/kernel/osrelease",
            "5.15.0-91-generic",
            "kernel is 5.15.0-91-generic, needed is 6.1 or later",
        ),
        ("proc/sys/kernel/io_uring_disabled", "2", "kernel.io_uring_disabled is 2, needed is 0"),
        ("proc/sys/fs/nr_open", "1024", "fs.nr_open is 1024, needed are 5128"),
        ("proc/sys/fs/file-max", "60000", "fs.file-max is 60000, needed are 85536"),
        ("proc/sys/net/core/somaxconn", "128", "net.core.somaxconn is 128, needed are 4096"),
        (
            "proc/sys/net/core/netdev_max_backlog",
            "10",
            "net.core.netdev_max_backlog is 10, needed are 1000",
        ),
        (
            "proc/sys/net/ipv4/tcp_max_syn_backlog",
            "512",
            "net.ipv4.tcp_max_syn_backlog is 512, needed are 1024",
        ),
        (
            "proc/sys/net/ipv4/tcp_mem",
            "1 2 3",
            "net.ipv4.tcp_mem (2nd, 3rd) is 2 3 pages, needed are 20000 40000",
        ),
        (
            "proc/sys/net/netfilter/nf_conntrack_max",
            "10000",
            "net.netfilter.nf_conntrack_max is 10000, needed are 25000",
        ),
        ("proc/meminfo", "MemTotal: 102400 kB", "memory is 100 MiB, needed are 195"),
        (
            "sys/fs/cgroup/hawser.slice/memory.max",
            "104857600",
            "memory of this cgroup is 100 MiB, needed are 195",
        ),
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "[always] madvise never",
            "transparent huge pages are set to always, better is madvise",
        ),
    ] {
        let machine = Machine::tuned();
        machine.set(path, text);
        let output = machine.checked(LIMITS, &[]);
        let text = stdout(&output);
        assert_eq!(output.status.code(), Some(1), "{path}: {text}");
        assert!(text.contains(&format!("  DIFFERS  {told}:\n           ")), "{path}: {text}");
        assert!(text.contains(", 1 differ, 0 could not"), "{path}: {text}");
    }
}

#[test]
fn what_the_edge_copes_with_or_its_operator_decides_is_a_hint_and_no_difference() {
    for (path, text, told) in [
        (
            "proc/sys/net/ipv4/tcp_rmem",
            "4096 131072 6291456",
            "net.ipv4.tcp_rmem (3rd) is 6291456 bytes, safer is at most 409600",
        ),
        (
            "proc/sys/net/ipv4/tcp_wmem",
            "4096 16384 4194304",
            "net.ipv4.tcp_wmem (3rd) is 4194304 bytes, safer is at most 409600",
        ),
    ] {
        let machine = Machine::tuned();
        machine.set(path, text);
        assert_hint(&machine.checked(LIMITS, &[]), told);
    }
    let machine = Machine::tuned();
    machine.set("proc/sys/net/netfilter/nf_conntrack_max", "10000");
    machine.set("proc/sys/net/netfilter/nf_conntrack_count", "0");
    let told = "net.netfilter.nf_conntrack_max is 10000, 25000 would be needed; no rule has anything tracked now";
    assert_hint(&machine.checked(LIMITS, &[]), told);
}

#[track_caller]
fn assert_hint(output: &Output, told: &str) {
    let text = stdout(output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains(&format!("  hint     {told}:\n           ")), "{text}");
    assert!(text.contains(" 1 hints, 0 differ, 0 could not"), "{text}");
}

#[test]
fn a_low_limit_of_descriptors_is_a_hint_with_the_shards_that_the_edge_makes_of_it() {
    let machine = Machine::tuned();
    // Two shards would do on two cores; without --shards the limit decides.
    let output = machine.checked_by_itself("ulimit -n 1128; ulimit -l 4096");
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("20000 connections on 20 shards and 2 cores:\n"), "{text}");
    let told = "descriptors a process (ulimit -n) are 1128, with 10128 a shard a core would do";
    assert_hint(&output, told);
    // 20 shards need 368 ordinary descriptors, and each limit below that more shards.
    let text = stdout(&machine.checked_by_itself("ulimit -n 200; ulimit -l 65536"));
    let told = "  DIFFERS  descriptors a process (ulimit -n) are 200, needed are ";
    assert!(text.contains(told), "{text}");
}

#[test]
fn too_few_descriptors_for_the_shards_that_were_asked_for_come_with_those_that_would_do() {
    let output = Machine::tuned().checked("ulimit -n 1128; ulimit -l 4096", &[]);
    let told = "descriptors a process (ulimit -n) are 1128, needed are 5128, or --shards 20:";
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains(told), "{}", stdout(&output));
}

#[test]
fn clients_on_the_machine_need_ports_and_memory_of_their_own() {
    let machine = Machine::tuned();
    machine.set("proc/sys/net/ipv4/ip_local_port_range", "32768\t33767");
    assert_eq!(machine.checked(LIMITS, &[]).status.code(), Some(0));
    let output = machine.checked(LIMITS, &["--with-clients"]);
    assert_hint(&output, "net.ipv4.ip_local_port_range is 32768 33767, which has 1000 ports");
    assert!(stdout(&output).contains("20000 need 20 addresses"), "{}", stdout(&output));
    machine.set("proc/meminfo", "MemTotal: 204800 kB");
    assert_eq!(machine.checked(LIMITS, &[]).status.code(), Some(0));
    assert_eq!(machine.checked(LIMITS, &["--with-clients"]).status.code(), Some(1));
}

#[test]
fn what_cannot_be_read_is_said_and_is_not_a_difference() {
    let machine = Machine::tuned();
    fs::remove_file(machine.0.path().join("proc/sys/net/core/somaxconn")).unwrap();
    let output = machine.checked(LIMITS, &[]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("unknown  net.core.somaxconn cannot be read here"), "{text}");
}

/// The arithmetic of the script against the edge's own, over limits low and high.
#[test]
fn what_the_check_says_about_shards_and_locked_memory_is_what_the_edge_does() {
    let machine = Machine::tuned();
    for (descriptors, connections) in
        [(20_000, 1_000_000), (20_000, 20_000), (1128, 20_000), (5000, 1_000_000)]
    {
        let kernel = Kernel {
            descriptors_max: descriptors,
            locked_bytes_max: None,
            cores: 2,
            ..Kernel::read()
        };
        let config = Config { connections_max: connections, dev_auth: true, ..Config::default() };
        let plan = Plan::new(&config, &kernel).unwrap();
        let text = machine.unprivileged(descriptors, 16, connections);
        let told = format!("{connections} connections on {} shards and 2 cores:\n", plan.shards);
        assert!(text.starts_with(&told), "{text}");

        // Told is the least that would do, and what would be better.
        let needed = plan.ring.locked_bytes() * plan.shards as u64 / 1024;
        assert!(text.contains(&format!(", better are {}", needed.max(512))), "{needed}: {text}");
        let (_, least) =
            text.split_once("locked memory (ulimit -l) is 16 KiB, needed are ").unwrap();
        let (least, _) = least.split_once(',').unwrap();
        let least: u64 = least.parse().unwrap();
        let with = |kib| {
            Plan::new(&config, &Kernel { locked_bytes_max: Some(kib * 1024), ..kernel.clone() })
        };
        assert!(with(least).is_ok(), "{least} KiB: {text}");
        assert!(least == 512 || with(least - 1).is_err(), "{least} KiB: {text}");
    }
}

#[test]
fn this_machine_can_be_read() {
    let output = check(&["--connections-max", "1000"]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    assert!(stdout(&output).contains("  fits     kernel "), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn wrong_usage_ends_with_64_and_one_sentence_that_names_the_flag() {
    for (flags, named) in [
        (&[][..], "--connections-max"),
        (&["--connections-max"], "--connections-max"),
        (&["--connections-max", "many"], "--connections-max"),
        (&["--connections-max", "0"], "--connections-max"),
        (&["--connections-max", "99999999999999999999"], "--connections-max"),
        (&["--connections-max", "-1"], "--connections-max"),
        (&["--connections-max", "5", "--shards", "5000"], "--shards"),
        (&["--connections-max", "5", "--root", "/nowhere"], "--root"),
        (&["--connections-min", "5"], "--connections-min"),
    ] {
        let output = check(flags);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{flags:?}: {told}");
        assert!(told.starts_with(&format!("tuning/check: {named}: ")), "{flags:?}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(output.stdout.is_empty(), "{flags:?}");
    }
}

#[test]
fn a_small_table_of_sockets_is_a_hint_also_when_it_is_another_namespaces() {
    for chains in ["4096", "-4096"] {
        let machine = Machine::tuned();
        machine.set("proc/sys/net/ipv4/tcp_ehash_entries", chains);
        let output = machine.checked(LIMITS, &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("tcp_ehash_entries is 4096, better are 10000"), "{text}");
        assert!(text.contains("thash_entries=10000"), "{text}");
        assert_eq!(output.status.code(), Some(0), "{text}");
    }
}
