//! What a running gateway may still do, as the kernel tells it of every thread.
//!
//! ```text
//! client -- gateway (tidegate run) -- server
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::{Signal, kill_process};
use tidegate::mode::demo::client::{Saw, ask_http};
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, Gateway, at, configuration, request, servers};
use crate::inside::in_lab;

/// CAP_NET_ADMIN (12) and CAP_NET_RAW (13).
const KEPT: &str = "0000000000003000";

#[test]
fn every_thread_keeps_two_capabilities_and_no_way_to_more() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let gateway = Gateway::start(lab, &plain());
        assert_serves(lab, &gateway, "allowed.example", true);
        let threads = threads(&gateway);
        assert!(threads.len() > 3, "{threads:#?}");
        for (thread, status) in threads {
            // Who reads what the kernel has judged needs none.
            let held = if thread == "kernel-records" { "0000000000000000" } else { KEPT };
            for (set, expected) in [("CapPrm", held), ("CapEff", held), ("CapBnd", KEPT)] {
                assert_eq!(status[set], expected, "{set} of {thread}");
            }
            for set in ["CapInh", "CapAmb"] {
                assert_eq!(status[set], "0000000000000000", "{set} of {thread}");
            }
            // A filter is in force (2), and no program that is started gains anything.
            assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("1", "2"), "{thread}");
        }
        gateway.stop();
    });
}

#[test]
fn a_reload_reads_what_stands_beside_its_files_and_tells_why_nothing_else() {
    in_lab(|lab| {
        let (_origins, _) = servers(lab);
        let gateway = Gateway::start(lab, &plain());
        fs::write(gateway.path("more.txt"), "unlisted.example\n").unwrap();
        gateway.rewrite(&with_list(&gateway.path("more.txt")));
        gateway.reload();
        assert_serves(lab, &gateway, "unlisted.example", false);

        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("more.txt"), "allowed.example\n").unwrap();
        gateway.rewrite(&with_list(&elsewhere.path().join("more.txt")));
        kill_process(gateway.enforcer.pid(), Signal::HUP).unwrap();
        gateway.enforcer.message(|line| line.contains("others need a restart"), DEADLINE).unwrap();
        assert_serves(lab, &gateway, "unlisted.example", false);
        assert_serves(lab, &gateway, "allowed.example", true);
        gateway.stop();
    });
}

fn plain() -> String {
    configuration("tcp-reset", "type = \"prefer-both\"").replace("[[policy]]", "[gateway]\nwatch = false\n[[policy]]")
}

/// [`plain`] with one more list of blocked names.
fn with_list(file: &Path) -> String {
    let list = format!("[[list]]\nname = \"more\"\nverdict = \"block\"\nfile = \"{}\"\n[[policy]]", file.display());
    plain().replace("[[policy]]", &list).replace("\"blocked-names\"]", "\"blocked-names\", \"more\"]")
}

fn assert_serves(lab: &Lab, gateway: &Gateway, name: &str, passes: bool) {
    for family in Family::BOTH {
        let request = request(family, at(Site::A, family, 1, 80), Some(name));
        let outcome = lab.client.run(|| ask_http(&request)).unwrap();
        assert_eq!(matches!(outcome.saw, Saw::Answer(_)), passes, "{name}: {:#?}", gateway.enforcer.messages());
    }
}

/// `/proc/PID/task/*/status`, by the names of the threads.
fn threads(gateway: &Gateway) -> Vec<(String, BTreeMap<String, String>)> {
    let tasks = format!("/proc/{}/task", gateway.enforcer.pid().as_raw_nonzero());
    let read = |task: std::io::Result<fs::DirEntry>| {
        let text = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |line: &str| line.split_once(':').map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
        let status: BTreeMap<_, _> = text.lines().filter_map(field).collect();
        (status["Name"].clone(), status)
    };
    fs::read_dir(tasks).unwrap().map(read).collect()
}
