//! What a verdict does: datagrams sent on, and flows given to the kernel.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use super::Settings;
use crate::firewall::{FlowKey, FlowSet};
use crate::policy::DropAction;
use crate::proxy::worker::Worker;
use crate::sys::nft::NftSocket;
use crate::sys::udp::Outbox;

/// Collects what is to be done, and does it batch by batch: datagrams first, so that what the kernel forwards comes
/// after what was held.
#[derive(Debug)]
pub(super) struct Hands {
    pub(super) worker: Rc<Worker>,
    pub(super) settings: Settings,
    /// Where packets are opened.
    pub(super) scratch: Vec<u8>,
    /// Octets held in all flows.
    pub(super) held: usize,
    outbox: Outbox,
    nft: NftSocket,
    changes: Vec<(FlowSet, FlowKey, std::time::Duration)>,
    /// No kernel set took a flow at this time.
    full: Option<Instant>,
}

impl Hands {
    /// Needs CAP_NET_ADMIN and CAP_NET_RAW.
    pub(super) fn new(worker: Rc<Worker>, settings: Settings) -> io::Result<Self> {
        Ok(Self {
            worker,
            settings,
            scratch: Vec::new(),
            held: 0,
            outbox: Outbox::new(None)?,
            nft: NftSocket::open()?,
            changes: Vec::new(),
            full: None,
        })
    }

    /// Sends a datagram to the server, from the client's own address and port.
    pub(super) fn send(&mut self, flow: &FlowKey, payload: &[u8]) {
        self.outbox.push(flow.client, flow.remote, payload);
    }

    /// Lets the kernel forward the flow from now on.
    pub(super) fn forward(&mut self, flow: &FlowKey) {
        self.changes.push((FlowSet::Forwarded, *flow, self.settings.forwarded));
    }

    /// Ends a flow: all its packets, for a while.
    pub(super) fn block(&mut self, flow: &FlowKey, action: DropAction, quoted: &[u8]) {
        let set = match action {
            DropAction::Discard => FlowSet::Silenced,
            DropAction::IcmpUnreachable | DropAction::TcpReset => FlowSet::Refused,
        };
        self.changes.push((set, *flow, self.settings.blocked));
        self.refuse(flow, action, quoted);
    }

    /// Answers one datagram as its Network says. UDP knows no reset: what stands for it is the ICMP too.
    pub(super) fn refuse(&mut self, flow: &FlowKey, action: DropAction, quoted: &[u8]) {
        if action == DropAction::Discard {
            return;
        }
        if let Err(error) = self.worker.ender.borrow().refuse_datagram(flow.client, flow.remote, quoted) {
            tracing::debug!(client = %flow.client, %error, "no ICMP for a blocked datagram");
        }
    }

    pub(super) fn dropped(&self) {
        self.worker.telemetry.count(|c| &c.datagrams_dropped);
    }

    /// Does what was collected.
    pub(super) fn flush(&mut self) {
        self.outbox.flush();
        for _ in 0..std::mem::take(&mut self.outbox.dropped) {
            self.worker.telemetry.count(|c| &c.datagrams_unsent);
        }
        if self.changes.is_empty() {
            return;
        }
        if self.nft.add_flows(&self.changes).is_err() {
            self.add_one_by_one();
        }
        self.changes.clear();
    }

    /// One that the kernel refuses, for a full set as a rule, does not keep out the others. What it does not forward or
    /// block is sent on or dropped here.
    fn add_one_by_one(&mut self) {
        for (set, flow, timeout) in &self.changes {
            let Err(error) = self.nft.add_flow(*set, flow, Some(*timeout)) else { continue };
            self.worker.telemetry.count(|c| &c.kernel_refused);
            let now = Instant::now();
            if self.full.is_none_or(|full| now.duration_since(full) > QUIET) {
                self.full = Some(now);
                tracing::warn!(%error, "the kernel does not take over a UDP flow");
            }
        }
    }
}

/// Between two warnings about the same.
const QUIET: std::time::Duration = std::time::Duration::from_secs(10);
