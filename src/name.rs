//! Domain names, normalised once, so that every protocol and every list speaks of the same thing.
//!
//! Fails closed: whatever is not a host name by these rules is [`NotAName`], never a name that matches nothing.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

/// A host name in the one form that is compared: lower case, IDNA A-labels, no trailing dot.
///
/// 1 to 253 octets in labels of 1 to 63 (RFC 1035, section 2.3.4). Underscores are allowed, since names of
/// services use them (RFC 8552).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(Arc<str>);

/// Why some octets are not a [`DomainName`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAName {
    /// Nothing, or a dot alone.
    Empty,
    /// An IPv4 or IPv6 literal, with or without brackets: an address names nobody.
    IpLiteral,
    /// An octet that no host name holds, or an invalid internationalised label (RFC 5891, section 5).
    Character,
    /// An empty label, one of over 63 octets (RFC 1035, section 2.3.4), or a last label that is a number where the
    /// whole is no address (RFC 1123, section 2.1).
    Label,
    /// More than 253 octets (RFC 1035, section 2.3.4).
    TooLong,
}

/// The octets of a [`DomainName`], borrowed where they are written that way already.
///
/// What is ASCII is compared as ASCII, letter case apart, just as servers compare it: an `xn--` label that decodes
/// to nothing valid stays the label it is. Other text is mapped to A-labels (UTS 46, non-transitional), which also
/// turns the full-width and ideographic dots into dots.
pub fn normalise(octets: &[u8]) -> Result<Cow<'_, str>, NotAName> {
    let bare = octets.strip_suffix(b".").unwrap_or(octets);
    if is_written_so(bare) {
        return str::from_utf8(bare).map(Cow::Borrowed).map_err(|_| NotAName::Character);
    }
    if octets.len() > MAX_SPELLING {
        return Err(NotAName::TooLong);
    }
    let text = str::from_utf8(octets).map_err(|_| NotAName::Character)?;
    if text.is_ascii() {
        let name = text.strip_suffix('.').unwrap_or(text);
        check(name)?;
        return Ok(lower(name));
    }
    let mapped = idna::domain_to_ascii_cow(octets, idna::AsciiDenyList::EMPTY).map_err(|_| NotAName::Character)?;
    let name = mapped.strip_suffix('.').unwrap_or(&mapped);
    check(name)?;
    Ok(Cow::Owned(name.to_ascii_lowercase()))
}

/// Whether this is the one form of a host name, told in one pass, as nearly all are. Not of all: where the last label
/// begins with 0 it may be a number.
fn is_written_so(octets: &[u8]) -> bool {
    let (mut label, mut begins_at, mut has_letters) = (0, 0, false);
    for (at, octet) in octets.iter().enumerate() {
        match octet {
            b'a'..=b'z' | b'-' | b'_' => has_letters = true,
            b'0'..=b'9' => {}
            b'.' if label > 0 => {
                (label, begins_at, has_letters) = (0, at + 1, false);
                continue;
            }
            _ => return false,
        }
        label += 1;
        if label > MAX_LABEL {
            return false;
        }
    }
    has_letters && octets.len() <= MAX_NAME && octets.get(begins_at) != Some(&b'0')
}

/// Whether ASCII `name`, without its trailing dot, is a host name.
fn check(name: &str) -> Result<(), NotAName> {
    if name.is_empty() {
        return Err(NotAName::Empty);
    }
    let last = name.rsplit('.').next().unwrap_or(name);
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if is_number(last) || !name.bytes().all(is_plain) {
        return Err(if is_ip_literal(name) { NotAName::IpLiteral } else { why_not(name, is_plain) });
    }
    if name.len() > MAX_NAME {
        return Err(NotAName::TooLong);
    }
    match name.split('.').any(|label| label.is_empty() || label.len() > MAX_LABEL) {
        true => Err(NotAName::Label),
        false => Ok(()),
    }
}

fn why_not(name: &str, is_plain: impl Fn(u8) -> bool) -> NotAName {
    if name.bytes().all(is_plain) { NotAName::Label } else { NotAName::Character }
}

