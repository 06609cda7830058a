//! The journal: damaged, or held by somebody who stopped.

use super::*;

#[test]
fn a_damaged_journal_is_an_error_that_says_what_to_do() {
    let tree = Tree::new("damaged");
    tree.json(&["host", "apply", "one.yaml"]);
    let before = tree.whole();
    let sound = tree.read(JOURNAL);
    tree.write(JOURNAL, &sound.replacen("madvise", "madness", 1));
    for words in [
        &["host", "status"][..],
        &["host", "undo"],
        &["gc"],
        &["host", "apply", "two.yaml"],
    ] {
        let output = run(&mut tree.vsc(words));
        expect_code(&output, 125);
        assert!(
            text(&output.stderr).contains("vsc-run host undo --force"),
            "{}",
            text(&output.stderr)
        );
    }
    if have_kvm() {
        // Recommendations give way.
        let output = run(&mut tree.vsc(&["quick.yaml"]));
        expect_code(&output, 0);
        assert!(text(&output.stderr).contains("The host stays as it is"));
    }
    tree.write(JOURNAL, &sound);
    assert_eq!(tree.whole(), before);
    expect_code(&run(&mut tree.vsc(&["host", "undo"])), 0);
    assert!(!tree.at(JOURNAL).exists());
}

#[test]
fn what_a_damaged_journal_does_not_say_any_more_is_not_lost_without_a_word() {
    let tree = Tree::new("unread");
    tree.json(&["host", "apply", "one.yaml"]);
    let damaged = tree.read(JOURNAL).replacen("madvise", "madness", 1);
    tree.write(JOURNAL, &damaged);
    let output = run(&mut tree.vsc(&["host", "undo", "--force"]));
    expect_code(&output, 125);
    let said = text(&output.stderr);
    let kept = tree.at("run/vsc/journal.damaged");
    assert!(
        said.contains("line 1: its checksum does not fit") && said.contains(kept.to_str().unwrap()),
        "{said}"
    );
    assert_eq!(text(&output.stdout), "");
    assert_eq!(fs::read_to_string(kept).unwrap(), damaged);
    assert_eq!(tree.read(THP), "always");
    // From here on there is a sound one: none.
    let output = run(&mut tree.vsc(&["host", "undo"]));
    expect_code(&output, 0);
    assert_eq!(text(&output.stdout), "nothing to undo\n");
}

/// A process that has locked the journal and been stopped.
fn stopped_at_the_journal(tree: &Tree) -> Child {
    let mut holder = Command::new("flock")
        .arg(tree.at("run/vsc/host"))
        .args(["sh", "-c", "echo locked; read end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut locked = [0; 7];
    let stdout = holder.stdout.as_mut().unwrap();
    stdout.read_exact(&mut locked).unwrap();
    stop(holder.id());
    holder
}

#[test]
fn a_stopped_process_at_the_journal_is_named_with_a_way_out() {
    let tree = Tree::new("stopped");
    tree.json(&["host", "apply", "one.yaml"]);
    let before = tree.whole();
    let mut holder = stopped_at_the_journal(&tree);
    let way_out = format!("`kill -CONT {}`", holder.id());
    for words in [&["host", "status"][..], &["host", "undo"], &["gc"]] {
        let output = run(&mut tree.vsc(words));
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(said.contains("(flock), which is stopped"), "{said}");
        assert!(said.contains(&way_out), "{said}");
    }
    assert_eq!(tree.whole(), before);
    if have_kvm() {
        // Recommendations give way.
        let output = run(&mut tree.vsc(&["quick.yaml"]));
        expect_code(&output, 0);
        assert!(text(&output.stderr).contains(&way_out));
    }
    signal(pid(&holder), libc::SIGCONT);
    drop(holder.stdin.take());
    holder.wait().unwrap();
    expect_code(&run(&mut tree.vsc(&["host", "undo"])), 0);
    assert!(!tree.at(JOURNAL).exists());
}

#[test]
fn a_run_that_ends_while_somebody_is_stopped_at_the_journal_says_so_and_is_put_back_later() {
    if !have_kvm() {
        return;
    }
    let tree = Tree::new("stopped-end");
    let before = tree.whole();
    let child = tree.spinning("one");
    let warden = warden(&child).unwrap();
    let mut holder = stopped_at_the_journal(&tree);
    let output = ended(child, libc::SIGTERM);
    let said = text(&output.stderr);
    let way_out = format!("`kill -CONT {}`", holder.id());
    assert!(
        said.contains("W-HOST-LEFT") && said.contains(&way_out),
        "{said}"
    );
    assert_eq!(tree.read(SWAPPINESS), "10");
    signal(pid(&holder), libc::SIGCONT);
    drop(holder.stdin.take());
    holder.wait().unwrap();
    soon(|| !alive(warden as u32));
    assert_eq!(tree.whole(), before);
}
