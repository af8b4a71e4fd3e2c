//! What is counted and logged is what was sent.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Client, Keys, Log, Response, TestBackend, TestProxy, eventually};

/// What the admin address answers. It answers only to its own names, and once a connection.
async fn admin(proxy: &TestProxy, path: &str) -> Response {
    let mut client = Client::connect(proxy.admin_address()).await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
    client.response().await
}

#[tokio::test]
async fn metrics_count_what_was_sent() {
    let (a, refusing) = (TestBackend::ok("hello"), TestBackend::refusing());
    let tables = "[admin]\naddress = \"127.0.0.1:0\"\n[[route]]\nname = \"fixed\"\npath = \"/fixed\"\nrespond = { body = \"x\" }";
    let keys =
        Keys { listener: r#"name = "main""#, route: "name = \"r\"\npath_prefix = \"/a\"", tables, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&a, &refusing], keys).await;
    let mut client = proxy.client().await;
    for _ in 0..10 {
        assert_eq!(client.get("/a").await.status(), 200);
    }
    client.get("/fixed").await;
    client.get("/nowhere").await;
    client.send("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\n1234567").await;
    client.response().await;
    eventually(|| proxy.exchanges() == 0).await;
    let response = admin(&proxy, "/metrics").await;
    let text = response.text();
    let (a, refusing) = (a.address(), refusing.address());
    for line in [
        r#"isobar_listener_requests_total{listener="main"} 13"#.to_owned(),
        r#"isobar_listener_requests_in_flight{listener="main"} 0.0"#.to_owned(),
        r#"isobar_upstream_responses_total{upstream="u",class="2xx"} 11"#.to_owned(),
        r#"isobar_upstream_request_duration_seconds_count{upstream="u"} 11"#.to_owned(),
        r#"isobar_route_responses_total{route="r",class="2xx"} 11"#.to_owned(),
        r#"isobar_route_responses_total{route="fixed",class="2xx"} 1"#.to_owned(),
        format!(r#"isobar_backend_picks_total{{upstream="u",backend="{a}"}} 11"#),
        format!(r#"isobar_backend_requests_in_flight{{upstream="u",backend="{a}"}} 0.0"#),
        format!(r#"isobar_backend_requests_in_flight{{upstream="u",backend="{refusing}"}} 0.0"#),
        format!(
            "isobar_listener_response_body_bytes_total{{listener=\"main\"}} {}",
            11 * 5 + 1 + "404 Not Found: no route matches this request\n".len()
        ),
        r#"isobar_worker_connections{worker="0"} 1.0"#.to_owned(),
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
    }
}

#[tokio::test]
async fn admin_shows_what_runs() {
    let backend = TestBackend::raw("", crate::harness::After::Hold);
    let proxy =
        TestProxy::with_keys(&[&backend], Keys { tables: "[admin]\naddress = \"127.0.0.1:0\"", ..Keys::default() })
            .await;
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/config", 200), ("/nothing", 404)] {
        assert_eq!(admin(&proxy, path).await.status(), status, "{path}");
    }
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| backend.requests() == 1).await;
    let seen: Value = admin(&proxy, "/upstreams").await.json();
    let shown = &seen["upstreams"][0]["backends"][0];
    assert_eq!(shown["address"], backend.address().to_string());
    assert_eq!((&shown["in_flight"], &shown["picks"], &shown["connects"]), (&1.into(), &1.into(), &1.into()));
}

#[tokio::test]
async fn access_log_as_json() {
    let backend = TestBackend::ok("hello");
    let log = Log::new();
    let tables = log.table("json");
    let keys = Keys {
        listener: "name = \"main\"\ntrusted_proxies = [\"127.0.0.1\"]",
        route: "name = \"r\"\npath_prefix = \"/a\"",
        tables: &tables,
        ..Keys::default()
    };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let fields = [("x-forwarded-for", "9.9.9.9"), ("user-agent", "me \"quoted\""), ("referer", "there")];
    proxy.request("POST", "/a?b=c", &fields, "1234567").await;
    let line: Value = serde_json::from_str(&log.lines(1).await[0]).unwrap();
    for (key, value) in [
        ("client_ip", Value::from("9.9.9.9")),
        ("method", "POST".into()),
        ("target", "/a?b=c".into()),
        ("host", "test".into()),
        ("protocol", "HTTP/1.1".into()),
        ("status", 200.into()),
        ("bytes_in", 7.into()),
        ("bytes_out", 5.into()),
        ("route", "r".into()),
        ("upstream", "u".into()),
        ("backend", backend.address().to_string().into()),
        ("attempts", 1.into()),
        ("listener", "main".into()),
        ("user_agent", "me \"quoted\"".into()),
        ("referer", "there".into()),
        ("reason", "complete".into()),
        ("ended_by", Value::Null),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    proxy.get("/nowhere").await;
    let line: Value = serde_json::from_str(&log.lines(2).await[1]).unwrap();
    assert_eq!((&line["status"], &line["reason"], &line["route"]), (&404.into(), &"no_route".into(), &Value::Null));
    assert_eq!((&line["ended_by"], &line["first_byte_ms"]), (&"client".into(), &Value::Null));
    assert_eq!((&line["attempts"], &line["backend"]), (&0.into(), &Value::Null));
}

#[tokio::test]
async fn access_log_tells_how_exchanges_went_wrong() {
    let log = Log::new();
    let tables = log.table("json");
    let backend = TestBackend::scripted(async |peer| {
        while let Some(head) = peer.head().await {
            match head.target() {
                "/cut" => return peer.write("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await,
                "/break" => return,
                "/hold" => peer.gone().await,
                "/switch" => {
                    let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n12345";
                    peer.write(head).await;
                    return peer.gone().await;
                }
                _ => peer.respond("200 OK", "ok").await,
            }
        }
    });
    let route = r#"timeouts = { response_head = "200ms" }"#;
    let proxy = TestProxy::with_keys(
        &[&backend],
        Keys { route, upstream: "retries = { response_buffer = 0 }", tables: &tables, ..Keys::default() },
    )
    .await;
    let mut n = 0;
    let mut line = async |client: Client| {
        drop(client);
        n += 1;
        let line: Value = serde_json::from_str(&log.lines(n).await[n - 1]).unwrap();
        let text = |key: &str| line[key].as_str().unwrap_or("").to_owned();
        (line["status"].as_u64().unwrap(), format!("{} {}", text("ended_by"), text("reason")))
    };
    let mut client = proxy.client().await;
    client.get("/").await;
    assert_eq!(line(client).await, (200, " complete".to_owned()));
    let mut client = proxy.client().await;
    client.send("GET /cut HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.cut().await;
    assert_eq!(line(client).await, (200, "backend backend_cut_short".to_owned()));
    let mut client = proxy.client().await;
    client.send("POST /break HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.response().await;
    assert_eq!(line(client).await, (502, "backend backend_broke_off".to_owned()));
    let mut client = proxy.client().await;
    client.get("/hold").await;
    assert_eq!(line(client).await, (504, "backend response_timeout".to_owned()));
    let mut client = proxy.client().await;
    client.send("GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").await;
    eventually(|| backend.heads().iter().filter(|head| head.target() == "/hold").count() == 2).await;
    assert_eq!(line(client).await, (499, "client client_gone".to_owned()));
    let mut client = proxy.client().await;
    client.send("GET /switch HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
    assert_eq!(client.response().await.status(), 101);
    assert_eq!(client.exact(5).await, b"12345");
    assert_eq!(line(client).await, (101, " complete".to_owned()));
}

#[tokio::test]
async fn access_log_tells_of_attempts_and_times() {
    let log = Log::new();
    let tables = log.table("json");
    let busy = TestBackend::fixed("HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n");
    let ok = TestBackend::slow("ok", Duration::from_millis(20));
    let proxy = TestProxy::with_keys(&[&busy, &ok], Keys { tables: &tables, ..Keys::default() }).await;
    let mut client = proxy.client().await;
    for (n, attempts) in [(1, 2), (2, 1), (3, 2)] {
        assert_eq!(client.get("/").await.text(), "ok");
        let line: Value = serde_json::from_str(&log.lines(n).await[n - 1]).unwrap();
        assert_eq!((&line["attempts"], &line["backend"]), (&attempts.into(), &ok.address().to_string().into()));
        assert_eq!((&line["reason"], &line["status"]), (&"complete".into(), &200.into()));
        let ms = |key: &str| line[key].as_f64();
        assert!(ms("first_byte_ms").unwrap() >= 20.0 && ms("duration_ms") >= ms("first_byte_ms"), "{line}");
        // From the second time on over the connection that was kept.
        assert_eq!(ms("connect_ms").is_some(), n == 1, "{line}");
    }
}

#[tokio::test]
async fn access_log_tells_who_cut_a_response_short() {
    let log = Log::new();
    let tables = log.table("json");
    // Made before: where memory is slow to come by, it would be the backend that stalls.
    let much = Arc::new(vec![b'x'; 50_000_000]);
    let stalling = TestBackend::scripted(async move |peer| {
        while let Some(head) = peer.head().await {
            peer.write("HTTP/1.1 200 OK\r\ncontent-length: 200000000\r\n\r\n").await;
            if head.target() == "/much" {
                // More than the buffers of all sockets on the way, which some kernels let grow to 33 MB each.
                for _ in 0..4 {
                    peer.write(&much[..]).await;
                }
            }
            peer.gone().await;
        }
    });
    let route = r#"timeouts = { body_idle = "200ms" }"#;
    let short = "[[route]]\npath = \"/short\"\nupstream = \"u\"\ntimeouts = { exchange = \"200ms\" }\n";
    let tables = format!("{short}{tables}");
    let proxy = TestProxy::with_keys(&[&stalling], Keys { route, tables: &tables, ..Keys::default() }).await;
    let mut n = 0;
    let mut reason = async |client: Client| {
        n += 1;
        let line: Value = serde_json::from_str(&log.lines(n).await[n - 1]).unwrap();
        drop(client);
        assert_eq!(line["status"], 200);
        format!("{} {}", line["ended_by"].as_str().unwrap(), line["reason"].as_str().unwrap())
    };
    let ask = async |target: &str| {
        let mut client = proxy.client().await;
        client.send(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        client.exact(12).await;
        client
    };
    assert_eq!(reason(ask("/stall").await).await, "backend backend_stalled");
    assert_eq!(reason(ask("/much").await).await, "client client_stalled");
    assert_eq!(reason(ask("/short").await).await, "proxy exchange_cut");
    let client = ask("/stall").await;
    client.reset();
    assert_eq!(reason(proxy.client().await).await, "client client_left");
}

#[tokio::test]
async fn access_log_in_the_combined_format() {
    let backend = TestBackend::ok("hello");
    let log = Log::new();
    let tables = log.table("combined");
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables: &tables, ..Keys::default() }).await;
    proxy.request("GET", "/a?b", &[("user-agent", "me"), ("referer", "a\"b\u{e9}")], "").await;
    let lines = log.lines(1).await;
    let (start, rest) = lines[0].split_once('[').unwrap();
    let (time, rest) = rest.split_once(']').unwrap();
    assert_eq!((start, time.len()), ("127.0.0.1 - - ", "21/Nov/2026:05:51:55 +0000".len()));
    assert_eq!(rest, r#" "GET /a?b HTTP/1.1" 200 5 "a\x22b\xC3\xA9" "me""#);
}

#[tokio::test]
async fn the_answer_to_head_is_whole_without_its_body() {
    let log = Log::new();
    let tables =
        format!("{}\n[[route]]\npath = \"/own\"\nrespond = {{ status = 200, body = \"hello\" }}", log.table("json"));
    let backend = TestBackend::ok("hello");
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables: &tables, ..Keys::default() }).await;
    for (n, version) in ["1.1", "1.0"].into_iter().enumerate() {
        let mut client = proxy.client().await;
        client.send(format!("HEAD /own HTTP/{version}\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        let response = client.response_to("HEAD").await;
        assert_eq!((response.status(), response.header("content-length")), (200, Some("5")));
        let mut rest = Vec::new();
        client.stream.rest(&mut rest).await.expect("an end that is no reset");
        let line: Value = serde_json::from_str(&log.lines(n + 1).await[n]).unwrap();
        assert_eq!((&line["error"], &line["bytes_out"]), (&Value::Null, &0.into()), "HTTP/{version}");
    }
}
