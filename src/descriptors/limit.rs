use std::io;

/// How many descriptors the process may have open (`RLIMIT_NOFILE`). `None`: any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// The one that holds.
    pub soft: Option<u64>,
    /// As far as the process may raise that by itself.
    pub hard: Option<u64>,
}

/// Raises the soft limit to the hard one, and says what held before and what holds now. The soft limit is low for the sake of programs
/// that use `select(2)`, which this is not (systemd's documentation of `LimitNOFILE=` says so).
///
/// # Errors
/// When the system refuses that, or does not tell (elsewhere than on Linux).
#[cfg(target_os = "linux")]
pub fn raise() -> io::Result<(Limit, Limit)> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let read = || {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        Limit { soft: current, hard: maximum }
    };
    let before = read();
    if before.soft != before.hard {
        setrlimit(Resource::Nofile, Rlimit { current: before.hard, maximum: before.hard })?;
    }
    Ok((before, read()))
}

/// The same where it is not known how.
///
/// # Errors
/// Always.
#[cfg(not(target_os = "linux"))]
pub fn raise() -> io::Result<(Limit, Limit)> {
    Err(io::ErrorKind::Unsupported.into())
}
