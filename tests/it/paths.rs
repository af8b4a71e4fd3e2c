//! Paths that servers read differently: the route table and the backend see the same one, or nobody sees it.

use crate::harness::{Keys, TestBackend, TestProxy};

/// Ways to ask for /admin/x that a backend may understand and a comparison of texts does not.
const PAST_THE_ROUTE: [&str; 8] = [
    "//admin/x",
    "/./admin/x",
    "/a/../admin/x",
    "/a/%2e%2E/admin/x",
    "/a/..%2fadmin/x",
    "/admin%2fx",
    "/\\admin/x",
    "/a/..;p/admin/x",
];

const FORBIDDEN: &str = r#"
    [[route]]
    path_prefix = "/admin"
    respond = { status = 403 }
"#;

#[tokio::test]
async fn no_spelling_of_a_path_passes_by_its_route() {
    let backend = TestBackend::ok("a");
    let proxy = TestProxy::with_keys(&[&backend], Keys { tables: FORBIDDEN, ..Keys::default() }).await;
    assert_eq!(proxy.get("/admin/x").await.status(), 403);
    for path in PAST_THE_ROUTE {
        let response = proxy.get(path).await;
        assert_eq!(response.status(), 400, "{path}");
        assert!(response.text().contains("the path has"), "{path}: {}", response.text());
    }
    assert_eq!(backend.requests(), 0);
    // Nor does that end the client's connections for others, or refuse what is plain.
    assert_eq!(proxy.get("/a.b/c..d/...?x=//../").await.status(), 200);
}

#[tokio::test]
async fn what_is_made_plain_is_routed_and_forwarded_so() {
    let backend = TestBackend::echo();
    let rules = r#"paths = { dot_segments = "normalize", encoded_slashes = "normalize", duplicate_slashes = "normalize", backslashes = "normalize" }"#;
    let keys = Keys { listener: rules, tables: FORBIDDEN, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    for path in &PAST_THE_ROUTE[..7] {
        assert_eq!(proxy.get(path).await.status(), 403, "{path}");
    }
    assert_eq!(proxy.get(PAST_THE_ROUTE[7]).await.status(), 400);
    assert_eq!(proxy.get("/../x").await.status(), 400);
    assert_eq!(proxy.get("/a/../b//c%2Fd?q=/../").await.status(), 200);
    assert_eq!(backend.last_head().target(), "/b/c/d?q=/../");
}

#[tokio::test]
async fn what_is_kept_reaches_the_backend_as_it_was_sent() {
    let backend = TestBackend::echo();
    let keys = Keys { listener: r#"paths = { encoded_slashes = "keep" }"#, ..Keys::default() };
    let proxy = TestProxy::with_keys(&[&backend], keys).await;
    assert_eq!(proxy.get("/projects/a%2Fb").await.status(), 200);
    assert_eq!(backend.last_head().target(), "/projects/a%2Fb");
    assert_eq!(proxy.get("/projects/..%2Fb").await.status(), 400);
}
