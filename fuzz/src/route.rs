//! Any table of routes and any requests: the table finds what a search that looks at every route finds. Any path under any rules:
//! what is made plain is plain to every reader, and what routes are found by is what a backend gets.

use std::cmp::Reverse;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use isobar::config::{
    HeaderMatch, HostPattern, ListenerName, LocationPart, PathPattern, PathRewrite, PathRule, PathsConfig, QueryMatch,
    Redirect, Respond, RouteConfig, ValueMatch,
};
use isobar::exchange::RequestHead;
use isobar::http1::{self, Framing};
use isobar::route::{RoutingTable, path, rewrite};
use isobar::target::authority;
use isobar::target::path::{is_plain, matched, tidy};
use isobar::telemetry::metrics::Sharded;
use regex::Regex;

/// Makes of `data` routes, requests and paths, and looks at what they come to.
pub fn check(data: &[u8]) {
    let mut input = Unstructured::new(data);
    // Where the bytes are used up there is nothing more to look at.
    let _ = table(&mut input);
}

const LISTENERS: [&str; 2] = ["main", "side"];
const LABELS: [&str; 4] = ["a", "b", "com", "xn--a"];
const SEGMENTS: [&str; 11] = ["a", "b", "ab", "", "v1", "%61", "a.b", "users", "%2Fa", "b;x", "%22"];
const PATTERNS: [&str; 6] = ["/a/.*", "/[ab]/?", "/v[0-9]+/.*", ".*b", "/", "/a(/.*)?"];
const VALUES: [&str; 4] = ["1", "", "a b", "x"];

fn table(input: &mut Unstructured<'_>) -> Result<()> {
    // A path first, which takes few bytes.
    plain(input)?;
    let mut routes = Vec::new();
    for index in 0..input.int_in_range(0..=12)? {
        routes.push(Arc::new(route(input, index)?));
    }
    let table = RoutingTable::build(&routes, &[], &[], &mut |_| Arc::new(Sharded::new(1)));
    for _ in 0..input.int_in_range(1..=8)? {
        let host = asked_host(input)?;
        let Some(head) = request(input)? else { continue };
        let listener = ListenerName::from(*input.choose(&LISTENERS)?);
        let found = table.find(&listener, &host, &head).map(|route| route.name.as_str().parse().expect("its number"));
        let expected = naive(&routes, &listener, &host, &head);
        assert_eq!(found, expected, "of {routes:#?}\nfor {listener} {host:?} {head:?}");
    }
    Ok(())
}

fn name(input: &mut Unstructured<'_>) -> Result<String> {
    if input.ratio(1, 32)? {
        return Ok((*input.choose(&["10.0.0.1", "::1", "localhost"])?).to_owned());
    }
    let mut name = String::new();
    for index in 0..input.int_in_range(1..=4)? {
        if index > 0 {
            name.push('.');
        }
        name.push_str(input.choose(&LABELS)?);
    }
    Ok(name)
}

fn route(input: &mut Unstructured<'_>, index: usize) -> Result<RouteConfig> {
    let mut hosts = Vec::new();
    for _ in 0..input.int_in_range(0..=2)? {
        let name = name(input)?;
        hosts.push(match input.arbitrary()? {
            true => HostPattern::Exact(name),
            false => HostPattern::Wildcard(format!(".{name}")),
        });
    }
    let path = match input.int_in_range(0..=3)? {
        0 => PathPattern::Exact(kept_path(input)?),
        1 | 2 => PathPattern::Prefix(kept_path(input)?.trim_end_matches('/').to_owned()),
        _ => PathPattern::Regex(anchored(input.choose(&PATTERNS)?)),
    };
    let (mut methods, mut listeners, mut headers, mut query) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    if input.ratio(1, 3)? {
        methods.push(method(input)?);
    }
    if input.ratio(1, 6)? {
        listeners.push(ListenerName::from(*input.choose(&LISTENERS)?));
    }
    for _ in 0..input.int_in_range(0..=2)? {
        headers.push(HeaderMatch { name: header(input)?, value: wanted(input)? });
    }
    for _ in 0..input.int_in_range(0..=1)? {
        query.push(QueryMatch { name: (*input.choose(&["p", "q", ""])?).to_owned(), value: wanted(input)? });
    }
    Ok(RouteConfig {
        listeners,
        hosts,
        path,
        methods,
        headers,
        query,
        respond: Some(Respond { status: StatusCode::OK, content_type: None, body: Bytes::new() }),
        ..RouteConfig::new(index.to_string().as_str())
    })
}

