//! Keeps the lists in force as new as their sources, on threads of their own: no flow waits.
//!
//! What is fetched goes to its copy on disk. Files and copies are looked at every second; a list of which one is another
//! than before is read anew, and handed on whole.
//!
//! Fails safe: what is no list, or is suddenly a tenth of what it was, changes nothing, and is said and counted (SPEC
//! V4). A reload takes a file as it is: whoever asks for one has looked.

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinSet, spawn_blocking};

use super::geoip;
use crate::config::source::{Remote, State};
use crate::config::{ListSource, Loaded, Part};
use crate::list::List;
use crate::list::file::Stamp;
use crate::list::reader::{Options, Refused};
use crate::list::refresh::{self, Decision, Good, Why};
use crate::policy::snapshot::Snapshot;
use crate::sys::list_store;
use crate::telemetry::{Event, Happened, Telemetry};

/// A list or a database with new contents.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) part: Part,
    /// To be told once it is in force.
    pub(crate) taken: oneshot::Sender<()>,
}

/// The work for one configuration. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Keeper {
    _tasks: JoinSet<()>,
}

impl Keeper {
    /// Must be called within a runtime. `is_taken`: a file of which a new state goes in force. The others are as they were read.
    pub(crate) fn start(
        loaded: &Loaded,
        is_taken: impl Fn(&Path) -> bool,
        telemetry: &Telemetry,
        to: &mpsc::Sender<Fresh>,
    ) -> Self {
        let sources = &loaded.list_sources;
        let mut tasks = JoinSet::new();
        let permits = Arc::new(Semaphore::new(FETCHES_AT_ONCE));
        // Two lists may be one copy in two roles.
        let mut copies = HashSet::new();
        for source in sources {
            if let Some(remote) = source.remote.as_ref().filter(|remote| copies.insert(&remote.copy.path)) {
                tasks.spawn(fetch(source.clone(), remote.clone(), telemetry.clone(), permits.clone()));
            }
        }
        let is_watched = |source: &&ListSource| source.paths().next().is_some() && source.paths().all(&is_taken);
        let watched: Vec<_> = sources.iter().filter(is_watched).collect();
        if !watched.is_empty() {
            let watched = watched.into_iter().cloned().map(Watched::new).collect();
            tasks.spawn(watch(watched, telemetry.clone(), to.clone()));
        }
        let databases: Vec<_> = loaded.geoip.iter().filter(|source| is_taken(&source.path)).cloned().collect();
        if !databases.is_empty() {
            tasks.spawn(geoip::watch(databases, telemetry.clone(), to.clone()));
        }
        Self { _tasks: tasks }
    }
}

/// The same on a thread of its own, for as long as the program runs: new lists go straight to who judges.
pub(crate) fn keep(
    loaded: Loaded,
    is_taken: impl Fn(&Path) -> bool + Send + 'static,
    snapshot: Arc<ArcSwap<Snapshot>>,
    telemetry: Telemetry,
) -> io::Result<()> {
    if loaded.geoip.is_empty() && loaded.list_sources.iter().all(|source| source.paths().next().is_none()) {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let work = async move {
        let (to, mut fresh) = mpsc::channel::<Fresh>(1);
        let _keeper = Keeper::start(&loaded, is_taken, &telemetry, &to);
        let mut loaded = loaded;
        while let Some(Fresh { part, taken }) = fresh.recv().await {
            loaded = loaded.with(&part);
            snapshot.store(Arc::new(loaded.snapshot(snapshot.load().generation + 1)));
            telemetry.count(|counters| &counters.lists_replaced);
            // Whoever asked may have ended meanwhile.
            _ = taken.send(());
        }
    };
    std::thread::Builder::new().name("lists".into()).spawn(move || runtime.block_on(work)).map(drop)
}

/// Fetches one list whenever its time has come.
async fn fetch(source: ListSource, remote: Remote, telemetry: Telemetry, permits: Arc<Semaphore>) {
    let mut failures = 0;
    let mut wait = first_wait(&remote, SystemTime::now());
    loop {
        tokio::time::sleep(wait).await;
        let Ok(permit) = permits.acquire().await else { return };
        let (list, own, options) = (source.list.clone(), remote.clone(), source.options);
        let outcome = spawn_blocking(move || fetch_once(&list, &own, &options)).await;
        drop(permit);
        failures = match outcome {
            Ok(Ok(Some(good))) => {
                tracing::info!(list = &*source.list, entries = good.entries, "fetched");
                0
            }
            Ok(Ok(None)) => {
                tracing::debug!(list = &*source.list, "nothing new to fetch");
                0
            }
            Ok(Err(why)) => {
                tracing::warn!(list = &*source.list, "not fetched, the last good copy stays: {why}");
                telemetry.count(|counters| &counters.fetches_failed);
                telemetry.event(refused(&telemetry, &source.list, &why.to_string()));
                failures + 1
            }
            // The program ends.
            Err(_) => return,
        };
        wait = refresh::wait(remote.refresh, failures, random());
    }
}

/// `None`: there is nothing new.
fn fetch_once(list: &str, remote: &Remote, options: &Options) -> Result<Option<Good>, Why> {
    let mut said = Instant::now();
    let mut watch = |octets: u64, of: Option<u64>| {
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            tracing::info!(list, octets, of, "fetching");
        }
    };
    match remote.copy.refresh(&remote.origin, options, &remote.limits, SystemTime::now(), &mut watch) {
        Ok(good) => Ok(Some(good)),
        Err(Why::NotModified) => Ok(None),
        Err(why) => Err(why),
    }
}

