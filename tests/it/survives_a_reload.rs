//! What survives a reload, over real sockets: for an upstream that is as it was, changed, and gone.
//!
//! | What survives | Test |
//! |---|---|
//! | a request under way, and the client's connection | `a_request_in_flight_finishes_and_its_connection_stays` |
//! | a tunnel | `a_tunnel_goes_on_and_ends_at_the_drain_limit_only_if_its_backend_is_gone` |
//! | the whole `drain_limit`, however often a backend comes and goes | `a_backend_that_comes_and_goes_has_the_whole_drain_limit_each_time` |
//! | connections of a removed listener, for a while | `connections_of_a_removed_listener_are_drained` |
//! | requests in flight and picks | `counts_and_picks_are_kept_by_address` |
//! | the place in the round | `round_robin_goes_on_where_it_stood` |
//! | pooled connections | `pooled_connections_are_kept_by_address_and_closed_when_it_is_gone`, `a_connection_that_was_busy_when_its_backend_went_is_closed_after_its_request` |
//! | the retry budget | `retry_budget::what_was_spent_is_spent_after_a_reload` |
//! | metrics | `metrics_are_never_reset` |
//! | the verdict of health checks and their pace | `health::verdicts_and_the_pace_outlive_a_file_that_changes_all_the_time`, `health::other_settings_reach_checks_that_run_and_keep_the_verdict`, `health::without_the_check_all_count_as_healthy_again` |
//! | ejections, and the intervals of outlier detection | `outliers::an_ejection_survives_reloads_every_300_ms_and_ends_in_its_time`, `outliers::intervals_are_not_put_off_by_reloads`, `outliers::switched_off_it_takes_back_whom_it_has_ejected`, `outliers::a_backend_that_is_gone_for_a_while_begins_anew` |
//! | slow starts | `picking::who_returns_to_health_starts_slowly_and_reloads_do_not_begin_it_anew`, `picking::a_backend_that_was_gone_begins_its_slow_start_anew` |
//! | the place in the round of each tier | `picking::the_round_of_the_first_tier_goes_on_over_reloads` |
//! | what is set by hand, also while the address is not in the file | `levers::what_is_set_survives_a_storm_of_reloads` |
//! | connections of a renamed listener | `a_renamed_listener_keeps_its_connections_and_gets_its_routes` |
//! | a listener's settings, for connections there are | `the_settings_of_a_listener_apply_to_new_connections` |
//!
//! Tests without sockets hold the rest, besides those of the plan itself in `supervisor/reload_plan/tests.rs`:
//!
//! | Promise | Test |
//! |---|---|
//! | kept upstreams are the same, replaced ones stand on the same state, the round goes on | `supervisor::tests::what_is_kept_is_the_same_and_what_is_replaced_stands_on_the_same_state` |
//! | a listener keeps its sockets under other settings | `supervisor::tests::a_listener_keeps_its_sockets_under_other_settings_and_another_name` |
//! | listeners come and go | `supervisor::tests::listeners_come_and_go` |
//! | what cannot be prepared changes nothing | `supervisor::tests::an_address_that_is_taken_changes_nothing` |
//! | a broken file is not served | `supervisor::tests::a_file_is_followed_and_a_broken_one_is_not_served` |
//! | every way of replacing the file is seen | `supervisor::watch::tests::each_way_of_editing_is_seen` |

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::harness::{Client, Log, TestBackend, TestProxy, backends, eventually, soon, unbound};

const WEB: &str = "[[listener]]\nname = \"web\"\naddress = \"127.0.0.1:0\"\n";

/// One listener, a route to `u`, and `u` as the text says.
fn with_u(u: &str) -> String {
    format!("workers = 2\n{WEB}\n[[route]]\nupstream = \"u\"\n[upstream.u]\n{u}")
}

fn over(pool: &[&TestBackend]) -> String {
    format!("backends = {}\n", backends(pool))
}

