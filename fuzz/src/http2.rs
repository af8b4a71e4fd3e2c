//! A client's frames of HTTP/2, made of any bytes, with what each stream asks for.

use arbitrary::{Result, Unstructured};

use crate::connection::{Seen, canonical, forwarded, origin};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What a client sends.
pub struct Script {
    /// All of it.
    pub bytes: Vec<u8>,
    /// What its streams ask for.
    pub streams: Vec<Asked>,
}

/// What a stream asks for.
#[derive(Debug)]
pub struct Asked {
    /// Its number.
    pub id: u32,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    body: Vec<u8>,
    /// Whether the client has said that this is all.
    ended: bool,
    /// Whether it was reset, or may have been.
    reset: bool,
}

impl Asked {
    fn one(&self, name: &[u8]) -> Option<&[u8]> {
        let mut values = self.fields.iter().filter(|(it, _)| it == name).map(|(_, value)| &value[..]);
        let first = values.next();
        if values.next().is_some() { None } else { first }
    }

    /// Whether this is what a backend has got.
    pub(crate) fn asks_for(&self, seen: &Seen) -> bool {
        let got = &seen.message;
        let [method, target, _] = got.parts()[..] else { return false };
        let switches = self.one(b":protocol").is_some();
        let asked = self.one(b":method").unwrap_or_default();
        let Some(path) = self.one(b":path") else { return false };
        let host = self.one(b":authority").or_else(|| self.one(b"host")).unwrap_or_default();
        // A body that is longer than was said is found out behind it.
        let said = self.one(b"content-length") == Some(got.body.len().to_string().as_bytes());
        let body = switches
            || match got.whole {
                true if said => self.body.starts_with(&got.body),
                true => self.ended && self.body == got.body,
                false => self.body.starts_with(&got.body),
            };
        let host = canonical(host).unwrap_or_default();
        let same_host = matches!(got.all("host")[..], [got] if got == host);
        (asked == method || (switches && method == b"GET"))
            && forwarded(&origin(path).0).is_some_and(|path| path == target)
            && same_host
            && body
            && got.all("x-forwarded-for") == [b"127.0.0.1"]
            && (switches || (got.all("upgrade").is_empty() && got.all("connection").is_empty()))
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// A field that refers to no table (RFC 7541 §6.2.2).
fn literal(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    for text in [name, value] {
        // All are shorter than what would need another byte.
        out.push(text.len().min(126) as u8);
        out.extend_from_slice(&text[..text.len().min(126)]);
    }
}

impl Script {
    /// What `data` makes.
    ///
    /// # Errors
    /// Where it is too short.
    pub fn of(data: &[u8]) -> Result<Self> {
        let mut input = Unstructured::new(data);
        let mut script = Self { bytes: PREFACE.to_vec(), streams: Vec::new() };
        frame(&mut script.bytes, SETTINGS, 0, 0, &[]);
        // What does not come to a whole step is left out.
        while !input.is_empty() && script.streams.len() < 64 && script.step(&mut input).is_ok() {}
        // Whatever was said about windows before: there is room for the answers.
        frame(&mut script.bytes, SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]);
        Ok(script)
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        match input.int_in_range(0..=9)? {
            0..=3 => self.open(input),
            4..=6 => self.data(input),
            7 => self.trailers(input),
            8 => {
                let Some(at) = self.any(input)? else { return Ok(()) };
                self.streams[at].reset = true;
                frame(&mut self.bytes, RST_STREAM, 0, self.streams[at].id, &[0, 0, 0, 8]);
                Ok(())
            }
            _ => self.other(input),
        }
    }

    fn any(&self, input: &mut Unstructured<'_>) -> Result<Option<usize>> {
        match self.streams.len() {
            0 => Ok(None),
            count => input.choose_index(count).map(Some),
        }
    }

    fn open(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let id = self.streams.len() as u32 * 2 + 1;
        let mut fields: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let methods = [&b"GET"[..], b"POST", b"HEAD", b"OPTIONS", b"CONNECT", b"G T", b"GET\r\n"];
        let method = input.choose(&methods)?;
        fields.push((b":method".to_vec(), method.to_vec()));
        fields.push((b":scheme".to_vec(), input.choose(&[&b"http"[..], b"https", b"ftp", b""])?.to_vec()));
        let paths = [
            &b"/"[..],
            b"/a?b",
            b"*",
            b"",
            b"/fixed",
            b"/a b",
            b"/ HTTP/1.1\r\nx: y",
            b"/a#b",
            b"a",
            b"//h/",
            b"/\xff",
        ];
        fields
            .push((b":path".to_vec(), if input.ratio(1, 4)? { short(input)? } else { input.choose(&paths)?.to_vec() }));
        let hosts = [&b"a"[..], b"a:80", b"A", b"u@a", b"a\r\nb: c", b""];
        fields.push((b":authority".to_vec(), input.choose(&hosts)?.to_vec()));
        if input.ratio(1, 8)? {
            fields.push((b":protocol".to_vec(), b"websocket".to_vec()));
        }
        if input.ratio(1, 6)? {
            let at = input.choose_index(fields.len())?;
            match input.arbitrary()? {
                true => drop(fields.remove(at)),
                false => fields.push(fields[at].clone()),
            }
        }
        for _ in 0..input.int_in_range(0..=4)? {
            fields.push(some_field(input)?);
        }
        fields.push((b"x-stream".to_vec(), id.to_string().into_bytes()));
        let ended = input.arbitrary()?;
        self.block(input, id, &fields, ended)?;
        self.streams.push(Asked { id, fields, body: Vec::new(), ended, reset: false });
        Ok(())
    }

    fn block(
        &mut self,
        input: &mut Unstructured<'_>,
        id: u32,
        fields: &[(Vec<u8>, Vec<u8>)],
        ended: bool,
    ) -> Result<()> {
        block(&mut self.bytes, input, id, fields, ended)
    }

    fn data(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(at) = self.any(input)? else { return Ok(()) };
        let stream = &mut self.streams[at];
        let piece = match input.ratio(1, 4)? {
            true => b"5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
            false => short(input)?,
        };
        let ended = input.arbitrary()?;
        frame(&mut self.bytes, DATA, u8::from(ended), stream.id, &piece);
        // What comes behind the end is no part of it.
        if !stream.ended {
            stream.body.extend_from_slice(&piece);
            stream.ended = ended;
        }
        Ok(())
    }

    fn trailers(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let Some(at) = self.any(input)? else { return Ok(()) };
        let fields = [some_field(input)?, some_field(input)?];
        let ended = !input.ratio(1, 8)?;
        let id = self.streams[at].id;
        self.block(input, id, &fields, ended)?;
        self.streams[at].ended |= ended;
        Ok(())
    }

    /// A frame that opens nothing and carries nothing.
    fn other(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let kind = *input.choose(&[2, RST_STREAM, SETTINGS, 5, 6, WINDOW_UPDATE, 10, 0xff])?;
        let stream = if input.arbitrary()? { 0 } else { input.int_in_range(0..=9)? };
        let payload = match kind {
            SETTINGS => {
                let settings =
                    [[0, 1, 0, 0, 0, 0], [0, 4, 0, 0, 0, 0], [0, 5, 0, 0, 0x40, 0], [0, 4, 0x7f, 0xff, 0xff, 0xff]];
                input.choose(&settings)?.to_vec()
            }
            WINDOW_UPDATE | RST_STREAM => input.bytes(4)?.to_vec(),
            6 => input.bytes(8)?.to_vec(),
            _ => short(input)?,
        };
        if kind == RST_STREAM {
            self.streams.iter_mut().filter(|it| it.id == stream).for_each(|it| it.reset = true);
        }
        frame(&mut self.bytes, kind, input.arbitrary()?, stream, &payload);
        Ok(())
    }

    /// Whether there is an answer, or a reset, for each stream that has asked for all it asks for; or nothing more comes.
    pub fn is_answered(&self, came: &[u8]) -> bool {
        let ends = |kind, flags, stream| {
            let id = move |asked: &&Asked| asked.id == stream;
            match kind {
                DATA | HEADERS if flags & END_STREAM != 0 => self.streams.iter().find(id),
                RST_STREAM => self.streams.iter().find(id),
                _ => None,
            }
        };
        let mut left: Vec<u32> =
            self.streams.iter().filter(|asked| asked.ended && !asked.reset).map(|asked| asked.id).collect();
        for (kind, flags, stream, _) in frames(came) {
            if kind == GOAWAY {
                return true;
            }
            if let Some(asked) = ends(kind, flags, stream) {
                left.retain(|id| *id != asked.id);
            }
        }
        left.is_empty()
    }
}

fn short(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let bytes = usize::from(input.int_in_range(0..=24_u8)?).min(input.len());
    input.bytes(bytes).map(<[u8]>::to_vec)
}

fn some_field(input: &mut Unstructured<'_>) -> Result<(Vec<u8>, Vec<u8>)> {
    let names = [
        &b"content-length"[..],
        b"transfer-encoding",
        b"connection",
        b"upgrade",
        b"te",
        b"host",
        b"cookie",
        b"expect",
        b"x-forwarded-for",
        b"Upper",
        b"a b",
        b"a\r\nb",
        b":path",
        b"x-stream",
        b"keep-alive",
        b"",
    ];
    let values = [
        &b"5"[..],
        b"0",
        b"chunked",
        b"trailers",
        b"a",
        b"100-continue",
        b"x\r\nContent-Length: 5",
        b" 5",
        b"5, 5",
        b"\0",
        b"+5",
        b"close",
    ];
    let name = if input.ratio(1, 4)? { short(input)? } else { input.choose(&names)?.to_vec() };
    let value = if input.ratio(1, 4)? { short(input)? } else { input.choose(&values)?.to_vec() };
    // Who asks is told by the stream's own, once.
    let name = if name == b"x-stream" { b"x-other".to_vec() } else { name };
    Ok((name, value))
}

/// Whole frames: kind, flags, stream, payload.
fn frames(bytes: &[u8]) -> impl Iterator<Item = (u8, u8, u32, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let [a, b, c, kind, flags, d, e, f, g, behind @ ..] = rest else { return None };
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (payload, after) = behind.split_at_checked(length)?;
        rest = after;
        Some((*kind, *flags, u32::from_be_bytes([d & 0x7f, *e, *f, *g]), payload))
    })
}

