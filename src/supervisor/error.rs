use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::config::{AccessLogOutput, ListenerName, Problem, Problems};
use crate::middleware::InstallFailed;

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
    /// The registry's address cannot be bound.
    Registry {
        /// The address.
        address: SocketAddr,
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
    /// A middleware of the embedding program refuses its table.
    Middleware(InstallFailed),
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
                write!(f, "could not listen on {address}: {}", told(source, address.port()))
            }
            Self::Bind { listener, address, source } => {
                write!(f, "could not listen on {address} (listener {listener}): {}", told(source, address.port()))
            }
            Self::Admin { address, source } => {
                write!(f, "could not listen on {address} (the key admin): {}", told(source, address.port()))
            }
            Self::Registry { address, source } => {
                write!(f, "could not listen on {address} (the key registry): {}", told(source, address.port()))
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
            Self::Middleware(InstallFailed { name, why }) => write!(f, "could not make middleware {name}: {why}"),
            Self::Thread(source) => write!(f, "could not start a thread: {source}"),
            Self::Takeover(source) => write!(f, "could not take over from the process that serves this file: {source}"),
            Self::Stopping => f.write_str("stopping, so no other configuration is taken"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// With what else is odd about the configuration, in the order of the file.
    pub(crate) fn beside(self, warnings: Vec<Problem>) -> Self {
        match self {
            Self::Config(problems) => {
                let mut all = problems.into_vec();
                let further: Vec<_> = warnings.into_iter().filter(|warning| !all.contains(warning)).collect();
                all.extend(further);
                Self::Config(Problems::new(all))
            }
            other => other,
        }
    }
}

/// What the system says of an address that cannot be bound, and what to do where it keeps a low port for itself.
fn told(source: &io::Error, port: u16) -> String {
    match source.kind() {
        io::ErrorKind::PermissionDenied if (1..UNPRIVILEGED).contains(&port) => format!(
            "{source}: ports below {UNPRIVILEGED} take the capability CAP_NET_BIND_SERVICE, or the sysctl \
             net.ipv4.ip_unprivileged_port_start at {port} or less"
        ),
        _ => source.to_string(),
    }
}

/// The first port that every user may bind, unless the system says otherwise.
const UNPRIVILEGED: u16 = 1024;

impl From<Problems> for Error {
    fn from(problems: Problems) -> Self {
        Self::Config(problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_takes_a_right_says_which() {
        let bind = |port: u16, kind: io::ErrorKind| {
            let address = SocketAddr::from(([0, 0, 0, 0], port));
            Error::Bind { listener: address.to_string().as_str().into(), address, source: kind.into() }.to_string()
        };
        let refused = bind(80, io::ErrorKind::PermissionDenied);
        assert_eq!(
            refused,
            "could not listen on 0.0.0.0:80: permission denied: ports below 1024 take the capability CAP_NET_BIND_SERVICE, or \
             the sysctl net.ipv4.ip_unprivileged_port_start at 80 or less"
        );
        assert!(!bind(80, io::ErrorKind::AddrInUse).contains("CAP_"));
        assert!(!bind(8080, io::ErrorKind::PermissionDenied).contains("CAP_"));
        let admin =
            Error::Admin { address: ([127, 0, 0, 1], 99).into(), source: io::ErrorKind::PermissionDenied.into() };
        assert!(admin.to_string().contains("(the key admin): permission denied: ports below 1024"), "{admin}");
    }
}
