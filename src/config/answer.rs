//! `redirect` and `respond` of a route: what isobar answers itself.

use std::fmt;

use bytes::Bytes;
use http::StatusCode;
use http::header::HeaderValue;
use serde_json::json;

use super::check::{Check, value};
use super::error::Problem;
use super::form::{About, Form, Maybe, Whole, variable};
use super::header::ValueText;
use super::json_tree::Tree;
use super::report::Place;
use super::table::Table;
use super::visibility::{Kind, Location, Sensitive};

/// A redirect in place of a backend.
#[derive(Clone, PartialEq, Eq, Table)]
#[table(reload = Requests)]
pub struct Redirect {
    /// Where it leads. May hold `{scheme}`, `{host}`, `{path}` and `{query}` (with its `?`, or empty) of the request.
    #[key(
        RedirectTarget,
        name = "to",
        needed = "a redirect needs a target",
        expected = "to = \"https://{host}{path}{query}\"",
        example = "https://new.example.com{path}{query}"
    )]
    pub location: Vec<LocationPart>,
    /// 301, 302, 303, 307 or 308.
    #[key(RedirectStatus, default = 308)]
    pub status: StatusCode,
}

/// A fixed response in place of a backend.
#[derive(Clone, PartialEq, Eq, Table)]
#[table(check = Self::check, reload = Requests)]
pub struct Respond {
    /// 200 to 599.
    #[key(RespondStatus, default = 200)]
    pub status: StatusCode,
    /// Its `Content-Type`, where there is a body.
    #[key(Maybe(ValueText("a media type")), otherwise = "`\"text/plain; charset=utf-8\"`")]
    pub content_type: Option<HeaderValue>,
    /// May be empty.
    #[key(RespondBody, default = "")]
    pub body: Bytes,
}

impl Respond {
    fn check(check: &Check<'_>, _: Place, written: &WrittenRespond, mut it: Self) -> Option<Self> {
        let bodiless = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];
        if let Some((place, _)) = written.body.given()
            && bodiless.contains(&it.status)
            && !it.body.is_empty()
        {
            let status = check.show_other(written.status.place(), it.status.as_u16());
            let problem = Problem::error(format!("a {status} has no body"));
            check.add(place, problem.expected("another status, or no body"));
        }
        if it.body.is_empty() {
            it.content_type = None;
            if let Some((place, _)) = written.content_type.given() {
                check.add(place, Problem::warning("there is no body that could have this type"));
            }
        } else if it.content_type.is_none() {
            it.content_type = Some(HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        Some(it)
    }
}

impl Redirect {
    /// The target as the file has it.
    pub fn target(&self) -> String {
        self.location.iter().map(LocationPart::as_written).collect()
    }
}

impl fmt::Debug for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, location: _ } = self;
        let target = self.target();
        f.debug_struct("Redirect").field("status", status).field("location", &Kind::Location.show(&target)).finish()
    }
}

/// A piece of a redirect's target.
#[derive(Clone, PartialEq, Eq)]
pub enum LocationPart {
    /// As written.
    Text(String),
    /// `{scheme}`.
    Scheme,
    /// `{host}`, with its port where the client named one.
    Host,
    /// `{path}`.
    Path,
    /// `{query}`: `?` and the query, or nothing.
    Query,
}

impl LocationPart {
    fn as_written(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Scheme => "{scheme}",
            Self::Host => "{host}",
            Self::Path => "{path}",
            Self::Query => "{query}",
        }
    }
}

/// Of a piece alone nobody knows whether it is of a query.
impl fmt::Debug for LocationPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({})", Kind::Sensitive.show(text)),
            Self::Scheme => f.write_str("Scheme"),
            Self::Host => f.write_str("Host"),
            Self::Path => f.write_str("Path"),
            Self::Query => f.write_str("Query"),
        }
    }
}

impl fmt::Debug for Respond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, content_type, body } = self;
        let body = String::from_utf8_lossy(body);
        let body = Kind::Sensitive.show(&body);
        let fields = &mut f.debug_struct("Respond");
        fields.field("status", status).field("content_type", content_type).field("body", &body).finish()
    }
}

/// Where a redirect leads: `https://{host}{path}{query}`.
struct RedirectTarget;

impl Form<Vec<LocationPart>> for RedirectTarget {
    type Written = Location;

