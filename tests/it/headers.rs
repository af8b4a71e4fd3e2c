//! Which headers pass, and which the proxy adds.

use crate::harness::{Head, Keys, TestBackend, TestProxy};

/// What a backend gets of a request with these fields beside `host: test`.
async fn seen_with(keys: Keys<'_>, fields: &[(&str, &str)]) -> Head {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let response = proxy.request("GET", "/", fields, "").await;
    assert_eq!(response.status(), 200);
    let head = backend.last_head();
    let port = proxy.address().port().to_string();
    // So that it can be compared.
    Head {
        line: head.line,
        fields: head
            .fields
            .into_iter()
            .map(|(name, value)| (name, if value == port { "PORT".into() } else { value }))
            .collect(),
    }
}

fn names(head: &Head) -> Vec<&str> {
    let mut names: Vec<_> = head.fields.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn what_a_plain_request_becomes() {
    let head = seen_with(Keys::default(), &[("user-agent", "me"), ("accept", "*/*")]).await;
    assert_eq!(head.line, "GET / HTTP/1.1");
    assert_eq!(
        names(&head),
        [
            "accept",
            "host",
            "user-agent",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-port",
            "x-forwarded-proto"
        ]
    );
    for (name, value) in [
        ("host", "test"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "test"),
        ("x-forwarded-port", "PORT"),
        ("x-forwarded-proto", "http"),
    ] {
        assert_eq!(head.get(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn hop_by_hop_fields_of_requests_stay_here() {
    let head = seen_with(
        Keys::default(),
        &[
            ("connection", "keep-alive, x-mine"),
            ("Connection", "X-Yours"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "gzip;q=0.5"),
            ("upgrade", "h2c"),
            ("x-mine", "1"),
            ("x-yours", "2"),
            ("x-ours", "3"),
            ("proxy-authorization", "basic x"),
        ],
    )
    .await;
    for name in ["connection", "keep-alive", "proxy-connection", "te", "upgrade", "x-mine", "x-yours"] {
        assert_eq!(head.all(name), [""; 0], "{name}");
    }
    assert_eq!(head.get("x-ours"), Some("3"));
    // The backend may be who asked for it (RFC 9110 §11.7.2 leaves it to the chain of proxies).
    assert_eq!(head.get("proxy-authorization"), Some("basic x"));
}

#[tokio::test]
async fn connection_cannot_strip_what_others_rely_on() {
    let head = seen_with(
        Keys::default(),
        &[
            ("connection", "close, host, x-forwarded-for, x-forwarded-host, content-length"),
            ("x-forwarded-for", "9.9.9.9"),
        ],
    )
    .await;
    assert_eq!(head.get("host"), Some("test"));
    assert_eq!(head.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(head.get("x-forwarded-host"), Some("test"));
    let trusted = Keys { listener: r#"trusted_proxies = ["127.0.0.0/8"]"#, ..Keys::default() };
    let head = seen_with(trusted, &[("connection", "x-forwarded-for"), ("x-forwarded-for", "9.9.9.9")]).await;
    assert_eq!(head.get("x-forwarded-for"), Some("9.9.9.9, 127.0.0.1"));
    // Nor what a route sets.
    let sets = Keys { route: r#"request_headers = { set = { "x-role" = "guest" } }"#, ..Keys::default() };
    let head = seen_with(sets, &[("connection", "x-role, close"), ("x-role", "admin")]).await;
    assert_eq!(head.all("x-role"), ["guest"]);
}

/// CGI and its kin take `_` for `-`: what a rule says of a field holds for each spelling.
#[tokio::test]
async fn rules_hold_for_each_spelling_of_a_field() {
    let forged: Vec<(&str, &str)> =
        ["x_forwarded_for", "X-Forwarded_Proto", "x_forwarded-host", "X_Real_IP", "x_role", "X_Internal"]
            .into_iter()
            .map(|name| (name, "forged"))
            .collect();
    let route = r#"request_headers = { set = { "x-role" = "guest" }, remove = ["x-internal"] }"#;
    for listener in ["", r#"trusted_proxies = ["127.0.0.0/8"]"#] {
        let head = seen_with(Keys { route, listener, ..Keys::default() }, &forged).await;
        assert!(!head.fields.iter().any(|(_, value)| value == "forged"), "{head:?}");
        assert_eq!(head.all("x-role"), ["guest"]);
    }
    let backend = TestBackend::ok("a");
    let tables = r#"
        [[route]]
        headers = { "x-debug" = { present = true } }
        respond = { status = 403 }
    "#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables, ..Keys::default() }).await;
    for (name, status) in [("x-debug", 403), ("X_Debug", 403), ("x_debugs", 200)] {
        assert_eq!(proxy.request("GET", "/", &[(name, "1")], "").await.status(), status, "{name}");
    }
}

/// Some backends put trailers among the headers.
#[tokio::test]
async fn rules_hold_for_trailers() {
    let backend = TestBackend::scripted(async |peer| {
        while let Some(request) = peer.request().await {
            let told =
                request.trailers.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",");
            peer.write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum, x-secret\r\n\r\n").await;
            peer.write(format!("{:x}\r\n{told}\r\n0\r\nx-sum: 1\r\nx-secret: 1\r\nX_Secret: 2\r\n\r\n", told.len()))
                .await;
        }
    });
    let route = r#"
        request_headers = { set = { "x-role" = "guest" }, add = { "x-added" = "1" }, remove = ["x-internal"] }
        response_headers = { remove = ["x-secret"] }
    "#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await;
    let mut client = proxy.client().await;
    client
        .send("POST / HTTP/1.1\r\nhost: test\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n")
        .await;
    let forged = [
        "X-Role",
        "x_role",
        "x-added",
        "x-internal",
        "X_Internal",
        "x-forwarded-for",
        "X_Forwarded_For",
        "x-forwarded-prefix",
        "x-real-ip",
        "X-Client-Cert-Subject",
        "x_client_cert_subject",
        "Content_Type",
        "authorization",
    ];
    client.send(forged.map(|name| format!("{name}: forged\r\n")).concat() + "x-sum: good\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!(response.text(), "x-sum=good");
    assert_eq!(response.trailers, [("x-sum".to_owned(), "1".to_owned())]);
}

#[tokio::test]
async fn what_nobody_looks_at_passes_as_it_came() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::over(&[&backend]).await;
    let said = "Cookie: a=1\r\nUSER-AGENT:me \r\nAccept:\t*/*\r\nX-Own: 1\r\nCookie:\r\nTE: x\r\nReferer: \u{e4}\r\n";
    let answer = proxy.raw(format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{said}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let head = backend.last_head();
    let as_sent: Vec<_> =
        head.fields.iter().map(|(name, _)| &**name).filter(|name| *name != name.to_lowercase()).collect();
    assert_eq!(as_sent, ["Cookie", "USER-AGENT", "Accept", "Cookie", "Referer"]);
    assert_eq!(head.all("cookie"), ["a=1", ""]);
    assert_eq!(
        (head.get("user-agent"), head.get("accept"), head.get("referer")),
        (Some("me"), Some("*/*"), Some("\u{e4}"))
    );
    assert_eq!((head.get("x-own"), head.get("te")), (Some("1"), None));
    // Behind a body, and more runs of them than there is room for.
    let runs: String = (0..9).map(|nth| format!("accept: {nth}\r\nx-other: {nth}\r\n")).collect();
    let answer = proxy
        .raw(format!("POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 2\r\nconnection: close\r\n{runs}\r\n\0\0"))
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let head = backend.last_head();
    let nine: Vec<_> = (0..9).map(|nth| nth.to_string()).collect();
    assert_eq!(
        (head.all("accept"), head.all("x-other")),
        (nine.iter().map(|nth| &**nth).collect(), nine.iter().map(|nth| &**nth).collect())
    );
}

#[tokio::test]
async fn what_nobody_looks_at_is_sent_again_with_the_rest() {
    let busy = TestBackend::fixed("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
    let ok = TestBackend::ok("a");
    let proxy = TestProxy::over(&[&busy, &ok]).await;
    let fields = "Cookie: a\r\nX-Own: 1\r\nCookie: b\r\nAccept: */*\r\n";
    let one = |target: &str, end: &str| format!("GET {target} HTTP/1.1\r\nhost: test\r\n{fields}{end}\r\n");
    // In one piece; the one or the other finds the busy backend first.
    let answers = proxy.raw(one("/1", "") + &one("/2", "") + &one("/3", "connection: close\r\n")).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{answers}");
    assert_eq!((busy.heads().is_empty(), ok.heads().len()), (false, 3));
    for head in busy.heads().iter().chain(&ok.heads()) {
        let passed = |name: &str| head.all(name);
        assert_eq!((passed("cookie"), passed("accept"), passed("x-own")), (vec!["a", "b"], vec!["*/*"], vec!["1"]));
        assert_eq!(head.fields.iter().filter(|(name, _)| name == "Cookie").count(), 2);
    }
}

#[tokio::test]
async fn what_nobody_looks_at_is_seen_by_who_does() {
    // By whoever has it removed, or chooses a route by it.
    let head =
        seen_with(Keys::default(), &[("cookie", "a"), ("user-agent", "me"), ("connection", "Cookie, close")]).await;
    assert_eq!((head.get("cookie"), head.get("user-agent")), (None, Some("me")));
    let backend = TestBackend::ok("a");
    let tables = r#"
        [[route]]
        headers = { "user-agent" = { regex = "curl/.*" } }
        respond = { body = "curl" }
        [[route]]
        headers = { "authorization" = { present = false } }
        respond = { status = 401 }
    "#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables, route: "path = \"/open\"", ..Keys::default() }).await;
    let status = async |fields: &[(&str, &str)]| proxy.request("GET", "/", fields, "").await.status();
    assert_eq!(proxy.request("GET", "/", &[("User-Agent", "curl/8"), ("authorization", "x")], "").await.text(), "curl");
    assert_eq!((status(&[]).await, status(&[("Authorization", "x")]).await), (401, 404));
    let response = proxy.request("GET", "/open", &[("Authorization", "x")], "").await;
    assert_eq!((response.status(), backend.last_head().get("authorization")), (200, Some("x")));
}

#[tokio::test]
async fn hop_by_hop_fields_of_responses_stay_here() {
    let backend = TestBackend::fixed(
        "HTTP/1.1 200 OK\r\nconnection: x-mine\r\nx-mine: 1\r\nx-ours: 2\r\nkeep-alive: timeout=5\r\n\
         proxy-connection: keep-alive\r\nupgrade: websocket\r\ncontent-length: 0\r\n\r\n",
    );
    let proxy = TestProxy::over(&[&backend]).await;
    let response = proxy.get("/").await;
    for name in ["connection", "x-mine", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(response.headers(name), [""; 0], "{name}");
    }
    assert_eq!(response.header("x-ours"), Some("2"));
}

#[tokio::test]
async fn what_nobody_looks_at_of_responses_passes_as_it_came() {
    let answer = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 2\r\n\r\nok");
    let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let said =
        format!("Server: a\r\nX-Own: 1\r\nSET-COOKIE:a=1 \r\nset-cookie: b\r\nVia: x\r\n{date}Set-Cookie: c\r\n");
    for (connection, dated, cookies) in [
        ("", true, &["a=1", "b", "c"][..]),
        ("Connection: keep-alive\r\n", true, &["a=1", "b", "c"]),
        ("Connection: Date, set-cookie\r\n", false, &[]),
    ] {
        let backend = TestBackend::fixed(answer(&format!("{connection}{said}")));
        let response = TestProxy::over(&[&backend]).await.get("/").await;
        let of = |name: &str| response.headers(name);
        assert_eq!((response.status(), response.text()), (200, "ok"));
        assert_eq!(
            (of("set-cookie"), of("server"), of("x-own"), of("via")),
            (cookies.to_vec(), vec!["a"], vec!["1"], vec!["x"])
        );
        assert_eq!((of("date").len(), of("date") == [&date[6..35]]), (1, dated), "{connection:?}");
        assert_eq!(of("content-length"), ["2"]);
        let written = response.head.fields.iter().filter(|(name, _)| name == "Server" || name == "SET-COOKIE").count();
        assert!(connection.contains("Date") || written == 2, "{:?}", response.head.fields);
    }
    // More places than there is room for.
    let runs: String = (0..9).map(|nth| format!("Vary: {nth}\r\nX-Other: {nth}\r\n")).collect();
    let backend = TestBackend::fixed(answer(&runs));
    let response = TestProxy::over(&[&backend]).await.get("/").await;
    let nine: Vec<_> = (0..9).map(|nth| nth.to_string()).collect();
    assert_eq!(
        (response.headers("vary"), response.headers("x-other")),
        (nine.iter().map(|nth| &**nth).collect(), nine.iter().map(|nth| &**nth).collect())
    );
    // By whoever changes them, and to clients of HTTP/2 (`http2::responses_without_a_body_and_with_trailers`).
    let backend = TestBackend::fixed(answer(&said));
    let route = r#"response_headers = { set = { "server" = "b" }, add = { "set-cookie" = "d" }, remove = ["date"] }"#;
    let response = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await.get("/").await;
    assert_eq!((response.headers("server"), response.headers("set-cookie")), (vec!["b"], vec!["a=1", "b", "c", "d"]));
    assert_eq!(response.headers("date").len(), 1);
    assert_ne!(response.headers("date"), [&date[6..35]]);
}

#[tokio::test]
async fn several_values_stay_several_and_in_their_order() {
    let backend = TestBackend::fixed(
        "HTTP/1.1 200 OK\r\nset-cookie: a=1\r\nx: y\r\nset-cookie: b=2\r\nSet-Cookie: a=3\r\ncontent-length: 0\r\n\r\n",
    );
    let proxy = TestProxy::over(&[&backend]).await;
    let fields =
        [("cookie", "a=1"), ("x", "1"), ("cookie", "b=2"), ("X", "2"), ("x_under_score", "3"), ("x-under-score", "4")];
    let response = proxy.request("GET", "/", &fields, "").await;
    assert_eq!(response.headers("set-cookie"), ["a=1", "b=2", "a=3"]);
    let head = backend.last_head();
    assert_eq!(head.all("cookie"), ["a=1", "b=2"]);
    assert_eq!(head.all("x"), ["1", "2"]);
    assert_eq!((head.get("x_under_score"), head.get("x-under-score")), (Some("3"), Some("4")));
}

#[tokio::test]
async fn what_strangers_say_of_others_is_replaced() {
    let claims = [
        ("x-forwarded-for", "9.9.9.9"),
        ("X-Forwarded-For", "8.8.8.8"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil"),
        ("x-forwarded-port", "1"),
        ("forwarded", "for=9.9.9.9"),
    ];
    let others = Keys { listener: r#"trusted_proxies = ["10.0.0.0/8", "128.0.0.1"]"#, ..Keys::default() };
    for keys in [Keys::default(), others] {
        let head = seen_with(keys, &claims).await;
        assert_eq!(head.get("x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(head.get("x-forwarded-proto"), Some("http"));
        assert_eq!(head.get("x-forwarded-host"), Some("test"));
        assert_eq!(head.get("x-forwarded-port"), Some("PORT"));
        assert_eq!(head.get("forwarded"), None);
    }
}

#[tokio::test]
async fn one_claim_alone_is_replaced_too() {
    for name in [
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "X-Forwarded-Ssl",
        "x-forwarded-scheme",
        "x-forwarded-server",
        "x-forwarded-anything",
        "x-real-ip",
        "x-isobar-attempt",
        "forwarded",
    ] {
        let head = seen_with(Keys::default(), &[(name, "spoofed")]).await;
        assert!(!head.fields.iter().any(|(_, value)| value == "spoofed"), "{name}: {head:?}");
        assert_eq!(head.all("x-forwarded-for"), ["127.0.0.1"], "{name}");
    }
}

#[tokio::test]
async fn what_trusted_proxies_say_is_kept_and_added_to() {
    let claims = [
        ("x-forwarded-for", "9.9.9.9"),
        ("X-Forwarded-For", "8.8.8.8"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "public"),
        ("x-forwarded-port", "443"),
        ("forwarded", "for=9.9.9.9"),
    ];
    let keys = Keys { listener: r#"trusted_proxies = ["127.0.0.0/8"]"#, ..Keys::default() };
    let head = seen_with(keys, &claims).await;
    assert_eq!(head.get("x-forwarded-for"), Some("9.9.9.9, 8.8.8.8, 127.0.0.1"));
    assert_eq!(head.get("x-forwarded-proto"), Some("https"));
    assert_eq!(head.get("x-forwarded-host"), Some("public"));
    assert_eq!(head.get("x-forwarded-port"), Some("443"));
    assert_eq!(head.get("forwarded"), Some("for=9.9.9.9"));
    // What they do not say is said for them.
    let head = seen_with(keys, &[]).await;
    assert_eq!(head.get("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(head.get("x-forwarded-proto"), Some("http"));
    assert_eq!(head.get("x-forwarded-host"), Some("test"));
    assert_eq!(head.get("x-forwarded-port"), Some("PORT"));
    assert_eq!(head.get("forwarded"), None);
}

#[tokio::test]
async fn forwarded_and_via() {
    let keys = Keys { listener: "forwarded = true\nvia = true", ..Keys::default() };
    let head = seen_with(keys, &[("forwarded", "for=9.9.9.9"), ("via", "1.0 other")]).await;
    assert_eq!(head.get("forwarded"), Some("for=127.0.0.1;host=test;proto=http"));
    assert_eq!(head.all("via"), ["1.0 other", "1.1 isobar"]);
    let head = seen_with(keys, &[("host", "test:80")]).await;
    assert_eq!(head.get("forwarded"), Some("for=127.0.0.1;host=\"test:80\";proto=http"));
    let trusted = Keys { listener: "forwarded = true\ntrusted_proxies = [\"127.0.0.1\"]", ..Keys::default() };
    let head = seen_with(trusted, &[("forwarded", "for=9.9.9.9")]).await;
    assert_eq!(head.get("forwarded"), Some("for=9.9.9.9, for=127.0.0.1;host=test;proto=http"));

    let backend = TestBackend::fixed("HTTP/1.1 200 OK\r\nvia: 1.1 inner\r\ncontent-length: 0\r\n\r\n");
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    assert_eq!(proxy.get("/").await.headers("via"), ["1.1 inner", "1.1 isobar"]);
}

#[tokio::test]
async fn the_host_is_preserved_or_set() {
    let head = seen_with(Keys::default(), &[("host", "example.com:81")]).await;
    assert_eq!((head.get("host"), head.get("x-forwarded-host")), (Some("example.com:81"), Some("example.com:81")));
    let head = seen_with(Keys { route: r#"host = "inner:9""#, ..Keys::default() }, &[("host", "outer")]).await;
    assert_eq!((head.get("host"), head.get("x-forwarded-host")), (Some("inner:9"), Some("outer")));
}

#[tokio::test]
async fn lines_follow_the_host_of_each_request() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::over(&[&backend]).await;
    let mut client = proxy.client().await;
    for host in ["one", "two", "two", "one"] {
        client.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        client.response().await;
        assert_eq!(backend.last_head().get("x-forwarded-host"), Some(host));
    }
}

#[tokio::test]
async fn a_route_edits_both_ways() {
    let backend =
        TestBackend::fixed("HTTP/1.1 200 OK\r\nserver: secret\r\nvary: accept\r\nx-a: 1\r\ncontent-length: 0\r\n\r\n");
    let route = r#"
        request_headers = { set = { "x-set" = "new" }, add = { "x-add" = "2" }, remove = ["x-remove", "cookie"] }
        response_headers = { set = { "x-a" = "new" }, add = { "vary" = "origin" }, remove = ["server"] }
    "#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await;
    let fields =
        [("x-set", "old"), ("X-Set", "older"), ("x-add", "1"), ("x-remove", "x"), ("cookie", "a"), ("cookie", "b")];
    let response = proxy.request("GET", "/", &fields, "").await;
    let head = backend.last_head();
    assert_eq!(head.all("x-set"), ["new"]);
    assert_eq!(head.all("x-add"), ["1", "2"]);
    assert_eq!((head.all("x-remove"), head.all("cookie")), (vec![], vec![]));
    assert_eq!(head.all("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!((response.header("x-a"), response.header("server")), (Some("new"), None));
    assert_eq!(response.headers("vary"), ["accept", "origin"]);
}

#[tokio::test]
async fn a_routes_word_on_forwarded_headers_stands() {
    for listener in ["", r#"trusted_proxies = ["127.0.0.1"]"#] {
        let set = Keys {
            listener,
            route: r#"request_headers = { set = { "x-forwarded-for" = "mine" } }"#,
            ..Keys::default()
        };
        let head = seen_with(set, &[("x-forwarded-for", "9.9.9.9")]).await;
        assert_eq!(head.all("x-forwarded-for"), ["mine"]);
        assert_eq!(head.all("x-forwarded-proto"), ["http"]);
        let removed = Keys {
            listener,
            route: r#"request_headers = { remove = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-port"] }"#,
            ..Keys::default()
        };
        for fields in [&[][..], &[("x-forwarded-for", "9.9.9.9")]] {
            let head = seen_with(removed, fields).await;
            assert_eq!(names(&head), ["host", "x-forwarded-proto"]);
        }
    }
}

#[tokio::test]
async fn a_date_is_added_where_there_is_none() {
    let dated =
        TestBackend::fixed("HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-length: 0\r\n\r\n");
    let proxy = TestProxy::over(&[&dated]).await;
    assert_eq!(proxy.get("/").await.header("date"), Some("Thu, 01 Jan 1970 00:00:00 GMT"));
    let undated = TestBackend::ok("a");
    let proxy = TestProxy::over(&[&undated]).await;
    let response = proxy.get("/").await;
    let date = response.header("date").expect("a date");
    let age = httpdate::parse_http_date(date).unwrap().elapsed().unwrap_or_default();
    assert!(age < std::time::Duration::from_secs(60), "{date}");
}
