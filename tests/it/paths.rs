//! Paths that servers read differently: a route is found by what a backend reads that decodes everything, and the backend gets the path
//! that the client has sent, or none.

use crate::harness::{Keys, TestBackend, TestProxy};

const FORBIDDEN: &str = r#"
    [[route]]
    path_prefix = "/admin"
    respond = { status = 403 }
    [[route]]
    path = "/exact"
    respond = { status = 403 }
    [[route]]
    path = "/two/segments"
    respond = { status = 403 }
    [[route]]
    path_regex = "/re[0-9]+"
    respond = { status = 403 }
"#;

/// Ways to ask for what is forbidden that a backend may understand and a comparison of texts does not.
const PAST_THE_ROUTE: [&str; 27] = [
    "//admin/x",
    "/%61dmin/x",
    "/adm%69n",
    "/ADM%2fx/..%2f..%2fadmin",
    "/admin;x",
    "/admin;x=1/y",
    "/;/admin",
    "/;a=b/;c/admin/x",
    "/admin%3Bx",
    "/admin%2fx",
    "/admin%2Fx",
    "/%2Fadmin",
    "/%2fadmin%2f",
    "/e%78act",
    "//exact",
    "/exact;",
    "/exact;x%2Fy",
    "/two%2fsegments",
    "/two//segments",
    "/two;a/segments;b",
    "/re%31",
    "/re1;x",
    "//re1",
    "/./admin/x",
    "/a/../admin/x",
    "/a/%2e%2E/admin/x",
    "/a/..;p/admin/x",
];

