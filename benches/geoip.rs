//! A database of a million networks: reading it, and what a rule of its codes costs.
//!
//! `cargo bench --bench geoip` (`NETWORKS` sets another number). The file is made up: two hundred codes by turns, so
//! that no two networks join, half of them IPv6.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/it/mmdb.rs"]
mod mmdb;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use ipnet::IpNet;
use mmdb::{Mmdb, Record};
use tidegate::list::geoip::{Code, Country, Database, Kind};
use tidegate::policy::IpVerdict;
use tidegate::policy::rules::GeoRule;

fn main() {
    let count: u32 = std::env::var("NETWORKS").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let octets = Mmdb { record_size: 28, aliases: true, ..Mmdb::new("Bench", (0..count).map(network)) }.octets();
    println!("{count} networks, a file of {} octets", octets.len());
    let begun = Instant::now();
    let database = Arc::new(Database::read(&octets, Kind::Country).unwrap());
    println!("read in {:.2?}: {} ranges", begun.elapsed(), database.len());
    for codes in [1, 20, 200] {
        let named = (0..codes).map(|number| Code::Country(Country::of(&code(number)).unwrap())).collect();
        let begun = Instant::now();
        let rule = GeoRule::new(IpVerdict::Block, named, database.clone());
        let took = begun.elapsed();
        let prefixes = &rule.addresses.prefixes;
        println!("a rule of {codes}: {} ranges, {} octets, made in {took:.2?}", prefixes.len(), prefixes.footprint());
        let now = SystemTime::now();
        let asked: Vec<IpAddr> = (0..1_000_000).map(|n| network(n * 7 % count).0.addr()).collect();
        let begun = Instant::now();
        let held = asked.iter().filter(|address| rule.addresses.holds_address(**address, now)).count();
        println!("  asked for an address in {:.2?}, {held} held", begun.elapsed() / 1_000_000);
    }
}

fn network(number: u32) -> (IpNet, Record) {
    let net = match number % 2 {
        0 => IpNet::new(Ipv4Addr::from_bits(0x0100_0000 + number / 2 * 1024).into(), 22),
        _ => IpNet::new(Ipv6Addr::from_bits((0x2a00_0000 + u128::from(number / 2)) << 96).into(), 32),
    };
    (net.unwrap(), Record::Country(code(number / 2 % 200)))
}

fn code(number: u32) -> String {
    [b'A' + u8::try_from(number / 26).unwrap(), b'A' + u8::try_from(number % 26).unwrap()]
        .map(char::from)
        .iter()
        .collect()
}
