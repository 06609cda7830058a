//! The sections and keys of `virtscenario.yaml`, with the keys of ours that mean the same.

#![forbid(unsafe_code)]

use super::places::Want;

/// A section.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) keys: &'static [OldKey],
    pub(super) example: &'static str,
}

/// A key of a section.
#[derive(Debug)]
pub(super) struct OldKey {
    pub(super) name: &'static str,
    pub(super) to: To,
}

/// What becomes of its value.
#[derive(Debug, Clone, Copy)]
pub(super) enum To {
    /// The value of our key at this path.
    Same(&'static [&'static str]),
    /// The same, and it names something that should be there.
    Place(&'static [&'static str], Want),
    /// An amount; a bare number is KiB.
    Kib(&'static [&'static str]),
    /// A number of what `unit` says.
    Capacity(&'static [&'static str]),
    /// The unit of the capacity.
    Unit,
    /// Only this word.
    Only(&'static str),
    /// Nothing; the reason.
    Unused(&'static str),
}

const fn key(name: &'static str, to: To) -> OldKey {
    OldKey { name, to }
}

/// All of them, in the order of virt-scenario's sample file.
pub(super) const SECTIONS: &[Section] = &[
    Section {
        name: "config",
        keys: &[
            key(
                "path",
                To::Unused(
                    "virt-scenario reads it and never looks at it: machines are in `vm-config-store`",
                ),
            ),
            key("vm-config-store", To::Place(&["store"], Want::Parent)),
        ],
        example: "vm-config-store: ~/.local/virt-scenario/vmconfig",
    },
    Section {
        name: "hypervisors",
        keys: &[key("hvconf", To::Place(&["hosts"], Want::File))],
        example: "hvconf: /etc/virt-scenario/virthosts.yaml",
    },
    Section {
        name: "emulator",
        keys: &[
            key("emulator", To::Place(&["emulator"], Want::File)),
            key(
                "fw_meta",
                To::Place(&["firmware", "descriptors"], Want::Directory),
            ),
        ],
        example: "emulator: /usr/bin/qemu-system-x86_64",
    },
    Section {
        name: "input",
        keys: &[
            key("keyboard", To::Same(&["input", "keyboard"])),
            key("mouse", To::Same(&["input", "mouse"])),
        ],
        example: "keyboard: virtio",
    },
    Section {
        name: "architecture",
        keys: &[key("arch", To::Same(&["arch"]))],
        example: "arch: x86_64",
    },
    Section {
        name: "STORAGE_DATA",
        keys: &[
            key("disk_type", To::Only("file")),
            key("disk_cache", To::Same(&["storage", "cache"])),
            key("disk_target", To::Same(&["storage", "target"])),
            key("disk_bus", To::Same(&["storage", "bus"])),
            key("path", To::Place(&["storage", "dir"], Want::Directory)),
            key("format", To::Same(&["storage", "format"])),
            key("unit", To::Unit),
            key("capacity", To::Capacity(&["storage", "size"])),
            key("cluster_size", To::Kib(&["storage", "cluster_size"])),
            key("lazy_refcounts", To::Same(&["storage", "lazy_refcounts"])),
            key("encryption", To::Same(&["storage", "encryption"])),
            key("preallocation", To::Same(&["storage", "preallocation"])),
            key(
                "compression_type",
                To::Same(&["storage", "compression_type"]),
            ),
        ],
        example: "format: qcow2",
    },
    Section {
        name: "host_filesystem",
        keys: &[
            key("fmode", To::Same(&["shares", "0", "fmode"])),
            key("dmode", To::Same(&["shares", "0", "dmode"])),
            key(
                "source_dir",
                To::Place(&["shares", "0", "source"], Want::Directory),
            ),
            key("target_dir", To::Same(&["shares", "0", "target"])),
        ],
        example: "source_dir: /srv/data",
    },
];
