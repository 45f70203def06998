//! What is to be captured, and the rules for it.

use super::sidecar::Sidecar;
use super::{Failure, because};
use crate::config::Loaded;
use crate::config::limits;
use crate::firewall::{self, Capture, Listener, OnFailure, Ruleset};
use crate::policy::Direction;
use crate::policy::snapshot::Snapshot;
use crate::sys::capture;

/// Puts rules in place that drop what they capture, as after a crash, and ends.
pub fn install_rules(loaded: &Loaded) -> Result<(), Failure> {
    let nobody =
        Listening { tcp: Listener::NONE, udp: Listener::NONE, dns_udp: Listener::NONE, dns_tcp: Listener::NONE };
    let capture = capture_of(loaded, &nobody);
    let sidecar = loaded.sidecar.as_ref().map(Sidecar::new);
    let ruleset = render(&loaded.snapshot(1), &capture, sidecar.as_ref());
    capture::install(&ruleset).map_err(because("put the rules in place"))
}

/// The listeners that the rules name.
pub(super) struct Listening {
    pub(super) tcp: Listener,
    pub(super) udp: Listener,
    pub(super) dns_udp: Listener,
    pub(super) dns_tcp: Listener,
}

pub(super) fn capture_of(loaded: &Loaded, to: &Listening) -> Capture {
    Capture {
        udp: Some(to.udp),
        dns_udp: Some(to.dns_udp),
        dns_tcp: Some(to.dns_tcp),
        directions: vec![Direction::Outbound, Direction::Inbound],
        on_failure: match loaded.gateway.on_failure {
            limits::OnFailure::Closed => OnFailure::Closed,
            limits::OnFailure::Open => OnFailure::Open,
        },
        reverse_path: loaded.gateway.reverse_path,
        records_per_second: u32::try_from(loaded.limits.kernel_records).unwrap_or(u32::MAX),
        ..Capture::tcp(to.tcp)
    }
}

pub(super) fn render(snapshot: &Snapshot, capture: &Capture, sidecar: Option<&Sidecar>) -> Ruleset {
    match sidecar {
        Some(sidecar) => firewall::render_sidecar(snapshot, capture, sidecar.settings.user),
        None => firewall::render(snapshot, capture),
    }
}
