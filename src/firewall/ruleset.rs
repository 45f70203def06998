//! A small model of nftables: sets, chains, rules and the expressions that we use, independent of how they are sent.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;

use super::lists::ListSets;

/// One table of family `inet`, replaced whole.
#[derive(Clone, Debug)]
pub struct Ruleset {
    pub table: &'static str,
    pub sets: Vec<Set>,
    /// The sets of the lists that judge, which may be large.
    pub lists: Vec<ListSets>,
    pub chains: Vec<Chain>,
}

/// Keys of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub name: String,
    /// The concatenated parts of the key.
    pub key: Vec<Field>,
    pub kind: SetKind,
    pub elements: Vec<Element>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// Exact keys.
    Hash,
    /// Exact keys, each of which ends at a time of its own.
    Ending,
    /// Ranges in each part of the key.
    Interval,
    /// Exact keys that come and go while the rules stand, each for `timeout` unless it says otherwise; at most `size`.
    Dynamic { timeout: Duration, size: u32 },
    /// Exact keys that come and go while the rules stand, at most `size`; each counts the packets that ask for it.
    Counted { size: u32 },
}

impl SetKind {
    /// Its elements are no part of the ruleset: they come and go while it stands.
    pub fn comes_and_goes(self) -> bool {
        matches!(self, Self::Dynamic { .. } | Self::Counted { .. })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Ipv4,
    Ipv6,
    /// The number of the protocol above IP.
    Protocol,
    /// A port.
    Service,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// One per field of the set's key.
    pub key: Vec<Datum>,
    /// Where the range ends that begins at `key`; sets of kind `Interval` only.
    pub end: Option<Vec<Datum>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Datum {
    Ipv4(Ipv4Addr),
    Ipv6(Ipv6Addr),
    Protocol(u8),
    Service(u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    /// `None`: reached by jumps alone.
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

/// Where a chain hangs in the kernel. Its policy is accept: what no rule takes is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub hook: Hook,
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// The output hook, where a packet whose mark was changed is routed anew.
    Reroute,
}

/// Runs its expressions left to right until one does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(pub Vec<Expression>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// `meta nfproto`
    Family(Family),
    /// `meta l4proto`
    Protocol(u8),
    /// `ip saddr PREFIX`; implies the family.
    SourceIn(IpNet),
    /// `ip daddr PREFIX`; implies the family.
    DestinationIn(IpNet),
    /// `th dport`
    DestinationPort(u16),
    /// `th sport`
    SourcePort(u16),
    /// `meta iif lo`: what this host sends to itself.
    FromLoopback,
    /// `meta oif lo`: what stays on this host.
    ToLoopback,
    /// `meta skuid`: sent by a socket of this user. What the kernel itself sends has none.
    User(u32),
    /// `icmpv6 type`: discovery of routers, neighbours and groups, which IPv6 lives by. No ordinary socket sends these.
    Discovery,
    /// `meta mark`
    MarkIs(u32),
    /// `ct state STATES`
    Connection(&'static [Connection]),
    /// `ct protocol`: that of the flow; for an error, that of the flow it is about.
    ConnectionProtocol(u8),
    /// `ct direction reply`: it goes to who opened the flow.
    Reply,
    /// `ct status snat`: its source is translated, masqueraded for instance.
    SourceTranslated,
    /// `ct label LABEL`: the flow was given it by [`Expression::SetLabel`].
    Label(u8),
    /// `ct label LABEL`, and none of `not`.
    LabelAlone {
        label: u8,
        not: &'static [u8],
    },
    /// `tcp flags & (syn | ack) == syn`: somebody opens a connection.
    TcpOpening,
    /// The opposite.
    TcpUnderWay,
    /// `socket wildcard 0 socket transparent 1`: a transparent socket of ours, connected or listening for exactly this, or
    /// one that sent what this quotes as an error.
    TransparentSocket,
    /// `fib saddr type local`
    SourceIsLocal,
    /// `fib daddr type local`
    DestinationIsLocal,
    /// `@th,64,8 & 0x80 == 0`: the first bit after the UDP header is there and clear, so that no server takes the datagram
    /// for the beginning of a QUIC connection: long headers have it set in every version (RFC 8999, section 5.1).
    NoLongHeader,
    /// `meta length < N`: octets from the IP header on. N is a power of two.
    ShorterThan(u32),
    /// `KEY @set`, `KEY != @set`
    InSet {
        key: Vec<Key>,
        set: String,
        negate: bool,
    },
    /// `update @set { KEY }`: the element lives for another timeout of its set.
    Refresh {
        key: Vec<Key>,
        set: String,
    },
    /// `delete @set { KEY }`
    Forget {
        key: Vec<Key>,
        set: String,
    },
    SetMark(u32),
    /// `ct label set LABEL`
    SetLabel(u8),
    /// `tproxy ip to 127.0.0.1:PORT`. Where nobody listens the rule ends here, and the next one runs.
    Tproxy {
        family: Family,
        port: u16,
    },
    Counter,
    /// `counter name NAME`, one of those of the table.
    CountAs(&'static str),
    /// `exthdr frag exists`: a fragment still, after the kernel has put together what was in fragments.
    Fragment,
    /// `fib saddr . iif oif exists`: it comes from the interface by which its source is reached.
    FromItsPath,
    /// `notrack`
    NoTrack,
    /// `reject with icmpx admin-prohibited`
    Reject,
    /// `reject with tcp reset`; for TCP alone.
    Reset,
    /// `limit rate over N/second`: matches what goes beyond, after a burst as long.
    Beyond {
        per_second: u32,
    },
    /// `log prefix TEXT group N`: a copy of the packet for who listens to that group.
    Log {
        group: u16,
        prefix: String,
    },
    Verdict(Verdict),
}

/// What connection tracking makes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Of no flow that is known.
    New,
    /// Of nothing that connection tracking can make a flow of.
    Invalid,
    /// Of a flow that has been answered.
    Established,
    /// Of a flow that another one announced, or an error about a packet of one.
    Related,
}

/// A part of a packet that a set is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Protocol,
    SourcePort,
    DestinationPort,
    Source(Family),
    Destination(Family),
    /// `ip saddr & MASK`: the first `length` bits.
    SourcePrefix {
        family: Family,
        length: u8,
    },
    DestinationPrefix {
        family: Family,
        length: u8,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    Return,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// Bits of an address.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    pub fn field(self) -> Field {
        match self {
            Self::V4 => Field::Ipv4,
            Self::V6 => Field::Ipv6,
        }
    }

    /// The digit that the names of sets and chains end in.
    pub fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }
}

impl Set {
    pub fn new(name: impl Into<String>, key: Vec<Field>, kind: SetKind, elements: Vec<Element>) -> Self {
        Self { name: name.into(), key, kind, elements }
    }
}

impl Element {
    pub fn exactly(key: Vec<Datum>) -> Self {
        Self { key, end: None }
    }

    pub fn services(protocol: u8, ports: &RangeInclusive<u16>) -> Self {
        let key = |port| vec![Datum::Protocol(protocol), Datum::Service(port)];
        Self { key: key(*ports.start()), end: Some(key(*ports.end())) }
    }
}

impl Chain {
    pub fn new(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), base: None, rules }
    }

    pub fn at(hook: Hook, priority: i32, name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), base: Some(Base { hook, priority }), rules }
    }
}
