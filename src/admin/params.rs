//! The body of a request: a small JSON object, of which every key must be understood.

use std::time::Duration;

use http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value};

use super::refusal::AdminRefusal;
use crate::config;

/// Bytes of a body: some ten times what a client would send.
const BODY_BYTES_MAX: usize = 4096;

/// What the body asks for, key by key.
#[derive(Debug, Default)]
pub(super) struct RequestParams(Map<String, Value>);

impl RequestParams {
    /// Reads a body. None at all is an object without keys.
    pub(super) async fn read(body: Incoming) -> Result<Self, AdminRefusal> {
        let bytes = match Limited::new(body, BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                let what = format!("the body has more than {BODY_BYTES_MAX} bytes");
                return Err(AdminRefusal::new(StatusCode::PAYLOAD_TOO_LARGE, what, "body"));
            }
            Err(error) => return Err(AdminRefusal::bad(format!("the body ended early: {error}"), "body")),
        };
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8]) -> Result<Self, AdminRefusal> {
        if bytes.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(keys)) => Ok(Self(keys)),
            Ok(_) => Err(AdminRefusal::bad("the body is not a JSON object", "body")),
            Err(error) => Err(AdminRefusal::bad(format!("the body is not JSON: {error}"), "body")),
        }
    }

    /// Refuses keys that mean nothing here.
    pub(super) fn only(self, known: &[&str]) -> Result<Self, AdminRefusal> {
        let unknown = self.0.keys().find(|key| !known.contains(&key.as_str()));
        match unknown {
            Some(key) => {
                let what = format!("unknown key {key:?}");
                Err(AdminRefusal::bad(what, format!("body.{key}")).one_of(key, known.iter().copied()))
            }
            None => Ok(self),
        }
    }

    /// `for`: how long; `None` where it is not given.
    pub(super) fn duration(&self) -> Result<Option<Duration>, AdminRefusal> {
        let Some(value) = self.0.get("for") else { return Ok(None) };
        let duration = value.as_str().and_then(config::duration).filter(|duration| !duration.is_zero());
        let bad = || {
            let what = format!("{value} is not a duration; expected one with its unit, such as \"5m\" or \"1h30m\"");
            AdminRefusal::bad(what, "body.for")
        };
        duration.map(Some).ok_or_else(bad)
    }

    /// `weight`.
    pub(super) fn weight(&self) -> Result<u16, AdminRefusal> {
        let value = self.0.get("weight").unwrap_or(&Value::Null);
        let weight = value.as_u64().and_then(|weight| u16::try_from(weight).ok());
        let bad = || AdminRefusal::bad(format!("{value} is not a weight; expected 0 to 65535"), "body.weight");
        weight.ok_or_else(bad)
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, AdminRefusal> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let bad = || AdminRefusal::bad(format!("{value} is not a text"), format!("body.{key}"));
        value.as_str().map(Some).ok_or_else(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(text: &str) -> RequestParams {
        RequestParams::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn reads_what_is_there() {
        assert_eq!(params("").duration(), Ok(None));
        assert_eq!(params(r#" {"for": "1m30s"} "#).duration(), Ok(Some(Duration::from_secs(90))));
        assert_eq!(params(r#"{"weight": 65535}"#).weight(), Ok(65_535));
        assert_eq!(params(r#"{"level": "debug"}"#).text("level"), Ok(Some("debug")));
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for text in ["[]", "{", "null", "\u{1}"] {
            assert!(RequestParams::parse(text.as_bytes()).is_err(), "{text}");
        }
        for text in [r#"{"for": 5}"#, r#"{"for": "5"}"#, r#"{"for": "0s"}"#, r#"{"for": null}"#] {
            assert!(params(text).duration().is_err(), "{text}");
        }
        for text in ["{}", r#"{"weight": -1}"#, r#"{"weight": 65536}"#, r#"{"weight": 1.5}"#, r#"{"weight": "1"}"#] {
            assert!(params(text).weight().is_err(), "{text}");
        }
        let refused = params(r#"{"wieght": 1}"#).only(&["weight", "for"]).unwrap_err();
        assert_eq!(refused, AdminRefusal::bad("unknown key \"wieght\"", "body.wieght").one_of("wieght", ["weight"]));
    }
}
