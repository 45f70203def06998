//! What `tidegate exec` costs: the start of a program, beside `unshare -Urn`, and a download, beside the same outside.
//!
//! `cargo bench --bench exec`. Medians of runs in turn. The download comes from an address of the host and is judged as
//! any flow is.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tidegate::sys::netns::{Namespace, enter_user_namespace};
use tidegate::sys::rtnl::Rtnl;

const STARTS: usize = 40;
const DOWNLOADS: usize = 5;
const SERVER: &str = "198.51.100.1:7000";
const OCTETS: &str = "TIDEGATE_BENCH_OCTETS";

fn main() {
    if let Ok(octets) = std::env::var(OCTETS) {
        return download(octets.parse().unwrap());
    }
    enter_user_namespace().unwrap();
    let host = Namespace::new().unwrap();
    let tidegate = env!("CARGO_BIN_EXE_tidegate");
    let exec = [tidegate, "exec", "--quiet", "--"];
    let closed = [tidegate, "exec", "--quiet", "--allow", "example.com", "--"];

    let ways = [&["unshare", "-Urn"][..], &exec, &closed].map(|way| [way, &["true"]].concat());
    let mut took = vec![Vec::new(); ways.len()];
    for _ in 0..STARTS {
        for (way, took) in ways.iter().zip(&mut took) {
            let began = Instant::now();
            run(&host, way, None);
            took.push(began.elapsed());
        }
    }
    let medians: Vec<Duration> = took.into_iter().map(median).collect();
    for (name, median) in ["unshare -Urn true", "exec -- true", "exec --allow NAME -- true"].iter().zip(&medians) {
        let more = median.saturating_sub(medians[0]);
        println!("{name:28} {:7.1} ms, {:5.1} ms more", milliseconds(*median), milliseconds(more));
    }

    let octets: u64 = std::env::var("OCTETS").ok().and_then(|text| text.parse().ok()).unwrap_or(1 << 30);
    serve(&host, octets);
    let own = std::env::current_exe().unwrap();
    let own = own.to_str().unwrap();
    let ways = [vec![own], [&exec[..], &[own]].concat()];
    let mut took = [Vec::new(), Vec::new()];
    for _ in 0..DOWNLOADS {
        for (way, took) in ways.iter().zip(&mut took) {
            let seconds: f64 = run(&host, way, Some(octets)).trim().parse().unwrap();
            took.push(Duration::from_secs_f64(seconds));
        }
    }
    let rate = |took| octets as f64 * 8.0 / 1e9 / median(took).as_secs_f64();
    let [outside, inside] = took.map(rate);
    println!("download outside {outside:.1} Gbit/s, inside {inside:.1} Gbit/s: {:.2}", inside / outside);
}

fn run(host: &Namespace, way: &[&str], octets: Option<u64>) -> String {
    let mut command = Command::new(way[0]);
    command.args(&way[1..]).stdin(Stdio::null());
    if let Some(octets) = octets {
        command.env(OCTETS, octets.to_string());
    }
    host.enter(&mut command).unwrap();
    let done = command.output().unwrap();
    assert!(done.status.success(), "{way:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

fn serve(host: &Namespace, octets: u64) {
    let listener = host
        .run(|| {
            Rtnl::open().unwrap().add_address("lo", "198.51.100.1/32".parse().unwrap()).unwrap();
            TcpListener::bind(SERVER).unwrap()
        })
        .unwrap();
    std::thread::spawn(move || {
        let block = vec![0; 1 << 20];
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            for _ in 0..octets >> 20 {
                // Who has gone away has failed, and says so.
                let _ = stream.write_all(&block);
            }
        }
    });
}

/// The seconds that it took, from the connection on.
fn download(octets: u64) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(SERVER.parse::<SocketAddr>().unwrap()).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut come = 0;
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        come += count as u64;
    }
    assert_eq!(come, octets >> 20 << 20);
    println!("{}", began.elapsed().as_secs_f64());
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
