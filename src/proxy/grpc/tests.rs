use super::*;

fn request(method: &str, headers: &[(&str, &str)]) -> RequestHead {
    let mut request = http::Request::builder().method(method).uri("/pkg.Service/Method");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0.into()
}

fn timeouts() -> Timeouts {
    let s = Duration::from_secs(1);
    Timeouts {
        response_head: s,
        body_idle: s,
        expect: s,
        exchange: None,
        tunnel_idle: s,
        grpc_idle: None,
        grpc_timeout_max: None,
    }
}

#[test]
fn each_message_is_measured_and_not_their_sum() {
    let all =
        [&b"\0\0\0\0\x08"[..], b"12345678", b"\x01\0\0\0\0", b"\0\0\0\x01\0", &[7; 256], b"\0\0\0\0\x01x"].concat();
    for piece in [1, 2, 3, 5, 7, 1000] {
        for (max, exceeds) in [(0, true), (7, true), (8, true), (255, true), (256, false), (u64::MAX, false)] {
            let mut messages = Messages::default();
            let found = all.repeat(3).chunks(piece).any(|piece| messages.exceed(piece, max));
            assert_eq!(found, exceeds, "{max} in pieces of {piece}");
        }
    }
    assert!(Messages::default().exceed(&[0xff; 5], u64::from(u32::MAX) - 1));
    assert!(!Messages::default().exceed(&[0xff; 5], u64::from(u32::MAX)));
}

#[test]
fn calls_are_recognised() {
    for (method, kind, is) in [
        ("POST", "application/grpc", true),
        ("POST", "application/grpc+proto", true),
        ("POST", "application/grpc;charset=utf-8", true),
        ("POST", "Application/GRPC+json", true),
        ("GET", "application/grpc", false),
        ("POST", "application/grpc-web", false),
        ("POST", "application/grpc-web+proto", false),
        ("POST", "application/grp", false),
        ("POST", "application/grpcx", false),
        ("POST", "application/json", false),
        ("POST", "", false),
    ] {
        assert_eq!(GrpcCall::of(&request(method, &[("content-type", kind)])).is_some(), is, "{method} {kind}");
    }
    assert!(GrpcCall::of(&request("POST", &[])).is_none());
}

#[test]
fn timeouts_are_read_and_written() {
    let (s, ms) = (Duration::from_secs(1), Duration::from_millis(1));
    for (text, read, written) in [
        ("1H", Some(3600 * s), "3600000m"),
        ("2M", Some(120 * s), "120000m"),
        ("30S", Some(30 * s), "30000000u"),
        ("100m", Some(100 * ms), "100000u"),
        ("99m", Some(99 * ms), "99000000n"),
        ("5u", Some(Duration::from_micros(5)), "5000n"),
        ("7n", Some(Duration::from_nanos(7)), "7n"),
        ("0S", Some(Duration::ZERO), "0n"),
        ("99999999S", Some(99_999_999 * s), "99999999S"),
        ("99999999M", Some(Duration::from_secs(60 * 99_999_999)), "99999999M"),
        ("99999999H", Some(Duration::from_secs(3600 * 99_999_999)), "99999999H"),
    ] {
        let timeout = read_timeout(text.as_bytes());
        assert_eq!(timeout, read, "{text}");
        assert_eq!(write_timeout(timeout.unwrap()), written, "{text}");
    }
    for malformed in
        ["", "S", "1", "123456789S", "-1S", "+1S", "1.5S", "1 S", " 1S", "1s", "1h", "1SS", "0x1S", "\u{663}S"]
    {
        assert_eq!(read_timeout(malformed.as_bytes()), None, "{malformed:?}");
    }
    assert_eq!(write_timeout(Duration::MAX), "99999999H");
    // Rounded down: a backend never has more than there is.
    assert_eq!(write_timeout(Duration::from_nanos(100_000_999)), "100000u");
}

