//! What a service says by a tag of where it is to be reached, as Fabio reads it: `urlprefix-users.example.com/api strip=/api`.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeArray, DeValue};

use crate::target;

/// Where a service is to be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TagRoute {
    /// The host; every host where it is empty.
    host: String,
    /// The prefix of the path.
    path: String,
    /// Whether the backend sees the path without it.
    strips: bool,
    /// Whether the hosts are those of the route in the file.
    keeps_hosts: bool,
}

impl TagRoute {
    /// Reads what stands in a tag behind its prefix.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let source = words.next().ok_or("it says no path")?;
        let (host, path) =
            source.find('/').map(|at| source.split_at(at)).ok_or("it says no path, which begins with a slash")?;
        // What has a meaning in the file, or in a path, is no part of one here.
        let is_host = |c: u8| c.is_ascii_alphanumeric() || b"._*-".contains(&c);
        if !host.bytes().all(is_host) {
            return Err("its host is not a name without port".into());
        }
        let is_path = |c: u8| c.is_ascii_alphanumeric() || b"/._~-%!&'()+,=:@".contains(&c);
        if !path.bytes().all(is_path) || target::path::tidy(path).map_or(true, |path| target::path::has_dots(&path)) {
            return Err("its path is not one that a prefix can be".into());
        }
        let path = path.strip_suffix('/').unwrap_or(path).to_owned();
        let mut strips = false;
        for option in words {
            match option.split_once('=').unwrap_or((option, "")) {
                ("strip", prefix) if prefix.strip_suffix('/').unwrap_or(prefix) == path && !path.is_empty() => {
                    strips = true
                }
                ("strip", _) => return Err("strip is another prefix than its path".into()),
                // What is the case anyway.
                ("proto", "http") => {}
                (option, _) => return Err(format!("option {:?} has no meaning here", super::short(option))),
            }
        }
        Ok(Self { host: host.to_ascii_lowercase(), path, strips, keeps_hosts: false })
    }

    /// What a service may say, where none is known: it shows whether the route in the file can be made at all.
    pub(super) fn stand_in(route: &DeValue<'_>) -> Self {
        let table = route.as_table();
        let prefix = table.and_then(|table| table.get("path_prefix")?.get_ref().as_str()).unwrap_or_default();
        let path = format!("{}/a-tag", prefix.strip_suffix('/').unwrap_or(prefix));
        let keeps_hosts = table.is_some_and(|table| table.contains_key("hosts"));
        Self { host: String::new(), path, strips: false, keeps_hosts }
    }

    /// The same, unless the route in the file does not let services have that host or path.
    pub(super) fn within(mut self, route: &DeValue<'_>) -> Result<Self, String> {
        let key = |key: &str| route.as_table().and_then(|table| table.get(key)).map(Spanned::get_ref);
        if let Some(hosts) = key("hosts").and_then(DeValue::as_array) {
            let mut allowed = hosts.iter().filter_map(|host| host.get_ref().as_str());
            if self.host.is_empty() {
                self.keeps_hosts = true;
            } else if !allowed.any(|host| covers(&host.to_ascii_lowercase(), &self.host)) {
                return Err("its host is none that the route lets services have".into());
            }
        }
        if let Some(prefix) = key("path_prefix").and_then(DeValue::as_str) {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            if !self.path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
                return Err("its path is none that the route lets services have".into());
            }
        }
        Ok(self)
    }

    /// Sets what it says in a route.
    pub(super) fn put_into<'t>(self, span: Range<usize>, set: &mut impl FnMut(&'static str, DeValue<'t>)) {
        if !self.keeps_hosts {
            let host = if self.host.is_empty() { "*".to_owned() } else { self.host };
            let host = Spanned::new(span, DeValue::String(Cow::Owned(host)));
            set("hosts", DeValue::Array(DeArray::from_iter([host])));
        }
        let prefix = if self.path.is_empty() { "/".to_owned() } else { self.path };
        set("path_prefix", DeValue::String(Cow::Owned(prefix)));
        if self.strips {
            set("strip_prefix", DeValue::Boolean(true));
        }
    }
}

/// Whether a host that a route has lets a service have a host.
fn covers(allowed: &str, host: &str) -> bool {
    match allowed.strip_prefix('*') {
        Some("") => true,
        Some(suffix) => host.strip_suffix(suffix).is_some_and(|rest| !rest.is_empty() && suffix.starts_with('.')),
        None => allowed == host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(String, String, bool), String> {
        TagRoute::read(text).map(|it| (it.host, it.path, it.strips))
    }

    #[test]
    fn tags_are_read_as_fabio_writes_them() {
        let is = |host: &str, path: &str, strips| Ok((host.to_owned(), path.to_owned(), strips));
        assert_eq!(read("/users"), is("", "/users", false));
        assert_eq!(read("/"), is("", "", false));
        assert_eq!(read("Users.example.com/"), is("users.example.com", "", false));
        assert_eq!(read("*.example.com/a/b/ strip=/a/b"), is("*.example.com", "/a/b", true));
        assert_eq!(read("/users proto=http strip=/users"), is("", "/users", true));
    }

    #[test]
    fn what_would_mean_something_else_is_refused() {
        for text in [
            "",
            "users",
            ":3306 proto=tcp",
            "a.example.com:80/users",
            "/users strip=/other",
            "/users proto=https",
            "/users allow=ip:10.0.0.0/8",
            "${HOME}/a",
            "/${HOME}",
            "/{service}",
            "/a/../b",
            "/a/%2e%2e/b",
            "/a?b=c",
            "/ strip=/",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_route_bounds_what_services_may_have() {
        let file = "hosts = [\"*.example.com\", \"api.test\"]\npath_prefix = \"/apps/\"";
        let route = DeValue::Table(toml::de::DeTable::parse(file).unwrap().into_inner());
        let within = |text: &str| TagRoute::read(text).unwrap().within(&route).is_ok();
        for text in ["/apps", "/apps/users", "a.example.com/apps", "a.b.example.com/apps/x", "api.test/apps"] {
            assert!(within(text), "{text}");
        }
        for text in ["/users", "/appsx", "example.com/apps", "evil.test/apps", "xexample.com/apps", "/"] {
            assert!(!within(text), "{text}");
        }
    }
}
