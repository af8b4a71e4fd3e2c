//! Services filled into a file: of each upstream with `services`, and of the routes that lead to it, one for each service.
//!
//! This is done with the file as it was parsed, before anything is read of it. So what is made is checked as if it stood there, and means the
//! same. The name of a service and what its tags say come from a registry: only what [`Service::new`] and the checks here let through gets into
//! a text of the file, so that nothing of it can be a variable of the environment or reach out of its place.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::UpstreamName;
use super::form::Word;
use super::services::{SERVICE, SETTING, Service, ServiceSetting, Services};

mod tag_route;

use tag_route::TagRoute;

/// Stands for a service where none is known: what is made for it is checked, and not served.
const STAND_IN: &str = "a-service";

/// What was made of a file.
#[derive(Debug, Default)]
pub(crate) struct Filling {
    /// The upstreams with `services`, and whether a route leads there.
    templates: HashMap<String, bool>,
    /// The upstreams that were made.
    made: HashSet<String>,
    /// Those of them that were made for the service that stands for those to come.
    stand_ins: HashSet<String>,
    /// What tags begin with that say routes.
    pub(crate) service_tags: BTreeSet<Arc<str>>,
    /// What of services was not taken, a word on each.
    pub(crate) left_out: Vec<LeftOut>,
}

/// A service of which something could not be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The upstream with `services`.
    pub upstream: UpstreamName,
    /// The service.
    pub service: Service,
    /// Why, and what.
    pub why: String,
}

impl Filling {
    /// Whether services are to be filled into the file.
    pub(crate) fn is_needed(&self) -> bool {
        !self.templates.is_empty()
    }

    /// Whether an upstream was made for a service, or is what they are made of and a route leads there: a route need not name it.
    pub(crate) fn is_used(&self, upstream: &str) -> bool {
        self.made.contains(upstream) || self.templates.get(upstream).is_some_and(|used| *used)
    }

    /// Whether an upstream was made for the service that stands for those to come.
    pub(crate) fn is_stand_in(&self, upstream: &str) -> bool {
        self.stand_ins.contains(upstream)
    }
}

/// The upstream that is made of another for a service.
pub fn made_name(upstream: &str, service: &str) -> String {
    format!("{upstream}:{service}")
}

/// Numbers that services say, as texts that outlive the file that they are filled into.
pub(super) fn numbers(services: &Services) -> BTreeSet<String> {
    let tags = services.values().flatten().flat_map(|service| service.tags.iter());
    let values = tags.filter_map(|tag| Some(tag.strip_prefix(SETTING)?.split_once('=')?.1));
    values.filter(|text| is_number(text)).map(str::to_owned).collect()
}

fn is_number(text: &str) -> bool {
    (1..=9).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_digit())
}

/// Fills `services` into a file.
pub(super) fn fill<'t>(root: &mut DeTable<'t>, services: &Services, numbers: &'t BTreeSet<String>) -> Filling {
    let mut filling = Filling::default();
    let Some(DeValue::Table(upstreams)) = root.get_mut("upstream").map(Spanned::get_mut) else { return filling };
    // One that the file has itself is no stand-in's.
    let mut stand_in = STAND_IN.to_owned();
    while upstreams.keys().any(|name| name.get_ref().ends_with(&format!(":{stand_in}"))) {
        stand_in.push_str("-x");
    }
    // The file was checked with the stand-in when it was read: beside services it could only be in their way.
    let of = |template: &str| match services.get(&UpstreamName::from(template)) {
        Some(known) if !known.is_empty() => (known.clone(), false),
        _ => (vec![Service { name: stand_in.as_str().into(), tags: [].into() }], true),
    };
    let templates: BTreeMap<String, Template<'t>> = upstreams
        .iter()
        .filter_map(|(name, value)| Some((name.get_ref().to_string(), Template::of(name, value)?)))
        .collect();
    for (name, template) in &templates {
        filling.templates.insert(name.clone(), false);
        let (services, are_stand_ins) = of(name);
        for service in services {
            let made = made_name(name, &service.name);
            if !upstreams.contains_key(made.as_str()) {
                if are_stand_ins {
                    filling.stand_ins.insert(made.clone());
                }
                let table = template.made_for(&service, numbers, |why| filling.left_out(name, &service, why));
                upstreams.insert(at(template.span.clone(), Cow::Owned(made.clone())), table);
                filling.made.insert(made);
            }
        }
    }
    if let (false, Some(DeValue::Array(routes))) = (templates.is_empty(), root.get_mut("route").map(Spanned::get_mut)) {
        let mut filled: DeArray<'t> = [].into_iter().collect();
        let empty: DeArray<'t> = [].into_iter().collect();
        for route in std::mem::replace(routes, empty) {
            let leads_to = text(&route, "upstream").filter(|it| templates.contains_key(*it)).map(str::to_owned);
            let Some(template) = leads_to else {
                filled.push(route);
                continue;
            };
            filling.templates.insert(template.clone(), true);
            filling.service_tags.extend(text(&route, "service_tags").map(Arc::from));
            let (services, are_stand_ins) = of(&template);
            for service in services {
                let left_out = |why| filling.left_out(&template, &service, why);
                let made = routes_made_for(&route, &template, (&service, are_stand_ins), left_out);
                made.into_iter().for_each(|route| filled.push(route));
            }
        }
        *routes = filled;
    }
    filling
}

