//! `[gateway]` and `[limits]`: how a gateway behaves, and how much it may hold.

mod dns;

use std::time::Duration;

use super::mistake::Report;
use super::table::Table;
use crate::sys::fetch;
use crate::sys::privileges::is_user;
pub use dns::DnsLimits;

/// What a gateway does when tidegate is not there (SPEC R5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// Captured traffic is dropped.
    Closed,
    /// It passes as if there were no gateway.
    Open,
}

/// `[gateway]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySettings {
    /// Default closed. Takes effect at start.
    pub on_failure: OnFailure,
    /// End live flows that a new configuration forbids. Default false. Takes effect at the next reload.
    pub recheck: bool,
    /// Drop what comes from where its source is not. Default true. Takes effect at start.
    pub reverse_path: bool,
    /// Reload by itself when the configuration or a file that it includes has changed. Default true. Takes effect at a
    /// reload.
    pub watch: bool,
}

/// `[limits]`: bounds of what is held at once.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Flows held at once, TCP and UDP together: 1 to 10,000,000; default 100,000. A flow past it is refused, counted
    /// and logged. Takes effect at start.
    pub flows: usize,
    /// TCP flows of one client held at once: 1 to 10,000,000; default 25,000. One past it is refused, counted and logged.
    /// Takes effect at start.
    pub flows_of_one: usize,
    /// Octets of a flow's beginning that are held while its name is looked for: 1 KiB to 1 MiB; default 64 KiB.
    /// Takes effect at start.
    pub held_bytes: usize,
    /// The same of all TCP flows together, a quarter of it of one client: 1 MiB to 1 TiB; default 512 MiB. A flow that has
    /// more to hold is reset, counted and logged. Up to half of it goes to what slow receivers have not taken. Takes
    /// effect at start.
    pub held_bytes_in_all: usize,
    /// A TCP flow without a byte for so long is ended: 1 s to 7 days; default 5 min. Takes effect at start.
    pub idle: Duration,
    /// Worker threads: 0 (one for each core) to 1,024; default 0. Takes effect at start.
    pub workers: usize,
    /// Records that wait to be written; more are dropped and counted: 1 to 16,777,216; default 65,536. Takes
    /// effect at start.
    pub records: usize,
    /// Octets of a list that is fetched: 1 KiB to 16 GiB; default 1 GiB. A larger one is not taken. Takes effect at the
    /// next reload.
    pub fetch_size: usize,
    /// How long fetching a list may take: 1 s to 1 day; default 15 min. Takes effect at the next reload.
    pub fetch_time: Duration,
    /// Packets judged in the kernel that are recorded a second, for each Network, direction and reason; more are
    /// counted: 1 to 1,000,000; default 1,000. Takes effect at start.
    pub kernel_records: usize,
    /// `[limits.dns]`.
    pub dns: DnsLimits,
}

impl Limits {
    /// What fetching one list may cost.
    pub fn fetch(&self) -> fetch::Limits {
        fetch::Limits { octets: self.fetch_size as u64, time: self.fetch_time }
    }
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self { on_failure: OnFailure::Closed, recheck: false, reverse_path: true, watch: true }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 100_000,
            flows_of_one: 25_000,
            held_bytes: 64 << 10,
            held_bytes_in_all: 512 << 20,
            idle: Duration::from_secs(300),
            workers: 0,
            records: 65_536,
            fetch_size: 1 << 30,
            fetch_time: Duration::from_secs(15 * 60),
            kernel_records: 1000,
            dns: DnsLimits::default(),
        }
    }
}

pub(super) fn read_gateway(mut table: Table<'_>, report: &Report) -> GatewaySettings {
    let default = GatewaySettings::default();
    // It was read before all else: see `super::runs`.
    if let Some(user) = table.text("user").filter(|user| !is_user(&user.value)) {
        let what = format!("this host knows no user `{}`: the gateway would not start here", user.value);
        report.warning(&user.place, what, "make that user, or name another");
    }
    let words = &[("closed", OnFailure::Closed), ("open", OnFailure::Open)];
    GatewaySettings {
        on_failure: table.word("on_failure", words, default.on_failure),
        recheck: table.flag("recheck", default.recheck),
        reverse_path: table.flag("reverse_path", default.reverse_path),
        watch: table.flag("watch", default.watch),
    }
}

pub(super) fn read_limits(mut table: Table<'_>) -> Limits {
    let default = Limits::default();
    let week = Duration::from_secs(7 * 24 * 3600);
    Limits {
        flows: table.count("flows", 1..=10_000_000, default.flows),
        flows_of_one: table.count("flows_of_one", 1..=10_000_000, default.flows_of_one),
        held_bytes: table.size("held_bytes", (1 << 10)..=(1 << 20), default.held_bytes),
        held_bytes_in_all: table.size("held_bytes_in_all", (1 << 20)..=(1 << 40), default.held_bytes_in_all),
        idle: table.duration("idle", SECOND..=week, default.idle),
        workers: table.count("workers", 0..=1024, default.workers),
        records: table.count("records", 1..=(1 << 24), default.records),
        fetch_size: table.size("fetch_size", (1 << 10)..=(16 << 30), default.fetch_size),
        fetch_time: table.duration("fetch_time", SECOND..=24 * 3600 * SECOND, default.fetch_time),
        kernel_records: table.count("kernel_records", 1..=1_000_000, default.kernel_records),
        dns: table.table("dns").map(dns::read).unwrap_or_default(),
    }
}

const SECOND: Duration = Duration::from_secs(1);
