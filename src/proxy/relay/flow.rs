//! One relayed flow, and what a turn moves of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::half::{Broken, Ends, Half, Turn};
use super::watched::{Step, Watched};
use super::{ClosedBy, Over};
use crate::proxy::flow::Closing;
use crate::proxy::worker::Place;
use crate::sys::pipe::Pool;
use crate::sys::tcp;
use crate::telemetry::Telemetry;

/// A flow in the table.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) client: OwnedFd,
    pub(super) server: OwnedFd,
    pub(super) connected: bool,
    pub(super) up: Half,
    pub(super) down: Half,
    pub(super) first_end: Option<ClosedBy>,
    pub(super) last_moved: u32,
    pub(super) closing: Box<Closing>,
    /// `None` once nothing is looked at any more.
    pub(super) watched: Option<Box<Watched>>,
    pub(super) place: Place,
}

impl Flow {
    pub(super) fn turn(
        &mut self,
        pool: &mut Pool,
        scratch: &mut [u8],
        now: u32,
        telemetry: &Telemetry,
    ) -> Result<Turn, Over> {
        let before = self.up.moved + self.down.moved;
        let mut up = self.up_or_last_words(pool, scratch, telemetry)?;
        let down = self.down(pool, scratch)?;
        if self.watched.is_some() {
            // What the server said may let the client's octets go.
            up = self.up_or_last_words(pool, scratch, telemetry)?;
        }
        if self.up.moved + self.down.moved != before {
            self.last_moved = now;
        }
        Ok(match (up, down) {
            (Turn::Finished, Turn::Finished) => Turn::Finished,
            (Turn::Again, _) | (_, Turn::Again) => Turn::Again,
            _ => Turn::Waiting,
        })
    }

    /// A server that refuses a body answers, and resets when more of it comes: the answer is the client's all the same.
    fn up_or_last_words(&mut self, pool: &mut Pool, scratch: &mut [u8], telemetry: &Telemetry) -> Result<Turn, Over> {
        let turn = self.up(pool, scratch, telemetry);
        if matches!(turn, Err(Over::Closed(ClosedBy::ServerReset))) {
            // Not told that this is the end: the reset that follows tells it.
            let ends = Ends { from: self.server.as_fd(), to: self.client.as_fd() };
            let _ = self.down.turn(ends, pool, scratch, None, true);
        }
        turn
    }

    fn up(&mut self, pool: &mut Pool, scratch: &mut [u8], telemetry: &Telemetry) -> Result<Turn, Over> {
        let watched = self.watch(scratch, telemetry)?;
        // What was held of a flow that is not watched is on its way.
        if !self.place.hold(self.watched.as_ref().map_or(0, |watched| watched.kept())) {
            telemetry.count(|c| &c.refused_unheld);
            return Err(Over::Closed(ClosedBy::Limit));
        }
        let turn = match watched {
            Some(turn) => turn,
            None => {
                let ends = Ends { from: self.client.as_fd(), to: self.server.as_fd() };
                self.up.turn(ends, pool, scratch, None, self.down.is_finished()).map_err(up_broken)?
            }
        };
        if turn == Turn::Finished {
            self.first_end.get_or_insert(ClosedBy::Client);
        }
        Ok(turn)
    }

    fn down(&mut self, pool: &mut Pool, scratch: &mut [u8]) -> Result<Turn, Over> {
        let ends = Ends { from: self.server.as_fd(), to: self.client.as_fd() };
        let is_last = self.up.is_finished();
        let turn = match &mut self.watched {
            Some(watched) if watched.watch.wants_server() => {
                self.down.turn(ends, pool, scratch, Some(&mut |octets| watched.watch.server(octets)), is_last)
            }
            _ => self.down.turn(ends, pool, scratch, None, is_last),
        };
        let turn = turn.map_err(|broken| match broken {
            Broken::Sender(_) => Over::Closed(ClosedBy::ServerReset),
            Broken::Receiver(_) => Over::Closed(ClosedBy::ClientReset),
        })?;
        if turn == Turn::Finished {
            self.first_end.get_or_insert(ClosedBy::Server);
        }
        Ok(turn)
    }

    /// Moves the client's octets as the watch lets them; `None` once nothing is watched any more.
    fn watch(&mut self, scratch: &mut [u8], telemetry: &Telemetry) -> Result<Option<Turn>, Over> {
        for _ in 0..WATCHED_ROUNDS {
            let Some(watched) = &mut self.watched else { return Ok(None) };
            let ends = Ends { from: self.client.as_fd(), to: self.server.as_fd() };
            if !self.up.send_pending(ends).map_err(up_broken)? {
                return Ok(Some(Turn::Waiting));
            }
            match watched.step(self.up.is_ended(), &mut self.closing, telemetry) {
                Step::Forward(octets) => self.up.push(&octets),
                Step::Unwatched(octets) => {
                    self.up.push(&octets);
                    self.watched = None;
                }
                Step::Refused(action) => return Err(Over::Refused(action)),
                Step::More => {
                    let room = watched.room().min(scratch.len());
                    let scratch = scratch.get_mut(..room).unwrap_or_default();
                    match self.up.read(ends.from, scratch).map_err(up_broken)? {
                        Some(count) => watched.held.extend_from_slice(scratch.get(..count).unwrap_or_default()),
                        None => return Ok(Some(Turn::Waiting)),
                    }
                }
            }
        }
        Ok(Some(Turn::Again))
    }
}

fn up_broken(broken: Broken) -> Over {
    Over::Closed(match broken {
        Broken::Sender(_) => ClosedBy::ClientReset,
        Broken::Receiver(_) => ClosedBy::ServerReset,
    })
}

/// What the dialled server has answered, once its socket has an event.
pub(super) fn connection(flow: &Flow) -> Result<(), ClosedBy> {
    match tcp::dial_result(&flow.server) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(ClosedBy::Refused),
        Err(_) => Err(ClosedBy::Unreachable),
    }
}

/// Steps of a watched flow in one turn.
const WATCHED_ROUNDS: usize = 64;
