use std::io;

/// How many descriptors the process may have open (`RLIMIT_NOFILE`). `None`: any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// The limit that holds: the soft limit.
    pub soft: Option<u64>,
    /// The hard limit: the process may raise the soft limit up to it.
    pub hard: Option<u64>,
}

/// Raises the soft limit to the hard one, and says what held before and what holds now. The soft limit is low for the sake of programs
/// that use `select(2)`, which this is not (systemd's documentation of `LimitNOFILE=` says so).
///
/// # Errors
/// When the system refuses that, or does not tell (elsewhere than on Linux).
#[cfg(target_os = "linux")]
pub fn raise() -> io::Result<(DescriptorLimit, DescriptorLimit)> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let read = || {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        DescriptorLimit { soft: current, hard: maximum }
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
pub fn raise() -> io::Result<(DescriptorLimit, DescriptorLimit)> {
    Err(io::ErrorKind::Unsupported.into())
}
