//! Our PID 1 under a real Linux, booted by QEMU without KVM, so that it is tested without our monitor: the protocol of
//! `vsc.ctl`, the standard streams, the console, images built by this crate.
//!
//! Needs qemu-system-x86_64, and a kernel: `$VSC_TEST_KERNEL`, else `../shared/kernels/bzImage-min`.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio as Process};
use std::thread;

use vsc_firmware::init::Stdio;
use vsc_firmware::initrd::kernel;
use vsc_firmware::initrd::modules::ModuleTree;
use vsc_firmware::initrd::{Overlay, RunRequest, TinyImage, overlay_segment, run_initrd};

#[path = "../common/mod.rs"]
mod common;
mod guest;

use guest::{
    Guest, Place, console, path, qemu, read_until, shell, spec, test_kernel, with_busybox,
    with_terminal,
};

/// What every test here needs.
fn means() -> bool {
    common::have(&["qemu-system-x86_64", "busybox", "timeout"])
        && (std::env::var_os("VSC_TEST_KERNEL").is_some()
            || common::shared("bzImage-min").is_some())
}

#[test]
fn a_command_of_this_host_runs_without_busybox() {
    if !means() {
        return;
    }
    let request = RunRequest {
        spec: spec(&["uname", "-s"]),
        search: path(),
        ..RunRequest::default()
    };
    let mut guest = Guest::boot(&run_initrd(&request).unwrap(), "");
    guest.expect_start();
    assert_eq!(
        guest.end(),
        ("exit 0".into(), b"Linux\n".to_vec(), Vec::new())
    );
}

#[test]
fn streams_environment_and_status_arrive_apart() {
    if !means() {
        return;
    }
    let mut asked = spec(&[
        "sh",
        "-c",
        "echo $A $PWD $#; echo err >/dev/stderr; exit 42",
        "x",
        "one",
        "two words",
    ]);
    asked.env = vec![b"A=b c".to_vec()];
    asked.cwd = b"/tmp".to_vec();
    let mut guest = Guest::boot(&with_busybox(asked), "rdinit=/vsc/init");
    guest.expect_start();
    assert_eq!(
        guest.end(),
        (
            "exit 42".into(),
            b"b c /tmp 2\n".to_vec(),
            b"err\n".to_vec()
        )
    );
}

#[test]
fn the_specification_is_gone_and_kernel_file_systems_are_there() {
    if !means() {
        return;
    }
    let mut guest = shell(
        "ls -A /vsc; for m in /dev /proc /sys /dev/pts; do grep -q \" $m \" /proc/mounts || echo no $m; done; \
         cat /proc/1/comm; readlink /dev/fd; ip link show lo | grep -o 'UP'; cat /proc/self/stat | cut -d' ' -f6",
    );
    guest.expect_start();
    let (status, output, error) = guest.end();
    let text = String::from_utf8_lossy(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        (status.as_str(), String::from_utf8_lossy(&error).as_ref()),
        ("exit 0", "")
    );
    assert_eq!(
        lines[..4],
        ["init", "init", "/proc/self/fd", "UP"],
        "{text}"
    );
}

#[test]
fn a_hundred_megabytes_come_back_intact_before_the_status() {
    if !means() {
        return;
    }
    const SIZE: usize = 100 << 20;
    let mut guest = shell("cat");
    guest.expect_start();
    let mut stdin = guest.stdin.try_clone().unwrap();
    // A sequence that repeats nowhere near a multiple of any buffer.
    let data: Vec<u8> = (0..SIZE as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8)
        .collect();
    let sent = data.clone();
    let writer = thread::spawn(move || {
        stdin.write_all(&sent).unwrap();
        // QEMU drops what it has not read yet when both directions end at once.
        stdin.shutdown(Shutdown::Write).unwrap();
    });
    let (status, output, error) = guest.end();
    writer.join().unwrap();
    assert_eq!(status, "exit 0");
    assert!(error.is_empty());
    assert_eq!(output.len(), data.len());
    assert!(output == data, "the content differs");
}

