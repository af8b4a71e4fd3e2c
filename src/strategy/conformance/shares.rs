/// Asserts that random counts fit these shares: chi-square, with a chance of one in a million that right ones do not.
/// What has a share of 0 must not come at all.
pub(in crate::strategy) fn assert_shares(counts: &[u64], shares: &[f64], what: &str) {
    // Below this the statistic is not distributed as chi-square; rare cells are put together.
    const EXPECTED_MIN: f64 = 10.0;
    let picks: u64 = counts.iter().sum();
    let whole: f64 = shares.iter().sum();
    let mut cells: Vec<(f64, f64)> = Vec::new();
    let mut rare = (0.0, 0.0);
    for (&count, &share) in counts.iter().zip(shares) {
        assert!(share > 0.0 || count == 0, "{what}: {count} where nothing may come: {counts:?} for {shares:?}");
        let cell = (count as f64, picks as f64 * share / whole);
        if cell.1 >= EXPECTED_MIN {
            cells.push(cell);
        } else {
            rare = (rare.0 + cell.0, rare.1 + cell.1);
        }
    }
    match cells.first_mut() {
        Some(first) if rare.1 < EXPECTED_MIN => *first = (first.0 + rare.0, first.1 + rare.1),
        _ => cells.push(rare),
    }
    let statistic: f64 = cells.iter().map(|(count, expected)| (count - expected).powi(2) / expected).sum();
    let limit = chi_square_limit(cells.len() - 1);
    assert!(statistic <= limit, "{what}: chi-square {statistic:.1} above {limit:.1}: {counts:?} for {shares:?}");
}

/// What chi-square exceeds once in a million, by Wilson and Hilferty's cube. A little high for one or two degrees of
/// freedom.
fn chi_square_limit(freedom: usize) -> f64 {
    const ONE_IN_A_MILLION: f64 = 4.753_424;
    if freedom == 0 {
        // One cell holds everything, whatever the rounding.
        return 1e-6;
    }
    let freedom = freedom as f64;
    let part = 2.0 / (9.0 * freedom);
    freedom * (1.0 - part + ONE_IN_A_MILLION * part.sqrt()).powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against the exact quantiles, from the incomplete gamma function: never below, and close from a few degrees on.
    #[test]
    fn the_limit_is_the_quantile() {
        for (freedom, quantile, most) in [(1, 23.928, 1.15), (2, 27.631, 1.1), (9, 44.811, 1.03), (80, 155.081, 1.01)] {
            let limit = chi_square_limit(freedom);
            assert!(limit >= quantile && limit <= quantile * most, "{limit} for {quantile} at {freedom}");
        }
    }

    #[test]
    fn fair_counts_fit() {
        assert_shares(&[1_010, 990, 2_005], &[1.0, 1.0, 2.0], "fair");
        assert_shares(&[0, 100_000, 2], &[0.0, 1.0, 1e-5], "fair with rare ones");
    }

    #[test]
    #[should_panic(expected = "chi-square")]
    fn unfair_counts_do_not() {
        assert_shares(&[1_200, 1_000, 1_800], &[1.0, 1.0, 2.0], "unfair");
    }

    #[test]
    #[should_panic(expected = "where nothing may come")]
    fn what_may_not_come_does_not_fit() {
        assert_shares(&[1, 1_000], &[0.0, 1.0], "impossible");
    }
}
