//! The command line: exit status, and what `explain` says.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tidegate::mode::demo::lab::Site;
use tidegate::sys::rtnl::Family;

use crate::gateway::{Gateway, at, connect, get, listen};
use crate::inside::in_lab;

#[test]
fn explain_says_what_the_gateway_would_do() {
    let cases = std::fs::read_to_string(data("explain/cases.txt")).unwrap();
    let mut asked = 0;
    for case in cases.lines().filter(|line| !line.starts_with('#')) {
        // Columns are two blanks apart or more; a single blank belongs to its column.
        let columns: Vec<&str> = case.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect();
        let [source, destination, protocol, name, fingerprint, network, ip, outcome, action] = columns[..] else {
            panic!("{case}")
        };
        let account = explain(source, destination, protocol, name, fingerprint);
        let judgement = &account["judgements"][0];
        assert_eq!(text(&judgement["network"]).replace(' ', "-"), network, "{case}");
        assert_eq!(opinion(&judgement["address"]), ip, "{case}");
        if network == "-" {
            assert_eq!(account["verdict"], outcome, "{case}");
        } else {
            assert_eq!(opinion(&judgement["outcome"]), outcome, "{case}");
            assert_eq!(account["verdict"], judgement["outcome"]["verdict"], "{case}");
            assert_eq!(text(&judgement["outcome"]["action"]), action, "{case}");
        }
        asked += 1;
    }
    assert!(asked >= 18);
}

#[test]
fn explain_tells_a_person_every_step() {
    let config = data("explain/tidegate.toml");
    let args = ["--source", "10.1.0.2", "--destination", "192.0.2.1", "--port", "443", "--name", "www.bad.example"];
    let output = tidegate(&[&["explain", "--config", &config][..], &args].concat());
    let expected = "\
flow        10.1.0.2 -> 192.0.2.1, tcp port 443, named www.bad.example

network     desks, outbound (by its prefix 10.1.0.0/24), mode enforce
policy      open
address     allow (DEFAULT)
name        block (BLOCK_LIST, list `bad`)
inspection  prefer-both: a name that is allowed: allow; blocked: block; on no list: allow
outcome     block (DOMAIN, list `bad`), by icmp-unreachable
no name     allow (DEFAULT)
unreadable  block (UNREADABLE), by icmp-unreachable

verdict     BLOCK on edge-1
";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    assert_eq!(output.status.code(), Some(0));
}

/// client 10.1.0.2 -- gateway (protects the server alone) -- server
#[test]
fn explain_agrees_with_the_gateway_about_inbound_names() {
    in_lab(|lab| {
        let text = r#"
name = "edge-1"
[[list]]
name = "ok"
verdict = "allow"
entries = ["allowed.example"]
[[policy]]
name = "in"
default = "block"
lists = ["ok"]
[[network]]
name = "servers"
directions = "inbound"
ips = [{ ip = "198.51.100.0", maskbits = 24 }]
inbound = { policy = "in", drop = "discard" }
[network.inspection]
type = "explicit"
bind = "enforce"
"#;
        let gateway = Gateway::start(lab, text);
        let _accepted = listen(lab, 80);
        for name in ["allowed.example", "other.example"] {
            let mut client = connect(lab, at(Site::A, Family::V4, 1, 80));
            client.write_all(get(name).as_bytes()).unwrap();
            let record = gateway.verdict_on(client.local_addr().unwrap());
            let flow = ["--source", "10.1.0.2", "--destination", "198.51.100.1", "--port", "80", "--name", name];
            let config = gateway.path("tidegate.toml").display().to_string();
            let output = tidegate(&[&["explain", "--json", "--config", &config][..], &flow].concat());
            let account: Value = serde_json::from_slice(&output.stdout).unwrap();
            let outcome = &account["judgements"][0]["outcome"];
            assert_eq!((&outcome["verdict"], &outcome["reason"]), (&record["verdict"], &record["reason"]), "{name}");
        }
    });
}

#[test]
fn explain_says_that_a_binding_which_it_does_not_look_up_decides() {
    let asks = |source, name| {
        let account = explain(source, "192.0.2.1", "tcp/443", name, "-");
        let notes = account["judgements"][0]["notes"].as_array().unwrap().clone();
        notes.iter().any(|note| text(note).contains("(bind)"))
    };
    assert!(asks("10.5.0.2", "www.good.example"));
    assert!(!asks("10.5.0.2", "www.bad.example") && !asks("10.5.0.2", "-"));
    assert!(!asks("10.1.0.2", "www.good.example"));
}

