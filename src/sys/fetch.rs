//! Fetching a file over HTTP or HTTPS.
//!
//! Fails safe: what is not whole, has another status than 200, is too large or takes too long is a failure, and so is a
//! body whose end the server does not announce, since a cut would not show. From `https` nothing leads to `http`.

use std::fmt;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName};
use http::{Response, StatusCode, Uri};
use serde::{Deserialize, Serialize};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// Where a file is fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// What [`check`] has passed.
    pub url: String,
    /// A PEM file of the authorities that the server's certificate is checked against, in place of the web's own.
    pub authorities: Option<PathBuf>,
}

/// What one fetch may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Octets of the file.
    pub octets: u64,
    /// From the first look-up of the server's name to the last octet.
    pub time: Duration,
}

/// What tells a server which version of its file is known (RFC 9110, section 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validators {
    pub etag: Option<String>,
    pub last_modified: Option<String>,
}

#[derive(Debug)]
pub enum Answer {
    /// What is known is as new as it gets.
    NotModified,
    /// All of it was written.
    Whole(Validators),
}

#[derive(Debug)]
pub enum Failure {
    /// Fewer octets than the server announced.
    CutShort,
    Other(String),
}

/// Sees how many octets have come, and of how many if the server says so.
pub type Watch<'w> = &'w mut dyn FnMut(u64, Option<u64>);

/// What is wrong with a URL that would be fetched.
pub fn check(url: &str) -> Result<(), &'static str> {
    if !["https://", "http://"].iter().any(|scheme| url.starts_with(scheme)) {
        return Err("it begins with neither https:// nor http://");
    }
    let uri: Uri = url.parse().map_err(|_| "it is no URL")?;
    match uri.authority() {
        Some(authority) if authority.as_str().contains('@') => Err("it holds a user name, which is not sent"),
        Some(authority) if !authority.host().is_empty() => Ok(()),
        _ => Err("it names no host"),
    }
}

/// Whether anybody on the way could write what is fetched from there.
pub fn is_open_to_forgery(url: &str) -> bool {
    let host = url.parse::<Uri>().ok().and_then(|uri| uri.host().map(|host| host.trim_matches(['[', ']']).to_owned()));
    let local = host.is_some_and(|host| {
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    });
    !url.starts_with("https://") && !local
}

/// Writes the file to `into`. After a failure, what is written there is worth nothing.
pub fn fetch(
    origin: &Origin,
    known: &Validators,
    limits: &Limits,
    into: &mut dyn Write,
    watch: Watch<'_>,
) -> Result<Answer, Failure> {
    let mut response = ask(origin, known, limits)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_MODIFIED if *known != Validators::default() => return Ok(Answer::NotModified),
        status => return Err(Failure::Other(format!("the server answers {status}"))),
    }
    let validators = Validators::of(response.headers());
    let announced = announced(&response)?;
    let read = copy(response.body_mut(), announced, limits, into, watch)?;
    if announced.is_some_and(|announced| announced != read) {
        return Err(Failure::CutShort);
    }
    Ok(Answer::Whole(validators))
}

fn ask(origin: &Origin, known: &Validators, limits: &Limits) -> Result<Response<Body>, Failure> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(origin.url.starts_with("https://"))
        .tls_config(TlsConfig::builder().root_certs(authorities(origin.authorities.as_deref())?).build())
        .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .max_redirects(MAX_REDIRECTS)
        .max_response_header_size(MAX_HEADER)
        .timeout_global(Some(limits.time))
        .timeout_connect(Some(CONNECT))
        .timeout_per_read(Some(STALL))
        .build();
    let mut request = Agent::new_with_config(config).get(&origin.url);
    match known {
        Validators { etag: Some(tag), .. } => request = request.header(header::IF_NONE_MATCH, tag),
        Validators { last_modified: Some(date), .. } => request = request.header(header::IF_MODIFIED_SINCE, date),
        _ => {}
    }
    request.call().map_err(|error| Failure::Other(said(&error)))
}

