//! What runs inside: the steps that the environment names, each with a result on a line of its own.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use nix::sys::signal::{Signal, raise};
use socket2::{Domain, Protocol, Socket, Type};

use crate::dns::resolver::{addresses, question, read_frame, write_frame};

pub(crate) const STEPS: &str = "TIDEGATE_TEST_STEPS";
pub(crate) const RESULT: &str = "result: ";

#[test]
fn inside_the_enclosure() {
    let Ok(steps) = std::env::var(STEPS) else { return };
    for step in steps.lines() {
        let words: Vec<&str> = step.split(' ').collect();
        if let Some(result) = take(&words) {
            let mut stdout = io::stdout().lock();
            writeln!(stdout, "{RESULT}{result}").unwrap();
            stdout.flush().unwrap();
        }
    }
    std::process::exit(0);
}

fn take(words: &[&str]) -> Option<String> {
    let said = |word: &str| Some(word.to_owned());
    match words {
        ["exit", status] => std::process::exit(status.parse().unwrap()),
        ["signal", number] => {
            raise(Signal::try_from(number.parse::<i32>().unwrap()).unwrap()).unwrap();
            None
        }
        ["say", what] => said(what),
        ["wait"] => loop {
            std::thread::park();
        },
        ["copy"] => {
            io::copy(&mut io::stdin().lock(), &mut io::stdout().lock()).unwrap();
            None
        }
        ["daemon"] => {
            let own = std::env::current_exe().unwrap();
            let mut daemon = std::process::Command::new(own);
            daemon.args(["--exact", "exec::visitor::inside_the_enclosure", "--nocapture"]).env(STEPS, "wait");
            std::mem::forget(daemon.spawn().unwrap());
            said("daemon runs")
        }
        ["until_orphaned"] => {
            until_orphaned();
            said("orphaned")
        }
        ["serve", port] => {
            let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let _ = stream.read(&mut [0; 100]);
                    stream.write_all(b"heard").unwrap();
                }
            });
            said("serving")
        }
        _ => said(attempt(words)),
    }
}

/// Whether something worked: `heard`, `reached`, or how it did not.
fn attempt(words: &[&str]) -> &'static str {
    match words {
        ["resolve", name] => ask_resolver(name, false),
        ["resolve_tcp", name] => ask_resolver(name, true),
        ["tcp", host, port] => connect(address(host, port, None)),
        ["tcp4", host, port] => connect(address(host, port, Some(false))),
        ["tcp6", host, port] => connect(address(host, port, Some(true))),
        ["udp", host, port] => datagram(address(host, port, None)),
        ["udp4", host, port] => datagram(address(host, port, Some(false))),
        ["udp6", host, port] => datagram(address(host, port, Some(true))),
        ["http", host, port, name] => request(address(host, port, None), name),
        ["tcp_from", own, host, port] => connect_from(own, address(host, port, None)),
        ["udp_from", own, host, port] => datagram_from(own, address(host, port, None)),
        ["signal_group"] => refused(signal_group()),
        ["nft"] => refused(tidegate::sys::nft::NftSocket::open().and_then(|mut nft| nft.remove())),
        ["route"] => refused(
            tidegate::sys::rtnl::Rtnl::open()
                .and_then(|mut rtnl| rtnl.add_address("lo", "10.9.9.9/32".parse().unwrap())),
        ),
        ["raw_socket"] => refused(Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))),
        ["packet_socket"] => refused(Socket::new(Domain::PACKET, Type::RAW, None)),
        ["vsock"] => refused(Socket::new(Domain::VSOCK, Type::STREAM, None)),
        ["transparent"] => {
            refused(Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|socket| socket.set_ip_transparent_v4(true)))
        }
        ["host_processes"] => refused(strangers()),
        ["init_descriptors"] => refused(
            (0..64)
                .try_for_each(|number| match std::fs::read_link(format!("/proc/1/fd/{number}")) {
                    Err(_) => Ok(()),
                    Ok(_) => Err(()),
                })
                .map_or(Ok(()), |()| Err(())),
        ),
        ["init_namespace"] => refused(
            std::fs::File::open("/proc/1/ns/net")
                .and_then(|own| Ok(nix::sched::setns(own, nix::sched::CloneFlags::CLONE_NEWNET)?)),
        ),
        ["abstract_socket", name] => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
            refused(UnixStream::connect_addr(&address))
        }
        ["path_socket", path] => match UnixStream::connect(path) {
            Ok(_) => "reached",
            Err(_) => "refused",
        },
        ["descriptors"] => refused(inherited()),
        ["privileges"] => refused(privileges()),
        ["ping_is_no_echo"] => refused(ping()),
        other => panic!("no such step: {other:?}"),
    }
}

fn refused<T, E>(outcome: Result<T, E>) -> &'static str {
    if outcome.is_ok() { "DONE" } else { "refused" }
}

fn address(host: &str, port: &str, v6: Option<bool>) -> io::Result<SocketAddr> {
    let all = (host, port.parse::<u16>().unwrap()).to_socket_addrs()?;
    let mut fitting = all.filter(|address| v6.is_none_or(|v6| address.is_ipv6() == v6));
    fitting.next().ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn connect(to: io::Result<SocketAddr>) -> &'static str {
    let Ok(to) = to else { return "no such name" };
    TcpStream::connect_timeout(&to, PATIENCE).map_or_else(because, ask)
}

