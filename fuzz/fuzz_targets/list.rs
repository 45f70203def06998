//! A list is read without a panic, the same whole and octet by octet, and its compiled form holds every entry of it.
#![no_main]

use std::io::Read;
use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use tidegate::list::compile::compile;
use tidegate::list::entry::{Reach, Sense, What};
use tidegate::list::format::Format;
use tidegate::list::reader::{Options, read};
use tidegate::name::DomainName;

/// Gives one octet at a time.
struct Slow<'a>(&'a [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        (&mut self.0).take(1).read(buffer)
    }
}

// The first octet says how the others are read.
fuzz_target!(|bytes: &[u8]| {
    let Some((how, text)) = bytes.split_first() else { return };
    let format = Format::ALL.into_iter().nth(usize::from(how >> 1));
    let options = Options { format, subdomains: how & 1 == 1, ..Options::default() };
    let (mut whole, mut split) = (Vec::new(), Vec::new());
    let (mut held, mut excepted) = (Vec::new(), false);
    let report = read(text, &options, &mut |line, entry| {
        whole.push((line, entry.to_string()));
        excepted |= entry.sense == Sense::Exception;
        if entry.expires.is_none() {
            match &entry.what {
                What::Name(Reach::Below, name) => held.push(Err(format!("x.{name}"))),
                What::Name(_, name) => held.push(Err(name.to_string())),
                What::Prefix(prefix) => held.push(Ok(prefix.addr())),
            }
        }
    });
    let slowly = read(Slow(text), &options, &mut |line, entry| split.push((line, entry.to_string())));
    assert_eq!((report.as_ref().ok(), &whole), (slowly.as_ref().ok(), &split));
    let compiled = compile(text, &options);
    assert_eq!(report.is_ok(), compiled.is_ok());
    let Ok((compiled, _)) = compiled else { return };
    let Ok((domains, prefixes)) = compiled.into_sets() else { return };
    for own in held.iter().filter(|_| !excepted) {
        match own {
            Ok(address) => assert!(prefixes.holds(*address, SystemTime::UNIX_EPOCH), "{address}"),
            // A name may be too long with a label more.
            Err(name) => match DomainName::parse(name.as_bytes()) {
                Ok(name) => assert!(domains.holds(&name, SystemTime::UNIX_EPOCH), "{name}"),
                Err(_) => assert!(name.starts_with("x."), "{name}"),
            },
        }
    }
});
