use bytes::Bytes;

use super::*;
use crate::exchange::testing::client;

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

#[test]
fn what_a_connection_remembers_holds_no_memory_that_others_read_into() {
    let client = client(false, |_| {});
    let block = Bytes::from(b"Host: example.com\r\n".to_vec());
    let host = HeaderValue::from_maybe_shared(block.slice(6..17)).unwrap();
    let made = lines(&client, Some(&host));
    drop(host);
    assert!(block.is_unique(), "the block can be used again");
    let again = lines(&client, Some(&HeaderValue::from_static("example.com")));
    assert!(Rc::ptr_eq(&made, &again), "and the lines are remembered");
}

#[test]
fn addresses_as_proxies_write_them() {
    for (text, expected) in [
        (" 192.0.2.7", Some("192.0.2.7")),
        ("192.0.2.7:4711", Some("192.0.2.7")),
        ("2001:db8::7", Some("2001:db8::7")),
        ("[2001:db8::7]", Some("2001:db8::7")),
        ("\"[2001:db8::7]:4711\"", Some("2001:db8::7")),
        ("::ffff:192.0.2.7", Some("192.0.2.7")),
        ("192.0.2.7:x", None),
        ("192.0.2.7:70000", None),
        ("[192.0.2.7", None),
        ("[2001:db8::7]x", None),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
    ] {
        assert_eq!(node(text), expected.map(|ip| ip.parse().unwrap()), "{text}");
    }
}

#[test]
fn who_asks() {
    let ours = |trusted| client(trusted, |it| it.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()]);
    for (fields, ip, scheme, authority) in [
        (&[][..], "192.0.2.1", "http", "h:1"),
        (&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")], "1.2.3.4", "https", "h:1"),
        (&[("x-forwarded-for", "6.6.6.6, 1.2.3.4:99, 10.0.0.9")], "1.2.3.4", "http", "h:1"),
        (&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "unknown")], "192.0.2.1", "http", "h:1"),
        (&[("forwarded", "for=1.2.3.4;proto=https;host=\"Pub.example:8443\"")], "1.2.3.4", "https", "pub.example:8443"),
        (&[("forwarded", "for=\"[2001:db8::7]:99\", for=10.0.0.9;proto=https")], "2001:db8::7", "http", "h:1"),
        (&[("forwarded", "for=1.2.3.4;by=\"a,b;for=6.6.6.6\"")], "1.2.3.4", "http", "h:1"),
        (
            &[("x-forwarded-proto", "https, http"), ("x-forwarded-host", "a.example, b")],
            "192.0.2.1",
            "https",
            "a.example",
        ),
        (&[("x-forwarded-proto", "gopher"), ("x-forwarded-ssl", "On")], "192.0.2.1", "https", "h:1"),
        (&[("x-forwarded-host", "a/b")], "192.0.2.1", "http", "h:1"),
    ] {
        let mut headers = map(fields);
        headers.insert("host", HeaderValue::from_static("h:1"));
        let client = ours(true);
        let asker = Asker::of(&headers, &client);
        assert_eq!((asker.ip.to_string().as_str(), asker.scheme), (ip, scheme), "{fields:?}");
        assert_eq!(public_authority(&headers, &client), authority, "{fields:?}");
        let client = ours(false);
        let asker = Asker::of(&headers, &client);
        assert_eq!((asker.ip.to_string().as_str(), asker.scheme), ("192.0.2.1", "http"), "{fields:?}");
        assert_eq!(public_authority(&headers, &client), "h:1", "{fields:?}");
    }
}

/// What the fields become.
fn told(headers: HeaderMap, asker: Asker<'_>, found: ForwardedFound) -> HeaderMap {
    let mut head = RequestHead::default();
    *head.headers() = headers;
    tell(&mut head, asker, found, false);
    std::mem::take(head.headers())
}

