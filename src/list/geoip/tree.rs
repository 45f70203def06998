//! The search tree of an MMDB file: a binary trie over the bits of an address, two records a node.
//!
//! Fails closed: each node is entered once, so that nodes that lead back, or are shared, end the walk with an error.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use maxminddb::Metadata;

use super::Damaged;

pub(super) struct Tree<'a> {
    octets: &'a [u8],
    nodes: u32,
    /// Octets of a node, 6, 7 or 8.
    width: usize,
    ipv6: bool,
}

/// A network with data.
pub(super) struct Leaf {
    pub(super) prefix: IpNet,
    /// Equal for networks that share their data.
    pub(super) record: u32,
}

/// A record and the bits that lead to it. IPv4 begins at the depth of 96.
#[derive(Clone, Copy)]
struct Step {
    record: u32,
    bits: u128,
    depth: u8,
}

impl<'a> Tree<'a> {
    pub(super) fn of(octets: &'a [u8], metadata: &Metadata) -> Result<Self, Damaged> {
        let width = match metadata.record_size {
            24 => 6,
            28 => 7,
            32 => 8,
            other => return Err(Damaged(format!("its records have {other} bits"))),
        };
        let ipv6 = metadata.ip_version == 6;
        let fits = usize::try_from(metadata.node_count).ok().and_then(|nodes| nodes.checked_mul(width));
        let octets =
            fits.and_then(|length| octets.get(..length)).ok_or_else(|| Damaged("its tree is cut short".into()))?;
        Ok(Self { octets, nodes: metadata.node_count, width, ipv6 })
    }

    /// All networks with data, IPv4 first, in the order of their addresses.
    pub(super) fn walk(&self, mut found: impl FnMut(Leaf) -> Result<(), Damaged>) -> Result<(), Damaged> {
        let mut entered = vec![false; usize::try_from(self.nodes).unwrap_or_default()];
        let root = Step { record: 0, bits: 0, depth: 0 };
        if !self.ipv6 {
            return self.walk_from(Step { depth: V4_DEPTH, ..root }, None, &mut entered, &mut found);
        }
        let v4 = self.v4_root(root)?;
        self.walk_from(Step { depth: V4_DEPTH, ..v4 }, None, &mut entered, &mut found)?;
        self.walk_from(root, Some(v4.record).filter(|own| *own < self.nodes), &mut entered, &mut found)
    }

    /// The record at `::/96`, or the one that ends the way there.
    fn v4_root(&self, root: Step) -> Result<Step, Damaged> {
        let mut step = root;
        while step.depth < V4_DEPTH && step.record < self.nodes {
            [step, _] = self.children(step)?;
        }
        Ok(step)
    }

    /// `elsewhere`: a node that was walked already, and that other prefixes may lead to as well.
    fn walk_from(
        &self,
        begin: Step,
        elsewhere: Option<u32>,
        entered: &mut [bool],
        found: &mut impl FnMut(Leaf) -> Result<(), Damaged>,
    ) -> Result<(), Damaged> {
        let family_begins = begin.depth;
        let mut waiting = vec![begin];
        while let Some(step) = waiting.pop() {
            if Some(step.record) == elsewhere || step.record == self.nodes {
                continue;
            }
            if step.record > self.nodes {
                found(Leaf { prefix: prefix(step, family_begins)?, record: step.record })?;
                continue;
            }
            let seen = usize::try_from(step.record).ok().and_then(|index| entered.get_mut(index));
            if seen.is_none_or(|seen| std::mem::replace(seen, true)) {
                return Err(Damaged(format!("two ways of its tree lead to node {}", step.record)));
            }
            let [left, right] = self.children(step)?;
            waiting.extend([right, left]);
        }
        Ok(())
    }

    fn children(&self, step: Step) -> Result<[Step; 2], Damaged> {
        let depth = step.depth + 1;
        let records = usize::try_from(step.record).ok().and_then(|index| self.records(index));
        match records.filter(|_| depth <= ALL_BITS) {
            Some([left, right]) => Ok([
                Step { record: left, bits: step.bits, depth },
                Step { record: right, bits: step.bits | 1 << (ALL_BITS - depth), depth },
            ]),
            None => Err(Damaged("its tree is deeper than an address is long".into())),
        }
    }

    fn records(&self, index: usize) -> Option<[u32; 2]> {
        let start = index.checked_mul(self.width)?;
        let node = self.octets.get(start..start.checked_add(self.width)?)?;
        match *node {
            [a, b, c, d, e, f] => Some([u32::from_be_bytes([0, a, b, c]), u32::from_be_bytes([0, d, e, f])]),
            // The octet in the middle has the highest bits of both.
            [a, b, c, m, d, e, f] => {
                Some([u32::from_be_bytes([m >> 4, a, b, c]), u32::from_be_bytes([m & 0x0f, d, e, f])])
            }
            [a, b, c, d, e, f, g, h] => Some([u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])]),
            _ => None,
        }
    }
}

fn prefix(step: Step, family_begins: u8) -> Result<IpNet, Damaged> {
    let length = step.depth - family_begins;
    let net = if family_begins == V4_DEPTH {
        // The bits above are zero on the way to IPv4.
        let bits = u32::try_from(step.bits).unwrap_or_default();
        Ipv4Net::new(Ipv4Addr::from_bits(bits), length).map(IpNet::V4)
    } else {
        Ipv6Net::new(Ipv6Addr::from_bits(step.bits), length).map(IpNet::V6)
    };
    net.map_err(|error| Damaged(error.to_string()))
}

const V4_DEPTH: u8 = 96;
const ALL_BITS: u8 = 128;
