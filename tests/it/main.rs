//! Integration tests: real packets between namespaces of their own.

#![allow(clippy::unwrap_used, clippy::panic)]

mod agreement;
mod architecture;
mod capture;
mod cli;
mod config;
mod copies;
mod crash;
mod dns;
mod ender;
mod endings;
mod exec;
mod failing;
mod feeds;
mod forged;
mod gateway;
mod geoip;
mod hand_over;
mod hostile;
mod inside;
mod kernel;
mod matrix;
mod mmdb;
mod namespaces;
mod nat;
mod privileges;
mod quic;
mod recheck;
mod running;
mod sidecar;
mod slow;
mod soak;
mod tcp;
mod telemetry;
mod web;
