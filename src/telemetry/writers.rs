//! The threads that write: one for each sink.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::queue::Queue;
use super::sink::{FileSink, Rotation, Sink, Stream, SyslogTcp, SyslogUdp, Template};

/// One place that records go to.
#[derive(Clone, Debug)]
pub struct SinkSettings {
    pub to: Destination,
    /// Records that may wait for it; more are dropped and counted.
    pub records: usize,
}

#[derive(Clone, Debug)]
pub enum Destination {
    Stdout,
    File { path: PathBuf, rotation: Rotation },
    SyslogUdp { server: SocketAddr, template: Template },
    SyslogTcp { server: SocketAddr, template: Template },
}

/// The running writers.
#[derive(Debug)]
pub struct Writers {
    queues: Vec<Queue>,
    /// Closed when the last has ended.
    running: Receiver<()>,
}

/// Why there is no sink.
#[derive(Debug)]
pub struct SinkError {
    sink: String,
    error: io::Error,
}

impl Writers {
    /// Opens every sink, and starts a thread for each, which first does what `begin` does. A server that cannot be reached
    /// is no error: it may come.
    pub fn start(settings: &[SinkSettings], enforcer: &Arc<str>, begin: fn()) -> Result<Self, SinkError> {
        let (ended, running) = mpsc::channel();
        let mut queues = Vec::new();
        for own in settings {
            let name = own.to.to_string();
            let failed = |error| SinkError { sink: name.clone(), error };
            let mut sink = own.to.open().map_err(failed)?;
            let (queue, writer) = Queue::named(name.as_str().into(), enforcer.clone(), own.records);
            let ended = ended.clone();
            let work = move || {
                let _ended = ended;
                begin();
                writer.serve(&mut *sink);
            };
            std::thread::Builder::new().name("records".into()).spawn(work).map_err(failed)?;
            queues.push(queue);
        }
        Ok(Self { queues, running })
    }

    pub fn queues(&self) -> Vec<Queue> {
        self.queues.clone()
    }

    /// Lets them write what waits, for so long at most: one that is stuck is left behind.
    pub fn finish(self, patience: Duration) {
        self.queues.iter().for_each(Queue::close);
        let until = Instant::now() + patience;
        // Nobody sends: what is waited for is the end of those who could.
        let ended = self.running.recv_timeout(until.saturating_duration_since(Instant::now()));
        if ended != Err(RecvTimeoutError::Disconnected) {
            for queue in self.queues.iter().filter(|queue| !queue.has_ended()) {
                let standing = queue.standing();
                tracing::error!(
                    sink = &*standing.sink,
                    unwritten = standing.waiting,
                    "the sink is stuck, and left behind"
                );
            }
        }
    }
}

impl Destination {
    fn open(&self) -> io::Result<Box<dyn Sink + Send>> {
        Ok(match self.clone() {
            Self::Stdout => Box::new(Stream::new(io::stdout())),
            Self::File { path, rotation } => Box::new(FileSink::open(&path, rotation)?),
            Self::SyslogUdp { server, template } => Box::new(SyslogUdp::new(server, template)),
            Self::SyslogTcp { server, template } => Box::new(SyslogTcp::new(server, template)),
        })
    }
}

/// The name by which a sink is spoken of.
impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File { path, .. } => write!(f, "{}", path.display()),
            Self::SyslogUdp { server, .. } => write!(f, "syslog-udp {server}"),
            Self::SyslogTcp { server, .. } => write!(f, "syslog-tcp {server}"),
        }
    }
}

impl fmt::Display for SinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not write records to {}: {}", self.sink, self.error)
    }
}

impl std::error::Error for SinkError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}
