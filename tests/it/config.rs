//! Configurations: their mistakes, the examples of conf/, and what reading them gives.
//!
//! Each file of tests/data/config-mistakes says in `#!` lines what `tidegate check` must print of it: exactly that.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use tidegate::config::{self, Mistakes};

use crate::mmdb::{Mmdb, Record};

#[test]
fn every_mistake_of_a_file_is_reported_where_it_is() {
    let folder = data("config-mistakes");
    let files = toml_files(&folder);
    assert!(files.len() >= 15, "{} files", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let expected: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#! ")).collect();
        assert!(!expected.is_empty(), "{} expects nothing", file.display());
        let found = match config::load(&file) {
            Ok(loaded) => loaded.warnings,
            Err(mistakes) => mistakes,
        };
        let found = lines(&found, &folder);
        if found != expected {
            wrong.push(format!("{} gives\n{}", file.display(), prefixed(&found)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_kind_of_object_is_read_although_the_first_has_mistakes() {
    let mistakes = config::load(&data("config-mistakes/names.toml")).unwrap_err();
    let kinds = ["list", "policy", "port", "network"];
    for kind in kinds {
        assert!(mistakes.0.iter().any(|mistake| mistake.what.contains(kind)), "{kind}\n{mistakes}");
    }
}

#[test]
fn a_mistake_is_one_line_for_programs_and_an_excerpt_that_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    std::fs::write(&file, "name = \"edge-1\"\n\n[gateway]\non_failur = \"closed\"\n").unwrap();
    let shown = config::load(&file).unwrap_err().render(false);
    let expected = format!(
        "{}:4:1: error: unknown key `on_failur` in `gateway`\n  |\n4 | on_failur = \"closed\"\n  | ^^^^^^^^^ did you \
         mean `on_failure`?\n",
        file.display()
    );
    assert_eq!(shown, expected);
}

#[test]
fn what_a_file_says_cannot_write_to_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    std::fs::write(&file, "\"\\u001b[2J\" = 1\nname = \"\\u001b]0;x\\u0007\"\n").unwrap();
    let mistakes = config::load(&file).unwrap_err();
    assert!(mistakes.0.len() >= 2, "{mistakes}");
    assert!(!mistakes.render(false).contains('\u{1b}'), "{mistakes:?}");
}

#[test]
fn a_configuration_that_is_not_there_is_a_mistake_and_not_a_default() {
    let mistakes = config::load(Path::new("/nonexistent/tidegate.toml")).unwrap_err();
    let text = mistakes.to_string();
    assert!(text.starts_with("/nonexistent/tidegate.toml:1:1: error: cannot read"), "{text}");
}

#[test]
fn a_network_acts_where_it_is_meant_to_and_nowhere_else() {
    let loaded = load_with("name = \"edge-1\"", |network| match network {
        "everywhere" => "",
        "here" => "enforcers = [\"edge-2\", \"edge-1\"]",
        "elsewhere" => "enforcers = [\"edge-2\"]",
        "nowhere" => "enforcers = []",
        "off" => "mode = \"off\"",
        _ => "mode = \"monitor\"",
    });
    let names = |networks: &[std::sync::Arc<tidegate::policy::network::Network>]| -> Vec<String> {
        networks.iter().map(|network| network.name.to_string()).collect()
    };
    assert_eq!(names(&loaded.networks), ["everywhere", "here", "off", "watched"]);
    assert_eq!(names(loaded.snapshot(1).networks()), ["everywhere", "here", "watched"]);
}

/// A configuration of one Network for each case, with a line of its own.
fn load_with(top: &str, line: impl Fn(&str) -> &'static str) -> config::Loaded {
    let mut text = format!("{top}\n[[policy]]\nname = \"p\"\ndefault = \"block\"\n");
    for (number, name) in ["everywhere", "here", "elsewhere", "nowhere", "off", "watched"].iter().enumerate() {
        let ips = format!("ips = [{{ ip = \"10.{number}.0.0\", maskbits = 16 }}]");
        text += &format!("[[network]]\nname = \"{name}\"\n{}\n{ips}\noutbound = {{ policy = \"p\" }}\n", line(name));
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    std::fs::write(&file, text).unwrap();
    config::load(&file).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

#[test]
fn every_file_that_was_read_is_named_for_who_watches_them() {
    let loaded = config::load(&conf("examples/home.toml")).unwrap();
    assert_eq!(loaded.files, [conf("examples/home.toml"), conf("examples/lists/advertising.txt")]);
}

#[test]
fn lists_of_a_file_and_of_entries_are_one_list_and_widen_alike() {
    let loaded = config::load(&conf("examples/home.toml")).unwrap();
    let list = loaded.lists.iter().find(|list| &*list.name == "advertising").unwrap();
    let now = std::time::SystemTime::now();
    for (name, held) in
        [("ads.example", true), ("a.b.ads.example", true), ("badads.example", false), ("example", false)]
    {
        let name = tidegate::name::DomainName::parse(name.as_bytes()).unwrap();
        assert_eq!(list.holds_name(&name, now), held, "{name}");
    }
    assert!(list.holds_address("198.51.100.200".parse().unwrap(), now));
    assert!(!list.holds_address("198.51.100.1".parse().unwrap(), now));
}

#[test]
fn every_key_of_the_interface_is_read() {
    let mistakes = config::load(&data("interface.toml")).unwrap_err();
    for mistake in &mistakes.0 {
        let by_design = mistake.what == "no policy is named `office-in`"
            || mistake.what.ends_with("without a database")
            || mistake.severity == config::Severity::Warning;
        assert!(by_design, "{mistake}");
    }
}

#[test]
fn the_reference_speaks_of_every_key_of_the_interface() {
    let reference = std::fs::read_to_string(conf("tidegate.toml")).unwrap();
    let interface: toml::Table = toml::from_str(&std::fs::read_to_string(data("interface.toml")).unwrap()).unwrap();
    let mut keys = Vec::new();
    keys_of(&toml::Value::Table(interface), &mut keys);
    assert!(keys.len() > 50, "{keys:?}");
    for key in keys {
        let said = reference.contains(&format!("{key} = ")) || reference.contains(&format!("{key}]"));
        assert!(said, "conf/tidegate.toml does not speak of `{key}`");
    }
}

#[test]
fn the_configurations_of_conf_are_good_and_warn_of_nothing() {
    let mut files = toml_files(&conf("examples"));
    assert!(files.len() >= 4, "{files:?}");
    files.extend(toml_files(&conf("")));
    for file in files {
        let loaded = config::load(&file).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert!(loaded.warnings.0.is_empty(), "{}", loaded.warnings);
        assert!(!loaded.networks.is_empty(), "{}", file.display());
    }
}

#[test]
fn the_configuration_of_the_readme_is_good_and_warns_of_nothing() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let shown = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let loaded = config::load_text("README.md", shown.to_owned()).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert!(loaded.warnings.0.is_empty(), "{}", loaded.warnings);
    assert_eq!(loaded.networks.len(), 1);
}

fn keys_of(value: &toml::Value, keys: &mut Vec<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                keys.push(key.clone());
                keys_of(value, keys);
            }
        }
        toml::Value::Array(items) => items.iter().for_each(|item| keys_of(item, keys)),
        _ => {}
    }
}

/// Good databases beside a configuration of one policy; what is said of it.
fn with_databases(policy: &str) -> Result<config::Loaded, String> {
    let folder = tempfile::tempdir().unwrap();
    let net = |text: &str| text.parse().unwrap();
    let country = Mmdb::new("Test", [(net("198.51.100.0/24"), Record::Country("KP".into()))]);
    let asn = Mmdb::new("Test", [(net("2001:db8::/32"), Record::Asn(64_500))]);
    std::fs::write(folder.path().join("country.mmdb"), country.octets()).unwrap();
    std::fs::write(folder.path().join("asn.mmdb"), asn.octets()).unwrap();
    let text = format!(
        "name = \"edge-1\"\ngeoip = {{ country = \"country.mmdb\", asn = \"asn.mmdb\" }}\n[[network]]\nname = \"n\"\n\
         ips = [{{ ip = \"10.0.0.0\", maskbits = 8 }}]\noutbound = {{ policy = \"p\" }}\n[[policy]]\nname = \"p\"\n{policy}\n"
    );
    let file = folder.path().join("tidegate.toml");
    std::fs::write(&file, text).unwrap();
    let said = |mistakes: &Mistakes| lines(mistakes, folder.path()).join("\n");
    match config::load(&file) {
        Ok(loaded) if loaded.warnings.0.is_empty() => Ok(loaded),
        Ok(loaded) => Err(said(&loaded.warnings)),
        Err(mistakes) => Err(said(&mistakes)),
    }
}

#[test]
fn rules_of_countries_and_asns_are_read_with_their_databases() {
    let own = "default = \"allow\"\ncountries = { block = [\"KP\"] }\nasns = { block = [64500] }";
    let loaded = with_databases(own).unwrap();
    let names: Vec<_> = loaded.files.iter().skip(1).map(|file| file.file_name().unwrap()).collect();
    assert_eq!(names, ["country.mmdb", "asn.mmdb"]);
    let now = std::time::SystemTime::now();
    for (address, reason, list) in [
        ("198.51.100.7", "COUNTRY", Some("country:KP")),
        ("2001:db8::7", "ASN", Some("asn:64500")),
        ("203.0.113.7", "DEFAULT", None),
    ] {
        let judged = loaded.policies[0].judge_ip(address.parse().unwrap(), now);
        assert_eq!((judged.reason.as_str(), judged.list.as_deref()), (reason, list), "{address}");
    }
}

#[test]
fn what_a_rule_of_countries_or_asns_says_wrong_is_told() {
    for (policy, said) in [
        (
            "default = \"block\"\ncountries = { allow = [\"KP\", \"KP\", \"DE\"] }",
            "tidegate.toml:10:30: warning: `country:KP` is named twice: name it once\ntidegate.toml:10:36: warning: no \
             address is `country:DE` in country.mmdb: it matches nothing: is it the code that is meant?",
        ),
        (
            "default = \"allow\"\ncountries = { allow = [\"KP\"] }",
            "tidegate.toml:7:1: error: `countries` allows some where the default allows all: it blocks nothing: write \
             `default = \"block\"`, or `block` instead of `allow`",
        ),
        (
            "default = \"allow\"\nasns = { allow = [64500] }",
            "tidegate.toml:7:1: error: `asns` allows some where the default allows all: it blocks nothing: write \
             `default = \"block\"`, or `block` instead of `allow`",
        ),
        (
            "default = \"block\"\nasns = { block = [0, 4294967296, \"AS64500\"] }",
            "tidegate.toml:10:19: error: `policy.asns.block` is 0 here: write 1 to 4294967295\n\
             tidegate.toml:10:22: error: `policy.asns.block` is 4294967296 here: write 1 to 4294967295\n\
             tidegate.toml:10:34: error: `policy.asns.block` is a string here: write a whole number from 1 to 4294967295",
        ),
    ] {
        assert_eq!(with_databases(policy).map(drop), Err(said.to_owned()));
    }
    let both = "default = \"allow\"\nasns = { allow = [64500] }\ncountries = { block = [\"KP\"] }";
    assert!(with_databases(both).is_ok(), "the one is an exception from the other");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,400}") {
        load_text(&text);
    }

    #[test]
    fn no_damage_to_a_good_file_makes_the_reader_panic(
        damage in proptest::collection::vec((any::<Index>(), 0..30_usize, "[\\[\\]{}=\"'#,.\n a-z0-9é\u{0}-]{0,6}"), 1..6),
    ) {
        let mut text = std::fs::read_to_string(data("interface.toml")).unwrap();
        for (at, cut, put) in damage {
            let boundary = |mut at: usize| { while !text.is_char_boundary(at) { at -= 1; } at };
            let start = boundary(at.index(text.len() + 1));
            let end = boundary((start + cut).min(text.len())).max(start);
            text.replace_range(start..end, &put);
        }
        load_text(&text);
    }
}

/// Whatever comes of it, its mistakes can be shown and stand within the file.
fn load_text(text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tidegate.toml");
    std::fs::write(&file, text).unwrap();
    let mistakes = match config::load(&file) {
        Ok(loaded) => loaded.warnings,
        Err(mistakes) => {
            assert!(mistakes.has_errors());
            mistakes
        }
    };
    _ = mistakes.render(true);
    _ = mistakes.render(false);
    for mistake in &mistakes.0 {
        let (line, column) = mistake.position();
        assert!(line >= 1 && line <= text.split('\n').count() && column >= 1, "{mistake}");
    }
}

fn conf(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name)
}

fn lines(mistakes: &Mistakes, folder: &Path) -> Vec<String> {
    let folder = format!("{}/", folder.display());
    mistakes.to_string().lines().map(|line| line.replace(&folder, "")).collect()
}

fn prefixed(lines: &[String]) -> String {
    lines.iter().map(|line| format!("#! {line}\n")).collect()
}

fn toml_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    files.sort();
    files
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}
