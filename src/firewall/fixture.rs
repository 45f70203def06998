//! Policies for tests.

use std::sync::Arc;
use std::time::Duration;

use super::{Capture, Ruleset, render};
use crate::list::{DomainSet, List, ListVerdict};
use crate::policy::network::{
    Bind, Dns, Ech, HttpRequests, Inspection, Mode, Network, Otherwise, Port, ProtectedIp, Protocol, Quic, Rule,
};
use crate::policy::rules::Policy;
use crate::policy::snapshot::Snapshot;
use crate::policy::{DropAction, InspectionType, IpVerdict};

/// A Network that inspects the outbound flows of these prefixes on TCP 80 and 443, and UDP 443.
pub(crate) fn network(name: &str, ips: &[(&str, Option<&Arc<Port>>)]) -> Network {
    let protected = |(prefix, port): &(&str, Option<&Arc<Port>>)| ProtectedIp {
        prefix: prefix.parse().unwrap(),
        port: port.cloned(),
    };
    Network {
        name: name.into(),
        description: String::new(),
        mode: Mode::Enforce,
        ips: ips.iter().map(protected).collect(),
        outbound: Some(Rule { policy: Arc::new(policy()), drop: DropAction::Discard }),
        inbound: None,
        inspection: Some(inspection()),
        dns: Dns::default(),
    }
}

pub(super) fn port(protocols: &[(u8, &[std::ops::RangeInclusive<u16>])]) -> Arc<Port> {
    let protocols = protocols.iter().map(|(number, ports)| Protocol { number: *number, ports: ports.to_vec() });
    Arc::new(Port { name: "port".into(), description: String::new(), protocols: protocols.collect() })
}

/// The Network with these lists in its outbound policy, malware blocked from 50 on.
pub(crate) fn with_policy(network: Network, lists: Vec<Arc<List>>, default: IpVerdict) -> Network {
    let thresholds = [("malware".into(), 50)].into_iter().collect();
    let policy = Policy { lists, default, thresholds, ..policy() };
    Network { outbound: Some(Rule { policy: Arc::new(policy), drop: DropAction::Discard }), ..network }
}

pub(super) fn list(name: &str, verdict: ListVerdict, prefixes: &[&str]) -> Arc<List> {
    let prefixes = prefixes.iter().map(|prefix| (prefix.parse().unwrap(), None)).collect();
    Arc::new(List { name: name.into(), verdict, domains: DomainSet::default(), prefixes })
}

pub(crate) fn snapshot(networks: Vec<Network>) -> Snapshot {
    Snapshot::new("edge-1".into(), 1, networks.into_iter().map(Arc::new).collect())
}

pub(super) fn rules(networks: Vec<Network>, capture: &Capture) -> Ruleset {
    render(&snapshot(networks), capture)
}

/// The text of one set or chain, without the indentation of the table.
pub(super) fn text_of(ruleset: &Ruleset, name: &str) -> String {
    let sets = ruleset.sets.iter().filter(|set| set.name == name).map(ToString::to_string);
    let chains = ruleset.chains.iter().filter(|chain| chain.name == name).map(ToString::to_string);
    let text: String = sets.chain(chains).collect();
    text.lines().map(|line| format!("{}\n", line.trim())).collect()
}

fn policy() -> Policy {
    Policy {
        name: "out".into(),
        default: IpVerdict::Allow,
        lists: Vec::new(),
        thresholds: Default::default(),
        asns: None,
        countries: None,
        fingerprints: Vec::new(),
    }
}

fn inspection() -> Inspection {
    Inspection {
        kind: InspectionType::PreferBoth,
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
    }
}
