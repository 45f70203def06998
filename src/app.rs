//! Owns what runs. Start is the first reload: both go through [`App::apply`].
//!
//! Fails closed: a configuration that cannot be applied whole leaves the one before in force, and at start the
//! listeners and rules are all in place or the program ends with an error.

mod documents;
mod geoip;
mod hand_over;
pub(crate) mod lists;
mod notices;
mod orders;
mod outlook;
mod reach;
mod rules;
mod scene;
mod settings;
mod sidecar;
mod signals;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use crate::admin::view::View;
use crate::admin::{self, Admin, Order};
use crate::config::{self, Loaded, Mistakes, Part};
use crate::dns::service::{Told, tell};
use crate::firewall::{Capture, FORGED, Ruleset, UNRECORDED, uses_names};
use crate::mode;
use crate::mode::gateway::hand_over::Spare;
use crate::mode::gateway::kernel;
use crate::mode::gateway::{Gateway, Listeners, recheck};
use crate::policy::bindings::Bindings;
use crate::policy::snapshot::Snapshot;
use crate::sys::capture::{self, Watch};
use crate::sys::channel::Door;
use crate::sys::nft::NftSocket;
use crate::sys::privilege;
use crate::sys::readable::readable;
use crate::telemetry::writers::Writers;
use crate::telemetry::{Happened, Telemetry, messages};

use documents::Watched;
use hand_over::Taken;
use lists::{Fresh, Keeper};
use notices::Notices;
use orders::Asked;
pub use rules::install_rules;
use rules::{Listening, capture_of, render};
use scene::{Ear, End, Scene, entered};
use sidecar::{Probes, Sidecar};
use signals::Signals;

/// How the program ends, from the command line.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    pub drain: Duration,
    pub keep_rules: bool,
}

/// Whether the program begins in the place of another that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    Alone,
    /// Of the one that serves this network namespace, if any does.
    TakeOver,
}

/// What could not be done, and why.
#[derive(Debug)]
pub struct Failure {
    what: &'static str,
    error: io::Error,
}

/// The running program.
#[derive(Debug)]
struct App {
    /// The configuration in force, with the lists that became others since it was read.
    loaded: Loaded,
    snapshot: Arc<ArcSwap<Snapshot>>,
    capture: Capture,
    sidecar: Option<Sidecar>,
    /// The rules in force.
    rules: Option<Ruleset>,
    watch: Option<Watch>,
    /// At the last look.
    intact: bool,
    view: Option<Arc<View>>,
    notices: Notices,
    /// The first rules take the place of those of another tidegate that runs.
    takes_over: bool,
    bindings: Arc<Bindings>,
    /// Who judges live flows again.
    rechecks: Option<watch::Sender<Option<Arc<Snapshot>>>>,
    telemetry: Telemetry,
    generation: u64,
}

/// Runs a gateway or a sidecar until it is told to end.
pub fn run(loaded: Loaded, path: &Path, beginning: Beginning, ending: Ending) -> Result<(), Failure> {
    let sidecar = loaded.sidecar.as_ref().map(Sidecar::enter).transpose()?;
    let without_rights = sidecar.is_some();
    // Before the first thread, for each thread has its own.
    reach::confine(&loaded, path);
    let begin = if without_rights { give_up_rights } else { || () };
    messages::start(begin);
    let writers = Writers::start(&loaded.telemetry.sinks, &loaded.enforcer, begin)
        .map_err(|error| because("write records")(io::Error::other(error)))?;
    let telemetry = Telemetry::with_sinks(writers.queues(), loaded.telemetry.allowed, loaded.enforcer.clone());
    let result = serve(loaded, sidecar, path, (beginning, ending), &telemetry);
    writers.finish(LAST_RECORDS);
    say_what_happened(&telemetry);
    result
}

/// Of the thread that calls.
fn give_up_rights() {
    if let Err(error) = privilege::keep_only(&[]) {
        tracing::error!(%error, "a thread keeps its capabilities");
    }
}

