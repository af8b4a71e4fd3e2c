//! What of a key's value may be shown: in `/config`, in the words of a reload, in a problem of the file. The key decides, and never
//! what its name or its value looks like: no list of words knows what others call their secrets.
//!
//! The kind of a key is that of its type as the file has it, which is never a plain `String`; [`keys`](super::keys) finds it by
//! the key's name.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::Deserialize;

use super::field::{Field, Named};
use super::report::quote;

/// What of a value may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All: numbers, times, switches, names, words of a closed list.
    Plain,
    /// Where something is: an address, a host, a path, a URL. Shown without who logs in there and without the values of its query.
    Location,
    /// The path of a file. Shown, unless it has more than a line: then it is what should be in the file.
    File,
    /// May be a secret: the value of a header, what a match expects, a body. Only its length is shown.
    Sensitive,
    /// Is a secret. Not even its length is shown.
    Secret,
    /// Keys, each of a kind of its own. What stands there instead of them could have been meant for any, and is not shown.
    Table,
}

/// What is shown in place of a value, and of a part of one.
const HIDDEN: &str = "(hidden)";

impl Kind {
    /// What may be shown of `value`.
    pub fn show(self, value: &str) -> Cow<'_, str> {
        match self {
            Self::Plain => value.into(),
            Self::Location => location(value),
            Self::File if !value.contains(['\n', '\r']) => value.into(),
            Self::File | Self::Sensitive => match value.chars().count() {
                1 => "(hidden, 1 character)".into(),
                count => format!("(hidden, {count} characters)").into(),
            },
            Self::Secret | Self::Table => HIDDEN.into(),
        }
    }

    /// The same as a problem has it: quoted where it is from the value.
    pub(crate) fn quote(self, value: &str) -> String {
        match self {
            Self::File if value.contains(['\n', '\r']) => self.show(value).into_owned(),
            Self::Plain | Self::Location | Self::File => quote(&self.show(value)),
            Self::Sensitive | Self::Secret | Self::Table => self.show(value).into_owned(),
        }
    }

    /// Whether a value of another type than the key's may be shown: it is no secret whatever the key was meant to hold.
    pub(crate) fn shows_other_types(self) -> bool {
        matches!(self, Self::Plain | Self::Location | Self::File)
    }

    /// The name by which a [`Field`] of this kind asks its deserializer for a place and a value.
    pub(crate) fn marker(self) -> &'static str {
        match self {
            Self::Plain => "$isobar::Plain",
            Self::Location => "$isobar::Location",
            Self::File => "$isobar::File",
            Self::Sensitive => "$isobar::Sensitive",
            Self::Secret => "$isobar::Secret",
            Self::Table => "$isobar::Table",
        }
    }

    /// The kind that has this marker.
    pub(crate) fn marked(marker: &str) -> Option<Self> {
        let all = [Self::Plain, Self::Location, Self::File, Self::Sensitive, Self::Secret, Self::Table];
        all.into_iter().find(|kind| kind.marker() == marker)
    }
}

/// `https://(hidden)@example.com/a?token=(hidden)`
fn location(text: &str) -> Cow<'_, str> {
    let (before, query) = match text.find(['?', '#']) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let scheme = before.find("//").filter(|at| *at == 0 || before[..*at].ends_with(':'));
    let (scheme, rest) = before.split_at(scheme.map_or(0, |at| at + 2));
    // Only a path begins with a slash here, and has nobody who logs in. A password may hold slashes, which is wrong and common.
    let login = if rest.starts_with('/') { None } else { rest.rfind('@').filter(|at| is_login(&rest[..*at])) };
    if query.is_empty() && login.is_none() {
        return text.into();
    }
    let rest = login.map_or_else(|| rest.to_owned(), |at| format!("{HIDDEN}{}", &rest[at..]));
    // As it comes: a target with several `?` or `#` is one query.
    let query = query.split_inclusive(['?', '#', '&', ';']).map(|part| {
        let (part, end) = match part.char_indices().next_back() {
            Some((at, end @ ('?' | '#' | '&' | ';'))) => (&part[..at], Some(end)),
            _ => (part, None),
        };
        let shown = match part.split_once('=') {
            _ if part.is_empty() => String::new(),
            Some((name, _)) => format!("{name}={HIDDEN}"),
            // A word alone may be a name, or all there is of a secret.
            None => HIDDEN.into(),
        };
        shown + end.map(String::from).as_deref().unwrap_or_default()
    });
    format!("{scheme}{rest}{}", query.collect::<String>()).into()
}

