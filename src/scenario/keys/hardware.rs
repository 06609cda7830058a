//! Keys of devices that the XML can say and that this build's monitor does not have, and of those that both have.

#![forbid(unsafe_code)]

use super::words::{
    ACCESSES, BALLOONS, GRAPHICS_TYPES, INPUTS, NET_DRIVERS, NET_MODELS, NET_TYPES, SHARE_DRIVERS,
    SOUNDS, TPM_TYPES, TPM_VERSIONS, TPMS, USBS, VIDEOS, WATCHDOG_ACTIONS, WATCHDOGS,
};
use super::{ANY, Key, Kind, key};

pub(super) const NO_NET: &str = "Networks are not in this build's monitor yet";
pub(super) const NO_SHARE: &str = "Shared directories are not in this build's monitor yet";
pub(super) const NO_SCREEN: &str = "Screens are not in this build's monitor";
pub(super) const NO_TPM: &str = "TPMs are not in this build's monitor yet";
pub(super) const NO_WATCHDOG: &str = "Watchdogs are not in this build's monitor yet";
pub(super) const NO_BALLOON: &str = "Balloons are not in this build's monitor yet";
pub(super) const NO_SOUND: &str = "Sound is not in this build's monitor";
pub(super) const NO_INPUT: &str = "Input devices are not in this build's monitor";
pub(super) const NO_VSOCK: &str =
    "Sockets between host and guest are not in this build's monitor yet";
const IOMMU: &str = "DMA of this device goes through the guest's IOMMU or bounce buffers.";

#[rustfmt::skip]
pub(super) const NET: &[Key] = &[
    key("type", Kind::Word(NET_TYPES), "network", "user", "What the guest's card is connected to.").ends("", "devices/interface/@type").not_here(NO_NET),
    key("source", Kind::Name { max: 64 }, "", "lan", "The libvirt network, the bridge, or the host's interface.")
        .aka(&["network", "bridge"]).why("by default the network `default`").ends("", "devices/interface/source").not_here(NO_NET),
    key("model", Kind::Word(NET_MODELS), "virtio", "e1000", "The card.").ends("", "devices/interface/model/@type").not_here(NO_NET).but(&["none"]),
    key("mac", Kind::Name { max: 17 }, "", "52:54:00:8b:99:de", "Its hardware address.")
        .why("by default derived from the machine's name and the card's number, locally administered, the same each time")
        .ends("config mac", "devices/interface/mac/@address").not_here(NO_NET),
    key("mtu", Kind::Count { min: 68, max: 65_535 }, "", "1500", "Longest packet, bytes.").ends("VIRTIO_NET_F_MTU", "devices/interface/mtu/@size").not_here(NO_NET),
    key("queues", Kind::Count { min: 1, max: 256 }, "", "4", "Pairs of queues.").ends("VIRTIO_NET_F_MQ", "devices/interface/driver/@queues").not_here(NO_NET),
    key("driver", Kind::Word(NET_DRIVERS), "", "vhost", "Who moves the packets.").ends("", "devices/interface/driver/@name").not_here(NO_NET),
    key("target", Kind::Name { max: 15 }, "", "tap0", "Name of the tap device.").aka(&["tap"]).ends("", "devices/interface/target/@dev").not_here(NO_NET),
    key("link", Kind::Bool, "", "false", "The cable is plugged in.").ends("", "devices/interface/link/@state").not_here(NO_NET),
    key("boot", Kind::Count { min: 1, max: ANY }, "", "2", "Place in the boot order.").ends("", "devices/interface/boot/@order").not_here(NO_NET),
    key("iommu", Kind::Bool, "", "true", IOMMU).ends("VIRTIO_F_ACCESS_PLATFORM", "devices/interface/driver/@iommu").not_here(NO_NET).but(&["false"]),
];

#[rustfmt::skip]
pub(super) const SHARE: &[Key] = &[
    key("source", Kind::Path, "", "/srv/data", "The directory of the host.").aka(&["source_dir", "path"]).ends("", "devices/filesystem/source/@dir").not_here(NO_SHARE),
    key("target", Kind::Text, "", "data", "The tag to mount it by; virt-scenario writes paths here.").aka(&["tag", "target_dir"]).ends("", "devices/filesystem/target/@dir").not_here(NO_SHARE),
    key("driver", Kind::Word(SHARE_DRIVERS), "path", "virtiofs", "How it is served: path is 9p.").ends("", "devices/filesystem/driver/@type").not_here(NO_SHARE),
    key("accessmode", Kind::Word(ACCESSES), "", "mapped", "Whose rights files have.").ends("", "devices/filesystem/@accessmode").not_here(NO_SHARE),
    key("fmode", Kind::Mode, "", "0644", "Mode of new files, octal.").ends("", "devices/filesystem/@fmode").not_here(NO_SHARE),
    key("dmode", Kind::Mode, "", "0755", "Mode of new directories, octal.").ends("", "devices/filesystem/@dmode").not_here(NO_SHARE),
    key("read_only", Kind::Bool, "", "true", "The guest cannot write.").aka(&["readonly", "ro"]).ends("", "devices/filesystem/readonly").not_here(NO_SHARE),
];

