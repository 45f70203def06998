//! What a verdict does: datagrams sent on, and flows given to the kernel or to a relay.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::accounts::{Accounts, Next};
use super::relay::Relay;
use super::{Settings, Way};
use crate::firewall::{Family, FlowKey, FlowSet};
use crate::policy::DropAction;
use crate::policy::by_client::ByClient;
use crate::policy::snapshot::Snapshot;
use crate::proxy::flow::Closing;
use crate::proxy::live::Live;
use crate::proxy::worker::Worker;
use crate::sys::conntrack::Conntrack;
use crate::sys::nft::NftSocket;
use crate::sys::udp::Outbox;
use crate::telemetry::Telemetry;

/// Collects what is to be done, and does it batch by batch: datagrams first, so that what the kernel forwards comes
/// after what was held.
#[derive(Debug)]
pub(super) struct Hands {
    pub(super) worker: Rc<Worker>,
    pub(super) settings: Settings,
    /// Where packets are opened.
    pub(super) scratch: Vec<u8>,
    held: Holding,
    remembered: Holding,
    onward: Onward,
}

/// Octets that are held in all flows, and in those of each client.
#[derive(Debug, Default)]
struct Holding {
    all: usize,
    of: ByClient,
}

#[derive(Debug)]
enum Onward {
    Kernel(Box<Kernel>),
    Relay(Box<Relay>),
}

/// What is given to the kernel.
#[derive(Debug)]
struct Kernel {
    outbox: Outbox,
    nft: NftSocket,
    changes: Vec<(FlowSet, FlowKey, Option<Duration>)>,
    /// Flows to be counted, before any of their datagrams can be answered.
    uncounted: Vec<FlowKey>,
    accounts: Accounts<Box<Closing>>,
    /// Flows that passed and that a policy has ended: no more than accounts.
    ended: HashMap<FlowKey, Ended>,
    telemetry: Telemetry,
    leaving: watch::Receiver<bool>,
    /// When a full set was warned of last.
    full: Option<Instant>,
    /// When the kernel has refused a flow last.
    refused: Option<Instant>,
}

/// How a flow was ended, for how long, and what it was let in for.
#[derive(Debug)]
struct Ended {
    action: DropAction,
    until: Instant,
    closing: Box<Closing>,
}

impl Hands {
    /// [`Way::Kernel`] needs CAP_NET_ADMIN and CAP_NET_RAW.
    pub(super) fn new(worker: Rc<Worker>, settings: Settings, way: Way) -> io::Result<Self> {
        let onward = match way {
            Way::Kernel => Onward::Kernel(Box::new(Kernel {
                outbox: Outbox::new(None)?,
                nft: NftSocket::open()?,
                changes: Vec::new(),
                uncounted: Vec::new(),
                accounts: Accounts::new(settings.counted),
                ended: HashMap::new(),
                telemetry: worker.telemetry.clone(),
                leaving: worker.leaving.clone(),
                full: None,
                refused: None,
            })),
            Way::Relay(answers) => Onward::Relay(Box::new(Relay::new(answers, worker.telemetry.clone())?)),
        };
        let [held, remembered] = [Holding::default(), Holding::default()];
        Ok(Self { worker, settings, scratch: Vec::new(), held, remembered, onward })
    }

    /// Takes note of octets of a client that are held; false if there is no room for them.
    pub(super) fn hold(&mut self, client: IpAddr, octets: usize) -> bool {
        if !self.held.add(client, octets, self.settings.held, self.settings.held_of_client) {
            return false;
        }
        self.worker.telemetry.levels().held_octets.fetch_add(octets as u64, Ordering::Relaxed);
        true
    }

    /// The same of octets that are no longer.
    pub(super) fn release(&mut self, client: IpAddr, octets: usize) {
        self.held.take(client, octets);
        self.worker.telemetry.levels().held_octets.fetch_sub(octets as u64, Ordering::Relaxed);
    }

    /// Takes note of octets of hellos that are kept of a client's flow; false if there is no room for more.
    pub(super) fn remember(&mut self, client: IpAddr, before: usize, now: usize) -> bool {
        if now <= before {
            self.remembered.take(client, before - now);
            return true;
        }
        let Settings { remembered, remembered_of_client, .. } = self.settings;
        let has_room = self.remembered.add(client, now - before, remembered, remembered_of_client);
        if !has_room {
            self.worker.telemetry.count(|c| &c.refused_by_limit);
        }
        has_room
    }

