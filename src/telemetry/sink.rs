//! Where records go: standard output, files, syslog.
//!
//! Each sink has a queue and a thread of its own, so that one that is stuck holds up nobody else. Fails safe: what a sink
//! cannot take waits for it in its queue, and what finds no room there is counted and said (SPEC L3).

mod file;
mod stream;
mod syslog;

pub use file::{FileSink, Rotation};
pub use stream::Stream;
pub use syslog::{Facility, SyslogTcp, SyslogUdp, Template};

use std::io;
use std::time::SystemTime;

use super::entry::Entry;
use super::json::Lines;
use super::record::Record;

/// Takes records in order.
pub trait Sink {
    /// Takes what it can. What `progress` counts is done with; the rest is given again later, after the error.
    fn write(&mut self, lines: &[Line<'_>], progress: &mut Progress) -> io::Result<()>;
}

/// How many of the lines are done with, from the first on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub written: usize,
    /// Cannot be written, now or ever.
    pub lost: usize,
}

/// A record, ready to be written.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// With the line feed at its end.
    pub json: &'a [u8],
    pub time: SystemTime,
    pub kind: &'static str,
    pub weight: Weight,
}

/// How much a record wants to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Something passed, or ended.
    Usual,
    /// Something happened to tidegate.
    Event,
    Block,
}

impl Weight {
    pub fn of(record: &Record) -> Self {
        if record.verdict == Some("block") { Self::Block } else { Self::Usual }
    }
}

/// Some records at a time, as text.
#[derive(Debug, Default)]
pub struct Page {
    lines: Lines,
    text: Vec<u8>,
}

impl Page {
    /// Writes entries as lines, and gives them to a sink.
    pub fn give<'a>(
        &mut self,
        entries: impl Iterator<Item = &'a Entry> + Clone,
        sink: &mut dyn Sink,
    ) -> (Progress, io::Result<()>) {
        self.text.clear();
        let mut ends = Vec::new();
        for entry in entries.clone() {
            match entry {
                Entry::Record(record) => self.lines.write(record, &mut self.text),
                Entry::Event(event) => self.lines.write_event(event, &mut self.text),
                Entry::Line(_) => {}
            }
            ends.push(self.text.len());
        }
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let lines = entries.zip(starts.zip(&ends)).map(|(entry, (start, end))| {
            let json = self.text.get(start..*end).unwrap_or_default();
            match entry {
                Entry::Record(record) => {
                    Line { json, time: record.time, kind: record.kind.as_str(), weight: Weight::of(record) }
                }
                Entry::Line(text) => text.line(),
                Entry::Event(event) => Line { json, time: event.time, kind: "event", weight: Weight::Event },
            }
        });
        let lines: Vec<_> = lines.collect();
        let mut progress = Progress::default();
        let result = sink.write(&lines, &mut progress);
        (progress, result)
    }
}
