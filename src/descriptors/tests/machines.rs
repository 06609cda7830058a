//! Patterns and machine names.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::descriptors::machines::speaks_of;
use crate::descriptors::parse::descriptor;

#[test]
fn machines_are_globs_over_versioned_names() {
    for (pattern, machine, expected) in [
        ("pc-q35-*", "pc-q35-8.2", true),
        ("pc-q35-*", "pc-i440fx-8.2", false),
        ("pc-q35-*", "pc-q35", false),
        ("pc-q35-*", "xpc-q35-1", false),
        ("pc-q35-?.?", "pc-q35-8.2", true),
        ("pc-q35-?.?", "pc-q35-10.2", false),
        ("*-8.2", "pc-q35-8.2", true),
        ("pc-*-8.*", "pc-q35-8.2", true),
        ("**", "x", true),
        ("*", "", true),
        ("", "", true),
        ("", "x", false),
        ("pc-q35-[89].[!0]", "pc-q35-8.2", true),
        ("pc-q35-[89].[!0]", "pc-q35-8.0", false),
        ("pc-q35-[0-4]*", "pc-q35-8.2", false),
        ("pc-q35-[0-4]*", "pc-q35-2.4", true),
        ("[]-]x", "]x", true),
        ("[]-]x", "-x", true),
        ("[]-]x", "yx", false),
        ("pc[", "pc[", true),
        ("pc[", "pc", false),
        // Aliases.
        ("pc-q35-*", "q35", true),
        ("pc-i440fx-*", "q35", false),
        ("pc-i440fx-*", "pc", true),
        ("pc-q35-*", "pc", false),
        ("pc-*", "pc", true),
        ("pc-*", "q35", true),
        ("*", "q35", true),
        ("pc-q35-rhel*", "q35", true),
        ("pc-q35-8.2", "q35", false),
        ("q35", "q35", true),
        ("virt-*", "virt", true),
        ("virt", "virt", true),
        ("microvm", "microvm", true),
        ("microvm-*", "microvm", false),
    ] {
        assert_eq!(speaks_of(pattern, machine), expected, "{pattern} {machine}");
    }
    // Time does not grow with the number of ways in which stars could match.
    let started = Instant::now();
    assert!(!speaks_of(&"*a".repeat(50_000), &"a".repeat(60)));
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// What stars and question marks mean, as slow as it gets.
fn slowly(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern, text) {
        ([], text) => text.is_empty(),
        ([b'*', after @ ..], text) => (0..=text.len()).any(|n| slowly(after, &text[n..])),
        ([b'?', after @ ..], [_, text @ ..]) => slowly(after, text),
        ([c, after @ ..], [d, text @ ..]) => c == d && slowly(after, text),
        (_, []) => false,
    }
}

proptest! {
    #[test]
    fn patterns_mean_what_they_say(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
        prop_assert_eq!(speaks_of(&pattern, &text), slowly(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn an_alias_is_a_version_that_nobody_knows(pattern in "[pcq35*?-]{0,10}", version in "[0-9.]{1,3}") {
        let concrete = speaks_of(&pattern, &format!("pc-q35-{version}"));
        let open = pattern.contains(['*', '?']);
        prop_assert!(!(concrete && open) || speaks_of(&pattern, "q35"));
    }

    #[test]
    fn no_text_panics(pattern in "\\PC{0,20}", machine in "\\PC{0,20}", text in "[\\[\\]{}:,a-z\"0-9 -]{0,60}") {
        speaks_of(&pattern, &machine);
        prop_assert!(descriptor("x.json".as_ref(), &text).is_err());
    }
}
