//! Machine names and the patterns that descriptors have for them.

/// Names that stand for the newest version of a family (QEMU, `-machine help`: "alias of"), and how the names of that
/// family start. Which version is the newest only QEMU knows.
const ALIASES: [(&str, &str); 3] = [("pc", "pc-i440fx-"), ("q35", "pc-q35-"), ("virt", "virt-")];

/// Whether `pattern` speaks of `machine`: a concrete name such as `pc-q35-8.2`, or an alias such as `q35`, whose
/// version is not known, so that only a pattern that leaves the version open fits.
pub(super) fn speaks_of(pattern: &str, machine: &str) -> bool {
    let pattern = pieces(pattern);
    let literally: Vec<_> = machine.chars().map(Piece::One).collect();
    if overlap(&pattern, &literally) {
        return true;
    }
    let Some((_, family)) = ALIASES.iter().find(|(alias, _)| *alias == machine) else {
        return false;
    };
    let open = pattern.iter().any(|piece| !matches!(piece, Piece::One(_)));
    let mut family: Vec<_> = family.chars().map(Piece::One).collect();
    family.push(Piece::Many);
    open && overlap(&pattern, &family)
}

/// A piece of a glob pattern.
#[derive(Debug, PartialEq)]
enum Piece {
    /// This character.
    One(char),
    /// Any character.
    Any,
    /// Any number of any characters.
    Many,
    /// One of these ranges, or none of them.
    Class {
        ranges: Vec<(char, char)>,
        not: bool,
    },
}

impl Piece {
    /// Whether some character is in both of two pieces that stand for one character each.
    fn meets(&self, other: &Piece) -> bool {
        match (self, other) {
            (Piece::One(a), Piece::One(b)) => a == b,
            (Piece::Class { ranges, not }, Piece::One(c))
            | (Piece::One(c), Piece::Class { ranges, not }) => {
                ranges.iter().any(|(from, to)| from <= c && c <= to) != *not
            }
            // Only a pattern has classes, and only one of the two is a pattern.
            _ => true,
        }
    }
}

fn pieces(pattern: &str) -> Vec<Piece> {
    let mut out = Vec::new();
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        out.push(match c {
            '*' => Piece::Many,
            '?' => Piece::Any,
            '[' => match class(rest) {
                Some((class, after)) => {
                    rest = after;
                    class
                }
                None => Piece::One('['),
            },
            c => Piece::One(c),
        });
    }
    out
}

/// The class whose opening bracket was just read, and what comes after it. Without a closing bracket it is none.
fn class(text: &str) -> Option<(Piece, &str)> {
    let (not, text) = match text.strip_prefix(['!', '^']) {
        Some(text) => (true, text),
        None => (false, text),
    };
    // A bracket right at the start is one of the characters.
    let first = text.chars().next()?.len_utf8();
    let end = text.get(first..)?.find(']')? + first;
    let mut characters = text.get(..end)?.chars().peekable();
    let mut ranges = Vec::new();
    while let Some(from) = characters.next() {
        let mut ahead = characters.clone();
        match (ahead.next(), ahead.next()) {
            (Some('-'), Some(to)) => {
                characters = ahead;
                ranges.push((from, to));
            }
            _ => ranges.push((from, from)),
        }
    }
    Some((Piece::Class { ranges, not }, text.get(end + 1..)?))
}

/// Whether some text fits both patterns. It takes time in proportion to the product of their lengths.
fn overlap(a: &[Piece], b: &[Piece]) -> bool {
    // fits[j]: what is left of `a` from the current piece on overlaps with b[j..].
    let rest_may_be_empty = |b: &[Piece]| b.iter().all(|piece| *piece == Piece::Many);
    let mut fits: Vec<bool> = (0..=b.len())
        .map(|j| b.get(j..).is_some_and(rest_may_be_empty))
        .collect();
    for piece in a.iter().rev() {
        let many = *piece == Piece::Many;
        // The end of `b`: only a star has nothing to stand for.
        let mut after = fits.last().copied().unwrap_or(false);
        let mut current = many && after;
        if let Some(last) = fits.last_mut() {
            *last = current;
        }
        for (fit, other) in fits.iter_mut().rev().skip(1).zip(b.iter().rev()) {
            // `current` is this row at j + 1, `after` the next row at j + 1, `*fit` the next row at j.
            let now = match (many, *other == Piece::Many) {
                (true, _) => *fit || current,
                (false, true) => current || *fit,
                (false, false) => after && piece.meets(other),
            };
            after = std::mem::replace(fit, now);
            current = now;
        }
    }
    fits.first().copied().unwrap_or(false)
}
