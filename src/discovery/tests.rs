use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::backend::Instance;
use crate::config::{Address, DnsConfig, Vocabulary, parse};
use crate::strategy::Factories;
use crate::telemetry::events::{EventKind, Events};
use crate::upstream::sources::SourceCondition;
use crate::upstream::{Upstream, UpstreamState};

const S: Duration = Duration::from_secs(1);

fn set(ports: &[u16]) -> BackendSet {
    ports.iter().map(|&port| Instance::new(Address::Ip(([10, 0, 0, 1], port).into()))).collect()
}

/// The ports of what an upstream is to serve with.
fn ports(state: &UpstreamState) -> Vec<u16> {
    ports_of(&state.sources.set().expect("the file is known"))
}

fn ports_of(set: &BackendSet) -> Vec<u16> {
    set.iter().map(|instance| instance.address.socket().unwrap().port()).collect()
}

/// An upstream of the backend at port 1.
fn upstream(state: &Arc<UpstreamState>) -> Arc<Upstream> {
    let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n\
                [upstream.u]\nbackends = [\"10.0.0.1:1\"]\n";
    let config = parse(text, "lb.toml", &|_| None, &Vocabulary::default()).unwrap().config;
    state.sources.file_says(&BackendSet::of_file(&config.upstreams[0].backends));
    Upstream::build(Arc::clone(&config.upstreams[0]), Arc::clone(state), &Factories::default())
}

fn state() -> Arc<UpstreamState> {
    UpstreamState::new("u".into(), 1)
}

/// Says what it is told, an answer after each second, and then nothing more.
struct Scripted(VecDeque<Result<BackendSet, &'static str>>);

impl Scripted {
    fn says(answers: &[Result<&[u16], &'static str>]) -> Self {
        Self(answers.iter().map(|answer| answer.map(set)).collect())
    }
}

impl Discovery for Scripted {
    async fn next(&mut self) -> Result<BackendSet, DiscoveryError> {
        if self.0.is_empty() {
            return pending().await;
        }
        tokio::time::sleep(S).await;
        // Not before the wait: it may be given up.
        self.0.pop_front().expect("an answer").map_err(DiscoveryError::new)
    }
}

fn found(discovery: impl Discovery) -> Vec<FoundBackends> {
    vec![FoundBackends::by("u".into(), "test".into(), discovery)]
}

fn told(listener: &mut tokio::sync::broadcast::Receiver<Arc<crate::telemetry::events::Event>>) -> Vec<String> {
    std::iter::from_fn(|| listener.try_recv().ok())
        .map(|event| match &event.kind {
            EventKind::Discovery { to, evidence, .. } => format!("{to}: {}", evidence.split(", retry").next().unwrap()),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_pushed_before_the_start_is_served_with_from_the_start() {
    let (state, events) = (state(), Events::default());
    let upstream = upstream(&state);
    let (pusher, pushed) = pushed();
    pusher.push(set(&[2]));
    let _feeds = Feeds::start(found(pushed), (&[Arc::clone(&upstream)], &DnsConfig::default()), None, None, &events);
    assert_eq!(ports(&state), [1, 2]);
    // Without anybody to push, the last set holds.
    pusher.push(set(&[3]));
    drop(pusher);
    tokio::time::sleep(S).await;
    assert_eq!(ports(&state), [1, 3]);
    assert_eq!(state.sources.look()[1].condition, SourceCondition::Current);
}

#[tokio::test(start_paused = true)]
async fn a_failing_source_keeps_its_last_set_and_is_told_of_once() {
    let (state, events) = (state(), Events::default());
    let mut listener = events.listen();
    let upstream = upstream(&state);
    let script = Scripted::says(&[Ok(&[2]), Err("refused"), Err("refused"), Err("timed out"), Ok(&[3])]);
    let _feeds = Feeds::start(found(script), (&[Arc::clone(&upstream)], &DnsConfig::default()), None, None, &events);
    assert_eq!(state.sources.look()[1].condition, SourceCondition::Awaited);
    tokio::time::sleep(2 * S + S / 10).await;
    assert_eq!(ports(&state), [1, 2]);
    assert_eq!(state.sources.look()[1].condition, SourceCondition::Failing { error: "refused".into() });
    assert_eq!(told(&mut listener), ["current: 1 backend", "failing: refused; keeping 1 backend"]);
    tokio::time::sleep(20 * S).await;
    assert_eq!(ports(&state), [1, 3]);
    let told = told(&mut listener);
    assert!(told.len() == 1 && told[0].starts_with("current: 1 backend, after 3 failures in "), "{told:?}");
}

/// A reload gives up the wait for an answer, and that must cost none.
#[tokio::test(start_paused = true)]
async fn reloads_do_not_put_off_a_source_nor_its_retries() {
    let (state, events) = (state(), Events::default());
    let upstream = [upstream(&state)];
    let mut both = found(pushed().1);
    both.push(FoundBackends::by("u".into(), "failing".into(), AtOnce(0)));
    let mut feeds = Feeds::start(both, (&upstream, &DnsConfig::default()), None, None, &events);
    for _ in 0..100 {
        feeds.follow(&[], &DnsConfig::default(), FirstLooks::default());
        tokio::time::sleep(S / 10).await;
        feeds.follow(&upstream, &DnsConfig::default(), FirstLooks::default());
        tokio::time::sleep(S / 10).await;
    }
    // In 20 s: after 0.25 to 0.5 s, twice that, and so on.
    let SourceCondition::Failing { error } = &state.sources.look()[2].condition else { panic!("it fails") };
    let asked: u32 = error.parse().unwrap();
    assert!((5..=8).contains(&asked), "{asked}");
}

/// Fails at once, each time, and counts.
struct AtOnce(u32);

impl Discovery for AtOnce {
    async fn next(&mut self) -> Result<BackendSet, DiscoveryError> {
        self.0 += 1;
        Err(DiscoveryError::new(self.0.to_string()))
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_comes_back_is_told_what_is_known_before_it_serves() {
    let (first, events) = (state(), Events::default());
    let upstream = upstream(&first);
    let (pusher, pushed) = pushed();
    pusher.push(set(&[2]));
    let mut feeds = Feeds::start(found(pushed), (&[upstream], &DnsConfig::default()), None, None, &events);
    feeds.follow(&[], &DnsConfig::default(), FirstLooks::default());
    tokio::time::sleep(S).await;
    pusher.push(set(&[3]));
    tokio::time::sleep(S).await;
    assert_eq!(ports(&first), [1, 2], "what is gone is told nothing more");
    let next = state();
    feeds.introduce(&next);
    assert_eq!(ports_of(&next.sources.set_with(&set(&[1]))), [1, 3]);
}
