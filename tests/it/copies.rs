//! What is fetched, and what it may replace: a real client, a server that misbehaves, and the copy on disk.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tidegate::list::reader::Options;
use tidegate::list::refresh::{Good, Why};
use tidegate::sys::fetch::{Limits, Origin};
use tidegate::sys::list_store::Store;
use tidegate::sys::list_store::copy::Copy;

use crate::web::{Answer, Web};

struct Place {
    web: Web,
    folder: TempDir,
    copy: Copy,
}

const ROOMY: Limits = Limits { octets: 1 << 20, time: Duration::from_secs(20) };

impl Place {
    fn new() -> Self {
        let (web, folder) = (Web::start(), TempDir::new().unwrap());
        let store = Store::new(folder.path().join("cache"), u64::MAX);
        let copy = store.copy_of(&web.url(), &Options::default()).unwrap();
        Self { web, folder, copy }
    }

    /// With a good copy of 100 names.
    fn with_copy() -> Self {
        let place = Self::new();
        place.web.answer_once(Answer::with("200 OK", "etag: \"one\"\r\n", &names(100)));
        place.fetch().unwrap();
        place
    }

    fn fetch(&self) -> Result<Good, Why> {
        self.fetch_within(&ROOMY)
    }

    fn fetch_within(&self, limits: &Limits) -> Result<Good, Why> {
        let origin = Origin { url: self.web.url(), authorities: None };
        self.copy.refresh(&origin, &Options::default(), limits, SystemTime::now(), &mut |_, _| ())
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.copy.path).unwrap()
    }

    /// What lies in the folder besides the copy and what is known of it.
    fn others(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.copy.path.parent().unwrap()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !["list", "about", "lock"].iter().any(|end| name.ends_with(&format!(".{end}")))).collect()
    }
}

fn names(count: usize) -> String {
    (0..count).map(|i| format!("n{i}.example\n")).collect()
}

