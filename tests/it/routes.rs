//! Which route a request takes, as the client and the backend see it.

use crate::harness::{Client, Keys, TestBackend, TestProxy};

#[tokio::test]
async fn the_most_specific_route_wins() {
    let respond = |name: &str, keys: &str| format!("[[route]]\nrespond = {{ body = \"{name}\" }}\n{keys}\n");
    let routes = [
        respond("any", ""),
        respond("api", r#"path_prefix = "/api""#),
        respond("api-v1", r#"path_prefix = "/api/v1/""#),
        respond("exact", r#"path = "/api/v1/exact""#),
        respond("php", "hosts = [\"php.test\"]\npath_regex = \"/[a-z]+\\\\.php\""),
        respond("host", r#"hosts = ["example.com"]"#),
        respond("wild", r#"hosts = ["*.example.com"]"#),
        respond("sub", r#"hosts = ["a.example.com"]"#),
        respond("post", "path = \"/m\"\nmethods = [\"POST\", \"PUT\"]"),
        respond("get", "path = \"/m\"\nmethods = [\"GET\"]"),
        respond("tenant", "path = \"/h\"\nheaders = { \"x-tenant\" = \"acme\" }"),
        respond("version", "path = \"/h\"\nheaders = { \"x-v\" = { regex = \"2.*\" } }"),
        respond("beta", "path = \"/q\"\nquery = { beta = { present = true } }"),
        respond("q", "path = \"/q\"\nquery = { v = { regex = \"[12]\" } }"),
    ];
    let tables = "[[listener]]\naddress = \"127.0.0.1:0\"\n";
    for reversed in [false, true] {
        let mut routes = routes.clone();
        if reversed {
            routes.reverse();
        }
        let proxy = TestProxy::with_config(format!("{tables}{}", routes.concat())).await;
        let mut client = proxy.client().await;
        for (method, target, fields, route) in [
            ("GET", "/", "host: other", "any"),
            ("GET", "/api", "host: other", "api"),
            ("GET", "/api/x?y", "host: other", "api"),
            ("GET", "/apix", "host: other", "any"),
            ("GET", "/api/v1/x", "host: other", "api-v1"),
            ("GET", "/api/v1/exact", "host: other", "exact"),
            ("GET", "/api/v1/exact/", "host: other", "api-v1"),
            ("GET", "/index.php", "host: php.test", "php"),
            // A prefix outweighs a pattern, and no path at all is the shortest prefix.
            ("GET", "/index.php", "host: other", "any"),
            ("GET", "/INDEX.php", "host: php.test", "any"),
            ("GET", "/api", "host: example.com", "host"),
            ("GET", "/api", "host: EXAMPLE.com:8080", "host"),
            ("GET", "/", "host: b.example.com", "wild"),
            ("GET", "/", "host: c.b.example.com", "wild"),
            ("GET", "/", "host: a.example.com", "sub"),
            ("GET", "/", "host: notexample.com", "any"),
            ("POST", "/m", "host: other", "post"),
            ("PUT", "/m", "host: other", "post"),
            ("GET", "/m", "host: other", "get"),
            ("DELETE", "/m", "host: other", "any"),
            ("GET", "/h", "host: other\r\nX-Tenant: acme", "tenant"),
            ("GET", "/h", "host: other\r\nx-tenant: other", "any"),
            ("GET", "/h", "host: other\r\nx-v: 2.1", "version"),
            ("GET", "/q?beta", "host: other", "beta"),
            ("GET", "/q?a=b&beta=1", "host: other", "beta"),
            ("GET", "/q?v=2", "host: other", "q"),
            ("GET", "/q?v=3", "host: other", "any"),
            ("GET", "http://a.example.com/x", "host: other", "sub"),
        ] {
            client.send(format!("{method} {target} HTTP/1.1\r\n{fields}\r\n\r\n")).await;
            assert_eq!(client.response().await.text(), route, "{method} {target} {fields}");
        }
    }
}

#[tokio::test]
async fn redirects() {
    let proxy = TestProxy::with_config(
        r#"
        [[listener]]
        address = "127.0.0.1:0"
        [[route]]
        redirect = { to = "https://new.example.com{path}{query}" }
        [[route]]
        path = "/same"
        redirect = { to = "{scheme}://{host}/other", status = 302 }
        "#,
    )
    .await;
    let mut client = proxy.client().await;
    let response = client.get("/a/b?c=d&e").await;
    assert_eq!((response.status(), response.header("location")), (308, Some("https://new.example.com/a/b?c=d&e")));
    let response = client.get("/same?x").await;
    assert_eq!((response.status(), response.header("location")), (302, Some("http://test/other")));
    // A body that nobody reads does not become the next request.
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 30\r\n\r\nGET /same HTTP/1.1\r\nhost: a\r\n\r").await;
    assert_eq!(client.response().await.status(), 308);
}

#[tokio::test]
async fn fixed_responses() {
    let proxy = TestProxy::with_config(
        r#"
        [[listener]]
        address = "127.0.0.1:0"
        [[route]]
        respond = { status = 418, body = "{}", content_type = "application/json" }
        response_headers = { set = { "x-a" = "b" } }
        "#,
    )
    .await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        let response = client.get("/").await;
        assert_eq!((response.status(), response.text()), (418, "{}"));
        assert_eq!((response.header("content-type"), response.header("x-a")), (Some("application/json"), Some("b")));
        client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let response = client.response_to("HEAD").await;
        assert_eq!((response.status(), response.header("content-length")), (418, Some("2")));
    }
}

#[tokio::test]
async fn prefixes_are_stripped_and_replaced() {
    let backend = TestBackend::echo();
    for (route, pairs) in [
        (
            "path_prefix = \"/api/\"\nstrip_prefix = true",
            &[("/api/x?y", "/x?y"), ("/api", "/"), ("/api?y", "/?y"), ("/api//x", "/x")][..],
        ),
        (
            "path_prefix = \"/api\"\nreplace_prefix = \"/v2\"",
            &[("/api/x?y", "/v2/x?y"), ("/api", "/v2"), ("/api/%2f", "/v2/%2F")],
        ),
        ("path = \"/old\"\nreplace_prefix = \"/new\"", &[("/old?y", "/new?y")]),
    ] {
        let listener = r#"paths = { encoded_slashes = "keep", duplicate_slashes = "keep" }"#;
        let proxy = TestProxy::with_keys(&[&backend], Keys { listener, route, ..Keys::default() }).await;
        for (target, seen) in pairs {
            assert_eq!(proxy.get(target).await.json()["target"], *seen, "{route}: {target}");
        }
    }
}

#[tokio::test]
async fn routes_of_one_listener() {
    let proxy = TestProxy::with_config(
        r#"
        [[listener]]
        name = "public"
        address = "127.0.0.1:0"
        [[listener]]
        name = "internal"
        address = "127.0.0.1:0"
        [[route]]
        path_prefix = "/admin"
        listeners = ["internal"]
        respond = { body = "admin" }
        [[route]]
        respond = { body = "any" }
        "#,
    )
    .await;
    let [public, internal] = proxy.addresses()[..] else { panic!("two listeners") };
    assert_eq!(Client::connect(public).await.get("/admin").await.text(), "any");
    assert_eq!(Client::connect(internal).await.get("/admin").await.text(), "admin");
    assert_eq!(Client::connect(internal).await.get("/").await.text(), "any");
}

#[tokio::test]
async fn a_kept_connection_takes_what_was_applied() {
    let (a, b) = (TestBackend::ok("a"), TestBackend::ok("b"));
    let proxy = TestProxy::over(&[&a]).await;
    let mut client = proxy.client().await;
    assert_eq!(client.get("/").await.text(), "a");
    proxy.apply(Keys::default().text(&[&b])).await.unwrap();
    assert_eq!(client.get("/").await.text(), "b");
    assert!(proxy.apply("nonsense").await.is_err());
    assert_eq!(client.get("/").await.text(), "b");
    assert_eq!(proxy.snapshot().generation, 2);
}
