//! The dependencies that we find are those that the loader itself finds, for the programs of this host.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use vsc_firmware::initrd::ImageError;
use vsc_firmware::initrd::elf::{Finder, Kind};

const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

fn finder() -> Finder {
    Finder::new(OsStr::new(
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ))
}

/// What `ldd` prints: the libraries' paths, or which are missing.
fn loader_says(program: &Path) -> Result<BTreeSet<PathBuf>, Vec<String>> {
    // As ldd(1) does: `--list` stops at the first missing library.
    let real = fs::canonicalize(program).unwrap();
    let output = Command::new(LOADER)
        .arg(real)
        .env_clear()
        .env("LD_TRACE_LOADED_OBJECTS", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let missing: Vec<String> = text
        .lines()
        .filter_map(|line| line.trim().strip_suffix(" => not found"))
        .map(str::to_owned)
        .collect();
    if !missing.is_empty() {
        return Err(missing);
    }
    let path = |line: &str| {
        let (left, _) = line.trim().rsplit_once(" (0x")?;
        let path = left.split_once(" => ").map_or(left, |(_, path)| path);
        path.starts_with('/')
            .then(|| fs::canonicalize(path).unwrap())
    };
    Ok(text.lines().filter_map(path).collect())
}

/// Dynamically linked ELF programs of a directory; the loader can list them, and running it is safe.
fn programs(directory: &str) -> Vec<PathBuf> {
    let mut programs: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let Ok(file) = fs::metadata(path) else {
                return false;
            };
            // Set-user-id programs are like others to --list, but unreadable ones are not.
            file.is_file()
                && fs::read(path)
                    .is_ok_and(|bytes| bytes.starts_with(b"\x7fELF") && has_loader(&bytes))
        })
        .collect();
    programs.sort();
    programs
}

fn has_loader(bytes: &[u8]) -> bool {
    bytes
        .windows(LOADER.len())
        .any(|window| window == LOADER.as_bytes())
}

