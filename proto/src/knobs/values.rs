//! Parsers of single values, for `#[arg(value_parser = ..)]`: text in, a value in range out, and otherwise
//! a reason that goes on after the value.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;

/// Why a value does not fit its knob, worded to go on after the value: `is not a duration such as 30s`.
/// Value parsers that return it get the best sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit(pub String);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

/// Parser of a duration with its unit (`30s`, `1m 30s`, `250ms`), both ends allowed.
pub fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&str) -> Result<Duration, Unfit> + Clone + Send + Sync + 'static {
    move |text| {
        let allowed = || {
            let (min, max) = (*range.start(), *range.end());
            format!(
                "allowed are {} to {}",
                humantime::format_duration(min),
                humantime::format_duration(max)
            )
        };
        match humantime::parse_duration(text) {
            Ok(value) if range.contains(&value) => Ok(value),
            Ok(_) => Err(Unfit(format!("is out of range; {}", allowed()))),
            Err(_) => Err(Unfit(format!("is not a duration such as 30s; {}", allowed()))),
        }
    }
}

/// Parser of a size in bytes, with a unit (`64KiB`, `1MiB`, `64kB` for 64,000) or as a plain number.
pub fn byte_size(
    range: RangeInclusive<usize>,
) -> impl Fn(&str) -> Result<usize, Unfit> + Clone + Send + Sync + 'static {
    move |text| {
        let allowed = || {
            let (min, max) = (*range.start() as u64, *range.end() as u64);
            format!("allowed are {} to {}", ByteSize(min), ByteSize(max))
        };
        match text.parse::<ByteSize>() {
            Ok(ByteSize(bytes)) => usize::try_from(bytes)
                .ok()
                .filter(|bytes| range.contains(bytes))
                .ok_or_else(|| Unfit(format!("is out of range; {}", allowed()))),
            Err(_) => Err(Unfit(format!("is not a size such as 64KiB; {}", allowed()))),
        }
    }
}

/// Parser of a count: digits, which may be grouped by underscores (`1_000_000`). Name the field's type,
/// `count::<u32>(1..=64)`: clap compares types only when it runs.
///
/// # Panics
/// When the range does not fit `N`.
pub fn count<N>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<N, Unfit> + Clone + Send + Sync + 'static
where
    N: TryFrom<u64> + 'static,
{
    assert!(N::try_from(*range.end()).is_ok(), "the range of a count fits its type");
    move |text| {
        let digits = text.replace('_', "");
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let (min, max) = (range.start(), range.end());
        if !is_number {
            return Err(Unfit(format!("is not a number; allowed are {min} to {max}")));
        }
        // Digits too many for a u64 are out of any range.
        let value = digits.parse().ok().filter(|value| range.contains(value));
        value
            .and_then(|value| N::try_from(value).ok())
            .ok_or_else(|| Unfit(format!("is out of range; allowed are {min} to {max}")))
    }
}

/// Parser of an identifier that the link or the client protocol bounds: UTF-8 without control
/// characters, its length in bytes within `range`.
pub fn identifier(
    range: RangeInclusive<usize>,
) -> impl Fn(&str) -> Result<String, Unfit> + Clone + Send + Sync + 'static {
    move |text| {
        let (min, max) = (range.start(), range.end());
        if text.chars().any(char::is_control) {
            Err(Unfit("has control characters in it".to_owned()))
        } else if !range.contains(&text.len()) {
            Err(Unfit(format!("has {} bytes; allowed are {min} to {max}", text.len())))
        } else {
            Ok(text.to_owned())
        }
    }
}

/// Parser of an address to listen on.
///
/// # Errors
/// When `text` is not an IP address and a port. Names are not looked up: which of a host's addresses
/// would be meant?
pub fn socket_address(text: &str) -> Result<SocketAddr, Unfit> {
    text.parse()
        .map_err(|_| Unfit("is not an address and port such as 127.0.0.1:8080 or [::]:8080".into()))
}
