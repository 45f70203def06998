//! Bringing a host's traffic to us: rules and policy routes together.
//!
//! Fails closed, at every step on the way in and out:
//!
//! | what stands | what an inspected packet meets |
//! |---|---|
//! | rules, no routes yet | marked in the first hook, dropped in the forward hook |
//! | rules and routes, a listener | the listener |
//! | rules and routes, no listener (kill -9) | the `drop` behind `tproxy` |
//! | routes alone (the end of an orderly end) | nothing: the administrator took tidegate away |
//!
//! A later start finds the old rules and routes and replaces them; until then they stand.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use crate::firewall::{MARK, RULE_PRIORITY, Ruleset};
use crate::sys::nft::{Fingerprint, NftSocket, Sample};
use crate::sys::rtnl::{Family, Rtnl};

/// Puts rules and routes in place, replacing those of an earlier run. The listeners must be bound before.
///
/// When this fails the rules that were there before stay, or the new ones do: what should be captured does not pass.
pub fn install(ruleset: &Ruleset) -> io::Result<()> {
    NftSocket::open()?.replace(ruleset)?;
    add_routes()
}

/// Turns the rules that stand into others, at a reload: flows that are discarded stay so. Where somebody has meddled
/// with the rules that stood, they are replaced whole.
pub fn update(standing: &Ruleset, next: &Ruleset) -> io::Result<()> {
    match NftSocket::open()?.update(standing, next) {
        Ok(()) => add_routes(),
        Err(_) => install(next),
    }
}

/// Turns the rules of a gateway that hands over into these, and keeps what it has told the kernel of flows. Where that
/// cannot be, they are replaced whole.
pub fn adopt(next: &Ruleset) -> io::Result<()> {
    match NftSocket::open()?.adopt(next) {
        Ok(()) => add_routes(),
        Err(error) => {
            tracing::warn!(%error, "the rules that stand are replaced, and flows that the kernel forwards with them");
            install(next)
        }
    }
}

/// Tells the kernel anew how long the entries of lists last that end: it counts by its own clock, which is not set when
/// the host's is.
pub fn renew(standing: &Ruleset, now: SystemTime) -> io::Result<()> {
    Ok(NftSocket::open()?.renew(standing, now)?)
}

/// Rules and routes in force, looked after.
#[derive(Debug)]
pub struct Watch {
    nft: NftSocket,
    rules: Fingerprint,
    sample: Sample,
    /// When all entries of lists may be looked at next: a million take some three seconds.
    due: Instant,
    /// Since this generation of the kernel's rules, all was as it was put in place.
    intact_at: Option<u32>,
}

impl Watch {
    /// Of a ruleset that has just been put in place.
    pub fn begin(ruleset: &Ruleset) -> io::Result<Self> {
        let mut nft = NftSocket::open()?;
        let rules = nft.fingerprint(ruleset)?;
        let entries = ruleset.lists.iter().map(|list| list.entries().count()).sum::<usize>();
        let due = Instant::now() + AN_ENTRY.saturating_mul(u32::try_from(entries).unwrap_or(u32::MAX)) * PAUSE;
        Ok(Self { nft, rules, sample: Sample::of(&ruleset.lists), due, intact_at: None })
    }

    /// Whether rules, entries of lists and routes are as they were put in place; false if somebody changed them. A set
    /// that lost all or many of its entries is noticed at once, one that lost a few when its turn comes.
    pub fn is_intact(&mut self, ruleset: &Ruleset) -> io::Result<bool> {
        if !has_routes()? {
            return Ok(false);
        }
        let generation = self.nft.generation()?;
        if self.intact_at == Some(generation) {
            return Ok(true);
        }
        // A table that changes under the first look, as sets of flows do, is looked at twice.
        if !(self.has_rules(ruleset)? || self.has_rules(ruleset)?) {
            return Ok(false);
        }
        let now = SystemTime::now();
        if !self.nft.has(&self.sample, now)? {
            return Ok(false);
        }
        let begun = Instant::now();
        if begun < self.due {
            return Ok(true);
        }
        let intact = self.nft.has_all(&ruleset.lists, now)? || self.nft.has_all(&ruleset.lists, now)?;
        self.due = Instant::now() + begun.elapsed() * PAUSE;
        // What came after it was asked for is looked at in the next round.
        self.intact_at = Some(generation).filter(|_| intact);
        Ok(intact)
    }