fn serve(
    loaded: Loaded,
    sidecar: Option<Sidecar>,
    path: &Path,
    (beginning, ending): (Beginning, Ending),
    telemetry: &Telemetry,
) -> Result<(), Failure> {
    // Before anything is changed that an end by signal must change back.
    let signals = Signals::listen().map_err(because("listen for signals"))?;
    let mut settings = settings::of(&loaded.limits).map_err(because("read the limit of descriptors"))?;
    let bindings = Arc::new(Bindings::new(settings.bindings.clone()));
    let mut taken = match beginning {
        Beginning::Alone => None,
        // At its door could stand the application.
        Beginning::TakeOver if sidecar.is_some() => {
            let why = io::Error::new(io::ErrorKind::Unsupported, "a sidecar hands nothing over: start it anew");
            return Err(because("take over")(why));
        }
        Beginning::TakeOver => Taken::ask().map_err(because("take over from the tidegate that runs"))?,
    };
    let open = if sidecar.is_some() { mode::sidecar::open } else { Listeners::open };
    let listeners = match taken.as_mut().and_then(|taken| taken.listeners.take()) {
        Some(listeners) => listeners,
        None => open(settings.workers).map_err(because("open transparent listeners"))?,
    };
    settings.workers = listeners.workers();
    if let Some(sidecar) = &sidecar {
        settings = sidecar.settings.adapt(settings);
    }
    let spare = Spare::of(&listeners).map_err(because("keep the listeners for who takes over"))?;
    let generation = taken.as_ref().map_or(1, |taken| taken.generation);
    let mut app = App {
        snapshot: Arc::new(ArcSwap::from_pointee(loaded.snapshot(generation))),
        capture: capture_of(
            &loaded,
            &Listening {
                tcp: listeners.tcp,
                udp: listeners.udp,
                dns_udp: listeners.dns.udp,
                dns_tcp: listeners.dns.tcp,
            },
        ),
        sidecar,
        rules: None,
        watch: None,
        intact: true,
        view: None,
        notices: Notices::default(),
        takes_over: taken.is_some(),
        bindings: bindings.clone(),
        rechecks: None,
        telemetry: telemetry.clone(),
        generation,
        loaded: loaded.clone(),
    };
    let log = match &mut taken {
        None => kernel::listen(),
        Some(taken) => {
            hand_over::remember(&bindings, std::mem::take(&mut taken.bound));
            taken.quieten().and_then(|()| taken.log.take().ok_or_else(|| io::ErrorKind::InvalidData.into()))
        }
    };
    let listened = because("listen to what the kernel judges");
    let ear = log.and_then(|log| Ear::open(log, &app, telemetry)).map_err(listened)?;
    app.apply(loaded)?;
    match &app.sidecar {
        Some(sidecar) => sidecar.settle()?,
        None => capture::warnings(settings.worker.flows).iter().for_each(|warning| tracing::warn!("{warning}")),
    }
    let judging = app.sidecar.as_ref().map_or(&app.snapshot, |sidecar| &sidecar.judging);
    let gateway = Gateway::start(listeners, &settings, bindings, judging, telemetry);
    let gateway = gateway.map_err(because("start the workers"))?;
    app.rechecks = Some(gateway.rechecks());
    if let Some(taken) = taken {
        taken.done().map_err(because("take over"))?;
    }
    // Whoever shares the namespace of a sidecar is whom it watches.
    let door = app.sidecar.is_none().then(|| Door::open(hand_over::NAME)).transpose();
    let door = door.unwrap_or_else(|error| {
        tracing::warn!(%error, "nobody will be able to take over");
        None
    });
    let view = Arc::new(outlook::view(&app, &gateway, &settings, telemetry));
    app.view = Some(view.clone());
    let (to, orders) = mpsc::channel(1);
    let looked_at =
        admin::Settings { metrics: app.loaded.telemetry.metrics, socket: app.loaded.telemetry.socket.clone() };
    let begin = if app.sidecar.is_some() { give_up_rights } else { || () };
    let admin = Admin::start(looked_at, view, to, begin).map_err(because("serve metrics and status"))?;
    telemetry.event(telemetry.happened(Happened::Started).generation(app.snapshot.load().generation));
    messages::say("ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut scene = Scene { gateway, ear, spare: Some(spare), door };
    let end = app.follow(signals, path, orders, &mut scene)?;
    // Who takes over is looked at by the same address and socket.
    drop(admin);
    let Scene { gateway, ear, spare, .. } = scene;
    drop(spare);
    let stopping = telemetry.happened(Happened::Stopping);
    if end == End::HandedOver {
        telemetry.event(stopping.detail("handed over"));
        gateway.stop(ending.drain);
        return Ok(());
    }
    telemetry.event(stopping);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // Live flows need the rules that bring their packets here: they go last.
    gateway.stop(ending.drain);
    app.mend();
    let stay = ending.keep_rules || !app.may_change_rules();
    let removed = if stay { Ok(()) } else { capture::remove() };
    drop(ear);
    removed.map_err(because("take the rules away"))
}

impl App {
    /// Puts a checked configuration in force.
    fn apply(&mut self, loaded: Loaded) -> Result<(), Failure> {
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
    fn recheck(&self, before: &Snapshot) {
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
    fn judge_by(&self, next: Arc<Snapshot>) -> Arc<Snapshot> {
        if let Some(sidecar) = &self.sidecar {
            sidecar.judging.store(Arc::new(mode::sidecar::outbound_alone(&next)));
        }
        self.snapshot.swap(next)
    }

    fn may_change_rules(&self) -> bool {
        self.sidecar.as_ref().is_none_or(|sidecar| sidecar.settings.may_change_rules)
    }

    /// What the kernel holds of names was judged by the policy before, or is gone with the rules before. Until each
    /// is told anew the old verdict stands, or that of the address.
    fn judge_names_anew(&self) {
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

    fn look_after(&mut self, ruleset: Ruleset) {
        if !self.may_change_rules() {
            return self.rules = Some(ruleset);
        }
        let watch = Watch::begin(&ruleset);
        self.watch = watch.inspect_err(|error| tracing::error!(%error, "the rules are in place, unwatched")).ok();
        self.rules = Some(ruleset);
    }

    /// Puts back what somebody else took out of the kernel or changed there.
    fn mend(&mut self) {
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

    /// Reloads at SIGHUP and when the configuration's files change, and takes lists that became others; returns at
    /// SIGTERM or SIGINT, and when another has taken over and nothing lives here any more. An error: a worker has ended,
    /// and what its listeners held is lost. The rules stay and drop what nobody takes.
    fn follow(
        &mut self,
        signals: Signals,
        path: &Path,
        mut orders: mpsc::Receiver<Order>,
        scene: &mut Scene,
    ) -> Result<End, Failure> {
        let Signals { runtime, mut hangup, mut terminate, mut interrupt } = signals;
        let (mut to, mut fresh) = mpsc::channel(1);
        let end = runtime.block_on(async {
            let mut door = scene.door.take().and_then(|door| readable(door.0).ok());
            let mut keeper = Keeper::start(&self.loaded, |_| true, &self.telemetry, &to);
            // Reading may take long, and fetch: an order to end does not wait for it.
            let mut reading = JoinSet::new();
            let mut again = false;
            let probes = Probes::open(self.sidecar.is_some());
            let mut waiting = Asked::default();
            let mut round = tokio::time::interval(ROUND);
            round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut watched = Watched::new(&self.loaded);
            let end = loop {
                let asked = tokio::select! {
                    _ = round.tick() => match scene.gateway.is_whole() {
                        true => {
                            self.mend();
                            self.notices.look(&self.telemetry);
                            false
                        }
                        false => break Err(because("go on")(io::Error::other("a worker has ended"))),
                    },
                    () = watched.changed() => true,
                    _ = hangup.recv() => true,
                    Some(Order::Reload(answer)) = orders.recv() => {
                        waiting.add(answer);
                        true
                    }
                    Some(read) = reading.join_next() => {
                        let outcome = self.reload(read);
                        waiting.answer(&outcome);
                        if outcome.is_ok() {
                            watched = Watched::new(&self.loaded);
                            // What is still on its way belongs to the configuration before.
                            (to, fresh) = mpsc::channel(1);
                            keeper = Keeper::start(&self.loaded, |_| true, &self.telemetry, &to);
                        }
                        std::mem::take(&mut again)
                    }
                    Some(fresh) = fresh.recv() => {
                        self.take(fresh);
                        false
                    }
                    channel = entered(&door) => match self.hand_over(&channel, scene) {
                        Ok(()) => {
                            // The name is free for the new one's own door before it hears that all is done.
                            drop(door.take());
                            // Whether or not it hears of it, it serves.
                            let _ = hand_over::say_done(&channel);
                            break Ok(End::HandedOver);
                        }
                        Err(error) => {
                            tracing::error!(%error, "nobody took over, and this one goes on");
                            false
                        }
                    },
                    Some(asker) = probes.next() => {
                        sidecar::answer(&asker, self.intact && scene.gateway.is_whole());
                        false
                    }
                    _ = terminate.recv() => break Ok(End::Asked),
                    _ = interrupt.recv() => break Ok(End::Asked),
                };
                match reading.is_empty() {
                    true if asked => {
                        waiting.begin();
                        read_beside(&mut reading, path);
                    }
                    _ => again |= asked,
                }
            };
            drop(keeper);
            reading.detach_all();
            if let Ok(End::HandedOver) = end {
                scene.gateway.leave();
                let mut look = tokio::time::interval(Duration::from_millis(100));
                while !scene.gateway.has_ended() {
                    tokio::select! {
                        _ = look.tick() => {}
                        _ = terminate.recv() => break,
                        _ = interrupt.recv() => break,
                    }
                }
            }
            end
        });
        // Whatever is being read or fetched is not waited for.
        runtime.shutdown_background();
        end
    }

    /// The generation in force, or why the one before stays.
    fn reload(&mut self, read: Result<Result<Loaded, Mistakes>, JoinError>) -> Result<u64, String> {
        let outcome = match read {
            Ok(Ok(loaded)) if loaded.sidecar != self.loaded.sidecar => {
                Err("[sidecar] takes effect at start".to_owned())
            }
            Ok(Ok(loaded)) => match loaded.emptied_since(&self.loaded) {
                Some(path) => Err(format!("{} holds no entry any more", path.display())),
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
    fn take(&mut self, fresh: Fresh) {
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

fn read_beside(reading: &mut JoinSet<Result<Loaded, Mistakes>>, path: &Path) {
    let path = path.to_owned();
    reading.spawn_blocking(move || config::load(&path));
}

/// A last line for the operator: what was counted, so that no limit is passed in silence.
fn say_what_happened(telemetry: &Telemetry) {
    let counters: Vec<_> = telemetry.counters().all().into_iter().filter(|(_, count)| *count > 0).collect();
    let counters: Vec<_> = counters.iter().map(|(name, count)| format!("{name}={count}")).collect();
    tracing::info!(records_dropped = telemetry.dropped(), "ended: {}", counters.join(" "));
}

fn because(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure { what, error }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "could not {}: {}", self.what, self.error)
    }
}

impl std::error::Error for Failure {}

/// Names of which the kernel is told in one transaction.
const TOLD_AT_ONCE: usize = 256;
/// How often rules and routes are looked after.
const ROUND: Duration = Duration::from_secs(2);
/// How long sinks may take for what waits at the end.
const LAST_RECORDS: Duration = Duration::from_secs(3);
/// Characters of the reason in the event of a refused reload.
const LONGEST_DETAIL: usize = 2000;