/// Asks a server whether it hears.
pub(crate) fn ask(stream: TcpStream) -> &'static str {
    said_to(stream, b"hello\n")
}

fn request(to: io::Result<SocketAddr>, name: &str) -> &'static str {
    let Ok(to) = to else { return "no such name" };
    let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n");
    TcpStream::connect_timeout(&to, PATIENCE).map_or_else(because, |stream| said_to(stream, request.as_bytes()))
}

fn said_to(mut stream: TcpStream, octets: &[u8]) -> &'static str {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = [0; 5];
    match stream.write_all(octets).and_then(|()| stream.read_exact(&mut answer)) {
        Ok(()) if &answer == b"heard" => "heard",
        Ok(()) => "something else",
        Err(error) => because(error),
    }
}

/// From an address of its own choice: all of IPv4 is local here.
fn connect_from(own: &str, to: io::Result<SocketAddr>) -> &'static str {
    let (Ok(to), Ok(own)) = (to, own.parse::<IpAddr>()) else { return "no such name" };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    let connected =
        socket.bind(&SocketAddr::new(own, 0).into()).and_then(|()| socket.connect_timeout(&to.into(), BRIEF));
    connected.map_or_else(because, |()| ask(socket.into()))
}

fn datagram_from(own: &str, to: io::Result<SocketAddr>) -> &'static str {
    let (Ok(to), Ok(own)) = (to, own.parse::<IpAddr>()) else { return "no such name" };
    UdpSocket::bind((own, 0)).map_or_else(because, |socket| answered_to(&socket, to, BRIEF))
}

fn datagram(to: io::Result<SocketAddr>) -> &'static str {
    let Ok(to) = to else { return "no such name" };
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    answered_to(&UdpSocket::bind(any).unwrap(), to, PATIENCE)
}

fn answered_to(socket: &UdpSocket, to: SocketAddr, patience: Duration) -> &'static str {
    socket.set_read_timeout(Some(patience)).unwrap();
    let mut answer = [0; 5];
    let heard = socket.connect(to).and_then(|()| socket.send(b"hello")).and_then(|_| socket.recv(&mut answer));
    match heard {
        Ok(_) if &answer == b"heard" => "heard",
        Ok(_) => "something else",
        Err(error) => because(error),
    }
}

/// Silence is no refusal: a program that is refused must be told.
fn because(error: io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "silence",
        _ => "refused",
    }
}

/// Asks the resolver of /etc/resolv.conf itself, so that nothing else of this machine answers.
fn ask_resolver(name: &str, over_tcp: bool) -> &'static str {
    let file = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    let server: IpAddr = file.lines().find_map(|line| line.strip_prefix("nameserver ")).unwrap().parse().unwrap();
    let query = question(name, RecordType::A);
    let answer = if over_tcp { over_stream(server, &query) } else { over_datagram(server, &query) };
    match answer.map(|octets| hickory_proto::op::Message::from_vec(&octets).unwrap()) {
        Ok(message) if addresses(&message).is_empty() => "no such name",
        Ok(_) => "heard",
        Err(_) => "no such name",
    }
}

fn over_datagram(server: IpAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((server, 53))?;
    socket.send(query)?;
    let mut answer = vec![0; 2048];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}

fn over_stream(server: IpAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((server, 53))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write_frame(&mut stream, query);
    read_frame(&mut stream).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Processes that are neither this world's first nor this one's own.
fn strangers() -> Result<(), String> {
    let own = std::process::id();
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    match pids.filter(|pid: &u32| *pid != 1 && *pid != own).count() {
        0 => Err("none".to_owned()),
        _ => Ok(()),
    }
}

/// Files and sockets that somebody outside opened.
fn inherited() -> Result<(), ()> {
    let own = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = own.filter_map(|link| Some(std::fs::read_link(link.path()).ok()?.to_string_lossy().into_owned()));
    let foreign =
        |target: &String| target.contains("socket:") || target.ends_with("passwd") || target.ends_with("records");
    if targets.filter(foreign).count() > 0 { Ok(()) } else { Err(()) }
}

fn privileges() -> Result<(), ()> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let has = |line: &str| status.lines().any(|own| own.split_whitespace().eq(line.split_whitespace()));
    if has("NoNewPrivs: 1") && has("Seccomp: 2") { Err(()) } else { Ok(()) }
}

/// A signal to the process group, which tidegate and its caller are in as well.
fn signal_group() -> io::Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(0), Signal::SIGURG)?)
}

/// Every address is local here: the kernel must not answer in the name of others.
fn ping() -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&SocketAddr::new(super::ALLOWED.parse().unwrap(), 0).into())?;
    socket.send(&[8, 0, 0, 0, 0, 1, 0, 1])?;
    io::Read::read(&mut &socket, &mut [0; 64])?;
    Ok(())
}

/// Waits until tidegate is gone: then its listeners are, and a connection that was captured is refused.
fn until_orphaned() {
    let to: SocketAddr = (super::ALLOWED.parse::<IpAddr>().unwrap(), 7000).into();
    while let Ok(stream) = TcpStream::connect_timeout(&to, PATIENCE) {
        // It was taken in before the end.
        let _ = ask(stream);
    }
}

/// An answer to an address that is not the command's would come to nobody: only what the server heard tells.
const BRIEF: Duration = Duration::from_millis(300);
/// Far beyond what anything here needs: it turns a hang into a failure, and decides nothing else.
const PATIENCE: Duration = Duration::from_secs(10);
