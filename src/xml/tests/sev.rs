//! Encrypted guests: documents as libvirt's knowledge base describes them, on both machines, and what follows from
//! the machine.

use super::*;

/// A tree without what import documents as left out, in an order that does not matter.
fn canonical(element: &Element, parent: &str) -> Element {
    let mut out = Element::new(&element.name);
    if element.children.is_empty() {
        out.text.clone_from(&element.text);
    }
    let silent = [
        ("model", "fallback", "allow"),
        ("model", "fallback", "forbid"),
        ("model", "primary", "yes"),
        ("memory", "unit", "KiB"),
    ];
    for a in &element.attributes {
        let drop = silent.contains(&(element.name.as_str(), a.name.as_str(), a.value.as_str()));
        if !drop {
            out.set(&a.name, a.value.as_str());
        }
    }
    out.attributes.sort_by(|a, b| a.name.cmp(&b.name));
    for child in &element.children {
        let placed = child.name == "address"
            || (child.name == "controller"
                && matches!(child.get("type"), Some("pci" | "sata" | "ide")));
        // An empty model of a host's processor says nothing; libvirt writes it anyway.
        let hollow = element.name == "cpu" && child.name == "model" && child.text.is_empty();
        if !placed && !hollow {
            out.push(canonical(child, &element.name));
        }
    }
    if parent != "pin" {
        out.children.sort_by_cached_key(Element::write);
    }
    out
}

#[track_caller]
fn comes_back(text: &str) -> Imported {
    let imported = import("d.xml", text).unwrap();
    let exported = export(&Domain(imported.scenario.clone()));
    assert!(exported.unsaid.is_empty(), "{:?}", exported.unsaid);
    let again = parse::parse(&exported.text).unwrap();
    let first = parse::parse(text).unwrap();
    assert_eq!(canonical(&first, "").write(), canonical(&again, "").write());
    imported
}

const COMMON: &str = "<name>sev</name>
  <uuid>d7a8b0a2-51f1-4c6b-b8f5-11a3c0f7d3c2</uuid>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>4194304</currentMemory>";

const TAIL: &str = "<features><acpi/><apic/><vmport state='off'/></features>
  <cpu mode='host-model' check='partial'><model fallback='allow'/></cpu>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/><timer name='pit' tickpolicy='delay'/><timer name='hpet' present='no'/></clock>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <pm><suspend-to-mem enabled='no'/><suspend-to-disk enabled='no'/></pm>";

