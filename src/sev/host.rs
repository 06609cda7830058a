//! What a host has of SEV: the processor, the kernel, the device of the security processor; each with what mends it.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::facts::{Facts, LiveFacts, Root};

use super::Level;
use super::modprobe::Modprobe;

/// A parameter of the module kvm_amd.
pub(crate) fn parameter(name: &str) -> PathBuf {
    Path::new("/sys/module/kvm_amd/parameters").join(name)
}

/// Whether a boolean parameter is on: older kernels print numbers, newer ones Y.
pub(crate) fn is_on(text: Option<&str>) -> bool {
    matches!(text.map(str::trim), Some("1" | "Y" | "y"))
}

/// CPUID's leaf of encrypted memory (AMD64 APM volume 3, appendix E, 0x8000001F).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Leaf {
    /// Bit 0 SME, 1 SEV, 3 SEV-ES, 4 SEV-SNP.
    pub eax: u32,
    /// Bits 0 to 5: the bit of a page table entry that says encrypted; 6 to 11: address bits that it costs.
    pub ebx: u32,
    /// How many encrypted guests can run at once.
    pub ecx: u32,
    /// The first number of a guest that is not SEV-ES; those below are for SEV-ES and SNP.
    pub edx: u32,
}

/// The leaf's number.
const LEAF: u32 = 0x8000_001f;
/// The leaf whose EAX is the greatest one of AMD's.
const MOST: u32 = 0x8000_0000;

impl Leaf {
    /// Of the processor; below another root of a file that answers as the device /dev/cpu/0/cpuid does (cpuid(4)), 16
    /// bytes at the leaf's number.
    pub fn of(root: &Root) -> Option<Self> {
        let [eax, ebx, ecx, edx] = if *root == Root::default() {
            let most = std::arch::x86_64::__cpuid(MOST).eax;
            let leaf = (most >= LEAF).then(|| std::arch::x86_64::__cpuid(LEAF))?;
            [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
        } else {
            let path = root.at("/dev/cpu/0/cpuid");
            let kind = fs::metadata(&path).ok()?.file_type();
            if !kind.is_file() && !kind.is_char_device() {
                return None;
            }
            let file = File::open(path).ok()?;
            let read = |leaf: u32| {
                let mut bytes = [0; 16];
                file.read_exact_at(&mut bytes, u64::from(leaf)).ok()?;
                let (words, _) = bytes.as_chunks::<4>();
                let mut words = words.iter().map(|w| u32::from_le_bytes(*w));
                Some(std::array::from_fn(|_| words.next().unwrap_or_default()))
            };
            let most: [u32; 4] = read(MOST)?;
            (most[0] >= LEAF).then(|| read(LEAF))??
        };
        Some(Leaf { eax, ebx, ecx, edx })
    }

    /// The bit of a page table entry that says encrypted.
    pub fn cbitpos(self) -> u32 {
        self.ebx & 0x3f
    }

    /// Physical address bits that encryption costs.
    pub fn reduced_phys_bits(self) -> u32 {
        self.ebx >> 6 & 0x3f
    }

    /// What the processor has.
    pub fn level(self) -> Level {
        match self.eax {
            a if a & 1 << 1 == 0 => Level::None,
            a if a & 1 << 3 == 0 => Level::Sev,
            a if a & 1 << 4 == 0 => Level::SevEs,
            _ => Level::SevSnp,
        }
    }

    /// How many guests of SEV-ES and SNP can run at once: the numbers from 1 to the first that is not theirs.
    pub fn es_guests(self) -> u32 {
        self.edx.saturating_sub(1).min(self.ecx)
    }
}

/// One thing that is as it should be, or not, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A name that stays.
    pub id: &'static str,
    /// What was looked at.
    pub what: &'static str,
    /// It is as it should be.
    pub works: bool,
    /// No encrypted guest runs without it.
    pub needed: bool,
    /// What was seen.
    pub detail: String,
    /// What mends it.
    pub remedy: Option<String>,
}

/// The security processor's firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Firmware {
    /// Version of its interface.
    pub api_major: u8,
    /// The same, after the point.
    pub api_minor: u8,
    /// Its build.
    pub build: u8,
    /// Encrypted guests that run now.
    pub guests: u32,
}

/// What a host has of SEV.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// What guests can have here: processor, kernel and device together.
    pub level: Level,
    /// This process may use it.
    pub usable: bool,
    /// What the processor has, by its flags in /proc/cpuinfo and by CPUID.
    pub processor: Level,
    /// What KVM has switched on, by the parameters of kvm_amd.
    pub kvm: Level,
    /// CPUID 0x8000001F, where it could be read.
    pub cpuid: Option<Leaf>,
    /// The bit of a page table entry that says encrypted.
    pub cbitpos: Option<u32>,
    /// Physical address bits that encryption costs.
    pub reduced_phys_bits: Option<u32>,
    /// Of the security processor, asked on this host only.
    pub firmware: Option<Firmware>,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
}