#[test]
fn fields_agree_with_what_a_trusted_proxy_says() {
    for (fields, expected) in [
        (&[][..], ["http", "h", "8080", "192.0.2.1"]),
        (&[("x-forwarded-proto", "https")], ["https", "h", "443", "192.0.2.1"]),
        (&[("x-forwarded-proto", "http")], ["http", "h", "80", "192.0.2.1"]),
        (
            &[("x-forwarded-proto", "https"), ("x-forwarded-host", "p.example:8443")],
            ["https", "p.example:8443", "8443", "192.0.2.1"],
        ),
        (&[("x-forwarded-port", "444"), ("x-forwarded-for", "1.2.3.4")], ["http", "h", "444", "1.2.3.4, 192.0.2.1"]),
        (
            &[("forwarded", "for=1.2.3.4;proto=https;host=p.example")],
            ["https", "p.example", "443", "1.2.3.4, 192.0.2.1"],
        ),
        (&[("x_forwarded_proto", "https"), ("x-forwarded_for", "6.6.6.6")], ["http", "h", "8080", "192.0.2.1"]),
    ] {
        let client = client(true, |_| {});
        let mut headers = map(fields);
        headers.insert("host", HeaderValue::from_static("h"));
        let asker = Asker::of(&headers, &client);
        let headers = told(headers.clone(), asker, ForwardedFound { client: true, forwarded: true });
        let names = ["x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-forwarded-for"];
        assert_eq!(names.map(|name| headers[name].to_str().unwrap()), expected, "{fields:?}");
        assert!(!headers.keys().any(has_underscore), "{fields:?}");
    }
}

#[test]
fn more_is_told_where_it_is_asked_for() {
    let all = ForwardedHeader::all().collect::<Vec<_>>();
    let headers =
        map(&[("host", "h"), ("x-real-ip", "6.6.6.6"), ("x_forwarded_ssl", "on"), ("x-forwarded-prefix", "/x")]);
    let untrusted = client(false, |it| it.forwarded_headers = all.clone());
    let asker = Asker::of(&headers, &untrusted);
    let mut headers = told(headers.clone(), asker, ForwardedFound { client: true, forwarded: false });
    assert_eq!(
        (&headers["x-real-ip"], &headers["x-forwarded-ssl"]),
        (&untrusted.peer_text, &HeaderValue::from_static("off"))
    );
    assert!(!headers.contains_key("x-forwarded-prefix") && !headers.contains_key("x_forwarded_ssl"));
    assert!(headers.contains_key("x-forwarded-server") && headers.contains_key("x-forwarded-scheme"));
    tell_prefix(&mut headers, &untrusted, "/api");
    assert_eq!(headers["x-forwarded-prefix"], "/api");

    let headers = map(&[
        ("host", "h"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-for", "1.2.3.4"),
        ("x-forwarded-prefix", "/x/"),
    ]);
    let trusted = client(true, |it| it.forwarded_headers = all);
    let asker = Asker::of(&headers, &trusted);
    let mut headers = told(headers.clone(), asker, ForwardedFound { client: true, forwarded: false });
    tell_prefix(&mut headers, &trusted, "/api");
    let told = ["x-real-ip", "x-forwarded-ssl", "x-forwarded-prefix"].map(|name| headers[name].to_str().unwrap());
    assert_eq!(told, ["1.2.3.4", "on", "/x/api"]);
}

#[test]
fn forwarded_says_the_same() {
    for (fields, expected) in [
        (&[("forwarded", "for=6.6.6.6")][..], "for=6.6.6.6, for=192.0.2.1;host=h;proto=http"),
        (
            &[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-proto", "https")],
            "for=1.2.3.4;host=h;proto=https, for=192.0.2.1;host=h;proto=http",
        ),
        (&[], "for=192.0.2.1;host=h;proto=http"),
    ] {
        let mut headers = map(fields);
        headers.insert("host", HeaderValue::from_static("h"));
        let client = client(true, |it| it.forwarded = true);
        let asker = Asker::of(&headers, &client);
        let headers = told(headers.clone(), asker, ForwardedFound::default());
        assert_eq!(headers["forwarded"], expected);
    }
}
