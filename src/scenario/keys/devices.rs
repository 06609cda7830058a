//! Keys of disks, serial ports and consoles.

#![forbid(unsafe_code)]

use super::words::{CACHES, DISCARDS, DISK_FORMATS, SYNCS};
use super::{Key, Kind, key};

pub(super) const DISK: &[Key] = &[
    key(
        "path",
        Kind::Path,
        "",
        "rootfs.ext4",
        "The image: a file or a block device.",
    )
    .ends("", "devices/disk/source/@file"),
    key(
        "id",
        Kind::Name { max: 20 },
        "disk0, disk1, …",
        "data",
        "Name of the disk; the guest reads it as the serial number.",
    )
    .aka(&["serial"])
    .why("virtio-blk hands out 20 bytes (VIRTIO 5.2.6, VIRTIO_BLK_T_GET_ID)")
    .ends("VIRTIO_BLK_T_GET_ID", "devices/disk/serial"),
    key(
        "format",
        Kind::Word(DISK_FORMATS),
        "raw",
        "raw",
        "Format of the image; never guessed from its content.",
    )
    .ends("", "devices/disk/driver/@type"),
    key(
        "read_only",
        Kind::Bool,
        "false",
        "true",
        "The guest cannot write.",
    )
    .aka(&["readonly", "ro"])
    .ends("VIRTIO_BLK_F_RO", "devices/disk/readonly"),
    key(
        "cache",
        Kind::Word(CACHES),
        "writeback",
        "none",
        "What the host caches and what a write means.",
    )
    .aka(&["cache_type"])
    .ends("config byte 0x20 (writeback)", "devices/disk/driver/@cache"),
    key(
        "direct_io",
        Kind::Bool,
        "",
        "true",
        "Opens the image with O_DIRECT.",
    )
    .why("by default as `cache` says")
    .ends("", "devices/disk/driver/@cache"),
    key(
        "sync",
        Kind::Word(SYNCS),
        "",
        "full",
        "What a flush of the guest does.",
    )
    .aka(&["sync_mode"])
    .why("by default as `cache` says")
    .ends("VIRTIO_BLK_T_FLUSH", "devices/disk/driver/@cache"),
    key(
        "discard",
        Kind::Word(DISCARDS),
        "unmap",
        "ignore",
        "What happens to blocks that the guest discards.",
    )
    .ends("VIRTIO_BLK_F_DISCARD", "devices/disk/driver/@discard"),
    key(
        "block_size",
        Kind::Count {
            min: 512,
            max: 4096,
        },
        "512",
        "4096",
        "Logical block size in bytes, 512 or 4096.",
    )
    .aka(&["logical_block_size"])
    .ends(
        "config blk_size (offset 20)",
        "devices/disk/blockio/@logical_block_size",
    ),
];

pub(super) const SERIAL: &[Key] = &[
    key(
        "to",
        Kind::Endpoint,
        "",
        "unix:serial.socket",
        "Host end of the line.",
    )
    .ends("", "devices/serial/source"),
    key(
        "log",
        Kind::Bool,
        "true",
        "false",
        "Output also goes to the console log.",
    )
    .ends("", "devices/serial/log"),
];

pub(super) const CONSOLE_PORT: &[Key] = &[
    key(
        "name",
        Kind::Name { max: 64 },
        "",
        "org.example.0",
        "Name of the port: /dev/virtio-ports/NAME in the guest.",
    )
    .ends("VIRTIO_CONSOLE_PORT_NAME", "devices/channel/target/@name"),
    key(
        "in",
        Kind::Endpoint,
        "null",
        "file:in.txt",
        "Where the guest reads from.",
    ),
    key(
        "out",
        Kind::Endpoint,
        "null",
        "file:out.txt",
        "Where the guest writes to.",
    ),
    key(
        "tty",
        Kind::Endpoint,
        "",
        "stdio",
        "Both directions, and the port is a console: hvc0, hvc1, …",
    )
    .ends(
        "VIRTIO_CONSOLE_CONSOLE_PORT",
        "devices/console/target[@type='virtio']",
    ),
];

pub(super) const CONSOLE: &[Key] = &[
    key(
        "log",
        Kind::Path,
        "",
        "console.log",
        "A file of mode 0600 that receives all console output.",
    )
    .ends("", "devices/console/log/@file"),
    key(
        "implicit",
        Kind::Bool,
        "true",
        "false",
        "Adds a console on stdio when the scenario lists none.",
    ),
];
