//! The bounded queue between those who record and the one who writes.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::json::Lines;
use super::record::Record;

/// The side that records: never waits for a sink.
#[derive(Clone, Debug)]
pub struct Queue(Arc<Shared>);

/// The side that writes, on a thread of its own.
#[derive(Debug)]
pub struct Writer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Vec<Record>>,
    filled: Condvar,
    limit: usize,
    dropped: AtomicU64,
    closed: AtomicBool,
}

impl Queue {
    /// A queue of at most `limit` records.
    pub fn new(limit: usize) -> (Self, Writer) {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            filled: Condvar::new(),
            limit,
            dropped: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        (Self(shared.clone()), Writer(shared))
    }

    pub fn push(&self, record: Record) {
        let mut waiting = self.0.lock();
        if waiting.len() >= self.0.limit {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.push(record);
        let first = waiting.len() == 1;
        drop(waiting);
        if first {
            self.0.filled.notify_one();
        }
    }

    /// Records that found no room.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
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
    /// Writes records as JSON lines until the queue is closed and empty. A sink that fails loses the records of that
    /// moment, counted as dropped, and is tried again.
    pub fn run(self, mut sink: impl Write) {
        let mut batch = Vec::new();
        let (mut lines, mut text) = (Lines::default(), Vec::new());
        while self.next(&mut batch) {
            let records = batch.len() as u64;
            for record in batch.drain(..) {
                lines.write(&record, &mut text);
            }
            if write_all(&mut sink, &text).is_err() {
                self.0.dropped.fetch_add(records, Ordering::Relaxed);
            }
            text.clear();
            text.shrink_to(KEPT_TEXT);
        }
    }

    /// The same with whatever becomes of each record; one that fails is counted as dropped.
    pub fn each(self, mut take: impl FnMut(&Record) -> io::Result<()>) {
        let mut batch = Vec::new();
        while self.next(&mut batch) {
            for record in batch.drain(..) {
                if take(&record).is_err() {
                    self.0.dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Waits for records and takes all there are; false when none will come.
    fn next(&self, batch: &mut Vec<Record>) -> bool {
        let mut waiting = self.0.lock();
        while waiting.is_empty() {
            if self.0.closed.load(Ordering::Acquire) {
                return false;
            }
            waiting = match self.0.filled.wait(waiting) {
                Ok(guard) => guard,
                Err(poisoned) => poisoned.into_inner(),
            };
        }
        if !self.0.closed.load(Ordering::Acquire) && waiting.len() < self.0.limit / 2 {
            // One wake-up for many records: those of the next moment are written with the first.
            drop(waiting);
            std::thread::sleep(GATHER);
            waiting = self.0.lock();
        }
        std::mem::swap(&mut *waiting, batch);
        true
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        match self.waiting.lock() {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

fn write_all(sink: &mut impl Write, text: &[u8]) -> io::Result<()> {
    sink.write_all(text)?;
    sink.flush()
}

/// How long the writer lets records gather.
const GATHER: Duration = Duration::from_millis(5);
/// Memory that the writer keeps for text between batches, in octets.
const KEPT_TEXT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Kind;
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
        let text = String::from_utf8(sink).unwrap();
        let ports: Vec<_> = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()).collect();
        assert_eq!(ports.iter().map(|r| r["destination_port"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(queue.dropped(), 2);
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
