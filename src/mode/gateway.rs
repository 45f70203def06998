//! The gateway: flows of other hosts, taken in by TPROXY on loopback listeners, dialled from the client's address.
//!
//! Each worker is a thread with a runtime, listeners and a relay of its own; flows never move between workers.

pub mod dns;
pub mod hand_over;
pub mod kernel;
mod listening;
pub mod recheck;

use std::cell::RefCell;
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet, LocalSet};
use tokio::time::Instant;

use crate::dns::cache::Cache;
use crate::dns::service::Waiter;
use crate::firewall::Listener;
use crate::policy::bindings::{self, Bindings};
use crate::policy::snapshot::Snapshot;
use crate::proxy;
use crate::proxy::relay::{self, ClosedBy, Relay};
use crate::proxy::tcp::refuser;
use crate::proxy::worker::{self, Census, Worker};
use crate::sys::ending::Ender;
use crate::sys::nft::NftSocket;
use crate::sys::udp;
use crate::telemetry::{Gatherer, Telemetry};

#[derive(Clone, Debug)]
pub struct Settings {
    /// Worker threads; at least 1.
    pub workers: usize,
    pub worker: worker::Settings,
    pub relay: relay::Settings,
    pub dns: crate::dns::Settings,
    pub udp: proxy::udp::Settings,
    pub bindings: bindings::Settings,
    /// Whether the kernel is told which flows a name lets pass or blocks, on ports that nobody inspects.
    pub kernel_names: bool,
}

impl Settings {
    pub fn crew(&self) -> Crew {
        Crew { all: self.workers, asked: self.dns.workers }
    }
}

/// How many workers there are.
#[derive(Clone, Copy, Debug)]
pub struct Crew {
    /// At least 1.
    pub all: usize,
    /// Of them, those that take questions over UDP; at least 1.
    pub asked: usize,
}

/// The listeners of every worker, and the ports that the kernel's rules must name.
#[derive(Debug)]
pub struct Listeners {
    pub tcp: Listener,
    pub dns: dns::Listeners,
    pub udp: Listener,
    pub(super) workers: Vec<Sockets>,
}

/// What one worker listens and answers with, but for DNS.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) tcp: Vec<OwnedFd>,
    pub(super) udp: Vec<(UdpSocket, proxy::udp::Way)>,
    pub(super) ender: Ender,
}

/// The running workers.
#[derive(Debug)]
pub struct Gateway {
    threads: Vec<JoinHandle<io::Result<()>>>,
    stop: watch::Sender<Option<Stop>>,
    rechecks: watch::Sender<Option<Arc<Snapshot>>>,
    pub census: Arc<Census>,
    /// Which names DNS gave for which addresses.
    pub bindings: Arc<Bindings>,
}

/// How the workers come to their end.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// Whatever lives then is reset.
    At(Instant),
    /// Once nothing lives any more.
    WhenEmpty,
}

impl Listeners {
    /// The workers that they are for.
    pub fn crew(&self) -> Crew {
        let asked = self.dns.workers.iter().filter(|dns| !dns.udp.is_empty()).count();
        Crew { all: self.workers.len(), asked }
    }

    /// Has UDP flows relayed by sockets of this host instead of forwarded by the kernel.
    pub(super) fn relaying(mut self) -> io::Result<Self> {
        for (_, way) in self.workers.iter_mut().flat_map(|worker| &mut worker.udp) {
            *way = proxy::udp::Way::Relay(udp::Outbox::new(None)?);
        }
        Ok(self)
    }
}

impl Gateway {
    /// Starts one thread for each worker's listeners, and waits until all of them serve.
    pub fn start(
        listeners: Listeners,
        settings: &Settings,
        bindings: Arc<Bindings>,
        snapshot: &Arc<ArcSwap<Snapshot>>,
        telemetry: &Telemetry,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(None);
        let (rechecks, rechecked) = watch::channel(None);
        let census = Arc::new(Census::default());
        let (begins, begun) = mpsc::channel();
        let mut threads = Vec::new();
        let answers = Arc::new(Cache::new(settings.dns.cache.clone()));
        let sockets = listeners.workers.into_iter().zip(listeners.dns.workers);
        for (number, (sockets, dns)) in sockets.enumerate() {
            let seat = Seat {
                sockets,
                dns,
                bindings: bindings.clone(),
                answers: answers.clone(),
                settings: settings.clone(),
                snapshot: snapshot.clone(),
                telemetry: telemetry.clone(),
                census: census.clone(),
                begins: begins.clone(),
                stopped: stopped.clone(),
                rechecks: rechecked.clone(),
            };
            threads.push(std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || seat.work())?);
        }
        drop(begins);
        // A worker that fails before it serves takes its end of the channel with it.
        if begun.iter().count() < threads.len() {
            return Err(io::Error::other("a worker could not begin, as said above"));
        }
        Ok(Self { threads, stop, rechecks, census, bindings })
    }

    /// Where to send a policy that live flows are to be judged again by (SPEC R7).
    pub fn rechecks(&self) -> watch::Sender<Option<Arc<Snapshot>>> {
        self.rechecks.clone()
    }

    /// Takes no more flows, for another process does from now on. Those that live go on until they end.
    pub fn leave(&self) {
        self.stop.send_replace(Some(Stop::WhenEmpty));
    }

    /// Every worker has come to its end.
    pub fn has_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Whether every worker still serves.
    pub fn is_whole(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Takes no more flows, lets the live ones go on for up to `drain`, then resets what is left.
    pub fn stop(self, drain: Duration) {
        self.stop.send_replace(Some(Stop::At(Instant::now() + drain)));
        for thread in self.threads {
            // A worker that failed has said so when it failed.
            let _ = thread.join();
        }
    }
}

