//! The bounded queue between those who record and the one who writes.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::entry::Entry;
use super::event::{Event, Happened};
use super::gatherer::Written;
use super::record::Record;
use super::sink::{Page, Progress, Sink, Stream};

/// The side that records: never waits for a sink.
#[derive(Clone, Debug)]
pub struct Queue(Arc<Shared>);

/// The side that writes, on a thread of its own.
#[derive(Debug)]
pub struct Writer(Arc<Shared>);

/// How a sink is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub sink: Arc<str>,
    /// Records that wait, those that are being written among them, and how many may.
    pub waiting: usize,
    pub limit: usize,
    pub written: u64,
    /// Records that found no room, or that the sink lost.
    pub dropped: u64,
    /// It does not take records at the moment.
    pub failing: bool,
}

#[derive(Debug)]
struct Shared {
    sink: Arc<str>,
    enforcer: Arc<str>,
    waiting: Mutex<Waiting>,
    filled: Condvar,
    limit: usize,
    takes_records: bool,
    written: AtomicU64,
    dropped: AtomicU64,
    failing: AtomicBool,
    closed: AtomicBool,
    /// The writer has ended.
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Entry>,
    /// Entries that the writer has taken out and may not be done with.
    taken: usize,
}

impl Queue {
    /// A queue of at most `limit` records.
    pub fn new(limit: usize) -> (Self, Writer) {
        Self::named("records".into(), "".into(), limit)
    }

    /// The same for a sink that is spoken of by its name.
    pub fn named(sink: Arc<str>, enforcer: Arc<str>, limit: usize) -> (Self, Writer) {
        Self::shared(sink, enforcer, limit, false)
    }

    /// The same for [`Writer::each`], who wants records and no lines.
    pub fn of_records(limit: usize) -> (Self, Writer) {
        Self::shared("records".into(), "".into(), limit, true)
    }

    fn shared(sink: Arc<str>, enforcer: Arc<str>, limit: usize, takes_records: bool) -> (Self, Writer) {
        let shared = Arc::new(Shared {
            sink,
            enforcer,
            waiting: Mutex::default(),
            filled: Condvar::new(),
            limit,
            takes_records,
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        (Self(shared.clone()), Writer(shared))
    }

    pub fn push(&self, entry: impl Into<Entry>) {
        self.push_some(1, |_| std::iter::once(entry.into()));
    }

    /// Pushes records that are text already, as many as have room.
    pub(super) fn push_written(&self, written: &Arc<Written>) {
        self.push_some(written.len(), |room| match room == written.len() {
            true => Entry::lines(written.clone(), room),
            // The text of those without room does not wait with the others.
            false => Entry::lines(Arc::new(written.first(room)), room),
        });
    }

    /// Pushes what `entries` gives for as many of `number` as have room.
    fn push_some<E: Iterator<Item = Entry>>(&self, number: usize, entries: impl FnOnce(usize) -> E) {
        let mut waiting = self.0.lock();
        let room = self.0.limit.saturating_sub(waiting.entries.len() + waiting.taken).min(number);
        let first = waiting.entries.is_empty() && room > 0;
        if room > 0 {
            waiting.entries.extend(entries(room));
        }
        drop(waiting);
        if room < number {
            self.0.dropped.fetch_add((number - room) as u64, Ordering::Relaxed);
        }
        if first {
            self.0.filled.notify_one();
        }
    }

    /// Whether it takes records as they are, and no lines.
    pub(super) fn takes_records(&self) -> bool {
        self.0.takes_records
    }

    /// Records that were lost to this sink.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    pub fn standing(&self) -> Standing {
        let waiting = self.0.lock();
        Standing {
            sink: self.0.sink.clone(),
            waiting: waiting.entries.len() + waiting.taken,
            limit: self.0.limit,
            written: self.0.written.load(Ordering::Relaxed),
            dropped: self.dropped(),
            failing: self.0.failing.load(Ordering::Relaxed),
        }
    }

    /// Whether the writer has written all that it could.
    pub fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Acquire)
    }

    /// Lets the writer end once it has written what is waiting.
    pub fn close(&self) {
        // Under the lock, or the writer could look just before and wait just after.
        let _waiting = self.0.lock();
        self.0.closed.store(true, Ordering::Release);
        self.0.filled.notify_one();
    }
}

