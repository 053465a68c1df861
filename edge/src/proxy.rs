//! The PROXY protocol, versions 1 and 2: what a balancer says of its client, before the client's first byte.
//!
//! haproxy's proxy-protocol.txt (sections 2.1 and 2.2). Free of I/O: [`read_header`] is shown what has arrived. Who has to begin with a
//! header is the operator's word (`--proxy-protocol-from`); from anybody else a header is plain bad input, so this module is not asked.
//!
//! Of libraries `proxy-header` 0.1 comes nearest, and allocates nothing; but it takes up to 64 KiB of a header, notices other protocols
//! late, lets `+80` pass as a port, and refuses health checks (LOCAL) with a family of their own, which section 2.2 wants taken.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// Longest header of version 1, in bytes, its line end included (section 2.1).
pub const V1_BYTES_MAX: usize = 107;
/// Longest header of version 2 that is taken, in bytes. Addresses need 232 at most; the rest leaves room for what balancers say
/// besides (names, TLS, a short certificate), which is passed over.
pub const V2_BYTES_MAX: usize = 4096;

const V1_START: &[u8] = b"PROXY ";
/// Chosen so that no other protocol begins with it.
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length of what follows.
const V2_FIXED_BYTES: usize = V2_START.len() + 4;

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Where the client connects from. `None`: the connection is the balancer's own (a health check), or it does not know or say;
    /// the socket's address counts then.
    pub source: Option<SocketAddr>,
    /// Length of the header: the client's first byte comes behind it.
    pub header_bytes: usize,
}

/// What is wrong with the beginning of a connection that has to be a header. The connection is to be closed without an answer
/// (section 2): what the client speaks is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// This is no header: the balancer does not speak the protocol, or somebody went around it.
    Absent,
    /// A header that says something section 2 does not allow.
    Malformed,
    /// A header longer than [`V1_BYTES_MAX`] or [`V2_BYTES_MAX`].
    TooLong,
}

impl Fault {
    /// One short sentence, for logs.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::Absent => "no PROXY header, which has to come first from this address",
            Self::Malformed => "the PROXY header is malformed",
            Self::TooLong => "the PROXY header is too long",
        }
    }
}

/// Reads the header at the front of `input`, everything that has arrived so far.
///
/// `None` when `input` ends too early: call again with more, at most [`V2_BYTES_MAX`] bytes in all. A fault is told as soon as it shows, and
/// is the same however the bytes were cut. Looks at nothing behind the header and does not allocate.
///
/// # Errors
/// See [`Fault`].
pub fn read_header(input: &[u8]) -> Result<Option<Header>, Fault> {
    if let Some(rest) = input.strip_prefix(V1_START) {
        read_v1(rest)
    } else if input.starts_with(V2_START) {
        read_v2(input)
    } else if V1_START.starts_with(input) || V2_START.starts_with(input) {
        Ok(None)
    } else {
        Err(Fault::Absent)
    }
}

/// A line for people; `rest` is what comes after [`V1_START`].
fn read_v1(rest: &[u8]) -> Result<Option<Header>, Fault> {
    let rest_bytes_max = V1_BYTES_MAX - V1_START.len();
    let Some(end) = rest.iter().take(rest_bytes_max).position(|&byte| byte == b'\n') else {
        return if rest.len() < rest_bytes_max { Ok(None) } else { Err(Fault::TooLong) };
    };
    let line = rest[..end].strip_suffix(b"\r").ok_or(Fault::Malformed)?;
    let source = source_v1(line).ok_or(Fault::Malformed)?;
    Ok(Some(Header { source, header_bytes: V1_START.len() + end + 1 }))
}

/// The client's address in the line of version 1; the outer `None` when the line is malformed.
fn source_v1(line: &[u8]) -> Option<Option<SocketAddr>> {
    // Whatever follows UNKNOWN is to be ignored.
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Some(None);
    }
    let mut words = str::from_utf8(line).ok()?.split(' ');
    let addresses = match words.next()? {
        "TCP4" => addresses_v1::<Ipv4Addr>,
        "TCP6" => addresses_v1::<Ipv6Addr>,
        _ => return None,
    };
    let source = addresses(&mut words)?;
    words.next().is_none().then_some(Some(source))
}

/// Takes source and destination, addresses before ports, and returns the source.
fn addresses_v1<'a, Ip: FromStr + Into<IpAddr>>(
    words: &mut impl Iterator<Item = &'a str>,
) -> Option<SocketAddr> {
    let mut address = || words.next()?.parse::<Ip>().ok();
    let (source, _destination) = (address()?, address()?);
    let mut port = || words.next().and_then(port_v1);
    let (source_port, _destination_port) = (port()?, port()?);
    Some(SocketAddr::new(source.into(), source_port))
}

/// A port in decimal: digits only, no leading zero.
fn port_v1(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|byte| byte.is_ascii_digit());
    let shortest = word == "0" || !word.starts_with('0');
    (plain && shortest).then(|| word.parse().ok())?
}

