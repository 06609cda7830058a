//! Lines of the shell: where commands end, and which words they have.

#![forbid(unsafe_code)]

/// The commands of a text as `-c` takes it: they end at `;` and at a newline, neither within quotes.
pub(super) fn commands(text: &str) -> Vec<String> {
    let mut out = vec![String::new()];
    let mut quote = None;
    let mut escaped = false;
    for c in text.chars() {
        if !escaped && quote.is_none() && matches!(c, ';' | '\n') {
            out.push(String::new());
            continue;
        }
        match quote {
            _ if escaped => escaped = false,
            _ if c == '\\' && quote != Some('\'') => escaped = true,
            None if matches!(c, '"' | '\'') => quote = Some(c),
            Some(q) if q == c => quote = None,
            _ => {}
        }
        if let Some(last) = out.last_mut() {
            last.push(c);
        }
    }
    out
}

/// The words of a command line: split at blanks; `'…'` and `"…"` keep blanks, a backslash keeps the next character.
///
/// # Errors
/// One sentence: a quote that is not closed, a backslash before nothing.
pub(super) fn words(text: &str) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (None | Some('"'), '\\') => match chars.next() {
                Some(next) => {
                    let word = word.get_or_insert_default();
                    // Within double quotes it is for these two only, as for sh.
                    if quote.is_some() && !matches!(next, '"' | '\\') {
                        word.push('\\');
                    }
                    word.push(next);
                }
                None => return Err("the backslash at the end stands before nothing".into()),
            },
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => out.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(q) = quote {
        return Err(format!("the quote {q} is not closed"));
    }
    out.extend(word);
    Ok(out)
}

/// An argument that is the whole rest of a line, a file name for example: one word in quotes or with backslashes, as
/// completion writes them, or else the text as it is, blanks and all.
pub(super) fn whole(text: &str) -> String {
    match words(text).as_deref() {
        Ok([one]) => one.clone(),
        _ => text.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_end_where_no_quote_is_open() {
        assert_eq!(
            commands("name x; run -- sh -c 'a; b' ;\nplan"),
            ["name x", " run -- sh -c 'a; b' ", "", "plan"]
        );
        assert_eq!(commands(r#"a "x\";y"; b\;c"#), [r#"a "x\";y""#, r" b\;c"]);
        assert_eq!(commands(""), [""]);
    }

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        let of = |text: &str| words(text).unwrap();
        assert_eq!(
            of("  a  'b c' \"d e\"f g\\ h '' "),
            ["a", "b c", "d ef", "g h", ""]
        );
        assert_eq!(of(r#""a\"b\n" 'a\'"#), [r#"a"b\n"#, r"a\"]);
        assert!(words("a 'b").unwrap_err().contains("not closed"));
        assert!(words("a\\").unwrap_err().contains("backslash"));
    }

    #[test]
    fn a_file_name_may_have_blanks() {
        for (text, meant) in [
            (" a b ", "a b"),
            ("'a b'", "a b"),
            ("a\\ b", "a b"),
            ("\"a'", "\"a'"),
            ("'", "'"),
            ("", ""),
        ] {
            assert_eq!(whole(text), meant);
        }
    }
}
