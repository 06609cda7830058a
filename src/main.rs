//! `vsc-run`, the command.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cli;
mod run;
mod say;

/// Exit code of our own errors.
const FAILED: u8 = run::ending::OUR_ERROR;

fn main() -> std::process::ExitCode {
    let parent = run::signals::Parent::of_process();
    run::signals::no_signal_for_file_size();
    match cli::main(parent) {
        0 if say::is_unsaid() => FAILED,
        code => code,
    }
    .into()
}
