//! Sinks that fail, each beside flows that go on: a reader that is stuck, a full disk, a syslog server that is away.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use tidegate::sys::rtnl::Family;

use super::{be_blocked, pass, with_telemetry};
use crate::gateway::{DEADLINE, Gateway, servers};
use crate::inside::in_lab;

/// Standard output is a socket that nobody reads until the end.
#[test]
fn a_stuck_reader_holds_up_no_flow_and_no_other_sink_and_is_told_what_it_missed() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("records.jsonl");
        let text = with_telemetry(&format!(
            "[[telemetry.sink]]\nto = \"stdout\"\nrecords = 5\n[[telemetry.sink]]\nto = \"file\"\npath = \"{}\"\n",
            file.display()
        ));
        let config = folder.path().join("tidegate.toml");
        std::fs::write(&config, text).unwrap();
        let (stuck, theirs) = UnixStream::pair().unwrap();
        // Room for a few records, and no more.
        socket2::SockRef::from(&theirs).set_send_buffer_size(1).unwrap();
        let gateway = start_with_output(lab, folder.path(), &config, theirs);

        let mut flows = 0;
        let deadline = Instant::now() + DEADLINE;
        // Two records each.
        while dropped(&gateway.status(), "stdout") < 20 {
            assert!(Instant::now() < deadline);
            Family::BOTH.iter().for_each(|family| _ = pass(lab, *family));
            flows += 2;
        }
        wait_for(|| count(&file, "end") == flows);
        assert_eq!(dropped(&gateway.status(), &file.display().to_string()), 0);

        // It reads again.
        let reader = std::thread::spawn(move || BufReader::new(stuck).lines().map(Result::unwrap).collect::<Vec<_>>());
        wait_for(|| waiting(&gateway.status(), "stdout") == 0);
        let missed = dropped(&gateway.status(), "stdout");
        pass(lab, Family::V4);
        gateway.stop();
        let lines: Vec<Value> = reader.join().unwrap().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told: u64 = lines.iter().filter(|line| line["reason"] == "RECORDS_DROPPED").map(told_count).sum();
        let total = std::fs::read_to_string(&file).unwrap().lines().count();
        let own = lines.iter().filter(|line| line["reason"] != "RECORDS_DROPPED").count();
        assert!(told >= missed && own + usize::try_from(told).unwrap() == total, "{own} and {told} of {total}");
    });
}

#[test]
fn a_reader_that_stays_stuck_does_not_keep_the_gateway_from_ending() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("tidegate.toml");
        std::fs::write(&config, with_telemetry("[[telemetry.sink]]\nto = \"stdout\"\nrecords = 5\n")).unwrap();
        let (stuck, theirs) = UnixStream::pair().unwrap();
        socket2::SockRef::from(&theirs).set_send_buffer_size(1).unwrap();
        let gateway = start_with_output(lab, folder.path(), &config, theirs);
        while dropped(&gateway.status(), "stdout") < 20 {
            pass(lab, Family::V6);
        }
        let messages = gateway.stop();
        assert!(messages.iter().any(|line| line.contains("the sink is stuck")), "{messages:#?}");
        drop(stuck);
    });
}

/// A file on a small disk of its own, which something else fills.
#[test]
fn a_full_disk_makes_records_wait_and_no_flow_and_no_line_is_torn() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(Some("none"), "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        let file = disk.join("records.jsonl");
        let lines = format!("[[telemetry.sink]]\nto = \"file\"\npath = \"{}\"\nrecords = 100\n", file.display());
        let gateway = Gateway::start(lab, &with_telemetry(&lines));
        let socket = gateway.folder().join("tidegate.sock");
        let sink = file.display().to_string();

        let ballast = disk.join("ballast");
        // What fits: writing more fails.
        let _ = std::fs::write(&ballast, vec![0; 60 << 10]);
        let mut flows = 0;
        while dropped(&status_of(&socket), &sink) == 0 {
            pass(lab, Family::BOTH[flows % 2]);
            be_blocked(lab, Family::BOTH[flows % 2]);
            flows += 1;
            assert!(flows < 1000);
        }
        let failing = |status: &Value| row(status, &sink)["failing"].as_bool().unwrap();
        wait_for(|| failing(&status_of(&socket)));

        std::fs::remove_file(&ballast).unwrap();
        wait_for(|| !failing(&status_of(&socket)) && waiting(&status_of(&socket), &sink) == 0);
        let lost = dropped(&status_of(&socket), &sink);
        gateway.stop();
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
        let told: u64 = lines.iter().filter(|line| line["reason"] == "RECORDS_DROPPED").map(told_count).sum();
        assert_eq!(told, lost);
        let records = lines.iter().filter(|line| line["kind"] != "event").count() as u64;
        // A verdict and an end of each that passed, a verdict of each that did not.
        assert_eq!(records + lost, 3 * flows as u64);
        umount(&disk).unwrap();
    });
}

