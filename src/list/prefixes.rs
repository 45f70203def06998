//! A set of address prefixes, asked by address.

use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;

/// Prefixes with the time, if any, at which each ends.
#[derive(Debug, Default)]
pub struct PrefixSet {
    entries: Vec<(IpNet, Option<SystemTime>)>,
}

impl PrefixSet {
    pub fn insert(&mut self, prefix: IpNet, expires: Option<SystemTime>) {
        self.entries.push((prefix.trunc(), expires));
    }

    pub fn holds(&self, address: IpAddr, now: SystemTime) -> bool {
        self.entries.iter().any(|(prefix, expires)| prefix.contains(&address) && expires.is_none_or(|end| now < end))
    }

    pub fn iter(&self) -> impl Iterator<Item = (IpNet, Option<SystemTime>)> {
        self.entries.iter().copied()
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
