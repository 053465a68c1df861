//! `tuning/queues` on copies of /proc and /sys of cards that are not here.

use std::fs;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::{stdout, tuning};

/// A machine with a card `eth7` of so many queues each way, whose interrupts begin at 50.
fn machine(cores: usize, queues: usize) -> TempDir {
    let machine = tempfile::tempdir().unwrap();
    let path = |path: &str| machine.path().join(path);
    for queue in 0..queues {
        for kind in ["rx", "tx"] {
            let folder = format!("sys/class/net/eth7/queues/{kind}-{queue}");
            fs::create_dir_all(path(&folder)).unwrap();
        }
    }
    fs::create_dir_all(path("sys/class/net/eth7/device/msi_irqs")).unwrap();
    fs::create_dir_all(path("sys/devices/system/cpu")).unwrap();
    fs::create_dir_all(path("proc")).unwrap();
    fs::write(path("sys/devices/system/cpu/online"), format!("0-{}\n", cores - 1)).unwrap();
    let mut interrupts = "           CPU0       CPU1\n".to_owned();
    interrupts += " 38:  1  2  PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0\n";
    for queue in 0..queues {
        let number = 50 + queue;
        interrupts +=
            &format!(" {number}:  7  8  PCI-MSIX-0000:01:00.0  1-edge  eth7-TxRx-{queue}\n");
    }
    interrupts +=
        "199:  0  0  PCI-MSIX-0000:01:00.0  9-edge  eth7\nNMI:  0  0  Non-maskable interrupts\n";
    fs::write(path("proc/interrupts"), interrupts).unwrap();
    machine
}

fn queues(machine: &TempDir, flags: &[&str]) -> Output {
    let mut command = Command::new(tuning("queues"));
    command.args(["eth7", "--connections-max", "1_000_000"]).args(flags);
    command.arg("--root").arg(machine.path()).output().unwrap()
}

/// The commands, without what is told about them.
fn commands(output: &Output) -> Vec<String> {
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = stdout(output);
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn a_queue_a_core_gets_its_interrupt_there_and_no_second_spreading() {
    let machine = machine(2, 2);
    assert_eq!(
        commands(&queues(&machine, &[])),
        [
            "echo 0 > /proc/irq/50/smp_affinity_list",
            "echo 1 > /proc/irq/51/smp_affinity_list",
            "echo 0 > /sys/class/net/eth7/queues/rx-0/rps_cpus",
            "echo 0 > /sys/class/net/eth7/queues/rx-1/rps_cpus",
            "echo 1 > /sys/class/net/eth7/queues/tx-0/xps_cpus",
            "echo 2 > /sys/class/net/eth7/queues/tx-1/xps_cpus",
        ]
    );
}

#[test]
fn fewer_queues_than_cores_are_spread_in_software_over_the_cores_of_the_edge() {
    let machine = machine(8, 2);
    let output = queues(&machine, &["--cpus", "2-4,6"]);
    assert!(stdout(&output).contains("#ethtool -L eth7 combined 4\n"), "{output:?}");
    assert_eq!(
        commands(&output),
        [
            "echo 2 > /proc/irq/50/smp_affinity_list",
            "echo 3 > /proc/irq/51/smp_affinity_list",
            "echo 5c > /sys/class/net/eth7/queues/rx-0/rps_cpus",
            "echo 5c > /sys/class/net/eth7/queues/rx-1/rps_cpus",
            "echo 131072 > /proc/sys/net/core/rps_sock_flow_entries",
            "echo 65536 > /sys/class/net/eth7/queues/rx-0/rps_flow_cnt",
            "echo 65536 > /sys/class/net/eth7/queues/rx-1/rps_flow_cnt",
            "echo 14 > /sys/class/net/eth7/queues/tx-0/xps_cpus",
            "echo 48 > /sys/class/net/eth7/queues/tx-1/xps_cpus",
        ]
    );
}

#[test]
fn masks_of_more_than_32_cores_have_commas_and_spare_queues_stay_free() {
    let machine = machine(72, 12);
    let commands = commands(&queues(&machine, &["--cpus", "0,31-32,70"]));
    let has = |line: &str| assert!(commands.iter().any(|found| found == line), "{commands:?}");
    has("echo 70 > /proc/irq/53/smp_affinity_list");
    has("echo 0 > /proc/irq/54/smp_affinity_list");
    has("echo 80000000 > /sys/class/net/eth7/queues/tx-1/xps_cpus");
    has("echo 1,00000000 > /sys/class/net/eth7/queues/tx-2/xps_cpus");
    has("echo 40,00000000,00000000 > /sys/class/net/eth7/queues/tx-3/xps_cpus");
    assert!(!commands.iter().any(|line| line.contains("tx-4/")), "{commands:?}");
}

#[test]
fn wrong_usage_ends_with_64_and_one_sentence_that_names_what_is_wrong() {
    for (flags, named) in [
        (&["--connections-max", "5"][..], "INTERFACE"),
        (&["eth99", "--connections-max", "5"], "INTERFACE"),
        (&["../../..", "--connections-max", "5"], "INTERFACE"),
        (&["lo"], "--connections-max"),
        (&["lo", "--connections-max", "5", "--cpus", "x"], "--cpus"),
    ] {
        let output = Command::new(tuning("queues")).args(flags).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{flags:?}: {told}");
        assert!(told.starts_with(&format!("tuning/queues: {named}: ")), "{flags:?}: {told}");
        assert!(output.stdout.is_empty(), "{flags:?}");
    }
}
