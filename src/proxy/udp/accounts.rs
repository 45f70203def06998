//! The flows whose octets the kernel counts, from their verdict to their `end` records. Pure.
//!
//! A flow has ended when the kernel has forgotten it, because nothing came of it for so long, and so has the table here.
//! Nobody tells when the kernel forgets: it is asked, when its time for the flow would be over.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::firewall::FlowKey;

/// `C` is what closes an account.
#[derive(Debug)]
pub(super) struct Accounts<C> {
    open: HashMap<FlowKey, Account<C>>,
    /// When to ask for which flow next.
    looks: BTreeMap<Look, FlowKey>,
    last: u64,
    limit: usize,
}

/// A time that no other flow has.
type Look = (Instant, u64);

#[derive(Debug)]
pub(super) struct Account<C> {
    pub(super) closing: C,
    /// Octets of the client's that were sent on from here.
    pub(super) sent: u64,
    look: Look,
    /// The table of flows knows nothing of it any more.
    forgotten: bool,
}

/// What is to be done about a flow that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    Conclude,
}

impl<C> Accounts<C> {
    /// `limit`: how many may be open at a time.
    pub(super) fn new(limit: usize) -> Self {
        Self { open: HashMap::new(), looks: BTreeMap::new(), last: 0, limit }
    }

    /// Opens an account; false if there is no room for it, or if there is one already.
    pub(super) fn open(&mut self, flow: &FlowKey, closing: C, look: Instant) -> bool {
        if self.open.len() >= self.limit || self.open.contains_key(flow) {
            return false;
        }
        let look = self.schedule(flow, look);
        self.open.insert(*flow, Account { closing, sent: 0, look, forgotten: false });
        true
    }

    /// So many octets were sent on from here.
    pub(super) fn sent(&mut self, flow: &FlowKey, octets: usize) {
        if let Some(account) = self.open.get_mut(flow) {
            account.sent += octets as u64;
        }
    }

    /// The table has forgotten the flow.
    pub(super) fn forget(&mut self, flow: &FlowKey, now: Instant) {
        if let Some(account) = self.open.get_mut(flow) {
            account.forgotten = true;
            self.look_at(flow, now);
        }
    }

    pub(super) fn next_look(&self) -> Option<Instant> {
        self.looks.keys().next().map(|(at, _)| *at)
    }

    /// A flow that is to be asked for, and the answer told to [`Self::told`].
    pub(super) fn due(&self, now: Instant) -> Option<FlowKey> {
        self.looks.first_key_value().filter(|((at, _), _)| *at <= now).map(|(_, flow)| *flow)
    }

    /// How long the kernel remembers the flow from now on, or else how long to wait while it is remembered here.
    pub(super) fn told(&mut self, flow: &FlowKey, left: Option<Duration>, memory: Duration, now: Instant) -> Next {
        let wait = match left {
            Some(left) => left + MARGIN,
            None if self.open.get(flow).is_none_or(|account| account.forgotten) => return Next::Conclude,
            None => memory,
        };
        self.look_at(flow, now + wait);
        Next::Wait
    }

    pub(super) fn close(&mut self, flow: &FlowKey) -> Option<Account<C>> {
        let account = self.open.remove(flow)?;
        self.looks.remove(&account.look);
        Some(account)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&FlowKey, &Account<C>)> {
        self.open.iter()
    }

    pub(super) fn closing(&mut self, flow: &FlowKey) -> Option<&mut C> {
        self.open.get_mut(flow).map(|account| &mut account.closing)
    }

    /// What closes each account, with its flow.
    pub(super) fn closings(&mut self) -> impl Iterator<Item = (&FlowKey, &mut C)> {
        self.open.iter_mut().map(|(flow, account)| (flow, &mut account.closing))
    }

    pub(super) fn flows(&self) -> Vec<FlowKey> {
        self.open.keys().copied().collect()
    }

    fn look_at(&mut self, flow: &FlowKey, at: Instant) {
        let next = self.schedule(flow, at);
        if let Some(account) = self.open.get_mut(flow) {
            self.looks.remove(&account.look);
            account.look = next;
        } else {
            self.looks.remove(&next);
        }
    }

    fn schedule(&mut self, flow: &FlowKey, at: Instant) -> Look {
        self.last = self.last.wrapping_add(1);
        self.looks.insert((at, self.last), *flow);
        (at, self.last)
    }
}

/// The kernel looks at its clock a few times a second.
const MARGIN: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Transport;

    const SECOND: Duration = Duration::from_secs(1);

    fn flow(port: u16) -> FlowKey {
        let at = |port| ([192, 0, 2, 1], port).into();
        FlowKey { transport: Transport::Udp, client: at(port), remote: at(443) }
    }

    #[test]
    fn a_flow_has_ended_when_the_kernel_and_the_table_have_forgotten_it() {
        let now = Instant::now();
        let mut accounts = Accounts::new(9);
        assert!(accounts.open(&flow(1), (), now + SECOND));
        assert_eq!((accounts.due(now), accounts.next_look()), (None, Some(now + SECOND)));
        assert_eq!(accounts.due(now + SECOND), Some(flow(1)));
        // The table knows it still: it may be offered to the kernel again.
        assert_eq!(accounts.told(&flow(1), None, SECOND, now + SECOND), Next::Wait);
        assert_eq!(accounts.due(now + SECOND), None);
        accounts.forget(&flow(1), now + SECOND);
        assert_eq!(accounts.due(now + SECOND), Some(flow(1)));
        assert_eq!(accounts.told(&flow(1), Some(5 * SECOND), SECOND, now + SECOND), Next::Wait);
        assert_eq!(accounts.due(now + 5 * SECOND), None);
        assert_eq!(accounts.due(now + 7 * SECOND), Some(flow(1)));
        assert_eq!(accounts.told(&flow(1), None, SECOND, now + 7 * SECOND), Next::Conclude);
        assert!(accounts.close(&flow(1)).is_some());
        assert_eq!((accounts.next_look(), accounts.flows()), (None, Vec::new()));
    }

    #[test]
    fn octets_sent_from_here_are_kept_for_the_end() {
        let mut accounts = Accounts::new(9);
        accounts.open(&flow(1), (), Instant::now());
        accounts.sent(&flow(1), 1200);
        accounts.sent(&flow(1), 30);
        accounts.sent(&flow(2), 7);
        assert_eq!(accounts.close(&flow(1)).map(|account| account.sent), Some(1230));
        assert!(accounts.close(&flow(2)).is_none());
    }

    #[test]
    fn there_is_room_for_so_many_and_again_when_one_is_closed() {
        let now = Instant::now();
        let mut accounts = Accounts::new(2);
        assert!(accounts.open(&flow(1), (), now) && accounts.open(&flow(2), (), now));
        assert!(!accounts.open(&flow(3), (), now));
        accounts.close(&flow(1));
        assert!(accounts.open(&flow(3), (), now));
        accounts.forget(&flow(1), now);
        assert_eq!(accounts.looks.len(), 2);
    }
}