/// The octets that the body has; `None`: its end is told by its last chunk (RFC 9112, section 6.3).
fn announced(response: &Response<Body>) -> Result<Option<u64>, Failure> {
    let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if field(header::TRANSFER_ENCODING).is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return Ok(None);
    }
    let length = field(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    let unknown = "the server does not say where the file ends: were it cut short, nobody would know";
    length.map(Some).ok_or_else(|| Failure::Other(unknown.to_owned()))
}

fn copy(
    body: &mut Body,
    announced: Option<u64>,
    limits: &Limits,
    into: &mut dyn Write,
    watch: Watch<'_>,
) -> Result<u64, Failure> {
    let too_large = || Failure::Other(format!("it is larger than {} octets", limits.octets));
    if announced.is_some_and(|announced| announced > limits.octets) {
        return Err(too_large());
    }
    let (mut reader, mut piece, mut total) = (body.as_reader(), vec![0; PIECE], 0_u64);
    loop {
        let read = match reader.read(&mut piece) {
            Ok(0) => return Ok(total),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Err(Failure::CutShort),
            Err(error) => return Err(Failure::Other(said(&ureq::Error::from(error)))),
        };
        total = total.saturating_add(read as u64);
        if total > limits.octets {
            return Err(too_large());
        }
        let octets = piece.get(..read).unwrap_or_default();
        into.write_all(octets).map_err(|error| Failure::Other(format!("it cannot be written: {error}")))?;
        watch(total, announced);
    }
}

impl Validators {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        Self { etag: text(header::ETAG), last_modified: text(header::LAST_MODIFIED) }
    }
}

/// Those of a PEM file, or the ones that browsers trust.
fn authorities(file: Option<&Path>) -> Result<RootCerts, Failure> {
    let Some(file) = file else { return Ok(RootCerts::WebPki) };
    let refused = |why: &dyn fmt::Display| Failure::Other(format!("the authorities in {}: {why}", file.display()));
    let text = std::fs::read(file).map_err(|error| refused(&error))?;
    let certificate = |item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    };
    let found: Result<Vec<Certificate<'static>>, _> = ureq::tls::parse_pem(&text).filter_map(certificate).collect();
    match found.map_err(|error| refused(&error))? {
        found if found.is_empty() => Err(refused(&"no certificate")),
        found => Ok(RootCerts::Specific(Arc::new(found))),
    }
}

/// Without the URL, whose query may hold a secret.
fn said(error: &ureq::Error) -> String {
    match error {
        ureq::Error::Timeout(at) => format!("it takes too long ({at})"),
        ureq::Error::RequireHttpsOnly(_) => "the server redirects from https to http".into(),
        ureq::Error::BadUri(_) => "the server redirects to what is no URL".into(),
        ureq::Error::TooManyRedirects => format!("the server redirects more than {MAX_REDIRECTS} times"),
        other => other.to_string(),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CutShort => f.write_str("it was cut short"),
            Self::Other(why) => f.write_str(why),
        }
    }
}

const MAX_REDIRECTS: u32 = 5;
/// Octets.
const MAX_HEADER: usize = 32 << 10;
/// Octets that are read at once.
const PIECE: usize = 128 << 10;
const CONNECT: Duration = Duration::from_secs(10);
/// A server that sends nothing for so long is given up.
const STALL: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_urls_of_the_web_are_fetched() {
        for url in ["https://lists.example/a?b=c", "http://192.0.2.1:8080/", "https://[2001:db8::1]/x"] {
            assert_eq!(check(url), Ok(()), "{url}");
        }
        for (url, why) in [
            ("lists.example/a", "neither"),
            ("ftp://lists.example/a", "neither"),
            ("file:///etc/passwd", "neither"),
            ("https://user:word@lists.example/", "user name"),
            ("https:///a", "no URL"),
            ("https://a b/", "no URL"),
            ("", "neither"),
        ] {
            let said = check(url).expect_err(url);
            assert!(said.contains(why), "{url}: {said}");
        }
    }

    #[test]
    fn only_https_and_this_host_are_safe_from_forgery() {
        for (url, open) in [
            ("https://lists.example/", false),
            ("http://lists.example/", true),
            ("http://127.0.0.1:80/", false),
            ("http://[::1]:80/", false),
            ("http://localhost/", false),
            ("http://192.0.2.1/", true),
        ] {
            assert_eq!(is_open_to_forgery(url), open, "{url}");
        }
    }
}
