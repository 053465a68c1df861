//! This machine and its processes, as /proc tells them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::clock;

/// What a figure was measured on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    pub cpu: String,
    pub cores: usize,
    pub kernel: String,
    pub memory_mib: u64,
    /// UTC, RFC 3339.
    pub date: String,
}

impl Machine {
    /// This machine, now. What cannot be read says "unknown" or 0.
    pub(crate) fn read() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let or_unknown = |text: &str| match text.trim() {
            "" => "unknown".to_owned(),
            text => text.to_owned(),
        };
        Self {
            cpu: or_unknown(value_of(&cpuinfo, "model name").unwrap_or_default()),
            // Not those that this process may use: the servers may use others.
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            kernel: or_unknown(&kernel),
            memory_mib: kib_of(&meminfo, "MemTotal").unwrap_or_default() / 1024,
            date: humantime::format_rfc3339_seconds(clock::wall()).to_string(),
        }
    }
}

/// CPU time that the live threads of a process have used, in the kernel's nanoseconds. A thread that ends takes
/// its time with it; servers under load keep theirs.
///
/// # Errors
/// When there is no such process, or it is not ours to see.
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        let Ok(stat) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanos += stat.split_ascii_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

/// Memory of a process that belongs to it alone and to no file: heap, stacks, anonymous maps. In bytes.
///
/// # Errors
/// When there is no such process, or it is not ours to see.
pub(crate) fn anonymous_bytes(pid: u32) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kib_of(&rollup, "Anonymous")
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other("smaps_rollup has no line Anonymous"))
}

/// Memory that the kernel keeps for itself, whole machine: what is neither free, nor a cache of files, nor anonymous
/// memory of some process. What other processes do moves it little.
///
/// # Errors
/// When /proc/meminfo does not say.
pub(crate) fn kernel_bytes() -> io::Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let bytes = |name: &str| {
        kib_of(&meminfo, name)
            .map(|kib| kib * 1024)
            .ok_or_else(|| io::Error::other(format!("/proc/meminfo has no line {name}")))
    };
    let others = ["MemFree", "Buffers", "Cached", "AnonPages"].map(bytes);
    let others = others.into_iter().sum::<io::Result<u64>>()?;
    Ok(bytes("MemTotal")?.saturating_sub(others))
}

/// Bytes in each of the kernel's slab caches, by name, whole machine; empty for who may not read /proc/slabinfo.
pub(crate) fn slabs() -> BTreeMap<String, u64> {
    slabs_in(&fs::read_to_string("/proc/slabinfo").unwrap_or_default())
}

/// Lines such as `TCP  20 26 2496 13 8 : ..`: name, objects in use, objects, bytes of one.
fn slabs_in(slabinfo: &str) -> BTreeMap<String, u64> {
    let cache = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let name = fields.next()?.to_owned();
        let mut number = || fields.next()?.parse::<u64>().ok();
        let (_, objects, bytes_each) = (number()?, number()?, number()?);
        Some((name, objects * bytes_each))
    };
    slabinfo.lines().filter_map(cache).collect()
}

/// Type of the filesystem that `path` lies on, such as `ext4`: on `tmpfs` nothing is durable, and fast.
pub(crate) fn filesystem_of(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    filesystem_in(&mounts, &path).unwrap_or("unknown").to_owned()
}

/// The last of the deepest mounts that `path` lies under counts.
fn filesystem_in<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let mount = Path::new(fields.next()?);
        path.starts_with(mount).then_some((mount.components().count(), fields.next()?))
    });
    mounts.max_by_key(|(depth, _)| *depth).map(|(_, filesystem)| filesystem)
}

/// Short name of a process, for tables.
pub(crate) fn process_name(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

/// Raises this process's limit of open descriptors to what it may have, and returns it.
pub(crate) fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
    .unwrap_or(u64::MAX)
}

/// First and last port that the kernel hands out by itself.
pub(crate) fn ephemeral_ports() -> (u16, u16) {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = range.split_ascii_whitespace().filter_map(|port| port.parse().ok());
    (ports.next().unwrap_or(32_768), ports.next().unwrap_or(60_999))
}

/// The value behind the first `name:` of a text like /proc/cpuinfo.
fn value_of<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

fn kib_of(text: &str, name: &str) -> Option<u64> {
    value_of(text, name)?.strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_name() {
        let text = "Rss:  12 kB\nLazyFree: 1 kB\nAnonymous:      40 kB\nAnonHuge: 3 kB\n";
        assert_eq!(kib_of(text, "Anonymous"), Some(40));
        assert_eq!(kib_of(text, "Anon"), None);
        assert_eq!(value_of("model name\t: X 9\nmodel name\t: Y\n", "model name"), Some("X 9"));
    }

    #[test]
    fn a_path_lies_on_the_deepest_mount_above_it() {
        let mounts =
            "d / ext4 rw 0 0\nd /tmp tmpfs rw 0 0\nd /tmpest xfs rw 0 0\nd / btrfs rw 0 0\n";
        assert_eq!(filesystem_in(mounts, Path::new("/tmp/x")), Some("tmpfs"));
        assert_eq!(filesystem_in(mounts, Path::new("/home")), Some("btrfs"));
        assert_eq!(filesystem_in("", Path::new("/home")), None);
    }

    #[test]
    fn this_process_has_used_cpu_and_memory() {
        let pid = std::process::id();
        assert!(cpu_time(pid).unwrap() > Duration::ZERO);
        assert!(anonymous_bytes(pid).unwrap() > 4096);
    }

    #[test]
    fn the_kernel_and_its_slabs_take_memory() {
        assert!(kernel_bytes().unwrap() > 1 << 20);
        let slabs =
            slabs_in("slabinfo - version: 2.1\n# name <active>\nTCP  20 26 2496 13 8 : x\n");
        assert_eq!(slabs.into_iter().collect::<Vec<_>>(), [("TCP".to_owned(), 26 * 2496)]);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(cpu_time(u32::MAX).is_err());
        assert!(anonymous_bytes(u32::MAX).is_err());
    }

    #[test]
    fn this_machine_has_cores_a_kernel_and_memory() {
        let machine = Machine::read();
        assert!(machine.cores > 0 && machine.memory_mib > 0, "{machine:?}");
        assert_ne!(machine.kernel, "unknown");
    }
}
