//! Records of what the kernel judged by itself.
//!
//! The rules copy the first packets of each flow to us, with a tag that says who judged and why. One thread reads them;
//! it may fall behind, and then records are lost and counted, never packets delayed.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;

use crate::firewall::{By, LOG_GROUP, LogTag};
use crate::peek::Via;
use crate::policy::bindings::Bindings;
use crate::policy::judge::{Binding, Facts, judge_bound, refuse_service};
use crate::policy::network::{Mode, Network};
use crate::policy::snapshot::Snapshot;
use crate::policy::{Direction, IpVerdict, Judged, Transport, Verdict};
use crate::sys::nflog::{Logged, PacketLog};
use crate::telemetry::record::via_word;
use crate::telemetry::{Kind, Record, Telemetry};
use crate::wire::ip::Headers;

/// The thread that records; it ends when this is dropped.
#[derive(Debug)]
pub struct Recorder {
    thread: Option<JoinHandle<PacketLog>>,
    stop: Arc<AtomicBool>,
    bindings: Arc<OnceLock<Arc<Bindings>>>,
}

/// Listens from now on: what is logged waits until somebody reads it.
pub fn listen() -> io::Result<PacketLog> {
    PacketLog::open(LOG_GROUP, PATIENCE)
}

impl Recorder {
    /// Reads what `log` has heard and will hear.
    pub fn start(log: PacketLog, snapshot: &Arc<ArcSwap<Snapshot>>, telemetry: &Telemetry) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let bindings = Arc::new(OnceLock::new());
        let work = Work {
            log,
            current: snapshot.clone(),
            known: Vec::new(),
            telemetry: telemetry.clone(),
            recent: Recent::new(Instant::now()),
            stop: stop.clone(),
            bindings: bindings.clone(),
        };
        let thread = std::thread::Builder::new().name("kernel-records".into()).spawn(move || work.run())?;
        Ok(Self { thread: Some(thread), stop, bindings })
    }

    /// Records what was judged until now, and gives back what listens. `None`: its thread has panicked.
    pub fn stop(mut self) -> Option<PacketLog> {
        self.end()
    }

    fn end(&mut self) -> Option<PacketLog> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()
    }

    /// Where the names are that DNS gave.
    pub fn knows(&self, bindings: Arc<Bindings>) {
        // A second call would tell of the same.
        let _ = self.bindings.set(bindings);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // A reader that panicked has recorded what it could.
        let _ = self.end();
    }
}

struct Work {
    log: PacketLog,
    current: Arc<ArcSwap<Snapshot>>,
    /// The last snapshots, the newest last: a packet may have been judged just before a reload.
    known: Vec<Arc<Snapshot>>,
    telemetry: Telemetry,
    recent: Recent,
    stop: Arc<AtomicBool>,
    bindings: Arc<OnceLock<Arc<Bindings>>>,
}

impl Work {
    fn run(mut self) -> PacketLog {
        // It reads what others send. A kernel that lets nobody give up rights leaves those that are there.
        let _ = crate::sys::privileges::keep_only(&[]);
        // What was judged before the end is recorded before the end.
        let mut last = false;
        while !last {
            last = self.stop.load(Ordering::Relaxed);
            let Self { log, current, known, telemetry, recent, bindings, .. } = &mut self;
            let now = Instant::now();
            take_note(current, known);
            let lost = log.read(|logged| {
                // The rules may have become others while this waited.
                take_note(current, known);
                match read(&logged, known) {
                    Some(judgement) if recent.is_new((judgement.packet, judgement.tag.direction), now) => {
                        telemetry.count(|c| &c.judged_by_kernel);
                        telemetry.record(judgement.record(bindings.get()));
                    }
                    Some(_) => {}
                    // Of another program's rules, or from before a start.
                    None => telemetry.count(|c| &c.kernel_records_lost),
                }
            });
            match lost {
                Ok(0) => {}
                Ok(lost) => telemetry.add(|c| &c.kernel_records_lost, lost.into()),
                Err(error) => {
                    tracing::error!(%error, "the kernel's judgements cannot be read for a moment");
                    std::thread::sleep(PATIENCE);
                }
            }
        }
        self.log
    }
}

/// Rules are put in place only once their snapshot is the current one.
fn take_note(current: &ArcSwap<Snapshot>, known: &mut Vec<Arc<Snapshot>>) {
    let current = current.load();
    if known.last().is_none_or(|last| !Arc::ptr_eq(last, &current)) {
        known.push(Arc::clone(&current));
        let beyond = known.len().saturating_sub(KNOWN);
        known.drain(..beyond);
    }
}

/// What the kernel did with a packet, and why.
struct Judgement<'a> {
    tag: LogTag,
    packet: Headers,
    snapshot: &'a Snapshot,
    network: &'a Network,
    judged: Judged<IpVerdict>,
}

fn read<'a>(logged: &Logged<'_>, known: &'a [Arc<Snapshot>]) -> Option<Judgement<'a>> {
    let tag: LogTag = logged.tag.parse().ok()?;
    let packet = Headers::parse(logged.packet)?;
    let snapshot = known.iter().rev().find(|snapshot| snapshot.generation == tag.generation)?;
    let remote = match tag.direction {
        Direction::Outbound => packet.destination,
        Direction::Inbound => packet.source,
    };
    let (network, judged) = tag.judged(snapshot, remote)?;
    Some(Judgement { tag, packet, snapshot, network, judged })
}

