use std::fs;
use std::path::PathBuf;

use super::*;

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vsc-copy-{}-{name}", std::process::id()));
        fs::remove_dir_all(&path).ok();
        fs::create_dir_all(path.join("to")).unwrap();
        fs::write(path.join("image"), "").unwrap();
        Dir(path)
    }

    fn feed(&self, limit: u64, frames: &[Frame]) -> Result<Copied, InsideError> {
        let image = Image::open(&self.0.join("image")).unwrap();
        let mut copier = Copier::new(&image, &self.0.join("to"), limit, 400)?;
        for frame in frames {
            copier.take(frame.clone())?;
        }
        copier.finish()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn entry(name: &[u8], kind: Kind, size: u64, target: Option<&str>) -> Frame {
    Frame::Entry(Entry {
        name: name.to_vec(),
        kind,
        mode: 0o6755,
        uid: 0,
        gid: 0,
        size,
        modified: None,
        target: target.map(|t| t.as_bytes().to_vec()),
    })
}

fn directory(name: &str) -> Frame {
    entry(name.as_bytes(), Kind::Directory, 0, None)
}

fn file(name: &str, size: u64) -> Frame {
    entry(name.as_bytes(), Kind::File, size, None)
}

fn link(name: &str, target: &str) -> Frame {
    entry(name.as_bytes(), Kind::Link, 0, Some(target))
}

#[test]
fn a_tree_is_made_as_it_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let dir = Dir::new("tree");
    let data = |text: &str| Frame::Data(text.as_bytes().to_vec());
    let copied = dir.feed(
        100,
        &[
            directory("d"),
            file("a", 6),
            data("abc"),
            data("\0\0\0"),
            directory("e"),
            link("in", "../a"),
            link("out", "../../x"),
            entry(b"pipe", Kind::Other, 0, None),
            Frame::Up,
            file("empty", 0),
            Frame::Up,
        ],
    );
    let copied = copied.unwrap();
    assert_eq!(
        (copied.files, copied.directories, copied.links, copied.bytes),
        (2, 2, 1, 6)
    );
    let names: Vec<&str> = copied.left_out.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(names, ["d/e/out", "d/e/pipe"]);
    let made = dir.0.join("to/d/a");
    assert_eq!(fs::read(&made).unwrap(), b"abc\0\0\0");
    assert_eq!(
        fs::metadata(&made).unwrap().permissions().mode() & 0o7000,
        0
    );
    assert_eq!(fs::read(dir.0.join("to/d/e/in")).unwrap(), b"abc\0\0\0");
}

#[test]
fn nothing_is_made_elsewhere() {
    for name in [&b".."[..], b".", b"", b"a/b", b"/x", b"a\0b", b"../x"] {
        let dir = Dir::new("names");
        for kind in [Kind::File, Kind::Directory, Kind::Link] {
            let frames = [directory("d"), entry(name, kind, 0, Some("x"))];
            let error = dir.feed(100, &frames).unwrap_err();
            assert!(
                matches!(error, InsideError::Nonsense(..)),
                "{name:?} {error}"
            );
            assert!(!dir.0.join("to/d").exists(), "what fails leaves nothing");
        }
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 2);
    }
}

#[test]
fn what_is_there_stays_and_links_are_not_followed() {
    let dir = Dir::new("there");
    let to = dir.0.join("to");
    fs::write(dir.0.join("mine"), "mine").unwrap();
    std::os::unix::fs::symlink(dir.0.join("mine"), to.join("a")).unwrap();
    std::os::unix::fs::symlink(&dir.0, to.join("d")).unwrap();
    for frames in [
        vec![file("a", 3), Frame::Data(b"bad".to_vec())],
        vec![directory("d"), file("new", 0), Frame::Up],
        // A link of the image, and then a directory of the same name.
        vec![
            directory("t"),
            link("x", "y"),
            directory("x"),
            Frame::Up,
            Frame::Up,
        ],
    ] {
        let error = dir.feed(100, &frames).unwrap_err();
        assert!(matches!(error, InsideError::There(..)), "{error}");
    }
    assert_eq!(fs::read_to_string(dir.0.join("mine")).unwrap(), "mine");
    assert!(!dir.0.join("new").exists());
}

