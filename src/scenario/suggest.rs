//! The word that was probably meant.

#![forbid(unsafe_code)]

/// The candidate nearest to `word`, if near enough to be worth saying.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let folded = fold(word);
    candidates
        .into_iter()
        .map(|candidate| (distance(&folded, &fold(candidate)), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `readOnly`, `read-only` and `read_only` are the same to a reader.
fn fold(word: &str) -> Vec<char> {
    word.chars()
        .filter(|c| !matches!(c, '-' | '_' | ' '))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Insertions, deletions, substitutions and swaps of neighbours that turn one word into the other.
fn distance(a: &[char], b: &[char]) -> usize {
    let width = b.len() + 1;
    let mut rows: Vec<usize> = (0..width).collect();
    let mut above = vec![0; width];
    for (i, x) in a.iter().enumerate() {
        let two_above = std::mem::replace(&mut above, rows.clone());
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let swap = i > 0 && j > 0 && Some(x) == b.get(j - 1) && a.get(i - 1) == Some(y);
            let get = |r: &[usize], at: usize| r.get(at).copied().unwrap_or(usize::MAX - 1);
            let mut best = (get(&above, j) + usize::from(x != y))
                .min(get(&above, j + 1) + 1)
                .min(get(&row, j) + 1);
            if swap {
                best = best.min(get(&two_above, j - 1) + 1);
            }
            row.push(best);
        }
        rows = row;
    }
    rows.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let keys = ["memory", "cpu", "kernel", "disks", "read_only", "cache"];
        for (typed, meant) in [
            ("memroy", Some("memory")),
            ("Memory", Some("memory")),
            ("kernl", Some("kernel")),
            ("readOnly", Some("read_only")),
            ("disk", Some("disks")),
            ("quark", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, keys), meant, "{typed}");
        }
    }

    #[test]
    fn counts_edits() {
        let d = |a: &str, b: &str| distance(&fold(a), &fold(b));
        assert_eq!(
            (
                d("", "abc"),
                d("abc", "abc"),
                d("abc", "acb"),
                d("kitten", "sitting")
            ),
            (3, 0, 1, 3)
        );
    }
}
