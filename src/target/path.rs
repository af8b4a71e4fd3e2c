//! The path of a target, as all readers in isobar use it.
//!
//! Two forms are made of it. What is *forwarded* differs from what came only where every reader agrees that it is the same: an escaped
//! unreserved character is that character (RFC 3986 §6.2.2.2), the digits of other escapes are upper case, and a `%` that begins no
//! escape is escaped itself. What is *matched* is the path as a backend reads it that decodes everything, takes encoded slashes and
//! backslashes for slashes, several slashes for one, cuts off a segment's parameters (`;jsessionid=1`) and resolves dot segments: so
//! whatever a backend takes for a path, no spelling of it leads to another route. It is ASCII, with the escapes that a path needs.
//!
//! Nearly all paths are the same in both forms, and [`is_plain`] tells at the cost of one look at each byte.

use std::borrow::Cow;

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Whether a path is the same in all its forms: nothing in it is escaped, has a second spelling, or is read differently by some
/// server. It may say no of one that is, and of others never yes.
#[inline]
pub fn is_plain(path: &[u8]) -> bool {
    let (mut classes, mut pairs, mut last) = (0, 0, 0);
    for &byte in path {
        let class = CLASSES[usize::from(byte)];
        classes |= class;
        // A slash or a dot behind a slash.
        pairs |= class & last >> 1;
        last = class;
    }
    classes & ODD == 0 && pairs & BEHIND == 0
}

/// What must not stand behind a slash: a dot, or another slash.
const BEHIND: u8 = 1;
const SLASH: u8 = 2;
const ODD: u8 = 4;

const CLASSES: [u8; 256] = {
    let mut table = [ODD; 256];
    let mut byte = 0;
    while byte < 128u8 {
        if is_segment_byte(byte) && byte != b';' {
            table[byte as usize] = 0;
        }
        byte += 1;
    }
    table[b'.' as usize] = BEHIND;
    table[b'/' as usize] = BEHIND | SLASH;
    table
};

/// What may stand in a segment as it is (RFC 3986 §3.3).
const fn is_segment_byte(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@')
}

/// What is the same escaped and not (RFC 3986 §2.3).
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Why a path is none: it has an escaped NUL, at which some servers end a path and others do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nul;

/// The path as it is forwarded, before what a listener or a route says of spellings that servers read differently. It is the same when it
/// is tidied again.
///
/// # Errors
/// It is none.
pub fn tidy(path: &str) -> Result<Cow<'_, str>, Nul> {
    let mut tidy = String::new();
    // Up to where the path is written down already.
    let mut done = 0;
    for (at, _) in path.match_indices('%') {
        let (byte, written) = match escaped(&path.as_bytes()[at..]) {
            Some(0) => return Err(Nul),
            Some(byte) => (Some(byte), 3),
            None => (None, 1),
        };
        let digits = &path.as_bytes()[at + 1..at + written];
        match byte {
            Some(byte) if !is_unreserved(byte) && !digits.iter().any(u8::is_ascii_lowercase) => continue,
            _ => tidy.push_str(&path[done..at]),
        }
        done = at + written;
        match byte {
            Some(byte) if is_unreserved(byte) => tidy.push(char::from(byte)),
            Some(byte) => escape(byte, &mut tidy),
            None => tidy.push_str("%25"),
        }
    }
    if done == 0 {
        return Ok(Cow::Borrowed(path));
    }
    tidy.push_str(&path[done..]);
    Ok(Cow::Owned(tidy))
}

/// How a path is compared with what routes ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matched {
    /// As a backend reads it that decodes everything.
    pub path: String,
    /// The same with the parameters of its segments, where there are some: a pattern may ask for them.
    pub with_parameters: Option<String>,
}

/// What of a tidy path is matched. One that is matched stays as it is.
pub fn matched(path: &str) -> Matched {
    let read = |parameters| read(path, PathReader { parameters, ..PathReader::DEFAULT });
    let has_parameters = path.contains(';') || path.contains("%3B");
    Matched { path: read(false), with_parameters: has_parameters.then(|| read(true)) }
}

/// A tidy path as a backend reads it that takes encoded slashes and backslashes for parts of names; `None` where that is how it is
/// [`matched`].
pub fn literal(path: &str) -> Option<String> {
    let differs = path.contains('\\') || path.contains("%5C") || path.contains("%2F");
    differs.then(|| read(path, PathReader { decodes: false, ..PathReader::DEFAULT }))
}

