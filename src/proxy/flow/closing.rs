//! What stays of a flow after its verdict: enough for its `end` record, and to judge it again.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::{Flow, Judge, judges_of, name_of, remote_of};
use crate::name::DomainName;
use crate::peek::{Discovery, Outcome, Unreadable, Via};
use crate::policy::judge::{Binding, Facts, judge_again, refuse_service};
use crate::policy::snapshot::Snapshot;
use crate::policy::{ClientAddr, Direction, DropAction, OrigDst, Transport};
use crate::proxy::live::Live;
use crate::telemetry::record::via_word;
use crate::telemetry::{Kind, Record};

/// What the `end` record of a flow will say, but for what is known only then.
#[derive(Debug)]
pub struct Closing {
    id: u64,
    transport: Transport,
    client: ClientAddr,
    orig_dst: OrigDst,
    opened: Instant,
    snapshot: Arc<Snapshot>,
    /// The last that judged.
    judge: Option<Judge>,
    via: Option<Via>,
    domain: Option<DomainName>,
    /// What was found where there is no domain; `None`: nobody inspected.
    nameless: Option<Nameless>,
    ech: bool,
}

/// Why a flow that was inspected has no domain.
#[derive(Clone, Copy, Debug)]
enum Nameless {
    NoName,
    Unreadable(Unreadable),
}

impl Closing {
    pub(super) fn of(flow: &Flow) -> Box<Self> {
        Box::new(Self {
            id: flow.id,
            transport: flow.transport,
            client: flow.client,
            orig_dst: flow.orig_dst,
            opened: flow.opened,
            snapshot: flow.snapshot.clone(),
            judge: None,
            via: None,
            domain: None,
            nameless: None,
            ech: false,
        })
    }

    pub(super) fn judged(&mut self, by: &Judge, discovery: Option<&Discovery>) {
        self.judge = Some(by.clone());
        self.via = discovery.and_then(|discovery| discovery.via);
        self.domain = discovery.and_then(name_of).cloned();
        self.ech = discovery.is_some_and(|discovery| discovery.ech);
        self.nameless = discovery.and_then(|discovery| match &discovery.outcome {
            Outcome::Name(_) => None,
            Outcome::NoName => Some(Nameless::NoName),
            Outcome::Unreadable(why) => Some(Nameless::Unreadable(*why)),
        });
    }

    /// Judges the flow again, under a policy that came after the one that let it in: how it ends now, or `None` if it may
    /// go on, under this policy from now on. A name is taken as proven, for it was when the flow began.
    pub fn judge_again(&mut self, snapshot: &Arc<Snapshot>) -> Option<DropAction> {
        if self.snapshot.generation >= snapshot.generation {
            return None;
        }
        let found = self.found();
        let judges = judges_of(snapshot, self.transport, self.client, self.orig_dst);
        for judge in judges.iter().flatten() {
            let seen = found.as_ref().filter(|found| self.is_seen_by(judge, found));
            let facts = Facts {
                remote: remote_of(judge.direction, self.client, self.orig_dst),
                discovery: seen,
                binding: Binding::Match,
                now: SystemTime::now(),
            };
            let (transport, port) = (Some(self.transport), Some(self.orig_dst.port()));
            let refused = refuse_service(&judge.network, judge.direction, transport, port, &facts);
            let verdict = refused.unwrap_or_else(|| judge_again(&judge.network, judge.direction, &facts));
            if let Some(action) = judge.ending(&verdict) {
                return Some(action);
            }
        }
        self.judge = judges.into_iter().flatten().next_back();
        self.snapshot = snapshot.clone();
        None
    }

    fn found(&self) -> Option<Discovery> {
        let outcome = match (&self.domain, self.nameless) {
            (Some(name), _) => Outcome::Name(name.clone()),
            (None, Some(Nameless::NoName)) => Outcome::NoName,
            (None, Some(Nameless::Unreadable(why))) => Outcome::Unreadable(why),
            (None, None) => return None,
        };
        Some(Discovery { outcome, via: self.via, fingerprint: None, ech: self.ech })
    }

    fn is_seen_by(&self, by: &Judge, found: &Discovery) -> bool {
        match found.via {
            Some(Via::Dns) => {
                let uses = by.network.inspection.as_ref().is_some_and(|inspection| inspection.use_bindings);
                uses && by.direction == Direction::Outbound
            }
            _ => by.inspects(self.transport, self.orig_dst.port()).is_some(),
        }
    }

    /// The flow, while it lives.
    pub fn live(&self, bytes_out: u64, bytes_in: u64) -> Live {
        Live {
            id: self.id,
            transport: self.transport,
            client: self.client.0,
            remote: self.orig_dst.0,
            network: self.judge.as_ref().map(|judge| judge.network.name.clone()),
            direction: self.judge.as_ref().map(|judge| judge.direction),
            via: self.via,
            domain: self.domain.clone(),
            opened: self.opened,
            bytes_out,
            bytes_in,
        }
    }

    /// The `end` record, now that the flow has ended.
    pub fn record(&self, bytes_out: u64, bytes_in: u64, closed_by: &'static str) -> Record {
        let enforcer = self.snapshot.enforcer.clone();
        let protocol = self.transport.as_str();
        let mut end = Record::new(Kind::End, SystemTime::now(), enforcer, protocol, self.client.0, self.orig_dst.0);
        if let Some(judge) = &self.judge {
            end.network = Some(judge.network.name.clone());
            end.policy = judge.network.rule(judge.direction).map(|rule| rule.policy.name.clone());
            end.direction = Some(judge.direction.as_str());
        }
        end.via = self.via.map(via_word);
        end.domain = self.domain.clone();
        end.flow = Some(self.id);
        (end.bytes_out, end.bytes_in) = (Some(bytes_out), Some(bytes_in));
        end.duration_ms = u64::try_from(self.opened.elapsed().as_millis()).ok();
        end.closed_by = Some(closed_by);
        end
    }
}
