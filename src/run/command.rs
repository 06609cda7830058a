//! From "run this command" to an initrd: our init, what it is told, and what the command needs.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vsc::compile::{InitrdPlan, RunPlan, Stdio};
use vsc_firmware::init;
use vsc_firmware::initrd::modules::ModuleTree;
use vsc_firmware::initrd::{ImageError, Overlay, RunRequest, kernel, overlay_segment, run_initrd};
use vsc_firmware::kernel::cache::Cache;
use vsc_vmm::resources::{InitrdPart, Payload, VmResources};

use super::ending::Ending;
use super::terminal;

/// The name of the control port's host end, as the compiler writes it.
pub(crate) const CONTROL_END: &str = "vsc.ctl";
/// A port that tells our init to use the console, and not to wait for ports that carry streams.
pub(crate) const CONSOLE_MARK: &str = "vsc.console";
/// Where programs are looked for when PATH is not set (glibc's default, with the sbin directories).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How a command ends that cannot even be brought into the guest; `None` where the error is about something else.
pub(crate) fn not_executable(run: &RunPlan, error: &ImageError) -> Option<Ending> {
    let command = run.command.first()?;
    let errno = match error {
        ImageError::NoProgram { .. } => libc::ENOENT,
        ImageError::NotAProgram { .. }
        | ImageError::Special { .. }
        | ImageError::OtherMachine { .. } => libc::ENOEXEC,
        ImageError::Read { path, source } if path.to_string_lossy() == command.as_str() => {
            source.raw_os_error().unwrap_or(libc::EIO)
        }
        _ => return None,
    };
    Some(Ending::NotExecuted {
        errno,
        path: command.clone(),
    })
}

/// Adds the initrd that the plan asks for to the machine. `words` of the command line, if any, are the command.
///
/// # Errors
/// The command or something that it needs cannot be found or read.
pub(crate) fn prepare(
    run: &RunPlan,
    words: &[OsString],
    resources: &mut VmResources,
) -> Result<(), ImageError> {
    let hostname = resources.name.clone();
    let Payload::Kernel(spec) = &mut resources.payload else {
        return Ok(());
    };
    if run.initrd == InitrdPlan::Nothing {
        return Ok(());
    }
    let modules = modules_of(&spec.path, spec.cache.as_deref())?;
    let told = told(run, words, &hostname);
    let bytes = match run.initrd {
        InitrdPlan::Tiny => run_initrd(&RunRequest {
            spec: told,
            search: search_path(run),
            modules: modules.as_ref(),
            ..RunRequest::default()
        })?,
        InitrdPlan::InitOnly => overlay_segment(&Overlay {
            spec: told,
            modules: modules.as_ref(),
            ..Overlay::default()
        })?,
        InitrdPlan::Nothing => return Ok(()),
    };
    spec.initrd.push(InitrdPart::Bytes(bytes));
    Ok(())
}

fn told(run: &RunPlan, words: &[OsString], hostname: &str) -> init::Spec {
    let (rows, columns) = terminal::size()
        .filter(|_| run.stdio == Stdio::Terminal)
        .unwrap_or((0, 0));
    let mut env: Vec<Vec<u8>> = run
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}").into_bytes())
        .collect();
    if run.stdio == Stdio::Terminal
        && let Ok(term) = std::env::var("TERM")
        && !run.env.iter().any(|(name, _)| name == "TERM")
    {
        env.push(format!("TERM={term}").into_bytes());
    }
    init::Spec {
        argv: match words {
            [] => run
                .command
                .iter()
                .map(|word| word.clone().into_bytes())
                .collect(),
            words => words.iter().map(|word| word.as_bytes().to_vec()).collect(),
        },
        env,
        cwd: run.workdir.clone().into_bytes(),
        hostname: hostname.as_bytes().to_vec(),
        stdio: match run.stdio {
            Stdio::Terminal => init::Stdio::Terminal,
            Stdio::Pipes => init::Stdio::Pipes,
            Stdio::None => init::Stdio::Auto,
        },
        rows: rows.into(),
        columns: columns.into(),
        root: run.root.as_ref().map(|root| init::spec::Root {
            device: root.device.clone().into_bytes(),
            fstype: root.fstype.clone().into_bytes(),
            options: root.options.clone().into_bytes(),
        }),
        channel: true,
        ..init::Spec::default()
    }
}

fn search_path(run: &RunPlan) -> OsString {
    let given = run
        .env
        .iter()
        .find(|(name, _)| name == "PATH")
        .map(|(_, value)| OsString::from(value));
    given
        .or_else(|| std::env::var_os("PATH"))
        .unwrap_or_else(|| DEFAULT_PATH.into())
}

/// The kernel's modules, where it has any. Without a directory of modules there is nothing to look for, and the
/// version, which may mean to search the whole kernel, is not asked.
fn modules_of(path: &Path, cache: Option<&Path>) -> Result<Option<ModuleTree>, ImageError> {
    let beside = path.parent().map(|dir| dir.join("../lib/modules"));
    let there =
        |dir: &Path| std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if !beside.as_deref().is_some_and(there) && !there(Path::new("/lib/modules")) {
        return Ok(None);
    }
    let cached = cache.and_then(|dir| Cache::new(dir).open(path));
    let version = match cached.as_ref().and_then(|kernel| kernel.version()) {
        Some(version) => version.to_owned(),
        None => kernel::version(path)?,
    };
    match ModuleTree::for_kernel(path, &version) {
        Ok(tree) => Ok(Some(tree)),
        // A kernel without modules has all that it needs built in.
        Err(ImageError::NoModules { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_command_line_are_bytes() {
        let word = |bytes: &[u8]| OsString::from(std::ffi::OsStr::from_bytes(bytes));
        let run = RunPlan {
            command: vec!["echo".into(), "\u{fffd}".into()],
            ..RunPlan::default()
        };
        let words = [word(b"echo"), word(b"\xff\xfe"), word("é".as_bytes())];
        let argv = told(&run, &words, "vsc").argv;
        assert_eq!(argv, [&b"echo"[..], b"\xff\xfe", "é".as_bytes()]);
        assert_eq!(told(&run, &[], "vsc").argv[0], b"echo");
    }
}
