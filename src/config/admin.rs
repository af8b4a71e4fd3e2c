//! `[admin]`: where the process is watched and steered.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::check::{Check, value};
use super::error::Problem;
use super::form::{About, Form, Maybe};
use super::json_tree::Tree;
use super::listener::ListenAddress;
use super::report::Place;
use super::table::Table;
use super::visibility::{FilePath, Secret as SecretText};

/// An address, a socket, or both, to watch and steer the process; also by `isobar ctl`. Enabled by default. `enabled = false` takes the
/// address away; a `unix_socket` is served all the same. Another value of `enabled` takes effect after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(enabled = true, is_enabled = Self::has_address, check = Self::check, reload = Restart)]
pub struct AdminConfig {
    /// The address it is served at. On loopback it asks for nothing; elsewhere changes need the token.
    #[key(Maybe(ListenAddress), default = "127.0.0.1:9900")]
    pub address: Option<SocketAddr>,
    /// What a change over the address has to bring along, on loopback too: 16 letters, digits or signs at least. Without one, changes are made on
    /// loopback and over the socket alone.
    #[key(Maybe(Token), example = "${ISOBAR_ADMIN_TOKEN:-an-example-token}", reload = AtOnce)]
    pub token: Option<Secret>,
    /// The socket that the same is served at, for the user of the process alone and without a token.
    #[key(Maybe(SocketPath), example = "/run/isobar.sock")]
    pub unix_socket: Option<PathBuf>,
}

impl AdminConfig {
    fn has_address(&self) -> bool {
        self.address.is_some()
    }

    /// `None` where there is neither an address nor a socket.
    fn check(_: &Check<'_>, _: Place, written: &WrittenAdminConfig, mut it: Self) -> Option<Self> {
        it.address = it.address.filter(|_| Self::says_enabled(written));
        (it.address.is_some() || it.unix_socket.is_some()).then_some(it)
    }
}

/// A text that is not to be seen, in no log, error or answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// The text, for comparing and sending only.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether `other` is it, in a time that does not tell how much of it is right.
    pub fn is(&self, other: &[u8]) -> bool {
        let secret = self.0.as_bytes();
        let mut differs = u8::from(secret.len() != other.len());
        for (index, byte) in other.iter().enumerate() {
            differs |= byte ^ secret.get(index % secret.len().max(1)).unwrap_or(&0);
        }
        std::hint::black_box(differs) == 0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Shorter tokens can be guessed.
const TOKEN_CHARACTERS_MIN: usize = 16;

/// A token for the admin address. What is wrong with it is said without saying it.
pub(crate) struct Token;

impl Form<Secret> for Token {
    type Written = SecretText;

    fn read(&self, check: &Check<'_>, place: Place, written: &SecretText) -> Option<Secret> {
        let text = written.reveal();
        let good = |c: char| c.is_ascii_graphic();
        if text.len() >= TOKEN_CHARACTERS_MIN && text.chars().all(good) {
            warn_of_a_readable_token(check, place);
            return Some(Secret::from(text));
        }
        let what = match text.len() {
            0 => "the token is empty",
            1..TOKEN_CHARACTERS_MIN => "the token is too short",
            _ => "the token cannot be sent in a header",
        };
        let expected = format!("at least {TOKEN_CHARACTERS_MIN} letters, digits or signs, without spaces");
        check.add(place, Problem::error(what).expected(expected));
        None
    }

    fn show(&self, value: &Secret) -> Option<Tree> {
        Some(value.reveal().into())
    }

    fn tell(&self, value: &Secret) -> String {
        value.reveal().to_owned()
    }

    fn about(&self) -> About {
        let token = json!({ "type": "string", "pattern": format!("^[!-~]{{{TOKEN_CHARACTERS_MIN},}}$") });
        About::new::<SecretText>("a token", json!({ "anyOf": [token, super::form::variable()] }))
    }
}

/// What comes from the environment is not in the file.
fn warn_of_a_readable_token(check: &Check<'_>, place: Place) {
    if let Some(access) = check.access.filter(|access| access.is_everybodys() && !check.report.is_filled(place)) {
        let problem = Problem::warning(format!("the token can be read by everybody: this file has mode {access}"));
        let mend = access.mend(check.report.file());
        check.add(place, problem.expected(format!("it from the environment, \"${{ISOBAR_ADMIN_TOKEN}}\", or {mend}")));
    }
}

/// What the kernel takes for the path of a socket, less what is put behind it while it is made.
const SOCKET_PATH_BYTES_MAX: usize = 96;

/// The path of a Unix socket.
struct SocketPath;

impl Form<PathBuf> for SocketPath {
    type Written = FilePath;

    fn read(&self, check: &Check<'_>, place: Place, text: &FilePath) -> Option<PathBuf> {
        if !text.ends_with('/') && value::is_file_path(text) && text.len() <= SOCKET_PATH_BYTES_MAX {
            return Some(PathBuf::from(text.as_str()));
        }
        let expected = format!("a path of at most {SOCKET_PATH_BYTES_MAX} bytes, such as \"/run/isobar.sock\"");
        let problem = Problem::error(format!("{} is not a socket's path", check.quote(place, text)));
        check.add(place, problem.expected(expected));
        None
    }

    fn show(&self, value: &PathBuf) -> Option<Tree> {
        Some(value.display().to_string().into())
    }

    fn tell(&self, value: &PathBuf) -> String {
        value.display().to_string()
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "string", "pattern": "[^/]$", "maxLength": SOCKET_PATH_BYTES_MAX });
        About::new::<FilePath>(format!("a path of at most {SOCKET_PATH_BYTES_MAX} bytes"), schema)
    }
}
