//! Keys of disks, serial ports and consoles.

#![forbid(unsafe_code)]

use super::words::{
    BUSES, CACHES, COMPRESSIONS, DISCARDS, DISK_DEVICES, DISK_FORMATS, ENCRYPTIONS, IMAGE_TYPES,
    IO_MODES, PREALLOCATIONS, SYNCS, ZEROES,
};
use super::{ANY, Key, Kind, key};

const ONE_LOOP: &str = "The monitor of this build places disks on its I/O loops itself";
const ONE_QUEUE: &str = "The disks of this build's monitor have one queue";
const NO_TRANSIENT: &str = "The monitor of this build writes to the image itself";
const NO_BOOT: &str = "The monitor of this build starts kernels, not boot loaders";

#[rustfmt::skip]
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
    key("bus", Kind::Word(BUSES), "virtio", "virtio", "What the disk is connected to.").aka(&["disk_bus"]).ends("virtio device 2", "devices/disk/target/@bus"),
    key("target", Kind::Name { max: 16 }, "", "vdb", "Its name in the XML; the guest need not use it.").aka(&["disk_target"])
        .why("by default the next free one of its bus").ends("", "devices/disk/target/@dev"),
    key("type", Kind::Word(IMAGE_TYPES), "", "block", "What the image is on the host.")
        .why("by default what is found at its path").ends("", "devices/disk/@type"),
    key("device", Kind::Word(DISK_DEVICES), "disk", "disk", "What it is.").ends("", "devices/disk/@device"),
    key("io", Kind::Word(IO_MODES), "", "io_uring", "How the host reads and writes it.")
        .why("by default io_uring where there is one").ends("", "devices/disk/driver/@io"),
    key("detect_zeroes", Kind::Word(ZEROES), "", "off", "What becomes of blocks of zeros that the guest writes.")
        .ends("", "devices/disk/driver/@detect_zeroes").not_here("The monitor of this build writes zeros as they come").but(&["off"]),
    key("iothread", Kind::Count { min: 1, max: 64 }, "", "2", "The I/O loop that serves it, from 1.")
        .why("by default in turns over `iothreads`").ends("", "devices/disk/driver/@iothread").not_here(ONE_LOOP).but(&["*"]),
    key("queues", Kind::Count { min: 1, max: 256 }, "", "2", "Queues.").ends("VIRTIO_BLK_F_MQ", "devices/disk/driver/@queues").not_here(ONE_QUEUE),
    key("shareable", Kind::Bool, "", "true", "Other machines write it too, and all of them say so: for file systems that are made for it.").ends("image locks: bytes 100-101 without 201", "devices/disk/shareable"),
    key("transient", Kind::Bool, "", "true", "What the guest writes is gone at the end.").ends("", "devices/disk/transient").not_here(NO_TRANSIENT).but(&["false"]),
    key("boot", Kind::Count { min: 1, max: ANY }, "", "1", "Place in the boot order.").ends("", "devices/disk/boot/@order").not_here(NO_BOOT),
    key("iommu", Kind::Bool, "", "true", "DMA of this device goes through the guest's IOMMU or bounce buffers.")
        .ends("VIRTIO_F_ACCESS_PLATFORM", "devices/disk/driver/@iommu").not_here("Encrypted memory is not in this build's monitor yet").but(&["false"]),
    key("size", Kind::Size, "", "20G", "Makes the image at the first run, of this size; an image that is there is never touched.")
        .aka(&["capacity"]),
    key("preallocation", Kind::Word(PREALLOCATIONS), "off", "metadata", "What is reserved when the image is made."),
    key("cluster_size", Kind::Size, "", "1M", "Size of a cluster of a new qcow2 image, a power of two from 512 bytes to 2 MiB.")
        .why("by default QEMU's 64 KiB; large ones mean fewer tables and more copying"),
    key("lazy_refcounts", Kind::Bool, "", "true", "A new qcow2 image postpones the update of reference counts.")
        .why("fewer writes; after a crash the image is checked when it is opened"),
    key("compression_type", Kind::Word(COMPRESSIONS), "", "zlib", "How clusters of a new qcow2 image are compressed, where they are."),
    key("max_virtual_size", Kind::Size, "", "40G", "Largest size that the image's header may claim.")
        .why("by default `size`; else 2 TiB, or 64 times what the file has, whichever is more: a header of 1 MiB can claim any number, and whoever reads such a disk to its end fills the host's"),
    key("backing", Kind::List { keys: BACKING, scalar: "path", max: 16 }, "", "[{path: /srv/base.qcow2, format: qcow2}]", "Images that this one may take content from, first the one that it names itself.")
        .why("none: an image names any file of the host, and its guest would read that").ends("", "devices/disk/backingStore"),
    key("data_file", Kind::Path, "", "/srv/disk.data", "The file that a qcow2 image may keep its data in, exactly as it names it.")
        .why("none: an image names any file of the host, and its guest would read and write that"),
    key("encryption", Kind::Word(ENCRYPTIONS), "none", "luks", "Encryption of the image.").ends("", "devices/disk/source/encryption/@format"),
    key("secret", Kind::Map { keys: SECRET, scalar: Some("uuid") }, "", "{file: disk.key}", "Where the passphrase of an encrypted image comes from."),
    key("secret_file", Kind::Path, "", "disk.key", "Short for secret.file."),
];

