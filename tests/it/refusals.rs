//! What is refused before a route is looked for has its line in the access log, and nobody can have more of them written than there
//! may be.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Client, Keys, Log, TestBackend, TestProxy, eventually, soon};

const LISTENER: &str = r#"
    name = "edge"
    max_header_bytes = "8KiB"
    max_headers = 20
    header_timeout = "300ms"
    http2 = { enabled = false }
"#;

/// A line is read, and has these, and what all refusals have.
#[track_caller]
fn check(line: &str, why: &str, fields: &[(&str, Value)]) {
    assert!(!line.chars().any(char::is_control), "{why}: {line:?}");
    let line: Value = serde_json::from_str(line).unwrap();
    let all = [
        ("client_ip", Value::from("127.0.0.1")),
        ("listener", "edge".into()),
        ("bytes_in", 0.into()),
        ("attempts", 0.into()),
        ("route", Value::Null),
        ("upstream", Value::Null),
        ("backend", Value::Null),
        ("first_byte_ms", Value::Null),
        ("left_out", Value::Null),
    ];
    for (key, value) in all.iter().chain(fields) {
        assert_eq!(&line[*key], value, "{why}: {key} in {line}");
    }
    assert!(line["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{why}: {line}");
}

/// What was asked; the empty word is `null`.
fn asked(method: &str, target: &str, protocol: &str, host: &str) -> [(&'static str, Value); 4] {
    let value = |text: &str| if text.is_empty() { Value::Null } else { text.into() };
    [("method", value(method)), ("target", value(target)), ("protocol", value(protocol)), ("host", value(host))]
}

/// Why, what is sent in pieces, and what the line says: status, reason, and what was asked.
type Case<'a> = (&'a str, &'a [&'a str], u16, &'a str, [(&'static str, Value); 4]);

