//! Runs a test in a process of its own that is root of its own namespaces.
//!
//! The kernel lets only a single-threaded process enter a user namespace, and `cargo test` runs tests as threads. So
//! a test starts its own binary again, filtered to itself; between fork and exec that child becomes root of a new user
//! namespace. As root the child is started the same way, only without the user namespace.
//!
//! A machine that forbids namespaces fails the test where `CI` is set, and is told aloud everywhere else.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tidegate::mode::demo::lab::Lab;
use tidegate::sys::netns::{self, Unavailable};

/// Runs the body of the test that calls it, with a [`Lab`] of its own. A test calls it as its only statement.
pub(crate) fn in_lab(body: impl FnOnce(&Lab)) {
    in_namespaces(|| match Lab::new() {
        Ok(lab) => body(&lab),
        Err(unavailable) => report(&unavailable),
    });
}

/// Runs the body of the test that calls it as root of namespaces of its own.
pub(crate) fn in_namespaces(body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    // The test harness names a test's thread after the test.
    let name = std::thread::current().name().unwrap().to_owned();
    let mut command = Command::new("/proc/self/exe");
    // Also those that run only when asked for: this one was.
    command.args(["--exact", &name, "--include-ignored", "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    netns::in_user_namespace(&mut command);
    match command.spawn() {
        Ok(child) => judge(&name, child),
        Err(e) => report(&Unavailable::user(e)),
    }
}

fn judge(name: &str, mut child: Child) {
    let group = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (finished, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        let reader = std::thread::spawn(move || read_all(&mut stderr));
        let mut said = read_all(&mut stdout);
        said.push_str(&reader.join().unwrap());
        let _ = finished.send((child.wait(), said));
    });
    let ended = outcome.recv_timeout(deadline());
    // Whatever the test left running goes with it.
    let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    match ended {
        Ok((status, said)) => assert_passed(name, status.unwrap(), &said),
        Err(_) => {
            let deadline = deadline();
            let said = outcome.recv_timeout(DEADLINE).map(|(_, said)| said).unwrap_or_default();
            panic!("{name} did not end within {deadline:?}; it said:\n{said}");
        }
    }
}

fn assert_passed(name: &str, status: ExitStatus, said: &str) {
    assert!(
        status.success() && said.contains("1 passed"),
        "{name} failed inside its namespaces (status {:?}, signal {:?}):\n{said}",
        status.code(),
        status.signal()
    );
    print!("{said}");
}

fn report(unavailable: &Unavailable) {
    assert!(std::env::var_os("CI").is_none(), "{unavailable}");
    // Not by a macro: what those write is hidden where a test passes.
    let note = format!("SKIPPED, NOTHING WAS TESTED: {unavailable}\n");
    std::io::stderr().write_all(note.as_bytes()).unwrap();
}

fn read_all(from: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn deadline() -> Duration {
    let given = std::env::var("TIDEGATE_TEST_DEADLINE").ok().and_then(|seconds| seconds.parse().ok());
    given.map_or(DEADLINE, Duration::from_secs)
}

const INSIDE: &str = "TIDEGATE_TEST_INSIDE";
/// Far beyond what any test needs, if `TIDEGATE_TEST_DEADLINE` does not give more seconds: it ends a test that hangs, and decides nothing else.
const DEADLINE: Duration = Duration::from_secs(120);