/// Answers with `name` each time that it is let.
fn gated(name: &'static str) -> (TestBackend, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let backend = TestBackend::scripted(async move |peer| {
        while peer.request().await.is_some() {
            opened.acquire().await.unwrap().forget();
            peer.respond("200 OK", name).await;
        }
    });
    (backend, gate)
}

/// The three columns: the upstream as it was, changed, and gone.
fn columns(pool: &[&TestBackend], other: &TestBackend) -> [(&'static str, String); 3] {
    let changed = format!("strategy = \"least_connections\"\nretries = 0\n{}", over(pool));
    let gone = format!("workers = 2\n{WEB}\n[[route]]\nupstream = \"v\"\n[upstream.v]\n{}", over(&[other]));
    // The route differs, so that there is a new snapshot.
    let same = with_u(&over(pool)) + "\n[[route]]\npath = \"/more\"\nrespond = { status = 204 }\n";
    [("same", same), ("changed", with_u(&changed)), ("gone", gone)]
}

#[tokio::test]
async fn a_request_in_flight_finishes_and_its_connection_stays() {
    for column in 0..3 {
        let (old, gate) = gated("old");
        let new = TestBackend::ok("new");
        let proxy = TestProxy::with_config(with_u(&over(&[&old]))).await;
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
        eventually(|| old.requests() == 1).await;
        let state = proxy.state("u", &old);
        assert_eq!(state.in_flight(), 1);

        let (name, text) = columns(&[&old], &new)[column].clone();
        proxy.apply(text).await.unwrap();
        assert_eq!(state.in_flight(), 1, "{name}: the count stays with the lease");
        gate.add_permits(1);
        let response = client.response().await;
        assert_eq!((response.text(), response.header("connection")), ("old", None), "{name}");
        eventually(|| state.in_flight() == 0).await;

        // The connection stays, and its next request takes the new snapshot.
        gate.add_permits(1);
        let next = if name == "gone" { "new" } else { "old" };
        assert_eq!(client.get("/").await.text(), next, "{name}");
        assert_eq!(proxy.counted(|listener| &listener.accepted), 1, "{name}");
    }
}

#[tokio::test]
async fn a_tunnel_goes_on_and_ends_at_the_drain_limit_only_if_its_backend_is_gone() {
    const LIMIT: Duration = Duration::from_millis(700);
    for column in 0..3 {
        let (backend, other) = (TestBackend::upgrading(), TestBackend::ok("other"));
        let proxy = TestProxy::with_config(with_u(&over(&[&backend]))).await;
        let mut client = tunnel(&proxy).await;
        echoes(&mut client, "before").await;

        let (name, text) = columns(&[&backend], &other)[column].clone();
        let start = Instant::now();
        proxy.apply(format!("drain_limit = \"{}ms\"\n{text}", LIMIT.as_millis())).await.unwrap();
        echoes(&mut client, "after").await;
        if name == "gone" {
            client.closed().await;
            assert!(start.elapsed() >= LIMIT, "cut after {:?}", start.elapsed());
            eventually(|| proxy.counted(|listener| &listener.tunnels_closed) == 1).await;
            assert_eq!(proxy.counted(|listener| &listener.cut), 1, "{name}");
        } else {
            tokio::time::sleep(LIMIT + Duration::from_millis(300)).await;
            echoes(&mut client, name).await;
            assert_eq!(proxy.in_flight_at(&backend), 1, "{name}: a tunnel counts as in flight");
            assert_eq!(proxy.counted(|listener| &listener.cut), 0, "{name}");
        }
    }
}

/// A bug: the time of an earlier reload that had removed the backend too cut what had come to it since, after less than the limit.
#[tokio::test]
async fn a_backend_that_comes_and_goes_has_the_whole_drain_limit_each_time() {
    const LIMIT: Duration = Duration::from_millis(900);
    let (backend, other) = (TestBackend::upgrading(), TestBackend::upgrading());
    let with = |pool: &[&TestBackend]| format!("drain_limit = \"{}ms\"\n{}", LIMIT.as_millis(), with_u(&over(pool)));
    let proxy = TestProxy::with_config(with(&[&backend])).await;
    // Something is under way on either worker, so that either looks again after the limit.
    let mut others = Vec::new();
    for _ in 0..8 {
        others.push(tunnel(&proxy).await);
    }
    proxy.apply(with(&[&other])).await.unwrap();
    let removed_first = Instant::now();
    proxy.apply(with(&[&backend])).await.unwrap();
    let mut client = tunnel(&proxy).await;
    tokio::time::sleep(LIMIT * 2 / 3).await;
    let start = Instant::now();
    proxy.apply(with(&[&other])).await.unwrap();
    assert!(removed_first.elapsed() < LIMIT, "too late to tell");
    client.closed().await;
    assert!(start.elapsed() >= LIMIT, "cut after {:?}", start.elapsed());
    eventually(|| proxy.counted(|listener| &listener.tunnels_closed) == 9).await;
    assert_eq!(proxy.counted(|listener| &listener.cut), 9);
}

async fn tunnel(proxy: &TestProxy) -> Client {
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 101);
    client
}