#[rustfmt::skip]
pub(super) const WATCHDOG: &[Key] = &[
    key("model", Kind::Word(WATCHDOGS), "", "i6300esb", "The watchdog.").why("i6300esb where only its action is said").ends("PCI 8086:25ab", "devices/watchdog/@model").not_here(NO_WATCHDOG).but(&["none"]),
    key("action", Kind::Word(WATCHDOG_ACTIONS), "reset", "poweroff", "What happens when the guest does not feed it.")
        .ends("", "devices/watchdog/@action").not_here(NO_WATCHDOG),
];

#[rustfmt::skip]
pub(super) const TPM: &[Key] = &[
    key("model", Kind::Word(TPMS), "", "tpm-crb", "The interface that the guest sees.").why("tpm-crb where only the rest is said").ends("MMIO 0xfed40000", "devices/tpm/@model").not_here(NO_TPM).but(&["none"]),
    key("type", Kind::Word(TPM_TYPES), "emulator", "emulator", "What stands behind it.")
        .why("emulator: a machine must not take the host's own TPM without being told").ends("", "devices/tpm/backend/@type").not_here(NO_TPM),
    key("version", Kind::Word(TPM_VERSIONS), "2.0", "2.0", "Version of the emulated TPM.").ends("", "devices/tpm/backend/@version").not_here(NO_TPM),
    key("path", Kind::Path, "", "/dev/tpm1", "The host's TPM, for passthrough.").ends("", "devices/tpm/backend/device/@path").not_here(NO_TPM),
];

#[rustfmt::skip]
pub(super) const RNG: &[Key] = &[
    key("enabled", Kind::Bool, "false", "true", "A virtio-rng device that hands out the host's random bytes.")
        .why("off: only what a scenario declares exists; x86 guests have RDRAND").ends("virtio device 4", "devices/rng"),
    key("source", Kind::Path, "", "/dev/hwrng", "Where libvirt takes them from.")
        .why("by default /dev/urandom; the monitor of this program calls getrandom(2), which is the same source").ends("", "devices/rng/backend").not_here("The rng of this build\'s monitor is getrandom(2)").but(&["/dev/urandom", "/dev/random"]),
    key("rate_bytes", Kind::Count { min: 1, max: ANY }, "", "1024", "Bytes that the guest may have in each period.")
        .ends("", "devices/rng/rate/@bytes").not_here("The rng of this build's monitor has no rate limit"),
    key("rate_period", Kind::Count { min: 1, max: ANY }, "", "1000", "The period, milliseconds.")
        .ends("", "devices/rng/rate/@period").not_here("The rng of this build's monitor has no rate limit"),
    key("iommu", Kind::Bool, "", "true", IOMMU).ends("VIRTIO_F_ACCESS_PLATFORM", "devices/rng/driver/@iommu")
        .not_here("Encrypted memory is not in this build's monitor yet").but(&["false"]),
];

#[rustfmt::skip]
pub(super) const BALLOON: &[Key] = &[
    key("model", Kind::Word(BALLOONS), "", "virtio", "The balloon device.").why("libvirt adds one unless it is none").ends("virtio device 5", "devices/memballoon/@model").not_here(NO_BALLOON).but(&["none"]),
    key("autodeflate", Kind::Bool, "", "true", "Gives memory back before the guest kills a process.").ends("VIRTIO_BALLOON_F_DEFLATE_ON_OOM", "devices/memballoon/@autodeflate").not_here(NO_BALLOON),
    key("free_page_reporting", Kind::Bool, "", "true", "The guest reports pages that it does not use.").ends("VIRTIO_BALLOON_F_PAGE_REPORTING", "devices/memballoon/@freePageReporting").not_here(NO_BALLOON),
    key("stats_period", Kind::Count { min: 1, max: 2_147_483_647 }, "", "10", "Seconds between two statistics.").ends("VIRTIO_BALLOON_F_STATS_VQ", "devices/memballoon/stats/@period").not_here(NO_BALLOON),
    key("iommu", Kind::Bool, "", "true", IOMMU).ends("VIRTIO_F_ACCESS_PLATFORM", "devices/memballoon/driver/@iommu").not_here(NO_BALLOON).but(&["false"]),
];

