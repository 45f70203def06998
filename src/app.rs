//! Owns what runs. Start is the first reload: both go through [`App::apply`].
//!
//! Fails closed: a configuration that cannot be applied whole leaves the one before in force, and at start the
//! listeners and rules are all in place or the program ends with an error.

mod documents;
mod geoip;
mod hand_over;
pub(crate) mod lists;
mod reach;
mod scene;
mod settings;
mod signals;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use crate::config::limits;
use crate::config::{self, Loaded, Mistakes, Part};
use crate::dns::service::tell;
use crate::firewall::{self, Capture, FORGED, OnFailure, Ruleset, UNRECORDED, uses_names};
use crate::mode::gateway::hand_over::Spare;
use crate::mode::gateway::kernel;
use crate::mode::gateway::{Gateway, Listeners, recheck};
use crate::policy::Direction;
use crate::policy::bindings::Bindings;
use crate::policy::snapshot::Snapshot;
use crate::sys::capture::{self, Watch};
use crate::sys::channel::Door;
use crate::sys::nft::NftSocket;
use crate::sys::readable::readable;
use crate::telemetry::{Queue, Telemetry};

use documents::Watched;
use hand_over::Taken;
use lists::{Fresh, Keeper};
use scene::{Ear, End, Scene, entered};
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
    /// The rules in force.
    rules: Option<Ruleset>,
    watch: Option<Watch>,
    /// The first rules take the place of those of another tidegate that runs.
    takes_over: bool,
    bindings: Arc<Bindings>,
    /// Who judges live flows again.
    rechecks: Option<watch::Sender<Option<Arc<Snapshot>>>>,
    telemetry: Telemetry,
    generation: u64,
}

/// Runs a gateway until it is told to end.
pub fn run(loaded: Loaded, path: &Path, beginning: Beginning, ending: Ending) -> Result<(), Failure> {
    // Before the first thread, for each thread has its own.
    reach::confine(&loaded, path);
    let (queue, writer) = Queue::new(loaded.limits.records);
    let telemetry = Telemetry::new(queue.clone());
    let writing = std::thread::Builder::new()
        .name("records".into())
        .spawn(move || writer.run(io::stdout()))
        .map_err(because("start the writer of records"))?;
    let result = serve(loaded, path, beginning, ending, &telemetry);
    queue.close();
    // A writer that panicked has written what it could.
    let _ = writing.join();
    say_what_happened(&telemetry);
    result
}

