//! `/events`: what happens, as it happens, as server-sent events.
//!
//! Each listener is served by its own task, over a short queue to its connection. A reader that falls behind by more than
//! the ring of events holds is told how many it missed and goes on; one that takes nothing at all for a while is dropped. One
//! that comes back says which event it had last, and gets those since, or is told how many are lost.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::Either;
use serde::Serialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::Control;
use super::answer::AdminAnswer;
use super::refusal::AdminRefusal;
use crate::telemetry::calendar::rfc3339;
use crate::telemetry::events::{Event, EventKind, Resumed};

/// Listeners at a time.
pub(super) const LISTENERS_MAX: usize = 16;
/// Texts that wait for a listener's connection.
const QUEUE: usize = 64;
/// How long a listener may take nothing while something waits for him.
const STALLED: Duration = Duration::from_secs(10);
/// How often something is sent where nothing happens: so that neither side thinks the other gone.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Events on their way to a listener.
#[derive(Debug)]
pub(super) struct EventStream {
    texts: mpsc::Receiver<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.texts.poll_recv(context).map(|text| text.map(|text| Ok(Frame::data(text))))
    }
}

/// Begins to tell a listener what happens.
pub(super) fn listen(
    control: &dyn Control,
    places: &Arc<Semaphore>,
    stopped: watch::Receiver<()>,
    query: &str,
    headers: &HeaderMap,
) -> Result<AdminAnswer, AdminRefusal> {
    let kinds = kinds(query)?;
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        let what = format!("{LISTENERS_MAX} listen already");
        return Err(AdminRefusal::new(StatusCode::SERVICE_UNAVAILABLE, what, "/events"));
    };
    let epoch = epoch(control.status().started);
    let last = headers.get(LAST_EVENT_ID).map(|last| after(last, &epoch));
    let (beginning, live) = match last {
        None => (String::new(), control.events().listen()),
        Some(Some(number)) => {
            let Resumed { since, missed, live } = control.events().listen_after(number);
            let mut text = if missed > 0 { gap(Some(missed)) } else { String::new() };
            for event in since.iter().filter(|event| wanted(&kinds, event)) {
                text += &told(event, &epoch);
            }
            (text, live)
        }
        // Of a process before this one: it is unknown what came after it.
        Some(None) => (gap(None), control.events().listen()),
    };
    let (sender, texts) = mpsc::channel(QUEUE);
    let beginning = format!(": listening\nretry: 2000\n\n{beginning}");
    let telling = Telling { sender, live, kinds, epoch };
    tokio::spawn(telling.run(beginning, stopped));

    let mut answer = AdminAnswer::new(Either::Right(EventStream { texts, _place: place }));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(answer)
}

/// What the task of a listener needs.
struct Telling {
    sender: mpsc::Sender<Bytes>,
    live: broadcast::Receiver<Arc<Event>>,
    kinds: Vec<String>,
    epoch: String,
}

impl Telling {
    /// Until the listener is gone, takes nothing, or the process stops.
    async fn run(mut self, beginning: String, mut stopped: watch::Receiver<()>) {
        let mut keep_alive = interval(KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        keep_alive.reset();
        let mut text = beginning;
        loop {
            if !text.is_empty() {
                match self.sender.send_timeout(text.into(), STALLED).await {
                    Ok(()) => keep_alive.reset(),
                    Err(mpsc::error::SendTimeoutError::Closed(_)) => return,
                    Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                        return debug!("a listener to events took nothing and was dropped");
                    }
                }
            }
            text = tokio::select! {
                event = self.live.recv() => match event {
                    Ok(event) if wanted(&self.kinds, &event) => told(&event, &self.epoch),
                    Ok(_) => String::new(),
                    Err(RecvError::Lagged(missed)) => gap(Some(missed)),
                    Err(RecvError::Closed) => return,
                },
                _ = keep_alive.tick() => ": keep-alive\n\n".into(),
                () = self.sender.closed() => return,
                // The sender is dropped at the stop.
                _ = stopped.changed() => return,
            };
        }
    }
}

/// The kinds that the query asks for; none is all.
fn kinds(query: &str) -> Result<Vec<String>, AdminRefusal> {
    let mut kinds = Vec::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let Some(("kind", names)) = parameter.split_once('=') else {
            let name = parameter.split('=').next().unwrap_or_default();
            return Err(AdminRefusal::bad(format!("unknown parameter {name:?}"), "query").one_of(name, ["kind"]));
        };
        for name in names.split([',']).filter(|name| !name.is_empty()) {
            if !EventKind::NAMES.contains(&name) {
                let what = format!("unknown kind {name:?}; there are {}", EventKind::NAMES.join(", "));
                return Err(AdminRefusal::bad(what, "query.kind").one_of(name, EventKind::NAMES));
            }
            kinds.push(name.to_owned());
        }
    }
    Ok(kinds)
}

