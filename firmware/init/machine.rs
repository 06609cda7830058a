//! The user space around the command: file systems, devices, loopback, modules, the root disk.

use alloc::format;
use alloc::vec::Vec;
use core::ffi::CStr;

use crate::control::Control;
use crate::ports::{self, Events};
use crate::spec::{Module, Root, Spec};
use crate::sys::{self, EBUSY, EEXIST, Fd};

/// How long to wait for `vsc.ctl` where a console with ports is plugged in but nobody promised that port, in
/// milliseconds: the ports are named right after the driver is bound.
const OPTIONAL_WAIT: u64 = 500;

/// How long to wait for what was promised, in milliseconds.
pub fn patience(spec: &Spec) -> u64 {
    if spec.wait_ms == 0 {
        5000
    } else {
        u64::from(spec.wait_ms)
    }
}

pub fn mount_kernel_file_systems(control: &mut Control) {
    sys::umask(0o022);
    make_directory(c"/dev", 0o755);
    if mount(
        c"devtmpfs",
        c"/dev",
        c"devtmpfs",
        sys::MS_NOSUID,
        c"mode=0755",
    )
    .is_err()
    {
        make_essential_nodes(control);
    }
    // The kernel may have started this program without any open file; 0 to 2 must not become something else.
    while let Ok(fd) = sys::open(c"/dev/null", sys::O_RDWR) {
        if fd.0 > 2 {
            sys::close(fd);
            break;
        }
    }
    let safe = sys::MS_NOSUID | sys::MS_NODEV;
    let quiet = safe | sys::MS_NOEXEC;
    for (source, target, mode, flags, data) in [
        (c"proc", c"/proc", 0o555, quiet, c""),
        (c"sysfs", c"/sys", 0o555, quiet, c""),
        (
            c"devpts",
            c"/dev/pts",
            0o755,
            sys::MS_NOSUID | sys::MS_NOEXEC,
            c"gid=5,mode=620,ptmxmode=666",
        ),
        (c"tmpfs", c"/dev/shm", 0o1777, safe, c"mode=1777"),
        (c"tmpfs", c"/run", 0o755, safe, c"mode=0755"),
        (c"tmpfs", c"/tmp", 0o1777, safe, c"mode=1777"),
    ] {
        make_directory(target, mode);
        if let Err(errno) = mount(source, target, source, flags, data) {
            // A kernel without tmpfs or devpts: the directory of the initrd does.
            control.error(format_args!(
                "Cannot mount {} on {}: {errno}",
                show(source),
                show(target)
            ));
        }
    }
    for (target, path) in [
        (c"/proc/self/fd", c"/dev/fd"),
        (c"/proc/self/fd/0", c"/dev/stdin"),
        (c"/proc/self/fd/1", c"/dev/stdout"),
        (c"/proc/self/fd/2", c"/dev/stderr"),
    ] {
        let _ = sys::symlink(target, path);
    }
}

/// Everything else before the command; says `ready` as soon as the host can hear it.
pub fn set_up(spec: &Spec, control: &mut Control) {
    let events = Events::new();
    control.say("ready");
    // With modules to come, the console's driver may be among them: no waiting yet.
    let before = if spec.modules.is_empty() {
        port_wait(spec)
    } else {
        0
    };
    attach_control(control, before, &events);
    for module in &spec.modules {
        insert(module, control);
    }
    if !control.attached() && !spec.modules.is_empty() {
        attach_control(control, port_wait(spec), &events);
    }
    if spec.channel && !control.attached() {
        control.error("There is no port vsc.ctl");
    }
    if !spec.hostname.is_empty()
        && let Err(errno) = sys::set_host_name(&spec.hostname)
    {
        control.error(format_args!("Cannot set the host name: {errno}"));
    }
    bring_up_loopback(control);
    if let Some(root) = &spec.root {
        switch_root(root, patience(spec), &events, control);
    }
}

fn port_wait(spec: &Spec) -> u64 {
    if spec.channel {
        patience(spec)
    } else if ports::multiport_console() {
        OPTIONAL_WAIT
    } else {
        0
    }
}

fn attach_control(control: &mut Control, wait: u64, events: &Events) {
    if let Some(port) = events.until(wait, || ports::open_port("vsc.ctl")) {
        control.attach(port);
    }
}

fn insert(module: &Module, control: &mut Control) {
    const MODULE_INIT_COMPRESSED_FILE: usize = 4;
    let compressed = [&b".xz"[..], b".gz", b".zst"]
        .iter()
        .any(|end| module.path.ends_with(end));
    let flags = if compressed {
        MODULE_INIT_COMPRESSED_FILE
    } else {
        0
    };
    let path = sys::c_string(&module.path);
    let inserted = sys::open(&path, sys::O_RDONLY).and_then(|fd| {
        let inserted = sys::insert_module(fd, &sys::c_string(&module.options), flags);
        sys::close(fd);
        inserted
    });
    match inserted {
        Ok(_) | Err(EEXIST) => {}
        Err(errno) => control.error(format_args!(
            "Cannot insert module {}: {errno}",
            show(&path)
        )),
    }
}

fn bring_up_loopback(control: &mut Control) {
    const AF_INET: usize = 2;
    const SOCK_DGRAM: usize = 2;
    const SIOCSIFFLAGS: usize = 0x8914;
    const IFF_UP_RUNNING: u8 = 0x41;
    // A kernel without networking has nothing to bring up.
    let Ok(socket) = sys::socket(AF_INET, SOCK_DGRAM, 0) else {
        return;
    };
    // struct ifreq: 16 bytes of name, then a union that begins with the flags; 40 bytes in all.
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16] = IFF_UP_RUNNING;
    match sys::ioctl_with(socket, SIOCSIFFLAGS, &mut request) {
        Ok(_) | Err(sys::ENODEV) => {}
        Err(errno) => control.error(format_args!("Cannot bring up lo: {errno}")),
    }
    sys::close(socket);
}

