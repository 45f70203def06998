//! The configuration that `tidegate exec` writes: for itself, from `--allow` and `--block`, and for its user, from what a
//! command did.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;

use ipnet::IpNet;

use crate::mode::exec::tally::Tally;
use crate::name::Pattern;

/// A name with its wildcard, an address or a prefix, as a list takes it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub text: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Name(Pattern),
    Prefix(IpNet),
}

impl Entry {
    pub fn parse(text: &str) -> Result<Self, String> {
        let prefix = text.parse().or_else(|_| text.parse().map(|address: std::net::IpAddr| address.into()));
        let kind = match prefix {
            Ok(prefix) => Kind::Prefix(prefix),
            Err(_) => Kind::Name(Pattern::parse(text).map_err(|why| format!("no name, address or prefix: {why}"))?),
        };
        Ok(Self { text: text.to_owned(), kind })
    }

    /// Whether whatever `other` matches is matched by this one too.
    fn covers(&self, other: &Self) -> bool {
        match (&self.kind, &other.kind) {
            (Kind::Prefix(own), Kind::Prefix(other)) => own.contains(other),
            (Kind::Name(own), Kind::Name(Pattern::Exact(name))) => own.matches(name),
            (Kind::Name(own), Kind::Name(Pattern::Below(name) | Pattern::Tree(name))) => match own {
                Pattern::Exact(_) => false,
                Pattern::Below(above) | Pattern::Tree(above) => above == name || own.matches(name),
            },
            _ => false,
        }
    }
}

/// The first of `blocked` that can block nothing, and what allows it: an allow list beats a block list (SPEC V1, V2).
pub(super) fn vain<'a>(allowed: &'a [Entry], blocked: &'a [Entry]) -> Option<(&'a Entry, &'a Entry)> {
    blocked.iter().find_map(|block| Some((block, allowed.iter().find(|allow| allow.covers(block))?)))
}

/// With something allowed a closed world: nothing else resolves or connects. Without it an open one, less what is
/// blocked.
pub(super) fn configuration(allowed: &[Entry], blocked: &[Entry], resolvers: &[SocketAddr]) -> String {
    let texts = |entries: &[Entry]| entries.iter().map(|entry| entry.text.clone()).collect::<Vec<_>>();
    let lists = [("allowed", "allow", texts(allowed)), ("blocked", "block", texts(blocked))];
    let closed = !allowed.is_empty();
    let unreadable = if closed || !blocked.is_empty() { "block" } else { "ip-verdict" };
    let upstream = format!("upstream = {}\n", array(resolvers.iter().map(ToString::to_string)));
    written(&lists, closed, unreadable, "tcp-reset", &upstream)
}

/// What a command did, as a policy that lets it do just that again.
pub(super) fn learned(tally: &Tally, command: &str) -> String {
    let mut entries = BTreeSet::new();
    let mut text = format!(
        "# Whom `{}` spoke with. Look it through: what is here is allowed, and nothing else.\n",
        one_line(command)
    );
    for (partner, dealings) in tally.partners().filter(|(_, dealings)| dealings.allowed > 0) {
        let whom = partner.name.clone().or_else(|| partner.address.map(|address| address.to_string()));
        let Some(whom) = whom else { continue };
        let port = partner.port.map(|port| format!("/{port}")).unwrap_or_default();
        let _ = writeln!(text, "#   {whom}  {}{port}  {} flows", partner.protocol, dealings.allowed);
        entries.insert(whom);
    }
    for name in tally.resolved() {
        if entries.insert(name.to_owned()) {
            let _ = writeln!(text, "#   {name}  resolved, and not connected to");
        }
    }
    let lists = [("allowed", "allow", entries.into_iter().collect())];
    text + "\n" + &written(&lists, true, "block", "icmp-unreachable", "")
}

fn written(lists: &[(&str, &str, Vec<String>)], closed: bool, unreadable: &str, drop: &str, dns: &str) -> String {
    let mut text = "name = \"exec\"\n".to_owned();
    let lists: Vec<_> = lists.iter().filter(|(_, _, entries)| !entries.is_empty()).collect();
    for (name, verdict, entries) in &lists {
        let entries = array(entries.iter().cloned());
        let _ = write!(text, "\n[[list]]\nname = \"{name}\"\nverdict = \"{verdict}\"\nentries = {entries}\n");
    }
    let names = array(lists.iter().map(|(name, ..)| (*name).to_owned()));
    let (default, kind, bind, unlisted) = match closed {
        true => ("block", "explicit", "enforce", "block"),
        false => ("allow", "prefer-both", "off", "resolve"),
    };
    let _ = write!(
        text,
        r#"
[[policy]]
name = "command"
default = "{default}"
lists = {names}

[[network]]
name = "command"
directions = "outbound"
ips = [{{ ip = "0.0.0.0", maskbits = 0 }}, {{ ip = "::", maskbits = 0 }}]
outbound = {{ policy = "command", drop = "{drop}" }}

[network.inspection]
type = "{kind}"
tls_ports = {TLS_PORTS:?}
http_ports = {HTTP_PORTS:?}
unreadable = "{unreadable}"
bind = "{bind}"
use_bindings = true

[network.dns]
unlisted = "{unlisted}"
{dns}"#
    );
    text
}

fn array(texts: impl Iterator<Item = String>) -> String {
    toml::Value::Array(texts.map(toml::Value::String).collect()).to_string()
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Where the client speaks first, and by TLS (IANA's registry, and what is in use). Names of flows on other ports come
/// from DNS.
const TLS_PORTS: [u16; 15] = [443, 465, 563, 636, 853, 989, 990, 993, 995, 5061, 5671, 6514, 8443, 8883, 9443];
const HTTP_PORTS: [u16; 10] = [80, 591, 3000, 3128, 5000, 8000, 8008, 8080, 8081, 8888];

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(texts: &[&str]) -> Vec<Entry> {
        texts.iter().map(|text| Entry::parse(text).unwrap()).collect()
    }

    #[test]
    fn a_block_that_an_allow_covers_is_told() {
        let cases = [
            (&[".example.com"][..], "ads.example.com", true),
            (&["*.example.com"], "*.ads.example.com", true),
            (&["*.example.com"], "*.example.com", true),
            (&["example.com"], "*.example.com", false),
            (&["api.example.com"], ".example.com", false),
            (&["192.0.2.0/24"], "192.0.2.7", true),
            (&["192.0.2.7"], "192.0.2.0/24", false),
            (&["example.com"], "192.0.2.0/24", false),
        ];
        for (allowed, blocked, covered) in cases {
            let (allowed, blocked) = (entries(allowed), entries(&[blocked]));
            assert_eq!(vain(&allowed, &blocked).is_some(), covered, "{allowed:?} {blocked:?}");
        }
    }

    #[test]
    fn what_is_written_is_a_configuration_without_mistakes() {
        let resolvers = ["192.0.2.53:53".parse().unwrap()];
        let some = entries(&["*.example.com", "2001:db8::/32"]);
        for (allowed, blocked) in [(&[][..], &[][..]), (&some, &[]), (&[], &some), (&some, &entries(&["a.example"]))] {
            let text = configuration(allowed, blocked, &resolvers);
            let loaded = crate::config::load_text("exec", text.clone());
            let loaded = loaded.unwrap_or_else(|mistakes| panic!("{}\n{text}", mistakes.render(false)));
            assert_eq!(loaded.networks.len(), 1, "{text}");
        }
        let learned = learned(&Tally::default(), "curl\n[[network]]");
        assert!(crate::config::load_text("exec", learned).is_ok());
    }
}