#[rustfmt::skip]
pub(super) const VIDEO: &[Key] = &[
    key("model", Kind::Word(VIDEOS), "", "virtio", "The graphics card.").ends("", "devices/video/model/@type").not_here(NO_SCREEN).but(&["none"]),
    key("heads", Kind::Count { min: 1, max: 16 }, "", "1", "Screens on it.").ends("", "devices/video/model/@heads").not_here(NO_SCREEN),
    key("ram", Kind::Count { min: 1, max: ANY }, "", "65536", "Its memory, KiB (qxl).").ends("", "devices/video/model/@ram").not_here(NO_SCREEN),
    key("vram", Kind::Count { min: 1, max: ANY }, "", "65536", "Its video memory, KiB.").ends("", "devices/video/model/@vram").not_here(NO_SCREEN),
    key("vgamem", Kind::Count { min: 1, max: ANY }, "", "16384", "Its frame buffer, KiB (qxl).").ends("", "devices/video/model/@vgamem").not_here(NO_SCREEN),
    key("accel3d", Kind::Bool, "", "true", "3D commands of the guest run on the host's card.").ends("", "devices/video/model/acceleration/@accel3d").not_here(NO_SCREEN),
    key("iommu", Kind::Bool, "", "true", IOMMU).ends("VIRTIO_F_ACCESS_PLATFORM", "devices/video/driver/@iommu").not_here(NO_SCREEN).but(&["false"]),
];

#[rustfmt::skip]
pub(super) const GRAPHICS: &[Key] = &[
    key("type", Kind::Word(GRAPHICS_TYPES), "", "vnc", "Protocol of the screen.").ends("", "devices/graphics/@type").not_here(NO_SCREEN).but(&["none"]),
    key("listen", Kind::Name { max: 64 }, "", "::1", "Address to listen at.").why("by default 127.0.0.1: a screen without password is for this host only")
        .ends("", "devices/graphics/listen/@address").not_here(NO_SCREEN),
    key("port", Kind::Count { min: 5900, max: 65_535 }, "", "5901", "TCP port.").why("by default the next free one from 5900").ends("", "devices/graphics/@port").not_here(NO_SCREEN),
    key("keymap", Kind::Name { max: 16 }, "", "en-us", "Keyboard layout to translate from.").why("by default none: viewers send scan codes").ends("", "devices/graphics/@keymap").not_here(NO_SCREEN),
    key("socket", Kind::Path, "", "/run/lab.vnc", "A socket to listen at instead of a port.").ends("", "devices/graphics/listen/@socket").not_here(NO_SCREEN),
];

#[rustfmt::skip]
pub(super) const SOUND: &[Key] =
    &[key("model", Kind::Word(SOUNDS), "", "ich9", "The sound card.").ends("", "devices/sound/@model").not_here(NO_SOUND).but(&["none"])];

#[rustfmt::skip]
pub(super) const INPUT: &[Key] = &[
    key("keyboard", Kind::Word(INPUTS), "", "virtio", "How the keyboard is connected.").ends("", "devices/input[@type='keyboard']/@bus").not_here(NO_INPUT).but(&["none"]),
    key("mouse", Kind::Word(INPUTS), "", "virtio", "How the mouse is connected.").ends("", "devices/input[@type='mouse']/@bus").not_here(NO_INPUT).but(&["none"]),
    key("tablet", Kind::Word(INPUTS), "", "virtio", "How a pointer with absolute positions is connected.").ends("", "devices/input[@type='tablet']/@bus").not_here(NO_INPUT).but(&["none"]),
];

#[rustfmt::skip]
pub(super) const USB: &[Key] =
    &[key("model", Kind::Word(USBS), "", "qemu-xhci", "The USB controller.").ends("", "devices/controller[@type='usb']/@model").not_here(NO_INPUT).but(&["none"])];

#[rustfmt::skip]
pub(super) const VSOCK: &[Key] = &[
    key("cid", Kind::Count { min: 3, max: ANY - 1 }, "", "42", "The guest's address; 0 to 2 are taken.").ends("config guest_cid", "devices/vsock/cid/@address").not_here(NO_VSOCK),
    key("auto", Kind::Bool, "", "true", "libvirt chooses a free address.").ends("", "devices/vsock/cid/@auto").not_here(NO_VSOCK).but(&["false"]),
];
