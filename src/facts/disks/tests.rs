use super::*;
use crate::facts::tests::Fake;

/// A host with most of what images can be on.
fn host(case: &str) -> Fake {
    let mounts = "\
22 1 8:2 / / rw - ext4 /dev/sda2 rw
23 22 0:30 / /tmp rw - tmpfs tmpfs rw
24 22 259:3 / /srv rw shared:1 master:2 - xfs /dev/nvme0n1p1 rw
25 22 253:0 / /crypt rw - ext4 /dev/mapper/crypt rw
26 22 0:40 /@images /pool rw - btrfs /dev/mapper/crypt rw
27 22 0:41 / /net rw - nfs4 server:/export rw
28 22 7:0 / /loop rw - ext4 /dev/loop0 rw
29 22 0:42 / /layers rw - overlay overlay rw,lowerdir=/a
30 22 9:0 / /raid rw - ext4 /dev/md0 rw
31 22 179:1 / /card rw - ext4 /dev/mmcblk0p1 rw
32 22 252:0 / /virtio\\040disk rw - ext4 /dev/vda rw
33 22 0:43 / /many rw - bcachefs /dev/sda3:/dev/sdb1 rw
34 22 8:99 / /odd rw - ext4 /dev/sdb1 rw
35 22 0:30 / /srv rw - tmpfs tmpfs rw
36 22 259:3 / /srv rw - xfs /dev/nvme0n1p1 rw
37 22 259:9 / /multi rw - xfs /dev/nvme1n1 rw
38 22 7:1 / /gone rw - ext4 /dev/loop1 rw
39 22 7:2 / /self rw - ext4 /dev/loop2 rw
";
    let mut files = vec![("proc/self/mountinfo", mounts)];
    for path in [
        "sys/devices/ata/block/sda/sda2/partition",
        "sys/devices/ata/block/sda/sda3/partition",
        "sys/devices/ata/block/sdb/sdb1/partition",
        "sys/devices/pci/block/nvme0n1/nvme0n1p1/partition",
        "sys/devices/pci/block/nvme1n1/queue/scheduler",
        "sys/devices/pci/block/nvme1c0n1/queue/scheduler",
        "sys/devices/pci/block/nvme1c1n1/queue/scheduler",
        "sys/devices/pci/block/nvme1c1n2/queue/scheduler",
        "sys/devices/mmc/block/mmcblk0/mmcblk0p1/partition",
        "sys/devices/virtual/block/md0/slaves/sdb1/partition",
        "sys/devices/virtual/block/md0/slaves/nvme0n1p1/partition",
        "sys/devices/virtual/block/dm-0/slaves/dm-1/x",
        "sys/devices/virtual/block/dm-1/slaves/sda3/partition",
        "sys/devices/virtio/block/vda/queue/scheduler",
        "sys/fs/btrfs/8ab2/devices/dm-0/x",
        "sys/fs/btrfs/8ab2/devices/vda/x",
        "sys/fs/btrfs/features/x",
        "dev/vg/x",
    ] {
        files.push((path, ""));
    }
    files.extend([
        ("sys/devices/virtual/block/dm-0/dm/name", "crypt\n"),
        ("sys/devices/virtual/block/dm-1/dm/name", "vg-vm\n"),
        (
            "sys/devices/virtual/block/loop0/loop/backing_file",
            "/srv/a file.img\n",
        ),
        (
            "sys/devices/virtual/block/loop1/loop/backing_file",
            "/x (deleted)\n",
        ),
        (
            "sys/devices/virtual/block/loop2/loop/backing_file",
            "/self/x\n",
        ),
    ]);
    let fake = Fake::new(&format!("disks-{case}"), &files);
    let link = |from: &str, to: &str| {
        let path = fake.0.join(from);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, path).unwrap();
    };
    for (number, place) in [
        ("8:2", "ata/block/sda/sda2"),
        ("259:3", "pci/block/nvme0n1/nvme0n1p1"),
        ("259:9", "pci/block/nvme1n1"),
        ("253:0", "virtual/block/dm-0"),
        ("7:0", "virtual/block/loop0"),
        ("7:1", "virtual/block/loop1"),
        ("7:2", "virtual/block/loop2"),
        ("9:0", "virtual/block/md0"),
        ("179:1", "mmc/block/mmcblk0/mmcblk0p1"),
        ("252:0", "virtio/block/vda"),
    ] {
        link(
            &format!("sys/dev/block/{number}"),
            &format!("../../devices/{place}"),
        );
    }
    for place in [
        "ata/block/sda",
        "ata/block/sdb",
        "pci/block/nvme0n1",
        "pci/block/nvme1n1",
        "pci/block/nvme1c0n1",
        "pci/block/nvme1c1n1",
        "pci/block/nvme1c1n2",
        "mmc/block/mmcblk0",
        "virtual/block/md0",
        "virtual/block/dm-0",
        "virtual/block/dm-1",
        "virtual/block/loop0",
        "virtual/block/loop1",
        "virtual/block/loop2",
        "virtio/block/vda",
    ] {
        let name = place.rsplit('/').next().unwrap();
        link(&format!("sys/block/{name}"), &format!("../devices/{place}"));
    }
    link("dev/vg/vm", "../dm-1");
    link("srv/elsewhere", "/card");
    fake
}

