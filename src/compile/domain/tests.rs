//! The rules of the domain: for each one input that breaks it, told once with both places, and a neighbour that does
//! not.

use std::path::Path;

use crate::compile::Description;
use crate::descriptors::{DescriptorFile, Found};
use crate::diag::{Diagnostics, Record, Severity};
use crate::facts::{FileInfo, FileKind, HostFacts, SevFacts};
use crate::scenario::{Input, parse};

/// A host with images and firmware; its QEMU has modules, and no qxl.
fn host() -> HostFacts {
    let mut facts = HostFacts::default();
    let file = FileInfo {
        kind: FileKind::Regular,
        length: 1 << 20,
        writable: true,
    };
    for name in [
        "/lab/a.img",
        "/lab/b.img",
        "/lab/vmlinuz",
        "/fw/CODE.fd",
        "/fw/PLAIN.fd",
    ] {
        facts.files.insert(name.into(), Ok(file));
    }
    let directory = FileInfo {
        kind: FileKind::Directory,
        ..file
    };
    for name in ["/a", "/b", "/srv"] {
        facts.files.insert(name.into(), Ok(directory));
    }
    let modules = "/usr/lib/x86_64-linux-gnu/qemu";
    facts.texts.insert(modules.into(), String::new());
    let text = r#"{"description": "for tests", "interface-types": ["uefi"],
        "mapping": {"device": "memory", "filename": "/fw/CODE.fd"},
        "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*", "pc-i440fx-*"]}],
        "features": ["amd-sev", "amd-sev-es", "amd-sev-snp"], "tags": []}"#;
    let plain = text
        .replace("/fw/CODE.fd", "/fw/PLAIN.fd")
        .replace("\"amd-sev\", \"amd-sev-es\", \"amd-sev-snp\"", "");
    facts.firmware = [("50-test.json", text), ("60-plain.json", &plain)]
        .map(|(file, text)| DescriptorFile {
            path: Path::new("/usr/share/qemu/firmware").join(file),
            found: Found::Text(text.into()),
        })
        .into();
    facts
}

fn describe_on(facts: &HostFacts, text: &str) -> Result<Description, Diagnostics> {
    let parsed = parse(&Input {
        file: Some((Path::new("/lab/s.yaml"), text.as_bytes())),
        ..Input::default()
    });
    crate::describe(parsed, facts)
}

/// Everything that is said about a scenario wherever it runs.
fn said_on(facts: &HostFacts, text: &str) -> Vec<Record> {
    match describe_on(facts, text) {
        Ok(description) => description.warnings.records(),
        Err(messages) => messages.records(),
    }
}

fn errors(said: &[Record]) -> usize {
    let error = |d: &&Record| d.severity == Severity::Error;
    said.iter().filter(error).count()
}

fn marked(record: &Record) -> (String, Vec<String>) {
    let place = record.place.as_ref().map(|p| p.text.marked.clone());
    let also = record.also.iter().map(|p| p.text.marked.clone());
    (place.unwrap_or_default(), also.collect())
}