impl Judgement<'_> {
    fn record(self, bindings: Option<&Arc<Bindings>>) -> Record {
        let Self { tag, packet, snapshot, network, judged } = &self;
        let now = SystemTime::now();
        let rule = network.rule(tag.direction);
        let mut verdict = Verdict {
            pass: judged.verdict == IpVerdict::Allow,
            reason: judged.reason,
            ip: judged.verdict,
            domain: None,
            inspection: None,
            list: judged.list.clone(),
        };
        let mut name = None;
        // The kernel keeps no name that changes nothing of the verdict of its address.
        let may_be_named = tag.direction == Direction::Outbound
            && network.inspection.as_ref().is_some_and(|inspection| inspection.use_bindings);
        if matches!(tag.by, By::Name { .. }) || may_be_named {
            name = bindings.and_then(|own| own.name_for(packet.source, packet.destination, Instant::now()));
            verdict.ip = rule.map_or(verdict.ip, |rule| rule.policy.judge_ip(packet.destination, now).verdict);
        }
        if let Some(name) = &name {
            // The kernel's verdict stands, whatever has come to be known since.
            verdict = Verdict { pass: verdict.pass, ..judge_bound(network, packet.destination, name, now) };
        }
        if let Some(refusal) = self.refusal(now) {
            verdict = refusal;
        }
        let action = rule.filter(|_| network.mode == Mode::Enforce).map(|rule| rule.drop);
        let policy = rule.map(|rule| rule.policy.name.clone());
        let kind = if name.is_some() { Kind::Domain } else { Kind::Ip };
        let record = Record::of_packet(kind, now, snapshot.enforcer.clone(), packet);
        let mut record = record.judged_by(network.name.clone(), policy, tag.direction).verdict(&verdict, action);
        record.via = name.as_ref().map(|_| via_word(Via::Dns));
        record.domain = name;
        record
    }
}

impl Judgement<'_> {
    /// Encrypted DNS to a resolver that is not authorized comes here only where it is not captured to be refused: what
    /// would have become of it.
    fn refusal(&self, now: SystemTime) -> Option<Verdict> {
        let Self { tag, packet, network, .. } = self;
        let transport =
            [(6, Transport::Tcp), (17, Transport::Udp)].into_iter().find(|(own, _)| *own == packet.protocol);
        let port = packet.ports.map(|(_, destination)| destination);
        let facts = Facts { remote: packet.destination, discovery: None, binding: Binding::Unknown, now };
        let refusal = refuse_service(network, tag.direction, transport.map(|(_, own)| own), port, &facts)?;
        (network.mode == Mode::Monitor).then_some(refusal)
    }
}

/// The flows recorded of late: the repeated SYN of a blocked one, and further packets of one that nobody answers, are
/// no new flows.
struct Recent {
    current: HashSet<(Headers, Direction)>,
    previous: HashSet<(Headers, Direction)>,
    since: Instant,
}

impl Recent {
    fn new(now: Instant) -> Self {
        Self { current: HashSet::new(), previous: HashSet::new(), since: now }
    }

    fn is_new(&mut self, flow: (Headers, Direction), now: Instant) -> bool {
        if now.duration_since(self.since) >= REMEMBERED || self.current.len() >= FLOWS_REMEMBERED {
            self.previous = std::mem::take(&mut self.current);
            self.since = now;
        }
        !self.previous.contains(&flow) && self.current.insert(flow)
    }
}

/// How long the end of the program may wait for the reader.
const PATIENCE: Duration = Duration::from_millis(200);
const KNOWN: usize = 4;
/// A flow is remembered for once to twice as long.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Twice as many at most, of some 60 octets each.
const FLOWS_REMEMBERED: usize = 32_768;

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> (Headers, Direction) {
        let headers = Headers {
            source: [10, 1, 0, 2].into(),
            destination: [203, 0, 113, 7].into(),
            protocol: 6,
            ports: Some((port, 25)),
        };
        (headers, Direction::Outbound)
    }

    #[test]
    fn a_flow_is_new_once_and_again_when_it_was_forgotten() {
        let start = Instant::now();
        let mut recent = Recent::new(start);
        assert!(recent.is_new(flow(1), start));
        assert!(!recent.is_new(flow(1), start));
        assert!(recent.is_new((flow(1).0, Direction::Inbound), start), "the other direction is judged apart");
        assert!(!recent.is_new(flow(1), start + REMEMBERED), "it is of the time before");
        assert!(recent.is_new(flow(1), start + 3 * REMEMBERED));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let start = Instant::now();
        let mut recent = Recent::new(start);
        for round in 0..3 {
            for port in 0..=u16::MAX {
                let (mut headers, direction) = flow(port);
                headers.protocol = round;
                recent.is_new((headers, direction), start);
                assert!(recent.current.len() + recent.previous.len() <= 2 * FLOWS_REMEMBERED);
            }
        }
    }
}
