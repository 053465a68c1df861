//! What an edge takes from the machine: how many shards, and how large each one's ring is.
//!
//! Worked out once at the start, from the knobs and from what kernel and limits really give ([`Kernel`]). Every ring has a
//! table of direct descriptors of its own, and the limit of descriptors bounds each table, not their sum: where it is
//! low, more shards than cores carry more connections. Rings are locked memory: where that is scarce, they are smaller.

use crate::config::Config;
use crate::limits;
use crate::probe::Kernel;

/// Ring sizes, the largest first: submissions, completions, receive buffers at most, accepts in flight.
///
/// A small ring costs speed under load, nothing else: a full submission queue is submitted early, completions that do
/// not fit are kept by the kernel, a receive without a buffer is started again.
const RINGS: [Ring; 4] = [
    Ring { submissions: 4096, completions: 16_384, receive_buffers: 32_768, accepts: 64 },
    Ring { submissions: 1024, completions: 4096, receive_buffers: 1024, accepts: 32 },
    Ring { submissions: 512, completions: 2048, receive_buffers: 256, accepts: 16 },
    Ring { submissions: 256, completions: 512, receive_buffers: 128, accepts: 8 },
];
/// The size to begin with when shards share cores: there are many of them.
const CROWDED: usize = 2;
/// Locked memory of one shard beside its own ring, in bytes: the rings of its executor (measured on Linux 6.18).
const EXECUTOR_LOCKED_BYTES: u64 = 64 * 1024;
/// Ordinary descriptors of one shard: listener, eventfd, its own ring and those of its executor (measured).
const SHARD_DESCRIPTORS: u64 = 12;
/// Ordinary descriptors beside the shards': standard streams, admin address, link, library files.
const PROCESS_DESCRIPTORS: u64 = 128;
/// Memory that the shards' free send buffers may take together, in bytes.
const POOLS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Of which one shard gets between these.
const POOL_BYTES: std::ops::RangeInclusive<usize> = 64 * 1024..=1024 * 1024;

/// One shard's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// Submissions gathered before the kernel is entered.
    pub submissions: u32,
    /// Completions that fit before the kernel keeps them on a list of its own.
    pub completions: u32,
    /// Receive buffers; a power of two.
    pub receive_buffers: u16,
    /// Accepts in flight: most connections taken in one turn.
    pub accepts: u16,
}

impl Ring {
    /// Locked memory that a shard with such a ring takes, in bytes: 64 a submission and 4 for its place in the
    /// queue, 16 a completion and a receive buffer, a page of heads and tails (io_uring_setup(2)).
    #[must_use]
    pub fn locked_bytes(&self) -> u64 {
        let pages = |bytes: u64| bytes.div_ceil(4096) * 4096;
        pages(u64::from(self.submissions) * 64)
            + pages(u64::from(self.completions) * 16 + u64::from(self.submissions) * 4 + 4096)
            + pages(u64::from(self.receive_buffers) * 16)
            + EXECUTOR_LOCKED_BYTES
    }
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How many shards.
    pub shards: usize,
    /// How many cores they share, each with a listener; shard n runs on core n modulo cores.
    pub cores: usize,
    /// Connections that one shard may hold: its share, rounded up.
    pub connections_a_shard: usize,
    /// Direct descriptors in the table of one shard's ring.
    pub sockets_a_shard: u32,
    /// Each shard's ring.
    pub ring: Ring,
    /// Memory that one shard's free send buffers may take, in bytes.
    pub pool_bytes_max: usize,
}

impl Plan {
    /// Handshakes that one shard may have in flight, where a core may have so many.
    #[must_use]
    pub fn handshakes_a_shard(&self, a_core: u32) -> usize {
        (a_core as usize * self.cores / self.shards).max(1)
    }

    /// Fits `config` to the machine.
    ///
    /// # Errors
    /// A sentence with the knob, what it needs, the limit, and what would do.
    pub fn new(config: &Config, kernel: &Kernel) -> Result<Self, String> {
        let shards = shards(config, kernel)?;
        let connections_a_shard = config.connections_max.div_ceil(shards);
        let needed = (connections_a_shard + limits::SOCKETS_SPARE) as u64;
        if needed > kernel.descriptors_max {
            return Err(format!(
                "--connections-max: {} on {shards} shards needs {needed} direct descriptors a shard, the limit \
                 (ulimit -n) is {}; raise --shards to {} (or leave it out) or raise the limit; see tuning/",
                config.connections_max,
                kernel.descriptors_max,
                shards_for(config.connections_max, kernel),
            ));
        }
        let ordinary = PROCESS_DESCRIPTORS + shards as u64 * SHARD_DESCRIPTORS;
        if ordinary > kernel.descriptors_max {
            return Err(format!(
                "--shards: {shards} need {ordinary} descriptors, the limit (ulimit -n) is {}; raise it or run fewer \
                 shards; see tuning/",
                kernel.descriptors_max
            ));
        }
        Ok(Self {
            shards,
            cores: kernel.cores.min(shards),
            connections_a_shard,
            sockets_a_shard: needed as u32,
            ring: ring(config, kernel, shards)?,
            pool_bytes_max: (POOLS_BYTES_MAX / shards)
                .clamp(*POOL_BYTES.start(), *POOL_BYTES.end()),
        })
    }
}