/// What a server sends is well-formed as far as can be seen without its table of fields: settings first, nothing larger than is
/// allowed, and nothing of a stream behind its end.
pub fn is_well_formed(came: &[u8]) {
    let mut ended = Vec::new();
    for (number, (kind, flags, stream, payload)) in frames(came).enumerate() {
        assert!(number > 0 || kind == SETTINGS, "not settings first");
        assert!(payload.len() <= 16384, "a frame that is too large");
        if matches!(kind, DATA | HEADERS) {
            assert!(!ended.contains(&stream), "stream {stream} goes on behind its end");
            assert_eq!(stream % 2, 1, "a stream that no client has opened");
        }
        if kind == RST_STREAM || (matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0) {
            ended.push(stream);
        }
    }
}

/// What a backend sends.
pub struct Answers {
    /// All of it.
    pub bytes: Vec<u8>,
    /// What its streams say.
    pub streams: Vec<Said>,
}

/// What a stream says.
#[derive(Debug, Default)]
pub struct Said {
    id: u32,
    /// Each block of fields that has a status.
    statuses: Vec<Vec<u8>>,
    body: Vec<u8>,
    ended: bool,
}

impl Answers {
    /// What `data` makes.
    ///
    /// # Errors
    /// Where it is too short.
    pub fn of(data: &[u8]) -> Result<Self> {
        let mut input = Unstructured::new(data);
        let mut answers = Self { bytes: Vec::new(), streams: Vec::new() };
        frame(&mut answers.bytes, SETTINGS, 0, 0, &[]);
        for _ in 0..64 {
            if input.is_empty() || answers.step(&mut input).is_err() {
                break;
            }
        }
        Ok(answers)
    }