fn anchored(pattern: &str) -> Regex {
    Regex::new(&format!("^(?:{pattern})$")).expect("a pattern of the list")
}

fn wanted(input: &mut Unstructured<'_>) -> Result<ValueMatch> {
    Ok(match input.int_in_range(0..=3)? {
        0 => ValueMatch::Present,
        1 => ValueMatch::Absent,
        2 => ValueMatch::Exact((*input.choose(&VALUES)?).to_owned()),
        _ => ValueMatch::Regex(anchored(input.choose(&["[0-9]*", "a.*", "x?"])?)),
    })
}

fn method(input: &mut Unstructured<'_>) -> Result<Method> {
    Ok(input.choose(&[Method::GET, Method::POST, Method::OPTIONS])?.clone())
}

fn header(input: &mut Unstructured<'_>) -> Result<HeaderName> {
    Ok(HeaderName::from_static(input.choose(&["x-a", "x-b", "accept"])?))
}

/// As the file's are kept.
fn kept_path(input: &mut Unstructured<'_>) -> Result<String> {
    Ok(matched(&tidy(&path_text(input)?).expect("without NUL")).path)
}

fn path_text(input: &mut Unstructured<'_>) -> Result<String> {
    let mut path = String::new();
    for _ in 0..input.int_in_range(1..=4)? {
        path.push('/');
        path.push_str(input.choose(&SEGMENTS)?);
    }
    Ok(path)
}

fn asked_host(input: &mut Unstructured<'_>) -> Result<String> {
    if input.ratio(1, 16)? {
        return Ok(String::from_utf8_lossy(&input.arbitrary::<[u8; 12]>()?).into_owned());
    }
    let mut host = name(input)?;
    if host == "::1" {
        host = "[::1]".to_owned();
    }
    if input.ratio(1, 8)? {
        // Longer than any name of the DNS.
        host = format!("{}.{host}", "a".repeat(input.int_in_range(200..=300)?));
    }
    if input.ratio(1, 3)? {
        host.make_ascii_uppercase();
    }
    host.push_str(input.choose(&["", "", "", ".", ":80", ".:80", ":", "..", "x"])?);
    Ok(host)
}

fn request(input: &mut Unstructured<'_>) -> Result<Option<RequestHead>> {
    let mut target = if input.ratio(1, 16)? { "*".to_owned() } else { path_text(input)? };
    if input.ratio(1, 3)? {
        target.push('?');
        for _ in 0..input.int_in_range(0..=4)? {
            target.push_str(input.choose(&["p", "q", "=", "&", "1", "a+b", "%31", "%70", "a%20b", "%", "x", "%ff"])?);
        }
    }
    let mut request = Request::builder().method(method(input)?).uri(target);
    for _ in 0..input.int_in_range(0..=2)? {
        request = request.header(header(input)?, *input.choose(&VALUES)?);
    }
    Ok(request.body(()).ok().map(|request| request.into_parts().0.into()))
}

