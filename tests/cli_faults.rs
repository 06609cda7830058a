//! The command line's own faults: what a run must not destroy, misread, or leave unsaid.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::process::Command;

use common::{expect_code, have_kvm, run, text, vsc, TempDir};

/// The built-in guest, told what to do.
fn guest(parameters: &str) -> Command {
    let mut command = vsc();
    command
        .arg("-o")
        .arg(format!("guest.parameters={parameters}"));
    command
}

#[test]
fn the_result_goes_where_links_lead_and_into_what_is_no_file() {
    if !have_kvm() {
        return;
    }
    let dir = TempDir::new("result-link");
    std::os::unix::fs::symlink("real.json", dir.path("link.json")).unwrap();
    expect_code(
        &run(guest("test=none exit=3")
            .arg("--result")
            .arg(dir.path("link.json"))),
        3,
    );
    assert!(dir.path("link.json").is_symlink());
    assert_eq!(dir.names(), ["link.json", "real.json"]);
    // Through a link, so that nobody's device is lost should this ever fail.
    std::os::unix::fs::symlink("/dev/null", dir.path("null")).unwrap();
    expect_code(
        &run(guest("test=none exit=3")
            .arg("--result")
            .arg(dir.path("null"))),
        3,
    );
    assert!(dir.path("null").is_symlink());
    use std::os::unix::fs::FileTypeExt;
    assert!(std::fs::metadata("/dev/null")
        .unwrap()
        .file_type()
        .is_char_device());
    // A descriptor: after what the guest wrote there, not over it.
    let output = run(guest("test=hello exit=3").args(["--result", "/dev/stdout"]));
    expect_code(&output, 3);
    let said = text(&output.stdout);
    assert!(
        said.starts_with("vsc guest\n") && said.ends_with("}\n"),
        "{said}"
    );
}

#[test]
fn a_scenario_may_come_through_a_pipe() {
    if !have_kvm() {
        return;
    }
    let program = vsc();
    let program = program.get_program();
    // The word is what a shell makes of <(…).
    for script in [
        "printf 'guest: test=none exit=3' | \"$0\" /dev/stdin",
        "printf 'guest: test=none exit=3' | { exec 7<&0 </dev/null; exec \"$0\" /dev/fd/7; }",
    ] {
        expect_code(
            &run(Command::new("sh").args(["-c", script]).arg(program)),
            3,
        );
    }
}
