//! What one thread reports, handed over many at a time.
//!
//! For who reports so often that to touch what all threads share for every record costs more than the record. It is a line
//! of text before it leaves the thread, so that nothing in it is freed by another.

use std::sync::Arc;
use std::time::SystemTime;

use super::json::Lines;
use super::record::Record;
use super::sink::{Line, Weight};
use super::{Counters, Telemetry};

/// Must be told to [`Gatherer::hand_over`] once a turn; at its end it does so by itself.
#[derive(Debug)]
pub struct Gatherer {
    telemetry: Telemetry,
    lines: Lines,
    written: Written,
    /// Judgements by their place in the tally, those of one place in a row together.
    judged: Vec<(usize, u64)>,
    answered: u64,
}

/// Records that are text already.
#[derive(Debug, Default)]
pub(super) struct Written {
    text: Vec<u8>,
    marks: Vec<Mark>,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    end: usize,
    time: SystemTime,
    kind: &'static str,
    weight: Weight,
}

impl Gatherer {
    pub fn new(telemetry: Telemetry) -> Self {
        Self { telemetry, lines: Lines::default(), written: Written::default(), judged: Vec::new(), answered: 0 }
    }

    /// Counts a record and keeps it to be handed over, if it is one that is told.
    pub fn record(&mut self, record: Record) {
        if let Some(place) = super::Tally::place_of(&record) {
            match self.judged.last_mut().filter(|last| last.0 == place) {
                Some(last) => last.1 += 1,
                None => self.judged.push((place, 1)),
            }
        }
        if self.telemetry.leaves_out(&record) {
            return self.telemetry.count(|c| &c.records_left_out);
        }
        if self.telemetry.queues.iter().any(|queue| !queue.takes_records()) {
            self.written.push(&record, &mut self.lines);
        }
        let as_they_are = self.telemetry.queues.iter().filter(|queue| queue.takes_records());
        as_they_are.for_each(|queue| queue.push(record.clone()));
        if self.written.marks.len() >= MOST {
            self.hand_over();
        }
    }

    /// Counts a question that had an answer.
    pub fn answered(&mut self) {
        self.answered += 1;
    }

    pub fn hand_over(&mut self) {
        if self.answered > 0 {
            self.telemetry.add(|c: &Counters| &c.dns_answered, std::mem::take(&mut self.answered));
        }
        for (place, number) in self.judged.drain(..) {
            self.telemetry.tally().add(place, number);
        }
        if !self.written.marks.is_empty() {
            let next = self.written.as_large();
            let written = Arc::new(std::mem::replace(&mut self.written, next));
            let queues = self.telemetry.queues.iter().filter(|queue| !queue.takes_records());
            queues.for_each(|queue| queue.push_written(&written));
        }
    }
}

impl Drop for Gatherer {
    fn drop(&mut self) {
        self.hand_over();
    }
}

impl Written {
    fn push(&mut self, record: &Record, lines: &mut Lines) {
        lines.write(record, &mut self.text);
        let (time, kind, weight) = (record.time, record.kind.as_str(), Weight::of(record));
        self.marks.push(Mark { end: self.text.len(), time, kind, weight });
    }

    pub(super) fn len(&self) -> usize {
        self.marks.len()
    }

    pub(super) fn line(&self, place: usize) -> Option<Line<'_>> {
        let Mark { end, time, kind, weight } = *self.marks.get(place)?;
        let before = place.checked_sub(1).and_then(|before| self.marks.get(before));
        let json = self.text.get(before.map_or(0, |mark| mark.end)..end)?;
        Some(Line { json, time, kind, weight })
    }

    /// So many of them, from the first on.
    pub(super) fn first(&self, number: usize) -> Self {
        let marks: Vec<Mark> = self.marks.iter().take(number).copied().collect();
        let end = marks.last().map_or(0, |last| last.end);
        Self { text: self.text.get(..end).unwrap_or_default().to_vec(), marks }
    }

    /// An empty one with room for about as much.
    fn as_large(&self) -> Self {
        Self { text: Vec::with_capacity(self.text.len() * 3 / 2), marks: Vec::with_capacity(self.marks.len() * 3 / 2) }
    }
}

/// Records that are kept at most before they are handed over.
const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Direction, Reason};
    use crate::telemetry::{Kind, Queue};

    fn record(port: u16) -> Record {
        let (client, resolver) = (([10, 0, 0, 1], port).into(), ([192, 0, 2, 1], 53).into());
        let record = Record::new(Kind::Dns, SystemTime::UNIX_EPOCH, "e".into(), "udp", client, resolver);
        let mut record = record.judged_by("n".into(), None, Direction::Outbound);
        (record.verdict, record.reason) = (Some("allow"), Some(Reason::Default.as_str()));
        record
    }

    fn lines(queue: &Queue, writer: super::super::Writer) -> Vec<String> {
        queue.close();
        let mut written = Vec::new();
        writer.run(&mut written);
        String::from_utf8(written).unwrap().lines().map(String::from).collect()
    }

    #[test]
    fn what_is_gathered_is_what_would_have_been_told_one_by_one() {
        let ((one, one_writer), (many, many_writer)) = (Queue::new(10), Queue::new(10));
        let (apart, together) = (Telemetry::new(one.clone()), Telemetry::new(many.clone()));
        let mut gatherer = Gatherer::new(together.clone());
        for port in 1..=3 {
            apart.record(record(port));
            apart.count(|c| &c.dns_answered);
            gatherer.record(record(port));
            gatherer.answered();
        }
        assert_eq!(
            (many.standing().waiting, together.counters().all()),
            (0, Telemetry::new(Queue::new(1).0).counters().all())
        );
        gatherer.hand_over();
        assert_eq!(together.counters().all(), apart.counters().all());
        assert!(together.tally().judgements().eq(apart.tally().judgements()));
        assert_eq!(lines(&many, many_writer), lines(&one, one_writer));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nothing_is_forgotten_at_the_end() {
        let (queue, writer) = Queue::new(2);
        let mut gatherer = Gatherer::new(Telemetry::new(queue.clone()));
        (1..=5).for_each(|port| gatherer.record(record(port)));
        drop(gatherer);
        let lines = lines(&queue, writer);
        assert!(lines[0].contains(r#""source_port":1"#) && lines[1].contains(r#""source_port":2"#));
        assert!(lines[2].contains("RECORDS_DROPPED"));
        assert_eq!((lines.len(), queue.dropped()), (3, 3));
    }

    #[test]
    fn who_wants_records_has_records() {
        let (queue, writer) = Queue::of_records(10);
        let mut gatherer = Gatherer::new(Telemetry::new(queue.clone()));
        (1..=3).for_each(|port| gatherer.record(record(port)));
        gatherer.hand_over();
        queue.close();
        let mut ports = Vec::new();
        writer.each(|record| {
            ports.push(record.source_port);
            Ok(())
        });
        assert_eq!(ports, [Some(1), Some(2), Some(3)]);
    }
}