/// The rules as the documentation has them, looked at for each route.
fn naive(routes: &[Arc<RouteConfig>], listener: &ListenerName, host: &str, head: &RequestHead) -> Option<usize> {
    let host = match host {
        "" => String::new(),
        host => bare(&authority::canonical(host.as_bytes())?),
    };
    let (path, with_parameters) = read(head.uri.path())?;
    let mut best = None;
    for (index, route) in routes.iter().enumerate() {
        if !others_fit(route, listener, head) {
            continue;
        }
        let any = [None];
        let hosts: Vec<Option<&HostPattern>> =
            if route.hosts.is_empty() { any.to_vec() } else { route.hosts.iter().map(Some).collect() };
        for pattern in hosts {
            let by_host = match pattern {
                None => (0, 0),
                Some(HostPattern::Exact(name)) if named(name, &host) => (2, 0),
                Some(HostPattern::Wildcard(suffix)) if below(suffix, &host) => (1, suffix.len()),
                Some(_) => continue,
            };
            let by_path = match &route.path {
                PathPattern::Exact(exact) if *exact == path => (3, 0),
                PathPattern::Prefix(prefix) if prefix.is_empty() => (0, 0),
                PathPattern::Prefix(prefix) if begins(prefix, &path) => (2, prefix.len()),
                // The first route of the same host with this pattern tells the place of them all.
                PathPattern::Regex(regex) if regex.is_match(&path) || regex.is_match(&with_parameters) => {
                    (1, usize::MAX - first(routes, pattern, regex))
                }
                _ => continue,
            };
            let asks = route.headers.len()
                + route.query.len()
                + usize::from(!route.methods.is_empty())
                + usize::from(!route.listeners.is_empty());
            let rank = (by_host, by_path, asks, Reverse(index));
            if best.is_none_or(|best| rank > best) {
                best = Some(rank);
            }
        }
    }
    best.map(|(.., Reverse(index))| index)
}

fn first(routes: &[Arc<RouteConfig>], host: Option<&HostPattern>, regex: &Regex) -> usize {
    let stands = |route: &&Arc<RouteConfig>| {
        let at_host = match host {
            None => route.hosts.is_empty(),
            Some(host) => route.hosts.contains(host),
        };
        at_host && matches!(&route.path, PathPattern::Regex(other) if other.as_str() == regex.as_str())
    };
    routes.iter().position(|route| stands(&route)).expect("itself")
}

/// Without port.
fn bare(host: &str) -> String {
    let digits = host.len() - host.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    host[..host.len() - digits].strip_suffix(':').unwrap_or(host).to_owned()
}

/// A path as a backend reads it that decodes everything and takes it apart then: without parameters, and with them. `None` if it is none.
fn read(path: &str) -> Option<(String, String)> {
    if !path.starts_with('/') {
        return Some((path.to_owned(), path.to_owned()));
    }
    let (mut decoded, mut rest) = (Vec::new(), path.as_bytes());
    while let Some((&first, behind)) = rest.split_first() {
        let code = rest.get(1..3).filter(|code| first == b'%' && code.iter().all(u8::is_ascii_hexdigit));
        let byte = code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 16).ok());
        decoded.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &rest[3..] } else { behind };
    }
    if decoded.contains(&0) {
        return None;
    }
    // Each without its parameters, and with them.
    let mut names: Vec<[&[u8]; 2]> = Vec::new();
    let mut folder = true;
    for whole in decoded.split(|byte| matches!(byte, b'/' | b'\\')) {
        let name = whole.split(|&byte| byte == b';').next().unwrap_or_default();
        folder = matches!(name, b"" | b"." | b"..");
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            _ => names.push([name, whole]),
        }
    }
    let write = |parameters: bool| {
        let mut text = String::new();
        for name in &names {
            text.push('/');
            for &byte in name[usize::from(parameters)] {
                match byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte) {
                    true => text.push(char::from(byte)),
                    false => text.push_str(&format!("%{byte:02X}")),
                }
            }
        }
        if folder {
            text.push('/');
        }
        text
    };
    Some((write(false), write(true)))
}

fn named(name: &str, host: &str) -> bool {
    name == host || format!("[{name}]") == host && name.contains(':')
}

fn below(suffix: &str, host: &str) -> bool {
    host.len() > suffix.len() && host.ends_with(suffix)
}

