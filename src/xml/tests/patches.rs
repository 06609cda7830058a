//! The `xml:` key and `--xml-set`.

use super::patch::{apply, assignment};
use super::*;

const DOC: &str = "<domain type='kvm'>
  <name>a</name>
  <devices>
    <disk device='disk'><driver name='qemu'/><target dev='vda'/></disk>
    <disk device='cdrom'><target dev='sda'/></disk>
    <disk device='disk'><target dev='vdb'/></disk>
    <video><model type='vga'/></video>
  </devices>
</domain>";

fn doc() -> Element {
    parse::parse(DOC).unwrap()
}

#[track_caller]
fn set(path: &str, value: &str) -> (Element, Vec<Changed>) {
    let mut root = doc();
    let changed =
        apply(&mut root, path, Change::Set(value.into())).unwrap_or_else(|e| panic!("{path}: {e}"));
    (root, changed)
}

#[track_caller]
fn refuse(path: &str, change: Change) -> String {
    let mut root = doc();
    let error = apply(&mut root, path, change).unwrap_err();
    assert_eq!(root, doc(), "a refused change changes nothing");
    error.to_string()
}

fn changed(path: &str, old: Option<&str>, new: Option<&str>) -> Vec<Changed> {
    vec![Changed {
        path: path.into(),
        old: old.map(str::to_owned),
        new: new.map(str::to_owned),
    }]
}

#[test]
fn places_are_found_by_name_number_attribute_and_child() {
    for (path, place) in [
        (
            "/domain/devices/disk[1]/target/@dev",
            "/domain/devices/disk[1]/target/@dev",
        ),
        (
            "devices/disk[@device='cdrom']/target/@dev",
            "/domain/devices/disk[2]/target/@dev",
        ),
        (
            "devices/disk[@device='disk'][2]/target/@dev",
            "/domain/devices/disk[3]/target/@dev",
        ),
        (
            "devices/disk[2][@device=\"cdrom\"]/target/@dev",
            "/domain/devices/disk[2]/target/@dev",
        ),
    ] {
        let (root, done) = set(path, "new");
        assert_eq!(done[0].path, place);
        assert_eq!(done[0].new.as_deref(), Some("new"));
        assert!(root.write().contains("<target dev='new'/>"));
    }
    assert_eq!(
        set("name", "b").1,
        changed("/domain/name", Some("a"), Some("b"))
    );
    assert_eq!(
        set("name/text()", "b").1,
        changed("/domain/name", Some("a"), Some("b"))
    );
    assert_eq!(
        set("/domain/@type", "qemu").1,
        changed("/domain/@type", Some("kvm"), Some("qemu"))
    );
    assert_eq!(set("name", "a").1, []);
    let mut root = parse::parse("<domain><p><n>1</n></p><p><n>2</n><v/></p></domain>").unwrap();
    apply(&mut root, "p[n='2']/v", Change::Set("x".into())).unwrap();
    assert_eq!(root.children[1].children[1].text, "x");
}

#[test]
fn what_is_missing_is_made_where_the_path_says_how() {
    let (root, done) = set("devices/disk[@device='cdrom']/driver/@cache", "none");
    assert_eq!(
        done,
        changed("/domain/devices/disk[2]/driver/@cache", None, Some("none"))
    );
    assert_eq!(
        root.children[1].children[1]
            .child("driver")
            .unwrap()
            .get("cache"),
        Some("none")
    );
    let (root, _) = set("features/hyperv/relaxed/@state", "on");
    assert!(
        root.write()
            .contains("<hyperv>\n      <relaxed state='on'/>")
    );
    let (root, done) = set("devices/disk[4]/@type", "file");
    assert_eq!(done[0].path, "/domain/devices/disk[4]/@type");
    assert_eq!(root.children[1].children[3].name, "disk");
    let (root, _) = set(
        "devices/hostdev[@mode='subsystem'][@type='pci']/@managed",
        "yes",
    );
    assert!(
        root.write()
            .contains("<hostdev mode='subsystem' type='pci' managed='yes'/>")
    );
    let (root, _) = set(
        "/domain/@xmlns:qemu",
        "http://libvirt.org/schemas/domain/qemu/1.0",
    );
    assert!(root.get("xmlns:qemu").is_some());
    let (root, _) = set("on_crash", "<&'");
    assert!(root.write().contains("<on_crash>&lt;&amp;'</on_crash>"));
}

#[test]
fn deleting_removes_one_thing() {
    let mut root = doc();
    let done = apply(&mut root, "devices/video", Change::Delete).unwrap();
    assert_eq!(
        done[0].old.as_deref(),
        Some("<video>\n  <model type='vga'/>\n</video>\n")
    );
    assert!(!root.write().contains("video"));
    apply(&mut root, "devices/disk[1]/driver/@name", Change::Delete).unwrap();
    assert!(root.write().contains("<driver/>"));
    let done = apply(&mut root, "name/text()", Change::Delete).unwrap();
    assert_eq!(done, changed("/domain/name/text()", Some("a"), None));
}

