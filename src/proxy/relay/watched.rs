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
        loop {
            match self.watch.next(&self.held, ended) {
                Next::Forward(count) => {
                    let rest = self.held.split_off(count.min(self.held.len()));
                    return Step::Forward(std::mem::replace(&mut self.held, rest));
                }
                Next::Judge(discovery) => {
                    let judgement = self.flow.judge(Some(&discovery), telemetry);
                    if let Some(action) = judgement.ending {
                        return Step::Refused(action);
                    }
                    closing.join(*judgement.closing);
                }
                Next::More => return Step::More,
                Next::Splice => return Step::Unwatched(std::mem::take(&mut self.held)),
            }
        }
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
