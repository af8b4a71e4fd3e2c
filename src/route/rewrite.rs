//! What becomes of a request's target: the path that a backend sees, and the place that a redirect names.

use std::borrow::Cow;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};

use crate::config::{LocationPart, PathPattern, PathRewrite, Redirect};
use crate::target;

/// The target that the backend sees; `None` where it is the client's.
///
/// It starts with exactly one slash wherever this puts it together: `/api//elsewhere` without `/api` is `/elsewhere`, because
/// `//elsewhere` would name a host to a reader that resolves it as a reference (RFC 3986 §4.2). A target that is no path, as in
/// `OPTIONS *`, is left alone, and so is the path of a route that matches by pattern: it has no prefix.
pub fn backend_target(rewrite: &PathRewrite, pattern: &PathPattern, uri: &Uri) -> Option<PathAndQuery> {
    let replacement = match rewrite {
        PathRewrite::Keep => return None,
        PathRewrite::StripPrefix => "",
        PathRewrite::ReplacePrefix(replacement) => replacement,
    };
    let path = uri.path();
    if !path.starts_with('/') {
        return None;
    }
    let plain;
    let rest = match pattern {
        PathPattern::Exact(exact) if path == exact || target::path::matched(path).path == *exact => "",
        PathPattern::Exact(_) => return None,
        PathPattern::Prefix(prefix) => {
            match path.strip_prefix(prefix.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                Some(rest) if target::path::is_plain(path.as_bytes()) => rest,
                _ => {
                    plain = spelled(path);
                    let matched = target::path::matched(&plain).path;
                    matched.strip_prefix(prefix.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
                    target::path::behind(&plain, prefix)?
                }
            }
        }
        PathPattern::Regex(_) => return None,
    };
    if rest == path && replacement.is_empty() {
        return None;
    }
    let rest = match rest.strip_prefix("%2F").or(rest.strip_prefix("%5C")).or(rest.strip_prefix('\\')) {
        Some(behind) => Cow::Owned(format!("/{behind}")),
        None => Cow::Borrowed(rest),
    };

    let query = uri.query();
    let mut target = Vec::with_capacity(replacement.len() + rest.len() + query.map_or(0, str::len) + 2);
    target.extend_from_slice(replacement.as_bytes());
    if replacement.is_empty() {
        target.push(b'/');
        target.extend_from_slice(rest.trim_start_matches('/').as_bytes());
    } else {
        target.extend_from_slice(rest.as_bytes());
    }
    if let Some(query) = query {
        target.push(b'?');
        target.extend_from_slice(query.as_bytes());
    }
    PathAndQuery::from_maybe_shared(Bytes::from(target)).ok()
}

/// A path of which a part is taken off leads nowhere by its dot segments, which were kept: they are resolved before.
#[cold]
fn spelled(path: &str) -> Cow<'_, str> {
    match target::path::has_dots(path) {
        true => super::path::without_dots(path).map_or(Cow::Borrowed(path), Cow::Owned),
        false => Cow::Borrowed(path),
    }
}

/// The value of `Location`. `scheme` and `host` are the client's, the host with its port. `None` where the redirect asks
/// for a part that the request does not have in a form that can stand in a URL: that request is at fault.
///
/// What the client sent cannot change where a redirect goes beyond what its template leaves to the client: a host is a host
/// and nothing else, and a path does not become one (`//elsewhere`, `/\elsewhere`).
pub fn location(redirect: &Redirect, scheme: &str, host: &str, uri: &Uri) -> Option<HeaderValue> {
    let mut location = Vec::with_capacity(128);
    for part in &redirect.location {
        match part {
            LocationPart::Text(text) => location.extend_from_slice(text.as_bytes()),
            LocationPart::Scheme => location.extend_from_slice(scheme.as_bytes()),
            LocationPart::Host => {
                let fits = !host.is_empty() && host.bytes().all(is_host);
                location.extend_from_slice(fits.then_some(host)?.as_bytes());
            }
            LocationPart::Path => {
                let mut path = Some(uri.path()).filter(|path| path.starts_with('/'))?;
                if location.iter().all(|&byte| byte == b'/') {
                    location.clear();
                    location.push(b'/');
                    path = path.trim_start_matches('/');
                }
                escape(path, &mut location);
            }
            LocationPart::Query => {
                if let Some(query) = uri.query() {
                    location.push(b'?');
                    escape(query, &mut location);
                }
            }
        }
    }
    HeaderValue::from_maybe_shared(Bytes::from(location)).ok()
}

