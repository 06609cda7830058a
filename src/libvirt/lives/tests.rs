use std::path::{Path, PathBuf};

use super::*;

/// A virsh that notes its words and plays what files in its directory say: `state` (of the domain d), `uuid`, `xml`,
/// and refusals of `define` and `start`.
struct Fake(PathBuf);

/// Read by `sh -c`: the command of virsh is `$0`, its words are `$1`, ….
const SCRIPT: &str = r#"
echo "$0 $*" >>words
case $0 in
list)
    echo " Id   Name   State"
    echo "----------------------"
    if [ -e state ]; then echo " -    d      $(cat state)"; fi
    echo " 3    other one   in shutdown"
    echo ;;
domuuid) cat uuid ;;
dumpxml) cat xml ;;
undefine) rm state ;;
define)
    cat >given
    if [ -e refuse-define ] && ! grep -q OLD given; then echo "error: no such machine" >&2; exit 1; fi
    cp given xml
    echo "shut off" >state ;;
start)
    if [ -e refuse-start ]; then echo "error: no memory" >&2; exit 1; fi
    echo running >state ;;
event)
    echo "event 'lifecycle' for domain 'd': Started Booted"
    printf "event 'lifecycle' for do"
    echo "main 'd': Stopped Shutdown" ;;
esac
"#;

