//! An allowed flow that is still looked at: later requests, a second hello, a tunnel's beginning.
//!
//! Fails closed: octets go to the server only once the watch has let them, and a discovery that the policy forbids
//! ends the flow.

use crate::peek::watch::{Next, Watch};
use crate::policy::DropAction;
use crate::proxy::flow::{Closing, Flow};
use crate::telemetry::Telemetry;

/// The watch, and what it needs to judge by.
#[derive(Debug)]
pub struct Watched {
    pub watch: Watch,
    pub flow: Flow,
    /// Read from the client and not yet let go.
    pub held: Vec<u8>,
    /// The most that is held.
    pub limit: usize,
    /// How the flow ends, once what was let go before has been forwarded.
    pub refused: Option<DropAction>,
}

/// What becomes of the client's octets.
#[derive(Debug)]
pub(super) enum Step {
    /// These may go to the server.
    Forward(Vec<u8>),
    /// More must come first, from the client or from the server.
    More,
    /// These may go, and everything after them.
    Unwatched(Vec<u8>),
    Refused(DropAction),
}

impl Watched {
    /// `ended`: the client will send no more. `closing` takes in what is let in.
    pub(super) fn step(&mut self, ended: bool, closing: &mut Closing, telemetry: &Telemetry) -> Step {
        // Forwarded at once, however small the pieces: each costs a system call, and moving what is left.
        let mut free = 0;
        while self.refused.is_none() {
            match self.watch.next(self.held.get(free..).unwrap_or_default(), ended) {
                Next::Forward(count) => free += count,
                Next::Judge(discovery) => {
                    self.flow.keep_binding(&discovery);
                    let judgement = self.flow.judge(Some(&discovery), telemetry);
                    match judgement.ending {
                        Some(action) => self.refused = Some(action),
                        None => closing.join(*judgement.closing),
                    }
                }
                Next::More if free == 0 => return Step::More,
                Next::More => break,
                Next::Splice => return Step::Unwatched(std::mem::take(&mut self.held)),
            }
        }
        match self.refused {
            Some(action) if free == 0 => Step::Refused(action),
            _ => Step::Forward(self.let_go(free)),
        }
    }

    fn let_go(&mut self, count: usize) -> Vec<u8> {
        let rest = self.held.split_off(count.min(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }

    /// What is kept of the flow, in octets.
    pub(super) fn kept(&self) -> usize {
        self.held.len() + self.watch.kept()
    }

    /// How many octets may still be read.
    pub(super) fn room(&self) -> usize {
        self.limit.saturating_sub(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::firewall::fixture::{network, snapshot, with_policy};
    use crate::list::{List, ListVerdict, PrefixSet};
    use crate::name::Pattern;
    use crate::peek::tcp::{self, Limits, TcpPeek};
    use crate::peek::watch::HttpRequestsJudged;
    use crate::policy::{ClientAddr, IpVerdict, OrigDst, Transport};
    use crate::telemetry::Queue;

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    /// A frame of an unknown type without a payload.
    const EMPTY: &[u8] = &[0, 0, 0, 0xfa, 0, 0, 0, 0, 0];

    fn request(stream: u8, authority: &str) -> Vec<u8> {
        let length = u8::try_from(authority.len()).unwrap();
        let head = [0, 0, length + 5, 1, 5, 0, 0, 0, stream, 0x82, 0x86, 0x84, 0x01, length];
        [&head[..], authority.as_bytes()].concat()
    }

    /// A flow whose first request was let in, under a policy that blocks `blocked.example`.
    fn watched(octets: &[u8]) -> (Watched, Box<Closing>, Telemetry) {
        let domains = [(Pattern::parse("blocked.example").unwrap(), None)].into_iter().collect();
        let (name, verdict, prefixes) = ("bad".into(), ListVerdict::Block, PrefixSet::default());
        let lists = vec![Arc::new(List { name, verdict, domains, prefixes })];
        let network = with_policy(network("office", &[("10.1.0.0/24", None)]), lists, IpVerdict::Allow);
        let (client, server) = (([10, 1, 0, 2], 40000).into(), ([192, 0, 2, 1], 80).into());
        let policy = Arc::new(snapshot(vec![network]));
        let flow = Flow::new(1, Transport::Tcp, ClientAddr(client), OrigDst(server), policy, Arc::default());
        let telemetry = Telemetry::new(Queue::new(1000).0);
        let mut peek = TcpPeek::new(Limits::default());
        let tcp::Step::Found(discovery) = peek.look(octets, false) else { panic!("no request") };
        let judgement = flow.judge(Some(&discovery), &telemetry);
        assert_eq!(judgement.ending, None);
        let watch = Watch::after(peek, &discovery, octets, HttpRequestsJudged::Every);
        let watched = Watched { watch, flow, held: octets.to_vec(), limit: 1 << 16, refused: None };
        (watched, judgement.closing, telemetry)
    }

    #[test]
    fn many_small_frames_go_at_once_and_a_forbidden_request_ends_the_flow_behind_what_went_before_it() {
        let allowed = [PREFACE, &request(1, "a.example"), &EMPTY.repeat(6000), &request(3, "b.example")].concat();
        let (mut watched, mut closing, telemetry) = watched(&[&allowed, &request(5, "blocked.example")[..]].concat());
        let Step::Forward(octets) = watched.step(false, &mut closing, &telemetry) else { panic!("nothing goes") };
        assert!(octets == allowed, "{} of {}", octets.len(), allowed.len());
        assert!(matches!(watched.step(false, &mut closing, &telemetry), Step::Refused(DropAction::Discard)));
    }
}
