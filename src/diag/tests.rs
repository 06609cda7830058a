use super::render::columns;
use super::*;
use proptest::prelude::*;

fn one(text: &str, from: usize, to: usize) -> Diagnostics {
    let mut sources = Sources::default();
    let id = sources.add_file("a.yaml", text.into());
    let d = Diagnostic::error("E-TEST", Span::new(id, from, to), "Wrong")
        .label("here")
        .help("Mend it");
    Diagnostics::new(vec![d], Arc::new(sources))
}

#[test]
fn caret_stands_under_the_marked_text() {
    let text = "cpu:\n  count: 0\n";
    let shown = one(text, 14, 15).render(false);
    let want = "error[E-TEST]: Wrong\n --> a.yaml:2:10\n  |\n2 |   count: 0\n  |          ^ here\n  = help: Mend it\n";
    assert_eq!(shown, want);
}

#[test]
fn tabs_wide_characters_and_controls_keep_the_caret_in_place() {
    let text = "\tname: 漢字\u{1b}[2J x";
    let at = text.find('x').unwrap();
    let shown = one(text, at, at + 1).render(false);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[3].contains("    name: 漢字\\u{1b}[2J x"), "{shown}");
    assert_eq!(
        columns(&lines[3][..lines[3].rfind('x').unwrap()]),
        columns(&lines[4][..lines[4].find('^').unwrap()])
    );
    assert!(!shown.contains('\u{1b}'));
}

#[test]
fn long_lines_are_cut_around_the_mark() {
    let text = format!("{}MARK{}", "a".repeat(5000), "b".repeat(5000));
    let shown = one(&text, 5000, 5004).render(false);
    assert!(
        shown.contains("MARK") && shown.lines().all(|l| columns(l) < 140),
        "{shown}"
    );
}

#[test]
fn end_of_file_is_on_the_last_line() {
    let shown = one("a: [\n", 5, 5).render(false);
    assert!(shown.contains("a.yaml:1:5"), "{shown}");
}

proptest! {
    #[test]
    fn no_text_and_no_place_panics(text in any::<String>(), from in 0usize..300, to in 0usize..300) {
        let shown = one(&text, from, to);
        prop_assert!(!shown.render(false).chars().any(|c| c.is_control() && c != '\n'));
        prop_assert_eq!(shown.records().len(), 1);
    }
}
