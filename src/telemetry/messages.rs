//! Messages for the operator, on standard error: never waited for by who says them.
//!
//! A thread writes them. What it cannot keep up with, because nobody reads, is dropped and counted. Before the thread is
//! started, and where it cannot be, messages are written at once.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

static SPEAKER: OnceLock<SyncSender<Said>> = OnceLock::new();
static DROPPED: AtomicU64 = AtomicU64::new(0);

enum Said {
    Text(Vec<u8>),
    /// To be dropped when all before it is written.
    Mark(Sender<()>),
}

/// What the log writes to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Messages;

/// Starts the thread; the second time nothing.
pub fn start(begin: fn()) {
    let (speaker, said) = sync_channel(WAITING);
    let work = move || {
        begin();
        write(&said, &mut io::stderr(), &DROPPED)
    };
    let spoken = std::thread::Builder::new().name("messages".into());
    if SPEAKER.get().is_none() && spoken.spawn(work).is_ok() {
        let _ = SPEAKER.set(speaker);
    }
}

/// Says a line in its turn.
pub fn say(line: &str) {
    // What finds no room is counted.
    let _ = Messages.write_all(format!("{line}\n").as_bytes());
}

/// Waits until what was said is written, but not for long.
pub fn flush() {
    let (mark, reached) = channel();
    if SPEAKER.get().is_some_and(|speaker| speaker.try_send(Said::Mark(mark)).is_ok()) {
        // Nobody sends: the mark is dropped.
        let _ = reached.recv_timeout(PATIENCE);
    }
}

impl Write for Messages {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        match SPEAKER.get() {
            None => io::stderr().write_all(text)?,
            Some(speaker) => {
                if speaker.try_send(Said::Text(text.to_vec())).is_err() {
                    DROPPED.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(said: &Receiver<Said>, to: &mut impl Write, dropped: &AtomicU64) {
    while let Ok(said) = said.recv() {
        // Nothing can be said of a message that cannot be written.
        let _ = match said {
            Said::Text(text) => to.write_all(&text),
            Said::Mark(mark) => {
                drop(mark);
                continue;
            }
        };
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(to, "{lost} messages were dropped: nobody read them in time");
        }
    }
}

/// Messages that may wait.
const WAITING: usize = 1024;
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_in_order_and_what_was_dropped_is_said() {
        let (speaker, said) = sync_channel(3);
        for text in ["a\n", "b\n"] {
            speaker.send(Said::Text(text.into())).unwrap();
        }
        let (mark, reached) = channel();
        speaker.send(Said::Mark(mark)).unwrap();
        drop(speaker);
        let mut written = Vec::new();
        write(&said, &mut written, &AtomicU64::new(2));
        let text = String::from_utf8(written).unwrap();
        assert_eq!(text, "a\n2 messages were dropped: nobody read them in time\nb\n");
        assert!(reached.try_recv().is_err());
    }
}
