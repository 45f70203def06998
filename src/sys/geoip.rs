//! Country and ASN databases on disk.
//!
//! Fails closed: a file that is written to while it is read is not taken.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::list_store::state_of;
use crate::list::file::Stamp;
use crate::list::geoip::{Damaged, Database, Kind};
use crate::list::reader::Options;

/// Why a file is not taken.
#[derive(Debug)]
pub enum Refused {
    Io(io::Error),
    Damaged(Damaged),
}

/// Reads a database, and tells which state of its file it is.
pub fn open(path: &Path, kind: Kind) -> Result<(Database, Stamp), Refused> {
    let stamp = state(path).map_err(Refused::Io)?;
    let octets = read(path).map_err(Refused::Io)?;
    let database = Database::read(&octets, kind).map_err(Refused::Damaged)?;
    match state(path).map_err(Refused::Io)? == stamp {
        true => Ok((database, stamp)),
        false => Err(Refused::Io(io::Error::other("it is being written to"))),
    }
}

/// Which state the file is in now.
pub fn state(path: &Path) -> io::Result<Stamp> {
    state_of(path, &Options::default())
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Before it is opened: opening a pipe waits for somebody to write to it.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut octets = Vec::new();
    File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut octets)?;
    match octets.len() as u64 > MAX_FILE {
        true => Err(io::Error::other(format!("it is larger than {} GiB", MAX_FILE >> 30))),
        false => Ok(octets),
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Damaged(why) => why.fmt(f),
        }
    }
}

/// Octets of a file, all of which are held while it is read.
const MAX_FILE: u64 = 4 << 30;