#[test]
fn a_syslog_server_that_was_away_gets_every_record_when_it_comes() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let lines = "[[telemetry.sink]]\nto = \"syslog-tcp\"\nserver = \"127.0.0.1:6514\"\nfacility = \"local3\"\n\
                     [[telemetry.sink]]\nto = \"stdout\"\n";
        let gateway = Gateway::start(lab, &with_telemetry(lines));
        let blocked = Family::BOTH.map(|family| be_blocked(lab, family));
        let passed = Family::BOTH.map(|family| pass(lab, family));
        gateway.enforcer.message(|line| line.contains("records cannot be written, and wait"), DEADLINE).unwrap();

        let server = lab.gateway.run(|| TcpListener::bind("127.0.0.1:6514")).unwrap().unwrap();
        let (connection, _) = server.accept().unwrap();
        connection.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut reader = BufReader::new(connection);
        let mut messages: Vec<(String, Value)> = Vec::new();
        while messages.iter().filter(|(_, record)| record["kind"] == "end").count() < 2 {
            messages.push(syslog_message(&mut reader));
        }
        for (sources, priority) in [(&blocked, "<156>1"), (&passed, "<158>1")] {
            for source in sources {
                let (head, _) = messages
                    .iter()
                    .find(|(_, record)| crate::gateway::is_from(record, *source))
                    .unwrap_or_else(|| panic!("{source}: {messages:#?}"));
                assert_eq!(head.split(' ').next(), Some(priority), "{head}");
            }
        }
        gateway.stop();
    });
}

#[test]
fn allowed_flows_are_sampled_whole_and_blocked_ones_never() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let gateway = Gateway::start(lab, &with_telemetry("allowed = 0\n"));
        let passed: Vec<_> = Family::BOTH.iter().map(|family| pass(lab, *family)).collect();
        let blocked = Family::BOTH.map(|family| be_blocked(lab, family));
        let ended = gateway.stop();
        let records = ended.records();
        let told = |source| records.iter().filter(|record| crate::gateway::is_from(record, source)).count();
        assert_eq!(passed.into_iter().map(told).sum::<usize>(), 0, "{records:#?}");
        assert_eq!(blocked.map(told), [1, 1]);
        let counted = ended.messages.iter().any(|line| line.contains("records_left_out=4"));
        assert!(counted, "{:#?}", ended.messages);
    });
}

/// The header of a message and the record in it.
fn syslog_message(reader: &mut impl BufRead) -> (String, Value) {
    let mut length = Vec::new();
    reader.read_until(b' ', &mut length).unwrap();
    let length: usize = std::str::from_utf8(length.trim_ascii()).unwrap().parse().unwrap();
    let mut message = vec![0; length];
    reader.read_exact(&mut message).unwrap();
    let message = String::from_utf8(message).unwrap();
    let (head, json) = message.split_once(" - {").unwrap();
    let record: Value = serde_json::from_str(&format!("{{{json}")).unwrap();
    let words: Vec<_> = head.split(' ').collect();
    assert_eq!((words[1], words[2], words[3]), (record["time"].as_str().unwrap(), "edge-1", "tidegate"), "{head}");
    assert_eq!(words[5], record["kind"], "{head}");
    (head.to_owned(), record)
}

/// A gateway whose standard output goes elsewhere.
struct Elsewhere {
    child: std::process::Child,
    socket: std::path::PathBuf,
    messages: std::thread::JoinHandle<Vec<String>>,
}

fn start_with_output(
    lab: &tidegate::mode::demo::lab::Lab,
    folder: &Path,
    config: &Path,
    output: UnixStream,
) -> Elsewhere {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.arg("run").arg("--config").arg(config).env("RUNTIME_DIRECTORY", folder);
    command.stdout(std::os::fd::OwnedFd::from(output)).stderr(std::process::Stdio::piped());
    lab.gateway.enter(&mut command).unwrap();
    let mut child = command.spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while line.trim() != "ready" {
        line.clear();
        assert!(errors.read_line(&mut line).unwrap() > 0, "it did not start");
    }
    let messages = std::thread::spawn(move || errors.lines().map_while(Result::ok).collect());
    let socket = folder.join("tidegate.sock");
    wait_for(|| socket.exists());
    Elsewhere { child, socket, messages }
}

impl Elsewhere {
    fn status(&self) -> Value {
        status_of(&self.socket)
    }

    fn stop(mut self) -> Vec<String> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        self.messages.join().unwrap()
    }
}

fn status_of(socket: &Path) -> Value {
    let answer = tidegate::admin::client::ask(socket, "GET", "/status", DEADLINE).unwrap();
    serde_json::from_slice(&answer.body).unwrap()
}

fn row<'a>(status: &'a Value, sink: &str) -> &'a Value {
    let rows = status["sinks"].as_array().unwrap();
    rows.iter().find(|row| row["sink"] == sink).unwrap_or_else(|| panic!("{sink}: {rows:#?}"))
}

fn dropped(status: &Value, sink: &str) -> u64 {
    row(status, sink)["dropped"].as_u64().unwrap()
}

fn waiting(status: &Value, sink: &str) -> u64 {
    row(status, sink)["waiting"].as_u64().unwrap()
}

fn told_count(event: &Value) -> u64 {
    event["count"].as_u64().unwrap()
}

/// Records of a kind in a file.
fn count(file: &Path, kind: &str) -> usize {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().filter(|line| line.contains(&format!("\"kind\":\"{kind}\""))).count()
}

fn wait_for(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to be");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