    fn read(&self, check: &Check<'_>, place: Place, text: &Location) -> Option<Vec<LocationPart>> {
        const NAMES: [&str; 4] = ["scheme", "host", "path", "query"];
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
            let problem = Problem::error(format!("{} is not a URL", check.quote(place, text)));
            let expected = "the like of \"https://{host}{path}{query}\", printable ASCII without spaces";
            check.add(place, problem.expected(expected));
            return None;
        }
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some(start) = rest.find(['{', '}']) {
            let (before, part) = rest.split_at(start);
            if !before.is_empty() {
                parts.push(LocationPart::Text(before.to_owned()));
            }
            let Some((name, after)) = part.strip_prefix('{').and_then(|part| part.split_once('}')) else {
                let problem = Problem::error("a brace without its other half");
                check.add(place, problem.expected("{scheme}, {host}, {path} or {query}"));
                return None;
            };
            parts.push(match name {
                "scheme" => LocationPart::Scheme,
                "host" => LocationPart::Host,
                "path" => LocationPart::Path,
                "query" => LocationPart::Query,
                unknown => {
                    // In the query it may be a piece of a secret.
                    let before = text.get(..text.len() - part.len());
                    let what = if before.is_some_and(|before| before.contains(['?', '#'])) {
                        "an unknown part in the query".to_owned()
                    } else {
                        format!("unknown part {}", check.quote(place, &format!("{{{unknown}}}")))
                    };
                    check.add(place, Problem::error(what).one_of(unknown, NAMES));
                    return None;
                }
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(LocationPart::Text(rest.to_owned()));
        }
        Some(parts)
    }

    fn show(&self, value: &Vec<LocationPart>) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &Vec<LocationPart>) -> String {
        value.iter().map(LocationPart::as_written).collect()
    }

    fn about(&self) -> About {
        About::new::<Location>("a URL, or a path", json!({ "type": "string", "minLength": 1 }))
    }
}

fn status_code(status: i64) -> Option<StatusCode> {
    StatusCode::from_u16(u16::try_from(status).ok()?).ok()
}

/// The status of a redirect that a route may give.
struct RedirectStatus;

impl RedirectStatus {
    const ALL: [i64; 5] = [301, 302, 303, 307, 308];
}

impl Form<StatusCode> for RedirectStatus {
    type Written = i64;

    fn read(&self, check: &Check<'_>, place: Place, status: &i64) -> Option<StatusCode> {
        if !Self::ALL.contains(status) {
            let problem = Problem::error(format!("{} is not the status of a redirect", check.show(place, status)));
            check.add(place, problem.expected("301, 302, 303, 307 or 308"));
            return None;
        }
        status_code(*status)
    }

    fn show(&self, value: &StatusCode) -> Option<Tree> {
        Some(value.as_u16().into())
    }

    fn tell(&self, value: &StatusCode) -> String {
        value.as_str().to_owned()
    }

    fn about(&self) -> About {
        let schema = json!({ "anyOf": [{ "enum": Self::ALL }, variable()] });
        About::new::<i64>("301, 302, 303, 307 or 308", schema)
    }
}

/// The status of a fixed response.
struct RespondStatus;

impl Form<StatusCode> for RespondStatus {
    type Written = i64;

    fn read(&self, check: &Check<'_>, place: Place, status: &i64) -> Option<StatusCode> {
        value::number_in(check, place, *status, 200..=599).and_then(status_code)
    }

    fn show(&self, value: &StatusCode) -> Option<Tree> {
        Some(value.as_u16().into())
    }

    fn tell(&self, value: &StatusCode) -> String {
        value.as_str().to_owned()
    }

    fn about(&self) -> About {
        <Whole as Form<u16>>::about(&Whole(200..=599))
    }
}

/// The body of a fixed response.
struct RespondBody;

impl Form<Bytes> for RespondBody {
    type Written = Sensitive;

    fn read(&self, _: &Check<'_>, _: Place, text: &Sensitive) -> Option<Bytes> {
        Some(Bytes::from(text.reveal().to_owned()))
    }

    fn show(&self, value: &Bytes) -> Option<Tree> {
        Some(self.tell(value).into())
    }

    fn tell(&self, value: &Bytes) -> String {
        String::from_utf8_lossy(value).into_owned()
    }

    fn about(&self) -> About {
        About::new::<Sensitive>("a text", json!({ "type": "string" }))
    }
}
