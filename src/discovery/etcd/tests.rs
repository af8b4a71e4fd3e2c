use super::*;

fn reading() -> Reading {
    Reading { zone_label: "zone".into(), bytes_max: 200 }
}

fn kv(key: &str, value: &str, revision: u64) -> Value {
    json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value), "mod_revision": revision.to_string() })
}

fn ports(records: &Records) -> Vec<String> {
    records.answer().set.iter().map(|it| it.address.to_string()).collect()
}

fn read(kvs: &[Value], revision: u64) -> Records {
    let body = json!({ "header": { "revision": revision.to_string() }, "kvs": kvs, "count": "1" }).to_string();
    Records::read(body.as_bytes(), "/u/", &reading()).unwrap()
}

fn event(kind: Option<&str>, kv: Value) -> Value {
    kind.map_or_else(|| json!({ "kv": kv }), |kind| json!({ "type": kind, "kv": kv }))
}

fn apply(records: &mut Records, events: &[Value], revision: u64) -> Result<bool, DiscoveryError> {
    let line = json!({ "result": { "header": { "revision": revision.to_string() }, "events": events } }).to_string();
    records.apply(watched(line.as_bytes())?, &reading())
}

#[test]
fn the_end_of_a_range_is_behind_all_that_begin_so() {
    assert_eq!(range_end(b"/users/"), b"/users0");
    assert_eq!(range_end(b"a\xff\xff"), b"b");
    assert_eq!(range_end(b"\xff"), [0]);
}

#[test]
fn what_was_read_changes_as_the_watch_says() {
    let mut records = read(&[kv("/u/a", "10.0.0.1:1", 3), kv("/u/b", "10.0.0.2:1", 4)], 7);
    assert_eq!(ports(&records), ["10.0.0.1:1", "10.0.0.2:1"]);
    assert!(apply(&mut records, &[event(None, kv("/u/c", "10.0.0.3:1", 8))], 8).unwrap());
    let deleted = json!({ "key": STANDARD.encode("/u/a"), "mod_revision": "9" });
    assert!(apply(&mut records, &[event(Some("DELETE"), deleted)], 9).unwrap());
    assert_eq!(ports(&records), ["10.0.0.2:1", "10.0.0.3:1"]);
    assert!(apply(&mut records, &[event(Some("PUT"), kv("/u/b", "10.0.0.9:1", 10))], 10).unwrap());
    assert_eq!(ports(&records), ["10.0.0.3:1", "10.0.0.9:1"]);
    assert_eq!(records.answer().revision.as_deref(), Some("10"));
    assert!(!apply(&mut records, &[], 12).unwrap(), "word of nothing");
    assert_eq!((ports(&records).len(), records.revision), (2, 12));
    // What a later reading has brought already.
    let mut records = read(&[kv("/u/b", "10.0.0.9:1", 10)], 11);
    assert!(!apply(&mut records, &[event(None, kv("/u/b", "10.0.0.2:1", 10))], 12).unwrap());
    assert_eq!(ports(&records), ["10.0.0.9:1"]);
}

#[test]
fn what_changes_between_a_reading_and_its_watch_is_not_missed() {
    let mut records = read(&[kv("/u/a", "10.0.0.1:1", 3)], 7);
    // The word that the watch was created has the revision of the store, which is further by then; so have answers that catch up.
    assert!(!apply(&mut records, &[], 9).unwrap());
    assert!(apply(&mut records, &[event(None, kv("/u/b", "10.0.0.2:1", 8))], 9).unwrap());
    let deleted = json!({ "key": STANDARD.encode("/u/a"), "mod_revision": "9" });
    assert!(apply(&mut records, &[event(Some("DELETE"), deleted)], 9).unwrap());
    assert_eq!(ports(&records), ["10.0.0.2:1"]);
}

#[test]
fn one_bad_record_costs_itself_alone() {
    let records = read(&[kv("/u/a", "10.0.0.1:1", 3), kv("/u/b", "nonsense", 4), kv("/other", "10.0.0.3:1", 5)], 7);
    assert_eq!(ports(&records), ["10.0.0.1:1"]);
    assert_eq!(records.answer().refused, ["\"/u/b\": \"nonsense\" is not an address with a port"]);
}

#[test]
fn all_keys_together_are_bounded_however_they_come() {
    let mut records = read(&[kv("/u/a", "10.0.0.1:1", 3)], 7);
    let large = "x".repeat(150);
    for revision in 8..20 {
        // The same key again and again takes no more.
        apply(&mut records, &[event(None, kv("/u/b", &large, revision))], revision).unwrap();
    }
    let error = apply(&mut records, &[event(None, kv("/u/c", &large, 20))], 20).unwrap_err();
    assert_eq!(error.to_string(), "its keys have more than 200 bytes");
}

#[test]
fn a_watch_that_ends_says_why() {
    for (line, what) in [
        (
            json!({ "result": { "canceled": true, "compact_revision": "9" } }),
            "its watch has ended: its history begins at revision 9",
        ),
        (
            json!({ "result": { "canceled": true, "cancel_reason": "etcdserver: permission denied" } }),
            "its watch has ended: etcdserver: permission denied",
        ),
        (json!({ "error": { "message": "no leader" } }), "its watch has failed: \"no leader\""),
        (json!([]), "a line of its watch makes no sense: this is not etcd's API"),
    ] {
        assert_eq!(watched(line.to_string().as_bytes()).err().unwrap().to_string(), what);
    }
}

#[test]
fn what_is_no_list_of_keys_is_an_error() {
    for text in ["", "<html>", "{}", "[]", r#"{"header":{}}"#, r#"{"header":{"revision":"7"},"more":true}"#] {
        assert!(Records::read(text.as_bytes(), "/u/", &reading()).is_err(), "{text}");
    }
    assert!(Records::read(br#"{"header":{"revision":"7"},"kvs":[{"key":"*"}]}"#, "/u/", &reading()).is_err());
}