/// All that a worker's thread begins with.
struct Seat {
    sockets: Sockets,
    dns: dns::Sockets,
    bindings: Arc<Bindings>,
    answers: Arc<Cache<Waiter>>,
    settings: Settings,
    snapshot: Arc<ArcSwap<Snapshot>>,
    telemetry: Telemetry,
    census: Arc<Census>,
    begins: mpsc::Sender<()>,
    stopped: watch::Receiver<Option<Stop>>,
    rechecks: worker::Rechecks,
}

impl Seat {
    fn work(self) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, self.serve()).inspect_err(|error| {
            tracing::error!(%error, "a worker has ended");
        })
    }

    async fn serve(mut self) -> io::Result<()> {
        let ender = Rc::new(RefCell::new(self.sockets.ender));
        let relay = Relay::new(
            self.settings.relay.clone(),
            self.telemetry.clone(),
            refuser(ender.clone(), self.telemetry.clone()),
        )?;
        let (leave, leaving) = watch::channel(false);
        let kernel = if self.settings.kernel_names { Some(RefCell::new(NftSocket::open()?)) } else { None };
        let dns = Rc::new(crate::dns::Service {
            kernel,
            settings: self.settings.dns.clone(),
            snapshot: self.snapshot.clone(),
            bindings: self.bindings.clone(),
            cache: self.answers,
            telemetry: self.telemetry.clone(),
            gatherer: RefCell::new(Gatherer::new(self.telemetry.clone())),
            ender: ender.clone(),
            leaving: leaving.clone(),
        });
        let worker = Rc::new(Worker::new(
            self.settings.worker.clone(),
            self.snapshot.clone(),
            self.telemetry.clone(),
            relay.clone(),
            self.census.clone(),
            self.bindings,
            ender,
            self.rechecks.clone(),
            leaving,
        ));
        // None of these ends but by a defect or a socket that failed, and then the worker is of no use.
        let (mut accepting, mut datagrams) = (JoinSet::new(), JoinSet::new());
        let mut relaying = tokio::task::spawn_local(relay.clone().run());
        tokio::task::spawn_local(relay.clone().tell(self.census.inquiries.hear()));
        tokio::task::spawn_local(recheck(relay.clone(), self.rechecks));
        for socket in self.sockets.tcp {
            accepting.spawn_local(proxy::tcp::serve(worker.clone(), socket));
        }
        for (socket, way) in self.sockets.udp {
            datagrams.spawn_local(proxy::udp::serve(worker.clone(), socket, self.settings.udp.clone(), way));
        }
        self.dns.serve(&dns, &mut datagrams, &mut accepting)?;
        // Each opens first what it works with.
        tokio::task::yield_now().await;
        // Whoever waits for this may have given up.
        let _ = self.begins.send(());
        drop(self.begins);
        let stop = tokio::select! {
            // Nobody left to say stop is a stop too.
            stop = self.stopped.wait_for(Option::is_some) => stop.ok().and_then(|stop| *stop),
            Some(ended) = accepting.join_next() => return failed(ended),
            Some(ended) = datagrams.join_next() => return failed(ended),
            _ = &mut relaying => return failed(Ok(Ok(()))),
        };
        accepting.abort_all();
        if let Some(Stop::WhenEmpty) = stop {
            leave.send_replace(true);
            // What was asked and what was held has its time.
            tokio::time::sleep(self.settings.dns.patience + LAST_WORDS).await;
        }
        datagrams.abort_all();
        drain(&self.census, &self.stopped).await;
        relay.end_all(ClosedBy::Shutdown);
        Ok(())
    }
}

fn failed(ended: Result<io::Result<()>, JoinError>) -> io::Result<()> {
    ended.unwrap_or_else(|error| Err(error.into())).and(Err(io::Error::other("a part of it has failed")))
}

async fn recheck(relay: Rc<Relay>, mut rechecks: worker::Rechecks) {
    loop {
        let policy = worker::next_policy(&mut rechecks).await;
        relay.recheck(&policy);
    }
}

async fn drain(census: &Census, stop: &watch::Receiver<Option<Stop>>) {
    while census.live() > 0 {
        let left = match *stop.borrow() {
            Some(Stop::WhenEmpty) => DRAIN_LOOK,
            Some(Stop::At(until)) => until.saturating_duration_since(Instant::now()),
            None => Duration::ZERO,
        };
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(DRAIN_LOOK.min(left)).await;
    }
}

fn lacks_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Flows that may wait to be accepted; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 16_384;
/// Beside the patience of a question: longer than a flow is held for its name, as a rule.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often draining looks whether all flows have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(50);
