//! What the tests of whole runs share: the program, a kernel that this host boots, and honest skips.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

pub mod process;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The program under test.
pub fn vsc() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vsc-run"));
    // The machine dies with the process that started it; a test must not end before its child does.
    command
        .stdin(Stdio::null())
        .env("VSC_KERNELS", kernels_dir());
    command
}

/// Runs to the end within three minutes; a hang is a failure that shows what was said.
pub fn run(command: &mut Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match command.spawn() {
            Ok(child) => return finish(child),
            // A program that was just copied: a child of another thread has the descriptor for writing it until it
            // executes its own.
            Err(e)
                if e.kind() == std::io::ErrorKind::ExecutableFileBusy && Instant::now() < until =>
            {
                std::thread::yield_now();
            }
            Err(e) => panic!("vsc-run starts: {e}"),
        }
    }
}

/// An empty qcow2 image of 1 MiB; with the file of a passphrase, one that is encrypted with it.
pub fn qcow2(path: &std::path::Path, passphrase: Option<&std::path::Path>) {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]);
    if let Some(file) = passphrase {
        let object = format!("secret,id=key,file={}", file.display());
        let options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
        command.args(["--object", object.as_str(), "-o", options]);
    }
    command.arg(path).arg("1M");
    // It measures by the CPU time that the clock tick counts, and finds none where no tick fell into it.
    let output = (0..50)
        .map(|_| command.output().expect("qemu-img starts"))
        .find(|output| !text(&output.stderr).contains("accurate CPU usage"))
        .expect("fifty times without CPU time");
    assert!(output.status.success(), "{output:?}");
}

/// Waits for a child within three minutes (a busy host is no failure).
pub fn finish(mut child: Child) -> Output {
    let mut out = child.stdout.take().expect("stdout is a pipe");
    let mut err = child.stderr.take().expect("stderr is a pipe");
    let read_out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes)
    });
    let read_err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        err.read_to_end(&mut bytes).map(|_| bytes)
    });
    let deadline = Instant::now() + Duration::from_secs(180);
    let mut hung = false;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        if Instant::now() >= deadline && !hung {
            hung = true;
            process::kill_all(child.id());
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let output = Output {
        status,
        stdout: read_out.join().unwrap().unwrap(),
        stderr: read_err.join().unwrap().unwrap(),
    };
    assert!(
        !hung,
        "vsc-run hung; stdout: {}; stderr: {}",
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exit code, with everything that was said when it is not the expected one.
#[track_caller]
pub fn expect_code(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {}\nstderr: {}",
        text(&output.stdout),
        text(&output.stderr)
    );
}

/// Puts a script where a program is looked for. Another process writes it: one of this process' children would have
/// it open for writing until it executes its own program, and so make it busy.
#[track_caller]
pub fn program(path: &Path, script: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = Command::new("sh")
        .args(["-c", r#"cat >"$0" && chmod 755 "$0""#])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = writer.stdin.take().unwrap();
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    assert!(writer.wait().unwrap().success());
}

/// What a program wrote on its standard output, as JSON.
#[track_caller]
pub fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        panic!("{e}\nstdout: {out}\nstderr: {err}")
    })
}

/// The permissions of a file, or of a link itself.
#[track_caller]
pub fn mode(path: &Path) -> u32 {
    let metadata = std::fs::symlink_metadata(path);
    let metadata = metadata.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    metadata.permissions().mode() & 0o7777
}

/// A directory of this test's own, gone with the value.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(name: &str) -> Self {
        // Numbers of processes alone do not do: in namespaces of their own, tests have the same.
        let of_process = format!("vsc-test-{name}-{}", std::process::id());
        (0..)
            .map(|n| std::env::temp_dir().join(format!("{of_process}.{n}")))
            .find_map(|path| match std::fs::create_dir(&path) {
                Ok(()) => Some(Self(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => None,
                Err(e) => panic!("{}: {e}", path.display()),
            })
            .unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Writes a file that only its owner can read.
    pub fn secret(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.write(name, content);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Names of what is in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(&self.0)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

fn software_paging() -> bool {
    Path::new("/sys/module/kvm_pvm").exists()
        && !Path::new("/sys/module/kvm_amd").exists()
        && !Path::new("/sys/module/kvm_intel").exists()
}

/// Prints why a test does nothing, in a form that `.ci/run` counts. Where the means must be there, it is a failure.
pub fn skip(why: &str) {
    assert!(
        std::env::var_os("CI").is_none_or(|v| v.is_empty()),
        "in CI this test must run: {why}"
    );
    // Not eprintln, which the test harness catches.
    let _ = writeln!(std::io::stderr(), "SKIP: {why}");
}

/// Whether machines run here at all.
pub fn have_kvm() -> bool {
    let open = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(e) = &open {
        skip(&format!("/dev/kvm: {e}"));
    }
    open.is_ok()
}

/// A Linux that boots here: `$VSC_TEST_KERNEL`, else one of ../shared/kernels, else Debian's; `None` was reported.
pub fn kernel() -> Option<PathBuf> {
    static KERNEL: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = KERNEL.get_or_init(find_kernel).clone();
    if found.is_none() {
        skip("no Linux kernel that this host boots (set VSC_TEST_KERNEL)");
    }
    found.filter(|_| have_kvm())
}

fn find_kernel() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("VSC_TEST_KERNEL") {
        return Some(path.into());
    }
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/kernels");
    if software_paging() {
        let packed = shared.join("vmlinux-cpl3.gz");
        return packed.exists().then(|| unpack(&packed));
    }
    let small = shared.join("bzImage-min");
    if small.exists() {
        return Some(small);
    }
    let mut debian: Vec<_> = std::fs::read_dir("/boot")
        .ok()?
        .flatten()
        .map(|e| e.path())
        .filter(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz-"))
        })
        .collect();
    debian.sort();
    debian.pop()
}

/// Where `vsc-run -- CMD` finds the kernel of these tests.
fn kernels_dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// The kernel as an ELF, decompressed once: what is measured and tested is the machine, not gzip.
fn unpack(packed: &Path) -> PathBuf {
    let path = kernels_dir().join("vmlinux-cpl3");
    let newer = |p: &Path| std::fs::metadata(p).and_then(|m| m.modified()).ok();
    if newer(&path).is_none_or(|have| newer(packed).is_some_and(|source| source > have)) {
        let temporary = path.with_extension(std::process::id().to_string());
        let status = Command::new("gzip")
            .arg("-dc")
            .arg(packed)
            .stdout(File::create(&temporary).unwrap())
            .status()
            .expect("gzip is on every Debian");
        assert!(status.success());
        std::fs::rename(&temporary, &path).unwrap();
    }
    path
}
