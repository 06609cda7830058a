//! Keys explained for people: as text for a terminal, and as a page in Markdown.

#![forbid(unsafe_code)]

use vsc::diag::shown;
use vsc::scenario::explain::{self, Article, Choice, Said};
use vsc::scenario::presets::{self, Preset, Reason};

use super::Common;
use super::table::table;
use crate::say;

/// All keys.
pub(super) fn all(common: &Common) -> u8 {
    let articles = explain::all();
    if common.json {
        say::out(&(serde_json::to_string_pretty(&articles).unwrap_or_default() + "\n"));
        return 0;
    }
    let texts: Vec<String> = articles.iter().map(text).collect();
    say::out(&texts.join("\n"));
    0
}

/// One key.
pub(super) fn text(article: &Article) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, value: &str| {
        if !value.is_empty() {
            rows.push(vec![format!("  {name}"), value.to_owned()]);
        }
    };
    row("aliases", &article.aliases.join(", "));
    row("short", &article.short.join(", "));
    let has_words = !article.words.is_empty();
    row("type", article.kind);
    match has_words {
        true => row("value", "one of the words below"),
        false => row("value", &article.expected),
    }
    let unset = if article.members.is_empty() {
        "none"
    } else {
        ""
    };
    row(
        "default",
        match article.default {
            "" => unset,
            default => default,
        },
    );
    row("why", article.reason);
    row("ends in", article.register);
    row("XML", article.xml);
    row("here", &here(article));
    for (number, line) in article.example.lines().enumerate() {
        row(if number == 0 { "example" } else { "" }, line);
    }
    if let Some(option) = &article.option {
        row("option", &format!("-o '{option}'"));
    }
    let mut text = format!(
        "{}\n  {}\n{}",
        article.key,
        article.meaning,
        table(&[], &rows)
    );
    let words = article
        .words
        .iter()
        .map(|word| vec![format!("    {}", word.word), meaning(word)]);
    let words: Vec<_> = words.collect();
    if has_words {
        text += &format!("  words\n{}", table(&[], &words));
    }
    let members = article
        .members
        .iter()
        .map(|member| vec![format!("    {}", member.key), member.meaning.to_owned()]);
    let members: Vec<_> = members.collect();
    if !members.is_empty() {
        text += &format!("  keys\n{}", table(&[], &members));
    }
    text
}

/// Whether the monitor of this build has a key; nothing for a group, of which each key has its own answer.
fn here(article: &Article) -> String {
    match (article.elsewhere, article.as_is) {
        (None, _) if !article.members.is_empty() => String::new(),
        (None, _) => "yes".to_owned(),
        (Some(why), []) => format!("no, only in the domain XML: {why}"),
        (Some(_), ["*"]) => "yes, and the monitor of this build is always as it says".to_owned(),
        (Some(why), values) => {
            format!(
                "only {}; the rest in the domain XML: {why}",
                values.join(", ")
            )
        }
    }
}

fn meaning(word: &Choice) -> String {
    match (word.elsewhere, word.refused) {
        (_, Some(why)) => format!("refused: {why}"),
        (Some(why), _) => format!("{} (only in the domain XML: {why})", word.meaning),
        _ => word.meaning.to_owned(),
    }
}

/// What a scenario says of a key, and why.
pub(super) fn said(all: &[Said]) -> String {
    let mut text = String::new();
    for said in all {
        text += &format!(
            "  {} = {}  ({})\n",
            shown(&said.key),
            shown(&said.value),
            said.origin
        );
        if let Some(Reason { why, risk, see }) = &said.reason {
            let rows = [("why", why), ("risk", risk), ("see", see)]
                .into_iter()
                .filter(|(_, what)| !what.is_empty())
                .map(|(name, what)| vec![format!("    {name}"), what.clone()]);
            text += &table(&[], &rows.collect::<Vec<_>>());
        }
    }
    text
}

/// A reason on one line.
pub(super) fn reason(reason: &Reason) -> String {
    let Reason { why, risk, see } = reason;
    let parts = [("", why), ("risk: ", risk), ("see: ", see)];
    let parts = parts.into_iter().filter(|(_, what)| !what.is_empty());
    let parts: Vec<String> = parts.map(|(name, what)| format!("{name}{what}")).collect();
    parts.join("; ")
}

/// The reference as a page in Markdown.
pub(super) fn page(common: &Common) -> u8 {
    let page = markdown(&explain::all());
    if common.json {
        let answer = serde_json::json!({ "markdown": page });
        say::out(&(serde_json::to_string_pretty(&answer).unwrap_or_default() + "\n"));
    } else {
        say::out(&page);
    }
    0
}

const INTRODUCTION: &str = "\
# Scenarios: the reference

A scenario is one YAML tree. Every key is optional. What is said later wins: defaults, presets, feature sets, the
settings file, the scenario, the command line (`-o KEY=VALUE`, with the number of a list's member in the path:
`-o disks.0.cache=none`). This page is printed by `vsc-run explain --markdown`; `vsc-run explain KEY` shows one key,
`vsc-run schema` the JSON Schema.

