//! The domain as libvirt writes it, and back.
//!
//! [`export()`] says everything of a [`Domain`] that domain XML can say and lists the rest; [`import()`] reads any
//! domain XML into a scenario and notes, by line, what has no equivalent. Both read one table (`rows`), so they
//! cannot disagree; code of its own have only the places where XML is irregular.
//!
//! Three things XML says by leaving them out, and import says them aloud: no `<acpi/>` is `features.acpi: false`,
//! neither serial port nor console is `console.implicit: false`, and a PC with neither loader nor kernel has
//! `firmware.type: bios`. Words that mean "there is none" (`model: none`, `hugepages: none`, `read_only: false`, …)
//! are said by leaving out too, and are not read back.

#![forbid(unsafe_code)]

mod chardev;
mod devices;
mod disk;
mod domain;
pub mod element;
mod import;
mod machine;
pub mod parse;
mod rows;
mod table;

use crate::domain::Domain;

pub use domain::{tree, unspeakable};
pub use element::Element;
pub use import::{Imported, import};

/// A domain as XML.
#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    /// The document.
    pub text: String,
    /// Keys of the domain that XML cannot say, such as `disks[0].size`.
    pub unsaid: Vec<String>,
}

/// Writes a domain as XML.
pub fn export(domain: &Domain) -> Exported {
    let (root, unsaid) = tree(domain);
    Exported {
        text: root.write(),
        unsaid,
    }
}

#[cfg(test)]
mod tests;
