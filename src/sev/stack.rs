//! What stands between a host that has SEV and libvirt's guests: versions, what libvirt remembers of QEMU, and who may
//! open the device.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use crate::facts::Root;
use crate::libvirt::{Virsh, ask};
use crate::xml::parse::parse;

use super::Level;
use super::host::{Finding, Host, UDEV};
use super::version::Version;

/// Where libvirt's system daemon keeps what QEMU can do (libvirt kbase launch_security_sev, "Enable SEV in the virt
/// stack").
pub const CACHE: &str = "/var/cache/libvirt/qemu/capabilities";
/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(10);

/// What libvirt says of SEV.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DomainSev {
    /// QEMU can have it here.
    pub supported: bool,
    /// The bit that says encrypted.
    pub cbitpos: Option<u32>,
    /// Address bits that it costs a guest.
    pub reduced_phys_bits: Option<u32>,
    /// Most guests with SEV.
    pub max_guests: Option<u32>,
    /// Most guests with SEV-ES.
    pub max_es_guests: Option<u32>,
}

impl DomainSev {
    /// Out of the XML of `virsh domcapabilities`.
    ///
    /// # Errors
    /// It is not that.
    pub fn parse(text: &str) -> Result<Self, String> {
        let root = parse(text).map_err(|e| e.to_string())?;
        if root.name != "domainCapabilities" {
            return Err("it is no <domainCapabilities>".to_owned());
        }
        let Some(sev) = root.child("features").and_then(|f| f.child("sev")) else {
            return Ok(DomainSev::default());
        };
        let number = |name: &str| sev.child(name)?.text.trim().parse().ok();
        Ok(DomainSev {
            supported: sev.get("supported") == Some("yes"),
            cbitpos: number("cbitpos"),
            reduced_phys_bits: number("reducedPhysBits"),
            max_guests: number("maxGuests"),
            max_es_guests: number("maxESGuests"),
        })
    }
}

/// SELinux, where it enforces.
#[derive(Debug, Clone, Serialize)]
pub struct Selinux {
    /// Version and release of the package selinux-policy; `None`: rpm does not know.
    pub policy: Option<Version>,
}

/// What libvirt remembers of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// Nothing: what it says it has just found out.
    Empty,
    /// What it found out since it was started.
    Fresh,
    /// What may be from before.
    Old,
}

/// What programs and files say.
#[derive(Debug, Clone, Serialize)]
pub struct Answers {
    /// libvirt's version, or why it does not tell.
    #[serde(serialize_with = "told")]
    pub libvirt: Result<Version, String>,
    /// QEMU's.
    #[serde(serialize_with = "told")]
    pub qemu: Result<Version, String>,
    /// What libvirt says of SEV.
    #[serde(serialize_with = "told")]
    pub domain: Result<DomainSev, String>,
    /// How old that may be.
    pub memory: Memory,
    /// The unit of the daemon.
    pub service: &'static str,
    /// SELinux.
    pub selinux: Option<Selinux>,
}

/// As data: what was answered, or `{"error": why}`.
fn told<T: Serialize, S: Serializer>(
    answer: &Result<T, String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match answer {
        Ok(answer) => answer.serialize(serializer),
        Err(why) => BTreeMap::from([("error", why)]).serialize(serializer),
    }
}

impl Answers {
    /// Asks the programs in `search`, and the hypervisor.
    pub fn of(root: &Root, virsh: &Virsh, search: Option<&OsStr>) -> Self {
        let said = |names: &[&str], arguments: &[&str]| {
            let found = names
                .iter()
                .find_map(|name| crate::trust::program(name, search));
            let program =
                found.ok_or_else(|| format!("there is no {} in PATH", names.join(", no ")))?;
            let text = ask(&program, arguments, PATIENCE)
                .map_err(|e| format!("{}: {e}", program.display()))?;
            Version::find(&text)
                .ok_or_else(|| format!("{} does not tell its version", program.display()))
        };
        let domain = virsh
            .run(&["domcapabilities", "--virttype", "kvm"], None)
            .map_err(|e| e.to_string())
            .and_then(|answer| DomainSev::parse(&answer.stdout));
        let enforcing = fs::read_to_string(root.at("/sys/fs/selinux/enforce"))
            .is_ok_and(|text| text.trim() == "1");
        let rpm = ["-q", "--qf", "%{VERSION}-%{RELEASE}\n", "selinux-policy"];
        Answers {
            libvirt: said(&["virsh"], &["--version"]),
            qemu: said(&["qemu-system-x86_64", "qemu-kvm"], &["--version"]),
            domain,
            memory: memory(root),
            service: service(root),
            selinux: enforcing.then(|| Selinux {
                policy: said(&["rpm"], &rpm).ok(),
            }),
        }
    }
}

