//! Owns what runs. Start is the first reload: both go through [`App::apply`].
//!
//! Fails closed: a configuration that cannot be applied whole leaves the one before in force, and at start the
//! listeners and rules are all in place or the program ends with an error.

pub(crate) mod lists;
mod rules;
mod sidecar;
mod signals;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use crate::config::limits::Limits;
use crate::config::{self, Loaded, Mistakes};
use crate::dns::service::tell;
use crate::firewall::{Capture, Ruleset, uses_names};
use crate::mode;
use crate::mode::gateway::kernel::Recorder;
use crate::mode::gateway::{self, Gateway, Listeners};
use crate::peek;
use crate::policy::bindings::Bindings;
use crate::policy::snapshot::Snapshot;
use crate::proxy::{proof, relay, udp, worker};
use crate::sys::capture::{self, Watch};
use crate::sys::limits::raise_descriptors;
use crate::sys::nft::NftSocket;
use crate::sys::privilege;
use crate::telemetry::{Queue, Telemetry};

use lists::{Fresh, Keeper};
pub use rules::install_rules;
use rules::{Listening, capture_of, render};
use sidecar::{Probes, Sidecar};
use signals::Signals;

/// How the program ends, from the command line.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    pub drain: Duration,
    pub keep_rules: bool,
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
    /// Once there are workers.
    bindings: Option<Arc<Bindings>>,
    telemetry: Telemetry,
    generation: u64,
}

/// Runs a gateway or a sidecar until it is told to end.
pub fn run(loaded: Loaded, path: &Path, ending: Ending) -> Result<(), Failure> {
    let sidecar = loaded.sidecar.as_ref().map(Sidecar::enter).transpose()?;
    let without_rights = sidecar.is_some();
    let (queue, writer) = Queue::new(loaded.limits.records);
    let telemetry = Telemetry::new(queue.clone());
    let writing = std::thread::Builder::new()
        .name("records".into())
        .spawn(move || {
            if without_rights && let Err(error) = privilege::keep_only(&[]) {
                tracing::error!(%error, "the writer of records keeps its capabilities");
            }
            writer.run(io::stdout())
        })
        .map_err(because("start the writer of records"))?;
    let result = serve(loaded, sidecar, path, ending, &telemetry);
    queue.close();
    // A writer that panicked has written what it could.
    let _ = writing.join();
    say_what_happened(&telemetry);
    result
}

