//! Load balancing: slow start, tiers, backups, panic, zones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use isobar::backend::slow_start::Settings;
use isobar::telemetry::events::EventKind;
use isobar::upstream::Upstream;
use tokio::time::Instant;

use crate::harness::{Keys, TestBackend, TestProxy, eventually};

/// An upstream `u` with these backends as tables, and further keys.
fn config(members: &[(&TestBackend, &str)], top: &str, upstream: &str, tables: &str) -> String {
    let member = |(backend, keys): &(&TestBackend, &str)| format!("{{ address = \"{}\"{keys} }}", backend.address());
    let members: Vec<_> = members.iter().map(member).collect();
    format!(
        "workers = 1\n{top}\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"u\"\n\
         [upstream.u]\nbackends = [{}]\n{upstream}\n{tables}",
        members.join(", ")
    )
}

fn upstream(proxy: &TestProxy) -> Arc<Upstream> {
    Arc::clone(proxy.snapshot().upstream("u").expect("upstream u"))
}

fn ready(proxy: &TestProxy) -> usize {
    upstream(proxy).roster().ready().len()
}

/// Sends so many requests and says how many each backend got.
async fn shares(proxy: &TestProxy, pool: &[&TestBackend], requests: usize) -> Vec<usize> {
    let before: Vec<_> = pool.iter().map(|backend| backend.requests()).collect();
    let mut client = proxy.client().await;
    for _ in 0..requests {
        assert_eq!(client.get("/").await.status(), 200);
    }
    pool.iter().zip(before).map(|(backend, before)| backend.requests() - before).collect()
}

/// What a backend answers checks with, and how many requests it has had besides.
struct Told {
    status: AtomicU16,
    served: AtomicUsize,
}

impl Told {
    fn answers(&self, status: u16) {
        self.status.store(status, SeqCst);
    }

    fn served(&self) -> usize {
        self.served.load(SeqCst)
    }
}

/// Answers checks with a status that the test sets, and requests with 200.
fn steered() -> (TestBackend, Arc<Told>) {
    let told = Arc::new(Told { status: AtomicU16::new(200), served: AtomicUsize::new(0) });
    let own = Arc::clone(&told);
    let backend = TestBackend::scripted(async move |peer| {
        while let Some(message) = peer.request().await {
            if message.head.target() == "/health" {
                peer.respond(&format!("{} Told", own.status.load(SeqCst)), "").await;
            } else {
                own.served.fetch_add(1, SeqCst);
                peer.respond("200 OK", "").await;
            }
        }
    });
    (backend, told)
}

const CHECK: &str = "[upstream.u.health_check]\npath = \"/health\"\ninterval = \"50ms\"\ninterval_in_doubt = \"20ms\"\n\
                     unhealthy_after = 2\nhealthy_after = 1\n";

/// The share of a returning backend over its window: at each moment what the formula says, within a tenth.
#[tokio::test]
async fn a_backend_that_joins_takes_its_share_as_the_formula_says() {
    for strategy in ["round_robin", "random", "weighted_round_robin"] {
        let (a, b, c) = (TestBackend::ok("a"), TestBackend::ok("b"), TestBackend::ok("c"));
        let keys = format!("strategy = \"{strategy}\"\nslow_start = {{ window = \"4s\" }}");
        let proxy = TestProxy::with_config(config(&[(&a, ""), (&b, "")], "", &keys, "")).await;
        let of_start = shares(&proxy, &[&a, &b], 100).await;
        if strategy != "random" {
            assert_eq!(of_start, [50, 50], "nobody starts slowly with the process");
        }
        let pool = [&a, &b, &c];
        proxy.apply(config(&[(&a, ""), (&b, ""), (&c, "")], "", &keys, "")).await.unwrap();
        let began = Instant::now();
        let settings = Settings { window: Duration::from_secs(4), ..Settings::default() };

        // Picks are counted by quarters of the window, and what they should be is added up pick by pick.
        let (mut picked, mut expected) = ([0f64; 4], [0f64; 4]);
        let mut client = proxy.client().await;
        loop {
            let since = began.elapsed();
            let Some(quarter) = (0..4).find(|quarter| since < Duration::from_secs(quarter + 1)) else { break };
            let before = c.requests();
            assert_eq!(client.get("/").await.status(), 200);
            picked[quarter as usize] += (c.requests() - before) as f64;
            let factor = settings.factor(since);
            expected[quarter as usize] += factor / (2.0 + factor);
        }
        for (quarter, (picked, expected)) in picked.iter().zip(&expected).enumerate() {
            // A random draw is off by chance as well: three standard deviations of it.
            let chance = if strategy == "random" { 3.0 * expected.sqrt() } else { 2.0 };
            let allowed = 0.1 * expected + chance;
            assert!((picked - expected).abs() <= allowed, "{strategy} {quarter}: {picked} instead of {expected:.1}");
        }
        let (all, formula): (f64, f64) = (picked.iter().sum(), expected.iter().sum());
        assert!(formula > 50.0, "too few requests to tell: {formula}");
        let chance = if strategy == "random" { 3.0 * formula.sqrt() } else { 0.0 };
        assert!((all - formula).abs() <= 0.1 * formula + chance, "{strategy}: {all} instead of {formula:.1}");
        // Over, it is an equal again, and the strategy the one of the file.
        eventually(|| upstream(&proxy).roster().next().is_none()).await;
        if strategy != "random" {
            assert_eq!(shares(&proxy, &pool, 30).await, [10, 10, 10]);
        }
    }
}

