//! What is known of an API server before it is asked: where it is, and by which login.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::login_command::LoginCommand;
use crate::config::{HttpUrl, Secret};
use crate::discovery::{DiscoveryError, file};

/// Bytes of a file of certificates.
const PEM_BYTES_MAX: usize = 1024 * 1024;

/// What the environment or a kubeconfig says.
pub(super) struct Described {
    pub(super) url: HttpUrl,
    pub(super) namespace: Arc<str>,
    /// PEM: the authorities of its certificate; `None`: those of the system.
    pub(super) ca: Option<Vec<u8>>,
    /// PEM: a certificate to be shown, and its key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) login: DescribedLogin,
}

pub(super) enum DescribedLogin {
    None,
    Token(Secret),
    TokenFile(PathBuf),
    Password(String, Secret),
    Command(Box<LoginCommand>),
}

/// A file, with a word on which it is where it cannot be read.
pub(super) fn contents(path: &Path, most: usize) -> Result<Vec<u8>, DiscoveryError> {
    file::bytes(path, most).map_err(|error| DiscoveryError::new(format!("{}: {error}", path.display())))
}

/// A file of certificates or a key.
pub(super) fn pem(path: &Path) -> Result<Vec<u8>, DiscoveryError> {
    contents(path, PEM_BYTES_MAX)
}
