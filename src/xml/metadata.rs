//! `metadata:`: the operating system in libosinfo's namespace, everything else in ours.

#![forbid(unsafe_code)]

use serde_json::{Map, Value};

use super::element::{Element, legal};
use super::table::{put, slot, take_text};

/// libosinfo's namespace for the operating system of a domain.
const OSINFO: &str = "http://libosinfo.org/xmlns/libvirt/domain/1.0";
/// Ours, for every other entry of `metadata:`.
const OURS: &str = "urn:vsc:metadata";

pub(super) fn write_metadata(rest: &mut Value, root: &mut Element) {
    let mut metadata = Element::new("metadata");
    if let Some(os) = take_text(rest, "metadata.os") {
        let info =
            metadata.push(Element::new("libosinfo:libosinfo").with("xmlns:libosinfo", OSINFO));
        info.push(Element::new("libosinfo:os").with("id", os));
    }
    let mut ours = Element::new("vsc:vsc").with("xmlns:vsc", OURS);
    if let Some(Value::Object(map)) = slot(rest, "metadata") {
        for (name, value) in map {
            let Some(text) = value.as_str().filter(|text| legal(text) && legal(name)) else {
                continue;
            };
            let entry = ours.push(Element::new("vsc:entry").with("name", name.as_str()));
            text.clone_into(&mut entry.text);
            value.take();
        }
    }
    if !ours.children.is_empty() {
        metadata.push(ours);
    }
    if !metadata.children.is_empty() {
        root.push(metadata);
    }
}

pub(super) fn read_metadata(root: &mut Element, into: &mut Value) {
    let outer: Vec<(String, String)> = namespaces(root).collect();
    let Some(metadata) = root.child_mut("metadata") else {
        return;
    };
    metadata.seen = true;
    let outer: Vec<(String, String)> = namespaces(metadata).chain(outer).collect();
    for child in &mut metadata.children {
        let scope: Vec<(String, String)> = namespaces(child).chain(outer.iter().cloned()).collect();
        match within(&child.name, &scope) {
            (Some(OSINFO), "libosinfo") => read_osinfo(child, &scope, into),
            (Some(OURS), "vsc") => read_ours(child, &scope, into),
            _ => {}
        }
    }
}

fn read_osinfo(info: &mut Element, scope: &[(String, String)], into: &mut Value) {
    info.seen = true;
    let os = info
        .children
        .iter_mut()
        .find(|c| within(&c.name, scope) == (Some(OSINFO), "os"));
    if let Some(os) = os
        && let Some(id) = os.get("id").map(str::to_owned)
    {
        os.see("id");
        put_member(into, "os", &id);
    }
}

fn read_ours(ours: &mut Element, scope: &[(String, String)], into: &mut Value) {
    ours.seen = true;
    for entry in &mut ours.children {
        if within(&entry.name, scope) != (Some(OURS), "entry") {
            continue;
        }
        let Some(name) = entry.get("name").map(str::to_owned) else {
            continue;
        };
        if entry.children.is_empty() {
            put_member(into, &name, &entry.text);
            entry.see_all();
        }
    }
}

/// A name of a metadata entry may hold dots, so it is no path.
fn put_member(into: &mut Value, name: &str, text: &str) {
    if into.get("metadata").is_none() {
        put(into, "metadata", Value::Object(Map::new()));
    }
    if let Some(Value::Object(map)) = into.get_mut("metadata") {
        map.entry(name).or_insert_with(|| text.into());
    }
}

fn namespaces(element: &Element) -> impl Iterator<Item = (String, String)> + '_ {
    element.attributes.iter().filter_map(|a| {
        let prefix = match a.name.strip_prefix("xmlns") {
            Some("") => "",
            Some(rest) => rest.strip_prefix(':')?,
            None => return None,
        };
        Some((prefix.to_owned(), a.value.clone()))
    })
}

fn within<'a>(name: &'a str, scope: &'a [(String, String)]) -> (Option<&'a str>, &'a str) {
    let (prefix, local) = name.split_once(':').unwrap_or(("", name));
    let space = scope.iter().find(|(p, _)| p == prefix);
    (space.map(|(_, uri)| uri.as_str()), local)
}