async fn echoes(client: &mut Client, text: &str) {
    client.send(text).await;
    let echo = String::from_utf8(client.exact(text.len()).await).unwrap();
    assert_eq!(echo, text);
}

#[tokio::test]
async fn connections_of_a_removed_listener_are_drained() {
    let (backend, gate) = gated("done");
    let second = format!("{WEB}[[listener]]\nname = \"second\"\naddress = \"127.0.0.2:0\"\n");
    let u = over(&[&backend]);
    let both = format!("workers = 2\n{second}\n[[route]]\nupstream = \"u\"\n[upstream.u]\n{u}");
    let proxy = TestProxy::with_config(both).await;
    let address = proxy.addresses()[1];
    let (mut idle, mut busy, mut late) =
        (Client::connect(address).await, Client::connect(address).await, Client::connect(address).await);
    let mut stays = proxy.client().await;
    gate.add_permits(2);
    assert_eq!(idle.get("/").await.text(), "done");
    assert_eq!(stays.get("/").await.text(), "done");
    for client in [&mut busy, &mut late] {
        client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    }
    eventually(|| backend.requests() == 4).await;

    let removed = Arc::clone(&proxy.handle().listeners()[1]);
    let start = Instant::now();
    proxy.apply(format!("drain_limit = \"2500ms\"\n{}", with_u(&u))).await.unwrap();
    idle.closed().await;
    unbound(address).await;
    gate.add_permits(1);
    // Whichever was let finishes, and is told that this was the last; the other is cut when the limit is over.
    let (mut done, mut cut) = (0, 0);
    for client in [&mut busy, &mut late] {
        match soon(client.stream.response("GET")).await {
            Ok(response) => {
                assert_eq!((response.text(), response.header("connection")), ("done", Some("close")));
                done += 1;
            }
            Err(_) => cut += 1,
        }
    }
    assert_eq!((done, cut), (1, 1));
    assert!(start.elapsed() >= Duration::from_millis(2500));
    eventually(|| removed.open.load(std::sync::atomic::Ordering::Relaxed) == 0).await;

    // The backend takes one of these to answer a client that is gone.
    gate.add_permits(2);
    assert_eq!(stays.get("/").await.text(), "done", "those of another listener stay");
}