#[tokio::test]
async fn each_has_a_line() {
    let backend = TestBackend::ok("good");
    let log = Log::new();
    let tables = log.table("json");
    let keys = Keys { listener: LISTENER, tables: &tables, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(9000));
    let large = format!("GET /l HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(9000));
    let many = format!("GET /m HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(20));
    let shortened = format!("/{}...", "x".repeat(4095));
    let none = asked("", "", "", "");
    let get = |target: &str| asked("GET", target, "HTTP/1.1", "a");
    let cases: [Case<'_>; 19] = [
        ("no Host", &["GET /a?b HTTP/1.1\r\n\r\n"], 400, "bad_request", asked("GET", "/a?b", "HTTP/1.1", "")),
        ("several", &["GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"], 400, "bad_request", get("/")),
        (
            "two lengths",
            &["POST / HTTP/1.0\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx"],
            400,
            "bad_request",
            asked("POST", "/", "HTTP/1.0", ""),
        ),
        ("in pieces", &["GE", "T /p HT", "TP/1.1\r\nhos", "t: a\r\n", "x: y\n"], 400, "bad_request", get("/p")),
        ("a field of the parser", &["GET /f HTTP/1.1\r\nhost: a\r\nx\u{1}: y\r\n\r\n"], 400, "bad_request", get("/f")),
        ("a fragment", &["GET /f#g HTTP/1.1\r\nhost: a\r\n\r\n"], 400, "bad_request", get("/f#g")),
        ("a control character", &["GET /\u{1b}[2J HTTP/1.1\r\nhost: a\r\n\r\n"], 400, "bad_request", none.clone()),
        ("no version", &["GET /v\r\nhost: a\r\n\r\n"], 400, "bad_request", asked("GET", "/v", "", "a")),
        ("no end of a line", &["GET /lf HTTP/1.1\nhost: a\r\n\r\n"], 400, "bad_request", get("/lf")),
        ("slow", &["GET /slow HTTP/1.1\r\nhost: a\r\nx: "], 408, "head_timeout", get("/slow")),
        ("slow from the beginning", &["G"], 408, "head_timeout", none.clone()),
        ("slow in the target", &["GET /sl"], 408, "head_timeout", asked("GET", "/sl", "", "")),
        ("a long target", &[&long], 414, "uri_too_long", asked("GET", &shortened, "", "")),
        ("a large field", &[&large], 431, "header_too_large", get("/l")),
        ("many fields", &[&many], 431, "header_too_large", get("/m")),
        (
            "a coding",
            &["POST /c HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n"],
            501,
            "coding_unsupported",
            asked("POST", "/c", "HTTP/1.1", "a"),
        ),
        (
            "a version",
            &["GET /v HTTP/1.2\r\nhost: a\r\n\r\n"],
            505,
            "version_unsupported",
            asked("GET", "/v", "HTTP/1.2", "a"),
        ),
        (
            "HTTP/2 where there is none",
            &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
            505,
            "version_unsupported",
            asked("PRI", "*", "HTTP/2.0", ""),
        ),
        ("a mailer", &["EHLO example.com\r\n"], 400, "not_http", asked("EHLO", "example.com", "", "")),
    ];
    let refused = cases.len() as u64;
    let mut n = 0;
    for (why, pieces, status, reason, asked) in cases {
        let mut client = proxy.client().await;
        for piece in pieces {
            client.try_send(piece).await;
            // So that they are not read as one.
            tokio::time::sleep(Duration::from_millis(if pieces.len() > 1 { 20 } else { 0 })).await;
        }
        let answer = client.read_to_end().await;
        n += 1;
        let lines = log.lines(n).await;
        let body = answer.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |end| answer.len() - end - 4);
        assert_eq!(answer.is_empty(), reason == "not_http", "{why}");
        let came = [
            ("status", status.into()),
            ("reason", reason.into()),
            ("ended_by", "client".into()),
            ("bytes_out", body.into()),
        ];
        check(&lines[n - 1], why, &[&came[..], &asked].concat());
    }
    // One more, behind a request that is served and has its own.
    for good in [
        "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi",
        "POST /1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ] {
        for split in [good.len(), good.len() - 1, good.len() + 20] {
            let both = format!("{good}GET /2 HTTP/1.1\r\nhost: a\r\nx: y\n\r\n");
            let mut client = proxy.client().await;
            client.send(&both[..split]).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.send(&both[split..]).await;
            assert_eq!(client.response().await.text(), "good");
            assert_eq!(client.response().await.status(), 400);
            n += 2;
            let lines = log.lines(n).await;
            assert!(lines[n - 2].contains(r#""target":"/1""#) && lines[n - 2].contains(r#""reason":"complete""#));
            assert!(!lines[n - 2].contains("detail"), "{}", lines[n - 2]);
            check(&lines[n - 1], good, &get("/2"));
        }
    }
    assert_eq!(proxy.counted(|metrics| &metrics.rejected), refused + 9);
    assert_eq!(proxy.counted(|metrics| &metrics.refusals_left_out), 0);
}

#[tokio::test]
async fn who_says_nothing_has_none() {
    let backend = TestBackend::ok("good");
    let log = Log::new();
    let tables = log.table("json");
    let listener = "header_timeout = \"200ms\"\nidle_timeout = \"200ms\"";
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener, tables: &tables, ..Keys::default() }).await;
    proxy.client().await.closed().await;
    let mut gone = proxy.client().await;
    gone.send("GET /half").await;
    drop(gone);
    eventually(|| proxy.connections() == [0]).await;
    assert_eq!(proxy.get("/").await.status(), 200);
    assert!(log.lines(1).await[0].contains(r#""status":200"#));
}

#[tokio::test]
async fn connections_above_the_limit_have_a_line_each() {
    let backend = TestBackend::ok("good");
    let log = Log::new();
    let tables = log.table("json");
    let listener = "name = \"edge\"\nmax_connections = 1";
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener, tables: &tables, ..Keys::default() }).await;
    let mut kept = proxy.client().await;
    kept.get("/").await;
    for n in 2..4 {
        let body = proxy.client().await.response().await.body.len();
        let fields = [
            ("status", 503.into()),
            ("reason", "connection_limit".into()),
            ("ended_by", "proxy".into()),
            ("detail", "this listener has as many connections as it takes".into()),
            ("bytes_out", body.into()),
        ];
        check(&log.lines(n).await[n - 1], "full", &[&fields[..], &asked("", "", "", "")].concat());
    }
}

/// As before: these come to an exchange.
#[tokio::test]
async fn what_is_refused_later_has_one_line_too() {
    let backend = TestBackend::ok("good");
    let log = Log::new();
    let tables = log.table("json");
    let keys = Keys {
        listener: "max_body = 10",
        route: "path_prefix = \"/a\"\ntimeouts = { body_idle = \"200ms\" }",
        tables: &tables,
        ..Keys::default()
    };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    for (index, (text, status, reason)) in [
        ("GET /a/../b HTTP/1.1\r\nhost: a\r\n\r\n", 400, "bad_request"),
        ("GET /b HTTP/1.1\r\nhost: a\r\n\r\n", 404, "no_route"),
        ("TRACE /a HTTP/1.1\r\nhost: a\r\n\r\n", 405, "method_not_allowed"),
        ("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\n\r\n", 413, "body_too_large"),
        ("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhi", 408, "client_too_slow"),
        ("POST /a HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nx", 400, "bad_request"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = proxy.client().await;
        client.send(text).await;
        assert_eq!(client.response().await.status(), status, "{text}");
        drop(client);
        let line: Value = serde_json::from_str(&log.lines(index + 1).await[index]).unwrap();
        assert_eq!((&line["status"], &line["reason"]), (&status.into(), &reason.into()), "{line}");
        let detail = if index == 0 { "paths.dot_segments: the path has a dot segment".into() } else { Value::Null };
        assert_eq!((&line["ended_by"], &line["detail"]), (&"client".into(), &detail), "{line}");
    }
    eventually(|| proxy.connections() == [0]).await;
    assert_eq!(proxy.counted(|metrics| &metrics.rejected), 0);
    assert_eq!(proxy.counted(|metrics| &metrics.paths_refused[0]), 1);
    log.lines(6).await;
}

#[tokio::test]
async fn the_combined_format_has_them() {
    let backend = TestBackend::ok("good");
    let log = Log::new();
    let tables = log.table("combined");
    let keys = Keys { listener: LISTENER, tables: &tables, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    for (index, (text, expected)) in [
        ("GET /\"a HTTP/1.1\r\n\r\n", r#" "GET /\x22a HTTP/1.1" 400 47 "-" "-""#),
        ("GET /a\r\n", r#" "GET /a" 400 57 "-" "-""#),
        ("SSH-2.0-OpenSSH_9.2\r\n", r#" "-" 400 0 "-" "-""#),
    ]
    .into_iter()
    .enumerate()
    {
        proxy.raw(text).await;
        let line = &log.lines(index + 1).await[index];
        assert!(line.starts_with("127.0.0.1 - - [") && line.ends_with(expected), "{line}");
    }
}

/// Has so many requests refused, by a few at a time.
async fn flood(proxy: &TestProxy, requests: usize) {
    let address = proxy.address();
    let mut attackers = tokio::task::JoinSet::new();
    for _ in 0..20 {
        attackers.spawn(async move {
            for _ in 0..requests / 20 {
                let mut client = Client::connect(address).await;
                client.try_send("GET /flood HTTP/1.1\r\n\r\n").await;
                assert_eq!(client.response().await.status(), 400);
            }
        });
    }
    soon(attackers.join_all()).await;
}

#[tokio::test]
async fn a_flood_has_few_lines_and_the_rest_is_counted() {
    let backend = TestBackend::ok("good");
    let log = Log::new();
    let tables = log.table("json");
    let keys = Keys { listener: LISTENER, tables: &tables, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let began = Instant::now();
    flood(&proxy, 2000).await;
    let left_out = || proxy.counted(|metrics| &metrics.refusals_left_out);
    // A hundred in ten seconds.
    let most = 100 * (began.elapsed().as_secs() / 10 + 1);
    assert_eq!(proxy.counted(|metrics| &metrics.rejected), 2000);
    let written = 2000 - left_out();
    assert!((100..=most).contains(&written), "{written} lines of {most}");
    log.lines(written as usize).await;
    // What is served has its line meanwhile.
    assert_eq!(proxy.get("/served").await.status(), 200);
    let lines = log.lines(written as usize + 1).await;
    assert!(lines[written as usize].contains("/served"));
    // And once there is room again, how many there were.
    let mut refused = 2000;
    let told = loop {
        proxy.raw("GET / HTTP/1.1\r\n\r\n").await;
        refused += 1;
        let written = refused - left_out();
        let lines = log.lines(written as usize + 1).await;
        let told: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told: u64 = told.iter().filter_map(|line| line["left_out"].as_u64()).sum();
        if told > 0 && told == left_out() {
            break told;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{told} of {} told", left_out());
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let lines = log.lines((refused - told) as usize + 1).await;
    assert!(lines.last().unwrap().contains(&format!(r#""left_out":{told}"#)) || most > 100, "{lines:#?}");
}

#[tokio::test]
async fn without_an_access_log_there_is_nothing_to_leave_out() {
    let backend = TestBackend::ok("good");
    let log = Log::new();
    let tables = log.table("json").replace("true", "false");
    let keys = Keys { listener: LISTENER, tables: &tables, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    flood(&proxy, 200).await;
    assert_eq!(proxy.counted(|metrics| &metrics.rejected), 200);
    assert_eq!(proxy.counted(|metrics| &metrics.refusals_left_out), 0);
    log.lines(0).await;
    // It is switched on by a reload, and has room for all of it.
    proxy.apply(Keys { tables: &log.table("json"), ..keys }.text(&[&backend])).await.unwrap();
    proxy.raw("GET / HTTP/1.1\r\n\r\n").await;
    check(&log.lines(1).await[0], "switched on", &asked("GET", "/", "HTTP/1.1", ""));
}
