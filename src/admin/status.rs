//! The shape of `/status`: what a gateway tells of itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::view::View;
use crate::proxy::live::Live;
use crate::sys::process;
use crate::telemetry::record::via_word;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub enforcer: String,
    pub version: String,
    pub pid: u32,
    /// Seconds since start, and since this configuration is in force.
    pub uptime: u64,
    pub in_force_for: u64,
    pub generation: u64,
    pub networks: usize,
    pub resident_bytes: u64,
    pub limits: Vec<Limit>,
    pub sinks: Vec<SinkRow>,
    pub lists: Vec<ListRow>,
    pub verdicts: Vec<VerdictRow>,
    /// What has happened since start; what never has is left out.
    pub counters: BTreeMap<String, u64>,
    /// Those that have moved the most octets.
    pub flows: Vec<FlowRow>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Limit {
    pub what: String,
    pub used: u64,
    pub most: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SinkRow {
    pub sink: String,
    pub waiting: usize,
    pub written: u64,
    pub dropped: u64,
    pub failing: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListRow {
    pub name: String,
    pub verdict: String,
    pub names: u64,
    pub prefixes: u64,
    /// Seconds since it was last known to be what its source has; none for entries in place.
    pub age: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerdictRow {
    pub kind: String,
    pub verdict: String,
    pub reason: String,
    pub count: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FlowRow {
    pub flow: u64,
    pub protocol: String,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub network: Option<String>,
    pub direction: Option<String>,
    #[serde(rename = "type")]
    pub via: Option<String>,
    pub domain: Option<String>,
    pub verdict: String,
    pub bytes_out: u64,
    pub bytes_in: u64,
    /// Seconds.
    pub age: u64,
}

impl View {
    /// With at most so many flows.
    pub async fn status(&self, flows: usize) -> Status {
        let flows = self.census.inquiries.ask(flows).await;
        let (applied, now) = (self.applied.load(), Instant::now());
        let since = |time| SystemTime::now().duration_since(time).unwrap_or_default().as_secs();
        let limits = self.limits().into_iter();
        let verdicts = self.telemetry.tally().judgements().map(|([kind, verdict, reason], count)| VerdictRow {
            kind: kind.to_owned(),
            verdict: verdict.to_owned(),
            reason: reason.to_owned(),
            count,
        });
        let counters = self.telemetry.counters().all().into_iter().filter(|(_, count)| *count > 0);
        Status {
            enforcer: applied.enforcer.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime: self.started.elapsed().as_secs(),
            in_force_for: since(applied.since),
            generation: applied.generation,
            networks: applied.networks,
            resident_bytes: process::facts().resident,
            limits: limits.map(|own| Limit { what: own.what.to_owned(), used: own.used, most: own.most }).collect(),
            sinks: self.sinks(),
            lists: (applied.lists.iter())
                .map(|list| ListRow {
                    name: list.name.to_string(),
                    verdict: list.verdict.to_owned(),
                    names: list.names,
                    prefixes: list.prefixes,
                    age: list.confirmed().map(since),
                })
                .collect(),
            verdicts: verdicts.collect(),
            counters: counters.map(|(name, count)| (name.to_owned(), count)).collect(),
            flows: flows.into_iter().map(|flow| row(flow, now)).collect(),
        }
    }

    fn sinks(&self) -> Vec<SinkRow> {
        let standings = self.telemetry.sinks().into_iter();
        standings
            .map(|own| SinkRow {
                sink: own.sink.to_string(),
                waiting: own.waiting,
                written: own.written,
                dropped: own.dropped,
                failing: own.failing,
            })
            .collect()
    }
}

fn row(flow: Live, now: Instant) -> FlowRow {
    let age: Duration = now.saturating_duration_since(flow.opened);
    FlowRow {
        flow: flow.id,
        protocol: flow.transport.as_str().to_owned(),
        source: flow.client,
        destination: flow.remote,
        network: flow.network.map(|name| name.to_string()),
        direction: flow.direction.map(|direction| direction.as_str().to_owned()),
        via: flow.via.map(|via| via_word(via).to_owned()),
        domain: flow.domain.map(|name| name.to_string()),
        // Only what was allowed lives on.
        verdict: "allow".to_owned(),
        bytes_out: flow.bytes_out,
        bytes_in: flow.bytes_in,
        age: age.as_secs(),
    }
}
