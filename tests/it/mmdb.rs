//! Writes small databases in MaxMind's file format (MMDB), version 2.0, for the tests.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// A database to be written.
#[derive(Clone, Debug)]
pub(crate) struct Mmdb {
    pub(crate) kind: &'static str,
    /// 24, 28 or 32.
    pub(crate) record_size: u8,
    /// 4 or 6.
    pub(crate) ip_version: u8,
    /// Whether the prefixes that hold IPv4 addresses in others lead to those of `::/96`.
    pub(crate) aliases: bool,
    pub(crate) networks: Vec<(IpNet, Record)>,
}

/// What is told of a network.
#[allow(dead_code, reason = "who includes this file makes some of them")]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Record {
    Country(String),
    Registered(String),
    Asn(u32),
    Text(&'static str, String),
}

#[derive(Clone, Copy, Debug)]
enum Branch {
    Empty,
    Node(u32),
    /// The octet of the data section at which it begins.
    Data(u32),
}

impl Mmdb {
    /// Of networks that overlap, the later ones stand.
    pub(crate) fn new(kind: &'static str, networks: impl IntoIterator<Item = (IpNet, Record)>) -> Self {
        Self { kind, record_size: 24, ip_version: 6, aliases: false, networks: networks.into_iter().collect() }
    }

    pub(crate) fn octets(&self) -> Vec<u8> {
        let (mut data, mut known) = (Vec::new(), BTreeMap::new());
        let mut nodes = vec![[Branch::Empty; 2]];
        for (prefix, record) in &self.networks {
            let place = *known.entry(record).or_insert_with(|| {
                let place = u32::try_from(data.len()).unwrap();
                record.write(&mut data);
                place
            });
            let (bits, length) = self.way(prefix);
            set(&mut nodes, bits, length, Branch::Data(place));
        }
        if self.aliases {
            // Whatever is at ::/96 is made a node.
            let v4 = node_at(&mut nodes, 0, 96);
            for alias in ["::ffff:0:0/96", "2001::/32", "2002::/16"] {
                let (bits, length) = self.way(&alias.parse().unwrap());
                // More than the alias may be written below 2001::/16, never below these.
                set(&mut nodes, bits, length, Branch::Node(v4));
            }
        }
        let mut octets = self.tree(&nodes);
        octets.extend([0; 16]);
        octets.extend(data);
        octets.extend(b"\xab\xcd\xefMaxMind.com");
        self.metadata(nodes.len(), &mut octets);
        octets
    }

    fn way(&self, prefix: &IpNet) -> (u128, u8) {
        match prefix.network() {
            IpAddr::V4(own) if self.ip_version == 4 => (u128::from(own.to_bits()) << 96, prefix.prefix_len()),
            IpAddr::V4(own) => (own.to_bits().into(), 96 + prefix.prefix_len()),
            IpAddr::V6(own) => (own.to_bits(), prefix.prefix_len()),
        }
    }

    fn tree(&self, nodes: &[[Branch; 2]]) -> Vec<u8> {
        let count = u32::try_from(nodes.len()).unwrap();
        let record = |branch: Branch| match branch {
            Branch::Empty => count,
            Branch::Node(node) => node,
            Branch::Data(place) => count + 16 + place,
        };
        let mut octets = Vec::new();
        for [left, right] in nodes.iter().map(|node| node.map(|branch| record(branch).to_be_bytes())) {
            match self.record_size {
                24 => octets.extend([&left[1..], &right[1..]].concat()),
                28 => octets.extend([&left[1..], &[left[0] << 4 | right[0]], &right[1..]].concat()),
                _ => octets.extend([left, right].concat()),
            }
        }
        octets
    }

    fn metadata(&self, nodes: usize, to: &mut Vec<u8>) {
        map(9, to);
        for (key, value) in [
            ("binary_format_major_version", 2),
            ("binary_format_minor_version", 0),
            ("ip_version", self.ip_version),
            ("record_size", self.record_size),
        ] {
            text(key, to);
            // Unsigned, of 16 bits.
            to.extend([5 << 5 | 2, 0, value]);
        }
        text("node_count", to);
        number(u32::try_from(nodes).unwrap(), to);
        text("build_epoch", to);
        // Unsigned, of 64 bits: extended type 9.
        to.extend([4, 9 - 7]);
        to.extend(1_700_000_000_u32.to_be_bytes());
        text("database_type", to);
        text(self.kind, to);
        text("description", to);
        map(1, to);
        text("en", to);
        text("of the tests", to);
        text("languages", to);
        // An array (extended type 11) of one.
        to.extend([1, 11 - 7]);
        text("en", to);
    }
}

impl Record {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Country(code) | Self::Registered(code) => {
                map(2, to);
                text("continent", to);
                map(1, to);
                text("code", to);
                text("AS", to);
                text(if matches!(self, Self::Country(_)) { "country" } else { "registered_country" }, to);
                map(1, to);
                text("iso_code", to);
                text(code, to);
            }
            Self::Asn(number_of) => {
                map(1, to);
                text("autonomous_system_number", to);
                number(*number_of, to);
            }
            Self::Text(key, value) => {
                map(1, to);
                text(key, to);
                text(value, to);
            }
        }
    }
}

fn map(entries: u8, to: &mut Vec<u8>) {
    to.push(7 << 5 | entries);
}

/// Shorter than 29 octets.
fn text(text: &str, to: &mut Vec<u8>) {
    to.push(2 << 5 | u8::try_from(text.len()).unwrap());
    to.extend(text.as_bytes());
}

/// Unsigned, of 32 bits.
fn number(number: u32, to: &mut Vec<u8>) {
    to.push(6 << 5 | 4);
    to.extend(number.to_be_bytes());
}

fn bit(bits: u128, depth: u8) -> usize {
    usize::from(bits >> (127 - depth) & 1 == 1)
}

fn set(nodes: &mut Vec<[Branch; 2]>, bits: u128, length: u8, branch: Branch) {
    let parent = node_at(nodes, bits, length - 1);
    nodes[usize::try_from(parent).unwrap()][bit(bits, length - 1)] = branch;
}

/// The node of a prefix; where there is none, it is made of what stands there.
fn node_at(nodes: &mut Vec<[Branch; 2]>, bits: u128, length: u8) -> u32 {
    let mut own = 0;
    for depth in 0..length {
        let side = bit(bits, depth);
        own = match nodes[usize::try_from(own).unwrap()][side] {
            Branch::Node(node) => node,
            other => {
                let new = u32::try_from(nodes.len()).unwrap();
                nodes.push([other; 2]);
                nodes[usize::try_from(own).unwrap()][side] = Branch::Node(new);
                new
            }
        };
    }
    own
}
