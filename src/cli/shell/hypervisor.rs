//! Hypervisors for the shell: the list, and what the selected one has.

#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use vsc::diag::{Diagnostics, shown};
use vsc::facts::{Root, Variables};
use vsc::hosts::Hosts;
use vsc::libvirt::{Virsh, machines};
use vsc::scenario::nearest;

use super::super::run::{or_report, report};
use super::{Outcome, Session};
use crate::{run, say};

/// Machine types of QEMU 10.1 by the names of their newest versions and some older ones (hw/i386/pc_q35.c,
/// hw/i386/pc_piix.c): what is offered where no hypervisor can be asked.
pub(super) const MACHINES: [&str; 14] = [
    "q35",
    "pc",
    "pc-q35-10.1",
    "pc-q35-10.0",
    "pc-q35-9.2",
    "pc-q35-9.1",
    "pc-q35-9.0",
    "pc-q35-8.2",
    "pc-q35-7.2",
    "pc-q35-6.2",
    "pc-i440fx-10.1",
    "pc-i440fx-9.2",
    "pc-i440fx-8.2",
    "pc-i440fx-6.2",
];
/// Machine types of other architectures that libvirt runs.
const OTHERS: [&str; 3] = ["virt", "pseries", "s390-ccw-virtio"];

/// Whether QEMU may have a machine of this name; distributions add versions of their own.
fn is_machine(name: &str) -> bool {
    let versioned = [
        "pc-q35-",
        "pc-i440fx-",
        "virt-",
        "pseries-",
        "s390-ccw-virtio-",
    ];
    MACHINES.contains(&name)
        || OTHERS.contains(&name)
        || versioned
            .iter()
            .any(|v| name.strip_prefix(v).is_some_and(|rest| !rest.is_empty()))
}

/// The commands of virsh that tell of machine types and networks.
const CAPABILITIES: [&str; 1] = ["capabilities"];
const NETWORKS: [&str; 3] = ["net-list", "--all", "--name"];
/// How long somebody who pressed TAB waits.
const IMPATIENCE: Duration = Duration::from_secs(2);

/// What a hypervisor says.
fn ask(
    hosts: &Hosts,
    name: &str,
    words: &[&str],
    patience: Option<Duration>,
) -> Result<String, String> {
    let host = hosts.get(name).map_err(|e| e.to_string())?;
    let virsh = Virsh::new(host.url().map_err(|e| e.to_string())?);
    let virsh = match patience {
        Some(patience) => virsh.patience(patience),
        None => virsh,
    };
    let answer = virsh.run(words, None).map_err(|e| run::chain(&e))?;
    Ok(answer.stdout)
}

fn networks(text: &str) -> Vec<String> {
    let names = text.lines().map(str::trim).filter(|n| !n.is_empty());
    names.map(str::to_owned).collect()
}

impl Session {
    /// The list of hypervisors that counts here.
    pub(super) fn hosts(&self) -> Result<Hosts, Diagnostics> {
        let root = Root(self.common.host_root.clone());
        let file = self.settings.get("hosts").map(Path::new);
        let settings = self.common.settings(&root);
        Hosts::load(file, settings, &Variables::of_process(), &root)
    }

    fn list(&self) -> Option<Hosts> {
        or_report(self.hosts(), &self.common).inspect(|hosts| report(&hosts.messages, &self.common))
    }

    /// `hvlist`
    pub(super) fn hvlist(&self) -> Outcome {
        let Some(hosts) = self.list() else {
            return Outcome::Failed;
        };
        let selected = match self.settings.get("on") {
            Some(name) => Some(name.to_owned()),
            None => hosts.selected().ok().map(|h| h.name.clone()),
        };
        if self.common.json {
            let told = serde_json::json!({"selected": selected, "hosts": hosts.list});
            say::out(&format!("{told}\n"));
            return Outcome::Done;
        }
        for host in &hosts.list {
            let mark = if Some(&host.name) == selected.as_ref() {
                "*"
            } else {
                " "
            };
            let url = host.url.as_deref().unwrap_or("(no url)");
            say::out(&format!("{mark} {}  {}\n", shown(&host.name), shown(url)));
        }
        Outcome::Done
    }