fn serve(
    loaded: Loaded,
    path: &Path,
    beginning: Beginning,
    ending: Ending,
    telemetry: &Telemetry,
) -> Result<(), Failure> {
    // Before anything is changed that an end by signal must change back.
    let signals = Signals::listen().map_err(because("listen for signals"))?;
    let mut settings = settings::of(&loaded.limits).map_err(because("read the limit of descriptors"))?;
    let bindings = Arc::new(Bindings::new(settings.bindings.clone()));
    let mut taken = match beginning {
        Beginning::Alone => None,
        Beginning::TakeOver => Taken::ask().map_err(because("take over from the tidegate that runs"))?,
    };
    let listeners = match taken.as_mut().and_then(|taken| taken.listeners.take()) {
        Some(listeners) => listeners,
        None => Listeners::open(settings.workers).map_err(because("open transparent listeners"))?,
    };
    settings.workers = listeners.workers();
    let spare = Spare::of(&listeners).map_err(because("keep the listeners for who takes over"))?;
    let generation = taken.as_ref().map_or(1, |taken| taken.generation);
    let mut app = App {
        snapshot: Arc::new(ArcSwap::from_pointee(loaded.snapshot(generation))),
        capture: Capture {
            udp: Some(listeners.udp),
            dns_udp: Some(listeners.dns.udp),
            dns_tcp: Some(listeners.dns.tcp),
            directions: vec![Direction::Outbound, Direction::Inbound],
            on_failure: match loaded.gateway.on_failure {
                limits::OnFailure::Closed => OnFailure::Closed,
                limits::OnFailure::Open => OnFailure::Open,
            },
            reverse_path: loaded.gateway.reverse_path,
            records_per_second: u32::try_from(loaded.limits.kernel_records).unwrap_or(u32::MAX),
            ..Capture::tcp(listeners.tcp)
        },
        rules: None,
        watch: None,
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
    for warning in capture::warnings(settings.worker.flows) {
        tracing::warn!("{warning}");
    }
    let gateway = Gateway::start(listeners, &settings, bindings, &app.snapshot, telemetry);
    let gateway = gateway.map_err(because("start the workers"))?;
    app.rechecks = Some(gateway.rechecks());
    if let Some(taken) = taken {
        taken.done().map_err(because("take over"))?;
    }
    let door = Door::open(hand_over::NAME);
    let door = door.inspect_err(|error| tracing::warn!(%error, "nobody will be able to take over")).ok();
    eprintln!("ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut scene = Scene { gateway, ear, spare: Some(spare), door };
    let end = app.follow(signals, path, &mut scene)?;
    let Scene { gateway, ear, spare, .. } = scene;
    drop(spare);
    if end == End::HandedOver {
        gateway.stop(ending.drain);
        return Ok(());
    }
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // Live flows need the rules that bring their packets here: they go last.
    gateway.stop(ending.drain);
    app.mend();
    let removed = if ending.keep_rules { Ok(()) } else { capture::remove() };
    drop(ear);
    removed.map_err(because("take the rules away"))
}

impl App {
    /// Puts a checked configuration in force.
    fn apply(&mut self, loaded: Loaded) -> Result<(), Failure> {
        let next = loaded.snapshot(self.generation);
        let ruleset = firewall::render(&next, &self.capture);
        // First who judges, then what is captured: nothing is captured that nobody would judge.
        let before = self.snapshot.swap(Arc::new(next));
        self.generation += 1;
        let done = match &self.rules {
            None if self.takes_over => capture::adopt(&ruleset),
            None => capture::install(&ruleset),
            Some(standing) => capture::update(standing, &ruleset),
        };
        if let Err(error) = done {
            self.snapshot.store(before);
            // Where the old rules stand still, this changes nothing.
            if let Some(Err(error)) = self.rules.as_ref().map(capture::install) {
                tracing::error!(%error, "the rules that were in force could not be put back");
            }
            return Err(because("put the rules in place")(error));
        }
        self.look_after(ruleset);
        self.judge_names_anew();
        self.loaded = loaded;
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

    /// What the kernel holds of names was judged by the policy before, or is gone with the rules before. Until each
    /// is told anew the old verdict stands, or that of the address.
    fn judge_names_anew(&self) {
        let snapshot = self.snapshot.load();
        if !uses_names(&snapshot) {
            return;
        }
        let Ok(mut kernel) = NftSocket::open() else { return self.telemetry.count(|c| &c.names_untold) };
        self.bindings.each(Instant::now(), |client, remote, name, lasts| {
            if tell(&mut kernel, &snapshot, (client, remote), name, lasts).is_err() {
                self.telemetry.count(|c| &c.names_untold);
            }
        });
    }

    fn look_after(&mut self, ruleset: Ruleset) {
        let watch = Watch::begin(&ruleset);
        self.watch = watch.inspect_err(|error| tracing::error!(%error, "the rules are in place, unwatched")).ok();
        self.rules = Some(ruleset);
    }

    /// Puts back what somebody else took out of the kernel or changed there.
    fn mend(&mut self) {
        let (Some(ruleset), Some(watch)) = (&self.rules, &mut self.watch) else { return };
        match watch.is_intact(ruleset) {
            Ok(true) => {
                let unrecorded = watch.take_count(UNRECORDED).unwrap_or_default();
                self.telemetry.add(|c| &c.kernel_unrecorded, unrecorded);
                let forged = watch.take_count(FORGED).unwrap_or_default();
                self.telemetry.add(|c| &c.forged, forged);
                if forged > 0 {
                    tracing::warn!(packets = forged, "dropped: their source is not where they came from");
                }
                return;
            }
            Ok(false) => tracing::error!("somebody has changed our rules or routes"),
            Err(error) => return tracing::error!(%error, "the rules in the kernel cannot be read"),
        }
        self.telemetry.count(|c| &c.rules_restored);
        match capture::install(ruleset) {
            Ok(()) => {
                if let Some(ruleset) = self.rules.take() {
                    self.look_after(ruleset);
                }
                self.judge_names_anew();
                tracing::warn!("rules and routes are put back");
            }
            Err(error) => tracing::error!(%error, "they could not be put back, and will be tried again"),
        }
    }

    /// Reloads at SIGHUP and when the configuration's files change, and takes lists that became others; returns at
    /// SIGTERM or SIGINT, and when another has taken over and nothing lives here any more. An error: a worker has ended,
    /// and what its listeners held is lost. The rules stay and drop what nobody takes.
    fn follow(&mut self, signals: Signals, path: &Path, scene: &mut Scene) -> Result<End, Failure> {
        let Signals { runtime, mut hangup, mut terminate, mut interrupt } = signals;
        let (mut to, mut fresh) = mpsc::channel(1);
        let end = runtime.block_on(async {
            let mut door = scene.door.take().and_then(|door| readable(door.0).ok());
            let mut keeper = Keeper::start(&self.loaded, |_| true, &self.telemetry, &to);
            // Reading may take long, and fetch: an order to end does not wait for it.
            let mut reading = JoinSet::new();
            let mut again = false;
            let mut round = tokio::time::interval(ROUND);
            round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut watched = Watched::new(&self.loaded);
            let end = loop {
                let asked = tokio::select! {
                    _ = round.tick() => match scene.gateway.is_whole() {
                        true => {
                            self.mend();
                            false
                        }
                        false => break Err(because("go on")(io::Error::other("a worker has ended"))),
                    },
                    () = watched.changed() => true,
                    _ = hangup.recv() => true,
                    Some(read) = reading.join_next() => {
                        if self.reload(read) {
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
                    _ = terminate.recv() => break Ok(End::Asked),
                    _ = interrupt.recv() => break Ok(End::Asked),
                };
                match reading.is_empty() {
                    true if asked => read_beside(&mut reading, path),
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

    /// Whether another configuration is in force now.
    fn reload(&mut self, read: Result<Result<Loaded, Mistakes>, JoinError>) -> bool {
        match read {
            Ok(Ok(loaded)) => {
                if let Some(path) = loaded.emptied_since(&self.loaded) {
                    let path = path.display();
                    tracing::error!("the new configuration is not in force: {path} holds no entry any more");
                    return false;
                }
                match self.apply(loaded) {
                    Ok(()) => {
                        tracing::info!(generation = self.generation, "reloaded");
                        return true;
                    }
                    Err(failure) => tracing::error!("the new configuration is not in force: {failure}"),
                }
            }
            Ok(Err(mistakes)) => {
                tracing::error!("the configuration has mistakes and is not in force:\n{mistakes}");
                reach::explain(&mistakes);
            }
            Err(error) => tracing::error!("the configuration could not be read and is not in force: {error}"),
        }
        false
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

/// How often rules and routes are looked after.
const ROUND: Duration = Duration::from_secs(2);
