//! What has happened: changes of state that an operator may want to be told of as they come.
//!
//! A ring that each listener reads at its own pace. A listener that is too slow loses the oldest events and is told how many; nothing ever
//! waits for a reader.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::broadcast;
use tracing::{info, warn};

use super::audit;
use crate::config::{Address, ListenerName, UpstreamName};
use crate::telemetry::panics::Vital;

/// Events that a reader may be behind before it loses some, and that a reader which comes back finds.
const BEHIND_MAX: usize = 1024;

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number in this process, from 1, without gaps.
    pub number: u64,
    /// When.
    pub time: SystemTime,
    /// What.
    pub kind: EventKind,
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// Health checks have turned the verdict on a backend.
    Health {
        /// Whose backend.
        upstream: UpstreamName,
        /// Which.
        backend: Address,
        /// What was thought of it: `healthy`, `unhealthy` or `unknown`.
        from: &'static str,
        /// What is thought now.
        to: &'static str,
        /// What that rests on, in words.
        evidence: String,
    },
    /// The circuit breaker of an upstream has changed.
    Breaker {
        /// Whose.
        upstream: UpstreamName,
        /// What it does now: `open`, `half_open` or `closed`.
        to: &'static str,
        /// What that rests on, in words.
        evidence: String,
    },
    /// New requests are refused because the process has more to do than it can, or no longer.
    Overload {
        /// What there is too much of: `lag`, `descriptors` or `memory`.
        cause: &'static str,
        /// The worker that refuses; `None` is all.
        worker: Option<usize>,
        /// Whether they are refused from now.
        refuses: bool,
        /// What was seen, in words.
        evidence: String,
    },
    /// Outlier detection has ejected a backend.
    Ejected {
        /// Whose backend.
        upstream: UpstreamName,
        /// Which.
        backend: Address,
        /// For how long; `None` is until it is taken back.
        #[serde(rename = "lasts_s", serialize_with = "some_seconds")]
        lasts: Option<Duration>,
        /// Ejections of it that are not forgiven, this one counted in.
        times: u32,
        /// What did it: `detection` or `hand`.
        by: &'static str,
        /// The kind of the reason.
        reason: &'static str,
        /// What that rests on, in words.
        evidence: String,
    },
    /// The ejection of a backend is over.
    Unejected {
        /// Whose backend.
        upstream: UpstreamName,
        /// Which.
        backend: Address,
        /// How long it was.
        #[serde(rename = "after_s", serialize_with = "seconds")]
        after: Duration,
        /// What had ejected it: `detection` or `hand`.
        by: &'static str,
        /// The kind of the reason for which it was.
        reason: &'static str,
        /// Why it is over.
        evidence: String,
    },
    /// So few backends of a tier are ready that others are picked as well, or no longer.
    Panic {
        /// Whose tier.
        upstream: UpstreamName,
        /// Which: its priority, or `backup`.
        tier: String,
        /// Whether it begins.
        on: bool,
        /// How many are ready and how many are picked from.
        evidence: String,
    },
    /// Discovery has found other backends for an upstream.
    Backends {
        /// Whose.
        upstream: UpstreamName,
        /// Those that were not there.
        came: Vec<Address>,
        /// Those that are no longer there: what they serve goes on, for `drain_limit` at most.
        gone: Vec<Address>,
        /// Those of which something else is said: weight, tier, zone, limits, labels.
        changed: Vec<Address>,
        /// How many there are now.
        backends: usize,
    },
    /// A source of discovery answers, or no longer.
    Discovery {
        /// Whose backends it finds.
        upstream: UpstreamName,
        /// Its name.
        source: String,
        /// `awaited`, `current`, `holding` or `failing`.
        to: &'static str,
        /// What was found, or what went wrong and what holds meanwhile, in words.
        evidence: String,
    },
    /// A reload was applied.
    Reloaded {
        /// What is served now.
        generation: u64,
        /// Whether anything differed.
        changed: bool,
    },
    /// A reload was refused and has changed nothing.
    ReloadFailed {
        /// What is still served.
        generation: u64,
        /// Why: a line for each problem.
        problems: String,
    },
    /// The files of a listener's certificates are others.
    Certificates {
        /// Whose.
        listener: ListenerName,
        /// Whether they are used from now; if not, those before still are.
        replaced: bool,
        /// Until when they are valid, or what is wrong with them: a line for each problem.
        evidence: String,
    },
    /// An operator has changed something, or what he changed is over by itself.
    ByHand {
        /// The user, as far as it is known: a user over the socket, the holder of the token, an address.
        who: String,
        /// What was done: `drain`, `weight`, `log`.
        what: String,
        /// Of which upstream; `None` where it is about none, or about all.
        upstream: Option<UpstreamName>,
        /// At which backend; `None` where it is about none, or about all.
        backend: Option<Address>,
        /// What it was, in words.
        from: String,
        /// What it is.
        to: String,
    },
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

