//! The head of a request: its request line and all of its headers.
//!
//! Not every header is put into a map: those that pass through are lines as they came ([`PassThrough`]), and those that tell a
//! backend of the client are lines that were made before ([`HeaderLines`]). [`RequestHead`] owns all three, so that a look for a header
//! finds it wherever it is.

use std::cell::OnceCell;
use std::rc::Rc;

use http::header::{Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Extensions, Method, Uri, Version, request};

use super::header_name;
use super::pass_through_headers::PassThrough;
use crate::header_names::tells_client;

/// The head of a request.
///
/// [`RequestHead::headers`] is the map of all headers, for a caller that reads or changes them. To ask for one header without
/// that map being made, there are [`RequestHead::get`], [`RequestHead::contains`] and [`RequestHead::any`].
#[derive(Debug, Default)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The target.
    pub uri: Uri,
    /// By which version of HTTP the request came.
    pub version: Version,
    /// What else is known of the request, by type.
    pub extensions: Extensions,
    /// The headers that are no lines.
    pub(super) map: HeaderMap,
    /// Headers that pass through as they came.
    pub(super) pass_through: PassThrough,
    /// Headers that were written before, for behind the request line.
    pub(super) lines: Option<Rc<HeaderLines>>,
}

impl RequestHead {
    /// All headers.
    #[inline]
    pub fn headers(&mut self) -> &mut HeaderMap {
        self.read_lines();
        &mut self.map
    }

    /// Puts the headers that are lines into the map, for what is going to look for many.
    #[inline]
    pub fn read_lines(&mut self) {
        if !self.pass_through.is_empty() || self.lines.is_some() {
            self.read();
        }
    }

    #[cold]
    fn read(&mut self) {
        if let Some(lines) = self.lines.take() {
            lines.copy_to(&mut self.map);
        }
        self.pass_through.give_to(&mut self.map);
    }

    /// The first value of a header.
    pub fn get(&self, name: &HeaderName) -> Option<HeaderValue> {
        match self.map.get(name) {
            Some(value) => Some(value.clone()),
            None if self.is_a_line(name) => self.all_headers().remove(name),
            None => None,
        }
    }

    /// Whether there is such a header.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.map.contains_key(name) || self.is_a_line(name)
    }

    /// Whether `test` holds for any header.
    pub fn any(&self, mut test: impl FnMut(&HeaderName, &HeaderValue) -> bool) -> bool {
        if self.pass_through.is_empty() && self.lines.is_none() {
            return self.map.iter().any(|(name, value)| test(name, value));
        }
        self.all_headers().iter().any(|(name, value)| test(name, value))
    }

    /// Sets a header, in the place of whatever values it has.
    pub fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        if self.is_a_line(&name) {
            self.read();
        }
        self.map.insert(name, value);
    }

    /// Removes all values of a header.
    pub fn remove(&mut self, name: &HeaderName) {
        if self.is_a_line(name) {
            self.read();
        }
        self.map.remove(name);
    }

    /// A copy of all headers.
    pub fn all_headers(&self) -> HeaderMap {
        let mut all = self.map.clone();
        if let Some(lines) = &self.lines {
            lines.copy_to(&mut all);
        }
        self.pass_through.copy_to(&mut all);
        all
    }

    fn is_a_line(&self, name: &HeaderName) -> bool {
        // The names come first: most tell that there is no such line.
        let passes = || !self.pass_through.is_empty() && header_name::passes(name) && self.pass_through.has(name);
        let tells = || tells_client(name) && self.lines.as_ref().is_some_and(|lines| lines.has(name));
        passes() || tells()
    }

    /// The headers that are in the map already: those that the proxy itself decides about, such as `Host`, `Connection` and
    /// `Forwarded`. For those alone, and before lines are set: a header that a configuration may ask for is not always here.
    pub(crate) fn in_map(&self) -> &HeaderMap {
        &self.map
    }

    /// [`RequestHead::in_map`], to be changed.
    pub(crate) fn in_map_mut(&mut self) -> &mut HeaderMap {
        &mut self.map
    }

    /// Sets headers that were written before. None of them may be in the map.
    pub(crate) fn set_lines(&mut self, lines: Rc<HeaderLines>) {
        self.lines = Some(lines);
    }
}

