//! One direction of a relayed flow: begins by copying, turns to splice(2) for bulk.
//!
//! What was read and not taken by the receiver is held here, and any receiver may stop to take. A small piece is read at
//! any time; more only as far as the flow's place has room for it.

use std::io;
use std::os::fd::BorrowedFd;

use crate::proxy::worker::Place;
use crate::sys::pipe::{Pipe, Pool};
use crate::sys::tcp;

/// What a direction holds between turns. Idle, it holds no buffer and no pipe.
#[derive(Debug, Default)]
pub struct Half {
    /// Copied and not yet taken by the receiver, from `sent` on.
    pending: Option<Box<[u8]>>,
    sent: u32,
    came: Came,
    /// Urgent data has come (RFC 6093), before which splice stops for good: nothing is spliced any more.
    pub copies: bool,
    /// The sender has sent its last octet.
    ended: bool,
    /// The receiver has been told so.
    finished: bool,
    pipe: Option<Pipe>,
    /// Octets handed to the receiver.
    pub moved: u64,
}

/// How much came last: what it pays to read at once, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Came {
    #[default]
    Little,
    /// More than is read at any time.
    Much,
    /// It is spliced.
    Bulk,
}

/// The two ends of a direction, for one turn.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    pub from: BorrowedFd<'a>,
    pub to: BorrowedFd<'a>,
}

/// Is shown octets as they pass.
pub type Observer<'a> = &'a mut dyn FnMut(&[u8]);

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Waits for one of the sockets.
    Waiting,
    /// Could go on, but others are waiting too.
    Again,
    /// Everything was sent, and the receiver knows that it was all.
    Finished,
}

/// Which end broke.
#[derive(Debug)]
pub enum Broken {
    Sender(io::Error),
    Receiver(io::Error),
}

impl Half {
    /// A direction that begins with octets that were held for inspection.
    pub fn holding(held: Box<[u8]>) -> Self {
        Self { pending: Some(held).filter(|held| !held.is_empty()), ..Self::default() }
    }

    /// The sender's last octet is in, and has been passed on.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Octets held beyond a small piece, which has room at any time.
    pub fn held(&self) -> usize {
        let piped = self.pipe.as_ref().map_or(0, Pipe::filled);
        (self.pending.as_ref().map_or(0, |pending| pending.len()) + piped).saturating_sub(PIECE)
    }

    /// Moves what can be moved, up to a share that leaves the other flows theirs. `observer` is shown the octets; with
    /// one they are copied, never spliced. `is_last`: the other direction has ended, so that closing will tell the
    /// receiver. Afterwards `place` may have room for more than is held: the caller gives it back.
    pub fn turn(
        &mut self,
        ends: Ends<'_>,
        pool: &mut Pool,
        scratch: &mut [u8],
        mut observer: Option<Observer<'_>>,
        is_last: bool,
        place: &mut Place,
    ) -> Result<Turn, Broken> {
        let mut most = PIECE;
        for _ in 0..ROUNDS {
            if !(self.send_pending(ends)? && self.drain_pipe(ends, pool)?) {
                return Ok(Turn::Waiting);
            }
            if self.ended {
                return Ok(self.finish(ends, is_last));
            }
            if self.came > Came::Little && most == PIECE {
                most += place.lend(Pipe::SIZE - PIECE);
            }
            let read = most.min(scratch.len());
            let scratch = scratch.get_mut(..read).unwrap_or_default();
            let came = match &mut observer {
                None if self.came == Came::Bulk && !self.copies && most >= BULK => {
                    self.fill_pipe(ends, pool, scratch, most)?
                }
                observer => self.copy(ends, scratch, observer)?,
            };
            if !came {
                return Ok(Turn::Waiting);
            }
        }
        Ok(Turn::Again)
    }

    /// Takes octets to be sent before any others. Nothing may be pending.
    pub fn push(&mut self, octets: &[u8]) {
        debug_assert!(self.pending.is_none());
        self.pending = Some(octets.into());
    }

