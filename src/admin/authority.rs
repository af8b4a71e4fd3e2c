//! Permission to change something.
//!
//! Reading is open to all who can connect. A change needs one of three: the Unix socket, which the file system keeps for one
//! user; the token of the configuration; or, as long as the configuration has none, an address on loopback. A token that was
//! set is asked for on loopback too: the operator who set it does not want all users of the machine to do without.

use std::fmt;
use std::net::SocketAddr;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::{StatusCode, request};

use super::answer::AdminAnswer;
use super::cross_site::Site;
use super::refusal::AdminRefusal;
use crate::config::Secret;

/// The client at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// A client at an address.
    Address(SocketAddr),
    /// A user of this machine, at the socket.
    User {
        /// Which.
        uid: u32,
    },
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::User { uid } => write!(f, "uid {uid}"),
        }
    }
}

/// Why a change is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// A token is asked for and none was sent.
    NoToken,
    /// Another token than the configuration's was sent.
    WrongToken,
    /// There is no token that one could send, and this is no place to do without.
    Nowhere,
}

impl Denied {
    fn what(self) -> &'static str {
        match self {
            Self::NoToken => "changes need the token: send Authorization: Bearer TOKEN, or use the Unix socket",
            Self::WrongToken => "the token is wrong",
            Self::Nowhere => {
                "changes are made over the Unix socket, or with a token, and the configuration has no [admin] token"
            }
        }
    }

    /// As an answer to a request for `path`.
    pub(super) fn answer(self, path: &str) -> AdminAnswer {
        let (status, challenge) = match self {
            Self::NoToken => (StatusCode::UNAUTHORIZED, Some("Bearer realm=\"isobar\"")),
            Self::WrongToken => (StatusCode::UNAUTHORIZED, Some("Bearer realm=\"isobar\", error=\"invalid_token\"")),
            Self::Nowhere => (StatusCode::FORBIDDEN, None),
        };
        let mut answer = AdminRefusal::new(status, self.what(), path).answer();
        if let Some(challenge) = challenge {
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        answer
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}

/// Whether a request may change something; and its user, as the audit log names it.
pub(super) fn check(head: &request::Parts, site: Site, peer: Peer, token: Option<&Secret>) -> Result<String, Denied> {
    if let Peer::User { .. } = peer {
        return Ok(peer.to_string());
    }
    match (token, bearer(&head.headers)) {
        (Some(token), Some(sent)) if token.is(sent) => Ok(format!("token from {peer}")),
        (Some(_), Some(_)) => Err(Denied::WrongToken),
        (Some(_), None) => Err(Denied::NoToken),
        (None, _) if site == Site::Loopback => Ok(peer.to_string()),
        (None, _) => Err(Denied::Nowhere),
    }
}

/// Whether a request brings along this token.
pub(super) fn has_token(headers: &HeaderMap, token: &Secret) -> bool {
    bearer(headers).is_some_and(|sent| token.is(sent))
}

/// What was sent for a token; of several, or with another scheme, nothing that could be right.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (value, another) = (values.next()?.as_bytes(), values.next());
    let (scheme, token) = value.split_at_checked(7)?;
    let good = scheme.eq_ignore_ascii_case(b"bearer ") && another.is_none();
    Some(if good { token.trim_ascii() } else { b"" })
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn request(headers: &[&str]) -> request::Parts {
        let mut request = Request::builder().method("POST").uri("/reload");
        for value in headers {
            request = request.header("authorization", *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_matrix() {
        let token = Secret::from("0123456789abcdef");
        let (right, wrong) = ("Bearer 0123456789abcdef", "Bearer 0123456789abcdeX");
        let tcp = Peer::Address(([10, 0, 0, 1], 4711).into());
        let user = Peer::User { uid: 1000 };
        let (ours, none) = (Some(&token), None);
        for (site, peer, token, sent, expected) in [
            (Site::Loopback, tcp, none, &[][..], Ok("10.0.0.1:4711")),
            (Site::Loopback, tcp, none, &[wrong], Ok("10.0.0.1:4711")),
            (Site::Loopback, tcp, ours, &[], Err(Denied::NoToken)),
            (Site::Loopback, tcp, ours, &[wrong], Err(Denied::WrongToken)),
            (Site::Loopback, tcp, ours, &[right], Ok("token from 10.0.0.1:4711")),
            (Site::Network, tcp, none, &[], Err(Denied::Nowhere)),
            (Site::Network, tcp, none, &[right], Err(Denied::Nowhere)),
            (Site::Network, tcp, ours, &[], Err(Denied::NoToken)),
            (Site::Network, tcp, ours, &[wrong], Err(Denied::WrongToken)),
            (Site::Network, tcp, ours, &["Bearer 0123456789abcde"], Err(Denied::WrongToken)),
            (Site::Network, tcp, ours, &["Bearer 0123456789abcdef0"], Err(Denied::WrongToken)),
            (Site::Network, tcp, ours, &["Bearer "], Err(Denied::WrongToken)),
            (Site::Network, tcp, ours, &["Basic 0123456789abcdef"], Err(Denied::WrongToken)),
            (Site::Network, tcp, ours, &[right, wrong], Err(Denied::WrongToken)),
            (Site::Network, tcp, ours, &["bearer  0123456789abcdef"], Ok("token from 10.0.0.1:4711")),
            (Site::Socket, user, ours, &[], Ok("uid 1000")),
            (Site::Socket, user, ours, &[wrong], Ok("uid 1000")),
            (Site::Socket, user, none, &[], Ok("uid 1000")),
        ] {
            let got = check(&request(sent), site, peer, token);
            assert_eq!(got.as_deref().map_err(|denied| *denied), expected, "{site:?} {token:?} {sent:?}");
        }
    }

    #[test]
    fn answers_say_what_to_do() {
        let answer = Denied::NoToken.answer("/reload");
        assert_eq!(answer.status(), 401);
        assert_eq!(answer.headers()["www-authenticate"], "Bearer realm=\"isobar\"");
        assert_eq!(Denied::Nowhere.answer("/reload").status(), 403);
    }
}
