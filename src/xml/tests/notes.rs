//! What import says about documents that others wrote.

use super::*;

fn read(body: &str) -> Imported {
    import("d.xml", &format!("<domain type='kvm'>\n{body}\n</domain>")).unwrap()
}

#[track_caller]
fn messages(body: &str) -> Vec<String> {
    read(body)
        .notes
        .list
        .iter()
        .map(|d| d.message.clone())
        .collect()
}

#[test]
fn a_note_stands_on_the_part_that_has_no_equivalent() {
    let imported = read(
        "<memory dumpCore='off' unit='GiB'>2</memory>\n<numatune>\n  <memory mode='strict'/>\n</numatune>",
    );
    let shown = imported.notes.render(false);
    let want = "warning[W-XML]: `dumpCore='off'` of <memory> has no equivalent in a scenario\n --> d.xml:2:9\n  |\n2 | <memory dumpCore='off' unit='GiB'>2</memory>\n  |         ^^^^^^^^^^^^^^\nwarning[W-XML]: <numatune> has no equivalent in a scenario\n --> d.xml:3:1\n  |\n3 | <numatune>\n  | ^^^^^^^^^^\n";
    assert_eq!(shown, want);
    assert_eq!(
        get(&imported.scenario, "memory.size"),
        Some(&json!(2u64 << 30))
    );
}

#[test]
fn values_that_the_language_does_not_have_are_noted_and_left_out() {
    let imported = read(
        "<on_crash>explode</on_crash><cpu mode='magic'/><devices>\n<disk type='file' device='lun'><driver name='qemu' cache='banana'/><target dev='vda' bus='virtio'/></disk>\n<interface type='hostdev'/><disk type='network' device='disk'/></devices>",
    );
    let said: Vec<_> = imported
        .notes
        .list
        .iter()
        .map(|d| d.message.as_str())
        .collect();
    assert_eq!(
        said,
        [
            "<on_crash> has no equivalent in a scenario",
            "`mode='magic'` of <cpu> has no equivalent in a scenario",
            "`device='lun'` of <disk> has no equivalent in a scenario",
            "`cache='banana'` of <driver> has no equivalent in a scenario",
            "<interface type='hostdev'> has no equivalent in a scenario",
            "<disk type='network' device='disk'> has no equivalent in a scenario",
        ]
    );
    let disks = json!([{"type": "file", "target": "vda", "bus": "virtio"}]);
    assert_eq!(imported.scenario["disks"], disks);
}

#[test]
fn everything_unknown_is_noted_once() {
    let devices = "<hostdev mode='subsystem'><source><address/></source></hostdev>\n<redirdev bus='usb' type='spicevmc'/>\n<tpm model='tpm-tis'><backend type='emulator' version='2.0'><encryption secret='x'/></backend></tpm>\n<rng model='virtio'><backend model='egd' type='udp'/></rng>\n<panic model='isa'/>";
    let said = messages(&format!(
        "<devices>{devices}</devices>\n<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-s'/></qemu:commandline>"
    ));
    let shapes = [
        "<hostdev mode='subsystem'>",
        "<redirdev bus='usb' type='spicevmc'>",
        "<encryption secret='x'>",
        "<rng model='virtio'>",
        "<panic model='isa'>",
        "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>",
    ];
    assert_eq!(
        said,
        shapes.map(|s| format!("{s} has no equivalent in a scenario"))
    );
}

