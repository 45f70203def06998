//! One UDP flow: what is held of it, what was found, and what was decided.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::hands::Hands;
use crate::firewall::FlowKey;
use crate::peek::Discovery;
use crate::peek::udp::{Budget, Reading, Status, Subject, UdpPeek};
use crate::policy::DropAction;
use crate::policy::snapshot::Snapshot;
use crate::proxy::flow::Flow;

#[derive(Debug)]
pub(super) struct Association {
    flow: Flow,
    key: FlowKey,
    peek: UdpPeek,
    held: Vec<Held>,
    state: State,
    /// When what is waiting must have come.
    deadline: Option<Instant>,
    proving: Option<Proving>,
    /// Octets of its peek that were taken note of.
    remembered: usize,
}

/// A connection whose name is being looked up before it is judged.
#[derive(Debug)]
struct Proving {
    subject: Subject,
    discovery: Discovery,
    payload: Box<[u8]>,
    look_up: JoinHandle<()>,
}

#[derive(Debug)]
struct Held {
    depends_on: Subject,
    payload: Box<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing has passed yet.
    Undecided,
    /// Given to the kernel at this time.
    Passed(Instant),
    /// Blocked until this time, and how its datagrams are answered.
    Blocked(Instant, DropAction),
}

impl Association {
    pub(super) fn new(flow: Flow, key: FlowKey) -> Self {
        let peek = UdpPeek::default();
        let state = State::Undecided;
        Self { flow, key, peek, held: Vec::new(), state, deadline: None, proving: None, remembered: 0 }
    }

    /// Takes in a datagram of the client.
    pub(super) fn datagram(&mut self, payload: &[u8], now: Instant, hands: &mut Hands) {
        // What was on its way here when the kernel took over, or what its full set has no room for.
        if let State::Blocked(_, action) = self.state {
            hands.dropped();
            return hands.refuse(&self.key, action, payload);
        }
        let Some(budget) = self.budget(hands) else { return self.without_inspection(payload, now, hands) };
        let begun = self.peek.begun();
        let Reading { depends_on, judge } = self.peek.datagram(payload, now, &budget, &mut hands.scratch);
        if self.peek.begun() != begun {
            self.adopt_current(hands);
        }
        let judged = !judge.is_empty();
        for (subject, discovery) in judge {
            if !self.is_blocked() {
                self.judge(subject, &discovery, payload, now, hands);
            }
        }
        self.remember(payload, now, hands);
        match self.peek.status(depends_on) {
            _ if self.is_blocked() => {}
            Status::Block => hands.dropped(),
            Status::Pass if self.held.is_empty() => self.pass(payload, now, hands),
            Status::Pass | Status::Pending => self.hold(depends_on, payload, now, hands),
        }
        if judged || !self.held.is_empty() {
            self.release(now, hands);
        }
    }

