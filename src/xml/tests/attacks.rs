//! Values that broke the predecessor's documents (VIRT-SCENARIO section 9, row 6), and texts that break parsers.

use std::time::{Duration, Instant};

use super::*;

/// A document must be well-formed and give the value back, whatever is in it.
#[test]
fn values_are_text_and_never_markup() {
    let values = [
        "/tmp/a&b.img",
        "/tmp/a'b.img",
        "/tmp/a\"b.img",
        "/tmp/a<b>.img",
        "/tmp/&amp;.img",
        "/tmp/x'/><disk type='file' device='disk'><source file='/etc/shadow",
        "/tmp/]]>.img",
        "/tmp/<!-- -->.img",
        "/tmp/a\tb\nc\rd.img",
        " /leading and trailing ",
        "/tmp/\u{85}\u{2028}\u{feff}Ünïcödé-漢字-🦀",
    ];
    for value in values {
        let domain = json!({
            "name": value, "title": value, "kernel": {"cmdline": value},
            "metadata": {"os": value, "x": value},
            "features": {"acpi": true},
            "disks": [{"path": value, "target": "vda", "bus": "virtio", "id": value}],
            "serials": [{"to": format!("unix:{value}")}],
            "security": {"type": "sev", "policy": 1, "session": value},
        });
        let came = back(&domain);
        assert_eq!(get(&came, "name"), Some(&json!(value)));
        assert_eq!(get(&came, "kernel.cmdline"), Some(&json!(value)));
        assert_eq!(get(&came, "metadata.x"), Some(&json!(value)));
        assert_eq!(get(&came, "metadata.os"), Some(&json!(value)));
        assert_eq!(get(&came, "security.session"), Some(&json!(value)));
        assert_eq!(came["disks"][0]["path"], value);
        assert_eq!(came["disks"][0]["id"], value);
        assert_eq!(came["serials"][0]["to"], format!("unix:{value}"));
        assert_eq!(came["disks"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn what_xml_cannot_carry_is_unsaid_and_absent() {
    for bad in ["a\u{0}b", "\u{1b}[2J", "x\u{fffe}", "\u{7}"] {
        let domain = Domain(json!({
            "name": bad, "metadata": {"x": bad, bad: "y"}, "cpu": {"features": {bad: "require"}},
            "disks": [{"path": bad, "target": "vda"}], "serials": [{"to": format!("file:{bad}")}],
            "consoles": [{"out": "null", "name": bad}], "kernel": {"initrd": [bad]},
            "graphics": [{"type": "vnc", "socket": bad}], "console": {"log": bad},
        }));
        let exported = export(&domain);
        assert!(
            exported.text.chars().all(element::legal_char),
            "{:?}",
            exported.text
        );
        for key in [
            "name",
            "metadata.x",
            "disks[0].path",
            "serials[0].to",
            "consoles[0].name",
            "kernel.initrd[0]",
            "graphics[0].socket",
            "console.log",
        ] {
            assert!(
                exported.unsaid.contains(&key.to_owned()),
                "{key}: {:?}",
                exported.unsaid
            );
        }
        for key in [format!("metadata.{bad}"), format!("cpu.features.{bad}")] {
            assert!(
                exported.unsaid.contains(&key),
                "{key:?}: {:?}",
                exported.unsaid
            );
        }
        import("d.xml", &exported.text).unwrap();
    }
}

/// The one error of a text that is no domain, at a line and column.
#[track_caller]
fn refused(text: &str, said: &str, at: &str) {
    let error = import("d.xml", text).unwrap_err();
    assert_eq!(error.list.len(), 1);
    assert_eq!(error.list[0].code, "E-XML");
    let shown = error.render(false);
    assert!(shown.contains(said) && shown.contains(at), "{shown}");
}

#[test]
fn texts_that_are_no_domain_are_one_error_with_its_place() {
    refused("", "no element", "d.xml:1:1");
    refused("{\"name\": \"x\"}", "outside of the element", "d.xml:1:1");
    refused(
        "<network>\n</network>",
        "a <network>, not a <domain>",
        "d.xml:1:1",
    );
    refused(
        "<domain>\n  <name>x</nam>\n</domain>",
        "not well-formed",
        "d.xml:2:10",
    );
    refused(
        "<domain>\n  <name>x</name>\n",
        "<domain> is never closed",
        "d.xml:1:1",
    );
    refused("<domain/>\n<domain/>", "second root", "d.xml:2:1");
    refused(
        "<domain>\n <name>a & b</name></domain>",
        "not well-formed",
        "d.xml:2:",
    );
    refused(
        "<domain>\n <a b='x & y'/></domain>",
        "bare `&`",
        "d.xml:2:10",
    );
    refused(
        "<domain>\n <a b='x' b='y'/></domain>",
        "not well-formed",
        "d.xml:2:2",
    );
    refused("<domain>\n <a b='<'/></domain>", "malformed", "d.xml:2:5");
    refused(
        "<domain><name>&nbsp;</name></domain>",
        "`&nbsp;`",
        "d.xml:1:15",
    );
    refused("<domain><name>&#0;</name></domain>", "`&#0;`", "d.xml:1:15");
    refused(
        "<domain><name>&#xd800;</name></domain>",
        "`&#xd800;`",
        "d.xml:1:15",
    );
    refused(
        "<domain>\n<name>\u{1b}</name></domain>",
        "U+001B",
        "d.xml:2:7",
    );
    refused("<domain><1/></domain>", "no proper name", "d.xml:1:9");
    refused(
        " <?xml version='1.0'?><domain/>",
        "the first thing",
        "d.xml:1:2",
    );
}

#[test]
fn entities_are_not_expanded() {
    let laughs = "<?xml version='1.0'?>\n<!DOCTYPE domain [\n <!ENTITY a 'ha'>\n <!ENTITY b '&a;&a;&a;&a;'>\n]>\n<domain><name>&b;</name></domain>";
    refused(laughs, "document type", "d.xml:2:1");
    let outside = "<!DOCTYPE domain [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><domain><name>&x;</name></domain>";
    refused(outside, "document type", "d.xml:1:1");
    refused("<domain><name>&b;</name></domain>", "`&b;`", "d.xml:1:15");
}

#[test]
fn size_depth_and_attributes_are_bounded() {
    let garbage = "\u{fffd}<&".repeat(10 << 20 >> 2);
    refused(&garbage, "at most 1048576 are read", "d.xml:1:1");
    let deep = format!("<domain>{}", "<a>".repeat(100_000));
    refused(&deep, "nested deeper", "d.xml:1:");
    let wide: String = (0..50_000).map(|n| format!(" a{n}='1'")).collect();
    refused(
        &format!("<domain{wide}/>"),
        "more than 128 attributes",
        "d.xml:1:1",
    );
}

/// A quadratic step anywhere would take minutes; the limit leaves room for a slow machine and a build without
/// optimisation.
#[test]
fn the_largest_documents_are_read_in_linear_time() {
    let disk = "<disk type='file' device='disk'><target dev='sda' bus='scsi'/><foo/></disk>\n";
    let console = "<console type='pty'><target type='virtio' port='0'/></console>\n";
    let note = "<x y='z'/>\n";
    for piece in [
        disk,
        console,
        note,
        "<controller type='scsi'/>",
        "<input type='mouse' bus='usb'/>",
    ] {
        let body = piece.repeat((parse::MAX_BYTES - 100) / piece.len());
        let started = Instant::now();
        let imported = import(
            "d.xml",
            &format!("<domain><devices>{body}</devices></domain>"),
        )
        .unwrap();
        let shown = imported.notes.render(false);
        let took = started.elapsed();
        assert!(
            took < Duration::from_secs(60),
            "{took:?} for {} bytes of {piece}",
            body.len()
        );
        assert!(imported.notes.list.len() <= 502 && !shown.is_empty());
    }
    let flat = "<x y='z'/>\n".repeat(90_000);
    let shown = import("d.xml", &format!("<domain>{flat}</domain>"))
        .unwrap()
        .notes;
    assert!(
        shown
            .list
            .iter()
            .any(|d| d.message.starts_with("89500 more parts")),
        "{shown}"
    );
}
