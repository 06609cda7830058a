//! Names that another program finds where nobody looked: QEMU reads these images in its own way.

use std::fs;
use std::process::Command;

use super::common::{run, text};
use super::{accepted, lab, qemu_img, refused};

/// The first sector of a VMDK image in one file (Virtual Disk Format 5.0, `SparseExtentHeader`).
fn vmdk_head(capacity: u64, descriptor: (u64, u64), directory: u64) -> Vec<u8> {
    let mut head = b"KDMV\x01\0\0\0\x03\0\0\0".to_vec();
    for number in [capacity, 128, descriptor.0, descriptor.1] {
        head.extend(number.to_le_bytes());
    }
    head.extend(512u32.to_le_bytes());
    for number in [0, directory, 128] {
        head.extend(number.to_le_bytes());
    }
    head.resize(512, 0);
    head
}

/// Each of these QEMU 7.2 opens, and reads the other file.
#[test]
fn a_vmdk_image_hides_no_name_from_whoever_looks() {
    let Some(dir) = lab("rules-vmdk") else { return };
    let vmdk = "disks: [{path: top.vmdk, format: vmdk}]\n";
    let victim = dir.write("victim", [b'!'; 4096]).display().to_string();
    let reads_it = || {
        let mut command = Command::new("qemu-io");
        command.args(["-f", "vmdk", "-r", "-c", "read -P 0x21 0 4096"]);
        let output = run(command.arg(dir.path("top.vmdk")));
        text(&output.stdout).contains("read 4096/4096") && !text(&output.stdout).contains("failed")
    };
    let pieces = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n";
    let piece = format!("RW 8 FLAT \"{victim}\" 0\n");

    // A disk of no size is what its descriptor says.
    let mut image = [vmdk_head(0, (1, 20), 0), pieces.as_bytes().to_vec()].concat();
    image.extend(piece.as_bytes());
    image.resize(64 << 10, 0);
    dir.write("top.vmdk", &image);
    assert!(reads_it());
    refused(&dir, vmdk, "E-DISK-HEADER", &["its size cannot be"]);
    // Pieces behind a long comment; behind a longer one, nobody looks.
    for (comment, code, says) in [
        (70_000, "E-BACKING", "as one of them"),
        (1 << 20, "E-DISK-HEADER", "names no piece"),
    ] {
        let text = format!("{pieces}{}\n{piece}", "#".repeat(comment));
        dir.write("top.vmdk", text);
        assert_eq!(reads_it(), comment < 1 << 20);
        refused(&dir, vmdk, code, &[says]);
    }
    // The parent is named in another spelling, or where no descriptor is said to be.
    qemu_img(&dir, "create -q -f vmdk base.vmdk 1M");
    qemu_img(&dir, "create -q -f vmdk -b base.vmdk -F vmdk good.vmdk");
    let good = fs::read(dir.path("good.vmdk")).unwrap();
    let key = b"parentFileNameHint=\"";
    let at = good.windows(key.len()).position(|w| w == key).unwrap() + key.len();
    let mut spelled = good.clone();
    spelled[at - 1] = b'\'';
    let mut hidden = good.clone();
    hidden[28..44].fill(0);
    for image in [&good, &spelled, &hidden] {
        dir.write("top.vmdk", image);
        let mut info = Command::new("qemu-img");
        let output = run(info.args(["info", "-f", "vmdk"]).arg(dir.path("top.vmdk")));
        assert!(text(&output.stdout).contains("backing file: base.vmdk"));
        refused(&dir, vmdk, "E-BACKING", &["takes content from `base.vmdk`"]);
    }
    let mut elsewhere = good;
    elsewhere[28] = 2;
    dir.write("top.vmdk", &elsewhere);
    refused(
        &dir,
        vmdk,
        "E-DISK-HEADER",
        &["the place of its descriptor"],
    );
    // The header at the end counts where the first one says so.
    qemu_img(&dir, "create -q -f raw plain.img 1M");
    qemu_img(
        &dir,
        "convert -f raw -O vmdk -o subformat=streamOptimized plain.img top.vmdk",
    );
    accepted(&dir, vmdk);
    let mut image = fs::read(dir.path("top.vmdk")).unwrap();
    let footer = image.len() - 1024;
    if image[56..64] == [0xff; 8] {
        assert_eq!(image[footer..footer + 4], *b"KDMV");
    } else {
        image[56..64].fill(0xff);
        image.extend(vec![0; 512]);
        image.extend(vmdk_head(1 << 40, (1, 20), 21));
        image.extend(vec![0; 512]);
    }
    let footer = image.len() - 1024;
    image[footer + 12..footer + 20].copy_from_slice(&(8u64 << 31).to_le_bytes());
    dir.write("top.vmdk", &image);
    refused(&dir, vmdk, "E-SIZE", &["8796093022208 bytes"]);
}

/// Extensions that go on where we cease to read would be read by QEMU, where the last one of a kind counts.
#[test]
fn a_qcow2_header_hides_no_extension_from_whoever_looks() {
    let Some(dir) = lab("rules-extension") else {
        return;
    };
    qemu_img(
        &dir,
        "create -q -f qcow2 -o cluster_size=2M,data_file=mine.raw,data_file_raw=on top.qcow2 1M",
    );
    dir.write("other.raw", vec![b'!'; 1 << 20]);
    let disk = format!(
        "disks: [{{path: top.qcow2, format: qcow2, data_file: {}}}]\n",
        dir.path("mine.raw").display()
    );
    accepted(&dir, &disk);
    let mut image = fs::read(dir.path("top.qcow2")).unwrap();
    let word = |image: &[u8], at: usize| u32::from_be_bytes(*image[at..].first_chunk().unwrap());
    let mut at = word(&image, 100) as usize;
    while word(&image, at) != 0 {
        at += 8 + (word(&image, at + 4) as usize).next_multiple_of(8);
    }
    let length = (64 << 10) - at - 8;
    image[at..at + 4].copy_from_slice(&0x1234_5678u32.to_be_bytes());
    image[at + 4..at + 8].copy_from_slice(&(length as u32).to_be_bytes());
    let second = [&b"DATA\0\0\0\x09"[..], b"other.raw\0\0\0\0\0\0\0"].concat();
    image[64 << 10..(64 << 10) + second.len()].copy_from_slice(&second);
    dir.write("top.qcow2", &image);
    let mut info = Command::new("qemu-img");
    let output = run(info
        .args(["info", "-f", "qcow2"])
        .arg(dir.path("top.qcow2")));
    let said = text(&output.stdout);
    assert!(said.contains("data file: other.raw"), "{said}");
    refused(
        &dir,
        &disk,
        "E-DISK-HEADER",
        &["the extensions of its header"],
    );
}
