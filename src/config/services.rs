//! `[upstream.NAME.services]`: an upstream, and routes to it, for each service that a registry lists.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::UpstreamName;
use super::check::Check;
use super::error::Problem;
use super::form::{About, Form, List, Maybe, Name, Once, Span, Whole, Word};
use super::json_tree::Tree;
use super::report::Place;
use super::rule::KeyRule;
use super::table::Table;
use super::visibility::Word as Text;

/// Makes of this upstream one for each service that its source lists, called `NAME:SERVICE`, and of each route that leads here one to each of
/// them. `{service}` stands for the name of the service in all texts of both. Only services are taken that `allow`, `deny` and `tag` let through.
#[derive(Clone, Debug, PartialEq, Eq, Table)]
#[table(check = Self::check, rules = Self::RULES, reload = Requests)]
pub struct ServicesConfig {
    /// Services that are taken, by name; `*` is any text. Without it all that have the `tag`.
    #[key(List(NamePattern), otherwise = "all that have the tag", example = ["users", "orders-*"], shown_if = Self::has_names)]
    pub allow: Vec<Arc<str>>,
    /// Services that are not taken, whatever `allow` and `tag` say.
    #[key(List(NamePattern), otherwise = "none", example = ["*-internal"])]
    pub deny: Vec<Arc<str>>,
    /// A tag that a service must have. Metadata count as tags of the form `key=value`.
    #[key(Maybe(Name), example = "public")]
    pub tag: Option<Arc<str>>,
    /// How long a service that is listed no more, and has no backends left, is answered 503. Then it is 404, as any path without a route.
    #[key(Span, default = "30s")]
    pub grace: Duration,
    /// Services that are taken at most. A list with more is a failure of the source.
    #[key(Whole(1..=10_000), default = 1000)]
    pub max_services: usize,
    /// What a service may say of itself by a tag `isobar.KEY=VALUE`, in place of what stands here.
    #[key(Once("setting"), otherwise = "none", example = ["strategy"])]
    pub settings: Vec<ServiceSetting>,
}

/// A key of an upstream that a service may set for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Word)]
pub enum ServiceSetting {
    /// `isobar.strategy`: how a backend is picked.
    Strategy,
    /// `isobar.max_in_flight`: requests at a time per backend.
    MaxInFlight,
    /// `isobar.max_connections`: connections at a time per backend.
    MaxConnections,
}

/// What tags begin with that set a key of the upstream.
pub(crate) const SETTING: &str = "isobar.";

/// What stands for the name of a service.
pub(crate) const SERVICE: &str = "{service}";

/// A service that a registry lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service {
    /// Its name.
    pub name: Arc<str>,
    /// Its tags, sorted; metadata as `key=value`.
    pub tags: Arc<[Arc<str>]>,
}

impl Service {
    /// Tags of a service that mean something to the file, at most: each may be a route.
    pub const TAGS_MAX: usize = 64;

    /// One with these tags.
    ///
    /// # Errors
    /// When its name could not stand in a path and in a host as it is: letters, digits and `._~-` may be in it, 128 at most, and not dots
    /// alone. A name comes from a registry, and is filled into texts of the file.
    pub fn new<'t>(name: &str, tags: impl IntoIterator<Item = &'t str>) -> Result<Self, String> {
        const LONGEST: usize = 128;
        let is_plain = |c: u8| c.is_ascii_alphanumeric() || b"._~-".contains(&c);
        let is_good = (1..=LONGEST).contains(&name.len()) && name.bytes().all(is_plain);
        if !is_good || name.bytes().all(|c| c == b'.') {
            let shown: String = name.chars().take(60).collect();
            return Err(format!("{shown:?} is not a name that can stand in a path: letters, digits and ._~- are"));
        }
        let mut tags: Vec<Arc<str>> = tags.into_iter().map(Arc::from).collect();
        tags.sort_unstable();
        tags.dedup();
        Ok(Self { name: name.into(), tags: tags.into() })
    }

    /// The same with these of its tags alone, and [`Service::TAGS_MAX`] of them at most.
    pub fn with_tags_that(&self, keep: impl Fn(&str) -> bool) -> Self {
        let kept = self.tags.iter().filter(|tag| keep(tag)).take(Self::TAGS_MAX).cloned();
        Self { name: Arc::clone(&self.name), tags: kept.collect() }
    }

    /// The value of the first tag `key=value`.
    pub fn tag_value(&self, key: &str) -> Option<&str> {
        self.tags.iter().find_map(|tag| tag.strip_prefix(key)?.strip_prefix('='))
    }
}

/// The services that upstreams are made for, by the upstream that they are made of.
pub type Services = BTreeMap<UpstreamName, Vec<Service>>;

impl ServicesConfig {
    const RULES: &[KeyRule] = &[KeyRule::AnyOf(&["allow", "tag"])];

    fn has_names(&self) -> bool {
        !self.allow.is_empty()
    }

    /// Whether a service is taken.
    pub fn takes(&self, service: &Service) -> bool {
        let is_any_of = |patterns: &[Arc<str>]| patterns.iter().any(|pattern| matches(pattern, &service.name));
        let is_allowed = self.allow.is_empty() || is_any_of(&self.allow);
        let has_tag = self.tag.as_ref().is_none_or(|tag| service.tags.contains(tag));
        is_allowed && has_tag && !is_any_of(&self.deny)
    }

