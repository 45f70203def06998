//! Named sets of addresses, prefixes and names, each with one verdict.
//!
//! Fails safe: a source that cannot be read in full never becomes a list (SPEC V4).

pub mod compile;
pub mod domains;
pub mod entry;
pub mod file;
pub mod format;
pub mod geoip;
pub mod prefixes;
pub mod reader;
pub mod refresh;
mod table;
pub use domains::DomainSet;
pub use prefixes::PrefixSet;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::name::DomainName;

/// What an entry of a list is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListVerdict {
    Allow,
    Block,
    /// Blocked by a policy whose threshold for the category is at most the score.
    Threat {
        category: Arc<str>,
        /// 1 to 100.
        score: u8,
    },
}

/// A list, ready to be asked.
#[derive(Debug)]
pub struct List {
    pub name: Arc<str>,
    pub verdict: ListVerdict,
    pub domains: DomainSet,
    pub prefixes: PrefixSet,
}

impl List {
    pub fn holds_name(&self, name: &DomainName, now: SystemTime) -> bool {
        self.domains.holds(name, now)
    }

    pub fn holds_address(&self, address: IpAddr, now: SystemTime) -> bool {
        self.prefixes.holds(address, now)
    }
}
