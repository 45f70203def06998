//! The flows that live now, for those who look at a gateway: each worker is asked, and tells of a few of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc};

use crate::name::DomainName;
use crate::peek::Via;
use crate::policy::{Direction, Transport};

/// An allowed flow that has not ended.
#[derive(Clone, Debug)]
pub struct Live {
    pub id: u64,
    pub transport: Transport,
    pub client: SocketAddr,
    pub remote: SocketAddr,
    pub network: Option<Arc<str>>,
    pub direction: Option<Direction>,
    pub via: Option<Via>,
    pub domain: Option<DomainName>,
    pub opened: Instant,
    pub bytes_out: u64,
    pub bytes_in: u64,
}

/// Where workers are asked.
#[derive(Debug)]
pub struct Inquiries(broadcast::Sender<Inquiry>);

/// Where a worker hears of inquiries.
#[derive(Debug)]
pub struct Hearing(broadcast::Receiver<Inquiry>);

/// A question for the flows of a worker.
#[derive(Clone, Debug)]
pub struct Inquiry {
    /// How many are wanted.
    pub most: usize,
    answers: mpsc::UnboundedSender<Vec<Live>>,
}

impl Default for Inquiries {
    fn default() -> Self {
        Self(broadcast::channel(4).0)
    }
}

impl Inquiries {
    pub fn hear(&self) -> Hearing {
        Hearing(self.0.subscribe())
    }

    /// Those flows of all workers that have moved the most octets, at most so many. A worker that is too busy to answer
    /// in time is left out.
    pub async fn ask(&self, most: usize) -> Vec<Live> {
        let (answers, mut answered) = mpsc::unbounded_channel();
        // Without a worker there is no flow.
        let _ = self.0.send(Inquiry { most, answers });
        let mut flows = Vec::new();
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        loop {
            tokio::select! {
                own = answered.recv() => match own {
                    Some(own) => flows.extend(own),
                    None => break,
                },
                () = &mut patience => break,
            }
        }
        flows.sort_by_key(|flow: &Live| std::cmp::Reverse(flow.bytes_out.saturating_add(flow.bytes_in)));
        flows.truncate(most);
        flows
    }
}

impl Hearing {
    pub async fn next(&mut self) -> Inquiry {
        loop {
            match self.0.recv().await {
                Ok(inquiry) => return inquiry,
                // Who asked that has given up.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

impl Inquiry {
    pub fn answer(self, flows: Vec<Live>) {
        // Who asked may have given up.
        let _ = self.answers.send(flows);
    }
}

const PATIENCE: Duration = Duration::from_secs(1);