fn some_seconds<S: serde::Serializer>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => seconds(time, serializer),
        None => serializer.serialize_none(),
    }
}

impl EventKind {
    /// The names of all kinds, as [`EventKind::as_str`] has them.
    pub const NAMES: [&str; 12] = [
        "health",
        "ejected",
        "unejected",
        "panic",
        "breaker",
        "overload",
        "backends",
        "discovery",
        "reloaded",
        "reload_failed",
        "certificates",
        "by_hand",
    ];

    /// Its name among events.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Health { .. } => "health",
            Self::Breaker { .. } => "breaker",
            Self::Overload { .. } => "overload",
            Self::Ejected { .. } => "ejected",
            Self::Unejected { .. } => "unejected",
            Self::Panic { .. } => "panic",
            Self::Backends { .. } => "backends",
            Self::Discovery { .. } => "discovery",
            Self::Reloaded { .. } => "reloaded",
            Self::ReloadFailed { .. } => "reload_failed",
            Self::Certificates { .. } => "certificates",
            Self::ByHand { .. } => "by_hand",
        }
    }

    /// Its line in the log. A reload or new certificates have told their own story there, in as many lines as it takes.
    fn log(&self) {
        match self {
            Self::Health { upstream, backend, from, to, evidence } => {
                info!(%upstream, %backend, from, to, evidence, "health changed");
            }
            Self::Breaker { upstream, to, evidence } => info!(%upstream, to, evidence, "circuit breaker changed"),
            Self::Overload { cause, worker, refuses: true, evidence } => {
                warn!(cause, worker, evidence, "overloaded, refusing new requests");
            }
            Self::Overload { cause, worker, refuses: false, evidence } => {
                info!(cause, worker, evidence, "no longer overloaded");
            }
            Self::Ejected { upstream, backend, lasts, times, by, reason, evidence } => match lasts {
                Some(lasts) => info!(%upstream, %backend, ?lasts, times, by, reason, evidence, "ejected"),
                None => info!(%upstream, %backend, lasts = "until taken back", by, reason, evidence, "ejected"),
            },
            Self::Unejected { upstream, backend, after, by, reason, evidence } => {
                info!(%upstream, %backend, ?after, by, reason, evidence, "taken back");
            }
            Self::Panic { upstream, tier, on: true, evidence } => {
                warn!(%upstream, tier, evidence, "panic: too few backends are ready");
            }
            Self::Panic { upstream, tier, on: false, evidence } => info!(%upstream, tier, evidence, "panic is over"),
            Self::Backends { upstream, came, gone, changed, backends } => {
                let (came, gone, changed) = (listed(came), listed(gone), listed(changed));
                info!(%upstream, came, gone, changed, backends, "backends changed");
            }
            Self::Discovery { upstream, source, to: "failing", evidence } => {
                warn!(%upstream, %source, evidence, "discovery fails");
            }
            Self::Discovery { upstream, source, to: "holding", evidence } => {
                warn!(%upstream, %source, evidence, "discovery holds backends back");
            }
            Self::Discovery { upstream, source, to: "awaited", evidence } => {
                info!(%upstream, %source, evidence, "discovery begins with what an earlier process knew");
            }
            Self::Discovery { upstream, source, to: _, evidence } => {
                info!(%upstream, %source, evidence, "discovery answers");
            }
            Self::ByHand { who, what, upstream, backend, from, to } => audit::changed(&audit::AuditEntry {
                who,
                what,
                upstream: upstream.as_ref().map(UpstreamName::as_str),
                backend: backend.as_ref().map(ToString::to_string).as_deref(),
                from,
                to,
            }),
            Self::Reloaded { .. } | Self::ReloadFailed { .. } | Self::Certificates { .. } => {}
        }
    }
}

/// The first of them, for a line of the log; `None` where there is none.
fn listed(addresses: &[Address]) -> Option<String> {
    const LISTED_MAX: usize = 8;
    let first: Vec<_> = addresses.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    let further = addresses.len().saturating_sub(LISTED_MAX);
    let further = if further > 0 { format!(", {further} more") } else { String::new() };
    (!addresses.is_empty()).then(|| first.join(", ") + &further)
}

/// Where events are published and listened to. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events(Arc<Ring>);

#[derive(Debug)]
struct Ring {
    live: broadcast::Sender<Arc<Event>>,
    /// Held while one is published, so that numbers go out in their order.
    recent: Mutex<Recent>,
    vital: Vital,
}

/// The last events.
#[derive(Debug, Default)]
struct Recent {
    /// Of the last one.
    number: u64,
    events: VecDeque<Arc<Event>>,
}

