//! Networks: the protected addresses, and the settings that apply to their packets.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::rules::Policy;
use super::{Direction, DropAction, InspectionType};

/// DNS in the clear (RFC 1035, section 4.2).
pub const DNS_PORT: u16 = 53;
/// DNS over TLS (RFC 7858, section 3.1) and over QUIC (RFC 9250, section 4.1.1).
pub const ENCRYPTED_DNS_PORT: u16 = 853;

/// Protected addresses and what is done with their flows (SPEC N1-N8).
#[derive(Clone, Debug)]
pub struct Network {
    pub name: Arc<str>,
    pub description: String,
    pub mode: Mode,
    pub ips: Vec<ProtectedIp>,
    /// `None`: this direction is not judged.
    pub outbound: Option<Rule>,
    pub inbound: Option<Rule>,
    pub inspection: Option<Inspection>,
    pub dns: Dns,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    /// Judge and record, block nothing.
    Monitor,
    Off,
}

#[derive(Clone, Debug)]
pub struct ProtectedIp {
    pub prefix: IpNet,
    /// `None`: every protocol and port.
    pub port: Option<Arc<Port>>,
}

/// A direction's policy and what a blocked peer sees.
#[derive(Clone, Debug)]
pub struct Rule {
    pub policy: Arc<Policy>,
    pub drop: DropAction,
}

/// A named set of protocols and destination ports.
#[derive(Debug)]
pub struct Port {
    pub name: Arc<str>,
    pub description: String,
    pub protocols: Vec<Protocol>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// The IP protocol number: 6 is TCP, 17 is UDP.
    pub number: u8,
    /// Destination ports; empty for protocols that have none.
    pub ports: Vec<RangeInclusive<u16>>,
}

/// Domain inspection of a Network (SPEC section 4).
#[derive(Clone, Debug)]
pub struct Inspection {
    pub kind: InspectionType,
    /// At most 16: TCP for TLS, and UDP for QUIC.
    pub tls_ports: Vec<u16>,
    /// At most 16.
    pub http_ports: Vec<u16>,
    pub quic: Quic,
    /// After so many client packets, bytes that look like none of our protocols have no name. Default 5.
    pub packets: u32,
    /// After so long the same, and a beginning that has not ended is unreadable. Default 1 s.
    pub timeout: Duration,
    pub unidentified: Otherwise,
    pub unreadable: Otherwise,
    pub bind: Bind,
    pub use_bindings: bool,
    pub ech: Ech,
    pub http: HttpRequests,
}

/// What happens to a flow whose name is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    Block,
    IpVerdict,
}

/// Whether a peeked name must belong to the address by DNS (SPEC V11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    Off,
    Log,
    Enforce,
}

/// UDP on the TLS ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quic {
    Inspect,
    /// The verdict of the address.
    LeaveAlone,
    /// Whatever it is, so that browsers take TCP.
    Block,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ech {
    Allow,
    Block,
}

/// Which requests of an HTTP/1 connection are judged (SPEC I7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpRequests {
    Every,
    First,
}

/// How the DNS of a Network is treated (SPEC section 5).
#[derive(Clone, Debug, Default)]
pub struct Dns {
    /// At most 10; empty: any resolver may be asked.
    pub authorized_resolvers: Vec<IpAddr>,
    /// At most 4, of either family.
    pub answer_ips: Vec<IpAddr>,
    /// Answer names that no list knows as if they were blocked.
    pub unlisted_blocks: bool,
    /// Empty: the resolver that the client asked.
    pub upstream: Vec<SocketAddr>,
    pub strip_ech: bool,
    pub filter_answers: bool,
    pub rebind_protection: bool,
}

impl Network {
    pub fn rule(&self, direction: Direction) -> Option<&Rule> {
        match direction {
            Direction::Inbound => self.inbound.as_ref(),
            Direction::Outbound => self.outbound.as_ref(),
        }
    }
}

impl Dns {
    /// Whether a flow to this address and port is DNS, plain or encrypted (DoT and DoQ), to a resolver that may not be
    /// asked (SPEC D1, D5).
    pub fn refuses(&self, remote: IpAddr, port: u16) -> bool {
        matches!(port, DNS_PORT | ENCRYPTED_DNS_PORT) && !self.authorizes(remote)
    }

    pub fn authorizes(&self, resolver: IpAddr) -> bool {
        self.authorized_resolvers.is_empty() || self.authorized_resolvers.contains(&resolver.to_canonical())
    }

    /// The resolvers whose word counts for a fresh look-up; none: those of this host.
    pub fn trusted_resolvers(&self) -> Vec<SocketAddr> {
        if self.upstream.is_empty() {
            self.authorized_resolvers.iter().map(|ip| SocketAddr::new(*ip, 53)).collect()
        } else {
            self.upstream.clone()
        }
    }
}

impl Port {
    /// `port` is the destination port; `None` for protocols without ports.
    pub fn covers(&self, protocol: u8, port: Option<u16>) -> bool {
        self.protocols.iter().any(|own| {
            own.number == protocol
                && (own.ports.is_empty() || port.is_some_and(|port| own.ports.iter().any(|r| r.contains(&port))))
        })
    }
}

impl Inspection {
    pub fn inspects_tcp(&self, port: u16) -> bool {
        self.tls_ports.contains(&port) || self.http_ports.contains(&port)
    }

    pub fn inspects_udp(&self, port: u16) -> bool {
        self.quic != Quic::LeaveAlone && self.tls_ports.contains(&port)
    }

    pub fn blocks_udp(&self, port: u16) -> bool {
        self.quic == Quic::Block && self.tls_ports.contains(&port)
    }
}
