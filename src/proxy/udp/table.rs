//! The flows that are remembered: bounded, with one queue of times for all of them.

use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::Settings;
use super::association::Association;
use super::hands::Hands;
use crate::firewall::FlowKey;
use crate::policy::by_client::ByClient;
use crate::policy::snapshot::Snapshot;

#[derive(Debug)]
pub(super) struct Table {
    settings: Settings,
    rows: HashMap<FlowKey, Row>,
    /// When to look at a flow next. A time that is not its row's own is stale.
    times: BinaryHeap<Time>,
    /// Flows that have had their first verdict, the oldest first; some are gone.
    settled: VecDeque<FlowKey>,
    /// By client, those that have not.
    undecided: ByClient,
}

#[derive(Debug)]
struct Row {
    association: Association,
    used: Instant,
    wake: Instant,
    /// Stands among the undecided.
    counted: bool,
}

/// No room for a new flow.
#[derive(Debug)]
pub(super) struct Refused;

/// Earlier times are greater: the heap gives the greatest first.
#[derive(Debug, PartialEq, Eq)]
struct Time {
    at: Instant,
    key: FlowKey,
}

impl Table {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            rows: HashMap::new(),
            times: BinaryHeap::new(),
            settled: VecDeque::new(),
            undecided: ByClient::default(),
        }
    }

    /// Lets `act` deal with a flow, made by `new` where none is known.
    pub(super) fn with(
        &mut self,
        key: &FlowKey,
        now: Instant,
        hands: &mut Hands,
        new: impl FnOnce() -> Association,
        act: impl FnOnce(&mut Association, &mut Hands),
    ) -> Result<(), Refused> {
        if self.rows.get(key).is_some_and(|row| row.association.is_over(now)) {
            self.remove(key, hands);
        }
        if !self.rows.contains_key(key) {
            self.make_room(key, hands)?;
        }
        let row = match self.rows.entry(*key) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(place) => {
                self.undecided.add(key.client.ip(), 1);
                let wake = now + self.settings.memory;
                self.times.push(Time { at: wake, key: *key });
                place.insert(Row { association: new(), used: now, wake, counted: true })
            }
        };
        row.used = now;
        act(&mut row.association, hands);
        if let Some(deadline) = row.association.deadline().filter(|deadline| *deadline < row.wake) {
            row.wake = deadline;
            self.times.push(Time { at: deadline, key: *key });
        }
        self.note_verdict(key);
        self.drop_stale();
        Ok(())
    }

    /// Judges by another policy from now on, ends the flows that it forbids, and forgets those that were ended and that it
    /// allows.
    pub(super) fn recheck(&mut self, policy: &Arc<Snapshot>, now: Instant, hands: &mut Hands) {
        for row in self.rows.values_mut() {
            row.association.adopt(policy);
        }
        for key in hands.revive(policy, now) {
            if self.rows.get(&key).is_some_and(|row| row.association.is_blocked()) {
                self.remove(&key, hands);
            }
        }
        for (key, action) in hands.recheck(policy, now) {
            if let Some(row) = self.rows.get_mut(&key) {
                row.association.end(action, now, hands);
            }
        }
    }

    /// When [`Self::expire`] has something to do.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.times.peek().map(|time| time.at)
    }

    /// Judges the flows whose time to wait is over, and forgets those that have long been quiet.
    pub(super) fn expire(&mut self, now: Instant, hands: &mut Hands) {
        while self.times.peek().is_some_and(|time| time.at <= now) {
            let Some(Time { at, key }) = self.times.pop() else { return };
            let Some(row) = self.rows.get_mut(&key).filter(|row| row.wake == at) else { continue };
            row.association.expire(now, hands);
            let forget = row.used + self.settings.memory;
            let next = row.association.deadline().unwrap_or(forget);
            if next <= now {
                self.remove(&key, hands);
                continue;
            }
            row.wake = next;
            self.times.push(Time { at: next, key });
            self.note_verdict(&key);
        }
    }

    fn make_room(&mut self, key: &FlowKey, hands: &mut Hands) -> Result<(), Refused> {
        if self.undecided.of(key.client.ip()) >= self.settings.per_client {
            return Err(Refused);
        }
        while self.rows.len() >= self.settings.flows {
            let oldest = self.settled.pop_front().ok_or(Refused)?;
            if self.rows.get(&oldest).is_some_and(|row| !row.counted) {
                self.remove(&oldest, hands);
            }
        }
        Ok(())
    }

    fn note_verdict(&mut self, key: &FlowKey) {
        let Some(row) = self.rows.get_mut(key).filter(|row| row.counted && !row.association.is_undecided()) else {
            return;
        };
        row.counted = false;
        self.settled.push_back(*key);
        self.undecided.take(key.client.ip(), 1);
    }

    fn remove(&mut self, key: &FlowKey, hands: &mut Hands) {
        let Some(mut row) = self.rows.remove(key) else { return };
        row.association.let_go(hands);
        hands.end(key);
        if row.counted {
            self.undecided.take(key.client.ip(), 1);
        }
    }

    /// What speaks of flows that are gone, or of times that are past, must not outgrow what speaks of others.
    fn drop_stale(&mut self) {
        let enough = 2 * self.rows.len() + SLACK;
        let rows = &self.rows;
        if self.times.len() > enough {
            self.times.retain(|time| rows.get(&time.key).is_some_and(|row| row.wake == time.at));
        }
        if self.settled.len() > enough {
            self.settled.retain(|key| rows.get(key).is_some_and(|row| !row.counted));
        }
    }
}

impl Ord for Time {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        other.at.cmp(&self.at)
    }
}

impl PartialOrd for Time {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

const SLACK: usize = 1024;
