//! What this kernel and these limits offer, and the plain sentence when that is not enough.

use std::io;
use std::num::NonZero;
use std::thread::available_parallelism;

use io_uring::{IoUring, Probe, opcode};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use crate::config::Config;

/// Oldest kernel that has all that the ring uses.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// What glommio's executor wants RLIMIT_MEMLOCK to be at least, also of a process with CAP_IPC_LOCK.
pub const MEMLOCK_MIN_BYTES: u64 = 512 * 1024;

/// Facts about the machine; everything that [`assess`] and [`Plan`](crate::plan::Plan) decide is decided on these.
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
    /// RLIMIT_MEMLOCK in bytes, whether or not it binds: the executor asks for [`MEMLOCK_MIN_BYTES`] in any case.
    pub memlock_bytes: u64,
    /// Locked memory that this user may have, in bytes (RLIMIT_MEMLOCK); `None` where it does not bind.
    pub locked_bytes_max: Option<u64>,
    /// Cores that this process may use, its affinity and its control group's quota counted.
    pub cores: usize,
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
            memlock_bytes: getrlimit(Resource::Memlock).current.unwrap_or(u64::MAX),
            locked_bytes_max: locked_bytes_max(),
            cores: available_parallelism().map_or(1, NonZero::get),
            somaxconn: number("/proc/sys/net/core/somaxconn").unwrap_or(u32::MAX),
        }
    }
}

/// Whoever has CAP_IPC_LOCK (capabilities(7)) is not bound.
fn locked_bytes_max() -> Option<u64> {
    let free =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if free { None } else { getrlimit(Resource::Memlock).current }
}

fn try_ring() -> io::Result<Vec<&'static str>> {
    let ring: IoUring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(8)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let operations = [
        ("accept", opcode::Accept::CODE),
        ("msg_ring", opcode::MsgRingSendFd::CODE),
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
    if !config.dev_auth && !config.admission.checks_tokens() {
        return Err("--jwt-key-file: nothing says how tokens are checked; give --jwt-key-file, --jwt-hs256-key-file, \
                    --jwt-jwks-file or --jwt-jwks-url with the keys of your issuer, or --auth-url with a service of \
                    your own, or, for development on a loopback address, --dev-auth"
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
    if kernel.memlock_bytes < MEMLOCK_MIN_BYTES {
        return Err(format!(
            "memlock: the limit (ulimit -l) is {} KiB, an executor needs at least {}; raise it; see tuning/",
            kernel.memlock_bytes / 1024,
            MEMLOCK_MIN_BYTES / 1024
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
impl Kernel {
    /// One that has all that can be asked for.
    pub(crate) fn capable() -> Self {
        Self {
            release: (6, 18),
            ring: Ok(()),
            missing: Vec::new(),
            io_uring_disabled: 0,
            descriptors_max: 1_048_576,
            memlock_bytes: u64::MAX,
            locked_bytes_max: None,
            cores: 2,
            somaxconn: 4096,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config { dev_auth: true, ..Config::default() }
    }

    #[test]
    fn this_machine_offers_what_is_needed() {
        assert_eq!(assess(&config(), &Kernel::read()).map(|_| ()), Ok(()));
    }

    #[test]
    fn each_lack_has_its_sentence() {
        for (kernel, start) in [
            (
                Kernel { ring: Err(libc::EPERM), io_uring_disabled: 2, ..Kernel::capable() },
                "kernel.io_uring_disabled",
            ),
            (
                Kernel { ring: Err(libc::EPERM), ..Kernel::capable() },
                "io_uring: refused by the kernel",
            ),
            (
                Kernel { ring: Err(libc::ENOSYS), ..Kernel::capable() },
                "io_uring: refused by the kernel",
            ),
            (
                Kernel { ring: Err(libc::EINVAL), release: (5, 15), ..Kernel::capable() },
                "kernel: Linux 5.15",
            ),
            (Kernel { ring: Err(libc::ENOMEM), ..Kernel::capable() }, "memlock: "),
            (Kernel { memlock_bytes: 511 * 1024, ..Kernel::capable() }, "memlock: the limit "),
            (Kernel { release: (6, 0), ..Kernel::capable() }, "kernel: Linux 6.0 is too old"),
            (
                Kernel { missing: vec!["msg_ring"], ..Kernel::capable() },
                "kernel: Linux 6.18 is too old",
            ),
        ] {
            let sentence = assess(&config(), &kernel).unwrap_err();
            assert!(sentence.starts_with(start), "{sentence}");
        }
        let warnings = assess(&config(), &Kernel { somaxconn: 128, ..Kernel::capable() }).unwrap();
        assert!(warnings[0].starts_with("net.core.somaxconn is 128"), "{warnings:?}");
    }
}
