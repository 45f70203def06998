//! Who asked for a reload and waits for word of it.

use tokio::sync::oneshot;

/// A reading tells of the files as they were after it began: whoever asks later waits for the next.
#[derive(Debug, Default)]
pub(super) struct Asked {
    now: Vec<oneshot::Sender<Result<u64, String>>>,
    next: Vec<oneshot::Sender<Result<u64, String>>>,
}

impl Asked {
    pub(super) fn add(&mut self, answer: oneshot::Sender<Result<u64, String>>) {
        self.next.push(answer);
    }

    /// The files are being read from now on.
    pub(super) fn begin(&mut self) {
        self.now.append(&mut self.next);
    }

    pub(super) fn answer(&mut self, outcome: &Result<u64, String>) {
        for answer in self.now.drain(..) {
            // Whoever asked may have gone.
            let _ = answer.send(outcome.clone());
        }
    }
}
