//! What one entry of a source says, whatever its format.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::{IpNet, Ipv4Net};

use crate::name::{NotAName, Pattern, normalise};

/// One entry, as a source wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    pub what: What<'a>,
    pub sense: Sense,
    /// `None`: never.
    pub expires: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// A normalised name.
    Name(Reach, Cow<'a, str>),
    /// Without host bits, and never an IPv4 prefix in IPv6 clothes.
    Prefix(IpNet),
}

/// How far a name reaches (SPEC V3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// `example.com`
    Exact,
    /// `*.example.com`
    Below,
    /// `.example.com`
    Tree,
}

/// Whether an entry puts something on its list or takes it off.
///
/// An exception (`@@||name^`, `rpz-passthru.`) makes its own source silent about a name. It never turns the verdict
/// of the list around, and never touches what another source or list says: nobody who writes a block list can grant
/// an Allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sense {
    Holds,
    Exception,
}

/// Why a line is not an entry. Its line is reported and skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    Name(NotAName),
    /// A slash, and no address prefix.
    Prefix,
    Date,
    /// Not of the form that the format wants; says which.
    Form(&'static str),
    /// Lawful in its format, but nothing that a list of names and addresses can say.
    Unsupported(&'static str),
    TooLong,
    NotUtf8,
}

impl<'a> Entry<'a> {
    pub fn name(reach: Reach, name: &'a str) -> Result<Self, Bad> {
        let name = normalise(name.as_bytes()).map_err(Bad::Name)?;
        Ok(Self { what: What::Name(reach, name), sense: Sense::Holds, expires: None })
    }

    pub fn prefix(prefix: IpNet) -> Self {
        Self { what: What::Prefix(canonical(prefix)), sense: Sense::Holds, expires: None }
    }

    /// An address, a prefix, `example.com`, `*.example.com` or `.example.com`.
    pub fn parse(text: &'a str) -> Result<Self, Bad> {
        if let Some(prefix) = parse_prefix(text)? {
            return Ok(Self::prefix(prefix));
        }
        if let Some(below) = text.strip_prefix("*.") {
            return Self::name(Reach::Below, below);
        }
        match text.strip_prefix('.') {
            Some(tree) => Self::name(Reach::Tree, tree),
            None => Self::name(Reach::Exact, text),
        }
    }

    pub fn with_expiry(self, expires: Option<SystemTime>) -> Self {
        Self { expires, ..self }
    }

    pub fn as_exception(self) -> Self {
        Self { sense: Sense::Exception, ..self }
    }

    /// `example.com` made `.example.com`, for a list with `subdomains = true`.
    pub fn widened(mut self) -> Self {
        if let What::Name(reach @ Reach::Exact, _) = &mut self.what {
            *reach = Reach::Tree;
        }
        self
    }
}

/// An address or a prefix; `None` if the text is neither and has no slash.
pub fn parse_prefix(text: &str) -> Result<Option<IpNet>, Bad> {
    // Nothing else that begins so is an address, and most entries are names.
    if !text.bytes().next().is_some_and(|b| b.is_ascii_hexdigit() || b == b':') {
        return Ok(None);
    }
    if text.contains('/') {
        return text.parse().map(Some).map_err(|_| Bad::Prefix);
    }
    Ok(text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Without host bits, and as the IPv4 prefix that an IPv4-mapped one stands for (RFC 4291, section 2.5.5.2).
pub fn canonical(prefix: IpNet) -> IpNet {
    let prefix = prefix.trunc();
    let mapped = match prefix {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => v6.addr().to_ipv4_mapped(),
        _ => None,
    };
    let as_v4 = mapped.and_then(|address| Ipv4Net::new(address, prefix.prefix_len() - 96).ok());
    as_v4.map_or(prefix, IpNet::V4)
}

impl<'a> From<&'a Pattern> for Entry<'a> {
    fn from(pattern: &'a Pattern) -> Self {
        let (reach, name) = match pattern {
            Pattern::Exact(name) => (Reach::Exact, name),
            Pattern::Below(name) => (Reach::Below, name),
            Pattern::Tree(name) => (Reach::Tree, name),
        };
        Self { what: What::Name(reach, Cow::Borrowed(name.as_str())), sense: Sense::Holds, expires: None }
    }
}

impl fmt::Display for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sense == Sense::Exception {
            f.write_str("not ")?;
        }
        match &self.what {
            What::Name(Reach::Exact, name) => write!(f, "{name}"),
            What::Name(Reach::Below, name) => write!(f, "*.{name}"),
            What::Name(Reach::Tree, name) => write!(f, ".{name}"),
            What::Prefix(prefix) => write!(f, "{prefix}"),
        }
    }
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(why) => write!(f, "not a host name: {why}"),
            Self::Prefix => f.write_str("not an address prefix"),
            Self::Date => f.write_str("the date is not YYYY-MM-DDTHH:MM:SSZ, 0 or empty"),
            Self::Form(wanted) => write!(f, "not {wanted}"),
            Self::Unsupported(what) => write!(f, "{what}"),
            Self::TooLong => write!(f, "longer than {} octets", super::reader::MAX_LINE),
            Self::NotUtf8 => f.write_str("not UTF-8"),
        }
    }
}

impl std::error::Error for Bad {}
