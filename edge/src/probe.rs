//! What this kernel and these limits offer, and the plain sentence when that is not enough.

use std::io;

use io_uring::{IoUring, Probe, opcode};
use rustix::process::{Resource, getrlimit};

use crate::config::Config;
use crate::limits;

/// Oldest kernel that has all that the ring uses.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// Facts about the machine; everything that [`assess`] decides is decided on these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Major and minor release.
    pub release: (u32, u32),
    /// Whether a ring of our kind can be set up; else the system's error number.
    pub ring: Result<(), i32>,
    /// Names of operations that the ring does not know.
    pub missing: Vec<&'static str>,
    /// What `kernel.io_uring_disabled` says, where it exists.
    pub io_uring_disabled: u32,
    /// Descriptors that a process may have (RLIMIT_NOFILE); a ring's table of direct descriptors is bound by it, too.
    pub descriptors_max: u64,
    /// Longest queue of a listener (net.core.somaxconn).
    pub somaxconn: u32,
}

impl Kernel {
    /// Looks.
    #[must_use]
    pub fn read() -> Self {
        let number = |path: &str| {
            std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok())
        };
        let name = rustix::system::uname();
        let release = name.release().to_string_lossy();
        let mut parts = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
        let (ring, missing) = match try_ring() {
            Ok(missing) => (Ok(()), missing),
            Err(error) => (Err(error.raw_os_error().unwrap_or(0)), Vec::new()),
        };
        Self {
            release: (parts.next().unwrap_or(0), parts.next().unwrap_or(0)),
            ring,
            missing,
            io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled").unwrap_or(0),
            descriptors_max: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            somaxconn: number("/proc/sys/net/core/somaxconn").unwrap_or(u32::MAX),
        }
    }
}

fn try_ring() -> io::Result<Vec<&'static str>> {
    let ring: IoUring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let operations = [
        ("accept", opcode::AcceptMulti::CODE),
        ("recv", opcode::RecvMulti::CODE),
        ("send", opcode::Send::CODE),
        ("connect", opcode::Connect::CODE),
        ("shutdown", opcode::Shutdown::CODE),
        ("close", opcode::Close::CODE),
        ("async_cancel", opcode::AsyncCancel::CODE),
        ("timeout", opcode::Timeout::CODE),
        ("msg_ring", opcode::MsgRingData::CODE),
    ];
    Ok(operations
        .iter()
        .filter(|(_, code)| !probe.is_supported(*code))
        .map(|(name, _)| *name)
        .collect())
}

/// Decides whether the edge can run on such a machine. What is merely worse than it could be comes back as sentences.
///
/// # Errors
/// A sentence that says what is missing and what to do.
pub fn assess(config: &Config, kernel: &Kernel) -> Result<Vec<String>, String> {
    if !config.dev_auth {
        return Err("--dev-auth: not given, and this release has no other way to check tokens; for development \
                    give it, with --listen on a loopback address"
            .into());
    }
    if let Err(errno) = kernel.ring {
        return Err(no_ring(errno, kernel));
    }
    if kernel.release < KERNEL_MIN || !kernel.missing.is_empty() {
        let (major, minor) = kernel.release;
        let missing = kernel.missing.join(", ");
        return Err(format!(
            "kernel: Linux {major}.{minor} is too old, 6.1 or later is needed{}{missing}",
            if missing.is_empty() { "" } else { "; io_uring lacks " },
        ));
    }
    let needed = config.sockets_a_shard() as u64;
    if needed > kernel.descriptors_max {
        let room = kernel.descriptors_max.saturating_sub(limits::SOCKETS_SPARE as u64).max(1);
        return Err(format!(
            "--connections-max: {} on {} shards needs {needed} direct descriptors a shard, the limit \
             (ulimit -n) is {}; raise --shards to {} or the limit; see tuning/",
            config.connections_max,
            config.shards,
            kernel.descriptors_max,
            (config.connections_max as u64).div_ceil(room),
        ));
    }
    let mut warnings = Vec::new();
    if kernel.somaxconn < 4096 {
        warnings.push(format!(
            "net.core.somaxconn is {}: in a reconnect storm clients will be turned away; see tuning/",
            kernel.somaxconn
        ));
    }
    Ok(warnings)
}

fn no_ring(errno: i32, kernel: &Kernel) -> String {
    let error = io::Error::from_raw_os_error(errno);
    match errno {
        libc::EPERM if kernel.io_uring_disabled > 0 => format!(
            "kernel.io_uring_disabled: is {}, so this process gets no io_uring; set it to 0 with sysctl",
            kernel.io_uring_disabled
        ),
        libc::EPERM | libc::ENOSYS => format!(
            "io_uring: refused by the kernel ({error}); in a container, its seccomp profile has to allow \
             io_uring_setup, io_uring_enter and io_uring_register"
        ),
        libc::EINVAL => format!(
            "kernel: Linux {}.{} does not know the ring that is needed, 6.1 or later does",
            kernel.release.0, kernel.release.1
        ),
        libc::ENOMEM => {
            "memlock: too little for an io_uring; raise it with ulimit -l; see tuning/".into()
        }
        _ => format!("io_uring: cannot be set up: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Kernel {
        Kernel {
            release: (6, 18),
            ring: Ok(()),
            missing: Vec::new(),
            io_uring_disabled: 0,
            descriptors_max: 20_000,
            somaxconn: 4096,
        }
    }

    fn config(connections_max: usize, shards: usize) -> Config {
        Config { connections_max, shards, dev_auth: true, ..Config::default() }
    }

    #[test]
    fn this_machine_offers_what_is_needed() {
        assert_eq!(assess(&config(1000, 1), &Kernel::read()).map(|_| ()), Ok(()));
    }

    #[test]
    fn too_few_descriptors_name_the_knob_and_the_shards_that_would_do() {
        let sentence = assess(&config(100_000, 2), &good()).unwrap_err();
        assert!(sentence.starts_with("--connections-max: 100000 on 2 shards"), "{sentence}");
        assert!(sentence.contains("raise --shards to 6 "), "{sentence}");
        assert_eq!(assess(&config(100_000, 6), &good()), Ok(vec![]));
    }

    #[test]
    fn each_lack_has_its_sentence() {
        for (kernel, start) in [
            (
                Kernel { ring: Err(libc::EPERM), io_uring_disabled: 2, ..good() },
                "kernel.io_uring_disabled",
            ),
            (Kernel { ring: Err(libc::EPERM), ..good() }, "io_uring: refused by the kernel"),
            (Kernel { ring: Err(libc::ENOSYS), ..good() }, "io_uring: refused by the kernel"),
            (Kernel { ring: Err(libc::EINVAL), release: (5, 15), ..good() }, "kernel: Linux 5.15"),
            (Kernel { ring: Err(libc::ENOMEM), ..good() }, "memlock: "),
            (Kernel { release: (6, 0), ..good() }, "kernel: Linux 6.0 is too old"),
            (Kernel { missing: vec!["msg_ring"], ..good() }, "kernel: Linux 6.18 is too old"),
        ] {
            let sentence = assess(&config(1000, 1), &kernel).unwrap_err();
            assert!(sentence.starts_with(start), "{sentence}");
        }
        let warnings = assess(&config(1000, 1), &Kernel { somaxconn: 128, ..good() }).unwrap();
        assert!(warnings[0].starts_with("net.core.somaxconn is 128"), "{warnings:?}");
    }
}
