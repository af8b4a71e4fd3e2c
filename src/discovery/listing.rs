//! What a registry lists: its services, by name.

use std::pin::Pin;

use super::DiscoveryError;
use crate::config::Service;

/// What a registry lists.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The services, by name.
    pub(super) services: Vec<Service>,
    /// What is wrong with those that were left out, a word on each.
    pub(super) refused: Vec<String>,
}

impl Listing {
    /// Of names with their tags. One with a name that cannot be used costs itself alone.
    pub(super) fn of<N: AsRef<str>, T: AsRef<str>>(all: impl IntoIterator<Item = (N, Vec<T>)>) -> Self {
        let mut listing = Self::default();
        for (name, tags) in all {
            match Service::new(name.as_ref(), tags.iter().map(AsRef::as_ref)) {
                Ok(service) => listing.services.push(service),
                Err(why) => listing.refused.push(why),
            }
        }
        listing.services.sort_unstable();
        listing.services.dedup_by(|a, b| a.name == b.name);
        listing
    }
}

/// What asking for a list comes to.
pub(super) type Listed<'a> = Pin<Box<dyn Future<Output = Result<Listing, DiscoveryError>> + Send + 'a>>;

/// A source that lists services.
pub(super) trait ListsServices: Send {
    /// Waits until there is something to say, at first for the first time, and says all services. It may be dropped before it is ready.
    fn next(&mut self) -> Listed<'_>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_sorted_and_what_cannot_be_a_name_costs_itself_alone() {
        let all = [("users", vec!["b", "a"]), ("../x", vec![]), ("orders", vec![]), ("users", vec!["c"])];
        let listing = Listing::of(all);
        let names: Vec<_> = listing.services.iter().map(|it| &*it.name).collect();
        assert_eq!(names, ["orders", "users"]);
        assert_eq!(listing.refused.len(), 1);
    }
}