/// Restarts into the firmware's setup.
const SETUP: &str = "sudo systemctl reboot --firmware-setup";
/// What switches it on.
const ENABLE: &str = "sudo vsc-run sev enable";

impl Host {
    /// Looks at a host. The security processor is asked on the real one only.
    pub fn of(facts: &LiveFacts, root: &Root) -> Self {
        let flags = facts.cpu_flags();
        let leaf = Leaf::of(root);
        let by_flags = by_flags(&flags);
        let processor = leaf.map_or(by_flags, |leaf| by_flags.min(leaf.level()));
        let look = Look {
            facts,
            root,
            flags: &flags,
            leaf,
            processor,
        };
        let (kvm, parameters) = look.parameters();
        let mut findings = vec![look.flags(by_flags), look.cpuid()];
        findings.extend(parameters);
        findings.push(look.command_line());
        let (there, device, opened) = look.device();
        findings.push(device);
        let live = *root == Root::default();
        let firmware = opened
            .as_ref()
            .filter(|_| live)
            .and_then(|device| crate::sys::sev_firmware(device).ok());
        if let Some(f) = firmware {
            findings.push(Finding {
                id: "firmware",
                what: "firmware",
                works: true,
                needed: false,
                detail: format!(
                    "version {}.{} build {}, {} encrypted guests run",
                    f.api_major, f.api_minor, f.build, f.guests
                ),
                remedy: None,
            });
        }
        if leaf.map_or(by_flags, Leaf::level) == Level::SevSnp {
            findings.push(look.iommu());
        }
        let level = match there {
            true => processor.min(kvm),
            false => Level::None,
        };
        Host {
            level,
            usable: level > Level::None && opened.is_some(),
            processor,
            kvm,
            cpuid: leaf,
            cbitpos: leaf.filter(|l| l.level() > Level::None).map(Leaf::cbitpos),
            reduced_phys_bits: leaf
                .filter(|l| l.level() > Level::None)
                .map(Leaf::reduced_phys_bits),
            firmware,
            findings,
        }
    }
}

fn by_flags(flags: &[String]) -> Level {
    let has = |name: &str| flags.iter().any(|f| f == name);
    match (has("sev"), has("sev_es"), has("sev_snp")) {
        (false, ..) => Level::None,
        (true, false, _) => Level::Sev,
        (true, true, false) => Level::SevEs,
        (true, true, true) => Level::SevSnp,
    }
}

struct Look<'a> {
    facts: &'a LiveFacts,
    root: &'a Root,
    flags: &'a [String],
    leaf: Option<Leaf>,
    processor: Level,
}

