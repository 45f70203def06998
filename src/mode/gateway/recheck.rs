//! Flows that the kernel judged, judged again when the policy has changed (SPEC R7).
//!
//! The kernel knows only that it let a flow in. Each is looked up in connection tracking and judged here by the same policy,
//! as the rules would judge it if it began now; what is forbidden is ended in the kernel, in both directions.
//!
//! So is forwarded UDP that no worker accounts for, since a process before let it in, or since there was no room. What it
//! was called is known no more, and its address decides: that fails closed.
//!
//! Fails open for one kind: a flow that only a name let in, which DNS has not told for so long that it is forgotten,
//! goes on. To end it would end every long flow to such a name at any reload.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::time::{Instant, SystemTime};

use crate::firewall::{FlowKey, FlowSet, TCP, UDP};
use crate::policy::bindings::Bindings;
use crate::policy::judge::{judge_bound, refused_service};
use crate::policy::network::{Mode, Network};
use crate::policy::snapshot::Snapshot;
use crate::policy::{Direction, DropAction, IpVerdict, Transport};
use crate::proxy::udp::ENDED;
use crate::sys::conntrack::Conntrack;
use crate::sys::nft::NftSocket;
use crate::telemetry::{Kind, Record, Telemetry};
use crate::wire::ip::Headers;

/// Ends the flows that `next` forbids; how many. `before` is the policy that was in force until now.
pub fn end_forbidden(
    before: &Snapshot,
    next: &Snapshot,
    bindings: &Bindings,
    telemetry: &Telemetry,
) -> io::Result<usize> {
    let judges = Judges { before, next, bindings, now: SystemTime::now() };
    let mut conntrack = Conntrack::open()?;
    let forbidden = conntrack.find(|headers| judges.forbid(headers))?;
    let mut ended = 0;
    for (flow, (network, direction, action)) in forbidden {
        if conntrack.end(&flow, action)? {
            ended += 1;
            telemetry.record(end_of(next, &flow.headers, network, direction, action));
        }
    }
    Ok(ended + end_unaccounted(&judges, &mut conntrack, telemetry)?)
}

/// Workers have what they account for counted, from before it is forwarded until it no longer is.
fn end_unaccounted(judges: &Judges<'_>, conntrack: &mut Conntrack, telemetry: &Telemetry) -> io::Result<usize> {
    let mut kernel = NftSocket::open()?;
    let accounted: HashSet<FlowKey> = kernel.flows(FlowSet::Sent)?.into_iter().collect();
    let forwarded = kernel.flows(FlowSet::Forwarded)?;
    let mut ended = 0;
    for flow in forwarded.into_iter().filter(|flow| !accounted.contains(flow)) {
        let headers = headers_of(&flow);
        let Some((network, direction, action)) = judges.forbid(&headers) else { continue };
        // It may have begun between the two looks.
        if kernel.counted(FlowSet::Sent, &flow)?.is_some() {
            continue;
        }
        // A full set keeps none of the others from their end.
        let blocked = kernel.add_flow(FlowSet::blocking(action), &flow, Some(ENDED));
        let removed = kernel.remove_flow(FlowSet::Forwarded, &flow);
        let tracked = conntrack.end_between(&flow, action);
        if let Err(error) = blocked.and(removed).map_err(io::Error::from).and(tracked) {
            tracing::warn!(client = %flow.client, remote = %flow.remote, %error, "a forbidden UDP flow is not ended");
            continue;
        }
        ended += 1;
        telemetry.record(end_of(judges.next, &headers, network, direction, action));
    }
    Ok(ended)
}

fn headers_of(flow: &FlowKey) -> Headers {
    let ports = Some((flow.client.port(), flow.remote.port()));
    Headers { source: flow.client.ip(), destination: flow.remote.ip(), protocol: UDP, ports }
}

struct Judges<'a> {
    before: &'a Snapshot,
    next: &'a Snapshot,
    bindings: &'a Bindings,
    now: SystemTime,
}

impl<'a> Judges<'a> {
    fn forbid(&self, flow: &Headers) -> Option<(&'a Network, Direction, DropAction)> {
        [Direction::Outbound, Direction::Inbound].into_iter().find_map(|direction| {
            let network = network_of(self.next, flow, direction)?;
            let rule = network.rule(direction).filter(|_| network.mode == Mode::Enforce)?;
            self.blocks(network, flow, direction).then_some((network, direction, rule.drop))
        })
    }

    fn blocks(&self, network: &Network, flow: &Headers, direction: Direction) -> bool {
        let remote = remote_of(flow, direction);
        let port = flow.ports.map(|ports| ports.1);
        if refused_service(network, direction, transport_of(flow), port, remote).is_some() {
            return true;
        }
        let uses_names = network.inspection.as_ref().is_some_and(|inspection| inspection.use_bindings);
        if direction == Direction::Outbound && uses_names {
            if let Some(name) = self.bindings.name_for(flow.source, flow.destination, Instant::now()) {
                return !judge_bound(network, flow.destination, &name, self.now).pass;
            }
            let old = network_of(self.before, flow, direction);
            if old.and_then(|old| self.verdict(old, flow, direction)) == Some(IpVerdict::Block) {
                return false;
            }
        }
        self.verdict(network, flow, direction) == Some(IpVerdict::Block)
    }

    fn verdict(&self, network: &Network, flow: &Headers, direction: Direction) -> Option<IpVerdict> {
        Some(network.rule(direction)?.policy.judge_ip(remote_of(flow, direction), self.now).verdict)
    }
}

fn remote_of(flow: &Headers, direction: Direction) -> IpAddr {
    if direction == Direction::Outbound { flow.destination } else { flow.source }
}

fn transport_of(flow: &Headers) -> Option<Transport> {
    match flow.protocol {
        TCP => Some(Transport::Tcp),
        UDP => Some(Transport::Udp),
        _ => None,
    }
}

fn network_of<'a>(snapshot: &'a Snapshot, flow: &Headers, direction: Direction) -> Option<&'a Network> {
    let protected = if direction == Direction::Outbound { flow.source } else { flow.destination };
    snapshot.network_of(protected, flow.protocol, flow.ports.map(|ports| ports.1)).map(AsRef::as_ref)
}

fn end_of(snapshot: &Snapshot, flow: &Headers, network: &Network, direction: Direction, action: DropAction) -> Record {
    let record = Record::of_packet(Kind::End, SystemTime::now(), snapshot.enforcer.clone(), flow);
    let policy = network.rule(direction).map(|rule| rule.policy.name.clone());
    let mut record = record.judged_by(network.name.clone(), policy, direction);
    record.action = Some(action.as_str());
    record.closed_by = Some("policy");
    record
}
