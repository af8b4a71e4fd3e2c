//! Methods of a route.

use http::Method;
use serde_json::json;

use crate::config::check::Check;
use crate::config::difference::Changes;
use crate::config::error::Problem;
use crate::config::field::Field;
use crate::config::form::{About, Form, Literal};
use crate::config::json_tree::Tree;
use crate::config::report::Place;
use crate::config::visibility::{Kind, Word as Text};

use super::{refuse_empty, some};

/// Methods of which any matches.
pub(crate) struct Methods;

impl Form<Vec<Method>> for Methods {
    type Written = Vec<Field<Text>>;

    fn read(&self, check: &Check<'_>, place: Place, written: &Self::Written) -> Option<Vec<Method>> {
        refuse_empty(check, place, written, "methods");
        warn_of_refused(check, written);
        let mut methods = Vec::new();
        for (place, text) in written.iter().filter_map(Field::given) {
            let upper = text.to_ascii_uppercase();
            match Method::from_bytes(text.as_bytes()) {
                Ok(method) if upper == text.as_str() => {
                    if methods.contains(&method) {
                        check.add(place, Problem::error(format!("method {} is there twice", check.quote(place, text))));
                    }
                    methods.push(method);
                }
                _ => {
                    let suggestion = Method::from_bytes(upper.as_bytes()).is_ok().then_some(upper);
                    let problem = Problem::error(format!("{} is not a method", check.quote(place, text)));
                    check.add(place, problem.expected("capitals, such as \"GET\"").suggest(suggestion));
                }
            }
        }
        Some(methods)
    }

    fn absent(&self, _: &Check<'_>, _: Literal) -> Vec<Method> {
        Vec::new()
    }

    fn show(&self, value: &Vec<Method>) -> Option<Tree> {
        some(value.iter().map(|method| method.as_str().into()).collect())
    }

    fn tell(&self, value: &Vec<Method>) -> String {
        value.iter().map(Method::as_str).collect::<Vec<_>>().join(", ")
    }

    fn compare(&self, changes: &mut Changes, table: &str, words: &str, old: &Vec<Method>, new: &Vec<Method>) {
        let texts = |methods: &[Method]| methods.iter().map(ToString::to_string).collect::<Vec<_>>();
        changes.told_members(Kind::Plain, &format!("{table}{words}"), &texts(old), &texts(new));
    }

    fn about(&self) -> About {
        let method = json!({ "type": "string", "pattern": "^[^a-z ]+$|\\$\\{" });
        About::new::<Text>("an array of methods", json!({ "type": "array", "minItems": 1, "items": method }))
    }
}

/// Both are refused before a route is looked for.
fn warn_of_refused(check: &Check<'_>, written: &[Field<Text>]) {
    let is_refused = |text: &Text| matches!(text.as_str(), "CONNECT" | "TRACE");
    let mut given = written.iter().filter_map(Field::given).peekable();
    let first = given.peek().map(|(place, _)| *place);
    if let (Some(place), true) = (first, given.all(|(_, text)| is_refused(text))) {
        let problem = Problem::warning("never reached: CONNECT and TRACE are refused before a route is looked for");
        check.add(place, problem.expected("other methods, or not this route"));
    }
}