impl Look<'_> {
    fn flags(&self, level: Level) -> Finding {
        let has = |name: &str| self.flags.iter().any(|f| f == name);
        let seen: Vec<&str> = ["sme", "sev", "sev_es", "sev_snp"]
            .into_iter()
            .filter(|f| has(f))
            .collect();
        let by_cpuid = self.leaf.map_or(Level::None, Leaf::level);
        let (detail, remedy) = if level > Level::None {
            (seen.join(" "), None)
        } else if has("hypervisor") {
            (
                "this host is itself a virtual machine, and SEV is not handed on to guests"
                    .to_owned(),
                Some("use the host of this machine".to_owned()),
            )
        } else if by_cpuid > Level::None {
            (
                "the processor has SEV and the kernel hides it: memory encryption is off in the firmware's setup"
                    .to_owned(),
                Some(format!("{SETUP} (turn on SMEE, Secure Memory Encryption)")),
            )
        } else if has("vmx") {
            (
                "no sev: a processor with VMX has none".to_owned(),
                Some("use a host with an AMD EPYC processor".to_owned()),
            )
        } else {
            (
                "no sev: the processor has none, or memory encryption is off in the firmware's setup"
                    .to_owned(),
                Some(format!(
                    "use a host with an AMD EPYC processor; on one: {SETUP} (turn on SMEE)"
                )),
            )
        };
        Finding {
            id: "cpu-flags",
            what: "processor's flags",
            works: level > Level::None,
            needed: true,
            detail,
            remedy,
        }
    }

    fn cpuid(&self) -> Finding {
        let mut finding = Finding {
            id: "cpuid",
            what: "CPUID 0x8000001F",
            works: false,
            needed: false,
            detail: "this processor has no such leaf".into(),
            remedy: None,
        };
        let Some(leaf) = self.leaf else {
            if *self.root != Root::default() {
                finding.detail = format!(
                    "unknown: {} does not answer",
                    self.root.at("/dev/cpu/0/cpuid").display()
                );
                finding.remedy = Some("look on the host itself, without --host-root".into());
            } else {
                finding.remedy = Some("use a host with an AMD EPYC processor".into());
            }
            return finding;
        };
        finding.works = leaf.level() > Level::None;
        finding.detail = match leaf.level() {
            Level::None => "no SEV".to_owned(),
            level => format!(
                "{}, cbitpos {}, reducedPhysBits {}, {} encrypted guests, {} of them with SEV-ES",
                level.word(),
                leaf.cbitpos(),
                leaf.reduced_phys_bits(),
                leaf.ecx,
                leaf.es_guests()
            ),
        };
        if leaf.level() == Level::None {
            finding.remedy = Some("use a host with an AMD EPYC processor".into());
        } else if leaf.level() >= Level::SevEs && leaf.es_guests() == 0 {
            finding.detail += ": no number is left for those";
            finding.remedy = Some(format!(
                "{SETUP} (raise SEV-ES ASID Space Limit, for SEV-ES guests)"
            ));
        }
        finding
    }

    fn parameters(&self) -> (Level, Vec<Finding>) {
        let loaded = self.facts.exists(Path::new("/sys/module/kvm_amd"));
        let files = (!loaded).then(|| Modprobe::of(self.root).ok()).flatten();
        let refused = files.as_ref().and_then(Modprobe::refuses);
        let by_leaf = self.leaf.map_or(self.processor, Leaf::level);
        let mut level = Level::None;
        let mut findings = Vec::new();
        for (at, name, id, what) in [
            (Level::Sev, "sev", "kvm-sev", "KVM: SEV"),
            (Level::SevEs, "sev_es", "kvm-sev-es", "KVM: SEV-ES"),
            (Level::SevSnp, "sev_snp", "kvm-sev-snp", "KVM: SEV-SNP"),
        ] {
            let text = self.facts.text(&parameter(name));
            let works = is_on(text.as_deref());
            let before = level;
            if works && (at == Level::Sev || before >= Level::Sev) {
                level = level.max(at);
            }
            // What the processor does not have is not missed.
            if at > Level::Sev && !works && by_leaf < at {
                continue;
            }
            let detail = match &text {
                Some(text) => format!("kvm_amd.{name}={text}"),
                None if let Some((path, command)) = refused => format!(
                    "the module kvm_amd is not loaded: {} does `{command}` instead",
                    path.display()
                ),
                None if !loaded => "the module kvm_amd is not loaded".to_owned(),
                None => format!("this kernel's kvm_amd has no parameter {name}"),
            };
            let remedy = match (&text, at) {
                _ if works => None,
                _ if self.processor == Level::None && by_leaf == Level::None => {
                    Some("use a host with an AMD EPYC processor".to_owned())
                }
                (None, _) if let Some((path, _)) = refused => Some(format!(
                    "take `install kvm_amd` out of {}, then sudo modprobe kvm_amd",
                    path.display()
                )),
                (None, _) if !loaded => Some("sudo modprobe kvm_amd".to_owned()),
                (None, Level::SevSnp) => Some("boot Linux 6.11 or later".to_owned()),
                (None, Level::SevEs) => Some("boot Linux 5.11 or later".to_owned()),
                (None, _) => Some("boot Linux 4.16 or later".to_owned()),
                (_, Level::SevSnp) => Some(format!(
                    "{SETUP} (turn on SEV-SNP Support and SNP Memory Coverage)"
                )),
                (_, Level::SevEs) if self.leaf.is_some_and(|l| l.es_guests() == 0) => {
                    Some(format!("{SETUP} (raise SEV-ES ASID Space Limit)"))
                }
                _ => Some(ENABLE.to_owned()),
            };
            findings.push(Finding {
                id,
                what,
                works,
                needed: at == Level::Sev,
                detail,
                remedy,
            });
        }
        (level, findings)
    }

    /// The kernel can be told to encrypt its own memory too. KVM does not need that.
    fn command_line(&self) -> Finding {
        let line = self
            .facts
            .text(Path::new("/proc/cmdline"))
            .unwrap_or_default();
        let value = line
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix("mem_encrypt="))
            .next_back();
        let works = value == Some("on");
        Finding {
            id: "mem-encrypt",
            what: "kernel command line",
            works,
            needed: false,
            detail: match value {
                Some(value) => format!("mem_encrypt={value}"),
                None => "no mem_encrypt=: the kernel's default holds".to_owned(),
            },
            remedy: (!works).then(|| match self.processor {
                Level::None => "use a host with an AMD EPYC processor".to_owned(),
                _ => format!("{ENABLE} (encrypts the host's own memory too; guests do without)"),
            }),
        }
    }

    /// Whether there is one, what is to be said of it, and the device if this process may open it.
    fn device(&self) -> (bool, Finding, Option<File>) {
        let path = self.root.at("/dev/sev");
        let mut finding = Finding {
            id: "dev-sev",
            what: "/dev/sev",
            works: false,
            needed: true,
            detail: String::new(),
            remedy: None,
        };
        let found = fs::metadata(&path);
        // A plain file stands for it below another root.
        let fits = |m: &fs::Metadata| {
            m.file_type().is_char_device() || (m.is_file() && *self.root != Root::default())
        };
        let meta = match found {
            Ok(meta) if fits(&meta) => meta,
            other => {
                finding.detail = match other {
                    Ok(_) => "it is no character device".to_owned(),
                    Err(e) => crate::reason(&e),
                };
                finding.remedy = Some(match self.processor {
                    Level::None => "use a host with an AMD EPYC processor".to_owned(),
                    _ => "sudo modprobe ccp (the driver of the security processor)".to_owned(),
                });
                return (false, finding, None);
            }
        };
        let opened = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(&path);
        let mode = meta.permissions().mode() & 0o7777;
        let group = self.name("/etc/group", meta.gid());
        finding.detail = format!(
            "{}:{group} {mode:04o}: {}",
            self.name("/etc/passwd", meta.uid()),
            who(mode, &group)
        );
        finding.works = opened.is_ok();
        if let Err(e) = &opened {
            finding.detail += &format!("; not by this user: {}", crate::reason(e));
            finding.remedy = Some(UDEV.to_owned());
        }
        (true, finding, opened.ok())
    }

    /// The name of a number in /etc/passwd or /etc/group.
    fn name(&self, file: &str, number: u32) -> String {
        let text = fs::read_to_string(self.root.at(file)).unwrap_or_default();
        let number = number.to_string();
        text.lines()
            .find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                (fields.nth(1)? == number).then(|| name.to_owned())
            })
            .unwrap_or(number)
    }

    fn iommu(&self) -> Finding {
        let units = fs::read_dir(self.root.at("/sys/class/iommu"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with("ivhd"))
            .count();
        let line = self
            .facts
            .text(Path::new("/proc/cmdline"))
            .unwrap_or_default();
        let against = line.split_ascii_whitespace().find(|w| {
            [
                "iommu=pt",
                "iommu=off",
                "amd_iommu=off",
                "iommu.passthrough=1",
            ]
            .contains(w)
        });
        Finding {
            id: "iommu",
            what: "IOMMU",
            works: units > 0 && against.is_none(),
            needed: false,
            detail: match (units, against) {
                (_, Some(word)) => format!("{word} on the kernel command line: no SNP with it"),
                (0, None) => "there is none, and SNP needs one".to_owned(),
                (units, None) => format!("{units} units of AMD's"),
            },
            remedy: match (units, against) {
                (_, Some(word)) => Some(format!("take {word} off the kernel command line")),
                (0, None) => Some(format!("{SETUP} (turn on IOMMU)")),
                _ => None,
            },
        }
    }
}

