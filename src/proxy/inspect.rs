//! Reading a flow's first octets until they tell its name.
//!
//! What is read is held for the server, at most [`super::worker::Settings::held`] octets of it; more is unreadable.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout_at};

use super::worker::Worker;
use crate::peek::Discovery;
use crate::peek::tcp::{GiveUp, Step, TcpPeek};
use crate::policy::network::Inspection;
use crate::sys::readable::{Raw, readable};
use crate::sys::tcp;

/// The client reset the connection while it was inspected.
#[derive(Debug)]
pub struct Gone;

/// Reads until the octets tell the name, or cannot, or the Network's budget is spent (SPEC I4).
pub async fn inspect(
    worker: &Worker,
    client: &OwnedFd,
    inspection: &Inspection,
    held: &mut Vec<u8>,
) -> Result<Discovery, Gone> {
    let deadline = Instant::now() + inspection.timeout;
    let mut peek = TcpPeek::new(worker.settings.held);
    let mut waiting = None;
    loop {
        match read(worker, client, held) {
            Ok(count) => match peek.look(held, count == 0) {
                Step::Found(discovery) => return Ok(discovery),
                Step::NeedMore { .. } if held.len() >= worker.settings.held => {
                    return Ok(peek.give_up(held, GiveUp::TooLong));
                }
                Step::NeedMore { .. } if count == 0 => return Ok(peek.give_up(held, GiveUp::Ended)),
                Step::NeedMore { .. } => {}
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !peek.has_begun() && enough_segments(client, inspection, held) {
                    return Ok(peek.give_up(held, GiveUp::Packets));
                }
                // Most hellos are there at once: only a flow that must wait is registered.
                if waiting.is_none() {
                    waiting = Some(readable(client).map_err(|_| Gone)?);
                }
                let Some(waiting) = &waiting else { return Err(Gone) };
                if timeout_at(deadline, wait(waiting)).await.is_err() {
                    return Ok(peek.give_up(held, GiveUp::TimedOut));
                }
            }
            Err(_) => return Err(Gone),
        }
    }
}

/// Reads once into the worker's scratch, and holds it.
fn read(worker: &Worker, client: &OwnedFd, held: &mut Vec<u8>) -> io::Result<usize> {
    let mut scratch = worker.scratch.borrow_mut();
    let room = worker.settings.held.saturating_sub(held.len()).min(scratch.len());
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