#[test]
fn every_stack_of_devices_ends_at_its_disks() {
    let fake = host("stacks");
    for (path, want) in [
        ("/var/lib/images/new.raw", &["sda"][..]),
        ("/srv/vm.img", &["nvme0n1"]),
        ("/srv", &["nvme0n1"]),
        ("/srvx/vm.img", &["sda"]),
        ("/crypt/vm.img", &["sda"]),
        ("/pool/vm.img", &["sda", "vda"]),
        ("/loop/vm.img", &["nvme0n1"]),
        ("/raid/vm.img", &["nvme0n1", "sdb"]),
        ("/card/vm.img", &["mmcblk0"]),
        ("/virtio disk/vm.img", &["vda"]),
        ("/many/vm.img", &["sda", "sdb"]),
        ("/odd/vm.img", &["sdb"]),
        ("/multi/vm.img", &["nvme1c0n1", "nvme1c1n1"]),
        ("/dev/vg/vm", &["sda"]),
        ("/dev/sdb1", &["sdb"]),
        ("/dev/mapper/crypt", &["sda"]),
    ] {
        let found = below(&Root(fake.0.clone()), Path::new(path));
        assert_eq!(
            found.as_deref(),
            Ok(want.map_strings().as_slice()),
            "{path}"
        );
    }
}

trait Strings {
    fn map_strings(&self) -> Vec<String>;
}

impl Strings for [&str] {
    fn map_strings(&self) -> Vec<String> {
        self.iter().map(|s| (*s).to_owned()).collect()
    }
}

#[test]
fn a_device_itself_is_found_too() {
    let fake = host("first");
    for (path, want) in [
        ("/var/lib/images/new.raw", Some("sda")),
        ("/crypt/vm.img", Some("dm-0")),
        ("/dev/vg/vm", Some("dm-1")),
        ("/dev/mapper/crypt", Some("dm-0")),
        ("/loop/vm.img", Some("loop0")),
        ("/tmp/vm.img", None),
    ] {
        let found = first(&Root(fake.0.clone()), Path::new(path));
        assert_eq!(found.as_deref(), want, "{path}");
    }
}

#[test]
fn what_is_on_no_disk_says_why() {
    let fake = host("none");
    for (path, want) in [
        (
            "/tmp/vm.img",
            "tmpfs (tmpfs), which is on no disk of this host",
        ),
        ("/net/vm.img", "nfs4 (server:/export), which is on no disk"),
        ("/layers/vm.img", "overlay (overlay), which is on no disk"),
        (
            "/gone/vm.img",
            "loop1 is a loop device, and its file was deleted",
        ),
        ("/self/vm.img", "loop2 is on itself"),
        ("/dev/sdz", "/dev/sdz is no device of /sys/block"),
    ] {
        let found = below(&Root(fake.0.clone()), Path::new(path)).unwrap_err();
        assert!(found.contains(want), "{path}: {found}");
    }
}

/// A tree that says nothing of mounts has a device for what the tree itself is on.
#[test]
fn a_tree_without_mounts_has_its_own_device() {
    let fake = Fake::new(
        "disks-own",
        &[("sys/devices/x/sdq/sdq1/partition", "1\n"), ("srv/x", "")],
    );
    let number = fs::metadata(&fake.0).unwrap().st_dev();
    let link = format!(
        "sys/dev/block/{}:{}",
        libc::major(number),
        libc::minor(number)
    );
    let link = fake.0.join(link);
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("../../devices/x/sdq/sdq1", link).unwrap();
    let found = below(&Root(fake.0.clone()), Path::new("/srv/vm.img"));
    assert_eq!(found, Ok(vec!["sdq".to_owned()]));
}

#[test]
fn names_are_in_the_order_of_their_numbers() {
    let fake = Fake::new(
        "disks-names",
        &[("node10", ""), ("node2", ""), ("has_cpu", "")],
    );
    assert_eq!(names(&fake.0), ["has_cpu", "node2", "node10"]);
    assert!(names(Path::new("/nonexistent")).is_empty());
}

#[test]
fn multipath_is_where_requests_are_queued() {
    let path = "sys/block/dm-3/queue/scheduler";
    let fake = |case: &str, scheduler: &str| {
        let mounts = "22 1 253:3 / / rw - ext4 /dev/mapper/mpatha rw\n";
        let files = [
            ("proc/self/mountinfo", mounts),
            (path, scheduler),
            ("sys/block/dm-3/dm/name", "mpatha\n"),
            ("sys/block/dm-3/slaves/sda/x", ""),
            ("sys/block/dm-3/slaves/sdb/x", ""),
            ("sys/block/sda/queue/scheduler", "[none] bfq\n"),
            ("sys/block/sdb/queue/scheduler", "[none] bfq\n"),
        ];
        let fake = Fake::new(case, &files);
        below(&Root(fake.0.clone()), Path::new("/x.img"))
    };
    let names = |list: &[&str]| Ok(list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
    assert_eq!(
        fake("mpath-requests", "[none] mq-deadline\n"),
        names(&["dm-3"])
    );
    assert_eq!(fake("mpath-bio", "none\n"), names(&["sda", "sdb"]));
}
