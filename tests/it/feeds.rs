//! Lists that become others while a gateway runs.
//!
//! ```text
//! client -- gateway (tidegate run, and the web server that it fetches from) -- server
//! ```

use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use tempfile::TempDir;
use tidegate::mode::demo::client::{Saw, ask_http, connect};
use tidegate::mode::demo::enforcer::StartError;
use tidegate::mode::demo::lab::{Lab, Site};
use tidegate::sys::rtnl::Family;

use crate::gateway::{DEADLINE, Gateway, at, configuration, family_of, listen, request, servers};
use crate::inside::in_lab;
use crate::web::{Answer, Web};

const NEWS: &str = "a list is in force anew";

/// A configuration in which the list `feed` blocks what `source` gives.
fn with_feed(source: &str) -> String {
    let list = format!("[[list]]\nname = \"feed\"\nverdict = \"block\"\n{source}\n[[policy]]");
    let text = configuration("tcp-reset", "type = \"prefer-both\"").replace("[[policy]]", &list);
    text.replace("\"blocked-names\"]", "\"blocked-names\", \"feed\"]")
}

fn fetched(web: &Web, refresh: &str) -> String {
    with_feed(&format!("url = \"{}\"\nrefresh = \"{refresh}\"", web.url()))
}

fn start(lab: &Lab, text: &str, cache: &TempDir) -> Result<Gateway, StartError> {
    let adjust = |command: &mut Command| {
        command.env("CACHE_DIRECTORY", cache.path().join("cache"));
    };
    Gateway::start_with(lab, text, adjust)
}

fn web(lab: &Lab) -> Web {
    lab.gateway.run(Web::start).unwrap()
}

/// Enough names for a fall to a few to be noticed, and `more`.
fn names(more: &[&str]) -> String {
    let names: String = (0..50).map(|i| format!("n{i}.example\n")).collect();
    names + &more.iter().map(|name| format!("{name}\n")).collect::<String>()
}

fn saw(lab: &Lab, family: Family, name: &str) -> Saw {
    let request = request(family, at(Site::A, family, 1, 80), Some(name));
    lab.client.run(|| ask_http(&request)).unwrap().saw
}

fn assert_blocked(lab: &Lab, name: &str) {
    for family in Family::BOTH {
        assert_eq!(saw(lab, family, name), Saw::Reset, "{name}");
    }
}

fn assert_passes(lab: &Lab, name: &str) {
    for family in Family::BOTH {
        let saw = saw(lab, family, name);
        assert!(matches!(saw, Saw::Answer(_)), "{name}: {saw:?}");
    }
}

/// Waits until this is said after the first `passed` messages.
fn said(gateway: &Gateway, passed: usize, what: &str) -> String {
    let said = gateway.enforcer.message_after(passed, |line| line.contains(what), DEADLINE);
    said.unwrap_or_else(|| panic!("{what}: {:#?}", gateway.enforcer.messages()))
}

#[test]
fn what_a_feed_becomes_judges_new_flows_and_no_flow_fails_meanwhile() {
    in_lab(|lab| {
        let ((_origins, _), web, cache) = (servers(lab), web(lab), TempDir::new().unwrap());
        web.answer(Answer::file(&names(&[])));
        let gateway = start(lab, &fetched(&web, "1s"), &cache).unwrap_or_else(|e| panic!("{e}"));
        assert_passes(lab, "unlisted.example");

        let (ends, flows) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    assert_passes(lab, "allowed.example");
                    flows.fetch_add(2, Ordering::Relaxed);
                }
            });
            for (more, blocked) in [(&["unlisted.example"][..], true), (&[], false), (&["unlisted.example"], true)] {
                let passed = gateway.enforcer.messages().len();
                web.answer(Answer::file(&names(more)));
                said(&gateway, passed, NEWS);
                if blocked {
                    assert_blocked(lab, "unlisted.example");
                } else {
                    assert_passes(lab, "unlisted.example");
                }
                assert_blocked(lab, "n7.example");
            }
            ends.store(true, Ordering::Relaxed);
            other.join().unwrap();
        });
        assert!(flows.into_inner() > 0);
        let ended = gateway.stop();
        let last = ended.messages.iter().rfind(|line| line.contains("ended: ")).unwrap();
        assert!(last.contains("lists_replaced=3"), "{last}");
    });
}

#[test]
fn a_feed_that_fails_is_said_and_counted_and_goes_on_judging() {
    in_lab(|lab| {
        let ((_origins, _), web, cache) = (servers(lab), web(lab), TempDir::new().unwrap());
        web.answer(Answer::file(&names(&["unlisted.example"])));
        let gateway = start(lab, &fetched(&web, "1s"), &cache).unwrap_or_else(|e| panic!("{e}"));
        for (answer, why) in [
            (Answer::with("503 Service Unavailable", "", ""), "the server answers 503"),
            (Answer::file(&names(&[])).cut(5), "it was cut short"),
            (Answer::file("only.example\n"), "it shrank from 51 entries to 1"),
            (Answer::file("<html>Sign in</html>\n"), "it is a web page"),
        ] {
            let passed = gateway.enforcer.messages().len();
            web.answer(answer);
            let line = said(&gateway, passed, why);
            assert!(line.contains("the last good copy stays") && line.contains("feed"), "{line}");
            assert_blocked(lab, "unlisted.example");
        }
        let ended = gateway.stop();
        assert!(!ended.messages.iter().any(|line| line.contains(NEWS)), "{:#?}", ended.messages);
        assert!(ended.messages.iter().any(|line| line.contains("fetches_failed=")), "{:#?}", ended.messages);
    });
}