/// All the ways in which some backend reads a tidy path with dot segments, or with slashes in parameters, beside that in which it is
/// [`matched`]: it decodes before it takes the path apart or behind that, it resolves dot segments or takes them for names, what two
/// slashes stand around is a segment to it or is none, and parameters are a part of a name or are none.
pub fn guesses(path: &str) -> Vec<String> {
    let dots = [Dots::Names, Dots::Resolved, Dots::ResolvedBesideNothing];
    let ways = [true, false]
        .into_iter()
        .flat_map(|decodes| dots.map(|dots| PathReader { decodes, dots, ..PathReader::DEFAULT }));
    let ways = ways.flat_map(|reader| [reader, PathReader { parameters: true, whole: true, ..reader }]);
    ways.map(|reader| read(path, reader)).collect()
}

/// A tidy path that begins with two slashes, as who takes it for a reference reads it (RFC 3986 §4.2): the host that it names then, and the
/// path behind that as it is [`matched`].
pub fn as_reference(path: &str) -> Option<(&str, String)> {
    let slash = |text: &'_ str| text.starts_with(['/', '\\']);
    let rest = path.get(1..).filter(|rest| slash(path) && slash(rest))?[1..].trim_start_matches(['/', '\\']);
    let end = rest.find(['/', '\\']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    let host = host.rsplit('@').next().unwrap_or(host);
    let path = if path.is_empty() { "/".to_owned() } else { matched(&path.replace('\\', "/")).path };
    Some((host, path))
}

/// Whether some server finds a dot segment in a tidy path.
pub fn has_dots(path: &str) -> bool {
    segments(path, true).any(|segment| is_dots(name(segment)))
}

/// Whether a segment's parameters in a tidy path hold what some server takes for a slash, and others do not, for they cut the parameters
/// off before they decode.
pub fn has_slashes_in_parameters(path: &str) -> bool {
    path.split('/').filter_map(|segment| segment.split_once(';')).any(|(_, it)| segments(it, true).nth(1).is_some())
}

/// What is left of a tidy path behind as many segments as `prefix` has; with the slash, however it is spelled, that it begins with.
/// `None` where there are fewer. The path has no dot segments.
pub fn behind<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let mut left = prefix.split('/').filter(|segment| !segment.is_empty()).count();
    let mut at = 0;
    let mut segments = segments(path, true);
    while left > 0 {
        let segment = segments.next()?;
        left -= usize::from(!name(segment).is_empty());
        at = segment.as_ptr().addr() - path.as_ptr().addr() + segment.len();
    }
    Some(&path[at..])
}

/// How a backend reads paths.
#[derive(Clone, Copy)]
struct PathReader {
    /// It takes encoded slashes and backslashes for slashes.
    decodes: bool,
    dots: Dots,
    /// It takes the parameters of a segment for a part of its name, but where dot segments are looked for.
    parameters: bool,
    /// There too: to it, `..;` is no dot segment.
    whole: bool,
}

/// What dot segments are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dots {
    /// Names as others.
    Names,
    /// Steps, for which what stands between two slashes is nothing.
    Resolved,
    /// Steps, for which that is a segment (RFC 3986 §5.2.4).
    ResolvedBesideNothing,
}

impl PathReader {
    /// Decodes everything.
    const DEFAULT: Self = Self { decodes: true, dots: Dots::Resolved, parameters: false, whole: false };
}

fn read(path: &str, reader: PathReader) -> String {
    if !path.starts_with('/') {
        // `*`.
        return path.to_owned();
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut folder = true;
    // What is before the first slash is nothing.
    for segment in segments(path, reader.decodes).skip(1) {
        let name = if reader.whole { segment } else { name(segment) };
        let steps = reader.dots != Dots::Names && is_dots(name);
        folder = name.is_empty() || steps;
        if steps && name == ".." {
            // Nothing is above the root.
            kept.pop();
        }
        if !steps && (!name.is_empty() || reader.dots == Dots::ResolvedBesideNothing) {
            kept.push(if reader.parameters { segment } else { name });
        }
    }
    let mut plain = String::with_capacity(path.len() + 8);
    for segment in kept.into_iter().filter(|segment| !segment.is_empty()) {
        plain.push('/');
        spell(segment, &mut plain);
    }
    if folder || plain.is_empty() {
        plain.push('/');
    }
    plain
}

/// The segments of a tidy path: between slashes, and with `decodes` between all that some server takes for one.
fn segments(path: &str, decodes: bool) -> impl Iterator<Item = &str> {
    let mut rest = Some(path);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = text.bytes().enumerate().find_map(|(at, byte)| match byte {
            b'/' => Some((at, 1)),
            b'\\' if decodes => Some((at, 1)),
            b'%' if decodes && matches!(&text.as_bytes()[at..], [_, b'2', b'F', ..] | [_, b'5', b'C', ..]) => {
                Some((at, 3))
            }
            _ => None,
        });
        rest = end.map(|(at, bytes)| &text[at + bytes..]);
        Some(end.map_or(text, |(at, _)| &text[..at]))
    })
}

