//! The ioctls that make a tap and put it into a bridge (netdevice(7), Documentation/networking/tuntap.rst).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use vsc::net::ADDRESS;

/// Adds an interface to a bridge (include/uapi/linux/sockios.h).
const SIOCBRADDIF: libc::c_ulong = 0x89a2;
/// `_IOW('T', 202, int)` (include/uapi/linux/if_tun.h).
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
/// Frames, not packets; without a header that says their protocol; with one of virtio-net (if_tun.h).
const IFF_TAP: i16 = 0x0002;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
const IFF_MULTI_QUEUE: i16 = 0x0100;
/// The interface is up (include/uapi/linux/if.h).
const IFF_UP: i16 = 0x0001;
/// ARPHRD_ETHER of include/uapi/linux/if_arp.h.
const ETHERNET: libc::sa_family_t = 1;

/// Why there is no tap.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InterfaceError {
    #[error("{0} is no bridge of this host")]
    NoBridge(String),
    #[error("cannot {action} {subject}: {error}")]
    System {
        action: &'static str,
        subject: String,
        #[source]
        error: io::Error,
    },
}

fn system<E: Into<io::Error>>(
    action: &'static str,
    subject: &str,
) -> impl FnOnce(E) -> InterfaceError {
    move |error| InterfaceError::System {
        action,
        subject: subject.to_owned(),
        error: error.into(),
    }
}

/// A tap; it goes with its descriptors.
pub(crate) struct Tap {
    pub(crate) name: String,
    pub(crate) queues: Vec<OwnedFd>,
}

/// Makes a tap by the name of `template`, with so many queues, in `bridge`, which is checked to be one.
///
/// # Errors
/// [`InterfaceError`]; there is no tap then.
pub(crate) fn tap(template: &str, bridge: &str, queues: u16) -> Result<Tap, InterfaceError> {
    if !Path::new("/sys/class/net")
        .join(bridge)
        .join("bridge")
        .is_dir()
    {
        return Err(InterfaceError::NoBridge(bridge.to_owned()));
    }
    let mut tap = Tap {
        name: template.to_owned(),
        queues: Vec::new(),
    };
    let many = if queues > 1 { IFF_MULTI_QUEUE } else { 0 };
    for _ in 0..queues {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let queue = rustix::fs::open("/dev/net/tun", flags, Mode::empty());
        let queue = queue.map_err(system("open", "/dev/net/tun"))?;
        let mut request = named(&tap.name);
        request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | many;
        ask(&queue, TUNSETIFF, &mut request).map_err(system("make the tap", &tap.name))?;
        // The template's place is filled; further queues go to the same interface.
        tap.name = name_of(&request);
        tap.queues.push(queue);
    }
    // Any socket leads to the interfaces.
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(system("make a socket for", &tap.name))?;

    let mut request = named(&tap.name);
    ask(&socket, libc::SIOCGIFINDEX, &mut request).map_err(system("look at", &tap.name))?;
    // SAFETY: the call that succeeded has filled in this part.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };

    let mut request = named(&tap.name);
    let [_, _, low, lowest] = index.to_be_bytes();
    let mut address: libc::sockaddr = libc::sockaddr {
        sa_family: ETHERNET,
        sa_data: [0; 14],
    };
    let bytes = ADDRESS.into_iter().chain([low, lowest]);
    for (to, byte) in address.sa_data.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_hwaddr = address;
    ask(&socket, libc::SIOCSIFHWADDR, &mut request)
        .map_err(system("set the address of", &tap.name))?;

    let mut request = named(bridge);
    ask(&socket, libc::SIOCGIFMTU, &mut request).map_err(system("look at", bridge))?;
    // SAFETY: as above.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    let mut request = named(&tap.name);
    request.ifr_ifru.ifru_mtu = mtu;
    ask(&socket, libc::SIOCSIFMTU, &mut request).map_err(system("set the MTU of", &tap.name))?;

    let mut request = named(bridge);
    request.ifr_ifru.ifru_ifindex = index;
    ask(&socket, SIOCBRADDIF, &mut request).map_err(system("put the tap into", bridge))?;

    let mut request = named(&tap.name);
    ask(&socket, libc::SIOCGIFFLAGS, &mut request).map_err(system("look at", &tap.name))?;
    // SAFETY: as above.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let mut request = named(&tap.name);
    request.ifr_ifru.ifru_flags = flags | IFF_UP;
    ask(&socket, libc::SIOCSIFFLAGS, &mut request).map_err(system("set up", &tap.name))?;
    Ok(tap)
}

/// A request about an interface. Names are checked to be shorter than the field.
fn named(name: &str) -> libc::ifreq {
    // SAFETY: all-zero is a valid request.
    let mut request = unsafe { std::mem::zeroed::<libc::ifreq>() };
    let room = request.ifr_name.len() - 1;
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
        *to = libc::c_char::from_ne_bytes([byte]);
    }
    request
}

fn name_of(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().take_while(|&&c| c != 0);
    let bytes: Vec<u8> = bytes.map(|c| c.to_ne_bytes()[0]).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn ask(fd: &OwnedFd, what: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: each of these requests reads and writes one ifreq, which outlives the call.
    match unsafe { libc::ioctl(fd.as_raw_fd(), what, request) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
