//! tidegate: a transparent, DNS- and TLS-aware forwarding proxy that judges every flow by the name behind it.
//!
//! A flow, read top to bottom:
//!
//! ```text
//! capture (nftables TPROXY) -> intercept (original destination) -> which Network judges it
//!   -> peek (hold the first bytes, find the name) -> judge (IP verdict, domain verdict, matrix)
//!   -> act (dial the original destination and relay; or discard, reset, unreachable) -> record
//! ```
//!
//! The modules stand in layers; a module may use only those above it in this list. `tests/it/architecture.rs`
//! holds that.

pub mod name;
pub mod wire;

pub mod peek;

pub mod list;

pub mod policy;

pub mod firewall;

pub mod sys;
pub mod telemetry;

pub mod dns;
pub mod proxy;

pub mod mode;

pub mod admin;

pub mod config;

pub mod app;
pub mod cli;
