use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Result<Node, String> {
    let mut problems = Vec::new();
    let node = parse(text, 0, 0, &mut problems);
    match (node, problems.first()) {
        (Some(node), None) => Ok(node),
        (_, Some(d)) => Err(format!("{} {}", d.code, d.message)),
        (None, None) => panic!("nothing read and nothing said"),
    }
}

/// The tree on one line.
fn show(node: &Node) -> String {
    match &node.value {
        Value::Null => "~".into(),
        Value::Scalar { text, plain: true } => text.to_string(),
        Value::Scalar { text, .. } => format!("{text:?}"),
        Value::Seq(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
        Value::Map(pairs) => {
            let pairs: Vec<String> = pairs
                .iter()
                .map(|(k, v)| format!("{}:{}", k.value, show(v)))
                .collect();
            format!("{{{}}}", pairs.join(" "))
        }
    }
}

fn shown(text: &str) -> String {
    read(text).map_or_else(|e| e, |node| show(&node))
}

#[test]
fn reads_the_forms_of_yaml() {
    for (text, tree) in [
        ("", "~"),
        ("# nothing\n", "~"),
        ("---\n", "~"),
        ("a: 1\nb: on\n", "{a:1 b:on}"),
        ("a: \"1\"\nb: 'x'\n", "{a:\"1\" b:\"x\"}"),
        ("a:\n- 1\n- 2\n", "{a:[1 2]}"),
        ("a: {b: [1, 2], c: ~}", "{a:{b:[1 2] c:~}}"),
        (
            "a: |\n  x\n  y\nb: >\n  x\n  y\n",
            "{a:\"x\\ny\\n\" b:\"x y\\n\"}",
        ),
        ("a: &x {b: 1}\nc: *x\n", "{a:{b:1} c:{b:1}}"),
        ("%YAML 1.2\n---\na: null\n...\n", "{a:~}"),
        ("a: 1\r\nb: 2\r\n", "{a:1 b:2}"),
    ] {
        assert_eq!(shown(text), tree, "{text:?}");
    }
}

#[test]
fn refuses_what_a_scenario_has_no_use_for() {
    for (text, code) in [
        ("a: 1\n---\nb: 2\n", "E-YAML "),
        ("a: !!str 1\n", "E-YAML-TAG"),
        ("a: !x [1]\n", "E-YAML-TAG"),
        ("a: !x {b: 1}\n", "E-YAML-TAG"),
        ("? [a]\n: b\n", "E-YAML-KEY"),
        ("{a: 1}: b\n", "E-YAML-KEY"),
        ("a: 1\na: 2\n", "E-DUPLICATE-KEY"),
        ("a: &x [*x]\n", "E-YAML "),
        ("a: *y\n", "E-YAML "),
        ("a: [1, 2\n", "E-YAML "),
        ("a:\n\tb: 1\n", "E-YAML A tab"),
        ("a: 'x\n", "E-YAML "),
    ] {
        assert!(
            shown(text).starts_with(code),
            "{text:?} gave {}",
            shown(text)
        );
    }
    assert!(shown(&"[".repeat(65)).starts_with("E-YAML-DEPTH"));
    assert!(shown(&"- ".repeat(65)).starts_with("E-YAML-DEPTH"));
    assert_eq!(
        shown(&format!("{}1{}", "[".repeat(64), "]".repeat(64))).len(),
        129
    );
    assert!(shown(&"- 1\n".repeat(10_000)).starts_with("E-YAML-BOMB"));
}

#[test]
fn aliases_count_as_what_they_repeat() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..9 {
        let list = vec![format!("*a{}", n - 1); 10].join(", ");
        text.push_str(&format!("a{n}: &a{n} [{list}]\n"));
    }
    assert!(shown(&text).starts_with("E-YAML-BOMB"), "{}", shown(&text));
    let mut deep = String::from("a0: &a0 [x]\n");
    for n in 1..70 {
        deep.push_str(&format!("a{n}: &a{n} [*a{}]\n", n - 1));
    }
    assert!(shown(&deep).starts_with("E-YAML-DEPTH"), "{}", shown(&deep));
}

#[test]
fn many_keys_are_compared_with_all_before() {
    let mut text: String = (0..100).map(|n| format!("k{n}: {n}\n")).collect();
    assert!(read(&text).is_ok());
    text.push_str("k3: again\n");
    assert_eq!(shown(&text), "E-DUPLICATE-KEY The key `k3` is given twice");
}