#[tokio::test]
async fn counts_and_picks_are_kept_by_address() {
    let ((a, gate), b, c) = (gated("a"), TestBackend::ok("b"), TestBackend::ok("c"));
    let proxy = TestProxy::with_config(with_u(&over(&[&a, &b]))).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    eventually(|| a.requests() == 1).await;
    assert_eq!(proxy.get("/").await.text(), "b");
    let picks = |backend: &TestBackend| proxy.state("u", backend).metrics.sum(|metrics| &metrics.picks);
    assert_eq!((picks(&a), picks(&b)), (1, 1));

    // Least connections knows from its first pick that one is busy.
    proxy.apply(with_u(&format!("strategy = \"least_connections\"\n{}", over(&[&a, &b, &c])))).await.unwrap();
    assert_eq!((proxy.in_flight_at(&a), picks(&a), picks(&b), picks(&c)), (1, 1, 1, 0));
    for _ in 0..4 {
        assert_ne!(proxy.get("/").await.text(), "a");
    }
    assert_eq!((picks(&a), picks(&b) + picks(&c)), (1, 5));

    // Gone and back, while the request is still there.
    proxy.apply(with_u(&over(&[&b]))).await.unwrap();
    proxy.apply(with_u(&over(&[&b, &a]))).await.unwrap();
    assert_eq!((proxy.in_flight_at(&a), picks(&a)), (1, 1));
    gate.add_permits(1);
    assert_eq!(client.response().await.text(), "a");
    eventually(|| proxy.in_flight() == 0).await;

    // Gone when nothing holds it: what comes back later is new.
    let state = Arc::downgrade(&proxy.state("u", &a));
    proxy.apply(with_u(&over(&[&b]))).await.unwrap();
    // The workers have let go of the snapshot before.
    eventually(|| state.strong_count() == 0).await;
    proxy.apply(with_u(&over(&[&b, &a]))).await.unwrap();
    assert_eq!(picks(&a), 0);
}

#[tokio::test]
async fn round_robin_goes_on_where_it_stood() {
    let pool = ["a", "b", "c"].map(TestBackend::ok);
    let pool: Vec<_> = pool.iter().collect();
    let proxy = TestProxy::with_config(with_u(&over(&pool))).await;
    let mut client = proxy.client().await;
    let mut seen = String::new();
    let changes = ["", "retries = 1\n", "retries = 1\nconnect_timeout = \"1s\"\n", "pool = { max_idle = 3 }\n"];
    for (i, change) in changes.iter().cycle().take(12).enumerate() {
        // Every second reload leaves the upstream as it is and changes a route.
        let route = if i % 2 == 0 { "" } else { "\n[[route]]\npath = \"/more\"\nrespond = { status = 204 }\n" };
        proxy.apply(with_u(&format!("{change}{}{route}", over(&pool)))).await.unwrap();
        for _ in 0..=i % 3 {
            seen.push_str(client.get("/").await.text());
        }
    }
    let expected: String = "abc".chars().cycle().take(seen.len()).collect();
    assert_eq!((seen.len(), seen), (24, expected));
}

#[tokio::test]
async fn pooled_connections_are_kept_by_address_and_closed_when_it_is_gone() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    // One worker, and so one pool.
    let text = |u: String| with_u(&u).replace("workers = 2", "workers = 1");
    let proxy = TestProxy::with_config(text(over(&[&a, &b]))).await;
    let mut client = proxy.client().await;
    for change in ["", "strategy = \"random\"\n", "strategy = \"least_connections\"\nretries = 1\n", ""] {
        proxy.apply(text(format!("{change}{}", over(&[&a, &b])))).await.unwrap();
        for _ in 0..8 {
            client.get("/").await;
        }
    }
    assert_eq!((a.connections(), b.connections()), (1, 1));
    proxy.apply(text(over(&[&a]))).await.unwrap();
    eventually(|| b.open() == 0).await;
    assert_eq!((client.get("/").await.text(), a.connections()), ("a", 1));
}

#[tokio::test]
async fn a_connection_that_was_busy_when_its_backend_went_is_closed_after_its_request() {
    let ((a, gate), b) = (gated("a"), TestBackend::ok("b"));
    let proxy = TestProxy::with_config(with_u(&over(&[&a]))).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    eventually(|| a.requests() == 1).await;
    proxy.apply(with_u(&over(&[&b]))).await.unwrap();
    gate.add_permits(1);
    assert_eq!(client.response().await.text(), "a");
    let start = Instant::now();
    eventually(|| a.open() == 0).await;
    assert!(start.elapsed() < Duration::from_secs(10), "not only when it was idle for too long");
}

