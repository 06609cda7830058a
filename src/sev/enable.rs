//! What switches SEV on, as a plan: the files of this distribution's boot loader, and of modprobe, with their bytes
//! before and after.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::facts::{Facts, LiveFacts, Root};
use crate::tune::{Act, Change};

use super::entries::{Options, with_options};
use super::grub::{self, Effect};
use super::host::Host;
use super::loader::{Distribution, Loader, PlanError, entries, listed, read, resolved};
use super::modprobe::{Modprobe, is_built_in};
use super::{Level, policy, words};

/// What these changes are for, in the journal.
pub const WHAT: &str = "sev.enable";
/// The file for modprobe.
pub const MODPROBE: &str = "/etc/modprobe.d/vsc-sev.conf";
/// Its text. `mem_encrypt=on` is not in it: that is no module's option, the kernel reads it before there is any module
/// (Linux, Documentation/admin-guide/kernel-parameters.txt), so it works on the kernel's command line only.
const MODPROBE_TEXT: &str = "# vsc-run sev enable; vsc-run sev enable --undo removes this file.\n\
    options kvm_amd sev=1 sev_es=1\n";
/// The file for GRUB where another one there has the last word.
const DROP_IN: &str = "/etc/default/grub.d/zz-vsc-sev.cfg";
const GRUB: &str = "/etc/default/grub";
const CMDLINE: &str = "/etc/kernel/cmdline";
const USUAL_CMDLINE: &str = "/usr/lib/kernel/cmdline";
const LINUX: &str = "GRUB_CMDLINE_LINUX";
const DEFAULT: &str = "GRUB_CMDLINE_LINUX_DEFAULT";
/// Permissions of a new configuration file.
const MODE: u32 = 0o644;

/// Where the module's parameters are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// On the kernel's command line, as the rest.
    Cmdline,
    /// In a file of modprobe.
    Modprobe,
}

/// One file, before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edit {
    /// The file, as the host names it.
    pub path: PathBuf,
    /// Its text now; `None`: there is none.
    pub old: Option<String>,
    /// Its text then.
    pub new: String,
}

impl From<Edit> for Change {
    fn from(Edit { path, old, new }: Edit) -> Self {
        Change {
            what: WHAT.to_owned(),
            act: Act::File {
                path,
                old,
                new,
                mode: MODE,
            },
            required: true,
        }
    }
}

/// What a guest gets here that says nothing of it.
#[derive(Debug, Clone, Serialize)]
pub struct Guests {
    /// The bit of a page table entry that says encrypted.
    pub cbitpos: Option<u32>,
    /// Physical address bits that encryption costs.
    pub reduced_phys_bits: Option<u32>,
    /// The launch policy.
    pub policy: u64,
    /// Its bits by their names.
    pub policy_names: Vec<&'static str>,
}

/// The other way to set the module's parameters.
#[derive(Debug, Clone, Serialize)]
pub struct Alternative {
    /// The way.
    pub how: How,
    /// The file of modprobe.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
    /// What is on the kernel's command line then.
    pub words: String,
}

/// What switches SEV on.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The distribution.
    pub distribution: Distribution,
    /// Its boot loader.
    pub loader: Loader,
    /// Where the module's parameters are set.
    pub how: How,
    /// What the kernel's command line gets.
    pub words: String,
    /// The files.
    pub edits: Vec<Edit>,
    /// What has to be run then, in this order.
    pub commands: Vec<Vec<String>>,
    /// What is good to know.
    pub notes: Vec<String>,
    /// The kernel that runs now does not have these words yet.
    pub reboot: bool,
    /// The other way.
    pub alternative: Alternative,
    /// What guests get.
    pub guests: Guests,
}

/// Parameters and their values.
type Words = Vec<(&'static str, &'static str)>;

fn wanted(how: How, es: bool) -> Words {
    let mut words = vec![("mem_encrypt", "on")];
    if how == How::Cmdline {
        words.push(("kvm_amd.sev", "1"));
        words.extend(es.then_some(("kvm_amd.sev_es", "1")));
    }
    words
}

