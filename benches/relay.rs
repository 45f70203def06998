//! CPU seconds per GB of the relay beside a copy loop, over loopback, all in one run.
//!
//! `cargo bench --bench relay`. `own` is the CPU time of the thread that relays; `all` that of the whole process,
//! sender and receiver included; `direct` has no relay between them and stands for plain forwarding. The ratios hold
//! on a noisy machine, the rates do not.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use tidegate::policy::snapshot::Snapshot;
use tidegate::policy::{ClientAddr, OrigDst, Transport};
use tidegate::proxy::flow::{Closing, Flow};
use tidegate::proxy::relay::{Handover, Relay, Settings};
use tidegate::proxy::worker::{self, Census};
use tidegate::telemetry::{Queue, Telemetry};

const FLOWS: usize = 8;
const ROUNDS: usize = 5;

fn main() {
    let octets = std::env::var("OCTETS").ok().and_then(|text| text.parse().ok()).unwrap_or(512 << 20);
    println!("{FLOWS} flows, {} MB each way down, {ROUNDS} rounds; medians", octets >> 20);
    println!("{:12} {:>10} {:>10} {:>9} {:>12}", "relay", "own s/GB", "all s/GB", "Gbit/s", "all/direct");
    let ways: [(&str, Way); 4] = [
        ("direct", Way::Direct),
        ("copy 16 KiB", Way::Copy(16 << 10)),
        ("copy 256 KiB", Way::Copy(256 << 10)),
        ("tidegate", Way::Tidegate),
    ];
    let mut results = vec![Vec::new(); ways.len()];
    for _ in 0..ROUNDS {
        for (way, result) in ways.iter().zip(&mut results) {
            result.push(measure(way.1, octets));
        }
    }
    let direct = median(results[0].iter().map(|r| r.all));
    for ((name, _), result) in ways.iter().zip(&results) {
        let (own, all) = (median(result.iter().map(|r| r.own)), median(result.iter().map(|r| r.all)));
        let rate = median(result.iter().map(|r| r.gbit));
        println!("{name:12} {own:10.3} {all:10.3} {rate:9.2} {:12.2}", all / direct);
    }
}

#[derive(Clone, Copy)]
enum Way {
    Direct,
    Copy(usize),
    Tidegate,
}

#[derive(Clone, Copy)]
struct Figures {
    own: f64,
    all: f64,
    gbit: f64,
}

fn measure(way: Way, octets: usize) -> Figures {
    let (clients, servers, middle) = sockets(way);
    let (all, began) = (cpu(UsageWho::RUSAGE_SELF), Instant::now());
    let relaying = std::thread::spawn(move || {
        let before = cpu(UsageWho::RUSAGE_THREAD);
        match way {
            Way::Direct => {}
            Way::Copy(size) => copy(middle, size),
            Way::Tidegate => relay(middle),
        }
        cpu(UsageWho::RUSAGE_THREAD) - before
    });
    let share = octets / FLOWS;
    let ends: Vec<_> = servers
        .into_iter()
        .map(|server| std::thread::spawn(move || send(&server, share)))
        .chain(clients.into_iter().map(|client| std::thread::spawn(move || receive(&client))))
        .collect();
    ends.into_iter().for_each(|end| end.join().unwrap());
    let own = relaying.join().unwrap();
    let gigabytes = octets as f64 / 1e9;
    Figures {
        own: own / gigabytes,
        all: (cpu(UsageWho::RUSAGE_SELF) - all) / gigabytes,
        gbit: gigabytes * 8.0 / began.elapsed().as_secs_f64(),
    }
}

type Pair = (TcpStream, TcpStream);

fn sockets(way: Way) -> (Vec<TcpStream>, Vec<TcpStream>, Vec<Pair>) {
    let mut all = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..FLOWS {
        let (client, near) = connected();
        if matches!(way, Way::Direct) {
            all.0.push(client);
            all.1.push(near);
            continue;
        }
        let (far, server) = connected();
        all.0.push(client);
        all.1.push(server);
        all.2.push((near, far));
    }
    all
}

fn connected() -> Pair {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn send(mut socket: &TcpStream, octets: usize) {
    let block = vec![7u8; 256 << 10];
    let mut left = octets;
    while left > 0 {
        let count = left.min(block.len());
        socket.write_all(&block[..count]).unwrap();
        left -= count;
    }
    socket.shutdown(Shutdown::Write).unwrap();
    let _ = socket.read(&mut [0; 1]);
}

fn receive(mut socket: &TcpStream) {
    let mut block = vec![0u8; 256 << 10];
    while socket.read(&mut block).unwrap() > 0 {}
}

fn copy(pairs: Vec<Pair>, size: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    for (client, server) in pairs {
        local.spawn_local(async move {
            let [mut client, mut server] = [client, server].map(|socket| {
                socket.set_nonblocking(true).unwrap();
                tokio::net::TcpStream::from_std(socket).unwrap()
            });
            let _ = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, size, size).await;
        });
    }
    runtime.block_on(local);
}

fn relay(pairs: Vec<Pair>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let telemetry = Telemetry::new(Queue::new(1000).0);
    let census = Arc::new(Census::default());
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let relay: Rc<Relay> = Relay::new(settings(), telemetry, Box::new(|client, _| drop(client))).unwrap();
        for (client, server) in pairs {
            client.set_nonblocking(true).unwrap();
            server.set_nonblocking(true).unwrap();
            relay.begin(Handover {
                client: client.into(),
                server: server.into(),
                held: Box::default(),
                watched: None,
                closing: closing(),
                place: census.enter([127, 0, 0, 1].into(), &limits()).unwrap(),
            });
        }
        tokio::task::spawn_local(relay.clone().run());
        while !relay.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

fn limits() -> worker::Settings {
    worker::Settings { flows_of_one: usize::MAX, flows: usize::MAX, ..worker::Settings::default() }
}

fn settings() -> Settings {
    Settings { idle: Duration::from_secs(60), connect: Duration::from_secs(60) }
}

fn closing() -> Box<Closing> {
    let nowhere = ([192, 0, 2, 1], 1).into();
    let snapshot = Arc::new(Snapshot::new("bench".into(), 1, Vec::new()));
    let flow = Flow::new(1, Transport::Tcp, ClientAddr(nowhere), OrigDst(nowhere), snapshot, Arc::default());
    flow.judge(None, &Telemetry::new(Queue::new(1).0)).closing
}

/// Seconds of CPU, user and system.
fn cpu(who: UsageWho) -> f64 {
    let usage = getrusage(who).unwrap();
    [usage.user_time(), usage.system_time()].iter().map(|t| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6).sum()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
