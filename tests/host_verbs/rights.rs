//! Where the host may not be changed: containers, and users without rights.

use super::*;

#[test]
fn in_a_container_the_host_stays_and_the_guest_runs() {
    let tree = Tree::new("container");
    tree.write(".dockerenv", "");
    let before = tree.whole();
    let refused = run(&mut tree.vsc(&["host", "apply", "one.yaml"]));
    expect_code(&refused, 125);
    let said = text(&refused.stderr);
    assert!(
        said.contains("in container: host tuning disabled (docker"),
        "{said}"
    );
    if have_kvm() {
        let output = run(&mut tree.vsc(&["quick.yaml"]));
        expect_code(&output, 0);
        assert!(text(&output.stderr).contains("in container: host tuning disabled (docker"));
        let quiet = run(&mut tree.vsc(&["-q", "quick.yaml"]));
        expect_code(&quiet, 0);
        assert_eq!(text(&quiet.stderr), "");
    }
    assert_eq!(tree.whole(), before);
}

/// Runs `words` of the program without rights: as nobody, or as a root that may no more than the files' owner.
fn without_rights(tree: &Tree, program: &Path, nobody: bool, words: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    match nobody {
        true => command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]),
        false => command.args(["--bounding-set=-all", "--inh-caps=-all"]),
    };
    command
        .arg(program)
        .arg("--host-root")
        .arg(tree.0.path("root"))
        .args(words)
        .current_dir(tree.0.path(""))
        .stdin(Stdio::null());
    run(&mut command)
}

#[test]
fn without_rights_what_cannot_be_done_is_said_in_one_line() {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return skip("only root can do without its rights");
    }
    let tree = Tree::new("nobody");
    // Nobody may not be able to reach the build directory.
    let program = tree.0.path("vsc-run");
    fs::copy(env!("CARGO_BIN_EXE_vsc-run"), &program).unwrap();
    let verdicts = |output: &Output| -> Vec<String> {
        expect_code(output, 0);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let changes = answer["changes"].as_array().unwrap().iter();
        changes
            .map(|change| change["verdict"]["verdict"].as_str().unwrap().to_owned())
            .collect()
    };
    // One of the values is nobody's to write. Without a place for a journal it is not written either.
    chown(tree.at(KSM), Some(65534), None).unwrap();
    let before = tree.whole();
    let apply = ["host", "apply", "quick.yaml", "--json"];
    let refused = without_rights(&tree, &program, true, &apply);
    expect_code(&refused, 125);
    let said = text(&refused.stderr);
    assert!(
        said.contains("the journal of host changes is not to be trusted"),
        "{said}"
    );
    assert_eq!(tree.whole(), before);
    chown(tree.at("run/vsc"), Some(65534), None).unwrap();
    let applied = without_rights(&tree, &program, true, &apply);
    assert_eq!(verdicts(&applied), ["skipped", "done", "skipped"]);
    expect_code(&without_rights(&tree, &program, true, &["host", "undo"]), 0);
    assert_eq!(tree.whole(), before);
    if !have_kvm() {
        return;
    }
    // The same the other way round, since nobody may not use /dev/kvm everywhere.
    for path in [THP, SWAPPINESS] {
        chown(tree.at(path), Some(65534), None).unwrap();
    }
    chown(tree.at(KSM), Some(0), None).unwrap();
    chown(tree.at("run/vsc"), Some(0), None).unwrap();
    let output = without_rights(&tree, &program, false, &["quick.yaml"]);
    expect_code(&output, 0);
    let said = text(&output.stderr);
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("W-HOST"))
        .collect();
    assert_eq!(lines.len(), 1, "{said}");
    assert!(
        lines[0].contains("2 of 3 changes of the host were not made"),
        "{said}"
    );
    assert!(lines[0].contains("this user may not write"), "{said}");
    let quiet = without_rights(&tree, &program, false, &["-q", "quick.yaml"]);
    assert_eq!(text(&quiet.stderr), "");
    assert_eq!(tree.whole(), before);
}
