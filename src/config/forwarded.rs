//! Headers that tell a backend of the client, beyond the four that it is always told.

use http::HeaderName;

use super::form::Word;

/// One of `forwarded_headers`. Frameworks believe them, so clients that are not trusted never get one through, whether it is sent or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Word)]
pub enum ForwardedHeader {
    /// `X-Real-IP`: the client's address, as the access log has it.
    #[word = "x-real-ip"]
    RealIp,
    /// `X-Forwarded-Prefix`: what the route has taken off the path, or replaced.
    #[word = "x-forwarded-prefix"]
    Prefix,
    /// `X-Forwarded-Scheme`: the same as `X-Forwarded-Proto`.
    #[word = "x-forwarded-scheme"]
    Scheme,
    /// `X-Forwarded-Ssl`: `on` or `off`.
    #[word = "x-forwarded-ssl"]
    Ssl,
    /// `X-Forwarded-Server`: the name of the machine.
    #[word = "x-forwarded-server"]
    Server,
}

impl ForwardedHeader {
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