fn switch_root(root: &Root, wait: u64, events: &Events, control: &mut Control) {
    let device = sys::c_string(&root.device);
    if device.to_bytes().starts_with(b"/dev/")
        && events
            .until(wait, || ports::make_node(&device).then_some(()))
            .is_none()
    {
        control.error(format_args!("There is no root device {}", show(&device)));
        return;
    }
    let target = c"/vsc/root";
    make_directory(c"/vsc", 0o755);
    make_directory(target, 0o755);
    let (flags, data) = mount_options(&root.options);
    let data = sys::c_string(data);
    let types = if root.fstype.is_empty() {
        disk_types()
    } else {
        [root.fstype.clone()].into()
    };
    let mut result = Err(sys::ENODEV);
    for fstype in &types {
        result = sys::mount(&device, target, &sys::c_string(fstype), flags, &data);
        if result.is_ok() {
            break;
        }
    }
    if let Err(errno) = result {
        control.error(format_args!(
            "Cannot mount {} as root: {errno}",
            show(&device)
        ));
        return;
    }
    for (from, to) in [
        (c"/dev", c"/vsc/root/dev"),
        (c"/proc", c"/vsc/root/proc"),
        (c"/sys", c"/vsc/root/sys"),
        (c"/run", c"/vsc/root/run"),
        (c"/tmp", c"/vsc/root/tmp"),
    ] {
        make_directory(to, 0o755);
        if let Err(errno) = sys::mount(from, to, c"", sys::MS_MOVE, c"") {
            control.error(format_args!(
                "Cannot move {} to the root disk: {errno}",
                show(from)
            ));
        }
    }
    let switched = sys::chdir(target)
        .and_then(|_| sys::mount(c".", c"/", c"", sys::MS_MOVE, c""))
        .and_then(|_| sys::chroot(c"."))
        .and_then(|_| sys::chdir(c"/"));
    if let Err(errno) = switched {
        control.error(format_args!("Cannot switch to the root disk: {errno}"));
    }
}

/// The flags among mount(8) options, and the rest for the file system.
fn mount_options(options: &[u8]) -> (usize, Vec<u8>) {
    let mut flags = 0;
    let mut rest = Vec::new();
    for option in options
        .split(|&byte| byte == b',')
        .filter(|option| !option.is_empty())
    {
        flags |= match option {
            b"ro" => sys::MS_RDONLY,
            b"nosuid" => sys::MS_NOSUID,
            b"nodev" => sys::MS_NODEV,
            b"noexec" => sys::MS_NOEXEC,
            b"noatime" => sys::MS_NOATIME,
            b"sync" => sys::MS_SYNCHRONOUS,
            b"rw" | b"defaults" => 0,
            other => {
                if !rest.is_empty() {
                    rest.push(b',');
                }
                rest.extend_from_slice(other);
                0
            }
        };
    }
    (flags, rest)
}

/// The file systems on block devices that the kernel knows.
fn disk_types() -> Vec<Vec<u8>> {
    let list = sys::read_file(c"/proc/filesystems", 1 << 16).unwrap_or_default();
    list.split(|&byte| byte == b'\n')
        .filter(|line| line.starts_with(b"\t"))
        .map(|line| line.trim_ascii().to_vec())
        .collect()
}

fn mount(
    source: &CStr,
    target: &CStr,
    fstype: &CStr,
    flags: usize,
    data: &CStr,
) -> sys::Result<()> {
    match sys::mount(source, target, fstype, flags, data) {
        // Already there: a user's own initrd was here first, or a kernel that mounts devtmpfs itself.
        Ok(_) | Err(EBUSY) => Ok(()),
        Err(errno) => Err(errno),
    }
}

fn make_directory(path: &CStr, mode: u32) {
    // What fails here fails in what follows, where it is reported.
    let _ = sys::mkdir(path, mode);
}

/// The nodes without which little works, for kernels without devtmpfs (numbers: Documentation/admin-guide/devices.txt).
fn make_essential_nodes(control: &mut Control) {
    for (path, major, minor) in [
        (c"/dev/null", 1, 3),
        (c"/dev/zero", 1, 5),
        (c"/dev/full", 1, 7),
        (c"/dev/random", 1, 8),
        (c"/dev/urandom", 1, 9),
        (c"/dev/kmsg", 1, 11),
        (c"/dev/tty", 5, 0),
        (c"/dev/console", 5, 1),
        (c"/dev/ptmx", 5, 2),
    ] {
        match sys::mknod(path, sys::S_IFCHR | 0o666, major, minor) {
            Ok(_) | Err(EEXIST) => {}
            Err(errno) => control.error(format_args!("Cannot make {}: {errno}", show(path))),
        }
    }
}

/// A name for a message.
pub fn show(name: &CStr) -> alloc::borrow::Cow<'_, str> {
    name.to_string_lossy()
}

/// Sets the size of a terminal. The kernel tells its foreground processes.
pub fn set_window_size(terminal: Fd, rows: u16, columns: u16) -> sys::Result<usize> {
    // struct winsize: rows, columns, two pixel sizes nobody uses.
    let mut size = [rows, columns, 0, 0];
    sys::ioctl_with(terminal, sys::TIOCSWINSZ, &mut size)
}

/// An error's line about one path.
pub fn cannot_open(path: &CStr, errno: sys::Errno) -> alloc::string::String {
    format!("Cannot open {}: {errno}", show(path))
}