fn chunked(body: &str, end: &str) -> Answer {
    let length = body.len();
    Answer::raw(&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n{end}"))
}

#[test]
fn what_is_fetched_becomes_the_copy_and_is_only_its_owners() {
    let place = Place::with_copy();
    assert_eq!(place.text(), names(100));
    assert_eq!(std::fs::metadata(&place.copy.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(place.copy.is_there().unwrap() && place.others().is_empty());
    place.web.answer(chunked(&names(50), "0\r\n\r\n"));
    assert_eq!(place.fetch().unwrap().entries, 50);
    assert_eq!(place.text(), names(50));
}

#[test]
fn a_server_is_asked_with_what_it_called_its_file() {
    let place = Place::with_copy();
    let before = place.copy.checked().unwrap();
    place.web.answer_once(Answer::with("304 Not Modified", "etag: \"one\"\r\n", ""));
    assert_eq!(place.fetch(), Err(Why::NotModified));
    assert!(place.copy.checked().unwrap() >= before);
    place.web.answer_once(Answer::with("200 OK", "last-modified: Fri, 20 Nov 2026 06:00:00 GMT\r\n", &names(90)));
    place.fetch().unwrap();
    place.web.answer_once(Answer::with("304 Not Modified", "", ""));
    assert_eq!(place.fetch(), Err(Why::NotModified));
    let requests = place.web.requests();
    assert!(!requests[0].contains("if-"), "{}", requests[0]);
    assert!(requests[1].contains("if-none-match: \"one\"\r\n") && requests[2].contains("if-none-match: \"one\"\r\n"));
    assert!(requests[3].contains("if-modified-since: fri, 20 nov 2026 06:00:00 gmt\r\n"), "{}", requests[3]);
    assert_eq!(place.text(), names(90));
}

#[test]
fn the_same_octets_are_nothing_new_though_the_server_does_not_say_so() {
    let place = Place::with_copy();
    place.web.answer(Answer::file(&names(100)));
    assert_eq!(place.fetch(), Err(Why::NotModified));
}

#[test]
fn whatever_is_no_whole_list_leaves_the_copy_as_it_is() {
    let place = Place::with_copy();
    let redirect = format!("location: {}\r\n", place.web.url());
    for (what, answer, why) in [
        ("an error", Answer::with("500 Internal Server Error", "", &names(200)), "answers 500"),
        ("a refusal", Answer::with("403 Forbidden", "", &names(200)), "answers 403"),
        ("part of it", Answer::with("206 Partial Content", "", &names(200)), "answers 206"),
        ("fewer octets than announced", Answer::file(&names(200)).cut(15), "cut short"),
        ("half a line", Answer::file(&(names(200) + "half.exa")), "cut short"),
        ("chunks without their end", chunked(&names(200), ""), "cut short"),
        ("chunks that are none", chunked(&names(200), "zz\r\n"), "hunk"),
        ("no end announced", Answer::raw(&format!("HTTP/1.1 200 OK\r\n\r\n{}", names(200))), "were it cut short"),
        ("nothing", Answer::file(""), "no entry"),
        ("a comment", Answer::file("# maintenance\n"), "no entry"),
        ("a web page", Answer::file("<!DOCTYPE html><p>Sign in to the network</p>\n"), "web page"),
        ("what is compressed", Answer::with("200 OK", "content-encoding: gzip\r\n", "\u{1f}\u{0}\u{0}\n"), "NUL"),
        ("a tenth of it", Answer::file(&names(10)), "shrank from 100 entries to 10"),
        ("no HTTP", Answer::raw("220 ready\r\n"), ""),
        ("no answer", Answer::raw(""), ""),
        ("a circle", Answer::with("302 Found", &redirect, ""), "more than 5 times"),
        ("what is no place", Answer::with("302 Found", "location: ftp://[/\r\n", ""), ""),
    ] {
        place.web.answer(answer);
        let kept = place.fetch().expect_err(what);
        assert!(kept != Why::NotModified && kept.to_string().contains(why), "{what}: {kept}");
        assert!(!kept.to_string().contains("secret"), "{what}: {kept}");
        assert_eq!(place.text(), names(100), "{what}");
        assert!(place.others().is_empty(), "{what}: {:?}", place.others());
    }
    place.web.answer(Answer::file(&names(11)));
    place.fetch().unwrap();
}

#[test]
fn a_file_larger_than_the_limit_is_not_taken_whether_or_not_it_is_announced() {
    let place = Place::with_copy();
    let limits = Limits { octets: 2000, ..ROOMY };
    for answer in [Answer::file(&names(200)), chunked(&names(200), "0\r\n\r\n")] {
        place.web.answer(answer);
        let kept = place.fetch_within(&limits).unwrap_err();
        assert_eq!(kept.to_string(), "it is larger than 2000 octets");
    }
    assert_eq!(place.text(), names(100));
}

#[test]
fn a_server_that_stops_halfway_is_given_up_when_the_time_is_over() {
    let place = Place::with_copy();
    for answer in [Answer::file(&names(200)).cut(500).stalls(), Answer::raw("HTTP/1.1 200").stalls()] {
        place.web.answer(answer);
        let kept = place.fetch_within(&Limits { time: Duration::from_millis(300), ..ROOMY }).unwrap_err();
        assert!(kept.to_string().starts_with("it takes too long"), "{kept}");
    }
    assert_eq!(place.text(), names(100));
}

#[test]
fn a_redirect_is_followed() {
    let (place, other) = (Place::new(), Web::start());
    other.answer(Answer::file(&names(3)));
    place.web.answer(Answer::with("302 Found", &format!("location: {}\r\n", other.url()), ""));
    assert_eq!(place.fetch().unwrap().entries, 3);
}

#[test]
fn over_tls_the_server_shows_who_it_is_and_does_not_lead_to_http() {
    let (web, open) = (Web::start_tls(), Web::start());
    web.answer(Answer::file(&names(3)));
    open.answer(Answer::file(&names(3)));
    let place = Place { web, ..Place::new() };
    let authorities = place.folder.path().join("authority.pem");
    std::fs::write(&authorities, place.web.certificate.as_ref().unwrap()).unwrap();
    let fetch = |authorities| {
        let origin = Origin { url: place.web.url(), authorities };
        place.copy.refresh(&origin, &Options::default(), &ROOMY, SystemTime::now(), &mut |_, _| ())
    };
    let kept = fetch(None).unwrap_err().to_string();
    assert!(kept.contains("certificate"), "{kept}");
    assert!(place.web.requests().is_empty());
    let kept = fetch(Some("/dev/null".into())).unwrap_err().to_string();
    assert!(kept.contains("no certificate"), "{kept}");
    assert_eq!(fetch(Some(authorities.clone())).unwrap().entries, 3);

    place.web.answer(Answer::with("302 Found", &format!("location: {}\r\n", open.url()), ""));
    assert_eq!(fetch(Some(authorities)).unwrap_err().to_string(), "the server redirects from https to http");
    assert!(open.requests().is_empty());
}

#[test]
fn a_copy_that_others_may_write_to_is_not_used() {
    let place = Place::with_copy();
    std::fs::set_permissions(&place.copy.path, PermissionsExt::from_mode(0o666)).unwrap();
    assert!(place.copy.is_there().unwrap_err().to_string().contains("others may write"));
    std::fs::remove_file(&place.copy.path).unwrap();
    std::os::unix::fs::symlink("/etc/hosts", &place.copy.path).unwrap();
    assert!(place.copy.is_there().is_err());
    std::fs::remove_file(&place.copy.path).unwrap();
    assert!(!place.copy.is_there().unwrap());
    std::fs::set_permissions(place.folder.path().join("cache"), PermissionsExt::from_mode(0o777)).unwrap();
    assert!(place.fetch().unwrap_err().to_string().contains("others may write"));
}

/// The program may end between the copy and what is known of it.
#[test]
fn a_copy_of_which_nothing_is_known_is_counted_before_it_may_be_replaced() {
    let place = Place::with_copy();
    std::fs::remove_file(place.copy.path.with_extension("about")).unwrap();
    assert_eq!(place.copy.checked(), None);
    place.web.answer(Answer::file(&names(10)));
    assert_eq!(place.fetch(), Err(Why::Shrunk { from: 100, to: 10 }));
    assert!(!place.web.requests()[1].contains("if-none-match"));
    place.web.answer(Answer::file(&names(120)));
    place.fetch().unwrap();
    assert_eq!(place.text(), names(120));
}

#[test]
fn what_is_known_of_one_file_says_nothing_of_another() {
    let place = Place::with_copy();
    std::fs::remove_file(&place.copy.path).unwrap();
    std::fs::write(&place.copy.path, "other.example\n").unwrap();
    place.web.answer(Answer::file(&names(5)));
    place.fetch().unwrap();
    assert!(!place.web.requests()[1].contains("if-none-match"));
}

#[test]
fn one_list_is_not_fetched_twice_at_once() {
    let place = Place::with_copy();
    let lock = std::fs::File::open(place.copy.path.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    assert_eq!(place.fetch().unwrap_err().to_string(), "another fetch of it is under way");
    drop(lock);
    place.web.answer(Answer::file(&names(120)));
    place.fetch().unwrap();
}