#[tokio::test]
async fn metrics_are_never_reset() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let named = |u: String| with_u(&u).replacen("[[route]]", "[[route]]\nname = \"all\"", 1);
    let proxy = TestProxy::with_config(named(over(&[&a]))).await;
    let mut client = proxy.client().await;
    for (round, change) in
        ["", "strategy = \"random\"\n", "pool = { max_idle = 1 }\n", "retries = 0\n"].iter().enumerate()
    {
        let route = if round % 2 == 0 { "" } else { "\n[[route]]\npath = \"/x\"\nupstream = \"u\"\n" };
        let listener = format!("max_headers = {}\n", 50 + round);
        let text = named(format!("{change}{}{route}", over(&[&a]))).replace(WEB, &format!("{WEB}{listener}"));
        proxy.apply(text).await.unwrap();
        client.get("/").await;
        eventually(|| proxy.exchanges() == 0).await;
        let snapshot = proxy.snapshot();
        let route = snapshot.routes.routes().iter().find(|route| route.name.as_str() == "all").unwrap();
        let upstream = &snapshot.upstream("u").unwrap().state;
        let backend = proxy.state("u", &a);
        let counts = [
            proxy.counted(|listener| &listener.requests),
            route.metrics.sum(|route| &route.responses[1]),
            upstream.metrics.sum(|upstream| &upstream.responses[1]),
            upstream.metrics.iter().flat_map(|shard| shard.durations.counts()).sum(),
            backend.metrics.sum(|backend| &backend.responses[1]),
            backend.metrics.sum(|backend| &backend.picks),
        ];
        assert_eq!(counts, [round as u64 + 1; 6]);
    }
    // A series ends with what it is about.
    let state = Arc::downgrade(&proxy.state("u", &a));
    proxy.apply(with_u(&over(&[&b]))).await.unwrap();
    client.get("/").await;
    eventually(|| state.strong_count() == 0).await;
}

#[tokio::test]
async fn a_renamed_listener_keeps_its_connections_and_gets_its_routes() {
    let text = |name: &str| {
        format!(
            r#"
            workers = 2
            [[listener]]
            name = "{name}"
            address = "127.0.0.1:0"
            [[route]]
            listeners = ["{name}"]
            respond = {{ body = "{name}" }}
            "#
        )
    };
    let proxy = TestProxy::with_config(text("one")).await;
    let (mut client, address) = (proxy.client().await, proxy.address());
    assert_eq!(client.get("/").await.text(), "one");
    for name in ["two", "three", "two"] {
        proxy.apply(text(name)).await.unwrap();
        assert_eq!(proxy.address(), address);
        assert_eq!(client.get("/").await.text(), name, "on a connection that was kept");
        assert_eq!(proxy.get("/").await.text(), name, "on a new connection");
    }
}

#[tokio::test]
async fn two_listeners_on_ports_of_their_choice_are_told_apart_by_name() {
    let text = |a: &str, b: &str| {
        let of = |name: &str| {
            format!(
                "[[listener]]\nname = \"{name}\"\naddress = \"127.0.0.1:0\"\n\
                 [[route]]\nlisteners = [\"{name}\"]\nrespond = {{ body = \"{name}\" }}\n"
            )
        };
        format!("workers = 1\n{}{}", of(a), of(b))
    };
    let proxy = TestProxy::with_config(text("a", "b")).await;
    let addresses = proxy.addresses();
    let (mut a, mut b) = (Client::connect(addresses[0]).await, Client::connect(addresses[1]).await);
    assert_eq!((a.get("/").await.text(), b.get("/").await.text()), ("a", "b"));
    proxy.apply(text("b", "a")).await.unwrap();
    assert_eq!(proxy.addresses(), [addresses[1], addresses[0]]);
    assert_eq!((a.get("/").await.text(), b.get("/").await.text()), ("a", "b"));
}