#[tokio::test]
async fn who_returns_to_health_starts_slowly_and_reloads_do_not_begin_it_anew() {
    let ((a, _), (b, status)) = (steered(), steered());
    let keys = "slow_start = { window = \"3s\" }";
    let text = |retries: usize| config(&[(&a, ""), (&b, "")], "", &format!("retries = {retries}\n{keys}"), CHECK);
    let proxy = TestProxy::with_config(text(1)).await;
    let percent = |place: usize| upstream(&proxy).roster().seats()[place].percent.get();
    assert_eq!([percent(0), percent(1)], [100, 100]);
    status.answers(500);
    eventually(|| ready(&proxy) == 1).await;
    status.answers(200);
    eventually(|| ready(&proxy) == 2).await;
    let began = Instant::now();
    // It had to be below all; the machine may be slow, so no more is asked of the beginning.
    let mut last = percent(1);
    assert!(last < 100);
    for round in 0..7 {
        proxy.apply(text(round % 2)).await.unwrap();
        let now = percent(1);
        assert!(now >= last, "{now} after {last} in round {round}");
        last = now;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    eventually(|| percent(1) == 100).await;
    let took = began.elapsed().as_secs_f64();
    assert!((2.0..5.0).contains(&took), "{took}");
    assert_eq!(percent(0), 100, "the other one stayed");
}

#[tokio::test]
async fn a_backend_that_was_gone_begins_its_slow_start_anew() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let keys = "slow_start = { window = \"2s\" }";
    let (one, two) = (config(&[(&a, "")], "", keys, ""), config(&[(&a, ""), (&b, "")], "", keys, ""));
    let proxy = TestProxy::with_config(one.clone()).await;
    let percent = || upstream(&proxy).roster().seats()[1].percent.get();
    proxy.apply(two.clone()).await.unwrap();
    eventually(|| percent() >= 60).await;
    // The rest of the file may change meanwhile.
    proxy.apply(format!("drain_limit = \"5s\"\n{two}")).await.unwrap();
    assert!(percent() >= 60);
    let known = Arc::downgrade(&proxy.state("u", &b));
    proxy.apply(one).await.unwrap();
    // Workers let go of the old snapshot in their own time.
    eventually(|| known.strong_count() == 0).await;
    proxy.apply(two).await.unwrap();
    assert!(percent() < 60, "{}", percent());
}

#[tokio::test]
async fn slow_start_can_be_off_and_an_upstream_that_is_new_has_none() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let off = "slow_start = { enabled = false }";
    let proxy = TestProxy::with_config(config(&[(&a, "")], "", off, "")).await;
    proxy.apply(config(&[(&a, ""), (&b, "")], "", off, "")).await.unwrap();
    assert_eq!(shares(&proxy, &[&a, &b], 20).await, [10, 10]);

    let other = |name: &str| {
        format!(
            "workers = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"{name}\"\n[upstream.{name}]\n\
             backends = [\"{}\", \"{}\"]\n",
            a.address(),
            b.address()
        )
    };
    proxy.apply(other("v")).await.unwrap();
    assert_eq!(shares(&proxy, &[&a, &b], 20).await, [10, 10], "a new upstream does not start slowly");
}