    /// The deadline may have come: judges what still waits as it stands.
    pub(super) fn expire(&mut self, now: Instant, hands: &mut Hands) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.deadline = None;
        if let Some(proving) = self.proving.take() {
            if !proving.look_up.is_finished() {
                self.deadline = Some(now + LOOK_AGAIN);
                self.proving = Some(proving);
                return;
            }
            self.settle(proving.subject, &proving.discovery, &proving.payload, now, hands);
            if !self.is_blocked() && self.peek.is_waiting() {
                self.deadline = Some(now + self.patience());
            }
            return self.release(now, hands);
        }
        let last = self.held.last().map(|held| held.payload.clone()).unwrap_or_default();
        for (subject, discovery) in self.peek.expire() {
            if !self.is_blocked() {
                self.judge(subject, &discovery, &last, now, hands);
            }
        }
        self.release(now, hands);
    }

    /// What is judged from now on is judged by another policy, and what was blocked may try again.
    pub(super) fn adopt(&mut self, policy: &Arc<Snapshot>) {
        self.flow.adopt(policy);
        self.peek.forget_blocked();
    }

    /// A connection that begins is judged by the policy in force, however old the flow is.
    fn adopt_current(&mut self, hands: &Hands) {
        let current = hands.worker.snapshot.load();
        if !Arc::ptr_eq(&current, &self.flow.snapshot) {
            self.flow.adopt(&current);
        }
    }

    /// It passed, and a later policy has ended it.
    pub(super) fn end(&mut self, action: DropAction, now: Instant, hands: &mut Hands) {
        self.end_until(now + hands.settings.ended, action, hands);
    }

    fn end_until(&mut self, until: Instant, action: DropAction, hands: &mut Hands) {
        self.state = State::Blocked(until, action);
        self.deadline = None;
        self.proving = None;
        self.let_go(hands);
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Awaits its first verdict.
    pub(super) fn is_undecided(&self) -> bool {
        self.state == State::Undecided
    }

    pub(super) fn is_blocked(&self) -> bool {
        matches!(self.state, State::Blocked(..))
    }

    /// It was blocked, and may try again.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        matches!(self.state, State::Blocked(until, _) if until <= now)
    }

    /// Nobody inspects its port any more, or it is blocked whatever it says: judged without a name.
    fn without_inspection(&mut self, payload: &[u8], now: Instant, hands: &mut Hands) {
        if self.state == State::Undecided {
            let judgement = self.flow.judge(None, &hands.worker.telemetry);
            if let Some(action) = judgement.ending {
                return self.block(action, payload, now, hands);
            }
            hands.begin(&self.key, judgement.closing);
            self.state = State::Passed(now);
        }
        self.pass(payload, now, hands);
    }

    /// Judges, if need be after a look-up of the name: until then its datagrams are held.
    fn judge(&mut self, subject: Subject, discovery: &Discovery, payload: &[u8], now: Instant, hands: &mut Hands) {
        if self.proving.is_none()
            && let Some(look_up) = hands.worker.proofs.begin(&self.flow, discovery)
        {
            let (discovery, payload) = (discovery.clone(), payload.into());
            self.proving = Some(Proving { subject, discovery, payload, look_up });
            self.deadline = Some(now + LOOK_AGAIN);
            return;
        }
        self.settle(subject, discovery, payload, now, hands);
    }

    fn settle(&mut self, subject: Subject, discovery: &Discovery, payload: &[u8], now: Instant, hands: &mut Hands) {
        let judgement = self.flow.judge(Some(discovery), &hands.worker.telemetry);
        self.peek.settle(subject, judgement.ending.is_none());
        // Judged otherwise while its name was looked up: what comes of that no longer matters.
        if self.proving.take_if(|proving| proving.subject == subject).is_some() {
            self.deadline = self.peek.is_waiting().then(|| now + self.patience());
        }
        match (judgement.ending, self.state) {
            (None, State::Undecided) => {
                hands.begin(&self.key, judgement.closing);
                self.state = State::Passed(now);
            }
            (None, _) => hands.join(&self.key, judgement.closing),
            (Some(action), State::Undecided) => self.block(action, payload, now, hands),
            // A later connection of a flow that passes ends alone.
            (Some(action), _) => hands.refuse(&self.key, action, payload),
        }
    }

    fn block(&mut self, action: DropAction, payload: &[u8], now: Instant, hands: &mut Hands) {
        hands.block(&self.key, action, payload);
        self.end_until(now + hands.settings.blocked, action, hands);
    }

    fn pass(&mut self, payload: &[u8], now: Instant, hands: &mut Hands) {
        hands.send(&self.key, payload);
        // The kernel forwards by now, unless its set was full or was emptied.
        if let State::Passed(offered) = self.state
            && now.saturating_duration_since(offered) >= OFFER_AGAIN
        {
            hands.forward(&self.key);
            self.state = State::Passed(now);
        }
    }

    fn hold(&mut self, depends_on: Subject, payload: &[u8], now: Instant, hands: &mut Hands) {
        if self.weight() + payload.len() > hands.settings.held_of_flow {
            let (subject, discovery) = self.peek.overflow();
            return self.judge(subject, &discovery, payload, now, hands);
        }
        if !hands.hold(self.key.client.ip(), payload.len()) {
            return hands.dropped();
        }
        self.held.push(Held { depends_on, payload: payload.into() });
        if self.deadline.is_none() && self.peek.is_waiting() {
            self.deadline = Some(now + self.patience());
        }
    }

    /// Takes note of the memory that hellos take. They are kept for as long as the flow is, whatever its verdict.
    fn remember(&mut self, payload: &[u8], now: Instant, hands: &mut Hands) {
        let client = self.key.client.ip();
        let weight = self.peek.weight();
        if hands.remember(client, self.remembered, weight) {
            self.remembered = weight;
        } else if let Some((subject, discovery)) = self.peek.forget()
            && !self.is_blocked()
        {
            self.settle(subject, &discovery, payload, now, hands);
        }
    }

    /// Sends what may pass by now in the order in which it came, and drops what may not.
    fn release(&mut self, now: Instant, hands: &mut Hands) {
        if self.is_blocked() {
            return self.let_go(hands);
        }
        for held in std::mem::take(&mut self.held) {
            let status = self.peek.status(held.depends_on);
            if status == Status::Pending {
                self.held.push(held);
                continue;
            }
            hands.release(self.key.client.ip(), held.payload.len());
            match status {
                Status::Pass => self.pass(&held.payload, now, hands),
                _ => hands.dropped(),
            }
        }
        if self.held.is_empty() && !self.peek.is_waiting() && self.proving.is_none() {
            self.deadline = None;
        }
    }

    /// Forgets what is held and what was said.
    pub(super) fn let_go(&mut self, hands: &mut Hands) {
        hands.remember(self.key.client.ip(), std::mem::take(&mut self.remembered), 0);
        self.peek = UdpPeek::default();
        for held in std::mem::take(&mut self.held) {
            hands.release(self.key.client.ip(), held.payload.len());
            hands.dropped();
        }
    }

    fn patience(&self) -> Duration {
        self.flow.inspection().map_or(Duration::ZERO, |own| own.timeout)
    }

    fn weight(&self) -> usize {
        self.held.iter().map(|held| held.payload.len()).sum::<usize>() + self.peek.weight()
    }

    fn budget(&self, hands: &Hands) -> Option<Budget> {
        let packets = match self.flow.inspection().filter(|_| !self.flow.is_refused()) {
            Some(inspection) => inspection.packets,
            // The policy of a later connection must not let the next ones by unjudged.
            None if self.peek.is_open() => 0,
            None => return None,
        };
        Some(Budget { packets, connections: hands.settings.connections, fingerprints: true })
    }
}

/// How often a look-up is asked for its end.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A flow that the kernel should forward and that still comes here is offered to it again after so long.
const OFFER_AGAIN: Duration = Duration::from_secs(1);
