//! Hosts as clients write them.

/// Longer than any name in the DNS (253): a host beyond it is none that a route names.
pub(super) const LENGTH_MAX: usize = 256;

/// The host itself in the value of a `Host` header: without port and final dot. An IPv6 address keeps its brackets.
pub(super) fn bare(value: &str) -> &[u8] {
    let value = value.as_bytes();
    // From the end: most hosts end in a letter, which says at once that there is no port.
    let host = match value.iter().rposition(|byte| !byte.is_ascii_digit()) {
        Some(colon) if value[colon] == b':' => &value[..colon],
        _ => value,
    };
    host.strip_suffix(b".").unwrap_or(host)
}

/// Whether [`lower`] would change nothing.
pub(super) fn is_lower(host: &[u8]) -> bool {
    !host.iter().any(u8::is_ascii_uppercase)
}

/// The host in lower case, in a buffer of the caller's; `None` where it does not fit.
pub(super) fn lower<'a>(host: &[u8], buffer: &'a mut [u8; LENGTH_MAX]) -> Option<&'a [u8]> {
    let lower = buffer.get_mut(..host.len())?;
    lower.copy_from_slice(host);
    lower.make_ascii_lowercase();
    Some(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bared() {
        for (value, expected) in [
            ("example.com", "example.com"),
            ("example.com:8080", "example.com"),
            ("example.com:", "example.com"),
            ("example.com.", "example.com"),
            ("example.com.:443", "example.com"),
            ("example.com..", "example.com."),
            ("Example.COM:80", "Example.COM"),
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::1]:8080", "[::1]"),
            ("localhost", "localhost"),
            ("123", "123"),
            (":80", ""),
            (".", ""),
            ("", ""),
            ("example.com:80x", "example.com:80x"),
            ("b\u{fc}cher.example:1", "b\u{fc}cher.example"),
        ] {
            assert_eq!(bare(value), expected.as_bytes(), "{value}");
        }
    }

    #[test]
    fn is_lowered() {
        let mut buffer = [0; LENGTH_MAX];
        assert_eq!(lower(b"WWW.Example.com", &mut buffer), Some(&b"www.example.com"[..]));
        assert_eq!(lower(&[b'A'; LENGTH_MAX], &mut buffer), Some(&[b'a'; LENGTH_MAX][..]));
        assert_eq!(lower(&[b'A'; LENGTH_MAX + 1], &mut buffer), None);
        assert!(is_lower(b"www.example.com"));
        assert!(!is_lower(b"www.Example.com"));
    }
}