impl Plan {
    /// The plan for a host.
    ///
    /// # Errors
    /// Why there is none.
    pub fn of(facts: &LiveFacts, root: &Root, how: How) -> Result<Self, PlanError> {
        let host = Host::of(facts, root);
        let hidden = host.cpuid.map_or(Level::None, super::host::Leaf::level);
        if host.processor == Level::None && hidden == Level::None {
            return Err(PlanError::NoSev);
        }
        let es = host.processor.max(hidden) >= Level::SevEs;
        let distribution = Distribution::of(root)?;
        let wanted_words = wanted(how, es);
        let line = words::set("", &wanted_words);
        if distribution.ids.iter().any(|id| id == "nixos") {
            return Err(PlanError::Declared(line));
        }
        let loader =
            Loader::of(root, &distribution)?.ok_or_else(|| PlanError::NoLoader(line.clone()))?;
        let other = match how {
            How::Cmdline => How::Modprobe,
            How::Modprobe => How::Cmdline,
        };
        let running = facts.text(Path::new("/proc/cmdline")).unwrap_or_default();
        let is_running = wanted_words
            .iter()
            .all(|(name, value)| words::value(&running, name) == Some(value));
        let mut work = Work {
            root,
            distribution: &distribution,
            wanted: &wanted_words,
            line: &line,
            edits: Vec::new(),
            commands: Vec::new(),
            notes: Vec::new(),
        };
        if host.processor == Level::None {
            work.notes.push("the kernel hides what the processor has: turn on SMEE in the firmware's setup too (sudo systemctl reboot --firmware-setup)".into());
        }
        match loader {
            Loader::Grub => work.grub()?,
            Loader::GrubBls => work.entries_of_grub()?,
            Loader::SystemdBoot => work.systemd_boot(facts)?,
            Loader::Ostree => work.ostree(),
        }
        work.modprobe(how, facts)?;
        let Work {
            edits,
            commands,
            notes,
            ..
        } = work;
        let policy = policy::SEV_DEFAULT | if es { policy::ES } else { 0 };
        let modprobe_changes = edits.iter().any(|e| e.path == Path::new(MODPROBE));
        Ok(Plan {
            loader,
            how,
            words: line,
            reboot: !is_running || modprobe_changes,
            alternative: Alternative {
                how: other,
                path: MODPROBE.into(),
                text: MODPROBE_TEXT.into(),
                words: words::set("", &wanted(other, es)),
            },
            guests: Guests {
                cbitpos: host.cbitpos,
                reduced_phys_bits: host.reduced_phys_bits,
                policy,
                policy_names: policy::names(Level::Sev, policy),
            },
            distribution,
            edits,
            commands,
            notes,
        })
    }

    /// The same for the tuner, with the directories of the files where they are not there.
    pub fn changes(&self, root: &Root) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        for edit in &self.edits {
            let missing = edit.path.ancestors().skip(1);
            let mut missing: Vec<&Path> =
                missing.take_while(|path| !root.at(path).exists()).collect();
            missing.retain(|path| changes.iter().all(|change| change.act.target() != *path));
            changes.extend(missing.into_iter().rev().map(|path| Change {
                what: WHAT.to_owned(),
                act: Act::Directory {
                    path: path.to_owned(),
                },
                required: true,
            }));
            changes.push(edit.clone().into());
        }
        changes
    }
}

