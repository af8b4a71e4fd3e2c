//! What a backend is sent for a path that servers read differently.
//!
//! Routes are found by the path as a backend reads it that decodes everything ([`target::path`](crate::target::path)). Whether such a
//! spelling is refused, made plain or passed on is for the listener and the route to say.

use std::borrow::Cow;

use http::uri::PathAndQuery;

use crate::config::{PathRule, PathsConfig, PathsKey};
use crate::exchange::RequestHead;
use crate::target::path::{has_dots, matched};
use crate::target::raw_target::AsSent;

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedPath {
    /// By which key of `paths`.
    pub key: PathsKey,
    /// What of the path.
    pub why: &'static str,
}

const DOTS: RefusedPath = RefusedPath { key: PathsKey::DotSegments, why: "the path has a dot segment" };
const ABOVE: RefusedPath = RefusedPath { key: PathsKey::DotSegments, why: "the path leads above its root" };
const ENCODED: RefusedPath = RefusedPath { key: PathsKey::EncodedSlashes, why: "the path has an encoded slash" };
const DUPLICATE: RefusedPath =
    RefusedPath { key: PathsKey::DuplicateSlashes, why: "the path has two slashes in a row" };
const BACKSLASH: RefusedPath = RefusedPath { key: PathsKey::Backslashes, why: "the path has a backslash" };

/// A tidy path by these rules: what the backend is sent.
///
/// # Errors
/// Why the request is refused.
pub fn settle<'a>(path: &'a str, rules: &PathsConfig) -> Result<Cow<'a, str>, RefusedPath> {
    let mut text = slashes(path, rules)?;
    if text.contains("//") {
        match rules.duplicate_slashes {
            PathRule::Refuse => return Err(DUPLICATE),
            PathRule::Normalize => {
                let mut plain = text.into_owned().into_bytes();
                plain.dedup_by(|a, b| *a == b'/' && *b == b'/');
                // Slashes were taken from between what is text.
                text = Cow::Owned(String::from_utf8(plain).map_err(|_| DUPLICATE)?);
            }
            PathRule::Keep => {}
        }
    }
    if rules.dot_segments == PathRule::Keep || !has_dots(&text) {
        return Ok(text);
    }
    match rules.dot_segments {
        PathRule::Normalize => {
            let plain = without_dots(&text).ok_or(ABOVE)?;
            // One behind a slash that stays encoded, or with parameters, cannot be made plain; nor can one behind what is a segment to some
            // servers and none to others (`//..`, `/;/..`).
            let is_plain = !has_dots(&plain) && matched(&plain).path == matched(path).path;
            if is_plain { Ok(Cow::Owned(plain)) } else { Err(DOTS) }
        }
        _ => Err(DOTS),
    }
}

/// Encoded slashes and backslashes by their rules.
fn slashes<'a>(path: &'a str, rules: &PathsConfig) -> Result<Cow<'a, str>, RefusedPath> {
    let mut text = Cow::Borrowed(path);
    for (spelling, rule, why) in [
        ("%2F", rules.encoded_slashes, ENCODED),
        ("%5C", rules.backslashes, BACKSLASH),
        ("\\", rules.backslashes, BACKSLASH),
    ] {
        if !text.contains(spelling) {
            continue;
        }
        match rule {
            PathRule::Refuse => return Err(why),
            PathRule::Normalize => text = Cow::Owned(text.replace(spelling, "/")),
            PathRule::Keep => {}
        }
    }
    Ok(text)
}

/// RFC 3986 §5.2.4; `None` where it leads above the root, which there is the root and elsewhere is not.
pub(super) fn without_dots(text: &str) -> Option<String> {
    let mut kept: Vec<&str> = Vec::new();
    let mut folder = false;
    // The path begins with a slash, so what is before the first is nothing.
    for segment in text.split('/').skip(1) {
        folder = segment == "." || segment == "..";
        match segment {
            "." => {}
            ".." => drop(kept.pop()?),
            _ => kept.push(segment),
        }
    }
    let mut path = String::with_capacity(text.len());
    for segment in kept {
        path.push('/');
        path.push_str(segment);
    }
    if folder || path.is_empty() {
        path.push('/');
    }
    Some(path)
}

/// Puts another path, with the query there is, in the place of a request's.
///
/// # Errors
/// It is too long.
pub fn replace(head: &mut RequestHead, path: &str) -> Result<(), &'static str> {
    let mut target = Vec::with_capacity(path.len() + 1 + head.uri.query().map_or(0, str::len));
    target.extend_from_slice(path.as_bytes());
    if let Some(query) = head.uri.query() {
        target.push(b'?');
        target.extend_from_slice(query.as_bytes());
    }
    let target = PathAndQuery::from_maybe_shared(bytes::Bytes::from(target));
    put(head, target.map_err(|_| "the path is too long")?);
    Ok(())
}

