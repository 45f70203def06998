//! Lists at scale: `cargo bench --bench lists -- [NAMES] [PREFIXES] [alone]`, by default 10 million and 1 million.
//!
//! Prints, for a domain set compiled from text and for a hash set of strings in the same run: CPU seconds to load, octets a
//! name, and nanoseconds a look-up with all suffixes. The hash set is left out above 20 million names, and for
//! `alone`.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::hint::black_box;
use std::io::{self, BufWriter, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tidegate::list::compile::{Builder, compile};
use tidegate::list::entry::Entry;
use tidegate::list::file;
use tidegate::list::prefixes::Exceptions;
use tidegate::list::reader::{Limits, Options};
use tidegate::name::{DomainName, suffixes};
use tidegate::sys::mapped::Mapped;

fn main() {
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|arg| arg.replace('_', "").parse().ok()).collect();
    let names = numbers.first().copied().unwrap_or(10_000_000);
    let prefixes = numbers.get(1).copied().unwrap_or(1_000_000);
    domains(names);
    address_prefixes(prefixes);
}

fn domains(count: u64) {
    println!("{count} names from text");
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("names.tdg");
    let limits = Limits { octets: u64::MAX, entries: u64::MAX, ..Limits::default() };
    let options = Options { format: None, subdomains: false, limits };

    let generated = cpu(|| io::copy(&mut Feed::new(count), &mut io::sink()).unwrap()).1;
    let ((compiled, report), load) = cpu(|| compile(Feed::new(count), &options).unwrap());
    println!(
        "  read, hashed, sorted      {:8.2} CPU s (and {:.2} for making the text)",
        seconds(load - generated),
        seconds(generated)
    );
    let (_, written) = cpu(|| compiled.write_to([0; 32], BufWriter::new(File::create(&path).unwrap())).unwrap());
    let (names, bad) = (compiled.names(), report.bad);
    drop(compiled);
    println!("  written                   {:8.2} CPU s, {names} different names, {bad} bad lines", seconds(written));

    let (wall, before) = (Instant::now(), cpu_time());
    let octets = Arc::new(Mapped::open(&File::open(&path).unwrap()).unwrap());
    let length = (*octets).as_ref().len();
    let (set, _) = file::open(octets).unwrap();
    let (wall, opened) = (wall.elapsed().as_secs_f64() * 1e3, seconds(cpu_time() - before) * 1e3);
    println!("  opened and checked        {opened:8.2} CPU ms, {wall:.2} ms by the clock");
    println!("  size                      {:8.2} octets a name, {} MB", length as f64 / names as f64, length >> 20);

    let (hits, misses) = questions(count);
    let now = SystemTime::now();
    look_up("hit", &hits, |name| set.holds(name, now));
    look_up("miss, all suffixes", &misses, |name| set.holds(name, now));
    if count > 20_000_000 || std::env::args().any(|arg| arg == "alone") {
        return;
    }
    println!("the same in a hash set of strings");
    let before = resident();
    let (strings, load) = cpu(|| strings(count));
    println!("  read, normalised, hashed  {:8.2} CPU s", seconds(load - generated));
    println!("  size                      {:8.2} octets a name", (resident() - before) as f64 / strings.len() as f64);
    let walk = |name: &DomainName| suffixes(name.as_str()).any(|suffix| strings.contains(suffix));
    look_up("hit", &hits, walk);
    look_up("miss, all suffixes", &misses, walk);
}

fn strings(count: u64) -> HashSet<Box<str>> {
    let mut strings = HashSet::new();
    let options = Options::default();
    tidegate::list::reader::read(Feed::new(count), &options, &mut |_, entry| {
        if let tidegate::list::entry::What::Name(_, name) = entry.what {
            strings.insert(name.as_ref().into());
        }
    })
    .unwrap();
    strings
}

