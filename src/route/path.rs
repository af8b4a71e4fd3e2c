//! Paths that servers read differently: found, and refused or made plain, before a route is looked for.
//!
//! What the route table looks at is what the backend gets, so a path can pass by a route only where the backend reads it otherwise than
//! the table does. These are the ways in which that is known to happen.

use http::Uri;
use http::uri::{Parts, PathAndQuery};

use crate::config::{PathRule, PathsConfig};

const DOTS: &str = "the path has a dot segment";
const ABOVE: &str = "the path leads above its root";
const ENCODED: &str = "the path has an encoded slash";
const DUPLICATE: &str = "the path has two slashes in a row";
const BACKSLASH: &str = "the path has a backslash";

/// Whether there is nothing in a path that servers read differently: what nearly all requests are asked, and so a loop without
/// branches. It may say no of a path that is plain, and of others never yes.
#[inline]
pub fn is_plain(path: &[u8]) -> bool {
    let odd = |(at, &byte): (usize, &u8)| {
        let next = path[at + 1];
        (byte == b'/') & ((next == b'/') | (next == b'.')) | (byte == b'%') | (byte == b'\\')
    };
    let Some((last, before)) = path.split_last() else { return true };
    !before.iter().enumerate().fold(*last == b'\\', |found, at| found | odd(at))
}

/// The target by the listener's rules; `None` where it stays as it is.
///
/// # Errors
/// Why the request is refused.
#[cold]
pub fn settle(uri: &Uri, rules: &PathsConfig) -> Result<Option<Uri>, &'static str> {
    let path = uri.path();
    let settled = settle_path(path, rules)?;
    if settled == path.as_bytes() {
        return Ok(None);
    }
    let mut target = settled;
    if let Some(query) = uri.query() {
        target.push(b'?');
        target.extend_from_slice(query.as_bytes());
    }
    const ODD: &str = "the path cannot be made plain";
    let mut parts = Parts::default();
    parts.path_and_query = Some(PathAndQuery::from_maybe_shared(target).map_err(|_| ODD)?);
    Uri::from_parts(parts).map(Some).map_err(|_| ODD)
}

fn settle_path(path: &str, rules: &PathsConfig) -> Result<Vec<u8>, &'static str> {
    let mut text = slashes(path.as_bytes(), rules)?;
    if text.windows(2).any(|pair| pair == b"//") {
        match rules.duplicate_slashes {
            PathRule::Refuse => return Err(DUPLICATE),
            PathRule::Normalize => text.dedup_by(|a, b| *a == b'/' && *b == b'/'),
            PathRule::Keep => {}
        }
    }
    // What a reader may see that decodes everything first.
    let hidden = decoded(&text).split(|byte| matches!(byte, b'/' | b'\\')).filter(|segment| is_dots(segment)).count();
    if hidden == 0 || rules.dot_segments == PathRule::Keep {
        return Ok(text);
    }
    let plain = |segment: &[u8]| decoded(segment) == b"." || decoded(segment) == b"..";
    let seen = text.split(|&byte| byte == b'/').filter(|segment| plain(segment)).count();
    // One behind a slash that stays encoded cannot be made plain.
    match rules.dot_segments == PathRule::Normalize && seen == hidden {
        true => without_dots(&text).ok_or(ABOVE),
        false => Err(DOTS),
    }
}

/// Encoded slashes and backslashes by their rules.
fn slashes(path: &[u8], rules: &PathsConfig) -> Result<Vec<u8>, &'static str> {
    let mut text = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, behind)) = rest.split_first() {
        let (rule, why, bytes) = match (byte, behind) {
            (b'\\', _) => (rules.backslashes, BACKSLASH, 1),
            (b'%', [b'5', b'c' | b'C', ..]) => (rules.backslashes, BACKSLASH, 3),
            (b'%', [b'2', b'f' | b'F', ..]) => (rules.encoded_slashes, ENCODED, 3),
            _ => (PathRule::Keep, "", 1),
        };
        let (taken, left) = rest.split_at(bytes);
        match rule {
            PathRule::Refuse => return Err(why),
            PathRule::Normalize => text.push(b'/'),
            PathRule::Keep => text.extend_from_slice(taken),
        }
        rest = left;
    }
    Ok(text)
}

/// With dots, slashes and backslashes as themselves.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        let (byte, bytes) = match (byte, behind) {
            (b'%', [b'2', b'e' | b'E', ..]) => (b'.', 3),
            (b'%', [b'2', b'f' | b'F', ..]) => (b'/', 3),
            (b'%', [b'5', b'c' | b'C', ..]) => (b'\\', 3),
            (byte, _) => (byte, 1),
        };
        plain.push(byte);
        rest = &rest[bytes..];
    }
    plain
}

/// Whether a decoded segment is `.` or `..`, to some servers (Java's) also with parameters behind.
fn is_dots(segment: &[u8]) -> bool {
    let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
    name == b"." || name == b".."
}

