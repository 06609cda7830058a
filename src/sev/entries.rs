//! Boot loader entries (UAPI.1, type #1): the words in their options.

#![forbid(unsafe_code)]

use super::words;

/// What becomes of an entry.
pub(super) enum Options {
    /// There are none, or they are as they should be.
    None,
    /// They come from a variable.
    Variable,
    /// The entry with its options.
    Set(String),
}

/// A boot loader entry with the words in its options: several lines of them are one line (UAPI.1).
pub(super) fn with_options(text: &str, wanted: &[(&'static str, &'static str)]) -> Options {
    let key = |line: &str| line.split_ascii_whitespace().next().map(str::to_owned);
    let is_options = |line: &str| key(line).as_deref() == Some("options");
    let has = |name: &str| text.lines().any(|line| key(line).as_deref() == Some(name));
    // Another system's loader, or a shell of the firmware: its options are no kernel's.
    if has("efi") && !has("linux") {
        return Options::None;
    }
    let options: Vec<&str> = text.lines().filter(|l| is_options(l)).collect();
    let all = options.join(" ");
    if options.is_empty() {
        if !has("linux") {
            return Options::None;
        }
        let newline = if text.ends_with('\n') { "" } else { "\n" };
        let line = words::set("", wanted);
        return Options::Set(format!("{text}{newline}options {line}\n"));
    }
    if all.contains("$kernelopts") {
        return Options::Variable;
    }
    let missing: Vec<(&str, &str)> = wanted
        .iter()
        .filter(|(name, _)| words::value(&all, name).is_none())
        .copied()
        .collect();
    let mut left = options.len();
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let body = line.trim_end_matches(['\n', '\r']);
        if !is_options(body) {
            out += line;
            continue;
        }
        left -= 1;
        let mut new = wanted.iter().fold(body.to_owned(), |line, (name, value)| {
            words::replace(&line, name, value).unwrap_or(line)
        });
        if left == 0 {
            new = words::set(&new, &missing);
        }
        out += &new;
        out += line.get(body.len()..).unwrap_or_default();
    }
    Options::Set(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entrys_options_are_set() {
        let wanted = [("mem_encrypt", "on"), ("kvm_amd.sev", "1")];
        let set = |text: &str| match with_options(text, &wanted) {
            Options::Set(new) => new,
            Options::None => "none".into(),
            Options::Variable => "variable".into(),
        };
        let entry = "title Fedora\noptions root=/dev/x ro $tuned_params\ninitrd /i\n";
        let after = entry.replace(
            "$tuned_params",
            "$tuned_params mem_encrypt=on kvm_amd.sev=1",
        );
        assert_eq!((set(entry), set(&after)), (after.clone(), after));
        assert_eq!(
            set("options a mem_encrypt=off\noptions b"),
            "options a mem_encrypt=on\noptions b kvm_amd.sev=1"
        );
        assert_eq!(set("options $kernelopts\n"), "variable");
        assert_eq!(set("title x\noptionsx y\n"), "none");
        // Only a kernel gets a kernel's words.
        assert_eq!(
            set("title W\nefi /EFI/Microsoft/Boot/bootmgfw.efi\noptions x\n"),
            "none"
        );
        for (before, after) in [
            ("linux /v", "linux /v\noptions {}\n"),
            ("linux /v\noptions\n", "linux /v\noptions {}\n"),
            ("linux /v\n  options a\n", "linux /v\n  options a {}\n"),
            (
                "linux /v\n# options a\n",
                "linux /v\n# options a\noptions {}\n",
            ),
        ] {
            let after = after.replace("{}", "mem_encrypt=on kvm_amd.sev=1");
            assert_eq!(set(before), after, "{before:?}");
        }
    }
}
