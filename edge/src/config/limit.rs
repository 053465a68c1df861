//! What one connection, user and address may do, and how many handshakes a core takes on.

use std::ops::RangeInclusive;
use std::str::FromStr;

use clap::Args;
use hawser_proto::knobs::{Unfit, byte_size, count, identifier};

use crate::meter::{Allowance, BURST_MAX, BYTE_UNIT, Rate};
use crate::quotas::Quota;

/// Beyond this a limit limits nothing.
const RATE_CEILING: u64 = 1_000_000;
/// From one unit of the meter to more than a gigabit.
const BYTES_RANGE: RangeInclusive<usize> = BYTE_UNIT as usize..=128 << 20;

/// The knobs; each stands beside its like in [`super::Config`].
#[derive(Args, Clone, Debug)]
pub struct LimitKnobs {
    /// Frames a second from one connection, pings included; a client above it is not read from until it is within its rate again, so
    /// nothing is lost. Left out: no limit
    #[arg(long, value_name = "NUMBER", value_parser = count::<u32>(1..=RATE_CEILING))]
    pub messages_per_second: Option<u32>,

    /// Bytes a second from one connection, in the same way. Left out: no limit
    #[arg(long, value_name = "SIZE", value_parser = byte_size(BYTES_RANGE))]
    pub bytes_per_second: Option<usize>,

    /// Seconds of its rates that a connection may use at once, 1 to 60. A client that comes back with a backlog needs some
    #[arg(long, value_name = "NUMBER", default_value = "5", value_parser = count::<u32>(1..=60))]
    pub burst_seconds: u32,

    /// Connections from one address (IPv6: one network of 64 bits) at one time; more are answered with 429. Behind a carrier's NAT
    /// thousands share one. Left out: no limit
    #[arg(long, value_name = "NUMBER", value_parser = count::<u32>(1..=RATE_CEILING))]
    pub address_connections_max: Option<u32>,

    /// Connects a second from one address, ten seconds' worth at once; more are answered with 429. Left out: no limit
    #[arg(long, value_name = "NUMBER", value_parser = count::<u32>(1..=RATE_CEILING))]
    pub address_connects_per_second: Option<u32>,

    /// Failures a second of one address (bad requests, bad tokens, broken TLS handshakes), ten seconds' worth at once; beyond that it
    /// gets 429 until they are forgotten. Left out: no limit
    #[arg(long, value_name = "NUMBER", value_parser = count::<u32>(1..=RATE_CEILING))]
    pub address_failures_per_second: Option<u32>,

    /// Connections of one user at one time on this edge; one more is told OVERLOADED and closed with 1013. Left out: no limit
    #[arg(long, value_name = "NUMBER", value_parser = count::<u32>(1..=RATE_CEILING))]
    pub user_connections_max: Option<u32>,

    /// Connects a second of one user on this edge, ten seconds' worth at once, in the same way. Left out: no limit
    #[arg(long, value_name = "NUMBER", value_parser = count::<u32>(1..=RATE_CEILING))]
    pub user_connects_per_second: Option<u32>,

    /// Handshakes in flight a core, from accept to the upgrade; one more is told 503 with Retry-After before anything is done for it
    /// (on a port with TLS: cut off with an alert), so that a storm is answered and does not become a stall. The default bounds the
    /// memory of TLS handshakes to some 100 MB a core
    #[arg(long, value_name = "NUMBER", default_value = "4096", value_parser = count::<u32>(1..=1_000_000))]
    pub handshakes_max: u32,

    /// Compresses WebSocket messages (permessage-deflate) with clients that offer it. Off by default: browsers always offer it, a small
    /// message costs ten times the CPU with it, and payloads that are encrypted do not shrink. Worth it for JSON over narrow networks
    #[arg(long)]
    pub deflate: bool,

