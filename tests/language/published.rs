//! What is written down: the presets, two machines of libvirt, what runs and what is exported.

use super::*;

#[test]
fn presets_disagree_aloud() {
    let messages = describe("preset: [securevm, desktop]\n", &[]).unwrap_err();
    let conflicts: Vec<_> = messages
        .list
        .iter()
        .filter(|d| d.code == "E-PRESET-CONFLICT")
        .collect();
    assert!(conflicts.len() > 10);
    let told = messages.to_string();
    assert!(
        told.contains("The presets disagree on `host.ksm`"),
        "{told}"
    );
    assert!(
        told.contains("preset desktop:") && told.contains("preset securevm:"),
        "{told}"
    );
    // What the scenario decides is no conflict.
    let decided = describe("preset: [securevm, desktop]\nhost: {ksm: false}\n", &[]).unwrap_err();
    assert!(!decided.to_string().contains("`host.ksm`"));
}

#[test]
fn what_was_changed_is_told_beside_what_was_recommended() {
    let text = "preset: computation\nname: x\n\n\n\ndisk:\n  cache: none\nvcpu: 6\n";
    let d = describe(text, &strings(&["host.swappiness=10"])).unwrap();
    let rows: Vec<String> = d
        .differences()
        .into_iter()
        .map(|r| {
            format!(
                "{} {} {} ({})",
                r.key,
                r.recommended.unwrap_or_default(),
                r.current,
                r.origin
            )
        })
        .collect();
    assert!(
        rows.contains(&"disk.cache unsafe none (/lab/lab.yaml:7)".to_owned()),
        "{rows:?}"
    );
    assert!(
        rows.contains(&"host.swappiness 0 10 (-o host.swappiness=10)".to_owned()),
        "{rows:?}"
    );
    assert!(
        !rows.iter().any(|r| r.starts_with("cpu")),
        "the same as recommended: {rows:?}"
    );
}

/// A kernel on two disks with a serial port, as both say it.
#[test]
fn the_machine_that_runs_and_its_xml_agree() {
    let text = "name: both\ncpu: {count: 4, topology: {sockets: 1, cores: 2, threads: 2}}\nmemory: 512M\nkernel: {path: vmlinuz, initrd: initrd.img, cmdline: quiet}\n\
                disks: [{path: a.img, cache: none}, {path: b.img, id: data, read_only: true, block_size: 4096, discard: ignore}]\n\
                serials: [stdio, \"unix:/run/x.sock\", \"file:/tmp/out\"]\nrng: true\nconsole: {log: c.log}\nevents: {on_reboot: restart}\niothreads: 2\n";
    let d = describe(text, &[]).unwrap_or_else(|e| panic!("{e}"));
    let (resources, _) = d.monitor.as_ref().unwrap_or_else(|e| panic!("{e}"));
    let xml = xml::export(&d.domain).text;
    let has = |what: String| assert!(xml.contains(&what), "{what} is not in\n{xml}");
    has(format!("<name>{}</name>", resources.name));
    has(format!(
        "<memory unit='KiB'>{}</memory>",
        resources.memory >> 10
    ));
    has(format!(">{}</vcpu>", resources.cpus.count));
    let t = resources.cpus.topology;
    has(format!(
        "<topology sockets='{}' cores='{}' threads='{}'/>",
        t.sockets, t.cores, t.threads
    ));
    has(format!("<iothreads>{}</iothreads>", resources.iothreads));
    let vsc_vmm::resources::Payload::Kernel(kernel) = &resources.payload else {
        panic!("no kernel")
    };
    has(format!("<kernel>{}</kernel>", kernel.path.display()));
    has("<initrd>/lab/initrd.img</initrd>".to_owned());
    let ours = ["pci=conf1,noearly"];
    let line: Vec<&str> = kernel
        .cmdline
        .split(' ')
        .filter(|w| !ours.contains(w))
        .collect();
    has(format!("<cmdline>{}</cmdline>", line.join(" ")));
    for disk in &resources.disks {
        let block = xml
            .split("<disk ")
            .find(|b| b.contains(&format!("<source file='{}'", disk.path.display())))
            .unwrap();
        let cache = serde_json::to_value(disk.cache).unwrap();
        assert!(
            block.contains(&format!("cache='{}'", cache.as_str().unwrap())),
            "{block}"
        );
        assert!(block.contains("type='raw'"));
        assert_eq!(block.contains("<readonly/>"), disk.read_only, "{block}");
        assert_eq!(
            block.contains("logical_block_size='4096'"),
            disk.logical_block_size == 4096,
            "{block}"
        );
    }
    assert_eq!(
        xml.matches("<serial type=").count(),
        resources.serials.len()
    );
    assert!(
        xml.contains("<source mode='bind' path='/run/x.sock'/>")
            && xml.contains("<source path='/tmp/out'/>"),
        "{xml}"
    );
    assert_eq!(xml.contains("<rng "), resources.rng.is_some());
    has("<on_reboot>restart</on_reboot>".to_owned());
    let mac = |n: usize| format!("<boot order='{n}'/>");
    assert!(!xml.contains(&mac(1)), "nobody asked for an order");
}