/// Lets the group kvm open the device, also after a restart.
pub(super) const UDEV: &str = "echo 'KERNEL==\"sev\", GROUP=\"kvm\", MODE=\"0660\"' | sudo tee \
    /etc/udev/rules.d/60-vsc-sev.rules && sudo udevadm control --reload && sudo udevadm trigger --name-match=sev";

/// Who may open a file of this mode for reading and writing.
fn who(mode: u32, group: &str) -> String {
    if mode & 0o006 == 0o006 {
        "everybody may open it".to_owned()
    } else if mode & 0o060 == 0o060 {
        format!("its owner and the group {group} may open it")
    } else {
        "its owner may open it".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leaf_is_taken_apart() {
        let naples = Leaf {
            eax: 0b1111,
            ebx: 47 | 5 << 6,
            ecx: 15,
            edx: 5,
        };
        assert_eq!(
            (naples.level(), naples.cbitpos(), naples.reduced_phys_bits()),
            (Level::SevEs, 47, 5)
        );
        assert_eq!(naples.es_guests(), 4);
        for (eax, level) in [
            (0, Level::None),
            (1, Level::None),
            (2, Level::Sev),
            (0b1_0010, Level::Sev),
            (0b1_1010, Level::SevSnp),
        ] {
            assert_eq!(Leaf { eax, ..naples }.level(), level, "{eax:#b}");
        }
        assert_eq!(Leaf { edx: 0, ..naples }.es_guests(), 0);
        assert_eq!(Leaf { edx: 100, ..naples }.es_guests(), 15);
    }

    #[test]
    fn numbers_and_letters_switch_on() {
        assert!(["1", "Y", "1\n", "y"].iter().all(|t| is_on(Some(t))));
        assert!(["0", "N", "", "Yes", "11"].iter().all(|t| !is_on(Some(t))));
        assert!(!is_on(None));
    }
}