#[test]
fn bytes_become_text_or_a_message() {
    let code = |bytes: &[u8]| {
        decode(bytes)
            .map(|t| t.to_string())
            .map_err(|(_, p)| p.diagnostic(0).code)
    };
    assert_eq!(code(b"\xef\xbb\xbfa: 1"), Ok("a: 1".into()));
    assert_eq!(code("a: é\u{85}".as_bytes()), Ok("a: é\u{85}".into()));
    assert_eq!(code(b"a: \xff"), Err("E-ENCODING"));
    assert_eq!(code(b"\xff\xfea\0"), Err("E-ENCODING"));
    for bad in [
        "a: \0 b: 1",
        "a\u{1b}[2J",
        "\u{7f}",
        "\u{80}",
        "a\u{feff}",
        "\u{b}",
    ] {
        assert_eq!(code(bad.as_bytes()), Err("E-YAML"), "{bad:?}");
    }
    assert_eq!(code(&vec![b'a'; MAX_BYTES + 1]), Err("E-YAML-SIZE"));
}

#[test]
fn the_longest_hostile_texts_end_in_a_message() {
    // In a release build the slowest of some 300 such texts takes 11 ms; what matters here is that none is quadratic.
    for (head, piece) in [
        ("a: [", "!t "),
        ("a: [", "&a "),
        ("a: [", "*a "),
        ("", "["),
        ("", "{a: "),
        ("", "- "),
        ("", "? "),
        ("", "a: b\n"),
        ("a: \"", "x"),
        ("a: |\n ", "\n "),
        ("", "#"),
        ("", "\n"),
        ("a: '", "''"),
        ("", "é: "),
    ] {
        let text = head.to_owned() + &piece.repeat((MAX_BYTES - head.len()) / piece.len());
        let read = decode(text.as_bytes()).map(|text| shown(&text));
        assert!(
            read.is_ok_and(|tree| tree == "~" || tree.starts_with("E-") || tree.starts_with("{a:")),
            "{head}{piece}"
        );
    }
}

/// Every place must be a part of the text, and a plain scalar's place must be its text.
fn check_places(text: &str, node: &Node) {
    let at = |span: Span| {
        text.get(span.start()..span.start() + span.len())
            .map(str::to_owned)
    };
    let written = at(node.span);
    assert!(written.is_some(), "{:?} is no place in {text:?}", node.span);
    match &node.value {
        Value::Scalar {
            text: value,
            plain: true,
        } if !value.contains(['\n', ' ', '\t']) => {
            assert_eq!(written.as_deref(), Some(&**value), "in {text:?}");
        }
        Value::Seq(items) => items.iter().for_each(|n| check_places(text, n)),
        Value::Map(pairs) => {
            for (key, value) in pairs.iter() {
                assert!(at(key.span).is_some());
                check_places(text, value);
            }
        }
        _ => {}
    }
}

#[test]
fn places_survive_characters_of_many_bytes() {
    let text = "é: ü\n漢: [字, {x: 𝕏}]\nz: 'é'  # ö\ny: last\n";
    check_places(text, &read(text).unwrap());
}

/// Text that looks like YAML often enough to reach every corner.
fn yamlish() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("a: "),
        Just("- "),
        Just("\n"),
        Just("  "),
        Just("["),
        Just("]"),
        Just("{"),
        Just("}"),
        Just(", "),
        Just(": "),
        Just("? "),
        Just("&x "),
        Just("*x"),
        Just("!t "),
        Just("'"),
        Just("\""),
        Just("|"),
        Just(">-\n"),
        Just("#"),
        Just("---"),
        Just("..."),
        Just("%"),
        Just("\t"),
        Just("\r"),
        Just("é"),
        Just("b"),
        Just("\\x"),
        Just("\u{85}"),
        Just("<<: "),
        Just("0"),
        Just("~"),
        Just("\u{2028}"),
        Just("@"),
        Just("`"),
        Just("|2"),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|v| v.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn nothing_panics_and_places_are_true(text in yamlish()) {
        let mut problems = Vec::new();
        if let Ok(text) = decode(text.as_bytes()) && let Some(node) = parse(&text, 0, 0, &mut problems) {
            check_places(&text, &node);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut problems = Vec::new();
        match decode(&bytes) {
            Ok(text) => drop(parse(&text, 0, 0, &mut problems)),
            Err((_, problem)) => drop(problem.diagnostic(0)),
        }
    }
}