#[tokio::test]
async fn the_settings_of_a_listener_apply_to_new_connections() {
    let backend = TestBackend::echo();
    let text = |settings: &str| {
        let u = over(&[&backend]);
        format!("workers = 2\n{WEB}{settings}\n[[route]]\nupstream = \"u\"\n[upstream.u]\n{u}")
    };
    let proxy = TestProxy::with_config(text("")).await;
    assert_eq!(proxy.post("/", "12345").await.status(), 200);
    proxy.apply(text("max_body = \"4B\"\n".replace("4B", "4").as_str())).await.unwrap();
    assert_eq!(proxy.post("/", "12345").await.status(), 413);
    assert_eq!(proxy.post("/", "1234").await.status(), 200);
    let mut kept = proxy.client().await;
    assert_eq!(kept.get("/").await.status(), 200);
    eventually(|| proxy.connections().iter().sum::<usize>() == 1).await;
    proxy.apply(text("max_connections = 1\n")).await.unwrap();
    assert_eq!(proxy.get("/").await.status(), 503, "one connection is there already");
    assert_eq!(kept.get("/").await.status(), 200);
}

/// Lets `proxy` serve with others until nothing holds what it served with before: the workers do until they have heard of it.
async fn is_let_go(proxy: &TestProxy, text: &str, held: &str) {
    let (before, upstream) = {
        let snapshot = proxy.snapshot();
        (Arc::downgrade(&snapshot), Arc::downgrade(snapshot.upstream("idle").unwrap()))
    };
    proxy.apply(text).await.unwrap();
    eventually(|| before.strong_count() == 0 && upstream.strong_count() == 0).await;
    assert!(before.upgrade().is_none(), "{held}");
}

#[tokio::test]
async fn what_lasts_holds_nothing_that_it_does_not_need() {
    let (slow, gate) = gated("late");
    let streaming = TestBackend::scripted(async |peer| {
        peer.head().await;
        peer.write("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun").await;
        peer.gone().await;
    });
    let tunnels = TestBackend::upgrading();
    let text = |generation: usize| {
        let others = format!("[upstream.idle]\nbackends = [\"127.0.0.1:{}\"]\n", 9000 + generation);
        let mut text = format!("workers = 2\n{WEB}\n[[route]]\npath = \"/idle\"\nupstream = \"idle\"\n{others}");
        for (name, backend) in [("slow", &slow), ("streaming", &streaming), ("tunnels", &tunnels)] {
            let pool = over(&[backend]);
            text += &format!("[[route]]\npath = \"/{name}\"\nupstream = \"{name}\"\n[upstream.{name}]\n{pool}");
        }
        text
    };
    let proxy = TestProxy::with_config(text(1)).await;

    let mut waits = proxy.client().await;
    waits.send("GET /slow HTTP/1.1\r\nhost: test\r\n\r\n").await;
    eventually(|| slow.requests() == 1).await;
    is_let_go(&proxy, &text(2), "by a request that waits for its answer").await;

    let mut reads = proxy.client().await;
    reads.send("GET /streaming HTTP/1.1\r\nhost: test\r\n\r\n").await;
    eventually(|| streaming.requests() == 1).await;
    is_let_go(&proxy, &text(3), "by a response under way").await;

    let mut tunnel = proxy.client().await;
    tunnel.send("GET /tunnels HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    assert_eq!(tunnel.response().await.status(), 101);
    is_let_go(&proxy, &text(4), "by a tunnel").await;

    // What they need is there: the lease, and the account.
    echoes(&mut tunnel, "still there").await;
    assert_eq!((proxy.in_flight_at(&slow), proxy.in_flight_at(&tunnels)), (1, 1));
    gate.add_permits(1);
    assert_eq!(waits.response().await.text(), "late");
    let route = |name: &str| proxy.snapshot().routes.routes().iter().find(|it| it.name.as_str() == name).cloned();
    let answered = |name: &str| route(name).unwrap().metrics.sum(|shard| &shard.responses[1]);
    let names: Vec<_> = proxy.snapshot().routes.routes().iter().map(|it| it.name.to_string()).collect();
    let slow_route = names.iter().find(|name| name.contains("slow")).unwrap();
    eventually(|| answered(slow_route) == 1).await;
}

#[tokio::test]
async fn what_ends_after_the_access_log_was_replaced_has_its_line_in_the_new_one() {
    let (backend, (first, second)) = (TestBackend::upgrading(), (Log::new(), Log::new()));
    let with = |log: &Log| with_u(&over(&[&backend])) + &log.table("json");
    let proxy = TestProxy::with_config(with(&first)).await;
    let mut client = tunnel(&proxy).await;
    proxy.apply(with(&second)).await.unwrap();
    client.finish().await;
    client.closed().await;
    let line = second.lines(1).await.remove(0);
    assert!(line.contains("\"status\":101") && line.contains("\"listener\":\"web\""), "{line}");
    first.lines(0).await;
}

/// Connects to `address` all the time while the listener's address becomes each of the others in turn, and counts those that are refused.
async fn refused_while_moving(address: std::net::SocketAddr, others: &[std::net::SocketAddr]) -> usize {
    let backend = TestBackend::ok("well");
    let at =
        |listen: &std::net::SocketAddr| with_u(&over(&[&backend])).replace("\"127.0.0.1:0\"", &format!("\"{listen}\""));
    let proxy = TestProxy::with_config(at(&address)).await;
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                use std::io::{Read, Write};
                let (mut refused, mut answer) = (0, String::new());
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    answer.clear();
                    let asked = std::net::TcpStream::connect(address).and_then(|mut tcp| {
                        tcp.write_all(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")?;
                        tcp.read_to_string(&mut answer)
                    });
                    refused += usize::from(asked.is_err() || !answer.ends_with("well"));
                }
                refused
            })
        })
        .collect();
    for other in others {
        proxy.apply(at(other)).await.unwrap_or_else(|error| panic!("{other}: {error}"));
        assert_eq!(proxy.address(), *other);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    clients.into_iter().map(|client| client.join().unwrap()).sum()
}

