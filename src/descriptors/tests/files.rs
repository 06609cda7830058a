//! Which files count, on hosts in directories.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{IMAGES, Q35, facts, flash, sid, wanted};
use crate::descriptors::{Catalogue, Found, select};
use crate::facts::{Facts, FileError, HostFacts, LiveFacts, Root, Variables};

/// A host in a directory.
struct Fake(PathBuf);

impl Fake {
    fn new(test: &str) -> Self {
        let root =
            std::env::temp_dir().join(format!("vsc-descriptors-{}-{test}", std::process::id()));
        fs::remove_dir_all(&root).ok();
        let fake = Fake(root);
        for image in IMAGES {
            fake.write(&format!("/fw/{image}.fd"), "image");
        }
        fake
    }

    /// A path of the host, whose directory exists.
    fn at(&self, path: &str) -> PathBuf {
        let path = Root(self.0.clone()).at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.at(path), text).unwrap();
    }

    fn facts(&self, privileged: bool) -> LiveFacts {
        let home = Some(PathBuf::from("/home/u"));
        let variables = Variables {
            home,
            privileged,
            ..Variables::default()
        };
        LiveFacts::new(Root(self.0.clone()), variables)
    }

    fn found(&self, privileged: bool) -> Vec<(String, Found)> {
        let files = self.facts(privileged).firmware(None);
        files
            .into_iter()
            .map(|f| (f.path.to_str().unwrap().to_owned(), f.found))
            .collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

const SHARE: &str = "/usr/share/qemu/firmware";
const ETC: &str = "/etc/qemu/firmware";
const HOME: &str = "/home/u/.config/qemu/firmware";

#[test]
fn the_more_specific_file_counts_and_names_are_sorted() {
    let fake = Fake::new("precedence");
    for (directory, names) in [
        (SHARE, &["50-b.json", "60-a.json", "9.json"][..]),
        (ETC, &["50-b.json", "10-c.json"]),
        (HOME, &["50-b.json", "70-d.json"]),
    ] {
        for name in names {
            fake.write(&format!("{directory}/{name}"), directory);
        }
    }
    let text = |directory: &str| Found::Text(directory.into());
    let masked = |by: &str| Found::Masked {
        by: format!("{by}/50-b.json").into(),
    };
    let expected = [
        (format!("{ETC}/10-c.json"), text(ETC)),
        (format!("{HOME}/50-b.json"), text(HOME)),
        (format!("{ETC}/50-b.json"), masked(HOME)),
        (format!("{SHARE}/50-b.json"), masked(HOME)),
        (format!("{SHARE}/60-a.json"), text(SHARE)),
        (format!("{HOME}/70-d.json"), text(HOME)),
        (format!("{SHARE}/9.json"), text(SHARE)),
    ];
    assert_eq!(fake.found(false), expected);
    // Root's home says nothing.
    let expected = [
        (format!("{ETC}/10-c.json"), text(ETC)),
        (format!("{ETC}/50-b.json"), text(ETC)),
        (format!("{SHARE}/50-b.json"), masked(ETC)),
        (format!("{SHARE}/60-a.json"), text(SHARE)),
        (format!("{SHARE}/9.json"), text(SHARE)),
    ];
    assert_eq!(fake.found(true), expected);

    let directory = Some(Path::new(ETC));
    let paths: Vec<_> = fake
        .facts(false)
        .firmware(directory)
        .into_iter()
        .map(|f| f.path)
        .collect();
    assert_eq!(
        paths,
        [format!("{ETC}/10-c.json"), format!("{ETC}/50-b.json")].map(PathBuf::from)
    );
}

#[test]
fn the_users_directory_is_where_the_variable_says() {
    let home = Some(PathBuf::from("/home/u"));
    let config_home = Some(PathBuf::from("/cfg"));
    let directories = |variables| LiveFacts::new(Root::default(), variables).firmware_directories();
    let paths = |third: &str| [SHARE, ETC, third].map(PathBuf::from).to_vec();
    let variables = Variables {
        home,
        ..Variables::default()
    };
    assert_eq!(directories(variables.clone()), paths(HOME));
    let variables = Variables {
        config_home,
        ..variables
    };
    assert_eq!(directories(variables.clone()), paths("/cfg/qemu/firmware"));
    assert_eq!(
        directories(Variables {
            privileged: true,
            ..variables
        }),
        paths("/")[..2]
    );
    assert_eq!(directories(Variables::default()), paths("/")[..2]);
}

#[test]
fn empty_files_and_links_to_null_mask() {
    let fake = Fake::new("masks");
    for name in ["1.json", "2.json", "3.json", "4.json"] {
        fake.write(&format!("{SHARE}/{name}"), "text");
    }
    fake.write(&format!("{ETC}/1.json"), "");
    symlink("/dev/null", fake.at(&format!("{ETC}/2.json"))).unwrap();
    symlink("1.json", fake.at(&format!("{ETC}/3.json"))).unwrap();
    // A more specific file shows again what a general one masks.
    fake.write(&format!("{ETC}/4.json"), "");
    fake.write(&format!("{HOME}/4.json"), "mine");
    let found = fake.found(false);
    let of = |path: &str| found.iter().find(|(p, _)| p == path).unwrap().1.clone();
    for name in ["1.json", "2.json", "3.json"] {
        let by = PathBuf::from(format!("{ETC}/{name}"));
        assert_eq!(of(&format!("{ETC}/{name}")), Found::Empty, "{name}");
        assert_eq!(
            of(&format!("{SHARE}/{name}")),
            Found::Masked { by },
            "{name}"
        );
    }
    assert_eq!(of(&format!("{HOME}/4.json")), Found::Text("mine".into()));
    let catalogue = Catalogue::read(&fake.facts(true), None);
    assert_eq!(
        (catalogue.descriptors.len(), catalogue.skipped.len()),
        (0, 8)
    );
    assert_eq!(catalogue.warnings().len(), 0);
}

#[test]
fn what_is_no_descriptor_is_not_read() {
    let fake = Fake::new("others");
    let good = flash("CODE", Q35, &[]);
    fake.write(&format!("{SHARE}/50-a.json"), &good);
    fake.write(
        &format!("{SHARE}/60-big.json"),
        &format!("{good}{}", " ".repeat(1 << 20)),
    );
    fake.write(
        &format!("{SHARE}/60-fits.json"),
        &format!("{good}{}", " ".repeat((1 << 20) - good.len())),
    );
    fs::write(fake.at(&format!("{SHARE}/60-bytes.json")), [b'{', 0xff]).unwrap();
    for name in [
        ".50-a.json.swp",
        ".json",
        "50-a.json~",
        "README",
        "50-a.JSON",
    ] {
        fake.write(&format!("{SHARE}/{name}"), "x");
    }
    // A directory of the same name hides nothing; a link to nowhere does.
    fs::create_dir_all(fake.at(&format!("{ETC}/50-a.json"))).unwrap();
    fake.write(&format!("{SHARE}/70-gone.json"), &good);
    symlink("nowhere", fake.at(&format!("{ETC}/70-gone.json"))).unwrap();

    let catalogue = Catalogue::read(&fake.facts(true), None);
    let files: Vec<_> = catalogue
        .descriptors
        .iter()
        .map(|d| d.file.to_str().unwrap())
        .collect();
    assert_eq!(
        files,
        [
            format!("{SHARE}/50-a.json"),
            format!("{SHARE}/60-fits.json")
        ]
    );
    assert_eq!(catalogue.descriptors[0].missing, []);
    let skipped: Vec<_> = catalogue
        .skipped
        .iter()
        .map(|s| {
            format!(
                "{} {}",
                s.file.file_name().unwrap().to_str().unwrap(),
                s.why
            )
        })
        .collect();
    assert_eq!(
        skipped,
        [
            ".50-a.json.swp ignored: a hidden file",
            ".json ignored: a hidden file",
            "50-a.JSON ignored: the name does not end in .json",
            "50-a.json ignored: not a regular file",
            "50-a.json~ ignored: the name does not end in .json",
            "60-big.json longer than 1 MiB, which no descriptor is",
            "60-bytes.json not UTF-8 text",
            "70-gone.json there is no such file",
            "70-gone.json masked by /etc/qemu/firmware/70-gone.json",
            "README ignored: the name does not end in .json",
        ]
    );
    assert_eq!(catalogue.warnings().len(), 3);
}

#[test]
fn a_directory_that_was_named_must_be_there() {
    let fake = Fake::new("named");
    assert_eq!(fake.found(false), []);
    let catalogue = Catalogue::read(&fake.facts(false), Some(Path::new("/none")));
    assert_eq!(
        catalogue.warnings()[0].message,
        "The firmware descriptors in /none cannot be read: there is no such file"
    );
    // A file where a directory should be is one even there where none need be.
    fake.write(SHARE, "");
    let found = fake.found(false);
    assert_eq!(found.len(), 1);
    assert!(
        matches!(found[0].1, Found::Unreadable(FileError::Other(_))),
        "{found:?}"
    );
}

#[test]
fn recorded_facts_say_what_the_host_said() {
    let fake = Fake::new("recorded");
    for (name, text) in sid() {
        fake.write(&format!("{SHARE}/{name}"), &text);
    }
    fake.write(&format!("{ETC}/40-enrolled.json"), "");
    let mut recorded = facts(Vec::new());
    recorded.firmware = fake.facts(true).firmware(None);
    let text = serde_json::to_string(&recorded).unwrap();
    let replayed: HostFacts = serde_json::from_str(&text).unwrap();
    assert_eq!(replayed, recorded);
    let live = Catalogue::read(&fake.facts(true), None);
    assert_eq!(Catalogue::read(&replayed, None), live);
    assert_eq!((live.descriptors.len(), live.skipped.len()), (4, 2));
    assert_eq!(
        Catalogue::read(&replayed, Some(Path::new("/none"))),
        Catalogue::default()
    );
}

#[test]
fn reading_and_selecting_takes_less_than_a_millisecond() {
    let fake = Fake::new("time");
    for (name, text) in sid() {
        fake.write(&format!("{SHARE}/{name}"), &text);
    }
    let facts = fake.facts(true);
    let wanted = wanted("q35", &["intel-tdx"]);
    let fastest = (0..50)
        .map(|_| {
            let started = Instant::now();
            select(&Catalogue::read(&facts, None).descriptors, &wanted).unwrap();
            started.elapsed()
        })
        .min();
    assert!(fastest < Some(Duration::from_millis(1)), "{fastest:?}");
}
