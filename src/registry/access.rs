//! Which client may do what: by the token that it brings along, or without one.

use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::config::{RegistryAccess, RegistryConfig, RegistryTokenConfig};

/// How logins are written: clients differ in whether they pad them.
const LOGIN: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What a request may do.
#[derive(Clone, Debug)]
pub(super) struct Rights {
    access: RegistryAccess,
    /// The token that it brought along; without one it may do the same with every service.
    token: Option<RegistryTokenConfig>,
}

/// A token was sent that there is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UnknownToken;

impl Rights {
    /// Those of a request with these headers, and with a token in its query, as Consul's API allows.
    pub(super) fn of(
        headers: &HeaderMap,
        in_query: Option<&str>,
        config: &RegistryConfig,
    ) -> Result<Self, UnknownToken> {
        let anonymous = Self { access: config.anonymous(), token: None };
        // A client that brings along what nothing asks for is one without a token.
        let Some(sent) = sent(headers, in_query).filter(|_| !config.tokens.is_empty()) else { return Ok(anonymous) };
        // All of them are looked at, so that time tells nothing of which it is.
        let mut found = None;
        for token in &config.tokens {
            if token.token.is(&sent) {
                found = Some(token);
            }
        }
        let token = found.cloned().ok_or(UnknownToken)?;
        Ok(Self { access: RegistryAccess::Write, token: Some(token) })
    }

    pub(super) fn may_read(&self) -> bool {
        self.access >= RegistryAccess::Read
    }

    /// Whether it may register and deregister instances of that service.
    pub(super) fn may_write(&self, service: &str) -> bool {
        self.access == RegistryAccess::Write && self.token.as_ref().is_none_or(|token| token.covers(service))
    }

    /// The name of the token.
    pub(super) fn token(&self) -> Option<&Arc<str>> {
        self.token.as_ref().map(|token| &token.name)
    }
}

/// The token that a request brings along, in any of the ways that client libraries have. An empty one is none.
fn sent(headers: &HeaderMap, in_query: Option<&str>) -> Option<Vec<u8>> {
    let of_consul = headers.get("x-consul-token").map(|value| value.as_bytes().to_vec());
    let of_query = in_query.map(|token| token.as_bytes().to_vec());
    let token = of_consul.or_else(|| authorization(headers)).or(of_query)?;
    (!token.is_empty()).then_some(token)
}

fn authorization(headers: &HeaderMap) -> Option<Vec<u8>> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, rest) = value.split_at(value.iter().position(|byte| *byte == b' ')?);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if !scheme.eq_ignore_ascii_case(b"basic") {
        return None;
    }
    let decoded = LOGIN.decode(rest).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    Some(decoded[colon + 1..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Table;

    #[test]
    fn a_token_is_found_wherever_a_client_puts_it() {
        let headers = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            headers
        };
        for (headers, in_query, expected) in [
            (HeaderMap::new(), None, None),
            (headers("x-consul-token", "secret"), None, Some("secret")),
            (headers("x-consul-token", ""), None, None),
            (headers("x-consul-token", "secret"), Some("other"), Some("secret")),
            (HeaderMap::new(), Some("secret"), Some("secret")),
            (headers("authorization", "Bearer secret"), None, Some("secret")),
            (headers("authorization", "bearer   secret"), None, Some("secret")),
            (headers("authorization", "Basic dXNlcjpzZWNyZXQ="), None, Some("secret")),
            (headers("authorization", "Basic dXNlcjpzZTpjcmV0Cg"), None, Some("se:cret\n")),
            (headers("authorization", "Basic %%%"), None, None),
            (headers("authorization", "Digest x"), None, None),
        ] {
            let found = sent(&headers, in_query);
            assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{headers:?} {in_query:?}");
        }
    }

    #[test]
    fn a_token_may_register_what_its_prefixes_cover() {
        let token = |name: &str, prefixes: &[&str]| RegistryTokenConfig {
            name: name.into(),
            token: format!("0123456789abcdef-{name}").as_str().into(),
            prefixes: prefixes.iter().map(|it| (*it).into()).collect(),
        };
        let tokens = vec![token("users", &["users", "Accounts-"]), token("all", &[])];
        let config = RegistryConfig { tokens, ..RegistryConfig::of_defaults() };
        let rights = |sent: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-consul-token", sent.parse().unwrap());
            Rights::of(&headers, None, &config)
        };
        let users = rights("0123456789abcdef-users").unwrap();
        assert_eq!(users.token().map(|name| &**name), Some("users"));
        for (service, may) in
            [("users", true), ("USERS-API", true), ("accounts-1", true), ("accounts", false), ("us", false)]
        {
            assert_eq!(users.may_write(service), may, "{service}");
        }
        assert!(users.may_read() && rights("0123456789abcdef-all").unwrap().may_write("anything"));
        assert_eq!(rights("0123456789abcdef-nope").unwrap_err(), UnknownToken);
        let without = Rights::of(&HeaderMap::new(), None, &config).unwrap();
        assert!(without.may_read() && !without.may_write("users"));
        let none = RegistryConfig { anonymous: Some(RegistryAccess::None), ..config };
        assert!(!Rights::of(&HeaderMap::new(), None, &none).unwrap().may_read());
    }

    #[test]
    fn without_any_token_loopback_may_write_and_a_network_may_not() {
        let config =
            |address: &str| RegistryConfig { address: address.parse().unwrap(), ..RegistryConfig::of_defaults() };
        let mut headers = HeaderMap::new();
        headers.insert("x-consul-token", "of-another-cluster".parse().unwrap());
        let rights = |config: &RegistryConfig| Rights::of(&headers, None, config).unwrap();
        assert!(rights(&config("127.0.0.1:8500")).may_write("users"));
        let open = config("0.0.0.0:8500");
        assert!(rights(&open).may_read() && !rights(&open).may_write("users"));
    }
}
