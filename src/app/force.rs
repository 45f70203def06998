//! What is in force: the configuration, the rules in the kernel, and what was told to them; changed as a whole or not at all.

use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinError;

use super::clock::Clock;
use super::lists::Fresh;
use super::rules::render;
use super::{App, Failure, because, outlook, reach};
use crate::config::{Loaded, Mistakes, Part};
use crate::dns::service::{Told, tell};
use crate::firewall::{FORGED, Ruleset, UNRECORDED, uses_names};
use crate::mode;
use crate::mode::gateway::recheck;
use crate::policy::snapshot::Snapshot;
use crate::sys::capture::{self, Watch};
use crate::sys::nft::NftSocket;
use crate::telemetry::Happened;

impl App {
    /// Puts a checked configuration in force.
    pub(super) fn apply(&mut self, loaded: Loaded) -> Result<(), Failure> {
        let next = loaded.snapshot(self.generation);
        let ruleset = render(&next, &self.capture, self.sidecar.as_ref());
        // First who judges, then what is captured: nothing is captured that nobody would judge.
        let before = self.judge_by(Arc::new(next));
        self.generation += 1;
        let done = match &self.rules {
            None if self.takes_over => capture::adopt(&ruleset),
            None => capture::install(&ruleset),
            Some(standing) => capture::update(standing, &ruleset),
        };
        if let Err(error) = done {
            self.judge_by(before);
            // Where the old rules stand still, this changes nothing.
            if let Some(Err(error)) = self.rules.as_ref().map(capture::install) {
                tracing::error!(%error, "the rules that were in force could not be put back");
            }
            return Err(because("put the rules in place")(error));
        }
        self.look_after(ruleset);
        self.judge_names_anew();
        self.loaded = loaded;
        if let Some(view) = &self.view {
            view.applied.store(Arc::new(outlook::applied(&self.loaded, &self.snapshot.load(), self.rules.as_ref())));
        }
        if self.loaded.gateway.recheck {
            self.recheck(&before);
        }
        Ok(())
    }

    /// Ends live flows that the configuration in force forbids: those that are served here, and those that the kernel
    /// judged.
    pub(super) fn recheck(&self, before: &Snapshot) {
        let Some(rechecks) = &self.rechecks else { return };
        let next = self.snapshot.load_full();
        rechecks.send_replace(Some(next.clone()));
        match recheck::end_forbidden(before, &next, &self.bindings, &self.telemetry) {
            Ok(0) => {}
            Ok(flows) => tracing::info!(flows, "the kernel has ended flows that are forbidden now"),
            Err(error) => tracing::error!(%error, "flows that the kernel let in are not judged again"),
        }
    }

    /// Returns what judged before.
    pub(super) fn judge_by(&self, next: Arc<Snapshot>) -> Arc<Snapshot> {
        if let Some(sidecar) = &self.sidecar {
            sidecar.judging.store(Arc::new(mode::sidecar::outbound_alone(&next)));
        }
        self.snapshot.swap(next)
    }

    pub(super) fn may_change_rules(&self) -> bool {
        self.sidecar.as_ref().is_none_or(|sidecar| sidecar.settings.may_change_rules)
    }

    /// What the kernel holds of names was judged by the policy before, or is gone with the rules before. Until each
    /// is told anew the old verdict stands, or that of the address.
    pub(super) fn judge_names_anew(&self) {
        let snapshot = self.snapshot.load();
        if !uses_names(&snapshot) {
            return;
        }
        let Ok(mut kernel) = NftSocket::open() else { return self.telemetry.count(|c| &c.names_untold) };
        let mut told = Vec::new();
        let mut tell_all = |told: &mut Vec<Told>| {
            if tell(&mut kernel, &snapshot, told).is_err() {
                self.telemetry.add(|c| &c.names_untold, told.len() as u64);
            }
            told.clear();
        };
        self.bindings.each(Instant::now(), |client, remote, name, lasts| {
            told.push(Told { client, remote, name: Some(name.clone()), lasts });
            if told.len() >= TOLD_AT_ONCE {
                tell_all(&mut told);
            }
        });
        tell_all(&mut told);
    }

    pub(super) fn look_after(&mut self, ruleset: Ruleset) {
        if !self.may_change_rules() {
            return self.rules = Some(ruleset);
        }
        let watch = Watch::begin(&ruleset);
        self.watch = watch.inspect_err(|error| tracing::error!(%error, "the rules are in place, unwatched")).ok();
        self.rules = Some(ruleset);
    }

    /// Tells the kernel anew of entries that end, where its time is not ours any more.
    pub(super) fn keep_time(&mut self) {
        let now = Clock::now();
        let Some(ruleset) = self.rules.as_ref().filter(|_| self.may_change_rules()) else { return };
        if !now.was_set_since(self.told) {
            return;
        }
        match capture::renew(ruleset, now.wall()) {
            Ok(()) => {
                self.told = now;
                // They were told with the ends of entries too.
                self.judge_names_anew();
                tracing::info!("the clock was set: entries of lists end by the new time");
            }
            Err(error) => tracing::error!(%error, "the clock was set, and the kernel cannot be told when entries end"),
        }
    }

