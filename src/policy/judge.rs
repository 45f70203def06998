//! From what is known of a flow to its verdict.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use super::matrix::{combine, name_decides};
use super::network::{Bind, Ech, Network, Otherwise, Rule};
use super::rules::{FingerprintDemand, Policy};
use super::{Direction, DomainVerdict, IpVerdict, Judged, Reason, Transport, Verdict};
use crate::name::DomainName;
use crate::peek::{Discovery, Fingerprint, Outcome, Via};

/// Whether DNS gave the remote address for the peeked name (SPEC V11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// Nobody asked.
    Unknown,
    Match,
    Mismatch,
}

/// What is known of a flow when it is judged.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub remote: IpAddr,
    /// `None`: its port is not inspected.
    pub discovery: Option<&'a Discovery>,
    pub binding: Binding,
    pub now: SystemTime,
}

/// The verdict of a Network in one direction. A direction that the Network does not judge passes.
pub fn judge(network: &Network, direction: Direction, facts: &Facts<'_>) -> Verdict {
    let verdict = judge_again(network, direction, facts);
    let policy = network.rule(direction).map(|rule| &rule.policy).filter(|_| network.inspection.is_some());
    if verdict.pass && policy.zip(facts.discovery).is_some_and(|(policy, discovery)| refuses(policy, discovery)) {
        return Verdict { pass: false, reason: Reason::Fingerprint, list: None, ..verdict };
    }
    verdict
}

/// The same for a flow that lives, of which the fingerprint is not known any more: it is left out.
pub fn judge_again(network: &Network, direction: Direction, facts: &Facts<'_>) -> Verdict {
    let Some(rule) = network.rule(direction) else { return unjudged() };
    let ip = rule.policy.judge_ip(facts.remote, facts.now);
    let (Some(inspection), Some(discovery)) = (&network.inspection, facts.discovery) else { return by_ip(ip) };
    let verdict = match &discovery.outcome {
        Outcome::Name(name) => by_name(network, rule, ip, name, facts),
        Outcome::NoName => or_ip(inspection.unidentified, Reason::Unidentified, ip),
        Outcome::Unreadable(_) => or_ip(inspection.unreadable, Reason::Unreadable, ip),
    };
    let verdict = Verdict { inspection: Some(inspection.kind), ..verdict };
    if verdict.pass && discovery.ech && inspection.ech == Ech::Block {
        return Verdict { pass: false, reason: Reason::Ech, list: None, ..verdict };
    }
    verdict
}

/// The verdict on a flow that its Network blocks for its port, whatever its name: see [`refused_service`].
pub fn refuse_service(
    network: &Network,
    direction: Direction,
    transport: Option<Transport>,
    port: Option<u16>,
    facts: &Facts<'_>,
) -> Option<Verdict> {
    let reason = refused_service(network, direction, transport, port, facts.remote)?;
    let ip = network.rule(direction)?.policy.judge_ip(facts.remote, facts.now);
    Some(Verdict { pass: false, reason, list: None, ..by_ip(ip) })
}

/// Why a Network blocks a flow for its port, if it does: DNS to a resolver that is not authorized (SPEC D1, D5), or UDP on
/// TLS ports where QUIC is blocked.
pub fn refused_service(
    network: &Network,
    direction: Direction,
    transport: Option<Transport>,
    port: Option<u16>,
    remote: IpAddr,
) -> Option<Reason> {
    let (_, port) = (network.rule(direction)?, port?);
    let blocks_udp = || network.inspection.as_ref().is_some_and(|inspection| inspection.blocks_udp(port));
    if direction == Direction::Outbound && network.dns.refuses(remote, port) {
        Some(Reason::Resolver)
    } else {
        (transport == Some(Transport::Udp) && blocks_udp()).then_some(Reason::Quic)
    }
}

/// The verdict of a name that DNS gave for an address, on outbound flows that show none themselves (SPEC V12).
pub fn judge_bound(network: &Network, remote: IpAddr, name: &DomainName, now: SystemTime) -> Verdict {
    let outcome = Outcome::Name(name.clone());
    let discovery = Discovery { outcome, via: Some(Via::Dns), fingerprint: None, ech: false };
    let facts = Facts { remote, discovery: Some(&discovery), binding: Binding::Match, now };
    judge(network, Direction::Outbound, &facts)
}

