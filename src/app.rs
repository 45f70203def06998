//! Owns what runs. Start is the first reload: both go through [`App::apply`].
//!
//! Fails closed: a configuration that cannot be applied whole leaves the one before in force, and at start the
//! listeners and rules are all in place or the program ends with an error.

mod geoip;
pub(crate) mod lists;
mod notices;
mod orders;
mod outlook;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use crate::admin::view::View;
use crate::admin::{self, Admin, Order};
use crate::config::limits::{self, Limits};
use crate::config::{self, Loaded, Mistakes, Part};
use crate::dns::service::tell;
use crate::firewall::{self, Capture, OnFailure, Ruleset, uses_names};
use crate::mode::gateway::kernel::Recorder;
use crate::mode::gateway::{self, Gateway, Listeners};
use crate::peek;
use crate::policy::Direction;
use crate::policy::bindings::Bindings;
use crate::policy::snapshot::Snapshot;
use crate::proxy::{proof, relay, udp, worker};
use crate::sys::capture::{self, Watch};
use crate::sys::limits::raise_descriptors;
use crate::sys::nft::NftSocket;
use crate::telemetry::writers::Writers;
use crate::telemetry::{Happened, Telemetry, messages};

use lists::{Fresh, Keeper};
use notices::Notices;
use orders::Asked;

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
    /// The rules in force.
    rules: Option<Ruleset>,
    watch: Option<Watch>,
    /// Once there are workers.
    bindings: Option<Arc<Bindings>>,
    view: Option<Arc<View>>,
    notices: Notices,
    telemetry: Telemetry,
    generation: u64,
}

/// Runs a gateway until it is told to end.
pub fn run(loaded: Loaded, path: &Path, ending: Ending) -> Result<(), Failure> {
    messages::start();
    let writers = Writers::start(&loaded.telemetry.sinks, &loaded.enforcer)
        .map_err(|error| because("write records")(io::Error::other(error)))?;
    let telemetry = Telemetry::with_sinks(writers.queues(), loaded.telemetry.allowed, loaded.enforcer.clone());
    let result = serve(loaded, path, ending, &telemetry);
    writers.finish(LAST_RECORDS);
    say_what_happened(&telemetry);
    result
}

fn serve(loaded: Loaded, path: &Path, ending: Ending, telemetry: &Telemetry) -> Result<(), Failure> {
    // Before anything is changed that an end by signal must change back.
    let signals = Signals::listen().map_err(because("listen for signals"))?;
    let settings = settings(&loaded.limits).map_err(because("read the limit of descriptors"))?;
    let listeners = Listeners::open(settings.workers).map_err(because("open transparent listeners"))?;
    let mut app = App {
        snapshot: Arc::new(ArcSwap::from_pointee(loaded.snapshot(1))),
        capture: Capture {
            udp: Some(listeners.udp),
            dns_udp: Some(listeners.dns.udp),
            dns_tcp: Some(listeners.dns.tcp),
            directions: vec![Direction::Outbound, Direction::Inbound],
            on_failure: match loaded.gateway.on_failure {
                limits::OnFailure::Closed => OnFailure::Closed,
                limits::OnFailure::Open => OnFailure::Open,
            },
            records_per_second: u32::try_from(loaded.limits.kernel_records).unwrap_or(u32::MAX),
            ..Capture::tcp(listeners.tcp)
        },
        rules: None,
        watch: None,
        bindings: None,
        view: None,
        notices: Notices::default(),
        telemetry: telemetry.clone(),
        generation: 1,
        loaded: loaded.clone(),
    };
    let recorder = Recorder::start(&app.snapshot, telemetry).map_err(because("listen to what the kernel judges"))?;
    app.apply(loaded)?;
    for warning in capture::warnings() {
        tracing::warn!("{warning}");
    }
    let gateway =
        Gateway::start(listeners, &settings, &app.snapshot, telemetry).map_err(because("start the workers"))?;
    app.bindings = Some(gateway.bindings.clone());
    recorder.knows(gateway.bindings.clone());
    let view = Arc::new(outlook::view(&app, &gateway, &settings, telemetry));
    app.view = Some(view.clone());
    let (to, orders) = mpsc::channel(1);
    let looked_at =
        admin::Settings { metrics: app.loaded.telemetry.metrics, socket: app.loaded.telemetry.socket.clone() };
    let admin = Admin::start(looked_at, view, to).map_err(because("serve metrics and status"))?;
    telemetry.event(telemetry.happened(Happened::Started).generation(app.snapshot.load().generation));
    messages::say("ready");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    app.follow(signals, path, orders, &gateway)?;
    telemetry.event(telemetry.happened(Happened::Stopping));
    drop(admin);
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // Live flows need the rules that bring their packets here: they go last.
    gateway.stop(ending.drain);
    app.mend();
    let removed = if ending.keep_rules { Ok(()) } else { capture::remove() };
    drop(recorder);
    removed.map_err(because("take the rules away"))
}

