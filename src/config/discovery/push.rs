//! `[upstream.NAME.discovery.push]`

use crate::config::Secret;
use crate::config::admin::Token;
use crate::config::form::Maybe;
use crate::config::table::Table;

/// What is sent by `PUT /upstreams/NAME/backends` to the admin address: for a deploy script that knows its backends.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
pub struct PushConfig {
    /// What a request may bring along in place of the admin address's token. It changes these backends and nothing else.
    #[key(Maybe(Token), example = "${ISOBAR_PUSH_TOKEN:-an-example-token}")]
    pub token: Option<Secret>,
}
