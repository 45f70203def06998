//! Judging: which Network a packet belongs to, what its address and its name are worth, and what follows.
//!
//! Pure: facts in, a [`Verdict`] with its reason out. Fails closed: see the matrix in [`matrix`].

pub mod bindings;
pub mod by_client;
pub mod judge;
pub mod matrix;
pub mod network;
pub mod protocol;
pub mod rules;
pub mod snapshot;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The worth of the remote address under a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVerdict {
    Allow,
    Block,
}

/// The worth of a name under a policy. `None`: no list names it. That a flow shows no name at all is something
/// else: then no domain verdict exists, and the IP verdict stands (SPEC V8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DomainVerdict {
    Allow,
    Block,
    None,
}

/// How the two verdicts combine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InspectionType {
    PreferIp,
    PreferDomain,
    PreferBoth,
    Explicit,
}

/// What a blocked peer sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropAction {
    Discard,
    IcmpUnreachable,
    TcpReset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Inbound,
    Outbound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Why a verdict is what it is: one code for records, metrics and `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Held for its name although its address would be blocked.
    DomainInspect,
    AllowList,
    BlockList,
    Threat,
    Asn,
    Country,
    Default,
    /// The name decided.
    Domain,
    /// DNS to a resolver that is not authorized.
    Resolver,
    /// No name on an inspected port, and the Network demands one.
    Unidentified,
    /// Began as one of our protocols and cannot be read.
    Unreadable,
    /// A fingerprint rule decided.
    Fingerprint,
    /// Encrypted Client Hello, and the Network blocks it.
    Ech,
    /// UDP on a TLS port, and the Network blocks it.
    Quic,
    /// The name does not belong to the address (SPEC V11).
    Binding,
    /// A private address for a public name (SPEC D4).
    Rebind,
    /// A limit was reached.
    Limit,
}

macro_rules! words {
    ($($kind:ident { $($variant:ident => $word:literal),+ $(,)? })+) => {$(
        impl $kind {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The word that configuration and records use.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    )+};
}

words! {
    IpVerdict { Allow => "allow", Block => "block" }
    DomainVerdict { Allow => "allow", Block => "block", None => "none" }
    InspectionType {
        PreferIp => "prefer-ip", PreferDomain => "prefer-domain", PreferBoth => "prefer-both", Explicit => "explicit",
    }
    DropAction { Discard => "discard", IcmpUnreachable => "icmp-unreachable", TcpReset => "tcp-reset" }
    Direction { Inbound => "inbound", Outbound => "outbound" }
    Transport { Tcp => "tcp", Udp => "udp" }
    Reason {
        DomainInspect => "DOMAIN_INSPECT", AllowList => "ALLOW_LIST", BlockList => "BLOCK_LIST", Threat => "THREAT",
        Asn => "ASN", Country => "COUNTRY", Default => "DEFAULT", Domain => "DOMAIN", Resolver => "RESOLVER",
        Unidentified => "UNIDENTIFIED", Unreadable => "UNREADABLE", Fingerprint => "FINGERPRINT", Ech => "ECH", Quic => "QUIC",
        Binding => "BINDING", Rebind => "REBIND", Limit => "LIMIT",
    }
}

/// What one list or rule says, and which list it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged<V> {
    pub verdict: V,
    pub reason: Reason,
    pub list: Option<Arc<str>>,
}

/// The outcome for a flow, with everything that a record of it must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub pass: bool,
    pub reason: Reason,
    pub ip: IpVerdict,
    /// `None` where no name was found.
    pub domain: Option<DomainVerdict>,
    pub inspection: Option<InspectionType>,
    pub list: Option<Arc<str>>,
}

/// Who opened the flow. Never to be confused with where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub std::net::SocketAddr);

/// Where the client meant the flow to go, before it was captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OrigDst(pub std::net::SocketAddr);

impl ClientAddr {
    pub fn ip(&self) -> IpAddr {
        self.0.ip()
    }
}

impl OrigDst {
    pub fn ip(&self) -> IpAddr {
        self.0.ip()
    }

    pub fn port(&self) -> u16 {
        self.0.port()
    }
}
