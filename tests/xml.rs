//! What is exported, before libvirt's own schemas: every key at once, encrypted guests, networks, storage pools.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::{TempDir, skip};
use serde_json::{Value, json};
use vsc::domain::Domain;
use vsc::xml::network::{self, NetworkSpec};
use vsc::xml::pool::{self, PoolSpec};
use vsc::xml::{export, import};

/// Every document must pass `virt-xml-validate DOCUMENT KIND`.
fn validate(name: &str, kind: &str, documents: &[String]) {
    let has = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if !has("virt-xml-validate") || !has("xmllint") {
        return skip("virt-xml-validate (libvirt-clients) and xmllint (libxml2-utils)");
    }
    let dir = TempDir::new(name);
    for (index, document) in documents.iter().enumerate() {
        let file = dir.write(&format!("{index}.xml"), document);
        let run = Command::new("virt-xml-validate")
            .arg(&file)
            .arg(kind)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{document}\n{said}");
    }
}

fn full() -> Value {
    serde_json::from_str(include_str!("../src/xml/tests/full.json")).unwrap()
}

/// The full domain with one of its keys said otherwise, or not at all.
fn variants() -> Vec<Value> {
    let mut out = vec![full()];
    for key in full().as_object().unwrap().keys() {
        // A domain of libvirt has these.
        if !["name", "type", "memory", "os"].contains(&key.as_str()) {
            let mut one = full();
            one.as_object_mut().unwrap().remove(key);
            out.push(one);
        }
    }
    let others = [
        (
            "firmware",
            json!({"type": "efi", "features": ["secure-boot", "amd-sev"], "secure": true}),
        ),
        (
            "firmware",
            json!({"type": "efi", "device": "rom", "path": "/usr/share/OVMF/OVMF.amdsev.fd", "stateless": true}),
        ),
        (
            "firmware",
            json!({"type": "efi", "path": "/c.fd", "device": "flash", "nvram_template": "/v.fd"}),
        ),
        ("firmware", json!({"type": "bios"})),
        ("security", json!({"type": "sev", "policy": 3})),
        (
            "memory",
            json!({"size": 1_000_000_001, "hugepages": "1G", "locked": false}),
        ),
        (
            "tpm",
            json!({"model": "tpm-tis", "type": "emulator", "version": "2.0"}),
        ),
        ("vsock", json!({"auto": true})),
        (
            "graphics",
            json!([{"type": "spice"}, {"type": "vnc", "socket": "/s"}]),
        ),
        ("video", json!([{"model": "none"}])),
        ("balloon", json!({"model": "none"})),
        ("usb", json!({"model": "none"})),
        ("rng", json!({"enabled": true})),
        ("clock", json!({"offset": "utc"})),
        (
            "cpu",
            json!({"count": 1, "mode": "host-passthrough", "cache": "passthrough", "migratable": true, "scheduler": "batch"}),
        ),
        ("metadata", json!({"a\"b'<&>": "c\"d'<&>"})),
        ("boot", json!({"menu": false})),
    ];
    for (key, value) in others {
        let mut one = full();
        one[key] = value;
        out.push(one);
    }
    let mut ordered = full();
    ordered["disks"][0]["boot"] = json!(1);
    ordered["nets"][0]["boot"] = json!(2);
    let unsaid = export(&Domain(ordered.clone())).unsaid;
    assert!(
        unsaid.contains(&"boot.devices[0]".to_owned()),
        "one order at a time: {unsaid:?}"
    );
    out.push(ordered);
    out
}

#[test]
fn every_key_at_once_and_each_left_out_is_valid() {
    let mut documents: Vec<String> = Vec::new();
    for domain in variants() {
        let text = export(&Domain(domain)).text;
        // And what comes back says it again.
        let again = import("d.xml", &text).unwrap_or_else(|e| panic!("{e}"));
        let second = export(&Domain(again.scenario)).text;
        let third = import("d.xml", &second).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(export(&Domain(third.scenario)).text, second);
        documents.push(text);
        documents.push(second);
    }
    validate("xml-domain", "domain", &documents);
}

#[test]
fn networks_are_valid() {
    let words = [
        "name=preset bridge=virbr7 address=192.168.77.1/24 dhcp=192.168.77.2-192.168.77.254 forward=nat",
        "name=a'b&c<d",
        "name=small address=10.0.0.1/30",
        "name=large address=10.0.0.1/8",
        "name=alone forward=isolated dhcp=none domain=vm.example.org",
        "name=routed forward=route address=172.16.3.254/22",
    ];
    let export = |words: &&str| {
        let words: Vec<&str> = words.split(' ').collect();
        let spec = NetworkSpec::parse(&words).unwrap_or_else(|e| panic!("{words:?}: {e}"));
        network::export(&spec).unwrap()
    };
    let documents: Vec<String> = words.iter().map(export).collect();
    validate("xml-network", "network", &documents);
}

#[test]
fn storage_pools_are_valid() {
    let words = [
        "name=d path=/var/lib/a&b'c",
        "type=fs name=f device=/dev/sdb1 path=/mnt/f format=xfs",
        "type=fs name=f device=/dev/sdb1 path=/mnt/f",
        "type=netfs name=n host=nas.example.org dir=/export path=/mnt/n format=nfs",
        "type=netfs name=n host=192.0.2.1 dir=/export path=/mnt/n",
        "type=logical name=l group=vg0 devices=/dev/sdb,/dev/sdc",
        "type=logical name=l group=vg0",
        "type=iscsi name=i host=192.0.2.7 iqn=iqn.2026-11.org.example:target",
        "type=iscsi name=i host=san.example.org port=3261 iqn=iqn.2026-11.org.example:t initiator=iqn.2026-11.org.example:me",
    ];
    let export = |words: &&str| {
        let words: Vec<&str> = words.split(' ').collect();
        let spec = PoolSpec::parse(&words).unwrap_or_else(|e| panic!("{words:?}: {e}"));
        pool::export(&spec).unwrap()
    };
    let documents: Vec<String> = words.iter().map(export).collect();
    validate("xml-pool", "storagepool", &documents);
}