    /// The service with those of its tags that mean something: others come and go without any need to fill the file anew. `prefixes` are those of
    /// `service_tags` of routes.
    pub fn reduced(&self, service: &Service, prefixes: &[Arc<str>]) -> Service {
        service.with_tags_that(|tag| {
            self.tag.as_deref() == Some(tag)
                || (!self.settings.is_empty() && tag.starts_with(SETTING))
                || prefixes.iter().any(|prefix| tag.starts_with(&**prefix))
        })
    }

    fn check(check: &Check<'_>, place: Place, written: &WrittenServicesConfig, it: Self) -> Option<Self> {
        if written.allow.place().is_none() && written.tag.place().is_none() {
            let problem = Problem::error("nothing says which services may be reached from outside");
            let expected = "allow = [\"users\", ..], or a tag that services have; allow = [\"*\"] is all of them";
            check.report.add_missing(place, "allow", problem.expected(expected));
        }
        if written.allow.value().is_some_and(Vec::is_empty) {
            let place = written.allow.place().unwrap_or(place);
            check.add(
                place,
                Problem::error("an empty array, which lets no service through").expected("a name at least"),
            );
        }
        Some(it)
    }
}

/// Whether a text is as a pattern has it, in which `*` is any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<_> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        // The first place is as good as any: what follows has the more room.
        let Some(at) = text.find(part) else { return false };
        text = text.get(at + part.len()..).unwrap_or_default();
    }
    text.ends_with(last)
}

/// The name of a service, in which `*` is any text.
struct NamePattern;

impl Form<Arc<str>> for NamePattern {
    type Written = Text;

    fn read(&self, check: &Check<'_>, place: Place, written: &Text) -> Option<Arc<str>> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._~-*".contains(c);
        if !written.is_empty() && written.chars().all(is_plain) {
            return Some(written.as_str().into());
        }
        let problem = Problem::error(format!("{} is not the name of a service", check.quote(place, written)));
        check.add(place, problem.expected("letters, digits and ._~-, and * for any text"));
        None
    }

    fn show(&self, value: &Arc<str>) -> Option<Tree> {
        Some((&**value).into())
    }

    fn tell(&self, value: &Arc<str>) -> String {
        value.to_string()
    }

    fn about(&self) -> About {
        let schema = json!({ "type": "string", "pattern": "^[A-Za-z0-9._~*-]+$|\\$\\{" });
        About::new::<Text>("the name of a service, in which `*` is any text", schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_text_and_none() {
        for (pattern, text, expected) in [
            ("users", "users", true),
            ("users", "users2", false),
            ("*", "anything", true),
            ("users-*", "users-", true),
            ("users-*", "users", false),
            ("*-internal", "a-internal", true),
            ("*-internal", "a-internals", false),
            ("a*b*c", "abc", true),
            ("a*b*c", "a-c-b-c", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("**", "", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_service_is_taken_where_all_three_let_it_through() {
        let config = ServicesConfig {
            allow: vec!["users*".into()],
            deny: vec!["*-internal".into()],
            tag: Some("public".into()),
            ..ServicesConfig::of_defaults()
        };
        let takes = |name, tags: &[&str]| config.takes(&Service::new(name, tags.iter().copied()).unwrap());
        assert!(takes("users", &["public", "v=1"]));
        assert!(!takes("users", &["v=1"]));
        assert!(!takes("users-internal", &["public"]));
        assert!(!takes("orders", &["public"]));
        let by_tag = ServicesConfig { allow: Vec::new(), ..config };
        assert!(by_tag.takes(&Service::new("orders", ["public"]).unwrap()));
    }

    #[test]
    fn a_name_that_would_mean_something_in_a_path_a_host_or_the_file_is_none() {
        for name in ["users", "USERS-1", "a.b_c~d", &"x".repeat(128)] {
            assert!(Service::new(name, []).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "a/b", "../a", "a b", "${HOME}", "{service}", "a%2Fb", "é", "a:b", &"x".repeat(129)]
        {
            assert!(Service::new(name, []).is_err(), "{name}");
        }
        let many: Vec<_> = (0..1000).map(|it| format!("t{it}")).chain(["isobar.strategy=random".into()]).collect();
        let many = Service::new("a", many.iter().map(String::as_str)).unwrap();
        let config = ServicesConfig { settings: vec![ServiceSetting::Strategy], ..ServicesConfig::of_defaults() };
        let kept = |prefix: &str| config.reduced(&many, &[Arc::from(prefix)]).tags.len();
        assert_eq!((kept("none"), kept("t9"), kept("t")), (1, 64, 64));
        let service = Service::new("a", ["z", "k=v=w", "a", "z"]).unwrap();
        assert_eq!(service.tags.iter().map(|it| &**it).collect::<Vec<_>>(), ["a", "k=v=w", "z"]);
        assert_eq!((service.tag_value("k"), service.tag_value("z")), (Some("v=w"), None));
    }
}
