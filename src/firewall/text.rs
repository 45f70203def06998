//! A ruleset as `nft list table` would write it: for people, for `explain`, and for the tests.

use std::fmt::{self, Display, Formatter};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::ruleset::{
    Base, Chain, Connection, Datum, Element, Expression, Family, Field, Hook, Key, Rule, Ruleset, Set, SetKind, Verdict,
};
use super::{FORGED, UNRECORDED};

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.table)?;
        for counter in [UNRECORDED, FORGED] {
            writeln!(f, "\tcounter {counter} {{\n\t}}")?;
        }
        for set in &self.sets {
            write!(f, "{set}")?;
        }
        for list in &self.lists {
            write!(f, "{list}")?;
        }
        for chain in &self.chains {
            write!(f, "{chain}")?;
        }
        writeln!(f, "}}")
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tset {} {{", self.name)?;
        write!(f, "\t\ttype {}", Joined(&self.key, " . "))?;
        match self.kind {
            SetKind::Hash => writeln!(f)?,
            SetKind::Interval => writeln!(f, "\n\t\tflags interval")?,
            SetKind::Ending => writeln!(f, "\n\t\tflags timeout")?,
            SetKind::Counted { size } => writeln!(f, "\n\t\tsize {size}\n\t\tflags dynamic\n\t\tcounter")?,
            SetKind::Dynamic { timeout, size } => {
                writeln!(f, "\n\t\tsize {size}\n\t\tflags dynamic,timeout\n\t\ttimeout {}s", timeout.as_secs())?;
            }
        }
        if !self.elements.is_empty() {
            writeln!(f, "\t\telements = {{ {} }}", Joined(&self.elements, ", "))?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "\tchain {} {{", self.name)?;
        if let Some(base) = &self.base {
            writeln!(f, "\t\t{base}")?;
        }
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Base {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output | Hook::Reroute => "output",
            Hook::Postrouting => "postrouting",
        };
        let kind = if self.hook == Hook::Reroute { "route" } else { "filter" };
        write!(f, "type {kind} hook {hook} priority {}; policy accept;", self.priority)
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Joined(&self.0, " "))
    }
}

impl Display for Expression {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Family(Family::V4) => f.write_str("meta nfproto ipv4"),
            Self::Family(Family::V6) => f.write_str("meta nfproto ipv6"),
            Self::Protocol(number) => write!(f, "meta l4proto {}", Datum::Protocol(*number)),
            Self::SourceIn(prefix) => write!(f, "{} saddr {prefix}", word(Family::of(prefix))),
            Self::DestinationIn(prefix) => write!(f, "{} daddr {prefix}", word(Family::of(prefix))),
            Self::DestinationPort(port) => write!(f, "th dport {port}"),
            Self::SourcePort(port) => write!(f, "th sport {port}"),
            Self::FromLoopback => f.write_str("meta iif \"lo\""),
            Self::ToLoopback => f.write_str("meta oif \"lo\""),
            Self::User(user) => write!(f, "meta skuid {user}"),
            Self::Discovery => f.write_str("icmpv6 type 130-143"),
            Self::MarkIs(mark) => write!(f, "meta mark {mark:#x}"),
            Self::Connection(states) => write!(f, "ct state {}", Joined(states, ",")),
            Self::ConnectionProtocol(number) => write!(f, "ct protocol {}", Datum::Protocol(*number)),
            Self::Reply => f.write_str("ct direction reply"),
            Self::SourceTranslated => f.write_str("ct status snat"),
            Self::Label(label) => write!(f, "ct label {label}"),
            Self::LabelAlone { label, not } => write!(f, "ct label & ({label} | {}) == {label}", Joined(not, " | ")),
            Self::SetLabel(label) => write!(f, "ct label set {label}"),
            Self::TcpOpening => f.write_str("tcp flags & (syn | ack) == syn"),
            Self::TcpUnderWay => f.write_str("tcp flags & (syn | ack) != syn"),
            Self::TransparentSocket => f.write_str("socket wildcard 0 socket transparent 1"),
            Self::SourceIsLocal => f.write_str("fib saddr type local"),
            Self::DestinationIsLocal => f.write_str("fib daddr type local"),
            Self::NoLongHeader => f.write_str("@th,64,8 & 0x80 == 0x0"),
            Self::ShorterThan(length) => write!(f, "meta length < {length}"),
            Self::InSet { key, set, negate } => {
                write!(f, "{} {}@{set}", Joined(key, " . "), if *negate { "!= " } else { "" })
            }
            Self::Refresh { key, set } => write!(f, "update @{set} {{ {} }}", Joined(key, " . ")),
            Self::Forget { key, set } => write!(f, "delete @{set} {{ {} }}", Joined(key, " . ")),
            Self::SetMark(mark) => write!(f, "meta mark set {mark:#x}"),
            Self::Tproxy { family: Family::V4, port } => write!(f, "tproxy ip to 127.0.0.1:{port}"),
            Self::Tproxy { family: Family::V6, port } => write!(f, "tproxy ip6 to [::1]:{port}"),
            Self::Counter => f.write_str("counter"),
            Self::CountAs(name) => write!(f, "counter name \"{name}\""),
            Self::Fragment => f.write_str("exthdr frag exists"),
            Self::FromItsPath => f.write_str("fib saddr . iif oif exists"),
            Self::NoTrack => f.write_str("notrack"),
            Self::Reject => f.write_str("reject with icmpx admin-prohibited"),
            Self::Reset => f.write_str("reject with tcp reset"),
            Self::Beyond { per_second } => {
                write!(f, "limit rate over {per_second}/second burst {per_second} packets")
            }
            Self::Log { group, prefix } => write!(f, "log prefix \"{prefix}\" group {group}"),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
        }
    }
}

