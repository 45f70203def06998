//! Keeps the databases of countries and ASNs as new as their files.
//!
//! Fails safe: a file that is no database, or is suddenly a tenth of what it was, changes nothing, and is said and
//! counted. A reload takes a smaller one as it is: whoever asks for one has looked.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::lists::{Fresh, RETRY, next_look};
use crate::config::{GeoSource, Part};
use crate::list::file::Stamp;
use crate::list::geoip::Database;
use crate::list::refresh::{self, Decision, Good};
use crate::sys::geoip::{self, Refused};
use crate::telemetry::{Happened, Telemetry};

/// Looks at each file, and hands on each database that became another.
pub(super) async fn watch(sources: Vec<GeoSource>, telemetry: Telemetry, to: mpsc::Sender<Fresh>) {
    let mut watched: Vec<_> = sources.into_iter().map(Watched::new).collect();
    loop {
        let Some((back, news)) = next_look(watched, Watched::look).await else { return };
        watched = back;
        for (own, news) in watched.iter_mut().zip(news) {
            match news {
                None => {}
                Some(Err(why)) => {
                    tracing::warn!(database = %own.source.path.display(), "what is new is not taken: {why}");
                    telemetry.count(|counters| &counters.lists_refused);
                    let detail = format!("{}: {why}", own.source.path.display());
                    telemetry.event(telemetry.happened(Happened::ListRefused).detail(detail));
                }
                Some(Ok((database, stamp))) => {
                    let (taken, answer) = oneshot::channel();
                    let part = Part::Database(database.clone());
                    if to.send(Fresh { part, taken }).await.is_err() {
                        return;
                    }
                    match answer.await {
                        Ok(()) => own.source = GeoSource { stamp, database, ..own.source.clone() },
                        Err(_) => own.again = Some(Instant::now() + RETRY),
                    }
                }
            }
        }
    }
}

/// A database with what was last seen of its file.
struct Watched {
    source: GeoSource,
    seen: Option<Stamp>,
    /// The state that was read last.
    judged: Option<Stamp>,
    /// What was judged is to be read again, for it may not be to blame.
    again: Option<Instant>,
}

type News = Option<Result<(Arc<Database>, Stamp), String>>;

impl Watched {
    fn new(source: GeoSource) -> Self {
        let judged = Some(source.stamp);
        Self { source, seen: None, judged, again: None }
    }

    fn look(&mut self, now: Instant) -> News {
        let state = geoip::state(&self.source.path).ok();
        // What is being written is not read before it rests.
        let rests = state == self.seen;
        self.seen = state;
        let is_due = self.seen != self.judged || self.again.is_some_and(|again| again <= now);
        if !rests || !is_due {
            return None;
        }
        self.judged = self.seen;
        self.again = None;
        if self.seen == Some(self.source.stamp) {
            return None;
        }
        match geoip::open(&self.source.path, self.source.database.kind()) {
            Ok((database, stamp)) => Some(self.compare(database).map(|database| (database, stamp))),
            Err(why) => {
                self.again = matches!(why, Refused::Io(_)).then(|| now + RETRY);
                Some(Err(why.to_string()))
            }
        }
    }

    fn compare(&self, new: Database) -> Result<Arc<Database>, String> {
        let good = |database: &Database| Good { entries: database.len() as u64, ends_with_newline: false };
        match refresh::compare(Some(&good(&self.source.database)), good(&new)) {
            Decision::Keep(why) => Err(format!("{why}; a reload takes it all the same")),
            Decision::Replace(_) => Ok(Arc::new(new)),
        }
    }
}