fn begins(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn others_fit(route: &RouteConfig, listener: &ListenerName, head: &RequestHead) -> bool {
    let fits = |wanted: &ValueMatch, values: Vec<Vec<u8>>| match wanted {
        ValueMatch::Present => !values.is_empty(),
        ValueMatch::Absent => values.is_empty(),
        ValueMatch::Exact(text) => values.iter().any(|value| value == text.as_bytes()),
        ValueMatch::Regex(regex) => {
            values.iter().any(|value| str::from_utf8(value).is_ok_and(|value| regex.is_match(value)))
        }
    };
    let header = |wanted: &HeaderMatch| {
        let all = head.all_headers();
        let values = all.get_all(&wanted.name).iter().map(|value| value.as_bytes().to_vec());
        fits(&wanted.value, values.collect())
    };
    let query = |wanted: &QueryMatch| {
        let pieces = head.uri.query().unwrap_or_default().split('&').filter(|piece| !piece.is_empty());
        let pairs = pieces.map(|piece| piece.split_once('=').unwrap_or((piece, "")));
        let values = pairs.filter(|(name, _)| unescaped(name) == wanted.name.as_bytes());
        fits(&wanted.value, values.map(|(_, value)| unescaped(value)).collect())
    };
    (route.listeners.is_empty() || route.listeners.contains(listener))
        && (route.methods.is_empty() || route.methods.contains(&head.method))
        && route.headers.iter().all(header)
        && route.query.iter().all(query)
}

fn unescaped(text: &str) -> Vec<u8> {
    let (text, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < text.len() {
        let code = text.get(at + 1..at + 3).filter(|_| text[at] == b'%');
        let code = code.filter(|code| code.iter().all(u8::is_ascii_hexdigit));
        match code.and_then(|code| u8::from_str_radix(str::from_utf8(code).ok()?, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if text[at] == b'+' { b' ' } else { text[at] });
                at += 1;
            }
        }
    }
    out
}

const PIECES: [&str; 20] = [
    "/", "/", "a", "b", ".", "..", ";", "%", "%2e", "%2E", "%2f", "%2F", "%5c", "%5C", "\\", "%25", "%2", "%00", "~",
    "%c0%af",
];

/// A path under some rules, and what becomes of it.
fn plain(input: &mut Unstructured<'_>) -> Result<()> {
    let mut rule = || Ok(*input.choose(&[PathRule::Refuse, PathRule::Normalize, PathRule::Keep])?);
    let rules = PathsConfig {
        dot_segments: rule()?,
        encoded_slashes: rule()?,
        duplicate_slashes: rule()?,
        backslashes: rule()?,
    };
    let mut target = "/".to_owned();
    for _ in 0..input.int_in_range(0..=16)? {
        match input.ratio(1, 16)? {
            true => target.push(char::from(input.int_in_range(b'!'..=b'~')?)),
            false => target.push_str(input.choose(&PIECES)?),
        }
    }
    if input.ratio(1, 4)? {
        target.push_str("?/../%2f//\\");
    }
    let Ok(uri) = target.parse::<Uri>() else { return Ok(()) };
    let asked = uri.path().to_owned();
    let Ok(tidy) = tidy(&asked) else { return Ok(()) };
    let settled = path::settle(&tidy, &rules);
    if is_plain(asked.as_bytes()) {
        assert_eq!(settled.as_deref(), Ok(&*asked), "{target} is plain, under {rules:?}");
        assert!(!has_dots(&asked) && !asked.contains("//"), "{target} is not plain");
        assert_eq!(matched(&tidy).path, asked, "{target} is plain");
    }
    let read = read(&asked).expect("without NUL");
    let found = matched(&tidy);
    let found = (found.path.clone(), found.with_parameters.unwrap_or(found.path));
    assert_eq!(found, read, "{target} is matched as no backend reads it");
    let Ok(settled) = settled else { return Ok(()) };
    let mut head = RequestHead::from(Request::get(uri.clone()).body(()).expect("a request").into_parts().0);
    path::replace(&mut head, &settled).expect("it is short");
    let becomes = head.uri;
    let shown = becomes.path();
    let again = isobar::target::path::tidy(shown).expect("without NUL");
    assert_eq!(
        path::settle(&again, &rules).as_deref(),
        Ok(shown),
        "{target} became {becomes}, and again something else: {rules:?}"
    );
    assert_eq!(matched(&again).path, read.0, "{target} became {becomes}, which is matched otherwise: {rules:?}");
    assert_eq!(becomes.query(), uri.query(), "{target}");
    assert!(shown.starts_with('/'), "{target} became {becomes}");
    let lower = shown.to_ascii_lowercase();
    for (rule, has, what) in [
        (rules.dot_segments, has_dots(shown), "a dot segment"),
        (rules.encoded_slashes, lower.contains("%2f"), "an encoded slash"),
        (rules.duplicate_slashes, lower.contains("//"), "two slashes"),
        (rules.backslashes, lower.contains('\\') || lower.contains("%5c"), "a backslash"),
    ] {
        assert!(rule == PathRule::Keep || !has, "{what} survives: {target} became {becomes} under {rules:?}");
    }
    if rules
        == (PathsConfig {
            dot_segments: PathRule::Keep,
            encoded_slashes: PathRule::Keep,
            duplicate_slashes: PathRule::Keep,
            backslashes: PathRule::Keep,
        })
    {
        assert_eq!(settled, tidy, "{target} is kept");
    }
    forwarded(input, &becomes)
}

/// What some reader takes for `.` or `..`: everything decoded, `\` taken for `/`, parameters cut off.
fn has_dots(path: &str) -> bool {
    let plain =
        path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/").replace('\\', "/");
    plain.split('/').any(|segment| matches!(segment.split(';').next(), Some("." | "..")))
}

/// What a backend is asked for, and where a redirect goes.
fn forwarded(input: &mut Unstructured<'_>, uri: &Uri) -> Result<()> {
    let (mut parts, ()) = Request::get(uri.clone()).body(()).expect("a request").into_parts();
    let (pattern, rewriting) = match input.int_in_range(0..=4)? {
        0 | 1 => (PathPattern::Prefix(String::new()), PathRewrite::Keep),
        2 => (PathPattern::Prefix("/a".into()), PathRewrite::StripPrefix),
        3 => (PathPattern::Prefix("/a".into()), PathRewrite::ReplacePrefix("/b/c".into())),
        _ => (PathPattern::Prefix(String::new()), PathRewrite::ReplacePrefix("/b".into())),
    };
    if let Some(target) = rewrite::backend_target(&rewriting, &pattern, uri) {
        assert_ne!(rewriting, PathRewrite::Keep);
        parts.uri = target.into();
        assert!(!has_dots(parts.uri.path()) || has_dots(uri.path()), "{uri} is sent on as {}", parts.uri);
        assert!(
            !parts.uri.path().starts_with("//") || uri.path().starts_with("//"),
            "{uri} is sent on as {}",
            parts.uri
        );
        assert_eq!(parts.uri.query(), uri.query());
    } else if rewriting == PathRewrite::Keep {
        assert_eq!(&parts.uri, uri);
    }
    let mut written = Vec::new();
    let sent = format!("GET {} HTTP/1.1\r\n\r\n", parts.uri);
    http1::request::write(&mut written, &parts.into(), Framing::None);
    assert_eq!(written, sent.as_bytes());
    for location in [
        vec![LocationPart::Path, LocationPart::Query],
        vec![LocationPart::Text("/".into()), LocationPart::Path],
        vec![LocationPart::Scheme, LocationPart::Text("://".into()), LocationPart::Host, LocationPart::Path],
    ] {
        let whole = location.len() == 4;
        let redirect = Redirect { status: StatusCode::FOUND, location };
        let Some(location) = rewrite::location(&redirect, "http", "h", uri) else { continue };
        let location: HeaderValue = location;
        let text = location.to_str().expect("a location is text");
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\'), "{uri} is redirected to {text}");
        match whole {
            true => assert!(text.starts_with("http://h/"), "{uri} is redirected to {text}"),
            false => assert!(text.starts_with('/') && !text.starts_with("//"), "{uri} is redirected to {text}"),
        }
    }
    Ok(())
}
