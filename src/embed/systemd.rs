//! What systemd is told of the process (sd_notify): nothing, where it did not start it as a service of `Type=notify`.

#[cfg(target_os = "linux")]
use sd_notify::NotifyState;

/// It serves.
pub(super) fn ready() {
    #[cfg(target_os = "linux")]
    tell(&[NotifyState::Ready]);
}

/// Another process has taken its place: that is the one to watch, and to stop, from now on.
pub(super) fn replaced_by(pid: Option<u32>) {
    #[cfg(target_os = "linux")]
    if let Some(pid) = pid {
        tell(&[NotifyState::MainPid(pid)]);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = pid;
}

#[cfg(target_os = "linux")]
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "could not tell systemd");
    }
}