/// None of it if the copy is old or nothing is known of it.
fn first_wait(remote: &Remote, now: SystemTime) -> Duration {
    let wait = refresh::wait(remote.refresh, 0, random());
    let age = remote.copy.checked().map(|checked| now.duration_since(checked).unwrap_or_default());
    age.map_or(Duration::ZERO, |age| wait.saturating_sub(age))
}

/// Looks at the files of every list, and hands on each list that became another.
async fn watch(mut watched: Vec<Watched>, telemetry: Telemetry, to: mpsc::Sender<Fresh>) {
    loop {
        let Some((back, news)) = next_look(watched, Watched::look).await else { return };
        watched = back;
        for (own, news) in watched.iter_mut().zip(news) {
            match news {
                News::None => {}
                News::Refused(why) => {
                    tracing::warn!(list = &*own.source.list, "what is new is not taken: {why}");
                    telemetry.count(|counters| &counters.lists_refused);
                    telemetry.event(refused(&telemetry, &own.source.list, &why));
                }
                News::List(list, states) => {
                    for (state, skipped) in states.iter().filter_map(|state| Some((state, state.skipped.as_ref()?))) {
                        tracing::warn!(list = &*list.name, file = %state.path.display(), "{skipped}");
                    }
                    let (taken, answer) = oneshot::channel();
                    if to.send(Fresh { part: Part::List(list), taken }).await.is_err() {
                        return;
                    }
                    match answer.await {
                        Ok(()) => own.source.states = states,
                        Err(_) => own.again = Some(Instant::now() + RETRY),
                    }
                }
            }
        }
    }
}

/// Looks at all that is watched once its time has come, where reading may take long. `None`: the program ends.
pub(super) async fn next_look<W: Send + 'static, N: Send + 'static>(
    mut watched: Vec<W>,
    look: fn(&mut W, Instant) -> N,
) -> Option<(Vec<W>, Vec<N>)> {
    tokio::time::sleep(LOOK).await;
    let looked = spawn_blocking(move || {
        let news = watched.iter_mut().map(|own| look(own, Instant::now())).collect();
        (watched, news)
    });
    looked.await.ok()
}

/// A list with what was last seen of its files.
struct Watched {
    source: ListSource,
    /// `None`: a file was not there.
    seen: Vec<Option<Stamp>>,
    /// The states that were read last.
    judged: Vec<Option<Stamp>>,
    /// What was judged is to be read again, for it may not be to blame.
    again: Option<Instant>,
}

enum News {
    None,
    List(Arc<List>, Vec<State>),
    Refused(String),
}

impl Watched {
    fn new(source: ListSource) -> Self {
        let judged = source.states.iter().map(|state| Some(state.stamp)).collect();
        Self { source, seen: Vec::new(), judged, again: None }
    }

    fn look(&mut self, now: Instant) -> News {
        let states = self.source.paths().map(|path| list_store::state_of(path, &self.source.options).ok());
        let states: Vec<_> = states.collect();
        // What is being written is not read before it rests.
        let rests = states == self.seen;
        self.seen = states;
        let is_due = self.seen != self.judged || self.again.is_some_and(|again| again <= now);
        if !rests || !is_due {
            return News::None;
        }
        self.judged.clone_from(&self.seen);
        self.again = None;
        if self.is_in_force() {
            return News::None;
        }
        match self.source.read() {
            Ok((list, states)) => self.compare(list, states),
            Err(why) => {
                self.again = matches!(why, Refused::Io(_)).then(|| now + RETRY);
                News::Refused(why.to_string())
            }
        }
    }