/// As many as were asked for; else one a core, or as many as the descriptor limit makes necessary.
fn shards(config: &Config, kernel: &Kernel) -> Result<usize, String> {
    if let Some(shards) = config.shards {
        return Ok(shards);
    }
    let shards = kernel.cores.max(shards_for(config.connections_max, kernel));
    if shards > limits::SHARDS_MAX {
        return Err(format!(
            "--connections-max: {} needs {shards} shards under the limit of {} descriptors (ulimit -n), an edge has \
             at most {}; raise the limit; see tuning/",
            config.connections_max,
            kernel.descriptors_max,
            limits::SHARDS_MAX
        ));
    }
    Ok(shards)
}

/// Shards that `connections` need under the descriptor limit.
fn shards_for(connections: usize, kernel: &Kernel) -> usize {
    let room = kernel.descriptors_max.saturating_sub(limits::SOCKETS_SPARE as u64).max(1);
    (connections as u64).div_ceil(room) as usize
}

/// The largest ring that the locked memory has room for.
fn ring(config: &Config, kernel: &Kernel, shards: usize) -> Result<Ring, String> {
    let first = if shards > kernel.cores { CROWDED } else { 0 };
    let wanted = RINGS[first..].iter().map(|ring| Ring {
        receive_buffers: ring.receive_buffers.min(config.receive_buffers),
        ..*ring
    });
    let each = |ring: &Ring| ring.locked_bytes() * shards as u64;
    let Some(limit) = kernel.locked_bytes_max else {
        return wanted.take(1).next().ok_or_else(String::new);
    };
    wanted.clone().find(|ring| each(ring) <= limit).ok_or_else(|| {
        let least = wanted.map(|ring| each(&ring)).min().unwrap_or_default();
        format!(
            "--shards: {shards} need at least {} KiB of locked memory, the limit (ulimit -l) is {} KiB; raise it, or \
             run fewer shards; see tuning/",
            least / 1024,
            limit / 1024
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(connections: usize, descriptors: u64, locked_kib: Option<u64>) -> Result<Plan, String> {
        let config = Config { connections_max: connections, ..Config::default() };
        let kernel = Kernel {
            cores: 2,
            descriptors_max: descriptors,
            locked_bytes_max: locked_kib.map(|kib| kib * 1024),
            ..Kernel::capable()
        };
        Plan::new(&config, &kernel)
    }

    #[test]
    fn a_high_limit_gives_a_shard_to_each_core_and_a_low_one_as_many_as_it_takes() {
        let roomy = plan(1_000_000, 1_048_576, None).unwrap();
        assert_eq!((roomy.shards, roomy.connections_a_shard), (2, 500_000));
        assert_eq!(roomy.ring, Ring { receive_buffers: 4096, ..RINGS[0] });
        let tight = plan(1_000_000, 20_000, None).unwrap();
        assert_eq!((tight.shards, tight.connections_a_shard), (51, 19_608));
        assert!(u64::from(tight.sockets_a_shard) <= 20_000);
        assert_eq!(tight.ring, RINGS[CROWDED]);
    }

    #[test]
    fn scarce_locked_memory_makes_rings_small_and_too_little_is_named() {
        assert_eq!(plan(10_000, 20_000, Some(8192)).unwrap().ring.submissions, 4096);
        assert_eq!(plan(10_000, 20_000, Some(1024)).unwrap().ring.submissions, 1024);
        assert_eq!(plan(1_000_000, 20_000, Some(8192)).unwrap().ring, RINGS[CROWDED]);
        assert_eq!(plan(1_000_000, 20_000, Some(6144)).unwrap().ring, RINGS[3]);
        let told = plan(1_000_000, 20_000, Some(1024)).unwrap_err();
        assert!(
            told.starts_with("--shards: 51 need at least ") && told.contains("is 1024 KiB"),
            "{told}"
        );
    }

    #[test]
    fn what_the_limits_cannot_carry_is_refused_with_what_would_do() {
        let config = Config { connections_max: 100_000, shards: Some(2), ..Config::default() };
        let told = Plan::new(&config, &Kernel { descriptors_max: 20_000, ..Kernel::capable() })
            .unwrap_err();
        assert!(told.contains("needs 50128 direct descriptors a shard"), "{told}");
        assert!(told.contains("raise --shards to 6 "), "{told}");
        let told = plan(16_000_000, 1024, None).unwrap_err();
        assert!(told.contains("an edge has at most 4096"), "{told}");
        let told = plan(1_000_000, 1024, None).unwrap_err();
        assert!(told.starts_with("--shards: 1117 need 13532 descriptors"), "{told}");
    }

    #[test]
    fn connections_are_shared_out_with_none_left_over() {
        let config = Config { connections_max: 10, shards: Some(3), ..Config::default() };
        let plan = Plan::new(&config, &Kernel::capable()).unwrap();
        assert_eq!(plan.connections_a_shard, 4);
        assert_eq!(plan.sockets_a_shard as usize, 4 + limits::SOCKETS_SPARE);
    }
}
