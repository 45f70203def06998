//! Reading a flow's first octets until they tell its name.
//!
//! What is read is held for the server, at most [`crate::peek::tcp::Limits::held`] octets of it; more is unreadable.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::worker::{Place, Worker};
use crate::peek::Discovery;
use crate::peek::tcp::{Budget, Step, TcpPeek};
use crate::policy::network::Inspection;
use crate::sys::readable::{Raw, readable};
use crate::sys::tcp;

/// Why a flow ended while it was inspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// The client reset the connection.
    Gone,
    /// There is no room to hold more of it.
    NoRoom,
}

/// What was found, and the peek that found it: the relay goes on watching with it.
#[derive(Debug)]
pub struct Inspected {
    pub discovery: Discovery,
    pub peek: TcpPeek,
}

/// Reads until the octets tell the name, or cannot, or the Network's budget is spent (SPEC I4).
pub async fn inspect(
    worker: &Worker,
    client: &OwnedFd,
    inspection: &Inspection,
    held: &mut Vec<u8>,
    place: &mut Place,
) -> Result<Inspected, Unseen> {
    let deadline = Instant::now() + inspection.timeout;
    let mut peek = TcpPeek::new(worker.settings.peek);
    let mut waiting = None;
    let mut counted = false;
    loop {
        let discovery = match read(worker, client, held) {
            Ok(count) => {
                if !place.hold(held.len()) {
                    return Err(Unseen::NoRoom);
                }
                counted = false;
                match peek.look(held, count == 0) {
                    Step::Found(discovery) => Some(discovery),
                    Step::NeedMore { .. } if peek.waits_in_vain() => Some(Discovery::no_name(None)),
                    Step::NeedMore { .. } => None,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // What has been counted may have come since the last read: nobody concludes without having seen it.
                let spent = counted.then(|| peek.give_up(Budget::Packets)).flatten();
                match spent {
                    Some(discovery) => Some(discovery),
                    None if !counted && enough_segments(client, inspection, held) => {
                        counted = true;
                        continue;
                    }
                    None => {
                        // Most hellos are there at once: only a flow that must wait is registered.
                        let waiting = match &mut waiting {
                            Some(waiting) => waiting,
                            none => none.insert(readable(client).map_err(|_| Unseen::Gone)?),
                        };
                        let late = timeout_at(deadline, wait(waiting)).await.is_err();
                        // The same of what came with the deadline.
                        if late
                            && let Ok(count) = read(worker, client, held)
                            && let Step::Found(discovery) = peek.look(held, count == 0)
                        {
                            Some(discovery)
                        } else {
                            late.then(|| peek.give_up(Budget::Deadline)).flatten()
                        }
                    }
                }
            }
            Err(_) => return Err(Unseen::Gone),
        };
        if let Some(discovery) = discovery {
            return Ok(Inspected { discovery, peek });
        }
    }
}

/// Reads once into the worker's scratch, and holds it.
fn read(worker: &Worker, client: &OwnedFd, held: &mut Vec<u8>) -> io::Result<usize> {
    let mut scratch = worker.scratch.borrow_mut();
    let room = worker.settings.peek.held.saturating_sub(held.len()).min(scratch.len());
    let scratch = scratch.get_mut(..room).unwrap_or_default();
    let count = tcp::receive(client, scratch)?;
    held.extend_from_slice(scratch.get(..count).unwrap_or_default());
    Ok(count)
}

/// Waits for more to read, or for the client's end.
async fn wait(client: &AsyncFd<Raw<&OwnedFd>>) {
    if let Ok(mut ready) = client.readable().await {
        ready.clear_ready();
    }
}

/// Whether the client has sent as many segments as a Network waits for. A kernel that does not count them leaves the
/// deadline.
fn enough_segments(client: &OwnedFd, inspection: &Inspection, held: &[u8]) -> bool {
    !held.is_empty() && tcp::data_segments_received(client).is_ok_and(|count| count >= inspection.packets)
}
