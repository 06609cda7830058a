//! Alias patterns and misspelt names.

/// Whether `text` fits a shell pattern with `*`, `?` and `[a-z]` (fnmatch(3)), as module aliases are.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return true,
            None => None,
            Some(_) => text.get(t).and_then(|&byte| one(&pattern[p..], byte)),
        };
        match (step, retry) {
            (Some(length), _) => {
                p += length;
                t += 1;
            }
            // The last star takes one byte more.
            (None, Some((star, from))) if from < text.len() => {
                retry = Some((star, from + 1));
                (p, t) = (star + 1, from + 1);
            }
            (None, _) => return false,
        }
    }
}

/// The length of the pattern's first element if it fits the byte.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let end = pattern.iter().position(|&end| end == b']')?;
            let mut set = &pattern[1..end];
            let mut fits = false;
            while let [first, rest @ ..] = set {
                if let [b'-', last, rest @ ..] = rest {
                    fits |= (*first..=*last).contains(&byte);
                    set = rest;
                } else {
                    fits |= *first == byte;
                    set = rest;
                }
            }
            fits.then_some(end + 1)
        }
        literal => (*literal == byte).then_some(1),
    }
}

/// The up to three names most like `name`: few changes away, or with `name` inside.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let limit = (name.len() / 3).max(2);
    let mut close: Vec<(usize, &String)> = names
        .filter_map(|other| {
            let distance = distance(name, other);
            (distance <= limit || (name.len() > 3 && other.contains(name)))
                .then_some((distance, other))
        })
        .collect();
    close.sort();
    close.dedup();
    close
        .into_iter()
        .take(3)
        .map(|(_, name)| name.clone())
        .collect()
}

/// Levenshtein's distance.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.bytes().enumerate() {
            let substituted = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}
