//! The host that is asked: the value of `Host`, of `:authority`, or of an absolute target's authority, by one grammar.
//!
//! A name or an address, and digits for a port if any (RFC 9110 §7.2, RFC 3986 §3.2). Narrower than RFC 3986 in what no name in use
//! has, and what servers read differently: no user, no escapes, no sub-delimiters, no empty label, no zone. The canonical form has a
//! name in lower case, without its final dot, in A-labels where it is internationalised (RFC 5890), and an IPv6 address as RFC 5952
//! writes it.

use std::net::Ipv6Addr;

/// Longer than any name in the DNS is no name.
pub const NAME_MAX: usize = 253;

/// A host in its canonical form, without its port. Empty where the request names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host<'a>(&'a str);

impl<'a> Host<'a> {
    /// No host.
    pub const NONE: Host<'static> = Host("");

    /// The host of an authority in its canonical form.
    pub fn of(authority: &'a str) -> Self {
        Self(split(authority).0)
    }

    /// As text.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// Takes an authority in its canonical form apart: its host, and its port if it names one.
pub fn split(authority: &str) -> (&str, Option<&str>) {
    // From the end: most hosts end in a letter, which says at once that there is no port.
    match authority.bytes().rposition(|byte| !byte.is_ascii_digit()) {
        Some(colon) if authority.as_bytes()[colon] == b':' => (&authority[..colon], Some(&authority[colon + 1..])),
        _ => (authority, None),
    }
}

/// Whether an authority is canonical as it is: what nearly all requests are asked. It may say no of one that is, and never yes of one
/// that is not. The empty one, which names no host, is none.
#[inline]
pub fn is_canonical(authority: &[u8]) -> bool {
    let (mut classes, mut dots, mut last, mut name) = (0, 0, DOT, authority.len());
    for (at, &byte) in authority.iter().enumerate() {
        if byte == b':' {
            name = at;
            break;
        }
        let class = CLASSES[usize::from(byte)];
        classes |= class;
        // An empty label: a dot in the beginning, or behind another.
        dots |= class & last;
        last = class;
    }
    let (name, port) = authority.split_at(name);
    classes & OTHER == 0
        && dots & DOT == 0
        && !matches!(name.last(), None | Some(b'.'))
        && name.len() <= NAME_MAX
        && matches!(port.len(), 0 | 2..=6)
        && port.iter().skip(1).all(u8::is_ascii_digit)
}

/// So many digits a port has at most.
const PORT_MAX: usize = 5;

const DOT: u8 = 1;
const OTHER: u8 = 2;

/// What stands in a canonical name (0), between its labels, and what does not.
const CLASSES: [u8; 256] = {
    let mut table = [OTHER; 256];
    let mut byte = 0;
    while byte < 128u8 {
        if byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_') {
            table[byte as usize] = 0;
        }
        byte += 1;
    }
    table[b'.' as usize] = DOT;
    table
};

/// The canonical form of an authority; `None` if it is none.
#[cold]
pub fn canonical(authority: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(authority).ok()?;
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            // Never with a zone, which means something to the client only (RFC 6874).
            (format!("[{}]", address.parse::<Ipv6Addr>().ok()?), port)
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            (name(&text[..end])?, &text[end..])
        }
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Some(host),
        // An empty port is none (RFC 3986 §6.2.3).
        Some("") => Some(host),
        Some(digits) if digits.len() <= PORT_MAX && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(host + port)
        }
        _ => None,
    }
}

