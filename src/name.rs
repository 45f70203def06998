//! Domain names, normalised once, so that every protocol and every list speaks of the same thing.
//!
//! Fails closed: whatever is not a host name by these rules is [`NotAName`], never a name that matches nothing.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// A host name in the one form that is compared: lower case, IDNA A-labels, no trailing dot.
///
/// 1 to 253 octets in labels of 1 to 63 (RFC 1035, section 2.3.4). Underscores are allowed, since names of
/// services use them (RFC 8552).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(Arc<str>);

/// Why some octets are not a [`DomainName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAName {
    /// Nothing, or a dot alone.
    Empty,
    /// An IPv4 or IPv6 literal, with or without brackets: an address names nobody.
    IpLiteral,
    /// An octet that no host name holds, or an invalid internationalised label (RFC 5891, section 5).
    Character,
    /// An empty label, or one of over 63 octets (RFC 1035, section 2.3.4).
    Label,
    /// More than 253 octets (RFC 1035, section 2.3.4).
    TooLong,
}

impl DomainName {
    /// The name that `octets` spell, in whatever case, with or without one trailing dot.
    pub fn parse(octets: &[u8]) -> Result<Self, NotAName> {
        let octets = octets.strip_suffix(b".").unwrap_or(octets);
        if octets.is_empty() {
            return Err(NotAName::Empty);
        }
        let text = str::from_utf8(octets).map_err(|_| NotAName::Character)?;
        if is_ip_literal(text) {
            return Err(NotAName::IpLiteral);
        }
        if text.is_ascii() && !text.split('.').any(is_a_label) {
            return Self::from_ascii(text);
        }
        let ascii = idna::domain_to_ascii_cow(octets, idna::AsciiDenyList::EMPTY).map_err(|_| NotAName::Character)?;
        if is_ip_literal(&ascii) {
            return Err(NotAName::IpLiteral);
        }
        Self::from_ascii(&ascii)
    }

    fn from_ascii(text: &str) -> Result<Self, NotAName> {
        if text.len() > MAX_NAME {
            return Err(NotAName::TooLong);
        }
        if text.split('.').any(|label| label.is_empty() || label.len() > MAX_LABEL) {
            return Err(NotAName::Label);
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
            return Err(NotAName::Character);
        }
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Ok(Self(text.to_ascii_lowercase().into()));
        }
        Ok(Self(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This name and every name above it, longest first: `a.b.c`, `b.c`, `c`.
    pub fn suffixes(&self) -> impl Iterator<Item = &str> {
        let mut rest = Some(self.as_str());
        std::iter::from_fn(move || {
            let name = rest?;
            rest = name.split_once('.').map(|(_, above)| above);
            Some(name)
        })
    }
}

fn is_a_label(label: &str) -> bool {
    label.len() >= 4 && label.as_bytes().first_chunk::<4>().is_some_and(|start| start.eq_ignore_ascii_case(b"xn--"))
}

fn is_ip_literal(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let inner = inner.split('%').next().unwrap_or(inner);
    inner.parse::<Ipv4Addr>().is_ok() || inner.parse::<Ipv6Addr>().is_ok() || is_number(inner)
}

/// What `inet_aton` would take for an address: a last label of digits, or `0x` and hexadecimal digits.
fn is_number(text: &str) -> bool {
    let last = text.rsplit('.').next().unwrap_or(text);
    let hex = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()),
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NotAName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::IpLiteral => "it is an IP address",
            Self::Character => "it holds a character that no host name may hold",
            Self::Label => "a label is empty or longer than 63 octets",
            Self::TooLong => "it is longer than 253 octets",
        })
    }
}

impl std::error::Error for NotAName {}

/// One way to name hosts in a list or a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// `example.com`: that name alone.
    Exact(DomainName),
    /// `*.example.com`: every name below it.
    Below(DomainName),
    /// `.example.com`: the name and every name below it.
    Tree(DomainName),
}

impl Pattern {
    /// Reads `example.com`, `*.example.com` or `.example.com`.
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        if let Some(name) = text.strip_prefix("*.") {
            return DomainName::parse(name.as_bytes()).map(Self::Below);
        }
        match text.strip_prefix('.') {
            Some(name) => DomainName::parse(name.as_bytes()).map(Self::Tree),
            None => DomainName::parse(text.as_bytes()).map(Self::Exact),
        }
    }

    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Exact(own) => own == name,
            Self::Below(own) => is_below(name.as_str(), own.as_str()),
            Self::Tree(own) => own == name || is_below(name.as_str(), own.as_str()),
        }
    }
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Tree(name) => write!(f, ".{name}"),
        }
    }
}

const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
