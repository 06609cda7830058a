#![allow(clippy::unwrap_used)]

use super::matching::{matches, nearest};
use super::{normalize, soft_dependencies};
use crate::initrd::modinfo::ModInfo;

#[test]
fn names_are_the_kernels() {
    for name in [
        "virtio-rng.ko",
        "virtio_rng",
        "virtio-rng.ko.xz",
        "virtio_rng.ko.zst",
        "virtio-rng.ko.gz",
    ] {
        assert_eq!(normalize(name), "virtio_rng");
    }
}

#[test]
fn patterns_fit_as_fnmatch_does() {
    assert!(matches("virtio:d00000001v*", "virtio:d00000001v00001af4"));
    assert!(matches("*a*b", "xaxxb"));
    assert!(matches("a[0-3]?", "a2x"));
    assert!(matches("**", ""));
    assert!(!matches("a[0-3]?", "a4x"));
    assert!(!matches("a*b", "axxc"));
    assert!(!matches("abc", "ab"));
    assert!(!matches("a[0", "a0"));
}

#[test]
fn misspelt_names_find_their_neighbours() {
    let names: Vec<String> = ["virtio_net", "virtio_blk", "i6300esb", "veth"]
        .map(String::from)
        .into();
    assert_eq!(nearest("virtio_nett", names.iter()), ["virtio_net"]);
    assert_eq!(nearest("6300esb", names.iter()), ["i6300esb"]);
    assert_eq!(nearest("quite_another", names.iter()), [""; 0]);
}

#[test]
fn soft_dependencies_have_two_sides() {
    let info = ModInfo {
        soft: vec!["pre: a b post: c".into(), "post: d".into()],
        ..ModInfo::default()
    };
    let list = |names: &[&str]| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        soft_dependencies(&info),
        (list(&["a", "b"]), list(&["c", "d"]))
    );
}
