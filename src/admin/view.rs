//! What can be seen of a gateway from outside its workers.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;

use crate::policy::bindings::Bindings;
use crate::proxy::worker::Census;
use crate::sys::list_store::copy::Copy;
use crate::sys::process;
use crate::telemetry::Telemetry;

#[derive(Debug)]
pub struct View {
    pub telemetry: Telemetry,
    pub census: Arc<Census>,
    pub bindings: Arc<Bindings>,
    /// What is in force; replaced whole.
    pub applied: ArcSwap<Applied>,
    pub started: Instant,
    pub most: Most,
}

/// Limits that were set at start.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    pub flows: usize,
    pub bindings: usize,
    /// Questions over UDP that wait for a resolver, in all workers.
    pub questions: usize,
    /// Octets of UDP flows that wait for their names, in all workers.
    pub held_octets: usize,
    /// The same of TCP flows.
    pub held_of_tcp: usize,
}

/// A configuration in force.
#[derive(Clone, Debug)]
pub struct Applied {
    pub enforcer: Arc<str>,
    pub generation: u64,
    pub since: SystemTime,
    /// Networks that judge here.
    pub networks: usize,
    pub lists: Vec<ListFacts>,
    /// The kernel's sets that hold a policy's addresses, with their elements.
    pub kernel_sets: Vec<(String, usize)>,
}

#[derive(Clone, Debug)]
pub struct ListFacts {
    pub name: Arc<str>,
    pub verdict: &'static str,
    pub names: u64,
    pub prefixes: u64,
    /// Where its age is to be seen: what was fetched, or else the file.
    pub copy: Option<Copy>,
    pub file: Option<PathBuf>,
}

/// How far something is from its limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) what: &'static str,
    pub(super) used: u64,
    pub(super) most: u64,
}

impl View {
    pub(super) fn limits(&self) -> Vec<Used> {
        let descriptors = process::facts();
        let sinks = self.telemetry.sinks();
        let fullest = sinks.iter().max_by_key(|sink| sink.waiting * 1000 / sink.limit.max(1));
        let used = |what, used: usize, most: usize| Used { what, used: used as u64, most: most as u64 };
        let levels = self.telemetry.levels();
        let level =
            |what, used: &AtomicU64, most: usize| Used { what, used: used.load(Ordering::Relaxed), most: most as u64 };
        let mut limits = vec![
            used("flows", self.census.live(), self.most.flows),
            used("bindings", self.bindings.len(), self.most.bindings),
            level("dns_questions", &levels.questions, self.most.questions),
            used("tcp_held_bytes", self.census.held(), self.most.held_of_tcp),
            level("udp_held_bytes", &levels.held_octets, self.most.held_octets),
            Used { what: "descriptors", used: descriptors.descriptors, most: descriptors.most_descriptors },
        ];
        // Each sink has a queue of its own: this is the one that comes closest.
        limits.extend(fullest.map(|sink| used("records", sink.waiting, sink.limit)));
        limits
    }
}

impl ListFacts {
    /// When what it holds was last known to be what its source has; `None` for entries in place.
    pub fn confirmed(&self) -> Option<SystemTime> {
        let copy = self.copy.as_ref().and_then(Copy::checked);
        copy.or_else(|| std::fs::metadata(self.file.as_ref()?).ok()?.modified().ok())
    }
}
