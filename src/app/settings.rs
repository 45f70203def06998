//! From the limits that were written to the settings of the gateway.

use std::io;
use std::time::Duration;

use crate::config::limits::Limits;
use crate::dns;
use crate::mode::gateway;
use crate::peek;
use crate::proxy::{proof, relay, udp, worker};
use crate::sys::limits::raise_descriptors;

/// Raises the limit of descriptors on the way, for it bounds the flows.
pub(super) fn of(limits: &Limits) -> io::Result<gateway::Settings> {
    let descriptors = usize::try_from(raise_descriptors()?).unwrap_or(usize::MAX);
    let possible = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_OF_A_FLOW;
    if possible < limits.flows {
        tracing::warn!(flows = possible, "the limit of open descriptors allows fewer flows than limits.flows");
    }
    let workers = match limits.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        number => number,
    };
    let flows = limits.flows.min(possible).max(1);
    Ok(gateway::Settings {
        workers,
        worker: worker::Settings {
            flows,
            // The same part of those that there can be.
            flows_of_one: limits.flows_of_one.min((limits.flows_of_one * flows).div_ceil(limits.flows)),
            held: limits.held_bytes_in_all,
            peek: peek::tcp::Limits { held: limits.held_bytes, fingerprints: true },
            dial_from: worker::DialFrom::Client,
            proof: proof::Settings::new(resolvers()),
        },
        relay: relay::Settings { idle: limits.idle, connect: CONNECT },
        dns: dns::Settings {
            workers: match limits.dns.dns.workers {
                0 => workers.div_ceil(WORKERS_OF_ONE_ASKED),
                number => number.min(workers),
            },
            ..limits.dns.dns.clone()
        },
        // Each worker has a table for each family.
        udp: udp::Settings { flows: (limits.flows / workers).max(1), ..udp::Settings::default() },
        bindings: limits.dns.bindings.clone(),
        kernel_names: true,
    })
}

/// This host's own resolvers; without the file, none.
fn resolvers() -> Vec<std::net::SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    crate::dns::lookup::resolvers_of_host(&text)
}

/// How long a server may take to answer.
const CONNECT: Duration = Duration::from_secs(15);
/// Its two sockets.
const DESCRIPTORS_OF_A_FLOW: usize = 2;
/// For listeners, netlink, logs, pipes in flight and flows that are being refused.
const RESERVED_DESCRIPTORS: usize = 512;
/// One of them answers some 250,000 questions a second.
const WORKERS_OF_ONE_ASKED: usize = 4;
