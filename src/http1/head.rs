//! The head of a request: its request line and all of its headers.
//!
//! Not every header is put into a map: those that pass through are lines as they came ([`PassThrough`]), and those that tell a
//! backend of the client, or that a header rule sets, are lines that were made before ([`HeaderLines`]). [`RequestHead`] owns them all,
//! so that a look for a header finds it wherever it is.

use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use http::header::{Entry, HeaderMap, HeaderName, HeaderValue};
use http::{Extensions, Method, Uri, Version, request};

use super::header_name;
use super::outgoing::line;
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
    /// Headers that rules have added.
    pub(super) rule_lines: RuleLines,
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
        if !self.pass_through.is_empty() || self.lines.is_some() || !self.rule_lines.is_empty() {
            self.read();
        }
    }

    #[cold]
    fn read(&mut self) {
        if let Some(lines) = self.lines.take() {
            lines.copy_to(&mut self.map);
        }
        self.pass_through.give_to(&mut self.map);
        self.rule_lines.give_to(&mut self.map);
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
        if self.pass_through.is_empty() && self.lines.is_none() && self.rule_lines.is_empty() {
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
        self.rule_lines.copy_to(&mut all);
        all
    }

    fn is_a_line(&self, name: &HeaderName) -> bool {
        // The names come first: most tell that there is no such line.
        let passes = || !self.pass_through.is_empty() && header_name::passes(name) && self.pass_through.has(name);
        let tells = || tells_client(name) && self.lines.as_ref().is_some_and(|lines| lines.has(name));
        passes() || tells() || self.rule_lines.has(name)
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

    /// The headers as a header rule changes them, but for those that tell of the client.
    pub(crate) fn parts(&mut self) -> HeadParts<'_> {
        let Self { map, pass_through, rule_lines, .. } = self;
        HeadParts { map, pass_through, rule_lines: Some(rule_lines) }
    }
}

impl From<request::Parts> for RequestHead {
    fn from(parts: request::Parts) -> Self {
        let request::Parts { method, uri, version, extensions, headers, .. } = parts;
        Self { method, uri, version, extensions, map: headers, ..Self::default() }
    }
}

/// The headers of a head, wherever they are.
#[derive(Debug)]
pub struct HeadParts<'a> {
    /// Those that are no lines.
    pub map: &'a mut HeaderMap,
    /// Those that pass through.
    pub pass_through: &'a mut PassThrough,
    /// Those that rules have added. `None` where these are to be in the map.
    pub rule_lines: Option<&'a mut RuleLines>,
}

impl<'a> HeadParts<'a> {
    /// Adds the headers of a rule, of which there are none yet.
    #[inline]
    pub fn add(&mut self, lines: &Arc<HeaderLines>) {
        match &mut self.rule_lines {
            Some(all) => all.add(lines),
            None => lines.add_to(self.map),
        }
    }

    /// All headers, in the map.
    pub fn read_lines(self) -> &'a mut HeaderMap {
        self.pass_through.give_to(self.map);
        if let Some(lines) = self.rule_lines {
            lines.give_to(self.map);
        }
        self.map
    }
}

/// Headers that rules have added to a head, as lines that were written when the rules were read.
#[derive(Debug, Default)]
pub struct RuleLines(Option<Arc<HeaderLines>>);

impl RuleLines {
    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Adds the lines of a rule. Only where there are some already is anything allocated.
    #[inline]
    pub fn add(&mut self, lines: &Arc<HeaderLines>) {
        self.0 = Some(match &self.0 {
            None => Arc::clone(lines),
            Some(before) => Arc::new(HeaderLines::new([before.text(), lines.text()].concat())),
        });
    }

    /// Whether a header of that name is among them.
    #[inline]
    pub fn has(&self, name: &HeaderName) -> bool {
        self.0.as_ref().is_some_and(|lines| lines.has(name))
    }

    /// The lines.
    #[inline]
    pub fn text(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], HeaderLines::text)
    }

    /// Puts the headers into a map, beside what is there.
    pub fn copy_to(&self, headers: &mut HeaderMap) {
        if let Some(lines) = &self.0 {
            lines.add_to(headers);
        }
    }

    /// Puts the headers into a map, and has none any more.
    pub fn give_to(&mut self, headers: &mut HeaderMap) {
        if let Some(lines) = self.0.take() {
            lines.add_to(headers);
        }
    }
}

/// Headers as lines that are written as they are, for requests that have them in common.
#[derive(Debug, Default)]
pub struct HeaderLines {
    text: Box<[u8]>,
    /// The same as fields, once a request needed them as such.
    fields: OnceLock<Box<[(HeaderName, HeaderValue)]>>,
}

impl HeaderLines {
    /// Of a text of lines, each a name, a colon, a space, a value and CRLF.
    pub fn new(text: Vec<u8>) -> Self {
        Self { text: text.into(), fields: OnceLock::new() }
    }

    /// Of names with their values.
    pub fn of<'a>(fields: impl IntoIterator<Item = (&'a HeaderName, &'a [u8])>) -> Self {
        let mut text = Vec::with_capacity(160);
        for (name, value) in fields {
            line(&mut text, name, value);
        }
        Self::new(text)
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

    /// Puts the headers into a map, beside what is there.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        for (name, value) in self.fields() {
            headers.append(name, value.clone());
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