/// A segment without its parameters. Some servers look for them when they have decoded.
fn name(segment: &str) -> &str {
    let end = segment.find(';').into_iter().chain(segment.find("%3B")).min();
    end.map_or(segment, |end| &segment[..end])
}

fn is_dots(name: &str) -> bool {
    name == "." || name == ".."
}

/// Writes a piece of a tidy segment with the escapes that it needs, and no others.
fn spell(piece: &str, out: &mut String) {
    let mut rest = piece.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let escaped = escaped(rest);
        let byte = escaped.unwrap_or(first);
        rest = if escaped.is_some() { &rest[3..] } else { behind };
        if is_segment_byte(byte) { out.push(char::from(byte)) } else { escape(byte, out) }
    }
}

/// The byte that an escape in the beginning of a text stands for.
fn escaped(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

pub(super) fn escape(byte: u8, out: &mut String) {
    out.extend(['%', char::from(HEX[usize::from(byte >> 4)]), char::from(HEX[usize::from(byte & 15)])]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(path: &str) -> String {
        matched(&tidy(path).unwrap()).path
    }

    #[test]
    fn what_is_forwarded() {
        for (path, expected) in [
            ("/", "/"),
            ("/%61dmin", "/admin"),
            ("/a%2e%2E%2d%5f%7e", "/a..-_~"),
            ("/@s%2fp", "/@s%2Fp"),
            ("/%e4%E4", "/%E4%E4"),
            ("/a b\"<>|{}^`", "/a b\"<>|{}^`"),
            ("/\u{e4}", "/\u{e4}"),
            ("/a;b=c//d\\e/..", "/a;b=c//d\\e/.."),
            // No escape is made where none was.
            ("/100%", "/100%25"),
            ("/%%36%31", "/%2561"),
            ("/%u0061", "/%25u0061"),
            ("/%2", "/%252"),
            ("/%2%66", "/%252f"),
            ("/%2561", "/%2561"),
            ("*", "*"),
        ] {
            assert_eq!(tidy(path).unwrap(), expected, "{path}");
        }
        assert_eq!(tidy("/a%00"), Err(Nul));
    }

    #[test]
    fn what_is_matched() {
        for (path, expected) in [
            ("/", "/"),
            ("//", "/"),
            ("/a/", "/a/"),
            ("/a//", "/a/"),
            ("/a;x", "/a"),
            ("/a;x/b;y=1;z", "/a/b"),
            ("/;/admin", "/admin"),
            ("/;x=1/;/admin", "/admin"),
            ("/admin;", "/admin"),
            ("/admin/;x", "/admin/"),
            ("/a%3Bx", "/a"),
            ("//admin", "/admin"),
            ("/a%2Fb", "/a/b"),
            ("/%2Fa", "/a"),
            ("/a%2f", "/a/"),
            ("/a\\b%5cc", "/a/b/c"),
            ("/a/./b/../c", "/a/c"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/../../a", "/a"),
            ("/a/..;x/b", "/b"),
            ("/a%2F..%2Fb", "/b"),
            ("/%40me%3a", "/@me:"),
            ("/\u{e4}", "/%C3%A4"),
            ("/%c3%a4", "/%C3%A4"),
            ("/a\"<[]>", "/a%22%3C%5B%5D%3E"),
            ("/a%20b%25%3f%23", "/a%20b%25%3F%23"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(plain(path), expected, "{path}");
        }
        let parameters = matched("/a;x=1//b").with_parameters;
        assert_eq!(parameters.as_deref(), Some("/a;x=1/b"));
        assert_eq!(matched("/a%2Fb").with_parameters, None);
    }

    #[test]
    fn what_is_read_literally() {
        for (path, expected) in [
            ("/a%2Fb", Some("/a%2Fb")),
            ("/a\\b//c;x", Some("/a%5Cb/c")),
            ("/a/../b", None),
            ("/a;x%2Fb", Some("/a")),
            ("/a;x//b", None),
            ("/%40", None),
        ] {
            assert_eq!(literal(path).as_deref(), expected, "{path}");
        }
        assert!(has_slashes_in_parameters("/a;x%2Fb") && has_slashes_in_parameters("/a;\\"));
        assert!(!has_slashes_in_parameters("/a%2Fb;x/c") && !has_slashes_in_parameters("/a%3Bx%2Fb"));
    }

    #[test]
    fn what_else_backends_may_read() {
        for (path, expected) in [
            ("/a/../b", &["/a/../b", "/b"][..]),
            ("/a/;/../b", &["/a/;/../b", "/a/../b", "/b", "/a/b"]),
            ("/a//../b", &["/a/../b", "/b", "/a/b"]),
            ("/admin%2F../x", &["/admin/../x", "/x", "/admin%2F../x"]),
            ("/a;x%2Fb", &["/a/b", "/a", "/a;x/b", "/a;x%2Fb"]),
            ("/a/.;/../b", &["/a/.;/../b", "/b", "/a/b", "/a/./../b"]),
        ] {
            let guesses = guesses(path);
            assert!(guesses.iter().all(|it| expected.contains(&&**it)), "{path}: {guesses:?}");
            assert!(expected.iter().all(|it| guesses.iter().any(|guess| guess == it)), "{path}: {guesses:?}");
        }
        for (path, expected) in [
            ("//x/admin", Some(("x", "/admin"))),
            ("///x//admin", Some(("x", "/admin"))),
            ("/\\x\\admin", Some(("x", "/admin"))),
            ("//u@x:1/a/b;c", Some(("x:1", "/a/b"))),
            ("//admin.test", Some(("admin.test", "/"))),
            ("//", Some(("", "/"))),
            ("/x//admin", None),
            ("/", None),
        ] {
            let found = as_reference(path);
            assert_eq!(found.as_ref().map(|(host, path)| (*host, &**path)), expected, "{path}");
        }
    }

    #[test]
    fn what_is_behind_a_prefix() {
        for (path, prefix, expected) in [
            ("/api/x", "/api", Some("/x")),
            ("//api//x", "/api", Some("//x")),
            ("/;y/api;z/x", "/api", Some("/x")),
            ("/api%2Fx", "/api", Some("%2Fx")),
            ("/api\\x", "/api", Some("\\x")),
            ("/a/b/c", "/a/b", Some("/c")),
            ("/a/b", "/a/b", Some("")),
            ("/a", "/a/b", None),
            ("/a//", "/a/b", None),
            ("/x", "", Some("/x")),
        ] {
            assert_eq!(behind(path, prefix), expected, "{path} {prefix}");
        }
    }

    proptest! {
        #[test]
        fn forms_are_their_own(
            path in "/([a/.;%=@\"\u{e4}\\\\ 2fF5cC]|%2e|%2f|%2F|%5c|%3b|%61|%25|%c3|%a4){0,12}",
        ) {
            let Ok(tidy) = tidy(&path) else { return Ok(()) };
            prop_assert_eq!(super::tidy(&tidy), Ok(Cow::Borrowed(&*tidy)));
            let matched = matched(&tidy);
            prop_assert_eq!(&plain(&matched.path), &matched.path);
            for form in [Some(&matched.path), matched.with_parameters.as_ref(), literal(&tidy).as_ref()].into_iter().flatten() {
                prop_assert!(form.starts_with('/') && form.is_ascii() && !form.contains("//"), "{}", form);
            }
            if is_plain(path.as_bytes()) {
                prop_assert_eq!((&*tidy, &*matched.path, literal(&tidy)), (&*path, &*path, None));
            }
        }

        /// An independent reader: everything decoded, then taken apart.
        #[test]
        fn what_is_matched_is_what_a_backend_reads(
            path in "/([a/.;=@\"\\\\]|%2e|%2E|%2f|%5C|%3B|%61|%25|%20|%c3%a4){0,12}",
        ) {
            let decode = |text: &str| {
                let mut bytes = Vec::new();
                let mut rest = text.as_bytes();
                while let Some((&first, behind)) = rest.split_first() {
                    let byte = escaped(rest);
                    bytes.push(byte.unwrap_or(first));
                    rest = if byte.is_some() { &rest[3..] } else { behind };
                }
                bytes
            };
            let decoded = decode(&path);
            let mut names: Vec<&[u8]> = Vec::new();
            for segment in decoded.split(|byte| matches!(byte, b'/' | b'\\')) {
                match segment.split(|&byte| byte == b';').next().unwrap_or_default() {
                    b"" | b"." => {}
                    b".." => drop(names.pop()),
                    name => names.push(name),
                }
            }
            let found = decode(&plain(&path));
            let found: Vec<&[u8]> = found.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).collect();
            prop_assert_eq!(found, names, "{}", path);
        }
    }
}
