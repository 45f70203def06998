//! One question and what is decided about it.
//!
//! Pure. Fails closed: where two Networks are concerned both must allow, and an unauthorized resolver is refused before
//! its question is looked at.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::name::DomainName;
use crate::policy::network::{Mode, Network};
use crate::policy::rules::Policy;
use crate::policy::snapshot::Snapshot;
use crate::policy::{ClientAddr, Direction, DomainVerdict, DropAction, IpVerdict, Judged, OrigDst, Reason, Transport};
use crate::wire::dns::query::Query;

/// A client's question, judged.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub client: ClientAddr,
    pub resolver: OrigDst,
    pub transport: Transport,
    pub at: SystemTime,
    pub snapshot: Arc<Snapshot>,
    /// The Network that decided, and in which direction; `None` if none covers either end.
    pub network: Option<(Arc<Network>, Direction)>,
    /// `None`: no question was read, or it names nobody that a list could hold.
    pub name: Option<DomainName>,
    /// The question's type.
    pub kind: Option<u16>,
    /// What the policy says of the name.
    pub domain: Judged<DomainVerdict>,
    pub decision: Decision,
    /// It would have been blocked, but its Network only monitors.
    pub spared: Option<(Reason, Option<Arc<str>>)>,
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
        let Some(action) = network.rule(Direction::Outbound).map(|rule| rule.drop) else { return };
        let resolvers = &network.dns.authorized_resolvers;
        let authorized = resolvers.is_empty() || resolvers.contains(&self.resolver.ip().to_canonical());
        self.network = Some((network, Direction::Outbound));
        if !authorized {
            self.decide(Decision::Refuse { action, reason: Reason::Resolver, list: None });
        }
    }

    fn judge_name(&mut self) {
        let Some((network, policy)) = self.outbound() else { return };
        let unlisted_blocks = network.dns.unlisted_blocks;
        let Some(name) = &self.name else {
            // The root and names of digits alone: no list can hold them.
            if unlisted_blocks {
                self.decide(Decision::Block { reason: Reason::Default, list: None });
            }
            return;
        };
        self.domain = policy.judge_name(name, self.at);
        let list = self.domain.list.clone();
        match self.domain.verdict {
            DomainVerdict::Block => self.decide(Decision::Block { reason: Reason::Domain, list }),
            DomainVerdict::None if unlisted_blocks => self.decide(Decision::Block { reason: Reason::Default, list }),
            DomainVerdict::Allow | DomainVerdict::None => {}
        }
    }

    fn decide(&mut self, decision: Decision) {
        if !self.is_monitored() {
            self.decision = decision;
            return;
        }
        self.spared = match decision {
            Decision::Refuse { reason, list, .. } | Decision::Block { reason, list } => Some((reason, list)),
            Decision::Forward => None,
        };
    }
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
