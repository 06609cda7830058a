//! Words of a kernel command line, set where they stand and added where they do not; everything else stays as it is.

#![forbid(unsafe_code)]

use std::ops::Range;

/// The words of a text, as byte ranges. What begins within quotation marks is part of another word's value.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = None;
    let mut quoted = false;
    for (at, c) in text.char_indices() {
        if c.is_ascii_whitespace() && !quoted {
            found.extend(start.take().map(|s| s..at));
        } else {
            start.get_or_insert(at);
        }
        quoted ^= c == '"';
    }
    found.extend(start.map(|s| s..text.len()));
    found
}

/// Whether a word sets this parameter. The kernel takes `-` for `_` in names (kernel/params.c, `dash2underscore`).
fn sets(word: &str, name: &str) -> bool {
    let (key, _) = word.split_once('=').unwrap_or((word, ""));
    key.replace('-', "_") == name.replace('-', "_")
}

/// The value that holds of a parameter: the last one.
pub(super) fn value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let last = words(text)
        .into_iter()
        .filter_map(|range| text.get(range))
        .rfind(|word| sets(word, name))?;
    Some(last.split_once('=').map_or("", |(_, value)| value))
}

/// Gives a parameter that is there another value. Of several the last holds, and stays. `None`: it is not there.
pub(super) fn replace(text: &str, name: &str, value: &str) -> Option<String> {
    let all = words(text);
    let mut mine: Vec<&Range<usize>> = all
        .iter()
        .filter(|range| text.get((*range).clone()).is_some_and(|w| sets(w, name)))
        .collect();
    let last = mine.pop()?;
    let wanted = format!("{name}={value}");
    let same = |word: &str| word.split_once('=').is_some_and(|(_, v)| v == value);
    let mut out = text.to_owned();
    if !text.get(last.clone()).is_some_and(same) {
        out.replace_range(last.clone(), &wanted);
    }
    for range in mine.into_iter().rev() {
        if !text.get(range.clone()).is_some_and(same) {
            // With the blanks after it.
            let rest = text.get(range.end..).unwrap_or_default();
            let blanks = rest.len() - rest.trim_ascii_start().len();
            out.replace_range(range.start..range.end + blanks, "");
        }
    }
    Some(out)
}

/// Adds words at the end.
pub(super) fn append(text: &str, added: &[String]) -> String {
    let added = added.join(" ");
    let kept = text.trim_ascii_end();
    let end = text.get(kept.len()..).unwrap_or_default();
    match (kept.is_empty(), added.is_empty()) {
        (_, true) => text.to_owned(),
        (true, false) => added,
        (false, false) => format!("{kept} {added}{end}"),
    }
}

/// Sets all of these in one line.
pub(super) fn set(text: &str, wanted: &[(&str, &str)]) -> String {
    let mut text = text.to_owned();
    let mut missing = Vec::new();
    for (name, value) in wanted {
        match replace(&text, name, value) {
            Some(replaced) => text = replaced,
            None => missing.push(format!("{name}={value}")),
        }
    }
    append(&text, &missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &[(&str, &str)] = &[("mem_encrypt", "on"), ("kvm_amd.sev", "1")];

    #[test]
    fn words_are_set_once_and_the_order_stays() {
        for (before, after) in [
            ("", "mem_encrypt=on kvm_amd.sev=1"),
            (
                "quiet  splash",
                "quiet  splash mem_encrypt=on kvm_amd.sev=1",
            ),
            ("quiet ", "quiet mem_encrypt=on kvm_amd.sev=1 "),
            (
                "ro kvm_amd.sev=1 quiet",
                "ro kvm_amd.sev=1 quiet mem_encrypt=on",
            ),
            (
                "kvm-amd.sev=1 mem_encrypt=on",
                "kvm-amd.sev=1 mem_encrypt=on",
            ),
            (
                "mem_encrypt=off x kvm_amd.sev=0 y",
                "mem_encrypt=on x kvm_amd.sev=1 y",
            ),
            (
                "mem_encrypt=off a mem_encrypt=on kvm_amd.sev=1",
                "a mem_encrypt=on kvm_amd.sev=1",
            ),
            (
                "mem_encrypt=on a mem_encrypt=off",
                "mem_encrypt=on a mem_encrypt=on kvm_amd.sev=1",
            ),
            (
                "kvm_amd.sev_es=0 xmem_encrypt=off",
                "kvm_amd.sev_es=0 xmem_encrypt=off mem_encrypt=on kvm_amd.sev=1",
            ),
            (
                "d=\\\"a mem_encrypt=off b\\\" z",
                "d=\\\"a mem_encrypt=off b\\\" z mem_encrypt=on kvm_amd.sev=1",
            ),
            ("mem_encrypt kvm_amd.sev=1", "mem_encrypt=on kvm_amd.sev=1"),
        ] {
            assert_eq!(set(before, WANTED), after, "{before:?}");
            assert_eq!(set(after, WANTED), after, "twice: {before:?}");
        }
    }

    #[test]
    fn the_last_value_holds() {
        assert_eq!(value("a=1 b a=2", "a"), Some("2"));
        assert_eq!(value("a-b=1", "a_b"), Some("1"));
        assert_eq!(value("b", "b"), Some(""));
        assert_eq!(value("ab=1", "a"), None);
    }
}
