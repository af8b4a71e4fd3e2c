//! HTTP/1.1 as a reader takes it that makes no allowances: the measure of what the proxy passes on. Written from RFC 9112, without
//! a look at how the proxy reads, and slow.

/// A message.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The first line.
    pub line: Vec<u8>,
    /// Names in lower case, with their values.
    pub fields: Vec<(String, Vec<u8>)>,
    /// What of the body is there.
    pub body: Vec<u8>,
    /// Behind a body in chunks.
    pub trailers: Vec<(String, Vec<u8>)>,
    /// Whether the body is there to its end.
    pub whole: bool,
    /// Whether nothing but the end of the connection ends the body.
    pub until_close: bool,
    /// Where the message ends in the bytes it was read from; its head, where it is not whole.
    pub end: usize,
}

impl Message {
    /// The values of a field.
    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        self.fields.iter().filter(|(it, _)| it == name).map(|(_, value)| &value[..]).collect()
    }

    /// The parts of the first line.
    pub fn parts(&self) -> Vec<&[u8]> {
        self.line.splitn(3, |&byte| byte == b' ').collect()
    }

    /// The status of a response.
    pub fn status(&self) -> u16 {
        str::from_utf8(self.parts()[1]).ok().and_then(|text| text.parse().ok()).expect("a status")
    }
}

/// What is behind the last message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Nothing,
    /// The beginning of a message.
    Partial,
    /// What is none.
    Broken(&'static str),
    /// HTTP/2.
    Http2,
}

/// Reads all requests in `bytes`.
pub fn requests(bytes: &[u8]) -> (Vec<Message>, Tail) {
    let (mut all, mut at): (Vec<Message>, usize) = (Vec::new(), 0);
    loop {
        while bytes[at..].starts_with(b"\r\n") {
            at += 2;
        }
        if at == bytes.len() {
            return (all, Tail::Nothing);
        }
        // From its first line on it is another protocol.
        if all.is_empty() && bytes[at..].starts_with(b"PRI * HTTP/2.0\r\n") {
            return (all, Tail::Http2);
        }
        let mut message = match head(bytes, at) {
            Ok(Some(message)) => message,
            Ok(None) => return (all, Tail::Partial),
            Err(why) => return (all, Tail::Broken(why)),
        };
        match request_body(bytes, &mut message) {
            Ok(true) => {
                at = message.end;
                all.push(message);
            }
            Ok(false) => {
                all.push(message);
                return (all, Tail::Partial);
            }
            Err((why, in_body)) => {
                // Its head is good: who serves it finds out later that its body is not.
                if in_body {
                    all.push(message);
                }
                return (all, Tail::Broken(why));
            }
        }
    }
}

fn request_body(bytes: &[u8], message: &mut Message) -> Result<bool, (&'static str, bool)> {
    let parts = message.parts();
    let [method, target, version] = parts[..] else { return Err(("no request line", false)) };
    if method.is_empty() || !method.iter().all(|&byte| is_token(byte)) {
        return Err(("no method", false));
    }
    if target.is_empty() || target.iter().any(|&byte| byte <= b' ' || byte == 0x7f) {
        return Err(("no target", false));
    }
    let http10 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(("no version", false)),
    };
    let hosts = message.all("host").len();
    if hosts > 1 || (hosts == 0 && !http10) {
        return Err(("not one host", false));
    }
    let framing = framing(message, http10).map_err(|why| (why, false))?;
    match framing {
        (None, false) => message.whole = true,
        (Some(length), _) => fixed(bytes, message, length),
        (None, true) => chunks(bytes, message).map_err(|why| (why, true))?,
    }
    Ok(message.whole)
}

