//! The flows of one worker, and what they share.

use super::flow::Flow;
use crate::sys::pipe::Pool;

#[derive(Debug)]
pub(super) struct Table {
    pub(super) flows: Vec<Option<Box<Flow>>>,
    free: Vec<usize>,
    pub(super) pool: Pool,
    /// Where octets that are copied stand for a moment.
    pub(super) scratch: Box<[u8]>,
    /// Flows whose turn ended before their octets did.
    pub(super) again: Vec<usize>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            flows: Vec::new(),
            free: Vec::new(),
            pool: Pool::default(),
            scratch: vec![0; SCRATCH].into(),
            again: Vec::new(),
        }
    }
}

impl Table {
    pub(super) fn insert(&mut self, flow: Flow) -> usize {
        match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.flows.get_mut(slot) {
                    *place = Some(Box::new(flow));
                }
                slot
            }
            None => {
                self.flows.push(Some(Box::new(flow)));
                self.flows.len() - 1
            }
        }
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Box<Flow>> {
        let flow = self.flows.get_mut(slot)?.take()?;
        self.free.push(slot);
        Some(flow)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.flows.len()
    }
}

/// A copy of so many octets costs nearly as little as a splice.
const SCRATCH: usize = 256 << 10;