#[test]
fn what_libvirt_assigns_is_one_note_and_what_it_repeats_is_none() {
    let imported = read(
        "<vcpu placement='static'>2</vcpu><resource><partition>/machine</partition></resource><os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os><features><acpi/></features>
<cpu mode='custom' match='exact' check='none'><model fallback='forbid'>qemu64</model><topology sockets='1' dies='1' cores='2' threads='1'/></cpu>
<devices>
<controller type='pci' index='0' model='pcie-root'><alias name='pcie.0'/></controller>
<controller type='pci' index='1' model='pcie-root-port'><model name='pcie-root-port'/><target chassis='1' port='0x10'/><address type='pci'/></controller>
<controller type='sata' index='0'><address type='pci'/></controller>
<controller type='virtio-serial' index='0'><alias name='virtio-serial0'/><address type='pci'/></controller>
<interface type='network'><mac address='52:54:00:00:00:01'/><source network='default' portid='x' bridge='virbr0'/><target dev='vnet3'/><model type='virtio'/><alias name='net0'/><address type='pci' slot='0x03'/></interface>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a' index='1'/><backingStore/><target dev='vda' bus='virtio'/><address type='pci'/></disk>
<serial type='pty'><source path='/dev/pts/3'/><target type='isa-serial' port='0'><model name='isa-serial'/></target><alias name='serial0'/></serial>
<console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/><target type='serial' port='0'/><alias name='serial0'/></console>
<channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-1-a/org.qemu.guest_agent.0'/><target type='virtio' name='org.qemu.guest_agent.0' state='disconnected'/><address type='virtio-serial' controller='0' bus='0' port='1'/></channel>
<input type='keyboard' bus='virtio'/><input type='mouse' bus='ps2'/><input type='keyboard' bus='ps2'/>
<graphics type='vnc' port='5900' autoport='yes' listen='127.0.0.1'><listen type='address' address='127.0.0.1'/></graphics>
<audio id='1' type='none'/><memballoon model='virtio'><alias name='balloon0'/></memballoon>
<vsock model='virtio'><cid auto='yes' address='3'/></vsock>
</devices><seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+64055</label></seclabel>",
    );
    let said: Vec<_> = imported
        .notes
        .list
        .iter()
        .map(|d| d.message.as_str())
        .collect();
    assert_eq!(
        said,
        ["9 addresses and controllers were left out: each side places its own devices"]
    );
    let s = &imported.scenario;
    assert_eq!(s["serials"], json!([{"to": "stdio"}]));
    assert_eq!(s["agent"], true);
    assert_eq!(s["input"], json!({"keyboard": "virtio"}));
    assert_eq!(
        s["graphics"],
        json!([{"type": "vnc", "listen": "127.0.0.1"}])
    );
    assert_eq!(s["vsock"], json!({"auto": true}));
    assert_eq!(
        s["nets"],
        json!([{"type": "network", "source": "default", "model": "virtio", "mac": "52:54:00:00:00:01"}])
    );
    assert_eq!(s["firmware"], json!({"type": "bios"}));
}

#[test]
fn a_machine_of_another_architecture_has_its_own_serial_port() {
    let imported = read(
        "<os><type arch='aarch64' machine='virt'>hvm</type></os><features><acpi/></features><devices><serial type='null'><target type='system-serial' port='0'><model name='pl011'/></target></serial><console type='null'><target type='serial' port='0'/></console></devices>",
    );
    assert!(imported.notes.list.is_empty(), "{}", imported.notes);
    assert_eq!(imported.scenario["serials"], json!([{"to": "null"}]));
    assert_eq!(imported.scenario["features"], json!({"acpi": true}));
}

#[test]
fn controllers_that_say_more_than_a_place_are_noted() {
    let said = messages(
        "<devices><controller type='pci' index='1' model='pcie-root-port'><target chassis='1' hotplug='off'/></controller><controller type='scsi' index='0' model='lsilogic'/><controller type='virtio-serial' index='0' ports='4'/><controller type='usb' index='1' model='piix3-uhci'/></devices>",
    );
    assert_eq!(said.len(), 4, "{said:?}");
    assert!(said[0].contains("pcie-root-port") && said[1].contains("lsilogic"));
    assert!(said[2].contains("ports='4'") && said[3].contains("piix3-uhci"));
}

#[test]
fn options_of_a_scsi_controller_are_those_of_its_disks() {
    let imported = read(
        "<devices><disk type='file' device='disk'><target dev='sda' bus='scsi'/></disk><disk type='file' device='disk'><target dev='sdb'/><address type='drive' controller='1'/></disk><controller type='scsi' index='0' model='virtio-scsi'><driver iothread='1' iommu='on'/></controller><controller type='scsi' index='1' model='virtio-scsi'><driver queues='2'/></controller></devices>",
    );
    let disks = json!([
        {"type": "file", "device": "disk", "target": "sda", "bus": "scsi", "iothread": 1, "iommu": true},
        {"type": "file", "device": "disk", "target": "sdb", "bus": "scsi", "queues": 2},
    ]);
    assert_eq!(imported.scenario["disks"], disks);
    // Two controllers cannot be said by one: the second disk keeps its own option unsaid.
    let unsaid = export(&Domain(json!({"disks": [
        {"target": "sda", "bus": "scsi", "iothread": 1}, {"target": "sdb", "bus": "scsi", "iothread": 2}
    ]}))).unsaid;
    assert_eq!(unsaid, ["disks[1].iothread"]);
}

