//! Machine types out of the XML of `virsh capabilities`.

#![forbid(unsafe_code)]

use serde::Serialize;

use crate::xml::Element;
use crate::xml::parse::{Malformed, parse};

/// A machine type that a hypervisor can run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Architecture of the guest.
    pub arch: String,
    /// Its name: `q35`.
    pub name: String,
    /// The name that this one stands for: `pc-q35-7.2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical: Option<String>,
    /// Most vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_cpus: Option<u32>,
}

/// The machine types of a `<capabilities>` document, each once for an architecture, in its order.
///
/// # Errors
/// The text is not XML.
pub fn machines(capabilities: &str) -> Result<Vec<Machine>, Malformed> {
    let root = parse(capabilities)?;
    let mut out: Vec<Machine> = Vec::new();
    let guests = below(&root, "guest").flat_map(|guest| below(guest, "arch"));
    for arch in guests {
        // Each kind of domain (qemu, kvm) may have machines of its own besides.
        let special = below(arch, "domain").flat_map(|domain| below(domain, "machine"));
        for element in below(arch, "machine").chain(special) {
            let machine = Machine {
                arch: arch.get("name").unwrap_or_default().to_owned(),
                name: element.text.trim().to_owned(),
                canonical: element.get("canonical").map(str::to_owned),
                max_cpus: element.get("maxCpus").and_then(|n| n.parse().ok()),
            };
            let known = |m: &Machine| m.arch == machine.arch && m.name == machine.name;
            if !out.iter().any(known) && !machine.name.is_empty() {
                out.push(machine);
            }
        }
    }
    Ok(out)
}

fn below<'a>(element: &'a Element, name: &'a str) -> impl Iterator<Item = &'a Element> {
    element.children.iter().filter(move |c| c.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_found_once_for_each_architecture() {
        let text = "<capabilities><host><cpu><arch>x86_64</arch></cpu></host>
            <!-- <guest><arch name='no'><machine>no</machine></arch></guest> -->
            <guest><os_type>hvm</os_type><arch name='i686'><wordsize>32</wordsize>
              <machine maxCpus='255'>pc-i440fx-7.2</machine>
              <machine canonical=\"pc-i440fx-7.2\" maxCpus=\"255\">pc</machine>
              <domain type='qemu'/>
              <domain type='kvm'><machine maxCpus='255'>pc</machine><machine>own</machine></domain></arch></guest>
            <guest><arch name='x86_64'><machine maxCpus='288' deprecated='yes'>a&amp;b</machine><machine/></arch></guest>
            </capabilities>";
        let found = machines(text).unwrap();
        let short: Vec<_> = found
            .iter()
            .map(|m| (m.arch.as_str(), m.name.as_str(), m.canonical.as_deref()))
            .collect();
        assert_eq!(
            short,
            [
                ("i686", "pc-i440fx-7.2", None),
                ("i686", "pc", Some("pc-i440fx-7.2")),
                ("i686", "own", None),
                ("x86_64", "a&b", None),
            ]
        );
        assert_eq!(
            (found[0].max_cpus, found[2].max_cpus, found[3].max_cpus),
            (Some(255), None, Some(288))
        );
    }

    #[test]
    fn other_documents_have_no_machines() {
        assert_eq!(machines("<capabilities/>"), Ok(vec![]));
        assert_eq!(
            machines("<capabilities><guest/><guest><arch/></guest></capabilities>"),
            Ok(vec![])
        );
        assert!(machines("").is_err() && machines("<capabilities>").is_err());
    }
}
