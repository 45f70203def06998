//! One fresh look-up for a name that would earn its flow an Allow, but has no binding (SPEC V11).
//!
//! Fails closed: no answer in time, and no answer with the flow's address, proves nothing.

use std::time::Duration;

use super::flow::Flow;
use super::worker::Worker;
use crate::dns::lookup;
use crate::peek::Discovery;

/// Asks the first resolver that answers, and binds the flow's address to the name if it is among the answers.
pub async fn prove(worker: &Worker, flow: &Flow, discovery: &Discovery) {
    let Some((name, trusted)) = flow.unproven(discovery) else { return };
    let resolvers = if trusted.is_empty() { &worker.names.resolvers } else { &trusted };
    let remote = flow.orig_dst.ip().to_canonical();
    for resolver in resolvers.iter().take(TRIED) {
        if let Ok(addresses) = lookup::addresses(name, remote, *resolver, PATIENCE).await {
            if let Some((_, ttl)) = addresses.iter().find(|(address, _)| *address == remote) {
                flow.prove(name, Duration::from_secs(u64::from(*ttl)));
            }
            return;
        }
    }
}

/// How long one resolver is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIED: usize = 2;
