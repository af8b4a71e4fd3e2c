//! Targets with characters that clients leave as they are and [`http::Uri`] does not take.
//!
//! Quotation marks and angle brackets in a query (`?filter={"a":1}`), a backtick, bytes that are no UTF-8: RFC 3986 has them escaped,
//! browsers and others send them as they are, and servers take them. A `Uri` gets them escaped, which is what routes look at and
//! HTTP/2 sends; HTTP/1.1 writes what the client has sent.

use bytes::Bytes;

use super::authority;
use super::path::escape;

/// A target as a client has sent it, beside the [`http::Uri`] that has it escaped: among the extensions of a request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AsSent {
    /// Its path; `None` where another has taken its place.
    pub path: Option<Bytes>,
    /// Its query, without the question mark.
    pub query: Option<Bytes>,
}

/// A target as a [`http::Uri`] takes it, and as it was sent. `None` where escaping changes nothing.
#[cold]
pub fn escaped(target: &Bytes) -> Option<(String, AsSent)> {
    // Behind the authority, if there is one: that is looked at by a grammar of its own.
    let start = match target.windows(3).position(|three| three == b"://") {
        Some(scheme) if !target.starts_with(b"/") => {
            let behind = scheme + 3;
            behind
                + target[behind..].iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(target.len() - behind)
        }
        _ => 0,
    };
    let question = target[start..].iter().position(|&byte| byte == b'?').map(|at| start + at);
    let path = target.slice(start..question.unwrap_or(target.len()));
    let query = question.map(|at| target.slice(at + 1..));
    let mut text = std::str::from_utf8(&target[..start]).ok()?.to_owned();
    // A name in another script, which is as good as its A-labels.
    if let (false, Some((scheme, authority))) = (text.is_ascii(), text.split_once("://")) {
        text = format!("{scheme}://{}", authority::canonical(authority.as_bytes())?);
    }
    write(&path, &mut text);
    if let Some(query) = &query {
        text.push('?');
        write(query, &mut text);
    }
    // Bytes that are no text go escaped: some servers take one of them for white space, and end the target there.
    let path = Some(path).filter(|path| std::str::from_utf8(path).is_ok());
    (text.as_bytes() != &target[..]).then_some((text, AsSent { path, query }))
}

/// Control characters and `#` are left, for they are in no target.
fn write(piece: &[u8], text: &mut String) {
    for &byte in piece {
        match byte {
            b'"' | b'<' | b'>' | b'`' | 0x80.. => escape(byte, text),
            _ => text.push(char::from(byte)),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Uri;

    use super::*;

    #[test]
    fn what_is_escaped_is_taken() {
        for (target, taken, path, query) in [
            ("/x?f={\"a\":1}", "/x?f={%22a%22:1}", "/x", Some("f={\"a\":1}")),
            ("/x<y>`?a=<b>?\"", "/x%3Cy%3E%60?a=%3Cb%3E?%22", "/x<y>`", Some("a=<b>?\"")),
            ("/`", "/%60", "/`", None),
            ("http://h/<?", "http://h/%3C?", "/<", Some("")),
            ("http://h?<", "http://h?%3C", "", Some("<")),
            ("/http://h/<", "/http://h/%3C", "/http://h/<", None),
        ] {
            let (text, sent) = escaped(&Bytes::from(target)).unwrap();
            assert_eq!(text, taken);
            assert!(text.parse::<Uri>().is_ok(), "{text}");
            assert_eq!((sent.path.unwrap(), sent.query), (path.into(), query.map(Bytes::from)));
        }
        let (text, _) = escaped(&Bytes::from("http://b\u{fc}cher.example:1/")).unwrap();
        assert_eq!(text, "http://xn--bcher-kva.example:1/");
        let (text, sent) = escaped(&Bytes::from_static(b"/\xe4?\xff")).unwrap();
        assert_eq!((&*text, sent.path, sent.query.as_deref()), ("/%E4?%FF", None, Some(&b"\xff"[..])));
        assert_eq!(escaped(&Bytes::from_static(b"/plain?x")), None);
        assert_eq!(escaped(&Bytes::from_static(b"\xff://h/")), None);
    }
}