    /// Whether the files are back to what they were.
    fn is_in_force(&self) -> bool {
        self.source.states.iter().map(|state| Some(state.stamp)).eq(self.seen.iter().copied())
    }

    /// A copy was compared with the one before when it was fetched.
    fn compare(&self, list: List, states: Vec<State>) -> News {
        let file = self.source.file.as_ref();
        for (old, new) in self.source.states.iter().zip(&states).filter(|(old, _)| Some(&old.path) == file) {
            if let Decision::Keep(why) = refresh::compare(Some(&old.good), new.good) {
                return News::Refused(format!("{}: {why}; a reload takes it all the same", new.path.display()));
            }
        }
        News::List(Arc::new(list), states)
    }
}

fn refused(telemetry: &Telemetry, list: &Arc<str>, why: &str) -> Event {
    telemetry.happened(Happened::ListRefused).list(list.clone()).detail(why)
}

/// 0 to 255.
fn random() -> u8 {
    let mut octet = [0];
    // Without randomness the fleet asks at once, which harms nobody here.
    _ = SystemRandom::new().fill(&mut octet);
    octet[0]
}

/// How often files are looked at. A change counts when it has rested for so long.
const LOOK: Duration = Duration::from_secs(1);
/// After a file that could not be read, or a list that could not be put in force.
pub(super) const RETRY: Duration = Duration::from_secs(60);
/// The others wait.
const FETCHES_AT_ONCE: usize = 4;
/// How often a long fetch says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(folder: &Path, text: &str) -> Watched {
        std::fs::write(folder.join("list.txt"), text).unwrap();
        let file = folder.join("list.txt");
        let text = format!(
            "name = \"e\"\n[[list]]\nname = \"l\"\nverdict = \"block\"\nentries = [\"own.example\"]\nfile = \"{}\"\n",
            file.display()
        );
        let loaded = crate::config::load_text("t", text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        Watched::new(loaded.list_sources.into_iter().next().unwrap())
    }

    /// What the second of two looks shows, for the first sees that a change has not rested.
    fn news(own: &mut Watched, now: Instant) -> News {
        assert!(matches!(own.look(now), News::None));
        own.look(now)
    }

    #[test]
    fn a_change_is_read_once_it_rests_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let (now, file) = (Instant::now(), folder.path().join("list.txt"));
        let mut own = watched(folder.path(), "a.example\n");
        assert!(matches!(news(&mut own, now), News::None));
        for text in ["a.example\nb.example\n", "a.example\nb.example\nc.example\n"] {
            std::fs::write(&file, text).unwrap();
            assert!(matches!(own.look(now), News::None), "it may still be written to");
        }
        let News::List(list, states) = own.look(now) else { panic!("no list") };
        own.source.states = states;
        assert_eq!(list.domains.len(), 4, "what is written in place and three of the file");
        assert!(matches!(news(&mut own, now), News::None));
    }

    #[test]
    fn lines_of_what_is_new_that_are_no_entries_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let (now, file) = (Instant::now(), folder.path().join("list.txt"));
        let mut own = watched(folder.path(), "a.example\n");
        std::fs::write(&file, "a.example\nb example\n||c.example^\nd.example\n").unwrap();
        let News::List(_, states) = news(&mut own, now) else { panic!("no list") };
        let said = "2 of 4 lines are skipped, the first is line 2: not one entry a line";
        assert_eq!(states[0].skipped.as_deref(), Some(said));
    }

    #[test]
    fn what_cannot_be_read_is_tried_again_later_and_what_is_no_list_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (now, file) = (Instant::now(), folder.path().join("list.txt"));
        let mut own = watched(folder.path(), "a.example\n");
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(news(&mut own, now), News::Refused(_)));
        assert!(matches!(own.look(now), News::None));
        assert!(matches!(own.look(now + RETRY), News::Refused(_)));
        std::fs::write(&file, "<html>").unwrap();
        assert!(matches!(news(&mut own, now), News::Refused(_)));
        assert!(matches!(own.look(now + RETRY), News::None));
        std::fs::write(&file, "b.example\n").unwrap();
        assert!(matches!(news(&mut own, now), News::List(..)));
    }
}
