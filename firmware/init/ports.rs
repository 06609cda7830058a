//! Finding things that appear when the kernel gets to them: virtio console ports, terminals, disks.

use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use core::ffi::CStr;

use crate::sys::{self, EBUSY, ENODEV, ENOENT, ENXIO, Fd, O_NONBLOCK, POLLHUP, POLLIN, PollFd};

/// How long the host may take from naming a port to opening its side, in milliseconds. Both messages follow each
/// other on the control queue, but a busy host may pause between them.
pub const GRACE: u64 = 2000;
/// The same for the standard input, which is opened after the ports that come later have been named, and therefore
/// after the message: hung up means that the input has ended already, as /dev/null does.
pub const INPUT_GRACE: u64 = 5;

/// Whether the host has its side of a port open: until it has, the kernel shows the port as hung up.
pub struct Liveness {
    seen: bool,
    deadline: u64,
}

impl Liveness {
    pub fn new(grace: u64) -> Self {
        Self {
            seen: false,
            deadline: sys::now() + grace,
        }
    }

    /// Whether the host's side is open, or has been.
    pub fn check(&mut self, port: Fd) -> bool {
        if !self.seen {
            let mut fds = [PollFd {
                fd: port.0,
                events: POLLIN,
                revents: 0,
            }];
            sys::poll(&mut fds, 0);
            self.seen = fds[0].revents & POLLHUP == 0 || fds[0].revents & POLLIN != 0;
        }
        self.seen
    }

    pub fn seen(&self) -> bool {
        self.seen
    }

    pub fn expired(&self) -> bool {
        sys::now() >= self.deadline
    }
}

/// Tells when the kernel has added or changed a device.
pub struct Events(Option<Fd>);

