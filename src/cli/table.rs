//! Tables for people: columns one under the other, values made safe for a terminal, nothing wrapped.

#![forbid(unsafe_code)]

use vsc::diag::{columns, shown};

/// Lines of cells, each column as wide as its widest cell; the last cell of a line ends the line.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(&head)
        .filter(|head| !head.is_empty())
        .chain(rows)
        .map(|line| line.iter().map(|cell| shown(cell)).collect())
        .collect();
    let mut widths = Vec::new();
    for line in &lines {
        widths.resize(widths.len().max(line.len()), 0);
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = columns(cell).max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            row.push_str(cell);
            row.push_str(&" ".repeat(width.saturating_sub(columns(cell)) + 2));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::table;

    #[test]
    fn columns_stand_one_under_the_other_and_nothing_is_wrapped() {
        let long = "x".repeat(200);
        let rows = [
            vec!["a".to_owned(), "\u{65e5}\u{672c}".into(), "1".into()],
            vec!["abc".to_owned(), "\x1b[31m".into(), long.clone()],
            vec!["b".to_owned()],
        ];
        let wanted = format!(
            "KEY  VALUE       N\na    \u{65e5}\u{672c}        1\nabc  \\u{{1b}}[31m  {long}\nb\n"
        );
        assert_eq!(table(&["KEY", "VALUE", "N"], &rows), wanted);
        assert_eq!(table(&[], &[]), "");
    }
}