#[test]
fn memory_is_read_in_all_spellings_of_libvirt() {
    let cases: [(&str, u64); 17] = [
        ("", 1024),
        (" unit=''", 1024),
        (" unit='b'", 1),
        (" unit='bytes'", 1),
        (" unit='KB'", 1000),
        (" unit='k'", 1024),
        (" unit='KiB'", 1024),
        (" unit='kib'", 1024),
        (" unit='MB'", 1_000_000),
        (" unit='M'", 1 << 20),
        (" unit='MiB'", 1 << 20),
        (" unit='GB'", 1_000_000_000),
        (" unit='G'", 1 << 30),
        (" unit='Gib'", 1 << 30),
        (" unit='TiB'", 1 << 40),
        (" unit='tb'", 1_000_000_000_000),
        (" unit='PiB'", 1 << 50),
    ];
    for (unit, factor) in cases {
        let imported = read(&format!("<memory{unit}> 3 </memory>"));
        assert_eq!(
            get(&imported.scenario, "memory.size"),
            Some(&json!(3 * factor)),
            "{unit}"
        );
        assert!(imported.notes.list.is_empty());
    }
    for wrong in [
        " unit='furlong'>3",
        " unit='Kx'>3",
        " unit='EiB'>99",
        ">-3",
        ">3.5",
        ">",
        " unit='é'>3",
    ] {
        assert_eq!(
            messages(&format!("<memory{wrong}</memory>")).len(),
            1,
            "{wrong}"
        );
    }
    let odd = export(&Domain(json!({"memory": {"size": 1000}}))).text;
    assert!(odd.contains("<memory unit='b'>1000</memory>"), "{odd}");
}

#[test]
fn a_policy_is_hexadecimal_with_or_without_its_mark() {
    for (text, value) in [
        ("0x0003", 3),
        ("3", 3),
        ("10", 16),
        ("0X37", 0x37),
        (" 0x30000 ", 0x30000),
    ] {
        let imported = read(&format!(
            "<launchSecurity type='sev'><policy>{text}</policy></launchSecurity>"
        ));
        assert_eq!(
            get(&imported.scenario, "security.policy"),
            Some(&json!(value)),
            "{text}"
        );
    }
    let said = messages(
        "<launchSecurity type='sev'><policy>none</policy></launchSecurity><launchSecurity type='s390-pv'/>",
    );
    assert_eq!(said.len(), 2, "{said:?}");
}

#[test]
fn huge_pages_of_no_size_and_of_an_odd_one_are_not_guessed_in_silence() {
    let imported = read("<memoryBacking><hugepages/></memoryBacking>");
    assert_eq!(
        get(&imported.scenario, "memory.hugepages"),
        Some(&json!("2M"))
    );
    assert!(imported.notes.list[0].message.contains("2M is assumed"));
    let said = messages(
        "<memoryBacking><hugepages><page size='64' unit='KiB'/></hugepages></memoryBacking>",
    );
    assert_eq!(said.len(), 1, "{said:?}");
    let said = messages(
        "<memoryBacking><hugepages><page size='1' unit='G' nodeset='0'/></hugepages></memoryBacking>",
    );
    assert_eq!(
        said,
        ["`nodeset='0'` of <page> has no equivalent in a scenario"]
    );
}

#[test]
fn endpoints_without_an_equivalent_are_null_and_said() {
    let imported = read(
        "<devices><serial type='tcp'><source mode='bind' host='::1' service='2'/><protocol type='raw'/><target port='0'/></serial><serial type='pty'><target port='1'/></serial><console type='pty'><target type='virtio' port='0'/></console><channel type='unix'><source mode='connect' path='/a'/><target type='virtio' name='x'/></channel></devices>",
    );
    assert_eq!(
        imported.scenario["serials"],
        json!([{"to": "null"}, {"to": "stdio"}])
    );
    assert_eq!(
        imported.scenario["consoles"],
        json!([{"tty": "null"}, {"out": "null", "name": "x"}])
    );
    let said: Vec<_> = imported
        .notes
        .list
        .iter()
        .map(|d| d.message.as_str())
        .collect();
    assert_eq!(said.len(), 3, "{said:?}");
    assert!(
        said[0].contains("type `tcp`")
            && said[1].contains("second terminal")
            && said[2].contains("type `unix`")
    );
}

