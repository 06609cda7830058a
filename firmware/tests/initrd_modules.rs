//! Kernel modules: made-up trees for every rule, and Debian's real ones against kmod where they are at hand
//! (`$VSC_TEST_KERNEL_PACKAGE`: a directory where a linux-image package was unpacked with `dpkg -x`).
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use vsc_firmware::initrd::modules::{ModuleTree, Selection};
use vsc_firmware::initrd::{ImageError, TinyImage, kernel};

const VERSION: &str = "6.1.0-1-test";

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vsc-modules-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("boot")).unwrap();
        fs::create_dir_all(path.join("lib/modules").join(VERSION).join("kernel")).unwrap();
        Self(path)
    }

    fn modules(&self) -> PathBuf {
        self.0.join("lib/modules").join(VERSION)
    }

    fn module(&self, file: &str, info: &[&str]) {
        let path = self.modules().join("kernel").join(file);
        fs::write(path, compress(file, module(info))).unwrap();
    }

    fn tree(&self) -> ModuleTree {
        ModuleTree::open(&self.modules(), VERSION).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An ELF file with a `.modinfo` section: header, names, section, three section headers.
fn module(info: &[&str]) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut text = Vec::new();
    for line in info
        .iter()
        .map(|line| (*line).to_owned())
        .chain([format!("vermagic={VERSION} SMP mod_unload ")])
    {
        text.extend(line.as_bytes());
        text.push(0);
    }
    let headers = 64 + names.len() + text.len();
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(64, 0);
    file[18] = 62;
    file[40..48].copy_from_slice(&(headers as u64).to_le_bytes());
    file[58..64].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
    file.extend(names);
    file.extend(&text);
    for (name, offset, size) in [
        (0_u32, 0, 0),
        (1, 64 + names.len(), text.len()),
        (10, 64, names.len()),
    ] {
        let mut header = [0_u8; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[24..32].copy_from_slice(&(offset as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(size as u64).to_le_bytes());
        file.extend(header);
    }
    file
}

/// As the file's name says, by the tools that a distribution uses.
fn compress(file: &str, bytes: Vec<u8>) -> Vec<u8> {
    let (program, arguments): (&str, &[&str]) = match file.rsplit('.').next() {
        Some("xz") => ("xz", &["--check=crc32", "-c"]),
        Some("gz") => ("gzip", &["-c"]),
        Some("zst") => ("zstd", &["-q", "-c"]),
        _ => return bytes,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    child.wait_with_output().unwrap().stdout
}

fn names(selection: &Selection) -> Vec<&str> {
    selection
        .modules
        .iter()
        .map(|module| module.name.as_str())
        .collect()
}

#[test]
fn dependencies_come_first_whatever_the_compression_and_spelling() {
    let place = Place::new("order");
    place.module(
        "virtio_net.ko.xz",
        &["depends=net-failover,virtio", "alias=virtio:d00000001v*"],
    );
    place.module("net-failover.ko.zst", &["depends=failover"]);
    place.module("failover.ko.gz", &["depends="]);
    place.module("virtio.ko", &["depends=virtio_ring"]);
    place.module("virtio_ring.ko", &["depends="]);
    let expected = [
        "failover",
        "net_failover",
        "virtio_ring",
        "virtio",
        "virtio_net",
    ];
    for name in ["virtio_net", "virtio-net", "virtio:d00000001v00001af4"] {
        let selection = place.tree().select([name]).unwrap();
        assert_eq!(names(&selection), expected, "{name}");
        assert!(
            selection
                .modules
                .iter()
                .all(|module| module.data.starts_with(b"\x7fELF"))
        );
    }
    // modules.dep knows better, where there is one: the last is inserted first.
    let list = "kernel/virtio_net.ko.xz: kernel/net-failover.ko.zst kernel/failover.ko.gz kernel/virtio.ko \
                kernel/virtio_ring.ko\nkernel/net-failover.ko.zst: kernel/failover.ko.gz\nkernel/failover.ko.gz:\n\
                kernel/virtio.ko: kernel/virtio_ring.ko\nkernel/virtio_ring.ko:\n";
    fs::write(place.modules().join("modules.dep"), list).unwrap();
    fs::write(
        place.modules().join("modules.alias"),
        "alias virtio:d00000001v* virtio_net\n",
    )
    .unwrap();
    let expected = [
        "virtio_ring",
        "virtio",
        "failover",
        "net_failover",
        "virtio_net",
    ];
    for name in ["virtio_net", "virtio:d00000001v00001af4"] {
        assert_eq!(
            names(&place.tree().select([name]).unwrap()),
            expected,
            "{name}"
        );
    }
}

#[test]
fn built_in_soft_and_unknown_are_said() {
    let place = Place::new("kinds");
    place.module(
        "ext4.ko",
        &["depends=jbd2", "softdep=pre: crc32c post: absent_thing"],
    );
    place.module("jbd2.ko", &["depends="]);
    place.module("crc32c-intel.ko", &["depends=", "alias=crc32c"]);
    fs::write(
        place.modules().join("modules.builtin"),
        "kernel/fs/9p/9p.ko\n",
    )
    .unwrap();
    fs::write(
        place.modules().join("modules.builtin.modinfo"),
        b"9p.alias=fs-9p\0",
    )
    .unwrap();
    let selection = place.tree().select(["ext4", "9p", "fs-9p"]).unwrap();
    assert_eq!(names(&selection), ["crc32c_intel", "jbd2", "ext4"]);
    assert_eq!(selection.builtin, ["9p", "fs-9p"]);
    assert_eq!(
        selection.notes,
        [
            "Soft dependency crc32c of ext4: crc32c_intel",
            "Soft dependency absent_thing of ext4: not in this kernel"
        ]
    );
    let error = place.tree().select(["ext5"]).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("Kernel {VERSION} has no module ext5; the nearest: ext4")
    );
}

#[test]
fn loops_and_other_kernels_are_refused() {
    let place = Place::new("loops");
    place.module("a.ko", &["depends=b"]);
    place.module("b.ko", &["depends=a"]);
    assert!(matches!(
        place.tree().select(["a"]),
        Err(ImageError::ModuleLoop { .. })
    ));
    place.module("broken.ko", &[]);
    let path = place.modules().join("kernel/broken.ko");
    fs::write(&path, b"not an ELF file").unwrap();
    assert!(matches!(
        place.tree().select(["broken"]),
        Err(ImageError::BrokenModule { .. })
    ));
    fs::write(place.modules().join("kernel/packed.ko.xz"), b"not xz").unwrap();
    assert!(matches!(
        place.tree().select(["packed"]),
        Err(ImageError::BrokenModule { .. })
    ));

    // A directory named for one kernel, modules of another.
    let other = place.0.join("lib/modules/6.9.9");
    fs::rename(place.modules(), &other).unwrap();
    let tree = ModuleTree::open(&other, "6.9.9").unwrap();
    let error = tree.select(["b"]).unwrap_err().to_string();
    assert!(
        error.ends_with("is for kernel 6.1.0-1-test, not for 6.9.9"),
        "{error}"
    );
    let kernel = place.0.join("boot/vmlinuz");
    let error = ModuleTree::for_kernel(&kernel, VERSION)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("lib/modules/6.9.9 is for kernel 6.9.9, not for 6.1.0-1-test"),
        "{error}"
    );
}

#[test]
fn kernels_tell_their_versions_and_are_sorted_by_them() {
    let place = Place::new("kernels");
    let boot = place.0.join("boot");
    assert!(matches!(
        kernel::newest(&boot),
        Err(ImageError::NoKernel { .. })
    ));
    for version in ["6.1.0-9", "6.1.0-10", "5.19.0"] {
        let mut image = vec![0_u8; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
        let text = format!("{version} (someone@somewhere) #1 SMP\0");
        image[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
        fs::write(boot.join(format!("vmlinuz-{version}")), image).unwrap();
    }
    let newest = kernel::newest(&boot).unwrap();
    assert_eq!(newest, boot.join("vmlinuz-6.1.0-10"));
    assert_eq!(kernel::version(&newest).unwrap(), "6.1.0-10");
    fs::write(boot.join("vmlinux"), b"\x7fELF....Linux version 6.2.3 (x)").unwrap();
    assert_eq!(kernel::version(&boot.join("vmlinux")).unwrap(), "6.2.3");
    assert!(matches!(
        kernel::version(Path::new("/etc/passwd")),
        Err(ImageError::NotAKernel { .. })
    ));
}

/// Debian's kernel, if one was unpacked, and what kmod says of the same directory after depmod.
#[test]
fn debians_modules_are_ordered_as_modprobe_orders_them() {
    let Some(package) = common::package() else {
        return;
    };
    if !common::have(&["depmod", "modprobe"]) {
        return;
    }
    let kernel = kernel::newest(&package.join("boot")).unwrap();
    let version = kernel::version(&kernel).unwrap();
    let tree = ModuleTree::for_kernel(&kernel, &version).unwrap();
    // depmod writes, so it works on a copy of the list of files by links.
    let place = Place::new("debian");
    let copy = place.0.join("copy");
    let target = copy.join("lib/modules").join(&version);
    fs::create_dir_all(&target).unwrap();
    for entry in fs::read_dir(tree.directory()).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), target.join(entry.file_name())).unwrap();
    }
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let base = copy.to_str().unwrap();
    run("depmod", &["-b", base, &version]);
    let with_list = ModuleTree::open(&target, &version).unwrap();
    let mut compared = 0;
    for name in [
        "virtio_net",
        "virtio_blk",
        "virtio-rng",
        "i6300esb",
        "ext4",
        "overlay",
        "kvm_amd",
        "btrfs",
        "fuse",
    ] {
        // Not in every flavour of the package.
        if !tree.contains(name) {
            continue;
        }
        compared += 1;
        let shown = run(
            "modprobe",
            &["-d", base, "-S", &version, "--show-depends", name],
        );
        let file = |line: &str| {
            let path = line.strip_prefix("insmod ")?.trim();
            Some(vsc_firmware::initrd::modules::normalize(
                path.rsplit('/').next().unwrap().split(' ').next().unwrap(),
            ))
        };
        let expected: Vec<String> = shown.lines().filter_map(file).collect();
        let selection = with_list.select([name]).unwrap();
        let mut ours = names(&selection);
        assert_eq!(
            ours.last().copied(),
            expected.last().map(String::as_str),
            "{name}"
        );
        // Without depmod's list, the order may differ among modules that do not need each other; the set may not.
        let without = tree.select([name]).unwrap();
        let mut same = names(&without);
        same.sort_unstable();
        ours.sort_unstable();
        assert_eq!(same, ours, "{name}");
        for module in &expected {
            assert!(ours.contains(&module.as_str()), "{name}: no {module}");
        }
        // modprobe heeds only one of a module's declarations of soft dependencies, we all.
        for module in ours
            .iter()
            .filter(|module| !expected.iter().any(|name| name == *module))
        {
            assert!(
                selection.notes.iter().any(|note| note.contains(module)),
                "{name}: {module} is too much"
            );
        }
    }
    assert!(compared > 5);
    let image = TinyImage {
        modules: vec!["virtio_net".into(), "btrfs".into()],
        kernel: Some(kernel),
        search: "/usr/bin:/bin".into(),
        ..TinyImage::default()
    };
    let built = image.build().unwrap();
    assert_eq!(built.kernel_version.as_deref(), Some(version.as_str()));
    assert!(
        built
            .report
            .iter()
            .any(|line| line.starts_with("Copy mod ") && line.contains("/btrfs.ko"))
    );
}
