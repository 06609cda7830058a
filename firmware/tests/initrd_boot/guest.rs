//! Guests of QEMU with our init in them.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as Process};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use vsc_firmware::init::Stdio;
use vsc_firmware::init::spec::Spec;
use vsc_firmware::initrd::newc::concatenate;
use vsc_firmware::initrd::{Overlay, TinyImage, overlay_segment};

pub(crate) fn test_kernel() -> PathBuf {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/kernels/bzImage-min");
    std::env::var_os("VSC_TEST_KERNEL").map_or(shared, PathBuf::from)
}

pub(crate) fn path() -> OsString {
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()
}

/// A directory of this test alone, gone at its end.
pub(crate) struct Place(pub(crate) PathBuf);

impl Place {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vsc-initrd-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn qemu(linux: &Path, place: &Place, initrd: &[u8], cmdline: &str) -> Command {
    // A loaded machine emulates the timer too slowly for the kernel's check of it: no_timer_check.
    let file = place.0.join("initrd");
    fs::write(&file, initrd).unwrap();
    let mut command = Command::new("timeout");
    command.args([
        "--signal=KILL",
        "120",
        "qemu-system-x86_64",
        "-accel",
        "tcg",
        "-cpu",
        "max",
        "-m",
        "512",
    ]);
    command
        .args([
            "-display",
            "none",
            "-no-reboot",
            "-monitor",
            "none",
            "-serial",
            "stdio",
            "-kernel",
        ])
        .arg(linux);
    command.arg("-initrd").arg(file).args([
        "-append",
        &format!("console=ttyS0 quiet panic=-1 no_timer_check {cmdline}"),
    ]);
    command.stdin(Process::piped()).stdout(Process::piped());
    command
}

/// A guest with the four ports.
pub(crate) struct Guest {
    pub(crate) qemu: Child,
    control: BufReader<UnixStream>,
    pub(crate) stdin: UnixStream,
    stdout: thread::JoinHandle<Vec<u8>>,
    stderr: thread::JoinHandle<Vec<u8>>,
    place: Place,
}

impl Guest {
    pub(crate) fn boot(initrd: &[u8], cmdline: &str) -> Self {
        Self::boot_kernel(&test_kernel(), initrd, cmdline)
    }

    pub(crate) fn boot_kernel(linux: &Path, initrd: &[u8], cmdline: &str) -> Self {
        Self::boot_with(linux, initrd, cmdline, &[])
    }

    pub(crate) fn boot_with(linux: &Path, initrd: &[u8], cmdline: &str, extra: &[&str]) -> Self {
        let place = Place::new();
        let mut command = qemu(linux, &place, initrd, cmdline);
        command.args(extra);
        command.args(["-device", "virtio-serial-pci"]);
        let listeners = ["ctl", "stdin", "stdout", "stderr"].map(|name| {
            let socket = place.0.join(name);
            let listener = UnixListener::bind(&socket).unwrap();
            command.args([
                "-chardev",
                &format!("socket,id={name},path={}", socket.display()),
            ]);
            command.args([
                "-device",
                &format!("virtserialport,chardev={name},name=vsc.{name}"),
            ]);
            listener
        });
        let console = fs::File::create(place.0.join("console")).unwrap();
        let qemu = command
            .stdin(Process::null())
            .stdout(console)
            .spawn()
            .unwrap();
        let [control, stdin, stdout, stderr] =
            listeners.map(|listener| listener.accept().unwrap().0);
        let drain = |mut stream: UnixStream| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                bytes
            })
        };
        Self {
            qemu,
            control: BufReader::new(control),
            stdin,
            stdout: drain(stdout),
            stderr: drain(stderr),
            place,
        }
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.control.read_line(&mut line).unwrap();
        if line.is_empty() {
            let console = fs::read(self.place.0.join("console")).unwrap();
            panic!(
                "the guest ended without a word; its console: {}",
                String::from_utf8_lossy(&console)
            );
        }
        line.trim_end().to_owned()
    }

    pub(crate) fn expect_start(&mut self) {
        assert_eq!(self.line(), "ready");
        let started = self.line();
        assert!(
            started
                .strip_prefix("started ")
                .is_some_and(|pid| pid.parse::<u32>().is_ok()),
            "{started}"
        );
    }

    pub(crate) fn say(&mut self, line: &str) {
        self.control
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())
            .unwrap();
    }

    /// The status line, and what the streams brought until the machine was off.
    pub(crate) fn end(mut self) -> (String, Vec<u8>, Vec<u8>) {
        let status = self.line();
        assert!(self.qemu.wait().unwrap().success());
        (
            status,
            self.stdout.join().unwrap(),
            self.stderr.join().unwrap(),
        )
    }
}

