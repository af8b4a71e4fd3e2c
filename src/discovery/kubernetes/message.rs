//! What an API server says: lists of EndpointSlices, events of a watch, and refusals. Only what is needed of it.

use serde::Deserialize;
use serde_json::Value;

use crate::discovery::DiscoveryError;

/// Bytes of a version of the store, and of the token by which a list goes on. Both are opaque.
const VERSION_BYTES_MAX: usize = 256;
const CONTINUE_BYTES_MAX: usize = 16 * 1024;

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    /// The version of the store that the whole list is of.
    pub(super) version: String,
    /// What the next page is asked for with; `None` at the last one.
    pub(super) next: Option<String>,
    pub(super) items: Vec<Value>,
}

/// What a line of a watch says.
#[derive(Debug)]
pub(super) enum Event {
    /// A slice that is there now, as it is now.
    Put(Value),
    /// A slice that is gone.
    Gone(Value),
    /// Nothing but how far the watch has come.
    Bookmark(Value),
    /// The watch cannot go on from where it began: all is to be listed again.
    Expired,
}

/// What identifies an object and its state.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
    pub(super) labels: Option<serde_json::Map<String, Value>>,
}

/// Why something was refused.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) message: String,
    pub(super) reason: String,
    pub(super) code: u16,
}

impl Status {
    /// What a body says that may be one.
    pub(super) fn of(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    /// What it says, in a line that is not too long.
    pub(super) fn line(&self) -> String {
        const LONGEST: usize = 300;
        self.message.chars().filter(|c| !c.is_control()).take(LONGEST).collect()
    }
}

/// Whether an answer with this status to a watch means that it cannot go on from where it was to begin: 410 where that was forgotten, 504 where it
/// is ahead of the server that was asked, and 400 where it is no version at all.
pub(super) fn is_expired(status: u16) -> bool {
    matches!(status, 400 | 410 | 504)
}

impl Page {
    pub(super) fn read(body: &[u8]) -> Result<Self, DiscoveryError> {
        #[derive(Deserialize)]
        struct List {
            #[serde(default)]
            kind: String,
            #[serde(default)]
            metadata: Metadata,
            items: Option<Vec<Value>>,
        }
        let list: List = serde_json::from_slice(body)
            .map_err(|error| DiscoveryError::new(format!("its answer is no list of EndpointSlices: {error}")))?;
        if list.kind != "EndpointSliceList" {
            return Err(not_kubernetes("its answer is no list of EndpointSlices"));
        }
        let version = version(list.metadata.resource_version)?;
        let next = list.metadata.next.filter(|next| !next.is_empty());
        if next.as_ref().is_some_and(|next| next.len() > CONTINUE_BYTES_MAX) {
            return Err(not_kubernetes("its list goes on by a token that is too long"));
        }
        Ok(Self { version, next, items: list.items.unwrap_or_default() })
    }
}

impl Event {
    pub(super) fn read(line: &[u8]) -> Result<Self, DiscoveryError> {
        #[derive(Deserialize)]
        struct Line {
            #[serde(rename = "type")]
            kind: String,
            object: Value,
        }
        let Line { kind, object } =
            serde_json::from_slice(line).map_err(|_| not_kubernetes("a line of its watch makes no sense"))?;
        match kind.as_str() {
            "ADDED" | "MODIFIED" => Ok(Self::Put(object)),
            "DELETED" => Ok(Self::Gone(object)),
            "BOOKMARK" => Ok(Self::Bookmark(object)),
            "ERROR" => {
                let status = Status::deserialize(object).unwrap_or_default();
                if is_expired(status.code) || matches!(status.reason.as_str(), "Expired" | "Gone") {
                    return Ok(Self::Expired);
                }
                Err(DiscoveryError::new(format!("its watch has failed: {} {}", status.code, status.line())))
            }
            _ => Err(not_kubernetes("a line of its watch is no event")),
        }
    }
}

/// A version to go on from.
pub(super) fn version(text: String) -> Result<String, DiscoveryError> {
    if text.is_empty() || text.len() > VERSION_BYTES_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(not_kubernetes("what it says has no version to go on from"));
    }
    Ok(text)
}

fn not_kubernetes(what: &str) -> DiscoveryError {
    DiscoveryError::new(format!("{what}: this is not Kubernetes' API"))
}