    /// How hard to compress, 1 (fastest) to 9 (smallest). The default makes messages of a few KiB about as small as 6 does, long text
    /// at a quarter of its CPU; 1 halves the CPU once more and saves two thirds as much
    #[arg(long, value_name = "NUMBER", default_value = "2", value_parser = count::<u32>(1..=9))]
    pub deflate_level: u32,

    /// Messages below this size are sent as they are, up to 64 KiB. The default is where JSON begins to shrink by a third; what
    /// smaller messages would save is less than the headers of their packet
    #[arg(long, value_name = "SIZE", default_value = "256B", value_parser = byte_size(0..=64 << 10))]
    pub deflate_bytes_min: usize,
}

/// A class of `--rate-classes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateClass {
    /// What a token calls it.
    pub name: String,
    /// As the knob of this name, for its connections.
    pub messages_per_second: Option<u32>,
    /// As the knob of this name, for its connections.
    pub bytes_per_second: Option<usize>,
}

impl FromStr for RateClass {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let mut parts = text.split(':');
        let name = identifier(1..=32)(parts.next().unwrap_or_default())?;
        let mut part = || parts.next().filter(|part| !part.is_empty());
        let messages_per_second = part().map(count::<u32>(1..=RATE_CEILING)).transpose()?;
        let bytes_per_second = part().map(byte_size(BYTES_RANGE)).transpose()?;
        match parts.next() {
            Some(_) => Err(Unfit("is not NAME:MESSAGES:BYTES such as bot:200:1MiB".to_owned())),
            None => Ok(Self { name, messages_per_second, bytes_per_second }),
        }
    }
}

/// Seconds of the rates of addresses and users that may be used at once.
const QUOTA_BURST_SECONDS: u32 = 10;

impl LimitKnobs {
    /// What connections may do, by the number of their class: 0 is that of all who are in none.
    #[must_use]
    pub fn allowances(&self, classes: &[RateClass]) -> Box<[Allowance]> {
        let rate = |per_second| rate(per_second, self.burst_seconds);
        // The range of the knob fits 32 bits.
        let units = |bytes: usize| (bytes as u64).div_ceil(u64::from(BYTE_UNIT)) as u32;
        let allowance = |messages: Option<u32>, bytes: Option<usize>| Allowance {
            messages: messages.map(rate),
            bytes: bytes.map(units).map(rate),
        };
        let others = allowance(self.messages_per_second, self.bytes_per_second);
        let classes = classes
            .iter()
            .map(|class| allowance(class.messages_per_second, class.bytes_per_second));
        std::iter::once(others).chain(classes).collect()
    }

    /// What an address may do.
    #[must_use]
    pub fn address_quota(&self) -> Quota {
        let rate = |per_second| rate(per_second, QUOTA_BURST_SECONDS);
        Quota {
            connections_max: self.address_connections_max,
            connects: self.address_connects_per_second.map(rate),
            failures: self.address_failures_per_second.map(rate),
        }
    }

    /// What a user may do.
    #[must_use]
    pub fn user_quota(&self) -> Quota {
        Quota {
            connections_max: self.user_connections_max,
            connects: self
                .user_connects_per_second
                .map(|per_second| rate(per_second, QUOTA_BURST_SECONDS)),
            failures: None,
        }
    }
}

fn rate(per_second: u32, burst_seconds: u32) -> Rate {
    Rate { per_second, burst: per_second.saturating_mul(burst_seconds).min(BURST_MAX) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::read;
    use super::*;

    #[test]
    fn each_class_has_its_rates_and_those_in_none_the_general_ones() {
        let flags =
            ["--messages-per-second=10", "--burst-seconds=2", "--rate-classes=bot:200:1KiB,staff"];
        let allowances = read(&flags).unwrap().allowances();
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        assert_eq!(
            *allowances,
            [
                Allowance { messages: rate(10, 20), bytes: None },
                Allowance { messages: rate(200, 400), bytes: rate(16, 32) },
                Allowance::default(),
            ]
        );
    }
}
