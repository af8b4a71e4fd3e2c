//! An answer that says no: what is wrong, where, and which name was probably meant.

use http::StatusCode;
use serde::Serialize;

use super::answer::{AdminAnswer, json};
use crate::config::nearest;

/// Why a request comes to nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct AdminRefusal {
    #[serde(skip)]
    status: StatusCode,
    /// What is wrong.
    error: String,
    /// The path, or the key of the body, that it is wrong with.
    #[serde(rename = "where")]
    place: String,
    /// The name that is nearest to the one given.
    #[serde(skip_serializing_if = "Option::is_none")]
    did_you_mean: Option<String>,
}

impl AdminRefusal {
    pub(super) fn new(status: StatusCode, error: impl Into<String>, place: impl Into<String>) -> Self {
        Self { status, error: error.into(), place: place.into(), did_you_mean: None }
    }

    /// Something in the request makes no sense.
    pub(super) fn bad(error: impl Into<String>, place: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error, place)
    }

    /// Offers the one of some names that is nearest to `given`.
    pub(super) fn one_of<'n>(mut self, given: &str, names: impl IntoIterator<Item = &'n str>) -> Self {
        let names: Vec<_> = names.into_iter().collect();
        self.did_you_mean = nearest(given, &names).map(str::to_owned);
        self
    }

    pub(super) fn what(&self) -> &str {
        &self.error
    }

    pub(super) fn answer(&self) -> AdminAnswer {
        json(self.status, self)
    }
}