/// Puts another target with the same query in the place of a request's.
pub fn put(head: &mut RequestHead, target: PathAndQuery) {
    head.uri = target.into();
    if let Some(sent) = head.extensions.get_mut::<AsSent>() {
        sent.path = None;
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;
    use crate::exchange::RequestHead;
    use crate::target::path::tidy;

    fn all(rule: PathRule) -> PathsConfig {
        PathsConfig { dot_segments: rule, encoded_slashes: rule, duplicate_slashes: rule, backslashes: rule }
    }

    fn settled(path: &str, rules: &PathsConfig) -> Result<String, RefusedPath> {
        settle(&tidy(path).unwrap(), rules).map(Cow::into_owned)
    }

    #[test]
    fn what_is_ambiguous_is_refused_made_plain_or_kept() {
        for (path, why, plain) in [
            ("/a/./b", DOTS, Ok("/a/b")),
            ("/a/../b", DOTS, Ok("/b")),
            ("/a/..", DOTS, Ok("/")),
            ("/a/b/..", DOTS, Ok("/a/")),
            ("/a/.", DOTS, Ok("/a/")),
            ("/..", DOTS, Err(ABOVE)),
            ("/a/../../b", DOTS, Err(ABOVE)),
            ("/a/..;x/b", DOTS, Err(DOTS)),
            ("/a/..%3Bx/b", DOTS, Err(DOTS)),
            ("/a/;/../b", DOTS, Err(DOTS)),
            ("/a/%3B/../b", DOTS, Err(DOTS)),
            ("/a//b", DUPLICATE, Ok("/a/b")),
            ("//a", DUPLICATE, Ok("/a")),
            ("/a//", DUPLICATE, Ok("/a/")),
            ("/a%2Fb", ENCODED, Ok("/a/b")),
            ("/a%2F..%2Fb", ENCODED, Ok("/b")),
            ("/a%2F/b", ENCODED, Ok("/a/b")),
            ("/a\\b", BACKSLASH, Ok("/a/b")),
            ("/a%5Cb", BACKSLASH, Ok("/a/b")),
            ("/a\\", BACKSLASH, Ok("/a/")),
        ] {
            assert_eq!(settled(path, &all(PathRule::Refuse)), Err(why), "{path}");
            assert_eq!(settled(path, &all(PathRule::Normalize)), plain.map(str::to_owned), "{path}");
            assert_eq!(settled(path, &all(PathRule::Keep)).as_deref(), Ok(path));
        }
        assert_eq!(settled("/a/%2e%2E/.%2e/b", &all(PathRule::Keep)).as_deref(), Ok("/a/../../b"));
        assert_eq!(settled("/a/%2e%2E/b", &PathsConfig::default()), Err(DOTS));
    }

    #[test]
    fn a_dot_segment_behind_a_slash_that_stays_encoded_is_refused() {
        for dot_segments in [PathRule::Refuse, PathRule::Normalize] {
            let rules = PathsConfig { dot_segments, ..all(PathRule::Keep) };
            for path in ["/a%2f..%2fb", "/a\\..\\b", "/a/..%5cb"] {
                assert_eq!(settled(path, &rules), Err(DOTS), "{path}");
            }
            assert_eq!(settled("/a%2fb", &rules).as_deref(), Ok("/a%2Fb"));
        }
    }

    #[test]
    fn others_stay() {
        for path in ["/", "/a", "/a/b.c/d..e/...", "*", "/a;b=c", "/.well", "/a%20", "/..a/b", "/\u{e4}\""] {
            assert_eq!(settled(path, &all(PathRule::Refuse)).as_deref(), Ok(path));
        }
    }

    #[test]
    fn another_path_takes_the_place() {
        let mut parts = RequestHead::from(Request::get("/a?b=%2F").body(()).unwrap().into_parts().0);
        parts.extensions.insert(AsSent { path: Some("/a".into()), query: Some("b=%2F".into()) });
        replace(&mut parts, "/c").unwrap();
        assert_eq!(parts.uri, "/c?b=%2F");
        let sent = parts.extensions.get::<AsSent>().unwrap();
        assert_eq!((&sent.path, sent.query.as_deref()), (&None, Some(&b"b=%2F"[..])));
        assert!(replace(&mut parts, &"/a".repeat(40_000)).is_err());
    }

    proptest! {
        /// A normalized path stays as it is when it is normalized again.
        #[test]
        fn what_is_made_plain_is_plain(path in "/([a/.;%]|%2e|%2f|%5c|%3b|\\\\){0,12}") {
            if let Ok(plain) = settled(&path, &all(PathRule::Normalize)) {
                prop_assert_eq!(settled(&plain, &all(PathRule::Refuse)), Ok(plain));
            }
        }
    }
}
