//! What a route matches: hosts, paths, methods, headers and parameters of the query.

use super::check::Check;
use super::error::Problem;
use super::json_tree::Tree;
use super::report::Place;

mod hosts;
mod paths;
mod methods;
mod values;

pub use hosts::HostPattern;
pub use paths::{PathExpression, PathPattern};
pub use values::{HeaderMatch, QueryMatch, ValueMatch};

pub(crate) use hosts::Hosts;
pub(crate) use methods::Methods;
pub(crate) use paths::{MatchedPath, PathRegex, PlainPath, Prefix};
pub(crate) use values::{HeaderMatches, QueryMatches};

/// `None` for an empty list: a key that is left out means the same as one without values.
fn some(members: Vec<Tree>) -> Option<Tree> {
    (!members.is_empty()).then_some(Tree::List(members))
}

pub(super) fn refuse_empty<T>(check: &Check<'_>, place: Place, members: &[T], things: &str) {
    if members.is_empty() {
        let expected = format!("one at least, or no {things} key for all of them");
        check.add(place, Problem::error("an empty array, which nothing would match").expected(expected));
    }
}