/// A binary block; `input` starts with [`V2_START`].
fn read_v2(input: &[u8]) -> Result<Option<Header>, Fault> {
    let Some(&[version_command, family, length_high, length_low]) =
        input.get(V2_START.len()..).and_then(<[u8]>::first_chunk)
    else {
        return Ok(None);
    };
    // LOCAL (0) and PROXY (1) of version 2.
    let local = match version_command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Fault::Malformed),
    };
    let block_bytes = usize::from(u16::from_be_bytes([length_high, length_low]));
    let header_bytes = V2_FIXED_BYTES + block_bytes;
    // The family of LOCAL says nothing, whatever it is.
    let family = if local { Family::Unspecified } else { Family::from_byte(family)? };
    if block_bytes < family.addresses_bytes() {
        return Err(Fault::Malformed);
    }
    if header_bytes > V2_BYTES_MAX {
        return Err(Fault::TooLong);
    }
    let Some(block) = input.get(V2_FIXED_BYTES..header_bytes) else { return Ok(None) };
    Ok(Some(Header { source: family.source(block), header_bytes }))
}

/// Address family and transport of version 2.
#[derive(Clone, Copy)]
enum Family {
    /// Not said, or not of TCP: section 2.2 lets a receiver ignore what it does not do.
    Unspecified,
    Tcp4,
    Tcp6,
    /// Has paths for addresses.
    Unix,
}

impl Family {
    fn from_byte(byte: u8) -> Result<Self, Fault> {
        match byte {
            0x00 | 0x12 | 0x22 => Ok(Self::Unspecified),
            0x11 => Ok(Self::Tcp4),
            0x21 => Ok(Self::Tcp6),
            0x31 | 0x32 => Ok(Self::Unix),
            _ => Err(Fault::Malformed),
        }
    }

    /// What source and destination take of the block, in bytes.
    const fn addresses_bytes(self) -> usize {
        match self {
            Self::Unspecified => 0,
            Self::Tcp4 => 2 * (4 + 2),
            Self::Tcp6 => 2 * (16 + 2),
            Self::Unix => 2 * 108,
        }
    }

    /// The client's address: in the block both addresses come before both ports.
    fn source(self, block: &[u8]) -> Option<SocketAddr> {
        match self {
            Self::Tcp4 => source_v2::<4, _>(block, Ipv4Addr::from),
            Self::Tcp6 => source_v2::<16, _>(block, Ipv6Addr::from),
            Self::Unspecified | Self::Unix => None,
        }
    }
}

