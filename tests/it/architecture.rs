//! The layers of the crate: a module may use only the rows above its own.

/// The rows of `src/lib.rs`, top to bottom, each with why it may not see what stands below it.
const ROWS: &[(&[&str], &str)] = &[
    (&["name"], "names are compared by everybody and must depend on nobody"),
    (&["wire"], "parsers see bytes alone"),
    (&["peek"], "peeking is pure: budgets and time are arguments"),
    (&["list"], "lists know names and addresses, not policies"),
    (&["policy"], "judging is pure: no socket, clock, task or file"),
    (&["firewall"], "the ruleset is a value; applying it is the work of sys"),
    (&["sys", "telemetry"], "the edges know values, not the services that use them"),
    (&["dns", "proxy"], "services get small settings of their own, never the written configuration"),
    (&["mode"], "a mode arranges services"),
    (&["admin"], "the API has JSON shapes of its own"),
    (&["config"], "only app and cli may see what was written"),
    (&["app", "cli", "main"], "the top"),
];

#[test]
fn each_module_uses_only_the_rows_above_it() {
    let src = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut breaches = Vec::new();
    for file in rust_files(&src) {
        let relative = file.strip_prefix(&src).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let own = row_of(module).unwrap_or_else(|| panic!("{module} stands in no row of tests/it/architecture.rs"));
        for (number, line) in std::fs::read_to_string(&file).unwrap().lines().enumerate() {
            for used in modules_used(line) {
                let Some(theirs) = row_of(&used) else { continue };
                if theirs > own {
                    breaches.push(format!(
                        "{}:{}: {module} uses {used}: {}",
                        relative.display(),
                        number + 1,
                        ROWS[own].1
                    ));
                }
            }
        }
    }
    assert!(breaches.is_empty(), "layers are breached:\n{}", breaches.join("\n"));
}

#[test]
fn the_reader_of_imports_sees_them() {
    assert_eq!(modules_used("use crate::config::File;"), ["config"]);
    assert_eq!(modules_used("    let x = crate::app::start(crate::name::f());"), ["app", "name"]);
    assert_eq!(modules_used("use crate::{config, proxy::tcp};"), ["config", "proxy"]);
    assert!(modules_used("// crate::config is not used").is_empty());
}

fn row_of(module: &str) -> Option<usize> {
    ROWS.iter().position(|(modules, _)| modules.contains(&module))
}

fn modules_used(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let mut found = Vec::new();
    for part in code.split("crate::").skip(1).chain(code.split("tidegate::").skip(1)) {
        match part.strip_prefix('{') {
            Some(group) => {
                let group = group.split('}').next().unwrap_or_default();
                found.extend(group.split(',').map(|item| word(item.trim())));
            }
            None => found.push(word(part)),
        }
    }
    found
}

fn word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn rust_files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files
}