impl Writer {
    /// Writes records as JSON lines until the queue is closed and empty.
    pub fn run(self, sink: impl Write) {
        self.serve(&mut Stream::new(sink));
    }

    /// Gives records to a sink until the queue is closed and empty. While the sink fails they wait for it, and what then
    /// finds no room is counted; the sink is told of that once it works again.
    pub fn serve(self, sink: &mut dyn Sink) {
        let (mut batch, mut page, mut owed) = (Vec::new(), Page::default(), Owed::default());
        while self.next(&mut batch, &owed) {
            let mut done = 0;
            while let Some(rest) = batch.get(done..).filter(|rest| !rest.is_empty()) {
                let (progress, result) = page.give(rest.iter().take(PAGE), sink);
                done += progress.written + progress.lost;
                self.count(progress);
                if let Err(error) = result
                    && !self.wait_out(&error)
                {
                    self.0.dropped.fetch_add((batch.len() - done) as u64, Ordering::Relaxed);
                    break;
                }
            }
            batch.clear();
            self.say_dropped(&mut owed, &mut page, sink);
        }
        self.0.ended.store(true, Ordering::Release);
    }

    /// The same with whatever becomes of each record; one that fails is counted as dropped.
    pub fn each(self, mut take: impl FnMut(&Record) -> io::Result<()>) {
        let mut batch = Vec::new();
        // Nobody is told of drops here but who asks for their number.
        let owed = Owed { said: u64::MAX, ..Owed::default() };
        while self.next(&mut batch, &owed) {
            for entry in batch.drain(..) {
                if let Entry::Record(record) = entry
                    && take(&record).is_err()
                {
                    self.0.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Waits for records and takes all there are, or none if it is time to tell of dropped ones; false when none will
    /// come.
    fn next(&self, batch: &mut Vec<Entry>, owed: &Owed) -> bool {
        let mut waiting = self.0.lock();
        waiting.taken = 0;
        while waiting.entries.is_empty() {
            let is_closed = self.0.closed.load(Ordering::Acquire);
            let owes = self.0.dropped.load(Ordering::Relaxed) > owed.said;
            if owes && (owed.is_due() || is_closed && !owed.last) {
                return true;
            }
            if is_closed {
                return false;
            }
            // Nothing is dropped while nothing waits: then there is nothing to look for.
            let patience = if owes { SAY } else { Duration::MAX };
            waiting = match self.0.filled.wait_timeout(waiting, patience) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        if !self.0.closed.load(Ordering::Acquire) && waiting.entries.len() < self.0.limit / 2 {
            // One wake-up for many records: those of the next moment are written with the first.
            drop(waiting);
            std::thread::sleep(GATHER);
            waiting = self.0.lock();
        }
        std::mem::swap(&mut waiting.entries, batch);
        waiting.taken = batch.len();
        true
    }

    /// A sink that cannot take this now is told later.
    fn say_dropped(&self, owed: &mut Owed, page: &mut Page, sink: &mut dyn Sink) {
        let dropped = self.0.dropped.load(Ordering::Relaxed);
        let is_closed = self.0.closed.load(Ordering::Acquire);
        if dropped <= owed.said || !(owed.is_due() || is_closed) {
            return;
        }
        (owed.tried, owed.last) = (Some(Instant::now()), is_closed);
        let event = Event::new(self.0.enforcer.clone(), Happened::RecordsDropped).count(dropped - owed.said);
        let event = Entry::Event(Event { sink: Some(self.0.sink.clone()), ..event });
        let (progress, _) = page.give(std::iter::once(&event), sink);
        if progress.written > 0 {
            tracing::warn!(sink = &*self.0.sink, records = dropped - owed.said, "records were dropped");
            owed.said = dropped;
        }
    }

    fn count(&self, progress: Progress) {
        self.0.written.fetch_add(progress.written as u64, Ordering::Relaxed);
        self.0.dropped.fetch_add(progress.lost as u64, Ordering::Relaxed);
        if progress.written > 0 && self.0.failing.swap(false, Ordering::Relaxed) {
            tracing::info!(sink = &*self.0.sink, "records are written again");
        }
    }

    /// Waits a moment before the sink is tried again; false if there is no time left for that.
    fn wait_out(&self, error: &io::Error) -> bool {
        // A pipe that does not block, and is full.
        let is_slow = error.kind() == io::ErrorKind::WouldBlock;
        if !is_slow && !self.0.failing.swap(true, Ordering::Relaxed) {
            tracing::error!(sink = &*self.0.sink, %error, "records cannot be written, and wait");
        }
        let until = Instant::now() + if is_slow { GATHER } else { RETRY };
        let mut waiting = self.0.lock();
        loop {
            if self.0.closed.load(Ordering::Acquire) {
                return false;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            waiting = match self.0.filled.wait_timeout(waiting, left) {
                Ok((guard, _)) => guard,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}

/// What a sink has been told of dropped records.
#[derive(Debug, Default)]
struct Owed {
    said: u64,
    tried: Option<Instant>,
    /// It was tried at the end.
    last: bool,
}

impl Owed {
    fn is_due(&self) -> bool {
        self.tried.is_none_or(|tried| tried.elapsed() >= SAY)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        match self.waiting.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

/// How long the writer lets records gather.
const GATHER: Duration = Duration::from_millis(5);
/// Records that are written at a time.
const PAGE: usize = 256;
/// How long a sink that fails is left alone.
const RETRY: Duration = Duration::from_millis(500);
/// How often a sink is told of dropped records at most.
const SAY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Kind;
    use crate::telemetry::sink::Line;
    use serde_json::Value;
    use std::time::SystemTime;

    fn record(port: u16) -> Record {
        let destination = ([192, 0, 2, 1], port).into();
        Record::new(Kind::Ip, SystemTime::UNIX_EPOCH, "e".into(), "tcp", ([10, 0, 0, 1], 1).into(), destination)
    }

    #[test]
    fn what_finds_no_room_is_counted_and_the_rest_is_written_in_order() {
        let (queue, writer) = Queue::new(3);
        (1..=5).for_each(|port| queue.push(record(port)));
        queue.close();
        let mut sink = Vec::new();
        writer.run(&mut sink);
        assert_eq!(ports(&sink), [Some(1), Some(2), Some(3), None]);
        let last: Value = serde_json::from_slice(sink.rsplit(|octet| *octet == b'\n').nth(1).unwrap()).unwrap();
        assert_eq!((&last["kind"], &last["reason"]), (&"event".into(), &"RECORDS_DROPPED".into()));
        assert_eq!((&last["sink"], &last["count"]), (&"records".into(), &2.into()));
        assert_eq!((queue.dropped(), queue.standing().written), (2, 3));
    }

    fn ports(lines: &[u8]) -> Vec<Option<u64>> {
        let lines = std::str::from_utf8(lines).unwrap().lines();
        lines.map(|line| serde_json::from_str::<Value>(line).unwrap()["destination_port"].as_u64()).collect()
    }

    /// Refuses so many times, then takes everything.
    struct Away<'a> {
        times: usize,
        queue: Queue,
        sink: Stream<&'a mut Vec<u8>>,
    }

    impl Sink for Away<'_> {
        fn write(&mut self, lines: &[Line<'_>], progress: &mut Progress) -> io::Result<()> {
            if self.times == 0 {
                return self.sink.write(lines, progress);
            }
            self.times -= 1;
            // More than has room while the sink is away.
            (10..15).for_each(|port| self.queue.push(record(port)));
            Err(io::ErrorKind::ConnectionRefused.into())
        }
    }

    #[test]
    fn records_wait_for_a_sink_that_is_away_and_it_is_told_what_found_no_room() {
        let (queue, writer) = Queue::new(4);
        queue.push(record(1));
        queue.push(record(2));
        let mut written = Vec::new();
        let mut sink = Away { times: 1, queue: queue.clone(), sink: Stream::new(&mut written) };
        std::thread::scope(|scope| {
            scope.spawn(|| writer.serve(&mut sink));
            while queue.standing().written < 4 {
                std::thread::yield_now();
            }
            queue.close();
        });
        assert_eq!(ports(&written), [Some(1), Some(2), None, Some(10), Some(11)]);
        let standing = queue.standing();
        assert_eq!((standing.dropped, standing.written, standing.failing), (3, 4, false));
    }

    #[test]
    fn a_sink_that_fails_loses_records_by_count_and_never_stops_the_writer() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (queue, writer) = Queue::new(10);
        queue.push(record(1));
        queue.close();
        writer.run(Broken);
        assert_eq!(queue.dropped(), 1);
    }
}
