//! The kernel's ruleset as a value, rendered from a policy. Pure.
//!
//! ```text
//! prerouting (raw), UDP alone                      forward (filter)
//!   forwarded flows, no long header -> pass          of flows that were let in       -> pass
//!   refused and silenced flows    -> reject, drop    marked for us, yet forwarded    -> drop
//!   what a Network inspects       -> tproxy,         flows that a later policy ended -> drop, answer
//!             untracked, or drop where nobody listens  answers to flows that we took,
//! prerouting (mangle)                                  and errors about them         -> drop
//!   of flows that were let in     -> pass            replies                         -> pass
//!   to our listeners directly     -> drop            forwarded flows, no long header -> pass
//!   flows that we hold            -> to us           what a Network should have had  -> drop
//!   discarded flows               -> drop            the rest of flows let in        -> pass
//!   replies                       -> pass            new flows of a Network          -> by their addresses: pass,
//!   the gateway's own addresses   -> pass                                               drop, answer; and a record
//!   what a Network inspects       -> tproxy,         all else passes
//!               or drop where nobody listens
//!   all else passes
//! prerouting (behind dstnat)
//!   errors about TCP that we sent -> to us
//! ```
//!
//! UDP is taken before connection tracking, which must not see a datagram both when it is captured and when it is sent
//! on: the second one would escape masquerading.
//!
//! Fails closed: behind every `tproxy` stands a `drop`, so that with no listener nothing passes, and the forward hook
//! drops what the first hook should have taken. The rules outlive the process.
//!
//! What is not seen: a packet inside another (GRE, 6in4, IPsec; `meta l4proto` is then the tunnel's, and SPEC V1 judges
//! the tunnel's address), what the administrator's flowtables or a bridge carry around the hooks, and what an
//! interface's own hardware forwards. Fragments are: `tproxy` and `socket` turn the kernel's defragmentation on, which
//! runs before these hooks. IPv6 extension headers are: `meta l4proto` and `th` stand behind them. A packet whose
//! extension headers the kernel cannot walk has no `l4proto` that a rule could name.

mod capture;
mod enclosure;
#[cfg(test)]
pub(crate) mod fixture;
mod flows;
mod judge;
mod lists;
mod names;
mod ruleset;
mod selection;
mod service;
mod sidecar;
mod text;

pub use capture::render;
pub use enclosure::enclose;
pub use flows::{FlowKey, FlowSet};
pub use judge::{By, LOG_GROUP, LogTag};
pub use lists::{Change, Class, Entry, ListSets};
pub use names::{name_element, name_set, naming_networks, uses_names};
pub use ruleset::{
    Base, Chain, Connection, Datum, Element, Expression, Family, Field, Hook, Key, Rule, Ruleset, Set, SetKind, Verdict,
};

pub use sidecar::render_sidecar;

use std::time::Duration;

use crate::policy::Direction;

/// The table of family `inet` that is ours.
pub const TABLE: &str = "tidegate";

/// The bit of connection tracking's labels by which a flow is known that was let in: the last of 128.
pub const JUDGED_LABEL: u8 = 127;
/// The one of TCP flows that a sidecar opened itself.
const OWN_LABEL: u8 = 123;
/// The one of TCP flows of an application that are brought to its sidecar.
const DIVERTED_LABEL: u8 = 122;

/// The one of TCP and DNS flows that are taken here: none of their packets is anybody else's.
const TAKEN_LABEL: u8 = 121;

/// The bits by which a flow is known that a later policy ended: all of them bear the first, and one of the others if its
/// packets are answered.
pub const ENDED_LABEL: u8 = 126;
pub const ENDED_UNREACHABLE_LABEL: u8 = 125;
pub const ENDED_RESET_LABEL: u8 = 124;

/// The counter of packets that were judged and not recorded, since more came than may be recorded.
pub const UNRECORDED: &str = "unrecorded";

/// The counter of packets that came from where their source is not.
pub const FORGED: &str = "forged";

/// Marks what must be delivered to us ("ti"), and names the routing table that does it.
pub const MARK: u32 = 0x7469;
/// Marks what nobody took where `on_failure` lets that pass.
pub const UNTAKEN_MARK: u32 = MARK + 1;
/// The priority of the policy rules that lead to that table.
pub const RULE_PRIORITY: u32 = 7469;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Where the kernel is to send what it captures. Every listener is transparent and bound to a loopback address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    pub tcp: Listener,
    /// `None`: UDP on ports that are inspected for QUIC is dropped, so that clients fall back to TCP.
    pub udp: Option<Listener>,
    /// `None`: DNS over UDP is not captured.
    pub dns_udp: Option<Listener>,
    /// `None`: DNS over TCP is not captured.
    pub dns_tcp: Option<Listener>,
    /// The directions whose flows the listeners can judge.
    pub directions: Vec<Direction>,
    pub on_failure: OnFailure,
    /// Flows that may be discarded at a time, for each address family. Default 65,536 (about 13 MB when full).
    pub discarded: u32,
    /// UDP flows that the kernel forwards at a time, for each address family; those past it are relayed. Default 131,072.
    pub forwarded: u32,
    /// How long the kernel forwards a UDP flow after its client's last packet. Default 5 min.
    pub udp_idle: Duration,
    /// Pairs of client and address that a name lets pass, and as many that one blocks, for each Network and family.
    /// Default 262,144.
    pub named: u32,
    /// What comes from an interface by which its source is not reached, or answers a flow with the beginning of another, is
    /// dropped if a Network protects either end (RFC 3704, section 2.2).
    pub reverse_path: bool,
    /// Packets that are recorded a second, for each Network, direction and reason; those past it are counted. Default
    /// 1,000.
    pub records_per_second: u32,
}

/// The port of a listener on 127.0.0.1 and on `[::1]`. Without one of them, what it should have had is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    pub v4: Option<u16>,
    pub v6: Option<u16>,
}

/// What becomes of captured traffic when no tidegate runs (SPEC R5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    #[default]
    Closed,
    Open,
}

impl Capture {
    /// Outbound flows, TCP alone.
    pub fn tcp(listener: Listener) -> Self {
        Self {
            tcp: listener,
            udp: None,
            dns_udp: None,
            dns_tcp: None,
            directions: vec![Direction::Outbound],
            on_failure: OnFailure::Closed,
            discarded: 65_536,
            forwarded: 131_072,
            udp_idle: Duration::from_secs(300),
            named: 262_144,
            reverse_path: true,
            records_per_second: 1000,
        }
    }
}

impl Listener {
    /// Nobody listens: what it should have had is dropped.
    pub const NONE: Self = Self { v4: None, v6: None };

    pub fn on(port: u16) -> Self {
        Self { v4: Some(port), v6: Some(port) }
    }

    pub fn port(&self, family: Family) -> Option<u16> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}