    /// Whether `name` is in the list.
    pub(super) fn is_host(&self, name: &str) -> Result<(), Outcome> {
        let hosts = self.list().ok_or(Outcome::Failed)?;
        match hosts.get(name) {
            Ok(_) => Ok(()),
            Err(e) => Err(self.refuse(
                shown(&e.to_string()),
                "`hvlist` shows them, `hvconf FILE` takes another list",
            )),
        }
    }

    /// What the selected hypervisor says; nothing where none is selected, and said where it does not answer.
    fn asked(&self, words: &[&str]) -> Option<String> {
        let name = self.settings.get("on")?;
        let answer = ask(&self.list()?, name, words, None);
        answer
            .map_err(|why| say::error(&format!("{} cannot be asked: {}", shown(name), shown(&why))))
            .ok()
    }

    /// The machine types that a hypervisor told of, for the architecture of the VM.
    fn machines(&self, told: Option<String>) -> Option<Vec<String>> {
        let arch = self.settings.get("arch").unwrap_or("x86_64");
        let all = machines(&told?).ok()?;
        let ours = all.into_iter().filter(|m| m.arch == arch);
        let mut names: Vec<String> = ours.map(|m| m.name).collect();
        names.sort_unstable();
        Some(names)
    }

    /// Names for completion, of the hypervisor if there is one: it is asked once, and not waited for for long.
    pub(super) fn offered(&self, what: &'static str) -> Option<Vec<String>> {
        let name = self.settings.get("on")?;
        let key = (name.to_owned(), what);
        if let Some(names) = self.offers.borrow().get(&key) {
            return names.clone();
        }
        let hosts = self.hosts().ok()?;
        let answer = |words: &[&str]| ask(&hosts, name, words, Some(IMPATIENCE)).ok();
        let names = match what {
            "machine" => self.machines(answer(&CAPABILITIES)),
            _ => answer(&NETWORKS).map(|text| networks(&text)),
        };
        self.offers.borrow_mut().insert(key, names.clone());
        names
    }

    /// Refuses a machine type that is not there.
    pub(super) fn is_machine(&self, name: &str) -> Result<(), Outcome> {
        let Some(names) = self.machines(self.asked(&CAPABILITIES)) else {
            if is_machine(name) {
                return Ok(());
            }
            let help = "Machines are q35, pc, pc-q35-VERSION, pc-i440fx-VERSION; of other architectures virt, \
                        pseries, s390-ccw-virtio. `hvselect` a hypervisor to have it asked";
            let mut known = MACHINES.into_iter().chain(OTHERS);
            return Err(self.unknown("machine type", name, &mut known, help));
        };
        self.among("machine type", name, &names)
    }

    /// Refuses a network that is not there.
    pub(super) fn is_network(&self, name: &str) -> Result<(), Outcome> {
        match self.asked(&NETWORKS) {
            Some(text) => self.among("network", name, &networks(&text)),
            None => Ok(()),
        }
    }

    fn among(&self, what: &str, name: &str, names: &[String]) -> Result<(), Outcome> {
        if names.iter().any(|n| n == name) {
            return Ok(());
        }
        let has = match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(", "),
        };
        let host = self.settings.get("on").unwrap_or_default();
        let help = format!("{host} has {has}");
        Err(self.unknown(what, name, &mut names.iter().map(String::as_str), &help))
    }

    fn unknown(
        &self,
        what: &str,
        name: &str,
        known: &mut dyn Iterator<Item = &str>,
        help: &str,
    ) -> Outcome {
        let near = nearest(name, known);
        let near = near.map_or_else(String::new, |near| format!(": did you mean `{near}`?"));
        self.refuse(
            format!("There is no {what} `{}`{near}", shown(name)),
            shown(help),
        )
    }

    /// Names for completion; nobody is asked for them.
    pub(super) fn host_names(&self) -> Vec<String> {
        let hosts = self.hosts().map(|h| h.list).unwrap_or_default();
        hosts.into_iter().map(|h| h.name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_of_distributions_are_machines() {
        for name in [
            "q35",
            "pc-q35-rhel9.2.0",
            "pc-i440fx-noble",
            "virt-9.0",
            "pseries",
        ] {
            assert!(is_machine(name), "{name}");
        }
        for name in ["", "pc-q35-", "q36", "virt-", "Q35"] {
            assert!(!is_machine(name), "{name}");
        }
    }
}