    /// Sends a datagram to the server: from the client's own address and port, or from the flow's socket.
    pub(super) fn send(&mut self, flow: &FlowKey, payload: &[u8]) {
        match &mut self.onward {
            Onward::Kernel(kernel) => {
                kernel.outbox.push(flow.client, flow.remote, payload);
                kernel.accounts.sent(flow, payload.len());
            }
            Onward::Relay(relay) => {
                if !relay.send(flow, payload) {
                    self.worker.telemetry.count(|c| &c.datagrams_unsent);
                }
            }
        }
    }

    /// The flow may pass from now on. `closing` is what its `end` record will say.
    pub(super) fn begin(&mut self, flow: &FlowKey, closing: Box<Closing>) {
        match &mut self.onward {
            Onward::Kernel(kernel) => {
                kernel.begin(flow, closing, Instant::now() + self.settings.forwarded);
                self.forward(flow);
            }
            Onward::Relay(relay) => {
                if let Err(error) = relay.begin(flow, closing) {
                    self.worker.telemetry.count(|c| &c.unreachable);
                    tracing::debug!(remote = %flow.remote, %error, "no socket for a UDP flow");
                }
            }
        }
    }

    /// Something more of a flow that passes is let in.
    pub(super) fn join(&mut self, flow: &FlowKey, closing: Box<Closing>) {
        if let Onward::Kernel(kernel) = &mut self.onward
            && let Some(own) = kernel.accounts.closing(flow)
        {
            own.join(*closing);
        }
    }

    /// Lets the kernel forward the flow from now on, where it can.
    pub(super) fn forward(&mut self, flow: &FlowKey) {
        if let Onward::Kernel(kernel) = &mut self.onward {
            kernel.changes.push((FlowSet::Forwarded, *flow, Some(self.settings.forwarded)));
        }
    }

    /// The flow is forgotten.
    pub(super) fn end(&mut self, flow: &FlowKey) {
        match &mut self.onward {
            Onward::Kernel(kernel) => kernel.accounts.forget(flow, Instant::now()),
            Onward::Relay(relay) => relay.end(flow),
        }
    }