/// Whether this, in front of an `@`, is who logs in, and not a host with the beginning of a path: `example.com/@me`.
fn is_login(text: &str) -> bool {
    match text.split_once('/') {
        None => true,
        Some((host, _)) => {
            host.contains('@') || host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_err())
        }
    }
}

/// A type that a key of the file can have.
pub(crate) trait OfKind {
    /// What of the key's value may be shown.
    const KIND: Kind;
}

impl<T: OfKind> OfKind for Vec<Field<T>> {
    const KIND: Kind = T::KIND;
}

impl<T> OfKind for Named<T> {
    const KIND: Kind = Kind::Table;
}

/// Gives each type its kind.
macro_rules! of_kind {
    ($($kind:ident: $($name:ty),+;)+) => {$($(
        impl $crate::config::visibility::OfKind for $name {
            const KIND: $crate::config::visibility::Kind = $crate::config::visibility::Kind::$kind;
        }
    )+)+};
}
pub(crate) use of_kind;

/// Makes the texts that a key can have.
macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident: $kind:ident,)+) => {$(
        $(#[$doc])*
        #[derive(Deserialize)]
        #[serde(transparent)]
        pub(crate) struct $name(String);

        of_kind!($kind: $name;);

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&Kind::$kind.quote(&self.0))
            }
        }
    )+};
}

texts! {
    /// A name, or a word of a list.
    Word: Plain,
    /// Where something is.
    Location: Location,
    /// The path of a file.
    FilePath: File,
    /// What may be a secret.
    Sensitive: Sensitive,
    /// What is one.
    Secret: Secret,
}

macro_rules! readable {
    ($($name:ident),+) => {$(
        impl $name {
            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }
    )+};
}

readable!(Word, Location, FilePath);

impl Sensitive {
    /// The text, for checking and using it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl Secret {
    /// The text, for checking and using it.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

of_kind! {
    Plain: bool, i64, f64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_shown_without_logins_and_queries() {
        for (text, shown) in [
            ("10.0.0.1:9001", "10.0.0.1:9001"),
            ("/users/", "/users/"),
            ("/users/@me", "/users/@me"),
            ("https://{host}{path}{query}", "https://{host}{path}{query}"),
            ("https://example.com/@me", "https://example.com/@me"),
            ("https://example.com:8443/@me", "https://example.com:8443/@me"),
            ("//example.com/a", "//example.com/a"),
            ("/a//b@c", "/a//b@c"),
            ("", ""),
            ("http://user:pass@10.0.0.1:80/", "http://(hidden)@10.0.0.1:80/"),
            ("user@host:80", "(hidden)@host:80"),
            ("http://user:pa/ss@host", "http://(hidden)@host"),
            ("http://user:p@ss@host/x", "http://(hidden)@host/x"),
            ("/health?deep", "/health?(hidden)"),
            ("/health?token=abc&full=1", "/health?token=(hidden)&full=(hidden)"),
            ("/health?a=b=c;d", "/health?a=(hidden);(hidden)"),
            ("https://a/?x=1?y=2#frag", "https://a/?x=(hidden)?y=(hidden)#(hidden)"),
            ("https://a/#access_token=abc", "https://a/#access_token=(hidden)"),
            ("/a?", "/a?"),
            ("/a?é=ü&ß", "/a?é=(hidden)&(hidden)"),
        ] {
            assert_eq!(Kind::Location.show(text), shown, "{text}");
        }
    }

    #[test]
    fn what_may_be_a_secret_is_not_shown() {
        for (kind, text, shown) in [
            (Kind::Plain, "round_robin", "round_robin"),
            (Kind::File, "/etc/a.pem", "/etc/a.pem"),
            (Kind::File, "-----BEGIN PRIVATE KEY-----\nMII", "(hidden, 31 characters)"),
            (Kind::Sensitive, "", "(hidden, 0 characters)"),
            (Kind::Sensitive, "é", "(hidden, 1 character)"),
            (Kind::Sensitive, "abc", "(hidden, 3 characters)"),
            (Kind::Secret, "abc", "(hidden)"),
            (Kind::Table, "abc", "(hidden)"),
        ] {
            assert_eq!(kind.show(text), shown, "{kind:?} {text}");
        }
        assert_eq!(
            (Kind::Plain.quote("a\n"), Kind::Sensitive.quote("a\n")),
            ("\"a\\n\"".into(), "(hidden, 2 characters)".into())
        );
        assert_eq!(Kind::marked(Kind::File.marker()), Some(Kind::File));
    }
}
