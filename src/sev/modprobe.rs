//! What the files of modprobe say of kvm_amd (modprobe.d(5)): parameters, and whether it is loaded at all.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use crate::facts::{Facts, LiveFacts, Root};

use super::enable::{How, MODPROBE};
use super::loader::{PlanError, listed, read};
use super::words;

/// Where the files are; of several with one name the first counts.
const DIRECTORIES: [&str; 5] = [
    "/etc/modprobe.d",
    "/run/modprobe.d",
    "/usr/local/lib/modprobe.d",
    "/usr/lib/modprobe.d",
    "/lib/modprobe.d",
];
const MODULE: &str = "kvm_amd";

/// What is said of the module.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// A parameter that switches SEV or SEV-ES off.
    Off(String),
    /// A file that names no module where one has to be.
    Misplaced,
    /// It is not loaded because a device is there: `blacklist`.
    NotByItself,
    /// Something else is done in its place: `install`.
    Instead(String),
}

/// All that the files say, in the order in which modprobe reads them.
pub(super) struct Modprobe(Vec<(PathBuf, Said)>);

impl Modprobe {
    /// Reads them.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub(super) fn of(root: &Root) -> Result<Self, PlanError> {
        let mut files: Vec<PathBuf> = Vec::new();
        for directory in DIRECTORIES {
            for path in listed(root, Path::new(directory), "conf")? {
                if files.iter().all(|f| f.file_name() != path.file_name()) {
                    files.push(path);
                }
            }
        }
        files.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
        let mut all = Vec::new();
        for path in files.into_iter().filter(|p| p != Path::new(MODPROBE)) {
            let text = read(root, &path)?.unwrap_or_default();
            let lines = text.replace("\\\n", " ");
            let said = lines.lines().filter_map(said);
            all.extend(said.map(|said| (path.clone(), said)));
        }
        Ok(Self(all))
    }

    /// What of it is after a file of ours, and says something else.
    pub(super) fn overrules(&self, ours: &'static str) -> Option<PlanError> {
        self.0.iter().find_map(|(path, said)| match said {
            Said::Off(words) if path.file_name() > Path::new(ours).file_name() => {
                Some(PlanError::Overruled {
                    path: path.clone(),
                    words: words.clone(),
                    ours,
                })
            }
            _ => None,
        })
    }

    /// What keeps modprobe from loading it.
    pub(super) fn refuses(&self) -> Option<(&Path, &str)> {
        self.0.iter().find_map(|(path, said)| match said {
            Said::Instead(command) => Some((path.as_path(), command.as_str())),
            _ => None,
        })
    }

    /// What is to be known of it.
    pub(super) fn notes(&self, how: How, facts: &LiveFacts) -> Vec<String> {
        let mut notes: Vec<String> = self
            .0
            .iter()
            .map(|(path, said)| {
                let path = path.display();
                match said {
                    Said::Misplaced => format!(
                        "{path} has no effect: after `options` comes a module's name (virt-scenario writes it so); it can go"
                    ),
                    Said::Off(words) => match how {
                        How::Cmdline => format!("{path} says `{words}`, which the kernel's command line overrules; it can go"),
                        How::Modprobe => format!("{path} says `{words}`, which {MODPROBE} overrules; it can go"),
                    },
                    Said::NotByItself => format!(
                        "{path} keeps {MODULE} from being loaded by itself (blacklist): take that out, or load it with modprobe {MODULE}"
                    ),
                    Said::Instead(command) => format!(
                        "{path} keeps {MODULE} from being loaded (install: {command}): no SEV until that is taken out"
                    ),
                }
            })
            .collect();
        let running = facts.text(Path::new("/proc/cmdline")).unwrap_or_default();
        for word in ["modprobe.blacklist", "module_blacklist"] {
            let list = words::value(&running, word).unwrap_or_default();
            if list.split(',').any(is_module) {
                notes.push(format!(
                    "{word}= on the kernel's command line keeps {MODULE} from being loaded: take it out there too"
                ));
            }
        }
        notes
    }
}

/// Whether the kernel has the module within itself, where no file of modprobe's is asked.
pub(super) fn is_built_in(facts: &LiveFacts) -> bool {
    let release = facts.text(Path::new("/proc/sys/kernel/osrelease"));
    let release = release.unwrap_or_default();
    ["/lib/modules", "/usr/lib/modules"].iter().any(|modules| {
        let list = Path::new(modules).join(&release).join("modules.builtin");
        let text = facts.long_text(&list).unwrap_or_default();
        text.lines().any(|line| line.ends_with("/kvm-amd.ko"))
    })
}

/// modprobe takes `-` for `_`.
fn is_module(name: &str) -> bool {
    name.replace('-', "_") == MODULE
}

fn said(line: &str) -> Option<Said> {
    let mut words = line.split_ascii_whitespace();
    let command = words.next()?;
    let module = words.next()?;
    match command {
        "options" if module.starts_with("mem_encrypt=") => Some(Said::Misplaced),
        "options" if is_module(module) => {
            let off = |word: &&str| {
                let (name, value) = word.split_once('=').unwrap_or_default();
                matches!(name, "sev" | "sev_es") && matches!(value, "0" | "N" | "n" | "off")
            };
            let off: Vec<&str> = words.filter(off).collect();
            (!off.is_empty()).then(|| Said::Off(off.join(" ")))
        }
        "blacklist" if is_module(module) => Some(Said::NotByItself),
        "install" if is_module(module) => Some(Said::Instead(words.collect::<Vec<_>>().join(" "))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_modprobe_are_understood() {
        for (line, wanted) in [
            ("options kvm_amd sev=0", Some(Said::Off("sev=0".into()))),
            (
                "options kvm-amd nested=1 sev=1 sev_es=N",
                Some(Said::Off("sev_es=N".into())),
            ),
            ("options kvm_amd sev=1", None),
            ("options kvm sev=0", None),
            ("# options kvm_amd sev=0", None),
            (
                "options mem_encrypt=on kvm_amd sev=1",
                Some(Said::Misplaced),
            ),
            ("blacklist kvm-amd", Some(Said::NotByItself)),
            ("blacklist kvm", None),
            (
                "install kvm_amd /bin/false",
                Some(Said::Instead("/bin/false".into())),
            ),
            ("options", None),
        ] {
            assert_eq!(said(line), wanted, "{line}");
        }
    }
}
