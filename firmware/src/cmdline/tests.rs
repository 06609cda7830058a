use super::*;
use proptest::prelude::*;

const SERIAL: Consoles = Consoles {
    serial: 1,
    hvc: 0,
    vga: false,
};

fn codes(cmdline: &str, consoles: Consoles, initrd: bool) -> Vec<&'static str> {
    lint(cmdline, &consoles, initrd)
        .iter()
        .map(|lint| lint.code)
        .collect()
}

#[test]
fn parts_are_joined_in_order() {
    let parts = Parts {
        prolog: "a ",
        defaults: "",
        user: " b=\"c d\"\n",
        epilog: "e",
    };
    assert_eq!(assemble(&parts).unwrap(), "a b=\"c d\" e");
    assert_eq!(assemble(&Parts::default()).unwrap(), "");
}

#[test]
fn what_linux_would_cut_off_is_refused() {
    let of = |len: usize| {
        assemble(&Parts {
            user: &"x".repeat(len),
            ..Default::default()
        })
    };
    assert_eq!(of(2047).unwrap().len(), 2047);
    assert_eq!(
        of(2048),
        Err(CmdlineError::TooLong {
            len: 2048,
            max: 2047
        })
    );
    let message = of(4100).unwrap_err().to_string();
    assert!(
        message.contains("4100") && message.contains("2047") && message.contains("2053"),
        "{message}"
    );
    let two = "x".repeat(1024);
    assert!(
        assemble(&Parts {
            prolog: &two,
            epilog: &two,
            ..Default::default()
        })
        .is_err(),
        "the space counts"
    );
}

#[test]
fn characters_and_quotes_are_checked() {
    let bad = |user| {
        assemble(&Parts {
            user,
            ..Default::default()
        })
        .unwrap_err()
    };
    assert_eq!(
        bad("a\u{e9}"),
        CmdlineError::BadCharacter {
            part: "user",
            at: 1,
            character: '\u{e9}'
        }
    );
    assert_eq!(
        bad("  a\0"),
        CmdlineError::BadCharacter {
            part: "user",
            at: 3,
            character: '\0'
        }
    );
    assert_eq!(
        bad("a\nb"),
        CmdlineError::BadCharacter {
            part: "user",
            at: 1,
            character: '\n'
        }
    );
    assert_eq!(
        bad("a\tb\x7f"),
        CmdlineError::BadCharacter {
            part: "user",
            at: 1,
            character: '\t'
        }
    );
    assert_eq!(
        bad("a=\"b c"),
        CmdlineError::UnpairedQuote {
            part: "user",
            at: 2
        }
    );
    let across = assemble(&Parts {
        prolog: "a=\"b",
        user: "c\"",
        ..Default::default()
    });
    assert_eq!(
        across,
        Err(CmdlineError::UnpairedQuote {
            part: "prolog",
            at: 2
        })
    );
}

#[test]
fn words_end_where_the_kernel_ends_them() {
    let all: Vec<_> = words("ro  dyndbg=\"file a +p\" \"x=y z\" root=UUID=1 -- init=/no")
        .map(|word| (word.key, word.value))
        .collect();
    assert_eq!(
        all,
        [
            ("ro", None),
            ("dyndbg", Some("file a +p")),
            ("x", Some("y z")),
            ("root", Some("UUID=1"))
        ]
    );
    assert_eq!(
        words("a b").map(|word| word.span).collect::<Vec<_>>(),
        [0..1, 2..3]
    );
}

#[test]
fn consoles_that_are_not_there() {
    let line = "root=/dev/vda loglevel=15 console=hvc0";
    let lints = lint(line, &SERIAL, false);
    assert_eq!(lints.len(), 1);
    assert_eq!(lints[0].code, "W-CONSOLE");
    assert_eq!(
        lints[0].message,
        "console=hvc0 but the only console is ttyS0; kernel log would be lost"
    );
    assert_eq!(&line[lints[0].span.clone()], "console=hvc0");

    let hvc = Consoles {
        serial: 0,
        hvc: 1,
        vga: false,
    };
    let message = lint("console=hvc0i", &hvc, false).remove(0).message;
    assert_eq!(
        message,
        "console=hvc0i but the only console is hvc0; kernel log would be lost (did you mean hvc0?)"
    );
    let message = lint("console=tyS0", &SERIAL, false).remove(0).message;
    assert!(message.ends_with("(did you mean ttyS0?)"), "{message}");
    let message = lint("console=ttyS1 console=ttyS0", &SERIAL, false)
        .remove(0)
        .message;
    assert_eq!(
        message,
        "console=ttyS1 but the only console is ttyS0; this one is ignored"
    );
    let message = lint(
        "console=hvc3",
        &Consoles {
            serial: 3,
            hvc: 1,
            vga: true,
        },
        false,
    )
    .remove(0)
    .message;
    assert!(
        message.contains("the consoles are ttyS0, ttyS1, hvc0 and tty0"),
        "{message}"
    );
    let message = lint("console=ttyS0", &Consoles::default(), false)
        .remove(0)
        .message;
    assert!(message.contains("no console at all"), "{message}");
}

#[test]
fn consoles_that_are_fine() {
    let all = Consoles {
        serial: 0b1001,
        hvc: 2,
        vga: true,
    };
    for line in [
        "console=ttyS0,115200n8 console=ttyS3",
        "console=hvc1",
        "console=tty0 console=tty1 console=tty",
        "console=null console=",
        "console=netcon0 console=uart8250,io,0x3f8",
        "quiet",
        "-- console=hvc7",
    ] {
        assert_eq!(lint(line, &all, false), [], "{line}");
    }
}

#[test]
fn contradictions() {
    assert_eq!(
        codes("root=/dev/vda root=/dev/vdb", SERIAL, false),
        ["W-ROOT"]
    );
    assert_eq!(
        codes("init=/a init=/b root=/dev/vda", SERIAL, false),
        ["W-DUPLICATE"]
    );
    assert_eq!(codes("rdinit=/a", SERIAL, false), ["W-INIT"]);
    assert_eq!(codes("rdinit=/a", SERIAL, true), [] as [&str; 0]);
    assert_eq!(codes("init=/a", SERIAL, true), ["W-INIT"]);
    assert_eq!(
        codes("init=/a root=/dev/vda", SERIAL, true),
        [] as [&str; 0]
    );
    assert_eq!(codes("init=sh root=/dev/vda", SERIAL, false), ["W-INIT"]);
    assert_eq!(
        codes(&"x".repeat(2048), SERIAL, false),
        ["W-CMDLINE-LENGTH"]
    );
}

proptest! {
    #[test]
    fn any_text(text in "\\PC{0,300}", quotes in "[\" a=\\-]{0,60}") {
        for line in [&text, &quotes] {
            for lint in lint(line, &SERIAL, true) {
                prop_assert!(line.get(lint.span).is_some());
            }
            if let Ok(joined) = assemble(&Parts { user: line, ..Default::default() }) {
                prop_assert!(joined.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
            }
        }
    }
}