/// What a host with its port is made of (RFC 3986 §3.2.2), escapes and sub-delimiters left out: no name that is in use has
/// them, and browsers disagree on what they mean.
fn is_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']')
}

/// Escapes what clients send though it may not stand in a URL: quotes, backslashes, bytes that are not ASCII.
fn escape(text: &str, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        // RFC 3986 §2: unreserved, reserved but for `#`, and escapes as they are.
        if byte.is_ascii_alphanumeric() || b"-._~:/?[]@!$&'()*+,;=%".contains(&byte) {
            out.push(byte);
        } else {
            out.extend_from_slice(&[b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use regex::Regex;

    use super::*;

    fn prefix(text: &str) -> PathPattern {
        PathPattern::Prefix(text.into())
    }

    fn exact(text: &str) -> PathPattern {
        PathPattern::Exact(text.into())
    }

    fn replace(text: &str) -> PathRewrite {
        PathRewrite::ReplacePrefix(text.into())
    }

    #[test]
    fn targets_of_backends() {
        use PathRewrite::{Keep, StripPrefix};

        for (rewrite, pattern, uri, expected) in [
            (Keep, prefix("/api"), "/api/x", None),
            (StripPrefix, prefix("/api"), "/api", Some("/")),
            (StripPrefix, prefix("/api"), "/api/", Some("/")),
            (StripPrefix, prefix("/api"), "/api/x/y", Some("/x/y")),
            (StripPrefix, prefix("/api"), "/api/x/", Some("/x/")),
            (StripPrefix, prefix("/api"), "/api?a=1", Some("/?a=1")),
            (StripPrefix, prefix("/api"), "/api/x?", Some("/x?")),
            (StripPrefix, prefix("/api"), "/api/x?a=/api/y&b=%2F", Some("/x?a=/api/y&b=%2F")),
            (StripPrefix, prefix("/api"), "http://host/api/x", Some("/x")),
            (StripPrefix, prefix("/api"), "/api/%2Fx", Some("/%2Fx")),
            (StripPrefix, prefix("/api"), "/api//elsewhere", Some("/elsewhere")),
            (StripPrefix, prefix("/api"), "/api////elsewhere//x", Some("/elsewhere//x")),
            (StripPrefix, prefix("/api"), "/apix", None),
            (StripPrefix, prefix("/api"), "/other", None),
            (StripPrefix, prefix(""), "/x", None),
            (StripPrefix, prefix(""), "//x", None),
            (StripPrefix, exact("/health"), "/health", Some("/")),
            (StripPrefix, exact("/health"), "/health/x", None),
            (StripPrefix, exact("/health"), "//health;x", Some("/")),
            (StripPrefix, prefix("/api"), "//api;v=1//x;y", Some("/x;y")),
            (StripPrefix, prefix("/api"), "/api%2Fx", Some("/x")),
            (StripPrefix, prefix("/api"), "/a/../api/x", Some("/x")),
            (replace("/v2"), prefix("/api"), "//api%2Fx%2Fy", Some("/v2/x%2Fy")),
            (replace("/v2"), prefix("/api"), "/api", Some("/v2")),
            (replace("/v2"), prefix("/api"), "/api/", Some("/v2/")),
            (replace("/v2"), prefix("/api"), "/api/x?a", Some("/v2/x?a")),
            (replace("/v2"), prefix("/api"), "/api//x", Some("/v2//x")),
            (replace("/v2"), prefix(""), "/x", Some("/v2/x")),
            (replace("/v2"), prefix(""), "/", Some("/v2/")),
            (replace("/v2"), prefix(""), "*", None),
            (replace(""), prefix("/api"), "/api//x", Some("/x")),
            (replace(""), prefix("/api"), "/api", Some("/")),
            (replace("/livez"), exact("/health"), "/health?a=1", Some("/livez?a=1")),
            (replace(""), exact("/health"), "/health", Some("/")),
            (replace("/v2"), PathPattern::Regex(Regex::new("^(?:/.*)$").unwrap()), "/x", None),
        ] {
            let uri: Uri = uri.parse().unwrap();
            let target = backend_target(&rewrite, &pattern, &uri);
            assert_eq!(target.as_ref().map(PathAndQuery::as_str), expected, "{rewrite:?} {pattern:?} {uri}");
        }
    }

    /// `{name}` is a part, everything else text.
    fn redirect(template: &str) -> Redirect {
        let mut location = Vec::new();
        for piece in template.split_inclusive('}') {
            let (text, part) = piece.split_once('{').unwrap_or((piece, ""));
            if !text.is_empty() {
                location.push(LocationPart::Text(text.into()));
            }
            match part {
                "" => {}
                "scheme}" => location.push(LocationPart::Scheme),
                "host}" => location.push(LocationPart::Host),
                "path}" => location.push(LocationPart::Path),
                "query}" => location.push(LocationPart::Query),
                _ => panic!("{part}"),
            }
        }
        Redirect { status: StatusCode::FOUND, location }
    }

    #[test]
    fn locations() {
        for (template, host, uri, expected) in [
            ("https://{host}{path}{query}", "a.example", "/x/y?a=1", Some("https://a.example/x/y?a=1")),
            ("https://{host}{path}{query}", "a.example:8443", "/x", Some("https://a.example:8443/x")),
            ("https://{host}{path}{query}", "[::1]:80", "/?", Some("https://[::1]:80/?")),
            ("{scheme}://b.example{path}", "a.example", "/x?a=1", Some("http://b.example/x")),
            ("https://b.example/", "", "/x", Some("https://b.example/")),
            ("/login?next={path}", "", "/x", Some("/login?next=/x")),
            // Nothing that the client sends moves the redirect elsewhere.
            ("{path}", "", "/x", Some("/x")),
            ("{path}", "", "//elsewhere", Some("/elsewhere")),
            ("/{path}", "", "/elsewhere", Some("/elsewhere")),
            ("{path}", "", "/\\elsewhere", Some("/%5Celsewhere")),
            ("https://{host}{path}", "a.example", "//elsewhere", Some("https://a.example//elsewhere")),
            ("https://{host}{path}", "a.example", "*", None),
            ("https://b.example{path}", "a.example", "*", None),
            ("https://{host}/", "", "/", None),
            ("https://{host}/", "a.example/x", "/", None),
            ("https://{host}/", "user@a.example", "/", None),
            ("https://{host}/", "a.example?", "/", None),
            ("https://{host}/", "a.example#", "/", None),
            ("https://{host}/", "a.example\\x", "/", None),
            ("https://{host}/", "a.example\r\nx: y", "/", None),
            ("https://{host}/", "b\u{fc}cher.example", "/", None),
            // Escapes stay as they are, what had to be escaped is.
            ("{path}{query}", "", "/%0d%0A?%0a", Some("/%0d%0A?%0a")),
            ("{path}{query}", "", "/a\"b?c^d{e}", Some("/a%22b?c%5Ed%7Be%7D")),
            ("{path}", "", "/\u{fc}", Some("/%C3%BC")),
        ] {
            let uri: Uri = uri.parse().unwrap();
            let found = location(&redirect(template), "http", host, &uri);
            assert_eq!(found.as_ref().map(|value| value.to_str().unwrap()), expected, "{template} {host:?} {uri}");
        }
    }

    #[test]
    fn a_template_that_no_header_can_hold_gives_none() {
        assert_eq!(location(&redirect("https://b.example/\n"), "http", "a", &"/".parse().unwrap()), None);
    }
}
