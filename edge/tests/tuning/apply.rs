//! `tuning/apply` in a folder that stands for a machine.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::{set, stdout, tuning};

const SYSCTL: &str = "etc/sysctl.d/90-hawser.conf";
const LIMITS: &str = "etc/security/limits.d/90-hawser.conf";
const UNIT: &str = "etc/systemd/system/hawser-edge.service";
const DROP_IN: &str = "etc/systemd/system/hawser-edge.service.d/90-tuning.conf";

/// Eight cores, 24 GB, the settings that a kernel begins with, and a file where apply wants to have one.
struct Machine(TempDir);

impl Machine {
    fn untuned() -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        for (path, text) in [
            ("proc/sys/fs/nr_open", "1048576"),
            ("proc/sys/fs/file-max", "100000"),
            ("proc/sys/kernel/io_uring_disabled", "0"),
            ("proc/sys/net/core/somaxconn", "4096"),
            ("proc/sys/net/core/netdev_max_backlog", "1000"),
            ("proc/sys/net/ipv4/tcp_max_syn_backlog", "2048"),
            ("proc/sys/net/ipv4/tcp_mem", "287901 383868 575802"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "262144"),
            ("proc/meminfo", "MemTotal:       25165824 kB"),
            ("sys/devices/system/cpu/online", "0-7"),
            ("sys/kernel/mm/transparent_hugepage/enabled", "madvise"),
            (LIMITS, "# somebody's own"),
        ] {
            machine.set(path, text);
        }
        fs::set_permissions(machine.path(LIMITS), Permissions::from_mode(0o640)).unwrap();
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn set(&self, path: &str, text: &str) {
        set(self.0.path(), path, text);
    }

    fn get(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// For 1,000,000 connections.
    fn apply(&self, more: &[&str]) -> Output {
        self.run(&[&["--connections-max", "1_000_000"], more].concat())
    }

    fn run(&self, flags: &[&str]) -> Output {
        let root = self.0.path();
        let output =
            Command::new(tuning("apply")).args(flags).arg("--root").arg(root).output().unwrap();
        assert!(output.stderr.is_empty(), "{output:?}");
        output
    }

    /// Every file and folder: mode and content.
    fn everything(&self) -> BTreeMap<PathBuf, (u32, Option<Vec<u8>>)> {
        let mut found = BTreeMap::new();
        collect(self.0.path(), &mut found);
        found
    }
}

fn collect(folder: &Path, found: &mut BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mode = path.symlink_metadata().unwrap().permissions().mode();
        if path.is_dir() {
            collect(&path, found);
            found.insert(path, (mode, None));
        } else {
            let content = fs::read(&path).unwrap();
            found.insert(path, (mode, Some(content)));
        }
    }
}

#[track_caller]
fn assert_said(output: &Output, status: i32, told: &[&str]) {
    let text = stdout(output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    for told in told {
        assert!(text.contains(told), "{told:?} is not in {text}");
    }
}

#[test]
fn a_dry_run_shows_what_apply_then_does_and_writes_nothing() {
    let machine = Machine::untuned();
    let before = machine.everything();
    let shown = machine.apply(&["--dry-run"]);
    assert_said(&shown, 0, &["would set net.core.somaxconn: 4096 -> 12500\n"]);
    assert_eq!(machine.everything(), before);

    assert_said(&machine.apply(&[]), 0, &["sets     net.core.somaxconn: 4096 -> 12500\n"]);
    let shown = stdout(&shown);
    for path in [SYSCTL, LIMITS, UNIT, DROP_IN] {
        let lines: String =
            machine.get(path).lines().map(|line| format!("    | {line}\n")).collect();
        assert!(shown.contains(&format!("  would write /{path}\n{lines}")), "{path}: {shown}");
    }
}

#[test]
fn what_apply_writes_is_in_force_and_holds_the_edges_limits() {
    let machine = Machine::untuned();
    assert_said(&machine.apply(&["--edge-cpus", "0-5", "--router-cpus", "6,7"]), 0, &[]);
    assert_eq!(machine.get("proc/sys/net/ipv4/tcp_mem"), "750000 1000000 2000000\n");
    // A million on the edge's six cores.
    assert_eq!(machine.get("proc/sys/net/core/somaxconn"), "16666\n");
    assert_eq!(machine.get("proc/sys/fs/nr_open"), "1048576\n", "more than is needed");
    let drop_in = machine.get(DROP_IN);
    for line in [
        "Environment=HAWSER_EDGE_CONNECTIONS_MAX=1000000\n",
        "LimitNOFILE=524288\n",
        "LimitMEMLOCK=8192K\n",
        "CPUAffinity=0-5\n",
    ] {
        assert!(drop_in.contains(line), "{line} is not in {drop_in}");
    }
    let router = machine.get("etc/systemd/system/hawser-router.service.d/90-tuning.conf");
    assert!(router.ends_with("CPUAffinity=6,7\n"), "{router}");
    assert_eq!(machine.get(UNIT), fs::read_to_string(tuning("hawser-edge.service")).unwrap());
}

#[test]
fn the_example_in_sysctl_conf_is_what_apply_works_out_for_its_numbers() {
    let machine = Machine::untuned();
    assert_said(&machine.apply(&[]), 0, &["1000000 connections on 8 shards and 8 cores:\n"]);
    let example = fs::read_to_string(tuning("sysctl.conf")).unwrap();
    let settings = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| line.contains(" = ") && !line.starts_with("# "))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(settings(&machine.get(SYSCTL)), settings(&example));
    assert!(settings(&example).len() > 6, "{example}");
}

