//! Why an exchange ended as it did, where it was not an error that the client was told of.

use super::error::Blame;

/// What the access log says of an exchange that went well.
pub(super) const COMPLETE: &str = "complete";

/// What it says of an exchange that a middleware has answered.
pub(super) const ANSWERED: &str = "middleware_answered";

/// How an exchange was cut short. The client could not be told any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExchangeCut {
    /// The client left before the head of the response.
    ClientGone,
    /// The client left while it was sent the response.
    ClientLeft,
    /// The client took nothing of the response for too long.
    ClientStalled,
    /// The client took less of the response, or gave less of its request, than it has to.
    ClientTooSlow,
    /// The client's request turned out to be larger than it may be, when its response had begun.
    BodyTooLarge,
    /// The backend broke its response off.
    BackendCutShort,
    /// A middleware broke off a body that it had wrapped.
    MiddlewareFailed,
    /// The backend sent nothing of its response for too long.
    BackendStalled,
    /// The route's limit for the whole exchange was reached while the response was sent.
    OverTime,
    /// The process stops, or the listener or the backend was removed, and the time to finish was over.
    Drained,
    /// Nothing moved in a tunnel for too long.
    TunnelIdle,
    /// Either end of a tunnel broke.
    TunnelBroken,
}

impl ExchangeCut {
    /// A word for the access log.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::ClientLeft => "client_left",
            Self::ClientStalled => "client_stalled",
            Self::ClientTooSlow => "client_too_slow",
            Self::BodyTooLarge => "body_too_large",
            Self::BackendCutShort => "backend_cut_short",
            Self::MiddlewareFailed => "middleware_failed",
            Self::BackendStalled => "backend_stalled",
            Self::OverTime => "exchange_cut",
            Self::Drained => "drained",
            Self::TunnelIdle => "tunnel_idle",
            Self::TunnelBroken => "tunnel_broken",
        }
    }

    /// Whose doing it was; `None` where that is not known.
    pub(super) fn blame(self) -> Option<Blame> {
        match self {
            Self::ClientGone | Self::ClientLeft | Self::ClientStalled | Self::ClientTooSlow | Self::BodyTooLarge => {
                Some(Blame::Client)
            }
            Self::BackendCutShort | Self::BackendStalled => Some(Blame::Backend),
            Self::MiddlewareFailed | Self::OverTime | Self::Drained => Some(Blame::Proxy),
            Self::TunnelIdle | Self::TunnelBroken => None,
        }
    }
}
