//! One question and what is decided about it.
//!
//! Pure. Fails closed: where two Networks are concerned both must allow, and an unauthorized resolver is refused before
//! its question is looked at.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use crate::name::DomainName;
use crate::policy::network::{DNS_PORT, Mode, Network};
use crate::policy::rules::Policy;
use crate::policy::snapshot::Snapshot;
use crate::policy::{ClientAddr, Direction, DomainVerdict, DropAction, IpVerdict, Judged, OrigDst, Reason, Transport};
use crate::wire::dns::query::Query;

/// The reason of a block, and the list that it is from.
pub type Why = (Reason, Option<Arc<str>>);

/// A Network, and the direction in which it judges.
pub type Judge = (Arc<Network>, Direction);

/// A client's question, judged.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub client: ClientAddr,
    pub resolver: OrigDst,
    pub transport: Transport,
    pub at: SystemTime,
    pub snapshot: Arc<Snapshot>,
    /// The Network that decided; `None` if none covers either end.
    pub network: Option<Judge>,
    /// `None`: no question was read, or it names nobody that a list could hold.
    pub name: Option<DomainName>,
    /// The question's type.
    pub kind: Option<u16>,
    /// What the policy says of the name.
    pub domain: Judged<DomainVerdict>,
    pub decision: Decision,
    /// A Network that would have blocked it, but only monitors. Another may block it all the same.
    pub spared: Option<(Judge, Why)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The resolver may not be asked: the drop action.
    Refuse {
        action: DropAction,
        reason: Reason,
        list: Option<Arc<str>>,
    },
    /// The name is blocked: answered here.
    Block {
        reason: Reason,
        list: Option<Arc<str>>,
    },
    Forward,
}

impl Exchange {
    /// A conversation whose question is not known yet: judged by its ends alone.
    pub fn begin(
        snapshot: &Arc<Snapshot>,
        client: SocketAddr,
        resolver: SocketAddr,
        transport: Transport,
        at: SystemTime,
    ) -> Self {
        let mut exchange = Self {
            client: ClientAddr(client),
            resolver: OrigDst(resolver),
            transport,
            at,
            snapshot: snapshot.clone(),
            network: None,
            name: None,
            kind: None,
            domain: Judged { verdict: DomainVerdict::None, reason: Reason::Default, list: None },
            decision: Decision::Forward,
            spared: None,
        };
        let of = |end: SocketAddr, direction| {
            let network = snapshot.network_of(end.ip(), protocol(transport), Some(resolver.port()))?;
            network.rule(direction).is_some().then(|| network.clone())
        };
        let outbound = of(client, Direction::Outbound);
        if let Some(network) = of(resolver, Direction::Inbound) {
            exchange.judge_inbound(network);
        }
        if let Some(network) = outbound {
            exchange.judge_resolver(network);
        }
        exchange
    }

    /// Whether what comes is DNS in the clear. What was captured on its way to another port came to be refused, and
    /// cannot be read.
    pub fn is_readable(&self) -> bool {
        self.resolver.port() == DNS_PORT
    }

    /// Judges `query` in this conversation.
    pub fn ask(self, query: &Query<'_>, at: SystemTime) -> Self {
        let mut exchange = Self { at, kind: Some(query.question.kind), ..self };
        exchange.name = query.question.name.to_domain();
        if exchange.decision == Decision::Forward {
            exchange.judge_name();
        }
        exchange
    }

    /// The Network and policy by which names and answers are judged.
    pub fn outbound(&self) -> Option<(&Network, &Policy)> {
        let (network, direction) = self.network.as_ref()?;
        let rule = network.rule(Direction::Outbound).filter(|_| *direction == Direction::Outbound)?;
        Some((network, &rule.policy))
    }

    /// Whether blocking is all that this Network does not do.
    pub fn is_monitored(&self) -> bool {
        self.network.as_ref().is_some_and(|(network, _)| network.mode == Mode::Monitor)
    }

    pub fn upstream(&self) -> &[SocketAddr] {
        self.outbound().map_or(&[], |(network, _)| &network.dns.upstream)
    }

    fn judge_inbound(&mut self, network: Arc<Network>) {
        let Some(rule) = network.rule(Direction::Inbound) else { return };
        let ip = rule.policy.judge_ip(self.client.ip(), self.at);
        let action = rule.drop;
        self.network = Some((network, Direction::Inbound));
        if ip.verdict == IpVerdict::Block {
            self.decide(Decision::Refuse { action, reason: ip.reason, list: ip.list });
        }
    }