/// The unit of libvirt's daemon for QEMU: the one for everything, unless only the one for QEMU is installed.
fn service(root: &Root) -> &'static str {
    let has = |unit: &str| {
        [
            "/etc/systemd/system",
            "/usr/lib/systemd/system",
            "/lib/systemd/system",
        ]
        .iter()
        .any(|d| root.at(d).join(unit).exists())
    };
    match !has("libvirtd.service") && has("virtqemud.service") {
        true => "virtqemud",
        false => "libvirtd",
    }
}

/// Whether all that libvirt remembers is from after it was started.
fn memory(root: &Root) -> Memory {
    let modified = |path: PathBuf| fs::metadata(path)?.modified();
    let files = match fs::read_dir(root.at(CACHE)) {
        Ok(files) => files,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Memory::Empty,
        Err(_) => return Memory::Old,
    };
    let oldest: Option<SystemTime> = files
        .flatten()
        .map(|f| modified(f.path()).unwrap_or(SystemTime::UNIX_EPOCH))
        .min();
    let started = ["/run/libvirtd.pid", "/run/virtqemud.pid"]
        .iter()
        .filter_map(|p| modified(root.at(p)).ok())
        .max();
    match (oldest, started) {
        (None, _) => Memory::Empty,
        (Some(oldest), Some(started)) if oldest >= started => Memory::Fresh,
        _ => Memory::Old,
    }
}

/// Why libvirt's guests cannot have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// They can.
    None,
    /// libvirt did not answer.
    NoAnswer,
    /// libvirt remembers what was before SEV was switched on.
    StaleCache,
    /// The host has none, or has it off.
    HostLacks,
    /// QEMU has none.
    QemuLacks,
    /// QEMU may not open /dev/sev when libvirt asks it what it can do.
    Permission,
    /// SELinux keeps QEMU from it.
    Selinux,
}

/// The verdict on libvirt and QEMU.
#[derive(Debug, Clone, Serialize)]
pub struct Stack {
    /// libvirt's guests can have it.
    pub usable: bool,
    /// Why not.
    pub cause: Cause,
    /// What programs and files say.
    pub answers: Answers,
    /// Each thing that was looked at.
    pub findings: Vec<Finding>,
    /// What makes libvirt ask QEMU again, in this order; empty where that does not help.
    pub commands: Vec<String>,
}

/// The first versions that have SEV, and those that have its later levels.
const LIBVIRT: [&[u32]; 3] = [&[4, 5], &[4, 5], &[10, 5]];
const QEMU: [&[u32]; 3] = [&[2, 12], &[6, 0], &[9, 1]];
/// From here on libvirt lets QEMU open the device when it asks it what it can do.
const LIBVIRT_ASKS_AS_ROOT: &[u32] = &[5, 1, 0];
/// From here on SELinux's policy knows /dev/sev.
const SELINUX: &[u32] = &[3, 14, 2, 40];

impl Stack {
    /// Puts together what the host has and what was answered.
    pub fn judge(host: &Host, root: &Root, answers: Answers) -> Self {
        let cause = cause(host, root, &answers);
        let mut findings = vec![
            version("libvirt", "libvirt", &answers.libvirt, LIBVIRT, host.level),
            version("qemu", "QEMU", &answers.qemu, QEMU, host.level),
        ];
        let commands = match cause {
            Cause::StaleCache => renewal(answers.service),
            _ => Vec::new(),
        };
        findings.push(domain(&answers, cause, host));
        findings.extend(equal(&answers, host));
        findings.extend(answers.selinux.as_ref().map(|s| selinux(s, cause)));
        Stack {
            usable: cause == Cause::None,
            cause,
            answers,
            findings,
            commands,
        }
    }
}

