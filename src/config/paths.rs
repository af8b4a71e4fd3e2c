//! What is done with paths that servers read differently.

/// `paths`: what is done with what one server takes for a part of a name and another for a step between folders. Where a backend
/// reads it otherwise than the route table has, a request passes by the rules of the route that it belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathsConfig {
    /// `.` and `..` as segments, also encoded (`%2e`) and with parameters (`..;x`).
    pub dot_segments: PathRule,
    /// `%2f`.
    pub encoded_slashes: PathRule,
    /// `//`.
    pub duplicate_slashes: PathRule,
    /// `\` and `%5c`.
    pub backslashes: PathRule,
}

/// What is done with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathRule {
    /// The request is answered 400.
    #[default]
    Refuse,
    /// The path is made the one that is meant, before a route is looked for.
    Normalize,
    /// The path stays as the client sent it.
    Keep,
}

impl PathRule {
    /// Each with its name.
    pub const NAMES: [(&str, Self); 3] =
        [("refuse", Self::Refuse), ("normalize", Self::Normalize), ("keep", Self::Keep)];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Normalize => "normalize",
            Self::Keep => "keep",
        }
    }
}