/// How long that verdict stands: until the entries of lists end without which it would be another, `longest` at most.
pub fn bound_lasts(
    network: &Network,
    remote: IpAddr,
    name: &DomainName,
    now: SystemTime,
    longest: Duration,
) -> Duration {
    let passes = |at| judge_bound(network, remote, name, at).pass;
    let Some(rule) = network.rule(Direction::Outbound) else { return longest };
    let ends = rule.policy.ends_of(remote, name).into_iter();
    let mut ends: Vec<_> = ends.filter(|end| end.duration_since(now).is_ok_and(|until| until < longest)).collect();
    ends.sort_unstable();
    let changed =
        (!ends.is_empty()).then(|| passes(now)).and_then(|own| ends.into_iter().find(|end| passes(*end) != own));
    changed.and_then(|end| end.duration_since(now).ok()).unwrap_or(longest)
}

fn by_name(network: &Network, rule: &Rule, ip: Judged<IpVerdict>, name: &DomainName, facts: &Facts<'_>) -> Verdict {
    let Some(inspection) = &network.inspection else { return by_ip(ip) };
    let found = rule.policy.judge_name(name, facts.now);
    let unproven = inspection.bind == Bind::Enforce && facts.binding != Binding::Match;
    let domain = match found.verdict {
        DomainVerdict::Allow if unproven => DomainVerdict::None,
        verdict => verdict,
    };
    let pass = combine(inspection.kind, ip.verdict, domain);
    let (reason, list) = if pass != combine(inspection.kind, ip.verdict, found.verdict) {
        (Reason::Binding, found.list)
    } else if name_decides(inspection.kind, ip.verdict, domain) {
        (Reason::Domain, if domain == found.verdict { found.list } else { None })
    } else {
        (ip.reason, ip.list)
    };
    Verdict { pass, reason, ip: ip.verdict, domain: Some(domain), inspection: None, list }
}

fn by_ip(ip: Judged<IpVerdict>) -> Verdict {
    let pass = ip.verdict == IpVerdict::Allow;
    Verdict { pass, reason: ip.reason, ip: ip.verdict, domain: None, inspection: None, list: ip.list }
}

fn or_ip(otherwise: Otherwise, reason: Reason, ip: Judged<IpVerdict>) -> Verdict {
    match otherwise {
        Otherwise::IpVerdict => by_ip(ip),
        Otherwise::Block => Verdict { pass: false, reason, ip: ip.verdict, domain: None, inspection: None, list: None },
    }
}

fn unjudged() -> Verdict {
    let ip = Judged { verdict: IpVerdict::Allow, reason: Reason::Default, list: None };
    by_ip(ip)
}

/// Whether a rule only wants to be told: the fingerprint is not the one that the policy expects for the name.
pub fn alerts(policy: &Policy, discovery: &Discovery) -> bool {
    any_rule(policy, discovery, |demand, same| demand == FingerprintDemand::Alert && !same)
}

fn refuses(policy: &Policy, discovery: &Discovery) -> bool {
    any_rule(policy, discovery, |demand, same| match demand {
        FingerprintDemand::Require => !same,
        FingerprintDemand::Block => same,
        FingerprintDemand::Alert => false,
    })
}

/// Whether some rule for the flow's name holds, given its demand and whether the fingerprint is the rule's.
fn any_rule(policy: &Policy, discovery: &Discovery, holds: impl Fn(FingerprintDemand, bool) -> bool) -> bool {
    let name = match &discovery.outcome {
        Outcome::Name(name) => Some(name),
        _ => None,
    };
    policy.fingerprints.iter().any(|rule| {
        let applies = rule.domains.is_empty() || name.is_some_and(|name| rule.domains.iter().any(|p| p.matches(name)));
        let same = discovery.fingerprint.as_deref().is_some_and(|own| is(own, &rule.value));
        applies && holds(rule.demand, same)
    })
}