fn address_prefixes(count: u64) {
    println!("{count} v4 prefixes");
    let mut random = Random(88_172_645_463_325_252);
    let lengths = [22, 23, 24, 24, 24, 24, 28, 32, 32, 32, 32, 32, 32, 32];
    let mut builder = Builder::new(Exceptions::Always);
    let prefixes: Vec<_> = (0..count)
        .map(|_| format!("{}/{}", Ipv4Addr::from_bits(random.next() as u32), lengths[random.below(lengths.len())]))
        .collect();
    let ((_, set), build) = cpu(|| {
        prefixes.iter().for_each(|text| builder.add(&Entry::parse(text).unwrap()));
        builder.finish().into_sets().unwrap()
    });
    println!("  parsed, sorted, flattened {:8.2} CPU s", seconds(build));
    println!("  size                      {:8.2} octets a prefix", set.footprint() as f64 / count as f64);
    let addresses: Vec<IpAddr> = (0..1_000_000).map(|_| Ipv4Addr::from_bits(random.next() as u32).into()).collect();
    let now = SystemTime::now();
    let best = cheapest_of(3, || addresses.iter().filter(|address| set.holds(**address, now)).count());
    println!("  look-up                   {:8.0} ns", best.as_nanos() as f64 / addresses.len() as f64);
}

/// A million names that are on the list, every other with a label before it, and a million that are not.
fn questions(count: u64) -> (Vec<DomainName>, Vec<DomainName>) {
    let mut random = Random(4242);
    let mut text = String::new();
    let mut name = |prefix: &str, index: u64| {
        text.clear();
        text.push_str(prefix);
        write_name(index, &mut text);
        DomainName::parse(text.as_bytes()).unwrap()
    };
    let hits = (0..1_000_000).map(|_| name("", random.next() % count)).collect();
    let mut random = Random(777);
    let misses = (0..1_000_000).map(|_| name("z", random.next() % count)).collect();
    (hits, misses)
}

fn look_up(what: &str, names: &[DomainName], holds: impl Fn(&DomainName) -> bool) {
    let found = names.iter().filter(|name| holds(name)).count();
    let best = cheapest_of(3, || names.iter().filter(|name| holds(name)).count());
    println!(
        "  look-up, {what:<18} {:6.0} ns, {found} of {} held",
        best.as_nanos() as f64 / names.len() as f64,
        names.len()
    );
}

/// In CPU time, which other work on the machine disturbs least.
fn cheapest_of(times: usize, mut work: impl FnMut() -> usize) -> Duration {
    (0..times).map(|_| cpu(|| black_box(work())).1).min().unwrap()
}

/// A list of names, made as it is read.
struct Feed {
    next: u64,
    count: u64,
    line: String,
    at: usize,
}

impl Feed {
    fn new(count: u64) -> Self {
        Self { next: 0, count, line: String::new(), at: 0 }
    }
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.at == self.line.len() {
                if self.next == self.count {
                    break;
                }
                self.line.clear();
                write_name(self.next, &mut self.line);
                self.line.push('\n');
                self.next += 1;
                self.at = 0;
            }
            let part = &self.line.as_bytes()[self.at..];
            let length = part.len().min(buffer.len() - filled);
            buffer[filled..filled + length].copy_from_slice(&part[..length]);
            self.at += length;
            filled += length;
        }
        Ok(filled)
    }
}

/// The name with this number: of the lengths and shapes that feeds have, 2 to 4 labels, about 21 octets.
fn write_name(index: u64, out: &mut String) {
    let mut random = Random(index.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    random.next();
    if random.below(100) < 35 {
        write!(out, "{}{}.", WORDS[random.below(WORDS.len())], random.below(100)).unwrap();
    }
    let (first, second) = (WORDS[random.below(WORDS.len())], WORDS[random.below(WORDS.len())]);
    write!(out, "{first}{second}{index:x}.{}", TOPS[random.below(TOPS.len())]).unwrap();
}

const WORDS: [&str; 32] = [
    "shop", "online", "tech", "media", "cloud", "data", "web", "net", "home", "best", "free", "super", "blue", "green",
    "red", "star", "sun", "play", "game", "bank", "pay", "news", "blog", "travel", "click", "track", "ads", "cdn",
    "img", "api", "mail", "login",
];
const TOPS: [&str; 12] = ["com", "com", "com", "net", "org", "de", "ru", "co.uk", "info", "xyz", "top", "online"];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }
}

/// What `work` gives, and the CPU time of this process that it took.
fn cpu<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let before = cpu_time();
    let result = work();
    (result, cpu_time() - before)
}

fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time = |value: nix::sys::time::TimeVal| {
        Duration::new(value.tv_sec().try_into().unwrap(), u32::try_from(value.tv_usec()).unwrap() * 1000)
    };
    time(usage.user_time()) + time(usage.system_time())
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

/// Octets of memory that this process has.
fn resident() -> u64 {
    let pages: u64 = std::fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