fn serve(
    loaded: Loaded,
    sidecar: Option<Sidecar>,
    path: &Path,
    ending: Ending,
    telemetry: &Telemetry,
) -> Result<(), Failure> {
    // Before anything is changed that an end by signal must change back.
    let signals = Signals::listen().map_err(because("listen for signals"))?;
    let settings = settings(&loaded.limits).map_err(because("read the limit of descriptors"))?;
    let open = if sidecar.is_some() { mode::sidecar::open } else { Listeners::open };
    let listeners = open(settings.workers).map_err(because("open transparent listeners"))?;
    let settings = sidecar.as_ref().map_or(settings.clone(), |sidecar| sidecar.settings.adapt(settings));
    let mut app = App {
        snapshot: Arc::new(ArcSwap::from_pointee(loaded.snapshot(1))),
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
        bindings: None,
        telemetry: telemetry.clone(),
        generation: 1,
        loaded: loaded.clone(),
    };
    let recorder = Recorder::start(&app.snapshot, telemetry).map_err(because("listen to what the kernel judges"))?;
    app.apply(loaded)?;
    match &app.sidecar {
        Some(sidecar) => sidecar.settle()?,
        None => capture::warnings().iter().for_each(|warning| tracing::warn!("{warning}")),
    }
    let judging = app.sidecar.as_ref().map_or(&app.snapshot, |sidecar| &sidecar.judging);
    let gateway = Gateway::start(listeners, &settings, judging, telemetry).map_err(because("start the workers"))?;
    app.bindings = Some(gateway.bindings.clone());
    recorder.knows(gateway.bindings.clone());
    eprintln!("ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    app.follow(signals, path, &gateway)?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // Live flows need the rules that bring their packets here: they go last.
    gateway.stop(ending.drain);
    app.mend();
    let stay = ending.keep_rules || !app.may_change_rules();
    let removed = if stay { Ok(()) } else { capture::remove() };
    drop(recorder);
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
        Ok(())
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
        let Some(bindings) = self.bindings.as_ref().filter(|_| uses_names(&snapshot)) else { return };
        let Ok(mut kernel) = NftSocket::open() else { return self.telemetry.count(|c| &c.names_untold) };
        bindings.each(Instant::now(), |client, remote, name, lasts| {
            if tell(&mut kernel, &snapshot, (client, remote), name, lasts).is_err() {
                self.telemetry.count(|c| &c.names_untold);
            }
        });
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
                let unrecorded = watch.take_unrecorded().unwrap_or_default();
                return self.telemetry.add(|c| &c.kernel_unrecorded, unrecorded);
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
            }
            Err(error) => tracing::error!(%error, "they could not be put back, and will be tried again"),
        }
    }

    /// Reloads at SIGHUP, and takes lists that became others; returns at SIGTERM or SIGINT. An error: a worker has ended,
    /// and what its listeners held is lost. The rules stay and drop what nobody takes.
    fn follow(&mut self, signals: Signals, path: &Path, gateway: &Gateway) -> Result<(), Failure> {
        let Signals { runtime, mut hangup, mut terminate, mut interrupt } = signals;
        let (mut to, mut fresh) = mpsc::channel(1);
        let result = runtime.block_on(async {
            let mut keeper = Keeper::start(&self.loaded.list_sources, &self.telemetry, &to);
            // Reading may take long, and fetch: an order to end does not wait for it.
            let mut reading = JoinSet::new();
            let mut again = false;
            let probes = Probes::open(self.sidecar.is_some());
            let mut round = tokio::time::interval(ROUND);
            round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let result = loop {
                tokio::select! {
                    _ = round.tick() => match gateway.is_whole() {
                        true => self.mend(),
                        false => break Err(because("go on")(io::Error::other("a worker has ended"))),
                    },
                    _ = hangup.recv() => match reading.is_empty() {
                        true => read_beside(&mut reading, path),
                        false => again = true,
                    },
                    Some(read) = reading.join_next() => {
                        if self.reload(read) {
                            // What is still on its way belongs to the configuration before.
                            (to, fresh) = mpsc::channel(1);
                            keeper = Keeper::start(&self.loaded.list_sources, &self.telemetry, &to);
                        }
                        if std::mem::take(&mut again) {
                            read_beside(&mut reading, path);
                        }
                    }
                    Some(fresh) = fresh.recv() => self.take(fresh),
                    Some(asker) = probes.next() => sidecar::answer(&asker, self.intact && gateway.is_whole()),
                    _ = terminate.recv() => break Ok(()),
                    _ = interrupt.recv() => break Ok(()),
                }
            };
            drop(keeper);
            reading.detach_all();
            result
        });
        // Whatever is being read or fetched is not waited for.
        runtime.shutdown_background();
        result
    }

    /// Whether another configuration is in force now.
    fn reload(&mut self, read: Result<Result<Loaded, Mistakes>, JoinError>) -> bool {
        match read {
            Ok(Ok(loaded)) if loaded.sidecar != self.loaded.sidecar => {
                tracing::error!("the new configuration is not in force: [sidecar] takes effect at start");
            }
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
            }
            Err(error) => tracing::error!("the configuration could not be read and is not in force: {error}"),
        }
        false
    }

    /// Puts a list in force in place of the one of its name.
    fn take(&mut self, fresh: Fresh) {
        let Fresh { list, taken } = fresh;
        match self.apply(self.loaded.with_list(&list)) {
            Ok(()) => {
                let (names, ranges) = (list.domains.len(), list.prefixes.len());
                tracing::info!(
                    list = &*list.name,
                    names,
                    ranges,
                    generation = self.generation,
                    "a list is in force anew"
                );
                self.telemetry.count(|counters| &counters.lists_replaced);
                // Whoever asked may have ended meanwhile.
                _ = taken.send(());
            }
            Err(failure) => tracing::error!(list = &*list.name, "the new list is not in force: {failure}"),
        }
    }
}

fn read_beside(reading: &mut JoinSet<Result<Loaded, Mistakes>>, path: &Path) {
    let path = path.to_owned();
    reading.spawn_blocking(move || config::load(&path));
}

fn settings(limits: &Limits) -> io::Result<gateway::Settings> {
    let descriptors = usize::try_from(raise_descriptors()?).unwrap_or(usize::MAX);
    let possible = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_OF_A_FLOW;
    if possible < limits.flows {
        tracing::warn!(flows = possible, "the limit of open descriptors allows fewer flows than limits.flows");
    }
    let workers = match limits.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        number => number,
    };
    Ok(gateway::Settings {
        workers,
        worker: worker::Settings {
            flows: limits.flows.min(possible),
            peek: peek::tcp::Limits { held: limits.held_bytes, fingerprints: true },
            dial_from: worker::DialFrom::Client,
            proof: proof::Settings::new(resolvers()),
        },
        relay: relay::Settings { idle: limits.idle, connect: CONNECT },
        dns: limits.dns.dns.clone(),
        // Each worker has a table for each family.
        udp: udp::Settings { flows: (limits.flows / workers).max(1), ..udp::Settings::default() },
        bindings: limits.dns.bindings.clone(),
        kernel_names: true,
    })
}

/// This host's own resolvers; without the file, none.
fn resolvers() -> Vec<std::net::SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    crate::dns::lookup::resolvers_of_host(&text)
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
/// How long a server may take to answer.
const CONNECT: Duration = Duration::from_secs(15);
/// Its two sockets.
const DESCRIPTORS_OF_A_FLOW: usize = 2;
/// For listeners, netlink, logs, pipes in flight and flows that are being refused.
const RESERVED_DESCRIPTORS: usize = 512;