#[test]
fn goldens_of_the_presets() {
    for preset in presets::PRESETS {
        let d = describe(&format!("preset: {}\nname: {0}\n", preset.name), &[])
            .unwrap_or_else(|e| panic!("{e}"));
        let mut text = xml::export(&d.domain).text;
        text += "<!-- host\n";
        for change in &d.host.changes {
            text += &format!(
                "{} {} -> {}\n",
                change.path.display(),
                change.old.as_deref().unwrap_or("?"),
                change.new
            );
        }
        for image in &d.images {
            text += &format!("{:?}\n", image.spec);
        }
        text += "-->\n";
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden/presets")
            .join(format!("{}.xml", preset.name));
        if std::env::var_os("VSC_BLESS").is_some() {
            std::fs::write(&file, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(text, golden, "{} (VSC_BLESS=1 rewrites)", file.display());
    }
}

/// The two machines of libvirt's page on launch security, from the scenarios in tests/examples/libvirt.
#[test]
fn the_published_sev_machines() {
    for (file, model, mac) in [
        ("sev-q35.yaml", "", "52:54:00:cc:56:90"),
        ("sev-i440fx.yaml", "-non-transitional", "52:54:00:d8:96:c8"),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/examples/libvirt")
            .join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let d = describe(&text, &[]).unwrap_or_else(|e| panic!("{e}"));
        let xml = xml::export(&d.domain).text;
        let scsi = if model.is_empty() {
            "virtio-scsi"
        } else {
            "virtio-non-transitional"
        };
        let serial = if model.is_empty() {
            String::new()
        } else {
            " model='virtio-non-transitional'".into()
        };
        for wanted in [
            "<memory unit='KiB'>4194304</memory>".to_owned(),
            "<locked/>".into(),
            "<loader readonly='yes' type='pflash'>/usr/share/edk2/ovmf/OVMF_CODE.fd</loader>"
                .into(),
            format!(
                "<controller type='scsi' index='0' model='{scsi}'>\n      <driver iommu='on'/>"
            ),
            format!(
                "<controller type='virtio-serial' index='0'{serial}>\n      <driver iommu='on'/>"
            ),
            format!("<mac address='{mac}'/>"),
            format!("<model type='virtio{model}'/>\n      <driver iommu='on'/>"),
            format!("<memballoon model='virtio{model}'>\n      <driver iommu='on'/>"),
            format!("<rng model='virtio{model}'>"),
            "<target dev='sda' bus='scsi'/>".into(),
            "<launchSecurity type='sev'>".into(),
            "<cbitpos>47</cbitpos>".into(),
            "<reducedPhysBits>1</reducedPhysBits>".into(),
            "<policy>0x0003</policy>".into(),
        ] {
            assert!(xml.contains(&wanted), "{file}: {wanted}\n{xml}");
        }
        let codes: Vec<_> = d.warnings.list.iter().map(|d| d.code).collect();
        assert_eq!(
            codes.contains(&"W-SEV-MACHINE"),
            !model.is_empty(),
            "{codes:?}"
        );
        // A variable store is not measured; the published machines have one.
        assert!(codes.contains(&"W-SEV-NVRAM"), "{codes:?}");
        let again = describe(
            &vsc::scenario::write(&xml::import(file, &xml).unwrap().scenario),
            &[],
        )
        .unwrap();
        assert_eq!(xml::export(&again.domain).text, xml, "{file}");
    }
}