impl Events {
    pub fn new() -> Self {
        const AF_NETLINK: usize = 16;
        const SOCK_DGRAM: usize = 2;
        const NETLINK_KOBJECT_UEVENT: usize = 15;
        // struct sockaddr_nl: family 2, pad 2, port 4 (0: the kernel chooses), groups 4 (1: the kernel's events).
        let address = [16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        let netlink = sys::socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
            .ok()
            .and_then(|fd| {
                let _ = sys::set_nonblocking(fd);
                if sys::bind(fd, &address).is_ok() {
                    return Some(fd);
                }
                sys::close(fd);
                None
            });
        // A kernel without sockets still says when devtmpfs gets a node.
        Self(netlink.or_else(|| sys::watch_directory(c"/dev").ok()))
    }

    /// What `find` finds, tried now and at each event, until `wait` milliseconds have passed.
    pub fn until<T>(&self, wait: u64, mut find: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = sys::now() + wait;
        loop {
            if let Some(found) = find() {
                return Some(found);
            }
            let left = deadline.saturating_sub(sys::now());
            if left == 0 {
                return None;
            }
            match self.0 {
                Some(fd) => {
                    let left = i32::try_from(left).unwrap_or(i32::MAX);
                    sys::poll(
                        &mut [PollFd {
                            fd: fd.0,
                            events: POLLIN,
                            revents: 0,
                        }],
                        left,
                    );
                    let mut buffer = [0_u8; 4096];
                    while matches!(sys::read(fd, &mut buffer), Ok(count) if count > 0) {}
                }
                // Neither sockets nor inotify: nothing is left but to look again.
                None => drop(sys::poll(&mut [], 5)),
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(fd) = self.0 {
            sys::close(fd);
        }
    }
}

/// Opens the virtio console port that the host calls `name`, if it exists by now. Never blocks, nor will reads and
/// writes.
pub fn open_port(name: &str) -> Option<Fd> {
    let class = "/sys/class/virtio-ports";
    let mut device = None;
    let _ = sys::any_entry(&sys::c_string(class), |entry| {
        let Ok(entry) = core::str::from_utf8(entry) else {
            return false;
        };
        let label = sys::read_file(&sys::c_string(format!("{class}/{entry}/name")), 256);
        let found = label.is_ok_and(|label| label.trim_ascii() == name.as_bytes());
        if found {
            device = Some(sys::c_string(format!("/dev/{entry}")));
        }
        found
    });
    let device = device?;
    make_node(&device);
    sys::open(&device, sys::O_RDWR | O_NONBLOCK).ok()
}

/// Whether a port of this name exists by now, without opening it.
pub fn port_exists(name: &str) -> bool {
    let class = "/sys/class/virtio-ports";
    sys::any_entry(&sys::c_string(class), |entry| {
        let Ok(entry) = core::str::from_utf8(entry) else {
            return false;
        };
        sys::read_file(&sys::c_string(format!("{class}/{entry}/name")), 256)
            .is_ok_and(|label| label.trim_ascii() == name.as_bytes())
    })
    .unwrap_or(false)
}

/// Whether a virtio console with several ports (VIRTIO 5.3.3: feature bit 1) is driven by the kernel.
pub fn multiport_console() -> bool {
    const VIRTIO_ID_CONSOLE: &[u8] = b"0x0003";
    let bus = "/sys/bus/virtio/devices";
    sys::any_entry(&sys::c_string(bus), |entry| {
        let Ok(entry) = core::str::from_utf8(entry) else {
            return false;
        };
        let file =
            |name: &str| sys::read_file(&sys::c_string(format!("{bus}/{entry}/{name}")), 256);
        file("device").is_ok_and(|id| id.trim_ascii() == VIRTIO_ID_CONSOLE)
            && file("features").is_ok_and(|bits| bits.get(1) == Some(&b'1'))
    })
    .unwrap_or(false)
}

/// Opens a terminal, waiting at most `wait` milliseconds for it.
pub fn open_terminal(path: &CStr, wait: u64, events: &Events) -> Result<Fd, sys::Errno> {
    let mut last = ENOENT;
    let opened = events.until(wait, || {
        make_node(path);
        match sys::open(path, sys::O_RDWR | sys::O_NOCTTY) {
            Ok(fd) => Some(Ok(fd)),
            Err(errno) => {
                last = errno;
                let absent = matches!(errno, ENOENT | ENODEV | ENXIO | EBUSY);
                (!absent).then_some(Err(errno))
            }
        }
    });
    opened.unwrap_or(Err(last))
}

/// Whether a device node exists, after making it from what sysfs knows where devtmpfs did not.
pub fn make_node(path: &CStr) -> bool {
    if exists(path) {
        return true;
    }
    let Some(name) = path
        .to_str()
        .ok()
        .and_then(|path| path.strip_prefix("/dev/"))
    else {
        return false;
    };
    for (class, kind) in [
        ("block", sys::S_IFBLK),
        ("tty", sys::S_IFCHR),
        ("virtio-ports", sys::S_IFCHR),
    ] {
        let Some((major, minor)) =
            device_number(&sys::c_string(format!("/sys/class/{class}/{name}/dev")))
        else {
            continue;
        };
        return sys::mknod(path, kind | 0o600, major, minor).is_ok();
    }
    false
}

pub fn exists(path: &CStr) -> bool {
    // The flag O_PATH opens without effect on the device.
    const O_PATH: i32 = 0o10_000_000;
    sys::open(path, O_PATH).map(sys::close).is_ok()
}

fn device_number(path: &CStr) -> Option<(u32, u32)> {
    let text = String::from_utf8(sys::read_file(path, 64).ok()?).ok()?;
    let (major, minor) = text.trim_ascii().split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The terminal behind /dev/console: the last of those the kernel prints to. /dev/console itself cannot be a
/// controlling terminal's proper stand-in (no job control on some kernels).
pub fn console() -> CString {
    let active = sys::read_file(c"/sys/class/tty/console/active", 256).unwrap_or_default();
    let last = active
        .trim_ascii()
        .rsplit(|&byte| byte == b' ')
        .next()
        .unwrap_or_default();
    match core::str::from_utf8(last) {
        // tty0 stands for whichever virtual terminal is shown.
        Ok(name) if !name.is_empty() => sys::c_string(format!("/dev/{name}")),
        _ => CString::from(c"/dev/console"),
    }
}