/// The canonical form of a name: in A-labels, lower case, without its final dot. `None` if it is none.
pub fn name(text: &str) -> Option<String> {
    let lower = match text.is_ascii() {
        true => text.to_ascii_lowercase(),
        // What a browser makes of it (UTS #46), and as strict about what is left.
        false => idna::domain_to_ascii_cow(text.as_bytes(), idna::AsciiDenyList::STD3).ok()?.into_owned(),
    };
    let name = lower.strip_suffix('.').unwrap_or(&lower);
    let fits = name.len() <= NAME_MAX && name.split('.').all(|label| !label.is_empty());
    (fits && name.bytes().all(|byte| CLASSES[usize::from(byte)] & OTHER == 0)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_form_or_none() {
        let long = "a".repeat(NAME_MAX);
        let longer = format!("{}.adm.test", "a".repeat(250));
        for (written, form) in [
            ("example.com", Some("example.com")),
            ("Example.COM:80", Some("example.com:80")),
            ("example.com.", Some("example.com")),
            ("example.com.:443", Some("example.com:443")),
            ("example.com:", Some("example.com")),
            ("[::1]:", Some("[::1]")),
            ("under_score-1.test", Some("under_score-1.test")),
            ("xn--bcher-kva.example", Some("xn--bcher-kva.example")),
            ("b\u{fc}cher.example:1", Some("xn--bcher-kva.example:1")),
            ("B\u{dc}CHER.example", Some("xn--bcher-kva.example")),
            // A full stop of another script is one (UTS #46).
            ("a\u{3002}b", Some("a.b")),
            ("\u{ff41}dmin.test", Some("admin.test")),
            ("10.0.0.1:65535", Some("10.0.0.1:65535")),
            ("123", Some("123")),
            ("[::1]:8080", Some("[::1]:8080")),
            ("[0:0::0001]", Some("[::1]")),
            ("[2001:DB8::A]", Some("[2001:db8::a]")),
            (&long, Some(&long)),
            (&longer, None),
            ("", None),
            (".", None),
            (":80", None),
            (".a", None),
            ("a..b", None),
            ("a..", None),
            ("admin.test:x", None),
            ("admin.test:80x", None),
            ("admin.test:+80", None),
            ("admin.test:80:80", None),
            ("admin.test:123456", None),
            ("u@a", None),
            ("u:p@a", None),
            ("a b", None),
            ("a/b", None),
            ("a,b", None),
            ("a%62", None),
            ("a\\b", None),
            ("a\0", None),
            ("a?b", None),
            ("a#b", None),
            ("*", None),
            ("::1", None),
            ("[::1", None),
            ("[::1]80", None),
            ("[::1]x", None),
            ("[fe80::1%25eth0]", None),
            ("[v1.a]", None),
            ("[10.0.0.1]", None),
        ] {
            assert_eq!(canonical(written.as_bytes()).as_deref(), form, "{written}");
            let plain = is_canonical(written.as_bytes());
            // Addresses in brackets are looked at closely each time.
            assert_eq!(plain, form == Some(written) && !written.starts_with('['), "{written}");
        }
        assert_eq!(canonical(b"a\xff"), None);
    }

    #[test]
    fn is_taken_apart() {
        for (authority, host, port) in [
            ("example.com", "example.com", None),
            ("example.com:8080", "example.com", Some("8080")),
            ("[::1]", "[::1]", None),
            ("[::1]:8080", "[::1]", Some("8080")),
            ("10.0.0.1", "10.0.0.1", None),
            ("123", "123", None),
            ("", "", None),
        ] {
            assert_eq!(split(authority), (host, port), "{authority}");
            assert_eq!(Host::of(authority).as_str(), host);
        }
    }

    proptest! {
        /// The canonical form is the one of itself, and what is found canonical without a close look is so by a close one.
        #[test]
        fn it_is_its_own(text in "[a-cA-Z.:\\[\\]0-9_\u{e4}\u{df}\u{3002}@%-]{0,12}|\\[[0-9a-f:.]{0,12}\\](:[0-9]{0,6})?") {
            if let Some(form) = canonical(text.as_bytes()) {
                prop_assert_eq!(canonical(form.as_bytes()), Some(form.clone()));
                prop_assert!(form.starts_with('[') || is_canonical(form.as_bytes()), "{}", form);
            }
            if is_canonical(text.as_bytes()) {
                prop_assert_eq!(canonical(text.as_bytes()), Some(text));
            }
        }
    }
}
