//! What goes through a queue.

use std::sync::Arc;
use std::time::SystemTime;

use super::event::Event;
use super::gatherer::Written;
use super::record::Record;
use super::sink::{Line, Weight};

#[derive(Clone, Debug)]
pub enum Entry {
    Record(Box<Record>),
    Event(Event),
    /// A record that is text already.
    Line(Text),
}

/// One of several records that were written together.
#[derive(Clone, Debug)]
pub struct Text {
    written: Arc<Written>,
    place: usize,
}

impl Entry {
    /// So many of those that were written, from the first on.
    pub(super) fn lines(written: Arc<Written>, number: usize) -> impl Iterator<Item = Self> {
        (0..number).map(move |place| Self::Line(Text { written: written.clone(), place }))
    }
}

impl Text {
    pub(super) fn line(&self) -> Line<'_> {
        let nothing = Line { json: b"", time: SystemTime::UNIX_EPOCH, kind: "", weight: Weight::Usual };
        self.written.line(self.place).unwrap_or(nothing)
    }
}

impl From<Record> for Entry {
    fn from(record: Record) -> Self {
        Self::Record(Box::new(record))
    }
}

impl From<Event> for Entry {
    fn from(event: Event) -> Self {
        Self::Event(event)
    }
}