struct Work<'a> {
    root: &'a Root,
    distribution: &'a Distribution,
    wanted: &'a [(&'static str, &'static str)],
    line: &'a str,
    edits: Vec<Edit>,
    commands: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Work<'_> {
    fn edit(&mut self, path: &Path, old: Option<String>, new: String) -> Result<bool, PlanError> {
        let changes = old.as_deref() != Some(new.as_str());
        if changes {
            let path = resolved(self.root, path)?;
            self.edits.push(Edit { path, old, new });
        }
        Ok(changes)
    }

    fn command(&mut self, words: &[&str]) {
        self.commands
            .push(words.iter().map(|w| (*w).to_owned()).collect());
    }

    /// GRUB with a generated configuration. Debian's reads more files after the first one.
    fn grub(&mut self) -> Result<(), PlanError> {
        let main = read(self.root, Path::new(GRUB))?.unwrap_or_default();
        let mut later = Vec::new();
        if self.distribution.is_debian() {
            for path in listed(self.root, Path::new("/etc/default/grub.d"), "cfg")? {
                let text = read(self.root, &path)?.unwrap_or_default();
                later.push((path, text));
            }
        }
        let mut all = main.clone();
        for (_, text) in &later {
            all.push('\n');
            all += text;
        }
        let both = [LINUX, DEFAULT]
            .map(|name| grub::values(&all, name))
            .join(" ");
        let holds =
            |text: &str, (name, value): &(&str, &str)| words::value(text, name) == Some(value);
        if self.wanted.iter().all(|w| holds(&both, w)) {
            return Ok(());
        }
        later.retain(|(path, _)| path != Path::new(DROP_IN));
        let target = match grub::values(&all, DEFAULT).is_empty() && has_only(&all) {
            true => LINUX,
            false => DEFAULT,
        };
        let changes = |text: &str| {
            grub::effect(text, target) == Effect::Replaces
                || [LINUX, DEFAULT].iter().any(|name| {
                    let values = grub::values(text, name);
                    self.wanted
                        .iter()
                        .any(|(word, _)| words::value(&values, word).is_some())
                })
        };
        let not_plain = |path: &Path| PlanError::NotPlain {
            path: path.to_owned(),
            variable: target,
            words: self.line.to_owned(),
        };
        if let Some((path, _)) = later
            .iter()
            .find(|(path, text)| path.as_path() > Path::new(DROP_IN) && changes(text))
        {
            return Err(not_plain(path));
        }
        if let Some((path, _)) = later.iter().find(|(_, text)| changes(text)) {
            self.notes.push(format!(
                "{} has a word in {target} after {GRUB}: a file of its own adds to both",
                path.display()
            ));
            let old = read(self.root, Path::new(DROP_IN))?;
            let new = format!(
                "# vsc-run sev enable; vsc-run sev enable --undo removes this file.\n{target}=\"${target} {}\"\n",
                self.line
            );
            self.edit(Path::new(DROP_IN), old, new)?;
        } else {
            let new = match self.edited(&main, target, &both) {
                Ok(new) => new,
                Err(grub::NotPlain) => {
                    let new = grub::append(&main, target, self.wanted)
                        .map_err(|grub::NotPlain| not_plain(Path::new(GRUB)))?;
                    self.added_line(target);
                    new
                }
            };
            self.edit(Path::new(GRUB), Some(main), new)?;
        }
        self.make_configuration();
        Ok(())
    }

    /// The first file with the words: where they are they get their values, the rest is added to `target`.
    fn edited(&self, main: &str, target: &str, both: &str) -> Result<String, grub::NotPlain> {
        let missing: Words = self
            .wanted
            .iter()
            .filter(|(name, _)| words::value(both, name).is_none())
            .copied()
            .collect();
        let mut text = main.to_owned();
        for name in [LINUX, DEFAULT] {
            text = grub::set(&text, name, self.wanted, false)?;
        }
        match missing.is_empty() {
            true => Ok(text),
            false => grub::set(&text, target, &missing, true),
        }
    }

    fn added_line(&mut self, variable: &str) {
        self.notes.push(format!(
            "{variable} is more than one plain value in {GRUB}: a last line adds to it, whatever it is"
        ));
    }

    fn make_configuration(&mut self) {
        let there = |path: &str| self.root.at(path).exists();
        if self.distribution.is_debian() {
            self.command(&["update-grub"]);
        } else if there("/usr/sbin/transactional-update") {
            self.command(&["transactional-update", "grub.cfg"]);
        } else if self.distribution.is_suse()
            || self.distribution.is_fedora()
            || there("/boot/grub2")
        {
            let file = self.grub2_configuration();
            self.command(&["grub2-mkconfig", "-o", &file]);
        } else {
            self.command(&["grub-mkconfig", "-o", "/boot/grub/grub.cfg"]);
        }
    }

    /// Older releases have it on the EFI partition, newer ones have only a pointer there.
    fn grub2_configuration(&self) -> String {
        const NEW: &str = "/boot/grub2/grub.cfg";
        if self.root.at(NEW).exists() {
            return NEW.to_owned();
        }
        let old = self.distribution.ids.iter().map(|id| match id.as_str() {
            "rhel" => "redhat",
            id => id,
        });
        let old = old.map(|id| format!("/boot/efi/EFI/{id}/grub.cfg"));
        let mut old = old.filter(|path| self.root.at(path).exists());
        old.next().unwrap_or_else(|| NEW.to_owned())
    }

    /// Fedora's GRUB: an entry for each kernel, and what new kernels get.
    fn entries_of_grub(&mut self) -> Result<(), PlanError> {
        let by_variable = self.entries()?;
        if let Some(old) = read(self.root, Path::new(CMDLINE))? {
            let new = words::set(&old, self.wanted);
            self.edit(Path::new(CMDLINE), Some(old), new)?;
        }
        if let Some(old) = read(self.root, Path::new(GRUB))? {
            let values = [LINUX, DEFAULT]
                .map(|name| grub::values(&old, name))
                .join(" ");
            let new = match self.edited(&old, LINUX, &values) {
                Ok(new) => new,
                Err(grub::NotPlain) => {
                    let new =
                        grub::append(&old, LINUX, self.wanted).map_err(|grub::NotPlain| {
                            PlanError::NotPlain {
                                path: GRUB.into(),
                                variable: LINUX,
                                words: self.line.to_owned(),
                            }
                        })?;
                    self.added_line(LINUX);
                    new
                }
            };
            self.edit(Path::new(GRUB), Some(old), new)?;
        }
        if by_variable {
            self.notes.push(
                "entries that say $kernelopts get the words when the configuration is made again"
                    .into(),
            );
            let file = self.grub2_configuration();
            self.command(&["grub2-mkconfig", "-o", &file]);
        }
        self.notes.push(format!(
            "the entries' own command for this: grubby --update-kernel=ALL --args=\"{}\"",
            self.line
        ));
        Ok(())
    }

    /// The lines `options` of all entries; whether one takes its own from a variable of GRUB's.
    fn entries(&mut self) -> Result<bool, PlanError> {
        let mut by_variable = false;
        for path in entries(self.root)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.contains("-rescue") {
                self.notes
                    .push(format!("{name} stays as it is: a way back"));
                continue;
            }
            let old = read(self.root, &path)?.unwrap_or_default();
            match with_options(&old, self.wanted) {
                Options::None => {}
                Options::Variable => by_variable = true,
                Options::Set(new) => {
                    self.edit(&path, Some(old), new)?;
                }
            }
        }
        Ok(by_variable)
    }

    /// systemd-boot: what kernels get that are installed from now on, which this one is once more; where nothing says
    /// that, the entries themselves.
    fn systemd_boot(&mut self, facts: &LiveFacts) -> Result<(), PlanError> {
        // kernel-install(8): the distribution's own where the owner says nothing.
        let usual = || read(self.root, Path::new(USUAL_CMDLINE));
        let own = read(self.root, Path::new(CMDLINE))?;
        let Some(line) = own.clone().map_or_else(usual, |own| Ok(Some(own)))? else {
            let before = self.edits.len();
            if self.entries()? {
                return Err(PlanError::NoLoader(self.line.to_owned()));
            }
            if self.edits.len() == before && !self.entries_have()? {
                return Err(PlanError::BuiltIn(self.line.to_owned()));
            }
            self.notes.push(format!(
                "kernels that are installed later get the command line of the one that runs then: there is no {CMDLINE}"
            ));
            return Ok(());
        };
        let new = words::set(&line, self.wanted);
        if own.is_none() && new == line {
            return Ok(());
        }
        if !self.edit(Path::new(CMDLINE), own, new)? {
            return Ok(());
        }
        let there = |path: &str| self.root.at(path).exists();
        if there("/usr/bin/sdbootutil") {
            self.command(&["sdbootutil", "update-all-entries"]);
            return Ok(());
        }
        if there("/etc/kernel/proxmox-boot-uuids") {
            self.command(&["proxmox-boot-tool", "refresh"]);
            return Ok(());
        }
        let presets = listed(self.root, Path::new("/etc/mkinitcpio.d"), "preset")?;
        if !presets.is_empty() {
            // Its images have that line in them; entries by hand have their own.
            self.entries()?;
            self.command(&["mkinitcpio", "-P"]);
            return Ok(());
        }
        let release = facts
            .text(Path::new("/proc/sys/kernel/osrelease"))
            .unwrap_or_default();
        let kernels = [
            format!("/usr/lib/modules/{release}/vmlinuz"),
            format!("/lib/modules/{release}/vmlinuz"),
            format!("/boot/vmlinuz-{release}"),
        ];
        match kernels.iter().find(|k| self.root.at(k).exists()) {
            Some(kernel) if !release.is_empty() => {
                self.command(&["kernel-install", "add", &release, kernel]);
            }
            _ => self.notes.push(format!(
                "no kernel of release {release:?} was found: run kernel-install add RELEASE KERNEL for the one to boot"
            )),
        }
        Ok(())
    }

    /// Whether an entry has the words already.
    fn entries_have(&self) -> Result<bool, PlanError> {
        for path in entries(self.root)? {
            let text = read(self.root, &path)?.unwrap_or_default();
            if words::value(&text, "mem_encrypt").is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// An image has no files to edit.
    fn ostree(&mut self) {
        let mut command = vec!["rpm-ostree".to_owned(), "kargs".to_owned()];
        let words = self.line.split(' ');
        command.extend(words.map(|word| format!("--append-if-missing={word}")));
        self.commands.push(command);
    }

    fn modprobe(&mut self, how: How, facts: &LiveFacts) -> Result<(), PlanError> {
        if how == How::Modprobe {
            let old = read(self.root, Path::new(MODPROBE))?;
            self.edit(Path::new(MODPROBE), old, MODPROBE_TEXT.to_owned())?;
            self.notes.push("mem_encrypt=on is no option of a module: it works on the kernel's command line only".into());
        }
        let modprobe = Modprobe::of(self.root)?;
        if how == How::Modprobe {
            if let Some(why) = modprobe.overrules(MODPROBE) {
                return Err(why);
            }
            if is_built_in(facts) {
                return Err(PlanError::NoModule);
            }
        }
        self.notes.extend(modprobe.notes(how, facts));
        Ok(())
    }
}

/// Whether only the variable for all entries is there, not the one for the normal ones.
fn has_only(text: &str) -> bool {
    grub::is_true(text, DEFAULT).is_none() && grub::is_true(text, LINUX).is_some()
}
