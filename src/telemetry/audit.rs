//! The audit log: a line for each change that is made or tried by hand, with its user.
//!
//! Under a target of their own, `isobar::audit`, so that they can be told from the rest. They are logged at `info` whatever
//! level the rest has: see [`logging`](super::logging).

use tracing::info;

use super::log_throttle::LogThrottle;

/// The target of these lines.
pub const TARGET: &str = "isobar::audit";

/// A change, in words.
#[derive(Clone, Copy, Debug)]
pub struct AuditEntry<'a> {
    /// The user: a user over the socket, the holder of the token, an address.
    pub who: &'a str,
    /// What was done.
    pub what: &'a str,
    /// Of which upstream.
    pub upstream: Option<&'a str>,
    /// At which backend.
    pub backend: Option<&'a str>,
    /// What it was.
    pub from: &'a str,
    /// What it is.
    pub to: &'a str,
}

/// It was done.
pub fn changed(entry: &AuditEntry<'_>) {
    line(entry, "changed");
}

/// It was so already.
pub fn unchanged(entry: &AuditEntry<'_>) {
    line(entry, "unchanged");
}

/// It was not done, and why.
pub fn refused(who: &str, what: &str, why: &str) {
    info!(target: "isobar::audit", who, what, why, outcome = "refused", "by hand");
}

/// Changes that are refused for want of permission, which a client could repeat for ever: ten lines in ten seconds at
/// most. Each says for how many `times` it stands.
#[derive(Debug)]
pub struct Strangers(LogThrottle);

impl Default for Strangers {
    fn default() -> Self {
        Self(LogThrottle::new(10))
    }
}

impl Strangers {
    /// It was not done, and why. Of what was asked for, which may be long, the beginning.
    pub fn refused(&self, who: &str, what: &str, why: &str) {
        let Some(times) = self.0.happened() else { return };
        let what: String = what.chars().take(WHAT_CHARS).collect();
        info!(target: "isobar::audit", who, what, why, times, outcome = "refused", "by hand");
    }
}

const WHAT_CHARS: usize = 200;

fn line(entry: &AuditEntry<'_>, outcome: &str) {
    let AuditEntry { who, what, upstream, backend, from, to } = entry;
    info!(target: "isobar::audit", who, what, upstream, backend, from, to, outcome, "by hand");
}
