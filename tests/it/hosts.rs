//! Hosts: `Host`, and the authority of a target, by one grammar and in one form, or 400.

use crate::harness::{Keys, TestBackend, TestProxy};

const FORBIDDEN: &str = r#"
    [[route]]
    hosts = ["admin.test", "*.adm.test", "b\u00fccher.test", "[2001:db8::1]"]
    respond = { status = 403 }
"#;

#[tokio::test]
async fn no_spelling_of_a_host_passes_by_its_route() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables: FORBIDDEN, ..Keys::default() }).await;
    let long = format!("{}.adm.test", "a".repeat(250));
    for (host, status) in [
        ("admin.test", 403),
        ("Admin.TEST:80", 403),
        ("admin.test.", 403),
        ("admin.test.:8080", 403),
        ("admin.test:", 403),
        ("x.adm.test", 403),
        ("b\u{fc}cher.test", 403),
        ("B\u{dc}CHER.test:1", 403),
        ("xn--bcher-kva.test", 403),
        ("\u{ff41}dmin.test", 403),
        ("admin\u{3002}test", 403),
        ("[2001:DB8:0::1]:80", 403),
        ("admin.test:x", 400),
        ("admin.test:80x", 400),
        ("admin.test:+80", 400),
        ("admin.test:80:80", 400),
        ("admin.test:999999", 400),
        ("admin.test..", 400),
        (".admin.test", 400),
        ("u@admin.test", 400),
        ("admin%2etest", 400),
        ("%61dmin.test", 400),
        ("admin.test/x", 400),
        ("admin.test,other", 400),
        ("admin.test other", 400),
        ("admin.test\\", 400),
        ("admin.test;x", 400),
        ("[::1", 400),
        ("[2001:db8::1%25eth0]", 400),
        (&long, 400),
        ("other.test", 200),
        ("", 200),
    ] {
        let response = proxy.request("GET", "/", &[("host", host)], "").await;
        assert_eq!(response.status(), status, "{host}");
        // In a target, whatever the field says.
        if !host.is_empty() && !host.contains([' ', '/', '\\']) {
            let target = format!("http://{host}/");
            let status = proxy.request("GET", &target, &[("host", "other.test")], "").await.status();
            assert_eq!(status, response.status(), "{target}");
        }
    }
}

#[tokio::test]
async fn the_backend_gets_the_canonical_form() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::over(&[&backend]).await;
    for (host, sent) in [
        ("Example.COM.:81", "example.com:81"),
        ("example.com:", "example.com"),
        ("b\u{fc}cher.test", "xn--bcher-kva.test"),
        ("[2001:DB8:0::1]", "[2001:db8::1]"),
        ("under_score", "under_score"),
    ] {
        assert_eq!(proxy.request("GET", "/", &[("host", host)], "").await.status(), 200, "{host}");
        let head = backend.last_head();
        assert_eq!((head.get("host"), head.get("x-forwarded-host")), (Some(sent), Some(sent)), "{host}");
    }
    // No host is the upstream's name there, and told to nobody as the client's.
    assert_eq!(proxy.request("GET", "/", &[("host", "")], "").await.status(), 200);
    let head = backend.last_head();
    assert_eq!((head.all("host"), head.get("x-forwarded-host")), (vec!["u"], None));
}