    /// When [`Self::conclude_ended`] or [`Self::hand_over`] has something to do.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        match &self.onward {
            Onward::Kernel(kernel) => {
                let next = kernel.accounts.next_look();
                if *kernel.leaving.borrow() { next.map(|_| Instant::now()) } else { next }
            }
            Onward::Relay(_) => None,
        }
    }

    /// Records the end of flows that the kernel has forgotten.
    pub(super) fn conclude_ended(&mut self, now: Instant) {
        if let Onward::Kernel(kernel) = &mut self.onward {
            kernel.conclude_ended(self.settings.memory, now);
        }
    }

    /// Once another process has taken over, the flows are its own: it ends those that nobody accounts for, should its
    /// policy forbid them.
    pub(super) fn hand_over(&mut self) {
        if let Onward::Kernel(kernel) = &mut self.onward
            && *kernel.leaving.borrow()
        {
            let flows: Vec<_> = kernel.accounts.iter().take(LOOKS_AT_ONCE).map(|(flow, _)| *flow).collect();
            for flow in &flows {
                kernel.conclude(flow, "hand-over");
            }
        }
    }

    /// The flows that the kernel counts, at most so many.
    pub(super) fn live(&mut self, most: usize) -> Vec<Live> {
        match &mut self.onward {
            Onward::Kernel(kernel) => kernel.live(most),
            Onward::Relay(_) => Vec::new(),
        }
    }

    /// Waits until servers have answered flows that are relayed.
    pub(super) async fn answered(&mut self) -> io::Result<()> {
        match &mut self.onward {
            Onward::Kernel(_) => std::future::pending().await,
            Onward::Relay(relay) => relay.answered().await,
        }
    }

    /// Gives clients what was answered.
    pub(super) fn carry_answers(&mut self) {
        if let Onward::Relay(relay) = &mut self.onward {
            relay.carry_answers();
        }
    }

    /// Ends a flow: all its packets, for a while.
    pub(super) fn block(&mut self, flow: &FlowKey, action: DropAction, quoted: &[u8]) {
        let blocked = (FlowSet::blocking(action), *flow, Some(self.settings.blocked));
        match &mut self.onward {
            Onward::Kernel(kernel) => kernel.changes.push(blocked),
            // Its packets go on coming here, and are refused here.
            Onward::Relay(relay) => relay.end(flow),
        }
        self.refuse(flow, action, quoted);
    }

    /// Ends the flows that a policy forbids, for so long that the client has given them up, and tells which.
    pub(super) fn recheck(&mut self, policy: &Arc<Snapshot>, now: Instant) -> Vec<(FlowKey, DropAction)> {
        let Onward::Kernel(kernel) = &mut self.onward else { return Vec::new() };
        let again = |(flow, closing): (&FlowKey, &mut Box<Closing>)| Some((*flow, closing.judge_again(policy)?));
        let forbidden: Vec<_> = kernel.accounts.closings().filter_map(again).collect();
        for (flow, action) in &forbidden {
            kernel.changes.push((FlowSet::blocking(*action), *flow, Some(self.settings.ended)));
        }
        if forbidden.is_empty() {
            return forbidden;
        }
        kernel.flush();
        let warn = |error: &io::Error| tracing::warn!(%error, "answers in forbidden UDP flows may still pass");
        let mut tracking = Conntrack::open().inspect_err(warn).ok();
        for (flow, action) in &forbidden {
            let removed = kernel.nft.remove_flow(FlowSet::Forwarded, flow).map_err(io::Error::from);
            // The sets know the server's side only by the client's own address and on ports that are inspected.
            let ended = tracking.as_mut().map_or(Ok(true), |tracking| tracking.end_between(flow, *action));
            if let Err(error) = removed.and(ended) {
                tracing::warn!(client = %flow.client, remote = %flow.remote, %error, "a forbidden UDP flow is not ended");
            }
            let closing = kernel.conclude(flow, "policy").filter(|_| kernel.ended.len() < self.settings.counted);
            let until = now + self.settings.ended;
            kernel.ended.extend(closing.map(|closing| (*flow, Ended { action: *action, until, closing })));
        }
        forbidden
    }

    /// Lets flows that a policy has ended begin anew where another allows them, and tells which.
    pub(super) fn revive(&mut self, policy: &Arc<Snapshot>, now: Instant) -> Vec<FlowKey> {
        let Onward::Kernel(kernel) = &mut self.onward else { return Vec::new() };
        kernel.ended.retain(|_, ended| ended.until > now);
        let allowed = kernel.ended.extract_if(|_, ended| ended.closing.judge_again(policy).is_none());
        let allowed: Vec<_> = allowed.collect();
        let mut tracking = if allowed.is_empty() { None } else { Conntrack::open().ok() };
        for (flow, ended) in &allowed {
            let removed = kernel.nft.remove_flow(FlowSet::blocking(ended.action), flow).map_err(io::Error::from);
            let revived = tracking.as_mut().map_or(Ok(true), |tracking| tracking.revive_between(flow));
            if let Err(error) = removed.and(revived) {
                tracing::warn!(client = %flow.client, remote = %flow.remote, %error, "an allowed UDP flow stays ended");
            }
        }
        allowed.into_iter().map(|(flow, _)| flow).collect()
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
        if let Onward::Kernel(kernel) = &mut self.onward {
            kernel.flush();
        }
    }
}

impl Kernel {
    /// Opens an account for a flow that is about to pass. A flow that was judged anew begins again, and what it was let in
    /// for before may go on.
    fn begin(&mut self, flow: &FlowKey, mut closing: Box<Closing>, look: Instant) {
        if let Some(before) = self.conclude(flow, "judged-anew") {
            closing.join(*before);
        }
        if self.accounts.open(flow, closing, look) {
            self.uncounted.push(*flow);
        } else {
            self.telemetry.count(|c| &c.uncounted);
        }
    }

    fn flush(&mut self) {
        self.count_new();
        self.outbox.flush();
        for _ in 0..std::mem::take(&mut self.outbox.dropped) {
            self.telemetry.count(|c| &c.datagrams_unsent);
        }
        if self.changes.is_empty() {
            return;
        }
        // To be refused takes the kernel milliseconds, in which nobody else is served: it is not asked again at once.
        if self.refused.is_some_and(|refused| refused.elapsed() < REFUSED) {
            self.telemetry.add(|c| &c.kernel_refused, self.changes.len() as u64);
        } else if self.nft.add_flows(&self.changes).is_err() {
            self.add_one_by_one();
        }
        self.changes.clear();
    }