/// RFC 3986 §5.2.4; `None` where it leads above the root, which there is the root and elsewhere is not.
fn without_dots(text: &[u8]) -> Option<Vec<u8>> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut folder = false;
    // The path begins with a slash, so what is before the first is nothing.
    for segment in text.split(|&byte| byte == b'/').skip(1) {
        let name = decoded(segment);
        folder = name == b"." || name == b"..";
        match &name[..] {
            b"." => {}
            b".." => drop(kept.pop()?),
            _ => kept.push(segment),
        }
    }
    let mut path = Vec::with_capacity(text.len());
    for segment in kept {
        path.push(b'/');
        path.extend_from_slice(segment);
    }
    if folder || path.is_empty() {
        path.push(b'/');
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(rule: PathRule) -> PathsConfig {
        PathsConfig { dot_segments: rule, encoded_slashes: rule, duplicate_slashes: rule, backslashes: rule }
    }

    fn settled(target: &str, rules: &PathsConfig) -> Result<String, &'static str> {
        let uri: Uri = target.parse().unwrap();
        Ok(settle(&uri, rules)?.unwrap_or(uri).to_string())
    }

    #[test]
    fn what_is_ambiguous_is_refused_made_plain_or_kept() {
        for (target, why, plain) in [
            ("/a/./b?x=/../", DOTS, Ok("/a/b?x=/../")),
            ("/a/../b", DOTS, Ok("/b")),
            ("/a/..", DOTS, Ok("/")),
            ("/a/b/..", DOTS, Ok("/a/")),
            ("/a/.", DOTS, Ok("/a/")),
            ("/a/%2e%2E/b", DOTS, Ok("/b")),
            ("/a/.%2e", DOTS, Ok("/")),
            ("/..", DOTS, Err(ABOVE)),
            ("/a/../../b", DOTS, Err(ABOVE)),
            ("/a/..;x/b", DOTS, Err(DOTS)),
            ("/a//b", DUPLICATE, Ok("/a/b")),
            ("//a", DUPLICATE, Ok("/a")),
            ("/a//", DUPLICATE, Ok("/a/")),
            ("/a%2fb", ENCODED, Ok("/a/b")),
            ("/a%2F..%2fb", ENCODED, Ok("/b")),
            ("/a%2f/b", ENCODED, Ok("/a/b")),
            ("/a\\b", BACKSLASH, Ok("/a/b")),
            ("/a%5Cb", BACKSLASH, Ok("/a/b")),
            ("/a\\", BACKSLASH, Ok("/a/")),
        ] {
            assert!(!is_plain(target.split('?').next().unwrap().as_bytes()), "{target}");
            assert_eq!(settled(target, &all(PathRule::Refuse)), Err(why), "{target}");
            assert_eq!(settled(target, &all(PathRule::Normalize)), plain.map(str::to_owned), "{target}");
            assert_eq!(settled(target, &all(PathRule::Keep)).as_deref(), Ok(target));
        }
    }

    #[test]
    fn a_dot_segment_behind_a_slash_that_stays_encoded_is_refused() {
        for dot_segments in [PathRule::Refuse, PathRule::Normalize] {
            let rules = PathsConfig { dot_segments, ..all(PathRule::Keep) };
            for target in ["/a%2f..%2fb", "/a\\..\\b", "/a/..%5cb"] {
                assert_eq!(settled(target, &rules), Err(DOTS), "{target}");
            }
            assert_eq!(settled("/a%2fb", &rules).as_deref(), Ok("/a%2fb"));
        }
    }

    #[test]
    fn others_are_plain() {
        for target in ["/", "/a", "/a/b.c/d..e/...", "*", "", "/a;b=c", "/.well", "/%", "/a%2", "/a%41", "/..a/b"] {
            assert_eq!(settle_path(target, &all(PathRule::Refuse)).as_deref(), Ok(target.as_bytes()), "{target}");
        }
        for target in ["/", "/a/b.c", "*", "", "/a;b=c", "/users/1"] {
            assert!(is_plain(target.as_bytes()), "{target}");
        }
    }

    proptest! {
        /// What is made plain is plain, to whoever looks at it again.
        #[test]
        fn what_is_made_plain_is_plain(path in "/([a/.;%]|%2e|%2f|%5c|\\\\){0,12}") {
            if let Ok(plain) = settle_path(&path, &all(PathRule::Normalize)) {
                let plain = String::from_utf8(plain).unwrap();
                prop_assert_eq!(settle_path(&plain, &all(PathRule::Refuse)), Ok(plain.into_bytes()));
            }
            if is_plain(path.as_bytes()) {
                prop_assert_eq!(settle_path(&path, &all(PathRule::Refuse)), Ok(path.into_bytes()));
            }
        }
    }
}
