//! The host of an enclosed command, its resolver, and the servers of two names.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, ResponseCode};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::Type;
use tempfile::TempDir;
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::sys::rtnl::Family;

use crate::dns::resolver::{Resolver, answered, bind};
use crate::gateway::{DEADLINE, at};

pub(crate) const ALLOWED: &str = "198.51.100.1";
pub(crate) const ALLOWED_V6: &str = "2001:db8:a::1";
pub(crate) const OTHER: &str = "198.51.100.2";
pub(crate) const OTHER_V6: &str = "2001:db8:a::2";
const PORTS: [u16; 2] = [80, 7000];

pub(crate) struct Host<'a> {
    lab: &'a Lab,
    folder: TempDir,
    heard: [Arc<AtomicUsize>; 2],
    _resolver: Resolver,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: Option<i32>,
    pub(crate) results: Vec<String>,
    pub(crate) errors: String,
}

impl<'a> Host<'a> {
    pub(crate) fn new(lab: &'a Lab) -> Self {
        let heard: [Arc<AtomicUsize>; 2] = Default::default();
        for (count, host) in heard.iter().zip([1, 2]) {
            for family in Family::BOTH {
                PORTS.iter().for_each(|port| serve(lab, at(Site::A, family, host, *port), count));
            }
        }
        let resolver = Resolver::start(lab, at(Site::A, Family::V4, 53, 53), |query| vec![answer(query)]);
        // Of this thread alone, and of all that it starts: the host's resolver is the lab's.
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 198.51.100.53\noptions timeout:2 attempts:1\n").unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let place = std::fs::canonicalize("/etc/resolv.conf").unwrap();
        mount(Some(&file), &place, none, MsFlags::MS_BIND, none).unwrap();
        Self { lab, folder, heard, _resolver: resolver }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Connections and datagrams that reached the server.
    pub(crate) fn heard_by(&self, server: &str) -> usize {
        self.heard[usize::from(server == OTHER)].load(Ordering::SeqCst)
    }

    /// Runs the steps of the visitor.
    pub(crate) fn exec(&self, arguments: &[&str], steps: &[&str]) -> Done {
        self.start(arguments, steps).finish()
    }

    /// The same by way of a shell, which runs tidegate as `"$@"`.
    pub(crate) fn exec_by(&self, shell: &str, arguments: &[&str], steps: &[&str]) -> Done {
        let own = self.command(arguments, steps);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", shell, "sh"]).arg(own.get_program()).args(own.get_args());
        command.env(super::visitor::STEPS, steps.join("\n"));
        Running::start(self.on_host(command)).finish()
    }

    pub(crate) fn start(&self, arguments: &[&str], steps: &[&str]) -> Running {
        Running::start(self.command(arguments, steps))
    }

    pub(crate) fn command(&self, arguments: &[&str], steps: &[&str]) -> Command {
        let own = std::env::current_exe().unwrap();
        let test = ["--exact", "exec::visitor::inside_the_enclosure", "--nocapture", "--test-threads=1"];
        let mut command = self.enclosed(arguments, &[&[own.to_str().unwrap()], &test[..]].concat());
        command.env(super::visitor::STEPS, steps.join("\n"));
        command
    }

    /// Runs another program.
    pub(crate) fn program(&self, arguments: &[&str], program: &[&str]) -> Done {
        Running::start(self.enclosed(arguments, program)).finish()
    }

    fn enclosed(&self, arguments: &[&str], program: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("exec").args(arguments).arg("--").args(program);
        self.on_host(command)
    }

    fn on_host(&self, mut command: Command) -> Command {
        // A group of its own: a signal to the group is not the tests'.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.lab.gateway.enter(&mut command).unwrap();
        command
    }

    pub(crate) fn abstract_listener(&self, name: &str) -> UnixListener {
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        self.lab.gateway.run(|| UnixListener::bind_addr(&address).unwrap()).unwrap()
    }

    /// A socket below the host's folder.
    pub(crate) fn path_listener(&self, path: &str) -> (PathBuf, UnixListener) {
        let path = self.folder().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let listener = self.lab.gateway.run(|| UnixListener::bind(&path).unwrap()).unwrap();
        (path, listener)
    }

    /// One whose server stands in that folder below the host's, and bound it by its name alone.
    pub(crate) fn listener_from_its_folder(&self, folder: &str, name: &str) -> (PathBuf, UnixListener) {
        let folder = self.folder().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::env::set_current_dir(&folder).unwrap();
        let listener = self.lab.gateway.run(|| UnixListener::bind(name).unwrap()).unwrap();
        (folder.join(name), listener)
    }

    /// Another path below the host's folder to this file, by a mount.
    pub(crate) fn mounted(&self, file: &Path, path: &str) -> PathBuf {
        let path = self.folder().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        mount(Some(file), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        path
    }

    /// The port of a server on the host's own loopback.
    pub(crate) fn listen_on_loopback(&self) -> u16 {
        let listener = self.lab.gateway.run(|| TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || listener.incoming().for_each(|stream| reply(stream.unwrap())));
        port
    }

    pub(crate) fn ask_loopback(&self, port: u16) -> &'static str {
        let stream = self.lab.gateway.run(|| TcpStream::connect(("127.0.0.1", port)).unwrap()).unwrap();
        super::visitor::ask(stream)
    }
}

/// A started `tidegate exec`.
pub(crate) struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    results: Vec<String>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout, results: Vec::new() }
    }

    /// Waits for a result, and says what came before it.
    pub(crate) fn result(&mut self, awaited: &str) -> Vec<String> {
        let before = self.results.len();
        loop {
            let Some(result) = self.next() else { panic!("it ended without `{awaited}`: {:?}", self.results) };
            if result == awaited {
                return self.results[before..self.results.len() - 1].to_vec();
            }
        }
    }

    fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        while self.stdout.read_line(&mut line).unwrap() > 0 {
            if let Some((_, result)) = line.trim_end().split_once(super::visitor::RESULT) {
                self.results.push(result.to_owned());
                return self.results.last().cloned();
            }
            line.clear();
        }
        None
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    /// Reads until nobody holds standard output any more.
    pub(crate) fn finish(mut self) -> Done {
        while self.next().is_some() {}
        let mut errors = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        Done { status: self.child.wait().unwrap().code(), results: self.results, errors }
    }
}