impl Filling {
    /// Once for a service: the first word is enough to look after it.
    fn left_out(&mut self, upstream: &str, service: &Service, why: String) {
        let is_told = |it: &LeftOut| it.upstream.as_str() == upstream && it.service.name == service.name;
        if self.left_out.last().is_some_and(is_told) {
            return;
        }
        self.left_out.push(LeftOut { upstream: upstream.into(), service: service.clone(), why });
    }
}

/// An upstream with `services`.
struct Template<'t> {
    table: Spanned<DeValue<'t>>,
    span: Range<usize>,
    settings: Vec<ServiceSetting>,
}

impl<'t> Template<'t> {
    fn of(name: &Spanned<Cow<'t, str>>, value: &Spanned<DeValue<'t>>) -> Option<Self> {
        let DeValue::Table(table) = value.get_ref() else { return None };
        let settings = match table.get("services")?.get_ref() {
            DeValue::Table(services) => services.get("settings").map(Spanned::get_ref),
            _ => None,
        };
        let listed = settings.and_then(DeValue::as_array).into_iter().flat_map(|all| all.iter());
        let words = listed.filter_map(|word| word.get_ref().as_str());
        let settings = words.filter_map(|word| ServiceSetting::WORDS.iter().find(|it| it.0 == word).map(|it| it.1));
        let settings = settings.collect();
        let mut table = value.clone();
        if let DeValue::Table(table) = table.get_mut() {
            table.remove("services");
        }
        Some(Self { table, span: name.span(), settings })
    }

    fn made_for(
        &self,
        service: &Service,
        numbers: &'t BTreeSet<String>,
        mut left_out: impl FnMut(String),
    ) -> Spanned<DeValue<'t>> {
        let mut made = self.table.clone();
        name_service(made.get_mut(), &service.name);
        let DeValue::Table(table) = made.get_mut() else { return made };
        for setting in &self.settings {
            let key = setting.word();
            let Some(value) = service.tag_value(&format!("{SETTING}{key}")) else { continue };
            match setting_value(*setting, value, numbers) {
                Some(value) => drop(table.insert(at(self.span.clone(), key.into()), at(self.span.clone(), value))),
                None => left_out(format!("{key} {:?} is not a value that a service may set", short(value))),
            }
        }
        made
    }
}

/// What a service says of itself, as the file would have it. It is a word or a number, and nothing else.
fn setting_value<'t>(setting: ServiceSetting, value: &str, numbers: &'t BTreeSet<String>) -> Option<DeValue<'t>> {
    match setting {
        ServiceSetting::Strategy => {
            let is_word = |c: u8| c.is_ascii_alphanumeric() || b"_-".contains(&c);
            (!value.is_empty() && value.bytes().all(is_word)).then(|| DeValue::String(Cow::Owned(value.to_owned())))
        }
        ServiceSetting::MaxInFlight | ServiceSetting::MaxConnections => {
            Some(DeValue::parse(numbers.get(value)?).ok()?.into_inner())
        }
    }
}