impl Display for Connection {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Invalid => "invalid",
            Self::Established => "established",
            Self::Related => "related",
        })
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Protocol => f.write_str("meta l4proto"),
            Self::SourcePort => f.write_str("th sport"),
            Self::DestinationPort => f.write_str("th dport"),
            Self::Source(family) => write!(f, "{} saddr", word(family)),
            Self::Destination(family) => write!(f, "{} daddr", word(family)),
            Self::SourcePrefix { family, length } => write!(f, "{} saddr{}", word(family), Mask(family, length)),
            Self::DestinationPrefix { family, length } => write!(f, "{} daddr{}", word(family), Mask(family, length)),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => f.write_str("return"),
        }
    }
}

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Protocol => "inet_proto",
            Self::Service => "inet_service",
        })
    }
}

impl Display for Datum {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv4(address) => write!(f, "{address}"),
            Self::Ipv6(address) => write!(f, "{address}"),
            Self::Protocol(6) => f.write_str("tcp"),
            Self::Protocol(17) => f.write_str("udp"),
            Self::Protocol(number) => write!(f, "{number}"),
            Self::Service(port) => write!(f, "{port}"),
        }
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, begin) in self.key.iter().enumerate() {
            let end = self.end.as_ref().and_then(|end| end.get(index)).filter(|end| *end != begin);
            write!(f, "{}{begin}", if index == 0 { "" } else { " . " })?;
            if let Some(end) = end {
                write!(f, "-{end}")?;
            }
        }
        Ok(())
    }
}

struct Mask(Family, u8);

impl Display for Mask {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(family, length) = *self;
        if length == family.bits() {
            return Ok(());
        }
        let net = match family {
            Family::V4 => Ipv4Net::new([0; 4].into(), length).map(IpNet::V4),
            Family::V6 => Ipv6Net::new([0; 16].into(), length).map(IpNet::V6),
        };
        write!(f, " & {}", net.map_err(|_| fmt::Error)?.netmask())
    }
}

struct Joined<'a, T>(&'a [T], &'a str);

impl<T: Display> Display for Joined<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if index == 0 { "" } else { self.1 })?;
        }
        Ok(())
    }
}

fn word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}
