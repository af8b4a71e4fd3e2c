//! What is told of a client: to routes, to backends, in redirects; and whom the proxy believes about it.

use crate::harness::{Head, Keys, TestBackend, TestProxy};

const TRUSTED: &str = r#"trusted_proxies = ["127.0.0.0/8"]"#;

async fn seen(keys: Keys<'_>, fields: &[(&str, &str)]) -> Head {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    assert_eq!(proxy.request("GET", "/", fields, "").await.status(), 200);
    backend.last_head()
}

/// Routes see what is true, and never what a client says that only the proxy may say.
#[tokio::test]
async fn routes_are_found_by_what_is_true() {
    let backend = TestBackend::ok("a");
    let tables = r#"
        [[route]]
        headers = { "x-forwarded-proto" = "https" }
        respond = { body = "https" }
        [[route]]
        headers = { "x-forwarded-for" = { regex = "9\\.9\\.9\\.9.*" } }
        respond = { body = "nine" }
        [[route]]
        headers = { "x-mine" = { present = true } }
        respond = { body = "mine" }
    "#;
    for (listener, trusted) in [("", false), (TRUSTED, true)] {
        let proxy = TestProxy::with_keys(&[&backend], Keys { listener, tables, ..Keys::default() }).await;
        for (fields, believed) in [
            (&[("x-forwarded-proto", "https")][..], "https"),
            (&[("x-forwarded-for", "9.9.9.9")], "nine"),
            (&[("forwarded", "for=9.9.9.9")], "nine"),
            (&[("forwarded", "for=9.9.9.9;proto=https")], "https"),
        ] {
            let text = proxy.request("GET", "/", fields, "").await.text().to_owned();
            assert_eq!(text, if trusted { believed } else { "a" }, "{fields:?}");
        }
        // What is for one hop is no concern of a route's.
        let fields = [("connection", "x-mine"), ("x-mine", "1")];
        assert_eq!(proxy.request("GET", "/", &fields, "").await.text(), "a");
        assert_eq!(proxy.request("GET", "/", &fields[1..], "").await.text(), "mine");
    }
}

#[tokio::test]
async fn what_backends_are_told_besides() {
    let all = "forwarded_headers = [\"x-real-ip\", \"x-forwarded-prefix\", \"x-forwarded-scheme\", \"x-forwarded-ssl\", \"x-forwarded-server\"]";
    let forged = [("x-real-ip", "6.6.6.6"), ("x-forwarded-prefix", "/evil"), ("x-forwarded-ssl", "on")];
    let head = seen(Keys { listener: all, ..Keys::default() }, &forged).await;
    assert_eq!((head.all("x-real-ip"), head.all("x-forwarded-ssl")), (vec!["127.0.0.1"], vec!["off"]));
    assert_eq!((head.all("x-forwarded-scheme"), head.get("x-forwarded-prefix")), (vec!["http"], None));
    assert!(head.get("x-forwarded-server").is_some_and(|name| !name.is_empty()));

    let backend = TestBackend::ok("a");
    let trusts = format!("{all}\n{TRUSTED}");
    for (listener, fields, prefix) in [
        (all, &[("x-forwarded-prefix", "/evil")][..], "/api"),
        (&trusts, &[("x-forwarded-prefix", "/outer")], "/outer/api"),
    ] {
        // Seen by a route's edits too, which come last.
        for edits in ["", r#"request_headers = { set = { "x-edited" = "1" } }"#] {
            let route = format!("path_prefix = \"/api\"\nstrip_prefix = true\n{edits}");
            let proxy = TestProxy::with_keys(&[&backend], Keys { listener, route: &route, ..Keys::default() }).await;
            assert_eq!(proxy.request("GET", "/api/x", fields, "").await.status(), 200);
            let head = backend.last_head();
            assert_eq!((head.target(), head.all("x-forwarded-prefix")), ("/x", vec![prefix]));
            assert_eq!(head.all("x-real-ip"), ["127.0.0.1"]);
        }
    }
}

#[tokio::test]
async fn ports_and_schemes_agree_behind_a_trusted_proxy() {
    for (fields, proto, host, port) in [
        (&[("x-forwarded-proto", "https")][..], "https", "test", "443"),
        (&[("x-forwarded-proto", "https"), ("x-forwarded-host", "p.example:8443")], "https", "p.example:8443", "8443"),
        (&[("x-forwarded-proto", "https"), ("x-forwarded-port", "444")], "https", "test", "444"),
        (&[("forwarded", "for=1.2.3.4;proto=https;host=p.example")], "https", "p.example", "443"),
    ] {
        let head = seen(Keys { listener: TRUSTED, ..Keys::default() }, fields).await;
        let told = ["x-forwarded-proto", "x-forwarded-host", "x-forwarded-port"].map(|name| head.get(name).unwrap());
        assert_eq!(told, [proto, host, port], "{fields:?}");
    }
}

#[tokio::test]
async fn redirects_go_by_what_a_trusted_proxy_says() {
    let backend = TestBackend::ok("a");
    let tables = r#"
        [[route]]
        path = "/moved"
        redirect = { to = "{scheme}://{host}/new" }
    "#;
    let redirects = format!("{TRUSTED}\nredirect_to_https = true");
    let location = async |listener: &str, path: &str, fields: &[(&str, &str)]| {
        let proxy = TestProxy::with_keys(&[&backend], Keys { listener, tables, ..Keys::default() }).await;
        let response = proxy.request("GET", path, fields, "").await;
        response.header("location").map(str::to_owned)
    };
    let https = [("x-forwarded-proto", "https")];
    let public = [("x-forwarded-proto", "https"), ("x-forwarded-host", "Pub.example:8443")];
    assert_eq!(location(TRUSTED, "/moved", &https).await.as_deref(), Some("https://test/new"));
    assert_eq!(location(TRUSTED, "/moved", &public).await.as_deref(), Some("https://pub.example:8443/new"));
    assert_eq!(location("", "/moved", &public).await.as_deref(), Some("http://test/new"));
    // No further redirect for who has come by https.
    assert_eq!(location(&redirects, "/x", &https).await, None);
    assert_eq!(location(&redirects, "/x", &[]).await.as_deref(), Some("https://test/x"));
    assert_eq!(
        location(&redirects, "/x", &[("x-forwarded-host", "pub.example:80")]).await.as_deref(),
        Some("https://pub.example/x")
    );
    // A host that is none moves it nowhere.
    let forged = [("x-forwarded-proto", "https"), ("x-forwarded-host", "evil/x")];
    assert_eq!(location(TRUSTED, "/moved", &forged).await.as_deref(), Some("https://test/new"));
}