fn lower(name: &str) -> Cow<'_, str> {
    match name.bytes().any(|b| b.is_ascii_uppercase()) {
        true => Cow::Owned(name.to_ascii_lowercase()),
        false => Cow::Borrowed(name),
    }
}

impl DomainName {
    /// The name that `octets` spell, in whatever case, with or without one trailing dot.
    ///
    /// Some clients ask for `*.example.com` by that name, in a hello as in DNS (RFC 4592): it is one below
    /// `example.com`. Lists and rules never hold it, since there it is a pattern.
    pub fn parse(octets: &[u8]) -> Result<Self, NotAName> {
        match octets.strip_prefix(b"*.") {
            None => normalise(octets).map(|name| Self(name.into())),
            Some(above) => match normalise(above) {
                Ok(name) if name.len() + 2 > MAX_NAME => Err(NotAName::TooLong),
                Ok(name) => Ok(Self(format!("*.{name}").into())),
                Err(NotAName::IpLiteral | NotAName::Empty) => Err(NotAName::Label),
                Err(why) => Err(why),
            },
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// This name and every name above it, longest first: `a.b.c`, `b.c`, `c`.
    pub fn suffixes(&self) -> impl Iterator<Item = &str> {
        suffixes(self.as_str())
    }
}

/// The same for a name that was normalised and not kept.
pub fn suffixes(name: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(name);
    std::iter::from_fn(move || {
        let name = rest?;
        rest = name.split_once('.').map(|(_, above)| above);
        Some(name)
    })
}

/// An address in any of the spellings that clients take: dotted, bracketed with or without a zone (RFC 6874), and
/// what `inet_aton` reads: one to four parts in decimal, octal or hexadecimal.
fn is_ip_literal(text: &str) -> bool {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.split('%').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok()),
        None => text.parse::<Ipv6Addr>().is_ok() || (text.split('.').count() <= 4 && text.split('.').all(is_number)),
    }
}

/// Digits, or `0x` and hexadecimal digits, as `inet_aton` takes them.
fn is_number(part: &str) -> bool {
    match part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()),
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NotAName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it is empty",
            Self::IpLiteral => "it is an IP address",
            Self::Character => "it holds a character that no host name may hold",
            Self::Label => "a label is empty, longer than 63 octets, or a number where a name must end in letters",
            Self::TooLong => "it is longer than 253 octets",
        })
    }
}

impl std::error::Error for NotAName {}

/// One way to name hosts in a list or a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Pattern {
    /// `example.com`: that name alone.
    Exact(DomainName),
    /// `*.example.com`: every name below it.
    Below(DomainName),
    /// `.example.com`: the name and every name below it.
    Tree(DomainName),
}

impl Pattern {
    /// Reads `example.com`, `*.example.com` or `.example.com`.
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        let host = |text: &str| normalise(text.as_bytes()).map(|name| DomainName(name.into()));
        if let Some(name) = text.strip_prefix("*.") {
            return host(name).map(Self::Below);
        }
        match text.strip_prefix('.') {
            Some(name) => host(name).map(Self::Tree),
            None => host(text).map(Self::Exact),
        }
    }

    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Exact(own) => own == name,
            Self::Below(own) => is_below(name.as_str(), own.as_str()),
            Self::Tree(own) => own == name || is_below(name.as_str(), own.as_str()),
        }
    }
}

fn is_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Tree(name) => write!(f, ".{name}"),
        }
    }
}

