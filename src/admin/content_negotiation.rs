//! What a client takes: `Accept` and `Accept-Encoding`, with their weights (RFC 9110 §12.4.2).

use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, HeaderName};

/// The formats of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// That of Prometheus, `text/plain; version=0.0.4`: what is sent where nothing else is asked for.
    Classic,
    /// OpenMetrics 1.0: only where it is asked for by name.
    OpenMetrics,
}

impl Format {
    /// The one that is liked best. One that takes neither is answered all the same.
    pub(super) fn asked(headers: &HeaderMap) -> Self {
        let open = weight(headers, &ACCEPT, &["application/openmetrics-text"]);
        let classic = weight(headers, &ACCEPT, &["text/plain", "text/*", "*/*"]);
        if open > 0 && open >= classic { Self::OpenMetrics } else { Self::Classic }
    }

    /// As `Content-Type` has it.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Whether gzip is taken, and not liked less than no coding.
pub(super) fn takes_gzip(headers: &HeaderMap) -> bool {
    let gzip = weight(headers, &ACCEPT_ENCODING, &["gzip", "x-gzip", "*"]);
    gzip > 0 && gzip >= weight(headers, &ACCEPT_ENCODING, &["identity"])
}

/// The weight, from 0 to 1000, of the first of `names` that is in the list: those that say more come first. The greatest, where it is there
/// with several parameters. 0 where none is there.
fn weight(headers: &HeaderMap, list: &HeaderName, names: &[&str]) -> u16 {
    let members = || headers.get_all(list).iter().filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(','));
    let of = |name: &&str| members().filter_map(|member| weight_of(member, name)).max();
    names.iter().find_map(of).unwrap_or(0)
}

/// The weight of a member of a list, if it has that name.
fn weight_of(member: &str, name: &str) -> Option<u16> {
    let mut parts = member.split(';').map(str::trim);
    parts.next().filter(|it| it.eq_ignore_ascii_case(name))?;
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0_f32));
    Some((weight.clamp(0.0, 1.0) * 1000.0) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn the_format_is_the_one_that_is_liked_best() {
        use Format::{Classic, OpenMetrics};
        assert_eq!(Format::asked(&HeaderMap::new()), Classic);
        // What Prometheus 3 sends, before it falls back.
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
            application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
            text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, format) in [
            (prometheus, OpenMetrics),
            ("text/plain;version=0.0.4", Classic),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Classic),
            ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", OpenMetrics),
            ("application/openmetrics-text;q=0.4, text/plain;q=0.5", Classic),
            ("application/openmetrics-text;q=0.4, */*;q=0.5, text/plain;q=0.1", OpenMetrics),
            ("Application/OpenMetrics-Text", OpenMetrics),
            ("application/openmetrics-text;q=0", Classic),
            ("application/openmetrics-text;q=x", Classic),
            ("application/json", Classic),
            ("*/*", Classic),
            ("", Classic),
        ] {
            assert_eq!(Format::asked(&headers(ACCEPT, accept)), format, "{accept}");
        }
        let mut several = headers(ACCEPT, "text/plain;q=0.5");
        several.append(ACCEPT, "application/openmetrics-text".parse().unwrap());
        assert_eq!(Format::asked(&several), OpenMetrics);
    }

    #[test]
    fn gzip_is_for_those_that_take_it() {
        assert!(!takes_gzip(&HeaderMap::new()));
        for (accepts, takes) in [
            ("gzip", true),
            ("deflate, GZIP;q=0.5", true),
            ("*", true),
            ("br", false),
            ("gzip;q=0", false),
            ("gzip;q=0, *", false),
            ("gzip;q=0.5, identity", false),
            ("identity", false),
        ] {
            assert_eq!(takes_gzip(&headers(ACCEPT_ENCODING, accepts)), takes, "{accepts}");
        }
    }
}