#[test]
fn every_program_of_usr_bin_needs_what_the_loader_lists() {
    let finder = finder();
    let mut compared = 0;
    let mut differing = Vec::new();
    for program in programs("/usr/bin").into_iter().take(300) {
        let ours = finder.closure(&program);
        match (loader_says(&program), ours) {
            (Ok(expected), Ok(needed)) => {
                let found: BTreeSet<PathBuf> = needed
                    .iter()
                    .filter(|needed| needed.kind != Kind::Program)
                    .map(|needed| fs::canonicalize(&needed.path).unwrap())
                    .collect();
                // A static program for which the string is only data has nothing listed.
                if found != expected && !expected.is_empty() {
                    let only =
                        |a: &BTreeSet<PathBuf>, b: &BTreeSet<PathBuf>| format!("{:?}", a - b);
                    differing.push(format!(
                        "{}: only ours {}, only the loader's {}",
                        program.display(),
                        only(&found, &expected),
                        only(&expected, &found)
                    ));
                }
                compared += 1;
            }
            (Err(missing), Err(ImageError::NoLibrary { name, .. })) if missing.contains(&name) => {
                compared += 1
            }
            (expected, ours) => {
                differing.push(format!("{}: {ours:?}, not {expected:?}", program.display()))
            }
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert!(compared > 50, "only {compared} programs");
}

/// A directory of this test alone, gone at its end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vsc-elf-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(fs::canonicalize(&path).unwrap())
    }

    /// Compiles C with the host's compiler; what is compiled is never run.
    fn compile(&self, output: &str, source: &str, arguments: &[&str]) -> PathBuf {
        let (file, output) = (self.0.join("source.c"), self.0.join(output));
        fs::create_dir_all(output.parent().unwrap()).unwrap();
        fs::write(&file, source).unwrap();
        let status = Command::new("cc")
            .current_dir(&self.0)
            .arg("-o")
            .arg(&output)
            .arg(&file)
            .args(arguments)
            .status();
        assert!(status.unwrap().success());
        output
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const USE: &str = "int f(void); int main(void) { return f(); }";

fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    let needed = finder().closure(program).unwrap();
    needed
        .iter()
        .filter(|needed| needed.kind != Kind::Program)
        .map(|n| fs::canonicalize(&n.path).unwrap())
        .collect()
}

#[test]
fn run_paths_with_origin_are_followed_and_inherited_only_where_the_loader_does() {
    let place = Place::new("origin");
    place.compile(
        "lib/deep/libg.so",
        "int g(void) { return 3; }",
        &["-shared", "-fPIC"],
    );
    let g = ["-Llib/deep", "-lg"];
    place.compile(
        "lib/libf.so",
        "int g(void); int f(void) { return g(); }",
        &["-shared", "-fPIC", g[0], g[1]],
    );
    let link = |tag: &str, paths: &str, name: &str| {
        let run_path = format!("-Wl,{tag},-rpath,{paths}");
        place.compile(
            name,
            USE,
            &["-Llib", "-lf", "-Wl,-rpath-link,lib/deep", &run_path],
        )
    };
    // DT_RPATH holds for libraries of libraries, and its own real path counts, not the link's.
    let program = link(
        "--disable-new-dtags",
        "$ORIGIN/lib:${ORIGIN}/lib/deep",
        "old",
    );
    symlink("old", place.0.join("linked")).unwrap();
    for program in [program, place.0.join("linked")] {
        assert_eq!(libraries(&program), loader_says(&program).unwrap());
        assert!(libraries(&program).contains(&place.0.join("lib/deep/libg.so")));
    }
    // DT_RUNPATH does not.
    let program = link("--enable-new-dtags", "$ORIGIN/lib:$ORIGIN/lib/deep", "new");
    assert_eq!(loader_says(&program), Err(vec!["libg.so".to_owned()]));
    let error = finder().closure(&program).unwrap_err();
    let expected = format!(
        "Cannot find the library libg.so, which {} needs",
        place.0.join("lib/libf.so").display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn static_programs_need_nothing_but_themselves() {
    let place = Place::new("static");
    for flag in ["-static", "-static-pie"] {
        let program = place.compile("program", "int main(void) { return 0; }", &[flag]);
        let needed = finder().closure(&program).unwrap();
        assert_eq!(needed.len(), 1, "{flag}: {needed:?}");
    }
}

#[test]
fn scripts_bring_their_interpreters() {
    let place = Place::new("scripts");
    let paths = |program: &Path| -> Vec<PathBuf> {
        finder()
            .closure(program)
            .unwrap()
            .into_iter()
            .filter(|n| n.kind == Kind::Program)
            .map(|n| n.path)
            .collect()
    };
    let plain = place.script("plain", "#! /bin/sh -e\ntrue\n");
    assert_eq!(paths(&plain), [plain.as_path(), Path::new("/bin/sh")]);
    let env = place.script("env", "#!/usr/bin/env -S A=b bash -e\ntrue\n");
    assert_eq!(
        paths(&env),
        [
            env.as_path(),
            Path::new("/usr/bin/env"),
            Path::new("/usr/bin/bash")
        ]
    );
    let nested = place.script("nested", &format!("#!{}\n", plain.display()));
    assert_eq!(
        paths(&nested),
        [nested.as_path(), plain.as_path(), Path::new("/bin/sh")]
    );

    let lost = place.script("lost", "#!/no/such/interpreter\n");
    let error = finder().closure(&lost).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "Cannot find the interpreter /no/such/interpreter, which {} needs",
            lost.display()
        )
    );
    let own = place.script("own", &format!("#!{}\n", place.0.join("own").display()));
    assert!(matches!(
        finder().closure(&own),
        Err(ImageError::Interpreters { .. })
    ));
}

#[test]
fn what_is_no_program_is_said() {
    let place = Place::new("broken");
    let text = place.script("text", "just text\n");
    assert!(matches!(
        finder().closure(&text),
        Err(ImageError::NotAProgram { .. })
    ));
    let mut bytes = fs::read("/usr/bin/env").unwrap();
    bytes[18] = 183;
    let arm = place.0.join("arm");
    fs::write(&arm, &bytes).unwrap();
    assert!(matches!(
        finder().closure(&arm),
        Err(ImageError::OtherMachine { .. })
    ));
    // Every truncation is an error or reads as something smaller, and none panics.
    let whole = fs::read("/usr/bin/env").unwrap();
    let cut = place.0.join("cut");
    for length in (0..whole.len()).step_by(997) {
        fs::write(&cut, &whole[..length]).unwrap();
        let _ = finder().closure(&cut);
    }
    fs::write(&cut, &whole[..100]).unwrap();
    assert!(matches!(
        finder().closure(&cut),
        Err(ImageError::BrokenElf { .. })
    ));
    assert!(matches!(
        finder().program("no-such-program"),
        Err(ImageError::NoProgram { .. })
    ));
    assert!(matches!(
        finder().closure(Path::new("/dev/null")),
        Err(ImageError::Special { .. })
    ));
}