fn is(own: &Fingerprint, value: &str) -> bool {
    [&own.ja3, &own.ja3_full, &own.ja4].into_iter().any(|own| own.eq_ignore_ascii_case(value))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::list::{DomainSet, List, ListVerdict, PrefixSet};
    use crate::name::Pattern;
    use crate::peek::{Unreadable, Via};
    use crate::policy::network::{Dns, HttpRequests, Inspection, Mode, Quic};
    use crate::policy::rules::FingerprintRule;
    use crate::policy::{DropAction, InspectionType};

    const KINDS: [InspectionType; 4] =
        [InspectionType::PreferIp, InspectionType::PreferDomain, InspectionType::PreferBoth, InspectionType::Explicit];
    const BLOCKED: &str = "192.0.2.66";
    const ALLOWED: &str = "192.0.2.1";

    fn list(name: &str, verdict: ListVerdict, entry: &str) -> Arc<List> {
        let end = UNIX_EPOCH + Duration::from_secs(1000);
        let (mut domains, mut prefixes) = (DomainSet::default(), PrefixSet::default());
        match entry.parse() {
            Ok(prefix) => prefixes = [(prefix, Some(end))].into_iter().collect(),
            Err(_) => domains = [(Pattern::parse(entry).unwrap(), Some(end))].into_iter().collect(),
        }
        Arc::new(List { name: name.into(), verdict, domains, prefixes })
    }

    /// Names say by themselves which verdict they have.
    fn policy(fingerprints: Vec<FingerprintRule>) -> Arc<Policy> {
        Arc::new(Policy {
            name: "p".into(),
            default: IpVerdict::Allow,
            lists: vec![
                list("bad-hosts", ListVerdict::Block, "192.0.2.66/32"),
                list("good", ListVerdict::Allow, ".allowed.example"),
                list("bad", ListVerdict::Block, ".blocked.example"),
            ],
            thresholds: Default::default(),
            asns: None,
            countries: None,
            fingerprints,
        })
    }

    fn network(kind: InspectionType, change: impl FnOnce(&mut Inspection)) -> Network {
        with_policy(kind, policy(Vec::new()), change)
    }

    fn with_policy(kind: InspectionType, policy: Arc<Policy>, change: impl FnOnce(&mut Inspection)) -> Network {
        let mut inspection = Inspection {
            kind,
            tls_ports: vec![443],
            http_ports: vec![80],
            quic: Quic::Inspect,
            packets: 5,
            timeout: Duration::from_secs(1),
            unidentified: Otherwise::IpVerdict,
            unreadable: Otherwise::Block,
            bind: Bind::Off,
            use_bindings: false,
            ech: Ech::Allow,
            http: HttpRequests::Every,
        };
        change(&mut inspection);
        Network {
            name: "n".into(),
            description: String::new(),
            mode: Mode::Enforce,
            ips: Vec::new(),
            outbound: Some(Rule { policy, drop: DropAction::Discard }),
            inbound: None,
            inspection: Some(inspection),
            dns: Dns::default(),
        }
    }

    fn named(name: &str) -> Discovery {
        let name = DomainName::parse(name.as_bytes()).unwrap();
        Discovery { outcome: Outcome::Name(name), via: Some(Via::Tls), fingerprint: None, ech: false }
    }

    fn judged(network: &Network, remote: &str, discovery: Option<&Discovery>, binding: Binding) -> Verdict {
        let facts = Facts { remote: remote.parse().unwrap(), discovery, binding, now: UNIX_EPOCH };
        judge(network, Direction::Outbound, &facts)
    }

    fn outcome(verdict: &Verdict) -> (bool, Reason, Option<&str>) {
        (verdict.pass, verdict.reason, verdict.list.as_deref())
    }

    /// Each cell of the file, with the name found and with none, through lists and all.
    #[test]
    fn flows_meet_every_cell_of_the_matrix_and_its_reason() {
        let table: toml::Table = include_str!("../../tests/data/verdicts.toml").parse().unwrap();
        let mut cells = 0;
        for kind in KINDS {
            let network = network(kind, |_| ());
            for (column, remote) in [ALLOWED, BLOCKED].into_iter().enumerate() {
                let ip = if remote == ALLOWED { IpVerdict::Allow } else { IpVerdict::Block };
                let by_ip =
                    if remote == ALLOWED { (Reason::Default, None) } else { (Reason::BlockList, Some("bad-hosts")) };
                let names =
                    [("allowed.example", Some("good")), ("x.blocked.example", Some("bad")), ("other.example", None)];
                for (at, (name, own_list)) in names.into_iter().enumerate() {
                    let verdict = judged(&network, remote, Some(&named(name)), Binding::Unknown);
                    let pass = table[kind.as_str()][ip.as_str()][at].as_str() == Some("A");
                    let by_name = table["reasons"][kind.as_str()][ip.as_str()][at].as_str() == Some("name");
                    let (reason, list) = if by_name { (Reason::Domain, own_list) } else { by_ip };
                    assert_eq!(outcome(&verdict), (pass, reason, list), "{kind} {ip} {name}");
                    assert_eq!((verdict.ip, verdict.inspection), (ip, Some(kind)));
                    assert!(verdict.domain.is_some());
                    cells += 1;
                }
                let verdict = judged(&network, remote, Some(&Discovery::no_name(None)), Binding::Unknown);
                let pass = table[kind.as_str()]["no_name"][column].as_str() == Some("A");
                assert_eq!(outcome(&verdict), (pass, by_ip.0, by_ip.1), "{kind} {ip} without a name");
                assert_eq!(verdict.domain, None, "no name is not None");
                cells += 1;
            }
        }
        assert_eq!(cells, 32);
    }

    #[test]
    fn the_verdict_of_a_name_lasts_until_the_entries_end_that_made_it() {
        let own = policy(Vec::new());
        let later = |name: &str, verdict, entry: &str, end: Option<u64>| {
            let end = end.map(|end| UNIX_EPOCH + Duration::from_secs(end));
            let domains = [(Pattern::parse(entry).unwrap(), end)].into_iter().collect();
            Arc::new(List { name: name.into(), verdict, domains, prefixes: PrefixSet::default() })
        };
        let lasts = |more: Vec<Arc<List>>, remote: &str, name: &str, now, longest| {
            let lists = own.lists.iter().cloned().chain(more).collect();
            let policy = Arc::new(Policy { lists, ..(*own).clone() });
            let network = with_policy(InspectionType::Explicit, policy, |_| ());
            let name = DomainName::parse(name.as_bytes()).unwrap();
            let now = UNIX_EPOCH + Duration::from_millis(now);
            let longest = Duration::from_secs(longest);
            bound_lasts(&network, remote.parse().unwrap(), &name, now, longest).as_millis()
        };
        let good = "www.allowed.example";
        // Blocked by address: the entry of the name lets it pass. Both end at 1000 s, and then the default lets it pass.
        assert_eq!(lasts(vec![], BLOCKED, good, 0, 3600), 3_600_000);
        assert_eq!(lasts(vec![], ALLOWED, "bad.blocked.example", 400_500, 3600), 599_500);
        assert_eq!(lasts(vec![], ALLOWED, "bad.blocked.example", 400_500, 60), 60_000, "no longer than DNS said");
        assert_eq!(lasts(vec![], ALLOWED, "bad.blocked.example", 1_000_000, 60), 60_000, "it has ended before");
        let forever = later("also-bad", ListVerdict::Block, "bad.blocked.example", None);
        assert_eq!(lasts(vec![forever], ALLOWED, "bad.blocked.example", 0, 3600), 3_600_000, "another holds it on");
        let longer = || later("also-bad", ListVerdict::Block, "*.blocked.example", Some(2000));
        assert_eq!(lasts(vec![longer()], ALLOWED, "bad.blocked.example", 0, 3600), 2_000_000);
        // Allowed until 1000 s, then blocked until 2000 s.
        let beneath = later("then-bad", ListVerdict::Block, good, Some(2000));
        assert_eq!(lasts(vec![beneath], ALLOWED, good, 0, 3600), 1_000_000);
        // The address stays blocked, and the name lets it pass until 500 s.
        let beneath = later("until", ListVerdict::Allow, "other.example", Some(500));
        assert_eq!(lasts(vec![beneath], BLOCKED, "other.example", 0, 3600), 500_000);
    }

    #[test]
    fn a_flow_that_is_not_inspected_is_judged_by_its_address_alone() {
        for kind in KINDS {
            let network = network(kind, |inspection| inspection.unidentified = Otherwise::Block);
            assert_eq!(outcome(&judged(&network, ALLOWED, None, Binding::Unknown)), (true, Reason::Default, None));
            let blocked = judged(&network, BLOCKED, None, Binding::Unknown);
            assert_eq!(outcome(&blocked), (false, Reason::BlockList, Some("bad-hosts")));
            assert_eq!((blocked.domain, blocked.inspection), (None, None));
        }
    }

    #[test]
    fn a_direction_without_a_policy_passes() {
        let network = network(InspectionType::Explicit, |_| ());
        let facts =
            Facts { remote: BLOCKED.parse().unwrap(), discovery: None, binding: Binding::Unknown, now: UNIX_EPOCH };
        assert!(judge(&network, Direction::Inbound, &facts).pass);
        assert!(!judge(&network, Direction::Outbound, &facts).pass);
    }

    #[test]
    fn unidentified_block_refuses_a_flow_without_a_name_whatever_the_type() {
        for kind in KINDS {
            let network = network(kind, |inspection| inspection.unidentified = Otherwise::Block);
            for via in [None, Some(Via::Tls)] {
                let verdict = judged(&network, ALLOWED, Some(&Discovery::no_name(via)), Binding::Unknown);
                assert_eq!(outcome(&verdict), (false, Reason::Unidentified, None), "{kind}");
            }
            let named = judged(&network, ALLOWED, Some(&named("other.example")), Binding::Unknown);
            assert!(named.pass, "{kind}");
        }
    }

    #[test]
    fn an_unreadable_beginning_is_blocked_unless_the_network_says_otherwise() {
        let unreadable = Discovery::unreadable(Via::Tls, Unreadable::TooLong);
        for kind in KINDS {
            let strict = network(kind, |_| ());
            let verdict = judged(&strict, ALLOWED, Some(&unreadable), Binding::Unknown);
            assert_eq!(outcome(&verdict), (false, Reason::Unreadable, None), "{kind}");
            let lax = network(kind, |inspection| inspection.unreadable = Otherwise::IpVerdict);
            assert!(judged(&lax, ALLOWED, Some(&unreadable), Binding::Unknown).pass);
            assert!(!judged(&lax, BLOCKED, Some(&unreadable), Binding::Unknown).pass);
        }
    }

    #[test]
    fn an_unproven_name_earns_no_allow_and_escapes_no_block() {
        for kind in KINDS {
            let bound = network(kind, |inspection| inspection.bind = Bind::Enforce);
            for remote in [ALLOWED, BLOCKED] {
                for binding in [Binding::Unknown, Binding::Mismatch] {
                    let allowed = judged(&bound, remote, Some(&named("allowed.example")), binding);
                    let unlisted = judged(&bound, remote, Some(&named("other.example")), binding);
                    assert_eq!(allowed.pass, unlisted.pass, "{kind} {remote} {binding:?}");
                    assert_eq!(allowed.domain, Some(DomainVerdict::None));
                    let blocked = judged(&bound, remote, Some(&named("blocked.example")), binding);
                    let proven = judged(&bound, remote, Some(&named("blocked.example")), Binding::Match);
                    assert_eq!(blocked, proven, "a Block needs no proof");
                }
                let proven = judged(&bound, remote, Some(&named("allowed.example")), Binding::Match);
                let unbound = judged(&network(kind, |_| ()), remote, Some(&named("allowed.example")), Binding::Unknown);
                assert_eq!(proven, unbound);
            }
        }
    }

    #[test]
    fn the_reason_is_the_binding_exactly_where_proof_would_have_turned_the_verdict() {
        let judge_at = |kind, bind, remote| {
            let bound = network(kind, |inspection| inspection.bind = bind);
            let verdict = judged(&bound, remote, Some(&named("allowed.example")), Binding::Mismatch);
            (verdict.pass, verdict.reason)
        };
        assert_eq!(judge_at(InspectionType::Explicit, Bind::Enforce, BLOCKED), (false, Reason::Binding));
        assert_eq!(judge_at(InspectionType::Explicit, Bind::Log, BLOCKED), (true, Reason::Domain));
        assert_eq!(judge_at(InspectionType::PreferIp, Bind::Enforce, BLOCKED), (false, Reason::BlockList));
        assert_eq!(judge_at(InspectionType::PreferBoth, Bind::Enforce, BLOCKED), (false, Reason::BlockList));
        assert_eq!(judge_at(InspectionType::PreferDomain, Bind::Enforce, BLOCKED), (true, Reason::Domain));
    }

    #[test]
    fn encrypted_hellos_are_blocked_where_the_network_says_so() {
        for kind in KINDS {
            for (ech, pass) in [(Ech::Allow, true), (Ech::Block, false)] {
                let network = network(kind, |inspection| inspection.ech = ech);
                let hidden = Discovery { ech: true, ..named("allowed.example") };
                assert_eq!(judged(&network, ALLOWED, Some(&hidden), Binding::Unknown).pass, pass);
                let nameless = Discovery { ech: true, ..Discovery::no_name(Some(Via::Tls)) };
                assert_eq!(judged(&network, ALLOWED, Some(&nameless), Binding::Unknown).pass, pass);
                assert!(judged(&network, ALLOWED, Some(&named("allowed.example")), Binding::Unknown).pass);
            }
        }
    }

    fn fingerprinted(name: Option<&str>, ja3: &str) -> Discovery {
        let fingerprint = Fingerprint { ja3_full: "771,1,2,3,4".into(), ja3: ja3.into(), ja4: "t13d".into() };
        let discovery = name.map_or_else(|| Discovery::no_name(Some(Via::Tls)), named);
        Discovery { fingerprint: Some(Box::new(fingerprint)), ..discovery }
    }

    fn passes(demand: FingerprintDemand, domains: &[&str], value: &str, discovery: &Discovery) -> bool {
        let domains = domains.iter().map(|domain| Pattern::parse(domain).unwrap()).collect();
        let rules = vec![FingerprintRule { domains, demand, value: value.into() }];
        let network = with_policy(InspectionType::PreferBoth, policy(rules), |_| ());
        let verdict = judged(&network, ALLOWED, Some(discovery), Binding::Unknown);
        assert!(verdict.pass || verdict.reason == Reason::Fingerprint);
        verdict.pass
    }

    #[test]
    fn a_demanded_fingerprint_lets_no_other_through_to_its_names() {
        use FingerprintDemand::*;
        let right = fingerprinted(Some("api.enforce.example"), "aa11");
        let wrong = fingerprinted(Some("api.enforce.example"), "bb22");
        let domains = &["*.enforce.example"][..];
        for value in ["aa11", "AA11", "771,1,2,3,4", "t13d"] {
            assert!(passes(Require, domains, value, &right), "{value}");
        }
        assert!(!passes(Require, domains, "aa11", &wrong));
        assert!(!passes(Require, domains, "aa11", &named("api.enforce.example")), "none at all is another");
        assert!(passes(Require, domains, "aa11", &fingerprinted(Some("elsewhere.example"), "bb22")));
        assert!(passes(Require, domains, "aa11", &fingerprinted(None, "bb22")));
        assert!(passes(Alert, domains, "aa11", &wrong));
    }

    #[test]
    fn a_blocked_fingerprint_is_refused_for_its_names_or_for_all() {
        use FingerprintDemand::Block;
        for (domains, name, pass) in [
            (&["*.enforce.example"][..], Some("api.enforce.example"), false),
            (&["*.enforce.example"], Some("elsewhere.example"), true),
            (&["*.enforce.example"], None, true),
            (&[], Some("elsewhere.example"), false),
            (&[], None, false),
        ] {
            assert_eq!(passes(Block, domains, "aa11", &fingerprinted(name, "aa11")), pass, "{domains:?} {name:?}");
            assert!(passes(Block, domains, "aa11", &fingerprinted(name, "bb22")));
        }
    }

    #[test]
    fn entries_of_lists_end_with_their_time() {
        let network = network(InspectionType::PreferBoth, |_| ());
        let at = |seconds| Facts {
            remote: BLOCKED.parse().unwrap(),
            discovery: None,
            binding: Binding::Unknown,
            now: UNIX_EPOCH + Duration::from_secs(seconds),
        };
        assert!(!judge(&network, Direction::Outbound, &at(999)).pass);
        assert!(judge(&network, Direction::Outbound, &at(1000)).pass);
    }
}
