//! What a gateway remembers of UDP flows is bounded, and a flood of them starves nobody.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hickory_proto::rr::RecordType;
use tidegate::mode::demo::client::{Saw, Trust, ask_tls};
use tidegate::mode::demo::enforcer::Ended;
use tidegate::mode::demo::origin::Origins;
use tidegate::sys::udp::Outbox;

use super::*;
use crate::dns::resolver::{Resolver, addresses, ask, honest, question};
use crate::gateway::request;

/// client -- gateway (remembers eight flows) -- server
#[test]
fn the_longest_settled_flow_makes_room_and_one_that_awaits_its_verdict_never_does() {
    in_lab(|lab| {
        let gateway = gateway(lab, "discard", "timeout = \"5s\"\n[limits]\nflows = 8\nworkers = 1");
        let server = SocketAddr::new(Site::A.address(Family::V4, 24), 443);
        let listener = lab.server.run(|| listen(Family::V4)).unwrap();
        let hello = flight("www.google.com");
        let mut buffer = [0; 2000];
        for _ in 0..20 {
            let client = lab.client.run(|| client_socket(Family::V4, server)).unwrap();
            client.send(&hello).unwrap();
            assert_eq!(listener.recv(&mut buffer).unwrap(), hello.len());
        }
        let waiting: Vec<_> = (0..8).map(|_| lab.client.run(|| client_socket(Family::V4, server)).unwrap()).collect();
        waiting.iter().for_each(|client| assert_eq!(client.send(&hello[..700]).unwrap(), 700));
        let late = lab.client.run(|| client_socket(Family::V4, server)).unwrap();
        late.send(&hello).unwrap();
        for client in &waiting {
            let port = client.local_addr().unwrap().port();
            let verdict = gateway.record(|r| r["source_port"] == port && r["verdict"] == "block", DEADLINE);
            assert_eq!(verdict.expect("a verdict when the time is over")["reason"], "UNREADABLE");
        }
        // They are settled: there is room again.
        late.send(&hello).unwrap();
        let (length, from) = listener.recv_from(&mut buffer).unwrap();
        assert_eq!((length, from.port()), (hello.len(), late.local_addr().unwrap().port()));
        assert_eq!(counted(&gateway.stop().unwrap(), "refused_by_limit"), 1);
    });
}

/// client -- gateway -- server: 1,030 flows of one address that show nothing, and one of another.
#[test]
fn one_client_cannot_take_the_room_of_another() {
    in_lab(|lab| {
        let gateway = gateway(lab, "discard", "timeout = \"5s\"\n[limits]\nworkers = 1");
        let server = SocketAddr::new(Site::A.address(Family::V4, 25), 443);
        let listener = lab.server.run(|| listen(Family::V4)).unwrap();
        let hello = flight("www.google.com");
        let send = |host, port, payload: &[u8]| {
            let from = SocketAddr::new(client_address(Family::V4, host), port);
            let once = || {
                let mut outbox = Outbox::new(None).unwrap();
                outbox.push(from, server, payload);
                outbox.flush();
            };
            lab.client.run(once).unwrap();
        };
        for port in 0..1_030 {
            send(5, 20_000 + port, &hello[..100]);
        }
        let mut buffer = [0; 2000];
        send(6, 20_000, &hello);
        let (_, from) = listener.recv_from(&mut buffer).unwrap();
        assert_eq!(from.ip().to_canonical(), client_address(Family::V4, 6));
        let first = |r: &serde_json::Value| r["source_port"] == 20_000 && r["verdict"] == "block";
        gateway.record(first, DEADLINE).expect("a verdict when the time is over");
        send(5, 40_000, &hello);
        let (_, from) = listener.recv_from(&mut buffer).unwrap();
        assert_eq!(from.port(), 40_000, "its flows are settled: there is room again");
        assert_eq!(counted(&gateway.stop().unwrap(), "refused_by_limit"), 6);
    });
}

/// client -- gateway -- server: more octets of one address than are held of all, and the two datagrams of another's hello.
#[test]
fn one_client_cannot_take_the_memory_of_another() {
    in_lab(|lab| {
        let gateway = gateway(lab, "discard", "packets = 1000\ntimeout = \"60s\"\n[limits]\nworkers = 1");
        let server = SocketAddr::new(Site::A.address(Family::V4, 27), 443);
        let listener = lab.server.run(|| listen(Family::V4)).unwrap();
        let bind = |host| UdpSocket::bind((client_address(Family::V4, host), 0)).unwrap();
        let greedy: Vec<_> = lab.client.run(|| (0..350).map(|_| bind(5)).collect()).unwrap();
        let large = greedy.iter().chain(&greedy).map(|socket| (socket, 60_000));
        // What is left then is too little for a large one.
        let small = greedy.iter().map(|socket| (socket, 1_000));
        for (socket, octets) in large.chain(small) {
            socket.send_to(&vec![0; octets], server).unwrap();
            // The gateway's ear is small: what it loses takes no memory.
            std::thread::sleep(Duration::from_millis(1));
        }
        let other = lab.client.run(|| bind(6)).unwrap();
        let hello = flights("www.google.com", 3);
        hello.iter().for_each(|datagram| assert_eq!(other.send_to(datagram, server).unwrap(), datagram.len()));
        let mut buffer = [0; 2000];
        for _ in &hello {
            let (_, from) = listener.recv_from(&mut buffer).unwrap();
            assert_eq!(from.ip().to_canonical(), client_address(Family::V4, 6));
        }
        assert!(counted(&gateway.stop().unwrap(), "datagrams_dropped") > 0, "there was too much of it");
    });
}

