//! Names that DNS gave, for flows that show none to anybody: on ports that nobody inspects (SPEC V12).
//!
//! A Network that uses bindings has two sets of pairs of client and remote address: those whose name lets their flows
//! pass, and those whose name blocks them. A pair is there for as long as the DNS record that made it, and as the
//! entries of lists by which its name was judged. A pair in neither set has the verdict of its address.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::time::Duration;

use super::Capture;
use super::ruleset::{Datum, Element, Expression, Family, Key, Rule, Set, SetKind, Verdict};
use crate::policy::network::Network;
use crate::policy::snapshot::Snapshot;

/// Whether any Network uses bindings.
pub fn uses_names(snapshot: &Snapshot) -> bool {
    snapshot.networks().iter().any(|network| is_naming(network))
}

/// Whether flows of a Network's clients may have the verdict of a name that DNS gave them.
pub(super) fn is_naming(network: &Network) -> bool {
    network.outbound.is_some() && network.inspection.as_ref().is_some_and(|inspection| inspection.use_bindings)
}

/// The Networks that use bindings and protect this address, for some of its packets at least.
pub fn naming_networks(snapshot: &Snapshot, client: IpAddr) -> impl Iterator<Item = &Network> {
    let client = client.to_canonical();
    let networks = snapshot.networks().iter().map(AsRef::as_ref).filter(|network| is_naming(network));
    networks.filter(move |network| network.ips.iter().any(|ip| ip.prefix.contains(&client)))
}

/// The set of the pairs that pass, or of those that are blocked. The same from one reload to the next.
pub fn name_set(network: &Network, passes: bool, family: Family) -> String {
    let word = if passes { "pass" } else { "block" };
    let mut hash = DefaultHasher::new();
    network.name.hash(&mut hash);
    format!("named_{word}{}_{}_{:x}", family.digit(), super::selection::plain_name(&network.name), hash.finish())
}

/// `None` if the two are of different families: no packet looks so.
pub fn name_element(client: IpAddr, remote: IpAddr) -> Option<(Family, Element)> {
    match (client.to_canonical(), remote.to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(remote)) => {
            Some((Family::V4, Element::exactly(vec![Datum::Ipv4(client), Datum::Ipv4(remote)])))
        }
        (IpAddr::V6(client), IpAddr::V6(remote)) => {
            Some((Family::V6, Element::exactly(vec![Datum::Ipv6(client), Datum::Ipv6(remote)])))
        }
        _ => None,
    }
}

pub(super) fn name_sets(network: &Network, capture: &Capture) -> Vec<Set> {
    if !is_naming(network) {
        return Vec::new();
    }
    let set = |(passes, family): (bool, Family)| {
        let kind = SetKind::Dynamic { timeout: UNTOLD, size: capture.named };
        Set::new(name_set(network, passes, family), vec![family.field(), family.field()], kind, Vec::new())
    };
    kinds().map(set).collect()
}

/// Sends the packets of pairs with a name to the chain that records and ends them.
pub(super) fn name_rules(network: &Network, chain: impl Fn(bool) -> String) -> Vec<Rule> {
    let rule = |(passes, family): (bool, Family)| {
        let key = vec![Key::Source(family), Key::Destination(family)];
        let named = Expression::InSet { key, set: name_set(network, passes, family), negate: false };
        Rule(vec![Expression::Family(family), named, Expression::Verdict(Verdict::Goto(chain(passes)))])
    };
    if is_naming(network) { kinds().map(rule).collect() } else { Vec::new() }
}

fn kinds() -> impl Iterator<Item = (bool, Family)> {
    [true, false].into_iter().flat_map(|passes| Family::BOTH.map(|family| (passes, family)))
}

/// The time of a pair for which none is told; every pair is told one.
const UNTOLD: Duration = Duration::from_secs(60);
