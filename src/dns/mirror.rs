//! A worker's own copy of what judges.

use std::cell::RefCell;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::policy::snapshot::Snapshot;

/// The current snapshot, copied for one worker: every question holds on to parts of it for a while, and reference counts
/// that all workers write to cost more than the judging.
#[derive(Debug)]
pub struct Mirror {
    current: Arc<ArcSwap<Snapshot>>,
    own: RefCell<Copied>,
}

#[derive(Debug)]
struct Copied {
    of: Arc<Snapshot>,
    copy: Arc<Snapshot>,
}

impl Mirror {
    pub fn new(current: Arc<ArcSwap<Snapshot>>) -> Self {
        let own = RefCell::new(Copied::new(current.load_full()));
        Self { current, own }
    }

    pub fn load(&self) -> Arc<Snapshot> {
        let current = self.current.load();
        let mut own = self.own.borrow_mut();
        if !Arc::ptr_eq(&own.of, &current) {
            *own = Copied::new(Arc::clone(&current));
        }
        own.copy.clone()
    }
}

impl Copied {
    fn new(of: Arc<Snapshot>) -> Self {
        Self { copy: Arc::new(of.copied()), of }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_says_the_same_as_the_current_snapshot_and_shares_no_count_with_it() {
        let snapshot = |generation| Arc::new(Snapshot::new("e".into(), generation, vec![]));
        let current = Arc::new(ArcSwap::new(snapshot(1)));
        let mirror = Mirror::new(current.clone());
        let first = mirror.load();
        assert_eq!((&*first.enforcer, first.generation), ("e", 1));
        assert!(!Arc::ptr_eq(&first.enforcer, &current.load().enforcer));
        assert!(Arc::ptr_eq(&first, &mirror.load()));
        current.store(snapshot(2));
        assert_eq!(mirror.load().generation, 2);
    }
}
