//! A TCP flow, from its capture to its end.
//!
//! Fails closed: the server hears nothing, not even a SYN, before the verdict; a flow that cannot be told from a
//! connection to tidegate itself is reset.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::flow::{Closing, Flow};
use super::inspect::{Inspected, Unseen, inspect};
use super::relay::watched::Watched;
use super::relay::{Handover, Refuse};
use super::worker::{DialFrom, Place, Worker};
use crate::peek::watch::{HttpRequestsJudged, Watch};
use crate::policy::network::HttpRequests;
use crate::policy::{ClientAddr, DropAction, OrigDst, Transport};
use crate::sys::ending::{Ended, Ender};
use crate::sys::readable::readable;
use crate::sys::tcp;
use crate::telemetry::Telemetry;

/// Takes flows from a listener for as long as the worker lives.
pub async fn serve(worker: Rc<Worker>, listener: OwnedFd) -> io::Result<()> {
    let own = tcp::local_address(&listener)?;
    let listener = readable(listener)?;
    loop {
        let mut ready = listener.readable().await?;
        match tcp::accept(listener.get_ref()) {
            Ok((socket, peer)) => take_in(&worker, own, socket, peer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) if is_exhaustion(&error) => {
                worker.telemetry.count(|c| &c.out_of_descriptors);
                // The flow waits in the backlog until a descriptor is free.
                tokio::time::sleep(BREATH).await;
            }
            // A flow that ended while it waited: the next one may be well.
            Err(_) => worker.telemetry.count(|c| &c.ended_before_verdict),
        }
    }
}

fn take_in(worker: &Rc<Worker>, own: SocketAddr, socket: OwnedFd, peer: SocketAddr) {
    worker.telemetry.count(|c| &c.flows);
    let Some(place) = worker.census.enter(peer.ip(), &worker.settings) else {
        worker.telemetry.count(|c| &c.refused_by_limit);
        return tcp::reset(socket);
    };
    let worker = worker.clone();
    tokio::task::spawn_local(async move { serve_flow(&worker, own, socket, ClientAddr(peer), place).await });
}

/// The story of a flow.
async fn serve_flow(worker: &Worker, own: SocketAddr, client: OwnedFd, peer: ClientAddr, mut place: Place) {
    let Some(mut flow) = intercept(worker, own, &client, peer) else { return tcp::reset(client) };
    let mut held = Vec::new();
    let inspected = match flow.inspection() {
        Some(inspection) => {
            flow.record_hold(&worker.telemetry);
            match inspect(worker, &client, inspection, &mut held, &mut place).await {
                Ok(inspected) => {
                    if let Some(proof) = worker.proofs.begin(&flow, &inspected.discovery) {
                        // A look-up that broke has bound nothing.
                        let _ = proof.await;
                    }
                    flow.keep_binding(&inspected.discovery);
                    Some(inspected)
                }
                Err(Unseen::Gone) => return worker.telemetry.count(|c| &c.ended_before_verdict),
                Err(Unseen::NoRoom) => {
                    worker.telemetry.count(|c| &c.refused_unheld);
                    return tcp::reset(client);
                }
            }
        }
        None => None,
    };
    let judgement = flow.judge(inspected.as_ref().map(|i| &i.discovery), &worker.telemetry);
    match judgement.ending {
        None => pass(worker, flow, judgement.closing, Passing { client, held, inspected, place }),
        Some(action) => refuse(worker, flow.id, action, client),
    }
}

/// What an allowed flow brings to the relay.
struct Passing {
    client: OwnedFd,
    held: Vec<u8>,
    inspected: Option<Inspected>,
    place: Place,
}

/// The flow as its client meant it; `None` if it was opened to tidegate itself.
fn intercept(worker: &Worker, own: SocketAddr, socket: &OwnedFd, client: ClientAddr) -> Option<Flow> {
    let orig_dst = tcp::local_address(socket).ok().filter(|to| *to != own)?;
    let snapshot = worker.snapshot.load_full();
    Some(Flow::new(
        worker.census.next_id(),
        Transport::Tcp,
        client,
        OrigDst(orig_dst),
        snapshot,
        worker.bindings.clone(),
    ))
}

/// Dials the original destination and leaves the rest to the relay.
fn pass(worker: &Worker, flow: Flow, closing: Box<Closing>, passing: Passing) {
    let Passing { client, held, inspected, place } = passing;
    let from = (worker.settings.dial_from == DialFrom::Client).then(|| flow.client.ip());
    let server = match tcp::dial(from, flow.orig_dst.0) {
        Ok(server) => server,
        Err(_) => {
            worker.relay.end_undialled(&closing);
            return tcp::reset(client);
        }
    };
    let (held, watched) = match inspected.and_then(|inspected| watch(worker, &flow, inspected, &held)) {
        Some(watch) => {
            let limit = worker.settings.peek.held;
            (Box::default(), Some(Box::new(Watched { watch, flow, held, limit, refused: None })))
        }
        None => (held.into(), None),
    };
    worker.relay.begin(Handover { client, server, held, watched, closing, place });
}

/// What is still looked at after the verdict, if anything.
fn watch(worker: &Worker, flow: &Flow, inspected: Inspected, held: &[u8]) -> Option<Watch> {
    let judged = match flow.http()? {
        HttpRequests::Every => HttpRequestsJudged::Every,
        HttpRequests::First => HttpRequestsJudged::First,
    };
    debug_assert!(held.len() <= worker.settings.peek.held);
    let watch = Watch::after(inspected.peek, &inspected.discovery, held, judged);
    (!watch.is_done()).then_some(watch)
}

/// Ends a blocked flow as its Network says; where the kernel cannot, by a reset, which is counted.
pub fn refuse(worker: &Worker, flow: u64, action: DropAction, client: OwnedFd) {
    end(&worker.ender, &worker.telemetry, Some(flow), action, client);
}

/// The same for a flow that the relay has let go.
pub fn refuser(ender: Rc<RefCell<Ender>>, telemetry: Telemetry) -> Refuse {
    Box::new(move |client, action| end(&ender, &telemetry, None, action, client))
}

fn end(ender: &RefCell<Ender>, telemetry: &Telemetry, flow: Option<u64>, action: DropAction, client: OwnedFd) {
    if let Ended::Reset { why } = ender.borrow_mut().end(client, action) {
        telemetry.count(|c| &c.ended_by_reset);
        tracing::warn!(flow, %action, %why, "ended by a reset instead");
    }
}

fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// How long accepting rests when descriptors have run out.
const BREATH: Duration = Duration::from_millis(20);