/// The signals that `run` obeys, kept from the moment this is made.
#[derive(Debug)]
struct Signals {
    runtime: Runtime,
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let hangup = signal(SignalKind::hangup())?;
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        drop(inside);
        Ok(Self { runtime, hangup, terminate, interrupt })
    }
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
        if let Some(view) = &self.view {
            view.applied.store(Arc::new(outlook::applied(&self.loaded, &self.snapshot.load(), self.rules.as_ref())));
        }
        Ok(())
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
        let watch = Watch::begin(&ruleset);
        self.watch = watch.inspect_err(|error| tracing::error!(%error, "the rules are in place, unwatched")).ok();
        self.rules = Some(ruleset);
    }

    /// Puts back what somebody else took out of the kernel or changed there.
    fn mend(&mut self) {
        let (Some(ruleset), Some(watch)) = (&self.rules, &mut self.watch) else { return };
        match watch.is_intact(ruleset) {
            Ok(true) => {
                let unrecorded = watch.take_unrecorded().unwrap_or_default();
                return self.telemetry.add(|c| &c.kernel_unrecorded, unrecorded);
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
                self.telemetry.event(self.telemetry.happened(Happened::RulesRestored));
            }
            Err(error) => {
                tracing::error!(%error, "they could not be put back, and will be tried again");
                self.telemetry.event(self.telemetry.happened(Happened::RulesDamaged).detail(error.to_string()));
            }
        }
    }

    /// Reloads at SIGHUP, and takes lists that became others; returns at SIGTERM or SIGINT. An error: a worker has ended,
    /// and what its listeners held is lost. The rules stay and drop what nobody takes.
    fn follow(
        &mut self,
        signals: Signals,
        path: &Path,
        mut orders: mpsc::Receiver<Order>,
        gateway: &Gateway,
    ) -> Result<(), Failure> {
        let Signals { runtime, mut hangup, mut terminate, mut interrupt } = signals;
        let (mut to, mut fresh) = mpsc::channel(1);
        let result = runtime.block_on(async {
            let mut keeper = Keeper::start(&self.loaded, &self.telemetry, &to);
            // Reading may take long, and fetch: an order to end does not wait for it.
            let mut reading = JoinSet::new();
            let mut again = false;
            let mut waiting = Asked::default();
            let mut round = tokio::time::interval(ROUND);
            round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let result = loop {
                tokio::select! {
                    _ = round.tick() => match gateway.is_whole() {
                        true => {
                            self.mend();
                            self.notices.look(&self.telemetry);
                        }
                        false => break Err(because("go on")(io::Error::other("a worker has ended"))),
                    },
                    _ = hangup.recv() => match reading.is_empty() {
                        true => read_beside(&mut reading, path),
                        false => again = true,
                    },
                    Some(Order::Reload(answer)) = orders.recv() => {
                        waiting.add(answer);
                        match reading.is_empty() {
                            true => {
                                waiting.begin();
                                read_beside(&mut reading, path);
                            }
                            false => again = true,
                        }
                    }
                    Some(read) = reading.join_next() => {
                        let outcome = self.reload(read);
                        waiting.answer(&outcome);
                        if outcome.is_ok() {
                            // What is still on its way belongs to the configuration before.
                            (to, fresh) = mpsc::channel(1);
                            keeper = Keeper::start(&self.loaded, &self.telemetry, &to);
                        }
                        if std::mem::take(&mut again) {
                            waiting.begin();
                            read_beside(&mut reading, path);
                        }
                    }
                    Some(fresh) = fresh.recv() => self.take(fresh),
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

    /// The generation in force, or why the one before stays.
    fn reload(&mut self, read: Result<Result<Loaded, Mistakes>, JoinError>) -> Result<u64, String> {
        let outcome = match read {
            Ok(Ok(loaded)) => match loaded.emptied_since(&self.loaded) {
                Some(path) => Err(format!("{} holds no entry any more", path.display())),
                None => self.apply(loaded).map_err(|failure| failure.to_string()),
            },
            Ok(Err(mistakes)) => Err(format!("the configuration has mistakes:\n{mistakes}")),
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
/// How long sinks may take for what waits at the end.
const LAST_RECORDS: Duration = Duration::from_secs(3);
/// Characters of the reason in the event of a refused reload.
const LONGEST_DETAIL: usize = 2000;
/// How long a server may take to answer.
const CONNECT: Duration = Duration::from_secs(15);
/// Its two sockets.
const DESCRIPTORS_OF_A_FLOW: usize = 2;
/// For listeners, netlink, logs, pipes in flight and flows that are being refused.
const RESERVED_DESCRIPTORS: usize = 512;