#[tokio::test]
async fn no_spelling_of_a_path_passes_by_its_route() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables: FORBIDDEN, ..Keys::default() }).await;
    for path in PAST_THE_ROUTE.iter().chain(&["/\\admin/x", "/admin\\x", "/admin%5cx", "/a/..%2fadmin/x", "/admin%00"])
    {
        let status = proxy.get(path).await.status();
        assert!([400, 403].contains(&status), "{path}: {status}");
    }
    assert_eq!(backend.requests(), 0);
    // Nor is what is plain refused.
    for path in ["/a.b/c..d/...?x=//../", "/administrator", "/exact/more", "/re", "/two/segments/more", "/%61"] {
        assert_eq!(proxy.get(path).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn what_is_made_plain_is_routed_and_forwarded_so() {
    let backend = TestBackend::echo();
    let rules = r#"paths = { dot_segments = "normalize", encoded_slashes = "normalize", duplicate_slashes = "normalize", backslashes = "normalize" }"#;
    let keys = Keys { listener: rules, tables: FORBIDDEN, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    for path in PAST_THE_ROUTE {
        let status = proxy.get(path).await.status();
        let expected = match path {
            // Parameters cannot be made plain.
            "/a/..;p/admin/x" => 400,
            // With a slash, it is another path to everybody.
            "/exact;x%2Fy" => 200,
            _ => 403,
        };
        assert_eq!(status, expected, "{path}");
    }
    assert_eq!(proxy.get("/../x").await.status(), 400);
    assert_eq!(proxy.get("/a/../b//c%2Fd?q=/../").await.status(), 200);
    assert_eq!(backend.last_head().target(), "/b/c/d?q=/../");
}

#[tokio::test]
async fn what_backends_are_sent_by_default() {
    let backend = TestBackend::echo();
    let proxy = TestProxy::over(&[&backend]).await;
    for (asked, sent) in [
        ("/@scope%2fpackage", "/@scope%2Fpackage"),
        (
            "/api/v4/projects/a%2Fb/repository/files/src%2Fmain.rs/raw",
            "/api/v4/projects/a%2Fb/repository/files/src%2Fmain.rs/raw",
        ),
        ("/bucket//key//", "/bucket//key//"),
        ("/web/2020/http://example.com/", "/web/2020/http://example.com/"),
        ("/page;jsessionid=1;v=2/x;y", "/page;jsessionid=1;v=2/x;y"),
        ("/%7Euser/%41%2d%5F", "/~user/A-_"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/100%", "/100%25"),
        ("/%%36%31", "/%2561"),
        ("/x?a=%61%2f%zz&b=//../", "/x?a=%61%2f%zz&b=//../"),
    ] {
        assert_eq!(proxy.get(asked).await.status(), 200, "{asked}");
        assert_eq!(backend.last_head().target(), sent, "{asked}");
        // Sent again, it is the same.
        assert_eq!(proxy.get(sent).await.status(), 200, "{sent}");
        assert_eq!(backend.last_head().target(), sent, "{sent}");
    }
    assert_eq!(proxy.get("/projects/..%2Fb").await.status(), 400);
}

/// What browsers escape and others do not.
#[tokio::test]
async fn characters_that_are_sent_as_they_are_reach_the_backend() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::over(&[&backend]).await;
    let raw = |target: &[u8]| [&b"GET "[..], target, b" HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"].concat();
    for target in [&b"/x?filter={\"a\":1}"[..], b"/x\"y<z>`|{}^[]", b"/x?a=<b>&c=`|{}^[]\"", b"/\xc3\xa4?\xc3\xa4"] {
        let answer = proxy.raw(raw(target)).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let line = format!("GET {} HTTP/1.1", String::from_utf8_lossy(target));
        assert_eq!(backend.last_head().line, line);
    }
    // But for what is no text in a path, which some servers take for white space.
    proxy.raw(raw(b"/\xe4\xa0?\xe4")).await;
    assert_eq!(backend.last_head().target(), "/%E4%A0?\u{fffd}");
    // In a target that names a host, and where a part of the path is taken off.
    proxy.raw(raw(b"http://test/<?\"")).await;
    assert_eq!(backend.last_head().target(), "/<?\"");
    let route = "path_prefix = \"/api\"\nstrip_prefix = true";
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, ..Keys::default() }).await;
    proxy.raw(raw(b"/api/x<y?a=<b>")).await;
    assert_eq!(backend.last_head().target(), "/x%3Cy?a=<b>");
    // What no target may hold is refused as before.
    for target in [&b"/a b"[..], b"/a\x7f", b"/a#b", b"<", b"\""] {
        assert!(proxy.raw(raw(target)).await.starts_with("HTTP/1.1 400 "), "{target:?}");
    }
}

#[tokio::test]
async fn routes_are_written_as_requests_are_and_match_every_spelling() {
    let backend = TestBackend::ok("a");
    let tables = r#"
        [[route]]
        path = "/caf%c3%a9"
        respond = { body = "coffee" }
        [[route]]
        path_prefix = "//up%2Fdown"
        respond = { body = "slash" }
        [[route]]
        path_regex = ".*;jsessionid=.*"
        respond = { body = "session" }
    "#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables, ..Keys::default() }).await;
    for (path, body) in [
        ("/caf%C3%A9", "coffee"),
        ("/caf\u{e9}", "coffee"),
        ("/%63af\u{e9};x", "coffee"),
        ("/up/down/x", "slash"),
        ("/up%2Fdown", "slash"),
        ("/x;jsessionid=1/y", "session"),
    ] {
        assert_eq!(proxy.get(path).await.text(), body, "{path}");
    }
}

#[tokio::test]
async fn a_prefix_is_taken_off_however_it_is_spelled() {
    let backend = TestBackend::ok("a");
    let route = "path_prefix = \"/api/v1\"\nstrip_prefix = true";
    let listener = r#"paths = { dot_segments = "keep" }"#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { route, listener, ..Keys::default() }).await;
    for (asked, sent) in [
        ("/api/v1/users/1", "/users/1"),
        ("/%61pi//v1/users%2f1?q", "/users%2F1?q"),
        ("/api;a=1/v1;b/users;c", "/users;c"),
        ("/api%2Fv1%2Fusers", "/users"),
        ("/;x/api/v1", "/"),
        ("/api/v1//elsewhere", "/elsewhere"),
        ("/x/../api/v1/users", "/users"),
    ] {
        assert_eq!(proxy.get(asked).await.status(), if asked.contains("..") { 400 } else { 200 }, "{asked}");
        if !asked.contains("..") {
            assert_eq!(backend.last_head().target(), sent, "{asked}");
        }
    }
}

/// Some servers read what begins with two slashes as a host and a path (RFC 3986 §4.2).
#[tokio::test]
async fn a_path_that_may_be_a_reference_leads_to_no_other_route() {
    let backend = TestBackend::ok("a");
    let tables = r#"
        [[route]]
        path_prefix = "/admin"
        respond = { status = 403 }
        [[route]]
        hosts = ["admin.test"]
        respond = { status = 403 }
        [[route]]
        path_prefix = "/users"
        upstream = "u"
    "#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables, ..Keys::default() }).await;
    for (path, status) in [
        ("//x/admin", 400),
        ("///x@y//admin/z", 400),
        ("//admin.test/", 400),
        ("//admin.test:80", 400),
        ("http://http://admin.test/", 400),
        ("//admin/x", 403),
        ("//users/1", 200),
        ("//bucket//key", 200),
        ("/x//admin", 200),
    ] {
        assert_eq!(proxy.get(path).await.status(), status, "{path}");
    }
}

#[tokio::test]
async fn a_route_has_rules_of_its_own() {
    let backend = TestBackend::ok("a");
    let tables = r#"
        [[route]]
        path_prefix = "/strict"
        upstream = "u"
        paths = { encoded_slashes = "refuse", duplicate_slashes = "normalize" }
        [[route]]
        path_prefix = "/loose"
        upstream = "u"
        paths = { encoded_slashes = "keep" }
    "#;
    let listener = r#"paths = { encoded_slashes = "normalize" }"#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener, tables, ..Keys::default() }).await;
    for (asked, sent) in [
        ("/a%2Fb//c", Some("/a/b//c")),
        ("/strict%2Fb", None),
        ("/strict//b", Some("/strict/b")),
        ("/loose/a%2fb//c", Some("/loose/a%2Fb//c")),
    ] {
        let response = proxy.get(asked).await;
        assert_eq!(response.status(), if sent.is_some() { 200 } else { 400 }, "{asked}");
        match sent {
            Some(sent) => assert_eq!(backend.last_head().target(), sent, "{asked}"),
            None => assert!(response.text().contains("the path has an encoded slash"), "{}", response.text()),
        }
    }
}

/// Whether it is one segment or two is for the backend to say, and a rule must not rest on a guess.
#[tokio::test]
async fn a_pattern_that_depends_on_an_encoded_slash_is_refused_unless_its_route_says_so() {
    let backend = TestBackend::ok("a");
    let tables = |paths: &str| {
        format!("[[route]]\npath_regex = \"/projects/[^/]+/files\"\nrespond = {{ body = \"pattern\" }}\n{paths}\n")
    };
    for (paths, status, text) in
        [("", 400, "depends on how the path is read"), ("paths = { encoded_slashes = \"keep\" }", 200, "pattern")]
    {
        let proxy = TestProxy::with_keys(&[&backend], Keys { tables: &tables(paths), ..Keys::default() }).await;
        let response = proxy.get("/projects/group%2Fname/files").await;
        assert_eq!(response.status(), status, "{paths}");
        assert!(response.text().contains(text), "{}", response.text());
        assert_eq!(proxy.get("/projects/name/files").await.text(), "pattern");
    }
    assert_eq!(backend.requests(), 0);
}

#[tokio::test]
async fn kept_dot_segments_lead_no_further_than_both_readings_do() {
    let backend = TestBackend::ok("a");
    let listener = r#"paths = { dot_segments = "keep" }"#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener, tables: FORBIDDEN, ..Keys::default() }).await;
    for (path, status) in [
        ("/a/../b", 200),
        ("/a/../admin", 400),
        ("/admin/../a", 400),
        ("/admin/../admin/x", 403),
        ("/a/;/../admin", 400),
        ("/two/.;/../segments", 400),
        ("/admin/;/../../a", 400),
        ("/admin%2f..%2fx", 400),
        ("/admin%2f../x", 400),
        ("/x/..//../admin", 400),
        ("/a/%2e%2e/b/.", 200),
    ] {
        assert_eq!(proxy.get(path).await.status(), status, "{path}");
    }
    assert_eq!(backend.last_head().target(), "/a/../b/.");
}

#[tokio::test]
async fn what_has_refused_a_path_is_counted() {
    let backend = TestBackend::ok("a");
    let listener = r#"paths = { encoded_slashes = "refuse", duplicate_slashes = "refuse" }"#;
    let proxy = TestProxy::with_keys(&[&backend], Keys { listener, ..Keys::default() }).await;
    for (index, path) in ["/a/../b", "/a%2fb", "/a//b", "/a%5Cb"].iter().enumerate() {
        assert_eq!(proxy.get("/a").await.status(), 200);
        assert_eq!(proxy.get(path).await.status(), 400, "{path}");
        let counted: Vec<_> = (0..4).map(|key| proxy.counted(|metrics| &metrics.paths_refused[key])).collect();
        let expected: Vec<_> = (0..4).map(|key| u64::from(key <= index)).collect();
        assert_eq!(counted, expected, "{path}");
    }
    assert_eq!(backend.requests(), 4);
}