/// The response that `bytes` begin with at `at`: `None` where its head is not there yet. `head` is the answer to HEAD, and `over`
/// says that nothing more comes.
pub fn response(bytes: &[u8], at: usize, to_head: bool, over: bool) -> Result<Option<Message>, &'static str> {
    let Some(mut message) = head(bytes, at)? else { return Ok(None) };
    let parts = message.parts();
    let version = parts[0];
    if ![&b"HTTP/1.1"[..], b"HTTP/1.0"].contains(&version) || parts.len() != 3 {
        return Err("no status line");
    }
    if parts[1].len() != 3 || !parts[1].iter().all(u8::is_ascii_digit) || parts[1][0] == b'0' {
        return Err("no status");
    }
    let (framing, status) = (framing(&message, version == b"HTTP/1.0")?, message.status());
    if status < 200 || status == 204 {
        if framing != (None, false) {
            return Err("a length of nothing");
        }
        message.whole = true;
    } else if to_head || status == 304 {
        message.whole = true;
    } else {
        match framing {
            (Some(length), _) => fixed(bytes, &mut message, length),
            (None, true) => chunks(bytes, &mut message)?,
            (None, false) => {
                message.body = bytes[message.end..].to_vec();
                (message.whole, message.until_close, message.end) = (over, true, bytes.len());
            }
        }
    }
    Ok(Some(message))
}

/// The length of a body and whether it is in chunks.
fn framing(message: &Message, http10: bool) -> Result<(Option<u64>, bool), &'static str> {
    match (&message.all("content-length")[..], &message.all("transfer-encoding")[..]) {
        ([], []) => Ok((None, false)),
        ([length], []) if !length.is_empty() && length.len() < 19 && length.iter().all(u8::is_ascii_digit) => {
            Ok((str::from_utf8(length).ok().and_then(|length| length.parse().ok()), false))
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && !http10 => Ok((None, true)),
        _ => Err("no one framing"),
    }
}

fn fixed(bytes: &[u8], message: &mut Message, length: u64) {
    let rest = &bytes[message.end..];
    message.whole = rest.len() as u64 >= length;
    let there = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
    message.body = rest[..there].to_vec();
    if message.whole {
        message.end += there;
    }
}

fn chunks(bytes: &[u8], message: &mut Message) -> Result<(), &'static str> {
    let mut at = message.end;
    loop {
        let Some((size, next)) = line(bytes, at)? else { return Ok(()) };
        let digits = size.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extension) = size.split_at(digits);
        if !extension.is_empty() && extension.trim_ascii_start().first() != Some(&b';') {
            return Err("no chunk");
        }
        let size = str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size, 16).ok()).ok_or("no size")?;
        at = next;
        if size == 0 {
            break;
        }
        let rest = &bytes[at..];
        let there = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
        message.body.extend_from_slice(&rest[..there]);
        if there as u64 != size {
            return Ok(());
        }
        at += there;
        match &bytes[at..] {
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Ok(()),
            _ => return Err("a chunk that is longer than its size"),
        }
    }
    let Some((trailers, end)) = fields(bytes, at)? else { return Ok(()) };
    (message.trailers, message.whole, message.end) = (trailers, true, end);
    Ok(())
}

fn head(bytes: &[u8], at: usize) -> Result<Option<Message>, &'static str> {
    let Some((first, next)) = line(bytes, at)? else { return Ok(None) };
    let Some((fields, end)) = fields(bytes, next)? else { return Ok(None) };
    Ok(Some(Message { line: first.to_vec(), fields, end, ..Message::default() }))
}

type Fields = Vec<(String, Vec<u8>)>;

fn fields(bytes: &[u8], mut at: usize) -> Result<Option<(Fields, usize)>, &'static str> {
    let mut fields = Vec::new();
    loop {
        let Some((field, next)) = line(bytes, at)? else { return Ok(None) };
        at = next;
        if field.is_empty() {
            return Ok(Some((fields, at)));
        }
        let colon = field.iter().position(|&byte| byte == b':').ok_or("a field without a colon")?;
        let (name, value) = field.split_at(colon);
        if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
            return Err("no name");
        }
        let value = value[1..].trim_ascii();
        if value.iter().any(|&byte| (byte < b' ' && byte != b'\t') || byte == 0x7f) {
            return Err("no value");
        }
        fields.push((String::from_utf8_lossy(name).to_lowercase(), value.to_vec()));
    }
}

/// A line without its end, and where the next one begins. A CR without LF, and the other way round, is none.
fn line(bytes: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, &'static str> {
    let rest = &bytes[at..];
    let Some(end) = rest.iter().position(|&byte| matches!(byte, b'\r' | b'\n' | 0)) else { return Ok(None) };
    match rest[end..] {
        [b'\r', b'\n', ..] => Ok(Some((&rest[..end], at + end + 2))),
        [b'\r'] => Ok(None),
        _ => Err("a line that ends otherwise, or NUL"),
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