fn serve(lab: &Lab, at: SocketAddr, heard: &Arc<AtomicUsize>) {
    let (tcp, udp) = lab
        .server
        .run(|| {
            let tcp: TcpListener = bind(at, Type::STREAM).into();
            socket2::SockRef::from(&tcp).listen(64).unwrap();
            (tcp, UdpSocket::from(bind(at, Type::DGRAM)))
        })
        .unwrap();
    let count = heard.clone();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
            reply(stream.unwrap());
        }
    });
    let count = heard.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::SeqCst);
            udp.send_to(b"heard", from).unwrap();
        }
    });
}

/// Answers whatever comes first.
fn reply(mut stream: TcpStream) {
    std::thread::spawn(move || {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        if stream.read(&mut [0; 2048]).is_ok_and(|count| count > 0) {
            let _ = stream.write_all(b"heard");
        }
    });
}

fn answer(query: &[u8]) -> Vec<u8> {
    let message = Message::from_vec(query).unwrap();
    match message.queries[0].name().to_ascii().to_lowercase().trim_end_matches('.') {
        "allowed.example" => answered(query, 60, ALLOWED, ALLOWED_V6),
        "other.example" => answered(query, 60, OTHER, OTHER_V6),
        "unvisited.example" => answered(query, 60, "198.51.100.3", "2001:db8:a::3"),
        _ => {
            let mut message = message.into_response();
            message.metadata.response_code = ResponseCode::NXDomain;
            message.to_vec().unwrap()
        }
    }
}
