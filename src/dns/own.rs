//! Which addresses are this host's own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::sys::udp::is_local;

/// Which of the addresses that were asked are this host's own, as of a moment ago.
#[derive(Debug, Default)]
pub(super) struct OwnAddresses {
    known: HashMap<IpAddr, bool>,
    since: Option<Instant>,
}

impl OwnAddresses {
    pub(super) fn contains(&mut self, address: IpAddr) -> bool {
        let is_old = self.since.is_none_or(|since| since.elapsed() > MEMORY);
        if is_old || self.known.len() >= KNOWN {
            self.known.clear();
            self.since = Some(Instant::now());
        }
        *self.known.entry(address).or_insert_with(|| is_local(address))
    }
}

/// How long an address is believed to be this host's own, or not.
const MEMORY: Duration = Duration::from_secs(5);
const KNOWN: usize = 1024;
