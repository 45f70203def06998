//! Reloads by themselves: the files of the configuration, looked at every second.
//!
//! A change counts when it has rested for one look, so that a file is not read while it is written.

use std::time::Duration;

use crate::config::{Documents, Loaded, documents};

/// The documents of the configuration in force.
#[derive(Debug)]
pub(super) struct Watched {
    documents: Option<Documents>,
    /// As they were when they were last read, or tried to be.
    judged: documents::Sight,
    last: documents::Sight,
}

impl Watched {
    pub(super) fn new(loaded: &Loaded) -> Self {
        let judged = loaded.documents.as_read().clone();
        let documents = loaded.gateway.watch.then(|| loaded.documents.clone());
        Self { documents, last: judged.clone(), judged }
    }

    /// Waits until they are others, and rest. Nothing is lost when this is dropped in between.
    pub(super) async fn changed(&mut self) {
        let Some(documents) = &self.documents else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK).await;
            let now = documents.look();
            let rests = now == self.last;
            self.last = now;
            if rests && self.last != self.judged {
                self.judged = self.last.clone();
                return;
            }
        }
    }
}

const LOOK: Duration = Duration::from_secs(1);