    /// Whether the client of `asked` has opened a stream.
    pub fn are_wanted(asked: &[u8]) -> bool {
        let frames_of = asked.strip_prefix(PREFACE).unwrap_or_default();
        frames(frames_of).any(|(kind, ..)| kind == HEADERS)
    }

    /// Whether a stream says this.
    pub fn say(&self, status: u16, body: &[u8], whole: bool, bodiless: bool) -> bool {
        let status = status.to_string();
        self.streams.iter().any(|said| {
            let last = said.statuses.iter().find(|status| !status.starts_with(b"1"));
            last.is_some_and(|last| last == status.as_bytes())
                && match whole {
                    true if bodiless => body.is_empty(),
                    true => said.ended && said.body == body,
                    false => said.body.starts_with(body),
                }
        })
    }

    fn step(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        // Mostly of the one stream that there is.
        let id = *input.choose(&[1, 1, 1, 1, 1, 1, 3, 2])?;
        let at = self.streams.iter().position(|said| said.id == id).unwrap_or_else(|| {
            self.streams.push(Said { id, ..Said::default() });
            self.streams.len() - 1
        });
        match input.int_in_range(0..=8)? {
            0..=2 => {
                let statuses =
                    [&b"200"[..], b"404", b"103", b"204", b"304", b"101", b"099", b"20", b"2000", b"", b"200\r\n"];
                let mut fields = vec![(b":status".to_vec(), input.choose(&statuses)?.to_vec())];
                for _ in 0..input.int_in_range(0..=3)? {
                    fields.push(some_field(input)?);
                }
                let ended = input.arbitrary()?;
                self.block(input, id, &fields, ended)?;
                let said = &mut self.streams[at];
                if !said.ended {
                    said.statuses.push(fields[0].1.clone());
                    said.ended = ended;
                }
            }
            3..=5 => {
                let piece = short(input)?;
                let ended = input.arbitrary()?;
                frame(&mut self.bytes, DATA, u8::from(ended), id, &piece);
                let said = &mut self.streams[at];
                if !said.ended {
                    said.body.extend_from_slice(&piece);
                    said.ended = ended;
                }
            }
            6 => {
                let fields = [some_field(input)?];
                self.block(input, id, &fields, true)?;
                self.streams[at].ended = true;
            }
            7 => frame(&mut self.bytes, RST_STREAM, 0, id, &[0, 0, 0, *input.choose(&[0, 2, 7, 8, 11])?]),
            _ => {
                let kind = *input.choose(&[2, SETTINGS, 5, 6, GOAWAY, WINDOW_UPDATE, 10])?;
                let payload = match kind {
                    SETTINGS => [0, *input.choose(&[1, 3, 4, 5])?, 0, 0, *input.choose(&[0, 64])?, 0].to_vec(),
                    GOAWAY => [0, 0, 0, input.int_in_range(0..=3)?, 0, 0, 0, 0].to_vec(),
                    _ => short(input)?,
                };
                frame(&mut self.bytes, kind, input.arbitrary()?, if input.arbitrary()? { 0 } else { id }, &payload);
            }
        }
        Ok(())
    }

    fn block(
        &mut self,
        input: &mut Unstructured<'_>,
        id: u32,
        fields: &[(Vec<u8>, Vec<u8>)],
        ended: bool,
    ) -> Result<()> {
        block(&mut self.bytes, input, id, fields, ended)
    }
}

/// A block of fields, in one frame or two.
fn block(
    out: &mut Vec<u8>,
    input: &mut Unstructured<'_>,
    id: u32,
    fields: &[(Vec<u8>, Vec<u8>)],
    ended: bool,
) -> Result<()> {
    let mut block = Vec::new();
    fields.iter().for_each(|(name, value)| literal(&mut block, name, value));
    let ends = if ended { END_STREAM } else { 0 };
    if input.ratio(1, 6)? {
        let (first, rest) = block.split_at(input.choose_index(block.len())?);
        frame(out, HEADERS, ends, id, first);
        frame(out, CONTINUATION, END_HEADERS, id, rest);
    } else {
        frame(out, HEADERS, ends | END_HEADERS, id, &block);
    }
    Ok(())
}
