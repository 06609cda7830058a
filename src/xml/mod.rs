//! The domain as libvirt writes it, and back.
//!
//! [`export()`] says everything of a [`Domain`] that domain XML can say and lists the rest; [`import()`] reads any
//! domain XML into a scenario and notes, by line, what has no equivalent. Both read one table (`rows`), so they
//! cannot disagree; code of its own have only the places where XML is irregular.
//!
//! Some things XML says by leaving them out, and import says them aloud: what libvirt takes then (`absent`), a PC with
//! neither loader nor kernel has `firmware.type: bios`, a command line without `console=` is `kernel.console: none` and
//! one without `root=`, beside disks and no initrd, `root.device: none`; where all virtio devices are behind an IOMMU,
//! one that is not has `iommu: false`. Words that mean "there is none" (`model: none`, `hugepages: none`, `read_only: false`, …)
//! are said by leaving out too, and are not read back.

#![forbid(unsafe_code)]

mod absent;
mod chardev;
mod devices;
mod disk;
mod domain;
pub mod element;
mod import;
mod machine;
mod metadata;
pub mod network;
mod os;
pub mod parse;
pub mod patch;
pub mod pool;
mod rows;
mod table;

use serde_json::Value;

use crate::domain::Domain;

pub use domain::tree;
pub use element::Element;
pub use import::{Imported, import};
pub use patch::{Change, Changed, PatchError};

/// A domain as XML.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// The document.
    pub text: String,
    /// Keys of the domain that XML cannot say, such as `disks[0].size`; `xml[0]` is a patch that was refused.
    pub unsaid: Vec<String>,
    /// What the patches of the domain's `xml` changed, in order.
    pub changed: Vec<Changed>,
    /// The patches that could not be applied, by their index.
    pub refused: Vec<(usize, PatchError)>,
}

/// Writes a domain as XML, with the patches of its `xml` applied.
pub fn export(domain: &Domain) -> Exported {
    let (mut root, mut unsaid) = tree(domain);
    let (mut changed, mut refused) = (Vec::new(), Vec::new());
    for (index, one) in domain.list("xml").iter().enumerate() {
        let text = |key| one.get(key).and_then(Value::as_str);
        let delete = one.get("delete") == Some(&Value::Bool(true));
        let change = match (text("value"), delete) {
            (Some(value), false) => Ok(Change::Set(value.to_owned())),
            (None, true) => Ok(Change::Delete),
            _ => Err(PatchError::Unclear),
        };
        let path = text("path").unwrap_or_default();
        match change.and_then(|change| patch::apply(&mut root, path, change)) {
            Ok(done) => changed.extend(done),
            Err(error) => {
                unsaid.push(format!("xml[{index}]"));
                refused.push((index, error));
            }
        }
    }
    Exported {
        text: root.write(),
        unsaid,
        changed,
        refused,
    }
}

/// What of a domain's XML protects the guest from its host, as far as a change could take it away: two documents that
/// protect alike give the same.
pub(crate) fn protection(text: &str) -> Vec<String> {
    fn walk(element: &Element, path: &str, out: &mut Vec<String>) {
        const WHOLE: [&str; 5] = ["launchSecurity", "loader", "nvram", "memtune", "encryption"];
        let here = format!("{path}/{}", element.name);
        if WHOLE.contains(&element.name.as_str()) {
            out.push(format!("{here}: {}", element.write()));
            return;
        }
        if let Some(on) = element.get("iommu") {
            out.push(format!("{here}: iommu {on}"));
        }
        element
            .children
            .iter()
            .for_each(|child| walk(child, &here, out));
    }
    let Ok(root) = parse::parse(text) else {
        return vec!["not a document".to_owned()];
    };
    let mut out = vec![format!("type {}", root.get("type").unwrap_or_default())];
    walk(&root, "", &mut out);
    out
}

#[cfg(test)]
mod tests;