#[test]
fn the_smallest_limit_counts() {
    let s = Duration::from_secs(1);
    for (timeout, exchange, max, bound, by_client) in [
        (None, None, None, None, false),
        (Some("5S"), None, None, Some(5 * s), true),
        (None, Some(7 * s), Some(3 * s), Some(7 * s), false),
        (Some("5S"), Some(7 * s), None, Some(5 * s), true),
        (Some("9S"), Some(7 * s), None, Some(7 * s), false),
        (Some("9S"), None, Some(3 * s), Some(3 * s), true),
        (Some("2S"), Some(7 * s), Some(3 * s), Some(2 * s), true),
    ] {
        let mut headers = vec![("content-type", "application/grpc")];
        headers.extend(timeout.map(|timeout| ("grpc-timeout", timeout)));
        let call = GrpcCall::of(&request("POST", &headers)).unwrap();
        let timeouts = Timeouts { exchange, grpc_timeout_max: max, ..timeouts() };
        let started = Instant::now();
        assert_eq!(call.bound(&timeouts, started).unwrap(), bound, "{timeout:?} {exchange:?} {max:?}");
        assert_eq!(call.deadline(), bound.map(|bound| started + bound));
        assert_eq!(call.is_bound_by_client(), by_client, "{timeout:?} {exchange:?} {max:?}");
    }
}

#[test]
fn no_time_and_malformed_times_go_nowhere() {
    let call = |timeouts: &[&str]| {
        let headers = timeouts.iter().map(|timeout| ("grpc-timeout", *timeout));
        let headers: Vec<_> = headers.chain([("content-type", "application/grpc")]).collect();
        GrpcCall::of(&request("POST", &headers)).unwrap()
    };
    let bound = |timeouts: &[&str]| call(timeouts).bound(&self::timeouts(), Instant::now());
    assert!(matches!(bound(&["0m"]), Err(ProxyError::ExchangeTimeout)));
    assert!(matches!(bound(&["fast"]), Err(ProxyError::BadRequest(_))));
    assert!(matches!(bound(&["1S", "2S"]), Err(ProxyError::BadRequest(_))));
    let late = call(&["1n"]);
    late.bound(&timeouts(), Instant::now()).unwrap();
    assert!(matches!(late.tell(&mut HeaderMap::new()), Err(ProxyError::ExchangeTimeout)));
}

#[test]
fn backends_are_told_less_than_clients_said() {
    let call =
        GrpcCall::of(&request("POST", &[("content-type", "application/grpc"), ("grpc-timeout", "20S")])).unwrap();
    call.bound(&timeouts(), Instant::now()).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(GRPC_TIMEOUT, HeaderValue::from_static("20S"));
    call.tell(&mut headers).unwrap();
    let told = read_timeout(headers[GRPC_TIMEOUT].as_bytes()).unwrap();
    assert!(told < Duration::from_secs(20) && told > Duration::from_secs(10), "{told:?}");
}

#[test]
fn messages_are_percent_encoded() {
    for (words, encoded) in [
        ("no backend is ready", "no backend is ready"),
        ("100% of it", "100%25 of it"),
        ("a\nb\t\u{7f}", "a%0Ab%09%7F"),
        ("t\u{e4}glich \u{2603}", "t%C3%A4glich %E2%98%83"),
        ("~!\"", "~!\""),
    ] {
        assert_eq!(percent_encoded(words), encoded);
    }
}

#[test]
fn every_call_comes_to_one_status() {
    let call = || GrpcCall::of(&request("POST", &[("content-type", "application/grpc")])).unwrap();
    for (http, cut_by_client, status) in [
        (200, None, GrpcStatus::Unknown),
        (400, None, GrpcStatus::Internal),
        (401, None, GrpcStatus::Unauthenticated),
        (403, None, GrpcStatus::PermissionDenied),
        (404, None, GrpcStatus::Unimplemented),
        (429, None, GrpcStatus::Unavailable),
        (500, None, GrpcStatus::Unknown),
        (503, None, GrpcStatus::Unavailable),
        (499, Some(true), GrpcStatus::Cancelled),
        (200, Some(false), GrpcStatus::Unavailable),
    ] {
        assert_eq!(call().outcome(http, cut_by_client), status, "{http} {cut_by_client:?}");
    }
    let told = call();
    told.ends(GrpcStatus::NotFound);
    assert_eq!(told.outcome(200, None), GrpcStatus::NotFound);
}

#[test]
fn what_is_held_against_a_backend() {
    let held = |outcome| GrpcStatus::ALL.into_iter().filter(|it| self::outcome(*it) == outcome).collect::<Vec<_>>();
    assert_eq!(held(AttemptOutcome::Success), [GrpcStatus::Ok]);
    assert_eq!(held(AttemptOutcome::Gateway), [GrpcStatus::Unavailable]);
    assert_eq!(held(AttemptOutcome::ServerError), [GrpcStatus::Unknown, GrpcStatus::Internal, GrpcStatus::DataLoss]);
    assert_eq!(held(AttemptOutcome::ClientError).len(), 12);
}