impl From<request::Parts> for RequestHead {
    fn from(parts: request::Parts) -> Self {
        let request::Parts { method, uri, version, extensions, headers, .. } = parts;
        Self { method, uri, version, extensions, map: headers, pass_through: PassThrough::default(), lines: None }
    }
}

/// Headers as lines that are written as they are, for requests that have them in common.
#[derive(Debug, Default)]
pub struct HeaderLines {
    text: Box<[u8]>,
    /// The same as fields, once a request needed them as such.
    fields: OnceCell<Box<[(HeaderName, HeaderValue)]>>,
}

impl HeaderLines {
    /// Of a text of lines, each a name, a colon, a space, a value and CRLF.
    pub fn new(text: Vec<u8>) -> Self {
        Self { text: text.into(), fields: OnceCell::new() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The lines.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    fn has(&self, name: &HeaderName) -> bool {
        self.fields().iter().any(|(it, _)| it == name)
    }

    /// Puts the headers into a map.
    fn copy_to(&self, headers: &mut HeaderMap) {
        for (name, value) in self.fields() {
            match headers.entry(name) {
                Entry::Occupied(mut entry) => drop(entry.insert(value.clone())),
                Entry::Vacant(entry) => drop(entry.insert(value.clone())),
            }
        }
    }

    fn fields(&self) -> &[(HeaderName, HeaderValue)] {
        self.fields.get_or_init(|| self.read())
    }

    fn read(&self) -> Box<[(HeaderName, HeaderValue)]> {
        let lines = self.text.split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\r"));
        let field = |line: &[u8]| {
            let colon = memchr::memchr(b':', line)?;
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?;
            Some((HeaderName::from_bytes(&line[..colon]).ok()?, value))
        };
        lines.filter_map(field).collect()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::http1::request::{ReceivedRequest, read};

    const COOKIE: HeaderName = http::header::COOKIE;
    const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

    fn head() -> RequestHead {
        let text = "GET / HTTP/1.1\r\nHost: h\r\nCookie: a\r\nX: 1\r\nCookie: b\r\n\r\n";
        let mut slot = None;
        assert_eq!(read(&mut Bytes::from(text), HeaderMap::new(), (100, true), &mut slot), Ok(true));
        let ReceivedRequest { mut head, .. } = slot.unwrap();
        head.set_lines(Rc::new(HeaderLines::new(b"x-forwarded-for: 192.0.2.1\r\nx-forwarded-port: 80\r\n".to_vec())));
        assert_eq!(head.in_map().len(), 2, "the others are lines");
        head
    }

    #[test]
    fn a_header_is_found_wherever_it_is() {
        let head = head();
        assert_eq!(head.get(&COOKIE).unwrap(), "a");
        assert_eq!(head.get(&FOR).unwrap(), "192.0.2.1");
        assert!(head.contains(&COOKIE) && head.contains(&FOR) && head.contains(&http::header::HOST));
        assert!(!head.contains(&http::header::ACCEPT) && head.get(&http::header::ACCEPT).is_none());
        assert!(head.any(|name, value| *name == COOKIE && value == "b"));
        assert!(head.any(|name, value| *name == FOR && value == "192.0.2.1"));
        assert_eq!(head.in_map().len(), 2, "and nothing was put into the map for that");
    }

    #[test]
    fn the_map_has_all_of_them() {
        let mut head = head();
        assert_eq!(head.headers().len(), 6);
        assert_eq!(head.headers().get_all(COOKIE).iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(head.headers()["x-forwarded-port"], "80");
        assert!(head.pass_through.is_empty() && head.lines.is_none(), "each once");
    }

    #[test]
    fn the_others_stay_lines() {
        let mut head = head();
        for name in [HeaderName::from_static("x-isobar-attempt"), http::header::ACCEPT, http::header::HOST] {
            head.insert(name.clone(), HeaderValue::from_static("1"));
            head.remove(&name);
        }
        assert!(!head.pass_through.is_empty() && head.lines.is_some());
    }

    #[test]
    fn what_is_set_or_removed_is_no_line_any_more() {
        for name in [COOKIE, FOR] {
            let mut one = head();
            one.insert(name.clone(), HeaderValue::from_static("new"));
            assert_eq!(one.headers().get_all(&name).iter().collect::<Vec<_>>(), ["new"]);
            let mut one = head();
            one.remove(&name);
            assert!(!one.contains(&name) && !one.headers().contains_key(&name));
        }
    }
}
