//! Constants of VIRTIO 5.3, named as in Linux include/uapi/linux/virtio_console.h.
#![forbid(unsafe_code)]

/// Feature bit: the configuration space holds the terminal's size.
pub(super) const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// Feature bit: several ports and the control queues.
pub(super) const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// Feature bit: early output through the configuration space.
pub(super) const VIRTIO_CONSOLE_F_EMERG_WRITE: u32 = 2;

/// Driver: it is set up (1) or failed to (0).
pub(super) const VIRTIO_CONSOLE_DEVICE_READY: u16 = 0;
/// Device: there is such a port.
pub(super) const VIRTIO_CONSOLE_PORT_ADD: u16 = 1;
/// Driver: the port is set up (1) or failed to (0).
pub(super) const VIRTIO_CONSOLE_PORT_READY: u16 = 3;
/// Device: the port is a console.
pub(super) const VIRTIO_CONSOLE_CONSOLE_PORT: u16 = 4;
/// Device: the console's size.
pub(super) const VIRTIO_CONSOLE_RESIZE: u16 = 5;
/// Both: the sender's end was opened (1) or closed (0).
pub(super) const VIRTIO_CONSOLE_PORT_OPEN: u16 = 6;
/// Device: the port's name.
pub(super) const VIRTIO_CONSOLE_PORT_NAME: u16 = 7;
