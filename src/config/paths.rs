//! What is done with paths that servers read differently.

use super::form::{OneOf, Word};
use super::table::Table;

/// What becomes of what one server takes for a part of a name and another for a step between folders. Routes are found by how a backend reads
/// the path that takes all of it for steps; this says what the backend is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Table)]
#[table(reload = Connections)]
pub struct PathsConfig {
    /// `.` and `..` as segments, also encoded (`%2e`) and with parameters (`..;x`).
    #[key(OneOf, default = "refuse")]
    pub dot_segments: PathRule,
    /// `%2f`. Package registries, GitLab and object stores put names with slashes into paths.
    #[key(OneOf, default = "keep")]
    pub encoded_slashes: PathRule,
    /// `//`.
    #[key(OneOf, default = "keep")]
    pub duplicate_slashes: PathRule,
    /// `\` and `%5c`.
    #[key(OneOf, default = "refuse")]
    pub backslashes: PathRule,
}

impl Default for PathsConfig {
    fn default() -> Self {
        Self::of_defaults()
    }
}

/// What becomes of what servers read differently, for this route: what it says goes before what its listener says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Table)]
#[table(reload = Requests)]
pub struct PathOverrides {
    /// `.` and `..` as segments.
    #[key(OneOf, otherwise = "as the listener has it")]
    pub dot_segments: Option<PathRule>,
    /// `%2f`.
    #[key(OneOf, otherwise = "as the listener has it")]
    pub encoded_slashes: Option<PathRule>,
    /// `//`.
    #[key(OneOf, otherwise = "as the listener has it")]
    pub duplicate_slashes: Option<PathRule>,
    /// `\` and `%5c`.
    #[key(OneOf, otherwise = "as the listener has it")]
    pub backslashes: Option<PathRule>,
}

impl PathOverrides {
    /// The rules of a route at a listener.
    pub fn over(&self, listener: &PathsConfig) -> PathsConfig {
        PathsConfig {
            dot_segments: self.dot_segments.unwrap_or(listener.dot_segments),
            encoded_slashes: self.encoded_slashes.unwrap_or(listener.encoded_slashes),
            duplicate_slashes: self.duplicate_slashes.unwrap_or(listener.duplicate_slashes),
            backslashes: self.backslashes.unwrap_or(listener.backslashes),
        }
    }
}

/// A key of `paths`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathsKey {
    /// [`PathsConfig::dot_segments`].
    DotSegments,
    /// [`PathsConfig::encoded_slashes`].
    EncodedSlashes,
    /// [`PathsConfig::duplicate_slashes`].
    DuplicateSlashes,
    /// [`PathsConfig::backslashes`].
    Backslashes,
}

impl PathsKey {
    /// All of them, in the order that they are counted in.
    pub const ALL: [Self; 4] = [Self::DotSegments, Self::EncodedSlashes, Self::DuplicateSlashes, Self::Backslashes];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DotSegments => "dot_segments",
            Self::EncodedSlashes => "encoded_slashes",
            Self::DuplicateSlashes => "duplicate_slashes",
            Self::Backslashes => "backslashes",
        }
    }
}

/// What is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum PathRule {
    /// The request is answered 400.
    Refuse,
    /// The backend is sent the path that is meant.
    Normalize,
    /// The backend is sent it as the client sent it.
    Keep,
}