pub(crate) fn spec(argv: &[&str]) -> Spec {
    Spec {
        argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
        stdio: Stdio::Pipes,
        channel: true,
        ..Spec::default()
    }
}

/// An initrd with busybox, and our init to run a command of it.
pub(crate) fn with_busybox(spec: Spec) -> Vec<u8> {
    let tiny = TinyImage {
        search: path(),
        ..TinyImage::default()
    }
    .build()
    .unwrap();
    let overlay = overlay_segment(&Overlay {
        spec,
        ..Overlay::default()
    })
    .unwrap();
    concatenate([tiny.bytes.as_slice(), overlay.as_slice()])
}

pub(crate) fn shell(script: &str) -> Guest {
    Guest::boot(
        &with_busybox(spec(&["sh", "-c", script])),
        "rdinit=/vsc/init",
    )
}

/// What the serial console shows of an image that was booted without any port. Each input is typed when the text
/// before it has appeared.
pub(crate) fn console(linux: &Path, image: &TinyImage, inputs: &[(&str, &str)]) -> String {
    let place = Place::new();
    let initrd = image.build().unwrap().bytes;
    let mut qemu = qemu(linux, &place, &initrd, "").spawn().unwrap();
    let mut stdin = qemu.stdin.take().unwrap();
    let mut stdout = qemu.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut byte = [0];
    for (prompt, input) in inputs {
        while !seen.ends_with(prompt.as_bytes()) && stdout.read(&mut byte).unwrap() > 0 {
            seen.push(byte[0]);
        }
        stdin.write_all(input.as_bytes()).unwrap();
    }
    stdout.read_to_end(&mut seen).unwrap();
    assert!(qemu.wait().unwrap().success());
    String::from_utf8_lossy(&seen).replace('\r', "")
}

/// The terminal is hvc0: a console port beside `vsc.ctl`. What arrives there is read in `reader`'s thread.
pub(crate) fn with_terminal(
    initrd: &[u8],
    cmdline: &str,
) -> (Child, BufReader<UnixStream>, UnixStream, Place) {
    let place = Place::new();
    let mut command = qemu(&test_kernel(), &place, initrd, cmdline);
    command.args(["-device", "virtio-serial-pci"]);
    let [control, terminal] = [
        ("ctl", "virtserialport,chardev=ctl,name=vsc.ctl"),
        ("tty", "virtconsole,chardev=tty,name=vsc.tty"),
    ]
    .map(|(name, device)| {
        let socket = place.0.join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        command.args([
            "-chardev",
            &format!("socket,id={name},path={}", socket.display()),
        ]);
        command.args(["-device", device]);
        listener
    });
    let qemu = command
        .stdin(Process::null())
        .stdout(Process::null())
        .spawn()
        .unwrap();
    let control = BufReader::new(control.accept().unwrap().0);
    let terminal = terminal.accept().unwrap().0;
    (qemu, control, terminal, place)
}

pub(crate) fn read_until(stream: &mut UnixStream, end: &str) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(end.as_bytes()) {
        assert!(
            stream.read(&mut byte).unwrap() == 1,
            "no {end:?} in {:?}",
            String::from_utf8_lossy(&seen)
        );
        seen.push(byte[0]);
    }
    String::from_utf8_lossy(&seen).replace('\r', "")
}
