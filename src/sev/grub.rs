//! /etc/default/grub: assignments of a shell, of which one gets more words. Nothing is evaluated, and every other byte
//! stays.

#![forbid(unsafe_code)]

use std::ops::Range;

use super::shell::{self, Word};
use super::words;

/// An assignment of a variable.
#[derive(Debug, PartialEq, Eq)]
struct Assignment {
    /// What is between the quotation marks, or the bare word.
    value: Range<usize>,
    /// The marks; `None`: there are none.
    quote: Option<char>,
    /// It is one line with one value, outside of anything else.
    plain: bool,
    /// It adds to what was before: `+=`, or the variable in its own value.
    adds: bool,
}

/// The assignments of `name`, in order.
fn assignments(text: &str, name: &str) -> Vec<Assignment> {
    let words = shell::words(text).0;
    words
        .into_iter()
        .filter_map(|word| assignment(text, &word, name))
        .collect()
}

fn assignment(text: &str, word: &Word, name: &str) -> Option<Assignment> {
    let rest = text.get(word.at..)?.strip_prefix(name)?;
    let (plus, rest) = match rest.strip_prefix("+=") {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix('=')?),
    };
    let rest = rest.split('\n').next()?.trim_end_matches('\r');
    let at = word.at + name.len() + if plus { 2 } else { 1 };
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''));
    let (value, after) = match quote {
        Some(mark) => {
            let inner = rest.get(1..)?;
            match closing(inner, mark) {
                Some(end) => (at + 1..at + 1 + end, inner.get(end + 1..)?),
                // It goes on in the next line.
                None => {
                    return Some(Assignment {
                        value: at + 1..at + rest.len(),
                        quote,
                        plain: false,
                        adds: plus,
                    });
                }
            }
        }
        None => {
            let end = rest.find([' ', '\t', ';', '#']).unwrap_or(rest.len());
            (at..at + end, rest.get(end..)?)
        }
    };
    let inner = text.get(value.clone())?;
    let tail = after.trim_start_matches([' ', '\t']);
    let ends = tail.is_empty() || (tail.starts_with('#') && tail.len() != after.len());
    let literal = match quote {
        Some('\'') => true,
        // A word in it may be one of a command.
        Some(_) => !inner.contains("$(") && !inner.contains('`'),
        None => !inner.contains(['$', '`', '\\', '"', '\'']),
    };
    let own = quote != Some('\'')
        && (inner.contains(&format!("${{{name}}}"))
            || inner.match_indices(&format!("${name}")).any(|(at, found)| {
                let next = inner.get(at + found.len()..).and_then(|r| r.chars().next());
                next.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_')
            }));
    Some(Assignment {
        plain: ends && literal && word.first && !plus,
        value,
        quote,
        adds: plus || own,
    })
}

/// Where the mark that ends a value is.
fn closing(text: &str, mark: char) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(at, c)| {
        if mark == '"' && !escaped && c == '\\' {
            escaped = true;
            return None;
        }
        let ends = c == mark && !escaped;
        escaped = false;
        ends.then_some(at)
    })
}

/// What a file does to a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing, or it adds to it.
    Keeps,
    /// What was before is gone.
    Replaces,
}

/// What a file that is read later does to a variable.
pub(super) fn effect(text: &str, name: &str) -> Effect {
    match assignments(text, name).iter().any(|a| !a.adds) {
        true => Effect::Replaces,
        false => Effect::Keeps,
    }
}

/// The value of a boolean such as `GRUB_ENABLE_BLSCFG`.
pub(super) fn is_true(text: &str, name: &str) -> Option<bool> {
    let last = assignments(text, name).pop()?;
    Some(text.get(last.value)? == "true")
}

/// All that is assigned to a variable, for a look at its words.
pub(super) fn values(text: &str, name: &str) -> String {
    let all = assignments(text, name);
    // What was before the last one that does not add is gone.
    let from = all.iter().rposition(|a| !a.adds).unwrap_or(0);
    let values: Vec<&str> = all
        .iter()
        .skip(from)
        .filter_map(|a| text.get(a.value.clone()))
        .collect();
    values.join(" ")
}

/// Why a file is not edited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotPlain;

/// The file with the words set in a variable, the last assignment of it that holds; a variable that is not there is
/// added.
pub(super) fn set(
    text: &str,
    name: &str,
    wanted: &[(&str, &str)],
    add: bool,
) -> Result<String, NotPlain> {
    let all = assignments(text, name);
    let Some(last) = all.iter().rfind(|a| !a.adds).or(all.last()) else {
        if !add {
            return Ok(text.to_owned());
        }
        if !shell::words(text).1 {
            return Err(NotPlain);
        }
        let newline = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        return Ok(format!(
            "{text}{newline}{name}=\"{}\"\n",
            words::set("", wanted)
        ));
    };
    let old = text.get(last.value.clone()).ok_or(NotPlain)?;
    let new = match add {
        true => words::set(old, wanted),
        false => wanted.iter().fold(old.to_owned(), |line, (name, value)| {
            words::replace(&line, name, value).unwrap_or(line)
        }),
    };
    if new == old {
        return Ok(text.to_owned());
    }
    if !last.plain {
        return Err(NotPlain);
    }
    let quoted = match last.quote {
        Some(_) => new,
        None => format!("\"{new}\""),
    };
    let mut out = text.to_owned();
    out.replace_range(last.value.clone(), &quoted);
    Ok(out)
}