const SECRET: &[Key] = &[
    key("uuid", Kind::Name { max: 36 }, "", "6f1c2b1a-9d0e-4c51-9c3f-0a4d5e6f7a8b", "The libvirt secret that has it.")
        .why("by default derived from the image's path").ends("", "devices/disk/source/encryption/secret/@uuid"),
    key("file", Kind::Path, "", "disk.key", "A file that has it, which nobody else can read; one newline at its end does not count."),
    key("fd", Kind::Count { min: 0, max: 1 << 20 }, "", "5", "A descriptor of this program, read once and closed."),
    key("credential", Kind::Name { max: 255 }, "", "disk", "A credential of the service, as systemd.exec(5) has them: a file in $CREDENTIALS_DIRECTORY."),
    key("env", Kind::Name { max: 255 }, "", "DISK_KEY", "A variable of the environment, which is wiped when it was read.")
        .why("whoever started this program still has it in its own environment, so a file or descriptor is better"),
];

const BACKING: &[Key] = &[
    key(
        "path",
        Kind::Path,
        "",
        "/srv/base.qcow2",
        "The image, exactly as its overlay names it.",
    ),
    key(
        "format",
        Kind::Word(DISK_FORMATS),
        "raw",
        "qcow2",
        "Its format; never guessed from its content.",
    ),
];

#[rustfmt::skip]
pub(super) const STORAGE: &[Key] = &[
    key("dir", Kind::Path, "", "/srv/images", "Where the images of machines are that name none.")
        .aka(&["path"]).why("by default /var/lib/libvirt/images"),
    key("format", Kind::Word(DISK_FORMATS), "", "qcow2", "disks[].format, where a disk does not say."),
    key("bus", Kind::Word(BUSES), "", "virtio", "disks[].bus, where a disk does not say.").aka(&["disk_bus"]),
    key("target", Kind::Name { max: 16 }, "", "vdb", "disks[].target of the first disk, where it does not say.").aka(&["disk_target"]),
    key("cache", Kind::Word(CACHES), "", "none", "disks[].cache, where a disk does not say.").aka(&["disk_cache"]),
    key("io", Kind::Word(IO_MODES), "", "io_uring", "disks[].io, where a disk does not say."),
    key("discard", Kind::Word(DISCARDS), "", "unmap", "disks[].discard, where a disk does not say."),
    key("transient", Kind::Bool, "", "true", "disks[].transient, where a disk does not say.").but(&["false"]),
    key("size", Kind::Size, "", "20G", "disks[].size, where a disk names no image.").aka(&["capacity"]),
    key("preallocation", Kind::Word(PREALLOCATIONS), "", "metadata", "disks[].preallocation, where a disk does not say."),
    key("cluster_size", Kind::Size, "", "1M", "disks[].cluster_size, where a disk does not say."),
    key("lazy_refcounts", Kind::Bool, "", "true", "disks[].lazy_refcounts, where a disk does not say."),
    key("compression_type", Kind::Word(COMPRESSIONS), "", "zlib", "disks[].compression_type, where a disk does not say."),
    key("encryption", Kind::Word(ENCRYPTIONS), "", "none", "disks[].encryption, where a disk does not say."),
    key("secret_file", Kind::Path, "", "disk.key", "disks[].secret_file, where a disk does not say."),
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
