//! One relayed flow, and what a turn moves of it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::half::{Broken, Ends, Half, Observer, Turn};
use super::watched::{Step, Watched};
use super::{ClosedBy, Over, Side};
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
            let _ = self.down.turn(ends, pool, scratch, None, true, &mut self.place);
        }
        turn
    }

    /// What comes from this side.
    pub(super) fn half_from(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Client => &mut self.up,
            Side::Server => &mut self.down,
        }
    }

    fn up(&mut self, pool: &mut Pool, scratch: &mut [u8], telemetry: &Telemetry) -> Result<Turn, Over> {
        let watched = self.watch(scratch, telemetry)?;
        if !self.settle() {
            telemetry.count(|c| &c.refused_unheld);
            return Err(Over::Closed(ClosedBy::Limit));
        }
        let turn = match watched {
            Some(turn) => turn,
            None => {
                let ends = Ends { from: self.client.as_fd(), to: self.server.as_fd() };
                let is_last = self.down.is_finished();
                let turn = self.up.turn(ends, pool, scratch, None, is_last, &mut self.place);
                turn.map_err(up_broken)?
            }
        };
        self.settle();
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
                let observer: Observer<'_> = &mut |octets| watched.watch.server(octets);
                self.down.turn(ends, pool, scratch, Some(observer), is_last, &mut self.place)
            }
            _ => self.down.turn(ends, pool, scratch, None, is_last, &mut self.place),
        };
        self.settle();
        let turn = turn.map_err(|broken| match broken {
            Broken::Sender(_) => Over::Closed(ClosedBy::ServerReset),
            Broken::Receiver(_) => Over::Closed(ClosedBy::ClientReset),
        })?;
        if turn == Turn::Finished {
            self.first_end.get_or_insert(ClosedBy::Server);
        }
        Ok(turn)
    }

    /// Counts what is held of the flow now; false if there is no room for what the watch keeps. What the receivers have
    /// not taken had its room before it was read.
    fn settle(&mut self) -> bool {
        let kept = self.watched.as_ref().map_or(0, |watched| watched.kept());
        self.place.hold(kept + self.up.held() + self.down.held())
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

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::sync::Arc;

    use super::*;
    use crate::policy::snapshot::Snapshot;
    use crate::policy::{ClientAddr, OrigDst, Transport};
    use crate::proxy::flow;
    use crate::proxy::relay::half::PIECE;
    use crate::proxy::worker::{self, Census};
    use crate::telemetry::Queue;

    /// A flow both of whose ends send and take nothing; the ends come with it.
    fn stalled(place: Place) -> (Flow, [TcpStream; 2]) {
        let (client_end, client) = connected();
        let (server_end, server) = connected();
        let nowhere = ([192, 0, 2, 1], 1).into();
        let snapshot = Arc::new(Snapshot::new("e".into(), 1, Vec::new()));
        let judged =
            flow::Flow::new(1, Transport::Tcp, ClientAddr(nowhere), OrigDst(nowhere), snapshot, Arc::default());
        let closing = judged.judge(None, &Telemetry::new(Queue::new(1).0)).closing;
        let flow = Flow {
            client: client.into(),
            server: server.into(),
            connected: true,
            up: Half::default(),
            down: Half::default(),
            first_end: None,
            last_moved: 0,
            closing,
            watched: None,
            place,
        };
        (flow, [client_end, server_end])
    }

    /// The far end, which is sent little that nobody takes, and the near one.
    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let near = listener.accept().unwrap().0;
        socket2::SockRef::from(&near).set_send_buffer_size(1 << 12).unwrap();
        far.set_nonblocking(true).unwrap();
        near.set_nonblocking(true).unwrap();
        (far, near)
    }

    /// Sends until the flow takes no more.
    fn fill(flow: &mut Flow, ends: &mut [TcpStream; 2]) {
        let (mut pool, mut scratch) = (Pool::default(), vec![0; 256 << 10]);
        let telemetry = Telemetry::new(Queue::new(1).0);
        loop {
            let sent = ends.each_mut().map(|end| end.write(&[0; 1 << 20]).unwrap_or(0));
            let turn = flow.turn(&mut pool, &mut scratch, 0, &telemetry).unwrap();
            if turn == Turn::Waiting && sent == [0, 0] {
                return;
            }
        }
    }

    #[test]
    fn what_slow_receivers_have_not_taken_has_a_bound_and_costs_no_flow() {
        let census = Arc::new(Census::default());
        let room = 1 << 20;
        let settings = worker::Settings { held: room, ..worker::Settings::default() };
        let flows = (0..16).map(|_| {
            let place = census.enter([10, 1, 0, 2].into(), &settings).unwrap();
            let (mut flow, mut ends) = stalled(place);
            fill(&mut flow, &mut ends);
            (flow, ends)
        });
        let flows: Vec<_> = flows.collect();
        let beyond: usize = flows.iter().map(|(flow, _)| flow.up.held() + flow.down.held()).sum();
        assert_eq!(census.held(), beyond, "beside a piece of {PIECE} octets each way");
        assert!(beyond <= room / 8, "{beyond} octets");
        let mut next = census.enter([10, 1, 0, 2].into(), &settings).unwrap();
        assert!(next.hold(64 << 10), "there is room for the beginning of the next flow");
        drop((flows, next));
        assert_eq!(census.held(), 0);
    }
}
