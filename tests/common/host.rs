//! A host made of files, for `--host-root`.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]

use crate::common::TempDir;

/// A descriptor of firmware that knows SEV, as QEMU's docs/interop/firmware.json has it.
const FIRMWARE: &str = r#"{
    "description": "UEFI", "interface-types": ["uefi"],
    "mapping": {
        "device": "flash",
        "executable": {"filename": "/usr/share/OVMF/CODE.fd", "format": "raw"},
        "nvram-template": {"filename": "/usr/share/OVMF/VARS.fd", "format": "raw"}
    },
    "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
    "features": ["acpi-s3", "amd-sev", "amd-sev-es", "verbose-dynamic"], "tags": []
}"#;

/// A host with the knobs that presets turn, below `root` in `dir`.
pub fn fake_host(dir: &TempDir) {
    use std::os::linux::fs::MetadataExt;
    for (file, text) in [
        (
            "sys/kernel/mm/transparent_hugepage/enabled",
            "always [madvise] never\n",
        ),
        (
            "sys/kernel/mm/transparent_hugepage/shmem_enabled",
            "always within_size advise [never] deny force\n",
        ),
        ("sys/kernel/mm/ksm/run", "0\n"),
        ("sys/kernel/mm/ksm/merge_across_nodes", "1\n"),
        ("proc/sys/vm/swappiness", "60\n"),
        (
            "proc/meminfo",
            "MemTotal: 16777216 kB\nMemAvailable: 12582912 kB\n",
        ),
        ("sys/devices/system/cpu/online", "0-7\n"),
        ("sys/devices/system/cpu/isolated", "6-7\n"),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "0\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "0\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
            "0\n",
        ),
        (
            "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
            "0\n",
        ),
        (
            "sys/block/vda/queue/scheduler",
            "[none] mq-deadline kyber\n",
        ),
        ("usr/share/OVMF/CODE.fd", "firmware"),
        ("usr/share/OVMF/VARS.fd", "variables"),
        ("usr/share/qemu/firmware/60-ovmf.json", FIRMWARE),
        ("usr/bin/qemu-system-x86_64", "never executed"),
    ] {
        let path = dir.path("root").join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    // Whatever this directory is on, it is the disk vda there.
    let number = std::fs::metadata(dir.path("root")).unwrap().st_dev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let devices = dir.path("root/sys/dev/block");
    std::fs::create_dir_all(&devices).unwrap();
    let link = devices.join(format!("{major}:{minor}"));
    std::os::unix::fs::symlink("../../block/vda", link).unwrap();
}