fn q35() -> String {
    format!("<domain type='kvm'>
  {COMMON}
  <memtune><hard_limit unit='KiB'>4456448</hard_limit></memtune>
  <vcpu placement='static'>4</vcpu>
  <os><type arch='x86_64' machine='pc-q35-3.0'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>/var/lib/libvirt/qemu/nvram/sev_VARS.fd</nvram><boot dev='hd'/></os>
  {TAIL}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='/var/lib/libvirt/images/sev.qcow2'/><target dev='sda' bus='scsi'/><address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>
    <controller type='usb' index='0' model='qemu-xhci'/>
    <controller type='sata' index='0'><address type='pci' slot='0x1f' function='0x2'/></controller>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'><model name='pcie-root-port'/><target chassis='1' port='0x10'/></controller>
    <controller type='virtio-serial' index='0'><driver iommu='on'/></controller>
    <controller type='scsi' index='0' model='virtio-scsi'><driver iommu='on'/></controller>
    <interface type='network'><mac address='52:54:00:cc:56:90'/><source network='default'/><model type='virtio'/><driver iommu='on'/></interface>
    <console type='pty'><target type='virtio' port='0'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='spice' autoport='yes'/>
    <video><model type='qxl' ram='65536' vram='65536' vgamem='16384' heads='1' primary='yes'/></video>
    <memballoon model='virtio'><driver iommu='on'/></memballoon>
    <rng model='virtio'><driver iommu='on'/><backend model='random'>/dev/urandom</backend></rng>
  </devices>
  <launchSecurity type='sev'><cbitpos>47</cbitpos><reducedPhysBits>1</reducedPhysBits><policy>0x0003</policy></launchSecurity>
</domain>")
}

fn i440fx() -> String {
    format!("<domain type='kvm'>
  {COMMON}
  <memoryBacking><locked/></memoryBacking>
  <vcpu placement='static'>4</vcpu>
  <os><type arch='x86_64' machine='pc-i440fx-3.0'>hvm</type><loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>/var/lib/libvirt/qemu/nvram/sev_VARS.fd</nvram><boot dev='hd'/></os>
  {TAIL}
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='/var/lib/libvirt/images/sev.qcow2'/><target dev='sda' bus='scsi'/></disk>
    <controller type='usb' index='0' model='piix3-uhci'/>
    <controller type='pci' index='0' model='pci-root'/>
    <controller type='virtio-serial' index='0' model='virtio-non-transitional'><driver iommu='on'/></controller>
    <controller type='scsi' index='0' model='virtio-non-transitional'><driver iommu='on'/></controller>
    <interface type='network'><mac address='52:54:00:d8:96:c8'/><source network='default'/><model type='virtio-non-transitional'/><driver iommu='on'/></interface>
    <serial type='pty'><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <input type='tablet' bus='usb'/>
    <graphics type='spice' autoport='yes'/>
    <memballoon model='virtio-non-transitional'><driver iommu='on'/></memballoon>
    <rng model='virtio-non-transitional'><driver iommu='on'/><backend model='random'>/dev/urandom</backend></rng>
  </devices>
  <launchSecurity type='sev'><cbitpos>47</cbitpos><reducedPhysBits>1</reducedPhysBits><policy>0x0003</policy><dhCert>AAAA</dhCert><session>BBBB</session></launchSecurity>
</domain>")
}

#[test]
fn published_guests_come_back_the_same() {
    for text in [q35(), i440fx()] {
        let imported = comes_back(&text);
        assert_eq!(imported.notes.list.len(), 1, "{}", imported.notes);
        let s = &imported.scenario;
        assert_eq!(s["disks"][0]["iommu"], true);
        assert_eq!(s["security"]["policy"], 3);
        assert!(s.get("iommu").is_none(), "SEV means it already");
    }
    let s = import("d.xml", &q35()).unwrap().scenario;
    assert_eq!(
        get(&s, "memory.hard_limit"),
        Some(&json!(4456448u64 * 1024))
    );
    assert_eq!(
        get(
            &import("d.xml", &i440fx()).unwrap().scenario,
            "memory.locked"
        ),
        Some(&json!(true))
    );
}

#[test]
fn iommu_is_on_every_virtio_device_of_an_encrypted_guest() {
    let domain = Domain(json!({
        "machine": "q35", "security": {"type": "sev", "policy": 3}, "agent": true,
        "disks": [{"target": "vda", "bus": "virtio", "iommu": true}, {"target": "sda", "bus": "scsi", "iommu": true}, {"target": "sdb", "bus": "sata"}],
        "nets": [{"type": "user", "model": "virtio", "iommu": true}, {"type": "user", "model": "e1000"}],
        "rng": {"enabled": true, "iommu": true}, "balloon": {"model": "virtio", "iommu": true},
        "video": [{"model": "virtio", "iommu": true}], "vsock": {"cid": 3}, "shares": [{"source": "/a", "target": "a"}],
        "input": {"keyboard": "virtio", "mouse": "ps2"},
    }));
    let (root, _) = tree(&domain);
    let devices = root.child("devices").unwrap();
    let on = |e: &Element| e.child("driver").and_then(|d| d.get("iommu")) == Some("on");
    let with: Vec<_> = devices
        .children
        .iter()
        .filter(|e| on(e))
        .map(|e| e.name.as_str())
        .collect();
    let want = [
        "disk",
        "controller",
        "controller",
        "filesystem",
        "interface",
        "input",
        "video",
        "memballoon",
        "rng",
        "vsock",
    ];
    assert_eq!(with, want);
    assert_eq!(
        devices.children.iter().filter(|e| e.name == "disk").count(),
        3
    );
}

#[test]
fn the_decision_for_all_devices_comes_back_without_sev() {
    let domain = |iommu: &str| {
        json!({"iommu": iommu, "machine": "q35", "cpu": {"count": 1, "mode": "host-passthrough"},
            "features": {"acpi": true, "apic": true}, "events": {"on_reboot": "restart"}, "boot": {"devices": ["hd"]},
            "balloon": {"model": "virtio", "iommu": iommu == "on"}, "usb": {"model": "none"},
            "consoles": [{"tty": "null"}], "vsock": {"cid": 3}})
    };
    assert_eq!(back(&domain("on")), domain("on"));
    assert_eq!(back(&domain("off")), sayable(domain("off"), &["iommu"]));
    assert!(export(&Domain(domain("off"))).unsaid.is_empty());
}

#[test]
fn a_device_outside_of_the_iommu_says_so() {
    let text = "<domain><devices><controller type='virtio-serial'><driver iommu='on'/></controller><console type='null'><target type='virtio'/></console><interface type='user'><model type='virtio'/></interface><interface type='user'><model type='e1000'/></interface><disk type='file'><target dev='vda'/></disk></devices></domain>";
    let s = import("d.xml", text).unwrap().scenario;
    assert_eq!(s["iommu"], "on");
    assert_eq!(s["nets"][0]["iommu"], false);
    assert!(s["nets"][1].get("iommu").is_none());
    assert_eq!(s["disks"][0]["iommu"], false);
    assert_eq!(s["balloon"], json!({"model": "virtio", "iommu": false}));
}

#[test]
fn types_of_security_are_told_apart_by_type_and_policy() {
    let text = |security: Value| export(&Domain(json!({"security": security})));
    let es = text(json!({"type": "sev-es", "policy": 0x37}));
    assert!(
        es.text.contains("<launchSecurity type='sev'>")
            && es.text.contains("<policy>0x0037</policy>")
    );
    // Without the bit libvirt would start a plain SEV guest.
    for weak in [
        json!({"type": "sev-es", "policy": 0x33}),
        json!({"type": "sev-es"}),
    ] {
        let weak = text(weak);
        assert!(
            !weak.text.contains("launchSecurity") && weak.unsaid.contains(&"security.type".into())
        );
    }
    let snp = json!({"type": "sev-snp", "policy": 0x30000, "kernel_hashes": true, "author_key": true, "vcek": false,
        "id_block": "A", "id_auth": "B", "host_data": "C", "guest_visible_workarounds": "D", "dh_cert": "no"});
    let said = text(snp);
    assert!(
        said.text.contains(
            "<launchSecurity type='sev-snp' kernelHashes='yes' authorKey='yes' vcek='no'>"
        )
    );
    assert_eq!(said.unsaid, ["security.dh_cert"]);
    let came = import("d.xml", &said.text).unwrap().scenario;
    assert_eq!(came["security"]["host_data"], "C");
    assert_eq!(came["security"]["policy"], 0x30000);
    assert!(
        !text(json!({"type": "none"}))
            .text
            .contains("launchSecurity")
    );
    assert!(text(json!({"type": "none"})).unsaid.is_empty());
}

#[test]
fn models_of_a_conventional_machine_follow_from_sev_alone() {
    let doc = |security: &str, model: &str| {
        let text = format!(
            "<domain><os><type machine='pc-i440fx-7.2'>hvm</type></os><devices><rng model='{model}'><backend model='random'/></rng></devices>{security}</domain>"
        );
        import("d.xml", &text).unwrap().notes.list.len()
    };
    let sev = "<launchSecurity type='sev'><policy>0x1</policy></launchSecurity>";
    assert_eq!(doc(sev, "virtio-non-transitional"), 0);
    assert_eq!(doc(sev, "virtio"), 1);
    assert_eq!(doc("", "virtio"), 0);
    assert_eq!(doc("", "virtio-non-transitional"), 1);
}