    /// Reads once, for somebody who decides what is passed on: how many octets came, or `None` if none are there.
    pub fn read(&mut self, from: BorrowedFd<'_>, scratch: &mut [u8]) -> Result<Option<usize>, Broken> {
        let count = ready(|| tcp::receive(from, scratch)).map_err(Broken::Sender)?;
        self.ended |= count == Some(0);
        Ok(count)
    }

    /// The sender has sent its last octet.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// True once nothing is pending.
    pub fn send_pending(&mut self, ends: Ends<'_>) -> Result<bool, Broken> {
        while let Some(pending) = &self.pending {
            let rest = pending.get(self.sent as usize..).unwrap_or_default();
            if rest.is_empty() {
                self.pending = None;
                self.sent = 0;
                break;
            }
            let Some(count) = ready(|| tcp::send(ends.to, rest)).map_err(Broken::Receiver)? else { return Ok(false) };
            self.sent += count as u32;
            self.moved += count as u64;
        }
        Ok(true)
    }

    /// True once the pipe is empty.
    fn drain_pipe(&mut self, ends: Ends<'_>, pool: &mut Pool) -> Result<bool, Broken> {
        while let Some(mut pipe) = self.pipe.take() {
            if pipe.filled() == 0 {
                pool.give(pipe);
                break;
            }
            let drained = ready(|| pipe.drain(ends.to)).map_err(Broken::Receiver);
            self.pipe = Some(pipe);
            match drained? {
                Some(count) => self.moved += count as u64,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// True if something came, or the sender's end.
    fn copy(
        &mut self,
        ends: Ends<'_>,
        scratch: &mut [u8],
        observer: &mut Option<Observer<'_>>,
    ) -> Result<bool, Broken> {
        let Some(count) = ready(|| tcp::receive(ends.from, scratch)).map_err(Broken::Sender)? else { return Ok(false) };
        self.ended = count == 0;
        self.came = match count {
            BULK.. => Came::Bulk,
            PIECE.. => Came::Much,
            _ => Came::Little,
        };
        let bytes = scratch.get(..count).unwrap_or_default();
        if let Some(observer) = observer {
            observer(bytes);
        }
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
            match ready(|| tcp::send(ends.to, rest)).map_err(Broken::Receiver)? {
                Some(count) => sent += count,
                None => {
                    self.pending = Some(rest.into());
                    break;
                }
            }
        }
        self.moved += sent as u64;
        Ok(true)
    }

    /// True if something came, or the sender's end.
    fn fill_pipe(&mut self, ends: Ends<'_>, pool: &mut Pool, scratch: &mut [u8], most: usize) -> Result<bool, Broken> {
        let mut pipe = match pool.take() {
            Ok(pipe) => pipe,
            Err(_) => {
                // No descriptor for a pipe: copying needs none.
                self.came = Came::Much;
                return Ok(true);
            }
        };
        let filled = ready(|| pipe.fill(ends.from, most));
        match filled {
            Ok(Some(count)) if count > 0 => {
                if count < SMALL {
                    self.came = Came::Much;
                }
                self.pipe = Some(pipe);
                Ok(true)
            }
            Ok(Some(_)) => {
                pool.give(pipe);
                // So it looks before urgent data too, of which it was not told yet. Reading tells.
                self.copy(ends, scratch, &mut None)
            }
            Ok(None) => {
                pool.give(pipe);
                Ok(false)
            }
            Err(error) => {
                pool.give(pipe);
                Err(Broken::Sender(error))
            }
        }
    }

    fn finish(&mut self, ends: Ends<'_>, is_last: bool) -> Turn {
        if !self.finished && !is_last {
            tcp::end_sending(ends.to);
        }
        self.finished = true;
        Turn::Finished
    }
}

/// `None` where the socket is not ready.
fn ready(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Rounds in one turn: some 16 MiB of bulk.
const ROUNDS: usize = 16;
/// Read at once without asking for room: less than the kernel holds of the flow anyway.
pub const PIECE: usize = 16 << 10;
/// A read of so many octets calls for splice.
const BULK: usize = 64 << 10;
/// A splice of fewer calls for copying, which is cheaper for small exchanges.
const SMALL: usize = 8 << 10;
