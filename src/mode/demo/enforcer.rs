//! A real tidegate as a child process, with what it says read line by line.
//!
//! Fails closed: a gateway that ends, or does not say `ready` in time, is an error that repeats its last words.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::sys::child;
use crate::sys::netns::Namespace;

/// A running `tidegate run`. Dropping it kills it, and so does the end of the thread that started it.
#[derive(Debug)]
pub struct Enforcer {
    child: Child,
    records: Lines,
    messages: Lines,
    readers: Vec<JoinHandle<()>>,
}

/// Why there is no gateway, with what it said on standard error.
#[derive(Debug)]
pub struct StartError {
    pub source: io::Error,
    pub messages: Vec<String>,
}

impl Enforcer {
    /// Starts `program run --config config` inside `namespace` and waits for it to be ready.
    pub fn start(program: &Path, namespace: &Namespace, config: &Path) -> Result<Self, StartError> {
        let mut command = Command::new(program);
        command.arg("run").arg("--config").arg(config);
        Self::start_command(command, namespace)
    }

    /// The same for a command with options of its own.
    pub fn start_command(command: Command, namespace: &Namespace) -> Result<Self, StartError> {
        Self::start_prepared(command, namespace, |_| {})
    }

    /// The same with a last word to the command.
    pub fn start_prepared(
        command: Command,
        namespace: &Namespace,
        prepare: impl FnOnce(&mut Command),
    ) -> Result<Self, StartError> {
        let enforcer =
            Self::spawn(command, namespace, prepare).map_err(|source| StartError { source, messages: Vec::new() })?;
        match enforcer.messages.wait_for(|line| line.trim() == "ready", START_DEADLINE) {
            Some(_) => Ok(enforcer),
            None => Err(StartError {
                source: io::Error::new(io::ErrorKind::TimedOut, "the gateway did not become ready"),
                messages: enforcer.messages.all(),
            }),
        }
    }

    fn spawn(mut command: Command, namespace: &Namespace, prepare: impl FnOnce(&mut Command)) -> io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        namespace.enter(&mut command)?;
        child::end_with_this_thread(&mut command);
        prepare(&mut command);
        let mut child = command.spawn()?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut enforcer = Self { child, records: Lines::default(), messages: Lines::default(), readers: Vec::new() };
        if let Some(stdout) = stdout {
            enforcer.readers.push(enforcer.records.read("records", stdout)?);
        }
        if let Some(stderr) = stderr {
            enforcer.readers.push(enforcer.messages.read("messages", stderr)?);
        }
        Ok(enforcer)
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The first record that fits, waiting for it if need be. `None`: none came before the deadline or the end.
    pub fn record(&self, fits: impl Fn(&Value) -> bool, deadline: Duration) -> Option<Value> {
        let parsed = |line: &str| serde_json::from_str(line).ok().filter(&fits);
        self.records.wait_for(|line| parsed(line).is_some(), deadline).and_then(|line| parsed(&line))
    }

    /// Every record so far.
    pub fn records(&self) -> Vec<Value> {
        parse(&self.records.all())
    }

    /// Everything said on standard error so far.
    pub fn messages(&self) -> Vec<String> {
        self.messages.all()
    }

    /// The first message that fits, waiting for it if need be.
    pub fn message(&self, fits: impl Fn(&str) -> bool, deadline: Duration) -> Option<String> {
        self.messages.wait_for(fits, deadline)
    }

    /// The same among the messages after the first `passed`.
    pub fn message_after(&self, passed: usize, fits: impl Fn(&str) -> bool, deadline: Duration) -> Option<String> {
        self.messages.wait_after(passed, fits, deadline)
    }

    /// Asks it to end (SIGTERM) and waits until it has; then every record is there.
    pub fn stop(mut self) -> io::Result<Ended> {
        kill_process(self.pid(), Signal::TERM)?;
        self.wait()
    }

    /// Ends it without asking (SIGKILL): it cannot clean up.
    pub fn kill(mut self) -> io::Result<Ended> {
        self.child.kill()?;
        self.wait()
    }

    fn wait(&mut self) -> io::Result<Ended> {
        let status = self.child.wait()?;
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        Ok(Ended { status, lines: self.records.all(), messages: self.messages() })
    }
}

impl Drop for Enforcer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an enforcer left behind.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    /// Its standard output: a record each.
    pub lines: Vec<String>,
    pub messages: Vec<String>,
}

impl Ended {
    pub fn records(&self) -> Vec<Value> {
        parse(&self.lines)
    }
}

fn parse(lines: &[String]) -> Vec<Value> {
    lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        self.messages.iter().try_for_each(|line| write!(f, "\n  | {line}"))
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The lines of one stream, for whoever waits for one.
#[derive(Clone, Debug, Default)]
struct Lines {
    shared: Arc<(Mutex<Said>, Condvar)>,
}

#[derive(Debug, Default)]
struct Said {
    lines: Vec<String>,
    ended: bool,
}

impl Lines {
    fn read(&self, name: &str, from: impl Read + Send + 'static) -> io::Result<JoinHandle<()>> {
        let lines = self.clone();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                lines.said().lines.push(line);
                lines.shared.1.notify_all();
            }
            lines.said().ended = true;
            lines.shared.1.notify_all();
        })
    }

    fn wait_for(&self, fits: impl Fn(&str) -> bool, patience: Duration) -> Option<String> {
        self.wait_after(0, fits, patience)
    }

    fn wait_after(&self, passed: usize, fits: impl Fn(&str) -> bool, patience: Duration) -> Option<String> {
        let deadline = Instant::now() + patience;
        let mut said = self.said();
        let mut looked_at = passed;
        loop {
            let new = said.lines.get(looked_at..).unwrap_or_default();
            if let Some(line) = new.iter().find(|line| fits(line)) {
                return Some(line.clone());
            }
            looked_at = said.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if said.ended || left.is_zero() {
                return None;
            }
            said = self.shared.1.wait_timeout(said, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn all(&self) -> Vec<String> {
        self.said().lines.clone()
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const START_DEADLINE: Duration = Duration::from_secs(10);
