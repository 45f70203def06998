//! A configuration is read without a panic, and its mistakes stand within it. It may name no file: `include` and `file`
//! would read what lies about here.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::config::load_text;

fuzz_target!(|octets: &[u8]| {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    if ["include", "file", "url", "\\"].iter().any(|word| text.contains(word)) {
        return;
    }
    let mistakes = match load_text("tidegate.toml", text.to_owned()) {
        Ok(loaded) => loaded.warnings,
        Err(mistakes) => {
            assert!(mistakes.has_errors());
            mistakes
        }
    };
    let _ = mistakes.render(false);
    for mistake in &mistakes.0 {
        let (line, column) = mistake.position();
        assert!(line >= 1 && line <= text.split('\n').count() && column >= 1, "{mistake}");
    }
});
