//! Sets of byte ranges, for knowing what is stale.

use std::ops::Range;

/// `from` without everything in `holes` (in any order).
pub(super) fn subtract(from: &[Range<usize>], holes: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut holes: Vec<_> = holes
        .iter()
        .filter(|hole| !hole.is_empty())
        .cloned()
        .collect();
    holes.sort_by_key(|hole| hole.start);
    let mut rest = Vec::new();
    for range in from {
        let mut at = range.start;
        for hole in holes
            .iter()
            .filter(|hole| hole.start < range.end && hole.end > range.start)
        {
            if hole.start > at {
                rest.push(at..hole.start);
            }
            at = at.max(hole.end);
        }
        if at < range.end {
            rest.push(at..range.end);
        }
    }
    rest
}

/// Do they share a byte?
pub(super) fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::single_range_in_vec_init)]
    fn subtracts() {
        assert_eq!(subtract(&[0..10], &[]), [0..10]);
        assert_eq!(subtract(&[0..10], &[0..10]), []);
        assert_eq!(subtract(&[0..10], &[5..6, 2..3]), [0..2, 3..5, 6..10]);
        assert_eq!(subtract(&[0..10, 20..30], &[8..25, 9..9]), [0..8, 25..30]);
        assert_eq!(subtract(&[5..10], &[0..7, 6..8]), [8..10]);
        assert!(overlap(&(0..2), &(1..5)) && !overlap(&(0..2), &(2..5)));
    }
}