#[tokio::test]
async fn backups_are_asked_only_when_the_others_are_gone() {
    let (a, status) = steered();
    let (b, status_b) = steered();
    let (spare, spare_told) = steered();
    let keys = "slow_start = { enabled = false }\npanic_threshold = 0";
    let members = [(&a, ""), (&b, ""), (&spare, ", backup = true")];
    let proxy = TestProxy::with_config(config(&members, "", keys, CHECK)).await;
    shares(&proxy, &[], 20).await;
    assert_eq!(spare_told.served(), 0);
    for status in [&status, &status_b] {
        status.answers(500);
    }
    eventually(|| ready(&proxy) == 1).await;
    shares(&proxy, &[], 10).await;
    assert_eq!(spare_told.served(), 10);
    status.answers(200);
    status_b.answers(200);
    eventually(|| ready(&proxy) == 3).await;
    shares(&proxy, &[], 10).await;
    assert_eq!(spare_told.served(), 10);
}

#[tokio::test]
async fn a_retry_goes_to_a_backup_before_the_request_fails() {
    let dead = TestBackend::refusing();
    let spare = TestBackend::ok("spare");
    let members = [(&dead, ""), (&spare, ", backup = true")];
    let proxy = TestProxy::with_config(config(&members, "", "retries = 1", "")).await;
    assert_eq!(proxy.get("/").await.text(), "spare");
}

#[tokio::test]
async fn what_a_tier_cannot_bear_goes_to_the_next() {
    let first: Vec<_> = (0..4).map(|_| steered()).collect();
    let (next, next_told) = steered();
    let mut members: Vec<_> = first.iter().map(|(backend, _)| (backend, "")).collect();
    members.push((&next, ", priority = 1"));
    let keys = "slow_start = { enabled = false }";
    let proxy = TestProxy::with_config(config(&members, "", keys, CHECK)).await;
    shares(&proxy, &[], 50).await;
    assert_eq!(next_told.served(), 0);
    // Half are left: 70 % stay and 30 % go.
    for (_, status) in &first[..2] {
        status.answers(500);
    }
    eventually(|| ready(&proxy) == 3).await;
    let sources: Vec<_> = upstream(&proxy).roster().sources().map(|source| (source.share * 1000.0).round()).collect();
    assert_eq!(sources, [700.0, 300.0]);
    let mut client = proxy.client().await;
    for _ in 0..200 {
        assert_eq!(client.get("/").await.status(), 200);
    }
    let spilled = next_told.served();
    assert!((35..=90).contains(&spilled), "{spilled} of 200");
}

#[tokio::test]
async fn in_panic_the_doubtful_are_picked_as_well_and_it_is_told() {
    let pool: Vec<_> = (0..3).map(|_| steered()).collect();
    let members: Vec<_> = pool.iter().map(|(backend, _)| (backend, "")).collect();
    let keys = "slow_start = { enabled = false }";
    let proxy = TestProxy::with_config(config(&members, "", keys, CHECK)).await;
    let mut events = proxy.handle().events().listen();
    for (_, status) in &pool[..2] {
        status.answers(500);
    }
    eventually(|| !upstream(&proxy).roster().panic().is_empty()).await;
    let before: Vec<_> = pool.iter().map(|(_, told)| told.served()).collect();
    shares(&proxy, &[], 30).await;
    let got: Vec<_> = pool.iter().zip(before).map(|(it, before)| it.1.served() - before).collect();
    assert_eq!(got, [10, 10, 10]);
    pool[0].1.answers(200);
    eventually(|| upstream(&proxy).roster().panic().is_empty()).await;
    let mut told = Vec::new();
    eventually(|| {
        while let Ok(event) = events.try_recv() {
            if let EventKind::Panic { tier, on, evidence, .. } = &event.kind {
                told.push(format!("{tier} {on}: {evidence}"));
            }
        }
        told.len() == 2
    })
    .await;
    let expected = ["0 true: 1 of 3 backends ready, 3 picked from", "0 false: 2 of 3 backends ready, 2 picked from"];
    assert_eq!(told, expected);
}

