//! `vsc-run doctor`: what this host is, what works on it, and the one command that mends what does not.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use clap::Args;
use serde::Serialize;
use vsc::facts::{Facts, InstalledKernel, LiveFacts, Root, Variables};
use vsc_vmm::kvm::probe::API_VERSION;
use vsc_vmm::kvm::{Capabilities, Host, HostKind, Missing};

use super::{Common, child, confinement};
use crate::{run, say};

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Boots the built-in guest, which tests the processor, memory, interrupts and devices.
    #[arg(long)]
    self_test: bool,
}

/// The verdict; as JSON its fields are added, never renamed.
#[derive(Debug, Serialize)]
struct Report {
    /// Machines can run here; the exit code is 0 then, else 1.
    runs: bool,
    kvm: Host,
    summary: String,
    /// What KVM says of itself; none where it cannot be asked.
    capabilities: Option<Capabilities>,
    checks: Vec<Check>,
    kernels: Vec<String>,
    self_test: Option<SelfTest>,
}

/// One thing that works or does not.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    /// A name that stays.
    pub(super) id: &'static str,
    pub(super) what: &'static str,
    pub(super) works: bool,
    /// No machine runs without it.
    pub(super) needed: bool,
    /// Why not, or what it rests on.
    pub(super) detail: String,
    /// The one command that mends it.
    pub(super) remedy: Option<String>,
}

/// How the built-in guest fared.
#[derive(Debug, Serialize)]
struct SelfTest {
    passed: bool,
    exit_code: Option<i32>,
    milliseconds: f64,
    /// What went wrong: the guest's lines, then ours.
    messages: Vec<String>,
}

