//! Which web pages may connect (RFC 6455 section 10.2): what browsers tell in Origin, against a list.
//!
//! It keeps a page of another site from using what a browser knows of its user. It keeps out no program that is no
//! browser: such a one sends what it likes, or no Origin at all, and is let in.

use std::fmt;
use std::str::FromStr;

use hawser_proto::knobs::Unfit;

/// One entry of the list: an origin as browsers write it (RFC 6454 section 6.2), or `null`, or all hosts below one.
#[derive(Clone, PartialEq, Eq)]
pub struct AllowedOrigin {
    /// `https://`, when any host below follows; else the whole origin.
    front: String,
    /// `.example.com` or `.example.com:8443`.
    below: Option<String>,
}

impl AllowedOrigin {
    /// Whether this entry lets `origin` in.
    #[must_use]
    pub fn admits(&self, origin: &[u8]) -> bool {
        let Some(below) = &self.below else {
            return origin.eq_ignore_ascii_case(self.front.as_bytes());
        };
        let hosts = origin.len().checked_sub(self.front.len() + below.len());
        let Some(hosts @ 1..) = hosts else { return false };
        let (front, rest) = origin.split_at(self.front.len());
        let (host, back) = rest.split_at(hosts);
        front.eq_ignore_ascii_case(self.front.as_bytes())
            && back.eq_ignore_ascii_case(below.as_bytes())
            && host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte))
    }
}

impl FromStr for AllowedOrigin {
    type Err = Unfit;

    fn from_str(text: &str) -> Result<Self, Unfit> {
        let unfit = || {
            Unfit("is not an origin such as https://app.example.com, https://*.example.com:8443 or null".into())
        };
        if text == "null" {
            return Ok(Self { front: text.to_owned(), below: None });
        }
        let (scheme, host) = text.split_once("://").ok_or_else(unfit)?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        let name = host.strip_prefix("*.").unwrap_or(host);
        let scheme_fits =
            scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if scheme.is_empty() || !scheme_fits || name.is_empty() || !name.bytes().all(plain) {
            return Err(unfit());
        }
        // Browsers leave the port out when it is the scheme's own.
        let own_port = match scheme.to_ascii_lowercase().as_str() {
            "https" => ":443",
            "http" => ":80",
            _ => "",
        };
        let name = name.strip_suffix(own_port).unwrap_or(name);
        if host.starts_with("*.") {
            Ok(Self { front: format!("{scheme}://"), below: Some(format!(".{name}")) })
        } else {
            Ok(Self { front: format!("{scheme}://{name}"), below: None })
        }
    }
}

impl fmt::Debug for AllowedOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.below {
            Some(below) => write!(f, "{}*{below}", self.front),
            None => f.write_str(&self.front),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(entry: &str, origin: &str) -> bool {
        entry.parse::<AllowedOrigin>().unwrap().admits(origin.as_bytes())
    }

    #[test]
    fn an_origin_is_admitted_when_it_is_the_same_in_any_case() {
        assert!(admits("https://app.example.com", "https://app.example.com"));
        assert!(admits("https://App.example.com", "HTTPS://app.Example.com"));
        assert!(admits("https://app.example.com:443", "https://app.example.com"));
        assert!(admits("http://[::1]:8080", "http://[::1]:8080"));
        assert!(admits("null", "null"));
        for other in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.example",
            "https://example.com",
            "null",
            "",
        ] {
            assert!(!admits("https://app.example.com", other), "{other}");
        }
    }

    #[test]
    fn a_star_stands_for_hosts_below_and_for_nothing_else() {
        for below in ["https://a.example.com", "https://a.b.example.com", "https://A.EXAMPLE.com"] {
            assert!(admits("https://*.example.com", below), "{below}");
        }
        for other in [
            "https://example.com",
            "https://.example.com",
            "https://aexample.com",
            "http://a.example.com",
            "https://a.example.com:8443",
            "https://evil.example/.example.com",
            "https://evil.example:1.example.com",
            "https://user@a.example.com",
        ] {
            assert!(!admits("https://*.example.com", other), "{other}");
        }
        assert!(admits("https://*.example.com:8443", "https://a.example.com:8443"));
    }

    #[test]
    fn what_is_no_origin_is_told() {
        for text in [
            "example.com",
            "https://",
            "https://a/",
            "https://a.com/x",
            "https://*",
            "*",
            "https://a*.com",
            "://a",
            "https://u@a",
        ] {
            assert!(text.parse::<AllowedOrigin>().is_err(), "{text}");
        }
    }
}