fn wanted(kinds: &[String], event: &Event) -> bool {
    kinds.is_empty() || kinds.iter().any(|kind| kind == event.kind.as_str())
}

/// Tells the numbers of this process from those of others.
fn epoch(started: SystemTime) -> String {
    format!("{:x}", started.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis())
}

/// The number in a `Last-Event-ID` of this process.
fn after(last: &HeaderValue, epoch: &str) -> Option<u64> {
    let last = last.to_str().ok()?;
    if last == "0" {
        // Everything that is still known, of whichever process.
        return Some(0);
    }
    let (process, number) = last.rsplit_once('-')?;
    number.parse().ok().filter(|_| process == epoch)
}

#[derive(Serialize)]
struct EventView<'a> {
    time: String,
    #[serde(flatten)]
    kind: &'a EventKind,
}

fn told(event: &Event, epoch: &str) -> String {
    let name = event.kind.as_str();
    // Text and numbers cannot fail to become JSON; and JSON on one line has no line breaks.
    let data = serde_json::to_string(&EventView { time: rfc3339(event.time), kind: &event.kind }).unwrap_or_default();
    format!("id: {epoch}-{}\nevent: {name}\ndata: {data}\n\n", event.number)
}

/// Says that something was missed.
fn gap(missed: Option<u64>) -> String {
    let mut text = String::from("event: gap\ndata: {\"kind\":\"gap\",\"missed\":");
    // Writing to a text does not fail.
    let _ = match missed {
        Some(missed) => write!(text, "{missed}"),
        None => write!(text, "null"),
    };
    text + "}\n\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::events::Events;

    #[test]
    fn kinds_are_known() {
        assert_eq!(kinds("").unwrap(), [""; 0]);
        assert_eq!(kinds("kind=health,by_hand&kind=reloaded").unwrap(), ["health", "by_hand", "reloaded"]);
        for bad in ["kind=healht", "kinds=health", "kind"] {
            assert!(kinds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_of_another_process_are_none() {
        let epoch = epoch(UNIX_EPOCH + Duration::from_millis(255));
        assert_eq!(epoch, "ff");
        let after = |text: &'static str| after(&HeaderValue::from_static(text), &epoch);
        assert_eq!((after("ff-17"), after("0")), (Some(17), Some(0)));
        assert_eq!([after("fe-17"), after("17"), after("ff-x"), after("")], [None; 4]);
    }

    fn telling(events: &Events) -> (mpsc::Receiver<Bytes>, watch::Sender<()>, tokio::task::JoinHandle<()>) {
        let (sender, texts) = mpsc::channel(QUEUE);
        let telling = Telling { sender, live: events.listen(), kinds: Vec::new(), epoch: "ff".into() };
        let (stop, stopped) = watch::channel(());
        (texts, stop, tokio::spawn(telling.run(": listening\n\n".into(), stopped)))
    }

    fn reloaded() -> EventKind {
        EventKind::Reloaded { generation: 1, changed: true }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_dropped() {
        let events = Events::default();
        let (texts, _stop, task) = telling(&events);
        let begun = tokio::time::Instant::now();
        for _ in 0..QUEUE * 2 {
            events.publish(reloaded());
        }
        task.await.unwrap();
        assert_eq!(begun.elapsed().as_secs(), STALLED.as_secs());
        drop(texts);
    }

    #[tokio::test(start_paused = true)]
    async fn who_falls_behind_is_told_and_goes_on() {
        let events = Events::default();
        let (mut texts, stop, task) = telling(&events);
        for _ in 0..1500 {
            events.publish(reloaded());
        }
        assert_eq!(texts.recv().await.unwrap(), ": listening\n\n");
        assert_eq!(texts.recv().await.unwrap(), gap(Some(1500 - 1024)));
        assert!(texts.recv().await.unwrap().starts_with(b"id: ff-477\n"));
        for _ in 0..1023 {
            texts.recv().await.unwrap();
        }
        assert_eq!(texts.recv().await.unwrap(), ": keep-alive\n\n", "when nothing happens");
        drop(stop);
        task.await.unwrap();
        assert_eq!(texts.recv().await, None);
    }

    #[test]
    fn an_event_is_a_block_of_lines() {
        let kind = EventKind::ReloadFailed { generation: 3, problems: "a\nb".into() };
        let event = Event { number: 9, time: UNIX_EPOCH, kind };
        assert_eq!(
            told(&event, "ff"),
            "id: ff-9\nevent: reload_failed\ndata: {\"time\":\"1970-01-01T00:00:00.000Z\",\"kind\":\"reload_failed\",\
             \"generation\":3,\"problems\":\"a\\nb\"}\n\n"
        );
        assert_eq!(gap(None), "event: gap\ndata: {\"kind\":\"gap\",\"missed\":null}\n\n");
    }
}
