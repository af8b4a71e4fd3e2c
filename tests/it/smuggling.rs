//! What could be read in two ways is read in none: it is answered with an error, the connection ends, and nothing of it
//! reaches a backend.

use crate::harness::{Keys, TestBackend, TestProxy, eventually, soon};

const LISTENER: &str = r#"
    max_header_bytes = "8KiB"
    max_headers = 20
    http2 = { enabled = false }
"#;

/// Heads that are refused, and with what.
fn refused() -> Vec<(&'static str, Vec<u8>, u16)> {
    let long = "x".repeat(9000);
    let many = (0..20).map(|i| format!("h{i}: x\r\n")).collect::<String>();
    let mut all: Vec<(&'static str, Vec<u8>, u16)> = Vec::new();
    let mut add = |why, text: String, status| all.push((why, text.into_bytes(), status));
    // Whole heads.
    for (why, text, status) in [
        ("no Host", "GET / HTTP/1.1\r\n\r\n", 400),
        ("LF ends the request line", "GET / HTTP/1.1\nhost: a\r\n\r\n", 400),
        ("LF ends a field", "GET / HTTP/1.1\r\nhost: a\nx: y\r\n\r\n", 400),
        ("LF ends the head", "GET / HTTP/1.1\r\nhost: a\r\n\nx: y\r\n\r\n", 400),
        ("folded behind the request line", "GET / HTTP/1.1\r\n host: a\r\nhost: a\r\n\r\n", 400),
        ("no version", "GET /\r\nhost: a\r\n\r\n", 400),
        ("an empty method", " / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("a method that is no token", "G(T / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("white space in the target", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("NUL in the target", "GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("CR in the target", "GET /\r HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("a target that is a fragment", "GET #a HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("a target with a fragment", "GET /a?b#c HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("a fragment behind a host", "GET http://a#@b/c HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("a target that is no path", "GET a/b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("HTTP/1.2", "GET / HTTP/1.2\r\nhost: a\r\n\r\n", 505),
        ("HTTP/3", "GET / HTTP/3\r\nhost: a\r\n\r\n", 505),
        ("lower-case version", "GET / http/1.1\r\nhost: a\r\n\r\n", 400),
        ("TE in HTTP/1.0", "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("TLS", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}\n", 400),
    ] {
        add(why, text.to_owned(), status);
    }
    add("long target", format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"), 414);
    add("large head", format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"), 431);
    add("many fields", format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), 431);
    let many = "cookie: a\r\n".repeat(1000);
    add("many pass-through header fields", format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), 431);
    // Fields of a request that has a Host and a body of 5.
    for (why, fields, status) in [
        ("CL and TE", "content-length: 5\r\ntransfer-encoding: chunked", 400),
        ("TE and CL", "transfer-encoding: chunked\r\ncontent-length: 5", 400),
        ("two CLs", "content-length: 5\r\nContent-Length: 6", 400),
        ("the same CL twice", "content-length: 5\r\ncontent-length: 5", 400),
        ("a list of CLs", "content-length: 5, 5", 400),
        ("CL with a sign", "content-length: +5", 400),
        ("negative CL", "content-length: -5", 400),
        ("hexadecimal CL", "content-length: 0x5", 400),
        ("empty CL", "content-length:", 400),
        ("CL beyond u64", "content-length: 99999999999999999999", 400),
        ("space before the colon of CL", "content-length : 5", 400),
        ("space before the colon of TE", "transfer-encoding : chunked", 400),
        ("tab before the colon", "x\t: y", 400),
        ("form feed before CL's value", "content-length: \u{c}5", 400),
        ("TE gzip", "transfer-encoding: gzip", 501),
        ("TE gzip, chunked", "transfer-encoding: gzip, chunked", 501),
        ("TE chunked, chunked", "transfer-encoding: chunked, chunked", 501),
        ("TE twice", "transfer-encoding: chunked\r\ntransfer-encoding: chunked", 501),
        ("TE identity", "transfer-encoding: identity", 501),
        ("TE xchunked", "transfer-encoding: xchunked", 501),
        ("TE in quotes", "transfer-encoding: \"chunked\"", 501),
        ("empty TE", "transfer-encoding:", 501),
        ("vertical tab before TE's value", "transfer-encoding: \u{b}chunked", 501),
        ("form feed before TE's value", "transfer-encoding: \u{c}chunked", 400),
        ("CR behind TE's value", "transfer-encoding: chunked\r", 400),
        ("obs-fold", "x: y\r\n z", 400),
        ("obs-fold with a tab", "x: y\r\n\tz", 400),
        ("obs-fold of TE", "transfer-encoding:\r\n chunked", 501),
        ("CR in a value", "x: a\rb", 400),
        ("CR that hides TE", "x: y\rtransfer-encoding: chunked", 400),
        ("NUL in a value", "x: a\0b", 400),
        ("NUL in a name", "x\0: y", 400),
        ("a control character in a value", "x: \u{1}", 400),
        ("CR in a pass-through value", "cookie: a\rb", 400),
        ("CR that ends a pass-through value", "cookie: a\r", 400),
        ("NUL in a pass-through value", "user-agent: a\0b", 400),
        ("DEL in a pass-through value", "accept: \u{7f}", 400),
        ("obs-fold behind a pass-through field", "accept: a\r\n b", 400),
        ("no name behind a pass-through field", "accept: a\r\n: b", 400),
        ("no colon", "x", 400),
        ("no name", ": x", 400),
        ("a name with a space", "x y: z", 400),
        ("a name with a bracket", "x[0]: z", 400),
        ("several Hosts", "host: a", 400),
        ("several Hosts that differ", "Host: b", 400),
    ] {
        add(why, format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n\r\nhello"), status);
    }
    for (why, host) in [
        ("Host with a space", "a b"),
        ("Host with a path", "a/b"),
        ("Host with a user", "u@a"),
        ("Host list", "a, b"),
        ("Host with a query", "a?b"),
        ("Host with a quote", "\"a\""),
        ("Host with a backslash", "a\\b"),
        ("Host with a tab", "a\tb"),
    ] {
        add(why, format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"), 400);
    }
    all
}

#[tokio::test]
async fn ambiguous_heads_are_refused() {
    let backend = TestBackend::ok("good");
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: LISTENER, ..Keys::default() }).await;
    for (why, bytes, status) in refused() {
        let mut client = proxy.client().await;
        client.try_send(&bytes).await;
        let response = soon(client.stream.response("GET")).await;
        let response = response.unwrap_or_else(|cut| panic!("{why}: {cut:?}"));
        assert_eq!(response.status(), status, "{why}");
        assert_eq!(response.header("connection"), Some("close"), "{why}");
        client.closed().await;
        assert_eq!(backend.connections(), 0, "{why}: nothing reaches a backend");
    }
    eventually(|| proxy.connections() == [0]).await;
    // A host that is none is found out behind the framing: such a request is an exchange.
    let exchanges = refused().iter().filter(|(why, ..)| why.starts_with("Host ")).count() as u64;
    assert_eq!(proxy.counted(|metrics| &metrics.requests), exchanges);
    assert_eq!(proxy.counted(|metrics| &metrics.rejected), refused().len() as u64 - exchanges);
}

#[tokio::test]
async fn what_is_no_request_at_all_is_not_answered() {
    let backend = TestBackend::ok("good");
    let proxy = TestProxy::over(&[&backend]).await;
    for text in ["INVALID CONNECTION PREFACE\r\n\r\n", "SSH-2.0-OpenSSH_9.2\r\n", "EHLO example.com\r\n"] {
        let mut client = proxy.client().await;
        client.send(text).await;
        assert_eq!(client.read_to_end().await, b"", "{text:?}");
    }
    eventually(|| proxy.counted(|metrics| &metrics.rejected) == 3).await;
    assert_eq!(backend.connections(), 0);
}

#[tokio::test]
async fn a_good_request_before_an_ambiguous_one_is_answered_first() {
    let backend = TestBackend::ok("good");
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: LISTENER, ..Keys::default() }).await;
    let good = [
        &b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n"[..],
        b"POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi",
        b"POST /3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    ];
    let mut sum = 0;
    for (why, bytes, status) in refused() {
        for good in good {
            let mut client = proxy.client().await;
            client.try_send([good, &bytes].concat()).await;
            let response = client.response().await;
            assert_eq!((response.status(), response.text()), (200, "good"), "{why}");
            let refusal = soon(client.stream.response("GET")).await;
            let refusal = refusal.unwrap_or_else(|cut| panic!("{why}: {cut:?}"));
            assert_eq!(refusal.status(), status, "{why}");
            client.closed().await;
            sum += 1;
        }
    }
    assert_eq!(backend.requests(), sum);
    assert!(backend.heads().iter().all(|head| head.line.starts_with("GET /1") || head.line.starts_with("POST /")));
    eventually(|| proxy.exchanges() == 0 && proxy.in_flight() == 0).await;
}

#[tokio::test]
async fn ambiguous_chunks_are_refused() {
    // The head has reached the backend when a chunk turns out to be wrong; a whole request must not.
    let backend = TestBackend::scripted(async |peer| {
        let request = peer.request().await;
        assert!(request.is_none(), "a whole request: {request:?}");
    });
    let proxy = TestProxy::over(&[&backend]).await;
    for chunks in [
        "x\r\nhello\r\n0\r\n\r\n",
        "\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "5\rhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\rX0\r\n\r\n",
        "5\r\nhello!\r\n0\r\n\r\n",
        "5;a\nb\r\nhello\r\n0\r\n\r\n",
        "5;a\0\r\nhello\r\n0\r\n\r\n",
        "00000000000000005\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx: y\n\r\n",
        "5\r\nhello\r\n0\n\n",
    ] {
        for split in [false, true] {
            let mut client = proxy.client().await;
            client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
            if split {
                // The backend has the head by now.
                let requests = backend.requests();
                eventually(|| backend.requests() > requests || proxy.in_flight() > 0).await;
            }
            client.try_send(format!("{chunks}GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            let response = client.response().await;
            assert_eq!(response.status(), 400, "{chunks:?}");
            client.closed().await;
        }
    }
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
    assert!(backend.heads().iter().all(|head| head.line == "POST / HTTP/1.1"));
}

#[tokio::test]
async fn an_early_answer_does_not_let_the_rest_of_a_body_be_read_as_requests() {
    let backend = TestBackend::raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nearly", crate::harness::After::Hold);
    let keys = Keys { route: r#"timeouts = { body_idle = "200ms" }"#, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nhello").await;
    assert_eq!(client.response().await.text(), "early");
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n".repeat(10);
    client.try_send(&smuggled).await;
    assert_eq!(client.read_to_end().await, b"", "it is the rest of the body, until that is waited for no more");
    assert_eq!(backend.requests(), 1);
    eventually(|| proxy.in_flight() == 0 && proxy.exchanges() == 0).await;
}

#[tokio::test]
async fn well_formed_oddities_pass() {
    let backend = TestBackend::ok("good");
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener: LISTENER, ..Keys::default() }).await;
    let mut client = proxy.client().await;
    for text in [
        "GET / HTTP/1.1\r\nhost:a\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHOST: \ta \r\n\r\n",
        "GET / HTTP/1.1\r\nhost: [::1]:8080\r\nx:\r\ny: \t \r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: \u{e9}\u{2028}\r\nx_y: z\r\n!#$%&'*+-.^_`|~: ok\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 000002\r\n\r\nhi",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked \r\n\r\n02\r\nhi\r\n000\r\n\r\n",
    ] {
        client.send(text).await;
        assert_eq!(client.response().await.text(), "good", "{text:?}");
    }
}
