//! Every event: its record and its count side by side, and where they go.
//!
//! Never stalls a flow: each sink has a bounded queue, and what does not fit is counted and said (SPEC L3).

pub mod entry;
pub mod event;
pub mod gatherer;
pub mod json;
pub mod messages;
pub mod queue;
pub mod record;
pub mod sink;
pub mod tally;
pub mod writers;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use event::{Event, Happened};
pub use gatherer::Gatherer;
pub use queue::{Queue, Standing, Writer};
pub use record::{Kind, Record};
pub use tally::Tally;

use crate::peek::Discovery;

/// Where every part of the program reports what happened. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Telemetry {
    queues: Arc<[Queue]>,
    /// Of the allowed flows one in so many is recorded; 0: none.
    allowed: u64,
    enforcer: Arc<str>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    counters: Counters,
    levels: Levels,
    tally: Tally,
    /// Allowed flows without a number of their own.
    unnumbered: AtomicU64,
}

/// What is held now by all workers, of that which no other place knows.
#[derive(Debug, Default)]
pub struct Levels {
    /// Questions over UDP that wait for a resolver.
    pub questions: AtomicU64,
    /// Octets of UDP flows that are held until their names are known.
    pub held_octets: AtomicU64,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// What has happened since start.
        #[derive(Debug, Default)]
        pub struct Counters { $($(#[doc = $doc])+ pub $name: AtomicU64),+ }

        impl Counters {
            /// Every counter with its name.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                self.described().into_iter().map(|(name, _, count)| (name, count)).collect()
            }

            /// The same with what each counts, in a sentence.
            pub fn described(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), concat!($($doc),+), self.$name.load(Ordering::Relaxed))),+]
            }
        }
    };
}

counters! {
    /// Flows taken in.
    flows,
    /// Flows that were allowed and dialled.
    allowed,
    /// Flows that a verdict ended.
    blocked,
    /// Flows refused because a limit of flows was reached.
    refused_by_limit,
    /// TCP flows that were reset because there was no room to hold what their names are read from.
    refused_unheld,
    /// Times that accepting paused because no descriptor was free.
    out_of_descriptors,
    /// Flows that ended before they could be judged: a reset, or an address that could not be read.
    ended_before_verdict,
    /// Allowed flows whose server could not be reached.
    unreachable,
    /// Questions that had an answer of a resolver, or one of its that was kept.
    dns_answered,
    /// Questions whose name or answer is blocked, answered here.
    dns_blocked,
    /// Questions to a resolver that may not be asked.
    dns_refused,
    /// Questions that had no answer, or for which there was no room: SERVFAIL.
    dns_failed,
    /// DNS messages that are no question: FORMERR and the like.
    dns_malformed,
    /// DNS answers that the kernel did not take from us.
    dns_unsent,
    /// Bindings that had to make room for newer ones.
    bindings_displaced,
    /// DNS messages that were dropped unread: no query (an answer, a scrap), a datagram over 4,096 octets, or
    /// encrypted, to a resolver that a reload has just authorized.
    dns_unread,
    /// Captured datagrams that were dropped: of a blocked flow or connection, or past a limit.
    datagrams_dropped,
    /// Allowed datagrams that the kernel did not take from us.
    datagrams_unsent,
    /// UDP flows that the kernel did not take over, for a full set as a rule: they are served in user space.
    kernel_refused,
    /// Lists that were replaced in force because a source of theirs changed.
    lists_replaced,
    /// Times that what a file of a list became was not taken.
    lists_refused,
    /// Fetches of lists that failed, or gave nothing that may replace the last good copy.
    fetches_failed,
    /// Packets that the kernel judged, of flows that are recorded.
    judged_by_kernel,
    /// Packets that the kernel judged and did not record: there were more than limits.kernel_records allows.
    kernel_unrecorded,
    /// Packets that came from an interface by which their source is not reached, that began a flow in answer to one, or that
    /// were fragments within fragments.
    forged,
    /// Names that the kernel did not take, for a full set as a rule: the address decides instead.
    names_untold,
    /// Copies of judged packets that were lost on their way to be recorded.
    kernel_records_lost,
    /// Times that rules or routes were found damaged and put back.
    rules_restored,
    /// Allowed UDP flows whose octets the kernel does not count: they get no `end` record.
    uncounted,
    /// Blocked flows that should have seen ICMP or nothing, and saw a reset since the kernel refused more.
    ended_by_reset,
    /// Reloads that put another configuration in force.
    reloads,
    /// Reloads that changed nothing, because of mistakes or because the rules could not be put in place.
    reloads_refused,
    /// Records of allowed flows that telemetry.allowed leaves out.
    records_left_out,
}

impl Telemetry {
    /// With one sink, and a record of everything.
    pub fn new(queue: Queue) -> Self {
        Self::with_sinks(vec![queue], 1, "".into())
    }

    /// `allowed`: of allowed flows one in so many is recorded, none for 0. Blocks always are.
    pub fn with_sinks(queues: Vec<Queue>, allowed: u64, enforcer: Arc<str>) -> Self {
        Self { queues: queues.into(), allowed, enforcer, counts: Arc::default() }
    }

    /// Hands a record to the writers, or counts it as dropped.
    pub fn record(&self, record: Record) {
        self.counts.tally.judged(&record);
        if self.leaves_out(&record) {
            return self.count(|c| &c.records_left_out);
        }
        let Some((last, others)) = self.queues.split_last() else { return };
        others.iter().for_each(|queue| queue.push(record.clone()));
        last.push(record);
    }

    /// An event to be told.
    pub fn happened(&self, reason: Happened) -> Event {
        Event::new(self.enforcer.clone(), reason)
    }

    pub fn event(&self, event: Event) {
        self.queues.iter().for_each(|queue| queue.push(event.clone()));
    }

    /// What the beginning of a flow told.
    pub fn peeked(&self, discovery: &Discovery) {
        self.counts.tally.peeked(discovery);
    }

    /// All records of a flow share one lot.
    fn leaves_out(&self, record: &Record) -> bool {
        let is_block = record.verdict == Some("block") || record.closed_by == Some("policy");
        if self.allowed == 1 || is_block {
            return false;
        }
        let lot = record.flow.unwrap_or_else(|| self.counts.unnumbered.fetch_add(1, Ordering::Relaxed));
        lot.checked_rem(self.allowed) != Some(0)
    }

    pub fn levels(&self) -> &Levels {
        &self.counts.levels
    }

    pub fn counters(&self) -> &Counters {
        &self.counts.counters
    }

    pub fn add(&self, counter: impl Fn(&Counters) -> &AtomicU64, number: u64) {
        counter(self.counters()).fetch_add(number, Ordering::Relaxed);
    }

    /// Adds one.
    pub fn count(&self, counter: impl Fn(&Counters) -> &AtomicU64) {
        counter(self.counters()).fetch_add(1, Ordering::Relaxed);
    }

    pub fn tally(&self) -> &Tally {
        &self.counts.tally
    }

    /// How each sink is doing.
    pub fn sinks(&self) -> Vec<Standing> {
        self.queues.iter().map(Queue::standing).collect()
    }

    /// Records that were lost to a sink.
    pub fn dropped(&self) -> u64 {
        self.queues.iter().map(Queue::dropped).sum()
    }
}
