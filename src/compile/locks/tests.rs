use super::super::super::scenario::{Input, parse};
use super::*;
use crate::compile::{Plan, compile as whole};
use crate::facts::{FileInfo, HostFacts};

fn facts() -> HostFacts {
    let mut facts = HostFacts::default();
    let info = |kind| {
        Ok(FileInfo {
            kind,
            length: 1 << 20,
            writable: true,
        })
    };
    for (path, kind) in [
        ("/lab/a.img", FileKind::Regular),
        ("/lab/link.img", FileKind::Regular),
        ("/dev/sdb", FileKind::BlockDevice),
        ("/dev/vg/lab", FileKind::BlockDevice),
        ("/locks", FileKind::Directory),
        ("/lvm", FileKind::Directory),
        ("/scsi", FileKind::Directory),
    ] {
        facts.files.insert(path.into(), info(kind));
    }
    facts.devices.insert("/dev/sdb".into(), "sdb".into());
    facts.devices.insert("/dev/vg/lab".into(), "dm-0".into());
    for (path, text) in [
        ("/sys/block/sdb/device/wwid", "naa.600508b400105e21"),
        (
            "/sys/block/dm-0/dm/uuid",
            "LVM-YxWPMqjVMVzWtoWUyQGc3cHmkkP0wMb606UgP52rhbw3Bo3mdRWeoLpytOSAa2ky",
        ),
    ] {
        facts.texts.insert(path.into(), text.into());
    }
    for (link, to) in [
        ("/lab/link.img", "/lab/a.img"),
        (
            "/dev/disk/by-path/pci-0000:00:05.0-scsi-0:0:1:0",
            "/dev/sdb",
        ),
        ("/dev/disk/by-path/other", "/dev/sdc"),
    ] {
        facts.links.insert(link.into(), to.into());
    }
    facts
}

fn plan_with(text: &str, facts: &HostFacts) -> Result<Plan, crate::diag::Diagnostics> {
    let parsed = parse(&Input {
        file: Some((Path::new("/lab/lab.yaml"), text.as_bytes())),
        settings: None,
        layers: Vec::new(),
        home: None,
    });
    whole(parsed, facts)
}

fn plan(text: &str) -> Result<Plan, crate::diag::Diagnostics> {
    plan_with(text, &facts())
}

fn codes(plan: &Plan) -> Vec<&'static str> {
    plan.warnings.list.iter().map(|d| d.code).collect()
}

#[test]
fn images_are_locked_unless_somebody_says_otherwise() {
    let p = plan("disks: [a.img, {path: link.img, read_only: true}]\n").unwrap();
    let told: Vec<_> = p
        .run
        .locks
        .disks
        .iter()
        .map(|d| (d.access.as_str(), d.bytes.as_str()))
        .collect();
    assert_eq!(told, [("rw", "99-101, 201"), ("ro", "99-100, 201")]);
    assert!(
        p.resources
            .disks
            .iter()
            .all(|d| d.lock == Lock::Exclusive && !d.lockspace)
    );
    let p = plan("disks: [{path: a.img, shareable: true}]\n").unwrap();
    assert_eq!(p.resources.disks[0].lock, Lock::Shared);
    assert_eq!(p.run.locks.disks[0].bytes, "99-101");
    let p = plan("disks: [a.img]\nlocking: none\n").unwrap();
    assert_eq!(p.resources.disks[0].lock, Lock::Off);
    assert_eq!(
        (codes(&p), p.run.locks.disks[0].bytes.as_str()),
        (vec!["W-LOCK-NONE"], "")
    );
    assert_eq!(codes(&plan("locking: none\n").unwrap()), [""; 0]);
}

#[test]
fn lockd_takes_the_image_or_a_lockspace() {
    let besides = |text: &str, disk: &str| {
        let p =
            plan(&format!("disks: [{disk}]\nlocking: {text}\n")).unwrap_or_else(|e| panic!("{e}"));
        let disk = &p.run.locks.disks[0];
        let files = disk
            .besides
            .iter()
            .map(|place| place.file(&disk.image).display().to_string());
        (files.collect::<Vec<_>>(), p.resources.disks[0].lockspace)
    };
    assert_eq!(
        besides("lockd", "a.img"),
        (vec!["/lab/a.img".to_owned()], false)
    );
    let read = plan(
        "disks: [{path: a.img, read_only: true}]
locking: lockd
",
    )
    .unwrap();
    let read = &read.run.locks.disks[0];
    assert_eq!(
        (&read.besides[..], read.alone),
        (&[Place::Image][..], false)
    );
    let all = "{driver: lockd, file_lockspace_dir: /locks, lvm_lockspace_dir: /lvm, scsi_lockspace_dir: /scsi}";
    let key = |path: &str| format!("/locks/{}", keys::file_key(Path::new(path)));
    assert_eq!(besides(all, "./a.img"), (vec![key("/lab/a.img")], true));
    assert_eq!(
        besides(all, "link.img").0,
        [key("/lab/link.img"), key("/lab/a.img")]
    );
    assert_eq!(
        besides(all, "/dev/vg/lab").0,
        ["/lvm/06UgP5-2rhb-w3Bo-3mdR-WeoL-pytO-SAa2ky"]
    );
    assert_eq!(besides(all, "/dev/sdb").0, ["/scsi/3600508b400105e21"]);
    let files = "{driver: lockd, file_lockspace_dir: /locks}";
    assert_eq!(besides(files, "/dev/sdb").0, [key("/dev/sdb")]);
    let shared = plan(&format!(
        "disks: [{{path: a.img, shareable: true}}]\nlocking: {files}\n"
    ))
    .unwrap();
    assert!(!shared.run.locks.disks[0].alone);
}

