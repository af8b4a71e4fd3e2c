use super::*;
use proptest::prelude::*;

fn guard() -> FramingGuard {
    FramingGuard {
        state: FramingState::Head,
        head: HeadProgress::default(),
        partial: Vec::new(),
        broke_body: false,
        max_head_bytes: 1024,
        max_headers: 10,
        may_be_http2: false,
        switches: false,
    }
}

/// Passes `text` in one piece, and again byte by byte: both must come to the same.
fn pass(text: &[u8]) -> (usize, Option<Refusal>, FramingState) {
    let mut whole = guard();
    let passed = whole.pass(text).bytes;
    let mut pieces = guard();
    let mut sum = 0;
    for byte in text {
        sum += pieces.pass(std::slice::from_ref(byte)).bytes;
    }
    assert_eq!(whole.state, pieces.state, "in pieces: {:?}", String::from_utf8_lossy(text));
    assert!(whole.refusal().is_some() || passed == sum);
    (passed, whole.refusal(), whole.state)
}

#[test]
fn lets_what_is_well_formed_pass() {
    for text in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nhost:a:80\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhe\r\nl\r\n00\r\nA: b\r\n\r\n",
    ] {
        let (passed, refusal, state) = pass(text.as_bytes());
        assert_eq!((passed, refusal, state), (text.len(), None, FramingState::Head), "{text:?}");
    }
}

#[test]
fn refuses_what_two_readers_could_read_differently() {
    let get = |rest: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{rest}\r\n\r\n");
    let chunked = |rest: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{rest}");
    for (text, status) in [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505),
        (get("Host: b"), 400),
        (get("A: b\r\n c"), 400),
        (get("A: b\r\n\tc"), 400),
        (get("Content-Length: 1\r\nContent-Length: 1"), 400),
        (get("Content-Length: 1, 1"), 400),
        (get("Content-Length: +1"), 400),
        (get("Content-Length: -1"), 400),
        (get("Content-Length: 0x1"), 400),
        (get("Content-Length:"), 400),
        (get("Content-Length: 9999999999999999999"), 400),
        (get("Content-Length: 1\r\nTransfer-Encoding: chunked"), 400),
        (get("Transfer-Encoding: chunked\r\nContent-Length: 1"), 400),
        (get("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 501),
        (get("Transfer-Encoding: chunked, chunked"), 501),
        (get("Transfer-Encoding: gzip, chunked"), 501),
        (get("Transfer-Encoding: identity"), 501),
        (get("Transfer-Encoding: \x0bchunked"), 501),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), 400),
        (chunked("5\nhello\r\n"), 400),
        (chunked("\r\n"), 400),
        (chunked("0x5\r\nhello\r\n"), 400),
        (chunked("-5\r\nhello\r\n"), 400),
        (chunked("5 \r\nhello\r\n"), 400),
        (chunked("5;a\nb\r\nhello\r\n"), 400),
        (chunked("5\r\nhello!\r\n"), 400),
        (chunked("5\r\nhello\n0\r\n\r\n"), 400),
        (chunked("1000000000000000\r\n"), 400),
        (chunked("0\r\nA: b\n\r\n"), 400),
        (chunked(&format!("5;{}\r\nhello\r\n", "a".repeat(2000))), 400),
    ] {
        let (_, refusal, _) = pass(text.as_bytes());
        assert_eq!(refusal.map(|refusal| refusal.status().as_u16()), Some(status), "{text:?}");
    }
}

#[test]
fn counts_the_head() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(2000));
    assert_eq!(pass(long.as_bytes()).1.map(|refusal| refusal.status().as_u16()), Some(414));
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nB: {}\r\n\r\n", "b".repeat(2000));
    assert_eq!(pass(large.as_bytes()).1.map(|refusal| refusal.status().as_u16()), Some(431));
    let fields = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "B: c\r\n".repeat(n - 1));
    assert_eq!(pass(fields(10).as_bytes()).1, None);
    assert_eq!(pass(fields(11).as_bytes()).1.map(|refusal| refusal.status().as_u16()), Some(431));
    let trailers =
        format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nB: {}\r\n\r\n", "b".repeat(2000));
    assert_eq!(pass(trailers.as_bytes()).1.map(|refusal| refusal.status().as_u16()), Some(431));
}

#[test]
fn holds_back_what_follows_a_request_for_another_protocol() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
    let mut guard = guard();
    let text = format!("{head}\x01\x05hello");
    assert_eq!(guard.pass(text.as_bytes()).bytes, head.len());
    assert!(guard.is_held());
    guard.release();
    assert_eq!(guard.pass(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").bytes, 27);
}

#[test]
fn holds_back_what_follows_the_body_of_one_too() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nUpgrade: tcp\r\nConnection: upgrade\r\n";
    for body in ["Content-Length: 2\r\n\r\nhi", "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"] {
        let request = format!("{head}{body}");
        let (passed, refusal, state) = pass(format!("{request}\x01hello").as_bytes());
        assert_eq!((passed, refusal, state), (request.len(), None, FramingState::Held));
        // Answered without another protocol before its body was over.
        let mut guard = guard();
        guard.pass(&request.as_bytes()[..request.len() - 1]);
        guard.release();
        guard.pass(&request.as_bytes()[request.len() - 1..]);
        assert_eq!(guard.state, FramingState::Head);
    }
}

proptest! {
    /// Whatever a peer sends, in whatever pieces: no panic, no byte passed after a refusal, and the same verdict.
    #[test]
    fn pieces_make_no_difference(
        text in "(GET|POST) /[a-z]{0,5} HTTP/1\\.[01]\r?\n((Host|Content-Length|Transfer-Encoding|Upgrade|A): ?(a|1|5|chunked|websocket)\r?\n){0,4}\r?\n[0-9a-f\r\n;x]{0,30}",
        cuts in proptest::collection::vec(1usize..20, 0..20),
    ) {
        let mut whole = guard();
        let passed = whole.pass(text.as_bytes()).bytes;
        let mut pieces = guard();
        let (mut rest, mut sum) = (text.as_bytes(), 0);
        for cut in cuts.into_iter().chain([usize::MAX]) {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            let n = pieces.pass(piece).bytes;
            sum += n;
            if n < piece.len() {
                prop_assert!(pieces.refusal().is_some() || pieces.is_held());
            }
            rest = after;
        }
        prop_assert_eq!(whole.state, pieces.state);
        // A refusal comes at the end of a line: with pieces, what was passed before it may be more.
        prop_assert!(sum >= passed);
    }

    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        guard().pass(&bytes);
    }
}
