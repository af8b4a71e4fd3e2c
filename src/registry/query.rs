//! The path and the query of a request.

/// The parts of a path, decoded; `None` where the percents make no text.
pub(super) fn segments(path: &str) -> Option<Vec<String>> {
    // Some clients put two slashes where a base URL ends in one.
    path.split('/').filter(|segment| !segment.is_empty()).map(|segment| decoded(segment, false)).collect()
}

/// Keys with their values, in the order of the query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

/// Pairs in a query at most: metadata is given so.
const PAIRS_MAX: usize = 256;

impl Query {
    pub(super) fn of(text: &str) -> Option<Self> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).take(PAIRS_MAX).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decoded(key, true)?, decoded(value, true)?))
        });
        pairs.collect::<Option<Vec<_>>>().map(Self)
    }

    /// The value of a key, the first of several.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    /// All values of a key.
    pub(super) fn all<'q>(&'q self, key: &str) -> impl Iterator<Item = &'q str> {
        self.0.iter().filter(move |(it, _)| it == key).map(|(_, value)| value.as_str())
    }

    /// Whether a key is there, and does not say `false`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !matches!(value, "false" | "0"))
    }

    pub(super) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

fn decoded(text: &str, is_query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    let mut plain =
        |part: &str| bytes.extend(part.bytes().map(|byte| if is_query && byte == b'+' { b' ' } else { byte }));
    plain(parts.next()?);
    let mut decoded = bytes;
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        decoded.push(u8::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?);
        decoded.extend(rest.bytes().map(|byte| if is_query && byte == b'+' { b' ' } else { byte }));
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_are_decoded_once() {
        assert_eq!(segments("/v1//health/service/a%2Fb%20c/").unwrap(), ["v1", "health", "service", "a/b c"]);
        assert_eq!(segments("/v1/%zz"), None);
        assert_eq!(segments("/v1/%ff"), None);
        let query = Query::of("passing&tag=a+b&tag=%2b&x=1&stale=false&&").unwrap();
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["a b", "+"]);
        assert!(query.has("passing") && query.has("x") && !query.has("stale") && !query.has("index"));
    }
}