pub(super) fn run(args: &DoctorArgs, common: &Common) -> u8 {
    let root = Root(common.host_root.clone());
    let live = root == Root::default();
    if args.self_test && !live {
        say::error("--self-test runs on this host, not on a directory (--host-root)");
        return crate::FAILED;
    }
    let facts = LiveFacts::new(root.clone(), Variables::of_process());
    let mut report = examine(&facts, &root, live);
    if args.self_test && report.runs {
        match self_test() {
            Ok(test) => {
                report.runs = test.passed;
                report.checks.push(of_self_test(&test));
                report.self_test = Some(test);
            }
            Err(e) => {
                say::error(&format!("cannot start this program again: {e}"));
                return crate::FAILED;
            }
        }
    }
    if common.json {
        say::out(&(serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"));
    } else {
        say::out(&text(&report, common));
    }
    u8::from(!report.runs)
}

fn examine(facts: &LiveFacts, root: &Root, live: bool) -> Report {
    let host = facts.host();
    let kernels = facts.kernels();
    let mut checks = vec![kvm(facts, root)];
    checks.extend(flags(facts));
    let mut capabilities = None;
    if host.kind != HostKind::None {
        let (check, found) = ask_kvm(root, live);
        checks.extend(check);
        capabilities = found;
        checks.extend(linux(host, &kernels));
        checks.push(nested(facts, root));
        checks.extend(live.then(confinement::check));
    }
    Report {
        runs: checks.iter().all(|c| c.works || !c.needed),
        kvm: host,
        summary: host.describe(),
        capabilities,
        checks,
        kernels: kernels
            .iter()
            .map(|k| k.path.display().to_string())
            .collect(),
        self_test: None,
    }
}

/// Whether there is a KVM at all.
fn kvm(facts: &LiveFacts, root: &Root) -> Check {
    let host = facts.host();
    let mut check = Check {
        id: "kvm",
        what: "KVM",
        works: host.kind != HostKind::None,
        needed: true,
        detail: host.describe(),
        remedy: host.remedy(&root.0),
    };
    let module = |name: &str| root.at("/sys/module").join(name).exists();
    let flags = facts.cpu_flags();
    let flag = |name: &str| flags.iter().any(|f| f == name);
    match (host.missing, facts.container()) {
        (Some(Missing::Absent | Missing::NoDriver), Some(engine))
            if engine == "docker" || engine == "podman" =>
        {
            check.detail += &format!("; {engine} shows it to a container only when told to");
            check.remedy = Some(format!("{engine} run --device=/dev/kvm -it debian bash"));
        }
        (Some(Missing::Absent | Missing::NoDriver), _) => {
            if flag("svm") || flag("vmx") {
                check.remedy = Some(format!(
                    "sudo modprobe {}",
                    if flag("svm") { "kvm_amd" } else { "kvm_intel" }
                ));
            } else if flag("hypervisor") {
                check.detail +=
                    "; this host is itself a virtual machine without nested virtualization";
                check.remedy = Some("tests/rig/run -- vsc-run".into());
            } else if root.at("/proc/cpuinfo").exists() {
                check.detail += "; the processor offers no virtualization, which the firmware's setup may have off";
                check.remedy = Some("sudo systemctl reboot --firmware-setup".into());
            }
        }
        (Some(Missing::Busy), _) if module("vboxdrv") => {
            check.detail += ": VirtualBox";
            check.remedy = Some("sudo modprobe -r vboxnetadp vboxnetflt vboxdrv".into());
        }
        (Some(Missing::Busy), _) if module("vmmon") => {
            check.detail += ": VMware";
            check.remedy = Some("sudo modprobe -r vmmon".into());
        }
        _ => {}
    }
    check
}

/// Flags of the processor that machines can have use for: pages, and encryption of what is in them.
fn flags(facts: &LiveFacts) -> Vec<Check> {
    let flags = facts.cpu_flags();
    let has = |name: &str| flags.iter().any(|f| f == name);
    // No setting gives a processor pages that it does not have.
    let pages = |id, name, gives: &'static str| (id, name, gives, None);
    let encrypts = |id, name, gives: &'static str| (id, name, gives, Some("vsc-run sev check"));
    [
        pages(
            "flag-pse",
            "pse",
            "pages of 2 MiB: `memory.hugepages: 2M`, transparent huge pages",
        ),
        pages(
            "flag-pdpe1gb",
            "pdpe1gb",
            "pages of 1 GiB: `memory.hugepages: 1G`",
        ),
        encrypts(
            "flag-sev",
            "sev",
            "guests with encrypted memory: `security: sev`",
        ),
        encrypts(
            "flag-sev-es",
            "sev_es",
            "encrypted registers too: `security: sev-es`",
        ),
        encrypts(
            "flag-sev-snp",
            "sev_snp",
            "memory that the host cannot exchange: `security: sev-snp`",
        ),
    ]
    .into_iter()
    .map(|(id, name, gives, remedy)| Check {
        id,
        what: name,
        works: has(name),
        needed: false,
        detail: match has(name) {
            true => gives.to_owned(),
            false => format!("not among the processor's flags; it is for {gives}"),
        },
        remedy: remedy.filter(|_| !has(name)).map(str::to_owned),
    })
    .collect()
}

/// What KVM says of itself. A plain file below another root stands for a KVM that answers as it should.
fn ask_kvm(root: &Root, live: bool) -> (Option<Check>, Option<Capabilities>) {
    let device = root.at("/dev/kvm");
    let is_device = fs::metadata(&device).is_ok_and(|m| m.file_type().is_char_device());
    if !is_device && !live {
        return (None, None);
    }
    let mut check = Check {
        id: "kvm-api",
        what: "KVM API",
        works: false,
        needed: true,
        detail: String::new(),
        remedy: None,
    };
    let found = match Capabilities::of(&device) {
        Ok(found) => found,
        Err(e) => {
            check.detail = run::chain(&e);
            return (Some(check), None);
        }
    };
    check.works = found.suffice();
    let list = |names: &[String]| names.join(", ");
    check.detail = if found.api_version != API_VERSION {
        format!("{} is no KVM of version {API_VERSION}", device.display())
    } else if !found.lacks.is_empty() {
        check.remedy = Some("sudo apt install linux-image-amd64".into());
        format!("this kernel's KVM lacks {}", list(&found.lacks))
    } else {
        let lacks = match found.lacks_optional.as_slice() {
            [] => String::new(),
            names => format!(", without {}", list(names)),
        };
        format!(
            "version {}, up to {} vCPUs{lacks}",
            found.api_version, found.max_vcpus
        )
    };
    (Some(check), Some(found))
}

/// Kernels that boot here.
fn linux(host: Host, kernels: &[InstalledKernel]) -> Vec<Check> {
    let is_cpl3 = |path: &Path| {
        path.file_name()
            .is_some_and(|n| n.to_string_lossy().contains("cpl3"))
    };
    let find = |cpl3: bool| {
        kernels
            .iter()
            .find(|k| is_cpl3(&k.path) == cpl3)
            .map(|k| k.path.display().to_string())
    };
    let hardware = host.kind == HostKind::Hardware;
    let stock = find(false);
    let mut checks = vec![Check {
        id: "stock-kernels",
        what: "stock Linux kernels",
        works: hardware && stock.is_some(),
        needed: false,
        detail: match (hardware, stock.clone()) {
            (false, _) => "they need hardware KVM; the rig emulates it".into(),
            (true, Some(path)) => path,
            (true, None) => {
                "none is installed in /boot, and --kernel FILE boots one from anywhere".into()
            }
        },
        remedy: match (hardware, stock) {
            (false, _) => Some("tests/rig/run -- vsc-run".into()),
            (true, Some(_)) => None,
            (true, None) => Some("sudo apt install linux-image-cloud-amd64".into()),
        },
    }];
    if !hardware {
        let own = find(true);
        checks.push(Check {
            id: "cpl3-kernel",
            what: "vsc's cpl3 kernel",
            works: own.is_some(),
            needed: false,
            remedy: own
                .is_none()
                .then(|| "firmware/kernel/build cpl3 ~/.local/share/vsc/kernels".into()),
            detail: own
                .unwrap_or_else(|| "none is installed, so no Linux command runs natively".into()),
        });
    }
    checks
}

fn nested(facts: &LiveFacts, root: &Root) -> Check {
    let module = ["kvm_amd", "kvm_intel"]
        .into_iter()
        .find(|name| root.at("/sys/module").join(name).exists());
    let works = facts.nested();
    Check {
        id: "nested",
        what: "nested virtualization",
        works,
        needed: false,
        detail: match module {
            Some(name) => format!(
                "the parameter nested of {name} is {}",
                if works { "on" } else { "off" }
            ),
            None => "it needs the module kvm_amd or kvm_intel".into(),
        },
        remedy: module
            .filter(|_| !works)
            .map(|m| format!("sudo modprobe -r {m} && sudo modprobe {m} nested=1")),
    }
}

/// Runs the built-in guest with all its tests.
fn self_test() -> std::io::Result<SelfTest> {
    let run = child::run(&["--timeout".into(), "60s".into()])?;
    let said = String::from_utf8_lossy(&run.stdout);
    let failed = said
        .lines()
        .filter(|line| line.contains("FAIL"))
        .map(str::to_owned);
    Ok(SelfTest {
        passed: run.status.success(),
        exit_code: run.status.code(),
        milliseconds: run.whole.as_secs_f64() * 1e3,
        messages: failed.chain(run.failure()).collect(),
    })
}

fn of_self_test(test: &SelfTest) -> Check {
    Check {
        id: "self-test",
        what: "self-test",
        works: test.passed,
        needed: true,
        detail: match test.messages.join("; ") {
            said if said.is_empty() => {
                format!("the built-in guest passed in {:.0} ms", test.milliseconds)
            }
            said => said,
        },
        remedy: (!test.passed).then(|| "vsc-run --verbose".into()),
    }
}

/// One thing that works or does not, as it is shown: nothing where it works and only what does not is wanted.
pub(super) fn checked(
    works: bool,
    what: &str,
    detail: &str,
    remedy: Option<String>,
    common: &Common,
) -> String {
    if works && common.quiet {
        return String::new();
    }
    let word = if works { "works" } else { "no   " };
    let remedy = remedy.map(|remedy| format!("       try: {remedy}\n"));
    format!("{word}  {what}: {detail}\n{}", remedy.unwrap_or_default())
}

fn text(report: &Report, common: &Common) -> String {
    let mut text = String::new();
    for Check {
        id: _,
        what,
        works,
        needed: _,
        detail,
        remedy,
    } in &report.checks
    {
        text += &checked(*works, what, detail, remedy.clone(), common);
    }
    if common.verbose {
        for kernel in &report.kernels {
            text += &format!("kernel {kernel}\n");
        }
    }
    text + if report.runs {
        "Machines run on this host.\n"
    } else {
        "No machine runs on this host.\n"
    }
}
