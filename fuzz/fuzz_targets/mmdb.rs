//! A database is read without a panic, in order, and tells the same of an address as the prefixes of its codes do.
#![no_main]

use std::collections::BTreeSet;
use std::time::SystemTime;

use libfuzzer_sys::fuzz_target;
use tidegate::list::geoip::{Code, Country, Database, Kind};

fuzz_target!(|bytes: &[u8]| {
    for kind in [Kind::Country, Kind::Asn] {
        let Ok(database) = Database::read(bytes, kind) else { continue };
        assert!(!database.is_empty());
        let codes: BTreeSet<Code> = match kind {
            Kind::Country => ["KP", "DE"].iter().filter_map(|own| Country::of(own)).map(Code::Country).collect(),
            Kind::Asn => [64_500, 64_501].map(Code::Asn).into(),
        };
        let prefixes = database.prefixes_of(&codes);
        assert_eq!(prefixes.is_empty(), codes.iter().all(|code| !database.has(*code)));
        for (prefix, _) in prefixes.iter().take(1000) {
            for address in [prefix.network(), prefix.broadcast()] {
                let mapped = address.to_canonical() != address;
                let code = database.code_of(address);
                assert!(mapped || code.is_some_and(|code| codes.contains(&code)), "{address}");
                assert!(mapped || prefixes.holds(address, SystemTime::UNIX_EPOCH), "{address}");
            }
        }
    }
});