#[test]
fn what_cannot_be_is_said() {
    let refused = |text: &str, facts: &HostFacts| {
        let messages = plan_with(&format!("disks: [a.img]\nlocking: {text}\n"), facts)
            .err()
            .unwrap();
        let d = messages
            .list
            .iter()
            .find(|d| d.severity == crate::diag::Severity::Error)
            .unwrap()
            .clone();
        (d.code, d.message, d.help.unwrap_or_default())
    };
    let (code, message, _) = refused("{driver: lockd, file_lockspace_dir: /none}", &facts());
    assert_eq!(
        (code, message.as_str()),
        ("E-LOCKSPACE", "There is no lockspace directory /none")
    );
    let (code, message, help) = refused("{driver: sanlock, host_id: 1}", &facts());
    assert_eq!(code, "E-SANLOCK");
    assert!(message.contains("/run/sanlock/sanlock.sock") && help.contains("locks setup sanlock"));
    let mut there = facts();
    there
        .texts
        .insert("/run/sanlock/sanlock.sock".into(), String::new());
    let (code, message, _) = refused("sanlock", &there);
    assert_eq!(code, "E-SANLOCK");
    assert!(message.contains("host_id` is missing"), "{message}");
    let (code, message, _) = refused("{driver: sanlock, host_id: 1}", &there);
    assert_eq!(code, "E-LOCKSPACE");
    assert!(message.contains(LEASES), "{message}");
    for id in ["0", "2001"] {
        let (code, message, _) = refused(&format!("{{driver: sanlock, host_id: {id}}}"), &facts());
        assert_eq!(code, "E-RANGE");
        assert!(message.contains("from 1 to 2000"), "{message}");
    }
    let p = plan("disks: [a.img]\nlocking: {file_lockspace_dir: /locks, host_id: 1}\n").unwrap();
    assert_eq!(codes(&p), ["W-UNUSED", "W-UNUSED"]);
}

#[test]
fn writable_images_have_leases_by_the_md5_of_their_paths() {
    let mut there = facts();
    there
        .texts
        .insert("/run/sanlock/sanlock.sock".into(), String::new());
    let text = "disks: [a.img, {path: link.img, shareable: true}, {path: /dev/vg/lab, read_only: true}]\n\
                locking: {driver: sanlock, host_id: 7, disk_lease_dir: /locks, io_timeout: 3}\n";
    let p = plan_with(text, &there).unwrap();
    let lease = |path: &str| Place::Lease {
        directory: "/locks".into(),
        name: keys::lease_name(Path::new(path)),
    };
    let disks = &p.run.locks.disks;
    assert_eq!(disks[0].besides, [lease("/lab/a.img")]);
    assert!(disks[0].alone && !disks[1].alone);
    assert_eq!(
        disks[1].besides,
        [lease("/lab/link.img"), lease("/lab/a.img")]
    );
    assert_eq!(disks[2].besides, []);
    let at = p.run.locks.sanlock.as_ref().unwrap();
    assert_eq!((at.host_id, at.io_timeout), (7, 3));
    assert_eq!(at.lockspace(), Path::new("/locks/__LIBVIRT__DISKS__"));
    // Leases are not files that go with the run.
    assert!(p.run.locks.directories().is_empty() && p.run.locks.files().is_empty());
    // Without writable disks, no daemon is needed.
    let none = plan("locking: {driver: sanlock}\n").unwrap();
    assert_eq!(none.run.locks.sanlock, None);
}

#[test]
fn names_that_change_are_warned_of() {
    let p = plan("disks: [/dev/sdb]\n").unwrap();
    let d = &p.warnings.list[0];
    assert_eq!(d.code, "W-DISK-NAME");
    assert_eq!(
        d.help.as_deref(),
        Some("Write /dev/disk/by-path/pci-0000:00:05.0-scsi-0:0:1:0")
    );
    assert_eq!(
        codes(&plan("disks: [/dev/vg/lab, a.img]\n").unwrap()),
        [""; 0]
    );
    let mut other = facts();
    for (name, good) in [
        ("sda1", false),
        ("vdb", false),
        ("nvme0n1p2", false),
        ("dm-3", false),
        ("sdcard", false),
        ("sd-x", true),
        ("shm/x.img", true),
        ("vdisk/a", true),
    ] {
        let path = format!("/dev/{name}");
        let block = other.files[Path::new("/dev/sdb")].clone();
        other.files.insert(path.as_str().into(), block);
        let p = plan_with(&format!("disks: [{path}]\n"), &other).unwrap();
        assert_eq!(codes(&p).is_empty(), good, "{name}");
    }
}