/// client -- gateway -- server: a hello that never ends, and what is sent behind it.
#[test]
fn a_flow_of_which_too_much_would_be_held_is_unreadable() {
    in_lab(|lab| {
        let tap = Tap::at_server(lab).unwrap();
        let gateway = gateway(lab, "discard", "timeout = \"30s\"");
        let server = SocketAddr::new(Site::A.address(Family::V4, 26), 443);
        let client = lab.client.run(|| client_socket(Family::V4, server)).unwrap();
        client.send(&flights("www.google.com", 3)[2]).unwrap();
        let mut filler = numbered(1);
        filler.resize(1200, 0x9a);
        for _ in 0..120 {
            client.send(&filler).unwrap();
        }
        let record = gateway.record(|r| r["destination"] == server.ip().to_string(), DEADLINE).unwrap();
        assert_eq!((&record["verdict"], &record["reason"]), (&"block".into(), &"UNREADABLE".into()), "{record}");
        assert!(record["detail"].as_str().unwrap().contains("longer than what is held"), "{record}");
        assert_eq!(tap.count(lab, server).unwrap(), 0);
    });
}

/// client -- gateway -- server: 4,000 flows a second of addresses that nobody has, beside clients of every kind.
#[test]
fn a_flood_of_spoofed_flows_starves_neither_tcp_nor_dns_nor_quic() {
    in_lab(|lab| {
        let gateway = gateway(lab, "discard", "");
        let origin = Origin::start(lab);
        let origins = Origins::start(lab, &["good.example"]).unwrap();
        let trust = Trust::new(origins.certificate(), "good.example").unwrap();
        let resolver = Resolver::start(lab, SocketAddr::new(Site::A.address(Family::V4, 33), 53), honest);
        let every_kind_is_served = || {
            let server = SocketAddr::new(Site::A.address(Family::V4, 31), 443);
            let request = request(Family::V4, server, Some("good.example"));
            let outcome = lab.client.run(|| ask_tls(&request, &trust)).unwrap();
            assert!(matches!(outcome.saw, Saw::Answer(_)), "{outcome:?}");
            let answer = ask(lab, resolver.at, &question("good.example", RecordType::A));
            assert_eq!(addresses(&answer).len(), 1);
            let client = Client::new(lab, &origin, Family::V4);
            let connection = client.connect(server, "good.example").unwrap();
            client.echo(&connection, 1000);
        };
        let (over, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| lab.client.run(|| flood(&sent, &over)).unwrap());
            while sent.load(Ordering::Relaxed) < ENOUGH {
                every_kind_is_served();
            }
            over.store(true, Ordering::Relaxed);
        });
        every_kind_is_served();
        let ended = gateway.stop().unwrap();
        assert!(ended.status.success());
        assert!(counted(&ended, "flows") >= ENOUGH as u64, "the flood has reached the gateway");
    });
}

/// Whole hellos that pass, whole ones that do not, and halves that await the rest, 4,000 a second.
fn flood(sent: &AtomicUsize, over: &AtomicBool) {
    const A_SECOND: usize = 4_000;
    let hellos = ["www.google.com", "www.youtube.com"].map(flight);
    let server = SocketAddr::new(Site::A.address(Family::V4, 30), 443);
    let mut outbox = Outbox::new(None).unwrap();
    let begun = std::time::Instant::now();
    while !over.load(Ordering::Relaxed) {
        let due = (begun.elapsed().as_secs_f64() * A_SECOND as f64) as usize;
        for n in sent.load(Ordering::Relaxed)..due {
            let from = SocketAddr::new([10, 1, 0, 40 + (n % 200) as u8].into(), 1_024 + (n / 200 % 60_000) as u16);
            let payload = if n % 3 == 0 { &hellos[0][..700] } else { &hellos[n % 2] };
            outbox.push(from, server, payload);
        }
        outbox.flush();
        sent.fetch_max(due, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Three seconds of it.
const ENOUGH: usize = 12_000;

/// What the gateway counted, by its last words.
pub(super) fn counted(ended: &Ended, counter: &str) -> u64 {
    let last = ended.messages.iter().find(|line| line.contains("ended:")).expect("the gateway's last words");
    let value = last.split([' ', ',']).find_map(|word| word.strip_prefix(counter)?.strip_prefix('='));
    value.map_or(0, |value| value.parse().unwrap())
}