#[test]
fn a_password_is_in_no_message() {
    let imported = read(
        "<devices><graphics type='vnc' passwd='hunter2é' foo='1'/></devices><x passwd = \"hunter2\"/>",
    );
    let shown = imported.notes.render(false);
    assert!(
        !shown.contains("hunter2") && shown.contains("foo='1'") && shown.contains("`passwd`"),
        "{shown}"
    );
    assert!(
        !serde_json::to_string(&imported.notes.records())
            .unwrap()
            .contains("hunter2")
    );
    let broken = import("d.xml", "<domain passwd='hunter2'><")
        .unwrap_err()
        .render(false);
    assert!(!broken.contains("hunter2"), "{broken}");
}

#[test]
fn namespaces_count_and_prefixes_do_not() {
    let imported = read(
        "<metadata xmlns:o='http://libosinfo.org/xmlns/libvirt/domain/1.0'><o:libosinfo><o:os id='http://debian.org/debian/12'/></o:libosinfo><v xmlns='urn:other'/><vsc xmlns='urn:vsc:metadata'><entry name='a'>b</entry></vsc></metadata>",
    );
    assert_eq!(
        imported.scenario["metadata"],
        json!({"os": "http://debian.org/debian/12", "a": "b"})
    );
    assert_eq!(imported.notes.list.len(), 1, "{}", imported.notes);
}

#[test]
fn absence_that_changes_the_guest_is_said_aloud() {
    let bare = read("<os><type arch='x86_64'>hvm</type></os>").scenario;
    let want = json!({
        "type": "kvm", "arch": "x86_64", "machine": "pc", "firmware": {"type": "bios"},
        "cpu": {"count": 1, "mode": "custom", "model": "qemu64", "check": "none"},
        "features": {"acpi": false, "apic": false}, "boot": {"devices": ["hd"]},
        "events": {"on_reboot": "restart"}, "console": {"implicit": false},
        "balloon": {"model": "virtio"}, "usb": {"model": "piix3-uhci"},
    });
    assert_eq!(bare, want);
    let kernel = read("<os><type arch='x86_64'>hvm</type><kernel>/k</kernel></os>").scenario;
    assert!(kernel.get("firmware").is_none() && kernel.get("boot").is_none());
    let devices = "<devices><interface type='user'/><filesystem><source dir='/a'/><target dir='b'/></filesystem><tpm><backend type='emulator'/></tpm><rng model='virtio'><backend model='random'/></rng><memballoon model='none'/><controller type='usb' model='none'/></devices>";
    let s = read(&format!(
        "<os><type arch='x86_64' machine='q35'>hvm</type></os>{devices}"
    ))
    .scenario;
    assert_eq!(s["nets"], json!([{"type": "user", "model": "rtl8139"}]));
    assert_eq!(s["shares"][0]["accessmode"], "passthrough");
    assert_eq!(
        s["tpm"],
        json!({"type": "emulator", "model": "tpm-tis", "version": "1.2"})
    );
    assert_eq!(s["rng"]["source"], "/dev/random");
    assert_eq!(s["balloon"], json!({"model": "none"}));
    assert_eq!(s["usb"], json!({"model": "none"}));
    let q35 = read("<os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>").scenario;
    assert_eq!(q35["usb"], json!({"model": "qemu-xhci"}));
    let arm = read("<os><type arch='aarch64' machine='virt'>hvm</type></os>").scenario;
    assert!(arm["features"].get("apic").is_none() && arm["cpu"].get("model").is_none());
}

#[test]
fn a_protection_that_cannot_be_said_is_no_scenario() {
    for kind in [" type='tdx'", " type='s390-pv'", ""] {
        let text = format!("<domain><name>a</name><launchSecurity{kind}/></domain>");
        let messages = import("a.xml", &text).unwrap_err();
        assert_eq!(messages.list[0].code, "E-XML", "{kind}");
        assert!(messages.to_string().contains("a.xml:1:23"), "{messages}");
    }
}
