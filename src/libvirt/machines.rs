//! Machine types out of the XML of `virsh capabilities`.

#![forbid(unsafe_code)]

use serde::Serialize;

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

/// The machine types of a `<capabilities>` document, each once, in its order.
pub fn machines(capabilities: &str) -> Vec<Machine> {
    let mut out: Vec<Machine> = Vec::new();
    let mut arch = None;
    let mut rest = capabilities;
    while let Some((_, after)) = rest.split_once('<') {
        if let Some(comment) = after.strip_prefix("!--") {
            rest = comment.split_once("-->").map_or("", |(_, behind)| behind);
            continue;
        }
        let Some((tag, behind)) = after.split_once('>') else {
            break;
        };
        rest = behind;
        let name = tag.split([' ', '\t', '\n', '/']).next();
        match name {
            // The host's own <arch> has no name.
            Some("arch") => arch = attribute(tag, "name"),
            Some("machine") if !tag.ends_with('/') => {
                let (text, _) = behind.split_once('<').unwrap_or((behind, ""));
                let Some(arch) = &arch else { continue };
                let machine = Machine {
                    arch: arch.clone(),
                    name: unescape(text.trim()),
                    canonical: attribute(tag, "canonical"),
                    max_cpus: attribute(tag, "maxCpus").and_then(|n| n.parse().ok()),
                };
                // Each kind of domain (qemu, kvm) may list them again.
                let known = |m: &Machine| m.arch == machine.arch && m.name == machine.name;
                if !out.iter().any(known) && !machine.name.is_empty() {
                    out.push(machine);
                }
            }
            _ => {}
        }
    }
    out
}

/// The value of an attribute in what stands between `<` and `>`.
fn attribute(tag: &str, name: &str) -> Option<String> {
    let mut rest = tag;
    loop {
        let (before, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let quote = after.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (value, behind) = after.get(1..)?.split_once(quote)?;
        if before.split_ascii_whitespace().last() == Some(name) {
            return Some(unescape(value));
        }
        rest = behind;
    }
}

fn unescape(text: &str) -> String {
    if !text.contains('&') {
        return text.to_owned();
    }
    [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&amp;", "&"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (entity, c)| text.replace(entity, c))
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
              <domain type='qemu'/><domain type='kvm'><machine maxCpus='255'>pc</machine></domain></arch></guest>
            <guest><arch
               name='x86_64'><machine maxCpus='288' deprecated='yes'>a&amp;b</machine><machine/></arch></guest>
            </capabilities>";
        let found = machines(text);
        let short: Vec<_> = found
            .iter()
            .map(|m| (m.arch.as_str(), m.name.as_str(), m.canonical.as_deref()))
            .collect();
        assert_eq!(
            short,
            [
                ("i686", "pc-i440fx-7.2", None),
                ("i686", "pc", Some("pc-i440fx-7.2")),
                ("x86_64", "a&b", None),
            ]
        );
        assert_eq!(
            (found[0].max_cpus, found[2].max_cpus),
            (Some(255), Some(288))
        );
    }

    #[test]
    fn broken_text_is_no_machine() {
        for text in [
            "",
            "<",
            "<machine",
            "<arch name=>",
            "<arch name='x",
            "<machine>q</machine>",
            "<arch name='a'><machine>",
            "<!--",
        ] {
            assert_eq!(machines(text), [], "{text}");
        }
    }
}
