//! A Policy: lists, countries, ASNs, thresholds and a default, and what they make of an address or a name.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::{DomainVerdict, IpVerdict, Judged, Reason};
use crate::list::{List, ListVerdict};
use crate::name::{DomainName, Pattern};

#[derive(Debug)]
pub struct Policy {
    pub name: Arc<str>,
    pub default: IpVerdict,
    pub lists: Vec<Arc<List>>,
    /// Category to the lowest score that blocks, 1 to 100. A category without one never blocks.
    pub thresholds: HashMap<Arc<str>, u8>,
    pub fingerprints: Vec<FingerprintRule>,
}

/// `{ domains = [..], require | alert | block = ".." }` (SPEC V10).
#[derive(Clone, Debug)]
pub struct FingerprintRule {
    /// Empty: every name.
    pub domains: Vec<Pattern>,
    pub demand: FingerprintDemand,
    /// A JA3 hash, a JA3 full string, or a JA4.
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FingerprintDemand {
    Require,
    Alert,
    Block,
}

impl Policy {
    /// The first that matches: allow list, block list, threat list at its threshold, default (SPEC V1).
    pub fn judge_ip(&self, address: IpAddr, now: SystemTime) -> Judged<IpVerdict> {
        match self.first_list(|list| list.holds_address(address, now)) {
            Some((list, reason)) => Judged {
                verdict: if reason == Reason::AllowList { IpVerdict::Allow } else { IpVerdict::Block },
                reason,
                list: Some(list.name.clone()),
            },
            None => Judged { verdict: self.default, reason: Reason::Default, list: None },
        }
    }

    /// Allow list, else block list or threat list at its threshold, else None (SPEC V2).
    pub fn judge_name(&self, name: &DomainName, now: SystemTime) -> Judged<DomainVerdict> {
        match self.first_list(|list| list.holds_name(name, now)) {
            Some((list, reason)) => Judged {
                verdict: if reason == Reason::AllowList { DomainVerdict::Allow } else { DomainVerdict::Block },
                reason,
                list: Some(list.name.clone()),
            },
            None => Judged { verdict: DomainVerdict::None, reason: Reason::Default, list: None },
        }
    }

    fn first_list(&self, holds: impl Fn(&List) -> bool) -> Option<(&List, Reason)> {
        [Reason::AllowList, Reason::BlockList, Reason::Threat].into_iter().find_map(|reason| {
            let list = self.lists.iter().find(|list| self.counts_as(list, reason) && holds(list))?;
            Some((&**list, reason))
        })
    }

    fn counts_as(&self, list: &List, reason: Reason) -> bool {
        match &list.verdict {
            ListVerdict::Allow => reason == Reason::AllowList,
            ListVerdict::Block => reason == Reason::BlockList,
            ListVerdict::Threat { category, score } => {
                reason == Reason::Threat && self.thresholds.get(category).is_some_and(|least| score >= least)
            }
        }
    }
}
