use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::{AccessLogOutput, ListenerName, Problems};

/// Why a configuration is not served. Whatever was served before still is.
#[derive(Debug)]
pub enum Error {
    /// The file cannot be read, or says what cannot be.
    Config(Problems),
    /// A listener's address cannot be bound.
    Bind {
        /// Which listener.
        listener: ListenerName,
        /// Its address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The admin address cannot be bound.
    Admin {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The admin socket cannot be bound.
    AdminSocket {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The access log cannot be opened.
    AccessLog {
        /// Where it was to go.
        output: AccessLogOutput,
        /// What the system says.
        source: io::Error,
    },
    /// A thread, its event loop or its signal handlers cannot be made.
    Thread(io::Error),
    /// What another process listens on could not be taken over from it.
    Takeover(io::Error),
    /// The process is stopping and takes no other configuration.
    Stopping,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The problems are the whole message: each names its file, line and key.
            Self::Config(problems) => problems.fmt(f),
            Self::Bind { listener, address, source } if listener.as_str() == address.to_string() => {
                write!(f, "could not listen on {address}: {source}")
            }
            Self::Bind { listener, address, source } => {
                write!(f, "could not listen on {address} (listener {listener}): {source}")
            }
            Self::Admin { address, source } => {
                write!(f, "could not listen on {address} (the key admin): {source}")
            }
            Self::AdminSocket { path, source } => {
                write!(f, "could not listen on {} (the key admin.unix_socket): {source}", path.display())
            }
            Self::AccessLog { output: AccessLogOutput::File(path), source } => {
                write!(f, "could not open the access log {}: {source}", path.display())
            }
            Self::AccessLog { output: AccessLogOutput::Stdout, source } => {
                write!(f, "could not write the access log to standard output: {source}")
            }
            Self::Thread(source) => write!(f, "could not start a thread: {source}"),
            Self::Takeover(source) => write!(f, "could not take over from the process that serves this file: {source}"),
            Self::Stopping => f.write_str("stopping, so no other configuration is taken"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Problems> for Error {
    fn from(problems: Problems) -> Self {
        Self::Config(problems)
    }
}