const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/// No name of 253 octets is written in more than this, four octets of UTF-8 for each of its own.
const MAX_SPELLING: usize = 4 * (MAX_NAME + 1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(octets: impl AsRef<[u8]>) -> Result<String, NotAName> {
        DomainName::parse(octets.as_ref()).map(|name| name.to_string())
    }

    #[test]
    fn one_name_has_one_form_however_it_is_written() {
        for (written, name) in [
            ("example.com", "example.com"),
            ("EXAMPLE.Com", "example.com"),
            ("example.com.", "example.com"),
            ("localhost", "localhost"),
            ("_dmarc.example.com", "_dmarc.example.com"),
            ("-a.example.com", "-a.example.com"),
            ("1.2.3.4.example", "1.2.3.4.example"),
            ("3com.com", "3com.com"),
            ("0x.de", "0x.de"),
            ("b\u{fc}cher.example", "xn--bcher-kva.example"),
            ("B\u{dc}CHER.example", "xn--bcher-kva.example"),
            ("bu\u{308}cher.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
            ("fa\u{df}.de", "xn--fa-hia.de"),
            ("\u{6d4b}\u{8bd5}.\u{4e2d}\u{56fd}", "xn--0zwm56d.xn--fiqs8s"),
            // Full-width letters and the three other dots of UTS 46.
            ("\u{ff45}vil.com", "evil.com"),
            ("www\u{3002}evil\u{ff0e}com\u{ff61}", "www.evil.com"),
            // The Kelvin sign is a k, a soft hyphen is nothing.
            ("\u{212a}elvin.com", "kelvin.com"),
            ("ev\u{ad}il.com", "evil.com"),
        ] {
            assert_eq!(parsed(written), Ok(name.to_owned()), "{written}");
        }
    }

    #[test]
    fn a_label_that_only_looks_internationalised_is_the_label_it_is() {
        // A server compares these octets, so the name below a blocked one must stay below it.
        for name in ["xn--a.evil.com", "xn--.evil.com", "xn--zzzzzzzzz99999.evil.com", "xn--foo-.evil.com"] {
            assert_eq!(parsed(name), Ok(name.to_owned()), "{name}");
        }
    }

    #[test]
    fn what_is_not_a_name_is_refused_with_its_reason() {
        let long_label = format!("{}.com", "a".repeat(64));
        let long_name = format!("{}com", "a.".repeat(126));
        let megabyte = "a.".repeat(500_000);
        for (written, why) in [
            ("", NotAName::Empty),
            (".", NotAName::Empty),
            ("..", NotAName::Label),
            ("example.com..", NotAName::Label),
            ("example.com\u{3002}.", NotAName::Label),
            ("a..example.com", NotAName::Label),
            (".example.com", NotAName::Label),
            ("192.0.2.1", NotAName::IpLiteral),
            ("192.0.2.1.", NotAName::IpLiteral),
            ("192.0.2.1..", NotAName::Label),
            ("0xc0.0.2.1", NotAName::IpLiteral),
            ("0300.0.2.1", NotAName::IpLiteral),
            ("3221225985", NotAName::IpLiteral),
            ("0xC0000201", NotAName::IpLiteral),
            ("192.513", NotAName::IpLiteral),
            ("\u{ff11}92.0.2.1", NotAName::IpLiteral),
            ("192\u{3002}0\u{3002}2\u{3002}1", NotAName::IpLiteral),
            ("2001:db8::1", NotAName::IpLiteral),
            ("::ffff:192.0.2.1", NotAName::IpLiteral),
            ("[2001:db8::1]", NotAName::IpLiteral),
            ("[fe80::1%eth0.100]", NotAName::IpLiteral),
            // Dressed up as an address, these would slip past a blocked name as if they had none.
            ("1.2.3.4%.evil.com", NotAName::Character),
            ("fe80::1%.evil.com", NotAName::Character),
            ("[192.0.2.1].evil.com", NotAName::Character),
            ("evil.com.1", NotAName::Label),
            ("1.2.3.4.5", NotAName::Label),
            ("evil.com:443", NotAName::Character),
            ("evil.com\0.good.com", NotAName::Character),
            ("good.com/evil.com", NotAName::Character),
            ("ev il.com", NotAName::Character),
            ("*.", NotAName::Label),
            ("*.*.example.com", NotAName::Character),
            ("*a.example.com", NotAName::Character),
            ("*.192.0.2.1", NotAName::Label),
            ("a\u{2100}b.com", NotAName::Character),
            ("\u{200d}x.com", NotAName::Character),
            (&long_label, NotAName::Label),
            (&long_name, NotAName::TooLong),
            (&megabyte, NotAName::TooLong),
        ] {
            assert_eq!(parsed(written), Err(why), "{}", written.chars().take(40).collect::<String>());
        }
        assert_eq!(parsed(b"ev\xffil.com"), Err(NotAName::Character));
    }

    #[test]
    fn the_longest_lawful_name_and_label_are_names() {
        let name = format!("{}co", "a.".repeat(125)) + "m";
        assert_eq!(name.len(), 253);
        assert_eq!(parsed(format!("{name}.")), Ok(name));
        assert!(parsed(format!("{}.com", "a".repeat(63))).is_ok());
    }

    #[test]
    fn a_pattern_reaches_what_its_spelling_says() {
        let name = |text: &str| DomainName::parse(text.as_bytes()).unwrap();
        for (pattern, own, below, beside) in [
            ("Example.com", true, false, false),
            ("*.Example.com", false, true, false),
            (".Example.com", true, true, false),
        ] {
            let pattern = Pattern::parse(pattern).unwrap();
            assert_eq!(pattern.matches(&name("example.com")), own, "{pattern}");
            assert_eq!(pattern.matches(&name("a.example.com")), below, "{pattern}");
            assert_eq!(pattern.matches(&name("b.a.example.com")), below, "{pattern}");
            assert_eq!(pattern.matches(&name("notexample.com")), beside, "{pattern}");
            assert_eq!(pattern.matches(&name("com")), beside, "{pattern}");
        }
        for refused in ["*", "*.", ".", "..example.com", "*.*.com", "a.*.com", "*example.com", ".192.0.2.1"] {
            assert!(Pattern::parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn suffixes_run_from_the_name_to_its_top() {
        let name = DomainName::parse(b"a.b.c").unwrap();
        assert_eq!(name.suffixes().collect::<Vec<_>>(), ["a.b.c", "b.c", "c"]);
    }

    proptest! {
        #[test]
        fn no_octets_make_it_panic_and_what_it_gives_is_already_normal(octets in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(name) = DomainName::parse(&octets) {
                prop_assert_eq!(DomainName::parse(name.as_str().as_bytes()), Ok(name));
            }
        }

        #[test]
        fn no_text_makes_it_panic_and_what_it_gives_is_already_normal(text in "\\PC{0,80}") {
            if let Ok(name) = DomainName::parse(text.as_bytes()) {
                prop_assert!(name.as_str().bytes().all(|b| !b.is_ascii_uppercase() && b.is_ascii()));
                prop_assert_eq!(DomainName::parse(name.as_str().as_bytes()), Ok(name));
            }
        }

        #[test]
        fn what_is_told_in_one_pass_is_what_the_rules_say(text in "[a-cX0-1x._-]{0,12}(z{0,64}|[a0]{0,2}|(c\\.){0,130})") {
            let begins_with_zero = text.rsplit('.').next().unwrap().starts_with('0');
            let is_so = check(&text).is_ok() && lower(&text) == text && !begins_with_zero;
            prop_assert_eq!(is_written_so(text.as_bytes()), is_so);
        }

        #[test]
        fn letter_case_and_a_trailing_dot_change_nothing(text in "[a-zA-Z0-9_-]{1,20}(\\.[a-zA-Z0-9-]{1,20}){0,5}", upper in any::<u64>()) {
            let other: String = text
                .chars()
                .enumerate()
                .map(|(i, c)| if upper >> (i % 64) & 1 == 1 { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
                .collect();
            prop_assert_eq!(DomainName::parse(text.as_bytes()), DomainName::parse(format!("{other}.").as_bytes()));
        }

        #[test]
        fn a_u_label_and_its_a_label_are_one_name(label in "[\u{e0}-\u{f6}\u{3b1}-\u{3c9}\u{430}-\u{44f}\u{4e00}-\u{4fff}]{1,10}") {
            let unicode = format!("{label}.example");
            let Ok(ascii) = idna::domain_to_ascii(&unicode) else { return Ok(()) };
            prop_assert_eq!(DomainName::parse(unicode.as_bytes()), DomainName::parse(ascii.to_uppercase().as_bytes()));
        }

        #[test]
        fn a_pattern_reads_what_it_writes(text in "(\\*\\.|\\.)?[a-zA-Z0-9_-]{1,10}(\\.[a-zA-Z]{1,10}){0,3}") {
            if let Ok(pattern) = Pattern::parse(&text) {
                prop_assert_eq!(Pattern::parse(&pattern.to_string()), Ok(pattern));
            }
        }
    }
}