/// The file with a last line that adds the words, whatever was before. Not where its end is within something else.
pub(super) fn append(text: &str, name: &str, wanted: &[(&str, &str)]) -> Result<String, NotPlain> {
    if !shell::words(text).1 {
        return Err(NotPlain);
    }
    let newline = if text.is_empty() || text.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let words = words::set("", wanted);
    Ok(format!("{text}{newline}{name}=\"${name} {words}\"\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &[(&str, &str)] = &[("mem_encrypt", "on"), ("kvm_amd.sev", "1")];
    const WORDS: &str = "mem_encrypt=on kvm_amd.sev=1";

    #[test]
    fn one_value_changes_and_no_other_byte() {
        for (before, after) in [
            ("A=\"quiet\"\n", "A=\"quiet {}\"\n"),
            ("A=\"\"\n", "A=\"{}\"\n"),
            ("A='quiet'  # why\nB=\"x\"", "A='quiet {}'  # why\nB=\"x\""),
            ("A=quiet\n", "A=\"quiet {}\"\n"),
            ("A=\n", "A=\"{}\"\n"),
            ("export A=\"x\"\n", "export A=\"x {}\"\n"),
            (
                "#A=\"no\"\nAB=\"x\"\nA=\"y\"\r\n",
                "#A=\"no\"\nAB=\"x\"\nA=\"y {}\"\r\n",
            ),
            ("A=\"one\"\nA=\"two\"\n", "A=\"one\"\nA=\"two {}\"\n"),
            ("A=\"d=\\\"a b\\\"\"\n", "A=\"d=\\\"a b\\\" {}\"\n"),
            ("A=\"x\"\nA=\"$A y\"\n", "A=\"x {}\"\nA=\"$A y\"\n"),
            ("A=\"x\"\nA+=\" y\"\n", "A=\"x {}\"\nA+=\" y\"\n"),
            ("A=\"$AB y\"\n", "A=\"$AB y {}\"\n"),
            ("B=1", "B=1\nA=\"{}\"\n"),
            ("", "A=\"{}\"\n"),
            (
                "A=\"q mem_encrypt=off\"\n",
                "A=\"q mem_encrypt=on kvm_amd.sev=1\"\n",
            ),
        ] {
            let after = after.replace("{}", WORDS);
            assert_eq!(
                set(before, "A", WANTED, true),
                Ok(after.clone()),
                "{before:?}"
            );
            assert_eq!(
                set(&after, "A", WANTED, true),
                Ok(after),
                "twice: {before:?}"
            );
        }
    }

    #[test]
    fn what_only_a_shell_understands_is_left_alone() {
        for text in [
            "A=\"x \\\n y\"\n",
            "A=\"x\n",
            "A=$(cat /x)\n",
            "A=`cat`\n",
            "if x; then\n  A=\"x\"\nfi\n",
            "A=\"x\"\"y\"\n",
            "A=\"x\"; B=1\n",
            "A=x\\ y\n",
            "B=1; A=\"x\"\n",
            "test -e /x && A=x\n",
            "test -e /x && A=x || A=y\n",
            "readonly A=\"x\"\n",
            "declare -x A=x\n",
            "if x; then\nA=\"x\"\nelse\nA=y\nfi\n",
            "f() {\nA=x\n}\n",
            "case $x in\na)\nA=x\n;;\nesac\n",
            "B=1 \\\nA=x\n",
            "cat <<E\nE\nA=x\n",
        ] {
            assert_eq!(set(text, "A", WANTED, true), Err(NotPlain), "{text:?}");
        }
    }

    /// Text of another variable, of a comment.
    #[test]
    fn what_only_looks_like_an_assignment_is_none() {
        for text in [
            "B=\"\nA=no\n\"\n",
            "B='x\nA=no\n'\n",
            "# A=no\n",
            "B=1 # A=no; A=no\n",
            "BA=1 A_=2\n",
        ] {
            let after = format!("{text}A=\"{WORDS}\"\n");
            assert_eq!(set(text, "A", WANTED, true), Ok(after), "{text:?}");
        }
    }

    #[test]
    fn a_last_line_adds_whatever_was_before() {
        for text in [
            "A=\"x \\\n y\"\n",
            "A=$(cat /x)\n",
            "if x; then\nA=x\nfi",
            "case $x in (a) A=1;; b) A=2;; esac\n",
        ] {
            let after = append(text, "A", WANTED).unwrap();
            let added = after.strip_prefix(text.trim_end()).unwrap();
            assert_eq!(added, format!("\nA=\"$A {WORDS}\"\n"), "{text:?}");
            // It is found again.
            assert!(values(&after, "A").ends_with(WORDS), "{text:?}");
        }
        for text in ["A=\"x\n", "B='\n", "if x\n", "cat <<E\nx\n", "A=x\\\n"] {
            assert_eq!(append(text, "A", WANTED), Err(NotPlain), "{text:?}");
        }
    }

    #[test]
    fn what_is_read_later_keeps_or_replaces() {
        for (text, effect_) in [
            ("A=\"$A quiet\"\n", Effect::Keeps),
            ("A=\"${A} quiet\"\n", Effect::Keeps),
            ("A+=\" x\"\n", Effect::Keeps),
            ("B=1\n", Effect::Keeps),
            ("A='$A'\n", Effect::Replaces),
            ("A=\"$ABC\"\n", Effect::Replaces),
            ("A=\"x\"\nA=\"$A y\"\n", Effect::Replaces),
        ] {
            assert_eq!(effect(text, "A"), effect_, "{text:?}");
        }
        assert_eq!(values("A=\"x\"\nA=\"y\"\nA+=\" z\"\n", "A"), "y  z");
        assert_eq!(is_true("T=true\n", "T"), Some(true));
        assert_eq!(is_true("T=\"false\"\n", "T"), Some(false));
        assert_eq!(is_true("", "T"), None);
    }
}
