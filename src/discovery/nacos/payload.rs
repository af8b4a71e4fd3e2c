//! Nacos's messages over gRPC: a frame with a protocol buffer in it (`Payload`), which has a type, headers and a body of JSON.
//!
//! There are three small messages, two levels deep, so that they are written and read here:
//!
//! ```text
//! Payload  { Metadata metadata = 2; Any body = 3; }
//! Metadata { string type = 3; map<string, string> headers = 7; string clientIp = 8; }
//! Any      { string type_url = 1; bytes value = 2; }
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A message: its type, and its JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) kind: String,
    pub(super) body: Bytes,
}

/// Bytes of a frame's head: whether it is compressed, and its length.
const FRAME_HEAD: usize = 5;

/// A message in its frame.
pub(super) fn frame(kind: &str, headers: &[(&str, &str)], body: &[u8]) -> Bytes {
    let mut metadata = Vec::new();
    field(&mut metadata, 3, kind.as_bytes());
    for (name, value) in headers {
        let mut entry = Vec::new();
        field(&mut entry, 1, name.as_bytes());
        field(&mut entry, 2, value.as_bytes());
        field(&mut metadata, 7, &entry);
    }
    let mut any = Vec::new();
    field(&mut any, 2, body);
    let mut payload = Vec::new();
    field(&mut payload, 2, &metadata);
    field(&mut payload, 3, &any);
    let mut frame = BytesMut::with_capacity(FRAME_HEAD + payload.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    frame.put_slice(&payload);
    frame.freeze()
}

/// Takes the first message that has come whole. One that is longer than `bytes_max` is an error.
pub(super) fn take(buffer: &mut BytesMut, bytes_max: usize) -> Result<Option<Payload>, String> {
    let Some((head, _)) = buffer.split_first_chunk::<FRAME_HEAD>() else { return Ok(None) };
    let [compressed, length @ ..] = *head;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if compressed != 0 {
        return Err("a message is compressed".into());
    }
    if length > bytes_max {
        return Err(format!("a message has more than {bytes_max} bytes"));
    }
    if buffer.len() < FRAME_HEAD + length {
        return Ok(None);
    }
    buffer.advance(FRAME_HEAD);
    let message = buffer.split_to(length).freeze();
    Payload::read(&message).map(Some).ok_or_else(|| "a message makes no sense: this is not Nacos's API".into())
}

impl Payload {
    fn read(message: &Bytes) -> Option<Self> {
        let (mut kind, mut body) = (None, Bytes::new());
        for_each_field(message, |number, value| match number {
            2 => for_each_field(&value, |number, value| {
                if number == 3 {
                    kind = Some(String::from_utf8(value.to_vec()).ok()?);
                }
                Some(())
            }),
            3 => for_each_field(&value, |number, value| {
                if number == 2 {
                    body = value;
                }
                Some(())
            }),
            _ => Some(()),
        })?;
        Some(Self { kind: kind?, body })
    }
}

/// Writes a field of bytes.
fn field(to: &mut Vec<u8>, number: u8, value: &[u8]) {
    /// Of bytes whose length stands before them.
    const WIRE_TYPE: u8 = 2;
    to.push(number << 3 | WIRE_TYPE);
    let mut length = value.len();
    while length >= 0x80 {
        to.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
        length >>= 7;
    }
    to.push(u8::try_from(length).unwrap_or_default());
    to.extend_from_slice(value);
}

/// Reads the fields of a message, and gives those of bytes to `take`. `None` where it is none, or where `take` says so.
fn for_each_field(message: &Bytes, mut take: impl FnMut(u64, Bytes) -> Option<()>) -> Option<()> {
    let mut rest = message.clone();
    while rest.has_remaining() {
        let tag = varint(&mut rest)?;
        let skipped = match tag & 7 {
            0 => {
                varint(&mut rest)?;
                0
            }
            1 => 8,
            5 => 4,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                if rest.remaining() < length {
                    return None;
                }
                take(tag >> 3, rest.split_to(length))?;
                0
            }
            _ => return None,
        };
        if rest.remaining() < skipped {
            return None;
        }
        rest.advance(skipped);
    }
    Some(())
}

fn varint(from: &mut Bytes) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        if !from.has_remaining() {
            return None;
        }
        let byte = from.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written_however_it_comes() {
        let body = format!("{{\"a\":\"{}\"}}", "x".repeat(300));
        let one = frame("NotifySubscriberRequest", &[("accessToken", "t"), ("app", "isobar")], body.as_bytes());
        let both = [&one[..], &frame("B", &[], b"")].concat();
        let mut buffer = BytesMut::new();
        let mut taken = Vec::new();
        for byte in both {
            buffer.put_u8(byte);
            taken.extend(take(&mut buffer, 1000).unwrap());
        }
        let message = |kind: &str, body: &[u8]| Payload { kind: kind.into(), body: Bytes::copy_from_slice(body) };
        assert_eq!(taken, [message("NotifySubscriberRequest", body.as_bytes()), message("B", b"")]);
        assert!(buffer.is_empty());
    }

    /// As the reference client sends one, with a client's address and a type of the body.
    #[test]
    fn a_message_with_fields_that_are_not_needed_is_read() {
        let metadata = b"\x1a\x12HealthCheckRequest\x3a\x08\x0a\x01a\x12\x03b=c\x42\x099.9.9.9:1";
        let any = b"\x0a\x04type\x12\x02{}";
        let mut payload = vec![0x08, 0x96, 0x01, 0x12, u8::try_from(metadata.len()).unwrap()];
        payload.extend_from_slice(metadata);
        payload.extend_from_slice(&[0x1a, u8::try_from(any.len()).unwrap()]);
        payload.extend_from_slice(any);
        payload.extend_from_slice(b"\x2d1234\x311234567");
        payload.push(b'8');
        let mut buffer = BytesMut::from(&[0, 0, 0, 0, u8::try_from(payload.len()).unwrap()][..]);
        buffer.put_slice(&payload);
        let read = take(&mut buffer, 1000).unwrap().unwrap();
        assert_eq!((&*read.kind, &*read.body), ("HealthCheckRequest", &b"{}"[..]));
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for (bytes, what) in [
            (&b"\x01\0\0\0\x01a"[..], "a message is compressed"),
            (b"\0\0\0\x04\0", "a message has more than 1000 bytes"),
            (b"HTTP/1.1 400 Bad Request", "a message is compressed"),
            (b"\0\0\0\0\0", "a message makes no sense: this is not Nacos's API"),
            (b"\0\0\0\0\x02\x12\x7f", "a message makes no sense: this is not Nacos's API"),
            (b"\0\0\0\0\x01\xff", "a message makes no sense: this is not Nacos's API"),
            (b"\0\0\0\0\x02\x07\x01", "a message makes no sense: this is not Nacos's API"),
        ] {
            assert_eq!(take(&mut BytesMut::from(bytes), 1000).unwrap_err(), what, "{bytes:?}");
        }
    }
}