fn source_v2<const IP_BYTES: usize, Ip: Into<IpAddr>>(
    block: &[u8],
    ip: impl Fn([u8; IP_BYTES]) -> Ip,
) -> Option<SocketAddr> {
    let (source, rest) = block.split_first_chunk::<IP_BYTES>()?;
    let (_destination, rest) = rest.split_first_chunk::<IP_BYTES>()?;
    let port = rest.first_chunk()?;
    Some(SocketAddr::new(ip(*source).into(), u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(version_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = (block.len() as u16).to_be_bytes();
        [V2_START, &[version_command, family], &length, block].concat()
    }

    /// What `input` comes to; the same has to come out byte by byte, and nothing before its end.
    fn read(input: &[u8]) -> Result<Option<Header>, Fault> {
        let whole = read_header(input);
        let first = (0..input.len()).map(|end| read_header(&input[..end])).find(|r| *r != Ok(None));
        assert_eq!(first.unwrap_or(whole), whole, "cut and in one: {input:?}");
        whole
    }

    /// The source in `header`, which has to be whole exactly at its end, with a client's bytes behind it or not.
    fn source(header: &[u8]) -> Option<SocketAddr> {
        for cut in 0..header.len() {
            assert_eq!(read_header(&header[..cut]), Ok(None), "cut at {cut}");
        }
        let read = read_header(header).unwrap().expect("a whole header");
        assert_eq!(read.header_bytes, header.len());
        let followed = [header, b"GET /ws HTTP/1.1\r\n"].concat();
        assert_eq!(read_header(&followed), Ok(Some(read)));
        read.source
    }

    fn address(text: &str) -> Option<SocketAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn the_lines_of_section_2_1_are_read_wherever_they_are_cut() {
        let longest4 = b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
        assert_eq!(source(longest4), address("255.255.255.255:65535"));
        let full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let longest6 = format!("PROXY TCP6 {full} {full} 65535 65535\r\n");
        assert_eq!(source(longest6.as_bytes()), address(&format!("[{full}]:65535")));
        assert_eq!(source(b"PROXY TCP6 2001:db8::1 ::1 0 443\r\n"), address("[2001:db8::1]:0"));
        assert_eq!(source(b"PROXY UNKNOWN\r\n"), None);
        let longest = format!("PROXY UNKNOWN {full} {full} 65535 65535\r\n");
        assert_eq!((source(longest.as_bytes()), longest.len()), (None, V1_BYTES_MAX));
    }

    #[test]
    fn every_family_of_section_2_2_is_read_wherever_it_is_cut() {
        let four = [192, 0, 2, 1, 10, 0, 0, 1, 0xc0, 0x00, 0x01, 0xbb];
        assert_eq!(source(&v2(0x21, 0x11, &four)), address("192.0.2.1:49152"));
        let six = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[9], &[7; 16], &[0, 80, 1, 0xbb]].concat();
        assert_eq!(source(&v2(0x21, 0x21, &six)), address("[2001:db8::9]:80"));
        for (family, addresses_bytes) in
            [(0x00, 0), (0x12, 12), (0x22, 36), (0x31, 216), (0x32, 216)]
        {
            assert_eq!(source(&v2(0x21, family, &vec![7; addresses_bytes])), None, "{family:#x}");
        }
    }

    #[test]
    fn what_comes_behind_the_addresses_is_passed_over_up_to_the_bound() {
        let mut block = vec![192, 0, 2, 1, 10, 0, 0, 1, 0, 80, 1, 0xbb];
        // A checksum (PP2_TYPE_CRC32C) that is wrong, then what is no TLV at all.
        block.extend_from_slice(&[0x03, 0, 4, 1, 2, 3, 4, 0xee, 0xff]);
        assert_eq!(source(&v2(0x21, 0x11, &block)), address("192.0.2.1:80"));
        block.resize(V2_BYTES_MAX - V2_FIXED_BYTES, 0);
        assert_eq!(source(&v2(0x21, 0x11, &block)), address("192.0.2.1:80"));
        block.push(0);
        let too_long = v2(0x21, 0x11, &block);
        assert_eq!(read_header(&too_long[..V2_FIXED_BYTES - 1]), Ok(None));
        assert_eq!(read_header(&too_long[..V2_FIXED_BYTES]), Err(Fault::TooLong), "at once");
    }

    #[test]
    fn a_health_check_of_the_balancer_is_taken_whatever_its_family() {
        for family in [0x00, 0x11, 0x31, 0xff] {
            assert_eq!(source(&v2(0x20, family, &[])), None);
            assert_eq!(source(&v2(0x20, family, &[1; 12])), None);
        }
    }

    #[test]
    fn another_protocol_is_told_at_the_first_byte_that_shows_it() {
        for (input, shows_at) in [
            (&b"GET /ws HTTP/1.1\r\n"[..], 1),
            (b"PRI * HTTP/2.0", 3),
            (b"PROXYTCP4 ", 6),
            (b"proxy TCP4", 1),
            (b"\r\n\r\nGET", 5),
            (b"\x16\x03\x01\x02\x00\x01", 1),
        ] {
            assert_eq!(read_header(&input[..shows_at - 1]), Ok(None));
            assert_eq!(read_header(&input[..shows_at]), Err(Fault::Absent));
            assert_eq!(read(input), Err(Fault::Absent));
        }
    }

    #[test]
    fn lines_that_section_2_1_does_not_allow_are_malformed() {
        for line in [
            "",
            "TCP4",
            "TCP4 192.0.2.1 10.0.0.1 1",
            "TCP4 192.0.2.1 10.0.0.1 1 2 3",
            "TCP4 192.0.2.1 10.0.0.1 1 2 ",
            "TCP4  192.0.2.1 10.0.0.1 1 2",
            "TCP4 192.0.2.1 10.0.0.1 +1 2",
            "TCP4 192.0.2.1 10.0.0.1 01 2",
            "TCP4 192.0.2.1 10.0.0.1 1 65536",
            "TCP4 192.0.2.01 10.0.0.1 1 2",
            "TCP4 192.0.2.256 10.0.0.1 1 2",
            "TCP4 ::1 ::1 1 2",
            "TCP6 192.0.2.1 10.0.0.1 1 2",
            "TCP6 fe80::1%eth0 ::1 1 2",
            "TCP6 [::1] ::1 1 2",
            "tcp4 192.0.2.1 10.0.0.1 1 2",
            "UDP4 192.0.2.1 10.0.0.1 1 2",
            "UNKNOWNS",
            "TCP4 192.0.2.1 10.0.0.1 1 2\u{1}",
        ] {
            assert_eq!(
                read(format!("PROXY {line}\r\n").as_bytes()),
                Err(Fault::Malformed),
                "{line}"
            );
        }
        assert_eq!(read(b"PROXY UNKNOWN\n"), Err(Fault::Malformed), "a lone line feed");
        assert_eq!(read(b"PROXY \xff\xfe\r\n"), Err(Fault::Malformed));
        let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        assert_eq!(read_header(&endless[..V1_BYTES_MAX - 1]), Ok(None));
        assert_eq!(read(&endless), Err(Fault::TooLong));
    }

    #[test]
    fn blocks_that_section_2_2_does_not_allow_are_malformed_at_once() {
        for (version_command, family, block_bytes) in [
            (0x11, 0x11, 12),
            (0x22, 0x11, 12),
            (0x2f, 0x11, 12),
            (0x21, 0x13, 12),
            (0x21, 0x41, 12),
            (0x21, 0x10, 12),
            (0x21, 0x01, 0),
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x31, 215),
        ] {
            let bytes = v2(version_command, family, &vec![0; block_bytes]);
            assert_eq!(read(&bytes[..V2_FIXED_BYTES]), Err(Fault::Malformed), "{bytes:?}");
            assert_eq!(read(&bytes), Err(Fault::Malformed));
        }
    }
}