#[test]
fn a_restart_without_the_network_serves_the_last_good_copy_and_a_first_start_fails() {
    in_lab(|lab| {
        let ((_origins, _), web, cache) = (servers(lab), web(lab), TempDir::new().unwrap());
        web.answer(Answer::file(&names(&["unlisted.example"])));
        let text = fetched(&web, "1s");
        start(lab, &text, &cache).unwrap_or_else(|e| panic!("{e}")).stop();
        lab.gateway.run(|| drop(web)).unwrap();

        let gateway = start(lab, &text, &cache).unwrap_or_else(|e| panic!("{e}"));
        assert_blocked(lab, "unlisted.example");
        said(&gateway, 0, "the last good copy stays");
        assert_blocked(lab, "unlisted.example");
        gateway.stop();

        let refused = start(lab, &text, &TempDir::new().unwrap()).map(drop).unwrap_err();
        assert!(refused.messages.iter().any(|line| line.contains("there is no copy of the list `feed`")), "{refused}");
    });
}

#[test]
fn a_start_does_not_wait_for_a_slow_server_if_there_is_a_copy() {
    in_lab(|lab| {
        let (web, cache) = (web(lab), TempDir::new().unwrap());
        web.answer(Answer::file(&names(&[])));
        let text = fetched(&web, "1s");
        start(lab, &text, &cache).unwrap_or_else(|e| panic!("{e}")).stop();
        web.answer(Answer::raw("").stalls());
        let asked = web.requests().len();
        let gateway = start(lab, &text, &cache).unwrap_or_else(|e| panic!("{e}"));
        assert_blocked(lab, "n7.example");
        // Nor does the end wait, though the server never answers.
        let deadline = Instant::now() + DEADLINE;
        while web.requests().len() == asked && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(web.requests().len() > asked);
        gateway.stop();
    });
}

/// Ports that are not inspected are judged in the kernel.
#[test]
fn addresses_of_a_feed_are_blocked_in_the_kernel_as_they_come_and_go() {
    in_lab(|lab| {
        let (_accepted, web, cache) = (listen(lab, 9000), web(lab), TempDir::new().unwrap());
        web.answer(Answer::file(&names(&[])));
        let gateway = start(lab, &fetched(&web, "1s"), &cache).unwrap_or_else(|e| panic!("{e}"));
        let remotes = Family::BOTH.map(|family| at(Site::A, family, 7, 9000));
        let addresses = remotes.map(|remote| remote.ip().to_string());
        let connects = |remote: SocketAddr| {
            let request = request(family_of(remote.ip()), remote, None);
            lab.client.run(|| connect(&request)).unwrap().is_ok()
        };
        for blocked in [true, false, true] {
            let passed = gateway.enforcer.messages().len();
            let more: Vec<_> = addresses.iter().map(String::as_str).filter(|_| blocked).collect();
            web.answer(Answer::file(&names(&more)));
            said(&gateway, passed, NEWS);
            for remote in remotes {
                assert_eq!(connects(remote), !blocked, "{remote} {:#?}", gateway.enforcer.messages());
            }
        }
        gateway.stop();
    });
}

#[test]
fn a_file_that_is_changed_takes_effect_by_itself_unless_it_is_no_list_by_then() {
    in_lab(|lab| {
        let ((_origins, _), cache) = (servers(lab), TempDir::new().unwrap());
        let file = cache.path().join("feed.txt");
        let beside = cache.path().join("feed.new");
        std::fs::write(&file, "# nobody yet\n").unwrap();
        let text = with_feed(&format!("file = \"{}\"", file.display()));
        let gateway = start(lab, &text, &cache).unwrap_or_else(|e| panic!("{e}"));
        assert_passes(lab, "unlisted.example");
        // Once by renaming another file over it, once by writing to it.
        let rename = |text: &str| {
            std::fs::write(&beside, text).unwrap();
            std::fs::rename(&beside, &file).unwrap();
        };
        let write = |text: &str| std::fs::write(&file, text).unwrap();
        for (change, text, blocked) in [
            (&rename as &dyn Fn(&str), names(&["unlisted.example"]), true),
            (&write, names(&["other.example"]), false),
            (&write, names(&["more.example", "unlisted.example"]), true),
        ] {
            let passed = gateway.enforcer.messages().len();
            change(&text);
            said(&gateway, passed, NEWS);
            if blocked {
                assert_blocked(lab, "unlisted.example");
            } else {
                assert_passes(lab, "unlisted.example");
            }
        }
        for (text, why) in [
            ("<html>gone</html>\n", "it is a web page"),
            ("", "it holds no entry"),
            ("only.example\n", "it shrank from 52 entries to 1; a reload takes it"),
            (&(names(&[]) + "half.exa"), "it was cut short"),
        ] {
            let passed = gateway.enforcer.messages().len();
            write(text);
            said(&gateway, passed, why);
            assert_blocked(lab, "unlisted.example");
        }
        write("# nobody\n");
        let passed = gateway.enforcer.messages().len();
        kill_process(gateway.enforcer.pid(), Signal::HUP).unwrap();
        said(&gateway, passed, "holds no entry any more");
        assert_blocked(lab, "unlisted.example");
        let passed = gateway.enforcer.messages().len();
        std::fs::remove_file(&file).unwrap();
        said(&gateway, passed, "what is new is not taken: it cannot be read");
        assert_blocked(lab, "unlisted.example");

        write("only.example\n");
        let passed = gateway.enforcer.messages().len();
        kill_process(gateway.enforcer.pid(), Signal::HUP).unwrap();
        said(&gateway, passed, "reloaded");
        assert_passes(lab, "unlisted.example");
        assert_blocked(lab, "only.example");
        gateway.stop();
    });
}