#[test]
fn the_last_bytes_come_before_the_status_even_from_what_was_left_running() {
    if !means() {
        return;
    }
    let mut guest = shell("(sleep 1000; echo late) & head -c 3000000 /dev/zero; echo end >&2");
    guest.expect_start();
    let (status, output, error) = guest.end();
    assert_eq!(
        (status.as_str(), output.len(), error.as_slice()),
        ("exit 0", 3_000_000, b"end\n".as_slice())
    );
}

#[test]
fn an_output_that_the_host_closed_breaks_the_pipe() {
    if !means() {
        return;
    }
    let place = Place::new();
    let mut command = qemu(
        &test_kernel(),
        &place,
        &with_busybox(spec(&["yes"])),
        "rdinit=/vsc/init",
    );
    command.args(["-device", "virtio-serial-pci"]);
    let [control, stdout] = ["ctl", "stdout"].map(|name| {
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
    for name in ["stdin", "stderr"] {
        command.args(["-chardev", &format!("null,id={name}")]);
        command.args([
            "-device",
            &format!("virtserialport,chardev={name},name=vsc.{name}"),
        ]);
    }
    let mut qemu = command
        .stdin(Process::null())
        .stdout(Process::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(control.accept().unwrap().0).lines();
    let mut stdout = stdout.accept().unwrap().0;
    let mut start = [0; 6];
    stdout.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"y\ny\ny\n");
    drop(stdout);
    let last = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| !line.starts_with("ready") && !line.starts_with("started"));
    assert_eq!(last.as_deref(), Some("signal 13"));
    assert!(qemu.wait().unwrap().success());
}

#[test]
fn signals_reach_the_command() {
    if !means() {
        return;
    }
    let mut guest = shell("trap 'echo got; exit 7' USR1; echo up; while :; do sleep 0.1; done");
    guest.expect_start();
    guest.say("nonsense");
    guest.say("signal 10");
    // Before the trap was set, the signal is deadly: either way, it arrived.
    let (status, ..) = guest.end();
    assert!(status == "exit 7" || status == "signal 10", "{status}");

    let mut guest = shell("sleep 1000");
    guest.expect_start();
    guest.say("signal 9");
    assert_eq!(guest.end().0, "signal 9");
}

#[test]
fn power_off_asks_and_then_insists() {
    if !means() {
        return;
    }
    let mut guest = shell("sleep 1000");
    guest.expect_start();
    guest.say("poweroff");
    assert!(["signal 15", "signal 1"].contains(&guest.end().0.as_str()));

    let mut guest = shell("trap '' TERM HUP; echo deaf; while :; do sleep 1; done");
    guest.expect_start();
    guest.say("poweroff");
    guest.say("poweroff");
    assert!(guest.end().0.starts_with("signal "));
}

#[test]
fn the_guests_own_poweroff_ends_it_in_peace() {
    if !means() {
        return;
    }
    let mut guest = shell("poweroff; sleep 1000");
    guest.expect_start();
    assert_eq!(guest.end().0, "exit 0");
}

#[test]
fn what_cannot_be_executed_is_named() {
    if !means() {
        return;
    }
    for (argv, expected) in [
        (&["/no/such/file"][..], "noexec 2 /no/such/file"),
        (&["no-such-command"], "noexec 2 no-such-command"),
        (&["/etc/passwd"], "noexec 13 /etc/passwd"),
        (&["/etc"], "noexec 13 /etc"),
    ] {
        let mut guest = Guest::boot(&with_busybox(spec(argv)), "rdinit=/vsc/init");
        assert_eq!(guest.line(), "ready");
        assert_eq!(guest.end().0, expected);
    }
}

#[test]
fn missing_things_are_errors_but_no_end() {
    if !means() {
        return;
    }
    let mut asked = spec(&["echo", "still here"]);
    asked.modules.push(vsc_firmware::init::spec::Module {
        path: b"/no.ko".to_vec(),
        options: Vec::new(),
    });
    asked.root = Some(vsc_firmware::init::spec::Root {
        device: b"/dev/vdz".to_vec(),
        ..Default::default()
    });
    asked.wait_ms = 300;
    let mut guest = Guest::boot(&with_busybox(asked), "rdinit=/vsc/init");
    assert_eq!(guest.line(), "ready");
    // The overlay's list of modules is what the kernel's tree gives; without one, what was asked stays.
    assert_eq!(
        guest.line(),
        "error Cannot insert module /no.ko: No such file or directory (ENOENT)"
    );
    assert_eq!(guest.line(), "error There is no root device /dev/vdz");
    assert!(guest.line().starts_with("started "));
    assert_eq!(
        guest.end(),
        ("exit 0".into(), b"still here\n".to_vec(), Vec::new())
    );
}

#[test]
fn an_image_without_ports_runs_its_command_on_the_console() {
    if !means() {
        return;
    }
    let image = TinyImage {
        run: Some("echo hello; head -c 20000 /dev/zero | tr '\\0' x; echo; echo last".into()),
        search: path(),
        compression: vsc_firmware::initrd::Compression::Gzip,
        ..TinyImage::default()
    };
    let text = console(&test_kernel(), &image, &[]);
    let text = &text[text.find("hello").unwrap()..];
    assert!(text.contains(&"x".repeat(20000)), "{} bytes", text.len());
    // The kernel's own farewell (2.7) comes right after the last line.
    let end = &text[text.find("last").unwrap()..];
    assert!(
        end.starts_with("last\n") && end.contains("reboot: Power down"),
        "{end}"
    );
}

#[test]
fn a_shell_has_job_control_and_ends_with_control_d() {
    if !means() {
        return;
    }
    let image = TinyImage {
        search: path(),
        ..TinyImage::default()
    };
    let steps = [
        ("# ", "uname; tty; sh -c 'echo up; exec sleep 1000'\n"),
        ("\nup\r\n", "\x03"),
        ("# ", "echo status $?\n"),
        ("status 130\r\n", "\x04"),
    ];
    let text = console(&test_kernel(), &image, &steps);
    for expected in [
        "Linux\n",
        "/dev/ttyS0\n",
        "status 130\n",
        "reboot: Power down",
    ] {
        assert!(text.contains(expected), "no {expected:?} in {text}");
    }
    assert!(!text.contains("job control"), "{text}");
}

/// Debian's own kernel, if its package was unpacked (`$VSC_TEST_KERNEL_PACKAGE`): everything virtio is a module there.
#[test]
fn debians_kernel_gets_its_modules_before_the_command() {
    if !means() {
        return;
    }
    let Some(package) = common::package() else {
        return;
    };
    let linux = kernel::newest(&package.join("boot")).unwrap();
    let version = kernel::version(&linux).unwrap();
    let tree = ModuleTree::for_kernel(&linux, &version).unwrap();
    let request = RunRequest {
        spec: spec(&[
            "sh",
            "-c",
            "uname -r; cut -d' ' -f1 /proc/modules; cat /proc/uptime",
        ]),
        search: path(),
        modules: Some(&tree),
        extra_modules: vec!["virtio_pci".into()],
        copy: ["cut", "cat", "uname"]
            .map(|name| Path::new("/usr/bin").join(name))
            .into(),
    };
    let mut guest = Guest::boot_kernel(&linux, &run_initrd(&request).unwrap(), "");
    guest.expect_start();
    let (status, output, error) = guest.end();
    let text = String::from_utf8_lossy(&output);
    assert_eq!(
        (status.as_str(), String::from_utf8_lossy(&error).as_ref()),
        ("exit 0", ""),
        "{text}"
    );
    assert!(text.starts_with(&format!("{version}\n")), "{text}");
    for module in [
        "virtio_mmio",
        "virtio_console",
        "virtio_blk",
        "virtio_rng",
        "virtio_pci",
    ] {
        assert!(
            text.lines().any(|line| line == module),
            "no {module} in {text}"
        );
    }

    // And an image for it, on the console: modules in the order of their dependencies, or btrfs would be missing.
    let image = TinyImage {
        modules: vec!["btrfs".into()],
        kernel: Some(linux.clone()),
        run: Some("cut -d' ' -f1 /proc/modules; exit 3".into()),
        search: path(),
        ..TinyImage::default()
    };
    let text = console(&linux, &image, &[]);
    for module in ["btrfs", "raid6_pq", "zstd_compress"] {
        assert!(
            text.lines().any(|line| line == module),
            "no {module} in {text}"
        );
    }
}

#[test]
fn a_terminal_has_a_size_job_control_and_loses_nothing() {
    if !means() {
        return;
    }
    let script = "tty; stty size; trap 'stty size; exit 9' WINCH; echo go; read x; sleep 1000";
    let mut asked = spec(&["sh", "-c", script]);
    (asked.stdio, asked.rows, asked.columns) = (Stdio::Terminal, 33, 101);
    let (mut qemu, mut control, mut terminal, _place) =
        with_terminal(&with_busybox(asked), "rdinit=/vsc/init");
    let text = read_until(&mut terminal, "go\r\n");
    assert_eq!(text, "/dev/hvc0\n33 101\ngo\n");
    control.get_mut().write_all(b"winsize 44 88\n").unwrap();
    let mut rest = String::new();
    terminal.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "44 88\r\n");
    let lines: Vec<String> = control.lines().map(Result::unwrap).collect();
    assert_eq!(
        lines.last().map(String::as_str),
        Some("exit 9"),
        "{lines:?}"
    );
    assert!(qemu.wait().unwrap().success());

    // The streams of an image that does not say: the port's name decides.
    let image = TinyImage {
        run: Some("sleep 1000".into()),
        search: path(),
        ..TinyImage::default()
    };
    let (mut qemu, control, mut terminal, _place) =
        with_terminal(&image.build().unwrap().bytes, "");
    let mut lines = control.lines().map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("ready"));
    assert!(
        lines
            .next()
            .is_some_and(|line| line.starts_with("started "))
    );
    terminal.write_all(b"\x03").unwrap();
    assert_eq!(lines.next().as_deref(), Some("signal 2"));
    assert!(qemu.wait().unwrap().success());
}

