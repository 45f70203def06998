//! What was judged and found, counted by kind, verdict and reason. A few atomics: this is on the way of every flow.

use std::sync::atomic::{AtomicU64, Ordering};

use super::record::{Kind, Record};
use crate::peek::{Discovery, Outcome, Via};
use crate::policy::Reason;

/// Judgements by kind, verdict and reason; peeks by protocol and outcome.
#[derive(Debug)]
pub struct Tally {
    judgements: Vec<AtomicU64>,
    peeks: [[AtomicU64; OUTCOMES.len()]; PROTOCOLS.len()],
}

/// Labels, and how often.
pub type Row<const N: usize> = ([&'static str; N], u64);

impl Default for Tally {
    fn default() -> Self {
        let rows = KINDS.len() * VERDICTS.len() * Reason::ALL.len();
        Self { judgements: (0..rows).map(|_| AtomicU64::new(0)).collect(), peeks: Default::default() }
    }
}

impl Tally {
    /// Counts a record, if it tells of a judgement.
    pub(super) fn judged(&self, record: &Record) {
        if let Some(place) = Self::place_of(record) {
            self.add(place, 1);
        }
    }

    pub(super) fn add(&self, place: usize, number: u64) {
        if let Some(count) = self.judgements.get(place) {
            count.fetch_add(number, Ordering::Relaxed);
        }
    }

    /// Where a record is counted, if it tells of a judgement.
    pub(super) fn place_of(record: &Record) -> Option<usize> {
        let kind = KINDS.iter().position(|kind| *kind == record.kind)?;
        let reason = record.reason.and_then(|word| Reason::ALL.iter().position(|own| own.as_str() == word))?;
        let verdict = match (record.verdict, record.action) {
            (Some("allow"), _) if record.reason == Some(Reason::DomainInspect.as_str()) => HELD,
            (Some("allow"), _) => ALLOW,
            (_, Some("monitor")) => MONITORED,
            _ => BLOCK,
        };
        Some((kind * VERDICTS.len() + verdict) * Reason::ALL.len() + reason)
    }

    /// Counts what the beginning of a flow told.
    pub fn peeked(&self, discovery: &Discovery) {
        let protocol = match discovery.via {
            Some(Via::Tls) => 0,
            Some(Via::Http) => 1,
            Some(Via::Quic) => 2,
            Some(Via::Dns) | None => 3,
        };
        let outcome = match discovery.outcome {
            Outcome::Name(_) => 0,
            Outcome::NoName => 1,
            Outcome::Unreadable(_) => 2,
        };
        if let Some(count) = self.peeks.get(protocol).and_then(|row| row.get(outcome)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Kind, verdict and reason of what was judged so far.
    pub fn judgements(&self) -> impl Iterator<Item = Row<3>> {
        let count = |place: usize| self.judgements.get(place).map_or(0, |count| count.load(Ordering::Relaxed));
        let labels = KINDS.iter().flat_map(|kind| {
            VERDICTS.iter().flat_map(move |verdict| {
                Reason::ALL.iter().map(move |reason| [kind.as_str(), verdict, reason.as_str()])
            })
        });
        labels.enumerate().map(move |(place, labels)| (labels, count(place))).filter(|(_, count)| *count > 0)
    }

    /// Protocol and outcome of every peek so far.
    pub fn peeks(&self) -> impl Iterator<Item = Row<2>> {
        PROTOCOLS.iter().zip(&self.peeks).flat_map(|(protocol, row)| {
            OUTCOMES.iter().zip(row).map(|(outcome, count)| ([*protocol, *outcome], count.load(Ordering::Relaxed)))
        })
    }
}

const KINDS: [Kind; 3] = [Kind::Ip, Kind::Domain, Kind::Dns];
const VERDICTS: [&str; 4] = ["allow", "held", "block", "monitored"];
const ALLOW: usize = 0;
const HELD: usize = 1;
const BLOCK: usize = 2;
const MONITORED: usize = 3;
const PROTOCOLS: [&str; 4] = ["tls", "http", "quic", "none"];
const OUTCOMES: [&str; 3] = ["name", "no-name", "unreadable"];
