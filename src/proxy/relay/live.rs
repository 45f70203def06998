//! What the relay tells of its flows while they live.

use std::cmp::Reverse;
use std::rc::Rc;

use super::Relay;
use crate::proxy::live::{Hearing, Live};

impl Relay {
    /// Answers inquiries for as long as the worker lives.
    pub async fn tell(self: Rc<Self>, mut hearing: Hearing) {
        loop {
            let inquiry = hearing.next().await;
            let flows = self.live(inquiry.most);
            inquiry.answer(flows);
        }
    }

    /// The flows that have moved the most octets, of the first few thousand: a worker with more has no time to look at
    /// all of them.
    fn live(&self, most: usize) -> Vec<Live> {
        let table = self.table.borrow();
        let flows = table.flows.iter().flatten().take(LOOKED_AT);
        let mut moved: Vec<_> =
            flows.map(|flow| (Reverse(flow.up.moved.saturating_add(flow.down.moved)), flow)).collect();
        moved.sort_unstable_by_key(|(moved, _)| *moved);
        let first = moved.into_iter().take(most);
        first.map(|(_, flow)| flow.closing.live(flow.up.moved, flow.down.moved)).collect()
    }
}

const LOOKED_AT: usize = 8192;