/// Checks rules: what breaks one, the code, the place, the other place (empty: there is none), and the neighbour.
#[track_caller]
fn check(facts: &HostFacts, rules: &[(&str, &str, &str, &str, &str)]) {
    let mut wrong = Vec::new();
    for (bad, code, place, other, good) in rules {
        let said = said_on(facts, bad);
        let found: Vec<&Record> = said.iter().filter(|d| d.code == *code).collect();
        let expected_errors = usize::from(code.starts_with("E-"));
        let others: Vec<String> = Some((*other).to_owned())
            .filter(|o| !o.is_empty())
            .into_iter()
            .collect();
        match found.as_slice() {
            [one]
                if marked(one) == ((*place).to_owned(), others)
                    && errors(&said) == expected_errors => {}
            _ => wrong.push(format!(
                "{bad}\n  expected {code} at {place:?}, {other:?}\n  {said:?}"
            )),
        }
        let said = said_on(facts, good);
        if errors(&said) > 0 || said.iter().any(|d| d.code == *code) {
            wrong.push(format!("the neighbour {good}\n  {said:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
#[rustfmt::skip]
fn disks() {
    check(&host(), &[
        ("disk: {path: a.img, bus: ide}\nmachine: q35\n", "E-CONFLICT", "ide", "q35", "disk: {path: a.img, bus: ide}\nmachine: pc\n"),
        ("disk: {path: a.img, device: cdrom, bus: virtio}\n", "E-CONFLICT", "virtio", "cdrom", "disk: {path: a.img, device: cdrom, bus: sata}\n"),
        ("disk: {path: a.img, device: cdrom, bus: fdc}\n", "E-CONFLICT", "fdc", "cdrom", "disk: {path: a.img, device: cdrom, bus: scsi}\n"),
        ("disk: {path: a.img, device: floppy, bus: sata}\n", "E-CONFLICT", "sata", "floppy", "disk: {path: a.img, device: floppy, bus: fdc}\n"),
        ("disk: {path: a.img, device: disk, bus: fdc}\n", "E-CONFLICT", "fdc", "disk", "disk: {path: a.img, device: disk, bus: sata}\n"),
        ("disk: {path: a.img, io: native, cache: writeback}\n", "E-CONFLICT", "native", "writeback",
         "disk: {path: a.img, io: native, cache: none}\n"),
        ("disk: {path: a.img, io: native, cache: unsafe}\n", "E-CONFLICT", "native", "unsafe",
         "disk: {path: a.img, io: native, cache: directsync}\n"),
        ("disk: {path: a.img, format: qcow2, shareable: true}\n", "E-CONFLICT", "true", "qcow2",
         "disk: {path: a.img, format: raw, shareable: true}\n"),
        ("disk: {path: a.img, format: vhdx}\n", "W-XML", "vhdx", "", "disk: {path: a.img, format: vmdk}\n"),
        ("disk: {path: a.img, transient: yes, shareable: true}\n", "E-CONFLICT", "yes", "true",
         "disk: {path: a.img, transient: yes, shareable: false}\n"),
        ("disk: {path: a.img, transient: yes, read_only: true}\n", "E-CONFLICT", "yes", "true",
         "preset: testing-os\ndisks: [{path: a.img, read_only: true}]\n"),
        ("disk: {path: /dev/sdx, transient: yes}\n", "E-CONFLICT", "/dev/sdx", "yes", "disk: {path: a.img, transient: yes}\n"),
        ("disk: {path: a.img, type: block, transient: yes}\n", "E-CONFLICT", "block", "yes", "disk: {path: a.img, type: file, transient: yes}\n"),
        ("disk: {path: a.img, format: raw, cluster_size: 64K}\n", "W-DISK-OPTION", "64K", "",
         "disk: {path: a.img, format: qcow2, cluster_size: 64K}\n"),
        ("disk: {path: a.img, format: raw, lazy_refcounts: on}\n", "W-DISK-OPTION", "on", "",
         "disk: {path: a.img, format: qcow2, lazy_refcounts: on}\n"),
        ("disk: {path: a.img, format: raw, compression_type: zstd}\n", "W-DISK-OPTION", "zstd", "",
         "disk: {path: a.img, format: qcow2, compression_type: zstd}\n"),
        ("disk: {path: a.img, format: raw, preallocation: metadata}\n", "E-CONFLICT", "metadata", "raw",
         "disk: {path: a.img, format: raw, preallocation: falloc}\n"),
        ("disk: {path: n.img, format: raw, preallocation: metadata, size: 1G}\n", "E-CONFLICT", "metadata", "raw",
         "disk: {path: n.img, format: qcow2, preallocation: metadata, size: 1G}\n"),
        ("disk: {path: a.img, format: vmdk, encryption: luks}\n", "E-CONFLICT", "luks", "vmdk",
         "disk: {path: a.img, format: raw, encryption: luks}\n"),
        ("disks: [{path: a.img, boot: 1}, {path: b.img, boot: 1}]\n", "E-CONFLICT", "1", "1",
         "disks: [{path: a.img, boot: 1}, {path: b.img, boot: 2}]\n"),
        ("storage: {encryption: luks}\ndisks: [{path: a.img, format: qcow2}]\n", "W-DISK-PLAIN", "{", "",
         "storage: {encryption: luks}\ndisks: [{path: a.img, format: qcow2, encryption: none}]\n"),
        ("storage: {size: 1G}\n", "W-UNUSED", "{", "", "storage: {size: 1G}\ndisks: [{id: x}]\n"),
        ("disk: {path: n.img, encryption: luks, secret: {file: a}, secret_file: b}\n", "E-CONFLICT", "b", "",
         "disk: {path: n.img, encryption: luks, secret: {file: a}}\n"),
        ("disk: {path: a.img, format: qcow2, encryption: luks, secret: x}\n", "E-VALUE", "x", "",
         "disk: {path: a.img, format: qcow2, encryption: luks, secret: 6f1c2b1a-9d0e-4c51-9c3f-0a4d5e6f7a8b}\n"),
        ("disk: {path: a.img, format: qcow2, secret_file: key}\n", "W-UNUSED", "key", "",
         "disk: {path: a.img, format: qcow2, encryption: luks, secret_file: key}\n"),
        ("disk: {path: a.img, bus: sata, iothread: 1}\niothreads: 1\n", "E-CONFLICT", "1", "sata",
         "disk: {path: a.img, bus: virtio, iothread: 1}\niothreads: 1\n"),
        ("disk: {path: a.img, iothread: 3}\niothreads: 2\n", "E-CONFLICT", "3", "2", "disk: {path: a.img, iothread: 2}\niothreads: 2\n"),
        ("disk: {path: a.img, target: sda}\n", "E-DISK-TARGET", "sda", "", "disk: {path: a.img, target: vda}\n"),
        ("disks: [{path: a.img, target: vdb}, {path: b.img, target: vdb}]\n", "E-CONFLICT", "vdb", "vdb",
         "disks: [{path: a.img, target: vdb}, {path: b.img, target: vdc}]\n"),
        ("boot: hd\ndisk: {path: a.img, boot: 1}\n", "E-CONFLICT", "1", "hd", "disk: {path: a.img, boot: 1}\n"),
        ("boot: {menu: no, menu_timeout: 3000}\n", "E-CONFLICT", "3000", "no", "boot: {menu: yes, menu_timeout: 3000}\n"),
    ]);
}

#[test]
#[rustfmt::skip]
fn machines_events_and_clocks() {
    check(&host(), &[
        ("on_poweroff: preserve\n", "E-EVENT", "preserve", "", "on_poweroff: destroy\n"),
        ("on_reboot: coredump-restart\n", "E-EVENT", "coredump-restart", "", "on_reboot: restart\n"),
        ("on_crash: rename-restart\n", "E-EVENT", "rename-restart", "", "on_crash: coredump-destroy\n"),
        ("on_poweroff: restart\non_reboot: destroy\n", "E-EVENT", "destroy", "restart", "on_poweroff: restart\non_reboot: restart\n"),
        ("timers: {pit_policy: merge}\n", "E-VALUE", "merge", "", "timers: {pit_policy: discard}\n"),
        ("timers: {rtc_policy: discard}\n", "E-VALUE", "discard", "", "timers: {rtc_policy: catchup}\n"),
        ("input: {tablet: ps2}\n", "E-VALUE", "ps2", "", "input: {tablet: usb}\n"),
        ("machine: microvm\n", "E-MACHINE", "microvm", "", "machine: q35\n"),
        ("machine: on\n", "E-VALUE", "on", "", "machine: q35\n"),
        ("machine: virt\n", "E-FIRMWARE", "virt", "", "machine: virt\nkernel: vmlinuz\n"),
        ("arch: loongarch64\nmachine: virt\nfirmware: bios\n", "W-LIBVIRT", "loongarch64", "", "arch: aarch64\nmachine: virt\nfirmware: bios\n"),
        ("machine: isapc\n", "E-MACHINE", "isapc", "", "machine: pc\n"),
        ("machine: q35\narch: aarch64\nfirmware: bios\n", "E-CONFLICT", "q35", "aarch64", "machine: virt\narch: aarch64\nfirmware: bios\n"),
        ("machine: q35\ncpus: 289\n", "E-MACHINE", "289", "q35", "machine: q35\ncpus: 255\n"),
        ("machine: pc\ncpus: 256\n", "E-MACHINE", "256", "pc", "machine: pc\ncpus: 255\n"),
        ("watchdog: itco\n", "W-LIBVIRT", "itco", "", "watchdog: i6300esb\n"),
        ("sound: virtio\n", "W-LIBVIRT", "virtio", "", "sound: ich9\n"),
        ("firmware: {path: /fw/CODE.fd, format: qcow2}\n", "W-LIBVIRT", "qcow2", "", "firmware: {path: /fw/CODE.fd, format: raw}\n"),
        ("title: \"a\\x01b\"\n", "E-CONTROL", "\"a\\x01b\"", "", "title: \"a\\tb\"\n"),
        ("clock: {offset: utc, timezone: Europe/Berlin}\n", "E-CONFLICT", "utc", "Europe/Berlin",
         "clock: {offset: timezone, timezone: Europe/Berlin}\n"),
        ("uuid: 1234\n", "E-VALUE", "1234", "", "uuid: 6f1c2b1a-9d0e-4c51-9c3f-0a4d5e6f7a8b\n"),
    ]);
}

#[test]
#[rustfmt::skip]
fn cpus_and_memory() {
    check(&host(), &[
        ("type: qemu\ncpu: {mode: host-passthrough}\n", "E-CONFLICT", "host-passthrough", "qemu", "type: kvm\ncpu: {mode: host-passthrough}\n"),
        ("cpu: {mode: custom}\n", "E-REQUIRED", "custom", "", "cpu: {mode: custom, model: EPYC}\n"),
        ("cpu: {mode: maximum, model: EPYC}\n", "E-CONFLICT", "EPYC", "maximum", "cpu: {model: EPYC}\n"),
        ("cpu: {mode: host-model, migratable: off}\n", "E-CONFLICT", "off", "host-model", "cpu: {mode: host-passthrough, migratable: off}\n"),
        ("cpu: {mode: host-model, cache: passthrough}\n", "E-CONFLICT", "passthrough", "host-model", "cpu: {mode: host-model, cache: emulate}\n"),
        ("cpu: {scheduler: batch, priority: 5}\n", "E-CONFLICT", "5", "batch", "cpu: {scheduler: fifo, priority: 5, pin: [{cpus: \"1\"}]}\n"),
        ("cpu: {pin: [{vcpu: 0}]}\n", "E-REQUIRED", "{", "", "cpu: {pin: [{vcpu: 0, cpus: \"1\"}]}\n"),
        ("cpu: {pin: [{cpus: 3-2}]}\n", "E-VALUE", "3-2", "", "cpu: {pin: [{cpus: \"2-3,^2\"}]}\n"),
        ("cpu: {count: 2, pin: [{vcpu: 2, cpus: \"1\"}]}\n", "E-INDEX", "{", "", "cpu: {count: 2, pin: [{vcpu: 1, cpus: \"1\"}]}\n"),
        ("cpu: {count: 2, pin: [{vcpu: 0, cpus: \"1\"}, {vcpu: 0, cpus: \"2\"}]}\n", "E-CONFLICT", "{", "",
         "cpu: {count: 2, pin: [{vcpu: 0, cpus: \"1\"}, {vcpu: 1, cpus: \"2\"}]}\n"),
        ("cpu: {emulator_cpus: all}\n", "E-VALUE", "all", "", "cpu: {emulator_cpus: 0-1}\n"),
        ("cpu: {scheduler: rr}\n", "W-ISOLCPUS", "rr", "", "cpu: {scheduler: rr, pin: [{cpus: \"1\"}]}\n"),
        ("memory: {size: 1G, current: 2G}\nballoon: virtio\n", "E-CONFLICT", "2G", "1G", "memory: {size: 2G, current: 1G}\nballoon: virtio\n"),
        ("memory: {size: 2G, current: 1G}\nballoon: none\n", "E-CONFLICT", "1G", "none", "memory: {size: 2G, current: 2G}\nballoon: none\n"),
        ("memory: {size: 1001M, hugepages: 2M}\n", "E-CONFLICT", "1001M", "2M", "memory: {size: 1002M, hugepages: 2M}\n"),
        ("memory: {size: 1G, hugepages: 2M, source: anonymous}\n", "E-CONFLICT", "anonymous", "2M",
         "memory: {size: 1G, hugepages: 2M, source: memfd}\n"),
        ("memory: {size: 1G, hugepages: 1G, allocation: ondemand}\n", "E-CONFLICT", "ondemand", "1G",
         "memory: {size: 1G, hugepages: 1G, allocation: immediate}\n"),
        ("memory: {size: 1G, hard_limit: 1023M}\n", "E-CONFLICT", "1023M", "1G", "memory: {size: 1G, hard_limit: 1280M}\n"),
    ]);
}

#[test]
#[rustfmt::skip]
fn networks_screens_and_shares() {
    check(&host(), &[
        ("net: {type: bridge}\n", "E-REQUIRED", "{", "", "net: {type: bridge, source: br0}\n"),
        ("net: {type: direct}\n", "E-REQUIRED", "{", "", "net: {type: direct, source: eth0}\n"),
        ("net: {type: bridge, source: sixteen-letters-}\n", "E-NET-NAME", "sixteen-letters-", "", "net: {type: bridge, source: fifteen-letters}\n"),
        ("net: {type: direct, source: \"a:b\"}\n", "E-NET-NAME", "\"a:b\"", "", "net: {type: direct, source: a+b}\n"),
        ("net: {target: \"a:b\"}\n", "E-NET-NAME", "\"a:b\"", "", "net: {target: ab}\n"),
        ("net: {type: user, source: lan}\n", "E-CONFLICT", "lan", "user", "net: {type: network, source: lan}\n"),
        ("net: {type: user, mtu: 1500}\n", "E-CONFLICT", "1500", "user", "net: {type: network, mtu: 1500}\n"),
        ("net: {mac: \"01:00:5e:00:00:01\"}\n", "E-NET-MAC", "\"01:00:5e:00:00:01\"", "", "net: {mac: \"02:00:5e:00:00:01\"}\n"),
        ("nets: [{mac: \"52:54:00:00:00:0A\"}, {mac: \"52:54:00:00:00:0a\"}]\n", "E-CONFLICT", "\"52:54:00:00:00:0a\"", "\"52:54:00:00:00:0A\"",
         "nets: [{mac: \"52:54:00:00:00:0A\"}, {mac: \"52:54:00:00:00:0b\"}]\n"),
        ("rng: {rate_period: 1000}\n", "E-REQUIRED", "1000", "", "rng: {rate_period: 1000, rate_bytes: 64}\n"),
        ("usb: none\ninput: {mouse: usb}\n", "E-CONFLICT", "usb", "none", "usb: qemu-xhci\ninput: {mouse: usb}\n"),
        ("usb: none\ndisk: {path: a.img, bus: usb}\n", "E-CONFLICT", "usb", "none", "disk: {path: a.img, bus: usb}\n"),
        ("usb: none\nsound: usb\n", "E-CONFLICT", "usb", "none", "usb: none\nsound: ich9\n"),
        ("tpm: {type: emulator, path: /dev/tpm0}\n", "E-CONFLICT", "/dev/tpm0", "emulator", "tpm: {type: passthrough, path: /dev/tpm0}\n"),
        ("tpm: {type: passthrough, version: \"2.0\"}\n", "E-CONFLICT", "\"2.0\"", "passthrough", "tpm: {type: emulator, version: \"2.0\"}\n"),
        ("tpm: {model: tpm-crb, version: \"1.2\"}\n", "E-CONFLICT", "\"1.2\"", "tpm-crb", "tpm: {model: tpm-tis, version: \"1.2\"}\n"),
        ("tpm: {model: none, type: emulator}\n", "E-CONFLICT", "emulator", "none", "tpm: {model: none}\n"),
        ("watchdog: {model: none, action: reset}\n", "E-CONFLICT", "reset", "none", "preset: desktop\nwatchdog: {action: reset}\n"),
        ("balloon: {model: none, autodeflate: on}\n", "E-CONFLICT", "on", "none", "preset: soft-rt\nballoon: {autodeflate: on}\n"),
        ("rng: {enabled: no, source: /dev/hwrng}\n", "E-CONFLICT", "/dev/hwrng", "no", "rng: {source: /dev/hwrng}\n"),
        ("graphics: [{type: none, keymap: fr}]\n", "E-CONFLICT", "fr", "none", "graphics: [{type: none}]\n"),
        ("graphics: [{keymap: fr}]\n", "E-REQUIRED", "{", "", "graphics: [{type: vnc, keymap: fr}]\n"),
        ("graphics: [{type: sdl, port: 5901}]\n", "E-CONFLICT", "5901", "sdl", "graphics: [{type: vnc, port: 5901}]\n"),
        ("graphics: [{type: vnc, socket: /run/v, port: 5901}]\n", "E-CONFLICT", "5901", "/run/v", "graphics: [{type: vnc, socket: /run/v}]\n"),
        ("graphics: [{type: vnc, socket: /run/v, listen: 127.0.0.1}]\n", "E-CONFLICT", "127.0.0.1", "/run/v",
         "graphics: [{type: vnc, listen: 127.0.0.1}]\n"),
        ("graphics: [{type: vnc, listen: 0.0.0.0}]\n", "W-OPEN-SCREEN", "0.0.0.0", "", "graphics: [{type: vnc, listen: \"::1\"}]\n"),
        ("graphics: [{type: egl-headless}]\n", "E-REQUIRED", "[", "", "graphics: [{type: egl-headless}, {type: vnc}]\n"),
        ("graphics: [{type: vnc, port: 5901}, {type: spice, port: 5901}]\n", "E-CONFLICT", "5901", "5901",
         "graphics: [{type: vnc, port: 5901}, {type: spice, port: 5902}]\n"),
        ("video: [{model: virtio}, {model: vga}]\n", "E-VALUE", "vga", "", "video: [{model: vga}, {model: virtio}]\n"),
        ("net: {model: virtio-transitional, iommu: true}\n", "E-CONFLICT", "virtio-transitional", "true",
         "net: {model: virtio-non-transitional, iommu: true}\n"),
        ("video: [{heads: 1}]\n", "E-REQUIRED", "{", "", "video: [{model: virtio, heads: 1}]\n"),
        ("video: qxl\n", "W-EMULATOR", "qxl", "", "video: vga\n"),
        ("preset: computation\n", "W-EMULATOR", "qxl", "", "preset: computation\nvideo: vga\n"),
        ("video: [{model: vga, heads: 2}]\n", "E-CONFLICT", "2", "vga", "video: [{model: virtio, heads: 2}]\n"),
        ("video: [{model: virtio, vgamem: 16384}]\n", "E-CONFLICT", "16384", "virtio", "video: [{model: virtio}]\n"),
        ("video: [{model: vga, accel3d: true}]\n", "E-CONFLICT", "true", "vga", "video: [{model: virtio, accel3d: true}]\n"),
        ("vsock: {auto: true, cid: 7}\n", "E-CONFLICT", "7", "true", "vsock: {auto: false, cid: 7}\n"),
        ("shares: [{source: /srv}]\n", "E-REQUIRED", "{", "", "shares: [{source: /srv, target: t}]\n"),
        ("shares: [{source: /none, target: t}]\n", "W-PATH", "/none", "", "shares: [{source: /a, target: t}]\n"),
        ("shares: [{source: a.img, target: t}]\n", "W-PATH", "a.img", "", "shares: [{source: /b, target: t}]\n"),
        ("shares: [{source: /a, target: t}, {source: /b, target: t}]\n", "E-CONFLICT", "t", "t",
         "shares: [{source: /a, target: t}, {source: /b, target: u}]\n"),
        ("shares: [{source: /a, target: t, driver: virtiofs, read_only: true}]\nmemory: {access: shared}\n", "E-CONFLICT", "true", "virtiofs",
         "shares: [{source: /a, target: t, driver: path, read_only: true}]\nmemory: {access: shared}\n"),
        ("shares: [{source: /a, target: t, driver: virtiofs}]\nmemory: {access: private}\n", "E-CONFLICT", "virtiofs", "private",
         "shares: [{source: /a, target: t, driver: virtiofs}]\nmemory: {access: shared}\n"),
        ("shares: [{source: /a, target: t, driver: virtiofs, fmode: \"0644\"}]\nmemory: {access: shared}\n", "E-CONFLICT", "\"0644\"", "virtiofs",
         "shares: [{source: /a, target: t, driver: virtiofs}]\nmemory: {access: shared}\n"),
        ("shares: [{source: /a, target: t, accessmode: passthrough, dmode: \"0755\"}]\n", "E-CONFLICT", "\"0755\"", "passthrough",
         "shares: [{source: /a, target: t, accessmode: mapped, dmode: \"0755\"}]\n"),
        ("disk: {path: a.img, bus: sata, iommu: true}\n", "E-CONFLICT", "true", "sata", "disk: {path: a.img, bus: virtio, iommu: true}\n"),
        ("net: {model: e1000, iommu: true}\n", "E-CONFLICT", "true", "e1000", "net: {model: virtio, iommu: true}\n"),
    ]);
}

#[test]
#[rustfmt::skip]
fn firmware() {
    check(&host(), &[
        ("firmware: efi\nfeatures: {acpi: false}\n", "E-CONFLICT", "false", "efi", "firmware: bios\nfeatures: {acpi: false}\n"),
        ("firmware: {type: bios, path: /fw/CODE.fd}\n", "E-CONFLICT", "/fw/CODE.fd", "bios", "firmware: {type: efi, path: /fw/CODE.fd}\n"),
        ("firmware: none\n", "E-FIRMWARE", "none", "", "firmware: none\nkernel: vmlinuz\n"),
        ("firmware: {path: /fw/CODE.fd, secure: true}\nfeatures: {smm: false}\n", "E-CONFLICT", "false", "true",
         "firmware: {path: /fw/CODE.fd, secure: true}\nfeatures: {smm: true}\n"),
        ("firmware: {path: /fw/CODE.fd, stateless: true, nvram: /x.fd}\n", "E-CONFLICT", "/x.fd", "true",
         "firmware: {path: /fw/CODE.fd, nvram: /x.fd}\n"),
        ("firmware: {path: /fw/CODE.fd, stateless: true, nvram_template: /x.fd}\n", "E-CONFLICT", "/x.fd", "true",
         "firmware: {path: /fw/CODE.fd, stateless: true}\n"),
        ("firmware: {type: efi, features: [secure-boot]}\n", "E-FIRMWARE", "{", "", "firmware: {type: efi, features: [amd-sev]}\n"),
        ("firmware: {path: /fw/CODE.fd, secure: true}\nmachine: microvm\n", "E-MACHINE", "microvm", "",
         "firmware: {path: /fw/CODE.fd, secure: true}\nmachine: q35\n"),
    ]);
    let bare = HostFacts::default();
    check(&bare, &[
        ("firmware: {type: efi, features: [acpi-s3]}\n", "W-FIRMWARE", "[", "", "firmware: {type: efi, features: [secure-boot]}\n"),
        ("security: sev\n", "E-FIRMWARE", "sev", "", "security: none\n"),
    ]);
}

#[test]
#[rustfmt::skip]
fn protection() {
    check(&host(), &[
        ("security: sev\nfirmware: bios\n", "E-CONFLICT", "bios", "sev", "security: none\nfirmware: bios\n"),
        ("security: sev\nkernel: vmlinuz\nfirmware: none\n", "E-CONFLICT", "none", "sev", "security: none\nkernel: vmlinuz\nfirmware: none\n"),
        ("security: sev\nfirmware: {path: /fw/CODE.fd, device: rom, secure: on}\n", "E-CONFLICT", "on", "sev",
         "security: sev\nfirmware: {path: /fw/CODE.fd, device: rom, secure: off}\n"),
        ("security: sev\nfirmware: {path: /fw/PLAIN.fd, stateless: true}\n", "E-FIRMWARE", "/fw/PLAIN.fd", "",
         "security: sev\nfirmware: {path: /fw/CODE.fd, stateless: true}\n"),
        ("security: {type: sev, policy: 0x32}\n", "W-SEV-POLICY", "0x32", "", "security: {type: sev, policy: 0x33}\n"),
        ("security: {type: sev, policy: 0x31}\n", "W-SEV-POLICY", "0x31", "", "security: {type: sev, policy: 0x3}\n"),
        ("security: {type: sev-snp, policy: 0xb0000}\n", "W-SEV-POLICY", "0xb0000", "", "security: {type: sev-snp, policy: 0x30000}\n"),
        ("security: sev\niommu: off\n", "E-CONFLICT", "off", "sev", "security: sev\niommu: on\n"),
        ("security: sev\nfeatures: {acpi: false}\n", "E-CONFLICT", "false", "sev", "security: sev\nfeatures: {acpi: true}\n"),
        ("security: sev\nfirmware: {path: /fw/CODE.fd, nvram: /x.fd}\n", "W-SEV-NVRAM", "/x.fd", "",
         "security: sev\nfirmware: {path: /fw/CODE.fd, stateless: true}\n"),
        ("security: sev\nfirmware: {path: /fw/CODE.fd}\n", "W-SEV-NVRAM", "/fw/CODE.fd", "",
         "security: sev\nfirmware: {path: /fw/CODE.fd, device: rom}\n"),
        ("security: sev\nfirmware: {nvram: /x.fd}\n", "W-SEV-NVRAM", "/x.fd", "", "security: sev\nfirmware: {type: efi}\n"),
        ("security: {policy: 0x33}\n", "W-UNUSED", "{", "", "security: {type: sev, policy: 0x33}\n"),
        ("security: {type: sev, id_block: AAAA}\n", "E-CONFLICT", "AAAA", "sev", "security: {type: sev-snp, id_block: AAAA}\n"),
        ("security: {type: sev-es, vcek: off}\n", "E-CONFLICT", "off", "sev-es", "security: {type: sev-snp, vcek: off}\n"),
        ("security: {type: sev-snp, session: AAAA}\n", "E-CONFLICT", "AAAA", "sev-snp", "security: {type: sev, session: AAAA}\n"),
        ("security: {type: sev, session: \"A<A\"}\n", "E-VALUE", "\"A<A\"", "", "security: {type: sev, session: \"A/A=\"}\n"),
        ("security: {type: sev-snp, policy: 0x10000}\n", "E-SEV-POLICY", "0x10000", "", "security: {type: sev-snp, policy: 0x30000}\n"),
        ("security: {type: sev-es, policy: 0x33}\n", "E-CONFLICT", "0x33", "sev-es", "security: {type: sev-es, policy: 0x37}\n"),
        ("security: {type: sev, policy: 0x73}\n", "E-SEV-POLICY", "0x73", "", "security: {type: sev, policy: 0x33}\n"),
        ("security: sev\ncpu: {migratable: on}\n", "E-CONFLICT", "on", "sev", "security: sev\ncpu: {migratable: off}\n"),
        ("security: sev\ncpu: {model: EPYC, mode: custom}\n", "W-SEV-CPU", "custom", "", "security: sev\ncpu: {mode: host-passthrough}\n"),
        ("security: {type: sev-es}\non_reboot: restart\n", "E-CONFLICT", "restart", "sev-es", "security: sev\non_reboot: restart\n"),
        ("security: sev\ndisk: {path: a.img, bus: virtio}\n", "W-SEV-BOOT", "virtio", "", "security: sev\ndisk: {path: a.img, bus: scsi}\n"),
        ("security: {type: sev-es}\non_crash: restart\n", "E-CONFLICT", "restart", "sev-es", "security: sev\non_crash: restart\n"),
        ("security: {type: sev-es}\non_poweroff: restart\n", "E-CONFLICT", "restart", "sev-es", "preset: computation\nvideo: vga\nsecurity: sev-es\n"),
        ("security: sev-snp\n", "W-LIBVIRT", "sev-snp", "", "security: sev-es\n"),
        ("security: sev\nvideo: virtio\n", "E-CONFLICT", "virtio", "sev", "security: sev\nvideo: vga\n"),
        ("security: sev\nmachine: pc\ndisk: a.img\n", "W-SEV-MACHINE", "pc", "", "security: sev\nmachine: q35\ndisk: a.img\n"),
    ]);
}

#[test]
fn a_wish_about_a_device_goes_over_a_preset_without_it() {
    for (scenario, key, value) in [
        (
            "preset: desktop\ntpm: {type: passthrough}\n",
            "tpm.model",
            "tpm-crb",
        ),
        (
            "preset: desktop\nwatchdog: {action: dump}\n",
            "watchdog.model",
            "i6300esb",
        ),
        (
            "preset: soft-rt\nballoon: {autodeflate: on}\n",
            "balloon.model",
            "virtio",
        ),
        ("balloon: {autodeflate: on}\n", "balloon.model", "virtio"),
        ("rng: {source: /dev/hwrng}\n", "rng.source", "/dev/hwrng"),
    ] {
        let domain = describe_on(&host(), scenario).unwrap().domain;
        assert_eq!(domain.text(key), Some(value), "{scenario}");
    }
}

#[test]
fn where_sev_es_is_there_a_machine_cannot_be_reset() {
    let sev = SevFacts {
        cbitpos: 51,
        reduced_phys_bits: 1,
        es: true,
        snp: false,
    };
    let facts = HostFacts {
        sev: Some(sev),
        ..host()
    };
    let said = said_on(&facts, "security: sev\non_reboot: restart\n");
    assert_eq!(errors(&said), 1, "{said:?}");
    let domain = describe_on(&facts, "security: sev\n").unwrap().domain;
    assert_eq!(domain.number("security.policy"), Some(0x37));
    assert_eq!(domain.number("security.cbitpos"), Some(51));
}
