//! Pipes for splice(2), pooled: a direction of a flow holds one only while bytes are in it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// A pipe and how much is in it. Filled only when empty: a full slot table looks like an idle socket otherwise.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    filled: usize,
}

/// Idle pipes of one worker, at most [`Pool::LIMIT`].
#[derive(Debug, Default)]
pub struct Pool {
    idle: Vec<Pipe>,
}

impl Pipe {
    /// 1 MiB: measured as the size past which splice gains nothing more.
    pub const SIZE: usize = 1 << 20;

    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        // Past the user's share of pipe pages the kernel refuses: the pipe then stays small, and only slower.
        let _ = fcntl_setpipe_size(&write, Self::SIZE);
        Ok(Self { read, write, filled: 0 })
    }

    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Moves what has come from `socket` into this empty pipe, up to `most`; `Ok(0)` is the peer's end.
    pub fn fill(&mut self, socket: impl AsFd, most: usize) -> io::Result<usize> {
        debug_assert_eq!(self.filled, 0);
        self.filled = splice(socket, None, &self.write, None, most, SpliceFlags::NONBLOCK)?;
        Ok(self.filled)
    }

    /// Moves as much as `socket` takes out of the pipe.
    pub fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let moved = splice(&self.read, None, socket, None, self.filled, SpliceFlags::NONBLOCK)?;
        self.filled -= moved;
        Ok(moved)
    }
}

impl Pool {
    pub const LIMIT: usize = 64;

    pub fn take(&mut self) -> io::Result<Pipe> {
        match self.idle.pop() {
            Some(pipe) => Ok(pipe),
            None => Pipe::new(),
        }
    }

    /// Takes a pipe back; one that still holds bytes is closed, for they belong to a flow that has ended.
    pub fn give(&mut self, pipe: Pipe) {
        if pipe.filled == 0 && self.idle.len() < Self::LIMIT {
            self.idle.push(pipe);
        }
    }
}