/// The three commands of libvirt's guide.
fn renewal(service: &str) -> Vec<String> {
    vec![
        format!("sudo systemctl stop {service}.service"),
        format!("sudo sh -c 'rm -f {CACHE}/*'"),
        format!("sudo systemctl start {service}.service"),
    ]
}

fn cause(host: &Host, root: &Root, answers: &Answers) -> Cause {
    let domain = match &answers.domain {
        Ok(domain) => domain,
        Err(_) => return Cause::NoAnswer,
    };
    let before = |version: &Result<Version, String>, least: &[u32]| {
        version.as_ref().is_ok_and(|v| v.is_before(least))
    };
    let for_root_only =
        fs::metadata(root.at("/dev/sev")).is_ok_and(|m| m.permissions().mode() & 0o006 != 0o006);
    if domain.supported {
        Cause::None
    } else if host.level == Level::None {
        Cause::HostLacks
    } else if before(&answers.qemu, QEMU[0]) {
        Cause::QemuLacks
    } else if answers.memory == Memory::Old {
        Cause::StaleCache
    } else if before(&answers.libvirt, LIBVIRT_ASKS_AS_ROOT) && for_root_only {
        Cause::Permission
    } else if answers.selinux.as_ref().is_some_and(Selinux::may_refuse) {
        Cause::Selinux
    } else {
        Cause::QemuLacks
    }
}

impl Selinux {
    fn may_refuse(&self) -> bool {
        self.policy.as_ref().is_none_or(|p| p.is_before(SELINUX))
    }
}

fn version(
    id: &'static str,
    what: &'static str,
    found: &Result<Version, String>,
    least: [&[u32]; 3],
    level: Level,
) -> Finding {
    let text = |list: &[u32]| Version(list.to_vec()).to_string();
    let all = format!(
        "SEV from {}, SEV-ES from {}, SEV-SNP from {}",
        text(least[0]),
        text(least[1]),
        text(least[2])
    );
    let needed_now = match level {
        Level::SevSnp => least[2],
        Level::SevEs => least[1],
        _ => least[0],
    };
    let (works, detail, remedy) = match found {
        Ok(v) if v.is_before(least[0]) => (
            false,
            format!("{v}: too old ({all})"),
            Some(format!("install {what} {} or later", text(needed_now))),
        ),
        Ok(v) if v.is_before(needed_now) => (
            true,
            format!(
                "{v}: ok, and too old for the {} of this host ({all})",
                level.word()
            ),
            None,
        ),
        Ok(v) => (true, format!("{v}: ok ({all})"), None),
        Err(why) => (false, why.clone(), Some(format!("install {what}"))),
    };
    Finding {
        id,
        what,
        works,
        needed: true,
        detail,
        remedy,
    }
}

fn domain(answers: &Answers, cause: Cause, host: &Host) -> Finding {
    let seen = match &answers.domain {
        Err(why) => why.clone(),
        Ok(d) if d.supported => {
            let number = |n: Option<u32>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
            format!(
                "sev supported: yes cbitpos={} reducedPhysBits={}",
                number(d.cbitpos),
                number(d.reduced_phys_bits)
            )
        }
        Ok(_) => "sev supported: no".to_owned(),
    };
    let (why, remedy) = match cause {
        Cause::None => ("", None),
        Cause::NoAnswer => (
            "",
            Some(format!("sudo systemctl start {}.service", answers.service)),
        ),
        Cause::StaleCache => (
            ", and KVM has it on: libvirt remembers what was before",
            Some("vsc-run sev check --stack --fix, or the three commands below".to_owned()),
        ),
        Cause::HostLacks => (
            ": (a) the host has none, or has it off",
            Some(match host.processor {
                Level::None => "use a host with an AMD EPYC processor".to_owned(),
                _ => "see above what the host needs".to_owned(),
            }),
        ),
        Cause::QemuLacks => (
            ": (a) this QEMU has none",
            Some("install a QEMU from 2.12 on that was built with SEV".to_owned()),
        ),
        Cause::Permission => (
            ": (b) libvirt before 5.1.0 asks QEMU as a user who may not open /dev/sev",
            Some(format!("install libvirt 5.1.0 or later, or: {UDEV}")),
        ),
        Cause::Selinux => (
            ": (b) SELinux may keep QEMU from /dev/sev",
            Some("see SELinux below".to_owned()),
        ),
    };
    Finding {
        id: "domcapabilities",
        what: "libvirt's domcapabilities",
        works: cause == Cause::None,
        needed: true,
        detail: seen + why,
        remedy,
    }
}