    /// Puts back what somebody else took out of the kernel or changed there.
    pub(super) fn mend(&mut self) {
        let (Some(ruleset), Some(watch)) = (&self.rules, &mut self.watch) else { return };
        match watch.is_intact(ruleset) {
            Ok(true) => {
                self.intact = true;
                let unrecorded = watch.take_count(UNRECORDED).unwrap_or_default();
                self.telemetry.add(|c| &c.kernel_unrecorded, unrecorded);
                let forged = watch.take_count(FORGED).unwrap_or_default();
                self.telemetry.add(|c| &c.forged, forged);
                if forged > 0 {
                    tracing::warn!(packets = forged, "dropped: made-up sources, or fragments within fragments");
                }
                return;
            }
            Ok(false) => tracing::error!("somebody has changed our rules or routes"),
            Err(error) => {
                self.intact = false;
                return tracing::error!(%error, "the rules in the kernel cannot be read");
            }
        }
        self.intact = false;
        self.telemetry.count(|c| &c.rules_restored);
        match capture::install(ruleset) {
            Ok(()) => {
                if let Some(ruleset) = self.rules.take() {
                    self.look_after(ruleset);
                }
                self.judge_names_anew();
                self.intact = true;
                tracing::warn!("rules and routes are put back");
                self.telemetry.event(self.telemetry.happened(Happened::RulesRestored));
            }
            Err(error) => {
                tracing::error!(%error, "they could not be put back, and will be tried again");
                self.telemetry.event(self.telemetry.happened(Happened::RulesDamaged).detail(error.to_string()));
            }
        }
    }

    /// The generation in force, or why the one before stays.
    pub(super) fn reload(&mut self, read: Result<Result<Loaded, Mistakes>, JoinError>) -> Result<u64, String> {
        let reloading = sd_notify::NotifyState::monotonic_usec_now();
        let _ = reloading.and_then(|since| sd_notify::notify(&[sd_notify::NotifyState::Reloading, since]));
        let outcome = self.take_up(read);
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        outcome
    }

    fn take_up(&mut self, read: Result<Result<Loaded, Mistakes>, JoinError>) -> Result<u64, String> {
        let outcome = match read {
            Ok(Ok(loaded)) if loaded.sidecar != self.loaded.sidecar => {
                Err("[sidecar] takes effect at start".to_owned())
            }
            Ok(Ok(loaded)) => match loaded.lacks(&self.loaded) {
                Some(why) => Err(why),
                None => self.apply(loaded).map_err(|failure| failure.to_string()),
            },
            Ok(Err(mistakes)) => {
                let advice = reach::explain(&mistakes).unwrap_or_default();
                Err(format!("the configuration has mistakes:\n{mistakes}{advice}"))
            }
            Err(error) => Err(format!("the configuration could not be read: {error}")),
        };
        match outcome {
            Ok(()) => {
                let generation = self.snapshot.load().generation;
                tracing::info!(generation, "reloaded");
                self.telemetry.count(|c| &c.reloads);
                self.telemetry.event(self.telemetry.happened(Happened::Reloaded).generation(generation));
                Ok(generation)
            }
            Err(why) => {
                tracing::error!("the new configuration is not in force: {why}");
                self.telemetry.count(|c| &c.reloads_refused);
                let detail: String = why.chars().take(LONGEST_DETAIL).collect();
                self.telemetry.event(self.telemetry.happened(Happened::ReloadRefused).detail(detail));
                Err(why)
            }
        }
    }

    /// Puts a list or a database in force in place of the one before.
    pub(super) fn take(&mut self, fresh: Fresh) {
        let Fresh { part, taken } = fresh;
        match self.apply(self.loaded.with(&part)) {
            Ok(()) => {
                let generation = self.generation;
                match &part {
                    Part::List(list) => {
                        let (names, ranges) = (list.domains.len(), list.prefixes.len());
                        tracing::info!(list = &*list.name, names, ranges, generation, "a list is in force anew");
                    }
                    Part::Database(own) => {
                        let (of, ranges) = (own.kind().word(), own.len());
                        tracing::info!(of, ranges, generation, "a database is in force anew");
                    }
                }
                self.telemetry.count(|counters| &counters.lists_replaced);
                let event = self.telemetry.happened(Happened::ListReplaced).generation(self.snapshot.load().generation);
                self.telemetry.event(match &part {
                    Part::List(list) => event.list(list.name.clone()),
                    Part::Database(_) => event.detail(part.to_string()),
                });
                // Whoever asked may have ended meanwhile.
                _ = taken.send(());
            }
            Err(failure) => tracing::error!("what is new of {part} is not in force: {failure}"),
        }
    }
}

/// Names of which the kernel is told in one transaction.
const TOLD_AT_ONCE: usize = 256;
/// Characters of the reason in the event of a refused reload.
const LONGEST_DETAIL: usize = 2000;