#[test]
fn explain_says_where_a_name_that_only_dns_told_would_decide() {
    let notes =
        |source, protocol, name| explain(source, "192.0.2.1", protocol, name, "-")["judgements"][0]["notes"].clone();
    let tells = |notes: Value| notes.as_array().unwrap().iter().any(|note| text(note).contains("use_bindings"));
    assert!(tells(notes("10.5.0.2", "tcp/443", "-")) && tells(notes("10.5.0.2", "tcp/22", "www.good.example")));
    assert!(!tells(notes("10.5.0.2", "tcp/443", "www.good.example")) && !tells(notes("10.1.0.2", "tcp/443", "-")));
}

#[test]
fn the_configuration_may_be_named_before_and_behind_every_command() {
    let config = data("explain/tidegate.toml");
    let records = data("explain/cases.txt");
    for args in [
        vec!["--config", &config, "check"],
        vec!["check", "--config", &config],
        vec!["--config", &config, "list", "stat"],
        vec!["list", "--config", &config, "stat"],
        vec!["list", "check", "--config", &config, &data("explain/tidegate.toml")],
        vec!["report", "resolvers", "--config", &config, &records],
    ] {
        let output = tidegate(&args);
        assert_ne!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let missing = tidegate(&["--config", "/nonexistent.toml", "check"]);
    assert_eq!(missing.status.code(), Some(2));
    let asked = tidegate(&["status", "--config", "/nonexistent.toml"]);
    assert_eq!(asked.status.code(), Some(2), "{}", String::from_utf8_lossy(&asked.stderr));
}

#[test]
fn the_exit_status_tells_a_mistake_from_a_good_configuration() {
    let good = data("explain/tidegate.toml");
    let bad = data("config-mistakes/names.toml");
    for (args, status) in [
        (vec!["check", "--config", &good], 0),
        (vec!["check", "--config", &bad], 2),
        (vec!["check", "--config", "/nonexistent"], 2),
        (vec!["run", "--config", &bad], 2),
        (vec!["explain", "--config", &bad, "--source", "10.1.0.2", "--destination", "192.0.2.1", "--port", "443"], 2),
        (vec!["explain", "--config", &good, "--source", "10.1.0.2", "--destination", "192.0.2.1"], 2),
        (vec!["explain", "--config", &good, "--source", "10.1.0.2", "--destination", "::1", "--port", "443"], 2),
        (vec!["explain", "--config", &good, "--fingerprint", "ja3", "--source", "::1", "--destination", "::2"], 2),
        (vec!["exec", "--save", "/nonexistent/policy.toml", "--", "false"], 2),
        (vec!["--version"], 0),
        (vec!["chekc"], 2),
        (vec![], 2),
    ] {
        let output = tidegate(&args);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
    }
}

#[test]
fn a_demo_that_cannot_be_shown_names_what_is_missing() {
    let mut tidegate = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let output = tidegate.arg("demo").env("TMPDIR", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let missing = "could not write to the folder of temporary files (TMPDIR): ";
    // Where there are no user namespaces, that is what is missing.
    assert!(said.contains(missing) || said.contains("refuses a new user namespace"), "{said}");
}

#[test]
fn check_sums_up_what_it_read_on_standard_output_and_shows_mistakes_on_standard_error() {
    let good = tidegate(&["check", "--config", &data("explain/tidegate.toml")]);
    let summary = String::from_utf8(good.stdout).unwrap();
    assert!(
        summary.ends_with("enforcer `edge-1`, 6 networks, 2 policies, 3 lists (4 names, 4 prefixes)\n"),
        "{summary}"
    );
    let bad = tidegate(&["check", "--config", &data("config-mistakes/names.toml")]);
    assert!(bad.stdout.is_empty());
    assert!(String::from_utf8_lossy(&bad.stderr).contains("names.toml:18:8: error: a second list named `feeds`\n"));
}

#[test]
fn a_command_that_is_not_built_says_so_whatever_its_arguments() {
    for command in ["network", "import", "export", "learn"] {
        let output = tidegate(&[command, "--anything", "at", "all"]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.starts_with(&format!("tidegate {command}: not built yet")), "{said}");
    }
}

#[test]
fn a_reader_who_has_read_enough_is_no_failure_and_a_full_disk_is_one() {
    let config = data("explain/tidegate.toml");
    let flow = ["--source", "10.1.0.2", "--destination", "192.0.2.1", "--port", "443"];
    for args in [
        &["check"][..],
        &["list", "stat"],
        &["list", "find", "good.example"],
        &[&["explain"], &flow[..]].concat(),
        &[&["explain", "--json"], &flow[..]].concat(),
    ] {
        let args = [args, &["--config", &config]].concat();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        for (out, status) in [(OwnedFd::from(writer), 0), (OwnedFd::from(full), 1)] {
            let mut tidegate = Command::new(env!("CARGO_BIN_EXE_tidegate"));
            let output = tidegate.args(&args).stdout(out).stderr(Stdio::piped()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
            assert_eq!(said.contains("cannot write to standard output"), status == 1, "{args:?}: {said}");
        }
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut tidegate = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let bad = data("config-mistakes/names.toml");
    let status = tidegate.args(["check", "--config", &bad]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(2));
}

fn explain(source: &str, destination: &str, protocol: &str, name: &str, fingerprint: &str) -> Value {
    let config = data("explain/tidegate.toml");
    let (protocol, port) = protocol.split_once('/').unwrap_or((protocol, "-"));
    let mut args = vec!["explain", "--json", "--config", &config, "--source", source, "--destination", destination];
    args.extend(["--protocol", protocol]);
    for (option, value) in [("--port", port), ("--name", name), ("--fingerprint", fingerprint)] {
        if value != "-" {
            args.extend([option, value]);
        }
    }
    let output = tidegate(&args);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `verdict REASON list`, without what is not there.
fn opinion(of: &Value) -> String {
    let parts = ["verdict", "reason", "list"].map(|key| of[key].as_str());
    let parts: Vec<&str> = parts.into_iter().flatten().collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(" ") }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

fn tidegate(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tidegate")).args(args).output().unwrap()
}

fn data(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name).display().to_string()
}

#[test]
fn list_check_shows_bad_lines_and_counts_and_refuses_what_is_no_list() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let hosts = file("hosts.txt", "127.0.0.1 localhost\n0.0.0.0 a.example\n0.0.0.0 A.example\nb.example\n");
    let good = tidegate(&["list", "check", &hosts]);
    assert_eq!(good.status.code(), Some(0));
    let said = String::from_utf8_lossy(&good.stdout).into_owned();
    assert_eq!(
        said,
        format!(
            "{hosts}:4:1: skipped: not an address and then names: b.example\n{hosts}: hosts format, 4 lines: 2 entries taken, \
             1 of them doubled, 1 lines skipped, 1 not about names\n"
        )
    );
    let bad = tidegate(&["list", "check", &file("page.txt", "<html>not found</html>")]);
    assert_eq!(bad.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("page.txt: this is no list: it is a web page"));
    assert_eq!(tidegate(&["list", "check", "--format", "other", &hosts]).status.code(), Some(2));
}

#[test]
fn list_stat_and_find_speak_of_the_lists_of_the_configuration() {
    let config = data("explain/tidegate.toml");
    let stat = tidegate(&["list", "stat", "--config", &config]);
    assert_eq!(stat.status.code(), Some(0), "{}", String::from_utf8_lossy(&stat.stderr));
    assert!(
        String::from_utf8_lossy(&stat.stdout).lines().all(|line| line.contains(" name") && line.contains("policies: "))
    );
    let find = tidegate(&["list", "find", "nobody.lists.this", "--config", &config]);
    assert_eq!((find.status.code(), &*find.stdout), (Some(0), &b"no list holds it\n"[..]));
    assert_eq!(tidegate(&["list", "find", "no name", "--config", &config]).status.code(), Some(2));
}

#[test]
fn a_large_list_is_built_once_and_a_damaged_build_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let (cache, config) = (folder.path().join("cache"), folder.path().join("tidegate.toml"));
    let names: String = (0..300_000).map(|i| format!("name{i}.example{}.com\n", i % 9)).collect();
    std::fs::write(folder.path().join("feed.txt"), names).unwrap();
    let text = r#"
        name = "e"
        [[list]]
        name = "feed"
        verdict = "block"
        file = "feed.txt"
        [[policy]]
        name = "out"
        default = "allow"
        lists = ["feed"]
        [[network]]
        name = "n"
        ips = [{ ip = "10.0.0.0", maskbits = 8 }]
        outbound = { policy = "out" }
    "#;
    std::fs::write(&config, text).unwrap();
    let list = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.arg("list").args(args).arg("--config").arg(&config).env("CACHE_DIRECTORY", &cache);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let kept = |said: &str| said.trim().rsplit_once(": compiled in ").unwrap().1.to_owned();
    let path = kept(&list(&["build"]));
    let made = |path: &str| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let first = made(&path);
    let found = list(&["find", "name123456.example3.com"]);
    assert!(found.contains("feed.txt:123457: name123456.example3.com\n"), "{found}");
    assert!(found.contains("policy out: block (BLOCK_LIST) by feed"), "{found}");
    assert_eq!(made(&path), first, "what is as new as its source is only opened");
    let mut octets = std::fs::read(&path).unwrap();
    octets[1_000] ^= 0xff;
    std::fs::write(&path, &octets).unwrap();
    assert!(list(&["find", "name123456.example3.com"]).contains("list feed, block"));
    assert_ne!(made(&path), first, "what is damaged is built again");
}

#[test]
fn a_feed_is_fetched_by_build_and_not_by_check() {
    let (folder, web) = (tempfile::tempdir().unwrap(), crate::web::Web::start());
    web.answer(crate::web::Answer::file("a.example\nfed.example\n"));
    let config = folder.path().join("tidegate.toml");
    let text = format!(
        r#"
        name = "e"
        [[list]]
        name = "feed"
        verdict = "block"
        url = "{}"
        [[policy]]
        name = "out"
        default = "allow"
        lists = ["feed"]
        [[network]]
        name = "n"
        ips = [{{ ip = "10.0.0.0", maskbits = 8 }}]
        outbound = {{ policy = "out" }}
        "#,
        web.url()
    );
    std::fs::write(&config, text).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        command.args(args).arg("--config").arg(&config).env("CACHE_DIRECTORY", folder.path().join("cache"));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        [output.stdout, output.stderr].map(|octets| String::from_utf8(octets).unwrap())
    };
    let [checked, warned] = run(&["check"]);
    assert!(warned.contains("the list `feed` has not been fetched yet"), "{warned}");
    assert!(checked.contains("(0 names, 0 prefixes)") && web.requests().is_empty(), "{checked}");

    let [built, _] = run(&["list", "build"]);
    assert!(built.starts_with("feed: ") && built.ends_with(".list: held in memory\n"), "{built}");
    let [found, _] = run(&["list", "find", "fed.example"]);
    assert!(found.contains(".list:2: fed.example\n"), "{found}");
    let [checked, warned] = run(&["check"]);
    assert!(checked.contains("(2 names, 0 prefixes)") && !warned.contains("not been fetched"), "{checked}{warned}");
    assert_eq!(web.requests().len(), 1);
}

#[test]
fn report_resolvers_counts_who_asked_whom_in_files_and_on_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let record = |source: &str, destination: &str, protocol: &str, reason: &str| {
        format!(
            r#"{{"time":"2026-11-20T04:30:00.000Z","kind":"dns","source":"{source}","destination":"{destination}","protocol":"{protocol}","reason":"{reason}"}}"#
        ) + "\n"
    };
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    std::fs::write(&first, record("10.1.0.2", "9.9.9.9", "udp", "DEFAULT").repeat(3)).unwrap();
    let refused = record("fd00::2", "2620:fe::fe", "tcp", "RESOLVER");
    std::fs::write(&second, refused + "no record\n" + &record("10.1.0.2", "9.9.9.9", "tcp", "DOMAIN")).unwrap();
    let files = [&first, &second].map(|file| file.display().to_string());
    let output = tidegate(&["report", "resolvers", "--json", &files[0], &files[1]]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "tidegate report: 1 lines are no records\n");
    let row = |resolver: &str, client: &str, udp: u64, tcp: u64, refused: u64| {
        serde_json::json!({
            "resolver": resolver, "client": client, "questions": udp + tcp, "udp": udp, "tcp": tcp, "refused": refused,
            "last": "2026-11-20T04:30:00.000Z"
        })
    };
    let rows: Vec<Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows, [row("9.9.9.9", "10.1.0.2", 3, 1, 0), row("2620:fe::fe", "fd00::2", 0, 1, 1)]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    let piped = command.args(["report", "resolvers"]).stdin(std::fs::File::open(&first).unwrap()).output().unwrap();
    let table = String::from_utf8(piped.stdout).unwrap();
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["resolver", "client", "udp", "tcp", "refused", "last"]);
    assert_eq!(words[1], ["9.9.9.9", "10.1.0.2", "3", "0", "0", "2026-11-20T04:30:00.000Z"]);
    assert_eq!(tidegate(&["report", "resolvers", "/nonexistent"]).status.code(), Some(1));
}
