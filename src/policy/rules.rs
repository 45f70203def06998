//! A Policy: lists, countries, ASNs, thresholds and a default, and what they make of an address or a name.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::{DomainVerdict, IpVerdict, Judged, Reason};
use crate::list::{List, ListVerdict};
use crate::name::{DomainName, Pattern};

#[derive(Clone, Debug)]
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

    /// The lists that count, each with the reason that it gives and its place in `lists`: the first that holds an
    /// address or a name decides. Threat lists below their threshold are not here.
    pub fn in_order(&self) -> impl Iterator<Item = (Reason, usize, &Arc<List>)> {
        [Reason::AllowList, Reason::BlockList, Reason::Threat].into_iter().flat_map(move |reason| {
            let counting = self.lists.iter().enumerate().filter(move |(_, list)| self.counts_as(list, reason));
            counting.map(move |(place, list)| (reason, place, list))
        })
    }

    fn first_list(&self, holds: impl Fn(&List) -> bool) -> Option<(&List, Reason)> {
        self.in_order().find(|(_, _, list)| holds(list)).map(|(reason, _, list)| (&**list, reason))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::list::{DomainSet, PrefixSet};

    const NAME: &str = "a.example";
    const ADDRESS: &str = "192.0.2.1";

    fn list(name: &str, verdict: ListVerdict, holds: bool) -> Arc<List> {
        let (mut domains, mut prefixes) = (DomainSet::default(), PrefixSet::default());
        if holds {
            domains = [(Pattern::parse(NAME).unwrap(), None)].into_iter().collect();
            prefixes = [("192.0.2.0/24".parse().unwrap(), None)].into_iter().collect();
        }
        Arc::new(List { name: name.into(), verdict, domains, prefixes })
    }

    fn threat(category: &str, score: u8) -> ListVerdict {
        ListVerdict::Threat { category: category.into(), score }
    }

    fn policy(lists: Vec<Arc<List>>, default: IpVerdict, thresholds: &[(&str, u8)]) -> Policy {
        let thresholds = thresholds.iter().map(|(category, least)| ((*category).into(), *least)).collect();
        Policy { name: "p".into(), default, lists, thresholds, fingerprints: Vec::new() }
    }

    fn ip(policy: &Policy) -> (IpVerdict, Reason, Option<String>) {
        let judged = policy.judge_ip(ADDRESS.parse().unwrap(), SystemTime::UNIX_EPOCH);
        (judged.verdict, judged.reason, judged.list.map(|list| list.to_string()))
    }

    fn domain(policy: &Policy) -> (DomainVerdict, Reason, Option<String>) {
        let judged = policy.judge_name(&DomainName::parse(NAME.as_bytes()).unwrap(), SystemTime::UNIX_EPOCH);
        (judged.verdict, judged.reason, judged.list.map(|list| list.to_string()))
    }

    #[test]
    fn allow_beats_block_beats_threat_in_whatever_order_they_are_written() {
        let lists = [
            list("threats", threat("malware", 90), true),
            list("blocks", ListVerdict::Block, true),
            list("allows", ListVerdict::Allow, true),
        ];
        let some = |name: &str| Some(name.to_owned());
        for rotation in 0..3 {
            let of = |count: usize| {
                let mut lists = lists[..count].to_vec();
                lists.rotate_left(rotation % count);
                policy(lists, IpVerdict::Allow, &[("malware", 80)])
            };
            assert_eq!(ip(&of(3)), (IpVerdict::Allow, Reason::AllowList, some("allows")));
            assert_eq!(domain(&of(3)), (DomainVerdict::Allow, Reason::AllowList, some("allows")));
            assert_eq!(ip(&of(2)), (IpVerdict::Block, Reason::BlockList, some("blocks")));
            assert_eq!(domain(&of(2)), (DomainVerdict::Block, Reason::BlockList, some("blocks")));
            assert_eq!(ip(&of(1)), (IpVerdict::Block, Reason::Threat, some("threats")));
            assert_eq!(domain(&of(1)), (DomainVerdict::Block, Reason::Threat, some("threats")));
        }
    }

    #[test]
    fn a_threat_blocks_from_the_threshold_of_its_own_category_on() {
        for (score, thresholds, blocks) in [
            (80, &[("malware", 80)][..], true),
            (79, &[("malware", 80)], false),
            (100, &[("malware", 100)], true),
            (100, &[("phishing", 1)], false),
            (100, &[], false),
        ] {
            let policy = policy(vec![list("t", threat("malware", score), true)], IpVerdict::Allow, thresholds);
            assert_eq!(ip(&policy).0 == IpVerdict::Block, blocks, "{score} {thresholds:?}");
            assert_eq!(domain(&policy).0 == DomainVerdict::Block, blocks, "{score} {thresholds:?}");
        }
    }

    #[test]
    fn what_no_list_holds_gets_the_default_by_address_and_none_by_name() {
        for default in [IpVerdict::Allow, IpVerdict::Block] {
            let policy = policy(vec![list("other", ListVerdict::Block, false)], default, &[]);
            assert_eq!(ip(&policy), (default, Reason::Default, None));
            assert_eq!(domain(&policy), (DomainVerdict::None, Reason::Default, None));
        }
    }

    #[test]
    fn two_policies_over_one_list_share_it() {
        let shared = list("shared", ListVerdict::Block, true);
        let policies = [IpVerdict::Allow, IpVerdict::Block].map(|default| policy(vec![shared.clone()], default, &[]));
        assert!(policies.iter().all(|policy| Arc::ptr_eq(&policy.lists[0], &shared)));
    }

    proptest! {
        /// SPEC V1 and V2, word by word.
        #[test]
        fn any_lists_are_judged_in_the_order_of_the_specification(
            lists in prop::collection::vec((0..4u8, 1u8..=100, any::<bool>()), 0..8), least in 1u8..=100, blocks in any::<bool>(),
        ) {
            let verdicts: Vec<_> = lists.iter().map(|(kind, score, holds)| (match kind {
                0 => ListVerdict::Allow,
                1 => ListVerdict::Block,
                2 => threat("malware", *score),
                _ => threat("other", *score),
            }, *holds)).collect();
            let held = |wanted: fn(&ListVerdict, u8) -> bool| verdicts.iter().any(|(verdict, holds)| *holds && wanted(verdict, least));
            let default = if blocks { IpVerdict::Block } else { IpVerdict::Allow };
            let reason = if held(|verdict, _| *verdict == ListVerdict::Allow) {
                Reason::AllowList
            } else if held(|verdict, _| *verdict == ListVerdict::Block) {
                Reason::BlockList
            } else if held(|verdict, least| matches!(verdict, ListVerdict::Threat { category, score } if &**category == "malware" && *score >= least)) {
                Reason::Threat
            } else {
                Reason::Default
            };
            let lists = verdicts.iter().map(|(verdict, holds)| list("l", verdict.clone(), *holds)).collect();
            let policy = policy(lists, default, &[("malware", least)]);
            prop_assert_eq!(ip(&policy).1, reason);
            prop_assert_eq!(domain(&policy).1, reason);
            let wanted = match reason {
                Reason::AllowList => IpVerdict::Allow,
                Reason::Default => default,
                _ => IpVerdict::Block,
            };
            prop_assert_eq!(ip(&policy).0, wanted);
        }
    }
}