/// libvirt's C-bit is that of the processor. Of the address bits QEMU says what a guest loses, 1, whatever the host
/// does.
fn equal(answers: &Answers, host: &Host) -> Option<Finding> {
    let domain = answers.domain.as_ref().ok().filter(|d| d.supported)?;
    let (cbitpos, reduced) = (host.cbitpos?, host.reduced_phys_bits?);
    let works = domain.cbitpos == Some(cbitpos)
        && domain
            .reduced_phys_bits
            .is_some_and(|r| r == reduced || r == 1);
    Some(Finding {
        id: "domcapabilities-cpuid",
        what: "libvirt against CPUID",
        works,
        needed: false,
        detail: format!(
            "CPUID says cbitpos={cbitpos} reducedPhysBits={reduced}: {}",
            match domain.reduced_phys_bits {
                _ if !works => "not equal",
                Some(bits) if bits != reduced =>
                    "equal but for what a guest loses, which QEMU says is 1",
                _ => "equal",
            }
        ),
        remedy: (!works)
            .then(|| "is this the hypervisor of this host? --connect URL asks another".to_owned()),
    })
}

fn selinux(selinux: &Selinux, cause: Cause) -> Finding {
    let least = Version(SELINUX.to_vec());
    let old = selinux
        .policy
        .as_ref()
        .is_some_and(|p| p.is_before(SELINUX));
    let works = !old && cause != Cause::Selinux;
    Finding {
        id: "selinux",
        what: "SELinux",
        works,
        needed: false,
        detail: match &selinux.policy {
            Some(policy) if old => {
                format!("enforcing, and its policy {policy} is older than {least}, the first that knows /dev/sev")
            }
            Some(policy) => format!("enforcing, policy {policy}"),
            None => format!(
                "enforcing; rpm does not tell whether its policy is older than {least}, the first that knows /dev/sev"
            ),
        },
        remedy: (!works).then(|| {
            "sudo dnf update selinux-policy-targeted; where there is none: sudo ausearch -m avc -c qemu-kvm | \
             audit2allow -M vsc-sev && sudo semodule -i vsc-sev.pp; discouraged, as it protects nothing any more: \
             sudo setenforce 0"
                .to_owned()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read() {
        let text = |inner: &str| {
            format!(
                "<domainCapabilities><path>/usr/bin/q</path><features><gic supported='no'/>{inner}</features></domainCapabilities>"
            )
        };
        let yes = text(
            "<sev supported='yes'><cbitpos>47</cbitpos><reducedPhysBits>1</reducedPhysBits><maxGuests>59</maxGuests><maxESGuests>450</maxESGuests></sev>",
        );
        assert_eq!(
            DomainSev::parse(&yes),
            Ok(DomainSev {
                supported: true,
                cbitpos: Some(47),
                reduced_phys_bits: Some(1),
                max_guests: Some(59),
                max_es_guests: Some(450),
            })
        );
        for none in ["<sev supported='no'/>", "", "<sev/>"] {
            assert_eq!(
                DomainSev::parse(&text(none)),
                Ok(DomainSev::default()),
                "{none}"
            );
        }
        assert!(DomainSev::parse("<capabilities/>").is_err());
        assert!(DomainSev::parse("x").is_err());
    }
}
