//! Configurations: their mistakes, the examples of conf/, and what reading them gives.
//!
//! Each file of tests/data/config-mistakes says in `#!` lines what `tidegate check` must print of it: exactly that.

use std::path::{Path, PathBuf};

use tidegate::config::{self, Mistakes};

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