impl Fake {
    fn new(name: &str) -> (Self, Virsh) {
        let dir = std::env::temp_dir().join(format!("vsc-lives-{name}-{}", std::process::id()));
        std::fs::remove_dir_all(&dir).ok();
        std::fs::create_dir(&dir).unwrap();
        let fake = Self(dir);
        fake.put("virsh", SCRIPT);
        // Not executed itself: a file that was just written may still be open in a child of another test.
        let url = format!("cd {} && . ./virsh", fake.0.display());
        let virsh = Virsh::new(url).program("/bin/sh");
        (fake, virsh)
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).unwrap_or_default()
    }

    /// The commands so far, first words only.
    fn commands(&self) -> String {
        let words = self.text("words");
        let first = words.lines().filter_map(|l| l.split(' ').next());
        first.collect::<Vec<_>>().join(" ")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

const NEW: &str =
    "<domain><name>d</name><uuid>6F1c2b1a-9d0e-4c51-9c3f-0a4d5e6f7a8b</uuid></domain>";
const UUID: &str = "6f1c2b1a-9d0e-4c51-9c3f-0a4d5e6f7a8b\n\n";
const OLD: &str = "<domain><name>d</name><!-- OLD --></domain>";

#[test]
fn rows_of_the_list_have_names_with_blanks() {
    for (line, expected) in [
        (" 1    a       running", Some(("a", "running"))),
        (" -    my vm   shut off", Some(("my vm", "shut off"))),
        (" 12   running   paused", Some(("running", "paused"))),
        (" Id   Name   State", None),
        ("-----------------", None),
        ("", None),
    ] {
        let expected = expected.map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(row(line), expected, "{line}");
    }
}

#[test]
fn events_are_read_from_their_lines() {
    for (line, what, detail) in [
        (
            "event 'lifecycle' for domain 'd': Stopped Shutdown",
            "Stopped",
            "Shutdown",
        ),
        (
            "event 'lifecycle' for domain 'a: b': Shutdown Finished after guest request",
            "Shutdown",
            "Finished after guest request",
        ),
        (
            "event 'lifecycle' for domain d: Crashed Panicked",
            "Crashed",
            "Panicked",
        ),
    ] {
        let event = Event::of(line).unwrap();
        assert_eq!((event.what.as_str(), event.detail.as_str()), (what, detail));
        assert_eq!(event.is_end(), what == "Stopped");
    }
    assert_eq!(Event::of("events received: 2"), None);
}

#[test]
fn a_new_domain_is_defined_and_started() {
    let (fake, virsh) = Fake::new("new");
    let undo = virsh.hand_over("d", NEW, Existing::Refuse).unwrap();
    assert_eq!(fake.text("given"), NEW);
    virsh.start_handed_over(&undo).unwrap();
    assert_eq!(virsh.state("d").unwrap().as_deref(), Some("running"));
    assert_eq!(
        virsh.state("other one").unwrap().as_deref(),
        Some("in shutdown")
    );
    assert_eq!(virsh.state("x").unwrap(), None);
    assert!(
        fake.text("words")
            .starts_with("list --all\ndefine --validate --file /dev/stdin\nstart -- d\n")
    );
}

#[test]
fn an_existing_one_is_in_the_way_unless_it_is_ours_or_may_be_replaced() {
    let (fake, virsh) = Fake::new("existing");
    fake.put("state", "shut off");
    fake.put("uuid", UUID);
    fake.put("xml", OLD);
    let refused = virsh.hand_over("d", NEW, Existing::Refuse).unwrap_err();
    assert!(
        refused
            .to_string()
            .ends_with("has a domain d already; --overwrite replaces it"),
        "{refused}"
    );
    virsh.hand_over("d", NEW, Existing::ReplaceOurs).unwrap();
    assert!(
        !fake.commands().contains("undefine"),
        "one that is ours is replaced in place"
    );
    fake.put("uuid", "11111111-9d0e-4c51-9c3f-0a4d5e6f7a8b\n");
    assert!(matches!(
        virsh.hand_over("d", NEW, Existing::ReplaceOurs),
        Err(HandOverError::Exists { .. })
    ));
    fake.put("words", "");
    virsh.hand_over("d", NEW, Existing::Replace).unwrap();
    assert_eq!(fake.commands(), "list domuuid dumpxml undefine define");
    fake.put("state", "paused");
    let refused = virsh.hand_over("d", NEW, Existing::Replace).unwrap_err();
    assert!(
        matches!(refused, HandOverError::Running { .. }),
        "{refused}"
    );
}

#[test]
fn what_is_refused_leaves_what_was() {
    for uuid in [UUID, "11111111-9d0e-4c51-9c3f-0a4d5e6f7a8b\n"] {
        let (fake, virsh) = Fake::new("refused");
        fake.put("state", "shut off");
        fake.put("uuid", uuid);
        fake.put("xml", OLD);
        fake.put("refuse-define", "");
        let refused = virsh.hand_over("d", NEW, Existing::Replace).unwrap_err();
        assert!(
            refused.to_string().ends_with("no such machine"),
            "{refused}"
        );
        assert_eq!(
            (fake.text("xml").as_str(), fake.text("state").trim()),
            (OLD, "shut off")
        );
        std::fs::remove_file(fake.0.join("refuse-define")).unwrap();
        fake.put("refuse-start", "");
        let undo = virsh.hand_over("d", NEW, Existing::Replace).unwrap();
        assert_eq!(fake.text("xml"), NEW);
        let refused = virsh.start_handed_over(&undo).unwrap_err();
        assert!(refused.to_string().ends_with("no memory"), "{refused}");
        assert_eq!(
            (fake.text("xml").as_str(), fake.text("state").trim()),
            (OLD, "shut off")
        );
    }
    // Where nothing was, nothing is left.
    let (fake, virsh) = Fake::new("nothing");
    fake.put("refuse-start", "");
    let undo = virsh.hand_over("d", NEW, Existing::Refuse).unwrap();
    virsh.start_handed_over(&undo).unwrap_err();
    assert_eq!(virsh.state("d").unwrap(), None);
}

#[test]
fn xml_without_an_identity_gets_one() {
    let given = identified("<domain type='qemu'><name>d</name></domain>", UUID.trim());
    assert_eq!(uuid_of(&given).as_deref(), Some(UUID.trim()));
    assert!(given.contains("<name>d</name>"), "{given}");
    assert_eq!(identified(NEW, "x"), NEW);
    assert_eq!(identified("no XML", "x"), "no XML");
}

#[test]
fn what_is_shown_has_no_passwords() {
    let old =
        "<domain><devices><graphics type='vnc' passwd='geheim' port='-1'/></devices></domain>";
    let shown = without_passwords(old);
    assert!(
        !shown.contains("geheim") && shown.contains("port='-1'"),
        "{shown}"
    );
    assert_eq!(without_passwords("passwd='geheim'"), "");
}

#[test]
fn events_come_as_they_happen_and_end_with_the_listener() {
    let (fake, virsh) = Fake::new("events");
    let mut events = virsh.listen("d").unwrap();
    let mut all = Vec::new();
    while let Some(some) = events.read().unwrap() {
        all.extend(some);
    }
    let all: Vec<_> = all.iter().map(|e| e.what.as_str()).collect();
    assert_eq!(all, ["Started", "Stopped"]);
    assert!(fake.text("words").ends_with("--loop --domain d\n"));
    let missing = Virsh::new("x")
        .program(Path::new("/nonexistent/virsh"))
        .listen("d");
    assert!(matches!(missing, Err(VirshError::Missing(_))));
}
