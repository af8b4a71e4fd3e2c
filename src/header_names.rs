//! Names of header fields, in any spelling that a server reads.
//!
//! What runs behind CGI and its kin (WSGI, Rack, PHP) is told a field by a variable, where `-` and `_` are one: `X_Role` is `X-Role`
//! there. So what a rule says of a field holds for each spelling that some backend takes for it.

use http::header::{HeaderMap, HeaderName};

/// Whether two names are one to some backend: they differ in nothing but `-` and `_`.
pub fn is_spelling_of(a: &HeaderName, b: &HeaderName) -> bool {
    is_same(a.as_str().as_bytes(), b.as_str().as_bytes())
}

fn is_same(a: &[u8], b: &[u8]) -> bool {
    let same = |(&a, &b): (&u8, &u8)| a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_'));
    a.len() == b.len() && a.iter().zip(b).all(same)
}

fn begins(name: &[u8], prefix: &[u8]) -> bool {
    name.get(..prefix.len()).is_some_and(|start| is_same(start, prefix))
}

/// Whether a field tells a backend of the client's certificate, in any spelling, and so is the proxy's to send.
pub fn tells_identity(name: &HeaderName) -> bool {
    begins(name.as_str().as_bytes(), b"x-client-cert-")
}

/// Whether a field tells a backend of the client or of what it asked the first proxy for, in any spelling: all of `X-Forwarded-*`,
/// which frameworks build links from, `X-Real-IP`, and the proxy's own number of an attempt. (`Forwarded` has rules of its own.)
pub fn tells_client(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    // Nearly no name gets further than this.
    name.first() == Some(&b'x')
        && (begins(name, b"x-forwarded-") || is_same(name, b"x-real-ip") || is_same(name, b"x-isobar-attempt"))
}

/// Whether a name is written as this proxy writes it, and not in a spelling that a backend may take for that.
pub fn has_underscore(name: &HeaderName) -> bool {
    // Names are short: a vector's worth of setting up costs more than looking at each byte.
    name.as_str().as_bytes().contains(&b'_')
}

/// Removes the fields that are asked for.
#[cold]
pub fn remove(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn name(text: &'static str) -> HeaderName {
        HeaderName::from_static(text)
    }

    #[test]
    fn spellings() {
        for (a, b, same) in [
            ("x-role", "x-role", true),
            ("x-role", "x_role", true),
            ("x_role", "x-role", true),
            ("x-a-b", "x_a-b", true),
            ("x-role", "xxrole", false),
            ("x-role", "x-rolf", false),
            ("x-role", "x-roles", false),
        ] {
            assert_eq!(is_spelling_of(&name(a), &name(b)), same, "{a} {b}");
        }
    }

    #[test]
    fn what_tells_of_clients() {
        for text in ["x-forwarded-for", "x_forwarded_prefix", "x-forwarded-anything", "x_real-ip", "x-isobar_attempt"] {
            assert!(tells_client(&name(text)), "{text}");
        }
        for text in ["x-forwarded", "x-forward-for", "forwarded", "x-real-ips", "x-request-id", "ax-forwarded-for"] {
            assert!(!tells_client(&name(text)), "{text}");
        }
        assert!(tells_identity(&name("x_client_cert-subject")) && !tells_identity(&name("x-client-cert")));
    }

    #[test]
    fn all_values_of_a_field_go() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("x_real_ip", "1"), ("x_real_ip", "2"), ("x-other", "3")] {
            headers.append(name, HeaderValue::from_static(value));
        }
        remove(&mut headers, tells_client);
        assert_eq!(headers.len(), 1);
    }
}