/// Two of three die. With the defaults there is panic, which does not go looking for the dead: no request fails, and none
/// is sent to them, however few retries there may be.
#[tokio::test]
async fn all_but_one_die_and_no_request_fails() {
    let mut pool: Vec<_> = (0..3).map(|_| steered()).collect();
    let text = |pool: &[(TestBackend, Arc<Told>)], keys: &str| {
        let members: Vec<_> = pool.iter().map(|(backend, _)| (backend, "")).collect();
        config(&members, "", keys, CHECK)
    };
    let proxy = TestProxy::with_config(text(&pool, "")).await;
    pool[0].0.kill();
    pool[1].0.kill();
    // Before the checks have found out, retries see to it.
    shares(&proxy, &[], 20).await;
    eventually(|| ready(&proxy) == 1 && !upstream(&proxy).roster().panic().is_empty()).await;
    eventually(|| upstream(&proxy).roster().sources().map(|source| source.backends.len()).sum::<usize>() == 1).await;
    proxy.apply(text(&pool, "retries = 0")).await.unwrap();
    shares(&proxy, &[], 30).await;
    // The last one dies too: now all are tried, for what else, and who comes back is found at once.
    pool[2].0.kill();
    eventually(|| ready(&proxy) == 0).await;
    assert_eq!(upstream(&proxy).roster().sources().next().unwrap().backends.len(), 3);
    assert_eq!(proxy.get("/").await.status(), 502);
    pool[2].0.restart();
    eventually(|| ready(&proxy) == 1).await;
    shares(&proxy, &[], 10).await;
}

#[tokio::test]
async fn requests_stay_in_the_zone_while_it_can_bear_them() {
    let pool: Vec<_> = (0..4).map(|_| steered()).collect();
    let zones = [", zone = \"a\"", ", zone = \"a\"", ", zone = \"b\"", ", zone = \"b\""];
    let members: Vec<_> = pool.iter().zip(zones).map(|((backend, _), zone)| (backend, zone)).collect();
    let keys = "slow_start = { enabled = false }\nzone_preference = { backends_min = 3 }";
    let proxy = TestProxy::with_config(config(&members, "zone = \"a\"", keys, CHECK)).await;
    let got = || pool.iter().map(|(_, told)| told.served()).collect::<Vec<_>>();
    shares(&proxy, &[], 20).await;
    assert_eq!(got(), [10, 10, 0, 0], "by turns within the zone");
    // One of the own is gone: a third of the capacity for half of the load, so two in three stay.
    pool[0].1.answers(500);
    eventually(|| ready(&proxy) == 3).await;
    let shown: Vec<_> = upstream(&proxy)
        .roster()
        .sources()
        .map(|source| (source.place.zone.as_deref().map(str::to_owned), (source.share * 100.0).round()))
        .collect();
    assert_eq!(shown, [(Some("a".into()), 67.0), (Some("b".into()), 33.0)]);
    shares(&proxy, &[], 90).await;
    let after = got();
    assert_eq!(after[0], 10);
    assert!((10..=55).contains(&(after[2] + after[3])), "{after:?}");
    assert!(after[2].abs_diff(after[3]) <= 1, "by turns in the other zone too: {after:?}");
    // Another process's zone is another's preference.
    proxy.apply(config(&members, "zone = \"b\"", keys, CHECK)).await.unwrap();
    eventually(|| upstream(&proxy).roster().sources().next().unwrap().place.zone.as_deref() == Some("b")).await;
}

/// The places in the rounds are apart, so what one tier takes is not missed by another.
#[tokio::test]
async fn the_round_of_the_first_tier_goes_on_over_reloads() {
    let (a, b, spare) = (TestBackend::ok("a"), TestBackend::ok("b"), TestBackend::ok("s"));
    let members = [(&a, ""), (&b, ""), (&spare, ", backup = true")];
    let proxy = TestProxy::with_config(config(&members, "", "retries = 1", "")).await;
    for round in 0..6 {
        assert_eq!(shares(&proxy, &[&a, &b, &spare], 1).await, [(round + 1) % 2, round % 2, 0]);
        proxy.apply(config(&members, "", &format!("retries = {}", round % 2), "")).await.unwrap();
    }
    let text = Keys::default().text(&[&a, &b]);
    proxy.apply(text).await.unwrap();
    assert_eq!(shares(&proxy, &[&a, &b], 2).await, [1, 1]);
}