    fn has_rules(&mut self, ruleset: &Ruleset) -> io::Result<bool> {
        match self.nft.fingerprint(ruleset) {
            Ok(found) => Ok(found == self.rules),
            Err(error) if error.source.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Packets that a counter of the table has counted since this was asked last.
    pub fn take_count(&mut self, counter: &str) -> io::Result<u64> {
        Ok(self.nft.take_count(counter)?)
    }
}

/// Takes everything away, also what an earlier run left. From here on nothing is captured.
pub fn remove() -> io::Result<()> {
    NftSocket::open()?.remove()?;
    let mut rtnl = Rtnl::open().map_err(|e| e.into_io())?;
    for family in families() {
        rtnl.delete_fwmark_rule(family, MARK, MARK, RULE_PRIORITY).map_err(|e| e.into_io())?;
        rtnl.delete_local_default(family, MARK).map_err(|e| e.into_io())?;
    }
    Ok(())
}

/// Settings of this host, the administrator's to change, with which a gateway of so many flows does less than one expects.
pub fn warnings(flows: usize) -> Vec<String> {
    let odd = |(key, wanted, meaning): &(&str, &str, &str)| {
        let value = std::fs::read_to_string(format!("/proc/sys/{}", key.replace('.', "/"))).ok()?;
        let value = value.trim();
        (value != *wanted).then(|| format!("{key} is {value}: {meaning}"))
    };
    SETTINGS.iter().filter_map(odd).chain(few_tracked(flows)).collect()
}

/// A flow that is served here is two to connection tracking: the client's and the server's.
fn few_tracked(flows: usize) -> Option<String> {
    let value = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").ok()?;
    let most: usize = value.trim().parse().ok()?;
    let wanted = flows.saturating_mul(2);
    (most < wanted).then(|| {
        format!(
            "net.netfilter.nf_conntrack_max is {most}: the kernel drops new flows before limits.flows is reached; \
             {wanted} or more serve"
        )
    })
}

fn add_routes() -> io::Result<()> {
    let mut rtnl = Rtnl::open().map_err(|e| e.into_io())?;
    // A namespace that has just been made has it down, and then no route may lead there.
    rtnl.set_up("lo").map_err(|e| e.into_io())?;
    for family in families().filter(|family| !is_off(*family)) {
        rtnl.add_local_default(family, MARK).map_err(|e| e.into_io())?;
        rtnl.add_fwmark_rule(family, MARK, MARK, RULE_PRIORITY).map_err(|e| e.into_io())?;
    }
    Ok(())
}

fn has_routes() -> io::Result<bool> {
    let mut rtnl = Rtnl::open().map_err(|e| e.into_io())?;
    for family in families().filter(|family| !is_off(*family)) {
        if !rtnl.delivers(family, MARK).map_err(|e| e.into_io())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Those that this kernel has.
fn families() -> impl Iterator<Item = Family> {
    let has_ipv6 = std::path::Path::new("/proc/sys/net/ipv6").exists();
    Family::BOTH.into_iter().filter(move |family| *family == Family::V4 || has_ipv6)
}

/// Without IPv6 on `lo` no route of it can lead there. What is captured of it all the same, the forward hook drops.
fn is_off(family: Family) -> bool {
    let setting = "/proc/sys/net/ipv6/conf/lo/disable_ipv6";
    family == Family::V6 && std::fs::read_to_string(setting).is_ok_and(|value| value.trim() == "1")
}

/// How long looking at one entry of a list takes, before it was measured.
const AN_ENTRY: Duration = Duration::from_micros(3);
/// Looking at all entries takes at most one part in so many of the time.
const PAUSE: u32 = 20;

/// Key, the value that serves, and what another one does. A key that this kernel has not is no obstacle.
const SETTINGS: &[(&str, &str, &str)] = &[
    ("net.ipv4.ip_forward", "1", "inspected IPv4 flows are relayed, and nothing else of IPv4 is forwarded"),
    ("net.ipv6.conf.all.forwarding", "1", "inspected IPv6 flows are relayed, and nothing else of IPv6 is forwarded"),
    ("net.ipv4.conf.all.src_valid_mark", "0", "the kernel takes captured IPv4 packets for forged ones and drops them"),
];