    fn judge_resolver(&mut self, network: Arc<Network>) {
        if self.decision != Decision::Forward {
            return;
        }
        let Some(rule) = network.rule(Direction::Outbound) else { return };
        let action = rule.drop;
        let refused = refused_resolver(&network, &rule.policy, self.resolver.ip(), self.at);
        self.network = Some((network, Direction::Outbound));
        if let Some((reason, list)) = refused {
            self.decide(Decision::Refuse { action, reason, list });
        }
    }

    fn judge_name(&mut self) {
        let Some((network, policy)) = self.outbound() else { return };
        // The root and names of digits alone: no list can hold them.
        let domain = self.name.as_ref().map(|name| policy.judge_name(name, self.at));
        let domain = domain.unwrap_or_else(|| self.domain.clone());
        let blocked = blocked_name(network, &domain);
        self.domain = domain;
        if let Some((reason, list)) = blocked {
            self.decide(Decision::Block { reason, list });
        }
    }

    fn decide(&mut self, decision: Decision) {
        if !self.is_monitored() {
            self.decision = decision;
            return;
        }
        if let Decision::Refuse { reason, list, .. } | Decision::Block { reason, list } = decision {
            self.spared = self.network.clone().zip(Some((reason, list)));
        }
    }
}

/// Why `resolver` may not be asked by the hosts of this Network, if so.
pub fn refused_resolver(network: &Network, policy: &Policy, resolver: IpAddr, at: SystemTime) -> Option<Why> {
    if !network.dns.authorizes(resolver) {
        return Some((Reason::Resolver, None));
    }
    // Any resolver may be asked where none is authorized, but for one whose own address somebody has put on a list.
    let is_asked = network.dns.authorized_resolvers.is_empty() && network.dns.upstream.is_empty();
    let listed = is_asked.then(|| policy.judge_ip(resolver, at))?;
    (listed.verdict == IpVerdict::Block && listed.reason != Reason::Default).then_some((listed.reason, listed.list))
}

/// Why a question for a name of this verdict is answered here, if so.
pub fn blocked_name(network: &Network, domain: &Judged<DomainVerdict>) -> Option<Why> {
    let reason = match domain.verdict {
        DomainVerdict::Block => Reason::Domain,
        DomainVerdict::None if network.dns.unlisted_blocks => Reason::Default,
        DomainVerdict::Allow | DomainVerdict::None => return None,
    };
    Some((reason, domain.list.clone()))
}

/// The names that ask clients to leave encrypted DNS alone by not existing: Firefox's
/// (<https://support.mozilla.org/kb/canary-domain-use-application-dnsnet>) and those of iCloud Private Relay
/// (<https://developer.apple.com/support/prepare-your-network-for-icloud-private-relay>).
pub fn is_canary(name: &DomainName) -> bool {
    matches!(name.as_str(), "use-application-dns.net" | "mask.icloud.com" | "mask-h2.icloud.com")
}

fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::list::{List, ListVerdict};
    use crate::name::Pattern;
    use crate::policy::network::{Dns, ProtectedIp, Rule};

    fn policy(default: IpVerdict) -> Arc<Policy> {
        let list = List {
            name: "ads".into(),
            verdict: ListVerdict::Block,
            domains: [(Pattern::parse(".ads.example").unwrap(), None)].into_iter().collect(),
            prefixes: Default::default(),
        };
        Arc::new(Policy {
            name: "p".into(),
            default,
            lists: vec![Arc::new(list)],
            thresholds: Default::default(),
            asns: None,
            countries: None,
            fingerprints: vec![],
        })
    }

    fn network(prefix: &str, outbound: Option<IpVerdict>, inbound: Option<IpVerdict>, dns: Dns) -> Network {
        let rule = |default| Rule { policy: policy(default), drop: DropAction::Discard };
        Network {
            name: prefix.into(),
            description: String::new(),
            mode: Mode::Enforce,
            ips: vec![ProtectedIp { prefix: prefix.parse().unwrap(), port: None }],
            outbound: outbound.map(rule),
            inbound: inbound.map(rule),
            inspection: None,
            dns,
        }
    }

    fn decision(networks: Vec<Network>, name: &str) -> Decision {
        let snapshot = Arc::new(Snapshot::new("e".into(), 1, networks.into_iter().map(Arc::new).collect()));
        let (client, resolver) = ("10.1.0.2:4000".parse().unwrap(), "10.2.0.53:53".parse().unwrap());
        let mut query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0".to_vec();
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.bytes());
        }
        query.extend([0, 0, 1, 0, 1]);
        let now = SystemTime::UNIX_EPOCH;
        let conversation = Exchange::begin(&snapshot, client, resolver, Transport::Udp, now);
        conversation.ask(&Query::read(&query).unwrap(), now).decision
    }

    const ALLOW: Option<IpVerdict> = Some(IpVerdict::Allow);
    const BLOCK: Option<IpVerdict> = Some(IpVerdict::Block);

    #[test]
    fn without_a_network_everything_is_forwarded() {
        assert_eq!(decision(vec![], "ads.example"), Decision::Forward);
        let inbound_only = network("10.1.0.0/24", None, BLOCK, Dns::default());
        assert_eq!(decision(vec![inbound_only], "ads.example"), Decision::Forward);
    }

    #[test]
    fn the_policy_default_for_addresses_decides_nothing_about_names() {
        let own = || network("10.1.0.0/24", BLOCK, None, Dns::default());
        assert_eq!(decision(vec![own()], "www.example"), Decision::Forward);
        let blocked = Decision::Block { reason: Reason::Domain, list: Some("ads".into()) };
        assert_eq!(decision(vec![own()], "x.ads.example"), blocked);
    }

    #[test]
    fn a_protected_resolver_is_asked_only_by_whom_its_network_lets_in() {
        let own = || network("10.1.0.0/24", ALLOW, None, Dns::default());
        let theirs = |inbound| network("10.2.0.0/24", None, inbound, Dns::default());
        assert_eq!(decision(vec![own(), theirs(ALLOW)], "www.example"), Decision::Forward);
        assert!(matches!(decision(vec![own(), theirs(BLOCK)], "www.example"), Decision::Refuse { .. }));
        assert!(matches!(decision(vec![theirs(BLOCK)], "www.example"), Decision::Refuse { .. }));
    }

    #[test]
    fn an_unauthorized_resolver_is_refused_before_the_name_is_looked_at() {
        let with = |ip: &str| Dns { authorized_resolvers: vec![ip.parse().unwrap()], ..Dns::default() };
        let refused = Decision::Refuse { action: DropAction::Discard, reason: Reason::Resolver, list: None };
        let own = |ip| network("10.1.0.0/24", ALLOW, None, with(ip));
        assert_eq!(decision(vec![own("10.2.0.54")], "ads.example"), refused);
        assert!(matches!(decision(vec![own("10.2.0.53")], "ads.example"), Decision::Block { .. }));
    }

    #[test]
    fn what_was_going_to_another_port_is_never_read_as_a_question() {
        let snapshot = Arc::new(Snapshot::new("e".into(), 1, vec![]));
        let to = |port| {
            let (client, resolver) = (([10, 1, 0, 2], 4000).into(), ([10, 2, 0, 53], port).into());
            Exchange::begin(&snapshot, client, resolver, Transport::Udp, SystemTime::UNIX_EPOCH)
        };
        assert!(to(53).is_readable());
        assert!(!to(853).is_readable());
    }

    #[test]
    fn a_monitored_network_decides_nothing() {
        let dns = Dns { authorized_resolvers: vec!["10.2.0.54".parse().unwrap()], ..Dns::default() };
        let own = Network { mode: Mode::Monitor, ..network("10.1.0.0/24", ALLOW, None, dns) };
        assert_eq!(decision(vec![own], "ads.example"), Decision::Forward);
    }

    #[test]
    fn the_shipped_list_of_encrypted_resolvers_is_well_formed_and_has_the_canaries() {
        let text = include_str!("../../conf/lists/doh.txt");
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let patterns: Vec<Pattern> = lines.map(|line| Pattern::parse(line).unwrap()).collect();
        assert!(patterns.len() > 100);
        let holds = |name: &DomainName| patterns.iter().any(|pattern| pattern.matches(name));
        for canary in ["use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com"] {
            let canary = DomainName::parse(canary.as_bytes()).unwrap();
            assert!(is_canary(&canary) && holds(&canary));
        }
        for name in ["dns.google", "cloudflare-dns.com", "abc123.dns.nextdns.io"] {
            assert!(holds(&DomainName::parse(name.as_bytes()).unwrap()), "{name}");
        }
    }
}
