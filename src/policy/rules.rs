//! A Policy: lists, countries, ASNs, thresholds and a default, and what they make of an address or a name.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use super::{DomainVerdict, IpVerdict, Judged, Reason};
use crate::list::geoip::{Code, Database};
use crate::list::{List, ListVerdict};
use crate::name::{DomainName, Pattern};

#[derive(Clone, Debug)]
pub struct Policy {
    pub name: Arc<str>,
    pub default: IpVerdict,
    pub lists: Vec<Arc<List>>,
    /// Category to the lowest score that blocks, 1 to 100. A category without one never blocks.
    pub thresholds: HashMap<Arc<str>, u8>,
    pub asns: Option<GeoRule>,
    pub countries: Option<GeoRule>,
    pub fingerprints: Vec<FingerprintRule>,
}

/// `{ allow | block = [..] }`: the verdict of every address with one of these codes. All others go on to the next rule.
#[derive(Clone, Debug)]
pub struct GeoRule {
    pub verdict: IpVerdict,
    pub codes: BTreeSet<Code>,
    /// Their addresses, as a list that nobody wrote.
    pub addresses: Arc<List>,
    pub database: Arc<Database>,
}

/// One of the questions that an address is asked in turn.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub reason: Reason,
    pub verdict: IpVerdict,
    /// Its place in `Policy::lists`; the rules of ASNs and countries have the two behind the last.
    pub place: usize,
    pub list: &'a Arc<List>,
    geo: Option<&'a GeoRule>,
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
    /// The first that matches: allow list, block list, threat list at its threshold, ASN, country, default (SPEC V1).
    pub fn judge_ip(&self, address: IpAddr, now: SystemTime) -> Judged<IpVerdict> {
        match self.in_order().find(|question| question.list.holds_address(address, now)) {
            Some(question) => question.judged(address),
            None => self.judge_rest(),
        }
    }

    /// The verdict of an address to which no question says yes.
    pub fn judge_rest(&self) -> Judged<IpVerdict> {
        Judged { verdict: self.default, reason: Reason::Default, list: None }
    }

    /// Allow list, else block list or threat list at its threshold, else None (SPEC V2).
    pub fn judge_name(&self, name: &DomainName, now: SystemTime) -> Judged<DomainVerdict> {
        match self.lists_in_order().find(|question| question.list.holds_name(name, now)) {
            Some(Question { verdict, reason, list, .. }) => Judged {
                verdict: if verdict == IpVerdict::Allow { DomainVerdict::Allow } else { DomainVerdict::Block },
                reason,
                list: Some(list.name.clone()),
            },
            None => Judged { verdict: DomainVerdict::None, reason: Reason::Default, list: None },
        }
    }

    /// When entries of the lists end that an address or a name meets, in no order.
    pub fn ends_of(&self, address: IpAddr, name: &DomainName) -> Vec<SystemTime> {
        let ends = self.in_order().flat_map(|Question { list, .. }| {
            list.prefixes.end_of(address).into_iter().chain(list.domains.ends_of(name))
        });
        ends.collect()
    }

    /// What an address is asked: the first whose list holds it decides. Threat lists below their threshold are not here.
    pub fn in_order(&self) -> impl Iterator<Item = Question<'_>> {
        let rules = [(Reason::Asn, &self.asns), (Reason::Country, &self.countries)].into_iter().enumerate();
        let rules = rules.filter_map(|(after, (reason, rule))| {
            let rule = rule.as_ref()?;
            let place = self.lists.len() + after;
            Some(Question { reason, verdict: rule.verdict, place, list: &rule.addresses, geo: Some(rule) })
        });
        self.lists_in_order().chain(rules)
    }

    fn lists_in_order(&self) -> impl Iterator<Item = Question<'_>> {
        [Reason::AllowList, Reason::BlockList, Reason::Threat].into_iter().flat_map(move |reason| {
            let verdict = if reason == Reason::AllowList { IpVerdict::Allow } else { IpVerdict::Block };
            let counting = self.lists.iter().enumerate().filter(move |(_, list)| self.counts_as(list, reason));
            counting.map(move |(place, list)| Question { reason, verdict, place, list, geo: None })
        })
    }

    pub fn geo_rules(&self) -> impl Iterator<Item = &GeoRule> {
        [&self.asns, &self.countries].into_iter().flatten()
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

impl GeoRule {
    pub fn new(verdict: IpVerdict, codes: BTreeSet<Code>, database: Arc<Database>) -> Self {
        let names: Vec<_> = codes.iter().map(ToString::to_string).collect();
        // Nobody is shown this name, nor asks for this verdict.
        let addresses = Arc::new(List {
            name: names.join(" ").into(),
            verdict: ListVerdict::Block,
            domains: Default::default(),
            prefixes: database.prefixes_of(&codes),
        });
        Self { verdict, codes, addresses, database }
    }

    /// The same rule by another database. `made`: rules of that database, whose addresses are shared.
    pub fn renewed(&self, database: &Arc<Database>, made: &[Self]) -> Self {
        match made.iter().find(|rule| rule.codes == self.codes) {
            Some(same) => Self { verdict: self.verdict, ..same.clone() },
            None => Self::new(self.verdict, self.codes.clone(), database.clone()),
        }
    }
}

impl Question<'_> {
    /// What it says of an address that its list holds: for a rule of codes, by which.
    pub fn judged(&self, address: IpAddr) -> Judged<IpVerdict> {
        let code = self.geo.and_then(|rule| rule.database.code_of(address));
        let list = code.map_or_else(|| self.list.name.clone(), |code| code.to_string().into());
        Judged { verdict: self.verdict, reason: self.reason, list: Some(list) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::list::geoip::mmdb::{Mmdb, Record};
    use crate::list::geoip::{Country, Kind};
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
        Policy { name: "p".into(), default, lists, thresholds, asns: None, countries: None, fingerprints: Vec::new() }
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

    /// The address is of this country and this system, if any.
    fn database(kind: Kind, code: &str) -> Arc<Database> {
        let record = match kind {
            Kind::Country => Record::Country(code.into()),
            Kind::Asn => Record::Asn(code.parse().unwrap()),
        };
        let octets = Mmdb::new("Test", [("192.0.2.0/24".parse().unwrap(), record)]).octets();
        Arc::new(Database::read(&octets, kind).unwrap())
    }

    /// A rule that names the address, or another code.
    fn rule(kind: Kind, verdict: IpVerdict, names_it: bool) -> GeoRule {
        let (own, other) = match kind {
            Kind::Country => ("KP", Code::Country(Country::of("DE").unwrap())),
            Kind::Asn => ("64500", Code::Asn(64_501)),
        };
        let database = database(kind, own);
        let code = database.code_of(ADDRESS.parse().unwrap()).unwrap();
        GeoRule::new(verdict, [if names_it { code } else { other }].into(), database)
    }

    #[test]
    fn a_rule_of_asns_comes_before_one_of_countries_and_says_which_code_it_was() {
        let base = policy(Vec::new(), IpVerdict::Allow, &[]);
        let asns = Some(rule(Kind::Asn, IpVerdict::Allow, true));
        let countries = Some(rule(Kind::Country, IpVerdict::Block, true));
        let of = |name: &str| Some(name.to_owned());
        let both = Policy { asns, countries: countries.clone(), ..base.clone() };
        assert_eq!(ip(&both), (IpVerdict::Allow, Reason::Asn, of("asn:64500")));
        assert_eq!(ip(&Policy { countries, ..base }), (IpVerdict::Block, Reason::Country, of("country:KP")));
        assert_eq!(domain(&both), (DomainVerdict::None, Reason::Default, None), "a name has no country");
    }

    #[test]
    fn a_rule_is_renewed_by_another_database_and_shares_what_another_rule_has() {
        let old = rule(Kind::Country, IpVerdict::Block, true);
        let next = database(Kind::Country, "DE");
        let renewed = old.renewed(&next, &[]);
        assert!(old.addresses.holds_address(ADDRESS.parse().unwrap(), SystemTime::UNIX_EPOCH));
        assert!(renewed.addresses.prefixes.is_empty(), "it is of no country that the rule names");
        let allows = GeoRule { verdict: IpVerdict::Allow, ..old };
        let shared = allows.renewed(&next, std::slice::from_ref(&renewed));
        assert!(Arc::ptr_eq(&shared.addresses, &renewed.addresses));
        assert_eq!(shared.verdict, IpVerdict::Allow);
    }

    proptest! {
        /// SPEC V1 and V2, word by word.
        #[test]
        fn any_lists_are_judged_in_the_order_of_the_specification(
            lists in prop::collection::vec((0..4u8, 1u8..=100, any::<bool>()), 0..8), least in 1u8..=100, blocks in any::<bool>(),
            asns in prop::option::of((any::<bool>(), any::<bool>())), countries in prop::option::of((any::<bool>(), any::<bool>())),
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
            let by_name = reason;
            let names_it = |rule: Option<(bool, bool)>| rule.is_some_and(|(_, names_it)| names_it);
            let reason = match reason {
                Reason::Default if names_it(asns) => Reason::Asn,
                Reason::Default if names_it(countries) => Reason::Country,
                reason => reason,
            };
            let verdict_of = |rule: Option<(bool, bool)>| match rule {
                Some((true, _)) => IpVerdict::Allow,
                _ => IpVerdict::Block,
            };
            let of = |kind, own: Option<(bool, bool)>| own.map(|(_, names_it)| rule(kind, verdict_of(own), names_it));
            let lists = verdicts.iter().map(|(verdict, holds)| list("l", verdict.clone(), *holds)).collect();
            let policy = policy(lists, default, &[("malware", least)]);
            let policy = Policy { asns: of(Kind::Asn, asns), countries: of(Kind::Country, countries), ..policy };
            prop_assert_eq!(ip(&policy).1, reason);
            prop_assert_eq!(domain(&policy).1, by_name);
            let wanted = match reason {
                Reason::AllowList => IpVerdict::Allow,
                Reason::Asn => verdict_of(asns),
                Reason::Country => verdict_of(countries),
                Reason::Default => default,
                _ => IpVerdict::Block,
            };
            prop_assert_eq!(ip(&policy).0, wanted);
        }
    }
}
