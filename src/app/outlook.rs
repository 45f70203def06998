//! What is told to those who look at the gateway.

use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;

use super::App;
use crate::admin::view::{Applied, ListFacts, Most, View};
use crate::config::Loaded;
use crate::firewall::Ruleset;
use crate::list::ListVerdict;
use crate::mode::gateway::{Gateway, Settings};
use crate::policy::snapshot::Snapshot;
use crate::telemetry::Telemetry;

/// A view of a gateway that has just begun.
pub(super) fn view(app: &App, gateway: &Gateway, settings: &Settings, telemetry: &Telemetry) -> View {
    View {
        telemetry: telemetry.clone(),
        census: gateway.census.clone(),
        bindings: gateway.bindings.clone(),
        applied: ArcSwap::from_pointee(applied(&app.loaded, &app.snapshot.load(), app.rules.as_ref())),
        started: Instant::now(),
        most: Most {
            flows: settings.worker.flows,
            bindings: settings.bindings.pairs,
            questions: settings.dns.in_flight * settings.dns.workers,
            held_of_tcp: settings.worker.held,
            held_octets: settings.udp.held * settings.workers * FAMILIES,
        },
    }
}

/// Each worker has a table of UDP flows for each.
const FAMILIES: usize = 2;

pub(super) fn applied(loaded: &Loaded, snapshot: &Snapshot, rules: Option<&Ruleset>) -> Applied {
    let lists = loaded.lists.iter().map(|list| {
        let source = loaded.list_sources.iter().find(|source| source.list == list.name);
        ListFacts {
            name: list.name.clone(),
            verdict: match list.verdict {
                ListVerdict::Allow => "allow",
                ListVerdict::Block => "block",
                ListVerdict::Threat { .. } => "threat",
            },
            names: list.domains.len(),
            prefixes: list.prefixes.len() as u64,
            copy: source.and_then(|source| source.remote.as_ref()).map(|remote| remote.copy.clone()),
            file: source.and_then(|source| source.file.clone()),
        }
    });
    let sets = rules.into_iter().flat_map(|rules| {
        let own = rules.sets.iter().filter(|set| !set.kind.comes_and_goes());
        let own = own.map(|set| (set.name.clone(), set.elements.len()));
        own.chain(rules.lists.iter().map(|list| list.describe()).map(|(name, prefixes)| (name.to_owned(), prefixes)))
    });
    Applied {
        enforcer: snapshot.enforcer.clone(),
        generation: snapshot.generation,
        since: SystemTime::now(),
        networks: snapshot.networks().len(),
        lists: lists.collect(),
        kernel_sets: sets.collect(),
    }
}
