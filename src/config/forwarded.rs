//! Headers that tell a backend of the client, beyond the four that it is always told.

use http::HeaderName;

/// One of `forwarded_headers`. Frameworks believe them, so clients that are not trusted never get one through, whether it is sent or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardedHeader {
    /// `X-Real-IP`: the client's address, as the access log has it.
    RealIp,
    /// `X-Forwarded-Prefix`: what the route has taken off the path, or replaced.
    Prefix,
    /// `X-Forwarded-Scheme`: the same as `X-Forwarded-Proto`.
    Scheme,
    /// `X-Forwarded-Ssl`: `on` or `off`.
    Ssl,
    /// `X-Forwarded-Server`: the name of the machine.
    Server,
}

impl ForwardedHeader {
    /// Each with its name.
    pub const NAMES: [(&str, Self); 5] = [
        ("x-real-ip", Self::RealIp),
        ("x-forwarded-prefix", Self::Prefix),
        ("x-forwarded-scheme", Self::Scheme),
        ("x-forwarded-ssl", Self::Ssl),
        ("x-forwarded-server", Self::Server),
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RealIp => "x-real-ip",
            Self::Prefix => "x-forwarded-prefix",
            Self::Scheme => "x-forwarded-scheme",
            Self::Ssl => "x-forwarded-ssl",
            Self::Server => "x-forwarded-server",
        }
    }

    /// Its name, as messages have it.
    pub fn name(self) -> HeaderName {
        HeaderName::from_static(self.as_str())
    }
}

impl std::fmt::Display for ForwardedHeader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