#[test]
fn a_machine_that_apply_has_tuned_has_no_difference_for_check() {
    let machine = Machine::untuned();
    machine.set("proc/sys/kernel/osrelease", "6.12.0");
    assert_said(&machine.apply(&[]), 0, &[]);
    let check = Command::new("bash")
        .args(["-c", "ulimit -n 20000; exec \"$@\"", "bash"])
        .arg(tuning("check"))
        .args(["--connections-max", "1000000", "--root"])
        .arg(machine.0.path())
        .output()
        .unwrap();
    assert_said(&check, 0, &[" 0 differ, "]);
}

#[test]
fn the_second_apply_has_nothing_to_do() {
    let machine = Machine::untuned();
    assert_said(&machine.apply(&[]), 0, &["  writes   "]);
    let after = machine.everything();
    let again = machine.apply(&[]);
    assert_said(&again, 0, &["\nnothing to do\n"]);
    assert_eq!(stdout(&again).lines().count(), 2, "{again:?}");
    assert_eq!(machine.everything(), after);
}

#[test]
fn undo_brings_everything_back_byte_for_byte_also_after_two_applies() {
    let machine = Machine::untuned();
    let before = machine.everything();
    assert_said(&machine.apply(&[]), 0, &[]);
    let more = machine.run(&["--connections-max", "1_500_000", "--router-cpus", "7"]);
    assert_said(&more, 0, &["sets     net.core.somaxconn: 12500 -> 18750"]);
    let after = machine.everything();

    assert_said(&machine.run(&["--undo", "--dry-run"]), 0, &["  would restore /etc/security/"]);
    assert_eq!(machine.everything(), after);
    let undone = machine.run(&["--undo"]);
    assert_said(
        &undone,
        0,
        &[&format!("  restores /{LIMITS}\n"), &format!("  removes  /{UNIT}\n")],
    );
    assert_eq!(machine.everything(), before);
    assert_said(&machine.run(&["--undo"]), 0, &["nothing to do\n"]);
}

#[test]
fn a_file_that_was_changed_by_hand_is_kept_and_named_by_apply_and_by_undo() {
    let machine = Machine::untuned();
    assert_said(&machine.apply(&[]), 0, &[]);
    machine.set(UNIT, "[Service]\nNice=5");
    let told = format!("  KEPT     /{UNIT} was changed by hand since");
    assert_said(&machine.apply(&[]), 1, &[&told]);
    let undone = machine.run(&["--undo"]);
    assert_said(&undone, 1, &[&told, "  restores /etc/security/"]);
    assert_eq!(machine.get(UNIT), "[Service]\nNice=5\n");
    assert!(!machine.path(SYSCTL).exists());
    // It stays known until somebody decides.
    assert_said(&machine.run(&["--undo"]), 1, &[&told]);
    fs::remove_file(machine.path(UNIT)).unwrap();
    assert_said(&machine.run(&["--undo"]), 0, &[]);
    assert!(!machine.path("var").exists());
}