#[test]
fn a_disk_becomes_the_root_and_is_clean_afterwards() {
    if !means() {
        return;
    }
    if !common::have(&["mkfs.ext4", "e2fsck", "debugfs"]) {
        return;
    }
    let place = Place::new();
    let tree = place.0.join("tree");
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    fs::write(tree.join("here"), "on the disk\n").unwrap();
    let disk = place.0.join("disk");
    let tree = tree.to_str().unwrap();
    let made = Command::new("/sbin/mkfs.ext4")
        .args(["-q", "-d", tree, disk.to_str().unwrap(), "16M"])
        .status();
    assert!(made.expect("apt install e2fsprogs").success());

    let script = "cat /here; echo new > /new; grep -c ' / ext4 ' /proc/mounts; ls -d /dev/null /proc/1 /sys/class /tmp";
    let mut asked = spec(&["/bin/busybox", "sh", "-c", script]);
    asked.env = vec![b"PATH=/bin".to_vec()];
    asked.root = Some(vsc_firmware::init::spec::Root {
        device: b"/dev/vda".to_vec(),
        fstype: Vec::new(),
        options: b"rw,noatime,data=ordered".to_vec(),
    });
    // `cat` and others are the shell's own.
    let segment = overlay_segment(&Overlay {
        spec: asked,
        ..Overlay::default()
    })
    .unwrap();
    let drive = format!("file={},format=raw,if=virtio", disk.display());
    let mut guest = Guest::boot_with(
        &test_kernel(),
        &segment,
        "rdinit=/vsc/init",
        &["-drive", &drive],
    );
    guest.expect_start();
    let (status, output, error) = guest.end();
    assert_eq!(
        (
            status.as_str(),
            String::from_utf8_lossy(&output).as_ref(),
            String::from_utf8_lossy(&error).as_ref()
        ),
        (
            "exit 0",
            "on the disk\n1\n/dev/null\n/proc/1\n/sys/class\n/tmp\n",
            ""
        )
    );
    let checked = Command::new("/sbin/e2fsck")
        .args(["-fn"])
        .arg(&disk)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&checked.stdout);
    assert!(
        checked.status.success() && !text.contains("recover"),
        "{text}"
    );
    let dumped = Command::new("/sbin/debugfs")
        .args(["-R", "cat /new"])
        .arg(&disk)
        .output()
        .unwrap();
    assert_eq!(dumped.stdout, b"new\n");
}