#[tokio::test]
async fn an_address_that_is_made_wider_or_narrower_refuses_no_connection() {
    for (narrow, wide) in [("127.0.0.1", "0.0.0.0"), ("::1", "::")] {
        let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
        let free = std::net::TcpListener::bind((ip(wide), 0)).unwrap().local_addr().unwrap().port();
        let (narrow, wide) = ((ip(narrow), free).into(), (ip(wide), free).into());
        let steps = [wide, narrow].repeat(6);
        assert_eq!(refused_while_moving(narrow, &steps).await, 0, "{narrow}");
    }
}

#[tokio::test]
async fn an_address_of_another_process_is_still_refused() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    let backend = TestBackend::ok("well");
    let proxy = TestProxy::with_config(with_u(&over(&[&backend]))).await;
    for address in ["0.0.0.0", "127.0.0.1"] {
        let text = with_u(&over(&[&backend])).replace("127.0.0.1:0", &format!("{address}:{port}"));
        assert!(proxy.apply(text).await.is_err(), "{address}");
    }
    assert_eq!(proxy.get("/").await.text(), "well");
}

/// A socket that was moved to a wider listener comes back to the narrower one: none is bound beside it, and none is left.
#[tokio::test]
async fn an_address_that_comes_and_goes_keeps_its_sockets() {
    let backend = TestBackend::ok("well");
    let port = std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let at = |ip: &str| with_u(&over(&[&backend])).replace("\"127.0.0.1:0\"", &format!("\"{ip}:{port}\""));
    let sockets = || {
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        table.lines().filter(|line| line.contains(&format!(":{port:04X} 00000000:0000 0A"))).count()
    };
    let proxy = TestProxy::with_config(at("127.0.0.1")).await;
    for _ in 0..4 {
        eventually(|| sockets() == 2).await;
        proxy.apply(at("0.0.0.0")).await.unwrap();
        eventually(|| sockets() == 4).await;
        assert_eq!(Client::connect((std::net::Ipv4Addr::LOCALHOST, port).into()).await.get("/").await.text(), "well");
        proxy.apply(at("127.0.0.1")).await.unwrap();
        assert_eq!(proxy.get("/").await.text(), "well");
    }
}
