//! `storage`: what holds for every disk that does not say otherwise, put into each disk with the place it comes from.

#![forbid(unsafe_code)]

use super::keys::{self, KEYS, Key};
use super::tree::{Body, Entry, Leaf};
use crate::diag::Span;

/// What of `storage` is for any disk.
const ALWAYS: [&str; 6] = ["format", "bus", "cache", "io", "discard", "transient"];
/// What of `storage` is for disks whose image this program makes.
const MADE: [&str; 7] = [
    "size",
    "preallocation",
    "cluster_size",
    "lazy_refcounts",
    "compression_type",
    "encryption",
    "secret_file",
];

/// Completes the disks of a tree. A scenario that starts from a preset with `storage` has a disk to boot from, unless
/// it names disks or a kernel.
pub(super) fn apply(tree: &mut Entry, has_preset: bool, is_advice: &dyn Fn(Span) -> bool) {
    disks_of_storage(tree, has_preset, is_advice);
    cdrom(tree);
}

/// `cdrom: FILE` is one more disk.
fn cdrom(tree: &mut Entry) {
    let Body::Map(entries) = &mut tree.body else {
        return;
    };
    let Some(at) = entries.iter().position(|e| e.key.name == "cdrom") else {
        return;
    };
    let drive = entries.remove(at);
    let Some(list) = keys::find(KEYS, "disks") else {
        return;
    };
    let members = keys::below(&list.kind).unwrap_or_default();
    let (Some(device), Some(path)) = (keys::find(members, "device"), keys::find(members, "path"))
    else {
        return;
    };
    let word = Entry {
        key: device,
        body: Body::Leaf(Leaf::Word("cdrom")),
        ..drive.clone()
    };
    let image = Entry {
        key: path,
        ..drive.clone()
    };
    let member = Entry {
        key: list,
        body: Body::Map(vec![word, image]),
        ..drive
    };
    match entries.iter_mut().find(|e| e.key.name == "disks") {
        Some(Entry {
            body: Body::List(disks),
            ..
        }) => disks.push(member),
        Some(_) => {}
        None => entries.push(Entry {
            body: Body::List(vec![member.clone()]),
            ..member
        }),
    }
}

fn disks_of_storage(tree: &mut Entry, has_preset: bool, is_advice: &dyn Fn(Span) -> bool) {
    let Some(storage) = tree.get("storage").cloned() else {
        return;
    };
    let Some(key) = keys::find(KEYS, "disks") else {
        return;
    };
    let named_kernel = tree.get("kernel").is_some_and(|k| k.get("path").is_some());
    let Body::Map(entries) = &mut tree.body else {
        return;
    };
    if has_preset && !named_kernel && !entries.iter().any(|e| e.key.name == "disks") {
        let member = Entry {
            key,
            key_span: storage.key_span,
            span: storage.span,
            body: Body::Map(Vec::new()),
        };
        entries.push(Entry {
            body: Body::List(vec![member.clone()]),
            ..member
        });
    }
    for entry in entries.iter_mut().filter(|e| e.key.name == "disks") {
        let Body::List(members) = &mut entry.body else {
            continue;
        };
        for (index, member) in members.iter_mut().enumerate() {
            complete(member, index, &storage, is_advice);
        }
    }
}

fn complete(member: &mut Entry, index: usize, storage: &Entry, is_advice: &dyn Fn(Span) -> bool) {
    let other = |word: &str| word != "disk";
    let device = member.get("device").map(|d| &d.body);
    if matches!(device, Some(Body::Leaf(Leaf::Word(word))) if other(word)) {
        return;
    }
    let made = member.get("path").is_none() || member.get("size").is_some();
    let more: &[&str] = if made { &MADE } else { &[] };
    let first: &[&str] = if index == 0 { &["target"] } else { &[] };
    let members: &'static [Key] = keys::below(&member.key.kind).unwrap_or_default();
    for name in ALWAYS.iter().chain(more).chain(first) {
        let (Some(value), Some(key)) = (storage.get(name), keys::find(members, name)) else {
            continue;
        };
        // What an image is that exists already is for its owner to say.
        if *name == "format" && !made && is_advice(value.span) {
            continue;
        }
        if member.get(name).is_none()
            && let Body::Map(entries) = &mut member.body
        {
            entries.push(Entry {
                key,
                ..value.clone()
            });
        }
    }
}