/// The routes to a service that a route to all of them stands for: one, or one for each of the service's tags where it says so.
fn routes_made_for<'t>(
    route: &Spanned<DeValue<'t>>,
    template: &str,
    (service, is_stand_in): (&Service, bool),
    mut left_out: impl FnMut(String),
) -> Vec<Spanned<DeValue<'t>>> {
    let Some(prefix) = text(route, "service_tags") else {
        return vec![route_made_for(route, template, service, None)];
    };
    // The bounds of this service, where its name is in them.
    let mut bounds = route.clone();
    name_service(bounds.get_mut(), &service.name);
    if is_stand_in {
        let said = TagRoute::stand_in(bounds.get_ref());
        return vec![route_made_for(route, template, service, Some((0, said)))];
    }
    let (mut made, mut all) = (Vec::new(), Vec::new());
    for tag in service.tags.iter().filter_map(|tag| tag.strip_prefix(prefix)) {
        match TagRoute::read(tag).and_then(|said| said.within(bounds.get_ref())) {
            // Two spellings of one route.
            Ok(said) if all.contains(&said) => {}
            Ok(said) => {
                made.push(route_made_for(route, template, service, Some((all.len(), said.clone()))));
                all.push(said);
            }
            Err(why) => left_out(format!("tag {:?}: {why}", short(tag))),
        }
    }
    made
}

fn route_made_for<'t>(
    route: &Spanned<DeValue<'t>>,
    template: &str,
    service: &Service,
    said: Option<(usize, TagRoute)>,
) -> Spanned<DeValue<'t>> {
    let mut made = route.clone();
    name_service(made.get_mut(), &service.name);
    let made_span = made.span();
    let DeValue::Table(table) = made.get_mut() else { return made };
    let mut set = |key: &'static str, value: DeValue<'t>| {
        let span = table.get(key).map_or_else(|| made_span.clone(), Spanned::span);
        table.insert(at(span.clone(), key.into()), at(span, value));
    };
    set("upstream", string(made_name(template, &service.name)));
    let number = said.as_ref().map(|(number, _)| *number).filter(|number| *number > 0);
    if let Some((_, said)) = said {
        said.put_into(route.span(), &mut set);
    }
    // A name that the file gives is one route's.
    let name = text(route, "name").map(|name| match name.contains(SERVICE) {
        true => name.replace(SERVICE, &service.name),
        false => made_name(name, &service.name),
    });
    match (name, number) {
        (Some(name), Some(number)) => set("name", string(format!("{name}#{}", number + 1))),
        (Some(name), None) => set("name", string(name)),
        (None, _) => {}
    }
    table.remove("service_tags");
    made
}

/// Puts the name of the service in place of what stands for it, in all texts.
fn name_service(value: &mut DeValue<'_>, name: &str) {
    match value {
        DeValue::String(text) if text.contains(SERVICE) => *text = Cow::Owned(named(text, name)),
        DeValue::Array(members) => members.iter_mut().for_each(|member| name_service(member.get_mut(), name)),
        DeValue::Table(table) => table.iter_mut().for_each(|(_, value)| name_service(value.get_mut(), name)),
        _ => {}
    }
}

/// A variable of the environment that is called `service` stays one.
fn named(text: &str, name: &str) -> String {
    let mut named = String::with_capacity(text.len() + name.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(SERVICE) {
        named.push_str(before);
        named.push_str(if before.ends_with('$') { SERVICE } else { name });
        rest = after;
    }
    named.push_str(rest);
    named
}

fn text<'v>(table: &'v Spanned<DeValue<'_>>, key: &str) -> Option<&'v str> {
    table.get_ref().as_table()?.get(key)?.get_ref().as_str()
}

fn string<'t>(text: String) -> DeValue<'t> {
    DeValue::String(Cow::Owned(text))
}

fn at<T>(span: Range<usize>, value: T) -> Spanned<T> {
    Spanned::new(span, value)
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests;