#[test]
fn a_setting_that_was_changed_by_hand_is_not_undone() {
    let machine = Machine::untuned();
    assert_said(&machine.apply(&[]), 0, &[]);
    machine.set("proc/sys/net/core/somaxconn", "30000");
    let told = "  KEPT     net.core.somaxconn was set to 30000 since; before apply it was 4096\n";
    assert_said(&machine.run(&["--undo"]), 1, &[told, "sets     net.ipv4.tcp_mem: 750000 "]);
    assert_eq!(machine.get("proc/sys/net/core/somaxconn"), "30000\n");
}

#[test]
fn a_value_that_the_kernel_refuses_is_named_and_the_rest_goes_on() {
    let machine = Machine::untuned();
    // A real one that nobody may write.
    let refused = machine.path("proc/sys/net/core/somaxconn");
    fs::remove_file(&refused).unwrap();
    symlink("/proc/sys/kernel/cap_last_cap", &refused).unwrap();
    let output = machine.apply(&[]);
    let told = "  REFUSED  net.core.somaxconn stays at ";
    assert_said(&output, 1, &[told, "wanted is 12500: ", "sets     net.ipv4.tcp_mem: 287901 "]);
    assert!(machine.path(DROP_IN).exists());
    assert_said(&machine.run(&["--undo"]), 0, &[]);
}

#[test]
fn nothing_is_set_lower_than_it_is() {
    let machine = Machine::untuned();
    machine.set("proc/sys/net/core/somaxconn", "60000");
    machine.set("proc/sys/net/ipv4/tcp_mem", "1 3000000 4000000");
    assert_said(&machine.apply(&[]), 0, &[]);
    assert_eq!(machine.get("proc/sys/net/core/somaxconn"), "60000\n");
    assert_eq!(machine.get("proc/sys/net/ipv4/tcp_mem"), "750000 3000000 4000000\n");
    let text = machine.get(SYSCTL);
    assert!(text.contains("\nnet.core.somaxconn = 60000\n"), "{text}");
    assert!(text.contains("\nnet.ipv4.tcp_mem = 750000 3000000 4000000\n"), "{text}");
}

#[test]
fn what_a_script_must_not_decide_is_left_and_named() {
    let machine = Machine::untuned();
    machine.set("proc/sys/kernel/io_uring_disabled", "2");
    machine.set("proc/meminfo", "MemTotal: 4194304 kB");
    let told =
        ["LEFT     kernel.io_uring_disabled is 2", "LEFT     net.ipv4.tcp_mem: 2000000 pages"];
    assert_said(&machine.apply(&[]), 1, &told);
    assert_eq!(machine.get("proc/sys/kernel/io_uring_disabled"), "2\n");
    assert_eq!(machine.get("proc/sys/net/ipv4/tcp_mem"), "287901 383868 575802\n");
}

#[test]
fn huge_pages_for_everybody_become_huge_pages_for_those_who_ask() {
    let machine = Machine::untuned();
    let enabled = "sys/kernel/mm/transparent_hugepage/enabled";
    machine.set(enabled, "[always] madvise never");
    assert_said(&machine.apply(&[]), 0, &["transparent huge pages: always -> madvise\n"]);
    assert_eq!(machine.get(enabled), "madvise\n");
    assert_said(&machine.run(&["--undo"]), 0, &["transparent huge pages: madvise -> always\n"]);
}

#[test]
fn wrong_usage_ends_with_64_and_one_sentence_that_names_the_flag() {
    for (flags, named) in [
        (&[][..], "--connections-max"),
        (&["--connections-max", "0"], "--connections-max"),
        (&["--connections-max", "5", "--undo"], "--undo"),
        (&["--connections-max", "5", "--edge-cpus", "a"], "--edge-cpus"),
        (&["--connections-max", "5", "--root", "/nowhere"], "--root"),
        (&["--apply"], "--apply"),
    ] {
        let output = Command::new(tuning("apply")).args(flags).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{flags:?}: {told}");
        assert!(told.starts_with(&format!("tuning/apply: {named}: ")), "{flags:?}: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(output.stdout.is_empty(), "{flags:?}");
    }
}
