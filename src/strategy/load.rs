use std::cmp::Ordering;

use crate::backend::Backend;

/// How busy a backend would be with one request more, for its weight: `(in_flight + 1) / weight`.
///
/// The one more is what lets weights count among idle backends. It also means that a light load stays with the
/// heaviest: one of weight 1 gets its first request when one of weight 3 has three.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    requests: u64,
    weight: u64,
}

impl Load {
    /// As it stands now; another worker may change it any time.
    pub(super) fn of(backend: &Backend) -> Self {
        Self { requests: u64::from(backend.state.in_flight()) + 1, weight: backend.weight.into() }
    }

    /// Compares without dividing. 33 and 16 bits: the products fit.
    pub(super) fn compare(self, other: Self) -> Ordering {
        (self.requests * other.weight).cmp(&(other.requests * self.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_compare_as_fractions() {
        let load = |requests, weight| Load { requests, weight };
        assert_eq!(load(1, 1).compare(load(1, 2)), Ordering::Greater);
        assert_eq!(load(3, 3).compare(load(1, 1)), Ordering::Equal);
        assert_eq!(load(2, 3).compare(load(3, 4)), Ordering::Less);
        let most = u64::from(u32::MAX) + 1;
        assert_eq!(load(most, 65_535).compare(load(most, 65_534)), Ordering::Less);
    }
}