    /// One that the kernel refuses, for a full set as a rule, does not keep out the others. What it does not forward or
    /// block is sent on or dropped here.
    fn add_one_by_one(&mut self) {
        let mut refusals = 0;
        for (number, (set, flow, timeout)) in self.changes.iter().enumerate() {
            if refusals >= REFUSALS {
                let others = self.changes.len().saturating_sub(number);
                return self.telemetry.add(|c| &c.kernel_refused, others as u64);
            }
            let Err(error) = self.nft.add_flow(*set, flow, *timeout) else { continue };
            self.telemetry.count(|c| &c.kernel_refused);
            let now = Instant::now();
            self.refused = Some(now);
            refusals += 1;
            if self.full.is_none_or(|full| now.duration_since(full) > QUIET) {
                self.full = Some(now);
                tracing::warn!(%error, "the kernel does not take over a UDP flow");
            }
        }
    }
}

impl Holding {
    fn add(&mut self, client: IpAddr, octets: usize, limit: usize, limit_of_one: usize) -> bool {
        if self.all + octets > limit || self.of.of(client) + octets > limit_of_one {
            return false;
        }
        self.all += octets;
        self.of.add(client, octets);
        true
    }

    fn take(&mut self, client: IpAddr, octets: usize) {
        self.all = self.all.saturating_sub(octets);
        self.of.take(client, octets);
    }
}

impl Kernel {
    /// One that the kernel does not count gets no `end` record, rather than one that tells of nothing.
    fn count_new(&mut self) {
        let flows = std::mem::take(&mut self.uncounted);
        let both = |flow: &FlowKey| [FlowSet::Sent, FlowSet::Answered].map(|set| (set, *flow, None));
        if flows.is_empty() || self.nft.add_flows(&flows.iter().flat_map(both).collect::<Vec<_>>()).is_ok() {
            return;
        }
        for flow in flows {
            if self.nft.add_flows(&both(&flow)).is_err() {
                self.accounts.close(&flow);
                self.telemetry.count(|c| &c.uncounted);
            }
        }
    }

    fn conclude_ended(&mut self, memory: Duration, now: Instant) {
        for _ in 0..LOOKS_AT_ONCE {
            let Some(flow) = self.accounts.due(now) else { return };
            // If the kernel cannot be asked, it will be asked again.
            let left = self.nft.time_left(FlowSet::Forwarded, &flow).unwrap_or(Some(memory));
            if self.accounts.told(&flow, left, memory, now) == Next::Conclude {
                self.conclude(&flow, "idle");
            }
        }
    }

    fn live(&mut self, most: usize) -> Vec<Live> {
        let Self { accounts, nft, .. } = self;
        let open = accounts.iter().take(most.min(ASKED_AT_ONCE));
        let counted = open.map(|(flow, account)| {
            let [out, back] = counted(nft, flow);
            account.closing.live(account.sent + out, back)
        });
        counted.collect()
    }

    fn conclude(&mut self, flow: &FlowKey, closed_by: &'static str) -> Option<Box<Closing>> {
        let account = self.accounts.close(flow)?;
        let [out, back] = counted(&mut self.nft, flow);
        // Those that are gone already went with the rules.
        let _ = self.nft.remove_flows(&COUNTED.map(|set| (set, *flow)));
        self.telemetry.record(account.closing.record(account.sent + out, back, closed_by));
        Some(account.closing)
    }
}

/// Octets that the kernel has seen, from the client and from the server.
fn counted(nft: &mut NftSocket, flow: &FlowKey) -> [u64; 2] {
    let family = if flow.client.is_ipv4() { Family::V4 } else { Family::V6 };
    COUNTED.map(|set| nft.counted(set, flow).ok().flatten().unwrap_or_default().payload(family))
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // What another process takes over, the kernel goes on forwarding: it is only counted no more.
        let closed_by = if *self.leaving.borrow() { "hand-over" } else { "shutdown" };
        for flow in self.accounts.flows() {
            self.conclude(&flow, closed_by);
        }
    }
}

const COUNTED: [FlowSet; 2] = [FlowSet::Sent, FlowSet::Answered];
/// Flows that the kernel is asked for in one inquiry.
const ASKED_AT_ONCE: usize = 100;
/// Flows that the kernel is asked for before datagrams have their turn again.
const LOOKS_AT_ONCE: usize = 64;
/// For so long the kernel is not told of flows after it has refused one, and of so many it may refuse at a time.
const REFUSED: Duration = Duration::from_millis(250);
const REFUSALS: usize = 4;
/// Between two warnings about the same.
const QUIET: Duration = Duration::from_secs(10);