";

fn markdown(articles: &[Article]) -> String {
    let mut text = INTRODUCTION.to_owned();
    for (title, key, list) in [
        ("Presets", "preset", presets::PRESETS),
        ("Feature sets", "feature", presets::FEATURES),
    ] {
        let row = |set: &Preset| vec![code(set.name), plain(set.about())];
        let rows: Vec<_> = list.iter().map(row).collect();
        text += &format!(
            "## {title}: `{key}`\n\n{}\n",
            rows_of(&["Name", "What"], &rows)
        );
    }
    text += "## Keys\n\n";
    let top = |article: &Article| article.key.split(['.', '[']).next().map(str::to_owned);
    let mut rest = articles;
    while let Some(first) = rest.first() {
        let count = rest
            .iter()
            .take_while(|article| top(article) == top(first))
            .count();
        let (group, after) = rest.split_at(count);
        rest = after;
        text += &chapter(first, group);
    }
    text
}

/// A key of the top and what is below it.
fn chapter(first: &Article, group: &[Article]) -> String {
    let mut text = format!("### {}\n\n{}", first.key, plain(first.meaning));
    let also: Vec<String> = first.aliases.iter().map(|a| code(a)).collect();
    if !also.is_empty() {
        text += &format!(" Also: {}.", also.join(", "));
    }
    let example = first.example.replace('\n', "; ");
    text += &format!(" Example: {}\n\n", code(&example));
    let leaves = group.iter().filter(|article| article.members.is_empty());
    let row = |article: &Article| {
        let mut names = vec![code(&article.key)];
        let short = article
            .short
            .iter()
            .filter(|short| !short.starts_with("a bare"));
        if article.key != first.key {
            names.extend(article.aliases.iter().map(|alias| code(alias)));
        }
        names.extend(short.map(|short| code(short)));
        let value = match article.words.is_empty() {
            true => plain(&article.expected),
            false => "a word, below".to_owned(),
        };
        let mut about = plain(article.meaning);
        if !article.reason.is_empty() {
            about += &format!(" *{}*", plain(article.reason));
        }
        vec![
            names.join(", "),
            value,
            code(article.default),
            about,
            code(article.register),
            code(article.xml),
            plain(&here(article)),
        ]
    };
    let rows: Vec<_> = leaves.clone().map(row).collect();
    text += &rows_of(
        &[
            "Key", "Value", "Default", "Meaning", "Ends in", "XML", "Here",
        ],
        &rows,
    );
    text.push('\n');
    for article in leaves.filter(|article| !article.words.is_empty()) {
        text += &format!("{}:\n\n", code(&article.key));
        for word in &article.words {
            text += &format!("- {}: {}\n", code(word.word), plain(&meaning(word)));
        }
        text.push('\n');
    }
    text
}

fn rows_of(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let rule: Vec<String> = head.iter().map(|_| "---".to_owned()).collect();
    let mut text = line(&head) + &line(&rule);
    for row in rows {
        text += &line(row);
    }
    text
}

/// Words between backquotes; nothing for no words. A bar would end the cell.
fn code(text: &str) -> String {
    match text {
        "" => String::new(),
        _ => format!("`{}`", text.replace('|', "\\|")),
    }
}

/// Text that Markdown leaves as it is. What stands between backquotes stays.
fn plain(text: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    for c in text.chars() {
        quoted ^= c == '`';
        if c == '|' || !quoted && matches!(c, '*' | '_' | '<' | '>' | '[' | ']' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_is_left_as_it_is() {
        assert_eq!(plain("a_b <c> `d_e|f`"), "a\\_b \\<c\\> `d_e\\|f`");
        assert_eq!(code("a|b"), "`a\\|b`");
        assert_eq!(code(""), "");
    }

    #[test]
    fn every_key_is_on_the_page_and_every_table_is_whole() {
        let articles = explain::all();
        let page = markdown(&articles);
        for article in articles.iter().filter(|a| a.members.is_empty()) {
            assert!(
                page.contains(&format!("| `{}`", article.key)),
                "{}",
                article.key
            );
            for word in &article.words {
                assert!(
                    page.contains(&format!("- `{}`: ", word.word)),
                    "{}",
                    word.word
                );
            }
        }
        let mut cells = None;
        for line in page.lines() {
            let here = line.starts_with('|').then(|| {
                let bars = line.replace("\\|", "").matches('|').count();
                assert!(line.ends_with('|'), "{line}");
                bars
            });
            assert!(cells.is_none() || here.is_none() || here == cells, "{line}");
            cells = here;
        }
    }

    #[test]
    fn a_group_lists_its_keys_in_one_line_each() {
        let text = text(&explain::explain("cpu").unwrap());
        assert!(text.contains("\n    cpu.topology") && text.contains("\n    cpu.count "));
        assert!(!text.contains("  here "), "{text}");
    }
}