#[test]
fn nonsense_is_refused() {
    let data = |n: usize| Frame::Data(vec![1; n]);
    for frames in [
        vec![],
        vec![data(1)],
        vec![Frame::Up],
        vec![file("a", 1)],
        vec![file("a", 1), data(2)],
        vec![file("a", 0), file("b", 0)],
        vec![directory("d"), Frame::Up, Frame::Up],
        vec![directory("d")],
        vec![directory("d"), Frame::Up, file("b", 0)],
        vec![Frame::Done],
    ] {
        let dir = Dir::new("nonsense");
        let error = dir.feed(100, &frames).unwrap_err();
        assert!(
            matches!(error, InsideError::Nonsense(..)),
            "{frames:?}: {error}"
        );
    }
    let dir = Dir::new("limit");
    let error = dir.feed(9, &[directory("d"), file("a", 10)]).unwrap_err();
    assert!(matches!(error, InsideError::TooMuch(_, 9)));
}

#[test]
fn links_that_lead_out_are_known() {
    for (target, depth, stays_) in [
        ("a", 0, true),
        ("a/b/./c", 0, true),
        ("../a", 1, true),
        ("../a", 0, false),
        ("../../a", 1, false),
        ("/etc/passwd", 9, false),
        ("a/../b", 9, false),
        ("", 9, false),
        (".", 0, true),
    ] {
        assert_eq!(stays(target.as_bytes(), depth), stays_, "{target}");
    }
}

#[test]
fn more_files_or_deeper_ones_than_was_agreed_to_leave_nothing() {
    let dir = Dir::new("many");
    let many = (0..1000).map(|n| file(&n.to_string(), 0));
    let many: Vec<Frame> = [directory("d")].into_iter().chain(many).collect();
    let error = dir.feed(100, &many).unwrap_err();
    assert!(matches!(error, InsideError::TooMany(_, 400)), "{error}");
    let pipes: Vec<Frame> = (0..1000)
        .map(|n| entry(n.to_string().as_bytes(), Kind::Other, 0, None))
        .collect();
    let pipes: Vec<Frame> = [directory("d")].into_iter().chain(pipes).collect();
    let error = dir.feed(100, &pipes).unwrap_err();
    assert!(matches!(error, InsideError::TooMany(..)), "{error}");
    let deep: Vec<Frame> = (0..300).map(|_| directory("d")).collect();
    let error = dir.feed(100, &deep).unwrap_err();
    assert!(matches!(error, InsideError::TooDeep(_, DEPTH)), "{error}");
    assert_eq!(fs::read_dir(dir.0.join("to")).unwrap().count(), 0);
}

#[test]
fn what_was_killed_is_removed_by_the_next_and_who_works_is_left_alone() {
    let dir = Dir::new("stages");
    let to = dir.0.join("to");
    let stage = |name: &str| {
        let stage = to.join(format!("{STAGE}{name}"));
        fs::create_dir_all(stage.join("half/way")).unwrap();
        fs::write(stage.join("half/file"), "x").unwrap();
        stage
    };
    let (dead, alive) = (stage("dead"), stage("alive"));
    fs::write(to.join(format!("{STAGE}file")), "mine").unwrap();
    let lock = File::open(&alive).unwrap();
    lock.lock().unwrap();
    dir.feed(100, &[directory("d"), Frame::Up]).unwrap();
    assert!(!dead.exists() && alive.join("half/file").exists());
    // With its holder it is alive, and without it is not.
    drop(lock);
    dir.feed(100, &[directory("e"), Frame::Up]).unwrap();
    let mut names: Vec<_> = fs::read_dir(&to)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [&format!("{STAGE}file"), "d", "e"]);
}

#[test]
fn nothing_has_its_name_before_it_is_whole() {
    let dir = Dir::new("whole");
    let to = dir.0.join("to");
    let image = Image::open(&dir.0.join("image")).unwrap();
    let names = || -> Vec<String> {
        let entries = fs::read_dir(&to).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with(STAGE)).collect()
    };
    for (frames, name) in [
        (vec![file("a", 3), Frame::Data(b"abc".to_vec())], "a"),
        (vec![directory("d"), file("x", 0), Frame::Up], "d"),
    ] {
        let mut copier = Copier::new(&image, &to, 100, 400).unwrap();
        for frame in frames {
            copier.take(frame).unwrap();
            assert!(names().is_empty() || names() == ["a"], "{:?}", names());
            assert!(!to.join(name).exists());
        }
        copier.finish().unwrap();
        assert!(to.join(name).exists());
    }
    // What came meanwhile stays, and the copy is no more.
    let mut copier = Copier::new(&image, &to, 100, 400).unwrap();
    copier.take(directory("late")).unwrap();
    copier.take(Frame::Up).unwrap();
    fs::write(to.join("late"), "mine").unwrap();
    let error = copier.finish().unwrap_err();
    assert!(matches!(error, InsideError::There(..)), "{error}");
    assert_eq!(fs::read_to_string(to.join("late")).unwrap(), "mine");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 3);
}