#[test]
fn what_is_not_understood_or_not_there_is_said() {
    let value = || Change::Set("x".into());
    for (path, said) in [
        ("", "at byte 0: the name of an element"),
        ("/", "at byte 1: the name of an element"),
        ("//disk", "at byte 1: `//` is not understood"),
        ("devices//disk", "at byte 8: `//` is not understood"),
        ("devices/*", "at byte 8: `*` is not understood"),
        ("../name", "at byte 0: `.` and `..`"),
        ("devices/child::disk", "at byte 8: axes"),
        ("count(disk)", "functions are not understood"),
        ("devices/disk[last()]", "`='value'` belongs here"),
        ("devices/disk[0]/@x", "numbers count from 1"),
        ("devices/disk[99999999999999999999]", "numbers count from 1"),
        ("devices/disk[@dev=vda]", "a value in quotes"),
        ("devices/disk[@dev='vda]", "the closing ' is missing"),
        ("devices/disk[1", "`]` belongs here"),
        ("name/@x/y", "the path ends after"),
        ("name | title", "`/`, `[` or the end"),
        ("/domain[1]/name", "takes no predicate"),
        (
            "/network/name",
            "a <domain>, and the path starts at <network>",
        ),
        ("devices/disk/@x", "devices/disk matches 3 places"),
        (
            "devices/disk[@device='disk']/target/@dev",
            "devices/disk[@device='disk'] matches 2 places",
        ),
        ("devices", "/domain/devices holds elements"),
        ("/domain", "/domain holds elements"),
        (
            "devices/sound/codec/@type",
            "nothing matches devices/sound, and it cannot be made from this path: a device is made by",
        ),
        ("devices/disk[9]/@x", "the number is not the next one"),
        ("a/b[2]/@x", "the number is not the next one"),
        ("devices/disk[name='z']/@x", "compares the text of a child"),
        ("devices/x[1][@a='b']", "follows a number"),
        ("devices/x[@a='b'][@a='c']", "different values"),
    ] {
        let error = refuse(path, value());
        assert!(error.contains(said), "{path}: {error}");
    }
    assert!(refuse("name", Change::Set("\u{0}".into())).contains("U+0000"));
    for (path, said) in [
        ("title", "nothing matches title"),
        ("devices/disk[7]/target", "nothing matches devices/disk[7]"),
        ("name/@x", "nothing matches name/@x"),
        ("/domain", "root element"),
        ("devices/text()", "holds elements"),
        ("devices/disk", "matches 3 places"),
    ] {
        let error = refuse(path, Change::Delete);
        assert!(error.contains(said), "{path}: {error}");
    }
    assert!(refuse(&"a/".repeat(5000), value()).contains("at most 4096"));
}

#[test]
fn an_assignment_splits_outside_of_predicates() {
    assert_eq!(assignment("a/@b=c=d"), Some(("a/@b", "c=d")));
    assert_eq!(
        assignment("a[@b='x=]y']/@c=1"),
        Some(("a[@b='x=]y']/@c", "1"))
    );
    assert_eq!(assignment("a[@b='x'"), None);
    assert_eq!(assignment("title="), Some(("title", "")));
}

#[test]
fn patches_of_a_domain_come_last_and_refused_ones_are_unsaid() {
    let exported = export(&Domain(json!({
        "name": "a", "type": "kvm",
        "xml": [
            {"path": "name", "value": "b"},
            {"path": "//x", "value": "y"},
            {"path": "os", "delete": true},
            {"path": "name", "value": "c", "delete": true},
        ]
    })));
    assert!(exported.text.contains("<name>b</name>") && !exported.text.contains("<os>"));
    assert_eq!(exported.changed.len(), 2);
    assert_eq!(exported.unsaid, ["xml[1]", "xml[3]"]);
    assert_eq!(exported.refused[0].0, 1);
    assert_eq!(exported.refused[1], (3, PatchError::Unclear));
}

proptest::proptest! {
    #[test]
    fn no_path_panics_and_a_set_value_is_there(path in "[a-d/\\[\\]@='0-9()*.: ]{0,24}", delete in proptest::bool::ANY) {
        let mut root = doc();
        let change = if delete { Change::Delete } else { Change::Set("V&".into()) };
        if let Ok(done) = apply(&mut root, &path, change) {
            proptest::prop_assert_eq!(done.len(), 1);
            let again = parse::parse(&root.write()).unwrap();
            proptest::prop_assert_eq!(again.write(), root.write());
            if !delete {
                let mut once_more = root.clone();
                let more = apply(&mut once_more, &done[0].path, Change::Set("V&".into())).unwrap();
                proptest::prop_assert!(more.is_empty(), "{:?} then {:?}", done, more);
            }
        }
    }
}