/// What a reader that comes back gets.
#[derive(Debug)]
pub struct Resumed {
    /// What came since, the oldest first.
    pub since: Vec<Arc<Event>>,
    /// How many came since and are lost.
    pub missed: u64,
    /// What comes from now on.
    pub live: broadcast::Receiver<Arc<Event>>,
}

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Ring {
            live: broadcast::Sender::new(BEHIND_MAX),
            recent: Mutex::default(),
            vital: Vital::default(),
        }))
    }
}

impl Events {
    /// Logs it and tells the listeners. Never waits. Not for what every request does: it allocates and locks.
    pub fn publish(&self, kind: EventKind) {
        kind.log();
        let mut recent = self.recent();
        recent.number += 1;
        let event = Arc::new(Event { number: recent.number, time: SystemTime::now(), kind });
        recent.events.push_back(Arc::clone(&event));
        if recent.events.len() > BEHIND_MAX {
            recent.events.pop_front();
        }
        // An error only says that there is no listener.
        let _ = self.0.live.send(event);
    }

    /// Where it is told that a task has panicked without which nothing is right any more.
    pub fn vital(&self) -> &Vital {
        &self.0.vital
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.0.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is published from now on. A reader that falls behind loses the oldest: `RecvError::Lagged` says how many.
    pub fn listen(&self) -> broadcast::Receiver<Arc<Event>> {
        self.0.live.subscribe()
    }

    /// What was published after the event of that number, as far as it is still there, and what is from now on.
    pub fn listen_after(&self, number: u64) -> Resumed {
        let recent = self.recent();
        let since: Vec<_> = recent.events.iter().filter(|event| event.number > number).cloned().collect();
        let missed = recent.number.saturating_sub(number) - since.len() as u64;
        Resumed { since, missed, live: self.0.live.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    #[test]
    fn who_comes_back_gets_what_came_meanwhile_and_is_told_what_is_lost() {
        let events = Events::default();
        for generation in 1..=10 {
            events.publish(reloaded(generation));
        }
        let numbers = |resumed: &Resumed| resumed.since.iter().map(|event| event.number).collect::<Vec<_>>();
        let mut resumed = events.listen_after(7);
        assert_eq!((numbers(&resumed), resumed.missed), (vec![8, 9, 10], 0));
        events.publish(reloaded(11));
        assert_eq!(resumed.live.try_recv().unwrap().number, 11);
        assert!(numbers(&events.listen_after(11)).is_empty(), "nothing is told twice");
        assert!(numbers(&events.listen_after(99)).is_empty(), "a number that is not out yet");
        for generation in 12..=BEHIND_MAX as u64 + 20 {
            events.publish(reloaded(generation));
        }
        let resumed = events.listen_after(5);
        assert_eq!((resumed.since.len(), resumed.missed), (BEHIND_MAX, 15));
        assert_eq!(resumed.since[0].number, 21);
    }

    #[test]
    fn every_kind_has_its_name_also_in_json() {
        let by_hand = EventKind::ByHand {
            who: "uid 0".into(),
            what: "drain".into(),
            upstream: Some("users".into()),
            backend: None,
            from: "not drained".into(),
            to: "drained".into(),
        };
        let failed = EventKind::ReloadFailed { generation: 1, problems: String::new() };
        for kind in [by_hand, failed, reloaded(1)] {
            assert!(EventKind::NAMES.contains(&kind.as_str()));
            assert_eq!(serde_json::to_value(&kind).unwrap()["kind"], kind.as_str());
        }
    }

    fn reloaded(generation: u64) -> EventKind {
        EventKind::Reloaded { generation, changed: true }
    }

    #[test]
    fn each_listener_gets_what_comes_after_it() {
        let events = Events::default();
        events.publish(reloaded(1));
        let mut first = events.listen();
        events.publish(reloaded(2));
        let mut second = events.clone().listen();
        events.publish(reloaded(3));
        let mut got = || first.try_recv().map(|event| event.kind.clone());
        assert_eq!([got(), got()], [Ok(reloaded(2)), Ok(reloaded(3))]);
        assert_eq!(second.try_recv().unwrap().kind, reloaded(3));
        assert_eq!(second.try_recv(), Err(TryRecvError::Empty));
    }

    #[test]
    fn a_slow_listener_loses_the_oldest_and_is_told() {
        let events = Events::default();
        let mut slow = events.listen();
        for generation in 0..BEHIND_MAX as u64 + 10 {
            events.publish(reloaded(generation));
        }
        assert_eq!(slow.try_recv(), Err(TryRecvError::Lagged(10)));
        assert_eq!(slow.try_recv().unwrap().kind, reloaded(10));
    }
}
