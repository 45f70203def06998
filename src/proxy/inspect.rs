//! Reading a flow's first octets until they tell its name.
//!
//! What is read is held for the server, at most [`super::worker::Settings::held`] octets of it; more is unreadable.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::worker::Worker;
use crate::peek::Discovery;
use crate::policy::network::Inspection;
use crate::sys::tcp;

/// The client reset the connection while it was inspected.
#[derive(Debug)]
pub struct Gone;

pub async fn inspect(_w: &Worker, _c: &OwnedFd, _i: &Inspection, _held: &mut Vec<u8>) -> Result<Discovery, Gone> {
    Err(Gone)
}
